//! *What is done with a roadmap?* Task files with their rows, which `metier build` takes as they are; and afterwards: did the saving come?
//!
//! ```text
//! DIR/forecasts.json         what was promised, for `--actuals`
//! DIR/NAME/task.toml         the task
//! DIR/NAME/train.jsonl       earlier rows; the build parts them by session or customer
//! DIR/NAME/test.jsonl        later rows: what they measure lies ahead of what was learnt
//! DIR/NAME/schema.json       of an extraction, or of answers that are written in a form
//! ```
//!
//! Rows hold texts of the log as they stand: a specialist must read what it will be asked. They belong where the log may lie.

pub mod actuals;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
};

use metier_model::{Digest, features::fold};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::build::BuildOutcome;

use super::{
    judge::rows::{self, MIN_ROWS_A_LABEL, label},
    report::Roadmap,
    saving::{
        Quantiles, Terms,
        chance::{Attempt, Evidence},
    },
    task::{Discovery, Gold, Task, TaskKind},
    traits::unfenced,
};

/// The first share of the time trains.
const EARLY: f64 = 0.8;
/// Of so many earlier rows in a thousand a certificate is made, and nothing is learnt: at ε = 2 % and δ = 5 % the least is 149 rows (or groups)
/// without an error, which the tenth that `metier build` would take of a few hundred rows does not hold.
const CALIBRATES_PER_MILLE: u64 = 333;
/// Fewest rows of a task file.
const MIN_ROWS: usize = 50;
/// The file with the forecasts.
pub const FORECASTS: &str = "forecasts.json";
const TASK_FILE: &str = "task.toml";
const TRAIN: &str = "train.jsonl";
const CALIBRATION: &str = "calibration.jsonl";
const TEST: &str = "test.jsonl";
const SCHEMA: &str = "schema.json";

/// Task files cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum ActError {
    /// A file or folder cannot be written.
    #[error("cannot write `{path}`")]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is there already.
    #[error("`{0}` is there already: name another folder, or remove it")]
    There(PathBuf),
    /// Forecasts cannot be read.
    #[error("cannot read the forecasts in `{path}`: they are written by `metier roadmap LOGS --write-tasks DIR`")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// What was written for a task.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Written {
    /// Its name.
    pub task: String,
    /// The task file; none where there is none to write.
    pub file: Option<PathBuf>,
    /// Why there is none.
    pub why_not: Option<String>,
    /// Training rows and later rows.
    pub rows: [u64; 2],
}

/// What was promised of a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Forecasted {
    /// Id of the task.
    pub id: String,
    /// Name of the specialist to be.
    pub task: String,
    /// Its kind.
    pub kind: TaskKind,
    /// What the forecast stands on.
    pub evidence: Evidence,
    /// Probability that it passes.
    pub chance: f64,
    /// Share of requests that it would answer alone.
    pub coverage: f64,
    /// Was it recommended?
    pub above_line: bool,
    /// Weeks that everything here is added up over.
    pub horizon_weeks: f64,
    /// Weeks of them in which it answers.
    pub live_weeks: f64,
    /// Requests.
    pub requests: Quantiles,
    /// Cost of a request at the LLM, under the next best option, and on own hardware, in dollars.
    pub unit_usd: [f64; 3],
    /// Loss per error.
    pub loss_per_error_usd: f64,
    /// Share answered alone and wrong where the LLM was right.
    pub error_rate: f64,
    /// Saving in running costs if it passes: without labels, builds and work.
    pub running: Quantiles,
    /// Saving with everything.
    pub saving: Quantiles,
    /// The terms behind it.
    pub terms: Terms,
}

/// Rows of a task file, early and late.
struct Rows {
    train: Vec<Value>,
    calibration: Vec<Value>,
    late: Vec<Value>,
    has_group: bool,
    schema: Option<String>,
    notes: Vec<String>,
}

/// The task file of a task, or why there is none.
pub fn task_file(task: &Task) -> Result<String, String> {
    rows_of(task).map(|rows| render(task, &rows))
}

