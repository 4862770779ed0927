//! How good was it on these rows? Predictions and gold labels in; metrics with 95 % intervals out.
//!
//! Accuracy has a Wilson interval; F1 and the calibration error have none in closed form and get a seeded percentile
//! bootstrap of 1,000 resamples.

use metier_model::{proof::wilson, specialist::mix};
use serde::{Deserialize, Serialize};

use super::cluster::{self, Groups};
use crate::data::task::Metric;

/// Confidence of every interval here.
pub const CONFIDENCE: f64 = 0.95;
const RESAMPLES: usize = 1000;
/// Bins of equal width of the reliability curve.
const BINS: usize = 10;

/// A value with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The value.
    pub value: f64,
    /// `[low, high]`
    pub interval: [f64; 2],
}

/// One class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassMetrics {
    /// Its label.
    pub label: String,
    /// Rows of this class.
    pub n: u64,
    /// Rows that were called so.
    pub predicted: u64,
    /// Share of those called so that are so; 0 if none.
    pub precision: f64,
    /// Share of its rows that were called so; 0 if none.
    pub recall: f64,
    /// Harmonic mean of both.
    pub f1: f64,
}

/// One bin of the reliability curve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReliabilityBin {
    /// Mean score of its rows.
    pub score: f64,
    /// Share of its rows that are right.
    pub right: f64,
    /// Wilson interval of that share.
    pub interval: [f64; 2],
    /// Rows.
    pub n: u64,
}

/// The metric a task asks for. `predicted` and `gold` are classes below `n_classes`.
pub fn measure(metric: Metric, predicted: &[usize], gold: &[usize], n_classes: usize, seed: u64) -> Measured {
    measure_grouped(metric, predicted, gold, n_classes, seed, None)
}

/// The same where rows come in groups.
pub fn measure_grouped(
    metric: Metric,
    predicted: &[usize],
    gold: &[usize],
    n_classes: usize,
    seed: u64,
    groups: Option<&Groups>,
) -> Measured {
    match metric {
        Metric::Accuracy | Metric::MicroF1 => {
            cluster::share(groups, &|_| true, &|row| predicted[row] == gold[row], gold.len())
        }
        Metric::MacroF1 | Metric::F1 { .. } => {
            let value = |rows: &[usize]| value(metric, predicted, gold, rows, n_classes);
            let all: Vec<usize> = (0..gold.len()).collect();
            Measured { value: value(&all), interval: bootstrap(gold.len(), seed, groups, value) }
        }
    }
}

/// The metric on some of the rows, which may be named more than once.
pub fn value(metric: Metric, predicted: &[usize], gold: &[usize], rows: &[usize], n_classes: usize) -> f64 {
    match metric {
        Metric::F1 { positive } => {
            Counts::of(rows.iter().map(|&at| (predicted[at], gold[at])), n_classes).f1(positive).unwrap_or(0.0)
        }
        Metric::MacroF1 => Counts::of(rows.iter().map(|&at| (predicted[at], gold[at])), n_classes).macro_f1(),
        Metric::Accuracy | Metric::MicroF1 => {
            rows.iter().filter(|&&at| predicted[at] == gold[at]).count() as f64 / rows.len().max(1) as f64
        }
    }
}

/// Share of rows that are right.
pub fn accuracy(predicted: &[usize], gold: &[usize]) -> Measured {
    let right = predicted.iter().zip(gold).filter(|(a, b)| a == b).count() as u64;
    share(right, gold.len() as u64)
}

/// `k` of `n` with its Wilson interval; 0 of no rows.
pub fn share(k: u64, n: u64) -> Measured {
    Measured { value: k as f64 / n.max(1) as f64, interval: wilson(k, n, CONFIDENCE) }
}

/// Precision, recall and F1 a class.
pub fn per_class(predicted: &[usize], gold: &[usize], labels: &[String]) -> Vec<ClassMetrics> {
    let counts = Counts::of(predicted.iter().copied().zip(gold.iter().copied()), labels.len());
    labels
        .iter()
        .enumerate()
        .map(|(k, label)| {
            let [right, predicted, n] = [counts.right[k], counts.predicted[k], counts.gold[k]];
            ClassMetrics {
                label: label.clone(),
                n,
                predicted,
                precision: right as f64 / predicted.max(1) as f64,
                recall: right as f64 / n.max(1) as f64,
                f1: counts.f1(k).unwrap_or(0.0),
            }
        })
        .collect()
}

