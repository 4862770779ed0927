//! How sure is a specialist of an answer that a decoder wrote for it?
//!
//! Greedy decoding says of every token how likely it was. Two numbers are made of that, and the calibrator turns them into the probability
//! that the answer is right:
//!
//! ```text
//! g = exp(mean of ln p)    the tokens' geometric mean        higher: right more often
//! l = exp(min of ln p)     the least likely token            the same
//! margins = [g, g − l]     so that the calibrator's "top" is g and its "gap" is l
//! ```
//!
//! An answer that was cut, by its limit of tokens or by its form, is never accepted.

use super::Specialist;

/// What a decoder wrote, as far as its certainty goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Written<'a> {
    /// ln p of every token, those that its form left no choice among them; without the one that ended the answer.
    pub logprobs: &'a [f32],
    /// It ended by itself.
    pub is_whole: bool,
}

/// A specialist's stand on an answer that was written for it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Judgement {
    /// Calibrated probability that the answer is right, 0..1.
    pub score: f32,
    /// The score from which on it answers alone; `None` without a certificate.
    pub threshold: Option<f32>,
    /// Whole, and `score ≥ threshold`.
    pub is_accepted: bool,
}

/// What the calibrator reads of an answer's tokens; zeros where there are none.
pub fn margins(logprobs: &[f32]) -> [f32; 2] {
    if logprobs.is_empty() {
        return [0.0, 0.0];
    }
    // One order of the sum: the score must not depend on who adds.
    let mean = logprobs.iter().map(|p| f64::from(*p)).sum::<f64>() / logprobs.len() as f64;
    let least = logprobs.iter().copied().fold(0.0f32, f32::min);
    let (geometric, least) = (mean.exp() as f32, least.exp());
    [geometric, geometric - least]
}

impl Specialist {
    /// Whether it stands by an answer.
    pub fn judge(&self, written: Written<'_>) -> Judgement {
        let manifest = self.manifest();
        let score = if written.is_whole { manifest.calibrator.score(&margins(written.logprobs)) } else { 0.0 };
        let threshold = manifest.threshold();
        let is_accepted = written.is_whole && threshold.is_some_and(|threshold| score >= threshold);
        Judgement { score, threshold, is_accepted }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proof::{Calibrator, Method, calibrator::top_two};

    proptest! {
        /// A likelier token never lowers the score, whichever it is.
        #[test]
        fn likelier_tokens_raise_the_score(
            mut logprobs in prop::collection::vec(-6.0f32..0.0, 1..12), at in 0usize..12, rise in 0.0f32..3.0,
        ) {
            let calibrator =
                Calibrator { inverse_temperature: 1.0, method: Method::Platt { top: 3.0, gap: 2.0, offset: -2.0 } };
            let before = calibrator.score(&margins(&logprobs));
            let at = at % logprobs.len();
            logprobs[at] = (logprobs[at] + rise).min(0.0);
            let after = margins(&logprobs);
            prop_assert!(calibrator.score(&after) >= before - 1e-6);
            let (top, second) = top_two(&after);
            prop_assert!((top - second - logprobs.iter().copied().fold(0.0, f32::min).exp()).abs() < 1e-5);
        }
    }

    #[test]
    fn nothing_written_is_nothing_sure() {
        assert_eq!(margins(&[]), [0.0, 0.0]);
        assert_eq!(margins(&[0.0, 0.0]), [1.0, 0.0]);
    }
}
