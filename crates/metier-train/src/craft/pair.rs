//! The trade of pairs: rows of two or more inputs in, a [`PairModel`] and its margins of every row out; and how margins of several makers
//! become one.
//!
//! Margins that a maker has of its own training rows say too much, so makers are weighed on validation rows: with `m_s` the margins of maker
//! s, `z_k = Σ_s w_s·m_s[k] + b_k` by logistic regression, `w ≥ 0`. Where the metric is the F1 of one label, that label's bias moves so that
//! it is called from probability F*/2 on, F* the best F1 of any threshold: for true probabilities that threshold is the best one (Lipton,
//! Elkan, Naryanaswamy, 2014), and it hangs less on single rows than the best threshold itself.

use std::sync::Arc;

use metier_model::{
    Progress, Unit,
    features::SparseRow,
    head::LinearHead,
    pairs::{Agreement, PairFeatures, PairModel, Trees},
};

use super::{
    ladder::{Embeddings, Run},
    linear,
    trees::{self, Rows, Settings},
};
use crate::{
    data::{Part, Splits, split::Example, task::Metric},
    eval::{calibrate::predicted, metrics},
};

/// Classes beyond which it is not looked at how inputs agree: whether two belong together has few answers, and each class costs trees.
pub const MAX_CLASSES: usize = 12;
/// Trees that are grown from other draws and averaged.
const FORESTS: usize = 3;
/// Training rows that a word must stand in to be weighed.
const MIN_WORD_ROWS: usize = 2;
/// Words that are weighed, at most.
const MAX_WORDS: usize = 1 << 17;
/// Regularisation of the words, of which the one is taken with which validation rows are told best.
const WORD_GRID: [f32; 4] = [0.3, 1.0, 3.0, 10.0];
/// Steps of the logistic regression over makers.
const STEPS: usize = 400;
/// Pull of the weights towards 0, for each row.
const RIDGE: f64 = 1e-4;
/// Thresholds that the best F1 is looked for among.
const THRESHOLDS: usize = 99;

/// A model of pairs, and what it says of every row.
pub struct Pairs {
    /// What ships.
    pub model: Arc<PairModel>,
    /// Its outputs, by part.
    pub outputs: Embeddings,
}

impl Pairs {
    /// Margins of a part by maker.
    pub fn by_maker(&self, part: Part, n_classes: usize) -> [Vec<Vec<f32>>; 2] {
        by_maker(&self.model, &self.outputs[part as usize], n_classes)
    }

    /// Outputs of the trees, and of the words.
    pub fn outputs_each(&self) -> [usize; 2] {
        [self.model.trees.outputs(), self.model.words.outputs()]
    }
}

/// Makes the model from all training rows, and its outputs of every row.
pub fn make(names: &[String], splits: &Splits, run: &Run<'_>, progress: &mut dyn FnMut(Progress<'_>)) -> Pairs {
    let total = Part::ALL.iter().map(|&part| splits.part(part).len() as u64).sum();
    let mut progress = |done: u64| {
        progress(Progress { stage: "comparing inputs", done, total: Some(total), unit: Unit::Rows });
    };
    progress(0);
    let rows: Vec<usize> = (0..splits.part(Part::Train).len()).collect();
    let model = learn(names, splits, &rows, run);
    let mut done = 0;
    let outputs = Part::ALL.map(|part| {
        let rows = splits.part(part).iter().map(|example| {
            done += 1;
            progress(done);
            model.outputs(names, &example.row.text)
        });
        rows.collect()
    });
    Pairs { model: Arc::new(model), outputs }
}

/// What a model made from some of the training `rows` calls the validation rows.
pub fn calls_from(names: &[String], splits: &Splits, rows: &[usize], metric: Metric, run: &Run<'_>) -> Vec<usize> {
    let (model, n_classes) = (learn(names, splits, rows, run), splits.labels.len());
    let validation = splits.part(Part::Validation);
    let outputs: Vec<Vec<f32>> = validation.iter().map(|example| model.outputs(names, &example.row.text)).collect();
    let gold: Vec<usize> = validation.iter().map(|example| example.class).collect();
    let margins = by_maker(&model, &outputs, n_classes);
    let makers = [margins[0].as_slice(), margins[1].as_slice()];
    let blend = Blend::fit(&makers, &gold, n_classes, metric);
    (0..gold.len()).map(|row| predicted(&blend.margins(&makers, row))).collect()
}

