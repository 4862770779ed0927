//! The product: rows of 8 bits against packed weights, tile by tile.
//!
//! In: [`QuantRows`] or what fills them, [`QuantMatrix`]es. Out: f32 sums, whose order no split of rows or panels changes. Absent: how
//! either side is packed.

use std::sync::{Mutex, PoisonError};

use super::{LINE, Own, QUANTISE_GRAIN, QuantMatrix, QuantRows, QuantSlice};
use crate::{
    BLOCK, PANEL,
    dense::{FEW_ROWS, Place, run_panels, store},
    lanes::{Activations, Lanes, form},
    memory::{AlignedBytes, Shared},
    pool::Pool,
};

/// Where products go.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// Elements from row to row of the output.
    pub stride: usize,
    /// Column of the first product.
    pub first: usize,
    /// Whether they are added to what is there.
    pub add: bool,
}

/// `out[m][n] = Σ_k x[m][k] · w[n][k]` for quantised activations `x` (m rows). `out`: (m, n).
///
/// # Panics
///
/// Where sizes disagree.
pub fn matmul(pool: &Pool, x: &QuantRows, weights: &QuantMatrix, out: &mut [f32]) {
    matmul_into(pool, x, weights, out, Output { stride: weights.n, first: 0, add: false });
}

/// [`matmul`] into some columns of `out`: (m, `to.stride`).
///
/// # Panics
///
/// Where sizes disagree.
pub fn matmul_into(pool: &Pool, x: &QuantRows, weights: &QuantMatrix, out: &mut [f32], to: Output) {
    let x = &x.all;
    let (m, n) = (x.rows, weights.n);
    assert_eq!(x.blocks, weights.blocks, "as many inputs on both sides");
    assert!(to.first <= to.stride && n <= to.stride - to.first, "products lie inside a row");
    assert_eq!(out.len(), m * to.stride, "out is (m, stride)");
    let out = Shared::new(out);
    let isa = pool.isa();
    let row_bytes = weights.blocks * (BLOCK + 3 * size_of::<f32>());
    let height = (ROWS_BYTES / row_bytes).max(MIN_ROWS).next_multiple_of(TALLEST_TILE);
    for from in (0..m).step_by(height) {
        let rows = from..m.min(from + height);
        let x = x.slice(rows.clone());
        run_panels(pool, n.div_ceil(PANEL), rows.len(), rows.len() * n * weights.k, &|first, count| {
            quant_panels(isa, x, rows.start, weights, first, count, out, to);
        });
    }
}

/// The input of a product: (m, k).
pub struct Input<'a> {
    /// Room for it.
    pub x: &'a mut [f32],
    /// Its width.
    pub k: usize,
    /// `fill(first_row, rows)` writes some rows; the same each time it is asked.
    pub fill: &'a (dyn Fn(usize, &mut [f32]) + Sync),
    /// Whether `x` is read afterwards. Else it may stay as it was.
    pub keep: bool,
}

