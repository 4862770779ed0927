#![allow(clippy::unwrap_used, clippy::needless_range_loop, reason = "tests; they index several arrays at once")]
use metier_kernels::Tier;
use metier_model::{EncoderWeights, format::Safetensors, progress::silent, tiny};

use super::*;

const WORDS: [&str; 12] = ["ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen", "the", "a", "of", "in"];

/// 32 rows of 4 classes: which of four pairs of words a row holds, among others that say nothing.
fn rows() -> (Vec<String>, Vec<usize>) {
    (0..32)
        .map(|i| {
            let h = mix(i as u64 + 5);
            let class = i % 4;
            let filler = |shift: u32| WORDS[8 + (h >> shift) as usize % 4];
            let word = WORDS[2 * class + (h >> 40) as usize % 2];
            let text = format!("{} {word} {} {}", filler(0), filler(8), filler(16));
            (text, class)
        })
        .unzip()
}

fn encoder() -> (tempfile::TempDir, Encoder) {
    let dir = tempfile::tempdir().unwrap();
    tiny::bert_folder(dir.path(), &WORDS, 2, 7).unwrap();
    let encoder = Encoder::open(dir.path()).unwrap();
    (dir, encoder)
}

fn run<'a>(pool: &'a Pool) -> Run<'a> {
    Run { pool, seed: 3, clock: &|| Duration::ZERO, deadline: Duration::MAX }
}

fn recipe() -> Recipe {
    Recipe {
        epochs: 30,
        batch_rows: 8,
        learning_rate: 3e-3,
        head_learning_rate: 1e-2,
        patience: 30,
        ..Recipe::default()
    }
}

/// What is trained is learnt by heart, with each of the losses; what ships gives the vectors that were trained.
#[test]
fn learns_32_rows_by_heart() {
    let pool = Pool::new(2, Tier::detect());
    let (_dir, encoder) = encoder();
    let (texts, classes) = rows();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let all = Rows { texts: &texts, gold: Gold::Classes(&classes) };
    for recipe in [recipe(), Recipe { r_drop: 0.5, smoothing: 0.05, contrast: 0.2, ..recipe() }] {
        let mut norms = Vec::new();
        let mut log = |step: &StepLog| norms.push(step.gradient_norm);
        let tuned = tune(&encoder, all, all, 4, &recipe, &run(&pool), &mut silent, &mut log).unwrap();
        let last = tuned.epochs.iter().find(|epoch| epoch.epoch == tuned.best).unwrap();
        assert_eq!(last.validation, 1.0, "{:?}", tuned.epochs);
        assert!(norms.iter().all(|norm| norm.is_finite() && *norm > 0.0));
        // Frozen vectors do not tell the classes apart so well: nearest rows are of another class now and then.
        let served = encoder.with_tensors(&tuned.file, EncoderWeights::F32).unwrap();
        let apart = |encoder: &Encoder| {
            let vectors = encoder.embed(&pool, &texts).unwrap();
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
            let (mut same, mut other) = ((0.0, 0), (0.0, 0));
            for i in 0..32 {
                for j in 0..i {
                    let sum = if classes[i] == classes[j] { &mut same } else { &mut other };
                    *sum = (sum.0 + dot(&vectors[i], &vectors[j]), sum.1 + 1);
                }
            }
            same.0 / same.1 as f32 - other.0 / other.1 as f32
        };
        assert!(apart(&served) > apart(&encoder) + 0.3, "{} {}", apart(&served), apart(&encoder));
        assert_ne!(served.base().digest, encoder.base().digest);
    }
}

/// The same of sets: of each pair of words whether a row holds one of them, which any row may, and some hold none.
fn sets() -> (Vec<String>, Vec<Vec<usize>>) {
    (0..32)
        .map(|i| {
            let h = mix(i as u64 + 9);
            let set: Vec<usize> = (0..4).filter(|label| h >> label & 1 == 1).collect();
            let words = set.iter().map(|label| WORDS[2 * label + (h >> (8 + label)) as usize % 2]);
            let filler = |shift: u32| WORDS[8 + (h >> shift) as usize % 4];
            (words.chain([filler(20), filler(30)]).collect::<Vec<_>>().join(" "), set)
        })
        .unzip()
}

#[test]
fn learns_32_sets_by_heart() {
    let pool = Pool::new(2, Tier::detect());
    let (_dir, encoder) = encoder();
    let (texts, sets) = sets();
    assert!(sets.iter().any(Vec::is_empty) && sets.iter().any(|set| set.len() == 4));
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let all = Rows { texts: &texts, gold: Gold::Sets(&sets) };
    let recipe = Recipe { epochs: 60, patience: 60, ..recipe() };
    // Where a set must be right as a whole, with each of the losses; contrast has no meaning for sets and is passed over.
    for recipe in [recipe.clone(), Recipe { r_drop: 0.5, smoothing: 0.02, contrast: 0.3, ..recipe }] {
        let mut losses = Vec::new();
        let mut log = |step: &StepLog| losses.push(step.loss);
        let tuned = tune(&encoder, all, all, 4, &recipe, &run(&pool), &mut silent, &mut log).unwrap();
        let best = tuned.epochs.iter().find(|epoch| epoch.epoch == tuned.best).unwrap();
        assert_eq!(best.validation, 1.0, "{:?}", tuned.epochs);
        assert!(losses[losses.len() - 1] < losses[0] / 2.0, "{losses:?}");
        // A head that has seen nothing says how frequent labels are: at most ln 2 a label.
        assert!(losses[0] < 4.0 * 2.0f64.ln() + 0.3, "{}", losses[0]);
        let moved = encoder.with_tensors(&tuned.file, EncoderWeights::F32).unwrap();
        assert_ne!(moved.base().digest, encoder.base().digest);
    }
}

