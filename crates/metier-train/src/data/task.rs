//! The task file: what a domain team writes to say what it wants. Unknown keys are errors that suggest the nearest.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use metier_model::specialist::store::is_name;
use serde::Deserialize;

use metier_model::specialist::manifest::Stage;

use super::{
    distil::{Distil, RawDistil, Teacher},
    extract::{self, ExtractTask},
    generate::{self, GenerateTask, Tune},
    nearest,
    prune::{Prune, RawPrune},
};

pub use metier_model::specialist::manifest::Kind;

/// Minutes of a budget, at most: a year.
const MAX_BUDGET_MINUTES: f64 = 525_600.0;

/// Most decoders that one build tries.
const MAX_DECODERS: usize = 4;

/// Most stages of a specialist.
const MAX_STAGES: usize = 2;

/// What the name of a file of answers ends with, where a column's name is expected.
const ANSWERS: &str = ".jsonl";

/// Every key there is, by table; the empty table is the top of the file.
const KEYS: [(&str, &[&str]); 9] = [
    (
        "",
        &["name", "kind", "instruction", "data", "reference", "target", "policy", "budget", "tune", "prune", "distil"],
    ),
    (
        "data",
        &[
            "train",
            "validation",
            "calibration",
            "test",
            "text",
            "label",
            "output",
            "schema",
            "spans",
            "out_of_scope",
            "group",
            "slice",
            "hierarchy",
        ],
    ),
    ("reference", &["column"]),
    ("target", &["metric", "positive", "margin", "epsilon", "delta", "in_scope", "stages", "fall_back"]),
    ("policy", &["may_leave"]),
    ("budget", &["minutes", "from", "up_to", "decoders"]),
    ("prune", &["keep", "heal_epochs"]),
    ("distil", &["teacher", "temperature", "weight", "rows"]),
    ("tune", &["rank", "alpha", "epochs", "learning_rate", "batch_rows", "canaries", "adapter", "ngrams"]),
];

/// A task file, read and checked.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskFile {
    /// Name of the specialist to be.
    pub name: String,
    /// What it gives back.
    pub kind: Kind,
    /// The task in one sentence.
    pub instruction: String,
    /// Where the rows are.
    pub data: Data,
    /// Column with the answers of what the specialist is compared with; `None`: the gold label is the reference.
    pub reference: Option<String>,
    /// The same in a file of a teacher's answers.
    pub reference_answers: Option<PathBuf>,
    /// What is to be reached.
    pub target: Target,
    /// The label whose F1 is the metric; none: see [`positive`](super::positive).
    pub positive: Option<String>,
    /// Share of the validation rows in scope that keeps its right label while as much as can be is told to be out of scope; none: the label is called
    /// like any other.
    pub in_scope: Option<f64>,
    /// Stages that may answer, one after the other: 2 puts a smaller rung that needs no base model before the one that is taken.
    pub stages: usize,
    /// Of labels that are paths: may the beginning of one be answered, where the whole is not sure?
    pub fall_back: bool,
    /// May a deferred request leave the boundary?
    pub may_leave: bool,
    /// Time after which no further setting is tried.
    pub budget_minutes: f64,
    /// The lowest rung that is made.
    pub from: Stage,
    /// The highest rung that may run.
    pub up_to: Stage,
    /// The decoders that the rung `decoder` is made over, smallest first, each a name of the catalogue or a path with a `/` in it; none: the one
    /// that is served.
    pub decoders: Vec<String>,
    /// Of a classification: how a decoder's adapter is trained, where a rung has one.
    pub tune: Tune,
    /// May a classifier read n-grams? Without them it can leave for programs that know none.
    pub ngrams: bool,
    /// Which shares of a decoder's layers are tried.
    pub prune: Prune,
    /// Whom it learns from beside its rows.
    pub distil: Option<Distil>,
    /// What an extraction needs beside that, where it is one.
    pub extract: Option<ExtractTask>,
    /// What a generation needs beside that, where it is one.
    pub generate: Option<GenerateTask>,
}

