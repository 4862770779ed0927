//! Llama (Touvron et al. 2023) as SmolLM2 uses it: pre-norm blocks, rotary positions, grouped queries, SwiGLU, tied output.
//!
//! ```text
//! x = embedding[id]
//! each layer:  x += O·attention(rope(Q·h), rope(K·h), V·h),  h = rms(x);   x += D·(silu(G·h) ∘ U·h),  h = rms(x)
//! logits = E·rms(x)
//! ```
//!
//! GGUF stores the rows of Q and K so that rotary pairs are neighbours `(2i, 2i+1)`: they are turned as they lie.
//!
//! Cost of one decoded token of SmolLM2-135M at its own bits: 106.2 M layer weights of 5 bits and a head of 28.3 M weights of
//! 8.5 bits = 96 MB; at 29 GB/s at most 300 tokens/s.

use metier_kernels::{
    Pool,
    attention::{QUERIES, attend},
    elementwise,
    quant::QuantRows,
};

pub use super::linear::WeightFormat;
use super::{ROW_GRAIN, WeightsError, config_error, expect_shape, finite, linear::Matrix};
use crate::{
    base::Bytes,
    cache::{CacheShape, KvSequence},
    format::{Gguf, Tensor, TensorInfo},
    tokenizer::TokenId,
};

/// Layers, at most.
const MAX_LAYERS: usize = 512;
/// Elements of a hidden or inner row, at most.
const MAX_WIDTH: usize = 1 << 16;
/// Tokens of a context, at most.
const MAX_CONTEXT: usize = 1 << 20;
const EMBEDDING: &str = "token_embd.weight";

/// Shape of the network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LlamaConfig {
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

impl LlamaConfig {
    fn from_gguf(gguf: &Gguf) -> Result<Self, WeightsError> {
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
}

struct Layer {
    attention_norm: Vec<f32>,
    qkv: Matrix, // rows: Q, K, V under each other
    output: Matrix,
    norm: Vec<f32>,
    gate_up: Matrix, // rows: gate, up under each other
    down: Matrix,
}

/// The network. The embedding table is read from the mapped file, row by row; the rest is packed.
pub struct Llama {
    config: LlamaConfig,
    bytes: Bytes,
    embedding: TensorInfo,
    layers: Vec<Layer>,
    output_norm: Vec<f32>,
    head: Matrix,
    frequencies: Vec<f32>, // rope_base^(−2i / head_dim)
}

/// Which rows of a span get logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// None: more of the prompt follows.
    None,
    /// The last.
    Last,
    /// All.
    All,
}

/// Consecutive tokens of one sequence, to be read behind what its cache holds.
pub struct Span<'a> {
    /// At least one; the cache must have room for them.
    pub tokens: &'a [TokenId],
    /// What the sequence read before; these tokens are added.
    pub cache: &'a mut KvSequence,
    /// Rows that get logits.
    pub wanted: Wanted,
}

impl Llama {
    /// Checks config and weights against each other and packs them.
    pub(crate) fn load(bytes: Bytes, gguf: &Gguf, format: WeightFormat) -> Result<Self, WeightsError> {
        let config = LlamaConfig::from_gguf(gguf)?;
        let LlamaConfig { width, inner, heads, kv_heads, head_dim, .. } = config;
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
            Some(_) => Matrix::pack(&[tensor("output.weight", &[config.vocabulary, width])?], format)?,
            None => Matrix::pack(&[table], format)?,
        };
        let mut layers = Vec::with_capacity(config.layers);
        for i in 0..config.layers {
            let part = |part: &str, shape: &[usize]| tensor(&format!("blk.{i}.{part}.weight"), shape);
            let pack = |tensors: &[Tensor<'_>]| Matrix::pack(tensors, format);
            layers.push(Layer {
                attention_norm: finite(part("attn_norm", &[width])?)?,
                qkv: pack(&[
                    part("attn_q", &[heads * head_dim, width])?,
                    part("attn_k", &[kv_heads * head_dim, width])?,
                    part("attn_v", &[kv_heads * head_dim, width])?,
                ])?,
                output: pack(&[part("attn_output", &[width, heads * head_dim])?])?,
                norm: finite(part("ffn_norm", &[width])?)?,
                gate_up: pack(&[part("ffn_gate", &[inner, width])?, part("ffn_up", &[inner, width])?])?,
                down: pack(&[part("ffn_down", &[width, inner])?])?,
            });
        }
        let output_norm = finite(tensor("output_norm.weight", &[width])?)?;
        let embedding = gguf.tensors()[EMBEDDING].clone();
        let exponent = |i: usize| -2.0 * i as f64 / head_dim as f64;
        let frequencies = (0..head_dim / 2).map(|i| f64::from(config.rope_base).powf(exponent(i)) as f32).collect();
        bytes.release();
        Ok(Self { config, bytes, embedding, layers, output_norm, head, frequencies })
    }

