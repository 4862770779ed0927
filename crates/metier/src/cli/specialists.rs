//! `metier specialists`: which specialists there are, which of them answers, who said that it may, and how they come and go.

mod classifier;
mod diff;
mod leave;
mod transfer;

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Subcommand, ValueEnum};
use metier_model::{
    Digest, Specialist, SpecialistStore,
    specialist::{
        Registry,
        registry::{Event, PublicKey, Standing, State, Trust, by_id, utc},
    },
};
use serde_json::json;

use super::{
    CommonArgs, Failure, Outcome,
    desk::{self, Desk},
    found, line,
};

/// Digits of an id that are enough to name a bundle, if no other begins so.
const MIN_ID_DIGITS: usize = 4;

/// Specialists: what there is, what answers, and who said that it may.
#[derive(Debug, Args)]
#[command(
    after_help = "A specialist is named by its name (the live bundle) or by NAME@ID, where the first digits of an id are enough.

Examples:
  metier specialists list
  metier specialists show support-tickets
  metier specialists diff support-tickets            the live bundle against the newest draft
  metier specialists promote support-tickets --approver 'Grace H.'
  metier specialists rollback support-tickets        the bundle that was live before answers again
  metier specialists export support-tickets          one signed file for another machine
  metier specialists export shelf-labels --format gguf  what it generates with, for llama.cpp
  metier specialists export intents --format transformers  a head on an encoder, for Transformers
  metier specialists import support-tickets-3f2a91c4.metier"
)]
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
    /// Every bundle, and where it stands; exit code 1 if a bundle or a record was changed
    List {
        /// Only bundles that were made from this data file, byte by byte
        #[arg(long, value_name = "FILE")]
        made_from: Option<PathBuf>,
    },
    /// What one specialist is: task, stage, certificate, lineage, and everything that happened to it
    Show {
        /// NAME, NAME@ID, or the folder of a bundle
        specialist: String,
    },
    /// What differs between two bundles: data, labels, rung, figures, certificate
    Diff {
        /// NAME, NAME@ID, or the folder of a bundle
        specialist: String,
        /// The same; default: the newest bundle of that name that is not live
        other: Option<String>,
    },
    /// Let a bundle answer: its certificate must hold, and somebody who did not build it must approve; exit code 1 if not
    Promote {
        /// NAME (its newest draft or shadow) or NAME@ID
        specialist: String,
        /// Who approves; goes on record
        #[arg(long, value_name = "NAME", required_if_eq("to", "live"))]
        approver: Option<String>,
        /// `live` answers; `shadow` is to be given a copy of the traffic, and needs no approval
        #[arg(long, value_enum, default_value_t = Goal::Live)]
        to: Goal,
        /// A remark for the record
        #[arg(long, value_name = "TEXT")]
        note: Option<String>,
    },
    /// Let the bundle answer that was live before the present one
    Rollback {
        /// The name
        name: String,
        /// A remark for the record
        #[arg(long, value_name = "TEXT")]
        note: Option<String>,
    },
    /// Write a bundle with its report, card and a signed statement into one file; or what it generates with, for other programs
    Export {
        /// NAME or NAME@ID
        specialist: String,
        /// For whom
        #[arg(long, value_enum, default_value_t)]
        format: leave::Form,
        /// The file or folder; default: NAME-ID.metier, NAME-ID-FORMAT in the working folder
        #[arg(long, short, value_name = "PATH")]
        output: Option<PathBuf>,
    },
    /// Take in what `export` wrote elsewhere, as a draft; exit code 1 if it was changed or a stranger signed it
    Import {
        /// The file
        file: PathBuf,
        /// The public key of the registry that it came from, or the file that holds it, where `registry.trusted_keys` does not list it
        #[arg(long, value_name = "KEY")]
        trust: Option<String>,
    },
    /// Delete a bundle; its records stay
    Remove {
        /// NAME@ID, or NAME where it has one bundle
        specialist: String,
        /// Also if it is live: then nothing answers under its name
        #[arg(long)]
        force: bool,
    },
}

/// Where `promote` leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Goal {
    /// Answers.
    Live,
    /// Is to be given a copy of the traffic.
    Shadow,
}

