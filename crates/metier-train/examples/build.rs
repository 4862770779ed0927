//! Builds a specialist without the command line: `cargo run --release -p metier-train --example build -- TASK.toml STORE [MINILM_FOLDER]`.
//! Prints the outcome as one line of JSON, progress on stderr. `METIER_THREADS`: so many threads.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example has no other way to answer")]
#![allow(clippy::disallowed_methods, reason = "an example stands where the roof stands: it may read the environment")]

use std::{error::Error, path::Path, time::Instant};

use metier_kernels::{Pool, Tier};
use metier_model::{Encoder, SpecialistStore};
use metier_train::{Embed, TaskFile, Workbench, build};

/// Steps or rows between two lines of progress.
const STEPS_A_LINE: u64 = 50;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let threads = std::env::var("METIER_THREADS").ok().map(|n| n.parse()).transpose()?;
    let threads = threads.unwrap_or(std::thread::available_parallelism()?.get());
    let [task, store, rest @ ..] = arguments.as_slice() else {
        return Err("TASK.toml STORE [MINILM_FOLDER]".into());
    };
    let task = TaskFile::read(Path::new(task), &|name| std::env::var(name).ok())?;
    let encoder = rest.first().map(|dir| Encoder::open(Path::new(dir))).transpose()?;
    let bench = Workbench {
        teacher: None,
        encoder: encoder.as_ref().map(|encoder| encoder as &dyn Embed),
        pool: &Pool::new(threads, Tier::detect()),
        store: &SpecialistStore::open(Path::new(store))?,
        seed: 0,
        tuning: metier_train::craft::encoder::Recipe::default(),
        decoders: Vec::new(),
    };
    let start = Instant::now();
    let mut stage = String::new();
    let mut progress = |report: metier_model::Progress<'_>| {
        if report.stage != stage || report.done.is_multiple_of(STEPS_A_LINE) {
            stage = report.stage.to_owned();
            let total = report.total.map_or_else(String::new, |total| format!(" {} of {total}", report.done));
            eprintln!("{:6.1} s  {stage}{total}", start.elapsed().as_secs_f64());
        }
    };
    let outcome = build(&task, &bench, &mut progress, &|| start.elapsed())?;
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}
