//! Which question: *how does an application reach a model over HTTP?* In go connections; out come answers in the OpenAI protocol's shape. A request is parsed
//! into a type of `metier-traffic`, handed to [`Gateway`], and its reply is written as JSON or as server-sent events.
//!
//! Deliberately absent: any opinion on who answers or what may leave (the gateway's), and any status code outside `error.rs`.
//!
//! ```text
//! listen ─► guard (host, request id, time, panics) ─► body (limit, deadline) ─► chat │ embeddings │ models │ receipts ─► Gateway
//! ```

mod adapters;
mod body;
mod error;
mod guard;
mod listen;
mod metrics;
mod pickup;
mod routes;
mod signal;
mod sse;

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    routing::{get, post},
};
use metier_gateway::{Caller, Gateway};

use crate::config::ServerSettings;
pub use adapters::{AdapterOpener, AdapterShelf, ServeAdapterError};
use body::BodyLimits;
pub use error::ServerError;
pub use listen::{ListenError, bind, serve};
pub use metrics::{Answered, Metrics, resident_bytes};
pub use pickup::{Shelf, watch};
pub use signal::stop;

/// What all requests share.
pub struct App {
    /// Answers and records.
    gateway: Arc<Gateway>,
    /// Who asks: without API keys, whoever is on this machine.
    caller: Caller,
    /// Counters of `/metrics`.
    metrics: Metrics,
    /// Port that is served: the `Host` header must name it.
    port: u16,
    /// Longest body, and the time that a request may take in all.
    limits: BodyLimits,
}

impl App {
    /// Nothing answered yet.
    pub fn new(gateway: Arc<Gateway>, port: u16, settings: &ServerSettings) -> Self {
        let limits =
            BodyLimits { max_bytes: settings.max_body_bytes, deadline: Duration::from_millis(settings.deadline_ms) };
        Self { gateway, caller: Caller::loopback(), metrics: Metrics::default(), port, limits }
    }
}

/// All routes with what stands around them.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(routes::chat))
        .route("/v1/embeddings", post(routes::embeddings))
        .route("/v1/models", get(routes::models))
        .route("/v1/models/{name}", get(routes::model))
        .route("/admin/v1/receipts/{id}", get(routes::receipt))
        .route("/healthz", get(routes::healthz))
        .route("/readyz", get(routes::readyz))
        .route("/metrics", get(routes::metrics))
        .fallback(routes::unknown_route)
        .method_not_allowed_fallback(routes::wrong_method)
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&app), guard::guard))
        .with_state(app)
}

/// Milliseconds since 1970.
#[expect(clippy::disallowed_methods, reason = "the roof holds the clock; below it, time is an argument")]
pub fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
