//! How far may a share of `k` in `n` lie from the truth?

use statrs::function::{beta::beta_reg, erf::erfc_inv};

/// Steps of bisection: 2⁻⁶⁰ is below what an f64 in 0..1 resolves.
const BISECTIONS: u32 = 60;

/// The two-sided Wilson score interval of `k` in `n` at `confidence` (0.95). Good at small n and near 0 and 1, at the
/// price of covering slightly less than it says for some shares. Without rows: `[0, 1]`.
///
/// Wilson, Journal of the American Statistical Association 22 (1927).
pub fn wilson(k: u64, n: u64, confidence: f64) -> [f64; 2] {
    if n == 0 {
        return [0.0, 1.0];
    }
    let (n, share) = (n as f64, k as f64 / n as f64);
    let z = normal_quantile(0.5 + confidence / 2.0);
    let centre = (share + z * z / (2.0 * n)) / (1.0 + z * z / n);
    let half = z / (1.0 + z * z / n) * (share * (1.0 - share) / n + z * z / (4.0 * n * n)).sqrt();
    [(centre - half).max(0.0), (centre + half).min(1.0)]
}

/// The exact (Clopper–Pearson) interval of `k` in `n`: each bound errs with probability at most `(1 − confidence)/2`,
/// whatever the truth. For a one-sided bound at level 1 − δ pass `confidence = 1 − 2δ`.
///
/// Clopper and Pearson, Biometrika 26 (1934).
pub fn clopper_pearson(k: u64, n: u64, confidence: f64) -> [f64; 2] {
    assert!(k <= n, "{k} of {n}");
    let tail = (1.0 - confidence) / 2.0;
    let low = if k == 0 { 0.0 } else { bisect(|p| 1.0 - binomial_tail(k - 1, n, p) < tail) };
    let high = if k == n { 1.0 } else { bisect(|p| binomial_tail(k, n, p) > tail) };
    [low, high]
}

/// P(X ≤ k) for X ~ Binomial(n, p), exactly, through the regularised incomplete beta function.
pub fn binomial_tail(k: u64, n: u64, p: f64) -> f64 {
    if k >= n || p <= 0.0 {
        return 1.0;
    }
    if p >= 1.0 {
        return 0.0;
    }
    beta_reg((n - k) as f64, k as f64 + 1.0, 1.0 - p)
}

/// The `p`-quantile of the standard normal distribution.
pub fn normal_quantile(p: f64) -> f64 {
    -std::f64::consts::SQRT_2 * erfc_inv(2.0 * p)
}

/// The point of 0..1 where `is_below` turns from true to false.
fn bisect(is_below: impl Fn(f64) -> bool) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..BISECTIONS {
        let middle = (low + high) / 2.0;
        if is_below(middle) { low = middle } else { high = middle }
    }
    (low + high) / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(got: [f64; 2], expected: [f64; 2], digits: i32) {
        let tolerance = 0.5 * 10f64.powi(-digits);
        assert!(got.iter().zip(expected).all(|(g, e)| (g - e).abs() <= tolerance), "{got:?} is not {expected:?}");
    }

    #[test]
    fn published_intervals() {
        check(wilson(92, 100, 0.95), [0.850, 0.959], 3);
        check(wilson(0, 0, 0.95), [0.0, 1.0], 9);
        // Newcombe, Statistics in Medicine 17 (1998) 857–872, table I: 81/263, 15/148, 0/20, 1/29.
        check(wilson(81, 263, 0.95), [0.2553, 0.3662], 4);
        check(wilson(15, 148, 0.95), [0.0624, 0.1605], 4);
        check(wilson(0, 20, 0.95), [0.0, 0.1611], 4);
        check(wilson(1, 29, 0.95), [0.0061, 0.1718], 4);
        check(clopper_pearson(81, 263, 0.95), [0.2527, 0.3676], 4);
        check(clopper_pearson(15, 148, 0.95), [0.0578, 0.1617], 4);
        check(clopper_pearson(0, 20, 0.95), [0.0, 0.1684], 4);
        check(clopper_pearson(1, 29, 0.95), [0.0009, 0.1776], 4);
    }

    #[test]
    fn tails_by_hand() {
        assert!((binomial_tail(0, 59, 0.05) - 0.95f64.powi(59)).abs() < 1e-12);
        assert!((binomial_tail(1, 2, 0.3) - (1.0 - 0.09)).abs() < 1e-12);
        assert!((binomial_tail(2, 2, 0.3) - 1.0).abs() < 1e-12);
        let by_hand: f64 = [1.0, 10.0 * 0.25, 45.0 * 0.0625].iter().sum::<f64>() * 0.8f64.powi(10);
        assert!((binomial_tail(2, 10, 0.2) - by_hand).abs() < 1e-12);
        assert!((normal_quantile(0.975) - 1.959_963_985).abs() < 1e-8);
    }
}
