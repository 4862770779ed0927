//! What does a specialist that is there already say of these training rows? The lesson of a smaller one.
//!
//! ```text
//! rows without a label ─► leak check ─► training rows, with the teacher's likeliest label    (all rungs learn that)
//! all training rows ────► the teacher's shares of all labels, at a temperature             (a tuned encoder learns those)
//! ```
//!
//! Validation, calibration and test rows keep their gold labels: who taught changes nothing of what is proved.

use std::sync::Arc;

use metier_model::{
    Progress, Specialist,
    specialist::manifest::{Kind, TeacherRecord},
};

use super::{BuildError, Workbench, embedded, measured::followed_by_base};
use crate::{
    craft::{
        ladder::decimal,
        reading::Reader,
        teaching::{Lesson, TeachError, Teacher},
    },
    data::{DataError, Part, Row, Splits, TaskFile, split::Example, table},
    eval::calibrate::predicted,
    objective::distil::Soft,
};

/// Why rows with several labels are not distilled.
pub(super) const SETS: &str = "`distil` is for rows of one label each, and these have lists of labels";

/// Adds rows without a label to the training rows, and asks the task's teacher about all of them; `None` where the task names none.
pub(super) fn learn(
    task: &TaskFile,
    splits: &mut Splits,
    bench: &Workbench<'_>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Option<Lesson>, BuildError> {
    let Some(distil) = &task.distil else { return Ok(None) };
    let name = distil.teacher.name();
    let unfit = |why: String| BuildError::Teach {
        name: task.name.clone(),
        source: Box::new(TeachError::Unfit { teacher: name.clone(), why }),
    };
    let Some(Teacher::Specialist(teacher)) = &bench.teacher else {
        return Err(unfit("no such specialist is at hand".to_owned()));
    };
    let teacher = teacher.as_ref();
    check(teacher, splits).map_err(unfit)?;
    let mut more = Vec::new();
    for path in &distil.rows {
        let inputs = table::inputs(path, &task.data.text, "")?;
        if inputs.is_empty() {
            return Err(DataError::File { path: path.clone(), message: "holds no rows".to_owned() }.into());
        }
        more.extend(inputs.into_iter().map(|input| Example { row: unlabelled(input), class: 0 }));
    }
    // Each is asked about once: its label is needed before the leak check, its shares behind it.
    let shares = ask(teacher, bench, &more, progress)?;
    for (row, shares) in more.iter_mut().zip(&shares) {
        row.class = predicted(shares);
        row.row.label.clone_from(&splits.labels[row.class]);
    }
    let with_label = splits.part(Part::Train).len();
    let added = splits.extend(more.clone(), &task.data.text);
    let train = splits.part(Part::Train);
    let mut said = ask(teacher, bench, &train[..with_label], progress)?;
    let mut kept = train[with_label..].iter().peekable();
    for (row, shares) in more.iter().zip(shares) {
        if kept.next_if(|kept| kept.row.place == row.row.place).is_some() {
            said.push(shares);
        }
    }
    let weights = (0..train.len()).map(|row| if row < with_label { distil.weight } else { 1.0 }).collect();
    Ok(Some(Lesson {
        soft: said.iter().map(|shares| Soft::tempered(shares, distil.temperature)).collect(),
        weights,
        temperature: distil.temperature,
        record: TeacherRecord {
            name,
            digest: teacher.id(),
            temperature: decimal(distil.temperature),
            weight: decimal(distil.weight),
            rows_without_label: added as u64,
        },
    }))
}

fn check(teacher: &Specialist, splits: &Splits) -> Result<(), String> {
    let manifest = teacher.manifest();
    if manifest.kind != Kind::Classify || manifest.multi_label.is_some() {
        return Err("it does not tell one label a text".to_owned());
    }
    if manifest.labels != splits.labels {
        let lacks = |a: &[String], b: &[String]| a.iter().find(|label| !b.contains(label)).cloned();
        let which = lacks(&manifest.labels, &splits.labels).or_else(|| lacks(&splits.labels, &manifest.labels));
        return Err(format!("its labels are not those of these rows: `{}` is of one alone", which.unwrap_or_default()));
    }
    Ok(())
}

fn unlabelled(input: table::Input) -> Row {
    Row { text: input.text, label: String::new(), group: None, reference: None, extra: Vec::new(), place: input.place }
}

/// The teacher's shares of all labels for each row, by the code that serves.
fn ask(
    teacher: &Specialist,
    bench: &Workbench<'_>,
    rows: &[Example],
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Vec<Vec<f32>>, BuildError> {
    let manifest = teacher.manifest();
    let wrong = |why: &str| BuildError::Encoder { name: manifest.name.clone(), why: why.to_owned() };
    let vectors = match (&manifest.hidden, teacher.adapter_files()) {
        (Some(hidden), Some(files)) => {
            let decoder = bench.decoders.iter().find(|decoder| decoder.base().digest == hidden.decoder.digest);
            let decoder = decoder.ok_or_else(|| wrong("the decoder that it was made with is not at hand"))?;
            let texts: Vec<_> = rows.iter().map(|row| teacher.encoder_text(&row.row.text)).collect();
            let texts: Vec<&str> = texts.iter().map(AsRef::as_ref).collect();
            let read = |source: crate::craft::reading::ReadError| BuildError::Embed {
                name: manifest.name.clone(),
                source: source.into(),
            };
            let mut reader = Reader::new(Arc::clone(decoder), files, manifest.kept_layers(), manifest.adapter_format())
                .map_err(read)?;
            let mut vectors = reader.read_all(bench.pool, &texts, "asking the teacher", progress).map_err(read)?;
            followed_by_base(teacher, bench.encoder, bench.pool, rows, &mut vectors, progress)?;
            Some(vectors)
        }
        _ => embedded(teacher, bench.encoder, bench.pool, rows, progress)?,
    };
    let shares = rows.iter().enumerate().map(|(at, row)| {
        let margins = teacher.margins(&row.row.text, vectors.as_ref().map(|all| all[at].as_slice()))?;
        let adjusted = manifest.scope.zip(manifest.none()).map(|(rule, none)| rule.apply(&margins, none));
        Ok(manifest.calibrator.probabilities(&adjusted.unwrap_or(margins)))
    });
    shares.collect()
}
