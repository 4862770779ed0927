//! Cross entropy of labels that are there or not, each for itself: a row may have several, or none.

/// Mean over rows of the sum over labels of `−t·ln σ(z) − (1 − t)·ln σ(−z)`; `t` is `1 − smoothing/2` for a row's labels and `smoothing/2` for
/// the others. `logits`: (rows, labels); `sets`: labels of each row, ascending → adds `weight · (σ(z) − t) / rows` to `dlogits`.
pub fn binary_cross_entropy(
    logits: &[f32],
    sets: &[&[usize]],
    smoothing: f32,
    weight: f32,
    dlogits: &mut [f32],
) -> f64 {
    if sets.is_empty() {
        return 0.0;
    }
    let n_labels = logits.len() / sets.len();
    let (low, factor) = (smoothing / 2.0, weight / sets.len() as f32);
    let mut loss = 0.0;
    for ((row, set), drow) in logits.chunks_exact(n_labels).zip(sets).zip(dlogits.chunks_exact_mut(n_labels)) {
        let mut left = set.iter().copied().peekable();
        for (label, (z, d)) in row.iter().zip(drow).enumerate() {
            let target = if left.next_if_eq(&label).is_some() { 1.0 - low } else { low };
            // ln(1 + e^z) − t·z, without e of a great number.
            loss += f64::from(z.max(0.0) - target * z + (-z.abs()).exp().ln_1p());
            *d += factor * (sigmoid(*z) - target);
        }
    }
    loss * f64::from(weight) / sets.len() as f64
}

/// R-Drop (Wu et al. 2021) of labels that are there or not: `weight/2 · Σ_labels (KL(p‖q) + KL(q‖p))`, mean over rows, of two passes over the same
/// rows; `logits` is (2 · rows, labels), the second pass below the first. Of two coins the sum is `(p − q)(z_p − z_q)`, with the derivative
/// `p(1 − p)(z_p − z_q) + p − q` for the first and the same with p and q exchanged for the second.
pub fn binary_divergence(logits: &[f32], n_labels: usize, weight: f32, dlogits: &mut [f32]) -> f64 {
    let half = logits.len() / 2;
    let factor = 0.5 * weight / (half / n_labels.max(1)).max(1) as f32;
    let (first, second) = logits.split_at(half);
    let (dfirst, dsecond) = dlogits.split_at_mut(half);
    let pairs = first.iter().zip(second).zip(dfirst.iter_mut().zip(dsecond));
    let each = pairs.map(|((a, b), (da, db))| {
        let (p, q, gap) = (sigmoid(*a), sigmoid(*b), a - b);
        *da += factor * (p * (1.0 - p) * gap + p - q);
        *db += factor * (-q * (1.0 - q) * gap + q - p);
        f64::from((p - q) * gap)
    });
    each.sum::<f64>() * f64::from(factor)
}

fn sigmoid(z: f32) -> f32 {
    1.0 / (1.0 + (-z).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: f32 = 1e-2;

    #[track_caller]
    fn check(loss: &dyn Fn(&[f32], &mut [f32]) -> f64) {
        let at: Vec<f32> = (0..24).map(|i| (i as f32 * 0.83).sin() * 3.0).collect();
        let mut found = vec![0.0; at.len()];
        assert!(loss(&at, &mut found) > 0.01);
        for i in 0..at.len() {
            let moved = |by: f32| {
                let mut moved = at.clone();
                moved[i] += by;
                loss(&moved, &mut vec![0.0; at.len()])
            };
            let difference = (moved(STEP) - moved(-STEP)) / f64::from(2.0 * STEP);
            assert!((difference - f64::from(found[i])).abs() < 2e-4, "{i}: {difference} against {}", found[i]);
        }
    }

    const SETS: [&[usize]; 4] = [&[0, 3], &[], &[5], &[0, 1, 2, 3, 4, 5]];

    #[test]
    fn the_derivative_is_the_difference() {
        for smoothing in [0.0, 0.1] {
            check(&|z, d| binary_cross_entropy(z, &SETS, smoothing, 0.7, d));
        }
        check(&|z, d| binary_divergence(z, 6, 0.7, d));
    }

    /// Of one row with two labels, by hand: ln(1 + e^−2) + ln(1 + e^−1), whatever the size of a third that is right.
    #[test]
    fn it_is_the_sum_of_its_labels() {
        let loss = binary_cross_entropy(&[2.0, -1.0, 200.0], &[&[0, 2]], 0.0, 1.0, &mut [0.0; 3]);
        assert!((loss - ((-2.0f64).exp().ln_1p() + (-1.0f64).exp().ln_1p())).abs() < 1e-6, "{loss}");
        let wrong = binary_cross_entropy(&[-200.0, 0.0], &[&[0]], 0.0, 1.0, &mut [0.0; 2]);
        assert!((wrong - (200.0 + 2.0f64.ln())).abs() < 1e-3, "{wrong}");
        assert_eq!(binary_cross_entropy(&[], &[], 0.1, 1.0, &mut []), 0.0);
    }
}
