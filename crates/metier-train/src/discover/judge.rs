//! *Can a specialist do this task?* A guess from its traffic in seconds ([`prior`]), then a trial: the cheap rungs are made from the logs
//! themselves and measured on rows that came later, from groups and texts that they have not seen ([`rows`]).
//!
//! What is measured is agreement with the LLM, and is called that; accuracy is said only of rows that the log holds a right answer for. Where
//! the LLM was asked the same twice, its agreement with itself is the ceiling: nothing that learns from its answers can be told from it
//! above that.
//!
//! A verdict rests on exact tests: thresholds are fixed on validation rows, and at each the hypothesis "more than ε of all requests are
//! answered alone and otherwise" is tested by the binomial tail on the measured rows. Half of δ goes to "answers at least a little alone"
//! (partial), half to "answers most alone" (proven), each corrected over all tasks ([`holm`]).
//!
//! Deliberately absent: prices (see [`saving`](super::saving)) and any rung that takes longer than a minute or two.

pub mod holm;
pub mod prior;
pub mod rows;

use std::time::Duration;

use metier_kernels::Pool;
use metier_model::{
    Progress, Unit,
    proof::{binomial_tail, learn_then_test, rows_needed},
    specialist::manifest::Stage,
};
use metier_traffic::privacy::masked;
use serde::{Deserialize, Serialize};
use statrs::function::beta::beta_reg;

use self::{prior::Prior, rows::Ground};
use super::{
    saving::{Count, assumptions::Assumptions, chance::Evidence},
    task::{Task, TaskKind},
};
use crate::{
    craft::{
        encoder::Recipe,
        ladder::{self, Embeddings, Held},
    },
    data::{Part, task::Metric, task::Target},
    embed::Embed,
    eval::{
        LearningCurve, calibrate,
        cluster::{self, Groups},
        learning,
        metrics::{Measured, quantile},
    },
};

/// How much worse a smaller rung may be.
const MARGIN: f64 = 0.01;
/// Points of the curve of risk by coverage.
const CURVE_POINTS: usize = 41;
/// Share of one answer from which on a rule does.
const ALWAYS: f64 = 0.98;
/// Least chance that a verdict stands on: below it a trial that says "not yet" says "no".
const HOPELESS: f64 = 0.05;

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

/// A trial that ran.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// The rung that was taken.
    pub rung: Stage,
    /// Rows that trained, chose and were measured.
    pub rows: [u64; 3],
    /// Different labels.
    pub labels: u64,
    /// Share of the measured rows on which it agrees with the LLM, all answered.
    pub agreement: Measured,
    /// The same by rung, smallest first.
    pub rungs: Vec<(Stage, f64)>,
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
    /// At the threshold for "most": one-sided p-value, and the share answered alone.
    pub most: [f64; 2],
    /// At the threshold for "a little".
    pub little: [f64; 2],
    /// Losses at the threshold for "a little".
    pub little_losses: u64,
    /// Scores of the measured rows, and whether answering would be a loss, by falling score.
    #[serde(skip)]
    scored: Vec<(f32, bool)>,
    /// Seconds of all of it.
    pub seconds: f64,
    /// Seconds of the machine for a request's embedding.
    pub request_seconds: f64,
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