/// An epoch is spread by the rarest label of each row, so that no step is without it.
#[test]
fn rare_labels_are_spread_over_an_epoch() {
    let sets: Vec<Vec<usize>> = (0..120).map(|i| if i % 12 == 0 { vec![0, 1] } else { vec![1] }).collect();
    let order = order(&Gold::Sets(&sets).spread(2), 5, false);
    for batch in order.chunks(40) {
        let rare = batch.iter().filter(|row| sets[**row].len() == 2).count();
        assert!((2..=5).contains(&rare), "{rare}");
    }
    let none: Vec<Vec<usize>> = vec![Vec::new(), vec![0]];
    assert_eq!(Gold::Sets(&none).spread(2), [2, 0]);
}

/// Gold labels that are all wrong, and a teacher who knows better: what weighs more is learnt.
#[test]
fn a_student_listens_to_its_teacher() {
    let pool = Pool::new(2, Tier::detect());
    let (_dir, encoder) = encoder();
    let (texts, classes) = rows();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let wrong: Vec<usize> = classes.iter().map(|class| (class + 1) % 4).collect();
    let shares = |class: usize| (0..4).map(|k| if k == class { 0.91 } else { 0.03 }).collect::<Vec<f32>>();
    let said: Vec<Vec<f32>> = classes.iter().map(|class| shares(*class)).collect();
    for (weight, right) in [(1.0, true), (0.0, false)] {
        let lesson = Lesson {
            soft: said.iter().map(|shares| Soft::tempered(shares, 2.0)).collect(),
            weights: vec![weight; 32],
            temperature: 2.0,
            record: metier_model::specialist::manifest::TeacherRecord {
                name: "teacher".to_owned(),
                digest: encoder.base().digest,
                temperature: 2.0,
                weight: f64::from(weight),
                rows_without_label: 0,
            },
        };
        let (rows, held) = (
            Rows { texts: &texts, gold: Gold::Classes(&wrong) },
            Rows { texts: &texts, gold: Gold::Classes(&classes) },
        );
        let recipe = Recipe { epochs: 15, ..recipe() };
        let mut tuner = Tuner::new(&encoder, rows, held, 4, &recipe, 3).unwrap();
        tuner.teach(&lesson);
        let tuned = tuner.learn(&run(&pool), &mut silent, &mut |_| ()).unwrap();
        let last = tuned.epochs.last().unwrap().validation;
        assert!(if right { last > 0.9 } else { last < 0.2 }, "{weight}: {:?}", tuned.epochs);
    }
}

/// Training that silently does nothing is this trade's classic fault.
#[test]
fn every_trained_tensor_moves_and_every_table_stays() {
    let pool = Pool::new(2, Tier::detect());
    let (_dir, encoder) = encoder();
    let (texts, classes) = rows();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let all = Rows { texts: &texts, gold: Gold::Classes(&classes) };
    let recipe = Recipe { epochs: 1, ..recipe() };
    let tuned = tune(&encoder, all, all, 4, &recipe, &run(&pool), &mut silent, &mut |_| ()).unwrap();
    let (before, index) = (encoder.plain().unwrap(), Safetensors::parse(&tuned.file).unwrap());
    // Tables are not even in the file, and what is not trained cannot be tuned again.
    assert_eq!(index.tensors().len(), before.tensors.len());
    let served = encoder.with_tensors(&tuned.file, EncoderWeights::F32).unwrap();
    assert!(served.plain().is_err());
    let mut from = 0;
    for tensor in &before.tensors {
        let len: usize = tensor.shape.iter().product();
        let after = index.tensor(&tuned.file, &tensor.name).unwrap().to_f32().unwrap();
        let moved = before.values[from..from + len].iter().zip(&after);
        // Rounding to halves moves a number by at most 2⁻¹¹ of it; keys' biases cancel in softmax and move by rounding alone.
        let far = moved.map(|(a, b)| (a - b).abs() / a.abs().max(0.1)).fold(0.0, f32::max);
        assert!(far > 1e-3 || tensor.name.ends_with("key.bias"), "`{}` moved by {far}", tensor.name);
        from += len;
    }
}

/// max |Δ| of an element of a unit vector between the network that is trained and the one that serves, both f32.
const PARITY: f32 = 2e-6;

