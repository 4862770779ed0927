//! The whole way from rows with several labels to a bundle that answers, on rows made here, without a base model.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{fs, path::Path, time::Duration};

use metier_kernels::{Pool, Tier};
use metier_model::{
    Specialist, SpecialistStore,
    progress::silent,
    specialist::{bundle, manifest::Manifest, mix},
};
use metier_train::{
    BuildOutcome, TaskFile, Workbench, build, craft::encoder::Recipe as Tuning, curate, data::table::Columns, evaluate,
    plan,
};
use serde_json::Value;

const TOPICS: [(&str, [&str; 6]); 4] = [
    ("billing", ["invoice", "charged", "refund", "payment", "receipt", "amount"]),
    ("delivery", ["parcel", "courier", "tracking", "late", "address", "driver"]),
    ("login", ["password", "account", "locked", "email", "code", "signin"]),
    ("praise", ["thanks", "great", "lovely", "kind", "quick", "perfect"]),
];
const FILLERS: [&str; 12] =
    ["my", "the", "again", "please", "today", "since", "monday", "never", "help", "still", "with", "about"];

/// `n` rows that speak of none to three topics; one word in twelve is of a topic that the row is not labelled with.
fn rows(n: usize, from: u64) -> String {
    let mut lines = String::new();
    for i in 0..n as u64 {
        let mut state = mix(from + i);
        let mut pick = |n: usize| {
            state = mix(state.wrapping_add(0x9e37_79b9_7f4a_7c15));
            (state % n as u64) as usize
        };
        let mut topics: Vec<usize> = (0..pick(4)).map(|_| pick(4)).collect();
        topics.sort_unstable();
        topics.dedup();
        let mut text = Vec::new();
        for topic in &topics {
            (0..2).for_each(|_| text.push(TOPICS[*topic].1[pick(6)]));
            text.push(FILLERS[pick(12)]);
        }
        (0..3).for_each(|_| text.push(FILLERS[pick(12)]));
        if pick(12) == 0 {
            text.push(TOPICS[pick(4)].1[pick(6)]);
        }
        // In any order, and once a label twice.
        let mut labels: Vec<&str> = topics.iter().rev().map(|topic| TOPICS[*topic].0).collect();
        labels.extend(labels.first().copied().filter(|_| i == 3));
        let row = serde_json::json!({"text": format!("{} {}", text.join(" "), from + i), "topics": labels});
        lines += &format!("{row}\n");
    }
    lines
}

struct Bench {
    dir: tempfile::TempDir,
    store: SpecialistStore,
    pool: Pool,
}

impl Bench {
    fn new(train: &str, extra: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("train.jsonl"), train).unwrap();
        fs::write(dir.path().join("test.jsonl"), rows(300, 1 << 20)).unwrap();
        let task = format!(
            "name = \"topics\"\nkind = \"classify\"\n[data]\ntrain = \"train.jsonl\"\ntest = \"test.jsonl\"\nlabel = \"topics\"\n{extra}"
        );
        fs::write(dir.path().join("task.toml"), task).unwrap();
        let store = SpecialistStore::open(&dir.path().join("store")).unwrap();
        Self { store, pool: Pool::new(2, Tier::detect()), dir }
    }

    fn task(&self) -> TaskFile {
        TaskFile::read(&self.dir.path().join("task.toml"), &|_| None).unwrap()
    }

    fn bench(&self) -> Workbench<'_> {
        Workbench {
            teacher: None,
            encoder: None,
            pool: &self.pool,
            store: &self.store,
            seed: 7,
            tuning: Tuning::default(),
            decoder: None,
        }
    }

    fn build(&self) -> Result<BuildOutcome, String> {
        build(&self.task(), &self.bench(), &mut silent, &|| Duration::ZERO).map_err(|error| error.to_string())
    }
}

const EASY: &str = "[target]\nmetric = \"micro_f1\"\nepsilon = 0.1\ndelta = 0.1\n";

