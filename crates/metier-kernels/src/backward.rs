//! Which way is down? Derivatives of what stands between two matrix products, and the step along them. Each works on one row, or on
//! any piece of one, unless it says otherwise; the formula stands beside each.
//!
//! `d…` is the derivative of the loss with respect to `…`.

use crate::{
    elementwise::{centre, fold},
    lanes::{LANES, Lanes},
    math,
};

/// 1 / √(2π).
const INV_SQRT_TAU: f32 = 0.398_942_3;

/// Calls `body` for each 16 elements of `x` with those of the other slices, the last ones padded with zeros; writes back what it returns.
#[inline(always)]
unsafe fn map_with<L: Lanes, const N: usize>(
    x: &mut [f32],
    others: [&[f32]; N],
    body: impl Fn(L::F, [L::F; N]) -> L::F,
) {
    assert!(others.iter().all(|other| other.len() == x.len()), "as many on all sides");
    let whole = x.len() / LANES * LANES;
    // SAFETY: 16 elements of each slice start at every `at`; features as the trait demands.
    unsafe {
        for at in (0..whole).step_by(LANES) {
            let loaded = std::array::from_fn(
                #[inline(always)]
                |i| L::load(others[i].as_ptr().add(at)),
            );
            let to = x.as_mut_ptr().add(at);
            L::store(to, body(L::load(to), loaded));
        }
        let rest = x.len() - whole;
        if rest > 0 {
            let mut padded = [0.0; LANES];
            let loaded = std::array::from_fn(
                #[inline(always)]
                |i| {
                    let mut padded = [0.0; LANES];
                    padded[..rest].copy_from_slice(&others[i][whole..]);
                    L::load(padded.as_ptr())
                },
            );
            padded[..rest].copy_from_slice(&x[whole..]);
            L::store(padded.as_mut_ptr(), body(L::load(padded.as_ptr()), loaded));
            x[whole..].copy_from_slice(&padded[..rest]);
        }
    }
}

/// `Σ a[i] · b[i]` by sixteen strided partial sums and one fixed tree.
#[inline(always)]
unsafe fn dot<L: Lanes>(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "as many on both sides");
    // SAFETY: 16 elements each; features as the trait demands.
    unsafe {
        let mut acc = L::splat(0.0);
        let (chunks_a, chunks_b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
        let (rest_a, rest_b) = (chunks_a.remainder(), chunks_b.remainder());
        for (a, b) in chunks_a.zip(chunks_b) {
            acc = L::fma(L::load(a.as_ptr()), L::load(b.as_ptr()), acc);
        }
        let mut sum = L::sum(acc);
        for (a, b) in rest_a.iter().zip(rest_b) {
            sum += a * b;
        }
        sum
    }
}

/// 2 · √(2/π), of GELU by tanh.
const TWO_ROOT_2_OVER_PI: f32 = std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::SQRT_2;

per_tier! {
    /// `d[i] *= gelu'(x[i])` of the exact GELU: `gelu'(x) = Φ(x) + x · φ(x)`, Φ and φ the normal distribution and its density.
    pub fn gelu_backward(x: &[f32], d: &mut [f32]) = gelu_backward_body
}

#[inline(always)]
unsafe fn gelu_backward_body<L: Lanes>(x: &[f32], d: &mut [f32]) {
    // SAFETY: features as the trait demands.
    unsafe {
        map_with::<L, 1>(
            d,
            [x],
            #[inline(always)]
            |d, [x]| L::mul(d, gelu_slope::<L>(x)),
        )
    }
}

#[inline(always)]
unsafe fn gelu_slope<L: Lanes>(x: L::F) -> L::F {
    // SAFETY: features as the trait demands.
    unsafe {
        let half = L::splat(0.5);
        let erf = math::erf::<L>(L::mul(x, L::splat(std::f32::consts::FRAC_1_SQRT_2)));
        let density = math::exp::<L>(L::mul(L::mul(x, x), L::splat(-0.5)));
        L::fma(L::mul(x, density), L::splat(INV_SQRT_TAU), L::fma(erf, half, half))
    }
}

