//! The writer: one thread, one queue, one transaction a group.
//!
//! Group commit needs no timer: an entry that finds the writer idle is committed at once; those that arrive while a commit
//! runs (0.5 to 4 ms of `fdatasync`, by disk) form the next group, of at most [`MAX_GROUP`]. So a lone request waits for nothing, and
//! under load a commit is shared. An entry is acknowledged after COMMIT, never before.
//!
//! A group that cannot be written (full disk, read-only folder) is refused as a whole and leaves no trace; the next is tried
//! afresh, so that the log recovers with the disk.

use std::{
    collections::{BTreeSet, VecDeque},
    fmt,
    fs::{self, File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Condvar, Mutex, MutexGuard},
    task::{Context, Poll, ready},
    thread::JoinHandle,
};

use tokio::sync::oneshot;

use super::{
    AuditError, DATABASE_FILE, HEAD_FILE, KEY_FILE, LOCK_FILE, PUBLIC_KEY_FILE, Receipt,
    entry::{Entry, Kind, ReceiptId, commitment},
    note::{LogKey, SignedHead, VerifierKey},
    reader::{self, Replay},
    tree::{Node, leaf_hash},
};
use crate::store::{NewRow, Store};

/// Most entries that wait. Only `opened` is refused beyond it: whatever was opened may be closed.
pub const MAX_QUEUE: usize = 4_096;
/// Most entries in one transaction.
pub const MAX_GROUP: usize = 256;

/// Milliseconds since 1970: the writer stamps the entries, so that they are in order.
pub type Clock = Box<dyn Fn() -> u64 + Send + Sync>;

/// Where an entry was recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Its leaf.
    pub leaf: u64,
    /// Its time.
    pub time_ms: u64,
}

/// An entry on its way: resolves once it is durable, or cannot be.
#[derive(Debug)]
pub struct Pending(oneshot::Receiver<Result<Recorded, AuditError>>);

impl Future for Pending {
    type Output = Result<Recorded, AuditError>;
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = ready!(Pin::new(&mut self.0).poll(context));
        Poll::Ready(answer.unwrap_or_else(|_| Err(AuditError::Unrecorded("the writer has ended".into()))))
    }
}

impl Pending {
    /// Waits without a runtime.
    pub fn wait(self) -> Result<Recorded, AuditError> {
        self.0.blocking_recv().unwrap_or_else(|_| Err(AuditError::Unrecorded("the writer has ended".into())))
    }
}

struct Job {
    entry: Entry,
    /// Plaintext that the entry commits to.
    body: Option<Vec<u8>>,
    done: oneshot::Sender<Result<Recorded, AuditError>>,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    closing: bool,
    /// Set when the writer has ended: nothing more is taken.
    ended: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // The queue is plain data: a panic elsewhere leaves it whole.
        self.queue.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The audit log of one state directory, held by one process.
pub struct AuditLog {
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<()>>>,
    key: VerifierKey,
    database: PathBuf,
    /// Held as long as this value lives.
    _lock: File,
}

impl fmt::Debug for AuditLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AuditLog({})", self.database.display())
    }
}

impl AuditLog {
    /// Opens or creates the log in a directory, verifies it against its heads, and closes what a crash left open.
    ///
    /// Reads every entry once: about 2 s for a million.
    pub fn open(dir: &Path, clock: Clock) -> Result<Self, AuditError> {
        let file = |attempt, path: &Path| {
            let path = path.to_owned();
            move |source| AuditError::File { attempt, path, source }
        };
        fs::create_dir_all(dir).map_err(file("create", dir))?;
        let lock = lock(dir)?;
        let database = dir.join(DATABASE_FILE);
        let key = open_key(dir, database.exists())?;
        let verifier = key.verifier().clone();
        let beside = dir.join(HEAD_FILE);
        if beside.exists() && !database.exists() {
            let lost = format!("`{}` is there, but the database is gone", beside.display());
            return Err(AuditError::Broken(lost));
        }
        let store = Store::open(&database)?;
        let replay = take_up(&store, &database, &verifier)?;
        let mut writer = Writer { store, key, replay, clock, head_path: beside, head: None };
        writer.start()?;

        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("audit".into())
            .spawn(move || {
                let guard = EndGuard(Arc::clone(&theirs));
                writer.run(&theirs);
                drop(guard);
            })
            .map_err(|error| AuditError::Unrecorded(format!("cannot start the writer: {error}")))?;
        Ok(Self { shared, writer: Mutex::new(Some(thread)), key: verifier, database, _lock: lock })
    }

