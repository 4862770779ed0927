//! Seeded draws: uniform, normal, Beta, and weeks in blocks.

use metier_model::{proof::normal_quantile, specialist::mix};

/// SplitMix64: the same seed, the same numbers, on every machine.
#[derive(Clone, Debug)]
pub struct Draw(u64);

impl Draw {
    /// A stream of its own for a seed and a name.
    pub fn new(seed: u64, name: &str) -> Self {
        // FNV-1a: what is told apart are names of tasks, not adversaries.
        let hash = name
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        Self(mix(seed ^ mix(hash)))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// Between 0 and 1, neither of them.
    pub fn uniform(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    /// Below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }

    /// True with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        self.uniform() < p
    }

    /// Standard normal.
    pub fn normal(&mut self) -> f64 {
        normal_quantile(self.uniform())
    }

    /// Gamma with this shape and scale 1: Marsaglia and Tsang, ACM Transactions on Mathematical Software 26 (2000).
    pub(in crate::discover) fn gamma(&mut self, shape: f64) -> f64 {
        if shape < 1.0 {
            let boost = self.uniform().powf(1.0 / shape);
            return self.gamma(shape + 1.0) * boost;
        }
        let d = shape - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            if v > 0.0 && self.uniform().ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return d * v;
            }
        }
    }

    /// Beta(a, b), both positive.
    pub fn beta(&mut self, a: f64, b: f64) -> f64 {
        let (x, y) = (self.gamma(a), self.gamma(b));
        if x + y > 0.0 { x / (x + y) } else { a / (a + b) }
    }

    /// `length` positions below `n`, in runs of `block` neighbours that wrap around: a circular block bootstrap (Politis and Romano 1992).
    pub fn blocks(&mut self, n: usize, block: usize, length: usize) -> Vec<usize> {
        let mut drawn = Vec::with_capacity(length);
        while drawn.len() < length {
            let start = self.below(n);
            drawn.extend((0..block.min(length - drawn.len())).map(|step| (start + step) % n));
        }
        drawn
    }
}

/// Weeks that are drawn together: the cube root of their number, which is the order at which the variance of a block bootstrap errs least
/// (Hall, Horowitz and Jing 1995).
pub fn block_weeks(n: usize) -> usize {
    (n as f64).cbrt().round().max(1.0) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(values: &[f64]) -> (f64, f64) {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        (mean, values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / n)
    }

    #[test]
    fn draws_have_the_moments_of_their_distribution() {
        const N: usize = 40_000;
        let mut draw = Draw::new(1, "moments");
        for (a, b) in [(0.5, 0.5), (2.0, 5.0), (40.0, 3.0), (0.5, 300.5)] {
            let values: Vec<f64> = (0..N).map(|_| draw.beta(a, b)).collect();
            let (mean, variance) = moments(&values);
            let (expected, spread) = (a / (a + b), a * b / ((a + b) * (a + b) * (a + b + 1.0)));
            assert!((mean - expected).abs() < 5.0 * (spread / N as f64).sqrt(), "{a} {b}: {mean}");
            assert!((variance / spread - 1.0).abs() < 0.06, "{a} {b}: {variance} {spread}");
        }
        let (mean, variance) = moments(&(0..N).map(|_| draw.normal()).collect::<Vec<_>>());
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.03, "{mean} {variance}");
    }

    #[test]
    fn the_same_name_draws_the_same() {
        let numbers = |seed, name| {
            let mut draw = Draw::new(seed, name);
            (0..8).map(|_| draw.below(1000)).collect::<Vec<_>>()
        };
        assert_eq!(numbers(1, "a"), numbers(1, "a"));
        assert_ne!(numbers(1, "a"), numbers(1, "b"));
        assert_ne!(numbers(1, "a"), numbers(2, "a"));
    }

    #[test]
    fn blocks_are_runs_of_neighbours_and_every_week_is_as_likely() {
        let mut draw = Draw::new(3, "blocks");
        let mut counts = [0u32; 10];
        for _ in 0..2000 {
            let drawn = draw.blocks(10, 3, 10);
            assert_eq!(drawn.len(), 10);
            for run in drawn.chunks(3) {
                assert!(run.windows(2).all(|pair| pair[1] == (pair[0] + 1) % 10), "{drawn:?}");
            }
            drawn.iter().for_each(|&week| counts[week] += 1);
        }
        assert!(counts.iter().all(|&n| (1850..2150).contains(&n)), "{counts:?}");
        assert_eq!([1, 7, 8, 13, 52, 104].map(block_weeks), [1, 2, 2, 2, 4, 5]);
    }
}
