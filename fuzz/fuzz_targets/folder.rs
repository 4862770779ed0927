//! Any texts as the documents of a model folder, over weights that exist: `config.json`, `tokenizer.json`, `tokenizer_config.json`,
//! `generation_config.json`, the index of a model in parts, `modules.json`, `1_Pooling/config.json`, each after a line of `====`.
//! Opened as a decoder and as an encoder; what opens reads a text.
#![no_main]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use libfuzzer_sys::fuzz_target;
use metier_kernels::{Pool, Tier};
use metier_model::{Decoder, Encoder, TokenId, arch::transformer::WeightFormat};

const DECODER: &[u8] = include_bytes!("../../crates/metier-model/tests/goldens/folders/llama/model.safetensors");
const ENCODER: &[u8] = include_bytes!("../../crates/metier-model/tests/goldens/encoders/bert/model.safetensors");
const BETWEEN: &str = "\n====\n";
const DOCUMENTS: [&str; 7] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "modules.json",
    "1_Pooling/config.json",
];

struct Bench {
    pool: Pool,
    decoder: PathBuf,
    encoder: PathBuf,
}

fn bench() -> &'static Bench {
    static BENCH: OnceLock<Bench> = OnceLock::new();
    BENCH.get_or_init(|| {
        let root = std::env::temp_dir().join(format!("metier-fuzz-{}", std::process::id()));
        let folder = |name: &str, weights: &[u8]| {
            let folder = root.join(name);
            fs::create_dir_all(folder.join("1_Pooling")).expect("a temporary folder can be made");
            fs::write(folder.join("part-1.safetensors"), weights).expect("a temporary file can be written");
            folder
        };
        Bench {
            pool: Pool::new(1, Tier::detect()),
            decoder: folder("decoder", DECODER),
            encoder: folder("encoder", ENCODER),
        }
    })
}

/// Puts the documents there; without an index the weights lie in one file.
fn lay_out(folder: &Path, documents: &[&str]) {
    for (i, name) in DOCUMENTS.iter().enumerate() {
        let path = folder.join(name);
        let text = documents.get(i).filter(|text| !text.trim().is_empty());
        let done = match text {
            Some(text) => fs::write(&path, text),
            None => fs::remove_file(&path).or(Ok(())),
        };
        done.expect("the temporary folder is ours");
    }
    let whole = folder.join("model.safetensors");
    let is_in_parts = documents.get(4).is_some_and(|text| !text.trim().is_empty());
    match (is_in_parts, whole.exists()) {
        (true, true) => fs::remove_file(&whole).expect("the temporary folder is ours"),
        (false, false) => {
            fs::hard_link(folder.join("part-1.safetensors"), &whole).expect("the temporary folder can hold a link");
        }
        _ => {}
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let documents: Vec<&str> = text.split(BETWEEN).collect();
    let bench = bench();
    lay_out(&bench.decoder, &documents);
    if let Ok(decoder) = Decoder::open(&bench.decoder, WeightFormat::F32) {
        let _ = decoder.tokenizer().encode("A text, <s>[INST] with 3 words.");
        let _ = decoder.logits(&bench.pool, &[TokenId(0), TokenId(1)]);
    }
    lay_out(&bench.encoder, &documents);
    if let Ok(encoder) = Encoder::open(&bench.encoder) {
        let _ = encoder.embed(&bench.pool, &["A text, [CLS] with 3 words.", ""]);
    }
});
