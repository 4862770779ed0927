//! BERT (Devlin et al. 2019), as MiniLM uses it: post-norm blocks, exact GELU, learned absolute positions, f32.
//!
//! ```text
//! x = LN(word[id] + position[i] + type[0])
//! each layer:  x = LN(x + O·attention(Q·x, K·x, V·x));  x = LN(x + D·gelu(U·x))
//! ```
//!
//! Windows of a batch lie one after the other without padding; attention keeps them apart. Where there are windows for all
//! threads, each thread takes whole windows through the whole network: nobody waits for anybody between two products, and rows
//! stay in the thread's own cache. A few windows are computed together, every product cut by its outputs. Both give the same bits.

use std::ops::Range;

use metier_kernels::{
    Pool,
    attention::{PageShape, QUERIES, attend},
    dense, elementwise,
    quant::QuantRows,
};
use serde::Deserialize;

use super::{
    ROW_GRAIN, WeightsError, add_and_norm, config_error, expect_shape, finite,
    linear::{Matrix, WeightFormat},
};
use crate::{
    base::Bytes,
    format::{Safetensors, Tensor, TensorType},
    tokenizer::TokenId,
};

/// Layers, at most.
const MAX_LAYERS: usize = 512;
/// Elements of a hidden row or of a block's inner row, at most.
const MAX_WIDTH: usize = 1 << 16;
/// Longest window, in tokens.
pub const MAX_POSITIONS: usize = 8192;

/// Windows for each thread, from which on threads take whole windows.
const MIN_WINDOWS_PER_THREAD: usize = 4;
/// Tokens of a thread's task, about: rows enough to use each weight often, and with their inner rows still in a cache of 1 MB.
const TASK_TOKENS: usize = 128;

/// `config.json`, as far as it matters.
#[derive(Clone, Debug, Deserialize)]
pub struct BertConfig {
    /// Must be `bert`.
    pub model_type: String,
    /// Elements of a hidden row.
    pub hidden_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads; their size must be a multiple of 16.
    pub num_attention_heads: usize,
    /// Elements of a block's inner row.
    pub intermediate_size: usize,
    /// Rows of the word table.
    pub vocab_size: usize,
    /// Rows of the position table.
    pub max_position_embeddings: usize,
    /// Rows of the type table.
    pub type_vocab_size: usize,
    /// Added to the variance.
    pub layer_norm_eps: f32,
    /// Must be `gelu`.
    pub hidden_act: String,
    /// Must be `absolute`.
    #[serde(default = "absolute")]
    pub position_embedding_type: String,
}

fn absolute() -> String {
    "absolute".to_owned()
}

impl BertConfig {
    fn check(&self) -> Result<(), WeightsError> {
        let only = |key: &str, found: &str, supported: &str| {
            let problem = format!("`{found}` is not supported, only `{supported}`");
            (found == supported).then_some(()).ok_or_else(|| config_error(key, problem))
        };
        only("model_type", &self.model_type, "bert")?;
        only("hidden_act", &self.hidden_act, "gelu")?;
        only("position_embedding_type", &self.position_embedding_type, "absolute")?;
        let within = |key: &str, found: usize, limit: usize| {
            let problem = format!("{found} is not between 1 and {limit}");
            (1..=limit).contains(&found).then_some(()).ok_or_else(|| config_error(key, problem))
        };
        within("hidden_size", self.hidden_size, MAX_WIDTH)?;
        within("intermediate_size", self.intermediate_size, MAX_WIDTH)?;
        within("num_hidden_layers", self.num_hidden_layers, MAX_LAYERS)?;
        within("num_attention_heads", self.num_attention_heads, self.hidden_size)?;
        within("vocab_size", self.vocab_size, crate::tokenizer::MAX_VOCABULARY)?;
        within("max_position_embeddings", self.max_position_embeddings, MAX_POSITIONS)?;
        within("type_vocab_size", self.type_vocab_size, MAX_WIDTH)?;
        if !self.hidden_size.is_multiple_of(self.num_attention_heads)
            || !(self.hidden_size / self.num_attention_heads).is_multiple_of(16)
        {
            let problem = format!(
                "{} elements do not part into {} heads of a multiple of 16",
                self.hidden_size, self.num_attention_heads
            );
            return Err(config_error("num_attention_heads", problem));
        }
        if !(self.layer_norm_eps >= 0.0 && self.layer_norm_eps < 1.0) {
            return Err(config_error("layer_norm_eps", format!("{} is not in 0..1", self.layer_norm_eps)));
        }
        Ok(())
    }
}

