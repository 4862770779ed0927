//! What patterns find on public data with marked spans, and how often they are wrong on texts without any.
//!
//! `METIER_DATA=… cargo nextest run -p metier-traffic --test privacy --no-capture` prints the table of docs/log.md.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a test that finds its data by a variable"
)]

use std::{collections::BTreeMap, path::PathBuf};

use metier_traffic::privacy::{PersonalKind, detect};
use serde_json::Value;

/// Rows of the set, or `None` where it is not at hand.
fn rows() -> Option<Vec<Value>> {
    let root = std::env::var_os("METIER_DATA").map_or_else(|| PathBuf::from("../../../shared/data"), PathBuf::from);
    let file = std::fs::File::open(root.join("pii_presidio/synth_dataset_v2.jsonl.zst")).ok()?;
    let text = std::io::read_to_string(zstd::stream::read::Decoder::new(file).unwrap()).unwrap();
    Some(text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

#[test]
fn most_of_what_has_a_form_is_found() {
    let Some(rows) = rows() else {
        eprintln!("skipped: the set pii_presidio is not under METIER_DATA");
        return;
    };
    let named = [
        ("EMAIL_ADDRESS", PersonalKind::Email),
        ("CREDIT_CARD", PersonalKind::CreditCard),
        ("IBAN_CODE", PersonalKind::Iban),
        ("US_SSN", PersonalKind::UsSsn),
        ("IP_ADDRESS", PersonalKind::IpAddress),
        ("PHONE_NUMBER", PersonalKind::Phone),
    ];
    // kind → (marked, of them found, found, of them marked as anything)
    let mut counts: BTreeMap<PersonalKind, [usize; 4]> = BTreeMap::new();
    for row in &rows {
        let text = row["text"].as_str().unwrap();
        let bytes: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
        let spans = row["spans"].as_array().unwrap();
        let at = |span: &Value, key: &str| bytes[usize::try_from(span[key].as_u64().unwrap()).unwrap()];
        let found = detect(text);
        for (label, kind) in named {
            let marked: Vec<_> = spans.iter().filter(|span| span["label"] == label).collect();
            let ours: Vec<_> = found.iter().filter(|one| one.kind == kind).collect();
            let touches = |span: &Value, range: &std::ops::Range<usize>| {
                at(span, "start") < range.end && range.start < at(span, "end")
            };
            let counted = counts.entry(kind).or_default();
            counted[0] += marked.len();
            counted[1] += marked.iter().filter(|span| ours.iter().any(|one| touches(span, &one.range))).count();
            counted[2] += ours.len();
            counted[3] += ours.iter().filter(|one| spans.iter().any(|span| touches(span, &one.range))).count();
        }
    }
    for (kind, [marked, hit, found, right]) in &counts {
        eprintln!("{kind:?}: {hit} of {marked} found; {right} of {found} that were found are personal");
        // Half, so that the test is none of the figure; what is printed is.
        assert!(2 * hit >= *marked && 2 * right >= *found, "{kind:?}");
    }
}
