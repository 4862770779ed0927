//! Which words and letters does this text hold? Text in, one sparse row of weighted n-gram features out.
//!
//! Fitted once in training, applied in serving. Deliberately absent: a vocabulary. Only sorted hashes are stored, so that
//! a bundle does not carry the names and numbers of its training texts in the clear (a hash of a *guessed* word can still
//! be checked: this is thrift and discretion, not secrecy; n-grams seen in a single row are dropped altogether).
//!
//! # Format `metier-ngrams-1`
//!
//! 1. Text is NFKC-normalised and lower-cased; accents stay.
//! 2. *Words* are maximal runs of alphanumeric characters and `_`. Word features are single words and pairs of
//!    neighbours joined by one space.
//! 3. *Chunks* are runs between white space, with a space put on both sides. Character features are their 2-, 3- and
//!    4-grams (the `char_wb` analyzer of scikit-learn; a chunk shorter than n counts once, whole).
//! 4. A feature's id is FNV-1a (64 bit) over its UTF-8 bytes, mixed by the finaliser of MurmurHash3, of which the upper
//!    31 bits are kept; the top bit of the `u32` is 0 for words and 1 for characters.
//! 5. Weight = (1 + ln tf) · idf with idf = ln((1 + n) / (1 + df)) + 1; the row is scaled to L2 norm 1.

use std::collections::BTreeMap;

use safetensors::SafeTensors;
use unicode_normalization::UnicodeNormalization as _;

use crate::specialist::tensors::{self, TensorError};

/// Name of the format above; stands in the manifest.
pub const FORMAT: &str = "metier-ngrams-1";

/// Ids gathered before they are merged into counts while fitting: 16 MiB.
const FIT_BUFFER_IDS: usize = 1 << 22;
const CHARACTER_BIT: u32 = 1 << 31;
const CHARACTER_NGRAMS: std::ops::RangeInclusive<usize> = 2..=4;

/// The n-grams that count, and how much.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    ids: Vec<u32>, // (n_features), strictly ascending
    idf: Vec<f32>, // (n_features)
}

/// One text as a sparse row: ascending columns, values of L2 norm 1 (or an empty row).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SparseRow {
    /// Column indices, strictly ascending, below the number of features.
    pub columns: Vec<u32>,
    /// One value a column.
    pub values: Vec<f32>,
}

impl SparseRow {
    /// The non-zero entries in ascending order of columns.
    pub fn iter(&self) -> impl Iterator<Item = (usize, f32)> + '_ {
        self.columns.iter().map(|&column| column as usize).zip(self.values.iter().copied())
    }
}