struct Norm {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

struct Linear {
    weight: Matrix,
    bias: Vec<f32>,
}

impl Linear {
    /// `out[m][n] = bias[n] + Σ_k x[m][k] · w[n][k]`; the bias comes first for f32 weights, last for 8-bit ones.
    fn apply(&self, pool: &Pool, x: &[f32], rows: &mut QuantRows, out: &mut Vec<f32>) {
        match &self.weight {
            Matrix::Dense(weight) => dense::matmul(pool, x, weight, Some(&self.bias), out),
            Matrix::Quant(_) => {
                *out = self.weight.apply(pool, x, rows);
                pool.run_rows(out, self.bias.len(), ROW_GRAIN, &|_, rows| {
                    rows.chunks_exact_mut(self.bias.len())
                        .for_each(|row| elementwise::add(pool.isa(), row, &self.bias));
                });
            }
        }
    }
}

struct Layer {
    qkv: Linear, // rows: Q, K, V under each other
    output: Linear,
    attention_norm: Norm,
    up: Linear,
    down: Linear,
    norm: Norm,
}

/// The network. The word table stays in the mapped file; everything else is packed.
pub struct Bert {
    config: BertConfig,
    bytes: Bytes,
    index: Safetensors,
    word_table: String,
    positions: Vec<f32>, // (positions, d), the type-0 row added
    embedding_norm: Norm,
    layers: Vec<Layer>,
}

struct Loader<'a> {
    bytes: &'a [u8],
    index: &'a Safetensors,
    prefix: &'static str,
    format: WeightFormat,
}

impl Loader<'_> {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor<'_>, WeightsError> {
        let name = format!("{}{name}", self.prefix);
        expect_shape(self.index.tensor(self.bytes, &name), &name, shape)
    }

    fn norm(&self, name: &str, d: usize) -> Result<Norm, WeightsError> {
        Ok(Norm {
            weight: finite(self.tensor(&format!("{name}.weight"), &[d])?)?,
            bias: finite(self.tensor(&format!("{name}.bias"), &[d])?)?,
        })
    }

    /// Linears of one input, packed under each other.
    fn linear(&self, names: &[String], n: usize, k: usize) -> Result<Linear, WeightsError> {
        let weights: Vec<_> =
            names.iter().map(|name| self.tensor(&format!("{name}.weight"), &[n, k])).collect::<Result<_, _>>()?;
        let mut bias = Vec::with_capacity(n * names.len());
        for name in names {
            bias.extend(finite(self.tensor(&format!("{name}.bias"), &[n])?)?);
        }
        Ok(Linear { weight: Matrix::pack(&weights, self.format)?, bias })
    }
}

