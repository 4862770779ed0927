//! Files of logs → tasks: every form of file, every kind of bad input, exact volumes, stable ids. No model is needed.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::print_stderr, reason = "tests; one finds real data")]

use std::{collections::BTreeMap, fs, io::Write as _, path::Path, sync::Arc};

use metier_kernels::{Pool, Tier};
use metier_model::progress::silent;
use metier_traffic::PriceBook;
use metier_train::discover::{
    Discovery, Finder, Logs, ReadError, TaskKind,
    read::MAX_ROW_BYTES,
    task::{Gold, IdentityBy, Reading, Volume, Week},
};
use serde_json::{Value, json};

/// 2026-11-27.
const NOW_MS: u64 = 1_795_737_600_000;
/// 2026-11-02, a Monday.
const MONDAY_MS: u64 = 1_793_577_600_000;
const DAY_MS: u64 = 86_400_000;

fn discover(dir: &Path) -> Result<Discovery, ReadError> {
    let pool = Pool::new(1, Tier::detect());
    let prices = PriceBook::parse("[[price]]\nmodel='m'\nfrom='2024-01-01'\ninput=1\noutput=2\ncached=0.5").unwrap();
    let finder = Finder { prices: &prices, encoder: None, pool: &pool, max_embedded: 1000, now_ms: NOW_MS };
    let logs = Logs::find(&[dir.to_owned()], NOW_MS)?;
    finder.discover(&logs, &mut silent).map_err(|error| match error {
        metier_train::discover::DiscoverError::Read(error) => error,
        other => panic!("{other}"),
    })
}

/// What is read of files with these names and bytes.
fn read(files: &[(&str, &[u8])]) -> Result<Discovery, ReadError> {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    discover(dir.path())
}

fn reading(files: &[(&str, &[u8])]) -> Reading {
    read(files).unwrap().reading
}

/// Reasons with their rows.
fn skipped(reading: &Reading) -> Vec<(&str, u64)> {
    reading.skipped.iter().map(|(reason, skipped)| (reason.as_str(), skipped.rows)).collect()
}

