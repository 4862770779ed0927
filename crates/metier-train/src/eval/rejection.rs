//! What is none of these, when a score says so: how many such rows a threshold turns away, and what it costs in scope.
//!
//! The threshold is the strictest at which a stated share of the *validation* rows in scope is still answered and right. It is looked for on
//! validation rows and then applied to others, so that nothing is chosen on the rows that are reported. It needs no row out of scope.
//!
//! Where validation rows out of scope are at hand, a [`ScopeRule`] does better: a logistic regression of "in scope" on the best margin, its lead
//! and the margin of the out-of-scope class, both sides weighing the same however few the one has; its offset is the strictest at which a stated
//! share of the validation rows in scope keeps its right label.

use metier_model::specialist::scope::{ScopeRule, features};
use serde::{Deserialize, Serialize};

use super::metrics::Measured;

/// Share of rows in scope that are to be answered and right.
pub const IN_SCOPE_RIGHT: f64 = 0.95;

/// Rejection by score.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rejection {
    /// Scores below it are turned away.
    pub threshold: f32,
    /// Share of rows in scope that are answered and right there.
    pub in_scope_right: Measured,
    /// Share of rows out of scope that are turned away, or called out of scope.
    pub recall: Measured,
}

/// Fewest validation rows in scope, and out of it, that a rule is fitted on.
pub const MIN_ROWS: usize = 30;
/// Pull of the rule's weights towards 0, beside a loss whose weights sum to 1.
const RIDGE: f64 = 1e-3;
const NEWTON_STEPS: usize = 50;
/// Accuracies in scope at which an operating curve is read.
const OPERATING: [f64; 9] = [0.90, 0.92, 0.93, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99];

/// A point of a rule's operating curve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct OperatingPoint {
    /// At least this share of the rows in scope keeps its right label.
    pub in_scope_right: f64,
    /// Share of the rows out of scope that get the out-of-scope label there.
    pub recall: f64,
}

/// Fits a rule on validation rows; `keep`: share of those in scope that is to keep its right label. `none`: the out-of-scope class.
///
/// # Errors
///
/// Why these rows give no rule.
pub fn fit(margins: &[Vec<f32>], gold: &[usize], none: usize, keep: f64) -> Result<ScopeRule, String> {
    let n_none = gold.iter().filter(|class| **class == none).count();
    let n_in = gold.len() - n_none;
    if n_none < MIN_ROWS || n_in < MIN_ROWS {
        return Err(format!(
            "of {} validation rows {n_none} are out of scope, and {MIN_ROWS} of each kind are needed",
            gold.len()
        ));
    }
    let rows: Vec<([f64; 4], bool, f64)> = margins
        .iter()
        .zip(gold)
        .map(|(row, class)| {
            let [top, gap, of_none] = features(row, none).map(f64::from);
            let is_in = *class != none;
            ([top, gap, -of_none, 1.0], is_in, 0.5 / if is_in { n_in as f64 } else { n_none as f64 })
        })
        .collect();
    let beta = logistic(&rows);
    let length = beta[..3].iter().map(|b| b * b).sum::<f64>().sqrt();
    if !(length > 0.0 && length.is_finite()) {
        return Err("the margins say nothing of it".to_owned());
    }
    let [top, gap, of_none, offset] = beta.map(|b| (b / length) as f32);
    let rule = ScopeRule { top, gap, none: of_none, offset };
    let scores = in_scope(margins, gold, none, &rule);
    let Some(threshold) = threshold(scores, keep) else {
        return Err(format!("fewer than {:.1} % of the validation rows in scope are right at all", 100.0 * keep));
    };
    // A row at the threshold itself stays in scope.
    Ok(ScopeRule { offset: rule.offset - threshold + f32::EPSILON, ..rule })
}

/// Score of each row in scope, and whether its best label in scope is the right one.
fn in_scope<'a>(
    margins: &'a [Vec<f32>],
    gold: &'a [usize],
    none: usize,
    rule: &'a ScopeRule,
) -> impl Iterator<Item = (f32, bool)> + 'a {
    let best = move |row: &[f32]| {
        (0..row.len()).filter(|class| *class != none).fold(None, |best: Option<usize>, class| match best {
            Some(best) if row[class] <= row[best] => Some(best),
            _ => Some(class),
        })
    };
    margins
        .iter()
        .zip(gold)
        .filter(move |(_, class)| **class != none)
        .map(move |(row, class)| (rule.score(row, none), best(row) == Some(*class)))
}