impl Bert {
    /// Checks config and weights against each other and packs them.
    pub(crate) fn load(
        config: BertConfig,
        bytes: Bytes,
        index: Safetensors,
        format: WeightFormat,
    ) -> Result<Self, WeightsError> {
        config.check()?;
        let (d, inner) = (config.hidden_size, config.intermediate_size);
        let word = "embeddings.word_embeddings.weight";
        let prefix = if index.tensors().contains_key(word) { "" } else { "bert." };
        let loader = Loader { bytes: &bytes, index: &index, prefix, format };
        let table = loader.tensor(word, &[config.vocab_size, d])?;
        if !matches!(table.dtype, TensorType::F32 | TensorType::F16 | TensorType::Bf16) {
            return Err(table.unsupported().into());
        }
        let mut row = vec![0.0; d];
        for i in 0..table.rows() {
            if !(table.read_row(i, &mut row) && row.iter().all(|x| x.is_finite())) {
                return Err(WeightsError::NotFinite(table.name.to_owned()));
            }
        }
        let word_table = table.name.to_owned();
        let mut positions =
            finite(loader.tensor("embeddings.position_embeddings.weight", &[config.max_position_embeddings, d])?)?;
        let types = finite(loader.tensor("embeddings.token_type_embeddings.weight", &[config.type_vocab_size, d])?)?;
        for position in positions.chunks_exact_mut(d) {
            position.iter_mut().zip(&types).for_each(|(p, t)| *p += t);
        }
        let embedding_norm = loader.norm("embeddings.LayerNorm", d)?;
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        for i in 0..config.num_hidden_layers {
            let name = |part: &str| format!("encoder.layer.{i}.{part}");
            let qkv = ["query", "key", "value"].map(|part| name(&format!("attention.self.{part}")));
            layers.push(Layer {
                qkv: loader.linear(&qkv, d, d)?,
                output: loader.linear(&[name("attention.output.dense")], d, d)?,
                attention_norm: loader.norm(&name("attention.output.LayerNorm"), d)?,
                up: loader.linear(&[name("intermediate.dense")], inner, d)?,
                down: loader.linear(&[name("output.dense")], d, inner)?,
                norm: loader.norm(&name("output.LayerNorm"), d)?,
            });
        }
        bytes.release();
        Ok(Self { config, bytes, index, word_table, positions, embedding_norm, layers })
    }

    /// The configuration.
    pub fn config(&self) -> &BertConfig {
        &self.config
    }

    /// One row a window: what `reduce(hidden rows of the window, out)` makes of its last hidden rows `(len, hidden_size)`.
    /// `out`: (windows, hidden_size), zeros.
    ///
    /// # Panics
    ///
    /// Where a window is empty or longer than the position table, or an id lies outside the vocabulary: the encoder makes
    /// windows that do not.
    pub(crate) fn reduce(
        &self,
        pool: &Pool,
        windows: &[&[TokenId]],
        out: &mut [f32],
        reduce: &(dyn Fn(&[f32], &mut [f32]) + Sync),
    ) {
        let d = self.config.hidden_size;
        let tasks = tasks(windows, pool.threads());
        let lens: Vec<usize> = tasks.iter().map(|task| task.len() * d).collect();
        let out = &mut *out;
        pool.enter(|| {
            pool.run_pieces(out, &lens, &|i, out| {
                let windows = &windows[tasks[i].clone()];
                let hidden = self.forward(pool, windows);
                let mut from = 0;
                for (window, out) in windows.iter().zip(out.chunks_exact_mut(d)) {
                    let to = from + window.len() * d;
                    reduce(&hidden[from..to], out);
                    from = to;
                }
            });
        });
    }

    /// The last hidden rows of all windows, one after the other: (Σ lengths, hidden_size).
    fn forward(&self, pool: &Pool, windows: &[&[TokenId]]) -> Vec<f32> {
        let (d, inner, eps) = (self.config.hidden_size, self.config.intermediate_size, self.config.layer_norm_eps);
        let lens: Vec<usize> = windows.iter().map(|w| w.len()).collect();
        let rows: usize = lens.iter().sum();
        let mut x = self.embed(windows, rows);
        let isa = pool.isa();
        pool.run_rows(&mut x, d, ROW_GRAIN, &|_, rows| {
            for row in rows.chunks_exact_mut(d) {
                elementwise::layer_norm(isa, row, &self.embedding_norm.weight, &self.embedding_norm.bias, eps);
            }
        });
        let mut qkv = vec![0.0; rows * 3 * d];
        let mut mixed = vec![0.0; rows * d];
        let mut wide = vec![0.0; rows * inner];
        let mut quants = QuantRows::default();
        for layer in &self.layers {
            layer.qkv.apply(pool, &x, &mut quants, &mut qkv);
            let context = self.attention(pool, &qkv, &lens);
            layer.output.apply(pool, &context, &mut quants, &mut mixed);
            add_and_norm(pool, &mut x, &mixed, &layer.attention_norm.weight, &layer.attention_norm.bias, eps);
            layer.up.apply(pool, &x, &mut quants, &mut wide);
            pool.run_rows(&mut wide, inner, ROW_GRAIN / 4, &|_, rows| elementwise::gelu(isa, rows));
            layer.down.apply(pool, &wide, &mut quants, &mut mixed);
            add_and_norm(pool, &mut x, &mixed, &layer.norm.weight, &layer.norm.bias, eps);
        }
        x
    }

