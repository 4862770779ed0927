//! LoRA adapters over HTTP: real processes, SmolLM2, folders as PEFT saves them with random weights.

#![allow(clippy::unwrap_used, reason = "tests")]

mod fixture;

use std::{fs, path::Path, process::Command};

use fixture::{DECODER, Server, http, metier};
use metier_gateway::audit::{self, Receipt};
use metier_model::{
    Decoder, Digest,
    arch::transformer::{TransformerConfig, WeightFormat},
    tiny::{self, AdapterFiles},
};
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Times that a change is looked for before it counts as missing; each look is a request.
const MAX_LOOKS: usize = 100_000;
/// How far deltas move a hidden row: enough that greedy answers differ.
const STRENGTH: f32 = 0.3;
const TOKENS: usize = 12;

fn base() -> TransformerConfig {
    let file = metier::fetch::ensure_for_tests(DECODER).join("SmolLM2-135M-Instruct.Q4_1.gguf");
    *Decoder::open(&file, WeightFormat::AsFile).unwrap().network().config()
}

fn write(dir: &Path, files: &AdapterFiles) {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("adapter_model.safetensors"), &files.weights).unwrap();
    fs::write(dir.join("adapter_config.json"), &files.config).unwrap();
}

/// As `sha256sum` over both files says it.
fn digest(files: &AdapterFiles) -> Digest {
    let (config, weights) = (Digest::of(files.config.as_bytes()), Digest::of(&files.weights));
    Digest::of(format!("{config} adapter_config.json\n{weights} adapter_model.safetensors\n").as_bytes())
}

fn start(dir: &Path, settings: &str) -> Server {
    let config = dir.join("metier.toml");
    fs::write(&config, settings).unwrap();
    Server::start_in(&dir.join("state"), &["--base-only", "--config", config.to_str().unwrap()]).unwrap()
}

fn ask(model: &str, text: &str) -> Value {
    let messages = json!([{"role": "user", "content": text}]);
    json!({"model": model, "messages": messages, "max_tokens": TOKENS, "temperature": 0})
}

async fn chat(server: &Server, body: &Value) -> Response {
    http().post(server.url("/v1/chat/completions")).json(body).send().await.unwrap()
}

async fn answer(server: &Server, model: &str, text: &str) -> String {
    let whole: Value = chat(server, &ask(model, text)).await.json().await.unwrap();
    assert_eq!(whole["model"], model, "{whole}");
    whole["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

/// The same in chunks.
async fn streamed(server: &Server, model: &str, text: &str) -> String {
    let mut body = ask(model, text);
    body["stream"] = json!(true);
    let told = chat(server, &body).await.text().await.unwrap();
    let events = told.split_terminator("\n\n").filter_map(|event| event.strip_prefix("data: "));
    let chunks = events.filter(|event| *event != "[DONE]").map(|event| serde_json::from_str::<Value>(event).unwrap());
    chunks.filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned)).collect()
}

/// Asks until the server says what is waited for.
async fn until(server: &Server, model: &str, done: impl Fn(StatusCode, &Value) -> bool) {
    let mut looks = 0..MAX_LOOKS;
    loop {
        let response = chat(server, &ask(model, "Say hello.")).await;
        let status = response.status();
        if done(status, &response.json().await.unwrap()) {
            return;
        }
        looks.next().unwrap_or_else(|| panic!("`{model}` does not change"));
    }
}

fn said(answer: &Value) -> Option<&str> {
    answer["choices"][0]["message"]["content"].as_str()
}

