//! A specialist whose head reads the server's decoder under an adapter, with some of its layers: built and served by the binary.

use std::{fs, process::Command};

use metier_model::tiny;
use serde_json::{Value, json};

use super::fixture::{ENCODER, Server, http, metier};

const WORDS: [&str; 4] = ["ant", "bee", "cat", "dog"];

/// Which of two pairs of words a row holds, among digits that say nothing.
fn rows(from: usize, n: usize) -> String {
    let line = |i: usize| {
        let digest = metier_model::Digest::of(&i.to_le_bytes()).to_string();
        let at = i % 4;
        format!("{} {} {},{}\n", &digest[..6], WORDS[at], &digest[6..10], ["small", "large"][at / 2])
    };
    String::from("text,label\n") + &(from..from + n).map(line).collect::<String>()
}

#[tokio::test]
async fn a_pruned_head_on_the_decoder_answers() {
    metier::fetch::ensure_for_tests(ENCODER);
    let dir = tempfile::TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("tiny.gguf"), tiny::gguf(7)).unwrap();
    fs::write(path("metier.toml"), format!("[models]\ndecoder = {:?}\n", path("tiny.gguf"))).unwrap();
    for (name, from, n) in [("rows.csv", 0, 160), ("val.csv", 1000, 40), ("cal.csv", 2000, 60), ("test.csv", 3000, 40)]
    {
        fs::write(path(name), rows(from, n)).unwrap();
    }
    let task = "name = \"beasts\"\nkind = \"classify\"\n[data]\ntrain = \"rows.csv\"\nvalidation = \"val.csv\"\ncalibration = \"cal.csv\"\n\
        test = \"test.csv\"\n[target]\nepsilon = 0.1\nmargin = 0.2\n[budget]\nfrom = \"decoder\"\n\
        [tune]\nrank = 4\nlearning_rate = 1e-2\nepochs = 6\n[prune]\nkeep = [0.5]\nheal_epochs = 4\n";
    fs::write(path("task.toml"), task).unwrap();
    let run = |args: &[&str]| {
        let mut command = Command::new(metier());
        command.args(args).arg("--json").arg("--config").arg(path("metier.toml"));
        let ran = command.env("METIER_STATE", path("state")).current_dir(dir.path()).output().unwrap();
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        serde_json::from_slice::<Value>(ran.stdout.trim_ascii_end().rsplit(|b| *b == b'\n').next().unwrap()).unwrap()
    };
    let built = run(&["build", "--no-encoder", "task.toml"]);
    let depths = built["rungs"].as_array().unwrap();
    assert_eq!((&built["rung"], depths.len()), (&json!("decoder"), 2), "{built}");
    assert_eq!(depths[0]["decoder"]["is_chosen"], true, "one layer is enough: {built}");
    assert!(depths[0]["decoder"]["rows_a_second"].as_f64().unwrap() > 0.0, "{built}");
    let evaluated = run(&["eval", "beasts", "test.csv"]);
    assert_eq!((&evaluated["value"], &evaluated["n"]), (&built["value"], &built["n"]));

    let config = path("metier.toml");
    let server = Server::start_in(&path("state"), &["--config", config.to_str().unwrap()]).unwrap();
    let ask = async |text: &str| {
        let body = json!({"model": "beasts", "messages": [{"role": "user", "content": text}]});
        let response = http().post(server.url("/v1/chat/completions")).json(&body).send().await.unwrap();
        let header = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        let told = ["x-metier-decision", "x-metier-stage", "x-metier-confidence"].map(header);
        (told, response.json::<Value>().await.unwrap())
    };
    // All at once: they share the decoder's batches, and each gets what the bundle says.
    let probe = fs::read_to_string(std::path::Path::new(built["path"].as_str().unwrap()).join("probe.jsonl")).unwrap();
    let probe: Vec<Value> = probe.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let asked = probe.iter().take(12).map(|row| ask(row["text"].as_str().unwrap()));
    let threshold = built["certificate"]["threshold"].as_f64().unwrap();
    for (row, ([decision, stage, confidence], answer)) in probe.iter().zip(futures_util::future::join_all(asked).await)
    {
        let score = row["score"].as_f64().unwrap();
        assert!((confidence.unwrap().parse::<f64>().unwrap() - score).abs() < 0.01, "{row} {answer}");
        assert_eq!(stage.as_deref(), Some("decoder"));
        if score >= threshold {
            assert_eq!(decision.as_deref(), Some("accepted"), "{answer}");
            assert_eq!(answer["choices"][0]["message"]["content"], row["label"], "{answer}");
            assert!(answer["usage"]["prompt_tokens"].as_u64().unwrap() > 3, "{answer}");
        }
    }

    // A server with another decoder knows it and does not answer in its name.
    drop(server);
    fs::write(path("other.gguf"), tiny::gguf(8)).unwrap();
    fs::write(path("metier.toml"), format!("[models]\ndecoder = {:?}\n", path("other.gguf"))).unwrap();
    let server = Server::start_in(&path("state"), &["--config", config.to_str().unwrap()]).unwrap();
    let body = json!({"model": "beasts", "messages": [{"role": "user", "content": "an ant"}]});
    let response = http().post(server.url("/v1/chat/completions")).json(&body).send().await.unwrap();
    assert!(response.status().is_server_error(), "{}", response.status());
}
