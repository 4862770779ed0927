//! How far is a row from what a teacher says of it? (Hinton et al. 2015)
//!
//! ```text
//! loss = (1 − w)·CE(z, class) + w·T²·KL(p ‖ q)       p: the teacher's shares at temperature T;  q = softmax(z / T)
//! ```
//!
//! Of a vocabulary a teacher names only its likeliest tokens; all others together are one more outcome, for teacher and student alike. That is a
//! lower bound of the whole divergence, and exact where the teacher named everything.

use metier_kernels::{Isa, elementwise};

use super::cross_entropy;

/// A rest that is smaller is taken for this: what is left of 1 behind f32 sums is noise.
const LEAST_REST: f64 = 1e-6;

/// What a teacher says of one row, at the temperature of the lesson.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Soft {
    /// The outcomes that it names, each once.
    pub ids: Vec<u32>,
    /// Their probabilities; what is left of 1 belongs to all others together.
    pub shares: Vec<f32>,
}

impl Soft {
    /// The likeliest `limit` outcomes of a row of logits, at a temperature; equals in the order of their ids.
    pub fn of(isa: Isa, logits: &[f32], temperature: f32, limit: usize) -> Self {
        let mut shares: Vec<f32> = logits.iter().map(|z| z / temperature).collect();
        elementwise::softmax(isa, &mut shares);
        let mut order: Vec<u32> = (0..shares.len() as u32).collect();
        let likelier = |a: &u32, b: &u32| shares[*b as usize].total_cmp(&shares[*a as usize]).then(a.cmp(b));
        if order.len() > limit && limit > 0 {
            order.select_nth_unstable_by(limit - 1, likelier);
            order.truncate(limit);
        }
        order.sort_unstable();
        let shares = order.iter().map(|id| shares[*id as usize]).collect();
        Self { ids: order, shares }
    }

    /// All outcomes of a distribution, brought to a temperature: `p^(1/T)`, scaled to a sum of 1.
    pub fn tempered(shares: &[f32], temperature: f32) -> Self {
        let mut shares: Vec<f32> = shares.iter().map(|p| p.max(0.0).powf(1.0 / temperature)).collect();
        let total: f32 = shares.iter().sum();
        shares.iter_mut().for_each(|p| *p /= total.max(f32::MIN_POSITIVE));
        Self { ids: (0..shares.len() as u32).collect(), shares }
    }
}

/// `T²·KL(p ‖ q)` of one row of logits; adds `factor` times its derivative to `drow`:
/// `T·(q − p)` of a named outcome, `T·q·(1 − p_rest / q_rest)` of the others.
pub fn divergence(isa: Isa, row: &[f32], soft: &Soft, temperature: f32, factor: f32, drow: &mut [f32]) -> f64 {
    let mut q: Vec<f32> = row.iter().map(|z| z / temperature).collect();
    let mut log_sum = 0.0;
    elementwise::log_sum_exp(isa, &q, &mut log_sum);
    let (mut loss, mut named_p, mut named_q) = (0.0f64, 0.0f64, 0.0f64);
    for (id, p) in soft.ids.iter().zip(&soft.shares) {
        let log_q = q[*id as usize] - log_sum;
        named_p += f64::from(*p);
        named_q += f64::from(log_q).exp();
        if *p > 0.0 {
            loss += f64::from(*p) * f64::from(p.ln() - log_q);
        }
    }
    elementwise::softmax(isa, &mut q);
    let (rest_p, rest_q) = ((1.0 - named_p).max(0.0), (1.0 - named_q).max(LEAST_REST));
    if rest_p > LEAST_REST {
        loss += rest_p * (rest_p.ln() - rest_q.ln());
    }
    let outside = (1.0 - rest_p / rest_q) as f32;
    let scale = factor * temperature;
    drow.iter_mut().zip(&q).for_each(|(d, q)| *d += scale * outside * q);
    for (id, p) in soft.ids.iter().zip(&soft.shares) {
        let q = q[*id as usize];
        drow[*id as usize] += scale * (q - p - outside * q);
    }
    loss * f64::from(temperature).powi(2)
}

