//! Does a decoder from a folder of Hugging Face's kind compute what Transformers computes from that folder? The tiny networks of
//! `architectures.rs`, as Transformers saved them; `goldens/make_goldens.py` read them back and got the same bits.
//!
//! Every test of logits prints what it measured (`--nocapture`).

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests; they print what they measured")]

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use metier_kernels::{Pool, Tier};
use metier_model::{
    Decoder, TokenId, arch::transformer::WeightFormat, chat::ChatMessage, decoder::DecoderOptions, sample::argmax,
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// As in `architectures.rs`.
const MAX_DIFFERENCE_F32: f32 = 1e-4;
/// As in `architectures.rs`.
const MAX_DIFFERENCE_INT8: f32 = 0.1;
const VOCABULARY: usize = 260;
/// Ids of the golden files.
const LEN: usize = 40;
/// Ids of `phi4-long.f32`.
const LONG_LEN: usize = 100;

fn goldens() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/goldens")
}

fn folder(name: &str) -> PathBuf {
    goldens().join("folders").join(name)
}

fn pool() -> &'static Pool {
    static POOL: OnceLock<Pool> = OnceLock::new();
    POOL.get_or_init(|| Pool::new(2, Tier::detect()))
}

fn ids(len: usize) -> Vec<TokenId> {
    (0..len).map(|i| TokenId(((i * 73 + i * i * 11 + 5) % VOCABULARY) as u32)).collect()
}

fn reference(file: &str, len: usize) -> Vec<Vec<f32>> {
    let bytes = fs::read(goldens().join(file)).unwrap();
    let floats: Vec<f32> = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    assert_eq!(floats.len(), len * VOCABULARY);
    floats.chunks_exact(VOCABULARY).map(<[f32]>::to_vec).collect()
}

fn worst(got: &[Vec<f32>], expected: &[Vec<f32>]) -> f32 {
    let pairs = got.iter().flatten().zip(expected.iter().flatten());
    pairs.fold(0.0f32, |worst, (a, b)| worst.max((a - b).abs()))
}

#[track_caller]
fn check(name: &str) {
    let expected = reference(&format!("{name}.f32"), LEN);
    let logits = |weights| Decoder::open(&folder(name), weights).unwrap().logits(pool(), &ids(LEN)).unwrap();
    let got = logits(WeightFormat::F32);
    for (t, (got, expected)) in got.iter().zip(&expected).enumerate() {
        assert_eq!(argmax(got), argmax(expected), "{name}: most probable token after {t}");
    }
    let worst = worst(&got, &expected);
    let int8 = logits(WeightFormat::Int8);
    let pairs = || int8.iter().flatten().zip(expected.iter().flatten());
    let squares: f32 = pairs().map(|(a, b)| (a - b) * (a - b)).sum();
    let share = (squares / pairs().map(|(_, b)| b * b).sum::<f32>()).sqrt();
    eprintln!("{name}: largest difference of a logit {worst:.2e} in f32; int8 is off by {share:.4} of the deviation");
    assert!(worst <= MAX_DIFFERENCE_F32, "{name}: {worst}");
    assert!(share <= MAX_DIFFERENCE_INT8, "{name} in int8: {share}");
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

/// A copy of a folder, to be damaged.
struct Copy(TempDir);

impl Copy {
    fn of(name: &str) -> Self {
        let copy = Self(TempDir::new().unwrap());
        for entry in fs::read_dir(folder(name)).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), copy.path(entry.file_name().to_str().unwrap())).unwrap();
        }
        copy
    }

    fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }

    fn edit(self, file: &str, change: impl FnOnce(&mut Value)) -> Self {
        let mut document: Value = serde_json::from_slice(&fs::read(self.path(file)).unwrap()).unwrap();
        change(&mut document);
        self.write(file, document.to_string().as_bytes())
    }

    /// With another value of a setting of `config.json`.
    fn set(self, key: &str, value: Value) -> Self {
        self.edit("config.json", |config| config[key] = value)
    }

    fn without(self, key: &str) -> Self {
        self.edit("config.json", |config| {
            config.as_object_mut().unwrap().remove(key);
        })
    }

    fn write(self, file: &str, bytes: &[u8]) -> Self {
        fs::write(self.path(file), bytes).unwrap();
        self
    }

    fn remove(self, file: &str) -> Self {
        fs::remove_file(self.path(file)).unwrap();
        self
    }

    fn open(&self) -> Result<Decoder, metier_model::DecoderError> {
        Decoder::open(self.0.path(), WeightFormat::F32)
    }

    fn logits(&self) -> Vec<Vec<f32>> {
        self.open().unwrap().logits(pool(), &ids(LEN)).unwrap()
    }

    #[track_caller]
    fn is_refused(&self, message: &str) {
        let error = self.open().unwrap_err();
        let source = error.source().map_or_else(String::new, ToString::to_string);
        let told = format!("{error}: {source}");
        assert!(told.contains(message), "`{told}` does not say `{message}`");
    }
}

