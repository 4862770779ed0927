//! `metier bench engine|serve`: what this machine does with the default models, measured here and now.
//!
//! Each line has the fields of DESIGN.md, "CLI". `peer` and `limit` stay empty where nothing was measured beside ours: a figure that was taken
//! elsewhere is no comparison.

use std::{
    hint::black_box,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use metier_kernels::Pool;
use metier_model::{
    Decoder, Encoder, Engine, EngineLimits, Specialist, SpecialistStore, TokenId, engine::GenerationRequest,
};
use serde::Serialize;

use super::{
    CommonArgs, Failure, Outcome,
    ask::{Client, quantile},
    bases,
    child::ServerProcess,
    demo, line,
};
use crate::{
    config::{Environment, Settings},
    server::resident_bytes,
};

/// About 21 tokens of MiniLM: a support message.
const SENTENCE: &str = "My order arrived with a cracked screen and I would like to send it back for a refund, please.";
/// Rounds of each measurement of the engine; the first is thrown away.
const ENGINE_ROUNDS: usize = 7;
/// Tokens of the prompt whose reading is timed.
const PREFILL_TOKENS: usize = 512;
/// Tokens that are written when writing is timed.
const DECODE_TOKENS: usize = 64;
/// Specialists that are served at once.
const SPECIALISTS: usize = 10;
/// Classification requests, after the warm-up.
const REQUESTS: usize = 300;
/// Requests before measuring.
const WARM_UP: usize = 20;
/// Starts of the server.
const STARTS: usize = 5;

/// Measures this machine with the default models.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  metier bench engine          sentences and tokens a second of the base models
  metier bench serve --json    classification over HTTP: p50, p95, time to ready, memory")]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The base models alone: no server, no log
    Engine,
    /// A server with both bases and ten specialists, asked by one client
    Serve,
}

/// One measured figure.
#[derive(Debug, Serialize)]
struct Row {
    bench: &'static str,
    case: String,
    value: f64,
    unit: &'static str,
    /// Quartile range, in the same unit; `null` where the figure is one of a kind or itself a quantile.
    spread: Option<f64>,
    peer: Option<String>,
    peer_value: Option<f64>,
    ratio: Option<f64>,
    limit: Option<f64>,
    share_of_limit: Option<f64>,
}

/// Runs the verb.
pub fn run(args: &BenchArgs) -> Outcome {
    let (settings, environment) = args.common.settings()?;
    let mut tell = |row: Row| {
        if args.common.json {
            line(&row);
        } else {
            let spread = row.spread.map_or_else(String::new, |spread| format!("  ± {:.3}", spread / 2.0));
            println!("{:8} {:44} {:>12.3} {}{spread}", row.bench, row.case, row.value, row.unit);
        }
    };
    match args.what {
        What::Engine => engine(&settings, &environment, &mut tell),
        What::Serve => serve(&settings, &environment, &mut tell),
    }
}

/// Units of work a second, median and quartile range over the rounds.
fn rate(
    case: String,
    unit: &'static str,
    units: usize,
    mut round: impl FnMut() -> Result<Duration, Failure>,
) -> Result<Row, Failure> {
    round()?;
    let mut rates = Vec::with_capacity(ENGINE_ROUNDS);
    for _ in 0..ENGINE_ROUNDS {
        rates.push(units as f64 / round()?.as_secs_f64());
    }
    rates.sort_by(f64::total_cmp);
    let at = |q: f64| rates[(q * (rates.len() - 1) as f64).round() as usize];
    Ok(row("engine", case, at(0.5), unit, Some(at(0.75) - at(0.25))))
}

fn row(bench: &'static str, case: String, value: f64, unit: &'static str, spread: Option<f64>) -> Row {
    Row {
        bench,
        case,
        value,
        unit,
        spread,
        peer: None,
        peer_value: None,
        ratio: None,
        limit: None,
        share_of_limit: None,
    }
}

