//! Tasks over several inputs, from rows to a bundle that answers requests as it answered rows.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{fs, time::Duration};

use metier_kernels::{Pool, Tier};
use metier_model::{
    Encoder, Specialist, SpecialistStore,
    progress::silent,
    specialist::{manifest::Stage, mix, render_request},
    tiny,
};
use metier_train::{
    BuildError, BuildOutcome, Embed, TaskFile, Workbench, build, craft::encoder::Recipe as Tuning,
    data::table::Columns, evaluate,
};
use serde_json::{Value, json};

struct Bench {
    dir: tempfile::TempDir,
    store: SpecialistStore,
    pool: Pool,
}

impl Bench {
    fn new(rows: &dyn Fn(usize, u64) -> Vec<Value>, rest: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (file, n, from) in [("train.jsonl", 800, 0), ("test.jsonl", 200, 1 << 20)] {
            let lines: Vec<String> = rows(n, from).iter().map(Value::to_string).collect();
            fs::write(dir.path().join(file), lines.join("\n")).unwrap();
        }
        let task = format!(
            "name = \"pairs\"\nkind = \"classify\"\n[data]\ntrain = \"train.jsonl\"\ntest = \"test.jsonl\"\ntext = [\"left\", \"right\"]\n{rest}"
        );
        fs::write(dir.path().join("task.toml"), task).unwrap();
        let store = SpecialistStore::open(&dir.path().join("store")).unwrap();
        Self { store, pool: Pool::new(2, Tier::detect()), dir }
    }

    fn build(&self, encoder: Option<&dyn Embed>, tuning: Tuning) -> Result<BuildOutcome, BuildError> {
        let task = TaskFile::read(&self.dir.path().join("task.toml"), &|_| None)?;
        let bench = Workbench {
            teacher: None,
            encoder,
            pool: &self.pool,
            store: &self.store,
            seed: 1,
            tuning,
            decoders: Vec::new(),
        };
        build(&task, &bench, &mut silent, &|| Duration::ZERO)
    }

    /// The figure of a bundle on the test rows, from disk.
    fn again(&self, outcome: &BuildOutcome, encoder: Option<&dyn Embed>) -> f64 {
        let specialist = Specialist::open(&outcome.path).unwrap();
        let text = ["left", "right"].map(str::to_owned);
        let columns = Columns::new(&text, "label");
        let test = self.dir.path().join("test.jsonl");
        evaluate(&specialist, encoder, &self.pool, &test, &columns, 1, &mut silent).unwrap().value
    }
}

/// Two offers: one in four is the same, under another spelling of its code; others share words, and often a price.
fn offers(n: usize, from: u64) -> Vec<Value> {
    const THINGS: [&str; 6] = ["drill", "saw", "lamp", "kettle", "radio", "camera"];
    (0..n as u64)
        .map(|i| {
            let h = mix(from + i);
            let pick = |shift: u32, n: u64| (h >> shift) % n;
            let thing = THINGS[pick(0, 6) as usize];
            let code = |k: u64| format!("x{}-{}", 10 + k % 80, 100 + k % 800);
            let (own, same) = (pick(8, 60_000), pick(30, 4) == 0);
            let other = if same { own } else { own + 1 + pick(33, 40) };
            let price = 20 + pick(40, 50);
            let second = if same || pick(46, 2) == 0 { price } else { price + 7 };
            let right = json!({"price": second, "name": format!("{} {thing} new", code(other).replace('-', "").to_uppercase())});
            let left = json!({"name": format!("{thing} {}", code(own)), "price": price, "stock": null});
            json!({"left": left, "right": right, "label": u8::from(same)})
        })
        .collect()
}

