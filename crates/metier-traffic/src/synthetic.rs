//! Traffic of an invented company, for demonstrations and load: what its applications ask of LLMs in a year, with the truth beside it.
//!
//! Nothing here is real and every record says so (`synthetic/` begins each id). Texts come from small grammars of our own; people, addresses and account
//! numbers are invented or reserved for examples. What is imitated: tasks of every kind under templates of their own, some with a preamble in common; volumes that
//! grow, shrink, follow the working week and the end of the month; repeats that a cache would answer; a teacher that errs at a known rate; free questions that belong to
//! no task; personal data. The same seed gives the same traffic.

mod dice;
mod texts;

use std::collections::BTreeMap;

use metier_model::specialist::mix;
use serde::Serialize;
use serde_json::json;

use self::dice::Dice;
use crate::exchange::{Exchange, Said, Speaker, Tokens};

const MS_PER_HOUR: u64 = 3_600_000;
const MS_PER_WEEK: u64 = 168 * MS_PER_HOUR;
/// Bytes of text that are counted as one token.
const BYTES_A_TOKEN: usize = 4;

/// What is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// Calls, about: volumes of weeks are rounded.
    pub calls: u64,
    /// Weeks.
    pub weeks: u64,
    /// When the first week begins, in milliseconds since 1970.
    pub start_ms: u64,
    /// Seed of everything.
    pub seed: u64,
}

/// What is true of one task of the traffic.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Truth {
    /// Its name, as it stands in the ids.
    pub task: &'static str,
    /// `classify`, `extract`, `generate`, or `none` for what is no task.
    pub kind: &'static str,
    /// The model that it is sent to.
    pub model: &'static str,
    /// Share of all calls over the whole time.
    pub share: f64,
    /// Probability that the teacher's answer is another label than the right one.
    pub teacher_error: f64,
    /// Share of calls whose prompt is one of a few that come again and again.
    pub repeats: f64,
    /// Whether its texts hold personal data.
    pub personal: bool,
    /// Calls by week, from 0.
    pub calls: Vec<u64>,
}

struct Kind {
    truth: (&'static str, &'static str, &'static str, f64, f64, f64, bool),
    /// Growth over the whole time, as a factor.
    growth: f64,
    /// Weight of weekends against working days.
    weekend: f64,
    /// How much more comes in the last week of a month.
    month_end: f64,
    make: fn(&mut Dice) -> Text,
}

/// A request and its right answer.
struct Text {
    system: String,
    user: String,
    answer: String,
    /// Labels that a teacher who errs would give instead.
    others: &'static [&'static str],
    tools: &'static [&'static str],
    schema: Option<String>,
    /// Earlier turns: a call of a tool and its result.
    loops: usize,
}

impl Text {
    fn new(system: &str, user: String, answer: String) -> Self {
        Self { system: system.to_owned(), user, answer, others: &[], tools: &[], schema: None, loops: 0 }
    }
}

/// Truth of the traffic: tasks in the order in which they are numbered.
pub fn truth(plan: &Plan) -> Vec<Truth> {
    let volumes = volumes(plan);
    kinds()
        .into_iter()
        .zip(volumes)
        .map(|(kind, calls)| {
            let (task, kind, model, share, teacher_error, repeats, personal) = kind.truth;
            Truth { task, kind, model, share, teacher_error, repeats, personal, calls }
        })
        .collect()
}

/// Calls by task and week.
fn volumes(plan: &Plan) -> Vec<Vec<u64>> {
    let kinds = kinds();
    let weight = |kind: &Kind, week: u64| {
        let at = if plan.weeks > 1 { week as f64 / (plan.weeks - 1) as f64 } else { 0.5 };
        let last_of_month = week % 4 == 3;
        let noise = 0.9 + 0.2 * Dice::new(plan.seed ^ mix(week ^ kind.truth.0.len() as u64), week).share();
        // The year's season: quiet around the turn of the year.
        let season = 1.0 - 0.25 * f64::from(u8::from(week % 52 >= 51 || week.is_multiple_of(52)));
        kind.growth.powf(at - 0.5) * if last_of_month { kind.month_end } else { 1.0 } * noise * season
    };
    kinds
        .iter()
        .map(|kind| {
            let weights: Vec<f64> = (0..plan.weeks).map(|week| weight(kind, week)).collect();
            let sum: f64 = weights.iter().sum();
            let calls = kind.truth.3 * plan.calls as f64;
            weights.iter().map(|weight| (calls * weight / sum).round() as u64).collect()
        })
        .collect()
}

