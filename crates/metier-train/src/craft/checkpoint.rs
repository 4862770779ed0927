//! Where was training when it was killed? State out, now and then; the same state in, at the next start.
//!
//! ```text
//! metier checkpoint 1\n
//! {"plan":"<sha256>","arrays":[len, …],"state":{…}}\n
//! numbers of all arrays, f32, little endian
//! SHA-256 of everything above
//! ```
//!
//! Written under another name, flushed, then renamed: a reader finds the state before or the state after, whole. A file of another plan
//! (other rows, other recipe, other base, other seed) is none. Training goes on from it as if nothing had happened: what is a function of
//! seed and step, such as order and dropped elements, is not in the file.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use metier_model::Digest;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};

const MAGIC: &[u8] = b"metier checkpoint 1\n";
/// A checkpoint is due when training has run for this many times what the last one took: 2 % of the time is spent on them.
const TIMES_ITS_COST: u32 = 50;
/// And not before this.
const LEAST_BETWEEN: Duration = Duration::from_millis(50);
/// Most bytes of a file that is read: three times the numbers of BERT-large, and as many of the best epoch's.
const MAX_BYTES: u64 = 8 << 30;
/// Folder of a store in which checkpoints lie.
const FOLDER: &str = ".work";

/// A checkpoint cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the checkpoint `{path}`")]
pub struct CheckpointError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// The checkpoint of one training.
#[derive(Clone, Debug)]
pub struct Keeper {
    path: PathBuf,
    plan: Digest,
    saved_at: Option<Duration>,
    cost: Duration,
}

#[derive(Serialize, Deserialize)]
struct Header<S> {
    plan: Digest,
    arrays: Vec<usize>,
    state: S,
}

impl Keeper {
    /// Of the training `what` of a task, in the store's working folder. `plan`: hash of everything that its numbers hang on.
    pub fn new(store: &Path, task: &str, what: &str, plan: Digest) -> Self {
        Self { path: path(store, task, what), plan, saved_at: None, cost: Duration::ZERO }
    }

    /// The state that was saved last under this plan; `None` where there is none, or only a damaged one.
    pub fn load<S: DeserializeOwned>(&self) -> Option<(S, Vec<Vec<f32>>)> {
        if fs::metadata(&self.path).ok()?.len() > MAX_BYTES {
            return None;
        }
        let bytes = fs::read(&self.path).ok()?;
        let (body, digest) = bytes.split_at_checked(bytes.len().checked_sub(32)?)?;
        if Sha256::digest(body).as_slice() != digest {
            return None;
        }
        let rest = body.strip_prefix(MAGIC)?;
        let end = rest.iter().position(|byte| *byte == b'\n')?;
        let header: Header<S> = serde_json::from_slice(&rest[..end]).ok()?;
        if header.plan != self.plan {
            return None;
        }
        let mut numbers = rest[end + 1..].chunks_exact(4);
        let mut arrays = Vec::with_capacity(header.arrays.len());
        for len in header.arrays {
            if len > numbers.len() {
                return None;
            }
            let array = numbers.by_ref().take(len).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            arrays.push(array.collect());
        }
        (numbers.len() == 0).then_some((header.state, arrays))
    }

    /// Whether it is time for the next one.
    pub fn is_due(&self, now: Duration) -> bool {
        let wait = (self.cost * TIMES_ITS_COST).max(LEAST_BETWEEN);
        self.saved_at.is_none_or(|saved_at| now.saturating_sub(saved_at) >= wait)
    }

    /// Replaces what was saved.
    ///
    /// # Errors
    ///
    /// Where the disk refuses; what was saved before is still there.
    pub fn save(
        &mut self,
        clock: &dyn Fn() -> Duration,
        state: &impl Serialize,
        arrays: &[&[f32]],
    ) -> Result<(), CheckpointError> {
        let start = clock();
        self.write(state, arrays).map_err(|source| CheckpointError { path: self.path.clone(), source })?;
        let end = clock();
        (self.saved_at, self.cost) = (Some(end), end.saturating_sub(start));
        Ok(())
    }