#[test]
fn training_and_serving_see_the_same_vectors() {
    let pool = Pool::new(2, Tier::detect());
    let (_dir, encoder) = encoder();
    let (texts, _) = rows();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let net = BertNet::new(encoder.plain().unwrap(), encoder.pooling());
    let ids = tokens(&encoder, &texts, 32).unwrap();
    let mut pass = Pass::default();
    let segments = Segments::of(ids.iter().map(Vec::len));
    net.forward(&pool, &net.params.values, &ids.concat(), &segments, None, &mut pass);
    let served = encoder.embed(&pool, &texts).unwrap().concat();
    let far = pass.units.iter().zip(&served).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(far <= PARITY, "{far}");
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let (_dir, encoder) = encoder();
    let (texts, classes) = rows();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let all = Rows { texts: &texts, gold: Gold::Classes(&classes) };
    let recipe = Recipe { epochs: 2, ..recipe() };
    let tune = || {
        let pool = Pool::new(2, Tier::detect());
        tune(&encoder, all, all, 4, &recipe, &run(&pool), &mut silent, &mut |_| ()).unwrap().file
    };
    assert_eq!(tune(), tune());
}

/// Killed at a step, whichever, it goes on from its last checkpoint and comes to the same bytes.
#[test]
fn killed_and_taken_up_it_is_the_same() {
    let pool = Pool::new(2, Tier::detect());
    let (_dir, encoder) = encoder();
    let ((texts, classes), (other_texts, sets)) = (rows(), sets());
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let other_texts: Vec<&str> = other_texts.iter().map(String::as_str).collect();
    let all = Rows { texts: &texts, gold: Gold::Classes(&classes) };
    for (all, recipe) in [
        (all, Recipe { epochs: 5, patience: 2, ..recipe() }),
        (all, Recipe { epochs: 3, average_steps: 6, dropout: 0.3, ..recipe() }),
        (Rows { texts: &other_texts, gold: Gold::Sets(&sets) }, Recipe { epochs: 3, ..recipe() }),
    ] {
        let whole = tune(&encoder, all, all, 4, &recipe, &run(&pool), &mut silent, &mut |_| ()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        // Every look at this clock is a second later, so that every second step is kept.
        let ticks = std::cell::Cell::new(0);
        let clock = || {
            ticks.set(ticks.get() + 1);
            Duration::from_secs(ticks.get())
        };
        let keeper = || Keeper::new(dir.path(), "t", "encoder", metier_model::Digest::of(b"plan"));
        let begin = || {
            let mut tuner = Tuner::new(&encoder, all, all, 4, &recipe, 3).unwrap();
            tuner.keep(keeper());
            tuner
        };
        assert!(!begin().has_begun());
        let run = Run { pool: &pool, seed: 3, clock: &clock, deadline: Duration::MAX };
        let mut steps = Vec::new();
        for kill_at in [1, 4, 5, 9, 11] {
            let learn = std::panic::AssertUnwindSafe(|| {
                let mut progress = |progress: Progress<'_>| {
                    steps.push(progress.done);
                    assert!(progress.done < kill_at, "killed");
                };
                begin().learn(&run, &mut progress, &mut |_| ()).map(|tuned| tuned.file)
            });
            assert!(std::panic::catch_unwind(learn).is_err(), "killed at step {kill_at}");
            assert!(kill_at < 2 || begin().has_begun());
        }
        assert!(steps.iter().filter(|step| **step == 0).count() <= 2, "it began anew: {steps:?}");
        let taken_up = begin().learn(&run, &mut silent, &mut |_| ()).unwrap();
        assert_eq!((taken_up.best, taken_up.tokens), (whole.best, whole.tokens));
        assert!(taken_up.file == whole.file, "other bytes");
        // What has ended is not trained again.
        let mut again = 0;
        let tuned = begin().learn(&run, &mut |_| again += 1, &mut |_| ()).unwrap();
        assert!(again == 0 && tuned.file == whole.file);
    }
}

#[test]
fn an_order_spreads_classes_and_keeps_pairs() {
    let classes: Vec<usize> = (0..300).map(|i| if i < 30 { 0 } else { 1 + i % 2 }).collect();
    for pairs in [false, true] {
        let found = order(&classes, 9, pairs);
        let mut sorted = found.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..300).collect::<Vec<_>>());
        for batch in found.chunks(100) {
            let rare = batch.iter().filter(|i| classes[**i] == 0).count();
            assert!((7..=13).contains(&rare), "{rare}");
        }
        assert_ne!(found, order(&classes, 10, pairs));
    }
    let classes: Vec<usize> = (0..310).map(|i| if i < 30 { 0 } else { 1 + i % 2 }).collect();
    let found = order(&classes, 9, true);
    assert!((0..155).all(|i| classes[found[2 * i]] == classes[found[2 * i + 1]]));
}

#[test]
fn too_few_rows_are_refused() {
    let pool = Pool::new(1, Tier::Scalar);
    let (_dir, encoder) = encoder();
    let none = Rows { texts: &[], gold: Gold::Classes(&[]) };
    let error = tune(&encoder, none, none, 4, &recipe(), &run(&pool), &mut silent, &mut |_| ()).err().unwrap();
    assert!(error.to_string().contains("too few"));
}
