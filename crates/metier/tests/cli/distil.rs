//! Specialists that learn from others, adapters that are rounded, heads that leave: the same tiny networks throughout.

use std::{collections::BTreeSet, fs};

use metier_model::{Digest, format::Safetensors, tiny};
use serde_json::Value;

use super::{Desk, TASK, rows};

const WORDS: [&str; 24] = [
    "money",
    "back",
    "refund",
    "the",
    "order",
    "return",
    "my",
    "payment",
    "charge",
    "reversed",
    "parcel",
    "is",
    "late",
    "courier",
    "never",
    "came",
    "where",
    "shipment",
    "tracking",
    "number",
    "stuck",
    "password",
    "forgotten",
    "cannot",
];

/// A desk whose encoder is a tiny BERT of one's own.
fn with_encoder() -> Desk {
    let desk = Desk::new();
    let folder = desk.path("encoder");
    fs::create_dir_all(&folder).unwrap();
    tiny::bert_folder(&folder, &WORDS, 2, 5).unwrap();
    let files = ["config.json", "model.safetensors", "tokenizer.json"].map(|name| {
        let bytes = fs::read(folder.join(name)).unwrap();
        format!(
            "[[tiny.files]]\nname = \"{name}\"\nbytes = {}\nsha256 = \"{}\"\nsources = [{{ kind = \"path\", path = \"{}\" }}]\n",
            bytes.len(),
            Digest::of(&bytes),
            folder.join(name).display()
        )
    });
    let head = "[tiny]\nkind = \"encoder\"\nabout = \"a test\"\nlicence = \"MIT\"\n";
    desk.write("models.toml", head.to_owned() + &files.concat());
    desk.write("metier.toml", "[models]\nencoder = \"tiny\"\ncatalogue = \"models.toml\"\n");
    desk.write("rows.csv", rows(600));
    desk
}

fn json_file(desk: &Desk, path: &str) -> Value {
    serde_json::from_slice(&fs::read(desk.path(path)).unwrap()).unwrap()
}

#[test]
fn a_head_leaves_for_transformers_and_what_cannot_says_why() {
    let desk = with_encoder();
    desk.write("task.toml", format!("{TASK}[budget]\nfrom = \"head\"\nup_to = \"head\"\n"));
    desk.run("build task.toml").check(0, &["head"]);
    let left = desk.run("specialists export desk --format transformers --output out --json").check(0, &[]).result();
    assert_eq!((&left["prompts"], &left["equal"]), (&left["equal"], &left["prompts"]), "{left}");
    // Logits of a calibrated tiny network are large; what counts are the labels.
    assert!(left["prompts"].as_u64().unwrap() > 20 && left["max_logit_difference"].as_f64().unwrap() < 0.5, "{left}");
    let config = json_file(&desk, "out/config.json");
    assert_eq!(config["architectures"][0], "BertForSequenceClassification");
    assert_eq!((&config["id2label"]["0"], &config["num_hidden_layers"]), (&"account".into(), &3.into()));
    assert!(fs::read_to_string(desk.path("out/README.md")).unwrap().contains("pipeline(\"text-classification\""));
    desk.run("specialists export desk --format transformers --output out").check(2, &["out"]);
    desk.run("specialists export desk --format peft").check(2, &["no adapter", "--format transformers"]);

    desk.write("task.toml", format!("{}[budget]\nup_to = \"linear\"\n", TASK.replace("\"desk\"", "\"words\"")));
    desk.run("build task.toml").check(0, &["linear"]);
    desk.run("specialists export words --format transformers").check(2, &["hashed n-grams", "ngrams = false"]);
}

/// A few rows with a label, many without: a teacher that has seen more says what those are.
#[test]
fn a_classifier_learns_from_a_specialist() {
    let desk = with_encoder();
    desk.write("task.toml", TASK.replace("\"desk\"", "\"teacher\""));
    desk.run("build task.toml --no-encoder").check(0, &["linear"]);
    let all = rows(900);
    let lines: Vec<&str> = all.lines().collect();
    let some = |from: usize, to: usize| {
        lines[..1].iter().chain(&lines[from..to]).map(|line| format!("{line}\n")).collect::<String>()
    };
    desk.write("few.csv", some(601, 631));
    desk.write("held.csv", some(631, 781));
    // Without their labels, and once more with what is measured on: that is left out.
    let more: Vec<&str> =
        lines[1..61].iter().chain(&lines[631..641]).map(|line| line.rsplit_once(',').unwrap().0).collect();
    desk.write("more.csv", format!("id,text\n{}\n", more.join("\n")));
    let student = TASK.replace("\"desk\"", "\"student\"").replace(
        "train = \"rows.csv\"",
        "train = \"few.csv\"\nvalidation = \"held.csv\"\ncalibration = \"held.csv\"\ntest = \"held.csv\"",
    );
    let distil = "[distil]\nteacher = \"specialist:teacher\"\nrows = \"more.csv\"\nweight = 0.3\n";
    desk.write("task.toml", format!("{student}{distil}"));
    let built = desk.run("build task.toml --no-encoder --json").check(0, &[]).result();
    assert_eq!(built["rows"]["train"], 90, "{built}");
    let notes = built["notes"].to_string();
    assert!(notes.contains("specialist:teacher") && notes.contains("60 rows without a label"), "{notes}");
    let card = fs::read_to_string(
        desk.path("state/specialists/student").join(built["bundle"].as_str().unwrap()).join("CARD.md"),
    );
    assert!(card.unwrap().contains("learnt from the teacher `specialist:teacher`"));
    let again = desk.run("build task.toml --no-encoder --json").check(0, &[]).result();
    assert_eq!(again["bundle"], built["bundle"]);

    desk.write("task.toml", student.replace("few.csv", "other.csv") + distil);
    desk.write("other.csv", some(601, 631).replace("refund\n", "money\n"));
    desk.write("held.csv", some(631, 781).replace("refund\n", "money\n"));
    desk.run("build task.toml --no-encoder")
        .check(3, &["cannot distil `student`", "its labels are not those of these rows"]);
    desk.write("task.toml", student + "[distil]\nteacher = \"specialist:nobody\"\n");
    desk.run("build task.toml --no-encoder").check(2, &["nobody"]);
}