    fn write(&self, state: &impl Serialize, arrays: &[&[f32]]) -> io::Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        let staged = self.path.with_added_extension(format!("{}.new", std::process::id()));
        let written = (|| {
            let mut file =
                Hashing { hash: Sha256::new(), file: BufWriter::with_capacity(1 << 20, File::create(&staged)?) };
            file.write_all(MAGIC)?;
            let header = Header { plan: self.plan, arrays: arrays.iter().map(|array| array.len()).collect(), state };
            file.write_all(serde_json::to_string(&header)?.as_bytes())?;
            file.write_all(b"\n")?;
            let mut bytes = Vec::new();
            for part in arrays.iter().flat_map(|array| array.chunks(1 << 16)) {
                bytes.clear();
                bytes.extend(part.iter().flat_map(|x| x.to_le_bytes()));
                file.write_all(&bytes)?;
            }
            let Hashing { hash, mut file } = file;
            file.write_all(&hash.finalize())?;
            file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
            fs::rename(&staged, &self.path)
        })();
        if written.is_err() {
            // Best effort: the disk may be full of it.
            let _ = fs::remove_file(&staged);
        }
        written
    }
}

/// Removes the checkpoint of a training that is done, and what killed writers left beside it.
pub fn remove(store: &Path, task: &str, what: &str) {
    let path = path(store, task, what);
    let Some(name) = path.file_name().map(|name| name.to_string_lossy().into_owned()) else { return };
    for entry in fs::read_dir(store.join(FOLDER)).into_iter().flatten().flatten() {
        let found = entry.file_name().to_string_lossy().into_owned();
        if found == name || (found.starts_with(&format!("{name}.")) && found.ends_with(".new")) {
            // Best effort: a file of another plan is no checkpoint, and the next one replaces it.
            let _ = fs::remove_file(entry.path());
        }
    }
    // Only where nothing else is in it.
    let _ = fs::remove_dir(store.join(FOLDER));
}

/// Removes all checkpoints of a task whose trainings' names begin so.
pub fn remove_all(store: &Path, task: &str, beginning: &str) {
    let beginning = format!("{task}.{beginning}");
    for entry in fs::read_dir(store.join(FOLDER)).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&beginning) {
            // Best effort, as above.
            let _ = fs::remove_file(entry.path());
        }
    }
    let _ = fs::remove_dir(store.join(FOLDER));
}

fn path(store: &Path, task: &str, what: &str) -> PathBuf {
    store.join(FOLDER).join(format!("{task}.{what}.checkpoint"))
}

struct Hashing<W> {
    hash: Sha256,
    file: W,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.hash.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn keeper(dir: &Path, plan: u8) -> Keeper {
        Keeper::new(dir, "task", "adapter", Digest([plan; 32]))
    }

    #[test]
    fn what_is_saved_is_loaded_bit_by_bit() {
        let dir = tempfile::tempdir().unwrap();
        let mut kept = keeper(dir.path(), 1);
        assert!(kept.load::<u64>().is_none() && kept.is_due(Duration::ZERO));
        let numbers = [1.0f32, -0.0, f32::MIN_POSITIVE / 3.0, 0.1];
        kept.save(&|| Duration::ZERO, &7u64, &[&numbers, &[], &numbers[..2]]).unwrap();
        let (state, arrays): (u64, _) = keeper(dir.path(), 1).load().unwrap();
        let bits = |array: &[f32]| array.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(state, 7);
        assert_eq!(arrays.iter().map(|a| bits(a)).collect::<Vec<_>>(), [bits(&numbers), vec![], bits(&numbers[..2])]);
        assert!(!kept.is_due(LEAST_BETWEEN / 2) && kept.is_due(LEAST_BETWEEN));
        assert!(keeper(dir.path(), 2).load::<u64>().is_none(), "another plan");
        fs::write(path(dir.path(), "task", "adapter").with_added_extension("99.new"), "killed").unwrap();
        remove(dir.path(), "task", "adapter");
        assert!(!dir.path().join(FOLDER).exists());
    }

    /// Killed at any byte, or changed at any byte: the file is none.
    #[test]
    fn a_damaged_file_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let mut kept = keeper(dir.path(), 1);
        kept.save(&|| Duration::ZERO, &vec![3u8], &[&[0.5; 5]]).unwrap();
        let file = path(dir.path(), "task", "adapter");
        let whole = fs::read(&file).unwrap();
        for at in 0..whole.len() {
            fs::write(&file, &whole[..at]).unwrap();
            assert!(kept.load::<Vec<u8>>().is_none(), "cut at {at}");
            let mut changed = whole.clone();
            changed[at] ^= 4;
            fs::write(&file, &changed).unwrap();
            assert!(kept.load::<Vec<u8>>().is_none(), "changed at {at}");
        }
        fs::write(&file, &whole).unwrap();
        assert!(kept.load::<Vec<u8>>().is_some());
    }

    #[test]
    fn a_disk_that_refuses_is_told() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FOLDER), "a file where the folder should be").unwrap();
        let error = keeper(dir.path(), 1).save(&|| Duration::ZERO, &1u8, &[]).unwrap_err();
        assert!(error.to_string().starts_with("cannot write the checkpoint"));
    }
}
