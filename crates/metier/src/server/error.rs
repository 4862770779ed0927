//! The one file that maps errors to HTTP. Whose fault it is decides the status; the body always has the protocol's shape
//! `{"error": {message, type, param, code}}`, for unknown routes and broken connections too.

use std::time::Duration;

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use metier_gateway::{Fault, GatewayError, audit::AuditError};
use metier_traffic::wire::{ErrorBody, ErrorObject, WireError};

/// Tells the official clients whether to try again, whatever they would make of the status alone.
const X_SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
/// Finer than `retry-after`, which counts whole seconds; the official clients read it first.
const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");

/// Why a request gets no answer.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The body is no request of the protocol.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// No route has this path.
    #[error("there is nothing at `{path}`; requests go to `/v1/chat/completions`, `/v1/embeddings` and `/v1/models`")]
    UnknownRoute {
        /// Path of the request, cut to a readable length.
        path: String,
    },
    /// The path is there, the method is not.
    #[error("`{path}` does not answer to {method}")]
    WrongMethod {
        /// Path of the request.
        path: String,
        /// What was tried.
        method: String,
    },
    /// The `Host` header names another machine: a page elsewhere may have had its name point here (CVE-2024-28224).
    #[error("this server answers to `localhost`, `127.0.0.1` and `[::1]` with its own port, not to the host `{0}`")]
    Host(String),
    /// A page of another origin sent this from a browser.
    #[error("requests from pages of `{0}` are not answered")]
    Origin(String),
    /// The body is longer than the limit.
    #[error("the body is longer than {limit_bytes} bytes (`server.max_body_bytes`)")]
    BodyTooLarge {
        /// The limit.
        limit_bytes: usize,
    },
    /// The body did not come whole before the deadline.
    #[error("the body did not come within {deadline_ms} ms")]
    BodyTooSlow {
        /// The limit.
        deadline_ms: u64,
    },
    /// The connection broke while the body was read; nobody will read this.
    #[error("the body broke off")]
    BodyCut,
    /// The gateway has no answer.
    #[error(transparent)]
    Gateway(#[from] GatewayError),
    /// No entry of the log belongs to this id.
    #[error("the audit log has no request `{0}`")]
    UnknownReceipt(String),
    /// The log cannot be read, or a proof of it does not verify.
    #[error("the receipt cannot be made")]
    Receipt(#[source] AuditError),
    /// The log takes no entries, or the server is shutting down.
    #[error("requests are not answered now")]
    NotReady,
    /// A handler panicked.
    #[error("an error of ours: the request was not answered")]
    Panicked,
}

/// An error as HTTP sees it.
struct Shape {
    status: StatusCode,
    /// `type` of the protocol.
    kind: &'static str,
    code: Option<&'static str>,
    param: Option<String>,
    retry_after: Option<Duration>,
    /// `None` leaves it to the client's own rule for the status.
    should_retry: Option<bool>,
}

impl Shape {
    /// The caller's fault.
    fn caller(status: StatusCode, code: &'static str) -> Self {
        Self {
            status,
            kind: "invalid_request_error",
            code: Some(code),
            param: None,
            retry_after: None,
            should_retry: Some(false),
        }
    }

    /// The operator's fault or ours.
    fn server(status: StatusCode, code: &'static str, should_retry: bool) -> Self {
        Self {
            status,
            kind: "server_error",
            code: Some(code),
            param: None,
            retry_after: None,
            should_retry: Some(should_retry),
        }
    }
}

/// What the gateway's errors look like; its words for `code` and `param` are the protocol's.
fn gateway_shape(error: &GatewayError) -> Shape {
    let (status, should_retry) = match error {
        GatewayError::UnknownModel { .. } => (StatusCode::NOT_FOUND, Some(false)),
        GatewayError::Invalid { .. } | GatewayError::ContextLength { .. } => (StatusCode::BAD_REQUEST, Some(false)),
        GatewayError::Denied { .. } => (StatusCode::FORBIDDEN, Some(false)),
        GatewayError::Overloaded { .. } | GatewayError::ShuttingDown => (StatusCode::SERVICE_UNAVAILABLE, Some(true)),
        // What cannot be recorded now will not be in half a second: the operator has to act.
        GatewayError::Unrecorded(_) => (StatusCode::SERVICE_UNAVAILABLE, Some(false)),
        // The same work would take the same time.
        GatewayError::Deadline => (StatusCode::GATEWAY_TIMEOUT, Some(false)),
        GatewayError::Backend { source, .. } => {
            (StatusCode::from_u16(source.status()).unwrap_or(StatusCode::BAD_GATEWAY), None)
        }
        GatewayError::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, Some(false)),
    };
    Shape {
        status,
        kind: if error.fault() == Fault::Caller { "invalid_request_error" } else { "server_error" },
        code: Some(error.code()),
        param: error.param().map(str::to_owned),
        retry_after: error.retry_after_ms().map(Duration::from_millis),
        should_retry,
    }
}

