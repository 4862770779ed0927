//! The engine of `metier-model` behind what the decoder's thread drives.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, OnceLock},
};

use metier_kernels::Pool;
use metier_model::{
    adapter::Adapter,
    chat::ChatMessage,
    decoder::Decoder,
    engine::{
        self, AdapterId, Engine, Event, Finish, GenerationRequest, HiddenRequest, LabelScore, LoadAdapterError,
        Normalisation, ScoreRequest, SequenceId, SubmitError,
    },
    grammar::{Constraint, Form, GrammarEnv, GrammarError},
    specialist::hidden,
    tokenizer::{TokenId, Tokenizer},
};
use metier_traffic::wire::{
    FinishReason, LabelLogprob, LabelScores, Message, ResponseFormat, TokenLogprob, TopLogprob,
};

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

    fn reading(&self, text: &str) -> Result<Vec<u32>, BackendError> {
        let ids = hidden::prompt(&self.decoder, text).map_err(|error| BackendError::Failed(error.to_string()))?;
        Ok(ids.into_iter().map(|id| id.0).collect())
    }

    fn context_len(&self) -> usize {
        self.decoder.context_len()
    }

    fn vocabulary(&self) -> usize {
        self.decoder.network().config().vocabulary
    }

    fn constraint(&self, format: &ResponseFormat) -> Result<Option<Constraint>, BackendError> {
        let param = match format {
            ResponseFormat::Regex(_) | ResponseFormat::Choice(_) => "structured_outputs",
            _ => "response_format",
        };
        let form = match format {
            ResponseFormat::Text => return Ok(None),
            ResponseFormat::Regex(regex) => Form::Regex(regex.clone()),
            ResponseFormat::Choice(choices) => Form::Choice(choices.clone()),
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
            param,
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
    /// Labels that are being scored.
    labels: BTreeMap<u64, Vec<String>>,
}

impl PooledEngine {
    pub(crate) fn new(engine: Engine, pool: Arc<Pool>) -> Self {
        Self { engine, pool, with_logprobs: BTreeSet::new(), labels: BTreeMap::new() }
    }
}

impl Drive for PooledEngine {
    fn submit(&mut self, mut sequence: Sequence) -> Result<u64, BackendError> {
        if let Some((labels, scores)) = sequence.labels.take() {
            return self.submit_labels(sequence, labels, scores);
        }
        if sequence.reads {
            let request = HiddenRequest {
                prompt: sequence.prompt.into_iter().map(TokenId).collect(),
                adapter: sequence.adapter,
                kept_layers: sequence.kept_layers,
                scope: sequence.scope,
            };
            return self.engine.submit_hidden(request).map(|id| id.0).map_err(refused);
        }
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
            adapter: sequence.adapter,
            kept_layers: sequence.kept_layers,
            scope: sequence.scope,
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
        self.labels.remove(&id);
        self.engine.cancel(SequenceId(id));
    }

    fn is_idle(&self) -> bool {
        self.engine.is_idle()
    }

    fn load(&mut self, adapter: Arc<Adapter>) -> Result<AdapterId, LoadAdapterError> {
        self.engine.load_adapter(adapter)
    }

    fn unload(&mut self, id: AdapterId) {
        self.engine.unload_adapter(id);
    }
}

impl PooledEngine {
    /// The end of the turn is scored behind each label: what one label begins with may be another.
    fn submit_labels(
        &mut self,
        sequence: Sequence,
        labels: Vec<String>,
        scores: LabelScores,
    ) -> Result<u64, BackendError> {
        let request = ScoreRequest {
            prompt: sequence.prompt.into_iter().map(TokenId).collect(),
            labels: labels.clone(),
            with_end: true,
            normalisation: match scores {
                LabelScores::Sum => Normalisation::Sum,
                LabelScores::Mean => Normalisation::Mean,
            },
            adapter: sequence.adapter,
            kept_layers: sequence.kept_layers,
            scope: sequence.scope,
        };
        let SequenceId(id) = self.engine.submit_score(request).map_err(refused)?;
        self.labels.insert(id, labels);
        Ok(id)
    }

    fn translate(&mut self, event: Event) -> Option<(u64, Happened)> {
        match event {
            Event::Token { id, text, token, logprob, top } => {
                let tokenizer = self.engine.decoder().tokenizer();
                let logprob = self.with_logprobs.contains(&id.0).then(|| described(tokenizer, token, logprob, &top));
                Some((id.0, Happened::Token { text, logprob }))
            }
            Event::Scored { id, scores } => {
                let labels = self.labels.remove(&id.0)?;
                Some((id.0, Happened::Labels(ranked(labels, &scores))))
            }
            Event::Hidden { id, hidden } => Some((id.0, Happened::Hidden(hidden))),
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

/// Labels with their scores, the most probable first; equal ones in the caller's order.
fn ranked(labels: Vec<String>, scores: &[LabelScore]) -> Vec<LabelLogprob> {
    let scored = labels.into_iter().zip(scores);
    let mut ranked: Vec<LabelLogprob> = scored
        .map(|(label, score)| LabelLogprob {
            label,
            logprob: score.logprob,
            tokens: score.tokens as u64,
            share: score.share,
        })
        .collect();
    ranked.sort_by(|a, b| b.share.total_cmp(&a.share));
    ranked
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
        SubmitError::Labels | SubmitError::Label { .. } | SubmitError::SameLabel { .. } => {
            invalid("structured_outputs.choice", "invalid_value")
        }
        SubmitError::NoEnd => invalid("label_scores", "unsupported_parameter"),
        SubmitError::Constraint
        | SubmitError::UnknownToken { .. }
        | SubmitError::UnknownAdapter(_)
        | SubmitError::KeptLayers { .. } => BackendError::Failed(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::time::Duration;

    use metier_kernels::Tier;
    use metier_model::{
        EngineLimits,
        adapter::LoraFormat,
        engine::{CacheScope, WeightFormat},
        sample::Sampling,
        tiny,
    };
    use metier_traffic::wire::{ChatRequest, Role};
    use serde_json::{Value, json};
    use tokio::time::Instant;

    use super::*;
    use crate::{
        adapters::AdapterRefused,
        backend::{
            Backend,
            local::{LOCAL, LocalBase},
            permit_for,
        },
    };

    fn decoder() -> Arc<Decoder> {
        Arc::new(Decoder::from_bytes(tiny::gguf(7), "tiny", WeightFormat::AsFile).unwrap())
    }

    fn engine(decoder: Arc<Decoder>, adapter_bytes: usize) -> PooledEngine {
        let limits = EngineLimits { kv_cache_bytes: 16 << 20, adapter_bytes, ..Default::default() };
        PooledEngine::new(Engine::new(decoder, limits), Arc::new(Pool::new(1, Tier::detect())))
    }

    fn adapter(decoder: &Decoder, seed: u64) -> Arc<Adapter> {
        let base = decoder.network().config();
        let files = tiny::adapter(base, seed, 4, &[], 0.5);
        Arc::new(Adapter::from_bytes(files.config.as_bytes(), &files.weights, base, LoraFormat::F16).unwrap())
    }

    fn sequence(prompt: Vec<u32>, scope: CacheScope) -> Sequence {
        Sequence {
            prompt,
            max_tokens: 60,
            sampling: Sampling { temperature: 1.0, seed: 3, ..Sampling::default() },
            logit_bias: Vec::new(),
            stop: Vec::new(),
            top_logprobs: None,
            constraint: None,
            labels: None,
            lookup: false,
            adapter: None,
            kept_layers: None,
            reads: false,
            scope,
        }
    }

    #[tokio::test]
    async fn adapters_of_one_base_answer_together_what_they_answer_alone() {
        let decoder = decoder();
        let [first, second] = [1, 2].map(|seed| adapter(&decoder, seed));
        let prompting = Arc::new(ChatPrompting::new(Arc::clone(&decoder)));
        // Room for two, so that a third is taken only where one was let go of.
        let room = first.bytes() + second.bytes();
        let engine = engine(Arc::clone(&decoder), room);
        let base = LocalBase::start("tiny".into(), prompting, CacheScope::Private, engine).unwrap();
        let tuned = [base.with_adapter("first", first).unwrap(), base.with_adapter("second", second).unwrap()];
        let third = adapter(&decoder, 3);
        let full = base.with_adapter("third", Arc::clone(&third)).err().unwrap();
        assert!(matches!(full, AdapterRefused::Engine(LoadAdapterError::Full { .. })), "{full}");

        let permit = permit_for(LOCAL);
        let message = Message { role: Role::User, content: "hello".into() };
        let request =
            ChatRequest { max_tokens: Some(24), temperature: Some(0.0), ..ChatRequest::new("any", vec![message]) };
        let deadline = Instant::now() + Duration::from_secs(60);
        let ask = async |backend: &LocalBase| {
            let answer = backend.answer(&permit, &request, deadline).await.unwrap();
            (answer.model, answer.choices.into_iter().next().unwrap().message.content.unwrap())
        };
        let alone = [ask(&base).await, ask(&tuned[0]).await, ask(&tuned[1]).await];
        assert_eq!(alone.clone().map(|(model, _)| model), ["tiny", "first", "second"]);
        assert!(alone[0].1 != alone[1].1 && alone[1].1 != alone[2].1 && alone[0].1 != alone[2].1, "{alone:?}");
        let together = tokio::join!(ask(&base), ask(&tuned[0]), ask(&tuned[1]), ask(&tuned[0]), ask(&base));
        let expected = (&alone[0], &alone[1], &alone[2], &alone[1], &alone[0]);
        assert_eq!((&together.0, &together.1, &together.2, &together.3, &together.4), expected);

        let [first, second] = tuned;
        drop(first);
        let third = base.with_adapter("third", third).unwrap();
        assert_ne!(ask(&third).await.1, alone[1].1, "an id is never used twice");
        assert_eq!(ask(&second).await, alone[2], "the others stay");
    }

    #[test]
    fn choices_of_one_request_read_its_prompt_once() {
        let mut engine = engine(decoder(), 1 << 20);
        let prompt: Vec<u32> = (0..100).map(|i| i * 7 % 250).collect();
        let together = CacheScope::Group(4);
        for scope in [together, together, CacheScope::Private, together] {
            engine.submit(Sequence { max_tokens: 6, ..sequence(prompt.clone(), scope) }).unwrap();
        }
        while !engine.is_idle() {
            engine.step();
        }
        let cache = engine.engine.stats().cache;
        // Two of three take over three filled pages; then all is forgotten.
        assert_eq!((cache.saved_tokens, cache.used_bytes), (2 * 96, 0));
    }

    #[test]
    fn prefixes_are_remembered_only_where_all_callers_share_them() {
        let decoder = decoder();
        for (scope, hits) in [(CacheScope::Private, 0), (CacheScope::Tenant(0), 1)] {
            let mut engine = engine(Arc::clone(&decoder), 1 << 20);
            let answers = [0, 1].map(|_| {
                engine.submit(sequence((0..100).collect(), scope)).unwrap();
                let mut happened = Vec::new();
                while !engine.is_idle() {
                    happened.extend(engine.step().into_iter().map(|(_, happened)| happened));
                }
                happened
            });
            assert_eq!(answers[0], answers[1], "the same answer from a remembered prefix");
            assert_eq!(engine.engine.stats().cache.hits, hits, "{scope:?}");
        }
    }

    #[test]
    fn an_answer_has_the_form_that_was_asked_for() {
        let decoder = decoder();
        let prompting = ChatPrompting::new(Arc::clone(&decoder));
        let mut engine = engine(decoder, 1 << 20);
        let schema = json!({
            "type": "object", "properties": {"kind": {"enum": ["a", "b"]}, "sure": {"type": "boolean"}},
            "required": ["kind", "sure"], "additionalProperties": false,
        });
        let format = ResponseFormat::JsonSchema(json!({"name": "kinds", "schema": schema}));
        let constraint = prompting.constraint(&format).unwrap();
        engine.submit(Sequence { constraint, ..sequence(vec![5, 6], CacheScope::Private) }).unwrap();
        let (mut text, mut finished) = (String::new(), None);
        while !engine.is_idle() {
            for (_, happened) in engine.step() {
                match happened {
                    Happened::Token { text: more, .. } => text.push_str(&more),
                    Happened::Labels(_) | Happened::Hidden(_) => panic!("nobody asked for that"),
                    Happened::Done { finish, .. } => finished = Some(finish),
                }
            }
        }
        let answer: Value = serde_json::from_str(&text).unwrap();
        assert!(["a", "b"].contains(&answer["kind"].as_str().unwrap()) && answer["sure"].is_boolean(), "{text}");
        assert_eq!(finished, Some(FinishReason::Stop));
        for (format, right) in [
            (ResponseFormat::Regex("[0-9]{3}".into()), (|text| text.parse::<u16>().is_ok()) as fn(&str) -> bool),
            (ResponseFormat::Choice(vec!["yes".into(), "not sure".into()]), |text| ["yes", "not sure"].contains(&text)),
        ] {
            let constraint = prompting.constraint(&format).unwrap();
            engine.submit(Sequence { constraint, ..sequence(vec![5, 6], CacheScope::Private) }).unwrap();
            let mut text = String::new();
            while !engine.is_idle() {
                let tokens = engine.step().into_iter().filter_map(|(_, happened)| match happened {
                    Happened::Token { text, .. } => Some(text),
                    Happened::Labels(_) | Happened::Hidden(_) | Happened::Done { .. } => None,
                });
                text.extend(tokens);
            }
            assert!(right(&text), "{format:?}: {text}");
        }
        let bad = ResponseFormat::Regex("(".into());
        assert!(matches!(prompting.constraint(&bad), Err(BackendError::Invalid { param: "structured_outputs", .. })));
        let bad = ResponseFormat::JsonSchema(json!({"name": "bad", "schema": {"type": "integer", "not": {}}}));
        assert!(matches!(prompting.constraint(&bad), Err(BackendError::Invalid { param: "response_format", .. })));
    }

    #[test]
    fn labels_are_scored_beside_others_and_the_most_probable_is_first() {
        let mut engine = engine(decoder(), 1 << 20);
        let texts = ["no", "yes", "yes, but later"].map(String::from).to_vec();
        let scored = |engine: &mut PooledEngine, labels: &[String], scores| {
            let labels = Some((labels.to_vec(), scores));
            engine.submit(Sequence { labels, ..sequence((5..90).collect(), CacheScope::Private) })
        };
        let mut ids = Vec::new();
        for scores in [LabelScores::Sum, LabelScores::Mean] {
            ids.push(scored(&mut engine, &texts, scores).unwrap());
            engine.submit(sequence(vec![5, 6], CacheScope::Private)).unwrap();
        }
        let gone = scored(&mut engine, &texts, LabelScores::Sum).unwrap();
        engine.cancel(gone);
        let (mut found, mut done) = (BTreeMap::new(), BTreeSet::new());
        while !engine.is_idle() {
            for (id, happened) in engine.step() {
                match happened {
                    Happened::Labels(labels) => drop(found.insert(id, labels)),
                    Happened::Done { completion_tokens, .. } if ids.contains(&id) => {
                        assert!(found.contains_key(&id) && completion_tokens == 0);
                        done.insert(id);
                    }
                    _ => {}
                }
            }
        }
        assert_eq!((found.keys().copied().collect::<Vec<_>>(), done.len()), (ids, 2));
        assert!(engine.labels.is_empty());
        for labels in found.values() {
            assert!((labels.iter().map(|one| one.share).sum::<f32>() - 1.0).abs() < 1e-5, "{labels:?}");
            assert!(labels.is_sorted_by(|a, b| a.share >= b.share), "{labels:?}");
            let mut names: Vec<_> = labels.iter().map(|one| one.label.clone()).collect();
            names.sort();
            assert_eq!(names, texts);
        }
        for labels in [vec![], vec!["a".into(), "a".into()], vec![String::new()]] {
            let error = scored(&mut engine, &labels, LabelScores::Sum).unwrap_err();
            assert!(matches!(error, BackendError::Invalid { param: "structured_outputs.choice", .. }), "{error}");
        }
    }
}
