//! Everything that is said about one set of scored rows.

use std::collections::BTreeMap;

use metier_model::proof::{Certificate, NonInferiority, binomial_tail, thresholds};
use metier_model::specialist::Answer;
use serde::{Deserialize, Serialize};

use super::{
    cluster::{self, GroupReport, Groups},
    hierarchy::HierarchyFigures,
    metrics::{self, ClassMetrics, Measured, ReliabilityBin},
    rejection::{OperatingPoint, Rejection},
    sets::SetFigures,
    stages::StageFigures,
};
use crate::data::{extract::Alignment, split::Example, task::Metric};

/// Pairs of labels listed as confused.
const MAX_CONFUSIONS: usize = 20;
/// A column that nobody named is sliced by if it has at most this many values.
const MAX_SLICES: usize = 20;
/// Most values of a named column that are told apart; the rarer ones are counted together.
const MAX_NAMED_SLICES: usize = 50;
/// Under which name.
const OTHER_VALUES: &str = "(all rarer values)";
/// Points of the risk–coverage curve.
const CURVE_POINTS: usize = 101;

/// One row as the specialist answered it.
#[derive(Clone, Debug)]
pub struct ScoredRow {
    /// Class it was called.
    pub predicted: usize,
    /// Class it is.
    pub gold: usize,
    /// Is what is given right? That may be a node above the labels, which is right where the label is not.
    pub right: bool,
    /// Calibrated score.
    pub score: f32,
    /// Did the score pass the threshold?
    pub accepted: bool,
    /// Was the reference right? True where the gold label is the reference.
    pub reference_right: bool,
    /// Value of the group column.
    pub group: Option<String>,
    /// Values of other columns.
    pub extra: Vec<(std::sync::Arc<str>, String)>,
}

impl ScoredRow {
    /// Joins an answer with what is known about its row.
    pub fn new(example: &Example, answer: &Answer) -> Self {
        Self {
            predicted: answer.label_idx,
            gold: example.class,
            right: answer.fits(&example.row.label),
            score: answer.score,
            accepted: answer.accepted,
            reference_right: example.row.reference.as_ref().is_none_or(|reference| *reference == example.row.label),
            group: example.row.group.clone(),
            extra: example.row.extra.clone(),
        }
    }

    /// The loss that a certificate bounds, if the row is accepted.
    pub fn loss_if_accepted(&self) -> bool {
        !self.right && self.reference_right
    }
}

/// What is said about one set of rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvalReport {
    /// Rows.
    pub n: u64,
    /// The groups that the rows come in; every interval takes them into account.
    #[serde(default)]
    pub groups: Option<GroupReport>,
    /// The task's metric by name.
    pub metric: String,
    /// Its value.
    pub value: f64,
    /// Its 95 % interval.
    pub interval: [f64; 2],
    /// Share right, all rows answered.
    pub accuracy: Measured,
    /// Mean F1 of the classes.
    pub macro_f1: Measured,
    /// F1 over all rows: with one label a row, the accuracy.
    pub micro_f1: Measured,
    /// Expected calibration error.
    pub ece: Measured,
    /// Share of rows that were accepted.
    pub coverage: Measured,
    /// Share right among the accepted.
    pub accepted_accuracy: Measured,
    /// The certificate, tried on these rows.
    pub test_loss: Option<TestLoss>,
    /// Rows that are none of these.
    pub out_of_scope: Option<OutOfScope>,
    /// Share of rows that the reference got right, where there is one beside the gold label.
    pub reference_accuracy: Option<Measured>,
    /// Paired comparison with it, all rows answered.
    #[serde(default)]
    pub against_reference: Option<NonInferiority>,
    /// Figures by class.
    pub per_class: Vec<ClassMetrics>,
    /// The most frequent confusions.
    pub confusions: Vec<Confusion>,
    /// The reliability curve.
    pub reliability: Vec<ReliabilityBin>,
    /// Risk and coverage by threshold, strict to loose.
    pub risk_coverage: Vec<RiskCoverage>,
    /// Accuracy and coverage by the values of other columns.
    pub slices: Vec<Slice>,
    /// What is said of an extraction alone. Of one, accuracy is the share of rows whose answer is right as a whole, and classes are fields.
    #[serde(default)]
    pub extract: Option<ExtractFigures>,
    /// What is said of rows with several labels alone. Of them, accuracy is the share of rows whose set is exactly right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sets: Option<SetFigures>,
    /// What is said of labels that are paths of a tree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hierarchy: Option<HierarchyFigures>,
    /// Who answered what, in the order in which stages are asked; empty where there is one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<StageFigures>,
}

