//! Do deltas train here as they do in PEFT, and does the engine then answer with them? Networks and adapters are metier-model's goldens.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests; they print what they measured")]

use std::{cell::Cell, collections::BTreeMap, path::PathBuf, time::Duration};

use metier_kernels::{Pool, Tier};
use metier_model::{
    Adapter, Decoder, Digest, LoraFormat, Progress, TokenId, arch::transformer::WeightFormat, format::Safetensors,
    progress::silent,
};
use metier_train::{
    craft::{
        checkpoint::Keeper,
        lora::{LoraError, Outcome, Recipe, Row, Run, Trained, Tuner},
    },
    grad::{
        Segments,
        llama::{LlamaNet, LoraConfig, Pass},
    },
};

const VOCABULARY: usize = 260;
/// max |Δ| of logits whose deviation is about 1, f32 here and there in another order of sums.
const LOGITS: f32 = 1e-4;
/// Loss of a step against PEFT's, both near 5.6 at first; twelve steps of rounding.
const LOSS: f64 = 2e-4;
/// Length of a derivative, as a share.
const NORM: f64 = 2e-3;
/// Adam divides by the root of a square: where a derivative is near 0 its sign is rounding, and a step moves a number by 3e-3.
const DELTA: f32 = 1e-3;

fn golden(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../metier-model/tests/goldens").join(file)
}

fn ours(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(file)
}

fn pool() -> Pool {
    Pool::new(2, Tier::detect())
}

fn decoder(form: &str) -> Decoder {
    Decoder::open(&golden(form), WeightFormat::F32).unwrap()
}

fn ids(n: usize, salt: usize) -> Vec<TokenId> {
    (0..n).map(|i| TokenId(((i * 73 + i * i * 11 + 5 + salt * 31) % VOCABULARY) as u32)).collect()
}

/// As in `make_lora_trace.py`.
fn rows() -> Vec<Row> {
    [((9, 1), (3, 2)), ((1, 3), (5, 4)), ((14, 5), (1, 6))]
        .map(|((n, a), (m, b))| Row { prompt: ids(n, a), answer: ids(m, b), ..Row::default() })
        .to_vec()
}

fn tensors(path: PathBuf) -> BTreeMap<String, Vec<f32>> {
    let bytes = std::fs::read(path).unwrap();
    let index = Safetensors::parse(&bytes).unwrap();
    index.tensors().keys().map(|name| (name.clone(), index.tensor(&bytes, name).unwrap().to_f32().unwrap())).collect()
}

fn recipe() -> Recipe {
    Recipe { lora: LoraConfig { r: 4, alpha: 8.0 }, learning_rate: 3e-3, epochs: 40, ..Recipe::default() }
}

/// Logits of every row of the network with the deltas `net` has.
fn logits(net: &LlamaNet, pool: &Pool, ids: &[TokenId]) -> Vec<f32> {
    let mut pass = Pass::default();
    net.forward(pool, &net.params.values, ids, &Segments::of([ids.len()]), &mut pass);
    net.logits(pool, &pass, &(0..ids.len()).collect::<Vec<_>>())
}

