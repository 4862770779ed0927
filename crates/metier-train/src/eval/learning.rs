//! Would more rows help? The chosen rung, made again from an eighth, a quarter and a half of the training rows.
//!
//! Subsets are nested and keep the share of every label (with a group column: whole groups). Each is measured on the validation rows. Through
//! the errors goes a power law, error = a·n^(−b), by least squares on logarithms, weighted by what each point is worth; its
//! uncertainty comes from resampling the validation rows. What it says beyond four times the rows there are is refused:
//! four points cannot show the floor that every curve has.

use std::time::Duration;

use metier_kernels::Pool;
use metier_model::{
    Digest,
    features::{Features, SparseRow},
    head::{LinearHead, max_features},
    specialist::{manifest::Stage, sets::called},
};
use serde::{Deserialize, Serialize};

use super::{
    cluster::Groups,
    metrics::{self, Measured, quantile},
    sets as figures,
};
use crate::{
    craft::{
        ladder::{self, Embeddings, Held, MIN_FEATURE_ROWS, Rung},
        linear, pair,
        sets::{self, SetRung},
    },
    data::{Part, Splits, sets::SetSplits, split::Example, task::Metric},
};

/// Shares of the training rows, as divisors.
const DIVISORS: [usize; 3] = [8, 4, 2];
/// Forecasts go no further than this many times the rows there are.
const MOST_TIMES: f64 = 4.0;
/// Resamples of the validation rows.
const RESAMPLES: usize = 500;
/// With fewer training rows there is nothing to halve.
const MIN_ROWS: usize = 64;
/// What "better" means where there is no reference to reach.
const ONE_POINT: f64 = 0.01;

/// The curve, and what it allows to say.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LearningCurve {
    /// The rung that was made again.
    pub rung: Stage,
    /// By rising number of rows; the last is the rung that ships.
    pub points: Vec<CurvePoint>,
    /// `b` of error = a·n^(−b), with its 95 % interval.
    pub exponent: Option<Measured>,
    /// The metric to expect at twice and at four times the rows.
    pub forecasts: Vec<CurvePoint>,
    /// How many rows it would take.
    pub aim: Aim,
}

/// The metric at a number of training rows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// Training rows.
    pub n: u64,
    /// The metric on validation rows.
    pub value: f64,
    /// Its 95 % interval.
    pub interval: [f64; 2],
}

/// A value to reach.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Aim {
    /// What is to be reached, in words.
    pub what: String,
    /// The metric there.
    pub value: f64,
    /// About so many training rows in all; `None` where the curve does not say.
    pub rows: Option<u64>,
    /// Its 95 % interval; an upper end that is `None` lies beyond what is extrapolated to.
    pub rows_interval: Option<(u64, Option<u64>)>,
    /// Why there is no number.
    pub cannot_tell: Option<String>,
}

/// What making the rung again needs.
pub struct Workshop<'a> {
    /// Names of the inputs.
    pub inputs: &'a [String],
    /// Threads.
    pub pool: &'a Pool,
    /// Seed of subsets, permutations and resamples.
    pub seed: u64,
    /// Time since the build began.
    pub clock: &'a dyn Fn() -> Duration,
    /// When a further point is no longer begun.
    pub deadline: Duration,
}

