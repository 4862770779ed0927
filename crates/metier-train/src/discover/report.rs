//! *What do we tell whom?* One roadmap, three ways: a page for people ([`html`]), the same as JSON (what it serialises to) and as CSV
//! ([`csv`]).
//!
//! Whoever reads the page for two minutes sees what is saved, how sure that is, and what comes first; whoever reads it for twenty finds every
//! term, every assumption with its source, and the rows that a figure comes from, by the names that the log itself gives them. No text is
//! shown before what is personal in it is masked.

pub mod csv;
pub mod html;

use std::collections::BTreeMap;

use metier_traffic::privacy::{PersonalKind, masked};
use serde::{Deserialize, Serialize};

use super::{
    act,
    judge::{Judgement, Verdict, rows},
    saving::{
        Forecast, Priced, Quantiles,
        assumptions::{Assumptions, Stated},
        case,
        chance::{Attempt, Brier, brier},
        options::Alternative,
        order::{self, Place, Portfolio},
    },
    task::{Discovery, IdentityBy, Reading, Sampling, Task, TaskKind, Traits, Volume},
};

/// Characters of a text that are shown.
const SHOWN_CHARACTERS: usize = 300;
/// Examples of a task that are shown.
const SHOWN_EXAMPLES: usize = 6;
/// A saving is called little where its median is less than so many days of an engineer.
const LITTLE_DAYS: f64 = 10.0;
/// Models without a price that are named.
const NAMED_MODELS: usize = 5;

/// Everything that is said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Roadmap {
    /// The weeks that savings and costs are added up over.
    pub horizon_weeks: f64,
    /// What was read.
    pub reading: Reading,
    /// Tasks in the order of the roadmap.
    pub tasks: Vec<Entry>,
    /// Tasks by verdict.
    pub verdicts: BTreeMap<String, u64>,
    /// What it comes to.
    pub portfolio: Portfolio,
    /// Is it little, in one sentence?
    pub little: Option<String>,
    /// What was assumed, and by whom.
    pub assumptions: Vec<Stated>,
    /// Attempts of this installation that forecasts were corrected by.
    pub attempts: u64,
    /// How good these forecasts were, once there are enough.
    pub brier: Option<Brier>,
    /// Seed of all draws.
    pub seed: u64,
    /// True where the traffic was generated.
    pub synthetic: bool,
    /// The file with a line for every row of the logs, where one was written: see [`trace`](super::trace).
    #[serde(default)]
    pub rows_file: Option<String>,
}

/// One task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Id of the task, the same from run to run.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its kind, and what speaks for it.
    pub kind: TaskKind,
    /// The same in words.
    pub kind_because: String,
    /// The prompt that its calls share, masked and cut.
    pub template: Option<String>,
    /// Telling words.
    pub terms: Vec<String>,
    /// All its calls.
    pub total: Volume,
    /// Calls and cost in dollars by week.
    pub weeks: Vec<(String, u64, f64)>,
    /// Calls by model.
    pub models: BTreeMap<String, u64>,
    /// How examples stand for calls.
    pub sampling: Sampling,
    /// What the guess is made from.
    pub traits: Traits,
    /// Personal data by kind: examples that hold some.
    pub personal: BTreeMap<PersonalKind, u64>,
    /// What was found out.
    pub judgement: Judgement,
    /// The verdict, with prices.
    pub verdict: Verdict,
    /// What it would save; none where it has no price.
    pub priced: Option<Priced>,
    /// Why it has none.
    pub unpriced: Option<String>,
    /// Where it stands.
    pub place: Place,
    /// What to know about it.
    pub notes: Vec<String>,
    /// Some of its calls, masked.
    pub examples: Vec<Shown>,
    /// The task file that `metier build` takes, where there is one.
    pub task_file: Option<String>,
}

/// A call, masked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Shown {
    /// The log's name for it.
    pub id: String,
    /// File and line.
    pub place: String,
    /// What was asked.
    pub input: String,
    /// What was answered.
    pub output: String,
}

