//! What does a row of an extraction say? An answer in JSON, or spans with offsets, in; words of the text by field out.
//!
//! ```text
//! offsets in the data      → the words that they touch
//! values in the answer     → words equal to the value's; else equal up to letter case; else words that the field's rule reads as the value;
//!                            else any place where the value stands
//! ```
//!
//! The longest values are placed first, each at its first free place, then at all further ones. A value that stands nowhere is counted
//! and listed: the row trains all the same, for what does stand there, and where it is measured the value counts as missed.

use std::{
    collections::BTreeMap,
    ops::Range,
    path::{Path, PathBuf},
};

use metier_model::extract::{Field, Schema, Span, normalise, words};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    nearest,
    table::{DataError, Row},
};

/// Words of a value that is no copy of its text, at most.
const MAX_RULE_WORDS: usize = 12;
/// Unplaced values listed in a report.
const MAX_LISTED: usize = 10;
/// Passes over the training rows, at most.
const MAX_EPOCHS: usize = 1_000;
/// Rows of a step, at most.
const MAX_BATCH_ROWS: usize = 4_096;
/// Keys under which a span may name its field.
const FIELD_KEYS: [&str; 5] = ["field", "label", "slot", "type", "name"];

/// What an extraction needs beside what every task has.
#[derive(Clone, Debug, PartialEq)]
pub struct ExtractTask {
    /// What is answered.
    pub schema: Schema,
    /// Column with spans and their offsets, where there is one.
    pub spans: Option<String>,
    /// Is there a column with the answer? Else the spans are it.
    pub has_output: bool,
    /// What rungs are compared by.
    pub metric: ExtractMetric,
    /// Settings of the task file.
    pub tune: RawTune,
}

/// Metrics of an extraction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtractMetric {
    /// F1 of the pairs (field, value) of all rows together.
    FieldF1,
    /// Share of rows whose answer is right as a whole.
    ExactMatch,
}

impl ExtractMetric {
    /// Its name in task files and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::FieldF1 => "field_f1",
            Self::ExactMatch => "exact_match",
        }
    }
}

/// `[tune]` of a task file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
pub struct RawTune {
    /// Passes over the training rows.
    pub epochs: Option<usize>,
    /// Greatest step length.
    pub learning_rate: Option<f32>,
    /// Rows of a step.
    pub batch_rows: Option<usize>,
}

impl ExtractTask {
    /// Reads the schema and checks the settings; what is wrong in words.
    pub fn new(
        metric: Option<&str>,
        schema: Option<&Path>,
        columns: (Option<&str>, Option<String>),
        n_inputs: usize,
        tune: Option<RawTune>,
    ) -> Result<Self, String> {
        let (output, spans) = columns;
        let path = schema
            .ok_or("`data.schema` is missing: an extraction needs a JSON Schema file that says what to answer")?;
        let text = std::fs::read_to_string(path)
            .map_err(|error| format!("cannot read the schema `{}`: {error}", path.display()))?;
        let schema = Schema::parse(&text).map_err(|error| format!("`{}`: {error}", path.display()))?;
        let metric = match metric {
            None | Some("field_f1") => ExtractMetric::FieldF1,
            Some("exact_match") => ExtractMetric::ExactMatch,
            Some(other) => {
                return Err(format!(
                    "there is no metric `{other}` for `extract`: it knows `field_f1` and `exact_match`"
                ));
            }
        };
        if spans.is_some() && n_inputs > 1 {
            return Err("`data.spans` counts characters of one text, and `data.text` names several inputs".to_owned());
        }
        let tune = tune.unwrap_or_default();
        if tune.epochs.is_some_and(|n| !(1..=MAX_EPOCHS).contains(&n)) {
            return Err(format!("`tune.epochs` must lie between 1 and {MAX_EPOCHS}"));
        }
        if tune.batch_rows.is_some_and(|n| !(1..=MAX_BATCH_ROWS).contains(&n)) {
            return Err(format!("`tune.batch_rows` must lie between 1 and {MAX_BATCH_ROWS}"));
        }
        if tune.learning_rate.is_some_and(|rate| !(rate > 0.0 && rate < 1.0)) {
            return Err("`tune.learning_rate` must lie between 0 and 1".to_owned());
        }
        Ok(Self { schema, has_output: output.is_some() || spans.is_none(), spans, metric, tune })
    }
}

/// What a row says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gold {
    /// Words by field, in order, without overlaps.
    pub spans: Vec<Span>,
    /// Values of each field, as the schema orders them.
    pub values: Vec<Vec<Value>>,
    /// `(field, value)` that stand nowhere in the text.
    pub unplaced: Vec<(usize, Value)>,
    /// Spans that begin or end within a word.
    pub cut: u64,
}

