//! The reference pages equal what the code prints. `METIER_BLESS=1` rewrites them.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests; METIER_BLESS is theirs")]

use std::{fs, path::Path};

fn check(page: &str, generated: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(page);
    if std::env::var_os("METIER_BLESS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, generated).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == generated,
        "docs/{page} is not what the code prints: run with METIER_BLESS=1 and look at the difference"
    );
}

#[test]
fn settings() {
    check("config.md", &metier::config::reference());
}

#[test]
fn command_line() {
    check("cli.md", &metier::cli::reference());
}
