//! GGUF, versions 2 and 3, little-endian (the specification: ggml `docs/gguf.md`).
//!
//! ```text
//! "GGUF" version u32 · n_tensors u64 · n_metadata u64
//! metadata: key string, type u32, value …
//! tensors:  name string, n_dims u32, dims u64 … (innermost first), type u32, offset u64 (from the data section)
//! padding to the alignment · data section
//! ```

use std::{collections::BTreeMap, ops::Range};

use super::{FormatError, MAX_DIMS, MAX_NAME_BYTES, MAX_TENSORS, Tensor, TensorInfo, TensorType};

/// Metadata entries, at most.
pub const MAX_METADATA: usize = 65_536;
/// Bytes of a metadata string, at most (chat templates are the longest).
pub const MAX_STRING_BYTES: usize = 1 << 20;
/// Elements of a metadata array, at most (vocabularies are the longest; Gemma's has 262,144).
pub const MAX_ARRAY_LEN: usize = 1 << 22;
/// Alignment of the data section, at most.
pub const MAX_ALIGNMENT: u64 = 1 << 20;
/// Alignment where the file names none.
const DEFAULT_ALIGNMENT: u64 = 32;

/// A metadata value. Integers and floats are widened; arrays hold one kind and do not nest.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any signed or unsigned integer that fits.
    Int(i64),
    /// u64 above `i64::MAX`.
    BigUint(u64),
    /// f32 or f64.
    Float(f64),
    /// bool.
    Bool(bool),
    /// string.
    Text(String),
    /// Array of integers.
    Ints(Vec<i64>),
    /// Array of floats.
    Floats(Vec<f64>),
    /// Array of bools.
    Bools(Vec<bool>),
    /// Array of strings.
    Texts(Vec<String>),
}

/// The index of a GGUF file: owns its metadata, borrows nothing.
#[derive(Clone, Debug)]
pub struct Gguf {
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, TensorInfo>,
    metadata_range: Range<usize>,
    alignment: u64,
}

impl Gguf {
    /// Reads the index of a file's bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader { bytes, at: 0 };
        if reader.take(4, "the magic").ok() != Some(b"GGUF") {
            return Err(FormatError::WrongMagic("GGUF"));
        }
        let version = reader.u32("the version")?;
        if !(2..=3).contains(&version) {
            return Err(FormatError::Version(version));
        }
        let n_tensors = limited(reader.u64("the number of tensors")?, MAX_TENSORS, "the number of tensors")?;
        let n_metadata =
            limited(reader.u64("the number of metadata entries")?, MAX_METADATA, "the number of metadata entries")?;
        let mut metadata = BTreeMap::new();
        let metadata_start = reader.at;
        for _ in 0..n_metadata {
            let key = reader.string(MAX_NAME_BYTES, "a metadata key")?;
            let kind = reader.u32("a metadata type")?;
            let value = reader.value(kind, &key)?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(FormatError::Duplicate(key));
            }
        }
        let alignment = match metadata.get("general.alignment") {
            None => DEFAULT_ALIGNMENT,
            Some(Value::Int(n)) if *n > 0 && (*n as u64).is_power_of_two() && *n as u64 <= MAX_ALIGNMENT => *n as u64,
            Some(Value::Int(n)) => return Err(FormatError::Alignment(*n as u64)),
            Some(_) => return Err(FormatError::Alignment(0)),
        };
        let metadata_range = metadata_start..reader.at;
        let mut declared = Vec::new();
        for _ in 0..n_tensors {
            declared.push(reader.tensor()?);
        }
        let data_start = (reader.at as u64).next_multiple_of(alignment);
        let mut tensors = BTreeMap::new();
        for (name, dtype, shape, offset) in declared {
            let range = range_in_file(dtype, &shape, offset, alignment, data_start, bytes.len())
                .map_err(|problem| FormatError::Tensor { tensor: name.clone(), problem })?;
            let info = TensorInfo { dtype, shape, range };
            if tensors.insert(name.clone(), info).is_some() {
                return Err(FormatError::Duplicate(name));
            }
        }
        Ok(Self { metadata, tensors, metadata_range, alignment })
    }

    /// Where the metadata lie in the file, keys, types and values.
    pub fn metadata_range(&self) -> Range<usize> {
        self.metadata_range.clone()
    }

    /// Tensors begin at multiples of so many bytes.
    pub fn alignment(&self) -> usize {
        self.alignment as usize
    }

    /// All metadata, by key.
    pub fn metadata(&self) -> &BTreeMap<String, Value> {
        &self.metadata
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

    /// A string.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.metadata.get(key)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A number of things: an integer ≥ 0.
    pub fn count(&self, key: &str) -> Option<usize> {
        match self.metadata.get(key)? {
            Value::Int(n) => usize::try_from(*n).ok(),
            _ => None,
        }
    }

    /// A float.
    pub fn float(&self, key: &str) -> Option<f64> {
        match self.metadata.get(key)? {
            Value::Float(x) => Some(*x),
            _ => None,
        }
    }

    /// A bool.
    pub fn flag(&self, key: &str) -> Option<bool> {
        match self.metadata.get(key)? {
            Value::Bool(x) => Some(*x),
            _ => None,
        }
    }

    /// An array of strings.
    pub fn texts(&self, key: &str) -> Option<&[String]> {
        match self.metadata.get(key)? {
            Value::Texts(texts) => Some(texts),
            _ => None,
        }
    }

    /// An array of floats.
    pub fn floats(&self, key: &str) -> Option<&[f64]> {
        match self.metadata.get(key)? {
            Value::Floats(floats) => Some(floats),
            _ => None,
        }
    }

    /// An array of integers.
    pub fn ints(&self, key: &str) -> Option<&[i64]> {
        match self.metadata.get(key)? {
            Value::Ints(ints) => Some(ints),
            _ => None,
        }
    }
}

