//! Puts bytes into the cache: written beside their place, hashed while written, renamed only when size and hash are right.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use metier_model::{Digest, Progress, Unit};
use sha2::Digest as _;

use super::CatalogueFile;

/// Prefix of files and folders that are being written.
pub(super) const PART: &str = ".part-";
/// Bytes copied at a time.
const COPY_BUFFER_BYTES: usize = 1 << 20;

/// Why bytes did not get their place.
#[derive(Debug, thiserror::Error)]
pub(super) enum PlaceError {
    #[error("has {found} bytes, the catalogue says {expected}")]
    Size { found: String, expected: u64 },
    #[error("has SHA-256 {found}, the catalogue says {expected}: it is another file, and was not kept")]
    Hash { found: Digest, expected: Digest },
    #[error("cannot write `{}`: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot read it: {0}")]
    Read(io::Error),
}

/// `None` when the file has the catalogue's size and hash, else the digest it has.
///
/// # Errors
/// The file cannot be read; `NotFound` when it is absent.
pub(super) fn check(path: &Path, file: &CatalogueFile) -> io::Result<Option<Digest>> {
    let found = Digest::of_file(path)?;
    Ok((found != file.sha256).then_some(found))
}

/// Copies `reader` to `dir/file.name`.
pub(super) fn write(
    reader: &mut dyn Read,
    file: &CatalogueFile,
    dir: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(), PlaceError> {
    let part = dir.join(format!("{PART}{}-{}", std::process::id(), file.name.replace('/', "-")));
    let result = copy_checked(reader, file, &part, progress).and_then(|()| {
        let place = dir.join(&file.name);
        let folder = place.parent().map_or(Ok(()), fs::create_dir_all);
        folder.and_then(|()| fs::rename(&part, &place)).map_err(|source| PlaceError::Write { path: place, source })
    });
    if result.is_err() {
        // The error is what matters; a part that cannot be removed is swept at the next fetch.
        let _ = fs::remove_file(&part);
    }
    result
}

fn copy_checked(
    reader: &mut dyn Read,
    file: &CatalogueFile,
    part: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(), PlaceError> {
    let failed = |source| PlaceError::Write { path: part.to_owned(), source };
    let mut out = File::create(part).map_err(failed)?;
    let mut hasher = sha2::Sha256::new();
    let mut buffer = vec![0; COPY_BUFFER_BYTES];
    let mut done = 0;
    let stage = format!("checking {}", file.name);
    loop {
        let n = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(PlaceError::Read(error)),
        };
        done += n as u64;
        if done > file.bytes {
            return Err(PlaceError::Size { found: format!("more than {}", file.bytes), expected: file.bytes });
        }
        hasher.update(&buffer[..n]);
        out.write_all(&buffer[..n]).map_err(failed)?;
        progress(Progress { stage: &stage, done, total: Some(file.bytes), unit: Unit::Bytes });
    }
    if done != file.bytes {
        return Err(PlaceError::Size { found: done.to_string(), expected: file.bytes });
    }
    let found = Digest(hasher.finalize().into());
    if found != file.sha256 {
        return Err(PlaceError::Hash { found, expected: file.sha256 });
    }
    out.sync_all().map_err(failed)
}

/// Removes what an interrupted fetch left. Called while the model's lock is held.
pub(super) fn sweep(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(PART) {
            let path = entry.path();
            let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        }
    }
}
