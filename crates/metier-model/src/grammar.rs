//! Which tokens may come next, if the text is to have a given form?
//!
//! **Question:** what may this answer still become? **In:** a [`Form`] (JSON Schema, any JSON object, regular expression, list of
//! choices) and a decoder's tokens. **Out:** a mask over the vocabulary, token by token; tokens that are certain without asking the
//! model; whether the text may end here. **Absent:** logits and drawing ([`crate::sample`]), clocks, threads. The automata are those
//! of the crate `llguidance`; every limit of theirs is counted in steps and states, not in time, so that a form which compiles once
//! compiles always.
//!
//! JSON is written on one line with `, ` and `: ` between its parts, as Python writes it by default: a model cannot lose itself in
//! white space, and all of that is certain without a draw. Properties come in the schema's order.

use std::sync::Arc;

use llguidance::{
    ParserFactory, TokenParser,
    api::{ParserLimits, TopLevelGrammar},
    derivre::RegexBuilder,
    earley::SlicedBiasComputer,
    toktrie::{InferenceCapabilities, TokEnv, TokRxInfo, TokTrie, TokenizerEnv},
};
use serde_json::{Value, json};

use crate::{
    Digest,
    decoder::Decoder,
    sample::{Filter, TokenMask},
    tokenizer::TokenId,
};

mod known;

use known::{Automaton, Known, Lexemes, Place};

/// Bytes of a schema, of a regular expression, or of all choices together, at most.
pub const MAX_FORM_BYTES: usize = 128 << 10;
/// Choices, at most.
pub const MAX_CHOICES: usize = 4096;
/// States of the automaton over bytes, at most: 1 to 2 KB each. The library's own limit would allow half a gigabyte.
const MAX_STATES: usize = 30_000;
/// Steps that building the automaton may take: about 20 ms of work.
const MAX_BUILD_STEPS: u64 = 1_000_000;
/// Steps that one mask may take: about 15 ms of work, hundreds of times the usual.
const MAX_MASK_STEPS: u64 = 200_000;
/// Grammar symbols, at most.
const MAX_SYMBOLS: usize = 200_000;
/// A special token's first byte in the library's vocabulary; no text begins with it.
const SPECIAL: u8 = TokTrie::SPECIAL_TOKEN_MARKER;

/// The form of a text.
#[derive(Clone, Debug, PartialEq)]
pub enum Form {
    /// Any JSON object.
    JsonObject,
    /// JSON that a schema describes. Keywords that cannot be enforced are refused, not ignored.
    JsonSchema(Value),
    /// Text that a regular expression matches as a whole, in the syntax of the crate `regex`, without anchors.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
}

/// A form is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// More text than is read.
    #[error("the form has {bytes} bytes, at most {MAX_FORM_BYTES} are taken")]
    TooLong {
        /// Bytes given.
        bytes: usize,
    },
    /// No choices, too many, or an empty one.
    #[error("choices must be 1 to {MAX_CHOICES} texts that are not empty")]
    Choices,
    /// The automaton would be too big.
    #[error("the form needs too large an automaton: {0}")]
    TooComplex(String),
    /// No text has this form, or none that the model's tokens can write.
    #[error("no text has this form: {0}")]
    Unsatisfiable(String),
    /// The regular expression is malformed, or uses what is not supported.
    #[error("cannot use the regular expression: {0}")]
    Regex(String),
    /// The schema is malformed, or uses what cannot be enforced.
    #[error("cannot enforce the schema: {0}")]
    Schema(String),
    /// The tokens of the decoder do not make a vocabulary.
    #[error("cannot make a grammar's vocabulary of the decoder's tokens: {0}")]
    Vocabulary(String),
}

/// A text cannot be continued in its form: a limit was reached, or only bytes are left that no token writes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the form cannot be followed further: {0}")]
pub struct ConstraintError(String);

/// What all forms over one decoder share: its tokens as a tree of bytes. Made once; a few megabytes.
pub struct GrammarEnv {
    factory: ParserFactory,
    decoder: Arc<Decoder>,
}

