//! What goes over the wire: the OpenAI protocol's chat completions, embeddings, models and errors as plain types.
//!
//! Which question: *what exactly did the client ask, and how must the answer look?* In go bytes; out come typed requests or an
//! error that names the field, in the protocol's own shape. Deliberately absent: HTTP, status codes, and any model. A request is
//! parsed by hand from JSON rather than derived, because a derived error cannot name `messages[3].content[0].type`.

mod chat;
mod embedding;
mod error;
mod field;
mod models;
mod reply;

pub use chat::{ChatRequest, LabelScores, Message, ResponseFormat, Role};
pub use embedding::{
    EmbeddingData, EmbeddingRequest, EmbeddingResponse, EmbeddingUsage, EmbeddingVector, EncodingFormat,
};
pub use error::{ErrorBody, ErrorObject, WireError};
pub use models::{ModelEntry, ModelList};
pub use reply::{
    ChatChoice, ChatChunk, ChatResponse, ChoiceLogprobs, ChunkChoice, Delta, FinishReason, LabelLogprob,
    ResponseMessage, TokenLogprob, TopLogprob, Usage,
};

/// Largest request body that is parsed, in bytes. The server may set a smaller one.
pub const MAX_BODY_BYTES: usize = 8 << 20;
/// Most messages in one conversation.
pub const MAX_MESSAGES: usize = 1024;
/// Most text parts in one message.
pub const MAX_PARTS: usize = 256;
/// Longest text of one message, in bytes.
pub const MAX_CONTENT_BYTES: usize = 2 << 20;
/// Most stop strings, as the protocol says.
pub const MAX_STOPS: usize = 4;
/// Longest stop string, in bytes.
pub const MAX_STOP_BYTES: usize = 256;
/// Most choices that one request may ask for: unbounded `n` is a known way to exhaust a server (CVE-2026-34756).
pub const MAX_CHOICES: u32 = 8;
/// Most tokens that one request may ask for. The context of the model is the tighter limit.
pub const MAX_TOKENS: u32 = 1 << 20;
/// Bound of frequency and presence penalty, both ways, as the protocol says.
pub const MAX_PENALTY: f64 = 2.0;
/// Least and greatest repetition penalty; 1 is none.
pub const REPETITION_PENALTY: [f64; 2] = [0.1, 10.0];
/// Bound of what is added to a token's logit, both ways, as the protocol says.
pub const MAX_BIAS: f64 = 100.0;
/// Most tokens whose logits one request moves.
pub const MAX_BIASED: usize = 1024;
/// Most alternatives a token, as the protocol says.
pub const MAX_TOP_LOGPROBS: u8 = 20;
/// Longest model name, in bytes.
pub const MAX_MODEL_BYTES: usize = 256;
/// Largest JSON schema of a `response_format`, in bytes.
pub const MAX_SCHEMA_BYTES: usize = 64 << 10;
/// Most texts in one embedding request, as the protocol says.
pub const MAX_INPUTS: usize = 2048;
/// Deepest nesting of arrays and objects in a body. The JSON parser itself refuses more than 127.
pub const MAX_NESTING: usize = 64;
