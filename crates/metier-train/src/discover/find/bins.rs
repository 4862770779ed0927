//! *Where is a call counted?* One bin a template, group of texts, kind of calls or caller; each keeps the calls with the smallest hashes as its examples.

use std::collections::{BTreeMap, BinaryHeap, HashMap};

use metier_traffic::exchange::Verdict;

use super::MAX_EXAMPLES;
use crate::discover::{
    repeats,
    task::{Example, Reading},
    trace,
    volume::Counts,
};

/// Where a call is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Bin {
    Template(usize),
    Group(usize),
    Rest(u32),
    Caller(u32),
}

impl Bin {
    /// A number of its own.
    pub(super) fn code(self) -> u64 {
        let (kind, at) = match self {
            Self::Template(at) => (0, at as u64),
            Self::Group(at) => (1, at as u64),
            Self::Rest(at) => (2, u64::from(at)),
            Self::Caller(at) => (3, u64::from(at)),
        };
        kind << 56 | at
    }

    pub(super) fn told_by(self, by_words: bool) -> trace::By {
        match self {
            Self::Template(_) => trace::By::Template,
            Self::Group(_) if by_words => trace::By::Words,
            Self::Group(_) => trace::By::Embedding,
            Self::Rest(_) => trace::By::Rest,
            Self::Caller(_) => trace::By::NoText,
        }
    }
}

pub(super) struct Found {
    pub(super) bin: Bin,
    /// What was joined with it.
    pub(super) joined: Vec<Bin>,
    pub(super) key: u32,
    pub(super) gathered: Gathered,
}

pub(super) struct Counted {
    pub(super) bins: BTreeMap<Bin, Gathered>,
    pub(super) reading: Reading,
    pub(super) verdicts: HashMap<String, Verdict>,
}

#[derive(Default)]
pub(super) struct Gathered {
    pub(super) counts: Counts,
    pub(super) repeats: repeats::Seen,
    pub(super) assigned: u64,
    pub(super) schema: Option<String>,
    /// The calls with the smallest hashes: a uniform sample that does not depend on their order.
    pub(super) examples: BinaryHeap<Kept>,
    pub(super) level: Option<usize>,
}

pub(super) struct Kept {
    pub(super) hash: u64,
    pub(super) example: Example,
}

impl PartialEq for Kept {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
    }
}

impl Eq for Kept {}

impl PartialOrd for Kept {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Kept {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.hash.cmp(&other.hash)
    }
}

pub(super) fn size(example: &Example) -> usize {
    size_of::<Example>()
        + example.input.len()
        + example.output.as_ref().map_or(0, String::len)
        + example.varies.len() * size_of::<std::ops::Range<usize>>()
}

/// Lowers the water until all examples together are at most `limit`, one a task at least; how many are left, and their bytes.
pub(super) fn trim(bins: &mut BTreeMap<Bin, Gathered>, limit: usize) -> (usize, usize) {
    let sizes: Vec<usize> = bins.values().map(|gathered| gathered.examples.len()).collect();
    let held = |level: usize| sizes.iter().map(|&n| n.min(level)).sum::<usize>();
    if held(usize::MAX) > limit {
        let (mut low, mut high) = (1, MAX_EXAMPLES);
        while low < high {
            let middle = (low + high).div_ceil(2);
            if held(middle) <= limit { low = middle } else { high = middle - 1 }
        }
        for gathered in bins.values_mut() {
            gathered.level = Some(gathered.level.map_or(low, |level| level.min(low)));
            while gathered.examples.len() > low {
                gathered.examples.pop();
            }
        }
    }
    let all = || bins.values().flat_map(|gathered| gathered.examples.iter());
    (all().count(), all().map(|kept| size(&kept.example)).sum())
}