fn limited(found: u64, limit: usize, what: &'static str) -> Result<usize, FormatError> {
    usize::try_from(found).ok().filter(|n| *n <= limit).ok_or(FormatError::OverLimit {
        what,
        found,
        limit: limit as u64,
    })
}

fn range_in_file(
    dtype: TensorType,
    shape: &[usize],
    offset: u64,
    alignment: u64,
    data_start: u64,
    file_len: usize,
) -> Result<Range<usize>, String> {
    let elements = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d)).ok_or("its dimensions overflow")?;
    let (block_len, _) = dtype.block();
    let cols = shape.last().copied().unwrap_or(1);
    if !cols.is_multiple_of(block_len) {
        return Err(format!("rows of {cols} are no whole {dtype} blocks of {block_len}"));
    }
    let len = dtype.bytes_of(elements).ok_or("its size overflows")?;
    if !offset.is_multiple_of(alignment) {
        return Err(format!("offset {offset} is no multiple of the alignment {alignment}"));
    }
    let start =
        data_start.checked_add(offset).and_then(|start| usize::try_from(start).ok()).ok_or("its offset overflows")?;
    let end = start.checked_add(len).ok_or("its end overflows")?;
    if end > file_len {
        return Err(format!("it ends at byte {end}, the file has {file_len}"));
    }
    Ok(start..end)
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize, what: &'static str) -> Result<&'a [u8], FormatError> {
        let end = self.at.checked_add(n).filter(|end| *end <= self.bytes.len()).ok_or(FormatError::Truncated(what))?;
        let slice = &self.bytes[self.at..end];
        self.at = end;
        Ok(slice)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], FormatError> {
        Ok(self.take(N, what)?.try_into().expect("N bytes were taken"))
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, FormatError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, FormatError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    fn string(&mut self, limit: usize, what: &'static str) -> Result<String, FormatError> {
        let len = limited(self.u64(what)?, limit, what)?;
        let bytes = self.take(len, what)?;
        Ok(std::str::from_utf8(bytes).map_err(|_| FormatError::NotUtf8(what))?.to_owned())
    }

    fn value(&mut self, kind: u32, key: &str) -> Result<Value, FormatError> {
        Ok(match kind {
            6 | 12 => Value::Float(self.float(kind)?),
            7 => Value::Bool(self.boolean()?),
            8 => Value::Text(self.string(MAX_STRING_BYTES, "a metadata string")?),
            9 => self.values(key)?,
            10 => {
                let n = self.u64("a metadata integer")?;
                i64::try_from(n).map_or(Value::BigUint(n), Value::Int)
            }
            0..=5 | 11 => Value::Int(self.int(kind)?),
            _ => return Err(FormatError::ValueType { key: key.to_owned(), found: kind }),
        })
    }

    fn values(&mut self, key: &str) -> Result<Value, FormatError> {
        let kind = self.u32("an array's type")?;
        let len = limited(self.u64("an array's length")?, MAX_ARRAY_LEN, "an array's length")?;
        let element_bytes = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            // Arrays of arrays occur in no model file that is read here.
            _ => return Err(FormatError::ValueType { key: key.to_owned(), found: kind }),
        };
        if len > (self.bytes.len() - self.at) / element_bytes {
            return Err(FormatError::Truncated("an array"));
        }
        Ok(match kind {
            6 | 12 => Value::Floats((0..len).map(|_| self.float(kind)).collect::<Result<_, _>>()?),
            7 => Value::Bools((0..len).map(|_| self.boolean()).collect::<Result<_, _>>()?),
            8 => Value::Texts(
                (0..len).map(|_| self.string(MAX_STRING_BYTES, "a string of an array")).collect::<Result<_, _>>()?,
            ),
            10 => Value::Ints(
                (0..len)
                    .map(|_| {
                        let n = self.u64("an array")?;
                        i64::try_from(n).map_err(|_| FormatError::OverLimit {
                            what: "an integer of an array",
                            found: n,
                            limit: i64::MAX as u64,
                        })
                    })
                    .collect::<Result<_, _>>()?,
            ),
            _ => Value::Ints((0..len).map(|_| self.int(kind)).collect::<Result<_, _>>()?),
        })
    }

    fn int(&mut self, kind: u32) -> Result<i64, FormatError> {
        let what = "a metadata integer";
        Ok(match kind {
            0 => i64::from(u8::from_le_bytes(self.array(what)?)),
            1 => i64::from(i8::from_le_bytes(self.array(what)?)),
            2 => i64::from(u16::from_le_bytes(self.array(what)?)),
            3 => i64::from(i16::from_le_bytes(self.array(what)?)),
            4 => i64::from(u32::from_le_bytes(self.array(what)?)),
            5 => i64::from(i32::from_le_bytes(self.array(what)?)),
            _ => i64::from_le_bytes(self.array(what)?),
        })
    }

    fn float(&mut self, kind: u32) -> Result<f64, FormatError> {
        let what = "a metadata float";
        Ok(if kind == 6 {
            f64::from(f32::from_le_bytes(self.array(what)?))
        } else {
            f64::from_le_bytes(self.array(what)?)
        })
    }

    fn boolean(&mut self) -> Result<bool, FormatError> {
        Ok(self.take(1, "a metadata bool")?[0] != 0)
    }

    fn tensor(&mut self) -> Result<(String, TensorType, Vec<usize>, u64), FormatError> {
        let name = self.string(MAX_NAME_BYTES, "a tensor's name")?;
        let n_dims =
            limited(u64::from(self.u32("a tensor's dimensions")?), MAX_DIMS, "the number of a tensor's dimensions")?;
        let mut shape = Vec::with_capacity(n_dims);
        for _ in 0..n_dims {
            let dim = self.u64("a tensor's dimensions")?;
            shape.push(usize::try_from(dim).map_err(|_| FormatError::Tensor {
                tensor: name.clone(),
                problem: format!("dimension {dim} is too large"),
            })?);
        }
        shape.reverse();
        let kind = self.u32("a tensor's type")?;
        let dtype = tensor_type(kind)
            .ok_or_else(|| FormatError::TensorType { tensor: name.clone(), found: format!("number {kind}") })?;
        Ok((name, dtype, shape, self.u64("a tensor's offset")?))
    }
}

