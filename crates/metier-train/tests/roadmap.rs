//! The roadmap's second half: what a task would save, whether a specialist can do it, what is said of it, what is done with it.

#[path = "roadmap/act.rs"]
mod act;
#[path = "roadmap/judge.rs"]
mod judge;
#[path = "roadmap/predict.rs"]
mod predict;
#[path = "roadmap/report.rs"]
mod report;
#[path = "roadmap/saving.rs"]
mod saving;
#[path = "roadmap/trace.rs"]
mod trace;
#[path = "roadmap/traffic.rs"]
mod traffic;
