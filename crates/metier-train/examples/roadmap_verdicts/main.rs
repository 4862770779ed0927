//! Do verdicts hold? Tasks cut out of real label sets, tried as a roadmap tries them, then built with all their rows and measured on test files
//! that no trial saw: `METIER_DATA=… cargo run --release -p metier-train --example roadmap_verdicts -- ENCODER_FOLDER|- [TASKS] [SEED] [OUTCOMES.jsonl] [key=value …]`.
//!
//! A task is some labels of a data set, some rows of its training file, and a stand-in for an LLM that gives the gold label except for a share
//! of rows, where it gives another label of the task. What a full build is held to is the same stand-in's answers on the test file's rows of
//! those labels: a certificate that these do not contradict, and for "proven" that as many are answered alone as the verdict asks for.
//!
//! `grouped=N`: so many tasks of clauses of contracts (cuad), whose rows come contract by contract and are counted by it, at ε = 5 % (there are too few contracts
//! for less), judged ten at a time as in a roadmap, and measured on contracts that neither trial nor build saw. `threads=N`: all cores, if not given.
//!
//! `slots=N`: so many extractions in their place, from the log on ([`slots`]); `minutes=N` is what a build of one may take (2).
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example has no other way to answer")]
#![allow(clippy::disallowed_methods, reason = "an example stands where the roof stands")]

mod slots;

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    sync::Mutex,
    time::Instant,
};

use metier_kernels::{Pool, Tier};
use metier_model::{BaseId, Encoder, Progress, SpecialistStore, proof::clopper_pearson};
use metier_train::{
    Embed, TaskFile, Workbench, build,
    craft::encoder::Recipe,
    data::table,
    discover::{
        Task, TaskKind, act,
        judge::{
            self, Bench, Judgement,
            predict::{Rehearsal, predict},
        },
        saving::{
            assumptions::Assumptions,
            chance::{Attempt, Evidence, brier},
            draw::Draw,
        },
        task::{Example, Identity, KindGuess, Sampling, Traits},
    },
};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// A text, its answer, and what it comes from, where rows of one thing hang together.
#[derive(Clone)]
struct Line {
    text: String,
    answer: String,
    group: Option<String>,
}

type Rows = Vec<Line>;

/// A data set: name, training rows, test rows, and the bound that its rows are enough for.
struct Source {
    name: &'static str,
    train: Rows,
    test: Rows,
    epsilon: f64,
}

/// A task that was cut out: what it is held to, out of which data set, and how often its LLM errs.
struct Cut<'a> {
    task: Task,
    test: Rows,
    source: &'a Source,
    noise: f64,
}

/// Tasks that a roadmap tries together.
const FAMILY: usize = 10;

/// Each text is embedded once, however many tasks it stands in.
struct Remembering<'a> {
    encoder: &'a Encoder,
    known: Mutex<BTreeMap<String, Vec<f32>>>,
}

impl Embed for Remembering<'_> {
    fn dim(&self) -> usize {
        self.encoder.dim()
    }

    fn base(&self) -> BaseId {
        self.encoder.base().clone()
    }

    fn embed_all(
        &self,
        pool: &Pool,
        texts: &[&str],
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Vec<Vec<f32>>, Box<dyn Error + Send + Sync>> {
        let mut known = self.known.lock().map_err(|_| "a thread died")?;
        let new: Vec<&str> = texts.iter().copied().filter(|text| !known.contains_key(*text)).collect();
        let new: Vec<&str> = new.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
        let made = self.encoder.embed_all(pool, &new, progress)?;
        known.extend(new.into_iter().map(str::to_owned).zip(made));
        Ok(texts.iter().map(|text| known[*text].clone()).collect())
    }
}

/// The data set whose rows come in groups, and the bound for which it has groups enough: of 363 contracts a third of four fifths calibrates, and 97 without an error
/// show 5 %, not 2 %.
const CUAD: &str = "cuad";
const CUAD_EPSILON: f64 = 0.05;
/// Data sets on whose tasks P(pass) was worked on; what it is worth is told of the others.
const DEVELOPMENT: [&str; 2] = ["banking77", "bitext_support"];

