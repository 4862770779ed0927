//! `[target] stages = 2`: which smaller rung may be asked before the one that was taken, how sure it must be at least, and the one certificate
//! for both.
//!
//! ```text
//! validation ──► floor: the lowest threshold at which the whole is shown to be less than `target.margin` worse than the last stage alone
//!                rung: of those that need no base model the one that answers more of these rows at its floor
//! calibration ─► thresholds: at step t the first stage answers from max(t, floor) on, the last from t on (`proof::cascade`)
//! ```
//!
//! Depths of a tree of labels that an answer may fall back to are further stages of the same path, behind the last.
//!
//! The floor keeps the cheap stage out of what the dear one knows better; it is looked for from strict to loose and the search ends at the first
//! threshold that is not shown to be good enough, as between rungs.

use metier_model::{
    Specialist,
    extract::log_odds,
    proof::{Calibrator, StageShare, thresholds},
    specialist::{
        Answer, FirstStage, Hierarchy, Manifest,
        hierarchy::{Level, is_under},
    },
};

use super::Evidence;
use crate::{
    craft::ladder::{self, Embeddings, Held, Ladder, Rung},
    data::{Part, Splits, TaskFile, split::Example, task::Target},
    eval::{
        ScoredRow, calibrate,
        certify::{certify, certify_cascade},
        cluster::Groups,
        hierarchy::{self, HierarchyFigures},
        rejection,
        stages::heard,
    },
};

/// Of the grid of thresholds every so-manieth is tried as floor.
const FLOOR_STEP: usize = 10;

/// Why no stage is asked first.
pub(super) const NOTHING_CHEAPER: &str =
    "the rung that was taken needs no base model: there is nothing cheaper to ask first";

/// Why no stage is asked first.
pub(super) fn not_shown(rows: usize, margin: f64) -> String {
    format!(
        "the {rows} validation rows do not show at any score that a smaller rung may be asked first at a margin of {margin}"
    )
}

/// The lowest threshold, looked for from strict to loose, at which it is shown that a stage may answer the rows that reach it; and how many do. `None`
/// where that is shown of none.
pub(super) fn floor(scores: &[f32], is_good_enough: impl Fn(&dyn Fn(usize) -> bool) -> bool) -> Option<(f32, usize)> {
    let mut floor = None;
    for threshold in thresholds().step_by(FLOOR_STEP) {
        let answers = |row: usize| scores[row] >= threshold;
        if !is_good_enough(&answers) {
            break;
        }
        let answered = (0..scores.len()).filter(|row| answers(*row)).count();
        floor = Some((threshold, answered)).filter(|(_, answered)| *answered > 0);
    }
    floor
}

/// A rung that is asked before the one that was taken.
pub(super) struct Front<'a> {
    pub(super) rung: &'a Rung,
    pub(super) stage: FirstStage,
    /// Validation rows that it answers at its floor.
    answered: usize,
}

/// What decides which.
pub(super) struct Choice<'a> {
    pub(super) target: &'a Target,
    /// Classes of the validation rows.
    pub(super) gold: &'a [usize],
    /// What the rung that was taken calls them, its rule for what is out of scope included.
    pub(super) last: &'a [usize],
    pub(super) n_classes: usize,
    /// Class of "none of these" and the share of rows in scope that keep their label, where a rule tells what is out of scope.
    pub(super) none: Option<(usize, f64)>,
    pub(super) seed: u64,
}

