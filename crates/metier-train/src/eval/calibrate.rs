//! Fits the calibrator that a specialist applies: margins and gold classes of validation rows in, a [`Calibrator`] out.
//!
//! Three methods compete by five-fold cross-validated log-loss of "the top label is right"; the simplest wins ties. With a
//! hundred rows Platt's three numbers usually win, with a thousand isotonic regression may.

use metier_model::extract::ScoreLine;
use metier_model::proof::{Calibrator, Method, calibrator::top_two};

const FOLDS: usize = 5;
/// Below this many rows, or with all right or all wrong, only the temperature is fitted.
const MIN_ROWS: usize = 40;
/// Below this many rows isotonic regression is not tried: its steps would tie the surest answers, and a threshold cannot
/// part a tie (on a hundred rows it once tied three errors with the best thirty: no certificate).
const MIN_ISOTONIC_ROWS: usize = 300;
/// A more flexible method must be better by this much log-loss (nats a row) to be taken.
const MIN_GAIN: f64 = 0.002;
/// Ridge on Platt's factors: keeps them finite where margins separate right from wrong.
const RIDGE: f64 = 0.5;
const NEWTON_STEPS: usize = 50;
/// Fewest rows of an isotonic step: a step of five rows that are all right is no 100 %.
const MIN_STEP_ROWS: f64 = 10.0;
const PROBABILITY_FLOOR: f64 = 1e-6;

/// Fits on `margins` (n, n_classes) with their gold `classes` (n).
pub fn fit(margins: &[Vec<f32>], classes: &[usize]) -> Calibrator {
    let rows: Vec<Observed> = margins.iter().zip(classes).map(|(m, &class)| Observed::new(m, class)).collect();
    let inverse_temperature = temperature(margins, classes);
    let softmax = Calibrator { inverse_temperature, method: Method::Softmax };
    let n_right = rows.iter().filter(|row| row.right).count();
    if rows.len() < MIN_ROWS || n_right == 0 || n_right == rows.len() {
        return softmax;
    }
    type Fit = fn(&[&Observed]) -> Method;
    let candidates: [Fit; 3] = [|_| Method::Softmax, platt, isotonic];
    let mut best: Option<(f64, Fit)> = None;
    let n_candidates = if rows.len() < MIN_ISOTONIC_ROWS { 2 } else { 3 };
    for candidate in candidates.into_iter().take(n_candidates) {
        let mut loss = 0.0;
        for fold in 0..FOLDS {
            let (held, kept): (Vec<_>, Vec<_>) = rows.iter().enumerate().partition(|(at, _)| at % FOLDS == fold);
            let kept: Vec<&Observed> = kept.into_iter().map(|(_, row)| row).collect();
            let fitted = Calibrator { inverse_temperature, method: candidate(&kept) };
            loss += held.iter().map(|(at, row)| log_loss(fitted.score(&margins[*at]), row.right)).sum::<f64>();
        }
        loss /= rows.len() as f64;
        if best.is_none_or(|(least, _)| loss < least - MIN_GAIN) {
            best = Some((loss, candidate));
        }
    }
    let all: Vec<&Observed> = rows.iter().collect();
    let (_, chosen) = best.expect("there are candidates");
    let chosen = Calibrator { inverse_temperature, method: chosen(&all) };
    if chosen.is_valid() { chosen } else { softmax }
}

struct Observed {
    top: f64,
    gap: f64,
    right: bool,
}

impl Observed {
    fn new(margins: &[f32], class: usize) -> Self {
        let (first, second) = top_two(margins);
        Self { top: first.into(), gap: (first - second).into(), right: predicted(margins) == class }
    }
}

/// Platt's line over log-odds: how often are answers with such odds right? With too few rows, or all right or all wrong, the odds stay as
/// they are.
pub fn fit_line(odds: &[f64], right: &[bool]) -> ScoreLine {
    let rows: Vec<Observed> = odds.iter().zip(right).map(|(&top, &right)| Observed { top, gap: 0.0, right }).collect();
    let n_right = right.iter().filter(|right| **right).count();
    if rows.len() < MIN_ROWS || n_right == 0 || n_right == rows.len() {
        return ScoreLine { slope: 1.0, offset: 0.0 };
    }
    let rows: Vec<&Observed> = rows.iter().collect();
    let [slope, _, offset] = logistic(&rows, [true, false]);
    let line = ScoreLine { slope: slope as f32, offset: offset as f32 };
    // Odds that fall with the share right tell nothing: all answers get the one score.
    if line.is_valid() { line } else { ScoreLine { slope: 0.0, offset: logistic(&rows, [false, false])[2] as f32 } }
}

