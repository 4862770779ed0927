//! The roadmap as a table, a line a task, and the rows that examples and trials stand on, a line a row.

use std::collections::BTreeMap;

use csv::Writer;

use super::Roadmap;
use crate::discover::{judge::Verdict, task::Discovery, traits};

/// A line a task.
pub fn tasks(roadmap: &Roadmap) -> String {
    let mut table = Writer::from_writer(Vec::new());
    let header = [
        "rank",
        "id",
        "name",
        "kind",
        "verdict",
        "coverage",
        "above_line",
        "why_not",
        "calls_in_log",
        "calls",
        "spend_usd",
        "llm_usd_per_call",
        "next_best_usd_per_call",
        "own_usd_per_call",
        "p_pass",
        "agreement",
        "agreement_low",
        "agreement_high",
        "saving_p10_usd",
        "saving_p50_usd",
        "saving_p90_usd",
        "saving_mean_usd",
        "p_loss",
        "without_training_usd",
        "days",
        "value_per_day_usd",
        "break_even_loss_usd",
        "private_calls",
        "personal_data",
        "energy_own_kwh",
        "energy_llm_kwh",
    ];
    write(&mut table, &header.map(str::to_owned));
    for (rank, task) in roadmap.tasks.iter().enumerate() {
        let number = |value: Option<f64>| value.map(|value| value.to_string()).unwrap_or_default();
        let priced = task.priced.as_ref();
        let of = |of: &dyn Fn(&crate::discover::saving::Priced) -> f64| number(priced.map(of));
        let agreement = task.judgement.trial.as_ref().map(|trial| trial.agreement);
        let coverage = match task.verdict {
            Verdict::Proven { coverage } | Verdict::Partial { coverage } => Some(coverage),
            _ => None,
        };
        let personal: Vec<&str> = task.personal.iter().filter(|(_, n)| **n > 0).map(|(kind, _)| kind.words()).collect();
        write(
            &mut table,
            &[
                (rank + 1).to_string(),
                task.id.clone(),
                plain(&task.name),
                task.kind.name().to_owned(),
                task.verdict.name().to_owned(),
                number(coverage),
                task.place.above_line.to_string(),
                plain(task.place.why_not.as_deref().unwrap_or_default()),
                task.total.calls.to_string(),
                of(&|p| p.requests.mean),
                of(&|p| p.spend.mean),
                of(&|p| p.llm_usd),
                of(&|p| p.next_best_usd),
                of(&|p| p.own_usd),
                of(&|p| p.chance.mean()),
                number(agreement.map(|a| a.value)),
                number(agreement.map(|a| a.interval[0])),
                number(agreement.map(|a| a.interval[1])),
                of(&|p| p.saving.p10),
                of(&|p| p.saving.p50),
                of(&|p| p.saving.p90),
                of(&|p| p.saving.mean),
                of(&|p| p.saving.p_loss),
                of(&|p| p.without_training.mean),
                of(&|p| p.days),
                number(priced.map(|_| task.place.value_per_day)),
                number(priced.and_then(|p| p.break_even_loss)),
                of(&|p| p.private_requests),
                personal.join("; "),
                of(&|p| p.energy_kwh[0]),
                of(&|p| p.energy_kwh[1]),
            ],
        );
    }
    finish(table)
}

/// A line an example: which rows of the log a task's figures were taken from, and what a trial made of them. No text stands in it.
pub fn examples(discovery: &Discovery, roadmap: &Roadmap) -> String {
    let mut table = Writer::from_writer(Vec::new());
    let header = [
        "task_id",
        "task",
        "row_id",
        "place",
        "time_ms",
        "model",
        "calls_that_it_stands_for",
        "personal_data",
        "in_trial",
        "score",
        "agrees",
    ];
    write(&mut table, &header.map(str::to_owned));
    for task in &discovery.tasks {
        let mut tried = vec![None; task.examples.len()];
        let trial =
            roadmap.tasks.iter().find(|entry| entry.id == task.id).and_then(|entry| entry.judgement.trial.as_ref());
        trial.iter().flat_map(|trial| &trial.tried).for_each(|row| tried[row.example] = Some(*row));
        for (at, (example, tried)) in task.examples.iter().zip(tried).enumerate() {
            let text = |value: Option<String>| value.unwrap_or_default();
            // Of those that were searched.
            let searched = if at < traits::SEARCHED { traits::personal_in(example) } else { BTreeMap::new() };
            let personal: Vec<&str> = searched.keys().map(|kind| kind.words()).collect();
            write(
                &mut table,
                &[
                    task.id.clone(),
                    plain(&task.name),
                    plain(&example.id),
                    plain(&example.place),
                    text(example.time_ms.map(|time| time.to_string())),
                    plain(&example.model),
                    example.weight.to_string(),
                    personal.join("; "),
                    text(tried.map(|row| row.role.name().to_owned())),
                    text(tried.and_then(|row| row.score).map(|score| score.to_string())),
                    text(tried.and_then(|row| row.agrees).map(|agrees| u8::from(agrees).to_string())),
                ],
            );
        }
    }
    finish(table)
}

/// What a spreadsheet would take for a formula begins with an apostrophe.
pub(in crate::discover) fn plain(text: &str) -> String {
    if text.starts_with(['=', '+', '-', '@', '\t', '\r']) { format!("'{text}") } else { text.to_owned() }
}

fn write(table: &mut Writer<Vec<u8>>, cells: &[String]) {
    table.write_record(cells).expect("memory takes every line, and all lines are of one length");
}

fn finish(table: Writer<Vec<u8>>) -> String {
    String::from_utf8(table.into_inner().expect("memory is written at once")).expect("cells are texts")
}
