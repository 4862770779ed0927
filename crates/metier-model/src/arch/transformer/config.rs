//! What network is this? Its shape, read from a file's metadata and checked.

use crate::{
    arch::{WeightsError, config_error, transformer::weights::EMBEDDING},
    cache::CacheShape,
    format::Gguf,
};

/// Layers, at most.
const MAX_LAYERS: usize = 512;
/// Elements of a hidden or inner row, at most.
const MAX_WIDTH: usize = 1 << 16;
/// Tokens of a context, at most.
const MAX_CONTEXT: usize = 1 << 20;

/// Shape of the network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TransformerConfig {
    /// Blocks.
    pub layers: usize,
    /// Elements of a hidden row.
    pub width: usize,
    /// Elements of a block's inner row.
    pub inner: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Elements of a head; a multiple of 16.
    pub head_dim: usize,
    /// Tokens that the model was trained to read at most.
    pub context: usize,
    /// Rows of the embedding table.
    pub vocabulary: usize,
    /// Base of the rotary angles.
    pub rope_base: f32,
    /// Added to the mean square.
    pub eps: f32,
}

impl TransformerConfig {
    pub(super) fn from_gguf(gguf: &Gguf) -> Result<Self, WeightsError> {
        let architecture = gguf.text("general.architecture").unwrap_or("");
        if architecture != "llama" {
            return Err(config_error(
                "general.architecture",
                format!("`{architecture}` is not supported, only `llama`"),
            ));
        }
        for unsupported in ["llama.rope.scaling.type", "llama.rope.scale_linear", "llama.expert_count"] {
            let harmless = matches!(gguf.text(unsupported), Some("none")) || gguf.count(unsupported) == Some(0);
            if gguf.metadata().contains_key(unsupported) && !harmless {
                return Err(config_error(unsupported, "is not supported"));
            }
        }
        let count = |key: &str, limit: usize| {
            let n = gguf.count(key).ok_or_else(|| config_error(key, "is missing or no count"))?;
            let problem = format!("{n} is not between 1 and {limit}");
            (1..=limit).contains(&n).then_some(n).ok_or_else(|| config_error(key, problem))
        };
        let width = count("llama.embedding_length", MAX_WIDTH)?;
        let heads = count("llama.attention.head_count", width)?;
        let kv_key = "llama.attention.head_count_kv";
        let kv_heads = if gguf.metadata().contains_key(kv_key) { count(kv_key, heads)? } else { heads };
        let head_dim = width / heads;
        if !width.is_multiple_of(heads) || !heads.is_multiple_of(kv_heads) || !head_dim.is_multiple_of(16) {
            let problem = format!(
                "{width} elements, {heads} heads and {kv_heads} key heads do not make heads of a multiple of 16"
            );
            return Err(config_error("llama.attention.head_count", problem));
        }
        for key in ["llama.rope.dimension_count", "llama.attention.key_length", "llama.attention.value_length"] {
            if gguf.count(key).is_some_and(|n| n != head_dim) {
                return Err(config_error(key, format!("only the whole head of {head_dim} is supported")));
            }
        }
        let eps = gguf.float("llama.attention.layer_norm_rms_epsilon").unwrap_or(1e-5) as f32;
        let rope_base = gguf.float("llama.rope.freq_base").unwrap_or(10_000.0) as f32;
        if !(eps > 0.0 && eps < 1.0 && rope_base >= 1.0 && rope_base.is_finite()) {
            return Err(config_error("llama.rope.freq_base", format!("epsilon {eps}, rotary base {rope_base}")));
        }
        let vocabulary = gguf.tensors().get(EMBEDDING).map_or(0, |t| t.shape.first().copied().unwrap_or(0));
        Ok(Self {
            layers: count("llama.block_count", MAX_LAYERS)?,
            width,
            inner: count("llama.feed_forward_length", MAX_WIDTH)?,
            heads,
            kv_heads,
            head_dim,
            context: count("llama.context_length", MAX_CONTEXT)?,
            vocabulary,
            rope_base,
            eps,
        })
    }

    /// Shape of its cache.
    pub fn cache(&self) -> CacheShape {
        CacheShape { layers: self.layers, kv_heads: self.kv_heads, head_dim: self.head_dim }
    }

    /// Elements of all query heads of a row.
    pub(super) fn q_len(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Elements of all key heads of a row, and of all value heads.
    pub(super) fn kv_len(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}
