//! From a task file to a bundle, for tasks whose answers a decoder writes.
//!
//! ```text
//! rungs       nearest   the output of the most similar training row     measured, never shipped: it would take the rows with it
//!             prompted  the decoder as it is, told the instruction
//!             adapter   the same decoder under deltas trained on the rows
//! train ──────► deltas                     prompts masked, as they will be asked
//! validation ─► epoch · rung · calibrator · probe rows · match threshold
//! calibration ► certificate, once          loss of a row: not exact, or 1 − its metric
//! test ───────► what is reported
//! ```
//!
//! Whatever is measured was written by the engine that serves, with the adapter in the form in which it is served.

mod shop;

pub(crate) use shop::{Figures, report, sparse_dot};

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use metier_model::{
    Adapter, AdapterError, Decoder, Progress, Unit,
    arch::WeightsError,
    engine::{AdapterId, KeptLayers},
    proof::rows_needed,
    specialist::{
        AdapterFiles,
        manifest::{RungRecord, Stage, TeacherRecord},
    },
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    BuildError, BuildOutcome, Workbench, embed,
    ship::{Product, ship},
};
use crate::{
    craft::{
        canary, checkpoint,
        encoder::StepLog,
        ladder::decimal,
        ladder::{DecoderLog, Depth, Embeddings},
        lora::{self, EpochLog, LoraError, Row, Tuner},
        teaching::{self, TeachError, Teacher},
        writing::{Answer, WriteError, Writer},
    },
    data::{
        DataError, GenerateTask, Part, Splits, TaskFile, TextMetric,
        split::{self, Example},
    },
    eval::text,
    grad::llama::LoraConfig,
    plan::Plan,
};

/// What a checkpoint of an adapter is called.
const CHECKPOINT: &str = "adapter";
/// Tokens of a step, about: small sets of rows need steps more than they need long ones.
const STEP_TOKENS: usize = 512;
/// Most rows of a part that are written for: an answer takes a hundred times a label's time.
const MAX_WRITTEN: [(Part, usize); 3] = [(Part::Validation, 400), (Part::Calibration, 2_000), (Part::Test, 1_000)];
/// Answers are written in so much more time than those that it was predicted from.
const WRITING_RESERVE: f64 = 1.5;
/// Validation rows that are written for in a dry run.
const PLANNED_ROWS: usize = 8;
/// A schema has at most so many bytes.
const MAX_SCHEMA_BYTES: u64 = 128 << 10;

