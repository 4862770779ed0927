//! `[target] stages = 2`, from rows to a bundle whose cheap stage answers what it is sure of, under one certificate for both. Rows are made here: of
//! most the words tell the label, of the others only an encoder of twenty lines can.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "cascade/hierarchy.rs"]
mod hierarchy;
mod sums;

use std::{fs, time::Duration};

use metier_kernels::{Pool, Tier};
use metier_model::{
    Specialist, SpecialistStore,
    progress::silent,
    specialist::{AnswerError, Contents, bundle, manifest::Stage, mix},
};
use metier_train::{
    BuildOutcome, Embed, TaskFile, Workbench, build, craft::encoder::Recipe as Tuning, data::table::Columns, evaluate,
};
use sums::{Sums, topic, vector};

const TOPICS: [(&str, [&str; 4]); 4] = [
    ("billing", ["invoice", "charged", "refund", "receipt"]),
    ("delivery", ["parcel", "courier", "tracking", "driver"]),
    ("login", ["password", "account", "locked", "signin"]),
    ("other", ["weather", "newsletter", "lunch", "parking"]),
];

/// `n` rows; two in five have words that never come again, and one in fifty a wrong label.
fn rows(n: u64, from: u64) -> String {
    let mut csv = "text,label\n".to_owned();
    for i in 0..n {
        let mut state = mix(from + i);
        let mut pick = |n: u64| {
            state = mix(state.wrapping_add(0x9e37_79b9_7f4a_7c15));
            state % n
        };
        let class = pick(4) as usize;
        let text: Vec<String> = if pick(5) < 2 {
            (0..4)
                .map(|_| (0..).map(|_| format!("{:08x}", pick(1 << 32))).find(|word| topic(word) == class).unwrap())
                .collect()
        } else {
            (0..3).map(|_| TOPICS[class].1[pick(4) as usize].to_owned()).collect()
        };
        let class = if pick(50) == 0 { pick(4) as usize } else { class };
        csv += &format!("{} {},{}\n", text.join(" "), from + i, TOPICS[class].0);
    }
    csv
}

struct Bench {
    dir: tempfile::TempDir,
    store: SpecialistStore,
    pool: Pool,
}

impl Bench {
    fn new(target: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("train.csv"), rows(4000, 0)).unwrap();
        fs::write(dir.path().join("test.csv"), rows(600, 1 << 20)).unwrap();
        let task = format!(
            "name = \"topics\"\nkind = \"classify\"\n[data]\ntrain = \"train.csv\"\ntest = \"test.csv\"\n[target]\nmargin = 0.02\nepsilon = 0.05\n{target}"
        );
        fs::write(dir.path().join("task.toml"), task).unwrap();
        let store = SpecialistStore::open(&dir.path().join("store")).unwrap();
        Self { store, pool: Pool::new(2, Tier::detect()), dir }
    }

    fn build(&self, encoder: Option<&dyn Embed>) -> BuildOutcome {
        let task = TaskFile::read(&self.dir.path().join("task.toml"), &|_| None).unwrap();
        let (pool, store, tuning) = (&self.pool, &self.store, Tuning::default());
        let bench = Workbench { encoder, pool, store, seed: 7, tuning, decoders: Vec::new(), teacher: None };
        build(&task, &bench, &mut silent, &|| Duration::ZERO).unwrap()
    }
}

