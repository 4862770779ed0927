//! Every step against finite differences.
#![allow(clippy::unwrap_used, clippy::needless_range_loop, reason = "tests; they index several arrays at once")]

use metier_kernels::{Pool, Target, Tier};
use metier_model::{Encoder, TokenId, specialist::mix, tiny};

use super::{
    Segments,
    attention::Attention,
    bert::{BertNet, Dropout, Pass},
    embedding,
    linear::{self, Linear},
    lora::{Lora, Saved},
    norm::{self, LayerNorm, Normed},
    rope::Turns,
};

/// Half the distance over which the loss is compared: f32 outputs near 1 are rounded to 6e-8, which this makes 6e-6 of a slope; the
/// third derivative adds about a sixth of its square.
const STEP: f32 = 5e-3;
/// The two together, over some hundred outputs.
pub(crate) const TOLERANCE: f64 = 2e-3;

pub(crate) fn numbers(n: usize, salt: u64) -> Vec<f32> {
    (0..n as u64).map(|i| (mix(i ^ mix(salt + 1)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0).collect()
}

/// `Σ dout · f(x)` moves by `dx` where `x` moves: element by element, or along three directions where there are many.
#[track_caller]
pub(crate) fn check(what: &str, x: &[f32], dx: &[f32], loss: impl Fn(&[f32]) -> f64) {
    assert_eq!(x.len(), dx.len());
    let directions: Vec<Vec<f32>> = if x.len() <= 64 {
        (0..x.len()).map(|i| (0..x.len()).map(|j| f32::from(u8::from(i == j))).collect()).collect()
    } else {
        let scale = (x.len() as f32).sqrt();
        (0..3).map(|salt| numbers(x.len(), 900 + salt).iter().map(|v| v * 3.0 / scale).collect()).collect()
    };
    for (i, direction) in directions.iter().enumerate() {
        let at = |step: f32| loss(&x.iter().zip(direction).map(|(x, d)| x + step * d).collect::<Vec<_>>());
        let slope = (at(STEP) - at(-STEP)) / (2.0 * f64::from(STEP));
        let found: f64 = dx.iter().zip(direction).map(|(dx, d)| f64::from(dx * d)).sum();
        let far = (found - slope).abs();
        assert!(far <= TOLERANCE * slope.abs().max(1.0), "{what}, direction {i}: {found} is not {slope}");
    }
}

pub(crate) fn weigh(out: &[f32], dout: &[f32]) -> f64 {
    out.iter().zip(dout).map(|(y, d)| f64::from(*y) * f64::from(*d)).sum()
}

fn pool() -> Pool {
    Pool::new(2, Tier::detect())
}

#[test]
fn a_linear_map() {
    let (pool, rows, n, k) = (pool(), 70, 3, 4);
    let (x, w, b, dout) = (numbers(rows * k, 1), numbers(n * k, 2), numbers(n, 3), numbers(rows * n, 4));
    let run = |x: &[f32], w: &[f32], b: &[f32]| {
        let mut y = vec![0.0; rows * n];
        Linear { weight: w, bias: Some(b), n, k }.forward(&pool, x, &mut y);
        weigh(&y, &dout)
    };
    let (mut dx, mut dw, mut db) = (vec![1.0; rows * k], vec![0.0; n * k], vec![0.0; n]);
    Linear { weight: &w, bias: Some(&b), n, k }.backward_input(&pool, &dout, &mut dx, Target::Overwrite);
    linear::backward_weight(&pool, &dout, &x, k, &mut dw, Some(&mut db));
    check("x", &x, &dx, |x| run(x, &w, &b));
    check("weight", &w, &dw, |w| run(&x, w, &b));
    check("bias", &b, &db, |b| run(&x, &w, b));
}

#[test]
fn a_frozen_map_with_a_low_rank_delta() {
    let (pool, rows, n, k, r) = (pool(), 9, 5, 6, 2);
    let (x, w, dout) = (numbers(rows * k, 1), numbers(n * k, 2), numbers(rows * n, 4));
    let (a, b) = (numbers(r * k, 5), numbers(n * r, 6));
    let base = Linear { weight: &w, bias: None, n, k };
    let run = |x: &[f32], a: &[f32], b: &[f32]| {
        let (mut y, mut u) = (vec![0.0; rows * n], vec![0.0; rows * r]);
        Lora { a, b, scale: 0.75 }.forward(&pool, base, x, &mut u, &mut y);
        (y, u)
    };
    let (y, u) = run(&x, &a, &b);
    // By hand: y = x·(W + s·B·A)ᵀ.
    for i in 0..rows {
        for j in 0..n {
            let weight = |l: usize| w[j * k + l] + 0.75 * (0..r).map(|t| b[j * r + t] * a[t * k + l]).sum::<f32>();
            let expected: f32 = (0..k).map(|l| x[i * k + l] * weight(l)).sum();
            assert!((y[i * n + j] - expected).abs() < 1e-5);
        }
    }
    let (mut da, mut db, mut dx) = (vec![0.0; r * k], vec![0.0; n * r], vec![9.0; rows * k]);
    let saved = Saved { x: &x, u: &u };
    Lora { a: &a, b: &b, scale: 0.75 }.backward(
        &pool,
        base,
        saved,
        &dout,
        (&mut da, &mut db),
        &mut dx,
        Target::Overwrite,
    );
    check("x", &x, &dx, |x| weigh(&run(x, &a, &b).0, &dout));
    check("a", &a, &da, |a| weigh(&run(&x, a, &b).0, &dout));
    check("b", &b, &db, |b| weigh(&run(&x, &a, b).0, &dout));
}

#[test]
fn norms() {
    let (pool, rows, width) = (pool(), 130, 5);
    let (x, weight, bias, dout) =
        (numbers(rows * width, 1), numbers(width, 2), numbers(width, 3), numbers(rows * width, 4));
    let layer = |x: &[f32], weight: &[f32], bias: &[f32]| {
        let (mut kept, mut out) = (Normed::default(), vec![0.0; x.len()]);
        LayerNorm { weight, bias, eps: 1e-2 }.forward(&pool, x, &mut kept, &mut out);
        (out, kept)
    };
    let (mut dx, mut dweight, mut dbias) = (dout.clone(), vec![0.0; width], vec![0.0; width]);
    let kept = layer(&x, &weight, &bias).1;
    let layer_norm = LayerNorm { weight: &weight, bias: &bias, eps: 1e-2 };
    layer_norm.backward(&pool, &kept, &mut dx, &mut dweight, &mut dbias);
    check("layer norm x", &x, &dx, |x| weigh(&layer(x, &weight, &bias).0, &dout));
    check("layer norm weight", &weight, &dweight, |weight| weigh(&layer(&x, weight, &bias).0, &dout));
    check("layer norm bias", &bias, &dbias, |bias| weigh(&layer(&x, &weight, bias).0, &dout));
    let rms = |x: &[f32]| {
        let mut out = vec![0.0; x.len()];
        norm::rms_norm(&pool, x, &weight, 1e-2, &mut out);
        weigh(&out, &dout)
    };
    let mut dx = vec![0.0; x.len()];
    norm::rms_norm_backward(&pool, &x, &weight, 1e-2, &dout, &mut dx);
    check("rms norm x", &x, &dx, rms);
}

#[test]
fn attention_of_all_shapes() {
    let pool = pool();
    // An empty segment, one row, and some.
    let segments = Segments::of([3, 0, 1, 6]);
    let shapes =
        [(2, 2, false, None), (4, 2, true, None), (3, 1, true, Some(2)), (2, 1, true, Some(9)), (2, 1, false, None)];
    for (heads, kv_heads, causal, window) in shapes {
        let attention = Attention { heads, kv_heads, head_dim: 4, causal, window, scale: 0.7 };
        let width = heads * 4;
        let qkv = numbers(segments.rows() * attention.qkv_width(), 1);
        let dout = numbers(segments.rows() * width, 2);
        let run = |qkv: &[f32]| {
            let (mut p, mut out) = (vec![0.0; attention.kept(&segments)], vec![0.0; dout.len()]);
            attention.forward(&pool, &segments, qkv, &mut p, &mut out);
            (out, p)
        };
        let (out, p) = run(&qkv);
        let mut dqkv = vec![7.0; qkv.len()];
        attention.backward(&pool, &segments, &qkv, &p, &dout, &mut dqkv);
        for i in 0..qkv.len() {
            let mut moved = qkv.clone();
            let mut at = |step: f32| {
                moved[i] = qkv[i] + step;
                weigh(&run(&moved).0, &dout)
            };
            let slope = (at(STEP) - at(-STEP)) / (2.0 * f64::from(STEP));
            assert!((f64::from(dqkv[i]) - slope).abs() <= TOLERANCE * slope.abs().max(1.0), "{i}: {} {slope}", dqkv[i]);
        }
        // A segment alone gives what it gives among others.
        let alone = Segments::of([6]);
        let range = segments.range(3);
        let part = &qkv[range.start * attention.qkv_width()..];
        let (mut p, mut single) = (vec![0.0; attention.kept(&alone)], vec![0.0; 6 * width]);
        attention.forward(&pool, &alone, part, &mut p, &mut single);
        assert_eq!(single, out[range.start * width..]);
    }
}

#[test]
fn rotary_positions() {
    let (pool, segments) = (pool(), Segments::of([3, 2]));
    let turns = Turns::new(&[1.0, 0.1], 1.2, 4, 5);
    let (stride, width) = (12, 10);
    let (x, dout) = (numbers(5 * stride, 1), numbers(5 * stride, 2));
    let run = |x: &[f32]| {
        let mut y = x.to_vec();
        turns.forward(&pool, &segments, &mut y, stride, width);
        weigh(&y, &dout)
    };
    let mut dx = dout.clone();
    turns.backward(&pool, &segments, &mut dx, stride, width);
    check("x", &x, &dx, run);
}

#[test]
fn rows_of_a_table() {
    let ids = [2, 0, 2].map(TokenId);
    let (table, dout) = (numbers(3 * 4, 1), numbers(3 * 4, 2));
    let run = |table: &[f32]| {
        let mut x = vec![0.0; 12];
        embedding::forward(table, 4, &ids, &mut x);
        weigh(&x, &dout)
    };
    let mut dtable = vec![0.0; 12];
    embedding::backward(&mut dtable, 4, &ids, &dout);
    check("table", &table, &dtable, run);
}

#[test]
fn losses() {
    use crate::objective::{cross_entropy, supervised_contrast, symmetric_divergence};
    let pool = pool();
    let isa = pool.isa();
    let logits = numbers(6 * 5, 1).iter().map(|x| x * 2.0).collect::<Vec<_>>();
    let targets = [Some(0), None, Some(4), Some(2), Some(2), None];
    for smoothing in [0.0, 0.1] {
        let run = |logits: &[f32], d: &mut [f32]| cross_entropy(isa, logits, &targets, smoothing, 1.5, d);
        let mut d = vec![0.0; 30];
        let loss = run(&logits, &mut d);
        let mut exact = 0.0;
        for (row, target) in logits.chunks_exact(5).zip(targets).filter_map(|(row, t)| Some((row, t?))) {
            let log_sum = row.iter().map(|z| f64::from(*z).exp()).sum::<f64>().ln();
            for (k, z) in row.iter().enumerate() {
                let t = f64::from(smoothing) / 5.0 + if k == target { 1.0 - f64::from(smoothing) } else { 0.0 };
                exact += 1.5 * t * (log_sum - f64::from(*z)) / 4.0;
            }
        }
        assert!((loss - exact).abs() < 1e-5, "{loss} is not {exact}");
        check("logits", &logits, &d, |logits| run(logits, &mut [0.0; 30]));
        assert!(d[5..10].iter().all(|d| *d == 0.0), "a masked row has no derivative");
    }
    let mut d = vec![0.0; 30];
    symmetric_divergence(isa, &logits, 5, 0.7, &mut d);
    check("two passes", &logits, &d, |logits| symmetric_divergence(isa, logits, 5, 0.7, &mut [0.0; 30]));
    assert_eq!(symmetric_divergence(isa, &[logits.clone(), logits.clone()].concat(), 5, 0.7, &mut [0.0; 60]), 0.0);
    // The fifth row has no other of its class.
    let (units, classes) = (numbers(5 * 4, 3), [0, 1, 0, 1, 2]);
    let run = |units: &[f32], d: &mut [f32]| supervised_contrast(&pool, units, &classes, 0.5, 0.8, d);
    let mut d = vec![0.0; 20];
    run(&units, &mut d);
    check("units", &units, &d, |units| run(units, &mut [0.0; 20]));
}

/// A whole encoder, both poolings, elements dropped: every tensor's derivative.
#[test]
fn a_whole_encoder() {
    let pool = pool();
    let dir = tempfile::tempdir().unwrap();
    tiny::bert_folder(dir.path(), &["a", "b", "c", "d"], 2, 11).unwrap();
    let encoder = Encoder::open(dir.path()).unwrap();
    for pooling in [metier_model::encoder::Pooling::Mean, metier_model::encoder::Pooling::FirstToken] {
        let net = BertNet::new(encoder.plain().unwrap(), pooling);
        let segments = Segments::of([4, 1, 7]);
        let ids: Vec<TokenId> = (0..12).map(|i| TokenId((i * 5 + 2) % 8)).collect();
        let dout = numbers(3 * net.width(), 2);
        let dropout = Some(Dropout { rate: 0.1, seed: 77 });
        let run = |values: &[f32]| {
            let mut pass = Pass::default();
            net.forward(&pool, values, &ids, &segments, dropout, &mut pass);
            (weigh(&pass.units, &dout), pass)
        };
        let values = &net.params.values;
        let mut grads = vec![0.0; values.len()];
        let mut pass = run(values).1;
        net.backward(&pool, values, &mut pass, &dout, &mut grads);
        for tensor in net.params.tensors() {
            let range = tensor.range.clone();
            check(&tensor.name, &values[range.clone()], &grads[range.clone()], |part| {
                let mut moved = values.clone();
                moved[range.clone()].copy_from_slice(part);
                run(&moved).0
            });
        }
    }
}

/// A whole decoder: every delta's derivative, B not at 0, answers in the middle of packed rows.
#[test]
fn a_whole_decoder() {
    use metier_model::{Decoder, arch::transformer::WeightFormat, format::TensorType};

    use super::llama::{LlamaNet, LoraConfig, Pass};
    use crate::objective::distil::Soft;
    let pool = pool();
    let file = tiny::gguf_with(3, TensorType::F32);
    let decoder = Decoder::from_bytes(file, "tiny", WeightFormat::F32).unwrap();
    let net = LlamaNet::new(decoder.network().plain().unwrap(), LoraConfig { r: 2, alpha: 4.0 }, 1);
    let mut values = net.params.values.clone();
    for (i, tensor) in net.params.tensors().iter().enumerate() {
        let noise = numbers(tensor.range.len(), 50 + i as u64);
        values[tensor.range.clone()].iter_mut().zip(noise).for_each(|(x, noise)| *x += 0.1 * noise);
    }
    let segments = Segments::of([5, 1, 8]);
    let ids: Vec<TokenId> = (0..14).map(|i| TokenId((i * 37 + 2) % 262)).collect();
    let targets = [(2, TokenId(7)), (3, TokenId(200)), (5, TokenId(31)), (13, TokenId(7))];
    // Alone, and beside a teacher that has seen all of them but one, once a part of the vocabulary and once all of it.
    let softs = [5, 262].map(|top| {
        let soft = |i: usize| Soft::of(pool.isa(), &numbers(262, 90 + i as u64), 2.0, top);
        (0..4).map(|i| (i != 1).then(|| soft(i))).collect::<Vec<Option<Soft>>>()
    });
    for softs in [&[][..], &softs[0], &softs[1]] {
        let softs: Vec<Option<&Soft>> = softs.iter().map(Option::as_ref).collect();
        let run = |values: &[f32]| {
            let mut pass = Pass::default();
            net.forward(&pool, values, &ids, &segments, &mut pass);
            let (loss, dhidden) = net.taught_loss(&pool, &pass, &targets, &softs, (0.7, 2.0));
            (loss, dhidden, pass)
        };
        let mut grads = vec![0.0; values.len()];
        let (_, dhidden, mut pass) = run(&values);
        net.backward(&pool, &values, &mut pass, dhidden, &mut grads);
        for tensor in net.params.tensors() {
            let range = tensor.range.clone();
            assert!(grads[range.clone()].iter().any(|d| *d != 0.0), "`{}` has a derivative", tensor.name);
            check(&tensor.name, &values[range.clone()], &grads[range.clone()], |part| {
                let mut moved = values.clone();
                moved[range.clone()].copy_from_slice(part);
                run(&moved).0
            });
        }
    }
}

/// What other families have beside Llama's blocks: every delta's derivative. Networks of metier-model's goldens.
#[test]
fn decoders_of_other_families() {
    use metier_model::{Decoder, arch::transformer::WeightFormat};

    use super::llama::{LlamaNet, LoraConfig, Pass};
    let pool = pool();
    for family in ["gemma3", "qwen2", "qwen3", "smollm3", "mistral"] {
        let path = format!("{}/../metier-model/tests/goldens/{family}.gguf", env!("CARGO_MANIFEST_DIR"));
        let decoder = Decoder::open(path.as_ref(), WeightFormat::F32).unwrap();
        let mut net = LlamaNet::new(decoder.network().plain().unwrap(), LoraConfig { r: 2, alpha: 4.0 }, 1);
        // One with a window and one without, one that turns and one that does not.
        let last = net.layers().len() - 1;
        net.keep(&[0, last]);
        let mut values = net.params.values.clone();
        for (i, tensor) in net.params.tensors().iter().enumerate() {
            let noise = numbers(tensor.range.len(), 50 + i as u64);
            values[tensor.range.clone()].iter_mut().zip(noise).for_each(|(x, noise)| *x += 0.1 * noise);
        }
        // Longer than a window.
        let segments = Segments::of([12, 1, 4]);
        let ids: Vec<TokenId> = (0..17).map(|i| TokenId((i * 37 + 2) % 260)).collect();
        let targets = [(2, TokenId(7)), (11, TokenId(200)), (12, TokenId(31)), (16, TokenId(7))];
        let run = |values: &[f32]| {
            let mut pass = Pass::default();
            net.forward(&pool, values, &ids, &segments, &mut pass);
            let (loss, dhidden) = net.loss(&pool, &pass, &targets);
            (loss, dhidden, pass)
        };
        let mut grads = vec![0.0; values.len()];
        let (_, dhidden, mut pass) = run(&values);
        net.backward(&pool, &values, &mut pass, dhidden, &mut grads);
        for tensor in net.params.tensors() {
            let range = tensor.range.clone();
            assert!(grads[range.clone()].iter().any(|d| *d != 0.0), "{family}: `{}` has a derivative", tensor.name);
            check(&format!("{family} {}", tensor.name), &values[range.clone()], &grads[range.clone()], |part| {
                let mut moved = values.clone();
                moved[range.clone()].copy_from_slice(part);
                run(&moved).0
            });
        }
    }
}

/// Unit vectors of last rows, and a network that has lost a layer: every delta's derivative.
#[test]
fn unit_vectors_of_a_decoder() {
    use metier_model::{Decoder, arch::transformer::WeightFormat, format::TensorType};

    use super::llama::{LlamaNet, LoraConfig, Pass};
    let pool = pool();
    for kept in [vec![0, 1], vec![1], vec![0]] {
        let decoder = |kept: &[usize]| {
            let file = tiny::gguf_of_layers(3, TensorType::F32, kept);
            Decoder::from_bytes(file, "tiny", WeightFormat::F32).unwrap()
        };
        let mut net = LlamaNet::new(decoder(&[0, 1]).network().plain().unwrap(), LoraConfig { r: 2, alpha: 4.0 }, 1);
        net.keep(&kept);
        let mut values = net.params.values.clone();
        let segments = Segments::of([5, 1, 8]);
        let ids: Vec<TokenId> = (0..14).map(|i| TokenId((i * 37 + 2) % 262)).collect();
        let dout = numbers(3 * net.width(), 2);
        let run = |values: &[f32]| {
            let mut pass = Pass::default();
            net.forward(&pool, values, &ids, &segments, &mut pass);
            let units = net.units(&pool, &pass.hidden, vec![4, 5, 13]);
            (weigh(&units.units, &dout), units, pass)
        };
        // Built without the others, the base says the same.
        let cut = decoder(&kept).logits(&pool, &ids[6..]).unwrap().concat();
        let pass = run(&values).2;
        let found = net.logits(&pool, &pass, &(6..14).collect::<Vec<_>>());
        assert!(found.iter().zip(&cut).all(|(a, b)| (a - b).abs() < 1e-4), "{kept:?}");
        for (i, tensor) in net.params.tensors().iter().enumerate() {
            let noise = numbers(tensor.range.len(), 50 + i as u64);
            values[tensor.range.clone()].iter_mut().zip(noise).for_each(|(x, noise)| *x += 0.1 * noise);
        }
        let mut grads = vec![0.0; values.len()];
        let (_, units, mut pass) = run(&values);
        let dhidden = net.units_backward(&pool, &units, &dout, ids.len());
        net.backward(&pool, &values, &mut pass, dhidden, &mut grads);
        assert_eq!(net.params.tensors().len(), kept.len() * 14);
        for tensor in net.params.tensors() {
            let range = tensor.range.clone();
            let layer: usize = tensor.name.split('.').nth(4).unwrap().parse().unwrap();
            assert!(kept.contains(&layer), "`{}` is of a layer that is there", tensor.name);
            assert!(grads[range.clone()].iter().any(|d| *d != 0.0), "`{}` has a derivative", tensor.name);
            check(&tensor.name, &values[range.clone()], &grads[range.clone()], |part| {
                let mut moved = values.clone();
                moved[range.clone()].copy_from_slice(part);
                run(&moved).0
            });
        }
    }
}

/// What skipping a layer makes of the last rows is what a network without it makes.
#[test]
fn a_skipped_layer() {
    use metier_model::{Decoder, arch::transformer::WeightFormat, format::TensorType};

    use super::llama::{LlamaNet, LoraConfig, Pass};
    let pool = pool();
    let file = tiny::gguf_with(3, TensorType::F32);
    let plain = Decoder::from_bytes(file, "tiny", WeightFormat::F32).unwrap().network().plain().unwrap();
    let ids: Vec<TokenId> = (0..9).map(|i| TokenId((i * 37 + 2) % 262)).collect();
    let segments = Segments::of([3, 6]);
    let run = |net: &LlamaNet| {
        let mut pass = Pass::default();
        net.forward(&pool, &net.params.values, &ids, &segments, &mut pass);
        pass
    };
    let whole = LlamaNet::new(plain.clone(), LoraConfig { r: 2, alpha: 4.0 }, 1);
    let pass = run(&whole);
    for (at, left) in [(0, 1), (1, 0)] {
        let mut cut = LlamaNet::new(plain.clone(), LoraConfig { r: 2, alpha: 4.0 }, 1);
        cut.keep(&[left]);
        assert_eq!(whole.without(&pool, &whole.params.values, &pass, at), run(&cut).hidden, "layer {at}");
        assert_eq!(cut.layers(), [left]);
    }
    assert_eq!(whole.rows_at(&pass, 2), pass.hidden);
}
