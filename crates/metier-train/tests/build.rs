//! The whole way from rows to a bundle that answers, on rows made here and an encoder of forty lines.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{collections::BTreeMap, error::Error, fs, path::Path, time::Duration};

use metier_kernels::{Pool, Tier};
use metier_model::{
    BaseId, Digest, Encoder, EncoderWeights, Progress, Specialist, SpecialistStore,
    progress::silent,
    specialist::{Contents, bundle, manifest::Stage, mix},
    tiny,
};
use metier_train::{
    BuildOutcome, Embed, TaskFile, Workbench, build,
    craft::encoder::Recipe as Tuning,
    data::table::{self, Columns},
    eval::card,
    evaluate, plan,
};

const DIM: usize = 24;

/// [`WordHashes`] with weights in another form: near vectors, and another base.
struct Rounded;

impl Embed for Rounded {
    fn dim(&self) -> usize {
        DIM
    }

    fn base(&self) -> BaseId {
        let digest = Digest::of(b"word hashes in 8 bits");
        BaseId { digest, weights: Some(EncoderWeights::Int8), ..WordHashes.base() }
    }

    fn embed_all(
        &self,
        pool: &Pool,
        texts: &[&str],
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Vec<Vec<f32>>, Box<dyn Error + Send + Sync>> {
        WordHashes.embed_all(pool, texts, progress)
    }
}

/// Sums a hashed direction for each word: near texts share words.
struct WordHashes;

impl Embed for WordHashes {
    fn dim(&self) -> usize {
        DIM
    }

    fn base(&self) -> BaseId {
        BaseId { name: "word-hashes".to_owned(), digest: Digest::of(b"word hashes"), weights: None }
    }

    fn embed_all(
        &self,
        _: &Pool,
        texts: &[&str],
        _: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Vec<Vec<f32>>, Box<dyn Error + Send + Sync>> {
        let embed = |text: &&str| {
            let mut sum = [0.0f32; DIM];
            for word in text.split_whitespace() {
                let seed = word.bytes().fold(7, |h, b| mix(h ^ u64::from(b)));
                sum.iter_mut().enumerate().for_each(|(d, v)| *v += (mix(seed ^ d as u64) >> 40) as f32 / 8e6 - 1.0);
            }
            let norm = sum.iter().map(|v| v * v).sum::<f32>().sqrt().max(1e-6);
            sum.iter().map(|v| v / norm).collect()
        };
        Ok(texts.iter().map(embed).collect())
    }
}

/// `n` rows of four topics; a share of them with words of another topic and so hard or wrong.
fn rows(n: usize, from: u64) -> String {
    const TOPICS: [(&str, [&str; 6]); 4] = [
        ("billing", ["invoice", "charged", "refund", "payment", "receipt", "amount"]),
        ("delivery", ["parcel", "courier", "tracking", "late", "address", "driver"]),
        ("login", ["password", "account", "locked", "email", "code", "signin"]),
        ("none", ["weather", "job", "hello", "newsletter", "lunch", "parking"]),
    ];
    const FILLERS: [&str; 12] =
        ["my", "the", "again", "please", "today", "since", "monday", "never", "help", "still", "with", "about"];
    let mut csv = "text,label,channel\n".to_owned();
    for i in 0..n as u64 {
        let mut state = mix(from + i);
        let mut pick = |n: usize| {
            state = mix(state.wrapping_add(0x9e37_79b9_7f4a_7c15));
            (state % n as u64) as usize
        };
        let topic = pick(4);
        let (label, words) = TOPICS[topic];
        let mut text = Vec::new();
        for _ in 0..2 + pick(3) {
            let other = TOPICS[pick(4)].1;
            text.push(if pick(5) == 0 { other[pick(6)] } else { words[pick(6)] });
            text.push(FILLERS[pick(12)]);
        }
        csv += &format!("{} {},{label},{}\n", text.join(" "), from + i, ["mail", "chat"][pick(2)]);
    }
    csv
}

struct Bench {
    dir: tempfile::TempDir,
    store: SpecialistStore,
    pool: Pool,
}

impl Bench {
    fn new(extra: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("train.csv"), rows(900, 0)).unwrap();
        fs::write(dir.path().join("test.csv"), rows(300, 1 << 20)).unwrap();
        let task = format!(
            "name = \"topics\"\nkind = \"classify\"\n[data]\ntrain = \"train.csv\"\ntest = \"test.csv\"\nout_of_scope = \"none\"\n{extra}"
        );
        fs::write(dir.path().join("task.toml"), task).unwrap();
        let store = SpecialistStore::open(&dir.path().join("store")).unwrap();
        Self { store, pool: Pool::new(2, Tier::detect()), dir }
    }

