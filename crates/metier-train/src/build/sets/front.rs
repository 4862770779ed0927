//! `[target] stages = 2` of rows with several labels: may the n-gram rung be asked first, how sure must it be at least, and the one certificate for
//! both. The rules are those of one label a row ([`cascade`](super::super::cascade)); what is bounded is the mean of 1 − Jaccard.

use metier_model::{
    proof::{Calibrator, Method},
    specialist::{FirstStage, sets::called},
};

use super::super::cascade::{NOTHING_CHEAPER, floor, not_shown};
use crate::{
    craft::sets::{self, SetLadder, SetRung},
    data::{Part, sets::SetSplits, task::Target},
    eval::{cluster::Groups, sets as figures},
};

/// A rung that is asked before the one that was taken.
pub(super) struct Front<'a> {
    pub(super) rung: &'a SetRung,
    pub(super) stage: FirstStage,
}

/// The rung to ask first.
///
/// # Errors
///
/// Why none is, in words.
pub(super) fn front<'a>(
    ladder: &'a SetLadder,
    sets: &SetSplits,
    groups: Option<&Groups>,
    target: &Target,
    seed: u64,
) -> Result<Front<'a>, String> {
    let smaller = &ladder.rungs[..ladder.chosen];
    // Of several labels one rung alone needs no base model.
    let rung = smaller.iter().find(|rung| FirstStage::may_be(rung.stage)).ok_or(NOTHING_CHEAPER)?;
    let gold = &sets.sets[Part::Validation as usize];
    let calls = |rung: &SetRung| rung.validation.iter().map(|row| called(row)).collect::<Vec<_>>();
    let (first, last) = (calls(rung), calls(&ladder.rungs[ladder.chosen]));
    let lines = sets::fit_scores(&rung.validation, gold);
    let scores: Vec<f32> = rung.validation.iter().map(|row| lines.score(row)).collect();
    let n_labels = sets.splits.labels.len();
    let is_good_enough = |answers: &dyn Fn(usize) -> bool| {
        let whole: Vec<Vec<usize>> =
            (0..first.len()).map(|row| if answers(row) { first[row].clone() } else { last[row].clone() }).collect();
        figures::non_inferior(target.metric, &whole, &last, gold, n_labels, target.margin, seed, groups).0
    };
    let (floor, _) = floor(&scores, is_good_enough).ok_or_else(|| not_shown(gold.len(), target.margin))?;
    let calibrator = Calibrator { inverse_temperature: 1.0, method: Method::Softmax };
    let stage = FirstStage { stage: rung.stage, floor, share: None, calibrator, scope: None, multi_label: Some(lines) };
    Ok(Front { rung, stage })
}
