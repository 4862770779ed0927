//! A generated stream on its way to the caller: chunks are passed on as they come, the end is held back until it is on record.
//!
//! ```text
//! backend   role?  text  text  …  finish  usage  end
//! caller    role   text  text  …                 └─▶ settle ─▶ `closed` durable ─▶ finish, usage with `metier`
//! ```

use std::{collections::VecDeque, sync::Arc};

use futures_util::{StreamExt, stream};
use metier_traffic::wire::{ChatChunk, Usage};
use tokio::time::{Instant, timeout_at};

use crate::{
    backend::{BackendError, Chunks},
    decision::Decision,
    error::GatewayError,
    record::Bracket,
    reply::{Heading, ReplyStream},
};

/// What the end of a stream is settled with: usage → cost.
pub(crate) type Price = Arc<dyn Fn(Usage) -> Option<u64> + Send + Sync>;

/// One answer under way.
pub(crate) struct Passage {
    pub(crate) bracket: Bracket,
    pub(crate) source: Chunks,
    pub(crate) heading: Heading,
    pub(crate) n: u32,
    pub(crate) include_usage: bool,
    pub(crate) decision: Decision,
    pub(crate) price: Price,
    pub(crate) backend: String,
    pub(crate) deadline: Instant,
}

struct State {
    passage: Passage,
    /// Chunks to yield before anything else.
    ready: VecDeque<ChatChunk>,
    /// Finish chunks, held back.
    finishes: Vec<ChatChunk>,
    usage: Option<Usage>,
    /// Text so far: what the log commits to. Bounded by what a backend may send.
    text: String,
    ended: bool,
}

impl Passage {
    /// The caller's stream. Dropping it drops the source, which cancels the work, and the bracket, which closes as cancelled.
    pub(crate) fn into_stream(self) -> ReplyStream {
        let ready = VecDeque::from([self.heading.roles(self.n)]);
        let state =
            State { passage: self, ready, finishes: Vec::new(), usage: None, text: String::new(), ended: false };
        Box::pin(stream::unfold(state, |mut state| async move {
            loop {
                if let Some(chunk) = state.ready.pop_front() {
                    return Some((Ok(chunk), state));
                }
                if state.ended {
                    return None;
                }
                if let Err(error) = state.advance().await {
                    state.ended = true;
                    state.passage.bracket.fail(&error);
                    return Some((Err(error), state));
                }
            }
        }))
    }
}

impl State {
    async fn advance(&mut self) -> Result<(), GatewayError> {
        let next = timeout_at(self.passage.deadline, self.passage.source.next()).await;
        match next.map_err(|_| GatewayError::Deadline)? {
            Some(Ok(chunk)) => self.take(chunk),
            Some(Err(error)) => return Err(self.failed(error)),
            None => {
                self.ended = true;
                if self.finishes.is_empty() {
                    return Err(self.failed(BackendError::Cut));
                }
                self.settle().await?;
            }
        }
        Ok(())
    }

    fn failed(&self, source: BackendError) -> GatewayError {
        GatewayError::Backend { backend: self.passage.backend.clone(), source }
    }

    fn take(&mut self, mut chunk: ChatChunk) {
        self.usage = chunk.usage.or(self.usage);
        // The role was told; an empty delta says nothing.
        chunk.choices.retain_mut(|choice| {
            choice.delta.role = None;
            let says = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
            says(&choice.delta.content)
                || says(&choice.delta.refusal)
                || choice.logprobs.is_some()
                || choice.finish_reason.is_some()
        });
        for choice in &chunk.choices {
            for text in [&choice.delta.content, &choice.delta.refusal].into_iter().flatten() {
                self.text.push_str(text);
            }
        }
        if chunk.choices.is_empty() {
            return;
        }
        let finished = chunk.choices.iter().any(|choice| choice.finish_reason.is_some());
        let chunk = self.passage.heading.chunk(chunk.choices);
        if finished { self.finishes.push(chunk) } else { self.ready.push_back(chunk) }
    }

    async fn settle(&mut self) -> Result<(), GatewayError> {
        let passage = &mut self.passage;
        passage.decision.cost_picousd = self.usage.and_then(|usage| (passage.price)(usage));
        let body = std::mem::take(&mut self.text).into_bytes();
        passage.bracket.close(&passage.decision, self.usage, Some(body)).await?;
        self.ready.extend(self.finishes.drain(..));
        if passage.include_usage {
            let usage = Some(self.usage.unwrap_or_default());
            self.ready.push_back(ChatChunk { usage, ..passage.heading.chunk(Vec::new()) });
        }
        if let Some(last) = self.ready.back_mut() {
            last.metier = Some(passage.decision.to_json());
        }
        Ok(())
    }
}
