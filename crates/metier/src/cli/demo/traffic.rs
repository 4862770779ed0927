//! `metier demo traffic`: a log of an invented company's LLM traffic, with the truth beside it.

use std::{
    io::{BufWriter, Write as _},
    path::PathBuf,
};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use metier_model::{Progress, Unit};
use metier_traffic::{
    logs::{self, Format},
    synthetic::{Plan, totals, traffic, truth},
};
use metier_train::discover::task::Week;
use serde_json::json;

use super::super::{Failure, Outcome, build::must_be_new, line, progress::Bars, staged_beside};

/// Monday 2026-01-05, in milliseconds since 1970.
const START_MS: u64 = 1_767_571_200_000;
/// Calls between two reports of progress.
const REPORT_EVERY: u64 = 1000;

/// Log formats that are written.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Written {
    Openai,
    Litellm,
    Langfuse,
    Helicone,
    Otel,
    Datapoints,
    Metier,
    Counts,
}

impl From<Written> for Format {
    fn from(written: Written) -> Self {
        match written {
            Written::Openai => Self::OpenAi,
            Written::Litellm => Self::LiteLlm,
            Written::Langfuse => Self::Langfuse,
            Written::Helicone => Self::Helicone,
            Written::Otel => Self::OpenTelemetry,
            Written::Datapoints => Self::Datapoints,
            Written::Metier => Self::Metier,
            Written::Counts => Self::Counts,
        }
    }
}

/// Writes a synthetic log: an invented company's traffic of ten tasks and a tail of free questions, as JSONL.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  metier demo traffic traffic.jsonl
  metier demo traffic spend.jsonl --format litellm --calls 100000 --truth truth.json

Every id begins with `synthetic/` and the name of its task; the same seed gives the same log.")]
pub(super) struct TrafficArgs {
    /// The log; it must not exist
    #[arg(value_name = "FILE.jsonl")]
    output: PathBuf,
    /// Whose log
    #[arg(long, value_enum, default_value_t = Written::Openai)]
    format: Written,
    /// Calls, about
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..=50_000_000))]
    calls: u64,
    /// Weeks from 2026-01-05 on
    #[arg(long, value_name = "N", default_value_t = 26, value_parser = clap::value_parser!(u64).range(1..=104))]
    weeks: u64,
    /// Seed of everything
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Where to write what is true of the traffic: tasks, kinds, volumes by week, error rate of the teacher
    #[arg(long, value_name = "FILE.json")]
    truth: Option<PathBuf>,
}

/// Runs the verb.
pub(super) fn run(args: &TrafficArgs, as_json: bool) -> Outcome {
    must_be_new(&args.output)?;
    if let Some(path) = &args.truth {
        must_be_new(path)?;
    }
    let plan = Plan { calls: args.calls, weeks: args.weeks, start_ms: START_MS, seed: args.seed };
    let format = args.format.into();
    let mut bars = Bars::new();
    let staged = staged_beside(&args.output).map_err(Failure::environment)?;
    let mut file = BufWriter::new(staged.as_file());
    let mut n = 0;
    for (_, call) in traffic(plan) {
        let row = logs::write(format, &call);
        writeln!(file, "{row}")
            .with_context(|| format!("cannot write `{}`", args.output.display()))
            .map_err(Failure::Environment)?;
        n += 1;
        if n % REPORT_EVERY == 0 {
            bars.show(Progress { stage: "writing calls", done: n, total: Some(args.calls), unit: Unit::Rows });
        }
    }
    file.flush().map_err(Failure::environment)?;
    drop(file);
    staged.persist_noclobber(&args.output).map_err(Failure::environment)?;
    bars.finish();
    let truth = truth(&plan);
    let first: Week = Week::of(START_MS);
    if let Some(path) = &args.truth {
        let whole = json!({"synthetic": true, "plan": plan, "format": format.name(), "first_week": first, "calls": n, "tasks": truth});
        std::fs::write(path, format!("{whole:#}\n"))
            .with_context(|| format!("cannot write `{}`", path.display()))
            .map_err(Failure::Environment)?;
    }
    if as_json {
        line(
            &json!({"synthetic": true, "calls": n, "tasks": totals(&truth), "output": args.output, "truth": args.truth}),
        );
    } else {
        println!(
            "{n} calls of {} weeks from {first} on, all of them invented, in `{}`",
            args.weeks,
            args.output.display()
        );
        for task in &truth {
            println!(
                "  {:20} {:9} {:>9} calls to {}",
                task.task,
                task.kind,
                task.calls.iter().sum::<u64>(),
                task.model
            );
        }
        println!("  next         metier roadmap {}", args.output.display());
    }
    Ok(())
}
