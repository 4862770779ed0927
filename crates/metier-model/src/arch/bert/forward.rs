//! What does the network compute? One pass over the tokens of some windows.
//!
//! The tokens of all windows lie under each other as *rows*; every linear map sees them all at once. Nothing that is computed for a
//! row depends on the rows of other windows.

use std::ops::Range;

use metier_kernels::{
    Pool,
    attention::{PageShape, QUERIES, attend},
    elementwise,
    quant::QuantRows,
};

use super::{
    super::ROW_GRAIN,
    Bert, BertConfig, Positions,
    weights::{Layer, Norm},
};
use crate::tokenizer::TokenId;

/// `(cos, sin)` of every position and pair, for layers that see everything and for those with a window.
pub(super) struct Turns {
    global: Vec<(f32, f32)>, // (max_tokens, head_dim / 2)
    local: Vec<(f32, f32)>,
    pairs: usize,
}

impl Turns {
    /// `None` where positions are learned.
    pub(super) fn of(config: &BertConfig) -> Option<Self> {
        let Positions::Rotary { global_theta, local_theta, .. } = config.positions else { return None };
        let (dim, pairs) = (config.head_dim(), config.head_dim() / 2);
        // Angles are products of f32, as in the reference: at position 8,000 their rounding is as large as what is compared.
        let table = |theta: f32| {
            let frequencies: Vec<f32> =
                (0..pairs).map(|i| f64::from(theta).powf(-2.0 * i as f64 / dim as f64) as f32).collect();
            (0..config.max_tokens)
                .flat_map(|at| frequencies.iter().map(move |f| at as f32 * f).collect::<Vec<_>>())
                .map(|angle| (angle.cos(), angle.sin()))
                .collect()
        };
        Some(Self { global: table(global_theta), local: table(local_theta), pairs })
    }

    fn at(&self, position: usize, global: bool) -> &[(f32, f32)] {
        let table = if global { &self.global } else { &self.local };
        &table[position * self.pairs..(position + 1) * self.pairs]
    }
}

/// What a pass writes into: kept from pass to pass, for fresh memory costs a page fault for each 4 KiB.
#[derive(Default)]
pub(super) struct Buffers {
    pub(super) x: Vec<f32>, // (rows, width): after a pass, the last hidden rows
    normed: Vec<f32>,       // (rows, width) where norms stand before blocks
    qkv: Vec<f32>,          // (rows, 3 · width)
    by_head: Vec<f32>,      // of each window: (heads, rows, head_dim)
    mixed: Vec<f32>,        // (rows, width)
    wide: Vec<f32>,         // (rows, inner), or (rows, 2 · inner) where it is gated
    activated: Vec<f32>,    // (rows, inner) where it is gated
    quants: QuantRows,
}

impl Buffers {
    fn fit(&mut self, config: &BertConfig, rows: usize) {
        let BertConfig { width, inner, .. } = *config;
        let gated = config.is_gated();
        self.x.resize(rows * width, 0.0);
        self.normed.resize(if config.is_pre_norm() { rows * width } else { 0 }, 0.0);
        self.qkv.resize(rows * 3 * width, 0.0);
        self.by_head.resize(rows * width, 0.0);
        self.mixed.resize(rows * width, 0.0);
        self.wide.resize(rows * if gated { 2 * inner } else { inner }, 0.0);
        self.activated.resize(if gated { rows * inner } else { 0 }, 0.0);
    }
}

/// Where a row stands.
#[derive(Clone, Copy)]
struct Place {
    /// First row of its window.
    start: usize,
    /// Rows of its window.
    len: usize,
    /// Its position in the window.
    position: usize,
}

/// One pass: whose rows, and on what.
struct Pass<'a> {
    pool: &'a Pool,
    /// Rows of each window.
    windows: Vec<Range<usize>>,
    /// Of each row.
    places: Vec<Place>,
}

impl Bert {
    /// Leaves the last hidden rows of all windows, one after the other, in `buffers.x`: (Σ lengths, width).
    pub(super) fn forward(&self, pool: &Pool, windows: &[&[TokenId]], buffers: &mut Buffers) {
        let config = &self.config;
        let (mut rows, mut places) = (Vec::with_capacity(windows.len()), Vec::new());
        for window in windows {
            let (start, len) = (places.len(), window.len());
            rows.push(start..start + len);
            places.extend((0..len).map(|position| Place { start, len, position }));
        }
        buffers.fit(config, places.len());
        let pass = Pass { pool, windows: rows, places };
        self.embed(windows, &mut buffers.x);
        norm_rows(pool, &mut buffers.x, &self.weights.embedding_norm, config.eps);
        for (layer_idx, layer) in self.weights.layers.iter().enumerate() {
            if config.is_pre_norm() {
                self.pre_norm_layer(&pass, layer_idx, layer, buffers);
            } else {
                self.post_norm_layer(&pass, layer_idx, layer, buffers);
            }
        }
        if let Some(norm) = &self.weights.final_norm {
            norm_rows(pool, &mut buffers.x, norm, config.eps);
        }
    }

