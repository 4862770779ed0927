//! One linear map of a network, `y[m][n] = Σ_k x[m][k] · w[n][k]`, its weights kept in one of the forms that kernels multiply.
//!
//! **Question:** in which form does this file's matrix lie in memory, and what is its product? **In:** tensors of one width, rows of
//! activations. **Out:** rows of products. **Absent:** what the map is for; deltas of adapters are added by whoever calls.

use metier_kernels::{
    Pool,
    dense::{self, DenseMatrix},
    elementwise,
    quant::{self, BlockFormat, QuantMatrix, QuantRows},
};

use super::{ROW_GRAIN, WeightsError, pack_dense};
use crate::format::{Tensor, TensorType};

/// A weight beyond this is damage: its 8-bit scale would not fit into an f16.
const MAX_WEIGHT: f32 = 1e6;

/// How weights are kept in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightFormat {
    /// Q4_0, Q4_1 and Q8_0 bit for bit as in the file; everything else as [`Int8`](Self::Int8).
    AsFile,
    /// 8 bits with a scale for each 32 weights (8.5 bits a weight).
    Int8,
    /// Dequantised: four to seven times the memory, for comparison with references.
    F32,
}

/// Weights `(n, k)` of a linear map, packed for the kernels.
pub(crate) enum Matrix {
    Dense(DenseMatrix),
    Quant(QuantMatrix),
}

impl Matrix {
    /// Packs the rows of tensors of one width under each other.
    pub(crate) fn pack(tensors: &[Tensor<'_>], format: WeightFormat) -> Result<Self, WeightsError> {
        if format == WeightFormat::F32 {
            return pack_dense(tensors).map(Self::Dense);
        }
        let k = tensors[0].cols();
        let rows: Vec<(Tensor<'_>, usize)> = tensors.iter().flat_map(|t| (0..t.rows()).map(|row| (*t, row))).collect();
        let dtype = tensors[0].dtype;
        let same = tensors.iter().all(|t| t.dtype == dtype);
        let kept = match dtype {
            TensorType::Q8_0 if same => Some(BlockFormat::Q8_0),
            TensorType::Q4_0 if same && format == WeightFormat::AsFile => Some(BlockFormat::Q4_0),
            TensorType::Q4_1 if same && format == WeightFormat::AsFile => Some(BlockFormat::Q4_1),
            _ => None,
        };
        if let Some(kept) = kept {
            for tensor in tensors {
                let halves = if kept == BlockFormat::Q4_1 { 2 } else { 1 };
                let finite = |half: &[u8]| half[1] & 0x7c != 0x7c;
                let mut blocks = tensor.bytes.chunks_exact(kept.block_bytes());
                if !blocks.all(|block| block[..2 * halves].chunks_exact(2).all(finite)) {
                    return Err(WeightsError::NotFinite(tensor.name.to_owned()));
                }
            }
            return Ok(Self::Quant(QuantMatrix::pack(kept, rows.len(), k, |i| rows[i].0.row_bytes(rows[i].1))));
        }
        let mut bad = None;
        let packed = QuantMatrix::quantise(rows.len(), k, |i, out| {
            let (tensor, row) = rows[i];
            if !tensor.read_row(row, out) {
                bad.get_or_insert(WeightsError::Format(tensor.unsupported()));
            } else if !out.iter().all(|x| x.abs() <= MAX_WEIGHT) {
                bad.get_or_insert(WeightsError::NotFinite(tensor.name.to_owned()));
            }
        });
        bad.map_or(Ok(Self::Quant(packed)), Err)
    }

    pub(crate) fn n(&self) -> usize {
        match self {
            Self::Dense(dense) => dense.n(),
            Self::Quant(quant) => quant.n(),
        }
    }

    pub(crate) fn k(&self) -> usize {
        match self {
            Self::Dense(dense) => dense.k(),
            Self::Quant(quant) => quant.k(),
        }
    }

    /// `x`: (m, k) → (m, n).
    pub(crate) fn apply(&self, pool: &Pool, x: &[f32], rows: &mut QuantRows) -> Vec<f32> {
        let mut out = vec![0.0; x.len() / self.k() * self.n()];
        match self {
            Self::Dense(dense) => dense::matmul(pool, x, dense, None, &mut out),
            Self::Quant(quant) => {
                rows.quantise(pool, x, self.k());
                quant::matmul(pool, rows, quant, &mut out);
            }
        }
        out
    }
}

/// A linear map with what is added to its products.
pub(crate) struct Linear {
    pub(crate) matrix: Matrix,
    /// One value an output; `None` where the network has no biases.
    pub(crate) bias: Option<Vec<f32>>,
}

impl Linear {
    /// Packs the rows of tensors of one width under each other, without a bias.
    pub(crate) fn pack(tensors: &[Tensor<'_>], format: WeightFormat) -> Result<Self, WeightsError> {
        Ok(Self { matrix: Matrix::pack(tensors, format)?, bias: None })
    }

    /// `x`: (m, k) → (m, n).
    pub(crate) fn apply(&self, pool: &Pool, x: &[f32], rows: &mut QuantRows) -> Vec<f32> {
        let mut out = self.matrix.apply(pool, x, rows);
        if let Some(bias) = &self.bias {
            pool.run_rows(&mut out, bias.len(), ROW_GRAIN, &|_, rows| {
                rows.chunks_exact_mut(bias.len()).for_each(|row| elementwise::add(pool.isa(), row, bias));
            });
        }
        out
    }
}
