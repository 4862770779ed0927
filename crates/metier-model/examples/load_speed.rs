//! How long does it take to open a decoder, and what of it is what? One JSON line a file; medians, in milliseconds.
//!
//! `cargo run --release -p metier-model --example load_speed -- FILE.gguf …`
//!
//! Files are read once beforehand, so that the disk has no part in it.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "an example prints, and stops at the first error")]

use std::{path::Path, time::Instant};

use metier_kernels::Mapped;
use metier_model::{
    Decoder, Digest, PackedCache, PackedOutcome, Tokenizer, decoder::DecoderOptions, engine::WeightFormat, format::Gguf,
};
use serde_json::json;

/// Runs of a case.
const RUNS: usize = 5;

fn main() {
    for path in std::env::args().skip(1) {
        let path = Path::new(&path);
        let bytes = std::fs::metadata(path).unwrap().len();
        let hash = median(|| Digest::of_file(path).unwrap());
        let map = Mapped::open(path).unwrap();
        let parse = median(|| Gguf::parse(&map).unwrap());
        let gguf = Gguf::parse(&map).unwrap();
        let tokenizer = median(|| Tokenizer::from_gguf(&gguf).unwrap());
        let whole = median(|| Decoder::open(path, WeightFormat::AsFile).unwrap());
        // The first opening writes, the next ones read.
        let folder = std::env::temp_dir().join(format!("metier-load-speed-{}", std::process::id()));
        let cache = PackedCache::new(folder.clone(), u64::MAX);
        let options = DecoderOptions { packed: Some(cache), ..DecoderOptions::new(WeightFormat::AsFile) };
        let begun = Instant::now();
        let written = Decoder::open_with(path, options.clone()).unwrap().packed().clone();
        let write = (begun.elapsed().as_secs_f64() * 1e4).round() / 10.0;
        let cached = median(|| {
            let decoder = Decoder::open_with(path, options.clone()).unwrap();
            assert_eq!(*decoder.packed(), PackedOutcome::Read);
            decoder
        });
        std::fs::remove_dir_all(folder).unwrap();
        println!(
            "{}",
            json!({"written": format!("{written:?}"), "open_and_write_ms": write, "open_packed_ms": cached})
        );
        let name = path.file_name().unwrap().to_string_lossy();
        println!(
            "{}",
            json!({"file": name, "bytes": bytes, "hash_ms": hash, "parse_ms": parse, "tokenizer_ms": tokenizer, "open_ms": whole,
                "packing_and_rest_ms": whole - hash - parse - tokenizer})
        );
    }
}

fn median<T>(mut work: impl FnMut() -> T) -> f64 {
    drop(work());
    let mut times: Vec<f64> = (0..RUNS)
        .map(|_| {
            let begun = Instant::now();
            let made = work();
            let elapsed = begun.elapsed();
            drop(made);
            (elapsed.as_secs_f64() * 1e4).round() / 10.0
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[RUNS / 2]
}