    /// `x = LN(x + O·attention(x)); x = LN(x + D·gelu(U·x))`.
    fn post_norm_layer(&self, pass: &Pass<'_>, layer_idx: usize, layer: &Layer, buffers: &mut Buffers) {
        let (pool, eps, inner) = (pass.pool, self.config.eps, self.config.inner);
        let Buffers { x, qkv, by_head, mixed, wide, quants, .. } = buffers;
        let bias = layer.qkv.apply(pool, x, quants, qkv);
        self.attention(pass, layer_idx, qkv, bias, by_head, mixed);
        // The queries are read: their room holds what the output map makes.
        let output = &mut qkv[..x.len()];
        let bias = layer.output.apply(pool, mixed, quants, output);
        if let Some(norm) = &layer.attention_norm {
            add_and_norm(pool, x, output, bias, norm, eps);
        }
        let bias = layer.up.apply(pool, x, quants, wide);
        let isa = pool.isa();
        pool.run_rows(wide, inner, ROW_GRAIN / 4, &|_, rows| elementwise::gelu_rows(isa, rows, bias));
        let bias = layer.down.apply(pool, wide, quants, mixed);
        add_and_norm(pool, x, mixed, bias, &layer.norm, eps);
    }

    /// `x = x + O·attention(turn(LN(x))); x = x + D·(gelu(G·h) ∘ U·h), h = LN(x)`.
    fn pre_norm_layer(&self, pass: &Pass<'_>, layer_idx: usize, layer: &Layer, buffers: &mut Buffers) {
        let (pool, eps, inner) = (pass.pool, self.config.eps, self.config.inner);
        let isa = pool.isa();
        let Buffers { x, normed, qkv, by_head, mixed, wide, activated, quants } = buffers;
        normed.copy_from_slice(x);
        if let Some(norm) = &layer.attention_norm {
            norm_rows(pool, normed, norm, eps);
        }
        let bias = layer.qkv.apply(pool, normed, quants, qkv);
        self.turn(pass, layer_idx, qkv, bias);
        self.attention(pass, layer_idx, qkv, &[], by_head, mixed);
        let bias = layer.output.apply(pool, mixed, quants, normed);
        elementwise::add_rows(isa, x, normed, bias);
        normed.copy_from_slice(x);
        norm_rows(pool, normed, &layer.norm, eps);
        let bias = layer.up.apply(pool, normed, quants, wide);
        if !bias.is_empty() {
            pool.run_rows(wide, 2 * inner, ROW_GRAIN / 4, &|_, rows| {
                rows.chunks_exact_mut(2 * inner).for_each(|row| elementwise::add(isa, row, bias));
            });
        }
        let wide = &*wide;
        pool.run_rows(activated, inner, ROW_GRAIN / 4, &|first, rows| {
            for (i, row) in rows.chunks_exact_mut(inner).enumerate() {
                let (gate, up) = wide[(first + i) * 2 * inner..(first + i + 1) * 2 * inner].split_at(inner);
                row.copy_from_slice(gate);
                elementwise::geglu(isa, row, up);
            }
        });
        let bias = layer.down.apply(pool, activated, quants, mixed);
        elementwise::add_rows(isa, x, mixed, bias);
    }

    /// `x`: (rows, width).
    fn embed(&self, windows: &[&[TokenId]], x: &mut [f32]) {
        let d = self.config.width;
        let table = self.index.tensor(&self.bytes, &self.weights.word_table).expect("found at load");
        let mut rows = x.chunks_exact_mut(d);
        for window in windows {
            let mut tokens = 0;
            for (id, row) in window.iter().zip(rows.by_ref()) {
                assert!(table.read_row(id.0 as usize, row), "the word table's type was checked at load");
                let Positions::Learned { padding, .. } = self.config.positions else { continue };
                let position = match padding {
                    Some(padding) if padding == id.0 as usize => padding,
                    _ => {
                        tokens += 1;
                        padding.map_or(0, |padding| padding + 1) + tokens - 1
                    }
                };
                let position = &self.weights.positions[position * d..(position + 1) * d];
                elementwise::add(metier_kernels::Isa::SCALAR, row, position);
            }
        }
    }

    /// Adds what is left to add, and turns queries and keys by their positions where the network does that. `qkv`: (rows, 3 · width).
    fn turn(&self, pass: &Pass<'_>, layer_idx: usize, qkv: &mut [f32], bias: &[f32]) {
        let (Some(turns), Positions::Rotary { global, .. }) = (&self.turns, &self.config.positions) else { return };
        let (d, head_dim, global) = (self.config.width, self.config.head_dim(), global[layer_idx]);
        let isa = pass.pool.isa();
        pass.pool.run_rows(qkv, 3 * d, ROW_GRAIN, &|first, rows| {
            for (row, place) in rows.chunks_exact_mut(3 * d).zip(&pass.places[first..]) {
                if !bias.is_empty() {
                    elementwise::add(isa, row, bias);
                }
                elementwise::rope_halves(isa, &mut row[..2 * d], head_dim, turns.at(place.position, global));
            }
        });
    }

