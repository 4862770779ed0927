//! From a task file to a bundle in the store: load, embed, climb, calibrate, certify, measure, write.
//!
//! ```text
//! train ───────► features, weights of every rung
//! validation ──► settings · rung · calibrator · probe rows · match threshold
//! calibration ─► certificate, once, for exactly the weights that ship
//! test ────────► what is reported
//! ```

mod cascade;
mod decoded;
pub(crate) mod extract;
pub mod generate;
mod lesson;
mod measured;
mod sets;
mod ship;

pub use decoded::evaluate_decoder;

use std::{
    collections::BTreeMap,
    error::Error,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use metier_kernels::Pool;
use metier_model::{
    Decoder, Digest, Progress, Specialist, SpecialistStore, Unit,
    features::FORMAT as FEATURE_FORMAT,
    pairs::FORMAT as PAIR_FORMAT,
    proof::{Certificate, NonInferiority},
    specialist::{
        Answer, AnswerError, BundleError, Contents, StoreError,
        manifest::{FORMAT, Hidden, Kind, Manifest, PairsRecord, Recipe, Stage, TeacherRecord},
    },
};
use serde::{Deserialize, Serialize};

use self::cascade::{Choice, Stages, Validation, by_depth};
use self::generate::TrainingLog;
use self::measured::{embed, embedded, failures, measured_part, neighbours, probe, yardstick};
pub use self::ship::peak_rss_bytes;
use self::ship::{Product, ship};
use crate::{
    craft::{
        canary::Memorisation,
        checkpoint, decoder,
        encoder::{self as tuning, TuneError},
        ladder::{self, Depth, Embeddings, Ground, Held, Ladder, Run, SkippedRung},
        teaching::{TeachError, Teacher},
    },
    data::{
        DataError, LeakReport, Part, Splits, TaskError, TaskFile, positive,
        sets::Loaded,
        split::{self, Example},
        table::{self, Columns},
        task::Metric,
    },
    embed::Embed,
    eval::{
        EvalReport, Finding, LearningCurve, ScoredRow, calibrate,
        evaluation::{self, ClassMix, Yardstick},
        learning, metrics, rejection,
        stages::by_stage,
    },
    grad::llama::LoraConfig,
};

/// What a build works with.
pub struct Workbench<'a> {
    /// The encoder; without one only the n-gram rung runs and `auto` cannot find the specialist.
    pub encoder: Option<&'a dyn Embed>,
    /// Threads.
    pub pool: &'a Pool,
    /// Where the bundle goes.
    pub store: &'a SpecialistStore,
    /// Seed of split, permutations and resamples.
    pub seed: u64,
    /// How an encoder is tuned, where the task and its budget let that rung run.
    pub tuning: tuning::Recipe,
    /// The decoders, smallest first, where the task asks for a rung that runs on one.
    pub decoders: Vec<Arc<Decoder>>,
    /// Whom the task names as its teacher.
    pub teacher: Option<Teacher>,
}

