//! Every number of a report is the sum over lines that name their rows: whatever the log holds.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::Read as _,
    path::Path,
};

use metier_kernels::{Pool, Tier};
use metier_model::progress::silent;
use metier_traffic::PriceBook;
use metier_train::discover::{
    Discovery, Finder, Logs, Trace,
    report::draw_up,
    saving::assumptions::Assumptions,
    task::{Reading, Volume},
};
use serde_json::{Value, json};

use crate::{judge::judged, report::drawn, traffic};

/// 2026-11-27.
const NOW_MS: u64 = 1_795_737_600_000;
/// 2026-11-02, a Monday.
const MONDAY_MS: u64 = 1_793_577_600_000;
const DAY_MS: u64 = 86_400_000;

const INTENT: &str = "You sort messages of bank customers. Answer with one intent: lost_card, new_card or refund.";
const SUMMARY: &str = "You summarise notes of meetings for the management board. Write one sentence without names.";

type Line = BTreeMap<String, String>;

/// A log's tasks, and the lines of its trace as they are read from `name`.
fn traced(dir: &Path, name: &str) -> (Discovery, Vec<Line>) {
    let pool = Pool::new(1, Tier::detect());
    let list = PriceBook::parse(
        "[[price]]\nmodel='m'\nfrom='2024-01-01'\ninput=1\noutput=2\ncached=0.5\n[[price]]\nmodel='m'\nfrom='2026-11-09'\ninput=0.3\noutput=1.7",
    );
    let own = PriceBook::parse("[[price]]\nmodel='n'\nfrom='2024-01-01'\ninput=3\noutput=9").unwrap();
    let prices = list.unwrap().overlaid(own);
    let finder = Finder { prices: &prices, encoder: None, pool: &pool, max_embedded: 1000, now_ms: NOW_MS };
    let logs = Logs::find(&[dir.join("logs")], NOW_MS).unwrap();
    let mut trace = Trace::over(tempfile::tempfile().unwrap()).unwrap();
    let discovery = finder.discover_traced(&logs, Some(&mut trace), &mut silent).unwrap();
    assert_eq!(discovery, finder.discover(&logs, &mut silent).unwrap(), "a trace changes nothing");
    let path = dir.join(name);
    let n = trace.write(&discovery.tasks, &path, File::create(&path).unwrap()).unwrap();
    let mut text = String::new();
    let file = File::open(&path).unwrap();
    let read = match name.rsplit_once('.').unwrap().1 {
        "gz" => flate2::read::GzDecoder::new(file).read_to_string(&mut text),
        "zst" => zstd::Decoder::new(file).unwrap().read_to_string(&mut text),
        _ => { file }.read_to_string(&mut text),
    };
    read.unwrap();
    let lines: Vec<Line> = ::csv::Reader::from_reader(text.as_bytes()).deserialize().map(Result::unwrap).collect();
    assert_eq!(lines.len() as u64, n);
    (discovery, lines)
}

fn number(line: &Line, column: &str) -> u64 {
    let cell = &line[column];
    if cell.is_empty() { 0 } else { cell.parse().unwrap() }
}

fn sum<'a>(lines: impl IntoIterator<Item = &'a Line>) -> Volume {
    lines.into_iter().fold(Volume::default(), |sum, line| {
        let n = |column: &str| number(line, column);
        let unpriced = n("unpriced");
        // What a line costs follows from what it says.
        if unpriced == 0 && n("calls") == 1 {
            let uncached = n("input_tokens") - n("cached_tokens").min(n("input_tokens"));
            let cost = uncached * n("input_picousd_per_token")
                + n("cached_tokens").min(n("input_tokens")) * n("cached_picousd_per_token")
                + n("output_tokens") * n("output_picousd_per_token");
            assert_eq!(n("cost_picousd"), cost, "{line:?}");
        } else {
            assert_eq!(line["cost_picousd"], "", "unknown is no number: {line:?}");
        }
        sum.plus(&Volume {
            calls: n("calls"),
            failed: n("failed"),
            input_tokens: n("input_tokens"),
            output_tokens: n("output_tokens"),
            cached_tokens: n("cached_tokens"),
            cost_picousd: n("cost_picousd"),
            unpriced,
            unpriced_input_tokens: unpriced * n("input_tokens"),
            unpriced_output_tokens: unpriced * n("output_tokens"),
            estimated: n("estimated"),
        })
    })
}

