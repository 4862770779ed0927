//! Which rows of a task try a specialist, and which only measure it? Apart by time *and* by group: what is measured came later, from
//! sessions or customers that training has not seen, in texts that it has not seen.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use metier_model::{Digest, features::fold};

use crate::{
    data::{
        Place, Splits,
        split::{Example, MAX_LABELS},
        table::Row,
    },
    discover::task::{Example as Logged, Gold, Task},
};

/// Rows of a trial, at most.
pub const MAX_ROWS: usize = 4000;
/// Characters of all its texts together, at most: about a minute of an encoder on two cores.
pub const MAX_CHARACTERS: usize = 1_200_000;
/// With fewer different texts there is nothing to try.
pub const MIN_ROWS: usize = 120;
/// Rows of a label that training must see; rarer answers are what a specialist never gives.
pub const MIN_ROWS_A_LABEL: usize = 3;
/// The first share of the time trains.
const EARLY: f64 = 0.65;
/// Of the early rows this many per mille choose settings and calibrate scores.
const VALIDATION_PER_MILLE: u64 = 200;

/// A row with what is known of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Known {
    /// Position in the task's examples.
    pub example: usize,
    /// What a specialist reads.
    pub text: String,
    /// What the LLM answered.
    pub answer: String,
    /// The right answer, where the log says it.
    pub gold: Option<String>,
    /// Session or customer.
    pub group: Option<String>,
    /// Milliseconds since 1970.
    pub time_ms: Option<u64>,
}

/// The answer as a label: an object with one text in it is that text.
pub fn label(output: &str) -> String {
    let trimmed = output.trim();
    let inner = trimmed.strip_prefix("```json").and_then(|rest| rest.strip_suffix("```")).unwrap_or(trimmed).trim();
    if inner.starts_with('{')
        && let Ok(serde_json::Value::Object(fields)) = serde_json::from_str(inner)
        && let [value] = fields.values().collect::<Vec<_>>()[..]
    {
        match value {
            serde_json::Value::String(text) => return text.trim().to_owned(),
            serde_json::Value::Bool(_) | serde_json::Value::Number(_) => return value.to_string(),
            _ => {}
        }
    }
    let inner = inner.trim_end_matches('.').trim_matches(['"', '\'', '`']);
    inner.trim_end_matches('.').trim().to_owned()
}

/// The rows of a task that can be used: with text and answer, each text once, the first time that it came.
pub fn known(task: &Task) -> Vec<Known> {
    let mut seen = BTreeSet::new();
    let mut order: Vec<usize> = (0..task.examples.len()).collect();
    order.sort_by_key(|&at| (task.examples[at].time_ms, at));
    let mut rows = Vec::new();
    for at in order {
        let Logged { input, output, gold, group, time_ms, .. } = &task.examples[at];
        let Some(answer) = output.as_deref().map(label).filter(|answer| !answer.is_empty()) else { continue };
        if input.trim().is_empty() || !seen.insert(Digest::of(fold(input).as_bytes())) {
            continue;
        }
        let gold = match gold {
            Some(Gold::Label(gold)) => Some(label(gold)),
            _ => None,
        };
        rows.push(Known { example: at, text: input.clone(), answer, gold, group: group.clone(), time_ms: *time_ms });
    }
    rows
}

/// Rows that are parted, or why there is nothing to try.
pub struct Ground {
    /// Train, validation and calibration; there is no test part.
    pub splits: Splits,
    /// By row of the calibration part: the right answer, where the log says it.
    pub gold: Vec<Option<String>>,
    /// By row of the calibration part: was the LLM's answer never seen in training?
    pub unseen: Vec<bool>,
    /// What was done with the rows, in sentences.
    pub notes: Vec<String>,
    /// Positions in the task's examples: rows that were to train, that choose, that are measured.
    pub examples: [Vec<usize>; 3],
}

/// Rows in order of time, and where each goes.
pub(super) struct Parted {
    pub(super) rows: Vec<Known>,
    pub(super) sides: Vec<Side>,
    pub(super) notes: Vec<String>,
}

/// Parts the rows of a task by time and group, whatever is asked of them.
pub(super) fn parted(task: &Task, seed: u64) -> Result<Parted, String> {
    let mut rows = known(task);
    if rows.len() < MIN_ROWS {
        let why = if task.sampling.with_text == 0 {
            "the log holds no texts"
        } else {
            "too few different texts with answers"
        };
        return Err(format!("{why}: {} of at least {MIN_ROWS}", rows.len()));
    }
    let mut notes = Vec::new();
    let repeats = task.examples.len() - rows.len();
    if repeats > 0 {
        notes.push(format!(
            "{repeats} of {} examples repeat a text or have no answer, and were left out",
            task.examples.len()
        ));
    }
    thin(&mut rows, &mut notes);
    let sides = sides(&rows, seed, &mut notes);
    Ok(Parted { rows, sides, notes })
}

