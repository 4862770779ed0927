//! What stands between two matrix products: norms, rotary positions, activations, softmax. Each works on one row.

use crate::{
    lanes::{LANES, Lanes},
    math,
};

/// Calls `body(lanes)` for each 16 elements of `x`, the last ones padded with `pad`; writes back what `body` returns.
#[inline(always)]
unsafe fn map_in_place<L: Lanes>(x: &mut [f32], body: impl Fn(L::F) -> L::F) {
    let mut chunks = x.chunks_exact_mut(LANES);
    for chunk in &mut chunks {
        // SAFETY: 16 elements; features as the trait demands.
        unsafe { L::store(chunk.as_mut_ptr(), body(L::load(chunk.as_ptr()))) };
    }
    let rest = chunks.into_remainder();
    if !rest.is_empty() {
        let mut padded = [0.0; LANES];
        padded[..rest.len()].copy_from_slice(rest);
        // SAFETY: 16 elements; features as the trait demands.
        unsafe { L::store(padded.as_mut_ptr(), body(L::load(padded.as_ptr()))) };
        rest.copy_from_slice(&padded[..rest.len()]);
    }
}

/// Folds `x` into 16 strided partial results (element i goes to lane i mod 16); absent elements are `pad`.
#[inline(always)]
pub(crate) unsafe fn fold<L: Lanes>(x: &[f32], start: f32, pad: f32, body: impl Fn(L::F, L::F) -> L::F) -> L::F {
    // SAFETY: 16 elements each; features as the trait demands.
    unsafe {
        let mut acc = L::splat(start);
        let chunks = x.chunks_exact(LANES);
        let rest = chunks.remainder();
        for chunk in chunks {
            acc = body(acc, L::load(chunk.as_ptr()));
        }
        if !rest.is_empty() {
            let mut padded = [pad; LANES];
            padded[..rest.len()].copy_from_slice(rest);
            acc = body(acc, L::load(padded.as_ptr()));
        }
        acc
    }
}

per_tier! {
    /// `out[i] = x[i] / √(mean(x²) + eps) · weight[i]` (Zhang and Sennrich 2019).
    pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) = rms_norm_body
}

#[inline(always)]
unsafe fn rms_norm_body<L: Lanes>(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert!(x.len() == weight.len() && x.len() == out.len(), "one weight and one output an element");
    // SAFETY: features as the trait demands.
    let sum = unsafe {
        L::sum(fold::<L>(
            x,
            0.0,
            0.0,
            #[inline(always)]
            |acc, x| L::fma(x, x, acc),
        ))
    };
    let scale = 1.0 / (sum / x.len() as f32 + eps).sqrt();
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * weight;
    }
}

per_tier! {
    /// [`rms_norm`] in place of each piece of `x` that is as long as `weight`: of each head, or of each row.
    pub fn rms_norm_heads(x: &mut [f32], weight: &[f32], eps: f32) = rms_norm_heads_body
}

#[inline(always)]
unsafe fn rms_norm_heads_body<L: Lanes>(x: &mut [f32], weight: &[f32], eps: f32) {
    assert!(!weight.is_empty() && x.len().is_multiple_of(weight.len()), "whole heads");
    for head in x.chunks_exact_mut(weight.len()) {
        // SAFETY: features as the trait demands.
        let sum = unsafe {
            L::sum(fold::<L>(
                head,
                0.0,
                0.0,
                #[inline(always)]
                |acc, x| L::fma(x, x, acc),
            ))
        };
        let scale = 1.0 / (sum / weight.len() as f32 + eps).sqrt();
        for (x, weight) in head.iter_mut().zip(weight) {
            *x = *x * scale * weight;
        }
    }
}

per_tier! {
    /// `x[i] = (x[i] − mean) / √(var + eps) · weight[i] + bias[i]`, variance over n (Ba et al. 2016).
    pub fn layer_norm(x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) = layer_norm_body
}

