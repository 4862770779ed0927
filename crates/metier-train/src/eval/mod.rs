//! How good is it, and how sure may we be of that? Scored rows in; figures with intervals, calibrator, report and card out.
//!
//! - [`metrics`]: accuracy, F1, calibration error, each with a 95 % interval.
//! - [`calibrate`]: fits the calibrator on validation rows.
//! - [`evaluation`]: everything that is said about one set of rows.
//! - [`html`], [`card`]: the same for people.

pub mod calibrate;
pub mod card;
pub mod evaluation;
pub mod html;
pub mod metrics;

pub use evaluation::{EvalReport, ScoredRow};
pub use metrics::Measured;
