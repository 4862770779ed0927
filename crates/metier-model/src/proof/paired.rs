//! Is one classifier as good as another on the same rows, up to a margin?
//!
//! Only rows where exactly one of the two is right say anything. The interval and the test are Tango's score method (Statistics
//! in Medicine 17 (1998) 891–908; the test is also Nam's, Biometrics 53 (1997)): unlike a Wald interval it keeps its
//! level when few rows disagree, and unlike McNemar's exact test it takes a margin. McNemar's exact p-value for "no
//! difference at all" is printed beside it.

use serde::{Deserialize, Serialize};

use super::interval::{binomial_tail, normal_quantile};

/// Confidence of the printed interval, and one-sided error of the verdict.
const CONFIDENCE: f64 = 0.95;
const ALPHA: f64 = 0.05;
/// Power at which [`NonInferiority::rows_needed`] is computed.
const POWER: f64 = 0.80;
const BISECTIONS: u32 = 60;

/// Rows on which a candidate and a reference were both tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paired {
    /// All rows.
    pub n: u64,
    /// Rows that only the candidate got right.
    pub candidate_only: u64,
    /// Rows that only the reference got right.
    pub reference_only: u64,
}

/// What the rows allow to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Worse by less than the margin, at one-sided 5 %.
    NonInferior,
    /// Worse by more than the margin, at one-sided 5 %.
    Inferior,
    /// Neither: more rows are needed.
    CannotTell,
}

/// The answer of a paired test: difference = accuracy of the candidate − accuracy of the reference.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct NonInferiority {
    /// Observed difference, −1 … 1.
    pub difference: f64,
    /// Its two-sided 95 % interval.
    pub interval: [f64; 2],
    /// One-sided p-value of "worse by the margin or more".
    pub p_value: f64,
    /// Two-sided exact McNemar p-value of "no difference".
    pub mcnemar_p: f64,
    /// The verdict at one-sided 5 %.
    pub verdict: Verdict,
    /// Rows at which a test of equals with this discordance would succeed four times in five; `None` where nothing was
    /// discordant or the margin is 0.
    pub rows_needed: Option<u64>,
}

impl Paired {
    /// Counts two lists of "was right", row by row.
    pub fn count(candidate: &[bool], reference: &[bool]) -> Self {
        assert_eq!(candidate.len(), reference.len(), "the same rows");
        let only =
            |first: &[bool], second: &[bool]| first.iter().zip(second).filter(|(a, b)| **a && !**b).count() as u64;
        Self {
            n: candidate.len() as u64,
            candidate_only: only(candidate, reference),
            reference_only: only(reference, candidate),
        }
    }

    /// Is the candidate's accuracy at most `margin` below the reference's?
    pub fn non_inferiority(&self, margin: f64) -> NonInferiority {
        let z = normal_quantile(0.5 + CONFIDENCE / 2.0);
        let discordant = (self.candidate_only + self.reference_only) as f64 / (self.n.max(1)) as f64;
        let statistic = self.score(-margin);
        let verdict = if statistic >= normal_quantile(1.0 - ALPHA) {
            Verdict::NonInferior
        } else if statistic <= normal_quantile(ALPHA) {
            Verdict::Inferior
        } else {
            Verdict::CannotTell
        };
        let z_needed = normal_quantile(1.0 - ALPHA) + normal_quantile(POWER);
        NonInferiority {
            difference: (self.candidate_only as f64 - self.reference_only as f64) / self.n.max(1) as f64,
            interval: [self.bound(z), self.bound(-z)],
            p_value: upper_tail(statistic),
            mcnemar_p: self.mcnemar(),
            verdict,
            rows_needed: (discordant > 0.0 && margin > 0.0)
                .then(|| (z_needed * z_needed * discordant / (margin * margin)).ceil() as u64),
        }
    }

