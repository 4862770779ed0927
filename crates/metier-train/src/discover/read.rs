//! *Which calls are in these files?* Files and folders in, one call after the other out; everything else is counted with its reason.
//!
//! JSONL, JSON (an array, objects one after the other, or one object with a list inside), CSV and TSV, each plain, `.gz` or `.zst`. What a file
//! is, is told from its bytes. Memory does not grow with the files but for eight bytes a call, by which a duplicate is recognised.
//! Absent: prices, tasks.

use std::{
    cell::Cell,
    collections::{BTreeMap, HashMap, HashSet},
    fs::{self, File},
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
};

use metier_model::{Digest, Progress, Unit};
use metier_traffic::{
    Exchange,
    exchange::{Odd, Verdict},
    logs::{self, Row, Unread},
};
use serde_json::{Map, Value};

use super::task::{Reading, Skipped};
use crate::data::parquet;

/// Most bytes of one row. A longer one is skipped and counted, and no more of it is ever in memory.
pub const MAX_ROW_BYTES: usize = 16 << 20;
/// Most files of one run.
pub const MAX_FILES: usize = 100_000;
/// Deepest folder below the one that is named.
pub const MAX_FOLDERS: usize = 16;
/// Most columns of a table.
pub const MAX_COLUMNS: usize = 1024;
/// Calls by which duplicates are recognised; later ones are taken as they come.
pub const MAX_REMEMBERED: usize = 50_000_000;
/// Most scores that wait for their calls.
pub const MAX_SCORES: usize = 1_000_000;
/// Most streamed answers that are open at once.
pub const MAX_STREAMS: usize = 1024;
/// Before this, no log of a language model was written: 2015-01-01.
const FIRST_MS: u64 = 1_420_070_400_000;
/// How far the clock of a log may run ahead: two days.
const AHEAD_MS: u64 = 172_800_000;
/// Places that are kept for each reason.
const PLACES: usize = 5;
/// A source's names that are shorter may be mere numbers of rows, and then say nothing alone.
const MIN_NAME_BYTES: usize = 8;
/// Rows between two reports of progress.
const REPORT_EVERY: u64 = 1024;

/// Files cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A file or folder that was named is not there or may not be read.
    #[error("cannot read `{path}`")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nothing in all files is a call.
    #[error("no call of a model in {files} with {rows}{why}")]
    Nothing {
        /// Files that were read, as "3 files".
        files: String,
        /// Rows in them, likewise.
        rows: String,
        /// The most frequent reasons with a place each, as they end the sentence.
        why: String,
    },
    /// More than [`MAX_FILES`].
    #[error("more than {MAX_FILES} files under `{0}`: name fewer folders at a time")]
    TooManyFiles(PathBuf),
}

/// Where a row stands.
#[derive(Clone, Debug)]
pub struct RowPlace {
    /// Its file, as it was named.
    pub file: Arc<str>,
    /// Its line, from 1; of an array's element, the line where it begins.
    pub line: u64,
    /// Which of the calls of that line, from 0: a batch of spans, or a list inside an object, holds several.
    pub nth: u32,
}

impl std::fmt::Display for RowPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.file, self.line)?;
        if self.nth > 0 { write!(f, "#{}", self.nth + 1) } else { Ok(()) }
    }
}

/// What became of a row, or of one of the calls in it.
#[derive(Debug)]
pub enum Fate<'a> {
    /// A call that counts.
    Call(Box<Exchange>),
    /// Something that does not count, and why.
    Passed(&'a str),
}

/// A score is joined to its call by id.
pub const IS_SCORE: &str = "what somebody says of a call";
/// A stream's pieces make one call, which stands where its first piece does.
pub const IS_PIECE: &str = "a further piece of an answer that came as a stream";

/// The files of a run, and what is to be believed of their times.
#[derive(Debug)]
pub struct Logs {
    files: Vec<PathBuf>,
    skipped: BTreeMap<String, Skipped>,
    total_bytes: u64,
    now_ms: u64,
}