impl Features {
    /// Chooses features from training texts: those in at least `min_rows` of them, the most frequent `max_features`
    /// (ties: the lower id).
    pub fn fit<'a>(texts: impl Iterator<Item = &'a str>, min_rows: u32, max_features: usize) -> Self {
        let mut counts: Vec<(u32, u32)> = Vec::new();
        let mut buffer: Vec<u32> = Vec::new();
        let mut n_texts = 0u64;
        for text in texts {
            n_texts += 1;
            let start = buffer.len();
            ngrams(text, |id| buffer.push(id));
            buffer[start..].sort_unstable();
            let mut end = start;
            for at in start..buffer.len() {
                if at == start || buffer[at] != buffer[at - 1] {
                    buffer[end] = buffer[at];
                    end += 1;
                }
            }
            buffer.truncate(end);
            if buffer.len() >= FIT_BUFFER_IDS {
                counts = merge(counts, &mut buffer);
            }
        }
        counts = merge(counts, &mut buffer);
        counts.retain(|&(_, rows)| rows >= min_rows);
        if counts.len() > max_features {
            counts.sort_unstable_by_key(|&(id, rows)| (std::cmp::Reverse(rows), id));
            counts.truncate(max_features);
            counts.sort_unstable();
        }
        let idf =
            counts.iter().map(|&(_, rows)| (((1 + n_texts) as f64 / (1 + rows) as f64).ln() + 1.0) as f32).collect();
        Self { ids: counts.iter().map(|&(id, _)| id).collect(), idf }
    }

    /// Number of features, which is the number of columns of every row.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// True where no n-gram was frequent enough.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The row of one text.
    pub fn apply(&self, text: &str) -> SparseRow {
        let mut found: Vec<u32> = Vec::new();
        ngrams(text, |id| {
            if let Ok(column) = self.ids.binary_search(&id) {
                found.push(column as u32);
            }
        });
        found.sort_unstable();
        let mut row = SparseRow::default();
        let mut rest = found.as_slice();
        let mut square_sum = 0.0f64;
        while let Some(&column) = rest.first() {
            let times = rest.iter().take_while(|&&c| c == column).count();
            rest = &rest[times..];
            let value = (1.0 + (times as f64).ln()) * f64::from(self.idf[column as usize]);
            square_sum += value * value;
            row.columns.push(column);
            row.values.push(value as f32);
        }
        let scale = (1.0 / square_sum.sqrt()) as f32;
        row.values.iter_mut().for_each(|value| *value *= scale);
        row
    }

    /// Bytes of `features.safetensors`: `ids` (n) u32 and `idf` (n) f32.
    pub fn to_bytes(&self) -> Vec<u8> {
        tensors::write(&BTreeMap::from([
            ("idf", tensors::Tensor::f32(&[self.idf.len()], &self.idf)),
            ("ids", tensors::Tensor::u32(&[self.ids.len()], &self.ids)),
        ]))
    }

    /// Reads what [`Features::to_bytes`] wrote; refuses unsorted ids and weights that are not positive numbers.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TensorError> {
        let file = SafeTensors::deserialize(bytes)?;
        let (ids, _) = tensors::u32s(&file, "ids", 1)?;
        let (idf, _) = tensors::f32s(&file, "idf", 1)?;
        if ids.len() != idf.len() || !ids.is_sorted_by(|a, b| a < b) {
            return Err(TensorError::Inconsistent("`ids` must ascend and be as long as `idf`"));
        }
        if idf.iter().any(|weight| !weight.is_finite() || *weight <= 0.0) {
            return Err(TensorError::Inconsistent("`idf` must be positive numbers"));
        }
        Ok(Self { ids, idf })
    }
}

/// Calls `take` with the id of every n-gram of `text`, repeated ones included.
pub fn ngrams(text: &str, mut take: impl FnMut(u32)) {
    let text: String = text.nfkc().flat_map(char::to_lowercase).collect();
    let mut before: Option<&str> = None;
    let mut pair = String::new();
    for word in words(&text) {
        take(hash(word) & !CHARACTER_BIT);
        if let Some(before) = before {
            pair.clear();
            pair.extend([before, " ", word]);
            take(hash(&pair) & !CHARACTER_BIT);
        }
        before = Some(word);
    }
    let mut chunk = String::new();
    let mut starts: Vec<usize> = Vec::new(); // byte offset of each character, and of the end
    for part in text.split_whitespace() {
        chunk.clear();
        chunk.extend([" ", part, " "]);
        starts.clear();
        starts.extend(chunk.char_indices().map(|(at, _)| at));
        starts.push(chunk.len());
        let n_characters = starts.len() - 1;
        for n in CHARACTER_NGRAMS {
            if n >= n_characters {
                take(hash(&chunk) | CHARACTER_BIT);
                break;
            }
            for at in 0..=n_characters - n {
                take(hash(&chunk[starts[at]..starts[at + n]]) | CHARACTER_BIT);
            }
        }
    }
}

