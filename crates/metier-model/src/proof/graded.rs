//! At which score may a specialist answer alone, where its errors have degrees?
//!
//! As [`certificate`](super::certificate), for losses in 0..1 such as 1 − token F1. The hypothesis "the mean loss is above ε" is tested by
//! betting against it (Waudby-Smith and Ramdas, Estimating means of bounded random variables by betting, JRSS B 2024): a gambler who
//! stakes a share λ of his money on every loss being below ε has, after n independent ones X,
//!
//! ```text
//! K(λ) = ∏ (1 + λ (ε − X))        E[K] ≤ 1 if the mean is ≥ ε, for any λ in 0..1/(1 − ε);   p = 1 / Σ w K(λ)
//! ```
//!
//! by Markov's inequality, for weights w that sum to 1 over a grid of stakes fixed beforehand. Small losses cost little, whatever their
//! mean: where errors are partial this needs fewer rows than bounds that know the mean alone ([`p_value`]).

use super::{
    certificate::{Certificate, Refusal, rows_needed, thresholds},
    interval::binomial_tail,
};

/// Stakes, as shares of the greatest, and their weights. Rows of a good specialist have few losses: most weight is on high stakes.
const STAKES: [(f64, f64); 8] =
    [(0.99, 0.35), (0.9, 0.2), (0.75, 0.12), (0.6, 0.09), (0.45, 0.08), (0.3, 0.07), (0.2, 0.05), (0.1, 0.04)];

/// What the gambler has, stake by stake.
pub(super) struct Wealth {
    epsilon: f64,
    logs: [f64; STAKES.len()],
}

impl Wealth {
    /// After `n` observations without a loss.
    pub(super) fn without_loss(n: u64, epsilon: f64) -> Self {
        let mut wealth = Self { epsilon, logs: [0.0; STAKES.len()] };
        for (at, log) in wealth.logs.iter_mut().enumerate() {
            *log = n as f64 * factor(at, epsilon, 0.0);
        }
        wealth
    }

    /// One observation had a loss of `from` and has `to`.
    pub(super) fn change(&mut self, from: f64, to: f64) {
        for (at, log) in self.logs.iter_mut().enumerate() {
            *log += factor(at, self.epsilon, to) - factor(at, self.epsilon, from);
        }
    }

    /// P-value of "the mean loss is above ε".
    pub(super) fn p_value(&self) -> f64 {
        let wealth: f64 = self.logs.iter().zip(STAKES).map(|(log, (_, weight))| weight * log.exp()).sum();
        (1.0 / wealth).min(1.0)
    }
}

/// Logarithm of what a stake becomes when a loss is seen.
fn factor(stake: usize, epsilon: f64, loss: f64) -> f64 {
    let lambda = STAKES[stake].0 / (1.0 - epsilon);
    (lambda * (epsilon - loss.clamp(0.0, 1.0))).ln_1p()
}

/// Walks the grid over calibration rows of `(score, loss if accepted)`, each loss 0..1; a row whose score is negative is never accepted.
///
/// In the certificate `losses` counts the accepted rows that lost anything.
pub fn learn_then_test_graded(rows: &[(f32, f64)], epsilon: f64, delta: f64) -> Result<Certificate, Refusal> {
    let n = rows.len() as u64;
    let mut rows = rows.to_vec();
    rows.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut wealth = Wealth::without_loss(n, epsilon);
    let (mut accepted, mut losses, mut sum) = (0, 0, 0.0);
    let mut last_passed = None;
    for threshold in thresholds() {
        while accepted < rows.len() && rows[accepted].0 >= threshold {
            sum += rows[accepted].1;
            losses += u64::from(rows[accepted].1 > 0.0);
            wealth.change(0.0, rows[accepted].1);
            accepted += 1;
        }
        if wealth.p_value() > delta {
            break;
        }
        if accepted > 0 {
            let coverage = accepted as f64 / n as f64;
            last_passed = Some(Certificate { epsilon, delta, threshold, coverage, n, losses, groups: None });
        }
    }
    last_passed.ok_or_else(|| Refusal { n, rows_needed: needed(epsilon, delta, sum / n.max(1) as f64) })
}

/// About as many observations would do at this mean loss: those of an exact test of whole losses at a third of δ, which is what the
/// spread of stakes costs.
pub(super) fn needed(epsilon: f64, delta: f64, mean: f64) -> Option<u64> {
    rows_needed(epsilon, delta / 3.0, mean)
}

/// P-value of "the mean of losses in 0..1 is above `epsilon`" where `n` independent ones have this `mean` and no more is known: the bound
/// of Hoeffding and Bentkus (Bates, Angelopoulos, Lei, Malik, Jordan, arXiv:2101.02703, theorem 1 and its corollary):
///
/// ```text
/// p = min( exp(−n · h(min(R, ε), ε)),  e · P(Binomial(n, ε) ≤ ⌈n·R⌉) )     h(a, b) = a ln(a/b) + (1 − a) ln((1 − a)/(1 − b))
/// ```
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

    /// Without a loss Hoeffding's bound is the exact tail: (1 − ε)ⁿ. The bet pays for its other stakes.
    #[test]
    fn what_no_losses_prove() {
        for n in [58u64, 59] {
            assert!((p_value(0.0, n, 0.05) - 0.95f64.powi(n as i32)).abs() < 1e-12);
        }
        assert_eq!(p_value(0.3, 10, 0.2), 1.0);
        let passes = |n: usize| learn_then_test_graded(&vec![(0.9, 0.0); n], 0.05, 0.05).is_ok();
        let least = (1..200).find(|n| passes(*n)).expect("200 rows are enough");
        assert!((60..=75).contains(&least), "59 rows are the least of any test: {least}");
        assert!(!passes(0));
    }

    /// The stakes sum to 1, and against a mean of exactly ε nobody wins on average: losses of 0 or 1, and losses that are all ε.
    #[test]
    fn no_stake_wins_against_the_hypothesis() {
        assert!((STAKES.iter().map(|(_, weight)| weight).sum::<f64>() - 1.0).abs() < 1e-12);
        for epsilon in [0.01, 0.1, 0.5] {
            for at in 0..STAKES.len() {
                let after = |loss: f64| factor(at, epsilon, loss).exp();
                let whole = epsilon * after(1.0) + (1.0 - epsilon) * after(0.0);
                assert!((whole - 1.0).abs() < 1e-12 && (after(epsilon) - 1.0).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn partial_losses_cost_less_than_whole_ones() {
        // 120 rows, every fifth loses a quarter: the mean is half of ε. The mean alone does not carry it.
        let rows: Vec<(f32, f64)> = (0..120).map(|i| (0.9, if i % 5 == 0 { 0.25 } else { 0.0 })).collect();
        assert!(p_value(0.05, 120, 0.1) > 0.1);
        let certificate = learn_then_test_graded(&rows, 0.1, 0.05).expect("the bet is won");
        assert_eq!((certificate.losses, certificate.coverage), (24, 1.0));
        let mut wealth = Wealth::without_loss(10, 0.1);
        let before = wealth.p_value();
        wealth.change(0.0, 0.4);
        wealth.change(0.4, 0.0);
        assert!((wealth.p_value() - before).abs() < 1e-9);
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
