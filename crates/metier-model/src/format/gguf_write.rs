//! Writes small GGUF files: models made in code for tests, and lies for the parser.

use super::{FormatError, Gguf, TensorType, gguf::Value};

const ALIGNMENT: usize = 32;

/// A GGUF file in the making.
#[derive(Default)]
pub struct GgufWriter {
    metadata: Vec<(String, Value)>,
    tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

impl GgufWriter {
    /// An empty file.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a metadata entry.
    #[must_use]
    pub fn metadata(mut self, key: &str, value: Value) -> Self {
        self.metadata.push((key.to_owned(), value));
        self
    }

    /// Adds a tensor; `shape` is outermost first. Nothing is checked: the reader's tests need lies.
    ///
    /// # Panics
    ///
    /// For types that are not computed with.
    #[must_use]
    pub fn tensor(mut self, name: &str, shape: &[u64], dtype: TensorType, bytes: Vec<u8>) -> Self {
        let kind = match dtype {
            TensorType::F32 => 0,
            TensorType::F16 => 1,
            TensorType::Q4_0 => 2,
            TensorType::Q4_1 => 3,
            TensorType::Q5_0 => 6,
            TensorType::Q5_1 => 7,
            TensorType::Q8_0 => 8,
            TensorType::Q2K => 10,
            TensorType::Q3K => 11,
            TensorType::Q4K => 12,
            TensorType::Q5K => 13,
            TensorType::Q6K => 14,
            TensorType::Iq4Nl => 20,
            TensorType::Bf16 => 30,
            TensorType::Opaque { name, .. } => panic!("{name} is not written"),
        };
        self.tensors.push((name.to_owned(), shape.iter().rev().copied().collect(), kind, bytes));
        self
    }

    /// The file.
    pub fn finish(self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            string(&mut out, key);
            write_value(&mut out, value);
        }
        let mut offset = 0usize;
        for (name, dims, kind, bytes) in &self.tensors {
            string(&mut out, name);
            out.extend((dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend((offset as u64).to_le_bytes());
            offset = (offset + bytes.len()).next_multiple_of(ALIGNMENT);
        }
        for (.., bytes) in &self.tensors {
            out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
            out.extend(bytes);
        }
        out
    }
}

/// A tensor to be written: name, shape outermost first, type, bytes.
pub type NewTensor<'a> = (&'a str, Vec<u64>, TensorType, Vec<u8>);

/// A file with other tensors and the metadata of `bytes`, byte by byte; `general.file_type` alone is set to `file_type` where it is there.
///
/// # Errors
///
/// Where `bytes` is not the file of `index`.
pub fn rewrite(
    bytes: &[u8],
    index: &Gguf,
    file_type: u32,
    tensors: Vec<NewTensor<'_>>,
) -> Result<Vec<u8>, FormatError> {
    const HEADER: usize = 4 + 4 + 8 + 8;
    let range = index.metadata_range();
    let metadata = bytes.get(range).ok_or(FormatError::Truncated("the metadata"))?;
    let mut writer = GgufWriter::new();
    for (name, shape, dtype, bytes) in tensors {
        writer = writer.tensor(name, &shape, dtype, bytes);
    }
    let (alignment, n_tensors) = (index.alignment(), writer.tensors.len() as u64);
    // What the writer makes of no metadata: its header, then the list of tensors, then their bytes.
    let mut out = Vec::with_capacity(HEADER + metadata.len());
    out.extend(b"GGUF");
    out.extend(bytes.get(4..8).ok_or(FormatError::Truncated("the version"))?);
    out.extend(n_tensors.to_le_bytes());
    out.extend((index.metadata().len() as u64).to_le_bytes());
    let start = out.len();
    out.extend(metadata);
    let key = "general.file_type";
    let mut entry = (key.len() as u64).to_le_bytes().to_vec();
    entry.extend(key.as_bytes());
    entry.extend(4u32.to_le_bytes());
    if let Some(at) = metadata.windows(entry.len()).position(|window| window == entry) {
        let at = start + at + entry.len();
        if let Some(value) = out.get_mut(at..at + 4) {
            value.copy_from_slice(&file_type.to_le_bytes());
        }
    }
    let mut offset = 0usize;
    for (name, dims, kind, bytes) in &writer.tensors {
        string(&mut out, name);
        out.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
        out.extend(kind.to_le_bytes());
        out.extend((offset as u64).to_le_bytes());
        offset = (offset + bytes.len()).next_multiple_of(alignment);
    }
    for (.., bytes) in &writer.tensors {
        out.resize(out.len().next_multiple_of(alignment), 0);
        out.extend(bytes);
    }
    Ok(out)
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn write_value(out: &mut Vec<u8>, value: &Value) {
    let mut array = |kind: u32, len: usize| {
        out.extend(9u32.to_le_bytes());
        out.extend(kind.to_le_bytes());
        out.extend((len as u64).to_le_bytes());
    };
    match value {
        Value::Int(n) if u32::try_from(*n).is_ok() => {
            out.extend(4u32.to_le_bytes());
            out.extend((*n as u32).to_le_bytes());
        }
        Value::Int(n) => {
            out.extend(11u32.to_le_bytes());
            out.extend(n.to_le_bytes());
        }
        Value::BigUint(n) => {
            out.extend(10u32.to_le_bytes());
            out.extend(n.to_le_bytes());
        }
        Value::Float(x) => {
            out.extend(12u32.to_le_bytes());
            out.extend(x.to_le_bytes());
        }
        Value::Bool(x) => {
            out.extend(7u32.to_le_bytes());
            out.push(u8::from(*x));
        }
        Value::Text(text) => {
            out.extend(8u32.to_le_bytes());
            string(out, text);
        }
        Value::Ints(ints) => {
            array(11, ints.len());
            ints.iter().for_each(|n| out.extend(n.to_le_bytes()));
        }
        Value::Floats(floats) => {
            array(12, floats.len());
            floats.iter().for_each(|x| out.extend(x.to_le_bytes()));
        }
        Value::Bools(bools) => {
            array(7, bools.len());
            out.extend(bools.iter().map(|x| u8::from(*x)));
        }
        Value::Texts(texts) => {
            array(8, texts.len());
            texts.iter().for_each(|text| string(out, text));
        }
    }
}
