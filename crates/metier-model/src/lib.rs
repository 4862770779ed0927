//! What a model is: its file formats, its tokens, its architectures, the engine that runs it, the specialist that is a
//! delta over it, and the proof of how sure one may be of its answers.
//!
//! Deliberately absent: threads of its own, clocks, randomness, sockets, the environment and the user's folders. Seeds and
//! verified paths are arguments.

pub mod adapter;
pub mod arch;
mod base;
pub mod cache;
pub mod chat;
pub mod decoder;
pub mod digest;
pub mod encoder;
pub mod engine;
pub mod export;
pub mod extract;
pub mod features;
mod files;
pub mod format;
pub mod grammar;
pub mod head;
pub mod packed;
pub mod pairs;
pub mod progress;
pub mod proof;
pub mod sample;
pub mod specialist;
pub mod tiny;
pub mod tokenizer;

pub use adapter::{Adapter, AdapterError, LoraFormat};
pub use base::BaseId;
pub use decoder::{Decoder, DecoderError};
pub use digest::Digest;
pub use encoder::{Encoder, EncoderError, EncoderWeights};
pub use engine::{Engine, EngineLimits};
pub use packed::{PackedCache, PackedOutcome};
pub use progress::{Progress, Unit};
pub use specialist::{Answer, AnswerError, Specialist, SpecialistStore};
pub use tokenizer::{TokenId, Tokenizer};