#[inline(always)]
unsafe fn layer_norm_body<L: Lanes>(x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    assert!(x.len() == weight.len() && x.len() == bias.len(), "one weight and one bias an element");
    // SAFETY: features as the trait demands.
    unsafe {
        let (mean, scale) = centre::<L>(x, eps);
        for ((x, weight), bias) in x.iter_mut().zip(weight).zip(bias) {
            *x = ((*x - mean) * scale).mul_add(*weight, *bias);
        }
    }
}

/// Mean of a row, and `1 / √(var + eps)`.
#[inline(always)]
pub(crate) unsafe fn centre<L: Lanes>(x: &[f32], eps: f32) -> (f32, f32) {
    let n = x.len() as f32;
    // SAFETY: features as the trait demands.
    unsafe {
        let mean = L::sum(fold::<L>(
            x,
            0.0,
            0.0,
            #[inline(always)]
            |acc, x| L::add(acc, x),
        )) / n;
        // Elements that pad the last lanes are `mean`, so that they add nothing to the variance.
        let squares = fold::<L>(
            x,
            0.0,
            mean,
            #[inline(always)]
            |acc, x| {
                let d = L::sub(x, L::splat(mean));
                L::fma(d, d, acc)
            },
        );
        (mean, 1.0 / (L::sum(squares) / n + eps).sqrt())
    }
}

per_tier! {
    /// The end of a block in one pass over each row: `x = LN(x + (y + more))`, [`layer_norm`] of rows as long as `weight`. `more` is
    /// added to every row of `y`; nothing where empty.
    pub fn add_norm_rows(x: &mut [f32], y: &[f32], more: &[f32], weight: &[f32], bias: &[f32], eps: f32) = add_norm_rows_body
}

#[inline(always)]
unsafe fn add_norm_rows_body<L: Lanes>(x: &mut [f32], y: &[f32], more: &[f32], weight: &[f32], bias: &[f32], eps: f32) {
    let width = weight.len();
    assert!(width > 0 && x.len().is_multiple_of(width) && x.len() == y.len(), "whole rows, as many on both sides");
    for (x, y) in x.chunks_exact_mut(width).zip(y.chunks_exact(width)) {
        // SAFETY: features as the trait demands.
        unsafe {
            add_rows_body::<L>(x, y, more);
            layer_norm_body::<L>(x, weight, bias, eps);
        }
    }
}

per_tier! {
    /// `x += y + more`, `more` added to every row of `y`; nothing where empty.
    pub fn add_rows(x: &mut [f32], y: &[f32], more: &[f32]) = add_rows_body
}

#[inline(always)]
unsafe fn add_rows_body<L: Lanes>(x: &mut [f32], y: &[f32], more: &[f32]) {
    assert!(
        x.len() == y.len() && (more.is_empty() || x.len().is_multiple_of(more.len())),
        "whole rows, as many on both sides"
    );
    if more.is_empty() {
        // SAFETY: features as the trait demands.
        return unsafe { add_body::<L>(x, y) };
    }
    for (x, y) in x.chunks_exact_mut(more.len()).zip(y.chunks_exact(more.len())) {
        for ((x, y), more) in x.iter_mut().zip(y).zip(more) {
            *x += y + more;
        }
    }
}

per_tier! {
    /// [`gelu`] of `x + more`, `more` added to every row; nothing where empty.
    pub fn gelu_rows(x: &mut [f32], more: &[f32]) = gelu_rows_body
}

#[inline(always)]
unsafe fn gelu_rows_body<L: Lanes>(x: &mut [f32], more: &[f32]) {
    assert!(more.is_empty() || x.len().is_multiple_of(more.len()), "whole rows");
    for row in x.chunks_exact_mut(if more.is_empty() { x.len().max(1) } else { more.len() }) {
        // SAFETY: features as the trait demands.
        unsafe {
            if !more.is_empty() {
                add_body::<L>(row, more);
            }
            gelu_body::<L>(row);
        }
    }
}

