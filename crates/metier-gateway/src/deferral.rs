//! What a specialist says when it is asked, and how a language model is asked in its place.
//!
//! Pure text: the deferred request's messages, the label in a model's answer, and the shape that the caller asked for.

use metier_model::{extract::Schema, specialist::sets::in_json};
use metier_traffic::{
    said::{labels_in, object_in},
    wire::{ChatRequest, Message, ResponseFormat, Role},
};
use serde_json::json;

use crate::expert::{Expert, Pen};

/// Most tokens that a language model may spend on a label.
const MAX_LABEL_TOKENS: u32 = 64;
/// Most tokens that it may spend on a list of labels.
const MAX_LIST_TOKENS: u32 = 512;
/// Most tokens that it may spend on an answer in JSON.
const MAX_JSON_TOKENS: u32 = 2_048;

/// The request that a deferred text becomes: the task's instruction, its labels, and the text.
/// `max_tokens` is the caller's limit, which may be tighter than ours.
/// Where its answers are written there are no labels: the instruction alone, and the form that an answer has.
pub(crate) fn request_for(expert: &dyn Expert, text: String, model: &str, max_tokens: Option<u32>) -> ChatRequest {
    if let Some(pen) = expert.pen() {
        // Another model has other tokens: twice as many are enough for the same words.
        let most = pen.max_tokens.saturating_mul(2);
        let max_tokens = Some(max_tokens.map_or(most, |limit| limit.min(most)));
        let request = ChatRequest::new(model, messages(expert.instruction().to_owned(), text));
        return ChatRequest { temperature: Some(0.0), max_tokens, response_format: form(pen), ..request };
    }
    let mut system = expert.instruction().trim().to_owned();
    if let Some(schema) = expert.schema() {
        system.push_str("\n\nAnswer with one JSON object that meets this JSON Schema, and nothing else. Give only values that stand in the text; leave out what does not.\n");
        system.push_str(schema.source());
        return asked(system, text, model, max_tokens, MAX_JSON_TOKENS);
    }
    system.push_str(if expert.gives_several() {
        "\n\nSeveral of these labels may apply, or none. Answer with a JSON list of those that do, as they are written here, and nothing else; \
         with [] if none does:\n"
    } else {
        "\n\nAnswer with exactly one of these labels, as it is written here, and nothing else:\n"
    });
    for label in expert.labels() {
        system.push_str("- ");
        system.push_str(label);
        system.push('\n');
    }
    let limit = if expert.gives_several() { MAX_LIST_TOKENS } else { MAX_LABEL_TOKENS };
    asked(system, text, model, max_tokens, limit)
}

fn asked(system: String, text: String, model: &str, max_tokens: Option<u32>, limit: u32) -> ChatRequest {
    let max_tokens = Some(max_tokens.map_or(limit, |wanted| wanted.min(limit)));
    ChatRequest { temperature: Some(0.0), max_tokens, ..ChatRequest::new(model, messages(system, text)) }
}

/// The JSON object in a model's answer, if it meets the schema; what stands around it (a fence, a sentence) is cut off.
pub(crate) fn answer_of(answer: &str, schema: Option<&Schema>) -> Result<String, String> {
    let value = object_in(answer)?;
    if let Some(schema) = schema {
        schema.values(&value)?;
    }
    Ok(value.to_string())
}

/// The request by which a specialist's own decoder is asked: the instruction and the text, greedily, as it was when the specialist was proven.
pub(crate) fn request_for_pen(expert: &dyn Expert, pen: &Pen, text: String, limit: Option<u32>) -> ChatRequest {
    ChatRequest {
        temperature: Some(0.0),
        max_tokens: Some(limit.map_or(pen.max_tokens, |limit| limit.min(pen.max_tokens))),
        seed: Some(0),
        response_format: form(pen),
        logprobs: true,
        top_logprobs: Some(0),
        ..ChatRequest::new(expert.name(), messages(expert.instruction().to_owned(), text))
    }
}

fn messages(system: String, text: String) -> Vec<Message> {
    vec![Message { role: Role::System, content: system }, Message { role: Role::User, content: text }]
}

fn form(pen: &Pen) -> ResponseFormat {
    match &pen.schema {
        Some(schema) => ResponseFormat::JsonSchema(json!({"name": "answer", "schema": schema})),
        None => ResponseFormat::Text,
    }
}

/// The label that a model's answer names: the one it equals, else the only one it contains, letter case aside. A label inside a
/// longer one that is there too does not count.
pub(crate) fn label_of<'a>(answer: &str, labels: &'a [String]) -> Option<&'a str> {
    let answer =
        answer.trim().trim_matches(|c: char| matches!(c, '"' | '\'' | '`' | '.' | '*' | '-') || c.is_whitespace());
    let answer = answer.to_lowercase();
    let lower: Vec<String> = labels.iter().map(|label| label.to_lowercase()).collect();
    if let Some(idx) = lower.iter().position(|label| *label == answer) {
        return Some(&labels[idx]);
    }
    let found: Vec<usize> = (0..labels.len()).filter(|idx| contains(&answer, &lower[*idx])).collect();
    let mut outermost =
        found.iter().filter(|idx| !found.iter().any(|other| other != *idx && lower[*other].contains(&lower[**idx])));
    match (outermost.next(), outermost.next()) {
        (Some(idx), None) => Some(&labels[*idx]),
        _ => None,
    }
}

