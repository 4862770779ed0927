//! *What would a specialist save, and how sure is that?* Volumes by week and evidence in; money with its interval out.
//!
//! ```text
//! S = V·[c_next − c_own − f·c_next − e·L] − (labels + training + shadow·V_s·c_own + retraining·k + operations + labour)
//! ```
//!
//! V requests over the horizon, c_next what a request would cost under the best that can be had without training ([`options`]), c_own what
//! it costs on own hardware, f the share that is deferred, e the share answered wrong where the LLM was right, L the loss of one such error.
//! S is earned only if the specialist passes, with probability P ([`chance`]); else what was spent to find out is lost.
//!
//! Nothing is multiplied by its mean: every draw takes a history of weeks (in blocks, the same weeks for all tasks), a future made of that
//! history, rates from what was counted, an overrun of the work, a pass or a failure, and adds it up. P10, P50, P90 and P(S < 0) are read
//! off the draws, of one task and of all together.
//!
//! Deliberately absent: any number that is not measured, counted, or one of the [`assumptions`].

pub mod assumptions;
pub mod case;
pub mod chance;
pub mod draw;
pub mod options;
pub mod order;

use serde::{Deserialize, Serialize};

use self::{
    assumptions::Assumptions,
    chance::{Chance, Evidence},
    draw::{Draw, block_weeks},
    options::{Alternative, Step},
};
use super::task::TaskKind;

/// Draws of a forecast.
pub const DRAWS: usize = 2000;
const SECONDS_PER_HOUR: f64 = 3600.0;
const HOURS_PER_WEEK: f64 = 168.0;
const WEEKS_PER_YEAR: f64 = 52.18;
const WATTS_PER_KW: f64 = 1000.0;

/// What a week of a task took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WeekUse {
    /// Requests.
    pub requests: f64,
    /// What they cost, in dollars.
    pub cost_usd: f64,
    /// Tokens of the requests.
    pub input_tokens: f64,
    /// Tokens of the answers.
    pub output_tokens: f64,
}

/// `k` of `n` rows, or what a guess is worth in rows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Count {
    /// Rows with the property.
    pub k: f64,
    /// All rows.
    pub n: f64,
}

impl Count {
    /// Jeffreys' posterior.
    fn draw(self, draw: &mut Draw) -> f64 {
        draw.beta(self.k + 0.5, self.n - self.k + 0.5)
    }

    /// Its mean.
    pub fn mean(self) -> f64 {
        (self.k + 0.5) / (self.n + 1.0)
    }
}

/// One task as it is priced.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Case {
    /// Id of the task.
    pub id: String,
    /// Kind of the specialist.
    pub kind: TaskKind,
    /// By week of the log, oldest first; all tasks end with the same week.
    pub weeks: Vec<WeekUse>,
    /// By which factors the volume may be too large or too small because rows were sampled, 95 %.
    pub volume_interval: [f64; 2],
    /// Share of the cost that the requests' tokens make up.
    pub input_cost_share: f64,
    /// Share of requests that repeat an earlier one.
    pub repeats: f64,
    /// Share of a request that all share.
    pub shared_prompt: f64,
    /// Cost of a request at a cheaper LLM, over its cost now; 1 where there is none.
    pub cheaper_ratio: f64,
    /// Probability that a specialist passes.
    pub chance: Chance,
    /// What that stands on.
    pub evidence: Evidence,
    /// Deferred requests.
    pub deferred: Count,
    /// Requests answered alone and otherwise than the LLM would, or wrong where there are gold labels.
    pub differs: Count,
    /// Share of those that are errors of the specialist: 1 against gold labels.
    pub error_share: f64,
    /// Minutes of one build, where it was measured.
    pub training_minutes: Option<f64>,
    /// Seconds of the machine for a request, where they were measured.
    pub request_seconds: Option<f64>,
    /// Tasks with one key share the rows that people label.
    pub shares_labels: Option<String>,
    /// Share of requests with personal data.
    pub personal: f64,
}

impl Case {
    fn mean_input_tokens(&self) -> f64 {
        let requests: f64 = self.weeks.iter().map(|week| week.requests).sum();
        self.weeks.iter().map(|week| week.input_tokens).sum::<f64>() / requests.max(1.0)
    }

