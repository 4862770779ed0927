//! `metier roadmap`: which tasks hide in the traffic, what each of them takes, and which of them a small model should take over.

mod plan;

use std::{path::PathBuf, time::Instant};

use anyhow::Context as _;
use clap::Args;
use metier_traffic::{PriceBook, price::usd};
use metier_train::{
    Embed,
    build::peak_rss_bytes,
    discover::{
        DiscoverError, Discovery, Finder, Logs, Task,
        find::MAX_EMBEDDED,
        report::{Entry, Summary},
        task::{IdentityBy, Reading, Skipped, Volume},
    },
};
use serde::Serialize;

use super::{CommonArgs, Failure, Outcome, bases, line, progress::Bars};
use crate::server::now_ms;

/// Tasks of the table; `--tasks` has all.
const LISTED: usize = 25;

/// Audits the LLM traffic in log files: which tasks are in it, which can a small model take over, what would that save, in which order?
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  metier roadmap exports/                              every log under a folder, whatever its format
  metier roadmap spend.csv.gz --prices our-prices.toml
  metier roadmap exports/ --loss-per-error 0.5 --write-tasks tasks && metier build tasks/NAME/task.toml
  metier roadmap since/ --actuals tasks                what was promised, and what came
  metier roadmap exports/ --json | tail -1
  metier demo traffic traffic.jsonl && metier roadmap traffic.jsonl

Read are OpenAI bodies and pairs, LiteLLM spend logs, Langfuse and Helicone exports, OpenTelemetry GenAI spans, rows of input and output
(TensorZero, OpenPipe), metier's own exchanges and bare token counts; as JSONL, JSON, CSV or TSV, plain, .gz or .zst. Nothing leaves this machine.")]
pub struct RoadmapArgs {
    /// Log files, and folders of them
    #[arg(value_name = "LOGS", required_unless_present = "print_assumptions")]
    logs: Vec<PathBuf>,
    /// A price book of your own; its prices go before the list prices that ship with metier
    #[arg(long, value_name = "FILE")]
    prices: Option<PathBuf>,
    /// Where to write the tasks with their examples, as JSON. It holds texts of the logs as they are
    #[arg(long, value_name = "FILE")]
    tasks: Option<PathBuf>,
    /// Texts that may be embedded to tell apart what has no template
    #[arg(long, value_name = "N", default_value_t = 6000, value_parser = clap::value_parser!(u64).range(0..=MAX_EMBEDDED as u64))]
    sample: u64,
    /// Work without a base model: what has no template is one task for each kind of call
    #[arg(long)]
    no_encoder: bool,
    #[command(flatten)]
    plan: plan::PlanArgs,
    #[command(flatten)]
    common: CommonArgs,
}

/// Runs the verb.
pub fn run(args: &RoadmapArgs) -> Outcome {
    let begun = Instant::now();
    if args.plan.without_logs() {
        return Ok(());
    }
    // Before anything is fetched: what the user wrote is told first.
    let now_ms = now_ms();
    let logs = Logs::find(&args.logs, now_ms).map_err(Failure::usage)?;
    let plan = args.plan.check(&args.common)?;
    if let Some(dir) = args.plan.actuals() {
        return plan::compare(dir, &logs, &args.common);
    }
    let prices = prices(args)?;
    if let Some(path) = &args.tasks {
        super::build::must_be_new(path)?;
    }
    let (settings, environment) = args.common.settings()?;
    let encoder =
        if args.no_encoder || args.sample == 0 { None } else { Some(bases::encoder(&settings, &environment)?) };
    let pool = bases::pool(&settings, &environment)?;
    let finder = Finder {
        prices: &prices,
        encoder: encoder.as_ref().map(|encoder| encoder as &dyn Embed),
        pool: &pool,
        max_embedded: args.sample as usize,
        now_ms,
    };
    let mut bars = Bars::new();
    let mut trace = plan.trace()?;
    let found = finder.discover_traced(&logs, trace.as_mut(), &mut |progress| bars.show(progress));
    let discovery = found.map_err(|error| match error {
        DiscoverError::Read(error) => Failure::usage(error),
        error @ DiscoverError::Embed(_) => Failure::environment(error),
    })?;
    bars.finish();
    let encoder = encoder.as_ref().map(|encoder| encoder as &dyn Embed);
    let drawn = plan.draw_up(&discovery, trace, encoder, &pool, begun, &mut bars)?;
    if let Some(path) = &args.tasks {
        let staged = super::staged_beside(path).map_err(Failure::environment)?;
        serde_json::to_writer(std::io::BufWriter::new(staged.as_file()), &discovery)
            .with_context(|| format!("cannot write `{}`", path.display()))
            .map_err(Failure::Environment)?;
        staged.persist_noclobber(path).map_err(Failure::environment)?;
    }
    let result = RoadmapLine::of(&discovery, &drawn, begun);
    if args.common.json {
        for entry in &drawn.roadmap.tasks {
            let task = discovery.tasks.iter().find(|task| task.id == entry.id);
            task.iter().for_each(|task| line(&TaskLine::of(task, entry)));
        }
        line(&result);
    } else {
        tell_reading(&discovery.reading);
        tell_tasks(&discovery);
        plan::tell(&drawn);
        let memory = result.peak_rss_mb.map_or_else(String::new, |mb| format!(", peak memory {mb:.0} MB"));
        println!("  time         {:.1} s{memory}", result.seconds);
    }
    Ok(())
}