#[tokio::test]
async fn base_and_adapters_answer_many_callers_what_they_answer_one() {
    let (base, dir) = (base(), TempDir::new().unwrap());
    let [first, second] = [(1, 8), (2, 16)].map(|(seed, rank)| tiny::adapter(&base, seed, rank, &[], STRENGTH));
    write(&dir.path().join("tuned"), &first);
    write(&dir.path().join("state/adapters/second"), &second);
    let path = dir.path().join("tuned");
    let mut all = Vec::new();
    for prefix_cache in ["private", "shared"] {
        let settings = format!(
            "[server]\nprefix_cache = \"{prefix_cache}\"\n[[adapters]]\nname = \"first\"\nbase = \"{DECODER}\"\n\
             path = {path:?}\nformat = \"int8\"\ndescription = \"Our tone\"\n"
        );
        let server = start(dir.path(), &settings);
        let models: Value = http().get(server.url("/v1/models")).send().await.unwrap().json().await.unwrap();
        let find = |name: &str| models["data"].as_array().unwrap().iter().find(|model| model["id"] == name).unwrap();
        let (listed, plain) = (find("first"), find("second"));
        assert_eq!((&listed["owned_by"], &listed["parent"]), (&json!("metier-adapter"), &json!(DECODER)));
        assert_eq!((&listed["description"], &plain["description"]), (&json!("Our tone"), &Value::Null));
        assert!(find(DECODER).get("parent").is_none(), "{models}");
        assert_eq!(chat(&server, &ask("third", "hi")).await.status(), StatusCode::NOT_FOUND);

        // The same prompt for all: with a shared cache, what one has read must not serve another.
        let asked: Vec<(&str, &str)> = ["Tell me about the sea.", "Tell me about the moon."]
            .into_iter()
            .flat_map(|text| [DECODER, "first", "second"].map(|model| (model, text)))
            .collect();
        let mut alone = Vec::new();
        for (model, text) in &asked {
            alone.push(answer(&server, model, text).await);
        }
        assert!(alone[0] != alone[1] && alone[1] != alone[2] && alone[0] != alone[2], "{alone:?}");
        let twice = || asked.iter().chain(&asked);
        let whole = futures_util::future::join_all(twice().map(|(model, text)| answer(&server, model, text)));
        let chunks = futures_util::future::join_all(asked.iter().map(|(model, text)| streamed(&server, model, text)));
        let (whole, chunks) = tokio::join!(whole, chunks);
        assert_eq!(whole, [alone.clone(), alone.clone()].concat(), "{prefix_cache}");
        assert_eq!(chunks, alone, "{prefix_cache}");

        // The record names the adapter and what its files hash to.
        let response = chat(&server, &ask("second", "hi")).await;
        assert_eq!(response.headers()["x-metier-stage"], "adapter");
        let receipt = response.headers()["x-metier-receipt"].to_str().unwrap().to_owned();
        let receipt = http().get(server.url(&format!("/admin/v1/receipts/{receipt}"))).send().await.unwrap();
        let key = audit::read_key(&server.state.join(audit::PUBLIC_KEY_FILE)).unwrap();
        let entry = Receipt::verify(receipt.text().await.unwrap().as_bytes(), &key).unwrap().entry;
        assert_eq!((entry.model.as_str(), entry.task.as_str(), entry.stage.as_str()), ("second", "second", "adapter"));
        assert_eq!(entry.specialist, Some(digest(&second)));
        let page = http().get(server.url("/metrics")).send().await.unwrap().text().await.unwrap();
        assert!(page.contains("metier_adapters 2\n"), "{page}");
        server.process.stop().unwrap();
        all.push(alone);
    }
    assert_eq!(all[0], all[1], "what is remembered changes no answer");
}