    /// Work for it, before any overrun.
    fn days(&self, assumptions: &Assumptions) -> f64 {
        let build = match self.kind {
            TaskKind::Classify => assumptions.classify_days,
            TaskKind::Extract => assumptions.extract_days,
            TaskKind::Generate => assumptions.generate_days,
        };
        build + assumptions.operations_days + assumptions.retrainings * assumptions.retraining_days
    }

    /// Seconds of the machine for a request.
    fn seconds(&self, input_tokens: f64, output_tokens: f64, assumptions: &Assumptions) -> f64 {
        if let Some(measured) = self.request_seconds {
            return assumptions.request_overhead_seconds + measured;
        }
        // The template is not read again: a specialist reads what differs.
        let own = input_tokens * (1.0 - self.shared_prompt);
        assumptions.request_overhead_seconds
            + match self.kind {
                TaskKind::Classify | TaskKind::Extract => own / assumptions.encoder_tokens_per_second,
                TaskKind::Generate => {
                    own / assumptions.decoder_reads_per_second + output_tokens / assumptions.decoder_writes_per_second
                }
            }
    }
}

/// A number with its uncertainty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Quantiles {
    /// One draw of ten lies below.
    pub p10: f64,
    /// The median.
    pub p50: f64,
    /// One draw of ten lies above.
    pub p90: f64,
    /// The mean of all draws.
    pub mean: f64,
    /// Share of draws below zero.
    pub p_loss: f64,
}

impl Quantiles {
    /// Reads them off draws; zeros where there are none.
    pub fn of(draws: &[f64]) -> Self {
        if draws.is_empty() {
            return Self::default();
        }
        let mut sorted = draws.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| sorted[((sorted.len() - 1) as f64 * share).round() as usize];
        Self {
            p10: at(0.1),
            p50: at(0.5),
            p90: at(0.9),
            mean: draws.iter().sum::<f64>() / draws.len() as f64,
            p_loss: draws.iter().filter(|draw| **draw < 0.0).count() as f64 / draws.len() as f64,
        }
    }
}

/// The terms of the formula over the horizon in dollars, as expected; costs are positive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Terms {
    /// V·c_next: what the requests would cost under the next best option while the specialist could answer.
    pub replaced: f64,
    /// V·c_own, of the time that the machine works.
    pub own: f64,
    /// V·f·c_next.
    pub fallback: f64,
    /// V·e·L.
    pub errors: f64,
    /// Rows that people label.
    pub labels: f64,
    /// Machine time of the build.
    pub training: f64,
    /// Machine time in shadow.
    pub shadow: f64,
    /// Machine time of the builds that follow.
    pub retraining: f64,
    /// Work to keep it running.
    pub operations: f64,
    /// Work to make it, and to make it again.
    pub labour: f64,
}

impl Terms {
    /// The saving if it passes.
    pub fn saving(&self) -> f64 {
        self.replaced - self.own - self.fallback - self.errors - self.fixed()
    }

    fn fixed(&self) -> f64 {
        self.labels + self.training + self.shadow + self.retraining + self.operations + self.labour
    }

    /// What is lost if it does not pass.
    fn sunk(&self, made_labour: f64) -> f64 {
        self.labels + self.training + made_labour
    }

    fn each(&self, other: &Self, of: impl Fn(f64, f64) -> f64) -> Self {
        Self {
            replaced: of(self.replaced, other.replaced),
            own: of(self.own, other.own),
            fallback: of(self.fallback, other.fallback),
            errors: of(self.errors, other.errors),
            labels: of(self.labels, other.labels),
            training: of(self.training, other.training),
            shadow: of(self.shadow, other.shadow),
            retraining: of(self.retraining, other.retraining),
            operations: of(self.operations, other.operations),
            labour: of(self.labour, other.labour),
        }
    }
}

/// An alternative that pays, and what it saves.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Alternatively {
    /// Which.
    pub alternative: Alternative,
    /// Its saving over the horizon in dollars, over those before it.
    pub saving: Quantiles,
    /// Work, before any overrun.
    pub days: f64,
    /// Probability that it works.
    pub works: f64,
}

