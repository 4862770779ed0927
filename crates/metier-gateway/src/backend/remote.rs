//! A language model behind an OpenAI-compatible URL.
//!
//! What may go wrong has a bound: connect time-out, total deadline, size of the answer, length of a line, number of retries
//! (before the first byte of an answer only: nothing is asked twice once it was answered in part). No redirect is followed and
//! no proxy of the environment is used: bytes go to the configured host or nowhere.

use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, stream};
use metier_traffic::wire::{ChatChunk, ChatRequest, ChatResponse, ErrorBody};
use reqwest::{Client, Response, header};
use serde::Deserialize;
use tokio::time::{Instant, sleep, timeout_at};

use super::{
    Backend, BackendError, Chunks, Later,
    breaker::Breaker,
    sse::{Events, MAX_EVENT_BYTES, TooLong},
};
use crate::policy::{BackendFacts, Boundary, Permit};

/// Longest time to a connection.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest answer that is read, in bytes.
pub const MAX_RESPONSE_BYTES: usize = 16 << 20;
/// Attempts beyond the first.
pub const MAX_RETRIES: u32 = 2;
/// Wait before the first retry; doubled for each further one, and jittered between half and whole.
pub const RETRY_BACKOFF: Duration = Duration::from_millis(200);
/// Longest `retry-after` that is waited for; a longer one is told to the caller instead.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(10);
/// Longest error message of a backend that is passed on, in characters.
const MAX_MESSAGE_CHARS: usize = 300;
/// Largest error body that is read, in bytes.
const MAX_ERROR_BYTES: usize = 16 << 10;

/// A secret that `Debug` does not show.
#[derive(Clone)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// What the configuration says of a remote backend.
#[derive(Clone, Debug)]
pub struct BackendConfig {
    /// Its name in permits, entries and `[[backend]]`.
    pub id: String,
    /// Base URL, with or without `/v1`: `https://llm.example/v1`.
    pub url: String,
    /// The model that it is asked for, and by which callers may name it.
    pub model: String,
    /// Its side of the border.
    pub boundary: Boundary,
    /// Whether callers may name it although it lies outside.
    pub direct: bool,
    /// Sent as `authorization: Bearer …`.
    pub api_key: Option<Secret>,
    /// Longest time for one request, retries included. The request's own deadline holds too.
    pub deadline: Duration,
    /// Its line in the price book; without one its answers are unpriced.
    pub price: Option<String>,
}

impl BackendConfig {
    /// What policy sees of it.
    pub fn facts(&self) -> BackendFacts {
        BackendFacts { id: self.id.clone(), boundary: self.boundary, direct: self.direct }
    }
}

/// Why a backend cannot be set up: the operator's fault.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The URL is none that we speak to.
    #[error("the URL `{url}` of backend `{id}` must begin with http:// or https:// and name a host")]
    Url {
        /// The backend.
        id: String,
        /// What was found.
        url: String,
    },
    /// The key cannot be sent.
    #[error("the API key of backend `{0}` has characters that no header can hold")]
    Key(String),
    /// The client cannot be built.
    #[error("cannot set up the client of backend `{id}`")]
    Client {
        /// The backend.
        id: String,
        /// The cause.
        #[source]
        source: reqwest::Error,
    },
}

/// One remote backend.
pub(crate) struct Remote {
    config: BackendConfig,
    url: reqwest::Url,
    client: Client,
    breaker: Mutex<Breaker>,
    /// State of the jitter's generator.
    jitter: AtomicU64,
    backoff: Duration,
}

