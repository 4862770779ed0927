//! Softmax attention of a few queries over pages of keys and values.
//!
//! A page holds `page_len` positions (a multiple of 16) of one head:
//!
//! ```text
//! keys   (head_dim, page_len)   transposed: 16 neighbours are 16 positions, so scores need no sum across lanes
//! values (page_len, head_dim)
//! ```
//!
//! Each score is summed over `head_dim` in order, each output over positions in order, the softmax sum runs in 16 strides from
//! the first visible position: none of it depends on how many queries share the call or how positions are cut into pages.

use std::ops::Range;

use crate::{
    elementwise::softmax_body,
    lanes::{LANES, Lanes},
};

/// Shape of one head's pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageShape {
    /// Elements of a key; a multiple of 16.
    pub head_dim: usize,
    /// Positions of a page; a multiple of 16.
    pub page_len: usize,
}

impl PageShape {
    /// f32 of one page: keys, then values.
    pub const fn floats(self) -> usize {
        2 * self.head_dim * self.page_len
    }

    /// Writes key and value of position `at` of a page.
    pub fn write(self, page: &mut [f32], at: usize, key: &[f32], value: &[f32]) {
        assert!(page.len() == self.floats() && at < self.page_len, "a position of the page");
        assert!(key.len() == self.head_dim && value.len() == self.head_dim, "one head's key and value");
        let (keys, values) = page.split_at_mut(self.head_dim * self.page_len);
        for (d, key) in key.iter().enumerate() {
            keys[d * self.page_len + at] = *key;
        }
        values[at * self.head_dim..(at + 1) * self.head_dim].copy_from_slice(value);
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
            match height {
                8 => part.attend::<L, 8, 2>(scores, out),
                4 if L::TILE_ROWS >= 12 => part.attend::<L, 4, 4>(scores, out),
                4 => part.attend::<L, 4, 1>(scores, out),
                3 if L::TILE_ROWS >= 12 => part.attend::<L, 3, 4>(scores, out),
                3 => part.attend::<L, 3, 1>(scores, out),
                2 => part.attend::<L, 2, 2>(scores, out),
                _ => part.attend::<L, 1, 4>(scores, out),
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
    /// `R` queries, `T` tiles at once: few queries alone would wait for each sum before they add to it.
    #[inline(always)]
    unsafe fn attend<L: Lanes, const R: usize, const T: usize>(self, scores: &mut [f32], out: &mut [f32]) {
        let head_dim = self.shape.head_dim;
        let padded = scores.len() / R;
        let span = span(self.visible);
        // SAFETY: tiles start inside `span` and `head_dim`, `T` of them where so many are left; features as the trait demands.
        unsafe {
            let mut at = span.start;
            while at < span.end {
                if at + T * LANES <= span.end.next_multiple_of(LANES) {
                    self.score::<L, R, T>(at, span.start, scores);
                    at += T * LANES;
                } else {
                    self.score::<L, R, 1>(at, span.start, scores);
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
                    self.weigh::<L, R, T>(d, &span, scores, out);
                    d += T * LANES;
                } else {
                    self.weigh::<L, R, 1>(d, &span, scores, out);
                    d += LANES;
                }
            }
        }
    }

    /// Scores of `T` tiles of 16 positions from `at` on; `scores` starts at position `start`.
    #[inline(always)]
    unsafe fn score<L: Lanes, const R: usize, const T: usize>(self, at: usize, start: usize, scores: &mut [f32]) {
        let PageShape { head_dim, page_len } = self.shape;
        let padded = scores.len() / R;
        assert!(at >= start && at - start + T * LANES <= padded, "tiles of the scores");
        // SAFETY: tiles of 16 positions lie inside `scores` by the assertion, and each inside its page (`at` and page_len are
        // multiples of 16); queries are indexed below head_dim; features as the trait demands.
        unsafe {
            let mut keys = [self.queries.as_ptr(); T];
            for (t, keys) in keys.iter_mut().enumerate() {
                let at = at + t * LANES;
                *keys = self.pages[at / page_len].as_ptr().add(at % page_len);
            }
            let mut sums = [[L::splat(0.0); T]; R];
            for d in 0..head_dim {
                let mut key = [L::splat(0.0); T];
                for t in 0..T {
                    key[t] = L::load(keys[t].add(d * page_len));
                }
                for r in 0..R {
                    let query = L::splat(*self.queries.as_ptr().add(r * head_dim + d));
                    for t in 0..T {
                        sums[r][t] = L::fma(query, key[t], sums[r][t]);
                    }
                }
            }
            for r in 0..R {
                for t in 0..T {
                    let to = scores.as_mut_ptr().add(r * padded + at - start + t * LANES);
                    L::store(to, L::mul(sums[r][t], L::splat(self.scale)));
                }
            }
        }
    }

    /// Outputs `d..d + 16 T` from the values of `span`.
    #[inline(always)]
    unsafe fn weigh<L: Lanes, const R: usize, const T: usize>(
        self,
        d: usize,
        span: &Range<usize>,
        scores: &[f32],
        out: &mut [f32],
    ) {
        let PageShape { head_dim, page_len } = self.shape;
        let padded = scores.len() / R;
        assert!(d + T * LANES <= head_dim && span.len() <= padded, "tiles of the values, a score each");
        // SAFETY: positions lie inside `span` and so inside `scores`, and inside their page; elements below head_dim by the
        // assertion; features as the trait demands.
        unsafe {
            let mut sums = [[L::splat(0.0); T]; R];
            for page_idx in span.start / page_len..span.end.div_ceil(page_len) {
                let (first, last) = (page_idx * page_len, (page_idx + 1) * page_len);
                let values = self.pages[page_idx].as_ptr().add(head_dim * page_len + d);
                for j in first.max(span.start)..last.min(span.end) {
                    let mut value = [L::splat(0.0); T];
                    for t in 0..T {
                        value[t] = L::load(values.add((j - first) * head_dim + t * LANES));
                    }
                    for r in 0..R {
                        let weight = L::splat(*scores.as_ptr().add(r * padded + j - span.start));
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
            rows in 1usize..=8, first in 1usize..60, pages in 2usize..5, window in 1usize..90, wide: bool,
        ) {
            let shape = PageShape { head_dim: if wide { 80 } else { 16 }, page_len: 32 };
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
                    prop_assert!((exact - f64::from(expected[r * shape.head_dim + d])).abs() < 1e-5);
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