/// The price of a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Priced {
    /// Id of the task.
    pub id: String,
    /// Requests over the horizon.
    pub requests: Quantiles,
    /// Cost of these at the LLM, in dollars.
    pub spend: Quantiles,
    /// Cost of a request at the LLM, in dollars.
    pub llm_usd: f64,
    /// The same under the next best option.
    pub next_best_usd: f64,
    /// The same on own hardware, without idle time.
    pub own_usd: f64,
    /// What pays without training, in order.
    pub alternatives: Vec<Alternatively>,
    /// Saving of all of these together.
    pub without_training: Quantiles,
    /// Probability that the specialist passes.
    pub chance: Chance,
    /// The formula's terms if it passes.
    pub terms: Terms,
    /// Saving if it passes, over the next best option.
    pub if_passed: Quantiles,
    /// The same in running costs alone: without labels, builds and work.
    pub running: Quantiles,
    /// A cheaper LLM is tried first, and a specialist made only if it does not do: where it does, a specialist would not pay.
    pub only_if_cheaper_fails: bool,
    /// Share of draws in which it is made at all.
    pub made: f64,
    /// Saving with the chance of a failure: what counts. Nothing where it is not made; P(S < 0) is of the draws in which it is. Own costs, without those that specialists share.
    pub saving: Quantiles,
    /// Work, before any overrun.
    pub days: f64,
    /// Expected saving a day of work.
    pub value_per_day: f64,
    /// Loss per error at which the expected saving is nothing; none where it is nothing already, or there are no errors.
    pub break_even_loss: Option<f64>,
    /// Expected saving at other losses per error: `(loss, saving)`.
    pub by_loss: Vec<(f64, f64)>,
    /// Hours of the machine over the horizon.
    pub machine_hours: f64,
    /// Energy over the horizon in kWh of the machine while it works, and of the LLM for the same requests.
    pub energy_kwh: [f64; 2],
    /// Requests with personal data over the horizon that would no longer leave.
    pub private_requests: f64,
}

/// The draws of one task, joint with those of all others.
#[derive(Clone, Debug)]
pub struct Drawn {
    /// The saving, own costs alone.
    saving: Vec<f64>,
    /// Is it made?
    made: Vec<bool>,
    /// Its part V·e·L at one dollar an error.
    errors: Vec<f64>,
    /// Saving of what needs no training.
    without_training: Vec<f64>,
    /// Cost at the LLM.
    spend: Vec<f64>,
    /// Hours that the machine works, passed or not.
    hours: Vec<f64>,
    /// Cost of the rows that people label.
    labels: f64,
}

/// What all tasks have in common, draw by draw.
struct Shared {
    /// Weeks of the future, as positions in the log's weeks.
    weeks: Vec<usize>,
    /// Work takes this much longer.
    overrun: f64,
    /// Volumes are this much larger.
    growth: f64,
}

/// A forecast of some tasks.
pub struct Forecast<'a> {
    /// What it stands on.
    assumptions: &'a Assumptions,
    shared: Vec<Shared>,
    n_weeks: usize,
    seed: u64,
}

impl<'a> Forecast<'a> {
    /// Draws what tasks have in common; `n_weeks` of the longest log.
    pub fn new(n_weeks: usize, assumptions: &'a Assumptions, seed: u64) -> Self {
        let n_weeks = n_weeks.max(1);
        let mut draw = Draw::new(seed, "what all tasks have in common");
        let horizon = assumptions.horizon_weeks.round().max(1.0) as usize;
        // Volumes that walk at random: the mean over a span has a third of the variance of its end, on either side of today.
        let years = (assumptions.horizon_weeks + n_weeks as f64) / WEEKS_PER_YEAR;
        let drift = assumptions.volume_drift_sd * (years / 3.0).sqrt();
        // A log of few weeks hides how weeks differ.
        let few = assumptions.volume_week_sd / (n_weeks as f64).sqrt();
        let sd = drift.hypot(few);
        let block = block_weeks(n_weeks);
        let shared = (0..DRAWS).map(|_| {
            // A history that might have been, and a future that is made of it: so the mean of the history is uncertain too.
            let history = draw.blocks(n_weeks, block, n_weeks);
            let weeks = draw.blocks(n_weeks, block, horizon).into_iter().map(|week| history[week]).collect();
            let overrun = assumptions.overrun_median * (assumptions.overrun_sd * draw.normal()).exp();
            Shared { weeks, overrun, growth: (sd * draw.normal() - sd * sd / 2.0).exp() }
        });
        Self { assumptions, shared: shared.collect(), n_weeks, seed }
    }

