//! From which scores on may the *stages* of a cascade answer, one after the other, under one promise?
//!
//! Stages are asked in order; the first whose score reaches its threshold answers, the last defers what it is not sure of. The risk of the
//! whole is the mean loss of what any stage answered. A vector of thresholds is chosen by Learn-then-Test as a single one is
//! ([`certificate`](super::certificate)), on one path through the space of vectors that is fixed before the calibration rows are seen:
//!
//! ```text
//! at step t = 1.000, 0.999, … 0.000      threshold of stage s = max(t, floor of s)      row: the first stage at its threshold → its loss; none → 0
//! ```
//!
//! Floors come from other rows. Where an early stage is nearly as good as those behind it, its floor is low, and it answers much; a floor of 1 and
//! more silences it. Without floors an early stage would take rows from better ones for no gain but speed, and the whole would have to
//! be stricter for it. Along the path the share that is answered only grows; the risk need not (a stage that was right is forestalled by an
//! earlier one that is wrong, or the other way round), and fixed-sequence testing does not ask for it: each step is tested at δ, and the
//! walk ends at the first that fails. One path of vectors costs nothing for having many stages; thresholds of each stage chosen by
//! themselves would cost δ/stages each and add up their risks.

use serde::{Deserialize, Serialize};

use super::{
    certificate::{Certificate, Refusal, rows_needed, thresholds},
    graded::{Wealth, needed},
    interval::binomial_tail,
};

/// One stage, as the calibration rows see it.
#[derive(Clone, Copy, Debug)]
pub struct CascadeStage<'a> {
    /// `(score, loss if this stage answers)` of every row, each loss 0..1; a negative score never answers.
    pub rows: &'a [(f32, f64)],
    /// Its threshold never falls below this.
    pub floor: f32,
}

/// What one stage does at the thresholds that were chosen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageShare {
    /// It answers from this score on.
    pub threshold: f32,
    /// Share of all calibration rows that it answered.
    pub coverage: f64,
    /// Of them, those that lost anything.
    pub losses: u64,
}