fn phi4_angles() -> Value {
    let config: Value = serde_json::from_slice(&fs::read(folder("phi4").join("config.json")).unwrap()).unwrap();
    config["rope_parameters"].clone()
}

/// Files of Transformers 4 say the same in other words.
#[test]
fn settings_of_the_older_generation_are_read() {
    let same = |name: &str, copy: Copy| {
        let expected = Decoder::open(&folder(name), WeightFormat::F32).unwrap().logits(pool(), &ids(LEN)).unwrap();
        assert_eq!(copy.logits(), expected, "{name}");
    };
    same("llama", Copy::of("llama").without("rope_parameters").set("rope_theta", json!(1e4)));
    same("llama", Copy::of("llama").without("rope_parameters").set("rope_scaling", Value::Null));
    let scaling = json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64});
    let older = Copy::of("llama3").without("rope_parameters").set("rope_theta", json!(500_000));
    same("llama3", older.set("rope_scaling", scaling));
    let older = Copy::of("gemma3").without("rope_parameters").without("layer_types").set("rope_theta", json!(1e6));
    let older = older.set("rope_local_base_freq", json!(1e4)).set("sliding_window_pattern", json!(6));
    same("gemma3", older.set("rope_scaling", json!({"type": "linear", "factor": 4.0})));
    let (mut scaling, older) = (phi4_angles(), Copy::of("phi4").without("rope_parameters"));
    for gone in ["rope_theta", "partial_rotary_factor", "original_max_position_embeddings", "rope_type"] {
        scaling.as_object_mut().unwrap().remove(gone);
    }
    scaling["type"] = json!("longrope");
    same("phi4", older.set("rope_theta", json!(1e4)).set("rope_scaling", scaling));
    same("smollm3", Copy::of("smollm3").without("no_rope_layers").without("layer_types"));
}

/// The comparison sees what it is there to see: each setting, changed a little, moves a logit well beyond the tolerance.
#[test]
fn a_wrong_setting_does_not_pass() {
    let angles = |value: Value| move |config: &mut Value| merge(&mut config["rope_parameters"], value);
    let check = |name: &str, what: &str, copy: Copy| {
        let worst = worst(&copy.logits(), &reference(&format!("{name}.f32"), LEN));
        eprintln!("{name} with another {what}: {worst:.3}");
        assert!(worst > 10.0 * MAX_DIFFERENCE_F32, "{name} with another {what}: {worst}");
    };
    let changed = |name: &str, value: Value| Copy::of(name).edit("config.json", angles(value));
    check("llama", "base", changed("llama", json!({"rope_theta": 12_000.0})));
    check("llama3", "factor", changed("llama3", json!({"factor": 7.0})));
    check("llama3", "high factor", changed("llama3", json!({"high_freq_factor": 3.0})));
    check("mistral", "window", Copy::of("mistral").set("sliding_window", json!(9)));
    check("gemma3", "window", Copy::of("gemma3").set("sliding_window", json!(9)));
    check("gemma3", "scalar", Copy::of("gemma3").set("query_pre_attn_scalar", json!(16)));
    check("gemma3", "factor", changed("gemma3", json!({"full_attention": {"factor": 3.0}})));
    check("gemma3", "base of windows", changed("gemma3", json!({"sliding_attention": {"rope_theta": 12_000.0}})));
    check(
        "phi4",
        "share that is turned",
        Copy::of("phi4").edit("config.json", |config| {
            config["partial_rotary_factor"] = json!(1.0);
            let full: Vec<f64> = (0..16).map(|i| 1.0 + 0.05 * f64::from(i)).collect();
            merge(
                &mut config["rope_parameters"],
                json!({"partial_rotary_factor": 1.0, "short_factor": full, "long_factor": full}),
            );
        }),
    );
    check("phi4", "length", Copy::of("phi4").set("max_position_embeddings", json!(1024)));
    check("smollm3", "layers that are not turned", Copy::of("smollm3").set("no_rope_layers", json!([1, 1, 0, 1])));
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            from.into_iter().for_each(|(key, value)| merge(&mut into[&key], value));
        }
        (into, from) => *into = from,
    }
}

