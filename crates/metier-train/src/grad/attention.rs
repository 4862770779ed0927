//! Attention within segments, every head apart; several query heads may share one head of keys and values (Ainslie et al. 2023).
//!
//! ```text
//! P = softmax(s · Q · Kᵀ)    (causal: row i sees columns 0..=i)          O = P · V
//! dV += Pᵀ · dO    dP = dO · Vᵀ    dS = s · P ∘ (dP − Σ_j dP ∘ P)    dQ = dS · K    dK += dSᵀ · Q
//! ```
//!
//! Outside what a row sees (rows behind it where attention is causal, rows before its window), `P` and its derivative are 0.
//!
//! `P` is kept: `heads · len²` a segment. One part of the pool's work is one segment with all its heads.

use std::{ops::Range, sync::Mutex};

use metier_kernels::{MatMut, MatRef, Pool, Target, backward, elementwise, matmul_alone_f32};

use super::Segments;

/// Shape of attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values; divides `heads`.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Does a row see only itself and those before it?
    pub causal: bool,
    /// Rows that a row sees up to itself, of causal attention; `None`: all of them.
    pub window: Option<usize>,
    /// Scores are multiplied by this.
    pub scale: f32,
}

impl Attention {
    /// The usual scale of scores (Vaswani et al. 2017).
    pub fn scale_of(head_dim: usize) -> f32 {
        1.0 / (head_dim as f32).sqrt()
    }

    /// Elements of a row of queries, keys and values side by side.
    pub fn qkv_width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// What a row of a segment sees.
    fn visible(&self, row: usize, len: usize) -> Range<usize> {
        let end = if self.causal { row + 1 } else { len };
        self.window.map_or(0, |window| end.saturating_sub(window))..end
    }

    /// Where a head's queries, keys and values begin in a row.
    fn columns(&self, head: usize) -> [usize; 3] {
        let shared = head / (self.heads / self.kv_heads);
        [head, self.heads + shared, self.heads + self.kv_heads + shared].map(|head| head * self.head_dim)
    }

    /// Elements of `P` of all segments.
    pub fn kept(&self, segments: &Segments) -> usize {
        segments.ranges().map(|range| self.heads * range.len() * range.len()).sum()
    }

    fn kept_pieces(&self, segments: &Segments) -> Vec<usize> {
        segments.ranges().map(|range| self.heads * range.len() * range.len()).collect()
    }

    /// `qkv`: (rows, [`qkv_width`](Self::qkv_width)) → `out`: (rows, heads · head_dim); `p` as long as [`kept`](Self::kept).
    pub fn forward(&self, pool: &Pool, segments: &Segments, qkv: &[f32], p: &mut [f32], out: &mut [f32]) {
        let (isa, dim, stride) = (pool.isa(), self.head_dim, self.qkv_width());
        let width = self.heads * dim;
        let ps = cut(p, &self.kept_pieces(segments));
        let outs = cut(out, &segments.pieces(width));
        let parts: Vec<_> = ps.into_iter().zip(outs).map(Mutex::new).collect();
        pool.run(parts.len(), &|i| {
            let mut part = parts[i].lock().expect("each part is taken once");
            let (p, out) = &mut *part;
            let rows = segments.range(i);
            let len = rows.len();
            let qkv = &qkv[rows.start * stride..rows.end * stride];
            for (head, p) in p.chunks_exact_mut((len * len).max(1)).enumerate() {
                let [q, k, v] = self.columns(head).map(|from| MatRef::strided(&qkv[from..], len, dim, stride));
                matmul_alone_f32(q, k.t(), MatMut::strided(p, len, len, len), self.scale, Target::Overwrite);
                for (i, row) in p.chunks_exact_mut(len).enumerate() {
                    let visible = self.visible(i, len);
                    elementwise::softmax(isa, &mut row[visible.clone()]);
                    row[..visible.start].fill(0.0);
                    row[visible.end..].fill(0.0);
                }
                let out = MatMut::strided(&mut out[head * dim..], len, dim, width);
                matmul_alone_f32(MatRef::new(p, len, len), v, out, 1.0, Target::Overwrite);
            }
        });
    }

    /// `dout`: (rows, heads · head_dim) → `dqkv`: as `qkv`, written over.
    pub fn backward(&self, pool: &Pool, segments: &Segments, qkv: &[f32], p: &[f32], dout: &[f32], dqkv: &mut [f32]) {
        let (isa, dim, stride) = (pool.isa(), self.head_dim, self.qkv_width());
        let width = self.heads * dim;
        let mut starts = vec![0];
        self.kept_pieces(segments).iter().for_each(|len| starts.push(starts[starts.len() - 1] + len));
        pool.run_pieces(dqkv, &segments.pieces(stride), &|i, dqkv| {
            let rows = segments.range(i);
            let len = rows.len();
            if len == 0 {
                return;
            }
            dqkv.fill(0.0);
            let qkv = &qkv[rows.start * stride..rows.end * stride];
            let dout = &dout[rows.start * width..rows.end * width];
            let mut ds = vec![0.0; len * len];
            for (head, p) in p[starts[i]..starts[i + 1]].chunks_exact(len * len).enumerate() {
                let columns = self.columns(head);
                let [q, k, v] = columns.map(|from| MatRef::strided(&qkv[from..], len, dim, stride));
                let dout = MatRef::strided(&dout[head * dim..], len, dim, width);
                matmul_alone_f32(dout, v.t(), MatMut::strided(&mut ds, len, len, len), 1.0, Target::Overwrite);
                for (ds, p) in ds.chunks_exact_mut(len).zip(p.chunks_exact(len)) {
                    // Where `p` is 0, what a row does not see, the derivative is 0.
                    backward::softmax_backward(isa, p, self.scale, ds);
                }
                let (p, ds) = (MatRef::new(p, len, len), MatRef::new(&ds, len, len));
                let mut add = |from: usize, a: MatRef<'_>, b: MatRef<'_>| {
                    let to = MatMut::strided(&mut dqkv[from..], len, dim, stride);
                    matmul_alone_f32(a, b, to, 1.0, Target::Accumulate);
                };
                let [to_q, to_k, to_v] = columns;
                add(to_q, ds, k);
                add(to_k, ds.t(), q);
                add(to_v, p.t(), dout);
            }
        });
    }
}

/// Pieces of these lengths, one after the other.
fn cut<'a>(mut data: &'a mut [f32], lens: &[usize]) -> Vec<&'a mut [f32]> {
    lens.iter()
        .map(|len| {
            let (piece, rest) = std::mem::take(&mut data).split_at_mut(*len);
            data = rest;
            piece
        })
        .collect()
}