/// Products of an input, which is written on the way, with matrices under each other: into `out`: (m, Σ n), or added to what is
/// there.
///
/// What costs is not to quantise but to carry rows from core to core, hence three ways, by the number of rows m:
///
/// ```text
/// few      every thread fills and quantises all rows for itself, and multiplies them with its share of the weights
/// many     every thread fills, quantises and multiplies its own rows, with all weights
/// between  (many threads) rows are filled and quantised in shares, then multiplied with a share of the weights each
/// ```
///
/// # Panics
///
/// Where sizes disagree.
pub fn multiply(
    pool: &Pool,
    input: Input<'_>,
    quantised: &mut QuantRows,
    weights: &[QuantMatrix],
    out: &mut [f32],
    add: bool,
) {
    let Input { x, k, fill, keep } = input;
    assert!(k > 0 && x.len().is_multiple_of(k), "whole rows");
    let (m, stride) = (x.len() / k, weights.iter().map(QuantMatrix::n).sum::<usize>());
    assert!(weights.iter().all(|w| w.k == k && w.blocks == k.div_ceil(BLOCK)), "as many inputs on both sides");
    assert_eq!(out.len(), m * stride, "out is (m, Σ n)");
    let isa = pool.isa();
    if m >= MIN_OWN_ROWS * pool.threads() {
        let (writer, shared, out) = (quantised.all.writer(isa, m, k), Shared::new(x), Shared::new(out));
        let parts = m.div_ceil(PART_ROWS).next_multiple_of(pool.threads());
        pool.run_ranges(m, m.div_ceil(parts), &|rows| {
            // SAFETY: ranges of rows do not overlap.
            let piece = unsafe { shared.part(rows.start * k, rows.len() * k) };
            fill(rows.start, piece);
            // SAFETY: as above.
            let x = unsafe { writer.write(rows.clone(), piece) };
            let mut first = 0;
            for weights in weights {
                let to = Output { stride, first, add };
                quant_panels(isa, x, rows.start, weights, 0, weights.n.div_ceil(PANEL), out, to);
                first += weights.n;
            }
        });
        return;
    }
    if m * pool.threads() > MAX_COPIED_ROWS {
        pool.run_rows(x, k, QUANTISE_GRAIN, fill);
        quantised.quantise(pool, x, k);
        let mut first = 0;
        for weights in weights {
            matmul_into(pool, quantised, weights, out, Output { stride, first, add });
            first += weights.n;
        }
        return;
    }
    if keep {
        fill(0, x);
    }
    let x = &*x;
    quantised.product += 1;
    let product = quantised.product;
    quantised.own.resize_with(pool.threads(), Mutex::default);
    let own = &quantised.own;
    let out = Shared::new(out);
    let mut first = 0;
    for weights in weights {
        let to = Output { stride, first, add };
        run_panels(pool, weights.n.div_ceil(PANEL), m, m * weights.n * k, &|first, count| {
            let mut own = own[pool.thread_idx()].lock().unwrap_or_else(PoisonError::into_inner);
            let Own { product: last, x: filled, quantised } = &mut *own;
            if *last != product {
                let x = if keep {
                    x
                } else {
                    filled.resize(m * k, 0.0);
                    fill(0, filled);
                    &filled[..m * k]
                };
                // SAFETY: one call for all rows, of buffers that this thread has locked.
                unsafe { quantised.writer(isa, m, k).write(0..m, x) };
                *last = product;
            }
            quant_panels(isa, quantised.slice(0..m), 0, weights, first, count, out, to);
        });
        first += weights.n;
    }
}

/// Bytes of activations that meet all weights before others do: they stay in a core's second-level cache beside a few panels.
const ROWS_BYTES: usize = 320 << 10;
/// Fewer rows would read the weights too often.
const MIN_ROWS: usize = 48;
/// From so many rows a thread on, each has its own.
const MIN_OWN_ROWS: usize = 12;
/// Each thread quantises all rows while no more than so many are quantised in all, copies counted: 32 on two threads, 4 on sixteen.
const MAX_COPIED_ROWS: usize = 64;
/// Rows of a part where parts are rows: more than one part a thread, so that a slower one may take fewer.
const PART_ROWS: usize = 128;
/// Rows of the tallest tile of any tier.
const TALLEST_TILE: usize = 6;

per_tier! {
    fn quant_panels(x: QuantSlice<'_>, first_row: usize, weights: &QuantMatrix, first: usize, count: usize, out: Shared<'_, f32>, to: Output)
        = quant_panels_body
}

