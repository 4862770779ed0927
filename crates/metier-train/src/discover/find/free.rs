//! *Which group is a text without a template of?* A sample of such texts, the groups that were found in it, and the words by which the calls outside it are told.

use std::collections::HashMap;

use metier_model::{features::Features, head::LinearHead};
use metier_traffic::Exchange;

use super::{EMBEDDED_BYTES, MAX_EXAMPLE_BYTES, beginning, last_user};
use crate::discover::{template::Prompt, volume::assigned_interval};

/// A sample of the calls without a template: those with the smallest hashes.
#[derive(Default)]
pub(super) struct Free {
    pub(super) rows: Vec<FreeKept>,
    pub(super) seen: HashMap<u32, u64>,
    pub(super) max: usize,
    pub(super) below: Option<u64>,
}

pub(super) struct FreeKept {
    pub(super) row: FreeRow,
    pub(super) set: Vec<u64>,
}

pub(super) struct FreeRow {
    pub(super) key: u32,
    pub(super) hash: u64,
    pub(super) input: String,
    pub(super) answer: Option<String>,
}

impl Free {
    pub(super) fn offer(&mut self, prompt: Prompt, mut row: FreeRow) {
        *self.seen.entry(row.key).or_default() += 1;
        if self.below.is_some_and(|below| row.hash >= below) {
            return;
        }
        row.input = beginning(&row.input, MAX_EXAMPLE_BYTES).to_owned();
        row.answer = row.answer.map(|answer| beginning(&answer, MAX_EXAMPLE_BYTES).to_owned());
        self.rows.push(FreeKept { row, set: prompt.into_set() });
        if self.rows.len() > self.max + self.max / 4 {
            self.rows.sort_by_key(|kept| kept.row.hash);
            self.rows.truncate(self.max);
            self.below = self.rows.last().map(|kept| kept.row.hash);
        }
    }
}

/// Groups of texts without a template.
#[derive(Default)]
pub(super) struct Groups {
    pub(super) n: usize,
    /// Key of each group.
    pub(super) keys: Vec<u32>,
    /// Calls of the sample.
    pub(super) known: HashMap<u64, Option<usize>>,
    /// The rest.
    pub(super) by_words: HashMap<u32, Words>,
}

pub(super) struct Words {
    pub(super) features: Features,
    pub(super) head: LinearHead,
    pub(super) first: usize,
    pub(super) n: usize,
    /// Held-out rows of the sample: `[group][assigned]`, what is left over last.
    pub(super) confusion: Vec<Vec<u64>>,
}

impl Groups {
    /// The group of a call, and whether it was told by its words.
    pub(super) fn find(&self, key: u32, hash: u64, call: &Exchange) -> (Option<usize>, bool) {
        if let Some(known) = self.known.get(&hash) {
            return (*known, false);
        }
        let Some(words) = self.by_words.get(&key) else { return (None, false) };
        let input = last_user(call);
        let text = format!(
            "{} \u{1} {}",
            beginning(&input, EMBEDDED_BYTES),
            beginning(call.answer.as_deref().unwrap_or_default(), 64)
        );
        let class = best(&words.head.margins(Some(&words.features.apply(&text)), None));
        ((class < words.n).then_some(words.first + class), true)
    }

    /// By which factors a group's assigned volume may be wrong, 95 %.
    pub(super) fn volume_interval(&self, group: usize, assigned: u64, calls: u64) -> [f64; 2] {
        let words = self.by_words.get(&self.keys[group]).filter(|_| assigned > 0);
        let Some(words) = words else { return [1.0, 1.0] };
        let class = group - words.first;
        let told: u64 = words.confusion.iter().map(|row| row[class]).sum();
        let really: u64 = words.confusion[class].iter().sum();
        let right = words.confusion[class][class];
        let share = assigned as f64 / calls as f64;
        assigned_interval([told, really, right], share)
    }
}

pub(super) fn best(margins: &[f32]) -> usize {
    (0..margins.len()).max_by(|&a, &b| margins[a].total_cmp(&margins[b]).then(b.cmp(&a))).unwrap_or(0)
}
