//! What did a teacher answer to which rows? A file of its own beside the rows, so that no row is written anew.
//!
//! ```text
//! {"answers":1,"task":"tickets","model":"big-model","asked":"<SHA-256 of instruction and labels>"}
//! {"row":"<SHA-256 of the text that a specialist reads>","answer":"billing","model":"big-model-2026","cost_usd":"0.00012","receipt":"…"}
//! {"row":"…","answer":null,"said":"I think that …"}                  it answered with something that is no label
//! {"row":"…","answer":"billing","again":true}                        asked a second time, for its agreement with itself
//! ```
//!
//! A line is durable before the next one is asked for: what a killed process left half written at the end is cut off, and nothing is paid
//! for twice. No text of a row stands in it.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
};

use metier_model::Digest;
use serde::{Deserialize, Serialize};

use super::{DataError, Place};

/// Of the format.
const VERSION: u32 = 1;
/// Most bytes of such a file.
const MAX_BYTES: u64 = 1 << 30;
/// Most bytes of an answer that are kept.
pub const MAX_ANSWER_BYTES: usize = 64 << 10;

/// The first line: what was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    answers: u32,
    /// The task's name.
    pub task: String,
    /// The model that was asked for.
    pub model: String,
    /// SHA-256 of all that was said to it beside the row.
    pub asked: Digest,
}

impl Asked {
    /// Of so named a task, so named a model and what is said to it.
    pub fn new(task: &str, model: &str, prompt: &str) -> Self {
        let asked = Digest::of(prompt.as_bytes());
        Self { answers: VERSION, task: task.to_owned(), model: model.to_owned(), asked }
    }
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// SHA-256 of the row's text ([`key`]).
    pub row: Digest,
    /// What it answered; `None` where that is of no use.
    pub answer: Option<String>,
    /// What it said instead, its beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub said: Option<String>,
    /// Whether it was asked before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub again: bool,
    /// Who answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// What it cost, in US dollars; `None` where it has no price.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_usd: Option<String>,
    /// Its entry in the audit log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<String>,
}

/// How a row is named in such a file: by the SHA-256 of the text that a specialist reads.
pub fn key(text: &str) -> Digest {
    Digest::of(text.as_bytes())
}

/// All answers of a file.
#[derive(Debug)]
pub struct Answers {
    /// What was asked.
    pub asked: Asked,
    /// First answers, by row.
    pub first: BTreeMap<Digest, Answer>,
    /// Second ones.
    pub again: BTreeMap<Digest, Answer>,
    /// Bytes of whole lines.
    whole: u64,
}

impl Answers {
    /// Reads a file. A last line without its end is left out.
    ///
    /// # Errors
    /// It cannot be read, or a line is no answer: named with file and line.
    pub fn read(path: &Path) -> Result<Self, DataError> {
        let io = |source| DataError::Io { path: path.to_owned(), source };
        let bytes = fs::metadata(path).map_err(io)?.len();
        if bytes > MAX_BYTES {
            let message = format!("has {bytes} bytes; at most {MAX_BYTES} are read");
            return Err(DataError::File { path: path.to_owned(), message });
        }
        let text = fs::read(path).map_err(io)?;
        let mut lines = text.split_inclusive(|byte| *byte == b'\n').take_while(|line| line.ends_with(b"\n"));
        let wrong = |line: u64, message: String| DataError::row(&Place { file: path.to_owned(), line }, message);
        let first = lines.next().unwrap_or_default();
        let asked: Asked = serde_json::from_slice(first).map_err(|error| {
            wrong(1, format!("not the first line of a file that `metier dataset label` wrote ({error})"))
        })?;
        if asked.answers != VERSION {
            return Err(wrong(1, format!("version {} of such files; this one reads {VERSION}", asked.answers)));
        }
        let mut answers = Self { asked, first: BTreeMap::new(), again: BTreeMap::new(), whole: first.len() as u64 };
        for (line, at) in lines.zip(2..) {
            let answer: Answer =
                serde_json::from_slice(line).map_err(|error| wrong(at, format!("no answer ({error})")))?;
            let kept = if answer.again { &mut answers.again } else { &mut answers.first };
            kept.insert(answer.row, answer);
            answers.whole += line.len() as u64;
        }
        Ok(answers)
    }
}

/// A file that answers are added to; no other process may write to it meanwhile.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    file: File,
}

