//! *How far along it?* AdamW over one flat vector, clipping, and the course of the step length.
//!
//! **In:** values and derivatives. **Out:** new values. **Absent:** which tensors there are; learning from validation rows.

mod adam_w;
mod schedule;

pub use adam_w::{AdamW, Group, Settings};
pub use schedule::Schedule;
