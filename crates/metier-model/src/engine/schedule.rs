//! Who gets a place, and which tokens a step reads.
//!
//! Waiting requests stand in *lanes*, one for each adapter and tenant. Lanes take turns, one request a turn, and inside a lane the
//! order is that of arrival: whoever floods one specialist waits behind himself. The request whose turn it is is not overtaken
//! while it waits for cache, so a large one cannot starve either. A request whose prompt a running one is reading for it (they share a
//! beginning, and may share pages) is passed over until that one has read it.
//!
//! The prompts that are being read share a step's budget: half of it belongs to the oldest, so that a long prompt is sure to be
//! read; the other half goes to those that have least left, so that short prompts pass a long one.

use std::{collections::VecDeque, sync::Arc};

use super::{
    AdapterId, CacheScope, Engine, GenerationRequest, SequenceId,
    score::{Labels, MAX_SCORED_ROWS},
    sequence::Sequence,
};
use crate::{
    adapter::Adapter,
    cache::{
        KvCache, PAGE_POSITIONS,
        prefix::{PrefixKey, Sharers},
    },
    tokenizer::TokenId,
};

/// Prompt tokens that one step reads while others write: what bounds the time between two of their tokens.
///
/// Half of it and a quarter of [`PREFILL_TOKENS_ALONE`] cost 8 clients (64 tokens in, 64 out, SmolLM2-135M Q4_1, AVX2) 13 % of
/// their throughput and a quarter more until the slowest first token: sequences that start apart write in smaller batches.
pub const PREFILL_TOKENS_PER_STEP: usize = 128;
/// Prompt tokens that one step reads while nobody writes.
pub const PREFILL_TOKENS_ALONE: usize = 512;

/// Rows of a step in which tokens are proposed, at most: those that read what is written, of all sequences, and proposed ones.
/// With more of them a step is bound by arithmetic, and a wrong proposal costs everybody time.
pub const LOOKUP_ROWS: usize = 16;

/// A request without a place.
pub(super) struct Waiting {
    pub(super) id: SequenceId,
    pub(super) request: GenerationRequest,
    pub(super) adapter: Option<Arc<Adapter>>,
    pub(super) task: Task,
}

/// What is wanted behind the prompt.
pub(super) enum Task {
    /// Tokens.
    Write,
    /// How probable these are.
    Score(Labels),
    /// Nothing: its own last row.
    Read,
}

/// Requests of a lane share this.
type LaneKey = (Option<AdapterId>, CacheScope);

/// Requests without a place: lanes that take turns.
#[derive(Default)]
pub(super) struct Queue {
    lanes: VecDeque<(LaneKey, VecDeque<Waiting>)>,
    len: usize,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn push(&mut self, waiting: Waiting) {
        let key = (waiting.request.adapter, waiting.request.scope);
        self.len += 1;
        match self.lanes.iter_mut().find(|(lane, _)| *lane == key) {
            Some((_, lane)) => lane.push_back(waiting),
            None => self.lanes.push_back((key, VecDeque::from([waiting]))),
        }
    }

    /// The request whose turn it is.
    fn front(&self) -> Option<&Waiting> {
        self.lanes.front().and_then(|(_, lane)| lane.front())
    }

    /// Takes it; its lane goes behind the others.
    fn pop(&mut self) -> Option<Waiting> {
        let (key, mut lane) = self.lanes.pop_front()?;
        let waiting = lane.pop_front()?;
        self.len -= 1;
        if !lane.is_empty() {
            self.lanes.push_back((key, lane));
        }
        Some(waiting)
    }

    /// Puts the lane whose turn it is behind the others.
    fn pass(&mut self) {
        if !self.lanes.is_empty() {
            self.lanes.rotate_left(1);
        }
    }

    /// Whether requests wait in a lane of this scope.
    pub(super) fn holds(&self, scope: CacheScope) -> bool {
        self.lanes.iter().any(|((_, of), _)| *of == scope)
    }

    pub(super) fn remove(&mut self, id: SequenceId) -> Option<Waiting> {
        let find = |(at, (_, lane)): (usize, &(LaneKey, VecDeque<Waiting>))| {
            Some((at, lane.iter().position(|waiting| waiting.id == id)?))
        };
        let (lane_idx, at) = self.lanes.iter().enumerate().find_map(find)?;
        let lane = &mut self.lanes[lane_idx].1;
        let waiting = lane.remove(at)?;
        if lane.is_empty() {
            self.lanes.remove(lane_idx);
        }
        self.len -= 1;
        Some(waiting)
    }
}