impl GrammarEnv {
    /// The tree of a decoder's tokens.
    pub fn new(decoder: Arc<Decoder>) -> Result<Self, GrammarError> {
        let problem = |error: &dyn std::fmt::Display| GrammarError::Vocabulary(error.to_string());
        let tokenizer = decoder.tokenizer();
        let n = tokenizer.vocabulary();
        let words: Vec<Vec<u8>> = (0..n as u32)
            .map(|id| {
                let bytes = tokenizer.bytes_of(TokenId(id));
                match bytes.first() {
                    // A token of the byte FF alone stands in no text.
                    Some(&SPECIAL) => Vec::new(),
                    Some(_) => bytes.to_vec(),
                    None if tokenizer.is_special(TokenId(id)) => [&[SPECIAL], format!("<{id}>").as_bytes()].concat(),
                    None => Vec::new(),
                }
            })
            .collect();
        let ends: Vec<u32> = decoder.ends().iter().map(|end| end.0).filter(|end| (*end as usize) < n).collect();
        let Some(&end) = ends.first() else {
            return Err(problem(&"no token ends an answer"));
        };
        let trie = TokTrie::from(&TokRxInfo::new(n as u32, end), &words).with_eos_tokens(&ends);
        let env: TokEnv = Arc::new(Vocabulary { trie, decoder: Arc::clone(&decoder) });
        let caps = InferenceCapabilities { ff_tokens: true, ..InferenceCapabilities::default() };
        let slices = SlicedBiasComputer::general_slices();
        let mut factory = ParserFactory::new(&env, caps, &slices).map_err(|error| problem(&error))?;
        factory.quiet();
        *factory.limits_mut() = limits();
        Ok(Self { factory, decoder })
    }
}

impl std::fmt::Debug for GrammarEnv {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GrammarEnv({:?})", self.decoder)
    }
}

fn limits() -> ParserLimits {
    ParserLimits {
        initial_lexer_fuel: MAX_BUILD_STEPS,
        step_lexer_fuel: MAX_MASK_STEPS,
        max_lexer_states: MAX_STATES,
        max_grammar_size: MAX_SYMBOLS,
        verbose_errors: false,
        ..ParserLimits::default()
    }
}

/// A decoder's tokens as the library sees them.
struct Vocabulary {
    trie: TokTrie,
    decoder: Arc<Decoder>,
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        self.trie.tokenize_with_greedy_fallback(bytes, |text| {
            let ids = self.decoder.tokenizer().encode(text).unwrap_or_default();
            ids.into_iter().map(|id| id.0).collect()
        })
    }
}

/// A form, compiled for one decoder. Cheap to clone; equal only to its own clones.
#[derive(Clone)]
pub struct Constraint(Arc<Compiled>);

struct Compiled {
    automaton: Automaton,
    base: Digest,
    vocabulary: usize,
}

impl PartialEq for Constraint {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl std::fmt::Debug for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Constraint(for {})", self.0.base)
    }
}

impl Constraint {
    /// Compiles a form.
    pub fn compile(form: &Form, env: &GrammarEnv) -> Result<Self, GrammarError> {
        check_size(form)?;
        let wrong = |error: &dyn std::fmt::Display| match form {
            Form::Regex(_) | Form::Choice(_) => classify(error, GrammarError::Regex),
            Form::JsonObject | Form::JsonSchema(_) => classify(error, GrammarError::Schema),
        };
        let tokenizer = env.decoder.tokenizer();
        if let Form::Choice(choices) = form {
            let written = |text: &String| tokenizer.encode(text).is_ok_and(|ids| tokenizer.decode(&ids) == *text);
            if let Some(text) = choices.iter().find(|text| !written(text)) {
                return Err(GrammarError::Unsatisfiable(format!("no tokens write `{text}`")));
            }
        }
        let grammar = catch(|| grammar(form)).map_err(|problem| wrong(&problem))??;
        let mut start = env.factory.create_parser(grammar).map_err(|error| wrong(&format!("{error:#}")))?;
        start.start_without_prompt();
        let lexemes = match form {
            Form::Regex(_) | Form::Choice(_) => Lexemes::One,
            Form::JsonObject | Form::JsonSchema(_) => Lexemes::Many,
        };
        let base = env.decoder.base().digest;
        let automaton = Automaton::new(start, lexemes);
        let form = Self(Arc::new(Compiled { automaton, base, vocabulary: tokenizer.vocabulary() }));
        match form.begin().mask() {
            Ok(mask) if mask.count() > 0 => {}
            Ok(_) => return Err(GrammarError::Unsatisfiable("no token may begin it".to_owned())),
            Err(ConstraintError(problem)) => {
                return Err(classify(&problem, |problem| {
                    GrammarError::Unsatisfiable(format!("no first token: {problem}"))
                }));
            }
        }
        Ok(form)
    }

    /// The weights whose tokens it speaks of.
    pub fn base(&self) -> &Digest {
        &self.0.base
    }

    /// A text that has not begun. States of the automaton that earlier texts met are there already, within a bound.
    pub fn begin(&self) -> ConstraintState {
        let (parser, known) = self.0.automaton.begin();
        ConstraintState {
            parser,
            form: self.clone(),
            known: Some(known),
            written: Vec::new(),
            mask: None,
            place: None,
            forced: None,
            stats: ConstraintStats::default(),
        }
    }
}

