//! Several labels a text: which of them has it, and how sure is that?
//!
//! ```text
//! margins (one a label, thresholds already in their bias) → { k : margin[k] > 0 }
//! ln P(decision k is right) = ln σ(a·|margin[k]| + b)                    one line for all labels: `SetScores::decision`
//! score = σ(c · logit Π_k P(decision k is right) + d)                     a line for the whole set:  `SetScores::row`
//! ```
//!
//! The product takes labels for independent, which they are not; the second line, fitted on whole rows, mends the scale of that. Absent: fitting
//! (`metier-train/craft/sets`), and JSON other than a list of strings.

use serde::{Deserialize, Serialize};

use super::Answer;
use crate::extract::ScoreLine;

/// How a set's score is made; stands in a bundle's manifest.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetScores {
    /// Of one label: is it right that the text has it, or has it not? Over the margin's distance from 0.
    pub decision: ScoreLine,
    /// Of the whole set: is it exactly the one?
    pub row: ScoreLine,
}

impl SetScores {
    /// `ln P(every decision is right)`, before the second line.
    pub fn log_probability(&self, margins: &[f32]) -> f64 {
        margins
            .iter()
            .map(|margin| -softplus(-f64::from(self.decision.slope * margin.abs() + self.decision.offset)))
            .sum()
    }

    /// The score of a set: the calibrated probability that it is exactly right.
    pub fn score(&self, margins: &[f32]) -> f32 {
        self.row.score(self.log_probability(margins))
    }

    /// The probability that the text has a label.
    pub fn has(&self, margin: f32) -> f32 {
        let right = (-softplus(-f64::from(self.decision.slope * margin.abs() + self.decision.offset))).exp() as f32;
        if margin > 0.0 { right } else { 1.0 - right }
    }

    /// Lines that rise, of finite numbers.
    pub fn is_valid(&self) -> bool {
        self.decision.is_valid() && self.row.is_valid()
    }
}

/// `ln(1 + eˣ)`
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// The labels that are called, ascending.
pub fn called(margins: &[f32]) -> Vec<usize> {
    (0..margins.len()).filter(|&k| margins[k] > 0.0).collect()
}

/// A set as it is answered: a JSON list of its labels, in the manifest's order.
pub fn in_json<'a>(labels: impl IntoIterator<Item = &'a str>) -> String {
    serde_json::Value::from(labels.into_iter().collect::<Vec<_>>()).to_string()
}

/// The likeliest labels stand in `top` with the probability that the text has them; they do not add up to 1.
pub(super) fn answer(
    labels: &[String],
    scores: &SetScores,
    margins: &[f32],
    threshold: Option<f32>,
    stage: String,
    n_top: usize,
) -> Answer {
    let score = scores.score(margins);
    let mut order: Vec<usize> = (0..margins.len()).collect();
    order.sort_by(|&a, &b| margins[b].total_cmp(&margins[a]).then(a.cmp(&b)));
    Answer {
        label: in_json(called(margins).into_iter().map(|k| labels[k].as_str())),
        label_idx: 0,
        score,
        threshold,
        accepted: threshold.is_some_and(|threshold| score >= threshold),
        stage,
        parent: None,
        top: order.into_iter().take(n_top).map(|k| (labels[k].clone(), scores.has(margins[k]))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_as_sure_as_its_least_sure_label() {
        let line = |slope, offset| ScoreLine { slope, offset };
        let scores = SetScores { decision: line(2.0, 0.0), row: line(1.0, 0.0) };
        // One label, σ(2·1) = 0.8808; two independent ones: its square.
        let p = 1.0 / (1.0 + (-2.0f64).exp());
        assert!((f64::from(scores.score(&[1.0])) - p).abs() < 1e-6);
        assert!((f64::from(scores.score(&[1.0, -1.0])) - p * p).abs() < 1e-6);
        assert!(
            (f64::from(scores.has(-1.0)) - (1.0 - p)).abs() < 1e-6 && (f64::from(scores.has(1.0)) - p).abs() < 1e-6
        );
        assert!(scores.score(&[9.0, -9.0, 0.01]) < 0.51 && scores.score(&[9.0; 40]) > 0.99);
        assert!(scores.score(&[f32::MAX; 3]).is_finite() && scores.score(&[0.0; 2000]).is_finite());
        assert_eq!(called(&[0.5, 0.0, -1.0, 2.0]), [0, 3]);
        assert_eq!(in_json([]), "[]");
        assert_eq!(in_json(["a \"b\"", "ü"]), "[\"a \\\"b\\\"\",\"ü\"]");
    }
}
