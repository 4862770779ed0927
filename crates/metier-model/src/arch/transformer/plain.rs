//! A decoder's weights as plain numbers, for whoever trains deltas over them.
//!
//! **Question:** which numbers make this network? **In:** a loaded [`Transformer`]. **Out:** dequantised matrices, `(n, k)` as model files
//! store them, rows of Q and K in the order of Transformers, where the halves of a head turn together: the order that PEFT's deltas are
//! in. **Absent:** networks that are more than Llama's blocks: they are refused by what they have beside them.

use super::{RopePairs, Transformer, TransformerConfig, blueprint::EMBEDDING};
use crate::arch::{WeightsError, config_error, finite};

/// One block.
#[derive(Clone, Debug, PartialEq)]
pub struct PlainLayer {
    /// (width)
    pub attention_norm: Vec<f32>,
    /// (heads · head_dim, width)
    pub q: Vec<f32>,
    /// (kv_heads · head_dim, width)
    pub k: Vec<f32>,
    /// (kv_heads · head_dim, width)
    pub v: Vec<f32>,
    /// (width, heads · head_dim)
    pub output: Vec<f32>,
    /// (width)
    pub ffn_norm: Vec<f32>,
    /// (inner, width)
    pub gate: Vec<f32>,
    /// (inner, width)
    pub up: Vec<f32>,
    /// (width, inner)
    pub down: Vec<f32>,
}

/// Weights of a decoder of Llama's blocks.
#[derive(Clone, Debug, PartialEq)]
pub struct PlainTransformer {
    /// The shape.
    pub config: TransformerConfig,
    /// (vocabulary, width)
    pub embedding: Vec<f32>,
    /// In order.
    pub layers: Vec<PlainLayer>,
    /// (width)
    pub output_norm: Vec<f32>,
    /// (vocabulary, width); `None`: the embedding table.
    pub head: Option<Vec<f32>>,
    /// Angles a position, one a pair.
    pub frequencies: Vec<f32>,
}

impl Transformer {
    /// The weights as numbers, read from the file again.
    ///
    /// # Errors
    ///
    /// Where the network has what Llama 2 and 3, SmolLM2 and Mistral without windows have not.
    pub fn plain(&self) -> Result<PlainTransformer, WeightsError> {
        let config = self.config;
        let beside = [
            (config.head_norms, "norms of heads"),
            (config.post_norms, "norms behind its blocks"),
            (config.window.is_some(), "windows"),
            (config.unturned_every != 0, "layers without positions"),
            (config.rope_strength != 1.0, "LongRoPE"),
            (self.layers.iter().any(|layer| layer.qkv.bias.is_some()), "biases"),
        ];
        if let Some((_, what)) = beside.into_iter().find(|(has, _)| *has) {
            return Err(config_error("model_type", format!("a network with {what} cannot be tuned yet")));
        }
        let of = |name: &str| -> Result<Vec<f32>, WeightsError> {
            let name = self.names.of(name).into_owned();
            finite(self.files.tensor(&name).ok_or(WeightsError::Missing(name))?)
        };
        let turned = |name: &str| -> Result<Vec<f32>, WeightsError> { Ok(in_halves(of(name)?, &config)) };
        let layer = |i: usize| -> Result<PlainLayer, WeightsError> {
            let name = |part: &str| format!("blk.{i}.{part}.weight");
            Ok(PlainLayer {
                attention_norm: self.layers[i].attention_norm.clone(),
                q: turned(&name("attn_q"))?,
                k: turned(&name("attn_k"))?,
                v: of(&name("attn_v"))?,
                output: of(&name("attn_output"))?,
                ffn_norm: self.layers[i].ffn_norm.clone(),
                gate: of(&name("ffn_gate"))?,
                up: of(&name("ffn_up"))?,
                down: of(&name("ffn_down"))?,
            })
        };
        let embedding = of(EMBEDDING)?;
        let head = if self.is_tied { None } else { Some(of("output.weight")?) };
        Ok(PlainTransformer {
            config,
            embedding,
            layers: (0..config.layers).map(layer).collect::<Result<_, _>>()?,
            output_norm: self.output_norm.clone(),
            head,
            frequencies: self.rope.frequencies().to_vec(),
        })
    }
}

/// Row `(head, j · pairs + i)` from row `(head, 2i + j)`, where the file has neighbours turn together.
fn in_halves(weights: Vec<f32>, config: &TransformerConfig) -> Vec<f32> {
    if config.rope_pairs == RopePairs::Halves {
        return weights;
    }
    let (width, head_dim, pairs) = (config.width, config.head_dim, config.rope_dims / 2);
    let mut out = weights.clone();
    for (to, from) in out.chunks_exact_mut(head_dim * width).zip(weights.chunks_exact(head_dim * width)) {
        for i in 0..pairs {
            for j in 0..2 {
                let row = &from[(2 * i + j) * width..][..width];
                to[(j * pairs + i) * width..][..width].copy_from_slice(row);
            }
        }
    }
    out
}
