//! Which bundle answers under a name, who made it, and who said that it may?
//!
//! ```text
//! <root>/<name>/<id>/…            bundles, as the store keeps them
//! <root>/<name>/records.jsonl     what happened to them, one signed line an event; replaced by rename
//! <root>/.records.lock            held by the one process that writes
//!
//!   built, imported ─► draft ─► shadow ─► live ─► retired          state = a fold over the records
//!                        └────────────────▲  └──── rolled back ◄────┘
//! ```
//!
//! A line is JSON that its writer signed (`record`). Each line holds the SHA-256 of the line before it, so that none can be taken out of
//! the middle. A change of state is one rename: a process killed at any moment leaves the state before or the state after.
//!
//! What signatures show: that somebody who holds the key wrote these lines about this bundle id, which is the hash of
//! everything that answers. They do not show that the approver whom a line names typed it. Deliberately absent: clocks, user names and
//! key files (arguments), and any judgement whether a certificate is good enough (the roof's gate).

mod record;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use serde::Serialize;

use record::PUBLIC_PREFIX;
pub use record::{Event, PublicKey, Record, RegistryKey, State};

use super::{
    bundle::{self, BundleError},
    store::{SpecialistStore, StoreError, is_name},
};
use crate::Digest;

const RECORDS: &str = "records.jsonl";
const LOCK: &str = ".records.lock";
/// Most bytes of one file of records: about ten thousand events of one specialist.
const MAX_RECORDS_BYTES: u64 = 4 << 20;
/// Who is written down where nobody said who it was: nobody can be told apart from them.
pub const UNKNOWN: &str = "unknown";
/// Longest name of a person and longest remark, in bytes.
pub const MAX_WORDS_BYTES: usize = 512;

/// The registry cannot say or do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The store below.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A bundle is not what it says.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The records cannot be read or written.
    #[error("cannot access `{path}` of the registry")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A line is not what its signer wrote.
    #[error("`{path}`, line {line}: {reason}")]
    Record {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// The text is no key.
    #[error("`{0}` is no key of a registry: it begins with `{PUBLIC_PREFIX}` and goes on with 64 hexadecimal digits")]
    Key(String),
    /// There is no such bundle.
    #[error("there is no bundle {id} of `{name}` in the registry")]
    NoBundle {
        /// The specialist.
        name: String,
        /// What was asked for.
        id: Digest,
    },
    /// What was asked is not allowed, with the reason.
    #[error("`{name}` {}: {reason}", id.short())]
    Refused {
        /// The specialist.
        name: String,
        /// The bundle.
        id: Digest,
        /// Why.
        reason: String,
    },
    /// Nothing was live before.
    #[error("`{0}` has no bundle that was live before: there is nothing to roll back to")]
    NothingBefore(String),
    /// A name or a remark is too long or holds a line break.
    #[error("`{0}` cannot go on record: at most {MAX_WORDS_BYTES} bytes, no control characters, not empty")]
    Words(String),
}

/// All records of one name, each verified against the key that it names.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    records: Vec<Record>,
    lines: Vec<String>,
}

/// Where one bundle stands, with the people who brought it there.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Standing {
    /// The bundle.
    pub bundle: Digest,
    /// Its state.
    pub state: State,
    /// Who built it; `None` where no record says.
    pub built_by: Option<String>,
    /// When it was built here, or came here.
    pub since_ms: u64,
    /// The registry that it came from.
    pub imported_from: Option<PublicKey>,
    /// Who approved its last promotion.
    pub approved_by: Option<String>,
    /// When it last went live.
    pub live_since_ms: Option<u64>,
}