fn far(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Before a step, the network answers as the engine does without an adapter: both forms of the base, all families but the one whose maps are
/// fused.
#[test]
fn an_untouched_delta_changes_nothing() {
    let pool = pool();
    for family in ["llama", "llama3", "mistral", "qwen2", "qwen3", "smollm3", "gemma3", "phi3"] {
        for form in [format!("{family}.gguf"), format!("folders/{family}")] {
            let decoder = decoder(&form);
            let plain = match decoder.network().plain() {
                Ok(plain) => plain,
                Err(error) => {
                    assert_eq!(family, "phi3", "{error}");
                    assert!(error.to_string().contains("several maps as one tensor"), "{error}");
                    continue;
                }
            };
            let net = LlamaNet::new(plain, recipe().lora, 1);
            let ids = ids(30, 0);
            let expected = decoder.logits(&pool, &ids).unwrap().concat();
            let far = far(&logits(&net, &pool, &ids), &expected);
            eprintln!("{form}: max |Δlogit| = {far:e}");
            assert!(far <= LOGITS, "{form}: {far}");
        }
    }
}

/// Twelve steps of AdamW: loss and length of the derivative of each, and the deltas at the end.
#[test]
fn training_follows_peft() {
    #[derive(serde::Deserialize)]
    struct Trace {
        losses: Vec<f64>,
        gradient_norms: Vec<f64>,
    }
    let pool = pool();
    let llama = golden("adapters/llama-all/adapter_model.safetensors");
    for (form, of, start) in [
        ("llama.gguf", "lora", llama.clone()),
        ("folders/llama", "lora", llama),
        ("gemma3.gguf", "lora-gemma3", ours("lora-gemma3/start.safetensors")),
        ("folders/gemma3", "lora-gemma3", ours("lora-gemma3/start.safetensors")),
        ("folders/qwen3", "lora-qwen3", ours("lora-qwen3/start.safetensors")),
    ] {
        let trace: Trace = serde_json::from_slice(&std::fs::read(ours(of).join("trace.json")).unwrap()).unwrap();
        let mut tuner = Tuner::new(decoder(form).network().plain().unwrap(), &recipe(), 1);
        tuner.start_from(&tensors(start.clone()));
        let rows = rows();
        let all: Vec<&Row> = rows.iter().collect();
        for (step, (loss, norm)) in trace.losses.iter().zip(&trace.gradient_norms).enumerate() {
            let found = tuner.step(&pool, &all, 1.0);
            assert!((found.0 - loss).abs() <= LOSS, "{form}, step {step}: loss {} is not {loss}", found.0);
            assert!((found.1 - norm).abs() <= NORM * norm, "{form}, step {step}: norm {} is not {norm}", found.1);
        }
        let end = tensors(ours(of).join("adapter_model.safetensors"));
        let start = tensors(start);
        for tensor in tuner.net().params.tensors() {
            let found = &tuner.net().params.values[tensor.range.clone()];
            let far_off = far(found, &end[&tensor.name]);
            assert!(far_off <= DELTA, "`{}`: {far_off}", tensor.name);
            assert!(far(found, &start[&tensor.name]) > 10.0 * DELTA, "`{}` hardly moved", tensor.name);
        }
    }
}

/// Rows learnt by heart; their files, read by the engine over either form of the base, give the logits that were trained.
#[test]
fn the_engine_answers_with_what_was_learnt() {
    let pool = pool();
    // Logits of the tiny Gemma are at most about 1.3: its embeddings are its head, and small.
    for (family, learnt) in [("llama", 0.1), ("gemma3", 2.5)] {
        let base = decoder(&format!("{family}.gguf"));
        let recipe = Recipe { step_tokens: 100, learning_rate: 1e-2, ..recipe() };
        let mut tuner = Tuner::new(base.network().plain().unwrap(), &recipe, 5);
        let rows: Vec<Row> =
            (0..32).map(|i| Row { prompt: ids(4 + i % 5, i), answer: ids(2, 100 + i % 4), ..Row::default() }).collect();
        let before = tuner.net().params.clone();
        let mut losses = Vec::new();
        tuner.learn(&pool, &rows, &recipe, 5, &mut silent, &mut |step| losses.push(step.loss)).unwrap();
        let (first, last) = (losses[0], losses[losses.len() - 3..].iter().sum::<f64>() / 3.0);
        assert!(last < learnt && first > 4.0, "{family}: from {first} to {last}");
        for tensor in before.tensors() {
            let range = tensor.range.clone();
            let moved = far(&before.values[range.clone()], &tuner.net().params.values[range]);
            assert!(moved > 1e-3, "{family}: `{}` moved by {moved}", tensor.name);
        }
        let dir = tempfile::tempdir().unwrap();
        let (config, weights) = tuner.files(family);
        std::fs::write(dir.path().join("adapter_config.json"), config).unwrap();
        std::fs::write(dir.path().join("adapter_model.safetensors"), weights).unwrap();
        for form in [format!("{family}.gguf"), format!("folders/{family}")] {
            let base = decoder(&form);
            let adapter = Adapter::open(dir.path(), base.network().config(), LoraFormat::F16).unwrap();
            let prompt = ids(20, 3);
            let served = base.logits_with(&pool, &prompt, Some(&adapter)).unwrap().concat();
            let trained = logits(tuner.net(), &pool, &prompt);
            let spread = (trained.iter().map(|x| x * x).sum::<f32>() / trained.len() as f32).sqrt();
            let far = far(&served, &trained);
            eprintln!("{form}: max |Δlogit| = {far:e} of a deviation of {spread}");
            // Deltas are served in 16 bits.
            assert!(far <= 5e-3 * spread, "{form}: {far} of {spread}");
        }
    }
}

#[test]
fn rows_that_do_not_fit_are_refused() {
    let pool = pool();
    let mut tuner = Tuner::new(decoder("llama.gguf").network().plain().unwrap(), &recipe(), 1);
    let mut learn = |rows: &[Row]| tuner.learn(&pool, rows, &recipe(), 1, &mut silent, &mut |_| ()).err().unwrap();
    assert!(matches!(learn(&[]), LoraError::NoRows));
    let long = Row { prompt: ids(200, 1), answer: ids(1, 1), ..Row::default() };
    assert!(learn(&[rows().remove(0), long]).to_string().contains("row 1 has 200 prompt and 1 answer tokens"));
    assert!(matches!(learn(&[Row { prompt: ids(2, 1), answer: Vec::new(), ..Row::default() }]), LoraError::Row { .. }));
}

fn trained(outcome: Outcome) -> Trained {
    match outcome {
        Outcome::Trained(trained) => trained,
        Outcome::Skipped { .. } => panic!("there is time enough"),
    }
}

/// Killed at a step, whichever, it goes on from its last checkpoint and comes to the same bytes; ends with the best epoch, not the last.
#[test]
fn killed_and_taken_up_it_is_the_same() {
    let pool = pool();
    let base = decoder("llama.gguf");
    let recipe = Recipe { step_tokens: 60, learning_rate: 1e-2, epochs: 6, patience: 2, ..recipe() };
    let row = |i: usize| Row { prompt: ids(4 + i % 5, i), answer: ids(2, 100 + i % 4), ..Row::default() };
    let rows: Vec<Row> = (0..24).map(row).collect();
    let validation: Vec<Row> = (24..32).map(row).collect();
    // Every look at this clock is a second later, so that every second step is kept.
    let ticks = Cell::new(0);
    let clock = || {
        ticks.set(ticks.get() + 1);
        Duration::from_secs(ticks.get())
    };
    let run = Run { pool: &pool, seed: 5, clock: &clock, deadline: Duration::MAX };
    let dir = tempfile::tempdir().unwrap();
    let keeper = |plan: &str| Keeper::new(dir.path(), "t", "adapter", Digest::of(plan.as_bytes()));
    let train = |keeper: Option<&mut Keeper>, progress: &mut dyn FnMut(Progress<'_>)| {
        let mut tuner = Tuner::new(base.network().plain().unwrap(), &recipe, 5);
        let outcome = tuner.train(&run, &rows, &validation, &recipe, keeper, progress).unwrap();
        (trained(outcome), tuner.files_in_halves("tiny"))
    };
    let (whole, files) = train(None, &mut silent);
    assert!(whole.epochs.len() >= 2 && whole.planned == 6 && whole.resumed_at.is_none(), "{whole:?}");
    let least = whole.epochs.iter().min_by(|a, b| a.validation_loss.total_cmp(&b.validation_loss)).unwrap();
    assert_eq!(whole.best, least.epoch);
    for kill_at in [0, 1, 3, 6, 7, 10] {
        let mut progress = |progress: Progress<'_>| assert!(progress.done < kill_at, "killed");
        let killed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            train(Some(&mut keeper("plan")), &mut progress);
        }));
        assert!(killed.is_err(), "killed at step {kill_at}");
    }
    let (taken_up, same) = train(Some(&mut keeper("plan")), &mut silent);
    assert!(taken_up.resumed_at.unwrap() > 5, "{:?}", taken_up.resumed_at);
    assert!(files == same, "other bytes");
    assert_eq!((taken_up.epochs.len(), taken_up.best), (whole.epochs.len(), whole.best));
    // The log went through text, which rounds the last bit.
    assert_eq!(taken_up.steps.len(), whole.steps.len());
    for (a, b) in taken_up.steps.iter().zip(&whole.steps) {
        assert!(
            a.step == b.step && (a.loss - b.loss).abs() < 1e-12 && (a.gradient_norm - b.gradient_norm).abs() < 1e-12
        );
    }
    // Another plan begins anew.
    assert_eq!(train(Some(&mut keeper("another")), &mut silent).0.resumed_at, None);
}

/// Where not one epoch is predicted to end in time, nothing is trained; where some are, so many are planned.
#[test]
fn what_does_not_fit_into_the_budget_is_not_begun() {
    let pool = pool();
    let base = decoder("llama.gguf");
    let rows: Vec<Row> = (0..8).map(|i| Row { prompt: ids(4, i), answer: ids(2, i % 4), ..Row::default() }).collect();
    let ticks = Cell::new(0);
    let clock = || {
        ticks.set(ticks.get() + 1);
        Duration::from_secs(ticks.get())
    };
    let recipe = Recipe { epochs: 50, patience: 50, ..recipe() };
    let train = |deadline: u64| {
        let run = Run { pool: &pool, seed: 5, clock: &clock, deadline: Duration::from_secs(ticks.get() + deadline) };
        let mut tuner = Tuner::new(base.network().plain().unwrap(), &recipe, 5);
        tuner.train(&run, &rows, &rows[..1], &recipe, None, &mut silent).unwrap()
    };
    assert!(matches!(train(1), Outcome::Skipped { .. }));
    let planned = trained(train(20)).planned;
    assert!((2..50).contains(&planned), "{planned}");
}