/// Judged tasks with prices, in order.
pub fn draw_up(
    discovery: &Discovery,
    judgements: Vec<Judgement>,
    assumptions: &Assumptions,
    attempts: &[Attempt],
    seed: u64,
) -> Roadmap {
    let mut cases = Vec::new();
    let mut notes: Vec<Vec<String>> = Vec::new();
    // Position in `cases`, or why there is none.
    let mut positions: Vec<Result<usize, String>> = Vec::new();
    for (task, judgement) in discovery.tasks.iter().zip(&judgements) {
        match case::case(task, &discovery.reading, judgement, attempts, assumptions) {
            Ok((case, said)) => {
                positions.push(Ok(cases.len()));
                cases.push(case);
                notes.push(said);
            }
            Err(why) => {
                positions.push(Err(why));
                notes.push(Vec::new());
            }
        }
    }
    let n_weeks = cases.iter().map(|case| case.weeks.len()).max().unwrap_or(1);
    let forecast = Forecast::new(n_weeks, assumptions, seed);
    let (priced, drawn): (Vec<_>, Vec<_>) = cases.iter().map(|case| forecast.price(case)).unzip();
    let tasks_of_cases =
        discovery.tasks.iter().zip(&judgements).zip(&positions).filter(|(_, position)| position.is_ok());
    let barred: Vec<order::Barred> = tasks_of_cases.map(|((task, judgement), _)| barred(task, judgement)).collect();
    let portfolio = order::order(&forecast, &cases, &priced, &drawn, &barred);

    let mut entries: Vec<Entry> = discovery
        .tasks
        .iter()
        .zip(judgements)
        .zip(positions)
        .zip(notes)
        .map(|(((task, judgement), position), notes)| {
            let priced = position.as_ref().ok().map(|&at| priced[at].clone());
            let place = portfolio.order.iter().find(|place| place.id == task.id).cloned();
            let place = place.unwrap_or_else(|| Place {
                id: task.id.clone(),
                above_line: false,
                why_not: position.as_ref().err().cloned(),
                shared_days: 0.0,
                value_per_day: 0.0,
                weeks: [0.0, 0.0],
            });
            let verdict = verdict(&judgement, priced.as_ref(), &place);
            entry(task, judgement, verdict, priced, position.err(), place, notes)
        })
        .collect();
    let rank = |entry: &Entry| portfolio.order.iter().position(|place| place.id == entry.id).unwrap_or(usize::MAX);
    entries.sort_by_key(rank);
    let mut verdicts = BTreeMap::new();
    entries.iter().for_each(|entry| *verdicts.entry(entry.verdict.name().to_owned()).or_default() += 1);
    Roadmap {
        horizon_weeks: assumptions.horizon_weeks,
        reading: discovery.reading.clone(),
        little: unknown(&discovery.reading, &entries).or_else(|| little(&portfolio, assumptions)),
        tasks: entries,
        verdicts,
        portfolio,
        assumptions: assumptions.stated(),
        attempts: attempts.len() as u64,
        brier: brier(attempts, seed),
        seed,
        synthetic: is_synthetic(discovery),
        rows_file: None,
    }
}

/// What `metier demo traffic` writes says so in every id.
fn is_synthetic(discovery: &Discovery) -> bool {
    let mut ids = discovery.tasks.iter().flat_map(|task| &task.examples).map(|example| &example.id).peekable();
    ids.peek().is_some() && ids.all(|id| id.starts_with("synthetic/"))
}

/// Why a task is not on offer, whatever it would save.
fn barred(task: &Task, judgement: &Judgement) -> order::Barred {
    match &judgement.verdict {
        Verdict::No { .. } => Some("the trial says no".to_owned()),
        Verdict::Cheaper { by } => Some(by.clone()),
        _ if task.identity.by == IdentityBy::Rest => Some("these calls are no task: what fits nowhere else".to_owned()),
        _ => None,
    }
}

/// The verdict once prices are known: what could be done, and is not worth it because something cheaper is there, says so.
fn verdict(judgement: &Judgement, priced: Option<&Priced>, place: &Place) -> Verdict {
    let could = matches!(judgement.verdict, Verdict::Proven { .. } | Verdict::Partial { .. });
    match priced {
        Some(priced) if could && !place.above_line && priced.without_training.mean > 0.0 => {
            let by: Vec<&str> = priced.alternatives.iter().map(|other| other.alternative.words()).collect();
            Verdict::Cheaper { by: by.join(", ") }
        }
        _ => judgement.verdict.clone(),
    }
}

/// Where nothing has a price nothing can be said of money, and "nothing pays" would be wrong.
fn unknown(reading: &Reading, entries: &[Entry]) -> Option<String> {
    let unpriced: u64 = entries.iter().map(|entry| entry.total.unpriced).sum();
    if unpriced == 0 || entries.iter().any(|entry| entry.priced.is_some()) {
        return None;
    }
    let mut models: Vec<&str> =
        entries.iter().flat_map(|entry| &entry.models).map(|(model, _)| model.as_str()).collect();
    models.sort_unstable();
    models.dedup();
    models.truncate(NAMED_MODELS);
    Some(format!(
        "What this traffic costs, and what could be saved, is not known: no price holds for {unpriced} of {} calls ({}). Name prices with `--prices FILE`.",
        reading.calls,
        models.join(", ")
    ))
}

