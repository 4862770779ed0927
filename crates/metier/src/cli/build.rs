//! `metier build`: from a task file to a specialist in the store, with its proof.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use anyhow::Context as _;
use clap::Args;
use metier_model::{
    Decoder, SpecialistStore,
    arch::transformer::WeightFormat,
    proof::{Certificate, Verdict},
    specialist::{RegistryError, manifest::Stage, registry::State},
};
use metier_train::{
    BuildError, BuildOutcome, Embed, Plan, TaskFile, Workbench,
    build::RungOutcome,
    craft::teaching::Teacher,
    data::{LeakReport, distil},
    eval::{evaluation::ExtractFigures, hierarchy::HierarchyFigures, stages::StageFigures},
};
use serde::Serialize;

use super::{
    CommonArgs, Failure, Outcome, bases,
    desk::{self, Desk},
    line,
    progress::Bars,
    specialists,
};
use crate::config::{Environment, Settings, variable};

/// Makes a specialist from a task file: trains the rungs, takes the smallest that is good enough, certifies it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  metier init tickets.csv                       a task file to start from
  metier build tickets.toml --dry-run           split, rows needed, minutes; nothing is written
  metier build tickets.toml
  metier build tickets.toml --json | tail -1    {\"name\": \"tickets\", \"rung\": \"both\", …}

Exit code 1 when the certificate does not hold on the test rows: the exact lower bound of the loss exceeds ε.")]
pub struct BuildArgs {
    /// The task file
    #[arg(value_name = "TASK.toml")]
    task: PathBuf,
    /// Say what would be done, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Folder of the specialists; default: as `metier serve`
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// Seed of splits, permutations and resamples
    #[arg(long, default_value_t = metier_train::DEFAULT_SEED)]
    seed: u64,
    /// Train the n-gram rung alone, which needs no base model; `auto` cannot find such a specialist
    #[arg(long)]
    no_encoder: bool,
    #[command(flatten)]
    common: CommonArgs,
}

/// Runs the verb.
pub fn run(args: &BuildArgs) -> Outcome {
    // Before anything is fetched: what the user wrote is told first.
    let task = TaskFile::read(&args.task, &variable).map_err(Failure::usage)?;
    let (settings, environment) = args.common.settings()?;
    let root = specialists::root(args.store.as_deref(), &args.common)?;
    let encoder = if args.no_encoder { None } else { Some(bases::encoder(&settings, &environment)?) };
    let teacher = teacher(&task, &root)?;
    let is_taught_by_decoder =
        matches!(&teacher, Some(Teacher::Specialist(specialist)) if specialist.manifest().decoder().is_some());
    let decoders = if !task.decoders.is_empty() {
        let open = |name: &String| Ok(Arc::new(bases::decoder_named(name, &settings, &environment)?));
        task.decoders.iter().map(open).collect::<Result<Vec<_>, Failure>>()?
    } else if task.generate.is_some() || task.up_to == Stage::Decoder || is_taught_by_decoder {
        vec![decoder(&task, &settings, &environment)?]
    } else {
        Vec::new()
    };
    let writer = decoders.first().filter(|_| task.generate.is_some()).cloned();
    let pool = bases::pool(&settings, &environment)?;
    // A dry run writes nothing, not even the store's folder.
    let scratch = if args.dry_run { Some(tempfile::tempdir().map_err(Failure::environment)?) } else { None };
    let store = SpecialistStore::open(scratch.as_ref().map_or(root.as_path(), tempfile::TempDir::path))
        .map_err(Failure::environment)?;
    let bench = Workbench {
        teacher,
        encoder: encoder.as_ref().map(|encoder| encoder as &dyn Embed),
        pool: &pool,
        store: &store,
        seed: args.seed,
        tuning: metier_train::craft::encoder::Recipe::default(),
        decoders,
    };
    let start = Instant::now();
    let clock = || start.elapsed();
    if args.dry_run {
        let plan = match writer {
            Some(decoder) => metier_train::plan_generator(&task, &bench, decoder, &clock),
            None => metier_train::plan(&task, &bench, &clock),
        };
        let plan = plan.map_err(failure)?;
        if args.common.json {
            line(&plan)
        } else {
            tell_plan(&task, &plan)
        }
        return Ok(());
    }
    // Before hours of work, not behind them: without its key a bundle could not go on record.
    let state_dir = settings.state_dir(&environment).map_err(Failure::usage)?;
    desk::check_key(&state_dir)?;
    let mut bars = Bars::new();
    let outcome = match writer {
        Some(decoder) => {
            metier_train::build_generator(&task, &bench, decoder, &mut |progress| bars.show(progress), &clock)
        }
        None => metier_train::build(&task, &bench, &mut |progress| bars.show(progress), &clock),
    };
    let outcome = outcome.map_err(failure)?;
    bars.finish();
    let desk = Desk::open(&store, &state_dir, &environment)?;
    let state = desk.built(&outcome.name, outcome.bundle, settings.registry.require_approval)?;
    if args.common.json {
        line(&Built { outcome: &outcome, state });
    } else {
        tell(&outcome);
        tell_base(&outcome, &settings);
        let trust = desk::trust(&settings, &environment)?;
        tell_state(&outcome, state, desk.registry.serving(&outcome.name, &trust).err());
    }
    if outcome.held == Some(false) { Err(Failure::Found) } else { Ok(()) }
}

/// Whom the task names as its teacher.
fn teacher(task: &TaskFile, root: &Path) -> Result<Option<Teacher>, Failure> {
    let Some(distil) = &task.distil else { return Ok(None) };
    Ok(Some(match &distil.teacher {
        distil::Teacher::Specialist(name) => Teacher::Specialist(Arc::new(specialists::open(root, name)?.0)),
        distil::Teacher::Decoder(path) => {
            let opened = Decoder::open(path, WeightFormat::AsFile);
            let opened = opened.with_context(|| format!("cannot open the teacher `{}`", path.display()));
            Teacher::Decoder(Arc::new(opened.map_err(Failure::Usage)?))
        }
    }))
}

/// The decoder that writes the answers of a generation, or that a head reads.
fn decoder(task: &TaskFile, settings: &Settings, environment: &Environment) -> Result<Arc<Decoder>, Failure> {
    let decoder = bases::decoder(settings, environment)?;
    let what = if task.generate.is_some() { "kind = \"generate\"" } else { "up_to = \"decoder\"" };
    let none = || anyhow::anyhow!("`{what}` needs a decoder, and the settings say `decoder = \"none\"`");
    Ok(Arc::new(decoder.ok_or_else(|| Failure::usage(none()))?))
}

/// The result line: the outcome, and where the bundle stands.
#[derive(Serialize)]
struct Built<'a> {
    #[serde(flatten)]
    outcome: &'a BuildOutcome,
    state: State,
}

