//! How long work tells upwards how far it is. Bars and lines are drawn in `metier/cli` alone.

/// What `done` and `total` of a [`Progress`] count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes of a file.
    Bytes,
    /// Rows of a data set.
    Rows,
    /// Steps of an algorithm.
    Steps,
}

/// One report of progress: `done` of `total` units of a stage.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// What is being done, as a person would say it: "embedding rows".
    pub stage: &'a str,
    /// Units done so far.
    pub done: u64,
    /// Units in all, where known.
    pub total: Option<u64>,
    /// What is counted.
    pub unit: Unit,
}

/// For callers that show nothing.
pub fn silent(_: Progress<'_>) {}
