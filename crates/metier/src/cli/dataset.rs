//! `metier dataset`: what is wrong with the rows of a task, before anything is built from them; what a teacher answers to them.

mod label;

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use metier_train::{Curation, TaskFile};

use super::{
    CommonArgs, Failure, Outcome, bases,
    build::{must_be_new, rows, tell_leak},
    line,
    progress::Bars,
    staged_beside,
};
use crate::config::variable;

/// Rows of each kind that are printed; `--output` has all.
const LISTED: usize = 10;

/// Data sets: what is wrong with the rows of a task, and what a larger model answers to them.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  metier dataset check tickets.toml                        duplicates, contradictions, leaks, suspicious labels
  metier dataset check tickets.toml --output suspects.csv  all of them, for a spreadsheet
  metier dataset check tickets.toml --json | tail -1
  metier dataset label tickets.toml --model smollm2-135m-instruct --output answers.jsonl
  metier dataset label tickets.toml --model big-model --output answers.jsonl --budget-usd 5 --twice 100")]
pub struct DatasetArgs {
    #[command(subcommand)]
    verb: DatasetVerb,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, Subcommand)]
enum DatasetVerb {
    /// Look for duplicates, contradictory labels, leaks and labels that the other rows speak against; needs no base model and changes nothing
    Check {
        /// The task file
        #[arg(value_name = "TASK.toml")]
        task: PathBuf,
        /// Where to write every row that is suspected, as CSV
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Seed of the split and of the folds
        #[arg(long, default_value_t = metier_train::DEFAULT_SEED)]
        seed: u64,
    },
    /// Ask a model for the answer to every row, within policy and a budget: what a specialist is compared with, or learns from. Goes on where it was stopped; nothing is paid for twice
    Label(label::LabelArgs),
}

/// Runs the verb.
pub fn run(args: &DatasetArgs) -> Outcome {
    let (task, output, seed) = match &args.verb {
        DatasetVerb::Check { task, output, seed } => (task, output, seed),
        DatasetVerb::Label(asked) => return label::run(asked, &args.common),
    };
    let task = TaskFile::read(task, &variable).map_err(Failure::usage)?;
    output.as_deref().map(must_be_new).transpose()?;
    let (settings, environment) = args.common.settings()?;
    let pool = bases::pool(&settings, &environment)?;
    let mut bars = Bars::new();
    let found =
        metier_train::curate(&task, &pool, *seed, &mut |progress| bars.show(progress)).map_err(Failure::usage)?;
    bars.finish();
    if let Some(output) = output {
        write(&found, output)
            .with_context(|| format!("cannot write `{}`", output.display()))
            .map_err(Failure::Environment)?;
    }
    if args.common.json {
        line(&found);
    } else {
        tell(&found, output.as_deref());
    }
    Ok(())
}

fn tell(found: &Curation, output: Option<&Path>) {
    println!("{}: {}", found.name, rows(&found.rows));
    tell_leak(&found.leak);
    println!("  duplicates   {} rows repeat a text with its label", found.duplicates);
    println!("  contradicted {} texts have several labels", found.contradictions.len());
    for text in found.contradictions.iter().take(LISTED) {
        println!("               \"{}\"", text.text);
        for (label, places) in &text.labels {
            println!("                 `{label}`: {}", places.join(", "));
        }
    }
    let all: u64 = found.rows.values().sum();
    println!(
        "  suspicious   {} of {all} labels; about {:.1} % may be wrong by confident learning (out-of-fold linear model)",
        found.suspects.len(),
        100.0 * found.noise
    );
    for suspect in found.suspects.iter().take(LISTED) {
        println!(
            "               {}  `{}` ({:.2}), likelier `{}` ({:.2}): \"{}\"",
            suspect.place, suspect.label, suspect.p_label, suspect.likelier, suspect.p_likelier, suspect.text
        );
    }
    for (given, likelier, n) in found.confused.iter().take(LISTED / 2) {
        println!("  between      `{given}` and `{likelier}`: {n} rows");
    }
    if found.personal.is_empty() {
        println!("  personal     nothing that has a form of its own; names and addresses of people are not looked for");
    }
    for (kind, counted) in &found.personal {
        println!("  personal     {} in {} rows, such as {}", kind.words(), counted.rows, counted.places.join(", "));
    }
    match output {
        Some(output) => println!("every suspected row is in `{}`; nothing else was written", output.display()),
        None => println!("nothing was changed; `--output suspects.csv` writes every suspected row"),
    }
}

fn write(found: &Curation, output: &Path) -> anyhow::Result<()> {
    let mut staged = staged_beside(output)?;
    let mut csv = csv::Writer::from_writer(staged.as_file_mut());
    csv.write_record(["place", "kind", "label", "likelier", "p_label", "p_likelier", "text"])?;
    for text in &found.contradictions {
        for (label, places) in &text.labels {
            for place in places {
                csv.write_record([place.as_str(), "contradictory", label, "", "", "", &text.text])?;
            }
        }
    }
    for suspect in &found.suspects {
        let (own, likelier) = (format!("{:.4}", suspect.p_label), format!("{:.4}", suspect.p_likelier));
        csv.write_record([
            &suspect.place,
            "suspicious",
            &suspect.label,
            &suspect.likelier,
            &own,
            &likelier,
            &suspect.text,
        ])?;
    }
    csv.flush()?;
    drop(csv);
    staged.persist_noclobber(output).map_err(|error| error.error)?;
    Ok(())
}
