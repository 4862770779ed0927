//! The trade of boosted trees: rows of numbers and their classes in, [`Trees`] out.
//!
//! Gradient boosting with second-order steps (Friedman 2001; Chen & Guestrin, KDD 2016) on histograms of at most 64 bins, each tree grown
//! best leaf first:
//!
//! ```text
//! p = σ(F) or softmax(F);  g = p − y;  h = p(1 − p)
//! gain of a cut = G_l²/(H_l + λ) + G_r²/(H_r + λ) − G²/(H + λ);  value of a leaf = −η G/(H + λ)
//! ```
//!
//! Each tree sees a seeded share of rows and numbers. Rounds end where the log-loss of validation rows has not fallen for a while; the best
//! number of rounds is kept. One thread: thousands of rows of a hundred numbers take seconds.

use std::time::Duration;

use metier_model::{
    pairs::{Node, Trees},
    specialist::mix,
};

use super::linear::shuffle;

/// Bins of a number, at most.
const BINS: usize = 64;
/// Hessian of a leaf, at least.
const MIN_HESSIAN: f64 = 1e-3;

/// How trees are grown.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Rounds, at most.
    pub rounds: usize,
    /// η
    pub learning_rate: f64,
    /// Leaves of a tree, at most.
    pub leaves: usize,
    /// Rows of a leaf, at least.
    pub min_rows: usize,
    /// λ
    pub l2: f64,
    /// Share of rows that a tree sees.
    pub row_share: f64,
    /// Share of numbers that a tree sees.
    pub column_share: f64,
    /// Rounds without a better one after which no further one is made.
    pub patience: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            rounds: 600,
            learning_rate: 0.05,
            leaves: 15,
            min_rows: 10,
            l2: 1.0,
            row_share: 0.8,
            column_share: 0.4,
            patience: 60,
        }
    }
}

/// Rows of numbers, all of one length, and the class of each.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    /// Numbers.
    pub numbers: &'a [Vec<f32>],
    /// Classes.
    pub classes: &'a [usize],
}

/// Grows trees for `n_classes ≥ 2`; `clock` and `deadline` end the rounds early. At least one round is made.
///
/// # Panics
/// Where there is no training row.
pub fn fit(
    train: Rows<'_>,
    validation: Rows<'_>,
    n_classes: usize,
    settings: &Settings,
    seed: u64,
    out_of_time: &dyn Fn() -> bool,
) -> Trees {
    let n = train.numbers.len();
    assert!(n > 0, "rows to learn from");
    let outputs = if n_classes == 2 { 1 } else { n_classes };
    let base = base(train.classes, n_classes);
    let binned = Binned::of(train.numbers);
    let mut scores = vec![base.iter().map(|b| f64::from(*b)).collect::<Vec<f64>>(); n];
    let mut held = vec![scores[0].clone(); validation.numbers.len()];
    let (mut nodes, mut roots): (Vec<Node>, Vec<u32>) = (Vec::new(), Vec::new());
    let mut best = (f64::INFINITY, 0usize);
    for round in 0..settings.rounds {
        let probabilities: Vec<Vec<f64>> = scores.iter().map(|scores| probabilities(scores)).collect();
        for output in 0..outputs {
            let slopes: Vec<(f64, f64)> = (0..n)
                .map(|row| {
                    let p = probabilities[row][output];
                    let hit = if outputs == 1 { train.classes[row] == 1 } else { train.classes[row] == output };
                    (p - f64::from(u8::from(hit)), (p * (1.0 - p)).max(1e-9))
                })
                .collect();
            let draw = mix(seed ^ mix((round * outputs + output) as u64 + 0x7ee5));
            let tree = grow(&binned, &slopes, settings, draw);
            let first = nodes.len() as u32;
            roots.push(first);
            nodes.extend(tree.iter().map(|node| Node { left: node.left + first, ..*node }));
            for (numbers, scores) in train.numbers.iter().zip(&mut scores) {
                scores[output] += f64::from(walk(&tree, numbers));
            }
            for (numbers, scores) in validation.numbers.iter().zip(&mut held) {
                scores[output] += f64::from(walk(&tree, numbers));
            }
        }
        let loss = log_loss(&held, validation.classes);
        if loss < best.0 || best.1 == 0 {
            best = (loss, round + 1);
        }
        if round + 1 - best.1 >= settings.patience || out_of_time() {
            break;
        }
    }
    roots.truncate(best.1 * outputs);
    // Trees lie one after the other: what stands behind the last root's tree is cut off with it.
    let end = roots.last().map_or(0, |root| *root as usize + tree_len(&nodes[*root as usize..], *root));
    nodes.truncate(end);
    Trees::new(nodes, roots, base).expect("grown as they are checked")
}

