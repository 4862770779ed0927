//! What may be asked of an engine, and when it is refused.

use super::{
    AdapterId,
    score::{MAX_LABEL_BYTES, MAX_LABELS},
};
use crate::{
    arch::transformer::TransformerConfig,
    cache::{CacheShape, KeptLayers},
    grammar::Constraint,
    sample::{MAX_BIAS, MAX_BIASED, MAX_REPETITION_PENALTY, MIN_REPETITION_PENALTY, Sampling},
    tokenizer::TokenId,
};

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
    /// Bytes of keys and values, of running sequences and of remembered prefixes. SmolLM2-135M needs 46 KB a token: 377 MB for its
    /// whole context of 8,192.
    pub kv_cache_bytes: usize,
    /// Bytes of adapters. One of rank 16 on all maps of SmolLM2-135M has 9.8 MB in f16, 5.3 MB in 8 bits.
    pub adapter_bytes: usize,
}

impl Default for EngineLimits {
    fn default() -> Self {
        Self { max_sequences: 32, max_queue: 256, kv_cache_bytes: 384 << 20, adapter_bytes: 1 << 30 }
    }
}

/// What is to be continued, and how. Fields will be added: write the ones you mean and `..Default::default()`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationRequest {
    /// At least one token.
    pub prompt: Vec<TokenId>,
    /// Tokens to write, at most.
    pub max_tokens: usize,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Texts that end the answer; they and what follows are never given out.
    pub stop: Vec<String>,
    /// Added to the logits of these tokens: at most [`MAX_BIASED`] of them, ±[`MAX_BIAS`].
    pub logit_bias: Vec<(TokenId, f32)>,
    /// The form that the answer must have; compiled for the engine's decoder.
    pub constraint: Option<Constraint>,
    /// So many alternatives with each token. Who asks for them pays a step for every token, also for one that its form leaves no
    /// choice.
    pub top_logprobs: Option<u8>,
    /// Propose tokens by looking up how the text went on before, and check them in one pass. The answer is the same, token for token.
    /// Where it copies from its prompt it comes sooner, elsewhere up to an eighth later: proposals that fail grow rare.
    pub lookup: bool,
    /// Deltas over the base: an adapter that the engine has loaded.
    pub adapter: Option<AdapterId>,
    /// The layers that the specialist runs; `None` is all.
    pub kept_layers: Option<KeptLayers>,
    /// Who may start from what this sequence has read.
    pub scope: CacheScope,
}

/// Who may start from what a sequence has read. When in doubt, nobody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CacheScope {
    /// Nobody: nothing is remembered, and nothing remembered is used.
    #[default]
    Private,
    /// Sequences of the same specialist under the same number: a tenant, or tenants that may see each other's traffic.
    Tenant(u64),
    /// Sequences of the same specialist that were submitted under the same number, such as the choices of one request; what they
    /// have read is forgotten when the last of them has ended.
    Group(u64),
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
    /// The engine has no such adapter.
    #[error("adapter {} is not loaded", .0.0)]
    UnknownAdapter(AdapterId),
    /// Layers that the base does not have.
    #[error("the kept layers go beyond the base's {layers}")]
    KeptLayers {
        /// Layers of the base.
        layers: usize,
    },
    /// A stop text is empty or too long, or there are too many.
    #[error("stop texts must be 1 to {MAX_STOP_BYTES} bytes long, at most {MAX_STOPS} of them")]
    Stop,
    /// Too many alternatives.
    #[error("{0} alternatives a token are more than {MAX_TOP_LOGPROBS}")]
    TopLogprobs(u8),
    /// A temperature, probability or penalty that is no number in range.
    #[error(
        "temperature and top-p must be at least 0, min-p 0 to 1, frequency and presence penalty -2 to 2, repetition penalty \
         {MIN_REPETITION_PENALTY} to {MAX_REPETITION_PENALTY}"
    )]
    Sampling,
    /// A bias out of range, on too many tokens, or on one outside the vocabulary.
    #[error("a logit bias must be -{MAX_BIAS} to {MAX_BIAS}, on at most {MAX_BIASED} tokens of the vocabulary")]
    LogitBias,
    /// No labels, or too many.
    #[error("labels must be 1 to {MAX_LABELS} texts of at most {MAX_LABEL_BYTES} bytes together")]
    Labels,
    /// A label is empty, or cannot be written.
    #[error("label {at} has no tokens: only texts that the model can write are scored")]
    Label {
        /// Counted from 0.
        at: usize,
    },
    /// A label stands twice.
    #[error("label {at} has the same tokens as label {as_at}: name each once")]
    SameLabel {
        /// The later one, counted from 0.
        at: usize,
        /// The earlier one.
        as_at: usize,
    },
    /// The end of an answer was to be scored, and there is no such token.
    #[error("no token of this base ends an answer: score the labels without their end")]
    NoEnd,
    /// A constraint that was compiled for other weights.
    #[error("the constraint was compiled for another base")]
    Constraint,
}

impl GenerationRequest {
    /// Whether an engine with these limits over this network can serve it at all.
    pub(super) fn check(&self, config: &TransformerConfig, limits: &EngineLimits) -> Result<(), SubmitError> {
        let (prompt, max_tokens) = (self.prompt.len(), self.max_tokens);
        if prompt == 0 {
            return Err(SubmitError::EmptyPrompt);
        }
        let positions = prompt.saturating_add(max_tokens);
        if positions > config.context {
            return Err(SubmitError::TooLong { prompt, max_tokens, context: config.context });
        }
        let layers = config.layers;
        if self.kept_layers.as_ref().is_some_and(|kept| !kept.fit(layers)) {
            return Err(SubmitError::KeptLayers { layers });
        }
        let layers = self.kept_layers.as_ref().map_or(layers, |kept| kept.layers().len());
        let (needed, limit) = (CacheShape { layers, ..config.cache() }.bytes_for(positions), limits.kv_cache_bytes);
        if needed > limit {
            return Err(SubmitError::CacheTooSmall { needed, limit });
        }
        let vocabulary = config.vocabulary;
        if let Some(token) = self.prompt.iter().find(|id| id.0 as usize >= vocabulary) {
            return Err(SubmitError::UnknownToken { token: *token, vocabulary });
        }
        let stop_fits = |stop: &String| (1..=MAX_STOP_BYTES).contains(&stop.len());
        if self.stop.len() > MAX_STOPS || !self.stop.iter().all(stop_fits) {
            return Err(SubmitError::Stop);
        }
        if let Some(n) = self.top_logprobs.filter(|n| *n > MAX_TOP_LOGPROBS) {
            return Err(SubmitError::TopLogprobs(n));
        }
        if !self.sampling.is_valid() {
            return Err(SubmitError::Sampling);
        }
        let in_range = |(id, bias): &(TokenId, f32)| (id.0 as usize) < vocabulary && bias.abs() <= MAX_BIAS;
        if self.logit_bias.len() > MAX_BIASED || !self.logit_bias.iter().all(in_range) {
            return Err(SubmitError::LogitBias);
        }
        Ok(())
    }
}