/// Mean loss of rows that a teacher has seen: see the top of this file. `weights`: w of each row. Its derivative is added to `dlogits`.
#[allow(clippy::too_many_arguments, reason = "a loss and all it hangs on")]
pub fn taught(
    isa: Isa,
    logits: &[f32],
    classes: &[usize],
    soft: &[&Soft],
    weights: &[f32],
    temperature: f32,
    smoothing: f32,
    dlogits: &mut [f32],
) -> f64 {
    let rows = classes.len().max(1);
    let n_classes = logits.len() / rows;
    let each = logits.chunks_exact(n_classes).zip(dlogits.chunks_exact_mut(n_classes)).enumerate();
    let losses = each.map(|(i, (row, drow))| {
        let (hard, taught) = ((1.0 - weights[i]) / rows as f32, weights[i] / rows as f32);
        let hard = cross_entropy(isa, row, &[Some(classes[i])], smoothing, hard, drow);
        hard + f64::from(taught) * divergence(isa, row, soft[i], temperature, taught, drow)
    });
    losses.sum()
}

#[cfg(test)]
mod tests {
    use metier_kernels::{Pool, Tier};

    use super::*;

    const STEP: f32 = 1e-2;

    fn numbers(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 37 + seed * 11) as f32 * 0.61).sin() * 1.7).collect()
    }

    /// Of some outcomes, of all, and of a whole batch.
    #[test]
    fn the_derivative_is_the_difference() {
        let pool = Pool::new(1, Tier::detect());
        let isa = pool.isa();
        let check = |at: &[f32], found: &[f32], loss: &dyn Fn(&[f32]) -> f64| {
            for i in 0..at.len() {
                let moved = |by: f32| {
                    let mut moved = at.to_vec();
                    moved[i] += by;
                    loss(&moved)
                };
                let difference = (moved(STEP) - moved(-STEP)) / f64::from(2.0 * STEP);
                assert!((difference - f64::from(found[i])).abs() < 2e-4, "{i}: {difference} against {}", found[i]);
            }
        };
        let (row, teacher) = (numbers(40, 1), numbers(40, 5));
        for (limit, temperature) in [(5, 1.0), (5, 2.0), (40, 3.0)] {
            let soft = Soft::of(isa, &teacher, temperature, limit);
            assert_eq!(soft.ids.len(), limit);
            let mut drow = vec![0.0; 40];
            assert!(divergence(isa, &row, &soft, temperature, 1.0, &mut drow) > 0.01);
            check(&row, &drow, &|row| divergence(isa, row, &soft, temperature, 0.0, &mut [0.0; 40]));
            // Who says the same is not wrong.
            assert!(divergence(isa, &teacher, &soft, temperature, 1.0, &mut drow).abs() < 1e-4);
        }
        let logits = numbers(12, 3);
        let shares = [[0.7f32, 0.2, 0.1, 0.0], [0.25; 4], [0.0, 0.0, 0.1, 0.9]];
        let soft: Vec<Soft> = shares.iter().map(|shares| Soft::tempered(shares, 2.0)).collect();
        let soft: Vec<&Soft> = soft.iter().collect();
        let loss =
            |logits: &[f32], d: &mut [f32]| taught(isa, logits, &[0, 1, 3], &soft, &[0.5, 1.0, 0.0], 2.0, 0.1, d);
        let mut dlogits = vec![0.0; 12];
        loss(&logits, &mut dlogits);
        check(&logits, &dlogits, &|logits| loss(logits, &mut [0.0; 12]));
    }

    #[test]
    fn a_temperature_flattens() {
        let soft = Soft::tempered(&[0.9, 0.09, 0.01], 2.0);
        let expected = [0.9f32.sqrt(), 0.3, 0.1].map(|x| x / (0.9f32.sqrt() + 0.4));
        assert!(soft.shares.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{soft:?}");
    }
}