#[test]
fn settings_that_make_no_network_are_refused() {
    let set = |name: &str, key: &str, value: Value, message: &str| Copy::of(name).set(key, value).is_refused(message);
    set("llama", "model_type", json!("mamba"), "`mamba` is not supported, only `llama`, `mistral`, `smollm3`, `qwen2`");
    set("llama", "num_attention_heads", json!(0), "`num_attention_heads`: 0 is not between");
    set("llama", "num_key_value_heads", json!(3), "each key head serves as many heads");
    set("llama", "hidden_size", json!(1u64 << 40), "`hidden_size`: 1099511627776 is not between 1 and 65536");
    set("llama", "hidden_size", json!("64"), "`hidden_size`: is no count");
    set("llama", "num_hidden_layers", json!(3), "`model.layers.2.input_layernorm.weight` is missing");
    set("llama", "num_hidden_layers", json!(1), "`model.layers.1.input_layernorm.weight`, which is no part");
    set("llama", "intermediate_size", json!(64), "has shape");
    set("llama", "vocab_size", json!(259), "259 rows for the tokenizer's 260 tokens");
    set("llama", "vocab_size", json!(261), "`model.embed_tokens.weight` has shape");
    set("llama", "vocab_size", json!(-1), "`vocab_size`: is missing or no count");
    set("llama", "hidden_act", json!("relu"), "`relu` is not supported, only `silu`");
    set("llama", "tie_word_embeddings", json!(false), "`lm_head.weight` is missing");
    set("llama3", "tie_word_embeddings", json!(true), "`lm_head.weight` is another tensor");
    set("llama", "quantization_config", json!({"bits": 4}), "`quantization_config`: is not supported");
    set("llama", "rope_parameters", json!({"rope_type": "yarn", "factor": 4.0}), "`yarn` is not supported, only");
    set("llama", "rope_parameters", json!({"rope_theta": -1.0}), "`rope_theta`: -1.0 is no finite number above 0");
    set("llama", "rope_parameters", json!({"rope_theta": 0.5}), "`rope_theta`: 0.5 is below 1");
    set("llama", "partial_rotary_factor", json!(0.5), "`partial_rotary_factor`: 0.5 is not supported");
    set("llama", "rms_norm_eps", Value::Null, "`rms_norm_eps`: is missing");
    let windowed = Copy::of("qwen2").set("use_sliding_window", json!(true)).set("sliding_window", json!(8));
    windowed.without("layer_types").is_refused("`use_sliding_window`: is not supported without `layer_types`");
    set("smollm3", "no_rope_layers", json!([1, 1, 1]), "`no_rope_layers`: is no list of 4 values");
    set("smollm3", "no_rope_layers", json!([0, 1, 1, 0]), "no regular way");
    set("gemma3", "layer_types", json!(vec!["chunked_attention"; 6]), "which is not supported");
    set("gemma3", "final_logit_softcapping", json!(30.0), "`final_logit_softcapping`: is not supported");
    set("gemma3", "use_bidirectional_attention", json!(true), "is not supported");
    set("phi4", "partial_rotary_factor", json!("x"), "is no finite number above 0");
    Copy::of("phi4")
        .edit("config.json", |config| {
            config["rope_parameters"]["short_factor"] = json!([1.0, 2.0]);
        })
        .is_refused("`short_factor`: holds 2 factors for 12 pairs");
    Copy::of("phi4")
        .edit("config.json", |config| {
            config["rope_parameters"]["long_factor"][3] = json!(-1.0);
        })
        .is_refused("`long_factor`: is no list of finite numbers above 0");
    Copy::of("llama").write("config.json", b"[1, 2]").is_refused("is no object");
    Copy::of("llama").write("config.json", b"{").is_refused("cannot parse");
    Copy::of("llama").write("config.json", &vec![b' '; (1 << 20) + 1]).is_refused("the limit is 1048576");
}