/// What a trial measured and what became of it: enough to forecast again without training.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Outcome {
    source: String,
    task: String,
    verdict: String,
    /// None where nothing was tried.
    tried: Option<Tried>,
    passed: bool,
    coverage: f64,
    risk: f64,
    /// What would have been said without a trial.
    #[serde(default)]
    guess: Option<f64>,
    #[serde(default = "usual_epsilon")]
    epsilon: f64,
}

fn usual_epsilon() -> f64 {
    Assumptions::default().epsilon
}

fn alone() -> f64 {
    1.0
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Tried {
    scored: Vec<(f32, bool)>,
    /// The group of each, and how many rows count as one.
    #[serde(default)]
    group_of: Option<Vec<usize>>,
    #[serde(default = "alone")]
    design: f64,
    exponent: Option<[f64; 3]>,
    trained: [u64; 2],
    build: [u64; 2],
    #[serde(default)]
    groups: Option<u64>,
    little_losses: u64,
}

impl Tried {
    /// As a roadmap forecasts it.
    fn chance(&self, task: &str, assumptions: &Assumptions) -> f64 {
        let rehearsal = Rehearsal {
            group_of: self.group_of.as_deref(),
            scored: &self.scored,
            design: self.design,
            exponent: self.exponent,
            trained: self.trained,
            build: self.build,
            groups: self.groups,
            epsilon: assumptions.epsilon,
            delta: assumptions.delta,
            coverage: assumptions.partial_coverage,
        };
        predict(&rehearsal, 1, task).passes
    }

    /// As roadmaps forecast it before builds were rehearsed: the posterior that the risk at one threshold lies below ε.
    fn once(&self, assumptions: &Assumptions) -> f64 {
        let (losses, n) = (self.little_losses as f64, self.scored.len() as f64);
        statrs::function::beta::beta_reg(losses + 1.0, (n - losses + 1.0).max(1.0), assumptions.epsilon)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let (named, arguments): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).partition(|argument| argument.contains('='));
    let folder = arguments
        .first()
        .ok_or("ENCODER_FOLDER|- [TASKS] [SEED] [OUTCOMES.jsonl] [grouped=N] [slots=N] [threads=N]")?;
    let number = |at: usize, default: u64| arguments.get(at).and_then(|text| text.parse().ok()).unwrap_or(default);
    let (n_tasks, seed) = (number(1, 80), number(2, 1));
    let kept = arguments.get(3).map(PathBuf::from);
    let (mut grouped, mut threads) = (0, std::thread::available_parallelism()?.get());
    let (mut slots, mut minutes) = (0, 2);
    for argument in &named {
        match argument.split_once('=').ok_or("expected key=value")? {
            ("grouped", value) => grouped = value.parse()?,
            ("threads", value) => threads = value.parse()?,
            ("slots", value) => slots = value.parse()?,
            ("minutes", value) => minutes = value.parse()?,
            (key, _) => {
                return Err(format!("unknown key `{key}`: expected grouped, slots, minutes or threads").into());
            }
        }
    }
    if slots > 0 {
        return slots::run(folder, slots, seed, threads, minutes);
    }
    let outcomes: Vec<Outcome> = match kept.as_ref().filter(|path| path.is_file()) {
        Some(path) => fs::read_to_string(path)?.lines().map(serde_json::from_str).collect::<Result<_, _>>()?,
        None => {
            let outcomes = run(folder, [n_tasks, grouped], seed, threads)?;
            if let Some(path) = &kept {
                let lines: Vec<String> = outcomes.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
                fs::write(path, lines.join("\n"))?;
            }
            outcomes
        }
    };
    let is_development = |outcome: &&Outcome| DEVELOPMENT.contains(&outcome.source.as_str());
    let is_grouped = |outcome: &&Outcome| outcome.source == CUAD;
    for (which, wanted) in [
        ("development data sets", &is_development as &dyn Fn(&&Outcome) -> bool),
        ("held-out data sets", &|outcome| !is_development(outcome) && !is_grouped(outcome)),
        ("all of these", &|outcome| !is_grouped(outcome)),
        ("held out, rows in groups", &is_grouped),
    ] {
        let of: Vec<&Outcome> = outcomes.iter().filter(wanted).collect();
        if !of.is_empty() {
            tell(which, &of, seed);
        }
    }
    Ok(())
}

/// Trials, then full builds.
fn run(
    folder: &str,
    [n_tasks, n_grouped]: [u64; 2],
    seed: u64,
    threads: usize,
) -> Result<Vec<Outcome>, Box<dyn Error>> {
    let data = PathBuf::from(std::env::var("METIER_DATA").unwrap_or_else(|_| "../shared/data".to_owned()));
    let sources = [
        source("banking77", &data, "train.csv", "test.csv", ["text", "category"])?,
        source("clinc150", &data, "train.jsonl.zst", "test.jsonl", ["text", "intent"])?,
        source("bitext_support", &data, "train.csv.zst", "test.csv", ["utterance", "intent"])?,
        source("snips", &data, "train.jsonl.zst", "validate.jsonl", ["text", "intent"])?,
    ];
    let clauses =
        Source { name: CUAD, train: clauses(&data, "train")?, test: clauses(&data, "dev")?, epsilon: CUAD_EPSILON };
    let pool = Pool::new(threads, Tier::detect());
    let encoder = if folder == "-" { None } else { Some(Encoder::open(Path::new(folder))?) };
    let remembering = encoder.as_ref().map(|encoder| Remembering { encoder, known: Mutex::default() });
    let embed = remembering.as_ref().map(|encoder| encoder as &dyn Embed);
    let start = Instant::now();
    let clock = || start.elapsed();
    let bench = Bench { encoder: embed, pool: &pool, seed, clock: &clock };

    let mut draw = Draw::new(seed, "verdicts");
    let flat: Vec<Cut<'_>> = (0..n_tasks).map(|at| cut_out(at, &sources, &mut draw)).collect();
    let clauses = [clauses];
    let grouped: Vec<Cut<'_>> = (n_tasks..n_tasks + n_grouped).map(|at| cut_out(at, &clauses, &mut draw)).collect();

    let mut outcomes = Vec::new();
    // Of the tasks without groups none may be wrong of all together; the others are as many as a roadmap tries.
    for family in std::iter::once(&flat[..]).chain(grouped.chunks(FAMILY)).filter(|family| !family.is_empty()) {
        let assumptions = Assumptions { epsilon: family[0].source.epsilon, ..Assumptions::default() };
        let tasks: Vec<Task> = family.iter().map(|cut| cut.task.clone()).collect();
        let trials = tasks.iter().map(|task| judge::attempt(task, &assumptions, &bench, &mut |_| ())).collect();
        let judgements = judge::judge(&tasks, trials, &assumptions);
        eprintln!("{} trials: {:.0} s", family.len(), start.elapsed().as_secs_f64());
        for (cut, judgement) in family.iter().zip(&judgements) {
            outcomes.push(build_of(cut, judgement, &bench, &assumptions)?);
        }
    }
    eprintln!("{:.0} s", start.elapsed().as_secs_f64());
    Ok(outcomes)
}

fn cut_out<'a>(at: u64, sources: &'a [Source], draw: &mut Draw) -> Cut<'a> {
    let source = &sources[draw.below(sources.len())];
    let noise = [0.0, 0.005, 0.01, 0.03, 0.1][draw.below(5)];
    let (task, test) = task(at, source, noise, draw);
    Cut { task, test, source, noise }
}

