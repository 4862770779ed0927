//! *Here is traffic: which tasks are in it?* Log files in; tasks with their exact volumes, examples and traits out.
//!
//! - [`read`]: files and folders → calls, everything else counted with its reason.
//! - [`template`]: prompts → templates; [`cluster`]: texts without one → groups.
//! - [`find`]: the two passes that bring these together; [`volume`], [`repeats`], [`traits`]: what is counted of a task, and what it is like.
//! - [`form`]: answers that are JSON → the schema that none of their calls declared.
//! - [`trace`]: every row with the task that it was counted in, by what, and at which price.
//! - [`task`]: what a task is, as judging, pricing and the report read it.
//! - [`act`]: task files from it, and afterwards: did the saving come?
//! - [`judge`]: can a specialist do it? A guess from the traffic, then a trial on the logs themselves.
//! - [`report`]: all of it as a page, JSON and CSV.
//! - [`saving`]: what a specialist would save over the next best option, how sure that is, and in which order to go.
//!
//! Deliberately absent: any call to a model outside, the clock, and personal data anywhere but in the examples' texts.

pub mod act;
pub mod cluster;
pub mod find;
pub mod form;
pub mod judge;
pub mod read;
pub mod repeats;
pub mod report;
pub mod saving;
pub mod task;
pub mod template;
pub mod trace;
pub mod traits;
pub mod volume;

pub use find::{DiscoverError, Finder};
pub use read::{Logs, ReadError};
pub use task::{Discovery, Task, TaskKind};
pub use trace::Trace;
