//! Any text as a JSON Schema, as a regular expression and as choices, compiled for a tiny vocabulary; then up to 64 tokens that the
//! mask allows are committed, chosen by the bytes, and committed again to a text that knows what the first found out.
#![no_main]

use std::sync::{Arc, OnceLock};

use libfuzzer_sys::fuzz_target;
use metier_model::{
    Decoder, TokenId,
    arch::transformer::WeightFormat,
    grammar::{Constraint, Form, GrammarEnv},
};

const BASE: &[u8] = include_bytes!("../../crates/metier-model/tests/goldens/llama.gguf");

fn env() -> &'static GrammarEnv {
    static ENV: OnceLock<GrammarEnv> = OnceLock::new();
    ENV.get_or_init(|| {
        // The library's panics are caught and become errors; libFuzzer's hook would end the process before that.
        std::panic::set_hook(Box::new(|_| {}));
        let decoder = Decoder::from_bytes(BASE.to_vec(), "llama", WeightFormat::F32);
        GrammarEnv::new(Arc::new(decoder.expect("the golden file is a model"))).expect("it has a vocabulary")
    })
}

fn walk(form: &Form, bytes: &[u8]) {
    let Ok(constraint) = Constraint::compile(form, env()) else { return };
    let mut state = constraint.begin();
    let mut walked = Vec::new();
    for &byte in bytes.iter().cycle().take(64) {
        if state.is_finished() {
            break;
        }
        // A token is checked alone and by the mask: both must say the same.
        let asked: Vec<_> = (0..512).map(|id| state.allows(TokenId(id))).collect();
        let Ok(mask) = state.mask() else { return };
        let allowed: Vec<u32> = (0..512).filter(|id| mask.contains(TokenId(*id))).collect();
        for (id, asked) in asked.into_iter().enumerate() {
            assert!(asked.is_ok_and(|asked| asked == mask.contains(TokenId(id as u32))), "token {id} in {form:?}");
        }
        let Some(&token) = allowed.get(usize::from(byte) % allowed.len().max(1)) else { return };
        walked.push((mask.clone(), token));
        state.commit(TokenId(token)).expect("the mask allowed it");
        let _ = state.forced();
        let _ = state.is_accepting();
    }
    let mut again = constraint.begin();
    for (mask, token) in walked {
        assert!(again.mask().is_ok_and(|known| *known == mask), "before token {token} in {form:?}");
        again.commit(TokenId(token)).expect("it was committed before");
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(schema) = serde_json::from_str(text) {
        walk(&Form::JsonSchema(schema), bytes);
    }
    walk(&Form::Regex(text.to_owned()), bytes);
    walk(&Form::Choice(text.lines().map(str::to_owned).collect()), bytes);
});
