//! `metier build` and `metier dataset check` on rows as they come: what is told names file and line, and nothing is left half written.

use std::{fmt::Write as _, fs, process::Stdio};

use super::{Desk, Ran, TASK, rows};

/// File contents → what is said; the store stays empty.
#[test]
fn rows_that_cannot_be_used_are_told_with_file_and_line() {
    let good = rows(60);
    let latin = [good.as_bytes(), b"98,caf\xe9 is closed,account\n"].concat();
    let utf16: Vec<u8> = [0xFF, 0xFE].into_iter().chain(good.encode_utf16().flat_map(u16::to_le_bytes)).collect();
    let huge = format!("{good}98,{},account\n", "x".repeat(10 << 20));
    let same: String =
        "id,text,label\n".to_owned() + &"1,the very same words,account\n2,The very same words!,refund\n".repeat(20);
    let cases: Vec<(Vec<u8>, &[&str])> = vec![
        (latin, &["rows.csv:62", "`text`", "UTF-8", "iconv"]),
        (utf16, &["rows.csv:1", "UTF-16"]),
        (huge.into_bytes(), &["rows.csv:62", "`text`", "at most 65536"]),
        (same.into_bytes(), &["40 rows", "one text", "rows.csv:2"]),
        (format!("{good}98, ,account\n").into_bytes(), &["rows.csv:62", "`text` is empty"]),
        (format!("{good}98,odd one out,acount\n").into_bytes(), &["rows.csv:62", "did you mean `account`?"]),
        (format!("{good}98,\"never closed,account\n").into_bytes(), &["rows.csv:62"]),
    ];
    for (content, words) in cases {
        let desk = Desk::new();
        desk.write("rows.csv", content);
        desk.write("task.toml", TASK);
        desk.run("build task.toml --no-encoder").check(2, words);
        desk.run("dataset check task.toml").check(2, words);
        assert!(desk.files("state").is_empty(), "{:?}", desk.files("state"));
    }
    // The same in JSON lines, and a file that is something else.
    for (name, content, words) in [
        (
            "rows.jsonl",
            format!("{{\"text\":\"{}\",\"label\":\"a\"}}\n", "x".repeat(10 << 20)),
            ["rows.jsonl:1", "1048576 bytes"],
        ),
        (
            "rows.jsonl",
            "{\"text\":\"a\",\"label\":\"b\"}\n{\"text\":\"a\"\n".to_owned(),
            ["rows.jsonl:2", "not a JSON object"],
        ),
        ("rows.xlsx", "PK".to_owned(), ["rows.xlsx", "cannot tell the format"]),
        ("rows.csv.gz", "id,text,label\n".to_owned(), ["rows.csv.gz", "cannot read"]),
    ] {
        let desk = Desk::new();
        desk.write(name, content);
        desk.write("task.toml", TASK.replace("rows.csv", name));
        desk.run("build task.toml --no-encoder").check(2, &words);
    }
}

/// A file with test rows that were trained on is no proof: those rows leave training, and it is said which.
#[test]
fn training_rows_in_the_test_file_are_left_out_and_named() {
    let desk = Desk::new();
    let all = rows(900);
    desk.write("rows.csv", &all);
    let test: Vec<&str> = all.lines().take(61).collect();
    desk.write("test.csv", test.join("\n"));
    desk.write("task.toml", TASK.replace("[target]", "test = \"test.csv\"\n[target]"));
    let built = desk.run("build task.toml --no-encoder --json").check(0, &[]).result();
    assert!(built["leak"]["exact"].as_u64().unwrap() >= 45, "{}", built["leak"]);
    assert_eq!(built["rows"]["test"], 60);
    desk.run("build task.toml --no-encoder")
        .check(0, &["training rows left out", "rows.csv:2 is 1.00 like test.csv:2 (test)"]);
}