const WRITES: &str = "kind = \"generate\"\ninstruction = \"Say ok.\"\n[data]\ntrain = \"rows.csv\"\ncalibration = \"cal.csv\"\ntest = \"test.csv\"\n\
    [target]\nepsilon = 0.2\n";

fn writing_desk() -> Desk {
    let desk = Desk::new();
    let rows = |from: usize, n: usize| {
        let line = |i: usize| {
            let digest = Digest::of(&i.to_le_bytes()).to_string();
            format!("{} {},ok\n", &digest[..8], &digest[8..14])
        };
        String::from("text,output\n") + &(from..from + n).map(line).collect::<String>()
    };
    desk.write("tiny.gguf", tiny::gguf(7));
    desk.write("metier.toml", "[models]\ndecoder = \"./tiny.gguf\"\n");
    desk.write("rows.csv", rows(0, 60));
    desk.write("cal.csv", rows(100, 30));
    desk.write("test.csv", rows(200, 20));
    desk
}

/// The adapter of the first is rounded to 8 bits; the second learns from it; a stranger is refused.
#[test]
fn a_writer_is_rounded_and_teaches() {
    let desk = writing_desk();
    let tune = |rank: usize, more: &str| format!("[tune]\nrank = {rank}\nlearning_rate = 1e-2\nepochs = 12\n{more}");
    desk.write("task.toml", format!("name = \"yes\"\n{WRITES}{}", tune(8, "adapter = \"int8\"\n")));
    let built = desk.run("build task.toml --no-encoder --json").check(0, &[]).result();
    let notes = built["notes"].to_string();
    assert!(notes.contains("kept in 8 bits") && notes.contains("exact_match on validation rows"), "{notes}");
    let bundle = desk.path("state/specialists/yes").join(built["bundle"].as_str().unwrap());
    let manifest = fs::read_to_string(bundle.join("specialist.toml")).unwrap();
    assert!(manifest.contains("adapter_weights = \"int8\"") && manifest.contains("bytes_after"), "{manifest}");
    // On disk as well, and PEFT is given halves again.
    let bytes = fs::read(bundle.join("adapter.safetensors")).unwrap();
    let types = |bytes: &[u8]| {
        let file = Safetensors::parse(bytes).unwrap();
        file.tensors().values().map(|info| info.dtype.to_string()).collect::<BTreeSet<String>>()
    };
    assert_eq!(types(&bytes), ["F16", "F32", "I8"].map(str::to_owned).into());
    desk.run("specialists export yes --format peft --output peft").check(0, &["same token as in service"]);
    let halves = fs::read(desk.path("peft/adapter_model.safetensors")).unwrap();
    assert_eq!(types(&halves), ["F16".to_owned()].into());
    // What was measured is what is asked.
    let eval = desk.run("eval yes test.csv --json").check(0, &[]).result();
    assert_eq!((&eval["value"], &eval["n"]), (&built["value"], &built["n"]), "{eval}");

    let distil = |teacher: &str| format!("[distil]\nteacher = \"{teacher}\"\nweight = 0.8\n");
    desk.write("task.toml", format!("name = \"pupil\"\n{WRITES}{}{}", tune(4, ""), distil("specialist:yes")));
    let taught = desk.run("build task.toml --no-encoder --json").check(0, &[]).result();
    assert!(taught["notes"].to_string().contains("learnt from the teacher `specialist:yes`"), "{taught}");
    assert!(taught["value"].as_f64().unwrap() >= 0.9, "{taught}");
    let manifest =
        desk.path("state/specialists/pupil").join(taught["bundle"].as_str().unwrap()).join("specialist.toml");
    assert!(fs::read_to_string(manifest).unwrap().contains("[recipe.teacher]"));
    // A decoder teaches too, unless its ids mean something else.
    desk.write("teacher.gguf", tiny::gguf(8));
    desk.write("task.toml", format!("name = \"pupil\"\n{WRITES}{}{}", tune(4, ""), distil("teacher.gguf")));
    desk.run("build task.toml --no-encoder --json").check(0, &["teacher.gguf"]);
    let mut other = tiny::gguf(8);
    // Two tokens of one letter change places.
    let at = |letter: u8| {
        let token = [1, 0, 0, 0, 0, 0, 0, 0, letter];
        other.windows(9).position(|bytes| bytes == token).unwrap() + 8
    };
    let (x, y) = (at(b'x'), at(b'y'));
    other.swap(x, y);
    desk.write("stranger.gguf", other);
    desk.write("task.toml", format!("name = \"pupil\"\n{WRITES}{}{}", tune(4, ""), distil("stranger.gguf")));
    desk.run("build task.toml --no-encoder")
        .check(3, &["cannot teach `tiny` by its logits", "tokenizers differ", "first at token"]);
}
