//! The only user of SQL: one SQLite database in WAL mode.
//!
//! Which question: *how does a group of entries become durable at once, and how is it read back without trusting it?* In go
//! encoded entries with the nodes they complete and the signed head over them; they are committed in one transaction with
//! `synchronous=FULL`, so one `fdatasync` of the WAL. Out come rows, read-only, to a reader that recomputes everything.
//! Deliberately absent: any meaning of an entry.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

use crate::audit::tree::{Hash, Node};

/// Marks the file as ours in its header: "mtr1".
const APPLICATION_ID: i32 = 0x6d74_7231;
const SCHEMA_VERSION: i32 = 1;
/// How long a reader or writer waits for SQLite's own short locks.
const BUSY_TIMEOUT_MS: u32 = 1_000;
/// Pages in the WAL after which SQLite moves them into the database: 16 MiB.
const AUTOCHECKPOINT_PAGES: u32 = 4_096;

const SCHEMA: [&str; 6] = [
    "CREATE TABLE entry (leaf INTEGER PRIMARY KEY, receipt BLOB, request TEXT, bytes BLOB NOT NULL) STRICT",
    "CREATE INDEX entry_by_receipt ON entry (receipt) WHERE receipt IS NOT NULL",
    "CREATE INDEX entry_by_request ON entry (request) WHERE request IS NOT NULL",
    "CREATE TABLE node (level INTEGER NOT NULL, idx INTEGER NOT NULL, hash BLOB NOT NULL, PRIMARY KEY (level, idx)) STRICT, WITHOUT ROWID",
    "CREATE TABLE salt (leaf INTEGER PRIMARY KEY, salt BLOB NOT NULL) STRICT",
    "CREATE TABLE head (only INTEGER PRIMARY KEY CHECK (only = 0), note TEXT NOT NULL) STRICT",
];

/// Why the database cannot be used: the operator's fault, or the disk's.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be opened.
    #[error("cannot open the database `{path}`")]
    Open {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: rusqlite::Error,
    },
    /// The file is no database of this version.
    #[error("`{path}` is not an audit database of this version: {reason}")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What differs.
        reason: String,
    },
    /// A statement failed: full disk, damaged page, read-only folder.
    #[error("cannot {attempt} the audit database")]
    Statement {
        /// What was attempted.
        attempt: &'static str,
        /// The cause.
        #[source]
        source: rusqlite::Error,
    },
    /// A row that must be there is not, or is of the wrong shape.
    #[error("the audit database is damaged: {0}")]
    Damaged(String),
}

fn failed(attempt: &'static str) -> impl FnOnce(rusqlite::Error) -> StoreError {
    move |source| StoreError::Statement { attempt, source }
}

/// One entry on its way into the log.
#[derive(Clone, Debug)]
pub(crate) struct NewRow {
    /// Its place.
    pub(crate) leaf: u64,
    /// Key for look-ups.
    pub(crate) receipt: Option<[u8; 16]>,
    /// Key for look-ups; empty means none.
    pub(crate) request: String,
    /// The entry.
    pub(crate) bytes: Vec<u8>,
    /// Salt of its commitment.
    pub(crate) salt: Option<[u8; 32]>,
}

/// The database.
#[derive(Debug)]
pub(crate) struct Store {
    connection: Connection,
}