/// What a full build makes of a task, beside what its trial said.
fn build_of(
    cut: &Cut<'_>,
    judgement: &Judgement,
    bench: &Bench<'_>,
    assumptions: &Assumptions,
) -> Result<Outcome, Box<dyn Error>> {
    let Cut { task, test, source, noise } = cut;
    let dir = tempfile::tempdir()?;
    // What the written task file learns from and calibrates with; its later rows measure there, and the test file here.
    let act::Planned { rows: [train, calibration, late], groups } = act::planned(task);
    let early = task.examples.iter().take((train + calibration) as usize);
    let early: Rows = early
        .map(|example| Line {
            text: example.input.clone(),
            answer: example.output.clone().unwrap_or_default(),
            group: example.group.clone(),
        })
        .collect();
    let (passed, coverage, risk) = match &full_build(dir.path(), &early, test, bench, assumptions.epsilon) {
        Ok(outcome) => {
            if outcome.certificate.is_none() {
                let rows = |part: &str| outcome.rows.get(part).copied().unwrap_or(0);
                eprintln!(
                    "{}: no certificate with {} validation and {} calibration rows, {:?} needed",
                    task.name,
                    rows("validation"),
                    rows("calibration"),
                    outcome.rows_needed
                );
            }
            (
                act::passed(outcome, assumptions.partial_coverage),
                if outcome.certificate.is_some() { outcome.test_coverage } else { 0.0 },
                outcome.test_loss.unwrap_or(0.0),
            )
        }
        Err(error) => {
            eprintln!("{}: {error}", task.name);
            (false, 0.0, 0.0)
        }
    };
    let tried = judgement.trial.as_ref().map(|trial| {
        let exponent = trial.curve.as_ref().and_then(|curve| curve.exponent);
        Tried {
            scored: trial.scored().to_vec(),
            group_of: trial.group_of().map(<[usize]>::to_vec),
            design: trial.design,
            exponent: exponent.map(|b| [b.value, b.interval[0], b.interval[1]]),
            trained: [trial.rows[0], train],
            build: [calibration, late],
            groups,
            little_losses: trial.little_losses,
        }
    });
    println!(
        "{:14} {:28} noise {noise:5.3} rows {:5} labels {:3} {:9} p {:.2} agreement {} | built: coverage {coverage:.3} loss {risk:.4} {}",
        source.name,
        task.name,
        task.examples.len(),
        task.traits.labels.len(),
        judgement.verdict.name(),
        judgement.chance,
        judgement.trial.as_ref().map_or("-".to_owned(), |trial| format!("{:.3}", trial.agreement.value)),
        if passed { "passes" } else { "does not pass" }
    );
    Ok(Outcome {
        source: source.name.to_owned(),
        task: task.id.clone(),
        verdict: judgement.verdict.name().to_owned(),
        tried,
        passed,
        coverage,
        risk,
        guess: Some(judgement.prior.chance),
        epsilon: assumptions.epsilon,
    })
}

