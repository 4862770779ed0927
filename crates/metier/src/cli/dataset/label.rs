//! `metier dataset label`: what does a teacher answer to the rows of a task?
//!
//! ```text
//! rows ─► those without an answer ─► gateway (policy, deadline, price, record) ─► one durable line each ─► file beside the rows
//! ```
//!
//! Stopped at any moment, the same command goes on where it was, and nothing is paid for twice.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use clap::Args;
use futures_util::{StreamExt as _, stream};
use metier_gateway::{Caller, Fault, Gateway, GatewayError, Reply, RequestContext};
use metier_model::{Progress, Unit, extract::Schema, proof::interval::wilson, specialist::sets::in_json};
use metier_traffic::{
    price::usd,
    said::{labels_in, object_in},
    wire::{ChatRequest, Message, ResponseFormat, Role},
};
use metier_train::{
    TaskFile,
    data::{
        answers::{Answer, Answers, Asked, Writer, key},
        sets::is_list,
        table::{Input, inputs},
        task::Kind,
    },
};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::super::{CommonArgs, Failure, Outcome, bases, line, progress::Bars, serve};
use crate::{
    config::{BackendSettings, Boundary, Environment, Settings, variable},
    server::now_ms,
};

/// Failures in a row after which the rest is left for another run.
const MAX_FAILURES: usize = 5;
/// When one row must be answered, its retries included.
const DEADLINE: Duration = Duration::from_secs(120);
/// Labels that are told to a teacher, at most: more would fill the prompt of every row.
const MAX_LABELS: usize = 512;
/// Tokens of an answer that is a label, at most.
const MAX_LABEL_TOKENS: u32 = 128;
/// Tokens of any other answer, at most.
const MAX_TEXT_TOKENS: u32 = 2_048;
/// Bytes of an answer of no use that are kept.
const MAX_SAID_BYTES: usize = 200;
/// Picodollars of a dollar.
const PICOUSD: f64 = 1e12;

/// Arguments of the verb.
#[derive(Debug, Args)]
pub(super) struct LabelArgs {
    /// The task file
    #[arg(value_name = "TASK.toml")]
    task: PathBuf,
    /// Who answers: the decoder, or the model of a backend that may be asked by name (`direct = true`)
    #[arg(long, value_name = "NAME")]
    model: String,
    /// Where answers are kept; the same file again goes on where it was
    #[arg(long, short, value_name = "FILE.jsonl")]
    output: PathBuf,
    /// Ask no more once this is spent; what is under way then is still paid for
    #[arg(long, value_name = "USD")]
    budget_usd: Option<f64>,
    /// Ask for so many rows at most
    #[arg(long, value_name = "N")]
    rows: Option<usize>,
    /// Ask so many answered rows a second time: how often the teacher agrees with itself bounds what a student can reach
    #[arg(long, value_name = "N", default_value_t = 0)]
    twice: usize,
    /// A label that it may answer with, once for each; default: those in the task's label column
    #[arg(long = "label", value_name = "LABEL")]
    labels: Vec<String>,
    /// Rows that are asked for at the same time
    #[arg(long, value_name = "N", default_value_t = 4)]
    concurrency: usize,
}

/// A row to be asked for.
#[derive(Clone, Debug)]
struct Question {
    input: Input,
    again: bool,
}

/// The result line.
#[derive(Debug, Serialize)]
struct Labelled {
    name: String,
    model: String,
    /// Different rows of the task.
    rows: usize,
    /// Of them, with an answer that is a label.
    answered: usize,
    /// Of them, answered with something else.
    useless: usize,
    /// Requests that failed in this run; another run asks again.
    failed: usize,
    /// Spent for the file, over all runs; `null` where the model has no price.
    cost_usd: Option<String>,
    /// How often it answered the same when asked twice.
    agreement_with_itself: Option<Share>,
    /// How often it answers the gold label, where there is one.
    agreement_with_gold: Option<Share>,
}

