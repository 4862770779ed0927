//! Many sequences, one base.
//!
//! **Question:** which tokens come next, for everybody at once? **In:** requests (ids, sampling with a seed, stops; or labels to
//! score; or texts to read for a head). **Out:** events, step by step. **Absent:** threads, clocks, randomness, sockets: whoever owns an engine calls [`Engine::step`] and lends
//! a pool.
//!
//! ```text
//! submit → queue ──admit (slot and cache pages free; adapters and tenants take turns)──▶ prefill … ▶ decode … ▶ Done
//! one step = one forward pass: a token of every decoding sequence, with those behind it that its form makes certain or its text
//! proposes, + prompt tokens of the prefilling ones, up to a budget
//! ```
//!
//! Sequences of different adapters and of different kept layers share each step and each product with the base's weights; only the
//! low-rank deltas are computed apart.
//!
//! Prompts are read in chunks, so that a long one never stops the others' answers for more than a step. A sequence reserves all its cache at admission and can therefore not fail later. What a sequence writes does not depend
//! on who shares its batch, to the last bit of its logits.

mod adapters;
mod event;
mod hidden;
mod lookup;
mod request;
mod schedule;
mod score;
mod sequence;
mod stop;

use std::sync::Arc;

use metier_kernels::Pool;

use self::{
    adapters::Adapters,
    schedule::{Queue, Task, Waiting},
    sequence::Sequence,
};
pub use self::{
    adapters::{AdapterId, LoadAdapterError},
    event::{Event, Finish, Generation, LookupStats, SequenceId, TokenLogprob},
    hidden::HiddenRequest,
    lookup::MAX_PROPOSAL,
    request::{CacheScope, EngineLimits, GenerationRequest, MAX_STOP_BYTES, MAX_STOPS, MAX_TOP_LOGPROBS, SubmitError},
    schedule::{LOOKUP_ROWS, PREFILL_TOKENS_ALONE, PREFILL_TOKENS_PER_STEP},
    score::{LabelScore, MAX_BRANCHES, MAX_LABEL_BYTES, MAX_LABELS, MAX_SCORED_ROWS, Normalisation, ScoreRequest},
};
pub use crate::{
    arch::transformer::WeightFormat,
    cache::KeptLayers,
    decoder::{Decoder, DecoderError},
    sample::Sampling,
};
use crate::{
    arch::transformer::{Outputs, Workspace},
    cache::{CacheStats, KvCache, prefix::Sharers},
    grammar::ConstraintStats,
    tokenizer::TokenId,
};

/// Runs sequences over one decoder.
pub struct Engine {
    decoder: Arc<Decoder>,
    limits: EngineLimits,
    cache: KvCache,
    adapters: Adapters,
    queue: Queue,
    running: Vec<Sequence>,
    cancelled: Vec<Event>,
    lookup: LookupStats,
    constraints: ConstraintStats,
    workspace: Workspace,
    next_id: u64,
}

/// What an engine holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Requests that wait for a place.
    pub queued: usize,
    /// Sequences that are read or written.
    pub running: usize,
    /// Adapters that requests can name.
    pub adapters: usize,
    /// Bytes of adapters that are loaded or still in use.
    pub adapter_bytes: usize,
    /// Keys and values.
    pub cache: CacheStats,
    /// Tokens proposed so far.
    pub lookup: LookupStats,
    /// Asked of forms so far.
    pub constraints: ConstraintStats,
}

impl Engine {
    /// An engine without sequences.
    pub fn new(decoder: Arc<Decoder>, limits: EngineLimits) -> Self {
        let cache = KvCache::new(decoder.network().config().cache(), limits.kv_cache_bytes);
        let (adapters, queue) = (Adapters::default(), Queue::default());
        let (running, cancelled, lookup) = (Vec::new(), Vec::new(), LookupStats::default());
        let (constraints, workspace) = (ConstraintStats::default(), Workspace::default());
        Self { decoder, limits, cache, adapters, queue, running, cancelled, lookup, constraints, workspace, next_id: 0 }
    }

    /// The decoder.
    pub fn decoder(&self) -> &Arc<Decoder> {
        &self.decoder
    }

    /// Takes a request, or says why not. Nothing is computed yet.
    pub fn submit(&mut self, request: GenerationRequest) -> Result<SequenceId, SubmitError> {
        self.enqueue(request, Task::Write)
    }

    /// Takes labels to score, or says why not. They wait, are admitted and share steps like any request; [`Event::Scored`] brings
    /// the scores.
    pub fn submit_score(&mut self, request: ScoreRequest) -> Result<SequenceId, SubmitError> {
        let (request, labels) = request.into_labels(&self.decoder)?;
        self.enqueue(request, Task::Score(labels))
    }

