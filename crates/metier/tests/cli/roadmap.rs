//! `metier roadmap` from a log to a report, to task files, to a build, and to what came of it; without a base model.

use std::{fmt::Write as _, fs};

use super::{Desk, rows};

const MONDAY_MS: u64 = 1_788_134_400_000;
const WEEK_MS: u64 = 7 * 86_400_000;

/// Six weeks of a task whose words tell its labels apart, each call at $2.60.
fn log(n: usize) -> String {
    let mut text = String::new();
    for (at, row) in rows(n).lines().skip(1).enumerate() {
        let [_, said, label] = row.split(',').collect::<Vec<_>>()[..] else { panic!("{row}") };
        let call = serde_json::json!({
            "id": format!("call-{at}"),
            "time_ms": MONDAY_MS + at as u64 * 6 * WEEK_MS / n as u64,
            "model": "reference-llm",
            "messages": [
                { "by": "system", "text": "You sort the mail of a shop. Answer with one of refund, delivery, account." },
                { "by": "user", "text": said },
            ],
            "answer": label,
            "tokens": { "input": 800_000, "output": 60_000 },
        });
        writeln!(text, "{call}").unwrap();
    }
    text
}

#[test]
fn from_a_log_to_a_report_to_a_build_and_to_what_came() {
    let desk = Desk::new();
    desk.write("log.jsonl", log(1200));
    let line = "roadmap log.jsonl --no-encoder --loss-per-error 0.5 --write-tasks tasks --json";
    let ran = desk.run(line).check(0, &[]);
    let result = ran.result();
    for key in [
        "rows",
        "skipped",
        "tasks",
        "verdicts",
        "saving_p10",
        "saving_p50",
        "saving_p90",
        "seconds",
        "peak_rss_mb",
        "report",
    ] {
        assert!(result.get(key).is_some(), "`{key}` is promised: {result}");
    }
    assert_eq!((result["rows"].as_u64(), result["tasks"].as_u64()), (Some(1200), Some(1)));
    assert_eq!(result["verdicts"]["proven"], 1, "{result}");
    let page = fs::read_to_string(desk.path("roadmap-report/roadmap.html")).unwrap();
    assert!(page.contains("as you stated") && page.contains("proven"), "the page says whose the loss is");
    for file in ["roadmap.json", "roadmap.csv", "examples.csv"] {
        assert!(desk.path("roadmap-report").join(file).is_file(), "{file}");
    }
    // Calls and costs of the report are the sums over the file of rows.
    assert!(desk.path("roadmap-report/rows.csv.gz").is_file());
    desk.run("roadmap log.jsonl --no-encoder --trials 0 --report traced --trace rows.csv --json").check(0, &[]);
    let report: serde_json::Value =
        serde_json::from_slice(&fs::read(desk.path("traced/roadmap.json")).unwrap()).unwrap();
    assert_eq!(report["rows_file"], "rows.csv");
    let mut rows = csv::Reader::from_path(desk.path("rows.csv")).unwrap();
    let sum: u64 = rows
        .deserialize()
        .map(|row| row.unwrap())
        .map(|row: std::collections::BTreeMap<String, String>| row["cost_picousd"].parse::<u64>().unwrap())
        .sum();
    assert_eq!(report["tasks"][0]["total"]["cost_picousd"].as_u64(), Some(sum));
    // A log that is one of two calls speaks of twice as many.
    let half = "roadmap log.jsonl --no-encoder --log-share 0.5 --report half --json";
    let half = desk.run(half).check(0, &[]).result();
    let times = half["spend"].as_f64().unwrap() / result["spend"].as_f64().unwrap();
    assert!((1.9..2.1).contains(&times), "{times}");
    desk.run("roadmap log.jsonl --log-share 2 --report none").check(2, &["log_share"]);
    // Nothing of the user's is overwritten.
    desk.run(line).check(2, &["roadmap-report", "exists"]);
    let task = desk.files("tasks").into_iter().find(|path| path.ends_with("task.toml")).unwrap();
    let name = task.parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
    let built = desk.run(&format!("build tasks/{name}/task.toml --no-encoder --json")).check(0, &[]).result();
    assert!(built["value"].as_f64().unwrap() > 0.9, "{built}");
    // What became of the forecast is known from now on.
    desk.run("roadmap log.jsonl --no-encoder --report second --attempts tasks").check(0, &["report", "proven"]);
    let again = fs::read_to_string(desk.path("second/roadmap.html")).unwrap();
    assert!(again.contains("1 forecasts were put to the test"), "the build is found");
    let mut since = String::new();
    for at in 0..400u64 {
        let call = serde_json::json!({
            "time_ms": MONDAY_MS + 8 * WEEK_MS + at * WEEK_MS / 100,
            "model": if at % 4 == 0 { "reference-llm" } else { name.as_str() },
            "named": name,
            "answer": "refund",
            "tokens": { "input": 10, "output": 1 },
            "logged_cost_picousd": if at % 4 == 0 { 2_600_000_000_000u64 } else { 1_000_000 },
        });
        writeln!(since, "{call}").unwrap();
    }
    desk.write("since.jsonl", since);
    desk.run("roadmap since.jsonl --actuals tasks").check(0, &["400 requests", "came 75.0 %", "no control arm"]);
}

#[test]
fn one_command_leads_from_a_log_as_a_gateway_writes_it_to_the_report() {
    let desk = Desk::new();
    for format in ["openai", "litellm", "langfuse"] {
        let log = format!("{format}.jsonl");
        desk.run(&format!("demo traffic {log} --format {format} --calls 1500 --weeks 8")).check(0, &[]);
        let line = format!("roadmap {log} --no-encoder --report {format} --json");
        let result = desk.run(&line).check(0, &[]).result();
        let calls = result["calls"].as_u64().unwrap();
        assert!((1400..1600).contains(&calls) && result["skipped"] == 0, "{format}: {result}");
        assert!(result["tasks"].as_u64().unwrap() >= 8, "{format}: {result}");
        let report = fs::read(desk.path(format).join("roadmap.json")).unwrap();
        let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
        let ids: Vec<&str> =
            report["tasks"].as_array().unwrap().iter().map(|task| task["id"].as_str().unwrap()).collect();
        let different: std::collections::BTreeSet<&str> = ids.iter().copied().collect();
        assert_eq!(ids.len(), different.len(), "{format}: two tasks share an id");
        let page = fs::read_to_string(desk.path(format).join("roadmap.html")).unwrap();
        assert!(page.contains("This traffic is synthetic") && page.contains("rows.csv.gz"), "{format}");
    }
}

#[test]
fn what_is_assumed_is_printed_and_mistakes_are_told() {
    let desk = Desk::new();
    let printed = desk.run("roadmap --print-assumptions").check(0, &["engineer_day_usd = 800.0", "# source:"]);
    desk.write("all.toml", &printed.out);
    desk.write("log.jsonl", log(60));
    desk.run("roadmap log.jsonl --no-encoder --assumptions all.toml").check(0, &["not yet", "No specialist pays"]);
    desk.write("wrong.toml", "engineer_day = 5");
    desk.run("roadmap log.jsonl --assumptions wrong.toml --report r").check(2, &["wrong.toml", "did you mean"]);
    desk.run("roadmap log.jsonl --loss-per-error -1 --report r").check(2, &[]);
    desk.run("roadmap log.jsonl --actuals nowhere --report r").check(2, &["nowhere", "--write-tasks"]);
    assert!(!desk.path("r").exists());
}
