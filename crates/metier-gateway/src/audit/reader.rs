//! Reads a log without trusting it: opens the database read-only, recomputes every hash from the entries, and compares with
//! signed heads.
//!
//! A verification passes only if: every entry is canonical; leaves have no gaps; each key's sequence has no gaps; time never
//! goes back; every `closed` or `interrupted` names the leaf of its `opened`, once; the recomputed root is the stored head's;
//! the head is signed; and the heads given (the file beside the database, and any that was saved earlier) are prefixes of it.
//! The look-up columns are checked against the entries, and the stored nodes against the recomputed ones.
//!
//! Cost: one pass, 1.5 to 2.2 µs an entry (measured by `examples/latency.rs`); memory grows with keys and with requests still open.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::Serialize;

use super::{
    AuditError, DATABASE_FILE, HEAD_FILE, Receipt,
    entry::{Entry, Kind, ReceiptId, commitment},
    note::{SignedHead, VerifierKey},
    tree::{Frontier, Hash, Nodes, empty_root, inclusion_path, leaf_hash},
};
use crate::store::{Store, StoreError};

/// What a verification established.
#[derive(Clone, Debug, Serialize)]
pub struct Verified {
    /// Entries.
    pub entries: u64,
    /// Root over them, in hexadecimal digits.
    pub root: String,
    /// Requests that were opened and not closed: those in flight, or orphans of a crash.
    pub open: u64,
    /// Whether the head file beside the database was there to compare with. Without it and without a saved head, a log that
    /// lost its tail looks whole.
    pub head_beside: bool,
    /// Leaves of the saved head, if one was given: they are the first ones of this log.
    pub saved_head_entries: Option<u64>,
}

/// What one pass over all entries establishes; also how the writer takes up a log again.
#[derive(Debug, Default)]
pub(super) struct Replay {
    pub(super) frontier: Frontier,
    /// key → number of its entries
    pub(super) sequences: BTreeMap<String, u64>,
    /// Requests opened and not closed: receipt → (leaf, key, the caller's id).
    pub(super) open: BTreeMap<ReceiptId, (u64, String, String)>,
    pub(super) last_time_ms: u64,
}

impl Replay {
    /// Reads all entries; `sizes` are the tree sizes whose roots are wanted, `visit` sees each entry.
    pub(super) fn read(
        store: &Store,
        sizes: &BTreeSet<u64>,
        mut visit: impl FnMut(u64, &[u8], &Entry) -> Result<(), AuditError>,
    ) -> Result<(Self, BTreeMap<u64, Hash>), AuditError> {
        let mut replay = Self::default();
        let mut roots = BTreeMap::new();
        if sizes.contains(&0) {
            roots.insert(0, empty_root());
        }
        store.for_each_entry::<AuditError>(|leaf, bytes| {
            let entry = Entry::decode(bytes).map_err(|error| AuditError::Broken(format!("entry {leaf}: {error}")))?;
            replay.follow(leaf, &entry)?;
            replay.frontier.push(leaf_hash(bytes), |_| ());
            if sizes.contains(&(leaf + 1)) {
                roots.insert(leaf + 1, replay.frontier.root());
            }
            visit(leaf, bytes, &entry)
        })?;
        Ok((replay, roots))
    }

    /// Checks an entry against those before it, and takes note of it.
    pub(super) fn follow(&mut self, leaf: u64, entry: &Entry) -> Result<(), AuditError> {
        let broken = |what: String| Err(AuditError::Broken(format!("entry {leaf}: {what}")));
        let sequence = self.sequences.entry(entry.key.clone()).or_default();
        if entry.sequence != *sequence + 1 {
            return broken(format!("has sequence {} of `{}`, not {}", entry.sequence, entry.key, *sequence + 1));
        }
        *sequence += 1;
        if entry.time_ms < self.last_time_ms {
            return broken("is earlier than the one above".into());
        }
        self.last_time_ms = entry.time_ms;
        match (entry.kind, entry.receipt) {
            (Kind::LogStarted, None) => Ok(()),
            (Kind::Opened, Some(receipt)) => {
                let opened = (leaf, entry.key.clone(), entry.request.clone());
                match self.open.insert(receipt, opened) {
                    None => Ok(()),
                    Some(_) => broken(format!("`{receipt}` is open already")),
                }
            }
            (Kind::Closed | Kind::Interrupted, Some(receipt)) => match self.open.remove(&receipt) {
                Some((opened, ..)) if entry.opened_leaf == Some(opened) => Ok(()),
                Some(_) => broken(format!("names the wrong `opened` entry of `{receipt}`")),
                None => broken(format!("`{receipt}` is not open")),
            },
            _ => broken("has a receipt where none belongs, or none where one does".into()),
        }
    }
}

