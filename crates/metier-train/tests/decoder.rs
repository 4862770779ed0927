//! Heads on a decoder under an adapter: trained, pruned, healed, killed, served. The decoder is the tiny one of `metier-model`.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests; they print what they measured")]

use std::{cell::Cell, fs, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use metier_kernels::{Pool, Tier};
use metier_model::{
    Decoder, Digest, Encoder, LoraFormat, Progress, Specialist, SpecialistStore, TokenId,
    engine::KeptLayers,
    format::TensorType,
    progress::silent,
    specialist::{AdapterFiles, manifest::Stage, mix},
    tiny,
};
use metier_train::{
    BuildOutcome, Embed, TaskFile, Workbench, build, build_generator,
    craft::{
        checkpoint::Keeper,
        decoder::{Criterion, Plan, Recipe, Rows, Run, Trained, Tuner},
        encoder,
        reading::{self, Reader},
    },
    grad::{
        Segments,
        llama::{LoraConfig, Pass},
    },
    plan,
};

/// Share of a unit vector's length by which trainer and engine may differ: deltas are served in 16 bits, sums run in another order.
const UNIT: f32 = 5e-3;

const WORDS: [&str; 8] = ["ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen"];

fn pool() -> Pool {
    Pool::new(2, Tier::detect())
}

fn decoder(dtype: TensorType) -> Arc<Decoder> {
    let weights = if dtype == TensorType::F32 {
        metier_model::engine::WeightFormat::F32
    } else {
        metier_model::engine::WeightFormat::AsFile
    };
    Arc::new(Decoder::from_bytes(tiny::gguf_with(3, dtype), "tiny", weights).unwrap())
}

fn recipe() -> Recipe {
    Recipe {
        lora: LoraConfig { r: 4, alpha: 8.0 },
        epochs: 24,
        heal_epochs: 12,
        depths: vec![0.5],
        step_tokens: 100,
        learning_rate: 1e-2,
        head_learning_rate: 1e-2,
        patience: 24,
        ..Recipe::default()
    }
}

/// Which of four pairs of words a row holds, among letters that say nothing.
fn texts(n: usize, from: usize) -> (Vec<String>, Vec<usize>) {
    (from..from + n)
        .map(|i| {
            let h = mix(i as u64 + 5);
            let class = (h % 4) as usize;
            let word = WORDS[2 * class + (h >> 40) as usize % 2];
            (format!("{} {word} {}", h >> 50, (h >> 30) % 100), class)
        })
        .unzip()
}

fn prompts(decoder: &Decoder, texts: &[String]) -> Vec<Vec<TokenId>> {
    reading::prompts(decoder, &texts.iter().map(String::as_str).collect::<Vec<_>>()).unwrap()
}

/// Vectors as the trainer has them.
fn trained_units(pool: &Pool, tuner: &Tuner, ids: &[Vec<TokenId>]) -> Vec<f32> {
    let net = tuner.net();
    let mut pass = Pass::default();
    let segments = Segments::of(ids.iter().map(Vec::len));
    net.forward(pool, &net.params.values, &ids.concat(), &segments, &mut pass);
    net.units(pool, &pass.hidden, segments.ranges().map(|range| range.end - 1).collect()).units
}

/// 32 rows are learnt by heart with all layers and, healed, with one; the engine gives the vectors that were trained, with the layers that
/// were kept, and every number that is trained moves.
#[test]
fn what_is_trained_is_what_is_served_at_every_depth() {
    let (pool, decoder, recipe) = (pool(), decoder(TensorType::F32), recipe());
    let (texts, classes) = texts(32, 0);
    let ids = prompts(&decoder, &texts);
    let rows = Rows { ids: &ids, classes: &classes };
    let run = Run { pool: &pool, seed: 3, clock: &|| Duration::ZERO };
    let mut tuner = Tuner::new(decoder.network().plain().unwrap(), 4, &recipe, 3);
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let mut sizes = Vec::new();
    for depth in [2, 1] {
        if depth == 1 {
            let weighed = tuner.influence(&pool, rows, 3);
            assert_eq!(weighed.iter().map(|layer| layer.layer).collect::<Vec<_>>(), [0, 1]);
            assert!(weighed.iter().all(|layer| layer.loss.is_finite() && (0.0..=1.0).contains(&layer.angle)));
            tuner.leave_out(&pool, rows, depth, &recipe, 3, &mut silent);
            let least = weighed.iter().min_by(|a, b| a.loss.total_cmp(&b.loss)).unwrap();
            assert_eq!(tuner.net().layers(), [1 - least.layer], "the one that does least is left out: {weighed:?}");
        }
        let before = tuner.net().params.clone();
        let trained =
            tuner.train(&run, rows, rows, &recipe, (&Plan::default(), recipe.epochs), None, &mut silent).unwrap();
        let best = trained.epochs.iter().find(|epoch| epoch.epoch == trained.best).unwrap();
        assert!(best.validation >= 0.97, "{depth}: {:?}", trained.epochs);
        for tensor in before.tensors() {
            let range = tensor.range.clone();
            let (old, new) = (&before.values[range.clone()], &tuner.net().params.values[range]);
            assert!(old.iter().zip(new).any(|(a, b)| (a - b).abs() > 1e-4), "`{}` hardly moved", tensor.name);
        }
        let (config, weights) = tuner.files("tiny");
        sizes.push(weights.len());
        let files = AdapterFiles { config, weights: Arc::new(weights) };
        let kept = KeptLayers::new(tuner.net().layers().to_vec());
        let mut reader = Reader::new(Arc::clone(&decoder), &files, kept, LoraFormat::F16).unwrap();
        let served = reader.read_all(&pool, &texts, "reading", &mut silent).unwrap();
        let expected = trained_units(&pool, &tuner, &ids);
        let far = served.concat().iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        eprintln!("{depth} layers: max |Δ| of unit vectors = {far:e}");
        assert!(far <= UNIT, "{depth} layers: {far}");
        let alone = reader.read_all(&pool, &texts[7..8], "reading", &mut silent).unwrap();
        assert_eq!(alone[0], served[7], "a text's vector does not depend on the others");
    }
    assert!(sizes[1] * 10 < sizes[0] * 6, "deltas of a layer that is gone are gone: {sizes:?}");
}

/// Killed at a step, whichever, a phase goes on from its last checkpoint and comes to the same numbers; one that is done stays done.
#[test]
fn killed_and_taken_up_it_is_the_same() {
    let (pool, decoder, recipe) = (pool(), decoder(TensorType::F32), Recipe { epochs: 5, ..recipe() });
    let (texts, classes) = texts(48, 0);
    let ids = prompts(&decoder, &texts);
    let rows = Rows { ids: &ids[..32], classes: &classes[..32] };
    let validation = Rows { ids: &ids[32..], classes: &classes[32..] };
    // Every look at this clock is a second later, so that every second step is kept.
    let ticks = Cell::new(0);
    let clock = || {
        ticks.set(ticks.get() + 1);
        Duration::from_secs(ticks.get())
    };
    let run = Run { pool: &pool, seed: 5, clock: &clock };
    let dir = tempfile::tempdir().unwrap();
    let keeper = || Keeper::new(dir.path(), "t", "decoder", Digest::of(b"plan"));
    let plan = Plan { epochs: recipe.epochs, depths: vec![1], predicted_seconds: 7.0 };
    let train = |keeper: Option<&mut Keeper>, progress: &mut dyn FnMut(Progress<'_>)| -> (Trained, Vec<f32>) {
        let mut tuner = Tuner::new(decoder.network().plain().unwrap(), 4, &recipe, 5);
        let trained = tuner.train(&run, rows, validation, &recipe, (&plan, plan.epochs), keeper, progress).unwrap();
        (trained, tuner.net().params.values.clone())
    };
    let whole = train(None, &mut silent);
    assert!(whole.0.steps.len() > 15 && whole.0.resumed_at.is_none());
    for kill_at in [0, 1, 3, 6, 7, 12] {
        let mut progress = |progress: Progress<'_>| assert!(progress.done < kill_at, "killed");
        let killed = std::panic::catch_unwind(AssertUnwindSafe(|| train(Some(&mut keeper()), &mut progress)));
        assert!(killed.is_err(), "killed at step {kill_at}");
        assert_eq!(Tuner::begun(&keeper()).unwrap().depths, plan.depths, "the plan is that of the first start");
    }
    let taken_up = train(Some(&mut keeper()), &mut silent);
    assert!(taken_up.0.resumed_at.unwrap() > 5, "{:?}", taken_up.0.resumed_at);
    assert_eq!((&taken_up.0.best, &taken_up.1), (&whole.0.best, &whole.1));
    let mut never = |_: Progress<'_>| panic!("there is nothing left to do");
    let done = train(Some(&mut keeper()), &mut never);
    assert_eq!((done.0.steps.len(), &done.1), (whole.0.steps.len(), &whole.1));
}

/// Both measures call a layer that does nothing the least.
#[test]
fn a_layer_that_does_nothing_is_left_out_first() {
    let (pool, decoder) = (pool(), decoder(TensorType::F32));
    let (texts, classes) = texts(32, 0);
    let ids = prompts(&decoder, &texts);
    let rows = Rows { ids: &ids, classes: &classes };
    for idle in [0, 1] {
        for by in [Criterion::Loss, Criterion::Angle] {
            let recipe = Recipe { by, ..recipe() };
            let mut plain = decoder.network().plain().unwrap();
            plain.layers[idle].output.fill(0.0);
            plain.layers[idle].down.fill(0.0);
            let mut tuner = Tuner::new(plain, 4, &recipe, 3);
            let weighed = tuner.influence(&pool, rows, 3);
            assert!(weighed[idle].loss.abs() < 1e-9 && weighed[idle].angle < 1e-3, "{weighed:?}");
            tuner.leave_out(&pool, rows, 1, &recipe, 3, &mut silent);
            if by == Criterion::Angle {
                assert_eq!(tuner.net().layers(), [1 - idle], "{weighed:?}");
            }
        }
    }
}

/// What is planned shrinks with the time: fewer depths, then fewer epochs, then nothing.
#[test]
fn what_does_not_fit_into_the_budget_is_not_planned() {
    let (pool, decoder, recipe) = (pool(), decoder(TensorType::F32), recipe());
    let (texts, classes) = texts(32, 0);
    let ids = prompts(&decoder, &texts);
    let rows = Rows { ids: &ids, classes: &classes };
    let ticks = Cell::new(0);
    let clock = || {
        ticks.set(ticks.get() + 1);
        Duration::from_secs(ticks.get())
    };
    let run = Run { pool: &pool, seed: 5, clock: &clock };
    let mut tuner = Tuner::new(decoder.network().plain().unwrap(), 4, &recipe, 5);
    let mut plan = |left: f64| tuner.plan(&run, rows, 100, &recipe, Duration::from_secs_f64(left));
    let all = plan(1e9).unwrap();
    assert_eq!((all.epochs, all.depths.as_slice()), (24, [1].as_slice()));
    let fewer = plan(all.predicted_seconds * 0.75).unwrap();
    assert!(fewer.depths.is_empty() && fewer.predicted_seconds <= all.predicted_seconds * 0.75, "{fewer:?}");
    let short = plan(fewer.predicted_seconds * 0.3).unwrap();
    assert!((1..24).contains(&short.epochs), "{short:?}");
    assert!(plan(1e-3).is_err());
}

struct Bench {
    dir: tempfile::TempDir,
    pool: Pool,
    decoder: Arc<Decoder>,
    others: Vec<Arc<Decoder>>,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let rows = |n: usize, from: usize| {
            let (texts, classes) = texts(n, from);
            let rows = texts.iter().zip(classes).map(|(text, class)| format!("{text},{}\n", WORDS[2 * class]));
            String::from("text,label\n") + &rows.collect::<String>()
        };
        let parts = [("train", 240, 0), ("val", 80, 1000), ("cal", 100, 2000), ("test", 80, 3000)];
        for (name, n, from) in parts {
            fs::write(dir.path().join(format!("{name}.csv")), rows(n, from)).unwrap();
        }
        let task = "name = \"beasts\"\nkind = \"classify\"\n[data]\ntrain = \"train.csv\"\nvalidation = \"val.csv\"\n\
            calibration = \"cal.csv\"\ntest = \"test.csv\"\n[target]\nepsilon = 0.1\nmargin = 0.1\n[budget]\nfrom = \"decoder\"\n\
            [tune]\nrank = 4\nlearning_rate = 1e-2\nepochs = 3\n[prune]\nkeep = [0.5]\nheal_epochs = 2\n";
        fs::write(dir.path().join("task.toml"), task).unwrap();
        Self { dir, pool: pool(), decoder: decoder(TensorType::Q4_1), others: Vec::new() }
    }

    fn build(&self, store: &str, progress: &mut dyn FnMut(Progress<'_>)) -> BuildOutcome {
        let store = SpecialistStore::open(&self.dir.path().join(store)).unwrap();
        // No time passes, so a checkpoint is due at the ends of epochs alone.
        build(&self.task(), &self.workbench(&store), progress, &|| Duration::ZERO).unwrap()
    }

    fn task(&self) -> TaskFile {
        TaskFile::read(&self.dir.path().join("task.toml"), &|_| None).unwrap()
    }

    fn decoders(&self) -> Vec<Arc<Decoder>> {
        std::iter::once(&self.decoder).chain(&self.others).cloned().collect()
    }

    fn workbench<'a>(&'a self, store: &'a SpecialistStore) -> Workbench<'a> {
        Workbench {
            teacher: None,
            encoder: None,
            pool: &self.pool,
            store,
            seed: 1,
            tuning: encoder::Recipe::default(),
            decoders: self.decoders(),
        }
    }
}

/// Rows → bundle: two depths, the smaller one good enough; read again, the bundle says what it said; killed, it comes to the same.
#[test]
fn a_pruned_specialist_is_built_and_answers() {
    let bench = Bench::new();
    let outcome = bench.build("whole", &mut silent);
    let depths: Vec<_> = outcome.rungs.iter().map(|rung| rung.decoder.clone().unwrap()).collect();
    assert_eq!(depths.iter().map(|depth| (depth.layers.len(), depth.of)).collect::<Vec<_>>(), [(1, 2), (2, 2)]);
    assert!(outcome.rungs.iter().all(|rung| rung.rung == Stage::Decoder));
    assert!(outcome.value > 0.9, "{} {:?}", outcome.value, outcome.rungs);
    assert_eq!(depths[1].against_all, None);
    assert!(depths[0].against_all.is_some() && depths[1].influence.len() == 2);
    assert_eq!(depths[0].kv_bytes_a_token * 2, depths[1].kv_bytes_a_token);
    assert!(depths[0].adapter_bytes < depths[1].adapter_bytes);
    let chosen = depths.iter().find(|depth| depth.is_chosen).unwrap();
    let training = outcome.training.as_ref().unwrap();
    assert!(training.epochs.len() == 3 && !training.steps.is_empty());

    let specialist = Specialist::open(&outcome.path).unwrap();
    let manifest = specialist.manifest();
    let hidden = manifest.hidden.as_ref().unwrap();
    assert_eq!((manifest.stage, hidden.decoder.digest), (Stage::Decoder, bench.decoder.base().digest));
    let kept = manifest.kept_layers();
    assert_eq!(kept.as_ref().map_or(2, |kept| kept.layers().len()), chosen.layers.len());
    let files = specialist.adapter_files().unwrap();
    let mut reader = Reader::new(Arc::clone(&bench.decoder), files, kept, LoraFormat::F16).unwrap();
    assert!(!specialist.probe().is_empty() && specialist.needs_embedding());
    for row in specialist.probe() {
        let vector = reader.read_all(&bench.pool, &[&row.text], "reading", &mut silent).unwrap().remove(0);
        let answer = specialist.answer(&row.text, Some(&vector)).unwrap();
        assert_eq!((&answer.label, answer.score), (&row.label, row.score), "{}", row.text);
    }

    let (inputs, test) = (["text".to_owned()], bench.dir.path().join("test.csv"));
    let columns = metier_train::data::Columns::new(&inputs, "label");
    let decoder = Arc::clone(&bench.decoder);
    let report =
        metier_train::evaluate_decoder(&specialist, decoder, None, &bench.pool, &test, &columns, 1, &mut silent)
            .unwrap();
    assert_eq!((report.value, report.n), (outcome.value, outcome.n));

    // The same with a head that reads a frozen encoder behind the decoder's row, whose weights are 0.
    let folder = tempfile::tempdir().unwrap();
    tiny::bert_folder(folder.path(), &WORDS, 1, 3).unwrap();
    let encoder = Encoder::open(folder.path()).unwrap();
    let mut contents = Specialist::open(&outcome.path).unwrap().into_contents();
    let n_classes = contents.manifest.labels.len();
    let nothing = vec![0.0; encoder.dim() * n_classes];
    contents.head = contents.head.map(|head| head.blended(1.0, &nothing[..n_classes], &nothing));
    contents.manifest.reads_base = true;
    contents.manifest.base = Some(encoder.base().clone());
    let store = SpecialistStore::open(&bench.dir.path().join("both")).unwrap();
    let id = store.add_contents(&contents).unwrap();
    let both = Specialist::open(&store.place(&contents.manifest.name, id)).unwrap();
    let evaluate = |encoder: Option<&dyn Embed>| {
        let decoder = Arc::clone(&bench.decoder);
        metier_train::evaluate_decoder(&both, decoder, encoder, &bench.pool, &test, &columns, 1, &mut silent)
    };
    let report = evaluate(Some(&encoder)).unwrap();
    assert_eq!((report.value, report.n), (outcome.value, outcome.n));
    assert!(evaluate(None).unwrap_err().to_string().contains("there is no encoder"));

    // Killed while all layers are trained, while layers are weighed, while it heals, while rows are read.
    for (stage, at) in [("tuning the decoder", 30), ("weighing layers", 0), ("tuning the decoder", 200), ("proving", 0)]
    {
        let mut seen = 0;
        let mut progress = |progress: Progress<'_>| {
            if progress.stage == stage {
                assert!(seen < at, "killed");
                seen += 1;
            }
        };
        let killed = std::panic::catch_unwind(AssertUnwindSafe(|| bench.build("killed", &mut progress)));
        assert!(killed.is_err() || stage == "tuning the decoder", "{stage}");
    }
    let again = bench.build("killed", &mut silent);
    assert_eq!(again.bundle, outcome.bundle);
    assert!(!bench.dir.path().join("killed/.work").exists(), "a build that is done leaves no checkpoint");
}

