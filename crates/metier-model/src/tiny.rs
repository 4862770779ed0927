//! Models small enough to be made in code: random weights, a real tokenizer, a real chat template.
//!
//! They answer nonsense, but every path of the engine can be tried on them in milliseconds: batches, stops, limits, tiers.

use half::f16;
use serde_json::json;

use safetensors::{Dtype, tensor::TensorView};

use crate::{
    arch::transformer::TransformerConfig,
    format::{TensorType, gguf::Value, gguf_write::GgufWriter},
    tokenizer::byte_of_char,
};

/// Elements of a hidden row.
pub const WIDTH: usize = 64;
/// Tokens of a context.
pub const CONTEXT: usize = 256;
const LAYERS: usize = 2;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const INNER: usize = 96;

const CHAT_TEMPLATE: &str = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] \
    + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// A Llama-type decoder as a GGUF file: 2 layers, 64 wide, 262 tokens, 256 positions; Q4_1 weights.
pub fn gguf(seed: u64) -> Vec<u8> {
    gguf_with(seed, TensorType::Q4_1)
}

/// The same with weights of another type.
///
/// # Panics
///
/// For types other than F32, F16, Q4_0, Q4_1 and Q8_0.
pub fn gguf_with(seed: u64, dtype: TensorType) -> Vec<u8> {
    gguf_of_layers(seed, dtype, &[0, 1])
}

