//! Which tensors make the network, and do they fit its configuration?

use super::{Transformer, TransformerConfig, WeightFormat};
use crate::{
    arch::{WeightsError, expect_shape, finite, linear::Linear},
    base::Bytes,
    format::Gguf,
};

pub(super) const EMBEDDING: &str = "token_embd.weight";

pub(super) struct Layer {
    pub(super) attention_norm: Vec<f32>,
    pub(super) qkv: Linear, // rows: Q, K, V under each other
    pub(super) output: Linear,
    pub(super) ffn_norm: Vec<f32>,
    pub(super) gate_up: Linear, // rows: gate, up under each other
    pub(super) down: Linear,
}

impl Transformer {
    /// Checks config and weights against each other and packs them.
    pub(crate) fn load(bytes: Bytes, gguf: &Gguf, format: WeightFormat) -> Result<Self, WeightsError> {
        let config = TransformerConfig::from_gguf(gguf)?;
        let TransformerConfig { width, inner, .. } = config;
        let tensor = |name: &str, shape: &[usize]| expect_shape(gguf.tensor(&bytes, name), name, shape);
        let table = tensor(EMBEDDING, &[config.vocabulary, width])?;
        let mut row = vec![0.0; width];
        for i in 0..table.rows() {
            if !table.read_row(i, &mut row) {
                return Err(table.unsupported().into());
            }
            if !row.iter().all(|x| x.is_finite()) {
                return Err(WeightsError::NotFinite(EMBEDDING.to_owned()));
            }
        }
        let head = match gguf.tensor(&bytes, "output.weight") {
            Some(_) => Linear::pack(&[tensor("output.weight", &[config.vocabulary, width])?], format)?,
            None => Linear::pack(&[table], format)?,
        };
        let mut layers = Vec::with_capacity(config.layers);
        for i in 0..config.layers {
            let part = |part: &str, shape: &[usize]| tensor(&format!("blk.{i}.{part}.weight"), shape);
            layers.push(Layer {
                attention_norm: finite(part("attn_norm", &[width])?)?,
                qkv: Linear::pack(
                    &[
                        part("attn_q", &[config.q_len(), width])?,
                        part("attn_k", &[config.kv_len(), width])?,
                        part("attn_v", &[config.kv_len(), width])?,
                    ],
                    format,
                )?,
                output: Linear::pack(&[part("attn_output", &[width, config.q_len()])?], format)?,
                ffn_norm: finite(part("ffn_norm", &[width])?)?,
                gate_up: Linear::pack(&[part("ffn_gate", &[inner, width])?, part("ffn_up", &[inner, width])?], format)?,
                down: Linear::pack(&[part("ffn_down", &[width, inner])?], format)?,
            });
        }
        let output_norm = finite(tensor("output_norm.weight", &[width])?)?;
        let embedding = gguf.tensors()[EMBEDDING].clone();
        let exponent = |i: usize| -2.0 * i as f64 / config.head_dim as f64;
        let frequencies =
            (0..config.head_dim / 2).map(|i| f64::from(config.rope_base).powf(exponent(i)) as f32).collect();
        bytes.release();
        Ok(Self { config, bytes, embedding, layers, output_norm, head, frequencies })
    }
}
