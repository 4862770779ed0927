//! Many sequences, one base.
//!
//! **Question:** which tokens come next, for everybody at once? **In:** requests (ids, sampling with a seed, stops). **Out:**
//! events, step by step. **Absent:** threads, clocks, randomness, sockets: whoever owns an engine calls [`Engine::step`] and lends
//! a pool.
//!
//! ```text
//! submit → queue ──admit (slot and cache pages free, first come first served)──▶ prefill … ▶ decode … ▶ Done
//! one step = one forward pass: a token of every decoding sequence + up to 128 prompt tokens of the prefilling ones
//! ```
//!
//! Prompts are read in chunks, so that a long one never stops the others' answers for more than a step; the oldest is served
//! first. A sequence reserves all its cache at admission and can therefore not fail later. What a sequence writes does not depend
//! on who shares its batch, to the last bit of its logits.

use std::{collections::VecDeque, sync::Arc};

use metier_kernels::Pool;

pub use crate::{
    arch::llama::WeightFormat,
    decoder::{Decoder, DecoderError},
    sample::Sampling,
};
use crate::{
    arch::llama::{Span, Wanted},
    cache::{KvSequence, PageStore},
    sample::{self, Sampler},
    tokenizer::{TokenId, Utf8Stream},
};

/// Prompt tokens that one step reads, all sequences together.
pub const PREFILL_TOKENS_PER_STEP: usize = 128;
/// Stop texts of a request, at most.
pub const MAX_STOPS: usize = 16;
/// Bytes of a stop text, at most.
pub const MAX_STOP_BYTES: usize = 1024;
/// Alternatives that come with a token, at most.
pub const MAX_TOP_LOGPROBS: u8 = 20;

/// What an engine may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineLimits {
    /// Sequences that are read or written at the same time.
    pub max_sequences: usize,
    /// Requests that wait for a place.
    pub max_queue: usize,
    /// Bytes of keys and values. SmolLM2-135M needs 46 KB a token: 377 MB for its whole context of 8,192.
    pub kv_cache_bytes: usize,
}

impl Default for EngineLimits {
    fn default() -> Self {
        Self { max_sequences: 32, max_queue: 256, kv_cache_bytes: 384 << 20 }
    }
}

/// Names a sequence of one engine; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(pub u64);

/// What is to be continued, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerationRequest {
    /// At least one token.
    pub prompt: Vec<TokenId>,
    /// Tokens to write, at most.
    pub max_tokens: usize,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Texts that end the answer; they and what follows are never given out.
    pub stop: Vec<String>,
    /// So many alternatives with each token.
    pub top_logprobs: Option<u8>,
}

/// A request is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// Try later.
    #[error("{limit} requests are waiting already")]
    QueueFull {
        /// The bound.
        limit: usize,
    },
    /// Nothing to continue.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// More tokens than the model reads and writes.
    #[error("{prompt} prompt tokens and {max_tokens} new ones do not fit into the context of {context}")]
    TooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens asked for.
        max_tokens: usize,
        /// Tokens of the context.
        context: usize,
    },
    /// More cache than the engine has in all.
    #[error("the request needs {needed} bytes of cache, the engine has {limit}")]
    CacheTooSmall {
        /// Bytes for this request.
        needed: usize,
        /// Bytes in all.
        limit: usize,
    },
    /// An id outside the vocabulary.
    #[error("token {token} lies outside the vocabulary of {vocabulary}")]
    UnknownToken {
        /// The id.
        token: TokenId,
        /// Ids must be below.
        vocabulary: usize,
    },
    /// A stop text is empty or too long, or there are too many.
    #[error("stop texts must be 1 to {MAX_STOP_BYTES} bytes long, at most {MAX_STOPS} of them")]
    Stop,
    /// Too many alternatives.
    #[error("{0} alternatives a token are more than {MAX_TOP_LOGPROBS}")]
    TopLogprobs(u8),
    /// A temperature or top-p that is no number in range.
    #[error("temperature {temperature} and top-p {top_p} must be finite numbers of at least 0")]
    Sampling {
        /// As given.
        temperature: String,
        /// As given.
        top_p: String,
    },
}

