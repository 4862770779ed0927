//! Supervised contrast (Khosla et al. 2020): texts of one class lie near each other, those of others do not.

use metier_kernels::{MatRef, Pool, Target, elementwise, matmul_f32};

/// Mean over rows that have another row of their class of `−1/|P(i)| · Σ_{j ∈ P(i)} ln softmax_{j ≠ i}(u_i · u_j / temperature)`.
/// `units`: (rows, width) → adds `weight ·` its derivative to `dunits`.
#[allow(clippy::needless_range_loop, reason = "several arrays of one length are indexed at once")]
pub fn supervised_contrast(
    pool: &Pool,
    units: &[f32],
    classes: &[usize],
    temperature: f32,
    weight: f32,
    dunits: &mut [f32],
) -> f64 {
    let n = classes.len();
    if n < 2 {
        return 0.0;
    }
    let (width, isa) = (units.len() / n, pool.isa());
    let view = MatRef::new(units, n, width);
    let mut similar = vec![0.0; n * n];
    matmul_f32(pool, view, view.t(), &mut similar, Target::Overwrite);
    let positives: Vec<usize> =
        (0..n).map(|i| (0..n).filter(|j| *j != i && classes[*j] == classes[i]).count()).collect();
    let anchors = positives.iter().filter(|n| **n > 0).count();
    if anchors == 0 {
        return 0.0;
    }
    let factor = weight / anchors as f32;
    let mut loss = 0.0;
    for (i, row) in similar.chunks_exact_mut(n).enumerate() {
        row.iter_mut().for_each(|s| *s /= temperature);
        row[i] = f32::NEG_INFINITY;
        if positives[i] == 0 {
            row.fill(0.0);
            continue;
        }
        let mut log_sum = 0.0;
        elementwise::log_sum_exp(isa, row, &mut log_sum);
        let share = 1.0 / positives[i] as f32;
        let is_positive = |j: usize| j != i && classes[j] == classes[i];
        for j in 0..n {
            if is_positive(j) {
                loss += f64::from(share * (log_sum - row[j]));
            }
        }
        // From here on the row holds the derivative with respect to the scaled similarities.
        elementwise::softmax(isa, row);
        for j in 0..n {
            let target = if is_positive(j) { share } else { 0.0 };
            row[j] = factor * (row[j] - target) / temperature;
        }
        row[i] = 0.0;
    }
    // Each similarity belongs to two rows.
    let d = MatRef::new(&similar, n, n);
    matmul_f32(pool, d, view, dunits, Target::Accumulate);
    matmul_f32(pool, d.t(), view, dunits, Target::Accumulate);
    loss * f64::from(factor)
}
