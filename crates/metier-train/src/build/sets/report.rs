//! Rows with several labels as a specialist answers them, of one stage or of two, and what is said of that.

use std::collections::{BTreeMap, BTreeSet};

use metier_model::{
    Specialist,
    proof::{graded, thresholds},
    specialist::{
        Answer,
        sets::{called, in_json},
    },
};

use crate::{
    data::{split::Example, task::Metric},
    eval::{
        EvalReport, ScoredRow,
        cluster::Groups,
        evaluation::{self, Confusion, RiskCoverage, TestLoss, Yardstick},
        metrics::{self, CONFIDENCE},
        sets as figures,
    },
};

/// Pairs of missed and false labels that are listed.
const MAX_CONFUSIONS: usize = 20;
/// Points of the risk–coverage curve, about.
const CURVE_POINTS: usize = 100;

/// Rows as a specialist answered them.
pub(super) struct Answered {
    pub(super) answers: Vec<Answer>,
    pub(super) called: Vec<Vec<usize>>,
    pub(super) scored: Vec<ScoredRow>,
    /// 1 − Jaccard, 0 where the reference is wrong itself.
    pub(super) losses: Vec<f64>,
}

/// What stages make of rows.
pub(super) struct Margins {
    /// Of the stage that is asked first, where there is one.
    pub(super) first: Option<Vec<Vec<f32>>>,
    /// Of the stage that the specialist is named after.
    pub(super) last: Vec<Vec<f32>>,
}

/// Rows as they are answered: by the first stage where it is sure, else by the last.
pub(super) fn answer(
    specialist: &Specialist,
    examples: &[Example],
    gold: &[Vec<usize>],
    margins: &Margins,
) -> Answered {
    let said = margins.last.iter().enumerate().map(|(row, last)| {
        let first = margins.first.as_ref().map(|first| &first[row]);
        let sure = first.and_then(|first| Some((specialist.first_answer_from(first)?, first)));
        match sure.filter(|(answer, _)| answer.accepted) {
            Some((answer, first)) => (answer, called(first)),
            None => (specialist.answer_from(last), called(last)),
        }
    });
    told(said, examples, gold)
}

/// Rows as one stage answers them, whether or not it would be asked.
pub(super) fn answer_of_stage(
    answer: impl Fn(&[f32]) -> Option<Answer>,
    examples: &[Example],
    gold: &[Vec<usize>],
    margins: &[Vec<f32>],
) -> Option<Answered> {
    let said = margins.iter().map(|row| Some((answer(row)?, called(row)))).collect::<Option<Vec<_>>>()?;
    Some(told(said.into_iter(), examples, gold))
}

/// Right is class 0, anything else class 1.
fn told(said: impl Iterator<Item = (Answer, Vec<usize>)>, examples: &[Example], gold: &[Vec<usize>]) -> Answered {
    let (answers, calls): (Vec<Answer>, Vec<Vec<usize>>) = said.unzip();
    let rows = examples.iter().zip(&answers).zip(calls.iter().zip(gold));
    let scored: Vec<ScoredRow> = rows
        .map(|((example, answer), (called, gold))| ScoredRow {
            predicted: usize::from(called != gold),
            gold: 0,
            right: called == gold,
            score: answer.score,
            accepted: answer.accepted,
            reference_right: reference_is_right(example),
            group: example.row.group.clone(),
            extra: example.row.extra.clone(),
        })
        .collect();
    let losses = calls
        .iter()
        .zip(gold)
        .zip(&scored)
        .map(|((called, gold), row)| if row.reference_right { 1.0 - figures::jaccard(called, gold) } else { 0.0 });
    Answered { losses: losses.collect(), answers, called: calls, scored }
}

/// A reference's list counts as right in any order.
fn reference_is_right(example: &Example) -> bool {
    let Some(reference) = &example.row.reference else { return true };
    let list: Option<BTreeSet<String>> = serde_json::from_str(reference).ok();
    list.is_some_and(|list| in_json(list.iter().map(String::as_str)) == example.row.label)
}