/// Do 95 of 100 resamples keep the candidate's metric less than `margin` below the reference's? For metrics without a
/// paired test in closed form.
pub fn non_inferior_by_bootstrap(
    metric: Metric,
    candidate: &[usize],
    reference: &[usize],
    gold: &[usize],
    n_classes: usize,
    margin: f64,
    seed: u64,
) -> bool {
    let value = |predicted: &[usize], rows: &[usize]| value(metric, predicted, gold, rows, n_classes);
    // The lower end of a two-sided 90 % interval is a one-sided bound at 5 %.
    let differences = resample(gold.len(), seed, None, |rows| value(candidate, rows) - value(reference, rows));
    quantile(&differences, 0.05) > -margin
}

/// Expected calibration error, mean |score − share right| over bins weighted by rows, and the bins.
pub fn calibration_error(
    scores: &[f32],
    right: &[bool],
    seed: u64,
    groups: Option<&Groups>,
) -> (Measured, Vec<ReliabilityBin>) {
    let error = |rows: &[usize]| Bins::of(rows.iter().map(|&at| (scores[at], right[at]))).error();
    let bins = Bins::of(scores.iter().copied().zip(right.iter().copied()));
    let measured = Measured { value: bins.error(), interval: bootstrap(scores.len(), seed, groups, error) };
    (measured, bins.curve())
}

/// Percentile interval of a statistic over resampled rows, or groups of rows.
pub(crate) fn bootstrap(n: usize, seed: u64, groups: Option<&Groups>, statistic: impl Fn(&[usize]) -> f64) -> [f64; 2] {
    if n == 0 {
        return [0.0, 1.0];
    }
    let values = resample(n, seed, groups, statistic);
    [quantile(&values, (1.0 - CONFIDENCE) / 2.0), quantile(&values, (1.0 + CONFIDENCE) / 2.0)]
}

/// The statistic of each resample, sorted.
pub(crate) fn resample(n: usize, seed: u64, groups: Option<&Groups>, statistic: impl Fn(&[usize]) -> f64) -> Vec<f64> {
    let mut values = match groups {
        None => resample_with(n, seed, RESAMPLES, statistic),
        Some(groups) => resample_with(groups.rows().len(), seed, RESAMPLES, |drawn| {
            statistic(&drawn.iter().flat_map(|&group| groups.rows()[group].iter().copied()).collect::<Vec<_>>())
        }),
    };
    values.sort_by(f64::total_cmp);
    values
}

/// What a statistic says of `times` draws of `n` out of `n` with replacement.
pub fn resample_with<T>(n: usize, seed: u64, times: usize, statistic: impl Fn(&[usize]) -> T) -> Vec<T> {
    let mut state = mix(seed ^ 0xb007_5742);
    let mut rows = vec![0; n];
    (0..times)
        .map(|_| {
            for row in &mut rows {
                state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                *row = ((u128::from(mix(state)) * n as u128) >> 64) as usize;
            }
            statistic(&rows)
        })
        .collect()
}

/// The value that a share of `sorted` lies below.
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * share).round() as usize]
}

struct Counts {
    right: Vec<u64>,
    predicted: Vec<u64>,
    gold: Vec<u64>,
}

impl Counts {
    fn of(rows: impl Iterator<Item = (usize, usize)>, n_classes: usize) -> Self {
        let mut counts = Self { right: vec![0; n_classes], predicted: vec![0; n_classes], gold: vec![0; n_classes] };
        for (predicted, gold) in rows {
            counts.predicted[predicted] += 1;
            counts.gold[gold] += 1;
            counts.right[gold] += u64::from(predicted == gold);
        }
        counts
    }

    /// `None` for a class that neither occurs nor was predicted.
    fn f1(&self, k: usize) -> Option<f64> {
        let total = self.predicted[k] + self.gold[k];
        (total > 0).then(|| 2.0 * self.right[k] as f64 / total as f64)
    }

