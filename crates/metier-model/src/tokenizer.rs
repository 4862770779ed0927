//! Text ↔ token ids, over the `tokenizers` crate.
//!
//! **Question:** which ids does a model read for this text, and which bytes does an id stand for? **In:** a `tokenizer.json`,
//! or the vocabulary and merges in GGUF metadata. **Out:** [`TokenId`]s, and text that is always complete UTF-8. **Absent:**
//! truncation, padding and templates; what `tokenizer.json` says about the first two is ignored (MiniLM's file would cut at 128).
//!
//! # Text cannot forge control tokens
//!
//! A decoder's [`Tokenizer::encode`] treats `<|im_start|>` in a text as thirteen characters. Only
//! [`Tokenizer::encode_with_specials`], for text that we wrote ourselves, finds control tokens; chats go through
//! [`crate::chat`], which keeps the two kinds of text apart even where a template mixes them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokenizers::pipeline::{EncodeOptions, Override, PipelineToken, PipelineTokenizer};

mod json;
mod pieces;
mod pre;

use aho_corasick::AhoCorasick;
pub(crate) use json::ControlWords;
use pieces::Pieces;
pub(crate) use pieces::leftmost_longest;
use pre::Pre;

use crate::{
    Digest,
    chat::{Piece, Prompt},
    format::Gguf,
};

/// Index of a token in a vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TokenId(pub u32);

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Tokens of a vocabulary, at most.
pub const MAX_VOCABULARY: usize = 1 << 20;
/// `tokenizer.ggml.token_type` of control tokens.
const CONTROL: i64 = 3;
/// `tokenizer.ggml.token_type` of tokens that a user added; matched in text like control tokens.
const USER_DEFINED: i64 = 4;

/// `tokenizer.ggml.token_type` of the token that stands for what cannot be written.
const UNKNOWN: i64 = 2;
/// `tokenizer.ggml.token_type` of tokens that stand for one byte.
const BYTE: i64 = 6;

/// A tokenizer cannot be made, or cannot encode.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// Metadata that is needed is missing or of another type.
    #[error("GGUF metadata `{0}` is missing or has the wrong type")]
    Metadata(&'static str),
    /// A kind of tokenizer that is not read.
    #[error(
        "tokenizer `{0}` is not supported: expected a byte-level BPE (`gpt2`) with pre-tokenizer {names}, or SentencePiece (`llama`)",
        names = pre::NAMES
    )]
    Unsupported(String),
    /// A vocabulary that contradicts itself.
    #[error("the vocabulary is not usable: {0}")]
    Vocabulary(String),
    /// `tokenizer.json` cannot be read.
    #[error("cannot read the tokenizer: {0}")]
    Json(String),
    /// The library refused a text.
    #[error("cannot encode a text of {bytes} bytes: {problem}")]
    Encode {
        /// Length of the text.
        bytes: usize,
        /// What the library said.
        problem: String,
    },
}

/// A vocabulary with its rules.
pub struct Tokenizer {
    rules: Rules,
    /// Control tokens, and what finds them; only for decoders.
    specials: Vec<Special>,
    finder: Option<AhoCorasick>,
    /// The bytes of every id; empty for control tokens and for encoders.
    bytes: Vec<Box<[u8]>>,
    ids: BTreeMap<String, TokenId>,
    vocabulary: usize,
    /// Token that every prompt starts with.
    begin: Option<TokenId>,
    /// A space was put before the text; decoding takes it off.
    strips_space: bool,
}

/// A control token.
struct Special {
    text: String,
    id: TokenId,
    /// White space before it, or after it, is not read.
    strips_before: bool,
    strips_after: bool,
}

enum Rules {
    /// BPE or WordPiece, by the library.
    Library {
        first: PipelineTokenizer,
        /// For text behind a control token, where that is cut in another way.
        later: Option<PipelineTokenizer>,
    },
    /// SentencePiece.
    Pieces(Pieces),
}

/// What a GGUF file says about its vocabulary.
struct Words<'a> {
    gguf: &'a Gguf,
    words: &'a [String],
    kinds: &'a [i64],
    /// Tokens that no text may become.
    control: Vec<bool>,
}

