//! *Which form do answers have that came without a schema?* Many logs hold JSON answers and no `response_format`: what was asked for stands in the prompt, in
//! words. An extraction needs fields, so they are read off the answers: every key that occurs, and what its values are.
//!
//! In: outputs. Out: a JSON Schema that the answers meet, all but one in twenty; or nothing, where they take no one form. A field that is rare is a field all the
//! same: a specialist that never gives it is wrong there, and is to be counted so.
//!
//! Deliberately absent: bounds and enumerations. What was not seen is not forbidden for that.

use std::collections::BTreeMap;

use metier_model::extract::Schema;
use serde_json::{Map, Value, json};

use super::{task::Example, traits::unfenced};

/// Answers that are looked at.
const LOOKED_AT: usize = 2000;
/// With fewer there is no form to be seen.
const MIN_ANSWERS: usize = 20;
/// More keys are no fields but data.
const MAX_KEYS: usize = 200;
/// One in so many may have another form.
const OTHERWISE: usize = 20;

/// How often a key's values were what.
#[derive(Default)]
struct Seen {
    text: usize,
    integer: usize,
    number: usize,
    list: usize,
    null: usize,
    /// What spans cannot fill: booleans, lists of anything else, deeper objects.
    other: usize,
    inner: BTreeMap<String, Seen>,
    object: usize,
}

impl Seen {
    fn add(&mut self, value: &Value, depth: usize) {
        match value {
            Value::Null => self.null += 1,
            Value::String(_) => self.text += 1,
            Value::Number(number) if number.is_f64() => self.number += 1,
            Value::Number(_) => self.integer += 1,
            Value::Array(values) if values.iter().all(Value::is_string) => self.list += 1,
            Value::Object(fields) if depth == 0 => {
                self.object += 1;
                fields.iter().for_each(|(key, value)| self.inner.entry(key.clone()).or_default().add(value, 1));
            }
            _ => self.other += 1,
        }
    }

    /// What most of its values are; none where spans cannot fill that.
    fn schema(&self) -> Option<Value> {
        let numbers = self.integer + self.number;
        let most = self.text.max(numbers).max(self.list).max(self.object);
        if self.other > most {
            return None;
        }
        if most > 0 && most == self.object {
            let inner: Option<Map<String, Value>> =
                self.inner.iter().map(|(key, seen)| Some((key.clone(), seen.schema()?))).collect();
            return Some(json!({"type": "object", "properties": inner?, "additionalProperties": false}));
        }
        let name = match most {
            // Only ever null: a text, if ever.
            0 => "string",
            n if n == self.text => "string",
            n if n == self.list => "array",
            _ if self.number > 0 => "number",
            _ => "integer",
        };
        let kind = if self.null > 0 || most == 0 { json!([name, "null"]) } else { json!(name) };
        Some(if name == "array" { json!({"type": kind, "items": {"type": "string"}}) } else { json!({"type": kind}) })
    }
}

/// The schema that these examples' answers meet.
pub(super) fn inferred(examples: &[Example]) -> Option<String> {
    let outputs = examples.iter().filter_map(|example| example.output.as_deref()).take(LOOKED_AT);
    let answers: Vec<Option<Value>> = outputs.map(|output| serde_json::from_str(unfenced(output)).ok()).collect();
    let is_most = |n: usize| n >= MIN_ANSWERS && n * OTHERWISE >= answers.len() * (OTHERWISE - 1);
    let objects: Vec<&Value> = answers.iter().flatten().filter(|answer| answer.is_object()).collect();
    if !is_most(objects.len()) {
        return None;
    }
    let mut top: BTreeMap<String, Seen> = BTreeMap::new();
    for (key, value) in objects.iter().filter_map(|answer| answer.as_object()).flatten() {
        top.entry(key.clone()).or_default().add(value, 0);
    }
    let n_keys = top.values().map(|seen| seen.inner.len().max(1)).sum::<usize>();
    if n_keys == 0 || n_keys > MAX_KEYS {
        return None;
    }
    let properties: Option<Map<String, Value>> =
        top.iter().map(|(key, seen)| Some((key.clone(), seen.schema()?))).collect();
    let text = json!({"type": "object", "properties": properties?, "additionalProperties": false}).to_string();
    let schema = Schema::parse(&text).ok()?;
    is_most(objects.iter().filter(|answer| schema.values(answer).is_ok()).count()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn examples(outputs: impl Iterator<Item = Value>) -> Vec<Example> {
        let example = |(at, output): (usize, Value)| Example {
            id: at.to_string(),
            place: format!("log:{at}"),
            time_ms: None,
            group: None,
            model: String::new(),
            input: "text".to_owned(),
            varies: Vec::new(),
            output: Some(output.to_string()),
            gold: None,
            weight: 1.0,
        };
        outputs.enumerate().map(example).collect()
    }

    #[test]
    fn every_key_is_a_field_of_what_its_values_are() {
        let answers = examples((0..100).map(|at| {
            let mut answer = json!({"vendor": format!("firm {at}"), "lines": at, "tags": ["a"], "due": null, "total": {"amount": 1.5, "currency": "EUR"}});
            if at == 7 {
                answer["rare"] = json!("seen once");
            }
            answer
        }));
        let schema = Schema::parse(&inferred(&answers).expect("they have one form")).expect("it can be used");
        let fields: Vec<&str> = schema.fields().iter().map(|field| field.name.as_str()).collect();
        assert_eq!(fields, ["due", "lines", "rare", "tags", "total.amount", "total.currency", "vendor"]);
        for (answer, meets) in [
            (json!({"vendor": "x"}), true),
            (json!({"due": "2026-01-01", "tags": ["a", "b"]}), true),
            (json!({"tags": "a"}), false),
            (json!({"lines": 1.5}), false),
            (json!({"other": "x"}), false),
        ] {
            assert_eq!(schema.values(&answer).is_ok(), meets, "{answer}");
        }
    }

    #[test]
    fn answers_of_no_one_form_have_no_schema() {
        let none = |outputs: Vec<Value>| assert_eq!(inferred(&examples(outputs.into_iter())), None);
        none((0..19).map(|_| json!({"a": "b"})).collect());
        none((0..100).map(|at| if at < 6 { json!("text") } else { json!({"a": "b"}) }).collect());
        none((0..100).map(|at| json!({"a": if at < 50 { json!("b") } else { json!(["b"]) }})).collect());
        none((0..100).map(|at| json!({"ok": at % 2 == 0})).collect());
        none((0..300).map(|at| json!({ format!("key {at}"): "b" })).collect());
        none((0..100).map(|_| json!({"a": {"b": {"c": "d"}}})).collect());
        none((0..100).map(|_| json!({})).collect());
        none((0..100).map(|_| json!(["a"])).collect());
    }
}