impl ServerError {
    fn shape(&self) -> Shape {
        match self {
            Self::Wire(error) => {
                let status = match error.code {
                    "body_too_large" => StatusCode::PAYLOAD_TOO_LARGE,
                    _ => StatusCode::BAD_REQUEST,
                };
                Shape { param: error.param.clone(), ..Shape::caller(status, error.code) }
            }
            Self::UnknownRoute { .. } => Shape::caller(StatusCode::NOT_FOUND, "unknown_url"),
            Self::WrongMethod { .. } => Shape::caller(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
            Self::Host(_) => Shape::caller(StatusCode::FORBIDDEN, "host_not_allowed"),
            Self::Origin(_) => Shape::caller(StatusCode::FORBIDDEN, "origin_not_allowed"),
            Self::BodyTooLarge { .. } => Shape::caller(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"),
            Self::BodyTooSlow { .. } => Shape::caller(StatusCode::REQUEST_TIMEOUT, "body_too_slow"),
            Self::BodyCut => Shape::caller(StatusCode::BAD_REQUEST, "body_cut"),
            Self::Gateway(error) => gateway_shape(error),
            Self::UnknownReceipt(_) => Shape::caller(StatusCode::NOT_FOUND, "receipt_not_found"),
            Self::Receipt(_) => Shape::server(StatusCode::SERVICE_UNAVAILABLE, "receipt_unavailable", false),
            Self::NotReady => Shape::server(StatusCode::SERVICE_UNAVAILABLE, "not_ready", true),
            Self::Panicked => Shape::server(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", false),
        }
    }

    /// The error in the protocol's shape: the body of a response, or a chunk of a stream that has begun.
    pub fn body(&self) -> ErrorBody {
        let shape = self.shape();
        ErrorBody {
            error: ErrorObject {
                message: self.to_string(),
                kind: shape.kind.to_owned(),
                param: shape.param,
                code: shape.code.map(str::to_owned),
            },
        }
    }

    /// Tells the operator what is theirs or ours to mend, with its causes, which the client does not see.
    pub(super) fn log(&self) {
        let status = self.shape().status;
        if status.is_server_error() {
            tracing::warn!(status = status.as_u16(), error = %chain(self), "request failed");
        }
    }
}

impl IntoResponse for ServerError {
    fn into_response(self) -> Response {
        self.log();
        let shape = self.shape();
        let body = serde_json::to_vec(&self.body()).expect("an error body has string keys only");
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = shape.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(retry) = shape.should_retry {
            headers.insert(X_SHOULD_RETRY, HeaderValue::from_static(if retry { "true" } else { "false" }));
        }
        if let Some(after) = shape.retry_after {
            let ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
            headers.insert(RETRY_AFTER_MS, HeaderValue::from(ms));
            headers.insert(header::RETRY_AFTER, HeaderValue::from(ms.div_ceil(1000).max(1)));
        }
        response
    }
}

/// An error with its causes on one line, for the operator's log: the client sees the first part alone.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