/// The class of the largest margin; the first of equals.
pub fn predicted(margins: &[f32]) -> usize {
    (1..margins.len()).fold(0, |best, k| if margins[k] > margins[best] { k } else { best })
}

fn log_loss(score: f32, right: bool) -> f64 {
    let p = f64::from(score).clamp(PROBABILITY_FLOOR, 1.0 - PROBABILITY_FLOOR);
    if right { -p.ln() } else { -(1.0 - p).ln() }
}

/// The factor on margins that minimises the log-loss of the gold class under softmax; golden section on its logarithm.
fn temperature(margins: &[Vec<f32>], classes: &[usize]) -> f32 {
    let loss = |log_factor: f64| -> f64 {
        let factor = log_factor.exp();
        margins
            .iter()
            .zip(classes)
            .map(|(row, &class)| {
                let largest = f64::from(top_two(row).0);
                let total: f64 = row.iter().map(|&m| ((f64::from(m) - largest) * factor).exp()).sum();
                total.ln() - (f64::from(row[class]) - largest) * factor
            })
            .sum()
    };
    let ratio = (5f64.sqrt() - 1.0) / 2.0;
    let (mut low, mut high) = (0.05f64.ln(), 100f64.ln());
    for _ in 0..40 {
        let (left, right) = (high - ratio * (high - low), low + ratio * (high - low));
        if loss(left) < loss(right) { high = right } else { low = left }
    }
    ((low + high) / 2.0).exp() as f32
}

/// Logistic regression of "right" on top margin and gap, by Newton steps; a negative factor is set to 0 and the rest refitted.
fn platt(rows: &[&Observed]) -> Method {
    let mut used = [true, true];
    loop {
        let [top, gap, offset] = logistic(rows, used);
        if top < 0.0 {
            used[0] = false;
        } else if gap < 0.0 {
            used[1] = false;
        } else {
            return Method::Platt { top: top as f32, gap: gap as f32, offset: offset as f32 };
        }
    }
}

/// Minimises Σ log-loss + RIDGE/2·(top² + gap²) over (top, gap, offset), those not used held at 0.
fn logistic(rows: &[&Observed], used: [bool; 2]) -> [f64; 3] {
    let mut beta = [0.0f64; 3];
    for _ in 0..NEWTON_STEPS {
        let mut gradient = [RIDGE * beta[0], RIDGE * beta[1], 0.0];
        let mut hessian = [[RIDGE, 0.0, 0.0], [0.0, RIDGE, 0.0], [0.0, 0.0, 1e-9]];
        for row in rows {
            let x = [if used[0] { row.top } else { 0.0 }, if used[1] { row.gap } else { 0.0 }, 1.0];
            let p = 1.0 / (1.0 + (-(0..3).map(|i| beta[i] * x[i]).sum::<f64>()).exp());
            let error = p - f64::from(u8::from(row.right));
            for i in 0..3 {
                gradient[i] += error * x[i];
                (0..3).for_each(|j| hessian[i][j] += p * (1.0 - p) * x[i] * x[j]);
            }
        }
        let step = solve3(hessian, gradient);
        let length = step.iter().fold(0.0f64, |length, s| length.max(s.abs()));
        let damping = if length > 4.0 { 4.0 / length } else { 1.0 };
        (0..3).for_each(|i| beta[i] -= damping * step[i]);
        if length < 1e-9 {
            break;
        }
    }
    beta
}

/// Solves a positive definite 3 × 3 system by Gaussian elimination.
fn solve3(mut a: [[f64; 3]; 3], mut b: [f64; 3]) -> [f64; 3] {
    for pivot in 0..3 {
        for row in pivot + 1..3 {
            let factor = a[row][pivot] / a[pivot][pivot];
            (pivot..3).for_each(|column| a[row][column] -= factor * a[pivot][column]);
            b[row] -= factor * b[pivot];
        }
    }
    let mut x = [0.0; 3];
    for row in (0..3).rev() {
        let known: f64 = (row + 1..3).map(|column| a[row][column] * x[column]).sum();
        x[row] = (b[row] - known) / a[row][row];
    }
    x
}