    /// Enqueues an `opened` entry that commits to `body`. Refused when the queue is full.
    pub fn opened(&self, entry: Entry, body: Vec<u8>) -> Result<Pending, AuditError> {
        self.enqueue(Entry { kind: Kind::Opened, ..entry }, Some(body))
    }

    /// Enqueues the `closed` entry of a request that was opened before. Never refused for want of space.
    pub fn closed(&self, entry: Entry, body: Option<Vec<u8>>) -> Result<Pending, AuditError> {
        self.enqueue(Entry { kind: Kind::Closed, ..entry }, body)
    }

    fn enqueue(&self, entry: Entry, body: Option<Vec<u8>>) -> Result<Pending, AuditError> {
        let (done, pending) = oneshot::channel();
        let mut queue = self.shared.lock();
        if queue.closing || queue.ended {
            return Err(AuditError::Unrecorded("the log is closed".into()));
        }
        if entry.kind == Kind::Opened && queue.jobs.len() >= MAX_QUEUE {
            return Err(AuditError::QueueFull(MAX_QUEUE));
        }
        queue.jobs.push_back(Job { entry: entry.within_limits(), body, done });
        drop(queue);
        self.shared.wake.notify_one();
        Ok(Pending(pending))
    }

    /// The key that heads and receipts verify against.
    pub fn key(&self) -> &VerifierKey {
        &self.key
    }

    /// The database.
    pub fn database(&self) -> &Path {
        &self.database
    }

    /// A receipt for the last entry of a receipt id or request id.
    pub fn prove(&self, id: &str) -> Result<Receipt, AuditError> {
        reader::prove(&self.database, id, &self.key)
    }

    /// Whether entries are being taken.
    pub fn is_open(&self) -> bool {
        let queue = self.shared.lock();
        !queue.closing && !queue.ended
    }

    /// Writes what is queued, then ends the writer. Called by `drop` too.
    pub fn close(&self) {
        self.shared.lock().closing = true;
        self.shared.wake.notify_all();
        let thread = self.writer.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        if let Some(thread) = thread {
            // A panic of the writer was already told to everyone who waited.
            let _ = thread.join();
        }
    }
}

impl Drop for AuditLog {
    fn drop(&mut self) {
        self.close();
    }
}

/// Marks the queue as ended however the writer ends, and lets go of all who wait.
struct EndGuard(Arc<Shared>);

impl Drop for EndGuard {
    fn drop(&mut self) {
        let mut queue = self.0.lock();
        queue.ended = true;
        queue.jobs.clear();
    }
}

struct Writer {
    store: Store,
    key: LogKey,
    replay: Replay,
    clock: Clock,
    head_path: PathBuf,
    /// Over what is committed; `None` before the first commit of this process.
    head: Option<SignedHead>,
}

impl Writer {
    /// Closes orphans as `interrupted` and says that the log is taken up.
    fn start(&mut self) -> Result<(), AuditError> {
        let orphans = std::mem::take(&mut self.replay.open);
        let started = Entry { kind: Kind::LogStarted, ..Entry::default() };
        let mut entries = vec![started];
        for (receipt, (leaf, key, request)) in &orphans {
            entries.push(Entry {
                kind: Kind::Interrupted,
                key: key.clone(),
                receipt: Some(*receipt),
                request: request.clone(),
                opened_leaf: Some(*leaf),
                reason: "the server ended before the request was closed".into(),
                ..Entry::default()
            });
        }
        self.replay.open = orphans;
        // Bounded by the requests that one server had in flight.
        let mut rest = entries.into_iter().map(|entry| (entry, None)).peekable();
        while rest.peek().is_some() {
            let group: Vec<_> = rest.by_ref().take(MAX_GROUP).collect();
            for written in self.write(group)? {
                written?;
            }
        }
        self.write_head_beside();
        Ok(())
    }

