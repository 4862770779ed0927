//! How do two texts agree, and where do they part? See the parent.

use unicode_normalization::UnicodeNormalization as _;

use crate::specialist::mix;

/// Numbers of one comparison.
pub const COMPARED: usize = 30;
/// Words of a side that are read, at most.
const MAX_WORDS: usize = 2048;
/// Words of a side whose order and near misses are looked at, at most: both cost the product of the two.
const MAX_NEAR: usize = 96;
/// Letters of a word that near misses are told by, at most.
const MAX_LETTERS: usize = 24;
/// Letters of the runs that are compared.
const GRAM: usize = 3;
/// Letters and digits that make a code, at least.
const MIN_CODE: usize = 3;
/// What stands where there is nothing to compare.
const NOTHING: f32 = -1.0;

/// A text, ready to be compared.
pub(super) struct Side {
    words: Vec<Word>,        // in order
    distinct: Vec<Word>,     // by id
    grams: Vec<(u32, f32)>,  // by id; of length 1 together
    vector: Vec<(u32, f32)>, // the same of words
    codes: Vec<Vec<char>>,   // sorted
    squeezed: Vec<char>,
    number: Option<f64>,
}

#[derive(Clone)]
struct Word {
    id: u32,
    weight: f32,
    letters: Vec<char>,
}

impl Word {
    fn is_number(&self) -> bool {
        self.letters.iter().all(char::is_ascii_digit)
    }
}

fn folded(text: &str) -> Vec<char> {
    text.nfkc().flat_map(char::to_lowercase).collect()
}

fn words(folded: &[char]) -> impl Iterator<Item = &[char]> {
    folded.split(|c| !c.is_alphanumeric()).filter(|word| !word.is_empty()).take(MAX_WORDS)
}

fn hash(letters: &[char]) -> u32 {
    let fnv = |h: u64, c: &char| (h ^ u64::from(u32::from(*c))).wrapping_mul(0x0100_0000_01b3);
    (mix(letters.iter().fold(0xcbf2_9ce4_8422_2325, fnv)) >> 32) as u32
}

