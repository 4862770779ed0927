//! The shipped example of several labels a row, built and asked over HTTP.

use std::{path::Path, process::Command};

use metier_model::{Specialist, SpecialistStore, proof::Certificate, specialist::Registry};
use serde_json::{Value, json};

use super::fixture::{DECODER, ENCODER, Server, http, metier};

const NAME: &str = "rider-feedback";

/// A store with the example's specialist under other names: one whose threshold is always reached, and one that certifies nothing.
fn store(dir: &Path) {
    for model in [DECODER, ENCODER] {
        metier::fetch::ensure_for_tests(model);
    }
    let task = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").join(NAME).join("task.toml");
    let store = dir.join("store");
    let mut build = Command::new(metier());
    build.arg("build").arg(task).arg("--store").arg(&store).env("METIER_STATE", dir.join("build.state"));
    let output = build.output().unwrap();
    assert!(output.status.code().is_some_and(|code| code < 2), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("micro_f1") && said.contains("mean Jaccard"), "{said}");
    let store = SpecialistStore::open(&store).unwrap();
    let live = Registry::new(store.clone()).live(NAME).unwrap().unwrap();
    let mut contents = Specialist::open(&live).unwrap().into_contents();
    contents.manifest.name = "always".to_owned();
    contents.manifest.refusal = None;
    contents.manifest.certificate =
        Some(Certificate { epsilon: 0.1, delta: 0.1, threshold: 0.0, coverage: 1.0, n: 81, losses: 0, groups: None });
    let id = store.add_contents(&contents).unwrap();
    store.make_current("always", id).unwrap();
    // Another that certifies nothing: it defers.
    contents.manifest.certificate = None;
    contents.manifest.name = "unsure".to_owned();
    let id = store.add_contents(&contents).unwrap();
    store.make_current("unsure", id).unwrap();
}

#[tokio::test]
async fn several_labels_are_answered_as_a_json_list() {
    let dir = tempfile::tempdir().unwrap();
    store(dir.path());
    let server = Server::start(&["--specialists", dir.path().join("store").to_str().unwrap()]);
    let ask = async |model: &str, text: &str, extra: Value| {
        let mut body = json!({"model": model, "messages": [{"role": "user", "content": text}]});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        http().post(server.url("/v1/chat/completions")).json(&body).send().await.unwrap()
    };
    let content = |answer: &Value| answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    // The train was late and the toilet dirty: both.
    let text = "The train was forty minutes late and the toilet was filthy.";
    let response = ask("always", text, json!({})).await;
    assert_eq!(response.headers()["x-metier-decision"], "accepted");
    let answer: Value = response.json().await.unwrap();
    let labels: Vec<String> = serde_json::from_str(&content(&answer)).unwrap();
    assert_eq!(labels, ["cleanliness", "punctuality"]);
    // The same as an object, and in a stream.
    let object = json!({"response_format": {"type": "json_object"}});
    let answer: Value = ask("always", text, object).await.json().await.unwrap();
    let object: Value = serde_json::from_str(&content(&answer)).unwrap();
    assert_eq!(object["labels"], json!(labels));
    assert!(object["confidence"].as_f64().is_some_and(|score| (0.0..=1.0).contains(&score)), "{object}");
    let stream = ask("always", text, json!({"stream": true})).await.text().await.unwrap();
    assert!(stream.contains(r#"[\"cleanliness\",\"punctuality\"]"#), "{stream}");
    let refused = ask("unsure", text, json!({})).await;
    assert_eq!(refused.headers()["x-metier-escalated"], "none-available");
    let refused: Value = refused.json().await.unwrap();
    assert!(refused["choices"][0]["message"]["content"].is_null(), "{refused}");
}