/// `refused`: why no server here would answer with what is live.
fn tell_state(outcome: &BuildOutcome, state: State, refused: Option<RegistryError>) {
    match (state, refused) {
        (State::Live, None) => println!("  state        live: `metier serve` answers with it from now on"),
        (State::Live, Some(error)) => println!("  state        live, but no server here answers with it: {error}"),
        (state, _) => println!(
            "  state        {}: `metier specialists promote {}@{} --approver NAME` makes it answer",
            state.name(),
            outcome.name,
            outcome.bundle.short()
        ),
    }
}

/// Whose fault it is that a build or an evaluation failed.
pub fn failure(error: BuildError) -> Failure {
    match error {
        BuildError::Task(_) | BuildError::Data(_) => Failure::usage(error),
        _ => Failure::environment(error),
    }
}

fn tell_plan(task: &TaskFile, plan: &Plan) {
    match (&task.extract, &task.generate) {
        (Some(extract), _) => println!("{}: {} fields, {}", plan.name, extract.schema.fields().len(), rows(&plan.rows)),
        (_, Some(_)) => println!("{}: answers are written, {}", plan.name, rows(&plan.rows)),
        _ => println!("{}: {} labels, {}", plan.name, plan.labels.len(), rows(&plan.rows)),
    }
    tell_leak(&plan.leak);
    if let Some(alignment) = &plan.alignment {
        println!(
            "  values       {}, of which {} in {} rows do not stand in their text and cannot be found",
            alignment.values, alignment.unplaced, alignment.unplaced_rows
        );
        for (place, field, value) in &alignment.listed {
            println!("               {place}: `{field}` {value}");
        }
    }
    let (epsilon, delta) = (task.target.epsilon, task.target.delta);
    let calibration = plan.rows.get("calibration").copied().unwrap_or_default();
    match (plan.enough, plan.rows_needed) {
        (true, Some(needed)) => println!(
            "  certificate  {calibration} calibration rows; at ε = {epsilon}, δ = {delta} it takes {needed} if no accepted row is wrong{}",
            plan.rows_needed_with_errors.map_or_else(String::new, |n| format!(", about {n} if half of ε is"))
        ),
        (_, Some(needed)) => println!(
            "  certificate  needs about {needed} calibration rows at ε = {epsilon}, δ = {delta}, there are {calibration}: everything would be deferred"
        ),
        (_, None) => println!("  certificate  cannot be had at ε = {epsilon}, δ = {delta}"),
    }
    if let Some(rate) = plan.rows_a_second {
        match &task.generate {
            None => println!("  embedding    {rate:.0} rows a second"),
            Some(generate) => {
                println!("  writing      {rate:.1} answers a second");
                println!("  training     at most {} epochs, as many as the budget allows", generate.tune.epochs);
            }
        }
    }
    for rung in &plan.rungs {
        let depths: Vec<String> = rung.depths.iter().map(usize::to_string).collect();
        let layers = if depths.is_empty() { String::new() } else { format!(", then {} layers", depths.join(", ")) };
        let what = if rung.fits {
            format!("about {:.1} minutes, at most {} epochs{layers}", rung.minutes, rung.epochs)
        } else {
            format!("about {:.1} minutes: it does not fit and would be left out", rung.minutes)
        };
        let base = rung.base.as_ref().map_or_else(String::new, |base| format!("on {base}: "));
        println!("  {:12} {base}{what}", rung.rung.name());
    }
    println!("  time         about {:.1} minutes (budget {})", plan.minutes, task.budget_minutes);
    if !plan.labels.is_empty() {
        println!("  labels       rows by part (train, validation, calibration, test)");
    }
    for (label, parts) in &plan.labels {
        let count = |part: &str| parts.get(part).copied().unwrap_or_default();
        println!(
            "               {label:32} {:>6} {:>5} {:>5} {:>5}",
            count("train"),
            count("validation"),
            count("calibration"),
            count("test")
        );
    }
    println!("nothing was written: this was a dry run");
}

