//! Named numbers → the bytes of a safetensors file; equal tensors give equal bytes.

use std::borrow::Cow;

use half::f16;
use safetensors::{Dtype, View};

struct Bytes<'a> {
    dtype: Dtype,
    shape: &'a [usize],
    bytes: Vec<u8>,
}

impl View for Bytes<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }
    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// `(name, shape, values)` as f32.
///
/// # Panics
///
/// Where values do not fill their shape.
pub fn write_f32<'a>(tensors: impl Iterator<Item = (&'a str, &'a [usize], &'a [f32])>) -> Vec<u8> {
    write(tensors, Dtype::F32, |values| values.iter().flat_map(|x| x.to_le_bytes()).collect())
}

/// `(name, shape, values)`, rounded to IEEE halves; what is larger than 65,504 becomes an infinity.
///
/// # Panics
///
/// Where values do not fill their shape.
pub fn write_f16<'a>(tensors: impl Iterator<Item = (&'a str, &'a [usize], &'a [f32])>) -> Vec<u8> {
    write(tensors, Dtype::F16, |values| values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect())
}

/// Numbers as a file holds them.
pub enum Stored {
    /// IEEE singles.
    F32(Vec<f32>),
    /// IEEE halves; what is larger than 65,504 becomes an infinity.
    F16(Vec<f32>),
    /// Whole numbers of 8 bits.
    I8(Vec<i8>),
}

/// `(name, shape, numbers)`, each as it says.
///
/// # Panics
///
/// Where numbers do not fill their shape.
pub fn write_stored(tensors: Vec<(String, Vec<usize>, Stored)>) -> Vec<u8> {
    let all = tensors.iter().map(|(name, shape, values)| {
        let (dtype, bytes) = match values {
            Stored::F32(values) => (Dtype::F32, values.iter().flat_map(|x| x.to_le_bytes()).collect()),
            Stored::F16(values) => (Dtype::F16, values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect()),
            Stored::I8(values) => (Dtype::I8, values.iter().map(|x| *x as u8).collect()),
        };
        (name, Bytes { dtype, shape, bytes })
    });
    safetensors::serialize(all, None).expect("numbers fill their shapes")
}

fn write<'a>(
    tensors: impl Iterator<Item = (&'a str, &'a [usize], &'a [f32])>,
    dtype: Dtype,
    bytes: impl Fn(&[f32]) -> Vec<u8>,
) -> Vec<u8> {
    let all = tensors.map(|(name, shape, values)| (name, Bytes { dtype, shape, bytes: bytes(values) }));
    safetensors::serialize(all, None).expect("values fill their shapes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Safetensors;

    #[test]
    fn is_read_back() {
        let values = [1.5f32, -2.0, 0.25, 1e-3, 70_000.0, 3.0];
        let tensors = [("a", &[2usize, 3][..], &values[..]), ("b", &[1], &values[..1])];
        let read = |file: &[u8], name: &str| {
            let index = Safetensors::parse(file).expect("a file");
            let tensor = index.tensor(file, name).expect("is there");
            (tensor.shape.to_vec(), tensor.to_f32().expect("numbers"))
        };
        let file = write_f32(tensors.into_iter());
        assert_eq!(read(&file, "a"), (vec![2, 3], values.to_vec()));
        assert_eq!(read(&file, "b"), (vec![1], vec![1.5]));
        let found = read(&write_f16(tensors.into_iter()), "a").1;
        assert_eq!((found[0], found[4]), (1.5, f32::INFINITY));
        assert!((found[3] - 1e-3).abs() < 1e-6 && found[3] != 1e-3);
    }
}
