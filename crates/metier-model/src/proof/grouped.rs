//! At which score may a specialist answer alone, where the rows of one document, customer or conversation are right and wrong together?
//!
//! As [`certificate`](super::certificate), with the *group* as the unit that is drawn: the loss of a group at threshold `t` is the mean over
//! its rows of (accepted at `t`) · (loss), a number in 0..1, and groups are independent where rows are not. The mean over groups is
//! tested by the bet of [`graded`](super::graded). The promise is for a row of a *new* group, each group counting once however many
//! rows it has; a hundred rows of five documents are five observations and promise next to nothing.

use super::{
    certificate::{Certificate, Refusal, thresholds},
    graded::{Wealth, needed},
};

/// Walks the grid over calibration rows of `(score, loss if accepted)`, each loss 0..1; `group_of`: (rows,), each row's group, from 0 on
/// without gaps. A row whose score is negative is never accepted.
///
/// In the certificate `n` counts rows and `losses` the accepted rows that lost anything; a refusal names rows, at this many a group.
///
/// # Panics
///
/// If rows and groups differ in number.
pub fn learn_then_test_grouped(
    rows: &[(f32, f64)],
    group_of: &[usize],
    epsilon: f64,
    delta: f64,
) -> Result<Certificate, Refusal> {
    assert_eq!(rows.len(), group_of.len(), "a group for every row");
    let n = rows.len() as u64;
    let mut sizes = vec![0u32; group_of.iter().max().map_or(0, |last| last + 1)];
    group_of.iter().for_each(|&group| sizes[group] += 1);
    let groups = sizes.len() as u64;
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by(|a, b| rows[*b].0.total_cmp(&rows[*a].0));
    let mut lost = vec![0.0; sizes.len()];
    let mut wealth = Wealth::without_loss(groups, epsilon);
    let (mut accepted, mut losses) = (0, 0);
    let mut last_passed = None;
    for threshold in thresholds() {
        while let Some(&row) = order.get(accepted).filter(|row| rows[**row].0 >= threshold) {
            let group = group_of[row];
            let before = lost[group];
            lost[group] += rows[row].1 / f64::from(sizes[group]);
            wealth.change(before, lost[group]);
            losses += u64::from(rows[row].1 > 0.0);
            accepted += 1;
        }
        if wealth.p_value() > delta {
            break;
        }
        if accepted > 0 {
            let coverage = accepted as f64 / n as f64;
            last_passed = Some(Certificate { epsilon, delta, threshold, coverage, n, losses, groups: Some(groups) });
        }
    }
    last_passed.ok_or_else(|| {
        let per_group = n.max(1) as f64 / groups.max(1) as f64;
        let mean = lost.iter().sum::<f64>() / groups.max(1) as f64;
        Refusal { n, rows_needed: needed(epsilon, delta, mean).map(|groups| (groups as f64 * per_group).ceil() as u64) }
    })
}

/// P-value of "the loss of a row of a new group is above `epsilon`" at one threshold that was fixed beforehand; `losses`: (rows,), each 0..1,
/// 0 where the row is not accepted; `group_of` as above.
///
/// # Panics
///
/// If rows and groups differ in number.
pub fn grouped_p_value(losses: &[f64], group_of: &[usize], epsilon: f64) -> f64 {
    assert_eq!(losses.len(), group_of.len(), "a group for every row");
    let mut groups = vec![(0.0, 0u32); group_of.iter().max().map_or(0, |last| last + 1)];
    for (loss, &group) in losses.iter().zip(group_of) {
        groups[group].0 += loss;
        groups[group].1 += 1;
    }
    let mut wealth = Wealth::without_loss(groups.len() as u64, epsilon);
    groups.iter().for_each(|(lost, rows)| wealth.change(0.0, lost / f64::from((*rows).max(1))));
    wealth.p_value()
}

#[cfg(test)]
mod tests {
    use super::super::{learn_then_test, learn_then_test_graded};
    use super::*;

    #[test]
    fn groups_of_one_row_are_rows() {
        let rows: Vec<(f32, f64)> = (0..200).map(|i| (1.0 - i as f32 / 200.0, f64::from(u8::from(i > 150)))).collect();
        let alone: Vec<usize> = (0..200).collect();
        let grouped = learn_then_test_grouped(&rows, &alone, 0.05, 0.1).expect("200 groups");
        let single = learn_then_test_graded(&rows, 0.05, 0.1).expect("200 rows");
        assert_eq!(Certificate { groups: None, ..grouped }, single);
        assert_eq!(grouped.groups, Some(200));
    }

