//! The list of models.

use serde::{Deserialize, Serialize};

/// One model that may be named in a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelEntry {
    /// The name.
    pub id: String,
    /// Always `model`.
    pub object: String,
    /// Seconds since 1970; 0 where that is not known.
    pub created: u64,
    /// What it is: `metier-base`, `metier-specialist`, `metier-encoder`, `metier-router`, or a backend's id.
    pub owned_by: String,
}

impl ModelEntry {
    /// An entry by name and owner.
    pub fn new(id: impl Into<String>, owned_by: impl Into<String>) -> Self {
        Self { id: id.into(), object: "model".into(), created: 0, owned_by: owned_by.into() }
    }
}

/// The answer to `GET /v1/models`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelList {
    /// Always `list`.
    pub object: String,
    /// The models.
    pub data: Vec<ModelEntry>,
}

impl ModelList {
    /// A list of entries.
    pub fn new(data: Vec<ModelEntry>) -> Self {
        Self { object: "list".into(), data }
    }
}
