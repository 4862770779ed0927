//! `CARD.md`: what a specialist is, for the person who decides whether it may be used.

use metier_model::{
    Specialist,
    specialist::{
        bundle::{BESIDE, MAX_PROBE_ROWS},
        manifest::{Kind, Manifest, Stage},
        registry::{Standing, State, UNKNOWN, utc},
    },
};

use super::metrics::Measured;
use crate::build::BuildOutcome;

/// The file that the card is rendered from, beside the bundle and its records.
pub const RUN: &str = BESIDE[0];
/// The card's own file.
pub const CARD: &str = BESIDE[2];

/// Renders the card from the bundle, its run, and where the registry says that it stands.
pub fn render(specialist: &Specialist, outcome: &BuildOutcome, standing: Option<&Standing>) -> String {
    let manifest = specialist.manifest();
    let evaluation = &outcome.evaluation;
    let mut card = format!("# {}\n\n{}\n\n", manifest.name, manifest.instruction);
    card += &format!(
        "| | |\n|---|---|\n| bundle | `{}` |\n| kind | {} |\n| inputs | {} |\n| rung | {} |\n| base | {} |\n| may leave the boundary | {} |\n\n",
        outcome.bundle,
        kind(manifest),
        manifest.inputs.iter().map(|input| format!("`{input}`")).collect::<Vec<_>>().join(", "),
        describe(specialist),
        manifest.base.as_ref().map_or_else(|| "none".to_owned(), |b| format!("{} (`{}`)", b.name, b.digest.short())),
        if manifest.may_leave { "yes, when it defers" } else { "no" },
    );
    card += &purpose(manifest);
    card += "## May it be used?\n\n";
    card += &approval(standing);
    card += "\n\n## When does it answer alone?\n\n";
    card += &certificate(manifest, outcome);
    card += &stages(manifest, outcome);
    card += &format!("\n\n## How good is it?\n\nOn {} {} rows", outcome.n, outcome.measured_on);
    card += &format!(
        ": {} {}, {} {}, calibration error {}. It accepts {} of them and is right on {} of those.\n\n",
        evaluation.metric,
        percent(&Measured { value: evaluation.value, interval: evaluation.interval }),
        if manifest.kind == Kind::Classify { "macro F1" } else { "exact" },
        percent(&evaluation.macro_f1),
        percent(&evaluation.ece),
        percent(&evaluation.coverage),
        percent(&evaluation.accepted_accuracy),
    );
    card += &rungs(outcome);
    card += &depths(outcome);
    if let Some(none) = &evaluation.out_of_scope {
        card += &format!(
            "\nOut of scope (`{}`): {} of such rows get that label, {} get it or are deferred; accuracy on all other rows {}.\n",
            manifest.out_of_scope.as_deref().unwrap_or_default(),
            percent(&none.recall_as_label),
            percent(&none.recall_at_threshold),
            percent(&none.in_scope_accuracy),
        );
    }
    card += "\n## What do these rows allow to say?\n\n| question | answer | because |\n|---|---|---|\n";
    for finding in &outcome.findings {
        card += &format!("| {} | **{}** | {} |\n", finding.question, finding.says.words(), finding.because);
    }
    card += "\n## What is it made from?\n\n";
    let rows: Vec<String> = outcome.rows.iter().map(|(part, n)| format!("{n} {part}")).collect();
    card += &format!("Rows: {}. Seed {}. Data files by content:\n\n", rows.join(", "), manifest.recipe.seed);
    for file in &manifest.recipe.data {
        card += &format!("- {}: `{}`, {} rows\n", file.role, file.sha256, file.rows);
    }
    card += "\n## What are its limits?\n\n";
    card += &limits(outcome);
    for note in &outcome.notes {
        card += &format!("- {note}\n");
    }
    let of_others = match manifest.kind {
        Kind::Classify => "hashed n-grams, weights and class means",
        Kind::Extract => "weights",
        Kind::Generate => "weights and a mean of embeddings. What is written may repeat words of training rows",
    };
    card += &format!(
        "- The bundle holds up to {MAX_PROBE_ROWS} validation texts in the clear (`probe.jsonl`), so that its answers can be \
         checked on other machines; of the other rows it holds {of_others}.\n\
         - The certificate speaks of traffic like the calibration rows, on average, not of a single request; it is void for \
         changed weights, base or labels.\n"
    );
    card
}

