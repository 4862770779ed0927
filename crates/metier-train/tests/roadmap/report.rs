//! What is said of judged and priced tasks: nothing personal, nothing fetched, everything escaped, the same three times.
#![allow(clippy::unwrap_used, reason = "tests")]

use metier_traffic::privacy::PersonalKind;
use metier_train::discover::{
    Discovery, Task,
    judge::Verdict,
    report::{Roadmap, csv, draw_up, html},
    saving::{assumptions::Assumptions, options::Alternative},
    task::PersonalCount,
};

use crate::{judge::judged, traffic};

pub(crate) fn drawn(tasks: Vec<Task>, assumptions: &Assumptions) -> (Discovery, Roadmap) {
    let judgements = judged(&tasks, assumptions);
    let discovery = traffic::discovery(tasks);
    let roadmap = draw_up(&discovery, judgements, assumptions, &[], 7);
    (discovery, roadmap)
}

fn personal() -> Task {
    let mut task = traffic::task("payments", 600, 0, 40_000, false);
    for example in &mut task.examples {
        example.input += " <script>alert(1)</script> ada@example.org GB82 WEST 1234 5698 7654 32";
        example.output = example.output.take().map(|output| format!("{output}<b>"));
    }
    task.name = "payments".to_owned();
    task.identity.template = Some("Write to <ada@example.org>: {} & \"so on\"".to_owned());
    task.traits.labels = [("x <i> bob@example.org".to_owned(), 300), ("y".to_owned(), 300)].into();
    task.personal.insert(PersonalKind::Email, PersonalCount { examples: 600, found: 600 });
    task
}

#[test]
fn the_page_shows_nothing_personal_fetches_nothing_and_runs_nothing() {
    let (discovery, roadmap) =
        drawn(vec![personal(), traffic::task("noisy", 400, 60, 1000, false)], &Assumptions::default());
    let page = html::render(&roadmap);
    for absent in
        ["<script", "ada@", "bob@", "7654 32", "http://", "https://", "src=", "@import", "url(", "<link", "<img"]
    {
        assert!(!page.contains(absent), "{absent}");
    }
    assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt; [e-mail] [iban]"), "masked and escaped");
    assert!(page.contains("e-mail addresses") && page.contains("metier build tasks/payments/task.toml"));
    for (open, close) in [
        ("<table", "</table>"),
        ("<svg", "</svg>"),
        ("<section", "</section>"),
        ("<figure", "</figure>"),
        ("<div", "</div>"),
    ] {
        assert_eq!(page.matches(open).count(), page.matches(close).count(), "{open}");
    }
    let json = serde_json::to_string(&roadmap).unwrap();
    for absent in ["ada@", "bob@", "7654 32"] {
        assert!(!json.contains(absent), "{absent}");
    }
    assert!(!page.contains("NaN") && !json.contains("null,null"), "numbers are numbers");
    let rows = csv::examples(&discovery, &roadmap);
    assert!(!rows.contains("ada@") && rows.lines().count() == 1001);
    assert!(rows.contains("req-payments-17,log.jsonl:18"), "every example is found again in the log");
}

#[test]
fn json_and_csv_say_the_same_as_the_page() {
    let (_, roadmap) = drawn(
        vec![traffic::task("clean", 1500, 0, 5_000_000, false), traffic::task("noisy", 400, 60, 1000, false)],
        &Assumptions::default(),
    );
    let json = serde_json::to_string(&roadmap).unwrap();
    let read: Roadmap = serde_json::from_str(&json).unwrap();
    assert_eq!(read.tasks.len(), 2);
    assert!((read.portfolio.saving.p50 / roadmap.portfolio.saving.p50 - 1.0).abs() < 1e-12);
    assert_eq!(read.tasks[0].examples, roadmap.tasks[0].examples);
    let table = csv::tasks(&roadmap);
    let mut reader = ::csv::Reader::from_reader(table.as_bytes());
    let header = reader.headers().unwrap().clone();
    let rows: Vec<_> = reader.records().map(Result::unwrap).collect();
    assert_eq!(rows.len(), 2);
    let cell = |row: usize, name: &str| rows[row][header.iter().position(|column| column == name).unwrap()].to_owned();
    assert_eq!(cell(0, "name"), "clean");
    assert_eq!(cell(0, "above_line"), "true");
    let saving = roadmap.tasks[0].priced.as_ref().unwrap().saving;
    assert_eq!(cell(0, "saving_p50_usd"), saving.p50.to_string());
    assert!(html::render(&roadmap).contains(&html::usd(saving.p50)));
    let summary = roadmap.summary();
    assert_eq!(summary.saving_p50, roadmap.portfolio.saving.p50);
    assert_eq!(summary.verdicts.values().sum::<u64>(), 2);
}

