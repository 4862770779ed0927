//! Which tensors of the file are this network's, under whose names? Checked against the configuration and packed.

use metier_kernels::{Pool, dense, quant::QuantRows};

use super::{
    super::{
        WeightsError, expect_shape, finite,
        linear::{Matrix, WeightFormat},
    },
    config::{BertConfig, Biases, Family, Positions},
};
use crate::format::{Safetensors, Tensor, TensorType};

pub(super) struct Norm {
    pub(super) weight: Vec<f32>,
    /// Zeros where the network has none.
    pub(super) bias: Vec<f32>,
}

pub(super) struct Linear {
    pub(super) weight: Matrix,
    pub(super) bias: Option<Vec<f32>>,
}

impl Linear {
    /// `out[m][n] = Σ_k x[m][k] · w[n][k]`, with the bias from the start where weights are f32. What is returned is still to be added
    /// to every row, by whoever reads the rows next: nothing, or the bias of 8-bit weights.
    #[must_use]
    pub(super) fn apply(&self, pool: &Pool, x: &[f32], quants: &mut QuantRows, out: &mut [f32]) -> &[f32] {
        let bias = self.bias.as_deref();
        match &self.weight {
            Matrix::Dense(weight) => {
                dense::matmul(pool, x, weight, bias, out);
                &[]
            }
            Matrix::Quant(_) => {
                self.weight.apply_into(pool, x, quants, out);
                bias.unwrap_or_default()
            }
        }
    }
}

pub(super) struct Layer {
    /// Before attention or behind it, as the family has it; `None`: nothing is done.
    pub(super) attention_norm: Option<Norm>,
    pub(super) qkv: Linear, // rows: Q, K, V under each other
    pub(super) output: Linear,
    pub(super) norm: Norm,
    pub(super) up: Linear, // where it is gated: what is activated, then what it is multiplied with
    pub(super) down: Linear,
}

/// All that is packed, and the name of what is not.
pub(super) struct Weights {
    pub(super) word_table: String,
    /// (positions, width), the type-0 row added; empty where positions are rotary.
    pub(super) positions: Vec<f32>,
    pub(super) embedding_norm: Norm,
    pub(super) layers: Vec<Layer>,
    pub(super) final_norm: Option<Norm>,
}

/// What a family calls its tensors.
pub(crate) struct Names {
    /// What stands before every name in files of a network with a head.
    pub(crate) prefix: &'static str,
    pub(crate) words: &'static str,
    pub(crate) embedding_norm: &'static str,
    pub(crate) layer: &'static str,
    pub(crate) attention_norm: &'static str,
    /// One tensor or three.
    pub(crate) qkv: &'static [&'static str],
    pub(crate) output: &'static str,
    pub(crate) norm: &'static str,
    pub(crate) up: &'static str,
    pub(crate) down: &'static str,
}

impl Names {
    /// A part of a layer, without what stands before every name.
    pub(crate) fn of_layer(&self, layer: usize, part: &str) -> String {
        format!("{}.{layer}.{part}", self.layer)
    }
}

const BERT: Names = Names {
    prefix: "bert.",
    words: "embeddings.word_embeddings.weight",
    embedding_norm: "embeddings.LayerNorm",
    layer: "encoder.layer",
    attention_norm: "attention.output.LayerNorm",
    qkv: &["attention.self.query", "attention.self.key", "attention.self.value"],
    output: "attention.output.dense",
    norm: "output.LayerNorm",
    up: "intermediate.dense",
    down: "output.dense",
};
const ROBERTA: Names = Names { prefix: "roberta.", ..BERT };
const DISTILBERT: Names = Names {
    prefix: "distilbert.",
    layer: "transformer.layer",
    attention_norm: "sa_layer_norm",
    qkv: &["attention.q_lin", "attention.k_lin", "attention.v_lin"],
    output: "attention.out_lin",
    norm: "output_layer_norm",
    up: "ffn.lin1",
    down: "ffn.lin2",
    ..BERT
};
const MODERNBERT: Names = Names {
    prefix: "model.",
    words: "embeddings.tok_embeddings.weight",
    embedding_norm: "embeddings.norm",
    layer: "layers",
    attention_norm: "attn_norm",
    qkv: &["attn.Wqkv"],
    output: "attn.Wo",
    norm: "mlp_norm",
    up: "mlp.Wi",
    down: "mlp.Wo",
};

/// The names of a family.
pub(crate) fn names_of(family: Family) -> Names {
    match family {
        Family::Bert => BERT,
        Family::Roberta => ROBERTA,
        Family::DistilBert => DISTILBERT,
        Family::ModernBert => MODERNBERT,
    }
}

pub(super) struct Loader<'a> {
    bytes: &'a [u8],
    index: &'a Safetensors,
    pub(super) prefix: &'static str,
    format: WeightFormat,
    biases: Biases,
}

impl<'a> Loader<'a> {
    pub(super) fn of(config: &BertConfig, bytes: &'a [u8], index: &'a Safetensors, format: WeightFormat) -> Self {
        let names = names_of(config.family);
        let prefix = if index.tensors().contains_key(names.words) { "" } else { names.prefix };
        Self { bytes, index, prefix, format, biases: config.biases }
    }

