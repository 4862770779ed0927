//! What do the measured rows of a trial say? Scores and agreement, row by row, in; shares, tests and curves out: the same for every kind of task.

use metier_model::proof::{binomial_tail, grouped_p_value};

use super::{Role, TriedRow};
use crate::{
    discover::saving::assumptions::Assumptions,
    eval::{
        cluster::{self, Groups},
        metrics::{Measured, quantile},
    },
};

/// Points of the curve of risk by coverage.
const CURVE_POINTS: usize = 41;

/// Answers to rows that had no part in making what answers.
pub(super) struct Answers<'a> {
    /// Scores on the rows that choose, which fix the thresholds.
    pub(super) chose: &'a [f64],
    /// Scores of the measured rows: the surer, the higher.
    pub(super) scores: &'a [f32],
    /// Whether each of these agrees with the LLM.
    pub(super) agrees: &'a [bool],
    /// Which of them belong together.
    pub(super) groups: Option<&'a Groups>,
}

/// What they say.
pub(super) struct Told {
    pub(super) agreement: Measured,
    pub(super) design: f64,
    pub(super) effective: u64,
    /// p-value and share answered alone, at the threshold for "most" and at that for "a little".
    pub(super) most: [f64; 2],
    pub(super) little: [f64; 2],
    pub(super) little_losses: u64,
    pub(super) thresholds: [f64; 2],
    pub(super) risk_coverage: Vec<[f64; 2]>,
    pub(super) scored: Vec<(f32, bool)>,
    /// The group of each of these; none where rows are independent.
    pub(super) group_of: Option<Vec<usize>>,
}

/// Which rows belong together, told as a build is told it: where one row has a group, a row without is a group of its own.
pub(super) fn groups<'a>(rows: impl Iterator<Item = Option<&'a str>>) -> Option<Groups> {
    let rows: Vec<Option<&str>> = rows.collect();
    rows.iter().any(Option::is_some).then_some(())?;
    let own =
        |at: usize, group: &Option<&str>| group.map_or_else(|| format!("row {at}"), |group| format!("group {group}"));
    let all: Vec<String> = rows.iter().enumerate().map(|(at, group)| own(at, group)).collect();
    Groups::of(all.iter().map(|group| Some(group.as_str())))
}

impl Answers<'_> {
    pub(super) fn told(&self, assumptions: &Assumptions) -> Told {
        let Self { chose, scores, agrees, groups } = *self;
        let n = agrees.len();
        // Thresholds by what they let through on rows that choose, before the measured rows are looked at.
        let mut reached = chose.to_vec();
        reached.sort_by(f64::total_cmp);
        let threshold = |coverage: f64| {
            let slack = (coverage * (1.0 - coverage) / reached.len() as f64).sqrt();
            quantile(&reached, (1.0 - coverage - slack).max(0.0))
        };
        let design = groups.map_or(1.0, |groups| groups.report(agrees).design_effect.max(1.0));
        let effective = (n as f64 / design).floor() as u64;
        let at = |coverage: f64| {
            let threshold = threshold(coverage);
            let accepted: Vec<usize> = (0..n).filter(|&at| f64::from(scores[at]) >= threshold).collect();
            let losses = accepted.iter().filter(|&&at| !agrees[at]).count() as u64;
            let p = match groups {
                None => binomial_tail(losses, n as u64, assumptions.epsilon),
                // As a build tests it: each group once, however many rows it has.
                Some(groups) => {
                    let mut lost = vec![0.0; n];
                    accepted.iter().for_each(|&at| lost[at] = f64::from(u8::from(!agrees[at])));
                    grouped_p_value(&lost, groups.of_row(), assumptions.epsilon)
                }
            };
            ([p, accepted.len() as f64 / n as f64], losses, threshold)
        };
        let (most, _, most_threshold) = at(assumptions.proven_coverage);
        let (little, little_losses, little_threshold) = at(assumptions.partial_coverage);
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
        let scored: Vec<(f32, bool)> = order.iter().map(|&at| (scores[at], !agrees[at])).collect();
        Told {
            agreement: cluster::share(groups, &|_| true, &|at| agrees[at], n),
            design,
            effective,
            most,
            little,
            little_losses,
            thresholds: [most_threshold, little_threshold],
            risk_coverage: risk_coverage(&scored),
            scored,
            group_of: groups.map(|groups| order.iter().map(|&at| groups.of_row()[at]).collect()),
        }
    }

    /// The rows, for whoever wants to add them up again.
    pub(super) fn rows(&self, measured: &[usize]) -> impl Iterator<Item = TriedRow> {
        let each = measured.iter().zip(self.scores).zip(self.agrees);
        each.map(|((example, score), agrees)| TriedRow {
            example: *example,
            role: Role::Measured,
            score: Some(*score),
            agrees: Some(*agrees),
        })
    }
}

fn risk_coverage(scored: &[(f32, bool)]) -> Vec<[f64; 2]> {
    let n = scored.len() as f64;
    (0..CURVE_POINTS)
        .map(|point| {
            let accepted = scored.len() * point / (CURVE_POINTS - 1);
            let losses = scored[..accepted].iter().filter(|(_, lost)| *lost).count();
            [accepted as f64 / n, losses as f64 / n]
        })
        .collect()
}
