//! f32 or f16 weights in panels, and the product whose every output is summed over `k` in order: the same bits alone, in a batch
//! and on every tier.
//!
//! ```text
//! panel 0: k=0: w[0..16][0]   k=1: w[0..16][1]   …       one k = one register of 16 outputs
//! panel 1: k=0: w[16..32][0]  …                          the last panel is filled up with zeros
//! ```
//!
//! f16 weights are widened on their way into a register, which is exact: products and sums are those of f32 weights of the same values.

use half::f16;

use crate::{
    PANEL,
    lanes::Lanes,
    memory::{AlignedFloats, AlignedHalves, Shared},
    pool::Pool,
};

/// Multiply-adds below which a product is not worth handing to other threads.
pub(crate) const MIN_PARALLEL_MACS: usize = 1 << 16;
/// Parts a thread gets, so that a slower one may take fewer.
pub(crate) const PARTS_PER_THREAD: usize = 4;
/// Up to so many rows, four panels are taken at once: few rows leave registers free, and more sums hide FMA's latency.
pub(crate) const FEW_ROWS: usize = 3;

/// Weights `(n, k)` in panels of f32 or f16.
pub struct DenseMatrix {
    panels: Panels, // (n / 16, k, 16)
    n: usize,
    k: usize,
}

enum Panels {
    F32(AlignedFloats),
    F16(AlignedHalves),
}

impl DenseMatrix {
    /// Packs `n` rows of `k` weights; `row(i, buffer)` writes row i.
    ///
    /// # Panics
    ///
    /// Where n · k overflows.
    pub fn pack(n: usize, k: usize, row: impl FnMut(usize, &mut [f32])) -> Self {
        let mut panels = AlignedFloats::zeroed(packed_len(n, k));
        fill_panels(&mut panels, n, k, row, |weight| weight);
        Self { panels: Panels::F32(panels), n, k }
    }

    /// The same, each weight rounded to the nearest f16; beyond 65,504 it becomes infinite: whoever calls looks at the values first.
    ///
    /// # Panics
    ///
    /// Where n · k overflows.
    pub fn pack_f16(n: usize, k: usize, row: impl FnMut(usize, &mut [f32])) -> Self {
        let mut panels = AlignedHalves::zeroed(packed_len(n, k));
        fill_panels(&mut panels, n, k, row, |weight| f16::from_f32(weight).to_bits());
        Self { panels: Panels::F16(panels), n, k }
    }

    /// Outputs.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Inputs.
    pub fn k(&self) -> usize {
        self.k
    }
}

/// Weights of whole panels.
fn packed_len(n: usize, k: usize) -> usize {
    (n.div_ceil(PANEL) * PANEL).checked_mul(k).expect("a matrix fits into memory")
}

/// Writes rows into panels, each weight as `keep` makes it.
fn fill_panels<W>(
    panels: &mut [W],
    n: usize,
    k: usize,
    mut row: impl FnMut(usize, &mut [f32]),
    keep: impl Fn(f32) -> W,
) {
    let mut buffer = vec![0.0; k * PANEL];
    for (panel_idx, panel) in panels.chunks_exact_mut((k * PANEL).max(1)).enumerate() {
        let first = panel_idx * PANEL;
        let width = PANEL.min(n - first);
        for lane in 0..width {
            row(first + lane, &mut buffer[lane * k..(lane + 1) * k]);
        }
        for (k_idx, column) in panel.chunks_exact_mut(PANEL).enumerate() {
            for (lane, weight) in column[..width].iter_mut().enumerate() {
                *weight = keep(buffer[lane * k + k_idx]);
            }
        }
    }
}

/// `out[m][n] = bias[n] + Σ_k x[m][k] · w[n][k]`. `x`: (m, k); `out`: (m, n).
///
/// # Panics
///
/// Where sizes disagree.
pub fn matmul(pool: &Pool, x: &[f32], weights: &DenseMatrix, bias: Option<&[f32]>, out: &mut [f32]) {
    let (n, k) = (weights.n, weights.k);
    if n == 0 || out.is_empty() {
        return;
    }
    let m = out.len() / n;
    assert!(out.len() == m * n && x.len() == m * k, "x is (m, k), out is (m, n)");
    assert!(bias.is_none_or(|bias| bias.len() == n), "one bias an output");
    let out = Shared::new(out);
    let isa = pool.isa();
    run_panels(pool, n.div_ceil(PANEL), m, m * n * k, &|first, count| {
        // SAFETY (of the kernel's `out.part`): each part writes the columns of its own panels.
        let range = first * k * PANEL..(first + count) * k * PANEL;
        match &weights.panels {
            Panels::F32(panels) => f32_panels(isa, x, m, &panels[range], k, bias, first, n, out),
            Panels::F16(panels) => f16_panels(isa, x, m, &panels[range], k, bias, first, n, out),
        }
    });
}

