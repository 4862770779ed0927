//! What a task file says of a teacher to learn from: `[distil]`.

use std::path::PathBuf;

use serde::Deserialize;

/// What stands before a specialist's name.
const SPECIALIST: &str = "specialist:";
/// Greatest temperature.
const MAX_TEMPERATURE: f32 = 20.0;

/// Whom a student learns from, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Distil {
    /// As written, for messages and records.
    pub teacher: Teacher,
    /// What logits of teacher and student are divided by.
    pub temperature: f32,
    /// What the teacher's word weighs beside the gold answer's, 0..=1.
    pub weight: f32,
    /// Files of rows without a label: there the teacher's word is all there is.
    pub rows: Vec<PathBuf>,
}

/// Who teaches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Teacher {
    /// A specialist of the registry: NAME or NAME@ID.
    Specialist(String),
    /// A decoder: a GGUF file or a folder.
    Decoder(PathBuf),
}

impl Teacher {
    /// As it is written.
    pub fn name(&self) -> String {
        match self {
            Self::Specialist(name) => format!("{SPECIALIST}{name}"),
            Self::Decoder(path) => path.display().to_string(),
        }
    }
}

/// As written.
#[derive(Deserialize)]
pub(super) struct RawDistil {
    teacher: String,
    temperature: Option<f32>,
    weight: Option<f32>,
    rows: Option<super::task::OneOrMany>,
}

impl Distil {
    /// Checks what was written; `path` expands one and puts it into the task file's folder. The error says what is wrong.
    pub(super) fn new(raw: RawDistil, path: &dyn Fn(&str) -> Result<PathBuf, String>) -> Result<Self, String> {
        let teacher = match raw.teacher.strip_prefix(SPECIALIST) {
            Some(name) if !name.is_empty() => Teacher::Specialist(name.to_owned()),
            Some(_) => return Err("`distil.teacher` = `specialist:` lacks a name".to_owned()),
            None => Teacher::Decoder(path(&raw.teacher)?),
        };
        let temperature = raw.temperature.unwrap_or(2.0);
        if !(temperature > 0.0 && temperature <= MAX_TEMPERATURE) {
            return Err(format!("`distil.temperature` = {temperature} must be more than 0, at most {MAX_TEMPERATURE}"));
        }
        let weight = raw.weight.unwrap_or(0.5);
        if !(0.0..=1.0).contains(&weight) {
            return Err(format!("`distil.weight` = {weight} must lie between 0 and 1"));
        }
        let rows = raw.rows.map_or_else(Vec::new, super::task::OneOrMany::list);
        let rows = rows.iter().map(|file| path(file)).collect::<Result<_, _>>()?;
        Ok(Self { teacher, temperature, weight, rows })
    }
}
