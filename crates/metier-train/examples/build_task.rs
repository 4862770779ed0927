//! `metier build` without the roof, for experiments: `cargo run --release -p metier-train --example build_task -- TASK.toml ENCODER_FOLDER|- [key=value …]`
//! prints every rung and the outcome as JSON. Keys are `minutes`, `up_to`, `seed`, `threads`, `decoder`
//! (a model file; `decoder_int8`: its weights in 8 bits; again for a bigger one), `adapter=int8`, `keep=all` (no layer is left out), `store` (a folder, for builds that shall be taken up again), and those of the encoder's recipe.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example has no other way to answer")]
#![allow(
    clippy::disallowed_methods,
    reason = "an example stands where the roof stands: it may read the environment and the clock"
)]

use std::{error::Error, path::Path, sync::Arc, time::Instant};

use metier_kernels::{Pool, Tier};
use metier_model::{
    Decoder, Encoder, SpecialistStore,
    engine::WeightFormat,
    specialist::manifest::{AdapterWeights, Stage},
};
use metier_train::{Embed, TaskFile, Workbench, craft::encoder::Recipe};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [task, folder, rest @ ..] = arguments.as_slice() else {
        return Err("TASK.toml ENCODER_FOLDER|- [key=value …]".into());
    };
    let mut task = TaskFile::read(Path::new(task), &|name| std::env::var(name).ok())?;
    let (mut recipe, mut seed, mut threads) = (Recipe::default(), 0u64, std::thread::available_parallelism()?.get());
    let (mut decoders, mut folder_of_store) = (Vec::new(), None);
    for argument in rest {
        let (key, value) = argument.split_once('=').ok_or("expected key=value")?;
        match key {
            "minutes" => task.budget_minutes = value.parse()?,
            "up_to" => {
                task.up_to =
                    Stage::CLASSIFYING.into_iter().find(|stage| stage.name() == value).ok_or("no such rung")?;
            }
            // More than one, smallest first: say it again.
            "decoder" => decoders.push(Arc::new(Decoder::open(Path::new(value), WeightFormat::AsFile)?)),
            "decoder_int8" => decoders.push(Arc::new(Decoder::open(Path::new(value), WeightFormat::Int8)?)),
            // `keep=all`: no layer is left out.
            "keep" if value == "all" => task.prune.keep.clear(),
            "adapter" if value == "int8" => task.tune.weights = AdapterWeights::Int8,
            "store" => folder_of_store = Some(value.to_owned()),
            "seed" => seed = value.parse()?,
            "threads" => threads = value.parse()?,
            "epochs" => recipe.epochs = value.parse()?,
            "batch_rows" => recipe.batch_rows = value.parse()?,
            "learning_rate" => recipe.learning_rate = value.parse()?,
            "dropout" => recipe.dropout = value.parse()?,
            "smoothing" => recipe.smoothing = value.parse()?,
            "r_drop" => recipe.r_drop = value.parse()?,
            "contrast" => recipe.contrast = value.parse()?,
            "logit_scale" => recipe.logit_scale = value.parse()?,
            "patience" => recipe.patience = value.parse()?,
            _ => return Err(format!("unknown key `{key}`").into()),
        }
    }
    let pool = Pool::new(threads, Tier::detect());
    let encoder = if folder == "-" { None } else { Some(Encoder::open(Path::new(folder))?) };
    let dir = tempfile::tempdir()?;
    let store = SpecialistStore::open(folder_of_store.as_deref().map_or(dir.path(), Path::new))?;
    let bench = Workbench {
        teacher: None,
        encoder: encoder.as_ref().map(|encoder| encoder as &dyn Embed),
        pool: &pool,
        store: &store,
        seed,
        tuning: recipe,
        decoders,
    };
    let start = Instant::now();
    let mut last = start;
    let mut progress = |progress: metier_model::Progress<'_>| {
        if last.elapsed().as_secs() >= 20 {
            last = Instant::now();
            eprintln!(
                "{:6.0} s {} {} of {:?}",
                start.elapsed().as_secs_f64(),
                progress.stage,
                progress.done,
                progress.total
            );
        }
    };
    let outcome = metier_train::build(&task, &bench, &mut progress, &|| start.elapsed())?;
    for rung in &outcome.rungs {
        eprintln!(
            "{:7} validation {:.4}  {} {:.4} [{:.4}, {:.4}]  {:.1} s",
            rung.name(),
            rung.validation,
            outcome.measured_on,
            rung.value,
            rung.interval[0],
            rung.interval[1],
            rung.seconds
        );
    }
    outcome.notes.iter().for_each(|note| eprintln!("note: {note}"));
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}
