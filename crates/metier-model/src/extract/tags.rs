//! Which tags do the words have, given how much the network likes each? Only tags that make spans: the inside of a field follows nothing
//! but its beginning or its inside.
//!
//! Tags of `n` fields: 0 is *outside*, `1 + 2f` begins field `f`, `2 + 2f` is inside it. The tags of a text are a path through a lattice of
//! (words, tags); its probability is `exp(Σ logits along it) / Z` with `Z` over all legal paths: a conditional random field (Lafferty et
//! al. 2001) whose transitions are 0 or −∞. As all words but insides may follow anything, every pass costs `words · tags`.

use std::ops::Range;

/// Not in a field.
pub const OUTSIDE: usize = 0;

/// The tag that begins a field.
pub const fn begin(field: usize) -> usize {
    1 + 2 * field
}

/// The tag of its further words.
pub const fn inside(field: usize) -> usize {
    2 + 2 * field
}

/// Tags of so many fields.
pub const fn n_tags(n_fields: usize) -> usize {
    1 + 2 * n_fields
}

/// The field of a tag; `None`: outside.
pub const fn field_of(tag: usize) -> Option<usize> {
    if tag == OUTSIDE { None } else { Some((tag - 1) / 2) }
}

/// May `tag` follow `before` (`None`: stand first)?
pub fn is_legal(before: Option<usize>, tag: usize) -> bool {
    tag == OUTSIDE || tag % 2 == 1 || before.is_some_and(|before| before == tag || before + 1 == tag && before % 2 == 1)
}

/// Words of a field.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Span {
    /// The words.
    pub words: Range<usize>,
    /// The field.
    pub field: usize,
}

/// The tags of non-overlapping spans; of spans that overlap, the earlier in the list stands.
pub fn tags_of(n_words: usize, spans: &[Span]) -> Vec<usize> {
    let mut tags = vec![OUTSIDE; n_words];
    for Span { words, field } in spans {
        if words.is_empty() || words.end > n_words || tags[words.clone()].iter().any(|tag| *tag != OUTSIDE) {
            continue;
        }
        tags[words.clone()].fill(inside(*field));
        tags[words.start] = begin(*field);
    }
    tags
}

/// The spans of legal tags. An inside without its beginning begins a span: nothing is lost where tags are not legal.
pub fn spans_of(tags: &[usize]) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    for (at, tag) in tags.iter().enumerate() {
        let Some(field) = field_of(*tag) else { continue };
        match spans.last_mut() {
            Some(span) if *tag == inside(field) && span.field == field && span.words.end == at => span.words.end += 1,
            _ => spans.push(Span { words: at..at + 1, field }),
        }
    }
    spans
}

/// How much the network likes each tag of each word.
#[derive(Clone, Copy, Debug)]
pub struct Lattice<'a> {
    logits: &'a [f32], // (words, tags)
    tags: usize,
}

/// Sums over all legal paths.
pub struct Sums {
    forward: Vec<f64>,  // (words, tags): of all paths up to here, this tag's logit included
    backward: Vec<f64>, // (words, tags): of all that may follow
    free: Vec<f64>,     // (words): of all that may follow but the inside of a running field
    /// ln Z
    pub total: f64,
}

impl<'a> Lattice<'a> {
    /// # Panics
    ///
    /// Where the logits are no whole rows, or `tags` is no number of tags.
    pub fn new(logits: &'a [f32], tags: usize) -> Self {
        assert!(tags % 2 == 1 && logits.len().is_multiple_of(tags), "whole rows of outside and two tags a field");
        Self { logits, tags }
    }

    /// Words.
    pub fn len(&self) -> usize {
        self.logits.len() / self.tags
    }

    /// No word at all?
    pub fn is_empty(&self) -> bool {
        self.logits.is_empty()
    }