#[test]
fn builds_opens_and_answers_with_lists() {
    let bench = Bench::new(&rows(1200, 0), EASY);
    let outcome = bench.build().unwrap();
    assert_eq!((outcome.metric.as_str(), outcome.n, outcome.measured_on.as_str()), ("micro_f1", 300, "test"));
    assert!(outcome.value > 0.9 && outcome.interval[0] < outcome.value && outcome.value < outcome.interval[1]);
    let figures = outcome.evaluation.sets.unwrap();
    assert_eq!(figures.micro_f1.value, outcome.value);
    assert!(figures.exact_match.value < figures.jaccard.value && figures.jaccard.value < 1.0, "{figures:?}");
    assert_eq!(figures.exact_match, outcome.evaluation.accuracy);
    assert!((0.15..0.35).contains(&figures.empty) && (1.0..1.6).contains(&figures.labels_a_row), "{figures:?}");
    assert_eq!(outcome.evaluation.per_class.len(), 4);
    assert!(outcome.failures.iter().all(|row| row.gold.starts_with('[') && row.gold != row.called));
    let certificate = outcome.certificate.expect("120 calibration rows carry it");
    assert!(outcome.held.unwrap() && certificate.coverage > 0.3, "{certificate:?}");
    assert!(outcome.notes.iter().any(|note| note.contains("1 − Jaccard")));

    let specialist = Specialist::open(&outcome.path).unwrap();
    assert!(specialist.manifest().multi_label.is_some() && specialist.manifest().labels.len() == 4);
    let ask = |text: &str| specialist.answer(text, None).unwrap();
    let answer = ask("my invoice refund since the parcel courier please");
    assert_eq!(answer.label, "[\"billing\",\"delivery\"]");
    assert!(answer.top[0].1 > 0.5 && answer.top[1].1 > 0.5 && answer.top[2].1 < 0.5, "{:?}", answer.top);
    let none = ask("my the again please monday help");
    assert_eq!(none.label, "[]");
    assert_eq!(none.accepted, none.score >= certificate.threshold);
    // What it was measured on is what it answers.
    for row in specialist.probe() {
        let answer = ask(&row.text);
        assert_eq!((&answer.label, answer.score), (&row.label, row.score));
    }
    // More rows help less and less: the curve of the rung that ships.
    let curve = outcome.learning_curve.as_ref().expect("a thousand training rows");
    assert_eq!((curve.points.len(), curve.rung), (4, outcome.rung));
    assert!(curve.points[0].value < curve.points[3].value, "{:?}", curve.points);
    assert!(curve.points.windows(2).all(|pair| 2 * pair[0].n - pair[1].n <= 1), "{:?}", curve.points);
    assert_eq!(curve.points[3].value, outcome.rungs[0].validation);
    // Twice the same bundle; report and card say what they are about.
    let again = bench.build().unwrap();
    assert_eq!(again.bundle, outcome.bundle);
    let read = |file: &str| fs::read_to_string(outcome.path.join(file)).unwrap();
    assert!(read("CARD.md").contains("a list of 4 labels") && read("report.html").contains("exact_match"));
}

#[test]
fn a_file_is_measured_as_the_build_measured_it() {
    let bench = Bench::new(&rows(800, 0), EASY);
    let outcome = bench.build().unwrap();
    let specialist = Specialist::open(&outcome.path).unwrap();
    let text = ["text".to_owned()];
    let measure = |file: &Path| {
        evaluate(&specialist, None, &bench.pool, file, &Columns::new(&text, "topics"), 7, &mut silent)
            .map_err(|error| error.to_string())
    };
    let report = measure(&bench.dir.path().join("test.jsonl")).unwrap();
    assert_eq!(report.sets, outcome.evaluation.sets);
    assert_eq!((report.value, report.test_loss), (outcome.value, outcome.evaluation.test_loss));
    let other = bench.dir.path().join("other.jsonl");
    fs::write(&other, "{\"text\": \"a\", \"topics\": [\"biling\"]}\n").unwrap();
    let error = measure(&other).unwrap_err();
    assert!(
        error.contains("other.jsonl:1: label `biling` is not in the training rows; did you mean `billing`?"),
        "{error}"
    );
    fs::write(&other, "{\"text\": \"a\", \"topics\": \"billing\"}\n").unwrap();
    assert!(measure(&other).unwrap_err().contains("is no list of labels, and `topics` gives several"));
}

