//! Softmax attention of a few queries over pages of keys and values.
//!
//! A page holds `page_len` positions (a multiple of 16) of one head:
//!
//! ```text
//! keys   (head_dim, page_len)   transposed: 16 neighbours are 16 positions, so scores need no sum across lanes
//! values (page_len, head_dim)
//! scales (2, page_len)           of keys and of values, where elements have 8 bits
//! ```
//!
//! Pages of all formats lie in memory as f32, which the allocator and the cache above know how to carry; what stands in them is this room's business.
//!
//! Each score is summed over `head_dim` in order, each output over positions in order, the softmax sum runs in 16 strides from
//! the first visible position: none of it depends on how many queries share the call or how positions are cut into pages.

use std::{ops::Range, slice};

use crate::{
    elementwise::softmax_body,
    lanes::{LANES, Lanes},
};

/// How keys and values are kept. Sums are in f32 whatever they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KvFormat {
    /// As they were computed.
    #[default]
    F32,
    /// Rounded to IEEE halves: 11 bits; what is larger than 65,504 becomes that.
    F16,
    /// Rounded to 8 bits, with one f32 scale for each key and each value of a head: largest magnitude / 127.
    Int8,
}

/// Shape of one head's pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageShape {
    /// Elements of a key; a multiple of 16.
    pub head_dim: usize,
    /// Positions of a page; a multiple of 16.
    pub page_len: usize,
    /// How its elements are kept.
    pub format: KvFormat,
}

impl PageShape {
    /// A page of f32.
    pub const fn f32(head_dim: usize, page_len: usize) -> Self {
        Self { head_dim, page_len, format: KvFormat::F32 }
    }

    /// Elements of a page: keys, then values.
    const fn elements(self) -> usize {
        assert!(self.head_dim.is_multiple_of(LANES) && self.page_len.is_multiple_of(LANES), "multiples of 16");
        let keys = self.head_dim.checked_mul(self.page_len).expect("a page fits into memory");
        keys.checked_mul(2).expect("a page fits into memory")
    }

    /// Length of one page in units of 4 bytes: elements, then (8 bits) the scales of its keys and of its values.
    pub const fn floats(self) -> usize {
        match self.format {
            KvFormat::F32 => self.elements(),
            KvFormat::F16 => self.elements() / 2,
            KvFormat::Int8 => self.elements() / 4 + 2 * self.page_len,
        }
    }

    /// Writes key and value of position `at` of a page.
    ///
    /// # Panics
    ///
    /// Where sizes disagree.
    pub fn write(self, page: &mut [f32], at: usize, key: &[f32], value: &[f32]) {
        assert!(page.len() == self.floats() && at < self.page_len, "a position of the page");
        assert!(key.len() == self.head_dim && value.len() == self.head_dim, "one head's key and value");
        let Self { head_dim, page_len, format } = self;
        let first_value = head_dim * page_len + at * head_dim;
        let places = || (0..head_dim).map(|d| d * page_len + at).chain(first_value..first_value + head_dim);
        let elements = key.iter().chain(value);
        match format {
            KvFormat::F32 => places().zip(elements).for_each(|(to, x)| page[to] = *x),
            KvFormat::F16 => {
                // SAFETY: as many halves as the page has bytes for; every bit pattern is one.
                let halves = unsafe { slice::from_raw_parts_mut(page.as_mut_ptr().cast::<u16>(), self.elements()) };
                let half = |x: f32| half::f16::from_f32(x.clamp(-MAX_HALF, MAX_HALF)).to_bits();
                places().zip(elements).for_each(|(to, x)| halves[to] = half(*x));
            }
            KvFormat::Int8 => {
                let (bytes, scales) = page.split_at_mut(self.elements() / 4);
                // SAFETY: as many bytes as the elements' part of the page has; every bit pattern is one.
                let bytes = unsafe { slice::from_raw_parts_mut(bytes.as_mut_ptr().cast::<i8>(), self.elements()) };
                let scale = |x: &[f32]| x.iter().fold(0.0f32, |max, x| max.max(x.abs())) / 127.0;
                let both = [scale(key), scale(value)];
                [scales[at], scales[page_len + at]] = both;
                let inverse = both.map(|scale| if scale > 0.0 { scale.recip() } else { 0.0 });
                let rounded = |x: f32, inverse: f32| (x * inverse).round_ties_even() as i8;
                let keys = key.iter().map(|x| rounded(*x, inverse[0]));
                let values = value.iter().map(|x| rounded(*x, inverse[1]));
                places().zip(keys.chain(values)).for_each(|(to, x)| bytes[to] = x);
            }
        }
    }
}

/// The largest f16.
const MAX_HALF: f32 = 65_504.0;