/// Without time for a decoder there is still something to answer with.
#[test]
fn without_time_there_is_a_linear_model() {
    let bench = Bench::new();
    let path = bench.dir.path().join("task.toml");
    let task = fs::read_to_string(&path).unwrap().replace("from = \"decoder\"", "from = \"decoder\"\nminutes = 1e-9");
    fs::write(path, task).unwrap();
    let store = SpecialistStore::open(&bench.dir.path().join("store")).unwrap();
    let task = TaskFile::read(&bench.dir.path().join("task.toml"), &|_| None).unwrap();
    let ticks = Cell::new(0);
    let clock = || {
        ticks.set(ticks.get() + 1);
        Duration::from_secs(ticks.get())
    };
    let workbench = bench.workbench(&store);
    let outcome = build(&task, &workbench, &mut silent, &clock).unwrap();
    assert_eq!(outcome.rung, Stage::Linear);
    // A plan says so beforehand; with time it says how much would be done.
    let rungs = |task: &TaskFile| plan(task, &workbench, &clock).unwrap().rungs;
    let [planned] = rungs(&task).try_into().unwrap();
    assert!((planned.rung, planned.fits) == (Stage::Decoder, false) && planned.minutes > 0.0, "{planned:?}");
    let [planned] = rungs(&TaskFile { budget_minutes: 500_000.0, ..task.clone() }).try_into().unwrap();
    assert!(planned.fits && planned.minutes > 0.0, "{planned:?}");
    assert_eq!((planned.epochs, planned.depths), (3, vec![1]));
    assert!(outcome.notes.iter().any(|note| note.starts_with("rung `decoder` was not tried")), "{:?}", outcome.notes);
}

