//! *Which form do JSON answers have?* Answers in; a JSON Schema that all of them meet and an extraction can be made of, or why there is none.
//!
//! Most calls that ask for JSON declare no schema: the prompt says what is wanted, and the answers show it. What is made here is as narrow as the answers
//! are alike: keys that all of them have are required, a key that is `null` at times may be, strings that are all dates are dates. One answer in twenty
//! may be of another form: models slip, and such rows teach nothing. A key that is rare is a field all the same: a specialist that never gives it is wrong
//! there, and is to be counted so.
//!
//! Deliberately absent: bounds and enumerations. What was not seen is not forbidden for that.

use std::{collections::BTreeMap, fmt};

use metier_model::{extract::Schema, features::fold};
use serde_json::{Map, Value, json};

use super::traits::unfenced;

/// Answers that are looked at.
const LOOKED_AT: usize = 2000;
/// One in so many may have another form.
const OTHERWISE: usize = 20;
/// Keys of an object, at most: where there are more, keys are values.
const MAX_KEYS: usize = 64;
/// Answers from which a form can be told.
const MIN_ANSWERS: usize = 10;

/// What an answer lacks to be one of an extraction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoForm(String);

impl fmt::Display for NoForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What one field holds, over all answers.
#[derive(Default)]
struct Seen {
    present: usize,
    kinds: Kinds,
    /// Of a list: its items' kinds.
    items: Kinds,
    all_dates: bool,
    fields: Fields,
}

type Fields = BTreeMap<String, Seen>;
/// How often each kind of value was there.
type Kinds = BTreeMap<&'static str, usize>;

/// Is that nearly all of them?
fn is_most(n: usize, of: usize) -> bool {
    n * OTHERWISE >= of * (OTHERWISE - 1)
}

/// The schema of what answers hold.
///
/// # Errors
/// Answers that are no objects, too many keys, or a field of a kind that an extraction has not (truth values, lists of objects, objects in objects of a field).
pub fn schema_of<'a>(answers: impl Iterator<Item = &'a str>) -> Result<Value, NoForm> {
    let (mut fields, mut n) = (Fields::new(), 0usize);
    let objects: Vec<Map<String, Value>> = answers
        .take(LOOKED_AT)
        .inspect(|_| n += 1)
        .filter_map(|answer| match serde_json::from_str(unfenced(answer)) {
            Ok(Value::Object(object)) => Some(object),
            _ => None,
        })
        .collect();
    if n < MIN_ANSWERS || !is_most(objects.len(), n) {
        return Err(NoForm(format!("{} of its {n} answers are JSON objects", objects.len())));
    }
    objects.iter().for_each(|object| look(object, &mut fields));
    let schema = object(&fields, objects.len(), "", 0)?;
    let n = objects.len();
    let parsed = Schema::parse(&schema.to_string()).map_err(|error| NoForm(error.to_string()))?;
    let meet = objects.into_iter().filter(|object| parsed.values(&Value::Object(object.clone())).is_ok()).count();
    if is_most(meet, n) { Ok(schema) } else { Err(NoForm(format!("{meet} of its {n} answers have one form"))) }
}

/// Answers that must have a field before it is told that no text holds its values.
const MIN_VALUES: usize = 20;
/// Share of a field's values that stand in their texts, below which spans cannot be what fills it.
const HELD: f64 = 0.2;

