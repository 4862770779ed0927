//! One sequence that has a place: what it has read and written, and how its next token is drawn.

use std::sync::Arc;

use metier_kernels::Pool;

use super::{
    Event, Finish, GenerationRequest, LookupStats, SequenceId, TokenLogprob, lookup::Lookup, schedule::Task,
    schedule::Waiting, score::Scoring, stop::StopFilter,
};
use crate::{
    adapter::Adapter,
    arch::transformer::Span,
    cache::{BranchRoom, KvSequence, prefix::PrefixKey},
    decoder::Decoder,
    grammar::{ConstraintState, ConstraintStats},
    sample::{self, Sampler},
    tokenizer::TokenId,
};

pub(super) struct Sequence {
    pub(super) id: SequenceId,
    pub(super) request: GenerationRequest,
    pub(super) adapter: Option<Arc<Adapter>>,
    /// Under which its pages are remembered.
    pub(super) key: Option<PrefixKey>,
    pub(super) cache: KvSequence,
    sampler: Sampler,
    text: StopFilter,
    constraint: Option<ConstraintState>,
    /// Where labels are scored instead of tokens written.
    pub(super) scoring: Option<Scoring>,
    /// Its prompt's last row is wanted, and nothing else.
    pub(super) reads: bool,
    /// Its prompt is read.
    begun: bool,
    /// Tokens that are written and not yet read: the last one drawn, and those behind it that were certain. None while the prompt is
    /// being read.
    pub(super) unread: Vec<TokenId>,
    /// Where its next tokens may be looked up in its text.
    lookup: Option<Lookup>,
    /// Tokens that this step reads behind the written ones, in case they are drawn.
    proposed: Vec<TokenId>,
    /// Tokens proposed and drawn, since somebody counted.
    pub(super) looked_up: LookupStats,
    /// Tokens drawn, the one that ended the answer included.
    pub(super) written: Vec<TokenId>,
    /// Tokens of this step.
    pub(super) step_tokens: Vec<TokenId>,
    pub(super) finish: Option<Finish>,
}

impl Sequence {
    /// A sequence that has read what its cache holds. `room`: for the branches of its labels.
    pub(super) fn new(waiting: Waiting, key: Option<PrefixKey>, cache: KvSequence, room: Vec<BranchRoom>) -> Self {
        let Waiting { id, request, adapter, task } = waiting;
        let writes_nothing = matches!(task, Task::Write) && request.max_tokens == 0;
        let (labels, reads) = match task {
            Task::Write => (None, false),
            Task::Score(labels) => (Some(labels), false),
            Task::Read => (None, true),
        };
        Self {
            id,
            sampler: Sampler::new(request.sampling, &request.logit_bias, &request.prompt),
            lookup: request.lookup.then(|| Lookup::new(&request.prompt)),
            proposed: Vec::new(),
            looked_up: LookupStats::default(),
            constraint: request.constraint.as_ref().map(|constraint| constraint.begin()),
            text: StopFilter::new(&request.stop),
            finish: writes_nothing.then_some(Finish::Length),
            scoring: labels.map(|labels| Scoring::new(labels, room)),
            reads,
            begun: false,
            request,
            adapter,
            key,
            cache,
            unread: Vec::new(),
            written: Vec::new(),
            step_tokens: Vec::new(),
        }
    }

    /// What was asked of its form since somebody counted.
    pub(super) fn take_constraint_stats(&mut self) -> ConstraintStats {
        self.constraint.as_mut().map(ConstraintState::take_stats).unwrap_or_default()
    }

    /// Everything that it has read or will read next.
    pub(super) fn tokens(&self) -> Vec<TokenId> {
        self.request.prompt.iter().chain(&self.written).copied().collect()
    }

    /// What is read before the first token is written or the labels part: the prompt, and what all labels begin with.
    fn beginning(&self) -> usize {
        self.request.prompt.len() + self.scoring.as_ref().map_or(0, |scoring| scoring.stem().len())
    }

