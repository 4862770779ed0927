//! Which rows may be used for what? A task file in; rows with their split, and what is suspicious about them, out.
//!
//! - [`task`]: the task file, read strictly.
//! - [`generate`]: what it says of a task whose answers are written.
//! - [`table`]: CSV, TSV, JSONL and Parquet files → rows; every complaint names file and line.
//! - [`mod@parquet`]: rows of a Parquet file as JSON objects.
//! - [`answers`]: what a teacher answered to rows, in a file beside them.
//! - [`split`]: training, validation, calibration and test rows, by hash of group or text.
//! - [`sets`]: the same where rows have several labels.
//! - [`extract`]: values or offsets of an extraction → words of the text.
//! - [`positive`]: whose F1, where the metric is the F1 of one label.
//! - [`distil`]: whom it learns from.
//! - [`prune`]: which shares of a decoder's layers are tried.
//! - [`leak`]: duplicates and near-duplicates across splits, and equal texts with different labels.
//!
//! Deliberately absent: any repair of the data. Near-duplicates of what is measured on are left out of training and
//! said so; everything else is told to the person who owns the data.

pub mod answers;
pub mod distil;
pub mod extract;
pub mod generate;
pub mod hierarchy;
pub mod leak;
pub mod parquet;
pub mod positive;
pub mod prune;
pub mod sets;
pub mod split;
pub mod table;
pub mod task;

use std::path::PathBuf;

pub use distil::Distil;
pub use generate::{GenerateTask, TextMetric, Tune};
pub use leak::{Contradiction, Leak, LeakReport};
pub use prune::Prune;
pub use split::{Part, Splits, load};
pub use table::{Columns, DataError, Input, Row, inputs};
pub use task::{TaskError, TaskFile};

/// A file and the line in it, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// Line, from 1; in a CSV file with quoted line breaks the line where the row begins.
    pub line: u64,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// The candidate nearest to `word`, if it is near enough to be what was meant.
pub(crate) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let near = candidates.into_iter().map(|candidate| (distance(word, candidate), candidate)).min()?;
    (near.0 > 0 && near.0 <= 1 + word.chars().count() / 4).then_some(near.1)
}

/// Edit distance with single-character insertions, deletions and substitutions (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggests_only_what_is_near() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(nearest("lable", ["text", "label"]), Some("label"));
        assert_eq!(nearest("colour", ["text", "label"]), None);
    }
}