/// What is said of an extraction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExtractFigures {
    /// F1 of the pairs (field, value) of all rows together; a pair is right if its value equals the gold value up to white space.
    pub field_f1: Measured,
    /// The same without values that were found for fields that the row does not have: what is not there cannot be called wrong (so ExtractGPT
    /// counts, Brinkmann et al. 2023).
    pub present_f1: Measured,
    /// Share of the values found that are right.
    pub precision: f64,
    /// Share of the gold values that are found.
    pub recall: f64,
    /// Gold values.
    pub values: u64,
    /// Share of rows without a wrong, missing or surplus value.
    pub exact_match: Measured,
    /// F1 of spans: field and words equal (CoNLL). Where rows have no offsets, of the places that values were found at.
    pub span_f1: Measured,
    /// Field F1 of the lookup on the same rows.
    #[serde(default)]
    pub lookup_f1: Option<Measured>,
    /// What became of the values of all rows of the task, or of this file.
    #[serde(default)]
    pub alignment: Option<Alignment>,
}

/// The empirical loss of a certificate on rows that it has not seen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TestLoss {
    /// Share of rows accepted and wrong while the reference was right.
    pub loss: f64,
    /// Such rows.
    pub losses: u64,
    /// Exact 95 % interval of the share.
    pub interval: [f64; 2],
    /// The bound.
    pub epsilon: f64,
    /// False only if the interval's lower end exceeds ε.
    pub held: bool,
    /// True if the whole interval lies at or below ε: these rows alone show it.
    #[serde(default)]
    pub shown: bool,
}

/// How rows that are none of these fared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OutOfScope {
    /// Share of them that got the out-of-scope label.
    pub recall_as_label: Measured,
    /// Share of them that got the label or were deferred.
    pub recall_at_threshold: Measured,
    /// Accuracy on all other rows.
    pub in_scope_accuracy: Measured,
    /// Share of all other rows that were answered in scope, accepted and right.
    pub in_scope_accepted_right: Measured,
    /// What a threshold that validation rows chose turns away.
    #[serde(default)]
    pub rejection: Option<Rejection>,
    /// Of a rule: what share of the rows out of scope it could turn away at which accuracy in scope, had its offset been chosen on these rows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub operating: Vec<OperatingPoint>,
}

/// Rows of one label called another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Confusion {
    /// What they are.
    pub gold: String,
    /// What they were called.
    pub predicted: String,
    /// How many.
    pub n: u64,
}

/// One point of the risk–coverage curve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RiskCoverage {
    /// The threshold.
    pub threshold: f32,
    /// Share accepted there.
    pub coverage: f64,
    /// Share accepted and wrong.
    pub risk: f64,
}

/// Rows that share the value of a column.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Slice {
    /// The column.
    pub column: String,
    /// The value.
    pub value: String,
    /// Rows.
    pub n: u64,
    /// Share right.
    pub accuracy: Measured,
    /// Share accepted.
    pub coverage: Measured,
    /// Share accepted and wrong while the reference was right; its exact interval is wide enough for all slices together
    /// (Bonferroni). Without a certificate there is none.
    #[serde(default)]
    pub risk: Option<TestLoss>,
}

