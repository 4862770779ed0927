//! Specialists whose answers are written: built, killed, taken up, shown. The decoder is the tiny one of `metier-model`, which learns to say one word.

use std::{
    fs,
    process::{Command, Stdio},
};

use metier_model::tiny;
use serde_json::Value;

use super::Desk;

const TASK: &str = "name = \"yes\"\nkind = \"generate\"\ninstruction = \"Say ok.\"\n[data]\ntrain = \"rows.csv\"\ncalibration = \"cal.csv\"\ntest = \"test.csv\"\n\
    [target]\nepsilon = 0.2\n[tune]\nrank = 8\nlearning_rate = 1e-2\nepochs = 12\n";

/// Texts that are not near each other, and always the same answer.
fn rows(from: usize, n: usize) -> String {
    let line = |i: usize| {
        let digest = metier_model::Digest::of(&i.to_le_bytes()).to_string();
        format!("{} {},ok\n", &digest[..8], &digest[8..14])
    };
    String::from("text,output\n") + &(from..from + n).map(line).collect::<String>()
}

fn desk() -> Desk {
    let desk = Desk::new();
    desk.write("tiny.gguf", tiny::gguf(7));
    desk.write("metier.toml", "[models]\ndecoder = \"./tiny.gguf\"\n");
    desk.write("rows.csv", rows(0, 60));
    desk.write("cal.csv", rows(100, 30));
    desk.write("test.csv", rows(200, 20));
    desk.write("task.toml", TASK);
    desk
}

/// Steps that the checkpoint of a build holds; `None` where there is none.
fn steps_kept(desk: &Desk, store: &str) -> Option<u64> {
    let bytes = fs::read(desk.path(store).join(".work/yes.adapter.checkpoint")).ok()?;
    let header = bytes.split(|byte| *byte == b'\n').nth(1)?;
    serde_json::from_slice::<Value>(header).ok()?["state"]["step"].as_u64()
}

#[test]
fn a_build_learns_and_proves_what_it_writes() {
    let desk = desk();
    desk.run("build task.toml --no-encoder --dry-run")
        .check(0, &["answers are written", "30 calibration", "nothing was written"]);
    let built = desk.run("build task.toml --no-encoder --json").check(0, &[]).result();
    assert_eq!((built["rung"].as_str(), built["metric"].as_str()), (Some("adapter"), Some("exact_match")), "{built}");
    let names: Vec<&str> =
        built["rungs"].as_array().unwrap().iter().map(|rung| rung["rung"].as_str().unwrap()).collect();
    assert_eq!(names, ["nearest", "prompted", "adapter"]);
    let value = |at: usize| built["rungs"][at]["value"].as_f64().unwrap();
    // The nearest row's answer is always right here, and a network that was told nothing never is.
    assert_eq!((value(0), value(1)), (1.0, 0.0));
    assert!(value(2) >= 0.9, "{built}");
    assert!(built["certificate"]["coverage"].as_f64().unwrap() > 0.5 && built["held"] == true, "{built}");
    let steps = built["training"]["steps"].as_array().unwrap();
    assert!(steps.len() > 10 && steps.iter().all(|step| step["gradient_norm"].as_f64().unwrap() > 0.0));
    assert!(!desk.path("state/specialists/.work").exists(), "a build that is done leaves no checkpoint");
    // The same again is the same bundle.
    let again = desk.run("build task.toml --no-encoder --json").check(0, &[]).result();
    assert_eq!(again["bundle"], built["bundle"]);
    desk.run("specialists list").check(0, &["yes", "adapter", "text"]);
    desk.run("specialists show yes").check(0, &["written by   tiny", "adapter", "certificate"]);
    desk.run("eval yes test.csv").check(0, &["exact_match", "accepted and wrong", "held"]);
    let eval = desk.run("eval yes test.csv --json").check(0, &[]).result();
    assert_eq!((&eval["value"], &eval["n"]), (&built["value"], &built["n"]), "{eval}");
}

#[test]
fn killed_at_any_moment_a_build_goes_on_to_the_same_bundle() {
    let desk = desk();
    let whole = desk.run("build task.toml --no-encoder --json --store whole").check(0, &[]).result();
    let mut kept = 0;
    // kill -9 as soon as the checkpoint holds so many steps more; the system decides where exactly.
    for wait_for in [0, 1, 7, 2, 11, 5] {
        let mut command: Command = desk.command(env!("CARGO_BIN_EXE_metier"));
        command.args(["build", "task.toml", "--no-encoder", "--json", "--store", "killed"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let ended = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break Some(status);
            }
            if steps_kept(&desk, "killed").is_some_and(|steps| steps >= kept + wait_for) {
                child.kill().unwrap();
                child.wait().unwrap();
                break None;
            }
            std::thread::yield_now();
        };
        if ended.is_some() {
            break;
        }
        let now = steps_kept(&desk, "killed").unwrap();
        assert!(now >= kept, "it began anew: {now} steps after {kept}");
        kept = now;
    }
    let taken_up = desk.run("build task.toml --no-encoder --json --store killed").check(0, &[]).result();
    assert_eq!(taken_up["bundle"], whole["bundle"]);
    assert_eq!(
        taken_up["training"]["steps"].as_array().unwrap().len(),
        whole["training"]["steps"].as_array().unwrap().len()
    );
    assert!(!desk.path("killed/.work").exists());
}

#[test]
fn what_is_wrong_is_told_with_file_and_line() {
    let desk = desk();
    let schema = "{\"type\": \"object\", \"properties\": {\"a\": {\"enum\": [\"x\"]}}, \"required\": [\"a\"], \"additionalProperties\": false}";
    desk.write("schema.json", schema);
    let task = TASK.replace("train =", "schema = \"schema.json\"\ntrain =");
    desk.write("task.toml", &task);
    desk.run("build task.toml --no-encoder").check(2, &["rows.csv:", "`output` is no JSON"]);
    desk.write("rows.csv", "text,output\nabc,\"{\"\"a\"\": \"\"y\"\"}\"\nabd,\"{\"\"a\"\": \"\"x\"\"}\"\n");
    desk.run("build task.toml --no-encoder").check(2, &[]);
    desk.write("task.toml", TASK.replace("epochs = 12", "epoch = 12"));
    desk.run("build task.toml --no-encoder").check(2, &["there is no key `tune.epoch`", "did you mean `tune.epochs`?"]);
    desk.write("task.toml", TASK);
    desk.write("rows.csv", format!("text,output\n{},ok\n", "x".repeat(300)) + &rows(0, 60)[12..]);
    desk.run("build task.toml --no-encoder").check(2, &["rows.csv:2", "the decoder reads 256"]);
    desk.write("metier.toml", "[models]\ndecoder = \"none\"\n");
    desk.run("build task.toml --no-encoder").check(2, &["needs a decoder"]);
}
