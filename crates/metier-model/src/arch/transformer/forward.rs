//! What does the network compute? One pass over the new tokens of many sequences.
//!
//! The tokens of all spans lie under each other as the *rows* of one [`Step`]; every linear map sees them all at once, attention
//! keeps the sequences apart. Nothing that is computed for a row depends on the rows beside it.

use std::ops::Range;

use metier_kernels::{
    Pool,
    attention::{QUERIES, attend},
    elementwise,
    lora::{LoraSegment, add_deltas},
    quant::QuantRows,
};

use super::{Activation, RopePairs, Span, Transformer, TransformerConfig, rope::Rope};
use crate::{
    adapter::Site,
    arch::{ROW_GRAIN, linear::Linear},
};

/// One pass: who reads what, where its rows lie, and what all layers need to know about them.
struct Step<'p, 's, 'c> {
    pool: &'p Pool,
    spans: Vec<&'s mut Span<'c>>,
    /// Rows of each span: one a token.
    rows: Vec<Range<usize>>,
    /// `(cos, sin)` of each row's rotary angles, as [`Rope`] lays them out.
    turns: Vec<(f32, f32)>,
    quantised: QuantRows,
}

impl<'p, 's, 'c> Step<'p, 's, 'c> {
    fn new(pool: &'p Pool, spans: &'s mut [Span<'c>], rope: &Rope) -> Self {
        let spans: Vec<&mut Span<'c>> = spans.iter_mut().collect();
        let mut rows = Vec::with_capacity(spans.len());
        let mut turns = Vec::new();
        let mut first = 0;
        for span in &spans {
            rows.push(first..first + span.tokens.len());
            first += span.tokens.len();
            for position in span.cache.len()..span.cache.len() + span.tokens.len() {
                turns.extend(rope.turns(position));
            }
        }
        Self { pool, spans, rows, turns, quantised: QuantRows::default() }
    }

    fn n_rows(&self) -> usize {
        self.rows.last().map_or(0, |rows| rows.end)
    }

    /// `x`: (rows, k) → (rows, n). Every linear map of the network goes through here.
    fn apply(&mut self, linear: &Linear, x: &[f32]) -> Vec<f32> {
        linear.apply(self.pool, x, &mut self.quantised)
    }

    /// Adds to `y` what the spans' adapters do to this site's input `x`.
    fn adapt(&self, layer_idx: usize, site: Site, x: &[f32], y: &mut [f32]) {
        let mut segments: Vec<LoraSegment<'_>> = Vec::new();
        for (span, rows) in self.spans.iter().zip(&self.rows) {
            let Some(stack) = span.adapter.and_then(|adapter| adapter.stack(layer_idx, site)) else { continue };
            match segments.last_mut() {
                Some(last) if std::ptr::eq(last.stack, stack) && last.rows.end == rows.start => {
                    last.rows.end = rows.end
                }
                _ => segments.push(LoraSegment { rows: rows.clone(), stack }),
            }
        }
        add_deltas(self.pool, x, y, &segments);
    }

    /// The step without the spans that skip this layer, with the rows of `x` that are left; `None` where nobody skips it.
    fn of_layer(&mut self, layer_idx: usize, x: &[f32]) -> Option<(Step<'p, '_, 'c>, Vec<f32>)> {
        if self.spans.iter().all(|span| span.cache.keeps(layer_idx)) {
            return None;
        }
        let n_rows = self.n_rows();
        let (width, pairs) = (x.len() / n_rows, self.turns.len() / n_rows);
        let (mut left, mut turns, mut rows, mut first) = (Vec::new(), Vec::new(), Vec::new(), 0);
        let keeping = self.spans.iter_mut().zip(&self.rows).filter(|(span, _)| span.cache.keeps(layer_idx));
        let spans = keeping
            .map(|(span, of_all)| {
                left.extend_from_slice(&x[of_all.start * width..of_all.end * width]);
                turns.extend_from_slice(&self.turns[of_all.start * pairs..of_all.end * pairs]);
                rows.push(first..first + of_all.len());
                first += of_all.len();
                &mut **span
            })
            .collect();
        let quantised = std::mem::take(&mut self.quantised);
        Some((Step { pool: self.pool, spans, rows, turns, quantised }, left))
    }

    /// Puts the rows that a layer computed back among those that skipped it.
    fn put_back(&self, layer_idx: usize, left: &[f32], x: &mut [f32]) {
        let width = x.len() / self.n_rows();
        let mut left = left;
        for (_, rows) in self.spans.iter().zip(&self.rows).filter(|(span, _)| span.cache.keeps(layer_idx)) {
            let (own, rest) = left.split_at(rows.len() * width);
            x[rows.start * width..rows.end * width].copy_from_slice(own);
            left = rest;
        }
    }
}

impl Transformer {
    /// Reads all spans in one pass and returns the wanted logits, span after span: (Σ wanted, vocabulary). Runs inside
    /// `pool.enter`.
    ///
    /// # Panics
    ///
    /// Where a span is empty, its cache has no room for it, or an id lies outside the vocabulary: the engine admits none such.
    pub(crate) fn forward(&self, pool: &Pool, spans: &mut [Span<'_>]) -> Vec<f32> {
        let mut step = Step::new(pool, spans, &self.rope);
        let mut x = self.embed(&step);
        for layer_idx in 0..self.layers.len() {
            if let Some((mut part, mut left)) = step.of_layer(layer_idx, &x) {
                if !left.is_empty() {
                    self.attention_block(&mut part, layer_idx, &mut left);
                    self.ffn_block(&mut part, layer_idx, &mut left);
                }
                let quantised = part.quantised;
                step.quantised = quantised;
                step.put_back(layer_idx, &left, &mut x);
            } else {
                self.attention_block(&mut step, layer_idx, &mut x);
                self.ffn_block(&mut step, layer_idx, &mut x);
            }
        }
        for span in &mut step.spans {
            span.cache.advance(span.tokens.len());
        }
        self.logits(&mut step, &x)
    }

    fn embed(&self, step: &Step<'_, '_, '_>) -> Vec<f32> {
        let (table, width) = (self.table(), self.config.width);
        let mut x = vec![0.0; step.n_rows() * width];
        let ids = step.spans.iter().flat_map(|span| span.tokens);
        for (id, row) in ids.zip(x.chunks_exact_mut(width)) {
            assert!(table.read_row(id.0 as usize, row), "the table's type was checked at load");
            if self.config.embedding_scale != 1.0 {
                row.iter_mut().for_each(|x| *x *= self.config.embedding_scale);
            }
        }
        x
    }

    /// `x += post(O·attention(rope(n(Q·h)), rope(n(K·h)), V·h))`, `h = rms(x)`; keys and values go into the caches.
    /// `x`: (rows, width).
    fn attention_block(&self, step: &mut Step<'_, '_, '_>, layer_idx: usize, x: &mut [f32]) {
        let layer = &self.layers[layer_idx];
        let normed = norm_rows(step.pool, x, &layer.attention_norm, self.config.eps);
        let mut qkv = step.apply(&layer.qkv, &normed);
        step.adapt(layer_idx, Site::Qkv, &normed, &mut qkv);
        self.turn(step, layer_idx, &mut qkv);
        self.store(step, layer_idx, &qkv);
        let context = self.attention(step, layer_idx, &qkv);
        let mut mixed = step.apply(&layer.output, &context);
        step.adapt(layer_idx, Site::Output, &context, &mut mixed);
        self.post_norm(step.pool, layer.post_attention_norm.as_deref(), &mut mixed);
        elementwise::add(step.pool.isa(), x, &mixed);
    }

    /// `x += post(D·(act(G·h) ∘ U·h))`, `h = rms(x)`. `x`: (rows, width).
    fn ffn_block(&self, step: &mut Step<'_, '_, '_>, layer_idx: usize, x: &mut [f32]) {
        let layer = &self.layers[layer_idx];
        let normed = norm_rows(step.pool, x, &layer.ffn_norm, self.config.eps);
        let mut wide = step.apply(&layer.gate_up, &normed);
        step.adapt(layer_idx, Site::GateUp, &normed, &mut wide);
        let activated = self.activate(step.pool, &wide);
        let mut mixed = step.apply(&layer.down, &activated);
        step.adapt(layer_idx, Site::Down, &activated, &mut mixed);
        self.post_norm(step.pool, layer.post_ffn_norm.as_deref(), &mut mixed);
        elementwise::add(step.pool.isa(), x, &mixed);
    }

    /// The logits of the rows that are wanted.
    fn logits(&self, step: &mut Step<'_, '_, '_>, x: &[f32]) -> Vec<f32> {
        let width = self.config.width;
        let mut wanted = Vec::new();
        for (span, rows) in step.spans.iter().zip(&step.rows) {
            let first = rows.end - span.wanted.min(rows.len());
            wanted.extend_from_slice(&x[first * width..rows.end * width]);
        }
        if wanted.is_empty() {
            return wanted;
        }
        let normed = norm_rows(step.pool, &wanted, &self.output_norm, self.config.eps);
        step.apply(&self.head, &normed)
    }

    /// `wide`: (rows, gate + up) → `act(gate) ∘ up`: (rows, inner).
    fn activate(&self, pool: &Pool, wide: &[f32]) -> Vec<f32> {
        let (isa, inner) = (pool.isa(), self.config.inner);
        let mut out = vec![0.0; wide.len() / 2];
        pool.run_rows(&mut out, inner, ROW_GRAIN, &|first, rows| {
            for (i, row) in rows.chunks_exact_mut(inner).enumerate() {
                let (gate, up) = wide[(first + i) * 2 * inner..(first + i + 1) * 2 * inner].split_at(inner);
                row.copy_from_slice(gate);
                match self.config.activation {
                    Activation::Silu => elementwise::swiglu(isa, row, up),
                    Activation::GeluTanh => elementwise::geglu_tanh(isa, row, up),
                }
            }
        });
        out
    }

    /// What a block returns, normed where the network does that.
    fn post_norm(&self, pool: &Pool, weight: Option<&[f32]>, x: &mut [f32]) {
        let Some(weight) = weight else { return };
        pool.run_rows(x, weight.len(), ROW_GRAIN, &|_, rows| {
            elementwise::rms_norm_heads(pool.isa(), rows, weight, self.config.eps);
        });
    }

    /// Norms the heads of queries and keys where the network does that, then turns them by their positions.
    /// `qkv`: (rows, q + k + v).
    fn turn(&self, step: &Step<'_, '_, '_>, layer_idx: usize, qkv: &mut [f32]) {
        let TransformerConfig { head_dim, eps, rope_pairs, .. } = self.config;
        let (q_len, kv_len) = (self.config.q_len(), self.config.kv_len());
        let (head_norms, turns) = (self.layers[layer_idx].head_norms.as_ref(), self.config.turns(layer_idx));
        let windowed = self.config.window_of(layer_idx).is_some();
        let isa = step.pool.isa();
        step.pool.run_rows(qkv, q_len + 2 * kv_len, ROW_GRAIN, &|first, rows| {
            for (i, row) in rows.chunks_exact_mut(q_len + 2 * kv_len).enumerate() {
                let heads = &mut row[..q_len + kv_len];
                if let Some([q_weight, k_weight]) = head_norms {
                    let (queries, keys) = heads.split_at_mut(q_len);
                    elementwise::rms_norm_heads(isa, queries, q_weight, eps);
                    elementwise::rms_norm_heads(isa, keys, k_weight, eps);
                }
                let turned = self.rope.of_row(&step.turns, first + i, windowed);
                match rope_pairs {
                    _ if !turns => {}
                    RopePairs::Adjacent => elementwise::rope_adjacent(heads, head_dim, turned),
                    RopePairs::Halves => elementwise::rope_halves(isa, heads, head_dim, turned),
                }
            }
        });
    }

    /// Writes keys and values into the caches. `qkv`: (rows, q + k + v).
    fn store(&self, step: &mut Step<'_, '_, '_>, layer_idx: usize, qkv: &[f32]) {
        let TransformerConfig { head_dim, .. } = self.config;
        let (q_len, kv_len) = (self.config.q_len(), self.config.kv_len());
        let mut rows = qkv.chunks_exact(q_len + 2 * kv_len);
        for span in step.spans.iter_mut() {
            let start = span.cache.len();
            for (i, row) in rows.by_ref().take(span.tokens.len()).enumerate() {
                let (keys, values) = row[q_len..].split_at(kv_len);
                let heads = keys.chunks_exact(head_dim).zip(values.chunks_exact(head_dim));
                for (head, (key, value)) in heads.enumerate() {
                    span.cache.write(layer_idx, head, start + i, key, value);
                }
            }
        }
    }

    /// `qkv`: (rows, q + k + v) → (rows, heads · head_dim).
    fn attention(&self, step: &Step<'_, '_, '_>, layer_idx: usize, qkv: &[f32]) -> Vec<f32> {
        let TransformerConfig { head_dim, .. } = self.config;
        let (q_len, stride) = (self.config.q_len(), self.config.q_len() + 2 * self.config.kv_len());
        let blocks = self.blocks(step);
        let lens: Vec<usize> = blocks.iter().map(|block| block.queries.len() * head_dim).collect();
        let mut by_block = vec![0.0; step.n_rows() * q_len];
        let (scale, window) = (self.config.score_scale, self.config.window_of(layer_idx).unwrap_or(usize::MAX));
        let (isa, shape, spans) = (step.pool.isa(), self.config.cache().head(), &step.spans);
        step.pool.run_pieces(&mut by_block, &lens, &|i, out| {
            let block = &blocks[i];
            let cache = &*spans[block.span_idx].cache;
            let mut queries = Vec::with_capacity(out.len());
            let mut visible = Vec::with_capacity(QUERIES);
            for (i, head) in &block.queries {
                queries.extend_from_slice(&qkv[(block.first_row + i) * stride + head * head_dim..][..head_dim]);
                let end = cache.len() + i + 1;
                visible.push(end.saturating_sub(window)..end);
            }
            let longest = visible.last().map_or(0, |range| range.end);
            let pages = cache.head_pages(layer_idx, block.kv_head, longest);
            attend(isa, shape, &queries, &visible, &pages, scale, &mut Vec::new(), out);
        });
        let mut out = vec![0.0; step.n_rows() * q_len];
        let mut pieces = by_block.chunks_exact(head_dim);
        for block in &blocks {
            for ((i, head), piece) in block.queries.iter().zip(pieces.by_ref()) {
                out[(block.first_row + i) * q_len + head * head_dim..][..head_dim].copy_from_slice(piece);
            }
        }
        out
    }

    /// A block shares one pass over a key head's pages: eight positions of a query head in a prompt, the query heads of a group in
    /// decoding.
    fn blocks(&self, step: &Step<'_, '_, '_>) -> Vec<Block> {
        let group = self.config.heads / self.config.kv_heads;
        let mut blocks = Vec::new();
        for (span_idx, rows) in step.rows.iter().enumerate() {
            let (first_row, len) = (rows.start, rows.len());
            for kv_head in 0..self.config.kv_heads {
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
        }
        blocks
    }
}

/// Queries that share one pass over one key head's pages: (row of the span, query head).
struct Block {
    span_idx: usize,
    kv_head: usize,
    first_row: usize,
    queries: Vec<(usize, usize)>,
}

fn norm_rows(pool: &Pool, x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let (isa, width) = (pool.isa(), weight.len());
    let mut out = vec![0.0; x.len()];
    pool.run_rows(&mut out, width, ROW_GRAIN, &|first, rows| {
        for (i, row) in rows.chunks_exact_mut(width).enumerate() {
            elementwise::rms_norm(isa, &x[(first + i) * width..(first + i + 1) * width], weight, eps, row);
        }
    });
    out
}