/// What became of the values of all rows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Alignment {
    /// Values.
    pub values: u64,
    /// Values that stand nowhere in their text.
    pub unplaced: u64,
    /// Rows with such a value.
    pub unplaced_rows: u64,
    /// The same by field.
    pub unplaced_by_field: BTreeMap<String, u64>,
    /// The first of them: `file:line`, field, value.
    pub listed: Vec<(String, String, String)>,
    /// Spans that begin or end within a word and were widened to whole words.
    pub cut: u64,
}

impl Alignment {
    /// Counts a row.
    pub fn add(&mut self, row: &Row, gold: &Gold, schema: &Schema) {
        self.values += gold.values.iter().map(Vec::len).sum::<usize>() as u64;
        self.cut += gold.cut;
        self.unplaced_rows += u64::from(!gold.unplaced.is_empty());
        for (field, value) in &gold.unplaced {
            let name = &schema.fields()[*field].name;
            self.unplaced += 1;
            *self.unplaced_by_field.entry(name.clone()).or_default() += 1;
            if self.listed.len() < MAX_LISTED {
                self.listed.push((row.place.to_string(), name.clone(), value.to_string()));
            }
        }
    }
}

/// Reads what a row says and places it on the words of its text.
///
/// # Errors
///
/// Where the answer or the spans are not what they should be, by file and line.
pub fn gold(row: &Row, words: &[Range<usize>], task: &ExtractTask) -> Result<Gold, DataError> {
    let wrong = |message: String| DataError::row(&row.place, message);
    let mut gold = Gold { values: vec![Vec::new(); task.schema.fields().len()], ..Gold::default() };
    if task.has_output {
        let answer: Value = serde_json::from_str(&row.label).map_err(|error| {
            wrong(format!("the answer is no JSON (column {}): {}", error.column(), excerpt(&row.label)))
        })?;
        gold.values =
            task.schema.values(&answer).map_err(|why| wrong(format!("the answer does not meet the schema: {why}")))?;
    }
    match &task.spans {
        Some(column) => {
            let text = if task.has_output {
                row.extra.iter().find(|(name, _)| **name == **column).map(|(_, text)| text)
            } else {
                Some(&row.label)
            };
            let text = text.ok_or_else(|| wrong(format!("there is no column `{column}` (`data.spans`)")))?;
            place_spans(row, text, words, task, &mut gold).map_err(wrong)?;
        }
        None => place_values(&row.text, words, &task.schema, &mut gold),
    }
    gold.spans.sort_by_key(|span| span.words.start);
    Ok(gold)
}

fn excerpt(text: &str) -> String {
    let short: String = text.chars().take(60).collect();
    format!("`{short}{}`", if short.len() < text.len() { "…" } else { "" })
}

/// Spans with offsets in Unicode code points.
fn place_spans(
    row: &Row,
    text: &str,
    words: &[Range<usize>],
    task: &ExtractTask,
    gold: &mut Gold,
) -> Result<(), String> {
    let fields = task.schema.fields();
    let list: Vec<serde_json::Map<String, Value>> = if text.trim().is_empty() {
        Vec::new()
    } else {
        serde_json::from_str(text).map_err(|error| format!("spans must be a JSON list of objects: {error}"))?
    };
    let places: Vec<usize> = row.text.char_indices().map(|(at, _)| at).chain([row.text.len()]).collect();
    for span in &list {
        let number = |key: &str| span.get(key).and_then(Value::as_u64).map(|n| n as usize);
        let (Some(start), Some(end)) = (number("start"), number("end")) else {
            return Err("a span needs `start` and `end`, counted in characters from 0".to_owned());
        };
        let name = FIELD_KEYS.iter().find_map(|key| span.get(*key)).and_then(Value::as_str);
        let name = name.ok_or_else(|| format!("a span names its field under one of `{}`", FIELD_KEYS.join("`, `")))?;
        let Some(field) = fields.iter().position(|field| field.name == name) else {
            let near = nearest(name, fields.iter().map(|field| field.name.as_str()));
            let near = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
            return Err(format!("the schema has no field `{name}`{near}"));
        };
        if start >= end || end >= places.len() {
            return Err(format!(
                "a span of `{name}` from {start} to {end} does not lie in a text of {} characters",
                places.len() - 1
            ));
        }
        let bytes = places[start]..places[end];
        let raw = &row.text[bytes.clone()];
        if let Some(value) = span.get("value").or_else(|| span.get("text")).and_then(Value::as_str)
            && normalise::squeeze(value) != normalise::squeeze(raw)
        {
            return Err(format!(
                "a span of `{name}` says `{value}`, and its text has `{raw}` there: offsets count Unicode characters from 0"
            ));
        }
        if !task.has_output {
            match fields[field].value(raw) {
                Some(value) if !gold.values[field].contains(&value) => gold.values[field].push(value),
                Some(_) => {}
                None => gold.unplaced.push((field, Value::String(raw.to_owned()))),
            }
        }
        take(words, &bytes, field, gold);
    }
    Ok(())
}

