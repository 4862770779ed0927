//! Is what is forecast what happens? Builds that are rehearsed, and volumes that were told by words, in worlds whose truth is known.
#![allow(clippy::unwrap_used, reason = "tests")]

use metier_model::proof::{binomial_tail, learn_then_test_grouped};
use metier_train::discover::{
    judge::predict::{Rehearsal, predict},
    saving::draw::Draw,
    volume::assigned_interval,
};

fn rehearsal(scored: &[(f32, bool)], calibration: u64) -> Rehearsal<'_> {
    Rehearsal {
        scored,
        group_of: None,
        design: 1.0,
        exponent: None,
        trained: [1000, 1000],
        build: [calibration, 400],
        groups: None,
        epsilon: 0.02,
        delta: 0.05,
        coverage: 0.2,
    }
}

/// `n` rows of falling score; every `every`-th is a loss, the surest `clean` are not.
fn rows(n: usize, every: usize, clean: usize) -> Vec<(f32, bool)> {
    (0..n).map(|at| (1.0 - at as f32 / n as f32, at >= clean && at % every == 0)).collect()
}

#[test]
fn a_build_whose_rows_cannot_show_the_bound_does_not_pass() {
    let clean = rows(1000, 2, 900);
    // With fewer than 149 rows not even no loss at all shows a bound of 2 %.
    assert_eq!(predict(&rehearsal(&clean, 148), 1, "a").passes, 0.0);
    let enough = predict(&rehearsal(&clean, 600), 1, "a");
    assert!(enough.passes > 0.95, "{enough:?}");
    // Losses begin at 90 %: a bound of 2 % of all is reached a little later.
    assert!((0.85..0.95).contains(&enough.coverage.unwrap_or(0.0)), "{enough:?}");
    assert!(predict(&rehearsal(&rows(1000, 2, 0), 600), 1, "a").passes < 0.05);
    assert_eq!(predict(&rehearsal(&[], 600), 1, "a").passes, 0.0);
}

#[test]
fn it_says_what_a_world_with_that_truth_would_do() {
    // Half of the requests have one score and q of them are lost, the others have a score that never passes.
    let (n, q, calibration, epsilon) = (4_000, 0.03, 500, 0.02);
    let mut scored: Vec<(f32, bool)> =
        (0..n / 2).map(|at| (0.9, (at as f64 * q) as usize != ((at + 1) as f64 * q) as usize)).collect();
    scored.extend((0..n / 2).map(|_| (0.1, true)));
    let told = predict(&rehearsal(&scored, calibration), 3, "b").passes;
    // With so many measured rows the truth is known: k of 500 are lost with probability q / 2 each, and what passes is P(Bin ≤ k) ≤ δ.
    let most = (0..calibration).take_while(|k| binomial_tail(*k, calibration, epsilon) <= 0.05).last();
    let exact = most.map_or(0.0, |most| binomial_tail(most, calibration, q / 2.0));
    assert!((told - exact).abs() < 0.08, "told {told}, exact {exact}");
}

#[test]
fn more_rows_and_fewer_groups_move_it_as_they_should() {
    let some = rows(600, 16, 0);
    let base = predict(&rehearsal(&some, 400), 5, "c").passes;
    let improves = Rehearsal { exponent: Some([1.0, 0.9, 1.1]), trained: [500, 2000], ..rehearsal(&some, 400) };
    let grouped = Rehearsal { design: 4.0, ..rehearsal(&some, 400) };
    let (improved, grouped) = (predict(&improves, 5, "c").passes, predict(&grouped, 5, "c").passes);
    assert!(improved > base + 0.1 && grouped < base, "{base} {improved} {grouped}");
}

