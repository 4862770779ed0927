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

    /// The greatest lane.
    #[inline(always)]
    unsafe fn max_lane(x: Self::F) -> f32 {
        let mut lanes = [0.0f32; LANES];
        // SAFETY: as in `sum`.
        unsafe { Self::store(lanes.as_mut_ptr(), x) };
        lanes.into_iter().fold(f32::NEG_INFINITY, |a, b| if a > b { a } else { b })
    }
}
