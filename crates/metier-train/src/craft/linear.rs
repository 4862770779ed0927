//! The linear trade: rows of features and their classes in, weights out.
//!
//! One-versus-rest support vector machines with squared hinge loss, solved in the dual by coordinate descent (Hsieh, Chang, Lin,
//! Keerthi, Sundararajan, ICML 2008, algorithm 1 with L2 loss): for each class k minimise
//!
//! ```text
//! ½‖w_k‖² + C Σ_i max(0, 1 − y_ik w_k·x_i)²      y_ik = +1 if row i is of class k, else −1
//! dual step:  G = y w·x_i − 1 + α_i/(2C);  α_i ← max(0, α_i − G / (x_i·x_i + 1/(2C)));  w ← w + Δα_i y x_i
//! ```
//!
//! Rows are visited in one seeded order that all classes share, so that the inner loops run over *classes*: weights lie
//! (feature, class) and one row's feature touches one contiguous run. Classes never mix, so blocks of classes go to
//! different threads and the result does not depend on their number. The bias is a further feature of value 1.
//!
//! Multinomial logistic regression was tried in a study on the same features and was 0.3–0.7 points behind on banking77.

use std::sync::Mutex;

use metier_kernels::Pool;
use metier_model::{features::SparseRow, specialist::mix};

/// Classes solved together by one thread: their weights of a row stay in the first cache level.
const BLOCK: usize = 16;
/// Passes over the rows at most.
const MAX_EPOCHS: u32 = 60;
/// A block is done when no projected gradient of an epoch was larger (liblinear's default for this solver).
const TOLERANCE: f32 = 0.1;

/// Training rows; each is its sparse part, its dense part scaled by `dense_scale`, and a constant 1.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    /// N-gram rows, or `None` if the rung reads none.
    pub sparse: Option<&'a [SparseRow]>,
    /// Number of n-gram columns.
    pub n_features: usize,
    /// Embeddings (n, dim), or `None`.
    pub dense: Option<&'a [&'a [f32]]>,
    /// Factor on the embeddings.
    pub dense_scale: f32,
    /// What each row is.
    pub targets: Targets<'a>,
    /// Number of classes.
    pub n_classes: usize,
}

/// The classes that rows are positive for.
#[derive(Clone, Copy, Debug)]
pub enum Targets<'a> {
    /// One each.
    One(&'a [usize]),
    /// Any number of them each.
    Sets(&'a [Vec<usize>]),
}

impl Targets<'_> {
    /// Rows.
    pub fn n_rows(&self) -> usize {
        match self {
            Self::One(classes) => classes.len(),
            Self::Sets(sets) => sets.len(),
        }
    }

    /// Bit k: is the row positive for class `first + k`?
    #[inline(always)]
    fn positives(&self, row: usize, first: usize) -> u32 {
        let bit = |class: usize| match class.wrapping_sub(first) {
            k if k < BLOCK => 1 << k,
            _ => 0,
        };
        match self {
            Self::One(classes) => bit(classes[row]),
            Self::Sets(sets) => sets[row].iter().fold(0, |bits, class| bits | bit(*class)),
        }
    }
}

/// Weights as trained; the embedding scale is folded into `dense`.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    /// (n_classes)
    pub bias: Vec<f32>,
    /// (n_features, n_classes)
    pub sparse: Vec<f32>,
    /// (dim, n_classes)
    pub dense: Vec<f32>,
}

/// Solves the same rows at one regularisation after another, each from where the one before ended: any `α ≥ 0` is a valid
/// start, and a path of rising C takes about half the passes of fresh starts.
pub struct Solver<'a> {
    rows: Rows<'a>,
    squares: Vec<f32>, // (n), x·x
    blocks: Vec<Mutex<Block>>,
    seed: u64,
}

impl<'a> Solver<'a> {
    /// Starts at `α = 0`.
    pub fn new(rows: Rows<'a>, seed: u64) -> Self {
        let block = || {
            Mutex::new(Block {
                bias: [0.0; BLOCK],
                sparse: vec![[0.0; BLOCK]; rows.n_features],
                dense: vec![[0.0; BLOCK]; rows.dim()],
                alphas: vec![[0.0; BLOCK]; rows.targets.n_rows()],
            })
        };
        let blocks = (0..rows.n_classes.div_ceil(BLOCK)).map(|_| block()).collect();
        Self { squares: square_norms(&rows), rows, blocks, seed }
    }

