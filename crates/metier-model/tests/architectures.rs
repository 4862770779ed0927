//! Does each architecture compute what Transformers computes? Tiny networks of random weights, made by `goldens/make_goldens.py`
//! with all that distinguishes an architecture in them: order of rotary pairs, windows, norms, biases, fused tensors, factors.
//!
//! Every test prints what it measured (`--nocapture`).

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests; they print what they measured")]

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use metier_kernels::{Pool, Tier};
use metier_model::{
    Decoder, Engine, EngineLimits, TokenId,
    arch::transformer::WeightFormat,
    engine::GenerationRequest,
    format::{Gguf, TensorType, gguf::Value, gguf_write::GgufWriter},
    sample::argmax,
};

/// Rounding of f32 sums in another order, over logits whose deviation is 1 to 5: the largest measured is printed. A wrong rotary pair, norm or
/// window is off by more than 0.1.
const MAX_DIFFERENCE_F32: f32 = 1e-4;
/// Weights and activations in 8 bits, as a share of the logits' own deviation (root of mean squares).
const MAX_DIFFERENCE_INT8: f32 = 0.1;
const VOCABULARY: usize = 260;
const LEN: usize = 40;

fn golden(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(file)
}

fn pool() -> &'static Pool {
    static POOL: OnceLock<Pool> = OnceLock::new();
    POOL.get_or_init(|| Pool::new(2, Tier::detect()))
}

fn ids() -> Vec<TokenId> {
    (0..LEN).map(|i| TokenId(((i * 73 + i * i * 11 + 5) % VOCABULARY) as u32)).collect()
}

fn logits(name: &str, weights: WeightFormat) -> Vec<Vec<f32>> {
    Decoder::open(&golden(&format!("{name}.gguf")), weights).unwrap().logits(pool(), &ids()).unwrap()
}

fn reference(name: &str) -> Vec<Vec<f32>> {
    let bytes = std::fs::read(golden(&format!("{name}.f32"))).unwrap();
    let floats: Vec<f32> = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    assert_eq!(floats.len(), LEN * VOCABULARY);
    floats.chunks_exact(VOCABULARY).map(<[f32]>::to_vec).collect()
}

#[track_caller]
fn check(name: &str) {
    let expected = reference(name);
    let got = logits(name, WeightFormat::F32);
    let mut worst = 0.0f32;
    for (t, (got, expected)) in got.iter().zip(&expected).enumerate() {
        assert_eq!(argmax(got), argmax(expected), "{name}: most probable token after {t}");
        worst = got.iter().zip(expected).fold(worst, |worst, (a, b)| worst.max((a - b).abs()));
    }
    let int8 = logits(name, WeightFormat::Int8);
    let pairs = || int8.iter().flatten().zip(expected.iter().flatten());
    let squares: f32 = pairs().map(|(a, b)| (a - b) * (a - b)).sum();
    let all: f32 = pairs().map(|(_, b)| b * b).sum();
    let share = (squares / all).sqrt();
    eprintln!("{name}: largest difference of a logit {worst:.2e} in f32; int8 is off by {share:.4} of the deviation");
    assert!(worst <= MAX_DIFFERENCE_F32, "{name}: {worst}");
    assert!(share <= MAX_DIFFERENCE_INT8, "{name} in int8: {share}");
    check_batch(name);
}

/// Prompts of several lengths, longer and shorter than the windows, write together what each writes alone.
fn check_batch(name: &str) {
    let decoder = Arc::new(Decoder::open(&golden(&format!("{name}.gguf")), WeightFormat::Int8).unwrap());
    let run = |prompts: &[&[TokenId]]| {
        let mut engine =
            Engine::new(decoder.clone(), EngineLimits { kv_cache_bytes: 16 << 20, ..EngineLimits::default() });
        for prompt in prompts {
            let request = GenerationRequest { prompt: prompt.to_vec(), max_tokens: 16, ..Default::default() };
            engine.submit(request).unwrap();
        }
        engine.drain(pool()).into_iter().map(|generation| generation.tokens).collect::<Vec<_>>()
    };
    let ids = ids();
    let prompts: [&[TokenId]; 4] = [&ids, &ids[3..5], &ids[20..36], &ids[7..16]];
    let alone: Vec<_> = prompts.iter().flat_map(|prompt| run(&[prompt])).collect();
    assert_eq!(run(&prompts), alone, "{name}: a batch and its members");
}

/// The file with another value of a setting (`None`: without it), and, where `tensor` is given, with its first element not a number.
fn damaged(name: &str, key: &str, value: Option<Value>, tensor: &str) -> Vec<u8> {
    let bytes = std::fs::read(golden(&format!("{name}.gguf"))).unwrap();
    let gguf = Gguf::parse(&bytes).unwrap();
    let mut writer = GgufWriter::new();
    for (k, v) in gguf.metadata().iter().filter(|(k, _)| *k != key) {
        writer = writer.metadata(k, v.clone());
    }
    if let Some(value) = value {
        writer = writer.metadata(key, value);
    }
    for (name, info) in gguf.tensors() {
        let mut data = bytes[info.range.clone()].to_vec();
        if name == tensor {
            let nan: &[u8] = if info.dtype == TensorType::F32 { &[0, 0, 0xc0, 0x7f] } else { &[0, 0x7e] };
            data[..nan.len()].copy_from_slice(nan);
        }
        let shape: Vec<u64> = info.shape.iter().map(|d| *d as u64).collect();
        writer = writer.tensor(name, &shape, info.dtype, data);
    }
    writer.finish()
}

