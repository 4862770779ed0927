//! An extraction from rows to a bundle that answers, on rows made here and a tiny encoder.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{fmt::Write as _, fs, time::Duration};

use metier_kernels::{Pool, Tier};
use metier_model::{
    Encoder, Specialist, SpecialistStore,
    progress::silent,
    specialist::{
        AnswerError,
        manifest::{Kind, Stage},
        mix,
    },
    tiny,
};
use metier_train::{BuildOutcome, TaskFile, Workbench, build, data::table::Columns, evaluate, plan};
use serde_json::{Value, json};

const ANIMALS: [&str; 8] = ["ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen"];
const FILLERS: [&str; 6] = ["the", "a", "of", "in", "on", "at"];

/// Behind `buy` stands what is bought, behind `at` a price; sometimes neither. Every animal stands in every place: words alone tell nothing.
fn rows(n: u64, from: u64) -> String {
    let mut lines = String::new();
    for i in from..from + n {
        let mut state = mix(i + 1);
        let mut pick = |n: usize| {
            state = mix(state.wrapping_add(0x9e37_79b9_7f4a_7c15));
            (state % n as u64) as usize
        };
        let mut words = vec![FILLERS[pick(5)].to_owned(), ANIMALS[pick(8)].to_owned()];
        let mut output = json!({});
        if pick(5) > 0 {
            let mut bought = vec![ANIMALS[pick(8)]];
            bought.extend((pick(2) == 0).then_some(ANIMALS[pick(8)]));
            words.extend(["buy".to_owned(), bought.join(" ")]);
            output["bought"] = json!(bought.join(" "));
        }
        words.push(FILLERS[pick(5)].to_owned());
        if pick(3) > 0 {
            let price = pick(9) + 1;
            words.extend(["pay".to_owned(), price.to_string()]);
            // The same number, written otherwise than an answer writes it.
            output["price"] = if price % 2 == 0 { json!(price as f64) } else { json!(price) };
        }
        words.extend((0..pick(3)).map(|_| ANIMALS[pick(8)].to_owned()));
        let channel = ["mail", "chat"][pick(2)];
        writeln!(lines, "{}", json!({"text": words.join(" "), "output": output, "channel": channel})).unwrap();
    }
    lines
}

struct Bench {
    dir: tempfile::TempDir,
    store: SpecialistStore,
    encoder: Encoder,
    pool: Pool,
}

impl Bench {
    fn new(extra: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        write("train.jsonl", &rows(400, 0));
        write("validation.jsonl", &rows(60, 1 << 20));
        write("calibration.jsonl", &rows(120, 2 << 20));
        write("test.jsonl", &rows(80, 3 << 20));
        let properties = json!({"bought": {"type": "string"}, "price": {"type": "integer", "minimum": 1}});
        write("schema.json", &json!({"type": "object", "properties": properties}).to_string());
        write(
            "task.toml",
            &format!(
                "name = \"purchases\"\nkind = \"extract\"\n[data]\ntrain = \"train.jsonl\"\nvalidation = \"validation.jsonl\"\n\
                 calibration = \"calibration.jsonl\"\ntest = \"test.jsonl\"\noutput = \"output\"\nschema = \"schema.json\"\n\
                 [target]\nepsilon = 0.1\ndelta = 0.1\n[budget]\nminutes = 500000\n\
                 [tune]\nepochs = 8\nlearning_rate = 0.003\n{extra}"
            ),
        );
        let store = SpecialistStore::open(&dir.path().join("store")).unwrap();
        let words: Vec<&str> = ANIMALS
            .into_iter()
            .chain(FILLERS)
            .chain(["buy", "pay", "1", "2", "3", "4", "5", "6", "7", "8", "9"])
            .collect();
        let folder = dir.path().join("encoder");
        fs::create_dir(&folder).unwrap();
        tiny::bert_folder(&folder, &words, 2, 3).unwrap();
        let encoder = Encoder::open(&folder).unwrap();
        Self { store, pool: Pool::new(2, Tier::detect()), dir, encoder }
    }

    fn task(&self) -> TaskFile {
        TaskFile::read(&self.dir.path().join("task.toml"), &|_| None).unwrap()
    }

    fn workbench(&self) -> Workbench<'_> {
        Workbench {
            teacher: None,
            encoder: Some(&self.encoder),
            pool: &self.pool,
            store: &self.store,
            seed: 1,
            tuning: Default::default(),
            decoders: Vec::new(),
        }
    }

    fn build(&self) -> Result<BuildOutcome, String> {
        build(&self.task(), &self.workbench(), &mut silent, &|| Duration::ZERO).map_err(|error| error.to_string())
    }
}

