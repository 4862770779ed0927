//! *Can a specialist do this task?* A guess from its traffic in seconds ([`prior`]), then a trial: the cheap rungs are made from the logs
//! themselves and measured on rows that came later, from groups and texts that they have not seen ([`rows`]).
//!
//! What is measured is agreement with the LLM, and is called that; accuracy is said only of rows that the log holds a right answer for. Where
//! the LLM was asked the same twice, its agreement with itself is the ceiling: nothing that learns from its answers can be told from it
//! above that.
//!
//! Extractions and written answers are tried as well: an encoder is tuned to tag words for a minute; an answer that was given before to the nearest text
//! is given again. What needs no training at all and passes is no specialist but a rule, and the verdict says that.
//!
//! A verdict rests on exact tests: thresholds are fixed on validation rows, and at each the hypothesis "more than ε of all requests are
//! answered alone and otherwise" is tested by the binomial tail on the measured rows. Half of δ goes to "answers at least a little alone"
//! (partial), half to "answers most alone" (proven), each corrected over all tasks ([`holm`]). The chance that a build passes is no such test: it is
//! rehearsed ([`predict`]).
//!
//! Deliberately absent: prices (see [`saving`](super::saving)) and any rung that takes longer than a minute or two.

mod classify;
mod extract;
mod generate;
pub mod holm;
mod measure;
pub mod predict;
pub mod prior;
pub mod rows;

use std::time::Duration;

use metier_kernels::Pool;
use metier_model::{
    Progress,
    proof::{Certificate, Refusal, rows_needed},
    specialist::manifest::Stage,
};
use metier_traffic::privacy::masked;
use serde::{Deserialize, Serialize};

use self::{
    measure::Told,
    predict::{Predicted, Rehearsal},
    prior::Prior,
};
use super::{
    act,
    saving::{Count, assumptions::Assumptions, chance::Evidence},
    task::{Task, TaskKind},
};
use crate::{
    embed::Embed,
    eval::{LearningCurve, metrics::Measured},
};

/// How much worse a smaller rung may be.
const MARGIN: f64 = 0.01;
/// Share of one answer from which on a rule does.
const ALWAYS: f64 = 0.98;
/// Below this chance more rows are no way to a verdict, unless the learning curve rises.
const HOPELESS: f64 = 0.005;
/// Seed of rehearsals: one log, one forecast.
const REHEARSED: u64 = 1;

/// What a trial needs.
pub struct Bench<'a> {
    /// The encoder; without one only the n-gram rung runs.
    pub encoder: Option<&'a dyn Embed>,
    /// Threads.
    pub pool: &'a Pool,
    /// Seed of splits, permutations and resamples.
    pub seed: u64,
    /// Time since any fixed moment.
    pub clock: &'a dyn Fn() -> Duration,
}

/// What is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rung {
    /// A linear model on n-grams.
    Linear,
    /// A linear model on an encoder's embedding.
    Head,
    /// One on both.
    Both,
    /// Values that were seen before, found again.
    Lookup,
    /// An encoder tuned to tag words.
    Span,
    /// The answer to the nearest earlier text.
    Nearest,
    /// The same, with what differs between the texts put in its place.
    Adapted,
}

impl Rung {
    fn of(stage: Stage) -> Self {
        match stage {
            Stage::Head => Self::Head,
            Stage::Both => Self::Both,
            Stage::Lookup => Self::Lookup,
            Stage::Span => Self::Span,
            Stage::Nearest => Self::Nearest,
            _ => Self::Linear,
        }
    }

    /// As in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Head => "head",
            Self::Both => "both",
            Self::Lookup => "lookup",
            Self::Span => "span",
            Self::Nearest => "nearest",
            Self::Adapted => "adapted",
        }
    }

    /// In words, where nothing was trained: what does as well as a specialist.
    pub fn rule(self) -> Option<&'static str> {
        match self {
            Self::Lookup => Some("a list of the values that came before"),
            Self::Nearest => Some("the answer to the nearest earlier text"),
            Self::Adapted => Some("the answer to the nearest earlier text, with what differs put in its place"),
            _ => None,
        }
    }
}