/// The rung that compares inputs needs no encoder, is chosen by F1, and answers a request whatever the order of its keys.
#[test]
fn pairs_are_compared_field_by_field() {
    let bench = Bench::new(&offers, "[target]\nmetric = \"f1\"\nepsilon = 0.05");
    let outcome = bench.build(None, Tuning::default()).unwrap();
    let rungs: Vec<(Stage, f64)> = outcome.rungs.iter().map(|rung| (rung.rung, rung.value)).collect();
    assert_eq!((outcome.rung, outcome.metric.as_str()), (Stage::Pair, "f1"), "{rungs:?}");
    assert!(outcome.value > 0.95 && rungs[0].1 < 0.7, "{rungs:?}");
    assert!(outcome.certificate.is_some_and(|certificate| certificate.coverage > 0.8));

    let specialist = Specialist::open(&outcome.path).unwrap();
    let manifest = specialist.manifest();
    assert_eq!(manifest.recipe.positive.as_deref(), Some("1"), "of 0 and 1 the one that says yes");
    assert_eq!(manifest.pairs.as_ref().unwrap().fields, ["name", "price"], "stock is never there");
    assert!(!specialist.needs_embedding());
    for row in specialist.probe() {
        let answer = specialist.answer(&row.text, None).unwrap();
        assert_eq!((answer.label, answer.score), (row.label.clone(), row.score));
    }
    let ask =
        |message: &str| specialist.answer(&render_request(&manifest.inputs, message).unwrap(), None).unwrap().label;
    let asked = ask(
        r#"{"right": {"name": "X42411 drill new", "price": 30}, "left": {"stock": "", "price": 30, "name": "drill x42-411"}}"#,
    );
    assert_eq!(asked, "1");
    assert_eq!(ask(r#"{"left": {"name": "drill x42-411", "price": 30}, "right": {"name": "X42412 drill new"}}"#), "0");
    assert_eq!(bench.again(&outcome, None), outcome.value);
    assert_eq!(bench.build(None, Tuning::default()).unwrap().bundle, outcome.bundle, "the same input, the same bundle");
}

#[test]
fn whose_f1_must_be_clear() {
    let bench = Bench::new(&offers, "[target]\nmetric = \"f1\"\npositive = \"match\"");
    let error = bench.build(None, Tuning::default()).unwrap_err().to_string();
    assert_eq!(error, "`target.positive` is `match`, which is no label of the training rows");
}

/// Words of two kinds on either side: which words they share says nothing, only what they mean.
fn kinds(n: usize, from: u64) -> Vec<Value> {
    const KINDS: [[&str; 2]; 2] = [["ant", "bee"], ["cat", "dog"]];
    const FILLERS: [&str; 4] = ["the", "a", "of", "in"];
    (0..n as u64)
        .map(|i| {
            let h = mix(from + i);
            let pick = |shift: u32, n: u64| ((h >> shift) % n) as usize;
            let (left, right) = (pick(0, 2), pick(7, 2));
            let side = |kind: usize, shift: u32| {
                let fillers: Vec<&str> = (0..3).map(|j| FILLERS[pick(shift + 2 * j, 4)]).collect();
                format!("{} {} {}", KINDS[kind][pick(shift + 9, 2)], fillers.join(" "), "a".repeat(pick(shift + 12, 3)))
            };
            let label = ["same", "other"][usize::from(left != right)];
            json!({"left": side(left, 10), "right": side(right, 30), "label": label})
        })
        .collect()
}

/// A tuned encoder reads both inputs in one window, and from disk it reads them the same way.
#[test]
fn a_tuned_encoder_reads_both_sides() {
    let bench = Bench::new(&kinds, "[budget]\nminutes = 500000");
    let folder = tempfile::tempdir().unwrap();
    let words = ["ant", "bee", "cat", "dog", "the", "a", "of", "in", "##the", "##a", "##of", "##in"];
    tiny::bert_folder(folder.path(), &words, 2, 3).unwrap();
    let encoder = Encoder::open(folder.path()).unwrap();
    let tuning = Tuning { epochs: 24, learning_rate: 3e-3, batch_rows: 32, patience: 24, ..Tuning::default() };
    let outcome = bench.build(Some(&encoder), tuning).unwrap();
    let rungs: Vec<(Stage, f64)> = outcome.rungs.iter().map(|rung| (rung.rung, rung.value)).collect();
    assert_eq!(rungs.iter().map(|rung| rung.0).collect::<Vec<_>>(), Stage::ALL, "{rungs:?}");
    assert_eq!(outcome.rung, Stage::Tuned, "{rungs:?}");
    assert!(outcome.value > 0.9 && rungs[1].1 < 0.8, "{rungs:?}");

    let specialist = Specialist::open(&outcome.path).unwrap();
    assert!(specialist.manifest().pairs.is_some() && specialist.needs_embedding());
    let own = encoder.tuned(&specialist.encoder_file().unwrap().0).unwrap();
    for row in specialist.probe() {
        let read = specialist.encoder_text(&row.text);
        assert!(read.contains(" [SEP] ") && !read.contains("left"), "{read}");
        let vector = own.embed(&bench.pool, &[&read]).unwrap().remove(0);
        let answer = specialist.answer(&row.text, Some(&vector)).unwrap();
        assert_eq!((answer.label, answer.score), (row.label.clone(), row.score));
    }
    assert_eq!(bench.again(&outcome, Some(&encoder)), outcome.value);
}
