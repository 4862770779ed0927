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

mod event;
mod request;
mod schedule;
mod sequence;
mod stop;

use std::{collections::VecDeque, sync::Arc};

use metier_kernels::Pool;

use self::sequence::Sequence;
pub use self::{
    event::{Event, Finish, Generation, SequenceId, TokenLogprob},
    request::{EngineLimits, GenerationRequest, MAX_STOP_BYTES, MAX_STOPS, MAX_TOP_LOGPROBS, SubmitError},
    schedule::PREFILL_TOKENS_PER_STEP,
};
pub use crate::{
    arch::transformer::WeightFormat,
    decoder::{Decoder, DecoderError},
    sample::Sampling,
};
use crate::{
    arch::transformer::{Span, Wanted},
    cache::PageStore,
    tokenizer::TokenId,
};

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

impl Engine {
    /// An engine without sequences.
    pub fn new(decoder: Arc<Decoder>, limits: EngineLimits) -> Self {
        let pages = PageStore::new(decoder.network().config().cache(), limits.kv_cache_bytes);
        Self { decoder, limits, pages, queue: VecDeque::new(), running: Vec::new(), cancelled: Vec::new(), next_id: 0 }
    }

    /// The decoder.
    pub fn decoder(&self) -> &Arc<Decoder> {
        &self.decoder
    }

    /// Takes a request, or says why not. Nothing is computed yet.
    pub fn submit(&mut self, request: GenerationRequest) -> Result<SequenceId, SubmitError> {
        request.check(self.decoder.network().config(), &self.limits)?;
        if self.queue.len() >= self.limits.max_queue {
            return Err(SubmitError::QueueFull { limit: self.limits.max_queue });
        }
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        self.queue.push_back((id, request));
        Ok(id)
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
        let vocabulary = decoder.network().config().vocabulary;
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
            let logits = decoder.network().forward(pool, &mut spans);
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
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Engine({:?}, {} queued, {} running)", self.decoder, self.queue.len(), self.running.len())
    }
}

#[cfg(test)]
mod tests;