    /// The mean overrun.
    fn overrun(&self) -> f64 {
        self.assumptions.overrun_median * (self.assumptions.overrun_sd.powi(2) / 2.0).exp()
    }

    /// Prices one task. A case has at least one week.
    pub fn price(&self, case: &Case) -> (Priced, Drawn) {
        let a = self.assumptions;
        let day = a.engineer_day_usd;
        let mut draw = Draw::new(self.seed, &case.id);
        let horizon = a.horizon_weeks;
        let live_share = ((horizon - a.weeks_to_live) / horizon).clamp(0.0, 1.0);
        let price_factor = 1.0 - a.llm_price_decline * (horizon / WEEKS_PER_YEAR / 2.0).min(1.0);
        let observed = total(&case.weeks);
        let per_week = observed.requests / case.weeks.len() as f64;
        let unit = price_factor * observed.cost_usd / observed.requests.max(1.0);
        let chain = options::chain(case, per_week * horizon, unit, a, day * self.overrun());
        let days = case.days(a);
        let minutes = case.training_minutes.unwrap_or(a.training_minutes);
        let training = minutes / 60.0 * a.machine_usd_per_hour;
        let labels = a.gold_rows * a.label_usd;
        let hour_usd = a.machine_usd_per_hour + a.machine_watts / WATTS_PER_KW * a.energy_usd_per_kwh;
        let sampling_sd = (case.volume_interval[1] / case.volume_interval[0].max(1e-9)).max(1.0).ln() / (2.0 * 1.96);
        // Weeks in which the task was there stand at the end of the log.
        let (n, offset) = (case.weeks.len(), self.n_weeks.saturating_sub(case.weeks.len()));

        let mut all = Columns::new(chain.len());
        for shared in &self.shared {
            let weeks =
                shared.weeks.iter().map(|&week| case.weeks[if week >= offset { week - offset } else { week % n }]);
            let mut used = total_of(weeks);
            let factor = shared.growth * (sampling_sd * draw.normal()).exp();
            used.requests *= factor;
            used.cost_usd *= factor * price_factor;
            let llm = if used.requests > 0.0 { used.cost_usd / used.requests } else { 0.0 };
            let (mut requests, mut next) = (used.requests, llm);
            let (mut alternatives, mut cheaper) = (0.0, false);
            for (step, column) in chain.iter().zip(&mut all.alternatives) {
                let before = requests * next;
                if draw.chance(step.leaves.works) {
                    cheaper |= step.alternative == Alternative::CheaperLlm;
                    requests *= step.leaves.requests;
                    next *= step.leaves.unit;
                }
                let saved = before - requests * next - step.days * shared.overrun * day;
                column.push(saved);
                alternatives += saved;
            }
            let tokens = |of: f64| of * factor / used.requests.max(1.0);
            let seconds = case.seconds(tokens(used.input_tokens), tokens(used.output_tokens), a);
            let own = seconds / SECONDS_PER_HOUR * hour_usd;
            let live = requests * live_share;
            let deferred = case.deferred.draw(&mut draw);
            // What differs was not deferred.
            let wrong = (case.differs.draw(&mut draw) * case.error_share).min(1.0 - deferred);
            let shadowed = requests * (a.shadow_weeks / horizon).min(1.0);
            let made = (days - a.operations_days - a.retrainings * a.retraining_days) * shared.overrun * day;
            let terms = Terms {
                replaced: live * next,
                own: live * own,
                fallback: live * deferred * next,
                errors: live * wrong * a.loss_per_error_usd,
                labels,
                training,
                shadow: shadowed * own,
                retraining: a.retrainings * training,
                operations: a.operations_days * shared.overrun * day,
                labour: made + a.retrainings * a.retraining_days * shared.overrun * day,
            };
            let p = draw.beta(case.chance.a, case.chance.b);
            let passes = draw.chance(p);
            all.push(&used, terms, passes, made, live * wrong, alternatives, next);
            all.cheaper.push(cheaper);
            all.if_hours.push((live + shadowed) * seconds / SECONDS_PER_HOUR);
            all.hours.push(if passes { (live + shadowed) * seconds / SECONDS_PER_HOUR } else { 0.0 });
            all.kept_inside.push(live * (1.0 - deferred));
        }
        all.decide(a.stop_loss_probability);
        let priced = self.conclude(case, &chain, days, &all, unit);
        let drawn = Drawn {
            spend: all.spend,
            made: all.made,
            saving: all.saving,
            errors: all.errors,
            without_training: all.without_training,
            hours: all.hours,
            labels,
        };
        (priced, drawn)
    }