/// What a row was used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It trained.
    Trained,
    /// It chose settings and thresholds.
    Chose,
    /// It was measured.
    Measured,
    /// It was to train, and is nearly equal to a row that was measured.
    LeftOut,
}

impl Role {
    /// As in `examples.csv`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Trained => "trained",
            Self::Chose => "chose",
            Self::Measured => "measured",
            Self::LeftOut => "left out",
        }
    }
}

/// A row of a trial.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TriedRow {
    /// Position in the task's examples.
    pub example: usize,
    /// What it was used for.
    pub role: Role,
    /// How sure the answer was, of measured rows.
    pub score: Option<f32>,
    /// Whether it agrees with the LLM's, of measured rows.
    pub agrees: Option<bool>,
}

/// How like the LLM's answers are, where an answer is more than a label.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Likeness {
    /// By which metric.
    pub metric: String,
    /// Its mean over the measured rows.
    pub value: Measured,
}

/// A trial that ran.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// The rung that was taken.
    pub rung: Rung,
    /// Rows that trained, chose and were measured.
    pub rows: [u64; 3],
    /// Different labels, or fields of an extraction; 0 where answers are texts.
    pub labels: u64,
    /// Share of the measured rows on which it agrees with the LLM, all answered: the same label, all fields the same, the same text up to white space.
    pub agreement: Measured,
    /// How like the answers are where they do not agree as a whole.
    #[serde(default)]
    pub likeness: Option<Likeness>,
    /// The same by rung, smallest first.
    pub rungs: Vec<(Rung, f64)>,
    /// Share right, on measured rows that have a right answer in the log: the specialist's, then the LLM's on the same rows.
    pub accuracy: Option<[Measured; 2]>,
    /// The LLM's agreement with itself where it was asked the same again.
    pub ceiling: Option<Measured>,
    /// Share of differences in which the specialist was wrong, where right answers say it.
    pub error_share: Option<Measured>,
    /// Agreement by training rows.
    pub curve: Option<LearningCurve>,
    /// Share answered alone, and answered alone otherwise than the LLM, strict to loose.
    pub risk_coverage: Vec<[f64; 2]>,
    /// Requests that the measured rows count as, after what rows of one group have in common.
    pub effective: u64,
    /// How many rows count as one of these.
    pub design: f64,
    /// At the threshold for "most": one-sided p-value, and the share answered alone.
    pub most: [f64; 2],
    /// At the threshold for "a little".
    pub little: [f64; 2],
    /// Losses at the threshold for "a little".
    pub little_losses: u64,
    /// The thresholds for "most" and for "a little": scores from which on it answers alone.
    pub thresholds: [f64; 2],
    #[serde(skip)]
    scored: Vec<(f32, bool)>,
    #[serde(skip)]
    group_of: Option<Vec<usize>>,
    /// The rows one by one.
    #[serde(skip)]
    pub tried: Vec<TriedRow>,
    /// Seconds of all of it.
    pub seconds: f64,
    /// Seconds of the machine for a request's embedding.
    pub request_seconds: f64,
    /// True where a minute was not enough to train as long as a build does: that it fails says little then.
    #[serde(default)]
    pub short: bool,
    /// What was done with the rows.
    pub notes: Vec<String>,
}

/// What is said of a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// A specialist answers most requests alone, and at most ε of them otherwise than the LLM.
    Proven {
        /// Share answered alone.
        coverage: f64,
    },
    /// The same of fewer.
    Partial {
        /// Share answered alone.
        coverage: f64,
    },
    /// These rows do not show it.
    NotYet {
        /// About so many rows more would; none where no trial was made.
        more_rows: Option<u64>,
        /// Why.
        why: String,
    },
    /// More rows would not help.
    No {
        /// Why.
        why: String,
    },
    /// It could be done, and something that needs no training saves as much.
    Cheaper {
        /// What, in words.
        by: String,
    },
}

impl Verdict {
    /// The word for it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Proven { .. } => "proven",
            Self::Partial { .. } => "partial",
            Self::NotYet { .. } => "not yet",
            Self::No { .. } => "no",
            Self::Cheaper { .. } => "cheaper without training",
        }
    }
}