/// Runs the verb.
pub fn run(args: &SpecialistsArgs) -> Outcome {
    let root = root(args.store.as_deref(), &args.common)?;
    let as_json = args.common.json;
    match &args.verb {
        SpecialistsVerb::List { made_from } => list(&root, made_from.as_deref(), as_json),
        SpecialistsVerb::Show { specialist } => show(&root, specialist, as_json),
        SpecialistsVerb::Diff { specialist, other } => diff::run(&root, specialist, other.as_deref(), as_json),
        SpecialistsVerb::Promote { specialist, approver, to, note } => {
            promote(&desk(&root, &args.common)?, specialist, *to, approver.as_deref(), note.as_deref(), as_json)
        }
        SpecialistsVerb::Rollback { name, note } => {
            let (settings, environment) = args.common.settings()?;
            let trust = desk::trust(&settings, &environment)?;
            roll_back(&desk(&root, &args.common)?, name, &trust, note.as_deref(), as_json)
        }
        SpecialistsVerb::Export { specialist, format, output } if *format != leave::Form::Bundle => {
            let (specialist, _) = open(&root, specialist)?;
            let (settings, environment) = args.common.settings()?;
            if *format == leave::Form::Transformers {
                return classifier::run(&specialist, output.as_deref(), &settings, &environment, as_json);
            }
            leave::run(&specialist, *format, output.as_deref(), &settings, &environment, as_json)
        }
        SpecialistsVerb::Export { specialist, output, .. } => {
            transfer::export(&desk(&root, &args.common)?, specialist, output.as_deref(), as_json)
        }
        SpecialistsVerb::Import { file, trust } => {
            let (settings, environment) = args.common.settings()?;
            let mut trusted = desk::trust(&settings, &environment)?;
            trusted.keys.extend(trust.as_deref().map(key).transpose()?);
            transfer::import(&root, &args.common, file, &trusted.keys, as_json)
        }
        SpecialistsVerb::Remove { specialist, force } => {
            remove(&desk(&root, &args.common)?, specialist, *force, as_json)
        }
    }
}

/// A key as it stands on the command line, or the file that holds it.
fn key(text: &str) -> Result<PublicKey, Failure> {
    let read = std::fs::read_to_string(text).ok();
    read.as_deref().unwrap_or(text).parse().context("cannot use `--trust`").map_err(Failure::Usage)
}

/// The registry of a store that is there, to be written to.
fn desk(root: &Path, common: &CommonArgs) -> Result<Desk, Failure> {
    if !root.is_dir() {
        return Err(Failure::usage(anyhow::anyhow!(
            "there are no specialists in `{}` yet: `metier build TASK.toml` makes one",
            root.display()
        )));
    }
    open_desk(root, common)
}

/// The same; the store is made if there is none.
fn open_desk(root: &Path, common: &CommonArgs) -> Result<Desk, Failure> {
    let (settings, environment) = common.settings()?;
    let store = SpecialistStore::open(root).map_err(Failure::environment)?;
    Desk::open(&store, &settings.state_dir(&environment).map_err(Failure::usage)?, &environment)
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
    standing: Option<Standing>,
    opened: Result<Specialist, metier_model::specialist::BundleError>,
}

impl Held {
    fn state(&self) -> &'static str {
        self.standing.as_ref().map_or("unsigned", |standing| standing.state.name())
    }

    fn is_live(&self) -> bool {
        self.standing.as_ref().is_some_and(|standing| standing.state == State::Live)
    }
}