fn tell(which: &str, outcomes: &[&Outcome], seed: u64) {
    let assumptions = Assumptions { epsilon: outcomes[0].epsilon, ..Assumptions::default() };
    let proven: Vec<&&Outcome> = outcomes.iter().filter(|outcome| outcome.verdict == "proven").collect();
    let n = proven.len() as u64;
    let share = |of: &dyn Fn(&Outcome) -> bool| {
        let k = proven.iter().filter(|outcome| of(outcome)).count() as u64;
        let [low, high] = clopper_pearson(k, n, 0.95);
        format!("{k} of {n}, {:.1} % [{:.1}, {:.1}]", 100.0 * k as f64 / n.max(1) as f64, 100.0 * low, 100.0 * high)
    };
    println!("{which}: {} tasks, {n} proven", outcomes.len());
    println!("  a full build has a certificate that the test rows do not contradict: {}", share(&|o| o.passed));
    let most = assumptions.proven_coverage;
    println!("  and answers at least {most} of them alone: {}", share(&|o| o.passed && o.coverage >= most));
    println!("  and its observed loss lies at or below ε: {}", share(&|o| o.passed && o.risk <= assumptions.epsilon));
    let forecast = |of: &dyn Fn(&Outcome) -> Option<f64>| -> Vec<Attempt> {
        let told = outcomes.iter().filter_map(|outcome| Some((outcome, of(outcome)?)));
        told.map(|(outcome, forecast)| Attempt {
            task: outcome.task.clone(),
            kind: TaskKind::Classify,
            evidence: Evidence::Tried,
            forecast,
            passed: outcome.passed,
        })
        .collect()
    };
    for (name, attempts) in [
        ("rehearsed", forecast(&|outcome| Some(outcome.tried.as_ref()?.chance(&outcome.task, &assumptions)))),
        ("posterior at one threshold (before)", forecast(&|outcome| Some(outcome.tried.as_ref()?.once(&assumptions)))),
        ("guessed, without a trial", forecast(&|outcome| outcome.guess)),
    ] {
        match brier(&attempts, seed) {
            Some(brier) => println!(
                "  P(pass) {name}: Brier score over {} tries {:.3} [{:.3}, {:.3}]; of the base rate {:.3}; {}",
                brier.n,
                brier.score,
                brier.interval[0],
                brier.interval[1],
                brier.of_base_rate,
                reliability(&attempts)
            ),
            None => println!("  P(pass) {name}: too few tries for a Brier score: {}", attempts.len()),
        }
    }
}

