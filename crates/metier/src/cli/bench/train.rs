//! `metier bench train`: tokens a second of whole steps of tuning, ours and PyTorch's, in turns on the same threads in the same run.
//!
//! Each run is a process of its own on both sides, so that peak memory is that of one training. A step is forward, backward, clipping and
//! AdamW, embedding and head included. Rows are made ids: speed does not hang on what they say, and the losses of both sides, which are
//! printed, show that the same thing is computed.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use clap::{Args, ValueEnum};
use metier_kernels::Pool;
use metier_model::TokenId;
use metier_train::{
    build::peak_rss_bytes,
    craft::{encoder, lora},
};
use serde::{Deserialize, Serialize};

use super::{
    super::{Failure, Outcome, bases, line},
    Row,
    measure::median,
};
use crate::config::{Environment, Settings};

/// As in `bench/peers/train_torch.py`.
const LORA_ROWS: usize = 16;
const LORA_TOKENS: usize = 64;
const ENCODER_ROWS: usize = 32;
const ENCODER_TOKENS: usize = 32;
const CLASSES: usize = 77;
/// Steps that do not count: buffers are made in the first.
const WARM_UP: usize = 1;
/// The script, which travels in the binary.
const TORCH: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../bench/peers/train_torch.py"));

#[derive(Debug, Args)]
pub(super) struct TrainArgs {
    /// A Python interpreter with torch, transformers, peft and gguf: measures them beside ours
    #[arg(long, value_name = "PYTHON")]
    peers: Option<PathBuf>,
    /// Runs of each side, in turns
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Steps of a run that count
    #[arg(long, default_value_t = 4)]
    steps: usize,
    /// One of the two
    #[arg(long)]
    only: Option<Case>,
    /// One run of ours, as JSON: what the bench starts
    #[arg(long, hide = true)]
    run: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Case {
    /// Deltas of rank 16 on all seven maps of the decoder
    Lora,
    /// All layers of the encoder
    Encoder,
}

/// What one run of a side says.
#[derive(Debug, Serialize, Deserialize)]
struct Ran {
    tokens: usize,
    seconds: Vec<f64>,
    losses: Vec<f64>,
    peak_rss_mb: f64,
}

impl Ran {
    fn rates(&self) -> impl Iterator<Item = f64> + '_ {
        self.seconds.iter().map(|seconds| self.tokens as f64 / seconds)
    }
}

impl Case {
    fn name(self) -> &'static str {
        match self {
            Self::Lora => "lora",
            Self::Encoder => "encoder",
        }
    }

    fn title(self, base: &str) -> String {
        match self {
            Self::Lora => format!("{base}: LoRA r = 16, {LORA_ROWS} × {LORA_TOKENS} tokens"),
            Self::Encoder => format!("{base}: all layers, {ENCODER_ROWS} × {ENCODER_TOKENS} tokens"),
        }
    }

    /// Steps of an encoder are a tenth as long.
    fn steps(self, asked: usize) -> usize {
        if self == Self::Encoder { asked * 5 } else { asked }
    }
}

