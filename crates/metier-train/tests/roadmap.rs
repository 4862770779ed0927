//! The roadmap's second half: what a task would save, whether a specialist can do it, what is said of it, what is done with it.

#[path = "roadmap/saving.rs"]
mod saving;
