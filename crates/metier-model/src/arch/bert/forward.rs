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
    super::{ROW_GRAIN, add_and_norm},
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

/// One pass: its rows, and what is used again from layer to layer.
struct Pass<'a> {
    pool: &'a Pool,
    /// Rows of each window.
    windows: Vec<Range<usize>>,
    /// Position of each row in its window.
    positions: Vec<usize>,
    quants: QuantRows,
    qkv: Vec<f32>,   // (rows, 3 · width)
    mixed: Vec<f32>, // (rows, width)
    wide: Vec<f32>,  // (rows, inner), or (rows, 2 · inner) where it is gated
}

impl Bert {
    /// The last hidden rows of all windows, one after the other: (Σ lengths, width).
    pub(super) fn forward(&self, pool: &Pool, windows: &[&[TokenId]]) -> Vec<f32> {
        let config = &self.config;
        let mut rows = Vec::with_capacity(windows.len());
        let mut end = 0;
        for window in windows {
            rows.push(end..end + window.len());
            end += window.len();
        }
        let wide = if config.is_gated() { 2 * config.inner } else { config.inner };
        let mut pass = Pass {
            pool,
            windows: rows,
            positions: windows.iter().flat_map(|window| 0..window.len()).collect(),
            quants: QuantRows::default(),
            qkv: vec![0.0; end * 3 * config.width],
            mixed: vec![0.0; end * config.width],
            wide: vec![0.0; end * wide],
        };
        let mut x = self.embed(windows, end);
        norm_rows(pool, &mut x, &self.weights.embedding_norm, config.eps);
        for (layer_idx, layer) in self.weights.layers.iter().enumerate() {
            if config.is_pre_norm() {
                self.pre_norm_layer(&mut pass, layer_idx, layer, &mut x);
            } else {
                self.post_norm_layer(&mut pass, layer_idx, layer, &mut x);
            }
        }
        if let Some(norm) = &self.weights.final_norm {
            norm_rows(pool, &mut x, norm, config.eps);
        }
        x
    }

    /// `x = LN(x + O·attention(x)); x = LN(x + D·gelu(U·x))`. `x`: (rows, width).
    fn post_norm_layer(&self, pass: &mut Pass<'_>, layer_idx: usize, layer: &Layer, x: &mut [f32]) {
        let (pool, eps, inner) = (pass.pool, self.config.eps, self.config.inner);
        layer.qkv.apply(pool, x, &mut pass.quants, &mut pass.qkv);
        let context = self.attention(pass, layer_idx);
        layer.output.apply(pool, &context, &mut pass.quants, &mut pass.mixed);
        if let Some(norm) = &layer.attention_norm {
            add_and_norm(pool, x, &pass.mixed, &norm.weight, &norm.bias, eps);
        }
        layer.up.apply(pool, x, &mut pass.quants, &mut pass.wide);
        let isa = pool.isa();
        pool.run_rows(&mut pass.wide, inner, ROW_GRAIN / 4, &|_, rows| elementwise::gelu(isa, rows));
        layer.down.apply(pool, &pass.wide, &mut pass.quants, &mut pass.mixed);
        add_and_norm(pool, x, &pass.mixed, &layer.norm.weight, &layer.norm.bias, eps);
    }

    /// `x = x + O·attention(turn(LN(x))); x = x + D·(gelu(G·h) ∘ U·h), h = LN(x)`. `x`: (rows, width).
    fn pre_norm_layer(&self, pass: &mut Pass<'_>, layer_idx: usize, layer: &Layer, x: &mut [f32]) {
        let (pool, eps, inner) = (pass.pool, self.config.eps, self.config.inner);
        let isa = pool.isa();
        let mut normed = x.to_vec();
        if let Some(norm) = &layer.attention_norm {
            norm_rows(pool, &mut normed, norm, eps);
        }
        layer.qkv.apply(pool, &normed, &mut pass.quants, &mut pass.qkv);
        self.turn(pass, layer_idx);
        let context = self.attention(pass, layer_idx);
        layer.output.apply(pool, &context, &mut pass.quants, &mut pass.mixed);
        elementwise::add(isa, x, &pass.mixed);
        normed.copy_from_slice(x);
        norm_rows(pool, &mut normed, &layer.norm, eps);
        layer.up.apply(pool, &normed, &mut pass.quants, &mut pass.wide);
        let mut activated = vec![0.0; pass.wide.len() / 2];
        pool.run_rows(&mut activated, inner, ROW_GRAIN / 4, &|first, rows| {
            for (i, row) in rows.chunks_exact_mut(inner).enumerate() {
                let (gate, up) = pass.wide[(first + i) * 2 * inner..(first + i + 1) * 2 * inner].split_at(inner);
                row.copy_from_slice(gate);
                elementwise::geglu(isa, row, up);
            }
        });
        layer.down.apply(pool, &activated, &mut pass.quants, &mut pass.mixed);
        elementwise::add(isa, x, &pass.mixed);
    }

