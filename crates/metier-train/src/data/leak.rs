//! Does training see what it is measured on? Exact and near-duplicates between training rows and calibration or test rows.
//!
//! Two texts are near-duplicates if the sets of their 5-character shingles (case, punctuation and white space folded)
//! have a Jaccard index ≥ 0.8. Candidates come from MinHash (64 permutations in 16 bands of 4: a pair at 0.8 is missed
//! once in 5,000), each is then compared exactly. Near-duplicates are taken out of *training*, never out of what is
//! measured on: calibration rows must stay a fair draw of traffic.
//!
//! What more than half of the texts say is left out of the comparison: prompts that one template made share most of their words, and differ in what is asked.
//!
//! Rows of several inputs are near-duplicates only if they are so input by input: two pairs that share one long offer and differ in the short
//! other one are two questions, with two answers.

use std::collections::{BTreeMap, HashMap, HashSet};

use metier_model::{
    features::fold,
    specialist::{Inputs, mix},
};
use serde::{Deserialize, Serialize};

use super::split::{Example, Part};

/// Jaccard index from which on two texts count as near-duplicates.
pub const NEAR: f64 = 0.8;
/// Pairs listed in a report.
const MAX_LISTED: usize = 10;
/// Share of a text, on average, that more than half of them say, from which on a template made them: it is 0 to 3 % of texts that people write.
const SAID_BY_ALL: f64 = 0.1;
/// Rows of which it is told what they all say, at most, and at least.
const LOOKED_AT: usize = 1000;
const MIN_LOOKED_AT: usize = 20;
const SHINGLE_CHARACTERS: usize = 5;
const BANDS: usize = 16;
const ROWS_A_BAND: usize = 4;

/// What is suspicious about the rows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LeakReport {
    /// Training rows equal to a calibration or test row, up to case, punctuation and white space.
    pub exact: u64,
    /// Training rows near a calibration or test row, not equal to it.
    pub near: u64,
    /// Training rows of a group that calibration or test rows have too.
    pub same_group: u64,
    /// Training rows that were left out for these reasons.
    pub removed: u64,
    /// The first of them.
    pub listed: Vec<Leak>,
    /// Equal texts with different labels.
    pub contradictions: u64,
    /// The first of them.
    pub contradicting: Vec<Contradiction>,
}

/// A training row that was left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Leak {
    /// `file:line` of the training row.
    pub train: String,
    /// `file:line` of the row it is too near to.
    pub measured: String,
    /// Part of that row.
    pub part: Part,
    /// Jaccard index of the two; 1 also where only the group is equal.
    pub similarity: f64,
    /// It was left out because the two are of one group, whatever their texts.
    #[serde(default)]
    pub same_group: bool,
}

impl Leak {
    /// Which row it was too near to, and how: `0.86 like FILE:LINE (test)`.
    pub fn why(&self) -> String {
        let (measured, part) = (&self.measured, self.part.name());
        if self.same_group {
            format!("of one group with {measured} ({part})")
        } else {
            format!("{:.2} like {measured} ({part})", self.similarity)
        }
    }
}

/// Two rows with one text and two labels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Contradiction {
    /// `file:line` and label of the first.
    pub first: (String, String),
    /// `file:line` and label of the second.
    pub second: (String, String),
}

/// Looks for leaks and takes leaking rows out of training.
pub(crate) fn check(parts: &mut [Vec<Example>; 4], inputs: &[String]) -> LeakReport {
    let mut report = LeakReport::default();
    contradictions(parts, &mut report);
    // Of several inputs each is compared for itself.
    let said = if inputs.len() < 2 { Boilerplate::of(parts) } else { Boilerplate::default() };
    let [train, _, calibration, test] = parts;
    let measured: Vec<(Part, &Example)> =
        (calibration.iter().map(|e| (Part::Calibration, e))).chain(test.iter().map(|e| (Part::Test, e))).collect();
    let shingled: Vec<Vec<u64>> = measured.iter().map(|(_, example)| said.without(&example.row.text)).collect();
    let index = Index::new(&shingled);
    let groups: BTreeMap<&str, usize> = measured
        .iter()
        .enumerate()
        .filter_map(|(at, (_, example))| Some((example.row.group.as_deref()?, at)))
        .collect();
    train.retain(|example| {
        let group = example.row.group.as_deref().and_then(|group| groups.get(group));
        let alike = |at: usize| inputs.len() < 2 || input_by_input(inputs, &example.row.text, &measured[at].1.row.text);
        let found = group.map(|&at| (at, 1.0)).or_else(|| index.nearest(&said.without(&example.row.text), &alike));
        let Some((at, similarity)) = found else { return true };
        if group.is_some() {
            report.same_group += 1;
        } else if similarity >= 1.0 {
            report.exact += 1;
        } else {
            report.near += 1;
        }
        report.removed += 1;
        if report.listed.len() < MAX_LISTED {
            let (part, other) = measured[at];
            let (train, measured) = (example.row.place.to_string(), other.row.place.to_string());
            let same_group = group.is_some();
            report.listed.push(Leak { train, measured, part, similarity, same_group });
        }
        false
    });
    report
}

