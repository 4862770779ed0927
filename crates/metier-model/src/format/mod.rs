//! Bytes ↔ named tensors.
//!
//! **Question:** which tensors does this file hold, of which type and shape, where? **In:** the bytes of a GGUF or safetensors
//! file, from anybody. **Out:** an index of checked ranges, and rows as f32. **Absent:** what a tensor means, and files: both
//! parsers take slices and never read a byte that they were not given.
//!
//! No length in a file is trusted: counts, strings, arrays, dimensions, offsets and alignment are checked against named limits
//! and against what is left of the file, with checked arithmetic, before anything is allocated. Neither parser panics, nor
//! allocates more than a small multiple of the file, on any input (property tests here, fuzz targets in `fuzz/`).

pub(crate) mod dequantise;
pub mod gguf;
pub mod gguf_write;
pub mod safetensors;
mod safetensors_write;

use std::{fmt, ops::Range};

use dequantise::dequantise;
pub use gguf::Gguf;
pub use safetensors::Safetensors;
pub use safetensors_write::{Stored, write_f16, write_f32, write_stored};

/// Dimensions of a tensor, at most.
pub const MAX_DIMS: usize = 4;
/// Tensors of a file, at most.
pub const MAX_TENSORS: usize = 65_536;
/// Bytes of a tensor's or a key's name, at most.
pub const MAX_NAME_BYTES: usize = 256;

/// A model file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// It is something else.
    #[error("this is no {0} file")]
    WrongMagic(&'static str),
    /// A version that is not read.
    #[error("GGUF version {0} is not supported: expected 2 or 3")]
    Version(u32),
    /// The file ends where more was announced.
    #[error("the file ends inside {0}")]
    Truncated(&'static str),
    /// A count or length is over its limit.
    #[error("{what} is {found}, the limit is {limit}")]
    OverLimit {
        /// What is counted.
        what: &'static str,
        /// The number in the file.
        found: u64,
        /// The most that is accepted.
        limit: u64,
    },
    /// Bytes that should be text are not UTF-8.
    #[error("{0} is not UTF-8")]
    NotUtf8(&'static str),
    /// A name stands twice.
    #[error("`{0}` stands twice in the file")]
    Duplicate(String),
    /// A type number without a meaning here.
    #[error("metadata `{key}` has type {found}, which is not supported")]
    ValueType {
        /// The key.
        key: String,
        /// The type number.
        found: u32,
    },
    /// Alignment must be a power of two.
    #[error("alignment {0} is no power of two up to {max}", max = gguf::MAX_ALIGNMENT)]
    Alignment(u64),
    /// A tensor's type is unknown or cannot be computed with.
    #[error("tensor `{tensor}` has type {found}, which is not supported")]
    TensorType {
        /// The tensor.
        tensor: String,
        /// Its type, by name or number.
        found: String,
    },
    /// A tensor's shape, offset or size contradicts itself or the file.
    #[error("tensor `{tensor}`: {problem}")]
    Tensor {
        /// The tensor.
        tensor: String,
        /// What is wrong.
        problem: String,
    },
    /// The header of a safetensors file.
    #[error("cannot read the safetensors header")]
    Header(#[source] ::safetensors::SafeTensorError),
}

/// How a tensor's elements are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorType {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    Bf16,
    /// GGUF: 32 weights in 18 bytes, `d · (q − 8)`.
    Q4_0,
    /// GGUF: 32 weights in 20 bytes, `d · q + m`.
    Q4_1,
    /// GGUF: 32 weights in 22 bytes, `d · (q − 16)`.
    Q5_0,
    /// GGUF: 32 weights in 24 bytes, `d · q + m`.
    Q5_1,
    /// GGUF: 32 weights in 34 bytes, `d · q`.
    Q8_0,
    /// GGUF: 256 weights in 84 bytes, 2 bits with scale and min for each 16.
    Q2K,
    /// GGUF: 256 weights in 110 bytes, 3 bits with a scale for each 16.
    Q3K,
    /// GGUF: 256 weights in 144 bytes, 4 bits with scale and min for each 32.
    Q4K,
    /// GGUF: 256 weights in 176 bytes, 5 bits with scale and min for each 32.
    Q5K,
    /// GGUF: 256 weights in 210 bytes, 6 bits with a scale for each 16.
    Q6K,
    /// GGUF: 32 weights in 18 bytes, `d` times one of 16 unevenly spaced values.
    Iq4Nl,
    /// Known by size only: it can be indexed and skipped, not computed with.
    Opaque {
        /// Its name, for messages.
        name: &'static str,
        /// Elements of a block.
        block_len: usize,
        /// Bytes of a block.
        block_bytes: usize,
    },
}

impl TensorType {
    /// (elements, bytes) of a block.
    pub const fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q2K => (256, 84),
            Self::Q3K => (256, 110),
            Self::Q4K => (256, 144),
            Self::Q5K => (256, 176),
            Self::Q6K => (256, 210),
            Self::Iq4Nl => (32, 18),
            Self::Opaque { block_len, block_bytes, .. } => (block_len, block_bytes),
        }
    }

    /// Bytes of `n` elements; `None` where they are no whole blocks or overflow.
    pub fn bytes_of(self, n: usize) -> Option<usize> {
        let (len, bytes) = self.block();
        n.is_multiple_of(len).then(|| (n / len).checked_mul(bytes)).flatten()
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Opaque { name, .. } => f.write_str(name),
            Self::Bf16 => f.write_str("BF16"),
            Self::Q2K => f.write_str("Q2_K"),
            Self::Q3K => f.write_str("Q3_K"),
            Self::Q4K => f.write_str("Q4_K"),
            Self::Q5K => f.write_str("Q5_K"),
            Self::Q6K => f.write_str("Q6_K"),
            Self::Iq4Nl => f.write_str("IQ4_NL"),
            other => write!(f, "{other:?}"),
        }
    }
}