impl History {
    /// The records, oldest first.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    fn parse(text: &str, path: &Path, name: &str) -> Result<Self, RegistryError> {
        let mut history = Self::default();
        for (at, line) in text.lines().enumerate() {
            let wrong = |reason: String| RegistryError::Record { path: path.to_owned(), line: at + 1, reason };
            let record = Record::open(line).map_err(wrong)?;
            if record.seq != at as u64 + 1 || record.previous != history.head() || record.name != name {
                return Err(wrong("it does not follow from the line before: a line was taken out or put in".into()));
            }
            history.records.push(record);
            history.lines.push(line.to_owned());
        }
        Ok(history)
    }

    fn head(&self) -> Option<Digest> {
        self.lines.last().map(|line| Digest::of(line.as_bytes()))
    }

    /// Every bundle that a record names, in order of first appearance.
    pub fn standings(&self) -> Vec<Standing> {
        let mut all: Vec<Standing> = Vec::new();
        for record in &self.records {
            let at = all.iter().position(|standing| standing.bundle == record.bundle).unwrap_or_else(|| {
                all.push(Standing {
                    bundle: record.bundle,
                    state: State::Draft,
                    built_by: None,
                    since_ms: record.at_ms,
                    imported_from: None,
                    approved_by: None,
                    live_since_ms: None,
                });
                all.len() - 1
            });
            let goes_live = matches!(record.event, Event::Adopted | Event::Promoted { .. } | Event::RolledBack);
            let leaves = if goes_live { State::Live } else { State::Shadow };
            let becomes = if goes_live { State::Retired } else { State::Draft };
            if goes_live || record.event == Event::Shadowed {
                let others =
                    all.iter_mut().enumerate().filter(|(other, standing)| *other != at && standing.state == leaves);
                others.for_each(|(_, standing)| standing.state = becomes);
            }
            let standing = &mut all[at];
            standing.state = match &record.event {
                Event::Adopted | Event::Promoted { .. } | Event::RolledBack => State::Live,
                // Built once more, it stays where it is.
                Event::Built | Event::Imported { .. } | Event::Exported { .. } => match standing.state {
                    State::Removed => State::Draft,
                    state => state,
                },
                Event::Shadowed => State::Shadow,
                Event::Removed => State::Removed,
            };
            if goes_live {
                standing.live_since_ms = Some(record.at_ms);
            }
            match &record.event {
                Event::Built => {
                    (standing.built_by, standing.since_ms) = (Some(record.by.clone()), record.at_ms);
                }
                Event::Imported { from, built_by } => {
                    (standing.built_by, standing.since_ms) = (built_by.clone(), record.at_ms);
                    (standing.imported_from, standing.approved_by) = (Some(*from), None);
                }
                Event::Promoted { approver } => standing.approved_by.clone_from(approver),
                _ => {}
            }
        }
        all
    }

    /// Where one bundle stands.
    pub fn standing(&self, id: Digest) -> Option<Standing> {
        self.standings().into_iter().find(|standing| standing.bundle == id)
    }

    /// The bundle that answers.
    pub fn live(&self) -> Option<Digest> {
        self.standings().into_iter().find(|standing| standing.state == State::Live).map(|standing| standing.bundle)
    }

    /// The bundles that were live before the present one and are still there, the latest last. Who was rolled back from is
    /// not among them.
    fn before(&self) -> Vec<Digest> {
        let mut stack: Vec<Digest> = Vec::new();
        for record in &self.records {
            match record.event {
                Event::Adopted | Event::Promoted { .. } => {
                    stack.retain(|id| *id != record.bundle);
                    stack.push(record.bundle);
                }
                Event::RolledBack => {
                    while stack.last().is_some_and(|id| *id != record.bundle) {
                        stack.pop();
                    }
                }
                Event::Removed => stack.retain(|id| *id != record.bundle),
                _ => {}
            }
        }
        let live = self.live();
        stack.retain(|id| Some(*id) != live);
        stack
    }
}

/// Whose signatures count, and how much has to be signed, before a bundle is served.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// Keys of this deployment and of those that it trusts.
    pub keys: Vec<PublicKey>,
    /// Serve only what these keys have signed and what was approved by somebody who did not build it.
    pub require_approval: bool,
}

/// A bundle that may answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Serving {
    /// Its id.
    pub id: Digest,
    /// Its folder.
    pub dir: PathBuf,
    /// What the operator should know: nobody signed it, or a stranger did.
    pub remark: Option<String>,
    /// Changes with every record of the name.
    pub version: Option<Digest>,
}

/// Who writes a record, when, with which key.
#[derive(Clone, Copy, Debug)]
pub struct Pen<'a> {
    /// The key that signs.
    pub key: &'a RegistryKey,
    /// The person or account on whose behalf.
    pub by: &'a str,
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// A remark.
    pub note: Option<&'a str>,
}

/// Held by whoever writes.
struct Lock {
    _file: File,
}

/// A store with its records.
#[derive(Clone, Debug)]
pub struct Registry {
    store: SpecialistStore,
}

impl Registry {
    /// The records of a store.
    pub fn new(store: SpecialistStore) -> Self {
        Self { store }
    }

    /// The bundles.
    pub fn store(&self) -> &SpecialistStore {
        &self.store
    }

