//! `metier demo`: the whole idea on real models, in one command.
//!
//! ```text
//! models ─► four specialists built from the shipped examples ─► a second server as stand-in for the LLM ─► the server
//!        ─► every held-out row through HTTP ─► what was answered where, how well, how fast, at what cost ─► every receipt verified
//! ```
//!
//! Nothing is simulated: specialists are built here and now, requests go over real sockets between real processes, and the figures are of the
//! rows that nothing was trained or calibrated on. One thing is only a stand-in: the LLM is plain SmolLM2-135M, whose answers are poor. It shows
//! the path that a deferred request takes, not what a large model would make of it.

mod examples;
mod report;
mod tally;
mod traffic;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use metier_gateway::audit::{self, Receipt};
use metier_kernels::Pool;
use metier_model::{Encoder, Progress, SpecialistStore, Tokenizer, Unit, format::Gguf};
use metier_traffic::PriceBook;
use metier_train::{BuildOutcome, Embed, TaskFile, Workbench, build};

use self::{
    examples::{EXAMPLES, Example, FAR, Row},
    report::{Built, Figures},
    tally::Asked,
};
use super::{Failure, Outcome, ask::Client, bases, child::ServerProcess, desk::Desk, line, progress::Bars};
use crate::{
    config::{Environment, Settings},
    server::now_ms,
};

/// Every so many held-out rows one is sent as `auto` instead of by the specialist's name.
const AUTO_EVERY: usize = 5;
/// Name of the stand-in in policy, decisions and receipts.
const STAND_IN: &str = "llm-stand-in";
/// The price at which deferred requests, and the comparison, are counted.
const PRICED_AS: &str = "reference-llm";
/// Most tokens that a deferred request may cost the stand-in.
const MAX_TOKENS: u32 = 12;
/// A deferred request that takes longer fails.
const STAND_IN_DEADLINE_MS: u64 = 60_000;

/// The whole idea on real models: builds four specialists, serves them, defers, proves.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:
  metier demo                 about two minutes, then stays up with requests to try
  metier demo --exit --json   for scripts: one result line, everything ended and removed
  metier demo traffic FILE    a synthetic log to try `metier roadmap` on"
)]
pub struct DemoArgs {
    #[command(subcommand)]
    verb: Option<DemoVerb>,
    /// End when the figures are printed, instead of staying up
    #[arg(long)]
    exit: bool,
    /// The result as one JSON object on stdout; text for people goes to stderr
    #[arg(long, global = true)]
    json: bool,
    /// Folder for specialists, log and keys, empty or not there yet; default: a temporary one that is removed at the end
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Port of the server on 127.0.0.1; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    port: u16,
}

#[derive(Debug, Subcommand)]
enum DemoVerb {
    /// Write a synthetic log: an invented company's traffic of ten tasks and a tail of free questions
    Traffic(traffic::TrafficArgs),
}

