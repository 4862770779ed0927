//! Bodies of OpenAI's API, alone or in pairs, and what has its shape; Anthropic's bodies in the same frames.
//!
//! Read: `{"request": BODY, "response": BODY}` (also `request_body`, `body`, strings of JSON, and a frame `body` inside either); a body of
//! messages with its answer beside it or as its last message (training files); results of batches; answers alone; stream chunks.

use serde_json::Value;

use super::{
    Piece, Row, Unread, one,
    value::{Object, answer, field, number, object, text},
};
use crate::exchange::{Exchange, Speaker};

const REQUEST: [&str; 5] = ["request", "request_body", "requestBody", "kwargs", "body"];
const RESPONSE: [&str; 4] = ["response", "response_body", "responseBody", "completion"];
const BEGIN: [&str; 8] =
    ["timestamp", "time", "created_at", "createdAt", "request_time", "start_time", "startTime", "created"];
const END: [&str; 4] = ["end_time", "endTime", "response_time", "completed_at"];

pub(super) fn is(record: &Object) -> bool {
    let framed = REQUEST.iter().any(|name| object(record, &[name]).is_some_and(|body| is_body(&body)))
        || object(record, &RESPONSE).is_some_and(|answer| is_answer(&answer));
    framed || is_body(record) || is_answer(record) || record.contains_key("custom_id")
}

fn is_body(body: &Object) -> bool {
    ["messages", "prompt", "contents"].iter().any(|name| body.contains_key(*name))
        || (body.contains_key("model") && body.contains_key("input") && !body.contains_key("output"))
}

fn is_answer(answer: &Object) -> bool {
    let kind = |name: &str| answer.get(name).and_then(Value::as_str).unwrap_or_default();
    ["choices", "candidates"].iter().any(|name| answer.contains_key(*name))
        || (answer.contains_key("content") && kind("type") == "message")
        || (answer.contains_key("output") && kind("object") == "response")
        || answer.contains_key("body")
}

pub(super) fn read(record: &Object) -> Result<Row, Unread> {
    if text(record, &["object"]).is_some_and(|object| object.ends_with(".chunk")) {
        return piece(record);
    }
    let path = text(record, &["url", "path", "endpoint"]).unwrap_or_default();
    if ["embeddings", "images", "audio", "moderations"].iter().any(|work| path.contains(work)) {
        return Err(Unread::OtherWork);
    }
    let request = object(record, &REQUEST).filter(is_body);
    let mut response = object(record, &RESPONSE);
    let status =
        response.as_ref().and_then(|response| field(response, &["status_code", "statusCode"]).and_then(number));
    if let Some(inner) = response.as_ref().and_then(|response| object(response, &["body"])) {
        response = Some(inner);
    }
    if response.is_none() && is_answer(record) {
        response = Some(record.clone());
    }
    let mut call = Exchange { group: text(record, &GROUP), ..Exchange::default() };
    call.id = text(record, &["id", "request_id", "requestId", "custom_id"]);
    call.named =
        text(record, &["metadata.task", "metadata.prompt_name", "tags.task", "tags.prompt_id", "metadata.prompt_id"]);
    call.model = text(record, &["model"]).unwrap_or_default();
    match &request {
        Some(body) => {
            call.body(body);
            if call.model.is_empty() {
                call.model = text(body, &["model"]).unwrap_or_default();
            }
            call.group = call.group.or_else(|| text(body, &GROUP));
        }
        None if is_body(record) => call.body(record),
        None => {}
    }
    if let Some(response) = &response {
        // The answer's name is what LiteLLM and gateways log of the same call: duplicates meet under it.
        call.id = text(response, &["id"]).or(call.id);
        if let Some(model) = text(response, &["model", "modelVersion"]) {
            call.model = model;
        }
        call.answer = answer(&Value::Object(response.clone()));
        if let Some(usage) = object(response, &["usage", "usageMetadata"]) {
            call.usage(&usage);
        }
        call.failed = response.contains_key("error") && field(response, &["error"]).is_some();
        call.times(response, &["created", "created_at"], &[], true);
    } else if let Some(beside) = field(record, &["response", "completion", "answer", "output", "chosen"]) {
        call.answer = answer(beside);
    }
    if call.answer.is_none()
        && response.is_none()
        && call.messages.last().is_some_and(|said| said.by == Speaker::Assistant)
        && !call.failed
    {
        // A training file: its last message is what the model is to say.
        call.answer = call.messages.pop().map(|said| said.text);
    }
    if let Some(usage) = object(record, &["usage"]).filter(|_| call.tokens.is_none()) {
        call.usage(&usage);
    }
    if call.tokens.is_none() {
        call.usage(record);
    }
    if BEGIN.iter().any(|name| record.contains_key(*name)) {
        call.times(record, &BEGIN, &END, false);
    }
    if let Some(ms) =
        field(record, &["latency_ms", "elapsed_ms", "duration_ms"]).and_then(number).filter(|ms| *ms >= 0.0)
    {
        call.elapsed_ms = Some(ms.round() as u64);
    }
    call.cost(record, &["cost", "cost_usd"]);
    call.failed |= status.is_some_and(|status| status >= 400.0) || field(record, &["error"]).is_some();
    one(call)
}

const GROUP: [&str; 9] = [
    "user",
    "user_id",
    "session_id",
    "conversation_id",
    "safety_identifier",
    "metadata.user_id",
    "metadata.session_id",
    "metadata.conversation_id",
    "tags.session_id",
];

fn piece(chunk: &Object) -> Result<Row, Unread> {
    let id = text(chunk, &["id"]).ok_or(Unread::Empty)?;
    let mut part =
        Exchange { id: Some(id.clone()), model: text(chunk, &["model"]).unwrap_or_default(), ..Exchange::default() };
    part.times(chunk, &["created"], &[], true);
    let delta = field(chunk, &["choices"]).and_then(|choices| choices.get(0)).and_then(|choice| choice.get("delta"));
    part.answer = delta.and_then(|delta| delta.get("content")).and_then(Value::as_str).map(str::to_owned);
    if let Some(usage) = object(chunk, &["usage"]) {
        part.usage(&usage);
    }
    Ok(Row::Piece(Box::new(Piece { id, part })))
}