    /// Tokens to either side that a layer sees; all where `None`.
    fn reach(&self, layer_idx: usize) -> Option<usize> {
        match &self.config.positions {
            Positions::Rotary { reach, global, .. } => (!global[layer_idx]).then_some(*reach),
            Positions::Learned { .. } => None,
        }
    }

    /// `qkv`: (rows, 3 · width), each row still without `bias` → `out`: (rows, width).
    fn attention(
        &self,
        pass: &Pass<'_>,
        layer_idx: usize,
        qkv: &[f32],
        bias: &[f32],
        by_head: &mut [f32],
        out: &mut [f32],
    ) {
        let (d, heads, head_dim) = (self.config.width, self.config.heads, self.config.head_dim());
        let scale = 1.0 / (head_dim as f32).sqrt();
        let reach = self.reach(layer_idx);
        // Each part is one head of one window and writes (len, head_dim); the heads are put side by side afterwards.
        let pieces: Vec<usize> =
            pass.windows.iter().flat_map(|rows| std::iter::repeat_n(rows.len() * head_dim, heads)).collect();
        let isa = pass.pool.isa();
        pass.pool.run_pieces(by_head, &pieces, &|part, out| {
            let (window, head) = (&pass.windows[part / heads], part % heads);
            let len = window.len();
            let shape = PageShape::f32(head_dim, len.next_multiple_of(16));
            let mut page = vec![0.0; shape.floats()];
            let mut queries = vec![0.0; len * head_dim];
            let mut with_bias = vec![0.0; 3 * head_dim];
            for (i, row) in window.clone().enumerate() {
                let row = &qkv[row * 3 * d..(row + 1) * 3 * d];
                for (to, from) in with_bias.chunks_exact_mut(head_dim).zip([0, d, 2 * d]) {
                    let span = from + head * head_dim..from + (head + 1) * head_dim;
                    to.copy_from_slice(&row[span.clone()]);
                    // So few elements are added before a kernel is chosen.
                    if !bias.is_empty() {
                        to.iter_mut().zip(&bias[span]).for_each(|(x, bias)| *x += bias);
                    }
                }
                let (q, kv) = with_bias.split_at(head_dim);
                let (k, v) = kv.split_at(head_dim);
                shape.write(&mut page, i, k, v);
                queries[i * head_dim..(i + 1) * head_dim].copy_from_slice(q);
            }
            let mut scratch = Vec::new();
            let step = QUERIES * head_dim;
            for (block, (queries, out)) in queries.chunks(step).zip(out.chunks_mut(step)).enumerate() {
                let visible: [_; QUERIES] = std::array::from_fn(|i| {
                    let at = block * QUERIES + i;
                    reach.map_or(0..len, |reach| at.saturating_sub(reach)..len.min(at + reach + 1))
                });
                let visible = &visible[..queries.len() / head_dim];
                attend(isa, shape, queries, visible, &[&page], scale, &mut scratch, out);
            }
        });
        let by_head = &*by_head;
        pass.pool.run_rows(out, d, ROW_GRAIN, &|first, rows| {
            for (row, place) in rows.chunks_exact_mut(d).zip(&pass.places[first..]) {
                for (head, to) in row.chunks_exact_mut(head_dim).enumerate() {
                    let from = place.start * d + (head * place.len + place.position) * head_dim;
                    to.copy_from_slice(&by_head[from..from + head_dim]);
                }
            }
        });
    }
}

/// `x[row] = LayerNorm(x[row] + y[row] + more)` for all rows.
fn add_and_norm(pool: &Pool, x: &mut [f32], y: &[f32], more: &[f32], norm: &Norm, eps: f32) {
    let (isa, d) = (pool.isa(), norm.weight.len());
    pool.run_rows(x, d, ROW_GRAIN / 4, &|first, rows| {
        let y = &y[first * d..first * d + rows.len()];
        elementwise::add_norm_rows(isa, rows, y, more, &norm.weight, &norm.bias, eps);
    });
}

/// `x[row] = LayerNorm(x[row])` for all rows.
fn norm_rows(pool: &Pool, x: &mut [f32], norm: &Norm, eps: f32) {
    let (isa, d) = (pool.isa(), norm.weight.len());
    pool.run_rows(x, d, ROW_GRAIN, &|_, rows| {
        rows.chunks_exact_mut(d).for_each(|row| elementwise::layer_norm(isa, row, &norm.weight, &norm.bias, eps));
    });
}
