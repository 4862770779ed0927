//! *Which way is down?* Every step of a network with its derivative beside it.
//!
//! **In:** rows of activations, weights, and on the way back the derivative of the loss with respect to what came out. **Out:** the
//! derivative with respect to what went in and to the weights. **Absent:** a tape: a network calls its steps in order and its backward
//! pass calls them in the opposite order, so nothing can be cut off silently; losses ([`objective`](crate::objective)) and steps
//! ([`optim`](crate::optim)).
//!
//! Rows of all texts lie under each other without padding ([`Segments`]). Weights are `(n, k)`, one row an output, as model files store
//! them: `y = x · Wᵀ`. `d…` is the derivative of the loss with respect to `…`. Derivatives of weights are *added* to what is there,
//! those of activations too where a function says so.
//!
//! Every step is compared with finite differences (`tests.rs`), as is a whole network of each kind.

pub mod attention;
pub mod bert;
pub mod embedding;
pub mod linear;
pub mod llama;
pub mod lora;
pub mod norm;
mod params;
pub mod rope;

#[cfg(test)]
pub(crate) mod check;

use std::ops::Range;

pub use params::{Params, TensorSpec};

/// Rows that one part of an elementwise step takes; sums over rows are summed part by part in order, whatever the number of threads.
pub(crate) const ROW_GRAIN: usize = 64;

/// Whose rows are whose: texts under each other, without padding.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Segments {
    starts: Vec<usize>, // one more than there are segments
}

impl Segments {
    /// Segments of these lengths.
    pub fn of(lens: impl IntoIterator<Item = usize>) -> Self {
        let mut starts = vec![0];
        let mut end = 0;
        starts.extend(lens.into_iter().map(|len| {
            end += len;
            end
        }));
        Self { starts }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// None at all?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rows of all.
    pub fn rows(&self) -> usize {
        self.starts.last().copied().unwrap_or_default()
    }

    /// The rows of each.
    pub fn ranges(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.starts.windows(2).map(|pair| pair[0]..pair[1])
    }

    /// The rows of one.
    pub fn range(&self, idx: usize) -> Range<usize> {
        self.starts[idx]..self.starts[idx + 1]
    }

    /// Elements of each, when a row has `width`.
    pub fn pieces(&self, width: usize) -> Vec<usize> {
        self.ranges().map(|range| range.len() * width).collect()
    }
}