    /// The weights at regularisation `c`.
    pub fn solve(&mut self, c: f32, pool: &Pool) -> Weights {
        pool.run(self.blocks.len(), &|block| {
            let mut state = self.blocks[block].lock().expect("no part panics while it holds the lock");
            // Wider vectors where the CPU has them; no operation is fused or reordered, so the result is the same.
            pulp::Arch::new().dispatch(|| descend(&self.rows, &self.squares, &mut state, block * BLOCK, c, self.seed));
        });
        let n_classes = self.rows.n_classes;
        let mut weights = Weights {
            bias: vec![0.0; n_classes],
            sparse: vec![0.0; self.rows.n_features * n_classes],
            dense: vec![0.0; self.rows.dim() * n_classes],
        };
        for (block, state) in self.blocks.iter_mut().enumerate() {
            let state = state.get_mut().expect("no part panicked");
            let first = block * BLOCK;
            let width = BLOCK.min(n_classes - first);
            let copy = |from: &[[f32; BLOCK]], to: &mut [f32], factor: f32| {
                for (from, to) in from.iter().zip(to.chunks_exact_mut(n_classes)) {
                    to[first..first + width].iter_mut().zip(from).for_each(|(to, from)| *to = from * factor);
                }
            };
            copy(&state.sparse, &mut weights.sparse, 1.0);
            copy(&state.dense, &mut weights.dense, self.rows.dense_scale);
            copy(&[state.bias], &mut weights.bias, 1.0);
        }
        weights
    }
}

impl Rows<'_> {
    fn dim(&self) -> usize {
        self.dense.and_then(|dense| dense.first()).map_or(0, |row| row.len())
    }
}

/// Up to [`BLOCK`] classes, padded with classes that no row is of.
struct Block {
    bias: [f32; BLOCK],
    sparse: Vec<[f32; BLOCK]>, // (n_features)
    dense: Vec<[f32; BLOCK]>,  // (dim)
    alphas: Vec<[f32; BLOCK]>, // (n)
}

#[inline(always)]
fn descend(rows: &Rows<'_>, squares: &[f32], block: &mut Block, first: usize, c: f32, seed: u64) {
    let n = rows.targets.n_rows();
    let width = BLOCK.min(rows.n_classes - first);
    let half_inverse_c = 0.5 / c;
    let mut order: Vec<usize> = (0..n).collect();
    let mut active = n; // rows order[..active] may still move; the others were at their bound and far from leaving it
    let mut shrink_bound = f32::INFINITY;
    for epoch in 0..MAX_EPOCHS {
        shuffle(&mut order[..active], seed ^ u64::from(epoch));
        let mut largest = 0.0f32;
        let mut at = 0;
        while at < active {
            let i = order[at];
            let mut margins = block.bias;
            if let Some(sparse) = rows.sparse {
                for (column, value) in sparse[i].iter() {
                    accumulate(&mut margins, value, &block.sparse[column]);
                }
            }
            if let Some(dense) = rows.dense {
                for (value, weights) in dense[i].iter().zip(&block.dense) {
                    accumulate(&mut margins, value * rows.dense_scale, weights);
                }
            }
            let positives = rows.targets.positives(i, first);
            let diagonal = squares[i] + half_inverse_c;
            let mut steps = [0.0f32; BLOCK];
            let mut moved = false;
            let mut idle = true;
            for k in 0..width {
                let y = if positives >> k & 1 == 1 { 1.0 } else { -1.0 };
                let alpha = block.alphas[i][k];
                let gradient = y * margins[k] - 1.0 + alpha * half_inverse_c;
                let projected = if alpha == 0.0 { gradient.min(0.0) } else { gradient };
                largest = largest.max(projected.abs());
                idle &= alpha == 0.0 && gradient > shrink_bound;
                if projected != 0.0 {
                    let next = (alpha - gradient / diagonal).max(0.0);
                    steps[k] = (next - alpha) * y;
                    block.alphas[i][k] = next;
                    moved = true;
                }
            }
            if idle {
                active -= 1;
                order.swap(at, active);
                continue;
            }
            at += 1;
            if moved {
                accumulate(&mut block.bias, 1.0, &steps);
                if let Some(sparse) = rows.sparse {
                    for (column, value) in sparse[i].iter() {
                        accumulate(&mut block.sparse[column], value, &steps);
                    }
                }
                if let Some(dense) = rows.dense {
                    for (value, weights) in dense[i].iter().zip(&mut block.dense) {
                        accumulate(weights, value * rows.dense_scale, &steps);
                    }
                }
            }
        }
        if largest <= TOLERANCE {
            if active == n {
                break;
            }
            // What was set aside is looked at once more, without a bound.
            active = n;
            shrink_bound = f32::INFINITY;
        } else {
            shrink_bound = largest;
        }
    }
}

