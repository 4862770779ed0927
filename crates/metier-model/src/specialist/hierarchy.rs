//! Labels that are paths of a tree (`billing/refund/late`): which node is likeliest at a depth, and how sure is that?
//!
//! ```text
//! P(node) = Σ P(label)  over the labels that are the node or lie under it
//! score at depth d = σ(a · logit max P(node at depth d) + b)            a line for each depth: `Level::line`
//! ```
//!
//! A model that is trained flat, on whole paths, needs no other model for the tree: that a text is about billing follows from what the labels
//! under billing have together, however little sure it is which of them. Where the task says so, an answer falls back: the whole path
//! if that is sure, else the deepest node that is. All that is answered, at whatever depth, is under one certificate: each depth
//! is a stage of a cascade ([`proof::cascade`](crate::proof::cascade)) in which the wrong node is what counts as wrong.
//!
//! A label that ends above a depth stands for itself there. Absent: other models than flat ones, and trees whose nodes have two parents.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{extract::ScoreLine, proof::StageShare};

/// How labels are read as paths; stands in a bundle's manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hierarchy {
    /// What stands between the parts of a path.
    pub separator: String,
    /// The depths to which an answer may fall back, deepest first; empty: it does not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub levels: Vec<Level>,
}

/// A depth to which an answer may fall back.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Level {
    /// Parts of the path that are answered; 1 is the top.
    pub depth: usize,
    /// Summed probability → probability that the node is right.
    pub line: ScoreLine,
    /// Its threshold and what it did to the calibration rows; without a certificate it answers nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<StageShare>,
}

/// Parts of a path.
pub fn depth(label: &str, separator: &str) -> usize {
    label.split(separator).count()
}

/// The first `depth` parts of a path; all of one that has no more.
pub fn node<'a>(label: &'a str, separator: &str, depth: usize) -> &'a str {
    match label.match_indices(separator).nth(depth.saturating_sub(1)) {
        Some((at, _)) if depth > 0 => &label[..at],
        _ => label,
    }
}

/// Whether a label is a node or lies under it.
pub fn is_under(label: &str, node: &str, separator: &str) -> bool {
    label.strip_prefix(node).is_some_and(|rest| rest.is_empty() || rest.starts_with(separator))
}

impl Hierarchy {
    /// Parts of the longest path.
    pub fn depth(&self, labels: &[String]) -> usize {
        labels.iter().map(|label| depth(label, &self.separator)).max().unwrap_or(0)
    }

    /// The likeliest node at a depth with its probability; the first of equals. `shares`: (labels,), the probability of each.
    pub fn likeliest<'a>(&self, labels: &'a [String], shares: &[f32], depth: usize) -> (&'a str, f64) {
        let mut sums: BTreeMap<&str, f64> = BTreeMap::new();
        for (label, share) in labels.iter().zip(shares) {
            *sums.entry(node(label, &self.separator, depth)).or_default() += f64::from(*share);
        }
        sums.into_iter().fold(("", 0.0), |best, (node, sum)| if sum > best.1 { (node, sum) } else { best })
    }

    /// Why these numbers cannot be applied to labels, where they cannot.
    pub(super) fn problem(&self, labels: &[String], is_certified: bool) -> Option<&'static str> {
        let deepest = self.depth(labels);
        if self.separator.is_empty() || deepest < 2 {
            Some("its labels are no paths")
        } else if !self.levels.is_sorted_by(|a, b| a.depth > b.depth)
            || self.levels.iter().any(|level| level.depth == 0 || level.depth >= deepest)
        {
            Some("the depths that it falls back to are not those of its labels, deepest first")
        } else if self.levels.iter().any(|level| !level.line.is_valid()) {
            Some("a score of its levels is not monotone")
        } else if self.levels.iter().any(|level| level.share.is_some() != is_certified) {
            Some("a level answers without a certificate for the whole, or has no part in it")
        } else if (self.levels.iter().filter_map(|level| level.share))
            .any(|share| !(0.0..=1.0).contains(&share.threshold))
        {
            Some("a threshold of its levels is no probability")
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_have_nodes() {
        assert_eq!([1, 2, 3, 9].map(|d| node("a/b/c", "/", d)), ["a", "a/b", "a/b/c", "a/b/c"]);
        assert_eq!([node("a", "/", 1), node("a :: b", " :: ", 1)], ["a", "a"]);
        assert_eq!([depth("a", "/"), depth("a/b/c", "/")], [1, 3]);
        assert!(is_under("a/b", "a", "/") && is_under("a", "a", "/"));
        assert!(!is_under("ab/c", "a", "/") && !is_under("a", "a/b", "/"));
    }

    #[test]
    fn sums_go_up_the_tree() {
        // In the order of text, `a-x` stands between `a` and `a/b`: what is under `a` is not one stretch.
        let labels = ["a", "a-x", "a/b", "a/c", "d/e"].map(str::to_owned);
        let tree = Hierarchy { separator: "/".to_owned(), levels: Vec::new() };
        let (node, p) = tree.likeliest(&labels, &[0.1, 0.15, 0.2, 0.15, 0.4], 1);
        assert_eq!((node, (p * 100.0).round()), ("a", 45.0));
        assert_eq!(tree.likeliest(&labels, &[0.1, 0.15, 0.2, 0.15, 0.4], 2).0, "d/e");
        assert_eq!(tree.likeliest(&labels, &[0.0, 0.5, 0.2, 0.3, 0.0], 1).0, "a", "the first of equals");
        assert_eq!(tree.depth(&labels), 2);
    }

    #[test]
    fn refuses_what_is_no_tree() {
        let labels = ["a/b", "a/c", "d"].map(str::to_owned);
        let line = ScoreLine { slope: 1.0, offset: 0.0 };
        let level = |depth| Level { depth, line, share: None };
        let tree = |levels: &[usize]| Hierarchy {
            separator: "/".to_owned(),
            levels: levels.iter().map(|depth| level(*depth)).collect(),
        };
        assert_eq!(tree(&[1]).problem(&labels, false), None);
        assert!(tree(&[1]).problem(&labels, true).is_some(), "certified without a threshold");
        assert!(tree(&[2]).problem(&labels, false).is_some() && tree(&[0]).problem(&labels, false).is_some());
        assert!(tree(&[1, 1]).problem(&labels, false).is_some());
        assert!(tree(&[]).problem(&["a", "b"].map(str::to_owned), false).is_some());
    }
}
