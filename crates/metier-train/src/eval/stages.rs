//! Who answered what, where a specialist has two stages.

use metier_model::specialist::{Answer, Manifest};
use serde::{Deserialize, Serialize};

use super::{
    ScoredRow,
    cluster::{self, Groups},
    metrics::Measured,
};

/// What one stage did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageFigures {
    /// Which rung it is.
    pub stage: String,
    /// Of answers that are the beginning of a path: its parts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<usize>,
    /// It answers from this score on; `None` without a certificate.
    pub threshold: Option<f32>,
    /// Share of all rows that it answered without deferring.
    pub answered: Measured,
    /// Share right among those.
    pub right: Measured,
    /// Of them, those that were wrong while the reference was right.
    pub losses: u64,
}

impl StageFigures {
    /// Its name, with the depth where that is not the whole path.
    pub fn name(&self) -> String {
        self.level.map_or_else(|| self.stage.clone(), |level| format!("{}, level {level}", self.stage))
    }
}

/// The answer that is given: the first stage's where it is sure, else the last's.
pub fn heard(first: Option<Answer>, last: Answer) -> Answer {
    first.filter(|answer| answer.accepted).unwrap_or(last)
}

/// Figures by stage, in the order in which they are asked, and behind them by depth where an answer may fall back to the beginning of a path; empty for
/// a specialist of one stage. `answers` are those that were given to `rows`.
pub fn by_stage(manifest: &Manifest, answers: &[Answer], rows: &[ScoredRow]) -> Vec<StageFigures> {
    let first = manifest.first.as_ref().map(|first| (first.stage, None, first.share.map(|share| share.threshold)));
    let levels = manifest.hierarchy.iter().flat_map(|tree| &tree.levels);
    let levels = levels.map(|level| (manifest.stage, Some(level.depth), level.share.map(|share| share.threshold)));
    let stages: Vec<_> =
        first.into_iter().chain([(manifest.stage, None, manifest.threshold())]).chain(levels).collect();
    if stages.len() == 1 {
        return Vec::new();
    }
    let groups = Groups::of(rows.iter().map(|row| row.group.as_deref()));
    let figures = stages.into_iter().map(|(stage, level, threshold)| {
        let is_its = |row: usize| {
            let answer = &answers[row];
            answer.accepted && answer.stage == stage.name() && answer.level() == level
        };
        let share = |of: &dyn Fn(usize) -> bool, hit: &dyn Fn(usize) -> bool| {
            cluster::share(groups.as_ref(), of, hit, rows.len())
        };
        StageFigures {
            stage: stage.name().to_owned(),
            level,
            threshold,
            answered: share(&|_| true, &is_its),
            right: share(&is_its, &|row| rows[row].right),
            losses: (0..rows.len()).filter(|row| is_its(*row) && rows[*row].loss_if_accepted()).count() as u64,
        }
    });
    figures.collect()
}