per_tier! {
    /// `x[i] += y[i]`.
    pub fn add(x: &mut [f32], y: &[f32]) = add_body
}

#[inline(always)]
unsafe fn add_body<L: Lanes>(x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len(), "as many on both sides");
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

per_tier! {
    /// GELU in place: `x/2 · (1 + erf(x/√2))` (Hendrycks and Gimpel 2016), the exact form.
    pub fn gelu(x: &mut [f32]) = gelu_body
}

#[inline(always)]
unsafe fn gelu_body<L: Lanes>(x: &mut [f32]) {
    // SAFETY: features as the trait demands.
    unsafe {
        map_in_place::<L>(
            x,
            #[inline(always)]
            |x| math::gelu::<L>(x),
        )
    }
}

per_tier! {
    /// SwiGLU (Shazeer 2020): `gate[i] = silu(gate[i]) · up[i]`.
    pub fn swiglu(gate: &mut [f32], up: &[f32]) = swiglu_body
}

#[inline(always)]
unsafe fn swiglu_body<L: Lanes>(gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "as many on both sides");
    // SAFETY: features as the trait demands.
    unsafe {
        map_in_place::<L>(
            gate,
            #[inline(always)]
            |x| math::silu::<L>(x),
        )
    };
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate *= up;
    }
}

per_tier! {
    /// GeGLU (Shazeer 2020) with the exact GELU: `gate[i] = gelu(gate[i]) · up[i]`.
    pub fn geglu(gate: &mut [f32], up: &[f32]) = geglu_body
}

#[inline(always)]
unsafe fn geglu_body<L: Lanes>(gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "as many on both sides");
    // SAFETY: features as the trait demands.
    unsafe { gelu_body::<L>(gate) };
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate *= up;
    }
}

per_tier! {
    /// GeGLU (Shazeer 2020) with GELU's tanh form: `gate[i] = gelu(gate[i]) · up[i]`.
    pub fn geglu_tanh(gate: &mut [f32], up: &[f32]) = geglu_tanh_body
}

#[inline(always)]
unsafe fn geglu_tanh_body<L: Lanes>(gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "as many on both sides");
    // SAFETY: features as the trait demands.
    unsafe {
        map_in_place::<L>(
            gate,
            #[inline(always)]
            |x| math::gelu_tanh::<L>(x),
        )
    };
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate *= up;
    }
}

per_tier! {
    /// Softmax in place over all of `x`; the greatest element is taken off first.
    pub fn softmax(x: &mut [f32]) = softmax_body
}

#[inline(always)]
pub(crate) unsafe fn softmax_body<L: Lanes>(x: &mut [f32]) {
    if x.is_empty() {
        return;
    }
    // SAFETY: features as the trait demands.
    unsafe {
        let max = L::max_lane(fold::<L>(
            x,
            f32::NEG_INFINITY,
            f32::NEG_INFINITY,
            #[inline(always)]
            |acc, x| L::max(x, acc),
        ));
        map_in_place::<L>(
            x,
            #[inline(always)]
            |x| math::exp::<L>(L::sub(x, L::splat(max))),
        );
        let sum = L::sum(fold::<L>(
            x,
            0.0,
            0.0,
            #[inline(always)]
            |acc, x| L::add(acc, x),
        ));
        let scale = L::splat(1.0 / sum);
        map_in_place::<L>(
            x,
            #[inline(always)]
            |x| L::mul(x, scale),
        );
    }
}

per_tier! {
    /// `out[0] = ln Σ e^x`, by way of the greatest element.
    pub fn log_sum_exp(x: &[f32], out: &mut f32) = log_sum_exp_body
}

