//! Decoders of the Llama kind (Touvron et al. 2023): pre-norm blocks, rotary positions, grouped queries, gated feed-forward.
//!
//! ```text
//! x = s·embedding[id]
//! each layer:  x += post(O·attention(rope(n(Q·h)), rope(n(K·h)), V·h)),  h = rms(x)
//!              x += post(D·(act(G·h) ∘ U·h)),                            h = rms(x)
//! logits = E·rms(x)
//! ```
//!
//! | | differs by |
//! |---|---|
//! | Llama 2, SmolLM2 | `s` = 1, no `n`, no `post`, act = SiLU |
//! | Llama 3 | frequencies divided by a tensor |
//! | Mistral | heads wider than width / heads; some have a window |
//! | SmolLM3 | every 4th layer is not turned |
//! | Qwen 2.5 | biases of Q, K, V |
//! | Qwen 3 | `n`: norm of each head |
//! | Phi-3, Phi-4-mini | fused tensors; only a part of a head is turned; LongRoPE's short factors |
//! | Gemma 3 | `s` = √width, `n`, `post`: norms, act = GELU, five of six layers have a window and their own frequencies |
//!
//! `blueprint` says what a container's network is (`settings` and `config`: its numbers; `hugging_face`: what `config.json` says in
//! these words), `weights` finds and packs its tensors, `rope` knows the angles, `forward` computes.
//!
//! Cost of one decoded token of SmolLM2-135M at its own bits: 106.2 M layer weights of 5 bits and a head of 28.3 M weights of
//! 8.5 bits = 96 MB; at 29 GB/s at most 300 tokens/s.

mod blueprint;
mod config;
mod forward;
mod hugging_face;
mod plain;
mod rope;
mod settings;
mod weights;

pub(crate) use blueprint::Blueprint;

pub use config::{Activation, RopePairs, TransformerConfig, Window};
pub(crate) use forward::{Outputs, Workspace};
pub use plain::{PlainLayer, PlainTransformer};
use weights::Layer;

use super::linear::Linear;
pub use super::linear::WeightFormat;
use crate::{
    adapter::Adapter,
    cache::{KvFormat, KvSequence},
    files::{Place, TensorFiles},
    format::Tensor,
    tokenizer::TokenId,
};

/// The network. The embedding table is read from the mapped file, row by row; the rest is packed.
pub struct Transformer {
    config: TransformerConfig,
    files: TensorFiles,
    embedding: Place,
    layers: Vec<Layer>,
    output_norm: Vec<f32>,
    head: Linear,
    /// The embedding table is the head as well.
    is_tied: bool,
    rope: rope::Rope,
    names: blueprint::Names,
}

/// Consecutive tokens of one sequence, to be read behind what its cache holds.
pub struct Span<'a> {
    /// At least one; the cache must have room for them.
    pub tokens: &'a [TokenId],
    /// What the sequence read before; these tokens are added.
    pub cache: &'a mut KvSequence,
    /// So many of its last rows get logits, or are given back; none where more of the prompt follows.
    pub wanted: usize,
    /// Deltas of its rows. Neighbouring spans of one adapter share their passes over its weights.
    pub adapter: Option<&'a Adapter>,
    /// Its wanted rows are given back as they are behind the last norm, without logits.
    pub hidden: bool,
}

impl Transformer {
    /// Shape of the network.
    pub fn config(&self) -> &TransformerConfig {
        &self.config
    }

    /// Keys and values kept so.
    pub(crate) fn with_kv(mut self, format: KvFormat) -> Self {
        self.config.kv_format = format;
        self
    }

    fn table(&self) -> Tensor<'_> {
        self.files.at(blueprint::EMBEDDING, &self.embedding)
    }
}
