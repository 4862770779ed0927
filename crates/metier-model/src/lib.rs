//! What a model is: its file formats, its tokens, its architectures, the engine that runs it, the specialist that is a
//! delta over it, and the proof of how sure one may be of its answers.
//!
//! Deliberately absent: threads of its own, clocks, randomness, sockets, the environment and the user's folders. Seeds and
//! verified paths are arguments.

pub mod chat;
pub mod digest;
pub mod progress;
pub mod sample;

pub use digest::Digest;
pub use progress::{Progress, Unit};