/// A token and its log-probability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub token: TokenId,
    /// Natural logarithm of its probability at temperature 1, before top-k and top-p.
    pub logprob: f32,
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended its answer, or a stop text appeared.
    Stop,
    /// `max_tokens` were written.
    Length,
    /// It was cancelled.
    Cancelled,
}

/// What a step brought.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A sequence wrote a token.
    Token {
        /// The sequence.
        id: SequenceId,
        /// Text that is certain now: whole characters that cannot be part of a stop text. May be empty, and may come later than
        /// its token.
        text: String,
        /// The token. The token that ends an answer is reported only where held-back text comes with it.
        token: TokenId,
        /// Natural logarithm of its probability.
        logprob: f32,
        /// The most probable tokens, best first; empty unless asked for.
        top: Vec<TokenLogprob>,
    },
    /// A sequence ended; no event of it follows.
    Done {
        /// The sequence.
        id: SequenceId,
        /// Why.
        finish: Finish,
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Tokens drawn, the one that ended the answer included.
        completion_tokens: usize,
    },
}

/// A whole answer, from [`Engine::drain`].
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// The sequence.
    pub id: SequenceId,
    /// Its text.
    pub text: String,
    /// Its tokens, without the one that ended it.
    pub tokens: Vec<TokenId>,
    /// Why it ended.
    pub finish: Finish,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens drawn, the one that ended the answer included.
    pub completion_tokens: usize,
}

/// Runs sequences over one decoder.
pub struct Engine {
    decoder: Arc<Decoder>,
    limits: EngineLimits,
    pages: PageStore,
    queue: VecDeque<(SequenceId, GenerationRequest)>,
    running: Vec<Sequence>,
    cancelled: Vec<Event>,
    next_id: u64,
}

struct Sequence {
    id: SequenceId,
    request: GenerationRequest,
    cache: KvSequence,
    sampler: Sampler,
    text: StopFilter,
    /// Token that the next step reads; `None` while the prompt is being read.
    last: Option<TokenId>,
    drawn: usize,
    /// Tokens of this step.
    step_tokens: Vec<TokenId>,
    finish: Option<Finish>,
}

impl Engine {
    /// An engine without sequences.
    pub fn new(decoder: Arc<Decoder>, limits: EngineLimits) -> Self {
        let pages = PageStore::new(decoder.llama().config().cache(), limits.kv_cache_bytes);
        Self { decoder, limits, pages, queue: VecDeque::new(), running: Vec::new(), cancelled: Vec::new(), next_id: 0 }
    }

    /// The decoder.
    pub fn decoder(&self) -> &Arc<Decoder> {
        &self.decoder
    }

    /// Takes a request, or says why not. Nothing is computed yet.
    pub fn submit(&mut self, request: GenerationRequest) -> Result<SequenceId, SubmitError> {
        self.check(&request)?;
        if self.queue.len() >= self.limits.max_queue {
            return Err(SubmitError::QueueFull { limit: self.limits.max_queue });
        }
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        self.queue.push_back((id, request));
        Ok(id)
    }

    fn check(&self, request: &GenerationRequest) -> Result<(), SubmitError> {
        let config = self.decoder.llama().config();
        let (prompt, max_tokens) = (request.prompt.len(), request.max_tokens);
        if prompt == 0 {
            return Err(SubmitError::EmptyPrompt);
        }
        let positions = prompt.saturating_add(max_tokens);
        if positions > config.context {
            return Err(SubmitError::TooLong { prompt, max_tokens, context: config.context });
        }
        let (needed, limit) = (config.cache().bytes_for(positions), self.limits.kv_cache_bytes);
        if needed > limit {
            return Err(SubmitError::CacheTooSmall { needed, limit });
        }
        let vocabulary = config.vocabulary;
        if let Some(token) = request.prompt.iter().find(|id| id.0 as usize >= vocabulary) {
            return Err(SubmitError::UnknownToken { token: *token, vocabulary });
        }
        let stop_fits = |stop: &String| (1..=MAX_STOP_BYTES).contains(&stop.len());
        if request.stop.len() > MAX_STOPS || !request.stop.iter().all(stop_fits) {
            return Err(SubmitError::Stop);
        }
        if let Some(n) = request.top_logprobs.filter(|n| *n > MAX_TOP_LOGPROBS) {
            return Err(SubmitError::TopLogprobs(n));
        }
        let Sampling { temperature, top_p, .. } = request.sampling;
        if !(temperature.is_finite() && temperature >= 0.0 && top_p.is_finite() && top_p >= 0.0) {
            let (temperature, top_p) = (temperature.to_string(), top_p.to_string());
            return Err(SubmitError::Sampling { temperature, top_p });
        }
        Ok(())
    }

