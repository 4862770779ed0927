//! Low-rank deltas (Hu et al. 2021) on rows of one batch: `y[row] += scale · B·(A·x[row])`, another pair for each segment of rows.
//!
//! Maps that read the same `x` (q, k, v; gate, up) are one [`LoraStack`]: their A lie under each other, so that `x` is read once.
//!
//! ```text
//! A, 4 rows interleaved:  k 0..32 of rows 0,1,2,3 | k 32..64 of rows 0,1,2,3 | …   (16 instead of 32 in f16)
//! B, 16 outputs a panel:  panel 0: rank 0,1 of outputs 0..16 | rank 2,3 of … |     (one rank at a time in f16)
//! ```
//!
//! No layout pads where inputs are multiples of 32, outputs of 16 and ranks even: an adapter takes 2 bytes a weight in f16, and in
//! 8 bits one byte, a f32 scale for each 128 inputs of A and a f16 scale for each output of B.
//!
//! In 8 bits, rows of `x` and of `A·x` are quantised to **16** bits: an integer dot of 8-bit weights with 16-bit inputs is exact,
//! as cheap as one with 8-bit inputs on AVX2 (`vpmaddwd`), and loses nothing that could be seen beside the weights' own rounding.
//!
//! Every row is computed by itself, each sum in one fixed order: neither the segment's other rows nor the split into parts nor
//! the tier changes a bit.

use std::ops::Range;

use half::f16;

use crate::{
    PANEL,
    dense::PARTS_PER_THREAD,
    lanes::{LANES, Lanes, Scalar},
    memory::Shared,
    pool::Pool,
};

/// Ranks of one pair, at most. Up to here the integer sums cannot overflow: 256 · 127 · 32,767 < 2³¹.
pub const MAX_RANK: usize = 256;
/// Rows of A that are interleaved.
const HEIGHT: usize = 4;
/// Inputs that one integer dot takes.
const DOT: usize = 32;
/// Inputs of A that share a scale; their integer sum cannot overflow: 128 · 127 · 32,767 < 2³¹.
const GROUP: usize = 128;
/// Rows of a segment that one part takes, at most: their quantised inputs stay in the first-level cache.
const PART_ROWS: usize = 16;
/// Rows below which a part is not cut further: that many share one pass over the weights.
const TILE_ROWS: usize = 4;

/// How weights of adapters are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LoraFormat {
    /// 16-bit floats: what adapter files hold, to the bit where they hold f16.
    F16,
    /// 8 bits with scales: half the memory and half the traffic.
    Int8,
}

/// One map's pair, as files have it.
#[derive(Clone, Copy, Debug)]
pub struct LoraPart<'a> {
    /// (rank, k).
    pub a: &'a [f32],
    /// (n, rank).
    pub b: &'a [f32],
    /// Rank.
    pub rank: usize,
    /// First output: where this map's outputs start in a row of `y`.
    pub first: usize,
    /// Factor of the delta.
    pub scale: f32,
}

/// The pairs of all maps that read the same input.
pub struct LoraStack {
    k: usize,
    n: usize,
    ranks: usize,
    parts: Box<[Part]>,
    weights: Weights,
}

struct Part {
    rank: usize,
    /// First row of the stacked A.
    row: usize,
    first: usize,
    n: usize,
    scale: f32,
    /// First panel of the stacked B.
    at: usize,
    /// First output of the stacked scales of B, in panels.
    panel: usize,
}

enum Weights {
    F16 { a: Box<[u16]>, b: Box<[u16]> },
    Int8 { a: Box<[i8]>, a_scales: Box<[f32]>, b: Box<[i8]>, b_scales: Box<[u16]> },
}

/// Rows of a batch that get the deltas of one stack.
#[derive(Clone)]
pub struct LoraSegment<'a> {
    /// Rows of `x` and `y`.
    pub rows: Range<usize>,
    /// Their deltas.
    pub stack: &'a LoraStack,
}

