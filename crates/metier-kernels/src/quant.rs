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
    sync::{Arc, Mutex},
};

use half::f16;

use crate::{
    BLOCK, PANEL,
    lanes::Lanes,
    mapped::Mapped,
    memory::{AlignedBytes, Bytes, Extent, Halves, Shared, bytes_of},
    pool::Pool,
    tier::Isa,
};

mod multiply;

pub use multiply::{Input, Output, matmul, matmul_into, multiply};

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

#[cfg(test)]
mod tests;
