#![allow(clippy::unwrap_used, reason = "tests")]

use metier_kernels::{Pool, Tier};

use proptest::prelude::*;

use super::*;
use crate::{
    Decoder, TokenId,
    arch::transformer::WeightFormat,
    format::{Gguf, TensorType},
    tiny,
};

fn decoder(bytes: Vec<u8>) -> Decoder {
    Decoder::from_bytes(bytes, "tiny", WeightFormat::F32).unwrap()
}

fn base() -> TransformerConfig {
    *decoder(tiny::gguf(1)).network().config()
}

/// The base's file with the adapter's deltas added to its weights, as Transformers would merge them and llama.cpp convert them.
fn merged(mut gguf_bytes: Vec<u8>, files: &tiny::AdapterFiles, base: &TransformerConfig) -> Vec<u8> {
    let gguf = Gguf::parse(&gguf_bytes).unwrap();
    let adapter = Safetensors::parse(&files.weights).unwrap();
    let names = [
        ("self_attn.q_proj", "attn_q", base.heads),
        ("self_attn.k_proj", "attn_k", base.kv_heads),
        ("self_attn.v_proj", "attn_v", 0),
        ("self_attn.o_proj", "attn_output", 0),
        ("mlp.gate_proj", "ffn_gate", 0),
        ("mlp.up_proj", "ffn_up", 0),
        ("mlp.down_proj", "ffn_down", 0),
    ];
    for layer in 0..base.layers {
        for (map, part, heads) in names {
            let name = |half: &str| format!("base_model.model.model.layers.{layer}.{map}.lora_{half}.weight");
            let Some(a) = adapter.tensor(&files.weights, &name("A")) else { continue };
            let b = adapter.tensor(&files.weights, &name("B")).unwrap();
            let (rank, k, n) = (a.shape[0], a.shape[1], b.shape[0]);
            let (a, b) = (a.to_f32().unwrap(), b.to_f32().unwrap());
            let start = gguf.tensors()[&format!("blk.{layer}.{part}.weight")].range.start;
            for row in 0..n {
                // Where the converter puts this row: (head, half, i) → (head, i, half).
                let to = n.checked_div(heads).map_or(row, |head_dim| {
                    let (head, half, i) =
                        (row / head_dim, row % head_dim / (head_dim / 2), row % head_dim % (head_dim / 2));
                    head * head_dim + 2 * i + half
                });
                for column in 0..k {
                    let delta: f32 = (0..rank).map(|r| b[row * rank + r] * a[r * k + column]).sum::<f32>() * 2.0;
                    let at = start + (to * k + column) * 4;
                    let old = f32::from_le_bytes(gguf_bytes[at..at + 4].try_into().unwrap());
                    gguf_bytes[at..at + 4].copy_from_slice(&(old + delta).to_le_bytes());
                }
            }
        }
    }
    gguf_bytes
}

#[test]
fn an_adapter_does_what_merged_weights_do() {
    let bytes = tiny::gguf_with(5, TensorType::F32);
    let plain = decoder(bytes.clone());
    let base = *plain.network().config();
    let pool = Pool::new(2, Tier::detect());
    let tokens: Vec<TokenId> = (0..40).map(|i| TokenId(i * 13 % 256)).collect();
    let distance = |a: &[Vec<f32>], b: &[Vec<f32>]| {
        let squares = |f: &dyn Fn(f32, f32) -> f32| -> f32 {
            a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| f(*a, *b).powi(2)).sum()
        };
        (squares(&|a, b| a - b) / squares(&|a, _| a)).sqrt()
    };
    let without = plain.logits(&pool, &tokens).unwrap();
    for targets in [&[][..], &["q_proj"], &["k_proj", "down_proj"], &["up_proj", "o_proj"], &["gate_proj", "v_proj"]] {
        let files = tiny::adapter(&base, 3, 5, targets, 0.5);
        let expected = decoder(merged(bytes.clone(), &files, &base)).logits(&pool, &tokens).unwrap();
        // f32 against f32 with another order of sums; 8 bits round the deltas to about 1 %.
        for (format, tolerance) in [(LoraFormat::F16, 1e-4), (LoraFormat::Int8, 2e-2)] {
            let adapter = Adapter::from_bytes(files.config.as_bytes(), &files.weights, &base, format).unwrap();
            let with = plain.logits_with(&pool, &tokens, Some(&adapter)).unwrap();
            let (to_merged, to_plain) = (distance(&expected, &with), distance(&expected, &without));
            assert!(to_merged < tolerance, "{targets:?} {format:?}: {to_merged}");
            assert!(to_plain > 10.0 * to_merged, "{targets:?} {format:?}: the delta is seen, {to_plain}");
        }
    }
}

