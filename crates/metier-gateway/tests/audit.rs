//! What the audit log promises: what is acknowledged is there, what is there verifies, what was changed does not.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use metier_gateway::audit::{self, *};
use tempfile::TempDir;

/// A clock that tells a later millisecond each time.
fn clock() -> Box<dyn Fn() -> u64 + Send + Sync> {
    let now = Arc::new(AtomicU64::new(1_795_305_600_000));
    Box::new(move || now.fetch_add(1, Ordering::Relaxed))
}

fn open(dir: &Path) -> AuditLog {
    AuditLog::open(dir, clock()).unwrap()
}

fn id(n: u64) -> ReceiptId {
    ReceiptId::new(n, [n as u8; 10])
}

fn entry(n: u64) -> Entry {
    let key = if n.is_multiple_of(3) { "a" } else { "b" };
    Entry { key: key.into(), receipt: Some(id(n)), request: format!("req-{n}"), model: "m".into(), ..Entry::default() }
}

fn request(log: &AuditLog, n: u64) {
    log.opened(entry(n), b"question".to_vec()).unwrap().wait().unwrap();
    let closed = Entry { decision: "accepted".into(), ..entry(n) };
    log.closed(closed, Some(b"answer".to_vec())).unwrap().wait().unwrap();
}

fn exported(database: &Path, key: &VerifierKey) -> Result<Vec<u8>, AuditError> {
    let mut out = Vec::new();
    audit::export(database, key, &mut out)?;
    Ok(out)
}

/// Copies database and WAL, as a crash would leave them, and the head beside them.
fn copy_of(dir: &Path) -> (TempDir, PathBuf) {
    let copy = TempDir::new().unwrap();
    for name in ["audit.db", "audit.db-wal", "audit.head", "audit.key", "audit.pub"] {
        if dir.join(name).exists() {
            fs::copy(dir.join(name), copy.path().join(name)).unwrap();
        }
    }
    let database = copy.path().join("audit.db");
    (copy, database)
}

#[test]
fn a_request_is_two_leaves_and_each_is_provable_offline() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path());
    (1..=20).for_each(|n| request(&log, n));
    let verified = audit::verify(log.database(), None, log.key()).unwrap();
    assert_eq!((verified.entries, verified.open, verified.head_beside), (41, 0, true));

    let key = audit::read_key(&dir.path().join("audit.pub")).unwrap();
    for n in 1..=20 {
        let receipt = log.prove(&id(n).to_string()).unwrap().to_string();
        let proved = Receipt::verify(receipt.as_bytes(), &key).unwrap();
        assert_eq!(proved.entry.kind, Kind::Closed);
        assert_eq!(proved.entry.opened_leaf, Some(proved.leaf - 1));
        // The caller's own id finds the same entry.
        assert_eq!(log.prove(&format!("req-{n}")).unwrap().leaf(), proved.leaf);
    }
    let shown = audit::show(log.database(), &id(7).to_string()).unwrap();
    assert_eq!(shown.iter().map(|(_, entry)| entry.kind).collect::<Vec<_>>(), [Kind::Opened, Kind::Closed]);
    assert!(matches!(log.prove("nobody"), Err(AuditError::Unknown(_))));
    // Whoever kept a body can show that it is the one; the log holds none.
    let (opened, closed) = (shown[0].0, shown[1].0);
    let commits = |leaf, body: &[u8]| audit::commits_to(log.database(), "req-7", leaf, body).unwrap();
    assert_eq!((commits(opened, b"question"), commits(closed, b"answer")), (Some(true), Some(true)));
    assert_eq!(commits(opened, b"answer"), Some(false));
}

#[test]
fn no_changed_receipt_verifies() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path());
    (1..=5).for_each(|n| request(&log, n));
    let receipt = log.prove("req-2").unwrap().to_string();
    for at in 0..receipt.len() {
        let mut bytes = receipt.clone().into_bytes();
        bytes[at] ^= 1;
        assert!(Receipt::verify(&bytes, log.key()).is_err(), "byte {at}");
    }
    assert!(Receipt::verify(&receipt.as_bytes()[..receipt.len() - 1], log.key()).is_err());
    assert!(Receipt::verify(receipt.as_bytes(), LogKey::from_seed(&[1; 32]).verifier()).is_err());
}

