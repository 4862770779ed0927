//! How good are sets of labels? Called and gold sets in; F1 over all labels, by label and by row, exact matches, each with its interval.
//!
//! ```text
//! micro F1 = 2·Σ right / (Σ called + Σ gold)          over all rows and labels
//! macro F1 = mean over labels that occur of their F1
//! exact match = share of rows whose set is exactly the gold one (subset accuracy)
//! Jaccard of a row = |called ∩ gold| / |called ∪ gold|, 1 where both are empty
//! ```
//!
//! What a certificate bounds is the mean of 1 − Jaccard: of the labels that the answer or the truth names, the share that only one of them
//! names. It is never below 1 − F1 of the row (F1 = 2J/(1 + J) ≥ J), so a bound on it bounds that too. F1 over all rows is no mean of rows,
//! and cannot be certified so.

use metier_model::proof::{NonInferiority, Paired, Verdict};
use serde::{Deserialize, Serialize};

use super::{
    cluster::{self, Groups},
    metrics::{self, ClassMetrics, Measured},
};
use crate::data::task::Metric;

/// One-sided level of comparisons by resampling.
const LEVEL: f64 = 0.05;

/// What is said of rows with several labels alone. Of them, accuracy is the share of rows whose set is exactly right.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SetFigures {
    /// F1 over all rows and labels.
    pub micro_f1: Measured,
    /// Mean F1 of the labels.
    pub macro_f1: Measured,
    /// Share of rows whose set is exactly right.
    pub exact_match: Measured,
    /// Mean Jaccard index of the rows.
    pub jaccard: Measured,
    /// Share of the labels called that are right.
    pub precision: f64,
    /// Share of the gold labels that were called.
    pub recall: f64,
    /// Gold labels of a row on average.
    pub labels_a_row: f64,
    /// Called labels of a row on average.
    pub called_a_row: f64,
    /// Share of rows that have no label.
    pub empty: f64,
}

/// Counts of one label, or of all.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    right: u64,
    called: u64,
    gold: u64,
}

impl Counts {
    /// `None` where a label neither occurs nor was called.
    fn f1(self) -> Option<f64> {
        (self.called + self.gold > 0).then(|| 2.0 * self.right as f64 / (self.called + self.gold) as f64)
    }
}

/// |a ∩ b| of ascending lists.
fn shared(a: &[usize], b: &[usize]) -> usize {
    a.iter().filter(|label| b.binary_search(label).is_ok()).count()
}

/// |a ∩ b| / |a ∪ b| of ascending lists; 1 where both are empty.
pub fn jaccard(called: &[usize], gold: &[usize]) -> f64 {
    let both = shared(called, gold);
    let either = called.len() + gold.len() - both;
    if either == 0 { 1.0 } else { both as f64 / either as f64 }
}

fn by_label(called: &[Vec<usize>], gold: &[Vec<usize>], rows: &[usize], n_labels: usize) -> Vec<Counts> {
    let mut counts = vec![Counts::default(); n_labels];
    for &row in rows {
        called[row].iter().for_each(|label| counts[*label].called += 1);
        gold[row].iter().for_each(|label| counts[*label].gold += 1);
        called[row]
            .iter()
            .filter(|label| gold[row].binary_search(label).is_ok())
            .for_each(|label| counts[*label].right += 1);
    }
    counts
}

/// The metric on some of the rows, which may be named more than once.
pub fn value(metric: Metric, called: &[Vec<usize>], gold: &[Vec<usize>], rows: &[usize], n_labels: usize) -> f64 {
    match metric {
        Metric::Accuracy => {
            rows.iter().filter(|row| called[**row] == gold[**row]).count() as f64 / rows.len().max(1) as f64
        }
        Metric::MicroF1 | Metric::F1 { .. } => {
            let all = rows.iter().fold(Counts::default(), |all, &row| Counts {
                right: all.right + shared(&called[row], &gold[row]) as u64,
                called: all.called + called[row].len() as u64,
                gold: all.gold + gold[row].len() as u64,
            });
            all.f1().unwrap_or(1.0)
        }
        Metric::MacroF1 => {
            let present: Vec<f64> = by_label(called, gold, rows, n_labels).into_iter().filter_map(Counts::f1).collect();
            if present.is_empty() { 1.0 } else { present.iter().sum::<f64>() / present.len() as f64 }
        }
    }
}