/// How elements of a page are read: 16 neighbours, counted in elements from the start of the page.
///
/// # Safety
///
/// As [`Lanes`]; `at + 16` elements must be there.
#[allow(clippy::missing_safety_doc, reason = "one contract for all methods, stated at the trait")]
trait Element {
    /// Whether keys and values have scales.
    const SCALED: bool = false;
    unsafe fn load<L: Lanes>(page: *const f32, at: usize) -> L::F;
}

struct Single;
struct Half;
struct Byte;

impl Element for Single {
    #[inline(always)]
    unsafe fn load<L: Lanes>(page: *const f32, at: usize) -> L::F {
        // SAFETY: the caller's.
        unsafe { L::load(page.add(at)) }
    }
}

impl Element for Half {
    #[inline(always)]
    unsafe fn load<L: Lanes>(page: *const f32, at: usize) -> L::F {
        // SAFETY: the caller's.
        unsafe { L::load_f16(page.cast::<u16>().add(at)) }
    }
}

impl Element for Byte {
    const SCALED: bool = true;
    #[inline(always)]
    unsafe fn load<L: Lanes>(page: *const f32, at: usize) -> L::F {
        // SAFETY: the caller's.
        unsafe { L::load_i8(page.cast::<i8>().add(at)) }
    }
}

/// Queries that share one pass over the pages.
pub const QUERIES: usize = 8;

/// `out[r] = Σ_j softmax_j(scale · q[r]·key[j]) · value[j]`, for `j` in `visible[r]`.
///
/// `queries`, `out`: (r, head_dim), at most [`QUERIES`] rows; `visible[r]` is no empty range, counted from the first position of
/// `pages`, which must hold it (all values there must be finite, seen or not); `scratch` is made as long as needed.
///
/// # Panics
///
/// Where sizes disagree.
#[allow(clippy::too_many_arguments, reason = "a kernel's arguments are its shape")]
pub fn attend(
    isa: crate::Isa,
    shape: PageShape,
    queries: &[f32],
    visible: &[Range<usize>],
    pages: &[&[f32]],
    scale: f32,
    scratch: &mut Vec<f32>,
    out: &mut [f32],
) {
    let rows = visible.len();
    assert!((1..=QUERIES).contains(&rows), "one to eight queries");
    assert!(shape.head_dim.is_multiple_of(LANES) && shape.page_len.is_multiple_of(LANES), "multiples of 16");
    assert!(queries.len() == rows * shape.head_dim && out.len() == queries.len(), "(rows, head_dim)");
    let span = span(visible);
    assert!(
        visible.iter().all(|v| !v.is_empty()) && span.end <= pages.len() * shape.page_len,
        "visible positions are there"
    );
    assert!(pages.iter().all(|page| page.len() == shape.floats()), "whole pages");
    let padded = span.len().next_multiple_of(LANES);
    scratch.clear();
    scratch.resize(rows * padded, 0.0);
    attend_rows(isa, shape, queries, visible, pages, scale, scratch, out);
}

/// What any row sees, from the start of a tile of 16 positions.
fn span(visible: &[Range<usize>]) -> Range<usize> {
    let from = visible.iter().map(|v| v.start).min().unwrap_or(0);
    let to = visible.iter().map(|v| v.end).max().unwrap_or(0);
    from / LANES * LANES..to
}

per_tier! {
    fn attend_rows(shape: PageShape, queries: &[f32], visible: &[Range<usize>], pages: &[&[f32]], scale: f32, scores: &mut [f32],
        out: &mut [f32]) = attend_rows_body
}

#[allow(clippy::too_many_arguments, reason = "a kernel's arguments are its shape")]
#[inline(always)]
unsafe fn attend_rows_body<L: Lanes>(
    shape: PageShape,
    queries: &[f32],
    visible: &[Range<usize>],
    pages: &[&[f32]],
    scale: f32,
    scores: &mut [f32],
    out: &mut [f32],
) {
    let rows = visible.len();
    let padded = scores.len() / rows;
    let mut row = 0;
    while row < rows {
        let left = rows - row;
        let height = if left >= 8 && L::TILE_ROWS >= 12 {
            8
        } else if left >= 4 {
            4
        } else if left >= 3 {
            3
        } else {
            left.min(2)
        };
        let part = Rows {
            shape,
            queries: &queries[row * shape.head_dim..(row + height) * shape.head_dim],
            visible: &visible[row..row + height],
            pages,
            scale,
        };
        let scores = &mut scores[row * padded..(row + height) * padded];
        let out = &mut out[row * shape.head_dim..(row + height) * shape.head_dim];
        // SAFETY: features as the trait demands; `attend` checked the sizes.
        unsafe {
            match shape.format {
                KvFormat::F32 => part.attend_height::<L, Single>(height, scores, out),
                KvFormat::F16 => part.attend_height::<L, Half>(height, scores, out),
                KvFormat::Int8 => part.attend_height::<L, Byte>(height, scores, out),
            }
        }
        row += height;
    }
}