#[test]
fn a_start_closes_what_a_crash_left_open() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path());
    request(&log, 1);
    log.opened(entry(2), Vec::new()).unwrap().wait().unwrap();
    let (copy, database) = copy_of(dir.path());

    let again = open(copy.path());
    let shown = audit::show(&database, "req-2").unwrap();
    assert_eq!(shown.len(), 2);
    assert_eq!((shown[1].1.kind, shown[1].1.opened_leaf), (Kind::Interrupted, Some(shown[0].0)));
    assert_eq!(audit::verify(&database, None, again.key()).unwrap().open, 0);
    // What is interrupted is not closed again.
    let late = again.closed(entry(2), None).unwrap().wait();
    assert!(matches!(late, Err(AuditError::Unrecorded(_))));
    request(&again, 3);
    assert_eq!(audit::verify(&database, None, again.key()).unwrap().entries, 8);
}

#[test]
fn many_at_once_share_commits_and_keep_their_order() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path());
    let pending: Vec<_> = (1..=600).map(|n| log.opened(entry(n), Vec::new()).unwrap()).collect();
    let leaves: Vec<u64> = pending.into_iter().map(|pending| pending.wait().unwrap().leaf).collect();
    assert!(leaves.is_sorted() && leaves.len() == 600);
    // Those not waited for are written before the log closes.
    (1..=600).for_each(|n| drop(log.closed(entry(n), None).unwrap()));
    log.close();
    assert!(matches!(log.opened(entry(9_999), Vec::new()), Err(AuditError::Unrecorded(_))));
    let verified = audit::verify(log.database(), None, log.key()).unwrap();
    assert_eq!((verified.entries, verified.open), (1_201, 0));
}

#[test]
fn one_server_a_directory() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path());
    let second = AuditLog::open(dir.path(), clock()).unwrap_err();
    assert!(matches!(second, AuditError::InUse(_)), "{second}");
    drop(log);
    open(dir.path());
}

#[test]
fn a_lost_tail_a_lost_key_and_a_lost_database_are_noticed() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path());
    request(&log, 1);
    let (old, old_database) = copy_of(dir.path());
    request(&log, 2);
    let saved = audit::head(log.database(), log.key()).unwrap();
    assert_eq!(audit::verify(log.database(), Some(&saved), log.key()).unwrap().saved_head_entries, Some(5));

    // The older database is whole by itself, but not under the newer head: neither the saved one nor the one beside it.
    assert!(audit::verify(&old_database, None, log.key()).is_ok());
    let error = audit::verify(&old_database, Some(&saved), log.key()).unwrap_err().to_string();
    assert!(error.contains("the saved head is over 5 entries, the log has 3"), "{error}");
    fs::copy(dir.path().join("audit.head"), old.path().join("audit.head")).unwrap();
    let error = audit::verify(&old_database, None, log.key()).unwrap_err().to_string();
    assert!(error.contains("the head beside the database"), "{error}");
    assert!(matches!(AuditLog::open(old.path(), clock()), Err(AuditError::Broken(_))));

    drop(log);
    let lost = |name: &str| {
        let (copy, _) = copy_of(dir.path());
        fs::remove_file(copy.path().join(name)).unwrap();
        AuditLog::open(copy.path(), clock()).unwrap_err().to_string()
    };
    assert!(lost("audit.key").contains("key"), "{}", lost("audit.key"));
    assert!(lost("audit.db").contains("the database is gone"));
}

