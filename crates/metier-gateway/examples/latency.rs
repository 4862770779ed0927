//! How long does a classification take, audit included, without HTTP? And what does the record cost by itself?
//!
//! `cargo run --release -p metier-gateway --example latency -- STATE_DIR ENCODER_DIR BUNDLE_DIR [REQUESTS]`
//!
//! One client, one request at a time. Prints a JSON line a figure.
#![allow(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "an example is a program: it prints and has a clock"
)]

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use metier_gateway::{
    Caller, Gateway, GatewayConfig, Limits, LocalModels, Meter, Reply, RequestContext,
    audit::{self, Entry, ReceiptId},
};
use metier_kernels::{Pool, Tier};
use metier_model::{encoder::Encoder, specialist::Specialist};
use metier_traffic::wire::{ChatRequest, Message, Role};
use tokio::time::Instant;

/// About the length of a support ticket's first line; varied, so that nothing can be remembered.
const TEXTS: [&str; 4] = [
    "my card has not arrived yet and it has been two weeks since I ordered it",
    "why was I charged an extra fee when I paid abroad yesterday evening",
    "please tell me how to top up my account by bank transfer, the app says no",
    "someone used my card without my knowledge, I want to block it at once",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let usage = "STATE_DIR ENCODER_DIR BUNDLE_DIR [REQUESTS]";
    let mut path = || args.next().map(PathBuf::from).ok_or(usage);
    let (state_dir, encoder, bundle) = (path()?, path()?, path()?);
    let n_requests: usize = args.next().map_or(Ok(300), |text| text.parse())?;

    let pool = Arc::new(Pool::new(2, Tier::detect()));
    let encoder = Arc::new(Encoder::open(&encoder)?);
    let specialist = Arc::new(Specialist::open(&bundle)?);
    let name = specialist.manifest().name.clone();
    let config = GatewayConfig {
        state_dir,
        backends: Vec::new(),
        meter: Meter::default(),
        limits: Limits::default(),
        share_prefixes: false,
        retry_seed: 0,
    };
    let models = LocalModels { encoder: Some(encoder), decoder: None, pool };
    let opening = Instant::now();
    let gateway = Gateway::open(config, models, Box::new(now_ms))?;
    println!(r#"{{"case":"open the log","value":{:.1},"unit":"ms"}}"#, opening.elapsed().as_secs_f64() * 1e3);
    gateway.reload_specialists(vec![specialist]);

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut times = Vec::with_capacity(n_requests);
    for n in 0..n_requests {
        let text = format!("{} ({n})", TEXTS[n % TEXTS.len()]);
        let request = ChatRequest::new(name.as_str(), vec![Message { role: Role::User, content: text }]);
        let context = RequestContext {
            request_id: format!("latency-{n}"),
            now_ms: now_ms(),
            deadline: Instant::now() + Duration::from_secs(10),
        };
        let started = Instant::now();
        let reply = runtime.block_on(gateway.handle(&Caller::loopback(), request, context))?;
        times.push(started.elapsed());
        assert!(matches!(reply, Reply::Whole { .. }), "nobody asked for a stream");
    }
    report("classification with audit", times);

    let log = gateway.audit();
    let times = (0..n_requests)
        .map(|n| {
            let receipt = ReceiptId::new(now_ms(), [n as u8; 10].map(|byte| byte ^ (n >> 8) as u8));
            let entry = Entry { key: "latency".into(), receipt: Some(receipt), ..Entry::default() };
            let started = Instant::now();
            log.opened(entry.clone(), Vec::new())?.wait()?;
            let took = started.elapsed();
            log.closed(entry, None)?.wait()?;
            Ok(took)
        })
        .collect::<Result<Vec<_>, audit::AuditError>>()?;
    report("one durable entry", times);

    let started = Instant::now();
    let verified = audit::verify(log.database(), None, log.key())?;
    let per_entry = started.elapsed().as_secs_f64() * 1e6 / verified.entries as f64;
    println!(r#"{{"case":"verify, an entry","value":{per_entry:.2},"unit":"us","entries":{}}}"#, verified.entries);
    let started = Instant::now();
    let n_receipts = n_requests.min(100);
    for n in 0..n_receipts {
        log.prove(&format!("latency-{n}"))?;
    }
    let each = started.elapsed().as_secs_f64() * 1e6 / n_receipts as f64;
    println!(r#"{{"case":"prove one receipt","value":{each:.1},"unit":"us"}}"#);
    Ok(())
}

fn report(case: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    println!(
        r#"{{"case":"{case}","p50":{:.2},"p95":{:.2},"p99":{:.2},"unit":"ms","n":{}}}"#,
        at(0.5),
        at(0.95),
        at(0.99),
        times.len()
    );
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
