//! What does the network compute? One pass over the new tokens of many sequences.
//!
//! The tokens of all spans lie under each other as the *rows* of one [`Step`]; every linear map sees them all at once, attention
//! keeps the sequences apart. Nothing that is computed for a row depends on the rows beside it.

use std::{ops::Range, sync::Mutex};

use metier_kernels::{
    Pool,
    attention::{QUERIES, attend},
    elementwise,
    lora::{LoraSegment, add_deltas},
    quant::{Input, QuantRows},
};

use super::{Activation, RopePairs, Span, Transformer, TransformerConfig, rope::Rope};
use crate::{
    adapter::Site,
    arch::{
        ROW_GRAIN,
        linear::{Linear, add_rows},
    },
    cache::PAGE_POSITIONS,
};

/// What a pass writes, kept for the next one: memory that is asked for anew costs a page fault for each 4 KiB.
#[derive(Default)]
pub(crate) struct Workspace {
    /// What goes from layer to layer. (rows, width)
    x: Vec<f32>,
    /// The input of a linear map. (rows, its k)
    inputs: Vec<f32>,
    qkv: Vec<f32>,
    /// What attention returns, block after block.
    by_block: Vec<f32>,
    /// Gate and up. (rows, 2 · inner)
    wide: Vec<f32>,
    /// What a block returns, where it is not added to `x` at once. (rows, width)
    mixed: Vec<f32>,
    logits: Vec<f32>,
    /// Last rows that are given back. (rows, width)
    hidden: Vec<f32>,
    quantised: QuantRows,
}

/// What a pass gives of the rows that are wanted, span after span.
pub(crate) struct Outputs<'w> {
    /// Of spans that want logits. (Σ wanted, vocabulary)
    pub(crate) logits: &'w [f32],
    /// Of spans that want their rows, behind the last norm. (Σ wanted, width)
    pub(crate) hidden: &'w [f32],
}

/// The first `len` elements, which the caller writes; what they held before is anything.
fn room(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}

/// One pass: who reads what, where its rows lie, and what all layers need to know about them.
struct Step<'p, 's, 'c> {
    pool: &'p Pool,
    spans: Vec<&'s mut Span<'c>>,
    /// Rows of each span: one a token.
    rows: Vec<Range<usize>>,
    /// `(cos, sin)` of each row's rotary angles, as [`Rope`] lays them out.
    turns: Vec<(f32, f32)>,
    blocks: Vec<Block>,
}

/// Queries that share one pass over one key head's pages: eight positions of a query head in a prompt, the query heads of a group in
/// decoding.
struct Block {
    span_idx: usize,
    kv_head: usize,
    heads: Range<usize>,
    /// Of the span.
    rows: Range<usize>,
}

/// Rows of a span whose blocks follow each other, head after head: a head's keys are read for all of them while they are in the
/// cache, and what comes out lies near for whoever reads these rows.
const GROUP_ROWS: usize = 64;

/// The outputs of a span's blocks lie group after group, in each head after head: `(groups, heads, rows)` of `head_dim`.
fn blocks_of(config: &TransformerConfig, rows: &[Range<usize>]) -> Vec<Block> {
    let group = config.heads / config.kv_heads;
    let mut blocks = Vec::new();
    for (span_idx, rows) in rows.iter().enumerate() {
        for from in (0..rows.len()).step_by(GROUP_ROWS) {
            let in_group = from..rows.len().min(from + GROUP_ROWS);
            for kv_head in 0..config.kv_heads {
                let heads = kv_head * group..(kv_head + 1) * group;
                if rows.len() == 1 {
                    for from in heads.clone().step_by(QUERIES) {
                        let heads = from..heads.end.min(from + QUERIES);
                        blocks.push(Block { span_idx, kv_head, heads, rows: 0..1 });
                    }
                    continue;
                }
                for head in heads {
                    for from in in_group.clone().step_by(QUERIES) {
                        let rows = from..in_group.end.min(from + QUERIES);
                        blocks.push(Block { span_idx, kv_head, heads: head..head + 1, rows });
                    }
                }
            }
        }
    }
    blocks
}

impl<'p, 's, 'c> Step<'p, 's, 'c> {
    fn new(pool: &'p Pool, spans: &'s mut [Span<'c>], rope: &Rope, config: &TransformerConfig) -> Self {
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
        let blocks = blocks_of(config, &rows);
        Self { pool, spans, rows, turns, blocks }
    }

    fn n_rows(&self) -> usize {
        self.rows.last().map_or(0, |rows| rows.end)
    }

    /// The spans' adapters at this site, and their rows.
    fn segments(&self, layer_idx: usize, site: Site) -> Vec<LoraSegment<'_>> {
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
        segments
    }