/// Tries a specialist for one task, or says why not.
pub fn attempt(
    task: &Task,
    assumptions: &Assumptions,
    bench: &Bench<'_>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Trial, String> {
    let start = (bench.clock)();
    let elapsed = || (bench.clock)().saturating_sub(start);
    let Ground { splits, gold, unseen, notes } = rows::part(task, bench.seed)?;
    let mut notes = notes;
    let texts: Vec<&str> =
        Part::ALL.iter().flat_map(|&part| splits.part(part)).map(|example| example.row.text.as_str()).collect();
    let before = elapsed();
    let embeddings: Option<Embeddings> = match bench.encoder {
        None => {
            notes.push("no encoder was at hand: only n-grams were tried".to_owned());
            None
        }
        Some(encoder) => {
            let all = encoder.embed_all(bench.pool, &texts, progress);
            let mut all = all.map_err(|error| format!("its texts cannot be embedded: {error}"))?.into_iter();
            Some(Part::ALL.map(|part| all.by_ref().take(splits.part(part).len()).collect()))
        }
    };
    let request_seconds = (elapsed() - before).as_secs_f64() / texts.len().max(1) as f64;
    let target =
        Target { metric: Metric::Accuracy, margin: MARGIN, epsilon: assumptions.epsilon, delta: assumptions.delta };
    let deadline = Duration::from_secs_f64(assumptions.training_minutes * 60.0);
    let run = ladder::Run { pool: bench.pool, seed: bench.seed, clock: &elapsed, deadline, keeps: None };
    let inputs = ["text".to_owned()];
    let ground = ladder::Ground {
        splits: &splits,
        inputs: &inputs,
        embeddings: embeddings.as_ref(),
        encoder: None,
        decoder: None,
        decoding: &crate::craft::decoder::Recipe::default(),
        from: Stage::Linear,
        up_to: Stage::Both,
        tuning: &Recipe::default(),
        lesson: None,
    };
    let ladder = ladder::climb(ground, &target, &run, progress).map_err(|error| error.to_string())?;
    progress(Progress { stage: "judging", done: 0, total: None, unit: Unit::Steps });
    let rung = &ladder.rungs[ladder.chosen];
    let validation: Vec<usize> = splits.part(Part::Validation).iter().map(|example| example.class).collect();
    let calibrator = calibrate::fit(&rung.validation, &validation);
    let measured = splits.part(Part::Calibration);
    let margins = Held::of(&splits, Part::Calibration, &ladder.features, embeddings.as_ref()).margins(&rung.head);
    let agrees_of = |margins: &[Vec<f32>]| -> Vec<bool> {
        let calls = ladder::calls(margins);
        (0..measured.len()).map(|at| !unseen[at] && calls[at] == measured[at].class).collect()
    };
    let agrees = agrees_of(&margins);
    let calls = ladder::calls(&margins);
    let scores: Vec<f32> = margins.iter().map(|margins| calibrator.score(margins)).collect();
    let groups = Groups::of(measured.iter().map(|example| example.row.group.as_deref()));
    let groups = groups.as_ref();
    let share = |of: &dyn Fn(usize) -> bool, hit: &dyn Fn(usize) -> bool| {
        cluster::share(groups, &|at| of(at), &|at| hit(at), measured.len())
    };
    let known = |at: usize| gold[at].is_some();
    let named = |at: usize| gold[at].as_deref() == Some(splits.labels[calls[at]].as_str());
    let llm_right = |at: usize| gold[at].as_deref() == Some(measured[at].row.label.as_str());
    let n_gold = (0..measured.len()).filter(|&at| known(at)).count();
    let differing = |at: usize| known(at) && !agrees[at];
    let n_differing = (0..measured.len()).filter(|&at| differing(at)).count();

    // Thresholds by what they let through on validation rows, before the measured rows are looked at.
    let mut reached: Vec<f64> = rung.validation.iter().map(|margins| f64::from(calibrator.score(margins))).collect();
    reached.sort_by(f64::total_cmp);
    let threshold = |coverage: f64| {
        let slack = (coverage * (1.0 - coverage) / reached.len() as f64).sqrt();
        quantile(&reached, (1.0 - coverage - slack).max(0.0))
    };
    let design = groups.map_or(1.0, |groups| groups.report(&agrees).design_effect.max(1.0));
    let effective = (measured.len() as f64 / design).floor() as u64;
    let at = |coverage: f64| {
        let threshold = threshold(coverage);
        let accepted: Vec<usize> = (0..measured.len()).filter(|&at| f64::from(scores[at]) >= threshold).collect();
        let losses = accepted.iter().filter(|&&at| !agrees[at]).count() as u64;
        let p = binomial_tail((losses as f64 / design).ceil() as u64, effective, assumptions.epsilon);
        ([p, accepted.len() as f64 / measured.len() as f64], losses)
    };
    let (most, _) = at(assumptions.proven_coverage);
    let (little, little_losses) = at(assumptions.partial_coverage);
    let mut scored: Vec<(f32, bool)> = scores.iter().copied().zip(agrees.iter().map(|agrees| !agrees)).collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));

    let shop = learning::Workshop { inputs: &inputs, pool: bench.pool, seed: bench.seed, clock: &elapsed, deadline };
    let curve = learning::measure(&splits, embeddings.as_ref(), rung, Metric::Accuracy, &shop);
    let curve = curve.map_err(|why| notes.push(why)).ok();
    let rungs = ladder.rungs.iter().map(|rung| {
        let held = Held::of(&splits, Part::Calibration, &ladder.features, rung.embeddings(embeddings.as_ref()));
        let agrees = agrees_of(&held.margins(&rung.head));
        (rung.stage, agrees.iter().filter(|agrees| **agrees).count() as f64 / agrees.len() as f64)
    });
    Ok(Trial {
        rung: rung.stage,
        rows: [Part::Train, Part::Validation, Part::Calibration].map(|part| splits.part(part).len() as u64),
        labels: splits.labels.len() as u64,
        agreement: share(&|_| true, &|at| agrees[at]),
        rungs: rungs.collect(),
        accuracy: (n_gold >= MIN_GOLD).then(|| [share(&known, &named), share(&known, &llm_right)]),
        ceiling: task.traits.self_agreement.filter(|agreement| agreement.pairs > 0).map(|agreement| Measured {
            value: agreement.agree as f64 / agreement.pairs as f64,
            interval: agreement.interval,
        }),
        error_share: (n_differing >= MIN_DIFFERENCES).then(|| share(&differing, &|at| !named(at))),
        curve,
        risk_coverage: risk_coverage(&scored),
        effective,
        most,
        little,
        little_losses,
        scored,
        seconds: elapsed().as_secs_f64(),
        request_seconds,
        notes,
    })
}