/// Where a tensor lies in its file. `range` was checked against the file's length and agrees with shape and type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// How elements are stored.
    pub dtype: TensorType,
    /// Outermost dimension first, as numpy writes shapes (GGUF stores them the other way round).
    pub shape: Vec<usize>,
    /// Bytes in the file.
    pub range: Range<usize>,
}

/// A tensor and its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    /// Its name in the file.
    pub name: &'a str,
    /// How elements are stored.
    pub dtype: TensorType,
    /// Outermost dimension first.
    pub shape: &'a [usize],
    /// Its elements.
    pub bytes: &'a [u8],
}

impl<'a> Tensor<'a> {
    /// Elements of a row: the innermost dimension.
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Rows: all other dimensions.
    pub fn rows(&self) -> usize {
        // A zero anywhere makes any other product legal in a file.
        if self.shape.contains(&0) { 0 } else { self.shape.iter().rev().skip(1).product() }
    }

    /// The bytes of row `i`.
    pub fn row_bytes(&self, i: usize) -> &'a [u8] {
        let len = self.bytes.len() / self.rows().max(1);
        &self.bytes[i * len..(i + 1) * len]
    }

    /// Row `i` as f32; `false` where the type cannot be computed with.
    #[must_use]
    pub fn read_row(&self, i: usize, out: &mut [f32]) -> bool {
        dequantise(self.dtype, self.row_bytes(i), out)
    }

    /// All elements as f32; an error where the type cannot be computed with.
    pub fn to_f32(&self) -> Result<Vec<f32>, FormatError> {
        let mut out = vec![0.0; self.rows() * self.cols()];
        if dequantise(self.dtype, self.bytes, &mut out) { Ok(out) } else { Err(self.unsupported()) }
    }

    /// The error that says so.
    pub fn unsupported(&self) -> FormatError {
        FormatError::TensorType { tensor: self.name.to_owned(), found: self.dtype.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    fn check(dtype: TensorType, bytes: &[u8], expected: &[(usize, f32)]) {
        let mut out = vec![f32::NAN; 32];
        assert!(dequantise(dtype, bytes, &mut out));
        for (at, value) in expected {
            assert!((out[*at] - value).abs() < 1e-6, "{dtype}[{at}] is {}, not {value}", out[*at]);
        }
    }

    #[test]
    fn blocks_follow_their_formulas() {
        let half = |x: f32| f16::from_f32(x).to_le_bytes();
        let nibbles: Vec<u8> = (0..16).map(|j| j | ((15 - j) << 4)).collect();
        let block = |parts: &[&[u8]]| parts.concat();
        check(TensorType::Q4_0, &block(&[&half(0.5), &nibbles]), &[(0, -4.0), (15, 3.5), (16, 3.5), (31, -4.0)]);
        check(TensorType::Q4_1, &block(&[&half(0.5), &half(-1.0), &nibbles]), &[(0, -1.0), (15, 6.5), (16, 6.5)]);
        // High bits: element 0 and element 17 have theirs set.
        let high = ((1u32) | (1 << 17)).to_le_bytes();
        check(
            TensorType::Q5_0,
            &block(&[&half(1.0), &high, &nibbles]),
            &[(0, 0.0), (1, -15.0), (16, -1.0), (17, 14.0)],
        );
        check(TensorType::Q5_1, &block(&[&half(1.0), &half(2.0), &high, &nibbles]), &[(0, 18.0), (1, 3.0), (17, 32.0)]);
        let bytes: Vec<u8> = (0..32u8).map(|j| j.wrapping_sub(16)).collect();
        check(TensorType::Q8_0, &block(&[&half(0.25), &bytes]), &[(0, -4.0), (16, 0.0), (31, 3.75)]);
    }
}