impl LoraStack {
    /// Packs pairs that read rows of `k` and write into rows of `n`.
    ///
    /// # Panics
    ///
    /// Where there is no pair, a size does not fit, or a rank is 0 or above [`MAX_RANK`].
    pub fn pack(format: LoraFormat, k: usize, n: usize, pairs: &[LoraPart<'_>]) -> Self {
        assert!(!pairs.is_empty() && k > 0, "a stack of nothing");
        let mut parts = Vec::with_capacity(pairs.len());
        let (mut row, mut at, mut panel) = (0, 0, 0);
        for pair in pairs {
            let rank = pair.rank;
            assert!((1..=MAX_RANK).contains(&rank), "a rank of 1 to 256");
            assert!(pair.a.len() == rank * k && pair.b.len().is_multiple_of(rank), "a: (rank, k), b: (n, rank)");
            let outputs = pair.b.len() / rank;
            assert!(outputs <= n && pair.first <= n - outputs, "outputs lie inside a row");
            parts.push(Part { rank, row, first: pair.first, n: outputs, scale: pair.scale, at, panel });
            row += rank;
            panel += outputs.div_ceil(PANEL);
            at += outputs.div_ceil(PANEL) * PANEL * stored_rank(format, rank);
        }
        let rows: Vec<&[f32]> = pairs.iter().flat_map(|pair| pair.a.chunks_exact(k)).collect();
        let weights = match format {
            LoraFormat::F16 => {
                let mut a = vec![0; row * k.next_multiple_of(LANES)];
                let half = |x: f32| f16::from_f32(x).to_bits();
                interleave(&rows, k, LANES, |row, i, at| a[at] = half(rows[row][i]));
                let mut b = vec![0; at];
                for (pair, part) in pairs.iter().zip(&parts) {
                    for (i, weight) in pair.b.iter().enumerate() {
                        let (output, rank_idx) = (i / part.rank, i % part.rank);
                        let line = output / PANEL * part.rank + rank_idx;
                        b[part.at + line * PANEL + output % PANEL] = half(*weight);
                    }
                }
                Weights::F16 { a: a.into(), b: b.into() }
            }
            LoraFormat::Int8 => {
                let mut a = vec![0; row * k.next_multiple_of(DOT)];
                let groups = k.div_ceil(GROUP);
                let scales: Vec<f32> =
                    rows.iter().flat_map(|row| row.chunks(GROUP).map(|group| largest(group) / 127.0)).collect();
                interleave(&rows, k, DOT, |row, i, at| a[at] = quant(rows[row][i], scales[row * groups + i / GROUP]));
                let mut b = vec![0; at];
                let mut b_scales = vec![0; panel * PANEL];
                for (pair, part) in pairs.iter().zip(&parts) {
                    let padded = stored_rank(format, part.rank);
                    for (output, weights) in pair.b.chunks_exact(part.rank).enumerate() {
                        let scale = f16::from_f32(largest(weights) / 127.0);
                        b_scales[part.panel * PANEL + output] = scale.to_bits();
                        for (rank_idx, weight) in weights.iter().enumerate() {
                            let line = output / PANEL * (padded / 2) + rank_idx / 2;
                            let at = part.at + (line * PANEL + output % PANEL) * 2 + rank_idx % 2;
                            b[at] = quant(*weight, scale.to_f32());
                        }
                    }
                }
                Weights::Int8 { a: a.into(), a_scales: scales.into(), b: b.into(), b_scales: b_scales.into() }
            }
        };
        Self { k, n, ranks: row, parts: parts.into(), weights }
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        size_of::<Self>()
            + size_of_val(&*self.parts)
            + match &self.weights {
                Weights::F16 { a, b } => size_of_val(&**a) + size_of_val(&**b),
                Weights::Int8 { a, a_scales, b, b_scales } => {
                    size_of_val(&**a) + size_of_val(&**a_scales) + size_of_val(&**b) + size_of_val(&**b_scales)
                }
            }
    }
}

/// Ranks of a pair's B in memory: pairs of them in 8 bits.
fn stored_rank(format: LoraFormat, rank: usize) -> usize {
    match format {
        LoraFormat::F16 => rank,
        LoraFormat::Int8 => rank.next_multiple_of(2),
    }
}

fn largest(weights: &[f32]) -> f32 {
    weights.iter().fold(0.0f32, |max, w| max.max(w.abs()))
}

fn quant(weight: f32, scale: f32) -> i8 {
    if scale > 0.0 { (weight / scale).round_ties_even().clamp(-127.0, 127.0) as i8 } else { 0 }
}

/// Calls `put(row, k, place)` for every weight of A: [`HEIGHT`] rows (fewer at the end) take turns of `step` inputs each.
fn interleave(rows: &[&[f32]], k: usize, step: usize, mut put: impl FnMut(usize, usize, usize)) {
    let padded = k.next_multiple_of(step);
    for row in 0..rows.len() {
        let (from, height) = group_of(row, rows.len());
        for i in 0..k {
            put(row, i, from * padded + (i / step * height + row - from) * step + i % step);
        }
    }
}

/// First row and height of the group that a row of A lies in.
fn group_of(row: usize, rows: usize) -> (usize, usize) {
    let from = row / HEIGHT * HEIGHT;
    (from, HEIGHT.min(rows - from))
}

/// Adds to each segment's rows of `y` (rows, n) its deltas for `x` (rows, k).
///
/// # Panics
///
/// Where sizes disagree, or segments overlap.
pub fn add_deltas(pool: &Pool, x: &[f32], y: &mut [f32], segments: &[LoraSegment<'_>]) {
    let Some(LoraSegment { stack: LoraStack { k, n, .. }, .. }) = segments.first() else { return };
    let (k, n) = (*k, *n);
    let n_rows = x.len() / k;
    assert!(x.len() == n_rows * k && y.len() == n_rows * n, "x is (rows, k), y is (rows, n)");
    let mut end = 0;
    let mut parts = Vec::with_capacity(segments.len());
    let adapted: usize = segments.iter().map(|segment| segment.rows.len()).sum();
    let share = adapted.div_ceil(pool.threads() * PARTS_PER_THREAD).next_multiple_of(TILE_ROWS);
    let part_rows = share.clamp(TILE_ROWS, PART_ROWS);
    for segment in segments {
        assert!(segment.stack.k == k && segment.stack.n == n, "stacks of one shape");
        assert!(segment.rows.start >= end && segment.rows.end <= n_rows, "segments follow each other inside the batch");
        end = segment.rows.end;
        for from in segment.rows.clone().step_by(part_rows) {
            parts.push((from..segment.rows.end.min(from + part_rows), segment.stack));
        }
    }
    let y = Shared::new(y);
    let isa = pool.isa();
    pool.run(parts.len(), &|i| {
        let (rows, stack) = &parts[i];
        // SAFETY: segments do not overlap by the assertion above, and parts cut them into disjoint rows.
        let y = unsafe { y.part(rows.start * n, rows.len() * n) };
        add_rows(isa, &x[rows.start * k..rows.end * k], y, stack);
    });
}

per_tier! {
    fn add_rows(x: &[f32], y: &mut [f32], stack: &LoraStack) = add_rows_body
}

#[inline(always)]
unsafe fn add_rows_body<L: Widen>(x: &[f32], y: &mut [f32], stack: &LoraStack) {
    // SAFETY: features as the trait demands.
    unsafe {
        match &stack.weights {
            Weights::F16 { a, b } => add_halves::<L>(x, y, stack, a, b),
            Weights::Int8 { a, a_scales, b, b_scales } => add_bytes::<L>(x, y, stack, a, a_scales, b, b_scales),
        }
    }
}

#[inline(always)]
unsafe fn add_halves<L: Widen>(x: &[f32], y: &mut [f32], stack: &LoraStack, a: &[u16], b: &[u16]) {
    let LoraStack { k, n, ranks, .. } = *stack;
    let padded = k.next_multiple_of(LANES);
    let m = x.len() / k;
    let mut filled = Vec::new();
    let x = if padded == k {
        x
    } else {
        filled.resize(m * padded, 0.0);
        for (from, to) in x.chunks_exact(k).zip(filled.chunks_exact_mut(padded)) {
            to[..k].copy_from_slice(from);
        }
        &filled
    };
    let mut h = vec![0.0; m * ranks];
    for first in (0..ranks).step_by(HEIGHT) {
        let height = HEIGHT.min(ranks - first);
        let a = &a[first * padded..(first + height) * padded];
        for row in 0..m {
            let x = &x[row * padded..(row + 1) * padded];
            let h = &mut h[row * ranks + first..row * ranks + first + height];
            // SAFETY: `a` holds `height` interleaved rows, `x` one row, both of `padded` elements; features as the trait demands.
            unsafe {
                if height == HEIGHT {
                    half_dots::<L, HEIGHT>(a.as_ptr(), height, x, h);
                } else {
                    for i in 0..height {
                        half_dots::<L, 1>(a.as_ptr().add(i * LANES), height, x, &mut h[i..=i]);
                    }
                }
            }
        }
    }
    for part in &stack.parts {
        let Part { rank, row: first_rank, first, n: outputs, scale, at, .. } = *part;
        for panel in 0..outputs.div_ceil(PANEL) {
            let lines = &b[at + panel * rank * PANEL..at + (panel + 1) * rank * PANEL];
            let width = PANEL.min(outputs - panel * PANEL);
            for row in 0..m {
                let h = &h[row * ranks + first_rank..][..rank];
                let y = &mut y[row * n + first + panel * PANEL..][..width];
                // SAFETY: `lines` holds a line of 16 for each of `h`; features as the trait demands.
                unsafe {
                    let mut sum = L::splat(0.0);
                    for (i, h) in h.iter().enumerate() {
                        sum = L::fma(L::splat(*h), L::load_f16(lines.as_ptr().add(i * PANEL)), sum);
                    }
                    add_scaled::<L>(sum, L::splat(scale), y);
                }
            }
        }
    }
}

/// `h[i] = A[i]·x` for `H` rows that are interleaved with `height − H` others.
#[inline(always)]
unsafe fn half_dots<L: Lanes, const H: usize>(a: *const u16, height: usize, x: &[f32], h: &mut [f32]) {
    // SAFETY: the caller's `a` holds `height` rows as long as `x`, a multiple of 16; features as the trait demands.
    unsafe {
        let mut sums = [L::splat(0.0); H];
        for (step, x) in x.chunks_exact(LANES).enumerate() {
            let x = L::load(x.as_ptr());
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = L::fma(L::load_f16(a.add((step * height + i) * LANES)), x, *sum);
            }
        }
        for (h, sum) in h.iter_mut().zip(sums) {
            *h = L::sum(sum);
        }
    }
}

/// `y += sum · factor`, for the first outputs of a panel.
#[inline(always)]
unsafe fn add_scaled<L: Lanes>(sum: L::F, factor: L::F, y: &mut [f32]) {
    // SAFETY: 16 elements behind each pointer; features as the trait demands.
    unsafe {
        if y.len() == PANEL {
            L::store(y.as_mut_ptr(), L::fma(sum, factor, L::load(y.as_ptr())));
        } else {
            let mut lanes = [0.0; PANEL];
            lanes[..y.len()].copy_from_slice(y);
            L::store(lanes.as_mut_ptr(), L::fma(sum, factor, L::load(lanes.as_ptr())));
            y.copy_from_slice(&lanes[..y.len()]);
        }
    }
}

#[inline(always)]
unsafe fn add_bytes<L: Widen>(
    x: &[f32],
    y: &mut [f32],
    stack: &LoraStack,
    a: &[i8],
    a_scales: &[f32],
    b: &[i8],
    b_scales: &[u16],
) {
    let LoraStack { k, n, ranks, .. } = *stack;
    let padded = k.next_multiple_of(DOT);
    let groups = k.div_ceil(GROUP);
    let m = x.len() / k;
    let mut values = vec![0i16; m * padded];
    let mut h = vec![0.0f32; m * ranks];
    let mut row_scales = [0.0f32; PART_ROWS];
    for (row, x) in x.chunks_exact(k).enumerate() {
        // SAFETY: features as the trait demands.
        row_scales[row] = unsafe { quantise_row::<L>(x, &mut values[row * padded..(row + 1) * padded]) };
    }
    for first in (0..ranks).step_by(HEIGHT) {
        let height = HEIGHT.min(ranks - first);
        let a = &a[first * padded..(first + height) * padded];
        let scales = &a_scales[first * groups..(first + height) * groups];
        let mut row = 0;
        // SAFETY: `a` holds `height` interleaved rows of `padded` weights, each with `groups` scales; `values` `m` rows as long;
        // features as the trait demands.
        unsafe {
            while row < m {
                let tile = Dots { a: a.as_ptr(), height, scales, groups, padded };
                let x = values.as_ptr().add(row * padded);
                let h = &mut h[row * ranks + first..];
                if height == HEIGHT && m - row >= TILE_ROWS {
                    tile.run::<L, TILE_ROWS, 2>(0, x, h, ranks);
                    tile.run::<L, TILE_ROWS, 2>(2, x, &mut h[2..], ranks);
                    row += TILE_ROWS;
                } else if height == HEIGHT {
                    tile.run::<L, 1, HEIGHT>(0, x, h, ranks);
                    row += 1;
                } else {
                    for i in 0..height {
                        tile.run::<L, 1, 1>(i, x, &mut h[i..], ranks);
                    }
                    row += 1;
                }
            }
        }
    }
    let mut halves = [0i16; MAX_RANK];
    for part in &stack.parts {
        let rank_pairs = part.rank.div_ceil(2);
        let b = &b[part.at..];
        let b_scales = &b_scales[part.panel * PANEL..];
        for row in 0..m {
            let h = &h[row * ranks + part.row..][..part.rank];
            halves[..2 * rank_pairs].fill(0);
            let max = largest(h);
            let inverse = if max > SMALLEST { 32_767.0 / max } else { 0.0 };
            for (to, h) in halves.iter_mut().zip(h) {
                *to = (h * inverse).round_ties_even() as i16;
            }
            let factor = max / 32_767.0 * row_scales[row] * part.scale;
            let y = &mut y[row * n + part.first..][..part.n];
            // SAFETY: each panel holds `rank_pairs` lines of 32 bytes and 16 scales; features as the trait demands.
            unsafe {
                for (panel, y) in y.chunks_mut(PANEL).enumerate() {
                    let lines = &b[panel * rank_pairs * 2 * PANEL..(panel + 1) * rank_pairs * 2 * PANEL];
                    let mut sums = L::no_sums();
                    for (i, pair) in halves[..2 * rank_pairs].chunks_exact(2).enumerate() {
                        sums = L::add_pair(sums, L::widen(lines.as_ptr().add(i * 2 * PANEL)), pair[0], pair[1]);
                    }
                    let mut lanes = [0.0; PANEL];
                    L::store_sums(sums, lanes.as_mut_ptr());
                    let scales = &b_scales[panel * PANEL..(panel + 1) * PANEL];
                    let factor = L::mul(L::load_f16(scales.as_ptr()), L::splat(factor));
                    add_scaled::<L>(L::load(lanes.as_ptr()), factor, y);
                }
            }
        }
    }
}

/// A row whose greatest element is below this counts as zero: its reciprocal would not be a number.
const SMALLEST: f32 = 1e-30;

/// `values = round(x / scale)`, 16 bits; returns the scale. `values` is at least as long as `x`; what lies behind stays zero.
#[inline(always)]
unsafe fn quantise_row<L: Widen>(x: &[f32], values: &mut [i16]) -> f32 {
    // SAFETY: 16 elements behind each pointer; features as the trait demands.
    unsafe {
        let chunks = x.chunks_exact(LANES);
        let mut padded = [0.0; LANES];
        padded[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
        let mut max = L::abs(L::load(padded.as_ptr()));
        for chunk in chunks.clone() {
            max = L::max(L::abs(L::load(chunk.as_ptr())), max);
        }
        let max = L::max_lane(max);
        let inverse = if max > SMALLEST { 32_767.0 / max } else { 0.0 };
        let whole = x.len() / LANES * LANES;
        for (i, chunk) in chunks.enumerate() {
            L::quantise(chunk.as_ptr(), inverse, values[i * LANES..(i + 1) * LANES].as_mut_ptr());
        }
        if whole < x.len() {
            let mut last = [0i16; LANES];
            L::quantise(padded.as_ptr(), inverse, last.as_mut_ptr());
            values[whole..x.len()].copy_from_slice(&last[..x.len() - whole]);
        }
        max / 32_767.0
    }
}

/// One group of interleaved rows of A.
struct Dots<'a> {
    a: *const i8,
    height: usize,
    scales: &'a [f32],
    groups: usize,
    padded: usize,
}

impl Dots<'_> {
    /// `h[r · stride + i] = A[first + i]·x[r]`, for `R` rows of `x` and `H` of A.
    #[inline(always)]
    unsafe fn run<L: Widen, const R: usize, const H: usize>(
        &self,
        first: usize,
        x: *const i16,
        h: &mut [f32],
        stride: usize,
    ) {
        let Self { a, height, scales, groups, padded } = *self;
        // SAFETY: the caller's promise: `a` and `x` hold rows of `padded`, a multiple of 32; features as the trait demands.
        unsafe {
            let mut totals = [[L::no_total(); R]; H];
            let mut done = 0;
            for group in 0..groups {
                let end = padded.min((group + 1) * GROUP);
                let mut sums = [[L::no_dot(); R]; H];
                while done < end {
                    for i in 0..H {
                        let w = L::widen(a.add((done / DOT * height + first + i) * DOT));
                        for r in 0..R {
                            sums[i][r] = L::dot(sums[i][r], w, x.add(r * padded + done));
                        }
                    }
                    done += DOT;
                }
                for i in 0..H {
                    let scale = scales[(first + i) * groups + group];
                    for r in 0..R {
                        totals[i][r] = L::scaled(totals[i][r], sums[i][r], scale);
                    }
                }
            }
            for i in 0..H {
                for r in 0..R {
                    h[r * stride + i] = L::total(totals[i][r]);
                }
            }
        }
    }
}

