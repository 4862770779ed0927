//! 4-bit and 8-bit weights with a scale for each block of 32, times activations quantised to 8 bits on the fly.
//!
//! ```text
//! y[n] = Σ_blocks  scale_w · scale_a · (Σ_32 q · a − zero · Σ_32 a)  +  min_w · scale_a · Σ_32 a
//!                                       └ exact in i32 ┘
//! ```
//!
//! `q` is unsigned (nibbles as the file has them; 8-bit weights plus 128), `a` is signed: the operands of `vpdpbusd`. Block
//! sums are exact; their scaled f32 sum runs over the blocks in order, fused, so that all tiers and all batches agree.
//!
//! One block of a panel (16 outputs × 32 inputs):
//!
//! ```text
//! 8 bits: 8 lines of 64 bytes; line g, lane n = q[n][4g..4g+4]                         512 bytes
//! 4 bits: 4 lines; low nibbles of line g = q[n][4g..4g+4], high = q[n][16+4g..]        256 bytes
//!         (the file's own byte j holds q[j] and q[j+16]: packing moves dwords and changes none)
//! scales, mins: 16 × f16 each, as in the file
//! ```

use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use half::f16;

use crate::{
    BLOCK, PANEL,
    dense::{FEW_ROWS, Place, run_panels, store},
    lanes::{Activations, Lanes, form},
    mapped::Mapped,
    memory::{AlignedBytes, Bytes, Extent, Halves, Shared, bytes_of},
    pool::Pool,
    tier::Isa,
};

/// Bytes of a register of weights.
const LINE: usize = 64;

/// How 32 weights lie in a row: the block formats of GGUF that are kept bit for bit, and one of our own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockFormat {
    /// 18 bytes: f16 scale, 32 nibbles; `w = scale · (q − 8)`.
    Q4_0,
    /// 20 bytes: f16 scale, f16 min, 32 nibbles; `w = scale · q + min`.
    Q4_1,
    /// 34 bytes: f16 scale, 32 × i8; `w = scale · q`.
    Q8_0,
    /// 36 bytes: f16 scale, f16 min, 32 × u8; `w = scale · q + min`. No format of any file (GGUF's `q8_1` holds activations):
    /// it takes what has more than four bits and a min, as Q5_1 and the K formats have.
    U8Min,
}

impl BlockFormat {
    /// Bytes of one block of 32 weights.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q8_0 => 34,
            Self::U8Min => 36,
        }
    }

    /// Where the quants start in a block.
    const fn quants_at(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q8_0 => 2,
            Self::Q4_1 | Self::U8Min => 4,
        }
    }

    const fn lines(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 => 4,
            Self::Q8_0 | Self::U8Min => 8,
        }
    }

    /// Whether a block has a min behind its scale.
    const fn has_min(self) -> bool {
        matches!(self, Self::Q4_1 | Self::U8Min)
    }

    /// What is taken off the unsigned quant.
    const fn zero(self) -> i32 {
        match self {
            Self::Q4_0 => 8,
            Self::Q4_1 | Self::U8Min => 0,
            Self::Q8_0 => 128,
        }
    }
}

/// Weights `(n, k)` in quantised panels.
pub struct QuantMatrix {
    format: BlockFormat,
    n: usize,
    k: usize,
    blocks: usize,
    quants: Bytes,  // (n / 16, blocks, lines, 64)
    scales: Halves, // (n / 16, blocks, 16)
    mins: Halves,   // likewise where the format has mins; else empty
}

/// Bytes of a packed matrix: quants, scales, mins.
#[derive(Clone, Copy)]
struct PackedLen {
    quants: usize,
    scales: usize,
    mins: usize,
}

impl PackedLen {
    /// `None` where they do not fit into memory.
    fn of(format: BlockFormat, n: usize, k: usize) -> Option<Self> {
        let panel_blocks = n.div_ceil(PANEL).checked_mul(k.div_ceil(BLOCK))?;
        let quants = panel_blocks.checked_mul(format.lines() * LINE)?;
        let scales = panel_blocks * PANEL * size_of::<u16>();
        Some(Self { quants, scales, mins: if format.has_min() { scales } else { 0 } })
    }
}

