//! The server as a client meets it: real processes, real models, real sockets.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "http/decoder.rs"]
mod decoder;
#[path = "http/extract.rs"]
mod extract;
mod fixture;
#[path = "http/generate.rs"]
mod generate;
#[path = "http/multi_label.rs"]
mod multi_label;

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use fixture::{DECODER, ENCODER, SPECIALIST, Server, changed_specialist, http, metier, store};
use metier_gateway::audit::{self, Receipt, Verified, VerifiedReceipt};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;

/// What the example's specialist answers itself, and with what.
const TEXT: &str = "I forgot my password and the reset e-mail never arrives, please let me back into my account.";
const LABEL: &str = "account_access";
/// What it must not accept.
const FAR_TEXT: &str = "Write a haiku about the moon over a frozen lake.";
/// Times that a change is looked for before it counts as missing; each look is a request.
const MAX_LOOKS: usize = 100_000;

fn ask(model: &str, text: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": text}]})
}

async fn chat(server: &Server, body: &Value) -> Response {
    http().post(server.url("/v1/chat/completions")).json(body).send().await.unwrap()
}

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response.headers().get(name).unwrap_or_else(|| panic!("no `{name}` in {:?}", response.headers())).to_str().unwrap()
}

fn with_specialists() -> Server {
    Server::start(&["--specialists", store().to_str().unwrap()])
}

/// The log of a state folder, verified against the head beside it.
fn verified(state: &Path) -> Verified {
    let key = audit::read_key(&state.join(audit::PUBLIC_KEY_FILE)).unwrap();
    let head = audit::open_head_file(&state.join(audit::HEAD_FILE), &key).unwrap();
    audit::verify(&state.join(audit::DATABASE_FILE), Some(&head), &key).unwrap()
}

/// The receipt of a request, fetched and verified against the public key.
async fn proved(server: &Server, id: &str) -> VerifiedReceipt {
    let key = audit::read_key(&server.state.join(audit::PUBLIC_KEY_FILE)).unwrap();
    let url = server.url(&format!("/admin/v1/receipts/{id}"));
    let text = http().get(url).send().await.unwrap().text().await.unwrap();
    assert!(Receipt::verify(text.replacen("extra ", "extra A", 1).as_bytes(), &key).is_err());
    Receipt::verify(text.as_bytes(), &key).unwrap()
}

/// The log as JSON lines.
fn exported(state: &Path) -> String {
    let key = audit::read_key(&state.join(audit::PUBLIC_KEY_FILE)).unwrap();
    let mut lines = Vec::new();
    audit::export(&state.join(audit::DATABASE_FILE), &key, &mut lines).unwrap();
    String::from_utf8(lines).unwrap()
}