/// What the rows are measured against.
#[derive(Clone, Copy)]
pub struct Yardstick<'a> {
    /// Labels in order of classes.
    pub labels: &'a [String],
    /// The task's metric.
    pub metric: Metric,
    /// Label that means "none of these".
    pub out_of_scope: Option<&'a str>,
    /// Below this score a row is taken for none of these, where validation rows say so.
    pub reject_below: Option<f32>,
    /// The certificate, if there is one.
    pub certificate: Option<Certificate>,
    /// Was there a reference beside the gold label?
    pub has_reference: bool,
    /// How far the accuracy may lie below the reference's.
    pub margin: f64,
    /// Columns by whose values figures are told apart; none: every column of few values.
    pub slices: &'a [String],
    /// Seed of resamples.
    pub seed: u64,
}

/// Measures everything.
pub fn evaluate(rows: &[ScoredRow], yardstick: &Yardstick<'_>) -> EvalReport {
    let Yardstick { labels, metric, out_of_scope, reject_below, certificate, has_reference, margin, slices, seed } =
        *yardstick;
    let n = rows.len() as u64;
    let groups = Groups::of(rows.iter().map(|row| row.group.as_deref()));
    let groups = groups.as_ref();
    let predicted: Vec<usize> = rows.iter().map(|row| row.predicted).collect();
    let gold: Vec<usize> = rows.iter().map(|row| row.gold).collect();
    let right: Vec<bool> = rows.iter().map(|row| row.predicted == row.gold).collect();
    let given: Vec<bool> = rows.iter().map(|row| row.right).collect();
    let scores: Vec<f32> = rows.iter().map(|row| row.score).collect();
    let measure = |metric| metrics::measure_grouped(metric, &predicted, &gold, labels.len(), seed, groups);
    let measured = measure(metric);
    let (ece, reliability) = metrics::calibration_error(&scores, &given, seed, groups);
    let accuracy = measure(Metric::Accuracy);
    let share = |of: &dyn Fn(&ScoredRow) -> bool, hit: &dyn Fn(&ScoredRow) -> bool| {
        cluster::share(groups, &|row| of(&rows[row]), &|row| hit(&rows[row]), rows.len())
    };
    let all = |_: &ScoredRow| true;
    let out_of_scope = out_of_scope.and_then(|label| labels.binary_search_by(|l| l.as_str().cmp(label)).ok());
    EvalReport {
        n,
        groups: groups.map(|groups| groups.report(&right)),
        metric: metric.name().to_owned(),
        value: measured.value,
        interval: measured.interval,
        accuracy,
        macro_f1: measure(Metric::MacroF1),
        micro_f1: accuracy,
        ece,
        coverage: share(&all, &|row| row.accepted),
        accepted_accuracy: share(&|row| row.accepted, &|row| row.right),
        test_loss: certificate
            .map(|certificate| test_loss(rows, groups, &all, certificate.epsilon, metrics::CONFIDENCE)),
        out_of_scope: out_of_scope.map(|none| {
            let (is_none, is_in) = (|row: &ScoredRow| row.gold == none, |row: &ScoredRow| row.gold != none);
            OutOfScope {
                recall_as_label: share(&is_none, &|row| row.predicted == none),
                recall_at_threshold: share(&is_none, &|row| row.predicted == none || !row.accepted),
                in_scope_accuracy: share(&is_in, &|row| row.predicted == row.gold),
                in_scope_accepted_right: share(&is_in, &|row| row.accepted && row.right),
                operating: Vec::new(),
                rejection: reject_below.map(|threshold| Rejection {
                    threshold,
                    in_scope_right: share(&is_in, &|row| row.score >= threshold && row.predicted == row.gold),
                    recall: share(&is_none, &|row| row.predicted == none || row.score < threshold),
                }),
            }
        }),
        reference_accuracy: has_reference.then(|| share(&all, &|row| row.reference_right)),
        against_reference: has_reference.then(|| {
            let reference: Vec<bool> = rows.iter().map(|row| row.reference_right).collect();
            cluster::non_inferiority(groups, &right, &reference, margin)
        }),
        per_class: metrics::per_class(&predicted, &gold, labels),
        confusions: confusions(rows, labels),
        reliability,
        risk_coverage: risk_coverage(rows),
        slices: self::slices(rows, groups, slices, certificate),
        extract: None,
        sets: None,
        hierarchy: None,
        stages: Vec::new(),
    }
}

