//! What do many specialists over one base cost? One JSON line a case; two pinned threads, the fastest tier.
//!
//! `cargo run --release -p metier-model --example specialists -- SMOLLM2_GGUF [as-file|int8] [mixed] [prefix] [many] [chunks] [clients]`
//!
//! - `mixed`: 8 clients with 8 adapters (rank 16, all maps), 64 tokens in and 64 out, against the same without adapters, in turns;
//! - `prefix`: time to the first token of 600 remembered tokens and 16 new ones, one adapter and adapters that alternate;
//! - `many`: memory and time a token with 1, 10, 100 and 1,000 adapters of rank 8;
//! - `chunks`: time of one prompt by its length: what a step's budget costs those who wait for it;
//! - `clients`: 8 clients with 8 adapters that each ask again when answered, for 20 seconds: first tokens and completions.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "an example prints, and stops at the first error")]

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use metier_kernels::{Pool, Tier};
use metier_model::{
    Adapter, Decoder, Engine, EngineLimits, LoraFormat, TokenId,
    engine::{AdapterId, CacheScope, Event, GenerationRequest, SequenceId, WeightFormat},
    tiny,
};
use serde_json::json;

const THREADS: usize = 2;
/// Runs of a case; the median is printed, with the extremes.
const RUNS: usize = 5;
const CLIENTS: usize = 8;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some(gguf) = arguments.first() else {
        println!("usage: specialists SMOLLM2_GGUF [as-file|int8] [mixed] [prefix] [many] [chunks] [clients]");
        return;
    };
    let asked = |name: &str| arguments.iter().any(|argument| argument == name);
    let weights = if asked("int8") { WeightFormat::Int8 } else { WeightFormat::AsFile };
    let decoder = Arc::new(Decoder::open(Path::new(gguf), weights).unwrap());
    let pool = Pool::new(THREADS, Tier::detect());
    type Case = fn(&Arc<Decoder>, &Pool);
    let cases: [(&str, Case); 5] =
        [("mixed", mixed), ("prefix", prefix), ("many", many), ("chunks", chunks), ("clients", clients)];
    let all = !cases.iter().any(|(name, _)| asked(name));
    for (name, case) in cases {
        if all || asked(name) {
            case(&decoder, &pool);
        }
    }
}

fn adapter(decoder: &Decoder, seed: u64, rank: usize, format: LoraFormat) -> Arc<Adapter> {
    let base = decoder.network().config();
    let files = tiny::adapter(base, seed, rank, &[], 0.1);
    Arc::new(Adapter::from_bytes(files.config.as_bytes(), &files.weights, base, format).unwrap())
}

fn prompt(seed: usize, n: usize) -> Vec<TokenId> {
    (0..n).map(|i| TokenId(((seed * 7919 + i) * 97 % 40_000 + 100) as u32)).collect()
}

fn engine(decoder: &Arc<Decoder>) -> Engine {
    let limits = EngineLimits { adapter_bytes: 8 << 30, kv_cache_bytes: 2 << 30, ..EngineLimits::default() };
    Engine::new(Arc::clone(decoder), limits)
}

/// Runs until everybody is done; when the first token of each came, in the order of first tokens, and the whole time.
fn timed(engine: &mut Engine, pool: &Pool) -> (Vec<Duration>, Duration, usize) {
    let begun = Instant::now();
    let mut seen: Vec<SequenceId> = Vec::new();
    let mut first = Vec::new();
    let mut tokens = 0;
    while !engine.is_idle() {
        for event in engine.step(pool) {
            if let Event::Token { id, .. } = event {
                tokens += 1;
                if !seen.contains(&id) {
                    seen.push(id);
                    first.push(begun.elapsed());
                }
            }
        }
    }
    (first, begun.elapsed(), tokens)
}

fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 100_000.0).round() / 100.0
}

fn median(mut values: Vec<f64>) -> (f64, [f64; 2]) {
    values.sort_by(f64::total_cmp);
    (values[values.len() / 2], [values[0], values[values.len() - 1]])
}

