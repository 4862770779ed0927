//! Verdicts on tasks whose truth is known, without a model: only n-grams run.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use metier_kernels::{Pool, Tier};
use metier_train::discover::{
    Task, TaskKind,
    judge::{self, Bench, Judgement, Verdict},
    saving::{assumptions::Assumptions, chance::Evidence},
};

use metier_model::{
    Encoder,
    proof::{learn_then_test, learn_then_test_grouped},
    tiny,
};
use metier_train::{Embed, discover::judge::Rung};

use crate::traffic::{task, task_of};

pub(crate) fn judged(tasks: &[Task], assumptions: &Assumptions) -> Vec<Judgement> {
    let pool = Pool::new(2, Tier::detect());
    let bench = Bench { encoder: None, pool: &pool, seed: 0, clock: &|| Duration::ZERO };
    let trials = tasks.iter().map(|task| judge::attempt(task, assumptions, &bench, &mut |_| ())).collect();
    judge::judge(tasks, trials, assumptions)
}

#[test]
fn what_can_be_learnt_is_proven_and_what_is_noise_is_not() {
    let tasks = [task("clean", 1500, 0, 1000, true), task("noisy", 1500, 60, 1000, true)];
    let found = judged(&tasks, &Assumptions::default());
    let [clean, noisy] = &found[..] else { panic!() };
    assert!(matches!(clean.verdict, Verdict::Proven { coverage } if coverage >= 0.8), "{:?}", clean);
    assert!(matches!(noisy.verdict, Verdict::No { .. } | Verdict::NotYet { .. }), "{:?}", noisy.verdict);
    assert_eq!(clean.evidence, Evidence::Tried);
    assert!(clean.chance > 0.9 && noisy.chance < 0.3, "{} {}", clean.chance, noisy.chance);
    let trial = clean.trial.as_ref().unwrap();
    assert!(trial.agreement.value > 0.97 && trial.agreement.interval[0] > 0.93, "{:?}", trial.agreement);
    let [own, llm] = trial.accuracy.unwrap();
    assert!(own.value > 0.97 && llm.value == 1.0);
    // Where six of ten answers are drawn anew the LLM is right in 0.4 + 0.6/4, and a specialist may be better than it.
    let [own, llm] = noisy.trial.as_ref().unwrap().accuracy.unwrap();
    assert!((llm.value - 0.55).abs() < 0.08 && own.value > llm.value, "{own:?} {llm:?}");
    let blamed = noisy.trial.as_ref().unwrap().error_share.unwrap();
    assert!(blamed.value < 0.4, "most differences are the LLM's errors: {blamed:?}");
}

#[test]
fn many_tries_need_more_than_one() {
    let one = judged(&[task("clean", 700, 1, 1000, false)], &Assumptions::default());
    let many: Vec<Task> = (0..6)
        .map(|at| task(["clean", "aa", "bb", "cc", "dd", "ee"][at], 700, if at == 0 { 1 } else { 90 }, 1000, false))
        .collect();
    let many = judged(&many, &Assumptions::default());
    let p = |judgement: &Judgement| judgement.adjusted.unwrap()[0];
    assert_eq!(one[0].trial.as_ref().unwrap().most, many[0].trial.as_ref().unwrap().most);
    assert!(p(&many[0]) >= (6.0 * p(&one[0])).min(1.0) - 1e-12, "{} {}", p(&many[0]), p(&one[0]));
}

#[test]
fn what_cannot_be_tried_says_why() {
    let few = task("few", 80, 0, 1000, false);
    let mut extracted = task("extracted", 400, 0, 1000, false);
    extracted.kind.kind = TaskKind::Extract;
    let mut silent = task("silent", 0, 0, 1000, false);
    silent.sampling.with_text = 0;
    let mut always = task("always", 400, 0, 1000, false);
    always.examples.iter_mut().for_each(|example| example.output = Some("yes".to_owned()));
    always.traits.labels = [("yes".to_owned(), 400)].into();
    let found = judged(&[few, extracted, silent, always], &Assumptions::default());
    let why = |at: usize| found[at].not_tried.clone().unwrap();
    assert!(why(0).contains("80 of at least 120"), "{}", why(0));
    assert!(matches!(found[0].verdict, Verdict::NotYet { more_rows: Some(40), .. }), "{:?}", found[0].verdict);
    assert!(why(1).contains("needs a JSON schema"), "{}", why(1));
    assert!(why(2).contains("holds no texts"), "{}", why(2));
    assert!(
        matches!(&found[3].verdict, Verdict::Cheaper { by } if by.contains("a rule: 400 of 400")),
        "{:?}",
        found[3].verdict
    );
    assert!(found.iter().take(3).all(|judgement| judgement.evidence == Evidence::Traits));
}