/// How the gate of a gated inner row is activated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// `x · σ(x)`: Llama's.
    Silu,
    /// GELU in its tanh form: Gemma's.
    GeluTanh,
    /// The exact GELU: ModernBERT's.
    Gelu,
}

per_tier! {
    /// `out[i] = act(gate[i]) · up[i]`.
    pub fn gated(act: Gate, gate: &[f32], up: &[f32], out: &mut [f32]) = gated_body
}

#[inline(always)]
unsafe fn gated_body<L: Lanes>(act: Gate, gate: &[f32], up: &[f32], out: &mut [f32]) {
    // SAFETY: features as the trait demands.
    unsafe {
        match act {
            Gate::Silu => map_with::<L, 2>(
                out,
                [gate, up],
                #[inline(always)]
                |_, [g, u]| L::mul(math::silu::<L>(g), u),
            ),
            Gate::GeluTanh => map_with::<L, 2>(
                out,
                [gate, up],
                #[inline(always)]
                |_, [g, u]| L::mul(math::gelu_tanh::<L>(g), u),
            ),
            Gate::Gelu => map_with::<L, 2>(
                out,
                [gate, up],
                #[inline(always)]
                |_, [g, u]| L::mul(math::gelu::<L>(g), u),
            ),
        }
    }
}

per_tier! {
    /// Of `out = act(gate) · up`: `dgate[i] = d[i] · up[i] · act'(gate[i])`, `dup[i] = d[i] · act(gate[i])`.
    pub fn gated_backward(act: Gate, gate: &[f32], up: &[f32], d: &[f32], dgate: &mut [f32], dup: &mut [f32]) = gated_backward_body
}

#[inline(always)]
unsafe fn gated_backward_body<L: Lanes>(
    act: Gate,
    gate: &[f32],
    up: &[f32],
    d: &[f32],
    dgate: &mut [f32],
    dup: &mut [f32],
) {
    // SAFETY: features as the trait demands.
    unsafe {
        gated_body::<L>(act, gate, d, dup);
        match act {
            Gate::Silu => map_with::<L, 3>(
                dgate,
                [gate, up, d],
                #[inline(always)]
                |_, [g, u, d]| {
                    // σ(x) · (1 + x · (1 − σ(x)))
                    let one = L::splat(1.0);
                    let s = L::div(one, L::add(one, math::exp::<L>(L::sub(L::splat(0.0), g))));
                    let slope = L::mul(s, L::fma(g, L::sub(one, s), one));
                    L::mul(L::mul(d, u), slope)
                },
            ),
            Gate::GeluTanh => map_with::<L, 3>(
                dgate,
                [gate, up, d],
                #[inline(always)]
                |_, [g, u, d]| {
                    // x·σ(v) with v = 2√(2/π)·(x + 0.044715·x³): σ(v) + x · σ(v) · (1 − σ(v)) · v'
                    let one = L::splat(1.0);
                    let square = L::mul(g, g);
                    let v = L::mul(L::mul(g, L::fma(square, L::splat(0.044_715), one)), L::splat(TWO_ROOT_2_OVER_PI));
                    let s = L::div(one, L::add(one, math::exp::<L>(L::sub(L::splat(0.0), v))));
                    let dv = L::mul(L::fma(square, L::splat(3.0 * 0.044_715), one), L::splat(TWO_ROOT_2_OVER_PI));
                    let slope = L::fma(L::mul(L::mul(g, s), L::sub(one, s)), dv, s);
                    L::mul(L::mul(d, u), slope)
                },
            ),
            Gate::Gelu => map_with::<L, 3>(
                dgate,
                [gate, up, d],
                #[inline(always)]
                |_, [g, u, d]| L::mul(L::mul(d, u), gelu_slope::<L>(g)),
            ),
        }
    }
}

