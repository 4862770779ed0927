//! Scripted faults of a remote backend over real sockets: each connection gets the next script, whatever it asks.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::StreamExt;
use metier_traffic::wire::{ChatRequest, Message, Role};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::Instant,
};

use super::{
    Backend, BackendError,
    breaker::MAX_FAILURES,
    permit_for,
    remote::{BackendConfig, MAX_RESPONSE_BYTES, Remote, Secret},
    sse::MAX_EVENT_BYTES,
};
use crate::policy::Boundary;

/// What the server does with one connection once it has read the request.
#[derive(Clone)]
enum Script {
    /// Sends these bytes and closes.
    Send(Vec<u8>),
    /// Sends nothing until the client goes.
    Hang,
}

struct Server {
    url: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    async fn start(scripts: Vec<Script>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (seen, mut scripts) = (Arc::clone(&requests), VecDeque::from(scripts));
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let script = scripts.pop_front().expect("a script for each connection");
                let request = read_request(&mut socket).await;
                seen.lock().unwrap().push(request);
                tokio::spawn(async move {
                    match script {
                        // The client may have hung up on what is too long.
                        Script::Send(bytes) => drop(socket.write_all(&bytes).await),
                        Script::Hang => drop(socket.read_u8().await),
                    }
                });
            }
        });
        Self { url, requests }
    }

    fn n_requests(&self) -> usize {
        self.requests.lock().unwrap().len()
    }
}

async fn read_request(socket: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    loop {
        let mut part = [0; 4_096];
        let n = socket.read(&mut part).await.unwrap();
        if n == 0 {
            return String::from_utf8_lossy(&bytes).into_owned();
        }
        bytes.extend_from_slice(&part[..n]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length =
                head.to_lowercase().lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            if length.is_none_or(|length: usize| body.len() >= length) {
                return text;
            }
        }
    }
}

fn http(status: &str, headers: &str, body: &str) -> Script {
    let length = body.len();
    Script::Send(
        format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n{headers}\r\n{body}").into(),
    )
}

const ANSWER: &str = r#"{"id":"x","object":"chat.completion","created":1,"model":"llm-7","choices":[{"index":0,"message":
    {"role":"assistant","content":"card"},"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":1,"total_tokens":10}}"#;

fn ok() -> Script {
    http("200 OK", "content-type: application/json\r\n", ANSWER)
}

/// A stream that ends when the connection does.
fn events(text: &str) -> Script {
    Script::Send(
        format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n{text}").into(),
    )
}

fn remote(url: &str) -> Remote {
    let config = BackendConfig {
        id: "llm".into(),
        url: url.into(),
        model: "llm-7".into(),
        boundary: Boundary::Inside,
        direct: false,
        api_key: Some(Secret("sesame".into())),
        deadline: Duration::from_secs(20),
        price: None,
    };
    Remote::new(config, 7, Duration::from_millis(1)).unwrap()
}