/// A text without what hardly matters: NFKC, lower case, words joined by single spaces; a text without words is only
/// trimmed. Equal folds count as the same text when rows are parted.
pub fn fold(text: &str) -> String {
    let lower: String = text.nfkc().flat_map(char::to_lowercase).collect();
    let words: Vec<&str> = words(&lower).collect();
    if words.is_empty() { lower.trim().to_owned() } else { words.join(" ") }
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// FNV-1a 64, then MurmurHash3's 64-bit finaliser (FNV's upper bits alone are poor on short strings), upper 32 bits.
fn hash(text: &str) -> u32 {
    let mut h = 0xcbf2_9ce4_8422_2325u64;
    for byte in text.bytes() {
        h = (h ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    (crate::specialist::mix(h) >> 32) as u32
}

/// Adds the ids of `buffer` (emptied) to sorted `(id, rows)` counts.
fn merge(counts: Vec<(u32, u32)>, buffer: &mut Vec<u32>) -> Vec<(u32, u32)> {
    buffer.sort_unstable();
    let mut merged: Vec<(u32, u32)> = Vec::with_capacity(counts.len() + buffer.len() / 4);
    let mut add = |id: u32, rows: u32| match merged.last_mut() {
        Some(last) if last.0 == id => last.1 += rows,
        _ => merged.push((id, rows)),
    };
    let mut old = counts.into_iter().peekable();
    for id in buffer.drain(..) {
        while let Some((id, rows)) = old.next_if(|known| known.0 <= id) {
            add(id, rows);
        }
        add(id, 1);
    }
    old.for_each(|(id, rows)| add(id, rows));
    merged
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const TEXTS: [&str; 3] = ["My card was lost!", "my CARD was stolen", "where is my card"];

    #[test]
    fn keeps_what_two_rows_share() {
        let features = Features::fit(TEXTS.into_iter(), 2, usize::MAX);
        let row = features.apply("my card");
        // words my, card and their pair; characters: " m" "my" "y " " my" "my " " my " and the 2-, 3-, 4-grams of " card ".
        assert_eq!(row.columns.len(), 3 + 6 + 5 + 4 + 3);
        let norm: f32 = row.values.iter().map(|v| v * v).sum();
        assert!((norm - 1.0).abs() < 1e-5, "norm² {norm}");
        assert_eq!(features.apply("MY   Ｃard"), row, "case, width and white space do not count");
        assert!(features.apply("ßß").columns.is_empty());
    }

    #[test]
    fn the_cap_keeps_the_most_frequent() {
        let all = Features::fit(TEXTS.into_iter(), 1, usize::MAX);
        let few = Features::fit(TEXTS.into_iter(), 1, 5);
        assert_eq!(few.len(), 5);
        assert!(few.ids.iter().all(|id| all.ids.contains(id)));
        assert!(few.idf.iter().all(|&idf| idf == all.idf.iter().copied().fold(f32::MAX, f32::min)));
    }

    #[test]
    fn merging_in_parts_equals_merging_at_once() {
        let ids = [5u32, 1, 9, 5, 5, 2, 1];
        let at_once = merge(Vec::new(), &mut ids.to_vec());
        let parts = merge(merge(Vec::new(), &mut ids[..3].to_vec()), &mut ids[3..].to_vec());
        assert_eq!(at_once, parts);
        assert_eq!(at_once, [(1, 2), (2, 1), (5, 3), (9, 1)]);
    }

    #[test]
    fn the_format_does_not_move() {
        // A change of these numbers is a new format: give it a new name and keep reading the old one.
        let mut ids = Vec::new();
        ngrams("É 1", |id| ids.push(id));
        assert_eq!(ids.len(), 3 + 3 + 3, "words and their pair; two 2-grams and one 3-gram a chunk");
        // From the independent computation of ten lines of Python.
        assert_eq!([hash(""), hash("é 1"), hash("card")], [0xefd0_1f60, 0x6346_a91f, 0x6e6f_f587]);
    }

    #[test]
    fn bytes_come_back_and_bad_bytes_do_not() {
        let features = Features::fit(TEXTS.into_iter(), 1, usize::MAX);
        assert_eq!(Features::from_bytes(&features.to_bytes()).unwrap(), features);
        let unsorted = Features { ids: vec![2, 1], idf: vec![1.0, 1.0] };
        assert!(Features::from_bytes(&unsorted.to_bytes()).is_err());
        let not_a_number = Features { ids: vec![1], idf: vec![f32::NAN] };
        assert!(Features::from_bytes(&not_a_number.to_bytes()).is_err());
        assert!(Features::from_bytes(b"nonsense").is_err());
    }
}