#[tokio::test]
async fn adapters_come_change_and_go_while_others_are_served() {
    let (base, dir) = (base(), TempDir::new().unwrap());
    let folder = dir.path().join("state/adapters");
    let server = start(dir.path(), "[models]\nadapter_format = \"int8\"\n");
    let plain = answer(&server, DECODER, "Say hello.").await;
    assert_eq!(chat(&server, &ask("tone", "hi")).await.status(), StatusCode::NOT_FOUND);

    let first = tiny::adapter(&base, 1, 4, &[], STRENGTH);
    // One that cannot be served comes before one that can: it is refused, and the rest goes on.
    write(&folder.join("broken"), &AdapterFiles { weights: first.weights[..1_000].to_vec(), ..first.clone() });
    write(&folder.join("tone"), &first);
    until(&server, "tone", |status, _| status == StatusCode::OK).await;
    let before = answer(&server, "tone", "Say hello.").await;
    assert_ne!(before, plain);
    assert_eq!(chat(&server, &ask("broken", "hi")).await.status(), StatusCode::NOT_FOUND);

    // Mended, it is served; changed, the new files answer; spoilt, those before stay.
    write(&folder.join("broken"), &tiny::adapter(&base, 2, 4, &[], STRENGTH));
    until(&server, "broken", |status, _| status == StatusCode::OK).await;
    write(&folder.join("tone"), &tiny::adapter(&base, 3, 8, &[], STRENGTH));
    until(&server, "tone", |_, answer| said(answer).is_some_and(|text| text != before)).await;
    let changed = answer(&server, "tone", "Say hello.").await;
    fs::write(folder.join("tone/adapter_config.json"), "{").unwrap();
    write(&folder.join("last"), &first);
    until(&server, "last", |status, _| status == StatusCode::OK).await;
    assert_eq!(answer(&server, "last", "Say hello.").await, before, "the same files, the same answer");
    assert_eq!(answer(&server, "tone", "Say hello.").await, changed);

    fs::remove_dir_all(folder.join("tone")).unwrap();
    until(&server, "tone", |status, _| status == StatusCode::NOT_FOUND).await;
    assert_eq!(answer(&server, DECODER, "Say hello.").await, plain);
    assert!(server.process.stop().unwrap().success());
}

#[test]
fn an_adapter_of_the_settings_that_cannot_be_served_is_told_at_the_start() {
    let (base, dir) = (base(), TempDir::new().unwrap());
    let good = tiny::adapter(&base, 1, 4, &["q_proj"], STRENGTH);
    let started = |settings: &str, says: &str| {
        let config = dir.path().join("metier.toml");
        fs::write(&config, settings).unwrap();
        let state = dir.path().join("state");
        let output = Command::new(metier())
            .args(["serve", "--base-only", "--bind", "127.0.0.1:0", "--state", state.to_str().unwrap(), "--config"])
            .arg(&config)
            .output()
            .unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && told.contains(says), "{says}: {:?}\n{told}", output.status);
    };
    let check = |name: &str, of: &str, files: &AdapterFiles, says: &str| {
        let path = dir.path().join("adapter");
        write(&path, files);
        started(&format!("[[adapters]]\nname = \"{name}\"\nbase = \"{of}\"\npath = {path:?}\n"), says);
    };
    let rank = AdapterFiles { config: good.config.replace("\"r\":4", "\"r\":8"), ..good.clone() };
    check("a", "all-minilm-l6-v2", &good, "a server has one decoder");
    let file = metier::fetch::ensure_for_tests(DECODER).join("SmolLM2-135M-Instruct.Q4_1.gguf");
    let by_path = format!("[models]\ndecoder = {file:?}\n");
    let [of_path, other] = [file.to_str().unwrap(), "another"].map(|base| {
        let path = dir.path().join("by-path");
        write(&path, &rank);
        format!("{by_path}[[adapters]]\nname = \"a\"\nbase = {base:?}\npath = {path:?}\n")
    });
    started(&of_path, "has rank 4, the configuration says 8");
    started(&other, "is for the base `another`, but the decoder is `");
    check("A tone", DECODER, &good, "is no name of an adapter");
    check(DECODER, DECODER, &good, "stands for something else");
    check("a", DECODER, &rank, "has rank 4, the configuration says 8");
    let dora = AdapterFiles { config: good.config.replace("\"r\":4", "\"r\":4,\"use_dora\":true"), ..good.clone() };
    check("a", DECODER, &dora, "`use_dora` is true");
    let mut weights = good.weights.clone();
    let end = weights.len();
    weights[end - 2..].copy_from_slice(&half::f16::NAN.to_le_bytes());
    check("a", DECODER, &AdapterFiles { weights, ..good.clone() }, "no finite 16-bit float");
    let wider = tiny::adapter(&TransformerConfig { width: 640, ..base }, 1, 4, &["q_proj"], STRENGTH);
    check("a", DECODER, &wider, "it was made for another base");
    let deeper = tiny::adapter(&TransformerConfig { layers: base.layers + 1, ..base }, 1, 4, &["q_proj"], STRENGTH);
    check("a", DECODER, &deeper, "it was made for another base");
}
