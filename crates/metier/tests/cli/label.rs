//! A teacher that answers, babbles and fails: every row is paid for once.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use serde_json::{Value, json};

use super::Desk;

const ROWS: usize = 40;

/// A server that speaks just enough of the protocol.
struct Teacher {
    url: String,
    /// Text of a row → how often it was answered.
    answered: Arc<Mutex<BTreeMap<String, usize>>>,
    /// Answers that are still to be given before it fails.
    left: Arc<AtomicUsize>,
}

impl Teacher {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let (answered, left) = (Arc::default(), Arc::new(AtomicUsize::new(usize::MAX)));
        let (seen, still) = (Arc::clone(&answered), Arc::clone(&left));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                let (seen, still) = (Arc::clone(&seen), Arc::clone(&still));
                std::thread::spawn(move || serve(stream, &seen, &still));
            }
        });
        Self { url, answered, left }
    }

    fn settings(&self, boundary: &str) -> String {
        format!(
            "[[backend]]\nname = \"teacher\"\nurl = \"{}\"\nmodel = \"big\"\nboundary = \"{boundary}\"\ndirect = true\n",
            self.url
        )
    }
}

/// Connections are kept: one request after the other.
fn serve(mut stream: std::net::TcpStream, seen: &Mutex<BTreeMap<String, usize>>, left: &AtomicUsize) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    loop {
        let mut bytes = 0;
        loop {
            let mut head = String::new();
            if reader.read_line(&mut head).unwrap_or(0) == 0 {
                return;
            }
            if let Some(length) = head.to_lowercase().strip_prefix("content-length:") {
                bytes = length.trim().parse().unwrap();
            }
            if head.trim().is_empty() {
                break;
            }
        }
        let mut body = vec![0; bytes];
        reader.read_exact(&mut body).unwrap();
        let request: Value = serde_json::from_slice(&body).unwrap();
        let text = request["messages"][1]["content"].as_str().unwrap().to_owned();
        let fails = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_err();
        let (status, answer) = if fails {
            ("422 Unprocessable Entity", json!({"error": {"message": "out of order", "type": "x"}}))
        } else {
            *seen.lock().unwrap().entry(text.clone()).or_default() += 1;
            let said = match text.as_str() {
                text if text.contains("riddle") => "I would rather not say.",
                text if text.contains("invoice") => "\"Billing\".",
                _ => "sales",
            };
            let message = json!({"role": "assistant", "content": said});
            let choices = json!([{"index": 0, "message": message, "finish_reason": "stop"}]);
            (
                "200 OK",
                json!({"id": "x", "object": "chat.completion", "created": 0, "model": "big-2026", "choices": choices,
                "usage": {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}}),
            )
        };
        let answer = answer.to_string();
        let length = answer.len();
        write!(
            stream,
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{answer}"
        )
        .unwrap();
    }
}

fn desk(may_leave: bool) -> Desk {
    let desk = Desk::new();
    let text = |i: usize| match i {
        7 => "a riddle about the moon".to_owned(),
        i if i.is_multiple_of(2) => format!("please send invoice number {i}"),
        i => format!("how much is article {i}"),
    };
    let label = |i: usize| if i.is_multiple_of(2) { "billing" } else { "sales" };
    let rows: String = (0..ROWS).map(|i| format!("{},{}\n", text(i), label(i))).collect();
    // The first row twice: it is one question.
    desk.write("rows.csv", format!("text,label\n{},billing\n{rows}", text(0)));
    let policy = format!("[policy]\nmay_leave = {may_leave}\n");
    desk.write("task.toml", format!("name = \"desk\"\nkind = \"classify\"\n[data]\ntrain = \"rows.csv\"\n{policy}"));
    desk
}

const LABEL: &str = "dataset label task.toml --model big --output answers.jsonl --concurrency 1 --json";

#[test]
fn a_teacher_that_fails_midway_is_asked_for_the_rest_alone() {
    let (teacher, desk) = (Teacher::start(), desk(false));
    desk.write("metier.toml", teacher.settings("inside"));
    teacher.left.store(15, Ordering::SeqCst);
    desk.run(LABEL).check(3, &["5 rows in a row were not answered; 15 answers are kept", "goes on from there"]);
    // Killed while it wrote.
    let half = fs::read_to_string(desk.path("answers.jsonl")).unwrap() + "{\"row\":\"0123";
    fs::write(desk.path("answers.jsonl"), half).unwrap();
    teacher.left.store(usize::MAX, Ordering::SeqCst);
    let result = desk.run(LABEL).check(0, &[]).result();
    assert_eq!((&result["rows"], &result["answered"], &result["useless"]), (&json!(ROWS), &json!(ROWS - 1), &json!(1)));
    assert_eq!(result["agreement_with_gold"]["value"], 1.0);
    assert_eq!(result["agreement_with_gold"]["n"], ROWS - 1);
    let answered = teacher.answered.lock().unwrap().clone();
    assert_eq!((answered.len(), answered.values().max()), (ROWS, Some(&1)), "nothing is asked for twice");
    // A third run has nothing to ask; a second opinion is asked for when it is wanted.
    teacher.left.store(0, Ordering::SeqCst);
    desk.run(LABEL).check(0, &[]);
    teacher.left.store(usize::MAX, Ordering::SeqCst);
    let result = desk.run(&format!("{LABEL} --twice 10")).check(0, &[]).result();
    let itself = &result["agreement_with_itself"];
    assert_eq!(itself["n"], 10);
    assert!(itself["value"].as_f64().unwrap() >= 0.9, "{itself}");
    assert_eq!(teacher.answered.lock().unwrap().values().sum::<usize>(), ROWS + 10);
    let text = fs::read_to_string(desk.path("answers.jsonl")).unwrap();
    assert!(!text.contains("invoice number"), "no text of a row stands in the file");
    // Other questions are not mixed with these.
    desk.run(&format!("{LABEL} --label billing --label sales --label other"))
        .check(2, &["name another file with `--output`"]);
}

#[test]
fn what_must_not_be_asked_is_told_before_anything_leaves() {
    let (teacher, desk) = (Teacher::start(), desk(false));
    desk.write("metier.toml", teacher.settings("outside"));
    desk.run(LABEL).check(2, &["`teacher` lies outside", "may_leave = true"]);
    assert!(!desk.path("answers.jsonl").exists());
    desk.write("metier.toml", teacher.settings("inside"));
    desk.run(&format!("{LABEL} --budget-usd 1")).check(2, &["has no price", "--rows"]);
    desk.run(&LABEL.replace("big", "nobody")).check(2, &["name another file with `--output`"]);
    desk.run(&LABEL.replace("answers", "others").replace("big", "nobody").replace("label task", "label missing"))
        .check(2, &["cannot read task file"]);
    desk.write("rows.csv", "text\na\nb\n");
    desk.run(&LABEL.replace("answers", "none")).check(2, &["the rows name 0 labels", "--label ONE --label OTHER"]);
    assert!(teacher.answered.lock().unwrap().len() <= 1);
}