    /// Nothing waits, runs, or has yet to be reported.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.running.is_empty() && self.cancelled.is_empty()
    }

    /// Requests that wait for a place.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Sequences that are read or written.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Ends a sequence; the next step reports it as done. Unknown and finished ids are ignored.
    pub fn cancel(&mut self, id: SequenceId) {
        let (prompt_tokens, completion_tokens) =
            if let Some(at) = self.queue.iter().position(|(queued, _)| *queued == id) {
                let (_, request) = self.queue.remove(at).expect("found at this place");
                (request.prompt.len(), 0)
            } else if let Some(at) = self.running.iter().position(|sequence| sequence.id == id) {
                let sequence = self.running.remove(at);
                self.pages.give_back(sequence.cache);
                (sequence.request.prompt.len(), sequence.drawn)
            } else {
                return;
            };
        self.cancelled.push(Event::Done { id, finish: Finish::Cancelled, prompt_tokens, completion_tokens });
    }

    /// One forward pass over everybody; what came of it, in the order in which sequences were admitted.
    pub fn step(&mut self, pool: &Pool) -> Vec<Event> {
        let mut events = std::mem::take(&mut self.cancelled);
        self.admit();
        self.plan();
        let decoder = Arc::clone(&self.decoder);
        let running = &mut self.running;
        let vocabulary = decoder.llama().config().vocabulary;
        let stepped = pool.enter(|| {
            let mut wanting = Vec::new();
            let mut spans = Vec::new();
            for (i, sequence) in running.iter_mut().enumerate().filter(|(_, s)| !s.step_tokens.is_empty()) {
                let reads_all = sequence.cache.len() + sequence.step_tokens.len() >= sequence.request.prompt.len();
                let wanted = if reads_all { Wanted::Last } else { Wanted::None };
                if reads_all {
                    wanting.push(i);
                }
                spans.push(Span { tokens: &sequence.step_tokens, cache: &mut sequence.cache, wanted });
            }
            if spans.is_empty() {
                return Vec::new();
            }
            let logits = decoder.llama().forward(pool, &mut spans);
            drop(spans);
            let mut events = Vec::new();
            for (i, logits) in wanting.into_iter().zip(logits.chunks_exact(vocabulary)) {
                events.extend(running[i].draw(&decoder, logits));
            }
            events
        });
        events.extend(stepped);
        let mut at = 0;
        while at < self.running.len() {
            let Some(finish) = self.running[at].finish else {
                at += 1;
                continue;
            };
            let sequence = self.running.remove(at);
            events.push(Event::Done {
                id: sequence.id,
                finish,
                prompt_tokens: sequence.request.prompt.len(),
                completion_tokens: sequence.drawn,
            });
            self.pages.give_back(sequence.cache);
        }
        events
    }

    /// Steps until everybody is done; whole answers in the order of submission.
    pub fn drain(&mut self, pool: &Pool) -> Vec<Generation> {
        let mut open: Vec<(SequenceId, String, Vec<TokenId>)> = Vec::new();
        let mut done = Vec::new();
        while !self.is_idle() {
            for event in self.step(pool) {
                match event {
                    Event::Token { id, text, token, .. } => {
                        let at = open.iter().position(|(open, ..)| *open == id).unwrap_or_else(|| {
                            open.push((id, String::new(), Vec::new()));
                            open.len() - 1
                        });
                        open[at].1.push_str(&text);
                        if !self.decoder.ends().contains(&token) {
                            open[at].2.push(token);
                        }
                    }
                    Event::Done { id, finish, prompt_tokens, completion_tokens } => {
                        let at = open.iter().position(|(open, ..)| *open == id);
                        let (_, text, tokens) = at.map_or((id, String::new(), Vec::new()), |at| open.swap_remove(at));
                        done.push(Generation { id, text, tokens, finish, prompt_tokens, completion_tokens });
                    }
                }
            }
        }
        done.sort_by_key(|generation| generation.id);
        done
    }

    /// Gives waiting requests a place, in their order: a large one at the head is not overtaken, so it cannot starve.
    fn admit(&mut self) {
        while self.running.len() < self.limits.max_sequences.max(1) {
            let Some((_, request)) = self.queue.front() else { return };
            let Some(cache) = self.pages.reserve(request.prompt.len() + request.max_tokens) else { return };
            let (id, request) = self.queue.pop_front().expect("there is a front");
            let finish = (request.max_tokens == 0).then_some(Finish::Length);
            self.running.push(Sequence {
                id,
                sampler: Sampler::new(request.sampling),
                text: StopFilter::new(&request.stop),
                request,
                cache,
                last: None,
                drawn: 0,
                step_tokens: Vec::new(),
                finish,
            });
        }
    }

    /// Chooses the tokens that each sequence reads in this step.
    fn plan(&mut self) {
        let mut room = PREFILL_TOKENS_PER_STEP;
        for sequence in &mut self.running {
            sequence.step_tokens.clear();
            if sequence.finish.is_some() {
                continue;
            }
            if let Some(token) = sequence.last {
                sequence.step_tokens.push(token);
            } else {
                let rest = &sequence.request.prompt[sequence.cache.len()..];
                let chunk = &rest[..rest.len().min(room)];
                sequence.step_tokens.extend_from_slice(chunk);
                room -= chunk.len();
            }
        }
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Engine({:?}, {} queued, {} running)", self.decoder, self.queue.len(), self.running.len())
    }
}

