//! How likely is the top label right? Margins of a head in, a score in 0..1 out; fitted on validation rows by
//! `metier-train/eval`, applied here and nowhere else.

use serde::{Deserialize, Serialize};

/// Turns margins into a probability of being right.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibrator {
    /// Factor on the margins before softmax; greater than 0.
    pub inverse_temperature: f32,
    /// How the score is made.
    #[serde(flatten)]
    pub method: Method,
}

/// How the score is made; every method rises with the top margin when the others stand still.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "snake_case")]
pub enum Method {
    /// The top class' softmax probability at the temperature.
    Softmax,
    /// `σ(top·m₁ + gap·(m₁ − m₂) + offset)` with m₁ ≥ m₂ the two largest margins; both factors at least 0.
    /// Platt's method on two features: the gap tells classes apart, the height tells "none of these".
    Platt {
        /// Factor of the largest margin.
        top: f32,
        /// Factor of its distance to the second.
        gap: f32,
        /// Constant.
        offset: f32,
    },
    /// Platt's score, then a rising line through knots `(score, share right)` found by isotonic regression.
    Isotonic {
        /// As in `Platt`.
        top: f32,
        /// As in `Platt`.
        gap: f32,
        /// As in `Platt`.
        offset: f32,
        /// Scores, strictly ascending.
        knots: Vec<f32>,
        /// Share right at each knot, ascending.
        values: Vec<f32>,
    },
}

impl Calibrator {
    /// The probability, 0..1, that the class of the largest margin is right.
    pub fn score(&self, margins: &[f32]) -> f32 {
        let (first, second) = top_two(margins);
        match &self.method {
            Method::Softmax => {
                let total: f32 = margins.iter().map(|m| ((m - first) * self.inverse_temperature).exp()).sum();
                1.0 / total
            }
            Method::Platt { top, gap, offset } => sigmoid(top * first + gap * (first - second) + offset),
            Method::Isotonic { top, gap, offset, knots, values } => {
                interpolate(knots, values, sigmoid(top * first + gap * (first - second) + offset))
            }
        }
    }

    /// Softmax of the margins at the temperature: sums to 1, for showing the runners-up.
    pub fn probabilities(&self, margins: &[f32]) -> Vec<f32> {
        let (first, _) = top_two(margins);
        let mut p: Vec<f32> = margins.iter().map(|m| ((m - first) * self.inverse_temperature).exp()).collect();
        let total: f32 = p.iter().sum();
        p.iter_mut().for_each(|p| *p /= total);
        p
    }

    /// False where a parameter is not finite, a factor is negative, or knots do not ascend: such a calibrator is not applied.
    pub fn is_valid(&self) -> bool {
        let factors = |top: f32, gap: f32, offset: f32| {
            top.is_finite() && gap.is_finite() && offset.is_finite() && top >= 0.0 && gap >= 0.0
        };
        let unit = |values: &[f32]| values.iter().all(|value| (0.0..=1.0).contains(value));
        self.inverse_temperature.is_finite()
            && self.inverse_temperature > 0.0
            && match &self.method {
                Method::Softmax => true,
                Method::Platt { top, gap, offset } => factors(*top, *gap, *offset),
                Method::Isotonic { top, gap, offset, knots, values } => {
                    factors(*top, *gap, *offset)
                        && !knots.is_empty()
                        && knots.len() == values.len()
                        && unit(knots)
                        && unit(values)
                        && knots.is_sorted_by(|a, b| a < b)
                        && values.is_sorted()
                }
            }
    }
}

/// The two largest of at least two margins.
pub fn top_two(margins: &[f32]) -> (f32, f32) {
    margins.iter().fold((f32::NEG_INFINITY, f32::NEG_INFINITY), |(first, second), &margin| {
        if margin > first { (margin, first) } else { (first, second.max(margin)) }
    })
}

/// 1 / (1 + e⁻ˣ)
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// The rising line through the knots at `x`; constant outside them.
fn interpolate(knots: &[f32], values: &[f32], x: f32) -> f32 {
    let after = knots.partition_point(|knot| *knot < x);
    if after == 0 {
        return values[0];
    }
    if after == knots.len() {
        return values[after - 1];
    }
    let share = (x - knots[after - 1]) / (knots[after] - knots[after - 1]);
    (values[after - 1] + share * (values[after] - values[after - 1])).clamp(values[after - 1], values[after])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;

    fn methods() -> [Calibrator; 3] {
        let (top, gap, offset) = (0.7, 1.3, -0.2);
        let isotonic = Method::Isotonic { top, gap, offset, knots: vec![0.2, 0.5, 0.8], values: vec![0.1, 0.6, 0.6] };
        [Method::Softmax, Method::Platt { top, gap, offset }, isotonic]
            .map(|method| Calibrator { inverse_temperature: 2.0, method })
    }

    proptest! {
        #[test]
        fn scores_are_probabilities_that_rise_with_the_top_margin(
            margins in prop::collection::vec(-3.0f32..3.0, 2..9), rise in 0.0f32..2.0,
        ) {
            let mut higher = margins.clone();
            let top = (0..margins.len()).max_by(|&a, &b| margins[a].total_cmp(&margins[b])).unwrap();
            higher[top] += rise;
            for calibrator in methods() {
                prop_assert!(calibrator.is_valid());
                let (before, after) = (calibrator.score(&margins), calibrator.score(&higher));
                prop_assert!((0.0..=1.0).contains(&before) && after >= before - 1e-6, "{before} → {after}");
                let total: f32 = calibrator.probabilities(&margins).iter().sum();
                prop_assert!((total - 1.0).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn bad_parameters_are_seen() {
        let mut bad = methods();
        bad[0].inverse_temperature = 0.0;
        bad[1].method = Method::Platt { top: -1.0, gap: 1.0, offset: 0.0 };
        bad[2].method =
            Method::Isotonic { top: 1.0, gap: 1.0, offset: 0.0, knots: vec![0.5, 0.2], values: vec![0.1, 0.2] };
        assert!(bad.iter().all(|calibrator| !calibrator.is_valid()));
    }

    #[test]
    fn stands_in_a_manifest() {
        for calibrator in methods() {
            let text = toml::to_string(&calibrator).unwrap();
            assert_eq!(toml::from_str::<Calibrator>(&text).unwrap(), calibrator, "{text}");
        }
    }
}