    #[test]
    fn many_rows_of_few_groups_promise_nothing() {
        let rows = vec![(0.9, 0.0); 1000];
        let group_of: Vec<usize> = (0..1000).map(|row| row % 10).collect();
        // 59 groups without a loss are the least of any test; a refusal reckons with a third of δ: 80 of 100 rows each.
        let refusal = learn_then_test_grouped(&rows, &group_of, 0.05, 0.05).expect_err("10 groups");
        assert_eq!((refusal.n, refusal.rows_needed), (1000, Some(8000)));
        let group_of: Vec<usize> = (0..1000).map(|row| row % 75).collect();
        assert!(learn_then_test_grouped(&rows, &group_of, 0.05, 0.05).is_ok());
        assert!(learn_then_test_grouped(&[], &[], 0.05, 0.05).is_err());
    }

    /// What the walk tests at its last step is what is told of that threshold alone.
    #[test]
    fn the_walk_ends_where_the_p_value_says() {
        let group_of: Vec<usize> = (0..600).map(|row| row / 3).collect();
        let rows: Vec<(f32, f64)> =
            (0..600).map(|i| (1.0 - i as f32 / 600.0, f64::from(u8::from(i > 200 && i % 9 == 0)))).collect();
        let (epsilon, delta) = (0.05, 0.05);
        let certificate = learn_then_test_grouped(&rows, &group_of, epsilon, delta).expect("200 groups");
        let p = |threshold: f32| {
            let lost = |row: &(f32, f64)| if row.0 >= threshold { row.1 } else { 0.0 };
            grouped_p_value(&rows.iter().map(lost).collect::<Vec<_>>(), &group_of, epsilon)
        };
        assert!(certificate.losses > 0 && certificate.coverage < 1.0, "{certificate:?}");
        assert!(p(certificate.threshold) <= delta, "{}", p(certificate.threshold));
        assert!(p(certificate.threshold - 0.001) > delta, "{}", p(certificate.threshold - 0.001));
        assert_eq!(grouped_p_value(&[], &[], epsilon), 1.0);
    }

    /// The promise: over many draws of groups whose rows fail together, the share whose true risk exceeds ε is at most δ; the test that
    /// takes rows for independent breaks it.
    #[test]
    fn the_bound_holds_over_draws_of_groups() {
        const DRAWS: u32 = 1500;
        const GROUPS: usize = 100;
        let (epsilon, delta) = (0.05, 0.10);
        let mut state = 3u64;
        let mut uniform = || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            (crate::specialist::mix(state) >> 11) as f64 / (1u64 << 53) as f64
        };
        // A group has one score u ~ U(0,1) and 1 to 9 rows that are all lost with probability 0.5·(1 − u): risk at t is 0.25·(1 − t)².
        let risk = |certificate: &Certificate| 0.25 * (1.0 - f64::from(certificate.threshold)).powi(2);
        let (mut exceeded, mut naive, mut coverage) = (0, 0, 0.0);
        for _ in 0..DRAWS {
            let (mut rows, mut group_of) = (Vec::new(), Vec::new());
            for group in 0..GROUPS {
                let (score, size) = (uniform(), 1 + (uniform() * 9.0) as usize);
                let loss = f64::from(u8::from(uniform() < 0.5 * (1.0 - score)));
                rows.extend(vec![(score as f32, loss); size]);
                group_of.extend(vec![group; size]);
            }
            if let Ok(certificate) = learn_then_test_grouped(&rows, &group_of, epsilon, delta) {
                exceeded += u32::from(risk(&certificate) > epsilon);
                coverage += certificate.coverage / f64::from(DRAWS);
            }
            let rows: Vec<(f32, bool)> = rows.iter().map(|(score, loss)| (*score, *loss > 0.0)).collect();
            naive += u32::from(learn_then_test(&rows, epsilon, delta).is_ok_and(|c| risk(&c) > epsilon));
        }
        let share = |count: u32| f64::from(count) / f64::from(DRAWS);
        let monte_carlo = 3.0 * (delta * (1.0 - delta) / f64::from(DRAWS)).sqrt();
        assert!(share(exceeded) <= delta + monte_carlo, "{}", share(exceeded));
        assert!(coverage > 0.15, "a bound that accepts nothing is no test: {coverage}");
        assert!(share(naive) > delta + monte_carlo, "rows taken for independent would have done: {}", share(naive));
    }
}
