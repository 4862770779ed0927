//! What does scoring a closed set of labels cost, beside reading the prompt? One JSON line a case: milliseconds, median and extremes.
//!
//! `cargo run --release -p metier-model --example labels -- SMOLLM2_GGUF`

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "an example prints, and stops at the first error")]

use std::{path::Path, sync::Arc, time::Instant};

use metier_kernels::{Pool, Tier};
use metier_model::{
    Decoder, Engine, EngineLimits, TokenId,
    engine::{CacheScope, Event, GenerationRequest, LabelScore, ScoreRequest, WeightFormat},
};
use serde_json::json;

const THREADS: usize = 2;
const RUNS: usize = 7;
const LABELS: &str = "card arrival|card linking|card not working|card swallowed|card payment fee charged|cash withdrawal charge\
    |cash withdrawal not recognised|change pin|compromised card|contactless not working|country support|declined cash withdrawal\
    |declined transfer|direct debit not recognised|exchange rate|failed transfer|lost or stolen card|lost or stolen phone\
    |pending card payment|pending transfer|refund not showing up|request refund|top up failed|top up limits|verify my identity\
    |virtual card not working|wrong amount of cash received|wrong exchange rate for cash withdrawal";

fn main() {
    let Some(gguf) = std::env::args().nth(1) else {
        println!("usage: labels SMOLLM2_GGUF");
        return;
    };
    let decoder = Arc::new(Decoder::open(Path::new(&gguf), WeightFormat::AsFile).unwrap());
    let pool = Pool::new(THREADS, Tier::detect());
    let labels: Vec<String> = LABELS.split('|').map(|label| format!(" {label}")).collect();
    let text = format!(
        "Which of these topics is the message about?{}\n\nMessage: I paid with my card yesterday and the shop was charged twice, \
         but I only see one entry and a fee that nobody told me of.\nTopic:",
        labels.iter().map(|label| format!("\n-{label}")).collect::<String>()
    );
    let prompt = decoder.tokenizer().encode(&text).unwrap();
    let tokens: usize = labels.iter().map(|label| decoder.tokenizer().encode(label).unwrap().len()).sum();
    println!("{}", json!({"prompt_tokens": prompt.len(), "labels": labels.len(), "label_tokens": tokens}));
    let score = |engine: &mut Engine, labels: &[String], scope: CacheScope| {
        let labels = labels.to_vec();
        engine.submit_score(ScoreRequest { prompt: prompt.clone(), labels, scope, ..Default::default() }).unwrap();
        scores(engine, &pool)
    };
    let fresh = || Engine::new(Arc::clone(&decoder), EngineLimits::default());
    let best =
        |scores: &[LabelScore]| (0..scores.len()).max_by(|a, b| scores[*a].logprob.total_cmp(&scores[*b].logprob));
    println!("{}", json!({"best": best(&score(&mut fresh(), &labels, CacheScope::Private)).map(|at| &labels[at])}));

    report("prompt read, one token written", || write_one(&mut fresh(), &pool, &prompt));
    report("prompt read, all labels scored", || {
        score(&mut fresh(), &labels, CacheScope::Private);
    });
    let (tenant, mut engine) = (CacheScope::Tenant(1), fresh());
    score(&mut engine, &labels, tenant);
    report("prompt remembered, all labels scored", || {
        score(&mut engine, &labels, tenant);
    });
    report("prompt remembered, one label after the other", || {
        labels.chunks(1).for_each(|label| {
            score(&mut engine, label, tenant);
        });
    });
}

fn scores(engine: &mut Engine, pool: &Pool) -> Vec<LabelScore> {
    let mut found = Vec::new();
    while !engine.is_idle() {
        for event in engine.step(pool) {
            if let Event::Scored { scores, .. } = event {
                found = scores;
            }
        }
    }
    found
}

fn write_one(engine: &mut Engine, pool: &Pool, prompt: &[TokenId]) {
    engine.submit(GenerationRequest { prompt: prompt.to_vec(), max_tokens: 1, ..Default::default() }).unwrap();
    engine.drain(pool);
}

fn report(case: &str, mut work: impl FnMut()) {
    work();
    let mut times: Vec<f64> = (0..RUNS)
        .map(|_| {
            let started = Instant::now();
            work();
            (started.elapsed().as_secs_f64() * 1e4).round() / 10.0
        })
        .collect();
    times.sort_by(f64::total_cmp);
    println!("{}", json!({"case": case, "ms": times[RUNS / 2], "spread": [times[0], times[RUNS - 1]]}));
}
