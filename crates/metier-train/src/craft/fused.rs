//! Heads that were fitted apart, as one: what a network's vectors say, what n-grams say, and what the frozen encoder's vectors say.
//!
//! Fitted together with tuned vectors, n-grams are left next to nothing to say: of training rows the vectors know everything. Fitted apart
//! they say what they know by themselves, and validation rows weigh them: `z = v·z_vectors + n·z_ngrams + f·z_frozen`, `v, n, f ≥ 0`, by
//! logistic regression. A sum of linear margins is linear, so one head says it: over n-grams and `[vectors | frozen vectors]`.
//!
//! Sums are compared by their log-loss on validation rows: which of two of them is right more often is decided by a handful of rows, how sure
//! both are by all. What is read besides must earn it: where n-grams, or a second network, come to a head that did without, the loss must be
//! shown to be less.

use metier_model::head::LinearHead;

use super::pair::Blend;

/// One-sided 95 % quantile of the normal distribution.
const Z: f64 = 1.6449;

/// A head that was fitted by itself, and its margins of the validation rows.
#[derive(Clone, Copy)]
pub(super) struct Maker<'a> {
    pub(super) head: &'a LinearHead,
    pub(super) validation: &'a [Vec<f32>],
}

/// A sum of heads.
pub(super) struct Sum {
    pub(super) head: LinearHead,
    /// How much the margins of n-grams weigh, those of the vectors counting 1, where n-grams are read.
    pub(super) ngrams: Option<f64>,
    /// The same of the frozen vectors. Where it is there, the head reads `[vectors | frozen vectors]`.
    pub(super) frozen: Option<f64>,
    /// Log-loss of each validation row, nats.
    losses: Vec<f64>,
}

/// What stands already, by its margins of the validation rows.
#[derive(Clone, Copy)]
pub(super) struct Whole<'a> {
    pub(super) validation: &'a [Vec<f32>],
    pub(super) reads_ngrams: bool,
}

/// The sum that says most of the validation rows, whose classes are `gold`: of `vectors` and of what may be added to it. `None`: none is better
/// than the whole.
pub(super) fn fuse(
    whole: Whole<'_>,
    vectors: Maker<'_>,
    ngrams: Maker<'_>,
    frozen: Option<Maker<'_>>,
    gold: &[usize],
) -> Option<Sum> {
    let makers = [whole.validation];
    let mut best = losses(&Blend::weigh(&makers, gold, vectors.head.n_classes()), &makers, gold);
    let mut taken = None;
    let is_better = |sum: &Sum, best: &[f64]| match whole.reads_ngrams || sum.ngrams.is_none() {
        true => mean(&sum.losses) < mean(best),
        false => is_less(&sum.losses, best),
    };
    if let Some(sum) = sum(vectors, ngrams, None, gold).filter(|sum| is_better(sum, &best)) {
        best.clone_from(&sum.losses);
        taken = Some(sum);
    }
    let more = frozen.and_then(|frozen| sum(vectors, ngrams, Some(frozen), gold));
    more.filter(|more| more.frozen.is_some() && is_less(&more.losses, &best)).or(taken)
}

fn sum(vectors: Maker<'_>, ngrams: Maker<'_>, frozen: Option<Maker<'_>>, gold: &[usize]) -> Option<Sum> {
    let n_classes = vectors.head.n_classes();
    let mut makers = vec![vectors.validation, ngrams.validation];
    makers.extend(frozen.map(|frozen| frozen.validation));
    let blend = Blend::weigh(&makers, gold, n_classes);
    let (v, n) = (blend.weights[0], blend.weights[1]);
    let f = frozen.map(|frozen| (blend.weights[2], frozen.head)).filter(|(f, _)| *f > 0.0);
    if v <= 0.0 {
        return None;
    }
    let scaled = |by: f32, numbers: &[f32]| numbers.iter().map(|number| by * number).collect::<Vec<f32>>();
    let mut tail = scaled(v, vectors.head.dense_weights()?);
    let mut bias = scaled(v, vectors.head.bias());
    if let Some((f, head)) = f {
        tail.extend(scaled(f, head.dense_weights()?));
        bias.iter_mut().zip(head.bias()).for_each(|(bias, own)| *bias += f * own);
    }
    let head = if n > 0.0 { ngrams.head.blended(n, &bias, &tail) } else { LinearHead::quantise(bias, &[], tail) };
    let share = |weight: f32| f64::from(weight / v);
    Some(Sum {
        head,
        ngrams: (n > 0.0).then(|| share(n)),
        frozen: f.map(|(f, _)| share(f)),
        losses: losses(&blend, &makers, gold),
    })
}

