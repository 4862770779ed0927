//! A build of a classification whose rows have several labels. Which rows may be used for what is the same as for every build.
//!
//! ```text
//! train ───────► features, weights of every rung, one against the rest
//! validation ──► settings · thresholds · rung · lines of the score · probe rows · match threshold
//! calibration ─► certificate on 1 − Jaccard of a row, once, for exactly the weights that ship
//! test ────────► what is reported
//! ```

use std::{collections::BTreeMap, path::Path, time::Duration};

use metier_kernels::Pool;
use metier_model::{
    Progress, Specialist, Unit,
    features::FORMAT as FEATURE_FORMAT,
    proof::{Calibrator, Method, graded, thresholds},
    specialist::{
        Contents,
        manifest::{FORMAT, Kind, Manifest, Recipe, Stage},
        sets::{called, in_json},
    },
};

use super::{
    BuildError, BuildOutcome, EXCERPT_CHARACTERS, Evidence, FailedRow, MAX_FAILURES, RungOutcome, Workbench,
    base_notes, embed, embedded, neighbours, probe,
    ship::{Product, ship},
    yardstick,
};
use crate::{
    craft::{
        ladder::{Embeddings, Held, Run},
        sets::{self, MIN_POSITIVES, SetLadder},
    },
    data::{
        DataError, Part, TaskFile,
        sets::{SetSplits, is_list, set_of},
        split::Example,
        table::{self, Columns},
        task::Metric,
    },
    embed::Embed,
    eval::{
        EvalReport, ScoredRow,
        certify::certify,
        cluster::Groups,
        evaluation::{self, Confusion, RiskCoverage, TestLoss, Yardstick},
        learning,
        metrics::{self, CONFIDENCE},
        sets as figures,
    },
};

/// Pairs of missed and false labels that are listed.
const MAX_CONFUSIONS: usize = 20;
/// Points of the risk–coverage curve, about.
const CURVE_POINTS: usize = 100;

/// Rows as a specialist answered them.
struct Answered {
    called: Vec<Vec<usize>>,
    scored: Vec<ScoredRow>,
    /// 1 − Jaccard, 0 where the reference is wrong itself.
    losses: Vec<f64>,
}

