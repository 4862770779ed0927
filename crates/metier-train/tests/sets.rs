//! The whole way from rows with several labels to a bundle that answers, on rows made here, without a base model.
#![allow(clippy::unwrap_used, reason = "tests")]

mod sums;

use std::{fs, path::Path, time::Duration};

use metier_kernels::{Pool, Tier};
use metier_model::{
    Encoder, Specialist, SpecialistStore,
    progress::silent,
    specialist::{
        bundle,
        manifest::{Manifest, Stage},
        mix,
    },
    tiny,
};
use metier_train::{
    BuildOutcome, TaskFile, Workbench, build, craft::encoder::Recipe as Tuning, curate, data::table::Columns, evaluate,
    plan,
};
use serde_json::Value;
use sums::{Sums, topic, vector};

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
            decoders: Vec::new(),
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

/// Rows that have one label for each kind of two words far from each other that agree: no sum over n-grams tells it, nor over frozen vectors.
fn agreements(n: usize, from: u64) -> String {
    const KINDS: [[&str; 2]; 2] = [["ant", "bee"], ["cat", "dog"]];
    const FILLERS: [&str; 4] = ["the", "a", "of", "in"];
    let mut lines = String::new();
    for i in 0..n as u64 {
        let h = mix(from + i);
        let pick = |shift: u32, n: u64| ((h >> shift) % n) as usize;
        let (left, right) = (pick(0, 2), pick(7, 2));
        let fillers: Vec<&str> = (0..3).map(|j| FILLERS[pick(20 + 4 * j, 4)]).collect();
        let words = [KINDS[left][pick(40, 2)], fillers[0], fillers[1], fillers[2], KINDS[right][pick(50, 2)]];
        let mut labels = Vec::new();
        labels.extend((left == right).then_some("same"));
        labels.extend((left == 0).then_some("insect first"));
        let text = format!("{} {}", words.join(" "), FILLERS[pick(33, 4)].repeat(1 + pick(60, 3)));
        lines += &format!("{}\n", serde_json::json!({"text": text, "topics": labels}));
    }
    lines
}

/// A task that only the tuned encoder can do: it is chosen, ships its own layers, and answers from disk as it was measured; without n-grams as well.
#[test]
fn a_tuned_encoder_gives_lists() {
    let folder = tempfile::tempdir().unwrap();
    let words = ["ant", "bee", "cat", "dog", "the", "a", "of", "in", "##the", "##a", "##of", "##in"];
    tiny::bert_folder(folder.path(), &words, 2, 3).unwrap();
    let encoder = Encoder::open(folder.path()).unwrap();
    let tuning = Tuning { epochs: 12, learning_rate: 5e-3, batch_rows: 32, patience: 12, ..Tuning::default() };
    for (extra, has_ngrams) in [("", true), ("[tune]\nngrams = false\n", false)] {
        let bench = Bench::new(&agreements(800, 0), &format!("{EASY}[budget]\nminutes = 500000\n{extra}"));
        fs::write(bench.dir.path().join("test.jsonl"), agreements(200, 1 << 20)).unwrap();
        let workbench = || Workbench { encoder: Some(&encoder), tuning: tuning.clone(), ..bench.bench() };
        let outcome = build(&bench.task(), &workbench(), &mut silent, &|| Duration::ZERO).unwrap();
        let rungs: Vec<(Stage, f64)> = outcome.rungs.iter().map(|rung| (rung.rung, rung.value)).collect();
        assert_eq!(outcome.rung, Stage::Tuned, "{rungs:?}");
        assert!(outcome.value > 0.95 && rungs[0].1 < 0.9, "{rungs:?}");
        assert_eq!(rungs.len(), if has_ngrams { 4 } else { 2 }, "{rungs:?}");
        assert!(
            outcome.notes.iter().any(|note| note.contains("rung `tuned` is not made again")),
            "{:?}",
            outcome.notes
        );

        let specialist = Specialist::open(&outcome.path).unwrap();
        assert_eq!(specialist.features().is_some(), has_ngrams);
        let record = specialist.manifest().recipe.rungs.last().unwrap().tuning.clone().unwrap();
        assert_eq!((record.batch_rows, record.contrast), (32, 0.0));
        let own = encoder.tuned(&specialist.encoder_file().unwrap().0).unwrap();
        for row in specialist.probe() {
            let vector = own.embed(&bench.pool, &[row.text.as_str()]).unwrap().remove(0);
            let answer = specialist.answer(&row.text, Some(&vector)).unwrap();
            assert_eq!((answer.label, answer.score), (row.label.clone(), row.score));
        }
        let text = ["text".to_owned()];
        let (file, columns) = (bench.dir.path().join("test.jsonl"), Columns::new(&text, "topics"));
        let report = evaluate(&specialist, Some(&encoder), &bench.pool, &file, &columns, 7, &mut silent).unwrap();
        assert_eq!(report.sets, outcome.evaluation.sets);
        if has_ngrams {
            continue;
        }
        let again = build(&bench.task(), &workbench(), &mut silent, &|| Duration::ZERO).unwrap();
        assert_eq!(again.bundle, outcome.bundle, "the same input, the same bundle");
        // A rung that comes to nothing leaves the others.
        let wild = Workbench { tuning: Tuning { learning_rate: 1e30, ..tuning.clone() }, ..workbench() };
        let outcome = build(&bench.task(), &wild, &mut silent, &|| Duration::ZERO).unwrap();
        let notes = outcome.notes.join("\n");
        assert!(notes.contains("rung `tuned` was not made: training diverged"), "{notes}");
    }
}

