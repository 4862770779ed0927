//! The protocol's error shape, and why a request cannot be read.

use serde::{Deserialize, Serialize};

/// Body of every error: `{"error": {…}}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The error itself.
    pub error: ErrorObject,
}

/// What openai-python turns into its exceptions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorObject {
    /// For people.
    pub message: String,
    /// The class: `invalid_request_error`, `server_error`, …
    #[serde(rename = "type", default)]
    pub kind: String,
    /// The field at fault.
    #[serde(default)]
    pub param: Option<String>,
    /// For programs. Some servers send a number here.
    #[serde(default, deserialize_with = "code_as_text")]
    pub code: Option<String>,
}

fn code_as_text<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(match serde_json::Value::deserialize(deserializer)? {
        serde_json::Value::Null => None,
        serde_json::Value::String(text) => Some(text),
        other => Some(other.to_string()),
    })
}

/// Why a request cannot be read: always the caller's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct WireError {
    /// For people: names the field, what was found and what is allowed.
    pub message: String,
    /// Path of the field, as `messages[3].content`; `None` when the body as a whole is at fault.
    pub param: Option<String>,
    /// For programs: `invalid_json`, `invalid_type`, `invalid_value`, `missing_required_parameter`, `unsupported_parameter`,
    /// `body_too_large`.
    pub code: &'static str,
}

impl WireError {
    pub(super) fn new(code: &'static str, param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { message: message.into(), param: Some(param.into()), code }
    }

    pub(super) fn body(code: &'static str, message: impl Into<String>) -> Self {
        Self { message: message.into(), param: None, code }
    }

    /// The error in the protocol's shape.
    pub fn to_body(&self) -> ErrorBody {
        ErrorBody {
            error: ErrorObject {
                message: self.message.clone(),
                kind: "invalid_request_error".into(),
                param: self.param.clone(),
                code: Some(self.code.into()),
            },
        }
    }
}