#[inline(always)]
unsafe fn log_sum_exp_body<L: Lanes>(x: &[f32], out: &mut f32) {
    // SAFETY: features as the trait demands.
    unsafe {
        let max = L::max_lane(fold::<L>(
            x,
            f32::NEG_INFINITY,
            f32::NEG_INFINITY,
            #[inline(always)]
            |acc, x| L::max(x, acc),
        ));
        let shift = L::splat(max);
        let chunks = x.chunks_exact(LANES);
        let rest: f32 = chunks.remainder().iter().map(|x| (x - max).exp()).sum();
        let mut acc = L::splat(0.0);
        for chunk in chunks {
            acc = L::add(acc, math::exp::<L>(L::sub(L::load(chunk.as_ptr()), shift)));
        }
        *out = max + (L::sum(acc) + rest).ln();
    }
}

/// Rotary positions (Su et al. 2021) on adjacent pairs, as GGUF's `llama` rows are laid out:
/// `(x[2i], x[2i+1])` is turned by the angle whose `(cos, sin)` is `turns[i]`. `x`: (n_heads, head_dim).
pub fn rope_adjacent(x: &mut [f32], head_dim: usize, turns: &[(f32, f32)]) {
    assert!(turns.len() * 2 <= head_dim && x.len().is_multiple_of(head_dim), "pairs lie inside whole heads");
    for head in x.chunks_exact_mut(head_dim) {
        for (pair, (cos, sin)) in head.chunks_exact_mut(2).zip(turns) {
            let (a, b) = (pair[0], pair[1]);
            pair[0] = a * cos - b * sin;
            pair[1] = a * sin + b * cos;
        }
    }
}

per_tier! {
    /// Rotary positions on halves, as Transformers lays rows out: `(x[i], x[i + turns.len()])` is turned by the angle whose
    /// `(cos, sin)` is `turns[i]`; what lies behind the pairs of a head stays. `x`: (n_heads, head_dim).
    pub fn rope_halves(x: &mut [f32], head_dim: usize, turns: &[(f32, f32)]) = rope_halves_body
}

