//! The trades: how a rung of the ladder is made.
//!
//! - [`linear`]: rows and classes → weights.
//! - [`encoder`]: texts and classes → an encoder's layers.
//! - [`lora`]: prompts with answers → an adapter.
//! - [`checkpoint`]: where training was when it was killed.
//! - [`writing`]: texts → answers, written by the engine.
//! - [`ladder`]: which rungs run, with which settings, and which of them is the smallest that is good enough.

pub mod checkpoint;
pub mod encoder;
pub mod ladder;
pub mod linear;
pub mod lora;
pub mod writing;