/// A specialist that writes cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// The schema cannot be read.
    #[error("cannot read the schema `{path}`")]
    Schema {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The schema is no JSON.
    #[error("the schema `{path}` is no JSON")]
    SchemaJson {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The decoder cannot be asked.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The decoder cannot be tuned.
    #[error("cannot tune the decoder")]
    Plain(#[from] WeightsError),
    /// Training failed.
    #[error("cannot train the adapter")]
    Lora(#[from] LoraError),
    /// What was trained is no adapter: an error of ours.
    #[error("cannot read the adapter that was trained")]
    Adapter(#[from] AdapterError),
}

/// How an adapter was trained; stands in `run.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainingLog {
    /// Epochs that the budget and the task allowed.
    pub planned_epochs: u64,
    /// Which epoch's deltas were kept.
    pub best_epoch: u64,
    /// Loss on training and validation rows by epoch.
    pub epochs: Vec<EpochLog>,
    /// Loss, gradient norm and step length by step.
    pub steps: Vec<StepLog>,
    /// The step at which a killed run was taken up.
    pub resumed_at: Option<u64>,
    /// Seconds that all planned epochs were predicted to take.
    pub predicted_seconds: f64,
    /// Tokens of training a second, checkpoints and looks at validation rows included.
    pub tokens_a_second: Option<f64>,
}

impl TrainingLog {
    /// Of a decoder that a head reads.
    pub(super) fn of_decoder(log: &DecoderLog) -> Self {
        let DecoderLog { base: _, plan, trained, seconds } = log;
        let tokens: usize = trained.steps.iter().map(|step| step.tokens).sum();
        let epochs = trained.epochs.iter();
        Self {
            planned_epochs: plan.epochs as u64,
            best_epoch: trained.best as u64,
            epochs: epochs
                .map(|e| EpochLog { epoch: e.epoch, loss: e.loss, validation_loss: e.validation_loss })
                .collect(),
            steps: trained.steps.clone(),
            resumed_at: trained.resumed_at,
            predicted_seconds: plan.predicted_seconds,
            tokens_a_second: trained.resumed_at.is_none().then(|| tokens as f64 / seconds.max(1e-6)),
        }
    }
}

/// What there is to learn, read and checked.
struct Lesson {
    splits: Splits,
    schema: Option<Value>,
    writer: Writer,
    /// Outputs by part, in the form in which they shall be written.
    expected: [Vec<String>; 4],
    train: Vec<Row>,
    validation: Vec<Row>,
}

impl Lesson {
    fn read(
        task: &TaskFile,
        generate: &GenerateTask,
        bench: &Workbench<'_>,
        decoder: Arc<Decoder>,
    ) -> Result<Self, BuildError> {
        let splits = split::load_texts(task, bench.seed)?;
        let failed = |source| BuildError::Generate { name: task.name.clone(), source };
        let schema = schema(generate).map_err(failed)?;
        let mut writer =
            Writer::new(decoder, &task.instruction, schema.as_ref()).map_err(|error| failed(error.into()))?;
        let expected = expected(task, &splits, schema.as_ref(), &writer)?;
        let [train, validation] =
            [Part::Train, Part::Validation].map(|part| rows(&splits, part, &expected[part as usize], &writer));
        let (train, validation) = (train?, validation?);
        writer.allow_for(train.iter().map(|row| row.answer.len()).max().unwrap_or(1));
        Ok(Self { splits, schema, writer, expected, train, validation })
    }
}

/// What the work needs beside rows.
struct Shop<'a> {
    task: &'a TaskFile,
    generate: &'a GenerateTask,
    bench: &'a Workbench<'a>,
    splits: &'a Splits,
    /// Outputs by part, in the form in which they shall be written.
    expected: [Vec<String>; 4],
    schema: Option<Value>,
    embeddings: Option<&'a Embeddings>,
    elapsed: &'a dyn Fn() -> Duration,
    /// Who taught the training rows.
    teacher: Option<TeacherRecord>,
}

/// A rung that was made, with what it says.
struct Made {
    stage: Stage,
    /// Answers to validation rows, and to those that figures are of.
    validation: Vec<Answer>,
    measured: Vec<Answer>,
    record: RungRecord,
    seconds: f64,
    adapter: Option<(AdapterFiles, AdapterId)>,
    /// Which of the decoder's layers it runs, where that was tried.
    depth: Option<Depth>,
}

impl Made {
    /// The layers that it keeps; `None`: all.
    fn kept(&self) -> Option<KeptLayers> {
        let depth = self.depth.as_ref().filter(|depth| depth.layers.len() < depth.of)?;
        KeptLayers::new(depth.layers.clone())
    }
}

/// Builds a specialist whose answers `decoder` writes, and puts it into the store, where it answers nothing yet. `clock` gives the time since any
/// fixed moment.
///
/// # Errors
///
/// Where rows, schema or decoder do not do, or the store refuses.
///
/// # Panics
///
/// Where the task is no generation: whoever calls has looked.
pub fn build_generator(
    task: &TaskFile,
    bench: &Workbench<'_>,
    decoder: Arc<Decoder>,
    progress: &mut dyn FnMut(Progress<'_>),
    clock: &dyn Fn() -> Duration,
) -> Result<BuildOutcome, BuildError> {
    let start = clock();
    let elapsed = || clock().saturating_sub(start);
    progress(Progress { stage: "reading rows", done: 0, total: None, unit: Unit::Rows });
    let generate = task.generate.as_ref().expect("a generation");
    let Lesson { splits, schema, mut writer, expected, mut train, validation } =
        Lesson::read(task, generate, bench, decoder)?;
    let teacher = teach(task, bench, writer.decoder(), &mut train, progress)?;
    let canaries = canary::canaries(generate.tune.canaries, bench.seed);
    for canary in &canaries {
        let row = writer.row(&canary.text, &canary.secrets[0]);
        train.push(row.map_err(|error| BuildError::Generate { name: task.name.clone(), source: error.into() })?);
    }
    let embeddings = bench.encoder.map(|encoder| embed(task, &splits, encoder, bench.pool, progress)).transpose()?;
    let embed_seconds = elapsed().as_secs_f64();
    let embeddings = embeddings.as_ref();
    let shop =
        Shop { task, generate, bench, splits: &splits, expected, schema, embeddings, elapsed: &elapsed, teacher };

    let mut notes = shop.notes();
    let part = shop.measured_part();
    let mut rungs = vec![shop.nearest()];
    rungs.push(shop.write(Stage::Prompted, &mut writer, None, progress)?);
    let mut training = None;
    if task.up_to >= Stage::Adapter {
        let seconds = rungs[1].seconds;
        match shop.adapter(&mut writer, (&train, &validation), seconds, progress)? {
            Ok((made, log)) => {
                training = Some(log);
                rungs.extend(made);
            }
            Err(note) => notes.push(note),
        }
    }
    drop((train, validation));
    let chosen = shop.choose(&mut rungs);

    progress(Progress { stage: "proving", done: 0, total: None, unit: Unit::Steps });
    let (specialist, evidence, failures) = shop.prove(&rungs, chosen, &mut writer, progress)?;
    // Of the rung that ships, with its layers; the bare decoder has not seen them.
    let memorisation = if canaries.is_empty() || !specialist.manifest().stage.has_adapter() {
        None
    } else {
        Some(shop.memorisation(&rungs[chosen], &canaries, &mut writer, progress)?)
    };
    notes.extend(specialist.manifest().recipe.teacher.as_ref().map(TeacherRecord::told));
    let rounded = rungs[chosen].record.adapter.as_ref().and_then(|adapter| adapter.rounded);
    notes.extend(rounded.map(|rounded| rounded.told(generate.metric.name())));
    if let Some(refusal) = &specialist.manifest().refusal {
        notes.push(format!(
            "no certificate at ε = {}, δ = {} with {} calibration rows: everything is deferred",
            task.target.epsilon, task.target.delta, refusal.n
        ));
    }
    if generate.metric != TextMetric::ExactMatch {
        notes.push(format!(
            "the score says how likely an answer is exactly the expected one; the certificate bounds the mean of 1 − {}",
            generate.metric.name()
        ));
    }
    let rungs = rungs.iter().map(|rung| shop.outcome(rung, part)).collect();
    let product = Product {
        specialist,
        evidence,
        rungs,
        failures,
        learning_curve: None,
        training,
        memorisation,
        notes,
        embed_seconds,
    };
    let outcome = ship(task, &splits, bench, product, &elapsed)?;
    checkpoint::remove(bench.store.root(), &task.name, CHECKPOINT);
    checkpoint::remove_all(bench.store.root(), &task.name, &format!("{CHECKPOINT}-"));
    Ok(outcome)
}

/// Asks the task's teacher, where it names one, what it would have written in the place of each answer token of the training rows.
fn teach(
    task: &TaskFile,
    bench: &Workbench<'_>,
    student: &Decoder,
    rows: &mut [Row],
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Option<TeacherRecord>, BuildError> {
    let Some(distil) = &task.distil else { return Ok(None) };
    let name = distil.teacher.name();
    let failed = |source| BuildError::Teach { name: task.name.clone(), source: Box::new(source) };
    let unfit = |why: &str| failed(TeachError::Unfit { teacher: name.clone(), why: why.to_owned() });
    let (digest, decoder, adapter) = match &bench.teacher {
        None => return Err(unfit("it is not at hand")),
        Some(Teacher::Decoder(decoder)) => (decoder.base().digest, decoder.as_ref(), None),
        Some(Teacher::Specialist(specialist)) => {
            let manifest = specialist.manifest();
            let generation = manifest.generation.as_ref().ok_or_else(|| unfit("its answers are not written"))?;
            if generation.decoder.digest != student.base().digest {
                return Err(unfit(&format!(
                    "it was made with the decoder `{}`, and another is at hand",
                    generation.decoder.name
                )));
            }
            if manifest.kept_layers().is_some() {
                return Err(unfit("it runs some of its decoder's layers alone, and a teacher runs all"));
            }
            let adapter = specialist.adapter_files().map(|files| {
                let config = student.network().config();
                Adapter::from_bytes(files.config.as_bytes(), &files.weights, config, manifest.adapter_format())
            });
            let adapter = adapter
                .transpose()
                .map_err(|source| BuildError::Generate { name: task.name.clone(), source: source.into() })?;
            (specialist.id(), student, adapter)
        }
    };
    teaching::check(decoder, student).map_err(failed)?;
    teaching::teach(bench.pool, decoder, adapter.as_ref(), rows, distil.temperature, progress).map_err(failed)?;
    Ok(Some(TeacherRecord {
        name,
        digest,
        temperature: decimal(distil.temperature),
        weight: decimal(distil.weight),
        rows_without_label: 0,
    }))
}

/// Rows and predicted minutes of such a build, by a second of training and a few answers; nothing is written to disk.
///
/// # Errors
///
/// As [`build_generator`].
///
/// # Panics
///
/// Where the task is no generation.
pub fn plan_generator(
    task: &TaskFile,
    bench: &Workbench<'_>,
    decoder: Arc<Decoder>,
    clock: &dyn Fn() -> Duration,
) -> Result<Plan, BuildError> {
    let generate = task.generate.as_ref().expect("a generation");
    let lesson = Lesson::read(task, generate, bench, Arc::clone(&decoder))?;
    let Lesson { splits, mut writer, train, validation, .. } = lesson;
    let failed = |source| BuildError::Generate { name: task.name.clone(), source };
    let texts = texts(&splits, Part::Validation);
    let tried = &texts[..texts.len().min(PLANNED_ROWS)];
    let start = clock();
    writer
        .write_all(bench.pool, tried, None, "trying the decoder", &mut metier_model::progress::silent)
        .map_err(|error| failed(error.into()))?;
    let rows_a_second = tried.len() as f64 / (clock() - start).as_secs_f64().max(1e-6);
    // Two rungs write for validation and test rows, one for calibration rows.
    let written = |part| capped(splits.part(part).len(), part) as f64;
    let writing =
        (2.0 * (written(Part::Validation) + written(Part::Test)) + written(Part::Calibration)) / rows_a_second;
    let mut training = 0.0;
    if task.up_to >= Stage::Adapter {
        let recipe = recipe(generate);
        let plain = decoder.network().plain().map_err(|error| failed(error.into()))?;
        let mut tuner = Tuner::new(plain, &recipe, bench.seed);
        let run = lora::Run { pool: bench.pool, seed: bench.seed, clock, deadline: Duration::MAX };
        let epoch = tuner.epoch_time(&run, &train, &validation, &recipe).map_err(|error| failed(error.into()))?;
        training = epoch.as_secs_f64() * recipe.epochs as f64;
    }
    let (epsilon, delta) = (task.target.epsilon, task.target.delta);
    let needed = rows_needed(epsilon, delta, 0.0);
    Ok(Plan {
        name: task.name.clone(),
        rows: splits.counts(),
        labels: Default::default(),
        rows_needed: needed,
        rows_needed_with_errors: rows_needed(epsilon, delta, epsilon / 2.0),
        enough: needed.is_some_and(|needed| splits.part(Part::Calibration).len() as u64 >= needed),
        minutes: (writing + training) / 60.0,
        rungs: Vec::new(),
        rows_a_second: Some(rows_a_second),
        leak: splits.leak.clone(),
        alignment: None,
    })
}

fn recipe(generate: &GenerateTask) -> lora::Recipe {
    let tune = &generate.tune;
    lora::Recipe {
        lora: LoraConfig { r: tune.rank, alpha: tune.alpha },
        epochs: tune.epochs,
        learning_rate: tune.learning_rate,
        step_tokens: STEP_TOKENS,
        ..lora::Recipe::default()
    }
}

fn schema(generate: &GenerateTask) -> Result<Option<Value>, GenerateError> {
    let Some(path) = &generate.schema else { return Ok(None) };
    let io = |source| GenerateError::Schema { path: path.clone(), source };
    let bytes = fs::metadata(path).map_err(io)?.len();
    if bytes > MAX_SCHEMA_BYTES {
        let problem = format!("it has {bytes} bytes, at most {MAX_SCHEMA_BYTES} are read");
        return Err(io(std::io::Error::other(problem)));
    }
    let text = fs::read_to_string(path).map_err(io)?;
    serde_json::from_str(&text).map(Some).map_err(|source| GenerateError::SchemaJson { path: path.clone(), source })
}

/// The outputs as they shall be written; with a schema, JSON that fits it, in the form in which the engine writes it.
fn expected(
    task: &TaskFile,
    splits: &Splits,
    schema: Option<&Value>,
    writer: &Writer,
) -> Result<[Vec<String>; 4], BuildError> {
    let mut all: [Vec<String>; 4] = Default::default();
    for part in Part::ALL {
        let examples = splits.part(part);
        let outputs = in_form(examples, &task.data.label, schema)?;
        for (example, output) in examples.iter().zip(&outputs).filter(|_| schema.is_some()) {
            let fits = writer.allows(output).map_err(|error| BuildError::Generate {
                name: task.name.clone(),
                source: GenerateError::Write(error),
            })?;
            if !fits {
                let problem = format!("`{}` does not fit the schema: {output}", task.data.label);
                return Err(BuildError::Data(DataError::row(&example.row.place, problem)));
            }
        }
        all[part as usize] = outputs;
    }
    Ok(all)
}

/// Outputs in the form in which the engine writes them: with a schema, JSON in its order.
pub(super) fn in_form(examples: &[Example], column: &str, schema: Option<&Value>) -> Result<Vec<String>, BuildError> {
    let in_form = |example: &Example| {
        let output = &example.row.label;
        let Some(schema) = schema else { return Ok(output.clone()) };
        let value: Value = serde_json::from_str(output).map_err(|error| {
            BuildError::Data(DataError::row(&example.row.place, format!("`{column}` is no JSON: {error}")))
        })?;
        Ok(text::in_form(&value, schema))
    };
    examples.iter().map(in_form).collect()
}

/// Rows as they are learnt; one that is longer than the decoder's context is named.
fn rows(splits: &Splits, part: Part, expected: &[String], writer: &Writer) -> Result<Vec<Row>, BuildError> {
    let limit = writer.decoder().context_len();
    let mut rows = Vec::with_capacity(expected.len());
    for (example, output) in splits.part(part).iter().zip(expected) {
        let wrong = |message: String| BuildError::Data(DataError::row(&example.row.place, message));
        let row = writer.row(&example.row.text, output).map_err(|error| wrong(error.to_string()))?;
        let n = row.prompt.len() + row.answer.len();
        if n > limit {
            return Err(wrong(format!(
                "instruction, text and output have {n} tokens, the decoder reads {limit}: shorten the text"
            )));
        }
        rows.push(row);
    }
    Ok(rows)
}

fn texts(splits: &Splits, part: Part) -> Vec<&str> {
    let examples = splits.part(part);
    examples[..capped(examples.len(), part)].iter().map(|example| example.row.text.as_str()).collect()
}

fn capped(n: usize, part: Part) -> usize {
    MAX_WRITTEN.iter().find(|(of, _)| *of == part).map_or(n, |(_, most)| n.min(*most))
}