/// Are there enough rows left to learn from, to choose with and to measure?
pub(super) fn enough(train: usize, validation: usize, measured: usize) -> Result<(), String> {
    if validation < MIN_ROWS / 8 || measured < MIN_ROWS / 4 {
        return Err(format!(
            "apart by time and group {validation} rows are left to choose with and {measured} to measure: too few"
        ));
    }
    if train < MIN_ROWS / 2 {
        return Err(format!("apart by time and group {train} rows are left to learn from: too few"));
    }
    Ok(())
}

/// Parts the rows of a classification.
pub fn part(task: &Task, seed: u64) -> Result<Ground, String> {
    let Parted { rows, sides: late, mut notes } = parted(task, seed)?;
    // What training never saw often enough is no label of the specialist.
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for (row, _) in rows.iter().zip(&late).filter(|(_, side)| **side == Side::Train) {
        *counts.entry(&row.answer).or_default() += 1;
    }
    let labels: Vec<String> =
        counts.iter().filter(|(_, n)| **n >= MIN_ROWS_A_LABEL).map(|(label, _)| (*label).to_owned()).collect();
    if labels.len() < 2 {
        return Err(
            "the answers of the training rows are all the same, or all different: there is nothing to learn".to_owned()
        );
    }
    if labels.len() > MAX_LABELS {
        return Err(format!("{} different answers; at most {MAX_LABELS} are tried", labels.len()));
    }
    let rare: usize = counts.values().filter(|n| **n < MIN_ROWS_A_LABEL).sum();
    if rare > 0 {
        notes.push(format!("{rare} training rows have an answer that stands there fewer than {MIN_ROWS_A_LABEL} times: no label is made of it"));
    }
    let mut parts: [Vec<Example>; 4] = Default::default();
    let mut examples: [Vec<usize>; 3] = Default::default();
    let (mut gold, mut unseen) = (Vec::new(), Vec::new());
    for (row, side) in rows.iter().zip(&late) {
        let class = labels.binary_search(&row.answer);
        let part = match (side, &class) {
            (Side::Out, _) | (Side::Train | Side::Validation, Err(_)) => continue,
            (Side::Train, Ok(_)) => 0,
            (Side::Validation, Ok(_)) => 1,
            (Side::Measured, _) => {
                gold.push(row.gold.clone());
                unseen.push(class.is_err());
                2
            }
        };
        parts[part].push(example(task, row, class.unwrap_or(0)));
        examples[part].push(row.example);
    }
    let [_, validation, measured, _] = &parts;
    enough(MIN_ROWS / 2, validation.len(), measured.len())?;
    let splits = Splits::parted(labels, parts, &["text".to_owned()]);
    if splits.leak.removed > 0 {
        notes.push(format!(
            "{} training rows were left out: nearly equal to rows that are measured",
            splits.leak.removed
        ));
    }
    if splits.part(crate::data::Part::Train).len() < MIN_ROWS / 2 {
        return Err("after leaving out what is nearly equal to measured rows too few rows are left to train: where many texts are of one document or session, a user or session in the log parts them".to_owned());
    }
    Ok(Ground { splits, gold, unseen, notes, examples })
}

pub(super) fn example(task: &Task, row: &Known, class: usize) -> Example {
    let place = &task.examples[row.example].place;
    let line = place.rsplit_once('#').map_or(place.as_str(), |(line, _)| line);
    let (file, line) = line.rsplit_once(':').unwrap_or((place, "0"));
    Example {
        row: Row {
            text: row.text.clone(),
            label: row.answer.clone(),
            group: row.group.clone(),
            reference: None,
            extra: Vec::new(),
            place: Place { file: PathBuf::from(file), line: line.parse().unwrap_or(0) },
        },
        class,
    }
}

/// Every n-th row, so that all of the time is seen.
fn thin(rows: &mut Vec<Known>, notes: &mut Vec<String>) {
    let characters: usize = rows.iter().map(|row| row.text.len()).sum();
    let most = MAX_ROWS.min((rows.len() * MAX_CHARACTERS / characters.max(1)).max(MIN_ROWS));
    let n = rows.len();
    if n <= most {
        return;
    }
    let mut at = 0;
    rows.retain(|_| {
        let keep = (at + 1) * most / n > at * most / n;
        at += 1;
        keep
    });
    notes.push(format!("{} of {n} rows were tried, evenly over time", rows.len()));
}