#[test]
fn files_that_do_not_belong_together_are_refused() {
    let index = "model.safetensors.index.json";
    let parts = |file: Value| Copy::of("qwen3").edit(index, |index| index["weight_map"]["model.norm.weight"] = file);
    for outside in [
        "../model.safetensors",
        "/etc/model.safetensors",
        "a/b.safetensors",
        "a\\b.safetensors",
        ".",
        "..",
        "",
        "config.json",
        "C:x.safetensors",
    ] {
        parts(json!(outside)).is_refused("`model.norm.weight` is in");
    }
    parts(json!(7)).is_refused("which is no file of the folder");
    parts(json!("other.safetensors"))
        .is_refused("holds no `other.safetensors`, which `model.safetensors.index.json` names");
    parts(json!("model-00001-of-00003.safetensors"))
        .is_refused("model-00001-of-00003.safetensors` does not hold `model.norm.weight`");
    Copy::of("qwen3")
        .edit(index, |index| {
            index["weight_map"].as_object_mut().unwrap().remove("model.norm.weight");
        })
        .is_refused("holds `model.norm.weight`, which `model.safetensors.index.json` does not name");
    Copy::of("qwen3")
        .remove("model-00002-of-00003.safetensors")
        .is_refused("holds no `model-00002-of-00003.safetensors`");
    let twice = Copy::of("qwen3");
    fs::copy(twice.path("model-00001-of-00003.safetensors"), twice.path("model-00002-of-00003.safetensors")).unwrap();
    twice.is_refused("too");
    Copy::of("qwen3").write(index, b"{}").is_refused("has no object `weight_map`");
    Copy::of("qwen3").write(index, br#"{"weight_map": {}}"#).is_refused("names 0 files");
    Copy::of("qwen3").remove(index).is_refused("holds neither `model.safetensors` nor");
    Copy::of("llama").remove("config.json").is_refused("holds no `config.json`");
    Copy::of("llama").remove("tokenizer.json").is_refused("holds no `tokenizer.json`");
    let bytes = fs::read(folder("llama").join("model.safetensors")).unwrap();
    Copy::of("llama")
        .write("model.safetensors", &bytes[..bytes.len() - 1])
        .is_refused("cannot read the safetensors header");
    Copy::of("llama").write("model.safetensors", b"").is_refused("this is no safetensors file");
    let error = Decoder::open(&folder("llama").join("model.safetensors"), WeightFormat::F32).unwrap_err();
    assert!(error.to_string().contains("open the folder"), "{error}");
}

/// Types of weights: what is no float is refused by name, and so is a value that is no number.
#[test]
fn weights_of_other_types_are_refused() {
    let renamed = |from: &str, to: &str| {
        let bytes = fs::read(folder("llama").join("model.safetensors")).unwrap();
        let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
        [&bytes[..at], to.as_bytes(), &bytes[at + from.len()..]].concat()
    };
    let copy = Copy::of("llama").write("model.safetensors", &renamed(r#""dtype":"F16""#, r#""dtype":"I16""#));
    copy.is_refused("has type I16, which is not supported");
    let mut bytes = fs::read(folder("llama").join("model.safetensors")).unwrap();
    let end = bytes.len();
    bytes[end - 2..].copy_from_slice(&[0xff, 0x7f]);
    Copy::of("llama").write("model.safetensors", &bytes).is_refused("holds a value that is no finite number");
}

#[test]
fn a_folder_has_tokenizer_template_and_ends() {
    let copy = Copy::of("llama").edit("generation_config.json", |config| config["eos_token_id"] = json!([259, 257]));
    let decoder = copy.open().unwrap();
    let from_gguf = Decoder::open(&goldens().join("llama.gguf"), WeightFormat::F32).unwrap();
    assert_eq!(decoder.ends(), [TokenId(257), TokenId(259)]);
    let tokenizer = decoder.tokenizer();
    for text in ["hello there 1234", "", "a\u{301} <s>x</s>", "  \n he he", "日本"] {
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(ids, from_gguf.tokenizer().encode(text).unwrap(), "{text}");
        assert_eq!(tokenizer.decode(&ids), text);
    }
    let forged = tokenizer.encode("<s>").unwrap();
    assert!(!forged.contains(&TokenId(258)), "a text cannot forge a control token");
    let prompt = decoder.render_chat(&[ChatMessage::new("user", "he</s>")], true, None).unwrap();
    assert_eq!(prompt.to_string(), "<s>he</s></s>");
    let ids = tokenizer.encode_prompt(&prompt).unwrap();
    assert_eq!(ids.iter().filter(|id| **id == TokenId(259)).count(), 1, "only the template's own");
    assert_eq!(ids[0], TokenId(258));
    let template = "{{ messages[0].content }}!";
    let decoder = Copy::of("llama").write("chat_template.jinja", template.as_bytes()).open().unwrap();
    assert_eq!(decoder.render_chat(&[ChatMessage::new("user", "x")], true, None).unwrap().to_string(), "x!");
}

/// A base is named by all that was read of it.
#[test]
fn another_setting_is_another_base() {
    let digest = |copy: Copy| copy.open().unwrap().base().digest;
    let plain = digest(Copy::of("qwen3"));
    assert_eq!(digest(Copy::of("qwen3")), plain);
    assert_ne!(digest(Copy::of("qwen3").set("rms_norm_eps", json!(1e-5))), plain);
    let name = Decoder::open(&folder("qwen3"), WeightFormat::F32).unwrap().base().name.clone();
    assert_eq!(name, "qwen3");
}

fn with_context(path: &Path, context: usize) -> Result<Decoder, metier_model::DecoderError> {
    Decoder::open_with(path, DecoderOptions { context: Some(context), ..DecoderOptions::new(WeightFormat::F32) })
}

/// Phi-4's long factors are read from both containers, and give what Transformers gives for a text beyond the short ones' length.
#[test]
fn long_texts_have_factors_of_their_own() {
    let expected = reference("phi4-long.f32", LONG_LEN);
    for path in [folder("phi4"), goldens().join("phi4.gguf")] {
        let decoder = with_context(&path, 128).unwrap();
        assert_eq!(decoder.context_len(), 128);
        let got = decoder.logits(pool(), &ids(LONG_LEN)).unwrap();
        let long = worst(&got, &expected);
        eprintln!("phi4 beyond its original context: {long:.2e}");
        assert!(long <= MAX_DIFFERENCE_F32, "{long}");
        for (got, expected) in got.iter().zip(&expected) {
            assert_eq!(argmax(got), argmax(expected));
        }
        // Up to the original length the short factors count, and no longer text is taken.
        let short = with_context(&path, 64).unwrap();
        assert!(worst(&short.logits(pool(), &ids(LEN)).unwrap(), &reference("phi4.f32", LEN)) <= MAX_DIFFERENCE_F32);
        assert!(short.logits(pool(), &ids(65)).unwrap_err().to_string().contains("do not fit into the context of 64"));
        assert_eq!(Decoder::open(&path, WeightFormat::F32).unwrap().context_len(), 64);
        for beyond in [0, 129] {
            let error = with_context(&path, beyond).unwrap_err();
            let source = error.source().unwrap().to_string();
            assert!(source.contains("tokens of context are wanted, the network reads 1 to 128"), "{source}");
        }
    }
    assert_eq!(with_context(&folder("llama"), 100).unwrap().context_len(), 100);
}
