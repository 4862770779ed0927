//! What does a file say about its network? One vocabulary of settings, GGUF's; other containers translate theirs into it.

use std::{collections::BTreeMap, fmt::Display};

use super::hugging_face;
use crate::{
    arch::{WeightsError, config_error},
    format::{Gguf, gguf::Value},
};

/// Settings by GGUF's names, without the architecture in front. Errors call a setting what its own file calls it.
pub(super) struct Settings {
    values: BTreeMap<String, Value>,
    spelling: Spelling,
}

enum Spelling {
    /// With this architecture in front.
    Gguf(String),
    HuggingFace,
}

impl Settings {
    pub(super) fn from_gguf(gguf: &Gguf, architecture: &str) -> Self {
        let own = |key: &str| Some(key.strip_prefix(architecture)?.strip_prefix('.')?.to_owned());
        let values = gguf.metadata().iter().filter_map(|(key, value)| Some((own(key)?, value.clone()))).collect();
        Self { values, spelling: Spelling::Gguf(architecture.to_owned()) }
    }

    /// `values`: what `config.json` says, translated.
    pub(super) fn from_hugging_face(values: BTreeMap<String, Value>) -> Self {
        Self { values, spelling: Spelling::HuggingFace }
    }

    fn spelled(&self, key: &str) -> String {
        match &self.spelling {
            // No setting, but the shape of a tensor.
            Spelling::Gguf(_) if key == "vocabulary" => "token_embd.weight".to_owned(),
            Spelling::Gguf(architecture) => format!("{architecture}.{key}"),
            Spelling::HuggingFace => hugging_face::spelled(key).to_owned(),
        }
    }

    pub(super) fn wrong(&self, key: &str, problem: impl Display) -> WeightsError {
        config_error(&self.spelled(key), problem.to_string())
    }

    pub(super) fn value(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// A count between 1 and the limit, or `None` where the file does not say.
    pub(super) fn maybe_count(&self, key: &str, limit: usize) -> Result<Option<usize>, WeightsError> {
        let n = match self.value(key) {
            None => return Ok(None),
            Some(Value::Int(n)) => usize::try_from(*n).ok(),
            Some(_) => None,
        };
        let n = n.ok_or_else(|| self.wrong(key, "is no count"))?;
        let within = (1..=limit).contains(&n);
        within.then_some(Some(n)).ok_or_else(|| self.wrong(key, format!("{n} is not between 1 and {limit}")))
    }

    pub(super) fn count(&self, key: &str, limit: usize) -> Result<usize, WeightsError> {
        self.maybe_count(key, limit)?.ok_or_else(|| self.wrong(key, "is missing"))
    }

    /// A number above 0, or `None` where the file does not say.
    pub(super) fn positive(&self, key: &str) -> Result<Option<f32>, WeightsError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let x = match value {
            Value::Float(x) => *x as f32,
            Value::Int(n) => *n as f32,
            _ => return Err(self.wrong(key, "is no number")),
        };
        let usable = x.is_finite() && x > 0.0;
        usable.then_some(Some(x)).ok_or_else(|| self.wrong(key, format!("{x} is no finite number above 0")))
    }
}