/// `sum += factor · values`, one lane a class.
#[inline(always)]
fn accumulate(sum: &mut [f32; BLOCK], factor: f32, values: &[f32; BLOCK]) {
    for (sum, value) in sum.iter_mut().zip(values) {
        *sum += factor * value;
    }
}

fn square_norms(rows: &Rows<'_>) -> Vec<f32> {
    let scale = rows.dense_scale * rows.dense_scale;
    (0..rows.targets.n_rows())
        .map(|i| {
            let sparse: f32 = rows.sparse.map_or(0.0, |sparse| sparse[i].values.iter().map(|v| v * v).sum());
            let dense: f32 = rows.dense.map_or(0.0, |dense| dense[i].iter().map(|v| v * v).sum());
            1.0 + sparse + scale * dense
        })
        .collect()
}

/// Fisher–Yates from a seed.
pub(crate) fn shuffle<T>(items: &mut [T], seed: u64) {
    let mut state = mix(seed ^ 0x9e37_79b9_7f4a_7c15);
    for end in (1..items.len()).rev() {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let at = (u128::from(mix(state)) * (end as u128 + 1)) >> 64;
        items.swap(end, at as usize);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use metier_kernels::Tier;

    use super::*;

    /// Three classes on two n-gram columns and one dense value, with noise in the labels.
    fn problem(n: usize) -> (Vec<SparseRow>, Vec<[f32; 1]>, Vec<usize>) {
        let mut rows = (Vec::new(), Vec::new(), Vec::new());
        for i in 0..n {
            let h = mix(i as u64 + 1);
            let class = i % 3;
            let noise = |shift: u32| ((h >> shift) & 0xff) as f32 / 255.0;
            let x = [if class == 0 { 0.9 } else { 0.2 * noise(0) }, if class == 1 { 0.8 } else { 0.3 * noise(8) }];
            rows.0.push(SparseRow { columns: vec![0, 1], values: x.to_vec() });
            rows.1.push([noise(16) - 0.5]);
            rows.2.push(if h.is_multiple_of(17) { (class + 1) % 3 } else { class });
        }
        rows
    }

    /// ½‖w‖² + C Σ max(0, 1 − y w·x)², the bias being a weight like the others.
    fn objective(rows: &Rows<'_>, weights: &Weights, k: usize, c: f64) -> f64 {
        let column =
            |all: &[f32]| all.iter().skip(k).step_by(rows.n_classes).map(|w| f64::from(*w)).collect::<Vec<_>>();
        let (sparse, bias) = (column(&weights.sparse), f64::from(weights.bias[k]));
        let dense = column(&weights.dense).iter().map(|w| w / f64::from(rows.dense_scale)).collect::<Vec<_>>();
        let norm: f64 = sparse.iter().chain(&dense).chain([&bias]).map(|w| w * w).sum();
        let loss = (0..rows.targets.n_rows()).map(|i| {
            let sparse: f64 = rows.sparse.unwrap()[i].iter().map(|(j, v)| sparse[j] * f64::from(v)).sum();
            let dense: f64 =
                rows.dense.unwrap()[i].iter().zip(&dense).map(|(v, w)| f64::from(v * rows.dense_scale) * w).sum();
            let Targets::One(classes) = rows.targets else { unreachable!("one class a row") };
            let y = if classes[i] == k { 1.0 } else { -1.0 };
            (1.0 - y * (sparse + dense + bias)).max(0.0).powi(2)
        });
        0.5 * norm + c * loss.sum::<f64>()
    }

    #[test]
    fn finds_the_minimum() {
        let (sparse, dense, classes) = problem(300);
        let dense: Vec<&[f32]> = dense.iter().map(|row| row.as_slice()).collect();
        let rows = Rows {
            sparse: Some(&sparse),
            n_features: 2,
            dense: Some(&dense),
            dense_scale: 2.0,
            targets: Targets::One(&classes),
            n_classes: 3,
        };
        let pool = Pool::new(1, Tier::Scalar);
        let weights = Solver::new(rows, 1).solve(0.5, &pool);
        for k in 0..3 {
            let found = objective(&rows, &weights, k, 0.5);
            // No nearby point is better by more than the tolerance allows: the problem is convex, so this is the minimum.
            for (which, step) in (0..4).flat_map(|which| [(which, 0.02f32), (which, -0.02)]) {
                let mut moved = weights.clone();
                match which {
                    0 => moved.bias[k] += step,
                    1 | 2 => moved.sparse[(which - 1) * 3 + k] += step,
                    _ => moved.dense[k] += step,
                }
                assert!(objective(&rows, &moved, k, 0.5) > found * 0.999, "class {k}, weight {which}");
            }
        }
    }

    /// A row of several classes is to each of them what a row of that one class is; a row of none is against all.
    #[test]
    fn sets_of_one_class_are_classes() {
        let (sparse, _, classes) = problem(200);
        let sets: Vec<Vec<usize>> = classes.iter().map(|class| vec![*class]).collect();
        let pool = Pool::new(1, Tier::Scalar);
        let solve = |targets: Targets<'_>| {
            let rows =
                Rows { sparse: Some(&sparse), n_features: 2, dense: None, dense_scale: 1.0, targets, n_classes: 3 };
            Solver::new(rows, 1).solve(0.5, &pool)
        };
        assert_eq!(solve(Targets::One(&classes)), solve(Targets::Sets(&sets)));
        // All of class 2 besides what they are: its bias says yes, and the others do not notice.
        let both: Vec<Vec<usize>> = classes.iter().map(|class| vec![(*class).min(1), 2]).collect();
        let folded: Vec<usize> = classes.iter().map(|class| (*class).min(1)).collect();
        let (with, without) = (solve(Targets::Sets(&both)), solve(Targets::One(&folded)));
        assert!(with.bias[2] > 0.5 && with.bias[..2] == without.bias[..2], "{:?} {:?}", with.bias, without.bias);
        let none = vec![Vec::new(); classes.len()];
        assert!(solve(Targets::Sets(&none)).bias.iter().all(|bias| *bias < -0.5));
    }

    #[test]
    fn threads_and_paths_do_not_change_the_answer() {
        let (sparse, _, _) = problem(400);
        // 40 classes: three blocks.
        let classes: Vec<usize> = (0..400).map(|i| i % 40).collect();
        let rows = Rows {
            sparse: Some(&sparse),
            n_features: 2,
            dense: None,
            dense_scale: 1.0,
            targets: Targets::One(&classes),
            n_classes: 40,
        };
        let one = Solver::new(rows, 5).solve(1.0, &Pool::new(1, Tier::Scalar));
        let two = Solver::new(rows, 5).solve(1.0, &Pool::new(2, Tier::detect()));
        assert_eq!(one, two, "bit for bit");
        let mut path = Solver::new(rows, 5);
        path.solve(0.3, &Pool::new(1, Tier::Scalar));
        let warm = path.solve(1.0, &Pool::new(1, Tier::Scalar));
        let far = warm.sparse.iter().zip(&one.sparse).fold(0.0f32, |far, (a, b)| far.max((a - b).abs()));
        assert!(far < 0.1, "a warm start ends near a fresh one: {far}");
    }
}
