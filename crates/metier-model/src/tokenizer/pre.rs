//! How does a byte-level BPE cut a text before it merges? GGUF names the way by `tokenizer.ggml.pre`.

use serde_json::{Value, json};

/// What stands before the merges.
pub(super) struct Pre {
    /// In the words of `tokenizer.json`.
    pub(super) pre_tokenizer: Value,
    pub(super) normalizer: Value,
    /// A piece that is a token is not merged at all.
    pub(super) ignore_merges: bool,
}

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Names that are read; for messages.
pub(super) const NAMES: &str = "`gpt-2`, `smollm`, `llama-bpe`, `qwen2`, `tekken`, `gpt-4o`";

impl Pre {
    pub(super) fn named(name: &str) -> Option<Self> {
        let bytes = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
        let plain = |pre_tokenizer| Self { pre_tokenizer, normalizer: Value::Null, ignore_merges: false };
        let split = |pattern: &str| {
            let split =
                json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
            plain(json!({"type": "Sequence", "pretokenizers": [split, bytes(false)]}))
        };
        Some(match name {
            "gpt-2" | "default" => plain(bytes(true)),
            // Isolates every numeric character, then splits as GPT-2 does.
            "smollm" => plain(json!({"type": "Sequence", "pretokenizers": [
                {"type": "Digits", "individual_digits": true}, bytes(true)]})),
            "llama-bpe" | "llama3" | "llama-v3" => Self { ignore_merges: true, ..split(LLAMA3) },
            "qwen2" => Self { normalizer: json!({"type": "NFC"}), ..split(QWEN2) },
            "tekken" => Self { ignore_merges: true, ..split(TEKKEN) },
            "gpt-4o" => split(GPT4O),
            _ => return None,
        })
    }
}