/// Whether a text contains a label as a word of its own.
fn contains(text: &str, label: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    !label.is_empty()
        && text.match_indices(label).any(|(at, _)| {
            !text[..at].chars().next_back().is_some_and(is_part)
                && !text[at + label.len()..].chars().next().is_some_and(is_part)
        })
}

/// A label in the shape that the caller asked for: bare, or as a JSON object. `confidence` is `None` when a language model
/// answered: its own is no calibrated score.
pub(crate) fn in_format(label: &str, confidence: Option<f32>, format: &ResponseFormat) -> String {
    match format {
        // A label is what it is: an expression or a list that does not allow it changes nothing.
        ResponseFormat::Text | ResponseFormat::Regex(_) | ResponseFormat::Choice(_) => label.to_owned(),
        ResponseFormat::JsonObject | ResponseFormat::JsonSchema(_) => {
            let confidence = confidence.map(|score| (f64::from(score) * 1e4).round() / 1e4);
            json!({"label": label, "confidence": confidence}).to_string()
        }
    }
}

/// A list of labels in the shape that the caller asked for: `["a","b"]`, or a JSON object that holds it.
pub(crate) fn list_in_format(list: &str, confidence: Option<f32>, format: &ResponseFormat) -> String {
    match format {
        ResponseFormat::Text | ResponseFormat::Regex(_) | ResponseFormat::Choice(_) => list.to_owned(),
        ResponseFormat::JsonObject | ResponseFormat::JsonSchema(_) => {
            let confidence = confidence.map(|score| (f64::from(score) * 1e4).round() / 1e4);
            let labels: serde_json::Value = serde_json::from_str(list).unwrap_or_default();
            json!({"labels": labels, "confidence": confidence}).to_string()
        }
    }
}

/// What a language model answered to a text of this specialist's: its label or labels in the caller's shape, or as it is.
pub(crate) fn answered(expert: &dyn Expert, text: &str, format: &ResponseFormat) -> String {
    let labels = expert.labels();
    if expert.gives_several() {
        return match labels_in(text, labels) {
            Some(set) => list_in_format(&in_json(set.iter().map(|label| labels[*label].as_str())), None, format),
            None => without_label(text, format),
        };
    }
    match label_of(text, labels) {
        Some(label) => in_format(label, None, format),
        None => without_label(text, format),
    }
}

/// A language model's answer that names no label: as it is, or as JSON that cannot be taken for one.
pub(crate) fn without_label(answer: &str, format: &ResponseFormat) -> String {
    match format {
        ResponseFormat::Text | ResponseFormat::Regex(_) | ResponseFormat::Choice(_) => answer.to_owned(),
        ResponseFormat::JsonObject | ResponseFormat::JsonSchema(_) => {
            json!({"label": null, "confidence": null, "text": answer}).to_string()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_in_answers() {
        let labels: Vec<String> = ["card", "card_lost", "Refund", "top up"].map(str::to_owned).to_vec();
        let check = |answer: &str, expected: Option<&str>| assert_eq!(label_of(answer, &labels), expected, "{answer}");
        check("card", Some("card"));
        check(" \"REFUND\".\n", Some("Refund"));
        check("The label is card_lost.", Some("card_lost"));
        check("I would say: top up", Some("top up"));
        check("card or refund", None);
        check("a refunded discard", None);
        check("", None);
        check("no idea", None);
    }

    #[test]
    fn answers_in_json() {
        let text = r#"{"type": "object", "required": ["a"], "properties": {"a": {"type": "number"}}}"#;
        let schema = Schema::parse(text).expect("a schema");
        let check = |answer: &str| answer_of(answer, Some(&schema));
        assert_eq!(check("Sure:\n```json\n{\"a\": 3}\n```"), Ok("{\"a\":3}".to_owned()));
        assert_eq!(check("{\"a\": \"3\"}"), Err("`a` cannot be \"3\"".to_owned()));
        assert_eq!(check("none"), Err("it holds no JSON object".to_owned()));
        assert!(check("} {").is_err() && check("{\"a\": ").is_err());
    }

    #[test]
    fn lists_of_labels() {
        assert_eq!(list_in_format("[\"a\"]", Some(0.5), &ResponseFormat::Text), "[\"a\"]");
        let whole = r#"{"labels":["a","b"],"confidence":0.9313}"#;
        assert_eq!(list_in_format("[\"a\",\"b\"]", Some(0.93126), &ResponseFormat::JsonObject), whole);
        assert_eq!(list_in_format("[]", None, &ResponseFormat::JsonObject), r#"{"labels":[],"confidence":null}"#);
    }

    #[test]
    fn formats() {
        assert_eq!(in_format("card", Some(0.5), &ResponseFormat::Text), "card");
        assert_eq!(
            in_format("a\"b", Some(0.93126), &ResponseFormat::JsonObject),
            r#"{"label":"a\"b","confidence":0.9313}"#
        );
        assert_eq!(without_label("x", &ResponseFormat::JsonObject), r#"{"label":null,"confidence":null,"text":"x"}"#);
        assert_eq!(without_label("x", &ResponseFormat::Text), "x");
    }
}