    /// The rows of `x` that are wanted by spans of one kind.
    fn wanted(&self, x: &[f32], hidden: bool) -> Vec<f32> {
        let width = x.len() / self.n_rows();
        let mut wanted = Vec::new();
        for (span, rows) in self.spans.iter().zip(&self.rows).filter(|(span, _)| span.hidden == hidden) {
            let first = rows.end - span.wanted.min(rows.len());
            wanted.extend_from_slice(&x[first * width..rows.end * width]);
        }
        wanted
    }

    /// The step without the spans that skip this layer, with the rows of `x` that are left; `None` where nobody skips it.
    fn of_layer(
        &mut self,
        layer_idx: usize,
        x: &[f32],
        config: &TransformerConfig,
    ) -> Option<(Step<'p, '_, 'c>, Vec<f32>)> {
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
        let blocks = blocks_of(config, &rows);
        Some((Step { pool: self.pool, spans, rows, turns, blocks }, left))
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
    /// Reads all spans in one pass and returns what is wanted of their rows. Runs inside `pool.enter`.
    ///
    /// # Panics
    ///
    /// Where a span is empty, its cache has no room for it, or an id lies outside the vocabulary: the engine admits none such.
    pub(crate) fn forward<'w>(&self, pool: &Pool, spans: &mut [Span<'_>], workspace: &'w mut Workspace) -> Outputs<'w> {
        let mut step = Step::new(pool, spans, &self.rope, &self.config);
        let mut buffer = std::mem::take(&mut workspace.x);
        let x = room(&mut buffer, step.n_rows() * self.config.width);
        self.embed(&step, x);
        for layer_idx in 0..self.layers.len() {
            if let Some((mut part, mut left)) = step.of_layer(layer_idx, x, &self.config) {
                if !left.is_empty() {
                    self.attention_block(&mut part, workspace, layer_idx, &mut left);
                    self.ffn_block(&part, workspace, layer_idx, &mut left);
                }
                step.put_back(layer_idx, &left, x);
            } else {
                self.attention_block(&mut step, workspace, layer_idx, x);
                self.ffn_block(&step, workspace, layer_idx, x);
            }
        }
        for span in &mut step.spans {
            span.cache.advance(span.tokens.len());
        }
        let n_logits = self.logits(&step, workspace, x);
        let n_hidden = self.last_rows(&step, workspace, x);
        workspace.x = buffer;
        Outputs { logits: &workspace.logits[..n_logits], hidden: &workspace.hidden[..n_hidden] }
    }

    fn embed(&self, step: &Step<'_, '_, '_>, x: &mut [f32]) {
        let table = self.table();
        let ids = step.spans.iter().flat_map(|span| span.tokens);
        for (id, row) in ids.zip(x.chunks_exact_mut(self.config.width)) {
            assert!(table.read_row(id.0 as usize, row), "the table's type was checked at load");
            if self.config.embedding_scale != 1.0 {
                row.iter_mut().for_each(|x| *x *= self.config.embedding_scale);
            }
        }
    }

    /// `x += post(O·attention(rope(n(Q·h)), rope(n(K·h)), V·h))`, `h = rms(x)`; keys and values go into the caches.
    /// `x`: (rows, width).
    fn attention_block(&self, step: &mut Step<'_, '_, '_>, workspace: &mut Workspace, layer_idx: usize, x: &mut [f32]) {
        let (layer, pool, n_rows) = (&self.layers[layer_idx], step.pool, step.n_rows());
        let Workspace { inputs, qkv, by_block, mixed, quantised, .. } = workspace;
        let qkv = room(qkv, n_rows * layer.qkv.matrix.n());
        let normed = room(inputs, n_rows * self.config.width);
        let segments = step.segments(layer_idx, Site::Qkv);
        {
            let norm = self.norm_of(pool, x, &layer.attention_norm);
            let input = Input { x: normed, k: self.config.width, fill: &norm, keep: !segments.is_empty() };
            layer.qkv.multiply(pool, input, quantised, qkv, false);
        }
        add_deltas(pool, normed, qkv, &segments);
        drop(segments);
        self.turn(step, layer_idx, qkv);
        self.store(step, layer_idx, qkv);
        let by_block = room(by_block, n_rows * self.config.q_len());
        self.attention(step, layer_idx, qkv, by_block);
        let context = room(inputs, n_rows * self.config.q_len());
        let gather = |first: usize, rows: &mut [f32]| self.gather(step, by_block, first, rows);
        let segments = step.segments(layer_idx, Site::Output);
        let post = layer.post_attention_norm.as_deref();
        let input = Input { x: context, k: self.config.q_len(), fill: &gather, keep: !segments.is_empty() };
        self.add_block(pool, (&layer.output, post), input, quantised, mixed, &segments, x);
    }

