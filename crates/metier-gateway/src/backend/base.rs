//! The engine of `metier-model` behind what the decoder's thread drives.

use std::{
    collections::BTreeSet,
    sync::{Arc, OnceLock},
};

use metier_kernels::Pool;
use metier_model::{
    chat::ChatMessage,
    decoder::Decoder,
    engine::{self, CacheScope, Engine, Event, Finish, GenerationRequest, SequenceId, SubmitError},
    grammar::{Constraint, Form, GrammarEnv, GrammarError},
    tokenizer::{TokenId, Tokenizer},
};
use metier_traffic::wire::{FinishReason, Message, ResponseFormat, TokenLogprob, TopLogprob};

use super::{
    BackendError,
    local::{Drive, Happened, Prompting, Sequence},
};

/// Conversation → tokens by the base's own template.
pub(crate) struct ChatPrompting {
    decoder: Arc<Decoder>,
    /// Made for the first request that wants a form.
    grammar: OnceLock<Result<GrammarEnv, GrammarError>>,
    /// Milliseconds since 1970, for templates that write the date.
    clock: Option<Arc<dyn Fn() -> u64 + Send + Sync>>,
}

impl ChatPrompting {
    pub(crate) fn new(decoder: Arc<Decoder>) -> Self {
        Self { decoder, grammar: OnceLock::new(), clock: None }
    }

    /// With a clock that the base's template may ask for the date (in UTC).
    pub(crate) fn with_clock(self, clock: Arc<dyn Fn() -> u64 + Send + Sync>) -> Self {
        Self { clock: Some(clock), ..self }
    }
}

impl Prompting for ChatPrompting {
    fn prompt(&self, messages: &[Message]) -> Result<Vec<u32>, BackendError> {
        let messages: Vec<ChatMessage> =
            messages.iter().map(|message| ChatMessage::new(message.role.as_str(), message.content.as_str())).collect();
        // A template may refuse an order of roles: the caller can mend that.
        let unix_s = self.clock.as_ref().map(|clock| clock() / 1_000);
        let prompt = self.decoder.render_chat(&messages, true, unix_s).map_err(|error| BackendError::Invalid {
            message: error.to_string(),
            param: "messages",
            code: "invalid_value",
        })?;
        let ids =
            self.decoder.tokenizer().encode_prompt(&prompt).map_err(|error| BackendError::Failed(error.to_string()))?;
        Ok(ids.into_iter().map(|id| id.0).collect())
    }

    fn context_len(&self) -> usize {
        self.decoder.context_len()
    }

    fn vocabulary(&self) -> usize {
        self.decoder.network().config().vocabulary
    }