pub(super) fn run(
    args: &TrainArgs,
    settings: &Settings,
    environment: &Environment,
    tell: &mut dyn FnMut(Row),
) -> Outcome {
    let cases = [Case::Lora, Case::Encoder].into_iter().filter(|case| args.only.is_none_or(|only| only == *case));
    if args.run {
        for case in cases {
            line(&ours(case, case.steps(args.steps), settings, environment)?);
        }
        return Ok(());
    }
    for case in cases {
        let (base, path) = match case {
            Case::Lora => {
                let files = bases::decoder_files(settings, environment)?;
                let files = files.ok_or_else(|| Failure::usage(anyhow!("the settings say `decoder = \"none\"`")))?;
                (files.name.clone(), files.decoder_path().to_owned())
            }
            Case::Encoder => {
                let files = bases::encoder_files(settings, environment)?;
                (files.name.clone(), files.dir)
            }
        };
        let (mut mine, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..args.rounds.max(1) {
            mine.push(started(args, case)?);
            if let Some(python) = &args.peers {
                theirs.push(torch(python, case, &path, case.steps(args.steps), settings.threads())?);
            }
        }
        let title = case.title(&base);
        tell(row(&title, "tokens/s", &mine, &theirs, &|ran| ran.rates().collect(), true));
        tell(row(&format!("{title}: peak memory"), "MB", &mine, &theirs, &|ran| vec![ran.peak_rss_mb], false));
    }
    Ok(())
}

fn row(case: &str, unit: &'static str, mine: &[Ran], theirs: &[Ran], of: &dyn Fn(&Ran) -> Vec<f64>, more: bool) -> Row {
    let all = |runs: &[Ran]| runs.iter().flat_map(of).collect::<Vec<f64>>();
    let (value, range) = median(all(mine));
    let mut row = Row::new("train", case.to_owned(), value, unit);
    (row.spread, row.range) = (Some(range[1] - range[0]), Some(range));
    let loss = |runs: &[Ran]| runs.first().and_then(|ran| ran.losses.first()).copied().unwrap_or(f64::NAN);
    if !theirs.is_empty() {
        let (peer, range) = median(all(theirs));
        row.peer = Some("PyTorch".to_owned());
        (row.peer_value, row.peer_range) = (Some(peer), Some(range));
        row.ratio = Some(if more { value / peer } else { peer / value });
        if more {
            row.note = Some(format!("first loss {:.3}, theirs {:.3}", loss(mine), loss(theirs)));
        }
    }
    row
}

/// Ours in a process of its own, with the arguments that this one was given.
fn started(args: &TrainArgs, case: Case) -> Result<Ran, Failure> {
    let program = std::env::current_exe().context("cannot find this program").map_err(Failure::Environment)?;
    let mut command = Command::new(program);
    command.args(["bench", "train", "--run", "--only", case.name(), "--steps", &args.steps.to_string()]);
    measured(&mut command, "the run of ours")
}

fn torch(python: &Path, case: Case, model: &Path, steps: usize, threads: usize) -> Result<Ran, Failure> {
    let mut command = Command::new(python);
    command.args(["-c", TORCH, case.name(), "--model"]).arg(model);
    command.args(["--threads", &threads.to_string(), "--steps", &steps.to_string()]);
    let both = threads.to_string();
    command.env("OMP_NUM_THREADS", &both).env("MKL_NUM_THREADS", &both).stderr(Stdio::null());
    measured(&mut command, &format!("`{}` with torch, transformers, peft and gguf", python.display()))
}

fn measured(command: &mut Command, what: &str) -> Result<Ran, Failure> {
    let mut run = || {
        let output = command.stdin(Stdio::null()).stdout(Stdio::piped()).output();
        let output = output.with_context(|| format!("cannot run {what}"))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let last = text.lines().last().unwrap_or_default();
        serde_json::from_str(last).map_err(|_| anyhow!("{what} ended with {} and no figures", output.status))
    };
    run().map_err(Failure::Environment)
}

/// As `ids` in the script.
fn ids(n: usize, salt: usize, vocabulary: usize) -> Vec<TokenId> {
    (0..n).map(|i| TokenId(((i * 73 + i * i * 11 + 5 + salt * 31) % vocabulary) as u32)).collect()
}

fn ours(case: Case, steps: usize, settings: &Settings, environment: &Environment) -> Result<Ran, Failure> {
    let pool = bases::pool(settings, environment)?;
    let (tokens, found) = match case {
        Case::Lora => (LORA_ROWS * LORA_TOKENS, lora_steps(&pool, steps, settings, environment)?),
        Case::Encoder => (ENCODER_ROWS * ENCODER_TOKENS, encoder_steps(&pool, steps, settings, environment)?),
    };
    let (seconds, losses): (Vec<f64>, Vec<f64>) = found.into_iter().unzip();
    let peak_rss_mb = peak_rss_bytes().map_or(f64::NAN, |bytes| bytes as f64 / 1024.0 / 1024.0);
    Ok(Ran { tokens, seconds: seconds.into_iter().skip(WARM_UP).collect(), losses, peak_rss_mb })
}

type Steps = Vec<(f64, f64)>; // seconds, loss

fn lora_steps(pool: &Pool, steps: usize, settings: &Settings, environment: &Environment) -> Result<Steps, Failure> {
    let decoder = bases::decoder(settings, environment)?;
    let decoder = decoder.ok_or_else(|| Failure::usage(anyhow!("the settings say `decoder = \"none\"`")))?;
    let plain = decoder.network().plain().context("cannot tune the decoder").map_err(Failure::Environment)?;
    drop(decoder);
    let mut tuner = lora::Tuner::new(plain, &lora::Recipe::default(), 0);
    let rows: Vec<lora::Row> = (0..LORA_ROWS)
        .map(|row| {
            let mut prompt = ids(LORA_TOKENS, row, 40_000);
            let answer = prompt.split_off(1);
            lora::Row { prompt, answer, soft: Vec::new() }
        })
        .collect();
    let rows: Vec<&lora::Row> = rows.iter().collect();
    let step = |_| {
        let begun = Instant::now();
        let (loss, _) = tuner.step(pool, &rows, 1.0);
        (begun.elapsed().as_secs_f64(), loss)
    };
    Ok((0..WARM_UP + steps).map(step).collect())
}

fn encoder_steps(pool: &Pool, steps: usize, settings: &Settings, environment: &Environment) -> Result<Steps, Failure> {
    let base = bases::encoder(settings, environment)?;
    // Cut to the same length, whatever the words become.
    let words = ["order", "parcel", "refund", "card", "late", "broken", "password", "invoice", "shipment", "blue"];
    let text =
        |row: usize| (0..2 * ENCODER_TOKENS).map(|i| words[(i * 7 + row * 3 + i * row) % 10]).collect::<Vec<_>>();
    let texts: Vec<String> = (0..ENCODER_ROWS).map(|row| text(row).join(" ")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let classes: Vec<usize> = (0..ENCODER_ROWS).map(|row| row % CLASSES).collect();
    let rows = encoder::Rows { texts: &texts, gold: encoder::Gold::Classes(&classes) };
    let recipe = encoder::Recipe {
        batch_rows: ENCODER_ROWS,
        max_tokens: ENCODER_TOKENS,
        epochs: WARM_UP + steps,
        patience: usize::MAX,
        ..encoder::Recipe::default()
    };
    let start = Instant::now();
    let clock = || start.elapsed();
    let run = encoder::Run { pool, seed: 0, clock: &clock, deadline: Duration::MAX };
    let one = encoder::Rows { texts: &texts[..1], gold: encoder::Gold::Classes(&classes[..1]) };
    let tuner = encoder::Tuner::new(&base, rows, one, CLASSES, &recipe, 0);
    let mut tuner = tuner.context("cannot tune the encoder").map_err(Failure::Environment)?;
    drop(base);
    Ok(tuner.timed_steps(&run, WARM_UP + steps).into_iter().map(|(time, loss)| (time.as_secs_f64(), loss)).collect())
}