    /// The verified records of a name; empty where there are none.
    pub fn history(&self, name: &str) -> Result<History, RegistryError> {
        if !is_name(name) {
            return Err(StoreError::Name(name.to_owned()).into());
        }
        let path = self.records(name);
        let at = |source| RegistryError::Io { path: path.clone(), source };
        let bytes = match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(History::default()),
            Err(error) => return Err(at(error)),
            Ok(metadata) => metadata.len(),
        };
        if bytes > MAX_RECORDS_BYTES {
            let reason = format!("the file has {bytes} bytes; at most {MAX_RECORDS_BYTES} are read");
            return Err(RegistryError::Record { path: path.clone(), line: 1, reason });
        }
        let text = fs::read_to_string(&path).map_err(at)?;
        History::parse(&text, &path, name)
    }

    /// SHA-256 of the records as they lie on disk: equal means that what was verified is verified still. `None` where there are none, or
    /// they cannot be read.
    pub fn fingerprint(&self, name: &str) -> Option<Digest> {
        let path = self.records(name);
        let is_bounded = fs::metadata(&path).is_ok_and(|metadata| metadata.len() <= MAX_RECORDS_BYTES);
        is_bounded.then(|| fs::read(&path).ok()).flatten().map(|bytes| Digest::of(&bytes))
    }

    /// Names under which something answers or could, sorted.
    pub fn names(&self) -> Result<Vec<String>, RegistryError> {
        let mut names = self.store.all_names()?;
        names.retain(|name| self.records(name).is_file() || self.store.current(name).is_some());
        Ok(names)
    }

    /// The bundle that answers under a name, without asking who signed it.
    pub fn live(&self, name: &str) -> Result<Option<PathBuf>, RegistryError> {
        let history = self.history(name)?;
        if history.records.is_empty() {
            return Ok(self.store.current(name));
        }
        Ok(history.live().map(|id| self.store.place(name, id)).filter(|dir| dir.is_dir()))
    }

    /// The bundle that answers under a name, if its records may be trusted. Verifies the records, not yet the bundle.
    pub fn serving(&self, name: &str, trust: &Trust) -> Result<Option<Serving>, RegistryError> {
        let history = self.history(name)?;
        let refused = |id, reason: String| RegistryError::Refused { name: name.to_owned(), id, reason };
        if history.records.is_empty() {
            let Some(dir) = self.store.current(name) else { return Ok(None) };
            let id = dir.file_name().and_then(|id| id.to_str()).and_then(|id| id.parse().ok());
            let Some(id) = id else { return Ok(None) };
            if trust.require_approval {
                return Err(refused(id, "nobody signed it, and `registry.require_approval` is set".into()));
            }
            return Ok(Some(Serving { id, dir, remark: Some("nobody signed it".into()), version: None }));
        }
        let Some(standing) = history.standings().into_iter().find(|standing| standing.state == State::Live) else {
            return Ok(None);
        };
        let id = standing.bundle;
        let stranger = history.records.iter().find(|record| !trust.keys.contains(&record.key));
        if trust.require_approval {
            if let Some(record) = stranger {
                let (path, line) = (self.records(name), usize::try_from(record.seq).unwrap_or(usize::MAX));
                let reason = format!(
                    "signed by a key that is neither this deployment's nor in `registry.trusted_keys`: {}",
                    record.key
                );
                return Err(RegistryError::Record { path, line, reason });
            }
            check_approval(&standing, standing.approved_by.as_deref()).map_err(|reason| refused(id, reason))?;
        }
        let remark = stranger.map(|record| format!("signed by a key that is not known here: {}", record.key.short()));
        let dir = self.store.place(name, id);
        let version = history.head();
        Ok(Some(Serving { id, dir, remark, version }))
    }

    /// Notes that a bundle which lies in the store was built by whoever holds the pen. One that is on record with its builder
    /// stays as it is.
    pub fn built(&self, name: &str, id: Digest, pen: &Pen<'_>) -> Result<(), RegistryError> {
        self.enter(name, id, Event::Built, pen)
    }

    /// Notes that a bundle which lies in the store came from another registry.
    pub fn imported(&self, name: &str, id: Digest, statement: &Record, pen: &Pen<'_>) -> Result<(), RegistryError> {
        let Event::Exported { built_by, .. } = &statement.event else {
            let reason = "what came with it is no statement of another registry".to_owned();
            return Err(RegistryError::Refused { name: name.to_owned(), id, reason });
        };
        self.enter(name, id, Event::Imported { from: statement.key, built_by: built_by.clone() }, pen)
    }

    fn enter(&self, name: &str, id: Digest, event: Event, pen: &Pen<'_>) -> Result<(), RegistryError> {
        self.write(name, id, pen, |history| {
            let known = history.standing(id).is_some_and(|standing| {
                let nobody = standing.built_by.as_deref().is_none_or(|builder| builder == UNKNOWN);
                standing.state != State::Removed && (!nobody || pen.by == UNKNOWN)
            });
            Ok((!known).then_some(event))
        })
    }

    /// Makes a bundle answer without anybody's approval: what a build does where none is required.
    pub fn publish(&self, name: &str, id: Digest, pen: &Pen<'_>) -> Result<(), RegistryError> {
        self.write(name, id, pen, |history| {
            let live = history.live() == Some(id);
            Ok((!live).then_some(Event::Promoted { approver: None }))
        })
    }

    /// Makes a bundle answer, on the word of somebody who did not build it.
    pub fn promote(&self, name: &str, id: Digest, approver: &str, pen: &Pen<'_>) -> Result<(), RegistryError> {
        check_words(approver)?;
        self.write(name, id, pen, |history| {
            let standing = history.standing(id);
            let standing = standing.ok_or_else(|| RegistryError::NoBundle { name: name.to_owned(), id })?;
            check_approval(&standing, Some(approver)).map_err(|reason| RegistryError::Refused {
                name: name.to_owned(),
                id,
                reason,
            })?;
            let again = standing.state == State::Live && standing.approved_by.as_deref() == Some(approver);
            Ok((!again).then(|| Event::Promoted { approver: Some(approver.to_owned()) }))
        })
    }

    /// Makes a bundle the one that is to be given a copy of the traffic.
    pub fn shadow(&self, name: &str, id: Digest, pen: &Pen<'_>) -> Result<(), RegistryError> {
        self.write(name, id, pen, |history| match history.standing(id).map(|standing| standing.state) {
            Some(State::Shadow) => Ok(None),
            Some(State::Live) => Err(RegistryError::Refused {
                name: name.to_owned(),
                id,
                reason: "it is live: promote another one first, or roll back".into(),
            }),
            _ => Ok(Some(Event::Shadowed)),
        })
    }

    /// Makes the bundle that was live before answer again, if it is still whole; says which.
    pub fn roll_back(&self, name: &str, trust: &Trust, pen: &Pen<'_>) -> Result<Digest, RegistryError> {
        let history = self.history(name)?;
        let id = history.before().last().copied().ok_or_else(|| RegistryError::NothingBefore(name.to_owned()))?;
        // What a server would refuse to serve is no way back.
        if let Some(standing) = history.standing(id).filter(|_| trust.require_approval) {
            check_approval(&standing, standing.approved_by.as_deref()).map_err(|reason| RegistryError::Refused {
                name: name.to_owned(),
                id,
                reason,
            })?;
        }
        self.write(name, id, pen, |history| {
            // Another process may have been faster.
            let same = history.before().last() == Some(&id);
            same.then_some(Some(Event::RolledBack)).ok_or_else(|| RegistryError::NothingBefore(name.to_owned()))
        })?;
        Ok(id)
    }

    /// Takes a bundle out of the store. The live one only with consent: then nothing answers under its name.
    pub fn remove(&self, name: &str, id: Digest, also_live: bool, pen: &Pen<'_>) -> Result<(), RegistryError> {
        let refused = || RegistryError::Refused {
            name: name.to_owned(),
            id,
            reason: "it is live: roll back or promote another one first, or say `--force`".into(),
        };
        let place = self.store.place(name, id);
        if !place.is_dir() {
            return Err(RegistryError::NoBundle { name: name.to_owned(), id });
        }
        // The lock is held until the bundle is gone, so that nobody promotes it in between.
        let lock = self.lock()?;
        self.write_locked(&lock, name, id, pen, |history| {
            if self.live(name)?.as_ref() == Some(&place) && !also_live {
                return Err(refused());
            }
            let gone = history.standing(id).is_some_and(|standing| standing.state == State::Removed);
            Ok((!gone).then_some(Event::Removed))
        })?;
        Ok(self.store.remove(name, id)?)
    }

    /// A signed statement about a bundle, for another registry.
    pub fn statement(&self, name: &str, id: Digest, pen: &Pen<'_>) -> Result<String, RegistryError> {
        check_words(pen.by)?;
        let standing = self.history(name)?.standing(id);
        let (built_by, approver) = standing.map_or((None, None), |s| (s.built_by, s.approved_by));
        let record = Record::of(Event::Exported { built_by, approver }, name, id, pen, 0, None);
        Ok(record.sign(pen.key))
    }

    /// Appends what `decide` makes of the history, after the bundle was read and verified.
    fn write(
        &self,
        name: &str,
        id: Digest,
        pen: &Pen<'_>,
        decide: impl FnOnce(&History) -> Result<Option<Event>, RegistryError>,
    ) -> Result<(), RegistryError> {
        if !is_name(name) {
            return Err(StoreError::Name(name.to_owned()).into());
        }
        let place = self.store.place(name, id);
        if !place.is_dir() {
            return Err(RegistryError::NoBundle { name: name.to_owned(), id });
        }
        bundle::read(&place)?;
        let lock = self.lock()?;
        // Somebody may have removed it while it was read.
        if !place.is_dir() {
            return Err(RegistryError::NoBundle { name: name.to_owned(), id });
        }
        self.write_locked(&lock, name, id, pen, decide)
    }

    /// Leave to write, given back when it is dropped, or by the system when the process dies.
    fn lock(&self) -> Result<Lock, RegistryError> {
        let path = self.store.root().join(LOCK);
        let at = |source| RegistryError::Io { path: path.clone(), source };
        let file = File::create(&path).map_err(at)?;
        file.lock().map_err(at)?;
        Ok(Lock { _file: file })
    }

    fn write_locked(
        &self,
        _lock: &Lock,
        name: &str,
        id: Digest,
        pen: &Pen<'_>,
        decide: impl FnOnce(&History) -> Result<Option<Event>, RegistryError>,
    ) -> Result<(), RegistryError> {
        [Some(pen.by), pen.note].into_iter().flatten().try_for_each(check_words)?;
        let at = |path: &Path| {
            let path = path.to_owned();
            |source| RegistryError::Io { path, source }
        };
        let mut history = self.history(name)?;
        let Some(event) = decide(&history)? else { return Ok(()) };
        let mut add = |bundle: Digest, event: Event| {
            let record = Record::of(event, name, bundle, pen, history.records.len() as u64 + 1, history.head());
            history.lines.push(record.sign(pen.key));
            history.records.push(record);
        };
        // What answered before there were records is on record from now on.
        let current = self.store.current(name).filter(|_| !self.records(name).exists());
        let adopted = current.and_then(|dir| dir.file_name()?.to_str()?.parse().ok());
        if let Some(adopted) = adopted {
            add(adopted, Event::Adopted);
        }
        add(id, event);
        let text = history.lines.join("\n") + "\n";
        if text.len() as u64 > MAX_RECORDS_BYTES {
            let reason = format!("the file would have more than the {MAX_RECORDS_BYTES} bytes that are read");
            return Err(RegistryError::Record { path: self.records(name), line: history.lines.len(), reason });
        }
        let (staged, path) = (self.store.root().join(name).join(".records.new"), self.records(name));
        bundle::write_durably(&staged, text.as_bytes())?;
        fs::rename(&staged, &path).map_err(at(&path))?;
        self.store.sync(name)?;
        Ok(())
    }

    fn records(&self, name: &str) -> PathBuf {
        self.store.root().join(name).join(RECORDS)
    }
}