/// Bundles that were made when the manifest said `several`.
#[test]
fn the_older_word_is_read() {
    let bench = Bench::new(&rows(500, 0), EASY);
    let path = bench.build().unwrap().path;
    let manifest = fs::read_to_string(path.join("specialist.toml")).unwrap();
    assert!(manifest.contains("[multi_label."), "{manifest}");
    let older: Manifest = toml::from_str(&manifest.replace("multi_label", "several")).unwrap();
    assert_eq!(older, toml::from_str(&manifest).unwrap());
}

#[test]
fn tampered_bundles_are_refused() {
    let bench = Bench::new(&rows(500, 0), EASY);
    let path = bench.build().unwrap().path;
    let mut contents = Specialist::open(&path).unwrap().into_contents();
    contents.manifest.multi_label.as_mut().unwrap().row.slope = -1.0;
    let dir = tempfile::tempdir().unwrap();
    bundle::write(&contents, dir.path()).unwrap();
    assert!(bundle::read_unnamed(dir.path()).unwrap_err().to_string().contains("not monotone"));
}

#[test]
fn a_plan_counts_labels_and_a_check_finds_wrong_ones() {
    // Every row that speaks of billing loses that label in the first fifty, and some others gain praise.
    let mut lines: Vec<Value> = rows(800, 0).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut wrong = 0;
    for line in lines.iter_mut().take(50) {
        let list = line["topics"].as_array_mut().unwrap();
        let before = list.len();
        list.retain(|label| label != "billing");
        wrong += usize::from(list.len() < before);
    }
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let bench = Bench::new(&text, EASY);
    let planned = plan(&bench.task(), &bench.bench(), &|| Duration::ZERO).unwrap();
    assert_eq!(planned.labels.len(), 4);
    assert!(planned.labels["billing"]["train"] > 100);
    let found = curate(&bench.task(), &bench.pool, 7, &mut silent).unwrap();
    let missed = found.suspects.iter().filter(|suspect| {
        let line: usize = suspect.place.rsplit(':').next().unwrap().parse().unwrap();
        suspect.place.contains("train") && line <= 50 && suspect.likelier.contains("billing")
    });
    let (missed, all) = (missed.count(), found.suspects.len());
    assert!(missed * 2 >= wrong && all < 10 * wrong, "{missed} of {wrong}, {all} suspects");
    assert_eq!(found.confused[0].1, "with billing", "{:?}", found.confused);
}

#[track_caller]
fn check(train: &str, extra: &str, message: &str) {
    let error = Bench::new(train, extra).build().map(|outcome| outcome.value).unwrap_err();
    assert!(error.contains(message), "`{error}` does not contain `{message}`");
}

#[test]
fn refuses_what_is_no_task() {
    let row = |labels: &str| format!("{}{{\"text\": \"odd\", \"topics\": {labels}}}\n", rows(60, 0));
    check(&row("\"billing\""), "", "train.jsonl:61: `billing` is no list of labels, such as `[\"billing\"]`");
    check(&row("[1]"), "", "train.jsonl:61: `[1]` is no list of labels");
    check(&row("[\" \"]"), "", "train.jsonl:61: an empty label in the list");
    check(&rows(60, 0), "out_of_scope = \"praise\"", "none of these has an empty list");
    check("{\"text\": \"a\", \"topics\": [\"x\"]}\n", "", "name 1 labels in their lists: at least two are needed");
    check(&rows(300, 0), "[target]\nmetric = \"f1\"", "have `micro_f1`, `macro_f1` or `exact_match`");
    check(&rows(300, 0), "[target]\nstages = 2", "of lists one stage answers");
    let unknown = format!("{}{{\"text\": \"odd\", \"topics\": [\"prase\"]}}\n", rows(300, 0));
    let bench = Bench::new(&rows(300, 0), "");
    fs::write(bench.dir.path().join("test.jsonl"), unknown).unwrap();
    let error = bench.build().map(|outcome| outcome.value).unwrap_err();
    assert!(
        error.contains("test.jsonl:301: label `prase` is not in the training rows; did you mean `praise`?"),
        "{error}"
    );
}
