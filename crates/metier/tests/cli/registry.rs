//! The registry as a person meets it: what answers, who said so, and what is refused.

use std::{fs, io::Write as _, path::PathBuf, process::Stdio};

use metier_model::Digest;

use super::{Desk, TASK, rows};

impl Desk {
    /// Two bundles of `desk`, built by ada with two seeds; their ids.
    fn with_two(settings: &str) -> (Self, [String; 2]) {
        let desk = Self::new();
        desk.write("rows.csv", rows(900));
        desk.write("task.toml", TASK);
        desk.write("metier.toml", settings);
        let ids = ["0", "1"].map(|seed| {
            let built = desk.run(&format!("build task.toml --no-encoder --json --seed {seed}")).check(0, &[]).result();
            built["bundle"].as_str().unwrap().to_owned()
        });
        (desk, ids)
    }

    /// The states of the bundles by id.
    fn states(&self) -> Vec<(String, String)> {
        let list = self.run("specialists list --json");
        let lines = list.out.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        lines.filter(|line| line.get("id").is_some()).map(|line| (text(&line["id"]), text(&line["state"]))).collect()
    }

    #[track_caller]
    fn check_states(&self, expected: &[(&str, &str)]) {
        let mut expected: Vec<_> = expected.iter().map(|(id, state)| ((*id).to_owned(), (*state).to_owned())).collect();
        expected.sort();
        assert_eq!(self.states(), expected);
    }

    fn bundle(&self, id: &str) -> PathBuf {
        self.path("state/specialists/desk").join(id)
    }

    fn card(&self, id: &str) -> String {
        fs::read_to_string(self.bundle(id).join("CARD.md")).unwrap()
    }
}

const APPROVED: &str = "[registry]\nrequire_approval = true\n";

#[test]
fn without_approvals_what_is_built_answers_and_can_be_rolled_back() {
    let (desk, [first, second]) = Desk::with_two("");
    desk.check_states(&[(&first, "retired"), (&second, "live")]);
    assert!(desk.card(&second).contains("Nobody approved it: it went live by being built."), "{}", desk.card(&second));
    desk.run("specialists list").check(0, &["built by ada", "live", "retired"]);
    desk.run("specialists show desk")
        .check(0, &[&second, "made from", "train file of 900 rows", "promoted by ada, by being built"]);

    desk.run("specialists rollback desk --note odd").check(0, &[&first[..8], "is live"]);
    desk.check_states(&[(&first, "live"), (&second, "retired")]);
    desk.run("specialists rollback desk").check(2, &["nothing to roll back to"]);
    desk.run("specialists show desk").check(0, &[&first, "rolled back by ada", ": odd"]);
    // Live, and approved afterwards: by name.
    desk.run("specialists promote desk --approver ada").check(1, &["somebody else"]);
    desk.run("specialists promote desk --approver grace").check(0, &[&first[..8], "approved by grace"]);
    desk.run("specialists promote desk --approver grace").check(2, &["has no draft"]);
    // The same bundle, built again, answers again.
    desk.run("build task.toml --no-encoder --seed 1").check(0, &["live"]);
    desk.check_states(&[(&first, "retired"), (&second, "live")]);
    desk.run("specialists list --made-from rows.csv").check(0, &[&first[..8], &second[..8]]);
    desk.run("specialists list --made-from task.toml").check(0, &["no bundle"]);
    let key = fs::metadata(desk.path("state/registry.key")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&key.permissions()) & 0o777, 0o600);
}

/// What the server would refuse is no way back: it would go on with what was rolled back.
#[test]
fn with_approvals_one_goes_back_only_to_what_was_approved() {
    let (desk, [first, second]) = Desk::with_two("");
    desk.write("metier.toml", APPROVED);
    desk.run("specialists promote desk --approver grace").check(0, &[&second[..8], "approved by grace"]);
    desk.run("specialists rollback desk").check(1, &[&first[..8], "it went live without approval"]);
    desk.check_states(&[(&first, "retired"), (&second, "live")]);
}

