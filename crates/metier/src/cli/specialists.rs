//! `metier specialists`: which specialists are in the store, and what each is.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use metier_model::{Digest, Specialist, SpecialistStore};
use serde_json::json;

use super::{CommonArgs, Failure, Outcome, found, line};

/// Specialists: what is in the store, verified.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  metier specialists list
  metier specialists show support-tickets
  metier specialists list --json | tail -1")]
pub struct SpecialistsArgs {
    #[command(subcommand)]
    verb: SpecialistsVerb,
    /// Folder of the specialists; default: as `metier serve`
    #[arg(long, global = true, value_name = "DIR")]
    store: Option<PathBuf>,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, Subcommand)]
enum SpecialistsVerb {
    /// Every bundle, and which one answers under its name; exit code 1 if one was changed
    List,
    /// What one specialist is: task, stage, certificate, recipe, files
    Show {
        /// A name in the store, or the folder of a bundle
        specialist: String,
    },
}

/// Runs the verb.
pub fn run(args: &SpecialistsArgs) -> Outcome {
    let root = root(args.store.as_deref(), &args.common)?;
    match &args.verb {
        SpecialistsVerb::List => list(&root, args.common.json),
        SpecialistsVerb::Show { specialist } => show(&root, specialist, args.common.json),
    }
}

/// The store that was named, else the one of the settings.
pub fn root(named: Option<&Path>, common: &CommonArgs) -> Result<PathBuf, Failure> {
    if let Some(dir) = named {
        return Ok(dir.to_owned());
    }
    let (settings, environment) = common.settings()?;
    settings.specialists_dir(&environment).map_err(Failure::usage)
}

/// One bundle of a store.
struct Held {
    name: String,
    id: Digest,
    dir: PathBuf,
    current: bool,
    opened: Result<Specialist, metier_model::specialist::BundleError>,
}

/// Every bundle of the store, opened and so verified; none where there is no store yet.
fn held(root: &Path) -> anyhow::Result<Vec<Held>> {
    if !root.is_dir() {
        return Ok(Vec::new());
    }
    let store = SpecialistStore::open(root).context("cannot open the store")?;
    let bundles = store.list().context("cannot list the store")?;
    Ok(bundles
        .into_iter()
        .map(|(name, id, dir)| Held {
            current: store.current(&name).as_ref() == Some(&dir),
            opened: Specialist::open(&dir),
            name,
            id,
            dir,
        })
        .collect())
}

/// How many bundles are good, and what is wrong with the others.
///
/// # Errors
/// The folder cannot be read.
pub fn verified(root: &Path) -> anyhow::Result<(usize, Vec<String>)> {
    let all = held(root)?;
    let broken: Vec<String> = all
        .iter()
        .filter_map(|held| held.opened.as_ref().err())
        .map(|error| {
            let mut told = error.to_string();
            let mut cause = std::error::Error::source(error);
            while let Some(error) = cause {
                told = format!("{told}: {error}");
                cause = error.source();
            }
            told
        })
        .collect();
    Ok((all.len() - broken.len(), broken))
}

/// Opens a specialist by its name in the store or by its folder.
///
/// # Errors
/// There is none, or it was changed.
pub fn open(root: &Path, specialist: &str) -> Result<(Specialist, PathBuf), Failure> {
    let by_name = if root.is_dir() {
        let store = SpecialistStore::open(root).map_err(Failure::environment)?;
        (store.current(specialist), store.names().unwrap_or_default())
    } else {
        (None, Vec::new())
    };
    let dir = match by_name {
        (Some(dir), _) => dir,
        (None, _) if Path::new(specialist).is_dir() => PathBuf::from(specialist),
        (None, names) => {
            let there = if names.is_empty() {
                format!("`{}` holds none", root.display())
            } else {
                format!("`{}` holds `{}`", root.display(), names.join("`, `"))
            };
            return Err(Failure::usage(anyhow::anyhow!("there is no specialist `{specialist}`: {there}")));
        }
    };
    // The folder's name is the bundle's id: `.` and links hide it.
    let dir =
        dir.canonicalize().with_context(|| format!("cannot open `{}`", dir.display())).map_err(Failure::Environment)?;
    // A bundle that was changed is a finding.
    Ok((Specialist::open(&dir).map_err(found)?, dir))
}

