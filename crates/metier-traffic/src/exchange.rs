//! One captured request with its answer, tokens, cost and time: what logs hold and what tasks are discovered in.
//!
//! Its JSON, one object a line, is metier's own form of a log. What a log does not say is absent, never zero.

use serde::{Deserialize, Serialize};

/// One request and its answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Exchange {
    /// The source's own name of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Milliseconds since 1970 at which the request came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_ms: Option<u64>,
    /// Milliseconds to the whole answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub elapsed_ms: Option<u64>,
    /// The model that answered; empty where the log does not say.
    pub model: String,
    /// What the log calls the request: a function, a prompt, a trace, a tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub named: Option<String>,
    /// User, session or customer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// What was said before the answer; empty where the log holds no texts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub messages: Vec<Said>,
    /// Names of the tools that were offered, sorted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<String>,
    /// JSON schema that the answer must have, as compact JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema: Option<String>,
    /// What was answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// What a person or another source says of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gold: Option<Verdict>,
    /// Tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<Tokens>,
    /// Cost as the log says it; what a roadmap counts is priced anew from tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logged_cost_picousd: Option<u64>,
    /// The log calls the request failed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub failed: bool,
    /// The arm of an experiment that the request fell into: `control` is a randomised hold-back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arm: Option<String>,
    /// What is strange about the record; counted, and nobody's identity depends on it.
    #[serde(skip)]
    pub odd: Vec<Odd>,
}

impl Exchange {
    /// Results of tools among the messages: how deep in a loop the request stands.
    pub fn tool_depth(&self) -> usize {
        self.messages.iter().filter(|said| said.by == Speaker::Tool).count()
    }

    /// Bytes of all texts.
    pub fn text_bytes(&self) -> usize {
        let said: usize = self.messages.iter().map(|said| said.text.len()).sum();
        said + self.answer.as_ref().map_or(0, String::len)
    }
}

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Speaker {
    /// Instructions of the application.
    System,
    /// The person or program that asks.
    User,
    /// The model, in earlier turns.
    Assistant,
    /// A tool that the model called.
    Tool,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// Who speaks.
    pub by: Speaker,
    /// What is said.
    pub text: String,
}

/// Tokens read and written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tokens {
    /// Tokens of the request, cached ones included.
    pub input: u64,
    /// Tokens of the answer.
    pub output: u64,
    /// Tokens of the request that the provider had in its cache.
    pub cached: u64,
}

/// What a person or another source says of an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The right answer.
    Label(String),
    /// How good the answer was, on the log's own scale.
    Score {
        /// The log's word for it.
        name: String,
        /// The value.
        value: f64,
    },
}

/// What is strange about a record that counts all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Odd {
    /// The time has no zone where the format does not fix one.
    NoZone,
    /// A time is there and cannot be read.
    UnreadableTime,
    /// The answer came before the request.
    EndsBeforeItBegins,
    /// A cost below zero.
    NegativeCost,
    /// Token counts below zero.
    NegativeTokens,
    /// The time is before there were such logs, or ahead of the reader's.
    WrongClock,
}

impl Odd {
    /// What it is, and what was done.
    pub fn words(self) -> &'static str {
        match self {
            Self::NoZone => "time without a zone, taken as UTC",
            Self::UnreadableTime => "time that cannot be read; the call is counted without a week",
            Self::EndsBeforeItBegins => "ends before it begins; its duration is left out",
            Self::NegativeCost => "cost below zero; costs are computed from tokens anyway",
            Self::NegativeTokens => "token counts below zero; tokens are estimated from the texts",
            Self::WrongClock => "time before 2015 or in the future; the call is counted without a week",
        }
    }
}
