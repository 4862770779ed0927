//! Which specialists are there? Which version of each answers is the [`registry`](super::registry)'s to say.
//!
//! ```text
//! <root>/<name>/<id>/…       a bundle
//! <root>/<name>/current      text file with the id that answers where no records are kept; replaced by rename
//! <root>/.staging-<n>/       a bundle being written, with a locked file <root>/.staging-<n>.lock beside it
//! ```
//!
//! A reader sees a bundle whole or not at all. A writer that died leaves an unlocked staging folder, which the next
//! [`SpecialistStore::open`] removes; a folder that is still being written is locked and stays.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use super::bundle::{self, BundleError, Contents};
use crate::Digest;

const CURRENT: &str = "current";
const STAGING: &str = ".staging-";
/// Longest name of a specialist, in bytes.
const MAX_NAME_BYTES: usize = 63;
/// Staging folders tried before giving up.
const MAX_STAGING: u32 = 1000;

/// The store cannot do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The folder cannot be read or written.
    #[error("cannot access `{path}` of the specialist store")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Not `[a-z0-9][a-z0-9-]{0,62}`.
    #[error(
        "`{0}` is no name of a specialist: lower-case letters, digits and hyphens, at most {MAX_NAME_BYTES}, no hyphen first"
    )]
    Name(String),
    /// What was to be added is no bundle, or not of that name.
    #[error("cannot add a bundle")]
    Bundle(#[from] BundleError),
    /// The bundle's manifest has another name.
    #[error("the bundle is named `{actual}`, not `{expected}`")]
    OtherName {
        /// Name it should be added under.
        expected: String,
        /// Name in its manifest.
        actual: String,
    },
}

/// A folder of bundles.
#[derive(Clone, Debug)]
pub struct SpecialistStore {
    root: PathBuf,
}

/// A folder being filled; removed when dropped unless it was added.
#[derive(Debug)]
pub struct Staging {
    dir: PathBuf,
    lock_path: PathBuf,
    _lock: File,
}

impl Staging {
    /// Where the bundle is to be written.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Best effort: what stays is removed at the next opening.
        let _ = fs::remove_dir_all(&self.dir);
        let _ = fs::remove_file(&self.lock_path);
    }
}

/// Is it `[a-z0-9][a-z0-9-]{0,62}`?
pub fn is_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    !bytes.is_empty()
        && bytes.len() <= MAX_NAME_BYTES
        && bytes[0] != b'-'
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

impl SpecialistStore {
    /// Opens a store, creating its folder, and removes what dead writers left.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        fs::create_dir_all(root).map_err(at(root))?;
        let store = Self { root: root.to_owned() };
        store.sweep()?;
        Ok(store)
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Every bundle: `(name, id, folder)`, sorted.
    pub fn list(&self) -> Result<Vec<(String, Digest, PathBuf)>, StoreError> {
        let mut bundles = Vec::new();
        for (name, dir) in subfolders(&self.root)?.into_iter().filter(|(name, _)| is_name(name)) {
            let versions = subfolders(&dir)?;
            bundles.extend(versions.into_iter().filter_map(|(id, dir)| Some((name.clone(), id.parse().ok()?, dir))));
        }
        bundles.sort();
        Ok(bundles)
    }

    /// Names that have a folder, sorted.
    pub(super) fn all_names(&self) -> Result<Vec<String>, StoreError> {
        let mut names: Vec<String> = subfolders(&self.root)?.into_iter().map(|(name, _)| name).collect();
        names.retain(|name| is_name(name));
        names.sort();
        Ok(names)
    }

    /// Where a bundle lies, if it is there.
    pub fn place(&self, name: &str, id: Digest) -> PathBuf {
        self.root.join(name).join(id.to_string())
    }

    /// The folder of the bundle that answers under `name` in a store without records.
    pub fn current(&self, name: &str) -> Option<PathBuf> {
        if !is_name(name) {
            return None;
        }
        let dir = self.root.join(name);
        let id: Digest = fs::read_to_string(dir.join(CURRENT)).ok()?.trim().parse().ok()?;
        Some(dir.join(id.to_string())).filter(|dir| dir.is_dir())
    }

    /// An empty folder to write a bundle into; on the same file system as the store.
    pub fn stage(&self) -> Result<Staging, StoreError> {
        for n in 0..MAX_STAGING {
            let dir = self.root.join(format!("{STAGING}{}-{n}", std::process::id()));
            let lock_path = dir.with_added_extension("lock");
            let lock = match File::create_new(&lock_path) {
                Ok(lock) => lock,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(at(&lock_path)(error)),
            };
            lock.lock().map_err(at(&lock_path))?;
            if !lock_path.exists() {
                continue; // swept away before it was held
            }
            fs::create_dir(&dir).map_err(at(&dir))?;
            return Ok(Staging { dir, lock_path, _lock: lock });
        }
        Err(at(&self.root)(io::Error::other("too many staging folders")))
    }