fn rows_of(task: &Task) -> Result<Rows, String> {
    let kind = task.kind.kind;
    let (mut schema, mut form, mut notes) = (None, None, Vec::new());
    let mut unmet = 0;
    if kind == TaskKind::Extract {
        let (text, parsed) = task.answer_schema()?;
        form = Some(parsed);
        if task.identity.schema.is_none() {
            notes.push(format!(
                "No call declares a schema: {SCHEMA} was made from the answers; look whether it says what you want"
            ));
        }
        schema = Some(text.into_owned());
    }
    let mut seen = BTreeSet::new();
    let mut order: Vec<usize> = (0..task.examples.len()).collect();
    order.sort_by_key(|&at| (task.examples[at].time_ms, at));
    let mut usable = Vec::new();
    for at in order {
        let example = &task.examples[at];
        let gold = match &example.gold {
            Some(Gold::Label(gold)) => Some(gold.as_str()),
            _ => None,
        };
        let Some(output) = example.output.as_deref().filter(|output| !output.trim().is_empty()) else { continue };
        if example.input.trim().is_empty() || !seen.insert(fold(&example.input)) {
            continue;
        }
        let answer = match kind {
            TaskKind::Classify => Value::String(label(gold.unwrap_or(output))),
            TaskKind::Extract => match serde_json::from_str::<Value>(unfenced(output)) {
                Ok(value) if form.as_ref().is_none_or(|form| form.values(&value).is_ok()) => value,
                // A build would refuse the file for it.
                _ => {
                    unmet += 1;
                    continue;
                }
            },
            TaskKind::Generate => Value::String(output.to_owned()),
        };
        usable.push((example, answer));
    }
    if unmet > 0 {
        notes.push(format!(
            "{unmet} rows have an answer that does not meet the schema, and were left out: such requests will be answered otherwise"
        ));
    }
    if kind == TaskKind::Classify {
        let n = usable.len();
        let cut = (n as f64 * EARLY) as usize;
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        let trains = usable[..cut].iter().filter(|(example, _)| !calibrates(key_of(example)));
        trains.for_each(|(_, answer)| *counts.entry(answer.to_string()).or_default() += 1);
        // What a build cannot learn, and what it would refuse as a label that training does not have.
        usable.retain(|(_, answer)| counts.get(&answer.to_string()).is_some_and(|n| *n >= MIN_ROWS_A_LABEL));
        if usable.len() < n {
            notes.push(format!(
                "{} rows have an answer that stands fewer than {MIN_ROWS_A_LABEL} times in the rows to learn from, and were left out: such requests will be answered wrong or deferred",
                n - usable.len()
            ));
        }
        if usable.iter().map(|(_, answer)| answer.to_string()).collect::<BTreeSet<_>>().len() < 2 {
            return Err("its answers are all the same, or all different: there is nothing to learn".to_owned());
        }
    }
    if usable.len() < MIN_ROWS {
        return Err(format!("{} different rows with text and answer; at least {MIN_ROWS} are needed", usable.len()));
    }
    let has_group = usable.iter().any(|(example, _)| example.group.is_some());
    let cut = (usable.len() as f64 * EARLY) as usize;
    let key = if kind == TaskKind::Classify { "label" } else { "output" };
    let row = |(example, answer): &(&super::task::Example, Value)| {
        let mut row = json!({ "id": example.id, "text": example.input, key: answer });
        if has_group {
            // A row of nobody's is a group of its own.
            row["group"] = json!(example.group.clone().unwrap_or_else(|| format!("row {}", example.id)));
        }
        row
    };
    let early = usable[..cut].iter();
    let (calibration, train) = early.partition::<Vec<_>, _>(|(example, _)| calibrates(key_of(example)));
    Ok(Rows {
        train: train.into_iter().map(row).collect(),
        calibration: calibration.into_iter().map(row).collect(),
        late: usable[cut..].iter().map(row).collect(),
        has_group,
        schema,
        notes,
    })
}

/// What is never parted: a group, or a text.
fn key_of(example: &super::task::Example) -> &str {
    example.group.as_deref().unwrap_or(&example.input)
}

/// Whether an earlier row calibrates, by its group or its text.
pub fn calibrates(key: &str) -> bool {
    let digest = Digest::of(format!("roadmap calibration {}", fold(key)).as_bytes());
    u64::from_be_bytes(digest.0[..8].try_into().expect("eight bytes")) % 1000 < CALIBRATES_PER_MILLE
}

/// What a task file will hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planned {
    /// Rows that train, that calibrate, and that come later.
    pub rows: [u64; 3],
    /// Groups that the calibrating rows are of; none where no row has one.
    pub groups: Option<u64>,
}