    /// Tokens that it could read at once before it writes.
    pub(super) fn left_to_read(&self) -> usize {
        match &self.scoring {
            Some(scoring) if scoring.has_branched() => scoring.unread(),
            _ => self.beginning() - self.cache.len(),
        }
    }

    /// Chooses at most so many of them for the next step. `scored`: rows that may still get logits for scores.
    pub(super) fn plan_reading(&mut self, tokens: usize, scored: &mut usize) {
        let (prompt, from) = (&self.request.prompt, self.cache.len());
        let Some(scoring) = &mut self.scoring else {
            self.step_tokens.extend_from_slice(&prompt[from..from + tokens]);
            return;
        };
        if scoring.has_branched() {
            *scored -= scoring.plan(tokens.min(*scored));
            return;
        }
        let unscored = (prompt.len() - 1).saturating_sub(from);
        let tokens = tokens.min(unscored + *scored);
        *scored -= tokens.saturating_sub(unscored);
        self.step_tokens.extend(prompt.iter().chain(scoring.stem()).skip(from).take(tokens));
    }

    /// Takes what is written for the next step, and says how many tokens those are.
    pub(super) fn plan_writing(&mut self) -> usize {
        self.step_tokens.append(&mut self.unread);
        self.step_tokens.len()
    }

    /// Adds at most so many proposed tokens to a step that reads written ones; says how many.
    pub(super) fn propose(&mut self, limit: usize) -> usize {
        let Some(lookup) = &mut self.lookup else { return 0 };
        // Behind the last token that may be written none is read.
        let limit = limit.min(self.request.max_tokens.saturating_sub(self.written.len() + 1));
        self.proposed = lookup.propose(limit);
        self.step_tokens.extend(&self.proposed);
        self.proposed.len()
    }

