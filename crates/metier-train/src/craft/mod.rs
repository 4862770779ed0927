//! The trades: how a rung of the ladder is made.
//!
//! - [`linear`]: rows and classes → weights.
//! - [`encoder`]: texts and classes → an encoder's layers.
//! - [`lora`]: prompts with answers → an adapter.
//! - [`span`]: texts with tagged words → an encoder's layers and a head over its rows; [`lookup`]: what that must beat.
//! - [`decoder`]: texts and classes → an adapter, and which layers it needs; [`reading`]: what the engine makes of texts under it.
//! - [`teaching`]: answers → what a teacher says of each of their tokens.
//! - `epochs`: the loop by which encoders are tuned; [`checkpoint`]: where training was when it was killed.
//! - [`writing`]: texts → answers, written by the engine; [`canary`]: does it write what it should keep to itself?
//! - [`quantise`]: a decoder and texts → its maps in four bits.
//! - [`trees`]: numbers and classes → boosted trees.
//! - [`pair`]: several inputs → how they agree → margins; and how margins of several makers become one.
//! - `fused`: a head on n-grams and one on tuned vectors → one head.
//! - [`sets`]: the rungs of rows with several labels.
//! - [`ladder`]: which rungs run, with which settings, and which of them is the smallest that is good enough.

pub mod canary;
pub mod checkpoint;
pub mod decoder;
pub mod encoder;
mod epochs;
mod fused;
pub mod ladder;
pub mod linear;
pub mod lookup;
pub mod lora;
pub mod pair;
pub mod quantise;
pub mod reading;
pub mod sets;
pub mod span;
pub mod teaching;
pub mod trees;
pub mod writing;
