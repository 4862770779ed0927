//! Which question: *which token comes next?* Logits and the caller's wishes go in; a token with its log-probability comes out. The same logits, wishes and
//! seed give the same token everywhere: ties go to the smaller id, sums run in one order.

use std::cmp::Ordering;

/// How tokens are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0: always the most probable token. Above: logits are divided by it.
    pub temperature: f32,
    /// Draw from the smallest set of tokens whose probabilities reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Draw from so many most probable tokens; 0 keeps all.
    pub top_k: usize,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for Sampling {
    /// Greedy.
    fn default() -> Self {
        Self { temperature: 0.0, top_p: 1.0, top_k: 0, seed: 0 }
    }
}

/// Draws the tokens of one sequence.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    state: u64,
    candidates: Vec<(u32, f32)>,
}

impl Sampler {
    /// A sampler at the start of its seed's sequence.
    pub fn new(sampling: Sampling) -> Self {
        Self { sampling, state: sampling.seed, candidates: Vec::new() }
    }

    /// Index of the next token. `logits`: (vocabulary,), finite.
    pub fn pick(&mut self, logits: &[f32]) -> u32 {
        let Sampling { temperature, top_p, top_k, .. } = self.sampling;
        // Below this, exp leaves one token anyway.
        if temperature.is_nan() || temperature < 1e-5 {
            return argmax(logits);
        }
        let max = logits[argmax(logits) as usize];
        self.candidates.clear();
        self.candidates
            .extend(logits.iter().enumerate().map(|(id, &logit)| (id as u32, ((logit - max) / temperature).exp())));

        let everything = top_k == 0 || top_k >= logits.len();
        if !everything {
            self.candidates.select_nth_unstable_by(top_k - 1, descending);
            self.candidates.truncate(top_k);
        }
        if top_p < 1.0 {
            self.candidates.sort_unstable_by(descending);
            let total: f32 = self.candidates.iter().map(|(_, weight)| weight).sum();
            let mut sum = 0.0;
            let kept = self.candidates.iter().position(|(_, weight)| {
                sum += weight;
                sum >= top_p.max(0.0) * total
            });
            self.candidates.truncate(kept.map_or(self.candidates.len(), |last| last + 1));
        } else if !everything {
            // Selection leaves an order of its own: draw in a fixed one.
            self.candidates.sort_unstable_by(descending);
        }

        let total: f64 = self.candidates.iter().map(|(_, weight)| f64::from(*weight)).sum();
        let mut left = self.uniform() * total;
        for &(id, weight) in &self.candidates {
            left -= f64::from(weight);
            if left < 0.0 {
                return id;
            }
        }
        // Rounding can leave a crumb: it belongs to the last candidate.
        self.candidates.last().map_or(0, |&(id, _)| id)
    }

    /// Uniform in [0, 1): SplitMix64 (Steele, Lea, Flood 2014), 53 bits.
    fn uniform(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Index of the largest logit; the smallest index among equals.
pub fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, &logit) in logits.iter().enumerate() {
        if logit > logits[best] {
            best = id;
        }
    }
    best as u32
}

/// Larger weight first, then smaller id.
fn descending(a: &(u32, f32), b: &(u32, f32)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// Log-probability (natural logarithm, at temperature 1) of `token`, and of the `top` most probable tokens, best first.
pub fn logprobs(logits: &[f32], token: u32, top: usize) -> (f32, Vec<(u32, f32)>) {
    let max = logits[argmax(logits) as usize];
    let log_sum = (logits.iter().map(|&logit| f64::from(logit - max).exp()).sum::<f64>()).ln() as f32 + max;
    let mut best: Vec<(u32, f32)> = Vec::new();
    if top > 0 {
        best.extend(logits.iter().enumerate().map(|(id, &logit)| (id as u32, logit - log_sum)));
        if top < best.len() {
            best.select_nth_unstable_by(top - 1, descending);
            best.truncate(top);
        }
        best.sort_unstable_by(descending);
    }
    (logits[token as usize] - log_sum, best)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [0.0, 3.0, 1.0, 3.0, -2.0];

    fn share(sampling: Sampling, token: u32) -> f64 {
        const DRAWS: u32 = 20_000;
        let mut sampler = Sampler::new(sampling);
        f64::from((0..DRAWS).map(|_| u32::from(sampler.pick(&LOGITS) == token)).sum::<u32>()) / f64::from(DRAWS)
    }

    #[test]
    fn greedy_takes_the_first_of_equals() {
        assert_eq!(Sampler::new(Sampling::default()).pick(&LOGITS), 1);
    }

    #[test]
    fn draws_follow_the_softmax() {
        let sampling = Sampling { temperature: 1.0, seed: 7, ..Sampling::default() };
        let total: f64 = LOGITS.iter().map(|&logit| f64::from(logit).exp()).sum();
        for (token, &logit) in LOGITS.iter().enumerate() {
            let expected = f64::from(logit).exp() / total;
            // Four standard errors of 20,000 draws.
            let tolerance = 4.0 * (expected * (1.0 - expected) / 20_000.0).sqrt();
            assert!((share(sampling, token as u32) - expected).abs() < tolerance, "token {token}");
        }
    }

    #[test]
    fn top_k_and_top_p_cut_the_tail() {
        let hot = Sampling { temperature: 5.0, seed: 3, ..Sampling::default() };
        assert!((share(Sampling { top_k: 1, ..hot }, 1) - 1.0).abs() < 1e-12);
        assert!((share(Sampling { top_k: 2, ..hot }, 2)).abs() < 1e-12);
        assert!(share(hot, 4) > 0.05);
        assert!(share(Sampling { top_p: 0.85, ..hot }, 4).abs() < 1e-12);
        assert!((share(Sampling { top_p: 0.0, ..hot }, 1) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn a_seed_is_a_sequence() {
        let draws = |seed| {
            let mut sampler = Sampler::new(Sampling { temperature: 1.0, seed, ..Sampling::default() });
            (0..50).map(|_| sampler.pick(&LOGITS)).collect::<Vec<_>>()
        };
        assert_eq!(draws(1), draws(1));
        assert_ne!(draws(1), draws(2));
    }

    #[test]
    fn logprobs_are_normalised_and_sorted() {
        let (own, top) = logprobs(&LOGITS, 2, 3);
        assert_eq!(top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 3, 2]);
        assert!((own - top[2].1).abs() < 1e-6);
        let (_, all) = logprobs(&LOGITS, 0, 99);
        assert!((all.iter().map(|(_, logprob)| logprob.exp()).sum::<f32>() - 1.0).abs() < 1e-5);
    }
}
