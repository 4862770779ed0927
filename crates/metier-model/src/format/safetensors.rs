//! safetensors: eight bytes of header length, a JSON header, data. Parsed by the `safetensors` crate behind limits of our own.

use std::collections::BTreeMap;

use ::safetensors::{Dtype, SafeTensors};

use super::{FormatError, MAX_DIMS, MAX_NAME_BYTES, MAX_TENSORS, Tensor, TensorInfo, TensorType};

/// Bytes of the JSON header, at most (all-MiniLM's has 11 KB, a 100 B model's about 1 MB).
pub const MAX_HEADER_BYTES: usize = 16 << 20;

/// The index of a safetensors file: borrows nothing.
#[derive(Clone, Debug)]
pub struct Safetensors {
    tensors: BTreeMap<String, TensorInfo>,
}

impl Safetensors {
    /// Reads the index of a file's bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let Some(length) = bytes.first_chunk::<8>() else {
            return Err(FormatError::WrongMagic("safetensors"));
        };
        let header_len = u64::from_le_bytes(*length);
        if header_len > MAX_HEADER_BYTES as u64 {
            let limit = MAX_HEADER_BYTES as u64;
            return Err(FormatError::OverLimit { what: "the header's length", found: header_len, limit });
        }
        let (header_len, header) = SafeTensors::read_metadata(bytes).map_err(FormatError::Header)?;
        let data_start = 8 + header_len;
        let infos = header.tensors();
        if infos.len() > MAX_TENSORS {
            let (found, limit) = (infos.len() as u64, MAX_TENSORS as u64);
            return Err(FormatError::OverLimit { what: "the number of tensors", found, limit });
        }
        let mut tensors = BTreeMap::new();
        for (name, info) in infos {
            if name.len() > MAX_NAME_BYTES {
                let (found, limit) = (name.len() as u64, MAX_NAME_BYTES as u64);
                return Err(FormatError::OverLimit { what: "a tensor's name", found, limit });
            }
            let wrong = |problem: &str| FormatError::Tensor { tensor: name.clone(), problem: problem.to_owned() };
            if info.shape.len() > MAX_DIMS {
                return Err(wrong("it has more than 4 dimensions"));
            }
            let dtype = tensor_type(info.dtype)
                .ok_or_else(|| FormatError::TensorType { tensor: name.clone(), found: format!("{:?}", info.dtype) })?;
            let elements = info.shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
            let len = elements.and_then(|n| dtype.bytes_of(n)).ok_or_else(|| wrong("its size overflows"))?;
            let (from, to) = info.data_offsets;
            let start = data_start.checked_add(from).ok_or_else(|| wrong("its offset overflows"))?;
            let end = data_start.checked_add(to).ok_or_else(|| wrong("its end overflows"))?;
            if end > bytes.len() || end.checked_sub(start) != Some(len) {
                return Err(wrong("its bytes do not fit its shape or the file"));
            }
            tensors.insert(name, TensorInfo { dtype, shape: info.shape.clone(), range: start..end });
        }
        Ok(Self { tensors })
    }

    /// All tensors, by name.
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// The tensor of that name; `bytes` is the file that was parsed.
    ///
    /// # Panics
    ///
    /// Where `bytes` is shorter than the parsed file.
    pub fn tensor<'a>(&'a self, bytes: &'a [u8], name: &str) -> Option<Tensor<'a>> {
        let (name, info) = self.tensors.get_key_value(name)?;
        Some(Tensor { name, dtype: info.dtype, shape: &info.shape, bytes: &bytes[info.range.clone()] })
    }
}

fn tensor_type(dtype: Dtype) -> Option<TensorType> {
    let opaque = |name, block_bytes| Some(TensorType::Opaque { name, block_len: 1, block_bytes });
    match dtype {
        Dtype::F32 => Some(TensorType::F32),
        Dtype::F16 => Some(TensorType::F16),
        Dtype::BF16 => Some(TensorType::Bf16),
        Dtype::F64 => opaque("F64", 8),
        Dtype::I64 => opaque("I64", 8),
        Dtype::U64 => opaque("U64", 8),
        Dtype::I32 => opaque("I32", 4),
        Dtype::U32 => opaque("U32", 4),
        Dtype::I16 => opaque("I16", 2),
        Dtype::U16 => opaque("U16", 2),
        Dtype::I8 => opaque("I8", 1),
        Dtype::U8 => opaque("U8", 1),
        Dtype::BOOL => opaque("BOOL", 1),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;

    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        bytes
    }

    fn small_file() -> Vec<u8> {
        file(
            r#"{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"b":{"dtype":"BF16","shape":[3],"data_offsets":[16,22]}}"#,
            &[0; 22],
        )
    }

    #[test]
    fn reads_tensors() {
        let bytes = small_file();
        let index = Safetensors::parse(&bytes).unwrap();
        assert_eq!(index.tensor(&bytes, "a").unwrap().to_f32().unwrap(), [0.0; 4]);
        assert_eq!(index.tensor(&bytes, "b").unwrap().dtype, TensorType::Bf16);
    }

    #[test]
    fn refuses_lies() {
        assert!(Safetensors::parse(b"").is_err());
        let long = (MAX_HEADER_BYTES as u64 + 1).to_le_bytes();
        assert!(Safetensors::parse(&long).unwrap_err().to_string().contains("the limit is"));
        let outside = file(r#"{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}"#, &[0; 8]);
        assert!(Safetensors::parse(&outside).is_err());
        let lying = file(r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,16]}}"#, &[0; 16]);
        assert!(Safetensors::parse(&lying).is_err());
        let deep = file(r#"{"a":{"dtype":"F32","shape":[1,1,1,1,1],"data_offsets":[0,4]}}"#, &[0; 4]);
        assert!(Safetensors::parse(&deep).unwrap_err().to_string().contains("4 dimensions"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn no_mutation_panics(flips in prop::collection::vec((0usize..400, 0u8..=255), 0..6), cut in 0usize..400, more in 0usize..40) {
            let mut bytes = small_file();
            for (at, value) in flips {
                let at = at % bytes.len();
                bytes[at] = value;
            }
            bytes.truncate(bytes.len().min(cut.max(1)));
            bytes.extend(vec![0xff; more]);
            if let Ok(index) = Safetensors::parse(&bytes) {
                for name in index.tensors().keys() {
                    let _ = index.tensor(&bytes, name).unwrap().to_f32();
                }
            }
        }
    }
}