/// Measured rows with a right answer from which on an accuracy is told.
const MIN_GOLD: usize = 50;
/// Differences among them from which on it is told who was wrong.
const MIN_DIFFERENCES: usize = 20;

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
            let prior = prior::prior(task.kind.kind, &task.traits);
            let p_values = trial.as_ref().ok().and_then(|_| adjusted.next());
            let mut judgement = match trial {
                Err(why) => untried(task, prior, why, assumptions),
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
    let loosest = learn_then_test(&trial.scored, epsilon, level / n_tried.max(1) as f64).ok();
    let loosest = loosest.map(|certificate| (certificate.coverage, certificate.losses));
    let is_most = most <= level && trial.most[1] >= assumptions.proven_coverage;
    let is_little = little <= level;
    let (coverage, losses) = match loosest {
        Some(loosest) => loosest,
        None if is_most || is_little => (trial.little[1], trial.little_losses),
        None => (0.0, 0),
    };
    // Posterior that the true share of losses at the threshold that was tested lies below ε (uniform prior).
    let scale = trial.effective as f64 / n;
    let below = |losses: u64| {
        let losses = losses as f64 * scale;
        beta_reg(losses + 1.0, (n * scale - losses + 1.0).max(1.0), epsilon)
    };
    let chance = below(trial.little_losses);
    let verdict = if is_most {
        Verdict::Proven { coverage: coverage.max(trial.most[1]) }
    } else if is_little {
        Verdict::Partial { coverage: coverage.max(trial.little[1]) }
    } else {
        let rate = trial.little_losses as f64 / n;
        let share_measured = n / trial.rows.iter().sum::<u64>() as f64;
        let have = trial.rows.iter().sum::<u64>();
        let needed =
            rows_needed(epsilon, level / n_tried.max(1) as f64, rate).map(|rows| rows as f64 / share_measured / scale);
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
            None if improves && chance >= HOPELESS / 10.0 => Verdict::NotYet {
                more_rows: Some(have),
                why: "even its surest answers differ from the LLM's too often, and with every doubling of the rows less so".to_owned(),
            },
            None => Verdict::No {
                why: format!(
                    "it agrees with the LLM on {:.1} % of the rows, and even its surest answers differ too often",
                    100.0 * trial.agreement.value
                ),
            },
        }
    };
    let certain = match &verdict {
        Verdict::No { .. } => chance.min(HOPELESS),
        _ => chance,
    };
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
            Count { k: (1.0 - assumptions.partial_coverage) * assumptions.prior_rows, n: assumptions.prior_rows },
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
        chance: certain,
        evidence: Evidence::Tried,
        epsilon,
        deferred,
        differs,
    }
}
