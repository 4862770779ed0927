//! Rotary positions (Su et al. 2021) on halves: a rotation by an angle; its derivative is the rotation back, multiplied by what it was multiplied by.

use metier_kernels::{Pool, elementwise};

use super::{ROW_GRAIN, Segments};

/// `(cos, sin)` of every position and pair.
#[derive(Clone, Debug)]
pub struct Turns {
    table: Vec<(f32, f32)>, // (positions, pairs)
    back: Vec<(f32, f32)>,
    head_dim: usize,
    pairs: usize,
}

impl Turns {
    /// Angles `position · frequencies[pair]`, for heads of `head_dim` elements of which the first `2 · pairs` turn; what turns is also
    /// multiplied by `strength`.
    pub fn new(frequencies: &[f32], strength: f32, positions: usize, head_dim: usize) -> Self {
        let angles = (0..positions).flat_map(|at| frequencies.iter().map(move |f| at as f32 * f));
        let table: Vec<(f32, f32)> = angles.map(|angle| (angle.cos() * strength, angle.sin() * strength)).collect();
        let back = table.iter().map(|(cos, sin)| (*cos, -sin)).collect();
        Self { table, back, head_dim, pairs: frequencies.len() }
    }

    /// Turns the first `width` elements of each row of `x` (rows, stride), whole heads, by its place in its segment.
    ///
    /// # Panics
    ///
    /// Where a segment is longer than there are positions.
    pub fn forward(&self, pool: &Pool, segments: &Segments, x: &mut [f32], stride: usize, width: usize) {
        self.turn(pool, segments, x, stride, width, &self.table);
    }

    /// Turns derivatives back, in place.
    pub fn backward(&self, pool: &Pool, segments: &Segments, d: &mut [f32], stride: usize, width: usize) {
        self.turn(pool, segments, d, stride, width, &self.back);
    }

    fn turn(&self, pool: &Pool, segments: &Segments, x: &mut [f32], stride: usize, width: usize, table: &[(f32, f32)]) {
        let isa = pool.isa();
        let places: Vec<usize> = segments.ranges().flat_map(|range| 0..range.len()).collect();
        pool.run_rows(x, stride, ROW_GRAIN, &|first, rows| {
            for (row, place) in rows.chunks_exact_mut(stride).zip(&places[first..]) {
                let turns = &table[place * self.pairs..(place + 1) * self.pairs];
                elementwise::rope_halves(isa, &mut row[..width], self.head_dim, turns);
            }
        });
    }
}