/// Makes the curve of a rung; the reason where there is none.
pub fn measure(
    splits: &Splits,
    embeddings: Option<&Embeddings>,
    rung: &Rung,
    metric: Metric,
    shop: &Workshop<'_>,
) -> Result<LearningCurve, String> {
    let train = splits.part(Part::Train);
    if matches!(rung.stage, Stage::Tuned | Stage::Decoder) {
        return Err(format!("no learning curve: the rung `{}` is not made again for it", rung.stage.name()));
    }
    if matches!(metric, Metric::F1 { .. }) && rung.stage != Stage::Pair {
        return Err("no learning curve: for the F1 of one label it is made of the rung `pair` alone".to_owned());
    }
    if train.len() < MIN_ROWS {
        return Err(format!("no learning curve: {} training rows are too few to take parts of", train.len()));
    }
    let order = order(train, shop.seed);
    let gold: Vec<usize> = splits.part(Part::Validation).iter().map(|example| example.class).collect();
    let mut calls = Vec::new();
    for divisor in DIVISORS {
        // A part of the rows takes at most that part of the time that all settings of the rung took.
        let expected = Duration::from_secs_f64(rung.seconds / divisor as f64);
        if (shop.clock)() + expected > shop.deadline {
            return Err("no learning curve: the time budget ended before it".to_owned());
        }
        let rows = &order.rows[..order.upto(train.len().div_ceil(divisor))];
        calls.push((rows.len(), again(splits, embeddings, rung, rows, metric, shop)));
    }
    calls.push((train.len(), ladder::calls(&rung.validation)));
    let n_classes = splits.labels.len();
    let points = calls.iter().map(|(n, calls)| {
        let measured = metrics::measure(metric, calls, &gold, n_classes, shop.seed);
        CurvePoint { n: *n as u64, value: measured.value, interval: measured.interval }
    });
    let reference =
        reference(splits.part(Part::Validation)).filter(|_| matches!(metric, Metric::Accuracy | Metric::MicroF1));
    let value = |at: usize, rows: &[usize]| metrics::value(metric, &calls[at].1, &gold, rows, n_classes);
    let measured = Curve { points: points.collect(), n_rows: gold.len(), value: &value };
    Ok(conclude(rung.stage, measured, reference, shop.seed))
}

/// The same of a rung that gives several labels.
pub fn measure_sets(
    sets: &SetSplits,
    embeddings: Option<&Embeddings>,
    rung: &SetRung,
    metric: Metric,
    shop: &Workshop<'_>,
) -> Result<LearningCurve, String> {
    let splits = &sets.splits;
    let (train, validation) = (splits.part(Part::Train), splits.part(Part::Validation));
    if rung.own.is_some() {
        return Err(format!("no learning curve: the rung `{}` is not made again for it", rung.stage.name()));
    }
    if train.len() < MIN_ROWS {
        return Err(format!("no learning curve: {} training rows are too few to take parts of", train.len()));
    }
    let order = order(train, shop.seed);
    let gold = &sets.sets[Part::Validation as usize];
    let groups = Groups::of(validation.iter().map(|example| example.row.group.as_deref()));
    let mut calls: Vec<(usize, Vec<Vec<usize>>)> = Vec::new();
    for divisor in DIVISORS {
        let expected = Duration::from_secs_f64(rung.seconds / divisor as f64);
        if (shop.clock)() + expected > shop.deadline {
            return Err("no learning curve: the time budget ended before it".to_owned());
        }
        let rows = &order.rows[..order.upto(train.len().div_ceil(divisor))];
        calls.push((rows.len(), sets::calls_from(sets, embeddings, rung, rows, metric, shop)));
    }
    calls.push((train.len(), rung.validation.iter().map(|row| called(row)).collect()));
    let n_labels = splits.labels.len();
    let points = calls.iter().map(|(n, calls)| {
        let measured = figures::measure(metric, calls, gold, n_labels, shop.seed, groups.as_ref());
        CurvePoint { n: *n as u64, value: measured.value, interval: measured.interval }
    });
    let value = |at: usize, rows: &[usize]| figures::value(metric, &calls[at].1, gold, rows, n_labels);
    let measured = Curve { points: points.collect(), n_rows: gold.len(), value: &value };
    Ok(conclude(rung.stage, measured, None, shop.seed))
}

/// Training rows in the order in which subsets take them.
struct Order {
    rows: Vec<usize>,
    /// Positions at which a subset may end: between groups.
    ends: Option<Vec<usize>>,
}

impl Order {
    /// The end of a subset of about `n` rows.
    fn upto(&self, n: usize) -> usize {
        let Some(ends) = &self.ends else { return n };
        ends[ends.partition_point(|end| *end < n).min(ends.len() - 1)]
    }
}

