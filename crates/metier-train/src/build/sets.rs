//! A build of a classification whose rows have several labels. Which rows may be used for what is the same as for every build.
//!
//! ```text
//! train ───────► features, weights of every rung, one against the rest
//! validation ──► settings · thresholds · rung · lines of the score · probe rows · match threshold
//! calibration ─► certificate on 1 − Jaccard of a row, once, for exactly the weights that ship
//! test ────────► what is reported
//! ```

mod front;
mod report;

use std::{collections::BTreeMap, path::Path, time::Duration};

use metier_kernels::Pool;
use metier_model::{
    Progress, Specialist, Unit,
    features::FORMAT as FEATURE_FORMAT,
    proof::{Calibrator, Method},
    specialist::{
        Contents,
        manifest::{FORMAT, Kind, Manifest, Recipe, Stage},
        sets::{called, in_json},
    },
};

use self::{
    front::{Front, front},
    report::{Answered, Margins, answer, answer_of_stage, report},
};
use super::{
    BuildError, BuildOutcome, Evidence, FailedRow, RungOutcome, Workbench, base_notes, cascade, ladder_notes,
    measured::{embed, embedded, failures, groups, measured_part, neighbours, probe, yardstick},
    ship::{Product, ship},
};
use crate::{
    craft::{
        checkpoint,
        ladder::{self, Embeddings, Held, Run},
        sets::{self, MIN_POSITIVES, SetLadder, SetRung},
    },
    data::{
        DataError, Part, TaskFile,
        sets::{SetSplits, is_list, set_of},
        split::Example,
        table::{self, Columns},
        task::Metric,
    },
    embed::Embed,
    eval::{
        EvalReport,
        certify::{certify, certify_cascade},
        learning, sets as figures,
        stages::by_stage,
    },
};

