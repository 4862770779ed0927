//! The shipped extraction, built in a few passes and asked over HTTP.

use std::{fs, path::Path, process::Command};

use metier_model::{Specialist, SpecialistStore, proof::Certificate, specialist::Registry};
use serde_json::{Value, json};

use super::fixture::{DECODER, ENCODER, Server, http, metier};

/// A store with the example's specialist. Its schema requires nothing here, and its threshold is 0: after a few passes it is sure of little.
fn store(dir: &Path) {
    for model in [DECODER, ENCODER] {
        metier::fetch::ensure_for_tests(model);
    }
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/purchase-orders");
    for (file, rows) in [("train", 100), ("validation", 12), ("calibration", 12), ("test", 12)] {
        let name = format!("{file}.jsonl");
        let all = fs::read_to_string(example.join(&name)).unwrap();
        fs::write(dir.join(&name), all.lines().take(rows).map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    }
    let schema =
        fs::read_to_string(example.join("schema.json")).unwrap().replace("\"required\": [\"order_number\"],", "");
    fs::write(dir.join("schema.json"), schema).unwrap();
    let task = fs::read_to_string(example.join("task.toml")).unwrap();
    fs::write(dir.join("task.toml"), task + "\n[tune]\nepochs = 4\nlearning_rate = 0.0005\n").unwrap();
    let mut build = Command::new(metier());
    build
        .current_dir(dir)
        .args(["build", "task.toml", "--store", "built"])
        .env("METIER_STATE", dir.join("build.state"));
    let output = build.output().unwrap();
    assert!(output.status.code().is_some_and(|code| code < 2), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("lookup") && said.contains("precision"), "{said}");
    let live =
        Registry::new(SpecialistStore::open(&dir.join("built")).unwrap()).live("purchase-orders").unwrap().unwrap();
    let mut contents = Specialist::open(&live).unwrap().into_contents();
    contents.manifest.refusal = None;
    contents.manifest.certificate =
        Some(Certificate { epsilon: 0.1, delta: 0.1, threshold: 0.0, coverage: 1.0, n: 87, losses: 0, groups: None });
    let store = SpecialistStore::open(&dir.join("store")).unwrap();
    let id = store.add_contents(&contents).unwrap();
    store.make_current("purchase-orders", id).unwrap();
    // Another that certifies nothing: it defers.
    contents.manifest.certificate = None;
    contents.manifest.name = "unsure".to_owned();
    let id = store.add_contents(&contents).unwrap();
    store.make_current("unsure", id).unwrap();
}

#[tokio::test]
async fn an_extraction_answers_with_evidence_or_defers() {
    let dir = tempfile::tempdir().unwrap();
    store(dir.path());
    let server = Server::start(&["--specialists", dir.path().join("store").to_str().unwrap()]);
    // One that it was trained on: what is asked here is not how good it is.
    let rows = fs::read_to_string(dir.path().join("train.jsonl")).unwrap();
    let row: Value = serde_json::from_str(rows.lines().next().unwrap()).unwrap();
    let message = format!("é {}", row["text"].as_str().unwrap());
    let ask = async |model: &str, extra: Value| {
        let mut body = json!({"model": model, "messages": [{"role": "user", "content": &message}]});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        http().post(server.url("/v1/chat/completions")).json(&body).send().await.unwrap()
    };
    let answer: Value = ask("purchase-orders", json!({})).await.json().await.unwrap();
    let content: Value = serde_json::from_str(answer["choices"][0]["message"]["content"].as_str().unwrap()).unwrap();
    assert!(content.is_object(), "{answer}");
    assert!(answer["usage"]["prompt_tokens"].as_u64().unwrap() > 20);
    let fields = answer["metier"]["fields"].as_array().unwrap();
    assert!(!fields.is_empty(), "{answer}");
    for field in fields {
        let [start, end] = ["start", "end"].map(|key| field[key].as_u64().unwrap() as usize);
        let read: String = message.chars().skip(start).take(end - start).collect();
        assert_eq!(read, field["text"].as_str().unwrap(), "evidence is the text's own");
        assert!(field["score"].as_f64().is_some_and(|score| (0.0..=1.0).contains(&score)));
    }
    // In a stream the same stands in the last chunk.
    let stream = ask("purchase-orders", json!({"stream": true})).await.text().await.unwrap();
    let last = stream.lines().rfind(|line| line.starts_with("data: {")).unwrap();
    let last: Value = serde_json::from_str(&last["data: ".len()..]).unwrap();
    assert_eq!(last["metier"]["fields"], answer["metier"]["fields"]);

    let refused = ask("unsure", json!({})).await;
    assert_eq!(refused.headers()["x-metier-escalated"], "none-available");
    let refused: Value = refused.json().await.unwrap();
    assert!(
        refused["choices"][0]["message"]["content"].is_null() && refused["metier"].get("fields").is_none(),
        "{refused}"
    );
    assert!(refused["choices"][0]["message"]["refusal"].as_str().unwrap().contains("without a certified threshold"));
}
