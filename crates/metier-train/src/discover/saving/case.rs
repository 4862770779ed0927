//! From a task and what was judged of it to what is priced.

use metier_model::Digest;

use super::{
    Case, WeekUse,
    assumptions::Assumptions,
    chance::{Attempt, calibrated},
};
use crate::discover::{
    judge::Judgement,
    task::{Reading, Task, TaskKind, Volume, Week},
};

const MS_PER_WEEK: f64 = 7.0 * 86_400_000.0;
const PICOUSD_PER_USD: f64 = 1e12;
/// A week that the log covers less of is left out, where others are there; else it is scaled up.
const WHOLE: f64 = 0.999;
/// Fewest whole weeks at which the others are left out.
const MIN_WHOLE_WEEKS: usize = 3;
/// Less of a week is not scaled up any further.
const LEAST: f64 = 1.0 / 14.0;
/// Largest share of calls without a price at which those that have one speak for all.
const MAX_UNPRICED: f64 = 0.5;

/// What is priced of a task, and what to know about it; or why it has no price.
pub fn case(
    task: &Task,
    reading: &Reading,
    judgement: &Judgement,
    attempts: &[Attempt],
    assumptions: &Assumptions,
) -> Result<(Case, Vec<String>), String> {
    let total = task.total();
    let mut notes = Vec::new();
    if total.calls == 0 {
        return Err("no calls".to_owned());
    }
    let priced = total.calls.saturating_sub(total.unpriced);
    let unpriced = total.unpriced as f64 / total.calls as f64;
    if unpriced > MAX_UNPRICED {
        let models: Vec<&str> =
            task.by_model().into_iter().filter(|(_, volume)| volume.unpriced > 0).map(|(model, _)| model).collect();
        return Err(format!(
            "unpriced: the price book has no price for {:.0} % of its calls (`{}`)",
            100.0 * unpriced,
            models.join("`, `")
        ));
    }
    if total.unpriced > 0 {
        notes.push(format!(
            "{} of {} calls are unpriced: they are taken to cost what the others do",
            total.unpriced, total.calls
        ));
    }
    let all_over_priced = total.calls as f64 / priced.max(1) as f64;
    let weeks = weeks(task, reading, all_over_priced, assumptions, &mut notes);
    let (input, output) = (total.input_tokens as f64, total.output_tokens as f64);
    let cost = total.cost_picousd as f64 / PICOUSD_PER_USD * all_over_priced;
    let cheaper = (input * assumptions.cheaper_llm_input_usd + output * assumptions.cheaper_llm_output_usd) / 1e6;
    let trial = judgement.trial.as_ref();
    let [low, high] = volume_interval(task, total.calls, assumptions.log_share);
    if assumptions.log_share < 1.0 {
        notes.push(format!(
            "the log holds a share of {} of the traffic, as stated: volumes are that much larger; repeats are those within the log, so a cache may save more",
            assumptions.log_share
        ));
    }
    let personal = task.personal.values().map(|count| count.examples).max().unwrap_or(0) as f64;
    let case = Case {
        id: task.id.clone(),
        kind: task.kind.kind,
        weeks,
        volume_interval: [low, high],
        input_cost_share: if input + output > 0.0 {
            input / (input + assumptions.output_price_ratio * output)
        } else {
            0.0
        },
        repeats: task.traits.repeats.clamp(0.0, 1.0),
        shared_prompt: task.traits.shared_prompt.clamp(0.0, 1.0),
        cheaper_ratio: if cost > 0.0 { (cheaper / cost).min(1.0) } else { 1.0 },
        chance: calibrated(judgement.chance, task.kind.kind, judgement.evidence, attempts, assumptions.chance_strength),
        evidence: judgement.evidence,
        deferred: judgement.deferred,
        differs: judgement.differs,
        error_share: trial
            .and_then(|trial| trial.error_share.as_ref())
            .map_or(assumptions.error_share, |measured| measured.value),
        training_minutes: trial.filter(|trial| trial.rung.rule().is_none()).map(|trial| trial.seconds / 60.0),
        request_seconds: trial
            .filter(|trial| trial.rung.rule().is_none() && trial.request_seconds > 0.0)
            .map(|trial| trial.request_seconds),
        shares_labels: shares_labels(task),
        personal: (personal / task.sampling.examples.max(1) as f64).min(1.0),
    };
    Ok((case, notes))
}