    fn row(&self, word: usize) -> &'a [f32] {
        &self.logits[word * self.tags..][..self.tags]
    }

    /// The likeliest legal tags (Viterbi 1967) and the sum of their logits; of equals, the first tag.
    pub fn best(&self) -> (Vec<usize>, f64) {
        let (n, tags) = (self.len(), self.tags);
        if n == 0 {
            return (Vec::new(), 0.0);
        }
        let mut from: Vec<u32> = vec![0; n * tags];
        let mut score: Vec<f64> = vec![f64::NEG_INFINITY; tags];
        for (tag, logit) in self.row(0).iter().enumerate() {
            if is_legal(None, tag) {
                score[tag] = f64::from(*logit);
            }
        }
        for word in 1..n {
            let (row, from) = (self.row(word), &mut from[word * tags..][..tags]);
            let best = first_largest(&score);
            let mut next = vec![f64::NEG_INFINITY; tags];
            for tag in 0..tags {
                let before = if tag == OUTSIDE || tag % 2 == 1 {
                    best
                } else if score[tag] > score[tag - 1] {
                    tag
                } else {
                    tag - 1
                };
                from[tag] = before as u32;
                next[tag] = score[before] + f64::from(row[tag]);
            }
            score = next;
        }
        let last = first_largest(&score);
        let mut path = vec![last; n];
        for word in (1..n).rev() {
            path[word - 1] = from[word * tags + path[word]] as usize;
        }
        (path, score[last])
    }

    /// Sums over all legal paths (Rabiner 1989, in logarithms).
    pub fn sums(&self) -> Sums {
        let (n, tags) = (self.len(), self.tags);
        let mut forward = vec![f64::NEG_INFINITY; n * tags];
        for word in 0..n {
            let (before, here) = forward.split_at_mut(word * tags);
            let before = before.len().checked_sub(tags).map(|from| &before[from..]);
            let all = before.map_or(0.0, log_sum_exp);
            for (tag, logit) in self.row(word).iter().enumerate() {
                let reach = match before {
                    _ if tag == OUTSIDE || tag % 2 == 1 => all,
                    Some(before) => log_add(before[tag], before[tag - 1]),
                    None => f64::NEG_INFINITY,
                };
                here[tag] = reach + f64::from(*logit);
            }
        }
        let total = n.checked_sub(1).map_or(0.0, |last| log_sum_exp(&forward[last * tags..]));
        let mut backward = vec![0.0; n * tags];
        let mut free = vec![0.0; n];
        for word in (0..n.saturating_sub(1)).rev() {
            let row = self.row(word + 1);
            let after: Vec<f64> =
                (0..tags).map(|tag| f64::from(row[tag]) + backward[(word + 1) * tags + tag]).collect();
            let starts: Vec<f64> =
                after.iter().enumerate().filter(|(tag, _)| *tag == OUTSIDE || tag % 2 == 1).map(|(_, x)| *x).collect();
            free[word] = log_sum_exp(&starts);
            for tag in 0..tags {
                backward[word * tags + tag] = match field_of(tag) {
                    None => free[word],
                    Some(field) => log_add(free[word], after[inside(field)]),
                };
            }
        }
        Sums { forward, backward, free, total }
    }

    /// The sum of the logits along these tags.
    pub fn score(&self, path: &[usize]) -> f64 {
        path.iter().enumerate().map(|(word, tag)| f64::from(self.row(word)[*tag])).sum()
    }

    /// ln P(exactly this span is one of the text's): it begins, goes on, and does not go on behind its end.
    pub fn span_log_probability(&self, sums: &Sums, span: &Span) -> f64 {
        let (first, last) = (span.words.start, span.words.end - 1);
        let insides: f64 = (first + 1..=last).map(|word| f64::from(self.row(word)[inside(span.field)])).sum();
        (sums.forward[first * self.tags + begin(span.field)] + insides + sums.free[last] - sums.total).min(0.0)
    }

    /// P(tag of word) over all legal paths, written over `out` (words, tags): the derivative of ln Z by the logits.
    pub fn marginals(&self, sums: &Sums, out: &mut [f32]) {
        for (out, (a, b)) in out.iter_mut().zip(sums.forward.iter().zip(&sums.backward)) {
            *out = (a + b - sums.total).exp() as f32;
        }
    }
}