impl<'a> Words<'a> {
    fn read(gguf: &'a Gguf, pieces: bool) -> Result<Self, TokenizerError> {
        let words = gguf.texts("tokenizer.ggml.tokens").ok_or(TokenizerError::Metadata("tokenizer.ggml.tokens"))?;
        let kinds =
            gguf.ints("tokenizer.ggml.token_type").ok_or(TokenizerError::Metadata("tokenizer.ggml.token_type"))?;
        if words.is_empty() || words.len() > MAX_VOCABULARY || kinds.len() != words.len() {
            let problem = format!("{} tokens, {} token types", words.len(), kinds.len());
            return Err(TokenizerError::Vocabulary(problem));
        }
        // What users added to a byte-level BPE are marks such as `<tool_call>`; to SentencePiece, runs of spaces and HTML tags.
        let mut control: Vec<bool> =
            kinds.iter().map(|kind| *kind == CONTROL || (*kind == USER_DEFINED && !pieces)).collect();
        for key in ["bos", "eos", "eot", "eom", "padding"] {
            if let Some(id) = gguf.count(&format!("tokenizer.ggml.{key}_token_id")).filter(|id| *id < words.len()) {
                control[id] = true;
            }
        }
        Ok(Self { gguf, words, kinds, control })
    }

    fn id(&self, key: &'static str) -> Option<TokenId> {
        self.gguf.count(key).filter(|id| *id < self.words.len()).map(|id| TokenId(id as u32))
    }

    /// The tokenizer, given its rules and what bytes a token that is no control token stands for.
    fn build(
        self,
        begins: bool,
        rules: impl FnOnce() -> Result<Rules, TokenizerError>,
        bytes_of: impl Fn(usize) -> Result<Vec<u8>, TokenizerError>,
    ) -> Result<Tokenizer, TokenizerError> {
        let mut ids = BTreeMap::new();
        let (mut specials, mut bytes) = (Vec::new(), Vec::with_capacity(self.words.len()));
        for (i, word) in self.words.iter().enumerate() {
            if ids.insert(word.clone(), TokenId(i as u32)).is_some() {
                return Err(TokenizerError::Vocabulary(format!("token `{word}` stands twice")));
            }
            if self.control[i] {
                if !word.is_empty() {
                    let (text, id) = (word.clone(), TokenId(i as u32));
                    specials.push(Special { text, id, strips_before: false, strips_after: false });
                }
                bytes.push(Box::default());
            } else {
                bytes.push(bytes_of(i)?.into_boxed_slice());
            }
        }
        let texts: Vec<&str> = specials.iter().map(|special: &Special| special.text.as_str()).collect();
        let finder = if texts.is_empty() { None } else { Some(leftmost_longest(&texts)?) };
        let begins = self.gguf.flag("tokenizer.ggml.add_bos_token").unwrap_or(begins);
        let begin = self.id("tokenizer.ggml.bos_token_id").filter(|_| begins);
        let (rules, vocabulary) = (rules()?, self.words.len());
        let strips_space = matches!(&rules, Rules::Pieces(pieces) if pieces.space_first());
        Ok(Tokenizer { rules, specials, finder, bytes, ids, vocabulary, begin, strips_space })
    }
}