/// By which factors the volume may be off: what was grouped wrongly, and what an even sample of the traffic happens to hold.
fn volume_interval(task: &Task, calls: u64, log_share: f64) -> [f64; 2] {
    const NORMAL_95: f64 = 1.96;
    let [low, high] = task.sampling.volume_interval;
    let [low, high] = if low > 0.0 && high >= low { [low, high] } else { [1.0, 1.0] };
    // Calls of a sample are binomial.
    let spread = (NORMAL_95 * ((1.0 - log_share) / calls.max(1) as f64).sqrt()).exp();
    [low / spread, high * spread]
}

/// Tasks with the same labels may be checked with the same people's labels.
fn shares_labels(task: &Task) -> Option<String> {
    let labels: Vec<&str> = task.traits.labels.keys().map(String::as_str).collect();
    let is_list = task.kind.kind == TaskKind::Classify && labels.len() > 1;
    is_list.then(|| Digest::of(labels.join("\n").as_bytes()).short())
}

fn weeks(
    task: &Task,
    reading: &Reading,
    all_over_priced: f64,
    assumptions: &Assumptions,
    notes: &mut Vec<String>,
) -> Vec<WeekUse> {
    let total = task.total();
    let by_week = task.by_week();
    let dated: u64 = by_week.values().map(|volume| volume.calls).sum();
    let used = |volume: &Volume, factor: f64| {
        let factor = factor / assumptions.log_share;
        WeekUse {
            requests: volume.calls as f64 * factor,
            cost_usd: volume.cost_picousd as f64 / PICOUSD_PER_USD * all_over_priced * factor,
            input_tokens: volume.input_tokens as f64 * factor,
            output_tokens: volume.output_tokens as f64 * factor,
        }
    };
    let span = reading.first_ms.zip(reading.last_ms).filter(|(first, last)| first < last);
    let (Some((&first, _)), Some((begin, end)), true) = (by_week.first_key_value(), span, dated > 0) else {
        notes.push(format!("its calls have no time: they are taken for {:.1} weeks' worth", assumptions.undated_weeks));
        return vec![used(&total, 1.0 / assumptions.undated_weeks)];
    };
    if dated < total.calls {
        notes.push(format!(
            "{} of {} calls have no time: spread over the weeks as the others",
            total.calls - dated,
            total.calls
        ));
    }
    let undated = total.calls as f64 / dated as f64;
    // To the last week of the log: a task that ended is worth less.
    let mut all: Vec<(f64, Volume)> = Vec::new();
    let mut week = first;
    let last = Week::of(end).max(*by_week.last_key_value().expect("there is a first").0);
    while week <= last && all.len() < crate::discover::task::MAX_WEEKS {
        let (from, to) = (week.start_ms() as f64, week.next().start_ms() as f64);
        let covered = (to.min(end as f64) - from.max(begin as f64)).max(0.0) / MS_PER_WEEK;
        all.push((covered, by_week.get(&week).copied().unwrap_or_default()));
        week = week.next();
    }
    let whole = all.iter().filter(|(covered, _)| *covered >= WHOLE).count();
    if whole >= MIN_WHOLE_WEEKS {
        let left: u64 = all.iter().filter(|(covered, _)| *covered < WHOLE).map(|(_, volume)| volume.calls).sum();
        if left > 0 {
            notes.push(format!("{left} calls of weeks that the log does not cover whole say nothing of a week's volume, and were left out of it"));
        }
        return all.iter().filter(|(covered, _)| *covered >= WHOLE).map(|(_, volume)| used(volume, undated)).collect();
    }
    notes.push(format!(
        "the log covers {:.1} weeks: what a year brings is little more than a guess",
        (end - begin) as f64 / MS_PER_WEEK
    ));
    all.iter().map(|(covered, volume)| used(volume, undated / covered.max(LEAST))).collect()
}
