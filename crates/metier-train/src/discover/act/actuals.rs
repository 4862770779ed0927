//! Did the saving come? Forecasts and the exchanges since, in; per task what was promised and what happened, out.
//!
//! An exchange belongs to a task if the log names it so, or if the specialist of that name answered. One whose `arm` is `control` is part of
//! a randomised hold-back: it was sent to the LLM although the specialist was there. Only with such an arm is the difference the
//! specialist's doing; without, what the LLM would have cost is the forecast's own figure, and that is said: "no control arm".

use std::collections::BTreeMap;

use metier_model::proof::normal_quantile;
use metier_traffic::exchange::{Exchange, Verdict};
use serde::Serialize;

use super::Forecasted;
use crate::discover::saving::Count;

const MS_PER_WEEK: f64 = 7.0 * 86_400_000.0;
const PICOUSD_PER_USD: f64 = 1e12;
/// The arm of an exchange that was held back at random.
pub const CONTROL: &str = "control";
/// Fewest exchanges of the arm from which anything is said.
const MIN_CONTROL: u64 = 30;
const CONFIDENCE: f64 = 0.95;

/// Sums over exchanges.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Arm {
    n: u64,
    priced: u64,
    cost: f64,
    cost_squared: f64,
    judged: u64,
    wrong: u64,
}

impl Arm {
    fn add(&mut self, cost_usd: Option<f64>, wrong: Option<bool>) {
        self.n += 1;
        if let Some(cost) = cost_usd {
            self.priced += 1;
            self.cost += cost;
            self.cost_squared += cost * cost;
        }
        if let Some(wrong) = wrong {
            self.judged += 1;
            self.wrong += u64::from(wrong);
        }
    }

    fn mean(&self) -> Option<f64> {
        (self.priced > 0).then(|| self.cost / self.priced as f64)
    }

    /// Variance of the mean.
    fn variance(&self) -> f64 {
        let n = self.priced as f64;
        let mean = self.cost / n.max(1.0);
        ((self.cost_squared / n.max(1.0) - mean * mean).max(0.0)) / n.max(1.0)
    }

    fn error_rate(&self) -> Option<f64> {
        (self.judged > 0).then(|| self.wrong as f64 / self.judged as f64)
    }
}

/// What became of exchanges of a task.
#[derive(Clone, Debug, Default)]
struct Seen {
    /// Everybody but the hold-back.
    treated: Arm,
    control: Arm,
    alone: u64,
    first_ms: Option<u64>,
    last_ms: Option<u64>,
}

/// Exchanges as they come: memory does not grow with their number.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    tasks: BTreeMap<String, Seen>,
    others: u64,
}

/// What was promised of a task, and what happened.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Actual {
    /// The task.
    pub task: String,
    /// Exchanges, the hold-back not counted.
    pub requests: u64,
    /// Weeks between the first and the last.
    pub weeks: f64,
    /// Requests a week: promised (P10, P50, P90) and what happened.
    pub requests_a_week: ([f64; 3], f64),
    /// Share that the specialist answered alone: promised and what happened.
    pub coverage: (f64, f64),
    /// Cost of a request in dollars: promised for the LLM or the next best, and what a request cost; none without a cost.
    pub unit_usd: (f64, Option<f64>),
    /// Exchanges of the hold-back; none without.
    pub control: Option<u64>,
    /// Cost of a request of the hold-back.
    pub control_usd: Option<f64>,
    /// Errors by right answers in the log: of the specialist's side and of the hold-back.
    pub error_rates: (Option<f64>, Option<f64>),
    /// Saving in running costs over these weeks, in dollars: promised (P10, P50, P90) for a specialist that passes.
    pub promised: [f64; 3],
    /// What happened, with its 95 % interval.
    pub realised: Option<(f64, [f64; 2])>,
    /// In one sentence.
    pub says: String,
}