fn distinct(mut ids: Vec<u32>) -> Vec<u32> {
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// Distinct ids of a text's words.
pub(super) fn word_ids(text: &str) -> Vec<u32> {
    distinct(words(&folded(text)).map(hash).collect())
}

/// Distinct ids of a text's runs of letters.
pub(super) fn gram_ids(text: &str) -> Vec<u32> {
    distinct(grams(&folded(text)))
}

/// Runs of letters over the words, one space between them.
fn grams(folded: &[char]) -> Vec<u32> {
    let mut spaced = vec![' '];
    for word in words(folded) {
        spaced.extend(word);
        spaced.push(' ');
    }
    spaced.windows(GRAM).map(hash).collect()
}

/// Weighted by `(1 + ln n) · rarity`, of length 1.
fn vector(mut ids: Vec<u32>, rarity: impl Fn(u32) -> f32) -> Vec<(u32, f32)> {
    ids.sort_unstable();
    let weighted = |run: &[u32]| (run[0], (1.0 + (run.len() as f32).ln()) * rarity(run[0]));
    let mut vector: Vec<(u32, f32)> = ids.chunk_by(|a, b| a == b).map(weighted).collect();
    let length = vector.iter().map(|(_, w)| w * w).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
    vector.iter_mut().for_each(|(_, w)| *w /= length);
    vector
}

impl Side {
    pub(super) fn of(text: &str, word_rarity: impl Fn(u32) -> f32, gram_rarity: impl Fn(u32) -> f32) -> Self {
        let folded = folded(text);
        let words: Vec<Word> = words(&folded)
            .map(|letters| {
                let id = hash(letters);
                Word { id, weight: word_rarity(id), letters: letters.iter().copied().take(MAX_LETTERS).collect() }
            })
            .collect();
        let mut distinct = words.clone();
        distinct.sort_by_key(|word| word.id);
        distinct.dedup_by_key(|word| word.id);
        // `dsc-w120` is a code as it stands, and so is `w120`.
        let chunks = folded.split(|c| c.is_whitespace()).take(MAX_WORDS);
        let chunks = chunks.map(|chunk| chunk.iter().copied().filter(|c| c.is_alphanumeric()).collect::<Vec<char>>());
        let squeezed: Vec<char> = chunks.clone().flatten().collect();
        let mut codes: Vec<Vec<char>> = chunks.chain(distinct.iter().map(|word| word.letters.clone())).collect();
        let is_code = |code: &[char]| {
            code.len() >= MIN_CODE && code.iter().any(|c| c.is_numeric()) && code.iter().any(|c| c.is_alphabetic())
        };
        codes.retain(|code| is_code(code));
        codes.iter_mut().for_each(|code| code.truncate(MAX_LETTERS));
        codes.sort_unstable();
        codes.dedup();
        Self {
            vector: vector(words.iter().map(|word| word.id).collect(), word_rarity),
            grams: vector(grams(&folded), gram_rarity),
            number: number(&folded),
            words,
            distinct,
            codes,
            squeezed,
        }
    }
}

/// The only number of a text, `1,299.00 $` among them.
fn number(folded: &[char]) -> Option<f64> {
    let from = folded.iter().position(char::is_ascii_digit)?;
    let to = folded.iter().rposition(char::is_ascii_digit)?;
    let digits: String = folded[from..=to].iter().filter(|c| **c != ',').collect();
    let value: f64 = digits.parse().ok()?;
    let negative = from > 0 && folded[from - 1] == '-';
    value.is_finite().then_some(if negative { -value } else { value })
}

/// Appends [`COMPARED`] numbers.
pub(super) fn compare(a: &Side, b: &Side, out: &mut Vec<f32>) {
    let start = out.len();
    let shared = |word: &&Word, other: &Side| other.distinct.binary_search_by_key(&word.id, |w| w.id).is_ok();
    let both: Vec<&Word> = a.distinct.iter().filter(|word| shared(word, b)).collect();
    let only = |x: &'_ Side, y: &Side| x.distinct.iter().filter(|word| !shared(word, y)).cloned().collect::<Vec<_>>();
    let (only_a, only_b) = (only(a, b), only(b, a));
    let sum = |words: &mut dyn Iterator<Item = &Word>| words.map(|word| word.weight).sum::<f32>();
    let common = sum(&mut both.iter().copied());
    let (all_a, all_b) = (sum(&mut a.distinct.iter()), sum(&mut b.distinct.iter()));
    let union = both.len() + only_a.len() + only_b.len();
    let share = |part: f32, whole: f32| if whole > 0.0 { part / whole } else { NOTHING };
    out.extend([
        share(both.len() as f32, union as f32),
        share(common, all_a),
        share(common, all_b),
        share(common, all_a + all_b - common),
        cosine(&a.vector, &b.vector),
        cosine(&a.grams, &b.grams),
    ]);
    let rarest = |words: &mut dyn Iterator<Item = &Word>| words.map(|word| word.weight).fold(0.0, f32::max);
    out.extend([rarest(&mut both.iter().copied()), rarest(&mut only_a.iter()), rarest(&mut only_b.iter())]);
    let numbers = |words: &mut dyn Iterator<Item = &Word>| words.filter(|word| word.is_number()).count() as f32;
    out.extend([numbers(&mut both.iter().copied()), numbers(&mut only_a.iter()), numbers(&mut only_b.iter())]);
    codes(a, b, out);
    let (n, m) = (a.words.len(), b.words.len());
    let (near_a, near_b) = (&a.words[..n.min(MAX_NEAR)], &b.words[..m.min(MAX_NEAR)]);
    out.extend([
        in_order(near_a, near_b) as f32 / n.min(m).clamp(1, MAX_NEAR) as f32,
        share(n.min(m) as f32, n.max(m) as f32),
        n as f32,
        m as f32,
        f32::from(u8::from(matches!((a.words.first(), b.words.first()), (Some(x), Some(y)) if x.id == y.id))),
    ]);
    out.extend([nearly(&a.distinct, &only_a, &only_b, all_a), nearly(&b.distinct, &only_b, &only_a, all_b)]);
    out.extend(nearness(a.number, b.number));
    out.push(f32::from(u8::from(n == 0)) + f32::from(u8::from(m == 0)));
    debug_assert_eq!(out.len() - start, COMPARED);
}

fn cosine(a: &[(u32, f32)], b: &[(u32, f32)]) -> f32 {
    if a.is_empty() || b.is_empty() {
        return NOTHING;
    }
    let (mut i, mut j, mut sum) = (0, 0, 0.0);
    while i < a.len() && j < b.len() {
        match a[i].0.cmp(&b[j].0) {
            std::cmp::Ordering::Less => i += 1,
            std::cmp::Ordering::Greater => j += 1,
            std::cmp::Ordering::Equal => {
                sum += a[i].1 * b[j].1;
                (i, j) = (i + 1, j + 1);
            }
        }
    }
    sum
}

/// Codes of both, of one alone, found inside what the other writes without its hyphens, and the nearest miss.
fn codes(a: &Side, b: &Side, out: &mut Vec<f32>) {
    let has = |side: &Side, code: &[char]| side.codes.binary_search_by(|c| c.as_slice().cmp(code)).is_ok();
    let inside = |side: &Side, code: &[char]| side.squeezed.windows(code.len()).any(|window| window == code);
    let both = a.codes.iter().filter(|code| has(b, code)).count();
    let longest =
        |x: &Side, y: &Side| x.codes.iter().filter(|code| inside(y, code)).map(Vec::len).max().unwrap_or(0) as f32;
    let missing = |x: &Side, y: &Side| x.codes.iter().filter(|code| !inside(y, code)).count() as f32;
    let few = |side: &'_ Side| side.codes.iter().take(MAX_NEAR).cloned().collect::<Vec<_>>();
    let others = few(b);
    let nearest = few(a).iter().flat_map(|x| others.iter().map(|y| similarity(x, y))).fold(NOTHING, f32::max);
    out.extend([
        both as f32,
        (a.codes.len() - both) as f32,
        (b.codes.len() - both) as f32,
        longest(a, b),
        longest(b, a),
        missing(a, b),
        missing(b, a),
        nearest,
    ]);
}

/// Length of the longest run of words that both have in one order, others between them.
fn in_order(a: &[Word], b: &[Word]) -> usize {
    let mut row = vec![0; b.len() + 1];
    for x in a {
        let mut before = 0; // of the row above, one to the left
        for (j, y) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if x.id == y.id { before + 1 } else { above.max(row[j]) };
            before = above;
        }
    }
    row[b.len()]
}