fn pick(at: u64, which: u64, n: usize) -> usize {
    (metier_model::specialist::mix(at.wrapping_mul(31).wrapping_add(which) ^ 0x7a11) % n as u64) as usize
}

const TOWNS: [&str; 40] = [
    "Oslo", "Lima", "Ulm", "Bern", "Rome", "Kiel", "Graz", "Metz", "Pisa", "Turku", "Lodz", "Brno", "Cork", "Vigo",
    "Nice", "Bari", "Bonn", "Linz", "Gent", "Bath", "York", "Hull", "Mons", "Como", "Trier", "Jena", "Gera", "Suhl",
    "Hof", "Celle", "Emden", "Husum", "Soest", "Unna", "Hamm", "Herne", "Witten", "Hagen", "Siegen", "Olpe",
];

#[test]
fn an_answer_that_was_given_before_needs_no_training_and_one_that_was_not_says_what_was_not_tried() {
    let shipped = task_of(
        "shipped",
        TaskKind::Generate,
        None,
        (0..1300).map(|at| {
            let (n, town) = (2 + pick(at, 1, 997), TOWNS[pick(at, 2, 40)]);
            (
                format!("Please ship {n} crates to {town} as order number {at}"),
                format!("{n} crates leave for {town} today."),
            )
        }),
    );
    let story = task_of(
        "story",
        TaskKind::Generate,
        None,
        (0..400).map(|at| {
            let word = |which: u64| TOWNS[pick(at, which, 40)];
            (
                format!("a story of {} and {} number {at}", word(1), word(2)),
                format!("{} {} {}", word(7), word(8), word(9)),
            )
        }),
    );
    let found = judged(&[shipped, story], &Assumptions::default());
    let trial = found[0].trial.as_ref().unwrap();
    assert_eq!(trial.rung, Rung::Adapted, "{:?}", trial.rungs);
    assert!(trial.agreement.value > 0.98, "{:?}", trial.agreement);
    assert!(trial.rungs.iter().any(|(rung, share)| *rung == Rung::Nearest && *share < 0.1), "{:?}", trial.rungs);
    assert!(
        matches!(&found[0].verdict, Verdict::Cheaper { by } if by.contains("put in its place")),
        "{:?}",
        found[0].verdict
    );
    let trial = found[1].trial.as_ref().unwrap();
    assert!(trial.agreement.value < 0.05 && trial.likeness.as_ref().unwrap().value.value < 0.4, "{trial:?}");
    assert!(matches!(&found[1].verdict, Verdict::NotYet { more_rows: None, why } if why.contains("not tried")));
    assert!(trial.notes.iter().any(|note| note.contains("`metier build tasks/story/task.toml`")), "{:?}", trial.notes);
    // Whether an adapter passes was not tried: the chance is a guess from the traffic.
    assert_eq!(found[1].evidence, Evidence::Traits);
    assert_eq!(found[1].chance, found[1].prior.chance);
}