#[test]
fn the_cheap_stage_answers_what_it_is_sure_of() {
    let bench = Bench::new("stages = 2\n");
    let outcome = bench.build(Some(&Sums));
    let certificate = outcome.certificate.expect("400 calibration rows carry it");
    let specialist = Specialist::open(&outcome.path).unwrap();
    let first = specialist.manifest().first.clone().expect("linear is asked first");
    let share = first.share.unwrap();
    assert_eq!((first.stage, specialist.manifest().stage > Stage::Linear), (Stage::Linear, true));
    // It answers about the three in five that words tell, the second most of the others.
    assert!((0.4..0.7).contains(&share.coverage) && share.threshold >= first.floor, "{first:?}");
    assert!(certificate.coverage > share.coverage + 0.2, "{certificate:?}");
    assert!(outcome.held.unwrap());
    let stages = &outcome.evaluation.stages;
    assert_eq!(stages.iter().map(|stage| stage.stage.as_str()).collect::<Vec<_>>(), ["linear", outcome.rung.name()]);
    let answered: f64 = stages.iter().map(|stage| stage.answered.value).sum();
    assert!((answered - outcome.test_coverage).abs() < 1e-9 && stages[0].right.value > 0.93, "{stages:?}");
    assert_eq!(stages.iter().map(|stage| stage.losses).sum::<u64>(), outcome.evaluation.test_loss.unwrap().losses);
    assert!(outcome.notes.iter().any(|note| note.contains("`linear` is asked first")), "{:?}", outcome.notes);

    // The first needs no embedding; what it is not sure of does.
    let sure = specialist.answer("my invoice refund charged", None).unwrap();
    assert_eq!((sure.label.as_str(), sure.stage.as_str(), sure.accepted), ("billing", "linear", true));
    let odd = "0badcafe 12345678";
    assert_eq!(specialist.answer(odd, None), Err(AnswerError::NeedsEmbedding("topics".to_owned())));
    assert_eq!(specialist.answer(odd, Some(&vector(odd))).unwrap().stage, outcome.rung.name());
    for row in specialist.probe() {
        let answer = specialist.answer(&row.text, Some(&vector(&row.text))).unwrap();
        assert_eq!((&answer.label, answer.score), (&row.label, row.score));
    }
    // A file is measured as the build measured it; twice the same bundle.
    let text = ["text".to_owned()];
    let file = bench.dir.path().join("test.csv");
    let report =
        evaluate(&specialist, Some(&Sums), &bench.pool, &file, &Columns::new(&text, "label"), 7, &mut silent).unwrap();
    assert_eq!((report.stages, report.test_loss), (outcome.evaluation.stages.clone(), outcome.evaluation.test_loss));
    assert_eq!(bench.build(Some(&Sums)).bundle, outcome.bundle);
    let read = |file: &str| fs::read_to_string(outcome.path.join(file)).unwrap();
    assert!(
        read("CARD.md").contains("Two stages answer") && read("report.html").contains("Stages are asked in this order")
    );
}

#[test]
fn one_stage_has_no_part_of_a_second() {
    let bench = Bench::new("");
    let alone = bench.build(Some(&Sums));
    assert!(
        alone.path.join("head.safetensors").exists()
            && !alone.path.join("first.safetensors").exists()
            && alone.evaluation.stages.is_empty()
    );
    let bench = Bench::new("stages = 2\n");
    let outcome = bench.build(None);
    assert!(Specialist::open(&outcome.path).unwrap().manifest().first.is_none());
    assert!(outcome.notes.iter().any(|note| note.contains("nothing cheaper to ask first")), "{:?}", outcome.notes);
}

#[test]
fn what_the_rows_cannot_show_is_not_done() {
    let bench = Bench::new("stages = 2\n");
    let task = fs::read_to_string(bench.dir.path().join("task.toml")).unwrap();
    fs::write(bench.dir.path().join("task.toml"), task.replace("margin = 0.02", "margin = 0.002")).unwrap();
    let outcome = bench.build(Some(&Sums));
    assert!(outcome.notes.iter().any(|note| note.contains("do not show at any score")), "{:?}", outcome.notes);
    assert!(!outcome.path.join("first.safetensors").exists());
}

#[test]
fn tampered_bundles_are_refused() {
    let whole = Specialist::open(&Bench::new("stages = 2\n").build(Some(&Sums)).path).unwrap().into_contents();
    let check = |change: &dyn Fn(&mut Contents), message: &str| {
        let mut contents = whole.clone();
        change(&mut contents);
        let dir = tempfile::tempdir().unwrap();
        bundle::write(&contents, dir.path()).unwrap();
        let error = bundle::read_unnamed(dir.path()).unwrap_err().to_string();
        assert!(error.contains(message), "`{error}` does not contain `{message}`");
    };
    let share = |contents: &mut Contents, threshold: f32| {
        contents.manifest.first.as_mut().unwrap().share.as_mut().unwrap().threshold = threshold;
    };
    check(&|contents| share(contents, 0.0), "below its floor");
    check(&|contents| share(contents, f32::NAN), "no probability");
    check(&|contents| contents.manifest.certificate = None, "without a certificate for the whole");
    check(&|contents| contents.manifest.first.as_mut().unwrap().share = None, "has no part in it");
    check(&|contents| contents.manifest.first.as_mut().unwrap().stage = Stage::Head, "none that needs no base model");
    check(&|contents| contents.first = None, "of a first stage it has");
    check(&|contents| contents.manifest.first = None, "of a first stage it has");
    check(&|contents| contents.first = contents.head.clone(), "does not read what is there");
}