/// Share of a side's weight that the other side has, near misses by how near they are.
fn nearly(all: &[Word], only: &[Word], others: &[Word], weight: f32) -> f32 {
    if all.is_empty() {
        return NOTHING;
    }
    let others = &others[..others.len().min(MAX_NEAR)];
    let missed = only.iter().take(MAX_NEAR).map(|word| {
        let nearest = others.iter().map(|other| similarity(&word.letters, &other.letters)).fold(0.0, f32::max);
        word.weight * (1.0 - nearest)
    });
    let unseen: f32 = only.iter().skip(MAX_NEAR).map(|word| word.weight).sum();
    1.0 - (missed.sum::<f32>() + unseen) / weight.max(f32::MIN_POSITIVE)
}

/// `1 − edits / longer`, 0..1.
fn similarity(a: &[char], b: &[char]) -> f32 {
    let longer = a.len().max(b.len());
    if longer == 0 {
        return 1.0;
    }
    let mut row: [usize; MAX_LETTERS + 1] = std::array::from_fn(|j| j);
    let b = &b[..b.len().min(MAX_LETTERS)];
    for (i, x) in a.iter().enumerate() {
        let mut before = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = (before + usize::from(x != y)).min(above + 1).min(row[j] + 1);
            before = above;
        }
    }
    1.0 - row[b.len()].min(longer) as f32 / longer as f32
}

/// Smaller over larger of two numbers, and whether they are equal.
fn nearness(a: Option<f64>, b: Option<f64>) -> [f32; 2] {
    let (Some(a), Some(b)) = (a, b) else { return [NOTHING; 2] };
    let larger = a.abs().max(b.abs());
    let ratio = if larger == 0.0 || a == b {
        1.0
    } else if a * b < 0.0 {
        0.0
    } else {
        a.abs().min(b.abs()) / larger
    };
    [ratio as f32, f32::from(u8::from(a == b))]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn numbers(a: &str, b: &str) -> Vec<f32> {
        let side = |text| Side::of(text, |_| 1.0, |_| 1.0);
        let mut out = Vec::new();
        compare(&side(a), &side(b), &mut out);
        out
    }

    #[test]
    fn words_codes_and_numbers_by_hand() {
        let found = numbers("Sony DSC-W120 camera 7", "sony dscw120 black 7 9");
        // Words: sony dsc w120 camera 7 against sony dscw120 black 7 9; two shared of eight.
        assert_eq!(found[..4], [2.0 / 8.0, 2.0 / 5.0, 2.0 / 5.0, 2.0 / 8.0]);
        assert_eq!(found[9..12], [1.0, 0.0, 1.0], "numbers: 7, and 9 on the right alone");
        // Codes: dscw120 and w120 against dscw120.
        assert_eq!(found[12..20], [1.0, 1.0, 0.0, 7.0, 7.0, 0.0, 0.0, 1.0]);
        assert_eq!(found[20], 2.0 / 5.0, "sony, 7 in one order; the shorter has five words");
        assert_eq!(found[24], 1.0, "both begin with sony");
        assert_eq!(numbers("$1,000.00", "999")[27..29], [0.999, 0.0]);
        assert_eq!(numbers("3.0", "3")[27..29], [1.0, 1.0]);
        assert_eq!(numbers("", "x")[27..], [-1.0, -1.0, 1.0]);
        assert!((similarity(&['a', 'b', 'c', 'd'], &['a', 'x', 'c']) - 0.5).abs() < 1e-6);
    }

    proptest! {
        /// Any two texts have finite numbers, and a text agrees with itself in whole.
        #[test]
        fn never_fails(a in "\\PC{0,60}", b in "\\PC{0,60}") {
            prop_assert!(numbers(&a, &b).iter().all(|x| x.is_finite()));
            let same = numbers(&a, &a);
            if same[23] > 0.0 {
                prop_assert!(same[0] == 1.0 && same[20] == 1.0 && (same[4] - 1.0).abs() < 1e-5);
            }
        }
    }
}