/// Two rows in five have words that never come again, of none to two topics.
fn plain_and_odd(n: u64, from: u64) -> String {
    let mut lines = String::new();
    for i in 0..n {
        let mut state = mix(from + i);
        let mut pick = |n: u64| {
            state = mix(state.wrapping_add(0x9e37_79b9_7f4a_7c15));
            state % n
        };
        let (mut topics, is_odd) = (Vec::new(), pick(5) < 2);
        (0..pick(3)).for_each(|_| topics.push(pick(4) as usize));
        topics.sort_unstable();
        topics.dedup();
        let mut text = Vec::new();
        for of in &topics {
            for _ in 0..3 {
                text.push(if is_odd {
                    (0..).map(|_| format!("{:08x}", pick(1 << 32))).find(|word| topic(word) == *of).unwrap()
                } else {
                    TOPICS[*of].1[pick(6) as usize].to_owned()
                });
            }
        }
        let labels: Vec<&str> = topics.iter().map(|topic| TOPICS[*topic].0).collect();
        let row = serde_json::json!({"text": format!("{} {}", text.join(" "), from + i), "topics": labels});
        lines += &format!("{row}\n");
    }
    lines
}

#[test]
fn the_cheap_stage_of_two_answers_what_it_is_sure_of() {
    let target = "[target]\nmetric = \"micro_f1\"\nmargin = 0.03\nepsilon = 0.15\ndelta = 0.1\nstages = 2\n";
    let bench = Bench::new(&plain_and_odd(3000, 0), target);
    fs::write(bench.dir.path().join("test.jsonl"), plain_and_odd(400, 1 << 20)).unwrap();
    let workbench = Workbench { encoder: Some(&Sums), ..bench.bench() };
    let make = || build(&bench.task(), &workbench, &mut silent, &|| Duration::ZERO).unwrap();
    let outcome = make();
    let specialist = Specialist::open(&outcome.path).unwrap();
    let first = specialist.manifest().first.clone().unwrap_or_else(|| panic!("{:?}", outcome.notes));
    let (share, certificate) = (first.share.unwrap(), outcome.certificate.unwrap());
    assert_eq!((first.stage, outcome.rung > Stage::Linear), (Stage::Linear, true));
    assert!(first.multi_label.is_some() && share.threshold >= first.floor && share.coverage > 0.2, "{first:?}");
    assert!(certificate.coverage > share.coverage && outcome.held.unwrap(), "{certificate:?}");
    let stages = &outcome.evaluation.stages;
    assert_eq!(stages.iter().map(|stage| stage.stage.as_str()).collect::<Vec<_>>(), ["linear", outcome.rung.name()]);
    let answered: f64 = stages.iter().map(|stage| stage.answered.value).sum();
    assert!((answered - outcome.test_coverage).abs() < 1e-9, "{stages:?}");
    assert!(outcome.notes.iter().any(|note| note.contains("`linear` is asked first")), "{:?}", outcome.notes);
    // The first needs no embedding; what it is not sure of does.
    let sure = specialist.answer("invoice refund charged parcel courier tracking", None).unwrap();
    assert_eq!((sure.label.as_str(), sure.stage.as_str()), ("[\"billing\",\"delivery\"]", "linear"));
    assert!(specialist.probe().iter().any(|row| specialist.answer(&row.text, None).is_err()));
    for row in specialist.probe() {
        let answer = specialist.answer(&row.text, Some(&vector(&row.text))).unwrap();
        assert_eq!((&answer.label, answer.score), (&row.label, row.score));
    }
    let text = ["text".to_owned()];
    let (file, columns) = (bench.dir.path().join("test.jsonl"), Columns::new(&text, "topics"));
    let report = evaluate(&specialist, Some(&Sums), &bench.pool, &file, &columns, 7, &mut silent).unwrap();
    assert_eq!((report.stages, report.test_loss), (outcome.evaluation.stages.clone(), outcome.evaluation.test_loss));
    assert_eq!(make().bundle, outcome.bundle);
    // Where nothing cheaper is there, one stage answers and a note says why.
    let alone = bench.build().unwrap();
    assert!(alone.notes.iter().any(|note| note.contains("nothing cheaper to ask first")), "{:?}", alone.notes);
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
    check(
        &rows(300, 0),
        "hierarchy = \"/\"",
        "a node's probability is the sum of those of the labels under it only where",
    );
    let unknown = format!("{}{{\"text\": \"odd\", \"topics\": [\"prase\"]}}\n", rows(300, 0));
    let bench = Bench::new(&rows(300, 0), "");
    fs::write(bench.dir.path().join("test.jsonl"), unknown).unwrap();
    let error = bench.build().map(|outcome| outcome.value).unwrap_err();
    assert!(
        error.contains("test.jsonl:301: label `prase` is not in the training rows; did you mean `praise`?"),
        "{error}"
    );
}
