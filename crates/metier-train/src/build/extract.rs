//! A build of an extraction: align, tune, read, calibrate, certify, measure, write. Which rows may be used for what is the same as for
//! every build.
//!
//! ```text
//! train ───────► values that the lookup remembers · layers and head
//! validation ──► epoch · lines of the scores · probe rows · match threshold
//! calibration ─► certificate on "any field wrong", once, for exactly the weights that ship
//! test ────────► what is reported
//! ```

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use metier_kernels::Pool;
use metier_model::{
    Digest, Encoder, Progress, Specialist, Unit,
    extract::{Extractor, Field, ReadError, Reading, Schema, Scores, Span, Tokenised, log_odds},
    proof::{Calibrator, Method, NonInferiority, Paired},
    specialist::{
        Contents, EncoderFile, Neighbours,
        manifest::{FORMAT, Kind, Manifest, Recipe, RungRecord, Stage, TuningRecord},
    },
};
use serde_json::Value;

use super::{
    BuildError, BuildOutcome, Evidence, RungOutcome, Workbench,
    measured::{MATCH_MISSES, Mark, failures, groups, measured_part, own_encoder, probe, yardstick},
    ship::{Product, ship},
};
use crate::{
    craft::{
        checkpoint::{self, Keeper},
        encoder::Run,
        ladder::{ENCODER_CHECKPOINT, decimal},
        lookup::Lookup,
        span::{self, SpanCounts, TaggedText, Tagger},
    },
    data::{
        Part, Splits, TaskFile,
        extract::{self, Alignment, ExtractMetric, ExtractTask, Gold, RawTune, same},
        split::{self, Example},
        table::{self, Columns},
        task::Metric,
    },
    embed::Embed,
    eval::{
        EvalReport, ScoredRow, calibrate,
        certify::certify,
        evaluation::{self, Confusion, ExtractFigures},
        metrics::{self, ClassMetrics, Measured},
    },
};

/// Rows that are read together.
const ROWS_AT_A_TIME: usize = 64;
/// Training rows that are embedded to find the task's place among all texts.
const MAX_CENTRE_ROWS: usize = 2_000;
/// Confusions that are listed.
const MAX_CONFUSIONS: usize = 20;

/// A row with its words and what it says.
pub(crate) struct Aligned<'a> {
    pub(crate) example: &'a Example,
    pub(crate) text: Tokenised,
    pub(crate) gold: Gold,
}

/// One row as something answered it.
pub(crate) struct Outcome {
    pub(crate) values: Vec<Vec<Value>>,
    spans: Vec<Span>,
    pub(crate) counts: Pairs,
}

/// Pairs of field and value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pairs {
    right: u64,
    found: u64,
    gold: u64,
}

impl Pairs {
    fn add(&mut self, other: Self) {
        *self = Self { right: self.right + other.right, found: self.found + other.found, gold: self.gold + other.gold };
    }

    fn f1(self) -> f64 {
        SpanCounts { right: self.right, found: self.found, gold: self.gold }.f1()
    }

    pub(crate) fn is_right(self) -> bool {
        self.right == self.found && self.right == self.gold
    }
}