impl Writer {
    /// Opens a file, or makes it; what is there must be answers to the same questions.
    ///
    /// # Errors
    /// It cannot be read or written, holds other answers, or another process writes to it.
    pub fn open(path: &Path, asked: &Asked) -> Result<(Self, Answers), DataError> {
        let io = |source| DataError::Io { path: path.to_owned(), source };
        let other = |message: String| DataError::File { path: path.to_owned(), message };
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(io)?;
        file.try_lock().map_err(|_| other("is being written by another process".to_owned()))?;
        let mut writer = Self { path: path.to_owned(), file };
        let bytes = writer.file.metadata().map_err(io)?.len();
        // Killed before the first line was whole, it holds nothing.
        let is_empty = bytes == 0 || !fs::read(path).map_err(io)?.contains(&b'\n');
        if is_empty {
            writer.file.set_len(0).map_err(io)?;
            writer.line(asked)?;
        }
        let answers = Answers::read(path)?;
        if answers.asked != *asked {
            return Err(other(format!(
                "holds answers of `{}` to task `{}` as it was then: name another file with `--output`",
                answers.asked.model, answers.asked.task
            )));
        }
        // What a killed process left half written.
        writer.file.set_len(answers.whole).map_err(io)?;
        Ok((writer, answers))
    }

    /// Adds one answer; it is on disk when this returns.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn add(&mut self, answer: &Answer) -> Result<(), DataError> {
        self.line(answer)
    }

    fn line(&mut self, value: &impl Serialize) -> Result<(), DataError> {
        let io = |source| DataError::Io { path: self.path.clone(), source };
        let mut line = serde_json::to_vec(value).map_err(|error| io(error.into()))?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(io)?;
        self.file.sync_data().map_err(io)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn answer(text: &str, said: &str) -> Answer {
        Answer {
            row: key(text),
            answer: Some(said.to_owned()),
            said: None,
            again: false,
            model: Some("big".to_owned()),
            cost_usd: None,
            receipt: None,
        }
    }

    #[test]
    fn what_was_answered_is_there_again_after_a_kill_at_any_byte() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("answers.jsonl");
        let asked = Asked::new("tickets", "big", "Which queue?");
        let (mut writer, answers) = Writer::open(&path, &asked).unwrap();
        assert!(answers.first.is_empty());
        let given = [answer("a", "billing"), Answer { again: true, ..answer("a", "sales") }, answer("b", "sales")];
        given.iter().for_each(|answer| writer.add(answer).unwrap());
        drop(writer);
        let whole = fs::read(&path).unwrap();
        let ends: Vec<usize> = (1..=whole.len()).filter(|at| whole[at - 1] == b'\n').collect();
        for len in 0..=whole.len() {
            fs::write(&path, &whole[..len]).unwrap();
            let (mut writer, answers) = Writer::open(&path, &asked).unwrap();
            let lines = ends.iter().filter(|end| **end <= len).count();
            let found = answers.first.len() + answers.again.len();
            assert_eq!(found, lines.saturating_sub(1), "cut at {len}");
            writer.add(&answer("c", "other")).unwrap();
            drop(writer);
            assert_eq!(Answers::read(&path).unwrap().first[&key("c")].answer.as_deref(), Some("other"));
        }
    }

    #[test]
    fn other_questions_and_other_writers_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("answers.jsonl");
        let asked = Asked::new("tickets", "big", "Which queue?");
        let (mut writer, _) = Writer::open(&path, &asked).unwrap();
        let refused = |asked: &Asked| Writer::open(&path, asked).unwrap_err().to_string();
        assert!(refused(&asked).contains("another process"));
        writer.add(&answer("a", "billing")).unwrap();
        drop(writer);
        for other in [
            Asked::new("tickets", "small", "Which queue?"),
            Asked::new("tickets", "big", "Which desk?"),
            Asked::new("mails", "big", "Which queue?"),
        ] {
            assert!(refused(&other).contains("name another file with `--output`"), "{}", refused(&other));
        }
        fs::write(&path, "text,label\na,b\n").unwrap();
        assert!(refused(&asked).contains(":1: not the first line"), "{}", refused(&asked));
        fs::write(&path, [serde_json::to_string(&asked).unwrap(), "\n{}\n".to_owned()].concat()).unwrap();
        assert!(refused(&asked).contains(":2: no answer"), "{}", refused(&asked));
    }
}