fn kind(manifest: &Manifest) -> String {
    match &manifest.generation {
        None if manifest.kind == Kind::Extract => format!("extract, {} fields", manifest.labels.len()),
        None => format!("{}, {} labels", manifest.kind.name(), manifest.labels.len()),
        Some(generation) => format!(
            "{}, at most {} tokens of {} (`{}`)",
            manifest.kind.name(),
            generation.max_tokens,
            generation.decoder.name,
            generation.decoder.digest.short()
        ),
    }
}

fn purpose(manifest: &Manifest) -> String {
    let does = match manifest.kind {
        Kind::Classify if manifest.multi_label.is_some() => format!(
            "It answers the question above with a list of {} labels: of those that apply, which may be none, for texts like those that it was made \
             and measured on. It is not for other texts, other languages than in those rows, or decisions that need a reason beyond the labels.",
            manifest.labels.len(),
        ),
        Kind::Classify => format!(
            "It answers the question above with one of {} labels{}, for texts like those that it was made and measured on. It is not for other \
             texts, other languages than in those rows, or decisions that need a reason beyond the label.",
            manifest.labels.len(),
            manifest.out_of_scope.as_ref().map_or_else(String::new, |none| format!(", `{none}` meaning none of them")),
        ),
        Kind::Extract => format!(
            "It finds the values of {} fields where they stand in the text, and gives each with the characters that it was read from. It \
             writes nothing that is not there. It is for texts like those that it was made and measured on.",
            manifest.labels.len()
        ),
        Kind::Generate => "It writes what the sentence above asks for, for texts like those that it was made and measured on. It is not for \
             other texts, other languages than in those rows, or facts that are not in the text: what a model writes may be wrong however well \
             it reads."
            .to_owned(),
    };
    format!("## What is it for?\n\n{does} What it is not sure of it defers.\n\n")
}

/// Where it is weakest.
fn limits(outcome: &BuildOutcome) -> String {
    const WEAKEST: usize = 5;
    let evaluation = &outcome.evaluation;
    let mut text = String::new();
    let mut classes: Vec<_> = evaluation.per_class.iter().filter(|class| class.n > 0).collect();
    classes.sort_by(|a, b| a.f1.total_cmp(&b.f1).then_with(|| a.label.cmp(&b.label)));
    let weakest = classes.iter().take(WEAKEST).map(|c| format!("`{}` (F1 {:.2}, n = {})", c.label, c.f1, c.n));
    let what = if evaluation.extract.is_some() { "fields" } else { "labels" };
    if !classes.is_empty() {
        text += &format!("- Weakest {what}: {}.\n", weakest.collect::<Vec<_>>().join(", "));
    }
    if let Some(pair) = evaluation.confusions.first() {
        text += &format!("- Most often `{}` is called `{}` ({} rows).\n", pair.gold, pair.predicted, pair.n);
    }
    let mut slices: Vec<_> = evaluation.slices.iter().collect();
    slices.sort_by(|a, b| a.accuracy.value.total_cmp(&b.accuracy.value));
    if let Some(slice) = slices.first() {
        let (column, value) = (&slice.column, &slice.value);
        text += &format!(
            "- Weakest slice: {column} = {value}, accuracy {} of {} rows.\n",
            percent(&slice.accuracy),
            slice.n
        );
    }
    let alone = outcome.failures.iter().filter(|row| row.accepted).count();
    if !outcome.failures.is_empty() {
        text += &format!(
            "- Known failures are listed with file and line in `report.html`; the first {alone} of its {} would have been answered without deferring.\n",
            outcome.failures.len()
        );
    }
    text
}