fn contradictions(parts: &[Vec<Example>; 4], report: &mut LeakReport) {
    let mut first: BTreeMap<String, &Example> = BTreeMap::new();
    for example in parts.iter().flatten() {
        let known = first.entry(fold(&example.row.text)).or_insert(example);
        if known.class != example.class {
            report.contradictions += 1;
            if report.contradicting.len() < MAX_LISTED {
                let side = |e: &Example| (e.row.place.to_string(), e.row.label.clone());
                report.contradicting.push(Contradiction { first: side(known), second: side(example) });
            }
        }
    }
}

/// What more than half of the texts say.
#[derive(Default)]
struct Boilerplate(HashSet<u64>);

impl Boilerplate {
    fn of(parts: &[Vec<Example>; 4]) -> Self {
        let n: usize = parts.iter().map(Vec::len).sum();
        let rows = parts.iter().flatten().step_by(n.div_ceil(LOOKED_AT).max(1));
        let sets: Vec<Vec<u64>> = rows.map(|example| shingles(&example.row.text)).collect();
        let mut counts = HashMap::<u64, usize>::new();
        sets.iter().flatten().for_each(|&shingle| *counts.entry(shingle).or_default() += 1);
        let common: HashSet<u64> =
            counts.into_iter().filter(|(_, count)| 2 * count > sets.len()).map(|(shingle, _)| shingle).collect();
        let share = |set: &Vec<u64>| set.iter().filter(|&one| common.contains(one)).count() as f64 / set.len() as f64;
        let mean = sets.iter().map(share).sum::<f64>() / sets.len().max(1) as f64;
        if sets.len() < MIN_LOOKED_AT || mean < SAID_BY_ALL { Self::default() } else { Self(common) }
    }

    /// The shingles of a text that are its own; all of them, if none is.
    fn without(&self, text: &str) -> Vec<u64> {
        let all = shingles(text);
        if self.0.is_empty() {
            return all;
        }
        let own: Vec<u64> = all.iter().copied().filter(|shingle| !self.0.contains(shingle)).collect();
        if own.is_empty() { all } else { own }
    }
}

/// Is each input of one text near the same input of the other?
fn input_by_input(inputs: &[String], a: &str, b: &str) -> bool {
    let (a, b) = (Inputs::of(inputs, a), Inputs::of(inputs, b));
    let whole = |row: &Inputs<'_>, at: usize| {
        shingles(&row.fields(at).iter().map(|field| field.value).collect::<Vec<_>>().join(" "))
    };
    (0..inputs.len()).all(|at| jaccard(&whole(&a, at), &whole(&b, at)) >= NEAR)
}

/// Sorted hashes of the distinct shingles of a text.
fn shingles(text: &str) -> Vec<u64> {
    let characters: Vec<char> = fold(text).chars().collect();
    let hash = |window: &[char]| window.iter().fold(0, |h, &c| mix(h ^ u64::from(u32::from(c))).wrapping_add(1));
    let mut all: Vec<u64> = if characters.len() <= SHINGLE_CHARACTERS {
        vec![hash(&characters)]
    } else {
        characters.windows(SHINGLE_CHARACTERS).map(hash).collect()
    };
    all.sort_unstable();
    all.dedup();
    all
}

/// |a ∩ b| / |a ∪ b| of sorted sets.
fn jaccard(a: &[u64], b: &[u64]) -> f64 {
    let (mut i, mut j, mut both) = (0, 0, 0usize);
    while i < a.len() && j < b.len() {
        match a[i].cmp(&b[j]) {
            std::cmp::Ordering::Less => i += 1,
            std::cmp::Ordering::Greater => j += 1,
            std::cmp::Ordering::Equal => (i, j, both) = (i + 1, j + 1, both + 1),
        }
    }
    both as f64 / (a.len() + b.len() - both) as f64
}

struct Index<'a> {
    shingled: &'a [Vec<u64>],
    bands: Vec<Vec<(u64, u32)>>, // a band: sorted (key, row)
}

impl<'a> Index<'a> {
    fn new(shingled: &'a [Vec<u64>]) -> Self {
        let mut bands = vec![Vec::new(); BANDS];
        for (row, shingles) in shingled.iter().enumerate() {
            for (band, key) in keys(shingles).into_iter().enumerate() {
                bands[band].push((key, row as u32));
            }
        }
        bands.iter_mut().for_each(|band| band.sort_unstable());
        Self { shingled, bands }
    }

