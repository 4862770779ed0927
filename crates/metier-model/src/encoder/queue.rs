//! Many texts of many callers, one encoder.
//!
//! **Question:** which windows go through the network next, for everybody at once? **In:** requests of texts. **Out:** their unit
//! vectors, request by request, as they are complete. **Absent:** threads and clocks: whoever owns a queue calls
//! [`EncoderQueue::step`] and lends a pool.
//!
//! ```text
//! submit → windows, in turn: a1 b1 c1 a2 b2 a3 a4 …   one step = the next windows of up to 512 tokens, packed without padding
//! ```
//!
//! Requests take turns window by window, so a document of a thousand windows holds a short text up for one step, not for a
//! thousand. A text's vector is the one that it has alone, to the last bit.

use std::{collections::VecDeque, sync::Arc};

use metier_kernels::Pool;

use super::{Encoder, EncoderError};
use crate::tokenizer::TokenId;

/// Tokens of a step, about; a window that is longer is a step of its own.
pub const STEP_TOKENS: usize = 512;

/// What a queue may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLimits {
    /// Requests that are not complete.
    pub max_requests: usize,
    /// Tokens of all windows that wait.
    pub max_tokens: usize,
}

impl Default for QueueLimits {
    fn default() -> Self {
        Self { max_requests: 512, max_tokens: 4 << 20 }
    }
}

/// Names a request of one queue; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// A request is not taken.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// Nothing to embed.
    #[error("the request has no text")]
    NoTexts,
    /// Try later.
    #[error("{limit} requests are waiting already")]
    Full {
        /// The bound.
        limit: usize,
    },
    /// Too much for what waits already, or at all.
    #[error("{tokens} tokens more than the {waiting} that wait pass the limit of {limit}")]
    TooManyTokens {
        /// Tokens of this request.
        tokens: usize,
        /// Tokens that wait.
        waiting: usize,
        /// The bound.
        limit: usize,
    },
    /// A text is too long or cannot be tokenised.
    #[error(transparent)]
    Text(#[from] EncoderError),
}

/// A complete request.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedded {
    /// The request.
    pub id: RequestId,
    /// One unit vector a text, in the order of the texts.
    pub vectors: Vec<Vec<f32>>,
    /// Tokens read, `[CLS]` and `[SEP]` of every window included.
    pub n_tokens: usize,
}

struct Request {
    id: RequestId,
    windows: VecDeque<(usize, Vec<TokenId>)>, // (index of the text, ids)
    totals: Vec<(Vec<f32>, usize)>,           // of each text: the sum over its windows, their tokens
}

/// Runs requests over one encoder.
pub struct EncoderQueue {
    encoder: Arc<Encoder>,
    limits: QueueLimits,
    /// The front is served next, with one window, then goes to the back.
    requests: VecDeque<Request>,
    waiting_tokens: usize,
    next_id: u64,
}

impl EncoderQueue {
    /// A queue without requests.
    pub fn new(encoder: Arc<Encoder>, limits: QueueLimits) -> Self {
        Self { encoder, limits, requests: VecDeque::new(), waiting_tokens: 0, next_id: 0 }
    }

    /// The encoder.
    pub fn encoder(&self) -> &Arc<Encoder> {
        &self.encoder
    }

    /// Cuts texts into windows and takes them, or says why not. An empty text is a text; no text is none.
    pub fn submit(&mut self, texts: &[&str]) -> Result<RequestId, QueueError> {
        if texts.is_empty() {
            return Err(QueueError::NoTexts);
        }
        let limit = self.limits.max_requests;
        if self.requests.len() >= limit {
            return Err(QueueError::Full { limit });
        }
        let (limit, waiting) = (self.limits.max_tokens, self.waiting_tokens);
        let (mut windows, mut tokens) = (VecDeque::new(), 0usize);
        for (idx, text) in texts.iter().enumerate() {
            for window in self.encoder.checked_windows(idx, text)? {
                tokens += window.len();
                windows.push_back((idx, window));
            }
            if waiting + tokens > limit {
                return Err(QueueError::TooManyTokens { tokens, waiting, limit });
            }
        }
        let id = RequestId(self.next_id);
        self.next_id += 1;
        self.waiting_tokens += tokens;
        let totals = vec![(vec![0.0; self.encoder.width()], 0); texts.len()];
        self.requests.push_back(Request { id, windows, totals });
        Ok(id)
    }

    /// Forgets a request; nothing of it is reported. Unknown and complete ids are ignored.
    pub fn cancel(&mut self, id: RequestId) {
        if let Some(at) = self.requests.iter().position(|request| request.id == id) {
            let request = self.requests.remove(at).expect("found at this place");
            self.waiting_tokens -= request.windows.iter().map(|(_, window)| window.len()).sum::<usize>();
        }
    }

    /// No request is left.
    pub fn is_idle(&self) -> bool {
        self.requests.is_empty()
    }

    /// Requests that are not complete.
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// As [`is_idle`](Self::is_idle).
    pub fn is_empty(&self) -> bool {
        self.is_idle()
    }

    /// One forward pass over the next windows; the requests that are complete now.
    pub fn step(&mut self, pool: &Pool) -> Vec<Embedded> {
        let mut taken: Vec<(RequestId, usize, Vec<TokenId>)> = Vec::new();
        let mut tokens = 0;
        // Requests whose last window is in this step wait aside, so that nobody looks at them again.
        let mut ending: Vec<Request> = Vec::new();
        while let Some(request) = self.requests.front() {
            let (_, window) = request.windows.front().expect("a request without windows is complete");
            if !taken.is_empty() && tokens + window.len() > STEP_TOKENS {
                break;
            }
            let mut request = self.requests.pop_front().expect("there is a front");
            let (text, window) = request.windows.pop_front().expect("looked at above");
            tokens += window.len();
            taken.push((request.id, text, window));
            if request.windows.is_empty() { ending.push(request) } else { self.requests.push_back(request) }
        }
        self.waiting_tokens -= tokens;
        let windows: Vec<&[TokenId]> = taken.iter().map(|(_, _, window)| window.as_slice()).collect();
        for ((id, text, window), sum) in taken.iter().zip(self.encoder.sums(pool, &windows)) {
            let owner = ending.iter_mut().chain(&mut self.requests).find(|request| request.id == *id);
            let (total, tokens) = &mut owner.expect("a taken window has a request").totals[*text];
            total.iter_mut().zip(&sum).for_each(|(total, x)| *total += x);
            *tokens += window.len();
        }
        ending
            .into_iter()
            .map(|request| Embedded {
                id: request.id,
                n_tokens: request.totals.iter().map(|(_, tokens)| tokens).sum(),
                vectors: request
                    .totals
                    .into_iter()
                    .map(|(sum, tokens)| self.encoder.finish(pool, sum, tokens))
                    .collect(),
            })
            .collect()
    }
}

impl std::fmt::Debug for EncoderQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EncoderQueue({:?}, {} requests)", self.encoder, self.requests.len())
    }
}