impl Remote {
    /// Sets up the client; nothing is sent. `seed` jitters the retries.
    pub(crate) fn new(config: BackendConfig, seed: u64, backoff: Duration) -> Result<Self, SetupError> {
        // rustls wants one provider a process. Whoever installed another first is right.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let url =
            endpoint(&config.url).ok_or_else(|| SetupError::Url { id: config.id.clone(), url: config.url.clone() })?;
        let mut headers = header::HeaderMap::new();
        if let Some(Secret(key)) = &config.api_key {
            let mut value = header::HeaderValue::from_str(&format!("Bearer {key}"))
                .map_err(|_| SetupError::Key(config.id.clone()))?;
            value.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, value);
        }
        let client = Client::builder()
            .default_headers(headers)
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .user_agent(concat!("metier/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|source| SetupError::Client { id: config.id.clone(), source })?;
        Ok(Self { config, url, client, breaker: Mutex::default(), jitter: AtomicU64::new(seed), backoff })
    }

    /// Sends the request until there is an answer's head, an error that no retry mends, or no time.
    async fn send(&self, permit: &Permit, request: &ChatRequest, deadline: Instant) -> Result<Response, BackendError> {
        if !permit.lists(&self.config.id) {
            return Err(BackendError::NotPermitted);
        }
        if request.label_scores.is_some() {
            let message = format!("`label_scores` is not known to `{}`: ask for a base of this server", self.config.id);
            return Err(BackendError::Invalid { message, param: "label_scores", code: "unsupported_parameter" });
        }
        // A field of ours: another server may refuse what it does not know.
        let mut body = ChatRequest { prompt_lookup: false, ..request.clone() }.to_body();
        body["model"] = self.config.model.as_str().into();
        let body = body.to_string();
        let mut attempt = 0;
        loop {
            let now = Instant::now();
            self.with_breaker(|breaker| breaker.admit(now))
                .map_err(|wait| BackendError::BreakerOpen { retry_after_ms: wait.as_millis() as u64 })?;
            let error = match self.attempt(&body, deadline).await {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            self.note(&error);
            let wait = match &error {
                BackendError::Connect(_) => self.wait(attempt),
                BackendError::Status { status: 408 | 429 | 500..=599, retry_after_ms, .. } => {
                    retry_after_ms.map_or_else(|| self.wait(attempt), Duration::from_millis)
                }
                _ => return Err(error),
            };
            attempt += 1;
            if attempt > MAX_RETRIES || wait > MAX_RETRY_AFTER || Instant::now() + wait >= deadline {
                return Err(error);
            }
            sleep(wait).await;
        }
    }

    async fn attempt(&self, body: &str, deadline: Instant) -> Result<Response, BackendError> {
        let request = self
            .client
            .post(self.url.clone())
            .header(header::CONTENT_TYPE, "application/json")
            .body(body.to_owned())
            .send();
        let response = match timeout_at(deadline, request).await {
            Err(_) => return Err(BackendError::Deadline),
            Ok(Err(error)) => return Err(BackendError::Connect(Box::new(error.without_url()))),
            Ok(Ok(response)) => response,
        };
        if response.status().is_success() {
            return Ok(response);
        }
        let (status, retry_after_ms) = (response.status().as_u16(), retry_after_ms(response.headers()));
        let text = timeout_at(deadline, read(response, MAX_ERROR_BYTES)).await;
        let message = match text {
            Ok(Ok(bytes)) => message_of(&bytes),
            _ => "(no readable message)".to_owned(),
        };
        Err(BackendError::Status { status, message, retry_after_ms })
    }

    /// Takes note of a failure that speaks against the backend.
    fn note(&self, error: &BackendError) {
        let theirs = matches!(
            error,
            BackendError::Connect(_)
                | BackendError::Deadline
                | BackendError::Status { status: 500..=599, .. }
                | BackendError::Cut
                | BackendError::Malformed(_)
                | BackendError::TooLarge { .. }
        );
        if theirs {
            self.with_breaker(|breaker| breaker.failed(Instant::now()));
        }
    }

    fn with_breaker<T>(&self, act: impl FnOnce(&mut Breaker) -> T) -> T {
        act(&mut self.breaker.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }

    /// Exponential back-off, jittered between half and whole by SplitMix64.
    fn wait(&self, attempt: u32) -> Duration {
        let seed = self.jitter.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        let mixed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let share = 0.5 + 0.5 * ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64;
        self.backoff.mul_f64(share * f64::from(1_u32 << attempt))
    }

    fn deadline(&self, deadline: Instant) -> Instant {
        deadline.min(Instant::now() + self.config.deadline)
    }
}

impl Backend for Remote {
    fn answer<'a>(
        &'a self,
        permit: &'a Permit,
        request: &'a ChatRequest,
        deadline: Instant,
    ) -> Later<'a, Result<ChatResponse, BackendError>> {
        Box::pin(async move {
            let deadline = self.deadline(deadline);
            let request = ChatRequest { stream: false, include_usage: false, ..request.clone() };
            let response = self.send(permit, &request, deadline).await?;
            let read = timeout_at(deadline, read(response, MAX_RESPONSE_BYTES)).await;
            let answer = read.unwrap_or(Err(BackendError::Deadline)).and_then(|bytes| parse_answer(&bytes));
            match &answer {
                Ok(_) => self.with_breaker(Breaker::succeeded),
                Err(error) => self.note(error),
            }
            answer
        })
    }

    fn stream<'a>(
        &'a self,
        permit: &'a Permit,
        request: &'a ChatRequest,
        deadline: Instant,
    ) -> Later<'a, Result<Chunks, BackendError>> {
        Box::pin(async move {
            let deadline = self.deadline(deadline);
            // Usage is always asked for: without it the cost would not be known.
            let request = ChatRequest { stream: true, include_usage: true, ..request.clone() };
            let response = self.send(permit, &request, deadline).await?;
            let kind = response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
            if !kind.starts_with("text/event-stream") {
                let error = BackendError::Malformed(format!("it was asked for a stream and sent `{}`", cut(kind)));
                self.note(&error);
                return Err(error);
            }
            self.with_breaker(Breaker::succeeded);
            Ok(chunks(response, deadline))
        })
    }
}