fn check_size(form: &Form) -> Result<(), GrammarError> {
    let bytes = match form {
        Form::JsonObject => 0,
        Form::JsonSchema(schema) => schema.to_string().len(),
        Form::Regex(regex) => regex.len(),
        Form::Choice(choices) => {
            if choices.is_empty() || choices.len() > MAX_CHOICES || choices.iter().any(String::is_empty) {
                return Err(GrammarError::Choices);
            }
            choices.iter().map(String::len).sum()
        }
    };
    if bytes > MAX_FORM_BYTES { Err(GrammarError::TooLong { bytes }) } else { Ok(()) }
}

fn grammar(form: &Form) -> Result<TopLevelGrammar, GrammarError> {
    let mut schema = match form {
        Form::JsonObject => json!({"type": "object"}),
        Form::JsonSchema(schema) => schema.clone(),
        Form::Regex(regex) => {
            let mut checked = RegexBuilder::new();
            checked.mk_regex(regex).map_err(|error| GrammarError::Regex(format!("{error:#}")))?;
            return Ok(TopLevelGrammar::from_regex(regex));
        }
        Form::Choice(choices) => {
            let quoted: Vec<String> = choices.iter().map(|text| quote(text)).collect();
            return Ok(TopLevelGrammar::from_regex(&quoted.join("|")));
        }
    };
    let map = schema.as_object_mut().ok_or_else(|| GrammarError::Schema("it must be an object".to_owned()))?;
    // The library takes its options inside the schema. A caller's are overwritten.
    let options = json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "});
    map.insert("x-guidance".to_owned(), options);
    Ok(TopLevelGrammar::from_json_schema(schema))
}

/// A regular expression for this text and no other.
fn quote(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if r"\.+*?()|[]{}^$#&-~".contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// A panic of the library is an error of its input.
fn catch<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).map_err(|_| "the library panicked".to_owned())
}

/// The library tells its errors apart by their texts alone.
fn classify(error: &dyn std::fmt::Display, otherwise: impl FnOnce(String) -> GrammarError) -> GrammarError {
    let text = error.to_string();
    let says = |words: &[&str]| words.iter().any(|word| text.to_lowercase().contains(word));
    if says(&["unsatisfiable", "empty language", "no match"]) {
        GrammarError::Unsatisfiable(text)
    } else if says(&["too big", "too large", "too complex", "fuel", "limit"]) {
        GrammarError::TooComplex(text)
    } else {
        otherwise(text)
    }
}

/// How far one text has come in its form.
pub struct ConstraintState {
    parser: TokenParser,
    form: Constraint,
    /// What it shares with other texts of its form; none once it had to go on alone.
    known: Option<Arc<Known>>,
    written: Vec<TokenId>,
    mask: Option<Arc<TokenMask>>,
    /// Where it stands, once asked; inside, none where no mask is kept for that.
    place: Option<Option<Place>>,
    forced: Option<Vec<TokenId>>,
    stats: ConstraintStats,
}

/// What was asked of forms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConstraintStats {
    /// Drawn tokens that were checked without a mask.
    pub checked_tokens: u64,
    /// Masks over the vocabulary that had to be made.
    pub masks: u64,
    /// Masks that an earlier text of the same form had made.
    pub known_masks: u64,
}

impl std::ops::AddAssign for ConstraintStats {
    fn add_assign(&mut self, other: Self) {
        self.checked_tokens += other.checked_tokens;
        self.masks += other.masks;
        self.known_masks += other.known_masks;
    }
}

impl Filter for &mut ConstraintState {
    type Error = ConstraintError;

    fn allows(&mut self, token: TokenId) -> Result<bool, ConstraintError> {
        (**self).allows(token)
    }

    fn mask(&mut self) -> Result<&TokenMask, ConstraintError> {
        (**self).mask()
    }
}

impl ConstraintState {
    /// Whether this token may come next: what [`mask`](Self::mask) says of it, at the price of its own bytes.
    ///
    /// # Errors
    ///
    /// Where the automaton's limits are reached.
    pub fn allows(&mut self, token: TokenId) -> Result<bool, ConstraintError> {
        if self.mask.is_none() {
            self.mask = self.known_mask()?;
        }
        if let Some(mask) = &self.mask {
            return Ok(mask.contains(token));
        }
        self.stats.checked_tokens += 1;
        if self.is_finished() || token.0 as usize >= self.form.0.vocabulary {
            return Ok(false);
        }
        if let Some(first) = self.forced().first() {
            return Ok(*first == token);
        }
        // A token without text would be taken anywhere.
        let writes = self.parser.token_env.tok_trie().token_len(token.0) > 0;
        Ok(writes && self.guarded(|parser| parser.validate_token(token.0))?)
    }

