//! How sure may we be? Counts and scores in; intervals, exact tails, verdicts and certificates out.
//!
//! - [`interval`]: Wilson and Clopper–Pearson intervals of a share, and the exact binomial tail.
//! - [`paired`]: is one classifier as good as another on the *same* rows, up to a margin?
//! - [`certificate`]: Learn-then-Test: the loosest threshold whose risk is bounded, or why there is none.
//! - [`graded`]: the same where errors have degrees.
//! - [`grouped`]: the same where rows come in groups.
//! - [`cascade`]: the same for several stages that are asked one after the other, under one promise.
//! - [`calibrator`]: margins → probability of being right, as applied in serving.
//!
//! Everything is a pure function of its arguments. Deliberately absent: fitting of the calibrator and resampling
//! (`metier-train/eval`), and any normal approximation of a tail that has an exact form.

pub mod calibrator;
pub mod cascade;
pub mod certificate;
pub mod graded;
pub mod grouped;
pub mod interval;
pub mod paired;

pub use calibrator::{Calibrator, Method};
pub use cascade::{CascadeStage, StageShare, learn_then_test_cascade};
pub use certificate::{Certificate, Refusal, learn_then_test, rows_needed, thresholds};
pub use graded::learn_then_test_graded;
pub use grouped::{grouped_p_value, learn_then_test_grouped};
pub use interval::{binomial_tail, clopper_pearson, normal_quantile, wilson};
pub use paired::{NonInferiority, Paired, Verdict};