per_tier! {
    /// [`layer_norm`](crate::elementwise::layer_norm) that keeps what its derivative needs:
    /// `normed[i] = (x[i] − mean) · scale`, `out[i] = normed[i] · weight[i] + bias[i]`, `scale = 1 / √(var + eps)`.
    pub fn layer_norm_kept(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, normed: &mut [f32], scale: &mut f32, out: &mut [f32]) = layer_norm_kept_body
}

#[inline(always)]
unsafe fn layer_norm_kept_body<L: Lanes>(
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    eps: f32,
    normed: &mut [f32],
    scale: &mut f32,
    out: &mut [f32],
) {
    assert!(
        [weight.len(), bias.len(), normed.len(), out.len()].iter().all(|len| *len == x.len()),
        "one of each an element"
    );
    // SAFETY: features as the trait demands.
    unsafe {
        let mean;
        (mean, *scale) = centre::<L>(x, eps);
        for ((((x, weight), bias), normed), out) in x.iter().zip(weight).zip(bias).zip(normed).zip(out) {
            *normed = (*x - mean) * *scale;
            *out = *normed * weight + bias;
        }
    }
}

per_tier! {
    /// Of [`layer_norm_kept`]: turns `d` from `dout` into `dx` and adds to `dweight`, `dbias`.
    ///
    /// `n = normed, e = dout · weight: dx = scale · (e − mean(e) − n · mean(e · n))`; `dweight += dout · n`; `dbias += dout`.
    pub fn layer_norm_backward(normed: &[f32], scale: f32, weight: &[f32], d: &mut [f32], dweight: &mut [f32], dbias: &mut [f32]) = layer_norm_backward_body
}

#[inline(always)]
unsafe fn layer_norm_backward_body<L: Lanes>(
    normed: &[f32],
    scale: f32,
    weight: &[f32],
    d: &mut [f32],
    dweight: &mut [f32],
    dbias: &mut [f32],
) {
    assert!(
        [weight.len(), normed.len(), dweight.len(), dbias.len()].iter().all(|len| *len == d.len()),
        "one of each an element"
    );
    for ((((d, weight), normed), dweight), dbias) in d.iter_mut().zip(weight).zip(normed).zip(dweight).zip(dbias) {
        *dweight += *d * normed;
        *dbias += *d;
        *d *= weight;
    }
    // SAFETY: features as the trait demands.
    unsafe {
        let n = d.len() as f32;
        let mean = L::sum(fold::<L>(
            d,
            0.0,
            0.0,
            #[inline(always)]
            |acc, x| L::add(acc, x),
        )) / n;
        let along = dot::<L>(d, normed) / n;
        for (d, normed) in d.iter_mut().zip(normed) {
            *d = scale * (*d - mean - normed * along);
        }
    }
}

per_tier! {
    /// Of `out = x · s · weight`, `s = 1 / √(mean(x²) + eps)` ([`rms_norm`](crate::elementwise::rms_norm)), added to `dx`; the weight stays.
    ///
    /// `e = dout · weight: dx += s · e − s³ · x · mean(e · x)`.
    pub fn rms_norm_backward(x: &[f32], weight: &[f32], eps: f32, dout: &[f32], dx: &mut [f32]) = rms_norm_backward_body
}