/// Runs the demo.
pub fn run(args: &DemoArgs) -> Outcome {
    if let Some(DemoVerb::Traffic(wanted)) = &args.verb {
        return traffic::run(wanted, args.json);
    }
    let begun = Instant::now();
    let place = Place::prepare(args.state.as_deref())?;
    let say = report::Say { to_stderr: args.json };
    let environment = Environment::read();
    let settings = Settings::default();

    say.stage("Base models");
    let decoder = bases::decoder_files(&settings, &environment)?.context("the defaults name a decoder");
    let decoder = decoder.map_err(Failure::Environment)?;
    let encoder = bases::encoder(&settings, &environment)?;
    say.line(format_args!("{} (decoder) and {} (encoder), verified by SHA-256", decoder.name, settings.models.encoder));
    let count = TokenCount::open(&decoder.files[0])?;

    say.stage("Four specialists, built from the rows that ship with metier");
    let pool = bases::pool(&settings, &environment)?;
    let store = SpecialistStore::open(&place.specialists()).map_err(Failure::environment)?;
    let desk = Desk::open(&store, &place.state(), &environment)?;
    let mut tasks = Vec::new();
    for example in EXAMPLES {
        let task = build_example(&example, &desk, &place.dir.join("examples"), &encoder, &pool)?;
        say.built(&task.outcome, task.task.may_leave);
        tasks.push(task);
    }
    // Their memory and threads are the servers' from here.
    drop((pool, encoder));

    say.stage("Two servers");
    let llm = place.start_llm(&decoder.name)?;
    say.line(format_args!(
        "{} as stand-in for an LLM: plain {}, whose answers are poor; what is shown is the path, not the answers",
        llm.url(),
        decoder.name
    ));
    let server = place.start_server(args.port, &llm, &decoder.name)?;
    say.line(format_args!(
        "{} with both bases and four specialists, ready after {:.1} s",
        server.url(),
        server.ready_after().as_secs_f64()
    ));

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start a client").map_err(Failure::Environment)?;
    let client = Client::new(server.url()).map_err(Failure::Environment)?;
    say.stage("Held-out requests, one client, over HTTP");
    let asking = async {
        let rows = ask_all(&client, &tasks).await?;
        let none_fits = ask_far(&client).await?;
        let receipts = verify_receipts(&client, &rows, &place).await?;
        anyhow::Ok((rows, none_fits, receipts))
    };
    let asked = runtime.block_on(async {
        tokio::select! {
            asked = asking => asked.map(Some),
            () = crate::server::stop(false) => Ok(None),
        }
    });
    let Some((rows, none_fits, receipts)) = asked.map_err(Failure::Environment)? else {
        end([server, llm])?;
        return Err(Failure::environment(anyhow::anyhow!(
            "stopped while asking: no figures, and nothing is left running"
        )));
    };
    let log = verify_log(&place);

    let built: Vec<Built> = tasks.iter().map(Task::built).collect();
    let llm_cost_usd = count.llm_cost_usd(&tasks, &rows)?;
    let figures =
        Figures::of(&built, &rows, none_fits, receipts, log.as_ref().ok().copied(), llm_cost_usd, begun.elapsed());
    say.figures(&figures);
    if let Err(error) = &log {
        say.line(format_args!("the log does not verify: {error:#}"));
    }
    if args.json {
        line(&figures);
    }
    if !args.exit {
        say.invite(server.url(), &tasks.iter().map(|task| task.name).collect::<Vec<_>>(), &rows, &place.state());
        runtime.block_on(crate::server::stop(false));
    }
    end([server, llm])?;
    let good = figures.all_held() && figures.leaked == 0 && figures.receipts_failed == 0 && log.is_ok();
    if good { Ok(()) } else { Err(Failure::Found) }
}

/// Lets the servers finish what they do: the one that asks first, then the one that it asks.
fn end(servers: [ServerProcess; 2]) -> Result<(), Failure> {
    for process in servers {
        process.stop().context("cannot wait for a server of the demo").map_err(Failure::Environment)?;
    }
    Ok(())
}

/// Builds every example into a store; returns their names. For the bench, which serves the same specialists.
///
/// # Errors
/// A base model is not at hand, or a build fails.
pub(super) fn build_examples(
    desk: &Desk,
    rows_dir: &Path,
    settings: &Settings,
    environment: &Environment,
) -> Result<Vec<String>, Failure> {
    let (pool, encoder) = (bases::pool(settings, environment)?, bases::encoder(settings, environment)?);
    let build = |example| Ok(build_example(example, desk, rows_dir, &encoder, &pool)?.name.to_owned());
    EXAMPLES.iter().map(build).collect()
}

fn build_example(
    example: &Example,
    desk: &Desk,
    rows_dir: &Path,
    encoder: &Encoder,
    pool: &Pool,
) -> Result<Task, Failure> {
    let (store, seed) = (desk.registry.store(), metier_train::DEFAULT_SEED);
    let tuning = metier_train::craft::encoder::Recipe::default();
    let bench = Workbench {
        teacher: None,
        encoder: Some(encoder as &dyn Embed),
        pool,
        store,
        seed,
        tuning,
        decoders: Vec::new(),
    };
    let task_path = example.write(rows_dir).context("cannot write the example rows").map_err(Failure::Environment)?;
    let task = TaskFile::read(&task_path, &crate::config::variable).map_err(Failure::usage)?;
    let begun = Instant::now();
    let mut bars = Bars::new();
    let outcome = build(&task, &bench, &mut |progress| bars.show(progress), &|| begun.elapsed());
    let outcome = outcome.map_err(Failure::environment)?;
    desk.built(example.name, outcome.bundle, false)?;
    Ok(Task { name: example.name, rows: example.test_rows(), outcome, task })
}

