//! How fast does this machine embed and decode? One JSON line a case; pools of two pinned threads.
//!
//! `cargo run --release -p metier-model --example speed -- MINILM_DIR SMOLLM2_GGUF [TIER …]`
//!
//! Figures of neighbours on the same cores are part of every figure: compare within one run.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "an example prints, and stops at the first error")]

use std::{path::Path, sync::Arc, time::Instant};

use metier_kernels::{Pool, Tier};
use metier_model::{
    Decoder, Encoder, Engine, EngineLimits, TokenId,
    engine::{GenerationRequest, WeightFormat},
};
use serde_json::json;

const THREADS: usize = 2;
const SENTENCE: &str = "I am waiting for the debit card that was sent to me last week; where is it now?";
/// Runs of a case; the median is printed, with the extremes.
const RUNS: usize = 5;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [minilm, smollm2, tiers @ ..] = arguments.as_slice() else {
        println!("usage: speed MINILM_DIR SMOLLM2_GGUF [TIER …]");
        return;
    };
    let mut tiers: Vec<Tier> = tiers.iter().map(|name| name.parse().unwrap()).collect();
    if tiers.is_empty() {
        tiers = Tier::available().into_iter().filter(|tier| *tier != Tier::Scalar).collect();
    }
    let started = Instant::now();
    let encoder = Encoder::open(Path::new(minilm)).unwrap();
    println!("{}", json!({"case": "open MiniLM", "unit": "ms", "value": started.elapsed().as_millis()}));
    for tier in &tiers {
        embed(&encoder, &Pool::new(THREADS, *tier));
    }
    for format in [WeightFormat::AsFile, WeightFormat::Int8, WeightFormat::F16, WeightFormat::F32] {
        let started = Instant::now();
        let decoder = Arc::new(Decoder::open(Path::new(smollm2), format).unwrap());
        let case = format!("open SmolLM2 {format:?}");
        println!("{}", json!({"case": case, "unit": "ms", "value": started.elapsed().as_millis()}));
        for tier in &tiers {
            decode(&decoder, format, &Pool::new(THREADS, *tier));
        }
    }
}

fn embed(encoder: &Encoder, pool: &Pool) {
    let tokens = encoder.count_tokens(SENTENCE);
    for (batch, repeats) in [(1, 50), (32, 4)] {
        let texts = vec![SENTENCE; batch];
        encoder.embed(pool, &texts).unwrap();
        let case = format!("MiniLM f32, {tokens} tokens, batch {batch}");
        report(&case, pool.tier(), "sentences/s", || {
            for _ in 0..repeats {
                encoder.embed(pool, &texts).unwrap();
            }
            batch * repeats
        });
    }
}

fn decode(decoder: &Arc<Decoder>, format: WeightFormat, pool: &Pool) {
    let prompt = |n: u32| (0..n).map(|i| TokenId(i * 97 % 40_000 + 100)).collect::<Vec<_>>();
    let generate = |streams: usize, prompt_len: u32, max_tokens: usize| {
        let mut engine = Engine::new(Arc::clone(decoder), EngineLimits::default());
        for _ in 0..streams {
            let prompt = prompt(prompt_len);
            engine.submit(GenerationRequest { prompt, max_tokens, ..Default::default() }).unwrap();
        }
        engine.drain(pool).iter().map(|answer| answer.completion_tokens).sum::<usize>()
    };
    generate(1, 16, 4);
    report(&format!("SmolLM2 {format:?}, prefill 512"), pool.tier(), "tokens/s", || {
        generate(1, 512, 1);
        512
    });
    for (streams, tokens) in [(1, 96), (8, 32), (32, 16)] {
        let case = format!("SmolLM2 {format:?}, decode, {streams} streams");
        report(&case, pool.tier(), "tokens/s", || generate(streams, 4, tokens));
    }
}

/// Runs `work`, which returns how many units it did.
fn report(case: &str, tier: Tier, unit: &str, mut work: impl FnMut() -> usize) {
    let mut rates: Vec<f64> = (0..RUNS)
        .map(|_| {
            let started = Instant::now();
            let units = work();
            (units as f64 / started.elapsed().as_secs_f64()).round()
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    let (value, spread) = (rates[RUNS / 2], [rates[0], rates[RUNS - 1]]);
    println!("{}", json!({"case": case, "tier": tier.name(), "unit": unit, "value": value, "spread": spread}));
}
