//! In which order, and how far? By expected saving a day of work, where the first specialist of all pays for the connection, the first on a
//! base for that base, and the first of those that share labels for the labels; as far as the chance of a loss stays below a limit.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{Case, DRAWS, Drawn, Forecast, Priced, Quantiles};
use crate::discover::task::TaskKind;

/// A base model that specialists share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Base {
    /// Of classifications and extractions.
    Encoder,
    /// Of what writes.
    Decoder,
}

impl Base {
    /// Which a kind of task needs.
    pub fn of(kind: TaskKind) -> Self {
        match kind {
            TaskKind::Classify | TaskKind::Extract => Self::Encoder,
            TaskKind::Generate => Self::Decoder,
        }
    }
}

/// Where a task stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Place {
    /// Id of the task.
    pub id: String,
    /// Is it recommended?
    pub above_line: bool,
    /// Why it is not, in words.
    pub why_not: Option<String>,
    /// Days that it carries for those after it, before any overrun: connection and base.
    pub shared_days: f64,
    /// Expected saving a day of work, with what it carries.
    pub value_per_day: f64,
    /// First and last day of the work, in weeks from today, with the expected overrun.
    pub weeks: [f64; 2],
}

/// All tasks in order, and what it comes to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Portfolio {
    /// Those above the line first, in the order of work; then the others by expected saving.
    pub order: Vec<Place>,
    /// Cost of all requests at the LLM over the horizon, in dollars.
    pub spend: Quantiles,
    /// Saving of what is above the line, over what needs no training, with everything that is shared.
    pub specialists: Quantiles,
    /// Saving of what needs no training, over all tasks.
    pub without_training: Quantiles,
    /// Both.
    pub saving: Quantiles,
    /// Both, at other losses per error: loss, and P10, P50, P90.
    pub by_loss: Vec<(f64, [f64; 3])>,
    /// Expected cost of what specialists share, in dollars: work for connection and bases, and idle machine time.
    pub shared_usd: [f64; 2],
    /// Labels that are paid for once and counted in several tasks: a saving, in dollars.
    pub shared_labels_usd: f64,
    /// Work above the line, before any overrun.
    pub days: f64,
    /// Expected hours that the machine works.
    pub machine_hours: f64,
}

/// Why a task is not on offer, whatever it would save.
pub type Barred = Option<String>;

/// Puts tasks in order. `barred` says which are not on offer.
pub fn order(
    forecast: &Forecast<'_>,
    cases: &[Case],
    priced: &[Priced],
    drawn: &[Drawn],
    barred: &[Barred],
) -> Portfolio {
    let a = forecast.assumptions;
    let reasons: Vec<Option<String>> = (0..cases.len())
        .map(|at| {
            let saving = &priced[at].saving;
            barred[at].clone().or_else(|| {
                if saving.mean <= 0.0 {
                    Some("a loss is expected".to_owned())
                } else if saving.p_loss > a.stop_loss_probability {
                    Some(format!("a loss has a chance of {:.0} %", 100.0 * saving.p_loss))
                } else {
                    None
                }
            })
        })
        .collect();
    let fits: Vec<usize> = (0..cases.len()).filter(|&at| reasons[at].is_none()).collect();
    let desk = Desk { forecast, cases, priced, drawn };
    let taken = desk.take(&fits);

    let mut order = Vec::new();
    let mut day = 0.0;
    let overrun = forecast.overrun();
    let mut bases = BTreeSet::new();
    for (step, &at) in taken.iter().enumerate() {
        let base = bases.insert(Base::of(cases[at].kind));
        let shared_days = if step == 0 { a.setup_days } else { 0.0 } + if base { a.base_days } else { 0.0 };
        let days = priced[at].days + shared_days;
        // Work to keep it running comes later.
        let now = (days - a.operations_days - a.retrainings * a.retraining_days) * overrun / a.engineers / 5.0;
        let value = priced[at].saving.mean - shared_days * overrun * a.engineer_day_usd;
        order.push(Place {
            id: cases[at].id.clone(),
            above_line: true,
            why_not: None,
            shared_days,
            value_per_day: value / days.max(f64::MIN_POSITIVE),
            weeks: [day, day + now],
        });
        day += now;
    }
    let mut others: Vec<usize> = (0..cases.len()).filter(|at| !taken.contains(at)).collect();
    others.sort_by(|&x, &y| priced[y].saving.mean.total_cmp(&priced[x].saving.mean).then(x.cmp(&y)));
    order.extend(others.into_iter().map(|at| Place {
        id: cases[at].id.clone(),
        above_line: false,
        why_not: reasons[at].clone().or_else(|| Some("it does not pay for what it would share".to_owned())),
        shared_days: 0.0,
        value_per_day: priced[at].value_per_day,
        weeks: [0.0, 0.0],
    }));
    desk.conclude(&taken, order)
}

