//! Extractions, all the way that a user goes: a log of real texts with JSON answers → its tasks → their trials → the written task files → full builds,
//! measured on the data set's test file, which neither log nor trial holds.
//!
//! A task is one intent of SNIPS with its slots, some rows of it, or the attributes of OA-Mine's product titles. No call names a schema, as in most
//! logs. The stand-in for an LLM gives the gold values, except for a share of the rows, where it leaves one of them out.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    fs,
    io::{BufRead as _, BufReader, Read},
    path::{Path, PathBuf},
    time::Instant,
};

use metier_kernels::{Pool, Tier};
use metier_model::{Encoder, SpecialistStore};
use metier_traffic::PriceBook;
use metier_train::{
    Embed, TaskFile, Workbench, build,
    craft::encoder::Recipe,
    discover::{
        Finder, Logs, act,
        judge::{self, Bench},
        report,
        saving::{assumptions::Assumptions, draw::Draw},
    },
};
use serde_json::{Map, Value, json};

/// The bound: of fields that are wrong, what a small model reaches (docs/accuracy.md), and not the 2 % that labels do.
const EPSILON: f64 = 0.05;
/// When the calls come: a minute apart from here, in seconds since 1970.
const BEGIN: u64 = 1_788_134_400;

type Rows = Vec<(String, Value)>;

struct Source {
    name: String,
    prompt: String,
    train: Rows,
    test: Rows,
}