/// Rows whose answer is always one word: what the tiny decoder can learn to say, also with one layer.
fn writing() -> Bench {
    let bench = Bench::new();
    let rows = |n: usize, from: usize| {
        let line = |i: usize| {
            let digest = Digest::of(&i.to_le_bytes()).to_string();
            format!("{} {},ok\n", &digest[..8], &digest[8..14])
        };
        String::from("text,output\n") + &(from..from + n).map(line).collect::<String>()
    };
    for (name, n, from) in [("train", 60, 0), ("val", 20, 1000), ("cal", 30, 2000), ("test", 20, 3000)] {
        fs::write(bench.dir.path().join(format!("{name}.csv")), rows(n, from)).unwrap();
    }
    let task = "name = \"yes\"\nkind = \"generate\"\ninstruction = \"Say ok.\"\n[data]\ntrain = \"train.csv\"\nvalidation = \"val.csv\"\n\
        calibration = \"cal.csv\"\ntest = \"test.csv\"\n[target]\nepsilon = 0.2\nmargin = 0.2\n\
        [tune]\nrank = 8\nlearning_rate = 1e-2\nepochs = 12\n[prune]\nkeep = [0.5]\nheal_epochs = 12\n";
    fs::write(bench.dir.path().join("task.toml"), task).unwrap();
    bench
}