/// What a build made and measured; the result line of `metier build --json`, and `run.json` beside the bundle.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BuildOutcome {
    /// Name of the specialist.
    pub name: String,
    /// The rung that was taken.
    pub rung: Stage,
    /// The task's metric.
    pub metric: String,
    /// Its value on the test rows (validation rows where there are none).
    pub value: f64,
    /// Its 95 % interval.
    pub interval: [f64; 2],
    /// Rows that it was measured on.
    pub n: u64,
    /// `test`, or `validation` where there are no test rows.
    pub measured_on: String,
    /// The risk bound that was asked for.
    pub epsilon: f64,
    /// Seconds in all.
    pub seconds: f64,
    /// Seconds of that spent on embeddings.
    pub embed_seconds: f64,
    /// Peak resident memory of the process, where the system tells.
    pub peak_rss_mb: Option<f64>,
    /// The certificate; `null`: everything is deferred.
    pub certificate: Option<Certificate>,
    /// Without a certificate: about how many calibration rows it would take; `null` if more would not help.
    pub rows_needed: Option<u64>,
    /// Share of test rows accepted and wrong; `null` without a certificate.
    pub test_loss: Option<f64>,
    /// Its exact 95 % interval.
    pub test_loss_interval: Option<[f64; 2]>,
    /// False only if that interval's lower end exceeds ε.
    pub held: Option<bool>,
    /// Share of test rows accepted.
    pub test_coverage: f64,
    /// Every rung that ran, smallest first.
    pub rungs: Vec<RungOutcome>,
    /// Id of the bundle.
    pub bundle: Digest,
    /// Its folder.
    pub path: PathBuf,
    /// Rows by part.
    pub rows: BTreeMap<String, u64>,
    /// Duplicates and contradictions.
    pub leak: LeakReport,
    /// Everything measured on the test rows.
    pub evaluation: EvalReport,
    /// Class mix of calibration against test rows.
    pub class_mix: Option<ClassMix>,
    /// The chosen rung made again from parts of the training rows; `null` where the budget or the rows did not reach.
    #[serde(default)]
    pub learning_curve: Option<LearningCurve>,
    /// How the adapter was trained, where there is one.
    #[serde(default)]
    pub training: Option<generate::TrainingLog>,
    /// Whether secrets that were put among its training rows come out again, where some were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memorisation: Option<Memorisation>,
    /// Rows that it gets wrong, worst first: those that it would answer alone, surest first, then those that it defers.
    #[serde(default)]
    pub failures: Vec<FailedRow>,
    /// What all of this allows to say.
    #[serde(default)]
    pub findings: Vec<Finding>,
    /// What a person should know, in sentences.
    pub notes: Vec<String>,
}

/// A row that the specialist gets wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FailedRow {
    /// `file:line`.
    pub place: String,
    /// The beginning of its text.
    pub text: String,
    /// What it is.
    pub gold: String,
    /// What it was called.
    pub called: String,
    /// How sure the specialist was.
    pub score: f32,
    /// Would it have answered alone?
    pub accepted: bool,
}

/// One rung, measured on the same rows as the outcome.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RungOutcome {
    /// Which.
    pub rung: Stage,
    /// The metric on the test rows.
    pub value: f64,
    /// Its 95 % interval.
    pub interval: [f64; 2],
    /// Seconds of training all its settings, embeddings not included.
    pub seconds: f64,
    /// The metric on validation rows, by which it was compared.
    pub validation: f64,
    /// Regularisation.
    pub c: f64,
    /// Scale of the embedding.
    pub embedding_scale: f64,
    /// How much n-grams weigh beside the vectors of its own network, where the two were fitted apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ngram_weight: Option<f64>,
    /// How much the frozen encoder's vectors weigh beside those of its own network, where they were added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen_weight: Option<f64>,
    /// Paired comparison with the best rung.
    pub against_best: Option<NonInferiority>,
    /// A point of the curve of depths, where its head reads a decoder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decoder: Option<Depth>,
}

impl RungOutcome {
    /// Whether this is the rung that was taken; `rung`: which one that was.
    pub fn is_taken(&self, rung: Stage) -> bool {
        self.rung == rung && self.decoder.as_ref().is_none_or(|depth| depth.is_chosen)
    }

    /// Its name, with the number of layers where some are left out.
    pub fn name(&self) -> String {
        match &self.decoder {
            Some(depth) => depth.rung_name(self.rung),
            None => self.rung.name().to_owned(),
        }
    }
}

/// The evaluation as it stands in the bundle (`evidence.json`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// `test`, or `validation` where there are no test rows.
    pub rows: String,
    /// Everything measured on them.
    pub evaluation: EvalReport,
    /// Class mix of calibration against these rows.
    pub class_mix: Option<ClassMix>,
}

