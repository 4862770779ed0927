//! Make every rung, then take the smallest that is good enough.
//!
//! Settings of a rung are chosen by the task's metric on validation rows from the small fixed grids below (ties: the first, which
//! regularises more). Between rungs the paired score test of `proof::paired` decides, again on validation rows: a smaller rung
//! is taken only if it is shown to be less than `target.margin` behind the best; "cannot tell" keeps the better one.

use std::time::Duration;

use metier_kernels::Pool;
use metier_model::{
    Progress, Unit,
    features::{Features, SparseRow},
    head::{LinearHead, max_features},
    proof::{NonInferiority, Paired, Verdict},
    specialist::manifest::{RungRecord, Stage},
};

use super::linear;
use crate::{
    data::{Part, Splits, task::Metric, task::Target},
    eval::{calibrate::predicted, metrics},
};

/// Training rows that an n-gram must stand in to be kept.
pub(crate) const MIN_FEATURE_ROWS: u32 = 2;
const LINEAR_GRID: [Path; 1] = [Path { embedding_scale: 0.0, c: &[0.3, 1.0, 3.0] }];
const HEAD_GRID: [Path; 1] = [Path { embedding_scale: 1.0, c: &[0.1, 0.3, 1.0, 3.0] }];
const BOTH_GRID: [Path; 2] =
    [Path { embedding_scale: 1.0, c: &[0.1, 0.3, 1.0] }, Path { embedding_scale: 2.0, c: &[0.1, 0.3, 1.0] }];

/// One scale of the embedding with rising C: each starts where the one before ended.
struct Path {
    embedding_scale: f64,
    c: &'static [f64],
}

/// A rung that was made.
pub struct Rung {
    /// Which.
    pub stage: Stage,
    /// The classifier as it would ship, int8 weights included.
    pub head: LinearHead,
    /// Its settings and validation figures.
    pub record: RungRecord,
    /// Margins of the validation rows.
    pub validation: Vec<Vec<f32>>,
    /// Time spent on all its settings, embedding not included.
    pub seconds: f64,
}

/// All rungs, smallest first, and which was taken.
pub struct Ladder {
    /// The n-grams that the rungs share.
    pub features: Features,
    /// At least one.
    pub rungs: Vec<Rung>,
    /// Index of the rung taken.
    pub chosen: usize,
    /// True if the time budget ended a grid early.
    pub out_of_time: bool,
}

/// One embedding a row, by part.
pub type Embeddings = [Vec<Vec<f32>>; 4];

/// What the ladder needs to know about the run.
pub struct Run<'a> {
    /// Threads.
    pub pool: &'a Pool,
    /// Seed of permutations and resamples.
    pub seed: u64,
    /// Time since the build began.
    pub clock: &'a dyn Fn() -> Duration,
    /// When to stop trying settings.
    pub deadline: Duration,
}

