//! *How wrong is it?* Losses with their derivatives.
//!
//! **In:** what a network gave, and what it should have given. **Out:** one number, the mean over rows, and its derivative. **Absent:**
//! metrics that are reported ([`eval`](crate::eval)).

pub mod binary;
pub mod contrast;
pub mod cross_entropy;
pub mod distil;

pub use binary::{binary_cross_entropy, binary_divergence};
pub use contrast::supervised_contrast;
pub use cross_entropy::{cross_entropy, symmetric_divergence};