/// A build or evaluation failed.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The task file.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// The rows.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The encoder.
    #[error("cannot embed the rows of `{name}`")]
    Embed {
        /// The task.
        name: String,
        /// Why.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// The encoder cannot be tuned.
    #[error("cannot tune the encoder for `{name}`")]
    Tune {
        /// The task.
        name: String,
        /// Why.
        #[source]
        source: TuneError,
    },
    /// The decoder cannot be tuned.
    #[error("cannot tune the decoder for `{name}`")]
    Decode {
        /// The task.
        name: String,
        /// Why.
        #[source]
        source: Box<decoder::DecoderTuneError>,
    },
    /// The bundle cannot be written.
    #[error("cannot write the bundle of `{name}`")]
    Bundle {
        /// The task.
        name: String,
        /// Why.
        #[source]
        source: Box<BundleError>,
    },
    /// The bundle cannot be stored.
    #[error("cannot store the bundle of `{name}`")]
    Store {
        /// The task.
        name: String,
        /// Why.
        #[source]
        source: Box<StoreError>,
    },
    /// A specialist cannot score rows.
    #[error("cannot score rows")]
    Answer(#[from] AnswerError),
    /// A specialist that writes cannot be made.
    #[error("cannot make `{name}`, whose answers are written")]
    Generate {
        /// The task.
        name: String,
        /// Why.
        #[source]
        source: generate::GenerateError,
    },
    /// Whom the task names as its teacher cannot teach it.
    #[error("cannot distil `{name}`")]
    Teach {
        /// The task.
        name: String,
        /// Why.
        #[source]
        source: Box<TeachError>,
    },
    /// A specialist reads embeddings and there is no encoder, or another one.
    #[error("specialist `{name}` cannot answer: {why}")]
    Encoder {
        /// The specialist.
        name: String,
        /// What is at hand in the place of what it was made with.
        why: String,
    },
}

/// Builds a specialist and puts it into the store, where it answers nothing yet: that is the registry's to say. `clock` gives the time since any fixed moment.
pub fn build(
    task: &TaskFile,
    bench: &Workbench<'_>,
    progress: &mut dyn FnMut(Progress<'_>),
    clock: &dyn Fn() -> Duration,
) -> Result<BuildOutcome, BuildError> {
    if let Some(extract) = &task.extract {
        return extract::build(task, extract, bench, progress, clock);
    }
    let start = clock();
    let elapsed = || clock().saturating_sub(start);
    progress(Progress { stage: "reading rows", done: 0, total: None, unit: Unit::Rows });
    let mut splits = match split::load_any(task, bench.seed)? {
        Loaded::Classes(splits) => *splits,
        Loaded::Sets(_) if task.distil.is_some() => {
            return Err(DataError::Task(lesson::SETS.to_owned()).into());
        }
        Loaded::Sets(loaded) => return sets::build(task, &loaded, bench, progress, &elapsed),
    };
    let task = &TaskFile { target: positive::resolve(task, &splits)?, ..task.clone() };
    let lesson = lesson::learn(task, &mut splits, bench, progress)?;
    let splits = splits;
    let embeddings = bench.encoder.map(|encoder| embed(task, &splits, encoder, bench.pool, progress)).transpose()?;
    let embed_seconds = elapsed().as_secs_f64();
    let deadline = Duration::from_secs_f64(task.budget_minutes * 60.0);
    let keeps = Some((bench.store.root(), task.name.as_str()));
    let run = Run { pool: bench.pool, seed: bench.seed, clock: &elapsed, deadline, keeps };
    let decoding = decoding(task);
    let ground = Ground {
        splits: &splits,
        inputs: &task.data.text,
        embeddings: embeddings.as_ref(),
        encoder: bench.encoder.and_then(Embed::as_encoder),
        decoders: &bench.decoders,
        from: task.from,
        up_to: task.up_to,
        tuning: &bench.tuning,
        decoding: &decoding,
        lesson: lesson.as_ref(),
        ngrams: task.ngrams,
    };
    let ladder = ladder::climb(ground, &task.target, &run, progress)
        .map_err(|source| BuildError::Tune { name: task.name.clone(), source })?;
    progress(Progress { stage: "proving", done: 0, total: None, unit: Unit::Steps });
    let (specialist, measured) = prove(task, &splits, embeddings.as_ref(), &ladder, bench)?;
    progress(Progress { stage: "learning curve", done: 0, total: None, unit: Unit::Steps });
    let shop =
        learning::Workshop { inputs: &task.data.text, pool: bench.pool, seed: bench.seed, clock: &elapsed, deadline };
    let rung = &ladder.rungs[ladder.chosen];
    let curve = learning::measure(&splits, embeddings.as_ref(), rung, task.target.metric, &shop);

    let (learning_curve, no_curve) = match curve {
        Ok(curve) => (Some(curve), None),
        Err(why) => (None, Some(why)),
    };
    let Measured { no_rule, no_front, evidence, rungs, failures } = measured;
    let manifest = specialist.manifest();
    let mut notes = notes(task, &splits, &ladder, manifest, &evidence.rows, evidence.class_mix.as_ref());
    notes.extend(no_curve);
    notes.extend(no_rule.map(|why| format!("no rule tells what is out of scope: {why}")));
    notes.extend(no_front.map(|why| format!("one stage, although two were asked for: {why}")));
    notes.extend(cascade::note(&evidence, manifest.first.as_ref().and_then(|first| first.share)));
    // Of the decoder that was taken, else of the first.
    let taken = manifest.decoder().map(|decoder| decoder.digest);
    let log = ladder.decoders.iter().find(|log| Some(log.base) == taken).or(ladder.decoders.first());
    let training = log.map(TrainingLog::of_decoder);
    let product = Product {
        specialist,
        evidence,
        rungs,
        failures,
        learning_curve,
        training,
        memorisation: None,
        notes,
        embed_seconds,
    };
    let outcome = ship(task, &splits, bench, product, &elapsed)?;
    checkpoint::remove(bench.store.root(), &task.name, ladder::ENCODER_CHECKPOINT);
    ladder::remove_decoder_checkpoints(bench.store.root(), &task.name);
    Ok(outcome)
}

/// How a decoder is tuned for a task.
pub(crate) fn decoding(task: &TaskFile) -> decoder::Recipe {
    let (tune, prune) = (&task.tune, &task.prune);
    decoder::Recipe {
        lora: LoraConfig { r: tune.rank, alpha: tune.alpha },
        epochs: tune.epochs,
        learning_rate: tune.learning_rate,
        heal_epochs: prune.heal_epochs,
        depths: prune.keep.clone(),
        weights: tune.weights,
        ..decoder::Recipe::default()
    }
}

/// Scores a file with a specialist; columns as in a task file. The metric is accuracy.
pub fn evaluate(
    specialist: &Specialist,
    encoder: Option<&dyn Embed>,
    pool: &Pool,
    file: &Path,
    columns: &Columns<'_>,
    seed: u64,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<EvalReport, BuildError> {
    let manifest = specialist.manifest();
    if manifest.kind == Kind::Extract {
        return extract::evaluate(specialist, encoder, pool, file, columns, seed, progress);
    }
    if manifest.multi_label.is_some() {
        return sets::evaluate(specialist, encoder, pool, file, columns, seed, progress);
    }
    if manifest.decoder().is_some() {
        let why = "it runs on a decoder, and there is none".to_owned();
        return Err(BuildError::Encoder { name: manifest.name.clone(), why });
    }
    let rows = table::read(file, columns)?;
    let examples = split::examples(rows, &manifest.labels)?;
    let embeddings = embedded(specialist, encoder, pool, &examples, progress)?;
    let answers = examples
        .iter()
        .enumerate()
        .map(|(at, example)| {
            let embedding = embeddings.as_ref().map(|all| all[at].as_slice());
            specialist.answer(&example.row.text, embedding)
        })
        .collect::<Result<Vec<_>, AnswerError>>()?;
    Ok(answered(manifest, &examples, &answers, columns, seed))
}

/// The report of a file's rows and the answers that were given to them.
fn answered(
    manifest: &Manifest,
    examples: &[Example],
    answers: &[Answer],
    columns: &Columns<'_>,
    seed: u64,
) -> EvalReport {
    let scored: Vec<ScoredRow> =
        examples.iter().zip(answers).map(|(example, answer)| ScoredRow::new(example, answer)).collect();
    let metric = positive::recorded(&manifest.recipe, &manifest.labels);
    let yardstick = yardstick(manifest, metric, columns.reference.is_some(), &[], seed);
    let (stages, hierarchy) = (by_stage(manifest, answers, &scored), by_depth(manifest, &scored, seed));
    EvalReport { stages, hierarchy, ..evaluation::evaluate(&scored, &yardstick) }
}

struct Measured {
    /// Why there is no rule for what is out of scope, where the task asks for one.
    no_rule: Option<String>,
    /// Why no stage is asked first, where the task asks for one.
    no_front: Option<String>,
    evidence: Evidence,
    rungs: Vec<RungOutcome>,
    failures: Vec<FailedRow>,
}

/// Calibrates and certifies the chosen rung, and measures all of them.
fn prove(
    task: &TaskFile,
    splits: &Splits,
    embeddings: Option<&Embeddings>,
    ladder: &Ladder,
    bench: &Workbench<'_>,
) -> Result<(Specialist, Measured), BuildError> {
    let rung = &ladder.rungs[ladder.chosen];
    let validation = splits.part(Part::Validation);
    let gold: Vec<usize> = validation.iter().map(|example| example.class).collect();
    let none = task.data.out_of_scope.as_ref().and_then(|label| splits.labels.binary_search(label).ok());
    let rule = match (none, task.in_scope) {
        (Some(none), Some(keep)) => Some(rejection::fit(&rung.validation, &gold, none, keep)),
        _ => None,
    };
    let (scope, no_rule) = match rule {
        Some(Ok(rule)) => (Some(rule), None),
        Some(Err(why)) => (None, Some(why)),
        None => (None, None),
    };
    // What the rule makes of margins; without one they stay.
    let ruled = |margins: &[Vec<f32>]| match (scope, none) {
        (Some(rule), Some(none)) => margins.iter().map(|row| rule.apply(row, none)).collect(),
        _ => margins.to_vec(),
    };
    let settled = ruled(&rung.validation);
    let calibrator = calibrate::fit(&settled, &gold);
    let (front, no_front) = match task.stages {
        ..2 => (None, None),
        _ => {
            let choice = Choice {
                target: &task.target,
                gold: &gold,
                last: &ladder::calls(&settled),
                n_classes: splits.labels.len(),
                none: none.zip(task.in_scope),
                seed: bench.seed,
            };
            choice.front(ladder).map_or_else(|why| (None, Some(why)), |front| (Some(front), None))
        }
    };
    let pairs = [Some(rung), front.as_ref().map(|front| front.rung)].into_iter().flatten();
    let pairs = pairs.filter_map(|rung| rung.own.as_ref()?.pairs.clone()).next();
    let seen = Validation { margins: &settled, gold: &gold, calibrator: &calibrator };
    let hierarchy = cascade::hierarchy(task, &splits.labels, seen);
    let reads_ngrams =
        rung.stage.has_ngrams(&rung.head) || front.as_ref().is_some_and(|front| front.stage.stage.reads_ngrams());
    let decoder = rung.own.as_ref().and_then(|own| own.decoder.as_ref());
    let mut manifest = Manifest {
        format: FORMAT,
        name: task.name.clone(),
        kind: Kind::Classify,
        instruction: task.instruction.clone(),
        inputs: task.data.text.clone(),
        labels: splits.labels.clone(),
        out_of_scope: task.data.out_of_scope.clone(),
        may_leave: task.may_leave,
        stage: rung.stage,
        base: bench.encoder.map(Embed::base),
        generation: None,
        hidden: decoder.map(|own| Hidden {
            decoder: own.base.clone(),
            kept_layers: own.kept_layers(),
            adapter_weights: task.tune.weights,
        }),
        reads_base: rung.own.as_ref().is_some_and(|own| own.reads_base),
        features: reads_ngrams.then(|| FEATURE_FORMAT.to_owned()),
        pairs: pairs
            .as_ref()
            .map(|pairs| PairsRecord { format: PAIR_FORMAT.to_owned(), fields: pairs.features.fields().to_vec() }),
        calibrator,
        scores: None,
        scope,
        multi_label: None,
        hierarchy,
        first: front.as_ref().map(|front| front.stage.clone()),
        certificate: None,
        refusal: None,
        recipe: Recipe {
            seed: bench.seed,
            metric: task.target.metric.name().to_owned(),
            positive: match task.target.metric {
                Metric::F1 { positive } => Some(splits.labels[positive].clone()),
                _ => None,
            },
            margin: task.target.margin,
            epsilon: task.target.epsilon,
            delta: task.target.delta,
            rows: splits.counts(),
            data: splits.files.clone(),
            rungs: ladder.rungs.iter().map(|rung| rung.record.clone()).collect(),
            teacher: ladder.teacher.clone(),
        },
        files: BTreeMap::new(),
    };
    let mut specialist = Specialist::from_contents(Contents {
        manifest: manifest.clone(),
        features: reads_ngrams.then(|| ladder.features.clone()),
        head: Some(rung.head.clone()),
        first: front.as_ref().map(|front| front.rung.head.clone()),
        encoder: rung.own.as_ref().and_then(|own| own.file.clone()),
        adapter: decoder.map(|own| own.files.clone()),
        schema: None,
        pairs,
        neighbours: embeddings.and_then(|all| neighbours(splits, all, task.data.out_of_scope.as_deref())),
        probe: Vec::new(),
        evidence: String::new(),
    });

    let stages = Stages { splits, ladder, embeddings, front: front.as_ref() };
    stages.certify(&specialist, &task.target, &mut manifest);
    let mut contents = specialist.into_contents();
    contents.manifest = manifest;
    specialist = Specialist::from_contents(contents);

    let part = measured_part(splits);
    let manifest = specialist.manifest();
    let none_label = task.data.out_of_scope.as_deref();
    let in_scope = (validation.iter().zip(&settled)).filter(|(example, _)| none_label != Some(&example.row.label));
    let scores = in_scope
        .map(|(example, margins)| (manifest.calibrator.score(margins), calibrate::predicted(margins) == example.class));
    let yardstick = Yardstick {
        reject_below: none_label.and_then(|_| rejection::threshold(scores, rejection::IN_SCOPE_RIGHT)),
        ..yardstick(manifest, task.target.metric, task.reference.is_some(), &task.data.slice, bench.seed)
    };
    let (answers, scored) = stages.scored(&specialist, part);
    let mut evaluation = evaluation::evaluate(&scored, &yardstick);
    (evaluation.stages, evaluation.hierarchy) =
        (by_stage(manifest, &answers, &scored), by_depth(manifest, &scored, bench.seed));
    if let (Some(rule), Some(none), Some(figures)) = (scope, none, &mut evaluation.out_of_scope) {
        let held = Held::of(splits, part, &ladder.features, rung.embeddings(embeddings));
        figures.operating = rejection::operating(&held.margins(&rung.head), &held.classes, none, &rule);
    }
    let said = |at: usize| (splits.labels[scored[at].gold].clone(), answers[at].label.clone());
    let failures = failures(splits.part(part).iter().zip(scored.iter().map(Into::into)), said);
    let classes = |part| splits.part(part).iter().map(|example| example.class).collect::<Vec<_>>();
    let class_mix = evaluation::class_mix(&classes(Part::Calibration), &classes(part), &splits.labels);
    let evidence = Evidence { rows: part.name().to_owned(), evaluation, class_mix };

    let rungs = ladder.rungs.iter().enumerate().map(|(at, rung)| {
        let held = Held::of(splits, part, &ladder.features, rung.embeddings(embeddings));
        let margins = held.margins(&rung.head);
        // The rule is that of the rung that ships.
        let calls = ladder::calls(&if at == ladder.chosen { ruled(&margins) } else { margins });
        let measured = metrics::measure(task.target.metric, &calls, &held.classes, splits.labels.len(), bench.seed);
        let depth = rung.own.as_ref().and_then(|own| own.decoder.as_ref()).map(|own| own.depth.clone());
        RungOutcome::of(&rung.record, measured, rung.seconds, depth)
    });
    let rungs = rungs.collect();
    let (answers, _) = stages.scored(&specialist, Part::Validation);
    let probe = probe(validation.iter(), |row| (answers[row].label.clone(), answers[row].score));
    let mut contents = specialist.into_contents();
    contents.probe = probe;
    contents.evidence = serde_json::to_string_pretty(&evidence).expect("evidence is JSON");
    Ok((Specialist::from_contents(contents), Measured { no_rule, no_front, evidence, rungs, failures }))
}

fn notes(
    task: &TaskFile,
    splits: &Splits,
    ladder: &Ladder,
    manifest: &Manifest,
    measured_on: &str,
    class_mix: Option<&ClassMix>,
) -> Vec<String> {
    let mut notes = base_notes(task, splits, manifest, measured_on);
    const SURPRISING: f64 = 0.01;
    if let Some(mix) = class_mix.filter(|mix| mix.p_value < SURPRISING) {
        notes.push(format!(
            "calibration and {measured_on} rows differ in class mix (`{}`: {:.1} % against {:.1} %): the certificate speaks \
             of traffic like the calibration rows",
            mix.label,
            100.0 * mix.calibration,
            100.0 * mix.test
        ));
    }
    notes.extend(ladder_notes(task, ladder.out_of_time, &ladder.skipped, &ladder.not_made));
    notes.extend(ladder.teacher.as_ref().map(TeacherRecord::told));
    let rounded = ladder.rungs[ladder.chosen].record.adapter.as_ref().and_then(|adapter| adapter.rounded);
    notes.extend(rounded.map(|rounded| rounded.told(task.target.metric.name())));
    if manifest.base.is_none() && task.up_to > Stage::Linear && ladder.rungs[ladder.chosen].stage == Stage::Linear {
        notes.push(
            "no encoder was at hand: only the n-gram rung ran, and `auto` cannot find this specialist".to_owned(),
        );
    }
    notes
}

/// What a ladder did not try, and why.
fn ladder_notes(
    task: &TaskFile,
    out_of_time: bool,
    skipped: &[SkippedRung],
    not_made: &[(String, String)],
) -> Vec<String> {
    let mut notes = Vec::new();
    if out_of_time {
        notes.push(format!("the budget of {} minutes ended before every setting was tried", task.budget_minutes));
    }
    notes.extend(skipped.iter().map(|skipped| {
        format!(
            "rung `{}` was not tried: it needs about {:.1} minutes, and {:.1} of the budget of {} are left",
            skipped.name,
            skipped.needed_seconds / 60.0,
            skipped.left_seconds / 60.0,
            task.budget_minutes
        )
    }));
    notes.extend(not_made.iter().map(|(name, why)| format!("rung `{name}` was not made: {why}")));
    notes
}

/// What is said of every kind of build.
fn base_notes(task: &TaskFile, splits: &Splits, manifest: &Manifest, measured_on: &str) -> Vec<String> {
    let mut notes = Vec::new();
    let leak = &splits.leak;
    if leak.removed > 0 {
        notes.push(format!(
            "{} training rows were left out: {} equal and {} nearly equal to calibration or test rows, {} of their groups",
            leak.removed, leak.exact, leak.near, leak.same_group
        ));
    }
    if leak.contradictions > 0 {
        notes.push(format!("{} rows repeat a text with another label", leak.contradictions));
    }
    if splits.moved_to_train > 0 {
        notes.push(format!("{} rows went to training because their label had none there", splits.moved_to_train));
    }
    if let Some(refusal) = &manifest.refusal {
        let (epsilon, delta) = (task.target.epsilon, task.target.delta);
        notes.push(match refusal.rows_needed {
            Some(rows) => format!(
                "no certificate at ε = {epsilon}, δ = {delta}: {} calibration rows, needs about {rows}; everything is deferred",
                refusal.n
            ),
            None => format!(
                "no certificate at ε = {epsilon}, δ = {delta}: its surest answers on {} calibration rows err too often, \
                 more rows would not help; everything is deferred",
                refusal.n
            ),
        });
    }
    if measured_on == Part::Validation.name() {
        notes
            .push("there are no test rows: figures are those of validation rows, which also chose the rung".to_owned());
    }
    notes
}