fn mixed(decoder: &Arc<Decoder>, pool: &Pool) {
    let formats = [LoraFormat::Int8, LoraFormat::F16];
    let mut rates: Vec<Vec<f64>> = vec![Vec::new(); 1 + 2 * formats.len()];
    let mut firsts: Vec<Vec<f64>> = vec![Vec::new(); rates.len()];
    let mut adapters = Vec::new();
    for format in formats {
        adapters.push((0..CLIENTS).map(|i| adapter(decoder, i as u64, 16, format)).collect::<Vec<_>>());
    }
    for _ in 0..=RUNS {
        for case in 0..rates.len() {
            let mut engine = engine(decoder);
            let ids: Option<Vec<AdapterId>> = case.checked_sub(1).map(|case| {
                adapters[case / 2].iter().map(|adapter| engine.load_adapter(Arc::clone(adapter)).unwrap()).collect()
            });
            for client in 0..CLIENTS {
                // Odd cases: one adapter for all; even: one each.
                let adapter = ids.as_ref().map(|ids| ids[if case % 2 == 1 { 0 } else { client }]);
                let request =
                    GenerationRequest { prompt: prompt(client, 64), max_tokens: 64, adapter, ..Default::default() };
                engine.submit(request).unwrap();
            }
            let (first, whole, tokens) = timed(&mut engine, pool);
            rates[case].push(tokens as f64 / whole.as_secs_f64());
            firsts[case].push(ms(first[first.len() - 1]));
        }
    }
    let names = ["no adapter", "one int8 adapter", "8 int8 adapters", "one f16 adapter", "8 f16 adapters"];
    let mut base = 0.0;
    for (case, name) in names.iter().enumerate() {
        // The first run warms up.
        let (value, spread) = median(rates[case][1..].to_vec());
        let (slowest, _) = median(firsts[case][1..].to_vec());
        base = if case == 0 { value } else { base };
        let ratio = (value / base * 1000.0).round() / 1000.0;
        let case = format!("8 clients, 64 in, 64 out, {name}");
        println!(
            "{}",
            json!({"case": case, "unit": "tokens/s", "value": value.round(), "spread": spread.map(f64::round),
                "ratio": ratio, "slowest_first_token_ms": slowest})
        );
    }
}

fn prefix(decoder: &Arc<Decoder>, pool: &Pool) {
    let mut engine = engine(decoder);
    let ids: Vec<AdapterId> =
        (0..2).map(|i| engine.load_adapter(adapter(decoder, i, 16, LoraFormat::Int8)).unwrap()).collect();
    let shared = prompt(1, 600);
    let mut first_token = |adapter: Option<AdapterId>, scope: CacheScope, turn: usize| {
        let mut prompt = shared.clone();
        prompt.extend(self::prompt(1000 + turn, 16));
        let request = GenerationRequest { prompt, max_tokens: 1, adapter, scope, ..Default::default() };
        engine.submit(request).unwrap();
        ms(timed(&mut engine, pool).0[0])
    };
    let tenant = CacheScope::Tenant(1);
    let mut turn = 0;
    for adapter in [None, Some(ids[0]), Some(ids[1])] {
        turn += 1;
        first_token(adapter, tenant, turn);
    }
    let mut report = |case: &str, scope, adapters: &[Option<AdapterId>]| {
        let runs = (0..2 * RUNS).map(|_| {
            // The new tokens are new each time.
            turn += 1;
            first_token(adapters[turn % adapters.len()], scope, turn)
        });
        let runs = runs.collect();
        let (value, spread) = median(runs);
        println!("{}", json!({"case": case, "unit": "ms to the first token", "value": value, "spread": spread}));
    };
    report("600 shared + 16 tokens, base, no cache", CacheScope::Private, &[None]);
    report("600 shared + 16 tokens, base", tenant, &[None]);
    report("600 shared + 16 tokens, same adapter", tenant, &[Some(ids[0])]);
    report("600 shared + 16 tokens, adapters alternate", tenant, &[Some(ids[0]), Some(ids[1])]);
    println!("{}", json!({"case": "prefix cache", "stats": format!("{:?}", engine.stats().cache)}));
}

/// Resident bytes of this process (Linux).
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0");
    line.trim().trim_end_matches(" kB").trim().parse::<f64>().unwrap_or(0.0) * 1024.0
}

