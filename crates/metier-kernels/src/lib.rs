//! How fast can this CPU multiply? Arithmetic on slices, a pool of threads with cores of their own, mapped files.
//!
//! **In:** plain slices and shapes. **Out:** plain slices. **Absent:** models, layers, files' formats, allocation policy;
//! whoever calls knows what a number means, this crate knows only how to multiply it.
//!
//! # One source, three tiers, one answer
//!
//! Every kernel is written once over `lanes::Lanes`, sixteen f32 lanes (or sixteen i32 accumulators), and compiled for
//! each [`Tier`]: plain arrays, AVX2, AVX-512 with VNNI. A lane never talks to another lane except through one fixed tree,
//! products are always fused with their sum (`mul_add`), integer dots are exact, and each output is summed over `k` in
//! ascending order. So tiers agree **bit for bit**, and a row of a batch equals the row computed alone. The one exception
//! is [`matmul_f32`], which wraps the `gemm` crate for training: it is faster on big matrices and promises neither.
//!
//! # Matmul convention
//!
//! `y[m][n] = Σ_k x[m][k] · w[n][k]`: weights lie as model files store them, one row an output. They are repacked once, at
//! load, into panels of [`PANEL`] outputs ([`dense::DenseMatrix`], [`quant::QuantMatrix`]).
//!
//! This is the only crate of metier with `unsafe` code.

#![allow(clippy::needless_range_loop, reason = "tiles index several arrays of constant size at once")]

#[macro_use]
mod dispatch;
pub mod attention;
pub mod backward;
pub mod ceilings;
pub mod dense;
pub mod elementwise;
mod gemm_f32;
mod lanes;
pub mod lora;
mod mapped;
mod math;
mod memory;
mod pool;
pub mod quant;
mod tier;

pub use gemm_f32::{MatMut, MatRef, Target, matmul_alone_f32, matmul_f32};
pub use mapped::Mapped;
pub use pool::Pool;
pub use tier::{Isa, Tier, UnknownTier};

/// Outputs in one panel of packed weights: one AVX-512 register of f32.
pub const PANEL: usize = 16;

/// Weights (and activations) that share one scale, as in GGUF's block formats.
pub const BLOCK: usize = 32;