/// Nodes of the tree at the front of `nodes`, which begin with number `first`.
fn tree_len(nodes: &[Node], first: u32) -> usize {
    let mut len = 1;
    let mut at = 0;
    while at < len {
        if nodes[at].feature != Node::LEAF {
            len = len.max((nodes[at].left - first) as usize + 2);
        }
        at += 1;
    }
    len
}

/// Logarithms of the classes' shares.
fn base(classes: &[usize], n_classes: usize) -> Vec<f32> {
    let share = |class: usize| {
        let n = classes.iter().filter(|c| **c == class).count() as f64;
        (n + 0.5) / (classes.len() as f64 + 0.5 * n_classes as f64)
    };
    if n_classes == 2 {
        vec![(share(1) / share(0)).ln() as f32]
    } else {
        (0..n_classes).map(|k| share(k).ln() as f32).collect()
    }
}

/// Of one score that of the second class; else of each.
fn probabilities(scores: &[f64]) -> Vec<f64> {
    if let [score] = scores {
        return vec![1.0 / (1.0 + (-score).exp())];
    }
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
    let total: f64 = powers.iter().sum();
    powers.into_iter().map(|power| power / total).collect()
}

fn log_loss(scores: &[Vec<f64>], classes: &[usize]) -> f64 {
    let of = |(scores, class): (&Vec<f64>, &usize)| {
        let p = probabilities(scores);
        let p = match p.as_slice() {
            [p] => {
                if *class == 1 {
                    *p
                } else {
                    1.0 - p
                }
            }
            many => many[*class],
        };
        -p.max(1e-12).ln()
    };
    scores.iter().zip(classes).map(of).sum::<f64>() / classes.len().max(1) as f64
}

fn walk(tree: &[Node], numbers: &[f32]) -> f32 {
    let mut node = tree[0];
    while node.feature != Node::LEAF {
        node = tree[node.left as usize + usize::from(numbers[node.feature as usize] > node.threshold)];
    }
    node.threshold
}

/// Every number as the index of its bin.
struct Binned {
    bins: Vec<Vec<u8>>,  // (numbers, rows)
    cuts: Vec<Vec<f32>>, // bin i of a number holds what is ≤ cut i and above cut i − 1
}

impl Binned {
    fn of(rows: &[Vec<f32>]) -> Self {
        let (mut bins, mut cuts) = (Vec::new(), Vec::new());
        for column in 0..rows[0].len() {
            let mut sorted: Vec<f32> = rows.iter().map(|row| row[column]).collect();
            sorted.sort_by(f32::total_cmp);
            let n = sorted.len();
            let mut these: Vec<f32> = Vec::new();
            for i in 1..BINS {
                let at = i * n / BINS;
                // The cut lies between a value and the next larger one.
                let below = sorted[at.saturating_sub(1)];
                let above = sorted[sorted.partition_point(|x| *x <= below).min(n - 1)];
                let cut = below + (above - below) / 2.0;
                if above > below && these.last().is_none_or(|last| cut > *last) {
                    these.push(cut);
                }
            }
            bins.push(rows.iter().map(|row| these.partition_point(|cut| *cut < row[column]) as u8).collect());
            cuts.push(these);
        }
        Self { bins, cuts }
    }
}

/// Sums of slopes by bin: (numbers, BINS) of (G, H, rows).
type Histogram = Vec<[(f64, f64, u32); BINS]>;

struct Leaf {
    node: usize,
    rows: Vec<u32>,
    histogram: Histogram,
    cut: Option<Cut>,
}