fn engine(settings: &Settings, environment: &Environment, tell: &mut dyn FnMut(Row)) -> Outcome {
    let pool = bases::pool(settings, environment)?;
    let machine = format!("{} threads, {}", pool.threads(), pool.tier());

    let encoder = bases::encoder(settings, environment)?;
    for batch in [1, 32] {
        let texts = vec![SENTENCE; batch];
        let tokens = encoder.count_tokens(SENTENCE);
        let case = format!("{}, {tokens} tokens, batch {batch}, {machine}", settings.models.encoder);
        tell(rate(case, "sentences/s", batch, || embed(&encoder, &pool, &texts))?);
    }

    let Some(decoder) = bases::decoder(settings, environment)? else { return Ok(()) };
    let decoder = Arc::new(decoder);
    let name = &settings.models.decoder;
    let prompt = prompt(&decoder)?;
    let case = format!("{name}, reads {PREFILL_TOKENS} tokens, {machine}");
    tell(rate(case, "tokens/s", PREFILL_TOKENS, || generate(&decoder, &pool, &prompt, 1, 1))?);
    for sequences in [1, 8] {
        // Long enough that the greedy answer goes on repeating the sentence instead of ending.
        let short = &prompt[..128];
        // The time to read the prompt and write one token is taken off: what stays is writing.
        let case = format!("{name}, writes, {sequences} at once, {machine}");
        tell(rate(case, "tokens/s", sequences * DECODE_TOKENS, || {
            let begin = generate(&decoder, &pool, short, 1, sequences)?;
            Ok(generate(&decoder, &pool, short, 1 + DECODE_TOKENS, sequences)?.saturating_sub(begin))
        })?);
    }
    Ok(())
}

fn embed(encoder: &Encoder, pool: &Pool, texts: &[&str]) -> Result<Duration, Failure> {
    let begun = Instant::now();
    black_box(encoder.embed(pool, texts).map_err(Failure::environment)?);
    Ok(begun.elapsed())
}

fn prompt(decoder: &Decoder) -> Result<Vec<TokenId>, Failure> {
    let text = format!("{SENTENCE} ").repeat(PREFILL_TOKENS);
    let mut tokens = decoder.tokenizer().encode(&text).map_err(Failure::environment)?;
    tokens.truncate(PREFILL_TOKENS);
    Ok(tokens)
}

/// Time for `sequences` of the same prompt to write `max_tokens` each. An answer may end early by itself: that is told as an error, for
/// the figure would be wrong.
fn generate(
    decoder: &Arc<Decoder>,
    pool: &Pool,
    prompt: &[TokenId],
    max_tokens: usize,
    sequences: usize,
) -> Result<Duration, Failure> {
    let mut engine = Engine::new(Arc::clone(decoder), EngineLimits::default());
    for _ in 0..sequences {
        let request = GenerationRequest { prompt: prompt.to_vec(), max_tokens, ..Default::default() };
        engine.submit(request).map_err(Failure::environment)?;
    }
    let begun = Instant::now();
    let answers = engine.drain(pool);
    let elapsed = begun.elapsed();
    match answers.iter().find(|answer| answer.completion_tokens != max_tokens) {
        None => Ok(elapsed),
        Some(short) => {
            let error = anyhow::anyhow!("an answer ended after {} of {max_tokens} tokens", short.completion_tokens);
            Err(Failure::Environment(error))
        }
    }
}