fn many(decoder: &Arc<Decoder>, pool: &Pool) {
    let base = decoder.network().config();
    let rank = 8;
    let files = tiny::adapter(base, 0, rank, &[], 0.1);
    let mut engine = engine(decoder);
    let decode = |engine: &mut Engine, ids: &[AdapterId]| {
        // One client; each answer is another specialist's.
        let runs = (0..RUNS * 2).map(|turn| {
            let adapter = Some(ids[turn * 7919 % ids.len()]);
            let request = GenerationRequest { prompt: prompt(turn, 16), max_tokens: 24, adapter, ..Default::default() };
            engine.submit(request).unwrap();
            let (_, whole, tokens) = timed(engine, pool);
            ms(whole) / tokens as f64
        });
        median(runs.collect())
    };
    let warm = engine.load_adapter(adapter(decoder, 0, rank, LoraFormat::Int8)).unwrap();
    decode(&mut engine, &[warm]);
    engine.unload_adapter(warm);
    let before = resident();
    let mut ids: Vec<AdapterId> = Vec::new();
    for n in [1, 10, 100, 1000] {
        while ids.len() < n {
            // The same numbers in memory of their own: what is measured does not depend on them.
            let adapter = Adapter::from_bytes(files.config.as_bytes(), &files.weights, base, LoraFormat::Int8);
            ids.push(engine.load_adapter(Arc::new(adapter.unwrap())).unwrap());
        }
        let (value, spread) = decode(&mut engine, &ids);
        let (counted, grown) = (engine.stats().adapter_bytes as f64, resident() - before);
        let mb = |bytes: f64| (bytes / 1e5).round() / 10.0;
        println!(
            "{}",
            json!({"case": format!("{n} int8 adapters, rank {rank}"), "unit": "ms a token, one client", "value": value,
                "spread": spread, "adapters_mb": mb(counted), "process_grown_mb": mb(grown),
                "weights_mb": mb(n as f64 * files.weights.len() as f64 / 2.0)})
        );
    }
}

fn chunks(decoder: &Arc<Decoder>, pool: &Pool) {
    let mut engine = engine(decoder);
    let id = engine.load_adapter(adapter(decoder, 0, 16, LoraFormat::Int8)).unwrap();
    for n in [1, 16, 64, 128, 512] {
        let mut values = [Vec::new(), Vec::new()];
        for run in 0..=2 * RUNS {
            for (values, adapter) in values.iter_mut().zip([None, Some(id)]) {
                let prompt = prompt(run, n);
                engine.submit(GenerationRequest { prompt, max_tokens: 1, adapter, ..Default::default() }).unwrap();
                values.push(ms(timed(&mut engine, pool).1));
            }
        }
        let [(value, spread), (with, _)] = values.map(|values| median(values[1..].to_vec()));
        let rate = (n as f64 / value * 1000.0).round();
        let ratio = (value / with * 1000.0).round() / 1000.0;
        println!(
            "{}",
            json!({"case": format!("a prompt of {n} tokens"), "unit": "ms", "value": value, "spread": spread,
                "tokens_per_s": rate, "with_an_adapter": with, "ratio": ratio})
        );
    }
}

fn clients(decoder: &Arc<Decoder>, pool: &Pool) {
    let mut engine = engine(decoder);
    let ids: Vec<AdapterId> =
        (0..CLIENTS).map(|i| engine.load_adapter(adapter(decoder, i as u64, 16, LoraFormat::Int8)).unwrap()).collect();
    let mut asked: Vec<(SequenceId, usize, Instant, bool)> = Vec::new();
    let mut done = [0usize; CLIENTS];
    // The eight that start at once have one step together: they are a case of `mixed`.
    let mut first = Vec::new();
    let mut turn = 0;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(20) {
        for (client, id) in ids.iter().enumerate() {
            if !asked.iter().any(|(_, of, ..)| *of == client) {
                turn += 1;
                let request = GenerationRequest {
                    prompt: prompt(turn, 16 + turn * 37 % 100),
                    max_tokens: 16 + turn * 53 % 64,
                    adapter: Some(*id),
                    ..Default::default()
                };
                asked.push((engine.submit(request).unwrap(), client, Instant::now(), false));
            }
        }
        for event in engine.step(pool) {
            match event {
                Event::Token { id, .. } => {
                    if let Some((_, client, since, seen @ false)) = asked.iter_mut().find(|(of, ..)| *of == id) {
                        if done[*client] > 0 {
                            first.push(ms(since.elapsed()));
                        }
                        *seen = true;
                    }
                }
                Event::Scored { .. } | Event::Hidden { .. } => {}
                Event::Done { id, .. } => {
                    if let Some(at) = asked.iter().position(|(of, ..)| *of == id) {
                        done[asked.swap_remove(at).1] += 1;
                    }
                }
            }
        }
    }
    first.sort_by(f64::total_cmp);
    let at = |share: f64| first[((first.len() - 1) as f64 * share) as usize];
    println!(
        "{}",
        json!({"case": "8 clients, 8 adapters, 16-115 in, 16-79 out", "unit": "ms to the first token", "p50": at(0.5),
            "p95": at(0.95), "slowest": at(1.0), "completions": done})
    );
}
