//! `metier bench engine|serve|train`: what this machine does with the default models, measured here and now; with `--peers`, beside what llama.cpp
//! and onnxruntime do with the same files in the same run. `bench/METHOD.md` says how each row is measured.
//!
//! Each line has the fields of DESIGN.md, "CLI". `peer` and `limit` stay empty where nothing was measured beside ours: a figure that was taken
//! elsewhere is no comparison.

mod engine;
mod machine;
mod measure;
mod ours;
mod peers;
mod serve;
mod train;

use std::path::PathBuf;

pub(super) use ours::{Perplexity, perplexity};

use clap::{Args, Subcommand};
use serde::Serialize;

pub(super) use self::machine::{bandwidth, peak};
use super::{CommonArgs, Outcome, line};
use crate::config::{DecoderKv, DecoderWeights};

/// About 21 tokens of MiniLM: a support message.
const SENTENCE: &str = "My order arrived with a cracked screen and I would like to send it back for a refund, please.";

/// Measures this machine with the default models.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  metier bench engine                       sentences and tokens a second of the base models
  metier bench engine --peers DIR           the same beside llama.cpp and onnxruntime, made by bench/peers/setup.sh
  metier bench engine --peers DIR --only \"8 clients\"
  metier bench engine --peers DIR --text wiki.txt --only perplexity
  metier bench train --peers venv/bin/python  tokens a second of tuning, beside PyTorch and PEFT
  metier bench serve --json                 classification over HTTP: p50, p95, time to ready, memory")]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The base models alone: no server, no log
    Engine(EngineArgs),
    /// A server with both bases and ten specialists, asked by one client
    Serve,
    /// Steps of tuning: an adapter of the decoder, and all layers of the encoder
    Train(train::TrainArgs),
}

#[derive(Debug, Args)]
struct EngineArgs {
    /// Folder that `bench/peers/setup.sh` made: peers, and the files that both sides read
    #[arg(long, value_name = "DIR")]
    peers: Option<PathBuf>,
    /// Fewer repeats, fewer tokens
    #[arg(long)]
    quick: bool,
    /// Only the rows whose case contains this text; may stand several times
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// How our decoders keep keys and values
    #[arg(long, value_name = "FORMAT", default_value = "f32")]
    kv: DecoderKv,
    /// How our decoders keep weights
    #[arg(long, value_name = "FORMAT", default_value = "as-file")]
    weights: DecoderWeights,
    /// A text file (UTF-8): perplexity of each of the peers' files on its beginning
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
}

/// One measured figure.
#[derive(Clone, Debug, Serialize)]
struct Row {
    bench: &'static str,
    case: String,
    /// Median.
    value: f64,
    unit: &'static str,
    /// Engine: highest minus lowest; serve: quartile range; in the unit of the value. `null` where the figure is one of a kind or a quantile.
    spread: Option<f64>,
    peer: Option<String>,
    peer_value: Option<f64>,
    /// Of the medians, the better over the worse where we are better: above 1 we are ahead, for rates and for times.
    ratio: Option<f64>,
    /// What the machine allows, in the unit of the value.
    limit: Option<f64>,
    share_of_limit: Option<f64>,
    /// Lowest and highest of ours and theirs.
    #[serde(skip_serializing_if = "Option::is_none")]
    range: Option<[f64; 2]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer_range: Option<[f64; 2]>,
    /// What disturbed the measurement, or what it leaves out.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

impl Row {
    fn new(bench: &'static str, case: String, value: f64, unit: &'static str) -> Self {
        Self {
            bench,
            case,
            value,
            unit,
            spread: None,
            peer: None,
            peer_value: None,
            ratio: None,
            limit: None,
            share_of_limit: None,
            range: None,
            peer_range: None,
            note: None,
        }
    }
}

/// Runs the verb.
pub fn run(args: &BenchArgs) -> Outcome {
    let (settings, environment) = args.common.settings()?;
    let mut tell = |row: Row| {
        if args.common.json {
            line(&row);
        } else {
            println!("{}", printed(&row));
        }
    };
    match &args.what {
        What::Engine(asked) => engine::run(asked, &settings, &environment, &mut tell),
        What::Train(asked) => train::run(asked, &settings, &environment, &mut tell),
        What::Serve => serve::run(&settings, &environment, &mut tell),
    }
}

/// A row as a person reads it.
fn printed(row: &Row) -> String {
    let range = |range: Option<[f64; 2]>| match range {
        Some([low, high]) => format!(" ({}–{})", short(low), short(high)),
        None => String::new(),
    };
    let mut text = format!("{:7} {:52} {:>9} {}", row.bench, row.case, short(row.value), row.unit);
    match (row.range, row.spread) {
        (None, Some(spread)) => text.push_str(&format!("  ± {}", short(spread / 2.0))),
        (found, _) => text.push_str(&range(found)),
    }
    if let (Some(peer), Some(value)) = (&row.peer, row.peer_value) {
        text.push_str(&format!("  | {peer} {}{}", short(value), range(row.peer_range)));
    }
    if let Some(ratio) = row.ratio {
        text.push_str(&format!("  | × {ratio:.2}"));
    }
    if let (Some(limit), Some(share)) = (row.limit, row.share_of_limit) {
        text.push_str(&format!("  | {:.0} % of {}", share * 100.0, short(limit)));
    }
    if let Some(note) = &row.note {
        text.push_str(&format!("  | {note}"));
    }
    text
}

/// Three to four digits.
fn short(x: f64) -> String {
    match x.abs() {
        size if size >= 100.0 => format!("{x:.0}"),
        size if size >= 10.0 => format!("{x:.1}"),
        _ => format!("{x:.2}"),
    }
}
