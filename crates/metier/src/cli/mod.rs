//! The command line: one file a verb. What the user typed is parsed here, resolved by [`crate::config`], and run by the verb.
//!
//! Exit codes: 0 done, 1 the work found a failure (a certificate that does not hold, a log that does not verify), 2 usage,
//! 3 the environment is in the way (no network, no space, a port in use).

// This room is the one place that prints.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the command line is where output belongs")]

pub mod ask;
pub mod audit;
pub mod bases;
pub mod bench;
pub mod build;
pub mod child;
pub mod dataset;
pub mod demo;
pub mod desk;
pub mod doctor;
pub mod eval;
pub mod init;
pub mod inside;
pub mod models;
pub mod progress;
pub mod roadmap;
pub mod serve;
pub mod specialists;

use std::{any::Any, panic, path::PathBuf, process::ExitCode};

use clap::{Args, CommandFactory as _, Parser, Subcommand};

use crate::config::{Environment, Settings};

/// The right model for the right task, on your own machines.
#[derive(Debug, Parser)]
#[command(name = "metier", version, propagate_version = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Demo(demo::DemoArgs),
    Init(init::InitArgs),
    Dataset(dataset::DatasetArgs),
    Build(build::BuildArgs),
    Eval(eval::EvalArgs),
    Roadmap(roadmap::RoadmapArgs),
    Specialists(specialists::SpecialistsArgs),
    Serve(serve::ServeArgs),
    Models(models::ModelsArgs),
    Audit(audit::AuditArgs),
    Bench(bench::BenchArgs),
    Doctor(doctor::DoctorArgs),
}

/// Arguments that most verbs take.
#[derive(Clone, Debug, Args)]
pub struct CommonArgs {
    /// Settings; default: `metier.toml` in the working folder, if there
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// One JSON object a line on stdout, the last one the result
    #[arg(long, global = true)]
    pub json: bool,
}

impl CommonArgs {
    /// What the operator asked for, in the file and in the environment.
    ///
    /// # Errors
    /// The file cannot be used.
    pub fn settings(&self) -> Result<(Settings, Environment), Failure> {
        let settings = Settings::read(self.config.as_deref()).map_err(Failure::usage)?;
        Ok((settings, Environment::read()))
    }
}

/// Why a verb ends without success, and with which exit code.
#[derive(Debug)]
pub enum Failure {
    /// The work was done and found a failure: exit code 1. What was found is already printed.
    Found,
    /// The arguments or a file that the user wrote are wrong: exit code 2.
    Usage(anyhow::Error),
    /// The machine, the network or the disk is in the way: exit code 3.
    Environment(anyhow::Error),
}

impl Failure {
    /// The user's words are wrong.
    pub fn usage(error: impl Into<anyhow::Error>) -> Self {
        Self::Usage(error.into())
    }

    /// The machine is in the way.
    pub fn environment(error: impl Into<anyhow::Error>) -> Self {
        Self::Environment(error.into())
    }
}

/// Tells what the work found, and that it is a failure.
pub fn found(error: impl Into<anyhow::Error>) -> Failure {
    explain(&error.into());
    Failure::Found
}

/// Prints one line of `--json`.
pub fn line(value: &impl serde::Serialize) {
    println!("{}", serde_json::to_string(value).expect("what verbs print has string keys and finite numbers"));
}

/// A file of the user's to be, beside its place: it is there whole or not at all once it is persisted.
///
/// # Errors
/// The folder cannot be written.
pub fn staged_beside(output: &std::path::Path) -> std::io::Result<tempfile::NamedTempFile> {
    let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(std::path::Path::new("."));
    let mut builder = tempfile::Builder::new();
    // As any file that a program writes; what is temporary is otherwise its owner's alone.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder)
}

/// What every verb returns.
pub type Outcome = Result<(), Failure>;

/// What shells call the end of a process whose reader has gone: 128 + SIGPIPE.
const NOBODY_READS: u8 = 141;