/// Notes a span where it touches words and no other span does; was it taken?
fn take(words: &[Range<usize>], bytes: &Range<usize>, field: usize, gold: &mut Gold) -> bool {
    let Some((touched, exact)) = words::words_in(words, bytes) else { return false };
    if gold.spans.iter().any(|span| span.words.start < touched.end && touched.start < span.words.end) {
        return false;
    }
    gold.cut += u64::from(!exact);
    gold.spans.push(Span { words: touched, field });
    true
}

fn place_values(text: &str, words: &[Range<usize>], schema: &Schema, gold: &mut Gold) {
    let mut all: Vec<(usize, Value)> = gold
        .values
        .iter()
        .enumerate()
        .flat_map(|(field, values)| values.iter().map(move |value| (field, value.clone())))
        .collect();
    // Long values first: `red` of `red wine` is not the colour.
    all.sort_by_key(|(_, value)| std::cmp::Reverse(value.as_str().map_or(0, |text| text.chars().count())));
    let mut further = Vec::new();
    for (field, value) in all {
        let places = places(text, words, &schema.fields()[field], &value);
        match places.iter().position(|bytes| take(words, bytes, field, gold)) {
            Some(at) => further.extend(places.into_iter().skip(at + 1).map(|bytes| (field, bytes))),
            None => gold.unplaced.push((field, value)),
        }
    }
    for (field, bytes) in further {
        take(words, &bytes, field, gold);
    }
}

/// Is it the same value? Texts up to white space, numbers up to their writing.
pub fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::String(a), Value::String(b)) => normalise::squeeze(a) == normalise::squeeze(b),
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        _ => a == b,
    }
}

/// Bytes of all places where a value stands, by the first rule that finds any.
fn places(text: &str, words: &[Range<usize>], field: &Field, value: &Value) -> Vec<Range<usize>> {
    if let Some(value) = value.as_str() {
        let parts: Vec<&str> = words::words(value).into_iter().map(|word| &value[word]).collect();
        let rules: [fn(&str, &str) -> bool; 2] = [|a, b| a == b, |a, b| a.to_lowercase() == b.to_lowercase()];
        for equal in rules {
            let found: Vec<Range<usize>> = words
                .windows(parts.len().max(1))
                .filter(|run| {
                    !parts.is_empty() && run.iter().zip(&parts).all(|(word, part)| equal(&text[word.clone()], part))
                })
                .map(|run| run[0].start..run[run.len() - 1].end)
                .collect();
            if !found.is_empty() {
                return found;
            }
        }
    }
    if !field.is_verbatim() {
        let mut found = Vec::new();
        for (first, word) in words.iter().enumerate() {
            // The shortest writing from here on.
            let mut ends = words[first..].iter().take(MAX_RULE_WORDS).map(|last| last.end);
            if let Some(end) =
                ends.find(|end| field.value(&text[word.start..*end]).is_some_and(|found| same(&found, value)))
            {
                found.push(word.start..end);
            }
        }
        // Of `€ 1,200` and `1,200` the first is a wider writing of the same place.
        let is_within = |a: &Range<usize>, b: &Range<usize>| b.start <= a.start && a.end <= b.end && a != b;
        return found.iter().filter(|wide| !found.iter().any(|narrow| is_within(narrow, wide))).cloned().collect();
    }
    match value.as_str() {
        Some(value) if !value.is_empty() => text.match_indices(value).map(|(at, part)| at..at + part.len()).collect(),
        _ => Vec::new(),
    }
}

