//! The command line: one file a verb. What the user typed is parsed here, resolved by [`crate::config`], and run by the verb.
//!
//! Exit codes: 0 done, 1 the work found a failure (a certificate that does not hold, a log that does not verify), 2 usage,
//! 3 the environment is in the way (no network, no space, a port in use).

// This room is the one place that prints.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the command line is where output belongs")]

pub mod ask;
pub mod bases;
pub mod child;
pub mod models;
pub mod progress;
pub mod serve;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The right model for the right task, on your own machines.
#[derive(Debug, Parser)]
#[command(name = "metier", version, propagate_version = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Models(models::ModelsArgs),
    Serve(serve::ServeArgs),
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

/// Prints one line of `--json`.
pub fn line(value: &impl serde::Serialize) {
    println!("{}", serde_json::to_string(value).expect("what verbs print has string keys and finite numbers"));
}

/// What every verb returns.
pub type Outcome = Result<(), Failure>;

/// Parses the arguments, runs the verb, prints its error, and tells the exit code.
pub fn main() -> ExitCode {
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
        Verb::Models(args) => models::run(args),
        Verb::Serve(args) => serve::run(&args),
    }
}

/// The one place where the command line prints an error: what was attempted, then each cause on a line of its own.
fn report(error: &anyhow::Error, code: u8) -> ExitCode {
    eprintln!("error: {error}");
    for cause in error.chain().skip(1) {
        eprintln!("  because: {cause}");
    }
    ExitCode::from(code)
}
