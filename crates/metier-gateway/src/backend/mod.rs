//! One place that answers.
//!
//! Which question: *here is a request and leave to answer it; what does this place say?* In go a permit, a chat request and a
//! deadline; out comes an answer in the protocol's shape, whole or in chunks, or an error that says whose fault it is.
//! Deliberately absent: the choice between places, policy, price, and the record.
//!
//! Every backend asks the permit whether it is listed before it does anything: a call without a check does not compile, and a
//! call with another's permit does not answer.

pub(crate) mod base;
pub(crate) mod breaker;
pub(crate) mod embedder;
#[cfg(test)]
mod faults;
pub(crate) mod local;
pub mod remote;
pub(crate) mod sse;

use std::pin::Pin;

use futures_util::Stream;
use metier_traffic::wire::{ChatChunk, ChatRequest, ChatResponse};
use tokio::time::Instant;

use crate::policy::Permit;

/// A future whose type has no name.
pub(crate) type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
/// Chunks of an answer; dropping it cancels the work behind it.
pub(crate) type Chunks = Pin<Box<dyn Stream<Item = Result<ChatChunk, BackendError>> + Send>>;

/// One place that answers. Not public: only `gateway.rs` calls it.
pub(crate) trait Backend: Send + Sync {
    /// The whole answer.
    fn answer<'a>(
        &'a self,
        permit: &'a Permit,
        request: &'a ChatRequest,
        deadline: Instant,
    ) -> Later<'a, Result<ChatResponse, BackendError>>;

    /// The answer in chunks; usage in the last one. An end without a finish reason is an answer that was cut.
    fn stream<'a>(
        &'a self,
        permit: &'a Permit,
        request: &'a ChatRequest,
        deadline: Instant,
    ) -> Later<'a, Result<Chunks, BackendError>>;
}

/// Why a backend has no answer.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The permit does not list it: an error of ours.
    #[error("the permit does not list it")]
    NotPermitted,
    /// It cannot be reached.
    #[error("it cannot be reached")]
    Connect(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The deadline passed.
    #[error("it did not answer before the deadline")]
    Deadline,
    /// It answered with an error.
    #[error("it answered with status {status}: {message}")]
    Status {
        /// HTTP status.
        status: u16,
        /// Its own words, cut to a readable length.
        message: String,
        /// When it wants to be asked again.
        retry_after_ms: Option<u64>,
    },
    /// The answer is too long.
    #[error("its answer is longer than {limit_bytes} bytes")]
    TooLarge {
        /// The limit.
        limit_bytes: usize,
    },
    /// The answer is not of the protocol.
    #[error("its answer is not of the protocol: {0}")]
    Malformed(String),
    /// The stream ended before the answer did.
    #[error("its answer was cut off")]
    Cut,
    /// The stream held an error.
    #[error("it broke off with an error: {0}")]
    Upstream(String),
    /// It failed too often of late and is left alone for a while.
    #[error("it failed too often and is left alone for {retry_after_ms} ms more")]
    BreakerOpen {
        /// How long.
        retry_after_ms: u64,
    },
    /// Its queue is full.
    #[error("its queue is full")]
    QueueFull,
    /// Its thread has ended.
    #[error("it has stopped: restart the server")]
    Stopped,
    /// The request does not fit it: the caller's fault.
    #[error("{message}")]
    Invalid {
        /// For people.
        message: String,
        /// The field at fault.
        param: &'static str,
        /// For programs.
        code: &'static str,
    },
    /// Prompt and answer do not fit the context: the caller's fault.
    #[error("the prompt has {prompt_tokens} tokens, the context holds {context_len}")]
    ContextLength {
        /// Tokens that came.
        prompt_tokens: usize,
        /// Tokens that fit.
        context_len: usize,
    },
    /// It failed in a way of its own.
    #[error("it failed: {0}")]
    Failed(String),
}

impl BackendError {
    /// The status that tells a client of it.
    pub fn status(&self) -> u16 {
        match self {
            Self::NotPermitted | Self::Failed(_) => 500,
            Self::Invalid { .. } | Self::ContextLength { .. } => 400,
            // What it finds wrong with the request is the caller's to mend; its other errors are a bad gateway.
            Self::Status { status: status @ (400 | 404 | 413 | 422), .. } => *status,
            Self::Status { status: 429, .. } | Self::BreakerOpen { .. } | Self::QueueFull | Self::Stopped => 503,
            Self::Deadline => 504,
            _ => 502,
        }
    }

    /// When to try again, where that is known.
    pub fn retry_after_ms(&self) -> Option<u64> {
        match self {
            Self::Status { retry_after_ms, .. } => *retry_after_ms,
            Self::BreakerOpen { retry_after_ms } => Some(*retry_after_ms),
            Self::QueueFull => Some(1_000),
            _ => None,
        }
    }
}

/// What the policy gives a test that asks a backend inside by name.
#[cfg(test)]
fn permit_for(id: &str) -> crate::policy::Permit {
    use crate::policy::{BackendFacts, Boundary, Facts, Policy, Purpose, Verdict};
    let candidates = [BackendFacts { id: id.into(), boundary: Boundary::Inside, direct: false }];
    match Policy::new(&candidates).check(&Facts { purpose: Purpose::Direct, candidates: &candidates, audit_ok: true }) {
        Verdict::Allow(permit) => permit,
        Verdict::Deny(denial) => panic!("{denial:?}"),
    }
}