    /// The rows of the planned step; how many of them get logits.
    pub(super) fn spans<'a>(&'a mut self, spans: &mut Vec<Span<'a>>) -> usize {
        let (prompt, proposed) = (self.request.prompt.len(), self.proposed.len());
        let Self { scoring, step_tokens: tokens, cache, adapter, reads, .. } = self;
        let (adapter, scores) = (adapter.as_deref(), scoring.is_some());
        match scoring {
            Some(scoring) if scoring.has_branched() => return scoring.spans(cache, adapter, spans),
            _ if tokens.is_empty() => return 0,
            _ => {}
        }
        let to = cache.len() + tokens.len();
        // For scores behind the prompt's last token and behind each of the stem.
        let wanted = if scores { (to + 1).saturating_sub(prompt) } else { usize::from(to >= prompt) + proposed };
        let wanted = wanted.min(tokens.len());
        spans.push(Span { tokens, cache, wanted, adapter, hidden: *reads });
        wanted
    }

    /// Others may wait for what it reads.
    pub(super) fn is_reading_its_prompt(&self) -> bool {
        !self.begun && self.finish.is_none()
    }

    /// Says once that its prompt is read.
    pub(super) fn has_just_read_its_prompt(&mut self) -> bool {
        let read = self.cache.len() >= self.request.prompt.len();
        read && !std::mem::replace(&mut self.begun, read)
    }

    /// Goes on with the logits of the step's rows, after the step; where it reads, with its last row.
    pub(super) fn take(&mut self, decoder: &Decoder, pool: &Pool, logits: &[f32]) -> Vec<Event> {
        if self.reads {
            if logits.is_empty() {
                return Vec::new();
            }
            self.finish = Some(Finish::Stop);
            return vec![Event::Hidden { id: self.id, hidden: logits.to_vec() }];
        }
        let (prompt, beginning) = (self.request.prompt.len(), self.beginning());
        let Some(scoring) = &mut self.scoring else {
            return if logits.is_empty() { Vec::new() } else { self.draw(decoder, logits) };
        };
        if scoring.has_branched() {
            scoring.take_branches(decoder, pool, prompt, &mut self.cache, logits);
        } else {
            let read = (self.cache.len() + 1).saturating_sub(prompt);
            let rows = logits.len() / decoder.network().config().vocabulary;
            scoring.take_stem(decoder, pool, read - rows..read, logits);
            if self.cache.len() == beginning {
                scoring.branch_out(&self.cache);
            }
        }
        let Some(scores) = scoring.scores() else { return Vec::new() };
        self.finish = Some(Finish::Stop);
        vec![Event::Scored { id: self.id, scores }]
    }

    /// Draws tokens while it has their logits. `logits`: (1 + proposed, vocabulary), of which the first row holds, and each other
    /// one if its proposed token is written.
    fn draw(&mut self, decoder: &Decoder, logits: &[f32]) -> Vec<Event> {
        let vocabulary = decoder.network().config().vocabulary;
        let proposed = std::mem::take(&mut self.proposed);
        let (mut events, mut right) = (Vec::new(), 0);
        while self.finish.is_none() && self.unread.is_empty() {
            let written = self.written.len();
            events.extend(self.draw_one(decoder, &logits[right * vocabulary..][..vocabulary]));
            for token in &self.written[written..] {
                if self.unread.is_empty() && proposed.get(right) == Some(token) {
                    right += 1;
                } else {
                    self.unread.push(*token);
                }
            }
        }
        self.cache.truncate(self.cache.len() - (proposed.len() - right));
        if let (Some(lookup), false) = (&mut self.lookup, proposed.is_empty()) {
            lookup.learn(proposed.len(), right);
            self.looked_up.proposed_tokens += proposed.len() as u64;
            self.looked_up.right_tokens += right as u64;
        }
        events
    }

    /// Draws the next token from its logits, and writes those behind it that are certain.
    fn draw_one(&mut self, decoder: &Decoder, logits: &[f32]) -> Vec<Event> {
        let position = self.written.len();
        let token = match &mut self.constraint {
            None => self.sampler.pick(position, logits),
            Some(constraint) => match self.sampler.pick_allowed(position, logits, constraint) {
                Ok(token) => token,
                Err(_) => return self.give_up(),
            },
        };
        let token = TokenId(token);
        let (mut logprob, mut top) = (0.0, Vec::new());
        if let Some(n) = self.request.top_logprobs {
            let best;
            (logprob, best) = sample::logprobs(logits, token.0, usize::from(n));
            top = best.into_iter().map(|(id, logprob)| TokenLogprob { token: TokenId(id), logprob }).collect();
        }
        let mut events = Vec::from_iter(self.write(decoder, token, logprob, top));
        while self.finish.is_none() && self.request.top_logprobs.is_none() {
            let certain = self.constraint.as_mut().map(|constraint| constraint.forced().to_vec()).unwrap_or_default();
            if certain.is_empty() {
                break;
            }
            for token in certain {
                if self.finish.is_none() {
                    events.extend(self.write(decoder, token, 0.0, Vec::new()));
                }
            }
        }
        events
    }

    /// Adds a token to the answer.
    fn write(&mut self, decoder: &Decoder, token: TokenId, logprob: f32, top: Vec<TokenLogprob>) -> Option<Event> {
        self.written.push(token);
        self.sampler.wrote(token);
        if let Some(lookup) = &mut self.lookup {
            lookup.wrote(token);
        }
        let ended = decoder.ends().contains(&token);
        let mut text = String::new();
        if !ended {
            text = self.text.push(decoder.tokenizer().bytes_of(token));
        }
        let followed = self.constraint.as_mut().map_or(Ok(()), |constraint| constraint.commit(token));
        let complete = self.constraint.as_ref().is_some_and(ConstraintState::is_finished);
        if followed.is_err() {
            self.finish = Some(Finish::Constraint);
        } else if self.text.stopped() || ended || complete {
            self.finish = Some(Finish::Stop);
        } else if self.written.len() >= self.request.max_tokens {
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

    /// No token may be drawn. What was held back is text after all; it comes with the last token once more.
    fn give_up(&mut self) -> Vec<Event> {
        self.finish = Some(Finish::Constraint);
        let text = self.text.finish();
        let Some(&token) = self.written.last() else { return Vec::new() };
        if text.is_empty() {
            return Vec::new();
        }
        vec![Event::Token { id: self.id, text, token, logprob: 0.0, top: Vec::new() }]
    }
}