/// Splits panels into parts of whole groups, or one part where the work is small.
pub(crate) fn run_panels(pool: &Pool, n_panels: usize, m: usize, macs: usize, part: &(dyn Fn(usize, usize) + Sync)) {
    let group = if m <= FEW_ROWS { 4 } else { 2 };
    if macs < MIN_PARALLEL_MACS {
        return part(0, n_panels);
    }
    let groups = n_panels.div_ceil(group);
    let grain = groups.div_ceil(pool.threads() * PARTS_PER_THREAD) * group;
    pool.run_ranges(n_panels, grain, &|panels| part(panels.start, panels.len()));
}

/// A weight as it lies in a panel.
trait Weight: Copy {
    /// Sixteen of them as f32.
    ///
    /// # Safety
    ///
    /// Sixteen readable weights behind `p`; features as [`Lanes`] demands.
    unsafe fn load<L: Lanes>(p: *const Self) -> L::F;
}

impl Weight for f32 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const Self) -> L::F {
        // SAFETY: the caller's promise.
        unsafe { L::load(p) }
    }
}

/// The bits of an f16.
impl Weight for u16 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const Self) -> L::F {
        // SAFETY: the caller's promise.
        unsafe { L::load_f16(p) }
    }
}

per_tier! {
    fn f32_panels(x: &[f32], m: usize, panels: &[f32], k: usize, bias: Option<&[f32]>, first: usize, n: usize,
        out: Shared<'_, f32>) = f32_panels_body
}

per_tier! {
    fn f16_panels(x: &[f32], m: usize, panels: &[u16], k: usize, bias: Option<&[f32]>, first: usize, n: usize,
        out: Shared<'_, f32>) = f16_panels_body
}

#[allow(clippy::too_many_arguments, reason = "a kernel's arguments are its shape")]
#[inline(always)]
unsafe fn f32_panels_body<L: Lanes>(
    x: &[f32],
    m: usize,
    panels: &[f32],
    k: usize,
    bias: Option<&[f32]>,
    first: usize,
    n: usize,
    out: Shared<'_, f32>,
) {
    // SAFETY: the caller's promise.
    unsafe { dense_panels_body::<L, f32>(x, m, panels, k, bias, first, n, out) };
}

#[allow(clippy::too_many_arguments, reason = "a kernel's arguments are its shape")]
#[inline(always)]
unsafe fn f16_panels_body<L: Lanes>(
    x: &[f32],
    m: usize,
    panels: &[u16],
    k: usize,
    bias: Option<&[f32]>,
    first: usize,
    n: usize,
    out: Shared<'_, f32>,
) {
    // SAFETY: the caller's promise.
    unsafe { dense_panels_body::<L, u16>(x, m, panels, k, bias, first, n, out) };
}

#[allow(clippy::too_many_arguments, reason = "a kernel's arguments are its shape")]
#[inline(always)]
unsafe fn dense_panels_body<L: Lanes, W: Weight>(
    x: &[f32],
    m: usize,
    panels: &[W],
    k: usize,
    bias: Option<&[f32]>,
    first: usize,
    n: usize,
    out: Shared<'_, f32>,
) {
    let count = panels.len() / (k * PANEL).max(1);
    let mut done = 0;
    while done < count {
        let left = count - done;
        let panels = &panels[done * k * PANEL..];
        let tile = Tile { x, m, panels, k, bias, first: first + done, n, out };
        // SAFETY: features as the trait demands; `left` panels are there.
        unsafe {
            if m <= FEW_ROWS && left >= 4 && L::TILE_ROWS >= 12 {
                tile.rows::<L, 4>();
                done += 4;
            } else if left >= 2 && L::TILE_ROWS >= 12 {
                tile.rows::<L, 2>();
                done += 2;
            } else {
                tile.rows::<L, 1>();
                done += 1;
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Tile<'a, W> {
    x: &'a [f32],
    m: usize,
    panels: &'a [W],
    k: usize,
    bias: Option<&'a [f32]>,
    first: usize,
    n: usize,
    out: Shared<'a, f32>,
}

impl<W: Weight> Tile<'_, W> {
    /// All rows against `P` panels, in row tiles as tall as the registers allow.
    #[inline(always)]
    unsafe fn rows<L: Lanes, const P: usize>(self) {
        let mut row = 0;
        while row < self.m {
            let left = self.m - row;
            // SAFETY: features as the trait demands; `row + R <= m` by the comparison.
            unsafe {
                if P < 4 && L::TILE_ROWS >= 12 && left >= 12 {
                    self.tile::<L, 12, P>(row);
                    row += 12;
                } else if P < 4 && L::TILE_ROWS >= 12 && left >= 6 {
                    self.tile::<L, 6, P>(row);
                    row += 6;
                } else if P < 4 && left >= 4 {
                    self.tile::<L, 4, P>(row);
                    row += 4;
                } else if left >= 2 {
                    self.tile::<L, 2, P>(row);
                    row += 2;
                } else {
                    self.tile::<L, 1, P>(row);
                    row += 1;
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn tile<L: Lanes, const R: usize, const P: usize>(self, row: usize) {
        let Self { x, panels, k, first, n, out, .. } = self;
        let x = &x[row * k..(row + R) * k];
        let panels = &panels[..P * k * PANEL];
        // SAFETY: `x` holds R rows of k, `panels` P panels of k × 16 (sliced above); features as the trait demands.
        unsafe {
            let mut sums = [[L::splat(0.0); P]; R];
            if let Some(bias) = self.bias {
                for p in 0..P {
                    let from = (first + p) * PANEL;
                    let mut lanes = [0.0; PANEL];
                    let width = PANEL.min(n - from);
                    lanes[..width].copy_from_slice(&bias[from..from + width]);
                    let bias = L::load(lanes.as_ptr());
                    for sums in &mut sums {
                        sums[p] = bias;
                    }
                }
            }
            for k_idx in 0..k {
                let mut w = [L::splat(0.0); P];
                for p in 0..P {
                    w[p] = W::load::<L>(panels.as_ptr().add((p * k + k_idx) * PANEL));
                }
                for r in 0..R {
                    let x = L::splat(*x.as_ptr().add(r * k + k_idx));
                    for p in 0..P {
                        sums[r][p] = L::fma(x, w[p], sums[r][p]);
                    }
                }
            }
            for (r, sums) in sums.into_iter().enumerate() {
                for (p, sums) in sums.into_iter().enumerate() {
                    let from = (first + p) * PANEL;
                    store::<L>(out, Place { at: (row + r) * n + from, width: PANEL.min(n - from) }, false, sums);
                }
            }
        }
    }
}

/// Where a panel's outputs of one row go.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    /// First element.
    pub(crate) at: usize,
    /// Elements: fewer than a panel has at the end of a row.
    pub(crate) width: usize,
}

/// Writes one panel's outputs of one row, or adds them to what is there.
///
/// # Safety
///
/// No other thread writes this row's columns of this panel.
#[inline(always)]
pub(crate) unsafe fn store<L: Lanes>(out: Shared<'_, f32>, place: Place, add: bool, sums: L::F) {
    // SAFETY: disjoint by the caller's promise; features as the trait demands; 16 elements behind each pointer.
    unsafe {
        let out = out.part(place.at, place.width);
        if place.width == PANEL {
            let sums = if add { L::add(L::load(out.as_ptr()), sums) } else { sums };
            L::store(out.as_mut_ptr(), sums);
        } else {
            let mut lanes = [0.0; PANEL];
            L::store(lanes.as_mut_ptr(), sums);
            for (out, sum) in out.iter_mut().zip(lanes) {
                *out = if add { *out + sum } else { sum };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tier::Tier;

    fn bits(x: &[f32]) -> Vec<u32> {
        x.iter().map(|x| x.to_bits()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn every_tier_gives_the_plain_loop(
            m in 1usize..30, n in 1usize..100, k in 1usize..70, with_bias: bool, halves: bool, seed: u32,
        ) {
            let mut state = u64::from(seed) + 1;
            let mut random = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
            };
            let x: Vec<f32> = (0..m * k).map(|_| random()).collect();
            let mut w: Vec<f32> = (0..n * k).map(|_| random()).collect();
            let bias: Option<Vec<f32>> = with_bias.then(|| (0..n).map(|_| random()).collect());
            let row = |i: usize, row: &mut [f32]| row.copy_from_slice(&w[i * k..(i + 1) * k]);
            let packed = if halves { DenseMatrix::pack_f16(n, k, row) } else { DenseMatrix::pack(n, k, row) };
            if halves {
                w.iter_mut().for_each(|w| *w = f16::from_f32(*w).to_f32());
            }
            let mut expected = vec![0.0; m * n];
            for i in 0..m {
                for j in 0..n {
                    let start = bias.as_ref().map_or(0.0, |bias| bias[j]);
                    expected[i * n + j] = (0..k).fold(start, |sum, l| x[i * k + l].mul_add(w[j * k + l], sum));
                }
            }
            for tier in Tier::available() {
                let pool = Pool::new(2, tier);
                let mut out = vec![f32::NAN; m * n];
                matmul(&pool, &x, &packed, bias.as_deref(), &mut out);
                prop_assert_eq!(bits(&out), bits(&expected), "{}", tier);
                let mut alone = vec![f32::NAN; n];
                matmul(&pool, &x[(m - 1) * k..], &packed, bias.as_deref(), &mut alone);
                prop_assert_eq!(bits(&alone), bits(&expected[(m - 1) * n..]), "{} alone", tier);
            }
        }
    }
}