impl Choice<'_> {
    /// The rung to ask first.
    ///
    /// # Errors
    ///
    /// Why none is, in words.
    pub(super) fn front<'a>(&self, ladder: &'a Ladder) -> Result<Front<'a>, String> {
        let smaller = &ladder.rungs[..ladder.chosen];
        let candidates: Vec<&Rung> = smaller.iter().filter(|rung| FirstStage::may_be(rung.stage)).collect();
        if candidates.is_empty() {
            return Err(NOTHING_CHEAPER.to_owned());
        }
        let fronts = candidates.into_iter().filter_map(|rung| self.tried(rung));
        // The first of equals is the smallest.
        let best = fronts.reduce(|best, front| if front.answered > best.answered { front } else { best });
        best.ok_or_else(|| not_shown(self.gold.len(), self.target.margin))
    }

    fn tried<'a>(&self, rung: &'a Rung) -> Option<Front<'a>> {
        let rule = self.none.map(|(none, keep)| (none, rejection::fit(&rung.validation, self.gold, none, keep).ok()));
        let scope = rule.and_then(|(_, rule)| rule);
        let margins: Vec<Vec<f32>> = match rule {
            Some((none, Some(rule))) => rung.validation.iter().map(|row| rule.apply(row, none)).collect(),
            _ => rung.validation.clone(),
        };
        let calibrator = calibrate::fit(&margins, self.gold);
        let scores: Vec<f32> = margins.iter().map(|row| calibrator.score(row)).collect();
        let calls = ladder::calls(&margins);
        let is_good_enough = |answers: &dyn Fn(usize) -> bool| {
            let whole: Vec<usize> =
                (0..calls.len()).map(|row| if answers(row) { calls[row] } else { self.last[row] }).collect();
            ladder::non_inferior(self.target, &whole, self.last, self.gold, self.n_classes, self.seed).0
        };
        let (floor, answered) = floor(&scores, is_good_enough)?;
        let stage = FirstStage { stage: rung.stage, floor, share: None, calibrator, scope, multi_label: None };
        Some(Front { rung, stage, answered })
    }
}

/// What all stages say to a row, whether or not they would be asked.
pub(super) struct Said {
    first: Option<Answer>,
    /// The label.
    whole: Answer,
    /// Nodes above it, deepest first, where it may fall back.
    parents: Vec<Answer>,
}

impl Said {
    /// The answer that is given.
    fn heard(self) -> Answer {
        let Self { first, whole, parents } = self;
        let last = if whole.accepted { None } else { parents.into_iter().find(|parent| parent.accepted) };
        heard(first, last.unwrap_or(whole))
    }
}

/// The stages of a specialist over the rows of a build.
pub(super) struct Stages<'a> {
    pub(super) splits: &'a Splits,
    pub(super) ladder: &'a Ladder,
    pub(super) embeddings: Option<&'a Embeddings>,
    pub(super) front: Option<&'a Front<'a>>,
}

impl Stages<'_> {
    fn said(&self, specialist: &Specialist, part: Part) -> Vec<Said> {
        let margins = |rung: &Rung| {
            Held::of(self.splits, part, &self.ladder.features, rung.embeddings(self.embeddings)).margins(&rung.head)
        };
        let last = margins(&self.ladder.rungs[self.ladder.chosen]);
        let first = self.front.map(|front| margins(front.rung));
        let said = |(row, margins): (usize, &Vec<f32>)| Said {
            first: first.as_ref().and_then(|first| specialist.first_answer_from(&first[row])),
            whole: specialist.whole_answer_from(margins),
            parents: specialist.parent_answers_from(margins),
        };
        last.iter().enumerate().map(said).collect()
    }

    /// The rows of a part as the specialist answers them.
    pub(super) fn scored(&self, specialist: &Specialist, part: Part) -> (Vec<Answer>, Vec<ScoredRow>) {
        let answers: Vec<Answer> = self.said(specialist, part).into_iter().map(Said::heard).collect();
        let rows = self.splits.part(part).iter().zip(&answers);
        let scored = rows.map(|(example, answer)| ScoredRow::new(example, answer)).collect();
        (answers, scored)
    }

    /// Uses the calibration rows, once, and writes into the manifest what they allow: the certificate for all stages, and what each does.
    pub(super) fn certify(&self, specialist: &Specialist, target: &Target, manifest: &mut Manifest) {
        let examples = self.splits.part(Part::Calibration);
        let said = self.said(specialist, Part::Calibration);
        let groups = Groups::of(examples.iter().map(|example| example.row.group.as_deref()));
        let bound = (target.epsilon, target.delta);
        let rows = |of: &dyn Fn(&Said) -> Option<Answer>| -> Vec<(f32, f64)> {
            let row = |(example, said): (&Example, &Said)| {
                let scored = ScoredRow::new(example, &of(said)?);
                Some((scored.score, f64::from(u8::from(scored.loss_if_accepted()))))
            };
            examples.iter().zip(&said).filter_map(row).collect()
        };
        let mut stages = Vec::new();
        stages.extend(self.front.map(|front| (rows(&|said| said.first.clone()), front.stage.floor)));
        stages.push((rows(&|said| Some(said.whole.clone())), 0.0));
        let n_levels = manifest.hierarchy.as_ref().map_or(0, |tree| tree.levels.len());
        stages.extend((0..n_levels).map(|level| (rows(&|said| said.parents.get(level).cloned()), 0.0)));
        let certified = match stages.as_slice() {
            [(rows, _)] => certify(rows, false, groups.as_ref(), bound).map(|certificate| (certificate, Vec::new())),
            stages => certify_cascade(stages, false, groups.as_ref(), bound),
        };
        match certified {
            Err(refusal) => manifest.refusal = Some(refusal),
            Ok((certificate, shares)) => {
                manifest.certificate = Some(certificate);
                let mut shares = shares.into_iter();
                manifest.first.iter_mut().for_each(|first| first.share = shares.next());
                // The certificate itself has that of the last stage.
                let levels = manifest.hierarchy.iter_mut().flat_map(|tree| &mut tree.levels);
                levels.zip(shares.skip(1)).for_each(|(level, share)| level.share = Some(share));
            }
        }
    }
}