#[test]
fn builds_certifies_and_reads_with_evidence() {
    let bench = Bench::new("");
    let outcome = bench.build().unwrap();
    let figures = outcome.evaluation.extract.as_ref().unwrap();
    let rungs: Vec<(Stage, f64)> = outcome.rungs.iter().map(|rung| (rung.rung, rung.value)).collect();
    assert_eq!(outcome.rung, Stage::Span);
    assert_eq!((rungs[0].0, rungs[1].0), (Stage::Lookup, Stage::Span));
    assert!(rungs[1].1 > 0.97 && rungs[0].1 < 0.8, "words alone must not do: {rungs:?}");
    assert_eq!(outcome.value, figures.field_f1.value);
    assert!(figures.exact_match.value <= figures.field_f1.value && figures.span_f1.value > 0.97);
    assert_eq!(figures.alignment.as_ref().unwrap().unplaced, 0);
    assert!(outcome.certificate.is_some(), "{:?}", outcome.notes);
    assert_eq!(outcome.held, Some(true));
    let wrong = 1.0 - figures.exact_match.value;
    assert!(outcome.test_loss.unwrap() <= wrong + 1e-9, "no more is accepted and wrong than is wrong");
    assert!(outcome.evaluation.per_class.iter().all(|class| ["bought", "price"].contains(&class.label.as_str())));

    let specialist = Specialist::open(&outcome.path).unwrap();
    let manifest = specialist.manifest();
    assert_eq!(
        (manifest.kind, manifest.labels.as_slice()),
        (Kind::Extract, ["bought", "price"].map(str::to_owned).as_slice())
    );
    let own = bench.encoder.tuned(&specialist.encoder_file().unwrap().0).unwrap();
    for row in specialist.probe() {
        let reading = specialist.read(&own, &bench.pool, &[row.text.as_str()]).unwrap().unwrap().remove(0);
        let answer = specialist.answer_of(&reading);
        assert_eq!((answer.label, answer.score), (row.label.clone(), row.score), "alone as in the batch of the build");
    }
    let text = "the cat buy elk fox of pay 7 hen";
    let reading = specialist.read(&own, &bench.pool, &[text]).unwrap().unwrap().remove(0);
    assert_eq!(reading.answer, Ok(json!({"bought": "elk fox", "price": 7})));
    let evidence =
        reading.evidence(specialist.schema().unwrap(), manifest.scores.as_ref().unwrap(), &manifest.inputs, text);
    assert_eq!(
        (&evidence[1]["start"], &evidence[1]["end"], &evidence[1]["text"]),
        (&json!(27), &json!(28), &json!("7"))
    );
    assert!(evidence.as_array().unwrap().iter().all(|found| found["score"].as_f64().is_some_and(|score| score > 0.5)));
    assert_eq!(specialist.answer("cat", None), Err(AnswerError::NoLabels("purchases".to_owned())));

    // The figures again, from disk.
    let (columns, test) = (vec!["text".to_owned()], bench.dir.path().join("test.jsonl"));
    let columns = Columns::new(&columns, "output");
    let report = evaluate(&specialist, Some(&bench.encoder), &bench.pool, &test, &columns, 1, &mut silent).unwrap();
    assert_eq!((report.value, report.accuracy.value), (outcome.value, outcome.evaluation.accuracy.value));
    // The files that people read are there and speak of fields.
    let card = fs::read_to_string(outcome.path.join("CARD.md")).unwrap();
    assert!(card.contains("extract, 2 fields") && card.contains("Weakest fields"), "{card}");
    assert!(fs::read_to_string(outcome.path.join("report.html")).unwrap().contains("Fields, weakest first"));
    let run: Value = serde_json::from_str(&fs::read_to_string(outcome.path.join("run.json")).unwrap()).unwrap();
    assert!(run["evaluation"]["extract"]["lookup_f1"]["value"].as_f64().is_some());
}

#[test]
fn the_same_plan_and_seed_give_the_same_bundle() {
    let bench = Bench::new("");
    let task = fs::read_to_string(bench.dir.path().join("task.toml")).unwrap().replace("epochs = 8", "epochs = 1");
    fs::write(bench.dir.path().join("task.toml"), task).unwrap();
    assert_eq!(bench.build().unwrap().bundle, bench.build().unwrap().bundle);
}

#[test]
fn says_what_is_wrong_with_answers_and_counts_what_stands_nowhere() {
    let bench = Bench::new("");
    let path = bench.dir.path().join("train.jsonl");
    let good = fs::read_to_string(&path).unwrap();
    let with = |row: Value| fs::write(&path, format!("{good}{row}\n")).unwrap();
    with(json!({"text": "a cat", "output": {"price": "seven"}, "channel": "mail"}));
    let error = bench.build().unwrap_err();
    assert!(
        error.ends_with("train.jsonl:401: the answer does not meet the schema: `price` cannot be \"seven\""),
        "{error}"
    );
    with(json!({"text": "a cat", "output": {"bought": "unicorn"}, "channel": "mail"}));
    let plan = plan(&bench.task(), &bench.workbench(), &|| Duration::ZERO).unwrap();
    let alignment = plan.alignment.unwrap();
    assert_eq!((alignment.unplaced, alignment.unplaced_rows), (1, 1));
    assert_eq!(alignment.listed[0].1, "bought");
    assert!(plan.labels.is_empty());

    let workbench = Workbench { encoder: None, ..bench.workbench() };
    let error = build(&bench.task(), &workbench, &mut silent, &|| Duration::ZERO).unwrap_err().to_string();
    assert!(error.contains("an extraction is made over an encoder, and there is none"), "{error}");
}