fn serve(settings: &Settings, environment: &Environment, tell: &mut dyn FnMut(Row)) -> Outcome {
    let dir = tempfile::tempdir().context("cannot make a temporary folder").map_err(Failure::Environment)?;
    let store = SpecialistStore::open(&dir.path().join("specialists")).map_err(Failure::environment)?;
    let names = fill(&store, dir.path(), settings, environment)?;

    let mut ready = Vec::new();
    for start in 1..STARTS {
        let server = start_server(dir.path(), start)?;
        ready.push(server.ready_after());
        server.stop().context("cannot wait for the server").map_err(Failure::Environment)?;
    }
    let server = start_server(dir.path(), STARTS)?;
    ready.push(server.ready_after());
    tell(row("serve", "start to ready, both bases cached".into(), seconds(quantile(&ready, 0.5)), "s", spread(&ready)));

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start a client").map_err(Failure::Environment)?;
    let client = Client::new(server.url()).map_err(Failure::Environment)?;
    let asked = runtime.block_on(ask(&client, &names, settings)).map_err(Failure::Environment)?;
    let case = |q: &str, what: &str| format!("{what}, {q}, one client, log on disk");
    for (model, times) in [("specialist by name", &asked.named), ("auto", &asked.auto)] {
        for (q, word) in [(0.5, "p50"), (0.95, "p95")] {
            tell(row("serve", case(word, model), seconds(quantile(times, q)) * 1e3, "ms", None));
        }
    }
    if let Some(bytes) = resident_bytes(&server.id().to_string()) {
        let case = format!("resident memory, both bases, {} specialists", names.len());
        tell(row("serve", case, bytes as f64 / 1e6, "MB", None));
    }
    server.stop().context("cannot wait for the server").map_err(Failure::Environment)?;
    Ok(())
}

/// The shipped examples, built, and copies of them under other names.
fn fill(
    store: &SpecialistStore,
    dir: &Path,
    settings: &Settings,
    environment: &Environment,
) -> Result<Vec<String>, Failure> {
    let mut names = demo::build_examples(store, &dir.join("examples"), settings, environment)?;
    let originals = names.clone();
    for copy in 0..SPECIALISTS.saturating_sub(originals.len()) {
        let original = &originals[copy % originals.len()];
        let dir = store
            .current(original)
            .context("a specialist that was just built is gone")
            .map_err(Failure::Environment)?;
        let mut contents = Specialist::open(&dir).map_err(Failure::environment)?.into_contents();
        contents.manifest.name = format!("{original}-{copy}");
        store.add_contents(&contents).map_err(Failure::environment)?;
        names.push(contents.manifest.name);
    }
    Ok(names)
}

fn start_server(dir: &Path, start: usize) -> Result<ServerProcess, Failure> {
    let start_it = || {
        let exe = std::env::current_exe().context("cannot find this program on disk")?;
        let (state, specialists) = (dir.join("state"), dir.join("specialists"));
        let args = ["--state".as_ref(), state.as_os_str(), "--specialists".as_ref(), specialists.as_os_str()];
        Ok(ServerProcess::start(&exe, &args, &[], &dir.join(format!("serve-{start}.log")))?)
    };
    start_it().map_err(Failure::Environment)
}

struct Times {
    named: Vec<Duration>,
    auto: Vec<Duration>,
}

async fn ask(client: &Client, names: &[String], settings: &Settings) -> anyhow::Result<Times> {
    // The decoder is used once, so that its pages count as resident.
    if settings.models.decoder != bases::NONE {
        client.chat(&settings.models.decoder, SENTENCE, 8).await?;
    }
    let mut times = Times { named: Vec::new(), auto: Vec::new() };
    for idx in 0..WARM_UP + REQUESTS {
        let text = format!("{SENTENCE} My number is {idx}.");
        let named = client.chat(&names[idx % names.len()], &text, 8).await?.elapsed;
        let auto = client.chat("auto", &text, 8).await?.elapsed;
        if idx >= WARM_UP {
            times.named.push(named);
            times.auto.push(auto);
        }
    }
    Ok(times)
}

fn seconds(time: Option<Duration>) -> f64 {
    time.map_or(f64::NAN, |time| time.as_secs_f64())
}

fn spread(times: &[Duration]) -> Option<f64> {
    Some(quantile(times, 0.75)?.as_secs_f64() - quantile(times, 0.25)?.as_secs_f64())
}