/// One example, built.
struct Task {
    name: &'static str,
    rows: Vec<Row>,
    outcome: BuildOutcome,
    task: TaskFile,
}

impl Task {
    fn built(&self) -> Built {
        Built {
            name: self.name,
            bound: self.outcome.certificate.map(|certificate| (certificate.epsilon, certificate.delta)),
            rows_needed: self.outcome.rows_needed,
            may_leave: self.task.may_leave,
        }
    }
}

/// The folder that the demo works in.
struct Place {
    dir: PathBuf,
    /// Removed with this value.
    _temporary: Option<tempfile::TempDir>,
}

impl Place {
    fn prepare(named: Option<&Path>) -> Result<Self, Failure> {
        let Some(dir) = named else {
            let made = tempfile::Builder::new().prefix("metier-demo-").tempdir();
            let made = made.context("cannot make a temporary folder").map_err(Failure::Environment)?;
            return Ok(Self { dir: made.path().to_owned(), _temporary: Some(made) });
        };
        fs::create_dir_all(dir)
            .with_context(|| format!("cannot make the folder `{}`", dir.display()))
            .map_err(Failure::Environment)?;
        let mut entries = fs::read_dir(dir).context("cannot read the folder").map_err(Failure::Environment)?;
        if entries.next().is_some() {
            let error = anyhow::anyhow!("`--state {}` is not empty: the demo starts afresh", dir.display());
            return Err(Failure::Usage(error));
        }
        let dir = dir.canonicalize().context("cannot find the folder").map_err(Failure::Environment)?;
        Ok(Self { dir, _temporary: None })
    }

    fn specialists(&self) -> PathBuf {
        self.dir.join("specialists")
    }

    fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    fn start_llm(&self, decoder: &str) -> Result<ServerProcess, Failure> {
        let state = self.dir.join("llm");
        let config = format!("[models]\ndecoder = {decoder:?}\n");
        self.start("llm", &config, &state, &["--base-only"])
    }

    fn start_server(&self, port: u16, llm: &ServerProcess, decoder: &str) -> Result<ServerProcess, Failure> {
        let config = format!(
            "[models]\ndecoder = {decoder:?}\n\n[[backend]]\nname = {STAND_IN:?}\nurl = \"{}/v1\"\nmodel = {decoder:?}\nboundary = \"outside\"\nprice = {PRICED_AS:?}\ndeadline_ms = {STAND_IN_DEADLINE_MS}\n",
            llm.url()
        );
        let bind = format!("127.0.0.1:{port}");
        let specialists = self.specialists();
        let specialists = specialists.to_string_lossy();
        self.start("serve", &config, &self.state(), &["--bind", &bind, "--specialists", &specialists])
    }

    fn start(&self, name: &str, config: &str, state: &Path, args: &[&str]) -> Result<ServerProcess, Failure> {
        let start = || {
            let path = self.dir.join(format!("{name}.toml"));
            fs::write(&path, config).with_context(|| format!("cannot write `{}`", path.display()))?;
            let exe = std::env::current_exe().context("cannot find this program on disk")?;
            let mut all: Vec<std::ffi::OsString> = vec!["--config".into(), path.into(), "--state".into(), state.into()];
            all.extend(args.iter().map(Into::into));
            Ok(ServerProcess::start(&exe, &all, &[], &self.dir.join(format!("{name}.log")))?)
        };
        start().map_err(Failure::Environment)
    }
}

/// Every held-out row once, the tasks mixed as traffic would be.
async fn ask_all(client: &Client, tasks: &[Task]) -> anyhow::Result<Vec<Asked>> {
    let n_rows: usize = tasks.iter().map(|task| task.rows.len()).sum();
    let longest = tasks.iter().map(|task| task.rows.len()).max().unwrap_or(0);
    let mut bars = Bars::new();
    let mut asked = Vec::with_capacity(n_rows);
    for row_idx in 0..longest {
        for (task_idx, task) in tasks.iter().enumerate() {
            let Some(row) = task.rows.get(row_idx) else { continue };
            let auto = row_idx % AUTO_EVERY == AUTO_EVERY - 1;
            let model = if auto { "auto" } else { task.name };
            let reply = client.chat(model, &row.text, MAX_TOKENS).await?;
            asked.push(Asked { task_idx, auto, text: row.text.clone(), label: row.label.clone(), reply });
            let (done, total) = (asked.len() as u64, Some(n_rows as u64));
            bars.show(Progress { stage: "asking", done, total, unit: Unit::Rows });
        }
    }
    Ok(asked)
}

