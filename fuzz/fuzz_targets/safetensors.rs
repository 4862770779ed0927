//! Any bytes as a safetensors file: parsed, and every tensor read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use metier_model::format::Safetensors;

fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = Safetensors::parse(bytes) else { return };
    for name in file.tensors().keys() {
        let tensor = file.tensor(bytes, name).expect("it was just listed");
        let _ = tensor.to_f32();
    }
});