#[test]
fn a_full_disk_leaves_no_half_of_a_bundle() {
    let desk = Desk::new();
    desk.write("rows.csv", rows(900));
    desk.write("task.toml", TASK);
    let script =
        format!("trap '' XFSZ; ulimit -f 4; exec '{}' build task.toml --no-encoder", env!("CARGO_BIN_EXE_metier"));
    Ran::of(desk.command("bash").args(["-c", &script]))
        .check(3, &["cannot write the bundle of `desk`", "File too large"]);
    assert!(desk.files("state").iter().all(|file| !file.ends_with("specialist.toml")), "{:?}", desk.files("state"));
    desk.run("specialists list").check(0, &["no specialists"]);
    desk.run("build task.toml --no-encoder").check(0, &["live"]);
}

/// Killed wherever it is, a build leaves nothing that answers wrongly; started again it makes the bundle that it would have made.
#[test]
fn a_build_that_is_killed_makes_the_same_bundle_when_started_again() {
    let desk = Desk::new();
    desk.write("rows.csv", rows(900));
    desk.write("task.toml", TASK);
    let whole = desk.run("build task.toml --no-encoder --json --store whole").check(0, &[]).result();
    for n in 0..10u32 {
        let store = format!("store-{n}");
        let mut child = desk
            .command(env!("CARGO_BIN_EXE_metier"))
            .args(["build", "task.toml", "--no-encoder", "--store", &store])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Until so many files are there, or the build has ended: each round dies a little later.
        while child.try_wait().unwrap().is_none() && desk.files(&store).len() < n as usize {}
        let _ = child.kill();
        child.wait().unwrap();
        let left = desk.run(&format!("specialists list --store {store}"));
        assert_eq!(left.code, 0, "what is there is whole: {}{}", left.out, left.err);
        let again = desk.run(&format!("build task.toml --no-encoder --json --store {store}")).check(0, &[]).result();
        assert_eq!(again["bundle"], whole["bundle"]);
        assert!(
            desk.files(&store).iter().all(|file| !file.to_string_lossy().contains("staging")),
            "{:?}",
            desk.files(&store)
        );
    }
}

#[test]
fn suspicious_rows_are_found_where_they_were_planted() {
    let desk = Desk::new();
    let mut text = rows(300);
    // Every third row is `refund`, so a label of another kind in these lines is wrong.
    let planted = [31usize, 94, 157, 220, 274];
    text = (text.lines().enumerate())
        .map(|(at, line)| if planted.contains(&at) { line.replace(",refund", ",delivery") } else { line.to_owned() } + "\n")
        .collect();
    let twice = "one text with two labels here from ada@example.org";
    writeln!(text, "900,{twice},account\n901,{twice}!,refund").unwrap();
    desk.write("rows.csv", &text);
    desk.write("task.toml", TASK);
    let found = desk.run("dataset check task.toml --json").check(0, &[]).result();
    let suspects: Vec<&str> =
        found["suspects"].as_array().unwrap().iter().map(|s| s["place"].as_str().unwrap()).collect();
    for line in planted {
        let place = format!("rows.csv:{}", line + 1);
        assert!(suspects.iter().take(8).any(|suspect| *suspect == place), "{place} is not among {suspects:?}");
    }
    assert!(suspects.len() < 15, "{suspects:?}");
    assert_eq!(found["contradictions"].as_array().unwrap().len(), 1);
    let noise = found["noise"].as_f64().unwrap();
    assert!((0.005..0.05).contains(&noise), "{noise}: 5 of 300 were planted");
    assert_eq!(found["personal"]["email"]["rows"], 2, "{}", found["personal"]);
    let told = desk.run("dataset check task.toml --output suspects.csv").check(
        0,
        &["one text with two labels", "rows.csv:302", "e-mail addresses in 2 rows, such as rows.csv:302", "[e-mail]"],
    );
    assert!(!told.out.contains("ada@"), "what is personal is counted and not shown: {}", told.out);
    let csv = fs::read_to_string(desk.path("suspects.csv")).unwrap();
    assert!(csv.starts_with("place,kind,label,likelier") && csv.lines().count() > 7, "{csv}");
    desk.run("dataset check task.toml --output suspects.csv").check(2, &["exists"]);
    assert!(!desk.path("state").exists(), "nothing else was written");
}
