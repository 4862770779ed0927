//! A frozen linear map with a low-rank delta (Hu et al. 2021): `y = x · Wᵀ + s · u · Bᵀ`, `u = x · Aᵀ`.
//!
//! ```text
//! dB += s · dyᵀ · u      du = s · dy · B      dA += duᵀ · x      dx = dy · W + du · A
//! ```
//!
//! W is never touched: nothing is computed for its derivative, and no dense `W + s·BA` is built.

use metier_kernels::{MatRef, Pool, Target, matmul_f32};

use super::linear::Linear;

/// The pair.
#[derive(Clone, Copy, Debug)]
pub struct Lora<'a> {
    /// (r, k)
    pub a: &'a [f32],
    /// (n, r)
    pub b: &'a [f32],
    /// `alpha / r`.
    pub scale: f32,
}

impl Lora<'_> {
    fn rank(&self, k: usize) -> usize {
        self.a.len() / k
    }

    /// `x`: (rows, k) → `y`: (rows, n); `u`: (rows, r) is kept for the way back, multiplied with the scale.
    pub fn forward(&self, pool: &Pool, base: Linear<'_>, x: &[f32], u: &mut [f32], y: &mut [f32]) {
        base.forward(pool, x, y);
        let (rows, r) = (y.len() / base.n, self.rank(base.k));
        matmul_f32(pool, MatRef::new(x, rows, base.k), MatRef::new(self.a, r, base.k).t(), u, Target::Overwrite);
        u.iter_mut().for_each(|u| *u *= self.scale);
        matmul_f32(pool, MatRef::new(u, rows, r), MatRef::new(self.b, base.n, r).t(), y, Target::Accumulate);
    }

    /// Adds to `da` (r, k) and `db` (n, r); writes `dx` (rows, k) over or adds to it. `du`: (rows, r) is room to work in.
    #[allow(clippy::too_many_arguments, reason = "a map, what it kept, and where its derivatives go")]
    pub fn backward(
        &self,
        pool: &Pool,
        base: Linear<'_>,
        saved: Saved<'_>,
        dy: &[f32],
        grads: (&mut [f32], &mut [f32]),
        dx: &mut [f32],
        target: Target,
    ) {
        let (rows, r) = (dy.len() / base.n, self.rank(base.k));
        let (da, db) = grads;
        // `u` carries the scale already.
        matmul_f32(pool, MatRef::new(dy, rows, base.n).t(), MatRef::new(saved.u, rows, r), db, Target::Accumulate);
        let mut du = vec![0.0; rows * r];
        matmul_f32(pool, MatRef::new(dy, rows, base.n), MatRef::new(self.b, base.n, r), &mut du, Target::Overwrite);
        du.iter_mut().for_each(|du| *du *= self.scale);
        matmul_f32(pool, MatRef::new(&du, rows, r).t(), MatRef::new(saved.x, rows, base.k), da, Target::Accumulate);
        base.backward_input(pool, dy, dx, target);
        matmul_f32(pool, MatRef::new(&du, rows, r), MatRef::new(self.a, r, base.k), dx, Target::Accumulate);
    }
}

/// What the forward pass kept.
#[derive(Clone, Copy, Debug)]
pub struct Saved<'a> {
    /// (rows, k)
    pub x: &'a [f32],
    /// (rows, r), multiplied with the scale.
    pub u: &'a [f32],
}
