//! Does each family of encoders compute what its reference does? Tiny networks of random weights with all that distinguishes a family
//! in them, made by `goldens/make_encoders.py`: hidden rows by Transformers, embeddings by sentence-transformers.
//!
//! Every test prints what it measured (`--nocapture`).

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests; they print what they measured")]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use metier_kernels::{Pool, Tier};
use metier_model::{Encoder, EncoderWeights, TokenId};
use serde_json::{Value, json};

/// Rounding of f32 sums in another order, over hidden rows whose deviation is 1. A wrong window, norm or position is off by more than 0.01.
const MAX_DIFFERENCE_F32: f32 = 2e-5;
/// The same over elements of embeddings of length 1.
const MAX_DIFFERENCE_EMBEDDING: f32 = 1e-6;
const MIN_COSINE_F32: f32 = 0.999_999;
/// Weights and activations in 8 bits: rows of 48 elements average less rounding away than those of real networks.
const MIN_COSINE_INT8: f32 = 0.998;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/encoders").join(name)
}

fn pool() -> &'static Pool {
    static POOL: OnceLock<Pool> = OnceLock::new();
    POOL.get_or_init(|| Pool::new(2, Tier::detect()))
}

fn floats(path: &Path) -> Vec<f32> {
    fs::read(path).unwrap().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// What the reference made of the texts.
struct Reference {
    texts: Vec<String>,
    ids: Vec<Vec<TokenId>>,
    /// Of each text, its last hidden rows: (len, width).
    hidden: Vec<Vec<f32>>,
    embeddings: Vec<Vec<f32>>,
}

fn reference(name: &str) -> Reference {
    let golden_json = json_of(&golden(name).join("golden.json"));
    let list = |value: &Value| value.as_array().unwrap().clone();
    let ids: Vec<Vec<TokenId>> = list(&golden_json["ids"])
        .iter()
        .map(|ids| list(ids).iter().map(|id| TokenId(id.as_u64().unwrap() as u32)).collect())
        .collect();
    let rows: usize = ids.iter().map(Vec::len).sum();
    let hidden = floats(&golden(name).join("hidden.f32"));
    let width = hidden.len() / rows;
    let mut rest = hidden.as_slice();
    let hidden = ids
        .iter()
        .map(|ids| {
            let (own, after) = rest.split_at(ids.len() * width);
            rest = after;
            own.to_vec()
        })
        .collect();
    let dimensions = golden_json["dimensions"].as_u64().unwrap() as usize;
    let embeddings =
        floats(&golden(name).join("embeddings.f32")).chunks_exact(dimensions).map(<[f32]>::to_vec).collect();
    let texts = list(&golden_json["texts"]).iter().map(|text| text.as_str().unwrap().to_owned()).collect();
    Reference { texts, ids, hidden, embeddings }
}

fn unit(x: &[f32]) -> Vec<f32> {
    let norm = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt() as f32;
    x.iter().map(|x| x / norm).collect()
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    unit(a).iter().zip(&unit(b)).map(|(a, b)| a * b).sum()
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |worst, (a, b)| worst.max((a - b).abs()))
}