    /// A row with Jaccard index ≥ [`NEAR`] that is `alike`, the first found, and the index.
    fn nearest(&self, shingles: &[u64], alike: &dyn Fn(usize) -> bool) -> Option<(usize, f64)> {
        for (band, key) in self.bands.iter().zip(keys(shingles)) {
            let from = band.partition_point(|entry| entry.0 < key);
            for &(_, row) in band[from..].iter().take_while(|entry| entry.0 == key) {
                let similarity = jaccard(shingles, &self.shingled[row as usize]);
                if similarity >= NEAR && alike(row as usize) {
                    return Some((row as usize, similarity));
                }
            }
        }
        None
    }
}

/// One key a band: the hash of the least values of its permutations.
fn keys(shingles: &[u64]) -> [u64; BANDS] {
    std::array::from_fn(|band| {
        (0..ROWS_A_BAND).fold(band as u64, |key, row| {
            let salt = mix((band * ROWS_A_BAND + row) as u64 + 1);
            let least = shingles.iter().map(|shingle| mix(shingle ^ salt)).min().unwrap_or(0);
            mix(key.wrapping_mul(31) ^ least)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Place, table::Row};

    #[track_caller]
    fn pair(a: &str, b: &str, near: bool) {
        let known = [shingles(a)];
        assert_eq!(
            Index::new(&known).nearest(&shingles(b), &|_| true).is_some(),
            near,
            "{}",
            jaccard(&known[0], &shingles(b))
        );
    }

    #[test]
    fn pairs_are_near_only_side_by_side() {
        let inputs = ["left", "right"].map(str::to_owned);
        let long =
            "a thirty litre backpack with a rain cover, two side pockets and a padded hip belt, made for day walks";
        let text = |left: &str, right: &str| format!("left: {left}\nright: {right}");
        let near = |a: &str, b: &str| input_by_input(&inputs, a, b);
        assert!(near(&text(long, "backpack 30"), &text(&long.to_uppercase(), "Backpack 30")));
        assert!(!near(&text(long, "backpack 30"), &text(long, "tent")), "the long side alone is equal");
    }

    #[test]
    fn what_a_template_says_makes_no_two_texts_alike() {
        let row = |text: String| Example {
            class: 0,
            row: Row {
                text,
                label: "x".to_owned(),
                group: None,
                reference: None,
                extra: Vec::new(),
                place: Place { file: "a.csv".into(), line: 1 },
            },
        };
        let asked = |what: &str| {
            row(format!(
                "Below stands what a customer wrote about one of our products.\n\"{what}\"\nIs this positive, neutral or negative? Answer with one word only."
            ))
        };
        let things = [
            "kettle", "lamp", "sofa", "phone", "shelf", "clock", "bottle", "jacket", "tent", "razor", "radio", "mouse",
        ];
        let said = ["works as it should", "broke after one day", "came late"];
        let all: Vec<String> =
            things.iter().flat_map(|thing| said.iter().map(move |said| format!("the {thing} {said}"))).collect();
        let (train, test) = all.split_at(24);
        let rows = |texts: &[String]| texts.iter().map(|text| asked(text)).collect::<Vec<_>>();
        let mut parts = [rows(train), Vec::new(), Vec::new(), rows(test)];
        parts[0].push(asked(&test[0].to_uppercase()));
        // And one that is alike in nothing but whose it is.
        for (part, said) in [(0, "a hat that sings"), (3, "boots of lead")] {
            let mut example = asked(said);
            example.row.group = Some("customer-7".to_owned());
            parts[part].push(example);
        }
        let report = check(&mut parts, &["text".to_owned()]);
        assert_eq!((report.exact, report.near, report.same_group, report.removed), (1, 0, 1, 2), "{report:?}");
        assert_eq!(parts[0].len(), 24);
        assert_eq!(
            report.listed.iter().map(Leak::why).collect::<Vec<_>>(),
            ["1.00 like a.csv:1 (test)", "of one group with a.csv:1 (test)"]
        );
        assert!(
            jaccard(&shingles(&parts[0][0].row.text), &shingles(&parts[3][0].row.text)) > NEAR,
            "with the template's words they are near-duplicates"
        );
    }

    #[test]
    fn finds_near_duplicates_and_nothing_else() {
        let text = "I ordered a new card over a week ago and it still has not arrived at my house";
        pair(text, &text.to_uppercase().replace(' ', "  "), true);
        pair(text, &text.replace("week", "weak"), true);
        pair(text, "Where is the card that I ordered? It should have come to my house last week", false);
        pair("a", "a", true);
        pair("a", "b", false);
        pair("", "", true);
    }
}
