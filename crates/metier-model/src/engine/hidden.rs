//! What does the network make of a text? The hidden state behind a prompt's last token, for whoever has a head for it.
//!
//! **Question:** which row comes out of the last layer? **In:** a prompt. **Out:** its last row behind the last norm. **Absent:** logits:
//! the product with the vocabulary's head, half of the weights of a small model, is not made.
//!
//! Such a request waits, is admitted and shares steps like any other; it needs room for its prompt alone.

use super::{AdapterId, CacheScope, Engine, GenerationRequest, SequenceId, SubmitError, schedule::Task};
use crate::{cache::KeptLayers, tokenizer::TokenId};

/// What is to be read. Fields will be added: write the ones you mean and `..Default::default()`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HiddenRequest {
    /// At least one token.
    pub prompt: Vec<TokenId>,
    /// Deltas over the base: an adapter that the engine has loaded.
    pub adapter: Option<AdapterId>,
    /// The layers that the specialist runs; `None` is all.
    pub kept_layers: Option<KeptLayers>,
    /// Who may start from what this request has read.
    pub scope: CacheScope,
}

impl Engine {
    /// Takes a text to read, or says why not; [`Event::Hidden`](super::Event::Hidden) brings what the network makes of it.
    ///
    /// # Errors
    ///
    /// As [`submit`](Engine::submit).
    pub fn submit_hidden(&mut self, request: HiddenRequest) -> Result<SequenceId, SubmitError> {
        let HiddenRequest { prompt, adapter, kept_layers, scope } = request;
        let request = GenerationRequest { prompt, adapter, kept_layers, scope, ..GenerationRequest::default() };
        self.enqueue(request, Task::Read)
    }
}
