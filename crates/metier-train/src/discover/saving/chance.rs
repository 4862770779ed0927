//! How likely is it that a specialist will do the task? A guess in, a Beta distribution out that this installation's own attempts have
//! corrected.
//!
//! Attempts of one kind, on one sort of evidence, are compared with what was forecast for them. Their passes are binomial; the rate has a
//! Beta prior worth `chance_strength` attempts, centred on the forecasts themselves, so with no attempts nothing is corrected. The difference
//! of log-odds between the rate found and the rate forecast is then added to every new guess: tasks keep their order, and the whole moves.

use serde::{Deserialize, Serialize};

use super::draw::Draw;
use crate::discover::task::TaskKind;

/// Attempts from which on a Brier score is told: below, it says little.
pub const MIN_BRIER_ATTEMPTS: usize = 30;
const RESAMPLES: usize = 1000;
/// Nothing is certain.
const FLOOR: f64 = 0.01;

/// What a forecast stood on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Evidence {
    /// Traits of the traffic alone.
    Traits,
    /// A specialist was made from the logs and tried on held-out rows.
    Tried,
}

/// A forecast and what became of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// The task's name.
    pub task: String,
    /// Its kind.
    pub kind: TaskKind,
    /// What the forecast stood on.
    pub evidence: Evidence,
    /// The probability that was forecast.
    pub forecast: f64,
    /// Did a build reach what was forecast?
    pub passed: bool,
}

/// Beta(a, b).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Chance {
    /// Passes, the prior's included.
    pub a: f64,
    /// Failures, the prior's included.
    pub b: f64,
}

impl Chance {
    /// A guess that is worth `strength` attempts.
    pub fn of(guess: f64, strength: f64) -> Self {
        let guess = guess.clamp(FLOOR, 1.0 - FLOOR);
        Self { a: guess * strength, b: (1.0 - guess) * strength }
    }

    /// Its mean.
    pub fn mean(self) -> f64 {
        self.a / (self.a + self.b)
    }
}

/// Corrects a guess by the attempts of its kind on the same sort of evidence.
pub fn calibrated(guess: f64, kind: TaskKind, evidence: Evidence, attempts: &[Attempt], strength: f64) -> Chance {
    let guess = guess.clamp(FLOOR, 1.0 - FLOOR);
    let alike: Vec<&Attempt> =
        attempts.iter().filter(|attempt| attempt.kind == kind && attempt.evidence == evidence).collect();
    let n = alike.len() as f64;
    let forecast: f64 = alike.iter().map(|attempt| attempt.forecast.clamp(FLOOR, 1.0 - FLOOR)).sum();
    let passed = alike.iter().filter(|attempt| attempt.passed).count() as f64;
    // Centred on what was forecast: few attempts correct little.
    let centre = if alike.is_empty() { guess } else { forecast / n };
    let found = (strength * centre + passed) / (strength + n);
    let shift = logit(found.clamp(FLOOR, 1.0 - FLOOR)) - logit(centre);
    Chance::of(1.0 / (1.0 + (-(logit(guess) + shift)).exp()), strength + n)
}

fn logit(p: f64) -> f64 {
    (p / (1.0 - p)).ln()
}

/// How far forecasts lay from what happened: mean squared difference, 0 is perfect, 0.25 is a coin.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Brier {
    /// Forecasts.
    pub n: u64,
    /// The score.
    pub score: f64,
    /// Its 95 % interval (bootstrap).
    pub interval: [f64; 2],
    /// The score of forecasting the share that passed, every time: what must be beaten.
    pub of_base_rate: f64,
}

/// The score of some forecasts; none while there are fewer than [`MIN_BRIER_ATTEMPTS`].
pub fn brier(attempts: &[Attempt], seed: u64) -> Option<Brier> {
    if attempts.len() < MIN_BRIER_ATTEMPTS {
        return None;
    }
    let n = attempts.len();
    let errors: Vec<f64> =
        attempts.iter().map(|attempt| (attempt.forecast - f64::from(u8::from(attempt.passed))).powi(2)).collect();
    let rate = attempts.iter().filter(|attempt| attempt.passed).count() as f64 / n as f64;
    let mut draw = Draw::new(seed, "brier");
    let mut scores: Vec<f64> =
        (0..RESAMPLES).map(|_| (0..n).map(|_| errors[draw.below(n)]).sum::<f64>() / n as f64).collect();
    scores.sort_by(f64::total_cmp);
    let at = |share: f64| scores[((RESAMPLES - 1) as f64 * share).round() as usize];
    Some(Brier {
        n: n as u64,
        score: errors.iter().sum::<f64>() / n as f64,
        interval: [at(0.025), at(0.975)],
        of_base_rate: rate * (1.0 - rate),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempts(n: usize, passed: usize, forecast: f64) -> Vec<Attempt> {
        let attempt = |at| Attempt {
            task: format!("t{at}"),
            kind: TaskKind::Classify,
            evidence: Evidence::Tried,
            forecast,
            passed: at < passed,
        };
        (0..n).map(attempt).collect()
    }

    #[test]
    fn attempts_move_the_guess_and_only_their_own_kind() {
        let none = calibrated(0.8, TaskKind::Classify, Evidence::Tried, &[], 8.0);
        assert!((none.a - 6.4).abs() < 1e-12 && (none.b - 1.6).abs() < 1e-12, "without attempts the prior stands");
        // (8 · 0.5 + 8) / (8 + 8) = 0.75: log-odds of 0.5 rise by ln 3.
        let seen = calibrated(0.5, TaskKind::Classify, Evidence::Tried, &attempts(8, 8, 0.5), 8.0);
        assert!((seen.mean() - 0.75).abs() < 1e-12 && (seen.a + seen.b - 16.0).abs() < 1e-12, "{seen:?}");
        let other = calibrated(0.2, TaskKind::Classify, Evidence::Tried, &attempts(8, 8, 0.5), 8.0);
        assert!((other.mean() - 3.0 / 7.0).abs() < 1e-12, "0.25 odds times 3: {other:?}");
        let kind = calibrated(0.5, TaskKind::Generate, Evidence::Tried, &attempts(8, 8, 0.5), 8.0);
        assert!((kind.mean() - 0.5).abs() < 1e-12);
        let right = calibrated(0.9, TaskKind::Classify, Evidence::Tried, &attempts(10, 9, 0.9), 8.0);
        assert!((right.mean() - 0.9).abs() < 1e-12, "forecasts that come true change nothing: {right:?}");
    }

    #[test]
    fn brier_by_hand() {
        assert_eq!(brier(&attempts(29, 29, 0.9), 1), None);
        let score = brier(&attempts(40, 30, 0.8), 1).expect("forty are enough");
        assert!((score.score - (30.0 * 0.04 + 10.0 * 0.64) / 40.0).abs() < 1e-12);
        assert!((score.of_base_rate - 0.1875).abs() < 1e-12);
        assert!(score.interval[0] < score.score && score.score < score.interval[1]);
    }
}