    fn run(&mut self, shared: &Shared) {
        loop {
            let group: Vec<Job> = {
                let mut queue = shared.lock();
                while queue.jobs.is_empty() && !queue.closing {
                    queue = shared.wake.wait(queue).unwrap_or_else(|poisoned| poisoned.into_inner());
                }
                let n_jobs = queue.jobs.len().min(MAX_GROUP);
                queue.jobs.drain(..n_jobs).collect()
            };
            if group.is_empty() {
                return;
            }
            let (dones, entries): (Vec<_>, Vec<_>) =
                group.into_iter().map(|job| (job.done, (job.entry, job.body))).unzip();
            let written = self.write(entries);
            if written.is_ok() {
                // Before the acknowledgement, so that no acknowledged entry can be lost unnoticed: about 0.1 ms.
                self.write_head_beside();
            }
            // A caller that is gone needs no answer.
            match written {
                Ok(results) => dones.into_iter().zip(results).for_each(|(done, result)| drop(done.send(result))),
                Err(error) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "the audit log cannot be written");
                    let reason = chain(&error);
                    dones.into_iter().for_each(|done| drop(done.send(Err(AuditError::Unrecorded(reason.clone())))));
                }
            }
        }
    }

    /// Writes a group in one transaction. The outer error refuses the group; an inner one a single entry of it, which is then
    /// not part of the log.
    fn write(&mut self, group: Vec<(Entry, Option<Vec<u8>>)>) -> Result<Vec<Result<Recorded, AuditError>>, AuditError> {
        // Everything is prepared on a copy, which replaces the original once the disk agrees.
        let mut frontier = self.replay.frontier.clone();
        let mut undo = Vec::with_capacity(group.len());
        let last_time_ms = self.replay.last_time_ms;
        let (mut rows, mut nodes, mut results) = (Vec::with_capacity(group.len()), Vec::<Node>::new(), Vec::new());
        let written = (|| {
            for (mut entry, body) in group {
                let leaf = frontier.size();
                if entry.kind == Kind::Closed {
                    let Some(opened) = entry.receipt.and_then(|receipt| self.replay.open.get(&receipt)) else {
                        results.push(Err(AuditError::Unrecorded("its `opened` entry was not recorded".into())));
                        continue;
                    };
                    entry.opened_leaf = Some(opened.0);
                }
                entry.time_ms = (self.clock)().max(self.replay.last_time_ms);
                entry.sequence = self.replay.sequences.get(&entry.key).copied().unwrap_or(0) + 1;
                let salt = body.as_ref().map(|_| random()).transpose()?;
                entry.body = body.zip(salt).map(|(body, salt)| commitment(&salt, &body));
                let bytes = entry.encode();
                undo.push(Undo::of(&self.replay, &entry));
                self.replay.follow(leaf, &entry)?;
                frontier.push(leaf_hash(&bytes), |node| nodes.push(node));
                results.push(Ok(Recorded { leaf, time_ms: entry.time_ms }));
                rows.push(NewRow { leaf, receipt: entry.receipt.map(|id| id.0), request: entry.request, bytes, salt });
            }
            if rows.is_empty() {
                return Ok(());
            }
            let head = self.key.sign(frontier.size(), frontier.root());
            self.store.append(&rows, &nodes, head.text())?;
            self.head = Some(head);
            Ok(())
        })();
        match written {
            Ok(()) => {
                self.replay.frontier = frontier;
                Ok(results)
            }
            Err(error) => {
                undo.into_iter().rev().for_each(|undo| undo.apply(&mut self.replay));
                self.replay.last_time_ms = last_time_ms;
                Err(error)
            }
        }
    }

    /// The head once more in a file of its own, renamed into place. Not synced: after a power cut an older head is still a
    /// prefix, and syncing would double the cost of a commit.
    fn write_head_beside(&self) {
        let Some(head) = &self.head else { return };
        if let Err(error) = replace_file(&self.head_path, head.text()) {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot write the audit head");
        }
    }
}

/// What [`Replay::follow`] changed for one entry.
struct Undo {
    key: String,
    sequence: Option<u64>,
    receipt: Option<ReceiptId>,
    open: Option<(u64, String, String)>,
}

