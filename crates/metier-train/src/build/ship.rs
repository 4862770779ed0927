//! The last step of every build, whatever its kind: a proven specialist and what was measured of it → bundle, report and card in the store,
//! and the [`BuildOutcome`] that says all of it.

use std::time::Duration;

use metier_model::{Specialist, specialist::bundle};

use super::{BuildError, BuildOutcome, Evidence, FailedRow, RungOutcome, Workbench, generate::TrainingLog};
use crate::{
    craft::canary::Memorisation,
    data::{Splits, TaskFile},
    eval::{LearningCurve, card, finding, html},
};

const BYTES_A_MIB: f64 = 1024.0 * 1024.0;

/// What a build made and measured.
pub(super) struct Product {
    /// Whole: probe rows and evidence stand in it.
    pub(super) specialist: Specialist,
    /// What stands in it as evidence.
    pub(super) evidence: Evidence,
    pub(super) rungs: Vec<RungOutcome>,
    pub(super) failures: Vec<FailedRow>,
    pub(super) learning_curve: Option<LearningCurve>,
    pub(super) training: Option<TrainingLog>,
    pub(super) memorisation: Option<Memorisation>,
    pub(super) notes: Vec<String>,
    pub(super) embed_seconds: f64,
}

/// Puts it into the store.
pub(super) fn ship(
    task: &TaskFile,
    splits: &Splits,
    bench: &Workbench<'_>,
    product: Product,
    elapsed: &dyn Fn() -> Duration,
) -> Result<BuildOutcome, BuildError> {
    let Product { specialist, evidence, rungs, failures, learning_curve, training, memorisation, notes, embed_seconds } =
        product;
    let bundle_error = |source| BuildError::Bundle { name: task.name.clone(), source: Box::new(source) };
    let store_error = |source| BuildError::Store { name: task.name.clone(), source: Box::new(source) };
    let staged = bench.store.stage().map_err(store_error)?;
    let id = bundle::write(specialist.contents(), staged.dir()).map_err(bundle_error)?;
    let manifest = specialist.manifest();
    let Evidence { rows: measured_on, evaluation, class_mix } = evidence;
    let loss = evaluation.test_loss;
    let mut outcome = BuildOutcome {
        name: task.name.clone(),
        rung: manifest.stage,
        metric: evaluation.metric.clone(),
        value: evaluation.value,
        interval: evaluation.interval,
        n: evaluation.n,
        measured_on,
        epsilon: task.target.epsilon,
        seconds: elapsed().as_secs_f64(),
        embed_seconds,
        peak_rss_mb: peak_rss_bytes().map(|bytes| bytes as f64 / BYTES_A_MIB),
        certificate: manifest.certificate,
        rows_needed: manifest.refusal.and_then(|refusal| refusal.rows_needed),
        test_loss: loss.map(|loss| loss.loss),
        test_loss_interval: loss.map(|loss| loss.interval),
        held: loss.map(|loss| loss.held),
        test_coverage: evaluation.coverage.value,
        rungs,
        bundle: id,
        path: bench.store.root().join(&task.name).join(id.to_string()),
        rows: splits.counts(),
        leak: splits.leak.clone(),
        evaluation,
        class_mix,
        learning_curve,
        training,
        memorisation,
        failures,
        findings: Vec::new(),
        notes,
    };
    outcome.notes.extend(finding::groups_note(&outcome));
    outcome.findings = finding::findings(&outcome);
    let run = serde_json::to_string_pretty(&outcome).expect("an outcome is JSON");
    let beside = [run, html::render(&specialist, &outcome), card::render(&specialist, &outcome, None)];
    for (file, text) in bundle::BESIDE.into_iter().zip(beside) {
        bundle::write_durably(&staged.dir().join(file), text.as_bytes()).map_err(bundle_error)?;
    }
    bench.store.add(staged, &task.name).map_err(store_error)?;
    Ok(outcome)
}

/// Peak resident memory of this process; Linux only.
pub fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1024)
}
