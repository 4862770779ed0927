//! The trades: how a rung of the ladder is made. So far the linear ones.
//!
//! - [`linear`]: rows and classes → weights.
//! - [`ladder`]: which rungs run, with which settings, and which of them is the smallest that is good enough.

pub mod ladder;
pub mod linear;