fn request() -> ChatRequest {
    ChatRequest::new("anything", vec![Message { role: Role::User, content: "My card is lost".into() }])
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// Scripts → the answer's text or the error's, and how often the backend was asked.
async fn check(scripts: Vec<Script>, expected: Result<&str, &str>, n_requests: usize) -> BackendErrorOrText {
    let server = Server::start(scripts).await;
    let remote = remote(&server.url);
    let answer = remote.answer(&permit_for("llm"), &request(), soon()).await;
    let found = answer.map(|answer| answer.choices[0].message.content.clone().unwrap());
    match (&found, expected) {
        (Ok(text), Ok(expected)) => assert_eq!(text, expected),
        (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{error}, not {expected}"),
        _ => panic!("{found:?}, not {expected:?}"),
    }
    assert_eq!(server.n_requests(), n_requests, "{found:?}");
    found
}

type BackendErrorOrText = Result<String, BackendError>;

#[tokio::test]
async fn whole_answers_and_their_faults() {
    check(vec![ok()], Ok("card"), 1).await.unwrap();
    // What passes is tried again.
    let busy = || http("500 Oops", "", "");
    check(vec![busy(), ok()], Ok("card"), 2).await.unwrap();
    let wait = || http("429 Slow down", "retry-after: 0\r\n", r#"{"error":{"message":"slow down"}}"#);
    check(vec![wait(), wait(), ok()], Ok("card"), 3).await.unwrap();
    check(vec![http("503 Later", "retry-after-ms: 1\r\n", ""), ok()], Ok("card"), 2).await.unwrap();
    // But not for ever, and not for longer than we wait.
    check(vec![busy(), busy(), busy()], Err("status 500"), 3).await.unwrap_err();
    let hour = http("429 Slow down", "retry-after: 3600\r\n", r#"{"error":{"message":"slow down"}}"#);
    let error = check(vec![hour], Err("status 429: slow down"), 1).await.unwrap_err();
    assert_eq!((error.retry_after_ms(), error.status()), (Some(3_600_000), 503));
    // What does not pass is told at once.
    let bad = http("400 Bad", "", r#"{"error":{"message":"no such field","type":"x","code":7}}"#);
    assert_eq!(check(vec![bad], Err("status 400: no such field"), 1).await.unwrap_err().status(), 400);
    check(vec![http("401 No", "", "<html>")], Err("status 401: <html>"), 1).await.unwrap_err();
    check(vec![http("302 Found", "location: http://127.0.0.1:1/\r\n", "")], Err("status 302"), 1).await.unwrap_err();
    // Answers that are none.
    let json = |body: &str| http("200 OK", "content-type: application/json\r\n", body);
    check(vec![json("<html>")], Err("not of the protocol"), 1).await.unwrap_err();
    check(vec![json(r#"{"choices":[]}"#)], Err("no choices"), 1).await.unwrap_err();
    check(vec![json(r#"{"choices":[{"message":3}]}"#)], Err("not of the protocol"), 1).await.unwrap_err();
    check(vec![Script::Send(b"\x00\x01garbage".to_vec()); 3], Err("cannot be reached"), 3).await.unwrap_err();
    let cut = Script::Send(format!("HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n{ANSWER}").into());
    check(vec![cut], Err("cut off"), 1).await.unwrap_err();
    let large = json(&" ".repeat(MAX_RESPONSE_BYTES + 1));
    check(vec![large], Err("longer than"), 1).await.unwrap_err();
}

#[tokio::test]
async fn what_is_sent_is_the_request_and_the_key() {
    let server = Server::start(vec![ok()]).await;
    let remote = remote(&server.url);
    remote.answer(&permit_for("llm"), &request(), soon()).await.unwrap();
    let sent = server.requests.lock().unwrap()[0].clone();
    assert!(sent.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"), "{sent}");
    assert!(sent.to_lowercase().contains("authorization: bearer sesame"), "{sent}");
    assert!(sent.ends_with(r#"{"model":"llm-7","messages":[{"role":"user","content":"My card is lost"}]}"#), "{sent}");
    assert!(!format!("{:?}", Secret("sesame".into())).contains("sesame"));
}

#[tokio::test]
async fn a_deadline_ends_a_backend_that_hangs() {
    let server = Server::start(vec![Script::Hang]).await;
    let remote = remote(&server.url);
    let deadline = Instant::now() + Duration::from_millis(50);
    let error = remote.answer(&permit_for("llm"), &request(), deadline).await.unwrap_err();
    assert!(matches!(error, BackendError::Deadline), "{error}");
}

#[tokio::test]
async fn nobody_there_is_told_and_then_left_alone() {
    // A port that was free a moment ago.
    let url = format!("http://{}", TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap());
    let remote = remote(&url);
    let mut errors = Vec::new();
    for _ in 0..MAX_FAILURES {
        errors.push(remote.answer(&permit_for("llm"), &request(), soon()).await.unwrap_err());
    }
    assert!(matches!(errors[0], BackendError::Connect(_)), "{:?}", errors[0]);
    assert!(matches!(errors.last(), Some(BackendError::BreakerOpen { retry_after_ms }) if *retry_after_ms > 0));
}

#[tokio::test]
async fn without_a_permit_nothing_is_sent() {
    let server = Server::start(Vec::new()).await;
    let remote = remote(&server.url);
    let others = permit_for("other");
    let error = remote.answer(&others, &request(), soon()).await.unwrap_err();
    assert!(matches!(error, BackendError::NotPermitted));
    assert!(matches!(remote.stream(&others, &request(), soon()).await.err(), Some(BackendError::NotPermitted)));
    assert_eq!(server.n_requests(), 0);
}

/// One script → the text of the chunks, and the error that ended them.
async fn check_stream(script: Script, expected: &str, error: Option<&str>) {
    let server = Server::start(vec![script]).await;
    let remote = remote(&server.url);
    let (mut text, mut found) = (String::new(), None);
    match remote.stream(&permit_for("llm"), &request(), soon()).await {
        Err(error) => found = Some(error.to_string()),
        Ok(mut chunks) => {
            while let Some(chunk) = chunks.next().await {
                match chunk {
                    Ok(chunk) => text.extend(chunk.choices.iter().filter_map(|choice| choice.delta.content.clone())),
                    Err(error) => {
                        found = Some(error.to_string());
                        assert!(chunks.next().await.is_none(), "nothing follows an error");
                        break;
                    }
                }
            }
        }
    }
    assert_eq!(text, expected);
    match (&found, error) {
        (None, None) => {}
        (Some(found), Some(error)) => assert!(found.contains(error), "{found}, not {error}"),
        _ => panic!("{found:?}, not {error:?}"),
    }
    assert!(server.requests.lock().unwrap()[0].contains(r#""stream_options":{"include_usage":true}"#));
}

#[tokio::test]
async fn streams_and_their_faults() {
    let text = |text: &str| format!("data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{text}\"}}}}]}}\n\n");
    let both = text("ca") + &text("rd");
    check_stream(events(&format!(": hello\n\n{both}data: [DONE]\n\n")), "card", None).await;
    check_stream(events(&both), "card", Some("cut off")).await;
    check_stream(events(&both[..both.len() - 10]), "ca", Some("cut off")).await;
    let error = "data: {\"error\":{\"message\":\"overheated\",\"type\":\"server_error\"}}\n\n";
    check_stream(events(&format!("{both}{error}")), "card", Some("overheated")).await;
    check_stream(events(&format!("{both}data: <html>\n\n")), "card", Some("neither a chunk nor an error")).await;
    check_stream(events(&format!("{both}data: {}", "x".repeat(MAX_EVENT_BYTES + 1))), "card", Some("longer than"))
        .await;
    check_stream(ok(), "", Some("asked for a stream")).await;
}
