//! The least that an extraction must beat: values seen in training, found again.
//!
//! Each value of the training spans belongs to the field that it stood for most often; in a text the longest known values are taken first,
//! from the left. It is measured beside every extraction and never shipped: it is the list of the values themselves.

use std::{collections::BTreeMap, ops::Range};

use metier_model::extract::Span;

/// Words of a value that is remembered, at most.
const MAX_WORDS: usize = 12;

/// Values and the field of each.
#[derive(Clone, Debug, Default)]
pub struct Lookup {
    fields: BTreeMap<Vec<String>, usize>,
}

impl Lookup {
    /// Remembers the spans of some texts, given with the bytes of their words.
    pub fn fit<'a>(rows: impl Iterator<Item = (&'a str, &'a [Range<usize>], &'a [Span])>) -> Self {
        let mut counts: BTreeMap<Vec<String>, BTreeMap<usize, u64>> = BTreeMap::new();
        for (text, words, spans) in rows {
            let words = folded(text, words);
            for span in spans.iter().filter(|span| span.words.len() <= MAX_WORDS) {
                if let Some(value) = words.get(span.words.clone()) {
                    *counts.entry(value.to_vec()).or_default().entry(span.field).or_default() += 1;
                }
            }
        }
        // Of equals the field that stands first in the schema.
        let most = |counts: BTreeMap<usize, u64>| {
            counts.into_iter().fold((0, 0), |best, (f, n)| if n > best.1 { (f, n) } else { best }).0
        };
        Self { fields: counts.into_iter().map(|(value, counts)| (value, most(counts))).collect() }
    }

    /// The known values of a text, without overlaps, in order.
    pub fn spans(&self, text: &str, words: &[Range<usize>]) -> Vec<Span> {
        let words = folded(text, words);
        let mut free = vec![true; words.len()];
        let mut found = Vec::new();
        for len in (1..=MAX_WORDS.min(words.len())).rev() {
            for start in 0..=words.len() - len {
                let range = start..start + len;
                if !free[range.clone()].iter().all(|free| *free) {
                    continue;
                }
                if let Some(field) = self.fields.get(&words[range.clone()]) {
                    free[range.clone()].fill(false);
                    found.push(Span { words: range, field: *field });
                }
            }
        }
        found.sort_by_key(|span| span.words.start);
        found
    }
}

fn folded(text: &str, words: &[Range<usize>]) -> Vec<String> {
    words.iter().map(|word| text[word.clone()].to_lowercase()).collect()
}

#[cfg(test)]
mod tests {
    use metier_model::extract::words::words;

    use super::*;

    #[test]
    fn finds_what_it_has_seen_the_longest_first() {
        let seen = |from: usize, to: usize, field: usize| vec![Span { words: from..to, field }];
        let rows = [
            ("a red wine", seen(1, 3, 0)),
            ("a red car", seen(1, 2, 1)),
            ("red", seen(0, 1, 1)),
            ("a red hat", seen(1, 2, 0)),
        ];
        let cut: Vec<_> = rows.iter().map(|(text, spans)| (*text, words(text), spans)).collect();
        let lookup = Lookup::fit(cut.iter().map(|(text, words, spans)| (*text, words.as_slice(), spans.as_slice())));
        let text = "Red, red wine and white wine";
        let spans = lookup.spans(text, &words(text));
        assert_eq!(spans, [Span { words: 0..1, field: 1 }, Span { words: 2..4, field: 0 }]);
        assert!(lookup.spans("", &[]).is_empty());
    }
}
