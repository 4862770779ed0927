//! OpenTelemetry: spans by the semantic conventions for GenAI, in OTLP's JSON or one flat object a span. Older names are read too, as are
//! OpenLLMetry's (`gen_ai.prompt.0.content`) and OpenInference's (`llm.input_messages.0.message.content`). `gen_ai.usage.input_tokens`
//! includes what was cached. Texts are there only where their capture was switched on.

use serde_json::Value;

use super::{
    MAX_SPANS, Row, Unread,
    value::{Object, answer, field, number, parsed, text},
};
use crate::exchange::{Exchange, Said, Speaker};

/// Messages that are looked for under numbered names.
const MAX_NUMBERED: usize = 256;

pub(super) fn is(record: &Object) -> bool {
    let genai =
        |name: &String| name.starts_with("gen_ai.") || name.starts_with("llm.") || name == "openinference.span.kind";
    ["resourceSpans", "resource_spans"].iter().any(|name| record.contains_key(*name))
        || record.keys().any(genai)
        || (record.contains_key("attributes")
            && ["spanId", "span_id", "context", "traceId", "trace_id", "start_time", "startTimeUnixNano"]
                .iter()
                .any(|name| record.contains_key(*name)))
}

pub(super) fn read(record: &Object) -> Result<Row, Unread> {
    let mut calls = Vec::new();
    let mut other_work = false;
    let Some(resources) = field(record, &["resourceSpans", "resource_spans"]).and_then(Value::as_array) else {
        return Ok(Row::Calls(vec![span(record)?]));
    };
    let mut n_spans = 0;
    for resource in resources {
        for scope in list(resource, &["scopeSpans", "scope_spans", "instrumentationLibrarySpans"]) {
            for one in list(scope, &["spans"]).iter().filter_map(Value::as_object) {
                n_spans += 1;
                if n_spans > MAX_SPANS {
                    return Err(Unread::TooManySpans);
                }
                match span(one) {
                    Ok(call) => calls.push(call),
                    Err(error) => other_work |= error == Unread::OtherWork,
                }
            }
        }
    }
    match (calls.is_empty(), other_work) {
        (false, _) => Ok(Row::Calls(calls)),
        (true, true) => Err(Unread::OtherWork),
        (true, false) => Err(Unread::NoCall),
    }
}

fn list<'a>(value: &'a Value, names: &[&str]) -> &'a [Value] {
    let found = value.as_object().and_then(|object| field(object, names)).and_then(Value::as_array);
    found.map_or(&[], Vec::as_slice)
}

/// Attributes as one flat object, whether they are OTLP's list of pairs or an object.
fn attributes(value: Option<&Value>) -> Object {
    match value.map(parsed).as_deref() {
        Some(Value::Object(object)) => object.clone(),
        Some(Value::Array(pairs)) => {
            let pair = |pair: &Value| Some((pair.get("key")?.as_str()?.to_owned(), unwrapped(pair.get("value")?)));
            pairs.iter().filter_map(pair).collect()
        }
        _ => Object::new(),
    }
}

/// OTLP says of each value which type it is: `{"intValue": "5"}`.
fn unwrapped(value: &Value) -> Value {
    let Some((name, inner)) = value.as_object().and_then(|object| object.iter().next()) else { return value.clone() };
    match name.as_str() {
        "stringValue" | "intValue" | "doubleValue" | "boolValue" => inner.clone(),
        "arrayValue" => inner
            .get("values")
            .and_then(Value::as_array)
            .map_or(Value::Null, |values| values.iter().map(unwrapped).collect()),
        "kvlistValue" => Value::Object(attributes(inner.get("values"))),
        _ => value.clone(),
    }
}