/// Files and columns.
#[derive(Clone, Debug, PartialEq)]
pub struct Data {
    /// Training files; at least one.
    pub train: Vec<PathBuf>,
    /// Validation files; none: taken from the training rows.
    pub validation: Vec<PathBuf>,
    /// Calibration files; none: taken from the training rows.
    pub calibration: Vec<PathBuf>,
    /// Test files; none: taken from the training rows.
    pub test: Vec<PathBuf>,
    /// Columns with the inputs.
    pub text: Vec<String>,
    /// Column with the label, with the answer of an extraction, or with the output of a generation.
    pub label: String,
    /// The same in a file of a teacher's answers: then no column is read.
    pub label_answers: Option<PathBuf>,
    /// Label that means "none of these".
    pub out_of_scope: Option<String>,
    /// Column whose equal values never part.
    pub group: Option<String>,
    /// Columns by whose values the figures are told apart; none: every other column of few values.
    pub slice: Vec<String>,
    /// What separates the parts of a label, where labels are paths of a tree.
    pub hierarchy: Option<String>,
}

/// What is to be reached.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// What rungs are compared by.
    pub metric: Metric,
    /// A smaller rung may be this much worse.
    pub margin: f64,
    /// Bound on the share of accepted errors.
    pub epsilon: f64,
    /// Probability that the bound may fail.
    pub delta: f64,
}

/// Metrics of a classification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Share of rows that are right; of several labels a row, those whose set is exactly right.
    Accuracy,
    /// Mean of the classes' F1.
    MacroF1,
    /// F1 over all rows and labels; with one label a row it equals accuracy.
    MicroF1,
    /// F1 of one label.
    F1 {
        /// Its class; 0 until the labels are known.
        positive: usize,
    },
}

impl Metric {
    /// Its name in task files and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::MacroF1 => "macro_f1",
            Self::MicroF1 => "micro_f1",
            Self::F1 { .. } => "f1",
        }
    }
}

/// A task file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// Cannot be read at all.
    #[error("cannot read task file `{path}`")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Not TOML, or a value of the wrong type.
    #[error("task file `{path}` is not well formed")]
    Toml {
        /// Which.
        path: PathBuf,
        /// Why, with line and column.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A key that does not exist.
    #[error("task file `{path}`: there is no key `{key}`{}", hint(.nearest))]
    UnknownKey {
        /// Which file.
        path: PathBuf,
        /// The key, with its table.
        key: String,
        /// What may have been meant.
        nearest: Option<String>,
    },
    /// A value that cannot be used.
    #[error("task file `{path}`: {message}")]
    Value {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
}

fn hint(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|key| format!("; did you mean `{key}`?")).unwrap_or_default()
}

#[derive(Deserialize)]
struct RawTask {
    name: String,
    kind: String,
    instruction: Option<String>,
    data: RawData,
    reference: Option<RawReference>,
    target: Option<RawTarget>,
    policy: Option<RawPolicy>,
    budget: Option<RawBudget>,
    tune: Option<RawTune>,
    prune: Option<RawPrune>,
    distil: Option<RawDistil>,
}

/// `[tune]` of all kinds that are tuned.
#[derive(Deserialize)]
struct RawTune {
    rank: Option<usize>,
    alpha: Option<f32>,
    learning_rate: Option<f32>,
    epochs: Option<usize>,
    batch_rows: Option<usize>,
    canaries: Option<usize>,
    adapter: Option<String>,
    ngrams: Option<bool>,
}

#[derive(Deserialize)]
struct RawData {
    train: OneOrMany,
    validation: Option<OneOrMany>,
    calibration: Option<OneOrMany>,
    test: Option<OneOrMany>,
    text: Option<OneOrMany>,
    label: Option<String>,
    output: Option<String>,
    schema: Option<String>,
    spans: Option<String>,
    out_of_scope: Option<String>,
    group: Option<String>,
    slice: Option<OneOrMany>,
    hierarchy: Option<String>,
}

