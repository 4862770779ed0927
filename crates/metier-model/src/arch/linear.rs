//! One linear map of a network, `y[m][n] = Σ_k x[m][k] · w[n][k]`, its weights kept in one of the forms that kernels multiply.
//!
//! **Question:** in which form does this file's matrix lie in memory, and what is its product? **In:** tensors of one width, rows of
//! activations. **Out:** rows of products. **Absent:** what the map is for; deltas of adapters are added by whoever calls.

use half::f16;
use metier_kernels::{
    Pool,
    dense::{self, DenseMatrix},
    elementwise,
    quant::{self, BlockFormat, Input, Output, QuantMatrix, QuantRows},
};

use super::{ROW_GRAIN, WeightsError, pack_dense, pack_halves};
use crate::format::{
    Tensor, TensorType,
    dequantise::{affine_blocks, is_affine, signed_block},
};

/// A weight beyond this is damage: its 8-bit scale would not fit into an f16.
const MAX_WEIGHT: f32 = 1e6;

/// How weights are kept in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightFormat {
    /// As few bits as the kernels can multiply without a loss that counts:
    ///
    /// | in the file | in memory | loss |
    /// |---|---|---|
    /// | Q4_0, Q4_1, Q8_0 | the same | none |
    /// | Q5_0, IQ4_NL | 8 bits | none |
    /// | Q5_1 | 8 bits with min | none |
    /// | Q4_K | Q4_1 | scale and min of 32 weights rounded to f16: 2⁻¹¹ of each, or 2⁻²⁵ where they are subnormal |
    /// | Q5_K | 8 bits with min | the same |
    /// | everything else | as [`Int8`](Self::Int8) | half a step of 1/127 of the largest of 32 weights |
    AsFile,
    /// 8 bits with a scale for each 32 weights (8.5 bits a weight).
    Int8,
    /// Halves, multiplied as f32: what an F16 file holds, without loss. Other types are rounded to 11 bits of precision, and a map with a
    /// weight beyond 65,504 is kept as [`F32`](Self::F32). Twice the memory of 8 bits.
    F16,
    /// Dequantised: four to seven times the memory, for comparison with references.
    F32,
}

/// Weights `(n, k)` of a linear map, packed for the kernels.
pub(crate) enum Matrix {
    Dense(DenseMatrix),
    /// Under each other: one part unless the file mixes types in one group, as Q4_K_M files do with Q, K and V. At least one.
    Quant(Vec<QuantMatrix>),
}

