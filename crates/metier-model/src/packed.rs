//! Which matrices of this file were packed before?
//!
//! **Question:** packing the weights of a large file into the kernels' panels takes longer than reading them: are they packed already?
//! **In:** a folder, the digest of a source, how weights are kept. **Out:** matrices that lie in a mapped file, shared by all processes
//! that open it. **Absent:** trust in a length or in a byte: what does not bear its checksum is packed anew from the source, whose own
//! digest is computed at every start. A cache is never needed: whatever is wrong with it costs time alone.
//!
//! ```text
//! DIGEST-as-file.packed
//!  0  "metierpk"                          8 bytes
//!  8  bytes of the index                  u64, little-endian
//! 16  XXH3 of the index                   u64, little-endian
//! 24  index: JSON (version, source, weights, matrices with shape, place and XXH3 of each part)
//!     zeros up to a multiple of 64
//!     parts, each from a multiple of 64: quants, scales, mins as `metier_kernels::quant` lays them
//! ```
//!
//! A checksum finds damage; it does not defend against somebody who may write here, who could as well write into the model's own files
//! beside it. The folder is made for its owner alone.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    process,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use metier_kernels::{
    Mapped,
    quant::{BlockFormat, QuantMatrix},
};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::{Digest, arch::transformer::WeightFormat};

const MAGIC: &[u8; 8] = b"metierpk";
/// Counts up with every change of how kernels lay weights.
const VERSION: u32 = 1;
/// Bytes before the index.
const PRELUDE: usize = 24;
/// Every part starts on a cache line.
const ALIGN: usize = 64;
/// Bytes of an index, at most: a part takes about 100, a network has some hundred of them.
const MAX_INDEX_BYTES: usize = 4 << 20;
/// Where most files are packed faster than they are found.
const MIN_SOURCE_BYTES: usize = 16 << 20;
/// What files here end with.
const ENDING: &str = "packed";
/// What they end with until they are whole.
const DRAFT: &str = "draft";

/// Where packed weights are kept from start to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedCache {
    /// The folder; made when the first file is written.
    pub dir: PathBuf,
    /// Bytes of all files in it, at most; the ones written first go first.
    pub limit_bytes: u64,
    /// Sources smaller than this are packed at every opening: it takes some milliseconds.
    pub min_source_bytes: usize,
}

/// What became of the cache when a decoder was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PackedOutcome {
    /// None was wanted, or the file is small, or its weights are not kept packed.
    Off,
    /// All weights were there.
    Read,
    /// Weights were packed, and written for the next start.
    Written {
        /// Bytes on disk.
        bytes: u64,
    },
    /// Weights were packed, and could not be written.
    NotWritten {
        /// Why not.
        problem: String,
    },
}

#[derive(Serialize, Deserialize)]
struct Index {
    version: u32,
    source: Digest,
    weights: String,
    matrices: BTreeMap<String, Vec<Part>>,
}

/// One packed matrix.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Part {
    form: Form,
    n: usize,
    k: usize,
    /// Its first byte, counted from the end of the index.
    at: usize,
    xxh3: u64,
}

/// [`BlockFormat`] as a word on disk.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Form {
    Q4_0,
    Q4_1,
    Q8_0,
    U8Min,
}

impl From<BlockFormat> for Form {
    fn from(format: BlockFormat) -> Self {
        match format {
            BlockFormat::Q4_0 => Self::Q4_0,
            BlockFormat::Q4_1 => Self::Q4_1,
            BlockFormat::Q8_0 => Self::Q8_0,
            BlockFormat::U8Min => Self::U8Min,
        }
    }
}

impl From<Form> for BlockFormat {
    fn from(form: Form) -> Self {
        match form {
            Form::Q4_0 => Self::Q4_0,
            Form::Q4_1 => Self::Q4_1,
            Form::Q8_0 => Self::Q8_0,
            Form::U8Min => Self::U8Min,
        }
    }
}

/// A file of the cache, its index read and checked, its parts not yet.
pub(crate) struct PackedFile {
    map: Arc<Mapped>,
    data_at: usize,
    matrices: BTreeMap<String, Vec<Part>>,
}

