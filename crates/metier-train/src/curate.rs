//! What is wrong with these rows? Duplicates, contradictory labels, leaks between parts, and labels that the other rows speak against.
//!
//! A task file in; a list of rows with file and line out. Nothing is repaired: a suspect is a question to the person who owns the
//! data, not an error.
//!
//! Label noise is looked for by *confident learning* (Northcutt, Jiang, Chuang, Journal of Artificial Intelligence Research 70 (2021)): every
//! row gets the probabilities of a linear model that has not seen it (five folds; equal texts and rows of one group stay in one).
//! Label j's threshold t_j is the mean probability of j over the rows labelled j. A row labelled i is counted as truly j if j is the
//! likeliest label among those whose probability reaches their threshold; where j ≠ i it is a suspect. Where rows have several labels, each
//! label is such a question of its own, with the answers yes and no.
//!
//! Personal data is counted by kind; where texts are shown it is masked. Deliberately absent: any deletion.

use std::collections::BTreeMap;

use metier_kernels::Pool;
use metier_model::{
    Digest, Progress, Unit,
    features::{Features, SparseRow, fold},
    head::{LinearHead, max_features},
    specialist::sets::in_json,
};
use metier_traffic::privacy::{self, PersonalKind};
use serde::Serialize;

use crate::{
    craft::{
        ladder::MIN_FEATURE_ROWS,
        linear::{self, Rows, Targets},
    },
    data::{
        DataError, LeakReport, Part, TaskFile,
        sets::Loaded,
        split::{self, Example},
    },
    eval::calibrate,
};

const FOLDS: u64 = 5;
/// Regularisation of the linear model: the middle of the ladder's grid.
const C: f32 = 1.0;
/// Rows with personal data of one kind that are named.
const PERSONAL_PLACES: usize = 5;
/// Characters of a text that are shown.
const EXCERPT_CHARACTERS: usize = 120;

/// What was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Curation {
    /// The task.
    pub name: String,
    /// Rows by part, as a build would part them.
    pub rows: BTreeMap<String, u64>,
    /// Rows that repeat a text and its label, the first of each not counted.
    pub duplicates: u64,
    /// Texts that stand there with several labels.
    pub contradictions: Vec<Contradictory>,
    /// Training rows that a build leaves out because measured rows are like them.
    pub leak: LeakReport,
    /// Rows whose label the other rows speak against, most suspicious first.
    pub suspects: Vec<Suspect>,
    /// Share of labels that the joint count puts off its diagonal: an estimate of how many are wrong. Where rows have several, the share of rows
    /// with a suspect.
    pub noise: f64,
    /// Pairs of labels between which most suspects lie: `(given, likelier, rows)`.
    pub confused: Vec<(String, String, u64)>,
    /// Personal data of the kinds that have a form of their own, by kind; never its text.
    pub personal: BTreeMap<PersonalKind, PersonalRows>,
}

/// Where personal data of one kind stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PersonalRows {
    /// Rows that hold some.
    pub rows: u64,
    /// How often it stands in them.
    pub found: u64,
    /// The first rows, as `file:line`.
    pub places: Vec<String>,
}

/// A text with several labels.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Contradictory {
    /// The beginning of the text.
    pub text: String,
    /// Label, and the rows that have it as `file:line`.
    pub labels: BTreeMap<String, Vec<String>>,
}

/// A row whose label the other rows speak against.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Suspect {
    /// `file:line`.
    pub place: String,
    /// Its part.
    pub part: Part,
    /// Its label.
    pub label: String,
    /// What a model that has not seen it says.
    pub likelier: String,
    /// Probability of its own label.
    pub p_label: f32,
    /// Probability of the likelier one.
    pub p_likelier: f32,
    /// The beginning of its text.
    pub text: String,
}