/// The model of some of the training `rows`; validation rows say how many rounds, and how words are regularised.
fn learn(names: &[String], splits: &Splits, rows: &[usize], run: &Run<'_>) -> PairModel {
    let train: Vec<&Example> = rows.iter().map(|row| &splits.part(Part::Train)[*row]).collect();
    let validation: Vec<&Example> = splits.part(Part::Validation).iter().collect();
    let texts: Vec<&str> = train.iter().map(|example| example.row.text.as_str()).collect();
    let features = PairFeatures::fit(names, &texts);
    let numbers = [&train, &validation]
        .map(|rows| rows.iter().map(|example| features.apply(names, &example.row.text)).collect::<Vec<_>>());
    let classes = [&train, &validation].map(|rows| rows.iter().map(|example| example.class).collect::<Vec<_>>());
    let n_classes = splits.labels.len();
    let forests: Vec<Trees> = (0..FORESTS as u64)
        .map(|forest| {
            trees::fit(
                Rows { numbers: &numbers[0], classes: &classes[0] },
                Rows { numbers: &numbers[1], classes: &classes[1] },
                n_classes,
                &Settings::default(),
                run.seed.wrapping_add(forest << 32),
                &trees::by(run.clock, run.deadline),
            )
        })
        .collect();
    let trees = Trees::mean(&forests);
    let of_trees: Vec<Vec<f32>> = numbers[1].iter().map(|numbers| trees.apply(numbers)).collect();
    let ids = [&train, &validation]
        .map(|rows| rows.iter().map(|example| Agreement::ids(names, &example.row.text)).collect::<Vec<_>>());
    let words = words(&ids, (&classes[0], &classes[1]), &of_trees, n_classes, run);
    PairModel { features, trees, words }
}

/// Weights of the words of training rows; regularised as it suits validation rows best, the trees beside them.
fn words(
    [of_train, of_validation]: &[Vec<Vec<u32>>; 2],
    (train, validation): (&[usize], &[usize]),
    of_trees: &[Vec<f32>],
    n_classes: usize,
    run: &Run<'_>,
) -> Agreement {
    let mut all: Vec<u32> = of_train.iter().flatten().copied().collect();
    all.sort_unstable();
    let mut counts: Vec<(usize, u32)> =
        all.chunk_by(|a, b| a == b).filter(|run| run.len() >= MIN_WORD_ROWS).map(|run| (run.len(), run[0])).collect();
    counts.sort_unstable_by_key(|&(n, id)| (std::cmp::Reverse(n), id));
    counts.truncate(MAX_WORDS);
    let mut kept: Vec<u32> = counts.into_iter().map(|(_, id)| id).collect();
    kept.sort_unstable();
    let sparse: Vec<SparseRow> = of_train
        .iter()
        .map(|ids| {
            let columns: Vec<u32> =
                ids.iter().filter_map(|id| kept.binary_search(id).ok()).map(|column| column as u32).collect();
            SparseRow { values: vec![Agreement::value(ids.len()); columns.len()], columns }
        })
        .collect();
    let rows = linear::Rows {
        sparse: Some(&sparse),
        n_features: kept.len(),
        dense: None,
        dense_scale: 1.0,
        targets: linear::Targets::One(train),
        n_classes,
    };
    let mut solver = linear::Solver::new(rows, run.seed);
    let of_trees: Vec<Vec<f32>> = of_trees.iter().map(|outputs| margins(outputs, n_classes)).collect();
    let mut best: Option<(f64, Agreement)> = None;
    for c in WORD_GRID {
        let weights = solver.solve(c, run.pool);
        // Of two classes one number is enough.
        let outputs = |row: &[f32]| if n_classes == 2 { vec![row[1] - row[0]] } else { row.to_vec() };
        let flat = weights.sparse.chunks_exact(n_classes).flat_map(outputs).collect();
        let words = Agreement::new(kept.clone(), flat, outputs(&weights.bias)).expect("finite weights of sorted ids");
        let of_words: Vec<Vec<f32>> = of_validation.iter().map(|ids| margins(&words.apply(ids), n_classes)).collect();
        let loss = Blend::fit(&[&of_trees, &of_words], validation, n_classes, Metric::Accuracy).loss;
        if best.as_ref().is_none_or(|best| loss < best.0) {
            best = Some((loss, words));
        }
    }
    best.expect("a grid is not empty").1
}

/// Margins by maker, trees and words, of some rows' outputs.
pub fn by_maker(model: &PairModel, outputs: &[Vec<f32>], n_classes: usize) -> [Vec<Vec<f32>>; 2] {
    let n = model.trees.outputs();
    [
        outputs.iter().map(|outputs| margins(&outputs[..n], n_classes)).collect(),
        outputs.iter().map(|outputs| margins(&outputs[n..], n_classes)).collect(),
    ]
}

/// Outputs of one maker as a margin a class.
pub fn margins(outputs: &[f32], n_classes: usize) -> Vec<f32> {
    match outputs {
        [score] if n_classes == 2 => vec![-score / 2.0, score / 2.0],
        many => many.to_vec(),
    }
}

