//! Who gets a place, and which tokens a step reads.

use super::{Engine, sequence::Sequence};

/// Prompt tokens that one step reads, all sequences together.
pub const PREFILL_TOKENS_PER_STEP: usize = 128;

impl Engine {
    /// Gives waiting requests a place, in their order: a large one at the head is not overtaken, so it cannot starve.
    pub(super) fn admit(&mut self) {
        while self.running.len() < self.limits.max_sequences.max(1) {
            let Some((_, request)) = self.queue.front() else { return };
            let Some(cache) = self.pages.reserve(request.prompt.len() + request.max_tokens) else { return };
            let (id, request) = self.queue.pop_front().expect("there is a front");
            self.running.push(Sequence::new(id, request, cache));
        }
    }

    /// Chooses the tokens that each sequence reads in this step.
    pub(super) fn plan(&mut self) {
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
