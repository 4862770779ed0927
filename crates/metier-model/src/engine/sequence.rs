//! One sequence that has a place: what it has read and written, and how its next token is drawn.

use super::{Event, Finish, GenerationRequest, SequenceId, TokenLogprob, stop::StopFilter};
use crate::{
    cache::KvSequence,
    decoder::Decoder,
    sample::{self, Sampler},
    tokenizer::TokenId,
};

pub(super) struct Sequence {
    pub(super) id: SequenceId,
    pub(super) request: GenerationRequest,
    pub(super) cache: KvSequence,
    sampler: Sampler,
    text: StopFilter,
    /// Token that the next step reads; `None` while the prompt is being read.
    pub(super) last: Option<TokenId>,
    pub(super) drawn: usize,
    /// Tokens of this step.
    pub(super) step_tokens: Vec<TokenId>,
    pub(super) finish: Option<Finish>,
}

impl Sequence {
    /// A sequence that has read nothing.
    pub(super) fn new(id: SequenceId, request: GenerationRequest, cache: KvSequence) -> Self {
        Self {
            id,
            sampler: Sampler::new(request.sampling),
            text: StopFilter::new(&request.stop),
            finish: (request.max_tokens == 0).then_some(Finish::Length),
            request,
            cache,
            last: None,
            drawn: 0,
            step_tokens: Vec::new(),
        }
    }

    /// Draws the next token from its logits.
    pub(super) fn draw(&mut self, decoder: &Decoder, logits: &[f32]) -> Option<Event> {
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
