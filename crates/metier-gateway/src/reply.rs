//! What the gateway hands to the server: a whole answer, or a stream of chunks, with the decision.

use std::pin::Pin;

use futures_util::Stream;
use metier_traffic::wire::{
    ChatChoice, ChatChunk, ChatResponse, ChunkChoice, Delta, EmbeddingResponse, FinishReason, ResponseMessage, Usage,
};
use serde_json::Value;

use crate::{decision::Decision, error::GatewayError};

/// Chunks of an answer. After an error nothing follows. Dropping it cancels the request and closes it on record.
pub type ReplyStream = Pin<Box<dyn Stream<Item = Result<ChatChunk, GatewayError>> + Send>>;

/// An answer to a chat request.
pub enum Reply {
    /// On record and complete.
    Whole {
        /// The body.
        response: ChatResponse,
        /// For the headers.
        decision: Decision,
    },
    /// `opened` is on record; `closed` will be before the last chunk is yielded.
    Stream {
        /// What is known before the first chunk: the cost of a generated answer is not.
        decision: Decision,
        /// The chunks, without `[DONE]`.
        chunks: ReplyStream,
    },
}

/// An answer to an embedding request.
pub struct EmbeddingReply {
    /// The body.
    pub response: EmbeddingResponse,
    /// For the headers.
    pub decision: Decision,
}

/// What is the same in all parts of an answer.
#[derive(Clone, Debug)]
pub(crate) struct Heading {
    pub(crate) id: String,
    /// Seconds since 1970.
    pub(crate) created: u64,
    /// Who answers.
    pub(crate) model: String,
}

/// An answer that is known as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    Content(String),
    Refusal(String),
}

impl Said {
    /// What the audit log commits to.
    pub(crate) fn body(&self) -> Vec<u8> {
        let (Self::Content(text) | Self::Refusal(text)) = self;
        text.clone().into_bytes()
    }
}

/// `n` identical choices: a head has one answer.
pub(crate) fn whole(heading: Heading, n: u32, said: &Said, usage: Usage, metier: Value) -> ChatResponse {
    let (content, refusal) = match said {
        Said::Content(text) => (Some(text.clone()), None),
        Said::Refusal(text) => (None, Some(text.clone())),
    };
    let message = ResponseMessage { role: "assistant".into(), content, refusal };
    let choice =
        |index| ChatChoice { index, message: message.clone(), logprobs: None, finish_reason: Some(FinishReason::Stop) };
    ChatResponse {
        id: heading.id,
        object: "chat.completion".into(),
        created: heading.created,
        model: heading.model,
        choices: (0..n).map(choice).collect(),
        usage: Some(usage),
        metier: Some(metier),
    }
}

/// The same as a stream: role, content, finish, and usage if it was asked for. The last chunk carries the `metier` object.
pub(crate) fn chunks(heading: &Heading, n: u32, said: &Said, usage: Option<Usage>, metier: Value) -> Vec<ChatChunk> {
    let delta = match said {
        Said::Content(text) => Delta { content: Some(text.clone()), ..Delta::default() },
        Said::Refusal(text) => Delta { refusal: Some(text.clone()), ..Delta::default() },
    };
    let for_each = |delta: Delta, finish_reason: Option<FinishReason>| {
        let choice = |index| ChunkChoice { index, delta: delta.clone(), logprobs: None, finish_reason };
        heading.chunk((0..n).map(choice).collect())
    };
    let mut chunks =
        vec![heading.roles(n), for_each(delta, None), for_each(Delta::default(), Some(FinishReason::Stop))];
    chunks.extend(usage.map(|usage| ChatChunk { usage: Some(usage), ..heading.chunk(Vec::new()) }));
    if let Some(last) = chunks.last_mut() {
        last.metier = Some(metier);
    }
    chunks
}

impl Heading {
    /// A chunk of this answer.
    pub(crate) fn chunk(&self, choices: Vec<ChunkChoice>) -> ChatChunk {
        ChatChunk {
            id: self.id.clone(),
            object: "chat.completion.chunk".into(),
            created: self.created,
            model: self.model.clone(),
            choices,
            usage: None,
            metier: None,
        }
    }

    /// The first chunk, as clients expect it.
    pub(crate) fn roles(&self, n: u32) -> ChatChunk {
        let delta = Delta { role: Some("assistant".into()), content: Some(String::new()), refusal: None };
        let choice = |index| ChunkChoice { index, delta: delta.clone(), logprobs: None, finish_reason: None };
        self.chunk((0..n).map(choice).collect())
    }
}
