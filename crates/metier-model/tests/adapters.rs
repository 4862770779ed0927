//! Does an adapter do here what it does in PEFT? Folders that PEFT has saved over the tiny networks of `architectures.rs`, made by
//! `goldens/make_adapters.py`: subsets of maps and layers, ranks, both scalings, reordered and fused maps.
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
    adapter::{self, Adapter, LoraFormat},
    arch::transformer::WeightFormat,
    engine::GenerationRequest,
    sample::Sampling,
};

/// Rounding of f32 sums in another order, over logits whose deviation is 0.5 to 6, with f16 deltas whose files hold f16 or values that
/// are f16. The smallest adapter moves logits by more than a tenth of their deviation.
const MAX_DIFFERENCE_F16: f32 = 1e-4;
/// Deltas in 8 bits, as a share of the logits' own deviation (root of mean squares): the largest adapters here move logits by 1.3 of it.
const MAX_DIFFERENCE_INT8: f32 = 0.05;
/// An adapter that does nothing is off by more than this share.
const MIN_MOVE: f32 = 0.1;
const VOCABULARY: usize = 260;
/// Of the deviation between 8 bits that were rounded at load and 8 bits that were rounded in the file: a scale may differ by its last bit.
const MAX_DIFFERENCE_STORED: f32 = 1e-5;
/// Last ids of a prompt whose logits are kept.
const KEPT: usize = 4;

fn golden(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(file)
}

fn pool() -> &'static Pool {
    static POOL: OnceLock<Pool> = OnceLock::new();
    POOL.get_or_init(|| Pool::new(2, Tier::detect()))
}

/// As in the script.
fn prompts() -> [Vec<TokenId>; 3] {
    let ids: Vec<TokenId> = (0..40).map(|i| TokenId(((i * 73 + i * i * 11 + 5) % VOCABULARY) as u32)).collect();
    [ids.clone(), ids.iter().rev().take(11).copied().collect(), ids[20..23].repeat(5)]
}

/// A base's file, whose rows of q and k may be reordered, or its folder, whose rows lie as in PEFT.
fn decoder(base: &str) -> Decoder {
    Decoder::open(&golden(base), WeightFormat::F32).unwrap()
}

fn open(name: &str, base: &Decoder, format: LoraFormat) -> Adapter {
    Adapter::open(&golden(&format!("adapters/{name}")), base.network().config(), format).unwrap()
}

/// Logits of the last ids of every prompt.
fn logits(base: &Decoder, adapter: Option<&Adapter>) -> Vec<f32> {
    let of = |prompt: &Vec<TokenId>| base.logits_with(pool(), prompt, adapter).unwrap().split_off(prompt.len() - KEPT);
    prompts().iter().flat_map(of).flatten().collect()
}

/// Root of mean squares of the difference, as a share of the deviation.
fn share(got: &[f32], expected: &[f32]) -> f32 {
    let squares: f32 = got.iter().zip(expected).map(|(a, b)| (a - b) * (a - b)).sum();
    (squares / expected.iter().map(|b| b * b).sum::<f32>()).sqrt()
}

#[track_caller]
fn check(name: &str, base: &str) {
    let bytes = std::fs::read(golden(&format!("adapters/{name}/logits.f32"))).unwrap();
    let expected: Vec<f32> = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    assert_eq!(expected.len(), prompts().len() * KEPT * VOCABULARY);
    for form in [format!("{base}.gguf"), format!("folders/{base}")] {
        check_form(name, &form, &expected);
    }
}

#[track_caller]
fn check_form(name: &str, form: &str, expected: &[f32]) {
    let base = decoder(form);
    let got = logits(&base, Some(&open(name, &base, LoraFormat::F16)));
    let worst = got.iter().zip(expected).fold(0.0f32, |worst, (a, b)| worst.max((a - b).abs()));
    let rounded = logits(&base, Some(&open(name, &base, LoraFormat::Int8)));
    let int8 = share(&rounded, expected);
    let without = share(&logits(&base, None), expected);
    eprintln!(
        "{name} over {form}: largest difference of a logit {worst:.2e} in f16; int8 is off by {int8:.4} of the deviation, the base by {without:.2}"
    );
    assert!(worst <= MAX_DIFFERENCE_F16, "{name} over {form}: {worst}");
    assert!(int8 <= MAX_DIFFERENCE_INT8, "{name} over {form} in int8: {int8}");
    assert!(without >= MIN_MOVE, "{name} over {form} is not seen: {without}");
    // Rounded on disk it is what it is rounded in memory, and the file that PEFT reads says that too.
    let folder = golden(&format!("adapters/{name}"));
    let read = |file: &str| std::fs::read(folder.join(file)).unwrap();
    let (config, whole) = (read("adapter_config.json"), read("adapter_model.safetensors"));
    let small = adapter::to_int8(&whole).unwrap();
    let config_of = base.network().config();
    for (weights, format, most) in [
        (small.clone(), LoraFormat::Int8, MAX_DIFFERENCE_STORED),
        (small.clone(), LoraFormat::F16, MAX_DIFFERENCE_INT8),
        (adapter::to_halves(&small).unwrap(), LoraFormat::F16, MAX_DIFFERENCE_INT8),
    ] {
        let stored = Adapter::from_bytes(&config, &weights, config_of, format).unwrap();
        let far = share(&logits(&base, Some(&stored)), &rounded);
        assert!(far <= most, "{name} over {form}, stored in 8 bits and kept as {format:?}: {far}");
    }
}