#[inline(always)]
unsafe fn quant_panels_body<L: Lanes>(
    x: QuantSlice<'_>,
    first_row: usize,
    weights: &QuantMatrix,
    first: usize,
    count: usize,
    out: Shared<'_, f32>,
    to: Output,
) {
    let nibbles = weights.format.lines() == 4;
    let panel_bytes = weights.blocks * weights.format.lines() * LINE;
    // With many rows, a panel is brought once into the form that its products read fastest, and every row tile reads that.
    let form = match (nibbles, x.rows > L::NIBBLE_ROWS) {
        (true, false) => form::NIBBLES,
        (true, true) => form::SMALL,
        (false, true) if L::WIDENS && x.rows >= WIDEN_ROWS => form::WIDE,
        (false, _) => form::BYTES,
    };
    let unpack = form == form::SMALL || form == form::WIDE;
    let mut unpacked = AlignedBytes::zeroed(if unpack { 2 * panel_bytes * 2 } else { 0 });
    let wide = L::TILE_ROWS >= 12;
    let mut done = 0;
    while done < count {
        let left = count - done;
        let panels = if wide && x.rows <= FEW_ROWS && left >= 4 {
            4
        } else if wide && left >= 2 {
            2
        } else {
            1
        };
        let from = first + done;
        let mut quants = &weights.quants[from * panel_bytes..(from + panels) * panel_bytes];
        // SAFETY: features as the trait demands; `unpacked` has room for two panels of twice the bytes, and `panels` is at most 2
        // here because more than TILE_ROWS rows are more than FEW_ROWS.
        unsafe {
            if unpack {
                unpack_lines::<L>(form, quants, &mut unpacked);
                quants = &unpacked[..panels * panel_bytes * 2];
            }
            let tile = Tile { x, first_row, weights, quants, first: from, out, to };
            match panels {
                4 => tile.panels::<L, 4>(form),
                2 => tile.panels::<L, 2>(form),
                _ => tile.panels::<L, 1>(form),
            }
        }
        done += panels;
    }
}

/// From so many rows on, widening a panel's bytes once costs less than widening them for every tile of rows.
const WIDEN_ROWS: usize = 16;