/// If little pays, a reader should know before anything else.
fn little(portfolio: &Portfolio, assumptions: &Assumptions) -> Option<String> {
    let above = portfolio.order.iter().filter(|place| place.above_line).count();
    let limit = LITTLE_DAYS * assumptions.engineer_day_usd;
    if above == 0 {
        let rest = if portfolio.without_training.mean > 0.0 {
            " What needs no training saves something; see below."
        } else {
            " Nor does anything that needs no training."
        };
        return Some(format!("No specialist pays for its work on this traffic.{rest}"));
    }
    (portfolio.saving.p50 < limit).then(|| {
        format!(
            "Little pays here: the saving to expect is less than {LITTLE_DAYS:.0} days of an engineer ({}).",
            html::usd(limit)
        )
    })
}

fn entry(
    task: &Task,
    judgement: Judgement,
    verdict: Verdict,
    priced: Option<Priced>,
    unpriced: Option<String>,
    place: Place,
    notes: Vec<String>,
) -> Entry {
    let dollars = |picousd: u64| picousd as f64 / 1e12;
    let identity = &task.identity;
    Entry {
        id: task.id.clone(),
        name: task.name.clone(),
        kind: task.kind.kind,
        kind_because: task.kind.evidence.clone(),
        template: identity.template.as_deref().map(shown),
        terms: identity.terms.iter().map(|term| masked(term)).collect(),
        total: task.total(),
        weeks: task
            .by_week()
            .iter()
            .map(|(week, volume)| (week.to_string(), volume.calls, dollars(volume.cost_picousd)))
            .collect(),
        models: task.by_model().iter().map(|(model, volume)| ((*model).to_owned(), volume.calls)).collect(),
        sampling: task.sampling,
        traits: masked_traits(&task.traits),
        personal: task.personal.iter().map(|(kind, count)| (*kind, count.examples)).collect(),
        task_file: act::task_file(task).ok(),
        judgement,
        verdict,
        priced,
        unpriced,
        place,
        notes,
        examples: examples(task),
    }
}

fn masked_traits(traits: &Traits) -> Traits {
    let labels = traits.labels.iter().map(|(label, n)| (masked(label), *n)).collect();
    Traits { labels, ..traits.clone() }
}

/// Different texts, evenly over the task's examples.
fn examples(task: &Task) -> Vec<Shown> {
    let known = rows::known(task);
    let positions: Vec<usize> = if known.is_empty() {
        (0..task.examples.len()).collect()
    } else {
        known.iter().map(|row| row.example).collect()
    };
    let n = positions.len().min(SHOWN_EXAMPLES);
    let chosen = (0..n).map(|at| &task.examples[positions[at * positions.len() / n]]);
    chosen
        .map(|example| Shown {
            id: masked(&example.id),
            place: example.place.clone(),
            input: shown(&example.input),
            output: example.output.as_deref().map(shown).unwrap_or_default(),
        })
        .collect()
}

/// Masked first, cut then: half a card number would pass.
fn shown(text: &str) -> String {
    let text = masked(text);
    let mut cut: String = text.chars().take(SHOWN_CHARACTERS).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    cut
}

/// What the result line of `metier roadmap --json` says of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Tasks by verdict.
    pub verdicts: BTreeMap<String, u64>,
    /// Saving over the horizon in dollars: one draw of ten lies below.
    pub saving_p10: f64,
    /// Its median.
    pub saving_p50: f64,
    /// One draw of ten lies above.
    pub saving_p90: f64,
    /// Probability of a loss.
    pub p_loss: f64,
    /// Cost of the traffic over the horizon in dollars, expected.
    pub spend: f64,
}

impl Roadmap {
    /// What fits a line.
    pub fn summary(&self) -> Summary {
        let Quantiles { p10, p50, p90, p_loss, .. } = self.portfolio.saving;
        Summary {
            verdicts: self.verdicts.clone(),
            saving_p10: p10,
            saving_p50: p50,
            saving_p90: p90,
            p_loss,
            spend: self.portfolio.spend.mean,
        }
    }

    /// Whether anything has a price: if not, no sum of this page says anything.
    pub fn is_priced(&self) -> bool {
        self.tasks.iter().any(|task| task.priced.is_some()) || self.tasks.iter().all(|task| task.total.unpriced == 0)
    }

    /// What was assumed under this name.
    pub fn assumed(&self, name: &str) -> Option<f64> {
        self.assumptions.iter().find(|stated| stated.name == name).map(|stated| stated.value)
    }

    /// Tasks above the line, in order.
    pub fn above_line(&self) -> impl Iterator<Item = &Entry> {
        self.tasks.iter().filter(|task| task.place.above_line)
    }

    /// Expected saving of each option that needs no training, over all tasks.
    pub fn by_alternative(&self) -> BTreeMap<Alternative, f64> {
        let mut sums = BTreeMap::new();
        let all = self.tasks.iter().filter_map(|task| task.priced.as_ref()).flat_map(|priced| &priced.alternatives);
        all.for_each(|other| *sums.entry(other.alternative).or_default() += other.saving.mean);
        sums
    }
}