impl Store {
    /// Opens the database for writing, creating it if it is not there.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let cannot_open = |source| StoreError::Open { path: path.to_owned(), source };
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(path, flags).map_err(cannot_open)?;
        connection
            .execute_batch(&format!(
                "PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}; PRAGMA trusted_schema = OFF; PRAGMA journal_mode = WAL;
                 PRAGMA synchronous = FULL; PRAGMA secure_delete = ON; PRAGMA wal_autocheckpoint = {AUTOCHECKPOINT_PAGES};"
            ))
            .map_err(cannot_open)?;
        // What was asked for may not be what is: WAL needs shared memory, and a build may lower `synchronous`.
        let journal: String =
            connection.pragma_query_value(None, "journal_mode", |row| row.get(0)).map_err(cannot_open)?;
        let synchronous: i64 =
            connection.pragma_query_value(None, "synchronous", |row| row.get(0)).map_err(cannot_open)?;
        if journal != "wal" || synchronous != 2 {
            let reason = format!("journal_mode is {journal} and synchronous is {synchronous}, not wal and 2");
            return Err(StoreError::Foreign { path: path.to_owned(), reason });
        }
        let is_new = connection
            .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0))
            .map_err(cannot_open)?
            == 0;
        if is_new {
            let transaction = connection.transaction().map_err(cannot_open)?;
            transaction
                .execute_batch(&format!(
                    "PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION}; {};",
                    SCHEMA.join(";")
                ))
                .map_err(cannot_open)?;
            transaction.commit().map_err(cannot_open)?;
        }
        let store = Self { connection };
        store.check_schema(path)?;
        Ok(store)
    }

    /// Opens the database for reading, as one snapshot: what is written meanwhile is not seen. Never writes to it.
    pub(crate) fn open_read_only(path: &Path) -> Result<Self, StoreError> {
        let cannot_open = |source| StoreError::Open { path: path.to_owned(), source };
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(cannot_open)?;
        connection
            .execute_batch(&format!(
                "PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}; PRAGMA trusted_schema = OFF; PRAGMA query_only = ON;
                 PRAGMA cell_size_check = ON; BEGIN"
            ))
            .map_err(cannot_open)?;
        let store = Self { connection };
        store.check_schema(path)?;
        Ok(store)
    }

    /// The schema must be ours to the letter: a changed one could answer our questions with other rows.
    fn check_schema(&self, path: &Path) -> Result<(), StoreError> {
        let foreign = |reason: String| StoreError::Foreign { path: path.to_owned(), reason };
        let pragma = |name: &str| self.connection.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
        let marks = (pragma("application_id"), pragma("user_version"));
        match marks {
            (Ok(APPLICATION_ID), Ok(SCHEMA_VERSION)) => {}
            (Ok(id), Ok(version)) => return Err(foreign(format!("its marks are {id:#x} and {version}"))),
            (Err(source), _) | (_, Err(source)) => return Err(StoreError::Open { path: path.to_owned(), source }),
        }
        let found = (|| {
            let mut statement =
                self.connection.prepare("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY rowid")?;
            statement.query_map([], |row| row.get::<_, String>(0))?.collect::<Result<Vec<_>, _>>()
        })()
        .map_err(failed("read the schema of"))?;
        if found == SCHEMA { Ok(()) } else { Err(foreign("its tables are not ours".into())) }
    }

    /// Commits a group of entries, the nodes they complete, and the head over them: all or nothing. Durable on return.
    pub(crate) fn append(&mut self, rows: &[NewRow], nodes: &[Node], head: &str) -> Result<(), StoreError> {
        let mut write = || -> Result<(), rusqlite::Error> {
            // An error drops the transaction, which rolls it back.
            let transaction = self.connection.transaction()?;
            {
                let mut entry = transaction.prepare("INSERT INTO entry VALUES (?1, ?2, ?3, ?4)")?;
                let mut salt = transaction.prepare("INSERT INTO salt VALUES (?1, ?2)")?;
                let mut node = transaction.prepare("INSERT INTO node VALUES (?1, ?2, ?3)")?;
                for row in rows {
                    let request = (!row.request.is_empty()).then_some(row.request.as_str());
                    entry.execute(params![row.leaf as i64, row.receipt, request, row.bytes])?;
                    if let Some(r) = row.salt {
                        salt.execute(params![row.leaf as i64, r])?;
                    }
                }
                for Node { level, idx, hash } in nodes {
                    node.execute(params![level, *idx as i64, hash])?;
                }
                transaction.execute("INSERT OR REPLACE INTO head VALUES (0, ?1)", [head])?;
            }
            transaction.commit()
        };
        write().map_err(failed("write to"))
    }

    /// The signed head, absent only in a new database.
    pub(crate) fn head(&self) -> Result<Option<String>, StoreError> {
        self.connection
            .query_row("SELECT note FROM head WHERE only = 0", [], |row| row.get(0))
            .optional()
            .map_err(failed("read the head of"))
    }

    /// Calls `visit` with every entry in order of leaves. A gap is an error.
    pub(crate) fn for_each_entry<E: From<StoreError>>(
        &self,
        mut visit: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let reading = || failed("read the entries of");
        let mut statement = self
            .connection
            .prepare("SELECT leaf, bytes FROM entry ORDER BY leaf")
            .map_err(|error| E::from(reading()(error)))?;
        let mut rows = statement.query([]).map_err(|error| E::from(reading()(error)))?;
        let mut expected = 0;
        while let Some(row) = rows.next().map_err(|error| E::from(reading()(error)))? {
            let leaf: i64 = row.get(0).map_err(|error| E::from(reading()(error)))?;
            if leaf != expected {
                return Err(StoreError::Damaged(format!("entry {expected} is missing")).into());
            }
            let bytes = row.get_ref(1).and_then(|value| value.as_blob().map_err(Into::into));
            visit(leaf as u64, bytes.map_err(|error| E::from(reading()(error)))?)?;
            expected += 1;
        }
        Ok(())
    }

    /// Leaves and bytes of the entries of one receipt, in order.
    pub(crate) fn entries_of_receipt(&self, receipt: &[u8; 16]) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        self.rows("SELECT leaf, bytes FROM entry WHERE receipt = ?1 ORDER BY leaf", receipt)
    }

    /// Leaves and bytes of the entries of one request id of the caller, in order.
    pub(crate) fn entries_of_request(&self, request: &str) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        self.rows("SELECT leaf, bytes FROM entry WHERE request = ?1 ORDER BY leaf", request)
    }

    fn rows(&self, sql: &str, key: impl rusqlite::ToSql) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        let read = || -> Result<Vec<_>, rusqlite::Error> {
            let mut statement = self.connection.prepare(sql)?;
            statement.query_map([key], |row| Ok((row.get::<_, i64>(0)? as u64, row.get(1)?)))?.collect()
        };
        read().map_err(failed("read the entries of"))
    }

    /// Hash of a complete subtree.
    pub(crate) fn node(&self, level: u8, idx: u64) -> Result<Hash, StoreError> {
        self.connection
            .query_row("SELECT hash FROM node WHERE level = ?1 AND idx = ?2", params![level, idx as i64], |row| {
                row.get(0)
            })
            .optional()
            .map_err(failed("read the tree of"))?
            .ok_or_else(|| StoreError::Damaged(format!("node {idx} of level {level} is missing")))
    }

    /// Salt of the commitment in one entry; `None` when there is none or it was erased.
    pub(crate) fn salt(&self, leaf: u64) -> Result<Option<[u8; 32]>, StoreError> {
        self.connection
            .query_row("SELECT salt FROM salt WHERE leaf = ?1", [leaf as i64], |row| row.get(0))
            .optional()
            .map_err(failed("read the salts of"))
    }
}