#[test]
fn memory_is_what_the_weights_need() {
    let base = TransformerConfig { layers: 3, width: 576, inner: 1536, heads: 9, kv_heads: 3, head_dim: 64, ..base() };
    for rank in [8, 16] {
        let files = tiny::adapter(&base, 1, rank, &[], 0.1);
        let weights = 3 * rank * (7 * 576 - 576 + 1536 + 576 + 2 * 192 + 576 + 2 * 1536 + 576);
        for (format, bytes_a_weight) in [(LoraFormat::F16, 2), (LoraFormat::Int8, 1)] {
            let adapter = Adapter::from_bytes(files.config.as_bytes(), &files.weights, &base, format).unwrap();
            let share = adapter.bytes() as f64 / (weights * bytes_a_weight) as f64;
            assert!((1.0..1.2).contains(&share), "rank {rank}, {format:?}: {share} of its weights");
        }
    }
}

/// A file of one tensor after another, f32.
fn file(tensors: &[(&str, &[usize], f32)]) -> Vec<u8> {
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|(_, shape, value)| value.to_le_bytes().repeat(shape.iter().product())).collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        (*name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.to_vec(), bytes).unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let base = base();
    let check = |config: &str, weights: &[u8], message: &str| {
        let error = Adapter::from_bytes(config.as_bytes(), weights, &base, LoraFormat::F16).unwrap_err().to_string();
        assert!(error.contains(message), "`{error}` does not say `{message}`");
    };
    const A: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
    const B: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight";
    const PLAIN: &str = r#"{"r": 4, "lora_alpha": 8}"#;
    let good = file(&[(A, &[4, 64], 0.1), (B, &[64, 4], 0.1)]);
    Adapter::from_bytes(PLAIN.as_bytes(), &good, &base, LoraFormat::F16).unwrap();
    check("[]", &good, "adapter_config.json");
    for (setting, message) in [
        (r#""use_dora": true"#, "`use_dora` is true"),
        (r#""bias": "all""#, "`bias` is `all`"),
        (r#""modules_to_save": ["lm_head"]"#, "`modules_to_save`"),
        (r#""rank_pattern": {"q_proj": 8}"#, "`rank_pattern`"),
        (r#""init_lora_weights": "pissa""#, "`init_lora_weights`"),
        (r#""use_rslora": true, "lora_bias": true"#, "`lora_bias` is true"),
        (r#""peft_type": "IA3""#, "`peft_type` is `IA3`"),
        (r#""of_next_year": {"on": 1}"#, "`of_next_year`"),
    ] {
        check(&format!(r#"{{"r": 4, "lora_alpha": 8, {setting}}}"#), &good, message);
    }
    let harmless =
        r#"{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "inference_mode": true, "group_size": 16}"#;
    Adapter::from_bytes(harmless.as_bytes(), &good, &base, LoraFormat::F16).unwrap();
    check(PLAIN, b"nothing", "cannot parse the adapter's weights");
    check(PLAIN, &file(&[]), "no tensors");
    check(r#"{"r": 4, "lora_alpha": 1e300}"#, &good, "`lora_alpha`");
    check(r#"{"r": 8, "lora_alpha": 8}"#, &good, "has rank 4, the configuration says 8");
    check(r#"{"r": 0, "lora_alpha": 8}"#, &good, "configuration says 0 (1 to 256)");
    check(PLAIN, &file(&[(A, &[4, 64], 0.1), (B, &[64, 5], 0.1)]), "lora_B.weight` has rank 5");
    check(PLAIN, &file(&[(A, &[4, 96], 0.1), (B, &[64, 4], 0.1)]), "made for another base");
    check(PLAIN, &file(&[(A, &[4, 64], 0.1), (B, &[96, 4], 0.1)]), "made for another base");
    check(PLAIN, &file(&[(A, &[4, 64], 0.1)]), "q_proj.lora_B.weight` is missing");
    check(PLAIN, &file(&[(A, &[4, 64], f32::NAN), (B, &[64, 4], 0.1)]), "no finite");
    check(PLAIN, &file(&[(A, &[4, 64], 1e5), (B, &[64, 4], 0.1)]), "no finite");
    let deep = A.replace("layers.0", "layers.7");
    check(PLAIN, &file(&[(&deep, &[4, 64], 0.1)]), "belongs to layer 7, the base has 2");
    for unknown in [
        "lm_head.lora_A.weight",
        "model.layers.0.self_attn.q_proj.lora_magnitude_vector",
        "base_model.model.vision_tower.encoder.layers.0.self_attn.q_proj.lora_A.weight",
        "model.layers.0.self_attn.qkv_proj.lora_A.weight",
    ] {
        check(PLAIN, &file(&[(unknown, &[4, 64], 0.1)]), "has no place");
    }
}

#[test]
fn fused_maps_are_their_parts() {
    let base = TransformerConfig { rope_pairs: RopePairs::Halves, ..base() };
    const CONFIG: &str = r#"{"r": 2, "lora_alpha": 4}"#;
    let name = |map: &str, half: &str| format!("base_model.model.model.layers.0.{map}_proj.lora_{half}.weight");
    let (qkv_a, qkv_b, q_a, q_b) =
        (name("self_attn.qkv", "A"), name("self_attn.qkv", "B"), name("self_attn.q", "A"), name("self_attn.q", "B"));
    let open = |weights: &[u8]| Adapter::from_bytes(CONFIG.as_bytes(), weights, &base, LoraFormat::F16);
    let fused: [(&str, &[usize], f32); 2] = [(&qkv_a, &[2, 64], 0.1), (&qkv_b, &[128, 2], 0.1)];
    assert!(open(&file(&fused)).unwrap().stack(0, Site::Qkv).is_some());
    let both: [(&str, &[usize], f32); 4] = [fused[0], fused[1], (&q_a, &[2, 64], 0.1), (&q_b, &[64, 2], 0.1)];
    let error = open(&file(&both)).unwrap_err().to_string();
    assert!(error.contains("qkv_proj.lora_A.weight` has no place"), "{error}");
}

#[test]
fn the_digest_is_of_both_files() {
    let base = base();
    let files = tiny::adapter(&base, 1, 4, &["v_proj"], 0.1);
    let digest = |config: &str, weights: &[u8]| {
        Adapter::from_bytes(config.as_bytes(), weights, &base, LoraFormat::F16).unwrap().digest()
    };
    let lines = format!(
        "{} adapter_config.json\n{} adapter_model.safetensors\n",
        Digest::of(files.config.as_bytes()),
        Digest::of(&files.weights)
    );
    assert_eq!(digest(&files.config, &files.weights), Digest::of(lines.as_bytes()));
    assert_ne!(digest(&files.config, &files.weights), digest(&format!("{} ", files.config), &files.weights));
    let other = tiny::adapter(&base, 2, 4, &["v_proj"], 0.1);
    assert_ne!(digest(&files.config, &files.weights), digest(&other.config, &other.weights));
}

proptest! {
    #[test]
    fn damaged_files_never_panic(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8), cut in 0usize..400,
    ) {
        let base = base();
        let files = tiny::adapter(&base, 1, 2, &["k_proj", "down_proj"], 0.1);
        for of_config in [false, true] {
            let (mut config, mut weights) = (files.config.clone().into_bytes(), files.weights.clone());
            // The first kilobyte is the header, where damage has consequences.
            let target = if of_config { &mut config[..] } else { &mut weights[..1024] };
            for (at, byte) in &damage {
                target[at.index(target.len())] = *byte;
            }
            let whole = weights.len();
            weights.truncate(whole - cut.saturating_sub(200).min(whole));
            let _ = Adapter::from_bytes(&config, &weights, &base, LoraFormat::Int8);
        }
    }
}

#[test]
fn files_are_read_from_a_folder() {
    let base = base();
    let folder = tempfile::tempdir().unwrap();
    let open = || Adapter::open(folder.path(), &base, LoraFormat::Int8);
    assert!(matches!(open(), Err(AdapterError::Read { .. })));
    let files = tiny::adapter(&base, 1, 4, &["v_proj"], 0.1);
    fs::write(folder.path().join("adapter_config.json"), &files.config).unwrap();
    assert!(open().unwrap_err().to_string().contains("adapter_model.safetensors"));
    fs::write(folder.path().join("adapter.safetensors"), &files.weights).unwrap();
    assert!(open().unwrap().fits(&base));
}
