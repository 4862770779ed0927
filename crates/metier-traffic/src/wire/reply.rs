//! A chat completion's answer: whole, or in chunks of a stream. Also read back from other servers, so what is optional in
//! practice is optional here.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Why a choice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model was done, or a stop string came.
    Stop,
    /// `max_tokens` or the context was reached.
    Length,
    /// The provider withheld the answer.
    ContentFilter,
    /// Anything else that another server may say.
    #[serde(other)]
    Other,
}

/// Tokens read and written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the request.
    #[serde(default)]
    pub prompt_tokens: u64,
    /// Tokens of the answer.
    #[serde(default)]
    pub completion_tokens: u64,
    /// Their sum.
    #[serde(default)]
    pub total_tokens: u64,
}

impl Usage {
    /// Usage of so many tokens read and written.
    pub fn of(prompt_tokens: u64, completion_tokens: u64) -> Self {
        Self { prompt_tokens, completion_tokens, total_tokens: prompt_tokens.saturating_add(completion_tokens) }
    }
}

/// One token with its log-probability (natural logarithm, untempered).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// The token's text.
    pub token: String,
    /// Its log-probability.
    pub logprob: f32,
    /// Its bytes, as the text may be no valid UTF-8 by itself.
    #[serde(default)]
    pub bytes: Option<Vec<u8>>,
    /// The most probable tokens at this place.
    #[serde(default)]
    pub top_logprobs: Vec<TopLogprob>,
}

/// One of the most probable tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TopLogprob {
    /// The token's text.
    pub token: String,
    /// Its log-probability.
    pub logprob: f32,
    /// Its bytes.
    #[serde(default)]
    pub bytes: Option<Vec<u8>>,
}

/// Log-probabilities of a choice.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ChoiceLogprobs {
    /// One for each token of the content.
    #[serde(default)]
    pub content: Option<Vec<TokenLogprob>>,
    /// One for each label of a closed set that was scored, the most probable first: an extension that other clients ignore.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<LabelLogprob>,
}

/// One label of a closed set with its score.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LabelLogprob {
    /// The label.
    pub label: String,
    /// Sum of the log-probabilities of its tokens and of the end behind them (natural logarithm, untempered).
    pub logprob: f32,
    /// Tokens that the sum is over, the end included.
    pub tokens: u64,
    /// Its share among the labels, 0 to 1: all add up to 1.
    pub share: f32,
}

/// What the model says in a whole answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResponseMessage {
    /// Always `assistant`.
    pub role: String,
    /// The answer; null when it was refused.
    #[serde(default)]
    pub content: Option<String>,
    /// Why there is no answer.
    #[serde(default)]
    pub refusal: Option<String>,
}

/// One choice of a whole answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChatChoice {
    /// From 0.
    #[serde(default)]
    pub index: u32,
    /// What is said.
    pub message: ResponseMessage,
    /// Log-probabilities, where asked for.
    #[serde(default)]
    pub logprobs: Option<ChoiceLogprobs>,
    /// Why it ended.
    #[serde(default)]
    pub finish_reason: Option<FinishReason>,
}

/// A whole answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChatResponse {
    /// `chatcmpl-…`.
    #[serde(default)]
    pub id: String,
    /// Always `chat.completion`.
    #[serde(default)]
    pub object: String,
    /// Seconds since 1970.
    #[serde(default)]
    pub created: u64,
    /// Who answered: not always who was asked.
    #[serde(default)]
    pub model: String,
    /// One for each of `n`.
    pub choices: Vec<ChatChoice>,
    /// Tokens.
    #[serde(default)]
    pub usage: Option<Usage>,
    /// metier's decision: an extension that other clients ignore.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metier: Option<Value>,
}

/// What a chunk adds to a choice.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Delta {
    /// In the first chunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// The next piece of text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// The next piece of a refusal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<String>,
}

/// One choice in a chunk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChunkChoice {
    /// From 0.
    #[serde(default)]
    pub index: u32,
    /// What is added.
    #[serde(default)]
    pub delta: Delta,
    /// Log-probabilities of the piece.
    #[serde(default)]
    pub logprobs: Option<ChoiceLogprobs>,
    /// In the last chunk of the choice.
    #[serde(default)]
    pub finish_reason: Option<FinishReason>,
}

/// One event of a stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChatChunk {
    /// The same in all chunks of an answer.
    #[serde(default)]
    pub id: String,
    /// Always `chat.completion.chunk`.
    #[serde(default)]
    pub object: String,
    /// Seconds since 1970.
    #[serde(default)]
    pub created: u64,
    /// Who answers.
    #[serde(default)]
    pub model: String,
    /// Empty in the usage chunk.
    #[serde(default)]
    pub choices: Vec<ChunkChoice>,
    /// In the usage chunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// metier's decision, in the last chunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metier: Option<Value>,
}
