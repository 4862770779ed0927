//! A cheaper stage that is asked before the one that the specialist is named after, and answers where it is sure.
//!
//! ```text
//! text → first: score ≥ its threshold? ── yes → its answer
//!                     │ no
//!                     └→ the stage itself, with its base model: score ≥ threshold? → its answer, or deferred
//! ```
//!
//! It reads text alone (n-grams, or how several inputs agree), so that what it answers costs no run of a base model. One certificate bounds
//! what both answer together ([`proof::cascade`](crate::proof::cascade)): neither may answer without the other being asked in this order.
//! Absent: which stage that is, and how sure it must be at least; that is decided on validation rows (`metier-train/build/cascade`).

use serde::{Deserialize, Serialize};

use super::{manifest::Stage, scope::ScopeRule, sets::SetScores};
use crate::proof::{Calibrator, StageShare};

/// What the manifest says of it; its classifier lies beside the other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FirstStage {
    /// The rung that it is: `linear` or `pair`.
    pub stage: Stage,
    /// Its threshold is at least this: below it validation rows do not show that it may be asked before the other.
    pub floor: f32,
    /// Its threshold and what it did to the calibration rows; without a certificate for the whole it answers nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<StageShare>,
    /// Margins → probability of being right.
    pub calibrator: Calibrator,
    /// How it tells that a text is none of these, where a rule tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<ScopeRule>,
    /// How the score of a set is made, where a text may have several labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multi_label: Option<SetScores>,
}

impl FirstStage {
    /// Whether a rung can be asked first: it needs no base model.
    pub fn may_be(stage: Stage) -> bool {
        matches!(stage, Stage::Linear | Stage::Pair)
    }

    /// Why these numbers cannot answer before `last`, where they cannot.
    pub(super) fn problem(&self, last: Stage, is_certified: bool) -> Option<&'static str> {
        let is_share = |x: f32| (0.0..=1.0).contains(&x);
        if !Self::may_be(self.stage) || self.stage >= last {
            Some("its first stage is none that needs no base model, or no smaller one")
        } else if !is_share(self.floor) || self.share.is_some_and(|share| !is_share(share.threshold)) {
            Some("a threshold of its first stage is no probability")
        } else if self.share.is_some_and(|share| share.threshold < self.floor) {
            Some("the threshold of its first stage lies below its floor")
        } else if self.share.is_some() != is_certified {
            Some("its first stage answers without a certificate for the whole, or has no part in it")
        } else if !self.calibrator.is_valid() || self.multi_label.is_some_and(|scores| !scores.is_valid()) {
            Some("the scores of its first stage are not monotone")
        } else if self.scope.is_some_and(|rule| !rule.is_valid()) {
            Some("its first stage tells what is out of scope by no numbers")
        } else {
            None
        }
    }
}
