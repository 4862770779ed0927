//! `{input, output, tags}` and what is like it: TensorZero's datapoints and inferences, OpenPipe's request log, plain tables of prompts and
//! answers.

use serde_json::Value;

use super::{
    Row, Unread, one,
    value::{Object, answer, field, number, object, parsed, text},
};
use crate::exchange::{Exchange, Speaker, Verdict};

const INPUT: [&str; 9] =
    ["input", "reqPayload", "req_payload", "prompt", "question", "query", "instruction", "messages", "text"];
const OUTPUT: [&str; 11] = [
    "output",
    "respPayload",
    "resp_payload",
    "response",
    "completion",
    "answer",
    "generation",
    "prediction",
    "assistant",
    "result",
    "label",
];

/// Fields that only these tools write.
pub(super) fn is_named(record: &Object) -> bool {
    let has = |names: &[&str]| names.iter().all(|name| record.contains_key(*name));
    has(&["function_name", "input"]) || has(&["episode_id", "input"]) || has(&["reqPayload"]) || has(&["req_payload"])
}

/// An input with an output, whatever else there is.
pub(super) fn is(record: &Object) -> bool {
    INPUT.iter().any(|name| record.contains_key(*name)) && OUTPUT.iter().any(|name| record.contains_key(*name))
}

pub(super) fn read(record: &Object) -> Result<Row, Unread> {
    let mut call = Exchange { id: text(record, &["id", "inference_id", "request_id"]), ..Exchange::default() };
    call.named =
        text(record, &["function_name", "tags.task", "tags.prompt_id", "tags.promptId", "prompt_name", "task"]);
    call.model =
        text(record, &["model", "model_name", "variant_name", "reqPayload.model", "tags.model"]).unwrap_or_default();
    call.group = text(record, &["episode_id", "session_id", "user_id", "user", "tags.user_id", "tags.session_id"]);
    if let Some(input) = field(record, &INPUT) {
        let input = parsed(input);
        match input.as_object() {
            Some(body) if ["messages", "contents"].iter().any(|name| body.contains_key(*name)) => call.body(body),
            _ => call.said(input.as_ref()),
        }
    }
    if let Some(system) = text(record, &["system", "system_prompt"]) {
        call.messages.insert(0, crate::exchange::Said { by: Speaker::System, text: system });
    }
    let output = field(record, &OUTPUT);
    call.answer = output.and_then(answer);
    if let Some(usage) = output.and_then(|output| {
        object(&Object::from_iter([("usage".to_owned(), parsed(output).get("usage")?.clone())]), &["usage"])
    }) {
        call.usage(&usage);
    }
    if call.answer.is_none()
        && output.is_none()
        && call.messages.last().is_some_and(|said| said.by == Speaker::Assistant)
    {
        call.answer = call.messages.pop().map(|said| said.text);
    }
    if call.tokens.is_none() {
        call.usage(record);
    }
    if let Some(usage) = object(record, &["usage"]).filter(|_| call.tokens.is_none()) {
        call.usage(&usage);
    }
    let (tools, schema) = (std::mem::take(&mut call.tools), call.schema.take());
    call.contract(record);
    if call.tools.is_empty() {
        call.tools = tools;
    }
    call.schema = call.schema.or(schema);
    if let Some(params) = object(record, &["tool_params", "dynamic_tool_params"]).filter(|_| call.tools.is_empty()) {
        let renamed = field(&params, &["tools_available", "tools"]).cloned().unwrap_or(Value::Null);
        let schema = call.schema.take();
        call.contract(&Object::from_iter([("tools".to_owned(), renamed)]));
        call.schema = schema;
    }
    call.times(
        record,
        &["requestedAt", "requested_at", "timestamp", "created_at", "createdAt", "time", "updated_at"],
        &["receivedAt", "received_at"],
        false,
    );
    if let Some(ms) = field(record, &["processing_time_ms", "response_time_ms", "latency_ms"])
        .and_then(number)
        .filter(|ms| *ms >= 0.0)
    {
        call.elapsed_ms = Some(ms.round() as u64);
    }
    call.cost(record, &["cost", "cost_usd"]);
    call.gold = text(record, &["expected", "gold", "reference", "ground_truth"]).map(Verdict::Label);
    let status = field(record, &["statusCode", "status_code"]).and_then(number);
    call.failed =
        status.is_some_and(|status| status >= 400.0) || text(record, &["errorMessage", "error_message"]).is_some();
    one(call)
}