/// The protocol's address below a base URL.
fn endpoint(base: &str) -> Option<reqwest::Url> {
    let base = base.trim_end_matches('/');
    let path = if base.ends_with("/v1") { "/chat/completions" } else { "/v1/chat/completions" };
    let url = reqwest::Url::parse(&format!("{base}{path}")).ok()?;
    (matches!(url.scheme(), "http" | "https") && url.has_host() && url.query().is_none()).then_some(url)
}

/// `retry-after-ms`, else `retry-after` in seconds. A date is not understood and counts as absent.
fn retry_after_ms(headers: &header::HeaderMap) -> Option<u64> {
    let number = |name: &str| headers.get(name)?.to_str().ok()?.trim().parse::<f64>().ok();
    let ms = number("retry-after-ms").or_else(|| Some(number("retry-after")? * 1e3))?;
    (0.0..1e12).contains(&ms).then_some(ms as u64)
}

async fn read(response: Response, limit_bytes: usize) -> Result<Vec<u8>, BackendError> {
    let mut bytes = Vec::new();
    let mut parts = response.bytes_stream();
    while let Some(part) = parts.next().await {
        let part = part.map_err(|_| BackendError::Cut)?;
        if bytes.len() + part.len() > limit_bytes {
            return Err(BackendError::TooLarge { limit_bytes });
        }
        bytes.extend_from_slice(&part);
    }
    Ok(bytes)
}

fn parse_answer(bytes: &[u8]) -> Result<ChatResponse, BackendError> {
    let answer: ChatResponse =
        serde_json::from_slice(bytes).map_err(|error| BackendError::Malformed(cut(&error.to_string())))?;
    if answer.choices.is_empty() {
        return Err(BackendError::Malformed("it has no choices".into()));
    }
    Ok(answer)
}

fn message_of(bytes: &[u8]) -> String {
    match serde_json::from_slice::<ErrorBody>(bytes) {
        Ok(body) => cut(&body.error.message),
        Err(_) => cut(&String::from_utf8_lossy(bytes)),
    }
}

/// Readable length, no control characters: it goes into errors and the log.
fn cut(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_MESSAGE_CHARS).collect()
}

#[derive(Deserialize)]
#[serde(untagged)]
enum StreamEvent {
    Error(ErrorBody),
    Chunk(ChatChunk),
}

/// What a stream is read with.
struct Reading {
    parts: Parts,
    events: Events,
    ready: VecDeque<Vec<u8>>,
    n_bytes: usize,
    deadline: Instant,
    ended: bool,
}

type Parts = Pin<Box<dyn futures_util::Stream<Item = reqwest::Result<bytes::Bytes>> + Send>>;

fn chunks(response: Response, deadline: Instant) -> Chunks {
    let reading = Reading {
        parts: Box::pin(response.bytes_stream()),
        events: Events::default(),
        ready: VecDeque::new(),
        n_bytes: 0,
        deadline,
        ended: false,
    };
    Box::pin(stream::unfold(reading, |mut reading| async move {
        if reading.ended {
            return None;
        }
        match reading.next().await {
            Ok(Some(chunk)) => Some((Ok(chunk), reading)),
            Ok(None) => None,
            Err(error) => {
                reading.ended = true;
                Some((Err(error), reading))
            }
        }
    }))
}

impl Reading {
    /// The next chunk; `None` after `[DONE]`.
    async fn next(&mut self) -> Result<Option<ChatChunk>, BackendError> {
        loop {
            if let Some(data) = self.ready.pop_front() {
                if data == b"[DONE]" {
                    return Ok(None);
                }
                return match serde_json::from_slice(&data) {
                    Ok(StreamEvent::Chunk(chunk)) => Ok(Some(chunk)),
                    Ok(StreamEvent::Error(body)) => Err(BackendError::Upstream(cut(&body.error.message))),
                    Err(_) => Err(BackendError::Malformed("an event is neither a chunk nor an error".into())),
                };
            }
            let part = timeout_at(self.deadline, self.parts.next()).await.map_err(|_| BackendError::Deadline)?;
            // The end without `[DONE]` is a cut, however clean the connection was closed.
            let part = part.ok_or(BackendError::Cut)?.map_err(|_| BackendError::Cut)?;
            self.n_bytes += part.len();
            if self.n_bytes > MAX_RESPONSE_BYTES {
                return Err(BackendError::TooLarge { limit_bytes: MAX_RESPONSE_BYTES });
            }
            let events = self.events.push(&part);
            self.ready.extend(events.map_err(|TooLong| BackendError::TooLarge { limit_bytes: MAX_EVENT_BYTES })?);
        }
    }
}