/// Cuts out `n` tasks and prints a line for each.
pub(super) fn run(folder: &str, n: usize, seed: u64, threads: usize, minutes: u64) -> Result<(), Box<dyn Error>> {
    let data = PathBuf::from(std::env::var("METIER_DATA").unwrap_or_else(|_| "../shared/data".to_owned()));
    if folder == "-" {
        return Err("extractions are tried over an encoder: name its folder".into());
    }
    let encoder = Encoder::open(Path::new(folder))?;
    let pool = Pool::new(threads, Tier::detect());
    let start = Instant::now();
    let clock = || start.elapsed();
    let mut draw = Draw::new(seed, "extractions");
    let mut sources = sources(&data)?;
    super::shuffle(&mut sources, &mut draw);
    sources.truncate(n);

    let dir = tempfile::tempdir()?;
    let log = dir.path().join("log.jsonl");
    let mut noise_of: BTreeMap<String, f64> = BTreeMap::new();
    let mut calls: Vec<(String, &str, String, Value)> = Vec::new();
    for (at, source) in sources.iter_mut().enumerate() {
        let noise = [0.0, 0.03][at % 2];
        noise_of.insert(source.name.clone(), noise);
        super::shuffle(&mut source.train, &mut draw);
        source.train.truncate(400 + draw.below(1500));
        for row in source.train.iter_mut().chain(&mut source.test) {
            if draw.chance(noise) {
                forget(&mut row.1, &mut draw);
            }
        }
    }
    for source in &sources {
        let rows = source.train.iter().enumerate();
        calls.extend(rows.map(|(at, row)| {
            (format!("{}/{at:05}", source.name), source.prompt.as_str(), row.0.clone(), row.1.clone())
        }));
    }
    super::shuffle(&mut calls, &mut draw);
    let lines: Vec<String> = calls.iter().enumerate().map(|(at, call)| line(at as u64, call)).collect();
    fs::write(&log, lines.concat())?;

    let prices = PriceBook::list();
    let now_ms = (BEGIN + 60 * calls.len() as u64 + 86_400) * 1000;
    let embed: &dyn Embed = &encoder;
    let finder = Finder { prices: &prices, encoder: Some(embed), pool: &pool, max_embedded: 1000, now_ms };
    let found = finder.discover(&Logs::find(&[log], now_ms)?, &mut |_| ())?;
    println!("{} calls of {} sources, {} tasks found", calls.len(), sources.len(), found.tasks.len());

    let assumptions = Assumptions { epsilon: EPSILON, ..Assumptions::default() };
    let bench = Bench { encoder: Some(embed), pool: &pool, seed, clock: &clock };
    let trials = found.tasks.iter().map(|task| judge::attempt(task, &assumptions, &bench, &mut |_| ())).collect();
    let judgements = judge::judge(&found.tasks, trials, &assumptions);
    eprintln!("trials: {:.0} s", start.elapsed().as_secs_f64());
    let roadmap = report::draw_up(&found, judgements.clone(), &assumptions, &[], seed);
    let tasks = dir.path().join("tasks");
    let written = act::write_tasks(&found, &roadmap, &tasks)?;
    for ((task, judgement), written) in found.tasks.iter().zip(&judgements).zip(&written) {
        let of: BTreeSet<&str> =
            task.examples.iter().map(|example| example.id.split('/').next().unwrap_or_default()).collect();
        let name = of.iter().copied().collect::<Vec<_>>().join("+");
        let fields = task.answer_schema().ok().map(|(_, schema)| schema);
        let trial = judgement.trial.as_ref().map_or_else(
            || format!("not tried: {}", judgement.not_tried.as_deref().unwrap_or_default()),
            |trial| {
                let like = trial.likeness.as_ref().map_or(f64::NAN, |like| like.value.value);
                let [low, high] = trial.agreement.interval;
                format!(
                    "rung {} all fields {:.3} [{low:.3}, {high:.3}] field_f1 {like:.3} of {} rows, {:.0} s",
                    trial.rung.name(),
                    trial.agreement.value,
                    trial.rows[2],
                    trial.seconds
                )
            },
        );
        println!(
            "{name:26} noise {:.2} rows {:5} found: {}, {} fields | {} p {:.2}, {trial}",
            of.first().and_then(|name| noise_of.get(*name)).copied().unwrap_or(0.0),
            task.examples.len(),
            task.kind.kind.name(),
            fields.map_or(0, |schema| schema.fields().len()),
            judgement.verdict.name(),
            judgement.chance
        );
        let (Some(file), [one]) = (&written.file, &of.iter().collect::<Vec<_>>()[..]) else {
            println!("    not built: {}", written.why_not.as_deref().unwrap_or("more than one source is in it"));
            continue;
        };
        let Some(source) = sources.iter().find(|source| source.name == **one) else { continue };
        let rows = source.test.iter().map(|(text, output)| json!({"text": text, "output": output}).to_string() + "\n");
        let folder = file.parent().ok_or("a task file stands in a folder")?;
        fs::write(folder.join("test.jsonl"), rows.collect::<String>())?;
        let said = fs::read_to_string(file)?.replace("minutes = 10", &format!("minutes = {minutes}"));
        let said = format!("{said}\n[target]\nepsilon = {EPSILON}\n");
        let store = SpecialistStore::open(&folder.join("store"))?;
        let bench = Workbench {
            teacher: None,
            encoder: Some(embed),
            decoders: Vec::new(),
            pool: &pool,
            store: &store,
            seed,
            tuning: Recipe::default(),
        };
        match build(&TaskFile::parse(&said, file, &|_| None)?, &bench, &mut |_| (), &clock) {
            Ok(built) => {
                let [low, high] = built.interval;
                let passed = act::passed(&built, assumptions.partial_coverage);
                println!(
                    "    built in {:.0} s: rung {} {} {:.3} [{low:.3}, {high:.3}] of {} rows; alone {:.3}, loss {:.4}: {}",
                    built.seconds,
                    built.rung.name(),
                    built.metric,
                    built.value,
                    built.n,
                    if built.certificate.is_some() { built.test_coverage } else { 0.0 },
                    built.test_loss.unwrap_or(0.0),
                    if passed { "passes" } else { "does not pass" }
                );
            }
            Err(error) => println!("    not built: {error}"),
        }
    }
    eprintln!("{:.0} s, seed {seed}, {threads} threads", start.elapsed().as_secs_f64());
    Ok(())
}