/// Verifies a log. `head` is a head that was saved earlier, elsewhere; the one beside the database is always compared too.
pub fn verify(database: &Path, head: Option<&SignedHead>, key: &VerifierKey) -> Result<Verified, AuditError> {
    // Before the snapshot: while a server writes, its database is never behind its head file.
    let beside = read_head_beside(database, key)?;
    let store = Store::open_read_only(database)?;
    check(&store, beside.as_ref(), head, key, |_, _, _| Ok(()))
}

fn check(
    store: &Store,
    beside: Option<&SignedHead>,
    saved: Option<&SignedHead>,
    key: &VerifierKey,
    visit: impl FnMut(u64, &[u8], &Entry) -> Result<(), AuditError>,
) -> Result<Verified, AuditError> {
    let stored = stored_head(store, key)?;
    let heads =
        [("the stored head", Some(&stored)), ("the head beside the database", beside), ("the saved head", saved)];
    let sizes = heads.iter().filter_map(|(_, head)| head.map(SignedHead::size)).collect();
    let (replay, roots) = Replay::read(store, &sizes, visit)?;
    let entries = replay.frontier.size();
    for (name, head) in heads.iter().filter_map(|(name, head)| Some((name, (*head)?))) {
        match roots.get(&head.size()) {
            Some(root) if *root == head.root() => {}
            Some(_) => {
                return Err(AuditError::Broken(format!("{name} over {} entries is over other entries", head.size())));
            }
            None => {
                let lost = format!("{name} is over {} entries, the log has {entries}", head.size());
                return Err(AuditError::Broken(lost));
            }
        }
    }
    if stored.size() != entries {
        return Err(AuditError::Broken(format!("the stored head is over {} entries of {entries}", stored.size())));
    }
    check_derived(store, &replay)?;
    Ok(Verified {
        entries,
        root: hex::encode(replay.frontier.root()),
        open: replay.open.len() as u64,
        head_beside: beside.is_some(),
        saved_head_entries: saved.map(SignedHead::size),
    })
}

/// The nodes along the right edge must be the recomputed ones: receipts are made from them.
fn check_derived(store: &Store, replay: &Replay) -> Result<(), AuditError> {
    let root = super::tree::root_of(&StoredNodes(store), replay.frontier.size())?;
    if root == replay.frontier.root() {
        Ok(())
    } else {
        Err(AuditError::Broken("the stored nodes are not those of the entries".into()))
    }
}

/// Writes the log as JSON lines (leaf, entry in base64, decoded view), verified in the same pass over the same snapshot: the
/// lines are good only if this returns `Ok`.
pub fn export(database: &Path, key: &VerifierKey, out: &mut dyn Write) -> Result<Verified, AuditError> {
    let beside = read_head_beside(database, key)?;
    let store = Store::open_read_only(database)?;
    check(&store, beside.as_ref(), None, key, |leaf, bytes, entry| {
        write_line(out, leaf, bytes, entry).map_err(AuditError::Export)
    })
}

#[derive(Serialize)]
struct Line<'a> {
    leaf: u64,
    entry: String,
    decoded: &'a Entry,
}

fn write_line(out: &mut dyn Write, leaf: u64, bytes: &[u8], entry: &Entry) -> io::Result<()> {
    serde_json::to_writer(&mut *out, &Line { leaf, entry: BASE64_STANDARD.encode(bytes), decoded: entry })?;
    out.write_all(b"\n")
}

/// The entries of a receipt id (32 hexadecimal digits) or of a caller's request id, in order.
pub fn show(database: &Path, id: &str) -> Result<Vec<(u64, Entry)>, AuditError> {
    entries_of(&Store::open_read_only(database)?, id)?
        .into_iter()
        .map(|(leaf, bytes)| {
            let entry = Entry::decode(&bytes).map_err(|error| AuditError::Broken(format!("entry {leaf}: {error}")))?;
            Ok((leaf, entry))
        })
        .collect()
}