impl Tokenizer {
    /// The tokenizer described by a GGUF file's metadata: a byte-level BPE (`gpt2`), or SentencePiece (`llama`).
    ///
    /// Control tokens are kept away from the rules: [`encode_with_specials`](Self::encode_with_specials) cuts the text at them first.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, TokenizerError> {
        let model = gguf.text("tokenizer.ggml.model").ok_or(TokenizerError::Metadata("tokenizer.ggml.model"))?;
        match model {
            "gpt2" => Self::byte_level(gguf),
            "llama" => Self::sentence_pieces(gguf),
            other => Err(TokenizerError::Unsupported(other.to_owned())),
        }
    }

    fn sentence_pieces(gguf: &Gguf) -> Result<Self, TokenizerError> {
        let words = Words::read(gguf, true)?;
        let scores = gguf.floats("tokenizer.ggml.scores").ok_or(TokenizerError::Metadata("tokenizer.ggml.scores"))?;
        let unknown = words.id("tokenizer.ggml.unknown_token_id");
        let space_first = gguf.flag("tokenizer.ggml.add_space_prefix").unwrap_or(true);
        let is_control = |i: usize| words.control[i];
        let pieces = Pieces::new(words.words, scores, words.kinds, is_control, unknown, space_first)?;
        let (texts, kinds) = (words.words, words.kinds);
        words.build(
            true,
            || Ok(Rules::Pieces(pieces)),
            |i| {
                Ok(match kinds[i] {
                    UNKNOWN => Vec::new(),
                    BYTE => pieces::byte_of(&texts[i]).into_iter().collect(),
                    _ => texts[i].replace(pieces::SPACE, " ").into_bytes(),
                })
            },
        )
    }

    fn byte_level(gguf: &Gguf) -> Result<Self, TokenizerError> {
        let name = gguf.text("tokenizer.ggml.pre").unwrap_or("gpt-2");
        let pre = Pre::named(name).ok_or_else(|| TokenizerError::Unsupported(format!("gpt2/{name}")))?;
        let merges = gguf.texts("tokenizer.ggml.merges").ok_or(TokenizerError::Metadata("tokenizer.ggml.merges"))?;
        let words = Words::read(gguf, false)?;
        let mut vocabulary: serde_json::Map<_, _> =
            words.words.iter().enumerate().map(|(i, word)| (word.clone(), json!(i))).collect();
        let mut pairs = Vec::with_capacity(merges.len());
        for merge in merges {
            let pair = merge.split_once(' ').filter(|(left, right)| {
                let known = |word: &str| vocabulary.contains_key(word);
                known(left) && known(right) && known(&format!("{left}{right}"))
            });
            let (left, right) = pair.ok_or_else(|| {
                TokenizerError::Vocabulary(format!("merge `{merge}` does not join two tokens to a third"))
            })?;
            pairs.push([left, right]);
        }
        let byte_of = byte_of_char();
        complete(&mut vocabulary, words.words.len());
        let document = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": pre.normalizer,
            "pre_tokenizer": pre.pre_tokenizer, "post_processor": null,
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": pre.ignore_merges,
                "vocab": vocabulary, "merges": pairs},
        });
        let texts = words.words;
        let rules = || Ok(Rules::Library { first: read(&document.to_string())?, later: None });
        words.build(false, rules, |i| {
            let decoded: Option<Vec<u8>> = texts[i].chars().map(|c| byte_of.get(&c).copied()).collect();
            decoded.ok_or_else(|| {
                TokenizerError::Vocabulary(format!("token `{}` is not in byte-level characters", texts[i]))
            })
        })
    }

    /// The tokenizer described by a `tokenizer.json`. Its truncation and padding are ignored.
    pub fn from_json(text: &str) -> Result<Self, TokenizerError> {
        let document: serde_json::Value =
            serde_json::from_str(text).map_err(|e| TokenizerError::Json(e.to_string()))?;
        let mut ids = BTreeMap::new();
        let words = document.pointer("/model/vocab");
        let named = words.and_then(serde_json::Value::as_object).into_iter().flatten();
        let named = named.map(|(word, id)| (word.as_str(), id.as_u64()));
        // A Unigram model lists `[word, score]`; a word's id is its place.
        let listed = words.and_then(serde_json::Value::as_array).into_iter().flatten().zip(0u64..);
        let listed = listed.filter_map(|(entry, id)| Some((entry.get(0)?.as_str()?, Some(id))));
        let added = document.get("added_tokens").and_then(serde_json::Value::as_array).into_iter().flatten();
        let added = added.filter_map(|token| Some((token.get("content")?.as_str()?, token.get("id")?.as_u64())));
        for (word, id) in named.chain(listed).chain(added) {
            let id = id.and_then(|id| u32::try_from(id).ok()).filter(|id| (*id as usize) < MAX_VOCABULARY);
            let id = id.ok_or_else(|| TokenizerError::Vocabulary(format!("token `{word}` has no usable id")))?;
            ids.insert(word.to_owned(), TokenId(id));
        }
        let vocabulary = ids.values().max().map_or(0, |id| id.0 as usize + 1);
        let inner = read(text)?;
        Ok(Self {
            rules: Rules::Library { first: inner, later: None },
            specials: Vec::new(),
            finder: None,
            bytes: Vec::new(),
            ids,
            vocabulary,
            begin: None,
            strips_space: false,
        })
    }

    /// Ids are below this.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// SHA-256 over every id's bytes and whether it is a control token: two tokenizers of one digest mean the same by an id, however they cut texts.
    pub fn digest(&self) -> Digest {
        let specials: BTreeSet<u32> = self.specials.iter().map(|special| special.id.0).collect();
        let mut all = Vec::new();
        for id in 0..self.vocabulary as u32 {
            let bytes = self.bytes_of(TokenId(id));
            all.extend((bytes.len() as u32).to_le_bytes());
            all.push(u8::from(specials.contains(&id)));
            all.extend(bytes);
        }
        Digest::of(&all)
    }

    /// The id of a token, by its text in the vocabulary.
    pub fn id_of(&self, token: &str) -> Option<TokenId> {
        self.ids.get(token).copied()
    }

    /// Texts of the control tokens.
    pub fn specials(&self) -> impl Iterator<Item = &str> {
        self.specials.iter().map(|special| special.text.as_str())
    }

    /// Whether the id is a control token.
    pub fn is_special(&self, id: TokenId) -> bool {
        self.specials.iter().any(|special| special.id == id)
    }

    /// The ids of a text from anybody. Decoders' control tokens in it are ordinary characters; of a `tokenizer.json`, added
    /// tokens are matched as its own library would. Nothing is put around the text.
    pub fn encode(&self, text: &str) -> Result<Vec<TokenId>, TokenizerError> {
        let mut out = Vec::new();
        self.encode_into(text, false, true, &mut out)?;
        Ok(out)
    }

    /// As [`encode`](Self::encode), framed by what the post-processor adds (`[CLS]` and `[SEP]`).
    pub fn encode_framed(&self, text: &str) -> Result<Vec<TokenId>, TokenizerError> {
        let mut out = Vec::new();
        self.encode_into(text, true, true, &mut out)?;
        Ok(out)
    }

    /// The ids of a text that we wrote: control tokens in it become their single id.
    pub fn encode_with_specials(&self, text: &str) -> Result<Vec<TokenId>, TokenizerError> {
        let mut segments = Segments::new(self);
        segments.markup(text)?;
        segments.finish()
    }

    /// The ids of a rendered conversation: control tokens count in the template's own words only. Text between two control
    /// tokens is encoded in one piece, whoever wrote it, so that the ids are those of the whole rendered text.
    pub fn encode_prompt(&self, prompt: &Prompt) -> Result<Vec<TokenId>, TokenizerError> {
        let mut segments = Segments::new(self);
        for piece in &prompt.pieces {
            match piece {
                Piece::Content(content) => segments.text.push_str(content),
                Piece::Markup(markup) => segments.markup(markup)?,
            }
        }
        let mut out = segments.finish()?;
        if let Some(begin) = self.begin.filter(|begin| out.first() != Some(begin)) {
            out.insert(0, begin);
        }
        Ok(out)
    }

    /// The leftmost control token of a text, the longest where several start there.
    fn first_special<'a>(&'a self, text: &str) -> Option<(usize, &'a Special)> {
        let found = self.finder.as_ref()?.find(text)?;
        Some((found.start(), &self.specials[found.pattern().as_usize()]))
    }

    /// `first`: nothing was read before this text.
    fn encode_into(&self, text: &str, framed: bool, first: bool, out: &mut Vec<TokenId>) -> Result<(), TokenizerError> {
        if text.is_empty() && !framed {
            return Ok(());
        }
        let library = match &self.rules {
            Rules::Library { later: Some(later), .. } if !first => later,
            Rules::Library { first, .. } => first,
            Rules::Pieces(pieces) => {
                pieces.encode(text, out);
                return Ok(());
            }
        };
        let mut tokens = Vec::new();
        library
            .encode_into(text, &options(framed), &mut tokens)
            .map_err(|e| TokenizerError::Encode { bytes: text.len(), problem: e.to_string() })?;
        let known = PipelineToken::cast_slice(&tokens).iter().filter(|id| (**id as usize) < self.vocabulary);
        out.extend(known.map(|id| TokenId(*id)));
        Ok(())
    }

    /// The bytes that an id of a decoder's vocabulary stands for; none for control tokens and unknown ids.
    pub fn bytes_of(&self, id: TokenId) -> &[u8] {
        self.bytes.get(id.0 as usize).map_or(&[], |bytes| bytes)
    }

    /// The text of a decoder's ids, control tokens left out; bytes that are no UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[TokenId]) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| self.bytes_of(*id)).copied().collect();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        match text.strip_prefix(' ') {
            Some(rest) if self.strips_space => rest.to_owned(),
            _ => text,
        }
    }
}