/// A forecast of rows of customers is the share of builds that pass, in a world where whole customers are lost: the world is drawn and built here,
/// with the certificate of a build, and beside it stands what rows taken for independent would have promised.
#[test]
fn rows_of_customers_are_rehearsed_as_customers() {
    const SIZE: usize = 10;
    // A customer has one score; below 0.5 all of his rows are lost, above none. 150 were measured, a build calibrates with 100.
    let world = |n: usize, draw: &mut Draw| -> (Vec<(f32, bool)>, Vec<usize>) {
        let mut rows: Vec<(f32, bool, usize)> = Vec::new();
        for customer in 0..n {
            let score = draw.uniform() as f32;
            let lost = draw.chance(if score < 0.5 { 0.3 } else { 0.03 });
            rows.extend(std::iter::repeat_n((score, lost, customer), SIZE));
        }
        rows.sort_by(|a, b| b.0.total_cmp(&a.0));
        (rows.iter().map(|row| (row.0, row.1)).collect(), rows.iter().map(|row| row.2).collect())
    };
    let (mut told, mut alone, mut came) = (0.0, 0.0, 0.0);
    const WORLDS: u64 = 60;
    for seed in 0..WORLDS {
        let mut draw = Draw::new(seed, "customers");
        let (scored, group_of) = world(150, &mut draw);
        let base = Rehearsal { epsilon: 0.05, design: SIZE as f64, build: [1000, 600], ..rehearsal(&scored, 1000) };
        told += predict(&Rehearsal { group_of: Some(&group_of), ..base }, seed, "d").passes / WORLDS as f64;
        alone += predict(&Rehearsal { design: 1.0, ..base }, seed, "d").passes / WORLDS as f64;
        let (built, of) = world(100, &mut draw);
        let rows: Vec<(f32, f64)> = built.iter().map(|row| (row.0, f64::from(u8::from(row.1)))).collect();
        let passes = learn_then_test_grouped(&rows, &of, base.epsilon, base.delta);
        came += f64::from(u8::from(passes.is_ok_and(|made| made.coverage >= base.coverage))) / WORLDS as f64;
    }
    assert!((told - came).abs() < 0.2, "told {told}, came {came}");
    // Whatever its rows are, few groups show nothing.
    let (scored, group_of) = world(150, &mut Draw::new(0, "customers"));
    let few = Rehearsal { epsilon: 0.05, group_of: Some(&group_of), groups: Some(40), ..rehearsal(&scored, 1000) };
    assert_eq!(predict(&few, 1, "d").passes, 0.0);
    assert!(alone > came + 0.2, "rows taken for independent would have done: {alone} {came}");
}

/// How often the interval holds the truth, over worlds: `groups` of them with shares of their own, a rule that takes about `error` of the rows for
/// another group's, `held` rows on which that is counted.
fn coverage(held: usize, groups: usize, error: f64) -> f64 {
    const WORLDS: u64 = 400;
    let (mut hit, mut all) = (0, 0);
    for world in 0..WORLDS {
        let mut draw = Draw::new(world, "volumes");
        let mut shares: Vec<f64> = (0..groups).map(|_| -draw.uniform().ln()).collect();
        let sum: f64 = shares.iter().sum();
        shares.iter_mut().for_each(|share| *share /= sum);
        // From each group to each other one.
        let taken: Vec<Vec<f64>> = (0..groups)
            .map(|from| {
                let weights: Vec<f64> = (0..groups).map(|to| if to == from { 0.0 } else { draw.uniform() }).collect();
                let sum: f64 = weights.iter().sum();
                weights.iter().map(|weight| weight / sum * error * 2.0 * draw.uniform()).collect()
            })
            .collect();
        let kept = |group: usize| 1.0 - taken[group].iter().sum::<f64>();
        let given: f64 = (1..groups).map(|from| shares[from] * taken[from][0]).sum();
        // Calls that belong to the first group, over those that the rule gives it.
        let truth = shares[0] / (shares[0] * kept(0) + given);
        let (mut told, mut really, mut right) = (0, 0, 0);
        for _ in 0..held {
            let place = draw.uniform();
            let belongs = place < shares[0];
            let gets = if belongs { draw.chance(kept(0)) } else { draw.chance(given / (1.0 - shares[0])) };
            (told, really, right) =
                (told + u64::from(gets), really + u64::from(belongs), right + u64::from(gets && belongs));
        }
        if told > 0 {
            let [low, high] = assigned_interval([told, really, right], 1.0);
            hit += u64::from((low..=high).contains(&truth));
            all += 1;
        }
    }
    f64::from(u32::try_from(hit).unwrap_or(0)) / f64::from(u32::try_from(all).unwrap_or(1))
}

#[test]
fn the_interval_of_an_assigned_volume_holds_as_often_as_it_says() {
    // 400 worlds at 95 %: two standard deviations are 2.2 points. Where errors are rare it is wider than it need be.
    for (held, error) in [(200, 0.2), (400, 0.05), (1200, 0.02), (1200, 0.1), (1200, 0.3)] {
        let held_true = coverage(held, 6, error);
        assert!((0.925..=0.995).contains(&held_true), "{held} rows, {error}: {held_true}");
    }
}

#[test]
fn a_volume_that_was_not_assigned_is_exact() {
    assert_eq!(assigned_interval([50, 40, 30], 0.0), [1.0, 1.0]);
    assert_eq!(assigned_interval([0, 3, 0], 0.25), [0.75, 1.25]);
}