#[inline(always)]
unsafe fn rms_norm_backward_body<L: Lanes>(x: &[f32], weight: &[f32], eps: f32, dout: &[f32], dx: &mut [f32]) {
    assert!([weight.len(), dout.len(), dx.len()].iter().all(|len| *len == x.len()), "one of each an element");
    let n = x.len() as f32;
    // SAFETY: features as the trait demands.
    unsafe {
        let scale = 1.0 / (dot::<L>(x, x) / n + eps).sqrt();
        let mut acc = L::splat(0.0);
        let whole = x.len() / LANES * LANES;
        for at in (0..whole).step_by(LANES) {
            let e = L::mul(L::load(dout.as_ptr().add(at)), L::load(weight.as_ptr().add(at)));
            acc = L::fma(e, L::load(x.as_ptr().add(at)), acc);
        }
        let rest: f32 = (whole..x.len()).map(|i| dout[i] * weight[i] * x[i]).sum();
        let along = (L::sum(acc) + rest) / n * scale * scale * scale;
        for (((dx, x), weight), dout) in dx.iter_mut().zip(x).zip(weight).zip(dout) {
            *dx += scale * (dout * weight) - along * x;
        }
    }
}

per_tier! {
    /// Of `p = softmax(scale · s)`: turns `d` from `dp` into `ds = scale · p · (dp − Σ dp · p)`.
    pub fn softmax_backward(p: &[f32], scale: f32, d: &mut [f32]) = softmax_backward_body
}

#[inline(always)]
unsafe fn softmax_backward_body<L: Lanes>(p: &[f32], scale: f32, d: &mut [f32]) {
    // SAFETY: features as the trait demands.
    let mean = unsafe { dot::<L>(p, d) };
    for (d, p) in d.iter_mut().zip(p) {
        *d = scale * (p * (*d - mean));
    }
}

per_tier! {
    /// `sum[i] += factor · x[i]`.
    pub fn add_scaled(sum: &mut [f32], factor: f32, x: &[f32]) = add_scaled_body
}

#[inline(always)]
unsafe fn add_scaled_body<L: Lanes>(sum: &mut [f32], factor: f32, x: &[f32]) {
    // SAFETY: features as the trait demands.
    unsafe {
        let factor = L::splat(factor);
        map_with::<L, 1>(
            sum,
            [x],
            #[inline(always)]
            |sum, [x]| L::fma(factor, x, sum),
        );
    }
}

per_tier! {
    /// `out[0] = Σ x[i]²` in f32 by sixteen partial sums: for pieces of some thousand elements, whose sums are added in f64.
    pub fn sum_of_squares(x: &[f32], out: &mut f32) = sum_of_squares_body
}

#[inline(always)]
unsafe fn sum_of_squares_body<L: Lanes>(x: &[f32], out: &mut f32) {
    // SAFETY: features as the trait demands.
    *out = unsafe { dot::<L>(x, x) };
}

per_tier! {
    /// Dropout (Srivastava et al. 2014) in place: element i is kept and divided by `keep` where the hash of `seed` and i says so, else 0.
    /// The same seed drops the same elements again, on the way back.
    pub fn dropout(x: &mut [f32], seed: u32, keep: f32) = dropout_body
}

#[inline(always)]
unsafe fn dropout_body<L: Lanes>(x: &mut [f32], seed: u32, keep: f32) {
    let bound = (f64::from(keep) * f64::from(u32::MAX)) as u32;
    let factor = 1.0 / keep;
    let mut at = seed;
    for x in x {
        // A 32-bit mixer of two multiplications, on a Weyl sequence.
        at = at.wrapping_add(0x9e37_79b9);
        let mut h = at;
        h = (h ^ (h >> 16)).wrapping_mul(0x21f0_aaad);
        h = (h ^ (h >> 15)).wrapping_mul(0x735a_2d97);
        h ^= h >> 15;
        *x *= if h <= bound { factor } else { 0.0 };
    }
}

/// One step of AdamW (Loshchilov and Hutter 2019).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamStep {
    /// Step length.
    pub learning_rate: f32,
    /// Decay of the mean of gradients.
    pub beta1: f32,
    /// Decay of the mean of their squares.
    pub beta2: f32,
    /// Added to the root.
    pub eps: f32,
    /// Share of a weight that a step of length 1 takes away.
    pub decay: f32,
    /// Gradients are multiplied with it first (clipping).
    pub gradient_scale: f32,
    /// `1 / (1 − beta1ᵗ)` at step t = 1, 2, …
    pub correction1: f32,
    /// `1 / (1 − beta2ᵗ)`.
    pub correction2: f32,
}