impl Undo {
    fn of(replay: &Replay, entry: &Entry) -> Self {
        Self {
            key: entry.key.clone(),
            sequence: replay.sequences.get(&entry.key).copied(),
            receipt: entry.receipt,
            open: entry.receipt.and_then(|receipt| replay.open.get(&receipt).cloned()),
        }
    }

    fn apply(self, replay: &mut Replay) {
        match self.sequence {
            Some(sequence) => replay.sequences.insert(self.key, sequence),
            None => replay.sequences.remove(&self.key),
        };
        if let Some(receipt) = self.receipt {
            match self.open {
                Some(open) => replay.open.insert(receipt, open),
                None => replay.open.remove(&receipt),
            };
        }
    }
}

/// Reads the whole log and compares it with its heads.
fn take_up(store: &Store, database: &Path, key: &VerifierKey) -> Result<Replay, AuditError> {
    let stored = match store.head()? {
        Some(_) => Some(reader::stored_head(store, key)?),
        None => None,
    };
    // A head file that a power cut left torn must not keep the server down; one that is signed must fit.
    let beside = match reader::read_head_beside(database, key) {
        Ok(beside) => beside,
        Err(error @ AuditError::Note { .. }) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "the audit head beside the database is replaced");
            None
        }
        Err(error) => return Err(error),
    };
    let sizes: BTreeSet<u64> = [&stored, &beside].into_iter().flatten().map(SignedHead::size).collect();
    let (replay, roots) = Replay::read(store, &sizes, |_, _, _| Ok(()))?;
    let entries = replay.frontier.size();
    let stored_size = stored.as_ref().map_or(0, SignedHead::size);
    if stored_size != entries {
        return Err(AuditError::Broken(format!("the stored head is over {stored_size} entries of {entries}")));
    }
    for head in [stored, beside].into_iter().flatten() {
        if roots.get(&head.size()) != Some(&head.root()) {
            return Err(AuditError::Broken(format!(
                "a head over {} entries is not of this log of {entries}",
                head.size()
            )));
        }
    }
    Ok(replay)
}

fn lock(dir: &Path) -> Result<File, AuditError> {
    let path = dir.join(LOCK_FILE);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|source| AuditError::File { attempt: "open", path: path.clone(), source })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(AuditError::InUse(dir.to_owned())),
        Err(fs::TryLockError::Error(source)) => Err(AuditError::File { attempt: "lock", path, source }),
    }
}

/// The log's key: read, or made for a new log. A log without its key is not continued under another.
fn open_key(dir: &Path, database_exists: bool) -> Result<LogKey, AuditError> {
    let path = dir.join(KEY_FILE);
    let key = match fs::read_to_string(&path) {
        Ok(text) => LogKey::parse_secret(&text).map_err(|source| AuditError::Note { path, source })?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !database_exists => {
            let key = LogKey::from_seed(&random()?);
            write_secret(&path, &key.to_secret_text())?;
            key
        }
        Err(source) => return Err(AuditError::File { attempt: "read the audit log's key", path, source }),
    };
    let public = dir.join(PUBLIC_KEY_FILE);
    let text = format!("{}\n", key.verifier());
    if fs::read_to_string(&public).ok().as_deref() != Some(&text) {
        replace_file(&public, &text)?;
    }
    Ok(key)
}

fn write_secret(path: &Path, text: &str) -> Result<(), AuditError> {
    let write = || {
        let staged = path.with_extension("key.new");
        // A leftover of a start that was cut short.
        if let Err(error) = fs::remove_file(&staged)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let mut options = OpenOptions::new();
        options.create_new(true).write(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&staged)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&staged, path)
    };
    write().map_err(|source| AuditError::File { attempt: "write", path: path.to_owned(), source })
}

fn replace_file(path: &Path, text: &str) -> Result<(), AuditError> {
    let mut staged = path.as_os_str().to_owned();
    staged.push(".new");
    fs::write(&staged, text).and_then(|()| fs::rename(&staged, path)).map_err(|source| AuditError::File {
        attempt: "write",
        path: path.to_owned(),
        source,
    })
}

fn random<const N: usize>() -> Result<[u8; N], AuditError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| AuditError::Random(error.to_string()))?;
    Ok(bytes)
}

/// An error with its causes on one line, for an entry or a reply that keeps no error value.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