/// May this bundle be live on the word of `approver`?
fn check_approval(standing: &Standing, approver: Option<&str>) -> Result<(), String> {
    let same = |a: &str, b: &str| a.trim().to_lowercase() == b.trim().to_lowercase();
    match (approver, standing.built_by.as_deref().filter(|builder| *builder != UNKNOWN)) {
        (None, _) => Err("it went live without approval: somebody who did not build it must promote it".to_owned()),
        (_, None) => {
            Err("no record says who built it, so nobody can be told apart from its builder: build it again".to_owned())
        }
        (Some(approver), Some(builder)) if same(approver, builder) => {
            Err(format!("`{builder}` built it: somebody else must approve it"))
        }
        (Some(UNKNOWN), _) => Err(format!("`{UNKNOWN}` is nobody: name a person")),
        _ => Ok(()),
    }
}

fn check_words(words: &str) -> Result<(), RegistryError> {
    let fits = !words.trim().is_empty() && words.len() <= MAX_WORDS_BYTES && !words.contains(char::is_control);
    fits.then_some(()).ok_or_else(|| RegistryError::Words(words.to_owned()))
}

/// Where the bundles of a name stand, by id.
pub fn by_id(standings: Vec<Standing>) -> BTreeMap<Digest, Standing> {
    standings.into_iter().map(|standing| (standing.bundle, standing)).collect()
}

/// `2026-11-26 08:24` in UTC.
pub fn utc(at_ms: u64) -> String {
    let (minutes, days) = (at_ms / 60_000, at_ms / 86_400_000);
    // Days since 0000-03-01, in eras of 400 years: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}", minutes / 60 % 24, minutes % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        for (at_ms, expected) in [
            (0, "1970-01-01 00:00"),
            (951_782_400_000, "2000-02-29 00:00"),
            (1_795_681_477_000, "2026-11-26 08:24"),
            (4_102_444_799_000, "2099-12-31 23:59"),
        ] {
            assert_eq!(utc(at_ms), expected);
        }
    }
}
