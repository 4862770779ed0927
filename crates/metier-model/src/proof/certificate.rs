//! At which score may a specialist answer alone?
//!
//! *Learn-then-Test* (Angelopoulos, Bates, Candès, Jordan, Lei, arXiv:2110.01052): the loss of a row at threshold `t` is 1 where the
//! specialist accepts at `t`, is wrong, and the reference is right. Thresholds are walked on one grid that is fixed before
//! the data are seen, from strict to loose; at each the hypothesis "the risk exceeds ε" is tested with the exact binomial
//! tail; the walk ends at the first that cannot be rejected at δ. As each test is made only if all before it succeeded,
//! no correction for their number is due, and P(risk ≤ ε) ≥ 1 − δ over the draw of the calibration rows.
//!
//! The promise is marginal over traffic like the calibration rows, not per request, and void once weights, base,
//! quantisation or template change.

use serde::{Deserialize, Serialize};

use super::interval::binomial_tail;

/// The grid is 1, 1 − 1/STEPS, …, 0.
const STEPS: u32 = 1000;
/// Beyond this many rows "needs N rows" is no advice.
const MAX_ROWS_NEEDED: u64 = 10_000_000;

/// With probability ≥ 1 − δ over the calibration set, the share of requests where the specialist answered wrong and the
/// reference was right is at most ε.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Certificate {
    /// Bound on the risk.
    pub epsilon: f64,
    /// Probability that the bound does not hold.
    pub delta: f64,
    /// Answers with at least this score are accepted.
    pub threshold: f32,
    /// Share of the calibration rows that were accepted.
    pub coverage: f64,
    /// Calibration rows.
    pub n: u64,
    /// Calibration rows that were accepted and wrong while the reference was right.
    pub losses: u64,
    /// Groups that these rows come in, each counted once; absent where rows are independent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<u64>,
}

/// Why there is no certificate: the specialist defers everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Calibration rows there were.
    pub n: u64,
    /// About as many would be needed; `None` where more rows would not help because the surest answers err too often.
    pub rows_needed: Option<u64>,
}

/// The grid, strict to loose: 1.000, 0.999, …, 0.000.
pub fn thresholds() -> impl Iterator<Item = f32> {
    (0..=STEPS).rev().map(|step| step as f32 / STEPS as f32)
}

/// Walks the grid over calibration rows of `(score, loss if accepted)`. A threshold that accepts no row is no certificate.
pub fn learn_then_test(rows: &[(f32, bool)], epsilon: f64, delta: f64) -> Result<Certificate, Refusal> {
    let n = rows.len() as u64;
    let mut rows = rows.to_vec();
    rows.sort_by(|a, b| b.0.total_cmp(&a.0));
    let (mut accepted, mut losses) = (0, 0);
    let mut last_passed = None;
    for threshold in thresholds() {
        while accepted < rows.len() && rows[accepted].0 >= threshold {
            losses += u64::from(rows[accepted].1);
            accepted += 1;
        }
        if n == 0 || binomial_tail(losses, n, epsilon) > delta {
            break;
        }
        if accepted > 0 {
            let coverage = accepted as f64 / n as f64;
            last_passed = Some(Certificate { epsilon, delta, threshold, coverage, n, losses, groups: None });
        }
    }
    // Refused by the very first rows that it would accept: their loss rate says how many rows would do.
    last_passed.ok_or_else(|| Refusal { n, rows_needed: rows_needed(epsilon, delta, losses as f64 / n.max(1) as f64) })
}

