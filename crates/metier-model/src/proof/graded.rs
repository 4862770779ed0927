//! At which score may a specialist answer alone, where its errors have degrees?
//!
//! As [`certificate`](super::certificate), for losses in 0..1 such as 1 − token F1: the p-value of "the mean loss is above ε" is that of
//! Hoeffding and Bentkus (Bates, Angelopoulos, Lei, Malik, Jordan, arXiv:2101.02703, theorem 1 and its corollary):
//!
//! ```text
//! p = min( exp(−n · h(min(R, ε), ε)),  e · P(Binomial(n, ε) ≤ ⌈n·R⌉) )     h(a, b) = a ln(a/b) + (1 − a) ln((1 − a)/(1 − b))
//! ```

use super::{
    certificate::{Certificate, Refusal, rows_needed, thresholds},
    interval::binomial_tail,
};

/// Walks the grid over calibration rows of `(score, loss if accepted)`, each loss 0..1; a row whose score is negative is never accepted.
///
/// In the certificate `losses` counts the accepted rows that lost anything.
pub fn learn_then_test_graded(rows: &[(f32, f64)], epsilon: f64, delta: f64) -> Result<Certificate, Refusal> {
    let n = rows.len() as u64;
    let mut rows = rows.to_vec();
    rows.sort_by(|a, b| b.0.total_cmp(&a.0));
    let (mut accepted, mut losses, mut sum) = (0, 0, 0.0);
    let mut last_passed = None;
    for threshold in thresholds() {
        while accepted < rows.len() && rows[accepted].0 >= threshold {
            sum += rows[accepted].1;
            losses += u64::from(rows[accepted].1 > 0.0);
            accepted += 1;
        }
        if n == 0 || p_value(sum / n as f64, n, epsilon) > delta {
            break;
        }
        if accepted > 0 {
            let coverage = accepted as f64 / n as f64;
            last_passed = Some(Certificate { epsilon, delta, threshold, coverage, n, losses, groups: None });
        }
    }
    // Bentkus' bound is e times the exact tail: a refusal asks for the rows of an exact test at δ / e.
    last_passed.ok_or_else(|| Refusal {
        n,
        rows_needed: rows_needed(epsilon, delta / std::f64::consts::E, sum / n.max(1) as f64),
    })
}

/// P-value of "the mean of losses in 0..1 is above `epsilon`" where `n` independent ones have this `mean`.
pub fn p_value(mean: f64, n: u64, epsilon: f64) -> f64 {
    let n_f = n as f64;
    let hoeffding = (-n_f * relative_entropy(mean.min(epsilon), epsilon)).exp();
    // What rounding has left of a sum of whole losses is no further loss.
    let bentkus = std::f64::consts::E * binomial_tail((n_f * mean - 1e-9).ceil().max(0.0) as u64, n, epsilon);
    hoeffding.min(bentkus).min(1.0)
}

fn relative_entropy(a: f64, b: f64) -> f64 {
    let term = |x: f64, y: f64| if x == 0.0 { 0.0 } else { x * (x / y).ln() };
    term(a, b) + term(1.0 - a, 1.0 - b)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without a loss Hoeffding's bound is the exact tail: (1 − ε)ⁿ.
    #[test]
    fn no_losses_need_as_many_rows_as_the_exact_test() {
        for n in [58u64, 59] {
            assert!((p_value(0.0, n, 0.05) - 0.95f64.powi(n as i32)).abs() < 1e-12);
        }
        assert!(learn_then_test_graded(&[(0.9, 0.0); 59], 0.05, 0.05).is_ok());
        assert!(learn_then_test_graded(&[(0.9, 0.0); 58], 0.05, 0.05).is_err());
        assert_eq!(p_value(0.3, 10, 0.2), 1.0);
    }

    /// The promise: over many calibration sets, the share whose true risk exceeds ε is at most δ.
    #[test]
    fn the_bound_holds_over_draws() {
        const DRAWS: u32 = 2000;
        let (epsilon, delta) = (0.05, 0.10);
        let mut state = 11u64;
        let mut uniform = || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            (crate::specialist::mix(state) >> 11) as f64 / (1u64 << 53) as f64
        };
        // Score u ~ U(0,1), loss = v · [w < 1 − u] with v, w ~ U(0,1): mean loss at u is (1 − u)/2, risk at t is (1 − t)²/4.
        let (mut exceeded, mut coverage) = (0, 0.0);
        for _ in 0..DRAWS {
            let rows: Vec<(f32, f64)> = (0..200)
                .map(|_| {
                    let score = uniform();
                    let (size, is_lost) = (uniform(), uniform() < 1.0 - score);
                    (score as f32, if is_lost { size } else { 0.0 })
                })
                .collect();
            if let Ok(certificate) = learn_then_test_graded(&rows, epsilon, delta) {
                exceeded += u32::from(0.25 * (1.0 - f64::from(certificate.threshold)).powi(2) > epsilon);
                coverage += certificate.coverage / f64::from(DRAWS);
            }
        }
        let share = f64::from(exceeded) / f64::from(DRAWS);
        let monte_carlo = 3.0 * (delta * (1.0 - delta) / f64::from(DRAWS)).sqrt();
        assert!(share <= delta + monte_carlo, "{share}");
        assert!(coverage > 0.2, "a bound that accepts nothing is no test: {coverage}");
    }

    #[test]
    fn what_was_cut_is_never_accepted() {
        let mut rows = vec![(0.5, 0.0); 100];
        rows.extend([(-1.0, 1.0); 100]);
        let certificate = learn_then_test_graded(&rows, 0.05, 0.05).expect("no accepted row loses");
        assert_eq!((certificate.threshold, certificate.coverage, certificate.losses), (0.0, 0.5, 0));
    }
}
