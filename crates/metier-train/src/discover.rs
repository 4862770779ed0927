//! *Here is traffic: which tasks are in it?* Log files in; tasks with their exact volumes, examples and traits out.
//!
//! - [`task`]: what a task is, as judging, pricing and the report read it.
//!
//! Deliberately absent: any call to a model outside, the clock, and personal data anywhere but in the examples' texts.

pub mod task;

pub use task::{Discovery, Task, TaskKind};
