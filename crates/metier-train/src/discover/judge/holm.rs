//! Many tasks are tried at once, and some look good by luck: Holm's step-down correction (Scandinavian Journal of Statistics 6 (1979)).

/// p-values as they must be read where all of them are looked at: one at most `level` may be rejected, and the probability that any true
/// hypothesis is among those rejected is at most `level`, whatever hangs together with what.
pub fn adjusted(p_values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|&a, &b| p_values[a].total_cmp(&p_values[b]).then(a.cmp(&b)));
    let mut adjusted = vec![1.0; p_values.len()];
    let mut largest = 0.0f64;
    for (rank, &at) in order.iter().enumerate() {
        largest = largest.max((p_values.len() - rank) as f64 * p_values[at]).min(1.0);
        adjusted[at] = largest;
    }
    adjusted
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm") is 0.03 0.06 0.06 0.02.
    #[test]
    fn equals_p_adjust() {
        let got = adjusted(&[0.01, 0.04, 0.03, 0.005]);
        assert!(got.iter().zip([0.03, 0.06, 0.06, 0.02]).all(|(a, b)| (a - b).abs() < 1e-12), "{got:?}");
        assert_eq!(adjusted(&[]), Vec::<f64>::new());
        assert_eq!(adjusted(&[0.6, 0.7]), [1.0, 1.0]);
    }
}