/// Reads the rows of a task as a build would, and looks at them.
pub fn curate(
    task: &TaskFile,
    pool: &Pool,
    seed: u64,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Curation, DataError> {
    progress(Progress { stage: "reading rows", done: 0, total: None, unit: Unit::Rows });
    if task.extract.is_some() {
        return Err(DataError::Task(format!(
            "`{}` is an extraction, and this check is about labels: `metier build --dry-run` checks its answers, duplicates and leaks",
            task.name
        )));
    }
    let loaded = split::load_any(task, seed)?;
    let splits = loaded.splits();
    let rows: Vec<(Part, &Example)> =
        Part::ALL.iter().flat_map(|&part| splits.part(part).iter().map(move |example| (part, example))).collect();
    let (duplicates, contradictions) = repeated(&rows);
    let (suspects, noise, confused) = match &loaded {
        Loaded::Classes(_) => {
            let classes: Vec<usize> = rows.iter().map(|(_, example)| example.class).collect();
            let some = |kept: &[usize]| kept.iter().map(|at| classes[*at]).collect::<Vec<_>>();
            let fit =
                |rows: Rows<'_>, kept: &[usize]| solve(Rows { targets: Targets::One(&some(kept)), ..rows }, pool, seed);
            let margins = out_of_fold(splits.labels.len(), &rows, seed, progress, &fit);
            let calibrator = calibrate::fit(&margins, &classes);
            let probabilities: Vec<_> = margins.iter().map(|margins| calibrator.probabilities(margins)).collect();
            suspects(&splits.labels, &rows, &probabilities)
        }
        Loaded::Sets(loaded) => {
            let sets: Vec<&Vec<usize>> = loaded.sets.iter().flatten().collect();
            let some = |kept: &[usize]| kept.iter().map(|at| sets[*at].clone()).collect::<Vec<_>>();
            let fit = |rows: Rows<'_>, kept: &[usize]| {
                solve(Rows { targets: Targets::Sets(&some(kept)), ..rows }, pool, seed)
            };
            let margins = out_of_fold(splits.labels.len(), &rows, seed, progress, &fit);
            suspect_sets(&splits.labels, &rows, &sets, &margins)
        }
    };
    Ok(Curation {
        name: task.name.clone(),
        rows: splits.counts(),
        duplicates,
        contradictions,
        leak: splits.leak.clone(),
        suspects,
        noise,
        confused,
        personal: personal(&rows),
    })
}

fn personal(rows: &[(Part, &Example)]) -> BTreeMap<PersonalKind, PersonalRows> {
    let mut kinds: BTreeMap<PersonalKind, PersonalRows> = BTreeMap::new();
    for (_, example) in rows {
        let found = privacy::detect(&example.row.text);
        for (at, one) in found.iter().enumerate() {
            let counted = kinds.entry(one.kind).or_default();
            counted.found += 1;
            if found[..at].iter().all(|other| other.kind != one.kind) {
                counted.rows += 1;
                if counted.places.len() < PERSONAL_PLACES {
                    counted.places.push(example.row.place.to_string());
                }
            }
        }
    }
    kinds
}

fn repeated(rows: &[(Part, &Example)]) -> (u64, Vec<Contradictory>) {
    let mut by_text: BTreeMap<String, Vec<&Example>> = BTreeMap::new();
    for (_, example) in rows {
        by_text.entry(fold(&example.row.text)).or_default().push(example);
    }
    let mut duplicates = 0;
    let mut contradictions = Vec::new();
    for examples in by_text.into_values() {
        let mut labels: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for example in &examples {
            labels.entry(example.row.label.clone()).or_default().push(example.row.place.to_string());
        }
        duplicates += (examples.len() - labels.len()) as u64;
        if labels.len() > 1 {
            contradictions.push(Contradictory { text: excerpt(&examples[0].row.text), labels });
        }
    }
    (duplicates, contradictions)
}

fn excerpt(text: &str) -> String {
    let text = privacy::masked(text);
    let mut short: String =
        text.chars().take(EXCERPT_CHARACTERS).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().count() > EXCERPT_CHARACTERS {
        short.push('…');
    }
    short
}

