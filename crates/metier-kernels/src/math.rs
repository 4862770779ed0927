//! exp, erf and sigmoid over lanes: the same polynomial in every tier.

use crate::lanes::Lanes;

/// e^x. Relative error below 2e-7; 0 below −87.3 (where f32 turns subnormal), finite up to 88.3, beyond it clamps.
///
/// x = n·ln 2 + r with |r| ≤ ln 2 / 2; e^r by a polynomial of degree 6 (Cephes `expf`), times 2^n.
#[inline(always)]
pub(crate) unsafe fn exp<L: Lanes>(x: L::F) -> L::F {
    // SAFETY: features as the trait demands.
    unsafe {
        let x = L::min(x, L::splat(88.3));
        let x = L::max(x, L::splat(-88.0));
        let n = L::round_to_int(L::mul(x, L::splat(std::f32::consts::LOG2_E)));
        let nf = L::to_float(n);
        let r = L::fma(nf, L::splat(-0.693_359_4), x);
        let r = L::fma(nf, L::splat(2.121_944_4e-4), r);
        let mut p = L::splat(1.987_569_1e-4);
        for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
            p = L::fma(p, r, L::splat(c));
        }
        let e = L::add(L::fma(p, L::mul(r, r), r), L::splat(1.0));
        L::mul(e, L::exp2_int(n))
    }
}

/// erf(x), absolute error below 5e-7: Abramowitz and Stegun 7.1.28 would give 3e-7 with a 16th power; this is 7.1.26's form,
/// 1 − t·P(t)·e^{−x²}, with P of degree 8 by Numerical Recipes' Chebyshev fit (relative error of erfc 1.2e-7).
#[inline(always)]
pub(crate) unsafe fn erf<L: Lanes>(x: L::F) -> L::F {
    // SAFETY: features as the trait demands.
    unsafe {
        let one = L::splat(1.0);
        let z = L::min(L::abs(x), L::splat(9.0));
        let t = L::div(one, L::fma(z, L::splat(0.5), one));
        let mut p = L::splat(0.170_872_77);
        for c in [
            -0.822_152_25,
            1.488_515_9,
            -1.135_204,
            0.278_868_07,
            -0.186_288_06,
            0.096_784_18,
            0.374_091_96,
            1.000_023_7,
            -1.265_512_2,
        ] {
            p = L::fma(p, t, L::splat(c));
        }
        let power = L::sub(p, L::mul(z, z));
        let erfc = L::mul(t, exp::<L>(power));
        L::copysign(L::sub(one, erfc), x)
    }
}

/// x / (1 + e^{−x}).
#[inline(always)]
pub(crate) unsafe fn silu<L: Lanes>(x: L::F) -> L::F {
    // SAFETY: features as the trait demands.
    unsafe {
        let e = exp::<L>(L::sub(L::splat(0.0), x));
        L::div(x, L::add(L::splat(1.0), e))
    }
}

/// x/2 · (1 + erf(x/√2)): the exact GELU, not the tanh form.
#[inline(always)]
pub(crate) unsafe fn gelu<L: Lanes>(x: L::F) -> L::F {
    // SAFETY: features as the trait demands.
    unsafe {
        let half = L::mul(x, L::splat(0.5));
        L::fma(half, erf::<L>(L::mul(x, L::splat(std::f32::consts::FRAC_1_SQRT_2))), half)
    }
}

/// GELU in its tanh form, `x/2 · (1 + tanh(√(2/π)·(x + 0.044715·x³)))` (Hendrycks and Gimpel 2016), as `x / (1 + e^{−2u})`.
#[inline(always)]
pub(crate) unsafe fn gelu_tanh<L: Lanes>(x: L::F) -> L::F {
    // SAFETY: features as the trait demands.
    unsafe {
        let cube = L::mul(L::mul(x, x), x);
        let u = L::fma(cube, L::splat(0.044_715), x);
        let e = exp::<L>(L::mul(u, L::splat(-1.595_769))); // −2·√(2/π)
        L::div(x, L::add(L::splat(1.0), e))
    }
}