/// As reports name it.
pub fn name(metric: Metric) -> &'static str {
    if metric == Metric::Accuracy { "exact_match" } else { metric.name() }
}

/// The metric with its 95 % interval.
pub fn measure(
    metric: Metric,
    called: &[Vec<usize>],
    gold: &[Vec<usize>],
    n_labels: usize,
    seed: u64,
    groups: Option<&Groups>,
) -> Measured {
    if metric == Metric::Accuracy {
        return cluster::share(groups, &|_| true, &|row| called[row] == gold[row], gold.len());
    }
    let value = |rows: &[usize]| value(metric, called, gold, rows, n_labels);
    let all: Vec<usize> = (0..gold.len()).collect();
    Measured { value: value(&all), interval: metrics::bootstrap(gold.len(), seed, groups, value) }
}

/// Everything.
pub fn figures(
    called: &[Vec<usize>],
    gold: &[Vec<usize>],
    n_labels: usize,
    seed: u64,
    groups: Option<&Groups>,
) -> SetFigures {
    let of = |metric| measure(metric, called, gold, n_labels, seed, groups);
    let rows: Vec<f64> = called.iter().zip(gold).map(|(called, gold)| jaccard(called, gold)).collect();
    let mean = |of: &[usize]| of.iter().map(|row| rows[*row]).sum::<f64>() / of.len().max(1) as f64;
    let all: Vec<usize> = (0..rows.len()).collect();
    let n = rows.len().max(1) as f64;
    let sum = |sets: &[Vec<usize>]| sets.iter().map(Vec::len).sum::<usize>() as f64;
    let right = called.iter().zip(gold).map(|(called, gold)| shared(called, gold)).sum::<usize>() as f64;
    SetFigures {
        micro_f1: of(Metric::MicroF1),
        macro_f1: of(Metric::MacroF1),
        exact_match: of(Metric::Accuracy),
        jaccard: Measured { value: mean(&all), interval: metrics::bootstrap(rows.len(), seed, groups, mean) },
        precision: right / sum(called).max(1.0),
        recall: right / sum(gold).max(1.0),
        labels_a_row: sum(gold) / n,
        called_a_row: sum(called) / n,
        empty: gold.iter().filter(|set| set.is_empty()).count() as f64 / n,
    }
}

/// Figures by label.
pub fn per_label(called: &[Vec<usize>], gold: &[Vec<usize>], labels: &[String]) -> Vec<ClassMetrics> {
    let all: Vec<usize> = (0..gold.len()).collect();
    let counts = by_label(called, gold, &all, labels.len());
    let figures = labels.iter().zip(counts).map(|(label, counts)| ClassMetrics {
        label: label.clone(),
        n: counts.gold,
        predicted: counts.called,
        precision: counts.right as f64 / counts.called.max(1) as f64,
        recall: counts.right as f64 / counts.gold.max(1) as f64,
        f1: counts.f1().unwrap_or(0.0),
    });
    figures.collect()
}

