//! By which angle is each element turned? Rotary frequencies (Su et al. 2021) and their stretchings.

use super::TransformerConfig;

/// Angles per position, `base^(−2i / rope_dims)`, stretched as the file says.
pub(super) struct Rope {
    /// Of layers that see everything, then, where they differ, of layers with a window. (1 or 2, rope_dims / 2)
    frequencies: Vec<f32>,
    pairs: usize,
    strength: f32,
}

impl Rope {
    /// `divisors`: one a pair where the file has them (Llama 3's and LongRoPE's are tensors).
    pub(super) fn new(config: &TransformerConfig, divisors: Option<&[f32]>) -> Self {
        let pairs = config.rope_dims / 2;
        let frequency = |base: f32, i: usize| f64::from(base).powf(-2.0 * i as f64 / config.rope_dims as f64) as f32;
        let mut frequencies: Vec<f32> = (0..pairs)
            .map(|i| frequency(config.rope_base, i) / config.rope_divisor / divisors.map_or(1.0, |d| d[i]))
            .collect();
        if let Some(base) = config.window_rope_base {
            frequencies.extend((0..pairs).map(|i| frequency(base, i)));
        }
        Self { frequencies, pairs, strength: config.rope_strength }
    }

    /// Angles a position, one a pair; of layers with a window behind them where they differ.
    pub(super) fn frequencies(&self) -> &[f32] {
        &self.frequencies
    }

    /// `(cos, sin)` of a position, all frequencies.
    pub(super) fn turns(&self, position: usize) -> impl Iterator<Item = (f32, f32)> {
        let angles = self.frequencies.iter().map(move |f| position as f32 * f);
        angles.map(|angle| (angle.cos() * self.strength, angle.sin() * self.strength))
    }

    /// The turns of row `row` in layers with or without a window, from the turns of all rows under each other.
    pub(super) fn of_row<'a>(&self, turns: &'a [(f32, f32)], row: usize, windowed: bool) -> &'a [(f32, f32)] {
        let stride = self.frequencies.len();
        let from = row * stride + if windowed { stride - self.pairs } else { 0 };
        &turns[from..from + self.pairs]
    }
}