    fn conclude(&self, case: &Case, chain: &[Step], days: f64, all: &Columns, unit: f64) -> Priced {
        let a = self.assumptions;
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
        let (without_errors, errors) = (mean(&all.without_errors), mean(&all.errors));
        let alternatives = chain.iter().zip(&all.alternatives).map(|(step, saved)| Alternatively {
            alternative: step.alternative,
            saving: Quantiles::of(saved),
            days: step.days,
            works: step.leaves.works,
        });
        let made = |values: &[f64]| -> Vec<f64> {
            values.iter().zip(&all.made).filter(|(_, made)| **made).map(|(value, _)| *value).collect()
        };
        let n_made = all.made.iter().filter(|made| **made).count().max(1) as f64;
        let saving = Quantiles { p_loss: Quantiles::of(&made(&all.saving)).p_loss, ..Quantiles::of(&all.saving) };
        let sum = all.terms.iter().zip(&all.made).filter(|(_, made)| **made);
        let sum = sum.fold(Terms::default(), |sum, (terms, _)| sum.each(terms, |sum, term| sum + term));
        let terms = sum.each(&Terms::default(), |sum, _| sum / n_made);
        let live = mean(&made(&all.live)).max(f64::MIN_POSITIVE);
        let (if_hours, kept_inside) = (mean(&made(&all.if_hours)), mean(&made(&all.kept_inside)));
        let requests = Quantiles::of(&all.requests);
        let losses = [0.0, 0.01, 0.1, 1.0, 10.0, a.loss_per_error_usd];
        let mut by_loss: Vec<(f64, f64)> = losses.iter().map(|loss| (*loss, without_errors - loss * errors)).collect();
        by_loss.sort_by(|a, b| a.0.total_cmp(&b.0));
        by_loss.dedup_by(|a, b| a.0 == b.0);
        Priced {
            id: case.id.clone(),
            requests,
            spend: Quantiles::of(&all.spend),
            llm_usd: unit,
            next_best_usd: mean(&made(&all.next)),
            own_usd: terms.own / live,
            alternatives: alternatives.collect(),
            without_training: Quantiles::of(&all.without_training),
            chance: case.chance,
            terms,
            if_passed: Quantiles::of(&made(&all.if_passed)),
            running: Quantiles::of(&made(&all.running)),
            only_if_cheaper_fails: all.only_if_cheaper_fails,
            made: n_made / DRAWS as f64,
            saving,
            days,
            value_per_day: saving.mean / days.max(f64::MIN_POSITIVE),
            break_even_loss: (without_errors > 0.0 && errors > 0.0).then(|| without_errors / errors),
            by_loss,
            machine_hours: if_hours,
            energy_kwh: [if_hours * a.machine_watts / WATTS_PER_KW, kept_inside * a.llm_wh_per_request / WATTS_PER_KW],
            private_requests: kept_inside * case.personal,
        }
    }