/// What a pass over the files brought beside the calls.
#[derive(Debug, Default)]
pub struct Pass {
    /// Counts and reasons.
    pub reading: Reading,
    /// What was said of calls, by their id or their trace's.
    pub verdicts: HashMap<String, Verdict>,
}

impl Logs {
    /// Finds the files; folders are followed, in the order of their names. `now_ms`: later calls than this (and two days) have a wrong clock.
    ///
    /// # Errors
    /// Something named is not there, or there is too much of it.
    pub fn find(paths: &[PathBuf], now_ms: u64) -> Result<Self, ReadError> {
        let mut logs = Self { files: Vec::new(), skipped: BTreeMap::new(), total_bytes: 0, now_ms };
        for path in paths {
            let named = fs::metadata(path).map_err(|source| ReadError::Io { path: path.clone(), source })?;
            if named.is_dir() {
                logs.folder(path, path, 0)?;
            } else {
                logs.total_bytes += named.len();
                logs.files.push(path.clone());
            }
        }
        Ok(logs)
    }

    fn folder(&mut self, root: &Path, folder: &Path, depth: usize) -> Result<(), ReadError> {
        let io = |source| ReadError::Io { path: folder.to_owned(), source };
        let mut entries: Vec<fs::DirEntry> = fs::read_dir(folder).map_err(io)?.collect::<Result<_, _>>().map_err(io)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            if entry.file_name().to_string_lossy().starts_with('.') {
                continue;
            }
            // Links are followed to files, never to folders: those may run in a circle.
            let linked = entry.file_type().map_err(io)?.is_symlink();
            let Ok(found) = fs::metadata(&path) else {
                note(&mut self.skipped, "cannot be read", &path.display());
                continue;
            };
            if found.is_dir() {
                if linked || depth == MAX_FOLDERS {
                    note(&mut self.skipped, "a linked or too deep folder", &path.display());
                } else {
                    self.folder(root, &path, depth + 1)?;
                }
            } else if !may_be_log(&path) {
                note(
                    &mut self.skipped,
                    "a name that no log has: name the file itself to have it read",
                    &path.display(),
                );
            } else {
                if self.files.len() == MAX_FILES {
                    return Err(ReadError::TooManyFiles(root.to_owned()));
                }
                self.total_bytes += found.len();
                self.files.push(path);
            }
        }
        Ok(())
    }

    /// Reads all files once, calling `take` with every call.
    ///
    /// # Errors
    /// A file that was found can no longer be opened, or nothing in any of them is a call.
    pub fn read(
        &self,
        stage: &str,
        take: &mut dyn FnMut(Exchange, &RowPlace),
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Pass, ReadError> {
        let calls = &mut |fate: Fate<'_>, place: &RowPlace, _: bool| {
            if let Fate::Call(call) = fate {
                take(*call, place);
            }
        };
        self.read_all(stage, calls, progress)
    }

    /// As [`read`](Self::read), but tells of what is no call too: every row is told of at least once. The last argument of `take` is true once for
    /// each row, so that these add up to [`Reading::rows`].
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_all(
        &self,
        stage: &str,
        take: &mut dyn FnMut(Fate<'_>, &RowPlace, bool),
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Pass, ReadError> {
        let mut state = State {
            pass: Pass::default(),
            seen: HashSet::default(),
            streams: HashMap::new(),
            now_ms: self.now_ms,
            take,
            progress,
            stage,
            total_bytes: self.total_bytes,
            bytes_before: 0,
            bytes: Rc::new(Cell::new(0)),
            unknown: None,
        };
        state.pass.reading.files_skipped.clone_from(&self.skipped);
        for path in &self.files {
            state.file(path)?;
        }
        let Pass { mut reading, verdicts } = std::mem::take(&mut state.pass);
        reading.files = self.files.len() as u64;
        if reading.calls == 0 {
            let mut reasons: Vec<(&String, &Skipped)> = reading.skipped.iter().chain(&reading.files_skipped).collect();
            reasons.sort_by_key(|(_, skipped)| std::cmp::Reverse(skipped.rows));
            let told = reasons.iter().take(3).map(|(reason, skipped)| {
                format!("{} × {reason} (e.g. {})", skipped.rows, skipped.places.first().map_or("", String::as_str))
            });
            let told: Vec<String> = told.collect();
            let mut why = if told.is_empty() { String::new() } else { format!(": {}", told.join("; ")) };
            if let Some(fields) = &state.unknown {
                why +=
                    &format!(". The first of unknown form has the fields {fields}. What is read is {}", logs::EXPECTED);
            }
            let of = |n: u64, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
            return Err(ReadError::Nothing { files: of(reading.files, "file"), rows: of(reading.rows, "row"), why });
        }
        Ok(Pass { reading, verdicts })
    }
}

/// In a folder, what ends like a log, or like what many take for one, or not at all; what is named itself is always read.
fn may_be_log(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    let plain = [".gz", ".zst"].iter().find_map(|ending| name.strip_suffix(ending)).unwrap_or(&name);
    let ending = plain.rsplit_once('.').map(|(_, ending)| ending);
    let known = ["jsonl", "ndjson", "json", "csv", "tsv", "log", "txt", "parquet", "zip"];
    ending.is_none_or(|ending| known.contains(&ending) || ending.bytes().all(|byte| byte.is_ascii_digit()))
}

fn note(reasons: &mut BTreeMap<String, Skipped>, reason: &str, place: &dyn std::fmt::Display) {
    let skipped = match reasons.get_mut(reason) {
        Some(skipped) => skipped,
        None => reasons.entry(reason.to_owned()).or_default(),
    };
    skipped.rows += 1;
    if skipped.places.len() < PLACES {
        skipped.places.push(place.to_string());
    }
}

struct State<'a> {
    pass: Pass,
    seen: HashSet<u64, std::hash::BuildHasherDefault<Identity>>,
    streams: HashMap<String, (Exchange, RowPlace)>,
    now_ms: u64,
    take: &'a mut dyn FnMut(Fate<'_>, &RowPlace, bool),
    progress: &'a mut dyn FnMut(Progress<'_>),
    stage: &'a str,
    total_bytes: u64,
    bytes_before: u64,
    bytes: Rc<Cell<u64>>,
    /// The fields of the first record that no format has.
    unknown: Option<String>,
}

