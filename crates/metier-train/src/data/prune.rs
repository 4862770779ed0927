//! What a task file says of layers that may be left out: `[prune]`.

use serde::Deserialize;

/// Most shares that are tried one after the other.
const MAX_SHARES: usize = 16;
/// Most passes of healing.
const MAX_HEAL_EPOCHS: usize = 100;

/// Which shares of a decoder's layers are tried, and how the specialist is healed after each.
#[derive(Clone, Debug, PartialEq)]
pub struct Prune {
    /// Shares of the layers, from many to few; empty: all layers stay.
    pub keep: Vec<f64>,
    /// Passes over the training rows after some layers were left out.
    pub heal_epochs: usize,
}

impl Default for Prune {
    fn default() -> Self {
        Self { keep: steps_to(0.6), heal_epochs: 1 }
    }
}

/// As written.
#[derive(Deserialize)]
pub(super) struct RawPrune {
    keep: Option<Keep>,
    heal_epochs: Option<usize>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Keep {
    One(f64),
    Many(Vec<f64>),
}

/// On the way to one share a half and three quarters of the layers that go are tried before.
fn steps_to(share: f64) -> Vec<f64> {
    let gone = 1.0 - share;
    [0.5, 0.75, 1.0].map(|part| 1.0 - part * gone).to_vec()
}

impl Prune {
    /// Checks what was written; the error says what is wrong.
    pub(super) fn new(raw: Option<RawPrune>) -> Result<Self, String> {
        let usual = Self::default();
        let Some(raw) = raw else { return Ok(usual) };
        let keep = match raw.keep {
            None => usual.keep,
            Some(Keep::One(1.0)) => Vec::new(),
            Some(Keep::One(share)) if share > 0.0 && share < 1.0 => steps_to(share),
            Some(Keep::One(share)) => return Err(format!("`prune.keep` = {share} must be more than 0, at most 1")),
            Some(Keep::Many(shares)) => {
                let fits = shares.iter().all(|share| *share > 0.0 && *share < 1.0);
                if !fits || shares.is_empty() || shares.len() > MAX_SHARES || !shares.is_sorted_by(|a, b| a > b) {
                    return Err(format!(
                        "`prune.keep` must be 1 to {MAX_SHARES} shares between 0 and 1, each smaller than the one before"
                    ));
                }
                shares
            }
        };
        let heal_epochs = raw.heal_epochs.unwrap_or(usual.heal_epochs);
        if !(1..=MAX_HEAL_EPOCHS).contains(&heal_epochs) {
            return Err(format!("`prune.heal_epochs` = {heal_epochs} must be 1 to {MAX_HEAL_EPOCHS}"));
        }
        Ok(Self { keep, heal_epochs })
    }
}
