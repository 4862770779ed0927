//! The trial of an extraction: the values that were seen before, looked up; and an encoder that is tuned to tag words, as `metier build` tunes it, in
//! the minute that a trial has.

use std::time::Duration;

use metier_model::{
    Progress, Unit,
    extract::Extractor,
    proof::{NonInferiority, Paired, paired},
};
use serde_json::Value;

use super::{
    Bench, Likeness, MARGIN, Role, Rung, Trial, TriedRow,
    measure::{self, Answers},
    rows::{self, Side},
};
use crate::{
    build::extract::{self, Aligned, Outcome},
    craft::{
        encoder::{Run, TuneError},
        lookup::Lookup,
        span::{Recipe, TaggedText, Tagger},
    },
    data::{
        Part, Splits,
        extract::{ExtractMetric, ExtractTask, RawTune},
        split::Example,
    },
    discover::{saving::assumptions::Assumptions, task::Task, traits::unfenced},
    embed::Embed,
};

/// Seconds in which an encoder is tuned.
const TUNE_SECONDS: f64 = 60.0;
/// Passes over the training rows without which there is nothing to be seen of it.
const LEAST_EPOCHS: usize = 4;
/// Passes that a trial makes at most.
const MOST_EPOCHS: usize = 12;
/// Share of the rows that a list must have right before it is taken for a rule.
const LISTED: f64 = 0.9;
/// Training rows below which fewer rows are no way to more passes.
const LEAST_ROWS: usize = 100;
/// The greatest score.
const SURE: f32 = 1.0;

