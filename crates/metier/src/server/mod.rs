//! Which question: *how does an application reach a model over HTTP?* In go connections; out come answers in the OpenAI protocol's shape. A request is parsed
//! into a type of `metier-traffic`, handed to [`Gateway`], and its reply is written as JSON or as server-sent events.
//!
//! Deliberately absent: any opinion on who answers or what may leave (the gateway's), and any status code outside `error.rs`.
//!
//! ```text
//! listen ─► guard (host, request id, time, panics) ─► chat │ embeddings │ models │ receipts ─► Gateway
//! ```

mod error;
mod guard;
mod listen;
mod metrics;
mod signal;

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Request, State},
    http::{HeaderValue, header},
    response::{IntoResponse as _, Response},
    routing::get,
};
use serde_json::json;

pub use error::ServerError;
pub use listen::{ListenError, bind, serve};
pub use metrics::{Answered, Metrics, resident_bytes};
pub use signal::stop;

/// What all requests share.
#[derive(Debug)]
pub struct App {
    /// Counters of `/metrics`.
    pub metrics: Metrics,
    /// Port that is served: the `Host` header must name it.
    port: u16,
}

impl App {
    /// Nothing answered yet.
    pub fn new(port: u16) -> Self {
        Self { metrics: Metrics::default(), port }
    }
}

/// All routes with what stands around them.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/metrics", get(metrics_page))
        .fallback(unknown_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&app), guard::guard))
        .with_state(app)
}

/// The process runs.
async fn healthz() -> Json<serde_json::Value> {
    Json(json!({"status": "ok"}))
}

async fn metrics_page(State(app): State<Arc<App>>) -> Response {
    let page = app.metrics.render(0, resident_bytes("self"));
    ([(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4"))], page).into_response()
}

async fn unknown_route(request: Request) -> ServerError {
    ServerError::UnknownRoute { path: guard::echo(request.uri().path()) }
}

async fn wrong_method(request: Request) -> ServerError {
    ServerError::WrongMethod { path: guard::echo(request.uri().path()), method: guard::echo(request.method().as_str()) }
}