    /// Shape of the network.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// Reads all spans in one pass and returns the wanted logits, span after span: (Σ wanted, vocabulary). Runs inside
    /// `pool.enter`.
    ///
    /// # Panics
    ///
    /// Where a span is empty, its cache has no room for it, or an id lies outside the vocabulary: the engine admits none such.
    pub(crate) fn forward(&self, pool: &Pool, spans: &mut [Span<'_>]) -> Vec<f32> {
        let LlamaConfig { width, inner, eps, .. } = self.config;
        let isa = pool.isa();
        let positions: Vec<usize> =
            spans.iter().flat_map(|span| (0..span.tokens.len()).map(|i| span.cache.len() + i)).collect();
        let rows = positions.len();
        let turns: Vec<(f32, f32)> = positions
            .iter()
            .flat_map(|position| self.frequencies.iter().map(|f| *position as f32 * f))
            .map(|angle| (angle.cos(), angle.sin()))
            .collect();
        let mut x = self.embed(spans, rows);
        let mut normed = vec![0.0; rows * width];
        let mut activated = vec![0.0; rows * inner];
        let mut quantised = QuantRows::default();
        for (layer_idx, layer) in self.layers.iter().enumerate() {
            norm_rows(pool, &x, &layer.attention_norm, eps, &mut normed);
            let mut qkv = layer.qkv.apply(pool, &normed, &mut quantised);
            self.turn_and_store(pool, layer_idx, &mut qkv, &turns, spans);
            let context = self.attention(pool, layer_idx, &qkv, spans);
            let mixed = layer.output.apply(pool, &context, &mut quantised);
            elementwise::add(isa, &mut x, &mixed);
            norm_rows(pool, &x, &layer.norm, eps, &mut normed);
            let wide = layer.gate_up.apply(pool, &normed, &mut quantised);
            pool.run_rows(&mut activated, inner, ROW_GRAIN, &|first, rows| {
                for (i, row) in rows.chunks_exact_mut(inner).enumerate() {
                    let (gate, up) = wide[(first + i) * 2 * inner..(first + i + 1) * 2 * inner].split_at(inner);
                    row.copy_from_slice(gate);
                    elementwise::swiglu(isa, row, up);
                }
            });
            let mixed = layer.down.apply(pool, &activated, &mut quantised);
            elementwise::add(isa, &mut x, &mixed);
        }
        let mut wanted = Vec::new();
        let mut row = 0;
        for span in spans.iter_mut() {
            let end = row + span.tokens.len();
            match span.wanted {
                Wanted::None => {}
                Wanted::Last => wanted.extend_from_slice(&x[(end - 1) * width..end * width]),
                Wanted::All => wanted.extend_from_slice(&x[row * width..end * width]),
            }
            row = end;
            span.cache.advance(span.tokens.len());
        }
        let mut normed = vec![0.0; wanted.len()];
        norm_rows(pool, &wanted, &self.output_norm, eps, &mut normed);
        if wanted.is_empty() { Vec::new() } else { self.head.apply(pool, &normed, &mut quantised) }
    }

    fn embed(&self, spans: &[Span<'_>], rows: usize) -> Vec<f32> {
        let width = self.config.width;
        let TensorInfo { dtype, shape, range } = &self.embedding;
        let table = Tensor { name: EMBEDDING, dtype: *dtype, shape, bytes: &self.bytes[range.clone()] };
        let mut x = vec![0.0; rows * width];
        for (id, row) in spans.iter().flat_map(|span| span.tokens).zip(x.chunks_exact_mut(width)) {
            assert!(table.read_row(id.0 as usize, row), "the table's type was checked at load");
        }
        x
    }

    /// Turns queries and keys by their positions, then writes keys and values into the caches. `qkv`: (rows, q + k + v).
    fn turn_and_store(&self, pool: &Pool, layer: usize, qkv: &mut [f32], turns: &[(f32, f32)], spans: &mut [Span<'_>]) {
        let LlamaConfig { heads, kv_heads, head_dim, .. } = self.config;
        let (q_len, kv_len) = (heads * head_dim, kv_heads * head_dim);
        let stride = q_len + 2 * kv_len;
        let pairs = head_dim / 2;
        pool.run_rows(qkv, stride, ROW_GRAIN, &|first, rows| {
            for (i, row) in rows.chunks_exact_mut(stride).enumerate() {
                let turns = &turns[(first + i) * pairs..(first + i + 1) * pairs];
                elementwise::rope_adjacent(&mut row[..q_len + kv_len], head_dim, turns);
            }
        });
        let mut rows = qkv.chunks_exact(stride);
        for span in spans.iter_mut() {
            let start = span.cache.len();
            for (i, row) in rows.by_ref().take(span.tokens.len()).enumerate() {
                let (keys, values) = row[q_len..].split_at(kv_len);
                let heads = keys.chunks_exact(head_dim).zip(values.chunks_exact(head_dim));
                for (head, (key, value)) in heads.enumerate() {
                    span.cache.write(layer, head, start + i, key, value);
                }
            }
        }
    }

    /// `qkv`: (rows, q + k + v) → (rows, heads · head_dim).
    fn attention(&self, pool: &Pool, layer: usize, qkv: &[f32], spans: &[Span<'_>]) -> Vec<f32> {
        let LlamaConfig { heads, kv_heads, head_dim, .. } = self.config;
        let group = heads / kv_heads;
        let (q_len, stride) = (heads * head_dim, (heads + 2 * kv_heads) * head_dim);
        // A block shares one pass over a key head's pages: eight positions of a query head in a prompt, the query heads of a
        // group in decoding.
        let mut blocks = Vec::new();
        let mut first_row = 0;
        for (span_idx, span) in spans.iter().enumerate() {
            let len = span.tokens.len();
            for kv_head in 0..kv_heads {
                let query_heads = kv_head * group..(kv_head + 1) * group;
                if len == 1 {
                    for from in query_heads.clone().step_by(QUERIES) {
                        let queries = (from..query_heads.end.min(from + QUERIES)).map(|head| (0, head)).collect();
                        blocks.push(Block { span_idx, kv_head, first_row, queries });
                    }
                } else {
                    for head in query_heads {
                        for from in (0..len).step_by(QUERIES) {
                            let queries = (from..len.min(from + QUERIES)).map(|i| (i, head)).collect();
                            blocks.push(Block { span_idx, kv_head, first_row, queries });
                        }
                    }
                }
            }
            first_row += len;
        }
        let lens: Vec<usize> = blocks.iter().map(|block| block.queries.len() * head_dim).collect();
        let mut by_block = vec![0.0; first_row * q_len];
        let scale = 1.0 / (head_dim as f32).sqrt();
        let (isa, shape) = (pool.isa(), self.config.cache().head());
        pool.run_pieces(&mut by_block, &lens, &|i, out| {
            let block = &blocks[i];
            let cache = &*spans[block.span_idx].cache;
            let mut queries = Vec::with_capacity(out.len());
            let mut visible = Vec::with_capacity(QUERIES);
            for (i, head) in &block.queries {
                queries.extend_from_slice(&qkv[(block.first_row + i) * stride + head * head_dim..][..head_dim]);
                visible.push(cache.len() + i + 1);
            }
            let longest = visible.last().copied().unwrap_or(0);
            let pages = cache.head_pages(layer, block.kv_head, longest);
            attend(isa, shape, &queries, &visible, &pages, scale, &mut Vec::new(), out);
        });
        let mut out = vec![0.0; first_row * q_len];
        let mut pieces = by_block.chunks_exact(head_dim);
        for block in &blocks {
            for ((i, head), piece) in block.queries.iter().zip(pieces.by_ref()) {
                out[(block.first_row + i) * q_len + head * head_dim..][..head_dim].copy_from_slice(piece);
            }
        }
        out
    }
}

/// Queries that share one pass over one key head's pages: (row of the span, query head).
struct Block {
    span_idx: usize,
    kv_head: usize,
    first_row: usize,
    queries: Vec<(usize, usize)>,
}

fn norm_rows(pool: &Pool, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let (isa, width) = (pool.isa(), weight.len());
    pool.run_rows(out, width, ROW_GRAIN, &|first, rows| {
        for (i, row) in rows.chunks_exact_mut(width).enumerate() {
            elementwise::rms_norm(isa, &x[(first + i) * width..(first + i + 1) * width], weight, eps, row);
        }
    });
}