impl Matrix {
    /// Packs the rows of tensors of one width under each other.
    pub(crate) fn pack(tensors: &[Tensor<'_>], format: WeightFormat) -> Result<Self, WeightsError> {
        match format {
            WeightFormat::F32 => return pack_dense(tensors).map(Self::Dense),
            WeightFormat::F16 => return pack_halves(tensors).map(Self::Dense),
            WeightFormat::AsFile | WeightFormat::Int8 => {}
        }
        let forms = tensors.iter().map(|t| kept_form(*t, format)).collect::<Result<Vec<_>, _>>()?;
        let mut parts = Vec::new();
        let mut done = 0;
        while done < tensors.len() {
            let form = &forms[done];
            let same = forms[done..].iter().take_while(|other| other.block() == form.block()).count();
            parts.push(pack_part(&tensors[done..done + same], &forms[done..done + same])?);
            done += same;
        }
        Ok(Self::Quant(parts))
    }

    pub(crate) fn n(&self) -> usize {
        match self {
            Self::Dense(dense) => dense.n(),
            Self::Quant(parts) => parts.iter().map(QuantMatrix::n).sum(),
        }
    }

    pub(crate) fn k(&self) -> usize {
        match self {
            Self::Dense(dense) => dense.k(),
            Self::Quant(parts) => parts[0].k(),
        }
    }

    /// Products of `x`: (m, k), into `out`: (m, n).
    pub(crate) fn apply_into(&self, pool: &Pool, x: &[f32], rows: &mut QuantRows, out: &mut [f32]) {
        match self {
            Self::Dense(dense) => dense::matmul(pool, x, dense, None, out),
            Self::Quant(parts) => {
                rows.quantise(pool, x, self.k());
                let (stride, mut first) = (self.n(), 0);
                for part in parts {
                    quant::matmul_into(pool, rows, part, out, Output { stride, first, add: false });
                    first += part.n();
                }
            }
        }
    }

    /// Products of an input that is written on the way, into `out`: (m, n), or added to what is there.
    pub(crate) fn multiply(&self, pool: &Pool, input: Input<'_>, rows: &mut QuantRows, out: &mut [f32], add: bool) {
        match self {
            Self::Dense(dense) => {
                pool.run_rows(input.x, input.k, FILL_GRAIN, input.fill);
                if add {
                    let mut products = vec![0.0; out.len()];
                    dense::matmul(pool, input.x, dense, None, &mut products);
                    add_rows(pool, out, &products, dense.n());
                } else {
                    dense::matmul(pool, input.x, dense, None, out);
                }
            }
            Self::Quant(parts) => quant::multiply(pool, input, rows, parts, out, add),
        }
    }
}

/// Rows that one part writes before they are multiplied.
const FILL_GRAIN: usize = 16;

/// `x += y`, in rows of `width`.
pub(crate) fn add_rows(pool: &Pool, x: &mut [f32], y: &[f32], width: usize) {
    pool.run_rows(x, width, ROW_GRAIN, &|first, rows| {
        elementwise::add(pool.isa(), rows, &y[first * width..first * width + rows.len()]);
    });
}

/// The form in which a tensor is kept.
enum Form {
    /// Blocks as the file has them.
    AsFile(BlockFormat),
    /// Blocks made of the file's.
    Repacked(BlockFormat, Vec<u8>),
    /// To be quantised to 8 bits.
    Quantised,
}

impl Form {
    fn block(&self) -> Option<BlockFormat> {
        match self {
            Self::AsFile(block) | Self::Repacked(block, _) => Some(*block),
            Self::Quantised => None,
        }
    }
}

fn kept_form(tensor: Tensor<'_>, format: WeightFormat) -> Result<Form, WeightsError> {
    let as_file = format == WeightFormat::AsFile;
    let form = match tensor.dtype {
        TensorType::Q8_0 => Form::AsFile(BlockFormat::Q8_0),
        TensorType::Q4_0 if as_file => Form::AsFile(BlockFormat::Q4_0),
        TensorType::Q4_1 if as_file => Form::AsFile(BlockFormat::Q4_1),
        TensorType::Q5_0 | TensorType::Iq4Nl => Form::Repacked(BlockFormat::Q8_0, signed_as_bytes(tensor)),
        dtype if as_file && is_affine(dtype) => {
            let block = if dtype == TensorType::Q4K { BlockFormat::Q4_1 } else { BlockFormat::U8Min };
            match affine_as_blocks(tensor, block)? {
                Some(bytes) => Form::Repacked(block, bytes),
                None => Form::Quantised,
            }
        }
        _ => Form::Quantised,
    };
    let bytes = match &form {
        Form::AsFile(_) => tensor.bytes,
        Form::Repacked(_, bytes) => bytes,
        Form::Quantised => &[],
    };
    if let Some(block) = form.block() {
        let halves = if matches!(block, BlockFormat::Q4_1 | BlockFormat::U8Min) { 2 } else { 1 };
        let finite = |half: &[u8]| half[1] & 0x7c != 0x7c;
        let mut blocks = bytes.chunks_exact(block.block_bytes());
        if !blocks.all(|block| block[..2 * halves].chunks_exact(2).all(finite)) {
            return Err(WeightsError::NotFinite(tensor.name.to_owned()));
        }
    }
    Ok(form)
}

/// Q5_0 and IQ4_NL: their quants fit into 8 bits, the scale stays.
fn signed_as_bytes(tensor: Tensor<'_>) -> Vec<u8> {
    let size = tensor.dtype.block().1;
    let mut out = Vec::with_capacity(tensor.bytes.len() / size * BlockFormat::Q8_0.block_bytes());
    for block in tensor.bytes.chunks_exact(size) {
        out.extend_from_slice(&block[..2]);
        let quants = signed_block(tensor.dtype, block).expect("only types without a min come here");
        out.extend(quants.map(i8::cast_unsigned));
    }
    out
}

/// Affine sub-blocks as blocks with an f16 scale and an f16 min; `None` where one of the two lies beyond f16.
fn affine_as_blocks(tensor: Tensor<'_>, block: BlockFormat) -> Result<Option<Vec<u8>>, WeightsError> {
    let mut out = Vec::with_capacity(tensor.rows() * tensor.cols() / metier_kernels::BLOCK * block.block_bytes());
    let (mut finite, mut fits) = (true, true);
    affine_blocks(tensor.dtype, tensor.bytes, |scale, min, quants| {
        finite &= scale.is_finite() && min.is_finite();
        let halves = [f16::from_f32(scale), f16::from_f32(min)];
        fits &= halves.iter().all(|half| half.is_finite());
        halves.iter().for_each(|half| out.extend(half.to_le_bytes()));
        match block {
            BlockFormat::Q4_1 => out.extend((0..16).map(|j| quants[j] | (quants[j + 16] << 4))),
            _ => out.extend(quants),
        }
    });
    if finite { Ok(fits.then_some(out)) } else { Err(WeightsError::NotFinite(tensor.name.to_owned())) }
}

/// Packs tensors of one form under each other.
fn pack_part(tensors: &[Tensor<'_>], forms: &[Form]) -> Result<QuantMatrix, WeightsError> {
    let k = tensors[0].cols();
    let rows: Vec<(usize, usize)> =
        tensors.iter().enumerate().flat_map(|(t, tensor)| (0..tensor.rows()).map(move |row| (t, row))).collect();
    if let Some(block) = forms[0].block() {
        let row_bytes = k / metier_kernels::BLOCK * block.block_bytes();
        return Ok(QuantMatrix::pack(block, rows.len(), k, |i| {
            let (t, row) = rows[i];
            let bytes = if let Form::Repacked(_, bytes) = &forms[t] { bytes } else { tensors[t].bytes };
            &bytes[row * row_bytes..(row + 1) * row_bytes]
        }));
    }
    let mut bad = None;
    let packed = QuantMatrix::quantise(rows.len(), k, |i, out| {
        let (tensor, row) = (tensors[rows[i].0], rows[i].1);
        if !tensor.read_row(row, out) {
            bad.get_or_insert(WeightsError::Format(tensor.unsupported()));
        } else if !out.iter().all(|x| x.abs() <= MAX_WEIGHT) {
            bad.get_or_insert(WeightsError::NotFinite(tensor.name.to_owned()));
        }
    });
    bad.map_or(Ok(packed), Err)
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

    /// [`Matrix::multiply`], with the bias.
    pub(crate) fn multiply(&self, pool: &Pool, input: Input<'_>, rows: &mut QuantRows, out: &mut [f32], add: bool) {
        self.matrix.multiply(pool, input, rows, out, add);
        if let Some(bias) = &self.bias {
            pool.run_rows(out, bias.len(), ROW_GRAIN, &|_, rows| {
                rows.chunks_exact_mut(bias.len()).for_each(|row| elementwise::add(pool.isa(), row, bias));
            });
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests; one of them measures")]
    use metier_kernels::Tier;

    use super::*;

    const COLS: usize = 256;
    const SHAPE: [usize; 2] = [2, COLS];

    /// Two rows of each quantised type, in the golden file's order, with what they mean.
    fn golden() -> Vec<(TensorType, &'static [u8])> {
        use TensorType::*;
        let mut rest: &[u8] = include_bytes!("../../tests/goldens/formats.bin");
        let take = |dtype: TensorType| {
            let (bytes, after) = rest.split_at(dtype.bytes_of(2 * COLS).unwrap());
            rest = &after[2 * COLS * 4..];
            (dtype, bytes)
        };
        [F32, F16, Bf16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K, Iq4Nl].map(take).to_vec()
    }

    fn tensor(dtype: TensorType, bytes: &[u8]) -> Tensor<'_> {
        Tensor { name: "w", dtype, shape: &SHAPE, bytes }
    }

    /// The weights as the kernels multiply them: products with unit vectors. (n, k)
    fn weights_of(matrix: &Matrix) -> Vec<f32> {
        let pool = Pool::new(1, Tier::detect());
        let (n, k) = (matrix.n(), matrix.k());
        let mut x = vec![0.0; k * k];
        (0..k).for_each(|i| x[i * k + i] = 1.0);
        let mut products = vec![0.0; k * n];
        matrix.apply_into(&pool, &x, &mut QuantRows::default(), &mut products);
        (0..n * k).map(|at| products[at % k * n + at / k]).collect()
    }

    /// Largest error that a type may have, as a share of the largest weight of its row.
    #[test]
    fn every_type_keeps_its_weights() {
        use TensorType::*;
        for (dtype, bytes) in golden() {
            let tensor = tensor(dtype, bytes);
            let expected = tensor.to_f32().unwrap();
            let found = weights_of(&Matrix::pack(&[tensor], WeightFormat::AsFile).unwrap());
            let limit = match dtype {
                // Only the rounding of the activations' scale and of the f32 sum.
                Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 | Iq4Nl => 1e-6,
                // Scale and min are rounded to f16, and what they add up to may cancel: twice 2^-11 of either.
                Q4K | Q5K => 2.0f32.powi(-10),
                // Half a step of 1/127, and the f16 scale.
                _ => 0.5 / 127.0 + 2.0f32.powi(-11),
            };
            let mut squares = [0.0f64; 2];
            for (found, expected) in found.chunks(COLS).zip(expected.chunks(COLS)) {
                let largest = expected.iter().fold(0.0f32, |max, x| max.max(x.abs()));
                for (found, expected) in found.iter().zip(expected) {
                    assert!((found - expected).abs() <= limit * largest, "{dtype}: {found} is not {expected}");
                    squares[0] += f64::from(found - expected).powi(2);
                    squares[1] += f64::from(*expected).powi(2);
                }
            }
            println!("{dtype}: relative error {:.1e}", (squares[0] / squares[1]).sqrt());
        }
    }

    #[test]
    fn a_group_may_mix_types_and_keeps_each() {
        let all = golden();
        let group: Vec<_> = [10, 10, 12, 3].map(|i| tensor(all[i].0, all[i].1)).to_vec();
        let matrix = Matrix::pack(&group, WeightFormat::AsFile).unwrap();
        let Matrix::Quant(parts) = &matrix else { panic!("it is quantised") };
        assert_eq!(parts.iter().map(QuantMatrix::n).collect::<Vec<_>>(), [4, 2, 2]);
        let alone = |i: usize| weights_of(&Matrix::pack(&group[i..=i], WeightFormat::AsFile).unwrap());
        assert_eq!(weights_of(&matrix), (0..4).flat_map(alone).collect::<Vec<_>>());
    }

    #[test]
    fn scales_that_are_no_numbers_are_refused() {
        for (dtype, bytes) in golden() {
            let at = match dtype {
                TensorType::F32 | TensorType::Bf16 => continue,
                TensorType::Q2K => 80,
                TensorType::Q3K => 108,
                TensorType::Q6K => 208,
                _ => 0,
            };
            for bad in [f16::NAN, f16::INFINITY, f16::NEG_INFINITY] {
                let mut bytes = bytes.to_vec();
                bytes[at..at + 2].copy_from_slice(&bad.to_le_bytes());
                for format in [WeightFormat::AsFile, WeightFormat::Int8, WeightFormat::F32] {
                    let error = Matrix::pack(&[tensor(dtype, &bytes)], format).map(|_| ()).unwrap_err();
                    assert!(matches!(error, WeightsError::NotFinite(_)), "{dtype} {format:?}: {error}");
                }
            }
        }
    }

    #[test]
    fn a_product_beyond_f16_is_quantised_again() {
        let (dtype, bytes) = golden()[10];
        let mut bytes = bytes.to_vec();
        bytes[..2].copy_from_slice(&f16::from_f32(30_000.0).to_le_bytes());
        bytes[4] = 63;
        assert!(matches!(kept_form(tensor(dtype, &bytes), WeightFormat::AsFile).unwrap(), Form::Quantised));
    }
}