/// Builds a specialist that gives several labels.
pub(super) fn build(
    task: &TaskFile,
    sets: &SetSplits,
    bench: &Workbench<'_>,
    progress: &mut dyn FnMut(Progress<'_>),
    elapsed: &dyn Fn() -> Duration,
) -> Result<BuildOutcome, BuildError> {
    let splits = &sets.splits;
    if let Metric::F1 { .. } = task.target.metric {
        let message =
            "metric `f1` is that of one label: rows with several have `micro_f1`, `macro_f1` or `exact_match`";
        return Err(DataError::Task(message.to_owned()).into());
    }
    if task.stages > 1 {
        let message = "`target.stages` is for rows with one label each: of lists one stage answers";
        return Err(DataError::Task(message.to_owned()).into());
    }
    let embeddings = bench.encoder.map(|encoder| embed(task, splits, encoder, bench.pool, progress)).transpose()?;
    let embed_seconds = elapsed().as_secs_f64();
    let deadline = Duration::from_secs_f64(task.budget_minutes * 60.0);
    let run = Run { pool: bench.pool, seed: bench.seed, clock: elapsed, deadline, keeps: None };
    let ladder = sets::climb(sets, embeddings.as_ref(), task.up_to, &task.target, &run, progress);
    progress(Progress { stage: "proving", done: 0, total: None, unit: Unit::Steps });
    let (specialist, evidence, failures) = prove(task, sets, embeddings.as_ref(), &ladder, bench);
    let part = measured_part(sets);
    let groups = groups(splits.part(part));
    let rungs = ladder.rungs.iter().map(|rung| {
        let margins = Held::of(splits, part, &ladder.features, embeddings.as_ref()).margins(&rung.head);
        let calls: Vec<Vec<usize>> = margins.iter().map(|row| called(row)).collect();
        let gold = &sets.sets[part as usize];
        let n_labels = splits.labels.len();
        let measured = figures::measure(task.target.metric, &calls, gold, n_labels, bench.seed, groups.as_ref());
        RungOutcome {
            rung: rung.stage,
            value: measured.value,
            interval: measured.interval,
            seconds: rung.seconds,
            validation: rung.record.validation,
            c: rung.record.c,
            embedding_scale: rung.record.embedding_scale,
            against_best: rung.record.against_best,
            decoder: None,
        }
    });
    let rungs = rungs.collect();
    let mut notes = base_notes(task, splits, specialist.manifest(), &evidence.rows);
    notes.extend(remarks(task, sets, &ladder));
    progress(Progress { stage: "learning curve", done: 0, total: None, unit: Unit::Steps });
    let inputs = &task.data.text;
    let shop = learning::Workshop { inputs, pool: bench.pool, seed: bench.seed, clock: elapsed, deadline };
    let (rung, metric) = (&ladder.rungs[ladder.chosen], task.target.metric);
    let (learning_curve, no_curve) = match learning::measure_sets(sets, embeddings.as_ref(), rung, metric, &shop) {
        Ok(curve) => (Some(curve), None),
        Err(why) => (None, Some(why)),
    };
    notes.extend(no_curve);
    let product = Product {
        specialist,
        evidence,
        rungs,
        failures,
        learning_curve,
        training: None,
        memorisation: None,
        notes,
        embed_seconds,
    };
    ship(task, splits, bench, product, elapsed)
}

fn measured_part(sets: &SetSplits) -> Part {
    if sets.splits.part(Part::Test).is_empty() { Part::Validation } else { Part::Test }
}

fn groups(examples: &[Example]) -> Option<Groups> {
    Groups::of(examples.iter().map(|example| example.row.group.as_deref()))
}

/// Calibrates and certifies the chosen rung, and measures it.
fn prove(
    task: &TaskFile,
    sets: &SetSplits,
    embeddings: Option<&Embeddings>,
    ladder: &SetLadder,
    bench: &Workbench<'_>,
) -> (Specialist, Evidence, Vec<FailedRow>) {
    let (splits, rung) = (&sets.splits, &ladder.rungs[ladder.chosen]);
    let manifest = Manifest {
        format: FORMAT,
        name: task.name.clone(),
        kind: Kind::Classify,
        instruction: task.instruction.clone(),
        inputs: task.data.text.clone(),
        labels: splits.labels.clone(),
        out_of_scope: None,
        may_leave: task.may_leave,
        stage: rung.stage,
        base: bench.encoder.map(Embed::base),
        generation: None,
        hidden: None,
        features: rung.stage.reads_ngrams().then(|| FEATURE_FORMAT.to_owned()),
        pairs: None,
        calibrator: Calibrator { inverse_temperature: 1.0, method: Method::Softmax },
        scores: None,
        scope: None,
        multi_label: Some(sets::fit_scores(&rung.validation, &sets.sets[Part::Validation as usize])),
        hierarchy: None,
        first: None,
        certificate: None,
        refusal: None,
        recipe: Recipe {
            seed: bench.seed,
            metric: figures::name(task.target.metric).to_owned(),
            positive: None,
            margin: task.target.margin,
            epsilon: task.target.epsilon,
            delta: task.target.delta,
            rows: splits.counts(),
            data: splits.files.clone(),
            rungs: ladder.rungs.iter().map(|rung| rung.record.clone()).collect(),
            teacher: None,
        },
        files: BTreeMap::new(),
    };
    let mut contents = Contents {
        manifest,
        features: rung.stage.reads_ngrams().then(|| ladder.features.clone()),
        head: Some(rung.head.clone()),
        first: None,
        encoder: None,
        adapter: None,
        schema: None,
        pairs: None,
        neighbours: embeddings.and_then(|all| neighbours(splits, all, None)),
        probe: Vec::new(),
        evidence: String::new(),
    };
    let margins = |part: Part| Held::of(splits, part, &ladder.features, embeddings).margins(&rung.head);
    let specialist = Specialist::from_contents(contents.clone());
    let answered = answer(
        &specialist,
        splits.part(Part::Calibration),
        &sets.sets[Part::Calibration as usize],
        &margins(Part::Calibration),
    );
    let rows: Vec<(f32, f64)> =
        answered.scored.iter().zip(&answered.losses).map(|(row, loss)| (row.score, *loss)).collect();
    let groups_of = groups(splits.part(Part::Calibration));
    match certify(&rows, true, groups_of.as_ref(), (task.target.epsilon, task.target.delta)) {
        Ok(certificate) => contents.manifest.certificate = Some(certificate),
        Err(refusal) => contents.manifest.refusal = Some(refusal),
    }
    let specialist = Specialist::from_contents(contents.clone());

    let part = measured_part(sets);
    let (examples, gold) = (splits.part(part), &sets.sets[part as usize]);
    let answered = answer(&specialist, examples, gold, &margins(part));
    let has_reference = task.reference.is_some() || task.reference_answers.is_some();
    let yardstick = yardstick(specialist.manifest(), task.target.metric, has_reference, &task.data.slice, bench.seed);
    let evaluation = report(&answered, gold, groups(examples).as_ref(), &yardstick);
    let failures = failures(examples, &answered, gold, &splits.labels);
    let evidence = Evidence { rows: part.name().to_owned(), evaluation, class_mix: None };
    contents.probe = probe(splits.part(Part::Validation), |row| specialist.answer_from(&rung.validation[row]));
    contents.evidence = serde_json::to_string_pretty(&evidence).expect("evidence is JSON");
    (Specialist::from_contents(contents), evidence, failures)
}

/// What the specialist makes of rows with these margins. Right is class 0, anything else class 1.
fn answer(specialist: &Specialist, examples: &[Example], gold: &[Vec<usize>], margins: &[Vec<f32>]) -> Answered {
    let calls: Vec<Vec<usize>> = margins.iter().map(|row| called(row)).collect();
    let scored: Vec<ScoredRow> = examples
        .iter()
        .zip(margins)
        .zip(calls.iter().zip(gold))
        .map(|((example, margins), (called, gold))| {
            let answer = specialist.answer_from(margins);
            ScoredRow {
                predicted: usize::from(called != gold),
                gold: 0,
                right: called == gold,
                score: answer.score,
                accepted: answer.accepted,
                reference_right: reference_is_right(example),
                group: example.row.group.clone(),
                extra: example.row.extra.clone(),
            }
        })
        .collect();
    let losses = calls
        .iter()
        .zip(gold)
        .zip(&scored)
        .map(|((called, gold), row)| if row.reference_right { 1.0 - figures::jaccard(called, gold) } else { 0.0 });
    Answered { losses: losses.collect(), called: calls, scored }
}

/// A reference's list counts as right in any order.
fn reference_is_right(example: &Example) -> bool {
    let Some(reference) = &example.row.reference else { return true };
    let list: Option<std::collections::BTreeSet<String>> = serde_json::from_str(reference).ok();
    list.is_some_and(|list| in_json(list.iter().map(String::as_str)) == example.row.label)
}

/// What is said of any specialist (rows right or wrong, accepted or deferred), and what is said of sets.
fn report(answered: &Answered, gold: &[Vec<usize>], groups: Option<&Groups>, of: &Yardstick<'_>) -> EvalReport {
    let (metric, seed, labels) = (of.metric, of.seed, of.labels);
    let right_or_wrong = ["right".to_owned(), "wrong".to_owned()];
    let yardstick = Yardstick { labels: &right_or_wrong, metric: Metric::Accuracy, out_of_scope: None, ..*of };
    let mut report = evaluation::evaluate(&answered.scored, &yardstick);
    let all = figures::figures(&answered.called, gold, labels.len(), seed, groups);
    report.metric = figures::name(metric).to_owned();
    let measured = match metric {
        Metric::Accuracy => all.exact_match,
        Metric::MacroF1 => all.macro_f1,
        Metric::MicroF1 | Metric::F1 { .. } => all.micro_f1,
    };
    (report.value, report.interval) = (measured.value, measured.interval);
    (report.micro_f1, report.macro_f1) = (all.micro_f1, all.macro_f1);
    report.per_class = figures::per_label(&answered.called, gold, labels);
    report.confusions = confusions(&answered.called, gold, labels);
    report.slices.iter_mut().for_each(|slice| slice.risk = None);
    report.risk_coverage = risk_coverage(answered);
    report.test_loss = of.certificate.map(|certificate| test_loss(answered, certificate.epsilon, seed, groups));
    report.sets = Some(all);
    report
}

/// The mean loss of what was accepted, tried on rows that the certificate has not seen.
fn test_loss(answered: &Answered, epsilon: f64, seed: u64, groups: Option<&Groups>) -> TestLoss {
    let pairs = answered.scored.iter().zip(&answered.losses);
    let losses: Vec<f64> = pairs.map(|(row, loss)| if row.accepted { *loss } else { 0.0 }).collect();
    let n = losses.len();
    let mean = |rows: &[usize]| rows.iter().map(|row| losses[*row]).sum::<f64>() / rows.len().max(1) as f64;
    let loss = mean(&(0..n).collect::<Vec<_>>());
    let mut interval = metrics::bootstrap(n, seed, groups, mean);
    // Resamples of rows without a loss have none; the exact bound of that many rows says more.
    let lost = losses.iter().filter(|loss| **loss > 0.0).count() as u64;
    if lost == 0 {
        interval = metrics::share(0, n as u64).interval;
    }
    TestLoss {
        loss,
        losses: lost,
        interval,
        epsilon,
        held: interval[0] <= epsilon,
        shown: groups.is_none() && graded::p_value(loss, n as u64, epsilon) <= (1.0 - CONFIDENCE) / 2.0,
    }
}

/// Mean loss and coverage by threshold, strict to loose.
fn risk_coverage(answered: &Answered) -> Vec<RiskCoverage> {
    let n = answered.losses.len().max(1) as f64;
    let grid: Vec<f32> = thresholds().collect();
    let step = (grid.len() / CURVE_POINTS).max(1);
    let points = grid.into_iter().step_by(step).map(|threshold| {
        let accepted = answered.scored.iter().zip(&answered.losses).filter(|(row, _)| row.score >= threshold);
        let (accepted, risk) = accepted.fold((0u64, 0.0), |(n, sum), (_, loss)| (n + 1, sum + loss));
        RiskCoverage { threshold, coverage: accepted as f64 / n, risk: risk / n }
    });
    points.collect()
}

/// A label that was missed where another was called falsely.
fn confusions(calls: &[Vec<usize>], gold: &[Vec<usize>], labels: &[String]) -> Vec<Confusion> {
    let mut counts: BTreeMap<(usize, usize), u64> = BTreeMap::new();
    for (called, gold) in calls.iter().zip(gold) {
        let without = |of: &[usize], other: &[usize]| -> Vec<usize> {
            of.iter().copied().filter(|label| other.binary_search(label).is_err()).collect()
        };
        for missed in without(gold, called) {
            for falsely in without(called, gold) {
                *counts.entry((missed, falsely)).or_default() += 1;
            }
        }
    }
    let mut pairs: Vec<_> = counts.into_iter().collect();
    pairs.sort_by_key(|&(pair, n)| (std::cmp::Reverse(n), pair));
    pairs.truncate(MAX_CONFUSIONS);
    let name = |k: usize| labels[k].clone();
    pairs.into_iter().map(|((gold, called), n)| Confusion { gold: name(gold), predicted: name(called), n }).collect()
}

/// The rows whose set is not exactly right, worst first.
fn failures(examples: &[Example], answered: &Answered, gold: &[Vec<usize>], labels: &[String]) -> Vec<FailedRow> {
    let scored = &answered.scored;
    let mut wrong: Vec<usize> = (0..scored.len()).filter(|&at| scored[at].predicted != 0).collect();
    wrong.sort_by(|&a, &b| {
        let (first, second) = (&scored[a], &scored[b]);
        second.accepted.cmp(&first.accepted).then(second.score.total_cmp(&first.score)).then(a.cmp(&b))
    });
    let told = |set: &[usize]| in_json(set.iter().map(|label| labels[*label].as_str()));
    let failed = wrong.into_iter().take(MAX_FAILURES).map(|at| {
        let example = &examples[at];
        let mut text: String = example.row.text.chars().take(EXCERPT_CHARACTERS).collect();
        if text.len() < example.row.text.len() {
            text.push('…');
        }
        FailedRow {
            place: example.row.place.to_string(),
            text,
            gold: told(&gold[at]),
            called: told(&answered.called[at]),
            score: scored[at].score,
            accepted: scored[at].accepted,
        }
    });
    failed.collect()
}

fn remarks(task: &TaskFile, sets: &SetSplits, ladder: &SetLadder) -> Vec<String> {
    let mut notes = vec![
        "the score says how likely a set of labels is exactly the right one; the certificate bounds the mean of 1 − Jaccard of the rows that are \
         answered alone: of the labels that the answer or the truth names, the share that only one of them names"
            .to_owned(),
    ];
    if let Some((label, n)) = sets.rare.first() {
        notes.push(format!(
            "{} labels stand in fewer than 3 training rows and will hardly be called, such as `{label}` in {n}",
            sets.rare.len()
        ));
    }
    let mut positives = vec![0usize; sets.splits.labels.len()];
    sets.sets[Part::Validation as usize].iter().flatten().for_each(|label| positives[*label] += 1);
    let shared = positives.iter().filter(|n| **n < MIN_POSITIVES).count();
    if shared > 0 {
        notes.push(format!(
            "{shared} labels stand in fewer than {MIN_POSITIVES} validation rows and share one threshold"
        ));
    }
    if ladder.out_of_time {
        notes.push(format!("the budget of {} minutes ended before every setting was tried", task.budget_minutes));
    }
    if task.up_to > Stage::Both {
        notes.push("no encoder is tuned for rows with several labels".to_owned());
    }
    if ladder.rungs.len() == 1 && task.up_to > Stage::Linear {
        notes.push(
            "no encoder was at hand: only the n-gram rung ran, and `auto` cannot find this specialist".to_owned(),
        );
    }
    notes
}

/// Scores a file with a specialist that gives several labels.
pub(super) fn evaluate(
    specialist: &Specialist,
    encoder: Option<&dyn Embed>,
    pool: &Pool,
    file: &Path,
    columns: &Columns<'_>,
    seed: u64,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<EvalReport, BuildError> {
    let manifest = specialist.manifest();
    let rows = table::read(file, columns)?;
    if let Some(row) = rows.iter().find(|row| !is_list(&row.label)) {
        let message = format!("`{}` is no list of labels, and `{}` gives several", row.label, manifest.name);
        return Err(DataError::row(&row.place, message).into());
    }
    let gold = rows.iter().map(|row| set_of(row, &manifest.labels)).collect::<Result<Vec<_>, _>>()?;
    let examples: Vec<Example> = rows
        .into_iter()
        .zip(&gold)
        .map(|(mut row, set)| {
            row.label = in_json(set.iter().map(|label| manifest.labels[*label].as_str()));
            Example { row, class: 0 }
        })
        .collect();
    let embeddings = embedded(specialist, encoder, pool, &examples, progress)?;
    let margins = examples
        .iter()
        .enumerate()
        .map(|(at, example)| specialist.margins(&example.row.text, embeddings.as_ref().map(|all| all[at].as_slice())))
        .collect::<Result<Vec<_>, _>>()?;
    let answered = answer(specialist, &examples, &gold, &margins);
    let metric = match manifest.recipe.metric.as_str() {
        "micro_f1" => Metric::MicroF1,
        "macro_f1" => Metric::MacroF1,
        _ => Metric::Accuracy,
    };
    let has_reference = columns.reference.is_some() || columns.reference_answers.is_some();
    Ok(report(&answered, &gold, groups(&examples).as_ref(), &yardstick(manifest, metric, has_reference, &[], seed)))
}