#[derive(Clone, Copy)]
struct Cut {
    gain: f64,
    column: usize, // index among those that the tree sees
    bin: usize,
}

fn grow(binned: &Binned, slopes: &[(f64, f64)], settings: &Settings, seed: u64) -> Vec<Node> {
    let mut columns: Vec<usize> = (0..binned.bins.len()).filter(|column| !binned.cuts[*column].is_empty()).collect();
    shuffle(&mut columns, seed);
    columns.truncate(((columns.len() as f64 * settings.column_share).ceil() as usize).max(1));
    columns.sort_unstable();
    let below = (settings.row_share * u64::MAX as f64) as u64;
    let mut rows: Vec<u32> =
        (0..slopes.len() as u32).filter(|row| mix(seed ^ mix(u64::from(*row) + 1)) <= below).collect();
    if rows.is_empty() {
        rows = (0..slopes.len() as u32).collect();
    }
    let value = |histogram: &Histogram, rows: &[u32]| {
        let (g, h) = histogram.first().map_or_else(
            || rows.iter().map(|row| slopes[*row as usize]).fold((0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1)),
            |bins| bins.iter().fold((0.0, 0.0), |sum, bin| (sum.0 + bin.0, sum.1 + bin.1)),
        );
        (-settings.learning_rate * g / (h + settings.l2)) as f32
    };
    let leaf_node = |value: f32| Node { feature: Node::LEAF, threshold: value, left: 0 };
    let histogram = histogram(binned, &columns, slopes, &rows);
    let mut nodes = vec![leaf_node(value(&histogram, &rows))];
    let cut = best_cut(&histogram, settings);
    let mut leaves = vec![Leaf { node: 0, rows, histogram, cut }];
    while leaves.len() < settings.leaves {
        let next = leaves.iter().enumerate().filter_map(|(at, leaf)| leaf.cut.map(|cut| (at, cut))).fold(
            None,
            |best: Option<(usize, Cut)>, next| match best {
                Some(best) if best.1.gain >= next.1.gain => Some(best),
                _ => Some(next),
            },
        );
        let Some((at, cut)) = next else { break };
        let Leaf { node, rows, histogram: mut rest, .. } = leaves.swap_remove(at);
        let column = columns[cut.column];
        let bins = &binned.bins[column];
        let (left, right): (Vec<u32>, Vec<u32>) =
            rows.into_iter().partition(|row| usize::from(bins[*row as usize]) <= cut.bin);
        nodes[node] =
            Node { feature: column as u32, threshold: binned.cuts[column][cut.bin], left: nodes.len() as u32 };
        // The larger side is what is left of the whole.
        let smaller = if left.len() <= right.len() { &left } else { &right };
        let of_smaller = self::histogram(binned, &columns, slopes, smaller);
        for (rest, part) in rest.iter_mut().zip(&of_smaller) {
            for (rest, part) in rest.iter_mut().zip(part) {
                *rest = (rest.0 - part.0, rest.1 - part.1, rest.2 - part.2);
            }
        }
        let (of_left, of_right) = if left.len() <= right.len() { (of_smaller, rest) } else { (rest, of_smaller) };
        for (rows, histogram) in [(left, of_left), (right, of_right)] {
            let node = nodes.len();
            nodes.push(leaf_node(value(&histogram, &rows)));
            let cut = best_cut(&histogram, settings);
            leaves.push(Leaf { node, rows, histogram, cut });
        }
    }
    nodes
}

fn histogram(binned: &Binned, columns: &[usize], slopes: &[(f64, f64)], rows: &[u32]) -> Histogram {
    let mut all = vec![[(0.0, 0.0, 0); BINS]; columns.len()];
    for (histogram, column) in all.iter_mut().zip(columns) {
        let bins = &binned.bins[*column];
        for row in rows {
            let bin = &mut histogram[usize::from(bins[*row as usize])];
            let slope = slopes[*row as usize];
            *bin = (bin.0 + slope.0, bin.1 + slope.1, bin.2 + 1);
        }
    }
    all
}