fn losses(blend: &Blend, makers: &[&[Vec<f32>]], gold: &[usize]) -> Vec<f64> {
    let of_row = |(row, class): (usize, &usize)| {
        let z = blend.margins(makers, row);
        z.iter().map(|other| f64::from(other - z[*class]).exp()).sum::<f64>().ln()
    };
    gold.iter().enumerate().map(of_row).collect()
}

fn mean(losses: &[f64]) -> f64 {
    losses.iter().sum::<f64>() / losses.len().max(1) as f64
}

/// Whether the mean of `less` is shown to be below that of `more`, row by row.
fn is_less(less: &[f64], more: &[f64]) -> bool {
    let gains: Vec<f64> = more.iter().zip(less).map(|(more, less)| more - less).collect();
    let (n, gain) = (gains.len() as f64, mean(&gains));
    let variance = gains.iter().map(|each| (each - gain).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    gain > 0.0 && gain > Z * (variance / n).sqrt()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use metier_model::{features::SparseRow, specialist::mix};

    use super::*;
    use crate::eval::calibrate::predicted;

    struct Row {
        word: SparseRow,
        vector: Vec<f32>,
        frozen: Vec<f32>,
        class: usize,
    }

    /// Rows whose class is told by one of three: a word, the vector, the frozen vector. The others say nothing.
    fn rows(n: usize) -> Vec<Row> {
        let row = |i: usize| {
            let (class, by) = ((mix(i as u64) % 3) as usize, i % 3);
            let told = |maker: usize| if maker == by { 1.0 } else { 0.0 };
            let one = |told: f32| (0..3).map(|k| if k == class { told } else { 0.0 }).collect::<Vec<f32>>();
            let word = SparseRow { columns: vec![class as u32], values: vec![told(0)] };
            Row { word, vector: one(told(1)), frozen: one(told(2)), class }
        };
        (0..n).map(row).collect()
    }

    fn heads() -> (LinearHead, LinearHead) {
        let eye = |x: f32| (0..9).map(|at| if at % 4 == 0 { x } else { 0.0 }).collect::<Vec<f32>>();
        // The first class is called where nothing is told.
        let words = LinearHead::quantise(vec![0.1, 0.0, 0.0], &eye(2.0), Vec::new());
        (words, LinearHead::quantise(vec![0.1, 0.0, 0.0], &[], eye(3.0)))
    }

    fn right(margins: &[Vec<f32>], gold: &[usize]) -> usize {
        margins.iter().zip(gold).filter(|(z, class)| predicted(z) == **class).count()
    }

    /// Each knows a third of the rows: together they call all of them, and the head is the sum that was weighed.
    #[test]
    fn each_says_what_the_others_cannot() {
        let rows = rows(180);
        let gold: Vec<usize> = rows.iter().map(|row| row.class).collect();
        let (words, dense) = heads();
        let a: Vec<Vec<f32>> = rows.iter().map(|row| words.margins(Some(&row.word), None)).collect();
        let b: Vec<Vec<f32>> = rows.iter().map(|row| dense.margins(None, Some(&row.vector))).collect();
        let c: Vec<Vec<f32>> = rows.iter().map(|row| dense.margins(None, Some(&row.frozen))).collect();
        let maker = |head, validation| Maker { head, validation };
        let (vectors, ngrams, frozen) = (maker(&dense, &b), maker(&words, &a), maker(&dense, &c));

        let whole = Whole { validation: &b, reads_ngrams: false };
        let two = fuse(whole, vectors, ngrams, None, &gold).unwrap();
        let margins: Vec<Vec<f32>> =
            rows.iter().map(|row| two.head.margins(Some(&row.word), Some(&row.vector))).collect();
        assert!(two.frozen.is_none() && right(&b, &gold) < right(&margins, &gold));
        assert!(right(&margins, &gold) < 180);

        let three = fuse(whole, vectors, ngrams, Some(frozen), &gold).unwrap();
        let read = |row: &Row| [row.vector.as_slice(), &row.frozen].concat();
        let margins: Vec<Vec<f32>> =
            rows.iter().map(|row| three.head.margins(Some(&row.word), Some(&read(row)))).collect();
        assert_eq!(right(&margins, &gold), 180);
        let (n, f) = (three.ngrams.unwrap(), three.frozen.unwrap());
        for (((z, a), b), c) in margins.iter().zip(&a).zip(&b).zip(&c) {
            let sum = |k: usize| f64::from(a[k]) * n + f64::from(b[k]) + f64::from(c[k]) * f;
            let factor = f64::from(z[0] - z[1]) / (sum(0) - sum(1));
            let other = f64::from(z[2] - z[1]) / (sum(2) - sum(1));
            if factor.is_finite() && other.is_finite() {
                assert!((factor - other).abs() < 1e-3, "{factor} {other}");
            }
        }
    }

    /// A frozen encoder that says what the vectors say already does not earn its keep; nor is anything added to what knows all.
    #[test]
    fn a_second_network_must_earn_it() {
        let rows = rows(60);
        let gold: Vec<usize> = rows.iter().map(|row| row.class).collect();
        let (words, dense) = heads();
        let a: Vec<Vec<f32>> = rows.iter().map(|row| words.margins(Some(&row.word), None)).collect();
        let b: Vec<Vec<f32>> = rows.iter().map(|row| dense.margins(None, Some(&row.vector))).collect();
        let maker = |head, validation| Maker { head, validation };
        let (vectors, ngrams) = (maker(&dense, &b), maker(&words, &a));
        let whole = |validation, reads_ngrams| Whole { validation, reads_ngrams };
        assert!(fuse(whole(&b, true), vectors, ngrams, Some(vectors), &gold).unwrap().frozen.is_none());
        // N-grams that say nothing do not come to a head that did without them.
        let noise: Vec<Vec<f32>> =
            (0..60).map(|i| (0..3).map(|k| (mix(3 * i + k) % 100) as f32 / 50.0 - 1.0).collect()).collect();
        assert!(fuse(whole(&b, false), vectors, maker(&words, &noise), None, &gold).is_none());
        let all: Vec<Vec<f32>> =
            gold.iter().map(|class| (0..3).map(|k| if k == *class { 9.0 } else { 0.0 }).collect()).collect();
        assert!(fuse(whole(&all, true), vectors, ngrams, Some(vectors), &gold).is_none());
    }

    #[test]
    fn without_a_say_of_the_vectors_there_is_nothing_to_fuse() {
        let words = LinearHead::quantise(vec![0.0; 2], &[2.0, 0.0, 0.0, 2.0], Vec::new());
        let against = LinearHead::quantise(vec![0.0; 2], &[], vec![-3.0, 3.0]);
        let gold: Vec<usize> = (0..40).map(|i| i % 2).collect();
        let say = |right: f32, wrong: f32| -> Vec<Vec<f32>> {
            gold.iter().map(|&class| if class == 0 { vec![right, wrong] } else { vec![wrong, right] }).collect()
        };
        let (told, wrong) = (say(2.0, 0.0), say(-3.0, 3.0));
        let (vectors, ngrams) =
            (Maker { head: &against, validation: &wrong }, Maker { head: &words, validation: &told });
        assert!(fuse(Whole { validation: &wrong, reads_ngrams: true }, vectors, ngrams, None, &gold).is_none());
    }
}
