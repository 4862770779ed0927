//! The second half of `metier roadmap`: tasks are tried, priced, put in order and reported; and afterwards compared with what came.

use std::{
    io::{BufRead, IsTerminal as _, Read as _, Write},
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::Context as _;
use clap::Args;
use metier_kernels::Pool;
use metier_model::{Progress, SpecialistStore, Unit};
use metier_train::{
    Embed,
    discover::{
        Discovery, Logs, Trace,
        act::{self, ActError, Forecasted, Written, actuals::Tally},
        judge::{self, Bench},
        report::{Entry, Roadmap, csv, draw_up, html},
        saving::{assumptions::Assumptions, chance::Attempt},
    },
};

use crate::cli::{CommonArgs, Failure, Outcome, build::must_be_new, line, progress::Bars, specialists};

/// Tasks that the table on the terminal lists.
const LISTED: usize = 15;
/// The assumption that nobody but the user knows.
const LOSS: &str = "loss_per_error_usd";
/// How often the user is asked for it.
const MAX_ASKED: usize = 3;
/// Bytes of an answer.
const MAX_ANSWER_BYTES: u64 = 256;
/// What became of every row, in the report's folder.
const ROWS: &str = "rows.csv.gz";

/// How tasks are judged and priced, and what is written.
#[derive(Debug, Args)]
pub(super) struct PlanArgs {
    /// Folder for the report: roadmap.html, roadmap.json, roadmap.csv, examples.csv, rows.csv.gz. It must not be there yet
    #[arg(long, value_name = "DIR", default_value = "roadmap-report")]
    report: PathBuf,
    /// Where to write what became of every row of the logs (task, tokens, price, cost, or why it does not count), in place of rows.csv.gz in the
    /// report's folder; packed as the ending says: .gz, .zst or neither
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Write no such file
    #[arg(long, conflicts_with = "trace")]
    no_trace: bool,
    /// What one answer costs you that is wrong where the LLM was right, in dollars; on a terminal you are asked
    #[arg(long, value_name = "USD")]
    loss_per_error: Option<f64>,
    /// Share of the traffic that the logs hold, where they are an even sample of it: 0.01 for one call of a hundred
    #[arg(long, value_name = "SHARE")]
    log_share: Option<f64>,
    /// Numbers of your own in the place of what is assumed (TOML)
    #[arg(long, value_name = "FILE")]
    assumptions: Option<PathBuf>,
    /// Print everything that is assumed, with unit and source, as a file to start from
    #[arg(long)]
    print_assumptions: bool,
    /// Tasks that are tried on the logs, the dearest first; the others get a guess
    #[arg(long, value_name = "N", default_value_t = 10)]
    trials: usize,
    /// Write a task file with its rows for every task that has some, ready for `metier build`
    #[arg(long, value_name = "DIR")]
    write_tasks: Option<PathBuf>,
    /// Folders written by --write-tasks whose tasks were built since: forecasts are corrected by what came of them
    #[arg(long, value_name = "DIR")]
    attempts: Vec<PathBuf>,
    /// LOGS are exchanges since a roadmap: compare what its --write-tasks folder promised with what came
    #[arg(long, value_name = "DIR")]
    actuals: Option<PathBuf>,
    /// Seed of splits and draws
    #[arg(long, default_value_t = metier_train::DEFAULT_SEED)]
    seed: u64,
}

impl PlanArgs {
    /// Does what needs no logs, if that was asked for.
    pub(super) fn without_logs(&self) -> bool {
        if self.print_assumptions {
            print!("{}", Assumptions::template());
        }
        self.print_assumptions
    }

    /// What the user wrote, checked before any work.
    pub(super) fn check(&self, common: &CommonArgs) -> Result<Plan<'_>, Failure> {
        let mut assumptions = match &self.assumptions {
            Some(path) => {
                let read = Assumptions::read(path).with_context(|| format!("cannot use `{}`", path.display()));
                read.map_err(Failure::Usage)?
            }
            None => Assumptions::default(),
        };
        let mut loss = self.loss_per_error;
        let is_said = loss.is_some() || assumptions.by_user.iter().any(|name| name == LOSS);
        // Nobody else knows it, and most of a roadmap hangs on it: who sits there is asked.
        let is_there = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
        if !is_said && is_there && !common.json && self.actuals.is_none() {
            loss = ask_loss(&mut std::io::stdin().lock(), &mut std::io::stderr(), assumptions.loss_per_error_usd);
        }
        if let Some(loss) = loss {
            assumptions.state(LOSS, loss).map_err(Failure::usage)?;
        }
        if let Some(share) = self.log_share {
            assumptions.state("log_share", share).map_err(Failure::usage)?;
        }
        if self.actuals.is_none() {
            must_be_new(&self.report)?;
        }
        for path in self.write_tasks.iter().chain(&self.trace) {
            must_be_new(path)?;
        }
        let mut attempts = Vec::new();
        if !self.attempts.is_empty() {
            let store = SpecialistStore::open(&specialists::root(None, common)?).map_err(Failure::environment)?;
            for dir in &self.attempts {
                let forecasts = act::read_forecasts(&dir.join(act::FORECASTS)).map_err(Failure::usage)?;
                attempts.extend(act::attempts(&forecasts, store.root(), assumptions.partial_coverage));
            }
        }
        Ok(Plan { args: self, assumptions, attempts })
    }

    /// The folder of the roadmap that exchanges are compared with.
    pub(super) fn actuals(&self) -> Option<&Path> {
        self.actuals.as_deref()
    }
}