/// Builds a specialist that gives several labels.
pub(super) fn build(
    task: &TaskFile,
    sets: &SetSplits,
    bench: &Workbench<'_>,
    progress: &mut dyn FnMut(Progress<'_>),
    elapsed: &dyn Fn() -> Duration,
) -> Result<BuildOutcome, BuildError> {
    let splits = &sets.splits;
    if let Metric::F1 { .. } = task.target.metric {
        let message =
            "metric `f1` is that of one label: rows with several have `micro_f1`, `macro_f1` or `exact_match`";
        return Err(DataError::Task(message.to_owned()).into());
    }
    let embeddings = bench.encoder.map(|encoder| embed(task, splits, encoder, bench.pool, progress)).transpose()?;
    let embed_seconds = elapsed().as_secs_f64();
    let deadline = Duration::from_secs_f64(task.budget_minutes * 60.0);
    let keeps = Some((bench.store.root(), task.name.as_str()));
    let run = Run { pool: bench.pool, seed: bench.seed, clock: elapsed, deadline, keeps };
    let ground = sets::Ground {
        sets,
        embeddings: embeddings.as_ref(),
        encoder: bench.encoder.and_then(Embed::as_encoder),
        from: task.from,
        up_to: task.up_to,
        tuning: &bench.tuning,
        ngrams: task.ngrams,
    };
    let ladder = sets::climb(ground, &task.target, &run, progress);
    progress(Progress { stage: "proving", done: 0, total: None, unit: Unit::Steps });
    let Proven { specialist, evidence, failures, no_front } = prove(task, sets, embeddings.as_ref(), &ladder, bench);
    let part = measured_part(splits);
    let groups = groups(splits.part(part));
    let rungs = ladder.rungs.iter().map(|rung| {
        let margins =
            Held::of(splits, part, &ladder.features, rung.embeddings(embeddings.as_ref())).margins(&rung.head);
        let calls: Vec<Vec<usize>> = margins.iter().map(|row| called(row)).collect();
        let (gold, n_labels) = (&sets.sets[part as usize], splits.labels.len());
        let measured = figures::measure(task.target.metric, &calls, gold, n_labels, bench.seed, groups.as_ref());
        RungOutcome::of(&rung.record, measured, rung.seconds, None)
    });
    let rungs = rungs.collect();
    let mut notes = base_notes(task, splits, specialist.manifest(), &evidence.rows);
    notes.extend(remarks(task, sets, &ladder, specialist.manifest()));
    progress(Progress { stage: "learning curve", done: 0, total: None, unit: Unit::Steps });
    let inputs = &task.data.text;
    let shop = learning::Workshop { inputs, pool: bench.pool, seed: bench.seed, clock: elapsed, deadline };
    let (rung, metric) = (&ladder.rungs[ladder.chosen], task.target.metric);
    let (learning_curve, no_curve) = match learning::measure_sets(sets, embeddings.as_ref(), rung, metric, &shop) {
        Ok(curve) => (Some(curve), None),
        Err(why) => (None, Some(why)),
    };
    notes.extend(no_curve);
    notes.extend(no_front.map(|why| format!("one stage, although two were asked for: {why}")));
    notes.extend(cascade::note(&evidence, specialist.manifest().first.as_ref().and_then(|first| first.share)));
    let product = Product {
        specialist,
        evidence,
        rungs,
        failures,
        learning_curve,
        training: None,
        memorisation: None,
        notes,
        embed_seconds,
    };
    let outcome = ship(task, splits, bench, product, elapsed)?;
    checkpoint::remove(bench.store.root(), &task.name, ladder::ENCODER_CHECKPOINT);
    Ok(outcome)
}

/// What was proven, and what was measured of it.
struct Proven {
    specialist: Specialist,
    evidence: Evidence,
    failures: Vec<FailedRow>,
    /// Why no stage is asked first, where the task asks for one.
    no_front: Option<String>,
}

/// Calibrates and certifies the chosen rung, and measures it.
fn prove(
    task: &TaskFile,
    sets: &SetSplits,
    embeddings: Option<&Embeddings>,
    ladder: &SetLadder,
    bench: &Workbench<'_>,
) -> Proven {
    let (splits, rung) = (&sets.splits, &ladder.rungs[ladder.chosen]);
    let (front, no_front) = match task.stages {
        ..2 => (None, None),
        _ => {
            let groups = groups(splits.part(Part::Validation));
            match front(ladder, sets, groups.as_ref(), &task.target, bench.seed) {
                Ok(front) => (Some(front), None),
                Err(why) => (None, Some(why)),
            }
        }
    };
    let reads_ngrams = rung.stage.has_ngrams(&rung.head) || front.is_some();
    let manifest = Manifest {
        format: FORMAT,
        name: task.name.clone(),
        kind: Kind::Classify,
        instruction: task.instruction.clone(),
        inputs: task.data.text.clone(),
        labels: splits.labels.clone(),
        out_of_scope: None,
        may_leave: task.may_leave,
        stage: rung.stage,
        base: bench.encoder.map(Embed::base),
        generation: None,
        hidden: None,
        reads_base: false,
        features: reads_ngrams.then(|| FEATURE_FORMAT.to_owned()),
        pairs: None,
        calibrator: Calibrator { inverse_temperature: 1.0, method: Method::Softmax },
        scores: None,
        scope: None,
        multi_label: Some(sets::fit_scores(&rung.validation, &sets.sets[Part::Validation as usize])),
        hierarchy: None,
        first: front.as_ref().map(|front| front.stage.clone()),
        certificate: None,
        refusal: None,
        recipe: Recipe {
            seed: bench.seed,
            metric: figures::name(task.target.metric).to_owned(),
            positive: None,
            margin: task.target.margin,
            epsilon: task.target.epsilon,
            delta: task.target.delta,
            rows: splits.counts(),
            data: splits.files.clone(),
            rungs: ladder.rungs.iter().map(|rung| rung.record.clone()).collect(),
            teacher: None,
        },
        files: BTreeMap::new(),
    };
    let mut contents = Contents {
        manifest,
        features: reads_ngrams.then(|| ladder.features.clone()),
        head: Some(rung.head.clone()),
        first: front.as_ref().map(|front| front.rung.head.clone()),
        encoder: rung.own.as_ref().and_then(|own| own.file.clone()),
        adapter: None,
        schema: None,
        pairs: None,
        neighbours: embeddings.and_then(|all| neighbours(splits, all, None)),
        probe: Vec::new(),
        evidence: String::new(),
    };
    let margins = |part: Part| {
        let of =
            |rung: &SetRung| Held::of(splits, part, &ladder.features, rung.embeddings(embeddings)).margins(&rung.head);
        Margins { first: front.as_ref().map(|front| of(front.rung)), last: of(rung) }
    };
    let specialist = Specialist::from_contents(contents.clone());
    certify_stages(task, sets, &specialist, front.as_ref(), &margins(Part::Calibration), &mut contents.manifest);
    let specialist = Specialist::from_contents(contents.clone());

    let part = measured_part(splits);
    let (examples, gold) = (splits.part(part), &sets.sets[part as usize]);
    let answered = answer(&specialist, examples, gold, &margins(part));
    let has_reference = task.reference.is_some() || task.reference_answers.is_some();
    let yardstick = yardstick(specialist.manifest(), task.target.metric, has_reference, &task.data.slice, bench.seed);
    let mut evaluation = report(&answered, gold, groups(examples).as_ref(), &yardstick);
    evaluation.stages = by_stage(specialist.manifest(), &answered.answers, &answered.scored);
    let told = |set: &[usize]| in_json(set.iter().map(|label| splits.labels[*label].as_str()));
    let rows = examples.iter().zip(answered.scored.iter().map(Into::into));
    let failures = failures(rows, |at| (told(&gold[at]), told(&answered.called[at])));
    let evidence = Evidence { rows: part.name().to_owned(), evaluation, class_mix: None };
    let validation = splits.part(Part::Validation);
    let said = answer(&specialist, validation, &sets.sets[Part::Validation as usize], &margins(Part::Validation));
    contents.probe = probe(validation.iter(), |row| (said.answers[row].label.clone(), said.answers[row].score));
    contents.evidence = serde_json::to_string_pretty(&evidence).expect("evidence is JSON");
    Proven { specialist: Specialist::from_contents(contents), evidence, failures, no_front }
}

/// Uses the calibration rows, once, and writes into the manifest what they allow: the certificate for all stages, and what each does.
fn certify_stages(
    task: &TaskFile,
    sets: &SetSplits,
    specialist: &Specialist,
    front: Option<&Front<'_>>,
    margins: &Margins,
    manifest: &mut Manifest,
) {
    let (examples, gold) = (sets.splits.part(Part::Calibration), &sets.sets[Part::Calibration as usize]);
    let bound = (task.target.epsilon, task.target.delta);
    let groups = groups(examples);
    let rows = |answered: Answered| -> Vec<(f32, f64)> {
        answered.scored.iter().zip(answered.losses).map(|(row, loss)| (row.score, loss)).collect()
    };
    let whole = answer_of_stage(|row| Some(specialist.whole_answer_from(row)), examples, gold, &margins.last);
    let whole = rows(whole.expect("the stage it is named after always says something"));
    let first = margins.first.as_ref().and_then(|margins| {
        answer_of_stage(|row| specialist.first_answer_from(row), examples, gold, margins).map(rows)
    });
    let certified = match first.zip(front) {
        None => certify(&whole, true, groups.as_ref(), bound).map(|certificate| (certificate, Vec::new())),
        Some((first, front)) => {
            certify_cascade(&[(first, front.stage.floor), (whole, 0.0)], true, groups.as_ref(), bound)
        }
    };
    match certified {
        Err(refusal) => manifest.refusal = Some(refusal),
        Ok((certificate, shares)) => {
            manifest.certificate = Some(certificate);
            manifest.first.iter_mut().for_each(|first| first.share = shares.first().copied());
        }
    }
}

fn remarks(task: &TaskFile, sets: &SetSplits, ladder: &SetLadder, manifest: &Manifest) -> Vec<String> {
    let mut notes = vec![
        "the score says how likely a set of labels is exactly the right one; the certificate bounds the mean of 1 − Jaccard of the rows that are \
         answered alone: of the labels that the answer or the truth names, the share that only one of them names"
            .to_owned(),
    ];
    if let Some((label, n)) = sets.rare.first() {
        notes.push(format!(
            "{} labels stand in fewer than 3 training rows and will hardly be called, such as `{label}` in {n}",
            sets.rare.len()
        ));
    }
    let mut positives = vec![0usize; sets.splits.labels.len()];
    sets.sets[Part::Validation as usize].iter().flatten().for_each(|label| positives[*label] += 1);
    let shared = positives.iter().filter(|n| **n < MIN_POSITIVES).count();
    if shared > 0 {
        notes.push(format!(
            "{shared} labels stand in fewer than {MIN_POSITIVES} validation rows and share one threshold"
        ));
    }
    notes.extend(ladder_notes(task, ladder.out_of_time, ladder.skipped.as_slice(), ladder.not_made.as_slice()));
    if task.up_to > Stage::Tuned {
        notes.push("no decoder is tuned for rows with several labels".to_owned());
    }
    if manifest.base.is_none() && task.up_to > Stage::Linear {
        notes.push(
            "no encoder was at hand: only the n-gram rung ran, and `auto` cannot find this specialist".to_owned(),
        );
    }
    notes
}

/// Scores a file with a specialist that gives several labels.
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
    let rows = table::read(file, columns)?;
    if let Some(row) = rows.iter().find(|row| !is_list(&row.label)) {
        let message = format!("`{}` is no list of labels, and `{}` gives several", row.label, manifest.name);
        return Err(DataError::row(&row.place, message).into());
    }
    let gold = rows.iter().map(|row| set_of(row, &manifest.labels)).collect::<Result<Vec<_>, _>>()?;
    let examples: Vec<Example> = rows
        .into_iter()
        .zip(&gold)
        .map(|(mut row, set)| {
            row.label = in_json(set.iter().map(|label| manifest.labels[*label].as_str()));
            Example { row, class: 0 }
        })
        .collect();
    let embeddings = embedded(specialist, encoder, pool, &examples, progress)?;
    let embedding = |at: usize| embeddings.as_ref().map(|all| all[at].as_slice());
    let last = examples.iter().enumerate().map(|(at, example)| specialist.margins(&example.row.text, embedding(at)));
    let first = examples.iter().map(|example| specialist.first_margins(&example.row.text));
    let margins = Margins { first: first.collect(), last: last.collect::<Result<Vec<_>, _>>()? };
    let answered = answer(specialist, &examples, &gold, &margins);
    let metric = match manifest.recipe.metric.as_str() {
        "micro_f1" => Metric::MicroF1,
        "macro_f1" => Metric::MacroF1,
        _ => Metric::Accuracy,
    };
    let has_reference = columns.reference.is_some() || columns.reference_answers.is_some();
    let yardstick = yardstick(manifest, metric, has_reference, &[], seed);
    let stages = by_stage(manifest, &answered.answers, &answered.scored);
    Ok(EvalReport { stages, ..report(&answered, &gold, groups(&examples).as_ref(), &yardstick) })
}