    /// What specialists share, in one draw: the machine's idle time over the horizon, in dollars, where they keep it busy so long.
    fn idle_usd(&self, busy_hours: f64) -> f64 {
        let a = self.assumptions;
        let hours = a.horizon_weeks * HOURS_PER_WEEK;
        let busiest = busy_hours / hours * a.peak_to_mean;
        let machines = (busiest / a.utilisation_limit).ceil().max(1.0);
        let hour_usd = a.machine_usd_per_hour + a.machine_watts / WATTS_PER_KW * a.energy_usd_per_kwh;
        (machines * hours - busy_hours).max(0.0) * hour_usd
    }
}

/// One number a draw.
struct Columns {
    requests: Vec<f64>,
    spend: Vec<f64>,
    alternatives: Vec<Vec<f64>>,
    without_training: Vec<f64>,
    if_passed: Vec<f64>,
    running: Vec<f64>,
    saving: Vec<f64>,
    without_errors: Vec<f64>,
    errors: Vec<f64>,
    next: Vec<f64>,
    hours: Vec<f64>,
    terms: Vec<Terms>,
    if_hours: Vec<f64>,
    kept_inside: Vec<f64>,
    live: Vec<f64>,
    cheaper: Vec<bool>,
    made: Vec<bool>,
    only_if_cheaper_fails: bool,
}

impl Columns {
    fn new(n_alternatives: usize) -> Self {
        let column = || Vec::with_capacity(DRAWS);
        Self {
            requests: column(),
            spend: column(),
            alternatives: (0..n_alternatives).map(|_| column()).collect(),
            without_training: column(),
            if_passed: column(),
            running: column(),
            saving: column(),
            without_errors: column(),
            errors: column(),
            next: column(),
            hours: column(),
            terms: Vec::with_capacity(DRAWS),
            if_hours: column(),
            kept_inside: column(),
            live: column(),
            cheaper: Vec::with_capacity(DRAWS),
            made: vec![true; DRAWS],
            only_if_cheaper_fails: false,
        }
    }

    #[allow(clippy::too_many_arguments, reason = "one draw, written down once")]
    fn push(
        &mut self,
        used: &WeekUse,
        terms: Terms,
        passes: bool,
        labour: f64,
        errors: f64,
        alternatives: f64,
        next: f64,
    ) {
        self.requests.push(used.requests);
        self.spend.push(used.cost_usd);
        self.without_training.push(alternatives);
        self.if_passed.push(terms.saving());
        self.running.push(terms.saving() + terms.fixed());
        self.saving.push(if passes { terms.saving() } else { -terms.sunk(labour) });
        self.without_errors.push(if passes { terms.saving() + terms.errors } else { -terms.sunk(labour) });
        self.errors.push(if passes { errors } else { 0.0 });
        self.next.push(next);
        self.live.push(if next > 0.0 { terms.replaced / next } else { 0.0 });
        self.terms.push(terms);
    }

    /// A cheaper LLM is tried before a specialist is made. Where it does, and a specialist would then lose or risk to, none is made.
    fn decide(&mut self, most_loss: f64) {
        let of = |cheaper: bool| -> Vec<f64> {
            self.saving.iter().zip(&self.cheaper).filter(|(_, is)| **is == cheaper).map(|(saved, _)| *saved).collect()
        };
        let (does, fails) = (Quantiles::of(&of(true)), Quantiles::of(&of(false)));
        let pays = |of: &Quantiles| of.mean > 0.0 && of.p_loss <= most_loss;
        self.only_if_cheaper_fails = self.cheaper.contains(&true) && !pays(&does) && pays(&fails);
        if !self.only_if_cheaper_fails {
            return;
        }
        for at in (0..self.saving.len()).filter(|&at| self.cheaper[at]) {
            self.made[at] = false;
            (self.saving[at], self.without_errors[at], self.errors[at], self.hours[at]) = (0.0, 0.0, 0.0, 0.0);
        }
    }
}

fn total(weeks: &[WeekUse]) -> WeekUse {
    total_of(weeks.iter().copied())
}

fn total_of(weeks: impl Iterator<Item = WeekUse>) -> WeekUse {
    weeks.fold(WeekUse::default(), |sum, week| WeekUse {
        requests: sum.requests + week.requests,
        cost_usd: sum.cost_usd + week.cost_usd,
        input_tokens: sum.input_tokens + week.input_tokens,
        output_tokens: sum.output_tokens + week.output_tokens,
    })
}