    /// `x += post(D·(act(G·h) ∘ U·h))`, `h = rms(x)`. `x`: (rows, width).
    fn ffn_block(&self, step: &Step<'_, '_, '_>, workspace: &mut Workspace, layer_idx: usize, x: &mut [f32]) {
        let (layer, pool, n_rows) = (&self.layers[layer_idx], step.pool, step.n_rows());
        let (isa, inner) = (pool.isa(), self.config.inner);
        let Workspace { inputs, wide, mixed, quantised, .. } = workspace;
        let wide = room(wide, n_rows * 2 * inner);
        let normed = room(inputs, n_rows * self.config.width);
        let segments = step.segments(layer_idx, Site::GateUp);
        {
            let norm = self.norm_of(pool, x, &layer.ffn_norm);
            let input = Input { x: normed, k: self.config.width, fill: &norm, keep: !segments.is_empty() };
            layer.gate_up.multiply(pool, input, quantised, wide, false);
        }
        add_deltas(pool, normed, wide, &segments);
        let wide = &*wide;
        let activate = |first: usize, rows: &mut [f32]| {
            for (row, both) in rows.chunks_exact_mut(inner).zip(wide[first * 2 * inner..].chunks_exact(2 * inner)) {
                let (gate, up) = both.split_at(inner);
                row.copy_from_slice(gate);
                match self.config.activation {
                    Activation::Silu => elementwise::swiglu(isa, row, up),
                    Activation::GeluTanh => elementwise::geglu_tanh(isa, row, up),
                }
            }
        };
        let activated = room(inputs, n_rows * inner);
        let (segments, post) = (step.segments(layer_idx, Site::Down), layer.post_ffn_norm.as_deref());
        let input = Input { x: activated, k: inner, fill: &activate, keep: !segments.is_empty() };
        self.add_block(pool, (&layer.down, post), input, quantised, mixed, &segments, x);
    }

    /// `x += post(linear(input) + deltas)`. Products that nothing else is done to are added to `x`
    /// where they are made; the sum is the same.
    #[allow(clippy::too_many_arguments, reason = "the end of both blocks: buffers and what is different")]
    fn add_block(
        &self,
        pool: &Pool,
        (linear, post_norm): (&Linear, Option<&[f32]>),
        input: Input<'_>,
        quantised: &mut QuantRows,
        mixed: &mut Vec<f32>,
        segments: &[LoraSegment<'_>],
        x: &mut [f32],
    ) {
        if segments.is_empty() && post_norm.is_none() && linear.bias.is_none() {
            return linear.multiply(pool, input, quantised, x, true);
        }
        let width = self.config.width;
        let mixed = room(mixed, x.len());
        let Input { x: rows, k, fill, keep } = input;
        linear.multiply(pool, Input { x: rows, k, fill, keep }, quantised, mixed, false);
        add_deltas(pool, rows, mixed, segments);
        if let Some(weight) = post_norm {
            pool.run_rows(mixed, width, ROW_GRAIN, &|_, rows| {
                elementwise::rms_norm_heads(pool.isa(), rows, weight, self.config.eps);
            });
        }
        add_rows(pool, x, mixed, width);
    }

    /// Writes the norms of rows of `x`.
    fn norm_of(&self, pool: &Pool, x: &[f32], weight: &[f32]) -> impl Fn(usize, &mut [f32]) + Sync {
        let (isa, width, eps) = (pool.isa(), self.config.width, self.config.eps);
        move |first: usize, rows: &mut [f32]| {
            for (row, x) in rows.chunks_exact_mut(width).zip(x[first * width..].chunks_exact(width)) {
                elementwise::rms_norm(isa, x, weight, eps, row);
            }
        }
    }

    /// The logits of the rows that are wanted, and how many numbers they are.
    fn logits(&self, step: &Step<'_, '_, '_>, workspace: &mut Workspace, x: &[f32]) -> usize {
        let width = self.config.width;
        let wanted = step.wanted(x, false);
        if wanted.is_empty() {
            return 0;
        }
        let Workspace { inputs, logits, quantised, .. } = workspace;
        let logits = room(logits, wanted.len() / width * self.config.vocabulary);
        let normed = room(inputs, wanted.len());
        let norm = self.norm_of(step.pool, &wanted, &self.output_norm);
        let input = Input { x: normed, k: width, fill: &norm, keep: false };
        self.head.multiply(step.pool, input, quantised, logits, false);
        logits.len()
    }

    /// The rows that are wanted as they are behind the last norm, and how many numbers they are.
    fn last_rows(&self, step: &Step<'_, '_, '_>, workspace: &mut Workspace, x: &[f32]) -> usize {
        let wanted = step.wanted(x, true);
        let hidden = room(&mut workspace.hidden, wanted.len());
        self.norm_of(step.pool, &wanted, &self.output_norm)(0, hidden);
        wanted.len()
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
        let head_dim = self.config.head_dim;
        let (q_len, kv_len) = (self.config.q_len(), self.config.kv_len());
        let stride = q_len + 2 * kv_len;
        let (pool, n_rows) = (step.pool, step.n_rows());
        let parts: Vec<Mutex<StorePart<'_>>> = step
            .spans
            .iter_mut()
            .zip(&step.rows)
            .flat_map(|(span, rows)| {
                let (start, first_row) = (span.cache.len(), rows.start);
                let parts = span.cache.parts_to_write(layer_idx, start..start + rows.len());
                parts.map(move |(positions, heads)| {
                    Mutex::new(StorePart { first_row: first_row + positions.start - start, positions, heads })
                })
            })
            .collect();
        let shape = self.config.cache().head();
        let write = |part: &Mutex<StorePart<'_>>| {
            let mut part = part.lock().expect("nobody else has this part");
            let StorePart { first_row, positions, heads } = &mut *part;
            for (i, position) in positions.clone().enumerate() {
                let (keys, values) = qkv[(*first_row + i) * stride + q_len..][..2 * kv_len].split_at(kv_len);
                let pairs = keys.chunks_exact(head_dim).zip(values.chunks_exact(head_dim));
                for (head, (key, value)) in heads.chunks_exact_mut(shape.floats()).zip(pairs) {
                    shape.write(head, position % PAGE_POSITIONS, key, value);
                }
            }
        };
        if n_rows < STORE_ROWS {
            parts.iter().for_each(write);
        } else {
            pool.run(parts.len(), &|i| write(&parts[i]));
        }
    }

