//! Scores a file with a specialist that runs on a decoder: a head on its last row, or answers that it writes.

use std::{path::Path, sync::Arc};

use metier_kernels::Pool;
use metier_model::{
    Adapter, Decoder, Progress, Specialist,
    engine::AdapterId,
    specialist::{AnswerError, Judgement, manifest::Kind},
};

use super::{
    BuildError, answered,
    generate::{self, GenerateError},
    measured::followed_by_base,
};
use crate::{
    Embed,
    craft::{
        reading::{ReadError, Reader},
        writing::{WriteError, Writer},
    },
    data::{
        Columns, DataError, TextMetric,
        split::{self, Example},
        table,
    },
    eval::{EvalReport, ScoredRow, cluster::Groups, text},
};

/// Scores a file; columns as in a task file. Of labels the metric is accuracy, of written answers the one that the task had. `encoder`: for a
/// specialist whose head reads the frozen encoder beside its decoder.
///
/// # Errors
///
/// Where the decoder is not the one that the specialist was made with, or rows cannot be read or answered.
#[allow(clippy::too_many_arguments, reason = "the whole of an evaluation")]
pub fn evaluate_decoder(
    specialist: &Specialist,
    decoder: Arc<Decoder>,
    encoder: Option<&dyn Embed>,
    pool: &Pool,
    file: &Path,
    columns: &Columns<'_>,
    seed: u64,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<EvalReport, BuildError> {
    let manifest = specialist.manifest();
    let wrong = |why: String| BuildError::Encoder { name: manifest.name.clone(), why };
    let made_with = manifest.decoder().ok_or_else(|| wrong("it runs on no decoder".to_owned()))?;
    if made_with.digest != decoder.base().digest {
        return Err(wrong(format!(
            "it was made with the decoder `{}` ({}), and `{}` ({}) is at hand",
            made_with.name,
            made_with.digest.short(),
            decoder.base().name,
            decoder.base().digest.short()
        )));
    }
    if manifest.kept_layers().is_some_and(|kept| !kept.fit(decoder.network().config().layers)) {
        return Err(wrong(format!("it keeps layers that `{}` does not have", decoder.base().name)));
    }
    let rows = table::read(file, columns)?;
    if manifest.kind == Kind::Generate {
        let examples = rows.into_iter().map(|row| Example { row, class: 0 }).collect();
        return written(specialist, decoder, pool, examples, columns, seed, progress);
    }
    let examples = split::examples(rows, &manifest.labels)?;
    let files = specialist.adapter_files().ok_or_else(|| wrong("it has no adapter".to_owned()))?;
    let texts: Vec<_> = examples.iter().map(|example| specialist.encoder_text(&example.row.text)).collect();
    let texts: Vec<&str> = texts.iter().map(AsRef::as_ref).collect();
    let read = |source: ReadError| BuildError::Embed { name: manifest.name.clone(), source: source.into() };
    let mut reader = Reader::new(decoder, files, manifest.kept_layers(), manifest.adapter_format()).map_err(read)?;
    let mut vectors = reader.read_all(pool, &texts, "reading rows with the decoder", progress).map_err(read)?;
    followed_by_base(specialist, encoder, pool, &examples, &mut vectors, progress)?;
    let answers = examples.iter().zip(&vectors).map(|(example, row)| specialist.answer(&example.row.text, Some(row)));
    let answers = answers.collect::<Result<Vec<_>, AnswerError>>()?;
    Ok(answered(manifest, &examples, &answers, columns, seed))
}

fn written(
    specialist: &Specialist,
    decoder: Arc<Decoder>,
    pool: &Pool,
    examples: Vec<Example>,
    columns: &Columns<'_>,
    seed: u64,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<EvalReport, BuildError> {
    let manifest = specialist.manifest();
    let failed = |source: GenerateError| BuildError::Generate { name: manifest.name.clone(), source };
    let metric = TextMetric::ALL.into_iter().find(|metric| metric.name() == manifest.recipe.metric);
    let metric = metric.unwrap_or_default();
    let schema = specialist.answer_schema();
    let mut writer = Writer::new(Arc::clone(&decoder), &manifest.instruction, schema.as_ref())
        .map_err(|error| failed(error.into()))?;
    writer.limit(manifest.generation.as_ref().map_or(1, |generation| generation.max_tokens as usize));
    writer.keep(manifest.kept_layers());
    let adapter: Option<AdapterId> = match specialist.adapter_files() {
        None => None,
        Some(files) => {
            let config = decoder.network().config();
            let adapter =
                Adapter::from_bytes(files.config.as_bytes(), &files.weights, config, manifest.adapter_format());
            let adapter = adapter.map_err(|error| failed(error.into()))?;
            Some(writer.load(Arc::new(adapter)).map_err(|error| failed(error.into()))?)
        }
    };
    let expected = generate::in_form(&examples, columns.label, schema.as_ref())?;
    let texts: Vec<&str> = examples.iter().map(|example| example.row.text.as_str()).collect();
    let answers = writer.write_all(pool, &texts, adapter, "writing", progress).map_err(|error| match error {
        WriteError::Prompt { idx, source } => {
            BuildError::Data(DataError::row(&examples[idx].row.place, source.to_string()))
        }
        error => failed(error.into()),
    })?;
    let is_json = schema.is_some();
    let pairs = || answers.iter().zip(&expected);
    let values: Vec<f64> =
        pairs().map(|(answer, expected)| text::value(metric, &answer.text, expected, is_json)).collect();
    let is_reference_right = |at: usize| {
        let reference = examples[at].row.reference.as_deref();
        reference.is_none_or(|reference| text::is_exact(reference, &expected[at], is_json))
    };
    let losses: Vec<f64> =
        values.iter().enumerate().map(|(at, value)| if is_reference_right(at) { 1.0 - value } else { 0.0 }).collect();
    let scored: Vec<ScoredRow> = pairs()
        .zip(&examples)
        .enumerate()
        .map(|(at, ((answer, expected), example))| {
            let Judgement { score, is_accepted, .. } = specialist.judge(answer.written());
            ScoredRow {
                predicted: usize::from(!text::is_exact(&answer.text, expected, is_json)),
                gold: 0,
                right: text::is_exact(&answer.text, expected, is_json),
                score,
                accepted: is_accepted,
                reference_right: is_reference_right(at),
                group: example.row.group.clone(),
                extra: example.row.extra.clone(),
            }
        })
        .collect();
    let groups = Groups::of(examples.iter().map(|example| example.row.group.as_deref()));
    let figures = generate::Figures {
        metric,
        values: &values,
        losses: &losses,
        has_reference: columns.reference.is_some(),
        slices: &[],
        groups: groups.as_ref(),
        seed,
    };
    Ok(generate::report(specialist, &scored, &figures))
}