/// A share of rows with its 95 % interval (Wilson).
#[derive(Debug, Serialize)]
struct Share {
    value: f64,
    interval: [f64; 2],
    n: u64,
}

/// Runs the verb.
pub(super) fn run(args: &LabelArgs, common: &CommonArgs) -> Outcome {
    let task = TaskFile::read(&args.task, &variable).map_err(Failure::usage)?;
    let (settings, environment) = common.settings()?;
    check_boundary(&task, &settings, &args.model)?;
    let rows = rows(&task).map_err(Failure::usage)?;
    let wanted = Wanted::of(&task, args, &rows)?;
    let asked = Asked::new(&task.name, &args.model, &wanted.prompt(&task.instruction));
    let (mut writer, mut answers) = Writer::open(&args.output, &asked).map_err(Failure::usage)?;
    let open = questions(args, &rows, &answers);
    let mut bars = Bars::new();
    let mut failed = 0;
    if !open.is_empty() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("cannot start the thread that asks").map_err(Failure::Environment)?;
        let teacher = Teacher::open(args, &settings, &environment, wanted.prompt(&task.instruction), &wanted)?;
        let told = runtime.block_on(ask_all(args, &teacher, open, &mut writer, &mut answers, &mut bars));
        runtime.block_on(teacher.gateway.shutdown(Duration::from_secs(2)));
        bars.finish();
        failed = told?;
    }
    let labelled = summary(&task, args, &rows, &answers, failed);
    if common.json {
        line(&labelled);
    } else {
        tell(&labelled, args, &rows);
    }
    if failed > 0 { Err(Failure::Found) } else { Ok(()) }
}

/// A teacher outside the boundary sees every text of the task: the task itself must allow that.
fn check_boundary(task: &TaskFile, settings: &Settings, model: &str) -> Outcome {
    let named = |backend: &&BackendSettings| backend.model == model || backend.name == model;
    match settings.backend.iter().find(named) {
        Some(backend) if backend.boundary == Boundary::Outside && !task.may_leave => Err(Failure::usage(anyhow!(
            "`{}` lies outside, and the task keeps its texts inside: set `may_leave = true` under `[policy]` of the task file if they may leave, or ask a model inside",
            backend.name
        ))),
        _ => Ok(()),
    }
}

/// All different rows of a task, by what a specialist reads of them.
fn rows(task: &TaskFile) -> Result<Vec<Input>, metier_train::data::DataError> {
    let data = &task.data;
    let mut seen = BTreeSet::new();
    let mut rows = Vec::new();
    for file in data.train.iter().chain(&data.validation).chain(&data.calibration).chain(&data.test) {
        let mut read = inputs(file, &data.text, &data.label)?;
        if task.kind == Kind::Classify {
            // A list in one form, so that it equals an answer's.
            read.iter_mut().for_each(|input| input.label = input.label.take().map(in_one_form));
        }
        rows.extend(read.into_iter().filter(|input| seen.insert(key(&input.text))));
    }
    Ok(rows)
}

/// A list of labels sorted, each once; anything else as it is.
fn in_one_form(label: String) -> String {
    let list: Option<BTreeSet<String>> = is_list(&label).then(|| serde_json::from_str(&label).ok()).flatten();
    list.map_or(label, |list| in_json(list.iter().map(|label| label.trim())))
}

/// What the teacher may answer.
fn labels(args: &LabelArgs, rows: &[Input]) -> Result<Vec<String>, Failure> {
    let names = |label: &String| match serde_json::from_str::<Vec<String>>(label) {
        Ok(list) if is_list(label) => list,
        _ => vec![label.clone()],
    };
    let gold = || rows.iter().filter_map(|row| row.label.as_ref()).flat_map(names).collect::<BTreeSet<String>>();
    let labels = if args.labels.is_empty() { gold() } else { args.labels.iter().cloned().collect() };
    match labels.len() {
        0 | 1 => Err(Failure::usage(anyhow!(
            "the rows name {} labels: say which there are with `--label ONE --label OTHER …`",
            labels.len()
        ))),
        n if n > MAX_LABELS => Err(Failure::usage(anyhow!("{n} labels: at most {MAX_LABELS} are told to a teacher"))),
        _ => Ok(labels.into_iter().collect()),
    }
}

