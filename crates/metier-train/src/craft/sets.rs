//! The rungs of tasks whose rows have several labels: one-versus-rest models whose thresholds are set label by label.
//!
//! Each rung is what it is for one label a row (features, grid, solver); a row is simply positive for each of its labels. A linear model
//! that was trained to part rare labels from the rest lies too far on the side of "no" for F1, so the threshold of each label is the one that
//! is best on validation rows (Yang 2001, "S-cut"), where it has [`MIN_POSITIVES`] of them; the others share one threshold. Thresholds go into
//! the head's bias: a label is called where its margin is above 0. An encoder is tuned by the cross entropy of each label for itself; what ships on
//! its vectors is the same one-versus-rest model as on any others.

use metier_model::{
    Encoder, Progress, Unit,
    features::{Features, SparseRow},
    head::{LinearHead, max_features},
    specialist::{
        manifest::{RungRecord, Stage},
        sets::{SetScores, called},
    },
};

use super::{
    encoder::{self, Gold, TuneError},
    ladder::{
        BOTH_GRID, Embeddings, HEAD_GRID, Held, LINEAR_GRID, MIN_FEATURE_ROWS, Own, Path, Run, SkippedRung, TUNED_GRID,
        tuning::{Outcome, Subject},
        whole_text,
    },
    linear::{self, Targets},
};
use crate::{
    data::{Part, sets::SetSplits, task::Metric, task::Target},
    eval::{calibrate, cluster::Groups, learning::Workshop, sets as figures},
};

/// Validation rows that a label needs for a threshold of its own.
pub const MIN_POSITIVES: usize = 8;

/// A rung that was made.
pub struct SetRung {
    /// Which.
    pub stage: Stage,
    /// The classifier as it would ship: int8 weights, thresholds in its bias.
    pub head: LinearHead,
    /// Settings and validation figures.
    pub record: RungRecord,
    /// Margins of the validation rows.
    pub validation: Vec<Vec<f32>>,
    /// Time spent on all its settings; for a tuned encoder all of it, else embedding not included.
    pub seconds: f64,
    /// What it alone reads, where it does.
    pub own: Option<Own>,
}

impl SetRung {
    /// What it reads beside n-grams: its own, else the frozen encoder's vectors.
    pub fn embeddings<'a>(&'a self, frozen: Option<&'a Embeddings>) -> Option<&'a Embeddings> {
        self.own.as_ref().map(|own| &own.embeddings).or(frozen)
    }
}

/// All rungs, smallest first, and which was taken.
pub struct SetLadder {
    /// The n-grams that the rungs share.
    pub features: Features,
    /// At least one.
    pub rungs: Vec<SetRung>,
    /// Index of the rung taken.
    pub chosen: usize,
    /// True if the time budget ended a grid early.
    pub out_of_time: bool,
    /// A rung that was predicted not to end in time.
    pub skipped: Option<SkippedRung>,
    /// A rung that this encoder or these rows do not allow, and why.
    pub not_made: Option<(String, String)>,
}

/// What the ladder stands on.
#[derive(Clone, Copy)]
pub struct Ground<'a> {
    /// Rows by part, each with its labels.
    pub sets: &'a SetSplits,
    /// Vectors of the frozen encoder; without them only `linear` runs.
    pub embeddings: Option<&'a Embeddings>,
    /// The encoder, where its layers can be tuned.
    pub encoder: Option<&'a Encoder>,
    /// The lowest rung that is made.
    pub from: Stage,
    /// The highest rung that may run.
    pub up_to: Stage,
    /// How an encoder is tuned.
    pub tuning: &'a encoder::Recipe,
    /// May a rung read n-grams? Without them the rungs `linear` and `both` are not made.
    pub ngrams: bool,
}