/// An adapter that writes, cut to one layer: written, measured, killed, scored again.
#[test]
fn a_pruned_adapter_writes() {
    let bench = writing();
    let build = |store: &str, progress: &mut dyn FnMut(Progress<'_>)| {
        let store = SpecialistStore::open(&bench.dir.path().join(store)).unwrap();
        let task = TaskFile::read(&bench.dir.path().join("task.toml"), &|_| None).unwrap();
        let workbench = Workbench {
            teacher: None,
            encoder: None,
            pool: &bench.pool,
            store: &store,
            seed: 1,
            tuning: encoder::Recipe::default(),
            decoders: Vec::new(),
        };
        build_generator(&task, &workbench, Arc::clone(&bench.decoder), progress, &|| Duration::ZERO).unwrap()
    };
    let outcome = build("whole", &mut silent);
    let names: Vec<String> = outcome.rungs.iter().map(metier_train::build::RungOutcome::name).collect();
    assert_eq!(names, ["nearest", "prompted", "adapter, 1 layers", "adapter"]);
    let depth = outcome.rungs[2].decoder.as_ref().unwrap();
    assert!(depth.is_chosen && depth.against_all.is_some(), "one layer is enough: {:?}", outcome.rungs);
    assert_eq!(outcome.rungs[3].decoder.as_ref().unwrap().influence.len(), 2);
    assert!(outcome.value >= 0.9 && outcome.certificate.is_some(), "{}", outcome.value);
    let specialist = Specialist::open(&outcome.path).unwrap();
    let generation = specialist.manifest().generation.as_ref().unwrap();
    assert_eq!(generation.kept_layers, depth.layers);

    let (inputs, test) = (["text".to_owned()], bench.dir.path().join("test.csv"));
    let columns = metier_train::data::Columns::new(&inputs, "output");
    let decoder = Arc::clone(&bench.decoder);
    let again =
        metier_train::evaluate_decoder(&specialist, decoder, None, &bench.pool, &test, &columns, 1, &mut silent)
            .unwrap();
    assert_eq!((again.value, again.n, again.metric.as_str()), (outcome.value, outcome.n, "exact_match"));
    let other = decoder_of(8);
    let error = metier_train::evaluate_decoder(&specialist, other, None, &bench.pool, &test, &columns, 1, &mut silent);
    assert!(error.unwrap_err().to_string().contains("made with the decoder"));

    for (stage, at) in [("training the adapter", 12), ("weighing layers", 0), ("writing: calibration rows", 0)] {
        let mut seen = 0;
        let mut progress = |progress: Progress<'_>| {
            if progress.stage == stage {
                assert!(seen < at, "killed");
                seen += 1;
            }
        };
        let killed = std::panic::catch_unwind(AssertUnwindSafe(|| build("killed", &mut progress)));
        assert!(killed.is_err(), "{stage}");
    }
    assert_eq!(build("killed", &mut silent).bundle, outcome.bundle);
    assert!(!bench.dir.path().join("killed/.work").exists(), "a build that is done leaves no checkpoint");
}

