//! Any text as a `tokenizer.json`: what is read encodes a text, and decodes every id that came out.
#![no_main]

use libfuzzer_sys::fuzz_target;
use metier_model::Tokenizer;

const TEXT: &str = "Ünïcode, 1234 and\n\n\t<s>[CLS] \u{200d}🤖 it's  — done.";

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(tokenizer) = Tokenizer::from_json(text) else { return };
    if let Ok(ids) = tokenizer.encode(TEXT) {
        let _ = tokenizer.decode(&ids);
    }
    let _ = tokenizer.encode_framed(TEXT);
    let _ = tokenizer.encode_with_specials(TEXT);
});