impl Sequence {
    /// Draws the next token from its logits.
    fn draw(&mut self, decoder: &Decoder, logits: &[f32]) -> Option<Event> {
        let token = TokenId(self.sampler.pick(logits));
        let (logprob, top) = sample::logprobs(logits, token.0, usize::from(self.request.top_logprobs.unwrap_or(0)));
        let top = top.into_iter().map(|(id, logprob)| TokenLogprob { token: TokenId(id), logprob }).collect();
        self.drawn += 1;
        self.last = Some(token);
        let ended = decoder.ends().contains(&token);
        let mut text = String::new();
        if !ended {
            text = self.text.push(decoder.tokenizer().bytes_of(token));
        }
        if self.text.stopped() || ended {
            self.finish = Some(Finish::Stop);
        } else if self.drawn >= self.request.max_tokens {
            self.finish = Some(Finish::Length);
        }
        if self.finish.is_some() {
            text.push_str(&self.text.finish());
            if self.text.stopped() {
                self.finish = Some(Finish::Stop);
            }
        }
        (!ended || !text.is_empty()).then_some(Event::Token { id: self.id, text, token, logprob, top })
    }
}

/// Lets text through until a stop text appears; holds back what could be the beginning of one.
struct StopFilter {
    stops: Vec<String>,
    utf8: Utf8Stream,
    held: String,
    stopped: bool,
}

impl StopFilter {
    fn new(stops: &[String]) -> Self {
        Self { stops: stops.to_vec(), utf8: Utf8Stream::default(), held: String::new(), stopped: false }
    }

    fn stopped(&self) -> bool {
        self.stopped
    }

    /// Adds a token's bytes; returns the text that is certain now.
    fn push(&mut self, bytes: &[u8]) -> String {
        let text = self.utf8.push(bytes);
        self.admit(&text)
    }

    fn admit(&mut self, text: &str) -> String {
        if self.stopped {
            return String::new();
        }
        self.held.push_str(text);
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.held.truncate(at);
            self.stopped = true;
            return std::mem::take(&mut self.held);
        }
        let certain = (0..=self.held.len())
            .filter(|&at| self.held.is_char_boundary(at))
            .find(|&at| self.stops.iter().any(|stop| at < self.held.len() && stop.starts_with(&self.held[at..])))
            .unwrap_or(self.held.len());
        let rest = self.held.split_off(certain);
        std::mem::replace(&mut self.held, rest)
    }

    /// The end: what was held back is text after all.
    fn finish(&mut self) -> String {
        let text = self.utf8.finish();
        let mut out = self.admit(&text);
        if !self.stopped {
            out.push_str(&std::mem::take(&mut self.held));
        }
        out
    }
}

#[cfg(test)]
mod tests;
