//! The small safetensors files of a bundle: written in one order, read without trust.

use std::{borrow::Cow, collections::BTreeMap};

use safetensors::{Dtype, SafeTensorError, SafeTensors, View};

/// A bundle's tensor file is not what this version writes.
#[derive(Debug, thiserror::Error)]
pub enum TensorError {
    /// Not a safetensors file, or one that ends too early.
    #[error("not a safetensors file")]
    Format(#[from] SafeTensorError),
    /// A tensor has another type or rank than it should.
    #[error("tensor `{name}` has the wrong type or shape")]
    Shape {
        /// Which tensor.
        name: String,
    },
    /// Tensors contradict each other.
    #[error("{0}")]
    Inconsistent(&'static str),
}

/// One tensor to be written, in little-endian bytes.
pub(crate) struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Tensor {
    pub(crate) fn f32(shape: &[usize], values: &[f32]) -> Self {
        Self { dtype: Dtype::F32, shape: shape.to_vec(), bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect() }
    }

    pub(crate) fn u32(shape: &[usize], values: &[u32]) -> Self {
        Self { dtype: Dtype::U32, shape: shape.to_vec(), bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect() }
    }

    pub(crate) fn i8(shape: &[usize], values: &[i8]) -> Self {
        Self { dtype: Dtype::I8, shape: shape.to_vec(), bytes: values.iter().map(|&v| v as u8).collect() }
    }
}

impl View for &Tensor {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }
    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// The file's bytes; the same tensors give the same bytes.
pub(crate) fn write(tensors: &BTreeMap<&str, Tensor>) -> Vec<u8> {
    safetensors::serialize(tensors.iter(), None).expect("shapes fit their bytes")
}

pub(crate) fn f32s(file: &SafeTensors<'_>, name: &str, rank: usize) -> Result<(Vec<f32>, Vec<usize>), TensorError> {
    read(file, name, Dtype::F32, rank, f32::from_le_bytes)
}

pub(crate) fn u32s(file: &SafeTensors<'_>, name: &str, rank: usize) -> Result<(Vec<u32>, Vec<usize>), TensorError> {
    read(file, name, Dtype::U32, rank, u32::from_le_bytes)
}

pub(crate) fn i8s(file: &SafeTensors<'_>, name: &str, rank: usize) -> Result<(Vec<i8>, Vec<usize>), TensorError> {
    read(file, name, Dtype::I8, rank, i8::from_le_bytes)
}

fn read<T, const N: usize>(
    file: &SafeTensors<'_>,
    name: &str,
    dtype: Dtype,
    rank: usize,
    parse: fn([u8; N]) -> T,
) -> Result<(Vec<T>, Vec<usize>), TensorError> {
    let tensor = file.tensor(name)?;
    if tensor.dtype() != dtype || tensor.shape().len() != rank {
        return Err(TensorError::Shape { name: name.to_owned() });
    }
    let (values, _) = tensor.data().as_chunks::<N>();
    Ok((values.iter().map(|bytes| parse(*bytes)).collect(), tensor.shape().to_vec()))
}
