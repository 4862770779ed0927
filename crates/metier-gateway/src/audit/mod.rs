//! The record: who asked what, which model answered, what left the boundary; in a form that an outsider can verify.
//!
//! Which question: *can we show, to someone who does not trust us, what happened?* In go entries; out come a Merkle log
//! (RFC 6962) in SQLite, heads signed with Ed25519, receipts that verify offline against the public key alone, and an export.
//! Deliberately absent: bodies of requests and answers (only salted commitments to them), and any decision.
//!
//! Files in the state directory:
//!
//! | File | Holds |
//! |---|---|
//! | `audit.db`, `-wal`, `-shm` | entries, nodes of the tree, salts, the latest head: all of a group in one transaction |
//! | `audit.head` | the latest signed head once more, so that a database that lost its tail is noticed |
//! | `audit.key` | the private key, readable by its owner only |
//! | `audit.pub` | the public key, for whoever verifies |
//! | `audit.lock` | held by the one server that writes |
//!
//! A request is two leaves:
//!
//! ```text
//! inside    opened ──enqueued──▶ model runs ──▶ opened durable? ──▶ closed durable ──▶ answer
//! outside   opened ──durable──▶ first byte leaves ──▶ answer comes ──▶ closed durable ──▶ answer
//! crash     opened ──durable──▶ ✗ ─── next start ───▶ interrupted
//! ```
//!
//! What this cannot show: whoever holds `audit.key` *and* every copy of earlier heads can write another history. Keep heads
//! elsewhere (`metier audit head`); a witness that cosigns them comes with a later issue.

pub mod entry;
mod log;
pub mod note;
mod reader;
mod receipt;
pub mod tree;

use std::{io, path::PathBuf};

pub use entry::{Entry, Kind, ReceiptId, commitment};
pub use log::{AuditLog, Clock, MAX_GROUP, MAX_QUEUE, Pending, Recorded};
pub use note::{LogKey, NoteError, SignedHead, VerifierKey};
pub use reader::{Verified, commits_to, export, head, open_head_file, prove, read_key, show, verify};
pub use receipt::{MAX_RECEIPT_BYTES, Receipt, VerifiedReceipt};

pub use crate::store::StoreError;

/// The database in a state directory.
pub const DATABASE_FILE: &str = "audit.db";
/// The latest signed head beside it.
pub const HEAD_FILE: &str = "audit.head";
/// The private key.
pub const KEY_FILE: &str = "audit.key";
/// The public key.
pub const PUBLIC_KEY_FILE: &str = "audit.pub";
/// Held by the one server that writes.
pub const LOCK_FILE: &str = "audit.lock";

/// Why something cannot be recorded, or does not verify.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// A file of the state directory is in the way.
    #[error("cannot {attempt} `{path}`")]
    File {
        /// What was attempted.
        attempt: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Another process writes this log.
    #[error("another server is using the state directory `{0}`: stop it, or give this one a directory of its own")]
    InUse(PathBuf),
    /// The database fails.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A key or head is malformed.
    #[error("cannot accept `{path}`")]
    Note {
        /// The file, or what else the note is.
        path: PathBuf,
        /// The cause.
        #[source]
        source: NoteError,
    },
    /// The log is not what its heads say.
    #[error("the audit log does not verify: {0}")]
    Broken(String),
    /// No entry has this id.
    #[error("the audit log has no entry `{0}`")]
    Unknown(String),
    /// A receipt does not verify.
    #[error("the receipt does not verify: {0}")]
    Receipt(String),
    /// The writer's queue is full.
    #[error("the audit log's queue of {0} entries is full")]
    QueueFull(usize),
    /// The writer has ended, or could not write this entry.
    #[error("the entry could not be recorded: {0}")]
    Unrecorded(String),
    /// The export cannot be written.
    #[error("cannot write the export")]
    Export(#[source] io::Error),
    /// The operating system has no random bytes.
    #[error("cannot get random bytes: {0}")]
    Random(String),
}