fn tell(outcome: &BuildOutcome) {
    println!("{}: {}", outcome.name, rows(&outcome.rows));
    tell_leak(&outcome.leak);
    println!("  rungs        {} on {} {} rows, 95 % intervals", outcome.metric, outcome.n, outcome.measured_on);
    let best = outcome.rungs.iter().map(|rung| rung.validation).fold(0.0, f64::max);
    for rung in &outcome.rungs {
        let taken = if rung.is_taken(outcome.rung) { "*" } else { " " };
        println!(
            "             {taken} {:8} {:.4} [{:.4}, {:.4}]  {:6.1} s  {}",
            rung.name(),
            rung.value,
            rung.interval[0],
            rung.interval[1],
            rung.seconds,
            compared(rung, best)
        );
    }
    tell_training(outcome);
    tell_depths(outcome);
    if let Some(extract) = &outcome.evaluation.extract {
        tell_extract(extract);
    } else {
        tell_chosen(outcome);
    }
    certificate(outcome.certificate.as_ref(), outcome.rows_needed);
    tell_stages(&outcome.evaluation.stages);
    if let (Some(loss), Some([low, high]), Some(held)) = (outcome.test_loss, outcome.test_loss_interval, outcome.held) {
        let verdict = if held { "held" } else { "NOT HELD: the whole interval lies above ε" };
        println!(
            "  on {:9} accepted {:.1} %, accepted and wrong {loss:.4} [{low:.4}, {high:.4}] against ε = {}: {verdict}",
            outcome.measured_on,
            100.0 * outcome.test_coverage,
            outcome.epsilon
        );
    }
    if let Some(scope) = &outcome.evaluation.out_of_scope {
        println!(
            "  out of scope recall {:.4} as label, {:.4} with what is deferred; accuracy in scope {:.4}",
            scope.recall_as_label.value, scope.recall_at_threshold.value, scope.in_scope_accuracy.value
        );
    }
    if let Some(rejection) = outcome.evaluation.out_of_scope.as_ref().and_then(|scope| scope.rejection) {
        println!(
            "               below score {:.3}, as validation rows say: recall {:.4} [{:.4}, {:.4}], in scope answered and right {:.4}",
            rejection.threshold,
            rejection.recall.value,
            rejection.recall.interval[0],
            rejection.recall.interval[1],
            rejection.in_scope_right.value
        );
    }
    let operating = outcome.evaluation.out_of_scope.as_ref().map_or(&[][..], |scope| &scope.operating);
    if !operating.is_empty() {
        let points: Vec<String> = operating
            .iter()
            .map(|point| format!("{:.0} %: {:.1} %", 100.0 * point.in_scope_right, 100.0 * point.recall))
            .collect();
        println!("               recall that was there at an accuracy in scope of {}", points.join(", "));
    }
    tell_tree(outcome.evaluation.hierarchy.as_ref());
    if let Some(sets) = &outcome.evaluation.sets {
        let told = [
            ("micro_f1", sets.micro_f1),
            ("macro_f1", sets.macro_f1),
            ("exact_match", sets.exact_match),
            ("mean Jaccard", sets.jaccard),
        ];
        for (name, of) in told {
            println!("  {name:12} {:.4} [{:.4}, {:.4}]", of.value, of.interval[0], of.interval[1]);
        }
    }
    for finding in &outcome.findings {
        println!("  {:12} {} {}", finding.says.words(), finding.question, finding.because);
    }
    for note in &outcome.notes {
        println!("  note         {note}");
    }
    let memory = outcome.peak_rss_mb.map_or_else(String::new, |mb| format!(", peak memory {mb:.0} MB"));
    println!("  time         {:.1} s, {:.1} s of it embedding{memory}", outcome.seconds, outcome.embed_seconds);
    println!("  bundle       {}", outcome.path.display());
    for (what, file) in [("report", "report.html"), ("card", "CARD.md")] {
        let path = outcome.path.join(file);
        if path.is_file() {
            println!("  {what:12} {}", path.display());
        }
    }
}