#[test]
fn if_little_pays_page_one_says_so() {
    let (_, roadmap) = drawn(vec![traffic::task("clean", 1500, 0, 1000, false)], &Assumptions::default());
    let page = html::render(&roadmap);
    let (warning, first_heading) = (page.find("No specialist pays for its work").unwrap(), page.find("<h2").unwrap());
    assert!(warning < first_heading);
    assert_eq!(roadmap.above_line().count(), 0);
    for absent in
        ["0 specialists", "no specialist and", "id=\"losses\"", "href=\"#losses\"", "chance of a loss 0 %", ">−$0.00<"]
    {
        assert!(!page.contains(absent), "{absent}");
    }
    assert_eq!(roadmap.portfolio.specialists.mean, 0.0);
}

#[test]
fn what_a_cache_does_as_well_is_not_trained_for() {
    let mut repeated = traffic::task("clean", 1500, 0, 60_000, false);
    repeated.traits.repeats = 0.97;
    let assumptions =
        Assumptions { cache_valid_share: 1.0, cheaper_llm_chance: 0.0, batch_share: 0.0, ..Assumptions::default() };
    let (_, roadmap) = drawn(vec![repeated], &assumptions);
    match &roadmap.tasks[0].verdict {
        Verdict::Cheaper { by } => assert_eq!(by, "cache of answers"),
        other => panic!("{other:?}"),
    }
    assert!(roadmap.by_alternative()[&Alternative::Cache] > 1000.0);
}

#[test]
fn a_model_without_a_price_is_unpriced_and_never_free() {
    let mut task = traffic::task("clean", 600, 0, 1000, false);
    for volume in task.weeks.values_mut().flat_map(|models| models.values_mut()) {
        (volume.unpriced, volume.cost_picousd) = (volume.calls, 0);
    }
    let (_, roadmap) = drawn(vec![task], &Assumptions::default());
    let entry = &roadmap.tasks[0];
    assert!(entry.priced.is_none());
    assert!(entry.unpriced.as_deref().unwrap().contains("no price for 100 % of its calls (`reference-llm`)"));
    let page = html::render(&roadmap);
    assert!(page.contains("unpriced"));
    // Nothing is said of money, and above all not that nothing pays.
    assert!(!roadmap.is_priced() && page.contains("is not known: no price holds for"));
    let said = ["No specialist pays", "expect to save", "What if an error costs more?"];
    assert!(said.iter().all(|said| !page.contains(said)));
}

#[test]
fn a_short_log_a_sample_and_a_guess_are_called_that_on_page_one() {
    let task = traits_only(traffic::task("clean", 1500, 0, 5_000_000, false));
    let (mut discovery, _) = drawn(vec![task], &Assumptions::default());
    let (first, _) = discovery.reading.first_ms.zip(discovery.reading.last_ms).unwrap();
    discovery.reading.last_ms = Some(first + 10 * 86_400_000);
    let assumptions =
        Assumptions { log_share: 0.01, cheaper_llm_chance: 0.0, batch_share: 0.0, ..Assumptions::default() };
    let judgements = judged(&discovery.tasks, &assumptions);
    let mut roadmap = draw_up(&discovery, judgements, &assumptions, &[], 7);
    let page = html::render(&roadmap);
    let first_page = &page[..page.find("<h2").unwrap()];
    assert!(first_page.contains("The log covers 1.4 weeks"), "{first_page}");
    assert!(first_page.contains("each stands for 100 calls of the traffic"), "{first_page}");
    assert!(page.contains("assumed, worth 10 rows") && !page.contains("(from 10 rows)"));
    assert!(page.contains("a guess"));
    roadmap.reading.last_ms = Some(first + 90 * 86_400_000);
    assert!(!html::render(&roadmap).contains("The log covers"));
}

/// A task that nothing can be tried on.
fn traits_only(mut task: Task) -> Task {
    task.examples.truncate(60);
    task
}
