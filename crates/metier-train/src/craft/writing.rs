//! What does a decoder write, asked as it will be asked in service? Texts in; answers with the likelihood of their tokens out.
//!
//! The engine that serves, greedily, under the constraint of the schema, with the adapter in the form in which it is served: what is measured
//! here is what answers later. Prompts begin alike (the instruction), which the engine reads once.

use std::{collections::BTreeMap, sync::Arc};

use metier_kernels::Pool;
use metier_model::{
    Adapter, Decoder, Engine, EngineLimits, Progress, TokenId, Unit,
    chat::{ChatError, ChatMessage},
    engine::{
        AdapterId, CacheScope, Event, Finish, GenerationRequest, KeptLayers, LoadAdapterError, ScoreRequest,
        SubmitError,
    },
    grammar::{Constraint, Form, GrammarEnv, GrammarError},
    sample::Sampling,
    specialist::{Written, generation},
    tokenizer::TokenizerError,
};
use serde_json::Value;

use super::lora::Row;

/// Sequences that are written at the same time.
const SEQUENCES: usize = 16;
/// Keys and values of all of them together, in bytes: as much as a server has, which could not answer what needs more.
const KV_CACHE_BYTES: usize = 192 << 20;
/// Room for an answer beyond the longest that was seen: half as much again, and this many tokens.
const SPARE_TOKENS: usize = 8;