fn tell_chosen(outcome: &BuildOutcome) {
    println!(
        "  chosen       {}: the smallest rung that the validation rows do not show to be worse than the margin allows",
        outcome.rung.name()
    );
}

fn tell_extract(extract: &ExtractFigures) {
    println!("  chosen       span: the lookup is there to be beaten, and is never shipped");
    println!(
        "  values       {} of them: precision {:.4}, recall {:.4}; field F1 {:.4} [{:.4}, {:.4}]",
        extract.values,
        extract.precision,
        extract.recall,
        extract.field_f1.value,
        extract.field_f1.interval[0],
        extract.field_f1.interval[1]
    );
    let (rows, spans) = (&extract.exact_match, &extract.span_f1);
    println!("  rows         right as a whole {:.4} [{:.4}, {:.4}]", rows.value, rows.interval[0], rows.interval[1]);
    println!("  spans        F1 {:.4} [{:.4}, {:.4}]", spans.value, spans.interval[0], spans.interval[1]);
}

/// How training went, where an adapter was trained.
fn tell_training(outcome: &BuildOutcome) {
    let Some(training) = &outcome.training else { return };
    let speed = training.tokens_a_second.map_or_else(String::new, |rate| format!(", {rate:.0} tokens a second"));
    let from = training.resumed_at.map_or_else(String::new, |step| format!(", taken up at step {step}"));
    println!(
        "  training     {} epochs of {} planned (predicted {:.1} minutes), {} steps{speed}{from}; kept epoch {}",
        training.epochs.len(),
        training.planned_epochs,
        training.predicted_seconds / 60.0,
        training.steps.len(),
        training.best_epoch
    );
    for epoch in &training.epochs {
        println!(
            "               epoch {:<3} loss {:.4}, on validation rows {:.4}",
            epoch.epoch, epoch.loss, epoch.validation_loss
        );
    }
}

/// Where several decoders were tried: which one a server must have.
fn tell_base(outcome: &BuildOutcome, settings: &Settings) {
    let taken = outcome.rungs.iter().find(|rung| rung.is_taken(outcome.rung)).and_then(|rung| rung.decoder.as_ref());
    let Some(base) = taken.and_then(|depth| depth.base.as_ref()) else { return };
    if *base == settings.models.decoder {
        println!("  decoder      {base}, the one that `metier serve` has");
    } else {
        println!("  decoder      {base}: a server answers with it where `models.decoder` names that one");
    }
}

/// What some of a decoder's layers cost and what is lost without the others, where that was tried.
fn tell_depths(outcome: &BuildOutcome) {
    let depths: Vec<_> = outcome.rungs.iter().filter_map(|rung| rung.decoder.as_ref()).collect();
    if depths.len() < 2 {
        return;
    }
    println!(
        "  depths       layers of the decoder, texts read a second (eight at a time), against all layers on validation rows"
    );
    for depth in depths {
        let against = depth.against_all.map_or_else(String::new, |test| {
            format!("{:+.4} [{:+.4}, {:+.4}]", test.difference, test.interval[0], test.interval[1])
        });
        let base = depth.base.as_ref().map_or_else(String::new, |base| format!("  {base}"));
        println!(
            "               {:>3} of {:<3} {:6.0} texts ({:.2} times) {:5.1} KB a token  {against}{base}",
            depth.layers.len(),
            depth.of,
            depth.rows_a_second,
            depth.speed,
            depth.kv_bytes_a_token as f64 / 1024.0
        );
    }
}