/// A receipt for the last entry of an id: `closed` once the request is answered. It is verified before it is handed out.
pub fn prove(database: &Path, id: &str, key: &VerifierKey) -> Result<Receipt, AuditError> {
    let store = Store::open_read_only(database)?;
    let (leaf, entry) = entries_of(&store, id)?.pop().ok_or_else(|| AuditError::Unknown(id.to_owned()))?;
    let head = stored_head(&store, key)?;
    if leaf >= head.size() {
        return Err(AuditError::Broken(format!("entry {leaf} is beyond the head over {}", head.size())));
    }
    let path = inclusion_path(&StoredNodes(&store), leaf, head.size())?;
    let receipt = Receipt { leaf, entry, path, head: head.text().to_owned() };
    Receipt::verify(receipt.to_string().as_bytes(), key)?;
    Ok(receipt)
}

/// Whether the entry at a leaf commits to this body: a request's or an answer's, as the caller kept it. `None` when the entry
/// commits to none, or its salt was erased: then nobody can tell any more.
pub fn commits_to(database: &Path, id: &str, leaf: u64, body: &[u8]) -> Result<Option<bool>, AuditError> {
    let store = Store::open_read_only(database)?;
    let (_, bytes) = entries_of(&store, id)?
        .into_iter()
        .find(|(at, _)| *at == leaf)
        .ok_or_else(|| AuditError::Unknown(format!("{id} at leaf {leaf}")))?;
    let entry = Entry::decode(&bytes).map_err(|error| AuditError::Broken(format!("entry {leaf}: {error}")))?;
    Ok(entry.body.zip(store.salt(leaf)?).map(|(digest, salt)| commitment(&salt, body) == digest))
}

/// The latest signed head.
pub fn head(database: &Path, key: &VerifierKey) -> Result<SignedHead, AuditError> {
    stored_head(&Store::open_read_only(database)?, key)
}

/// Reads a head that was saved to a file.
pub fn open_head_file(path: &Path, key: &VerifierKey) -> Result<SignedHead, AuditError> {
    let text = fs::read_to_string(path).map_err(|source| AuditError::File {
        attempt: "read",
        path: path.to_owned(),
        source,
    })?;
    SignedHead::open(&text, key).map_err(|source| AuditError::Note { path: path.to_owned(), source })
}

/// Reads a public key from a file, as `audit.pub`.
pub fn read_key(path: &Path) -> Result<VerifierKey, AuditError> {
    let text = fs::read_to_string(path).map_err(|source| AuditError::File {
        attempt: "read",
        path: path.to_owned(),
        source,
    })?;
    VerifierKey::parse(&text).map_err(|source| AuditError::Note { path: path.to_owned(), source })
}

/// The head file beside a database, if it is there. One that is there must be good.
pub(super) fn read_head_beside(database: &Path, key: &VerifierKey) -> Result<Option<SignedHead>, AuditError> {
    let path = database.with_file_name(HEAD_FILE);
    if path.exists() { open_head_file(&path, key).map(Some) } else { Ok(None) }
}

pub(super) fn stored_head(store: &Store, key: &VerifierKey) -> Result<SignedHead, AuditError> {
    let text = store.head()?.ok_or_else(|| AuditError::Broken("it has no signed head".into()))?;
    SignedHead::open(&text, key).map_err(|source| AuditError::Note { path: PathBuf::from(DATABASE_FILE), source })
}

fn entries_of(store: &Store, id: &str) -> Result<Vec<(u64, Vec<u8>)>, AuditError> {
    let rows = match id.parse::<ReceiptId>() {
        Ok(receipt) => store.entries_of_receipt(&receipt.0)?,
        Err(_) => Vec::new(),
    };
    let rows = if rows.is_empty() { store.entries_of_request(id)? } else { rows };
    if rows.is_empty() { Err(AuditError::Unknown(id.to_owned())) } else { Ok(rows) }
}

struct StoredNodes<'a>(&'a Store);

impl Nodes for StoredNodes<'_> {
    type Error = StoreError;
    fn node(&self, level: u8, idx: u64) -> Result<Hash, StoreError> {
        self.0.node(level, idx)
    }
}