/// Counted as the file will be written, and not as shares would have it: of few groups chance may put half as many on one side.
pub fn planned(task: &Task) -> Planned {
    let known = rows::known(task);
    let early = (known.len() as f64 * EARLY) as usize;
    let key = |row: &rows::Known| row.group.clone().unwrap_or_else(|| row.text.clone());
    let calibration: Vec<String> = known[..early].iter().map(key).filter(|key| calibrates(key)).collect();
    let has_group = known.iter().any(|row| row.group.is_some());
    let n = calibration.len() as u64;
    Planned {
        rows: [early as u64 - n, n, (known.len() - early) as u64],
        groups: has_group.then(|| calibration.iter().collect::<BTreeSet<_>>().len() as u64),
    }
}

fn render(task: &Task, rows: &Rows) -> String {
    let quote = |text: &str| toml::Value::from(text).to_string();
    let kind = task.kind.kind;
    let total = task.total();
    let mut text = format!(
        "# Written by `metier roadmap` for the task {} of {} calls. `metier build` takes it as it is.\n\
         # The answers are the LLM's own, where the log has no better: a specialist learns to agree with it.\n",
        task.id, total.calls
    );
    for note in &rows.notes {
        let _ = writeln!(text, "# {note}.");
    }
    let instruction = match kind {
        TaskKind::Classify => "Which of the known answers fits this text?",
        TaskKind::Extract => "Which values does this text give?",
        TaskKind::Generate => "Answer this text as the examples do.",
    };
    let said =
        task.identity.template.as_deref().map(|template| template.split_whitespace().collect::<Vec<_>>().join(" "));
    let instruction = said.filter(|said| !said.is_empty()).map_or_else(
        || instruction.to_owned(),
        |said| {
            // Templates hold their variables as `{}`.
            let said: String = said.replace("{}", "…").chars().take(400).collect();
            metier_traffic::privacy::masked(&said)
        },
    );
    let _ = write!(
        text,
        "name = {}\nkind = {}\ninstruction = {}\n\n[data]\ntrain = \"{TRAIN}\"\ncalibration = \"{CALIBRATION}\"  # a third of the earlier rows: a certificate needs them\ntest = \"{TEST}\"                # later rows\ntext = \"text\"\n",
        quote(&task.name),
        quote(kind.name()),
        quote(&instruction)
    );
    match kind {
        TaskKind::Classify => text += "label = \"label\"\n",
        TaskKind::Extract => {
            let _ = write!(text, "output = \"output\"\nschema = \"{SCHEMA}\"\n");
        }
        TaskKind::Generate => text += "output = \"output\"\n",
    }
    if rows.has_group {
        text += "group = \"group\"             # session or customer: never in two parts\n";
    }
    text += "\n[policy]\nmay_leave = false           # may a deferred request go to a backend outside? Its LLM lies there today\n\n[budget]\nminutes = 10\n";
    if kind == TaskKind::Classify {
        text += "up_to = \"both\"              # \"tuned\" tries longer\n";
    }
    text
}

/// Writes task files and rows of all tasks that have some, and the forecasts, into a new or empty folder.
pub fn write_tasks(discovery: &Discovery, roadmap: &Roadmap, dir: &Path) -> Result<Vec<Written>, ActError> {
    let is_empty = fs::read_dir(dir).map(|mut entries| entries.next().is_none()).unwrap_or(true);
    if dir.exists() && !is_empty {
        return Err(ActError::There(dir.to_owned()));
    }
    make_dir(dir)?;
    let mut all = Vec::new();
    for task in &discovery.tasks {
        let written = match rows_of(task) {
            Err(why) => Written { task: task.name.clone(), file: None, why_not: Some(why), rows: [0, 0] },
            Ok(rows) => {
                let folder = dir.join(&task.name);
                make_dir(&folder)?;
                write(&folder.join(TRAIN), &lines(&rows.train))?;
                write(&folder.join(CALIBRATION), &lines(&rows.calibration))?;
                write(&folder.join(TEST), &lines(&rows.late))?;
                if let Some(schema) = rows.schema.as_deref().filter(|_| task.kind.kind == TaskKind::Extract) {
                    write(&folder.join(SCHEMA), schema)?;
                }
                let file = folder.join(TASK_FILE);
                write(&file, &render(task, &rows))?;
                let rows = [(rows.train.len() + rows.calibration.len()) as u64, rows.late.len() as u64];
                Written { task: task.name.clone(), file: Some(file), why_not: None, rows }
            }
        };
        all.push(written);
    }
    let forecasts = serde_json::to_string_pretty(&forecasts(roadmap)).expect("forecasts are JSON");
    write(&dir.join(FORECASTS), &forecasts)?;
    Ok(all)
}

