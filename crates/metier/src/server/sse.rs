//! An answer as server-sent events, as the official clients read them: `data: {chunk}`, a blank line, at the end `data: [DONE]`. An error in
//! mid-stream is a chunk that holds `error`, and nothing after it: no `[DONE]` makes a cut answer look whole.

use std::sync::Arc;

use axum::{
    body::{Body, Bytes},
    http::{HeaderName, HeaderValue, header},
    response::Response,
};
use futures_util::{StreamExt as _, stream};
use metier_gateway::{Decision, ReplyStream};
use metier_traffic::wire::{ChatChunk, Usage};
use serde::Serialize;

use super::{App, error::ServerError, routes::count};

/// Asks proxies of the nginx family not to collect the stream.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

struct State {
    chunks: ReplyStream,
    app: Arc<App>,
    decision: Decision,
    usage: Option<Usage>,
    ended: bool,
}

/// The body. When the client leaves, it is dropped, and with it the gateway's stream, which cancels the work.
pub(super) fn body(chunks: ReplyStream, app: Arc<App>, decision: Decision) -> Body {
    let state = State { chunks, app, decision, usage: None, ended: false };
    Body::from_stream(stream::unfold(state, |mut state| async move {
        if state.ended {
            return None;
        }
        let event = match state.chunks.next().await {
            Some(Ok(chunk)) => {
                state.follow(&chunk);
                event(&chunk)
            }
            Some(Err(error)) => {
                state.ended = true;
                let error = ServerError::from(error);
                error.log();
                event(&error.body())
            }
            None => {
                state.ended = true;
                count(&state.app, &state.decision, state.usage);
                Bytes::from_static(b"data: [DONE]\n\n")
            }
        };
        Some((Ok::<_, std::convert::Infallible>(event), state))
    }))
}

impl State {
    /// The last chunks tell what was spent.
    fn follow(&mut self, chunk: &ChatChunk) {
        self.usage = chunk.usage.or(self.usage);
        let cost_usd = chunk.metier.as_ref().and_then(|metier| metier["cost_usd"].as_str()?.parse::<f64>().ok());
        if let Some(cost_usd) = cost_usd {
            self.decision.cost_picousd = Some((cost_usd * 1e12).round() as u64);
        }
    }
}

fn event(value: &impl Serialize) -> Bytes {
    let mut line = b"data: ".to_vec();
    serde_json::to_writer(&mut line, value).expect("chunks have string keys, and memory takes every write");
    line.extend_from_slice(b"\n\n");
    Bytes::from(line)
}

/// Tells clients and proxies what follows.
pub(super) fn with_headers(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
    response
}
