//! Boosted trees: numbers in, one sum a class out. Fitted in `metier-train/craft`.

use std::collections::BTreeMap;

use safetensors::SafeTensors;

use crate::specialist::tensors::{self, Tensor, TensorError};

/// A question or an answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Node {
    /// Which number is looked at; [`Node::LEAF`]: none, this is a leaf.
    pub feature: u32,
    /// `number ≤ threshold` goes left, else right; a leaf's value.
    pub threshold: f32,
    /// The left child; the right one stands behind it. Children stand behind their parents.
    pub left: u32,
}

impl Node {
    /// In the place of a feature: a leaf.
    pub const LEAF: u32 = u32::MAX;
}

/// Rounds of one tree a class; of two classes one tree, for the second.
#[derive(Clone, Debug, PartialEq)]
pub struct Trees {
    nodes: Vec<Node>,
    roots: Vec<u32>,
    base: Vec<f32>, // (outputs): what they start from
}

impl Trees {
    /// Checked: every walk ends, every number is finite.
    ///
    /// # Errors
    /// Where a child stands before its parent or is not there, a number is not finite, or a round is not whole.
    pub fn new(nodes: Vec<Node>, roots: Vec<u32>, base: Vec<f32>) -> Result<Self, TensorError> {
        let ends = nodes.iter().enumerate().all(|(at, node)| {
            node.threshold.is_finite()
                && (node.feature == Node::LEAF || (node.left as usize > at && (node.left as usize) < nodes.len() - 1))
        });
        if !ends || roots.iter().any(|root| *root as usize >= nodes.len()) {
            return Err(TensorError::Inconsistent("a tree must end, in numbers"));
        }
        if base.is_empty() || !roots.len().is_multiple_of(base.len()) || !base.iter().all(|value| value.is_finite()) {
            return Err(TensorError::Inconsistent("every round needs one tree an output"));
        }
        Ok(Self { nodes, roots, base })
    }

    /// The mean of several, which read the same numbers and have as many outputs.
    ///
    /// # Panics
    /// Where there is none, or outputs differ.
    #[must_use]
    pub fn mean(several: &[Self]) -> Self {
        let share = 1.0 / several.len() as f32;
        let mut mean = Self { nodes: Vec::new(), roots: Vec::new(), base: vec![0.0; several[0].outputs()] };
        for trees in several {
            assert_eq!(trees.outputs(), mean.outputs(), "the same outputs");
            let first = mean.nodes.len() as u32;
            mean.nodes.extend(trees.nodes.iter().map(|node| Node {
                threshold: if node.feature == Node::LEAF { node.threshold * share } else { node.threshold },
                left: node.left + first,
                ..*node
            }));
            mean.roots.extend(trees.roots.iter().map(|root| root + first));
            mean.base.iter_mut().zip(&trees.base).for_each(|(mean, base)| *mean += base * share);
        }
        mean
    }

    /// How many sums come out.
    pub fn outputs(&self) -> usize {
        self.base.len()
    }

    /// Numbers that must go in, at least.
    pub fn reads(&self) -> usize {
        self.nodes
            .iter()
            .filter(|node| node.feature != Node::LEAF)
            .map(|node| node.feature as usize + 1)
            .max()
            .unwrap_or(0)
    }

    /// The sums.
    ///
    /// # Panics
    /// Where there are fewer numbers than [`reads`](Self::reads).
    pub fn apply(&self, numbers: &[f32]) -> Vec<f32> {
        let mut sums = self.base.clone();
        let n = sums.len();
        for (at, root) in self.roots.iter().enumerate() {
            let mut node = self.nodes[*root as usize];
            while node.feature != Node::LEAF {
                let right = numbers[node.feature as usize] > node.threshold;
                node = self.nodes[node.left as usize + usize::from(right)];
            }
            sums[at % n] += node.threshold;
        }
        sums
    }

    pub(super) fn write(&self, all: &mut BTreeMap<&str, Tensor>) {
        let n = self.nodes.len();
        let of = |get: &dyn Fn(&Node) -> u32| self.nodes.iter().map(get).collect::<Vec<_>>();
        let thresholds: Vec<f32> = self.nodes.iter().map(|node| node.threshold).collect();
        all.insert("trees.feature", Tensor::u32(&[n], &of(&|node| node.feature)));
        all.insert("trees.left", Tensor::u32(&[n], &of(&|node| node.left)));
        all.insert("trees.threshold", Tensor::f32(&[n], &thresholds));
        all.insert("trees.roots", Tensor::u32(&[self.roots.len()], &self.roots));
        all.insert("trees.base", Tensor::f32(&[self.base.len()], &self.base));
    }

    pub(super) fn read(file: &SafeTensors<'_>) -> Result<Self, TensorError> {
        let (features, _) = tensors::u32s(file, "trees.feature", 1)?;
        let (left, _) = tensors::u32s(file, "trees.left", 1)?;
        let (thresholds, _) = tensors::f32s(file, "trees.threshold", 1)?;
        if left.len() != features.len() || thresholds.len() != features.len() {
            return Err(TensorError::Shape { name: "trees.left".to_owned() });
        }
        let nodes = features.into_iter().zip(thresholds).zip(left);
        let nodes = nodes.map(|((feature, threshold), left)| Node { feature, threshold, left }).collect();
        Self::new(nodes, tensors::u32s(file, "trees.roots", 1)?.0, tensors::f32s(file, "trees.base", 1)?.0)
    }
}
