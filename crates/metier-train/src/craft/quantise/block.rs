//! Which 4-bit numbers stand for 32 weights? Blocks of GGUF's `Q4_0` and `Q4_1`.

use half::f16;
use metier_model::format::TensorType;

/// Weights of a block.
pub(super) const BLOCK: usize = 32;
/// How much narrower than its weights a block's range is tried: an outlier that is cut off can make all others finer.
const NARROWER: [f32; 6] = [0.0, 0.03, 0.06, 0.1, 0.15, 0.2];

/// How four bits are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FourBits {
    /// `w = scale · (q − 8)`: 4.5 bits a weight.
    Q4_0,
    /// `w = scale · q + min`: 5 bits a weight.
    Q4_1,
}

impl FourBits {
    /// As GGUF calls it.
    pub fn tensor_type(self) -> TensorType {
        match self {
            Self::Q4_0 => TensorType::Q4_0,
            Self::Q4_1 => TensorType::Q4_1,
        }
    }

    /// Bytes of a block.
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::Q4_0 => 2 + BLOCK / 2,
            Self::Q4_1 => 4 + BLOCK / 2,
        }
    }
}

/// What a block's quants are multiplied with, and what is added; both as halves hold them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Grid {
    scale: f32,
    min: f32,
    inverse: f32,
}

impl Grid {
    fn new(scale: f32, min: f32) -> Self {
        let [scale, min] = [scale, min].map(|x| f16::from_f32(x).to_f32());
        let inverse = if scale == 0.0 || !scale.is_finite() { 0.0 } else { 1.0 / scale };
        Self { scale, min, inverse }
    }

    /// The grid whose rounding costs least. `costs`: what a squared error in each weight costs.
    pub(super) fn fit(format: FourBits, weights: &[f32], costs: &[f32]) -> Self {
        let (low, high) = weights.iter().fold((f32::MAX, f32::MIN), |(low, high), w| (low.min(*w), high.max(*w)));
        let candidates = NARROWER.iter().flat_map(|a| NARROWER.iter().map(move |b| (*a, *b)));
        let grids = candidates.filter_map(|(a, b)| match format {
            // The weight of the largest magnitude is −8, whichever its sign.
            FourBits::Q4_0 => (b == 0.0).then(|| {
                let scale = if -low > high { low } else { high } * (1.0 - a) / -8.0;
                Self::new(scale, -8.0 * f16::from_f32(scale).to_f32())
            }),
            FourBits::Q4_1 => {
                let range = high - low;
                Some(Self::new(range * (1.0 - a - b) / 15.0, low + range * a))
            }
        });
        let mut best = (f32::INFINITY, Self::default());
        for grid in grids {
            let cost = weights.iter().zip(costs).map(|(w, cost)| cost * (w - grid.value(grid.quant(*w))).powi(2)).sum();
            if cost < best.0 {
                best = (cost, grid);
            }
        }
        best.1
    }

    /// The nearest quant.
    pub(super) fn quant(self, weight: f32) -> u8 {
        ((weight - self.min) * self.inverse).round_ties_even().clamp(0.0, 15.0) as u8
    }

    /// The weight that a quant stands for.
    pub(super) fn value(self, quant: u8) -> f32 {
        self.scale * f32::from(quant) + self.min
    }

    /// The block's bytes: scale, min where it has one, then quant j below quant j + 16 in byte j.
    pub(super) fn write(self, format: FourBits, quants: &[u8; BLOCK], out: &mut [u8]) {
        out[..2].copy_from_slice(&f16::from_f32(self.scale).to_le_bytes());
        if format == FourBits::Q4_1 {
            out[2..4].copy_from_slice(&f16::from_f32(self.min).to_le_bytes());
        }
        let (low, high) = quants.split_at(BLOCK / 2);
        let at = format.bytes() - BLOCK / 2;
        out[at..].iter_mut().zip(low.iter().zip(high)).for_each(|(byte, (low, high))| *byte = low | high << 4);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use metier_model::format::Tensor;

    use super::*;

    fn weights(seed: usize) -> Vec<f32> {
        (0..BLOCK).map(|i| (((i + seed) * 7919 % 1009) as f32 / 504.5 - 1.0) * 0.1 + 0.02).collect()
    }

    /// What is written is read as what was meant.
    #[test]
    fn a_block_is_read_as_it_was_meant() {
        for (format, seed) in [(FourBits::Q4_0, 1), (FourBits::Q4_1, 2), (FourBits::Q4_0, 3), (FourBits::Q4_1, 4)] {
            let weights = weights(seed);
            let grid = Grid::fit(format, &weights, &[1.0; BLOCK]);
            let mut quants = [0; BLOCK];
            quants.iter_mut().zip(&weights).for_each(|(q, w)| *q = grid.quant(*w));
            let mut bytes = vec![0; format.bytes()];
            grid.write(format, &quants, &mut bytes);
            let tensor = Tensor { name: "w", dtype: format.tensor_type(), shape: &[1, BLOCK], bytes: &bytes };
            let read = tensor.to_f32().unwrap();
            for ((read, quant), weight) in read.iter().zip(quants).zip(&weights) {
                assert!((read - grid.value(quant)).abs() < 1e-6, "{format:?}: {read} {}", grid.value(quant));
                assert!((read - weight).abs() < 0.03, "{format:?}: {read} for {weight}");
            }
        }
    }

    #[test]
    fn what_costs_more_is_nearer() {
        let weights = weights(5);
        let mut costs = [1.0; BLOCK];
        costs[3] = 1e6;
        let far = |grid: Grid| (grid.value(grid.quant(weights[3])) - weights[3]).abs();
        assert!(
            far(Grid::fit(FourBits::Q4_1, &weights, &costs)) <= far(Grid::fit(FourBits::Q4_1, &weights, &[1.0; BLOCK]))
        );
        assert_eq!(Grid::fit(FourBits::Q4_0, &[0.0; BLOCK], &[1.0; BLOCK]).quant(0.0), 0, "nothing but zeros");
    }
}