/// Probabilities of every label for every row, by a model that has seen neither the row nor its equals nor its group.
fn out_of_fold(
    n_classes: usize,
    rows: &[(Part, &Example)],
    seed: u64,
    progress: &mut dyn FnMut(Progress<'_>),
    fit: &dyn Fn(Rows<'_>, &[usize]) -> LinearHead,
) -> Vec<Vec<f32>> {
    let fold_of = |example: &Example| {
        let key = example.row.group.clone().unwrap_or_else(|| fold(&example.row.text));
        let digest = Digest::of(format!("fold {seed} {key}").as_bytes());
        u64::from_be_bytes(digest.0[..8].try_into().expect("eight bytes")) % FOLDS
    };
    let folds: Vec<u64> = rows.iter().map(|(_, example)| fold_of(example)).collect();
    let mut margins: Vec<Vec<f32>> = vec![Vec::new(); rows.len()];
    for held in 0..FOLDS {
        progress(Progress { stage: "out-of-fold models", done: held, total: Some(FOLDS), unit: Unit::Steps });
        let kept: Vec<usize> = (0..rows.len()).filter(|&at| folds[at] != held).collect();
        let texts = || kept.iter().map(|at| rows[*at].1.row.text.as_str());
        let features = Features::fit(texts(), MIN_FEATURE_ROWS, max_features(n_classes));
        let sparse: Vec<SparseRow> = texts().map(|text| features.apply(text)).collect();
        let (n_features, targets) = (features.len(), Targets::One(&[]));
        let trained = Rows { sparse: Some(&sparse), n_features, dense: None, dense_scale: 0.0, targets, n_classes };
        let head = fit(trained, &kept);
        for at in (0..rows.len()).filter(|&at| folds[at] == held) {
            margins[at] = head.margins(Some(&features.apply(&rows[at].1.row.text)), None);
        }
    }
    margins
}

fn solve(rows: Rows<'_>, pool: &Pool, seed: u64) -> LinearHead {
    let weights = linear::Solver::new(rows, seed).solve(C, pool);
    LinearHead::quantise(weights.bias, &weights.sparse, weights.dense)
}

type Suspects = (Vec<Suspect>, f64, Vec<(String, String, u64)>);

/// Of several labels a row each is a question of its own, yes or no: confident learning over these two answers, label by label. The noise is
/// the share of rows with a suspect.
fn suspect_sets(labels: &[String], rows: &[(Part, &Example)], sets: &[&Vec<usize>], margins: &[Vec<f32>]) -> Suspects {
    let has = |at: usize, label: usize| sets[at].binary_search(&label).is_ok();
    let pairs = || (0..rows.len()).flat_map(|at| (0..labels.len()).map(move |label| (at, label)));
    let odds: Vec<f64> = pairs().map(|(at, label)| f64::from(margins[at][label])).collect();
    let line = calibrate::fit_line(&odds, &pairs().map(|(at, label)| has(at, label)).collect::<Vec<_>>());
    let p = |at: usize, label: usize| 1.0 / (1.0 + (-(line.slope * margins[at][label] + line.offset)).exp());
    // Mean probability of "yes" where a row has the label, of "no" where it has not.
    let mut sums = vec![[(0.0f64, 0u64); 2]; labels.len()];
    for (at, label) in pairs() {
        let given = has(at, label);
        let sum = &mut sums[label][usize::from(given)];
        *sum = (sum.0 + f64::from(if given { p(at, label) } else { 1.0 - p(at, label) }), sum.1 + 1);
    }
    let told = |set: &[usize]| in_json(set.iter().map(|label| labels[*label].as_str()));
    let (mut found, mut confused, mut rows_with) = (Vec::new(), BTreeMap::new(), 0u64);
    for (at, (part, example)) in rows.iter().enumerate() {
        let before = found.len();
        for label in 0..labels.len() {
            let given = has(at, label);
            let other = if given { 1.0 - p(at, label) } else { p(at, label) };
            let (sum, n) = sums[label][usize::from(!given)];
            if n == 0 || f64::from(other) < sum / n as f64 || other <= 0.5 {
                continue;
            }
            let mut likelier = sets[at].clone();
            match likelier.binary_search(&label) {
                Ok(place) => drop(likelier.remove(place)),
                Err(place) => likelier.insert(place, label),
            }
            let (with, without) = (format!("with {}", labels[label]), format!("without {}", labels[label]));
            let direction = if given { (with, without) } else { (without, with) };
            *confused.entry(direction).or_insert(0u64) += 1;
            found.push(Suspect {
                place: example.row.place.to_string(),
                part: *part,
                label: example.row.label.clone(),
                likelier: told(&likelier),
                p_label: 1.0 - other,
                p_likelier: other,
                text: excerpt(&example.row.text),
            });
        }
        rows_with += u64::from(found.len() > before);
    }
    found.sort_by(|a, b| b.p_likelier.total_cmp(&a.p_likelier).then_with(|| a.place.cmp(&b.place)));
    let mut confused: Vec<(String, String, u64)> = confused.into_iter().map(|((a, b), n)| (a, b, n)).collect();
    confused.sort_by(|a, b| b.2.cmp(&a.2).then_with(|| (&a.0, &a.1).cmp(&(&b.0, &b.1))));
    (found, rows_with as f64 / rows.len().max(1) as f64, confused)
}

fn suspects(labels: &[String], rows: &[(Part, &Example)], probabilities: &[Vec<f32>]) -> Suspects {
    let mut sums = vec![(0.0f64, 0u64); labels.len()];
    for ((_, example), p) in rows.iter().zip(probabilities) {
        sums[example.class].0 += f64::from(p[example.class]);
        sums[example.class].1 += 1;
    }
    let thresholds: Vec<f64> =
        sums.iter().map(|(sum, n)| if *n == 0 { f64::INFINITY } else { sum / *n as f64 }).collect();
    let mut found = Vec::new();
    let mut joint: BTreeMap<(usize, usize), u64> = BTreeMap::new();
    for ((part, example), p) in rows.iter().zip(probabilities) {
        let confident = (0..labels.len()).filter(|&k| f64::from(p[k]) >= thresholds[k]);
        let Some(likelier) = confident.max_by(|&a, &b| p[a].total_cmp(&p[b]).then(b.cmp(&a))) else { continue };
        *joint.entry((example.class, likelier)).or_default() += 1;
        if likelier != example.class && p[likelier] > p[example.class] {
            found.push(Suspect {
                place: example.row.place.to_string(),
                part: *part,
                label: example.row.label.clone(),
                likelier: labels[likelier].clone(),
                p_label: p[example.class],
                p_likelier: p[likelier],
                text: excerpt(&example.row.text),
            });
        }
    }
    // The largest gap between what is likelier and what is given comes first.
    let gap = |suspect: &Suspect| suspect.p_likelier - suspect.p_label;
    found.sort_by(|a, b| gap(b).total_cmp(&gap(a)).then_with(|| a.place.cmp(&b.place)));
    // Each label's row of the joint is scaled to its rows, as not every row is confident of something.
    let (mut off, mut all) = (0.0, 0.0);
    for (class, (_, n)) in sums.iter().enumerate() {
        let counted: Vec<_> = joint.range((class, 0)..=(class, usize::MAX)).collect();
        let total: u64 = counted.iter().map(|(_, n)| **n).sum();
        let wrong: u64 = counted.iter().filter(|((given, true_one), _)| given != true_one).map(|(_, n)| **n).sum();
        all += *n as f64;
        off += if total == 0 { 0.0 } else { *n as f64 * wrong as f64 / total as f64 };
    }
    let mut pairs: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    found.iter().for_each(|suspect| *pairs.entry((&suspect.label, &suspect.likelier)).or_default() += 1);
    let mut confused: Vec<(String, String, u64)> =
        pairs.into_iter().map(|((given, likelier), n)| (given.to_owned(), likelier.to_owned(), n)).collect();
    confused.sort_by(|a, b| b.2.cmp(&a.2).then_with(|| (&a.0, &a.1).cmp(&(&b.0, &b.1))));
    (found, if all == 0.0 { 0.0 } else { off / all }, confused)
}