#[track_caller]
fn check(name: &str) {
    let reference = reference(name);
    let encoder = Encoder::open(&golden(name)).unwrap();
    let (mut hidden, mut vectors, mut cosines) = (0.0f32, 0.0f32, [1.0f32; 2]);
    for (i, text) in reference.texts.iter().enumerate() {
        let ids = &reference.ids[i];
        // The reference cuts a text that is too long: that is our first window.
        let windows = encoder.windows_of(text).unwrap();
        if windows.len() == 1 {
            assert_eq!(&windows[0], ids, "{name}: {text:?}");
        }
        hidden = hidden.max(difference(&encoder.hidden_rows(pool(), ids).unwrap(), &reference.hidden[i]));
        let embedding = encoder.embed_window(pool(), &windows[0]).unwrap();
        cosines[0] = cosines[0].min(cosine(&embedding, &reference.embeddings[i]));
        vectors = vectors.max(difference(&embedding, &unit(&reference.embeddings[i])));
    }
    let int8 = Encoder::open_with(&golden(name), EncoderWeights::Int8).unwrap();
    for encoder in [&encoder, &int8] {
        let texts: Vec<&str> = reference.texts.iter().map(String::as_str).collect();
        let together = encoder.embed(pool(), &texts).unwrap();
        for (text, vector) in texts.iter().zip(&together) {
            assert_eq!(&encoder.embed(pool(), &[text]).unwrap()[0], vector, "{name}: {text:?} in a batch and alone");
        }
    }
    for (i, text) in reference.texts.iter().enumerate() {
        let embedding = int8.embed_window(pool(), &int8.windows_of(text).unwrap()[0]).unwrap();
        cosines[1] = cosines[1].min(cosine(&embedding, &reference.embeddings[i]));
    }
    eprintln!(
        "{name}: largest difference of a hidden element {hidden:.2e}, of an embedding's {vectors:.2e}; smallest cosine {} (int8: {:.6})",
        cosines[0], cosines[1]
    );
    assert!(hidden <= MAX_DIFFERENCE_F32, "{name}: hidden rows are off by {hidden}");
    assert!(vectors <= MAX_DIFFERENCE_EMBEDDING, "{name}: embeddings are off by {vectors}");
    assert!(cosines[0] >= MIN_COSINE_F32 && cosines[1] >= MIN_COSINE_INT8, "{name}: {cosines:?}");
}

