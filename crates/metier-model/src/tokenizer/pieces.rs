//! Which ids are this text, by SentencePiece's BPE (Kudo and Richardson 2018)?
//!
//! Spaces become `▁`; then the two neighbouring pieces whose union has the highest score are joined, the leftmost of equals first, until no
//! union is a piece. A character that is no piece is written as its bytes. GGUF calls this tokenizer `llama`; Gemma 3, Mistral and
//! Phi-3 use it.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BinaryHeap, HashMap},
};

use aho_corasick::{AhoCorasick, MatchKind};

use super::{TokenId, TokenizerError};

/// `▁`, which stands for a space.
pub(super) const SPACE: &str = "\u{2581}";

/// What GGUF's `tokenizer.ggml.token_type` says of a token.
const NORMAL: i64 = 1;
const USER_DEFINED: i64 = 4;
const BYTE: i64 = 6;

/// A vocabulary of scored pieces.
pub(super) struct Pieces {
    pieces: HashMap<Box<str>, (TokenId, f32)>,
    /// Tokens that the makers found in the text before anything else, such as runs of spaces or HTML tags in Gemma 3.
    whole: Option<(AhoCorasick, Vec<TokenId>)>,
    bytes: Box<[Option<TokenId>; 256]>,
    unknown: Option<TokenId>,
    space_first: bool,
}

impl Pieces {
    /// `is_control`: tokens that no text may become. `space_first`: a space is put before the text.
    pub(super) fn new(
        words: &[String],
        scores: &[f64],
        kinds: &[i64],
        is_control: impl Fn(usize) -> bool,
        unknown: Option<TokenId>,
        space_first: bool,
    ) -> Result<Self, TokenizerError> {
        if scores.len() != words.len() || scores.iter().any(|score| score.is_nan()) {
            let problem = format!("{} tokens, {} scores, all of which must be numbers", words.len(), scores.len());
            return Err(TokenizerError::Vocabulary(problem));
        }
        let mut pieces = HashMap::with_capacity(words.len());
        let mut bytes = Box::new([None; 256]);
        let (mut whole, mut whole_ids) = (Vec::new(), Vec::new());
        for (i, word) in words.iter().enumerate().filter(|(i, word)| !is_control(*i) && !word.is_empty()) {
            let id = TokenId(i as u32);
            match kinds[i] {
                NORMAL => {
                    pieces.insert(word.as_str().into(), (id, scores[i] as f32));
                }
                USER_DEFINED => {
                    whole.push(word.as_str());
                    whole_ids.push(id);
                }
                BYTE => {
                    let byte = byte_of(word).ok_or_else(|| {
                        TokenizerError::Vocabulary(format!("byte token `{word}` is not written as `<0x41>`"))
                    })?;
                    bytes[usize::from(byte)] = Some(id);
                }
                _ => {}
            }
        }
        let whole = if whole.is_empty() { None } else { Some((leftmost_longest(&whole)?, whole_ids)) };
        Ok(Self { pieces, whole, bytes, unknown, space_first })
    }

    /// A space is put before each text, and taken off what is decoded.
    pub(super) fn space_first(&self) -> bool {
        self.space_first
    }

    pub(super) fn encode(&self, text: &str, out: &mut Vec<TokenId>) {
        let mut at = 0;
        if let Some((automaton, ids)) = &self.whole {
            for found in automaton.find_iter(text) {
                self.encode_between(&text[at..found.start()], out);
                out.push(ids[found.pattern().as_usize()]);
                at = found.end();
            }
        }
        self.encode_between(&text[at..], out);
    }

    fn encode_between(&self, text: &str, out: &mut Vec<TokenId>) {
        if text.is_empty() {
            return;
        }
        let mut spaced = if self.space_first { SPACE.to_owned() } else { String::new() };
        spaced.push_str(&text.replace(' ', SPACE));
        for piece in self.join(&spaced) {
            if let Some((id, _)) = self.pieces.get(piece) {
                out.push(*id);
            } else {
                // Only a single character is no piece: everything longer was joined because it is one.
                let ids: Option<Vec<_>> = piece.bytes().map(|byte| self.bytes[usize::from(byte)]).collect();
                out.extend(ids.unwrap_or_else(|| self.unknown.into_iter().collect()));
            }
        }
    }

    /// Cuts `text` into pieces.
    fn join<'a>(&self, text: &'a str) -> Vec<&'a str> {
        let mut parts: Vec<Part> = text
            .char_indices()
            .enumerate()
            .map(|(i, (start, c))| Part { start, len: c.len_utf8(), before: i.checked_sub(1), after: Some(i + 1) })
            .collect();
        if let Some(last) = parts.last_mut() {
            last.after = None;
        }
        let mut queue = BinaryHeap::new();
        for i in 1..parts.len() {
            self.offer(text, &parts, i - 1, i, &mut queue);
        }
        while let Some(Union { left: Reverse(left), right, len, .. }) = queue.pop() {
            // One of the two was joined to another neighbour meanwhile.
            if parts[left].len == 0 || parts[right].len == 0 || parts[left].len + parts[right].len != len {
                continue;
            }
            parts[left].len = len;
            parts[right].len = 0;
            let after = parts[right].after;
            parts[left].after = after;
            if let Some(after) = after {
                parts[after].before = Some(left);
                self.offer(text, &parts, left, after, &mut queue);
            }
            if let Some(before) = parts[left].before {
                self.offer(text, &parts, before, left, &mut queue);
            }
        }
        parts.iter().filter(|part| part.len > 0).map(|part| &text[part.start..part.start + part.len]).collect()
    }

    fn offer(&self, text: &str, parts: &[Part], left: usize, right: usize, queue: &mut BinaryHeap<Union>) {
        let len = parts[left].len + parts[right].len;
        let start = parts[left].start;
        if let Some((_, score)) = self.pieces.get(&text[start..start + len]) {
            queue.push(Union { score: *score, left: Reverse(left), right, len });
        }
    }
}

struct Part {
    start: usize,
    /// 0: joined to the part before it.
    len: usize,
    before: Option<usize>,
    after: Option<usize>,
}

struct Union {
    score: f32,
    left: Reverse<usize>,
    right: usize,
    len: usize,
}

impl Ord for Union {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_score = self.score.total_cmp(&other.score);
        by_score.then_with(|| (self.left, self.right, self.len).cmp(&(other.left, other.right, other.len)))
    }
}

impl PartialOrd for Union {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Union {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Union {}

/// `<0x41>` → 0x41.
pub(super) fn byte_of(word: &str) -> Option<u8> {
    let hex = word.strip_prefix("<0x")?.strip_suffix('>')?;
    (hex.len() == 2).then(|| u8::from_str_radix(hex, 16).ok()).flatten()
}

/// Finds the leftmost of several words in a text, the longest where several start there.
pub(crate) fn leftmost_longest<W: AsRef<[u8]>>(words: &[W]) -> Result<AhoCorasick, TokenizerError> {
    let mut builder = AhoCorasick::builder();
    let built = builder.match_kind(MatchKind::LeftmostLongest).build(words);
    built.map_err(|error| TokenizerError::Vocabulary(error.to_string()))
}