/// Who made it, who approved it, and whether it answers now.
fn approval(standing: Option<&Standing>) -> String {
    let Some(standing) = standing else {
        return "It is not on record in a registry: it answers nothing.".to_owned();
    };
    let mut text = match standing.state {
        State::Draft => "**Draft**: it answers nothing.".to_owned(),
        State::Shadow => "**Shadow**: it is to be given a copy of the traffic; it answers nothing.".to_owned(),
        State::Live => match standing.live_since_ms {
            Some(at_ms) => format!("**Live** since {} UTC.", utc(at_ms)),
            None => "**Live**.".to_owned(),
        },
        State::Retired => "**Retired**: it was live and answers no longer.".to_owned(),
        State::Removed => "**Removed** from the registry.".to_owned(),
    };
    let builder = standing.built_by.as_deref().filter(|builder| *builder != UNKNOWN);
    text += &match (builder, standing.imported_from) {
        (Some(builder), None) => format!(" Built by {builder}, on record since {} UTC.", utc(standing.since_ms)),
        (Some(builder), Some(key)) => {
            format!(
                " Built by {builder}; imported from the registry with key {} on {} UTC.",
                key.short(),
                utc(standing.since_ms)
            )
        }
        (None, _) => " No record says who built it.".to_owned(),
    };
    text += &match &standing.approved_by {
        Some(approver) => format!(" Approved by {approver}."),
        None if standing.live_since_ms.is_some() => " Nobody approved it: it went live by being built.".to_owned(),
        None => " Nobody has approved it.".to_owned(),
    };
    text
}

fn describe(specialist: &Specialist) -> String {
    let manifest = specialist.manifest();
    let layers =
        manifest.kept_layers().map_or_else(String::new, |kept| format!(", with {} of its layers", kept.layers().len()));
    format!("`{}`: {}{layers}", manifest.stage.name(), what_answers(specialist))
}

fn what_answers(specialist: &Specialist) -> String {
    let manifest = specialist.manifest();
    const FROZEN: &str = "the embedding of a frozen encoder";
    let network = match manifest.stage {
        Stage::Linear => return "a linear model on word and character n-grams".to_owned(),
        Stage::Pair => {
            return "boosted trees on how the inputs agree, and the words that one of them has alone".to_owned();
        }
        Stage::Head => return format!("a linear model on {FROZEN}"),
        Stage::Both => return format!("one linear model on n-grams and {FROZEN}"),
        Stage::Span => return "tags on the words of a text, from an encoder that was tuned for this task".to_owned(),
        Stage::Lookup => return "the values of the training rows, found again".to_owned(),
        Stage::Nearest => return "the answer of the most similar training row".to_owned(),
        Stage::Prompted => return "a decoder as it is, told the instruction".to_owned(),
        Stage::Adapter => return "a decoder under an adapter that was trained for this task".to_owned(),
        Stage::Tuned => "the embedding of an encoder that was tuned for this task",
        Stage::Decoder => "the last row of a decoder under an adapter that was tuned for this task",
    };
    let mut parts = vec![network];
    // N-grams may be there for a stage that is asked first alone.
    if specialist.head().is_some_and(|head| manifest.stage.has_ngrams(head)) {
        parts.insert(0, "n-grams");
    }
    if manifest.reads_base {
        parts.push("the embedding of the frozen encoder");
    }
    if manifest.pairs.is_some() && manifest.stage.reads_pairs() {
        parts.push("how the inputs agree");
    }
    let last = parts.pop().unwrap_or_default();
    let all = if parts.is_empty() { last.to_owned() } else { format!("{} and {last}", parts.join(", ")) };
    format!("{} on {all}", if parts.is_empty() { "a linear model" } else { "one linear model" })
}

