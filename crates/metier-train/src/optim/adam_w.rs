//! AdamW (Loshchilov and Hutter 2019), one pass over values, derivatives and both means: 28 bytes a weight and step.

use std::{ops::Range, sync::Mutex};

use metier_kernels::{
    Pool,
    backward::{self, AdamStep},
};

/// Elements of one part: long enough to be worth a turn, short enough that sums of squares in f32 lose nothing that counts.
const PART: usize = 1 << 14;

/// What stays the same from step to step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Decay of the mean of derivatives.
    pub beta1: f32,
    /// Decay of the mean of their squares.
    pub beta2: f32,
    /// Added to the root.
    pub eps: f32,
    /// Derivatives together are not longer than this.
    pub clip: f32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.98, eps: 1e-8, clip: 1.0 }
    }
}

/// Numbers that are stepped alike.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// Which of all.
    pub range: Range<usize>,
    /// Step length at its greatest.
    pub learning_rate: f32,
    /// Pull towards 0.
    pub decay: f32,
}

/// The optimiser's state.
#[derive(Clone, Debug)]
pub struct AdamW {
    settings: Settings,
    groups: Vec<Group>,
    m: Vec<f32>,
    v: Vec<f32>,
    steps: i32,
}

impl AdamW {
    /// Nothing learnt yet. Groups are in order and cover all `len` numbers.
    ///
    /// # Panics
    ///
    /// Where they do not.
    pub fn new(settings: Settings, groups: Vec<Group>, len: usize) -> Self {
        let end = groups.iter().fold(0, |end, group| {
            assert_eq!(group.range.start, end, "groups follow each other");
            group.range.end
        });
        assert_eq!(end, len, "groups cover everything");
        Self { settings, groups, m: vec![0.0; len], v: vec![0.0; len], steps: 0 }
    }

    /// Both means, and how many steps were made: what a checkpoint keeps.
    pub fn state(&self) -> (&[f32], &[f32], i32) {
        (&self.m, &self.v, self.steps)
    }

    /// Goes on from a state.
    ///
    /// # Panics
    ///
    /// Where it is of another length.
    pub fn restore(&mut self, m: &[f32], v: &[f32], steps: i32) {
        self.m.copy_from_slice(m);
        self.v.copy_from_slice(v);
        self.steps = steps;
    }

    /// One step of `share` of the greatest length; takes the derivatives up (they are 0 afterwards). Returns their norm before clipping.
    /// Where it is no finite number, nothing moves.
    pub fn step(&mut self, pool: &Pool, share: f32, values: &mut [f32], grads: &mut [f32]) -> f64 {
        let norm = norm(pool, grads);
        if !norm.is_finite() {
            grads.fill(0.0);
            return norm;
        }
        self.steps += 1;
        let Settings { beta1, beta2, eps, clip } = self.settings;
        let common = AdamStep {
            learning_rate: 0.0,
            beta1,
            beta2,
            eps,
            decay: 0.0,
            gradient_scale: (f64::from(clip) / norm.max(1e-12)).min(1.0) as f32,
            correction1: 1.0 / (1.0 - beta1.powi(self.steps)),
            correction2: 1.0 / (1.0 - beta2.powi(self.steps)),
        };
        let (mut w, mut g, mut m, mut v) = (values, grads, &mut self.m[..], &mut self.v[..]);
        let mut parts = Vec::new();
        for group in &self.groups {
            let step = AdamStep { learning_rate: group.learning_rate * share, decay: group.decay, ..common };
            let mut left = group.range.len();
            while left > 0 {
                let len = left.min(PART);
                let (w_part, w_rest) = std::mem::take(&mut w).split_at_mut(len);
                let (g_part, g_rest) = std::mem::take(&mut g).split_at_mut(len);
                let (m_part, m_rest) = std::mem::take(&mut m).split_at_mut(len);
                let (v_part, v_rest) = std::mem::take(&mut v).split_at_mut(len);
                (w, g, m, v) = (w_rest, g_rest, m_rest, v_rest);
                parts.push(Mutex::new((step, w_part, g_part, m_part, v_part)));
                left -= len;
            }
        }
        let isa = pool.isa();
        pool.run(parts.len(), &|i| {
            let mut taken = parts[i].lock().expect("each part is taken once");
            let (step, w, g, m, v) = &mut *taken;
            backward::adam_w(isa, step, w, g, m, v);
        });
        norm
    }
}

/// Length of a vector: parts in f32, their sum in f64, in order.
fn norm(pool: &Pool, x: &[f32]) -> f64 {
    let mut sums = vec![0.0f32; x.len().div_ceil(PART)];
    let isa = pool.isa();
    pool.run_rows(&mut sums, 1, 1, &|first, sums| {
        for (i, sum) in sums.iter_mut().enumerate() {
            let from = (first + i) * PART;
            backward::sum_of_squares(isa, &x[from..x.len().min(from + PART)], sum);
        }
    });
    sums.iter().map(|sum| f64::from(*sum)).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use metier_kernels::Tier;

    use super::*;

    /// A bowl whose axes differ by a factor of 100: AdamW walks to its ground, whatever the number of threads.
    #[test]
    fn walks_to_the_ground() {
        let run = |threads: usize| {
            let pool = Pool::new(threads, Tier::detect());
            let n = 3 * PART + 7;
            let mut w: Vec<f32> = (0..n).map(|i| (i % 7) as f32 - 3.0).collect();
            let groups = vec![
                Group { range: 0..100, learning_rate: 0.1, decay: 0.0 },
                Group { range: 100..n, learning_rate: 0.1, decay: 0.01 },
            ];
            let mut optimiser = AdamW::new(Settings::default(), groups, n);
            let schedule = super::super::Schedule { steps: 200, warm_up: 10, floor: 0.0 };
            for step in 0..200 {
                let mut g: Vec<f32> = w.iter().enumerate().map(|(i, w)| w * (1 + i % 100) as f32).collect();
                optimiser.step(&pool, schedule.at(step), &mut w, &mut g);
                assert!(g.iter().all(|g| *g == 0.0));
            }
            w
        };
        let w = run(2);
        assert!(w.iter().all(|w| w.abs() < 0.05), "{:?}", w.iter().fold(0.0f32, |far, w| far.max(w.abs())));
        assert_eq!(w, run(1));
    }

    #[test]
    fn a_derivative_that_is_no_number_moves_nothing() {
        let pool = Pool::new(1, Tier::Scalar);
        let mut w = vec![1.0; 5];
        let mut optimiser =
            AdamW::new(Settings::default(), vec![Group { range: 0..5, learning_rate: 0.1, decay: 0.1 }], 5);
        let norm = optimiser.step(&pool, 1.0, &mut w, &mut [0.0, f32::NAN, 0.0, 0.0, 0.0]);
        assert!(norm.is_nan() && w == vec![1.0; 5]);
    }
}
