//! Task files that build as they are, and what is said of the saving afterwards.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use metier_kernels::{Pool, Tier};
use metier_model::SpecialistStore;
use metier_traffic::exchange::{Exchange, Verdict};
use metier_train::{
    TaskFile, Workbench, build,
    craft::encoder::Recipe,
    discover::{
        act::{self, FORECASTS, actuals::Tally},
        saving::assumptions::Assumptions,
    },
};

use crate::{
    report::drawn,
    traffic::{self, BEGIN_MS, WEEK_MS},
};

#[test]
fn what_it_writes_builds_as_it_is_and_what_is_measured_came_later() {
    let dir = tempfile::tempdir().unwrap();
    let (discovery, roadmap) = drawn(
        vec![traffic::task("clean", 900, 0, 500_000, false), traffic::task("few", 30, 0, 10, false)],
        &Assumptions::default(),
    );
    let out = dir.path().join("tasks");
    let written = act::write_tasks(&discovery, &roadmap, &out).unwrap();
    assert_eq!(written[0].rows, [720, 180]);
    assert!(written[1].why_not.as_deref().unwrap().contains("30 different rows"), "{:?}", written[1]);
    let path = written[0].file.clone().unwrap();
    assert_eq!(path, out.join("clean/task.toml"));
    // A forecast rehearses the build of these rows and groups, counted and not estimated.
    let planned = act::planned(&discovery.tasks[0]);
    let read = |name: &str| std::fs::read_to_string(out.join("clean").join(name)).unwrap();
    let lines = ["train.jsonl", "calibration.jsonl", "test.jsonl"].map(|name| read(name).lines().count() as u64);
    assert_eq!(planned.rows, lines);
    let group = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["group"].to_string();
    let groups: std::collections::BTreeSet<String> = read("calibration.jsonl").lines().map(group).collect();
    assert_eq!(planned.groups, Some(groups.len() as u64));
    let task = TaskFile::read(&path, &|_| None).unwrap();
    assert_eq!((task.name.as_str(), task.may_leave, task.data.group.as_deref()), ("clean", false, Some("group")));
    let store = SpecialistStore::open(&dir.path().join("store")).unwrap();
    let pool = Pool::new(2, Tier::detect());
    let bench = Workbench {
        teacher: None,
        encoder: None,
        decoders: Vec::new(),
        pool: &pool,
        store: &store,
        seed: 0,
        tuning: Recipe::default(),
    };
    let outcome = build(&task, &bench, &mut |_| (), &|| Duration::ZERO).unwrap();
    assert!(outcome.value > 0.95 && outcome.n > 150, "{} on {}", outcome.value, outcome.n);
    assert!(act::write_tasks(&discovery, &roadmap, &out).unwrap_err().to_string().contains("is there already"));
    let forecasts = act::read_forecasts(&out.join(FORECASTS)).unwrap();
    assert_eq!(forecasts.len(), 2);
    assert!(act::read_forecasts(&path).unwrap_err().to_string().contains("--write-tasks"));
}

/// Half a year in which a specialist answers `coverage` of a thousand requests a week; every tenth is held back where there is an arm.
fn since(task: &str, coverage_percent: u64, with_control: bool) -> Vec<Exchange> {
    (0..26_000u64)
        .map(|at| {
            let control = with_control && at % 10 == 3;
            let alone = !control && at * 37 % 100 < coverage_percent;
            Exchange {
                time_ms: Some(BEGIN_MS + 10 * WEEK_MS + at * WEEK_MS / 1000),
                model: if alone { task } else { "reference-llm" }.to_owned(),
                named: Some(task.to_owned()),
                answer: Some("a".to_owned()),
                gold: (at % 5 == 0).then(|| Verdict::Label(if at % 500 == 0 { "b" } else { "a" }.to_owned())),
                logged_cost_picousd: (!alone).then_some(2_300_000_000 + at % 7 * 100_000_000),
                arm: with_control.then(|| if control { "control" } else { "specialist" }.to_owned()),
                ..Exchange::default()
            }
        })
        .collect()
}

#[test]
fn what_came_is_compared_with_what_was_promised() {
    let assumptions = Assumptions { cheaper_llm_chance: 0.0, batch_share: 0.0, ..Assumptions::default() };
    let (_, roadmap) = drawn(vec![traffic::task("clean", 1500, 0, 1000, false)], &assumptions);
    let forecasts = act::forecasts(&roadmap);
    let compared = |coverage: u64, with_control: bool| {
        let mut tally = Tally::default();
        since("clean", coverage, with_control).iter().for_each(|exchange| tally.add(exchange, &forecasts));
        tally.add(&Exchange { model: "other".to_owned(), ..Exchange::default() }, &forecasts);
        assert_eq!(tally.others(), 1);
        tally.compare(&forecasts).remove(0)
    };
    let with = compared(100, true);
    assert_eq!(with.control, Some(2600));
    assert!((with.requests_a_week.1 - 1000.0).abs() < 5.0, "{:?}", with.requests_a_week);
    let (realised, [low, high]) = with.realised.unwrap();
    // 23,400 requests at $0.0026 each, less next to nothing for the machine; the hold-back has no right answers, so errors are as promised.
    let expected = 23_400.0 * (0.0026 - forecasts[0].error_rate * forecasts[0].loss_per_error_usd);
    assert!((realised / expected - 1.0).abs() < 0.02 && low < realised && realised < high, "{realised} {low} {high}");
    assert!(with.says.contains("against 2600 requests held back at random"), "{}", with.says);
    let poor = compared(20, true);
    assert!(poor.says.starts_with("below what was promised"), "{poor:?}");
    assert!((poor.coverage.1 - 0.2).abs() < 0.02);
    let without = compared(100, false);
    assert_eq!((without.control, without.control_usd), (None, None));
    assert!(without.says.contains("no control arm"), "{}", without.says);
}