#[test]
fn a_log_that_forked_from_a_saved_head_does_not_verify() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path());
    request(&log, 1);
    let (fork, fork_database) = copy_of(dir.path());
    request(&log, 2);
    let saved = audit::head(log.database(), log.key()).unwrap();
    let forked = open(fork.path());
    (3..=5).for_each(|n| request(&forked, n));
    assert!(audit::verify(&fork_database, None, log.key()).is_ok());
    let error = audit::verify(&fork_database, Some(&saved), log.key()).unwrap_err().to_string();
    assert!(error.contains("is over other entries"), "{error}");
}

/// A disk that takes no more: what cannot be recorded is refused, and the log goes on once there is room.
#[test]
fn what_cannot_be_written_is_refused_and_the_log_recovers() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path());
    request(&log, 1);
    // Another writer's lock stands in for the full disk: the commit fails after the busy time-out.
    let other = rusqlite::Connection::open(log.database()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let refused = log.opened(entry(2), Vec::new()).unwrap().wait();
    assert!(matches!(&refused, Err(AuditError::Unrecorded(why)) if why.contains("locked")), "{refused:?}");
    other.execute_batch("ROLLBACK").unwrap();
    request(&log, 3);
    let verified = audit::verify(log.database(), None, log.key()).unwrap();
    assert_eq!((verified.entries, verified.open), (5, 0));
}

#[cfg(unix)]
#[test]
fn the_private_key_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let dir = TempDir::new().unwrap();
    drop(open(dir.path()));
    assert_eq!(fs::metadata(dir.path().join("audit.key")).unwrap().permissions().mode() & 0o777, 0o600);
}

/// The promise: after any one byte of database or WAL is flipped, verification fails or the export is what it was.
/// Positions are drawn by a seeded generator; every file's first kilobyte, where the headers lie, is tried in full steps of 7.
#[test]
fn a_flipped_byte_fails_or_changes_nothing() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path());
    (1..=30).for_each(|n| request(&log, n));
    log.close();
    drop(log);
    // Taken up again, so that part of the log is in the database and part in the WAL.
    let log = open(dir.path());
    (31..=60).for_each(|n| request(&log, n));
    let key = log.key().clone();
    let saved = audit::head(log.database(), &key).unwrap();
    request(&log, 61);
    let (copy, database) = copy_of(dir.path());
    let before = exported(&database, &key).unwrap();
    let (mut n_failed, mut n_same) = (0, 0);
    for name in ["audit.db", "audit.db-wal"] {
        let path = copy.path().join(name);
        let whole = fs::read(&path).unwrap();
        assert!(whole.len() > 8_192, "{name} holds something");
        let mut seed = 0x5eed_u64;
        let drawn = std::iter::repeat_with(|| {
            // SplitMix64
            seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (mixed ^ (mixed >> 31)) as usize
        });
        let places = (0..1_024).step_by(7).chain(drawn.map(|place| place % whole.len()).take(250));
        for place in places {
            let mut flipped = whole.clone();
            flipped[place] ^= 1 << (place % 8);
            fs::write(&path, &flipped).unwrap();
            let _ = fs::remove_file(copy.path().join("audit.db-shm"));
            match audit::verify(&database, Some(&saved), &key).and_then(|_| exported(&database, &key)) {
                Err(_) => n_failed += 1,
                Ok(after) => {
                    assert!(after == before, "byte {place} of {name} changed the export and passed");
                    n_same += 1;
                }
            }
            assert!(fs::read(&path).unwrap() == flipped, "verification wrote to {name}");
        }
        fs::write(&path, &whole).unwrap();
    }
    assert!(n_failed > 100 && n_same > 10, "{n_failed} failed, {n_same} changed nothing: the test must see both");
}

#[test]
fn a_truncated_wal_fails() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path());
    (1..=10).for_each(|n| request(&log, n));
    let (copy, database) = copy_of(dir.path());
    let path = copy.path().join("audit.db-wal");
    let whole = fs::read(&path).unwrap();
    for keep in [0, 32, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..keep]).unwrap();
        let _ = fs::remove_file(copy.path().join("audit.db-shm"));
        assert!(audit::verify(&database, None, log.key()).is_err(), "{keep} of {} bytes", whole.len());
    }
}
