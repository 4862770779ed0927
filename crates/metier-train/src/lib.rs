//! *Make a specialist from our data: is it good enough, and when must it defer?* A task file and its rows in; a bundle in
//! a store and everything that was measured on the way out.
//!
//! - [`data`]: rows, split by hash and group, checked for leaks.
//! - [`grad`], [`objective`], [`optim`]: which way is down, by how much, and how far along it: networks that are tuned.
//! - [`craft`]: the rungs of the ladder and the choice between them; the trade of tuned encoders.
//! - [`eval`]: metrics with intervals, calibrator, certificate, report and model card.
//! - [`curate`](mod@curate): what is wrong with the rows, before anything is made from them.
//! - [`build`](mod@build): the one function that calls the rooms in order; [`plan`](mod@plan) is its dry run.
//! - [`generate`](mod@build::generate): the same for tasks whose answers a decoder writes.
//! - [`discover`]: which tasks are in an organisation's logs.
//! - [`init`]: a first task file for a data file.
//!
//! Deliberately absent: clocks, the environment and the terminal (handed in by the roof), model downloads, calls to any
//! backend, and the gateway: the two meet in files.

pub mod build;
pub mod craft;
pub mod curate;
pub mod data;
pub mod discover;
pub mod embed;
pub mod eval;
pub mod grad;
pub mod init;
pub mod objective;
pub mod optim;
pub mod plan;

pub use build::generate::{build_generator, plan_generator};
pub use build::{BuildError, BuildOutcome, Workbench, build, evaluate, evaluate_decoder};
pub use curate::{Curation, curate};
pub use data::{TaskError, TaskFile};
pub use embed::Embed;
pub use init::init_task_file;
pub use plan::{Plan, plan};

/// Seed of splits, permutations and resamples where nobody names another: the same input gives the same bundle.
pub const DEFAULT_SEED: u64 = 0;
