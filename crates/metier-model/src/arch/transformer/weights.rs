//! Which tensors make the network, and do they fit its configuration?

use std::{cell::RefCell, collections::BTreeSet};

use super::{Transformer, TransformerConfig, WeightFormat, rope::Rope};
use crate::{
    arch::{WeightsError, config_error, expect_shape, finite, linear::Linear},
    base::Bytes,
    format::{Gguf, Tensor},
};

pub(super) const EMBEDDING: &str = "token_embd.weight";

pub(super) struct Layer {
    pub(super) attention_norm: Vec<f32>,
    pub(super) qkv: Linear, // rows: Q, K, V under each other
    /// Weights of a query head's norm and of a key head's: (head_dim).
    pub(super) head_norms: Option<[Vec<f32>; 2]>,
    pub(super) output: Linear,
    pub(super) post_attention_norm: Option<Vec<f32>>,
    pub(super) ffn_norm: Vec<f32>,
    pub(super) gate_up: Linear, // rows: gate, up under each other
    pub(super) down: Linear,
    pub(super) post_ffn_norm: Option<Vec<f32>>,
}

/// Takes tensors out of a file and remembers which: what is left over would be a network that is not computed here.
struct Loader<'a> {
    bytes: &'a [u8],
    gguf: &'a Gguf,
    format: WeightFormat,
    taken: RefCell<BTreeSet<String>>,
}

impl<'a> Loader<'a> {
    fn has(&self, name: &str) -> bool {
        self.gguf.tensors().contains_key(name)
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor<'a>, WeightsError> {
        self.taken.borrow_mut().insert(name.to_owned());
        expect_shape(self.gguf.tensor(self.bytes, name), name, shape)
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, WeightsError> {
        finite(self.tensor(name, &[len])?)
    }

    /// The rows of several maps of one input under each other; `parts`: (name, outputs). Biases are taken if they are there.
    fn linear(&self, parts: &[(String, usize)], k: usize) -> Result<Linear, WeightsError> {
        let tensors = parts
            .iter()
            .map(|(name, n)| self.tensor(&format!("{name}.weight"), &[*n, k]))
            .collect::<Result<Vec<_>, _>>()?;
        let mut linear = Linear::pack(&tensors, self.format)?;
        if parts.iter().any(|(name, _)| self.has(&format!("{name}.bias"))) {
            let biases = parts.iter().map(|(name, n)| self.vector(&format!("{name}.bias"), *n));
            linear.bias = Some(biases.collect::<Result<Vec<_>, _>>()?.concat());
        }
        Ok(linear)
    }

    fn layer(&self, config: &TransformerConfig, i: usize) -> Result<Layer, WeightsError> {
        let TransformerConfig { width, inner, head_dim, .. } = *config;
        let (q_len, kv_len) = (config.q_len(), config.kv_len());
        let name = |part: &str| format!("blk.{i}.{part}");
        let norm = |part: &str, len: usize| self.vector(&name(&format!("{part}.weight")), len);
        let post = |part: &str| config.post_norms.then(|| norm(part, width)).transpose();
        // Phi-3's files hold Q, K and V in one tensor, gate and up in another.
        let qkv = if self.has(&name("attn_qkv.weight")) {
            vec![(name("attn_qkv"), q_len + 2 * kv_len)]
        } else {
            vec![(name("attn_q"), q_len), (name("attn_k"), kv_len), (name("attn_v"), kv_len)]
        };
        let gate_up = if self.has(&name("ffn_gate.weight")) || !self.has(&name("attn_qkv.weight")) {
            vec![(name("ffn_gate"), inner), (name("ffn_up"), inner)]
        } else {
            vec![(name("ffn_up"), 2 * inner)]
        };
        let head_norms = if config.head_norms {
            Some([norm("attn_q_norm", head_dim)?, norm("attn_k_norm", head_dim)?])
        } else {
            None
        };
        Ok(Layer {
            attention_norm: norm("attn_norm", width)?,
            qkv: self.linear(&qkv, width)?,
            head_norms,
            output: self.linear(&[(name("attn_output"), width)], q_len)?,
            post_attention_norm: post("post_attention_norm")?,
            ffn_norm: norm("ffn_norm", width)?,
            gate_up: self.linear(&gate_up, width)?,
            down: self.linear(&[(name("ffn_down"), width)], inner)?,
            post_ffn_norm: post("post_ffw_norm")?,
        })
    }

    /// What rotary frequencies are divided by, one a pair.
    fn rope_divisors(&self, pairs: usize) -> Result<Option<Vec<f32>>, WeightsError> {
        let [llama3, short, long] = ["rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"];
        let mut divisors = None;
        for name in [llama3, long, short].into_iter().filter(|name| self.has(name)) {
            let factors = self.vector(name, pairs)?;
            if factors.iter().any(|factor| *factor <= 0.0) {
                return Err(config_error(name, "holds a factor that is not above 0"));
            }
            divisors = Some(factors);
        }
        Ok(divisors)
    }

    fn nothing_is_left(&self) -> Result<(), WeightsError> {
        let taken = self.taken.borrow();
        match self.gguf.tensors().keys().find(|name| !taken.contains(*name)) {
            None => Ok(()),
            Some(name) => {
                let architecture = self.gguf.text("general.architecture").unwrap_or("");
                Err(config_error(
                    "general.architecture",
                    format!(
                        "the file holds `{name}`, which is no part of a `{architecture}` network as it is known here"
                    ),
                ))
            }
        }
    }
}

/// A table that every row can be read from.
fn check_table(table: Tensor<'_>) -> Result<(), WeightsError> {
    let mut row = vec![0.0; table.cols()];
    for i in 0..table.rows() {
        if !table.read_row(i, &mut row) {
            return Err(table.unsupported().into());
        }
        if !row.iter().all(|x| x.is_finite()) {
            return Err(WeightsError::NotFinite(table.name.to_owned()));
        }
    }
    Ok(())
}

impl Transformer {
    /// Checks config and weights against each other and packs them.
    pub(crate) fn load(bytes: Bytes, gguf: &Gguf, format: WeightFormat) -> Result<Self, WeightsError> {
        let (config, family) = TransformerConfig::from_gguf(gguf)?;
        let width = config.width;
        let loader = Loader { bytes: &bytes, gguf, format, taken: RefCell::default() };
        let table = loader.tensor(EMBEDDING, &[config.vocabulary, width])?;
        check_table(table)?;
        let head = if loader.has("output.weight") {
            loader.linear(&[("output".to_owned(), config.vocabulary)], width)?
        } else {
            Linear::pack(&[table], format)?
        };
        let layers = (0..config.layers).map(|i| loader.layer(&config, i)).collect::<Result<Vec<_>, _>>()?;
        if let Some(i) = layers.iter().position(|layer| family.qkv_bias && layer.qkv.bias.is_none()) {
            return Err(WeightsError::Missing(format!("blk.{i}.attn_q.bias")));
        }
        let output_norm = loader.vector("output_norm.weight", width)?;
        let divisors = loader.rope_divisors(config.rope_dims / 2)?;
        loader.nothing_is_left()?;
        let rope = Rope::new(&config, divisors.as_deref());
        let embedding = gguf.tensors()[EMBEDDING].clone();
        bytes.release();
        Ok(Self { config, bytes, embedding, layers, output_norm, head, rope })
    }
}
