//! Helicone: requests as its export and its API write them. Bodies are there with `--include-body` alone.

use serde_json::Value;

use super::{
    Row, Unread, one,
    value::{Object, answer, field, number, object, text},
};
use crate::exchange::{Exchange, Verdict};

pub(super) fn is(record: &Object) -> bool {
    record.contains_key("request_created_at")
        || (record.contains_key("request_id")
            && ["request_model", "response_status"].iter().any(|name| record.contains_key(*name)))
}

pub(super) fn read(record: &Object) -> Result<Row, Unread> {
    let path = text(record, &["request_path", "target_url"]).unwrap_or_default();
    if ["embeddings", "images", "audio", "moderations"].iter().any(|work| path.contains(work)) {
        return Err(Unread::OtherWork);
    }
    let mut call = Exchange { id: text(record, &["request_id"]), ..Exchange::default() };
    call.model = text(record, &["response_model", "model", "model_override", "request_model"]).unwrap_or_default();
    call.times(record, &["request_created_at"], &["response_created_at"], true);
    if let Some(ms) = field(record, &["delay_ms", "latency"]).and_then(number).filter(|ms| *ms >= 0.0) {
        call.elapsed_ms = Some(ms.round() as u64);
    }
    let properties = object(record, &["request_properties", "properties"]).unwrap_or_default();
    call.named = text(record, &["prompt_id"]).or_else(|| {
        text(&properties, &["task", "Task", "Helicone-Prompt-Id", "Helicone-Session-Path", "Helicone-Session-Name"])
    });
    call.group = text(&properties, &["Helicone-Session-Id", "Session", "session"])
        .or_else(|| text(record, &["request_user_id", "helicone_user"]));
    if let Some(body) = object(record, &["request_body"]) {
        call.body(&body);
    }
    if let Some(body) = object(record, &["response_body"]) {
        call.answer = answer(&Value::Object(body.clone()));
        if let Some(usage) = object(&body, &["usage", "usageMetadata"]) {
            call.usage(&usage);
        }
    }
    if call.tokens.is_none() {
        call.usage(record);
    }
    call.cost(record, &["costUSD", "cost_usd", "cost"]);
    let rating = field(record, &["feedback_rating", "feedback.rating", "helicone_feedback.rating"]);
    call.gold = match rating {
        Some(Value::Bool(good)) => Some(f64::from(u8::from(*good))),
        Some(Value::String(good)) if good == "true" || good == "false" => Some(f64::from(u8::from(good == "true"))),
        other => other.and_then(number),
    }
    .map(|value| Verdict::Score { name: "feedback".to_owned(), value });
    let status = field(record, &["response_status"]).and_then(number);
    call.failed = status.is_some_and(|status| !(200.0..300.0).contains(&status));
    one(call)
}