/// A field of words that hardly ever stand in the text (a tool's name, a verdict), and the share in which they do: what fills it must choose or write.
pub fn not_in_texts<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> Option<(String, f64)> {
    let mut held: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for (input, answer) in pairs.take(LOOKED_AT) {
        let Ok(Value::Object(object)) = serde_json::from_str(unfenced(answer)) else { continue };
        let text = fold(input);
        let inner = object.iter().flat_map(|(key, value)| match value {
            Value::Object(inner) => inner.iter().map(|(name, value)| (format!("{key}.{name}"), value)).collect(),
            value => vec![(key.clone(), value)],
        });
        for (key, value) in inner.take(MAX_KEYS) {
            let values = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
            // What is a date or a number there may be written otherwise in the text.
            let words = values.iter().filter_map(Value::as_str);
            for value in words.filter(|value| !value.contains(|c: char| c.is_ascii_digit())) {
                let (n, found) = held.entry(key.clone()).or_default();
                *n += 1;
                *found += usize::from(text.contains(&fold(value)));
            }
        }
    }
    let share = |(n, found): (usize, usize)| found as f64 / n as f64;
    held.into_iter()
        .filter(|(_, (n, _))| *n >= MIN_VALUES)
        .map(|(key, counts)| (key, share(counts)))
        .find(|(_, share)| *share < HELD)
}