fn first_largest(values: &[f64]) -> usize {
    values.iter().enumerate().fold(0, |best, (at, value)| if *value > values[best] { at } else { best })
}

fn log_add(a: f64, b: f64) -> f64 {
    let (high, low) = if a > b { (a, b) } else { (b, a) };
    if low == f64::NEG_INFINITY { high } else { high + (low - high).exp().ln_1p() }
}

fn log_sum_exp(values: &[f64]) -> f64 {
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if high == f64::NEG_INFINITY {
        return high;
    }
    high + values.iter().map(|value| (value - high).exp()).sum::<f64>().ln()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;

    fn legal(path: &[usize]) -> bool {
        path.iter().enumerate().all(|(at, tag)| is_legal(at.checked_sub(1).map(|before| path[before]), *tag))
    }

    /// All paths of `n` words.
    fn paths(n: usize, tags: usize) -> Vec<Vec<usize>> {
        let all = (0..n).fold(vec![Vec::new()], |paths: Vec<Vec<usize>>, _| {
            paths.iter().flat_map(|path| (0..tags).map(|tag| [path.as_slice(), &[tag]].concat())).collect()
        });
        all.into_iter().filter(|path| legal(path)).collect()
    }

    proptest! {
        #[test]
        fn equals_the_sum_over_all_paths(
            n in 1usize..5, fields in 1usize..3, logits in prop::collection::vec(-4.0f32..4.0, 20),
        ) {
            let tags = n_tags(fields);
            let logits = &logits[..n * tags];
            let lattice = Lattice::new(logits, tags);
            let all = paths(n, tags);
            let weight = |path: &Vec<usize>| lattice.score(path).exp();
            let z: f64 = all.iter().map(weight).sum();
            let (best, score) = lattice.best();
            prop_assert!(legal(&best));
            let likeliest = all.iter().map(|path| lattice.score(path)).fold(f64::MIN, f64::max);
            prop_assert!((score - likeliest).abs() < 1e-5 && (lattice.score(&best) - score).abs() < 1e-5);
            let sums = lattice.sums();
            prop_assert!((sums.total - z.ln()).abs() < 1e-9);
            let mut marginals = vec![0.0; logits.len()];
            lattice.marginals(&sums, &mut marginals);
            for word in 0..n {
                for tag in 0..tags {
                    let expected = all.iter().filter(|path| path[word] == tag).map(weight).sum::<f64>() / z;
                    prop_assert!((f64::from(marginals[word * tags + tag]) - expected).abs() < 1e-6);
                }
            }
            for start in 0..n {
                for end in start + 1..=n {
                    for field in 0..fields {
                        let span = Span { words: start..end, field };
                        let has = |path: &&Vec<usize>| spans_of(path).contains(&span);
                        let expected = all.iter().filter(has).map(weight).sum::<f64>() / z;
                        prop_assert!((lattice.span_log_probability(&sums, &span).exp() - expected).abs() < 1e-6);
                    }
                }
            }
        }

        #[test]
        fn any_logits_give_legal_tags(n in 0usize..40, logits in prop::collection::vec(-1e30f32..1e30, 280)) {
            let lattice = Lattice::new(&logits[..n * 7], 7);
            let (path, _) = lattice.best();
            prop_assert!(path.len() == n && legal(&path));
            prop_assert_eq!(tags_of(n, &spans_of(&path)), path);
        }
    }

    #[test]
    fn spans_and_tags() {
        let spans = [Span { words: 0..2, field: 1 }, Span { words: 2..3, field: 1 }, Span { words: 4..6, field: 0 }];
        let tags = tags_of(6, &spans);
        assert_eq!(tags, [3, 4, 3, 0, 1, 2]);
        assert_eq!(spans_of(&tags), spans);
        assert_eq!(spans_of(&[2, 2, 4]).len(), 2, "an inside without its beginning is a span");
        assert_eq!(tags_of(2, &[Span { words: 0..2, field: 0 }, Span { words: 1..2, field: 1 }]), [1, 2]);
    }
}
