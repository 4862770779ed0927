//! Which class does a row of features belong to? A sparse row, an embedding or both in; one margin a class out.
//!
//! `margin[k] = b[k] + Σ_j x[j]·s[j]·q[j,k] + Σ_d e[d]·w[d,k]` with `x` the sparse row, `q` int8 weights with one f32 scale a feature,
//! `e` the embedding and `w` f32 weights. Sums run in f32 in ascending order of j, then of d: the same row gives the same
//! bits on every machine. Deliberately absent: fitting (`metier-train/craft`) and turning margins into a probability of
//! being right (`proof::Calibrator`).

use std::collections::BTreeMap;

use safetensors::SafeTensors;

use crate::{
    features::SparseRow,
    specialist::tensors::{self, Tensor, TensorError},
};

/// Most bytes of sparse weights a specialist may hold, ids, idf and scales included.
pub const MAX_SPARSE_BYTES: usize = 4 << 20;

/// Number of features that fit [`MAX_SPARSE_BYTES`]: a feature costs one byte a class and twelve of its own.
pub const fn max_features(n_classes: usize) -> usize {
    MAX_SPARSE_BYTES / (n_classes + 12)
}

/// A linear classifier over sparse features, an embedding, or both.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearHead {
    bias: Vec<f32>, // (n_classes)
    sparse: Option<SparseWeights>,
    dense: Option<DenseWeights>,
}

#[derive(Clone, Debug, PartialEq)]
struct SparseWeights {
    scales: Vec<f32>, // (n_features)
    weights: Vec<i8>, // (n_features, n_classes)
}

#[derive(Clone, Debug, PartialEq)]
struct DenseWeights {
    dim: usize,
    weights: Vec<f32>, // (dim, n_classes)
}

impl LinearHead {
    /// Takes f32 weights as trained: `sparse` (n_features, n_classes) is quantised to int8 with one scale a feature,
    /// `dense` (dim, n_classes) is kept. An empty slice means that the head has no such part.
    ///
    /// # Panics
    /// Where a length is no multiple of the number of classes.
    pub fn quantise(bias: Vec<f32>, sparse: &[f32], dense: Vec<f32>) -> Self {
        let n_classes = bias.len();
        assert!(
            sparse.len().is_multiple_of(n_classes) && dense.len().is_multiple_of(n_classes),
            "whole rows of classes"
        );
        let sparse = (!sparse.is_empty()).then(|| {
            let mut scales = Vec::with_capacity(sparse.len() / n_classes);
            let mut weights = Vec::with_capacity(sparse.len());
            for row in sparse.chunks_exact(n_classes) {
                let largest = row.iter().fold(0.0f32, |largest, w| largest.max(w.abs()));
                let scale = largest / 127.0;
                scales.push(scale);
                weights.extend(row.iter().map(|w| if scale > 0.0 { (w / scale).round() as i8 } else { 0 }));
            }
            SparseWeights { scales, weights }
        });
        let dense = (!dense.is_empty()).then(|| DenseWeights { dim: dense.len() / n_classes, weights: dense });
        Self { bias, sparse, dense }
    }

    /// `weight` times this head's margins, plus `bias` (n_classes), plus `tail` (further elements, n_classes) times what its dense row
    /// goes on with.
    ///
    /// # Panics
    /// Where a length is no multiple of the number of classes.
    #[must_use]
    pub fn blended(&self, weight: f32, bias: &[f32], tail: &[f32]) -> Self {
        let n_classes = self.n_classes();
        assert!(bias.len() == n_classes && tail.len().is_multiple_of(n_classes), "whole rows of classes");
        let mut head = self.clone();
        head.bias.iter_mut().zip(bias).for_each(|(own, bias)| *own = *own * weight + bias);
        head.sparse.iter_mut().flat_map(|sparse| &mut sparse.scales).for_each(|scale| *scale *= weight);
        head.dense.iter_mut().flat_map(|dense| &mut dense.weights).for_each(|own| *own *= weight);
        if !tail.is_empty() {
            let dense = head.dense.get_or_insert(DenseWeights { dim: 0, weights: Vec::new() });
            dense.dim += tail.len() / n_classes;
            dense.weights.extend_from_slice(tail);
        }
        head
    }

    /// Number of classes, which is the length of [`LinearHead::margins`].
    pub fn n_classes(&self) -> usize {
        self.bias.len()
    }

    /// Number of sparse features that it reads, 0 if none.
    pub fn n_features(&self) -> usize {
        self.sparse.as_ref().map_or(0, |sparse| sparse.scales.len())
    }

    /// Length of the embedding that it reads, `None` if it reads none.
    pub fn embedding_dim(&self) -> Option<usize> {
        self.dense.as_ref().map(|dense| dense.dim)
    }

    /// What is added to every margin: (n_classes).
    pub fn bias(&self) -> &[f32] {
        &self.bias
    }

    /// Weights of the embedding, `None` if it reads none: (dim, n_classes).
    pub fn dense_weights(&self) -> Option<&[f32]> {
        self.dense.as_ref().map(|dense| dense.weights.as_slice())
    }

