//! Which words does a text have, and which of them does the network read together?
//!
//! A word is a run of letters, a run of digits, one ideograph, or one other visible character: `10.6oz` is `10`, `.`, `6`, `oz`. Tags
//! stand on words, so a span begins and ends where words do.
//!
//! ```text
//! words     w0 w1 w2 w3 w4 w5 w6 w7 …
//! windows   [w0 ────────── w5]
//!                    [w3 ────────── w8]
//! read from  └─ first ──┘└─ second ──┘     each word where it has most context
//! ```

use std::ops::Range;

/// Bytes of each word of a text, in order.
pub fn words(text: &str) -> Vec<Range<usize>> {
    let mut words: Vec<Range<usize>> = Vec::new();
    let mut last = Class::Space;
    for (at, c) in text.char_indices() {
        let (class, end) = (Class::of(c), at + c.len_utf8());
        match (class, words.last_mut()) {
            (Class::Space, _) => {}
            (Class::Letter | Class::Digit, Some(word)) if class == last => word.end = end,
            _ => words.push(at..end),
        }
        last = class;
    }
    words
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Space,
    Letter,
    Digit,
    Single,
}

impl Class {
    fn of(c: char) -> Self {
        let ideograph =
            matches!(u32::from(c), 0x3040..=0x30ff | 0x3400..=0x9fff | 0xf900..=0xfaff | 0x2_0000..=0x3_ffff);
        match c {
            _ if c.is_whitespace() || c.is_control() => Self::Space,
            _ if ideograph => Self::Single,
            _ if c.is_numeric() => Self::Digit,
            _ if c.is_alphabetic() => Self::Letter,
            _ => Self::Single,
        }
    }
}

/// Shapes of words.
const SHAPES: usize = 6;
/// Elements of [`shape_row`].
pub const SHAPE_ROW: usize = 3 * SHAPES;

/// How a word is written: letter case, which vocabularies such as MiniLM's do not have, and whether it is of letters at all.
fn shape(word: &str) -> usize {
    let mut letters = word.chars();
    let Some(first) = letters.next().filter(|first| first.is_alphabetic()) else {
        return if word.starts_with(char::is_numeric) { 4 } else { 5 };
    };
    let (mut upper, mut lower) = (false, false);
    letters.for_each(|c| if c.is_uppercase() { upper = true } else { lower = true });
    match (first.is_uppercase(), upper, lower) {
        (false, false, _) => 0,
        (true, false, _) => 1,
        (true, true, false) => 2,
        _ => 3,
    }
}

/// What stands beside a word's hidden row: a 1 for the shape of the word before it, its own, and that of the word after it.
pub fn shape_row(text: &str, words: &[Range<usize>], word: usize) -> [f32; SHAPE_ROW] {
    let mut row = [0.0; SHAPE_ROW];
    for (place, at) in [word.checked_sub(1), Some(word), Some(word + 1)].into_iter().enumerate() {
        if let Some(word) = at.and_then(|at| words.get(at)) {
            row[place * SHAPES + shape(&text[word.clone()])] = 1.0;
        }
    }
    row
}

/// The words that bytes `span` touch; `None` where it touches none. The second value: do the words end where the span does?
pub fn words_in(words: &[Range<usize>], span: &Range<usize>) -> Option<(Range<usize>, bool)> {
    let first = words.partition_point(|word| word.end <= span.start);
    let end = words.partition_point(|word| word.start < span.end);
    (first < end).then(|| {
        let exact = words[first].start >= span.start && words[end - 1].end <= span.end;
        (first..end, exact)
    })
}

/// Words that the network reads together, and those that are read from this window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Words in it.
    pub words: Range<usize>,
    /// Words whose tags come from it.
    pub keep: Range<usize>,
}