/// The calls, week after week; within a week the tasks are mixed by time. Each with the number of its task.
pub fn traffic(plan: Plan) -> impl Iterator<Item = (usize, Exchange)> {
    let volumes = volumes(&plan);
    let kinds = kinds();
    (0..plan.weeks).flat_map(move |week| {
        let mut calls: Vec<(u64, usize, u64)> = Vec::new();
        for (task, kind) in kinds.iter().enumerate() {
            for n in 0..volumes[task][week as usize] {
                let mut dice = Dice::new(plan.seed ^ mix(task as u64 + 1), week << 32 | n);
                calls.push((plan.start_ms + week * MS_PER_WEEK + time_in_week(&mut dice, kind.weekend), task, n));
            }
        }
        calls.sort_unstable();
        let made: Vec<(usize, Exchange)> = calls
            .into_iter()
            .map(|(time_ms, task, n)| {
                (
                    task,
                    call(&kinds[task], Dice::new(plan.seed ^ mix(100 + task as u64), week << 32 | n), time_ms, week, n),
                )
            })
            .collect();
        made
    })
}

/// Working hours on working days; fewer at night and on weekends.
fn time_in_week(dice: &mut Dice, weekend: f64) -> u64 {
    loop {
        let hour = dice.below(168);
        let (day, of_day) = (hour / 24, hour % 24);
        let weight = if day >= 5 { weekend } else { 1.0 } * if (7..19).contains(&of_day) { 1.0 } else { 0.15 };
        if dice.share() < weight {
            return hour * MS_PER_HOUR + dice.below(MS_PER_HOUR);
        }
    }
}

fn call(kind: &Kind, mut dice: Dice, time_ms: u64, week: u64, n: u64) -> Exchange {
    let (task, _, model, _, teacher_error, repeats, _) = kind.truth;
    // A repeat is one of forty prompts, with the dice that made it.
    let mut text = if dice.share() < repeats {
        let one = dice.below(40);
        (kind.make)(&mut Dice::new(mix(task.len() as u64), one))
    } else {
        (kind.make)(&mut dice)
    };
    if !text.others.is_empty() && dice.share() < teacher_error {
        let other = text.others[dice.below(text.others.len() as u64) as usize];
        text.answer = other.to_owned();
    }
    let mut messages = Vec::new();
    if !text.system.is_empty() {
        messages.push(Said { by: Speaker::System, text: text.system });
    }
    messages.push(Said { by: Speaker::User, text: text.user });
    for turn in 0..text.loops {
        let tool = text.tools[dice.below(text.tools.len() as u64) as usize];
        messages.push(Said {
            by: Speaker::Assistant,
            text: json!({"tool": tool, "arguments": {"step": turn}}).to_string(),
        });
        messages.push(Said { by: Speaker::Tool, text: json!({"status": "ok", "rows": dice.below(9)}).to_string() });
    }
    let failed = dice.share() < 0.004;
    let input: usize = messages.iter().map(|said| said.text.len()).sum();
    let tokens = |bytes: usize| bytes.div_ceil(BYTES_A_TOKEN) as u64;
    let output = if failed { 0 } else { tokens(text.answer.len()) };
    Exchange {
        id: Some(format!("synthetic/{task}/w{week:03}-n{n:07}")),
        time_ms: Some(time_ms),
        elapsed_ms: Some(250 + 20 * output + dice.below(300)),
        model: model.to_owned(),
        named: None,
        group: Some(format!("user-{}", dice.below(400))),
        messages,
        tools: text.tools.iter().map(|tool| (*tool).to_owned()).collect(),
        schema: text.schema,
        answer: (!failed).then_some(text.answer),
        tokens: Some(Tokens { input: tokens(input), output, cached: 0 }),
        failed,
        ..Exchange::default()
    }
}

fn kinds() -> Vec<Kind> {
    let kind = |truth, growth, weekend, month_end, make| Kind { truth, growth, weekend, month_end, make };
    vec![
        kind(("ticket-routing", "classify", "gpt-4o", 0.24, 0.04, 0.05, false), 1.6, 0.3, 1.0, texts::tickets),
        kind(("review-mood", "classify", "gpt-4o-mini", 0.14, 0.06, 0.02, false), 1.0, 0.9, 1.0, texts::reviews),
        kind(("invoice-fields", "extract", "gpt-4o", 0.09, 0.0, 0.0, true), 1.2, 0.1, 2.5, texts::invoices),
        kind(("clause-type", "classify", "gpt-4.1", 0.05, 0.05, 0.0, false), 0.8, 0.05, 1.2, texts::clauses),
        kind(("expense-check", "classify", "gpt-4.1-mini", 0.08, 0.03, 0.0, false), 1.1, 0.1, 2.2, texts::expenses),
        kind(("part-names", "extract", "gpt-4o-mini", 0.09, 0.0, 0.03, false), 1.0, 0.2, 1.0, texts::parts),
        kind(
            ("meeting-summary", "generate", "claude-sonnet-4-5", 0.05, 0.0, 0.0, false),
            1.8,
            0.05,
            1.0,
            texts::meetings,
        ),
        kind(("reply-draft", "generate", "gpt-4.1", 0.07, 0.0, 0.0, true), 1.3, 0.3, 1.0, texts::replies),
        kind(("order-agent", "generate", "claude-sonnet-4-5", 0.06, 0.0, 0.0, false), 2.5, 0.3, 1.0, texts::agent),
        kind(("handbook-questions", "generate", "gpt-4o-mini", 0.08, 0.0, 0.6, false), 1.0, 0.2, 1.0, texts::handbook),
        kind(("no-task", "none", "gpt-4o", 0.05, 0.0, 0.0, true), 1.0, 0.6, 1.0, texts::free),
    ]
}