/// Text in the making, cut at control tokens.
struct Segments<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<TokenId>,
    /// What was read since the last control token.
    text: String,
    /// White space at the start of `text` is not read.
    strip: bool,
}

impl<'a> Segments<'a> {
    fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, ids: Vec::new(), text: String::new(), strip: false }
    }

    /// Text in which control tokens count.
    fn markup(&mut self, markup: &str) -> Result<(), TokenizerError> {
        let mut rest = markup;
        while let Some((at, special)) = self.tokenizer.first_special(rest) {
            self.text.push_str(&rest[..at]);
            self.flush(special.strips_before)?;
            self.ids.push(special.id);
            self.strip = special.strips_after;
            rest = &rest[at + special.text.len()..];
        }
        self.text.push_str(rest);
        Ok(())
    }

    fn flush(&mut self, strip_end: bool) -> Result<(), TokenizerError> {
        let mut text = self.text.as_str();
        if self.strip {
            text = text.trim_start();
        }
        if strip_end {
            text = text.trim_end();
        }
        let first = self.ids.is_empty();
        self.tokenizer.encode_into(text, false, first, &mut self.ids)?;
        self.text.clear();
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<TokenId>, TokenizerError> {
        self.flush(false)?;
        Ok(self.ids)
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tokenizer({} tokens, {} control tokens)", self.vocabulary, self.specials.len())
    }
}

