//! What a step brought.

use super::LabelScore;
use crate::tokenizer::TokenId;

/// Names a sequence of one engine; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(pub u64);

/// A token and its log-probability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub token: TokenId,
    /// Natural logarithm of its probability at temperature 1, before top-k and top-p.
    pub logprob: f32,
}

/// What came of proposed tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LookupStats {
    /// Tokens that were read because the text had gone on with them before.
    pub proposed_tokens: u64,
    /// Of them, tokens that were written.
    pub right_tokens: u64,
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended its answer, or a stop text appeared; or all labels are scored, or the prompt is read.
    Stop,
    /// `max_tokens` were written.
    Length,
    /// It was cancelled.
    Cancelled,
    /// Its form could not be followed to the end: a limit of the grammar was reached. The text is incomplete.
    Constraint,
}

/// What a step brought.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A sequence wrote a token.
    Token {
        /// The sequence.
        id: SequenceId,
        /// Text that is certain now: whole characters that cannot be part of a stop text. May be empty, and may come later than
        /// its token.
        text: String,
        /// The token. The token that ends an answer is reported only where held-back text comes with it.
        token: TokenId,
        /// Natural logarithm of its probability as the model has it, before bias, penalties and form; 0 where its form left no
        /// choice and nobody asked for log-probabilities.
        logprob: f32,
        /// The most probable tokens, best first; empty unless asked for.
        top: Vec<TokenLogprob>,
    },
    /// All labels of a [`ScoreRequest`](super::ScoreRequest) are scored.
    Scored {
        /// The request.
        id: SequenceId,
        /// One a label, in the request's order.
        scores: Vec<LabelScore>,
    },
    /// The prompt of a [`HiddenRequest`](super::HiddenRequest) is read.
    Hidden {
        /// The request.
        id: SequenceId,
        /// Its last row behind the last norm. (width)
        hidden: Vec<f32>,
    },
    /// A sequence ended; no event of it follows.
    Done {
        /// The sequence.
        id: SequenceId,
        /// Why.
        finish: Finish,
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Tokens drawn, the one that ended the answer included; none where labels were scored or a text was read.
        completion_tokens: usize,
    },
}

/// A whole answer, from [`Engine::drain`](crate::Engine::drain).
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// The sequence.
    pub id: SequenceId,
    /// Its text.
    pub text: String,
    /// Its tokens, without the one that ended it.
    pub tokens: Vec<TokenId>,
    /// Why it ended.
    pub finish: Finish,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens drawn, the one that ended the answer included.
    pub completion_tokens: usize,
}
