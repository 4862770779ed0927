//! Warm-up, then half a cosine (Loshchilov and Hutter 2017).

/// The share of the greatest step length that each step has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// Steps in all.
    pub steps: u64,
    /// Steps in which it rises.
    pub warm_up: u64,
    /// Share that is left at the end.
    pub floor: f32,
}

impl Schedule {
    /// `(step + 1) / warm_up`, then from 1 down to `floor`.
    pub fn at(&self, step: u64) -> f32 {
        if step < self.warm_up {
            return (step + 1) as f32 / self.warm_up as f32;
        }
        let rest = self.steps.saturating_sub(self.warm_up).max(1);
        let done = ((step - self.warm_up) as f32 / rest as f32).min(1.0);
        self.floor + (1.0 - self.floor) * 0.5 * (1.0 + (std::f32::consts::PI * done).cos())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_then_falls() {
        let schedule = Schedule { steps: 100, warm_up: 10, floor: 0.1 };
        let all: Vec<f32> = (0..101).map(|step| schedule.at(step)).collect();
        assert!((all[0] - 0.1).abs() < 1e-6 && (all[9] - 1.0).abs() < 1e-6 && (all[10] - 1.0).abs() < 1e-6);
        assert!((all[55] - 0.55).abs() < 1e-3 && (all[100] - 0.1).abs() < 1e-6);
        assert!(all[10..].windows(2).all(|pair| pair[1] <= pair[0]));
    }
}