#[test]
fn all_maps() {
    check("llama-all", "llama");
}

#[test]
fn two_maps_of_one_layer_with_rank_stabilised_scaling_in_an_f32_file() {
    check("llama-rslora", "llama");
}

#[test]
fn reordered_rows_beside_layers_that_do_not_turn() {
    check("smollm3-attention", "smollm3");
}

#[test]
fn maps_with_biases() {
    check("qwen2-all", "qwen2");
}

#[test]
fn another_activation_windows_and_norms() {
    check("gemma3-mlp", "gemma3");
}

#[test]
fn fused_maps() {
    check("phi3-fused", "phi3");
}

#[test]
fn adapters_of_peft_and_the_base_share_a_batch() {
    let base = Arc::new(decoder("llama.gguf"));
    let adapters = ["llama-all", "llama-rslora"].map(|name| Arc::new(open(name, &base, LoraFormat::Int8)));
    let run = |asked: &[Option<usize>]| {
        let limits = EngineLimits { kv_cache_bytes: 16 << 20, ..EngineLimits::default() };
        let mut engine = Engine::new(Arc::clone(&base), limits);
        let ids = adapters.clone().map(|adapter| engine.load_adapter(adapter).unwrap());
        for adapter in asked {
            let (prompt, adapter) = (prompts()[0].clone(), adapter.map(|i| ids[i]));
            // Drawn, because greedily the smaller adapter writes what the base does.
            let sampling = Sampling { temperature: 2.0, seed: 5, ..Sampling::default() };
            engine
                .submit(GenerationRequest { prompt, max_tokens: 12, sampling, adapter, ..Default::default() })
                .unwrap();
        }
        engine.drain(pool()).into_iter().map(|generation| generation.tokens).collect::<Vec<_>>()
    };
    let asked = [Some(0), None, Some(1), Some(0)];
    let alone: Vec<_> = asked.iter().flat_map(|asked| run(&[*asked])).collect();
    assert_eq!(run(&asked), alone);
    assert!(alone[0] != alone[1] && alone[1] != alone[2] && alone[0] != alone[2], "{alone:?}");
}

/// Configurations that PEFT writes for what is more than low-rank deltas, each refused by the name of its setting.
#[test]
fn what_answers_would_need_is_refused_by_name() {
    let base = decoder("llama.gguf");
    let weights = std::fs::read(golden("adapters/llama-all/adapter_model.safetensors")).unwrap();
    let mut refused = 0;
    for file in std::fs::read_dir(golden("adapters/refused")).unwrap() {
        let path = file.unwrap().path();
        let setting = path.file_stem().unwrap().to_str().unwrap();
        let config = std::fs::read(&path).unwrap();
        let error = Adapter::from_bytes(&config, &weights, base.network().config(), LoraFormat::F16).unwrap_err();
        let told = error.to_string();
        assert!(told.contains(&format!("the adapter's `{setting}` is")), "{setting}: {told}");
        refused += 1;
    }
    assert_eq!(refused, 10);
}

#[test]
fn an_adapter_of_another_base_is_refused() {
    let folder = golden("adapters/llama-all");
    for other in ["smollm3", "gemma3"] {
        let error = Adapter::open(&folder, decoder(&format!("{other}.gguf")).network().config(), LoraFormat::F16)
            .unwrap_err()
            .to_string();
        assert!(error.contains("made for another base"), "{other}: {error}");
    }
    // The same network with rows in another order: what was opened for the one would turn the wrong rows of the other.
    let [file, whole] = ["llama.gguf", "folders/llama"].map(decoder);
    let adapter = open("llama-all", &file, LoraFormat::F16);
    assert!(adapter.fits(file.network().config()) && !adapter.fits(whole.network().config()));
}