/// In fifths of the forecast: how many, forecast on average, and passed.
fn reliability(attempts: &[Attempt]) -> String {
    let mut told = Vec::new();
    for fifth in 0..5 {
        let of: Vec<&Attempt> = attempts.iter().filter(|a| ((a.forecast * 5.0) as usize).min(4) == fifth).collect();
        if !of.is_empty() {
            let n = of.len() as f64;
            let mean = of.iter().map(|a| a.forecast).sum::<f64>() / n;
            let passed = of.iter().filter(|a| a.passed).count() as f64 / n;
            told.push(format!("{}: {:.2} → {:.2}", of.len(), mean, passed));
        }
    }
    format!("forecast → passed: {}", told.join(", "))
}

fn source(
    name: &'static str,
    data: &Path,
    train: &str,
    test: &str,
    [text, label]: [&str; 2],
) -> Result<Source, Box<dyn Error>> {
    let texts = [text.to_owned()];
    let columns = table::Columns::new(&texts, label);
    let read = |file: &str| -> Result<Rows, Box<dyn Error>> {
        let rows = table::read(&data.join(name).join(file), &columns)?;
        Ok(rows.into_iter().map(|row| Line { text: row.text, answer: row.label, group: None }).collect())
    };
    Ok(Source { name, train: read(train)?, test: read(test)?, epsilon: usual_epsilon() })
}

/// Clauses of contracts that are of one type, with the contract that they stand in.
fn clauses(data: &Path, split: &str) -> Result<Rows, Box<dyn Error>> {
    let file = fs::File::open(data.join(CUAD).join(format!("clauses_{split}.jsonl.zst")))?;
    let mut lines = Vec::new();
    for line in BufReader::new(zstd::stream::read::Decoder::new(file)?).lines() {
        let row: serde_json::Value = serde_json::from_str(&line?)?;
        let of = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
        if let Some([label]) = row["labels"].as_array().map(Vec::as_slice) {
            let answer = label.as_str().unwrap_or_default().to_owned();
            lines.push(Line { text: of("text"), answer, group: Some(of("contract")) });
        }
    }
    Ok(lines)
}

