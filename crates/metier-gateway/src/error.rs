//! Why a request gets an error instead of an answer. A denial by policy of a *deferred* request is no error: it is a refusal
//! with status 200. Whose fault it is is kept apart, because the roof makes the status of it.

use crate::{audit::AuditError, backend::BackendError};

/// Whose fault an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The caller's: the same request will fail again.
    Caller,
    /// The operator's, or the load's: later it may pass.
    Operator,
    /// Ours.
    Bug,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// Nothing has this name.
    #[error("there is no model `{model}`; there are {}", list(.known))]
    UnknownModel {
        /// What was asked.
        model: String,
        /// A few that there are.
        known: Vec<String>,
    },
    /// The request cannot be answered by this model as it stands.
    #[error("{message}")]
    Invalid {
        /// For people.
        message: String,
        /// The field at fault.
        param: String,
        /// For programs.
        code: &'static str,
    },
    /// Prompt and answer do not fit the model's context.
    #[error("the prompt has {prompt_tokens} tokens, the context of `{model}` holds {context_len}")]
    ContextLength {
        /// The model.
        model: String,
        /// Tokens that came.
        prompt_tokens: usize,
        /// Tokens that fit.
        context_len: usize,
    },
    /// The caller named a model outside, and policy does not let the text leave.
    #[error("policy does not allow `{model}`: {}", .reasons.join("; "))]
    Denied {
        /// The model.
        model: String,
        /// Why.
        reasons: Vec<String>,
    },
    /// Too many requests at once.
    #[error("{what} is full: try again in {retry_after_ms} ms")]
    Overloaded {
        /// What is full.
        what: &'static str,
        /// When to try again.
        retry_after_ms: u64,
    },
    /// The deadline passed.
    #[error("the request was not answered before its deadline")]
    Deadline,
    /// It could not be recorded, so it is not answered.
    #[error("the request could not be recorded, so it is not answered")]
    Unrecorded(#[source] AuditError),
    /// The backend that was asked has no answer.
    #[error("backend `{backend}` has no answer")]
    Backend {
        /// The backend.
        backend: String,
        /// The cause.
        #[source]
        source: BackendError,
    },
    /// The gateway is shutting down.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// An error of ours.
    #[error("an error of ours: {0}")]
    Internal(String),
}

impl GatewayError {
    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            Self::UnknownModel { .. } | Self::Invalid { .. } | Self::ContextLength { .. } | Self::Denied { .. } => {
                Fault::Caller
            }
            Self::Overloaded { .. }
            | Self::Deadline
            | Self::Unrecorded(_)
            | Self::Backend { .. }
            | Self::ShuttingDown => Fault::Operator,
            Self::Internal(_) => Fault::Bug,
        }
    }

    /// `code` of the protocol's error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::UnknownModel { .. } => "model_not_found",
            Self::Invalid { code, .. } => code,
            Self::ContextLength { .. } => "context_length_exceeded",
            Self::Denied { .. } => "policy_denied",
            Self::Overloaded { .. } => "overloaded",
            // Whose clock ran out first is no matter to the caller.
            Self::Deadline | Self::Backend { source: BackendError::Deadline, .. } => "deadline_exceeded",
            Self::Unrecorded(_) => "not_recorded",
            Self::Backend { .. } => "backend_failed",
            Self::ShuttingDown => "shutting_down",
            Self::Internal(_) => "internal_error",
        }
    }

    /// The status that fits: the roof's one file may choose another.
    pub fn status(&self) -> u16 {
        match self {
            Self::UnknownModel { .. } => 404,
            Self::Invalid { .. } | Self::ContextLength { .. } => 400,
            Self::Denied { .. } => 403,
            Self::Overloaded { .. } | Self::Unrecorded(_) | Self::ShuttingDown => 503,
            Self::Deadline => 504,
            Self::Backend { source, .. } => source.status(),
            Self::Internal(_) => 500,
        }
    }

    /// `param` of the protocol's error.
    pub fn param(&self) -> Option<&str> {
        match self {
            Self::UnknownModel { .. } | Self::Denied { .. } => Some("model"),
            Self::Invalid { param, .. } => Some(param),
            Self::ContextLength { .. } => Some("messages"),
            _ => None,
        }
    }

    /// When to try again, where that is known.
    pub fn retry_after_ms(&self) -> Option<u64> {
        match self {
            Self::Overloaded { retry_after_ms, .. } => Some(*retry_after_ms),
            Self::Backend { source, .. } => source.retry_after_ms(),
            _ => None,
        }
    }
}

fn list(names: &[String]) -> String {
    match names {
        [] => "none".to_owned(),
        names => names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "),
    }
}