/// What a rule could turn away on these rows at which accuracy in scope: a description of them, chosen on them. Accuracies that they do not
/// reach are left out.
pub fn operating(margins: &[Vec<f32>], gold: &[usize], none: usize, rule: &ScopeRule) -> Vec<OperatingPoint> {
    let outside: Vec<f32> =
        margins.iter().zip(gold).filter(|(_, class)| **class == none).map(|(row, _)| rule.score(row, none)).collect();
    let point = |share: f64| {
        let at = threshold(in_scope(margins, gold, none, rule), share)?;
        let below = outside.iter().filter(|score| **score < at).count();
        Some(OperatingPoint { in_scope_right: share, recall: below as f64 / outside.len().max(1) as f64 })
    };
    OPERATING.into_iter().filter_map(point).collect()
}

/// Minimises Σ weight · log-loss + RIDGE/2 · |weights|² by Newton steps; the fourth number is the offset, which is not pulled.
fn logistic(rows: &[([f64; 4], bool, f64)]) -> [f64; 4] {
    let mut beta = [0.0f64; 4];
    for _ in 0..NEWTON_STEPS {
        let mut gradient: [f64; 4] = std::array::from_fn(|i| if i < 3 { RIDGE * beta[i] } else { 0.0 });
        let mut hessian: [[f64; 4]; 4] = std::array::from_fn(|i| {
            std::array::from_fn(|j| if i == j { if i < 3 { RIDGE } else { 1e-9 } } else { 0.0 })
        });
        for (x, is_in, weight) in rows {
            let p = 1.0 / (1.0 + (-(0..4).map(|i| beta[i] * x[i]).sum::<f64>()).exp());
            let error = weight * (p - f64::from(u8::from(*is_in)));
            for i in 0..4 {
                gradient[i] += error * x[i];
                (0..4).for_each(|j| hessian[i][j] += weight * p * (1.0 - p) * x[i] * x[j]);
            }
        }
        let step = solve(hessian, gradient);
        let length = step.iter().fold(0.0f64, |length, s| length.max(s.abs()));
        let damping = if length > 4.0 { 4.0 / length } else { 1.0 };
        (0..4).for_each(|i| beta[i] -= damping * step[i]);
        if length < 1e-9 {
            break;
        }
    }
    beta
}

/// Solves a positive definite 4 × 4 system by Gaussian elimination.
fn solve(mut a: [[f64; 4]; 4], mut b: [f64; 4]) -> [f64; 4] {
    for pivot in 0..4 {
        for row in pivot + 1..4 {
            let factor = a[row][pivot] / a[pivot][pivot];
            (pivot..4).for_each(|column| a[row][column] -= factor * a[pivot][column]);
            b[row] -= factor * b[pivot];
        }
    }
    let mut x = [0.0; 4];
    for row in (0..4).rev() {
        let known: f64 = (row + 1..4).map(|column| a[row][column] * x[column]).sum();
        x[row] = (b[row] - known) / a[row][row];
    }
    x
}

