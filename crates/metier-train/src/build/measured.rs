//! What builds of labels have in common, one label a row or several: on which rows is measured, which of them went wrong, what ships beside
//! weights; and the vectors that rows are read by.

use std::collections::BTreeMap;

use metier_kernels::Pool;
use metier_model::{
    Digest, Encoder, Progress, Specialist,
    specialist::{
        Neighbours, ProbeRow, bundle,
        manifest::{Manifest, RungRecord},
    },
};

use super::{BuildError, FailedRow, RungOutcome};
use crate::{
    craft::ladder::{Depth, Embeddings},
    data::{Part, Splits, TaskFile, split::Example, task::Metric},
    embed::Embed,
    eval::{
        ScoredRow,
        cluster::Groups,
        evaluation::Yardstick,
        metrics::{self, Measured},
    },
};

/// Share of validation rows that lie below the match threshold of `auto`: so many of a task's own texts are missed.
pub(super) const MATCH_MISSES: f64 = 0.05;
/// Failures that a report lists.
const MAX_FAILURES: usize = 20;
/// Characters of a text that are shown.
const EXCERPT_CHARACTERS: usize = 240;

/// Test rows, or validation rows where there are none.
pub(super) fn measured_part(splits: &Splits) -> Part {
    if splits.part(Part::Test).is_empty() { Part::Validation } else { Part::Test }
}

/// The groups of some rows, where they come in groups.
pub(super) fn groups(examples: &[Example]) -> Option<Groups> {
    Groups::of(examples.iter().map(|example| example.row.group.as_deref()))
}

impl RungOutcome {
    /// A rung's record with what it reached on the rows that are reported.
    pub(super) fn of(record: &RungRecord, measured: Measured, seconds: f64, decoder: Option<Depth>) -> Self {
        Self {
            rung: record.rung,
            value: measured.value,
            interval: measured.interval,
            seconds,
            validation: record.validation,
            c: record.c,
            embedding_scale: record.embedding_scale,
            ngram_weight: record.ngram_weight,
            frozen_weight: record.frozen_weight,
            against_best: record.against_best,
            decoder,
        }
    }
}

/// How a row that is reported was answered.
#[derive(Clone, Copy)]
pub(super) struct Mark {
    pub(super) right: bool,
    pub(super) score: f32,
    pub(super) accepted: bool,
}

impl From<&ScoredRow> for Mark {
    fn from(row: &ScoredRow) -> Self {
        Self { right: row.right, score: row.score, accepted: row.accepted }
    }
}

/// The rows that were answered wrong, worst first; `said` gives what a row is and what it was called.
pub(super) fn failures<'a>(
    rows: impl Iterator<Item = (&'a Example, Mark)>,
    said: impl Fn(usize) -> (String, String),
) -> Vec<FailedRow> {
    let mut wrong: Vec<(usize, &Example, Mark)> = rows
        .enumerate()
        .filter(|(_, (_, mark))| !mark.right)
        .map(|(at, (example, mark))| (at, example, mark))
        .collect();
    wrong.sort_by(|(_, _, a), (_, _, b)| b.accepted.cmp(&a.accepted).then(b.score.total_cmp(&a.score)));
    let failed = wrong.into_iter().take(MAX_FAILURES).map(|(at, example, mark)| {
        let (gold, called) = said(at);
        let (place, text) = (example.row.place.to_string(), excerpt(&example.row.text));
        FailedRow { place, text, gold, called, score: mark.score, accepted: mark.accepted }
    });
    failed.collect()
}

/// The beginning of a text.
pub(super) fn excerpt(text: &str) -> String {
    let mut short: String = text.chars().take(EXCERPT_CHARACTERS).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

pub(super) fn yardstick<'a>(
    manifest: &'a Manifest,
    metric: Metric,
    has_reference: bool,
    slices: &'a [String],
    seed: u64,
) -> Yardstick<'a> {
    Yardstick {
        labels: &manifest.labels,
        metric,
        out_of_scope: manifest.out_of_scope.as_deref(),
        reject_below: None,
        certificate: manifest.certificate,
        has_reference,
        margin: manifest.recipe.margin,
        slices,
        seed,
    }
}

/// The first validation rows in an order that hangs on their text alone; `answer` gives what is answered to one, and its score.
pub(super) fn probe<'a>(
    validation: impl Iterator<Item = &'a Example>,
    answer: impl Fn(usize) -> (String, f32),
) -> Vec<ProbeRow> {
    let mut order: Vec<(Digest, usize, &Example)> =
        validation.enumerate().map(|(at, row)| (Digest::of(row.row.text.as_bytes()), at, row)).collect();
    order.sort_by_key(|(digest, at, _)| (*digest, *at));
    let rows = order.into_iter().take(bundle::MAX_PROBE_ROWS).map(|(_, at, example)| {
        let (label, score) = answer(at);
        ProbeRow { text: example.row.text.clone(), label, score }
    });
    rows.collect()
}