/// Hashes are their own hashes.
#[derive(Default)]
struct Identity(u64);

impl std::hash::Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 << 8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

/// Counts bytes on their way from the disk, so that progress is known of compressed files too.
struct Counted {
    file: File,
    bytes: Rc<Cell<u64>>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(buffer)?;
        self.bytes.set(self.bytes.get() + n as u64);
        Ok(n)
    }
}

impl State<'_> {
    fn file(&mut self, path: &Path) -> Result<(), ReadError> {
        let io = |source| ReadError::Io { path: path.to_owned(), source };
        let name: Arc<str> = Arc::from(path.display().to_string());
        self.bytes = Rc::new(Cell::new(0));
        let file = File::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        let mut raw = BufReader::with_capacity(1 << 16, Counted { file, bytes: Rc::clone(&self.bytes) });
        let head = raw.fill_buf().map_err(io)?.to_vec();
        if head.starts_with(parquet::MAGIC) {
            self.parquet(path, &name)?;
            self.bytes_before += length;
            return Ok(());
        }
        let mut reader: Box<dyn BufRead> = match head.as_slice() {
            [0x1f, 0x8b, ..] => Box::new(BufReader::with_capacity(1 << 16, flate2::bufread::MultiGzDecoder::new(raw))),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => {
                Box::new(BufReader::with_capacity(1 << 16, zstd::stream::read::Decoder::with_buffer(raw).map_err(io)?))
            }
            _ => Box::new(raw),
        };
        match self.rows(&name, &mut *reader) {
            Ok(()) => {}
            // Compressed data that ends too early or is damaged: what came before counts.
            Err(error) => {
                let reason = if error.kind() == io::ErrorKind::UnexpectedEof {
                    "compressed data that ends too early; what came before was read"
                } else {
                    "damaged or unreadable data; what came before was read"
                };
                note(&mut self.pass.reading.files_skipped, reason, &name);
            }
        }
        let mut streams: Vec<(Exchange, RowPlace)> = self.streams.drain().map(|(_, stream)| stream).collect();
        streams.sort_by_key(|(_, place)| place.line);
        for (call, place) in streams {
            self.call(call, &place, logs::Format::OpenAi, true);
        }
        self.bytes_before += length;
        Ok(())
    }

    /// Rows are counted, as there are no lines; what came before damage counts.
    fn parquet(&mut self, path: &Path, name: &Arc<str>) -> Result<(), ReadError> {
        let file = File::open(path).map_err(|source| ReadError::Io { path: path.to_owned(), source })?;
        let read = parquet::for_each_row(file, &mut |line, row| {
            self.record(&Value::Object(row), &RowPlace { file: Arc::clone(name), line, nth: 0 });
            true
        });
        if let Err(error) = read {
            let reason = format!("damaged Parquet: {error}; what came before was read");
            note(&mut self.pass.reading.files_skipped, &reason, name);
        }
        Ok(())
    }

    fn rows(&mut self, name: &Arc<str>, reader: &mut dyn BufRead) -> io::Result<()> {
        let head = reader.fill_buf()?;
        let unread = match head {
            [b'P', b'A', b'R', b'1', ..] => Some("Parquet in a compressed file: unpack it first"),
            [b'P', b'K', 3, 4, ..] => Some("a zip archive: unpack it first"),
            [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some("UTF-16: convert it with `iconv -f UTF-16 -t UTF-8`"),
            [] => Some("empty"),
            _ if head.contains(&0) => Some("no text: it holds zero bytes"),
            _ => None,
        };
        if let Some(reason) = unread {
            note(&mut self.pass.reading.files_skipped, reason, name);
            return Ok(());
        }
        if head.starts_with(b"\xef\xbb\xbf") {
            reader.consume(3);
        }
        let head = reader.fill_buf()?;
        let first = head.iter().copied().find(|byte| !byte.is_ascii_whitespace());
        let line = head.split(|&byte| byte == b'\n').find(|line| !line.trim_ascii().is_empty()).unwrap_or_default();
        match first {
            Some(b'[') => self.values(name, reader),
            // An object over several lines.
            Some(b'{') if line.trim_ascii() == b"{" => self.values(name, reader),
            Some(b'{') => self.lines(name, reader),
            _ => {
                let tabs = line.iter().filter(|&&byte| byte == b'\t').count();
                let commas = line.iter().filter(|&&byte| byte == b',').count();
                let semicolons = line.iter().filter(|&&byte| byte == b';').count();
                let most = tabs.max(commas).max(semicolons);
                if most == 0 {
                    // A broken first line of JSONL, or a log in words.
                    return self.lines(name, reader);
                }
                let delimiter = if most == commas {
                    b','
                } else if most == tabs {
                    b'\t'
                } else {
                    b';'
                };
                self.table(name, reader, delimiter)
            }
        }
    }

    fn lines(&mut self, name: &Arc<str>, reader: &mut dyn BufRead) -> io::Result<()> {
        let mut line = Vec::new();
        let mut place = RowPlace { file: Arc::clone(name), line: 0, nth: 0 };
        loop {
            let end = next_line(reader, &mut line, None)?;
            if end == End::OfFile && line.is_empty() {
                return Ok(());
            }
            place.line += 1;
            if !line.trim_ascii().is_empty() || end == End::TooLong {
                match end {
                    End::TooLong => self.skip(&too_long(), &place),
                    end => self.json(&line, &place, end == End::OfFile),
                }
            }
        }
    }

    /// Elements of an array, or objects one after the other, over as many lines as they like.
    fn values(&mut self, name: &Arc<str>, reader: &mut dyn BufRead) -> io::Result<()> {
        let mut scan = Scan::default();
        let mut value = Vec::new();
        let mut place = RowPlace { file: Arc::clone(name), line: 1, nth: 0 };
        let mut line = 1;
        loop {
            let chunk = reader.fill_buf()?;
            if chunk.is_empty() {
                break;
            }
            let (mut used, mut whole) = (chunk.len(), false);
            for (at, &byte) in chunk.iter().enumerate() {
                line += u64::from(byte == b'\n');
                match scan.step(byte) {
                    Step::Between => {}
                    Step::Begins => {
                        place.line = line;
                        value.clear();
                        value.push(byte);
                    }
                    Step::Inside if value.len() <= MAX_ROW_BYTES => value.push(byte),
                    Step::Inside => {}
                    Step::Ends => {
                        value.push(byte);
                        (used, whole) = (at + 1, true);
                        break;
                    }
                }
            }
            reader.consume(used);
            if whole {
                if value.len() > MAX_ROW_BYTES {
                    self.skip(&too_long(), &place);
                } else {
                    self.json(&value, &place, false);
                }
                value.clear();
            }
        }
        if scan.depth > 0 && !value.is_empty() {
            self.skip("the end of the file cuts it off", &place);
        }
        Ok(())
    }

    fn table(&mut self, name: &Arc<str>, reader: &mut dyn BufRead, delimiter: u8) -> io::Result<()> {
        let mut header: Option<Vec<String>> = None;
        let mut record = Vec::new();
        let mut line = 0;
        loop {
            let end = next_line(reader, &mut record, Some(b'"'))?;
            if end == End::OfFile && record.is_empty() {
                return Ok(());
            }
            let place = RowPlace { file: Arc::clone(name), line: line + 1, nth: 0 };
            line += 1 + record.iter().filter(|&&byte| byte == b'\n').count() as u64;
            if end == End::TooLong {
                self.skip(&format!("{}, or a quote that is never closed", too_long()), &place);
                continue;
            }
            if record.trim_ascii().is_empty() {
                continue;
            }
            let Ok(text) = std::str::from_utf8(&record) else {
                self.skip("not UTF-8", &place);
                continue;
            };
            let cells = cells(text, char::from(delimiter));
            let Some(header) = &header else {
                header = Some(cells);
                continue;
            };
            if cells.len() != header.len() || cells.len() > MAX_COLUMNS {
                let reason = if end == End::OfFile {
                    "the end of the file cuts it off"
                } else {
                    "more or fewer cells than the header"
                };
                self.skip(reason, &place);
                continue;
            }
            let filled = header.iter().zip(cells).filter(|(_, cell)| !cell.trim().is_empty());
            let object: Map<String, Value> = filled.map(|(name, cell)| (name.clone(), Value::String(cell))).collect();
            self.record(&Value::Object(object), &place);
        }
    }

    fn json(&mut self, bytes: &[u8], place: &RowPlace, last: bool) {
        match serde_json::from_slice::<Value>(bytes) {
            Ok(record) => self.record(&record, place),
            Err(error) if last && error.is_eof() => self.skip("the end of the file cuts it off", place),
            Err(_) if std::str::from_utf8(bytes).is_err() => self.skip("not UTF-8", place),
            Err(_) => self.skip("not valid JSON", place),
        }
    }

    fn record(&mut self, record: &Value, place: &RowPlace) {
        let mut place = place.clone();
        match logs::read(record) {
            // One object with a list of records inside.
            Err(Unread::UnknownFields) if list(record).is_some() => {
                for inner in list(record).unwrap_or_default() {
                    self.row(logs::read(inner), &mut place);
                }
            }
            read => {
                if matches!(read, Err(Unread::UnknownFields)) && self.unknown.is_none() {
                    self.unknown = Some(logs::fields(record));
                }
                self.row(read, &mut place);
            }
        }
    }

    /// Leaves `place` behind what it has read there.
    fn row(&mut self, read: Result<(logs::Format, Row), Unread>, place: &mut RowPlace) {
        self.pass.reading.rows += 1;
        if self.pass.reading.rows.is_multiple_of(REPORT_EVERY) {
            let done = (self.bytes_before + self.bytes.get()).min(self.total_bytes);
            (self.progress)(Progress { stage: self.stage, done, total: Some(self.total_bytes), unit: Unit::Bytes });
        }
        match read {
            Err(unread) => self.pass_over(&unread.to_string(), place, true),
            Ok((format, Row::Calls(calls))) => {
                for (at, call) in calls.into_iter().enumerate() {
                    self.call(call, place, format, at == 0);
                    place.nth += 1;
                }
                return;
            }
            Ok((_, Row::Score(score))) => {
                (self.take)(Fate::Passed(IS_SCORE), place, true);
                if self.pass.verdicts.len() < MAX_SCORES {
                    self.pass.verdicts.insert(score.of, score.verdict);
                }
            }
            Ok((format, Row::Piece(piece))) => {
                if !self.streams.contains_key(&piece.id) && self.streams.len() == MAX_STREAMS {
                    let oldest = self.streams.iter().min_by_key(|(_, (_, place))| place.line).map(|(id, _)| id.clone());
                    if let Some((call, place)) = oldest.and_then(|id| self.streams.remove(&id)) {
                        self.call(call, &place, format, true);
                    }
                }
                match self.streams.get_mut(&piece.id) {
                    Some((call, _)) => {
                        join(call, piece.part);
                        (self.take)(Fate::Passed(IS_PIECE), place, true);
                    }
                    None => {
                        self.streams.insert(piece.id, (piece.part, place.clone()));
                    }
                }
            }
        }
        place.nth += 1;
    }

    fn skip(&mut self, reason: &str, place: &RowPlace) {
        self.pass.reading.rows += 1;
        self.pass_over(reason, place, true);
    }

    fn pass_over(&mut self, reason: &str, place: &RowPlace, begins: bool) {
        note(&mut self.pass.reading.skipped, reason, place);
        (self.take)(Fate::Passed(reason), place, begins);
    }

    fn call(&mut self, mut call: Exchange, place: &RowPlace, format: logs::Format, begins: bool) {
        if let Some(key) = key(&call) {
            if self.seen.contains(&key) {
                self.pass_over("a duplicate of an earlier row", place, begins);
                return;
            }
            if self.seen.len() < MAX_REMEMBERED {
                self.seen.insert(key);
            }
        }
        let reading = &mut self.pass.reading;
        if call.time_ms.is_some_and(|ms| ms < FIRST_MS || ms > self.now_ms.saturating_add(AHEAD_MS)) {
            call.time_ms = None;
            call.odd.push(Odd::WrongClock);
        }
        for odd in &call.odd {
            note(&mut reading.odd, odd.words(), place);
        }
        reading.calls += 1;
        *reading.formats.entry(format.name().to_owned()).or_default() += 1;
        if let Some(ms) = call.time_ms {
            reading.first_ms = Some(reading.first_ms.map_or(ms, |first| first.min(ms)));
            reading.last_ms = Some(reading.last_ms.map_or(ms, |last| last.max(ms)));
        }
        (self.take)(Fate::Call(Box::new(call)), place, begins);
    }
}