/// Walks the path; the last stage is the one whose threshold the certificate names. `unit_of`: (rows,), each row's group, from 0 on without gaps,
/// where rows come in groups. Losses that are all 0 or 1 of rows without groups have the exact test, unless `has_degrees`.
///
/// `coverage` and `losses` of the certificate are those of all stages together. Cost: a sort of `rows × stages` events.
///
/// # Errors
///
/// What the rows cannot carry, with how many would do.
///
/// # Panics
///
/// If stages or groups are of different numbers of rows.
pub fn learn_then_test_cascade(
    stages: &[CascadeStage<'_>],
    unit_of: Option<&[usize]>,
    has_degrees: bool,
    (epsilon, delta): (f64, f64),
) -> Result<(Certificate, Vec<StageShare>), Refusal> {
    let n = stages.first().map_or(0, |stage| stage.rows.len());
    assert!(stages.iter().all(|stage| stage.rows.len() == n), "the same rows for every stage");
    assert!(unit_of.is_none_or(|units| units.len() == n), "a group for every row");
    let unit = |row: usize| unit_of.map_or(row, |units| units[row]);
    let mut sizes = vec![0u32; (0..n).map(unit).max().map_or(0, |last| last + 1)];
    (0..n).for_each(|row| sizes[unit(row)] += 1);
    let units = sizes.len() as u64;
    let is_exact = unit_of.is_none() && !has_degrees;

    let mut walk = Walk::new(stages, n);
    let mut lost = vec![0.0; sizes.len()];
    let mut wealth = Wealth::without_loss(units, epsilon);
    let mut last_passed = None;
    for (step, threshold) in thresholds().enumerate() {
        while let Some((row, from, to)) = walk.next(step, stages) {
            let unit = unit(row);
            let before = lost[unit];
            lost[unit] += (to - from) / f64::from(sizes[unit]);
            wealth.change(before, lost[unit]);
        }
        let p = if is_exact { binomial_tail(walk.losses(), units, epsilon) } else { wealth.p_value() };
        if units == 0 || p > delta {
            break;
        }
        if walk.answered() > 0 {
            let (coverage, losses) = (walk.answered() as f64 / n as f64, walk.losses());
            let threshold_of = |stage: &CascadeStage<'_>| threshold.max(stage.floor);
            let own = stages.last().map_or(threshold, threshold_of);
            let groups = unit_of.map(|_| units);
            let certificate = Certificate { epsilon, delta, threshold: own, coverage, n: n as u64, losses, groups };
            let shares = stages.iter().zip(&walk.by_stage).map(|(stage, (answered, losses))| StageShare {
                threshold: threshold_of(stage),
                coverage: *answered as f64 / n as f64,
                losses: *losses,
            });
            last_passed = Some((certificate, shares.collect()));
        }
    }
    last_passed.ok_or_else(|| {
        let mean = lost.iter().sum::<f64>() / units.max(1) as f64;
        let of_units = if is_exact { rows_needed(epsilon, delta, mean) } else { needed(epsilon, delta, mean) };
        let per_unit = n.max(1) as f64 / units.max(1) as f64;
        Refusal { n: n as u64, rows_needed: of_units.map(|units| (units as f64 * per_unit).ceil() as u64) }
    })
}

/// Who answers which row, as thresholds fall.
struct Walk {
    /// (step from which on the stage could answer, row, stage), ascending.
    events: Vec<(usize, usize, usize)>,
    at: usize,
    stage_of: Vec<Option<usize>>, // (rows,)
    by_stage: Vec<(u64, u64)>,    // (stages,): rows answered, of them those that lost anything
}

impl Walk {
    fn new(stages: &[CascadeStage<'_>], n: usize) -> Self {
        let grid: Vec<f32> = thresholds().collect();
        let mut events = Vec::new();
        for (place, stage) in stages.iter().enumerate() {
            for (row, &(score, _)) in stage.rows.iter().enumerate() {
                let step = grid.partition_point(|threshold| *threshold > score);
                if score >= stage.floor && step < grid.len() {
                    events.push((step, row, place));
                }
            }
        }
        events.sort_unstable();
        Self { events, at: 0, stage_of: vec![None; n], by_stage: vec![(0, 0); stages.len()] }
    }

    /// The next row of this step that changes hands: the row, its loss before and its loss now.
    fn next(&mut self, step: usize, stages: &[CascadeStage<'_>]) -> Option<(usize, f64, f64)> {
        loop {
            let &(_, row, stage) = self.events.get(self.at).filter(|event| event.0 <= step)?;
            self.at += 1;
            let before = self.stage_of[row];
            if before.is_some_and(|before| before <= stage) {
                continue;
            }
            let loss_of = |stage: usize| stages[stage].rows[row].1;
            if let Some(before) = before {
                self.by_stage[before].0 -= 1;
                self.by_stage[before].1 -= u64::from(loss_of(before) > 0.0);
            }
            self.by_stage[stage].0 += 1;
            self.by_stage[stage].1 += u64::from(loss_of(stage) > 0.0);
            self.stage_of[row] = Some(stage);
            return Some((row, before.map_or(0.0, loss_of), loss_of(stage)));
        }
    }

    fn answered(&self) -> u64 {
        self.by_stage.iter().map(|(answered, _)| answered).sum()
    }

    fn losses(&self) -> u64 {
        self.by_stage.iter().map(|(_, losses)| losses).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{learn_then_test, learn_then_test_graded, learn_then_test_grouped};
    use super::*;

    struct Draws(u64);

    impl Draws {
        fn uniform(&mut self) -> f64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            (crate::specialist::mix(self.0) >> 11) as f64 / (1u64 << 53) as f64
        }
    }

    /// Of each row: score and loss of a cheap stage that is right with probability ½ + ½u at score u, and of a better one that sees more
    /// of the same difficulty.
    fn pool(n: usize, seed: u64) -> [Vec<(f32, f64)>; 2] {
        let mut draws = Draws(seed);
        let lost = |yes: bool| f64::from(u8::from(yes));
        let rows = (0..n).map(|_| {
            let (u, v, x, y) = (draws.uniform(), draws.uniform(), draws.uniform(), draws.uniform());
            let better = 1.0 - 0.5 * (1.0 - u) * (1.0 - v);
            ((u as f32, lost(x < 0.5 * (1.0 - u))), (better as f32, lost(y < 1.0 - better)))
        });
        let (cheap, dear) = rows.unzip();
        [cheap, dear]
    }

    fn with_floors(rows: &[Vec<(f32, f64)>; 2], floors: [f32; 2]) -> [CascadeStage<'_>; 2] {
        [CascadeStage { rows: &rows[0], floor: floors[0] }, CascadeStage { rows: &rows[1], floor: floors[1] }]
    }

    #[test]
    fn one_stage_is_no_cascade() {
        let [rows, _] = pool(400, 3);
        let alone = [CascadeStage { rows: &rows, floor: 0.0 }];
        let bound = (0.05, 0.1);
        let whole: Vec<(f32, bool)> = rows.iter().map(|(score, loss)| (*score, *loss > 0.0)).collect();
        let (certificate, shares) = learn_then_test_cascade(&alone, None, false, bound).expect("400 rows");
        assert_eq!(certificate, learn_then_test(&whole, 0.05, 0.1).expect("400 rows"));
        let Certificate { threshold, coverage, losses, .. } = certificate;
        assert_eq!(shares, [StageShare { threshold, coverage, losses }]);
        let groups: Vec<usize> = (0..400).map(|row| row / 2).collect();
        let (grouped, _) = learn_then_test_cascade(&alone, Some(&groups), false, bound).expect("200 groups");
        assert_eq!(grouped, learn_then_test_grouped(&rows, &groups, 0.05, 0.1).expect("200 groups"));
        let (graded, _) = learn_then_test_cascade(&alone, None, true, bound).expect("400 rows");
        assert_eq!(graded, learn_then_test_graded(&rows, 0.05, 0.1).expect("400 rows"));
    }

    #[test]
    fn the_first_stage_that_is_sure_answers() {
        // Stage 0 is sure of the first 100 rows, stage 1 of all; nobody errs but stage 0 in row 0, which stage 1 would have known.
        let cheap: Vec<(f32, f64)> =
            (0..200).map(|row| (if row < 100 { 0.9 } else { 0.1 }, f64::from(u8::from(row == 0)))).collect();
        let rows = [cheap, vec![(0.95, 0.0); 200]];
        let share = |threshold, coverage, losses| StageShare { threshold, coverage, losses };
        let walk = |floor| learn_then_test_cascade(&with_floors(&rows, [floor, 0.0]), None, false, (0.05, 0.05));
        let (certificate, shares) = walk(0.0).expect("200 rows");
        assert_eq!((certificate.coverage, certificate.losses, certificate.threshold), (1.0, 1, 0.0));
        assert_eq!(shares, [share(0.0, 1.0, 1), share(0.0, 0.0, 0)], "at threshold 0 the first answers everything");
        let (certificate, shares) = walk(0.5).expect("200 rows");
        assert_eq!((certificate.coverage, certificate.losses, certificate.threshold), (1.0, 1, 0.0));
        assert_eq!(shares, [share(0.5, 0.5, 1), share(0.0, 0.5, 0)], "its floor leaves the rest to the second");
        let (_, shares) = walk(1.5).expect("200 rows");
        assert_eq!(shares, [share(1.5, 0.0, 0), share(0.0, 1.0, 0)], "a floor above 1 silences it");
    }

    #[test]
    fn refuses_what_the_rows_cannot_carry() {
        let walk = |stages: &[CascadeStage<'_>]| learn_then_test_cascade(stages, None, false, (0.05, 0.05)).map(|_| ());
        let rows = |n: usize, loss: f64| [vec![(0.9, loss); n], vec![(0.9, 0.0); n]];
        assert_eq!(walk(&[]), Err(Refusal { n: 0, rows_needed: Some(59) }));
        assert_eq!(walk(&with_floors(&rows(58, 0.0), [0.0; 2])), Err(Refusal { n: 58, rows_needed: Some(59) }));
        assert_eq!(walk(&with_floors(&rows(200, 1.0), [0.0; 2])), Err(Refusal { n: 200, rows_needed: None }));
        assert_eq!(walk(&with_floors(&rows(200, 1.0), [1.1, 0.0])), Ok(()), "a silenced stage does no harm");
        let never = [vec![(-1.0, 1.0); 100], vec![(f32::NAN, 1.0); 100]];
        assert!(walk(&with_floors(&never, [0.0; 2])).is_err(), "a certificate over no answer is none");
    }

    /// The promise: calibration sets are drawn with replacement from a pool, whose mean is the true risk. The share of them whose
    /// certificate breaks ε there is at most δ, and coverage is near that of the loosest step that keeps it.
    #[test]
    fn the_bound_holds_over_draws() {
        const DRAWS: u64 = 1500;
        const N: usize = 600;
        let (epsilon, delta) = (0.05, 0.10);
        let floors = [0.8, 0.0];
        let pool = pool(4000, 11);
        let n = pool[0].len() as f64;
        // Of each step of the path: risk and share answered, and the share that the first stage answers.
        let truth: Vec<(f32, f64, f64, f64)> = thresholds()
            .map(|t| {
                let mut sums = (t, 0.0, 0.0, 0.0);
                for (cheap, dear) in pool[0].iter().zip(&pool[1]) {
                    let first = cheap.0 >= t.max(floors[0]);
                    if first || dear.0 >= t.max(floors[1]) {
                        sums.1 += if first { cheap.1 } else { dear.1 } / n;
                        sums.2 += 1.0 / n;
                        sums.3 += f64::from(u8::from(first)) / n;
                    }
                }
                sums
            })
            .collect();
        let oracle = truth.iter().rev().find(|step| step.1 <= epsilon).expect("the strictest step has no risk");
        let mut draws = Draws(5);
        let (mut exceeded, mut coverage, mut by_first) = (0u64, 0.0, 0.0);
        for _ in 0..DRAWS {
            let drawn: Vec<usize> = (0..N).map(|_| (draws.uniform() * n) as usize).collect();
            let rows = [0, 1].map(|stage: usize| drawn.iter().map(|row| pool[stage][*row]).collect::<Vec<_>>());
            let found = learn_then_test_cascade(&with_floors(&rows, floors), None, false, (epsilon, delta));
            if let Ok((certificate, _)) = found {
                let at = truth.iter().find(|step| step.0 == certificate.threshold).expect("a step of the path");
                exceeded += u64::from(at.1 > epsilon);
                coverage += at.2 / DRAWS as f64;
                by_first += at.3 / DRAWS as f64;
            }
        }
        let share = exceeded as f64 / DRAWS as f64;
        let monte_carlo = 3.0 * (delta * (1.0 - delta) / DRAWS as f64).sqrt();
        assert!(share <= delta + monte_carlo, "{share}");
        assert!(share > 0.01 && by_first > 0.1, "a bound that never binds is no test: {share}, {by_first}");
        assert!(oracle.2 - coverage <= 0.1 && coverage <= oracle.2 + 0.02, "{coverage} against {}", oracle.2);
    }

    /// The same where rows of a group are lost together and losses have degrees.
    #[test]
    fn the_bound_holds_over_draws_of_groups() {
        const DRAWS: u64 = 1000;
        const GROUPS: usize = 150;
        let (epsilon, delta) = (0.05, 0.10);
        // Stages with scores u, v ~ U(0,1), each lost with probability 0.5(1 − score) by an amount ~ U(0,1), all rows of a group alike:
        // at t the first answers at u ≥ t and loses (1 − t)²/8; the second loses the same of the share t that is left.
        let risk = |t: f64| 0.125 * (1.0 - t).powi(2) * (1.0 + t);
        let mut draws = Draws(23);
        let (mut exceeded, mut coverage) = (0u64, 0.0);
        for _ in 0..DRAWS {
            let (mut rows, mut unit_of) = ([Vec::new(), Vec::new()], Vec::new());
            for group in 0..GROUPS {
                let size = 1 + (draws.uniform() * 4.0) as usize;
                for stage in &mut rows {
                    let (score, is_lost, loss) = (draws.uniform(), draws.uniform(), draws.uniform());
                    let loss = if is_lost < 0.5 * (1.0 - score) { loss } else { 0.0 };
                    stage.extend(vec![(score as f32, loss); size]);
                }
                unit_of.extend(vec![group; size]);
            }
            let stages = with_floors(&rows, [0.0; 2]);
            if let Ok((certificate, _)) = learn_then_test_cascade(&stages, Some(&unit_of), true, (epsilon, delta)) {
                exceeded += u64::from(risk(f64::from(certificate.threshold)) > epsilon);
                coverage += certificate.coverage / DRAWS as f64;
            }
        }
        let share = exceeded as f64 / DRAWS as f64;
        let monte_carlo = 3.0 * (delta * (1.0 - delta) / DRAWS as f64).sqrt();
        assert!(share <= delta + monte_carlo && coverage > 0.3, "{share}, {coverage}");
    }
}
