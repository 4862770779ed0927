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
    /// What it is: `metier-base`, `metier-adapter`, `metier-specialist`, `metier-encoder`, `metier-router`, or a backend's id.
    pub owned_by: String,
    /// The base that an adapter is a delta of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// One line for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

impl ModelEntry {
    /// An entry by name and owner.
    pub fn new(id: impl Into<String>, owned_by: impl Into<String>) -> Self {
        let (id, owned_by) = (id.into(), owned_by.into());
        Self { id, object: "model".into(), created: 0, owned_by, parent: None, description: None }
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