impl QuantMatrix {
    /// Packs `n` rows of `k` weights (a multiple of 32); `row(i)` gives the blocks of row i as the file has them.
    ///
    /// # Panics
    ///
    /// Where `k` is no multiple of 32, or a row has another length.
    pub fn pack<'a>(format: BlockFormat, n: usize, k: usize, row: impl Fn(usize) -> &'a [u8]) -> Self {
        assert!(k.is_multiple_of(BLOCK), "whole blocks of 32");
        let blocks = k / BLOCK;
        let n_panels = n.div_ceil(PANEL);
        let lines = format.lines();
        let mut quants = AlignedBytes::zeroed(n_panels * blocks * lines * LINE);
        let mut scales = vec![0; n_panels * blocks * PANEL];
        let mut mins = vec![0; if format.has_min() { scales.len() } else { 0 }];
        let flip = if format == BlockFormat::Q8_0 { 0x80 } else { 0 };
        for i in 0..n {
            let (panel, lane) = (i / PANEL, i % PANEL);
            let row = row(i);
            assert_eq!(row.len(), blocks * format.block_bytes(), "one row of blocks");
            for (b, block) in row.chunks_exact(format.block_bytes()).enumerate() {
                let at = (panel * blocks + b) * PANEL + lane;
                scales[at] = u16::from_le_bytes([block[0], block[1]]);
                if format.has_min() {
                    mins[at] = u16::from_le_bytes([block[2], block[3]]);
                }
                let lines_at = (panel * blocks + b) * lines * LINE;
                for (g, dword) in block[format.quants_at()..].chunks_exact(4).enumerate() {
                    let to = &mut quants[lines_at + g * LINE + lane * 4..][..4];
                    for (to, from) in to.iter_mut().zip(dword) {
                        *to = from ^ flip;
                    }
                }
            }
        }
        Self {
            format,
            n,
            k,
            blocks,
            quants: Bytes::Made(quants),
            scales: Halves::Made(scales),
            mins: Halves::Made(mins),
        }
    }

    /// A matrix that was packed before and lies in a file: `(n, k)` in this format, its [`packed`](Self::packed) bytes from `at` on. They
    /// are not looked at. `None` where the file ends before they do, or `at` is no multiple of 64.
    pub fn mapped(format: BlockFormat, n: usize, k: usize, file: &Arc<Mapped>, at: usize) -> Option<Self> {
        if cfg!(target_endian = "big") || !at.is_multiple_of(LINE) {
            return None;
        }
        let len = PackedLen::of(format, n, k)?;
        let scales_at = at.checked_add(len.quants)?;
        let mins_at = scales_at.checked_add(len.scales)?;
        Some(Self {
            format,
            n,
            k,
            blocks: k.div_ceil(BLOCK),
            quants: Bytes::Mapped(Extent::new(file, at, len.quants)?),
            scales: Halves::Mapped(Extent::new(file, scales_at, len.scales)?),
            mins: Halves::Mapped(Extent::new(file, mins_at, len.mins)?),
        })
    }

    /// Bytes of such a matrix in a file; `None` where they do not fit into memory.
    pub fn packed_len(format: BlockFormat, n: usize, k: usize) -> Option<usize> {
        let len = PackedLen::of(format, n, k)?;
        len.quants.checked_add(len.scales)?.checked_add(len.mins)
    }

    /// What [`mapped`](Self::mapped) reads, part after part.
    pub fn packed(&self) -> [&[u8]; 3] {
        [&self.quants, bytes_of(&self.scales), bytes_of(&self.mins)]
    }

    /// How its weights lie.
    pub fn format(&self) -> BlockFormat {
        self.format
    }

    /// Quantises `n` rows of `k` f32 weights to 8 bits; `row(i, buffer)` writes row i. Inputs are filled up to a multiple of
    /// 32 with zeros.
    pub fn quantise(n: usize, k: usize, mut row: impl FnMut(usize, &mut [f32])) -> Self {
        let padded = k.next_multiple_of(BLOCK);
        let mut weights = vec![0.0; padded];
        let row_bytes = padded / BLOCK * BlockFormat::Q8_0.block_bytes();
        let mut bytes = Vec::with_capacity(n * row_bytes);
        for i in 0..n {
            row(i, &mut weights[..k]);
            for block in weights.chunks_exact(BLOCK) {
                quantise_weights(block, &mut bytes);
            }
        }
        let mut packed = Self::pack(BlockFormat::Q8_0, n, padded, |i| &bytes[i * row_bytes..(i + 1) * row_bytes]);
        packed.k = k;
        packed
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

/// One block of Q8_0: scale = max|w| / 127 rounded to f16, quants to nearest.
fn quantise_weights(block: &[f32], bytes: &mut Vec<u8>) {
    let max = block.iter().fold(0.0f32, |max, w| max.max(w.abs()));
    let scale = f16::from_f32(max / 127.0);
    bytes.extend(scale.to_bits().to_le_bytes());
    let scale = scale.to_f32();
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    // Adding and taking away 1.5 · 2²³ rounds to the nearest integer, ties to even, for |x| < 2²²: a call of `rintf` for each
    // weight took half of the load time.
    const ROUND: f32 = 12_582_912.0;
    let quant = |w: &f32| ((w * inverse).clamp(-127.0, 127.0) + ROUND - ROUND) as i8;
    bytes.extend(block.iter().map(|w| quant(w).cast_unsigned()));
}

/// Activations, quantised to 8 bits with one scale for each block of 32. Reused from call to call.
#[derive(Default)]
pub struct QuantRows {
    all: Buffers,
    /// What each thread quantised for itself.
    own: Vec<Mutex<Own>>,
    /// The number of the last product for which threads did so.
    product: u64,
}

/// Rows that one thread filled and quantised.
#[derive(Default)]
struct Own {
    product: u64,
    x: Vec<f32>,
    quantised: Buffers,
}

#[derive(Default)]
struct Buffers {
    rows: usize,
    blocks: usize,
    values: Vec<i8>,  // (rows, blocks, 32)
    scales: Vec<f32>, // (rows, blocks)
    sums: Vec<i32>,   // Σ values of a block
    scaled: Vec<f32>, // scale · sum
    wide: Vec<i16>,   // values widened, for tiers that multiply 16-bit numbers; else empty
}

/// Rows that one part quantises.
const QUANTISE_GRAIN: usize = 16;

impl QuantRows {
    /// Quantises `x`: (m, k).
    ///
    /// # Panics
    ///
    /// Where `x` is no whole number of rows.
    pub fn quantise(&mut self, pool: &Pool, x: &[f32], k: usize) {
        assert!(k > 0 && x.len().is_multiple_of(k), "whole rows");
        let writer = self.all.writer(pool.isa(), x.len() / k, k);
        pool.run_ranges(writer.rows, QUANTISE_GRAIN, &|rows| {
            // SAFETY: ranges of rows do not overlap.
            unsafe { writer.write(rows.clone(), &x[rows.start * k..rows.end * k]) };
        });
    }
}

impl Buffers {
    /// Room for `m` rows of `k`.
    fn writer(&mut self, isa: Isa, m: usize, k: usize) -> Writer<'_> {
        self.rows = m;
        self.blocks = k.div_ceil(BLOCK);
        let n_blocks = self.rows * self.blocks;
        self.values.resize(n_blocks * BLOCK, 0);
        self.scales.resize(n_blocks, 0.0);
        self.sums.resize(n_blocks, 0);
        self.scaled.resize(n_blocks, 0.0);
        let mut widens = false;
        tier_widens(isa, &mut widens);
        self.wide.resize(if widens { n_blocks * BLOCK } else { 0 }, 0);
        Writer {
            isa,
            rows: m,
            k,
            blocks: self.blocks,
            values: Shared::new(&mut self.values),
            scales: Shared::new(&mut self.scales),
            sums: Shared::new(&mut self.sums),
            scaled: Shared::new(&mut self.scaled),
            wide: Shared::new(&mut self.wide),
        }
    }

    fn slice(&self, rows: Range<usize>) -> QuantSlice<'_> {
        let (from, to) = (rows.start * self.blocks, rows.end * self.blocks);
        QuantSlice {
            rows: rows.len(),
            values: &self.values[from * BLOCK..to * BLOCK],
            scales: &self.scales[from..to],
            sums: &self.sums[from..to],
            scaled: &self.scaled[from..to],
            wide: if self.wide.is_empty() { &[] } else { &self.wide[from * BLOCK..to * BLOCK] },
        }
    }
}