    /// The tokens that may come next, those that end an answer among them where the text may end here.
    ///
    /// # Errors
    ///
    /// Where the automaton's limits are reached.
    pub fn mask(&mut self) -> Result<&TokenMask, ConstraintError> {
        if self.mask.is_none() {
            self.mask = Some(self.find_mask()?);
        }
        Ok(self.mask.as_deref().expect("found above"))
    }

    fn find_mask(&mut self) -> Result<Arc<TokenMask>, ConstraintError> {
        if let Some(mask) = self.known_mask()? {
            return Ok(mask);
        }
        self.stats.masks += 1;
        let mask = self.guarded(|parser| parser.compute_mask())?;
        let mask = Arc::new(TokenMask::new(mask.as_slice(), self.form.0.vocabulary));
        if let (Some(known), Some(place)) = (&self.known, self.place.take().flatten()) {
            known.keep(place, &mask);
        }
        Ok(mask)
    }

    /// The mask that an earlier text made at this place.
    fn known_mask(&mut self) -> Result<Option<Arc<TokenMask>>, ConstraintError> {
        if self.place.is_some() || !self.known.as_ref().is_some_and(|known| known.keeps_masks()) {
            return Ok(None);
        }
        // Bytes that are certain move the automaton on before it is asked where it stands.
        let certain = !self.forced().is_empty();
        let place = if certain { None } else { self.guarded(|parser| Ok::<_, String>(Place::of(parser)))? };
        let mask = self.known.as_ref().zip(place.as_ref()).and_then(|(known, place)| known.mask(place));
        self.place = Some(place);
        self.stats.known_masks += u64::from(mask.is_some());
        Ok(mask)
    }

    /// The text goes on with this token.
    ///
    /// # Errors
    ///
    /// Where the token is not allowed.
    pub fn commit(&mut self, token: TokenId) -> Result<(), ConstraintError> {
        (self.mask, self.place, self.forced) = (None, None, None);
        self.guarded(|parser| take(parser, token))?;
        self.written.push(token);
        Ok(())
    }

    /// Tokens that must come next, whatever the model says: each is the only one that [`mask`](Self::mask) would leave. They are not
    /// yet committed.
    pub fn forced(&mut self) -> &[TokenId] {
        if self.forced.is_none() {
            let tokens = if self.is_finished() {
                Vec::new()
            } else {
                self.guarded(|parser| Ok::<_, String>(parser.compute_ff_tokens())).unwrap_or_default()
            };
            self.forced = Some(tokens.into_iter().map(TokenId).collect());
        }
        self.forced.as_deref().unwrap_or_default()
    }

    /// What was asked since somebody counted.
    pub fn take_stats(&mut self) -> ConstraintStats {
        std::mem::take(&mut self.stats)
    }

    /// The text has the form as it stands.
    pub fn is_accepting(&mut self) -> bool {
        self.parser.stop_reason().is_ok()
            && self.guarded(|parser| Ok::<_, String>(parser.is_accepting())).unwrap_or(false)
    }

    /// Nothing may follow.
    pub fn is_finished(&self) -> bool {
        self.parser.stopped()
    }

    /// Asks the automaton. Where the shared one has reached a limit, which may be the work of other texts, this text goes on with one
    /// of its own, and is asked again.
    fn guarded<T, E: std::fmt::Display>(
        &mut self,
        work: impl Fn(&mut TokenParser) -> Result<T, E>,
    ) -> Result<T, ConstraintError> {
        let answer = asked(&mut self.parser, &work);
        if answer.is_ok() || self.known.take_if(|known| known.is_broken(&self.parser)).is_none() {
            return answer;
        }
        self.parser = self.form.0.automaton.begin_alone();
        for &token in &self.written {
            asked(&mut self.parser, &|parser| take(parser, token))?;
        }
        asked(&mut self.parser, &work)
    }
}

fn take(parser: &mut TokenParser, token: TokenId) -> Result<(), String> {
    parser.consume_token(token.0).and_then(|_| parser.check_stop()).map(|_| ()).map_err(|error| format!("{error:#}"))
}

fn asked<T, E: std::fmt::Display>(
    parser: &mut TokenParser,
    work: &impl Fn(&mut TokenParser) -> Result<T, E>,
) -> Result<T, ConstraintError> {
    catch(|| work(parser)).map_err(ConstraintError)?.map_err(|error| ConstraintError(format!("{error:#}")))
}

impl std::fmt::Debug for ConstraintState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ConstraintState({} tokens, {:?})", self.parser.num_tokens(), self.parser.stop_reason())
    }
}

#[cfg(test)]
mod tests;