/// What 8-bit weights need beside the lanes: 32 of them widened to 16 bits, dotted with 16-bit inputs.
///
/// # Safety
///
/// As of [`Lanes`].
#[allow(clippy::missing_safety_doc, reason = "one contract for all methods, stated at the trait")]
trait Widen: Lanes {
    /// 32 × i16.
    type W: Copy;
    /// 8 × i32: sums of neighbours.
    type D: Copy;
    /// 8 × f32.
    type T: Copy;
    /// 16 × i32.
    type S: Copy;

    /// 32 bytes, widened.
    unsafe fn widen(p: *const i8) -> Self::W;
    /// 16 floats times `inverse`, rounded to the nearest 16-bit integers, ties to even.
    unsafe fn quantise(x: *const f32, inverse: f32, out: *mut i16);
    unsafe fn no_dot() -> Self::D;
    /// Lane j adds `w[2j]·x[2j] + w[2j+1]·x[2j+1]`, and the same 16 further on. Exact.
    unsafe fn dot(sums: Self::D, w: Self::W, x: *const i16) -> Self::D;
    unsafe fn no_total() -> Self::T;
    /// `total + sums · scale`, rounded once after the sums' own rounding to f32.
    unsafe fn scaled(total: Self::T, sums: Self::D, scale: f32) -> Self::T;
    /// Sum of all lanes: 8 → 4 → 2 → 1, lane i with lane i + half.
    unsafe fn total(x: Self::T) -> f32;
    unsafe fn no_sums() -> Self::S;
    /// Lane j adds `w[2j]·first + w[2j+1]·second`. Exact.
    unsafe fn add_pair(sums: Self::S, w: Self::W, first: i16, second: i16) -> Self::S;
    /// As floats.
    unsafe fn store_sums(sums: Self::S, out: *mut f32);
}

