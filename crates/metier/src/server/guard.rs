//! What every request passes before its handler and every response after it: the host check, the request id, the time it took,
//! the trace it belongs to, and the net under a handler that panics.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Instant};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use futures_util::FutureExt as _;

use super::{App, error::ServerError};

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const OPENAI_PROCESSING_MS: HeaderName = HeaderName::from_static("openai-processing-ms");
/// Longest request id that a client may choose, in bytes.
const MAX_REQUEST_ID_BYTES: usize = 64;
/// Most of a path, host or name that an error repeats, in characters.
const MAX_ECHO_CHARS: usize = 100;

/// A request's name: what the client sent in `x-request-id`, else a new one.
#[derive(Clone, Debug)]
pub(super) struct RequestId(pub(super) String);

/// When the request's head was read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrived(pub(super) Instant);

/// The layer around all routes.
pub(super) async fn guard(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let arrived = Instant::now();
    let in_flight = app.metrics.enter();
    let id = request_id(request.headers());
    let trace = request.headers().get(TRACEPARENT).filter(|value| is_traceparent(value)).cloned();
    let route = app.metrics.route(request.uri().path());
    let checked = check_host(request.headers(), app.port).and_then(|()| check_origin(request.headers(), app.port));
    let mut response = match checked {
        Err(error) => error.into_response(),
        Ok(()) => {
            request.extensions_mut().insert(RequestId(id.clone()));
            request.extensions_mut().insert(Arrived(arrived));
            // A panic must cost one request, not the connection with the requests behind it. Nothing of the handler is used after.
            match AssertUnwindSafe(next.run(request)).catch_unwind().await {
                Ok(response) => response,
                Err(_) => ServerError::Panicked.into_response(),
            }
        }
    };
    let elapsed = arrived.elapsed();
    app.metrics.answered(route, response.status().as_u16(), elapsed);
    let headers = response.headers_mut();
    headers.insert(X_REQUEST_ID, HeaderValue::from_str(&id).expect("request ids are visible ASCII"));
    headers.insert(OPENAI_PROCESSING_MS, HeaderValue::from(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)));
    if let Some(trace) = trace {
        headers.insert(TRACEPARENT, trace);
    }
    drop(in_flight);
    response
}

/// Text of a client's for an error message: cut, and without control characters.
pub(super) fn echo(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_ECHO_CHARS).collect()
}

fn request_id(headers: &HeaderMap) -> String {
    let plain = |text: &&str| {
        (1..=MAX_REQUEST_ID_BYTES).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(&b))
    };
    match headers.get(X_REQUEST_ID).and_then(|value| value.to_str().ok()).filter(plain) {
        Some(theirs) => theirs.to_owned(),
        None => {
            let mut bytes = [0; 16];
            getrandom::fill(&mut bytes).expect("the system has randomness once it has started");
            format!("req-{}", hex::encode(bytes))
        }
    }
}

/// W3C Trace Context: `version-traceid-parentid-flags` in lower-case hexadecimal.
fn is_traceparent(value: &HeaderValue) -> bool {
    let Ok(text) = value.to_str() else { return false };
    let parts: Vec<&str> = text.split('-').collect();
    let hex = |part: &str, len: usize| {
        part.len() == len && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    matches!(parts.as_slice(), [version, trace, parent, flags]
        if hex(version, 2) && hex(trace, 32) && hex(parent, 16) && hex(flags, 2))
}

/// A page of the web can make its own name point to 127.0.0.1 (DNS rebinding), but not change the `Host` header that follows from it.
fn check_host(headers: &HeaderMap, port: u16) -> Result<(), ServerError> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next().and_then(|value| value.to_str().ok()).unwrap_or("");
    if hosts.next().is_none() && is_local(host, port) { Ok(()) } else { Err(ServerError::Host(echo(host))) }
}

/// A browser names the page that sends; programs send no `Origin`.
fn check_origin(headers: &HeaderMap, port: u16) -> Result<(), ServerError> {
    match headers.get(header::ORIGIN) {
        None => Ok(()),
        Some(origin) => {
            let origin = origin.to_str().unwrap_or("");
            match origin.strip_prefix("http://") {
                Some(host) if is_local(host, port) => Ok(()),
                _ => Err(ServerError::Origin(echo(origin))),
            }
        }
    }
}

/// Whether this is a name of this machine with the port that is served (80 may be left out).
fn is_local(host: &str, port: u16) -> bool {
    let (name, stated) = match host.rsplit_once(':') {
        Some((name, digits)) if !digits.ends_with(']') => (name, digits.parse().ok()),
        _ => (host, Some(80)),
    };
    stated == Some(port) && ["localhost", "127.0.0.1", "[::1]"].iter().any(|local| name.eq_ignore_ascii_case(local))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_local_hosts_with_the_port_pass() {
        for host in ["localhost:8080", "LOCALHOST:8080", "127.0.0.1:8080", "[::1]:8080"] {
            assert!(is_local(host, 8080), "{host}");
        }
        for host in
            ["", "localhost", "localhost:8081", "evil.example:8080", "127.0.0.1.evil.example:8080", "[::1]", "::1"]
        {
            assert!(!is_local(host, 8080), "{host}");
        }
        assert!(is_local("localhost", 80) && is_local("[::1]", 80));
    }

    #[test]
    fn request_ids_of_clients_are_kept_only_when_plain() {
        let with = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(X_REQUEST_ID, HeaderValue::from_static(value));
            request_id(&headers)
        };
        assert_eq!(with("order-17"), "order-17");
        assert!(with("a b").starts_with("req-"));
        assert!(with("").starts_with("req-"));
        assert_ne!(request_id(&HeaderMap::new()), request_id(&HeaderMap::new()));
    }

    #[test]
    fn traces_are_checked() {
        let check = |text| is_traceparent(&HeaderValue::from_static(text));
        assert!(check("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"));
        assert!(!check("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01"));
        assert!(!check("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7"));
    }
}