fn lines(rows: &[Value]) -> String {
    rows.iter().map(|row| row.to_string() + "\n").collect()
}

fn make_dir(dir: &Path) -> Result<(), ActError> {
    fs::create_dir_all(dir).map_err(|source| ActError::Write { path: dir.to_owned(), source })
}

fn write(path: &Path, text: &str) -> Result<(), ActError> {
    fs::write(path, text).map_err(|source| ActError::Write { path: path.to_owned(), source })
}

/// What a roadmap promises, task by task.
pub fn forecasts(roadmap: &Roadmap) -> Vec<Forecasted> {
    let assumed =
        |name: &str| roadmap.assumptions.iter().find(|stated| stated.name == name).map_or(0.0, |stated| stated.value);
    let tasks = roadmap.tasks.iter().filter_map(|task| Some((task, task.priced.as_ref()?)));
    tasks
        .map(|(task, priced)| {
            let live_weeks = (roadmap.horizon_weeks - assumed("weeks_to_live")).max(0.0);
            let terms = priced.terms;
            let answered = terms.replaced / priced.next_best_usd.max(f64::MIN_POSITIVE);
            let loss = assumed("loss_per_error_usd");
            Forecasted {
                id: task.id.clone(),
                task: task.name.clone(),
                kind: task.kind,
                evidence: task.judgement.evidence,
                chance: priced.chance.mean(),
                coverage: 1.0 - task.judgement.deferred.mean(),
                above_line: task.place.above_line,
                horizon_weeks: roadmap.horizon_weeks,
                live_weeks,
                requests: priced.requests,
                unit_usd: [priced.llm_usd, priced.next_best_usd, priced.own_usd],
                loss_per_error_usd: loss,
                error_rate: if loss > 0.0 && answered > 0.0 {
                    terms.errors / loss / answered
                } else {
                    task.judgement.differs.mean()
                },
                running: priced.running,
                saving: priced.saving,
                terms,
            }
        })
        .collect()
}

/// Forecasts that were written before.
pub fn read_forecasts(path: &Path) -> Result<Vec<Forecasted>, ActError> {
    let error = |source: Box<dyn std::error::Error + Send + Sync>| ActError::Read { path: path.to_owned(), source };
    let text = fs::read_to_string(path).map_err(|source| error(source.into()))?;
    serde_json::from_str(&text).map_err(|source| error(source.into()))
}

/// How many rows of a task a specialist could learn from.
pub fn usable_rows(task: &Task) -> usize {
    rows::known(task).len()
}

/// Forecasts that were put to the test: those whose specialist was built since, by its `run.json` under the store's `root`. It passed if it
/// has a certificate that its test rows do not contradict, and answers at least `coverage` of them alone.
pub fn attempts(forecasts: &[Forecasted], root: &Path, coverage: f64) -> Vec<Attempt> {
    let built = |task: &str| -> Option<BuildOutcome> {
        let folders = fs::read_dir(root.join(task)).ok()?.filter_map(Result::ok);
        let runs = folders.filter_map(|folder| {
            let path = folder.path().join("run.json");
            let changed = fs::metadata(&path).and_then(|file| file.modified()).ok()?;
            Some((changed, path))
        });
        let (_, newest) = runs.max()?;
        serde_json::from_str(&fs::read_to_string(newest).ok()?).ok()
    };
    let attempts = forecasts.iter().filter_map(|forecast| {
        let outcome = built(&forecast.task)?;
        Some(Attempt {
            task: forecast.task.clone(),
            kind: forecast.kind,
            evidence: forecast.evidence,
            forecast: forecast.chance,
            passed: passed(&outcome, coverage),
        })
    });
    attempts.collect()
}

/// Did a build reach what a roadmap calls passing?
pub fn passed(outcome: &BuildOutcome, coverage: f64) -> bool {
    outcome.certificate.is_some() && outcome.held != Some(false) && outcome.test_coverage >= coverage
}