/// A decoder cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// Its template does not take the conversation.
    #[error("cannot write the prompt with the decoder's template")]
    Template(#[from] ChatError),
    /// A text cannot be tokenised.
    #[error("cannot tokenise a text")]
    Text(#[from] TokenizerError),
    /// Nothing tells it to stop.
    #[error("no token of this decoder ends an answer")]
    NoEnd,
    /// The schema cannot be enforced.
    #[error("cannot use the schema")]
    Schema(#[from] GrammarError),
    /// An adapter is not taken.
    #[error("the engine does not take the adapter")]
    Adapter(#[from] LoadAdapterError),
    /// A prompt is not taken.
    #[error("the engine does not take the prompt of text {idx}")]
    Prompt {
        /// Its index.
        idx: usize,
        /// Why.
        #[source]
        source: SubmitError,
    },
}

/// One answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// What it says.
    pub text: String,
    /// ln p of its tokens, without the one that ended it.
    pub logprobs: Vec<f32>,
    /// It ended by itself.
    pub is_whole: bool,
}

impl Answer {
    /// As a specialist judges it.
    pub fn written(&self) -> Written<'_> {
        Written { logprobs: &self.logprobs, is_whole: self.is_whole }
    }

    /// What the calibrator reads.
    pub fn margins(&self) -> Vec<f32> {
        generation::margins(&self.logprobs).to_vec()
    }
}

/// A decoder with an instruction.
pub struct Writer {
    engine: Engine,
    decoder: Arc<Decoder>,
    instruction: String,
    constraint: Option<Constraint>,
    /// The layers that are run; `None`: all.
    kept: Option<KeptLayers>,
    end: TokenId,
    max_tokens: usize,
}

impl Writer {
    /// Compiles the schema, and finds out how the template ends an answer.
    ///
    /// # Errors
    ///
    /// Where the decoder has no template or none that takes a system message, or the schema cannot be enforced.
    pub fn new(decoder: Arc<Decoder>, instruction: &str, schema: Option<&Value>) -> Result<Self, WriteError> {
        let constraint = match schema {
            None => None,
            Some(schema) => {
                let env = GrammarEnv::new(Arc::clone(&decoder))?;
                Some(Constraint::compile(&Form::JsonSchema(schema.clone()), &env)?)
            }
        };
        let end = end_of_turn(&decoder, instruction)?;
        let limits =
            EngineLimits { max_sequences: SEQUENCES, kv_cache_bytes: KV_CACHE_BYTES, ..EngineLimits::default() };
        let engine = Engine::new(Arc::clone(&decoder), limits);
        let instruction = instruction.to_owned();
        Ok(Self { engine, decoder, instruction, constraint, kept: None, end, max_tokens: 1 })
    }

    /// The decoder.
    pub fn decoder(&self) -> &Arc<Decoder> {
        &self.decoder
    }

    /// The ids of the prompt for a text.
    ///
    /// # Errors
    ///
    /// Where the template or the tokenizer refuses.
    pub fn prompt(&self, text: &str) -> Result<Vec<TokenId>, WriteError> {
        prompt(&self.decoder, &self.instruction, text)
    }

    /// A row to learn from: the prompt, the expected text, and the token that ends it.
    ///
    /// # Errors
    ///
    /// As [`prompt`](Self::prompt).
    pub fn row(&self, text: &str, output: &str) -> Result<Row, WriteError> {
        let mut answer = self.decoder.tokenizer().encode(output)?;
        answer.push(self.end);
        Ok(Row { prompt: self.prompt(text)?, answer, soft: Vec::new() })
    }

    /// Whether the form allows a text as a whole; true without a schema.
    ///
    /// # Errors
    ///
    /// Where it cannot be tokenised.
    pub fn allows(&self, text: &str) -> Result<bool, WriteError> {
        let Some(constraint) = &self.constraint else { return Ok(true) };
        let mut state = constraint.begin();
        for id in self.decoder.tokenizer().encode(text)? {
            if state.commit(id).is_err() {
                return Ok(false);
            }
        }
        Ok(state.is_accepting() || state.is_finished())
    }

    /// Answers may have as many tokens as the longest of these, its end included, half as many more, and a few.
    pub fn allow_for(&mut self, longest: usize) {
        self.max_tokens = longest + longest / 2 + SPARE_TOKENS;
    }

    /// Answers may have so many tokens.
    pub fn limit(&mut self, max_tokens: usize) {
        self.max_tokens = max_tokens.max(1);
    }

    /// Runs these of the decoder's layers from now on; `None`: all.
    pub fn keep(&mut self, layers: Option<KeptLayers>) {
        self.kept = layers;
    }

    /// Tokens that an answer may have.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Puts an adapter beside the decoder.
    ///
    /// # Errors
    ///
    /// Where it is one of another base, or there is no room.
    pub fn load(&mut self, adapter: Arc<Adapter>) -> Result<AdapterId, WriteError> {
        Ok(self.engine.load_adapter(adapter)?)
    }

    /// How likely each of these answers is behind a text: ln p of all its tokens and of its end.
    ///
    /// # Errors
    ///
    /// Where the engine does not take them.
    pub fn score(
        &mut self,
        pool: &Pool,
        text: &str,
        answers: &[String],
        adapter: Option<AdapterId>,
    ) -> Result<Vec<f32>, WriteError> {
        let request = ScoreRequest {
            prompt: self.prompt(text)?,
            labels: answers.to_vec(),
            with_end: true,
            adapter,
            kept_layers: self.kept.clone(),
            ..ScoreRequest::default()
        };
        let asked = self.engine.submit_score(request).map_err(|source| WriteError::Prompt { idx: 0, source })?;
        let mut found = Vec::new();
        while !self.engine.is_idle() {
            for event in self.engine.step(pool) {
                match event {
                    Event::Scored { id, scores } if id == asked => {
                        found = scores.into_iter().map(|score| score.logprob).collect();
                    }
                    _ => {}
                }
            }
        }
        Ok(found)
    }

    /// The answers to these texts, in order; what each says does not depend on the others.
    ///
    /// # Errors
    ///
    /// Where a prompt is too long for the context.
    pub fn write_all(
        &mut self,
        pool: &Pool,
        texts: &[&str],
        adapter: Option<AdapterId>,
        stage: &str,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Vec<Answer>, WriteError> {
        let mut answers = vec![Answer::default(); texts.len()];
        let (mut next, mut done) = (0, 0u64);
        let mut open = BTreeMap::new();
        while next < texts.len() || !open.is_empty() {
            while next < texts.len() && open.len() < 2 * SEQUENCES {
                let request = GenerationRequest {
                    prompt: self.prompt(texts[next])?,
                    max_tokens: self.max_tokens,
                    sampling: Sampling { temperature: 0.0, ..Sampling::default() },
                    // As the gateway asks: every token with its likelihood, also one that its form makes certain.
                    top_logprobs: Some(0),
                    constraint: self.constraint.clone(),
                    adapter,
                    kept_layers: self.kept.clone(),
                    scope: CacheScope::Tenant(0),
                    ..GenerationRequest::default()
                };
                let id = match self.engine.submit(request) {
                    Ok(id) => id,
                    Err(source) => {
                        // The next question finds nobody else's answers.
                        open.keys().for_each(|id| self.engine.cancel(*id));
                        return Err(WriteError::Prompt { idx: next, source });
                    }
                };
                open.insert(id, next);
                next += 1;
            }
            for event in self.engine.step(pool) {
                match event {
                    Event::Token { id, text, token, logprob, .. } => {
                        let Some(&at) = open.get(&id) else { continue };
                        answers[at].text.push_str(&text);
                        if !self.decoder.ends().contains(&token) {
                            answers[at].logprobs.push(logprob);
                        }
                    }
                    Event::Scored { .. } | Event::Hidden { .. } => {}
                    Event::Done { id, finish, .. } => {
                        if let Some(at) = open.remove(&id) {
                            answers[at].is_whole = finish == Finish::Stop;
                            done += 1;
                            progress(Progress { stage, done, total: Some(texts.len() as u64), unit: Unit::Rows });
                        }
                    }
                }
            }
        }
        Ok(answers)
    }
}

fn messages(instruction: &str, text: &str) -> [ChatMessage; 2] {
    [ChatMessage::new("system", instruction), ChatMessage::new("user", text)]
}

fn prompt(decoder: &Decoder, instruction: &str, text: &str) -> Result<Vec<TokenId>, WriteError> {
    let prompt = decoder.render_chat(&messages(instruction, text), true, None)?;
    Ok(decoder.tokenizer().encode_prompt(&prompt)?)
}

/// The token by which the template ends an answer: the first of those that end one, behind the prompt of a whole conversation.
fn end_of_turn(decoder: &Decoder, instruction: &str) -> Result<TokenId, WriteError> {
    let before = prompt(decoder, instruction, "a")?.len();
    let [system, user] = messages(instruction, "a");
    let whole = decoder.render_chat(&[system, user, ChatMessage::new("assistant", "a")], false, None)?;
    let ids = decoder.tokenizer().encode_prompt(&whole)?;
    let behind = ids.get(before..).unwrap_or_default();
    behind.iter().copied().find(|id| decoder.ends().contains(id)).ok_or(WriteError::NoEnd)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use metier_kernels::Tier;
    use metier_model::{engine::WeightFormat, progress::silent, tiny};
    use serde_json::json;

    use super::*;

    fn writer(schema: Option<&Value>) -> Writer {
        let decoder = Arc::new(Decoder::from_bytes(tiny::gguf(7), "tiny", WeightFormat::AsFile).unwrap());
        Writer::new(decoder, "Say it.", schema).unwrap()
    }

    #[test]
    fn a_row_ends_as_the_template_ends_an_answer() {
        let writer = writer(None);
        let row = writer.row("hello", "yes").unwrap();
        let decoder = writer.decoder();
        assert_eq!(row.answer.last().copied(), decoder.tokenizer().id_of("<|im_end|>"));
        assert_eq!(decoder.tokenizer().decode(&row.answer[..row.answer.len() - 1]), "yes");
        // The prompt and the answer together are the conversation as the template writes it.
        let [system, user] = messages("Say it.", "hello");
        let whole = decoder.render_chat(&[system, user, ChatMessage::new("assistant", "yes")], false, None).unwrap();
        let ids = decoder.tokenizer().encode_prompt(&whole).unwrap();
        assert_eq!(ids[..row.prompt.len() + row.answer.len()], [row.prompt, row.answer].concat());
    }

    #[test]
    fn an_answer_does_not_depend_on_its_neighbours() {
        let pool = Pool::new(2, Tier::detect());
        let mut writer = writer(None);
        writer.allow_for(4);
        let texts: Vec<String> = (0..40).map(|i| format!("text {i} {}", "x".repeat(i % 7))).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let together = writer.write_all(&pool, &texts, None, "writing", &mut silent).unwrap();
        for (text, expected) in texts.iter().zip(&together) {
            let alone = writer.write_all(&pool, &[text], None, "writing", &mut silent).unwrap();
            assert_eq!(alone[0], *expected, "{text}");
            assert!(alone[0].logprobs.iter().all(|p| *p <= 0.0) && alone[0].logprobs.len() <= writer.max_tokens());
        }
        assert!(together.iter().any(|answer| !answer.is_whole), "a network that has learnt nothing does not end");
    }

    #[test]
    fn a_schema_is_kept_and_checked() {
        let pool = Pool::new(2, Tier::detect());
        let schema = json!({"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"], "additionalProperties": false});
        let mut writer = writer(Some(&schema));
        assert!(writer.allows("{\"a\": \"x\"}").unwrap());
        assert!(!writer.allows("{\"a\": \"z\"}").unwrap() && !writer.allows("{\"a\": ").unwrap());
        writer.allow_for(40);
        let answers = writer.write_all(&pool, &["p", "q"], None, "writing", &mut silent).unwrap();
        for answer in answers {
            assert!(
                answer.is_whole && ["{\"a\": \"x\"}", "{\"a\": \"y\"}"].contains(&answer.text.as_str()),
                "{answer:?}"
            );
        }
    }

    #[test]
    fn a_prompt_that_is_too_long_is_named() {
        let pool = Pool::new(1, Tier::detect());
        let mut writer = writer(None);
        let long = "x".repeat(tiny::CONTEXT);
        let error = writer.write_all(&pool, &["short", &long], None, "writing", &mut silent).unwrap_err();
        assert!(matches!(error, WriteError::Prompt { idx: 1, .. }), "{error}");
        assert_eq!(writer.write_all(&pool, &["short"], None, "writing", &mut silent).unwrap().len(), 1);
    }
}