/// Some labels, some rows, an LLM that errs.
fn task(at: u64, source: &Source, noise: f64, draw: &mut Draw) -> (Task, Rows) {
    let all: Vec<&String> = source.train.iter().map(|line| &line.answer).collect::<BTreeSet<_>>().into_iter().collect();
    let n_labels = (2 + draw.below(all.len().min(30) - 1)).min(all.len());
    let mut labels: Vec<String> = all.into_iter().cloned().collect();
    shuffle(&mut labels, draw);
    labels.truncate(n_labels);
    labels.sort();
    let mut answered = |rows: &Rows| -> Rows {
        let of = rows.iter().filter(|line| labels.binary_search(&line.answer).is_ok());
        of.map(|line| {
            let other = draw.chance(noise).then(|| labels[draw.below(labels.len())].clone());
            Line { answer: other.unwrap_or_else(|| line.answer.clone()), ..line.clone() }
        })
        .collect()
    };
    let (mut train, test) = (answered(&source.train), answered(&source.test));
    shuffle(&mut train, draw);
    train.truncate(300 + draw.below(3700));
    // Another task's contracts fall otherwise: they are parted by their names.
    train.iter_mut().for_each(|line| line.group = line.group.take().map(|group| format!("{at} {group}")));
    // What hangs together comes together.
    let mut first: BTreeMap<String, usize> = BTreeMap::new();
    for line in &train {
        let n = first.len();
        first.entry(line.group.clone().unwrap_or_else(|| line.text.clone())).or_insert(n);
    }
    if train.iter().any(|line| line.group.is_some()) {
        train.sort_by_key(|line| first[line.group.as_ref().unwrap_or(&line.text)]);
    }
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    train.iter().for_each(|line| *counts.entry(line.answer.clone()).or_default() += 1);
    let n = train.len() as u64;
    let example = |(at, Line { text, answer, group }): (usize, Line)| Example {
        id: format!("r{at}"),
        place: format!("log:{at}"),
        time_ms: Some(1_788_134_400_000 + at as u64 * 60_000),
        group,
        model: "stand-in".to_owned(),
        input: text,
        varies: Vec::new(),
        output: Some(answer),
        gold: None,
        weight: 1.0,
    };
    let task = Task {
        id: format!("t-{at:012x}"),
        name: format!("{}-{at}", source.name.replace('_', "-")),
        identity: Identity::default(),
        kind: KindGuess { kind: TaskKind::Classify, evidence: String::new() },
        weeks: BTreeMap::new(),
        undated: BTreeMap::new(),
        first_ms: None,
        last_ms: None,
        examples: train.into_iter().enumerate().map(example).collect(),
        sampling: Sampling { with_text: n, examples: n, fraction: 1.0, assigned: 0, volume_interval: [1.0, 1.0] },
        traits: Traits { labels: counts, ..Traits::default() },
        personal: BTreeMap::new(),
    };
    (task, test)
}

fn shuffle<T>(list: &mut [T], draw: &mut Draw) {
    for at in (1..list.len()).rev() {
        list.swap(at, draw.below(at + 1));
    }
}

/// `metier build` on all rows, measured on the test file's.
fn full_build(
    dir: &Path,
    early: &Rows,
    test: &Rows,
    bench: &Bench<'_>,
    epsilon: f64,
) -> Result<metier_train::BuildOutcome, Box<dyn Error>> {
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    // As the roadmap's task files part their rows.
    let (calibration, train): (Rows, Rows) =
        early.iter().cloned().partition(|line| act::calibrates(line.group.as_ref().unwrap_or(&line.text)));
    train.iter().for_each(|line| *counts.entry(&line.answer).or_default() += 1);
    // A build refuses rarer ones.
    let rows = |rows: &[Line]| -> String {
        let of = rows.iter().filter(|line| counts.get(line.answer.as_str()).is_some_and(|n| *n >= 3));
        of.map(|line| {
            let mut row = json!({ "text": line.text, "label": line.answer });
            if let Some(group) = &line.group {
                row["group"] = json!(group);
            }
            row.to_string() + "\n"
        })
        .collect()
    };
    fs::write(dir.join("train.jsonl"), rows(&train))?;
    fs::write(dir.join("calibration.jsonl"), rows(&calibration))?;
    fs::write(dir.join("test.jsonl"), rows(test))?;
    let group = if early.iter().any(|line| line.group.is_some()) { "group = \"group\"\n" } else { "" };
    let file = format!(
        "name = \"t\"\nkind = \"classify\"\n[data]\ntrain = \"train.jsonl\"\ncalibration = \"calibration.jsonl\"\ntest = \"test.jsonl\"\n{group}\
         [target]\nepsilon = {epsilon}\n[budget]\nup_to = \"both\"\n"
    );
    let task = TaskFile::parse(&file, &dir.join("task.toml"), &|_| None)?;
    let store = SpecialistStore::open(&dir.join("store"))?;
    let Bench { encoder, pool, seed, clock } = *bench;
    let bench = Workbench {
        teacher: None,
        encoder,
        decoders: Vec::new(),
        pool,
        store: &store,
        seed,
        tuning: Recipe::default(),
    };
    Ok(build(&task, &bench, &mut |_| (), clock)?)
}
