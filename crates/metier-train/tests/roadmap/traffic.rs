//! Small tasks with known truth, for the tests beside this file.

use std::collections::BTreeMap;

use metier_train::discover::{
    Discovery, Task, TaskKind,
    task::{Example, Gold, Identity, IdentityBy, KindGuess, Reading, Sampling, Spread, Traits, Volume, Week},
};

/// Monday 2026-08-31.
pub(crate) const BEGIN_MS: u64 = 1_788_134_400_000;
pub(crate) const WEEK_MS: u64 = 7 * 86_400_000;
const WEEKS: u64 = 10;
const TOPICS: [(&str, [&str; 4]); 4] = [
    ("card_arrival", ["card", "arrive", "post", "delivery"]),
    ("exchange_rate", ["rate", "exchange", "currency", "euro"]),
    ("lost_card", ["lost", "stolen", "block", "wallet"]),
    ("top_up", ["top", "balance", "add", "transfer"]),
];
const FILLERS: [&str; 12] =
    ["please", "today", "my", "the", "why", "when", "help", "account", "with", "still", "again", "bank"];

fn number(seed: u64) -> u64 {
    metier_model::specialist::mix(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5eed)
}

/// `n` different texts in four classes; of `noise_percent` of them the answer is another one. `calls` a week at $0.0026.
pub(crate) fn task(name: &str, n: u64, noise_percent: u64, calls: u64, with_gold: bool) -> Task {
    let examples: Vec<Example> = (0..n)
        .map(|at| {
            let draw = |which: u64| number(at * 31 + which + name.len() as u64 * 7919);
            let (topic, words) = TOPICS[(draw(0) % 4) as usize];
            let word = |which: u64| words[(draw(which) % 4) as usize];
            let filler = |which: u64| FILLERS[(draw(which) % 12) as usize];
            let input =
                format!("{} {} {} {} {} {} no {at}", filler(1), word(2), filler(3), word(4), filler(5), word(6));
            let other = TOPICS[(draw(7) % 4) as usize].0;
            let output = if draw(8) % 100 < noise_percent { other } else { topic };
            Example {
                id: format!("req-{name}-{at}"),
                place: format!("log.jsonl:{}", at + 1),
                time_ms: Some(BEGIN_MS + at * WEEKS * WEEK_MS / n),
                group: Some(format!("customer-{at}")),
                model: "reference-llm".to_owned(),
                input,
                varies: Vec::new(),
                output: Some(output.to_owned()),
                gold: with_gold.then(|| Gold::Label(topic.to_owned())),
                weight: 1.0,
            }
        })
        .collect();
    let volume = Volume {
        calls,
        input_tokens: 800 * calls,
        output_tokens: 60 * calls,
        cost_picousd: 2_600_000_000 * calls,
        ..Volume::default()
    };
    let weeks = (0..WEEKS)
        .map(|week| (Week::of(BEGIN_MS + week * WEEK_MS), BTreeMap::from([("reference-llm".to_owned(), volume)])));
    let mut labels = BTreeMap::new();
    examples.iter().for_each(|example| *labels.entry(example.output.clone().unwrap_or_default()).or_default() += 1);
    Task {
        id: format!("t-{:012x}", number(name.len() as u64 + u64::from(name.as_bytes()[0])) >> 16),
        name: name.to_owned(),
        identity: Identity {
            template: Some("Which intent is this? {}".to_owned()),
            terms: vec!["card".to_owned()],
            by: IdentityBy::Template,
            ..Identity::default()
        },
        kind: KindGuess { kind: TaskKind::Classify, evidence: "4 different answers".to_owned() },
        weeks: weeks.collect(),
        undated: BTreeMap::new(),
        first_ms: Some(BEGIN_MS),
        last_ms: Some(BEGIN_MS + WEEKS * WEEK_MS - 1),
        sampling: Sampling {
            with_text: calls * WEEKS,
            examples: n,
            fraction: n as f64 / (calls * WEEKS) as f64,
            assigned: 0,
            volume_interval: [1.0, 1.0],
        },
        traits: Traits {
            input_tokens: Spread { p50: 800.0, p95: 900.0, mean: 800.0, sigma: 10.0 },
            output_tokens: Spread { p50: 4.0, p95: 6.0, mean: 4.0, sigma: 1.0 },
            labels,
            compressed: 0.1,
            ..Traits::default()
        },
        examples,
        personal: BTreeMap::new(),
    }
}

/// A task of this kind with these texts and answers, evenly over the weeks, each of a customer of its own.
pub(crate) fn task_of(
    name: &str,
    kind: TaskKind,
    schema: Option<&str>,
    rows: impl Iterator<Item = (String, String)>,
) -> Task {
    let rows: Vec<(String, String)> = rows.collect();
    let n = rows.len() as u64;
    let mut task = task(name, n, 0, 1000, false);
    for (example, (input, output)) in task.examples.iter_mut().zip(rows) {
        (example.input, example.output) = (input, Some(output));
    }
    task.kind.kind = kind;
    task.identity.schema = schema.map(str::to_owned);
    task.traits.labels = BTreeMap::new();
    task
}

/// A log of these tasks alone.
pub(crate) fn discovery(tasks: Vec<Task>) -> Discovery {
    let calls = tasks.iter().map(|task| task.total().calls).sum();
    Discovery {
        tasks,
        reading: Reading {
            files: 1,
            rows: calls,
            calls,
            first_ms: Some(BEGIN_MS),
            last_ms: Some(BEGIN_MS + WEEKS * WEEK_MS),
            ..Reading::default()
        },
    }
}