struct Desk<'a> {
    forecast: &'a Forecast<'a>,
    cases: &'a [Case],
    priced: &'a [Priced],
    drawn: &'a [Drawn],
}

impl Desk<'_> {
    /// The tasks above the line, in the order of work.
    fn take(&self, fits: &[usize]) -> Vec<usize> {
        let by_value = |tasks: &mut Vec<usize>| {
            tasks.sort_by(|&x, &y| {
                self.priced[y].value_per_day.total_cmp(&self.priced[x].value_per_day).then(x.cmp(&y))
            });
        };
        let mut groups: Vec<Vec<usize>> = Vec::new();
        for base in [Base::Encoder, Base::Decoder] {
            let mut group: Vec<usize> =
                fits.iter().copied().filter(|&at| Base::of(self.cases[at].kind) == base).collect();
            by_value(&mut group);
            groups.push(group);
        }
        groups.retain(|group| !group.is_empty());
        let mut taken: Vec<usize> = Vec::new();
        loop {
            // Each group that is not yet taken, and all of them together: two may carry what neither can alone.
            let mut candidates: Vec<Vec<usize>> = groups.clone();
            if groups.len() > 1 {
                candidates.push(groups.concat());
            }
            // Else the beginning of one: what is worth most may pay where all of them together may lose, because one of them may be made alone.
            let halves = |n: usize| std::iter::successors(Some(n / 2), |n| Some(n / 2)).take_while(|n| *n > 0);
            let beginnings: Vec<Vec<usize>> =
                groups.iter().flat_map(|group| halves(group.len()).map(|n| group[..n].to_vec())).collect();
            let before = self.draws(&taken);
            let days = |tasks: &[usize]| tasks.iter().map(|&at| self.priced[at].days).sum::<f64>();
            let best = |candidates: Vec<Vec<usize>>| {
                let worth = candidates.into_iter().filter_map(|group| {
                    let after = self.draws(&[taken.as_slice(), &group].concat());
                    let gain: Vec<f64> = after.iter().zip(&before).map(|(after, before)| after - before).collect();
                    let made = |at: usize| group.iter().any(|&task| self.drawn[task].made[at]);
                    let of_made: Vec<f64> =
                        gain.iter().enumerate().filter(|(at, _)| made(*at)).map(|(_, gain)| *gain).collect();
                    let gain = Quantiles { p_loss: Quantiles::of(&of_made).p_loss, ..Quantiles::of(&gain) };
                    let limit = self.forecast.assumptions.stop_loss_probability;
                    (gain.mean > 0.0 && gain.p_loss <= limit).then(|| (gain.mean / days(&group), group))
                });
                worth.max_by(|a, b| a.0.total_cmp(&b.0))
            };
            let Some((_, group)) = best(candidates).or_else(|| best(beginnings)) else { break };
            groups.iter_mut().for_each(|other| other.retain(|at| !group.contains(at)));
            groups.retain(|other| !other.is_empty());
            taken.extend(group);
        }
        // What is open competes: the first of a base carries it, the others go by their own value.
        self.work_order(taken)
    }

    /// By value a day with what is carried, given what is done before.
    fn work_order(&self, mut tasks: Vec<usize>) -> Vec<usize> {
        let a = self.forecast.assumptions;
        let (overrun, mut open, mut ordered) = (self.forecast.overrun(), BTreeSet::new(), Vec::new());
        tasks.sort_unstable();
        while !tasks.is_empty() {
            let value = |at: usize| {
                let shared = if open.contains(&Base::of(self.cases[at].kind)) { 0.0 } else { a.base_days };
                (self.priced[at].saving.mean - shared * overrun * a.engineer_day_usd) / (self.priced[at].days + shared)
            };
            let best = (0..tasks.len()).max_by(|&x, &y| value(tasks[x]).total_cmp(&value(tasks[y])).then(y.cmp(&x)));
            let at = tasks.remove(best.expect("there is one"));
            open.insert(Base::of(self.cases[at].kind));
            ordered.push(at);
        }
        ordered
    }

    /// The saving of some tasks together with what they share, draw by draw.
    fn draws(&self, tasks: &[usize]) -> Vec<f64> {
        let (work, labels) = (self.shared_days(tasks), self.shared_labels(tasks));
        let day = self.forecast.assumptions.engineer_day_usd;
        (0..DRAWS)
            .map(|at| {
                // Where none of them is made, nothing is shared either.
                if !tasks.iter().any(|&task| self.drawn[task].made[at]) {
                    return 0.0;
                }
                let own: f64 = tasks.iter().map(|&task| self.drawn[task].saving[at]).sum();
                let hours: f64 = tasks.iter().map(|&task| self.drawn[task].hours[at]).sum();
                own - work * self.forecast.shared[at].overrun * day - self.forecast.idle_usd(hours) + labels
            })
            .collect()
    }

    fn shared_days(&self, tasks: &[usize]) -> f64 {
        let a = self.forecast.assumptions;
        let bases: BTreeSet<Base> = tasks.iter().map(|&at| Base::of(self.cases[at].kind)).collect();
        if tasks.is_empty() { 0.0 } else { a.setup_days + bases.len() as f64 * a.base_days }
    }

    /// Labels that several tasks count and one pays.
    fn shared_labels(&self, tasks: &[usize]) -> f64 {
        let mut paid = BTreeSet::new();
        let again =
            tasks.iter().filter(|&&at| self.cases[at].shares_labels.as_deref().is_some_and(|key| !paid.insert(key)));
        again.map(|&at| self.drawn[at].labels).sum()
    }

    fn conclude(&self, taken: &[usize], order: Vec<Place>) -> Portfolio {
        let a = self.forecast.assumptions;
        let specialists = self.draws(taken);
        let sum = |of: &dyn Fn(&Drawn, usize) -> f64| -> Vec<f64> {
            (0..DRAWS).map(|at| self.drawn.iter().map(|drawn| of(drawn, at)).sum()).collect()
        };
        let without_training = sum(&|drawn, at| drawn.without_training[at]);
        let saving: Vec<f64> = specialists.iter().zip(&without_training).map(|(a, b)| a + b).collect();
        let errors: Vec<f64> =
            (0..DRAWS).map(|at| taken.iter().map(|&task| self.drawn[task].errors[at]).sum()).collect();
        let mut losses = vec![0.0, 0.01, 0.1, 1.0, 10.0, a.loss_per_error_usd];
        losses.sort_by(f64::total_cmp);
        losses.dedup();
        let by_loss = losses.into_iter().map(|loss| {
            let draws: Vec<f64> =
                saving.iter().zip(&errors).map(|(s, n)| s + (a.loss_per_error_usd - loss) * n).collect();
            let quantiles = Quantiles::of(&draws);
            (loss, [quantiles.p10, quantiles.p50, quantiles.p90])
        });
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let hours: Vec<f64> = (0..DRAWS).map(|at| taken.iter().map(|&task| self.drawn[task].hours[at]).sum()).collect();
        let any = |at: usize| taken.iter().any(|&task| self.drawn[task].made[at]);
        let idle: Vec<f64> = hours
            .iter()
            .enumerate()
            .map(|(at, &hours)| if any(at) { self.forecast.idle_usd(hours) } else { 0.0 })
            .collect();
        let shared_days = self.shared_days(taken);
        let made = (0..DRAWS).filter(|&at| any(at)).count() as f64 / DRAWS as f64;
        // Requests of all tasks together, at the draws' own weeks.
        let spend = sum(&|drawn, at| drawn.spend[at]);
        Portfolio {
            order,
            spend: Quantiles::of(&spend),
            specialists: Quantiles::of(&specialists),
            without_training: Quantiles::of(&without_training),
            saving: Quantiles::of(&saving),
            by_loss: by_loss.collect(),
            shared_usd: [made * shared_days * self.forecast.overrun() * a.engineer_day_usd, mean(&idle)],
            shared_labels_usd: self.shared_labels(taken),
            days: shared_days + taken.iter().map(|&at| self.priced[at].days).sum::<f64>(),
            machine_hours: mean(&hours),
        }
    }
}