/// Weights (outputs, n_classes) with which a head reads outputs as the margins above, times `weight`.
pub fn reading(outputs: usize, n_classes: usize, weight: f32) -> Vec<f32> {
    if outputs == 1 {
        return vec![-weight / 2.0, weight / 2.0];
    }
    (0..outputs * n_classes).map(|at| if at / n_classes == at % n_classes { weight } else { 0.0 }).collect()
}

/// The same for several makers, one behind the other.
pub fn tail(outputs: &[usize], weights: &[f32], n_classes: usize) -> Vec<f32> {
    outputs.iter().zip(weights).flat_map(|(outputs, weight)| reading(*outputs, n_classes, *weight)).collect()
}

/// How makers are weighed.
#[derive(Clone, Debug, PartialEq)]
pub struct Blend {
    /// One a maker, at least 0.
    pub weights: Vec<f32>,
    /// One a class.
    pub bias: Vec<f32>,
    /// Log-loss of the rows that it was fitted on, nats a row, before any threshold.
    pub loss: f64,
}

impl Blend {
    /// Of the margins (rows, classes) of some makers.
    pub fn fit(makers: &[&[Vec<f32>]], gold: &[usize], n_classes: usize, metric: Metric) -> Self {
        let mut blend = regress(makers, gold, n_classes, true);
        if let Metric::F1 { positive } = metric {
            let chance = |row: usize| {
                let z = blend.margins(makers, row);
                let total: f64 = z.iter().map(|other| f64::from(other - z[positive]).exp()).sum();
                1.0 / total
            };
            let chances: Vec<f64> = (0..gold.len()).map(chance).collect();
            let rows: Vec<usize> = (0..gold.len()).collect();
            let other = usize::from(positive == 0);
            let at = |threshold: f64| {
                let calls: Vec<usize> =
                    chances.iter().map(|p| if *p >= threshold { positive } else { other }).collect();
                metrics::value(metric, &calls, gold, &rows, n_classes)
            };
            let best = (1..=THRESHOLDS).map(|i| at(i as f64 / (THRESHOLDS + 1) as f64)).fold(0.0, f64::max);
            let threshold = (best / 2.0).clamp(0.05, 0.5);
            blend.bias[positive] -= (threshold / (1.0 - threshold)).ln() as f32;
        }
        blend
    }

    /// The same with weights alone: of many classes few rows would bend the biases.
    pub fn weigh(makers: &[&[Vec<f32>]], gold: &[usize], n_classes: usize) -> Self {
        regress(makers, gold, n_classes, false)
    }

    /// Margins of a row.
    pub fn margins(&self, makers: &[&[Vec<f32>]], row: usize) -> Vec<f32> {
        let mut z = self.bias.clone();
        for (maker, weight) in makers.iter().zip(&self.weights) {
            z.iter_mut().zip(&maker[row]).for_each(|(z, m)| *z += weight * m);
        }
        z
    }

    /// A head of which the first maker's is a part; the others' `outputs`, so many each, are the tail of its dense row.
    pub fn head(&self, head: &LinearHead, outputs: &[usize]) -> LinearHead {
        let n_classes = self.bias.len();
        head.blended(self.weights[0], &self.bias, &tail(outputs, &self.weights[1..], n_classes))
    }
}

