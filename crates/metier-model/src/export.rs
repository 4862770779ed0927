//! How does a decoder with its adapter leave for other programs? ([`classifier`]: a head on an encoder.)
//!
//! **Question:** which files say the same to Transformers and llama.cpp? **In:** a decoder's plain weights, an adapter's files, the GGUF that the
//! decoder was read from. **Out:** weights with the deltas added: a folder of Hugging Face's kind, or a GGUF file. **Absent:** folders and
//! checks: who exports reads the files again and compares answers before it calls them good.
//!
//! ```text
//! W' = W + (alpha / r) · B·A     then rounded to IEEE halves; norms stay f32
//! ```
//!
//! Everything but tensors is copied from the base's GGUF as it stands there, byte by byte: other programs ask for types of metadata that ours
//! does not tell apart.

pub mod classifier;

use serde_json::{Map, Value, json};

use crate::{
    arch::transformer::{Activation, PlainLayer, PlainTransformer, RopePairs, TransformerConfig},
    encoder::EncoderError,
    format::{FormatError, Gguf, Safetensors, Tensor, TensorInfo, TensorType, gguf::Value as Entry},
};

/// PEFT's names of the maps, and the matrix of a layer that each is a delta of.
const MAPS: [(&str, &str); 7] = [
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];
/// GGUF's number for "mostly f16".
const FILE_TYPE_F16: u32 = 1;
/// Likewise Q4_0 and Q4_1.
const FILE_TYPE_Q4_0: u32 = 2;
const FILE_TYPE_Q4_1: u32 = 3;
/// Weights of a block of Q8_0.
const Q8_0_BLOCK: usize = 32;

