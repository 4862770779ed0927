//! What a form costs and saves: `cargo run --release -p metier-model --example grammar -- MODEL.gguf`.
//!
//! Prints the time of a mask (median and 99th of 100) over several answers, and of answers with and without tokens that are written
//! because they are certain.
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
    grammar::{Constraint, Form, GrammarEnv},
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
        let (mut masks, mut begins) = (Vec::new(), Vec::new());
        let mut seconds = [0.0, 0.0];
        let mut tokens = [0, 0];
        for seed in 0..8 {
            for stepwise in [false, true] {
                let mut engine = Engine::new(Arc::clone(&decoder), EngineLimits::default());
                let request = GenerationRequest {
                    prompt: prompt.clone(),
                    max_tokens: 120,
                    sampling: Sampling { temperature: 0.7, seed, ..Default::default() },
                    constraint: Some(constraint.clone()),
                    top_logprobs: stepwise.then_some(0),
                    ..Default::default()
                };
                engine.submit(request).expect("fits");
                let started = Instant::now();
                let answer = engine.drain(&pool).pop().expect("one answer");
                seconds[usize::from(stepwise)] += started.elapsed().as_secs_f64();
                tokens[usize::from(stepwise)] += answer.completion_tokens;
                if stepwise {
                    continue;
                }
                let started = Instant::now();
                let mut state = constraint.begin();
                begins.push(started.elapsed().as_secs_f64() * 1e6);
                for token in answer.tokens {
                    let started = Instant::now();
                    state.allowed().expect("goes on");
                    masks.push(started.elapsed().as_secs_f64() * 1e6);
                    state.commit(token).expect("was drawn");
                }
                if seed == 0 {
                    println!("{name}\t{}", answer.text.replace('\n', " "));
                }
            }
        }
        masks.sort_by(f64::total_cmp);
        begins.sort_by(f64::total_cmp);
        let at = |share: f64| masks[((masks.len() - 1) as f64 * share) as usize];
        println!(
            "{name}\tcompile {:.1} ms, begin {:.0} µs, mask p50 {:.1} µs, p99 {:.0} µs of {}; {} tokens: {:.2} s, step by step {} tokens: {:.2} s",
            compiled.as_secs_f64() * 1e3,
            begins[begins.len() / 2],
            at(0.5),
            at(0.99),
            masks.len(),
            tokens[0],
            seconds[0],
            tokens[1],
            seconds[1],
        );
    }
}