#[derive(Deserialize)]
struct RawReference {
    column: String,
}

#[derive(Deserialize, Default)]
struct RawTarget {
    metric: Option<String>,
    positive: Option<String>,
    margin: Option<f64>,
    epsilon: Option<f64>,
    delta: Option<f64>,
    in_scope: Option<f64>,
    stages: Option<usize>,
    fall_back: Option<bool>,
}

#[derive(Deserialize, Default)]
struct RawPolicy {
    may_leave: Option<bool>,
}

#[derive(Deserialize, Default)]
struct RawBudget {
    minutes: Option<f64>,
    from: Option<String>,
    up_to: Option<String>,
    decoders: Option<OneOrMany>,
}

#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    pub(super) fn list(self) -> Vec<String> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

impl TaskFile {
    /// Reads a task file. `environment` looks up `${NAME}` in data paths, which are relative to the file's folder.
    pub fn read(path: &Path, environment: &dyn Fn(&str) -> Option<String>) -> Result<Self, TaskError> {
        let text = fs::read_to_string(path).map_err(|source| TaskError::Io { path: path.to_owned(), source })?;
        Self::parse(&text, path, environment)
    }

    /// The same from text; `path` stands in messages and its folder is where data paths start.
    pub fn parse(text: &str, path: &Path, environment: &dyn Fn(&str) -> Option<String>) -> Result<Self, TaskError> {
        let toml_error = |source| TaskError::Toml { path: path.to_owned(), source: Box::new(source) };
        let table: toml::Table = toml::from_str(text).map_err(toml_error)?;
        check_keys(&table, path)?;
        let raw: RawTask = toml::from_str(text).map_err(toml_error)?;
        let wrong = |message: String| TaskError::Value { path: path.to_owned(), message };
        if !is_name(&raw.name) {
            return Err(wrong(format!(
                "`{}` is no name of a specialist: lower-case letters, digits and hyphens, at most 63",
                raw.name
            )));
        }
        let kind = match raw.kind.as_str() {
            "classify" => Kind::Classify,
            "extract" => Kind::Extract,
            "generate" => Kind::Generate,
            other => {
                let near = nearest(other, ["classify", "extract", "generate"]).map(str::to_owned);
                return Err(wrong(format!("there is no kind `{other}`{}", hint(&near))));
            }
        };
        let folder = path.parent().unwrap_or(Path::new(""));
        let paths = |files: Option<OneOrMany>| -> Result<Vec<PathBuf>, TaskError> {
            files
                .map_or(Vec::new(), OneOrMany::list)
                .iter()
                .map(|file| Ok(folder.join(expand(file, environment).map_err(wrong)?)))
                .collect()
        };
        let mut target = raw.target.unwrap_or_default();
        let text = raw.data.text.map_or_else(|| vec!["text".to_owned()], OneOrMany::list);
        let schema = extract::only(paths(raw.data.schema.map(OneOrMany::One))?);
        let foreign = |keys: &[(&str, bool)], owner: &str| match keys.iter().find(|(_, is_there)| *is_there) {
            Some((key, _)) => {
                Err(wrong(format!("`{key}` belongs to `kind = \"{owner}\"`, and this is `{}`", raw.kind)))
            }
            None => Ok(()),
        };
        let ngrams = raw.tune.as_ref().and_then(|tune| tune.ngrams);
        if kind != Kind::Classify {
            let keys = [
                ("target.stages", target.stages.is_some()),
                ("target.fall_back", target.fall_back.is_some()),
                ("tune.ngrams", ngrams.is_some()),
            ];
            foreign(&keys, "classify")?;
        }
        // A file in the place of a column: what `metier dataset label` wrote.
        let answers_in = |column: &str| -> Result<Option<PathBuf>, TaskError> {
            let file = column.ends_with(ANSWERS).then(|| expand(column, environment).map_err(wrong));
            Ok(file.transpose()?.map(|file| folder.join(file)))
        };
        let reference = raw.reference.as_ref().map(|reference| reference.column.clone());
        let reference_answers = reference.as_deref().map(answers_in).transpose()?.flatten();
        let (output, spans) = (raw.data.output.as_deref(), raw.data.spans.clone());
        let (label, none) = (raw.data.label.is_some(), raw.data.out_of_scope.is_some());
        let hierarchy = raw.data.hierarchy.is_some();
        let of_classify = [("data.label", label), ("data.out_of_scope", none), ("data.hierarchy", hierarchy)];
        let of_extract = [
            ("data.spans", spans.is_some()),
            ("tune.batch_rows", raw.tune.as_ref().is_some_and(|tune| tune.batch_rows.is_some())),
        ];
        let of_generate = [
            ("tune.rank", raw.tune.as_ref().is_some_and(|tune| tune.rank.is_some())),
            ("tune.alpha", raw.tune.as_ref().is_some_and(|tune| tune.alpha.is_some())),
            ("tune.adapter", raw.tune.as_ref().is_some_and(|tune| tune.adapter.is_some())),
        ];
        let canaries = raw.tune.as_ref().is_some_and(|tune| tune.canaries.is_some());
        if kind != Kind::Generate {
            foreign(&[("tune.canaries", canaries)], "generate")?;
        }
        let (mut extract, mut generate, mut tune) = (None, None, Tune::decoder());
        let answer = match kind {
            Kind::Classify => {
                foreign(&of_extract, "extract")?;
                let of_both = [("data.schema", schema.is_some()), ("data.output", output.is_some())];
                foreign(&of_both, "extract")?;
                tune = Tune::new(raw.tune.map(of_adapters).unwrap_or_default(), tune).map_err(wrong)?;
                raw.data.label.clone().unwrap_or_else(|| "label".to_owned())
            }
            Kind::Extract => {
                foreign(&of_classify, "classify")?;
                foreign(&[("reference", raw.reference.is_some()), ("prune", raw.prune.is_some())], "classify")?;
                foreign(&of_generate, "generate")?;
                let answer = output.or(spans.as_deref()).unwrap_or("output").to_owned();
                let metric = target.metric.take();
                let tune = raw.tune.map(|tune| extract::RawTune {
                    epochs: tune.epochs,
                    learning_rate: tune.learning_rate,
                    batch_rows: tune.batch_rows,
                });
                let task = ExtractTask::new(metric.as_deref(), schema.as_deref(), (output, spans), text.len(), tune);
                extract = Some(task.map_err(wrong)?);
                answer
            }
            Kind::Generate => {
                foreign(&of_classify, "classify")?;
                foreign(&of_extract, "extract")?;
                let tune = raw.tune.map(of_adapters);
                generate = Some(GenerateTask::new(target.metric.take(), schema, tune).map_err(wrong)?);
                output.unwrap_or("output").to_owned()
            }
        };
        let in_folder = |file: &str| expand(file, environment).map(|file| folder.join(file));
        let distil = raw.distil.map(|distil| Distil::new(distil, &in_folder)).transpose().map_err(wrong)?;
        match (&distil, kind) {
            (None, _) => {}
            (Some(_), Kind::Extract) => {
                return Err(wrong("`distil` is for `classify` and `generate`, and this is `extract`".to_owned()));
            }
            (Some(Distil { teacher: Teacher::Decoder(_), .. }), Kind::Classify) => {
                return Err(wrong(
                    "`distil.teacher` of a classification is a specialist: write `specialist:NAME`".to_owned(),
                ));
            }
            (Some(distil), Kind::Generate) if !distil.rows.is_empty() => {
                return Err(wrong(
                    "`distil.rows` are for `classify`: a teacher's answers to rows without any come from `metier dataset label`".to_owned(),
                ));
            }
            _ => {}
        }
        let has_none = raw.data.out_of_scope.is_some();
        let data = Data {
            train: paths(Some(raw.data.train))?,
            validation: paths(raw.data.validation)?,
            calibration: paths(raw.data.calibration)?,
            test: paths(raw.data.test)?,
            text,
            label_answers: answers_in(&answer)?,
            label: answer,
            out_of_scope: raw.data.out_of_scope,
            group: raw.data.group,
            slice: raw.data.slice.map_or_else(Vec::new, OneOrMany::list),
            hierarchy: raw.data.hierarchy,
        };
        if data.hierarchy.as_ref().is_some_and(String::is_empty) {
            return Err(wrong("`data.hierarchy` is what separates the parts of a label, such as \"/\"".to_owned()));
        }
        if data.train.is_empty() || data.text.is_empty() {
            return Err(wrong("`data.train` and `data.text` must not be empty".to_owned()));
        }
        let metric = match target.metric.as_deref() {
            // Of a set of labels to be right is to be exactly the one.
            None | Some("accuracy" | "exact_match") => Metric::Accuracy,
            Some("macro_f1") => Metric::MacroF1,
            Some("micro_f1") => Metric::MicroF1,
            Some("f1") => Metric::F1 { positive: 0 },
            Some(known @ ("field_f1" | "token_f1" | "rouge_l")) => {
                return Err(wrong(format!("metric `{known}` is not supported by this version for `classify`")));
            }
            Some(other) => {
                let near = nearest(other, ["accuracy", "exact_match", "macro_f1", "micro_f1", "f1"]).map(str::to_owned);
                return Err(wrong(format!("there is no metric `{other}`{}", hint(&near))));
            }
        };
        if target.positive.is_some() && !matches!(metric, Metric::F1 { .. }) {
            return Err(wrong(
                "`target.positive` names the label of metric `f1`, which this task does not have".to_owned(),
            ));
        }
        let share = |value: Option<f64>, default: f64, key: &str, low: bool| {
            let value = value.unwrap_or(default);
            let fits = value < 1.0 && (value > 0.0 || (low && value == 0.0));
            fits.then_some(value).ok_or_else(|| wrong(format!("`target.{key}` = {value} must lie between 0 and 1")))
        };
        let fall_back = target.fall_back.unwrap_or(false);
        if fall_back && data.hierarchy.is_none() {
            let why = "`target.fall_back` answers with a part of a label's path: `data.hierarchy` must say what separates them";
            return Err(wrong(why.to_owned()));
        }
        let stages = target.stages.unwrap_or(1);
        if !(1..=MAX_STAGES).contains(&stages) {
            return Err(wrong(format!("`target.stages` = {stages} must be 1 to {MAX_STAGES}")));
        }
        if stages > 1 && ngrams == Some(false) {
            let why =
                "`target.stages` = 2 asks a rung first that reads n-grams, and `tune.ngrams` = false does without";
            return Err(wrong(why.to_owned()));
        }
        let budget = raw.budget.unwrap_or_default();
        if kind != Kind::Classify {
            foreign(&[("budget.from", budget.from.is_some())], "classify")?;
        }
        // Answers are dear to write: their makers are cut only where the task says so.
        let is_cut = kind == Kind::Classify || raw.prune.is_some();
        let prune = Prune::new(raw.prune).map_err(wrong)?;
        let prune = if is_cut { prune } else { Prune { keep: Vec::new(), ..prune } };
        // A decoder takes half a gigabyte and minutes: whoever wants one says so.
        let (rungs, usual): (&[Stage], Stage) = match kind {
            Kind::Generate => (&Stage::GENERATING[1..], Stage::Adapter),
            Kind::Classify => (&Stage::CLASSIFYING, Stage::Tuned),
            Kind::Extract => (&Stage::ALL, Stage::Tuned),
        };
        let rung = |name: Option<&str>, usual: Stage| match name {
            None => Ok(usual),
            Some(name) => rungs.iter().copied().find(|stage| stage.name() == name).ok_or_else(|| {
                let near = nearest(name, rungs.iter().map(|rung| rung.name())).map(str::to_owned);
                wrong(format!("there is no rung `{name}`{}", hint(&near)))
            }),
        };
        let from = rung(budget.from.as_deref(), rungs[0])?;
        let up_to = rung(budget.up_to.as_deref(), usual.max(from))?;
        if from > up_to {
            let (from, up_to) = (from.name(), up_to.name());
            return Err(wrong(format!("`budget.from` = `{from}` lies above `budget.up_to` = `{up_to}`")));
        }
        let decoders = budget.decoders.map_or_else(Vec::new, OneOrMany::list);
        if !decoders.is_empty() && up_to != Stage::Decoder {
            return Err(wrong(format!(
                "`budget.decoders` are what the rung `decoder` is made over, and `budget.up_to` is `{}`",
                up_to.name()
            )));
        }
        if decoders.len() > MAX_DECODERS || (1..decoders.len()).any(|at| decoders[..at].contains(&decoders[at])) {
            let problem = format!("`budget.decoders` must be at most {MAX_DECODERS} different ones, smallest first");
            return Err(wrong(problem));
        }
        let decoders = decoders
            .iter()
            .map(|name| {
                if name.contains(['/', std::path::MAIN_SEPARATOR]) {
                    Ok(in_folder(name)?.display().to_string())
                } else {
                    Ok(name.clone())
                }
            })
            .collect::<Result<_, _>>()
            .map_err(wrong)?;
        let budget_minutes = budget.minutes.unwrap_or(10.0);
        if budget_minutes.is_nan() || budget_minutes <= 0.0 {
            return Err(wrong(format!("`budget.minutes` = {budget_minutes} must be more than 0")));
        }
        if budget_minutes > MAX_BUDGET_MINUTES {
            let problem = format!("`budget.minutes` = {budget_minutes} is more than a year ({MAX_BUDGET_MINUTES})");
            return Err(wrong(problem));
        }
        Ok(Self {
            instruction: raw.instruction.unwrap_or_else(|| match kind {
                Kind::Classify => "Which label fits this text?".to_owned(),
                Kind::Extract => "Which values does this text give for the fields of the schema?".to_owned(),
                Kind::Generate => "Write the output for this text.".to_owned(),
            }),
            name: raw.name,
            kind,
            data,
            reference: reference.filter(|_| reference_answers.is_none()),
            reference_answers,
            target: Target {
                metric,
                margin: share(target.margin, 0.01, "margin", true)?,
                epsilon: share(target.epsilon, 0.02, "epsilon", false)?,
                delta: share(target.delta, 0.05, "delta", false)?,
            },
            positive: target.positive,
            in_scope: match target.in_scope {
                None => None,
                Some(_) if !has_none => {
                    let why = "`target.in_scope` says what the label `data.out_of_scope` may cost, and there is none";
                    return Err(wrong(why.to_owned()));
                }
                share_of => Some(share(share_of, 0.95, "in_scope", false)?),
            },
            stages,
            fall_back,
            may_leave: raw.policy.unwrap_or_default().may_leave.unwrap_or(false),
            budget_minutes,
            from,
            up_to,
            decoders,
            tune,
            ngrams: ngrams.unwrap_or(true),
            prune,
            distil,
            extract,
            generate,
        })
    }
}

