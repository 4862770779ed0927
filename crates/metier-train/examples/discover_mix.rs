//! How well are known tasks found again? `METIER_DATA=… cargo run --release -p metier-train --example discover_mix -- ENCODER_FOLDER|- [key=value …]` wraps
//! real texts (intents of banking77 and clinc150, NLI over contracts, clauses of contracts, pairs of products, GSM8K) as OpenAI chat logs, once with a template for each task
//! and once without any, finds the tasks, and prints homogeneity, completeness and V-measure (Rosenberg and Hirschberg, EMNLP 2007) over the examples. Keys:
//! `rows` of each task (1000), `threads`, `sample`, `only` (`templates` or `stripped`), `keep` (a folder for the logs), `without` (a source that is left out), `seed`
//! (which rows are taken), `mix` (`first`; `second` is made of other data: support intents, slots, attributes of products, questions on tables, pairs of
//! cameras, categories of offers, questions with options).
//!
//! For a log that `metier roadmap` is to read: `keep`, with `once=true` (each text at most once: a source that has fewer gives what it has), `weeks` (the calls are spread evenly
//! over so many; without, one comes every 36 seconds), `model` (whose prices hold: `reference-llm` has none) and `wrong` (a share of the answers that is another row's).
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example has no other way to answer")]
#![allow(
    clippy::disallowed_methods,
    reason = "an example stands where the roof stands: it may read the environment and the clock"
)]

use std::{
    collections::BTreeMap,
    error::Error,
    fs,
    io::{BufRead as _, BufReader, Read, Write as _},
    path::{Path, PathBuf},
    time::Instant,
};

use metier_kernels::{Pool, Tier};
use metier_model::{Encoder, specialist::mix};
use metier_traffic::PriceBook;
use metier_train::{
    Embed,
    build::peak_rss_bytes,
    discover::{Discovery, Finder, Logs},
};
use serde_json::{Value, json};

