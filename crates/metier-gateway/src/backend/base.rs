//! The engine of `metier-model` behind what the decoder's thread drives.

use std::{collections::BTreeSet, sync::Arc};

use metier_kernels::Pool;
use metier_model::{
    chat::ChatMessage,
    decoder::Decoder,
    engine::{self, Engine, Event, Finish, GenerationRequest, SequenceId, SubmitError},
    sample::Sampling,
    tokenizer::{TokenId, Tokenizer},
};
use metier_traffic::wire::{FinishReason, Message, TokenLogprob, TopLogprob};

use super::{
    BackendError,
    local::{Drive, Happened, Prompting, Sequence},
};

/// Conversation → tokens by the base's own template.
pub(crate) struct ChatPrompting(pub(crate) Arc<Decoder>);

impl Prompting for ChatPrompting {
    fn prompt(&self, messages: &[Message]) -> Result<Vec<u32>, BackendError> {
        let messages: Vec<ChatMessage> =
            messages.iter().map(|message| ChatMessage::new(message.role.as_str(), message.content.as_str())).collect();
        // A template may refuse an order of roles: the caller can mend that.
        let prompt = self.0.render_chat(&messages, true).map_err(|error| BackendError::Invalid {
            message: error.to_string(),
            param: "messages",
            code: "invalid_value",
        })?;
        let ids = self.0.tokenizer().encode_prompt(&prompt).map_err(|error| BackendError::Failed(error.to_string()))?;
        Ok(ids.into_iter().map(|id| id.0).collect())
    }

    fn context_len(&self) -> usize {
        self.0.context_len()
    }
}

/// An engine with the threads it runs on.
pub(crate) struct PooledEngine {
    engine: Engine,
    pool: Arc<Pool>,
    /// Sequences whose callers want log-probabilities.
    with_logprobs: BTreeSet<u64>,
}

impl PooledEngine {
    pub(crate) fn new(engine: Engine, pool: Arc<Pool>) -> Self {
        Self { engine, pool, with_logprobs: BTreeSet::new() }
    }
}

impl Drive for PooledEngine {
    fn submit(&mut self, sequence: Sequence) -> Result<u64, BackendError> {
        let wants_logprobs = sequence.top_logprobs.is_some();
        let request = GenerationRequest {
            prompt: sequence.prompt.into_iter().map(TokenId).collect(),
            max_tokens: sequence.max_tokens,
            sampling: Sampling {
                temperature: sequence.temperature,
                top_p: sequence.top_p,
                top_k: 0,
                seed: sequence.seed,
            },
            stop: sequence.stop,
            top_logprobs: sequence.top_logprobs,
            ..Default::default()
        };
        let SequenceId(id) = self.engine.submit(request).map_err(refused)?;
        if wants_logprobs {
            self.with_logprobs.insert(id);
        }
        Ok(id)
    }

    fn step(&mut self) -> Vec<(u64, Happened)> {
        let events = self.engine.step(&self.pool);
        events.into_iter().map(|event| self.translate(event)).collect()
    }

    fn cancel(&mut self, id: u64) {
        self.with_logprobs.remove(&id);
        self.engine.cancel(SequenceId(id));
    }

    fn is_idle(&self) -> bool {
        self.engine.is_idle()
    }
}

impl PooledEngine {
    fn translate(&mut self, event: Event) -> (u64, Happened) {
        match event {
            Event::Token { id, text, token, logprob, top } => {
                let tokenizer = self.engine.decoder().tokenizer();
                let logprob = self.with_logprobs.contains(&id.0).then(|| described(tokenizer, token, logprob, &top));
                (id.0, Happened::Token { text, logprob })
            }
            Event::Done { id, finish, completion_tokens, .. } => {
                self.with_logprobs.remove(&id.0);
                let finish = match finish {
                    Finish::Length => FinishReason::Length,
                    Finish::Stop | Finish::Cancelled => FinishReason::Stop,
                };
                (id.0, Happened::Done { finish, completion_tokens: completion_tokens as u64 })
            }
        }
    }
}

fn described(tokenizer: &Tokenizer, token: TokenId, logprob: f32, top: &[engine::TokenLogprob]) -> TokenLogprob {
    let bytes = tokenizer.bytes_of(token).to_vec();
    let top_logprobs = top
        .iter()
        .map(|one| {
            let bytes = tokenizer.bytes_of(one.token).to_vec();
            TopLogprob { token: text_of(&bytes), logprob: one.logprob, bytes: Some(bytes) }
        })
        .collect();
    TokenLogprob { token: text_of(&bytes), logprob, bytes: Some(bytes), top_logprobs }
}

/// A token's bytes as text: what is not whole UTF-8 by itself shows as replacement characters, and `bytes` has the truth.
fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn refused(error: SubmitError) -> BackendError {
    let invalid =
        |param: &'static str, code: &'static str| BackendError::Invalid { message: error.to_string(), param, code };
    match error {
        SubmitError::QueueFull { .. } => BackendError::QueueFull,
        SubmitError::TooLong { .. } | SubmitError::CacheTooSmall { .. } => {
            invalid("messages", "context_length_exceeded")
        }
        SubmitError::EmptyPrompt => invalid("messages", "invalid_value"),
        SubmitError::Stop => invalid("stop", "invalid_value"),
        SubmitError::TopLogprobs(_) => invalid("top_logprobs", "invalid_value"),
        SubmitError::Sampling { .. } => invalid("temperature", "invalid_value"),
        SubmitError::UnknownToken { .. } | SubmitError::UnknownAdapter(_) | SubmitError::KeptLayers { .. } => {
            BackendError::Failed(error.to_string())
        }
    }
}