/// Unit centroids of the classes in scope, and the cosine that all but [`MATCH_MISSES`] of the validation rows reach.
pub(super) fn neighbours(splits: &Splits, embeddings: &Embeddings, out_of_scope: Option<&str>) -> Option<Neighbours> {
    let dim = embeddings[Part::Train as usize].first()?.len();
    let in_scope = |example: &Example| out_of_scope != Some(example.row.label.as_str());
    let mut sums: BTreeMap<usize, Vec<f32>> = BTreeMap::new();
    for (example, embedding) in splits.part(Part::Train).iter().zip(&embeddings[Part::Train as usize]) {
        if in_scope(example) {
            let sum = sums.entry(example.class).or_insert_with(|| vec![0.0; dim]);
            sum.iter_mut().zip(embedding).for_each(|(sum, value)| *sum += value);
        }
    }
    let mut centroids: Vec<Vec<f32>> = sums.into_values().collect();
    for centroid in &mut centroids {
        let norm = centroid.iter().map(|v| v * v).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
        centroid.iter_mut().for_each(|value| *value /= norm);
    }
    let cosine = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
    let rows = splits.part(Part::Validation).iter().zip(&embeddings[Part::Validation as usize]);
    let mut nearest: Vec<f64> = rows
        .filter(|(example, _)| in_scope(example))
        .map(|(_, e)| centroids.iter().map(|centroid| cosine(centroid, e)).fold(-1.0, f32::max).into())
        .collect();
    nearest.sort_by(f64::total_cmp);
    let match_threshold = if nearest.is_empty() { 1.0 } else { metrics::quantile(&nearest, MATCH_MISSES) as f32 };
    Some(Neighbours { centroids, match_threshold })
}

/// The vectors that a specialist reads of these rows, where it reads some.
pub(super) fn embedded(
    specialist: &Specialist,
    encoder: Option<&dyn Embed>,
    pool: &Pool,
    examples: &[Example],
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Option<Vec<Vec<f32>>>, BuildError> {
    let manifest = specialist.manifest();
    let texts: Vec<_> = examples.iter().map(|example| specialist.encoder_text(&example.row.text)).collect();
    let texts: Vec<&str> = texts.iter().map(AsRef::as_ref).collect();
    if !specialist.needs_embedding() {
        return Ok(None);
    }
    let server = made_with(manifest, encoder)?;
    let error = |source| BuildError::Embed { name: manifest.name.clone(), source };
    let own = match specialist.encoder_file() {
        None => None,
        Some(file) => Some(own_encoder(&manifest.name, server, &file.0)?),
    };
    let mut vectors =
        own.as_ref().map_or(server, |own| own as &dyn Embed).embed_all(pool, &texts, progress).map_err(error)?;
    followed_by_base(specialist, encoder, pool, examples, &mut vectors, progress)?;
    Ok(Some(vectors))
}

/// Puts the frozen encoder's vectors behind those of a specialist's own network, where its head reads them.
pub(super) fn followed_by_base(
    specialist: &Specialist,
    encoder: Option<&dyn Embed>,
    pool: &Pool,
    examples: &[Example],
    vectors: &mut [Vec<f32>],
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(), BuildError> {
    if !specialist.reads_base() {
        return Ok(());
    }
    let manifest = specialist.manifest();
    let texts: Vec<&str> = examples.iter().map(|example| example.row.text.as_str()).collect();
    let error = |source| BuildError::Embed { name: manifest.name.clone(), source };
    let frozen = made_with(manifest, encoder)?.embed_all(pool, &texts, progress).map_err(error)?;
    vectors.iter_mut().zip(&frozen).for_each(|(row, frozen)| row.extend_from_slice(frozen));
    Ok(())
}

/// The encoder at hand, which must be the one that the specialist was made with.
fn made_with<'a>(manifest: &Manifest, encoder: Option<&'a dyn Embed>) -> Result<&'a dyn Embed, BuildError> {
    let wrong = |why: String| BuildError::Encoder { name: manifest.name.clone(), why };
    let Some(encoder) = encoder else {
        let base = manifest.base.as_ref().map_or("", |base| &base.name);
        return Err(wrong(format!("it reads embeddings of `{base}`, and there is no encoder")));
    };
    match manifest.base.as_ref().and_then(|base| base.mismatch(&encoder.base())) {
        Some(why) => Err(wrong(why)),
        None => Ok(encoder),
    }
}

/// The encoder of a specialist that has its own.
pub(super) fn own_encoder(name: &str, base: &dyn Embed, file: &[u8]) -> Result<Encoder, BuildError> {
    let error = |why: String| BuildError::Encoder { name: name.to_owned(), why };
    let base = base.as_encoder().ok_or_else(|| error("it has layers of its own, which need an encoder".to_owned()))?;
    base.tuned(file).map_err(|source| BuildError::Embed { name: name.to_owned(), source: source.into() })
}

/// The frozen encoder's vectors of all rows.
pub(super) fn embed(
    task: &TaskFile,
    splits: &Splits,
    encoder: &dyn Embed,
    pool: &Pool,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Embeddings, BuildError> {
    let texts: Vec<&str> =
        Part::ALL.iter().flat_map(|&part| splits.part(part)).map(|example| example.row.text.as_str()).collect();
    let error = |source| BuildError::Embed { name: task.name.clone(), source };
    let mut all = encoder.embed_all(pool, &texts, progress).map_err(error)?.into_iter();
    Ok(Part::ALL.map(|part| all.by_ref().take(splits.part(part).len()).collect()))
}