/// A task as it was judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Judgement {
    /// Id of the task.
    pub id: String,
    /// The guess from its traffic.
    pub prior: Prior,
    /// The trial.
    pub trial: Option<Trial>,
    /// Why there was none.
    pub not_tried: Option<String>,
    /// The verdict, before prices.
    pub verdict: Verdict,
    /// p-values of "most" and of "a little", corrected over all tasks; none without a trial.
    pub adjusted: Option<[f64; 2]>,
    /// Probability that a specialist passes, before this installation's own attempts.
    pub chance: f64,
    /// What that stands on.
    pub evidence: Evidence,
    /// The bound that was asked for.
    pub epsilon: f64,
    /// Deferred requests.
    pub deferred: Count,
    /// Requests answered alone and otherwise than the LLM, or wrong.
    pub differs: Count,
}

impl Trial {
    /// What its measured rows say; the rest is nothing yet.
    fn of(rung: Rung, told: Told, tried: Vec<TriedRow>, notes: Vec<String>) -> Self {
        let Told {
            agreement,
            design,
            effective,
            most,
            little,
            little_losses,
            thresholds,
            risk_coverage,
            scored,
            group_of,
        } = told;
        Self {
            rung,
            rows: [0; 3],
            labels: 0,
            agreement,
            likeness: None,
            rungs: Vec::new(),
            accuracy: None,
            ceiling: None,
            error_share: None,
            curve: None,
            risk_coverage,
            effective,
            design,
            most,
            little,
            little_losses,
            thresholds,
            scored,
            group_of,
            tried,
            seconds: 0.0,
            request_seconds: 0.0,
            short: false,
            notes,
        }
    }

    /// Scores of the measured rows and whether answering would be a loss, by falling score.
    pub fn scored(&self) -> &[(f32, bool)] {
        &self.scored
    }

    /// The group of each of these, from 0 on; none where rows are independent.
    pub fn group_of(&self) -> Option<&[usize]> {
        self.group_of.as_deref()
    }

    /// How far the threshold may be lowered: the test that a build makes of its calibration rows, groups counted as groups.
    fn certified(&self, epsilon: f64, delta: f64) -> Result<Certificate, Refusal> {
        predict::certificate(&self.scored, self.group_of.as_deref(), epsilon, delta)
    }
}

/// Tries one task, or says why not.
pub fn attempt(
    task: &Task,
    assumptions: &Assumptions,
    bench: &Bench<'_>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Trial, String> {
    let trial = match task.kind.kind {
        TaskKind::Classify => classify::attempt(task, assumptions, bench, progress),
        TaskKind::Extract => extract::attempt(task, assumptions, bench, progress),
        TaskKind::Generate => generate::attempt(task, assumptions, bench, progress),
    };
    let ceiling = task.traits.self_agreement.filter(|agreement| agreement.pairs > 0).map(|agreement| Measured {
        value: agreement.agree as f64 / agreement.pairs as f64,
        interval: agreement.interval,
    });
    trial.map(|trial| Trial { ceiling, ..trial })
}

/// Judges all tasks together: what the trials say, corrected for their number.
pub fn judge(tasks: &[Task], trials: Vec<Result<Trial, String>>, assumptions: &Assumptions) -> Vec<Judgement> {
    let tried: Vec<&Trial> = trials.iter().filter_map(|trial| trial.as_ref().ok()).collect();
    let most = holm::adjusted(&tried.iter().map(|trial| trial.most[0]).collect::<Vec<_>>());
    let little = holm::adjusted(&tried.iter().map(|trial| trial.little[0]).collect::<Vec<_>>());
    let n_tried = tried.len();
    let mut adjusted = most.into_iter().zip(little).map(|(most, little)| [most, little]);
    let tasks = tasks.iter().zip(trials);
    tasks
        .map(|(task, trial)| {
            let prior = prior::prior(task.kind.kind, &task.traits, rows::known(task).len() as u64);
            let p_values = trial.as_ref().ok().and_then(|_| adjusted.next());
            let mut judgement = match trial {
                Err(why) => untried(task, prior, why, assumptions),
                Ok(made) if made.rung.rule().is_some() => {
                    ruled(task, prior, made, p_values.unwrap_or([1.0; 2]), n_tried, assumptions)
                }
                Ok(made) => tried_one(task, prior, made, p_values.unwrap_or([1.0; 2]), n_tried, assumptions),
            };
            if let Some(rule) = rule(task) {
                judgement.verdict = Verdict::Cheaper { by: rule };
            }
            judgement
        })
        .collect()
}