/// Asks what an error costs; none where the answer is empty, where there is none, or after three that are no amount.
fn ask_loss(from: &mut dyn BufRead, to: &mut dyn Write, assumed: f64) -> Option<f64> {
    let question = format!(
        "What does one answer cost you that is wrong where the LLM was right, in dollars?\nA question asked again is cents, a wrong refund is tens of dollars. Enter alone takes ${assumed}, which is nobody's figure: "
    );
    for _ in 0..MAX_ASKED {
        write!(to, "{question}").and_then(|()| to.flush()).ok()?;
        let mut said = String::new();
        if from.take(MAX_ANSWER_BYTES).read_line(&mut said).ok()? == 0 || said.trim().is_empty() {
            return None;
        }
        let amount = said.trim().trim_start_matches('$').trim().replace(',', ".");
        match amount.parse::<f64>().ok().filter(|amount| Assumptions::default().state(LOSS, *amount).is_ok()) {
            Some(amount) => return Some(amount),
            None => writeln!(to, "`{}` is no amount of dollars between 0 and 10 million.", said.trim()).ok()?,
        }
    }
    None
}

/// Arguments that can be used.
pub(super) struct Plan<'a> {
    args: &'a PlanArgs,
    assumptions: Assumptions,
    attempts: Vec<Attempt>,
}

/// What was drawn up and written.
pub(super) struct Drawn {
    /// The roadmap.
    pub(super) roadmap: Roadmap,
    /// The page.
    pub(super) page: PathBuf,
    /// Task files, where they were asked for.
    pub(super) written: Vec<Written>,
}