pub(super) fn attempt(
    task: &Task,
    assumptions: &Assumptions,
    bench: &Bench<'_>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Trial, String> {
    let start = (bench.clock)();
    let elapsed = || (bench.clock)().saturating_sub(start);
    let (_, schema) = task.answer_schema()?;
    let encoder = bench.encoder.and_then(Embed::as_encoder);
    let encoder = encoder.ok_or("an extraction is tried over an encoder, and there is none at hand")?;
    let extraction =
        ExtractTask { schema, spans: None, has_output: true, metric: ExtractMetric::FieldF1, tune: RawTune::default() };
    let fields = extraction.schema.fields();

    let rows::Parted { rows, sides, mut notes } = rows::parted(task, bench.seed)?;
    let mut parts: [Vec<Example>; 4] = Default::default();
    let mut examples: [Vec<usize>; 3] = Default::default();
    let (mut unmet, mut lost) = (0, Vec::new());
    for (row, side) in rows.iter().zip(&sides) {
        let part = match side {
            Side::Out => continue,
            Side::Train => 0,
            Side::Validation => 1,
            Side::Measured => 2,
        };
        let output = unfenced(task.examples[row.example].output.as_deref().unwrap_or_default());
        let meets = serde_json::from_str::<Value>(output).is_ok_and(|value| extraction.schema.values(&value).is_ok());
        if !meets {
            unmet += 1;
            if part == 2 {
                lost.push((row.example, row.group.as_deref()));
            }
            continue;
        }
        let mut example = rows::example(task, row, 0);
        example.row.label = output.to_owned();
        parts[part].push(example);
        examples[part].push(row.example);
    }
    if unmet > 0 {
        notes.push(format!(
            "{unmet} answers of the LLM do not meet the schema: nothing is learnt from them, and the {} among the measured rows count as answered otherwise",
            lost.len()
        ));
    }
    let splits = Splits::parted(vec![String::new()], parts, &["text".to_owned()]);
    if splits.leak.removed > 0 {
        notes.push(format!(
            "{} training rows were left out: nearly equal to rows that are measured",
            splits.leak.removed
        ));
    }
    let sizes = [Part::Train, Part::Validation, Part::Calibration].map(|part| splits.part(part).len());
    rows::enough(sizes[0], sizes[1], sizes[2])?;
    let align = |part: Part| -> Result<Vec<Aligned<'_>>, String> {
        let rows = splits.part(part).iter();
        rows.map(|example| extract::align(example, encoder, &extraction, &task.name))
            .collect::<Result<_, _>>()
            .map_err(|error| error.to_string())
    };
    let (train, chose, measured) = (align(Part::Train)?, align(Part::Validation)?, align(Part::Calibration)?);
    if train.iter().all(|row| row.gold.spans.is_empty()) {
        return Err("no value of any answer stands in its text: there is nothing to learn".to_owned());
    }
    let lookup = Lookup::fit(
        train.iter().map(|row| (row.example.row.text.as_str(), row.text.words.as_slice(), row.gold.spans.as_slice())),
    );

    let tagged = |rows: &[Aligned<'_>]| -> Vec<TaggedText> {
        let of = |row: &Aligned<'_>| TaggedText::new(encoder, &row.example.row.text, &row.text, row.gold.spans.clone());
        rows.iter().map(of).collect()
    };
    let (mut learnt, validated) = (tagged(&train), tagged(&chose));
    let deadline = elapsed() + Duration::from_secs_f64(TUNE_SECONDS.min(assumptions.training_minutes * 60.0));
    let run = Run { pool: bench.pool, seed: bench.seed, clock: &elapsed, deadline };
    let error = |error: TuneError| error.to_string();
    let mut recipe = Recipe::for_rows(learnt.len());
    recipe.epochs = recipe.epochs.min(MOST_EPOCHS);
    let epoch =
        Tagger::new(encoder, &learnt, &validated, fields.len(), &recipe, bench.seed).map_err(error)?.probe(&run);
    let fit = deadline.saturating_sub(elapsed()).as_secs_f64() / epoch.as_secs_f64().max(1e-9);
    if fit < LEAST_EPOCHS as f64 {
        let keep = ((learnt.len() as f64 * fit / LEAST_EPOCHS as f64) as usize)
            .clamp(LEAST_ROWS.min(learnt.len()), learnt.len());
        notes.push(format!(
            "in a minute an encoder was tuned on the latest {keep} of {} training rows; a build reads all",
            learnt.len()
        ));
        learnt.drain(..learnt.len() - keep);
        recipe = Recipe::for_rows(learnt.len());
    }
    let wanted = recipe.epochs;
    recipe.epochs = wanted.min((fit as usize).max(LEAST_EPOCHS));
    if recipe.epochs < Recipe::for_rows(learnt.len()).epochs {
        notes.push(format!(
            "the encoder was tuned in {} passes; a build makes up to {}",
            recipe.epochs,
            Recipe::for_rows(train.len()).epochs
        ));
    }
    let tagger = Tagger::new(encoder, &learnt, &validated, fields.len(), &recipe, bench.seed).map_err(error)?;
    let planned = Recipe::for_rows(train.len()).epochs;
    let is_whole = learnt.len() == train.len();
    let tuned = tagger.learn(&run, progress, &mut |_| (), &mut |_| ()).map_err(error)?;
    let own = encoder.tuned(&tuned.file).map_err(|error| format!("its tuned encoder cannot be read: {error}"))?;
    let extractor = Extractor { schema: &extraction.schema, head: &tuned.head, encoder: &own };
    let mut read = |rows: &[Aligned<'_>]| {
        let texts: Vec<&str> = rows.iter().map(|row| row.example.row.text.as_str()).collect();
        extract::read(&extractor, bench.pool, &texts, &task.name, progress).map_err(|error| error.to_string())
    };
    let chose_readings = read(&chose)?;
    let before = elapsed();
    let readings = read(&measured)?;
    let request_seconds = (elapsed() - before).as_secs_f64() / measured.len().max(1) as f64;
    progress(Progress { stage: "judging", done: 0, total: None, unit: Unit::Steps });

    let (chose_judged, judged) =
        (extract::judge(&chose, &chose_readings, fields), extract::judge(&measured, &readings, fields));
    let (chose_looked, looked) =
        (extract::looked_up(&chose, &lookup, fields), extract::looked_up(&measured, &lookup, fields));
    let right = |outcomes: &[Outcome]| outcomes.iter().map(|outcome| outcome.counts.is_right()).collect::<Vec<_>>();
    let against: NonInferiority = Paired::count(&right(&chose_looked), &right(&chose_judged)).non_inferiority(MARGIN);
    let listed = chose_looked.iter().filter(|outcome| outcome.counts.is_right()).count() as f64;
    let does = listed >= LISTED * chose.len() as f64 && against.verdict == paired::Verdict::NonInferior;
    let rung = if does { Rung::Lookup } else { Rung::Span };
    let scores = extract::fit_scores(&chose, &chose_readings, &chose_judged);
    let (chose_scores, mut measured_scores, outcomes): (Vec<f64>, Vec<f32>, &[Outcome]) = match rung {
        // How much of the schema was found says how sure a list is of itself.
        Rung::Lookup => {
            let filled = |outcome: &Outcome| {
                outcome.values.iter().filter(|values| !values.is_empty()).count() as f32 / fields.len().max(1) as f32
            };
            (chose_looked.iter().map(|o| f64::from(filled(o))).collect(), looked.iter().map(filled).collect(), &looked)
        }
        _ => (
            chose_readings.iter().map(|reading| f64::from(reading.score(&scores))).collect(),
            readings.iter().map(|reading| reading.score(&scores)).collect(),
            &judged,
        ),
    };
    let mut agrees: Vec<bool> = match rung {
        Rung::Lookup => right(&looked),
        _ => readings.iter().zip(&judged).map(|(reading, outcome)| extract::is_right(reading, outcome)).collect(),
    };
    let groups_of = splits.part(Part::Calibration).iter().map(|example| example.row.group.as_deref());
    let groups = measure::groups(groups_of.chain(lost.iter().map(|(_, group)| *group)));
    // What no answer of a specialist can equal: lost, however sure it is.
    measured_scores.extend(lost.iter().map(|_| SURE));
    agrees.extend(lost.iter().map(|_| false));
    examples[2].extend(lost.iter().map(|(example, _)| *example));
    let answers = Answers { chose: &chose_scores, scores: &measured_scores, agrees: &agrees, groups: groups.as_ref() };
    let share = |right: &[bool]| right.iter().filter(|right| **right).count() as f64 / right.len().max(1) as f64;
    let likeness = Likeness {
        metric: ExtractMetric::FieldF1.name().to_owned(),
        value: extract::measure(ExtractMetric::FieldF1, outcomes, bench.seed),
    };
    let kept: std::collections::BTreeSet<&str> =
        splits.part(Part::Train).iter().map(|example| example.row.text.as_str()).collect();
    let role = |example: usize, role: Role| TriedRow { example, role, score: None, agrees: None };
    let trains = examples[0].iter().map(|&at| {
        role(at, if kept.contains(task.examples[at].input.as_str()) { Role::Trained } else { Role::LeftOut })
    });
    let tried =
        trains.chain(examples[1].iter().map(|&at| role(at, Role::Chose))).chain(answers.rows(&examples[2])).collect();
    let trial = Trial::of(rung, answers.told(assumptions), tried, notes);
    Ok(Trial {
        rows: [sizes[0] as u64, sizes[1] as u64, (sizes[2] + lost.len()) as u64],
        labels: fields.len() as u64,
        rungs: vec![(Rung::Lookup, share(&right(&looked))), (Rung::Span, share(&right(&judged)))],
        likeness: Some(likeness),
        seconds: elapsed().as_secs_f64(),
        request_seconds,
        short: !is_whole || tuned.epochs.len() < planned,
        ..trial
    })
}