impl Tally {
    /// Counts one exchange for the task that it belongs to.
    pub fn add(&mut self, exchange: &Exchange, forecasts: &[Forecasted]) {
        let named = exchange.named.as_deref().unwrap_or(&exchange.model);
        let Some(forecast) =
            forecasts.iter().find(|forecast| forecast.task == named || forecast.task == exchange.model)
        else {
            self.others += 1;
            return;
        };
        let seen = self.tasks.entry(forecast.task.clone()).or_default();
        let alone = exchange.model == forecast.task;
        // A specialist's own answer costs what the machine costs; a log seldom says it.
        let logged = exchange.logged_cost_picousd.map(|cost| cost as f64 / PICOUSD_PER_USD);
        let cost = logged.or(alone.then_some(forecast.unit_usd[2]));
        let wrong = match (&exchange.gold, &exchange.answer) {
            (Some(Verdict::Label(gold)), Some(answer)) => {
                Some(super::super::judge::rows::label(gold) != super::super::judge::rows::label(answer))
            }
            _ => None,
        };
        if exchange.arm.as_deref() == Some(CONTROL) {
            seen.control.add(cost, wrong);
        } else {
            seen.treated.add(cost, wrong);
            seen.alone += u64::from(alone);
        }
        if let Some(time) = exchange.time_ms {
            seen.first_ms = Some(seen.first_ms.map_or(time, |first| first.min(time)));
            seen.last_ms = Some(seen.last_ms.map_or(time, |last| last.max(time)));
        }
    }

    /// Exchanges that belong to no task of the forecasts.
    pub fn others(&self) -> u64 {
        self.others
    }

    /// Compares.
    pub fn compare(&self, forecasts: &[Forecasted]) -> Vec<Actual> {
        let seen = forecasts.iter().filter_map(|forecast| Some((forecast, self.tasks.get(&forecast.task)?)));
        seen.map(|(forecast, seen)| compare(forecast, seen)).collect()
    }
}

fn compare(forecast: &Forecasted, seen: &Seen) -> Actual {
    let weeks = match (seen.first_ms, seen.last_ms) {
        (Some(first), Some(last)) => ((last - first) as f64 / MS_PER_WEEK).max(1.0 / 7.0),
        _ => 1.0,
    };
    let live = forecast.live_weeks.max(f64::MIN_POSITIVE);
    let part = weeks / live;
    let promised = [forecast.running.p10, forecast.running.p50, forecast.running.p90].map(|saving| saving * part);
    let n = seen.treated.n as f64;
    let has_control = seen.control.n >= MIN_CONTROL;
    let (llm, llm_variance) = match seen.control.mean().filter(|_| has_control) {
        Some(mean) => (Some(mean), seen.control.variance()),
        None => (Some(forecast.unit_usd[1]), 0.0),
    };
    let loss = forecast.loss_per_error_usd;
    let (own_rate, control_rate) = (seen.treated.error_rate(), seen.control.error_rate());
    // Errors that the log does not show are those that were promised.
    let (extra, extra_variance) = match (own_rate, control_rate) {
        (Some(own), Some(control)) if has_control => {
            let spread = |arm: &Arm| {
                let p = Count { k: arm.wrong as f64, n: arm.judged as f64 }.mean();
                p * (1.0 - p) / arm.judged as f64
            };
            (own - control, spread(&seen.treated) + spread(&seen.control))
        }
        _ => (forecast.error_rate, 0.0),
    };
    let realised = seen.treated.mean().zip(llm).map(|(own, llm)| {
        let saving = n * (llm - own - extra * loss);
        let spread = n * (llm_variance + seen.treated.variance() + extra_variance * loss * loss).sqrt();
        let half = normal_quantile(0.5 + CONFIDENCE / 2.0) * spread;
        (saving, [saving - half, saving + half])
    });
    let arm = if has_control {
        format!("against {} requests held back at random", seen.control.n)
    } else if seen.control.n > 0 {
        format!(
            "no control arm: {} requests held back are too few to say anything (at least {MIN_CONTROL})",
            seen.control.n
        )
    } else {
        "no control arm: the LLM's cost and the extra errors are the forecast's own figures, and the difference may have other causes".to_owned()
    };
    let says = match realised {
        None => format!("its requests have no costs: nothing can be compared; {arm}"),
        Some((saving, [low, high])) => {
            let place = if low > promised[2] {
                "above what was promised"
            } else if high < promised[0] {
                "below what was promised"
            } else if promised[0] <= saving && saving <= promised[2] {
                "as promised"
            } else {
                "at the edge of what was promised"
            };
            format!("{place}; {arm}")
        }
    };
    let promised_weekly = [forecast.requests.p10, forecast.requests.p50, forecast.requests.p90];
    Actual {
        task: forecast.task.clone(),
        requests: seen.treated.n,
        weeks,
        requests_a_week: (promised_weekly.map(|n| n / forecast.horizon_weeks), (n + seen.control.n as f64) / weeks),
        coverage: (forecast.coverage, seen.alone as f64 / n.max(1.0)),
        unit_usd: (forecast.unit_usd[1], seen.treated.mean()),
        control: (seen.control.n > 0).then_some(seen.control.n),
        control_usd: seen.control.mean(),
        error_rates: (own_rate, control_rate),
        promised,
        realised,
        says,
    }
}
