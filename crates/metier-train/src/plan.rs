//! What would a build do? Splits, rows that the certificate needs, and predicted minutes, without building.

use std::{collections::BTreeMap, time::Duration};

use metier_model::{
    extract::words,
    proof::rows_needed,
    specialist::manifest::{Stage, encoder_text},
};
use serde::Serialize;

use crate::{
    build::{BuildError, Workbench, decoding},
    craft::{
        encoder::Gold,
        ladder::{Run, decoding as deep, tuning::Subject},
        span::Recipe,
    },
    data::{
        LeakReport, Part, Splits, TaskFile,
        extract::{self, Alignment, ExtractTask},
        sets::Loaded,
        split,
    },
};

/// How long the encoder is tried for the prediction.
const PROBE: Duration = Duration::from_secs(1);
/// Rows embedded at a time while it is tried.
const PROBE_ROWS: usize = 32;
/// Observed losses that are planned for besides none: half of ε.
const PLANNED_LOSS_SHARE: f64 = 0.5;
/// Multiply-adds a second and thread of the linear trade, from a run on banking77; a guide, not a promise.
const MULTIPLY_ADDS_A_SECOND: f64 = 1.5e9;
/// Settings over all rungs times the passes that each takes on average.
const LINEAR_PASSES: f64 = 14.0 * 30.0;
/// Non-zero features of a row: n-grams of a short text, or an embedding.
const FEATURES_A_ROW: f64 = 250.0;

/// What a build would do.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// Name of the task.
    pub name: String,
    /// Rows by part.
    pub rows: BTreeMap<String, u64>,
    /// Rows by label and part.
    pub labels: BTreeMap<String, BTreeMap<String, u64>>,
    /// Calibration rows needed at ε and δ if no accepted row is wrong.
    pub rows_needed: Option<u64>,
    /// The same if accepted errors are half of ε.
    pub rows_needed_with_errors: Option<u64>,
    /// Are there enough for a certificate at all?
    pub enough: bool,
    /// Predicted minutes.
    pub minutes: f64,
    /// Of them, the rungs of a classification that train a network, smallest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rungs: Vec<PlannedRung>,
    /// Rows embedded a second, as tried.
    pub rows_a_second: Option<f64>,
    /// Duplicates and contradictions.
    pub leak: LeakReport,
    /// Of an extraction: do its values stand in their texts?
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alignment: Option<Alignment>,
}

/// A rung that trains a network, as a build that begins now would plan it.
#[derive(Clone, Debug, Serialize)]
pub struct PlannedRung {
    /// Which.
    pub rung: Stage,
    /// Over which decoder, where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// Predicted minutes; of one that does not fit, what a single pass with all layers would take, or all passes of an encoder.
    pub minutes: f64,
    /// Does that end within the budget? Else the rung would be left out.
    pub fits: bool,
    /// Passes over the training rows, at most.
    pub epochs: u64,
    /// Numbers of a decoder's layers that are tried beside all of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub depths: Vec<usize>,
}

/// Reads and parts the rows as a build would, tries the encoder for a second, and writes nothing.
pub fn plan(task: &TaskFile, bench: &Workbench<'_>, clock: &dyn Fn() -> Duration) -> Result<Plan, BuildError> {
    let loaded = match &task.extract {
        Some(_) => Loaded::Classes(Box::new(split::load_texts(task, bench.seed)?)),
        None => split::load_any(task, bench.seed)?,
    };
    let splits = loaded.splits();
    let alignment = task.extract.as_ref().map(|extract| align(splits, extract)).transpose()?;
    let texts: Vec<&str> = Part::ALL.iter().flat_map(|&p| splits.part(p)).map(|e| e.row.text.as_str()).collect();
    let mut rows_a_second = None;
    if let Some(encoder) = bench.encoder {
        let start = clock();
        let mut done = 0;
        // Rows from all over the file: their lengths are what the time hangs on.
        let step = (texts.len() / (PROBE_ROWS * 64)).max(1);
        let sample: Vec<&str> = texts.iter().step_by(step).copied().collect();
        for rows in sample.chunks(PROBE_ROWS) {
            let error = |source| BuildError::Embed { name: task.name.clone(), source };
            encoder.embed_all(bench.pool, rows, &mut metier_model::progress::silent).map_err(error)?;
            done += rows.len();
            if clock() - start >= PROBE {
                break;
            }
        }
        rows_a_second = Some(done as f64 / (clock() - start).as_secs_f64().max(1e-6));
    }
    let mut labels: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
    for part in Part::ALL {
        // Answers of an extraction are no labels.
        for (at, example) in splits.part(part).iter().enumerate().filter(|_| task.extract.is_none()) {
            let of_row: Vec<&String> = match &loaded {
                Loaded::Classes(_) => vec![&example.row.label],
                Loaded::Sets(sets) => sets.sets[part as usize][at].iter().map(|label| &splits.labels[*label]).collect(),
            };
            for label in of_row {
                *labels.entry(label.clone()).or_default().entry(part.name().to_owned()).or_default() += 1;
            }
        }
    }
    let (epsilon, delta) = (task.target.epsilon, task.target.delta);
    let needed = rows_needed(epsilon, delta, 0.0);
    let n_train = splits.part(Part::Train).len() as f64;
    let linear = n_train * splits.labels.len() as f64 * FEATURES_A_ROW * LINEAR_PASSES / MULTIPLY_ADDS_A_SECOND / 2.0;
    let linear = match (&task.extract, rows_a_second) {
        // A step of tuning is the way forth and twice as much back.
        (Some(extract), Some(rate)) => {
            let epochs = extract.tune.epochs.unwrap_or_else(|| Recipe::for_rows(n_train as usize).epochs);
            3.0 * n_train * epochs as f64 / rate
        }
        _ => linear,
    };
    let embedding = rows_a_second.map_or(0.0, |rate| texts.len() as f64 / rate);
    let rungs = rungs(task, bench, &loaded, linear + embedding, clock)?;
    let trained: f64 = rungs.iter().filter(|rung| rung.fits).map(|rung| rung.minutes).sum();
    Ok(Plan {
        name: task.name.clone(),
        rows: splits.counts(),
        labels,
        rows_needed: needed,
        rows_needed_with_errors: rows_needed(epsilon, delta, epsilon * PLANNED_LOSS_SHARE),
        enough: needed.is_some_and(|needed| splits.part(Part::Calibration).len() as u64 >= needed),
        minutes: (linear + embedding) / 60.0 + trained,
        rungs,
        rows_a_second,
        leak: splits.leak.clone(),
        alignment,
    })
}

