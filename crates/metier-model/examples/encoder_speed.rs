//! How fast does this machine embed, and what do 8-bit weights cost? One JSON line a case; a pool of two pinned threads.
//!
//! `cargo run --release -p metier-model --example encoder_speed -- ENCODER_DIR [TIER [CASE]]`; CASE is a part of the names of the
//! cases to run, for a profiler.
//!
//! Figures of neighbours on the same cores are part of every figure: compare within one run.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "an example prints, and stops at the first error")]

use std::{path::Path, time::Instant};

use metier_kernels::{Pool, Tier};
use metier_model::{Encoder, EncoderWeights, TokenId};
use serde_json::json;

const THREADS: usize = 2;
/// Runs of a case; the median is printed, with the extremes.
const RUNS: usize = 5;
/// Sentences of a run: enough that a run takes tens of milliseconds at least.
const SENTENCES: usize = 32;

const SUBJECTS: [&str; 8] = [
    "The debit card that was sent to me last week",
    "A supplier in Rotterdam with eleven open invoices",
    "My colleague from the claims department",
    "The pump behind the second compressor",
    "Our tenant on the fourth floor",
    "A patient with mild hypertension",
    "The quarterly report on water quality",
    "An applicant without a fixed address",
];
const VERBS: [&str; 8] = [
    "has not arrived yet and nobody answers",
    "asks for a refund of forty euros",
    "stopped working after the update on Tuesday",
    "was promised a call back this morning",
    "needs to be reviewed before the end of May",
    "could not be found in the warehouse",
    "makes a strange noise at low speed",
    "wants to know which documents are missing",
];
const ENDS: [&str; 8] = [
    "please check.",
    "where is it now?",
    "what should we do?",
    "thank you!",
    "this is the third time.",
    "see the attached photographs.",
    "reference 48-1173.",
    "the contract says otherwise.",
];

/// Sentence `i` of 512 different ones, about 21 tokens each.
fn sentence(i: usize) -> String {
    format!("{} {}; {}", SUBJECTS[i % 8], VERBS[(i / 8 + i) % 8], ENDS[(i / 64 + i / 3) % 8])
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [dir, more @ ..] = arguments.as_slice() else {
        println!("usage: encoder_speed ENCODER_DIR [TIER [CASE]]");
        return;
    };
    let tier = more.first().map_or_else(Tier::detect, |name| name.parse().unwrap());
    let wanted = more.get(1).map_or("", String::as_str);
    let pool = Pool::new(THREADS, tier);
    let short: Vec<String> = (0..SENTENCES).map(|i| sentence(i * 37)).collect();
    let long: Vec<String> =
        (0..SENTENCES).map(|i| (0..7).map(|j| sentence(i * 41 + j * 59)).collect::<Vec<_>>().join(" ")).collect();
    let mut vectors: Vec<Vec<Vec<f32>>> = Vec::new();
    for (weights, name) in [(EncoderWeights::F32, "f32"), (EncoderWeights::Int8, "int8")] {
        let before = resident_mib();
        let encoder = Encoder::open_with(Path::new(dir), weights).unwrap();
        speed(&encoder, name, &pool, &short, wanted);
        speed(&encoder, name, &pool, &long, wanted);
        if !wanted.is_empty() {
            continue;
        }
        let used = resident_mib() - before;
        println!("{}", json!({"case": format!("{name}, resident after use"), "unit": "MiB", "value": used}));
        let texts: Vec<String> =
            (0..512).map(sentence).chain(long.clone()).chain(["".into(), "?".into(), "42".into()]).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        vectors.push(encoder.embed(&pool, &texts).unwrap());
    }
    let [exact, eight] = vectors.as_slice() else { return };
    let cosines = exact.iter().zip(eight).map(|(a, b)| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>());
    let (least, sum) = cosines.fold((1.0f32, 0.0), |(least, sum), x| (least.min(x), sum + x));
    let mean = sum / exact.len() as f32;
    println!("{}", json!({"case": "cosine int8 to f32", "texts": exact.len(), "min": least, "mean": mean}));
}

/// Resident memory of this process without mapped files, in MiB; 0 where the system does not tell.
fn resident_mib() -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").trim().parse::<i64>().unwrap_or(0) / 1024
}

fn speed(encoder: &Encoder, weights: &str, pool: &Pool, texts: &[String], wanted: &str) {
    let report = |case: &str, work: &mut dyn FnMut() -> usize| {
        if case.contains(wanted) {
            report(case, work);
        }
    };
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let windows: Vec<Vec<TokenId>> = texts.iter().map(|text| encoder.windows_of(text).unwrap().remove(0)).collect();
    let tokens = windows.iter().map(Vec::len).sum::<usize>() / windows.len();
    report(&format!("{tokens} tokens, tokenising alone"), &mut || {
        for text in &texts {
            encoder.windows_of(text).unwrap();
        }
        texts.len()
    });
    let windows: Vec<&[TokenId]> = windows.iter().map(Vec::as_slice).collect();
    for batch in [1, 32] {
        report(&format!("{weights}, {tokens} tokens, batch {batch}, text"), &mut || {
            for texts in texts.chunks(batch) {
                encoder.embed(pool, texts).unwrap();
            }
            texts.len()
        });
        report(&format!("{weights}, {tokens} tokens, batch {batch}, ids"), &mut || {
            for windows in windows.chunks(batch) {
                encoder.embed_windows(pool, windows).unwrap();
            }
            windows.len()
        });
    }
}

/// Runs `work`, which returns how many sentences it did: once to warm up, then [`RUNS`] times.
fn report(case: &str, work: &mut dyn FnMut() -> usize) {
    work();
    let mut rates: Vec<f64> = (0..RUNS)
        .map(|_| {
            let started = Instant::now();
            let sentences = work();
            (sentences as f64 / started.elapsed().as_secs_f64()).round()
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    let (value, spread) = (rates[RUNS / 2], [rates[0], rates[RUNS - 1]]);
    println!("{}", json!({"case": case, "unit": "sentences/s", "value": value, "spread": spread}));
}