fn options(add_special_tokens: bool) -> EncodeOptions {
    EncodeOptions {
        add_special_tokens,
        encode_special_tokens: false,
        padding: Override::Off,
        truncation: Override::Off,
    }
}

fn read(json: &str) -> Result<PipelineTokenizer, TokenizerError> {
    let canonical = tokenizers::canonicalize_str(json).map_err(|e| TokenizerError::Json(e.to_string()))?;
    tokenizers::from_json(&canonical).map_err(|e| TokenizerError::Json(e.to_string()))
}

/// SmolLM2 has no token for eight bytes that hardly occur (U+0004, lead bytes of rare planes). The library insists on all 256, so they
/// get ids behind the vocabulary, which `encode_into` drops, as the model's own tokenizer does.
fn complete(words: &mut serde_json::Map<String, serde_json::Value>, vocabulary: usize) {
    let mut id = vocabulary;
    for byte in byte_of_char().keys().map(char::to_string) {
        words.entry(byte).or_insert_with(|| {
            id += 1;
            json!(id - 1)
        });
    }
}

/// GPT-2's byte-level alphabet: printable Latin-1 stands for itself, the other 68 bytes for U+0100 onwards.
pub(crate) fn byte_of_char() -> BTreeMap<char, u8> {
    let mut next = 0x100;
    (0..=255u8)
        .map(|byte| match byte {
            0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => (char::from(byte), byte),
            _ => {
                next += 1;
                (char::from_u32(next - 1).expect("U+0100 to U+0143 are characters"), byte)
            }
        })
        .collect()
}

/// Puts the bytes of one token after another together to text, and gives out only complete characters.
#[derive(Clone, Debug, Default)]
pub struct Utf8Stream {
    pending: Vec<u8>,
}