/// The list's prices under the user's own.
fn prices(args: &RoadmapArgs) -> Result<PriceBook, Failure> {
    let list = PriceBook::list();
    let Some(path) = &args.prices else { return Ok(list) };
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()));
    let own =
        PriceBook::parse(&text.map_err(Failure::Usage)?).with_context(|| format!("cannot use `{}`", path.display()));
    Ok(list.overlaid(own.map_err(Failure::Usage)?))
}

/// The result line of `--json`.
#[derive(Serialize)]
struct RoadmapLine<'a> {
    rows: u64,
    skipped: u64,
    calls: u64,
    tasks: usize,
    #[serde(flatten)]
    summary: Summary,
    seconds: f64,
    peak_rss_mb: Option<f64>,
    report: String,
    reading: &'a Reading,
}

impl<'a> RoadmapLine<'a> {
    fn of(discovery: &'a Discovery, drawn: &plan::Drawn, begun: Instant) -> Self {
        let reading = &discovery.reading;
        Self {
            rows: reading.rows,
            skipped: reading.n_skipped(),
            calls: reading.calls,
            tasks: discovery.tasks.len(),
            summary: drawn.roadmap.summary(),
            report: drawn.page.display().to_string(),
            seconds: begun.elapsed().as_secs_f64(),
            peak_rss_mb: peak_rss_bytes().map(|bytes| bytes as f64 / f64::from(1 << 20)),
            reading,
        }
    }
}

/// A task's line of `--json`: no text of any call but the template, the terms and the labels.
#[derive(Serialize)]
struct TaskLine<'a> {
    task: &'a str,
    id: &'a str,
    kind: &'static str,
    evidence: &'a str,
    by: IdentityBy,
    volume: Volume,
    cost_usd: Option<String>,
    weeks: usize,
    terms: &'a [String],
    cacheable: f64,
    personal: usize,
    verdict: &'static str,
    above_line: bool,
    saving_p10: Option<f64>,
    saving_p50: Option<f64>,
    saving_p90: Option<f64>,
}

impl<'a> TaskLine<'a> {
    fn of(task: &'a Task, entry: &Entry) -> Self {
        let saving = entry.priced.as_ref().map(|priced| priced.saving);
        let volume = task.total();
        Self {
            task: &task.name,
            id: &task.id,
            kind: task.kind.kind.name(),
            evidence: &task.kind.evidence,
            by: task.identity.by,
            cost_usd: (volume.unpriced < volume.calls).then(|| usd(volume.cost_picousd)),
            volume,
            weeks: task.weeks.len(),
            terms: &task.identity.terms,
            cacheable: task.traits.repeats,
            personal: task.personal.len(),
            verdict: entry.verdict.name(),
            above_line: entry.place.above_line,
            saving_p10: saving.map(|saving| saving.p10),
            saving_p50: saving.map(|saving| saving.p50),
            saving_p90: saving.map(|saving| saving.p90),
        }
    }
}

fn tell_reading(reading: &Reading) {
    let formats: Vec<String> = reading.formats.iter().map(|(format, calls)| format!("{calls} {format}")).collect();
    let files = if reading.files == 1 { "1 file".to_owned() } else { format!("{} files", reading.files) };
    println!("{} rows of {files}: {} calls ({})", reading.rows, reading.calls, formats.join(", "));
    let tell = |what: &str, reasons: &std::collections::BTreeMap<String, Skipped>| {
        for (reason, skipped) in reasons {
            let place = skipped.places.first().map_or("", String::as_str);
            println!("  {what:12} {} × {reason} (first: {place})", skipped.rows);
        }
    };
    tell("skipped", &reading.skipped);
    tell("file", &reading.files_skipped);
    tell("odd", &reading.odd);
    let unpriced: u64 = reading.unpriced.values().sum();
    if unpriced > 0 {
        let models: Vec<&str> = reading.unpriced.keys().take(5).map(String::as_str).collect();
        println!(
            "  unpriced     {unpriced} calls of {}: no price holds at their time, name one with `--prices FILE` (`[[price]]` with model, from, input, output)",
            models.join(", ")
        );
    }
    reading.notes.iter().for_each(|note| println!("  note         {note}"));
}

fn tell_tasks(discovery: &Discovery) {
    println!(
        "\n  {:40} {:9} {:>10} {:>12} {:>11} {:>9} {:>6} {:>8}",
        "task", "kind", "calls", "cost", "tokens in", "out p95", "again", "personal"
    );
    for task in discovery.tasks.iter().take(LISTED) {
        let volume = task.total();
        let personal: u64 = task.personal.values().map(|count| count.examples).sum();
        let cost = if volume.unpriced == volume.calls {
            "unpriced".to_owned()
        } else {
            let whole = if volume.unpriced > 0 { "≥ " } else { "" };
            format!("{whole}${:.2}", volume.cost_picousd as f64 / 1e12)
        };
        println!(
            "  {:40} {:9} {:>10} {:>12} {:>11.0} {:>9.0} {:>5.0}% {:>8}",
            task.name,
            task.kind.kind.name(),
            volume.calls,
            cost,
            task.traits.input_tokens.mean,
            task.traits.output_tokens.p95,
            100.0 * task.traits.repeats,
            personal
        );
    }
    if discovery.tasks.len() > LISTED {
        let rest = discovery.tasks[LISTED..].iter().fold(Volume::default(), |sum, task| sum.plus(&task.total()));
        println!(
            "  {:40} {:9} {:>10} {:>12}",
            format!("{} more", discovery.tasks.len() - LISTED),
            "",
            rest.calls,
            format!("${:.2}", rest.cost_picousd as f64 / 1e12)
        );
    }
}