/// Texts that no task is for: how many of them `auto` refuses.
async fn ask_far(client: &Client) -> anyhow::Result<report::NoneFits> {
    let mut refused = 0;
    for text in FAR {
        let reply = client.chat("auto", text, MAX_TOKENS).await?;
        refused += u64::from(reply.content.is_none() && reply.stage == "match");
    }
    Ok(report::NoneFits { asked: FAR.len() as u64, refused })
}

/// Fetches the receipt of every answer and verifies it as an outsider would: with the public key and nothing else of ours.
async fn verify_receipts(client: &Client, rows: &[Asked], place: &Place) -> anyhow::Result<report::Receipts> {
    let key = audit::read_key(&place.state().join(audit::PUBLIC_KEY_FILE))?;
    let mut bars = Bars::new();
    let mut receipts = report::Receipts::default();
    for (idx, row) in rows.iter().enumerate() {
        let (done, total) = (idx as u64 + 1, Some(rows.len() as u64));
        bars.show(Progress { stage: "verifying receipts", done, total, unit: Unit::Rows });
        let id = row.reply.receipt.as_deref().context("an answer came without a receipt")?;
        let text = client.get(&format!("/admin/v1/receipts/{id}")).await?;
        let verified = Receipt::verify(text.as_bytes(), &key).is_ok_and(|proof| {
            proof.entry.kind == audit::Kind::Closed
                && proof.entry.receipt.is_some_and(|receipt| receipt.to_string() == id)
        });
        if verified { receipts.verified += 1 } else { receipts.failed += 1 }
    }
    Ok(receipts)
}

/// The whole log against its last signed head; returns its entries.
fn verify_log(place: &Place) -> anyhow::Result<u64> {
    let state = place.state();
    let key = audit::read_key(&state.join(audit::PUBLIC_KEY_FILE))?;
    let head = audit::open_head_file(&state.join(audit::HEAD_FILE), &key)?;
    Ok(audit::verify(&state.join(audit::DATABASE_FILE), Some(&head), &key)?.entries)
}

/// What an LLM would have read for a request, counted with the decoder's tokenizer.
struct TokenCount(Tokenizer);

impl TokenCount {
    fn open(gguf: &Path) -> Result<Self, Failure> {
        let open = || {
            let bytes =
                metier_kernels::Mapped::open(gguf).with_context(|| format!("cannot read `{}`", gguf.display()))?;
            anyhow::Ok(Self(Tokenizer::from_gguf(&Gguf::parse(&bytes)?)?))
        };
        open().map_err(Failure::Environment)
    }

    fn tokens(&self, text: &str) -> Result<u64, Failure> {
        let tokens = self.0.encode(text).context("cannot count tokens").map_err(Failure::Environment)?;
        Ok(tokens.len() as u64)
    }

    /// Cost of asking an LLM at list price for every row: instruction, labels and text in, the label out.
    fn llm_cost_usd(&self, tasks: &[Task], rows: &[Asked]) -> Result<f64, Failure> {
        let price = PriceBook::example().price(PRICED_AS, now_ms());
        let price = price.context("the price book has no price of today").map_err(Failure::Environment)?;
        let mut frames = Vec::new();
        for task in tasks {
            let labels: std::collections::BTreeSet<&str> = task.rows.iter().map(|row| row.label.as_str()).collect();
            let labels: Vec<&str> = labels.into_iter().collect();
            frames.push(self.tokens(&format!("{}\n{}", task.task.instruction, labels.join("\n")))?);
        }
        let mut cost_picousd = 0;
        for row in rows {
            let prompt_tokens = frames[row.task_idx] + self.tokens(&row.text)?;
            cost_picousd += price.cost_picousd(prompt_tokens, self.tokens(&row.label)?);
        }
        Ok(cost_picousd as f64 / 1e12)
    }
}