/// Counts of a traffic by task: what a reader can hold a discovery against.
pub fn totals(truth: &[Truth]) -> BTreeMap<&'static str, u64> {
    truth.iter().map(|task| (task.task, task.calls.iter().sum())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::privacy;

    fn plan(calls: u64) -> Plan {
        Plan { calls, weeks: 12, start_ms: 1_780_272_000_000, seed: 7 }
    }

    #[test]
    fn the_traffic_is_what_its_truth_says() {
        let plan = plan(4000);
        let truth = truth(&plan);
        let mut counts: BTreeMap<(usize, u64), u64> = BTreeMap::new();
        for (task, call) in traffic(plan) {
            let time = call.time_ms.unwrap_or(0);
            let id = call.id.as_deref().unwrap_or_default();
            assert!(id.starts_with(&format!("synthetic/{}/", truth[task].task)), "{id}");
            assert!(crate::privacy::detect(id).is_empty(), "{id} would be masked where reports name it");
            assert_eq!(call.model, truth[task].model);
            assert_eq!(call.failed, call.answer.is_none());
            *counts.entry((task, (time - plan.start_ms) / MS_PER_WEEK)).or_default() += 1;
        }
        for (at, task) in truth.iter().enumerate() {
            for (week, calls) in task.calls.iter().enumerate() {
                assert_eq!(
                    counts.get(&(at, week as u64)).copied().unwrap_or(0),
                    *calls,
                    "{} in week {week}",
                    task.task
                );
            }
        }
        let all: u64 = totals(&truth).values().sum();
        assert!(all.abs_diff(4000) < 80, "{all}");
        assert!((truth.iter().map(|task| task.share).sum::<f64>() - 1.0).abs() < 1e-9);
        // The agent grows, and month ends are busy where that is so.
        let agent = &truth[8].calls;
        assert!(agent[9..].iter().sum::<u64>() > agent[..3].iter().sum::<u64>());
        let invoices = &truth[2].calls;
        assert!(invoices[7] > invoices[6] && invoices[7] > invoices[8]);
    }

    #[test]
    fn the_same_seed_is_the_same_traffic_and_another_is_not() {
        let texts = |seed| traffic(Plan { seed, ..plan(300) }).map(|(_, call)| call).collect::<Vec<_>>();
        assert_eq!(texts(1), texts(1));
        assert_ne!(texts(1), texts(2));
    }

    #[test]
    fn personal_data_is_where_the_truth_says() {
        let truth = truth(&plan(3000));
        let mut found = vec![false; truth.len()];
        for (task, call) in traffic(plan(3000)) {
            for said in &call.messages {
                assert!(!said.text.contains(['[', '<']), "a slot was left open: {}", said.text);
                found[task] |= !privacy::detect(&said.text).is_empty();
            }
        }
        for (task, found) in truth.iter().zip(found) {
            assert_eq!(task.personal, found, "{}", task.task);
        }
    }

    #[test]
    fn the_teacher_errs_as_often_as_the_truth_says() {
        // Of the task with the clearest grammar: a right answer is told by its words.
        let (mut wrong, mut all) = (0u64, 0u64);
        for (task, call) in traffic(plan(20_000)) {
            let Some(answer) = call.answer.filter(|_| task == 3) else { continue };
            let said = &call.messages[1].text;
            if said.contains("governed by") || said.contains("construed under") {
                all += 1;
                wrong += u64::from(answer != "governing_law");
            }
        }
        // One label of nine, 5 % of errors of which one in nine names the right label again.
        let expected = 0.05 * 8.0 / 9.0;
        let share = wrong as f64 / all as f64;
        assert!(all > 80 && (share - expected).abs() < 4.0 * (expected / all as f64).sqrt(), "{wrong} of {all}");
    }
}
