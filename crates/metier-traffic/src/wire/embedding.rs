//! Embeddings: request and answer. openai-python asks for base64 unless told otherwise.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::{
    MAX_CONTENT_BYTES, MAX_INPUTS, WireError,
    field::{self, invalid, missing, present, unsupported, wrong_type},
};

/// How the vectors are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EncodingFormat {
    /// An array of numbers.
    #[default]
    Float,
    /// Base64 of little-endian f32.
    Base64,
}

/// An embedding request within the limits of [`super`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbeddingRequest {
    /// The encoder's name.
    pub model: String,
    /// At least one text, none empty.
    pub input: Vec<String>,
    /// How the vectors are written.
    pub encoding_format: EncodingFormat,
    /// Length that is asked for; the gateway refuses any but the encoder's own.
    pub dimensions: Option<u32>,
}

impl EmbeddingRequest {
    /// Reads a request body. Token ids as input are refused: they belong to another tokenizer.
    pub fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        let map = field::object(bytes)?;
        let value = present(&map, "input").ok_or_else(|| missing("input"))?;
        let input = match value {
            Value::String(text) => vec![text.clone()],
            Value::Array(items) => {
                items.iter().enumerate().map(|(idx, item)| text(idx, item)).collect::<Result<_, _>>()?
            }
            other => return Err(wrong_type("input", "a string or an array of strings", other)),
        };
        if input.is_empty() || input.len() > MAX_INPUTS {
            return Err(invalid("input", format!("must hold 1 to {MAX_INPUTS} texts, not {}", input.len())));
        }
        if let Some(idx) = input.iter().position(|text| text.is_empty() || text.len() > MAX_CONTENT_BYTES) {
            let message = format!("must have 1 to {MAX_CONTENT_BYTES} bytes, not {}", input[idx].len());
            return Err(invalid(&format!("input[{idx}]"), message));
        }
        let encoding_format = match present(&map, "encoding_format") {
            None => EncodingFormat::Float,
            Some(Value::String(name)) if name == "float" => EncodingFormat::Float,
            Some(Value::String(name)) if name == "base64" => EncodingFormat::Base64,
            Some(_) => return Err(invalid("encoding_format", "must be `float` or `base64`")),
        };
        let dimensions = field::integer(&map, "dimensions", 1, 65_536)?.map(|n| n as u32);
        Ok(Self { model: field::model(&map)?, input, encoding_format, dimensions })
    }

    /// The request as canonical JSON: what the audit log commits to.
    pub fn to_body(&self) -> Value {
        json!({"model": self.model, "input": self.input})
    }
}

fn text(idx: usize, item: &Value) -> Result<String, WireError> {
    let path = format!("input[{idx}]");
    match item {
        Value::String(text) => Ok(text.clone()),
        Value::Number(_) | Value::Array(_) => Err(unsupported(&path, "must be a string: token ids are not supported")),
        other => Err(wrong_type(&path, "a string", other)),
    }
}

/// One vector, written as asked.
#[derive(Clone, Debug, PartialEq)]
pub enum EmbeddingVector {
    /// As numbers.
    Float(Vec<f32>),
    /// As base64 of little-endian f32.
    Base64(Vec<f32>),
}

impl Serialize for EmbeddingVector {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Float(values) => values.serialize(serializer),
            Self::Base64(values) => {
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                serializer.serialize_str(&BASE64_STANDARD.encode(bytes))
            }
        }
    }
}

/// One text's vector.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EmbeddingData {
    /// Always `embedding`.
    pub object: &'static str,
    /// Place of the text in the request.
    pub index: usize,
    /// The vector.
    pub embedding: EmbeddingVector,
}

/// Tokens read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct EmbeddingUsage {
    /// Tokens of all texts.
    pub prompt_tokens: u64,
    /// The same.
    pub total_tokens: u64,
}

/// The answer to `POST /v1/embeddings`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EmbeddingResponse {
    /// Always `list`.
    pub object: &'static str,
    /// One for each text, in order.
    pub data: Vec<EmbeddingData>,
    /// The encoder.
    pub model: String,
    /// Tokens.
    pub usage: EmbeddingUsage,
}

impl EmbeddingResponse {
    /// Vectors of one encoder, written as asked.
    pub fn new(model: String, vectors: Vec<Vec<f32>>, format: EncodingFormat, prompt_tokens: u64) -> Self {
        let wrap = match format {
            EncodingFormat::Float => EmbeddingVector::Float,
            EncodingFormat::Base64 => EmbeddingVector::Base64,
        };
        let data = vectors
            .into_iter()
            .enumerate()
            .map(|(index, vector)| EmbeddingData { object: "embedding", index, embedding: wrap(vector) })
            .collect();
        Self { object: "list", data, model, usage: EmbeddingUsage { prompt_tokens, total_tokens: prompt_tokens } }
    }
}
