//! *Here is traffic: which tasks are in it?* Log files in; tasks with their exact volumes, examples and traits out.
//!
//! - [`task`]: what a task is, as judging, pricing and the report read it.
//! - [`act`]: task files from it, and afterwards: did the saving come?
//! - [`judge`]: can a specialist do it? A guess from the traffic, then a trial on the logs themselves.
//! - [`report`]: all of it as a page, JSON and CSV.
//! - [`saving`]: what a specialist would save over the next best option, how sure that is, and in which order to go.
//!
//! Deliberately absent: any call to a model outside, the clock, and personal data anywhere but in the examples' texts.

pub mod act;
pub mod judge;
pub mod report;
pub mod saving;
pub mod task;

pub use task::{Discovery, Task, TaskKind};
