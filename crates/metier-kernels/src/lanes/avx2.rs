//! Lanes as two 256-bit registers: lanes 0..8 and 8..16.

use std::arch::x86_64::*;

use super::{Activations, Lanes, form};

#[derive(Clone, Copy)]
pub(crate) struct Avx2;

// SAFETY of every block below: the trait's contract gives the CPU features and the elements behind pointers; loads and
// stores are the unaligned kind.
#[allow(clippy::undocumented_unsafe_blocks, reason = "one reason for all, stated above")]
impl Lanes for Avx2 {
    const TILE_ROWS: usize = 4;
    const WIDENS: bool = true;
    type F = [__m256; 2];
    type I = [__m256i; 2];
    type B = [__m256i; 2];

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        unsafe { [_mm256_set1_ps(x); 2] }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        unsafe { [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))] }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: Self::F) {
        unsafe {
            _mm256_storeu_ps(p, x[0]);
            _mm256_storeu_ps(p.add(8), x[1]);
        }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self::F {
        unsafe {
            let half = |p: *const i8| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast())));
            [half(p), half(p.add(8))]
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::F {
        unsafe { [_mm256_cvtph_ps(_mm_loadu_si128(p.cast())), _mm256_cvtph_ps(_mm_loadu_si128(p.add(8).cast()))] }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        unsafe { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        unsafe { [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        unsafe { [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn abs(a: Self::F) -> Self::F {
        unsafe {
            let sign = _mm256_set1_ps(-0.0);
            [_mm256_andnot_ps(sign, a[0]), _mm256_andnot_ps(sign, a[1])]
        }
    }
    #[inline(always)]
    unsafe fn copysign(a: Self::F, b: Self::F) -> Self::F {
        unsafe {
            let sign = _mm256_set1_ps(-0.0);
            [
                _mm256_or_ps(_mm256_andnot_ps(sign, a[0]), _mm256_and_ps(sign, b[0])),
                _mm256_or_ps(_mm256_andnot_ps(sign, a[1]), _mm256_and_ps(sign, b[1])),
            ]
        }
    }
    #[inline(always)]
    unsafe fn round_to_int(a: Self::F) -> Self::I {
        unsafe {
            const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
            [_mm256_cvtps_epi32(_mm256_round_ps::<NEAREST>(a[0])), _mm256_cvtps_epi32(_mm256_round_ps::<NEAREST>(a[1]))]
        }
    }
    #[inline(always)]
    unsafe fn to_float(a: Self::I) -> Self::F {
        unsafe { [_mm256_cvtepi32_ps(a[0]), _mm256_cvtepi32_ps(a[1])] }
    }
    #[inline(always)]
    unsafe fn exp2_int(n: Self::I) -> Self::F {
        unsafe {
            let bias = _mm256_set1_epi32(127);
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(n[0], bias))),
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(n[1], bias))),
            ]
        }
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, x: Self::I) {
        unsafe {
            // Pack 32 → 16 → 8 bits works inside 128-bit halves: lanes come out as 0-3, 8-11, 4-7, 12-15; then put in order.
            let words = _mm256_packs_epi32(x[0], x[1]);
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
            let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(p.cast(), bytes);
        }
    }
    #[inline(always)]
    unsafe fn splat_i32(x: i32) -> Self::I {
        unsafe { [_mm256_set1_epi32(x); 2] }
    }
    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> Self::B {
        unsafe { [_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast())] }
    }
    #[inline(always)]
    unsafe fn low_nibbles(x: Self::B) -> Self::B {
        unsafe {
            let mask = _mm256_set1_epi8(15);
            [_mm256_and_si256(x[0], mask), _mm256_and_si256(x[1], mask)]
        }
    }
    #[inline(always)]
    unsafe fn high_nibbles(x: Self::B) -> Self::B {
        unsafe {
            let mask = _mm256_set1_epi8(15);
            [_mm256_and_si256(_mm256_srli_epi16::<4>(x[0]), mask), _mm256_and_si256(_mm256_srli_epi16::<4>(x[1]), mask)]
        }
    }
    #[inline(always)]
    unsafe fn store_bytes(p: *mut u8, x: Self::B) {
        unsafe {
            _mm256_storeu_si256(p.cast(), x[0]);
            _mm256_storeu_si256(p.add(32).cast(), x[1]);
        }
    }
    #[inline(always)]
    unsafe fn sum(x: Self::F) -> f32 {
        unsafe {
            let eight = _mm256_add_ps(x[0], x[1]);
            sum_of_eight(eight)
        }
    }
    #[inline(always)]
    unsafe fn max_lane(x: Self::F) -> f32 {
        unsafe {
            let eight = _mm256_max_ps(x[0], x[1]);
            max_of_eight(eight)
        }
    }
    #[inline(always)]
    unsafe fn sum_i8(a: Self::I, b: Self::I) -> i32 {
        unsafe {
            let low = |x| _mm256_srai_epi32::<24>(_mm256_slli_epi32::<24>(x));
            let eight =
                _mm256_add_epi32(_mm256_add_epi32(low(a[0]), low(a[1])), _mm256_add_epi32(low(b[0]), low(b[1])));
            int_sum_of_eight(eight)
        }
    }
    /// `vpmaddubsw` would saturate (255 · 127 · 2 > 32,767), so even and odd bytes are widened to 16 bits first.
    #[inline(always)]
    unsafe fn dot4(acc: Self::I, w: Self::B, a: *const i8) -> Self::I {
        unsafe {
            let a = _mm256_set1_epi32(a.cast::<i32>().read_unaligned());
            let a_even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(a));
            let a_odd = _mm256_srai_epi16::<8>(a);
            let low = _mm256_set1_epi16(255);
            let mut sums = acc;
            for i in 0..2 {
                let even = _mm256_madd_epi16(_mm256_and_si256(w[i], low), a_even);
                let odd = _mm256_madd_epi16(_mm256_srli_epi16::<8>(w[i]), a_odd);
                sums[i] = _mm256_add_epi32(acc[i], _mm256_add_epi32(even, odd));
            }
            sums
        }
    }
    #[inline(always)]
    unsafe fn widen_line(from: *const u8, to: *mut u8) {
        unsafe {
            for half in 0..2 {
                let bytes = _mm256_loadu_si256(from.add(half * 32).cast());
                _mm256_storeu_si256(to.add(half * 64).cast(), _mm256_and_si256(bytes, _mm256_set1_epi16(255)));
                _mm256_storeu_si256(to.add(half * 64 + 32).cast(), _mm256_srli_epi16::<8>(bytes));
            }
        }
    }
    /// Two ways, both exact:
    ///
    /// - Bytes of at most 15: `vpmaddubsw`, a pair is at most 2 · 15 · 127 = 3,810, so the eight of a block stay below 2¹⁵ (30,480)
    ///   and are added in 16 bits; one `vpmaddwd` by ones for each block. 2 instructions for 32 products.
    /// - Other bytes: even and odd ones widened to 16 bits (here, or once by `widen_line`), `vpmaddwd` with widened activations, added in
    ///   32 bits. 4 instructions for 32 products.
    #[inline(always)]
    unsafe fn block<const R: usize, const P: usize, const FORM: u8>(
        w: *const u8,
        panel_stride: usize,
        a: Activations,
        dots: &mut [[Self::I; P]; R],
    ) {
        unsafe {
            let dword = |p: *const i8| _mm256_set1_epi32(p.cast::<i32>().read_unaligned());
            let pair = |p: *const i16| _mm256_set1_epi32(p.cast::<i32>().read_unaligned());
            let load = |p: *const u8| _mm256_loadu_si256(p.cast());
            for p in 0..P {
                let w = w.add(p * panel_stride);
                if FORM == form::NIBBLES || FORM == form::SMALL {
                    let mut sums = [[_mm256_setzero_si256(); 2]; R];
                    if FORM == form::SMALL {
                        for g in 0..8 {
                            let w = [load(w.add(g * 64)), load(w.add(g * 64 + 32))];
                            for r in 0..R {
                                let a = dword(a.values.add(r * a.stride + g * 4));
                                for half in 0..2 {
                                    sums[r][half] = _mm256_add_epi16(sums[r][half], _mm256_maddubs_epi16(w[half], a));
                                }
                                hold(&mut sums[r]);
                            }
                        }
                    } else {
                        for g in 0..4 {
                            let line = [load(w.add(g * 64)), load(w.add(g * 64 + 32))];
                            let (low, high) = (Self::low_nibbles(line), Self::high_nibbles(line));
                            for r in 0..R {
                                let first = dword(a.values.add(r * a.stride + g * 4));
                                let second = dword(a.values.add(r * a.stride + g * 4 + 16));
                                for half in 0..2 {
                                    let sum = _mm256_add_epi16(sums[r][half], _mm256_maddubs_epi16(low[half], first));
                                    sums[r][half] = _mm256_add_epi16(sum, _mm256_maddubs_epi16(high[half], second));
                                }
                                hold(&mut sums[r]);
                            }
                        }
                    }
                    let ones = _mm256_set1_epi16(1);
                    for r in 0..R {
                        for half in 0..2 {
                            let sum = _mm256_madd_epi16(sums[r][half], ones);
                            dots[r][p][half] = _mm256_add_epi32(dots[r][p][half], sum);
                        }
                    }
                } else {
                    let low = _mm256_set1_epi16(255);
                    for g in 0..8 {
                        let mut even = [_mm256_setzero_si256(); 2];
                        let mut odd = even;
                        for half in 0..2 {
                            if FORM == form::WIDE {
                                even[half] = load(w.add(g * 128 + half * 64));
                                odd[half] = load(w.add(g * 128 + half * 64 + 32));
                            } else {
                                let line = load(w.add(g * 64 + half * 32));
                                even[half] = _mm256_and_si256(line, low);
                                odd[half] = _mm256_srli_epi16::<8>(line);
                            }
                        }
                        for r in 0..R {
                            let a = a.wide.add(r * a.stride + g * 4);
                            let (first, second) = (pair(a), pair(a.add(2)));
                            for half in 0..2 {
                                let sum = _mm256_add_epi32(dots[r][p][half], _mm256_madd_epi16(even[half], first));
                                dots[r][p][half] = _mm256_add_epi32(sum, _mm256_madd_epi16(odd[half], second));
                            }
                            hold(&mut dots[r][p]);
                        }
                    }
                }
            }
        }
    }
}

/// Has both sums in registers here and now. Integer sums may be reordered, and LLVM does so: it loads a whole block, adds in a tree and
/// spills most of it to the stack, at half the speed.
#[inline]
#[target_feature(enable = "avx2")]
fn hold(sums: &mut [__m256i; 2]) {
    // SAFETY: no instruction is executed.
    unsafe {
        std::arch::asm!("/* {0} {1} */", inout(ymm_reg) sums[0], inout(ymm_reg) sums[1], options(nomem, nostack, preserves_flags));
    }
}

/// 8 → 4 → 2 → 1, lane i with lane i + half: the end of every tier's tree.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn sum_of_eight(eight: __m256) -> f32 {
    let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

/// The same tree of `a > b ? a : b`.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn max_of_eight(eight: __m256) -> f32 {
    let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
    let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
}

/// The sum of eight integers.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn int_sum_of_eight(eight: __m256i) -> i32 {
    let four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256::<1>(eight));
    let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b11_10_11_10>(four));
    _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<1>(two)))
}
