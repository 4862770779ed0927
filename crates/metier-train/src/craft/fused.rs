//! Two heads that were fitted apart, as one: the rung `linear`, which reads n-grams, and a head on vectors that were tuned.
//!
//! Fitted together with tuned vectors, n-grams are left next to nothing to say: of training rows the vectors know everything. Fitted apart
//! they say what they know by themselves, and validation rows weigh both: `z = n·z_ngrams + v·z_vectors`, `n, v ≥ 0`, by logistic
//! regression. A sum of linear margins is linear, so nothing about files or answers changes. Absent: which of the two ways ships.

use metier_model::head::LinearHead;

use super::pair::Blend;

/// The head of both, and how much the margins of n-grams weigh in it, those of the vectors counting 1.
///
/// `ngrams` and `vectors`: a head and its margins of the validation rows, whose classes are `gold`. None where the vectors weigh nothing.
pub(super) fn fuse(
    ngrams: (&LinearHead, &[Vec<f32>]),
    vectors: (&LinearHead, &[Vec<f32>]),
    gold: &[usize],
) -> Option<(LinearHead, f64)> {
    let n_classes = vectors.0.n_classes();
    let blend = Blend::weigh(&[ngrams.1, vectors.1], gold, n_classes);
    let [n, v] = blend.weights[..] else { return None };
    let dense: Vec<f32> = vectors.0.dense_weights()?.iter().map(|weight| v * weight).collect();
    let bias: Vec<f32> = vectors.0.bias().iter().map(|bias| v * bias).collect();
    (v > 0.0).then(|| (ngrams.0.blended(n, &bias, &dense), f64::from(n / v)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use metier_model::features::SparseRow;

    use super::*;
    use crate::eval::calibrate::predicted;

    /// Rows whose class is told by a word in one half of them and by the vector in the other: together the heads call all of them.
    #[test]
    fn each_says_what_the_other_cannot() {
        let words = LinearHead::quantise(vec![0.0; 3], &[2.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 2.0], Vec::new());
        let vectors = LinearHead::quantise(vec![0.1, 0.0, 0.0], &[], vec![3.0, 0.0, 0.0, 0.0, 3.0, 0.0, 0.0, 0.0, 3.0]);
        let rows: Vec<(SparseRow, Vec<f32>, usize)> = (0..60usize)
            .map(|i| {
                let (class, told) = (i % 3, if i % 2 == 0 { 1.0 } else { 0.0 });
                let word = SparseRow { columns: vec![class as u32], values: vec![told] };
                let mut vector = vec![0.0; 3];
                vector[class] = 1.0 - told;
                (word, vector, class)
            })
            .collect();
        let of = |head: &LinearHead, ngrams: bool| -> Vec<Vec<f32>> {
            let margins = |row: &(SparseRow, Vec<f32>, usize)| match ngrams {
                true => head.margins(Some(&row.0), None),
                false => head.margins(None, Some(&row.1)),
            };
            rows.iter().map(margins).collect()
        };
        let gold: Vec<usize> = rows.iter().map(|row| row.2).collect();
        let right =
            |margins: &[Vec<f32>]| margins.iter().zip(&gold).filter(|(z, class)| predicted(z) == **class).count();
        let (a, b) = (of(&words, true), of(&vectors, false));
        assert!(right(&a) < 45 && right(&b) < 45);

        let (head, weight) = fuse((&words, &a), (&vectors, &b), &gold).unwrap();
        let both: Vec<Vec<f32>> = rows.iter().map(|row| head.margins(Some(&row.0), Some(&row.1))).collect();
        assert_eq!(right(&both), 60);
        // The head is the sum that was weighed, up to one factor.
        for ((z, a), b) in both.iter().zip(&a).zip(&b) {
            let sum = |k: usize| f64::from(a[k]) * weight + f64::from(b[k]);
            let factor = f64::from(z[0] - z[1]) / (sum(0) - sum(1));
            let other = f64::from(z[2] - z[1]) / (sum(2) - sum(1));
            if factor.is_finite() && other.is_finite() {
                assert!((factor - other).abs() < 1e-3, "{factor} {other}");
            }
        }
    }

    #[test]
    fn without_a_say_of_the_vectors_there_is_nothing_to_fuse() {
        let words = LinearHead::quantise(vec![0.0; 2], &[2.0, 0.0, 0.0, 2.0], Vec::new());
        let against = LinearHead::quantise(vec![0.0; 2], &[], vec![-3.0, 3.0]);
        let gold: Vec<usize> = (0..40).map(|i| i % 2).collect();
        let told: Vec<Vec<f32>> =
            gold.iter().map(|&class| if class == 0 { vec![2.0, 0.0] } else { vec![0.0, 2.0] }).collect();
        let wrong: Vec<Vec<f32>> =
            gold.iter().map(|&class| if class == 0 { vec![-3.0, 3.0] } else { vec![3.0, -3.0] }).collect();
        assert!(fuse((&words, &told), (&against, &wrong), &gold).is_none());
    }
}