/// `ggml_type` → type; sizes of those that are not computed with are known, so that files holding them can be listed.
fn tensor_type(kind: u32) -> Option<TensorType> {
    let opaque = |name, block_len, block_bytes| TensorType::Opaque { name, block_len, block_bytes };
    Some(match kind {
        0 => TensorType::F32,
        1 => TensorType::F16,
        2 => TensorType::Q4_0,
        3 => TensorType::Q4_1,
        6 => TensorType::Q5_0,
        7 => TensorType::Q5_1,
        8 => TensorType::Q8_0,
        9 => opaque("Q8_1", 32, 36),
        10 => TensorType::Q2K,
        11 => TensorType::Q3K,
        12 => TensorType::Q4K,
        13 => TensorType::Q5K,
        14 => TensorType::Q6K,
        15 => opaque("Q8_K", 256, 292),
        20 => TensorType::Iq4Nl,
        24 => opaque("I8", 1, 1),
        25 => opaque("I16", 1, 2),
        26 => opaque("I32", 1, 4),
        27 => opaque("I64", 1, 8),
        28 => opaque("F64", 1, 8),
        30 => TensorType::Bf16,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;
    use crate::format::gguf_write::GgufWriter;

    fn small_file() -> Vec<u8> {
        GgufWriter::new()
            .metadata("general.architecture", Value::Text("llama".into()))
            .metadata("a.count", Value::Int(7))
            .metadata("a.float", Value::Float(0.5))
            .metadata("a.flag", Value::Bool(true))
            .metadata("a.words", Value::Texts(vec!["x".into(), "yz".into()]))
            .metadata("a.ints", Value::Ints(vec![1, -2, 3]))
            .tensor("w", &[2, 32], TensorType::Q8_0, vec![1; 68])
            .tensor("v", &[3], TensorType::F32, vec![0; 12])
            .finish()
    }

    #[test]
    fn reads_what_was_written() {
        let bytes = small_file();
        let gguf = Gguf::parse(&bytes).unwrap();
        assert_eq!(gguf.text("general.architecture"), Some("llama"));
        assert_eq!(
            (gguf.count("a.count"), gguf.float("a.float"), gguf.flag("a.flag")),
            (Some(7), Some(0.5), Some(true))
        );
        assert_eq!(gguf.texts("a.words").unwrap(), ["x", "yz"]);
        assert_eq!(gguf.ints("a.ints").unwrap(), [1, -2, 3]);
        let w = gguf.tensor(&bytes, "w").unwrap();
        assert_eq!((w.dtype, w.shape, w.rows(), w.cols()), (TensorType::Q8_0, [2, 32].as_slice(), 2, 32));
        assert_eq!(w.row_bytes(1), [1; 34]);
        assert!(gguf.tensor(&bytes, "u").is_none());
    }

    fn refuses(bytes: &[u8], message: &str) {
        let error = Gguf::parse(bytes).unwrap_err().to_string();
        assert!(error.contains(message), "`{error}` does not say `{message}`");
    }

    #[test]
    fn refuses_lies_by_name() {
        refuses(b"", "no GGUF file");
        refuses(b"GGUF\x09\0\0\0", "version 9");
        let writer = GgufWriter::new;
        for alignment in [0, 3, 48, -1] {
            let bytes = writer().metadata("general.alignment", Value::Int(alignment)).finish();
            refuses(&bytes, "alignment");
        }
        refuses(&writer().metadata("k", Value::Int(1)).metadata("k", Value::Int(2)).finish(), "`k` stands twice");
        let twice =
            writer().tensor("t", &[1], TensorType::F32, vec![0; 4]).tensor("t", &[1], TensorType::F32, vec![0; 4]);
        refuses(&twice.finish(), "`t` stands twice");
        refuses(&writer().tensor("t", &[33], TensorType::Q4_0, vec![0; 18]).finish(), "no whole Q4_0 blocks");
        refuses(&writer().tensor("t", &[1 << 40, 1 << 40], TensorType::F32, vec![]).finish(), "overflow");
        refuses(&writer().tensor("t", &[1 << 20], TensorType::F32, vec![0; 4]).finish(), "the file has");
        refuses(&writer().tensor("t", &[1, 1, 1, 1, 1], TensorType::F32, vec![0; 4]).finish(), "the limit is 4");
        refuses(&writer().tensor(&"n".repeat(257), &[1], TensorType::F32, vec![0; 4]).finish(), "the limit is 256");
        assert!(Gguf::parse(&writer().tensor(&"n".repeat(256), &[1], TensorType::F32, vec![0; 4]).finish()).is_ok());
    }

    #[test]
    fn a_long_array_is_refused_before_it_is_allocated() {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(0u64.to_le_bytes());
        bytes.extend(1u64.to_le_bytes());
        bytes.extend(1u64.to_le_bytes());
        bytes.extend(b"k");
        bytes.extend(9u32.to_le_bytes());
        bytes.extend(8u32.to_le_bytes());
        let at = bytes.len();
        bytes.extend((MAX_ARRAY_LEN as u64).to_le_bytes());
        refuses(&bytes, "ends inside an array");
        bytes[at..].copy_from_slice(&(MAX_ARRAY_LEN as u64 + 1).to_le_bytes());
        refuses(&bytes, "the limit is");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn no_mutation_panics(flips in prop::collection::vec((0usize..2000, 0u8..=255), 0..6), cut in 0usize..2000, more in 0usize..40) {
            let mut bytes = small_file();
            for (at, value) in flips {
                let at = at % bytes.len();
                bytes[at] = value;
            }
            bytes.truncate(bytes.len().min(cut.max(1)));
            bytes.extend(vec![0xff; more]);
            if let Ok(gguf) = Gguf::parse(&bytes) {
                for name in gguf.tensors().keys() {
                    let _ = gguf.tensor(&bytes, name).unwrap().to_f32();
                }
            }
        }
    }
}