impl PackedFile {
    /// The parts of a matrix of `n` outputs and `k` inputs; `None` where it is not there whole and as it was written.
    pub(crate) fn matrix(&self, name: &str, n: usize, k: usize) -> Option<Vec<QuantMatrix>> {
        let parts = self.matrices.get(name)?;
        let rows = parts.iter().try_fold(0usize, |rows, part| rows.checked_add(part.n))?;
        if parts.is_empty() || rows != n || parts.iter().any(|part| part.k != k) {
            return None;
        }
        parts
            .iter()
            .map(|part| {
                let at = self.data_at.checked_add(part.at)?;
                let bytes = self.map.get(at..)?.get(..QuantMatrix::packed_len(part.form.into(), part.n, part.k)?)?;
                if xxh3_64(bytes) != part.xxh3 {
                    return None;
                }
                QuantMatrix::mapped(part.form.into(), part.n, part.k, &self.map, at)
            })
            .collect()
    }
}

impl PackedCache {
    /// A folder that may hold so many bytes.
    pub fn new(dir: PathBuf, limit_bytes: u64) -> Self {
        Self { dir, limit_bytes, min_source_bytes: MIN_SOURCE_BYTES }
    }

    /// Whether weights that are kept so, of a source of so many bytes, are worth a file.
    pub(crate) fn is_for(&self, weights: WeightFormat, source_bytes: usize) -> bool {
        source_bytes >= self.min_source_bytes && word(weights).is_some()
    }

    /// What was packed of this source; `None` where there is nothing that can be used.
    pub(crate) fn open(&self, source: &Digest, weights: WeightFormat) -> Option<PackedFile> {
        let map = Mapped::open(&self.path(source, weights)?).ok()?;
        let (data_at, index) = index_of(&map)?;
        let is_this =
            index.version == VERSION && index.source == *source && Some(index.weights.as_str()) == word(weights);
        is_this.then(|| PackedFile { map: Arc::new(map), data_at, matrices: index.matrices })
    }

    /// Writes packed matrices and returns the bytes: to a name of their own first, renamed when all is there, so that nobody ever reads or
    /// maps half a file. Nothing is synced: what a power cut left half on disk does not bear its checksums.
    pub(crate) fn write(
        &self,
        source: &Digest,
        weights: WeightFormat,
        matrices: &[(String, &[QuantMatrix])],
    ) -> io::Result<u64> {
        static DRAFTS: AtomicU32 = AtomicU32::new(0);
        let (path, word) = self.path(source, weights).zip(word(weights)).ok_or(io::ErrorKind::Unsupported)?;
        make_private(&self.dir)?;
        self.remove_left_drafts();
        let number = DRAFTS.fetch_add(1, Ordering::Relaxed);
        let draft = path.with_extension(format!("{}-{number}.{DRAFT}", process::id()));
        let file = File::options().write(true).create_new(true).open(&draft)?;
        file.try_lock().map_err(io::Error::from)?;
        let (index, parts) = lay_out(source, word, matrices);
        let written = write_all(&file, &index, &parts).and_then(|bytes| fs::rename(&draft, &path).map(|()| bytes));
        if written.is_err() {
            let _ = fs::remove_file(&draft);
        }
        self.keep_within_limit(&path);
        written
    }

    /// Deletes what a killed process left: drafts that nobody holds a lock on.
    fn remove_left_drafts(&self) {
        for (_, path) in self.files(DRAFT) {
            if File::open(&path).is_ok_and(|file| file.try_lock().is_ok()) {
                let _ = fs::remove_file(path);
            }
        }
    }

    /// Files with this ending.
    fn files(&self, ending: &str) -> Vec<(fs::Metadata, PathBuf)> {
        let Ok(entries) = fs::read_dir(&self.dir) else { return Vec::new() };
        let files = entries.filter_map(Result::ok).map(|entry| (entry.metadata(), entry.path()));
        let files = files.filter(|(_, path)| path.extension().is_some_and(|found| found == ending));
        files.filter_map(|(metadata, path)| Some((metadata.ok()?, path))).collect()
    }

