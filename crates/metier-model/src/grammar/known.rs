//! What do earlier texts of a form know about its automaton?
//!
//! The library makes states of the automaton when a text first meets them, and a mask walks the whole vocabulary. Texts of one form
//! meet the same states again and again, so they share one automaton, and the masks of its states where a state says it all. Sharing
//! never changes which tokens may come next; it changes what is worked out twice. It is bounded: an automaton that has grown beyond
//! the bound, or that a text has driven into a limit, is left to the texts that hold it, and the next text begins with a new one.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use llguidance::TokenParser;

use super::catch;
use crate::sample::TokenMask;

/// Bytes of states that texts may share, by the library's own estimate, before the next text begins anew.
const MAX_SHARED_BYTES: usize = 8 << 20;
/// Masks that are kept: 6 KB each over 49,152 tokens, 32 KB over 262,144.
const MAX_KEPT_MASKS: usize = 256;

/// How many parts a form's text has, as the library sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lexemes {
    /// One regular expression: the automaton's state says what may follow.
    One,
    /// A grammar of parts: what may follow depends on the parts before.
    Many,
}

/// A compiled form.
pub(super) struct Automaton {
    /// Never asked: its lexer has met no text.
    pristine: TokenParser,
    lexemes: Lexemes,
    shared: Mutex<(TokenParser, Arc<Known>)>,
}

impl Automaton {
    pub(super) fn new(pristine: TokenParser, lexemes: Lexemes) -> Self {
        let shared = Mutex::new((pristine.deep_clone(), Arc::new(Known::new(lexemes))));
        Self { pristine, lexemes, shared }
    }

    /// A parser before its first token, over the automaton that texts share.
    pub(super) fn begin(&self) -> (TokenParser, Arc<Known>) {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if shared.1.is_broken(&shared.0) || bytes(&shared.0).is_none_or(|bytes| bytes > MAX_SHARED_BYTES) {
            *shared = (self.pristine.deep_clone(), Arc::new(Known::new(self.lexemes)));
        }
        // The library's plain clone shares the lexer.
        (shared.0.clone(), Arc::clone(&shared.1))
    }

    /// A parser before its first token, over an automaton of its own.
    pub(super) fn begin_alone(&self) -> TokenParser {
        self.pristine.deep_clone()
    }
}

/// Bytes of the states met so far; none where the lexer is lost.
fn bytes(parser: &TokenParser) -> Option<usize> {
    catch(|| parser.parser.lexer_stats()).ok().map(|stats| stats.num_bytes)
}

/// What texts over one shared automaton have found out.
pub(super) struct Known {
    lexemes: Lexemes,
    masks: Mutex<HashMap<Place, Arc<TokenMask>>>,
}

impl Known {
    fn new(lexemes: Lexemes) -> Self {
        Self { lexemes, masks: Mutex::default() }
    }

    /// A state says which tokens may follow.
    pub(super) fn keeps_masks(&self) -> bool {
        self.lexemes == Lexemes::One
    }

    pub(super) fn mask(&self, place: &Place) -> Option<Arc<TokenMask>> {
        self.masks.lock().unwrap_or_else(PoisonError::into_inner).get(place).cloned()
    }

    pub(super) fn keep(&self, place: Place, mask: &Arc<TokenMask>) {
        let mut masks = self.masks.lock().unwrap_or_else(PoisonError::into_inner);
        if masks.len() < MAX_KEPT_MASKS {
            masks.insert(place, Arc::clone(mask));
        }
    }

    /// A limit was reached in the automaton itself, or work in it was broken off: it answers nobody any more.
    pub(super) fn is_broken(&self, parser: &TokenParser) -> bool {
        catch(|| parser.parser.lexer_stats()).map_or(true, |stats| stats.error)
    }
}

/// Where a text stands in an automaton of one lexeme.
#[derive(PartialEq, Eq, Hash)]
pub(super) struct Place {
    state: u32,
    /// The lexeme has begun.
    pending: bool,
    /// Bytes that are certain but make no whole token.
    certain: Vec<u8>,
}

impl Place {
    /// None where the text has ended.
    pub(super) fn of(parser: &mut TokenParser) -> Option<Self> {
        let state = parser.parser.with_recognizer(|recognizer| recognizer.lexer_state());
        let certain = parser.parser.currently_forced_bytes().to_vec();
        let pending = parser.parser.has_pending_lexeme_bytes();
        state.is_valid().then(|| Self { state: state.as_u32(), pending, certain })
    }
}