/// Some rows of [`Buffers`].
#[derive(Clone, Copy)]
struct QuantSlice<'a> {
    rows: usize,
    values: &'a [i8],
    scales: &'a [f32],
    sums: &'a [i32],
    scaled: &'a [f32],
    wide: &'a [i16],
}

/// [`Buffers`] that several threads write, each its own rows.
struct Writer<'a> {
    isa: Isa,
    rows: usize,
    k: usize,
    blocks: usize,
    values: Shared<'a, i8>,
    scales: Shared<'a, f32>,
    sums: Shared<'a, i32>,
    scaled: Shared<'a, f32>,
    wide: Shared<'a, i16>,
}

impl<'a> Writer<'a> {
    /// Quantises these rows, `x`.
    ///
    /// # Safety
    ///
    /// No two calls may write or still use the same rows.
    unsafe fn write(&self, rows: Range<usize>, x: &[f32]) -> QuantSlice<'a> {
        assert_eq!(x.len(), rows.len() * self.k, "the part's rows");
        let (from, len) = (rows.start * self.blocks, rows.len() * self.blocks);
        // SAFETY: disjoint by the caller's promise.
        let (values, wide, scales, sums, scaled) = unsafe {
            (
                self.values.part(from * BLOCK, len * BLOCK),
                if self.wide.is_empty() { &mut [] } else { self.wide.part(from * BLOCK, len * BLOCK) },
                self.scales.part(from, len),
                self.sums.part(from, len),
                self.scaled.part(from, len),
            )
        };
        quantise_rows(self.isa, x, self.k, values, wide, scales, sums, scaled);
        QuantSlice { rows: rows.len(), values, wide, scales, sums, scaled }
    }
}