/// The same network with only these of its two layers: what a specialist that keeps these layers must answer like.
///
/// # Panics
///
/// As [`gguf_with`].
pub fn gguf_of_layers(seed: u64, dtype: TensorType, kept: &[usize]) -> Vec<u8> {
    let mut random = Random(seed);
    let mut words: Vec<String> = byte_of_char().into_keys().map(String::from).collect();
    let merges = ["h e", "l l", "Ġ t"];
    words.extend(merges.iter().map(|merge| merge.replace(' ', "")));
    let mut kinds = vec![1; words.len()];
    words.extend(["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(String::from));
    kinds.resize(words.len(), 3);
    let vocabulary = words.len();
    let int = |n: usize| Value::Int(n as i64);
    let text = |text: &str| Value::Text(text.to_owned());
    let mut writer = GgufWriter::new()
        .metadata("general.architecture", text("llama"))
        .metadata("llama.block_count", int(kept.len()))
        .metadata("llama.context_length", int(CONTEXT))
        .metadata("llama.embedding_length", int(WIDTH))
        .metadata("llama.feed_forward_length", int(INNER))
        .metadata("llama.attention.head_count", int(HEADS))
        .metadata("llama.attention.head_count_kv", int(KV_HEADS))
        .metadata("llama.attention.layer_norm_rms_epsilon", Value::Float(1e-5))
        .metadata("llama.rope.freq_base", Value::Float(10_000.0))
        .metadata("llama.rope.dimension_count", int(WIDTH / HEADS))
        .metadata("tokenizer.ggml.model", text("gpt2"))
        .metadata("tokenizer.ggml.pre", text("smollm"))
        .metadata("tokenizer.ggml.bos_token_id", int(vocabulary - 2))
        .metadata("tokenizer.ggml.eos_token_id", int(vocabulary - 1))
        .metadata("tokenizer.ggml.tokens", Value::Texts(words))
        .metadata("tokenizer.ggml.token_type", Value::Ints(kinds))
        .metadata("tokenizer.ggml.merges", Value::Texts(merges.map(String::from).to_vec()))
        .metadata("tokenizer.chat_template", text(CHAT_TEMPLATE));
    // Layers that are left out are drawn too: the others stay what they are.
    let mut add = |name: &str, shape: &[usize], dtype: TensorType, scale: f32| {
        let bytes = random.weights(shape.iter().product(), dtype, scale);
        if name.is_empty() {
            return;
        }
        let shape: Vec<u64> = shape.iter().map(|d| *d as u64).collect();
        writer = std::mem::take(&mut writer).tensor(name, &shape, dtype, bytes);
    };
    let head_dim = WIDTH / HEADS;
    add(
        "token_embd.weight",
        &[vocabulary, WIDTH],
        if dtype == TensorType::Q4_1 { TensorType::Q8_0 } else { dtype },
        1.0,
    );
    add("output_norm.weight", &[WIDTH], TensorType::F32, 1.0);
    for i in 0..LAYERS {
        let place = kept.iter().position(|layer| *layer == i);
        let name = |part: &str| place.map_or_else(String::new, |at| format!("blk.{at}.{part}.weight"));
        add(&name("attn_norm"), &[WIDTH], TensorType::F32, 1.0);
        add(&name("ffn_norm"), &[WIDTH], TensorType::F32, 1.0);
        add(&name("attn_q"), &[HEADS * head_dim, WIDTH], dtype, 0.3);
        add(&name("attn_k"), &[KV_HEADS * head_dim, WIDTH], dtype, 0.3);
        add(&name("attn_v"), &[KV_HEADS * head_dim, WIDTH], dtype, 0.3);
        add(&name("attn_output"), &[WIDTH, HEADS * head_dim], dtype, 0.3);
        add(&name("ffn_gate"), &[INNER, WIDTH], dtype, 0.3);
        add(&name("ffn_up"), &[INNER, WIDTH], dtype, 0.3);
        add(&name("ffn_down"), &[WIDTH, INNER], dtype, 0.3);
    }
    writer.finish()
}

/// PEFT's two files of an adapter over a base: `adapter_config.json` and `adapter_model.safetensors` (f16).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterFiles {
    /// `adapter_config.json`.
    pub config: String,
    /// `adapter_model.safetensors`.
    pub weights: Vec<u8>,
}

/// A random adapter over a base: on the maps `targets` (such as `q_proj`; all seven where empty) of all layers, α = 2 · rank. Its
/// deltas are about `strength` times as large as the input's rows.
///
/// # Panics
///
/// Where the base has no rows.
pub fn adapter(base: &TransformerConfig, seed: u64, rank: usize, targets: &[&str], strength: f32) -> AdapterFiles {
    let mut random = Random(seed ^ 0x5eed_ada9);
    let (q, kv) = (base.heads * base.head_dim, base.kv_heads * base.head_dim);
    let maps = [
        ("self_attn.q_proj", base.width, q),
        ("self_attn.k_proj", base.width, kv),
        ("self_attn.v_proj", base.width, kv),
        ("self_attn.o_proj", q, base.width),
        ("mlp.gate_proj", base.width, base.inner),
        ("mlp.up_proj", base.width, base.inner),
        ("mlp.down_proj", base.inner, base.width),
    ];
    let adapted = |map: &str| targets.is_empty() || targets.iter().any(|target| map.ends_with(target));
    let mut tensors = Vec::new();
    for layer in 0..base.layers {
        for (map, k, n) in maps.iter().filter(|(map, ..)| adapted(map)) {
            // Elements of variance 1/3: A·x is as large as x, B·(A·x) as large as `strength` says.
            let a = random.weights(rank * k, TensorType::F16, (3.0 / *k as f32).sqrt());
            let b = random.weights(n * rank, TensorType::F16, strength / 2.0 * (3.0 / rank as f32).sqrt());
            let name = |half: &str| format!("base_model.model.model.layers.{layer}.{map}.lora_{half}.weight");
            tensors.push((name("A"), vec![rank, *k], a));
            tensors.push((name("B"), vec![*n, rank], b));
        }
    }
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::F16, shape.clone(), bytes).expect("two bytes an element");
        (name.as_str(), view)
    });
    let weights = safetensors::serialize(views, None).expect("names and shapes fit into a header");
    let targets = serde_json::json!(targets);
    let config = serde_json::json!({
        "peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "bias": "none", "target_modules": targets,
    });
    AdapterFiles { config: config.to_string(), weights }
}

