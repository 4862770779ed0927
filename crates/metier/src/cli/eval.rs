//! `metier eval`: scores a file with a specialist.

use std::{path::PathBuf, sync::Arc};

use clap::Args;
use metier_model::specialist::manifest::Kind;
use metier_train::{Embed, data::Columns, eval::EvalReport};
use serde::Serialize;

use super::{CommonArgs, Failure, Outcome, bases, build, line, progress::Bars, specialists};

/// Confusions and weakest labels that are printed; the report of the build has all.
const LISTED: usize = 5;

/// Scores a file of labelled rows with a specialist: metric, coverage and errors that got through, with intervals.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  metier eval support-tickets fresh.csv
  metier eval support-tickets fresh.csv --text body --label queue
  metier eval ./specialists/support-tickets/3f2a…/ fresh.csv --json

Exit code 1 when the certificate does not hold on these rows: the exact lower bound of the loss exceeds ε.")]
pub struct EvalArgs {
    /// A name in the store, or the folder of a bundle
    specialist: String,
    /// Labelled rows: CSV, TSV or JSONL, also .gz or .zst
    file: PathBuf,
    /// Column of the text, once for each input; default: the columns that it was trained on
    #[arg(long, value_name = "COLUMN")]
    text: Vec<String>,
    /// Column of the label, or of an extraction's answer; default: `label`, or `output`
    #[arg(long, value_name = "COLUMN")]
    label: Option<String>,
    /// Folder of the specialists; default: as `metier serve`
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// Seed of the resamples behind intervals
    #[arg(long, default_value_t = metier_train::DEFAULT_SEED)]
    seed: u64,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Serialize)]
struct Scored<'a> {
    name: &'a str,
    bundle: metier_model::Digest,
    #[serde(flatten)]
    report: &'a EvalReport,
}

/// Runs the verb.
pub fn run(args: &EvalArgs) -> Outcome {
    let (settings, environment) = args.common.settings()?;
    let root = specialists::root(args.store.as_deref(), &args.common)?;
    let (specialist, _) = specialists::open(&root, &args.specialist)?;
    let manifest = specialist.manifest();
    let text = if args.text.is_empty() { &manifest.inputs } else { &args.text };
    if text.len() != manifest.inputs.len() {
        return Err(Failure::usage(anyhow::anyhow!(
            "`{}` reads {} inputs (`{}`), but {} columns were named with `--text`",
            manifest.name,
            manifest.inputs.len(),
            manifest.inputs.join("`, `"),
            text.len()
        )));
    }
    let runs_on_decoder = manifest.decoder().is_some();
    let encoder = if (specialist.needs_embedding() && !runs_on_decoder) || specialist.reads_base() {
        Some(bases::encoder(&settings, &environment)?)
    } else {
        None
    };
    let pool = bases::pool(&settings, &environment)?;
    let usual = if manifest.kind == Kind::Classify { "label" } else { "output" };
    let label = args.label.as_deref().unwrap_or(usual);
    let columns = Columns::new(text, label);
    let mut bars = Bars::new();
    let decoder = if runs_on_decoder { bases::decoder(&settings, &environment)? } else { None };
    let report = match decoder {
        Some(decoder) => metier_train::evaluate_decoder(
            &specialist,
            Arc::new(decoder),
            encoder.as_ref().map(|encoder| encoder as &dyn Embed),
            &pool,
            &args.file,
            &columns,
            args.seed,
            &mut |progress| bars.show(progress),
        ),
        None => metier_train::evaluate(
            &specialist,
            encoder.as_ref().map(|encoder| encoder as &dyn Embed),
            &pool,
            &args.file,
            &columns,
            args.seed,
            &mut |progress| bars.show(progress),
        ),
    };
    let report = report.map_err(build::failure)?;
    bars.finish();
    if args.common.json {
        line(&Scored { name: &manifest.name, bundle: specialist.id(), report: &report });
    } else {
        println!("{} ({}, {}) on {} rows", manifest.name, manifest.stage.name(), specialist.id().short(), report.n);
        tell(&report, manifest.kind == Kind::Generate);
    }
    if report.test_loss.is_some_and(|loss| !loss.held) { Err(Failure::Found) } else { Ok(()) }
}

/// `writes`: its answers are texts.
fn tell(report: &EvalReport, writes: bool) {
    let row = |what: &str, measured: &metier_train::eval::Measured| {
        println!("  {what:18} {:.4} [{:.4}, {:.4}]", measured.value, measured.interval[0], measured.interval[1]);
    };
    if let Some(extract) = &report.extract {
        row("field F1", &extract.field_f1);
        row("of fields it has", &extract.present_f1);
        println!("  precision, recall  {:.4}, {:.4} of {} values", extract.precision, extract.recall, extract.values);
        row("span F1", &extract.span_f1);
        row("rows all right", &extract.exact_match);
    } else if writes {
        row(&report.metric, &metier_train::eval::Measured { value: report.value, interval: report.interval });
        row("exact", &report.accuracy);
    } else {
        row("accuracy", &report.accuracy);
    }
    if !writes {
        row("macro F1", &report.macro_f1);
    }
    row("calibration error", &report.ece);
    row("accepted", &report.coverage);
    row("right if accepted", &report.accepted_accuracy);
    match &report.test_loss {
        Some(loss) => println!(
            "  accepted and wrong {:.4} [{:.4}, {:.4}] against ε = {}: {}",
            loss.loss,
            loss.interval[0],
            loss.interval[1],
            loss.epsilon,
            if loss.held { "held" } else { "NOT HELD: the whole interval lies above ε" }
        ),
        None => println!("  accepted and wrong no certificate: everything is deferred"),
    }
    build::tell_stages(&report.stages);
    build::tell_tree(report.hierarchy.as_ref());
    if let Some(sets) = &report.sets {
        row("exact match", &sets.exact_match);
        row("mean Jaccard", &sets.jaccard);
    }
    if let Some(scope) = &report.out_of_scope {
        row("out of scope found", &scope.recall_as_label);
        row("… or deferred", &scope.recall_at_threshold);
        row("accuracy in scope", &scope.in_scope_accuracy);
    }
    let mut weakest: Vec<_> = report.per_class.iter().filter(|class| class.n > 0).collect();
    weakest.sort_by(|a, b| a.f1.total_cmp(&b.f1).then_with(|| a.label.cmp(&b.label)));
    if weakest.is_empty() {
        return;
    }
    println!("  weakest {}", if report.extract.is_some() { "fields" } else { "labels" });
    for class in weakest.iter().take(LISTED) {
        println!(
            "    {:32} F1 {:.3} (precision {:.3}, recall {:.3}, n = {})",
            class.label, class.f1, class.precision, class.recall, class.n
        );
    }
    if !report.confusions.is_empty() {
        println!("  most frequent confusions");
    }
    for confusion in report.confusions.iter().take(LISTED) {
        println!("    {} called {}: {}", confusion.gold, confusion.predicted, confusion.n);
    }
}
