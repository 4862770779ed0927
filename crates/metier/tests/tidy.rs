//! Holds what the compiler does not: the arrows between the crates, where `unsafe` may stand, and that no file names a machine.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// The house: each crate with the crates of ours that it may use. `train` and `gateway` never see each other.
const ARROWS: [(&str, &[&str]); 6] = [
    ("metier-kernels", &[]),
    ("metier-model", &["metier-kernels"]),
    ("metier-traffic", &["metier-kernels", "metier-model"]),
    ("metier-train", &["metier-kernels", "metier-model", "metier-traffic"]),
    ("metier-gateway", &["metier-kernels", "metier-model", "metier-traffic"]),
    ("metier", &["metier-gateway", "metier-kernels", "metier-model", "metier-traffic", "metier-train"]),
];

/// Crates that only some rooms may use, with the rooms: what is absent elsewhere is an invariant of ARCHITECTURE.md.
const KEPT_TO: [(&str, &[&str]); 9] = [
    ("axum", &["metier"]),
    ("clap", &["metier"]),
    ("indicatif", &["metier"]),
    ("anyhow", &["metier"]),
    ("etcetera", &["metier"]),
    ("hf-hub", &["metier"]),
    ("reqwest", &["metier", "metier-gateway"]),
    ("rusqlite", &["metier-gateway"]),
    ("libc", &["metier", "metier-kernels"]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Normal dependencies that a crate's manifest names.
fn dependencies(krate: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(root().join("crates").join(krate).join("Cargo.toml")).unwrap();
    let manifest: toml::Table = text.parse().unwrap();
    manifest.get("dependencies").and_then(|d| d.as_table()).map(|d| d.keys().cloned().collect()).unwrap_or_default()
}

fn sources(under: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![under.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

#[test]
fn arrows_point_one_way() {
    let mut members: Vec<_> = fs::read_dir(root().join("crates"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    members.sort();
    let mut expected: Vec<_> = ARROWS.iter().map(|(krate, _)| (*krate).to_owned()).collect();
    expected.sort();
    assert_eq!(members, expected, "a crate was added or removed: say in ARCHITECTURE.md and here what it may use");

    for (krate, allowed) in ARROWS {
        let ours: Vec<_> = dependencies(krate).into_iter().filter(|d| d.starts_with("metier")).collect();
        for used in &ours {
            assert!(allowed.contains(&used.as_str()), "{krate} must not use {used}");
        }
    }
}

#[test]
fn kept_crates_stay_in_their_rooms() {
    for (krate, _) in ARROWS {
        for used in dependencies(krate) {
            if let Some((_, rooms)) = KEPT_TO.iter().find(|(kept, _)| *kept == used) {
                assert!(rooms.contains(&krate), "{used} is kept to {rooms:?}, but {krate} uses it");
            }
        }
    }
}

#[test]
fn unsafe_stands_in_kernels_alone() {
    for (krate, _) in ARROWS {
        let manifest = fs::read_to_string(root().join("crates").join(krate).join("Cargo.toml")).unwrap();
        let inherits = manifest.contains("[lints]\nworkspace = true");
        assert_eq!(inherits, krate != "metier-kernels", "{krate}: only metier-kernels has a lint table of its own");
    }
    let workspace = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    assert!(workspace.contains("unsafe_code = \"forbid\""), "the workspace forbids unsafe code");
    for file in sources(&root().join("crates/metier-kernels/src")) {
        let text = fs::read_to_string(&file).unwrap();
        let blocks = text.matches("unsafe {").count();
        let reasons = text.matches("SAFETY:").count();
        // A file of nothing but intrinsics states its one reason once.
        assert!(
            reasons >= blocks || text.contains("// SAFETY of every block below:"),
            "{}: {blocks} unsafe blocks, {reasons} reasons",
            file.display()
        );
    }
}

/// STYLE: a test that sleeps is a test that lies on a slow machine; clocks come in as arguments.
#[test]
fn tests_do_not_sleep() {
    for (krate, _) in ARROWS {
        let tests = root().join("crates").join(krate).join("tests");
        if !tests.is_dir() {
            continue;
        }
        for file in sources(&tests) {
            let text = fs::read_to_string(&file).unwrap();
            // This file names them.
            if file.ends_with("tidy.rs") {
                continue;
            }
            for banned in ["thread::sleep", "time::sleep"] {
                assert!(!text.contains(banned), "{} waits by the clock: wait for the event instead", file.display());
            }
        }
    }
}

/// Only `config.rs` reads the environment: the lint bans the functions, this holds that no other file lifts the ban.
#[test]
fn environment_is_read_in_one_file() {
    for (krate, _) in ARROWS {
        for file in sources(&root().join("crates").join(krate).join("src")) {
            let text = fs::read_to_string(&file).unwrap();
            let reads = ["env::var(", "env::var_os(", "env::vars("].iter().any(|call| text.contains(call));
            let allowed = krate == "metier" && file.ends_with("src/config.rs");
            assert!(!reads || allowed, "{} reads the environment; let `config.rs` do it", file.display());
        }
    }
}