fn of_adapters(tune: RawTune) -> generate::RawTune {
    let RawTune { rank, alpha, learning_rate, epochs, batch_rows: _, canaries, adapter, ngrams: _ } = tune;
    generate::RawTune { rank, alpha, learning_rate, epochs, canaries, adapter }
}

fn check_keys(table: &toml::Table, path: &Path) -> Result<(), TaskError> {
    for (prefix, known) in KEYS {
        let table = if prefix.is_empty() { Some(table) } else { table.get(prefix).and_then(toml::Value::as_table) };
        for key in table.into_iter().flat_map(toml::Table::keys) {
            if known.contains(&key.as_str()) {
                continue;
            }
            // A key at the wrong place is a frequent slip: then its own table is the suggestion.
            let elsewhere =
                KEYS.iter().find(|(_, keys)| keys.contains(&key.as_str())).map(|(table, _)| full(table, key));
            let near = nearest(key, known.iter().copied()).map(|near| full(prefix, near));
            return Err(TaskError::UnknownKey {
                path: path.to_owned(),
                key: full(prefix, key),
                nearest: elsewhere.or(near),
            });
        }
    }
    Ok(())
}

fn full(table: &str, key: &str) -> String {
    if table.is_empty() { key.to_owned() } else { format!("{table}.{key}") }
}