fn list(root: &Path, as_json: bool) -> Outcome {
    let all = held(root).map_err(Failure::Environment)?;
    if all.is_empty() && !as_json {
        println!("no specialists in `{}` yet: `metier build TASK.toml` makes one", root.display());
    }
    let mut broken = false;
    for held in &all {
        match &held.opened {
            Ok(specialist) => describe(held, specialist, as_json),
            Err(error) => {
                broken = true;
                if as_json {
                    line(
                        &json!({"name": held.name, "id": held.id, "current": held.current, "dir": held.dir, "error": error.to_string()}),
                    );
                } else {
                    println!("{:24} {}  CHANGED: {error}", held.name, held.id.short());
                }
            }
        }
    }
    if as_json {
        line(&json!({"store": root, "specialists": all.len(), "verified": !broken}));
    }
    if broken { Err(Failure::Found) } else { Ok(()) }
}

fn describe(held: &Held, specialist: &Specialist, as_json: bool) {
    let manifest = specialist.manifest();
    if as_json {
        line(&json!({
            "name": held.name, "id": held.id, "current": held.current, "dir": held.dir, "stage": manifest.stage,
            "labels": manifest.labels.len(), "may_leave": manifest.may_leave, "certificate": manifest.certificate,
        }));
        return;
    }
    let answers = if held.current { "answers" } else { "older" };
    let promise = manifest.certificate.map_or_else(
        || "no certificate: defers everything".to_owned(),
        |c| format!("error ≤ {} with confidence {}, answers {:.0} %", c.epsilon, 1.0 - c.delta, 100.0 * c.coverage),
    );
    println!(
        "{:24} {}  {answers:8} {:7} {:>4} labels  {promise}",
        held.name,
        held.id.short(),
        manifest.stage.name(),
        manifest.labels.len()
    );
}

fn show(root: &Path, specialist: &str, as_json: bool) -> Outcome {
    let (specialist, dir) = open(root, specialist)?;
    let manifest = specialist.manifest();
    if as_json {
        line(&json!({"id": specialist.id(), "dir": dir, "manifest": manifest}));
        return Ok(());
    }
    println!("{}: {}", manifest.name, manifest.instruction);
    println!("  id           {}", specialist.id());
    println!("  folder       {}", dir.display());
    println!("  stage        {}", manifest.stage.name());
    match &manifest.base {
        Some(base) => println!("  base         {} ({})", base.name, base.digest.short()),
        None => println!("  base         none: n-grams alone"),
    }
    match manifest.inputs.as_slice() {
        [_] => println!("  reads        the text of the last user message"),
        inputs => println!("  reads        a JSON object with `{}`", inputs.join("`, `")),
    }
    println!("  labels       {}", manifest.labels.join(", "));
    if let Some(label) = &manifest.out_of_scope {
        println!("  none of them {label}");
    }
    println!("  may leave    {}", if manifest.may_leave { "yes, where policy allows" } else { "no" });
    super::build::certificate(manifest.certificate.as_ref(), manifest.refusal.and_then(|refusal| refusal.rows_needed));
    let recipe = &manifest.recipe;
    let rows: Vec<String> = recipe.rows.iter().map(|(part, n)| format!("{part} {n}")).collect();
    println!("  recipe       seed {}, {} on {}", recipe.seed, recipe.metric, rows.join(", "));
    for rung in &recipe.rungs {
        println!("               {:7} {:.4} on validation rows", rung.rung.name(), rung.validation);
    }
    for (file, digest) in &manifest.files {
        println!("  file         {file}  sha256 {digest}");
    }
    Ok(())
}