    fn macro_f1(&self) -> f64 {
        let values: Vec<f64> = (0..self.gold.len()).filter_map(|k| self.f1(k)).collect();
        values.iter().sum::<f64>() / values.len().max(1) as f64
    }
}

#[derive(Default)]
struct Bins([(f64, u64, u64); BINS]); // (sum of scores, right, rows)

impl Bins {
    fn of(rows: impl Iterator<Item = (f32, bool)>) -> Self {
        let mut bins = Self::default();
        for (score, right) in rows {
            let bin = &mut bins.0[((score * BINS as f32) as usize).min(BINS - 1)];
            *bin = (bin.0 + f64::from(score), bin.1 + u64::from(right), bin.2 + 1);
        }
        bins
    }

    fn error(&self) -> f64 {
        let n: u64 = self.0.iter().map(|bin| bin.2).sum();
        self.0.iter().map(|(scores, right, _)| (scores - *right as f64).abs()).sum::<f64>() / n.max(1) as f64
    }

    fn curve(&self) -> Vec<ReliabilityBin> {
        let full = self.0.iter().filter(|bin| bin.2 > 0);
        full.map(|&(scores, right, n)| {
            let measured = share(right, n);
            ReliabilityBin { score: scores / n as f64, right: measured.value, interval: measured.interval, n }
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_by_hand() {
        // Class 0: 2 of 3 found, 1 false; class 1: 1 of 2 found, 1 false; class 2 never occurs.
        let (gold, predicted) = ([0, 0, 0, 1, 1], [0, 0, 1, 1, 0]);
        assert!((accuracy(&predicted, &gold).value - 0.6).abs() < 1e-12);
        let labels = ["a", "b", "c"].map(str::to_owned);
        let classes = per_class(&predicted, &gold, &labels);
        assert!((classes[0].f1 - 2.0 / 3.0).abs() < 1e-12 && (classes[1].f1 - 0.5).abs() < 1e-12);
        let macro_f1 = measure(Metric::MacroF1, &predicted, &gold, 3, 1);
        assert!((macro_f1.value - (2.0 / 3.0 + 0.5) / 2.0).abs() < 1e-12, "a class without rows does not count");
        assert!(macro_f1.interval[0] < macro_f1.value && macro_f1.value < macro_f1.interval[1]);
        assert_eq!(macro_f1, measure(Metric::MacroF1, &predicted, &gold, 3, 1), "seeded");
        let f1 = measure(Metric::F1 { positive: 1 }, &predicted, &gold, 3, 1);
        assert!((f1.value - 0.5).abs() < 1e-12 && f1.interval[0] < 0.5 && f1.interval[1] > 0.5, "{f1:?}");
    }

    #[test]
    fn the_bootstrap_of_a_share_is_near_wilson() {
        let right: Vec<usize> = (0..400).map(|i| usize::from(i % 10 == 0)).collect();
        let interval =
            bootstrap(400, 3, None, |rows| rows.iter().map(|&at| right[at]).sum::<usize>() as f64 / rows.len() as f64);
        let expected = wilson(40, 400, CONFIDENCE);
        assert!(interval.iter().zip(expected).all(|(a, b)| (a - b).abs() < 0.01), "{interval:?} {expected:?}");
    }

    #[test]
    fn calibration_error_by_hand() {
        let (error, curve) = calibration_error(&[0.95, 0.95, 0.25, 0.25], &[true, true, true, false], 1, None);
        assert!((error.value - (0.1 + 0.5) / 4.0).abs() < 1e-6, "{error:?}");
        assert_eq!(curve.iter().map(|bin| bin.n).collect::<Vec<_>>(), [2, 2]);
        assert_eq!(calibration_error(&[1.0], &[true], 1, None).0.value, 0.0);
    }

    #[test]
    fn bootstrap_non_inferiority() {
        let gold: Vec<usize> = (0..300).map(|i| i % 3).collect();
        let mut worse = gold.clone();
        (0..60).for_each(|i| worse[i * 5] = (gold[i * 5] + 1) % 3);
        let test =
            |candidate: &[usize]| non_inferior_by_bootstrap(Metric::MacroF1, candidate, &gold, &gold, 3, 0.02, 1);
        assert!(test(&gold) && !test(&worse));
    }
}
