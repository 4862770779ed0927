//! `metier models quantise`: a decoder's file in four bits a weight, and what that costs.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::anyhow;
use clap::{Args, ValueEnum};
use metier_model::{Decoder, Progress, TokenId, Unit, chat::Prompt, engine::WeightFormat, export, progress::silent};
use metier_train::craft::quantise::{FourBits, Quantised, quantise};
use serde_json::{Value, json};

use super::super::{
    CommonArgs, Failure, Outcome, bases,
    bench::{Perplexity, perplexity},
    line,
    progress::Bars,
};

/// Tokens of a stretch of text: calibrated with, and measured on, alone.
const CHUNK: usize = 512;
/// Stretches that perplexity is measured on, at most.
const MEASURED: usize = 40;
/// Bytes of text that are read, at most.
const MAX_TEXT: usize = 64 << 20;

/// Writes a decoder's GGUF file in four bits a weight, calibrated on texts like those that it will read
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  metier models quantise base-f16.gguf --text mails.txt --out base-q4.gguf
  metier models quantise base-f16.gguf --text tickets.jsonl --field text --field answer --out base-q4.gguf --format q4_0

The first four fifths of the text calibrate; perplexity is measured on the last fifth, for the file as it is, for its weights at their nearest
quants, and for the calibrated ones. The better of the two is written. Then `models.decoder = \"base-q4.gguf\"` serves it, and adapters are
trained over its rounded weights, so that they make up for what rounding has cost a task.")]
pub(super) struct QuantiseArgs {
    /// A decoder's GGUF file, best in 16 bits
    file: PathBuf,
    /// Where the new file goes; it must not be there yet
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Texts like those that it will read: a text file (UTF-8), or .jsonl with one object a line
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Field of a .jsonl line that is text; may stand several times; default: every field that is
    #[arg(long, value_name = "NAME")]
    field: Vec<String>,
    /// How four bits are read
    #[arg(long, value_name = "FORMAT", default_value = "q4_1")]
    format: Format,
    /// Tokens to calibrate with
    #[arg(long, value_name = "N", default_value_t = 16_384)]
    tokens: usize,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// A scale for each 32 weights: 4.5 bits a weight
    #[value(name = "q4_0")]
    Q4_0,
    /// A scale and a minimum for each 32 weights: 5 bits a weight
    #[value(name = "q4_1")]
    Q4_1,
}

/// Runs the verb.
pub(super) fn run(args: &QuantiseArgs, common: &CommonArgs) -> Outcome {
    let (settings, environment) = common.settings()?;
    if args.out.exists() {
        return Err(Failure::usage(anyhow!(
            "`{}` is there already: name another file with `--out`",
            args.out.display()
        )));
    }
    if args.file.is_dir() {
        let what = "is a folder: only GGUF files can be quantised yet";
        return Err(Failure::usage(anyhow!("`{}` {what}", args.file.display())));
    }
    let text = read_text(&args.text, &args.field)?;
    let base = fs::read(&args.file).map_err(|error| {
        Failure::environment(anyhow!(error).context(format!("cannot read `{}`", args.file.display())))
    })?;
    let pool = bases::pool(&settings, &environment)?;
    let format = match args.format {
        Format::Q4_0 => FourBits::Q4_0,
        Format::Q4_1 => FourBits::Q4_1,
    };
    let name = args.file.display().to_string();
    let open = |bytes: &[u8], format: WeightFormat| {
        Decoder::from_bytes(bytes.to_vec(), &name, format).map_err(Failure::environment)
    };
    let decoder = open(&base, WeightFormat::AsFile)?;
    // Four fifths of the lines calibrate.
    let cut = text.len() * 4 / 5;
    let cut = text.as_bytes()[..cut].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let (calibration, held_out) = text.split_at(cut);
    let n_held_out = decoder.tokenizer().encode(held_out).map_err(Failure::environment)?.len();
    let chunk = CHUNK.min(decoder.network().config().context);
    let measured = (n_held_out / chunk).min(MEASURED);
    let texts = chunks(&decoder, calibration, args.tokens.div_ceil(chunk))?;
    if measured == 0 || texts.is_empty() {
        let found = n_held_out + decoder.tokenizer().encode(calibration).map_err(Failure::environment)?.len();
        return Err(Failure::usage(anyhow!(
            "`{}` has {found} tokens: some {} are needed, four fifths of them to calibrate and one to measure on",
            args.text.display(),
            10 * chunk
        )));
    }
    let plain = || decoder.network().plain().map_err(Failure::environment);
    let config = plain()?.config;
    let mut bars = Bars::new();
    let nearest = quantise(&pool, plain()?, None, format, &mut silent).map_err(Failure::usage)?;
    let calibrated =
        quantise(&pool, plain()?, Some(&texts), format, &mut |progress| bars.show(progress)).map_err(Failure::usage)?;
    let file = |quantised: &Quantised| {
        export::gguf_of_blocks(&base, &config, &quantised.layers, format.tensor_type()).map_err(Failure::environment)
    };
    let (nearest, calibrated) = (file(&nearest)?, file(&calibrated)?);
    let mut done = 0;
    let mut measure = |bytes: &[u8]| -> Result<Perplexity, Failure> {
        bars.show(Progress { stage: "measuring perplexity", done, total: Some(3), unit: Unit::Steps });
        done += 1;
        perplexity(&open(bytes, WeightFormat::AsFile)?, &pool, held_out, measured)
    };
    let before = measure(&base)?;
    let [at_nearest, at_calibrated] = [measure(&nearest)?, measure(&calibrated)?];
    bars.finish();
    let keeps_calibrated = at_calibrated.value <= at_nearest.value;
    let kept = if keeps_calibrated { &calibrated } else { &nearest };
    write(&args.out, kept)?;
    report(
        args,
        &texts,
        &[
            ("as it is", base.len(), &before),
            ("nearest", nearest.len(), &at_nearest),
            ("calibrated", calibrated.len(), &at_calibrated),
        ],
        keeps_calibrated,
        common.json,
    );
    Ok(())
}

