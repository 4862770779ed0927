//! May it go there, who answers, what is on record?
//!
//! Which question: *here is a request; who may answer it, who does, and how do we show it afterwards?* In go a parsed request, a
//! caller and a deadline; out come an answer with its decision, and two entries in the audit log. Deliberately absent: HTTP
//! servers, files other than the state directory it is given, the environment, and training.

pub mod adapters;
pub mod audit;
pub mod backend;
pub mod decision;
mod deferral;
pub mod error;
mod expert;
pub mod gateway;
pub mod meter;
mod passage;
pub mod policy;
mod record;
pub mod reply;
pub mod route;
pub mod setup;
#[cfg(test)]
mod simulation;
mod store;

pub use adapters::AdapterRefused;
pub use backend::{BackendError, remote::BackendConfig, remote::Secret};
pub use decision::{Decision, Escalated, Outcome};
pub use error::{Fault, GatewayError};
pub use gateway::{Caller, Gateway, Limits, RequestContext};
pub use meter::Meter;
pub use policy::Boundary;
pub use reply::{EmbeddingReply, Reply, ReplyStream};
pub use setup::{GatewayConfig, LocalModels, OpenError};