fn test_loss(
    rows: &[ScoredRow],
    groups: Option<&Groups>,
    of: &dyn Fn(&ScoredRow) -> bool,
    epsilon: f64,
    confidence: f64,
) -> TestLoss {
    let hit = |row: &ScoredRow| row.accepted && row.loss_if_accepted();
    let n = rows.iter().filter(|row| of(row)).count();
    let losses = rows.iter().filter(|row| of(row) && hit(row)).count() as u64;
    let interval = cluster::exact_share(groups, &|at| of(&rows[at]), &|at| hit(&rows[at]), rows.len(), confidence);
    TestLoss {
        loss: losses as f64 / n.max(1) as f64,
        losses,
        interval,
        epsilon,
        held: interval[0] <= epsilon,
        shown: interval[1] <= epsilon,
    }
}

fn confusions(rows: &[ScoredRow], labels: &[String]) -> Vec<Confusion> {
    let mut counts: BTreeMap<(usize, usize), u64> = BTreeMap::new();
    rows.iter().filter(|row| row.predicted != row.gold).for_each(|row| {
        *counts.entry((row.gold, row.predicted)).or_default() += 1;
    });
    let mut pairs: Vec<_> = counts.into_iter().collect();
    pairs.sort_by_key(|&(pair, n)| (std::cmp::Reverse(n), pair));
    let name = |k: usize| labels[k].clone();
    pairs.truncate(MAX_CONFUSIONS);
    pairs.into_iter().map(|((gold, called), n)| Confusion { gold: name(gold), predicted: name(called), n }).collect()
}

fn risk_coverage(rows: &[ScoredRow]) -> Vec<RiskCoverage> {
    let n = rows.len().max(1) as f64;
    let grid: Vec<f32> = thresholds().collect();
    let step = (grid.len() - 1) / (CURVE_POINTS - 1);
    let points = grid.into_iter().step_by(step.max(1)).map(|threshold| {
        let accepted = rows.iter().filter(|row| row.score >= threshold);
        let (accepted, losses) =
            accepted.fold((0u64, 0u64), |(a, l), row| (a + 1, l + u64::from(row.loss_if_accepted())));
        RiskCoverage { threshold, coverage: accepted as f64 / n, risk: losses as f64 / n }
    });
    points.collect()
}

