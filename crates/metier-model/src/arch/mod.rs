//! Config + weights → forward; one room a kind of network.
//!
//! **Question:** what does this network compute? **In:** token ids and packed weights. **Out:** hidden rows or logits, the same
//! bits for a row whoever shares its batch. **Absent:** text, sampling, queues.

pub mod bert;
mod linear;
pub mod transformer;

use half::f16;
use metier_kernels::dense::DenseMatrix;

use crate::format::{FormatError, Tensor};

/// Weights do not make a network.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// A tensor is missing.
    #[error("tensor `{0}` is missing")]
    Missing(String),
    /// A tensor has another shape than the configuration says.
    #[error("tensor `{tensor}` has shape {found:?}, the configuration says {expected:?}")]
    Shape {
        /// The tensor.
        tensor: String,
        /// Its shape in the file.
        found: Vec<usize>,
        /// What the configuration implies.
        expected: Vec<usize>,
    },
    /// A tensor holds a NaN or an infinity.
    #[error("tensor `{0}` holds a value that is no finite number")]
    NotFinite(String),
    /// A setting is missing, or has a value that is not supported.
    #[error("configuration `{key}`: {problem}")]
    Config {
        /// The setting.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A tensor cannot be read.
    #[error(transparent)]
    Format(#[from] FormatError),
}

pub(crate) fn config_error(key: &str, problem: impl Into<String>) -> WeightsError {
    WeightsError::Config { key: key.to_owned(), problem: problem.into() }
}

/// Rows that one part of an elementwise step takes.
pub(crate) const ROW_GRAIN: usize = 32;

/// The tensor, if its shape is the expected one.
pub(crate) fn expect_shape<'a>(
    tensor: Option<Tensor<'a>>,
    name: &str,
    expected: &[usize],
) -> Result<Tensor<'a>, WeightsError> {
    let tensor = tensor.ok_or_else(|| WeightsError::Missing(name.to_owned()))?;
    if tensor.shape == expected {
        Ok(tensor)
    } else {
        Err(WeightsError::Shape { tensor: name.to_owned(), found: tensor.shape.to_vec(), expected: expected.to_vec() })
    }
}

/// All elements, finite.
pub(crate) fn finite(tensor: Tensor<'_>) -> Result<Vec<f32>, WeightsError> {
    let values = tensor.to_f32()?;
    if values.iter().all(|x| x.is_finite()) { Ok(values) } else { Err(WeightsError::NotFinite(tensor.name.to_owned())) }
}

/// Packs the rows of several tensors of one width under each other as f32 panels.
pub(crate) fn pack_dense(tensors: &[Tensor<'_>]) -> Result<DenseMatrix, WeightsError> {
    pack_rows(tensors, |n, k, row| DenseMatrix::pack(n, k, row))
}

/// The same in halves; in f32 where a weight lies beyond them.
pub(crate) fn pack_halves(tensors: &[Tensor<'_>]) -> Result<DenseMatrix, WeightsError> {
    let mut fits = true;
    let packed = pack_rows(tensors, |n, k, row| {
        DenseMatrix::pack_f16(n, k, |i, out| {
            row(i, out);
            fits &= out.iter().all(|x| x.abs() <= f16::MAX.to_f32());
        })
    })?;
    if fits { Ok(packed) } else { pack_dense(tensors) }
}

/// Hands `pack` the number of rows, their width, and what writes a row; all that is read must be finite.
fn pack_rows(
    tensors: &[Tensor<'_>],
    pack: impl FnOnce(usize, usize, &mut dyn FnMut(usize, &mut [f32])) -> DenseMatrix,
) -> Result<DenseMatrix, WeightsError> {
    let rows: Vec<(Tensor<'_>, usize)> = tensors.iter().flat_map(|t| (0..t.rows()).map(|row| (*t, row))).collect();
    let mut bad = None;
    let packed = pack(rows.len(), tensors[0].cols(), &mut |i, out| {
        let (tensor, row) = rows[i];
        if !tensor.read_row(row, out) {
            bad.get_or_insert(WeightsError::Format(tensor.unsupported()));
        } else if !out.iter().all(|x| x.is_finite()) {
            bad.get_or_insert(WeightsError::NotFinite(tensor.name.to_owned()));
        }
    });
    bad.map_or(Ok(packed), Err)
}
