//! Any bytes as a GGUF file: parsed, every tensor read, the tokenizer built from its metadata. No panic, no allocation beyond a small multiple of the input.
#![no_main]

use libfuzzer_sys::fuzz_target;
use metier_model::{Tokenizer, format::Gguf};

fuzz_target!(|bytes: &[u8]| {
    let Ok(gguf) = Gguf::parse(bytes) else { return };
    for name in gguf.tensors().keys() {
        let tensor = gguf.tensor(bytes, name).expect("it was just listed");
        let _ = tensor.to_f32();
    }
    let _ = Tokenizer::from_gguf(&gguf);
});
