//! Any bytes as a model in one GGUF file: network, tokenizer, template. What opens reads three tokens: no shape that passes may panic
//! later.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use metier_kernels::{Pool, Tier};
use metier_model::{Decoder, TokenId, arch::transformer::WeightFormat};

fn pool() -> &'static Pool {
    static POOL: OnceLock<Pool> = OnceLock::new();
    POOL.get_or_init(|| Pool::new(1, Tier::detect()))
}

fuzz_target!(|bytes: &[u8]| {
    for weights in [WeightFormat::AsFile, WeightFormat::F32] {
        let Ok(decoder) = Decoder::from_bytes(bytes.to_vec(), "fuzz", weights) else { return };
        let last = decoder.network().config().vocabulary.saturating_sub(1);
        let _ = decoder.logits(pool(), &[TokenId(0), TokenId(last as u32), TokenId(1)]);
    }
});