    fn embed(&self, windows: &[&[TokenId]], rows: usize) -> Vec<f32> {
        let d = self.config.width;
        let table = self.index.tensor(&self.bytes, &self.weights.word_table).expect("found at load");
        let mut x = vec![0.0; rows * d];
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
        x
    }

    /// Turns queries and keys by their positions, where the network does that.
    fn turn(&self, pass: &mut Pass<'_>, layer_idx: usize) {
        let (Some(turns), Positions::Rotary { global, .. }) = (&self.turns, &self.config.positions) else { return };
        let (d, head_dim, global) = (self.config.width, self.config.head_dim(), global[layer_idx]);
        let (isa, positions) = (pass.pool.isa(), &pass.positions);
        pass.pool.run_rows(&mut pass.qkv, 3 * d, ROW_GRAIN, &|first, rows| {
            for (row, position) in rows.chunks_exact_mut(3 * d).zip(&positions[first..]) {
                elementwise::rope_halves(isa, &mut row[..2 * d], head_dim, turns.at(*position, global));
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

    /// The pass's queries, keys and values → (rows, width).
    fn attention(&self, pass: &Pass<'_>, layer_idx: usize) -> Vec<f32> {
        let (d, heads, head_dim) = (self.config.width, self.config.heads, self.config.head_dim());
        let scale = 1.0 / (head_dim as f32).sqrt();
        let reach = self.reach(layer_idx);
        let qkv = &pass.qkv;
        // Each part is one head of one window and writes (len, head_dim); the heads are put side by side afterwards.
        let pieces: Vec<usize> =
            pass.windows.iter().flat_map(|rows| std::iter::repeat_n(rows.len() * head_dim, heads)).collect();
        let mut by_head = vec![0.0; pass.mixed.len()];
        let isa = pass.pool.isa();
        pass.pool.run_pieces(&mut by_head, &pieces, &|part, out| {
            let (window, head) = (&pass.windows[part / heads], part % heads);
            let len = window.len();
            let shape = PageShape { head_dim, page_len: len.next_multiple_of(16) };
            let mut page = vec![0.0; shape.floats()];
            let mut queries = vec![0.0; len * head_dim];
            for (i, row) in window.clone().enumerate() {
                let row = &qkv[row * 3 * d..(row + 1) * 3 * d];
                let [q, k, v] = [0, d, 2 * d].map(|from| &row[from + head * head_dim..from + (head + 1) * head_dim]);
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
        let mut out = vec![0.0; by_head.len()];
        for window in &pass.windows {
            let from = &by_head[window.start * d..];
            for head in 0..heads {
                for i in 0..window.len() {
                    let source = &from[(head * window.len() + i) * head_dim..][..head_dim];
                    out[(window.start + i) * d + head * head_dim..][..head_dim].copy_from_slice(source);
                }
            }
        }
        out
    }
}

/// `x[row] = LayerNorm(x[row])` for all rows.
fn norm_rows(pool: &Pool, x: &mut [f32], norm: &Norm, eps: f32) {
    let (isa, d) = (pool.isa(), norm.weight.len());
    pool.run_rows(x, d, ROW_GRAIN, &|_, rows| {
        rows.chunks_exact_mut(d).for_each(|row| elementwise::layer_norm(isa, row, &norm.weight, &norm.bias, eps));
    });
}