/// Writes a folder that [`Encoder::open`](crate::Encoder::open) reads: a BERT of random weights, 32 wide with two heads, windows of
/// 32 tokens, whose vocabulary is `words` behind the four special tokens.
///
/// # Errors
///
/// Where a file cannot be written.
pub fn bert_folder(dir: &std::path::Path, words: &[&str], layers: usize, seed: u64) -> std::io::Result<()> {
    const WIDTH: usize = 32;
    const INNER: usize = 48;
    const POSITIONS: usize = 32;
    let words: Vec<&str> = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"].into_iter().chain(words.iter().copied()).collect();
    let config = json!({
        "model_type": "bert", "hidden_size": WIDTH, "num_hidden_layers": layers, "num_attention_heads": 2,
        "intermediate_size": INNER, "vocab_size": words.len(), "max_position_embeddings": POSITIONS, "type_vocab_size": 2,
        "layer_norm_eps": 1e-12, "hidden_act": "gelu",
    });
    let special = |id: usize| {
        json!({"id": id, "content": words[id], "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true})
    };
    let piece = |id: &str| json!({"SpecialToken": {"id": id, "type_id": 0}});
    let vocabulary: serde_json::Map<String, serde_json::Value> =
        words.iter().enumerate().map(|(i, word)| ((*word).to_owned(), i.into())).collect();
    let tokenizer = json!({
        "version": "1.0", "padding": null, "added_tokens": [special(0), special(1), special(2), special(3)],
        "truncation": null,
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null,
            "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [piece("[CLS]"), {"Sequence": {"id": "A", "type_id": 0}}, piece("[SEP]")],
            "pair": [piece("[CLS]"), {"Sequence": {"id": "A", "type_id": 0}}, piece("[SEP]"),
                {"Sequence": {"id": "B", "type_id": 1}}, {"SpecialToken": {"id": "[SEP]", "type_id": 1}}],
            "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]},
                "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}}},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocabulary},
    });
    let mut shapes: Vec<(String, Vec<usize>)> = vec![
        ("embeddings.word_embeddings.weight".into(), vec![words.len(), WIDTH]),
        ("embeddings.position_embeddings.weight".into(), vec![POSITIONS, WIDTH]),
        ("embeddings.token_type_embeddings.weight".into(), vec![2, WIDTH]),
        ("embeddings.LayerNorm.weight".into(), vec![WIDTH]),
        ("embeddings.LayerNorm.bias".into(), vec![WIDTH]),
    ];
    for layer in 0..layers {
        for (name, n, k) in [
            ("attention.self.query", WIDTH, WIDTH),
            ("attention.self.key", WIDTH, WIDTH),
            ("attention.self.value", WIDTH, WIDTH),
            ("attention.output.dense", WIDTH, WIDTH),
            ("intermediate.dense", INNER, WIDTH),
            ("output.dense", WIDTH, INNER),
        ] {
            shapes.push((format!("encoder.layer.{layer}.{name}.weight"), vec![n, k]));
            shapes.push((format!("encoder.layer.{layer}.{name}.bias"), vec![n]));
        }
        for name in ["attention.output.LayerNorm", "output.LayerNorm"] {
            shapes.push((format!("encoder.layer.{layer}.{name}.weight"), vec![WIDTH]));
            shapes.push((format!("encoder.layer.{layer}.{name}.bias"), vec![WIDTH]));
        }
    }
    let mut random = Random(seed);
    let data: Vec<(String, Vec<usize>, Vec<u8>)> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let is_norm = name.ends_with("LayerNorm.weight");
            // Weights of a size that trained networks have: rows keep their length from map to map.
            let (middle, spread) = if is_norm { (1.0, 0.2) } else { (0.0, 1.5 / (WIDTH as f32).sqrt()) };
            let values = (0..shape.iter().product()).map(|_| middle + spread * random.unit());
            (name, shape, values.flat_map(f32::to_le_bytes).collect())
        })
        .collect();
    let views = data.iter().map(|(name, shape, bytes)| {
        (name, TensorView::new(Dtype::F32, shape.clone(), bytes).expect("shapes fit their bytes"))
    });
    let weights = safetensors::serialize(views, None).expect("shapes fit their bytes");
    std::fs::write(dir.join("config.json"), config.to_string())?;
    std::fs::write(dir.join("tokenizer.json"), tokenizer.to_string())?;
    std::fs::write(dir.join("model.safetensors"), weights)
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// −1 … 1.
    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn weights(&mut self, n: usize, dtype: TensorType, scale: f32) -> Vec<u8> {
        let mut out = Vec::new();
        let half = |x: f32| f16::from_f32(x).to_le_bytes();
        match dtype {
            TensorType::F32 => (0..n).for_each(|_| out.extend((self.unit() * scale).to_le_bytes())),
            TensorType::F16 => (0..n).for_each(|_| out.extend(half(self.unit() * scale))),
            TensorType::Q4_0 | TensorType::Q4_1 | TensorType::Q8_0 => {
                for _ in 0..n / 32 {
                    let quants = if dtype == TensorType::Q8_0 { 32 } else { 16 };
                    let step = if dtype == TensorType::Q8_0 { 127.0 } else { 8.0 };
                    out.extend(half(scale / step));
                    if dtype == TensorType::Q4_1 {
                        out.extend(half(-scale));
                    }
                    out.extend((0..quants).map(|_| self.next() as u8));
                }
            }
            other => panic!("tiny models have no {other} weights"),
        }
        out
    }
}