/// Figures by the values of the named columns, or, where none is named, of every column of few values.
fn slices(
    rows: &[ScoredRow],
    groups: Option<&Groups>,
    named: &[String],
    certificate: Option<Certificate>,
) -> Vec<Slice> {
    let mut columns: BTreeMap<&str, BTreeMap<&str, u64>> = BTreeMap::new();
    for row in rows {
        for (column, value) in &row.extra {
            let values = columns.entry(column).or_default();
            // One value more than is shown is enough to know that a column is no category.
            if !named.is_empty() || values.len() <= MAX_SLICES {
                *values.entry(value).or_default() += 1;
            }
        }
    }
    if named.is_empty() {
        columns.retain(|_, values| (2..=MAX_SLICES).contains(&values.len()));
    } else {
        columns.retain(|column, _| named.iter().any(|name| name == column));
    }
    let mut wanted: Vec<(&str, &str, BTreeMap<&str, u64>)> = Vec::new();
    for (column, values) in columns {
        let mut frequent: Vec<(&str, u64)> = values.iter().map(|(value, n)| (*value, *n)).collect();
        frequent.sort_by_key(|&(value, n)| (std::cmp::Reverse(n), value));
        let rare: BTreeMap<&str, u64> = frequent.split_off(frequent.len().min(MAX_NAMED_SLICES)).into_iter().collect();
        frequent.sort_unstable();
        wanted.extend(frequent.into_iter().map(|(value, _)| (column, value, BTreeMap::new())));
        if !rare.is_empty() {
            wanted.push((column, OTHER_VALUES, rare));
        }
    }
    // All slices are looked at at once: each interval is that much wider.
    let confidence = 1.0 - (1.0 - metrics::CONFIDENCE) / wanted.len().max(1) as f64;
    let slice = |(column, value, rare): &(&str, &str, BTreeMap<&str, u64>)| {
        let of = |row: &ScoredRow| {
            let own = row.extra.iter().find(|(name, _)| **name == **column).map(|(_, own)| own.as_str());
            own.is_some_and(|own| if rare.is_empty() { own == *value } else { rare.contains_key(own) })
        };
        let share = |hit: &dyn Fn(&ScoredRow) -> bool| {
            cluster::share(groups, &|row| of(&rows[row]), &|row| hit(&rows[row]), rows.len())
        };
        Slice {
            column: (*column).to_owned(),
            value: (*value).to_owned(),
            n: rows.iter().filter(|row| of(row)).count() as u64,
            accuracy: share(&|row| row.predicted == row.gold),
            coverage: share(&|row| row.accepted),
            risk: certificate.map(|certificate| test_loss(rows, groups, &of, certificate.epsilon, confidence)),
        }
    };
    wanted.iter().map(slice).collect()
}

/// Do two sets of rows have different class mixes? Half the sum of absolute differences of shares, 0..1, and how often
/// chance alone gives as much for the largest single difference (Bonferroni over classes, exact two-sided binomial tail).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassMix {
    /// Total variation distance.
    pub distance: f64,
    /// Label whose share differs most surprisingly.
    pub label: String,
    /// Its share in calibration.
    pub calibration: f64,
    /// Its share in test.
    pub test: f64,
    /// Probability of such a difference if the mixes were equal, over all labels.
    pub p_value: f64,
}

