//! A server with both bases and ten specialists, asked by one client over loopback.

use std::{path::Path, time::Duration};

use anyhow::Context as _;
use metier_model::{Specialist, SpecialistStore};

use super::{
    super::{
        Failure, Outcome,
        ask::{Client, quantile},
        bases,
        child::ServerProcess,
        demo,
        desk::Desk,
    },
    Row, SENTENCE,
};
use crate::{
    config::{Environment, Settings},
    server::resident_bytes,
};

/// Specialists that are served at once.
const SPECIALISTS: usize = 10;
/// Classification requests, after the warm-up.
const REQUESTS: usize = 300;
/// Requests before measuring.
const WARM_UP: usize = 20;
/// Starts of the server.
const STARTS: usize = 5;

pub(super) fn run(settings: &Settings, environment: &Environment, tell: &mut dyn FnMut(Row)) -> Outcome {
    let dir = tempfile::tempdir().context("cannot make a temporary folder").map_err(Failure::Environment)?;
    let store = SpecialistStore::open(&dir.path().join("specialists")).map_err(Failure::environment)?;
    let desk = Desk::open(&store, &dir.path().join("state"), environment)?;
    let names = fill(&desk, dir.path(), settings, environment)?;

    let mut ready = Vec::new();
    for start in 1..STARTS {
        let server = start_server(dir.path(), start)?;
        ready.push(server.ready_after());
        server.stop().context("cannot wait for the server").map_err(Failure::Environment)?;
    }
    let server = start_server(dir.path(), STARTS)?;
    ready.push(server.ready_after());
    tell(row("start to ready, both bases cached".into(), seconds(quantile(&ready, 0.5)), "s", spread(&ready)));

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start a client").map_err(Failure::Environment)?;
    let client = Client::new(server.url()).map_err(Failure::Environment)?;
    let asked = runtime.block_on(ask(&client, &names, settings)).map_err(Failure::Environment)?;
    let case = |q: &str, what: &str| format!("{what}, {q}, one client, log on disk");
    for (model, times) in [("specialist by name", &asked.named), ("auto", &asked.auto)] {
        for (q, word) in [(0.5, "p50"), (0.95, "p95")] {
            tell(row(case(word, model), seconds(quantile(times, q)) * 1e3, "ms", None));
        }
    }
    if let Some(bytes) = resident_bytes(&server.id().to_string()) {
        let case = format!("resident memory, both bases, {} specialists", names.len());
        tell(row(case, bytes as f64 / 1e6, "MB", None));
    }
    server.stop().context("cannot wait for the server").map_err(Failure::Environment)?;
    Ok(())
}

/// The shipped examples, built, and copies of them under other names.
fn fill(desk: &Desk, dir: &Path, settings: &Settings, environment: &Environment) -> Result<Vec<String>, Failure> {
    let mut names = demo::build_examples(desk, &dir.join("examples"), settings, environment)?;
    let originals = names.clone();
    for copy in 0..SPECIALISTS.saturating_sub(originals.len()) {
        let original = &originals[copy % originals.len()];
        let dir = (desk.registry.live(original).map_err(Failure::environment)?)
            .context("a specialist that was just built is gone")
            .map_err(Failure::Environment)?;
        let mut contents = Specialist::open(&dir).map_err(Failure::environment)?.into_contents();
        contents.manifest.name = format!("{original}-{copy}");
        let id = desk.registry.store().add_contents(&contents).map_err(Failure::environment)?;
        desk.built(&contents.manifest.name, id, false)?;
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

fn row(case: String, value: f64, unit: &'static str, spread: Option<f64>) -> Row {
    Row { spread, ..Row::new("serve", case, value, unit) }
}

fn seconds(time: Option<Duration>) -> f64 {
    time.map_or(f64::NAN, |time| time.as_secs_f64())
}

fn spread(times: &[Duration]) -> Option<f64> {
    Some(quantile(times, 0.75)?.as_secs_f64() - quantile(times, 0.25)?.as_secs_f64())
}