fn look(object: &Map<String, Value>, fields: &mut Fields) {
    for (key, value) in object {
        // One more than is allowed is enough to know.
        if fields.len() > MAX_KEYS && !fields.contains_key(key) {
            continue;
        }
        let seen = fields.entry(key.clone()).or_insert_with(|| Seen { all_dates: true, ..Seen::default() });
        seen.present += 1;
        *seen.kinds.entry(kind(value)).or_default() += 1;
        match value {
            Value::Object(inner) => look(inner, &mut seen.fields),
            Value::Array(items) => items.iter().for_each(|item| *seen.items.entry(kind(item)).or_default() += 1),
            Value::String(text) => seen.all_dates &= is_date(text),
            _ => {}
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn object(fields: &Fields, n: usize, path: &str, depth: usize) -> Result<Value, NoForm> {
    if fields.is_empty() || fields.len() > MAX_KEYS {
        let where_ = if path.is_empty() { "they".to_owned() } else { format!("`{path}`") };
        return Err(NoForm(format!("{where_} have no key, or more than {MAX_KEYS} different ones")));
    }
    let mut properties = Map::new();
    for (key, seen) in fields {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        properties.insert(key.clone(), field(seen, &path, depth)?);
    }
    let required: Vec<&String> = fields.iter().filter(|(_, seen)| seen.present == n).map(|(key, _)| key).collect();
    Ok(json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false}))
}

fn field(seen: &Seen, path: &str, depth: usize) -> Result<Value, NoForm> {
    let of = |what: &str| NoForm(format!("its field `{path}` holds {what}, which no span of a text can be"));
    let usual = |kinds: &Kinds| -> Vec<&'static str> {
        let all = kinds.iter().filter(|(kind, _)| **kind != "null").map(|(_, n)| n).sum::<usize>();
        kinds.iter().filter(|(kind, n)| **kind != "null" && *n * OTHERWISE > all).map(|(kind, _)| *kind).collect()
    };
    let nullable = seen.kinds.contains_key("null");
    let kinds = usual(&seen.kinds);
    let one = |kinds: &[&'static str]| -> Result<&'static str, NoForm> {
        match kinds {
            // Nothing but `null`, or empty lists: of whatever is to come nothing is known.
            [] => Ok("string"),
            [one @ ("string" | "number" | "integer")] => Ok(*one),
            ["integer", "number"] => Ok("number"),
            [other] => Err(of(match *other {
                "boolean" => "truth values",
                "array" => "lists of lists",
                _ => "objects",
            })),
            _ => Err(of(&format!("values of several kinds ({})", kinds.join(", ")))),
        }
    };
    if kinds == ["object"] && !nullable && depth == 0 {
        return object(&seen.fields, seen.present, path, depth + 1);
    }
    if kinds == ["array"] && !nullable {
        return Ok(json!({"type": "array", "items": {"type": one(&usual(&seen.items))?}}));
    }
    let name = one(&kinds)?;
    let mut node = Map::new();
    node.insert("type".to_owned(), if nullable { json!([name, "null"]) } else { json!(name) });
    if name == "string" && seen.all_dates && !kinds.is_empty() {
        node.insert("format".to_owned(), json!("date"));
    }
    Ok(Value::Object(node))
}

/// `2026-11-27`.
fn is_date(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() == 10
        && bytes
            .iter()
            .enumerate()
            .all(|(at, byte)| if at == 4 || at == 7 { *byte == b'-' } else { byte.is_ascii_digit() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use metier_model::extract::Schema;

    use super::*;

    fn of(answers: &[&str]) -> Result<Value, String> {
        let many: Vec<&str> = answers.iter().copied().cycle().take(12.max(answers.len())).collect();
        schema_of(many.into_iter()).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_made_is_a_schema_that_all_answers_meet() {
        let answers = [
            "```json\n{\"vendor\": \"A\", \"due\": \"2026-11-27\", \"total\": {\"amount\": 3, \"currency\": \"EUR\"}, \"po\": null, \"parts\": []}\n```",
            "{\"vendor\": \"B\", \"due\": \"2026-01-02\", \"total\": {\"amount\": 2.5, \"currency\": \"EUR\"}, \"po\": \"7\", \"parts\": [\"x\"], \"note\": \"n\"}",
        ];
        let schema = of(&answers).unwrap();
        assert_eq!(
            schema,
            json!({
                "type": "object", "additionalProperties": false, "required": ["due", "parts", "po", "total", "vendor"],
                "properties": {
                    "vendor": {"type": "string"}, "due": {"type": "string", "format": "date"}, "po": {"type": ["string", "null"]},
                    "note": {"type": "string"}, "parts": {"type": "array", "items": {"type": "string"}},
                    "total": {
                        "type": "object", "additionalProperties": false, "required": ["amount", "currency"],
                        "properties": {"amount": {"type": "number"}, "currency": {"type": "string"}}
                    },
                }
            })
        );
        let parsed = Schema::parse(&schema.to_string()).unwrap();
        for answer in answers {
            let value = serde_json::from_str(unfenced(answer)).unwrap();
            assert!(parsed.values(&value).is_ok(), "{answer}: {:?}", parsed.values(&value));
        }
    }

    #[test]
    fn what_no_span_can_be_is_named() {
        let no = |answers: &[&str], why: &str| {
            let error = of(answers).unwrap_err();
            assert!(error.contains(why), "{error}");
        };
        no(&["{\"a\": true}"], "`a` holds truth values");
        no(&["{\"a\": [{\"b\": 1}]}"], "`a` holds objects");
        no(&["{\"a\": {\"b\": {\"c\": 1}}}"], "`a.b` holds objects");
        no(&["{\"a\": 1}", "{\"a\": \"x\"}"], "`a` holds values of several kinds (integer, string)");
        no(&["{\"a\": 1}", "sorry"], "6 of its 12 answers are JSON objects");
        no(&["{}"], "no key");
        let keys = (0..100).map(|at| format!("{{\"k{at}\": 1}}")).collect::<Vec<_>>();
        no(&keys.iter().map(String::as_str).collect::<Vec<_>>(), "more than 64");
        assert!(schema_of(["{\"a\": 1}"].into_iter()).is_err(), "one answer is no form");
        // What has to be chosen is no span.
        let called = |tool: &str| {
            let pairs: Vec<(String, String)> = (0..30)
                .map(|at| {
                    let answer = json!({"tool": tool, "args": {"who": "ada"}});
                    (format!("return order N{at} of Ada"), answer.to_string())
                })
                .collect();
            not_in_texts(pairs.iter().map(|(input, answer)| (input.as_str(), answer.as_str())))
        };
        assert_eq!(called("create_refund"), Some(("tool".to_owned(), 0.0)));
        assert_eq!(called("Return"), None);
        // One in twenty may slip.
        let mut answers = vec!["{\"a\": \"x\"}"; 77];
        answers.extend(["{\"a\": 1}", "sorry", "{\"a\": [\"x\"]}"]);
        let schema = json!({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": false});
        assert_eq!(of(&answers), Ok(schema));
    }
}