/// Whether `candidate` is shown, on the same rows, to be less than `margin` worse than `reference`; with the paired test where that is one of
/// rows right or wrong.
#[allow(clippy::too_many_arguments, reason = "two sides of a comparison, and what it is made by")]
pub fn non_inferior(
    metric: Metric,
    candidate: &[Vec<usize>],
    reference: &[Vec<usize>],
    gold: &[Vec<usize>],
    n_labels: usize,
    margin: f64,
    seed: u64,
    groups: Option<&Groups>,
) -> (bool, Option<NonInferiority>) {
    if metric == Metric::Accuracy {
        let right = |called: &[Vec<usize>]| called.iter().zip(gold).map(|(a, b)| a == b).collect::<Vec<bool>>();
        let (candidate, reference) = (right(candidate), right(reference));
        let test = match groups {
            None => Paired::count(&candidate, &reference).non_inferiority(margin),
            Some(_) => cluster::non_inferiority(groups, &candidate, &reference, margin),
        };
        return (test.verdict == Verdict::NonInferior, Some(test));
    }
    let of = |called: &[Vec<usize>], rows: &[usize]| value(metric, called, gold, rows, n_labels);
    let differences = metrics::resample(gold.len(), seed, groups, |rows| of(candidate, rows) - of(reference, rows));
    (!gold.is_empty() && metrics::quantile(&differences, LEVEL) > -margin, None)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::float_cmp, reason = "small fractions by hand")]
    use super::*;

    fn sets(of: &[&[usize]]) -> Vec<Vec<usize>> {
        of.iter().map(|set| set.to_vec()).collect()
    }

    /// By hand; the same numbers as scikit-learn 1.7's `f1_score` (micro, macro over labels 0 to 2), `accuracy_score` and `jaccard_score`
    /// (samples, an empty pair counted as 1).
    #[test]
    fn by_hand() {
        let gold = sets(&[&[0, 1], &[], &[2], &[0]]);
        let called = sets(&[&[0], &[], &[1, 2], &[1]]);
        let figures = figures(&called, &gold, 4, 1, None);
        // Right: row 0 label 0, row 2 label 2. Called 4, gold 4.
        assert_eq!(figures.micro_f1.value, 0.5);
        // Labels 0: 1 of (1, 2); 1: 0 of (2, 1); 2: 1 of (1, 1); 3 never occurs.
        assert!((figures.macro_f1.value - (2.0 / 3.0 + 0.0 + 1.0) / 3.0).abs() < 1e-12);
        assert_eq!(figures.exact_match.value, 0.25);
        assert_eq!(figures.jaccard.value, (0.5 + 1.0 + 0.5 + 0.0) / 4.0);
        assert_eq!((figures.labels_a_row, figures.called_a_row, figures.empty), (1.0, 1.0, 0.25));
        assert!(figures.micro_f1.interval[0] < 0.5 && figures.micro_f1.interval[1] > 0.5);
        let labels = ["a", "b", "c", "d"].map(str::to_owned);
        let classes = per_label(&called, &gold, &labels);
        assert_eq!((classes[1].n, classes[1].predicted, classes[1].f1), (1, 2, 0.0));
    }

    #[test]
    fn jaccard_is_never_above_f1() {
        for bits in 0..64usize {
            let set = |bits: usize| (0..3).filter(|k| bits >> k & 1 == 1).collect::<Vec<_>>();
            let (a, b) = (set(bits & 7), set(bits >> 3));
            let f1 = if a.is_empty() && b.is_empty() {
                1.0
            } else {
                2.0 * shared(&a, &b) as f64 / (a.len() + b.len()) as f64
            };
            assert!(jaccard(&a, &b) <= f1 && jaccard(&a, &b) == jaccard(&b, &a));
        }
    }

    #[test]
    fn a_smaller_rung_must_be_shown_to_be_good_enough() {
        let gold: Vec<Vec<usize>> = (0..400).map(|i| vec![i % 3]).collect();
        let mut worse = gold.clone();
        (0..40).for_each(|i| worse[i * 10].clear());
        for metric in [Metric::Accuracy, Metric::MicroF1, Metric::MacroF1] {
            let test = |margin| non_inferior(metric, &worse, &gold, &gold, 3, margin, 1, None).0;
            assert!(test(0.2) && !test(0.05), "{metric:?}");
        }
    }
}