/// A decoder cannot leave in this form.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// A file cannot be read.
    #[error("cannot read the files of the adapter or of the base")]
    Format(#[from] FormatError),
    /// The encoder cannot be read again, or cannot read a text.
    #[error(transparent)]
    Encoder(#[from] EncoderError),
    /// The adapter's settings are not those that this version writes.
    #[error("the adapter's settings lack `{0}`")]
    Settings(&'static str),
    /// A delta has another shape than its map.
    #[error("the adapter's `{0}` does not fit the base")]
    Shape(String),
    /// The base has what the other form cannot say, or what this version does not know how to say there.
    #[error("the base has {0}, which cannot be written in this form yet")]
    Unsupported(String),
}

fn map_of(layer: &mut PlainLayer, map: usize) -> &mut Vec<f32> {
    let PlainLayer { q, k, v, output, gate, up, down, .. } = layer;
    [q, k, v, output, gate, up, down].into_iter().nth(map).expect("one of seven")
}

/// Adds an adapter's deltas to the weights.
///
/// # Errors
///
/// Where the files are not those of an adapter of this base.
pub fn merge(plain: &mut PlainTransformer, config: &str, weights: &[u8]) -> Result<(), ExportError> {
    let settings: Value = serde_json::from_str(config).map_err(|_| ExportError::Settings("r"))?;
    let r = settings["r"].as_u64().ok_or(ExportError::Settings("r"))? as usize;
    let alpha = settings["lora_alpha"].as_f64().ok_or(ExportError::Settings("lora_alpha"))?;
    let scale = (alpha / r.max(1) as f64) as f32;
    let file = Safetensors::parse(weights)?;
    for (i, layer) in plain.layers.iter_mut().enumerate() {
        for (map, (name, _)) in MAPS.iter().enumerate() {
            let name = |part: &str| format!("base_model.model.model.layers.{i}.{name}.lora_{part}.weight");
            let read = |part: &str| -> Result<Option<Vec<f32>>, ExportError> {
                Ok(crate::adapter::values(&file, weights, &name(part)).transpose()?)
            };
            let (Some(a), Some(b)) = (read("A")?, read("B")?) else { continue };
            let w = map_of(layer, map);
            let (k, n) = (a.len() / r.max(1), b.len() / r.max(1));
            if a.len() != k * r || b.len() != n * r || w.len() != n * k || r == 0 {
                return Err(ExportError::Shape(name("A")));
            }
            for (row, b) in w.chunks_exact_mut(k).zip(b.chunks_exact(r)) {
                for (b, a) in b.iter().zip(a.chunks_exact(k)) {
                    let factor = scale * b;
                    row.iter_mut().zip(a).for_each(|(w, a)| *w += factor * a);
                }
            }
        }
    }
    Ok(())
}

/// The base's GGUF with these weights in its tensors' places, in halves; norms in f32.
///
/// # Errors
///
/// Where the file is no whole GGUF of this network.
pub fn gguf(base: &[u8], plain: &PlainTransformer) -> Result<Vec<u8>, ExportError> {
    write(base, FILE_TYPE_F16, |name, info, _| {
        let values = numbers(name, plain).ok_or_else(|| ExportError::Unsupported(format!("a tensor `{name}`")))?;
        if values.len() != info.shape.iter().product::<usize>() {
            return Err(ExportError::Shape(name.to_owned()));
        }
        Ok(if info.shape.len() < 2 {
            (TensorType::F32, values.iter().flat_map(|x| x.to_le_bytes()).collect())
        } else {
            (TensorType::F16, values.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect())
        })
    })
}

/// Blocks of 4 bits of every layer's seven maps, in the order of PEFT's names of them.
pub type Blocks = [Vec<u8>; 7];

/// The base's GGUF with blocks of 4 bits in its maps' places (`dtype`: [`TensorType::Q4_0`] or [`TensorType::Q4_1`]), its tables in 8 bits where
/// they had more, and everything else as it was. `config` is the base's; rows of `layers` are in the order of [`PlainTransformer`].
///
/// # Errors
///
/// Where the file is no whole GGUF of this network.
pub fn gguf_of_blocks(
    base: &[u8],
    config: &TransformerConfig,
    layers: &[Blocks],
    dtype: TensorType,
) -> Result<Vec<u8>, ExportError> {
    let file_type = if dtype == TensorType::Q4_0 { FILE_TYPE_Q4_0 } else { FILE_TYPE_Q4_1 };
    write(base, file_type, |name, info, bytes| {
        if let Some(blocks) = blocks_of(name, config, layers) {
            return match dtype.bytes_of(info.shape.iter().product()) {
                Some(expected) if expected == blocks.len() => Ok((dtype, blocks)),
                _ => Err(ExportError::Shape(name.to_owned())),
            };
        }
        let is_table = ["token_embd.weight", "output.weight"].contains(&name);
        match info.dtype {
            TensorType::F32 | TensorType::F16 | TensorType::Bf16
                if is_table && info.shape.last().is_some_and(|width| width.is_multiple_of(Q8_0_BLOCK)) =>
            {
                let values = Tensor { name, dtype: info.dtype, shape: &info.shape, bytes }.to_f32()?;
                Ok((TensorType::Q8_0, values.chunks_exact(Q8_0_BLOCK).flat_map(q8_0).collect()))
            }
            dtype => Ok((dtype, bytes.to_vec())),
        }
    })
}

/// A block of Q8_0: scale = max|w| / 127, quants to nearest.
fn q8_0(weights: &[f32]) -> Vec<u8> {
    let scale = half::f16::from_f32(weights.iter().fold(0.0f32, |max, w| max.max(w.abs())) / 127.0);
    let inverse = if scale.to_f32() > 0.0 { 1.0 / scale.to_f32() } else { 0.0 };
    let quant = |w: &f32| ((w * inverse).round_ties_even().clamp(-127.0, 127.0) as i8).cast_unsigned();
    scale.to_le_bytes().into_iter().chain(weights.iter().map(quant)).collect()
}

/// A map's blocks by GGUF's name, in the order in which GGUF has its rows.
fn blocks_of(name: &str, config: &TransformerConfig, layers: &[Blocks]) -> Option<Vec<u8>> {
    let (i, part) = name.strip_prefix("blk.")?.split_once('.')?;
    let map = MAPS.iter().position(|(_, map)| part.strip_suffix(".weight") == Some(map))?;
    let blocks = &layers.get(i.parse::<usize>().ok()?)?[map];
    let turned = [config.heads, config.kv_heads];
    Some(match turned.get(map) {
        Some(heads) if config.rope_pairs == RopePairs::Adjacent => in_pairs(blocks, *heads, config),
        _ => blocks.clone(),
    })
}

/// The base's file with every tensor as `tensor(name, info, bytes)` has it.
fn write(
    base: &[u8],
    file_type: u32,
    tensor: impl Fn(&str, &TensorInfo, &[u8]) -> Result<(TensorType, Vec<u8>), ExportError>,
) -> Result<Vec<u8>, ExportError> {
    let index = Gguf::parse(base)?;
    if index.count("split.count").is_some_and(|count| count > 1) {
        return Err(ExportError::Unsupported("several files".to_owned()));
    }
    let mut tensors = Vec::new();
    for (name, info) in index.tensors() {
        let bytes = base.get(info.range.clone()).ok_or(FormatError::Truncated("a tensor"))?;
        let (dtype, bytes) = tensor(name, info, bytes)?;
        let shape: Vec<u64> = info.shape.iter().map(|dim| *dim as u64).collect();
        tensors.push((name.as_str(), shape, dtype, bytes));
    }
    Ok(crate::format::gguf_write::rewrite(base, &index, file_type, tensors)?)
}

/// The numbers of a tensor by GGUF's name, in the order in which GGUF has them.
fn numbers(name: &str, plain: &PlainTransformer) -> Option<Vec<f32>> {
    let config = &plain.config;
    match name {
        "token_embd.weight" => return Some(plain.embedding.clone()),
        "output_norm.weight" => return Some(plain.output_norm.clone()),
        "output.weight" => return plain.head.clone(),
        _ => {}
    }
    let (i, part) = name.strip_prefix("blk.")?.split_once('.')?;
    let layer = plain.layers.get(i.parse::<usize>().ok()?)?;
    if let Some(part) = part.strip_suffix(".bias") {
        let map = ["attn_q", "attn_k", "attn_v"].iter().position(|map| *map == part)?;
        return Some(layer.qkv_bias.as_ref()?[map].clone());
    }
    Some(match part.strip_suffix(".weight")? {
        "attn_norm" => layer.attention_norm.clone(),
        "ffn_norm" => layer.ffn_norm.clone(),
        "attn_q_norm" => layer.head_norms.as_ref()?[0].clone(),
        "attn_k_norm" => layer.head_norms.as_ref()?[1].clone(),
        "post_attention_norm" => layer.post_attention_norm.clone()?,
        "post_ffw_norm" => layer.post_ffn_norm.clone()?,
        "attn_q" if config.rope_pairs == RopePairs::Adjacent => in_pairs(&layer.q, config.heads, config),
        "attn_k" if config.rope_pairs == RopePairs::Adjacent => in_pairs(&layer.k, config.kv_heads, config),
        "attn_q" => layer.q.clone(),
        "attn_k" => layer.k.clone(),
        "attn_v" => layer.v.clone(),
        "attn_output" => layer.output.clone(),
        "ffn_gate" => layer.gate.clone(),
        "ffn_up" => layer.up.clone(),
        "ffn_down" => layer.down.clone(),
        _ => return None,
    })
}

/// Row `(head, 2i + j)` from row `(head, j · pairs + i)`: neighbours turn together, where they were halves apart. Rows are of numbers or of blocks.
fn in_pairs<T: Copy>(rows: &[T], heads: usize, config: &TransformerConfig) -> Vec<T> {
    let (head_dim, pairs) = (config.head_dim, config.rope_dims / 2);
    let width = rows.len() / (heads * head_dim);
    let mut out = rows.to_vec();
    for (to, from) in out.chunks_exact_mut(head_dim * width).zip(rows.chunks_exact(head_dim * width)) {
        for i in 0..pairs {
            for j in 0..2 {
                let row = &from[(j * pairs + i) * width..][..width];
                to[(2 * i + j) * width..][..width].copy_from_slice(row);
            }
        }
    }
    out
}

/// A folder of Hugging Face's kind: `(name, bytes)` of each file.
///
/// # Errors
///
/// Where the network or its tokenizer cannot be written so.
pub fn hugging_face(base: &[u8], plain: &PlainTransformer) -> Result<Vec<(&'static str, Vec<u8>)>, ExportError> {
    let index = Gguf::parse(base)?;
    let text = |value: &Value| serde_json::to_vec_pretty(value).expect("a value is JSON");
    Ok(vec![
        ("config.json", text(&config(&index, plain)?)),
        ("tokenizer.json", text(&tokenizer(&index)?)),
        ("tokenizer_config.json", text(&tokenizer_config(&index))),
        ("model.safetensors", weights(plain)),
    ])
}

fn config(index: &Gguf, plain: &PlainTransformer) -> Result<Value, ExportError> {
    let c = &plain.config;
    let is_scaled = c.rope_divisor != 1.0 || index.tensors().contains_key("rope_freqs.weight");
    if is_scaled || c.rope_dims != c.head_dim || c.activation != Activation::Silu || c.embedding_scale != 1.0 {
        return Err(ExportError::Unsupported("scaled angles or another activation".to_owned()));
    }
    let is_llama = |layer: &PlainLayer| {
        let norms = [layer.post_attention_norm.is_some(), layer.post_ffn_norm.is_some(), layer.head_norms.is_some()];
        !norms.contains(&true) && layer.qkv_bias.is_none() && layer.window.is_none() && layer.turns == Some(0)
    };
    if !plain.layers.iter().all(is_llama) {
        return Err(ExportError::Unsupported("norms, biases or windows that Llama has not".to_owned()));
    }
    let number = |x: f32| x.to_string().parse::<f64>().unwrap_or(f64::from(x));
    let id = |key: &str| index.count(key);
    Ok(json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": c.width,
        "intermediate_size": c.inner,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "rms_norm_eps": number(c.eps),
        "rope_theta": number(c.rope_base),
        "vocab_size": c.vocabulary,
        "max_position_embeddings": c.context,
        "tie_word_embeddings": plain.head.is_none(),
        "attention_bias": false,
        "mlp_bias": false,
        "bos_token_id": id("tokenizer.ggml.bos_token_id"),
        "eos_token_id": id("tokenizer.ggml.eos_token_id"),
        "torch_dtype": "float16",
    }))
}