#[test]
fn where_approval_is_required_nothing_answers_without_a_proof_and_a_second_person() {
    let (desk, [first, second]) = Desk::with_two(APPROVED);
    desk.check_states(&[(&first, "draft"), (&second, "draft")]);
    desk.run("eval desk rows.csv").check(2, &["no bundle of `desk` is live", &first[..8]]);
    desk.run(&format!("eval desk@{} rows.csv", &first[..8])).check(0, &["accuracy"]);
    desk.run(&format!("specialists promote desk@{}", &first[..8])).check(2, &["--approver"]);
    desk.run(&format!("specialists promote desk@{} --approver ada", &first[..8]))
        .check(1, &["`ada` built it: somebody else must approve it"]);
    desk.run(&format!("specialists promote desk@{} --approver  Ada", &first[..8])).check(1, &["somebody else"]);
    desk.check_states(&[(&first, "draft"), (&second, "draft")]);

    desk.run(&format!("specialists promote desk@{} --to shadow", &first[..8])).check(0, &["is shadow"]);
    desk.run(&format!("specialists promote desk@{} --approver grace --note ticket-7", &first[..6]))
        .check(0, &["is live", "approved by grace", "certificate held on"]);
    desk.check_states(&[(&first, "live"), (&second, "draft")]);
    assert!(desk.card(&first).contains("Built by ada") && desk.card(&first).contains("Approved by grace."));
    desk.run("specialists diff desk").check(0, &[&first[..8], &second[..8], "seed", "0 → 1"]);
    desk.run("specialists promote desk --approver grace").check(0, &[&second[..8], "is live"]);
    desk.check_states(&[(&first, "retired"), (&second, "live")]);
    assert!(desk.card(&first).contains("**Retired**"), "the card of the one before is renewed too");

    // Without a certificate nothing goes live, whoever approves.
    desk.write("task.toml", TASK.replace("epsilon = 0.2", "epsilon = 0.0001"));
    desk.run("build task.toml --no-encoder").check(0, &["draft", "specialists promote desk@"]);
    desk.run("specialists promote desk --approver grace")
        .check(1, &["cannot go live: it has no certificate", "rows are needed"]);
    desk.run("specialists promote desk@ffff --approver grace").check(2, &["no bundle of `desk` begins with `ffff`"]);
    desk.run("specialists promote dsk --approver grace").check(2, &["no specialist `dsk`"]);
}

/// Where no user is known the record says so, and nobody can be told apart from nobody: the same bundle, built by somebody, has a builder.
#[test]
fn a_bundle_of_nobody_is_approved_once_somebody_has_built_it() {
    let desk = Desk::new();
    desk.write("rows.csv", rows(900));
    desk.write("task.toml", TASK);
    desk.run_with("build task.toml --no-encoder", &[("METIER_USER", "")]).check(0, &["live"]);
    desk.run("specialists promote desk --approver grace").check(1, &["no record says who built it"]);
    desk.run_with("build task.toml --no-encoder", &[("METIER_USER", "")]).check(0, &["live"]);
    desk.run("build task.toml --no-encoder").check(0, &["live"]);
    desk.run("specialists promote desk --approver unknown").check(1, &["is nobody"]);
    desk.run("specialists promote desk --approver grace").check(0, &["built by ada, approved by grace"]);
    let records = fs::read_to_string(desk.path("state/specialists/desk/records.jsonl")).unwrap();
    assert_eq!(records.lines().count(), 4, "built, promoted, built by ada, approved: {records}");
}

#[test]
fn live_bundles_are_removed_only_with_consent_and_records_stay() {
    let (desk, [first, second]) = Desk::with_two("");
    desk.run("specialists remove desk").check(2, &["several bundles"]);
    desk.run(&format!("specialists remove desk@{}", &second[..8])).check(1, &["it is live", "--force"]);
    desk.run(&format!("specialists remove desk@{}", &first[..8])).check(0, &["is removed"]);
    assert!(!desk.bundle(&first).exists());
    desk.run("specialists rollback desk").check(2, &["nothing to roll back to"]);
    desk.run("specialists remove desk --force").check(0, &["is removed"]);
    desk.run("specialists list").check(0, &["no specialists"]);
    desk.run("eval desk rows.csv").check(2, &["no specialist `desk`"]);
    // Built once more: the records go on.
    desk.run("build task.toml --no-encoder").check(0, &["live"]);
    desk.check_states(&[(&first, "live")]);
    assert!(desk.run("specialists show desk").check(0, &["removed by ada"]).out.matches("record ").count() >= 4);
}

