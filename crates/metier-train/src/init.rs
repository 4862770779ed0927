//! A first task file for a data file: which column is the text, which the label?

use std::{collections::BTreeMap, path::Path, sync::Arc};

use crate::{
    build::BuildError,
    data::table::{self, DataError},
};

/// Rows looked at.
const SAMPLE_ROWS: usize = 2_000;
/// A column of labels has at most this share of different values.
const MAX_LABEL_SHARE: f64 = 0.5;
const TEXT_NAMES: [&str; 9] =
    ["text", "message", "body", "content", "question", "query", "description", "input", "utterance"];
const LABEL_NAMES: [&str; 9] = ["label", "category", "intent", "class", "target", "type", "topic", "tag", "queue"];
const NONE_NAMES: [&str; 7] = ["out_of_scope", "oos", "none", "other", "unknown", "n/a", "misc"];

struct Column {
    name: String,
    distinct: usize,
    characters: usize,
    rows: usize,
}

/// An annotated task file for `file`, which it calls `named`: a path relative to where the task file will lie.
pub fn init_task_file(file: &Path, named: &str) -> Result<String, BuildError> {
    let mut header: Arc<[Arc<str>]> = Arc::from([]);
    let mut values: Vec<BTreeMap<String, usize>> = Vec::new();
    let mut characters: Vec<usize> = Vec::new();
    let mut rows = 0;
    table::for_each_record(file, &mut |record| {
        if rows == 0 {
            header = Arc::clone(&record.header);
            values = vec![BTreeMap::new(); header.len()];
            characters = vec![0; header.len()];
        }
        for ((counts, total), value) in values.iter_mut().zip(&mut characters).zip(&record.values) {
            *total += value.chars().count();
            *counts.entry(value.trim().to_owned()).or_default() += 1;
        }
        rows += 1;
        Ok(rows < SAMPLE_ROWS)
    })?;
    let wrong = |message: &str| DataError::File { path: file.to_owned(), message: message.to_owned() };
    if rows == 0 {
        return Err(wrong("holds no rows").into());
    }
    let columns: Vec<Column> = header
        .iter()
        .zip(&values)
        .zip(&characters)
        .map(|((name, counts), &characters)| Column {
            name: name.to_string(),
            distinct: counts.len(),
            characters,
            rows,
        })
        .collect();
    let label = label_column(&columns)
        .ok_or_else(|| wrong("has no column that looks like labels (2 values or more, each several times)"))?;
    let text =
        text_column(&columns, label).ok_or_else(|| wrong("has no column beside the labels that looks like text"))?;
    let none = values[label].keys().find(|value| NONE_NAMES.contains(&value.to_lowercase().as_str()));
    Ok(render(file, named, &columns, text, label, none, rows))
}

fn named(columns: &[Column], names: &[&str], fits: impl Fn(&Column) -> bool) -> Option<usize> {
    names.iter().find_map(|name| columns.iter().position(|c| c.name.to_lowercase() == *name && fits(c)))
}

fn label_column(columns: &[Column]) -> Option<usize> {
    let fits = |c: &Column| c.distinct >= 2 && c.distinct as f64 <= MAX_LABEL_SHARE * c.rows as f64;
    named(columns, &LABEL_NAMES, fits).or_else(|| {
        // Of the columns with repeated values the one with the most of them: ids repeat least, flags most.
        (0..columns.len()).filter(|&at| fits(&columns[at])).max_by_key(|&at| columns[at].distinct)
    })
}

fn text_column(columns: &[Column], label: usize) -> Option<usize> {
    let longest = (0..columns.len()).filter(|&at| at != label).max_by_key(|&at| columns[at].characters);
    named(columns, &TEXT_NAMES, |c| c.name != columns[label].name).or(longest)
}

fn render(
    file: &Path,
    named: &str,
    columns: &[Column],
    text: usize,
    label: usize,
    none: Option<&String>,
    rows: usize,
) -> String {
    let quote = |text: &str| toml::Value::from(text).to_string();
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or("train.csv");
    let stem = name.split('.').next().unwrap_or("task").to_lowercase();
    let mut slug: String = stem.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(63).collect();
    slug = slug.trim_matches('-').to_owned();
    if slug.is_empty() {
        slug = "task".to_owned();
    }
    let others: Vec<&str> = columns.iter().map(|c| c.name.as_str()).collect();
    let out_of_scope = none.map_or_else(
        || "# out_of_scope = \"none\"           # the label that means \"none of these\", if there is one".to_owned(),
        |none| format!("out_of_scope = {}       # the label that means \"none of these\"", quote(none)),
    );
    format!(
        r#"# A task for `metier build`. Guessed from the first {rows} rows of {name}: look at every line.
name = {slug}                     # what applications send as `model`; lower-case letters, digits, hyphens
kind = "classify"
instruction = "Which label fits this text?"   # one sentence, for a model that has never seen the task

[data]
train = {file}                    # CSV, TSV or JSONL, also .gz or .zst; relative to this file; ${{VARIABLE}} is expanded
# validation = "validation.csv"   # each part without a file is a tenth of the training rows, by hash
# calibration = "calibration.csv"
# test = "test.csv"
text = {text}                     # columns there are: {columns}; several inputs: ["left", "right"]
label = {label}                   # {distinct} different values
{out_of_scope}
# group = "customer"              # rows with one value of this column never part
# slice = "channel"               # figures by the values of this column; a list for several

# [reference]                     # what the specialist is compared with; default: the label itself
# column = "llm_answer"

[target]
metric = "accuracy"               # accuracy, macro_f1, micro_f1 or f1
margin = 0.01                     # a smaller rung may be this much worse
epsilon = 0.02                    # certificate: at most this share of requests answered wrong without deferring
delta = 0.05                      # ... with probability 1 - delta over the calibration rows

[policy]
may_leave = false                 # may a deferred request go to a backend outside?

[budget]
minutes = 10
up_to = "tuned"                   # highest rung to try: linear, head, both, tuned or decoder
"#,
        slug = quote(&slug),
        file = quote(named),
        text = quote(&columns[text].name),
        label = quote(&columns[label].name),
        columns = others.join(", "),
        distinct = columns[label].distinct,
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::data::TaskFile;

    #[test]
    fn what_it_writes_is_a_task_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("My Tickets.csv");
        let rows: String = (0..30)
            .map(|i| format!("{i},Some longer text number {i},{},q{}\n", i % 2, ["a", "oos", "c"][i % 3]))
            .collect();
        std::fs::write(&path, format!("id,Body,flag,Intent\n{}", rows.replace("qoos", "oos"))).unwrap();
        let text = init_task_file(&path, "My Tickets.csv").unwrap();
        let task = TaskFile::parse(&text, &dir.path().join("task.toml"), &|_| None)
            .unwrap_or_else(|e| panic!("{e:?}\n{text}"));
        assert_eq!((task.name.as_str(), task.data.label.as_str()), ("my-tickets", "Intent"));
        assert_eq!((task.data.text, task.data.train), (vec!["Body".to_owned()], vec![path]));
        assert_eq!(task.data.out_of_scope.as_deref(), Some("oos"));
    }

    #[test]
    fn says_when_it_cannot_guess() {
        let dir = tempfile::tempdir().unwrap();
        for (contents, message) in [("", "holds no rows"), ("a,b\n1,2\n3,4\n", "no column that looks like labels")] {
            let path = dir.path().join("x.csv");
            std::fs::write(&path, contents).unwrap();
            let error = init_task_file(&path, "tickets.csv").unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
