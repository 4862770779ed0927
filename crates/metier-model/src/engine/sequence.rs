//! One sequence that has a place: what it has read and written, and how its next token is drawn.

use std::sync::Arc;

use super::{Event, Finish, GenerationRequest, SequenceId, TokenLogprob, stop::StopFilter};
use crate::{
    adapter::Adapter,
    cache::{KvSequence, prefix::PrefixKey},
    decoder::Decoder,
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
    /// Token that the next step reads; `None` while the prompt is being read.
    pub(super) last: Option<TokenId>,
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
            sampler: Sampler::new(request.sampling),
            text: StopFilter::new(&request.stop),
            finish: (request.max_tokens == 0).then_some(Finish::Length),
            request,
            adapter,
            key,
            cache,
            last: None,
            written: Vec::new(),
            step_tokens: Vec::new(),
        }
    }

    /// Everything that it has read or will read next.
    pub(super) fn tokens(&self) -> Vec<TokenId> {
        self.request.prompt.iter().chain(&self.written).copied().collect()
    }

    /// Draws the next token from its logits.
    pub(super) fn draw(&mut self, decoder: &Decoder, logits: &[f32]) -> Option<Event> {
        let token = TokenId(self.sampler.pick(logits));
        let (logprob, top) = sample::logprobs(logits, token.0, usize::from(self.request.top_logprobs.unwrap_or(0)));
        let top = top.into_iter().map(|(id, logprob)| TokenLogprob { token: TokenId(id), logprob }).collect();
        self.written.push(token);
        self.last = Some(token);
        let ended = decoder.ends().contains(&token);
        let mut text = String::new();
        if !ended {
            text = self.text.push(decoder.tokenizer().bytes_of(token));
        }
        if self.text.stopped() || ended {
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
}