/// A task that needs no model at all.
fn rule(task: &Task) -> Option<String> {
    let labels = &task.traits.labels;
    let all: u64 = labels.values().sum();
    let (label, n) = labels.iter().max_by_key(|(_, n)| **n)?;
    let is_one = all >= rows::MIN_ROWS as u64 && *n as f64 >= ALWAYS * all as f64;
    is_one.then(|| format!("a rule: {n} of {all} answers are `{}`", masked(label)))
}

/// The words "cannot be tried" of a task that has too few rows, or no texts, or is no classification.
fn untried(task: &Task, prior: Prior, why: String, assumptions: &Assumptions) -> Judgement {
    let rows = rows::known(task).len() as u64;
    let more_rows = (task.kind.kind == TaskKind::Classify && task.sampling.with_text > 0)
        .then(|| (rows::MIN_ROWS as u64).saturating_sub(rows))
        .filter(|more| *more > 0);
    let guess = |share: f64| Count { k: share * assumptions.prior_rows, n: assumptions.prior_rows };
    Judgement {
        id: task.id.clone(),
        chance: prior.chance,
        prior,
        verdict: Verdict::NotYet { more_rows, why: why.clone() },
        trial: None,
        not_tried: Some(why),
        adjusted: None,
        evidence: Evidence::Traits,
        epsilon: assumptions.epsilon,
        deferred: guess(assumptions.prior_fallback),
        // A build answers alone only where it certifies that at most ε goes wrong.
        differs: Count { k: assumptions.epsilon / 2.0 * 100.0, n: 100.0 },
    }
}

/// A task for which something was tried that needs no training, and no specialist was.
fn ruled(
    task: &Task,
    prior: Prior,
    trial: Trial,
    [most, little]: [f64; 2],
    n_tried: usize,
    assumptions: &Assumptions,
) -> Judgement {
    let level = assumptions.delta / 2.0;
    // How far the threshold may be lowered where each task has its share of δ.
    let loosest = trial.certified(assumptions.epsilon, level / n_tried.max(1) as f64);
    let loosest = loosest.map_or(0.0, |certificate| certificate.coverage);
    let rule = trial.rung.rule().unwrap_or_default();
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let mut judgement = untried(task, prior, String::new(), assumptions);
    judgement.not_tried = None;
    let given = if most <= level { trial.most[1].max(loosest) } else { loosest };
    judgement.verdict = if given >= assumptions.proven_coverage {
        Verdict::Cheaper { by: format!("{rule} for {} of the requests", percent(given)) }
    } else {
        let [low, high] = trial.agreement.interval.map(percent);
        let alone = if little <= level || loosest > 0.0 {
            let given = if little <= level { given.max(trial.little[1]) } else { given };
            format!(", and may be given without asking for the surest {} of the requests", percent(given))
        } else {
            String::new()
        };
        let why = format!(
            "{rule} agrees with the LLM on {} [{low}, {high}] of the rows{alone}; a specialist was not tried",
            percent(trial.agreement.value)
        );
        Verdict::NotYet { more_rows: None, why }
    };
    judgement.trial = Some(trial);
    judgement.adjusted = Some([most, little]);
    judgement
}

