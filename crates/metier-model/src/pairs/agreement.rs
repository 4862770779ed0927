//! Which words have both, which has one alone? A linear model of that: that `upgrade` stands in one alone weighs more than `the`.

use std::collections::BTreeMap;

use safetensors::SafeTensors;

use super::{MAX_INPUTS, compare, whole};
use crate::specialist::{
    Inputs, mix,
    tensors::{self, Tensor, TensorError},
};

/// Weights of words that two inputs share, and of words that one has alone.
#[derive(Clone, Debug, PartialEq)]
pub struct Agreement {
    ids: Vec<u32>,     // strictly ascending
    weights: Vec<f32>, // (ids, outputs)
    bias: Vec<f32>,    // (outputs)
}

impl Agreement {
    /// What a text over the inputs `names` has: sorted ids, each as large as the other, together of length 1.
    pub fn ids(names: &[String], text: &str) -> Vec<u32> {
        let inputs = Inputs::of(names, text);
        let words: Vec<Vec<u32>> =
            (0..names.len().min(MAX_INPUTS)).map(|at| compare::word_ids(&whole(&inputs, at))).collect();
        let mut ids = Vec::new();
        for (a, left) in words.iter().enumerate() {
            for (b, right) in words.iter().enumerate().skip(a + 1) {
                let which = ((a * MAX_INPUTS + b) * 2) as u64;
                let salted = |id: u32, shared: u64| (mix(u64::from(id) ^ mix(which + shared + 1)) >> 32) as u32;
                let is_in = |words: &[u32], id: &u32| words.binary_search(id).is_ok();
                ids.extend(left.iter().map(|id| salted(*id, u64::from(is_in(right, id)))));
                ids.extend(right.iter().filter(|id| !is_in(left, id)).map(|id| salted(*id, 0)));
            }
        }
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// The size of each of so many ids.
    pub fn value(n_ids: usize) -> f32 {
        1.0 / (n_ids.max(1) as f32).sqrt()
    }

    /// Checked: ascending ids, finite numbers, a whole row of weights for each id.
    ///
    /// # Errors
    /// Where that is not so.
    pub fn new(ids: Vec<u32>, weights: Vec<f32>, bias: Vec<f32>) -> Result<Self, TensorError> {
        let fits = !bias.is_empty() && weights.len() == ids.len() * bias.len() && ids.is_sorted_by(|a, b| a < b);
        if !fits || !weights.iter().chain(&bias).all(|weight| weight.is_finite()) {
            return Err(TensorError::Inconsistent("words need ascending ids and finite weights, a whole row each"));
        }
        Ok(Self { ids, weights, bias })
    }

    /// How many sums come out.
    pub fn outputs(&self) -> usize {
        self.bias.len()
    }

    /// The sums for a text's [`ids`](Self::ids).
    pub fn apply(&self, ids: &[u32]) -> Vec<f32> {
        let (n, value) = (self.bias.len(), Self::value(ids.len()));
        let mut sums = self.bias.clone();
        for at in ids.iter().filter_map(|id| self.ids.binary_search(id).ok()) {
            sums.iter_mut().zip(&self.weights[at * n..][..n]).for_each(|(sum, weight)| *sum += value * weight);
        }
        sums
    }

    pub(super) fn write(&self, all: &mut BTreeMap<&str, Tensor>) {
        all.insert("agreement.ids", Tensor::u32(&[self.ids.len()], &self.ids));
        all.insert("agreement.weights", Tensor::f32(&[self.ids.len(), self.bias.len()], &self.weights));
        all.insert("agreement.bias", Tensor::f32(&[self.bias.len()], &self.bias));
    }

    pub(super) fn read(file: &SafeTensors<'_>) -> Result<Self, TensorError> {
        let (weights, _) = tensors::f32s(file, "agreement.weights", 2)?;
        Self::new(tensors::u32s(file, "agreement.ids", 1)?.0, weights, tensors::f32s(file, "agreement.bias", 1)?.0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn tells_what_both_have_from_what_one_has() {
        let names = ["left", "right"].map(str::to_owned);
        let ids = |left: &str, right: &str| Agreement::ids(&names, &format!("left: {left}\nright: {right}"));
        let one = |ids: Vec<u32>| <[u32; 1]>::try_from(ids).unwrap()[0];
        let (both, alone) = (one(ids("mug", "mug")), one(ids("mug", "")));
        assert_ne!(both, alone);
        assert_eq!(one(ids("", "Mug")), alone, "on whichever side");
        let model = Agreement::new(vec![both.min(alone), both.max(alone)], vec![1.0, 1.0], vec![0.5]).unwrap();
        assert_eq!(model.apply(&ids("mug", "mug")), [1.5]);
        assert_eq!(model.apply(&ids("cup", "bowl")), [0.5]);
        assert!(Agreement::new(vec![2, 1], vec![0.0; 2], vec![0.0]).is_err());
        assert!(Agreement::new(vec![1], vec![0.0; 3], vec![0.0; 2]).is_err());
    }
}