/// Makes the rungs and chooses the smallest that is good enough.
pub fn climb(ground: Ground<'_>, target: &Target, run: &Run<'_>, progress: &mut dyn FnMut(Progress<'_>)) -> SetLadder {
    let Ground { sets, embeddings, encoder, from, up_to, tuning, ngrams } = ground;
    let texts = || sets.splits.part(Part::Train).iter().map(|example| example.row.text.as_str());
    let features = Features::fit(texts(), MIN_FEATURE_ROWS, max_features(sets.splits.labels.len()));
    let sparse: Vec<SparseRow> = texts().map(|text| features.apply(text)).collect();
    let plans: Vec<(Stage, &[Path])> =
        [(Stage::Linear, &LINEAR_GRID[..]), (Stage::Head, &HEAD_GRID), (Stage::Both, &BOTH_GRID)]
            .into_iter()
            .filter(|(stage, _)| (!stage.reads_embedding() || embeddings.is_some()) && (from..=up_to).contains(stage))
            .filter(|(stage, _)| ngrams || !stage.reads_ngrams())
            .collect();
    let tunes = encoder.filter(|_| (from..=up_to).contains(&Stage::Tuned) && embeddings.is_some());
    let total = plans.iter().flat_map(|(_, paths)| *paths).map(|path| path.c.len()).sum();
    let mut shop =
        Shop { sets, features: &features, sparse: &sparse, target, run, ngrams, steps: (0, total), cut: false };
    let mut rungs: Vec<SetRung> =
        plans.into_iter().map(|(stage, paths)| shop.make(stage, paths, embeddings, progress)).collect();
    let (mut skipped, mut not_made) = (None, None);
    if let Some(encoder) = tunes {
        match shop.tune(encoder, tuning, progress) {
            Ok(Tuned::Rung(rung)) => rungs.push(*rung),
            Ok(Tuned::Skipped(rung)) => skipped = Some(rung),
            // The rungs below it stand.
            Err(error) => not_made = Some((Stage::Tuned.name().to_owned(), whole_text(&error))),
        }
    }
    if rungs.is_empty() {
        // There is always something to answer with.
        shop.ngrams = true;
        rungs.push(shop.make(Stage::Linear, &LINEAR_GRID, None, progress));
    }
    let out_of_time = shop.cut;
    let chosen = choose(&mut rungs, sets, target, run.seed);
    SetLadder { features, rungs, chosen, out_of_time, skipped, not_made }
}

enum Tuned {
    Rung(Box<SetRung>),
    Skipped(SkippedRung),
}

/// Everything that rungs share.
struct Shop<'a> {
    sets: &'a SetSplits,
    features: &'a Features,
    sparse: &'a [SparseRow],
    target: &'a Target,
    run: &'a Run<'a>,
    ngrams: bool,
    /// Settings that were tried, of how many.
    steps: (u64, usize),
    /// Time ended before all settings of a rung were tried.
    cut: bool,
}