/// Every bundle of the store, opened and so verified, and what is wrong with the records; none where there is no store yet.
fn held(root: &Path) -> anyhow::Result<(Vec<Held>, Vec<String>)> {
    if !root.is_dir() {
        return Ok((Vec::new(), Vec::new()));
    }
    let registry = Registry::new(SpecialistStore::open(root).context("cannot open the store")?);
    let bundles = registry.store().list().context("cannot list the store")?;
    let mut wrong = Vec::new();
    let mut standings = std::collections::BTreeMap::new();
    for name in registry.names().context("cannot list the registry")? {
        match registry.history(&name) {
            Ok(history) => _ = standings.insert(name, by_id(history.standings())),
            Err(error) => wrong.push(told(&error)),
        }
    }
    let held = bundles.into_iter().map(|(name, id, dir)| {
        let known = standings.get(&name).and_then(|of| of.get(&id)).cloned();
        // A store from before there were records, or one that keeps none.
        let unsigned_live = || {
            let current = registry.store().current(&name).as_ref() == Some(&dir);
            (current && standings.get(&name).is_some_and(|of| of.is_empty())).then_some(Standing {
                bundle: id,
                state: State::Live,
                built_by: None,
                since_ms: 0,
                imported_from: None,
                approved_by: None,
                live_since_ms: None,
            })
        };
        let standing = known.or_else(unsigned_live);
        Held { opened: Specialist::open(&dir), standing, name, id, dir }
    });
    Ok((held.collect(), wrong))
}

/// An error with its causes in one line.
fn told(error: &dyn std::error::Error) -> String {
    let mut told = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        told = format!("{told}: {error}");
        cause = error.source();
    }
    told
}

/// How many bundles are good, and what is wrong with the others or with the records.
///
/// # Errors
/// The folder cannot be read.
pub fn verified(root: &Path) -> anyhow::Result<(usize, Vec<String>)> {
    let (all, wrong) = held(root)?;
    let broken: Vec<String> = all.iter().filter_map(|held| held.opened.as_ref().err()).map(|e| told(e)).collect();
    Ok((all.len() - broken.len(), [broken, wrong].concat()))
}

/// Opens a specialist by NAME (the live one), NAME@ID, or its folder.
///
/// # Errors
/// There is none, or it was changed.
pub fn open(root: &Path, specialist: &str) -> Result<(Specialist, PathBuf), Failure> {
    let is_folder = || Path::new(specialist).is_dir() && specialist.contains(std::path::is_separator);
    let dir = if is_folder() {
        PathBuf::from(specialist)
    } else {
        let registry = if root.is_dir() {
            Registry::new(SpecialistStore::open(root).map_err(Failure::environment)?)
        } else {
            return Err(none_of(root, specialist, &[]));
        };
        let (name, id) = find(&registry, specialist, Wanted::Live)?;
        registry.store().place(&name, id)
    };
    // The folder's name is the bundle's id: `.` and links hide it.
    let dir =
        dir.canonicalize().with_context(|| format!("cannot open `{}`", dir.display())).map_err(Failure::Environment)?;
    // A bundle that was changed is a finding.
    Ok((Specialist::open(&dir).map_err(found)?, dir))
}

/// Which bundle a bare name means.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// The one that answers.
    Live,
    /// The newest that has never answered.
    Candidate,
    /// The same; else the live one, if nobody has approved it.
    ToApprove,
    /// The only one.
    Only,
}

