//! Norms over rows; formulas stand at the kernels ([`metier_kernels::backward`]).

use std::sync::Mutex;

use metier_kernels::{Pool, backward, elementwise};

use super::ROW_GRAIN;

/// Weight and bias, both (width).
#[derive(Clone, Copy, Debug)]
pub struct LayerNorm<'a> {
    /// (width)
    pub weight: &'a [f32],
    /// (width)
    pub bias: &'a [f32],
    /// Added to the variance.
    pub eps: f32,
}

/// What layer norm keeps for the way back.
#[derive(Clone, Debug, Default)]
pub struct Normed {
    /// (rows, width): before weight and bias.
    pub rows: Vec<f32>,
    /// (rows)
    pub scales: Vec<f32>,
}

impl LayerNorm<'_> {
    /// `x`: (rows, width) → `out`: (rows, width).
    pub fn forward(&self, pool: &Pool, x: &[f32], kept: &mut Normed, out: &mut [f32]) {
        let (isa, width) = (pool.isa(), self.weight.len());
        kept.rows.resize(x.len(), 0.0);
        kept.scales.resize(x.len() / width, 0.0);
        let part = ROW_GRAIN * width;
        let parts = kept.rows.chunks_mut(part).zip(kept.scales.chunks_mut(ROW_GRAIN)).zip(out.chunks_mut(part));
        let parts: Vec<_> = parts.zip(x.chunks(part)).map(Mutex::new).collect();
        pool.run(parts.len(), &|i| {
            let mut part = parts[i].lock().expect("each part is taken once");
            let (((normed, scales), out), x) = &mut *part;
            let rows = normed.chunks_exact_mut(width).zip(scales.iter_mut()).zip(out.chunks_exact_mut(width));
            for (((normed, scale), out), x) in rows.zip(x.chunks_exact(width)) {
                backward::layer_norm_kept(isa, x, self.weight, self.bias, self.eps, normed, scale, out);
            }
        });
    }

    /// Turns `d` (rows, width) from `dout` into `dx`; adds to `dweight` and `dbias` (width).
    pub fn backward(&self, pool: &Pool, kept: &Normed, d: &mut [f32], dweight: &mut [f32], dbias: &mut [f32]) {
        let (isa, width) = (pool.isa(), self.weight.len());
        let part = ROW_GRAIN * width;
        let mut partial = vec![0.0; d.len().div_ceil(part) * 2 * width];
        let parts: Vec<_> = d.chunks_mut(part).zip(partial.chunks_exact_mut(2 * width)).map(Mutex::new).collect();
        pool.run(parts.len(), &|i| {
            let mut taken = parts[i].lock().expect("each part is taken once");
            let (d, sums) = &mut *taken;
            let (dweight, dbias) = sums.split_at_mut(width);
            let normed = kept.rows[i * part..].chunks_exact(width).zip(&kept.scales[i * ROW_GRAIN..]);
            for (d, (normed, scale)) in d.chunks_exact_mut(width).zip(normed) {
                backward::layer_norm_backward(isa, normed, *scale, self.weight, d, dweight, dbias);
            }
        });
        drop(parts);
        for sums in partial.chunks_exact(2 * width) {
            backward::add_scaled(isa, dweight, 1.0, &sums[..width]);
            backward::add_scaled(isa, dbias, 1.0, &sums[width..]);
        }
    }
}

/// `out = x / √(mean(x²) + eps) · weight` of every row.
pub fn rms_norm(pool: &Pool, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let (isa, width) = (pool.isa(), weight.len());
    pool.run_rows(out, width, ROW_GRAIN, &|first, rows| {
        for (row, x) in rows.chunks_exact_mut(width).zip(x[first * width..].chunks_exact(width)) {
            elementwise::rms_norm(isa, x, weight, eps, row);
        }
    });
}

/// Adds the derivative of [`rms_norm`] to `dx`; the weight is frozen.
pub fn rms_norm_backward(pool: &Pool, x: &[f32], weight: &[f32], eps: f32, dout: &[f32], dx: &mut [f32]) {
    let (isa, width) = (pool.isa(), weight.len());
    pool.run_rows(dx, width, ROW_GRAIN, &|first, rows| {
        let from = x[first * width..].chunks_exact(width).zip(dout[first * width..].chunks_exact(width));
        for (dx, (x, dout)) in rows.chunks_exact_mut(width).zip(from) {
            backward::rms_norm_backward(isa, x, weight, eps, dout, dx);
        }
    });
}

/// Turns the derivative of normed heads into that of the heads before: each piece of the first columns of `d` (rows, stride) that is as long as a
/// weight is one head. `x`: (rows, Σ heads · head_dim); `heads`: each weight (head_dim) with how many heads have it, in order.
pub fn rms_norm_heads_backward(
    pool: &Pool,
    x: &[f32],
    heads: [(&[f32], usize); 2],
    eps: f32,
    d: &mut [f32],
    stride: usize,
) {
    let isa = pool.isa();
    let columns: usize = heads.iter().map(|(weight, n)| weight.len() * n).sum();
    pool.run_rows(d, stride, ROW_GRAIN, &|first, rows| {
        for (row, x) in rows.chunks_exact_mut(stride).zip(x[first * columns..].chunks_exact(columns)) {
            let (mut row, mut x) = (&mut row[..columns], x);
            for (weight, n) in heads {
                let (own, others) = row.split_at_mut(n * weight.len());
                let (own_x, other_xs) = x.split_at(own.len());
                for (d, x) in own.chunks_exact_mut(weight.len()).zip(own_x.chunks_exact(weight.len())) {
                    let dout = d.to_vec();
                    d.fill(0.0);
                    backward::rms_norm_backward(isa, x, weight, eps, &dout, d);
                }
                (row, x) = (others, other_xs);
            }
        }
    });
}