/// A task: its name, its instruction, and its questions with answers.
type Source = (&'static str, String, Vec<(String, String)>);

/// When the first call of a log of weeks comes, in seconds since 1970: Monday, 1 June 2026.
const BEGIN: u64 = 1_780_272_000;
const SECONDS_PER_WEEK: u64 = 7 * 86_400;

/// What is written of the sources.
struct Plan {
    /// Calls of each.
    rows: usize,
    seed: u64,
    /// Each text once at most.
    once: bool,
    /// Share of answers that are another row's.
    wrong: f64,
    model: String,
    weeks: Option<u64>,
}

fn open(path: &Path) -> Result<Box<dyn Read>, Box<dyn Error>> {
    let file = fs::File::open(path)?;
    let zst = path.extension().is_some_and(|ending| ending == "zst");
    Ok(if zst { Box::new(zstd::stream::read::Decoder::new(file)?) } else { Box::new(file) })
}

fn json_lines(path: &Path) -> Result<Vec<Value>, Box<dyn Error>> {
    BufReader::new(open(path)?).lines().map(|line| Ok(serde_json::from_str(&line?)?)).collect()
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn labels(rows: &[(String, String)]) -> String {
    let set: std::collections::BTreeSet<&str> = rows.iter().map(|row| row.1.as_str()).collect();
    set.into_iter().collect::<Vec<_>>().join(", ")
}

fn sources(data: &Path) -> Result<Vec<Source>, Box<dyn Error>> {
    let mut banking = Vec::new();
    for row in csv::Reader::from_reader(open(&data.join("banking77/train.csv"))?).records() {
        let row = row?;
        banking.push((row[0].to_owned(), row[1].to_owned()));
    }
    let clinc: Vec<_> = json_lines(&data.join("clinc150/train.jsonl.zst"))?
        .iter()
        .map(|row| (text(&row["text"]), text(&row["intent"])))
        .collect();
    let hypotheses: Value = serde_json::from_reader(open(&data.join("contract_nli/hypotheses.json"))?)?;
    let mut nli = Vec::new();
    for document in json_lines(&data.join("contract_nli/train50.jsonl.zst"))? {
        for (name, said) in document["annotations"].as_object().into_iter().flatten() {
            let hypothesis = text(&hypotheses[name]["hypothesis"]);
            nli.push((
                format!("Contract:\n{}\n\nStatement: {hypothesis}", text(&document["text"])),
                text(&said["choice"]),
            ));
        }
    }
    let clauses: Vec<_> = json_lines(&data.join("cuad/clauses_train.jsonl.zst"))?
        .iter()
        .map(|row| (text(&row["text"]), text(&row["labels"][0])))
        .collect();
    let products: Vec<_> = json_lines(&data.join("product_match_abt_buy/train.jsonl.zst"))?
        .iter()
        .map(|row| {
            let offer = |side: &str| {
                format!(
                    "{} {} {}",
                    text(&row[side]["name"]),
                    text(&row[side]["description"]),
                    text(&row[side]["price"])
                )
            };
            (
                format!("Offer A: {}\nOffer B: {}", offer("left"), offer("right")),
                if row["label"] == json!(1) { "match" } else { "no match" }.to_owned(),
            )
        })
        .collect();
    let gsm: Vec<_> = json_lines(&data.join("gsm8k/train.jsonl.zst"))?
        .iter()
        .map(|row| (text(&row["question"]), text(&row["answer"])))
        .collect();
    let intents = format!(
        "You sort the messages that customers send to a bank. Answer with exactly one of these intents and nothing else: {}.",
        labels(&banking)
    );
    let assistant = format!(
        "Classify what the user wants from a voice assistant. Possible intents: {}. Reply with the intent only.",
        labels(&clinc)
    );
    let clause = format!("You are a contract analyst. Name the type of the clause below. Types: {}.", labels(&clauses));
    Ok(vec![
        ("banking77", intents, banking),
        ("clinc150", assistant, clinc),
        ("contract_nli", "Read the contract and decide whether the statement below follows from it. Answer Entailment, Contradiction or NotMentioned.".to_owned(), nli),
        ("cuad_clauses", clause, clauses),
        ("products", "Decide whether two offers of online shops describe the same product. Answer `match` or `no match`.".to_owned(), products),
        ("gsm8k", "Solve the following word problem step by step. End with four hashes and the number.".to_owned(), gsm),
    ])
}

/// Other data than the first mix has.
fn second(data: &Path) -> Result<Vec<Source>, Box<dyn Error>> {
    let mut support = Vec::new();
    for row in csv::Reader::from_reader(open(&data.join("bitext_support/train.csv.zst"))?).records() {
        let row = row?;
        support.push((row[0].to_owned(), row[1].to_owned()));
    }
    let slots = json_lines(&data.join("snips/train.jsonl.zst"))?;
    let slots: Vec<_> = slots.iter().map(|row| (text(&row["text"]), slots_of(row).to_string())).collect();
    let attributes = json_lines(&data.join("attr_oa_mine/train.jsonl"))?;
    let attributes: Vec<_> = attributes.iter().map(|row| (text(&row["title"]), text(&row["attributes"]))).collect();
    let mut tables = Vec::new();
    for row in json_lines(&data.join("tatqa/dev.jsonl.zst"))? {
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let line = |cells: &Value| list(cells).iter().map(text).collect::<Vec<_>>().join(" | ");
        let table = list(&row["table"]).iter().map(line).collect::<Vec<_>>().join("\n");
        let said = list(&row["paragraphs"]).iter().map(|said| text(&said["text"])).collect::<Vec<_>>().join("\n");
        for asked in list(&row["questions"]) {
            let answer = match &asked["answer"] {
                Value::Array(parts) => parts.iter().map(text).collect::<Vec<_>>().join("; "),
                one => text(one),
            };
            tables.push((format!("{table}\n\n{said}\n\n{}", text(&asked["question"])), answer));
        }
    }
    let cameras = json_lines(&data.join("product_match_wdc_cameras/train_medium.jsonl.zst"))?;
    let cameras: Vec<_> = cameras
        .iter()
        .map(|row| {
            let both = format!("{}\n{}", text(&row["left"]["title"]), text(&row["right"]["title"]));
            (both, if row["label"] == json!(1) { "yes" } else { "no" }.to_owned())
        })
        .collect();
    let offers = json_lines(&data.join("pricerunner/products.jsonl.zst"))?;
    let offers: Vec<_> = offers.iter().map(|row| (text(&row["title"]), text(&row["category"]))).collect();
    let options = json_lines(&data.join("route_mmlu_pro/overlaps_mmlu.jsonl.zst"))?;
    let options: Vec<_> = options
        .iter()
        .map(|row| {
            let choices = row["options"].as_array().into_iter().flatten().zip('A'..);
            let choices: Vec<String> = choices.map(|(choice, letter)| format!("{letter}. {}", text(choice))).collect();
            (format!("{}\n{}", text(&row["question"]), choices.join("\n")), text(&row["answer"]))
        })
        .collect();
    let support_says = format!("Name the intent of this message to customer support. One of: {}.", labels(&support));
    let offers_say = format!("Put this offer into one of the categories of the catalogue: {}.", labels(&offers));
    let instruction = |text: &str| text.to_owned();
    Ok(vec![
        ("bitext", support_says, support),
        (
            "snips_slots",
            instruction(
                "Fill the slots of this command to a voice assistant. Answer with a JSON object from slot to a list of its values.",
            ),
            slots,
        ),
        (
            "attributes",
            instruction(
                "Extract brand, colour, size and all further attributes from the title of this product, as JSON.",
            ),
            attributes,
        ),
        (
            "tatqa",
            instruction(
                "Answer the question at the end from the table and the paragraphs of an annual report. Give the value alone.",
            ),
            tables,
        ),
        ("cameras", instruction("Do these two titles name the same camera or accessory? Say yes or no."), cameras),
        ("offers", offers_say, offers),
        (
            "options",
            instruction("Choose the right option of this examination question. Reply with its letter."),
            options,
        ),
    ])
}

fn slots_of(row: &Value) -> Value {
    let mut all = serde_json::Map::new();
    for slot in row["slots"].as_array().into_iter().flatten() {
        let values = all.entry(text(&slot["slot"])).or_insert_with(|| json!([]));
        values.as_array_mut().into_iter().for_each(|values| values.push(slot["value"].clone()));
    }
    Value::Object(all)
}

/// Writes calls of each source, mixed, with the source in the id.
fn write(sources: &[Source], plan: &Plan, templates: bool, to: &Path) -> Result<usize, Box<dyn Error>> {
    let Plan { rows, seed, once, .. } = *plan;
    let mut order: Vec<(usize, usize)> = Vec::new();
    let mut rows_of: Vec<Vec<usize>> = Vec::new();
    for (source, (_, _, texts)) in sources.iter().enumerate() {
        // Sources with fewer rows come round again.
        let mut at: Vec<usize> =
            (0..rows).map(|at| (mix((at as u64 + 17) ^ seed << 32) % texts.len() as u64) as usize).collect();
        if once {
            let mut seen = std::collections::BTreeSet::new();
            at = (0..texts.len()).filter(|&at| seen.insert(texts[at].0.as_str())).collect();
            at.sort_by_key(|&at| mix((at as u64 + 17) ^ seed << 32));
            at.truncate(rows);
        }
        order.extend((0..at.len()).map(|at| (source, at)));
        rows_of.push(at);
    }
    order.sort_by_key(|&(source, at)| mix((source as u64) << 32 | at as u64));
    let mut file = std::io::BufWriter::new(fs::File::create(to)?);
    let n_calls = order.len() as u64;
    for (n, &(source, at)) in order.iter().enumerate() {
        let (name, instruction, texts) = &sources[source];
        let (question, answer) = &texts[rows_of[source][at]];
        let die = mix(seed ^ mix(n as u64 ^ 0x5eed));
        let answer = if (die >> 11) as f64 / ((1u64 << 53) as f64) < plan.wrong {
            &texts[(mix(die) % texts.len() as u64) as usize].1
        } else {
            answer
        };
        let mut messages = vec![json!({"role": "user", "content": question})];
        if templates {
            messages.insert(0, json!({"role": "system", "content": instruction}));
        }
        let tokens = |text: &str| text.len() / 4 + 1;
        let seconds = match plan.weeks {
            Some(weeks) => BEGIN + weeks * SECONDS_PER_WEEK * n as u64 / n_calls,
            None => 1_790_000_000 + n as u64 * 36,
        };
        let row = json!({
            "request": {"model": plan.model, "messages": messages},
            "response": {"id": format!("{name}/{at:07}"), "object": "chat.completion", "created": seconds, "model": plan.model,
                "choices": [{"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": tokens(question) + if templates { tokens(instruction) } else { 0 }, "completion_tokens": tokens(answer)}}
        });
        writeln!(file, "{row}")?;
    }
    file.flush()?;
    Ok(order.len())
}

/// Homogeneity, completeness and V-measure of the tasks against the sources, over the examples by their weights.
fn v_measure(found: &Discovery) -> [f64; 3] {
    let mut table: BTreeMap<(&str, usize), f64> = BTreeMap::new();
    for (at, task) in found.tasks.iter().enumerate() {
        for example in &task.examples {
            *table.entry((example.id.split('/').next().unwrap_or_default(), at)).or_default() += example.weight;
        }
    }
    let all: f64 = table.values().sum();
    let (mut sources, mut tasks): (BTreeMap<&str, f64>, BTreeMap<usize, f64>) = Default::default();
    for (&(source, task), n) in &table {
        *sources.entry(source).or_default() += n;
        *tasks.entry(task).or_default() += n;
    }
    let entropy = |counts: &mut dyn Iterator<Item = f64>| -> f64 { counts.map(|n| -(n / all) * (n / all).ln()).sum() };
    let (of_sources, of_tasks) = (entropy(&mut sources.values().copied()), entropy(&mut tasks.values().copied()));
    let both = entropy(&mut table.values().copied());
    let share = |conditional: f64, own: f64| if own <= 0.0 { 1.0 } else { 1.0 - conditional / own };
    let (h, c) = (share(both - of_tasks, of_sources), share(both - of_sources, of_tasks));
    [h, c, if h + c > 0.0 { 2.0 * h * c / (h + c) } else { 0.0 }]
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, rest @ ..] = arguments.as_slice() else { return Err("ENCODER_FOLDER|- [key=value …]".into()) };
    let (mut threads, mut sample, mut only, mut keep) = (2, 6000, String::new(), None);
    let (mut without, mut which) = (Vec::new(), "first".to_owned());
    let mut plan =
        Plan { rows: 1000, seed: 0, once: false, wrong: 0.0, model: "reference-llm".to_owned(), weeks: None };
    for argument in rest {
        match argument.split_once('=').ok_or("expected key=value")? {
            ("rows", value) => plan.rows = value.parse()?,
            ("threads", value) => threads = value.parse()?,
            ("sample", value) => sample = value.parse()?,
            ("only", value) => only = value.to_owned(),
            ("without", value) => without.push(value.to_owned()),
            ("seed", value) => plan.seed = value.parse()?,
            ("once", value) => plan.once = value.parse()?,
            ("wrong", value) => plan.wrong = value.parse()?,
            ("model", value) => plan.model = value.to_owned(),
            ("weeks", value) => plan.weeks = Some(value.parse()?),
            ("mix", value) => which = value.to_owned(),
            ("keep", value) => keep = Some(PathBuf::from(value)),
            (key, _) => return Err(format!("unknown key `{key}`").into()),
        }
    }
    let data = PathBuf::from(std::env::var_os("METIER_DATA").unwrap_or_else(|| "../shared/data".into()));
    let mut sources = match which.as_str() {
        "first" => sources(&data)?,
        "second" => second(&data)?,
        other => return Err(format!("unknown mix `{other}`").into()),
    };
    if let Some(unknown) = without.iter().find(|name| sources.iter().all(|source| source.0 != name.as_str())) {
        return Err(format!("no source is called `{unknown}`").into());
    }
    sources.retain(|source| !without.iter().any(|name| name == source.0));
    let pool = Pool::new(threads, Tier::detect());
    let encoder = if folder == "-" { None } else { Some(Encoder::open(Path::new(folder))?) };
    let prices = PriceBook::list();
    let dir = tempfile::tempdir()?;
    keep.iter().try_for_each(fs::create_dir_all)?;
    for (name, templates) in [("templates", true), ("stripped", false)] {
        if !only.is_empty() && only != name {
            continue;
        }
        let path = keep.clone().unwrap_or_else(|| dir.path().to_owned()).join(format!("{name}.jsonl"));
        let n = write(&sources, &plan, templates, &path)?;
        let bytes = fs::metadata(&path)?.len();
        let start = Instant::now();
        let now_ms = 1_795_737_600_000;
        let finder = Finder {
            prices: &prices,
            encoder: encoder.as_ref().map(|encoder| encoder as &dyn Embed),
            pool: &pool,
            max_embedded: sample,
            now_ms,
        };
        let mut stage = String::new();
        let found = finder.discover(&Logs::find(&[path], now_ms)?, &mut |progress| {
            if progress.stage != stage {
                eprintln!("{:7.1} s {}", start.elapsed().as_secs_f64(), progress.stage);
                progress.stage.clone_into(&mut stage);
            }
        })?;
        let seconds = start.elapsed().as_secs_f64();
        for task in &found.tasks {
            let mut of: BTreeMap<&str, f64> = BTreeMap::new();
            task.examples.iter().for_each(|example| {
                *of.entry(example.id.split('/').next().unwrap_or_default()).or_default() += example.weight
            });
            println!(
                "{:44} {:9} {:>8} calls {:?} {of:.0?}",
                task.name,
                task.kind.kind.name(),
                task.total().calls,
                task.identity.by
            );
        }
        let [h, c, v] = v_measure(&found);
        println!(
            "{}",
            json!({"mix": name, "rows": n, "mb": bytes >> 20, "tasks": found.tasks.len(), "homogeneity": h, "completeness": c, "v_measure": v, "seconds": seconds,
                "peak_rss_mb": peak_rss_bytes().map(|bytes| bytes >> 20)})
        );
    }
    Ok(())
}