/// Replaces `${NAME}`; a variable that is not set is an error.
fn expand(path: &str, environment: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut rest = path;
    let mut expanded = String::new();
    while let Some(at) = rest.find("${") {
        let end = rest[at..].find('}').ok_or_else(|| format!("`{path}` lacks a `}}`"))? + at;
        let name = &rest[at + 2..end];
        let value =
            environment(name).ok_or_else(|| format!("`{path}`: the environment variable `{name}` is not set"))?;
        expanded.push_str(&rest[..at]);
        expanded.push_str(&value);
        rest = &rest[end + 1..];
    }
    Ok(expanded + rest)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn parse(text: &str) -> Result<TaskFile, TaskError> {
        TaskFile::parse(text, Path::new("tasks/t.toml"), &|name| (name == "METIER_DATA").then(|| "/data".to_owned()))
    }

    #[test]
    fn defaults() {
        let task = parse("name = \"a-1\"\nkind = \"classify\"\n[data]\ntrain = [\"a.csv\", \"${METIER_DATA}/b.csv\"]")
            .unwrap();
        assert_eq!(task.data.train, [Path::new("tasks/a.csv"), Path::new("/data/b.csv")]);
        assert_eq!((task.data.text.as_slice(), task.data.label.as_str()), (["text".to_owned()].as_slice(), "label"));
        let Target { metric, margin, epsilon, delta } = task.target;
        assert_eq!((metric, margin, epsilon, delta), (Metric::Accuracy, 0.01, 0.02, 0.05));
        assert!(!task.may_leave, "nothing leaves unless the task says so");
    }

    #[track_caller]
    fn check(text: &str, message: &str) {
        let error = parse(text).expect_err("must be refused");
        assert!(error.to_string().ends_with(message), "`{error}` does not end with `{message}`");
    }

    #[test]
    fn refuses_with_reasons() {
        const OK: &str = "name = \"a\"\nkind = \"classify\"\n";
        let with = |rest: &str| format!("{OK}{rest}\n[data]\ntrain = \"a.csv\"");
        let data = |rest: &str| format!("{OK}[data]\ntrain = \"a.csv\"\n{rest}");
        check(&with("instructions = \"x\""), "there is no key `instructions`; did you mean `instruction`?");
        check(&data("lable = \"x\""), "there is no key `data.lable`; did you mean `data.label`?");
        check(&data("epsilon = 0.1"), "there is no key `data.epsilon`; did you mean `target.epsilon`?");
        check(&data("colour = 1"), "there is no key `data.colour`");
        check(&data("text = 1"), "is not well formed");
        check("name = \"A b\"\nkind = \"classify\"\n[data]\ntrain = \"a\"", "digits and hyphens, at most 63");
        check(
            "name = \"a\"\nkind = \"extrct\"\n[data]\ntrain = \"a\"",
            "there is no kind `extrct`; did you mean `extract`?",
        );
        let extract = |rest: &str| format!("name = \"a\"\nkind = \"extract\"\n[data]\ntrain = \"a.csv\"\n{rest}");
        check(&extract(""), "an extraction needs a JSON Schema file that says what to answer");
        check(&extract("label = \"x\""), "`data.label` belongs to `kind = \"classify\"`, and this is `extract`");
        check(&data("output = \"x\""), "`data.output` belongs to `kind = \"extract\"`, and this is `classify`");
        check(&data("[tune]\nepochs = 0"), "`tune.epochs` = 0 must be 1 to 1000");
        check(
            &data("[tune]\nbatch_rows = 3"),
            "`tune.batch_rows` belongs to `kind = \"extract\"`, and this is `classify`",
        );
        check(&data("[prune]\nkeep = 1.5"), "`prune.keep` = 1.5 must be more than 0, at most 1");
        check(&data("[prune]\nkeep = [0.6, 0.7]"), "shares between 0 and 1, each smaller than the one before");
        check(&data("[prune]\nheal_epochs = 0"), "`prune.heal_epochs` = 0 must be 1 to 100");
        check(
            &data("[budget]\nfrom = \"tuned\"\nup_to = \"head\""),
            "`budget.from` = `tuned` lies above `budget.up_to` = `head`",
        );
        check(
            &data("[budget]\ndecoders = [\"a\"]"),
            "`budget.decoders` are what the rung `decoder` is made over, and `budget.up_to` is `tuned`",
        );
        check(
            &data("[budget]\nup_to = \"decoder\"\ndecoders = [\"a\", \"b\", \"a\"]"),
            "`budget.decoders` must be at most 4 different ones, smallest first",
        );
        check(
            &extract("schema = \"s.json\"\n[prune]\nkeep = 0.5"),
            "`prune` belongs to `kind = \"classify\"`, and this is `extract`",
        );
        check(
            &data("[target]\nmetric = \"token_f1\""),
            "metric `token_f1` is not supported by this version for `classify`",
        );
        check(&data("[target]\nmetric = \"acuracy\""), "there is no metric `acuracy`; did you mean `accuracy`?");
        check(
            &data("[target]\npositive = \"x\""),
            "`target.positive` names the label of metric `f1`, which this task does not have",
        );
        check(&data("[target]\nin_scope = 0.9"), "what the label `data.out_of_scope` may cost, and there is none");
        check(
            &data("out_of_scope = \"x\"\n[target]\nin_scope = 1.0"),
            "`target.in_scope` = 1 must lie between 0 and 1",
        );
        check(&data("[distil]\nteacher = \"specialist:\""), "`distil.teacher` = `specialist:` lacks a name");
        check(&data("[distil]\nteacher = \"a.gguf\""), "is a specialist: write `specialist:NAME`");
        check(
            &data("[distil]\nteacher = \"specialist:a\"\nweight = 2"),
            "`distil.weight` = 2 must lie between 0 and 1",
        );
        check(
            &data("[distil]\nteacher = \"specialist:a\"\ntemperature = 0"),
            "`distil.temperature` = 0 must be more than 0, at most 20",
        );
        check(&data("[target]\nfall_back = true"), "`data.hierarchy` must say what separates them");
        check(&data("hierarchy = \"\""), "separates the parts of a label, such as \"/\"");
        check(&data("[target]\nstages = 3"), "`target.stages` = 3 must be 1 to 2");
        check(
            &extract("schema = \"s.json\"\n[target]\nstages = 2"),
            "`target.stages` belongs to `kind = \"classify\"`, and this is `extract`",
        );
        check(&data("[target]\nepsilon = 0.0"), "`target.epsilon` = 0 must lie between 0 and 1");
        check(&data("[target]\ndelta = nan"), "`target.delta` = NaN must lie between 0 and 1");
        check(&data("test = \"${NOT_SET}/t.csv\""), "the environment variable `NOT_SET` is not set");
        check(&data("[budget]\nup_to = \"bth\""), "there is no rung `bth`; did you mean `both`?");
        check(&data("[budget]\nminutes = inf"), "`budget.minutes` = inf is more than a year (525600)");
        check(&data("[budget]\nminutes = 0"), "`budget.minutes` = 0 must be more than 0");
        check(&data("text = []"), "`data.train` and `data.text` must not be empty");
    }
}
