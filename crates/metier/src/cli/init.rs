//! `metier init`: a first task file for a file of rows.

use std::{
    fs::File,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::Args;
use serde_json::json;

use super::{CommonArgs, Failure, Outcome, build, line};

/// Writes an annotated task file for a file of rows: columns are guessed, every line says what it does.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  metier init tickets.csv                        writes tickets.toml beside it
  metier init data/tickets.csv --output task.toml
  metier init tickets.csv --output -             to stdout

An existing file is never overwritten.")]
pub struct InitArgs {
    /// Rows with a text and a label: CSV, TSV or JSONL, also .gz or .zst
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Where to; `-`: stdout; default: beside the rows, with the ending `.toml`
    #[arg(long, value_name = "TASK.toml")]
    output: Option<PathBuf>,
    #[command(flatten)]
    common: CommonArgs,
}

/// Runs the verb.
pub fn run(args: &InitArgs) -> Outcome {
    let to_stdout = args.output.as_deref() == Some(Path::new("-"));
    let output = args.output.clone().unwrap_or_else(|| beside(&args.file));
    if !to_stdout {
        build::must_be_new(&output)?;
    }
    let named =
        if to_stdout { named_from(Path::new("task.toml"), &args.file) } else { named_from(&output, &args.file) };
    let text = metier_train::init_task_file(&args.file, &named).map_err(build::failure)?;
    if to_stdout {
        print!("{text}");
        return Ok(());
    }
    write_new(&output, &text)
        .with_context(|| format!("cannot write `{}`", output.display()))
        .map_err(Failure::Environment)?;
    if args.common.json {
        line(&json!({"task": output}));
    } else {
        let path = output.display();
        println!("{path} is written: look at every line, then `metier build {path} --dry-run`");
    }
    Ok(())
}

/// `data/tickets.csv.gz` → `data/tickets.toml`
fn beside(file: &Path) -> PathBuf {
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or("task");
    let stem = name.split('.').find(|part| !part.is_empty()).unwrap_or("task");
    file.with_file_name(format!("{stem}.toml"))
}

/// How the task file names the rows: paths in it are relative to its own folder.
fn named_from(task: &Path, rows: &Path) -> String {
    let folder = |path: &Path| {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        parent.canonicalize().ok()
    };
    let path = match (folder(task), rows.canonicalize()) {
        (Some(task), Ok(rows)) => rows.strip_prefix(&task).map(Path::to_owned).unwrap_or(rows),
        // Rows that are not there are told by whoever reads them.
        _ => rows.to_owned(),
    };
    path.to_string_lossy().into_owned()
}

/// Whole or not at all, and never over what is there.
fn write_new(path: &Path, text: &str) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(text.as_bytes()).inspect_err(|_| {
        let _ = std::fs::remove_file(path);
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn task_files_lie_beside_their_rows() {
        assert_eq!(beside(Path::new("data/tickets.csv.gz")), Path::new("data/tickets.toml"));
        assert_eq!(beside(Path::new("rows.jsonl")), Path::new("rows.toml"));
    }

    #[test]
    fn rows_are_named_from_the_task_files_folder() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        std::fs::create_dir(root.join("data")).unwrap();
        std::fs::write(root.join("data/rows.csv"), "").unwrap();
        assert_eq!(named_from(&root.join("task.toml"), &root.join("data/rows.csv")), "data/rows.csv");
        assert_eq!(named_from(&root.join("data/rows.toml"), &root.join("data/rows.csv")), "rows.csv");
        std::fs::create_dir(root.join("tasks")).unwrap();
        let elsewhere = named_from(&root.join("tasks/task.toml"), &root.join("data/rows.csv"));
        assert_eq!(Path::new(&elsewhere), root.join("data/rows.csv"));
    }
}