#[test]
fn a_bundle_travels_signed_and_a_changed_one_is_refused() {
    let (desk, [_, id]) = Desk::with_two("");
    let file = format!("desk-{}.metier", &id[..8]);
    desk.run("specialists export desk").check(0, &["is written", "metier-registry-public:"]);
    desk.run("specialists export desk").check(2, &["exists"]);
    let key = fs::read_to_string(desk.path("state/registry.pub")).unwrap();

    let there = Desk::new();
    fs::copy(desk.path(&file), there.path(&file)).unwrap();
    there.run(&format!("specialists import {file}")).check(1, &["trusted_keys", &file]);
    assert!(there.files("state").is_empty(), "nothing is made for a file that is not trusted");
    there.write("key", &key);
    there
        .run(&format!("specialists import {file} --trust key"))
        .check(0, &["is draft", "built by ada", "imported from"]);
    there.check_states(&[(&id, "draft")]);
    there.run("specialists promote desk --approver ada").check(1, &["somebody else"]);
    there.run("specialists promote desk --approver grace").check(0, &["is live"]);
    assert_eq!(
        fs::read(there.bundle(&id).join("head.safetensors")).unwrap(),
        fs::read(desk.bundle(&id).join("head.safetensors")).unwrap()
    );

    // A byte of a file, the statement, a missing file, a path that leads out: each is named.
    let members = unzip(&desk.path(&file));
    let check = |change: &dyn Fn(&mut Members), words: &[&str]| {
        let there = Desk::new();
        let mut members = members.clone();
        change(&mut members);
        zip(&there.path("x.metier"), &members);
        there.write("key", &key);
        there.run("specialists import x.metier --trust key").check(1, &[&["x.metier"], words].concat());
        assert!(there.files("state").is_empty(), "{:?}", there.files("state"));
    };
    let position = |members: &[(String, Vec<u8>)], name: &str| members.iter().position(|(n, _)| n == name).unwrap();
    for name in ["head.safetensors", "specialist.toml", "evidence.json"] {
        check(
            &|m| {
                let at = position(m, name);
                let last = m[at].1.len() / 2;
                m[at].1[last] ^= 1
            },
            &[],
        );
    }
    check(
        &|m| {
            let at = position(m, "head.safetensors");
            *m[at].1.last_mut().unwrap() ^= 1
        },
        &["`head.safetensors`", "was changed"],
    );
    check(
        &|m| {
            let at = position(m, "statement.json");
            m[at].1[40] ^= 1
        },
        &["`statement.json`"],
    );
    check(
        &|m| {
            let at = position(m, "statement.json");
            m.remove(at);
        },
        &["lacks `statement.json`"],
    );
    check(
        &|m| {
            let at = position(m, "probe.jsonl");
            m.remove(at);
        },
        &["lacks `probe.jsonl`"],
    );
    check(&|m| m.push(("../out".into(), b"x".to_vec())), &["`../out`"]);
    check(&|m| m.push(("extra.bin".into(), b"x".to_vec())), &["holds `extra.bin`"]);
    there.write("x.metier", "no zip");
    there.run("specialists import x.metier").check(1, &["x.metier", "no export of a specialist"]);
    there.run("specialists import absent.metier").check(2, &["absent.metier"]);
    there.run(&format!("specialists import {file} --trust nonsense")).check(2, &["--trust"]);
}

#[test]
fn a_record_that_was_changed_or_taken_out_is_found() {
    let (desk, _) = Desk::with_two("");
    let path = desk.path("state/specialists/desk/records.jsonl");
    let text = fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 4, "built and promoted, twice");
    let changed = text.replacen("\"by\":\"ada\"", "\"by\":\"eve\"", 1);
    let without = [lines[0], lines[2], lines[3]].join("\n");
    for (wrong, words) in [(changed, ["line 1", "was changed"]), (without, ["line 2", "does not follow"])] {
        fs::write(&path, wrong).unwrap();
        desk.run("specialists list").check(1, &words);
        desk.run("specialists rollback desk").check(1, &words);
        desk.run("doctor").check(3, &["PROBLEM  specialists"]);
    }
    fs::write(&path, text).unwrap();
    desk.run("specialists list").check(0, &["live"]);
}

type Members = Vec<(String, Vec<u8>)>;

fn unzip(path: &std::path::Path) -> Members {
    let mut zip = zip::ZipArchive::new(fs::File::open(path).unwrap()).unwrap();
    (0..zip.len())
        .map(|at| {
            let mut member = zip.by_index(at).unwrap();
            let mut bytes = Vec::new();
            std::io::copy(&mut member, &mut bytes).unwrap();
            (member.name().unwrap().into_owned(), bytes)
        })
        .collect()
}

fn zip(path: &std::path::Path, members: &[(String, Vec<u8>)]) {
    let mut zip = zip::ZipWriter::new(fs::File::create(path).unwrap());
    for (name, bytes) in members {
        zip.start_file(name.as_str(), zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap();
}

/// Killed at any moment, a change of state is the one before or the one after.
#[test]
fn killed_at_any_moment_the_registry_is_whole() {
    let (desk, ids) = Desk::with_two("");
    let mut last = 0;
    for n in 0..12u64 {
        let mut child = desk
            .command(env!("CARGO_BIN_EXE_metier"))
            .args(["specialists", "rollback", "desk"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // Between nothing done and everything done, wherever this machine happens to be.
        let spins = Digest::of(&n.to_le_bytes()).0[0] as u32 * 40;
        (0..spins).for_each(|_| drop(fs::metadata(desk.path("rows.csv"))));
        let _ = child.kill();
        child.wait().unwrap();
        let states = desk.states();
        assert_eq!(states.iter().filter(|(_, state)| state == "live").count(), 1, "{states:?}");
        assert_eq!(states.len(), 2);
        let lines = fs::read_to_string(desk.path("state/specialists/desk/records.jsonl")).unwrap().lines().count();
        assert!(lines >= last);
        last = lines;
        if states.iter().any(|(id, state)| *id == ids[0] && state == "live") {
            desk.run("build task.toml --no-encoder --seed 1").check(0, &["live"]);
        }
    }
    desk.run("specialists list").check(0, &["live"]);
}
