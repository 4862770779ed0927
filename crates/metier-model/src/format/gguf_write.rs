//! Writes small GGUF files: models made in code for tests, and lies for the parser.

use super::{TensorType, gguf::Value};

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