/// The bundle that NAME or NAME@ID means.
fn find(registry: &Registry, specialist: &str, wanted: Wanted) -> Result<(String, Digest), Failure> {
    let (name, prefix) = specialist.split_once('@').map_or((specialist, None), |(name, id)| (name, Some(id)));
    let bundles = registry.store().list().map_err(Failure::environment)?;
    let ids: Vec<Digest> = bundles.iter().filter(|(of, ..)| of == name).map(|(_, id, _)| *id).collect();
    if ids.is_empty() {
        let names: std::collections::BTreeSet<&str> = bundles.iter().map(|(name, ..)| name.as_str()).collect();
        return Err(none_of(registry.store().root(), specialist, &names.into_iter().collect::<Vec<_>>()));
    }
    let list = || ids.iter().map(|id| format!("`{name}@{}`", id.short())).collect::<Vec<_>>().join(", ");
    if let Some(prefix) = prefix {
        let hits: Vec<Digest> = ids.iter().copied().filter(|id| id.to_string().starts_with(prefix)).collect();
        return match hits.as_slice() {
            [id] if prefix.len() >= MIN_ID_DIGITS => Ok((name.to_owned(), *id)),
            [] => Err(Failure::usage(anyhow::anyhow!(
                "no bundle of `{name}` begins with `{prefix}`: there are {}",
                list()
            ))),
            _ => Err(Failure::usage(anyhow::anyhow!(
                "`{prefix}` names no single bundle of `{name}`: there are {}",
                list()
            ))),
        };
    }
    let standings = registry.history(name).map_err(desk::failure)?.standings();
    let newest = |states: &[State]| {
        let candidates =
            standings.iter().filter(|standing| states.contains(&standing.state) && ids.contains(&standing.bundle));
        candidates.max_by_key(|standing| standing.since_ms).map(|standing| standing.bundle)
    };
    let id = match wanted {
        Wanted::Live => {
            let dir = registry.live(name).map_err(desk::failure)?;
            let id = dir.and_then(|dir| dir.file_name()?.to_str()?.parse().ok());
            id.ok_or_else(|| anyhow::anyhow!("no bundle of `{name}` is live: name one of {}", list()))
        }
        Wanted::Candidate | Wanted::ToApprove => newest(&[State::Shadow, State::Draft])
            .or_else(|| {
                let live = standings.iter().find(|standing| standing.state == State::Live);
                let unapproved = live.filter(|live| live.approved_by.is_none() && wanted == Wanted::ToApprove);
                unapproved.map(|live| live.bundle)
            })
            .ok_or_else(|| anyhow::anyhow!("`{name}` has no draft: name one of {}", list())),
        Wanted::Only => match ids.as_slice() {
            [id] => Ok(*id),
            _ => Err(anyhow::anyhow!("`{name}` has several bundles: name one of {}", list())),
        },
    };
    Ok((name.to_owned(), id.map_err(Failure::Usage)?))
}

fn none_of(root: &Path, specialist: &str, names: &[&str]) -> Failure {
    let there = if names.is_empty() {
        format!("`{}` holds none", root.display())
    } else {
        format!("`{}` holds `{}`", root.display(), names.join("`, `"))
    };
    Failure::usage(anyhow::anyhow!("there is no specialist `{specialist}`: {there}"))
}

fn list(root: &Path, made_from: Option<&Path>, as_json: bool) -> Outcome {
    let (mut all, wrong) = held(root).map_err(Failure::Environment)?;
    if let Some(file) = made_from {
        let digest = Digest::of_file(file).with_context(|| format!("cannot read `{}`", file.display()));
        let digest = digest.map_err(Failure::Usage)?;
        all.retain(|held| {
            held.opened.as_ref().is_ok_and(|s| s.manifest().recipe.data.iter().any(|data| data.sha256 == digest))
        });
    }
    if all.is_empty() && !as_json {
        match made_from {
            Some(file) => println!("no bundle in `{}` was made from `{}` as it is now", root.display(), file.display()),
            None => println!("no specialists in `{}` yet: `metier build TASK.toml` makes one", root.display()),
        }
    }
    let mut broken = !wrong.is_empty();
    for held in &all {
        match &held.opened {
            Ok(specialist) => describe(held, specialist, as_json),
            Err(error) => {
                broken = true;
                if as_json {
                    line(
                        &json!({"name": held.name, "id": held.id, "state": held.state(), "dir": held.dir, "error": error.to_string()}),
                    );
                } else {
                    println!("{:24} {}  CHANGED: {error}", held.name, held.id.short());
                }
            }
        }
    }
    if as_json {
        line(&json!({"store": root, "specialists": all.len(), "verified": !broken, "wrong_records": wrong}));
    } else {
        wrong.iter().for_each(|error| println!("RECORDS: {error}"));
    }
    if broken { Err(Failure::Found) } else { Ok(()) }
}

fn describe(held: &Held, specialist: &Specialist, as_json: bool) {
    let manifest = specialist.manifest();
    if as_json {
        line(&json!({
            "name": held.name, "id": held.id, "state": held.state(), "current": held.is_live(), "dir": held.dir,
            "kind": manifest.kind, "stage": manifest.stage, "labels": manifest.labels.len(), "may_leave": manifest.may_leave,
            "certificate": manifest.certificate, "first": manifest.first, "standing": held.standing,
        }));
        return;
    }
    let promise = manifest.certificate.map_or_else(
        || "no certificate: defers everything".to_owned(),
        |c| format!("error ≤ {} with confidence {}, answers {:.0} %", c.epsilon, 1.0 - c.delta, 100.0 * c.coverage),
    );
    let people = held.standing.as_ref().map(desk::people).filter(|people| !people.is_empty());
    let gives = match &manifest.generation {
        None => format!("{:>4} labels", manifest.labels.len()),
        Some(_) => "      text ".to_owned(),
    };
    println!(
        "{:24} {}  {:8} {:8} {gives}  {promise}{}",
        held.name,
        held.id.short(),
        held.state(),
        manifest.stage.name(),
        people.map_or_else(String::new, |people| format!("; {people}"))
    );
}