    /// `qkv`: (rows, q + k + v) → outputs, block after block.
    fn attention(&self, step: &Step<'_, '_, '_>, layer_idx: usize, qkv: &[f32], by_block: &mut [f32]) {
        let TransformerConfig { head_dim, .. } = self.config;
        let stride = self.config.q_len() + 2 * self.config.kv_len();
        let lens: Vec<usize> = step.blocks.iter().map(|b| b.heads.len() * b.rows.len() * head_dim).collect();
        let (scale, window) = (self.config.score_scale, self.config.window_of(layer_idx).unwrap_or(usize::MAX));
        let (isa, shape) = (step.pool.isa(), self.config.cache().head());
        let (spans, blocks) = (&step.spans, &step.blocks);
        step.pool.run_pieces(by_block, &lens, &|i, out| {
            let Block { span_idx, kv_head, heads, rows } = &blocks[i];
            let cache = &*spans[*span_idx].cache;
            let first_row = step.rows[*span_idx].start;
            let mut queries = Vec::with_capacity(out.len());
            let mut visible = Vec::with_capacity(QUERIES);
            for head in heads.clone() {
                for row in rows.clone() {
                    queries.extend_from_slice(&qkv[(first_row + row) * stride + head * head_dim..][..head_dim]);
                    let end = cache.len() + row + 1;
                    visible.push(end.saturating_sub(window)..end);
                }
            }
            let longest = visible.last().map_or(0, |range| range.end);
            let pages = cache.head_pages(layer_idx, *kv_head, longest);
            attend(isa, shape, &queries, &visible, &pages, scale, &mut Vec::new(), out);
        });
    }

    /// Copies the outputs of rows from `first` on out of their blocks. `out`: (rows, heads · head_dim).
    fn gather(&self, step: &Step<'_, '_, '_>, by_block: &[f32], first: usize, out: &mut [f32]) {
        let TransformerConfig { head_dim, heads, .. } = self.config;
        for (i, out) in out.chunks_exact_mut(heads * head_dim).enumerate() {
            let row = first + i;
            let rows = &step.rows[step.rows.partition_point(|rows| rows.end <= row)];
            let group = rows.start + (row - rows.start) / GROUP_ROWS * GROUP_ROWS;
            let group = group..rows.end.min(group + GROUP_ROWS);
            for (head, out) in out.chunks_exact_mut(head_dim).enumerate() {
                let at = group.start * heads + head * group.len() + row - group.start;
                out.copy_from_slice(&by_block[at * head_dim..(at + 1) * head_dim]);
            }
        }
    }
}

/// From so many rows on, keys and values are written on all threads.
const STORE_ROWS: usize = 32;

/// Positions of one page, to be written by one thread.
struct StorePart<'a> {
    /// Row of the first of them.
    first_row: usize,
    positions: Range<usize>,
    /// All heads of one layer of the page.
    heads: &'a mut [f32],
}