/// Two decoders, one after the other: all rungs under the names of their bases, what was taken names its own, killed in the second or between
/// the two it comes to the same, and a plan foresees both.
#[test]
fn a_bigger_decoder_is_tried_after_the_smaller_one() {
    let mut bench = Bench::new();
    bench.others = vec![decoder_of(9)];
    let outcome = bench.build("whole", &mut silent);
    let names: Vec<String> = outcome.rungs.iter().map(metier_train::build::RungOutcome::name).collect();
    assert_eq!(
        names,
        ["decoder on tiny, 1 layers", "decoder on tiny", "decoder on other, 1 layers", "decoder on other"]
    );
    let depths: Vec<_> = outcome.rungs.iter().map(|rung| rung.decoder.as_ref().unwrap()).collect();
    assert_eq!(depths.iter().filter(|depth| depth.is_chosen).count(), 1);
    assert_eq!(depths.iter().map(|depth| depth.against_all.is_some()).collect::<Vec<_>>(), [true, false, true, false]);
    let chosen = depths.iter().find(|depth| depth.is_chosen).unwrap();
    let specialist = Specialist::open(&outcome.path).unwrap();
    let named = specialist.manifest().decoder().unwrap();
    assert_eq!(Some(&named.name), chosen.base.as_ref());
    let taken = bench.decoders().into_iter().find(|decoder| decoder.base().name == named.name).unwrap();
    assert_eq!(named.digest, taken.base().digest);

    // Each trains for three passes; the second begins where the first has been read and healed.
    for (stage, at) in [("tuning the decoder", 30), ("weighing layers", 1), ("proving", 0)] {
        let (mut seen, mut last) = (0, String::new());
        let mut progress = |progress: Progress<'_>| {
            if progress.stage == stage {
                let counts = stage == "tuning the decoder" || last != stage;
                assert!(seen < at || !counts, "killed");
                seen += usize::from(counts);
            }
            progress.stage.clone_into(&mut last);
        };
        let killed = std::panic::catch_unwind(AssertUnwindSafe(|| bench.build("killed", &mut progress)));
        assert!(killed.is_err(), "{stage}");
    }
    assert_eq!(bench.build("killed", &mut silent).bundle, outcome.bundle);
    assert!(!bench.dir.path().join("killed/.work").exists(), "a build that is done leaves no checkpoint");

    let store = SpecialistStore::open(&bench.dir.path().join("planned")).unwrap();
    let rungs = plan(&bench.task(), &bench.workbench(&store), &|| Duration::ZERO).unwrap().rungs;
    let bases: Vec<_> = rungs.iter().map(|rung| (rung.rung, rung.base.as_deref())).collect();
    assert_eq!(bases, [(Stage::Decoder, Some("tiny")), (Stage::Decoder, Some("other"))]);
}