fn weights(plain: &PlainTransformer) -> Vec<u8> {
    let c = &plain.config;
    let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
    let mut all: Vec<(String, Vec<usize>, &[f32])> = vec![
        ("model.embed_tokens.weight".to_owned(), vec![c.vocabulary, c.width], &plain.embedding),
        ("model.norm.weight".to_owned(), vec![c.width], &plain.output_norm),
    ];
    all.extend(plain.head.as_ref().map(|head| ("lm_head.weight".to_owned(), vec![c.vocabulary, c.width], &head[..])));
    for (i, layer) in plain.layers.iter().enumerate() {
        let shapes = [
            [q, c.width],
            [kv, c.width],
            [kv, c.width],
            [c.width, q],
            [c.inner, c.width],
            [c.inner, c.width],
            [c.width, c.inner],
        ];
        let maps = [&layer.q, &layer.k, &layer.v, &layer.output, &layer.gate, &layer.up, &layer.down];
        for (((name, _), shape), values) in MAPS.iter().zip(shapes).zip(maps) {
            all.push((format!("model.layers.{i}.{name}.weight"), shape.to_vec(), values));
        }
        let norms = [("input_layernorm", &layer.attention_norm), ("post_attention_layernorm", &layer.ffn_norm)];
        for (name, values) in norms {
            all.push((format!("model.layers.{i}.{name}.weight"), vec![c.width], values));
        }
    }
    crate::format::write_f16(all.iter().map(|(name, shape, values)| (name.as_str(), shape.as_slice(), *values)))
}

