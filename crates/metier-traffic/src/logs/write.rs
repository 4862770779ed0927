//! Exchanges → records of a format, for traffic that is made here: the inverse of the readers as far as the format goes.

use serde_json::{Value, json};

use super::Format;
use crate::exchange::{Exchange, Speaker};

/// One record. What the format has no field for is left out.
pub fn write(format: Format, call: &Exchange) -> Value {
    match format {
        Format::Metier => serde_json::to_value(call).expect("an exchange has string keys and finite numbers"),
        Format::OpenAi => openai(call),
        Format::LiteLlm => litellm(call),
        Format::Langfuse => langfuse(call),
        Format::Helicone => helicone(call),
        Format::OpenTelemetry => otel(call),
        Format::Datapoints => datapoint(call),
        Format::Counts => counts(call),
    }
}

fn role(by: Speaker) -> &'static str {
    match by {
        Speaker::System => "system",
        Speaker::User => "user",
        Speaker::Assistant => "assistant",
        Speaker::Tool => "tool",
    }
}

fn messages(call: &Exchange) -> Value {
    call.messages.iter().map(|said| json!({"role": role(said.by), "content": said.text})).collect()
}

fn body(call: &Exchange) -> Value {
    let mut body = json!({"model": call.model, "messages": messages(call)});
    if let Some(user) = &call.group {
        body["user"] = json!(user);
    }
    if !call.tools.is_empty() {
        body["tools"] = call.tools.iter().map(|name| json!({"type": "function", "function": {"name": name}})).collect();
    }
    if let Some(schema) = schema(call) {
        body["response_format"] = json!({"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}});
    }
    body
}

fn schema(call: &Exchange) -> Option<Value> {
    serde_json::from_str(call.schema.as_deref()?).ok()
}

fn usage(call: &Exchange) -> Value {
    let tokens = call.tokens.unwrap_or_default();
    json!({"prompt_tokens": tokens.input, "completion_tokens": tokens.output, "total_tokens": tokens.input.saturating_add(tokens.output),
        "prompt_tokens_details": {"cached_tokens": tokens.cached}})
}

fn choices(call: &Exchange) -> Value {
    call.answer
        .iter()
        .map(|answer| json!({"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": answer}}))
        .collect()
}

fn end_ms(call: &Exchange) -> Option<u64> {
    Some(call.time_ms?.saturating_add(call.elapsed_ms?))
}

fn openai(call: &Exchange) -> Value {
    let mut answer = json!({"id": call.id, "object": "chat.completion", "created": call.time_ms.map(|ms| ms / 1000), "model": call.model,
        "choices": choices(call), "usage": usage(call)});
    if call.failed {
        answer["error"] = json!({"message": "overloaded"});
    }
    json!({"request": body(call), "response": answer, "timestamp": call.time_ms, "latency_ms": call.elapsed_ms})
}

fn litellm(call: &Exchange) -> Value {
    let tokens = call.tokens.unwrap_or_default();
    let tags: Vec<&String> = call.named.iter().collect();
    json!({"request_id": call.id, "call_type": "acompletion", "spend": 0.0, "total_tokens": tokens.input.saturating_add(tokens.output), "prompt_tokens": tokens.input,
        "completion_tokens": tokens.output, "startTime": call.time_ms, "endTime": end_ms(call), "model": call.model, "end_user": call.group,
        "metadata": {"usage_object": usage(call)}, "request_tags": tags, "messages": messages(call), "response": {"choices": choices(call)},
        "proxy_server_request": body(call), "status": if call.failed { "failure" } else { "success" }})
}

fn langfuse(call: &Exchange) -> Value {
    let tokens = call.tokens.unwrap_or_default();
    json!({"id": call.id, "trace_id": call.id, "type": "GENERATION", "start_time": call.time_ms, "end_time": end_ms(call), "provided_model_name": call.model,
        "session_id": call.group, "name": call.named, "level": if call.failed { "ERROR" } else { "DEFAULT" },
        "usage_details": {"input": tokens.input.saturating_sub(tokens.cached), "input_cached_tokens": tokens.cached, "output": tokens.output},
        "input": body(call), "output": call.answer})
}

fn helicone(call: &Exchange) -> Value {
    let mut properties = json!({});
    if let Some(named) = &call.named {
        properties["task"] = json!(named);
    }
    json!({"request_id": call.id, "request_created_at": call.time_ms, "delay_ms": call.elapsed_ms, "response_status": if call.failed { 500 } else { 200 },
        "request_model": call.model, "request_user_id": call.group, "request_properties": properties, "request_body": body(call),
        "response_body": {"choices": choices(call), "usage": usage(call)}})
}

fn otel(call: &Exchange) -> Value {
    let tokens = call.tokens.unwrap_or_default();
    let parts = |by: Speaker, text: &str| json!({"role": role(by), "parts": [{"type": "text", "content": text}]});
    let input: Value = call.messages.iter().map(|said| parts(said.by, &said.text)).collect();
    let mut attributes = json!({"gen_ai.operation.name": "chat", "gen_ai.request.model": call.model, "gen_ai.response.model": call.model,
        "gen_ai.usage.input_tokens": tokens.input, "gen_ai.usage.output_tokens": tokens.output, "gen_ai.usage.cache_read.input_tokens": tokens.cached,
        "gen_ai.input.messages": input.to_string()});
    if let Some(answer) = &call.answer {
        attributes["gen_ai.output.messages"] = json!(Value::Array(vec![parts(Speaker::Assistant, answer)]).to_string());
    }
    let optional = [
        ("gen_ai.conversation.id", &call.group),
        ("gen_ai.prompt.name", &call.named),
        ("gen_ai.output.schema", &call.schema),
    ];
    for (name, value) in optional.into_iter().filter(|(_, value)| value.is_some()) {
        attributes[name] = json!(value);
    }
    if !call.tools.is_empty() {
        let tools: Value = call.tools.iter().map(|name| json!({"type": "function", "name": name})).collect();
        attributes["gen_ai.tool.definitions"] = json!(tools.to_string());
    }
    json!({"span_id": call.id, "trace_id": call.id, "name": "chat", "start_time": call.time_ms, "end_time": end_ms(call),
        "status": {"code": if call.failed { "ERROR" } else { "OK" }}, "attributes": attributes})
}

fn datapoint(call: &Exchange) -> Value {
    let tokens = call.tokens.unwrap_or_default();
    let mut row = json!({"id": call.id, "input": {"messages": messages(call)}, "output": call.answer, "model": call.model, "session_id": call.group,
        "timestamp": call.time_ms, "input_tokens": tokens.input, "output_tokens": tokens.output, "cached_tokens": tokens.cached, "latency_ms": call.elapsed_ms,
        "tags": {"task": call.named}, "tools": call.tools.iter().map(|name| json!({"name": name})).collect::<Vec<_>>()});
    if let Some(schema) = schema(call) {
        row["output_schema"] = schema;
    }
    if call.failed {
        row["status_code"] = json!(500);
    }
    row
}

fn counts(call: &Exchange) -> Value {
    let tokens = call.tokens.unwrap_or_default();
    json!({"id": call.id, "timestamp": call.time_ms, "model": call.model, "user": call.group, "prompt_tokens": tokens.input,
        "completion_tokens": tokens.output, "cached_tokens": tokens.cached})
}