    /// Two-sided exact McNemar p-value: the discordant rows are fair coin tosses if there is no difference.
    pub fn mcnemar(&self) -> f64 {
        let discordant = self.candidate_only + self.reference_only;
        (2.0 * binomial_tail(self.candidate_only.min(self.reference_only), discordant, 0.5)).min(1.0)
    }

    /// Tango's score statistic of "the difference is `delta`": standard normal if it is; it falls as `delta` grows.
    fn score(&self, delta: f64) -> f64 {
        let (n, b, c) = (self.n as f64, self.candidate_only as f64, self.reference_only as f64);
        let (qa, qb, qc) = (2.0 * n, -b - c + (2.0 * n - b + c) * delta, -c * delta * (1.0 - delta));
        let q = ((qb * qb - 4.0 * qa * qc).max(0.0).sqrt() - qb) / (2.0 * qa); // restricted estimate of P(reference only)
        let variance = n * (2.0 * q + delta * (1.0 - delta));
        let distance = b - c - n * delta;
        if variance > 0.0 {
            distance / variance.sqrt()
        } else {
            distance.signum() * if distance == 0.0 { 0.0 } else { f64::INFINITY }
        }
    }

    fn bound(&self, z: f64) -> f64 {
        if self.n == 0 {
            return -z.signum();
        }
        let (mut low, mut high) = (-1.0, 1.0);
        for _ in 0..BISECTIONS {
            let middle = (low + high) / 2.0;
            if self.score(middle) > z { low = middle } else { high = middle }
        }
        (low + high) / 2.0
    }
}

fn upper_tail(z: f64) -> f64 {
    0.5 * statrs::function::erf::erfc(z / std::f64::consts::SQRT_2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_equal_those_of_a_numeric_maximum_likelihood() {
        // Oracle: restricted likelihood maximised by ternary search and the score inverted by bisection, in Python.
        for (n, candidate_only, reference_only, low, high) in [
            (50, 12, 2, 0.0611, 0.3447),
            (50, 14, 0, 0.1747, 0.4167),
            (44, 9, 9, -0.1915, 0.1915),
            (1000, 40, 25, -0.0008, 0.0315),
            (100, 0, 0, -0.0370, 0.0370),
            (32, 1, 0, -0.0793, 0.1574),
        ] {
            let interval = Paired { n, candidate_only, reference_only }.non_inferiority(0.1).interval;
            assert!((interval[0] - low).abs() < 1e-4 && (interval[1] - high).abs() < 1e-4, "{interval:?}");
        }
    }

    #[test]
    fn mcnemar_by_hand() {
        // 2 · (1 + 10 + 45) / 2¹⁰
        let paired = Paired { n: 100, candidate_only: 2, reference_only: 8 };
        assert!((paired.mcnemar() - 112.0 / 1024.0).abs() < 1e-12);
        assert!((Paired { n: 5, candidate_only: 0, reference_only: 0 }.mcnemar() - 1.0).abs() < 1e-12);
    }

    #[track_caller]
    fn check(n: u64, candidate_only: u64, reference_only: u64, margin: f64, verdict: Verdict) {
        assert_eq!(Paired { n, candidate_only, reference_only }.non_inferiority(margin).verdict, verdict);
    }

    #[test]
    fn verdicts() {
        check(3000, 60, 60, 0.02, Verdict::NonInferior);
        check(100, 2, 2, 0.02, Verdict::CannotTell);
        check(1000, 10, 80, 0.02, Verdict::Inferior);
        check(1000, 80, 10, 0.0, Verdict::NonInferior);
        check(0, 0, 0, 0.02, Verdict::CannotTell);
        check(100, 0, 0, 0.0, Verdict::CannotTell);
    }

    #[test]
    fn rows_needed_is_the_textbook_formula() {
        // 6.18 · 0.10 / 0.02² = 1,546
        let rows = Paired { n: 1000, candidate_only: 50, reference_only: 50 }.non_inferiority(0.02).rows_needed;
        assert_eq!(rows, Some(1546));
    }
}
