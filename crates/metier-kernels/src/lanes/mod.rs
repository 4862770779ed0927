//! Sixteen lanes: the only vocabulary that kernels are written in.
//!
//! ```text
//! F: 16 × f32            one zmm   | two ymm   | [f32; 16]
//! I: 16 × i32            one zmm   | two ymm   | [i32; 16]
//! B: 16 × 4 bytes (u8)   one zmm   | two ymm   | [u8; 64]     lane n holds weights k..k+4 of output n
//! ```
//!
//! Every operation is exactly rounded (or exact), so that all implementations agree bit for bit.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod scalar;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
pub(crate) use scalar::Scalar;

/// Lanes of every vector.
pub(crate) const LANES: usize = 16;

/// How the weights of a panel's block lie in memory when a tile multiplies them.
pub(crate) mod form {
    /// 4 lines; low nibbles are inputs 0..16, high nibbles 16..32.
    pub(crate) const NIBBLES: u8 = 0;
    /// 8 lines of bytes that are at most 15: unpacked nibbles.
    pub(crate) const SMALL: u8 = 1;
    /// 8 lines of bytes.
    pub(crate) const BYTES: u8 = 2;
    /// 8 double lines of 16-bit numbers, made by [`super::Lanes::widen_line`]; only for tiers that say [`super::Lanes::WIDENS`].
    pub(crate) const WIDE: u8 = 3;
}

/// One block of activations for each row of a tile.
#[derive(Clone, Copy)]
pub(crate) struct Activations {
    /// 32 × i8 of row 0; row r lies `r · stride` elements behind it.
    pub(crate) values: *const i8,
    /// The same as i16, in the order 0 2 1 3 of each four; null where the tier does not widen.
    pub(crate) wide: *const i16,
    /// Elements from row to row, in both.
    pub(crate) stride: usize,
}

/// Sixteen lanes of f32, i32 or 4 × u8.
///
/// # Safety
///
/// All methods need the CPU features of the implementation, and must be inlined into a function that enables them.
/// `load*` and `store*` need as many valid elements behind the pointer as the name says; no alignment is asked for.
#[allow(clippy::missing_safety_doc, reason = "one contract for all methods, stated at the trait")]
pub(crate) trait Lanes: Copy {
    /// Rows of activations that one tile of the matmul kernels holds: as many as the registers carry.
    const TILE_ROWS: usize;
    /// Up to so many rows, nibbles are unpacked for every tile of rows; beyond, once for all.
    const NIBBLE_ROWS: usize = 4;
    /// Whether 8-bit products are made of 16-bit operands, so that activations are widened once, and weights where many rows share them.
    const WIDENS: bool = false;
    /// 16 × f32.
    type F: Copy;
    /// 16 × i32.
    type I: Copy;
    /// 16 × 4 × u8.
    type B: Copy;

    unsafe fn splat(x: f32) -> Self::F;
    unsafe fn load(p: *const f32) -> Self::F;
    unsafe fn store(p: *mut f32, x: Self::F);
    /// 16 IEEE halves, widened.
    unsafe fn load_f16(p: *const u16) -> Self::F;
    /// 16 × i8, widened.
    unsafe fn load_i8(p: *const i8) -> Self::F;
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// `a · b + c`, rounded once.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `a > b ? a : b`: the second where either is NaN.
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    /// `a < b ? a : b`: the second where either is NaN.
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn abs(a: Self::F) -> Self::F;
    /// The magnitude of `a` with the sign of `b`.
    unsafe fn copysign(a: Self::F, b: Self::F) -> Self::F;
    /// To the nearest integer, ties to even; |x| < 2³¹.
    unsafe fn round_to_int(a: Self::F) -> Self::I;
    unsafe fn to_float(a: Self::I) -> Self::F;
    /// 2^n for −127 ≤ n ≤ 127 (−127 gives 0).
    unsafe fn exp2_int(n: Self::I) -> Self::F;
    /// The low byte of each lane.
    unsafe fn store_i8(p: *mut i8, x: Self::I);
    unsafe fn splat_i32(x: i32) -> Self::I;
    /// 64 bytes.
    unsafe fn load_bytes(p: *const u8) -> Self::B;
    unsafe fn low_nibbles(x: Self::B) -> Self::B;
    unsafe fn high_nibbles(x: Self::B) -> Self::B;
    unsafe fn store_bytes(p: *mut u8, x: Self::B);
    /// Adds `Σ_{i<4} w[lane][i] · a[i]` to each lane; `a` points at four i8. Exact for every u8 and for i8 ≥ −127.
    unsafe fn dot4(acc: Self::I, w: Self::B, a: *const i8) -> Self::I;