#[inline(always)]
unsafe fn rope_halves_body<L: Lanes>(x: &mut [f32], head_dim: usize, turns: &[(f32, f32)]) {
    assert!(turns.len() * 2 <= head_dim && x.len().is_multiple_of(head_dim), "pairs lie inside whole heads");
    for head in x.chunks_exact_mut(head_dim) {
        let (left, right) = head.split_at_mut(turns.len());
        for ((left, right), (cos, sin)) in left.iter_mut().zip(right).zip(turns) {
            (*left, *right) = (*left * cos - *right * sin, *left * sin + *right * cos);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;
    use crate::tier::{Isa, Tier};

    fn bits(x: &[f32]) -> Vec<u32> {
        x.iter().map(|x| x.to_bits()).collect()
    }

    /// All tiers give the scalar's bits, and the scalar is close to f64 arithmetic.
    fn check(x: &[f32], kernel: impl Fn(Isa, &mut [f32]), truth: impl Fn(&[f64]) -> Vec<f64>, tolerance: f64) {
        let mut expected = x.to_vec();
        kernel(Isa::SCALAR, &mut expected);
        let exact = truth(&x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
        for (i, (a, b)) in expected.iter().zip(&exact).enumerate() {
            assert!((f64::from(*a) - b).abs() <= tolerance * b.abs().max(1.0), "element {i}: {a} is not {b}");
        }
        for tier in Tier::available() {
            let mut got = x.to_vec();
            kernel(tier.isa().unwrap(), &mut got);
            assert_eq!(bits(&got), bits(&expected), "{tier}");
        }
    }

    /// erf by its series, whose terms cancel to 1e-7 at 4.5 and no longer beyond; there it is 1 to 2e-10.
    fn erf(x: f64) -> f64 {
        if x.abs() > 4.5 {
            return x.signum();
        }
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    }

    fn row() -> impl Strategy<Value = Vec<f32>> {
        prop::collection::vec(-20.0f32..20.0, 1..100)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn gelu_is_exact_gelu(x in prop::collection::vec(-7.0f32..7.0, 1..70)) {
            check(&x, gelu,
                |x| x.iter().map(|x| x / 2.0 * (1.0 + erf(x / 2f64.sqrt()))).collect(), 2e-6);
        }

        #[test]
        fn softmax_sums_to_one(x in row()) {
            check(&x, softmax, |x| {
                let max = x.iter().copied().fold(f64::MIN, f64::max);
                let sum: f64 = x.iter().map(|x| (x - max).exp()).sum();
                x.iter().map(|x| (x - max).exp() / sum).collect()
            }, 2e-6);
        }

        #[test]
        fn layer_norm_is_layer_norm(x in row(), seed in 0.5f32..2.0) {
            let weight: Vec<f32> = (0..x.len()).map(|i| seed + i as f32 * 0.01).collect();
            let bias: Vec<f32> = (0..x.len()).map(|i| seed - i as f32 * 0.02).collect();
            check(&x, |isa, x| layer_norm(isa, x, &weight, &bias, 1e-5), |x| {
                let n = x.len() as f64;
                let mean = x.iter().sum::<f64>() / n;
                let var = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
                x.iter().enumerate().map(|(i, x)|
                    (x - mean) / (var + 1e-5).sqrt() * f64::from(weight[i]) + f64::from(bias[i])).collect()
            }, 2e-3);
        }

        /// What is fused gives the bits of its steps.
        #[test]
        fn fused_steps_are_their_steps(rows in 1usize..5, width in 1usize..70, has_more: bool, seed in -2.0f32..2.0) {
            let value = |i: usize, salt: usize| ((i * 37 + salt * 101) % 257) as f32 / 64.0 - 2.0 + seed;
            let (x, y): (Vec<f32>, Vec<f32>) = (0..rows * width).map(|i| (value(i, 1), value(i, 2))).unzip();
            let more: Vec<f32> = (0..if has_more { width } else { 0 }).map(|i| value(i, 3)).collect();
            let weight: Vec<f32> = (0..width).map(|i| value(i, 4)).collect();
            for tier in Tier::available() {
                let isa = tier.isa().unwrap();
                let mut stepwise = (x.clone(), y.clone(), x.clone());
                for (i, row) in stepwise.0.chunks_exact_mut(width).enumerate() {
                    let y = &mut stepwise.1[i * width..(i + 1) * width];
                    if has_more {
                        add(isa, y, &more);
                        add(isa, &mut stepwise.2[i * width..(i + 1) * width], &more);
                    }
                    add(isa, row, y);
                }
                let mut fused = x.clone();
                add_rows(isa, &mut fused, &y, &more);
                prop_assert_eq!(bits(&fused), bits(&stepwise.0));
                gelu(isa, &mut stepwise.2);
                let mut fused = x.clone();
                gelu_rows(isa, &mut fused, &more);
                prop_assert_eq!(bits(&fused), bits(&stepwise.2));
                stepwise.0.chunks_exact_mut(width).for_each(|row| layer_norm(isa, row, &weight, &weight, 1e-5));
                let mut fused = x.clone();
                add_norm_rows(isa, &mut fused, &y, &more, &weight, &weight, 1e-5);
                prop_assert_eq!(bits(&fused), bits(&stepwise.0));
            }
        }

        #[test]
        fn rms_norm_is_rms_norm(x in row()) {
            let weight: Vec<f32> = (0..x.len()).map(|i| 1.0 + i as f32 * 0.01).collect();
            check(&x, |isa, x| { let y = x.to_vec(); rms_norm(isa, &y, &weight, 1e-5, x) }, |x| {
                let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
                x.iter().enumerate().map(|(i, x)| x / (mean + 1e-5).sqrt() * f64::from(weight[i])).collect()
            }, 1e-5);
        }

        #[test]
        fn swiglu_is_silu_times_up(x in prop::collection::vec(-100.0f32..100.0, 1..70)) {
            let up: Vec<f32> = (0..x.len()).map(|i| i as f32 * 0.3 - 4.0).collect();
            check(&x, |isa, x| swiglu(isa, x, &up),
                |x| x.iter().enumerate().map(|(i, x)| x / (1.0 + (-x).exp()) * f64::from(up[i])).collect(), 1e-5);
        }

        #[test]
        fn geglu_is_gelu_times_up(x in prop::collection::vec(-100.0f32..100.0, 1..70)) {
            let up: Vec<f32> = (0..x.len()).map(|i| i as f32 * 0.3 - 4.0).collect();
            check(&x, |isa, x| geglu(isa, x, &up), |x| {
                let gelu = |x: f64| x / 2.0 * (1.0 + erf(x / 2f64.sqrt()));
                x.iter().enumerate().map(|(i, x)| gelu(*x) * f64::from(up[i])).collect()
            }, 1e-5);
            check(&x, |isa, x| geglu_tanh(isa, x, &up), |x| {
                let gelu = |x: f64| x / 2.0 * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh());
                x.iter().enumerate().map(|(i, x)| gelu(*x) * f64::from(up[i])).collect()
            }, 1e-5);
        }

        #[test]
        fn each_head_has_its_norm(x in prop::collection::vec(-20.0f32..20.0, 1..5 * 23), width in 1usize..23) {
            let x = &x[..x.len() / width * width];
            let weight: Vec<f32> = (0..width).map(|i| 1.0 + i as f32 * 0.01).collect();
            check(x, |isa, x| rms_norm_heads(isa, x, &weight, 1e-5), |x| {
                let norm = |head: &[f64]| (head.iter().map(|x| x * x).sum::<f64>() / width as f64 + 1e-5).sqrt();
                let heads = x.chunks_exact(width);
                heads.flat_map(|head| head.iter().zip(&weight).map(|(x, w)| x / norm(head) * f64::from(*w)).collect::<Vec<_>>()).collect()
            }, 1e-5);
        }

        #[test]
        fn halves_turn_together(x in prop::collection::vec(-20.0f32..20.0, 1..200), pairs in 1usize..20, rest in 0usize..5) {
            let head_dim = 2 * pairs + rest;
            let x = &x[..x.len() / head_dim * head_dim];
            let turns: Vec<(f32, f32)> = (0..pairs).map(|i| ((i as f32).cos(), (i as f32).sin())).collect();
            check(x, |isa, x| rope_halves(isa, x, head_dim, &turns), |x| {
                let mut out = x.to_vec();
                for (i, out) in out.iter_mut().enumerate() {
                    let (head, at) = (i / head_dim * head_dim, i % head_dim);
                    let (cos, sin) = turns.get(at % pairs).map_or((1.0, 0.0), |(c, s)| (f64::from(*c), f64::from(*s)));
                    if at < pairs {
                        *out = x[head + at] * cos - x[head + at + pairs] * sin;
                    } else if at < 2 * pairs {
                        *out = x[head + at - pairs] * sin + x[head + at] * cos;
                    }
                }
                out
            }, 1e-5);
        }

        #[test]
        fn log_sum_exp_is_right(x in row()) {
            check(&x, |isa, x| { let mut y = 0.0; log_sum_exp(isa, x, &mut y); x.fill(y); },
                |x| vec![x.iter().map(|x| x.exp()).sum::<f64>().ln(); x.len()], 1e-6);
        }
    }

    #[test]
    fn rope_turns_adjacent_pairs() {
        let mut x = [1.0, 0.0, 0.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        rope_adjacent(&mut x, 4, &[(0.0, 1.0), (1.0, 0.0)]);
        assert_eq!(x, [0.0, 1.0, 0.0, 2.0, -4.0, 3.0, 5.0, 6.0]);
    }
}
