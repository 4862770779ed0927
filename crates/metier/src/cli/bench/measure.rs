//! Ours and theirs in turns: A B A B …, medians with the lowest and the highest.

use super::{super::Failure, Row, machine::Watch};

/// One side of a comparison: measures once, a value for each output.
pub(super) type Side<'a> = &'a mut dyn FnMut() -> Result<Vec<f64>, Failure>;

/// What one run of a case yields.
#[derive(Clone, Debug)]
pub(super) struct Output {
    pub(super) case: String,
    pub(super) unit: &'static str,
    /// Rates: more is better. Times and bytes: less is.
    pub(super) more_is_better: bool,
    pub(super) limit: Option<f64>,
}

impl Output {
    pub(super) fn rate(case: impl Into<String>, unit: &'static str) -> Self {
        Self { case: case.into(), unit, more_is_better: true, limit: None }
    }

    pub(super) fn time(case: impl Into<String>) -> Self {
        Self { case: case.into(), unit: "ms", more_is_better: false, limit: None }
    }

    pub(super) fn within(self, limit: Option<f64>) -> Self {
        Self { limit, ..self }
    }
}

/// Threads that each side computes with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) threads: usize,
    pub(super) repeats: usize,
}

/// Runs both sides in turns, after one run of ours that does not count (theirs warm themselves up), and tells a row for each output.
pub(super) fn compare(
    plan: Plan,
    outputs: Vec<Output>,
    ours: Side<'_>,
    theirs: Option<(&str, Side<'_>)>,
    tell: &mut dyn FnMut(Row),
) -> Result<(), Failure> {
    let (mut values, mut peers) = (vec![Vec::new(); outputs.len()], vec![Vec::new(); outputs.len()]);
    let mut notes = Disturbed::default();
    ours()?;
    let (peer, mut theirs) = theirs.map_or((None, None), |(name, side)| (Some(name), Some(side)));
    for _ in 0..plan.repeats {
        let watch = Watch::start();
        for (values, value) in values.iter_mut().zip(ours()?) {
            values.push(value);
        }
        notes.see("ours", plan.threads, watch);
        if let Some(theirs) = theirs.as_mut() {
            let watch = Watch::start();
            for (values, value) in peers.iter_mut().zip(theirs()?) {
                values.push(value);
            }
            notes.see("peer", plan.threads, watch);
        }
    }
    let note = notes.tell();
    for ((output, mine), other) in outputs.into_iter().zip(values).zip(peers) {
        let (value, range) = median(mine);
        let mut row = Row::new("engine", output.case, value, output.unit);
        row.spread = Some(range[1] - range[0]);
        row.range = Some(range);
        if let (Some(peer), false) = (peer, other.is_empty()) {
            let (theirs, range) = median(other);
            row.peer = Some(peer.to_owned());
            row.peer_value = Some(theirs);
            row.peer_range = Some(range);
            row.ratio = Some(if output.more_is_better { value / theirs } else { theirs / value });
        }
        row.limit = output.limit;
        row.share_of_limit = output.limit.map(|limit| value / limit);
        row.note.clone_from(&note);
        tell(row);
    }
    Ok(())
}

/// The middle value (of an even number the mean of the middle two), and the lowest and highest. At least one value.
pub(super) fn median(mut values: Vec<f64>) -> (f64, [f64; 2]) {
    values.sort_by(f64::total_cmp);
    let (low, high) = (values[0], values[values.len() - 1]);
    let middle = (values[values.len() / 2] + values[(values.len() - 1) / 2]) / 2.0;
    (middle, [low, high])
}

/// A share of the values lies at or below the result (nearest rank); zero without values.
pub(super) fn at_quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

/// Runs in which the machine was not as it should be. A guest kernel may stack two busy threads on one CPU for seconds; a hypervisor may
/// give the CPU away; another process may want it.
#[derive(Debug, Default)]
struct Disturbed {
    runs: usize,
    stacked: usize,
    stolen: usize,
    crowded: usize,
}

impl Disturbed {
    fn see(&mut self, side: &str, threads: usize, watch: Watch) {
        let Some((busy, stolen)) = watch.stop() else { return };
        self.runs += 1;
        // A peer's run includes the loading of its model, on one thread: its use of CPUs says nothing here.
        self.stacked += usize::from(side == "ours" && busy < 0.6 * threads as f64);
        self.stolen += usize::from(stolen > 0.05 * threads as f64);
        self.crowded += usize::from(side == "ours" && busy > threads as f64 + 0.3);
    }

    fn tell(&self) -> Option<String> {
        let told = [
            (self.stacked, "threads shared a CPU or waited"),
            (self.stolen, "the hypervisor took CPU time"),
            (self.crowded, "other processes ran"),
        ];
        let told: Vec<String> = told
            .iter()
            .filter(|(n, _)| *n > 0)
            .map(|(n, what)| format!("{what} in {n} of {} runs", self.runs))
            .collect();
        (!told.is_empty()).then(|| told.join("; "))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_ratio_above_one_means_that_ours_is_better() {
        let outputs = vec![Output::rate("rate", "tokens/s").within(Some(40.0)), Output::time("time")];
        let mut rows = Vec::new();
        let (mut ours, mut theirs) = (|| Ok(vec![20.0, 5.0]), || Ok(vec![10.0, 20.0]));
        let plan = Plan { threads: 1, repeats: 3 };
        compare(plan, outputs, &mut ours, Some(("peer", &mut theirs)), &mut |row| rows.push(row)).unwrap();
        assert_eq!(rows.iter().map(|row| row.ratio.unwrap()).collect::<Vec<_>>(), [2.0, 4.0]);
        assert_eq!(rows[0].share_of_limit, Some(0.5));
        assert_eq!((rows[0].spread, rows[1].peer_range), (Some(0.0), Some([20.0, 20.0])));
    }

    #[test]
    fn quantiles_are_values_that_occurred() {
        let values = [4.0, 1.0, 3.0, 2.0];
        assert_eq!((at_quantile(&values, 0.5), at_quantile(&values, 0.95), at_quantile(&[], 0.5)), (2.0, 4.0, 0.0));
        assert_eq!(median(vec![3.0, 1.0, 2.0]), (2.0, [1.0, 3.0]));
        assert_eq!(median(vec![4.0, 1.0]), (2.5, [1.0, 4.0]), "not the better of two");
    }
}
