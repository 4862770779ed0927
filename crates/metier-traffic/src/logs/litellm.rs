//! LiteLLM: rows of `LiteLLM_SpendLogs`, and `StandardLoggingPayload` as its callbacks write it. `messages` and `response` are `{}` unless the
//! operator stores prompts; then the call counts by tokens alone.

use super::{
    Row, Unread, one,
    value::{Object, answer, field, object, parsed, text},
};
use crate::exchange::Exchange;

pub(super) fn is(record: &Object) -> bool {
    let has = |names: &[&str]| names.iter().all(|name| record.contains_key(*name));
    has(&["call_type", "startTime"]) || has(&["request_id", "spend"]) || has(&["call_type", "model_parameters"])
}

pub(super) fn read(record: &Object) -> Result<Row, Unread> {
    let kind = text(record, &["call_type"]).unwrap_or_default();
    if ["embedding", "image", "speech", "transcription", "moderation", "rerank"].iter().any(|work| kind.contains(work))
    {
        return Err(Unread::OtherWork);
    }
    let metadata = object(record, &["metadata"]).unwrap_or_default();
    let mut call = Exchange { id: text(record, &["request_id", "id"]), ..Exchange::default() };
    call.model = text(record, &["model", "model_group"]).unwrap_or_default();
    call.group = text(record, &["end_user", "session_id", "trace_id"]).or_else(|| {
        text(&metadata, &["user_api_key_end_user_id", "user_api_key_user_id"]).or_else(|| text(record, &["user"]))
    });
    call.named = field(record, &["request_tags"]).map(parsed).and_then(|tags| {
        let named = |tag: &str| !tag.starts_with("User-Agent");
        tags.as_array()?.iter().filter_map(|tag| tag.as_str()).find(|tag| named(tag)).map(str::to_owned)
    });
    if call.named.is_none() {
        call.named = text(&metadata, &["spend_logs_metadata.task", "user_api_key_alias"]);
    }
    call.usage(record);
    if let Some(usage) = object(&metadata, &["usage_object", "additional_usage_values"]) {
        let (tokens, mut detailed) = (call.tokens, Exchange::default());
        detailed.usage(&usage);
        if let (Some(tokens), Some(detailed)) = (tokens, detailed.tokens) {
            call.tokens = Some(crate::exchange::Tokens { cached: detailed.cached.min(tokens.input), ..tokens });
        }
    }
    call.cost(record, &["spend", "response_cost"]);
    // PostgreSQL's column has no zone; LiteLLM writes UTC.
    call.times(record, &["startTime"], &["endTime"], true);
    let body = object(record, &["proxy_server_request.body", "proxy_server_request", "model_parameters"]);
    if let Some(value) = field(record, &["messages"]) {
        let value = parsed(value);
        let empty =
            value.as_object().is_some_and(serde_json::Map::is_empty) || value.as_str().is_some_and(str::is_empty);
        if !empty {
            call.said(value.as_ref());
        }
    }
    if let Some(body) = body {
        call.contract(&body);
        if call.messages.is_empty() && body.contains_key("messages") {
            call.body(&body);
        }
    }
    call.answer = field(record, &["response"]).and_then(answer);
    call.failed = text(record, &["status"]).is_some_and(|status| status == "failure");
    one(call)
}