fn certificate(manifest: &Manifest, outcome: &BuildOutcome) -> String {
    match &outcome.certificate {
        Some(c) => {
            let mut text = format!(
                "From a score of {:.3} on. With probability ≥ {} over the {} calibration rows, {}{} is at most {}. It accepted {:.1} % of the calibration rows, {} of them wrong.",
                c.threshold,
                1.0 - c.delta,
                c.n,
                if manifest.multi_label.is_some() {
                    "the mean of 1 − Jaccard (of the labels that the answer or the truth names, the share that only one of them names) over \
                     all requests, those that it defers counted as 0"
                } else {
                    "the share of requests that it answers wrong without deferring"
                },
                if outcome.evaluation.reference_accuracy.is_some() { ", where the reference is right," } else { "" },
                c.epsilon,
                100.0 * c.coverage,
                c.losses
            );
            if let Some(loss) = &outcome.evaluation.test_loss {
                text += &format!(
                    " On {} {} rows the share was {:.2} % [{:.2}, {:.2}]: the bound {}.",
                    outcome.n,
                    outcome.measured_on,
                    100.0 * loss.loss,
                    100.0 * loss.interval[0],
                    100.0 * loss.interval[1],
                    if loss.held { "held" } else { "did **not** hold" }
                );
            }
            text
        }
        None => format!(
            "Never: there is no certificate at ε = {}, δ = {}{}. It defers everything.",
            manifest.recipe.epsilon,
            manifest.recipe.delta,
            outcome.rows_needed.map(|rows| format!("; about {rows} calibration rows are needed")).unwrap_or_default()
        ),
    }
}

/// Who answers what, where there is more than one stage or depth.
fn stages(manifest: &Manifest, outcome: &BuildOutcome) -> String {
    let mut text = String::new();
    if let Some((first, share)) = manifest.first.as_ref().and_then(|first| Some((first, first.share?))) {
        text += &format!(
            "\n\nTwo stages answer, in this order, and the bound is for both together: `{}` from a score of {:.3} on ({:.1} % of the \
             calibration rows, {} of them wrong), which needs no base model; what it is not sure of goes to `{}`.",
            first.stage.name(),
            share.threshold,
            100.0 * share.coverage,
            share.losses,
            manifest.stage.name()
        );
    }
    if manifest.hierarchy.as_ref().is_some_and(|tree| !tree.levels.is_empty()) {
        text += "\n\nLabels are paths. Where it is not sure of the whole it answers with the beginning, if it is sure of that; the bound is for all \
                 answers together, a beginning counting as wrong where the label does not lie under it.";
    }
    if outcome.evaluation.stages.is_empty() {
        return text;
    }
    text += "\n\n| stage | from score | answers | right on those | wrong |\n|---|---|---|---|---|";
    for stage in &outcome.evaluation.stages {
        text += &format!(
            "\n| {} | {} | {} | {} | {} |",
            stage.name(),
            stage.threshold.map_or_else(|| "never".to_owned(), |from| format!("{from:.3}")),
            percent(&stage.answered),
            percent(&stage.right),
            stage.losses
        );
    }
    text
}

/// How good it is at each depth, where labels are paths.
fn depths(outcome: &BuildOutcome) -> String {
    let Some(tree) = &outcome.evaluation.hierarchy else { return String::new() };
    let levels: Vec<String> = tree
        .levels
        .iter()
        .map(|level| format!("depth {} ({} nodes) {}", level.depth, level.nodes, percent(&level.accuracy)))
        .collect();
    format!("\nLabels are paths: accuracy at {}; hierarchical F1 {}.\n", levels.join(", "), percent(&tree.f1))
}

fn rungs(outcome: &BuildOutcome) -> String {
    let mut table = "| rung | value | 95 % interval | validation | training s |\n|---|---|---|---|---|\n".to_owned();
    for rung in &outcome.rungs {
        let name = rung.name();
        let name = if rung.is_taken(outcome.rung) { format!("**{name}**") } else { name };
        table += &format!(
            "| {name} | {:.2} % | {:.2} – {:.2} | {:.2} % | {:.1} |\n",
            100.0 * rung.value,
            100.0 * rung.interval[0],
            100.0 * rung.interval[1],
            100.0 * rung.validation,
            rung.seconds
        );
    }
    table
}

pub(super) fn percent(measured: &Measured) -> String {
    let [low, high] = measured.interval.map(|bound| 100.0 * bound);
    format!("{:.1} % [{low:.1}, {high:.1}]", 100.0 * measured.value)
}