fn pair(at: usize, system: &str, user: &str, answer: &str) -> Value {
    json!({
        "request": {"model": "m", "messages": [{"role": "system", "content": system}, {"role": "user", "content": user}], "user": format!("u{}", at % 7)},
        "response": {"id": format!("chatcmpl-{at:06}"), "model": "m", "created": (MONDAY_MS + at as u64 * DAY_MS / 10) / 1000,
            "choices": [{"message": {"role": "assistant", "content": answer}}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": 40}}}
    })
}

const INTENT: &str = "You sort messages of bank customers. Answer with one intent: lost_card, new_card or refund.";
const SUMMARY: &str = "You summarise notes of meetings for the management board. Write one sentence without names.";

/// Two tasks, `n` rows each, in turns.
fn two_tasks(n: usize) -> Vec<Value> {
    let places = ["Oslo", "Lima", "Ulm", "Bern", "Rome"];
    (0..2 * n)
        .map(|at| {
            let place = places[at % 5];
            if at % 2 == 0 {
                pair(
                    at,
                    INTENT,
                    &format!("my card was lost in {place} on day {at}"),
                    ["lost_card", "new_card", "refund"][at % 3],
                )
            } else {
                pair(
                    at,
                    SUMMARY,
                    &format!("{place}: we spoke of item {at} and went home early"),
                    &format!("Meeting {at} in {place} was short."),
                )
            }
        })
        .collect()
}

fn lines(rows: &[Value]) -> Vec<u8> {
    rows.iter().flat_map(|row| format!("{row}\n").into_bytes()).collect()
}

#[test]
fn two_tasks_are_found_with_exact_volumes() {
    let found = read(&[("log.jsonl", &lines(&two_tasks(100)))]).unwrap();
    assert_eq!((found.reading.rows, found.reading.calls, found.reading.n_skipped()), (200, 200, 0));
    assert_eq!(found.reading.formats, BTreeMap::from([("OpenAI".to_owned(), 200)]));
    assert_eq!(
        found.tasks.len(),
        2,
        "{:?}",
        found.tasks.iter().map(|task| (&task.name, task.total().calls)).collect::<Vec<_>>()
    );
    let intent = found.tasks.iter().find(|task| task.kind.kind == TaskKind::Classify).unwrap();
    let summary = found.tasks.iter().find(|task| task.kind.kind == TaskKind::Generate).unwrap();
    // 60 × $1 + 40 × $0.5 + 10 × $2 a million tokens, a hundred times.
    let hundred = Volume {
        calls: 100,
        input_tokens: 10_000,
        output_tokens: 1000,
        cached_tokens: 4000,
        cost_picousd: 100 * 100_000_000,
        ..Volume::default()
    };
    assert_eq!((intent.total(), summary.total()), (hundred, hundred));
    // 20 days from Monday: ten rows a day, of which five are of each task.
    let weeks: Vec<(String, u64)> =
        intent.by_week().iter().map(|(week, volume)| (week.to_string(), volume.calls)).collect();
    assert_eq!(weeks, [("2026-W45".to_owned(), 35), ("2026-W46".to_owned(), 35), ("2026-W47".to_owned(), 30)]);
    assert_eq!(intent.by_model(), BTreeMap::from([("m", hundred)]));
    assert_eq!(intent.identity.by, IdentityBy::Template);
    assert_eq!(intent.traits.labels.keys().collect::<Vec<_>>(), ["lost_card", "new_card", "refund"]);
    let template = intent.identity.template.as_deref().unwrap();
    assert!(template.starts_with(INTENT) && template.contains("my card was lost in {}"), "{template}");
    let example = &intent.examples[0];
    assert!(example.place.ends_with("log.jsonl:1") && example.id == "chatcmpl-000000", "{example:?}");
    assert_eq!((example.group.as_deref(), example.weight), (Some("u0"), 1.0));
    assert_eq!((intent.sampling.with_text, intent.sampling.examples, intent.sampling.fraction), (100, 100, 1.0));
    assert_eq!(intent.sampling.volume_interval, [1.0, 1.0]);
    assert_ne!(intent.name, summary.name);
}

/// Documents of three forms under one instruction: one task, and what a specialist reads is the message as it will arrive, with every number.
#[test]
fn forms_of_a_document_are_one_task_and_numbers_stay() {
    const INSTRUCTION: &str = "Read the vendor, the number, the date and the total out of the invoice below. Answer with JSON alone, no other text.";
    let vendors = ["Ember Foods", "Iris Clinic", "Delta Paper", "Lumen Water", "Birch & Sons"];
    let rows: Vec<Value> = (0..120)
        .map(|at| {
            let (vendor, number) = (vendors[at * 7 % 5], 10_000 + at * 379);
            let (date, total) = (format!("2026-{:02}-{:02}", 1 + at % 12, 1 + at % 28), format!("{}.{:02}", at * 31 + 9, at % 100));
            let text = match at % 3 {
                0 => format!("{vendor}\nInvoice INV-{number} of {date}\nAttention of the accounting department\nTotal due EUR {total}, payable within thirty days"),
                1 => format!("Dear customer, for the goods that you ordered from us we charge {total} EUR in all.\nOur reference INV-{number}, {date}.\nWith kind regards, {vendor}"),
                _ => format!("INVOICE\nNo. INV-{number}\nDate: {date}\nSupplier: {vendor}\nAmount (incl. VAT): {total} EUR\nPlease pay to our usual account"),
            };
            let answer = json!({"vendor": vendor, "number": format!("INV-{number}"), "date": date, "total": total});
            pair(at, INSTRUCTION, &text, &format!("```json\n{answer}\n```"))
        })
        .collect();
    let found = read(&[("log.jsonl", &lines(&rows))]).unwrap();
    let [task] = &found.tasks[..] else {
        panic!("{:?}", found.tasks.iter().map(|task| &task.name).collect::<Vec<_>>())
    };
    assert_eq!((task.kind.kind, task.total().calls), (TaskKind::Extract, 120), "{:?}", task.kind);
    assert!(task.traits.copied > 0.85, "all but `INV`, which the forms say: {}", task.traits.copied);
    for example in &task.examples {
        let message = rows.iter().find(|row| row["response"]["id"] == json!(example.id)).unwrap();
        assert_eq!(json!(example.input), message["request"]["messages"][1]["content"]);
    }
    // Nobody declared a schema: the answers have one.
    let (_, schema) = task.answer_schema().unwrap();
    let fields: Vec<&str> = schema.fields().iter().map(|field| field.name.as_str()).collect();
    assert_eq!(fields, ["date", "number", "total", "vendor"]);
    let file = metier_train::discover::act::task_file(task).unwrap();
    assert!(file.contains("kind = \"extract\"") && file.contains("schema.json was made from the answers"), "{file}");
    // A model slips now and then; a build would refuse a file with such a row.
    let mut slipped = rows.clone();
    for (at, answer) in
        [(7, "sorry"), (21, "{\"vendor\": 3, \"number\": \"x\", \"date\": \"2026-01-01\", \"total\": \"1\"}")]
    {
        slipped[at]["response"]["choices"][0]["message"]["content"] = json!(answer);
    }
    let found = read(&[("log.jsonl", &lines(&slipped))]).unwrap();
    let file = metier_train::discover::act::task_file(&found.tasks[0]).unwrap();
    assert!(file.contains("2 rows have an answer that does not meet the schema"), "{file}");

    // The same with a field that no span can be: it is to be written.
    let rows: Vec<Value> = rows
        .into_iter()
        .map(|mut row| {
            let said = &mut row["response"]["choices"][0]["message"]["content"];
            *said = json!(said.as_str().unwrap().replacen('{', "{\"paid\":true,", 1));
            row
        })
        .collect();
    let found = read(&[("log.jsonl", &lines(&rows))]).unwrap();
    assert!(found.tasks.iter().all(|task| task.kind.kind == TaskKind::Generate));
    let why = &found.tasks[0].kind.evidence;
    assert!(why.contains("its field `paid` holds truth values"), "{why}");
}

#[test]
fn ids_stay_from_run_to_run() {
    let ids = |rows: &[Value]| {
        let mut ids: Vec<String> =
            read(&[("log.jsonl", &lines(rows))]).unwrap().tasks.into_iter().map(|task| task.id).collect();
        ids.sort();
        ids
    };
    let rows = two_tasks(100);
    let first = ids(&rows);
    assert_eq!(first, ids(&rows));
    let mut shuffled = rows.clone();
    shuffled.reverse();
    assert_eq!(first, ids(&shuffled), "the order of rows does not matter");
    assert_eq!(first, ids(&rows[..120]), "nor how many there are");
    assert_eq!(first, ids(&two_tasks(400)));
}

#[test]
fn every_form_of_file_is_read_alike() {
    let rows = two_tasks(20);
    let plain = lines(&rows);
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(&plain).unwrap();
    let flat = |row: &Value| {
        let said = &row["request"]["messages"];
        json!({"id": row["response"]["id"], "model": "m", "created_at": row["response"]["created"], "user": row["request"]["user"],
            "messages": said.to_string(), "response": row["response"]["choices"][0]["message"]["content"], "prompt_tokens": 100, "completion_tokens": 10, "usage": row["response"]["usage"].to_string()})
    };
    let quoted = |cell: &Value| {
        format!("\"{}\"", cell.as_str().map_or_else(|| cell.to_string(), str::to_owned).replace('"', "\"\""))
    };
    let table = |delimiter: &str| {
        let mut table = String::new();
        for (at, row) in rows.iter().map(flat).enumerate() {
            let row = row.as_object().unwrap();
            if at == 0 {
                table.push_str(&row.keys().cloned().collect::<Vec<_>>().join(delimiter));
                table.push('\n');
            }
            table.push_str(&row.values().map(quoted).collect::<Vec<_>>().join(delimiter));
            table.push_str("\r\n");
        }
        table.into_bytes()
    };
    let expected = read(&[("log.jsonl", &plain)]).unwrap();
    let bom = [b"\xef\xbb\xbf".as_slice(), &plain].concat();
    let files: [(&str, Vec<u8>); 9] = [
        ("log.jsonl.gz", gz.finish().unwrap()),
        ("log.jsonl.zst", zstd::bulk::compress(&plain, 1).unwrap()),
        ("log", bom),
        ("array.json", Value::from(rows.clone()).to_string().into_bytes()),
        ("pretty.json", serde_json::to_vec_pretty(&rows).unwrap()),
        ("wrapped.json", serde_json::to_vec_pretty(&json!({"data": rows})).unwrap()),
        ("table.csv", table(",")),
        ("table.tsv", table("\t")),
        ("table.txt", table(";")),
    ];
    for (name, bytes) in files {
        let found = read(&[(name, &bytes)]).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(found.reading.calls, 40, "{name}: {:?}", found.reading);
        let volumes = |found: &Discovery| {
            found.tasks.iter().map(|task| (task.id.clone(), task.total())).collect::<BTreeMap<_, _>>()
        };
        assert_eq!(volumes(&found), volumes(&expected), "{name}");
    }
}

#[test]
fn bad_rows_are_counted_with_their_reason_and_place() {
    let mut log = lines(&two_tasks(3));
    log.extend(b"not json at all\n\n{\"level\":\"info\"}\n[1,2]\n5\n\xff\xfe{}\n");
    log.extend(b"{\"request\": {\"mess");
    let reading = reading(&[("log.jsonl", &log)]);
    assert_eq!((reading.rows, reading.calls), (12, 6));
    assert_eq!(
        skipped(&reading),
        [
            ("fields of no known log format", 1),
            ("not UTF-8", 1),
            ("not a JSON object", 2),
            ("not valid JSON", 1),
            ("the end of the file cuts it off", 1)
        ]
    );
    let place = &reading.skipped["not valid JSON"].places[0];
    assert!(place.ends_with("log.jsonl:7"), "{place}");
    assert_eq!(reading.rows, reading.calls + reading.n_skipped());
}

#[test]
fn a_row_without_end_is_skipped_in_bounded_memory() {
    let mut log = lines(&two_tasks(2));
    log.extend(b"{\"messages\": \"");
    log.extend(vec![b'x'; MAX_ROW_BYTES + 10]);
    log.extend(b"\"}\n");
    log.extend(lines(&two_tasks(3)));
    let long = reading(&[("log.jsonl", &log)]);
    assert_eq!(skipped(&long), [("a duplicate of an earlier row", 4), ("longer than 16 MiB", 1)]);
    assert_eq!((long.rows, long.calls), (11, 6));
    let mut array = b"[".to_vec();
    array.extend(log.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).collect::<Vec<_>>().join(&b','));
    array.push(b']');
    let in_array = reading(&[("log.json", &array)]);
    assert_eq!((in_array.rows, in_array.calls, skipped(&in_array)), (11, 6, skipped(&long)));
    // A quote that is never closed swallows the rest, but not the memory.
    let mut table = b"prompt,completion\na,b\n\"c,d\n".to_vec();
    table.extend(vec![b'x'; MAX_ROW_BYTES + 10]);
    let open = reading(&[("log.csv", &table)]);
    assert_eq!((open.calls, skipped(&open)), (1, vec![("longer than 16 MiB, or a quote that is never closed", 1)]));
}

#[test]
fn duplicated_exports_count_once() {
    let rows = two_tasks(10);
    let reading = reading(&[
        ("a/log.jsonl", &lines(&rows)),
        ("b/copy.jsonl", &lines(&rows)),
        ("b/more.jsonl", &lines(&two_tasks(12))),
    ]);
    assert_eq!((reading.rows, reading.calls, reading.files), (64, 24, 3));
    assert_eq!(skipped(&reading), [("a duplicate of an earlier row", 40)]);
    // Without a name: time and text.
    let row = json!({"input": "a", "output": "b", "timestamp": "2026-11-02T00:00:00Z"});
    let other = json!({"input": "a", "output": "b", "timestamp": "2026-11-02T00:00:01Z"});
    assert_eq!(self::reading(&[("log.jsonl", &lines(&[row.clone(), row, other]))]).calls, 2);
    // Without either, equal rows may be two calls; and small numbers are no names.
    let row = json!({"input": "a", "output": "b", "id": 7});
    assert_eq!(self::reading(&[("log.jsonl", &lines(&[row.clone(), row]))]).calls, 2);
}

#[test]
fn wrong_clocks_zones_and_prices_are_told_and_counted() {
    let row = |time: Value, extra: Value| {
        let mut row = json!({"model": "m", "input": "a", "output": "b", "timestamp": time, "prompt_tokens": 10, "completion_tokens": 1});
        row.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        row
    };
    let rows = [
        row(json!("2026-11-02T23:30:00-02:00"), json!({})),
        row(json!("2026-11-03 01:30:00"), json!({"cost": -1, "input": "another"})),
        row(json!("1970-01-01T00:00:05Z"), json!({})),
        row(json!("2031-01-01T00:00:00Z"), json!({})),
        row(json!("yesterday"), json!({"completion_tokens": -5})),
    ];
    let found = read(&[("log.jsonl", &lines(&rows))]).unwrap();
    let odd: Vec<(&str, u64)> =
        found.reading.odd.iter().map(|(what, rows)| (what.split([';', ',']).next().unwrap(), rows.rows)).collect();
    assert_eq!(
        odd,
        [
            ("cost below zero", 1),
            ("time before 2015 or in the future", 2),
            ("time that cannot be read", 1),
            ("time without a zone", 1),
            ("token counts below zero", 1)
        ]
    );
    assert_eq!(found.reading.calls, 5);
    let task = &found.tasks[0];
    let november: Week = "2026-W45".to_owned().try_into().unwrap();
    assert_eq!(task.weeks[&november]["m"].calls, 2);
    assert_eq!(task.undated["m"].calls, 3);
    assert_eq!(task.total().estimated, 1);
    assert_eq!((found.reading.first_ms, found.reading.last_ms), (Some(1_793_669_400_000), Some(1_793_669_400_000)));
}

#[test]
fn a_model_without_a_price_is_unpriced_not_free() {
    let rows = [
        json!({"model": "nobody", "input": "a", "output": "b", "prompt_tokens": 10, "completion_tokens": 1}),
        json!({"model": "openai/m", "input": "a", "output": "b", "prompt_tokens": 10, "completion_tokens": 1}),
    ];
    let found = read(&[("log.jsonl", &lines(&rows))]).unwrap();
    let total = found.tasks[0].total();
    assert_eq!((total.calls, total.unpriced, total.unpriced_input_tokens, total.cost_picousd), (2, 1, 10, 12_000_000));
    assert_eq!(found.reading.unpriced, BTreeMap::from([("nobody".to_owned(), 1)]));
}

#[test]
fn one_request_is_one_task() {
    let found = read(&[("log.jsonl", &lines(&two_tasks(1)[..1]))]).unwrap();
    assert_eq!((found.tasks.len(), found.tasks[0].total().calls, found.tasks[0].identity.by), (1, 1, IdentityBy::Rest));
    assert_eq!(found.tasks[0].examples.len(), 1);
}

#[test]
fn logs_without_texts_have_volumes() {
    let table = b"TIMESTAMP,ContextTokens,GeneratedTokens\n2026-11-02 18:17:03.9799600,4808,10\n2026-11-02 18:17:04.0319600,3180,8\n";
    let found = read(&[("code.csv", table)]).unwrap();
    let task = &found.tasks[0];
    assert_eq!(
        (task.identity.by, task.total().calls, task.total().input_tokens, task.examples.len()),
        (IdentityBy::Caller, 2, 7988, 0)
    );
    assert!(found.reading.notes[0].contains("without texts"));
}

#[test]
fn a_folder_may_hold_anything() {
    let rows = two_tasks(5);
    let mut cut = zstd::bulk::compress(&lines(&rows), 1).unwrap();
    cut.truncate(cut.len() - 20);
    let files: [(&str, &[u8]); 9] = [
        ("log.jsonl", &lines(&rows)),
        (
            "deep/er/spend.jsonl",
            &lines(&[
                json!({"request_id": "x1234567", "call_type": "acompletion", "spend": 0.1, "model": "m", "prompt_tokens": 5, "completion_tokens": 5, "startTime": "2026-11-02 10:00:00"}),
            ]),
        ),
        ("data.parquet", b"PAR1....PAR1"),
        ("old.zip", b"PK\x03\x04...."),
        ("wide.csv", b"\xff\xfea\0,\0b\0"),
        ("empty.jsonl", b""),
        ("cut.jsonl.zst", &cut),
        (".hidden.jsonl", b"{"),
        ("README.md", b"{\"input\":\"a\",\"output\":\"b\"}"),
    ];
    let reading = reading(&files);
    assert_eq!((reading.calls, reading.files), (11, 7));
    let reasons: Vec<&str> =
        reading.files_skipped.keys().map(|reason| reason.split([',', ':', ';']).next().unwrap()).collect();
    assert_eq!(
        reasons,
        [
            "UTF-16",
            "a name that no log has",
            "a zip archive",
            "compressed data that ends too early",
            "damaged Parquet",
            "empty"
        ]
    );
    assert_eq!(reading.formats.keys().collect::<Vec<_>>(), ["LiteLLM", "OpenAI"]);
}

#[test]
fn parquet_rows_are_records() {
    use parquet::{
        data_type::{ByteArray, ByteArrayType},
        file::writer::SerializedFileWriter,
        schema::parser::parse_message_type,
    };
    let schema = "message calls { REQUIRED BYTE_ARRAY input (UTF8); REQUIRED BYTE_ARRAY output (UTF8); }";
    let (schema, mut bytes) = (Arc::new(parse_message_type(schema).unwrap()), Vec::new());
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, Default::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    while let Some(mut column) = group.next_column().unwrap() {
        let values: Vec<ByteArray> = (0..7).map(|row| ByteArray::from(format!("text {row}").as_str())).collect();
        column.typed::<ByteArrayType>().write_batch(&values, None, None).unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
    let reading = reading(&[("calls.parquet", &bytes)]);
    assert_eq!((reading.calls, reading.rows, reading.files), (7, 7, 1));
    assert_eq!(reading.formats.keys().collect::<Vec<_>>(), ["input/output"]);
}

#[test]
fn nothing_to_read_is_an_error_that_says_why() {
    let check = |files: &[(&str, &[u8])], message: &str| {
        let error = read(files).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    };
    check(&[], "no call of a model in 0 files with 0 rows");
    check(&[("a.jsonl", b"{\"a\":1}\n{\"a\":2}\n")], "2 × fields of no known log format (e.g. ");
    let spec = br#"{"source": "docs", "StandardLoggingPayload": {"id": "str", "call_type": "str", "startTime": "float"}, "metadata": {"user": "str"}}"#;
    check(&[("spec.json", spec)], "in 1 file with 1 row: 1 × fields of no known log format");
    check(
        &[("spec.json", spec)],
        "has the fields `source`, `StandardLoggingPayload` (with `id`, `call_type`, `startTime`), `metadata` (with `user`)",
    );
    check(&[("spec.json", spec)], "looks like a record of LiteLLM: give each of those as a line of its own");
    check(
        &[("table.csv", b"name,price\nx,1\ny,2\n")],
        "has the fields `name`, `price`. What is read is a call a record: `messages`, or",
    );
    check(&[("a.parquet", b"PAR1")], "damaged Parquet");
    let error = Logs::find(&["/nowhere/at/all".into()], NOW_MS).unwrap_err().to_string();
    assert_eq!(error, "cannot read `/nowhere/at/all`");
}

#[test]
fn scores_meet_their_calls_and_streams_become_whole() {
    let observation = |at: usize| {
        json!({"id": format!("observation-{at}"), "trace_id": "trace-0001", "type": "GENERATION", "start_time": "2026-11-02 10:00:00",
        "provided_model_name": "m", "input": format!("question {at}"), "output": "yes"})
    };
    let score = json!({"trace_id": "trace-0001", "observation_id": "observation-1", "name": "gold_label", "value": 0, "string_value": "no", "data_type": "CATEGORICAL"});
    let found =
        read(&[("observations.jsonl", &lines(&[observation(0), observation(1)])), ("scores.jsonl", &lines(&[score]))])
            .unwrap();
    let gold: Vec<_> = found.tasks[0].examples.iter().map(|example| example.gold.clone()).collect();
    assert_eq!(gold, [None, Some(Gold::Label("no".to_owned()))]);
    assert_eq!((found.reading.rows, found.reading.calls, found.reading.n_skipped()), (3, 2, 0));
    let chunk = |id: &str, text: &str| json!({"id": id, "object": "chat.completion.chunk", "created": MONDAY_MS / 1000, "model": "m", "choices": [{"delta": {"content": text}}]});
    let chunks = [
        chunk("chatcmpl-1", "Santa"),
        chunk("chatcmpl-2", "No"),
        chunk("chatcmpl-1", " Claus"),
        chunk("chatcmpl-1", "!"),
    ];
    let found = read(&[("chunks.jsonl", &lines(&chunks))]).unwrap();
    assert_eq!((found.reading.rows, found.reading.calls), (4, 2));
    assert_eq!(found.tasks[0].total().estimated, 2);
}

/// Azure's published trace of one hour: real times and counts, no texts.
#[test]
fn a_real_trace_without_texts() {
    let data = std::env::var_os("METIER_DATA").map_or_else(|| "../../../shared/data".into(), std::path::PathBuf::from);
    let folder = data.join("azure_llm_trace_2023");
    if !folder.is_dir() {
        eprintln!("skipped: no `azure_llm_trace_2023` under METIER_DATA");
        return;
    }
    let found = discover(&folder).unwrap();
    let reading = &found.reading;
    // The README beside it is no log.
    assert_eq!((reading.calls, reading.formats["token counts"]), (28_185, 28_185));
    assert_eq!(found.tasks[0].total().calls, 28_185);
    assert!((found.tasks[0].traits.input_tokens.mean - (19_366.0 * 1155.0 + 8819.0 * 2048.0) / 28_185.0).abs() < 2.0);
}
