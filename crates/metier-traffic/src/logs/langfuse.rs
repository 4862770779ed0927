//! Langfuse: observations and scores, from its export to blob storage (snake case), its API and its console (camel case). Times are UTC without a
//! zone. Token counts lie in `usage_details`, where parts of the input (cached, audio) have names of their own beside `input`.

use serde_json::Value;

use super::{
    Row, Score, Unread, one,
    value::{Object, answer, field, number, object, parsed, text},
};
use crate::exchange::{Exchange, Speaker, Verdict};

const TRACE: [&str; 2] = ["trace_id", "traceId"];
const OBSERVATION: [&str; 2] = ["observation_id", "observationId"];
const KINDS: [&str; 11] = [
    "GENERATION",
    "SPAN",
    "EVENT",
    "AGENT",
    "TOOL",
    "CHAIN",
    "RETRIEVER",
    "EVALUATOR",
    "EMBEDDING",
    "GUARDRAIL",
    "TRACE",
];

pub(super) fn is(record: &Object) -> bool {
    let kind = text(record, &["type"]).is_some_and(|kind| KINDS.contains(&kind.as_str()));
    let traced = field(record, &TRACE).is_some();
    (kind && (traced || record.contains_key("id"))) || (traced && is_score(record)) || is_trace(record)
}

fn is_score(record: &Object) -> bool {
    let has = |name: &str| record.contains_key(name);
    has("name")
        && has("value")
        && ["data_type", "dataType", "source", "string_value", "stringValue"].iter().any(|name| has(name))
}

fn is_trace(record: &Object) -> bool {
    let has = |name: &str| record.contains_key(name);
    has("timestamp") && has("name") && (has("user_id") || has("userId")) && (has("project_id") || has("projectId"))
}

pub(super) fn read(record: &Object) -> Result<Row, Unread> {
    if is_score(record) {
        return score(record);
    }
    match text(record, &["type"]).as_deref() {
        Some("GENERATION") => {}
        Some("EMBEDDING") => return Err(Unread::OtherWork),
        _ => return Err(Unread::NoCall),
    }
    let mut call = Exchange { id: text(record, &["id"]), ..Exchange::default() };
    call.model = text(record, &["provided_model_name", "providedModelName", "model", "model_id"]).unwrap_or_default();
    call.named = text(record, &["prompt_name", "promptName", "name", "trace_name", "traceName"]);
    call.group = text(record, &["session_id", "sessionId", "user_id", "userId"]).or_else(|| text(record, &TRACE));
    call.times(record, &["start_time", "startTime"], &["end_time", "endTime"], true);
    if let Some(details) = object(record, &["usage_details", "usageDetails"]) {
        let sum = |part: &str| {
            let counts = details.iter().filter(|(name, _)| name.contains(part)).filter_map(|(_, count)| number(count));
            counts.fold(None, |sum, count| Some(sum.unwrap_or(0.0) + count))
        };
        let cached = details.iter().filter(|(name, _)| name.contains("cache") && !name.contains("creation"));
        let cached = cached.filter_map(|(_, count)| number(count)).sum();
        call.counts(sum("input"), sum("output"), Some(cached));
    }
    if call.tokens.is_none()
        && let Some(usage) = object(record, &["usage"])
    {
        let count = |names: &[&str]| field(&usage, names).and_then(number);
        call.counts(
            count(&["input", "promptTokens", "prompt_tokens"]),
            count(&["output", "completionTokens", "completion_tokens"]),
            None,
        );
    }
    if call.tokens.is_none() {
        call.usage(record);
    }
    call.cost(record, &["total_cost", "totalCost", "calculatedTotalCost"]);
    if let Some(input) = field(record, &["input"]) {
        let input = parsed(input);
        match input.as_object() {
            Some(body) if body.contains_key("messages") || body.contains_key("contents") => call.body(body),
            _ => call.said(input.as_ref()),
        }
    }
    call.answer = field(record, &["output"]).and_then(answer);
    // Some integrations log the whole conversation as output.
    if call.messages.last().is_some_and(|said| said.by == Speaker::Assistant) && call.answer.is_none() {
        call.answer = call.messages.pop().map(|said| said.text);
    }
    if let Some(parameters) = object(record, &["model_parameters", "modelParameters"]) {
        call.contract(&parameters);
    }
    if let Some(tools) = object(record, &["tool_definitions", "toolDefinitions"]).filter(|_| call.tools.is_empty()) {
        call.tools = tools.keys().cloned().collect();
        call.tools.sort();
    }
    call.failed = text(record, &["level"]).is_some_and(|level| level == "ERROR");
    one(call)
}

fn score(record: &Object) -> Result<Row, Unread> {
    let of = text(record, &OBSERVATION).or_else(|| text(record, &TRACE)).ok_or(Unread::Empty)?;
    let name = text(record, &["name"]).unwrap_or_default();
    let words = text(record, &["string_value", "stringValue"]);
    let kind = text(record, &["data_type", "dataType"]).unwrap_or_default();
    let value = field(record, &["value"]);
    let corrected = kind == "CORRECTION"
        || ["label", "gold", "expected", "correction"].iter().any(|word| name.to_lowercase().contains(word));
    let verdict = match (words, value.and_then(number)) {
        (Some(words), _) if corrected => Verdict::Label(words),
        (_, Some(value)) => Verdict::Score { name, value },
        (Some(words), None) => Verdict::Label(words),
        (None, None) => match value {
            Some(Value::String(words)) => Verdict::Label(words.clone()),
            _ => return Err(Unread::Empty),
        },
    };
    Ok(Row::Score(Score { of, verdict }))
}