fn sum_of_eight(mut lanes: [f32; 8]) -> f32 {
    let mut half = 4;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

impl Widen for Scalar {
    type W = [i16; 32];
    type D = [i32; 8];
    type T = [f32; 8];
    type S = [i32; 16];

    #[inline(always)]
    unsafe fn widen(p: *const i8) -> Self::W {
        // SAFETY: the caller gives 32 readable bytes.
        unsafe { p.cast::<[i8; 32]>().read_unaligned() }.map(i16::from)
    }
    #[inline(always)]
    unsafe fn quantise(x: *const f32, inverse: f32, out: *mut i16) {
        // SAFETY: the caller gives 16 readable and 16 writable elements.
        unsafe {
            let x = x.cast::<[f32; 16]>().read_unaligned();
            out.cast::<[i16; 16]>().write_unaligned(x.map(|x| (x * inverse).round_ties_even() as i16));
        }
    }
    #[inline(always)]
    unsafe fn no_dot() -> Self::D {
        [0; 8]
    }
    #[inline(always)]
    unsafe fn dot(sums: Self::D, w: Self::W, x: *const i16) -> Self::D {
        // SAFETY: the caller gives 32 readable elements.
        let x = unsafe { x.cast::<[i16; 32]>().read_unaligned() };
        std::array::from_fn(|lane| {
            [2 * lane, 2 * lane + 1, 2 * lane + 16, 2 * lane + 17]
                .into_iter()
                .fold(sums[lane], |sum, i| sum + i32::from(w[i]) * i32::from(x[i]))
        })
    }
    #[inline(always)]
    unsafe fn no_total() -> Self::T {
        [0.0; 8]
    }
    #[inline(always)]
    unsafe fn scaled(total: Self::T, sums: Self::D, scale: f32) -> Self::T {
        std::array::from_fn(|i| (sums[i] as f32).mul_add(scale, total[i]))
    }
    #[inline(always)]
    unsafe fn total(x: Self::T) -> f32 {
        sum_of_eight(x)
    }
    #[inline(always)]
    unsafe fn no_sums() -> Self::S {
        [0; 16]
    }
    #[inline(always)]
    unsafe fn add_pair(sums: Self::S, w: Self::W, first: i16, second: i16) -> Self::S {
        let (first, second) = (i32::from(first), i32::from(second));
        std::array::from_fn(|i| sums[i] + i32::from(w[2 * i]) * first + i32::from(w[2 * i + 1]) * second)
    }
    #[inline(always)]
    unsafe fn store_sums(sums: Self::S, out: *mut f32) {
        // SAFETY: the caller gives 16 writable elements.
        unsafe { out.cast::<[f32; 16]>().write_unaligned(sums.map(|x| x as f32)) };
    }
}

/// 256-bit registers serve both x86 tiers: adapters are bound by memory, and one structure keeps their sums alike.
// SAFETY of every block below: both tiers have AVX2; the trait's contract gives the elements behind pointers; loads and stores are
// the unaligned kind.
#[cfg(target_arch = "x86_64")]
macro_rules! widen_by_avx2 {
    ($lanes:ty) => {
        #[allow(clippy::undocumented_unsafe_blocks, reason = "one reason for all, stated above")]
        impl Widen for $lanes {
            type W = [std::arch::x86_64::__m256i; 2];
            type D = std::arch::x86_64::__m256i;
            type T = std::arch::x86_64::__m256;
            type S = [std::arch::x86_64::__m256i; 2];

            #[inline(always)]
            unsafe fn widen(p: *const i8) -> Self::W {
                use std::arch::x86_64::*;
                unsafe {
                    [
                        _mm256_cvtepi8_epi16(_mm_loadu_si128(p.cast())),
                        _mm256_cvtepi8_epi16(_mm_loadu_si128(p.add(16).cast())),
                    ]
                }
            }
            #[inline(always)]
            unsafe fn quantise(x: *const f32, inverse: f32, out: *mut i16) {
                use std::arch::x86_64::*;
                unsafe {
                    const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
                    let inverse = _mm256_set1_ps(inverse);
                    let whole = |x: *const f32| {
                        let x = _mm256_mul_ps(_mm256_loadu_ps(x), inverse);
                        _mm256_cvtps_epi32(_mm256_round_ps::<NEAREST>(x))
                    };
                    // Packing works inside 128-bit halves: quarters come out as 0, 2, 1, 3.
                    let packed = _mm256_packs_epi32(whole(x), whole(x.add(8)));
                    _mm256_storeu_si256(out.cast(), _mm256_permute4x64_epi64::<0b11_01_10_00>(packed));
                }
            }
            #[inline(always)]
            unsafe fn no_dot() -> Self::D {
                unsafe { std::arch::x86_64::_mm256_setzero_si256() }
            }
            #[inline(always)]
            unsafe fn dot(sums: Self::D, w: Self::W, x: *const i16) -> Self::D {
                use std::arch::x86_64::*;
                unsafe {
                    let low = _mm256_madd_epi16(w[0], _mm256_loadu_si256(x.cast()));
                    let high = _mm256_madd_epi16(w[1], _mm256_loadu_si256(x.add(16).cast()));
                    _mm256_add_epi32(sums, _mm256_add_epi32(low, high))
                }
            }
            #[inline(always)]
            unsafe fn no_total() -> Self::T {
                unsafe { std::arch::x86_64::_mm256_setzero_ps() }
            }
            #[inline(always)]
            unsafe fn scaled(total: Self::T, sums: Self::D, scale: f32) -> Self::T {
                use std::arch::x86_64::*;
                unsafe { _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums), _mm256_set1_ps(scale), total) }
            }
            #[inline(always)]
            unsafe fn total(x: Self::T) -> f32 {
                let mut lanes = [0.0; 8];
                unsafe { std::arch::x86_64::_mm256_storeu_ps(lanes.as_mut_ptr(), x) };
                sum_of_eight(lanes)
            }
            #[inline(always)]
            unsafe fn no_sums() -> Self::S {
                unsafe { [std::arch::x86_64::_mm256_setzero_si256(); 2] }
            }
            #[inline(always)]
            unsafe fn add_pair(sums: Self::S, w: Self::W, first: i16, second: i16) -> Self::S {
                use std::arch::x86_64::*;
                unsafe {
                    let pair = i32::from(first) & 0xffff | i32::from(second) << 16;
                    let pair = _mm256_set1_epi32(pair);
                    [
                        _mm256_add_epi32(sums[0], _mm256_madd_epi16(w[0], pair)),
                        _mm256_add_epi32(sums[1], _mm256_madd_epi16(w[1], pair)),
                    ]
                }
            }
            #[inline(always)]
            unsafe fn store_sums(sums: Self::S, out: *mut f32) {
                use std::arch::x86_64::*;
                unsafe {
                    _mm256_storeu_ps(out, _mm256_cvtepi32_ps(sums[0]));
                    _mm256_storeu_ps(out.add(8), _mm256_cvtepi32_ps(sums[1]));
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
widen_by_avx2!(crate::lanes::Avx2);
#[cfg(target_arch = "x86_64")]
widen_by_avx2!(crate::lanes::Avx512);

#[cfg(test)]
mod tests;