/// Builds a specialist that extracts.
pub(super) fn build(
    task: &TaskFile,
    extract: &ExtractTask,
    bench: &Workbench<'_>,
    progress: &mut dyn FnMut(Progress<'_>),
    clock: &dyn Fn() -> Duration,
) -> Result<BuildOutcome, BuildError> {
    let start = clock();
    let elapsed = || clock().saturating_sub(start);
    progress(Progress { stage: "reading rows", done: 0, total: None, unit: Unit::Rows });
    let splits = split::load_texts(task, bench.seed)?;
    let encoder = bench.encoder.and_then(Embed::as_encoder).ok_or_else(|| BuildError::Encoder {
        name: task.name.clone(),
        why: "an extraction is made over an encoder, and there is none".to_owned(),
    })?;
    let mut parts: [Vec<Aligned<'_>>; 4] = Default::default();
    let mut alignment = Alignment::default();
    for part in Part::ALL {
        for example in splits.part(part) {
            let aligned = align(example, encoder, extract, &task.name)?;
            alignment.add(&example.row, &aligned.gold, &extract.schema);
            parts[part as usize].push(aligned);
        }
    }
    if parts[Part::Train as usize].iter().all(|row| row.gold.spans.is_empty()) {
        return Err(crate::data::DataError::Task(format!(
            "no value of any training row stands in its text: there is nothing to learn ({} values; is `data.output` the right column?)",
            alignment.values
        ))
        .into());
    }
    let neighbours = neighbours(task, &splits, encoder, bench.pool, progress)?;
    let embed_seconds = elapsed().as_secs_f64();

    let lookup = Lookup::fit(
        parts[0]
            .iter()
            .map(|row| (row.example.row.text.as_str(), row.text.words.as_slice(), row.gold.spans.as_slice())),
    );
    let lookup_seconds = elapsed().as_secs_f64() - embed_seconds;
    let deadline = Duration::from_secs_f64(task.budget_minutes * 60.0);
    let run = Run { pool: bench.pool, seed: bench.seed, clock: &elapsed, deadline };
    let (tuned, tuning, shortened) = tune(task, extract, encoder, &parts, bench.store.root(), &run, progress)?;
    let tune_seconds = elapsed().as_secs_f64() - embed_seconds - lookup_seconds;

    progress(Progress { stage: "proving", done: 0, total: None, unit: Unit::Steps });
    let file = EncoderFile(Arc::new(tuned.file));
    // Readings of exactly what ships: numbers in 16 bits, in the form that this base is kept in, through the code that serves.
    let own = own_encoder(&task.name, encoder, &file.0)?;
    let extractor = Extractor { schema: &extract.schema, head: &tuned.head, encoder: &own };
    let readings = |part: Part, progress: &mut dyn FnMut(Progress<'_>)| {
        let texts: Vec<&str> = parts[part as usize].iter().map(|row| row.example.row.text.as_str()).collect();
        read(&extractor, bench.pool, &texts, &task.name, progress)
    };
    let validation = readings(Part::Validation, progress)?;
    let fields = extract.schema.fields();
    let judged = judge(&parts[Part::Validation as usize], &validation, fields);
    let scores = fit_scores(&parts[Part::Validation as usize], &validation, &judged);

    let calls = |part: Part| looked_up(&parts[part as usize], &lookup, fields);
    let looked = calls(Part::Validation);
    let against = compare(&looked, &judged, task.target.margin);
    let record = |rung: Stage, outcomes: &[Outcome], tuning: Option<TuningRecord>, against: Option<NonInferiority>| {
        let measured = measure(extract.metric, outcomes, bench.seed);
        let (validation, interval) = (measured.value, measured.interval);
        RungRecord { against_best: against, tuning, ..RungRecord::new(rung, validation, interval) }
    };
    let records =
        vec![record(Stage::Lookup, &looked, None, Some(against)), record(Stage::Span, &judged, Some(tuning), None)];

    let manifest = Manifest {
        generation: None,
        hidden: None,
        reads_base: false,
        pairs: None,
        format: FORMAT,
        name: task.name.clone(),
        kind: Kind::Extract,
        instruction: task.instruction.clone(),
        inputs: task.data.text.clone(),
        labels: fields.iter().map(|field| field.name.clone()).collect(),
        out_of_scope: None,
        may_leave: task.may_leave,
        stage: Stage::Span,
        base: Some(encoder.base().clone()),
        features: None,
        calibrator: Calibrator { inverse_temperature: 1.0, method: Method::Softmax },
        scores: Some(scores),
        scope: None,
        multi_label: None,
        hierarchy: None,
        first: None,
        certificate: None,
        refusal: None,
        recipe: Recipe {
            seed: bench.seed,
            metric: extract.metric.name().to_owned(),
            positive: None,
            margin: task.target.margin,
            epsilon: task.target.epsilon,
            delta: task.target.delta,
            rows: splits.counts(),
            data: splits.files.clone(),
            rungs: records.clone(),
            teacher: None,
        },
        files: BTreeMap::new(),
    };
    let contents = Contents {
        pairs: None,
        manifest,
        features: None,
        head: Some(tuned.head.clone()),
        first: None,
        adapter: None,
        encoder: Some(file.clone()),
        neighbours,
        schema: Some(extract.schema.source().to_owned()),
        probe: Vec::new(),
        evidence: String::new(),
    };

    let calibration = readings(Part::Calibration, progress)?;
    let outcomes = judge(&parts[Part::Calibration as usize], &calibration, fields);
    let losses: Vec<(f32, f64)> = calibration
        .iter()
        .zip(&outcomes)
        .map(|(reading, outcome)| (reading.score(&scores), f64::from(u8::from(!is_right(reading, outcome)))))
        .collect();
    let groups = groups(splits.part(Part::Calibration));
    let mut contents = contents;
    match certify(&losses, false, groups.as_ref(), (task.target.epsilon, task.target.delta)) {
        Ok(certificate) => contents.manifest.certificate = Some(certificate),
        Err(refusal) => contents.manifest.refusal = Some(refusal),
    }
    let specialist = Specialist::from_contents(contents);

    let part = measured_part(&splits);
    let read_on = readings(part, progress)?;
    let rows = &parts[part as usize];
    let outcomes = judge(rows, &read_on, fields);
    let figures = Figures {
        metric: extract.metric,
        seed: bench.seed,
        slices: &task.data.slice,
        alignment: Some(alignment.clone()),
    };
    let mut evaluation = report(&specialist, rows, &read_on, &outcomes, &figures);
    let looked = calls(part);
    if let Some(extract) = &mut evaluation.extract {
        extract.lookup_f1 = Some(measure(ExtractMetric::FieldF1, &looked, bench.seed));
    }
    let marks = rows.iter().zip(read_on.iter().zip(&outcomes)).map(|(row, (reading, outcome))| {
        let answer = specialist.answer_of(reading);
        let right = is_right(reading, outcome);
        (row.example, Mark { right, score: answer.score, accepted: answer.accepted })
    });
    let failures = failures(marks, |at| differences(&rows[at].gold.values, &outcomes[at].values, fields));
    let evidence = Evidence { rows: part.name().to_owned(), evaluation, class_mix: None };
    let measured = [(&records[0], &looked, lookup_seconds), (&records[1], &outcomes, tune_seconds)];
    let rungs = measured.map(|(record, outcomes, seconds)| {
        let measured = measure(extract.metric, outcomes, bench.seed);
        RungOutcome::of(record, measured, seconds, None)
    });
    let rows = parts[Part::Validation as usize].iter().map(|row| row.example);
    let probe = probe(rows, |at| {
        let answer = specialist.answer_of(&validation[at]);
        (answer.label, answer.score)
    });
    let mut contents = specialist.into_contents();
    contents.probe = probe;
    contents.evidence = serde_json::to_string_pretty(&evidence).expect("evidence is JSON");
    let specialist = Specialist::from_contents(contents);

    let mut notes = super::base_notes(task, &splits, specialist.manifest(), &evidence.rows);
    notes.extend(alignment_notes(&alignment));
    notes.extend(shortened);
    notes.push("no learning curve is measured for extractions".to_owned());
    let (rungs, learning_curve, training) = (rungs.into(), None, None);
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
    checkpoint::remove(bench.store.root(), &task.name, ENCODER_CHECKPOINT);
    Ok(outcome)
}

/// Scores a file with a specialist that extracts.
pub(super) fn evaluate(
    specialist: &Specialist,
    encoder: Option<&dyn Embed>,
    pool: &Pool,
    file: &Path,
    columns: &Columns<'_>,
    seed: u64,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<EvalReport, BuildError> {
    let manifest = specialist.manifest();
    let wrong = |why: &str| BuildError::Encoder { name: manifest.name.clone(), why: why.to_owned() };
    let (Some(schema), Some(layers), Some(head)) = (specialist.schema(), specialist.encoder_file(), specialist.head())
    else {
        return Err(wrong("it has no schema, no tags or no encoder of its own"));
    };
    let base = encoder.ok_or_else(|| wrong("it reads with an encoder, and there is none"))?;
    if let Some(why) = manifest.base.as_ref().and_then(|made_with| made_with.mismatch(&base.base())) {
        return Err(wrong(&why));
    }
    let own = own_encoder(&manifest.name, base, &layers.0)?;
    let rows = table::read(file, columns)?;
    // A list in the place of an answer holds spans.
    let is_spans = rows.first().is_some_and(|row| row.label.trim_start().starts_with('['));
    let task = ExtractTask {
        schema: schema.clone(),
        spans: is_spans.then(|| columns.label.to_owned()),
        has_output: !is_spans,
        metric: if manifest.recipe.metric == ExtractMetric::ExactMatch.name() {
            ExtractMetric::ExactMatch
        } else {
            ExtractMetric::FieldF1
        },
        tune: RawTune::default(),
    };
    let examples: Vec<Example> = rows.into_iter().map(|row| Example { row, class: 0 }).collect();
    let rows =
        examples.iter().map(|example| align(example, &own, &task, &manifest.name)).collect::<Result<Vec<_>, _>>()?;
    let mut alignment = Alignment::default();
    rows.iter().for_each(|row| alignment.add(&row.example.row, &row.gold, schema));
    let extractor = Extractor { schema, head, encoder: &own };
    let texts: Vec<&str> = rows.iter().map(|row| row.example.row.text.as_str()).collect();
    let readings = read(&extractor, pool, &texts, &manifest.name, progress)?;
    let outcomes = judge(&rows, &readings, schema.fields());
    Ok(report(
        specialist,
        &rows,
        &readings,
        &outcomes,
        &Figures { metric: task.metric, seed, slices: &[], alignment: Some(alignment) },
    ))
}

pub(crate) fn align<'a>(
    example: &'a Example,
    encoder: &Encoder,
    task: &ExtractTask,
    name: &str,
) -> Result<Aligned<'a>, BuildError> {
    let text = Tokenised::of(encoder, &example.row.text).map_err(|source| read_error(name, source))?;
    let gold = extract::gold(&example.row, &text.words, task)?;
    Ok(Aligned { example, text, gold })
}

fn read_error(name: &str, source: ReadError) -> BuildError {
    BuildError::Embed { name: name.to_owned(), source: source.into() }
}

pub(crate) fn read(
    extractor: &Extractor<'_>,
    pool: &Pool,
    texts: &[&str],
    name: &str,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Vec<Reading>, BuildError> {
    let mut all = Vec::with_capacity(texts.len());
    for chunk in texts.chunks(ROWS_AT_A_TIME) {
        progress(Progress {
            stage: "reading",
            done: all.len() as u64,
            total: Some(texts.len() as u64),
            unit: Unit::Rows,
        });
        all.extend(extractor.read_all(pool, chunk).map_err(|source| read_error(name, source))?);
    }
    Ok(all)
}

/// Trains, in as many epochs as the budget holds.
fn tune(
    task: &TaskFile,
    extract: &ExtractTask,
    encoder: &Encoder,
    parts: &[Vec<Aligned<'_>>; 4],
    store: &Path,
    run: &Run<'_>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(span::TunedSpans, TuningRecord, Option<String>), BuildError> {
    let error = |source| BuildError::Tune { name: task.name.clone(), source };
    let tagged = |part: Part| -> Vec<TaggedText> {
        parts[part as usize]
            .iter()
            .map(|row| TaggedText::new(encoder, &row.example.row.text, &row.text, row.gold.spans.clone()))
            .collect()
    };
    let (train, validation) = (tagged(Part::Train), tagged(Part::Validation));
    let mut recipe = span::Recipe::for_rows(train.len());
    let RawTune { epochs, learning_rate, batch_rows } = extract.tune;
    recipe.learning_rate = learning_rate.unwrap_or(recipe.learning_rate);
    recipe.batch_rows = batch_rows.unwrap_or(recipe.batch_rows);
    recipe.epochs = epochs.unwrap_or(recipe.epochs);
    let n_fields = extract.schema.fields().len();
    let keeper = Keeper::new(store, &task.name, ENCODER_CHECKPOINT, plan(encoder, extract, &recipe, run, parts));
    let wanted = recipe.epochs;
    // What was begun once goes on: how many passes fit was decided then.
    match span::begun(&keeper) {
        Some(planned) => recipe.epochs = planned,
        None => {
            let mut tagger = Tagger::new(encoder, &train, &validation, n_fields, &recipe, run.seed).map_err(error)?;
            let epoch = tagger.probe(run);
            let left = run.deadline.saturating_sub((run.clock)());
            let fit = left.as_secs_f64() / epoch.as_secs_f64().max(1e-9);
            if fit < wanted as f64 {
                recipe.epochs = (fit as usize).max(1);
            }
        }
    }
    let shortened = (recipe.epochs < wanted).then(|| {
        format!(
            "the budget of {} minutes holds {} of {wanted} passes over the training rows",
            task.budget_minutes, recipe.epochs
        )
    });
    let mut tagger = Tagger::new(encoder, &train, &validation, n_fields, &recipe, run.seed).map_err(error)?;
    tagger.keep(keeper);
    let tuned = tagger.learn(run, progress, &mut |_| (), &mut |_| ()).map_err(error)?;
    let record = TuningRecord {
        epochs: tuned.epochs.len() as u64,
        best_epoch: tuned.best as u64,
        batch_rows: recipe.batch_rows as u64,
        learning_rate: decimal(recipe.learning_rate),
        dropout: decimal(recipe.dropout),
        smoothing: 0.0,
        r_drop: 0.0,
        contrast: 0.0,
    };
    Ok((tuned, record, shortened))
}

/// Everything that the tuned numbers hang on, the number of passes aside: that is kept with them.
fn plan(
    encoder: &Encoder,
    extract: &ExtractTask,
    recipe: &span::Recipe,
    run: &Run<'_>,
    parts: &[Vec<Aligned<'_>>; 4],
) -> Digest {
    let (base, tier) = (encoder.base().digest, run.pool.tier());
    let mut plan = format!("spans 1\n{base}\n{recipe:?}\n{}\n{tier}\n{}\n", run.seed, extract.schema.source());
    for row in parts[Part::Train as usize].iter().chain(&parts[Part::Validation as usize]) {
        plan += &format!("{} {:?}\n", Digest::of(row.example.row.text.as_bytes()), row.gold.spans);
    }
    Digest::of(plan.as_bytes())
}

/// One unit vector for all texts of the task, and the cosine that all but [`MATCH_MISSES`] of the validation rows reach.
fn neighbours(
    task: &TaskFile,
    splits: &Splits,
    encoder: &Encoder,
    pool: &Pool,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Option<Neighbours>, BuildError> {
    let mut embed = |part: Part| {
        let rows = splits.part(part);
        let step = rows.len().div_ceil(MAX_CENTRE_ROWS).max(1);
        let texts: Vec<&str> = rows.iter().step_by(step).map(|example| example.row.text.as_str()).collect();
        let error =
            |source: metier_model::EncoderError| BuildError::Embed { name: task.name.clone(), source: source.into() };
        encoder.embed_all(pool, &texts, progress).map_err(error)
    };
    let (train, validation) = (embed(Part::Train)?, embed(Part::Validation)?);
    let mut centre = vec![0.0f32; encoder.dim()];
    train.iter().for_each(|row| centre.iter_mut().zip(row).for_each(|(sum, x)| *sum += x));
    let norm = centre.iter().map(|x| x * x).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
    centre.iter_mut().for_each(|x| *x /= norm);
    let mut near: Vec<f64> =
        validation.iter().map(|row| f64::from(row.iter().zip(&centre).map(|(a, b)| a * b).sum::<f32>())).collect();
    near.sort_by(f64::total_cmp);
    let match_threshold = if near.is_empty() { 1.0 } else { metrics::quantile(&near, MATCH_MISSES) as f32 };
    Ok(Some(Neighbours { centroids: vec![centre], match_threshold }))
}

/// Pairs that are right; each gold value counts once.
fn pairs(found: &[Vec<Value>], gold: &[Vec<Value>]) -> Pairs {
    let mut all = Pairs::default();
    for (found, gold) in found.iter().zip(gold) {
        let mut open: Vec<&Value> = gold.iter().collect();
        for value in found {
            if let Some(at) = open.iter().position(|gold| same(value, gold)) {
                open.swap_remove(at);
                all.right += 1;
            }
        }
        all.found += found.len() as u64;
        all.gold += gold.len() as u64;
    }
    all
}

/// What a reading says of each row.
pub(crate) fn judge(rows: &[Aligned<'_>], readings: &[Reading], fields: &[Field]) -> Vec<Outcome> {
    let judge = |(row, reading): (&Aligned<'_>, &Reading)| {
        let mut values = vec![Vec::new(); fields.len()];
        reading.found.iter().for_each(|found| values[found.field].push(found.value.clone()));
        let spans = reading.spans.iter().map(|(span, _)| span.clone()).collect();
        Outcome { counts: row_pairs(&values, row), values, spans }
    };
    rows.iter().zip(readings).map(judge).collect()
}

/// The same of the lookup.
pub(crate) fn looked_up(rows: &[Aligned<'_>], lookup: &Lookup, fields: &[Field]) -> Vec<Outcome> {
    let look = |row: &Aligned<'_>| {
        let (text, words) = (row.example.row.text.as_str(), &row.text.words);
        let spans = lookup.spans(text, words);
        let mut values = vec![Vec::new(); fields.len()];
        for span in &spans {
            let field = &fields[span.field];
            let value = field.value(&text[words[span.words.start].start..words[span.words.end - 1].end]);
            let of = &mut values[span.field];
            of.extend(value.filter(|value| of.len() < field.most() && !of.contains(value)));
        }
        Outcome { counts: row_pairs(&values, row), values, spans }
    };
    rows.iter().map(look).collect()
}

/// A value whose words cannot be read by the field's rule is missed as well.
fn row_pairs(values: &[Vec<Value>], row: &Aligned<'_>) -> Pairs {
    let mut counts = pairs(values, &row.gold.values);
    let known: usize =
        row.gold.unplaced.iter().filter(|(field, value)| !row.gold.values[*field].contains(value)).count();
    counts.gold += known as u64;
    counts
}

pub(crate) fn is_right(reading: &Reading, outcome: &Outcome) -> bool {
    reading.answer.is_ok() && outcome.counts.is_right()
}

fn compare(candidate: &[Outcome], reference: &[Outcome], margin: f64) -> NonInferiority {
    let right = |outcomes: &[Outcome]| outcomes.iter().map(|outcome| outcome.counts.is_right()).collect::<Vec<_>>();
    Paired::count(&right(candidate), &right(reference)).non_inferiority(margin)
}

pub(crate) fn fit_scores(rows: &[Aligned<'_>], readings: &[Reading], outcomes: &[Outcome]) -> Scores {
    let (mut odds, mut right) = (Vec::new(), Vec::new());
    for (row, reading) in rows.iter().zip(readings) {
        for found in &reading.found {
            odds.push(log_odds(found.log_probability));
            right.push(row.gold.values[found.field].iter().any(|gold| same(gold, &found.value)));
        }
    }
    let field = calibrate::fit_line(&odds, &right);
    let odds: Vec<f64> = readings.iter().map(|reading| log_odds(reading.log_probability)).collect();
    let right: Vec<bool> = readings.iter().zip(outcomes).map(|(reading, outcome)| is_right(reading, outcome)).collect();
    Scores { field, row: calibrate::fit_line(&odds, &right) }
}

/// The metric with its 95 % interval: Wilson for shares, resampled rows for F1.
pub(crate) fn measure(metric: ExtractMetric, outcomes: &[Outcome], seed: u64) -> Measured {
    match metric {
        ExtractMetric::ExactMatch => metrics::share(
            outcomes.iter().filter(|outcome| outcome.counts.is_right()).count() as u64,
            outcomes.len() as u64,
        ),
        ExtractMetric::FieldF1 => f1(&outcomes.iter().map(|outcome| outcome.counts).collect::<Vec<_>>(), seed),
    }
}

fn f1(rows: &[Pairs], seed: u64) -> Measured {
    let of = |picked: &mut dyn Iterator<Item = usize>| {
        let mut all = Pairs::default();
        picked.for_each(|row| all.add(rows[row]));
        all.f1()
    };
    Measured {
        value: of(&mut (0..rows.len())),
        interval: metrics::bootstrap(rows.len(), seed, None, |drawn| of(&mut drawn.iter().copied())),
    }
}

/// How a report is made.
struct Figures<'a> {
    metric: ExtractMetric,
    seed: u64,
    slices: &'a [String],
    alignment: Option<Alignment>,
}

/// What is said of any specialist (rows right or wrong, accepted or deferred), and what is said of an extraction.
fn report(
    specialist: &Specialist,
    rows: &[Aligned<'_>],
    readings: &[Reading],
    outcomes: &[Outcome],
    figures: &Figures<'_>,
) -> EvalReport {
    let manifest = specialist.manifest();
    let scored: Vec<ScoredRow> = rows
        .iter()
        .zip(readings.iter().zip(outcomes))
        .map(|(row, (reading, outcome))| {
            let mut scored = ScoredRow::new(row.example, &specialist.answer_of(reading));
            scored.right = is_right(reading, outcome);
            (scored.predicted, scored.gold) = (usize::from(!scored.right), 0);
            scored
        })
        .collect();
    let labels = ["right".to_owned(), "wrong".to_owned()];
    let yardstick = evaluation::Yardstick {
        labels: &labels,
        ..yardstick(manifest, Metric::Accuracy, false, figures.slices, figures.seed)
    };
    let mut report = evaluation::evaluate(&scored, &yardstick);
    let fields = specialist.schema().map_or(&[][..], Schema::fields);
    let all: Vec<Pairs> = outcomes.iter().map(|outcome| outcome.counts).collect();
    let field_f1 = f1(&all, figures.seed);
    let spans: Vec<Pairs> = rows
        .iter()
        .zip(outcomes)
        .map(|(row, outcome)| {
            let mut counts = SpanCounts::default();
            counts.add(&outcome.spans, &row.gold.spans);
            Pairs { right: counts.right, found: counts.found, gold: counts.gold }
        })
        .collect();
    report.per_class = per_field(rows, outcomes, fields);
    let present: Vec<f64> =
        report.per_class.iter().filter(|class| class.n + class.predicted > 0).map(|class| class.f1).collect();
    let mean = present.iter().sum::<f64>() / present.len().max(1) as f64;
    report.macro_f1 = Measured { value: mean, interval: report.macro_f1.interval };
    report.macro_f1.interval = macro_interval(rows, outcomes, fields.len(), figures.seed);
    report.micro_f1 = field_f1;
    report.confusions = confusions(rows, outcomes, fields);
    figures.metric.name().clone_into(&mut report.metric);
    let measured = match figures.metric {
        ExtractMetric::FieldF1 => field_f1,
        ExtractMetric::ExactMatch => report.accuracy,
    };
    (report.value, report.interval) = (measured.value, measured.interval);
    let total = all.iter().fold(Pairs::default(), |mut sum, row| {
        sum.add(*row);
        sum
    });
    report.extract = Some(ExtractFigures {
        field_f1,
        present_f1: f1(&present_pairs(rows, outcomes), figures.seed),
        precision: total.right as f64 / total.found.max(1) as f64,
        recall: total.right as f64 / total.gold.max(1) as f64,
        values: total.gold,
        exact_match: report.accuracy,
        span_f1: f1(&spans, figures.seed),
        lookup_f1: None,
        alignment: figures.alignment.clone(),
    });
    report
}

/// Pairs of each row, of the fields that it has alone.
fn present_pairs(rows: &[Aligned<'_>], outcomes: &[Outcome]) -> Vec<Pairs> {
    let of = |(row, outcome): (&Aligned<'_>, &Outcome)| {
        let there = (0..outcome.values.len()).map(|field| by_field(row, outcome, field)).filter(|pairs| pairs.gold > 0);
        there.fold(Pairs::default(), |mut sum, pairs| {
            sum.add(pairs);
            sum
        })
    };
    rows.iter().zip(outcomes).map(of).collect()
}

/// Right, found and gold values of each field, row by row.
fn by_field(row: &Aligned<'_>, outcome: &Outcome, field: usize) -> Pairs {
    let one = |values: &[Vec<Value>]| vec![values[field].clone()];
    let mut counts = pairs(&one(&outcome.values), &one(&row.gold.values));
    let gold = &row.gold.values[field];
    counts.gold += row.gold.unplaced.iter().filter(|(of, value)| *of == field && !gold.contains(value)).count() as u64;
    counts
}

fn per_field(rows: &[Aligned<'_>], outcomes: &[Outcome], fields: &[Field]) -> Vec<ClassMetrics> {
    let of = |(idx, field): (usize, &Field)| {
        let mut sum = Pairs::default();
        rows.iter().zip(outcomes).for_each(|(row, outcome)| sum.add(by_field(row, outcome, idx)));
        ClassMetrics {
            label: field.name.clone(),
            n: sum.gold,
            predicted: sum.found,
            precision: sum.right as f64 / sum.found.max(1) as f64,
            recall: sum.right as f64 / sum.gold.max(1) as f64,
            f1: if sum.found + sum.gold == 0 { 0.0 } else { sum.f1() },
        }
    };
    fields.iter().enumerate().map(of).collect()
}

fn macro_interval(rows: &[Aligned<'_>], outcomes: &[Outcome], n_fields: usize, seed: u64) -> [f64; 2] {
    let counts: Vec<Vec<(usize, Pairs)>> = rows
        .iter()
        .zip(outcomes)
        .map(|(row, outcome)| {
            let all = (0..n_fields).map(|field| (field, by_field(row, outcome, field)));
            all.filter(|(_, pairs)| *pairs != Pairs::default()).collect()
        })
        .collect();
    metrics::bootstrap(rows.len(), seed, None, |drawn| {
        let mut sums = vec![Pairs::default(); n_fields];
        drawn.iter().flat_map(|row| &counts[*row]).for_each(|(field, pairs)| sums[*field].add(*pairs));
        let present: Vec<f64> = sums.iter().filter(|sum| sum.found + sum.gold > 0).map(|sum| sum.f1()).collect();
        present.iter().sum::<f64>() / present.len().max(1) as f64
    })
}

/// The same words under another field.
fn confusions(rows: &[Aligned<'_>], outcomes: &[Outcome], fields: &[Field]) -> Vec<Confusion> {
    let mut counts: BTreeMap<(usize, usize), u64> = BTreeMap::new();
    for (row, outcome) in rows.iter().zip(outcomes) {
        for span in &outcome.spans {
            let other = row.gold.spans.iter().find(|gold| gold.words == span.words && gold.field != span.field);
            if let Some(gold) = other {
                *counts.entry((gold.field, span.field)).or_default() += 1;
            }
        }
    }
    let mut all: Vec<_> = counts.into_iter().collect();
    all.sort_by_key(|&(pair, n)| (std::cmp::Reverse(n), pair));
    let name = |field: usize| fields[field].name.clone();
    all.into_iter()
        .take(MAX_CONFUSIONS)
        .map(|((gold, called), n)| Confusion { gold: name(gold), predicted: name(called), n })
        .collect()
}

/// The fields that differ, as they are and as they were called.
fn differences(gold: &[Vec<Value>], called: &[Vec<Value>], fields: &[Field]) -> (String, String) {
    let differs = |at: usize| pairs(&called[at..=at], &gold[at..=at]);
    let told = |values: &[Vec<Value>]| {
        let of = |at: usize| {
            let values: Vec<String> = values[at].iter().map(Value::to_string).collect();
            format!("{}: {}", fields[at].name, if values.is_empty() { "—".to_owned() } else { values.join(", ") })
        };
        (0..fields.len()).filter(|at| !differs(*at).is_right()).map(of).collect::<Vec<_>>().join("; ")
    };
    (told(gold), told(called))
}

fn alignment_notes(alignment: &Alignment) -> Vec<String> {
    let mut notes = Vec::new();
    if alignment.unplaced > 0 {
        let fields: Vec<String> =
            alignment.unplaced_by_field.iter().map(|(field, n)| format!("`{field}` {n}")).collect();
        let first = alignment
            .listed
            .first()
            .map_or_else(String::new, |(place, field, value)| format!("; the first: {place}, `{field}` {value}"));
        notes.push(format!(
            "{} of {} values, in {} rows, do not stand in their text and cannot be found ({}){first}",
            alignment.unplaced,
            alignment.values,
            alignment.unplaced_rows,
            fields.join(", ")
        ));
    }
    if alignment.cut > 0 {
        notes.push(format!("{} values begin or end within a word: whole words were trained", alignment.cut));
    }
    notes
}
