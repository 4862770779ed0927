//! One captured request with its answer, tokens, cost and time: what logs hold and what tasks are discovered in. Thin until
//! the roadmap needs more of it.

use serde::Serialize;

use crate::wire::{Message, Usage};

/// One request and its answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Exchange {
    /// Milliseconds since 1970 at which the request came.
    pub time_ms: u64,
    /// The model that was asked.
    pub model: String,
    /// What was said.
    pub messages: Vec<Message>,
    /// What was answered, if anything.
    pub answer: Option<String>,
    /// Tokens.
    pub usage: Usage,
    /// Cost, where a price is known.
    pub cost_picousd: Option<u64>,
    /// Time to the whole answer, in microseconds.
    pub elapsed_us: u64,
}