    /// The numbers of a tensor.
    pub(super) fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, WeightsError> {
        finite(self.tensor(name, shape)?)
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor<'_>, WeightsError> {
        let name = format!("{}{name}", self.prefix);
        expect_shape(self.index.tensor(self.bytes, &name), &name, shape)
    }

    fn norm(&self, name: &str, d: usize) -> Result<Norm, WeightsError> {
        let weight = finite(self.tensor(&format!("{name}.weight"), &[d])?)?;
        let bias = if self.biases.norm { finite(self.tensor(&format!("{name}.bias"), &[d])?)? } else { vec![0.0; d] };
        Ok(Norm { weight, bias })
    }

    /// Linears of one input, `n` outputs together, packed under each other.
    fn linear(&self, names: &[String], n: usize, k: usize, has_bias: bool) -> Result<Linear, WeightsError> {
        let each = n / names.len();
        let tensors = names.iter().map(|name| self.tensor(&format!("{name}.weight"), &[each, k]));
        let weight = Matrix::pack(&tensors.collect::<Result<Vec<_>, _>>()?, self.format)?;
        if !has_bias {
            return Ok(Linear { weight, bias: None });
        }
        let mut bias = Vec::with_capacity(n);
        for name in names {
            bias.extend(finite(self.tensor(&format!("{name}.bias"), &[each])?)?);
        }
        Ok(Linear { weight, bias: Some(bias) })
    }

    /// The table of words is read row by row, while texts are embedded: all of it must be fit for that.
    fn words(&self, name: &str, config: &BertConfig) -> Result<String, WeightsError> {
        let table = self.tensor(name, &[config.vocabulary, config.width])?;
        if !matches!(table.dtype, TensorType::F32 | TensorType::F16 | TensorType::Bf16) {
            return Err(table.unsupported().into());
        }
        let mut row = vec![0.0; config.width];
        for i in 0..table.rows() {
            if !(table.read_row(i, &mut row) && row.iter().all(|x| x.is_finite())) {
                return Err(WeightsError::NotFinite(table.name.to_owned()));
            }
        }
        Ok(table.name.to_owned())
    }

    fn positions(&self, config: &BertConfig) -> Result<Vec<f32>, WeightsError> {
        let Positions::Learned { rows, types, .. } = config.positions else { return Ok(Vec::new()) };
        let d = config.width;
        let mut positions = finite(self.tensor("embeddings.position_embeddings.weight", &[rows, d])?)?;
        if types > 0 {
            let types = finite(self.tensor("embeddings.token_type_embeddings.weight", &[types, d])?)?;
            for position in positions.chunks_exact_mut(d) {
                position.iter_mut().zip(&types).for_each(|(p, t)| *p += t);
            }
        }
        Ok(positions)
    }
}

impl Weights {
    pub(super) fn load(
        config: &BertConfig,
        bytes: &[u8],
        index: &Safetensors,
        format: WeightFormat,
    ) -> Result<Self, WeightsError> {
        let loader = Loader::of(config, bytes, index, format);
        let names = names_of(config.family);
        let (embedding_norm, layers, final_norm) = layers(config, &loader)?;
        Ok(Self {
            word_table: loader.words(names.words, config)?,
            positions: loader.positions(config)?,
            embedding_norm,
            layers,
            final_norm,
        })
    }

    /// The tables of `base`, and everything else from this loader.
    pub(super) fn with_layers(base: &Self, config: &BertConfig, loader: &Loader<'_>) -> Result<Self, WeightsError> {
        let (embedding_norm, layers, final_norm) = layers(config, loader)?;
        let (word_table, positions) = (base.word_table.clone(), base.positions.clone());
        Ok(Self { word_table, positions, embedding_norm, layers, final_norm })
    }
}

/// Everything outside the tables: norm of the embeddings, layers, last norm.
fn layers(config: &BertConfig, loader: &Loader<'_>) -> Result<(Norm, Vec<Layer>, Option<Norm>), WeightsError> {
    let (names, biases) = (names_of(config.family), config.biases);
    let d = config.width;
    let wide = if config.is_gated() { 2 * config.inner } else { config.inner };
    let mut layers = Vec::with_capacity(config.layers);
    for i in 0..config.layers {
        let name = |part: &str| format!("{}.{i}.{part}", names.layer);
        let qkv: Vec<String> = names.qkv.iter().map(|part| name(part)).collect();
        // ModernBERT's embeddings are normed already.
        let is_normed = config.is_pre_norm() && i == 0;
        layers.push(Layer {
            attention_norm: if is_normed { None } else { Some(loader.norm(&name(names.attention_norm), d)?) },
            qkv: loader.linear(&qkv, 3 * d, d, biases.attention)?,
            output: loader.linear(&[name(names.output)], d, d, biases.attention)?,
            norm: loader.norm(&name(names.norm), d)?,
            up: loader.linear(&[name(names.up)], wide, d, biases.ffn)?,
            down: loader.linear(&[name(names.down)], d, config.inner, biases.ffn)?,
        });
    }
    let final_norm = if config.is_pre_norm() { Some(loader.norm("final_norm", d)?) } else { None };
    Ok((loader.norm(names.embedding_norm, d)?, layers, final_norm))
}