#[test]
fn an_extraction_is_tried_with_an_encoder_that_tags_words() {
    const ANIMALS: [&str; 8] = ["ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen"];
    const FILLERS: [&str; 6] = ["the", "a", "of", "in", "on", "at"];
    let schema = "{\"type\":\"object\",\"properties\":{\"bought\":{\"type\":\"string\"},\"price\":{\"type\":\"integer\",\"minimum\":1}}}";
    // Behind `buy` stands what is bought, behind `pay` a price: every animal stands in every place, and a list of values tells nothing.
    let orders = task_of(
        "orders",
        TaskKind::Extract,
        Some(schema),
        (0..600).map(|at| {
            let animal = |which: u64| ANIMALS[pick(at, which, 8)];
            let filler = |which: u64| FILLERS[pick(at, which, 6)];
            let (bought, price) = (animal(1), 1 + pick(at, 2, 9));
            let text = format!(
                "{} {} {} buy {bought} {} pay {price} {} {}",
                filler(3),
                animal(4),
                animal(5),
                filler(6),
                animal(7),
                animal(8)
            );
            (format!("{text} {}", animal(9)), format!("{{\"bought\":\"{bought}\",\"price\":{price}}}"))
        }),
    );
    let words: Vec<&str> =
        ANIMALS.into_iter().chain(FILLERS).chain(["buy", "pay", "1", "2", "3", "4", "5", "6", "7", "8", "9"]).collect();
    let folder = tempfile::tempdir().unwrap();
    tiny::bert_folder(folder.path(), &words, 2, 3).unwrap();
    let encoder = Encoder::open(folder.path()).unwrap();
    let pool = Pool::new(2, Tier::detect());
    let bench = Bench { encoder: Some(&encoder as &dyn Embed), pool: &pool, seed: 0, clock: &|| Duration::ZERO };
    let trial = judge::attempt(&orders, &Assumptions::default(), &bench, &mut |_| ()).unwrap();
    assert_eq!((trial.rung, trial.labels), (Rung::Span, 2));
    let shares: std::collections::BTreeMap<Rung, f64> = trial.rungs.iter().copied().collect();
    assert!(shares[&Rung::Span] > shares[&Rung::Lookup] + 0.3, "{shares:?}");
    assert!(trial.likeness.as_ref().unwrap().value.value > trial.agreement.value - 1e-9, "{trial:?}");
    // Answers in no form that a specialist has are measured too, as answers that it does not give.
    let mut slipped = orders.clone();
    slipped.examples.iter_mut().step_by(20).for_each(|example| example.output = Some("I am sorry".to_owned()));
    let less = judge::attempt(&slipped, &Assumptions::default(), &bench, &mut |_| ()).unwrap();
    assert_eq!(less.rows[2], trial.rows[2]);
    assert!(less.agreement.value <= 0.97 && less.notes.iter().any(|note| note.contains("count as answered otherwise")));
    let lost = less.tried.iter().filter(|row| {
        row.agrees == Some(false) && slipped.examples[row.example].output.as_deref() == Some("I am sorry")
    });
    assert!(lost.count() >= 5, "{:?}", less.notes);

    let found = judge::judge(&[orders], vec![Ok(trial)], &Assumptions::default());
    assert_eq!(found[0].evidence, Evidence::Tried);
    assert!((0.0..=1.0).contains(&found[0].chance));
}

/// What is promised of rows of customers is what a build's certificate promises of them, not what as many rows of strangers would.
#[test]
fn coverage_counts_customers_as_a_build_does() {
    let mut of_customers = task("clean", 3000, 1, 1000, false);
    of_customers.examples.iter_mut().enumerate().for_each(|(at, example)| {
        // Some rows are nobody's: each a group of its own, as in the task file.
        example.group = (at % 10 != 0).then(|| format!("customer-{}", at / 4));
    });
    let assumptions = Assumptions::default();
    let found = judged(&[of_customers], &assumptions);
    let trial = found[0].trial.as_ref().unwrap();
    let groups = trial.group_of().expect("customers");
    assert_eq!(groups.len(), trial.scored().len());
    let rows: Vec<(f32, f64)> =
        trial.scored().iter().map(|(score, lost)| (*score, f64::from(u8::from(*lost)))).collect();
    let (epsilon, level) = (assumptions.epsilon, assumptions.delta / 2.0);
    let grouped = learn_then_test_grouped(&rows, groups, epsilon, level);
    let alone = learn_then_test(trial.scored(), epsilon, level).unwrap().coverage;
    let promised = match (&found[0].verdict, &grouped) {
        (Verdict::Proven { coverage } | Verdict::Partial { coverage }, Ok(made)) => {
            assert_eq!(
                *coverage,
                made.coverage.max(if trial.most[0] <= level { trial.most[1] } else { trial.little[1] })
            );
            *coverage
        }
        (Verdict::NotYet { .. } | Verdict::No { .. }, Err(_)) => 0.0,
        other => panic!("{other:?}"),
    };
    assert!(promised < alone, "{promised} of customers, {alone} of strangers");
}

#[test]
fn too_few_rows_ask_for_more() {
    let found = judged(&[task("clean", 240, 0, 1000, false)], &Assumptions::default());
    match &found[0].verdict {
        Verdict::NotYet { more_rows: Some(rows), .. } => assert!((50..3000).contains(rows), "{rows}"),
        other => panic!("70 rows without an error cannot show a bound of 2 %: {other:?}"),
    }
}