/// Makes the rungs and chooses. Without embeddings only `linear` runs.
pub fn climb(
    splits: &Splits,
    embeddings: Option<&Embeddings>,
    target: &Target,
    run: &Run<'_>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Ladder {
    let n_classes = splits.labels.len();
    let train = splits.part(Part::Train);
    let texts = || train.iter().map(|example| example.row.text.as_str());
    let features = Features::fit(texts(), MIN_FEATURE_ROWS, max_features(n_classes));
    let sparse: Vec<SparseRow> = texts().map(|text| features.apply(text)).collect();
    let dense: Option<Vec<&[f32]>> =
        embeddings.map(|all| all[Part::Train as usize].iter().map(Vec::as_slice).collect());
    let classes: Vec<usize> = train.iter().map(|example| example.class).collect();
    let validation = Held::of(splits, Part::Validation, &features, embeddings);
    let gold = &validation.classes;

    let plans: Vec<(Stage, &[Path])> =
        [(Stage::Linear, &LINEAR_GRID[..]), (Stage::Head, &HEAD_GRID), (Stage::Both, &BOTH_GRID)]
            .into_iter()
            .filter(|(stage, _)| !stage.reads_embedding() || embeddings.is_some())
            .collect();
    let total: u64 = plans.iter().flat_map(|(_, paths)| *paths).map(|path| path.c.len() as u64).sum();
    let mut tried = 0;
    let mut out_of_time = false;
    let mut rungs = Vec::new();
    for (stage, paths) in plans {
        let start = (run.clock)();
        let mut best: Option<Rung> = None;
        for path in paths {
            let rows = linear::Rows {
                sparse: stage.reads_ngrams().then_some(sparse.as_slice()),
                n_features: if stage.reads_ngrams() { features.len() } else { 0 },
                dense: dense.as_deref().filter(|_| stage.reads_embedding()),
                dense_scale: path.embedding_scale as f32,
                classes: &classes,
                n_classes,
            };
            let mut solver = linear::Solver::new(rows, run.seed);
            for &c in path.c {
                if best.is_some() && (run.clock)() > run.deadline {
                    out_of_time = true;
                    break;
                }
                progress(Progress { stage: "training rungs", done: tried, total: Some(total), unit: Unit::Steps });
                tried += 1;
                let weights = solver.solve(c as f32, run.pool);
                let head = LinearHead::quantise(weights.bias, &weights.sparse, weights.dense);
                let margins = validation.margins(&head);
                let measured = metrics::measure(target.metric, &calls(&margins), gold, n_classes, run.seed);
                if best.as_ref().is_none_or(|best| measured.value > best.record.validation) {
                    let record = RungRecord {
                        rung: stage,
                        c,
                        embedding_scale: path.embedding_scale,
                        validation: measured.value,
                        interval: measured.interval,
                        against_best: None,
                    };
                    best = Some(Rung { stage, head, record, validation: margins, seconds: 0.0 });
                }
            }
        }
        let mut rung = best.expect("a grid is not empty");
        rung.seconds = ((run.clock)() - start).as_secs_f64();
        rungs.push(rung);
    }
    progress(Progress { stage: "training rungs", done: total, total: Some(total), unit: Unit::Steps });
    let chosen = choose(&mut rungs, gold, n_classes, target, run.seed);
    Ladder { features, rungs, chosen, out_of_time }
}

/// The smallest rung that is non-inferior to the best; notes each comparison in the rung's record.
fn choose(rungs: &mut [Rung], gold: &[usize], n_classes: usize, target: &Target, seed: u64) -> usize {
    let values = rungs.iter().map(|rung| rung.record.validation);
    // The first of equals is the smallest.
    let best =
        values.enumerate().fold((0, f64::MIN), |best, (at, value)| if value > best.1 { (at, value) } else { best }).0;
    let best_calls = calls(&rungs[best].validation);
    let mut chosen = best;
    for at in (0..rungs.len()).rev().filter(|at| *at != best) {
        let these = calls(&rungs[at].validation);
        let good_enough = match target.metric {
            Metric::Accuracy | Metric::MicroF1 => {
                let test = compare(&these, &best_calls, gold, target.margin);
                rungs[at].record.against_best = Some(test);
                test.verdict == Verdict::NonInferior
            }
            Metric::MacroF1 => metrics::non_inferior_by_bootstrap(
                target.metric,
                &these,
                &best_calls,
                gold,
                n_classes,
                target.margin,
                seed,
            ),
        };
        if good_enough && at < best {
            chosen = at;
        }
    }
    chosen
}

fn compare(candidate: &[usize], reference: &[usize], gold: &[usize], margin: f64) -> NonInferiority {
    let right = |calls: &[usize]| calls.iter().zip(gold).map(|(a, b)| a == b).collect::<Vec<bool>>();
    Paired::count(&right(candidate), &right(reference)).non_inferiority(margin)
}

/// The class each row is called.
pub fn calls(margins: &[Vec<f32>]) -> Vec<usize> {
    margins.iter().map(|row| predicted(row)).collect()
}

/// Rows that are held out of training, with their features.
pub struct Held<'a> {
    sparse: Vec<SparseRow>,
    embeddings: Option<&'a [Vec<f32>]>,
    /// Gold classes.
    pub classes: Vec<usize>,
}

impl<'a> Held<'a> {
    /// The rows of one part.
    pub fn of(splits: &Splits, part: Part, features: &Features, embeddings: Option<&'a Embeddings>) -> Self {
        let rows = splits.part(part);
        Self {
            sparse: rows.iter().map(|example| features.apply(&example.row.text)).collect(),
            embeddings: embeddings.map(|all| all[part as usize].as_slice()),
            classes: rows.iter().map(|example| example.class).collect(),
        }
    }

    /// Margins of every row under a head that reads the same features.
    pub fn margins(&self, head: &LinearHead) -> Vec<Vec<f32>> {
        (0..self.sparse.len())
            .map(|at| head.margins(Some(&self.sparse[at]), self.embeddings.map(|all| all[at].as_slice())))
            .collect()
    }
}