fn show(root: &Path, specialist: &str, as_json: bool) -> Outcome {
    let (specialist, dir) = open(root, specialist)?;
    let manifest = specialist.manifest();
    // A folder that lies in no store has no records.
    let registry = dir.parent().and_then(Path::parent).filter(|root| root.is_dir());
    let registry = registry.and_then(|root| SpecialistStore::open(root).ok()).map(Registry::new);
    let history = match &registry {
        Some(registry) => registry.history(&manifest.name).map_err(desk::failure)?,
        None => Default::default(),
    };
    let records: Vec<_> = history.records().iter().filter(|record| record.bundle == specialist.id()).collect();
    let standing = history.standing(specialist.id());
    if as_json {
        line(
            &json!({"id": specialist.id(), "dir": dir, "standing": standing, "records": records, "manifest": manifest}),
        );
        return Ok(());
    }
    println!("{}: {}", manifest.name, manifest.instruction);
    println!("  id           {}", specialist.id());
    println!("  folder       {}", dir.display());
    match &standing {
        Some(standing) => println!("  state        {}; {}", standing.state.name(), desk::people(standing)),
        None => println!("  state        not on record: nobody signed it"),
    }
    println!("  stage        {}", manifest.stage.name());
    match &manifest.base {
        Some(base) => println!("  base         {} ({})", base.name, base.digest.short()),
        None if manifest.decoder().is_none() => println!("  base         none: n-grams alone"),
        None => println!("  base         no encoder"),
    }
    if manifest.reads_base {
        println!("  reads both   its head reads that encoder beside a network of its own");
    }
    if let Some(hidden) = &manifest.hidden {
        println!("  reads by     {} ({})", hidden.decoder.name, hidden.decoder.digest.short());
    }
    if let Some(generation) = &manifest.generation {
        let (decoder, limit) = (&generation.decoder, generation.max_tokens);
        println!("  written by   {} ({}), at most {limit} tokens", decoder.name, decoder.digest.short());
    }
    if let Some(kept) = manifest.kept_layers() {
        let layers: Vec<String> = kept.layers().iter().map(ToString::to_string).collect();
        println!("  layers       {} of its decoder: {}", layers.len(), layers.join(", "));
    }
    match manifest.inputs.as_slice() {
        [_] => println!("  reads        the text of the last user message"),
        inputs => println!("  reads        a JSON object with `{}`", inputs.join("`, `")),
    }
    if !manifest.labels.is_empty() {
        println!("  labels       {}", manifest.labels.join(", "));
    }
    if let Some(label) = &manifest.out_of_scope {
        println!("  none of them {label}");
    }
    println!("  may leave    {}", if manifest.may_leave { "yes, where policy allows" } else { "no" });
    if let Some((first, share)) = manifest.first.as_ref().and_then(|first| Some((first, first.share?))) {
        let (name, covers) = (first.stage.name(), 100.0 * share.coverage);
        println!("  asks first   {name}: score ≥ {:.3}, {covers:.1} % of the calibration rows", share.threshold);
    }
    super::build::certificate(manifest.certificate.as_ref(), manifest.refusal.and_then(|refusal| refusal.rows_needed));
    let recipe = &manifest.recipe;
    let rows: Vec<String> = recipe.rows.iter().map(|(part, n)| format!("{part} {n}")).collect();
    println!("  recipe       seed {}, {} on {}", recipe.seed, recipe.metric, rows.join(", "));
    for rung in &recipe.rungs {
        let kept = rung.adapter.as_ref().map_or(0, |adapter| adapter.kept_layers.len());
        let layers = if kept > 0 { format!(", {kept} layers") } else { String::new() };
        println!("               {:7} {:.4} on validation rows{layers}", rung.rung.name(), rung.validation);
    }
    for data in &recipe.data {
        println!("  made from    {} file of {} rows  sha256 {}", data.role, data.rows, data.sha256);
    }
    for (file, digest) in &manifest.files {
        println!("  file         {file}  sha256 {digest}");
    }
    for record in records {
        let event = serde_json::to_value(&record.event).expect("an event is JSON");
        let event = event["event"].as_str().unwrap_or_default().replace('_', " ");
        let approver = match &record.event {
            Event::Promoted { approver: Some(approver) } => format!(", approved by {approver}"),
            Event::Promoted { approver: None } => ", by being built".to_owned(),
            Event::Imported { from, .. } => format!(" from {}", from.short()),
            _ => String::new(),
        };
        let note = record.note.as_ref().map_or_else(String::new, |note| format!(": {note}"));
        println!(
            "  record       {} UTC  {event} by {}{approver}, signed by {}{note}",
            utc(record.at_ms),
            record.by,
            record.key.short()
        );
    }
    Ok(())
}