/// Isotonic regression on Platt's score: neighbouring steps are pooled until shares rise and each has enough rows.
fn isotonic(rows: &[&Observed]) -> Method {
    let Method::Platt { top, gap, offset } = platt(rows) else { unreachable!("`platt` makes Platt's method") };
    let platt = Calibrator { inverse_temperature: 1.0, method: Method::Platt { top, gap, offset } };
    let score = |row: &Observed| platt.score(&[row.top as f32, (row.top - row.gap) as f32]);
    let mut sorted: Vec<(f32, bool)> = rows.iter().map(|row| (score(row), row.right)).collect();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut steps: Vec<[f64; 3]> = Vec::new(); // (rows, sum of scores, right)
    for (score, right) in sorted {
        steps.push([1.0, f64::from(score), f64::from(u8::from(right))]);
        while let [.., before, last] = steps.as_slice()
            && (before[0] < MIN_STEP_ROWS || before[2] * last[0] >= last[2] * before[0])
        {
            let pooled = std::array::from_fn(|i| before[i] + last[i]);
            steps.truncate(steps.len() - 2);
            steps.push(pooled);
        }
    }
    let (mut knots, mut values): (Vec<f32>, Vec<f32>) = (Vec::new(), Vec::new());
    for [n, scores, right] in steps {
        let (knot, value) = ((scores / n) as f32, ((right + 0.5) / (n + 1.0)) as f32);
        if knots.last().is_none_or(|last| knot > *last) {
            values.push(values.last().map_or(value, |last| value.max(*last)));
            knots.push(knot);
        }
    }
    // Beyond the last step scores still tell apart: half of what is missing to certainty is left to climb.
    if let (Some(&knot), Some(&value)) = (knots.last(), values.last())
        && knot < 1.0
    {
        knots.push(1.0);
        values.push((1.0 + value) / 2.0);
    }
    Method::Isotonic { top, gap, offset, knots, values }
}

#[cfg(test)]
mod tests {
    use metier_model::specialist::mix;

    use super::*;

    fn uniform(state: &mut u64) -> f64 {
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        (mix(*state) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Rows whose chance of being right is σ(3·gap − 1), whatever the margins' scale says.
    fn rows(n: usize, mut seed: u64) -> (Vec<Vec<f32>>, Vec<usize>) {
        (0..n)
            .map(|_| {
                let (top, gap) = (uniform(&mut seed) - 0.5, 2.0 * uniform(&mut seed));
                let right = uniform(&mut seed) < 1.0 / (1.0 + (1.0 - 3.0 * gap).exp());
                let margins = vec![top as f32, (top - gap) as f32, (top - gap - 0.3) as f32];
                (margins, if right { 0 } else { 1 })
            })
            .unzip()
    }

    #[test]
    fn recovers_the_chance_of_being_right() {
        let (margins, classes) = rows(4000, 1);
        let calibrator = fit(&margins, &classes);
        assert!(calibrator.is_valid());
        for gap in [0.2f32, 0.6, 1.0, 1.6] {
            let expected = 1.0 / (1.0 + (1.0 - 3.0 * gap).exp());
            let score = calibrator.score(&[0.1, 0.1 - gap, -0.2 - gap]);
            assert!((score - expected).abs() < 0.05, "{gap}: {score} instead of {expected} by {calibrator:?}");
        }
    }

    #[test]
    fn few_or_one_sided_rows_get_a_temperature_only() {
        let (margins, classes) = rows(30, 2);
        assert_eq!(fit(&margins, &classes).method, Method::Softmax);
        let (margins, _) = rows(100, 3);
        let always_right = fit(&margins, &vec![0; 100]);
        assert!(always_right.is_valid() && always_right.method == Method::Softmax);
    }

    #[test]
    fn isotonic_rises_in_whole_steps() {
        let (margins, classes) = rows(500, 4);
        let observed: Vec<Observed> = margins.iter().zip(&classes).map(|(m, &c)| Observed::new(m, c)).collect();
        let method = isotonic(&observed.iter().collect::<Vec<_>>());
        assert!(Calibrator { inverse_temperature: 1.0, method: method.clone() }.is_valid(), "{method:?}");
        let Method::Isotonic { knots, values, .. } = method else { panic!("isotonic") };
        assert!(knots.last() == Some(&1.0) && values.is_sorted_by(|a, b| a <= b), "the surest answers are no tie");
        assert!((3..=50).contains(&knots.len()), "{knots:?}");
    }
}