    fn enqueue(&mut self, request: GenerationRequest, task: Task) -> Result<SequenceId, SubmitError> {
        request.check(self.decoder.network().config(), &self.limits)?;
        if request.constraint.as_ref().is_some_and(|constraint| *constraint.base() != self.decoder.base().digest) {
            return Err(SubmitError::Constraint);
        }
        let named = |id| self.adapters.get(id).cloned().ok_or(SubmitError::UnknownAdapter(id));
        let adapter = request.adapter.map(named).transpose()?;
        if self.queue.len() >= self.limits.max_queue {
            return Err(SubmitError::QueueFull { limit: self.limits.max_queue });
        }
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        self.queue.push(Waiting { id, request, adapter, task });
        Ok(id)
    }

    /// Nothing waits, runs, or has yet to be reported.
    pub fn is_idle(&self) -> bool {
        self.queue.len() == 0 && self.running.is_empty() && self.cancelled.is_empty()
    }

    /// Requests that wait for a place.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Sequences that are read or written.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// What it holds, and what its cache has saved.
    pub fn stats(&self) -> EngineStats {
        EngineStats {
            queued: self.queue.len(),
            running: self.running.len(),
            adapters: self.adapters.len(),
            adapter_bytes: self.adapters.bytes(),
            cache: self.cache.stats(),
            lookup: self.lookup,
            constraints: self.constraints,
        }
    }

    /// Ends a sequence; the next step reports it as done. Unknown and finished ids are ignored.
    pub fn cancel(&mut self, id: SequenceId) {
        let (prompt_tokens, completion_tokens) = if let Some(waiting) = self.queue.remove(id) {
            self.forget_group(waiting.request.scope);
            (waiting.request.prompt.len(), 0)
        } else if let Some(at) = self.running.iter().position(|sequence| sequence.id == id) {
            let sequence = self.running.remove(at);
            let counts = (sequence.request.prompt.len(), sequence.written.len());
            self.give_back(sequence);
            counts
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
        let Self { running, cache, lookup, constraints, workspace, .. } = self;
        let (vocabulary, width) = (decoder.network().config().vocabulary, decoder.network().config().width);
        let stepped = pool.enter(|| {
            let mut stepping: Vec<(usize, &mut Sequence)> = running.iter_mut().enumerate().collect();
            // Rows of one adapter lie under each other: they share a pass over its weights.
            stepping.sort_by_key(|(i, sequence)| (sequence.request.adapter, *i));
            let (mut rows, mut spans) = (Vec::new(), Vec::new());
            for (i, sequence) in stepping {
                let n_spans = spans.len();
                let wanted = sequence.spans(&mut spans);
                if spans.len() > n_spans {
                    rows.push((i, wanted));
                }
            }
            if spans.is_empty() {
                return Vec::new();
            }
            let Outputs { mut logits, mut hidden } = decoder.network().forward(pool, &mut spans, workspace);
            drop(spans);
            let mut stepped = Vec::new();
            for (i, wanted) in rows {
                let (rest, width) = if running[i].reads { (&mut hidden, width) } else { (&mut logits, vocabulary) };
                let (own, others) = rest.split_at(wanted * width);
                *rest = others;
                stepped.push((i, own));
            }
            stepped.sort_by_key(|(i, _)| *i);
            let mut events = Vec::new();
            for (i, outputs) in stepped {
                let sequence = &mut running[i];
                if let (true, Some(key)) = (sequence.has_just_read_its_prompt(), &sequence.key) {
                    cache.remember(key, &sequence.request.prompt, &mut sequence.cache);
                }
                events.extend(sequence.take(&decoder, pool, outputs));
                let LookupStats { proposed_tokens, right_tokens } = std::mem::take(&mut sequence.looked_up);
                lookup.proposed_tokens += proposed_tokens;
                lookup.right_tokens += right_tokens;
                *constraints += sequence.take_constraint_stats();
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
                completion_tokens: sequence.written.len(),
            });
            self.give_back(sequence);
        }
        events
    }

    /// Frees a sequence's pages, or remembers them.
    fn give_back(&mut self, sequence: Sequence) {
        let tokens = sequence.tokens();
        if let Some(scoring) = sequence.scoring {
            let (forks, room) = scoring.into_forks();
            forks.into_iter().for_each(|fork| self.cache.give_back(None, &[], fork));
            room.into_iter().for_each(|room| self.cache.give_back_room(room));
        }
        self.cache.give_back(sequence.key.as_ref(), &tokens, sequence.cache);
        self.forget_group(sequence.request.scope);
    }

    /// Forgets what a group has read when the last of it has ended.
    fn forget_group(&mut self, scope: CacheScope) {
        let CacheScope::Group(group) = scope else { return };
        if !self.queue.holds(scope) && !self.running.iter().any(|sequence| sequence.request.scope == scope) {
            self.cache.forget(|key| key.sharers == Sharers::Group(group));
        }
    }

    /// Steps until everybody is done; whole answers in the order of submission. Scores and hidden states are not kept: for them, call
    /// [`step`](Self::step).
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
                    Event::Scored { .. } | Event::Hidden { .. } => {}
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