/// By hash, so that subsets are nested and the same at every run; row k of n of a label stands at k/n of the way.
fn order(train: &[Example], seed: u64) -> Order {
    let hash = |text: &str| Digest::of(format!("curve {seed} {text}").as_bytes());
    if train.iter().all(|example| example.row.group.is_some()) {
        let group = |row: usize| train[row].row.group.as_deref().unwrap_or_default();
        let mut rows: Vec<usize> = (0..train.len()).collect();
        rows.sort_by_cached_key(|&row| (hash(group(row)), row));
        let ends = (1..=rows.len()).filter(|&at| at == rows.len() || group(rows[at - 1]) != group(rows[at]));
        return Order { ends: Some(ends.collect()), rows };
    }
    let n_classes = train.iter().map(|example| example.class + 1).max().unwrap_or(0);
    let mut by_class = vec![Vec::new(); n_classes];
    train.iter().enumerate().for_each(|(row, example)| by_class[example.class].push(row));
    let mut placed: Vec<(f64, usize)> = Vec::new();
    for mut rows in by_class {
        rows.sort_by_cached_key(|&row| (hash(&train[row].row.text), row));
        let n = rows.len() as f64;
        placed.extend(rows.into_iter().enumerate().map(|(k, row)| ((k as f64 + 0.5) / n, row)));
    }
    placed.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    Order { rows: placed.into_iter().map(|(_, row)| row).collect(), ends: None }
}

/// The rung with its settings, made from some of the training rows: what it calls the validation rows.
fn again(
    splits: &Splits,
    embeddings: Option<&Embeddings>,
    rung: &Rung,
    rows: &[usize],
    metric: Metric,
    shop: &Workshop<'_>,
) -> Vec<usize> {
    if rung.stage == Stage::Pair {
        let run =
            ladder::Run { pool: shop.pool, seed: shop.seed, clock: shop.clock, deadline: shop.deadline, keeps: None };
        return pair::calls_from(shop.inputs, splits, rows, metric, &run);
    }
    let train = splits.part(Part::Train);
    let n_classes = splits.labels.len();
    let texts = || rows.iter().map(|&row| train[row].row.text.as_str());
    let features = Features::fit(texts(), MIN_FEATURE_ROWS, max_features(n_classes));
    let sparse: Vec<SparseRow> = texts().map(|text| features.apply(text)).collect();
    let dense: Option<Vec<&[f32]>> =
        embeddings.map(|all| rows.iter().map(|&row| all[Part::Train as usize][row].as_slice()).collect());
    let classes: Vec<usize> = rows.iter().map(|&row| train[row].class).collect();
    let rows = linear::Rows {
        sparse: rung.stage.reads_ngrams().then_some(sparse.as_slice()),
        n_features: if rung.stage.reads_ngrams() { features.len() } else { 0 },
        dense: dense.as_deref().filter(|_| rung.stage.reads_embedding()),
        dense_scale: rung.record.embedding_scale as f32,
        targets: linear::Targets::One(&classes),
        n_classes,
    };
    let weights = linear::Solver::new(rows, shop.seed).solve(rung.record.c as f32, shop.pool);
    let head = LinearHead::quantise(weights.bias, &weights.sparse, weights.dense);
    ladder::calls(&Held::of(splits, Part::Validation, &features, embeddings).margins(&head))
}

/// Share of rows that the reference got right, where there is one.
fn reference(validation: &[Example]) -> Option<f64> {
    let answers: Option<Vec<bool>> =
        validation.iter().map(|example| Some(*example.row.reference.as_ref()? == example.row.label)).collect();
    let answers = answers.filter(|answers| !answers.is_empty())?;
    Some(answers.iter().filter(|right| **right).count() as f64 / answers.len() as f64)
}

/// What was measured.
struct Curve<'a> {
    points: Vec<CurvePoint>,
    /// Validation rows.
    n_rows: usize,
    /// The metric of a point on some of these rows, which may be named more than once.
    value: &'a dyn Fn(usize, &[usize]) -> f64,
}

