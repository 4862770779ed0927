//! One function a route: read, hand to the gateway, write. Nothing here decides anything.

use std::sync::Arc;

use axum::{
    Extension,
    body::Body,
    extract::{Path, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use metier_gateway::{Decision, GatewayError, Reply, RequestContext, audit::AuditError};
use metier_traffic::wire::{ChatRequest, EmbeddingRequest, ModelList, Usage};
use serde::Serialize;
use serde_json::json;
use tokio::time::Instant;

use super::{
    Answered, App, body,
    error::ServerError,
    guard::{Arrived, RequestId, echo},
    now_ms, resident_bytes, sse,
};

/// Names that an error lists so that a typing mistake is seen.
const MAX_KNOWN_NAMES: usize = 10;

/// `POST /v1/chat/completions`.
pub(super) async fn chat(
    State(app): State<Arc<App>>,
    Extension(id): Extension<RequestId>,
    Extension(arrived): Extension<Arrived>,
    body: Body,
) -> Result<Response, ServerError> {
    let bytes = body::read(body, app.limits).await?;
    let request = ChatRequest::parse(&bytes)?;
    drop(bytes);
    match app.gateway.handle(&app.caller, request, app.context(id, arrived)).await? {
        Reply::Whole { response, decision } => {
            count(&app, &decision, response.usage);
            Ok(with_decision(json_response(&response), &decision))
        }
        Reply::Stream { decision, chunks } => {
            let response = Response::new(sse::body(chunks, Arc::clone(&app), decision.clone()));
            Ok(with_decision(sse::with_headers(response), &decision))
        }
    }
}

/// `POST /v1/embeddings`.
pub(super) async fn embeddings(
    State(app): State<Arc<App>>,
    Extension(id): Extension<RequestId>,
    Extension(arrived): Extension<Arrived>,
    body: Body,
) -> Result<Response, ServerError> {
    let bytes = body::read(body, app.limits).await?;
    let request = EmbeddingRequest::parse(&bytes)?;
    drop(bytes);
    let reply = app.gateway.embed(&app.caller, request, app.context(id, arrived)).await?;
    count(&app, &reply.decision, Some(Usage::of(reply.response.usage.prompt_tokens, 0)));
    Ok(with_decision(json_response(&reply.response), &reply.decision))
}

/// `GET /v1/models`.
pub(super) async fn models(State(app): State<Arc<App>>) -> Response {
    json_response(&ModelList::new(app.gateway.models()))
}

/// `GET /v1/models/{name}`.
pub(super) async fn model(State(app): State<Arc<App>>, Path(name): Path<String>) -> Result<Response, ServerError> {
    let models = app.gateway.models();
    match models.iter().find(|model| model.id == name) {
        Some(model) => Ok(json_response(model)),
        None => {
            let known = models.into_iter().map(|model| model.id).take(MAX_KNOWN_NAMES).collect();
            Err(GatewayError::UnknownModel { model: echo(&name), known }.into())
        }
    }
}

/// `GET /admin/v1/receipts/{id}`: the proof as text, for `metier audit verify-receipt` or any other C2SP reader.
pub(super) async fn receipt(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Response, ServerError> {
    let wanted = id.clone();
    // Reads the database.
    let proving = tokio::task::spawn_blocking(move || app.gateway.receipt(&wanted));
    match proving.await.map_err(|_| ServerError::Panicked)? {
        Ok(receipt) => {
            let text = HeaderValue::from_static("text/plain; charset=utf-8");
            Ok(([(header::CONTENT_TYPE, text)], receipt.to_string()).into_response())
        }
        Err(AuditError::Unknown(_)) => Err(ServerError::UnknownReceipt(echo(&id))),
        Err(error) => Err(ServerError::Receipt(error)),
    }
}

/// `GET /healthz`: the process runs.
pub(super) async fn healthz() -> Response {
    json_response(&json!({"status": "ok"}))
}

/// `GET /readyz`: requests are answered.
pub(super) async fn readyz(State(app): State<Arc<App>>) -> Result<Response, ServerError> {
    if app.gateway.is_ready() { Ok(json_response(&json!({"status": "ready"}))) } else { Err(ServerError::NotReady) }
}

/// `GET /metrics`.
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Response {
    let models = app.gateway.models();
    let count = |owner: &str| models.iter().filter(|model| model.owned_by == owner).count();
    let page = app.metrics.render(count("metier-specialist"), count("metier-adapter"), resident_bytes("self"));
    ([(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4"))], page).into_response()
}

pub(super) async fn unknown_route(request: Request) -> ServerError {
    ServerError::UnknownRoute { path: echo(request.uri().path()) }
}

pub(super) async fn wrong_method(request: Request) -> ServerError {
    ServerError::WrongMethod { path: echo(request.uri().path()), method: echo(request.method().as_str()) }
}

impl App {
    fn context(&self, id: RequestId, arrived: Arrived) -> RequestContext {
        RequestContext {
            request_id: id.0,
            now_ms: now_ms(),
            deadline: Instant::from_std(arrived.0) + self.limits.deadline,
        }
    }
}

/// Counts a decision that is final.
pub(super) fn count(app: &App, decision: &Decision, usage: Option<Usage>) {
    let usage = usage.unwrap_or_default();
    app.metrics.decided(&Answered {
        decision: decision.outcome.as_str(),
        escalated: decision.escalated.as_str(),
        prompt_tokens: usage.prompt_tokens,
        completion_tokens: usage.completion_tokens,
        cost_picousd: decision.cost_picousd,
    });
}

fn json_response(body: &impl Serialize) -> Response {
    let bytes = serde_json::to_vec(body).expect("answers have string keys");
    (StatusCode::OK, [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], bytes).into_response()
}

fn with_decision(mut response: Response, decision: &Decision) -> Response {
    let headers: &mut HeaderMap = response.headers_mut();
    for (name, value) in decision.headers() {
        // A stage is the operator's word for a backend: what no header can carry is left out.
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    response
}