fn report(
    args: &QuantiseArgs,
    texts: &[Vec<TokenId>],
    rows: &[(&str, usize, &Perplexity)],
    keeps_calibrated: bool,
    as_json: bool,
) {
    let calibration_tokens: usize = texts.iter().map(Vec::len).sum();
    let kept = if keeps_calibrated { "calibrated" } else { "nearest" };
    if as_json {
        let row = |(what, bytes, perplexity): &(&str, usize, &Perplexity)| {
            let Perplexity { value, tokens, .. } = perplexity;
            json!({"weights": what, "bytes": bytes, "perplexity": value, "interval": perplexity.interval(), "tokens": tokens})
        };
        let rows: Vec<Value> = rows.iter().map(row).collect();
        line(&json!({"out": args.out, "kept": kept, "calibration_tokens": calibration_tokens, "measured": rows}));
        return;
    }
    println!("{:12} {:>9}  perplexity of {} tokens that were not calibrated with", "weights", "MB", rows[0].2.tokens);
    for (what, bytes, perplexity) in rows {
        let [low, high] = perplexity.interval();
        println!("{what:12} {:>9.1}  {:.2} [{low:.2}, {high:.2}]", *bytes as f64 / 1e6, perplexity.value);
    }
    println!("{kept} weights are in `{}` ({calibration_tokens} tokens calibrated)", args.out.display());
}

/// Whole, or not at all.
fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let part = path.with_extension("part");
    let written = fs::write(&part, bytes).and_then(|()| fs::rename(&part, path));
    written.map_err(|error| {
        let _ = fs::remove_file(&part);
        Failure::environment(anyhow!(error).context(format!("cannot write `{}`", path.display())))
    })
}

fn read_text(path: &Path, fields: &[String]) -> Result<String, Failure> {
    let bytes = fs::read(path)
        .map_err(|error| Failure::usage(anyhow!(error).context(format!("cannot read `{}`", path.display()))))?;
    if bytes.len() > MAX_TEXT {
        let (megabytes, most) = (bytes.len() >> 20, MAX_TEXT >> 20);
        return Err(Failure::usage(anyhow!(
            "`{}` has {megabytes} MB, at most {most} are read: take a sample",
            path.display()
        )));
    }
    let text = String::from_utf8(bytes)
        .map_err(|error| Failure::usage(anyhow!("`{}` is not UTF-8: {error}", path.display())))?;
    if path.extension().is_none_or(|extension| extension != "jsonl") {
        return Ok(text);
    }
    let mut all = String::new();
    for (i, row) in text.lines().enumerate().filter(|(_, row)| !row.trim().is_empty()) {
        let wrong = |what: String| Failure::usage(anyhow!("`{}`, line {}: {what}", path.display(), i + 1));
        let row: serde_json::Map<String, Value> =
            serde_json::from_str(row).map_err(|error| wrong(format!("no JSON object: {error}")))?;
        if let Some(field) = fields.iter().find(|field| !row.get(*field).is_some_and(Value::is_string)) {
            return Err(wrong(format!("no text in a field `{field}`")));
        }
        let chosen = row.iter().filter(|(name, _)| fields.is_empty() || fields.contains(name));
        for text in chosen.filter_map(|(_, value)| value.as_str()) {
            all.push_str(text);
            all.push('\n');
        }
    }
    Ok(all)
}

/// Stretches of a text, each behind the token of beginning where the model has one.
fn chunks(decoder: &Decoder, text: &str, n: usize) -> Result<Vec<Vec<TokenId>>, Failure> {
    let begin = decoder.tokenizer().encode_prompt(&Prompt::default()).map_err(Failure::environment)?;
    let ids = decoder.tokenizer().encode(text).map_err(Failure::environment)?;
    let chunk = CHUNK.min(decoder.network().config().context) - begin.len();
    Ok(ids.chunks_exact(chunk).take(n).map(|ids| [&begin, ids].concat()).collect())
}