/// Compares the class mix of calibration and test rows.
pub fn class_mix(calibration: &[usize], test: &[usize], labels: &[String]) -> Option<ClassMix> {
    if calibration.is_empty() || test.is_empty() {
        return None;
    }
    let count = |rows: &[usize], k: usize| rows.iter().filter(|class| **class == k).count() as u64;
    let (n_cal, n_test) = (calibration.len() as u64, test.len() as u64);
    let mut distance = 0.0;
    let mut worst: Option<(f64, usize, f64, f64)> = None;
    for k in 0..labels.len() {
        let (a, b) = (count(calibration, k), count(test, k));
        let (share_cal, share_test) = (a as f64 / n_cal as f64, b as f64 / n_test as f64);
        distance += (share_cal - share_test).abs() / 2.0;
        // Given a + b rows of this class, how many fall into calibration?
        let p_cal = n_cal as f64 / (n_cal + n_test) as f64;
        let low = binomial_tail(a, a + b, p_cal);
        let high = if a == 0 { 1.0 } else { 1.0 - binomial_tail(a - 1, a + b, p_cal) };
        let p = (2.0 * low.min(high)).min(1.0);
        if worst.is_none_or(|(least, ..)| p < least) {
            worst = Some((p, k, share_cal, share_test));
        }
    }
    let (p, k, calibration, test) = worst?;
    let p_value = (p * labels.len() as f64).min(1.0);
    Some(ClassMix { distance, label: labels[k].clone(), calibration, test, p_value })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(predicted: usize, gold: usize, score: f32, accepted: bool) -> ScoredRow {
        ScoredRow {
            predicted,
            gold,
            right: predicted == gold,
            score,
            accepted,
            reference_right: true,
            group: None,
            extra: vec![("kind".into(), format!("k{gold}"))],
        }
    }

    #[test]
    fn counts_what_a_certificate_bounds() {
        let labels = ["a", "b", "none"].map(str::to_owned);
        let certificate =
            Certificate { epsilon: 0.1, delta: 0.05, threshold: 0.5, coverage: 0.5, n: 100, losses: 1, groups: None };
        let yardstick = Yardstick {
            labels: &labels,
            metric: Metric::Accuracy,
            out_of_scope: Some("none"),
            reject_below: None,
            certificate: Some(certificate),
            has_reference: true,
            margin: 0.01,
            slices: &[],
            seed: 1,
        };
        let mut rows = vec![
            row(0, 0, 0.9, true),
            row(0, 1, 0.8, true),
            row(1, 1, 0.4, false),
            row(2, 2, 0.9, true),
            row(0, 2, 0.3, false),
            row(1, 2, 0.7, true),
        ];
        rows[5].reference_right = false;
        let report = evaluate(&rows, &yardstick);
        let loss = report.test_loss.expect("there is a certificate");
        assert_eq!((loss.losses, loss.held), (1, true), "an error that the reference made too is no loss");
        let none = report.out_of_scope.expect("there is a label for it");
        assert!((none.recall_as_label.value - 1.0 / 3.0).abs() < 1e-9);
        assert!((none.recall_at_threshold.value - 2.0 / 3.0).abs() < 1e-9);
        assert!((none.in_scope_accuracy.value - 2.0 / 3.0).abs() < 1e-9);
        assert_eq!(report.reference_accuracy.map(|m| (m.value * 6.0).round()), Some(5.0));
        assert_eq!(report.confusions.len(), 3);
        assert_eq!(report.slices.len(), 3);
        let test = report.against_reference.expect("there is a reference");
        assert!((test.difference - (3.0 - 5.0) / 6.0).abs() < 1e-9, "{test:?}");
        // The same rows in groups of three say less.
        let mut grouped = rows.clone();
        grouped.iter_mut().enumerate().for_each(|(at, row)| row.group = Some(format!("g{}", at / 3)));
        let wider = evaluate(&grouped, &yardstick);
        let width = |m: Measured| m.interval[1] - m.interval[0];
        assert_eq!(wider.groups.map(|groups| (groups.n, groups.largest)), Some((2, 3)));
        assert!(width(wider.accuracy) > width(report.accuracy) && wider.accuracy.value == report.accuracy.value);
        let named = ["other".to_owned()];
        assert!(evaluate(&rows, &Yardstick { slices: &named, ..yardstick }).slices.is_empty());
        let last = report.risk_coverage.last().expect("points");
        assert!((last.coverage - 1.0).abs() < 1e-9 && (last.risk - 2.0 / 6.0).abs() < 1e-9);
    }

    #[test]
    fn a_certificate_fails_only_by_an_exact_bound() {
        let loss = |losses: usize, n: usize| {
            let rows: Vec<ScoredRow> = (0..n).map(|at| row(0, usize::from(at < losses), 1.0, true)).collect();
            test_loss(&rows, None, &|_| true, 0.05, metrics::CONFIDENCE)
        };
        assert!(loss(9, 100).held, "9 of 100 may be chance at 5 %");
        assert!(!loss(13, 100).held);
        assert!(loss(0, 0).held && !loss(0, 0).shown, "no rows show nothing");
        assert!(loss(0, 100).shown && !loss(4, 100).shown && loss(4, 100).held);
    }

    #[test]
    fn class_mixes() {
        let labels = ["a", "b"].map(str::to_owned);
        let rows = |a: usize, b: usize| [vec![0; a], vec![1; b]].concat();
        let same = class_mix(&rows(50, 50), &rows(52, 48), &labels).expect("rows");
        assert!(same.p_value > 0.5 && (same.distance - 0.02).abs() < 1e-9, "{same:?}");
        let other = class_mix(&rows(90, 10), &rows(10, 90), &labels).expect("rows");
        assert!(other.p_value < 0.001, "{other:?}");
        assert_eq!(class_mix(&[], &[0], &labels), None);
    }
}
