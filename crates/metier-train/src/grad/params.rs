//! All numbers that are trained, one after the other: one place for the optimiser, for norms, for snapshots and for the test that every
//! one of them moves.

use std::ops::Range;

/// One trained tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// As the model file calls it.
    pub name: String,
    /// Its sizes.
    pub shape: Vec<usize>,
    /// Where it lies in the values.
    pub range: Range<usize>,
}

impl TensorSpec {
    /// Is it pulled towards 0? Matrices are; biases and norms are not.
    pub fn decays(&self) -> bool {
        self.shape.len() > 1
    }
}

/// Trained tensors.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Params {
    tensors: Vec<TensorSpec>,
    /// Of all tensors, one after the other.
    pub values: Vec<f32>,
}

impl Params {
    /// Adds a tensor behind the others.
    ///
    /// # Panics
    ///
    /// Where the values do not fill the shape.
    pub fn push(&mut self, name: &str, shape: &[usize], values: &[f32]) -> Range<usize> {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "`{name}` has as many values as its shape says");
        let range = self.values.len()..self.values.len() + values.len();
        self.tensors.push(TensorSpec { name: name.to_owned(), shape: shape.to_vec(), range: range.clone() });
        self.values.extend_from_slice(values);
        range
    }

    /// What is trained, in order.
    pub fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }
}