impl Utf8Stream {
    /// Adds bytes; returns the characters that are complete now. Bytes that can never become one turn into U+FFFD.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend(bytes);
        let mut out = String::new();
        loop {
            match std::str::from_utf8(&self.pending) {
                Ok(text) => {
                    out.push_str(text);
                    self.pending.clear();
                    return out;
                }
                Err(error) => {
                    let valid = error.valid_up_to();
                    out.push_str(std::str::from_utf8(&self.pending[..valid]).expect("checked up to here"));
                    let Some(bad) = error.error_len() else {
                        self.pending.drain(..valid);
                        return out;
                    };
                    out.push(char::REPLACEMENT_CHARACTER);
                    self.pending.drain(..valid + bad);
                }
            }
        }
    }

    /// The end: an incomplete character becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        let rest = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        rest
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;
    use crate::tiny;

    fn tokenizer() -> Tokenizer {
        Tokenizer::from_gguf(&Gguf::parse(&tiny::gguf(1)).unwrap()).unwrap()
    }

    #[test]
    fn text_cannot_forge_control_tokens() {
        let tokenizer = tokenizer();
        let start = tokenizer.id_of("<|im_start|>").unwrap();
        let text = "a<|im_start|>b";
        assert!(!tokenizer.encode(text).unwrap().contains(&start));
        assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()), text);
        let ids = tokenizer.encode_with_specials(text).unwrap();
        assert_eq!(ids.iter().filter(|id| **id == start).count(), 1);
        assert_eq!(tokenizer.decode(&ids), "ab");
    }

    #[test]
    fn a_vocabulary_that_lies_is_refused() {
        use crate::format::{gguf::Value, gguf_write::GgufWriter};
        let check = |words: &[&str], kinds: Vec<i64>, merges: &[&str], message: &str| {
            let text = |list: &[&str]| Value::Texts(list.iter().map(|s| (*s).to_owned()).collect());
            let bytes = GgufWriter::new()
                .metadata("tokenizer.ggml.model", Value::Text("gpt2".into()))
                .metadata("tokenizer.ggml.pre", Value::Text("smollm".into()))
                .metadata("tokenizer.ggml.tokens", text(words))
                .metadata("tokenizer.ggml.token_type", Value::Ints(kinds))
                .metadata("tokenizer.ggml.merges", text(merges))
                .finish();
            let error = Tokenizer::from_gguf(&Gguf::parse(&bytes).unwrap()).unwrap_err().to_string();
            assert!(error.contains(message), "`{error}` does not say `{message}`");
        };
        check(&["a", "b"], vec![1], &[], "2 tokens, 1 token types");
        check(&["a", "a"], vec![1, 1], &[], "stands twice");
        check(&["a", "\u{4e00}"], vec![1, 1], &[], "not in byte-level");
        check(&["a", "b"], vec![1, 1], &["a b"], "does not join two tokens");
    }

    proptest! {
        #[test]
        fn any_text_comes_back(text in "\\PC{0,40}") {
            static TOKENIZER: std::sync::LazyLock<Tokenizer> = std::sync::LazyLock::new(tokenizer);
            let tokenizer = &*TOKENIZER;
            prop_assert_eq!(tokenizer.decode(&tokenizer.encode(&text).unwrap()), text);
        }

        #[test]
        fn a_stream_gives_only_whole_characters(text in "\\PC{0,20}", cuts in prop::collection::vec(1usize..4, 0..80)) {
            let mut stream = Utf8Stream::default();
            let (mut out, mut at) = (String::new(), 0);
            for cut in cuts {
                let end = (at + cut).min(text.len());
                out.push_str(&stream.push(&text.as_bytes()[at..end]));
                at = end;
                prop_assert!(text.starts_with(&out));
            }
            out.push_str(&stream.push(&text.as_bytes()[at..]));
            out.push_str(&stream.finish());
            prop_assert_eq!(out, text);
        }
    }

    #[test]
    fn bytes_that_are_no_text_become_the_replacement_character() {
        let mut stream = Utf8Stream::default();
        assert_eq!(stream.push(b"a\xff\xc3"), "a\u{fffd}");
        assert_eq!(stream.push(b"\xa9"), "é");
        assert_eq!(stream.push(b"\xe2\x82"), "");
        assert_eq!(stream.finish(), "\u{fffd}");
    }
}