fn too_long() -> String {
    format!("longer than {} MiB", MAX_ROW_BYTES >> 20)
}

/// Adds a piece to what came before it.
fn join(call: &mut Exchange, part: Exchange) {
    match (&mut call.answer, part.answer) {
        (Some(answer), Some(more)) if answer.len() + more.len() <= MAX_ROW_BYTES => answer.push_str(&more),
        (answer @ None, more) => *answer = more,
        _ => {}
    }
    call.tokens = part.tokens.or(call.tokens);
}

/// By what a call is recognised when it comes again: its name; without one, all that it says, if that is enough.
fn key(call: &Exchange) -> Option<u64> {
    let mut text = String::new();
    match &call.id {
        Some(id) if id.len() >= MIN_NAME_BYTES => text.push_str(id),
        id => {
            let time = call.time_ms?;
            if call.messages.is_empty() && call.answer.is_none() && id.is_none() {
                return None;
            }
            text.push_str(&format!("{id:?} {time} {} {:?} {:?}", call.model, call.tokens, call.answer));
            call.messages.iter().for_each(|said| text.push_str(&said.text));
        }
    }
    let digest = Digest::of(text.as_bytes());
    Some(u64::from_be_bytes(digest.0[..8].try_into().expect("eight bytes")))
}

/// The list of records inside an object that is none itself.
fn list(record: &Value) -> Option<&[Value]> {
    let object = record.as_object()?;
    let named = ["data", "items", "results", "rows", "logs", "observations", "requests", "records", "calls"];
    let list = named.iter().find_map(|name| object.get(*name)?.as_array())?;
    (!list.is_empty()).then_some(list.as_slice())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    OfLine,
    OfFile,
    TooLong,
}