/// How labels are read as paths, with the lines of the depths that are fallen back to, fitted on the margins of validation rows as they are settled.
pub(super) fn hierarchy(task: &TaskFile, labels: &[String], validation: Validation<'_>) -> Option<Hierarchy> {
    let separator = task.data.hierarchy.clone()?;
    let mut tree = Hierarchy { separator, levels: Vec::new() };
    let Validation { margins, gold, calibrator } = validation;
    let depths = if task.fall_back { 1..tree.depth(labels) } else { 1..1 };
    let levels = depths.rev().map(|depth| {
        let (odds, right): (Vec<f64>, Vec<bool>) = margins
            .iter()
            .zip(gold)
            .map(|(margins, class)| {
                let (node, p) = tree.likeliest(labels, &calibrator.probabilities(margins), depth);
                (log_odds(p.ln()), is_under(&labels[*class], node, &tree.separator))
            })
            .unzip();
        Level { depth, line: calibrate::fit_line(&odds, &right), share: None }
    });
    tree.levels = levels.collect();
    Some(tree)
}

/// Validation rows as the rung that was taken sees them.
pub(super) struct Validation<'a> {
    pub(super) margins: &'a [Vec<f32>],
    pub(super) gold: &'a [usize],
    pub(super) calibrator: &'a Calibrator,
}

/// Figures by depth, where labels are paths.
pub(super) fn by_depth(manifest: &Manifest, rows: &[ScoredRow], seed: u64) -> Option<HierarchyFigures> {
    let tree = manifest.hierarchy.as_ref()?;
    let called: Vec<usize> = rows.iter().map(|row| row.predicted).collect();
    let gold: Vec<usize> = rows.iter().map(|row| row.gold).collect();
    let groups = Groups::of(rows.iter().map(|row| row.group.as_deref()));
    Some(hierarchy::figures(&manifest.labels, &tree.separator, &called, &gold, seed, groups.as_ref()))
}

/// What a report says beside its figures about who answered.
pub(super) fn note(evidence: &Evidence, share: Option<StageShare>) -> Option<String> {
    let share = share?;
    let first = evidence.evaluation.stages.first()?;
    Some(format!(
        "`{}` is asked first and needs no base model: from a score of {:.3} on it answered {:.1} % of the calibration rows and {:.1} % of the {} \
         rows; the certificate is for both stages together, in this order",
        first.stage,
        share.threshold,
        100.0 * share.coverage,
        100.0 * first.answered.value,
        evidence.rows
    ))
}
