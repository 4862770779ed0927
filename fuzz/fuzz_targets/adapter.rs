//! Any bytes as PEFT's two files over a tiny base: `adapter_config.json`, a line of `====`, the weights.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use metier_model::{
    Adapter, Decoder,
    adapter::LoraFormat,
    arch::transformer::{TransformerConfig, WeightFormat},
};

const BASE: &[u8] = include_bytes!("../../crates/metier-model/tests/goldens/llama.gguf");
const BETWEEN: &[u8] = b"\n====\n";

fn base() -> &'static TransformerConfig {
    static BASE_DECODER: OnceLock<Decoder> = OnceLock::new();
    let open = || Decoder::from_bytes(BASE.to_vec(), "llama", WeightFormat::F32).expect("the golden file is a model");
    BASE_DECODER.get_or_init(open).network().config()
}

fuzz_target!(|bytes: &[u8]| {
    let Some(at) = bytes.windows(BETWEEN.len()).position(|window| window == BETWEEN) else { return };
    let (config, weights) = (&bytes[..at], &bytes[at + BETWEEN.len()..]);
    for format in [LoraFormat::F16, LoraFormat::Int8] {
        if let Ok(adapter) = Adapter::from_bytes(config, weights, base(), format) {
            assert!(adapter.fits(base()), "it was read for this base");
        }
    }
});