fn span(record: &Object) -> Result<Exchange, Unread> {
    let mut all = attributes(field(record, &["attributes", "span_attributes", "SpanAttributes"]));
    all.extend(
        record
            .iter()
            .filter(|(name, _)| name.starts_with("gen_ai.") || name.starts_with("llm."))
            .map(|(name, value)| (name.clone(), value.clone())),
    );
    for event in record.get("events").and_then(Value::as_array).into_iter().flatten() {
        let of_event = attributes(event.get("attributes"));
        // The contents of prompts once were events of their own.
        for name in [
            "gen_ai.prompt",
            "gen_ai.completion",
            "gen_ai.input.messages",
            "gen_ai.output.messages",
            "gen_ai.system_instructions",
        ] {
            if let Some(value) = of_event.get(name) {
                all.insert(name.to_owned(), value.clone());
            }
        }
    }
    let work = flat_text(&all, &["gen_ai.operation.name", "openinference.span.kind", "llm.request.type"])
        .unwrap_or_default()
        .to_lowercase();
    match work.as_str() {
        "embeddings" | "embedding" | "image_generation" | "speech" | "rerank" | "reranker" => {
            return Err(Unread::OtherWork);
        }
        "execute_tool" | "invoke_agent" | "create_agent" | "invoke_workflow" | "tool" | "agent" | "chain"
        | "retriever" => return Err(Unread::NoCall),
        _ => {}
    }
    if !all.keys().any(|name| name.starts_with("gen_ai.") || name.starts_with("llm.")) {
        return Err(Unread::NoCall);
    }
    let mut call = Exchange {
        id: flat_text(&all, &["gen_ai.response.id"])
            .or_else(|| text(record, &["spanId", "span_id", "SpanId", "context.span_id"])),
        model: flat_text(
            &all,
            &[
                "gen_ai.response.model",
                "gen_ai.request.model",
                "llm.model_name",
                "llm.response.model",
                "llm.request.model",
            ],
        )
        .unwrap_or_default(),
        named: flat_text(
            &all,
            &["gen_ai.prompt.name", "gen_ai.agent.name", "traceloop.workflow.name", "traceloop.entity.name"],
        ),
        group: flat_text(&all, &["gen_ai.conversation.id", "session.id", "user.id", "enduser.id"])
            .or_else(|| text(record, &["traceId", "trace_id", "TraceId", "context.trace_id"])),
        ..Exchange::default()
    };
    call.times(
        record,
        &["startTimeUnixNano", "start_time_unix_nano", "start_time", "startTime", "Timestamp", "timestamp"],
        &["endTimeUnixNano", "end_time_unix_nano", "end_time", "endTime"],
        true,
    );
    let count = |names: &[&str]| flat(&all, names).and_then(number);
    call.counts(
        count(&[
            "gen_ai.usage.input_tokens",
            "gen_ai.usage.prompt_tokens",
            "llm.usage.prompt_tokens",
            "llm.token_count.prompt",
        ]),
        count(&[
            "gen_ai.usage.output_tokens",
            "gen_ai.usage.completion_tokens",
            "llm.usage.completion_tokens",
            "llm.token_count.completion",
        ]),
        count(&[
            "gen_ai.usage.cache_read.input_tokens",
            "gen_ai.usage.cache_read_input_tokens",
            "gen_ai.usage.input_tokens.cached",
            "llm.token_count.prompt_details.cache_read",
        ]),
    );
    if let Some(system) = flat(&all, &["gen_ai.system_instructions"]) {
        let mut as_said = Exchange::default();
        as_said.said(system);
        let text: Vec<String> = as_said.messages.into_iter().map(|said| said.text).collect();
        if !text.is_empty() {
            call.messages.push(Said { by: Speaker::System, text: text.join("\n") });
        }
    }
    match flat(&all, &["gen_ai.input.messages", "gen_ai.prompt", "llm.input_messages", "input.value"]) {
        Some(input) => {
            let input = parsed(input);
            match input.as_object() {
                Some(body) if body.contains_key("messages") => call.body(body),
                _ => call.said(input.as_ref()),
            }
        }
        None => call.messages.extend(
            numbered(&all, "gen_ai.prompt.", "")
                .or_else(|| numbered(&all, "llm.input_messages.", "message."))
                .unwrap_or_default(),
        ),
    }
    call.answer =
        match flat(&all, &["gen_ai.output.messages", "gen_ai.completion", "llm.output_messages", "output.value"]) {
            Some(output) => answer(output),
            None => {
                let said = numbered(&all, "gen_ai.completion.", "")
                    .or_else(|| numbered(&all, "llm.output_messages.", "message."));
                said.and_then(|said| said.into_iter().next_back()).map(|said| said.text)
            }
        };
    if let Some(tools) = flat(&all, &["gen_ai.tool.definitions", "llm.tools"]) {
        let body = Object::from_iter([("tools".to_owned(), parsed(tools).into_owned())]);
        call.contract(&body);
    }
    if let Some(schema) = flat(&all, &["gen_ai.output.schema", "gen_ai.request.response_schema"]) {
        call.schema = Some(parsed(schema).to_string());
    }
    let code = record.get("status").and_then(|status| status.get("code").or(Some(status)));
    call.failed = code.is_some_and(|code| {
        code.as_u64() == Some(2) || code.as_str().is_some_and(|code| code.contains("ERROR") || code == "Error")
    }) || all.contains_key("error.type");
    Ok(call)
}

/// The first of these names that is there: in attributes a dot is a part of the name.
fn flat<'a>(all: &'a Object, names: &[&str]) -> Option<&'a Value> {
    names.iter().find_map(|name| all.get(*name)).filter(|value| !value.is_null())
}

fn flat_text(all: &Object, names: &[&str]) -> Option<String> {
    let value = flat(all, names)?;
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    (!text.trim().is_empty()).then_some(text)
}

/// Messages under numbered names: `gen_ai.prompt.0.role`, `gen_ai.prompt.0.content`.
fn numbered(all: &Object, prefix: &str, inner: &str) -> Option<Vec<Said>> {
    let mut said = Vec::new();
    for at in 0..MAX_NUMBERED {
        let get = |what: &str| flat_text(all, &[&format!("{prefix}{at}.{inner}{what}")]);
        let Some(text) = get("content") else {
            if get("role").is_none() {
                break;
            }
            continue;
        };
        let by = match get("role").as_deref() {
            Some("system" | "developer") => Speaker::System,
            Some("assistant" | "ai" | "model") => Speaker::Assistant,
            Some("tool" | "function") => Speaker::Tool,
            _ => Speaker::User,
        };
        said.push(Said { by, text });
    }
    (!said.is_empty()).then_some(said)
}