/// Every number that is counted, against the lines.
fn check(discovery: &Discovery, lines: &[Line]) {
    let Reading { rows, calls, skipped, odd, unpriced, .. } = &discovery.reading;
    let all = |column: &str| lines.iter().map(|line| number(line, column)).sum::<u64>();
    assert_eq!((all("rows"), all("calls")), (*rows, *calls));
    for (why, skipped) in skipped {
        let of: Vec<&Line> = lines.iter().filter(|line| line["calls"] == "0" && line["note"] == *why).collect();
        assert_eq!(of.len() as u64, skipped.rows, "{why}");
        assert_eq!(of[0]["place"], skipped.places[0], "{why}");
    }
    for (what, odd) in odd {
        let of = lines.iter().filter(|line| line["calls"] == "1" && line["note"].split(" | ").any(|note| note == what));
        assert_eq!(of.count() as u64, odd.rows, "{what}");
    }
    for (model, n) in unpriced {
        let of = lines.iter().filter(|line| line["unpriced"] == "1" && line["model"] == *model);
        assert_eq!(of.count() as u64, *n, "{model}");
    }
    let ids: BTreeSet<&str> = lines.iter().map(|line| line["task_id"].as_str()).filter(|id| !id.is_empty()).collect();
    assert_eq!(ids.len(), discovery.tasks.len());
    let judgements = judged(&discovery.tasks, &Assumptions::default());
    let roadmap = draw_up(discovery, judgements, &Assumptions::default(), &[], 7);
    for task in &discovery.tasks {
        let of: Vec<&Line> = lines.iter().filter(|line| line["task_id"] == task.id).collect();
        assert!(of.iter().all(|line| line["task"] == task.name && line["calls"] == "1"));
        assert_eq!(sum(of.iter().copied()), task.total(), "{}", task.name);
        for (week, volume) in task.by_week() {
            let week = week.to_string();
            assert_eq!(sum(of.iter().copied().filter(|line| line["week"] == week)), volume, "{} in {week}", task.name);
        }
        for (model, volume) in task.by_model() {
            assert_eq!(sum(of.iter().copied().filter(|line| line["model"] == model)), volume, "{model}");
        }
        let flagged = |column: &str| of.iter().filter(|line| line[column] == "1").count() as f64;
        assert_eq!(flagged("with_text") as u64, task.sampling.with_text);
        let looked = flagged("looked_for_repeat");
        let repeats = if looked > 0.0 { flagged("repeat") / looked } else { 0.0 };
        assert!((repeats - task.traits.repeats).abs() < 1e-12, "{repeats} {}", task.traits.repeats);
        // What the report says is what was counted.
        let entry = roadmap.tasks.iter().find(|entry| entry.id == task.id).unwrap();
        assert_eq!(entry.total, sum(of.iter().copied()));
        let dollars: f64 = entry.weeks.iter().map(|(_, _, dollars)| dollars).sum();
        let dated = sum(of.iter().copied().filter(|line| !line["week"].is_empty()));
        assert!((dollars - dated.cost_picousd as f64 / 1e12).abs() < 1e-9);
        // The rows of examples are among them.
        let places: BTreeSet<&str> = of.iter().map(|line| line["place"].as_str()).collect();
        assert!(task.examples.iter().all(|example| places.contains(example.place.as_str())));
    }
}