#[tokio::test]
async fn errors_have_the_protocols_shape() {
    let server = Server::start(&[]);
    let url = &server;
    let check =
        async |method: Method, path: &str, body: &str, status: u16, code: &str, param: Option<&str>, says: &str| {
            let request = http().request(method, url.url(path)).header("content-type", "application/json");
            let response = request.body(body.to_owned()).send().await.unwrap();
            let (found, should_retry) = (response.status(), response.headers().get("x-should-retry").cloned());
            let told = response.text().await.unwrap();
            assert_eq!(found.as_u16(), status, "{path} {told}");
            let error: Value = serde_json::from_str(&told).unwrap();
            let error = &error["error"];
            assert_eq!((error["code"].as_str(), error["param"].as_str()), (Some(code), param), "{path} {told}");
            assert_eq!(error["type"], "invalid_request_error", "{told}");
            assert!(error["message"].as_str().unwrap().contains(says), "{told}");
            assert_eq!(should_retry.unwrap(), "false", "the same request would fail again");
        };
    let (chat, embeddings) = ("/v1/chat/completions", "/v1/embeddings");
    let message = r#""messages":[{"role":"user","content":"hi"}]"#;
    let with = |more: &str| format!(r#"{{"model":"{DECODER}",{message},{more}}}"#);
    check(Method::POST, chat, "", 400, "invalid_json", None, "not valid JSON").await;
    check(Method::POST, chat, r#"{"model":"#, 400, "invalid_json", None, "not valid JSON").await;
    check(Method::POST, chat, "[]", 400, "invalid_type", None, "must be an object").await;
    check(Method::POST, chat, r#"{"model":"x"}"#, 400, "missing_required_parameter", Some("messages"), "missing").await;
    check(Method::POST, chat, &with(r#""temperature":"hot""#), 400, "invalid_type", Some("temperature"), "a number")
        .await;
    check(Method::POST, chat, &with(r#""n":100"#), 400, "invalid_value", Some("n"), "between 1 and 8").await;
    check(
        Method::POST,
        chat,
        &with(r#""presence_penalty":3"#),
        400,
        "invalid_value",
        Some("presence_penalty"),
        "-2 and 2",
    )
    .await;
    let unknown = with(r#""stream":true,"logit_bias":{"49152":1}"#);
    check(Method::POST, chat, &unknown, 400, "invalid_value", Some("logit_bias"), "0 to 49151").await;
    let nobody = format!(r#"{{"model":"nobody",{message}}}"#);
    check(Method::POST, chat, &nobody, 404, "model_not_found", Some("model"), DECODER).await;
    check(
        Method::POST,
        embeddings,
        r#"{"model":"nobody","input":"x"}"#,
        404,
        "model_not_found",
        Some("model"),
        "nobody",
    )
    .await;
    check(
        Method::POST,
        embeddings,
        r#"{"model":"x","input":[1,2]}"#,
        400,
        "unsupported_parameter",
        Some("input[0]"),
        "token ids",
    )
    .await;
    check(Method::GET, "/v1/models/nobody", "", 404, "model_not_found", Some("model"), "nobody").await;
    let long = json!({"model": DECODER, "messages": [{"role": "user", "content": "word ".repeat(12_000)}]}).to_string();
    check(Method::POST, chat, &long, 400, "context_length_exceeded", Some("messages"), "8192").await;
    let huge = " ".repeat((1 << 20) + 1);
    check(Method::POST, chat, &huge, 413, "body_too_large", None, "max_body_bytes").await;
    check(Method::GET, "/v1/nothing", "", 404, "unknown_url", None, "/v1/nothing").await;
    check(Method::GET, chat, "", 405, "method_not_allowed", None, "GET").await;
    check(Method::GET, "/admin/v1/receipts/none", "", 404, "receipt_not_found", None, "none").await;
    server.process.stop().unwrap();
}

#[tokio::test]
async fn pages_of_other_origins_are_not_answered_and_requests_keep_their_names() {
    let server = Server::start(&["--base-only"]);
    let get = |name: &'static str, value: &str| http().get(server.url("/v1/models")).header(name, value).send();
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    assert_eq!(get("host", "evil.example").await.unwrap().status(), StatusCode::FORBIDDEN);
    assert_eq!(get("origin", "http://evil.example").await.unwrap().status(), StatusCode::FORBIDDEN);
    assert_eq!(get("origin", server.process.url()).await.unwrap().status(), StatusCode::OK);
    assert_eq!(header(&get("x-request-id", "order-17").await.unwrap(), "x-request-id"), "order-17");
    assert_eq!(header(&get("traceparent", trace).await.unwrap(), "traceparent"), trace);
    let plain = get("x-request-id", "a b").await.unwrap();
    assert!(header(&plain, "x-request-id").starts_with("req-"));
    assert!(header(&plain, "openai-processing-ms").parse::<u64>().is_ok());
    let models: Value = plain.json().await.unwrap();
    let names: Vec<&str> =
        models["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert!(names.contains(&DECODER) && !names.contains(&ENCODER), "{names:?}");
}

/// A folder of Hugging Face's kind is served where it lies, under its own name.
#[tokio::test]
async fn a_decoder_may_be_named_by_its_path() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../metier-model/tests/goldens/folders/qwen3");
    let dir = TempDir::new().unwrap();
    let settings = format!("[models]\ndecoder = {:?}\ndecoder_context = 100\n", folder.to_str().unwrap());
    let server = configured(dir.path(), &settings, &["--base-only"]);
    let mut body = ask("qwen3", "he");
    (body["max_tokens"], body["temperature"]) = (json!(4), json!(0));
    let answer: Value = chat(&server, &body).await.json().await.unwrap();
    assert_eq!(answer["model"], "qwen3", "{answer}");
    // The template writes its first token, the word and a last one.
    assert_eq!(answer["usage"]["prompt_tokens"], 3, "{answer}");
    body["messages"][0]["content"] = json!("z".repeat(100));
    let refused = chat(&server, &body).await;
    assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn base_generates_whole_and_in_chunks() {
    let server = Server::start(&["--base-only"]);
    let mut body = ask(DECODER, "Say hello.");
    (body["max_tokens"], body["temperature"]) = (json!(8), json!(0));
    let response = chat(&server, &body).await;
    assert_eq!((header(&response, "x-metier-decision"), header(&response, "x-metier-stage")), ("direct", "base"));
    let whole: Value = response.json().await.unwrap();
    let text = whole["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(!text.is_empty() && whole["model"] == DECODER, "{whole}");

    (body["stream"], body["stream_options"]) = (json!(true), json!({"include_usage": true}));
    let response = chat(&server, &body).await;
    assert!(header(&response, "content-type").starts_with("text/event-stream"));
    let receipt = header(&response, "x-metier-receipt").to_owned();
    let told = response.text().await.unwrap();
    let events: Vec<&str> = told.split_terminator("\n\n").map(|event| event.strip_prefix("data: ").unwrap()).collect();
    let (done, chunks) = events.split_last().unwrap();
    assert_eq!(*done, "[DONE]");
    let chunks: Vec<Value> = chunks.iter().map(|chunk| serde_json::from_str(chunk).unwrap()).collect();
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    let streamed: String = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(streamed, text);
    let last = chunks.last().unwrap();
    assert_eq!(last["usage"], whole["usage"]);
    assert_eq!(
        (last["metier"]["decision"].as_str(), last["metier"]["receipt"].as_str()),
        (Some("direct"), Some(&*receipt))
    );
    assert!(last["metier"]["cost_usd"].as_str().is_some(), "the last chunk tells the cost: {last}");

    // A client that leaves in mid-stream cancels the work; it is on record as cancelled, and the next is answered.
    let mut response = chat(&server, &endless()).await;
    let cancelled = header(&response, "x-metier-receipt").to_owned();
    response.chunk().await.unwrap();
    drop(response);
    let mut looks = 0..MAX_LOOKS;
    while proved(&server, &cancelled).await.entry.decision != "cancelled" {
        looks.next().expect("a request that was left is closed as cancelled");
    }
    assert!(chat(&server, &body).await.text().await.unwrap().ends_with("data: [DONE]\n\n"));
    server.process.stop().unwrap();
}

#[tokio::test]
async fn choices_are_drawn_for_themselves_in_one_request() {
    let server = Server::start(&["--base-only"]);
    // Longer than a page of the cache, so that the prompt is shared.
    let mut body = ask(DECODER, &"Write a line about rain. ".repeat(20));
    (body["max_tokens"], body["temperature"], body["seed"]) = (json!(12), json!(1), json!(11));
    let content = |answer: &Value, at: usize| answer["choices"][at]["message"]["content"].as_str().unwrap().to_owned();
    let mut alone = Vec::new();
    for seed in [11, 12] {
        body["seed"] = json!(seed);
        let answer: Value = chat(&server, &body).await.json().await.unwrap();
        alone.push((content(&answer, 0), answer["usage"]["prompt_tokens"].clone()));
    }
    (body["seed"], body["n"]) = (json!(11), json!(2));
    let both: Value = chat(&server, &body).await.json().await.unwrap();
    assert_eq!([content(&both, 0), content(&both, 1)], [alone[0].0.clone(), alone[1].0.clone()], "seed 11, seed 12");
    assert_eq!(both["usage"]["prompt_tokens"], alone[0].1, "the prompt counts once");
    server.process.stop().unwrap();
}

#[tokio::test]
async fn a_specialist_answers_refuses_and_leaves_receipts() {
    let server = with_specialists();
    let response = chat(&server, &ask(SPECIALIST, TEXT)).await;
    assert_eq!((header(&response, "x-metier-decision"), header(&response, "x-metier-escalated")), ("accepted", "no"));
    assert!(header(&response, "x-metier-confidence").parse::<f32>().unwrap() > 0.0);
    assert!(header(&response, "x-metier-cost-usd").parse::<f64>().unwrap() > 0.0);
    let receipt = header(&response, "x-metier-receipt").to_owned();
    let answer: Value = response.json().await.unwrap();
    assert_eq!((&answer["choices"][0]["message"]["content"], &answer["model"]), (&json!(LABEL), &json!(SPECIALIST)));

    let mut as_json = ask(SPECIALIST, TEXT);
    as_json["response_format"] = json!({"type": "json_object"});
    let answer: Value = chat(&server, &as_json).await.json().await.unwrap();
    let content: Value = serde_json::from_str(answer["choices"][0]["message"]["content"].as_str().unwrap()).unwrap();
    assert_eq!(content["label"], LABEL);

    // Below its threshold, with nobody to pass it on to: status 200, no content, and nowhere the guess.
    let response = chat(&server, &ask(SPECIALIST, FAR_TEXT)).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(header(&response, "x-metier-escalated"), "none-available");
    let refused: Value = response.json().await.unwrap();
    let message = &refused["choices"][0]["message"];
    assert_eq!(message["content"], Value::Null);
    assert!(message["refusal"].as_str().unwrap().starts_with("deferred: score 0."), "{message}");

    let auto: Value = chat(&server, &ask("auto", TEXT)).await.json().await.unwrap();
    assert_eq!((&auto["model"], &auto["choices"][0]["message"]["content"]), (&json!(SPECIALIST), &json!(LABEL)));
    let response = chat(&server, &ask("auto", FAR_TEXT)).await;
    assert_eq!((header(&response, "x-metier-stage"), header(&response, "x-metier-decision")), ("match", "refused"));

    let proved = proved(&server, &receipt).await;
    assert_eq!((proved.entry.receipt.unwrap().to_string(), proved.entry.decision.as_str()), (receipt, "accepted"));

    let page = http().get(server.url("/metrics")).send().await.unwrap().text().await.unwrap();
    assert!(page.contains("metier_decisions_total{decision=\"accepted\",escalated=\"no\"} 3"), "{page}");
    let state = server.state.clone();
    assert!(server.process.stop().unwrap().success());
    assert_eq!(verified(&state).open, 0, "every request was closed");
}

#[tokio::test]
async fn what_is_deferred_goes_where_policy_lets_it_go_and_new_bundles_are_taken_up() {
    let dir = TempDir::new().unwrap();
    let own = dir.path().join("specialists");
    changed_specialist(&own, "open-tickets", true);
    let llm = Server::start(&["--base-only"]);
    let backend = format!("llm={}/v1,{DECODER},outside", llm.process.url());
    let server = Server::start(&["--specialists", own.to_str().unwrap(), "--backend", &backend]);

    let mut body = ask("open-tickets", FAR_TEXT);
    body["max_tokens"] = json!(8);
    let response = chat(&server, &body).await;
    assert_eq!((header(&response, "x-metier-decision"), header(&response, "x-metier-escalated")), ("deferred", "llm"));
    let answer: Value = response.json().await.unwrap();
    assert_eq!(answer["model"], DECODER, "the answer says who gave it");
    assert!(answer["choices"][0]["message"]["content"].is_string());

    // Named as the model, an outside backend answers only where the configuration says `direct`.
    let direct = chat(&server, &ask(DECODER, TEXT)).await;
    assert_eq!(header(&direct, "x-metier-stage"), "base", "our own base of that name comes first");

    // A bundle that appears is served within a second, and one whose texts may not leave is refused.
    changed_specialist(&own, "closed-tickets", false);
    let mut looks = 0..MAX_LOOKS;
    let response = loop {
        let response = chat(&server, &ask("closed-tickets", FAR_TEXT)).await;
        if response.status() == StatusCode::OK {
            break response;
        }
        looks.next().expect("a new bundle is taken up");
    };
    assert_eq!(header(&response, "x-metier-escalated"), "denied");
    let llm_log = exported(&llm.state);
    assert_eq!(
        llm_log.lines().filter(|line| line.contains("\"opened\"")).count(),
        1,
        "one request went outside:\n{llm_log}"
    );

    // The stand-in is gone: a deferred request fails as what it is, others are answered.
    llm.process.stop().unwrap();
    let failed = chat(&server, &body).await;
    assert_eq!(failed.status(), StatusCode::BAD_GATEWAY);
    let error: Value = failed.json().await.unwrap();
    assert_eq!(error["error"]["code"], "backend_failed");
    assert_eq!(chat(&server, &ask("open-tickets", TEXT)).await.status(), StatusCode::OK);
    server.process.stop().unwrap();
}

#[tokio::test]
async fn a_killed_server_leaves_orphans_that_the_next_start_closes() {
    let dir = TempDir::new().unwrap();
    let state = dir.path().join("state");
    let server = Server::start_in(&state, &["--base-only"]).unwrap();
    let mut response = chat(&server, &endless()).await;
    let orphan = header(&response, "x-metier-receipt").to_owned();
    response.chunk().await.unwrap();
    server.process.kill().unwrap();
    assert_eq!(verified(&state).open, 1, "it was opened before its first byte");

    let server = Server::start_in(&state, &["--base-only"]).unwrap();
    let log = exported(&state);
    assert!(log.lines().any(|line| line.contains(&orphan) && line.contains("\"interrupted\"")), "{log}");
    assert!(server.process.stop().unwrap().success());
    assert_eq!(verified(&state).open, 0);
}

#[tokio::test]
#[cfg(unix)]
async fn a_signal_lets_running_answers_finish() {
    let dir = TempDir::new().unwrap();
    let state = dir.path().join("state");
    let server = Server::start_in(&state, &["--base-only"]).unwrap();
    let mut body = ask(DECODER, "Count to ten.");
    (body["stream"], body["max_tokens"]) = (json!(true), json!(48));
    let mut response = chat(&server, &body).await;
    response.chunk().await.unwrap();
    assert!(Command::new("kill").args(["-TERM", &server.process.id().to_string()]).status().unwrap().success());
    assert!(response.text().await.unwrap().ends_with("data: [DONE]\n\n"), "the answer under way is whole");
    assert!(server.process.wait().unwrap().success(), "a stop that was asked for is no failure");
    assert_eq!(verified(&state).open, 0);
}

/// A server with settings of its own.
fn configured(dir: &Path, settings: &str, args: &[&str]) -> Server {
    let config = dir.join("metier.toml");
    fs::write(&config, settings).unwrap();
    let all = [&["--config", config.to_str().unwrap()], args].concat();
    Server::start_in(&dir.join("state"), &all).unwrap()
}

/// A stream that goes on until it is stopped: greedily, the base does not end this poem within 3,000 tokens.
fn endless() -> Value {
    let mut body = ask(DECODER, "Write a very long poem about rain with one hundred verses.");
    (body["stream"], body["max_tokens"], body["temperature"]) = (json!(true), json!(4_000), json!(0));
    body
}

#[tokio::test]
async fn limits_are_told_with_when_to_try_again() {
    let dir = TempDir::new().unwrap();
    let server = configured(dir.path(), "[server]\nmax_concurrency = 1\nmax_queue = 0\n", &["--base-only"]);
    let mut running = chat(&server, &endless()).await;
    running.chunk().await.unwrap();
    let refused = chat(&server, &ask(DECODER, "hi")).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!((header(&refused, "x-should-retry"), header(&refused, "retry-after")), ("true", "1"));
    assert_eq!(header(&refused, "retry-after-ms"), "1000");
    let error: Value = refused.json().await.unwrap();
    assert_eq!(
        (error["error"]["code"].as_str(), error["error"]["type"].as_str()),
        (Some("overloaded"), Some("server_error"))
    );
    // What needs no model is answered meanwhile.
    assert_eq!(http().get(server.url("/readyz")).send().await.unwrap().status(), StatusCode::OK);
    server.process.kill().unwrap();
}

#[tokio::test]
async fn deadlines_end_whole_answers_with_a_status_and_streams_with_an_error_chunk() {
    let dir = TempDir::new().unwrap();
    let server = configured(dir.path(), "[server]\ndeadline_ms = 1500\n", &["--base-only"]);
    let mut whole = endless();
    whole["stream"] = json!(false);
    let late = chat(&server, &whole).await;
    assert_eq!(late.status(), StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(late.json::<Value>().await.unwrap()["error"]["code"], "deadline_exceeded");
    let told = chat(&server, &endless()).await.text().await.unwrap();
    let last = told.split_terminator("\n\n").last().unwrap().strip_prefix("data: ").unwrap();
    let last: Value = serde_json::from_str(last).unwrap();
    assert_eq!(last["error"]["code"], "deadline_exceeded", "no [DONE] makes a cut answer look whole");
    server.process.stop().unwrap();
    assert_eq!(verified(&dir.path().join("state")).open, 0);
}

#[tokio::test]
async fn what_outlives_the_grace_period_is_cut_and_closed_on_record() {
    let dir = TempDir::new().unwrap();
    let server = configured(dir.path(), "[server]\ngrace_ms = 1\n", &["--base-only"]);
    let mut running = chat(&server, &endless()).await;
    let id = header(&running, "x-metier-receipt").to_owned();
    running.chunk().await.unwrap();
    assert!(server.process.stop().unwrap().success());
    let state = dir.path().join("state");
    assert_eq!(verified(&state).open, 0);
    let log = exported(&state);
    assert!(log.lines().any(|line| line.contains(&id) && line.contains("\"cancelled\"")), "{log}");
}

/// Runs `metier serve` where it cannot start.
fn refused(args: &[&str]) -> (i32, String) {
    let Output { status, stderr, .. } = Command::new(metier()).arg("serve").args(args).output().unwrap();
    (status.code().unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn what_is_in_the_way_is_told() {
    let dir = TempDir::new().unwrap();
    let state = dir.path().join("state");
    let server = Server::start_in(&state, &["--base-only"]).unwrap();
    let address = server.process.url().strip_prefix("http://").unwrap();
    let (other, state_arg) = (dir.path().join("other"), state.to_str().unwrap());
    let other = other.to_str().unwrap();
    let check = |args: &[&str], code: i32, says: &str| {
        let (found, told) = refused(args);
        assert!(found == code && told.contains(says), "{args:?}: {found}\n{told}");
    };
    check(&["--base-only", "--state", other, "--bind", address], 3, "another program has this port");
    check(
        &["--base-only", "--state", state_arg, "--bind", "127.0.0.1:0"],
        3,
        "another server is using the state directory",
    );
    check(&["--state", other, "--bind", "0.0.0.0:0"], 2, "only loopback");
    check(&["--state", other, "--backend", "llm=https://x,m"], 2, "NAME=URL,MODEL,inside|outside");
    check(&["--state", other, "--bind", "127.0.0.1:0", "--backend", "llm=nowhere,m,inside"], 2, "must begin with http");
    check(&["--state", other, "--config", "/nowhere.toml"], 2, "/nowhere.toml");
    // A folder that nobody may write, not even root.
    check(&["--base-only", "--state", "/proc/metier", "--bind", "127.0.0.1:0"], 3, "/proc/metier");
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    check(&["--base-only", "--state", file.to_str().unwrap(), "--bind", "127.0.0.1:0"], 3, "file");
    let ready = dir.path().join("missing/ready");
    check(
        &["--base-only", "--state", other, "--bind", "127.0.0.1:0", "--ready-file", ready.to_str().unwrap()],
        3,
        "ready file",
    );
    assert!(server.process.stop().unwrap().success(), "the first server is not disturbed");
}
