//! *Will a build pass?* The build is rehearsed: what a trial has measured is drawn anew, again and again, calibration and test rows are drawn from
//! it, and each time the certificate is asked for as a build asks for it.
//!
//! ```text
//! measured rows (score, loss) ─► weights of a Bayesian bootstrap: what the truth may be, given so few rows
//!                             ─► half a loss at any place: none seen is not none there (Jeffreys)
//!                             ─► losses fall by (n_build / n_trial)^−b, b of the learning curve
//!                             ─► n calibration rows of these ─► Learn-then-Test ─► threshold
//!                             ─► test rows above it: enough of them, and not more losses than the certificate allows
//! ```
//!
//! Where rows come in groups a group is what is drawn, with all of its rows, and the certificate is the one that counts groups.
//!
//! So a task is not passed for what is likely true of it, but for what rows of the size that a build has can show. Deliberately absent: traffic that
//! changes after the log, which no row of it says anything about.

use metier_model::proof::{Certificate, Refusal, clopper_pearson, learn_then_test, learn_then_test_grouped};

use crate::discover::saving::draw::Draw;

/// Rehearsals of a build.
const REHEARSALS: usize = 400;
/// Rows that are drawn for each, at most: beyond these a certificate hardly changes.
const MAX_ROWS: usize = 2000;
/// Losses that might be there where none was seen, in rows.
const UNSEEN: f64 = 0.5;
/// Confidence at which a build's test rows contradict its certificate.
const CONTRADICTS: f64 = 0.95;

/// What a build will be asked, and what is known of it.
#[derive(Clone, Copy, Debug)]
pub struct Rehearsal<'a> {
    /// Scores of the measured rows and whether answering would be a loss, by falling score.
    pub scored: &'a [(f32, bool)],
    /// The group of each, from 0 on without gaps; none where rows are independent.
    pub group_of: Option<&'a [usize]>,
    /// How many rows count as one, because rows of a group vary together; at least 1. Of test rows, and of others where no group is known.
    pub design: f64,
    /// Exponent of the learning curve with its 95 % interval.
    pub exponent: Option<[f64; 3]>,
    /// Rows that trained the trial, and those that will train the build.
    pub trained: [u64; 2],
    /// Rows that the build calibrates with, and tests with.
    pub build: [u64; 2],
    /// Groups that these calibration rows are of, where that is known; else as many a row as in the trial.
    pub groups: Option<u64>,
    /// The bound, and with which probability it may fail.
    pub epsilon: f64,
    /// See `epsilon`.
    pub delta: f64,
    /// Least share answered alone that counts as passing.
    pub coverage: f64,
}

/// What rehearsals say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Predicted {
    /// Share of them that passed.
    pub passes: f64,
    /// Share answered alone in those, their mean; none where none passed.
    pub coverage: Option<f64>,
}

/// The certificate that a build would make of these rows of `(score, loss if accepted)`; of `group_of` each row's group, where there are any.
pub(super) fn certificate(
    scored: &[(f32, bool)],
    group_of: Option<&[usize]>,
    epsilon: f64,
    delta: f64,
) -> Result<Certificate, Refusal> {
    let Some(group_of) = group_of else { return learn_then_test(scored, epsilon, delta) };
    let rows: Vec<(f32, f64)> = scored.iter().map(|(score, loss)| (*score, f64::from(u8::from(*loss)))).collect();
    learn_then_test_grouped(&rows, group_of, epsilon, delta)
}

/// Rehearses a build.
pub fn predict(rehearsal: &Rehearsal<'_>, seed: u64, name: &str) -> Predicted {
    let mut draw = Draw::new(seed, &format!("rehearsal {name}"));
    if let Some(group_of) = rehearsal.group_of {
        return predict_grouped(rehearsal, group_of, &mut draw);
    }
    let [calibration, test] = rehearsal.build.map(|n| ((n as f64 / rehearsal.design.max(1.0)) as usize).min(MAX_ROWS));
    let n = rehearsal.scored.len();
    if n == 0 || calibration == 0 {
        return Predicted { passes: 0.0, coverage: None };
    }
    let (mut passed, mut covered) = (0usize, 0.0);
    // (score, weight up to here, loss)
    let mut truth: Vec<(f32, f64, bool)> = Vec::with_capacity(n + 1);
    let mut rows: Vec<(f32, bool)> = Vec::with_capacity(calibration);
    for _ in 0..REHEARSALS {
        let left = remaining(rehearsal, &mut draw);
        let unseen = draw.below(n);
        let mut sum = 0.0;
        truth.clear();
        for (at, (score, loss)) in rehearsal.scored.iter().enumerate() {
            if at == unseen {
                sum += draw.gamma(UNSEEN / rehearsal.design.max(1.0));
                truth.push((*score, sum, true));
            }
            sum += draw.gamma(1.0 / rehearsal.design.max(1.0));
            truth.push((*score, sum, *loss && draw.chance(left)));
        }
        rows.clear();
        for _ in 0..calibration {
            let place = draw.uniform() * sum;
            let (score, _, loss) = truth[truth.partition_point(|row| row.1 < place).min(truth.len() - 1)];
            rows.push((score, loss));
        }
        let Ok(certificate) = learn_then_test(&rows, rehearsal.epsilon, rehearsal.delta) else { continue };
        let (mut accepted, mut lost, mut before) = (0.0, 0.0, 0.0);
        for (_, upto, loss) in truth.iter().take_while(|row| row.0 >= certificate.threshold) {
            accepted += upto - before;
            lost += if *loss { upto - before } else { 0.0 };
            before = *upto;
        }
        let share = accepted / sum;
        if share < rehearsal.coverage || contradicted(lost / sum, test, rehearsal.epsilon, &mut draw) {
            continue;
        }
        passed += 1;
        covered += share;
    }
    Predicted { passes: passed as f64 / REHEARSALS as f64, coverage: (passed > 0).then(|| covered / passed as f64) }
}

