//! Tunes an encoder on a task's rows and says what a linear head makes of its vectors:
//! `cargo run --release -p metier-train --example tune_encoder -- TASK.toml ENCODER_FOLDER [key=value …] [test]`.
//!
//! Keys are those of `Recipe`, `seed` and `threads`. Settings are compared on validation rows; `test` prints the figure on test rows, for
//! the settings of the last step of the ladder that validation chose.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example has no other way to answer")]
#![allow(
    clippy::disallowed_methods,
    reason = "an example stands where the roof stands: it may read the environment and the clock"
)]

use std::{error::Error, path::Path, time::Instant};

use metier_kernels::{Pool, Tier};
use metier_model::{Encoder, EncoderWeights, progress::silent, specialist::manifest::Stage};
use metier_train::{
    TaskFile,
    craft::{
        encoder::{Gold, Recipe, Rows, Run, tune},
        ladder,
    },
    data::{Part, split},
    eval::metrics,
};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [task, folder, rest @ ..] = arguments.as_slice() else {
        return Err("TASK.toml ENCODER_FOLDER [key=value …] [test]".into());
    };
    let mut recipe = Recipe::default();
    let (mut seed, mut threads, mut with_test, mut minutes) =
        (0u64, std::thread::available_parallelism()?.get(), false, 600.0);
    for argument in rest {
        if argument == "test" {
            with_test = true;
            continue;
        }
        let (key, value) = argument.split_once('=').ok_or("expected key=value")?;
        match key {
            "epochs" => recipe.epochs = value.parse()?,
            "batch_rows" => recipe.batch_rows = value.parse()?,
            "learning_rate" => recipe.learning_rate = value.parse()?,
            "head_learning_rate" => recipe.head_learning_rate = value.parse()?,
            "weight_decay" => recipe.weight_decay = value.parse()?,
            "warm_up" => recipe.warm_up = value.parse()?,
            "dropout" => recipe.dropout = value.parse()?,
            "smoothing" => recipe.smoothing = value.parse()?,
            "r_drop" => recipe.r_drop = value.parse()?,
            "contrast" => recipe.contrast = value.parse()?,
            "temperature" => recipe.temperature = value.parse()?,
            "logit_scale" => recipe.logit_scale = value.parse()?,
            "average_steps" => recipe.average_steps = value.parse()?,
            "patience" => recipe.patience = value.parse()?,
            "max_tokens" => recipe.max_tokens = value.parse()?,
            "seed" => seed = value.parse()?,
            "threads" => threads = value.parse()?,
            "minutes" => minutes = value.parse()?,
            _ => return Err(format!("unknown key `{key}`").into()),
        }
    }
    println!("{recipe:?} seed {seed}");
    let start = Instant::now();
    let clock = || start.elapsed();
    let pool = Pool::new(threads, Tier::detect());
    let encoder = Encoder::open(Path::new(folder))?;
    let task = TaskFile::read(Path::new(task), &|name| std::env::var(name).ok())?;
    let splits = split::load(&task, seed)?;
    let rows = |part: Part| -> (Vec<&str>, Vec<usize>) {
        splits.part(part).iter().map(|example| (example.row.text.as_str(), example.class)).unzip()
    };
    let (train, validation) = (rows(Part::Train), rows(Part::Validation));
    println!("{:?} {:.1} s", splits.counts(), clock().as_secs_f64());
    let run = Run { pool: &pool, seed, clock: &clock, deadline: std::time::Duration::from_secs_f64(minutes * 60.0) };
    let (mut sums, mut at) = ((0.0, 0.0, 0usize, 0usize), Instant::now());
    let mut log = |step: &metier_train::craft::encoder::StepLog| {
        sums = (sums.0 + step.loss, sums.1 + step.gradient_norm, sums.2 + step.tokens, sums.3 + 1);
        if sums.3 == 50 {
            let speed = sums.2 as f64 / at.elapsed().as_secs_f64();
            eprintln!(
                "{:6.1} s  step {:5}  loss {:.4}  gradient {:.2}  rate {:.2e}  {speed:.0} tokens/s",
                start.elapsed().as_secs_f64(),
                step.step + 1,
                sums.0 / 50.0,
                sums.1 / 50.0,
                step.learning_rate,
            );
            (sums, at) = ((0.0, 0.0, 0, 0), Instant::now());
        }
    };
    let tuned = tune(
        &encoder,
        Rows { texts: &train.0, gold: Gold::Classes(&train.1) },
        Rows { texts: &validation.0, gold: Gold::Classes(&validation.1) },
        splits.labels.len(),
        &recipe,
        &run,
        &mut silent,
        &mut log,
    )?;
    for epoch in &tuned.epochs {
        println!(
            "epoch {:2}  loss {:.4}  validation {:.2} %  its loss {:.4}",
            epoch.epoch,
            epoch.loss,
            100.0 * epoch.validation,
            epoch.validation_loss
        );
    }
    let trained = clock().as_secs_f64();
    println!("best epoch {}, {} tokens, {trained:.0} s, file of {} bytes", tuned.best, tuned.tokens, tuned.file.len());
    let served = encoder.with_tensors(&tuned.file, EncoderWeights::F32)?;
    let embed = |part: Part| served.embed(&pool, &rows(part).0);
    let embeddings = [embed(Part::Train)?, embed(Part::Validation)?, embed(Part::Calibration)?, embed(Part::Test)?];
    let ladder_run = ladder::Run { pool: &pool, seed, clock: &clock, deadline: std::time::Duration::MAX, keeps: None };
    let ground = ladder::Ground {
        lesson: None,
        ngrams: true,
        inputs: &task.data.text,
        tuning: &recipe,
        splits: &splits,
        embeddings: Some(&embeddings),
        encoder: None,
        decoders: &[],
        decoding: &metier_train::craft::decoder::Recipe::default(),
        from: Stage::Linear,
        up_to: Stage::Both,
    };
    let ladder = ladder::climb(ground, &task.target, &ladder_run, &mut silent)?;
    for rung in &ladder.rungs {
        println!(
            "on tuned vectors: {:?}  validation {:.2} %  {:?}",
            rung.stage,
            100.0 * rung.record.validation,
            (rung.record.c, rung.record.embedding_scale)
        );
        if with_test {
            let held = ladder::Held::of(&splits, Part::Test, &ladder.features, Some(&embeddings));
            let calls = ladder::calls(&held.margins(&rung.head));
            let measured = metrics::measure(task.target.metric, &calls, &held.classes, splits.labels.len(), seed);
            println!("    test {:.2} % {:?}, n = {}", 100.0 * measured.value, measured.interval, calls.len());
        }
    }
    println!(
        "{:.1} minutes, peak {:?} MB",
        clock().as_secs_f64() / 60.0,
        metier_train::build::peak_rss_bytes().map(|b| b >> 20)
    );
    Ok(())
}