fn pair(at: usize, system: &str, user: &str, answer: &str) -> Value {
    let model = ["m", "n", "azure/m", "unheard-of"][at % 4];
    json!({
        "request": {"model": model, "user": format!("u{}", at % 7),
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": user}]},
        "response": {"id": format!("chatcmpl-{at:06}"), "created": (MONDAY_MS + at as u64 * DAY_MS / 10) / 1000,
            "choices": [{"message": {"role": "assistant", "content": answer}}],
            "usage": {"prompt_tokens": 100 + at % 13, "completion_tokens": 10 + at % 3, "prompt_tokens_details": {"cached_tokens": 40}}}
    })
}

fn lines(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

/// Everything that a row can be.
fn write_logs(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    let places = ["Oslo", "Lima", "Ulm", "Bern", "Rome"];
    let mut pairs: Vec<Value> = (0..200)
        .map(|at| {
            let place = places[at % 5];
            if at % 2 == 0 {
                let intent = ["lost_card", "new_card", "refund"][at % 3];
                pair(at, INTENT, &format!("my card was lost in {place} on day {}", at / 4 * 4), intent)
            } else {
                let said = format!("{place}: we spoke of item {at} and went home early");
                pair(at, SUMMARY, &said, &format!("Meeting {at} in {place} was short."))
            }
        })
        .collect();
    pairs.push(pairs[17].clone());
    pairs.push(pair(201, "", "no template, as of now", "=1+1"));
    fs::write(folder.join("pairs.jsonl"), lines(&pairs) + "not json\n{\"request\": {\"mod").unwrap();
    let observation = |at: usize, time: &str| {
        json!({"id": format!("observation-{at}"), "trace_id": "trace-0001", "type": "GENERATION", "start_time": time,
        "provided_model_name": "m", "input": format!("question {at}"), "output": "yes"})
    };
    let score = json!({"trace_id": "trace-0001", "observation_id": "observation-1", "name": "gold_label", "value": 0, "string_value": "no", "data_type": "CATEGORICAL"});
    fs::write(
        folder.join("langfuse.jsonl"),
        lines(&[observation(0, "2026-11-02 10:00:00"), observation(1, "1999-11-02 10:00:00"), score]),
    )
    .unwrap();
    let chunk = |id: &str, text: &str| json!({"id": id, "object": "chat.completion.chunk", "created": MONDAY_MS / 1000, "model": "m", "choices": [{"delta": {"content": text}}]});
    let chunks = [chunk("chatcmpl-x1", "Santa"), chunk("chatcmpl-x2", "No"), chunk("chatcmpl-x1", " Claus")];
    fs::write(folder.join("chunks.jsonl"), lines(&chunks)).unwrap();
    let span = |at: usize| {
        json!({"name": "chat", "spanId": format!("{at:016}"), "traceId": "t", "startTimeUnixNano": (MONDAY_MS * 1_000_000).to_string(), "attributes": [
            {"key": "gen_ai.operation.name", "value": {"stringValue": if at == 1 { "execute_tool" } else { "chat" }}},
            {"key": "gen_ai.request.model", "value": {"stringValue": "n"}},
            {"key": "gen_ai.usage.input_tokens", "value": {"intValue": "7"}}, {"key": "gen_ai.usage.output_tokens", "value": {"intValue": "2"}}]})
    };
    let batch = json!({"resourceSpans": [{"scopeSpans": [{"spans": [span(0), span(1), span(2), span(3)]}]}]});
    fs::write(folder.join("spans.jsonl"), lines(&[batch])).unwrap();
    let list: Vec<Value> = (0..3)
        .map(|at| json!({"request_id": format!("spend-{at:06}"), "call_type": if at == 1 { "aembedding" } else { "acompletion" }, "spend": 0.1, "model": "m", "prompt_tokens": 5, "completion_tokens": 5, "startTime": "2026-11-10 10:00:00"}))
        .collect();
    fs::write(folder.join("wrapped.json"), json!({ "data": list }).to_string()).unwrap();
}

#[test]
fn every_number_is_the_sum_over_its_rows() {
    let dir = tempfile::tempdir().unwrap();
    write_logs(&dir.path().join("logs"));
    let (discovery, read) = traced(dir.path(), "rows.csv.gz");
    assert!(discovery.tasks.len() >= 3 && discovery.reading.skipped.len() >= 4, "{:?}", discovery.reading);
    check(&discovery, &read);
    // By the log's own id, by its place, by what was done with it.
    let of = |id: &str| -> Vec<&Line> { read.iter().filter(|line| line["row_id"] == id).collect() };
    let [first] = of("chatcmpl-000000")[..] else { panic!("one line a row") };
    assert!(first["place"].ends_with("pairs.jsonl:1") && first["assigned_by"] == "template");
    assert_eq!(
        (first["price_model"].as_str(), first["price_from"].as_str(), first["price_book"].as_str()),
        ("m", "2024-01-01", "list")
    );
    assert_eq!(of("chatcmpl-000072")[0]["price_from"], "2026-11-09", "the price of its own day");
    assert_eq!(of("chatcmpl-000001")[0]["price_book"], "own");
    assert_eq!(of("chatcmpl-000003")[0]["unpriced"], "1");
    assert_eq!(of("chatcmpl-000002")[0]["price_model"], "m", "a gateway's name is the model's");
    assert!(read.iter().any(|line| line["note"].contains("duplicate") && line["place"].ends_with("pairs.jsonl:201")));
    // Calls of one line are told apart.
    let spans: Vec<&str> = read
        .iter()
        .filter(|line| line["place"].contains("spans.jsonl"))
        .map(|line| line["place"].rsplit('/').next().unwrap())
        .collect();
    assert_eq!(spans, ["spans.jsonl:1", "spans.jsonl:1#2", "spans.jsonl:1#3"]);
    let cells = read.iter().flat_map(|line| line.values());
    assert!(
        !cells.into_iter().any(|cell| cell.contains("my card") || cell.contains("Meeting")),
        "no text stands in it"
    );
}

#[test]
fn what_a_trial_measured_is_the_sum_over_its_rows() {
    let tasks = vec![traffic::task("clean", 900, 5, 1000, false), traffic::task("noisy", 500, 60, 1000, false)];
    let (discovery, roadmap) = drawn(tasks, &Assumptions::default());
    let table = metier_train::discover::report::csv::examples(&discovery, &roadmap);
    let rows: Vec<Line> = ::csv::Reader::from_reader(table.as_bytes()).deserialize().map(Result::unwrap).collect();
    for entry in &roadmap.tasks {
        let trial = entry.judgement.trial.as_ref().unwrap();
        let of = |role: &str| -> Vec<&Line> {
            rows.iter().filter(|row| row["task_id"] == entry.id && row["in_trial"] == role).collect()
        };
        let counts = [of("trained"), of("chose"), of("measured")].map(|rows| rows.len() as u64);
        assert_eq!(counts, trial.rows, "{}", entry.name);
        let measured = of("measured");
        let n = measured.len() as f64;
        let agree = measured.iter().filter(|row| row["agrees"] == "1").count() as f64;
        assert!((agree / n - trial.agreement.value).abs() < 1e-12);
        for (threshold, [_, coverage]) in trial.thresholds.iter().zip([trial.most, trial.little]) {
            let alone = measured.iter().filter(|row| row["score"].parse::<f64>().unwrap() >= *threshold).count() as f64;
            assert!((alone / n - coverage).abs() < 1e-6, "{alone} {n} {coverage}");
        }
        let lost = measured.iter().filter(|row| row["agrees"] == "0");
        let lost = lost.filter(|row| row["score"].parse::<f64>().unwrap() >= trial.thresholds[1]).count() as u64;
        assert_eq!(lost, trial.little_losses);
    }
}

#[test]
fn a_trace_is_packed_as_its_name_says() {
    let dir = tempfile::tempdir().unwrap();
    write_logs(&dir.path().join("logs"));
    let (_, gz) = traced(dir.path(), "rows.csv.gz");
    let (_, zst) = traced(dir.path(), "rows.csv.zst");
    let (_, plain) = traced(dir.path(), "rows.csv");
    assert_eq!(gz, zst);
    assert_eq!(gz, plain);
}
