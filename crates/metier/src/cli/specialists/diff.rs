//! What differs between two bundles: what they were made from, what they are, how well they did.

use std::{collections::BTreeMap, path::Path};

use metier_model::{
    Digest, Specialist, SpecialistStore,
    specialist::{Manifest, Registry},
};
use metier_train::{build::Evidence, eval::EvalReport};
use serde::Serialize;

use super::{
    super::{Failure, Outcome, line},
    Wanted, find, open,
};

/// Labels whose F1 moved most that are printed.
const LISTED: usize = 5;

/// One property that differs.
#[derive(Serialize)]
struct Change {
    what: String,
    before: String,
    after: String,
}

#[derive(Serialize)]
struct Diff {
    name: String,
    before: Digest,
    after: Digest,
    /// Were both measured on the same rows?
    same_test_rows: bool,
    changes: Vec<Change>,
}

pub(super) fn run(root: &Path, specialist: &str, other: Option<&str>, as_json: bool) -> Outcome {
    let (before, _) = open(root, specialist)?;
    let (after, _) = match other {
        Some(other) => open(root, other)?,
        None => {
            let registry = Registry::new(SpecialistStore::open(root).map_err(Failure::environment)?);
            let (name, id) = find(&registry, &before.manifest().name, Wanted::Candidate)?;
            open(root, &format!("{name}@{id}"))?
        }
    };
    let diff = diff(&before, &after);
    if as_json {
        line(&diff);
        return Ok(());
    }
    println!("{}: {} → {}", diff.name, before.id().short(), after.id().short());
    if diff.changes.is_empty() {
        println!("  the same in everything that is compared");
    }
    for Change { what, before, after } in &diff.changes {
        println!("  {what:20} {before} → {after}");
    }
    if !diff.same_test_rows {
        println!("  the figures are of different rows: their difference says little");
    }
    Ok(())
}

fn diff(before: &Specialist, after: &Specialist) -> Diff {
    let (a, b) = (before.manifest(), after.manifest());
    let mut changes = Vec::new();
    let mut compare = |what: &str, before: String, after: String| {
        if before != after {
            changes.push(Change { what: what.to_owned(), before, after });
        }
    };
    compare("name", a.name.clone(), b.name.clone());
    compare("instruction", a.instruction.clone(), b.instruction.clone());
    compare("inputs", a.inputs.join(", "), b.inputs.join(", "));
    compare("labels lost", lost(&a.labels, &b.labels), String::new());
    compare("labels gained", String::new(), lost(&b.labels, &a.labels));
    compare("may leave", a.may_leave.to_string(), b.may_leave.to_string());
    compare("rung", a.stage.name().to_owned(), b.stage.name().to_owned());
    let base =
        |m: &Manifest| m.base.as_ref().map_or("none".to_owned(), |b| format!("{} ({})", b.name, b.digest.short()));
    compare("base", base(a), base(b));
    compare("seed", a.recipe.seed.to_string(), b.recipe.seed.to_string());
    for part in ["train", "validation", "calibration", "test"] {
        let rows = |m: &Manifest| m.recipe.rows.get(part).copied().unwrap_or_default().to_string();
        compare(&format!("{part} rows"), rows(a), rows(b));
        compare(&format!("{part} files"), files(a, part), files(b, part));
    }
    let promise = |m: &Manifest| match &m.certificate {
        Some(c) => format!(
            "ε = {}, δ = {}, score ≥ {:.3}, coverage {:.1} % of {}",
            c.epsilon,
            c.delta,
            c.threshold,
            100.0 * c.coverage,
            c.n
        ),
        None => "none".to_owned(),
    };
    compare("certificate", promise(a), promise(b));
    if let (Some(x), Some(y)) = (evidence(before), evidence(after)) {
        let (x, y) = (x.evaluation, y.evaluation);
        compare(&x.metric.clone(), figure(x.value, x.interval, x.n), figure(y.value, y.interval, y.n));
        for (what, p, q) in [
            ("answered alone", x.coverage, y.coverage),
            ("right if alone", x.accepted_accuracy, y.accepted_accuracy),
            ("calibration error", x.ece, y.ece),
        ] {
            compare(what, figure(p.value, p.interval, x.n), figure(q.value, q.interval, y.n));
        }
        for (label, p, q) in moved(&x, &y) {
            compare(&format!("F1 of `{label}`"), format!("{p:.3}"), format!("{q:.3}"));
        }
    }
    let same_test_rows = files(a, "test") == files(b, "test") && a.recipe.rows.get("test") == b.recipe.rows.get("test");
    Diff { name: b.name.clone(), before: before.id(), after: after.id(), same_test_rows, changes }
}

/// Labels of the first that the second does not have.
fn lost(first: &[String], second: &[String]) -> String {
    first.iter().filter(|label| !second.contains(label)).cloned().collect::<Vec<_>>().join(", ")
}

fn files(manifest: &Manifest, role: &str) -> String {
    let of_role = manifest.recipe.data.iter().filter(|file| file.role == role);
    of_role.map(|file| file.sha256.short()).collect::<Vec<_>>().join(", ")
}

fn evidence(specialist: &Specialist) -> Option<Evidence> {
    serde_json::from_str(&specialist.contents().evidence).ok()
}

fn figure(value: f64, [low, high]: [f64; 2], n: u64) -> String {
    format!("{value:.4} [{low:.4}, {high:.4}] (n = {n})")
}

/// The labels of both whose F1 moved most.
fn moved(before: &EvalReport, after: &EvalReport) -> Vec<(String, f64, f64)> {
    let known: BTreeMap<&str, f64> = before.per_class.iter().map(|class| (class.label.as_str(), class.f1)).collect();
    let both = after
        .per_class
        .iter()
        .filter_map(|class| Some((class.label.clone(), *known.get(class.label.as_str())?, class.f1)));
    let mut moved: Vec<_> = both.filter(|(_, before, after)| before != after).collect();
    moved.sort_by(|x, y| (y.2 - y.1).abs().total_cmp(&(x.2 - x.1).abs()).then_with(|| x.0.cmp(&y.0)));
    moved.truncate(LISTED);
    moved
}