/// Where a row goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Train,
    Validation,
    Measured,
    /// Early row of a group that is measured, or late row of one that trains.
    Out,
}

/// Sides of rows that are in order of time.
fn sides(rows: &[Known], seed: u64, notes: &mut Vec<String>) -> Vec<Side> {
    let number = |text: &str| {
        let digest = Digest::of(format!("roadmap {seed} {text}").as_bytes());
        u64::from_be_bytes(digest.0[..8].try_into().expect("eight bytes")) % 1000
    };
    let key = |row: &Known| {
        row.group.as_ref().map_or_else(|| format!("text {}", fold(&row.text)), |group| format!("group {group}"))
    };
    let timed = rows.iter().all(|row| row.time_ms.is_some());
    if !timed {
        notes.push(
            "not all rows have a time: parted by group and text alone, which shows nothing of traffic that moves"
                .to_owned(),
        );
    }
    let cut = (rows.len() as f64 * EARLY) as usize;
    // Groups on both sides of the cut go to one of them.
    let mut spans: BTreeMap<String, [bool; 2]> = BTreeMap::new();
    for (at, row) in rows.iter().enumerate() {
        let late = if timed { at >= cut } else { number(&key(row)) as f64 >= 1000.0 * EARLY };
        spans.entry(key(row)).or_default()[usize::from(late)] = true;
    }
    let mut out = 0;
    let sides = rows
        .iter()
        .enumerate()
        .map(|(at, row)| {
            let key = key(row);
            let crosses = spans[&key] == [true, true];
            let late = if timed { at >= cut } else { spans[&key][1] };
            let trains = if crosses { (number(&key) as f64) < 1000.0 * EARLY } else { !late };
            match (trains, late) {
                (true, false) if number(&format!("validation {key}")) < VALIDATION_PER_MILLE => Side::Validation,
                (true, false) => Side::Train,
                (false, true) => Side::Measured,
                _ => {
                    out += 1;
                    Side::Out
                }
            }
        })
        .collect();
    if out > 0 {
        notes.push(format!(
            "{out} rows were left out because their session or customer stands on the other side of the cut"
        ));
    }
    sides
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_become_labels() {
        for (output, expected) in [
            ("card_arrival", "card_arrival"),
            ("  \"card_arrival\".\n", "card_arrival"),
            ("{\"intent\": \"card_arrival\"}", "card_arrival"),
            ("```json\n{\"intent\": \"x\"}\n```", "x"),
            ("{\"ok\": true}", "true"),
            ("{\"a\": 1, \"b\": 2}", "{\"a\": 1, \"b\": 2}"),
            ("{broken", "{broken"),
            ("", ""),
        ] {
            assert_eq!(label(output), expected);
        }
    }

    #[test]
    fn no_group_and_no_text_stands_on_both_sides_and_what_is_measured_came_later() {
        let rows: Vec<Known> = (0..1000)
            .map(|at| Known {
                example: at,
                text: format!("text {at}"),
                answer: "x".to_owned(),
                gold: None,
                group: Some(format!("customer {}", at * 7919 % 140)),
                time_ms: Some(at as u64),
            })
            .collect();
        let mut notes = Vec::new();
        let sides = sides(&rows, 0, &mut notes);
        let groups = |wanted: &[Side]| -> BTreeSet<&str> {
            let of = rows.iter().zip(&sides).filter(|(_, side)| wanted.contains(side));
            of.filter_map(|(row, _)| row.group.as_deref()).collect()
        };
        let measured = groups(&[Side::Measured]);
        assert!(measured.is_disjoint(&groups(&[Side::Train, Side::Validation])));
        assert!(groups(&[Side::Train]).is_disjoint(&groups(&[Side::Validation])));
        let first = sides.iter().position(|side| *side == Side::Measured).expect("some are");
        let last = sides.iter().rposition(|side| *side == Side::Train).expect("some are");
        assert!(first > last, "{first} {last}");
        let count = |wanted: Side| sides.iter().filter(|side| **side == wanted).count();
        assert!(count(Side::Train) > 250 && count(Side::Measured) > 80 && count(Side::Validation) > 40, "{notes:?}");
        assert_eq!(notes.len(), 1);
    }
}