fn conclude(rung: Stage, curve: Curve<'_>, reference: Option<f64>, seed: u64) -> LearningCurve {
    let Curve { points, n_rows, value: value_of } = curve;
    let last = points.last().copied().expect("there is the rung itself");
    let (what, value) = match reference {
        Some(reference) if reference > last.value => ("as good as the reference on validation rows", reference),
        _ => ("one point better", (last.value + ONE_POINT).min(1.0)),
    };
    let mut aim = Aim { what: what.to_owned(), value, rows: None, rows_interval: None, cannot_tell: None };
    let errors: Vec<(f64, f64)> = points.iter().map(|point| (point.n as f64, 1.0 - point.value)).collect();
    let Some(law) = PowerLaw::fit(&errors) else {
        aim.cannot_tell = Some("a point of the curve has no errors: there is nothing to extrapolate".to_owned());
        return LearningCurve { rung, points, exponent: None, forecasts: Vec::new(), aim };
    };
    // The four points on the same resampled rows: they rise and fall together, and so do their differences.
    let laws = metrics::resample_with(n_rows, seed, RESAMPLES, |rows| {
        let errors = points.iter().enumerate().map(|(at, point)| (point.n as f64, 1.0 - value_of(at, rows)));
        PowerLaw::fit(&errors.collect::<Vec<_>>())
    });
    let laws: Vec<PowerLaw> = laws.into_iter().flatten().collect();
    let sorted = |of: &dyn Fn(&PowerLaw) -> f64| {
        let mut values: Vec<f64> = laws.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let interval = |values: &[f64]| [quantile(values, 0.025), quantile(values, 0.975)];
    if laws.is_empty() {
        aim.cannot_tell = Some("too few errors to extrapolate from".to_owned());
        return LearningCurve { rung, points, exponent: None, forecasts: Vec::new(), aim };
    }
    let n = last.n as f64;
    let forecasts = [2.0, MOST_TIMES].map(|times| {
        let expected = |law: &PowerLaw| 1.0 - law.at(times * n);
        CurvePoint { n: (times * n) as u64, value: expected(&law), interval: interval(&sorted(&expected)) }
    });
    let exponent = Measured { value: law.b, interval: interval(&sorted(&|law| law.b)) };
    let needed = law.rows_for(1.0 - value);
    let [low, high] = interval(&sorted(&|law| law.rows_for(1.0 - value)));
    let most = MOST_TIMES * n;
    if exponent.interval[0] <= 0.0 {
        aim.cannot_tell = Some(format!(
            "from {} to {} rows it did not get measurably better: rows of another kind, or better labels, may do more than more rows",
            points[0].n, last.n
        ));
    } else if needed > most {
        aim.cannot_tell = Some(format!(
            "it would take more than {MOST_TIMES} times the rows there are ({} training rows), and that far the curve is not trusted",
            last.n
        ));
    } else {
        aim.rows = Some(rounded(needed));
        aim.rows_interval = Some((rounded(low.max(n)), (high <= most).then(|| rounded(high))));
    }
    LearningCurve { rung, points, exponent: Some(exponent), forecasts: forecasts.to_vec(), aim }
}

/// Two digits: more would be pretence.
fn rounded(rows: f64) -> u64 {
    let scale = 10f64.powf((rows.max(1.0).log10().floor() - 1.0).max(0.0));
    ((rows / scale).ceil() * scale) as u64
}

/// error = a·n^(−b)
#[derive(Clone, Copy, Debug)]
struct PowerLaw {
    log_a: f64,
    b: f64,
}

impl PowerLaw {
    /// Through `(rows, error)`; `None` where an error is 0 or 1.
    fn fit(points: &[(f64, f64)]) -> Option<Self> {
        if points.iter().any(|(_, error)| *error <= 0.0 || *error >= 1.0) {
            return None;
        }
        // Var(log e) ≈ (1 − e)/(e·rows), the same rows for all points.
        let weighted: Vec<(f64, f64, f64)> = points.iter().map(|(n, e)| (n.ln(), e.ln(), e / (1.0 - e))).collect();
        let total: f64 = weighted.iter().map(|(_, _, w)| w).sum();
        let mean_x = weighted.iter().map(|(x, _, w)| w * x).sum::<f64>() / total;
        let mean_y = weighted.iter().map(|(_, y, w)| w * y).sum::<f64>() / total;
        let spread: f64 = weighted.iter().map(|(x, _, w)| w * (x - mean_x).powi(2)).sum();
        let slope = weighted.iter().map(|(x, y, w)| w * (x - mean_x) * (y - mean_y)).sum::<f64>() / spread;
        slope.is_finite().then_some(Self { log_a: mean_y - slope * mean_x, b: -slope })
    }

    fn at(&self, n: f64) -> f64 {
        (self.log_a - self.b * n.ln()).exp().min(1.0)
    }

    /// Rows at which the error falls to `error`; infinite where it never does.
    fn rows_for(&self, error: f64) -> f64 {
        if self.b <= 0.0 || error <= 0.0 { f64::INFINITY } else { ((self.log_a - error.ln()) / self.b).exp() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Validation rows of which a share of `2·n^(−0.5)` is wrong at `n` training rows, always the same ones first.
    fn curve(ns: [usize; 4], n_rows: usize, error: impl Fn(f64) -> f64, reference: Option<f64>) -> LearningCurve {
        let gold = vec![0; n_rows];
        let calls: Vec<(usize, Vec<usize>)> = ns
            .iter()
            .map(|&n| {
                let wrong = (error(n as f64) * n_rows as f64).round() as usize;
                (n, (0..n_rows).map(|row| usize::from(row * 7919 % n_rows < wrong)).collect())
            })
            .collect();
        let points = calls.iter().map(|(n, calls)| {
            let measured = metrics::measure(Metric::Accuracy, calls, &gold, 2, 1);
            CurvePoint { n: *n as u64, value: measured.value, interval: measured.interval }
        });
        let value = |at: usize, rows: &[usize]| metrics::value(Metric::Accuracy, &calls[at].1, &gold, rows, 2);
        let curve = Curve { points: points.collect(), n_rows: gold.len(), value: &value };
        conclude(Stage::Linear, curve, reference, 1)
    }

    #[test]
    fn recovers_a_power_law_and_says_how_many_rows() {
        // e(n) = 2/√n: 0.0707 at 800; 0.0607 is reached at (2/0.0607)² = 1,085 rows.
        let curve = curve([100, 200, 400, 800], 2000, |n| 2.0 / n.sqrt(), None);
        let exponent = curve.exponent.expect("errors everywhere");
        assert!((exponent.value - 0.5).abs() < 0.01 && exponent.interval[0] > 0.3, "{exponent:?}");
        assert!((curve.forecasts[0].value - (1.0 - 2.0 / 1600f64.sqrt())).abs() < 0.002, "{:?}", curve.forecasts);
        let rows = curve.aim.rows.expect("within four times");
        assert!((1050..=1150).contains(&rows), "{:?}", curve.aim);
        let (low, _) = curve.aim.rows_interval.expect("with its interval");
        assert!((800..=rows).contains(&low));
    }

    #[test]
    fn refuses_what_four_points_cannot_show() {
        // The reference is right in 99.5 %: (2/0.005)² = 160,000 rows, two hundred times what there is.
        let far = curve([100, 200, 400, 800], 2000, |n| 2.0 / n.sqrt(), Some(0.995));
        assert!(far.aim.rows.is_none() && far.aim.what.contains("reference"), "{:?}", far.aim);
        assert!(far.aim.cannot_tell.expect("the reason").contains("more than 4 times"));
        let flat = curve([100, 200, 400, 800], 500, |_| 0.1, None);
        assert!(
            flat.aim.rows.is_none()
                && flat.aim.cannot_tell.expect("the reason").contains("did not get measurably better")
        );
        let perfect = curve([100, 200, 400, 800], 500, |n| if n > 300.0 { 0.0 } else { 0.1 }, None);
        assert!(perfect.exponent.is_none() && perfect.aim.cannot_tell.is_some());
    }

    #[test]
    fn numbers_of_rows_have_two_digits() {
        assert_eq!([7.2, 99.0, 101.0, 12_345.0].map(rounded), [8, 99, 110, 13_000]);
    }
}