per_tier! {
    /// In one pass: `g ← gradient_scale · g`, `m ← β₁m + (1 − β₁)g`, `v ← β₂v + (1 − β₂)g²`,
    /// `w ← w − learning_rate · (m̂ / (√v̂ + eps) + decay · w)`, `m̂ = correction1 · m`, `v̂ = correction2 · v`; then `g ← 0`.
    pub fn adam_w(step: &AdamStep, w: &mut [f32], g: &mut [f32], m: &mut [f32], v: &mut [f32]) = adam_w_body
}

#[inline(always)]
unsafe fn adam_w_body<L: Lanes>(step: &AdamStep, w: &mut [f32], g: &mut [f32], m: &mut [f32], v: &mut [f32]) {
    assert!([g.len(), m.len(), v.len()].iter().all(|len| *len == w.len()), "one of each a weight");
    let (keep1, keep2) = (1.0 - step.beta1, 1.0 - step.beta2);
    for (((w, g), m), v) in w.iter_mut().zip(g).zip(m).zip(v) {
        let gradient = *g * step.gradient_scale;
        *m = step.beta1 * *m + keep1 * gradient;
        *v = step.beta2 * *v + keep2 * (gradient * gradient);
        let root = (*v * step.correction2).sqrt() + step.eps;
        *w -= step.learning_rate * (*m * step.correction1 / root + step.decay * *w);
        *g = 0.0;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;
    use crate::{
        elementwise,
        tier::{Isa, Tier},
    };

    /// All tiers give the scalar's bits.
    fn same_in_all_tiers(run: impl Fn(Isa) -> Vec<f32>) -> Vec<f32> {
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
        let expected = run(Isa::SCALAR);
        for tier in Tier::available() {
            assert_eq!(bits(&run(tier.isa().unwrap())), bits(&expected), "{tier}");
        }
        expected
    }

    /// Half the distance over which a function is compared: f64's rounding and the third derivative weigh about the same.
    const STEP: f64 = 1e-4;
    /// f32 kernels against f64 differences: a few roundings of numbers near 1.
    const TOLERANCE: f64 = 2e-4;

    /// `Σ dout · f(x)` moves by `dx` where `x` moves.
    #[track_caller]
    fn check_gradient(x: &[f32], dout: &[f32], f: impl Fn(&[f64]) -> Vec<f64>, dx: &[f32]) {
        let x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
        let loss = |x: &[f64]| f(x).iter().zip(dout).map(|(y, d)| y * f64::from(*d)).sum::<f64>();
        for i in 0..x.len() {
            let at = |step: f64| {
                let mut moved = x.clone();
                moved[i] += step;
                loss(&moved)
            };
            let slope = (at(STEP) - at(-STEP)) / (2.0 * STEP);
            let found = f64::from(dx[i]);
            assert!((found - slope).abs() <= TOLERANCE * slope.abs().max(1.0), "element {i}: {found} is not {slope}");
        }
    }

    fn sigmoid(x: f64) -> f64 {
        1.0 / (1.0 + (-x).exp())
    }

    /// erf by its series: exact enough within ±4.
    fn erf(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        for n in 1..120 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    }

    fn act(gate: Gate, x: f64) -> f64 {
        match gate {
            Gate::Silu => x * sigmoid(x),
            Gate::GeluTanh => x * sigmoid(1.595_769_121_605_730_8 * (x + 0.044_715 * x * x * x)),
            Gate::Gelu => x / 2.0 * (1.0 + erf(x / 2f64.sqrt())),
        }
    }

    fn row() -> impl Strategy<Value = Vec<f32>> {
        prop::collection::vec(-4.0f32..4.0, 2..70)
    }

    fn numbers(n: usize, salt: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 37 + salt * 101) % 97) as f32 / 48.0 - 1.0).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn activations(x in row()) {
            let (dout, up) = (numbers(x.len(), 1), numbers(x.len(), 2));
            let dx = same_in_all_tiers(|isa| { let mut d = dout.clone(); gelu_backward(isa, &x, &mut d); d });
            check_gradient(&x, &dout, |x| x.iter().map(|x| act(Gate::Gelu, *x)).collect(), &dx);
            for gate in [Gate::Silu, Gate::GeluTanh, Gate::Gelu] {
                let out = same_in_all_tiers(|isa| { let mut out = x.clone(); gated(isa, gate, &x, &up, &mut out); out });
                for i in 0..x.len() {
                    let exact = act(gate, f64::from(x[i])) * f64::from(up[i]);
                    prop_assert!((f64::from(out[i]) - exact).abs() < TOLERANCE);
                }
                let both = same_in_all_tiers(|isa| {
                    let (mut dgate, mut dup) = (x.clone(), x.clone());
                    gated_backward(isa, gate, &x, &up, &dout, &mut dgate, &mut dup);
                    [dgate, dup].concat()
                });
                let (dgate, dup) = both.split_at(x.len());
                check_gradient(&x, &dout, |x| x.iter().zip(&up).map(|(x, u)| act(gate, *x) * f64::from(*u)).collect(), dgate);
                check_gradient(&up, &dout, |u| x.iter().zip(u).map(|(x, u)| act(gate, f64::from(*x)) * u).collect(), dup);
            }
        }

        #[test]
        fn norms(x in row()) {
            let n = x.len();
            let (weight, bias, dout) = (numbers(n, 3), numbers(n, 4), numbers(n, 5));
            // Rows without spread have no derivative that f32 could find.
            prop_assume!(x.iter().any(|v| (v - x[0]).abs() > 0.5));
            let layer = |x: &[f64], weight: &[f64], bias: &[f64]| -> Vec<f64> {
                let mean = x.iter().sum::<f64>() / n as f64;
                let var = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
                (0..n).map(|i| (x[i] - mean) / (var + 1e-5).sqrt() * weight[i] + bias[i]).collect()
            };
            let wide = |x: &[f32]| x.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>();
            let all = same_in_all_tiers(|isa| {
                let (mut normed, mut scale, mut out) = (vec![0.0; n], 0.0, vec![0.0; n]);
                layer_norm_kept(isa, &x, &weight, &bias, 1e-5, &mut normed, &mut scale, &mut out);
                let (mut d, mut dweight, mut dbias) = (dout.clone(), vec![0.0; n], vec![0.0; n]);
                layer_norm_backward(isa, &normed, scale, &weight, &mut d, &mut dweight, &mut dbias);
                [out, d, dweight, dbias].concat()
            });
            let parts: Vec<&[f32]> = all.chunks_exact(n).collect();
            for (found, exact) in parts[0].iter().zip(layer(&wide(&x), &wide(&weight), &wide(&bias))) {
                prop_assert!((f64::from(*found) - exact).abs() < TOLERANCE);
            }
            check_gradient(&x, &dout, |x| layer(x, &wide(&weight), &wide(&bias)), parts[1]);
            check_gradient(&weight, &dout, |weight| layer(&wide(&x), weight, &wide(&bias)), parts[2]);
            check_gradient(&bias, &dout, |bias| layer(&wide(&x), &wide(&weight), bias), parts[3]);

            let dx = same_in_all_tiers(|isa| { let mut dx = vec![0.0; n]; rms_norm_backward(isa, &x, &weight, 1e-5, &dout, &mut dx); dx });
            check_gradient(&x, &dout, |x| {
                let scale = (x.iter().map(|x| x * x).sum::<f64>() / n as f64 + 1e-5).sqrt();
                x.iter().zip(&weight).map(|(x, w)| x / scale * f64::from(*w)).collect()
            }, &dx);
        }

        #[test]
        fn softmax(x in row(), scale in 0.1f32..1.0) {
            let dout = numbers(x.len(), 6);
            let dx = same_in_all_tiers(|isa| {
                let mut p: Vec<f32> = x.iter().map(|x| x * scale).collect();
                elementwise::softmax(isa, &mut p);
                let mut d = dout.clone();
                softmax_backward(isa, &p, scale, &mut d);
                d
            });
            check_gradient(&x, &dout, |x| {
                let e: Vec<f64> = x.iter().map(|x| (x * f64::from(scale)).exp()).collect();
                let sum: f64 = e.iter().sum();
                e.iter().map(|e| e / sum).collect()
            }, &dx);
        }

        #[test]
        fn dropout_keeps_its_share(seed: u32, keep in 0.5f32..1.0) {
            let found = same_in_all_tiers(|isa| { let mut x = vec![1.0; 4000]; dropout(isa, &mut x, seed, keep); x });
            let kept = found.iter().filter(|x| **x != 0.0).count() as f32;
            // Five standard deviations at most.
            prop_assert!((kept - 4000.0 * keep).abs() < 5.0 * (4000.0 * keep * (1.0 - keep)).sqrt().max(1.0), "{kept}");
            prop_assert!(found.iter().all(|x| *x == 0.0 || *x == 1.0 / keep));
            // Neighbours' seeds drop other elements.
            let mut other = vec![1.0; 4000];
            dropout(Isa::SCALAR, &mut other, seed.wrapping_add(1), keep);
            prop_assert!(found != other);
        }

        #[test]
        fn sums_and_steps(x in row()) {
            let n = x.len();
            let g = numbers(n, 7);
            let sum = same_in_all_tiers(|isa| { let mut sum = x.clone(); add_scaled(isa, &mut sum, 0.5, &g); sum });
            let square = same_in_all_tiers(|isa| { let mut out = 0.0; sum_of_squares(isa, &x, &mut out); vec![out] });
            let exact: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
            prop_assert!((f64::from(square[0]) - exact).abs() <= 1e-5 * exact.max(1.0));
            let (mut m, mut v, mut w) = (vec![0.0f64; n], vec![0.0f64; n], x.iter().map(|x| f64::from(*x)).collect::<Vec<_>>());
            for step in 1..4 {
                for i in 0..n {
                    prop_assert!((sum[i] - (x[i] + 0.5 * g[i])).abs() < 1e-5);
                    let gradient = f64::from(g[i]) * 0.25 * f64::from(step);
                    m[i] = 0.9 * m[i] + 0.1 * gradient;
                    v[i] = 0.99 * v[i] + 0.01 * gradient * gradient;
                    let (m, v) = (m[i] / (1.0 - 0.9f64.powi(step)), v[i] / (1.0 - 0.99f64.powi(step)));
                    w[i] -= 0.1 * (m / (v.sqrt() + 1e-6) + 0.01 * w[i]);
                }
            }
            let found = same_in_all_tiers(|isa| {
                let (mut m, mut v, mut w) = (vec![0.0; n], vec![0.0; n], x.clone());
                for step in 1..4 {
                    let mut g: Vec<f32> = g.iter().map(|g| g * step as f32).collect();
                    let step = AdamStep {
                        learning_rate: 0.1, beta1: 0.9, beta2: 0.99, eps: 1e-6, decay: 0.01, gradient_scale: 0.25,
                        correction1: 1.0 / (1.0 - 0.9f32.powi(step)), correction2: 1.0 / (1.0 - 0.99f32.powi(step)),
                    };
                    adam_w(isa, &step, &mut w, &mut g, &mut m, &mut v);
                    assert!(g.iter().all(|g| *g == 0.0), "gradients are taken up");
                }
                w
            });
            for (found, exact) in found.iter().zip(&w) {
                prop_assert!((f64::from(*found) - exact).abs() < TOLERANCE, "{found} is not {exact}");
            }
        }
    }
}
