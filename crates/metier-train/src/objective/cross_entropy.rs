//! Cross entropy, with labels that may be smoothed or masked; the divergence between two passes over the same rows.

use metier_kernels::{Isa, elementwise};

/// Mean of `−Σ_k t_k · ln p_k` over the rows that have a class, `p = softmax(logits)`, `t` the class with `1 − smoothing` and all classes
/// with `smoothing / classes` (Szegedy et al. 2016). `logits`: (rows, classes) → adds `weight · (p − t) / rows` to `dlogits`. Rows without
/// a class (prompt tokens) add nothing.
pub fn cross_entropy(
    isa: Isa,
    logits: &[f32],
    targets: &[Option<usize>],
    smoothing: f32,
    weight: f32,
    dlogits: &mut [f32],
) -> f64 {
    let counted = targets.iter().flatten().count();
    if counted == 0 {
        return 0.0;
    }
    let classes = logits.len() / targets.len();
    let (uniform, factor) = (smoothing / classes as f32, weight / counted as f32);
    let mut loss = 0.0;
    let mut p = vec![0.0; classes];
    for ((row, target), drow) in logits.chunks_exact(classes).zip(targets).zip(dlogits.chunks_exact_mut(classes)) {
        let Some(target) = *target else { continue };
        let mut log_sum = 0.0;
        elementwise::log_sum_exp(isa, row, &mut log_sum);
        p.copy_from_slice(row);
        elementwise::softmax(isa, &mut p);
        let all: f64 = if smoothing > 0.0 { row.iter().map(|z| f64::from(log_sum - z)).sum() } else { 0.0 };
        loss += f64::from(1.0 - smoothing) * f64::from(log_sum - row[target]) + f64::from(uniform) * all;
        for (d, p) in drow.iter_mut().zip(&p) {
            *d += factor * (p - uniform);
        }
        drow[target] -= factor * (1.0 - smoothing);
    }
    loss * f64::from(weight) / counted as f64
}

/// R-Drop (Wu et al. 2021): `weight/2 · (KL(p‖q) + KL(q‖p))`, mean over rows, of two passes over the same rows that dropped other elements:
/// `logits` is (2 · rows, classes), the second pass below the first. Adds to `dlogits`:
/// `d/dz_p: weight/2 · (p ∘ (ln p − ln q − KL(p‖q)) + (p − q))`, and the same with p and q exchanged.
#[allow(clippy::needless_range_loop, reason = "several arrays of one length are indexed at once")]
pub fn symmetric_divergence(isa: Isa, logits: &[f32], classes: usize, weight: f32, dlogits: &mut [f32]) -> f64 {
    let rows = logits.len() / classes / 2;
    let half = rows * classes;
    let (first, second) = dlogits.split_at_mut(half);
    let factor = 0.5 * weight / rows.max(1) as f32;
    let mut total = 0.0;
    let log_softmax = |row: &[f32]| {
        let mut log_sum = 0.0;
        elementwise::log_sum_exp(isa, row, &mut log_sum);
        row.iter().map(|z| z - log_sum).collect::<Vec<f32>>()
    };
    for i in 0..rows {
        let at = i * classes..(i + 1) * classes;
        let (lp, lq) = (log_softmax(&logits[at.clone()]), log_softmax(&logits[half..][at.clone()]));
        let divergence = |from: &[f32], to: &[f32]| from.iter().zip(to).map(|(a, b)| a.exp() * (a - b)).sum::<f32>();
        let (pq, qp) = (divergence(&lp, &lq), divergence(&lq, &lp));
        total += f64::from(pq) + f64::from(qp);
        let (first, second) = (&mut first[at.clone()], &mut second[at]);
        for k in 0..classes {
            let (p, q, gap) = (lp[k].exp(), lq[k].exp(), lp[k] - lq[k]);
            first[k] += factor * (p * (gap - pq) + p - q);
            second[k] += factor * (q * (-gap - qp) + q - p);
        }
    }
    total * f64::from(factor)
}
