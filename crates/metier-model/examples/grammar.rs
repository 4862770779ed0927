//! What a form costs and saves: `cargo run --release -p metier-model --example grammar -- MODEL.gguf`.
//!
//! Prints, for answers that are greedy, drawn, and drawn from a nucleus: the time of checking one token and of a mask (median and 99th
//! of 100; the first text of a form, and a later one, which knows what the others met), what a drawn token paid for its form (checks and
//! masks that the engine really asked for, at the mean of those times; known masks at the median of later ones), and the time of whole answers with and without tokens that are
//! written because they are certain.
#![allow(
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::expect_used,
    reason = "a measurement prints and reads the clock"
)]

use std::{path::Path, sync::Arc, time::Instant};

use metier_kernels::{Pool, Tier};
use metier_model::{
    Decoder, Engine, EngineLimits,
    engine::{GenerationRequest, Sampling, WeightFormat},
    grammar::{Constraint, ConstraintStats, Form, GrammarEnv},
};
use serde_json::json;

fn main() {
    let path = std::env::args().nth(1).expect("a GGUF file");
    let decoder = Arc::new(Decoder::open(Path::new(&path), WeightFormat::AsFile).expect("opens"));
    let pool = Pool::new(2, Tier::detect());
    let started = Instant::now();
    let env = GrammarEnv::new(Arc::clone(&decoder)).expect("a vocabulary");
    println!("environment\t{:.1} ms", started.elapsed().as_secs_f64() * 1e3);
    let schema = json!({
        "type": "object",
        "properties": {
            "category": {"enum": ["billing", "shipping", "returns", "other"]},
            "customer_name": {"type": "string", "maxLength": 40},
            "order_number": {"type": "string", "pattern": "^[A-Z]{2}[0-9]{6}$"},
            "amount": {"type": "number"},
            "summary": {"type": "string", "maxLength": 120},
        },
        "required": ["category", "customer_name", "order_number", "amount", "summary"],
        "additionalProperties": false,
    });
    let forms = [
        ("schema", Form::JsonSchema(schema)),
        ("object", Form::JsonObject),
        ("regex", Form::Regex(r"[A-Z]\w+( \w+){3,30}\.".into())),
        ("choice", Form::Choice(["billing", "shipping", "returns", "other"].map(String::from).to_vec())),
    ];
    let text = "<|im_start|>user\nGive the details of this ticket as JSON: Hello, I am Maria Jones, my order AB123456 of 45.90 \
        dollars came broken, please send the money back.<|im_end|>\n<|im_start|>assistant\n";
    let prompt = decoder.tokenizer().encode_with_specials(text).expect("encodes");
    for (name, form) in forms {
        let started = Instant::now();
        let constraint = Constraint::compile(&form, &env).expect("compiles");
        let compiled = started.elapsed();
        // What is measured beside the engine must not find masks out for it.
        let beside = Constraint::compile(&form, &env).expect("compiles");
        for (temperature, top_p) in [(0.0, 1.0), (0.7, 1.0), (0.7, 0.9)] {
            let (mut checks, mut firsts, mut masks, mut begins) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
            let mut asked = ConstraintStats::default();
            let mut seconds = [0.0, 0.0];
            let mut tokens = [0, 0];
            for seed in 0..8 {
                for stepwise in [false, true] {
                    let mut engine = Engine::new(Arc::clone(&decoder), EngineLimits::default());
                    let request = GenerationRequest {
                        prompt: prompt.clone(),
                        max_tokens: 120,
                        sampling: Sampling { temperature, top_p, seed, ..Default::default() },
                        constraint: Some(constraint.clone()),
                        top_logprobs: stepwise.then_some(0),
                        ..Default::default()
                    };
                    engine.submit(request).expect("fits");
                    let started = Instant::now();
                    let answer = engine.drain(&pool).pop().expect("one answer");
                    seconds[usize::from(stepwise)] += started.elapsed().as_secs_f64();
                    tokens[usize::from(stepwise)] += answer.completion_tokens;
                    if !stepwise {
                        asked += engine.stats().constraints;
                        if seed == 0 {
                            println!("{name}\tat {temperature}, top-p {top_p}: {}", answer.text.replace('\n', " "));
                        }
                        continue;
                    }
                    let started = Instant::now();
                    let (mut checked, mut masked) = (beside.begin(), beside.begin());
                    begins.push(started.elapsed().as_secs_f64() * 0.5e6);
                    let mut first = Constraint::compile(&form, &env).expect("compiles").begin();
                    for token in answer.tokens {
                        let started = Instant::now();
                        first.mask().expect("goes on");
                        let made = started.elapsed().as_secs_f64() * 1e6;
                        let started = Instant::now();
                        assert!(checked.allows(token).expect("goes on"));
                        let check = started.elapsed().as_secs_f64() * 1e6;
                        let started = Instant::now();
                        masked.mask().expect("goes on");
                        // What is certain is not drawn.
                        if masked.forced().is_empty() {
                            checks.push(check);
                            firsts.push(made);
                            masks.push(started.elapsed().as_secs_f64() * 1e6);
                        }
                        checked.commit(token).expect("was drawn");
                        masked.commit(token).expect("was drawn");
                        first.commit(token).expect("was drawn");
                    }
                }
            }
            let mean = |times: &[f64]| times.iter().sum::<f64>() / times.len() as f64;
            let of = |times: &mut Vec<f64>, share: f64| {
                times.sort_by(f64::total_cmp);
                times[((times.len() - 1) as f64 * share) as usize]
            };
            let paid = asked.checked_tokens as f64 * mean(&checks)
                + asked.masks as f64 * mean(&firsts)
                + asked.known_masks as f64 * of(&mut masks.clone(), 0.5);
            // A draw that is refused is followed by another check, or a mask.
            println!(
                "{name}\tat {temperature}, top-p {top_p}: compile {:.1} ms, begin {:.0} µs; check p50 {:.1} µs, p99 {:.0}; first mask p50 {:.1} µs, p99 {:.0}, later {:.1}, {:.0}, of {}; asked {} checks, {} masks, {} known: {:.1} µs a drawn token; {} tokens {:.2} s, step by step {} tokens {:.2} s",
                compiled.as_secs_f64() * 1e3,
                of(&mut begins, 0.5),
                of(&mut checks, 0.5),
                of(&mut checks, 0.99),
                of(&mut firsts, 0.5),
                of(&mut firsts, 0.99),
                of(&mut masks, 0.5),
                of(&mut masks, 0.99),
                masks.len(),
                asked.checked_tokens,
                asked.masks,
                asked.known_masks,
                paid / masks.len() as f64,
                tokens[0],
                seconds[0],
                tokens[1],
                seconds[1],
            );
        }
    }
}