/// The strictest threshold at which a `share` of the rows in scope are answered and right; `None` where no threshold is loose
/// enough. `rows`: of each row in scope its score and whether it is right.
pub fn threshold(rows: impl Iterator<Item = (f32, bool)>, share: f64) -> Option<f32> {
    let (mut right, mut n): (Vec<f32>, usize) = (Vec::new(), 0);
    for (score, is_right) in rows {
        n += 1;
        if is_right {
            right.push(score);
        }
    }
    right.sort_by(|a, b| b.total_cmp(a));
    let needed = (n as f64 * share).ceil() as usize;
    if n == 0 { None } else { right.get(needed.max(1) - 1).copied() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_strictest_threshold_that_leaves_enough() {
        let rows = |wrong: usize| (0..100).map(move |i| (i as f32 / 100.0, i >= wrong));
        let threshold = |wrong| super::threshold(rows(wrong), IN_SCOPE_RIGHT);
        assert_eq!(threshold(0), Some(0.05), "95 of 100 lie at or above it");
        assert_eq!(threshold(5), Some(0.05));
        assert_eq!(threshold(6), None, "only 94 are right at all");
        assert_eq!(super::threshold(std::iter::empty(), 0.5), None);
    }

    /// Class 2 is none of these. Rows in scope have a top margin near 0.5 and a low margin of none; those out of scope a low top margin *or* a
    /// high margin of none, so that neither alone tells them.
    fn scene(n: usize, seed: u64) -> (Vec<Vec<f32>>, Vec<usize>) {
        let mut state = seed;
        let mut uniform = || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            (metier_model::specialist::mix(state) >> 40) as f32 / (1u64 << 24) as f32
        };
        (0..n)
            .map(|i| {
                let (noise, other) = (0.6 * (uniform() - 0.5), 0.6 * (uniform() - 0.5));
                let class = if i % 10 == 0 { 2 } else { i % 2 };
                let (top, none) = match (class, uniform() < 0.5) {
                    (2, true) => (-0.3 + noise, -0.8 + other),
                    (2, false) => (0.4 + noise, -0.1 + other),
                    _ => (0.5 + noise, -0.9 + other),
                };
                let mut row = vec![top - 0.9, top - 0.9, none];
                row[if class == 2 { i % 2 } else { class }] = top;
                (row, class)
            })
            .unzip()
    }

    #[test]
    fn a_rule_beats_each_of_its_margins() {
        let (margins, gold) = scene(2_000, 1);
        let rule = fit(&margins, &gold, 2, 0.95).unwrap();
        assert!(rule.is_valid() && rule.top > 0.2 && rule.none > 0.2, "{rule:?}");
        // On other rows: as many in scope stay right as were asked for, and more is turned away than by one margin.
        let (margins, gold) = scene(20_000, 2);
        let count = |rule: &ScopeRule| {
            let called: Vec<usize> =
                margins.iter().map(|row| super::super::calibrate::predicted(&rule.apply(row, 2))).collect();
            let share = |is: &dyn Fn(usize) -> bool| {
                let of: Vec<usize> = (0..gold.len()).filter(|at| is(gold[*at])).collect();
                of.iter().filter(|at| called[**at] == gold[**at]).count() as f64 / of.len() as f64
            };
            (share(&|class| class != 2), share(&|class| class == 2))
        };
        let (in_scope_right, recall) = count(&rule);
        assert!((in_scope_right - 0.95).abs() < 0.02, "{in_scope_right}");
        let alone = |rule: ScopeRule| {
            let at = super::threshold(in_scope(&margins, &gold, 2, &rule), 0.95).unwrap();
            count(&ScopeRule { offset: rule.offset - at, ..rule }).1
        };
        let by_top = alone(ScopeRule { top: 1.0, gap: 0.0, none: 0.0, offset: 0.0 });
        let by_none = alone(ScopeRule { top: 0.0, gap: 0.0, none: 1.0, offset: 0.0 });
        assert!(recall > by_top + 0.1 && recall > by_none + 0.1, "{recall} against {by_top} and {by_none}");
        let curve = operating(&margins, &gold, 2, &rule);
        assert!(curve.windows(2).all(|pair| pair[0].recall >= pair[1].recall), "{curve:?}");
        let at_95 = curve.iter().find(|point| point.in_scope_right == 0.95).unwrap();
        assert!((at_95.recall - recall).abs() < 0.06, "{at_95:?} {recall}");
    }

    #[test]
    fn rows_that_give_no_rule_say_why() {
        let (margins, gold) = scene(200, 3);
        assert!(fit(&margins, &gold, 2, 0.95).unwrap_err().contains("20 are out of scope"));
        let (margins, mut gold) = scene(600, 3);
        gold.iter_mut().filter(|class| **class == 1).for_each(|class| *class = 0);
        assert!(fit(&margins, &gold, 2, 0.95).unwrap_err().contains("are right at all"));
    }
}