/// What an answer is, by the task's kind.
enum Wanted {
    /// One of these.
    Label(Vec<String>),
    /// Any number of these.
    Labels(Vec<String>),
    /// JSON of this schema, whose values stand in the text.
    Values(Box<Schema>),
    /// A text, or JSON of this schema.
    Text(Option<Value>),
}

impl Wanted {
    fn of(task: &TaskFile, args: &LabelArgs, rows: &[Input]) -> Result<Self, Failure> {
        if let Some(extract) = &task.extract {
            return Ok(Self::Values(Box::new(extract.schema.clone())));
        }
        let Some(generate) = &task.generate else {
            let several = rows.iter().filter_map(|row| row.label.as_deref()).any(is_list);
            return labels(args, rows).map(if several { Self::Labels } else { Self::Label });
        };
        let Some(path) = &generate.schema else { return Ok(Self::Text(None)) };
        let schema = std::fs::read_to_string(path).map_err(anyhow::Error::new);
        let schema = schema.and_then(|text| Ok(serde_json::from_str(&text)?));
        let schema = schema.with_context(|| format!("cannot use the schema `{}`", path.display()));
        schema.map(|schema| Self::Text(Some(schema))).map_err(Failure::Usage)
    }

    /// What is said beside the row.
    fn prompt(&self, instruction: &str) -> String {
        match self {
            Self::Label(labels) => {
                let list: Vec<String> = labels.iter().map(|label| format!("- {label}")).collect();
                let list = list.join("\n");
                format!("{instruction}\nAnswer with exactly one of these labels and nothing else:\n{list}")
            }
            Self::Labels(labels) => {
                let list: Vec<String> = labels.iter().map(|label| format!("- {label}")).collect();
                let list = list.join("\n");
                format!(
                    "{instruction}\nSeveral of these labels may apply, or none. Answer with a JSON object whose `labels` is the list of those that do, and nothing else:\n{list}"
                )
            }
            Self::Values(schema) => format!(
                "{instruction}\nAnswer with one JSON object that meets this JSON Schema and nothing else. Give only values that stand in the text; leave out what does not.\n{}",
                schema.source()
            ),
            Self::Text(Some(schema)) => {
                format!("{instruction}\nAnswer with JSON that meets this JSON Schema and nothing else.\n{schema}")
            }
            Self::Text(None) => instruction.to_owned(),
        }
    }

    /// The form that a model of this process is held to.
    fn form(&self) -> ResponseFormat {
        let json = |schema: &Value| ResponseFormat::JsonSchema(json!({"name": "answer", "schema": schema}));
        match self {
            Self::Label(labels) => ResponseFormat::Choice(labels.clone()),
            Self::Labels(labels) => json(&json!({
                "type": "object",
                "properties": {"labels": {"type": "array", "items": {"enum": labels}, "maxItems": labels.len()}},
                "required": ["labels"],
                "additionalProperties": false
            })),
            Self::Values(schema) => {
                serde_json::from_str(schema.source()).map_or(ResponseFormat::JsonObject, |schema| json(&schema))
            }
            Self::Text(schema) => schema.as_ref().map_or(ResponseFormat::Text, json),
        }
    }

    fn max_tokens(&self) -> u32 {
        if let Self::Label(_) = self { MAX_LABEL_TOKENS } else { MAX_TEXT_TOKENS }
    }