impl Plan<'_> {
    /// Where the lines of a trace wait: beside the report, on a disk that is not a memory's.
    pub(super) fn trace(&self) -> Result<Option<Trace>, Failure> {
        if self.args.no_trace {
            return Ok(None);
        }
        let beside = self.args.trace.as_ref().unwrap_or(&self.args.report);
        let folder = beside.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let made = std::fs::create_dir_all(folder).and_then(|()| tempfile::tempfile_in(folder)).and_then(Trace::over);
        let made = made.with_context(|| format!("cannot write into `{}`", folder.display()));
        made.map(Some).map_err(Failure::Environment)
    }

    /// Tries, prices, orders, and writes the report.
    pub(super) fn draw_up(
        &self,
        discovery: &Discovery,
        trace: Option<Trace>,
        encoder: Option<&dyn Embed>,
        pool: &Pool,
        begun: Instant,
        bars: &mut Bars,
    ) -> Result<Drawn, Failure> {
        let clock = || begun.elapsed();
        let bench = Bench { encoder, pool, seed: self.args.seed, clock: &clock };
        let mut trials = Vec::new();
        for (at, task) in discovery.tasks.iter().enumerate() {
            trials.push(if at < self.args.trials {
                judge::attempt(task, &self.assumptions, &bench, &mut |progress| bars.show(progress))
            } else {
                Err(format!("only the {} dearest tasks were tried (`--trials`)", self.args.trials))
            });
        }
        bars.finish();
        let judgements = judge::judge(&discovery.tasks, trials, &self.assumptions);
        let mut roadmap = draw_up(discovery, judgements, &self.assumptions, &self.attempts, self.args.seed);
        let page = self.args.report.join("roadmap.html");
        std::fs::create_dir_all(&self.args.report)
            .with_context(|| format!("cannot make the folder `{}`", self.args.report.display()))
            .map_err(Failure::Environment)?;
        if let Some(trace) = trace {
            let path = self.args.trace.clone().unwrap_or_else(|| self.args.report.join(ROWS));
            let write = || -> anyhow::Result<u64> {
                let staged = crate::cli::staged_beside(&path)?;
                let lines = trace.write(&discovery.tasks, &path, staged.as_file().try_clone()?)?;
                staged.persist_noclobber(&path)?;
                Ok(lines)
            };
            bars.show(Progress { stage: "writing rows", done: 0, total: None, unit: Unit::Steps });
            write().with_context(|| format!("cannot write `{}`", path.display())).map_err(Failure::Environment)?;
            bars.finish();
            let named = if self.args.trace.is_some() { path.display().to_string() } else { ROWS.to_owned() };
            roadmap.rows_file = Some(named);
        }
        let json = serde_json::to_string_pretty(&roadmap).expect("a roadmap has string keys and finite numbers");
        let files = [
            ("roadmap.html", html::render(&roadmap)),
            ("roadmap.json", json),
            ("roadmap.csv", csv::tasks(&roadmap)),
            ("examples.csv", csv::examples(discovery, &roadmap)),
        ];
        for (name, text) in files {
            let path = self.args.report.join(name);
            let written = std::fs::write(&path, text).with_context(|| format!("cannot write `{}`", path.display()));
            written.map_err(Failure::Environment)?;
        }
        let written = match &self.args.write_tasks {
            Some(dir) => act::write_tasks(discovery, &roadmap, dir).map_err(|error| match error {
                ActError::There(_) => Failure::usage(error),
                _ => Failure::environment(error),
            })?,
            None => Vec::new(),
        };
        Ok(Drawn { roadmap, page, written })
    }
}

/// Tells what was drawn up.
pub(super) fn tell(drawn: &Drawn) {
    let roadmap = &drawn.roadmap;
    if let Some(little) = &roadmap.little {
        println!("\n  {little}");
    }
    if roadmap.is_priced() {
        tell_saving(roadmap);
    }
    println!("\n  {:40} {:32} {:>12} {:>27} {:>10}", "task", "verdict", "expected", "80 %", "P(S<0)");
    let mut above = true;
    for task in roadmap.tasks.iter().take(LISTED) {
        if above && !task.place.above_line {
            above = false;
            println!("  {:-<120}", "-- stop here ");
        }
        tell_task(task);
    }
    if roadmap.tasks.len() > LISTED {
        println!("  … and {} more in the report", roadmap.tasks.len() - LISTED);
    }
    if let Some(brier) = &roadmap.brier {
        println!(
            "  forecasts    of {} that were put to the test the Brier score is {:.3} [{:.3}, {:.3}]; the base rate has {:.3}",
            brier.n, brier.score, brier.interval[0], brier.interval[1], brier.of_base_rate
        );
    }
    for written in &drawn.written {
        match (&written.file, &written.why_not) {
            (Some(file), _) => {
                println!("  task file    {} ({} rows, {} later ones)", file.display(), written.rows[0], written.rows[1])
            }
            (None, why) => println!("  no task file {}: {}", written.task, why.as_deref().unwrap_or_default()),
        }
    }
    println!("  report       {}", drawn.page.display());
}