fn tried_one(
    task: &Task,
    prior: Prior,
    trial: Trial,
    [most, little]: [f64; 2],
    n_tried: usize,
    assumptions: &Assumptions,
) -> Judgement {
    let Assumptions { epsilon, delta, .. } = *assumptions;
    let level = delta / 2.0;
    let n = trial.scored.len() as f64;
    // How far the threshold may be lowered where each task has its share of δ.
    let certified = trial.certified(epsilon, level / n_tried.max(1) as f64);
    let loosest = certified.as_ref().ok().map(|certificate| (certificate.coverage, certificate.losses));
    let is_most = most <= level && trial.most[1] >= assumptions.proven_coverage;
    let is_little = little <= level;
    let (coverage, losses) = match loosest {
        Some(loosest) => loosest,
        None if is_most || is_little => (trial.little[1], trial.little_losses),
        None => (0.0, 0),
    };
    let scale = 1.0 / trial.design;
    let act::Planned { rows: [train, calibration, test], groups } = act::planned(task);
    let exponent = trial.curve.as_ref().and_then(|curve| curve.exponent);
    let rehearsal = Rehearsal {
        scored: &trial.scored,
        group_of: trial.group_of(),
        design: trial.design,
        exponent: exponent.map(|b| [b.value, b.interval[0], b.interval[1]]),
        trained: [trial.rows[0], train],
        build: [calibration, test],
        groups,
        epsilon,
        delta,
        coverage: assumptions.partial_coverage,
    };
    let Predicted { passes: chance, coverage: promised } = predict::predict(&rehearsal, REHEARSED, &task.id);
    let verdict = if is_most {
        Verdict::Proven { coverage: coverage.max(trial.most[1]) }
    } else if is_little {
        Verdict::Partial { coverage: coverage.max(trial.little[1]) }
    } else {
        let rate = trial.little_losses as f64 / n;
        let share_measured = n / trial.rows.iter().sum::<u64>() as f64;
        let have = trial.rows.iter().sum::<u64>();
        let needed = match (&certified, trial.group_of()) {
            // In rows already, at so many a group.
            (Err(refusal), Some(_)) => refusal.rows_needed.map(|rows| rows as f64),
            _ => rows_needed(epsilon, level / n_tried.max(1) as f64, rate).map(|rows| rows as f64 / scale),
        };
        let needed = needed.map(|rows| rows / share_measured);
        let improves = trial.curve.as_ref().and_then(|curve| curve.exponent).is_some_and(|b| b.interval[0] > 0.0);
        match needed {
            Some(needed) => Verdict::NotYet {
                more_rows: Some((needed as u64).saturating_sub(have).max(1)),
                why: format!(
                    "{} measured rows, which say as much as {} that have nothing to do with each other, cannot show that at most {:.1} % go wrong: of its surest {:.0} % {} differ from the LLM",
                    trial.rows[2],
                    trial.effective,
                    100.0 * epsilon,
                    100.0 * trial.little[1],
                    trial.little_losses
                ),
            },
            None if improves && chance >= HOPELESS => Verdict::NotYet {
                more_rows: Some(have),
                why: "even its surest answers differ from the LLM's too often, and with every doubling of the rows less so".to_owned(),
            },
            None if trial.short => Verdict::NotYet {
                more_rows: None,
                why: format!(
                    "in the minute of a trial it came to agree with the LLM on {:.1} % of the rows; it was not trained as long as a build trains, so that this says little",
                    100.0 * trial.agreement.value
                ),
            },
            None => Verdict::No {
                why: format!(
                    "it agrees with the LLM on {:.1} % of the rows, and even its surest answers differ too often",
                    100.0 * trial.agreement.value
                ),
            },
        }
    };
    // What a trial that was too short does not show is as open as before it.
    let is_open = trial.short && matches!(verdict, Verdict::NotYet { more_rows: None, .. });
    let (chance, evidence) =
        if is_open { (chance.max(prior.chance), Evidence::Traits) } else { (chance, Evidence::Tried) };
    let (deferred, differs) = match &verdict {
        Verdict::Proven { coverage } | Verdict::Partial { coverage } => {
            let losses = if loosest.is_some_and(|(loosest, _)| loosest >= *coverage) {
                losses as f64
            } else {
                trial.scored[..(coverage * n) as usize].iter().filter(|(_, lost)| *lost).count() as f64
            };
            (Count { k: (1.0 - coverage) * n * scale, n: n * scale }, Count { k: losses * scale, n: n * scale })
        }
        _ => (
            Count {
                k: (1.0 - promised.unwrap_or(assumptions.partial_coverage)) * assumptions.prior_rows,
                n: assumptions.prior_rows,
            },
            Count { k: epsilon / 2.0 * 100.0, n: 100.0 },
        ),
    };
    Judgement {
        id: task.id.clone(),
        prior,
        trial: Some(trial),
        not_tried: None,
        verdict,
        adjusted: Some([most, little]),
        chance,
        evidence,
        epsilon,
        deferred,
        differs,
    }
}