/// Brings lines of nibbles or bytes into their unpacked form, twice as long.
#[inline(always)]
unsafe fn unpack_lines<L: Lanes>(form: u8, from: &[u8], to: &mut [u8]) {
    assert!(to.len() >= 2 * from.len(), "room for twice the bytes");
    // SAFETY: whole blocks of 4 or 8 lines on both sides, by `chunks_exact`; features as the trait demands.
    unsafe {
        if form == form::SMALL {
            for (from, to) in from.chunks_exact(4 * LINE).zip(to.chunks_exact_mut(8 * LINE)) {
                for g in 0..4 {
                    let line = L::load_bytes(from.as_ptr().add(g * LINE));
                    L::store_bytes(to.as_mut_ptr().add(g * LINE), L::low_nibbles(line));
                    L::store_bytes(to.as_mut_ptr().add((g + 4) * LINE), L::high_nibbles(line));
                }
            }
        } else {
            for (from, to) in from.chunks_exact(LINE).zip(to.chunks_exact_mut(2 * LINE)) {
                L::widen_line(from.as_ptr(), to.as_mut_ptr());
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Tile<'a> {
    x: QuantSlice<'a>,
    /// Row of the output that belongs to the first of `x`.
    first_row: usize,
    weights: &'a QuantMatrix,
    quants: &'a [u8],
    first: usize,
    out: Shared<'a, f32>,
    to: Output,
}

impl Tile<'_> {
    #[inline(always)]
    unsafe fn panels<L: Lanes, const P: usize>(self, form: u8) {
        let mins = self.weights.format.has_min();
        // SAFETY: as the caller promises.
        unsafe {
            match (form, mins) {
                (form::NIBBLES, false) => self.rows::<L, P, { form::NIBBLES }, false>(),
                (form::NIBBLES, true) => self.rows::<L, P, { form::NIBBLES }, true>(),
                (form::SMALL, false) if P < 4 => self.rows::<L, P, { form::SMALL }, false>(),
                (form::SMALL, true) if P < 4 => self.rows::<L, P, { form::SMALL }, true>(),
                (form::WIDE, false) if L::WIDENS => self.rows::<L, P, { form::WIDE }, false>(),
                (form::WIDE, true) if L::WIDENS => self.rows::<L, P, { form::WIDE }, true>(),
                (_, false) => self.rows::<L, P, { form::BYTES }, false>(),
                (_, true) => self.rows::<L, P, { form::BYTES }, true>(),
            }
        }
    }

    /// All rows against `P` panels, in row tiles as tall as the registers allow.
    #[inline(always)]
    unsafe fn rows<L: Lanes, const P: usize, const FORM: u8, const MINS: bool>(self) {
        let m = self.x.rows;
        let mut row = 0;
        while row < m {
            let left = m - row;
            // SAFETY: features as the trait demands; `row + R <= m` by the comparison.
            unsafe {
                if P < 4 && L::TILE_ROWS >= 12 && left >= 6 {
                    self.tile::<L, 6, P, FORM, MINS>(row);
                    row += 6;
                } else if P < 4 && left >= 4 {
                    self.tile::<L, 4, P, FORM, MINS>(row);
                    row += 4;
                } else if left >= 2 {
                    self.tile::<L, 2, P, FORM, MINS>(row);
                    row += 2;
                } else {
                    self.tile::<L, 1, P, FORM, MINS>(row);
                    row += 1;
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn tile<L: Lanes, const R: usize, const P: usize, const FORM: u8, const MINS: bool>(self, row: usize) {
        let Self { x, first_row, weights, quants, first, out, to } = self;
        let blocks = weights.blocks;
        let block_bytes = match FORM {
            form::NIBBLES => 4 * LINE,
            form::WIDE => 16 * LINE,
            _ => 8 * LINE,
        };
        let wide = if L::WIDENS {
            x.wide[row * blocks * BLOCK..(row + R) * blocks * BLOCK].as_ptr()
        } else {
            std::ptr::null()
        };
        let zero = weights.format.zero();
        let values = &x.values[row * blocks * BLOCK..(row + R) * blocks * BLOCK];
        let range = row * blocks..(row + R) * blocks;
        let (scales, sums, scaled) = (&x.scales[range.clone()], &x.sums[range.clone()], &x.scaled[range]);
        let w_range = first * blocks * PANEL..(first + P) * blocks * PANEL;
        let w_scales = &weights.scales[w_range.clone()];
        let w_mins = if MINS { &weights.mins[w_range] } else { w_scales };
        assert!(quants.len() >= P * blocks * block_bytes, "the tile's panels are there");
        // SAFETY: every pointer below stays inside a slice whose length was just cut or checked: block b < blocks, row r < R,
        // panel p < P, line < lines; features as the trait demands.
        unsafe {
            let mut total = [[L::splat(0.0); P]; R];
            for b in 0..blocks {
                let mut dots = [[L::splat_i32(0); P]; R];
                for r in 0..R {
                    dots[r] = [L::splat_i32(-zero * *sums.as_ptr().add(r * blocks + b)); P];
                }
                let a = Activations {
                    values: values.as_ptr().add(b * BLOCK),
                    wide: if L::WIDENS { wide.add(b * BLOCK) } else { wide },
                    stride: blocks * BLOCK,
                };
                // The panels behind these, for the first row tile of whoever comes next.
                if row == 0 {
                    for p in 0..P {
                        let ahead = quants.as_ptr().wrapping_add((P + p) * blocks * block_bytes + b * block_bytes);
                        for line in 0..block_bytes / LINE {
                            L::prefetch(ahead.wrapping_add(line * LINE));
                        }
                    }
                }
                L::block::<R, P, FORM>(quants.as_ptr().add(b * block_bytes), blocks * block_bytes, a, &mut dots);
                for p in 0..P {
                    let at = (p * blocks + b) * PANEL;
                    let w_scale = L::load_f16(w_scales.as_ptr().add(at));
                    for r in 0..R {
                        let scale = L::mul(w_scale, L::splat(*scales.as_ptr().add(r * blocks + b)));
                        total[r][p] = L::fma(L::to_float(dots[r][p]), scale, total[r][p]);
                    }
                    if MINS {
                        let w_min = L::load_f16(w_mins.as_ptr().add(at));
                        for r in 0..R {
                            let scaled = L::splat(*scaled.as_ptr().add(r * blocks + b));
                            total[r][p] = L::fma(w_min, scaled, total[r][p]);
                        }
                    }
                }
            }
            for (r, total) in total.into_iter().enumerate() {
                for (p, total) in total.into_iter().enumerate() {
                    let from = (first + p) * PANEL;
                    let place = Place {
                        at: (first_row + row + r) * to.stride + to.first + from,
                        width: PANEL.min(weights.n - from),
                    };
                    store::<L>(out, place, to.add, total);
                }
            }
        }
    }
}