fn tell_saving(roadmap: &Roadmap) {
    let portfolio = &roadmap.portfolio;
    let saving = &portfolio.saving;
    println!(
        "\n  saving       {} over {:.0} weeks, 80 %: {} to {}; chance of a loss {}; of {} that the traffic is expected to cost",
        html::usd(saving.p50),
        roadmap.horizon_weeks,
        html::usd(saving.p10),
        html::usd(saving.p90),
        html::probability(saving.p_loss),
        html::usd(portfolio.spend.mean)
    );
    println!(
        "  of it        {} by specialists, {} by what needs no training; {:.1} days of work on specialists",
        html::usd(portfolio.specialists.p50),
        html::usd(portfolio.without_training.p50),
        portfolio.days
    );
    if let Some(loss) = roadmap.assumptions.iter().find(|stated| stated.name == "loss_per_error_usd") {
        let whose = if loss.by_user { "as you said" } else { "assumed: say yours with `--loss-per-error`" };
        println!("  an error     costs {} ({whose})", html::usd(loss.value));
    }
}

fn tell_task(task: &Entry) {
    let name: String = task.name.chars().take(40).collect();
    let verdict = html::verdict_words(&task.verdict);
    match &task.priced {
        Some(priced) => println!(
            "  {name:40} {verdict:32} {:>12} {:>27} {:>10}",
            html::usd(priced.saving.mean),
            format!("{} to {}", html::usd(priced.saving.p10), html::usd(priced.saving.p90)),
            html::probability(priced.saving.p_loss)
        ),
        None => println!("  {name:40} {verdict:32} {:>12}", "unpriced"),
    }
}

/// Compares what a roadmap promised with the exchanges since.
pub(super) fn compare(dir: &Path, logs: &Logs, common: &CommonArgs) -> Outcome {
    let forecasts: Vec<Forecasted> = act::read_forecasts(&dir.join(act::FORECASTS)).map_err(Failure::usage)?;
    let mut tally = Tally::default();
    let mut bars = Bars::new();
    let read = logs.read("reading exchanges", &mut |exchange, _| tally.add(&exchange, &forecasts), &mut |progress| {
        bars.show(progress)
    });
    read.map_err(Failure::usage)?;
    bars.finish();
    let actuals = tally.compare(&forecasts);
    if common.json {
        actuals.iter().for_each(line);
        return Ok(());
    }
    if actuals.is_empty() {
        println!("none of the exchanges names a task of this roadmap, or was answered by a specialist of that name");
    }
    for actual in &actuals {
        println!("{}: {} requests in {:.1} weeks", actual.task, actual.requests, actual.weeks);
        let [low, _, high] = actual.requests_a_week.0;
        println!("  requests a week    promised {low:.0} to {high:.0}, came {:.0}", actual.requests_a_week.1);
        println!(
            "  answered alone     promised {:.1} %, came {:.1} %",
            100.0 * actual.coverage.0,
            100.0 * actual.coverage.1
        );
        if let Some((saving, [low, high])) = actual.realised {
            println!(
                "  saving             promised {} to {}, came {} [{}, {}]",
                html::usd(actual.promised[0]),
                html::usd(actual.promised[2]),
                html::usd(saving),
                html::usd(low),
                html::usd(high)
            );
        }
        println!("  {}", actual.says);
    }
    if tally.others() > 0 {
        println!("{} exchanges belong to no task of this roadmap", tally.others());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(said: &str, expected: Option<f64>, told: &[&str]) {
        let mut to = Vec::new();
        assert_eq!(ask_loss(&mut said.as_bytes(), &mut to, 0.05), expected, "{said:?}");
        let to = String::from_utf8_lossy(&to);
        assert!(told.iter().all(|part| to.contains(part)), "{to}");
    }

    #[test]
    fn the_loss_of_an_error_is_asked_for() {
        check("0.5\n", Some(0.5), &["in dollars?", "$0.05, which is nobody's figure"]);
        check("$ 12,5\n", Some(12.5), &[]);
        check("0\n", Some(0.0), &[]);
        check("\n", None, &[]);
        check("", None, &[]);
        check("much\n-3\n2\n", Some(2.0), &["`much` is no amount", "`-3` is no amount"]);
        check("a\nNaN\n1e99\n4\n", None, &["`1e99` is no amount"]);
    }
}