impl Shop<'_> {
    /// A model a label on what `stage` reads, with the best of its settings.
    fn make(
        &mut self,
        stage: Stage,
        paths: &[Path],
        embeddings: Option<&Embeddings>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> SetRung {
        let (run, splits, metric) = (self.run, &self.sets.splits, self.target.metric);
        let n_labels = splits.labels.len();
        let start = (run.clock)();
        let dense: Option<Vec<&[f32]>> =
            embeddings.map(|all| all[Part::Train as usize].iter().map(Vec::as_slice).collect());
        let held = Held::of(splits, Part::Validation, self.features, embeddings);
        let gold = &self.sets.sets[Part::Validation as usize];
        let groups = Groups::of(splits.part(Part::Validation).iter().map(|row| row.row.group.as_deref()));
        let reads_ngrams = stage.reads_ngrams() && self.ngrams;
        let mut best: Option<SetRung> = None;
        for path in paths {
            let rows = linear::Rows {
                sparse: reads_ngrams.then_some(self.sparse),
                n_features: if reads_ngrams { self.features.len() } else { 0 },
                dense: dense.as_deref().filter(|_| stage.reads_embedding()),
                dense_scale: path.embedding_scale as f32,
                targets: Targets::Sets(&self.sets.sets[Part::Train as usize]),
                n_classes: n_labels,
            };
            let mut solver = linear::Solver::new(rows, run.seed);
            for &c in path.c {
                if best.is_some() && (run.clock)() > run.deadline {
                    self.cut = true;
                    break;
                }
                let (done, total) = (self.steps.0, Some(self.steps.1 as u64));
                progress(Progress { stage: "training rungs", done, total, unit: Unit::Steps });
                self.steps.0 += 1;
                let weights = solver.solve(c as f32, run.pool);
                let head = LinearHead::quantise(weights.bias, &weights.sparse, weights.dense);
                let bias: Vec<f32> =
                    thresholds(&held.margins(&head), gold, n_labels, metric).iter().map(|t| -t).collect();
                let head = head.blended(1.0, &bias, &[]);
                let validation = held.margins(&head);
                let calls: Vec<Vec<usize>> = validation.iter().map(|row| called(row)).collect();
                let measured = figures::measure(metric, &calls, gold, n_labels, run.seed, groups.as_ref());
                if best.as_ref().is_none_or(|best| measured.value > best.record.validation) {
                    let record = RungRecord {
                        c,
                        embedding_scale: path.embedding_scale,
                        ..RungRecord::new(stage, measured.value, measured.interval)
                    };
                    best = Some(SetRung { stage, head, record, validation, seconds: 0.0, own: None });
                }
            }
        }
        let mut rung = best.expect("a grid is not empty");
        rung.seconds = ((run.clock)() - start).as_secs_f64();
        rung
    }

    /// The rung whose encoder is tuned, if it is predicted to end in time.
    fn tune(
        &mut self,
        encoder: &Encoder,
        recipe: &encoder::Recipe,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Tuned, TuneError> {
        let start = (self.run.clock)();
        let texts = Part::ALL.map(|part| {
            self.sets.splits.part(part).iter().map(|example| example.row.text.as_str()).collect::<Vec<&str>>()
        });
        // Of a row with several labels there is no one class whose other rows it should lie near to.
        let recipe = encoder::Recipe { metric: self.target.metric, contrast: 0.0, ..recipe.clone() };
        let [train, validation, ..] = &self.sets.sets;
        let subject = Subject {
            encoder,
            recipe: &recipe,
            texts: &texts,
            gold: [Gold::Sets(train), Gold::Sets(validation)],
            n_classes: self.sets.splits.labels.len(),
            lesson: None,
        };
        let layers = match subject.tune(self.run, progress)? {
            Outcome::Layers(layers) => *layers,
            Outcome::Skipped(rung) => return Ok(Tuned::Skipped(rung)),
        };
        self.steps = (0, TUNED_GRID.iter().map(|path| path.c.len()).sum());
        let mut rung = self.make(Stage::Tuned, &TUNED_GRID, Some(&layers.embeddings), progress);
        rung.seconds = ((self.run.clock)() - start).as_secs_f64();
        rung.record.tuning = Some(layers.record);
        rung.own = Some(Own { file: Some(layers.file), embeddings: layers.embeddings, ..Own::default() });
        Ok(Tuned::Rung(Box::new(rung)))
    }
}

/// The rung with its settings, made from some of the training rows: what it calls the validation rows. Thresholds are set on those, as they are
/// for the rung that ships.
pub fn calls_from(
    sets: &SetSplits,
    embeddings: Option<&Embeddings>,
    rung: &SetRung,
    rows: &[usize],
    metric: Metric,
    shop: &Workshop<'_>,
) -> Vec<Vec<usize>> {
    let splits = &sets.splits;
    let (train, n_labels) = (splits.part(Part::Train), splits.labels.len());
    let texts = || rows.iter().map(|&row| train[row].row.text.as_str());
    let features = Features::fit(texts(), MIN_FEATURE_ROWS, max_features(n_labels));
    let sparse: Vec<SparseRow> = texts().map(|text| features.apply(text)).collect();
    let dense: Option<Vec<&[f32]>> =
        embeddings.map(|all| rows.iter().map(|&row| all[Part::Train as usize][row].as_slice()).collect());
    let targets: Vec<Vec<usize>> = rows.iter().map(|&row| sets.sets[Part::Train as usize][row].clone()).collect();
    let stage = rung.stage;
    let reads_ngrams = stage.has_ngrams(&rung.head);
    let rows = linear::Rows {
        sparse: reads_ngrams.then_some(sparse.as_slice()),
        n_features: if reads_ngrams { features.len() } else { 0 },
        dense: dense.as_deref().filter(|_| stage.reads_embedding()),
        dense_scale: rung.record.embedding_scale as f32,
        targets: Targets::Sets(&targets),
        n_classes: n_labels,
    };
    let weights = linear::Solver::new(rows, shop.seed).solve(rung.record.c as f32, shop.pool);
    let head = LinearHead::quantise(weights.bias, &weights.sparse, weights.dense);
    let margins = Held::of(splits, Part::Validation, &features, embeddings).margins(&head);
    let cuts = thresholds(&margins, &sets.sets[Part::Validation as usize], n_labels, metric);
    let over = |row: &Vec<f32>| (0..n_labels).filter(|&label| row[label] > cuts[label]).collect();
    margins.iter().map(over).collect()
}

fn choose(rungs: &mut [SetRung], sets: &SetSplits, target: &Target, seed: u64) -> usize {
    let gold = &sets.sets[Part::Validation as usize];
    let groups = Groups::of(sets.splits.part(Part::Validation).iter().map(|row| row.row.group.as_deref()));
    let calls: Vec<Vec<Vec<usize>>> =
        rungs.iter().map(|rung| rung.validation.iter().map(|row| called(row)).collect()).collect();
    // The first of equals is the smallest.
    let best = (1..rungs.len())
        .fold(0, |best, at| if rungs[at].record.validation > rungs[best].record.validation { at } else { best });
    let mut chosen = best;
    for at in (0..rungs.len()).rev().filter(|at| *at != best) {
        let (good_enough, test) = figures::non_inferior(
            target.metric,
            &calls[at],
            &calls[best],
            gold,
            sets.splits.labels.len(),
            target.margin,
            seed,
            groups.as_ref(),
        );
        rungs[at].record.against_best = test;
        if good_enough && at < best {
            chosen = at;
        }
    }
    chosen
}

/// The threshold of each label: what is best for its F1 on these rows (for the share of right decisions, where exact matches are what counts),
/// or the threshold of all labels together where too few rows have it.
pub fn thresholds(margins: &[Vec<f32>], gold: &[Vec<usize>], n_labels: usize, metric: Metric) -> Vec<f32> {
    let mut all: Vec<(f32, bool)> = Vec::with_capacity(margins.len() * n_labels);
    let mut own: Vec<Option<f32>> = Vec::with_capacity(n_labels);
    for label in 0..n_labels {
        let mut pairs: Vec<(f32, bool)> =
            margins.iter().zip(gold).map(|(row, set)| (row[label], set.binary_search(&label).is_ok())).collect();
        let positives = pairs.iter().filter(|(_, is)| *is).count();
        all.extend_from_slice(&pairs);
        own.push((positives >= MIN_POSITIVES).then(|| best_cut(&mut pairs, metric)));
    }
    let common = best_cut(&mut all, metric);
    own.into_iter().map(|own| own.unwrap_or(common)).collect()
}

/// The cut between two margins above which calling "yes" is best; of equal ones the nearest to 0.
fn best_cut(pairs: &mut [(f32, bool)], metric: Metric) -> f32 {
    pairs.sort_by(|a, b| b.0.total_cmp(&a.0));
    let positives = pairs.iter().filter(|(_, is)| *is).count();
    if positives == 0 {
        return 0.0;
    }
    let value = |right: usize, called: usize| match metric {
        // Wrong decisions: false calls and misses.
        Metric::Accuracy => -((called - right + positives - right) as f64),
        _ => 2.0 * right as f64 / (called + positives) as f64,
    };
    let first = pairs[0].0;
    let (mut best, mut right) = ((value(0, 0), first + first.abs().max(1.0)), 0);
    for at in 0..pairs.len() {
        right += usize::from(pairs[at].1);
        let next = pairs.get(at + 1).map_or(pairs[at].0 - 1.0, |next| next.0);
        if next == pairs[at].0 {
            continue;
        }
        let (value, cut) = (value(right, at + 1), (pairs[at].0 + next) / 2.0);
        if value > best.0 || (value == best.0 && cut.abs() < best.1.abs()) {
            best = (value, cut);
        }
    }
    best.1
}

/// How sure of its sets a rung is: one line over the margins of all decisions, one over whole rows.
pub fn fit_scores(margins: &[Vec<f32>], gold: &[Vec<usize>]) -> SetScores {
    let (mut odds, mut right) = (Vec::new(), Vec::new());
    for (row, set) in margins.iter().zip(gold) {
        for (label, margin) in row.iter().enumerate() {
            odds.push(f64::from(margin.abs()));
            right.push((*margin > 0.0) == set.binary_search(&label).is_ok());
        }
    }
    let decision = calibrate::fit_line(&odds, &right);
    let as_is = metier_model::extract::ScoreLine { slope: 1.0, offset: 0.0 };
    let raw = SetScores { decision, row: as_is };
    let odds: Vec<f64> = margins.iter().map(|row| metier_model::extract::log_odds(raw.log_probability(row))).collect();
    let exact: Vec<bool> = margins.iter().zip(gold).map(|(row, set)| called(row) == *set).collect();
    SetScores { decision, row: calibrate::fit_line(&odds, &exact) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_is_where_its_measure_is_best() {
        let check = |pairs: &[(f32, bool)], metric, expected: f32| {
            let cut = best_cut(&mut pairs.to_vec(), metric);
            assert!((cut - expected).abs() < 1e-6, "{pairs:?}: {cut} instead of {expected}");
        };
        // Called: two right and one wrong is F1 0.8; one right is 2/3.
        let pairs = [(2.0, true), (1.0, false), (-0.5, true), (-1.5, false), (-3.0, false)];
        check(&pairs, Metric::MicroF1, -1.0);
        // One wrong decision either way: nearest to 0 of the cuts at 1.5 and -1.
        check(&pairs, Metric::Accuracy, -1.0);
        check(&[(1.0, false), (0.5, false)], Metric::MicroF1, 0.0);
        check(&[(1.0, true), (1.0, false), (0.0, false)], Metric::MicroF1, 0.5);
    }

    #[test]
    fn rare_labels_share_a_threshold() {
        // Label 0 stands in 20 rows and is told apart at -1; label 1 stands in 2.
        let gold: Vec<Vec<usize>> = (0..60)
            .map(|i| {
                if i < 20 {
                    vec![0]
                } else if i < 22 {
                    vec![1]
                } else {
                    vec![]
                }
            })
            .collect();
        let margins: Vec<Vec<f32>> = (0..60).map(|i| vec![if i < 20 { -0.5 } else { -1.5 }, -2.0]).collect();
        let found = thresholds(&margins, &gold, 2, Metric::MicroF1);
        assert!((found[0] + 1.0).abs() < 1e-6 && (found[1] + 1.0).abs() < 1e-6, "{found:?}");
    }

    #[test]
    fn scores_tell_how_often_whole_sets_are_right() {
        use metier_model::specialist::mix;
        let mut state = 5u64;
        let mut uniform = || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            (mix(state) >> 11) as f64 / (1u64 << 53) as f64
        };
        // Ten decisions, each right with probability σ(3·|m| + 1), independently.
        let (mut margins, mut gold) = (Vec::new(), Vec::new());
        for _ in 0..3000 {
            let row: Vec<f32> = (0..10).map(|_| (2.0 * uniform() - 1.0) as f32 * 2.0).collect();
            let set = (0..10).filter(|&k| {
                let right = uniform() < 1.0 / (1.0 + (-(3.0 * f64::from(row[k].abs()) + 1.0)).exp());
                (row[k] > 0.0) == right
            });
            gold.push(set.collect::<Vec<usize>>());
            margins.push(row);
        }
        let scores = fit_scores(&margins, &gold);
        assert!(scores.is_valid() && (scores.decision.slope - 3.0).abs() < 0.3, "{scores:?}");
        let exact: Vec<bool> = margins.iter().zip(&gold).map(|(row, set)| called(row) == *set).collect();
        let all: Vec<f32> = margins.iter().map(|row| scores.score(row)).collect();
        let (error, _) = crate::eval::metrics::calibration_error(&all, &exact, 1, None);
        assert!(error.value < 0.03, "{error:?}");
    }
}