#[derive(Clone, Copy)]
struct Rows<'a> {
    shape: PageShape,
    queries: &'a [f32],
    visible: &'a [Range<usize>],
    pages: &'a [&'a [f32]],
    scale: f32,
}

impl Rows<'_> {
    #[inline(always)]
    unsafe fn attend_height<L: Lanes, E: Element>(self, height: usize, scores: &mut [f32], out: &mut [f32]) {
        // SAFETY: as in `attend`.
        unsafe {
            match height {
                8 => self.attend::<L, E, 8, 2>(scores, out),
                4 if L::TILE_ROWS >= 12 => self.attend::<L, E, 4, 4>(scores, out),
                4 => self.attend::<L, E, 4, 1>(scores, out),
                3 if L::TILE_ROWS >= 12 => self.attend::<L, E, 3, 4>(scores, out),
                3 => self.attend::<L, E, 3, 1>(scores, out),
                2 => self.attend::<L, E, 2, 2>(scores, out),
                _ => self.attend::<L, E, 1, 4>(scores, out),
            }
        }
    }

    /// `R` queries, `T` tiles at once: few queries alone would wait for each sum before they add to it.
    #[inline(always)]
    unsafe fn attend<L: Lanes, E: Element, const R: usize, const T: usize>(self, scores: &mut [f32], out: &mut [f32]) {
        let head_dim = self.shape.head_dim;
        let padded = scores.len() / R;
        let span = span(self.visible);
        // SAFETY: tiles start inside `span` and `head_dim`, `T` of them where so many are left; features as the trait demands.
        unsafe {
            let mut at = span.start;
            while at < span.end {
                if at + T * LANES <= span.end.next_multiple_of(LANES) {
                    self.score::<L, E, R, T>(at, span.start, scores);
                    at += T * LANES;
                } else {
                    self.score::<L, E, R, 1>(at, span.start, scores);
                    at += LANES;
                }
            }
            for (row, visible) in scores.chunks_exact_mut(padded).zip(self.visible) {
                let (from, to) = (visible.start - span.start, visible.end - span.start);
                row[..from].fill(0.0);
                softmax_body::<L>(&mut row[from..to]);
                row[to..].fill(0.0);
            }
            let mut d = 0;
            while d < head_dim {
                if d + T * LANES <= head_dim {
                    self.weigh::<L, E, R, T>(d, &span, scores, out);
                    d += T * LANES;
                } else {
                    self.weigh::<L, E, R, 1>(d, &span, scores, out);
                    d += LANES;
                }
            }
        }
    }

    /// Scores of `T` tiles of 16 positions from `at` on; `scores` starts at position `start`.
    #[inline(always)]
    unsafe fn score<L: Lanes, E: Element, const R: usize, const T: usize>(
        self,
        at: usize,
        start: usize,
        scores: &mut [f32],
    ) {
        let PageShape { head_dim, page_len, .. } = self.shape;
        let padded = scores.len() / R;
        assert!(at >= start && at - start + T * LANES <= padded, "tiles of the scores");
        // SAFETY: tiles of 16 positions lie inside `scores` by the assertion, and each inside its page (`at` and page_len are
        // multiples of 16); queries are indexed below head_dim; features as the trait demands.
        unsafe {
            let mut pages = [self.queries.as_ptr(); T];
            let mut first = [0; T];
            for t in 0..T {
                let at = at + t * LANES;
                (pages[t], first[t]) = (self.pages[at / page_len].as_ptr(), at % page_len);
            }
            let mut sums = [[L::splat(0.0); T]; R];
            for d in 0..head_dim {
                let mut key = [L::splat(0.0); T];
                for t in 0..T {
                    key[t] = E::load::<L>(pages[t], first[t] + d * page_len);
                }
                for r in 0..R {
                    let query = L::splat(*self.queries.as_ptr().add(r * head_dim + d));
                    for t in 0..T {
                        sums[r][t] = L::fma(query, key[t], sums[r][t]);
                    }
                }
            }
            for t in 0..T {
                let mut scale = L::splat(self.scale);
                if E::SCALED {
                    scale = L::mul(scale, L::load(pages[t].add(self.shape.elements() / 4 + first[t])));
                }
                for r in 0..R {
                    let to = scores.as_mut_ptr().add(r * padded + at - start + t * LANES);
                    L::store(to, L::mul(sums[r][t], scale));
                }
            }
        }
    }

    /// Outputs `d..d + 16 T` from the values of `span`.
    #[inline(always)]
    unsafe fn weigh<L: Lanes, E: Element, const R: usize, const T: usize>(
        self,
        d: usize,
        span: &Range<usize>,
        scores: &[f32],
        out: &mut [f32],
    ) {
        let PageShape { head_dim, page_len, .. } = self.shape;
        let padded = scores.len() / R;
        assert!(d + T * LANES <= head_dim && span.len() <= padded, "tiles of the values, a score each");
        // SAFETY: positions lie inside `span` and so inside `scores`, and inside their page; elements below head_dim by the
        // assertion; features as the trait demands.
        unsafe {
            let mut sums = [[L::splat(0.0); T]; R];
            for page_idx in span.start / page_len..span.end.div_ceil(page_len) {
                let (first, last) = (page_idx * page_len, (page_idx + 1) * page_len);
                let page = self.pages[page_idx].as_ptr();
                let values = head_dim * page_len + d;
                let scales = if E::SCALED { page.add(self.shape.elements() / 4 + page_len) } else { page };
                for j in first.max(span.start)..last.min(span.end) {
                    let mut value = [L::splat(0.0); T];
                    for t in 0..T {
                        value[t] = E::load::<L>(page, values + (j - first) * head_dim + t * LANES);
                    }
                    for r in 0..R {
                        let mut weight = *scores.as_ptr().add(r * padded + j - span.start);
                        if E::SCALED {
                            weight *= *scales.add(j - first);
                        }
                        let weight = L::splat(weight);
                        for t in 0..T {
                            sums[r][t] = L::fma(weight, value[t], sums[r][t]);
                        }
                    }
                }
            }
            for r in 0..R {
                for t in 0..T {
                    L::store(out.as_mut_ptr().add(r * head_dim + d + t * LANES), sums[r][t]);
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
    use crate::tier::{Isa, Tier};

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn tiers_agree_and_are_softmax_attention(
            rows in 1usize..=8, first in 1usize..60, pages in 2usize..5, window in 1usize..90, wide: bool, kept in 0usize..3,
        ) {
            let format = [KvFormat::F32, KvFormat::F16, KvFormat::Int8][kept];
            let shape = PageShape { head_dim: if wide { 80 } else { 16 }, page_len: 32, format };
            // Elements are at most 1. Rounding moves each by half a step at most, a score by all of its products' steps, an output by
            // what scores and values moved.
            let step = [0.0, 2f64.powi(-12), 0.5 / 127.0][kept];
            let limit = 1e-5 + step * (1.0 + 2.0 * 0.3 * shape.head_dim as f64);
            let first = first.min(pages * 32 - rows + 1);
            let value = |i: usize, salt: usize| ((i * 37 + salt * 101) % 257) as f32 / 128.0 - 1.0;
            let n = pages * 32;
            let keys: Vec<Vec<f32>> = (0..n).map(|j| (0..shape.head_dim).map(|d| value(j * 80 + d, 1)).collect()).collect();
            let values: Vec<Vec<f32>> = (0..n).map(|j| (0..shape.head_dim).map(|d| value(j * 80 + d, 2)).collect()).collect();
            let mut store = vec![vec![0.0; shape.floats()]; pages];
            for j in 0..n {
                shape.write(&mut store[j / 32], j % 32, &keys[j], &values[j]);
            }
            let store: Vec<&[f32]> = store.iter().map(Vec::as_slice).collect();
            let queries: Vec<f32> = (0..rows * shape.head_dim).map(|i| value(i, 3)).collect();
            let visible: Vec<Range<usize>> = (first..first + rows).map(|to| to.saturating_sub(window)..to).collect();
            let run = |isa: Isa, queries: &[f32], visible: &[Range<usize>]| {
                let mut out = vec![f32::NAN; queries.len()];
                attend(isa, shape, queries, visible, &store, 0.3, &mut Vec::new(), &mut out);
                out
            };
            let expected = run(Isa::SCALAR, &queries, &visible);
            for r in 0..rows {
                let q = &queries[r * shape.head_dim..(r + 1) * shape.head_dim];
                let e: Vec<f64> = keys[visible[r].clone()].iter()
                    .map(|k| (q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>() * f64::from(0.3f32)).exp())
                    .collect();
                let sum: f64 = e.iter().sum();
                for d in 0..shape.head_dim {
                    let exact: f64 = e.iter().zip(&values[visible[r].clone()]).map(|(e, v)| e * f64::from(v[d])).sum::<f64>() / sum;
                    prop_assert!((exact - f64::from(expected[r * shape.head_dim + d])).abs() < limit);
                }
            }
            for tier in Tier::available() {
                let isa = tier.isa().unwrap();
                let got = run(isa, &queries, &visible);
                prop_assert!(got.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()), "{} is not scalar", tier);
                let last = (rows - 1) * shape.head_dim;
                let alone = run(isa, &queries[last..], &visible[rows - 1..]);
                prop_assert!(alone.iter().zip(&expected[last..]).all(|(a, b)| a.to_bits() == b.to_bits()), "{} alone", tier);
            }
        }
    }
}
