//! Could a model draft for itself with some of its layers left out? One JSON line a share of kept layers: how often the draft's most
//! probable token is the whole model's, and what speculative decoding could gain from that at most.
//!
//! `cargo run --release -p metier-model --example draft -- DECODER`
//!
//! The bound (Leviathan et al. 2023, eq. 1 and theorem 3.8): with acceptance α, a draft that costs c of a pass and γ tokens drafted,
//! (1 − α^(γ+1)) / ((1 − α)(γc + 1)), where reading γ + 1 tokens costs as much as reading one. c is counted in weights: kept layers and
//! the head, over all layers and the head.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "an example prints, and stops at the first error")]

use std::{path::Path, sync::Arc};

use metier_kernels::{Pool, Tier};
use metier_model::{
    Decoder, Engine, EngineLimits, TokenId,
    cache::KeptLayers,
    chat::ChatMessage,
    engine::{CacheScope, GenerationRequest, WeightFormat},
};
use serde_json::json;

const TOKENS: usize = 64;
const LONGEST_DRAFT: i32 = 8;
const ASKED: [&str; 4] = [
    "Write an essay about the sea in winter.",
    "List the steps to change a bicycle tyre.",
    "Translate into French: The invoice was paid twice, please return one of the payments.",
    "Order 88-1043 of Kessler Metallbau GmbH: 40 hexagon bolts M12x80, 25 washers, 6 angle brackets. Repeat this order word for word.",
];

fn main() {
    let Some(path) = std::env::args().nth(1) else {
        println!("usage: draft DECODER");
        return;
    };
    let decoder = Arc::new(Decoder::open(Path::new(&path), WeightFormat::AsFile).unwrap());
    let pool = Pool::new(2, Tier::detect());
    let mut engine = Engine::new(Arc::clone(&decoder), EngineLimits::default());
    let mut ask = |prompt: Vec<TokenId>, max_tokens: usize, kept_layers: Option<KeptLayers>| {
        let scope = CacheScope::Tenant(0);
        engine.submit(GenerationRequest { prompt, max_tokens, kept_layers, scope, ..Default::default() }).unwrap();
        engine.drain(&pool).pop().unwrap().tokens
    };
    let texts: Vec<(Vec<TokenId>, Vec<TokenId>)> = ASKED
        .iter()
        .map(|text| {
            let prompt = decoder.render_chat(&[ChatMessage::new("user", *text)], true, None).unwrap();
            let prompt = decoder.tokenizer().encode_prompt(&prompt).unwrap();
            let answer = ask(prompt.clone(), TOKENS, None);
            (prompt, answer)
        })
        .collect();
    let config = decoder.network().config();
    let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let layer = (config.width * (2 * q + 2 * kv + 3 * config.inner)) as f64;
    let head = (config.width * config.vocabulary) as f64;
    for tenths in [9, 8, 7, 6, 5, 4] {
        // First and last layers matter most: what is left out lies between them, evenly.
        let count = (config.layers * tenths).div_ceil(10);
        let left_out = config.layers - count;
        let inner = config.layers - 2;
        let gone: Vec<usize> = (0..left_out).map(|i| 1 + (2 * i + 1) * inner / (2 * left_out)).collect();
        let kept: Vec<usize> = (0..config.layers).filter(|layer| !gone.contains(layer)).collect();
        let kept = KeptLayers::new(kept).unwrap();
        let (mut right, mut all) = (0, 0);
        for (prompt, answer) in &texts {
            for (i, token) in answer.iter().enumerate() {
                let context = [prompt.as_slice(), &answer[..i]].concat();
                right += usize::from(ask(context, 1, Some(kept.clone())).first() == Some(token));
                all += 1;
            }
        }
        let (accepted, cost) = (
            f64::from(right as u32) / f64::from(all as u32),
            (layer * count as f64 + head) / (layer * config.layers as f64 + head),
        );
        let gain =
            |drafted: i32| (1.0 - accepted.powi(drafted + 1)) / ((1.0 - accepted) * (f64::from(drafted) * cost + 1.0));
        let best = (1..=LONGEST_DRAFT).map(gain).fold(0.0, f64::max);
        println!(
            "{}",
            json!({"kept": count, "of": config.layers, "right": right, "tokens": all, "acceptance": accepted, "cost": cost, "gain_at_most": best})
        );
    }
}
