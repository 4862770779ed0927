//! One sequence that has a place: what it has read and written, and how its next token is drawn.

use std::sync::Arc;

use super::{Event, Finish, GenerationRequest, SequenceId, TokenLogprob, stop::StopFilter};
use crate::{
    adapter::Adapter,
    cache::{KvSequence, prefix::PrefixKey},
    decoder::Decoder,
    grammar::ConstraintState,
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
    /// Token that the next step reads; `None` while the prompt is being read.
    pub(super) last: Option<TokenId>,
    /// Tokens behind it that are written already, because its form left no choice: read in the same step.
    pub(super) ahead: Vec<TokenId>,
    /// Tokens drawn, the one that ended the answer included.
    pub(super) written: Vec<TokenId>,
    /// Tokens of this step.
    pub(super) step_tokens: Vec<TokenId>,
    pub(super) finish: Option<Finish>,
}

impl Sequence {
    /// A sequence that has read what its cache holds.
    pub(super) fn new(
        id: SequenceId,
        request: GenerationRequest,
        adapter: Option<Arc<Adapter>>,
        key: Option<PrefixKey>,
        cache: KvSequence,
    ) -> Self {
        Self {
            id,
            sampler: Sampler::new(request.sampling, &request.logit_bias),
            constraint: request.constraint.as_ref().map(|constraint| constraint.begin()),
            text: StopFilter::new(&request.stop),
            finish: (request.max_tokens == 0).then_some(Finish::Length),
            request,
            adapter,
            key,
            cache,
            last: None,
            ahead: Vec::new(),
            written: Vec::new(),
            step_tokens: Vec::new(),
        }
    }

    /// Everything that it has read or will read next.
    pub(super) fn tokens(&self) -> Vec<TokenId> {
        self.request.prompt.iter().chain(&self.written).copied().collect()
    }

    /// Draws the next token from its logits, and writes those behind it that are certain.
    pub(super) fn draw(&mut self, decoder: &Decoder, logits: &[f32]) -> Vec<Event> {
        let mask = match self.constraint.as_mut().map(ConstraintState::allowed).transpose() {
            Ok(mask) => mask,
            Err(_) => return self.give_up(),
        };
        let token = TokenId(self.sampler.pick(self.written.len(), logits, mask));
        let (mut logprob, mut top) = (0.0, Vec::new());
        if let Some(n) = self.request.top_logprobs {
            let best;
            (logprob, best) = sample::logprobs(logits, token.0, usize::from(n));
            top = best.into_iter().map(|(id, logprob)| TokenLogprob { token: TokenId(id), logprob }).collect();
        }
        let mut events = Vec::from_iter(self.write(decoder, token, logprob, top));
        self.last = Some(token);
        while self.finish.is_none() && self.request.top_logprobs.is_none() {
            let certain = self.constraint.as_mut().map(ConstraintState::forced).unwrap_or_default();
            if certain.is_empty() {
                break;
            }
            for token in certain {
                if self.finish.is_none() {
                    events.extend(self.write(decoder, token, 0.0, Vec::new()));
                    self.ahead.push(token);
                }
            }
        }
        events
    }

    /// Adds a token to the answer.
    fn write(&mut self, decoder: &Decoder, token: TokenId, logprob: f32, top: Vec<TokenLogprob>) -> Option<Event> {
        self.written.push(token);
        self.sampler.wrote(token);
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