    /// `None` where these weights are not kept packed.
    fn path(&self, source: &Digest, weights: WeightFormat) -> Option<PathBuf> {
        Some(self.dir.join(format!("{source}-{}.{ENDING}", word(weights)?)))
    }

    /// Deletes the oldest files until all fit, but not `newest`. What cannot be deleted stays.
    fn keep_within_limit(&self, newest: &Path) {
        let files = self.files(ENDING);
        let mut bytes: u64 = files.iter().map(|(metadata, _)| metadata.len()).sum();
        let others = files.into_iter().filter(|(_, path)| path != newest);
        let mut others: Vec<_> =
            others.filter_map(|(file, path)| Some((file.modified().ok()?, path, file.len()))).collect();
        others.sort();
        for (_, path, len) in others {
            if bytes > self.limit_bytes && fs::remove_file(path).is_ok() {
                bytes -= len;
            }
        }
    }
}

/// How weights are kept, as a word of file names; `None` where they are not packed into quantised panels.
fn word(weights: WeightFormat) -> Option<&'static str> {
    match weights {
        WeightFormat::AsFile => Some("as-file"),
        WeightFormat::Int8 => Some("int8"),
        WeightFormat::F16 | WeightFormat::F32 => None,
    }
}

/// A folder that nobody but its owner reads or writes.
fn make_private(dir: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(dir)
}

/// The index of a file and where its parts begin; `None` where it is damaged.
fn index_of(bytes: &[u8]) -> Option<(usize, Index)> {
    let number = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let len = usize::try_from(number(8)?).ok().filter(|len| *len <= MAX_INDEX_BYTES)?;
    let text = bytes.get(PRELUDE..PRELUDE + len)?;
    if bytes.get(..8)? != MAGIC || xxh3_64(text) != number(16)? {
        return None;
    }
    Some(((PRELUDE + len).next_multiple_of(ALIGN), serde_json::from_slice(text).ok()?))
}

/// The index as it is written, and the parts in order.
fn lay_out<'a>(
    source: &Digest,
    weights: &str,
    matrices: &'a [(String, &[QuantMatrix])],
) -> (Index, Vec<&'a QuantMatrix>) {
    let (mut at, mut parts) = (0, Vec::new());
    let mut place = |matrix: &'a QuantMatrix| {
        let sections = matrix.packed();
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        sections.iter().for_each(|section| hash.update(section));
        let part = Part { form: matrix.format().into(), n: matrix.n(), k: matrix.k(), at, xxh3: hash.digest() };
        at += sections.iter().map(|section| section.len()).sum::<usize>().next_multiple_of(ALIGN);
        parts.push(matrix);
        part
    };
    let matrices =
        matrices.iter().map(|(name, matrices)| (name.clone(), matrices.iter().map(&mut place).collect())).collect();
    (Index { version: VERSION, source: *source, weights: weights.to_owned(), matrices }, parts)
}

/// Writes a whole file and returns its bytes.
fn write_all(file: &File, index: &Index, parts: &[&QuantMatrix]) -> io::Result<u64> {
    file.set_len(0)?;
    let mut out = Counted { out: BufWriter::with_capacity(1 << 20, file), bytes: 0 };
    let index = serde_json::to_vec(index)?;
    out.write_all(MAGIC)?;
    out.write_all(&(index.len() as u64).to_le_bytes())?;
    out.write_all(&xxh3_64(&index).to_le_bytes())?;
    out.write_all(&index)?;
    out.pad()?;
    for part in parts {
        for section in part.packed() {
            out.write_all(section)?;
        }
        out.pad()?;
    }
    out.out.flush()?;
    Ok(out.bytes)
}

/// Counts what is written.
struct Counted<W> {
    out: W,
    bytes: u64,
}

impl<W: Write> Counted<W> {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.bytes += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    /// Zeros up to the next cache line.
    fn pad(&mut self) -> io::Result<()> {
        let zeros = self.bytes.next_multiple_of(ALIGN as u64) - self.bytes;
        self.write_all(&[0; ALIGN][..zeros as usize])
    }
}
