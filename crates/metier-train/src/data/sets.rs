//! Several labels a row: a list in the label's column → a set of labels, which may be empty.
//!
//! A task is of this kind if any row's label is a JSON list; then every row's must be one. Labels are those of the training rows.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Part, Splits, TaskFile, nearest,
    split::{self, Example, MAX_LABELS, MIN_ROWS_A_LABEL},
    table::{DataError, Row},
};

/// Most labels of one row.
pub const MAX_LABELS_A_ROW: usize = 100;

/// Rows by part, each with its labels.
#[derive(Clone, Debug)]
pub struct SetSplits {
    /// The rows; their classes are all 0, their labels are lists in one form: sorted, without repetition.
    pub splits: Splits,
    /// Labels of every row, ascending, by part.
    pub sets: [Vec<Vec<usize>>; 4],
    /// Labels that stand in too few training rows to be learnt well, and in how many.
    pub rare: Vec<(String, usize)>,
}

/// What a task's rows have: one label each, or several.
#[derive(Clone, Debug)]
pub enum Loaded {
    /// One.
    Classes(Box<Splits>),
    /// Several, or none.
    Sets(Box<SetSplits>),
}

impl Loaded {
    /// Rows by part, whatever they have.
    pub fn splits(&self) -> &Splits {
        match self {
            Self::Classes(splits) => splits,
            Self::Sets(sets) => &sets.splits,
        }
    }
}

/// Is this text a JSON list, as a column with several labels holds it?
pub fn is_list(label: &str) -> bool {
    label.starts_with('[') && serde_json::from_str::<Vec<serde_json::Value>>(label).is_ok()
}

/// The labels of a list, sorted, each once. A label that is not in `known`, if that is given, is an error.
///
/// # Errors
/// Where the row's label is no list of texts, or names an unknown label.
pub fn labels_of(row: &Row, known: Option<&[String]>) -> Result<Vec<String>, DataError> {
    let wrong = |message: String| DataError::row(&row.place, message);
    let list: Vec<String> = serde_json::from_str(&row.label).map_err(|_| {
        wrong(format!(
            "`{}` is no list of labels, such as `[\"{}\"]`; rows with several labels, one or none need a list each",
            row.label,
            row.label.trim_matches(['[', ']', '"'])
        ))
    })?;
    if list.len() > MAX_LABELS_A_ROW {
        return Err(wrong(format!("{} labels; at most {MAX_LABELS_A_ROW} a row are read", list.len())));
    }
    let set: BTreeSet<String> = list.into_iter().map(|label| label.trim().to_owned()).collect();
    for label in &set {
        if label.is_empty() {
            return Err(wrong("an empty label in the list".to_owned()));
        }
        if known.is_some_and(|known| known.binary_search(label).is_err()) {
            let near = nearest(label, known.into_iter().flatten().map(String::as_str));
            let near = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
            return Err(wrong(format!("label `{label}` is not in the training rows{near}")));
        }
    }
    Ok(set.into_iter().collect())
}

/// The places of a row's labels among the sorted `labels`.
///
/// # Errors
/// As [`labels_of`].
pub fn set_of(row: &Row, labels: &[String]) -> Result<Vec<usize>, DataError> {
    let names = labels_of(row, Some(labels))?;
    Ok(names.iter().map(|name| labels.binary_search(name).expect("it was looked up")).collect())
}

/// Rows of several labels, parted by the rules of all rows. Rows with equal texts and different sets count as contradictions.
pub(super) fn load(
    task: &TaskFile,
    mut read: (Vec<metier_model::specialist::manifest::DataFile>, [Vec<Row>; 4]),
    seed: u64,
) -> Result<SetSplits, DataError> {
    if task.data.hierarchy.is_some() {
        return Err(DataError::Task("`data.hierarchy` is for rows with one label each, not for lists: a node's probability is the sum of those of the labels under it only where a row \
             has exactly one of them. Leave it out; `billing/refund` and `billing/invoice` are then labels like any others"
                .to_owned()));
    }
    if task.data.out_of_scope.is_some() {
        return Err(DataError::Task(
            "`data.out_of_scope` names the label of rows that have one label each: a row of lists that is none of these has an empty list"
                .to_owned(),
        ));
    }
    let mut count: BTreeMap<String, usize> = BTreeMap::new();
    for (part, rows) in read.1.iter_mut().enumerate() {
        for row in rows {
            let labels = labels_of(row, None)?;
            if part == Part::Train as usize {
                labels.iter().for_each(|label| *count.entry(label.clone()).or_default() += 1);
            }
            row.label = metier_model::specialist::sets::in_json(labels.iter().map(String::as_str));
        }
    }
    let labels: Vec<String> = count.keys().cloned().collect();
    match labels.len() {
        0 | 1 => {
            return Err(DataError::Task(format!(
                "the training rows name {} labels in their lists: at least two are needed; for yes or no give each row one label",
                labels.len()
            )));
        }
        n if n > MAX_LABELS => {
            return Err(DataError::Task(format!(
                "{n} different labels; at most {MAX_LABELS} are supported: is the label column right?"
            )));
        }
        _ => {}
    }
    for row in read.1.iter().flatten() {
        labels_of(row, Some(&labels))?;
    }
    let mut splits = split::load_read(task, read, seed)?;
    splits.labels = labels;
    let sets_of = |part: Part| -> Result<Vec<Vec<usize>>, DataError> {
        splits.part(part).iter().map(|example: &Example| set_of(&example.row, &splits.labels)).collect()
    };
    let [train, validation, calibration, test] = Part::ALL.map(sets_of);
    let sets = [train?, validation?, calibration?, test?];
    let mut trained = vec![0usize; splits.labels.len()];
    sets[Part::Train as usize].iter().flatten().for_each(|label| trained[*label] += 1);
    let rare = splits.labels.iter().zip(&trained).filter(|(_, n)| **n < MIN_ROWS_A_LABEL);
    let rare = rare.map(|(label, n)| (label.clone(), *n)).collect();
    Ok(SetSplits { splits, sets, rare })
}