/// The schema's path in a task file's folder.
pub(crate) fn only(paths: Vec<PathBuf>) -> Option<PathBuf> {
    paths.into_iter().next()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::data::Place;

    fn task(spans: Option<&str>, has_output: bool) -> ExtractTask {
        let schema = json!({"type": "object", "properties": {
            "number": {"type": "string"},
            "due": {"type": "string", "format": "date"},
            "amount": {"type": "number"},
            "currency": {"enum": ["EUR", "USD"], "x-metier-synonyms": {"EUR": ["€"]}},
            "colours": {"type": "array", "items": {"type": "string"}},
        }});
        ExtractTask {
            schema: Schema::parse(&schema.to_string()).unwrap(),
            spans: spans.map(str::to_owned),
            has_output,
            metric: ExtractMetric::FieldF1,
            tune: RawTune::default(),
        }
    }

    fn row(text: &str, label: &str) -> Row {
        let place = Place { file: "a.jsonl".into(), line: 7 };
        Row { text: text.to_owned(), label: label.to_owned(), group: None, reference: None, extra: Vec::new(), place }
    }

    #[track_caller]
    fn check(text: &str, answer: Value, expected: &[(&str, &str)], unplaced: &[&str]) {
        let task = task(None, true);
        let words = words::words(text);
        let gold = gold(&row(text, &answer.to_string()), &words, &task).unwrap();
        let fields = task.schema.fields();
        let found: Vec<(&str, &str)> = gold
            .spans
            .iter()
            .map(|s| (fields[s.field].name.as_str(), &text[words[s.words.start].start..words[s.words.end - 1].end]))
            .collect();
        assert_eq!(found, expected);
        assert_eq!(gold.unplaced.iter().map(|(field, _)| fields[*field].name.as_str()).collect::<Vec<_>>(), unplaced);
    }

    #[test]
    fn places_values_on_words() {
        check(
            "Order PO-7 is due 3 March 2026",
            json!({"number": "PO-7", "due": "2026-03-03"}),
            &[("number", "PO-7"), ("due", "3 March 2026")],
            &[],
        );
        check(
            "we pay € 1.200,50 for it",
            json!({"amount": 1200.5, "currency": "EUR"}),
            &[("currency", "€"), ("amount", "1.200,50")],
            &[],
        );
        check("po-7, again PO 7 and po-7", json!({"number": "PO-7"}), &[("number", "po-7"), ("number", "po-7")], &[]);
        check(
            "a red  wine, dark red",
            json!({"colours": ["red", "red wine"]}),
            &[("colours", "red  wine"), ("colours", "red")],
            &[],
        );
        check("item X200b", json!({"number": "X200"}), &[("number", "X200")], &[]);
        check("item Xyzzy", json!({"number": "yzz"}), &[("number", "Xyzzy")], &[]);
        check("nothing here", json!({"number": "PO-9", "amount": 3}), &[], &["number", "amount"]);
        check("at 95.209,00 GBP", json!({"amount": 95209.0}), &[("amount", "95.209,00")], &[]);
        check("5 and 5", json!({"number": "5", "amount": 5}), &[("number", "5"), ("amount", "5")], &[]);
    }

    #[test]
    fn reads_offsets_and_says_what_is_wrong_with_them() {
        let read = |text: &str, spans: Value| {
            let task = task(Some("spans"), false);
            gold(&row(text, &spans.to_string()), &words::words(text), &task).map_err(|error| error.to_string())
        };
        let good = read("é PO-7 due", json!([{"start": 2, "end": 6, "slot": "number", "value": "PO-7"}])).unwrap();
        assert_eq!(good.spans, [Span { words: 1..4, field: 0 }]);
        assert_eq!(good.values[0], [json!("PO-7")]);
        let wrong = |spans: Value, message: &str| {
            let error = read("é PO-7 due", spans).unwrap_err();
            assert!(
                error.contains(message) && error.starts_with("a.jsonl:7: "),
                "`{error}` does not contain `{message}`"
            );
        };
        wrong(json!([{"start": 3, "end": 7, "slot": "number", "value": "PO-7"}]), "offsets count Unicode characters");
        wrong(json!([{"start": 3, "end": 99, "slot": "number"}]), "does not lie in a text of 10 characters");
        wrong(json!([{"start": 0, "end": 1, "slot": "nmber"}]), "no field `nmber`; did you mean `number`?");
        wrong(json!([{"start": 0, "end": 1}]), "names its field under one of");
        wrong(json!({"start": 0}), "spans must be a JSON list");
    }

    #[test]
    fn refuses_answers_that_do_not_meet_the_schema() {
        let refused =
            |answer: &str| gold(&row("a", answer), &words::words("a"), &task(None, true)).unwrap_err().to_string();
        assert_eq!(refused("{\"number\": 3}"), "a.jsonl:7: the answer does not meet the schema: `number` cannot be 3");
        assert!(refused("PO-7").contains("the answer is no JSON"));
    }

    proptest! {
        #[test]
        fn no_row_panics(text in "[a-c0-9 .,€-]{0,30}|\\PC{0,30}", value in "[a-c0-9 .,-]{0,8}", number in -9.0f64..2000.0) {
            let answer = json!({"number": value, "colours": [value, "a"], "amount": number.round()});
            let words = words::words(&text);
            let gold = gold(&row(&text, &answer.to_string()), &words, &task(None, true)).unwrap();
            let mut free = vec![true; words.len()];
            for word in gold.spans.iter().flat_map(|span| span.words.clone()) {
                prop_assert!(std::mem::take(&mut free[word]), "spans overlap");
            }
        }
    }
}