    /// The answer in what was said; `None` where there is none.
    fn answer_in(&self, said: &str) -> Option<String> {
        match self {
            Self::Label(labels) => label_in(said, labels).map(str::to_owned),
            Self::Labels(labels) => {
                let set = labels_in(said, labels)?;
                Some(in_json(set.into_iter().map(|label| labels[label].as_str())))
            }
            Self::Values(schema) => {
                let value = object_in(said).ok()?;
                schema.values(&value).is_ok().then(|| value.to_string())
            }
            Self::Text(Some(_)) => {
                let whole = serde_json::from_str::<Value>(said.trim()).ok();
                whole.or_else(|| object_in(said).ok()).map(|value| value.to_string())
            }
            Self::Text(None) => Some(said.trim()).filter(|said| !said.is_empty()).map(str::to_owned),
        }
    }
}

/// Rows without an answer, then those that are to be asked for again. Their order is that of their names, so that a part of them is a
/// random sample.
fn questions(args: &LabelArgs, rows: &[Input], answers: &Answers) -> Vec<Question> {
    let mut by_key: BTreeMap<_, _> = rows.iter().map(|row| (key(&row.text), row)).collect();
    let again: Vec<Question> = by_key
        .iter()
        .take(args.twice)
        .filter(|(key, _)| !answers.again.contains_key(*key))
        .map(|(_, row)| Question { input: (*row).clone(), again: true })
        .collect();
    by_key.retain(|key, _| !answers.first.contains_key(key));
    let first = by_key.into_values().take(args.rows.unwrap_or(usize::MAX));
    first.map(|row| Question { input: row.clone(), again: false }).chain(again).collect()
}

/// Whoever is asked.
struct Teacher<'a> {
    gateway: Arc<Gateway>,
    model: &'a str,
    prompt: String,
    wanted: &'a Wanted,
    /// A model of this process can be held to a form; another server may not know how.
    is_held: bool,
}

impl<'a> Teacher<'a> {
    fn open(
        args: &'a LabelArgs,
        settings: &Settings,
        environment: &Environment,
        prompt: String,
        wanted: &'a Wanted,
    ) -> Result<Self, Failure> {
        let named = |backend: &BackendSettings| backend.model == args.model || backend.name == args.model;
        let is_held = !settings.backend.iter().any(named);
        let decoder = if is_held { bases::decoder(settings, environment)?.map(Arc::new) } else { None };
        let with = serve::With { encoder: false, backends: true };
        let gateway = Arc::new(serve::open_gateway(with, settings, environment, decoder)?);
        Ok(Self { gateway, model: &args.model, prompt, wanted, is_held })
    }

    async fn ask(&self, question: &Question) -> Result<(Answer, Option<u64>), GatewayError> {
        let message = |role, content: &str| Message { role, content: content.to_owned() };
        let messages = vec![message(Role::System, &self.prompt), message(Role::User, &question.input.text)];
        let request = ChatRequest {
            max_tokens: Some(self.wanted.max_tokens()),
            temperature: Some(0.0),
            response_format: if self.is_held { self.wanted.form() } else { ResponseFormat::Text },
            ..ChatRequest::new(self.model, messages)
        };
        let context = RequestContext {
            request_id: format!("label-{}", key(&question.input.text).short()),
            now_ms: now_ms(),
            deadline: Instant::now() + DEADLINE,
        };
        let row = key(&question.input.text);
        let caller = Caller { key: "dataset-label".to_owned() };
        let useless = |said: String| Answer {
            row,
            answer: None,
            said: Some(beginning(&said)),
            again: question.again,
            model: None,
            cost_usd: None,
            receipt: None,
        };
        let (response, decision) = match self.gateway.handle(&caller, request, context).await {
            Ok(Reply::Whole { response, decision }) => (response, decision),
            Ok(Reply::Stream { .. }) => {
                return Err(GatewayError::Internal("a stream that nobody asked for".to_owned()));
            }
            // Another run would fail likewise.
            Err(error @ GatewayError::ContextLength { .. }) => return Ok((useless(error.to_string()), None)),
            Err(error) => return Err(error),
        };
        let message = response.choices.into_iter().next().map(|choice| choice.message);
        let said = message.and_then(|message| message.content.or(message.refusal)).unwrap_or_default();
        let cost = decision.cost_picousd;
        let paid = |answer: Answer| Answer {
            model: Some(response.model),
            cost_usd: cost.map(usd),
            receipt: Some(decision.receipt.to_string()),
            ..answer
        };
        let answer = self.wanted.answer_in(&said);
        Ok(match answer {
            Some(answer) => (paid(Answer { answer: Some(answer), said: None, ..useless(String::new()) }), cost),
            None => (paid(useless(said)), cost),
        })
    }
}

