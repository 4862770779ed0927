//! Verdicts on tasks whose truth is known, without a model: only n-grams run.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use metier_kernels::{Pool, Tier};
use metier_train::discover::{
    Task, TaskKind,
    judge::{self, Bench, Judgement, Verdict},
    saving::{assumptions::Assumptions, chance::Evidence},
};

use crate::traffic::task;

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
    let mut written = task("written", 400, 0, 1000, false);
    written.kind.kind = TaskKind::Generate;
    let mut silent = task("silent", 0, 0, 1000, false);
    silent.sampling.with_text = 0;
    let mut always = task("always", 400, 0, 1000, false);
    always.examples.iter_mut().for_each(|example| example.output = Some("yes".to_owned()));
    always.traits.labels = [("yes".to_owned(), 400)].into();
    let found = judged(&[few, written, silent, always], &Assumptions::default());
    let why = |at: usize| found[at].not_tried.clone().unwrap();
    assert!(why(0).contains("80 of at least 120"), "{}", why(0));
    assert!(matches!(found[0].verdict, Verdict::NotYet { more_rows: Some(40), .. }), "{:?}", found[0].verdict);
    assert!(why(1).contains("`metier build` tries"), "{}", why(1));
    assert!(why(2).contains("holds no texts"), "{}", why(2));
    assert!(
        matches!(&found[3].verdict, Verdict::Cheaper { by } if by.contains("a rule: 400 of 400")),
        "{:?}",
        found[3].verdict
    );
    assert!(found.iter().take(3).all(|judgement| judgement.evidence == Evidence::Traits));
}

#[test]
fn too_few_rows_ask_for_more() {
    let found = judged(&[task("clean", 240, 0, 1000, false)], &Assumptions::default());
    match &found[0].verdict {
        Verdict::NotYet { more_rows: Some(rows), .. } => assert!((50..3000).contains(rows), "{rows}"),
        other => panic!("70 rows without an error cannot show a bound of 2 %: {other:?}"),
    }
}