impl Engine {
    /// Gives waiting requests a place while there is one.
    pub(super) fn admit(&mut self) {
        let mut passed = 0;
        while self.running.len() < self.limits.max_sequences.max(1) && passed < self.queue.lanes.len() {
            let Some(Waiting { request, .. }) = self.queue.front() else { return };
            let key = self.key_of(request);
            if key.as_ref().is_some_and(|key| is_being_read(&mut self.cache, &self.running, key, &request.prompt)) {
                self.queue.pass();
                passed += 1;
                continue;
            }
            let positions = request.prompt.len() + request.max_tokens;
            let kept = request.kept_layers.as_ref();
            let Some(cache) = self.cache.reserve(key.as_ref(), kept, &request.prompt, positions) else { return };
            let waiting = self.queue.pop().expect("there is a front");
            let (kept, prompt) = (waiting.request.kept_layers.as_ref(), waiting.request.prompt.len());
            let room = match &waiting.task {
                Task::Write | Task::Read => Vec::new(),
                Task::Score(labels) => {
                    let others = labels.useful_branches().saturating_sub(1);
                    self.cache.reserve_branches(kept, prompt + labels.stem().len(), positions, others)
                }
            };
            self.running.push(Sequence::new(waiting, key, cache, room));
            passed = 0;
        }
    }

    /// Under which a request shares pages.
    fn key_of(&self, request: &GenerationRequest) -> Option<PrefixKey> {
        // An adapter that was unloaded meanwhile serves this request, but nothing is remembered for it any more.
        let loaded = request.adapter.is_none_or(|id| self.adapters.get(id).is_some());
        let sharers = match request.scope {
            CacheScope::Tenant(tenant) if loaded => Sharers::Tenant(tenant),
            CacheScope::Group(group) if loaded => Sharers::Group(group),
            _ => return None,
        };
        Some(PrefixKey { sharers, adapter: request.adapter.map(|id| id.0), kept: request.kept_layers.clone() })
    }

    /// Chooses the tokens that each sequence reads in this step.
    pub(super) fn plan(&mut self) {
        let mut reading = Vec::new();
        let mut writing_rows = 0;
        for (i, sequence) in self.running.iter_mut().enumerate() {
            sequence.step_tokens.clear();
            if sequence.finish.is_some() {
                continue;
            }
            if sequence.unread.is_empty() {
                reading.push((sequence.left_to_read(), i));
            } else {
                writing_rows += sequence.plan_writing();
            }
        }
        let mut left = LOOKUP_ROWS.saturating_sub(writing_rows);
        for sequence in self.running.iter_mut().filter(|sequence| !sequence.step_tokens.is_empty()) {
            left -= sequence.propose(left);
        }
        let budget = if writing_rows > 0 { PREFILL_TOKENS_PER_STEP } else { PREFILL_TOKENS_ALONE };
        let mut scored_rows = MAX_SCORED_ROWS;
        for (i, tokens) in shares(&reading, budget) {
            self.running[i].plan_reading(tokens, &mut scored_rows);
        }
    }
}

/// Whether a running sequence is about to have read at least half of what a prompt would have to read.
fn is_being_read(cache: &mut KvCache, running: &[Sequence], key: &PrefixKey, prompt: &[TokenId]) -> bool {
    let common = |other: &[TokenId]| prompt.iter().zip(other).take_while(|(a, b)| a == b).count();
    let readers =
        running.iter().filter(|sequence| sequence.is_reading_its_prompt() && sequence.key.as_ref() == Some(key));
    let Some(shared) = readers.map(|reader| common(&reader.request.prompt)).max() else { return false };
    // Pages that are not full are remembered only when their sequence ends.
    let shared = shared / PAGE_POSITIONS * PAGE_POSITIONS;
    let remembered = cache.remembered(key, prompt);
    shared > remembered && (shared - remembered) * 2 >= prompt.len() - remembered
}

/// How many tokens each prompt may read: `reading` holds (tokens left, who), oldest first.
fn shares(reading: &[(usize, usize)], budget: usize) -> Vec<(usize, usize)> {
    let Some((&(oldest_left, oldest), others)) = reading.split_first() else { return Vec::new() };
    let mut others = others.to_vec();
    others.sort_unstable();
    let mut left = budget - oldest_left.min(budget / 2);
    let mut shares = vec![(oldest, budget - left)];
    for (tokens, who) in others {
        let share = tokens.min(left);
        left -= share;
        shares.push((who, share));
    }
    shares[0].1 += (oldest_left - shares[0].1).min(left);
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_share_a_step() {
        assert_eq!(shares(&[], 128), []);
        assert_eq!(shares(&[(1000, 0)], 128), [(0, 128)], "alone");
        assert_eq!(shares(&[(1000, 0), (20, 1), (90, 2)], 128), [(0, 64), (1, 20), (2, 44)], "short ones pass");
        assert_eq!(shares(&[(1000, 0), (20, 1)], 128), [(0, 108), (1, 20)], "what is left goes to the oldest");
        assert_eq!(shares(&[(8, 3), (500, 1), (500, 2)], 128), [(3, 8), (1, 120), (2, 0)]);
    }
}