/// The same where groups are what is drawn.
fn predict_grouped(rehearsal: &Rehearsal<'_>, group_of: &[usize], draw: &mut Draw) -> Predicted {
    let n = rehearsal.scored.len();
    let [calibration, test] = rehearsal.build.map(|n| n as usize);
    if n == 0 || calibration == 0 {
        return Predicted { passes: 0.0, coverage: None };
    }
    let mut members: Vec<Vec<(f32, bool)>> = vec![Vec::new(); group_of.iter().max().map_or(0, |last| last + 1)];
    rehearsal.scored.iter().zip(group_of).for_each(|(row, &group)| members[group].push(*row));
    let n_groups = rehearsal.groups.map_or_else(
        || (calibration.min(MAX_ROWS) as f64 * members.len() as f64 / n as f64).round().max(1.0) as usize,
        |groups| (groups as usize).clamp(1, MAX_ROWS),
    );
    let tested = (test as f64 / rehearsal.design.max(1.0)) as usize;
    let (mut passed, mut covered) = (0usize, 0.0);
    let (mut rows, mut of_row): (Vec<(f32, bool)>, Vec<usize>) = Default::default();
    for _ in 0..REHEARSALS {
        let left = remaining(rehearsal, draw);
        let mut world: Vec<(f64, Vec<(f32, bool)>)> = Vec::with_capacity(members.len() + 1);
        for member in &members {
            let rows = member.iter().map(|(score, loss)| (*score, *loss && draw.chance(left))).collect();
            world.push((draw.gamma(1.0), rows));
        }
        // A group that fails as a whole may be there where none was seen.
        let unseen = members[draw.below(members.len())].iter().map(|(score, _)| (*score, true)).collect();
        world.push((draw.gamma(UNSEEN), unseen));
        let mut upto = Vec::with_capacity(world.len());
        let sum = world.iter().fold(0.0, |sum, (weight, _)| {
            upto.push(sum + weight);
            sum + weight
        });
        rows.clear();
        of_row.clear();
        for at in 0..n_groups {
            let place = draw.uniform() * sum;
            let drawn = &world[upto.partition_point(|end| *end < place).min(world.len() - 1)].1;
            rows.extend(drawn);
            of_row.extend(std::iter::repeat_n(at, drawn.len()));
        }
        let made = certificate(&rows, Some(&of_row), rehearsal.epsilon, rehearsal.delta);
        let Ok(certificate) = made else { continue };
        let (mut accepted, mut lost, mut all) = (0.0, 0.0, 0.0);
        for (weight, rows) in &world {
            all += weight * rows.len() as f64;
            for (_, loss) in rows.iter().filter(|row| row.0 >= certificate.threshold) {
                accepted += weight;
                lost += if *loss { *weight } else { 0.0 };
            }
        }
        let share = accepted / all;
        if share >= rehearsal.coverage && !contradicted(lost / all, tested, rehearsal.epsilon, draw) {
            passed += 1;
            covered += share;
        }
    }
    Predicted { passes: passed as f64 / REHEARSALS as f64, coverage: (passed > 0).then(|| covered / passed as f64) }
}

/// By which factor losses are fewer with the rows that the build has.
fn remaining(rehearsal: &Rehearsal<'_>, draw: &mut Draw) -> f64 {
    const SIGMAS: f64 = 2.0 * 1.96;
    let [trial, build] = rehearsal.trained.map(|n| n.max(1) as f64);
    let Some([exponent, low, high]) = rehearsal.exponent else { return 1.0 };
    let b = exponent + draw.normal() * ((high - low) / SIGMAS).max(0.0);
    (build / trial).powf(-b.max(0.0)).min(1.0)
}

/// Would test rows contradict the certificate, if so many of all requests are answered alone and lost?
fn contradicted(loss: f64, test: usize, epsilon: f64, draw: &mut Draw) -> bool {
    if test == 0 || loss <= epsilon / 4.0 {
        return false;
    }
    let lost = (0..test).filter(|_| draw.chance(loss)).count() as u64;
    clopper_pearson(lost, test as u64, CONTRADICTS)[0] > epsilon
}