/// A copy of a folder whose `file` says `value` under `key`; a null takes the key away.
fn changed(name: &str, file: &str, key: &str, value: Value) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    copy(&golden(name), dir.path());
    let path = dir.path().join(file);
    let mut json = json_of(&path);
    match value {
        Value::Null => drop(json.as_object_mut().unwrap().remove(key)),
        value => json[key] = value,
    }
    fs::write(&path, json.to_string()).unwrap();
    dir
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()));
        } else {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

/// The comparison sees what it is there to see: each setting, changed a little, moves a hidden element well beyond the tolerance.
#[test]
fn a_wrong_setting_does_not_pass() {
    let rope = |full: f64, sliding: f64| {
        let kind = |theta: f64| json!({"rope_type": "default", "rope_theta": theta});
        json!({"full_attention": kind(full), "sliding_attention": kind(sliding)})
    };
    for (name, key, value) in [
        ("bert", "layer_norm_eps", json!(1e-3)),
        ("roberta", "pad_token_id", json!(0)),
        ("modernbert", "global_rope_theta", json!(100_000.0)),
        ("modernbert", "local_rope_theta", json!(9_000.0)),
        ("modernbert", "local_attention", json!(18)),
        ("modernbert", "global_attn_every_n_layers", json!(2)),
        ("modernbert-biases", "rope_parameters", rope(9e3, 310.0)),
        ("modernbert-biases", "rope_parameters", rope(8e3, 300.0)),
        ("modernbert-biases", "norm_bias", json!(false)),
        ("modernbert-biases", "mlp_bias", json!(false)),
        ("modernbert-biases", "attention_bias", json!(false)),
    ] {
        let dir = changed(name, "config.json", key, value);
        let encoder = Encoder::open(dir.path()).unwrap();
        let reference = reference(name);
        let worst = reference.ids.iter().zip(&reference.hidden).fold(0.0f32, |worst, (ids, expected)| {
            worst.max(difference(&encoder.hidden_rows(pool(), ids).unwrap(), expected))
        });
        eprintln!("{name} with another `{key}`: {worst:.4}");
        assert!(worst > 10.0 * MAX_DIFFERENCE_F32, "{name} with another `{key}`: {worst}");
    }
}

#[track_caller]
fn refuses(dir: &Path, message: &str) {
    let error = Encoder::open(dir).unwrap_err();
    let source = std::error::Error::source(&error).map_or_else(String::new, ToString::to_string);
    assert!(format!("{error}: {source}").contains(message), "`{error}: {source}` does not say `{message}`");
}

#[test]
fn settings_that_make_no_network_are_refused() {
    let set = |name: &str, key: &str, value: Value, message: &str| {
        refuses(changed(name, "config.json", key, value).path(), message);
    };
    set("bert", "model_type", json!("mpnet"), "`mpnet` is not supported: expected `bert`, `roberta`");
    set("bert", "model_type", Value::Null, "`model_type`: is missing");
    set("bert", "hidden_size", Value::Null, "missing field `hidden_size`");
    set("bert", "hidden_size", json!(-64), "invalid value");
    set("bert", "hidden_act", json!("gelu_new"), "`hidden_act`: `gelu_new` is not supported");
    set("bert", "position_embedding_type", json!("relative_key"), "`relative_key` is not supported");
    set("bert", "num_attention_heads", json!(8), "multiple of 16");
    set("bert", "num_attention_heads", json!(0), "0 is not between");
    set("bert", "num_hidden_layers", json!(3), "`encoder.layer.2.attention.output.LayerNorm.weight` is missing");
    set("bert", "max_position_embeddings", json!(1u64 << 40), "is not between 1 and");
    set("bert", "model_type", json!("distilbert"), "missing field `dim`");
    set("roberta", "pad_token_id", json!(161), "no position is left");
    set("roberta", "pad_token_id", json!(u64::MAX), "no position is left");
    set("distilbert", "activation", json!("relu"), "`relu` is not supported");
    set("modernbert", "hidden_activation", json!("silu"), "`silu` is not supported");
    set("modernbert", "global_attn_every_n_layers", json!(0), "0 is not between");
    set("modernbert", "global_rope_theta", json!(0.5), "no finite number from 1 on");
    set("modernbert", "local_attention", json!(1), "0 is not between");
    set("modernbert-biases", "layer_types", json!(["full_attention"]), "1 kinds for 4 layers");
    set("modernbert-biases", "layer_types", json!(["chunked"]), "`chunked` is not supported");
    let yarn = json!({"rope_type": "yarn", "rope_theta": 1e4});
    let rope = json!({"full_attention": yarn, "sliding_attention": yarn});
    set("modernbert-biases", "rope_parameters", rope, "`yarn` is not supported");
}

/// Steps that a folder asks for are followed or refused; none is left out silently.
#[test]
fn steps_are_followed_or_refused_by_name() {
    let step = |path: &str, kind: &str| json!({"idx": 0, "name": "", "path": path, "type": format!("sentence_transformers.models.{kind}")});
    let (network, pooling) = (step("", "Transformer"), step("1_Pooling", "Pooling"));
    let with = |steps: &[&Value]| {
        let dir = tempfile::tempdir().unwrap();
        copy(&golden("bert"), dir.path());
        fs::write(dir.path().join("modules.json"), json!(steps).to_string()).unwrap();
        dir
    };
    let refused = |steps: &[&Value], message: &str| refuses(with(steps).path(), message);
    refused(
        &[&network, &pooling, &step("2_LSTM", "LSTM")],
        "`sentence_transformers.models.LSTM` is not supported: expected Transformer",
    );
    refused(
        &[&network, &pooling, &step("2", "Normalize"), &step("2_Dense", "Dense")],
        "stands where it is not supported",
    );
    refused(&[&pooling, &network], "stands where it is not supported");
    refused(&[&network], "there is no Pooling");
    refused(&[], "there is no Transformer");
    refused(&[&step("../bert", "Transformer"), &pooling], "`../bert` is no folder in this one");
    refused(&[&step("/etc", "Transformer"), &pooling], "`/etc` is no folder in this one");
    refused(&[&network, &pooling, &step("2_Dense", "Dense")], "2_Dense/config.json");
    refused(&[&network; 17], "17 steps are more than 16");
    let same = |steps: &[&Value]| Encoder::open(with(steps).path()).unwrap().base().digest;
    let digest = Encoder::open(&golden("bert")).unwrap().base().digest;
    assert_eq!(same(&[&network, &pooling, &step("2", "Dropout")]), digest, "a step that does nothing");
    // The network may have a folder of its own.
    let dir = with(&[&step("0_Transformer", "Transformer"), &pooling]);
    copy(&golden("bert"), &dir.path().join("0_Transformer"));
    fs::remove_file(dir.path().join("config.json")).unwrap();
    let encoder = Encoder::open(dir.path()).unwrap();
    assert_eq!((encoder.base().digest, encoder.window_tokens()), (digest, 24));
}

#[test]
fn dense_steps_are_checked_and_named() {
    let dense = |key: &str, value: Value, message: &str| {
        refuses(changed("distilbert", "2_Dense/config.json", key, value).path(), message);
    };
    dense(
        "activation_function",
        json!("torch.nn.modules.activation.ReLU"),
        "ReLU` is not supported, only Identity and Tanh",
    );
    dense("in_features", json!(32), "`linear.weight` has shape [96, 64]");
    dense("out_features", json!(0), "0 is not between 1 and 65536");
    dense("bias", json!(true), "`linear.bias` is missing");
    dense("module_input_name", json!("token_embeddings"), "`token_embeddings` is not supported");
    let dir = tempfile::tempdir().unwrap();
    copy(&golden("distilbert"), dir.path());
    let mut steps = json_of(&dir.path().join("modules.json"));
    steps.as_array_mut().unwrap().remove(2);
    fs::write(dir.path().join("modules.json"), steps.to_string()).unwrap();
    refuses(dir.path(), "`in_features`: 96 elements go in, but there are 64");
    // Every way to a vector is another base.
    let plain = Encoder::open(&golden("distilbert")).unwrap();
    let digest = |dir: tempfile::TempDir| Encoder::open(dir.path()).unwrap().base().digest;
    let identity = json!("torch.nn.modules.linear.Identity");
    let others = [
        digest(changed("distilbert", "3_Dense/config.json", "activation_function", identity)),
        digest(changed("distilbert", "sentence_distilbert_config.json", "do_lower_case", json!(false))),
        Encoder::open_with(&golden("distilbert"), EncoderWeights::Int8).unwrap().base().digest,
    ];
    assert!(!others.contains(&plain.base().digest) && others[0] != others[1]);
    assert_eq!((plain.dim(), plain.window_tokens()), (32, 160));
}

#[test]
fn a_folder_says_how_long_a_window_is() {
    let tokens = |dir: tempfile::TempDir| Encoder::open(dir.path()).unwrap().window_tokens();
    assert_eq!(Encoder::open(&golden("bert")).unwrap().window_tokens(), 24);
    let window = |value: Value| changed("bert", "sentence_bert_config.json", "max_seq_length", value);
    assert_eq!(tokens(window(json!(1_000_000))), 160, "no longer than the network's positions");
    assert_eq!(tokens(window(Value::Null)), 160, "the default of 256, capped");
    refuses(window(json!(2)).path(), "a window of 2 tokens has no room for text");
    assert_eq!(Encoder::open(&golden("roberta")).unwrap().window_tokens(), 160, "two positions are the padding's");
    assert_eq!(tokens(changed("modernbert", "tokenizer_config.json", "model_max_length", json!(20))), 20);
    assert_eq!(tokens(changed("modernbert", "tokenizer_config.json", "model_max_length", json!(1e30))), 160);
}

macro_rules! families {
    ($($test:ident $name:literal)*) => {
        $(#[test]
        fn $test() {
            check($name);
        })*
    };
}

families! {
    bert "bert"
    roberta "roberta"
    xlm_roberta "xlm-roberta"
    distilbert "distilbert"
    modernbert "modernbert"
    modernbert_with_biases "modernbert-biases"
}