/// Reads up to a line break that stands outside of `quote`s into `line`, which never holds more than [`MAX_ROW_BYTES`].
fn next_line(reader: &mut dyn BufRead, line: &mut Vec<u8>, quote: Option<u8>) -> io::Result<End> {
    line.clear();
    let (mut quoted, mut too_long) = (false, false);
    loop {
        let chunk = reader.fill_buf()?;
        if chunk.is_empty() {
            return Ok(if too_long { End::TooLong } else { End::OfFile });
        }
        let end = match quote {
            None => chunk.iter().position(|&byte| byte == b'\n'),
            Some(quote) => chunk.iter().position(|&byte| {
                // Two quotes inside a quoted cell open and close, which comes to the same.
                quoted ^= byte == quote;
                byte == b'\n' && !quoted
            }),
        };
        let (taken, done) = end.map_or((chunk.len(), false), |end| (end + 1, true));
        if !too_long {
            if line.len() + taken > MAX_ROW_BYTES + 1 {
                too_long = true;
                line.clear();
                // Behind a quote that is never closed, the next line break is as good as any.
                quoted = false;
            } else {
                line.extend_from_slice(&chunk[..taken - usize::from(done)]);
            }
        }
        reader.consume(taken);
        if done {
            if line.last() == Some(&b'\r') {
                line.pop();
            }
            return Ok(if too_long { End::TooLong } else { End::OfLine });
        }
    }
}

