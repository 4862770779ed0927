//! Trains a span head on a task's rows and prints its F1 of spans on validation rows:
//! `cargo run --release -p metier-train --example tune_spans -- TASK.toml ENCODER_FOLDER [key=value …]`.
//!
//! Keys are those of `Recipe`, `seed`, `threads`, `minutes`, and `rows`: so many training rows. Test rows are not looked at: `metier build`
//! measures on them.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example has no other way to answer")]
#![allow(
    clippy::disallowed_methods,
    reason = "an example stands where the roof stands: it may read the environment and the clock"
)]

use std::{
    error::Error,
    path::Path,
    time::{Duration, Instant},
};

use metier_kernels::{Pool, Tier};
use metier_model::{Encoder, extract::Tokenised, progress::silent};
use metier_train::{
    TaskFile,
    craft::{
        encoder::{EpochLog, Run, StepLog},
        span::{Recipe, TaggedText, Tagger},
    },
    data::{
        Part,
        extract::{self, Alignment},
        split,
    },
};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [task, folder, rest @ ..] = arguments.as_slice() else {
        return Err("TASK.toml ENCODER_FOLDER [key=value …]".into());
    };
    let task = TaskFile::read(Path::new(task), &|name| std::env::var(name).ok())?;
    let extract = task.extract.as_ref().ok_or("the task is no extraction")?;
    let (mut seed, mut threads, mut minutes, mut rows) =
        (0u64, std::thread::available_parallelism()?.get(), 600.0, usize::MAX);
    let splits = split::load_texts(&task, seed)?;
    let mut recipe = Recipe::for_rows(splits.part(Part::Train).len());
    for argument in rest {
        let (key, value) = argument.split_once('=').ok_or("expected key=value")?;
        match key {
            "epochs" => recipe.epochs = value.parse()?,
            "batch_rows" => recipe.batch_rows = value.parse()?,
            "learning_rate" => recipe.learning_rate = value.parse()?,
            "head_learning_rate" => recipe.head_learning_rate = value.parse()?,
            "weight_decay" => recipe.weight_decay = value.parse()?,
            "warm_up" => recipe.warm_up = value.parse()?,
            "dropout" => recipe.dropout = value.parse()?,
            "path_loss" => recipe.path_loss = value.parse()?,
            "average_steps" => recipe.average_steps = value.parse()?,
            "patience" => recipe.patience = value.parse()?,
            "seed" => seed = value.parse()?,
            "threads" => threads = value.parse()?,
            "minutes" => minutes = value.parse()?,
            "rows" => rows = value.parse()?,
            _ => return Err(format!("unknown key `{key}`").into()),
        }
    }
    println!("{recipe:?} seed {seed} {:?}", splits.counts());
    let start = Instant::now();
    let clock = || start.elapsed();
    let pool = Pool::new(threads, Tier::detect());
    let encoder = Encoder::open(Path::new(folder))?;
    let mut alignment = Alignment::default();
    let mut tagged = |part: Part, limit: usize| -> Result<Vec<TaggedText>, Box<dyn Error>> {
        let examples = splits.part(part);
        examples[..examples.len().min(limit)]
            .iter()
            .map(|example| {
                let text = Tokenised::of(&encoder, &example.row.text)?;
                let gold = extract::gold(&example.row, &text.words, extract)?;
                alignment.add(&example.row, &gold, &extract.schema);
                Ok(TaggedText::new(&encoder, &example.row.text, &text, gold.spans))
            })
            .collect()
    };
    let (train, validation) = (tagged(Part::Train, rows)?, tagged(Part::Validation, usize::MAX)?);
    println!("{alignment:?} {:.1} s", clock().as_secs_f64());
    let run = Run { pool: &pool, seed, clock: &clock, deadline: Duration::from_secs_f64(minutes * 60.0) };
    let tagger = Tagger::new(&encoder, &train, &validation, extract.schema.fields().len(), &recipe, seed)?;
    let (mut tokens, mut at) = (0usize, Instant::now());
    let mut log = |step: &StepLog| {
        tokens += step.tokens;
        if (step.step + 1).is_multiple_of(100) {
            let speed = tokens as f64 / at.elapsed().as_secs_f64();
            eprintln!(
                "step {:5}  loss {:.4}  gradient {:.2}  {speed:.0} tokens/s",
                step.step + 1,
                step.loss,
                step.gradient_norm
            );
            (tokens, at) = (0, Instant::now());
        }
    };
    let mut told = |epoch: &EpochLog| {
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "epoch {:2}  loss {:.4}  span F1 {:.2} %  wrong {}  {seconds:.0} s",
            epoch.epoch,
            epoch.loss,
            100.0 * epoch.validation,
            epoch.validation_loss
        );
    };
    let tuned = tagger.learn(&run, &mut silent, &mut log, &mut told)?;
    println!("best epoch {}, {} tokens, {:.0} s", tuned.best, tuned.tokens, clock().as_secs_f64());
    Ok(())
}