/// What is said of any specialist (rows right or wrong, accepted or deferred), and what is said of sets.
pub(super) fn report(
    answered: &Answered,
    gold: &[Vec<usize>],
    groups: Option<&Groups>,
    of: &Yardstick<'_>,
) -> EvalReport {
    let (metric, seed, labels) = (of.metric, of.seed, of.labels);
    let right_or_wrong = ["right".to_owned(), "wrong".to_owned()];
    let yardstick = Yardstick { labels: &right_or_wrong, metric: Metric::Accuracy, out_of_scope: None, ..*of };
    let mut report = evaluation::evaluate(&answered.scored, &yardstick);
    let all = figures::figures(&answered.called, gold, labels.len(), seed, groups);
    report.metric = figures::name(metric).to_owned();
    let measured = match metric {
        Metric::Accuracy => all.exact_match,
        Metric::MacroF1 => all.macro_f1,
        Metric::MicroF1 | Metric::F1 { .. } => all.micro_f1,
    };
    (report.value, report.interval) = (measured.value, measured.interval);
    (report.micro_f1, report.macro_f1) = (all.micro_f1, all.macro_f1);
    report.per_class = figures::per_label(&answered.called, gold, labels);
    report.confusions = confusions(&answered.called, gold, labels);
    report.slices.iter_mut().for_each(|slice| slice.risk = None);
    report.risk_coverage = risk_coverage(answered);
    report.test_loss = of.certificate.map(|certificate| test_loss(answered, certificate.epsilon, seed, groups));
    report.sets = Some(all);
    report
}

/// The mean loss of what was accepted, tried on rows that the certificate has not seen.
fn test_loss(answered: &Answered, epsilon: f64, seed: u64, groups: Option<&Groups>) -> TestLoss {
    let pairs = answered.scored.iter().zip(&answered.losses);
    let losses: Vec<f64> = pairs.map(|(row, loss)| if row.accepted { *loss } else { 0.0 }).collect();
    let n = losses.len();
    let mean = |rows: &[usize]| rows.iter().map(|row| losses[*row]).sum::<f64>() / rows.len().max(1) as f64;
    let loss = mean(&(0..n).collect::<Vec<_>>());
    let mut interval = metrics::bootstrap(n, seed, groups, mean);
    // Resamples of rows without a loss have none; the exact bound of that many rows says more.
    let lost = losses.iter().filter(|loss| **loss > 0.0).count() as u64;
    if lost == 0 {
        interval = metrics::share(0, n as u64).interval;
    }
    TestLoss {
        loss,
        losses: lost,
        interval,
        epsilon,
        held: interval[0] <= epsilon,
        shown: groups.is_none() && graded::p_value(loss, n as u64, epsilon) <= (1.0 - CONFIDENCE) / 2.0,
    }
}

/// Mean loss and coverage by threshold, strict to loose.
fn risk_coverage(answered: &Answered) -> Vec<RiskCoverage> {
    let n = answered.losses.len().max(1) as f64;
    let grid: Vec<f32> = thresholds().collect();
    let step = (grid.len() / CURVE_POINTS).max(1);
    let points = grid.into_iter().step_by(step).map(|threshold| {
        let accepted = answered.scored.iter().zip(&answered.losses).filter(|(row, _)| row.score >= threshold);
        let (accepted, risk) = accepted.fold((0u64, 0.0), |(n, sum), (_, loss)| (n + 1, sum + loss));
        RiskCoverage { threshold, coverage: accepted as f64 / n, risk: risk / n }
    });
    points.collect()
}

/// A label that was missed where another was called falsely.
fn confusions(calls: &[Vec<usize>], gold: &[Vec<usize>], labels: &[String]) -> Vec<Confusion> {
    let mut counts: BTreeMap<(usize, usize), u64> = BTreeMap::new();
    for (called, gold) in calls.iter().zip(gold) {
        let without = |of: &[usize], other: &[usize]| -> Vec<usize> {
            of.iter().copied().filter(|label| other.binary_search(label).is_err()).collect()
        };
        for missed in without(gold, called) {
            for falsely in without(called, gold) {
                *counts.entry((missed, falsely)).or_default() += 1;
            }
        }
    }
    let mut pairs: Vec<_> = counts.into_iter().collect();
    pairs.sort_by_key(|&(pair, n)| (std::cmp::Reverse(n), pair));
    pairs.truncate(MAX_CONFUSIONS);
    let name = |k: usize| labels[k].clone();
    pairs.into_iter().map(|((gold, called), n)| Confusion { gold: name(gold), predicted: name(called), n }).collect()
}