#[track_caller]
fn refuses(bytes: Vec<u8>, message: &str) {
    for weights in [WeightFormat::F32, WeightFormat::Int8] {
        let error = Decoder::from_bytes(bytes.clone(), "damaged", weights).unwrap_err();
        let source = std::error::Error::source(&error).map_or_else(String::new, ToString::to_string);
        assert!(source.contains(message), "`{error}: {source}` does not say `{message}`");
    }
}

/// The comparison sees what it is there to see: each setting, changed a little, moves a logit well beyond the tolerance.
#[test]
fn a_wrong_setting_does_not_pass() {
    for (name, key, value) in [
        ("llama", "llama.rope.freq_base", Value::Float(12_000.0)),
        ("llama", "llama.rope.dimension_count", Value::Int(14)),
        ("mistral", "llama.attention.sliding_window", Value::Int(9)),
        ("gemma3", "gemma3.attention.sliding_window", Value::Int(9)),
        ("gemma3", "gemma3.attention.sliding_window_pattern", Value::Int(5)),
        ("gemma3", "gemma3.rope.freq_base_swa", Value::Float(12_000.0)),
        ("gemma3", "gemma3.rope.scaling.factor", Value::Float(3.0)),
        ("gemma3", "gemma3.attention.scale", Value::Float(0.25)),
        ("phi4", "phi3.rope.scaling.attn_factor", Value::Float(1.0)),
    ] {
        let bytes = damaged(name, key, Some(value), "");
        let got = Decoder::from_bytes(bytes, name, WeightFormat::F32).unwrap().logits(pool(), &ids()).unwrap();
        let expected = reference(name);
        let pairs = got.iter().flatten().zip(expected.iter().flatten());
        let worst = pairs.fold(0.0f32, |worst, (a, b)| worst.max((a - b).abs()));
        eprintln!("{name} with another `{key}`: {worst:.3}");
        assert!(worst > 10.0 * MAX_DIFFERENCE_F32, "{name} with another `{key}`: {worst}");
    }
}

#[test]
fn settings_that_make_no_network_are_refused() {
    let set =
        |name: &str, key: &str, value: Value, message: &str| refuses(damaged(name, key, Some(value), ""), message);
    let without = |name: &str, key: &str, message: &str| refuses(damaged(name, key, None, ""), message);
    set("llama", "general.architecture", Value::Text("mamba".into()), "`mamba` is not supported");
    set("llama", "llama.attention.head_count", Value::Int(0), "`llama.attention.head_count`: 0 is not between");
    set("llama", "llama.attention.head_count_kv", Value::Int(3), "each key head serves as many heads");
    set("llama", "llama.attention.head_count_kv", Value::Int(0), "0 is not between");
    set("llama", "llama.embedding_length", Value::Int(1 << 40), "is not between 1 and 65536");
    set("llama", "llama.block_count", Value::Int(3), "`blk.2.attn_norm.weight` is missing");
    set("llama", "llama.block_count", Value::Int(1), "`blk.1.attn_k.weight`, which is no part of a `llama` network");
    set("llama", "llama.rope.freq_base", Value::Float(f64::NAN), "`llama.rope.freq_base`");
    set("llama", "llama.rope.freq_base", Value::Float(0.5), "below 1");
    set("llama", "llama.rope.dimension_count", Value::Int(15), "15 is odd");
    set("llama", "llama.rope.dimension_count", Value::Int(18), "18 is not between 1 and 16");
    set("llama", "llama.rope.scaling.type", Value::Text("yarn".into()), "`yarn` is not supported");
    set("llama", "llama.expert_count", Value::Int(8), "is not supported");
    set("llama", "llama.feed_forward_length", Value::Int(64), "has shape");
    set("llama", "llama.context_length", Value::Float(128.0), "is no count");
    set("mistral", "llama.attention.key_length", Value::Int(24), "multiples of 16");
    set("mistral", "llama.attention.value_length", Value::Int(16), "is not the keys' 32");
    set("mistral", "llama.attention.sliding_window", Value::Int(0), "0 is not between");
    set("gemma3", "gemma3.attention.sliding_window_pattern", Value::Bools(vec![true]), "only a period");
    set("gemma3", "gemma3.rope.scaling.factor", Value::Float(-1.0), "no finite number above 0");
    set("gemma3", "general.architecture", Value::Text("qwen3".into()), "`qwen3.block_count`: is missing");
    without("llama", "llama.context_length", "is missing");
    without("phi4", "phi3.rope.scaling.original_context_length", "is missing");
}

#[test]
fn weights_that_are_no_numbers_are_refused() {
    for (name, tensor) in [
        ("llama", "token_embd.weight"),
        ("llama", "blk.1.ffn_down.weight"),
        ("llama3", "rope_freqs.weight"),
        ("llama3", "output.weight"),
        ("qwen2", "blk.0.attn_k.bias"),
        ("qwen3", "blk.1.attn_q_norm.weight"),
        ("gemma3", "blk.5.post_ffw_norm.weight"),
        ("phi3", "blk.0.attn_qkv.weight"),
        ("phi4", "rope_factors_short.weight"),
    ] {
        refuses(damaged(name, "", None, tensor), &format!("tensor `{tensor}` holds a value that is no finite number"));
    }
}

macro_rules! architectures {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            check(stringify!($name));
        })*
    };
}

architectures! { llama llama3 mistral smollm3 qwen2 qwen3 gemma3 phi3 phi4 }