/// A call as OpenAI's clients log it.
fn line(at: u64, (id, prompt, text, answer): &(String, &str, String, Value)) -> String {
    let row = json!({
        "request": {"model": "gpt-4.1", "messages": [{"role": "system", "content": prompt}, {"role": "user", "content": text}]},
        "response": {"id": id, "object": "chat.completion", "created": BEGIN + 60 * at, "model": "gpt-4.1",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": answer.to_string()}, "finish_reason": "stop"}]}
    });
    row.to_string() + "\n"
}

/// Leaves one value out.
fn forget(answer: &mut Value, draw: &mut Draw) {
    let Some(fields) = answer.as_object_mut().filter(|fields| fields.len() > 1) else { return };
    let key = fields.keys().nth(draw.below(fields.len())).cloned().unwrap_or_default();
    fields.remove(&key);
}

fn sources(data: &Path) -> Result<Vec<Source>, Box<dyn Error>> {
    let mut by_intent: BTreeMap<String, [Vec<Value>; 2]> = BTreeMap::new();
    for (part, file) in ["snips/train.jsonl.zst", "snips/validate.jsonl"].into_iter().enumerate() {
        for row in json_lines(&data.join(file))? {
            by_intent.entry(text(&row["intent"])).or_default()[part].push(row);
        }
    }
    let mut sources = Vec::new();
    for (intent, parts) in by_intent {
        let slots = |row: &Value| -> Vec<(String, String)> {
            let slots = row["slots"].as_array().into_iter().flatten();
            slots.map(|slot| (text(&slot["slot"]), text(&slot["value"]))).collect()
        };
        // A slot that one text fills twice is a list.
        let mut many: BTreeMap<String, bool> = BTreeMap::new();
        for row in parts.iter().flatten() {
            let mut seen = BTreeSet::new();
            for (slot, _) in slots(row) {
                let again = !seen.insert(slot.clone());
                *many.entry(slot).or_default() |= again;
            }
        }
        let answer = |row: &Value| {
            let mut answer = Map::new();
            for (slot, value) in slots(row) {
                if many[&slot] {
                    let list = answer.entry(slot).or_insert_with(|| json!([]));
                    list.as_array_mut().into_iter().for_each(|list| list.push(json!(value)));
                } else {
                    answer.insert(slot, json!(value));
                }
            }
            (text(&row["text"]), Value::Object(answer))
        };
        let [train, test] = parts.map(|rows| rows.iter().map(answer).collect::<Rows>());
        let named: Vec<&str> = many.keys().map(String::as_str).collect();
        let prompt = format!(
            "A user of a voice assistant wants this: {intent}. Which slots does the command fill? They are {}. Answer with a JSON object of the slots that it fills and the words that fill them.",
            named.join(", ")
        );
        sources.push(Source { name: format!("snips-{intent}"), prompt, train, test });
    }
    let attributes = |file: &str| -> Result<Rows, Box<dyn Error>> {
        let rows = json_lines(&data.join("attr_oa_mine").join(file))?;
        Ok(rows.iter().map(|row| (text(&row["title"]), row["attributes"].clone())).collect())
    };
    sources.push(Source {
        name: "attributes".to_owned(),
        prompt: "Extract the attributes of the product whose title the user sends, as JSON: from the name of an attribute to a list of its values, as they stand in the title.".to_owned(),
        train: attributes("train.jsonl")?,
        test: attributes("test.jsonl")?,
    });
    Ok(sources)
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn json_lines(path: &Path) -> Result<Vec<Value>, Box<dyn Error>> {
    let file = fs::File::open(path)?;
    let zst = path.extension().is_some_and(|ending| ending == "zst");
    let reader: Box<dyn Read> = if zst { Box::new(zstd::stream::read::Decoder::new(file)?) } else { Box::new(file) };
    BufReader::new(reader).lines().map(|line| Ok(serde_json::from_str(&line?)?)).collect()
}