/// `tokenizer.json` of a byte-level BPE, whose way to cut a text is one of those known here.
fn tokenizer(index: &Gguf) -> Result<Value, ExportError> {
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let kind = index.text("tokenizer.ggml.model").unwrap_or_default();
    let cut = match (kind, index.text("tokenizer.ggml.pre").unwrap_or_default()) {
        ("gpt2", "smollm") => json!({"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": true}, byte_level,
        ]}),
        ("gpt2", "gpt-2") => byte_level,
        (kind, cut) => return Err(ExportError::Unsupported(format!("a tokenizer of kind `{kind}` (`{cut}`)"))),
    };
    let lack = |what: &str| ExportError::Unsupported(format!("no {what}"));
    let words = index.texts("tokenizer.ggml.tokens").ok_or_else(|| lack("tokens"))?;
    let merges = index.texts("tokenizer.ggml.merges").ok_or_else(|| lack("merges"))?;
    let kinds = index.ints("tokenizer.ggml.token_type").unwrap_or_default();
    // 3: control, 4: defined by the user.
    let added = words.iter().enumerate().filter(|(id, _)| kinds.get(*id).is_some_and(|kind| [3, 4].contains(kind)));
    let added = added.map(|(id, word)| {
        json!({
            "id": id, "content": word, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": kinds[id] == 3,
        })
    });
    let vocabulary: Map<String, Value> = words.iter().enumerate().map(|(id, word)| (word.clone(), json!(id))).collect();
    let pairs = merges.iter().filter_map(|merge| merge.split_once(' ').map(|(a, b)| json!([a, b])));
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": cut,
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocabulary,
            "merges": pairs.collect::<Vec<_>>(),
        },
    }))
}