    /// One margin a class.
    ///
    /// # Panics
    /// Where a part that the head reads is missing or of another length; `Specialist::answer` checks this for callers.
    pub fn margins(&self, row: Option<&SparseRow>, embedding: Option<&[f32]>) -> Vec<f32> {
        let n_classes = self.bias.len();
        let mut margins = self.bias.clone();
        if let Some(sparse) = &self.sparse {
            for (column, value) in row.expect("the head reads n-gram features").iter() {
                let scaled = value * sparse.scales[column];
                let weights = &sparse.weights[column * n_classes..][..n_classes];
                margins.iter_mut().zip(weights).for_each(|(margin, &weight)| *margin += scaled * f32::from(weight));
            }
        }
        if let Some(dense) = &self.dense {
            let embedding = embedding.expect("the head reads an embedding");
            assert_eq!(embedding.len(), dense.dim, "embedding length");
            for (value, weights) in embedding.iter().zip(dense.weights.chunks_exact(n_classes)) {
                margins.iter_mut().zip(weights).for_each(|(margin, weight)| *margin += value * weight);
            }
        }
        margins
    }

    /// Bytes of `head.safetensors`: `bias` (c), and `sparse.scales` (n), `sparse.weights` (n, c) int8, `dense.weights` (d, c)
    /// where there are such parts.
    pub fn to_bytes(&self) -> Vec<u8> {
        let n_classes = self.bias.len();
        let mut all = BTreeMap::from([("bias", Tensor::f32(&[n_classes], &self.bias))]);
        if let Some(SparseWeights { scales, weights }) = &self.sparse {
            all.insert("sparse.scales", Tensor::f32(&[scales.len()], scales));
            all.insert("sparse.weights", Tensor::i8(&[scales.len(), n_classes], weights));
        }
        if let Some(DenseWeights { dim, weights }) = &self.dense {
            all.insert("dense.weights", Tensor::f32(&[*dim, n_classes], weights));
        }
        tensors::write(&all)
    }

    /// Reads what [`LinearHead::to_bytes`] wrote; shapes must agree and every number must be finite.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TensorError> {
        let file = SafeTensors::deserialize(bytes)?;
        let names = file.names();
        let (bias, _) = tensors::f32s(&file, "bias", 1)?;
        let n_classes = bias.len();
        let sparse = if names.contains(&"sparse.weights") {
            let (scales, _) = tensors::f32s(&file, "sparse.scales", 1)?;
            let (weights, shape) = tensors::i8s(&file, "sparse.weights", 2)?;
            if shape != [scales.len(), n_classes] {
                return Err(TensorError::Shape { name: "sparse.weights".to_owned() });
            }
            Some(SparseWeights { scales, weights })
        } else {
            None
        };
        let dense = if names.contains(&"dense.weights") {
            let (weights, shape) = tensors::f32s(&file, "dense.weights", 2)?;
            if shape[1] != n_classes {
                return Err(TensorError::Shape { name: "dense.weights".to_owned() });
            }
            Some(DenseWeights { dim: shape[0], weights })
        } else {
            None
        };
        let finite =
            bias.iter().chain(sparse.iter().flat_map(|s| &s.scales)).chain(dense.iter().flat_map(|d| &d.weights));
        if n_classes < 2 || !finite.into_iter().all(|value| value.is_finite()) {
            return Err(TensorError::Inconsistent("a head needs two classes or more and finite weights"));
        }
        if sparse.is_none() && dense.is_none() {
            return Err(TensorError::Inconsistent("a head needs sparse or dense weights"));
        }
        Ok(Self { bias, sparse, dense })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;

    fn row(entries: &[(u32, f32)]) -> SparseRow {
        SparseRow { columns: entries.iter().map(|e| e.0).collect(), values: entries.iter().map(|e| e.1).collect() }
    }

    #[test]
    fn adds_bias_sparse_and_dense() {
        let head = LinearHead::quantise(vec![1.0, -1.0], &[127.0, -127.0, 0.0, 254.0], vec![10.0, 20.0]);
        assert_eq!((head.n_classes(), head.n_features(), head.embedding_dim()), (2, 2, Some(1)));
        let margins = head.margins(Some(&row(&[(0, 0.5), (1, 0.25)])), Some(&[2.0]));
        assert_eq!(margins, [1.0 + 63.5 + 20.0, -1.0 - 63.5 + 63.5 + 40.0]);
        assert_eq!(LinearHead::from_bytes(&head.to_bytes()).unwrap(), head);
    }

    #[test]
    fn refuses_what_is_no_head() {
        let none = LinearHead { bias: vec![0.0; 2], sparse: None, dense: None };
        assert!(LinearHead::from_bytes(&none.to_bytes()).is_err());
        let nan = LinearHead::quantise(vec![f32::NAN, 0.0], &[], vec![1.0, 1.0]);
        assert!(LinearHead::from_bytes(&nan.to_bytes()).is_err());
        let mut cut = LinearHead::quantise(vec![0.0, 0.0], &[], vec![1.0, 1.0]).to_bytes();
        cut.pop();
        assert!(LinearHead::from_bytes(&cut).is_err());
    }

    proptest! {
        /// Rounding to 1/127 of a feature's largest weight moves a margin by at most half a step a feature.
        #[test]
        fn quantising_moves_margins_by_half_a_step(weights in prop::collection::vec(-4.0f32..4.0, 12)) {
            let head = LinearHead::quantise(vec![0.0; 3], &weights, Vec::new());
            let x = row(&[(0, 0.5), (1, 0.5), (2, 0.5), (3, 0.5)]);
            let margins = head.margins(Some(&x), None);
            for (k, margin) in margins.iter().enumerate() {
                let exact: f32 = (0..4).map(|j| 0.5 * weights[j * 3 + k]).sum();
                prop_assert!((margin - exact).abs() <= 4.0 * 0.5 * (4.0 / 127.0) * 0.5 + 1e-4);
            }
        }
    }
}
