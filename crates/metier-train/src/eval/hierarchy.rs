//! How good is it at each depth of a tree of labels? Called and gold labels in; accuracy and F1 by depth, hierarchical precision and recall out.
//!
//! ```text
//! hierarchical precision = Σ |nodes of the called path ∩ nodes of the gold path| / Σ |nodes of the called path|     recall: / Σ |… gold path|
//! ```
//!
//! Kiritchenko, Matwin, Nock and Famili, Learning and evaluation in the presence of class hierarchies (2006): a label counts with all nodes
//! above it, the root left out. Of two paths what is shared is what they have in common from the top.

use metier_model::specialist::hierarchy::{depth, node};
use serde::{Deserialize, Serialize};

use super::{
    cluster::Groups,
    metrics::{self, Measured},
};
use crate::data::task::Metric;

/// What is said of labels that are paths alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HierarchyFigures {
    /// From the top down; the last is the labels themselves.
    pub levels: Vec<LevelFigures>,
    /// Share of the called nodes that are right.
    pub precision: Measured,
    /// Share of the gold nodes that were called.
    pub recall: Measured,
    /// Their harmonic mean.
    pub f1: Measured,
}

/// One depth.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LevelFigures {
    /// Parts of the path that count.
    pub depth: usize,
    /// Different nodes there.
    pub nodes: usize,
    /// Share of rows whose node is right.
    pub accuracy: Measured,
    /// Mean F1 of the nodes.
    pub macro_f1: Measured,
}

/// Figures by depth; `called`, `gold`: (rows,), classes among `labels`.
pub fn figures(
    labels: &[String],
    separator: &str,
    called: &[usize],
    gold: &[usize],
    seed: u64,
    groups: Option<&Groups>,
) -> HierarchyFigures {
    let deepest = labels.iter().map(|label| depth(label, separator)).max().unwrap_or(1);
    let levels = (1..=deepest).map(|depth| {
        let of_label: Vec<&str> = labels.iter().map(|label| node(label, separator, depth)).collect();
        let mut nodes = of_label.clone();
        nodes.sort_unstable();
        nodes.dedup();
        let class = |label: &usize| nodes.binary_search(&of_label[*label]).expect("every node is listed");
        let (called, gold): (Vec<usize>, Vec<usize>) =
            (called.iter().map(class).collect(), gold.iter().map(class).collect());
        let measure = |metric| metrics::measure_grouped(metric, &called, &gold, nodes.len(), seed, groups);
        let (accuracy, macro_f1) = (measure(Metric::Accuracy), measure(Metric::MacroF1));
        LevelFigures { depth, nodes: nodes.len(), accuracy, macro_f1 }
    });
    let nodes: Vec<[f64; 3]> = called
        .iter()
        .zip(gold)
        .map(|(called, gold)| {
            let (called, gold) = (labels[*called].as_str(), labels[*gold].as_str());
            let shared = called.split(separator).zip(gold.split(separator)).take_while(|(a, b)| a == b).count();
            [shared, depth(called, separator), depth(gold, separator)].map(|n| n as f64)
        })
        .collect();
    let share = |of: &dyn Fn(&[f64; 3]) -> f64| {
        let value = |rows: &[usize]| {
            let (shared, all) =
                rows.iter().fold((0.0, 0.0), |sum, &row| (sum.0 + nodes[row][0], sum.1 + of(&nodes[row])));
            if all > 0.0 { shared / all } else { 0.0 }
        };
        let all: Vec<usize> = (0..nodes.len()).collect();
        Measured { value: value(&all), interval: metrics::bootstrap(nodes.len(), seed, groups, value) }
    };
    HierarchyFigures {
        levels: levels.collect(),
        precision: share(&|row| row[1]),
        recall: share(&|row| row[2]),
        // 2·shared / (called + gold)
        f1: share(&|row| (row[1] + row[2]) / 2.0),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::float_cmp, reason = "small fractions by hand")]
    use super::*;

    #[test]
    fn by_hand() {
        let labels = ["a", "a/b", "a/c", "d/e/f"].map(str::to_owned);
        // a/b for a/c: half of each. d/e/f for itself. a for a/b: one of one called, one of two gold. a/b for d/e/f: none.
        let (called, gold) = ([1, 3, 0, 1], [2, 3, 1, 3]);
        let found = figures(&labels, "/", &called, &gold, 1, None);
        assert_eq!(found.precision.value, (1.0 + 3.0 + 1.0 + 0.0) / (2.0 + 3.0 + 1.0 + 2.0));
        assert_eq!(found.recall.value, 5.0 / (2.0 + 3.0 + 2.0 + 3.0));
        let (p, r) = (found.precision.value, found.recall.value);
        assert!((found.f1.value - 2.0 * p * r / (p + r)).abs() < 1e-12);
        let by_depth: Vec<(usize, usize, f64)> =
            found.levels.iter().map(|level| (level.depth, level.nodes, level.accuracy.value)).collect();
        assert_eq!(by_depth, [(1, 2, 0.75), (2, 4, 0.25), (3, 4, 0.25)]);
        assert!(found.f1.interval[0] < found.f1.value && found.f1.value < found.f1.interval[1]);
    }
}