    /// Verifies a staged bundle and renames it into place; it answers nothing yet. A bundle that is already there is kept as
    /// it is; files beside it, such as `run.json`, are renewed.
    pub fn add(&self, staged: Staging, name: &str) -> Result<Digest, StoreError> {
        if !is_name(name) {
            return Err(StoreError::Name(name.to_owned()));
        }
        let (id, contents) = bundle::read_unnamed(&staged.dir)?;
        if contents.manifest.name != name {
            return Err(StoreError::OtherName { expected: name.to_owned(), actual: contents.manifest.name });
        }
        let dir = self.root.join(name);
        fs::create_dir_all(&dir).map_err(at(&dir))?;
        let place = dir.join(id.to_string());
        let intact = place.is_dir() && bundle::read(&place).is_ok();
        if intact {
            for file in bundle::BESIDE.iter().map(|file| (staged.dir.join(file), place.join(file))) {
                if file.0.exists() {
                    fs::rename(&file.0, &file.1).map_err(at(&file.1))?;
                }
            }
        } else {
            if place.exists() {
                // A damaged bundle of this id: it answers nothing, so it may go.
                fs::remove_dir_all(&place).map_err(at(&place))?;
            }
            sync_folder(&staged.dir)?;
            fs::rename(&staged.dir, &place).map_err(at(&place))?;
        }
        sync_folder(&dir)?;
        Ok(id)
    }

    /// Writes contents straight into the store; they answer nothing yet.
    pub fn add_contents(&self, contents: &Contents) -> Result<Digest, StoreError> {
        let staged = self.stage()?;
        bundle::write(contents, staged.dir())?;
        self.add(staged, &contents.manifest.name)
    }

    /// Replaces one of the files that lie beside a bundle, such as its card.
    ///
    /// # Panics
    /// If the file is one of those that the bundle's hash covers.
    pub fn put_beside(&self, name: &str, id: Digest, file: &str, bytes: &[u8]) -> Result<(), StoreError> {
        assert!(bundle::BESIDE.contains(&file), "only files beside a bundle may change");
        let staged = self.root.join(name).join(format!(".{file}.new"));
        bundle::write_durably(&staged, bytes)?;
        let place = self.place(name, id).join(file);
        fs::rename(&staged, &place).map_err(at(&place))
    }

    /// Takes a bundle out: it is renamed away at once, and what a dead process leaves of it is swept at the next opening.
    pub(super) fn remove(&self, name: &str, id: Digest) -> Result<(), StoreError> {
        let staged = self.stage()?;
        let (from, to) = (self.place(name, id), staged.dir.join("removed"));
        fs::rename(&from, &to).map_err(at(&from))?;
        self.sync(name)
    }

    /// Makes what was renamed in the folder of a name durable.
    pub(super) fn sync(&self, name: &str) -> Result<(), StoreError> {
        sync_folder(&self.root.join(name))
    }

    /// Makes a bundle the one that answers in a store without records; where there are records they alone say so.
    pub fn make_current(&self, name: &str, id: Digest) -> Result<(), StoreError> {
        let dir = self.root.join(name);
        let staged = dir.join(format!("{CURRENT}.{}", std::process::id()));
        bundle::write_durably(&staged, format!("{id}\n").as_bytes())?;
        let current = dir.join(CURRENT);
        fs::rename(&staged, &current).map_err(at(&current))?;
        sync_folder(&dir)
    }

    fn sweep(&self) -> Result<(), StoreError> {
        for entry in fs::read_dir(&self.root).map_err(at(&self.root))? {
            let path = entry.map_err(at(&self.root))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if !name.starts_with(STAGING) {
                continue;
            }
            if path.extension().is_some() {
                sweep_lock(&path);
                continue;
            }
            let lock_path = path.with_added_extension("lock");
            let alive = File::open(&lock_path).is_ok_and(|lock| lock.try_lock().is_err());
            if !alive {
                fs::remove_dir_all(&path).map_err(at(&path))?;
                let _ = fs::remove_file(&lock_path);
            }
        }
        Ok(())
    }
}

/// Removes a lock that nobody holds and whose folder was never made: what a process left that was killed in between.
fn sweep_lock(path: &Path) {
    if let (false, Ok(lock)) = (path.with_extension("").exists(), File::open(path))
        && lock.try_lock().is_ok()
    {
        let _ = fs::remove_file(path);
    }
}

fn subfolders(dir: &Path) -> Result<Vec<(String, PathBuf)>, StoreError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(at(dir))? {
        let path = entry.map_err(at(dir))?.path();
        if let (true, Some(name)) = (path.is_dir(), path.file_name().and_then(|name| name.to_str())) {
            found.push((name.to_owned(), path));
        }
    }
    Ok(found)
}

fn sync_folder(dir: &Path) -> Result<(), StoreError> {
    // Folders cannot be opened as files on Windows; there the rename itself is what there is.
    if cfg!(unix) { File::open(dir).and_then(|folder| folder.sync_all()).map_err(at(dir)) } else { Ok(()) }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> StoreError + use<> {
    let path = path.to_owned();
    |source| StoreError::Io { path, source }
}
