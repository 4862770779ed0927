//! `metier`: the right model for the right task, on your own machines.

use std::process::ExitCode;

fn main() -> ExitCode {
    metier::cli::main()
}