/// Tries the networks that a build would train, about a second each. `before`: seconds that the rungs below them take.
fn rungs(
    task: &TaskFile,
    bench: &Workbench<'_>,
    loaded: &Loaded,
    before: f64,
    clock: &dyn Fn() -> Duration,
) -> Result<Vec<PlannedRung>, BuildError> {
    if task.extract.is_some() {
        return Ok(Vec::new());
    }
    let splits = loaded.splits();
    let n_classes = splits.labels.len();
    let classes = |part: Part| splits.part(part).iter().map(|example| example.class).collect::<Vec<usize>>();
    let (train, validation) = (classes(Part::Train), classes(Part::Validation));
    let gold = match loaded {
        Loaded::Classes(_) => [Gold::Classes(&train), Gold::Classes(&validation)],
        Loaded::Sets(sets) => [Gold::Sets(&sets.sets[0]), Gold::Sets(&sets.sets[1])],
    };
    let texts = Part::ALL.map(|part| {
        splits.part(part).iter().map(|example| encoder_text(&task.data.text, &example.row.text)).collect::<Vec<_>>()
    });
    let texts = texts.each_ref().map(|part| part.iter().map(AsRef::as_ref).collect::<Vec<&str>>());
    let budget = task.budget_minutes * 60.0;
    // The trial itself is no part of the build.
    let run = |spent: f64| Run {
        pool: bench.pool,
        seed: bench.seed,
        clock,
        deadline: clock() + Duration::from_secs_f64((budget - spent).max(0.0)),
        keeps: None,
    };
    let (mut planned, mut spent) = (Vec::new(), before);
    let encoder = bench.encoder.and_then(crate::embed::Embed::as_encoder);
    if let Some(encoder) = encoder.filter(|_| (task.from..=task.up_to).contains(&Stage::Tuned)) {
        let recipe = &bench.tuning;
        let subject = Subject { encoder, recipe, texts: &texts, gold, n_classes, lesson: None };
        let error = |source| BuildError::Tune { name: task.name.clone(), source };
        let seconds = subject.foresee(&run(spent)).map_err(error)?.as_secs_f64();
        let (fits, epochs) = (spent + seconds <= budget, recipe.epochs as u64);
        let minutes = seconds / 60.0;
        planned.push(PlannedRung { rung: Stage::Tuned, base: None, minutes, fits, epochs, depths: Vec::new() });
        spent += if fits { seconds } else { 0.0 };
    }
    let decodes = task.up_to >= Stage::Decoder && matches!(loaded, Loaded::Classes(_));
    for decoder in bench.decoders.iter().filter(|_| decodes) {
        let recipe = decoding(task);
        let found = deep::foresee(decoder, &recipe, &texts, &train, n_classes, &run(spent));
        let error = |source| BuildError::Decode { name: task.name.clone(), source: Box::new(source) };
        let base = (bench.decoders.len() > 1).then(|| decoder.base().name.clone());
        planned.push(match found.map_err(error)? {
            Ok(plan) => {
                spent += plan.predicted_seconds;
                PlannedRung {
                    rung: Stage::Decoder,
                    base,
                    minutes: plan.predicted_seconds / 60.0,
                    fits: true,
                    epochs: plan.epochs as u64,
                    depths: plan.depths,
                }
            }
            Err(needed) => {
                let minutes = needed.as_secs_f64() / 60.0;
                PlannedRung { rung: Stage::Decoder, base, minutes, fits: false, epochs: 1, depths: Vec::new() }
            }
        });
    }
    Ok(planned)
}

/// Reads every answer as a build would.
fn align(splits: &Splits, extract: &ExtractTask) -> Result<Alignment, BuildError> {
    let mut alignment = Alignment::default();
    for example in Part::ALL.iter().flat_map(|part| splits.part(*part)) {
        let gold = extract::gold(&example.row, &words::words(&example.row.text), extract)?;
        alignment.add(&example.row, &gold, &extract.schema);
    }
    Ok(alignment)
}