    fn embed(&self, windows: &[&[TokenId]], rows: usize) -> Vec<f32> {
        let d = self.config.hidden_size;
        let table = self.index.tensor(&self.bytes, &self.word_table).expect("found at load");
        let mut x = vec![0.0; rows * d];
        let tokens = windows.iter().flat_map(|w| w.iter().enumerate());
        for ((position, id), row) in tokens.zip(x.chunks_exact_mut(d)) {
            assert!(table.read_row(id.0 as usize, row), "the word table's type was checked at load");
            elementwise::add(metier_kernels::Isa::SCALAR, row, &self.positions[position * d..(position + 1) * d]);
        }
        x
    }

    /// `qkv`: (rows, 3·d) → (rows, d).
    fn attention(&self, pool: &Pool, qkv: &[f32], lens: &[usize]) -> Vec<f32> {
        let (d, heads) = (self.config.hidden_size, self.config.num_attention_heads);
        let head_dim = d / heads;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let mut starts = Vec::with_capacity(lens.len());
        let mut rows = 0;
        for len in lens {
            starts.push(rows);
            rows += len;
        }
        // Each part is one head of one window and writes (len, head_dim); the heads are put side by side afterwards.
        let pieces: Vec<usize> = lens.iter().flat_map(|len| std::iter::repeat_n(len * head_dim, heads)).collect();
        let mut by_head = vec![0.0; rows * d];
        let isa = pool.isa();
        pool.run_pieces(&mut by_head, &pieces, &|part, out| {
            let (window, head) = (part / heads, part % heads);
            let (start, len) = (starts[window], lens[window]);
            let shape = PageShape { head_dim, page_len: len.next_multiple_of(16) };
            let mut page = vec![0.0; shape.floats()];
            let mut queries = vec![0.0; len * head_dim];
            for i in 0..len {
                let row = &qkv[(start + i) * 3 * d..(start + i + 1) * 3 * d];
                let [q, k, v] = [0, d, 2 * d].map(|from| &row[from + head * head_dim..from + (head + 1) * head_dim]);
                shape.write(&mut page, i, k, v);
                queries[i * head_dim..(i + 1) * head_dim].copy_from_slice(q);
            }
            let visible: [_; QUERIES] = std::array::from_fn(|_| 0..len);
            let mut scratch = Vec::new();
            let step = QUERIES * head_dim;
            for (queries, out) in queries.chunks(step).zip(out.chunks_mut(step)) {
                let visible = &visible[..queries.len() / head_dim];
                attend(isa, shape, queries, visible, &[&page], scale, &mut scratch, out);
            }
        });
        let mut out = vec![0.0; rows * d];
        for (window, len) in lens.iter().enumerate() {
            let from = &by_head[starts[window] * d..];
            for head in 0..heads {
                for i in 0..*len {
                    let source = &from[(head * len + i) * head_dim..][..head_dim];
                    out[(starts[window] + i) * d + head * head_dim..][..head_dim].copy_from_slice(source);
                }
            }
        }
        out
    }
}

/// Ranges of windows that one thread takes through the network alone; one range of all where that would leave threads idle.
fn tasks(windows: &[&[TokenId]], threads: usize) -> Vec<Range<usize>> {
    if windows.len() < MIN_WINDOWS_PER_THREAD * threads || threads == 1 {
        return vec![0..windows.len(); usize::from(!windows.is_empty())];
    }
    let tokens: usize = windows.iter().map(|window| window.len()).sum();
    let n_tasks = tokens.div_ceil(TASK_TOKENS).next_multiple_of(threads);
    let (mut tasks, mut from, mut seen) = (Vec::with_capacity(n_tasks), 0, 0);
    for (i, window) in windows.iter().enumerate() {
        seen += window.len();
        // A task ends with the window that brings it to its share of all tokens.
        if seen * n_tasks >= (tasks.len() + 1) * tokens || i + 1 == windows.len() {
            tasks.push(from..i + 1);
            from = i + 1;
        }
    }
    tasks
}