/// Fewest calibration rows at which a share of `loss_rate` observed losses passes the test at ε and δ. With no losses:
/// ln δ / ln(1 − ε), that is 59 for ε = δ = 0.05 and 299 for ε = 0.01.
pub fn rows_needed(epsilon: f64, delta: f64, loss_rate: f64) -> Option<u64> {
    let passes = |n: u64| binomial_tail((loss_rate * n as f64).ceil() as u64, n, epsilon) <= delta;
    if loss_rate >= epsilon {
        return None;
    }
    let mut high = 1;
    while !passes(high) {
        high *= 2;
        if high > MAX_ROWS_NEEDED {
            return None;
        }
    }
    let mut low = high / 2;
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if passes(middle) { high = middle } else { low = middle }
    }
    Some(high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_for_zero_losses() {
        assert_eq!(rows_needed(0.05, 0.05, 0.0), Some(59));
        assert_eq!(rows_needed(0.02, 0.05, 0.0), Some(149));
        assert_eq!(rows_needed(0.01, 0.05, 0.0), Some(299));
        assert_eq!(rows_needed(0.05, 0.05, 0.05), None);
    }

    fn rows(right: usize, wrong_at: &[usize]) -> Vec<(f32, bool)> {
        (0..right).map(|i| (1.0 - i as f32 / right as f32, wrong_at.contains(&i))).collect()
    }

    #[test]
    fn walks_until_the_first_that_fails() {
        // Binomial(100, 0.05): P(X ≤ 1) = 0.037, P(X ≤ 2) = 0.118: the second loss is one too many.
        let certificate = learn_then_test(&rows(100, &[30, 50, 51]), 0.05, 0.05).expect("100 rows carry it");
        assert_eq!((certificate.losses, certificate.n), (1, 100));
        assert!((certificate.coverage - 0.50).abs() < 1e-9, "{certificate:?}");
        assert!(certificate.threshold > 0.5 && certificate.threshold < 0.512, "{certificate:?}");
        let all = learn_then_test(&rows(100, &[]), 0.05, 0.05).expect("no losses");
        assert_eq!((all.coverage, all.threshold), (1.0, 0.0));
    }

    #[test]
    fn refuses_what_the_rows_cannot_carry() {
        assert_eq!(learn_then_test(&rows(58, &[]), 0.05, 0.05), Err(Refusal { n: 58, rows_needed: Some(59) }));
        assert_eq!(learn_then_test(&[], 0.05, 0.05), Err(Refusal { n: 0, rows_needed: Some(59) }));
        assert!(learn_then_test(&rows(59, &[]), 0.05, 0.05).is_ok());
        // The surest row is wrong: 60 rows do not carry one loss, 93 do.
        assert_eq!(
            learn_then_test(&rows(60, &[0]), 0.05, 0.05).map_err(|r| r.rows_needed.is_some_and(|n| n > 60)),
            Err(true)
        );
        assert_eq!(learn_then_test(&[(0.9, true); 200], 0.05, 0.05), Err(Refusal { n: 200, rows_needed: None }));
    }

    /// The promise itself: over many calibration sets the share whose true risk exceeds ε is at most δ.
    #[test]
    fn the_bound_holds_over_draws() {
        const DRAWS: u32 = 4000;
        let (epsilon, delta) = (0.05, 0.10);
        // Score u ~ U(0,1); P(wrong | u) = 0.5·(1 − u). Risk at t: ∫_t^1 0.5(1 − u) du = 0.25·(1 − t)².
        let mut state = 7u64;
        let mut uniform = || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            (crate::specialist::mix(state) >> 11) as f64 / (1u64 << 53) as f64
        };
        let mut exceeded = 0;
        let mut coverage = 0.0;
        for _ in 0..DRAWS {
            let rows: Vec<(f32, bool)> = (0..200)
                .map(|_| {
                    let score = uniform();
                    (score as f32, uniform() < 0.5 * (1.0 - score))
                })
                .collect();
            if let Ok(certificate) = learn_then_test(&rows, epsilon, delta) {
                exceeded += u32::from(0.25 * (1.0 - f64::from(certificate.threshold)).powi(2) > epsilon);
                coverage += certificate.coverage / f64::from(DRAWS);
            }
        }
        let share = f64::from(exceeded) / f64::from(DRAWS);
        let monte_carlo = 3.0 * (delta * (1.0 - delta) / f64::from(DRAWS)).sqrt();
        assert!(share <= delta + monte_carlo, "{share}");
        assert!(share > 0.01 && coverage > 0.2, "a bound that never binds is no test: {share}, {coverage}");
    }
}
