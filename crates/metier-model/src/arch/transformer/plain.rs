//! A decoder's weights as plain numbers, for whoever trains deltas over them.
//!
//! **Question:** which numbers make this network? **In:** a loaded [`Transformer`]. **Out:** dequantised matrices, `(n, k)` as model files
//! store them, rows of Q and K in the order of Transformers, where the halves of a head turn together: the order that PEFT's deltas are
//! in. **Absent:** files that hold several of the seven maps as one tensor (Phi): deltas for one of them would have no name.

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
    /// Of Q, K and V, one an output.
    pub qkv_bias: Option<[Vec<f32>; 3]>,
    /// Weights of a query head's norm and of a key head's, before they are turned: (head_dim).
    pub head_norms: Option<[Vec<f32>; 2]>,
    /// (width): what attention returns is normed before it is added.
    pub post_attention_norm: Option<Vec<f32>>,
    /// (width): likewise what the feed-forward half returns.
    pub post_ffn_norm: Option<Vec<f32>>,
    /// Positions that a row sees, itself included; `None`: all.
    pub window: Option<usize>,
    /// By which of the network's lists of angles it turns; `None`: it does not.
    pub turns: Option<usize>,
}

/// Weights of a decoder.
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
    /// Lists of angles a position, one a pair: of layers that see everything; where they differ, of those with a window.
    pub frequencies: Vec<Vec<f32>>,
}

impl Transformer {
    /// The weights as numbers, read from the file again.
    ///
    /// # Errors
    ///
    /// Where the file's maps are fused, or it cannot be read.
    pub fn plain(&self) -> Result<PlainTransformer, WeightsError> {
        let config = self.config;
        if !self.files.has(&self.names.of("blk.0.attn_q.weight")) {
            let what = "a network whose file has several maps as one tensor cannot be tuned yet: deltas for one of them would have no name";
            return Err(config_error("model_type", what));
        }
        let of = |name: &str| -> Result<Vec<f32>, WeightsError> {
            let name = self.names.of(name).into_owned();
            finite(self.files.tensor(&name).ok_or(WeightsError::Missing(name))?)
        };
        let turned = |name: &str| -> Result<Vec<f32>, WeightsError> { Ok(in_halves(of(name)?, &config)) };
        let lists: Vec<Vec<f32>> =
            self.rope.frequencies().chunks_exact(config.rope_dims / 2).map(<[f32]>::to_vec).collect();
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
                qkv_bias: self.layers[i].qkv.bias.as_deref().map(|bias| {
                    let (q, kv) = bias.split_at(config.q_len());
                    let (k, v) = kv.split_at(config.kv_len());
                    [q, k, v].map(<[f32]>::to_vec)
                }),
                head_norms: self.layers[i].head_norms.clone(),
                post_attention_norm: self.layers[i].post_attention_norm.clone(),
                post_ffn_norm: self.layers[i].post_ffn_norm.clone(),
                window: config.window_of(i),
                turns: config.turns(i).then_some(match config.window_of(i) {
                    Some(_) => lists.len() - 1,
                    None => 0,
                }),
            })
        };
        let layers = (0..config.layers).map(layer).collect::<Result<_, _>>()?;
        let embedding = of(EMBEDDING)?;
        let head = if self.is_tied { None } else { Some(of("output.weight")?) };
        Ok(PlainTransformer {
            config,
            embedding,
            layers,
            output_norm: self.output_norm.clone(),
            head,
            frequencies: lists,
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