    fn constraint(&self, format: &ResponseFormat) -> Result<Option<Constraint>, BackendError> {
        let form = match format {
            ResponseFormat::Text => return Ok(None),
            ResponseFormat::JsonObject => Form::JsonObject,
            // The field holds a name beside the schema; without a schema any object will do.
            ResponseFormat::JsonSchema(named) => {
                named.get("schema").map_or(Form::JsonObject, |s| Form::JsonSchema(s.clone()))
            }
        };
        let env = self.grammar.get_or_init(|| GrammarEnv::new(Arc::clone(&self.decoder)));
        let env = env.as_ref().map_err(|error| BackendError::Failed(error.to_string()))?;
        Constraint::compile(&form, env).map(Some).map_err(|error| BackendError::Invalid {
            message: error.to_string(),
            param: "response_format",
            code: "invalid_value",
        })
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
            sampling: sequence.sampling,
            logit_bias: sequence.logit_bias.into_iter().map(|(id, bias)| (TokenId(id), bias)).collect(),
            stop: sequence.stop,
            top_logprobs: sequence.top_logprobs,
            constraint: sequence.constraint,
            lookup: sequence.lookup,
            scope: sequence.group.map_or(CacheScope::Private, CacheScope::Group),
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
        events.into_iter().filter_map(|event| self.translate(event)).collect()
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
    fn translate(&mut self, event: Event) -> Option<(u64, Happened)> {
        match event {
            Event::Token { id, text, token, logprob, top } => {
                let tokenizer = self.engine.decoder().tokenizer();
                let logprob = self.with_logprobs.contains(&id.0).then(|| described(tokenizer, token, logprob, &top));
                Some((id.0, Happened::Token { text, logprob }))
            }
            // Nobody here asks for scores.
            Event::Scored { .. } => None,
            Event::Done { id, finish, completion_tokens, .. } => {
                self.with_logprobs.remove(&id.0);
                let finish = match finish {
                    // Incomplete both times: what clients look for before they parse.
                    Finish::Length | Finish::Constraint => FinishReason::Length,
                    Finish::Stop | Finish::Cancelled => FinishReason::Stop,
                };
                Some((id.0, Happened::Done { finish, completion_tokens: completion_tokens as u64 }))
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
        SubmitError::Sampling => invalid("temperature", "invalid_value"),
        SubmitError::LogitBias => invalid("logit_bias", "invalid_value"),
        SubmitError::Constraint
        | SubmitError::Labels
        | SubmitError::Label { .. }
        | SubmitError::SameLabel { .. }
        | SubmitError::NoEnd
        | SubmitError::UnknownToken { .. }
        | SubmitError::UnknownAdapter(_)
        | SubmitError::KeptLayers { .. } => BackendError::Failed(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use metier_kernels::Tier;
    use metier_model::{EngineLimits, engine::WeightFormat, sample::Sampling, tiny};
    use serde_json::{Value, json};

    use super::*;

    fn engine() -> (Arc<Decoder>, PooledEngine) {
        let decoder = Arc::new(Decoder::from_bytes(tiny::gguf(7), "tiny", WeightFormat::AsFile).unwrap());
        let limits = EngineLimits { kv_cache_bytes: 16 << 20, ..Default::default() };
        let engine = Engine::new(Arc::clone(&decoder), limits);
        (decoder, PooledEngine::new(engine, Arc::new(Pool::new(1, Tier::detect()))))
    }

    fn sequence(prompt: Vec<u32>, max_tokens: usize) -> Sequence {
        Sequence {
            prompt,
            max_tokens,
            sampling: Sampling::default(),
            logit_bias: Vec::new(),
            stop: Vec::new(),
            top_logprobs: None,
            constraint: None,
            lookup: false,
            group: None,
        }
    }

    #[test]
    fn choices_of_one_request_read_its_prompt_once() {
        let (_, mut engine) = engine();
        let prompt: Vec<u32> = (0..100).map(|i| i * 7 % 250).collect();
        for group in [Some(4), Some(4), None, Some(4)] {
            engine.submit(Sequence { group, ..sequence(prompt.clone(), 6) }).unwrap();
        }
        while !engine.is_idle() {
            engine.step();
        }
        let cache = engine.engine.stats().cache;
        // Two of three take over three filled pages; then all is forgotten.
        assert_eq!((cache.saved_tokens, cache.used_bytes), (2 * 96, 0));
    }

    #[test]
    fn an_answer_has_the_form_that_was_asked_for() {
        let (decoder, mut engine) = engine();
        let prompting = ChatPrompting::new(decoder);
        let schema = json!({
            "type": "object", "properties": {"kind": {"enum": ["a", "b"]}, "sure": {"type": "boolean"}},
            "required": ["kind", "sure"], "additionalProperties": false,
        });
        let format = ResponseFormat::JsonSchema(json!({"name": "kinds", "schema": schema}));
        let sequence = Sequence {
            sampling: Sampling { temperature: 1.0, seed: 3, ..Sampling::default() },
            constraint: prompting.constraint(&format).unwrap(),
            ..sequence(vec![5, 6], 60)
        };
        engine.submit(sequence).unwrap();
        let (mut text, mut finished) = (String::new(), None);
        while !engine.is_idle() {
            for (_, happened) in engine.step() {
                match happened {
                    Happened::Token { text: more, .. } => text.push_str(&more),
                    Happened::Done { finish, .. } => finished = Some(finish),
                }
            }
        }
        let answer: Value = serde_json::from_str(&text).unwrap();
        assert!(["a", "b"].contains(&answer["kind"].as_str().unwrap()) && answer["sure"].is_boolean(), "{text}");
        assert_eq!(finished, Some(FinishReason::Stop));
        let bad = ResponseFormat::JsonSchema(json!({"name": "bad", "schema": {"type": "integer", "not": {}}}));
        assert!(matches!(prompting.constraint(&bad), Err(BackendError::Invalid { param: "response_format", .. })));
    }
}
