//! The trial of a classification: the cheap rungs of the ladder.

use std::time::Duration;

use metier_model::{Progress, Unit, specialist::manifest::Stage};

use super::{
    Bench, MARGIN, Role, Rung, Trial, TriedRow,
    measure::{self, Answers},
    rows::{self, Ground},
};
use crate::{
    craft::{
        encoder::Recipe,
        ladder::{self, Embeddings, Held},
    },
    data::{Part, task::Metric, task::Target},
    discover::{saving::assumptions::Assumptions, task::Task},
    eval::{calibrate, cluster, learning},
};

/// Measured rows with a right answer from which on an accuracy is told.
const MIN_GOLD: usize = 50;
/// Differences among them from which on it is told who was wrong.
const MIN_DIFFERENCES: usize = 20;

pub(super) fn attempt(
    task: &Task,
    assumptions: &Assumptions,
    bench: &Bench<'_>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Trial, String> {
    let start = (bench.clock)();
    let elapsed = || (bench.clock)().saturating_sub(start);
    let Ground { splits, gold, unseen, notes, examples } = rows::part(task, bench.seed)?;
    let mut notes = notes;
    let texts: Vec<&str> =
        Part::ALL.iter().flat_map(|&part| splits.part(part)).map(|example| example.row.text.as_str()).collect();
    let before = elapsed();
    let embeddings: Option<Embeddings> = match bench.encoder {
        None => {
            notes.push("no encoder was at hand: only n-grams were tried".to_owned());
            None
        }
        Some(encoder) => {
            let all = encoder.embed_all(bench.pool, &texts, progress);
            let mut all = all.map_err(|error| format!("its texts cannot be embedded: {error}"))?.into_iter();
            Some(Part::ALL.map(|part| all.by_ref().take(splits.part(part).len()).collect()))
        }
    };
    let request_seconds = (elapsed() - before).as_secs_f64() / texts.len().max(1) as f64;
    let target =
        Target { metric: Metric::Accuracy, margin: MARGIN, epsilon: assumptions.epsilon, delta: assumptions.delta };
    let deadline = Duration::from_secs_f64(assumptions.training_minutes * 60.0);
    let run = ladder::Run { pool: bench.pool, seed: bench.seed, clock: &elapsed, deadline, keeps: None };
    let inputs = ["text".to_owned()];
    let ground = ladder::Ground {
        splits: &splits,
        inputs: &inputs,
        embeddings: embeddings.as_ref(),
        encoder: None,
        decoders: &[],
        decoding: &crate::craft::decoder::Recipe::default(),
        from: Stage::Linear,
        up_to: Stage::Both,
        tuning: &Recipe::default(),
        lesson: None,
        ngrams: true,
    };
    let ladder = ladder::climb(ground, &target, &run, progress).map_err(|error| error.to_string())?;
    progress(Progress { stage: "judging", done: 0, total: None, unit: Unit::Steps });
    let rung = &ladder.rungs[ladder.chosen];
    let validation: Vec<usize> = splits.part(Part::Validation).iter().map(|example| example.class).collect();
    let calibrator = calibrate::fit(&rung.validation, &validation);
    let measured = splits.part(Part::Calibration);
    let margins = Held::of(&splits, Part::Calibration, &ladder.features, embeddings.as_ref()).margins(&rung.head);
    let agrees_of = |margins: &[Vec<f32>]| -> Vec<bool> {
        let calls = ladder::calls(margins);
        (0..measured.len()).map(|at| !unseen[at] && calls[at] == measured[at].class).collect()
    };
    let agrees = agrees_of(&margins);
    let calls = ladder::calls(&margins);
    let scores: Vec<f32> = margins.iter().map(|margins| calibrator.score(margins)).collect();
    let groups = measure::groups(measured.iter().map(|example| example.row.group.as_deref()));
    let groups = groups.as_ref();
    let share = |of: &dyn Fn(usize) -> bool, hit: &dyn Fn(usize) -> bool| {
        cluster::share(groups, &|at| of(at), &|at| hit(at), measured.len())
    };
    let known = |at: usize| gold[at].is_some();
    let named = |at: usize| gold[at].as_deref() == Some(splits.labels[calls[at]].as_str());
    let llm_right = |at: usize| gold[at].as_deref() == Some(measured[at].row.label.as_str());
    let n_gold = (0..measured.len()).filter(|&at| known(at)).count();
    let differing = |at: usize| known(at) && !agrees[at];
    let n_differing = (0..measured.len()).filter(|&at| differing(at)).count();

    let chose: Vec<f64> = rung.validation.iter().map(|margins| f64::from(calibrator.score(margins))).collect();
    let answers = Answers { chose: &chose, scores: &scores, agrees: &agrees, groups };
    let told = answers.told(assumptions);
    // Training rows that are nearly equal to measured ones were taken out.
    let trained: std::collections::BTreeSet<&str> =
        splits.part(Part::Train).iter().map(|example| example.row.text.as_str()).collect();
    let role = |example: usize, role: Role| TriedRow { example, role, score: None, agrees: None };
    let trains = examples[0].iter().map(|&at| {
        let kept = trained.contains(task.examples[at].input.as_str());
        role(at, if kept { Role::Trained } else { Role::LeftOut })
    });
    let tried =
        trains.chain(examples[1].iter().map(|&at| role(at, Role::Chose))).chain(answers.rows(&examples[2])).collect();

    let shop = learning::Workshop { inputs: &inputs, pool: bench.pool, seed: bench.seed, clock: &elapsed, deadline };
    let curve = learning::measure(&splits, embeddings.as_ref(), rung, Metric::Accuracy, &shop);
    let curve = curve.map_err(|why| notes.push(why)).ok();
    let rungs = ladder.rungs.iter().map(|rung| {
        let held = Held::of(&splits, Part::Calibration, &ladder.features, rung.embeddings(embeddings.as_ref()));
        let agrees = agrees_of(&held.margins(&rung.head));
        (Rung::of(rung.stage), agrees.iter().filter(|agrees| **agrees).count() as f64 / agrees.len() as f64)
    });
    let trial = Trial::of(Rung::of(rung.stage), told, tried, notes);
    Ok(Trial {
        rows: [Part::Train, Part::Validation, Part::Calibration].map(|part| splits.part(part).len() as u64),
        labels: splits.labels.len() as u64,
        rungs: rungs.collect(),
        accuracy: (n_gold >= MIN_GOLD).then(|| [share(&known, &named), share(&known, &llm_right)]),
        error_share: (n_differing >= MIN_DIFFERENCES).then(|| share(&differing, &|at| !named(at))),
        curve,
        seconds: elapsed().as_secs_f64(),
        request_seconds,
        ..trial
    })
}
