//! The trades: how a rung of the ladder is made.
//!
//! - [`linear`]: rows and classes → weights.
//! - [`encoder`]: texts and classes → an encoder's layers.
//! - [`lora`]: prompts with answers → an adapter.
//! - [`trees`]: numbers and classes → boosted trees.
//! - [`pair`]: several inputs → how they agree → margins; and how margins of several makers become one.
//! - [`ladder`]: which rungs run, with which settings, and which of them is the smallest that is good enough.

pub mod encoder;
pub mod ladder;
pub mod linear;
pub mod lora;
pub mod pair;
pub mod trees;
