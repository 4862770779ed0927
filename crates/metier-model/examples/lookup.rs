//! What does looking tokens up in the prompt gain, and where does it lose? One JSON line a case: tokens a second with and without, in
//! turns, the medians with the extremes; and what came of the proposed tokens.
//!
//! `cargo run --release -p metier-model --example lookup -- SMOLLM2_GGUF`

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "an example prints, and stops at the first error")]

use std::{path::Path, sync::Arc, time::Instant};

use metier_kernels::{Pool, Tier};
use metier_model::{
    Decoder, Engine, EngineLimits,
    chat::ChatMessage,
    engine::{GenerationRequest, LookupStats, Sampling, WeightFormat},
    grammar::{Constraint, Form, GrammarEnv},
};
use serde_json::{Value, json};

const THREADS: usize = 2;
const RUNS: usize = 3;
const MAX_TOKENS: usize = 64;
const ORDER: &str = "Order 88-1043 of Kessler Metallbau GmbH, Industriestrasse 14, 70565 Stuttgart: 40 hexagon bolts M12x80 galvanised, \
    25 washers DIN 125 A 13, 6 angle brackets 90x90x3 stainless; delivery by 14 March to hall 3, contact Petra Lindqvist, \
    telephone 0711 4420 118, reference PO-2291-B.";

fn main() {
    let Some(gguf) = std::env::args().nth(1) else {
        println!("usage: lookup SMOLLM2_GGUF");
        return;
    };
    let decoder = Arc::new(Decoder::open(Path::new(&gguf), WeightFormat::AsFile).unwrap());
    let pool = Pool::new(THREADS, Tier::detect());
    let env = GrammarEnv::new(Arc::clone(&decoder)).unwrap();
    let strings = ["customer", "street", "contact", "telephone", "reference"]
        .map(|name| (name.to_owned(), json!({"type": "string"})));
    let names: Vec<&String> = strings.iter().map(|(name, _)| name).collect();
    let schema = json!({"type": "object", "required": names, "additionalProperties": false,
        "properties": strings.iter().cloned().collect::<serde_json::Map<String, Value>>()});
    let fields = Constraint::compile(&Form::JsonSchema(schema), &env).unwrap();
    let hot = Sampling { temperature: 1.0, seed: 3, ..Sampling::default() };
    let repeat = format!("{ORDER}\n\nRepeat this order word for word.");
    let extract = format!("{ORDER}\n\nWrite customer, street, contact, telephone and reference of this order as JSON.");
    let essay = "Write an essay about the sea in winter.".to_owned();
    for (case, text, constraint, sampling, streams) in [
        ("copy", &repeat, None, Sampling::default(), 1),
        ("extract into a schema", &extract, Some(fields.clone()), Sampling::default(), 1),
        ("extract into a schema, 4 streams", &extract, Some(fields.clone()), Sampling::default(), 4),
        ("extract into a schema, 8 streams", &extract, Some(fields), Sampling::default(), 8),
        ("essay, greedy", &essay, None, Sampling::default(), 1),
        ("essay, temperature 1", &essay, None, hot, 1),
        ("essay, temperature 1, 8 streams", &essay, None, hot, 8),
    ] {
        let prompt = decoder.render_chat(&[ChatMessage::new("user", text)], true, None).unwrap();
        let prompt = decoder.tokenizer().encode_prompt(&prompt).unwrap();
        let request = GenerationRequest { prompt, max_tokens: MAX_TOKENS, constraint, sampling, ..Default::default() };
        compare(case, &decoder, &pool, &request, streams);
    }
}

fn compare(case: &str, decoder: &Arc<Decoder>, pool: &Pool, request: &GenerationRequest, streams: usize) {
    let mut rates = [Vec::new(), Vec::new()];
    let mut texts = [String::new(), String::new()];
    let mut stats = LookupStats::default();
    for _ in 0..RUNS {
        for (at, lookup) in [false, true].into_iter().enumerate() {
            let mut engine = Engine::new(Arc::clone(decoder), EngineLimits::default());
            for seed in 0..streams as u64 {
                let sampling = Sampling { seed: request.sampling.seed + seed, ..request.sampling };
                engine.submit(GenerationRequest { lookup, sampling, ..request.clone() }).unwrap();
            }
            // The prompts are read alike with and without: time runs from the first token on.
            while engine.step(pool).is_empty() {}
            let started = Instant::now();
            let answers = engine.drain(pool);
            let tokens: usize = answers.iter().map(|answer| answer.completion_tokens).sum();
            rates[at].push((tokens as f64 / started.elapsed().as_secs_f64()).round());
            texts[at] = answers.into_iter().map(|answer| answer.text).collect();
            stats = engine.stats().lookup;
        }
    }
    assert_eq!(texts[0], texts[1], "the same answer");
    let [plain, looked_up] = rates.map(|mut rates| {
        rates.sort_by(f64::total_cmp);
        json!([rates[RUNS / 2], rates[0], rates[RUNS - 1]])
    });
    let gain = looked_up[0].as_f64().unwrap() / plain[0].as_f64().unwrap();
    println!(
        "{}",
        json!({
            "case": case, "plain": plain, "lookup": looked_up, "gain": (gain * 100.0).round() / 100.0,
            "proposed": stats.proposed_tokens, "right": stats.right_tokens,
        })
    );
}
