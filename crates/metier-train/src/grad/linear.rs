//! `y = x · Wᵀ + b`.
//!
//! ```text
//! dx = dy · W        dW += dyᵀ · x        db += Σ rows of dy
//! ```

use metier_kernels::{MatRef, Pool, Target, backward, matmul_f32};

use super::ROW_GRAIN;

/// A weight `(n, k)` and perhaps a bias `(n)`.
#[derive(Clone, Copy, Debug)]
pub struct Linear<'a> {
    /// (n, k)
    pub weight: &'a [f32],
    /// (n)
    pub bias: Option<&'a [f32]>,
    /// Outputs.
    pub n: usize,
    /// Inputs.
    pub k: usize,
}

impl Linear<'_> {
    /// `x`: (rows, k) → `y`: (rows, n).
    pub fn forward(&self, pool: &Pool, x: &[f32], y: &mut [f32]) {
        let rows = y.len() / self.n;
        if let Some(bias) = self.bias {
            y.chunks_exact_mut(self.n).for_each(|row| row.copy_from_slice(bias));
        }
        let target = if self.bias.is_some() { Target::Accumulate } else { Target::Overwrite };
        matmul_f32(pool, MatRef::new(x, rows, self.k), MatRef::new(self.weight, self.n, self.k).t(), y, target);
    }

    /// `dy`: (rows, n) → `dx`: (rows, k), written over or added to.
    pub fn backward_input(&self, pool: &Pool, dy: &[f32], dx: &mut [f32], target: Target) {
        let rows = dy.len() / self.n;
        matmul_f32(pool, MatRef::new(dy, rows, self.n), MatRef::new(self.weight, self.n, self.k), dx, target);
    }
}

/// Adds `dyᵀ · x` to `dweight` (n, k) and, where there is one, the sum of the rows of `dy` to `dbias` (n).
pub fn backward_weight(pool: &Pool, dy: &[f32], x: &[f32], k: usize, dweight: &mut [f32], dbias: Option<&mut [f32]>) {
    let n = dweight.len() / k;
    let rows = dy.len() / n;
    matmul_f32(pool, MatRef::new(dy, rows, n).t(), MatRef::new(x, rows, k), dweight, Target::Accumulate);
    if let Some(dbias) = dbias {
        sum_rows(pool, dy, dbias);
    }
}

/// Adds every row to `sum`.
pub fn sum_rows(pool: &Pool, rows: &[f32], sum: &mut [f32]) {
    let width = sum.len();
    let isa = pool.isa();
    let parts = rows.len().div_ceil(ROW_GRAIN * width);
    let mut partial = vec![0.0; parts * width];
    pool.run_rows(&mut partial, width, 1, &|part, sums| {
        for (i, sum) in sums.chunks_exact_mut(width).enumerate() {
            let from = (part + i) * ROW_GRAIN * width;
            let to = rows.len().min(from + ROW_GRAIN * width);
            rows[from..to].chunks_exact(width).for_each(|row| backward::add_scaled(isa, sum, 1.0, row));
        }
    });
    partial.chunks_exact(width).for_each(|part| backward::add_scaled(isa, sum, 1.0, part));
}