    /// Asks for the cache line of an address, which need not be valid.
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        let _ = p;
    }

    /// Turns a line of bytes into the 128 bytes that [`form::WIDE`] means by it.
    unsafe fn widen_line(from: *const u8, to: *mut u8) {
        let _ = (from, to);
        unreachable!("only tiers that say WIDENS widen");
    }

    /// Adds a block's products to the dots of R rows × P panels: `dots[r][p][lane] += Σ_32 w[p][lane][i] · a[r][i]`, exactly.
    /// `w` points at the block of panel 0, panel p lies `p · panel_stride` bytes behind it.
    #[inline(always)]
    unsafe fn block<const R: usize, const P: usize, const FORM: u8>(
        w: *const u8,
        panel_stride: usize,
        a: Activations,
        dots: &mut [[Self::I; P]; R],
    ) {
        // SAFETY: the caller gives a whole block for each panel and row; features as the trait demands.
        unsafe {
            for g in 0..if FORM == form::NIBBLES { 4 } else { 8 } {
                let mut line = [Self::load_bytes(w); P];
                for p in 0..P {
                    line[p] = Self::load_bytes(w.add(p * panel_stride + g * 64));
                }
                for r in 0..R {
                    let a = a.values.add(r * a.stride + g * 4);
                    for p in 0..P {
                        if FORM == form::NIBBLES {
                            dots[r][p] = Self::dot4(dots[r][p], Self::low_nibbles(line[p]), a);
                            dots[r][p] = Self::dot4(dots[r][p], Self::high_nibbles(line[p]), a.add(16));
                        } else {
                            dots[r][p] = Self::dot4(dots[r][p], line[p], a);
                        }
                    }
                }
            }
        }
    }

    /// Sum of all lanes by one fixed tree: 16 → 8 → 4 → 2 → 1, lane i with lane i + half.
    #[inline(always)]
    unsafe fn sum(x: Self::F) -> f32 {
        let mut lanes = [0.0f32; LANES];
        // SAFETY: the array holds 16 elements; features as the trait demands.
        unsafe { Self::store(lanes.as_mut_ptr(), x) };
        let mut half = LANES / 2;
        while half > 0 {
            for i in 0..half {
                lanes[i] += lanes[i + half];
            }
            half /= 2;
        }
        lanes[0]
    }

    /// The greatest lane, by the same tree of `a > b ? a : b`.
    #[inline(always)]
    unsafe fn max_lane(x: Self::F) -> f32 {
        let mut lanes = [0.0f32; LANES];
        // SAFETY: as in `sum`.
        unsafe { Self::store(lanes.as_mut_ptr(), x) };
        let mut half = LANES / 2;
        while half > 0 {
            for i in 0..half {
                let (a, b) = (lanes[i], lanes[i + half]);
                lanes[i] = if a > b { a } else { b };
            }
            half /= 2;
        }
        lanes[0]
    }

    /// Sum of the low bytes of all lanes of both, taken as i8: of what [`store_i8`](Self::store_i8) writes.
    unsafe fn sum_i8(a: Self::I, b: Self::I) -> i32;
}