fn compared(rung: &RungOutcome, best: f64) -> String {
    let Some(test) = &rung.against_best else {
        let is_best = if rung.validation >= best { ", the best" } else { "" };
        return format!("validation {:.4}{is_best}", rung.validation);
    };
    let verdict = match test.verdict {
        Verdict::NonInferior => "not worse than the margin".to_owned(),
        Verdict::Inferior => "worse than the margin".to_owned(),
        Verdict::CannotTell => match test.rows_needed {
            Some(rows) => format!("cannot tell: about {rows} validation rows would"),
            None => "cannot tell".to_owned(),
        },
    };
    format!(
        "validation {:.4}, {:+.4} [{:+.4}, {:+.4}] to the best: {verdict}",
        rung.validation, test.difference, test.interval[0], test.interval[1]
    )
}

/// Figures by depth, where labels are paths.
pub fn tell_tree(tree: Option<&HierarchyFigures>) {
    let Some(tree) = tree else { return };
    for level in &tree.levels {
        let (accuracy, macro_f1) = (&level.accuracy, &level.macro_f1);
        println!(
            "  depth {:<6} {:.4} [{:.4}, {:.4}] of rows right, macro F1 {:.4} [{:.4}, {:.4}] of {} nodes",
            level.depth,
            accuracy.value,
            accuracy.interval[0],
            accuracy.interval[1],
            macro_f1.value,
            macro_f1.interval[0],
            macro_f1.interval[1],
            level.nodes
        );
    }
    let [low, high] = tree.f1.interval;
    println!(
        "  as a tree    hierarchical F1 {:.4} [{low:.4}, {high:.4}], precision {:.4}, recall {:.4}",
        tree.f1.value, tree.precision.value, tree.recall.value
    );
}

/// Who answered what, where there are two stages or depths.
pub fn tell_stages(stages: &[StageFigures]) {
    for stage in stages {
        let from = stage.threshold.map_or_else(|| "never".to_owned(), |from| format!("score ≥ {from:.3}"));
        println!(
            "  stage        {:16} {from}: answers {:.1} % [{:.1}, {:.1}] of these rows, right on {:.1} % of them, {} wrong",
            stage.name(),
            100.0 * stage.answered.value,
            100.0 * stage.answered.interval[0],
            100.0 * stage.answered.interval[1],
            100.0 * stage.right.value,
            stage.losses
        );
    }
}

/// One line for the promise, or for what it would take.
pub fn certificate(certificate: Option<&Certificate>, rows_needed: Option<u64>) {
    match (certificate, rows_needed) {
        (Some(c), _) => println!(
            "  certificate  with probability ≥ {} at most a share of {} of requests is answered wrong; score ≥ {:.3}, coverage {:.1} %, n = {}",
            1.0 - c.delta,
            c.epsilon,
            c.threshold,
            100.0 * c.coverage,
            c.n
        ),
        (None, Some(rows)) => {
            println!("  certificate  none: needs about {rows} calibration rows; until then everything is deferred");
        }
        (None, None) => {
            println!(
                "  certificate  none: its surest answers err too often, more rows would not help; everything is deferred"
            );
        }
    }
}

/// Rows by part, in words.
pub fn rows(parts: &std::collections::BTreeMap<String, u64>) -> String {
    let order = ["train", "validation", "calibration", "test"];
    let told: Vec<String> = order.iter().filter_map(|part| Some(format!("{} {part}", parts.get(*part)?))).collect();
    format!("{} rows", told.join(", "))
}

/// What training would see of measured rows.
pub fn tell_leak(leak: &LeakReport) {
    if leak.removed == 0 && leak.contradictions == 0 {
        println!("  leak check   clean: no training row is near a calibration or test row");
        return;
    }
    println!(
        "  leak check   {} training rows left out ({} equal, {} nearly equal, {} of one group with measured rows); {} texts with two labels",
        leak.removed, leak.exact, leak.near, leak.same_group, leak.contradictions
    );
    for leak in &leak.listed {
        println!("               {} is {}", leak.train, leak.why());
    }
    for pair in &leak.contradicting {
        let ((first, one), (second, other)) = (&pair.first, &pair.second);
        println!("               {first} says `{one}`, {second} says `{other}` of the same text");
    }
}

/// Makes sure that a path is new: files of the user's are never overwritten.
pub fn must_be_new(path: &Path) -> Result<(), Failure> {
    if path.symlink_metadata().is_ok() {
        return Err(Failure::usage(anyhow::anyhow!(
            "`{}` exists: name another file with `--output`, or remove it",
            path.display()
        )));
    }
    Ok(())
}