/// The label that an answer is: bare, or in quotes, in other capitals, with a full stop.
fn label_in<'a>(said: &str, labels: &'a [String]) -> Option<&'a str> {
    let bare = said.trim_matches(['"', '\'', '`', '*', '.', ' ', '\n']);
    let exact = labels.iter().find(|label| *label == bare || *label == said.trim());
    exact.or_else(|| labels.iter().find(|label| label.to_lowercase() == bare.to_lowercase())).map(String::as_str)
}

fn beginning(said: &str) -> String {
    let end = said.floor_char_boundary(MAX_SAID_BYTES);
    said[..end].to_owned()
}

/// Asks, at most as many at once as are wanted; returns how many requests failed.
async fn ask_all(
    args: &LabelArgs,
    teacher: &Teacher<'_>,
    open: Vec<Question>,
    writer: &mut Writer,
    answers: &mut Answers,
    bars: &mut Bars,
) -> Result<usize, Failure> {
    let total = open.len() as u64;
    let budget = args.budget_usd.map(|usd| (usd * PICOUSD) as u64);
    let mut spent = spent_picousd(answers);
    let (mut failed, mut in_a_row) = (0, 0);
    let mut asked = stream::iter(open)
        .map(async |question| {
            let answer = teacher.ask(&question).await;
            (question, answer)
        })
        .buffer_unordered(args.concurrency.clamp(1, 64));
    let mut done = 0;
    if budget.is_some_and(|budget| spent >= budget) {
        return Err(over_budget(args, spent));
    }
    while let Some((question, answered)) = asked.next().await {
        done += 1;
        bars.show(Progress { stage: "asking the teacher", done, total: Some(total), unit: Unit::Rows });
        match answered {
            Ok((answer, cost)) => {
                in_a_row = 0;
                writer.add(&answer).map_err(Failure::environment)?;
                let kept = if answer.again { &mut answers.again } else { &mut answers.first };
                kept.insert(answer.row, answer);
                match (cost, budget) {
                    (Some(cost), _) => spent = spent.saturating_add(cost),
                    (None, Some(_)) => {
                        return Err(Failure::usage(anyhow!(
                            "`{}` has no price, so `--budget-usd` cannot be kept: name its `price` in `metier.toml`, or bound the rows with `--rows`",
                            args.model
                        )));
                    }
                    (None, None) => {}
                }
                if budget.is_some_and(|budget| spent >= budget) && done < total {
                    return Err(over_budget(args, spent));
                }
            }
            Err(error) if error.fault() == Fault::Caller => {
                return Err(Failure::usage(
                    anyhow::Error::new(error).context(format!("cannot ask for {}", question.input.place)),
                ));
            }
            Err(error) => {
                failed += 1;
                in_a_row += 1;
                if in_a_row == MAX_FAILURES {
                    let kept = answers.first.len();
                    return Err(Failure::environment(anyhow::Error::new(error).context(format!(
                        "{MAX_FAILURES} rows in a row were not answered; {kept} answers are kept, and the same command goes on from there"
                    ))));
                }
            }
        }
    }
    Ok(failed)
}

fn over_budget(args: &LabelArgs, spent: u64) -> Failure {
    super::super::found(anyhow!(
        "the budget is spent: {} US dollars; the answers are kept in `{}`, and the same command with a larger `--budget-usd` goes on from there",
        usd(spent),
        args.output.display()
    ))
}