fn best_cut(histogram: &Histogram, settings: &Settings) -> Option<Cut> {
    let mut best: Option<Cut> = None;
    for (column, bins) in histogram.iter().enumerate() {
        let whole = bins.iter().fold((0.0, 0.0, 0), |a, b| (a.0 + b.0, a.1 + b.1, a.2 + b.2));
        let score = |g: f64, h: f64| g * g / (h + settings.l2);
        let mut left = (0.0, 0.0, 0u32);
        for (bin, b) in bins.iter().enumerate().take(BINS - 1) {
            left = (left.0 + b.0, left.1 + b.1, left.2 + b.2);
            let right = (whole.0 - left.0, whole.1 - left.1, whole.2 - left.2);
            let enough = |side: (f64, f64, u32)| side.2 as usize >= settings.min_rows && side.1 >= MIN_HESSIAN;
            // A bin without rows moves no row: the same cut as the one before.
            if b.2 == 0 || !enough(left) || !enough(right) {
                continue;
            }
            let gain = score(left.0, left.1) + score(right.0, right.1) - score(whole.0, whole.1);
            if gain > 1e-9 && best.is_none_or(|best| gain > best.gain) {
                best = Some(Cut { gain, column, bin });
            }
        }
    }
    best
}

/// A deadline as the trees ask for it.
pub fn by<'a>(clock: &'a dyn Fn() -> Duration, deadline: Duration) -> impl Fn() -> bool + 'a {
    move || clock() > deadline
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A ring inside a square: no line parts it. `noise`: every so many labels are turned.
    fn ring(n: usize, from: u64, classes: usize) -> (Vec<Vec<f32>>, Vec<usize>) {
        (0..n)
            .map(|i| {
                let h = mix(from + i as u64);
                let (x, y) = ((h & 0xffff) as f32 / 32768.0 - 1.0, ((h >> 16) & 0xffff) as f32 / 32768.0 - 1.0);
                let radius = (x * x + y * y).sqrt();
                let class = if classes == 2 { usize::from(radius < 0.6) } else { (radius / 0.45) as usize };
                (vec![x, 0.0, y], class.min(classes - 1))
            })
            .unzip()
    }

    #[track_caller]
    fn check(classes: usize, least: f64) {
        let (train, held) = (ring(1500, 1, classes), ring(500, 9_000, classes));
        fn rows(of: &(Vec<Vec<f32>>, Vec<usize>)) -> Rows<'_> {
            Rows { numbers: &of.0, classes: &of.1 }
        }
        let settings = Settings { rounds: 60, column_share: 1.0, ..Settings::default() };
        let fitted = |seed| fit(rows(&train), rows(&held), classes, &settings, seed, &|| false);
        let trees = fitted(1);
        let called = |numbers: &Vec<f32>| match trees.apply(numbers).as_slice() {
            [score] => usize::from(*score > 0.0),
            many => crate::eval::calibrate::predicted(many),
        };
        let right = held.0.iter().zip(&held.1).filter(|(numbers, class)| called(numbers) == **class).count();
        assert!(right as f64 / 500.0 >= least, "{right} of 500");
        assert_eq!(trees, fitted(1), "seeded");
        assert_ne!(trees, fitted(2));
    }

    #[test]
    fn part_what_no_line_parts() {
        check(2, 0.95);
        check(3, 0.9);
    }

    #[test]
    fn the_rounds_that_validation_likes_are_kept() {
        // Labels that say nothing about the numbers: more rounds only learn noise.
        let (numbers, _) = ring(400, 5, 2);
        let noise = |from: u64| (0..400).map(|i| (mix(from + i) & 1) as usize).collect::<Vec<_>>();
        let (train, held) = (noise(1), noise(77_000));
        let trees = fit(
            Rows { numbers: &numbers, classes: &train },
            Rows { numbers: &numbers, classes: &held },
            2,
            &Settings::default(),
            1,
            &|| false,
        );
        assert!(numbers.iter().all(|row| trees.apply(row)[0].abs() < 0.5), "stays near the shares");
        let hurried = fit(
            Rows { numbers: &numbers, classes: &train },
            Rows { numbers: &numbers, classes: &train },
            2,
            &Settings::default(),
            1,
            &|| true,
        );
        assert!(hurried.reads() <= 3, "one round at least, no more");
    }
}
