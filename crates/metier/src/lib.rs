//! The roof of metier: the command line, the configuration, the fetching of models, the HTTP server.
//!
//! Which question: *how does a person or a program reach the rooms below?* In go arguments, files and requests; out come
//! exit codes, lines and answers. Everything below is handed verified paths and settings. Deliberately absent: any arithmetic,
//! statistics or policy of its own. It is a library as well as a binary only so that its tests can call it.

pub mod cli;
pub mod config;
pub mod fetch;
pub mod server;