fn promote(
    desk: &Desk,
    specialist: &str,
    to: Goal,
    approver: Option<&str>,
    note: Option<&str>,
    as_json: bool,
) -> Outcome {
    let (name, id) = find(&desk.registry, specialist, Wanted::ToApprove)?;
    let opened = Specialist::open(&desk.registry.store().place(&name, id)).map_err(found)?;
    let mut remarks = Vec::new();
    match (to, approver) {
        (Goal::Live, Some(approver)) => {
            remarks = desk::check_proof(&opened)
                .map_err(|reason| found(anyhow::anyhow!("`{name}@{}` cannot go live: {reason}", id.short())))?;
            desk.registry.promote(&name, id, approver, &desk.pen(note)).map_err(desk::failure)?;
        }
        (Goal::Live, None) => {
            return Err(Failure::usage(anyhow::anyhow!("nothing goes live without `--approver NAME`")));
        }
        (Goal::Shadow, _) => desk.registry.shadow(&name, id, &desk.pen(note)).map_err(desk::failure)?,
    }
    renew_cards(desk, &name)?;
    tell_change(desk, &name, id, &remarks, as_json)
}

fn roll_back(desk: &Desk, name: &str, trust: &Trust, note: Option<&str>, as_json: bool) -> Outcome {
    let id = desk.registry.roll_back(name, trust, &desk.pen(note)).map_err(desk::failure)?;
    renew_cards(desk, name)?;
    tell_change(desk, name, id, &[], as_json)
}

fn remove(desk: &Desk, specialist: &str, force: bool, as_json: bool) -> Outcome {
    let (name, id) = find(&desk.registry, specialist, Wanted::Only)?;
    desk.registry.remove(&name, id, force, &desk.pen(None)).map_err(desk::failure)?;
    if as_json {
        line(&json!({"name": name, "id": id, "state": State::Removed}));
    } else {
        println!("{name}@{} is removed; its records stay", id.short());
    }
    Ok(())
}

/// The cards of a name say who is live: a change of one changes others.
fn renew_cards(desk: &Desk, name: &str) -> Result<(), Failure> {
    for standing in desk.registry.history(name).map_err(desk::failure)?.standings() {
        if desk.registry.store().place(name, standing.bundle).is_dir() {
            desk.renew_card(name, standing.bundle)?;
        }
    }
    Ok(())
}

/// Says where a bundle stands now, and what stood there before.
fn tell_change(desk: &Desk, name: &str, id: Digest, remarks: &[String], as_json: bool) -> Outcome {
    let history = desk.registry.history(name).map_err(desk::failure)?;
    let standing = history.standing(id);
    if as_json {
        line(&json!({"name": name, "id": id, "standing": standing, "remarks": remarks}));
        return Ok(());
    }
    let state = standing.as_ref().map_or("draft", |standing| standing.state.name());
    println!("{name}@{} is {state}; {}", id.short(), standing.as_ref().map(desk::people).unwrap_or_default());
    for remark in remarks {
        println!("  {remark}");
    }
    Ok(())
}
