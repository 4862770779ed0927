//! The shipped example of several labels a row, built and asked over HTTP.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use metier_model::{
    Specialist, SpecialistStore,
    proof::Certificate,
    specialist::{Contents, Registry},
};
use serde_json::{Value, json};

use super::fixture::{DECODER, ENCODER, Server, http, metier};

const NAME: &str = "rider-feedback";

/// Builds a task over the example's rows, or the first `rows` of each part, and gives what is live of it.
fn built(dir: &Path, rows: usize, budget: &str) -> Specialist {
    for model in [DECODER, ENCODER] {
        metier::fetch::ensure_for_tests(model);
    }
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").join(NAME);
    let task = fs::read_to_string(example.join("task.toml")).unwrap();
    let (task, _) = task.split_once("[budget]").unwrap();
    let desk = dir.join("desk");
    fs::create_dir_all(&desk).unwrap();
    fs::write(desk.join("task.toml"), format!("{task}[budget]\n{budget}")).unwrap();
    for part in ["train", "validation", "calibration", "test"] {
        let lines = fs::read_to_string(example.join(format!("{part}.jsonl"))).unwrap();
        let some: Vec<&str> = lines.lines().take(rows).collect();
        fs::write(desk.join(format!("{part}.jsonl")), some.join("\n")).unwrap();
    }
    let store = dir.join("built");
    let mut build = Command::new(metier());
    build.arg("build").arg(desk.join("task.toml")).arg("--store").arg(&store);
    let output = build.env("METIER_STATE", dir.join("build.state")).output().unwrap();
    assert!(output.status.code().is_some_and(|code| code < 2), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("micro_f1") && said.contains("mean Jaccard"), "{said}");
    let live = Registry::new(SpecialistStore::open(&store).unwrap()).live(NAME).unwrap().unwrap();
    Specialist::open(&live).unwrap()
}

/// Puts a specialist into the store of [`Server`] under another name: one whose threshold is always reached, or one that certifies nothing.
fn put(dir: &Path, specialist: &Specialist, name: &str, always: bool) {
    let store = SpecialistStore::open(&dir.join("store")).unwrap();
    let mut contents = specialist.contents().clone();
    contents.manifest.name = name.to_owned();
    contents.manifest.refusal = None;
    let certificate =
        Certificate { epsilon: 0.1, delta: 0.1, threshold: 0.0, coverage: 1.0, n: 81, losses: 0, groups: None };
    contents.manifest.certificate = Some(certificate).filter(|_| always);
    live(&store, &contents);
}

fn live(store: &SpecialistStore, contents: &Contents) {
    let id = store.add_contents(contents).unwrap();
    store.make_current(&contents.manifest.name, id).unwrap();
}

/// The same under the name `two`, with a head that reads the server's encoder behind its own: whose weights are 0, so that the answers stay.
fn put_over_two_encoders(dir: &Path) {
    const DIM: usize = 384; // of the server's encoder
    let store = SpecialistStore::open(&dir.join("store")).unwrap();
    let mut contents = Specialist::open(&store.current("always").unwrap()).unwrap().into_contents();
    let n_labels = contents.manifest.labels.len();
    contents.head = contents.head.map(|head| head.blended(1.0, &vec![0.0; n_labels], &vec![0.0; DIM * n_labels]));
    contents.manifest.name = "two".to_owned();
    contents.manifest.reads_base = true;
    live(&store, &contents);
}

/// An encoder that was tuned for lists answers over HTTP what it answers in the bundle.
#[tokio::test]
async fn a_tuned_encoder_answers_lists() {
    let dir = tempfile::tempdir().unwrap();
    let specialist = built(dir.path(), 60, "minutes = 600\nfrom = \"tuned\"\n");
    assert_eq!((specialist.manifest().stage.name(), specialist.manifest().multi_label.is_some()), ("tuned", true));
    put(dir.path(), &specialist, "always", true);
    put_over_two_encoders(dir.path());
    let server = Server::start(&["--specialists", dir.path().join("store").to_str().unwrap()]);
    let names = ["always", "two"];
    let mut n_tokens = BTreeMap::new();
    for (row, name) in specialist.probe().iter().take(8).flat_map(|row| names.map(|name| (row, name))) {
        let body = json!({"model": name, "messages": [{"role": "user", "content": row.text}]});
        let response = http().post(server.url("/v1/chat/completions")).json(&body).send().await.unwrap();
        assert_eq!(response.headers()["x-metier-decision"], "accepted");
        assert_eq!(response.headers()["x-metier-stage"], "tuned");
        let answer: Value = response.json().await.unwrap();
        assert_eq!(answer["choices"][0]["message"]["content"].as_str().unwrap(), row.label, "{name}: {}", row.text);
        let tokens = answer["usage"]["prompt_tokens"].as_u64().unwrap();
        n_tokens.entry(&row.text).or_insert(tokens);
        assert_eq!(tokens, n_tokens[&row.text] * if name == "two" { 2 } else { 1 }, "what both encoders read");
    }
}

#[tokio::test]
async fn several_labels_are_answered_as_a_json_list() {
    let dir = tempfile::tempdir().unwrap();
    let specialist = built(dir.path(), usize::MAX, "up_to = \"both\"\n");
    put(dir.path(), &specialist, "always", true);
    put(dir.path(), &specialist, "unsure", false);
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
