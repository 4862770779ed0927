//! How good is it, and how sure may we be of that? Scored rows in; figures with intervals, calibrator, report and card out.
//!
//! - [`metrics`]: accuracy, F1, calibration error, each with a 95 % interval.
//! - [`calibrate`]: fits the calibrator on validation rows.
//! - [`hierarchy`]: how good is it at each depth of a tree of labels?
//! - [`sets`]: how good are sets of labels?
//! - [`text`]: how like the expected text is an answer?
//! - [`certify`]: which test the calibration rows are for, and the certificate that they carry.
//! - [`cluster`]: the same intervals where rows come in groups.
//! - [`evaluation`]: everything that is said about one set of rows.
//! - [`stages`]: who answered what, where a specialist has two stages.
//! - [`rejection`]: what a score turns away as none of these.
//! - [`learning`]: would more rows help, and how many?
//! - [`finding`]: what all of it allows to say, "cannot tell" included.
//! - [`html`], [`card`]: the same for people.

pub mod calibrate;
pub mod card;
pub mod certify;
pub mod cluster;
pub mod evaluation;
pub mod finding;
pub mod hierarchy;
pub mod html;
pub mod learning;
pub mod metrics;
pub mod rejection;
pub mod sets;
pub mod stages;
pub mod text;

pub use evaluation::{EvalReport, ScoredRow};
pub use finding::{Finding, Says};
pub use learning::LearningCurve;
pub use metrics::Measured;