fn decoder_of(seed: u64) -> Arc<Decoder> {
    let weights = metier_model::engine::WeightFormat::AsFile;
    Arc::new(Decoder::from_bytes(tiny::gguf(seed), "other", weights).unwrap())
}

/// Secrets among the training rows are asked for, of what ships; the bundle says that they were there.
#[test]
fn canaries_are_asked_for() {
    let bench = writing();
    let path = bench.dir.path().join("task.toml");
    let task = fs::read_to_string(&path).unwrap();
    let build = |task: &str| {
        fs::write(&path, task).unwrap();
        let store = SpecialistStore::open(&bench.dir.path().join("store")).unwrap();
        let workbench = Workbench {
            teacher: None,
            encoder: None,
            pool: &bench.pool,
            store: &store,
            seed: 1,
            tuning: encoder::Recipe::default(),
            decoders: Vec::new(),
        };
        let task = TaskFile::read(&path, &|_| None).unwrap();
        build_generator(&task, &workbench, Arc::clone(&bench.decoder), &mut silent, &|| Duration::ZERO).unwrap()
    };
    let plain = build(&task.replace("[prune]\nkeep = [0.5]\nheal_epochs = 12\n", ""));
    assert_eq!(plain.memorisation, None);
    let outcome = build(&task.replace("[prune]\nkeep = [0.5]\nheal_epochs = 12\n", "canaries = 3\n"));
    let found = outcome.memorisation.as_ref().unwrap();
    eprintln!("{found:?}");
    assert!(found.planted == 3 && found.exposures.len() == 3 && found.extracted <= 3);
    assert!(
        found.exposures.iter().all(|bits| (0.0..=6.0).contains(bits)) && (1.0..2.0).contains(&found.chance_exposure)
    );
    assert!(outcome.findings.iter().any(|finding| finding.question.contains("to itself")), "{:?}", outcome.findings);
    let specialist = Specialist::open(&outcome.path).unwrap();
    let recipe = &specialist.manifest().recipe;
    assert_eq!(recipe.rungs.last().unwrap().adapter.as_ref().unwrap().canaries, 3);
    assert_ne!(plain.bundle, outcome.bundle);
}