/// Parses the arguments, runs the verb, prints its error, and tells the exit code.
///
/// `metier … | head` ends quietly: printing into a closed pipe panics in Rust, and that panic is no bug of ours.
pub fn main() -> ExitCode {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if !is_closed_pipe(info.payload()) {
            usual(info);
        }
    }));
    match panic::catch_unwind(start) {
        Ok(code) => code,
        Err(payload) if is_closed_pipe(payload.as_ref()) => ExitCode::from(NOBODY_READS),
        Err(payload) => panic::resume_unwind(payload),
    }
}

fn is_closed_pipe(payload: &(dyn Any + Send)) -> bool {
    let said = payload.downcast_ref::<String>();
    said.is_some_and(|said| said.starts_with("failed printing to") && said.contains("Broken pipe"))
}

fn start() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to stdout with code 0, usage errors to stderr with code 2: clap knows which.
            let code = if error.use_stderr() { 2 } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    // Whoever speaks TLS here, as client, does so through ring; a second installation would be an error of ours and changes nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match run(cli.verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Found) => ExitCode::from(1),
        Err(Failure::Usage(error)) => report(&error, 2),
        Err(Failure::Environment(error)) => report(&error, 3),
    }
}

fn run(verb: Verb) -> Outcome {
    match verb {
        Verb::Init(args) => init::run(&args),
        Verb::Dataset(args) => dataset::run(&args),
        Verb::Build(args) => build::run(&args),
        Verb::Eval(args) => eval::run(&args),
        Verb::Roadmap(args) => roadmap::run(&args),
        Verb::Specialists(args) => specialists::run(&args),
        Verb::Models(args) => models::run(args),
        Verb::Demo(args) => demo::run(&args),
        Verb::Bench(args) => bench::run(&args),
        Verb::Serve(args) => serve::run(&args),
        Verb::Audit(args) => audit::run(&args),
        Verb::Doctor(args) => doctor::run(&args),
    }
}

/// Prints why there is no success, and tells the exit code.
fn report(error: &anyhow::Error, code: u8) -> ExitCode {
    explain(error);
    ExitCode::from(code)
}

/// The one place where the command line prints an error: what was attempted, then each cause on a line of its own.
fn explain(error: &anyhow::Error) {
    eprintln!("error: {error}");
    let mut told = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        // Some libraries repeat their cause in their own words.
        if !told.ends_with(&cause) {
            eprintln!("  because: {cause}");
        }
        told = cause;
    }
}

/// Width of the generated reference, in characters.
const REFERENCE_WIDTH: usize = 120;

/// `docs/cli.md`: what `--help` of every verb prints.
pub fn reference() -> String {
    let mut root = Cli::command().term_width(REFERENCE_WIDTH).disable_help_subcommand(true);
    root.build();
    let mut page = String::from(
        "# Command line\n\n\
         Generated from `crates/metier/src/cli/`; `METIER_BLESS=1 cargo test -p metier --test reference` rewrites this page.\n\n\
         Exit codes: 0 done, 1 the work found a failure, 2 the arguments or a file of yours are wrong, 3 the machine, the network or \
         the disk is in the way. Results go to stdout, bars and logs to stderr; `--json` makes every line of stdout a JSON object, the \
         last one the result.\n",
    );
    describe(&root, "", &mut page);
    page
}

fn describe(command: &clap::Command, above: &str, page: &mut String) {
    let name = format!("{above}{}", command.get_name());
    let help = command.clone().term_width(REFERENCE_WIDTH).render_long_help().to_string();
    let help: Vec<&str> = help.trim_end().lines().map(str::trim_end).collect();
    page.push_str(&format!("\n## `{name}`\n\n```text\n{}\n```\n", help.join("\n")));
    for verb in command.get_subcommands() {
        describe(verb, &format!("{name} "), page);
    }
}