/// What a file has cost so far.
fn spent_picousd(answers: &Answers) -> u64 {
    let all = answers.first.values().chain(answers.again.values());
    let costs = all.filter_map(|answer| answer.cost_usd.as_deref()?.parse::<f64>().ok());
    costs.map(|usd| (usd * PICOUSD).round() as u64).fold(0, u64::saturating_add)
}

fn summary(task: &TaskFile, args: &LabelArgs, rows: &[Input], answers: &Answers, failed: usize) -> Labelled {
    let answer = |row: &Input| answers.first.get(&key(&row.text)).and_then(|answer| answer.answer.as_deref());
    let answered = rows.iter().filter(|row| answer(row).is_some()).count();
    let useless = answers.first.values().filter(|answer| answer.answer.is_none()).count();
    let twice = answers.again.iter().filter_map(|(row, again)| Some((answers.first.get(row)?, again)));
    let twice: Vec<bool> = twice.map(|(first, again)| first.answer.is_some() && first.answer == again.answer).collect();
    let gold = rows.iter().filter_map(|row| Some(row.label.as_deref()? == answer(row)?)).collect::<Vec<bool>>();
    let priced = answers.first.values().chain(answers.again.values()).any(|answer| answer.cost_usd.is_some());
    Labelled {
        name: task.name.clone(),
        model: args.model.clone(),
        rows: rows.len(),
        answered,
        useless,
        failed,
        cost_usd: priced.then(|| usd(spent_picousd(answers))),
        agreement_with_itself: share(&twice),
        agreement_with_gold: share(&gold),
    }
}

fn share(same: &[bool]) -> Option<Share> {
    let (k, n) = (same.iter().filter(|same| **same).count() as u64, same.len() as u64);
    (n > 0).then(|| Share { value: k as f64 / n as f64, interval: wilson(k, n, 0.95), n })
}

fn tell(labelled: &Labelled, args: &LabelArgs, rows: &[Input]) {
    println!("{}: {} of {} rows answered by {}", labelled.name, labelled.answered, labelled.rows, labelled.model);
    let share = |what: &str, share: &Option<Share>| {
        if let Some(Share { value, interval: [low, high], n }) = share {
            println!("  {what:12} {:.1} % [{:.1}, {:.1}] of {n} rows", 100.0 * value, 100.0 * low, 100.0 * high);
        }
    };
    share("with itself", &labelled.agreement_with_itself);
    share("with gold", &labelled.agreement_with_gold);
    if labelled.useless > 0 {
        println!(
            "  of no use    {} answers are none that the task knows: they are kept, and not asked for again",
            labelled.useless
        );
    }
    if labelled.failed > 0 {
        println!("  failed       {} requests: the same command asks again", labelled.failed);
    }
    if let Some(cost) = &labelled.cost_usd {
        println!("  cost         {cost} US dollars");
    }
    println!("  answers      {}", args.output.display());
    let whole = rows.iter().all(|row| row.label.is_some());
    let place = if whole { "`[reference] column`" } else { "`[data] label` or `[reference] column`" };
    println!("name this file as {place} of the task file to build with it");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_found_in_what_teachers_make_of_it() {
        let labels = ["Billing", "billing dispute", "other"].map(String::from);
        for (said, expected) in [
            ("Billing", Some("Billing")),
            (" \"billing dispute\".\n", Some("billing dispute")),
            ("**OTHER**", Some("other")),
            ("BILLING", Some("Billing")),
            ("It is billing", None),
            ("", None),
        ] {
            assert_eq!(label_in(said, &labels), expected, "{said}");
        }
    }

    #[test]
    fn what_is_kept_of_an_answer_ends_at_a_character() {
        assert_eq!(beginning(&"ü".repeat(150)).len(), 200);
        assert_eq!(beginning("short"), "short");
    }
}