/// Parts words of so many tokens into windows of at most `room` tokens; neighbours share about a quarter of it. A word that does not fit
/// is alone in its window (and will be cut).
pub fn windows(tokens: &[usize], room: usize) -> Vec<Window> {
    let mut windows: Vec<Window> = Vec::new();
    let mut start = 0;
    while start < tokens.len() {
        let (mut end, mut sum) = (start, 0);
        while end < tokens.len() && (end == start || sum + tokens[end] <= room) {
            sum += tokens[end];
            end += 1;
        }
        let keep = match windows.last_mut() {
            None => 0,
            // The words that both have are shared out at their middle.
            Some(before) => {
                let middle = usize::midpoint(start, before.words.end);
                before.keep.end = middle;
                middle
            }
        };
        windows.push(Window { words: start..end, keep: keep..end });
        if end == tokens.len() {
            break;
        }
        let mut shared = 0;
        let mut next = end;
        while next > start + 1 && shared + tokens[next - 1] <= room / 4 {
            next -= 1;
            shared += tokens[next];
        }
        start = next;
    }
    windows
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &[&str]) {
        assert_eq!(words(text).into_iter().map(|word| &text[word]).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn cuts_where_values_may_end() {
        check("10.6oz Box", &["10", ".", "6", "oz", "Box"]);
        check("€1.234,50 am 3.\u{a0}März", &["€", "1", ".", "234", ",", "50", "am", "3", ".", "März"]);
        check("東京 a", &["東", "京", "a"]);
        check(" \u{0} ", &[]);
    }

    #[test]
    fn shapes_of_a_word_and_its_neighbours() {
        let text = "the Flow ESPAÑOL iPod 12 -";
        let all = words(text);
        let shapes: Vec<usize> = all.iter().map(|word| shape(&text[word.clone()])).collect();
        assert_eq!(shapes, [0, 1, 2, 3, 4, 5]);
        let set = |word: usize| {
            let row = shape_row(text, &all, word);
            row.iter().enumerate().filter(|(_, x)| **x == 1.0).map(|(at, _)| at).collect::<Vec<_>>()
        };
        assert_eq!(
            (set(0), set(1), set(5)),
            (vec![SHAPES, 2 * SHAPES + 1], vec![0, SHAPES + 1, 2 * SHAPES + 2], vec![4, SHAPES + 5])
        );
    }

    #[test]
    fn finds_the_words_of_a_span() {
        let text = "Model X-200 red";
        let all = words(text);
        assert_eq!(words_in(&all, &(6..11)), Some((1..4, true)));
        assert_eq!(words_in(&all, &(7..10)), Some((2..4, false)));
        assert_eq!(words_in(&all, &(5..6)), None);
    }

    proptest! {
        #[test]
        fn words_cover_all_that_is_visible(text in "\\PC{0,60}") {
            let all = words(&text);
            for word in 0..all.len() {
                let n = shape_row(&text, &all, word).iter().filter(|x| **x == 1.0).count();
                prop_assert_eq!(n, 1 + usize::from(word > 0) + usize::from(word + 1 < all.len()));
            }
            prop_assert!(all.windows(2).all(|pair| pair[0].end <= pair[1].start));
            let covered: String = all.iter().map(|word| &text[word.clone()]).collect();
            let visible: String = text.chars().filter(|c| !c.is_whitespace() && !c.is_control()).collect();
            prop_assert_eq!(covered, visible);
        }

        #[test]
        fn each_word_is_read_once_and_windows_have_room(
            tokens in prop::collection::vec(1usize..6, 0..200), room in 5usize..40,
        ) {
            let all = windows(&tokens, room);
            let kept: Vec<usize> = all.iter().flat_map(|window| window.keep.clone()).collect();
            prop_assert_eq!(kept, (0..tokens.len()).collect::<Vec<_>>());
            for window in &all {
                prop_assert!(window.words.start <= window.keep.start && window.keep.end <= window.words.end);
                prop_assert!(tokens[window.words.clone()].iter().sum::<usize>() <= room);
            }
        }
    }

    #[test]
    fn a_word_without_room_stands_alone() {
        let all = windows(&[2, 90, 2], 10);
        assert_eq!(all.iter().map(|window| window.keep.clone()).collect::<Vec<_>>(), [0..1, 1..2, 2..3]);
    }
}