    fn task(&self) -> TaskFile {
        TaskFile::read(&self.dir.path().join("task.toml"), &|_| None).unwrap()
    }

    fn build(&self, encoder: Option<&dyn Embed>, seed: u64) -> BuildOutcome {
        self.build_with(encoder, seed, Tuning::default())
    }

    fn build_with(&self, encoder: Option<&dyn Embed>, seed: u64, tuning: Tuning) -> BuildOutcome {
        let bench = Workbench {
            teacher: None,
            encoder,
            pool: &self.pool,
            store: &self.store,
            seed,
            tuning,
            decoders: Vec::new(),
        };
        build(&self.task(), &bench, &mut silent, &|| Duration::ZERO).unwrap()
    }
}

const EASY: &str = "[target]\nepsilon = 0.08\ndelta = 0.1\n";

#[test]
fn builds_stores_opens_and_answers() {
    let bench = Bench::new(EASY);
    let outcome = bench.build(Some(&WordHashes), 1);
    let rungs = [Stage::Linear, Stage::Head, Stage::Both];
    assert_eq!(outcome.rungs.iter().map(|rung| rung.rung).collect::<Vec<_>>(), rungs);
    assert!(outcome.value > 0.75 && outcome.interval[0] < outcome.value, "{} {:?}", outcome.value, outcome.interval);
    let certificate = outcome.certificate.expect("about 90 calibration rows carry ε = 0.08");
    assert!(certificate.coverage > 0.2 && outcome.held == Some(true), "{certificate:?} {:?}", outcome.test_loss);
    assert_eq!(bench.store.list().unwrap(), [("topics".to_owned(), outcome.bundle, outcome.path.clone())]);
    assert_eq!(bench.store.current("topics"), None, "what answers is the registry's to say");
    let run = fs::read_to_string(outcome.path.join("run.json")).unwrap();
    let read: BuildOutcome = serde_json::from_str(&run).unwrap();
    let again = card::render(&Specialist::open(&outcome.path).unwrap(), &read, None);
    assert_eq!(fs::read_to_string(outcome.path.join(card::CARD)).unwrap(), again, "the card can be made from it again");

    let specialist = Specialist::open(&outcome.path).unwrap();
    assert_eq!((specialist.id(), specialist.manifest().stage), (outcome.bundle, outcome.rung));
    assert_eq!(specialist.centroids().len(), 3, "none-of-these has no centroid");
    let text = "payment refund invoice charged";
    let embedding = WordHashes.embed_all(&bench.pool, &[text], &mut silent).unwrap().remove(0);
    let answer = specialist.answer(text, Some(&embedding)).unwrap();
    assert_eq!((answer.label.as_str(), answer.stage.as_str()), ("billing", outcome.rung.name()));
    assert_eq!(answer.accepted, answer.score >= certificate.threshold);
    assert_eq!(answer.top.len(), 4);

    // What lies on disk answers as what was measured: the probe rows have the same labels and bits.
    assert_eq!(specialist.probe().len(), 64);
    for row in specialist.probe() {
        let embedding = WordHashes.embed_all(&bench.pool, &[&row.text], &mut silent).unwrap().remove(0);
        let again = specialist.answer(&row.text, Some(&embedding)).unwrap();
        assert_eq!((again.label, again.score.to_bits()), (row.label.clone(), row.score.to_bits()));
    }
    for file in bundle::BESIDE {
        let text = fs::read_to_string(outcome.path.join(file)).unwrap();
        assert!(text.contains("topics"), "{file} names the specialist");
    }
}

#[test]
fn the_same_plan_makes_the_same_bundle() {
    let (one, two) = (Bench::new(EASY), Bench::new(EASY));
    let first = one.build(Some(&WordHashes), 1);
    assert_eq!(first.bundle, two.build(Some(&WordHashes), 1).bundle, "other folder, same bytes");
    assert_eq!(first.bundle, one.build(Some(&WordHashes), 1).bundle, "built twice into one store");
    assert_eq!(one.store.list().unwrap().len(), 1);
    let other = one.build(Some(&WordHashes), 2);
    assert_ne!(first.bundle, other.bundle, "the seed is part of the plan");
    assert_eq!(one.store.list().unwrap().len(), 2);
}

#[test]
fn evaluating_the_test_file_repeats_the_figures_of_the_build() {
    let bench = Bench::new(EASY);
    let outcome = bench.build(Some(&WordHashes), 1);
    let specialist = Specialist::open(&outcome.path).unwrap();
    let text = ["text".to_owned()];
    let columns = Columns::new(&text, "label");
    let file = bench.dir.path().join("test.csv");
    let report = |encoder| evaluate(&specialist, encoder, &bench.pool, &file, &columns, 1, &mut silent);
    assert_eq!(report(Some(&WordHashes)).unwrap(), outcome.evaluation);
    if specialist.needs_embedding() {
        let error = report(None).unwrap_err().to_string();
        assert_eq!(
            error,
            "specialist `topics` cannot answer: it reads embeddings of `word-hashes`, and there is no encoder"
        );
        let error = report(Some(&Rounded)).unwrap_err().to_string();
        let why = "made with the encoder `word-hashes` in f32, which is kept in int8 here: set `encoder_weights = \"f32\"`, or build it again";
        assert_eq!(error, format!("specialist `topics` cannot answer: {why}"));
    }
}

#[test]
fn without_an_encoder_the_ngram_rung_stands_alone() {
    let bench = Bench::new(EASY);
    let outcome = bench.build(None, 1);
    assert_eq!(outcome.rungs.len(), 1);
    let specialist = Specialist::open(&outcome.path).unwrap();
    assert!(!specialist.needs_embedding() && specialist.centroids().is_empty() && specialist.manifest().base.is_none());
    assert_eq!(specialist.answer("password locked account", None).unwrap().label, "login");
}

#[test]
fn what_the_rows_cannot_carry_is_refused_and_everything_deferred() {
    let bench = Bench::new("[target]\nepsilon = 0.001\ndelta = 0.05\n");
    let outcome = bench.build(None, 1);
    assert_eq!((outcome.certificate, outcome.test_loss, outcome.held), (None, None, None));
    assert_eq!(outcome.rows_needed, Some(2995));
    let json = serde_json::to_value(&outcome).unwrap();
    assert!(json["certificate"].is_null() && json["rows_needed"] == 2995);
    let specialist = Specialist::open(&outcome.path).unwrap();
    let answer = specialist.answer("password locked account", None).unwrap();
    assert!(!answer.accepted && answer.threshold.is_none());
    assert!(outcome.notes.iter().any(|note| note.contains("needs about 2995")), "{:?}", outcome.notes);
    let dry = plan(
        &bench.task(),
        &Workbench {
            teacher: None,
            encoder: None,
            pool: &bench.pool,
            store: &bench.store,
            seed: 1,
            tuning: Tuning::default(),
            decoders: Vec::new(),
        },
        &|| Duration::ZERO,
    );
    let dry = dry.unwrap();
    assert_eq!((dry.rows_needed, dry.enough, &dry.rows), (Some(2995), false, &outcome.rows));
}

#[test]
fn every_flipped_byte_of_a_bundle_is_found() {
    let bench = Bench::new(EASY);
    let outcome = bench.build(Some(&WordHashes), 1);
    let files: BTreeMap<String, Vec<u8>> = fs::read_dir(&outcome.path)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .filter(|(name, _)| !bundle::BESIDE.contains(&name.as_str()))
        .collect();
    assert!(files.len() >= 5);
    for (name, bytes) in &files {
        let path = outcome.path.join(name);
        for at in [0, bytes.len() / 3, bytes.len() - 1] {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            fs::write(&path, flipped).unwrap();
            let error = Specialist::open(&outcome.path).expect_err("a flipped byte").to_string();
            assert!(name == "specialist.toml" || error.contains(name.as_str()), "{error} does not name {name}");
        }
        fs::remove_file(&path).unwrap();
        let error = Specialist::open(&outcome.path).expect_err("a missing file").to_string();
        assert!(error.contains("lacks") && error.contains(name.as_str()), "{error}");
        fs::write(&path, bytes).unwrap();
    }
    Specialist::open(&outcome.path).expect("whole again");
    fs::write(outcome.path.join("extra.bin"), b"x").unwrap();
    let error = Specialist::open(&outcome.path).expect_err("an unknown file").to_string();
    assert!(error.contains("holds `extra.bin`"), "{error}");
    fs::remove_file(outcome.path.join("extra.bin")).unwrap();
    let other = outcome.path.with_file_name(Digest::of(b"other").to_string());
    fs::rename(&outcome.path, &other).unwrap();
    let error = Specialist::open(&other).expect_err("another name").to_string();
    assert!(error.contains("is not the folder's name"), "{error}");
}

#[test]
fn dead_writers_are_swept_and_living_ones_are_not() {
    let bench = Bench::new(EASY);
    let dead = bench.store.root().join(".staging-1-0");
    fs::create_dir(&dead).unwrap();
    fs::write(dead.join("half.bin"), b"half").unwrap();
    let living = bench.store.stage().unwrap();
    SpecialistStore::open(bench.store.root()).unwrap();
    assert!(!dead.exists() && living.dir().exists());
    let place = living.dir().to_owned();
    let error = bench.store.add(living, "topics").expect_err("nothing was written").to_string();
    assert!(error.contains("cannot add a bundle") && !place.exists());
    assert!(bench.store.list().unwrap().is_empty() && bench.store.current("topics").is_none());
    assert!(bench.store.current("../topics").is_none());
    assert!(Path::new(bench.store.root()).exists());
}

/// The rows of [`rows`] with two columns more: a customer of about five rows, and what an LLM would have said, right in 19 of 20.
fn with_columns(csv: &str) -> String {
    let mut lines = csv.lines();
    let mut out = format!("{},customer,llm\n", lines.next().unwrap());
    for (at, line) in lines.enumerate() {
        let label = line.split(',').nth(1).unwrap();
        let answer = if mix(at as u64).is_multiple_of(20) { "login" } else { label };
        out += &format!("{line},c{},{answer}\n", mix(at as u64 ^ 77) % 180);
    }
    out
}

#[test]
fn the_report_answers_with_yes_no_or_cannot_tell() {
    let bench = Bench::new(&format!("slice = \"channel\"\n[reference]\ncolumn = \"llm\"\n{EASY}"));
    for (name, from, n) in [("train.csv", 0, 900), ("test.csv", 1 << 20, 300)] {
        fs::write(bench.dir.path().join(name), with_columns(&rows(n, from))).unwrap();
    }
    let outcome = bench.build(None, 1);
    let curve = outcome.learning_curve.as_ref().expect("the clock stands still");
    assert_eq!(curve.points.len(), 4);
    let chosen = outcome.rungs.iter().find(|rung| rung.rung == outcome.rung).unwrap();
    assert_eq!(curve.points[3].value, chosen.validation, "the last point is the rung that ships");
    let ns: Vec<u64> = curve.points.iter().map(|point| point.n).collect();
    assert!(ns.windows(2).all(|pair| pair[1] == pair[0] * 2 || pair[1].abs_diff(pair[0] * 2) <= 2), "{ns:?}");
    assert!(curve.points[0].value < curve.points[3].value, "{curve:?}");
    assert!(curve.forecasts.iter().all(|forecast| forecast.n <= 4 * ns[3]));

    let slices: Vec<_> = outcome.evaluation.slices.iter().map(|s| (s.column.as_str(), s.value.as_str())).collect();
    assert_eq!(slices, [("channel", "chat"), ("channel", "mail")], "`customer` was not named");
    assert_eq!(outcome.evaluation.slices.iter().map(|slice| slice.n).sum::<u64>(), 300);
    let test = outcome.evaluation.against_reference.expect("there is a reference");
    let reference = outcome.evaluation.reference_accuracy.unwrap();
    assert!((test.difference - (outcome.evaluation.accuracy.value - reference.value)).abs() < 1e-9);
    let questions: Vec<&str> = outcome.findings.iter().map(|finding| finding.question.as_str()).collect();
    for word in
        ["certificate hold", "as good as the reference", "every slice", "like the calibration rows", "more rows"]
    {
        assert!(questions.iter().any(|question| question.contains(word)), "{word}: {questions:?}");
    }
    assert!(!outcome.failures.is_empty() && outcome.failures.iter().is_sorted_by_key(|row| !row.accepted));
    assert!(outcome.failures[0].place.contains("test.csv:"), "{:?}", outcome.failures[0]);
    let report = fs::read_to_string(outcome.path.join("report.html")).unwrap();
    for part in ["What these rows allow to say", "Would more rows help?", "Known failures", "@media print", "<svg"] {
        assert!(report.contains(part), "{part}");
    }
    assert!(!report.contains("<script") && !report.contains("http"), "nothing is fetched");
    let card = fs::read_to_string(outcome.path.join("CARD.md")).unwrap();
    for part in ["What is it for?", "May it be used?", "What are its limits?", "Weakest labels"] {
        assert!(card.contains(part), "{part}");
    }

    // Rows of one customer count together.
    let task = fs::read_to_string(bench.dir.path().join("task.toml")).unwrap();
    let grouped = task.replace("slice = \"channel\"", "slice = \"channel\"\ngroup = \"customer\"");
    fs::write(bench.dir.path().join("task.toml"), grouped).unwrap();
    let outcome = bench.build(None, 1);
    let groups = outcome.evaluation.groups.expect("customers have several rows");
    assert!(groups.n > 100 && groups.design_effect >= 1.0, "{groups:?}");
    assert!(
        outcome.notes.iter().any(|note| note.contains("come in") && note.contains("groups")),
        "{:?}",
        outcome.notes
    );
    assert_eq!(outcome.learning_curve.map(|curve| curve.points.len()), Some(4));
}

/// A budget that is over leaves the curve out and says so; no bundle holds one.
#[test]
fn without_time_there_is_no_learning_curve_and_the_bundle_holds_none() {
    let bench = Bench::new(&format!("{EASY}[budget]\nminutes = 1e-9\n"));
    let with = bench.build(None, 1);
    let workbench = Workbench {
        teacher: None,
        encoder: None,
        pool: &bench.pool,
        store: &bench.store,
        seed: 1,
        tuning: Tuning::default(),
        decoders: Vec::new(),
    };
    let ticks = std::cell::Cell::new(0u64);
    let clock = || {
        ticks.set(ticks.get() + 1);
        Duration::from_millis(ticks.get())
    };
    let without = build(&bench.task(), &workbench, &mut silent, &clock).unwrap();
    assert!(without.learning_curve.is_none() && without.notes.iter().any(|note| note.contains("no learning curve")));
    // The grid ended early too, so the bundles may differ there; the curve itself lies beside the bundle.
    assert!(with.learning_curve.is_some());
    let evidence = fs::read_to_string(with.path.join("evidence.json")).unwrap();
    assert!(!evidence.contains("learning"), "what took time is no property of the specialist");
}

/// Rows whose class is whether two words far from each other are of one kind: no sum over n-grams tells it, nor over frozen vectors.
fn pairs(n: usize, from: u64) -> String {
    const KINDS: [[&str; 2]; 2] = [["ant", "bee"], ["cat", "dog"]];
    const FILLERS: [&str; 4] = ["the", "a", "of", "in"];
    let mut csv = "text,label\n".to_owned();
    for i in 0..n as u64 {
        let h = mix(from + i);
        let pick = |shift: u32, n: u64| ((h >> shift) % n) as usize;
        let (left, right) = (pick(0, 2), pick(7, 2));
        let fillers: Vec<&str> = (0..3).map(|j| FILLERS[pick(20 + 4 * j, 4)]).collect();
        let words = [KINDS[left][pick(40, 2)], fillers[0], fillers[1], fillers[2], KINDS[right][pick(50, 2)]];
        csv += &format!(
            "{} {},{}\n",
            words.join(" "),
            FILLERS[pick(33, 4)].repeat(1 + pick(60, 3)),
            ["same", "other"][usize::from(left != right)]
        );
    }
    csv
}

/// The same specialist with a head on the frozen encoder's vectors added: what is read is both, one behind the other, on the way into a store and
/// out of it, and when a file is scored.
fn reads_the_frozen_encoder_too(
    bundle: &Path,
    encoder: &Encoder,
    pool: &Pool,
    store: &SpecialistStore,
    (file, columns): (&Path, &Columns<'_>),
) {
    let mut contents = Specialist::open(bundle).unwrap().into_contents();
    let n_classes = contents.manifest.labels.len();
    let tail: Vec<f32> = (0..encoder.dim() * n_classes).map(|i| (mix(i as u64) % 200) as f32 / 5.0 - 20.0).collect();
    contents.head = contents.head.map(|head| head.blended(1.0, &vec![0.0; n_classes], &tail));
    contents.manifest.reads_base = true;
    let name = contents.manifest.name.clone();
    let opened = |contents: &Contents| Specialist::open(&store.place(&name, store.add_contents(contents).unwrap()));
    let specialist = opened(&contents).unwrap();
    assert!(specialist.reads_base());
    let own = encoder.tuned(&specialist.encoder_file().unwrap().0).unwrap();
    let rows = table::read(file, columns).unwrap();
    let right = rows.iter().filter(|row| {
        let embed = |encoder: &Encoder| encoder.embed(pool, &[row.text.as_str()]).unwrap().remove(0);
        let vector = [embed(&own), embed(encoder)].concat();
        specialist.answer(&row.text, Some(&vector)).unwrap().label == row.label
    });
    let right = right.count() as f64 / rows.len() as f64;
    let report = evaluate(&specialist, Some(encoder), pool, file, columns, 1, &mut silent).unwrap();
    assert!((report.accuracy.value - right).abs() < 0.011, "{} {right}", report.accuracy.value);
    // Random weights answer at random: the frozen vectors are read.
    assert!(right < 0.8, "{right}");
    let error = evaluate(&specialist, None, pool, file, columns, 1, &mut silent).unwrap_err();
    assert!(error.to_string().contains("there is no encoder"), "{error}");
    // A stage without a network of its own has nothing to put it behind.
    contents.encoder = None;
    contents.manifest.stage = if contents.features.is_some() { Stage::Both } else { Stage::Head };
    let error = format!("{:?}", store.add_contents(&contents).unwrap_err());
    assert!(error.contains("there are not both"), "{error}");
}

/// A task that only the tuned encoder can do: it is chosen, ships its own layers, and answers from disk as it was measured.
#[test]
fn a_tuned_encoder_ships_its_layers() {
    let bench = Bench::new("[budget]\nminutes = 500000");
    fs::write(bench.dir.path().join("train.csv"), pairs(800, 0)).unwrap();
    fs::write(bench.dir.path().join("test.csv"), pairs(200, 1 << 20)).unwrap();
    let task = fs::read_to_string(bench.dir.path().join("task.toml")).unwrap().replace("out_of_scope = \"none\"\n", "");
    fs::write(bench.dir.path().join("task.toml"), &task).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let words = ["ant", "bee", "cat", "dog", "the", "a", "of", "in", "##the", "##a", "##of", "##in"];
    tiny::bert_folder(folder.path(), &words, 2, 3).unwrap();
    let encoder = Encoder::open(folder.path()).unwrap();
    let tuning = Tuning { epochs: 24, learning_rate: 3e-3, batch_rows: 32, patience: 24, ..Tuning::default() };
    let store = SpecialistStore::open(&bench.dir.path().join("planned")).unwrap();
    let workbench = Workbench {
        teacher: None,
        encoder: Some(&encoder),
        pool: &bench.pool,
        store: &store,
        seed: 1,
        tuning: tuning.clone(),
        decoders: Vec::new(),
    };
    let ticks = std::cell::Cell::new(0u64);
    let clock = || {
        ticks.set(ticks.get() + 1);
        Duration::from_millis(ticks.get())
    };
    let [planned] = plan(&bench.task(), &workbench, &clock).unwrap().rungs.try_into().unwrap();
    assert!(planned.rung == Stage::Tuned && planned.fits && planned.minutes > 0.0, "{planned:?}");
    assert_eq!(planned.epochs, 24);
    let outcome = bench.build_with(Some(&encoder), 1, tuning.clone());
    let rungs: Vec<(Stage, f64)> = outcome.rungs.iter().map(|rung| (rung.rung, rung.value)).collect();
    assert_eq!(outcome.rung, Stage::Tuned, "{rungs:?}");
    assert!(outcome.value > 0.9, "{rungs:?}");

    let specialist = Specialist::open(&outcome.path).unwrap();
    let record = specialist.manifest().recipe.rungs.last().unwrap().tuning.clone().unwrap();
    assert_eq!((record.batch_rows, record.smoothing), (32, 0.1));
    let file = specialist.encoder_file().unwrap();
    let own = encoder.tuned(&file.0).unwrap();
    for row in specialist.probe() {
        let vector = own.embed(&bench.pool, &[row.text.as_str()]).unwrap().remove(0);
        let answer = specialist.answer(&row.text, Some(&vector)).unwrap();
        assert_eq!((answer.label, answer.score), (row.label.clone(), row.score));
    }
    // The figures again, from disk; a base without layers to change is refused.
    let text = vec!["text".to_owned()];
    let columns = Columns::new(&text, "label");
    let test = bench.dir.path().join("test.csv");
    let report = evaluate(&specialist, Some(&encoder), &bench.pool, &test, &columns, 1, &mut silent).unwrap();
    assert_eq!(report.value, outcome.value);
    let told = fs::read_to_string(outcome.path.join(card::CARD)).unwrap();
    assert!(told.contains("the embedding of an encoder that was tuned for this task"), "{told}");
    reads_the_frozen_encoder_too(&outcome.path, &encoder, &bench.pool, &store, (&test, &columns));

    // Where the task says so, the rung does not run.
    fs::write(bench.dir.path().join("task.toml"), task.replace("minutes = 500000", "up_to = \"both\"")).unwrap();
    let outcome = bench.build_with(Some(&encoder), 1, tuning.clone());
    assert_eq!(outcome.rungs.last().unwrap().rung, Stage::Both);

    // A rung that comes to nothing leaves the others: once a build failed here, with all of them made.
    fs::write(bench.dir.path().join("task.toml"), &task).unwrap();
    let outcome = bench.build_with(Some(&encoder), 2, Tuning { learning_rate: 1e30, ..tuning });
    assert_eq!(outcome.rungs.last().unwrap().rung, Stage::Both);
    let notes = outcome.notes.join("\n");
    assert!(notes.contains("rung `tuned` was not made: training diverged"), "{notes}");
}