/// Logistic regression by descent with a step length that halves where a step does not help.
fn regress(makers: &[&[Vec<f32>]], gold: &[usize], n_classes: usize, with_bias: bool) -> Blend {
    let n = gold.len().max(1) as f64;
    // In units of their own spread, one step length suits all makers.
    let spread = |maker: &[Vec<f32>]| {
        let squares: f64 = maker.iter().flatten().map(|m| f64::from(*m).powi(2)).sum();
        (squares / (maker.len() * n_classes).max(1) as f64).sqrt().max(1e-6)
    };
    let spreads: Vec<f64> = makers.iter().map(|maker| spread(maker)).collect();
    let loss = |w: &[f64], b: &[f64], slope: Option<(&mut [f64], &mut [f64])>| -> f64 {
        let (mut sum, mut dw, mut db) = (0.0, vec![0.0; w.len()], vec![0.0; b.len()]);
        for (row, &class) in gold.iter().enumerate() {
            let x = |s: usize, k: usize| f64::from(makers[s][row][k]) / spreads[s];
            let z: Vec<f64> =
                (0..n_classes).map(|k| b[k] + (0..w.len()).map(|s| w[s] * x(s, k)).sum::<f64>()).collect();
            let largest = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = z.iter().map(|z| (z - largest).exp()).sum();
            sum += total.ln() + largest - z[class];
            for k in 0..n_classes {
                let error = (z[k] - largest).exp() / total - f64::from(u8::from(k == class));
                db[k] += error / n;
                (0..w.len()).for_each(|s| dw[s] += error * x(s, k) / n);
            }
        }
        if let Some((to_w, to_b)) = slope {
            dw.iter_mut().zip(w).for_each(|(dw, w)| *dw += RIDGE * w);
            to_w.copy_from_slice(&dw);
            if with_bias {
                to_b.copy_from_slice(&db);
            }
        }
        sum / n + 0.5 * RIDGE * w.iter().map(|w| w * w).sum::<f64>()
    };
    let (mut w, mut b) = (vec![1.0 / makers.len().max(1) as f64; makers.len()], vec![0.0; n_classes]);
    let (mut dw, mut db) = (w.clone(), b.clone()); // without biases their slope stays 0
    let mut length = 1.0;
    let mut now = loss(&w, &b, Some((&mut dw, &mut db)));
    for _ in 0..STEPS {
        let next_w: Vec<f64> = w.iter().zip(&dw).map(|(w, d)| (w - length * d).max(0.0)).collect();
        let next_b: Vec<f64> = b.iter().zip(&db).map(|(b, d)| b - length * d).collect();
        let next = loss(&next_w, &next_b, None);
        if next < now {
            (w, b, length) = (next_w, next_b, length * 1.3);
            now = loss(&w, &b, Some((&mut dw, &mut db)));
        } else {
            length /= 2.0;
            if length < 1e-6 {
                break;
            }
        }
    }
    Blend {
        weights: w.iter().zip(&spreads).map(|(w, spread)| (w / spread) as f32).collect(),
        bias: b.into_iter().map(|b| b as f32).collect(),
        loss: now,
    }
}

#[cfg(test)]
mod tests {
    use metier_model::specialist::mix;

    use super::*;

    /// Margins of which the first maker's tell the class and the second's tell nothing.
    fn makers(n: usize) -> (Vec<Vec<f32>>, Vec<Vec<f32>>, Vec<usize>) {
        let noise = |i: usize, salt: u64| (mix(i as u64 ^ mix(salt)) >> 40) as f32 / (1u64 << 24) as f32;
        let mut rows = (Vec::new(), Vec::new(), Vec::new());
        for i in 0..n {
            let gap = 6.0 * noise(i, 1) - 4.5;
            let right = noise(i, 2) < 1.0 / (1.0 + (-2.0 * gap).exp());
            rows.0.push(vec![-gap / 2.0, gap / 2.0]);
            rows.1.push(vec![noise(i, 3) - 0.5, noise(i, 4) - 0.5]);
            rows.2.push(usize::from(right));
        }
        rows
    }

    #[test]
    fn weighs_makers_by_what_they_say() {
        let (good, noise, gold) = makers(4000);
        let blend = Blend::fit(&[&good, &noise], &gold, 2, Metric::Accuracy);
        assert!((blend.weights[0] - 2.0).abs() < 0.3, "{blend:?}: the chance is σ(2·gap)");
        assert!(blend.weights[1] < 0.5 && (blend.bias[1] - blend.bias[0]).abs() < 0.3, "{blend:?}");
    }

    #[test]
    fn calls_a_rare_label_where_that_is_better_for_its_f1() {
        let (good, _, gold) = makers(4000);
        let f1 = Metric::F1 { positive: 1 };
        let value = |metric: Metric| {
            let blend = Blend::fit(&[&good], &gold, 2, metric);
            let calls: Vec<usize> =
                (0..gold.len()).map(|row| crate::eval::calibrate::predicted(&blend.margins(&[&good], row))).collect();
            metrics::value(f1, &calls, &gold, &(0..gold.len()).collect::<Vec<_>>(), 2)
        };
        assert!(value(f1) > value(Metric::Accuracy) + 0.002, "{} against {}", value(f1), value(Metric::Accuracy));
    }

    #[test]
    fn a_head_says_what_the_blend_says() {
        let blend = Blend { weights: vec![2.0, 3.0], bias: vec![0.5, -0.5], loss: 0.0 };
        let head = LinearHead::quantise(vec![1.0, 0.0], &[], vec![1.0, -1.0]);
        let (first, outputs) = (head.margins(None, Some(&[0.25])), [0.7f32]);
        let second = margins(&outputs, 2);
        let expected = blend.margins(&[&[first], &[second]], 0);
        let found = blend.head(&head, &[1]).margins(None, Some(&[0.25, 0.7]));
        assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?} {expected:?}");
        assert_eq!(reading(3, 3, 2.0), [2.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 2.0]);
    }
}