per_tier! {
    fn tier_widens(widens: &mut bool) = tier_widens_body
}

#[inline(always)]
unsafe fn tier_widens_body<L: Lanes>(widens: &mut bool) {
    *widens = L::WIDENS;
}

per_tier! {
    fn quantise_rows(x: &[f32], k: usize, values: &mut [i8], wide: &mut [i16], scales: &mut [f32], sums: &mut [i32], scaled: &mut [f32])
        = quantise_rows_body
}

#[inline(always)]
unsafe fn quantise_rows_body<L: Lanes>(
    x: &[f32],
    k: usize,
    values: &mut [i8],
    wide: &mut [i16],
    scales: &mut [f32],
    sums: &mut [i32],
    scaled: &mut [f32],
) {
    let blocks = k.div_ceil(BLOCK);
    for (row_idx, row) in x.chunks_exact(k).enumerate() {
        for b in 0..blocks {
            let from = &row[b * BLOCK..k.min((b + 1) * BLOCK)];
            let mut padded = [0.0; BLOCK];
            let block = if from.len() == BLOCK {
                from
            } else {
                padded[..from.len()].copy_from_slice(from);
                &padded
            };
            let at = row_idx * blocks + b;
            let values = &mut values[at * BLOCK..(at + 1) * BLOCK];
            // SAFETY: 32 elements in and out; features as the trait demands.
            unsafe {
                let (low, high) = (L::load(block.as_ptr()), L::load(block.as_ptr().add(PANEL)));
                let max = L::max_lane(L::max(L::abs(low), L::abs(high)));
                let inverse = L::splat(if max > 0.0 { 127.0 / max } else { 0.0 });
                // The quotient may pass 127 by a rounding error, never by a half: rounding brings it back.
                let (low, high) = (L::round_to_int(L::mul(low, inverse)), L::round_to_int(L::mul(high, inverse)));
                L::store_i8(values.as_mut_ptr(), low);
                L::store_i8(values.as_mut_ptr().add(PANEL), high);
                scales[at] = max / 127.0;
                sums[at] = L::sum_i8(low, high);
            }
            scaled[at] = scales[at] * sums[at] as f32;
            if L::WIDENS {
                let wide = &mut wide[at * BLOCK..(at + 1) * BLOCK];
                for (to, from) in wide.chunks_exact_mut(4).zip(values.chunks_exact(4)) {
                    to.copy_from_slice(&[from[0], from[2], from[1], from[3]].map(i16::from));
                }
            }
        }
    }
}

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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;
    use crate::tier::Tier;

    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u32 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) as u32
        }
        fn unit(&mut self) -> f32 {
            self.next() as f32 / (1u32 << 30) as f32 - 1.0
        }
    }

    fn blocks_of(format: BlockFormat, count: usize, random: &mut Random) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..count {
            bytes.extend(f16::from_f32(random.unit() * 0.1).to_bits().to_le_bytes());
            if format.has_min() {
                bytes.extend(f16::from_f32(random.unit()).to_bits().to_le_bytes());
            }
            let rest = format.block_bytes() - format.quants_at();
            bytes.extend((0..rest).map(|_| random.next() as u8));
        }
        bytes
    }

    /// The weights of one block, by the formula of the format.
    fn dequantise(format: BlockFormat, block: &[u8]) -> Vec<f64> {
        let half = |at: usize| f64::from(f16::from_bits(u16::from_le_bytes([block[at], block[at + 1]])).to_f32());
        let nibble = |i: usize| {
            let byte = block[format.quants_at() + i % 16];
            f64::from(if i < 16 { byte & 15 } else { byte >> 4 })
        };
        (0..BLOCK)
            .map(|i| match format {
                BlockFormat::Q4_0 => half(0) * (nibble(i) - 8.0),
                BlockFormat::Q4_1 => half(0) * nibble(i) + half(2),
                BlockFormat::Q8_0 => half(0) * f64::from(block[2 + i].cast_signed()),
                BlockFormat::U8Min => half(0) * f64::from(block[4 + i]) + half(2),
            })
            .collect()
    }

    fn check(format: BlockFormat, m: usize, n: usize, blocks: usize, seed: u64) {
        let mut random = Random(seed);
        let k = blocks * BLOCK;
        let row_bytes = blocks * format.block_bytes();
        let bytes = blocks_of(format, n * blocks, &mut random);
        let packed = QuantMatrix::pack(format, n, k, |i| &bytes[i * row_bytes..(i + 1) * row_bytes]);
        let x: Vec<f32> = (0..m * k).map(|_| random.unit()).collect();
        let mut expected: Option<Vec<u32>> = None;
        for tier in Tier::available() {
            let pool = Pool::new(2, tier);
            let mut rows = QuantRows::default();
            rows.quantise(&pool, &x, k);
            let mut out = vec![f32::NAN; m * n];
            matmul(&pool, &rows, &packed, &mut out);
            for i in 0..m {
                for j in 0..n {
                    let w: Vec<f64> = bytes[j * row_bytes..(j + 1) * row_bytes]
                        .chunks(format.block_bytes())
                        .flat_map(|block| dequantise(format, block))
                        .collect();
                    let (mut exact, mut magnitude) = (0.0, 0.0);
                    for (l, w) in w.iter().enumerate() {
                        let at = i * blocks + l / BLOCK;
                        let rows = &rows.all;
                        let a = f64::from(rows.values[at * BLOCK + l % BLOCK]) * f64::from(rows.scales[at]);
                        assert!((a - f64::from(x[i * k + l])).abs() <= f64::from(rows.scales[at]) * 0.501);
                        exact += a * w;
                        magnitude += (a * w).abs();
                    }
                    // f32 sums of scaled blocks against f64; nibbles of 15 with a negative min cancel, hence the factor.
                    let tolerance = 1e-5 * (magnitude + 1.0);
                    assert!((f64::from(out[i * n + j]) - exact).abs() <= tolerance, "{tier} {format:?} [{i}][{j}]");
                }
            }
            let bits: Vec<u32> = out.iter().map(|x| x.to_bits()).collect();
            assert_eq!(*expected.get_or_insert_with(|| bits.clone()), bits, "{tier} is not scalar");

            // The same among other columns, added to what is there.
            let stride = n + 5;
            let mut among: Vec<f32> = (0..m * stride).map(|i| i as f32).collect();
            matmul_into(&pool, &rows, &packed, &mut among, Output { stride, first: 3, add: true });
            for (i, found) in among.iter().enumerate() {
                let (row, column) = (i / stride, i % stride);
                let product = (3..3 + n).contains(&column).then(|| out[row * n + column - 3]);
                assert_eq!(*found, i as f32 + product.unwrap_or(0.0), "{tier}: ({row}, {column})");
            }

            rows.quantise(&pool, &x[(m - 1) * k..], k);
            let mut alone = vec![f32::NAN; n];
            matmul(&pool, &rows, &packed, &mut alone);
            let alone: Vec<u32> = alone.iter().map(|x| x.to_bits()).collect();
            assert_eq!(alone, bits[(m - 1) * n..], "{tier}: a row alone is not the row in its batch");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn tiers_agree_with_each_other_and_the_formula(
            format in prop::sample::select(vec![
                BlockFormat::Q4_0, BlockFormat::Q4_1, BlockFormat::Q8_0, BlockFormat::U8Min,
            ]),
            m in prop_oneof![1usize..28, 45usize..60], n in 1usize..90, blocks in 1usize..5, seed: u64,
        ) {
            check(format, m, n, blocks, seed);
        }
    }

    #[test]
    fn what_lies_in_a_file_multiplies_as_what_was_packed() {
        let mut random = Random(11);
        let (n, k) = (37, 3 * BLOCK);
        let folder = tempfile::tempdir().unwrap();
        for format in [BlockFormat::Q4_0, BlockFormat::Q4_1, BlockFormat::Q8_0, BlockFormat::U8Min] {
            let bytes = blocks_of(format, n * 3, &mut random);
            let row_bytes = 3 * format.block_bytes();
            let made = QuantMatrix::pack(format, n, k, |i| &bytes[i * row_bytes..(i + 1) * row_bytes]);
            let packed = made.packed().concat();
            assert_eq!(Some(packed.len()), QuantMatrix::packed_len(format, n, k));
            let path = folder.path().join(format!("{format:?}"));
            std::fs::write(&path, [&[7; 64], packed.as_slice()].concat()).unwrap();
            let file = Arc::new(Mapped::open(&path).unwrap());
            let mapped = QuantMatrix::mapped(format, n, k, &file, 64).unwrap();
            let x: Vec<f32> = (0..5 * k).map(|_| random.unit()).collect();
            for tier in Tier::available() {
                let pool = Pool::new(2, tier);
                let mut rows = QuantRows::default();
                rows.quantise(&pool, &x, k);
                let products = [&made, &mapped].map(|weights| {
                    let mut out = vec![f32::NAN; 5 * n];
                    matmul(&pool, &rows, weights, &mut out);
                    out
                });
                assert_eq!(products[0], products[1], "{tier} {format:?}");
            }
            for (n, at) in [(n + 16, 64), (n, 128), (n, 32), (n, usize::MAX - 63), (usize::MAX / 8, 64)] {
                assert!(QuantMatrix::mapped(format, n, k, &file, at).is_none(), "{n} rows at {at}");
            }
        }
    }

    #[test]
    fn rows_in_parts_are_the_rows_together() {
        let mut random = Random(3);
        let (k, ns) = (3 * BLOCK, [37, 20]);
        let formats = [BlockFormat::Q4_1, BlockFormat::Q8_0];
        let matrices: Vec<QuantMatrix> = formats
            .into_iter()
            .zip(ns)
            .map(|(format, n)| {
                let bytes = blocks_of(format, n * 3, &mut random);
                let row_bytes = 3 * format.block_bytes();
                QuantMatrix::pack(format, n, k, |i| &bytes[i * row_bytes..(i + 1) * row_bytes])
            })
            .collect();
        let stride = ns[0] + ns[1];
        for m in [1, 7, 23, 24, 31, 33, 59, 131, 400] {
            let x: Vec<f32> = (0..m * k).map(|_| random.unit()).collect();
            for (tier, threads) in Tier::available().into_iter().flat_map(|tier| [1, 2, 5].map(|n| (tier, n))) {
                let pool = Pool::new(threads, tier);
                let mut rows = QuantRows::default();
                let mut expected = vec![1.0; m * stride];
                rows.quantise(&pool, &x, k);
                matmul_into(&pool, &rows, &matrices[0], &mut expected, Output { stride, first: 0, add: true });
                matmul_into(&pool, &rows, &matrices[1], &mut expected, Output { stride, first: ns[0], add: true });
                for keep in [true, false, true] {
                    let (mut filled, mut out) = (vec![f32::NAN; m * k], vec![1.0; m * stride]);
                    let fill = |first: usize, rows: &mut [f32]| {
                        rows.copy_from_slice(&x[first * k..first * k + rows.len()]);
                    };
                    let input = Input { x: &mut filled, k, fill: &fill, keep };
                    multiply(&pool, input, &mut rows, &matrices, &mut out, true);
                    assert!(!keep || filled == x, "{tier} {m}");
                    assert_eq!(out, expected, "{tier}, {m} rows, {threads} threads");
                }
            }
        }
    }

    /// Weights and activations at their ends: where a narrow sum would saturate, it does so here.
    #[test]
    fn the_widest_values_do_not_overflow() {
        let one = f16::from_f32(1.0).to_bits().to_le_bytes();
        let half = f16::from_f32(0.5).to_bits().to_le_bytes();
        for (format, byte, weight) in [
            (BlockFormat::Q8_0, 0x80, -128.0),
            (BlockFormat::Q8_0, 0x7f, 127.0),
            (BlockFormat::U8Min, 0xff, 255.5),
            (BlockFormat::U8Min, 0x80, 128.5),
            (BlockFormat::U8Min, 0, 0.5),
            (BlockFormat::Q4_0, 0xff, 7.0),
            (BlockFormat::Q4_0, 0, -8.0),
            (BlockFormat::Q4_1, 0xff, 15.5),
        ] {
            let mut block = one.to_vec();
            if format.has_min() {
                block.extend(half);
            }
            block.resize(format.block_bytes(), byte);
            for tier in Tier::available() {
                let pool = Pool::new(1, tier);
                for m in [1, 2, 4, 13] {
                    for n in [1, 16, 32, 64] {
                        let packed = QuantMatrix::pack(format, n, 32, |_| &block);
                        for x in [127.0, -127.0] {
                            let mut rows = QuantRows::default();
                            rows.quantise(&pool, &vec![x; m * 32], 32);
                            let mut out = vec![f32::NAN; m * n];
                            matmul(&pool, &rows, &packed, &mut out);
                            assert_eq!(out, vec![32.0 * x * weight; m * n], "{tier} {format:?} {byte}: ({m}, {n})");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn eight_bit_weights_stay_close() {
        let mut random = Random(7);
        let (n, k) = (20, 40);
        let w: Vec<f32> = (0..n * k).map(|_| random.unit()).collect();
        let packed = QuantMatrix::quantise(n, k, |i, row| row.copy_from_slice(&w[i * k..(i + 1) * k]));
        let x: Vec<f32> = (0..k).map(|_| random.unit()).collect();
        let pool = Pool::new(1, Tier::detect());
        let mut rows = QuantRows::default();
        rows.quantise(&pool, &x, k);
        let mut out = vec![0.0; n];
        matmul(&pool, &rows, &packed, &mut out);
        for j in 0..n {
            let exact: f32 = (0..k).map(|l| x[l] * w[j * k + l]).sum();
            assert!((out[j] - exact).abs() < 0.1, "{} is not {exact}", out[j]);
        }
    }
}
