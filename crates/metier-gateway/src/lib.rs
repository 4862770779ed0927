//! May it go there, who answers, what is on record?
//!
//! Which question: *here is a request; who may answer it, who does, and how do we show it afterwards?* In go a parsed request, a
//! caller and a deadline; out come an answer with its decision, and two entries in the audit log. Deliberately absent: HTTP
//! servers, files other than the state directory it is given, the environment, and training.

pub mod audit;
pub mod decision;
pub mod meter;
pub mod policy;
pub mod route;
mod store;