/// The cells of one record by RFC 4180.
fn cells(record: &str, delimiter: char) -> Vec<String> {
    let (mut cells, mut cell, mut quoted) = (Vec::new(), String::new(), false);
    let mut rest = record.chars().peekable();
    while let Some(char) = rest.next() {
        match char {
            '"' if quoted && rest.peek() == Some(&'"') => {
                rest.next();
                cell.push('"');
            }
            '"' if quoted => quoted = false,
            '"' if cell.is_empty() => quoted = true,
            char if char == delimiter && !quoted => cells.push(std::mem::take(&mut cell)),
            char => cell.push(char),
        }
    }
    cells.push(cell);
    cells
}

/// Finds where objects begin and end in JSON text, at the top or in an array at the top.
#[derive(Default)]
struct Scan {
    depth: usize,
    text: bool,
    escaped: bool,
}

enum Step {
    Between,
    Begins,
    Inside,
    Ends,
}

impl Scan {
    /// `depth` counts from the object's own brace: the brackets around all objects are not counted.
    fn step(&mut self, byte: u8) -> Step {
        if self.depth == 0 {
            if byte == b'{' {
                self.depth = 1;
                return Step::Begins;
            }
            return Step::Between;
        }
        if self.text {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.text = false,
                _ => {}
            }
            return Step::Inside;
        }
        match byte {
            b'"' => self.text = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => {
                self.depth -= 1;
                if self.depth == 0 {
                    return Step::Ends;
                }
            }
            _ => {}
        }
        Step::Inside
    }
}
