//! A specialist whose answers are written, over HTTP: built and served by the binary, over the tiny decoder, which learns to say one word.

use std::{fs, process::Command};

use metier_model::{Digest, tiny};
use serde_json::{Value, json};

use super::fixture::{ENCODER, Server, http, metier};

#[tokio::test]
async fn a_written_answer_is_accepted_or_deferred() {
    metier::fetch::ensure_for_tests(ENCODER);
    let dir = tempfile::TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name);
    let rows = |from: usize, n: usize| {
        let line = |i: usize| {
            let digest = Digest::of(&i.to_le_bytes()).to_string();
            format!("{} {},ok\n", &digest[..8], &digest[8..14])
        };
        String::from("text,output\n") + &(from..from + n).map(line).collect::<String>()
    };
    fs::write(path("tiny.gguf"), tiny::gguf(7)).unwrap();
    fs::write(path("metier.toml"), format!("[models]\ndecoder = {:?}\n", path("tiny.gguf"))).unwrap();
    fs::write(path("rows.csv"), rows(0, 60)).unwrap();
    fs::write(path("cal.csv"), rows(100, 30)).unwrap();
    fs::write(path("test.csv"), rows(200, 20)).unwrap();
    let task = "name = \"yes\"\nkind = \"generate\"\ninstruction = \"Say ok.\"\n[data]\ntrain = \"rows.csv\"\ncalibration = \"cal.csv\"\n\
        test = \"test.csv\"\n[target]\nepsilon = 0.2\n[tune]\nrank = 8\nlearning_rate = 1e-2\nepochs = 12\n";
    fs::write(path("task.toml"), task).unwrap();
    let mut build = Command::new(metier());
    build.args(["build", "--no-encoder", "--json", "--config"]).arg(path("metier.toml")).arg(path("task.toml"));
    let built = build.env("METIER_STATE", path("state")).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let built: Value =
        serde_json::from_slice(built.stdout.trim_ascii_end().rsplit(|b| *b == b'\n').next().unwrap()).unwrap();
    assert_eq!(built["rung"], "adapter", "{built}");
    let threshold = built["certificate"]["threshold"].as_f64().unwrap();

    let config = path("metier.toml");
    let server = Server::start_in(&path("state"), &["--config", config.to_str().unwrap()]).unwrap();
    let ask = async |body: Value| {
        let response = http().post(server.url("/v1/chat/completions")).json(&body).send().await.unwrap();
        let header = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        let told = ["x-metier-decision", "x-metier-stage", "x-metier-confidence"].map(header);
        (response.status().as_u16(), told, response.json::<Value>().await.unwrap())
    };
    let messages = json!([{"role": "user", "content": "0a1b2c3d 4e5f60"}]);
    let (status, [decision, stage, confidence], answer) = ask(json!({"model": "yes", "messages": messages})).await;
    assert_eq!((status, decision.as_deref(), stage.as_deref()), (200, Some("accepted"), Some("adapter")), "{answer}");
    assert_eq!((&answer["choices"][0]["message"]["content"], &answer["model"]), (&json!("ok"), &json!("yes")));
    assert!(confidence.unwrap().parse::<f64>().unwrap() >= threshold - 0.01);
    assert!(answer["usage"]["completion_tokens"].as_u64().unwrap() >= 2);

    // What is cut is no answer: the guess never leaves.
    let (_, [decision, ..], cut) = ask(json!({"model": "yes", "messages": messages, "max_tokens": 1})).await;
    assert_eq!(decision.as_deref(), Some("refused"), "{cut}");
    assert_eq!(cut["choices"][0]["message"]["content"], Value::Null);

    // A server with another decoder knows it and does not answer in its name.
    drop(server);
    fs::write(path("other.gguf"), tiny::gguf(8)).unwrap();
    fs::write(path("metier.toml"), format!("[models]\ndecoder = {:?}\n", path("other.gguf"))).unwrap();
    let server = Server::start_in(&path("state"), &["--config", config.to_str().unwrap()]).unwrap();
    let response = http().post(server.url("/v1/chat/completions")).json(&json!({"model": "yes", "messages": messages}));
    let response = response.send().await.unwrap();
    assert!(response.status().is_server_error(), "{}", response.status());
    let told = response.text().await.unwrap();
    assert!(!told.contains("\"ok\""), "{told}");
}