fn tokenizer_config(index: &Gguf) -> Value {
    let word = |key: &str| index.texts("tokenizer.ggml.tokens")?.get(index.count(key)?).cloned();
    let template = match index.metadata().get("tokenizer.chat_template") {
        Some(Entry::Text(template)) => Some(template),
        _ => None,
    };
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": word("tokenizer.ggml.bos_token_id"),
        "eos_token": word("tokenizer.ggml.eos_token_id"),
        "clean_up_tokenization_spaces": false,
        "chat_template": template,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use metier_kernels::{Pool, Tier};

    use super::*;
    use crate::{Adapter, Decoder, LoraFormat, TokenId, arch::transformer::WeightFormat, tiny};

    /// max |Δ| of logits whose deviation is about 1, between f32 weights with an adapter and merged ones in halves.
    const HALVES: f32 = 0.02;

    /// Blocks that say what the base's own say make the same file answer.
    #[test]
    fn blocks_stand_where_their_maps_stood() {
        let bytes = tiny::gguf_with(7, TensorType::F32);
        let base = Decoder::from_bytes(bytes.clone(), "tiny", WeightFormat::F32).unwrap();
        let plain = base.network().plain().unwrap();
        // Scale 1/64, min −1/8: the weights that these blocks stand for.
        let (scale, min) = (half::f16::from_f32(1.0 / 64.0), half::f16::from_f32(-1.0 / 8.0));
        let blocks = |weights: &[f32]| -> Vec<u8> {
            let quant = |w: f32| ((w + 0.125) * 64.0).round().clamp(0.0, 15.0) as u8;
            let block = |w: &[f32]| {
                let bytes = (0..16).map(|i| quant(w[i]) | quant(w[i + 16]) << 4);
                scale.to_le_bytes().into_iter().chain(min.to_le_bytes()).chain(bytes).collect::<Vec<u8>>()
            };
            weights.chunks_exact(32).flat_map(block).collect()
        };
        let layers: Vec<Blocks> = plain
            .layers
            .iter()
            .map(|l| [&l.q, &l.k, &l.v, &l.output, &l.gate, &l.up, &l.down].map(|weights| blocks(weights)))
            .collect();
        let file = gguf_of_blocks(&bytes, &plain.config, &layers, TensorType::Q4_1).unwrap();
        let read = Decoder::from_bytes(file, "blocks", WeightFormat::F32).unwrap().network().plain().unwrap();
        for (layer, of_blocks) in read.layers.iter().zip(&layers) {
            let found = [&layer.q, &layer.k, &layer.v, &layer.output, &layer.gate, &layer.up, &layer.down];
            for (found, expected) in found.into_iter().zip(of_blocks) {
                assert_eq!(&blocks(found), expected);
            }
        }
        let far = plain.embedding.iter().zip(&read.embedding).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(far > 0.0 && far < 0.02, "the table is kept in 8 bits: {far}");
        assert!(gguf_of_blocks(&bytes, &plain.config, &layers, TensorType::Q4_0).is_err());
    }

    /// What leaves answers as what serves, read again from either form.
    #[test]
    fn merged_files_answer_as_base_and_adapter() {
        let pool = Pool::new(2, Tier::detect());
        let bytes = tiny::gguf(7);
        let base = Decoder::from_bytes(bytes.clone(), "tiny", WeightFormat::F32).unwrap();
        let files = tiny::adapter(base.network().config(), 3, 4, &[], 0.5);
        let adapter =
            Adapter::from_bytes(files.config.as_bytes(), &files.weights, base.network().config(), LoraFormat::F16);
        let ids: Vec<TokenId> = (0..40).map(|i| TokenId(i * 37 % 250)).collect();
        let expected = base.logits_with(&pool, &ids, Some(&adapter.unwrap())).unwrap().concat();
        let plain = base.logits(&pool, &ids).unwrap().concat();
        let far = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(far(&plain, &expected) > 10.0 * HALVES, "the adapter does something");

        let mut merged = base.network().plain().unwrap();
        merge(&mut merged, &files.config, &files.weights).unwrap();
        let file = gguf(&bytes, &merged).unwrap();
        let read = Decoder::from_bytes(file.clone(), "merged", WeightFormat::F32).unwrap();
        assert!(far(&read.logits(&pool, &ids).unwrap().concat(), &expected) < HALVES);
        // Metadata are the base's, but for the one that says of which type tensors are.
        let (before, after) = (Gguf::parse(&bytes).unwrap(), Gguf::parse(&file).unwrap());
        let others = |gguf: &Gguf| {
            let all = gguf.metadata().clone().into_iter();
            all.filter(|(key, _)| key != "general.file_type").collect::<Vec<_>>()
        };
        assert_eq!(others(&before), others(&after));

        let mut of_other_shape =
            Decoder::from_bytes(tiny::gguf(8), "b", WeightFormat::F32).unwrap().network().plain().unwrap();
        of_other_shape.layers[0].q.truncate(64);
        assert!(matches!(merge(&mut of_other_shape, &files.config, &files.weights), Err(ExportError::Shape(_))));
        assert!(merge(&mut merged, "{}", &files.weights).is_err());
        assert!(gguf(b"GGUF", &merged).is_err());
    }

    /// The folder is read with its own tokenizer: the same ids, the same logits.
    #[test]
    fn a_folder_is_read_as_the_file() {
        let pool = Pool::new(2, Tier::detect());
        let bytes = tiny::gguf(7);
        let base = Decoder::from_bytes(bytes.clone(), "tiny", WeightFormat::F32).unwrap();
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in hugging_face(&bytes, &base.network().plain().unwrap()).unwrap() {
            std::fs::write(dir.path().join(name), bytes).unwrap();
        }
        let read = Decoder::open(dir.path(), WeightFormat::F32).unwrap();
        for text in ["hello the world", "a1b22, ü!", "  two  blanks\n"] {
            assert_eq!(read.tokenizer().encode(text).unwrap(), base.tokenizer().encode(text).unwrap(), "{text}");
        }
        assert_eq!(read.ends(), base.ends());
        let ids = base.tokenizer().encode("hello the world").unwrap();
        let (a, b) = (read.logits(&pool, &ids).unwrap().concat(), base.logits(&pool, &ids).unwrap().concat());
        let far = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(far < HALVES, "{far}");
    }
}
