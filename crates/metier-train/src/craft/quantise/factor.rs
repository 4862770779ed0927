//! How much does an error in one weight cost, once all weights behind it have made up for it as well as they can?
//!
//! ```text
//! H = Xᵀ·X + d·1      H⁻¹ = Uᵀ·U      U: (k, k), upper triangular
//! ```
//!
//! An error `e` in weight `j` is best answered by `−e · U[j, j+1..] / U[j, j]` in the weights behind it, and costs `(e / U[j, j])²` (Frantar et al.
//! 2023). With `H = R·Rᵀ`, R upper triangular, `U = R⁻¹`: the inverse of H itself is never built.

use metier_kernels::{MatMut, MatRef, Pool, Target, backward, matmul_alone_f32};

/// Columns that are factored before the others hear of it.
const BLOCK: usize = 64;
/// Rows of a part of the pool's work.
const GRAIN: usize = 32;

/// `U` of a symmetric matrix `h`: (k, k), which is used up. `None` where it is not positive.
pub(super) fn inverse_factor(pool: &Pool, h: Vec<f32>, k: usize) -> Option<Vec<f32>> {
    let r = factor(pool, h, k)?;
    let mut u = vec![0.0; k * k];
    let isa = pool.isa();
    pool.run_rows(&mut u, k, GRAIN, &|first, rows| {
        for (i, row) in rows.chunks_exact_mut(k).enumerate() {
            row[first + i] = 1.0;
            for j in first + i..k {
                row[j] /= r[j * k + j];
                let (done, behind) = row.split_at_mut(j + 1);
                backward::add_scaled(isa, behind, -done[j], &r[j * k + j + 1..(j + 1) * k]);
            }
        }
    });
    Some(u)
}

/// `R`, upper triangular, with `R·Rᵀ = h`; what lies below the diagonal is anything.
fn factor(pool: &Pool, mut h: Vec<f32>, k: usize) -> Option<Vec<f32>> {
    let mut end = k;
    while end > 0 {
        let start = end.saturating_sub(BLOCK);
        for j in (start..end).rev() {
            let mut column = vec![0.0f64; j + 1];
            for (i, sum) in column.iter_mut().enumerate() {
                let known = (j + 1..end).map(|l| f64::from(h[i * k + l]) * f64::from(h[j * k + l]));
                *sum = f64::from(h[i * k + j]) - known.sum::<f64>();
            }
            let pivot = column[j].sqrt();
            if !pivot.is_finite() || pivot <= 0.0 {
                return None;
            }
            for (i, sum) in column.into_iter().enumerate() {
                h[i * k + j] = if i == j { pivot as f32 } else { (sum / pivot) as f32 };
            }
        }
        // What the factored columns explain of all before them.
        let width = end - start;
        let panel: Vec<f32> = (0..start).flat_map(|i| h[i * k + start..i * k + end].iter().copied()).collect();
        pool.run_rows(&mut h[..start * k], k, GRAIN, &|first, rows| {
            let n = rows.len() / k;
            let own = MatRef::new(&panel[first * width..(first + n) * width], n, width);
            let others = MatRef::new(&panel, start, width).t();
            matmul_alone_f32(own, others, MatMut::strided(rows, n, start, k), -1.0, Target::Accumulate);
        });
        end = start;
    }
    Some(h)
}

#[cfg(test)]
mod tests {
    use metier_kernels::Tier;

    use super::*;

    /// `Uᵀ·U·H` is the identity.
    #[test]
    fn the_factor_is_that_of_the_inverse() {
        let pool = Pool::new(2, Tier::detect());
        for k in [1, 5, 64, 65, 150] {
            let x: Vec<f32> = (0..2 * k * k).map(|i| ((i * 7919 + 13) % 1009) as f32 / 504.5 - 1.0).collect();
            let h: Vec<f32> = (0..k * k)
                .map(|at| {
                    let (i, j) = (at / k, at % k);
                    let dot: f32 = (0..2 * k).map(|row| x[row * k + i] * x[row * k + j]).sum();
                    dot + if i == j { 1.0 } else { 0.0 }
                })
                .collect();
            let u = inverse_factor(&pool, h.clone(), k).expect("positive");
            for i in 0..k {
                assert!(u[i * k..i * k + i].iter().all(|x| *x == 0.0), "upper triangular");
                // Row i of (Uᵀ·U)·H.
                let inverse: Vec<f64> =
                    (0..k).map(|j| (0..k).map(|l| f64::from(u[l * k + i]) * f64::from(u[l * k + j])).sum()).collect();
                for j in 0..k {
                    let found: f64 = (0..k).map(|l| inverse[l] * f64::from(h[l * k + j])).sum();
                    let expected = if i == j { 1.0 } else { 0.0 };
                    assert!((found - expected).abs() < 2e-3, "{k}: ({i}, {j}) is {found}");
                }
            }
        }
        assert!(inverse_factor(&pool, vec![1.0, 2.0, 2.0, 1.0], 2).is_none(), "not positive");
    }
}
