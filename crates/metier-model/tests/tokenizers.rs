//! Does each kind of vocabulary cut a text as the reference does? Small vocabularies, made by `goldens/make_tokenizers.py` with Hugging
//! Face's `tokenizers` and with SentencePiece.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::PathBuf;

use metier_model::{TokenId, Tokenizer, format::Gguf};
use serde_json::Value;

fn golden(file: &str) -> Vec<u8> {
    std::fs::read(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(file)).unwrap()
}

#[track_caller]
fn check(name: &str) {
    let golden: (Value, _) =
        (serde_json::from_slice(&golden("tokenizers.json")).unwrap(), golden(&format!("vocabulary-{name}.gguf")));
    let (expected, bytes) = golden;
    let tokenizer = Tokenizer::from_gguf(&Gguf::parse(&bytes).unwrap()).unwrap();
    let texts = expected["texts"].as_array().unwrap();
    assert!(texts.len() >= 25);
    for (text, ids) in texts.iter().zip(expected["ids"][name].as_array().unwrap()) {
        let text = text.as_str().unwrap();
        let ids: Vec<TokenId> = ids.as_array().unwrap().iter().map(|id| TokenId(id.as_u64().unwrap() as u32)).collect();
        let got = tokenizer.encode(text).unwrap();
        assert_eq!(got, ids, "{name}: {text:?}");
        // Qwen 2 composes characters; SentencePiece's own sign for a space comes back as a space.
        if !text.contains(['\u{301}', '\u{2581}']) {
            assert_eq!(tokenizer.decode(&got), text, "{name} gives the text back");
        }
    }
}

#[test]
fn llama_3_cuts() {
    check("llama-bpe");
}

#[test]
fn qwen_2_cuts() {
    check("qwen2");
}

#[test]
fn gpt_4o_cuts() {
    check("gpt-4o");
}

#[test]
fn tekken_cuts() {
    check("tekken");
}

#[test]
fn sentence_pieces_are_joined() {
    check("pieces");
}
