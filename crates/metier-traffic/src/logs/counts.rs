//! Tables of times and token counts without texts, such as Azure's published traces: volume, length and cost are known, tasks are not.

use super::{
    Row, Unread, one,
    value::{Object, field, number, text},
};
use crate::exchange::Exchange;

const INPUT: [&str; 10] = [
    "ContextTokens",
    "context_tokens",
    "prompt_tokens",
    "input_tokens",
    "promptTokens",
    "inputTokens",
    "num_prefill_tokens",
    "Request tokens",
    "n_context_tokens_total",
    "request_tokens",
];
const OUTPUT: [&str; 10] = [
    "GeneratedTokens",
    "generated_tokens",
    "completion_tokens",
    "output_tokens",
    "completionTokens",
    "outputTokens",
    "num_decode_tokens",
    "Response tokens",
    "n_generated_tokens_total",
    "response_tokens",
];
const BEGIN: [&str; 10] = [
    "TIMESTAMP",
    "Timestamp",
    "timestamp",
    "time",
    "created_at",
    "start_time",
    "startTime",
    "date",
    "arrived_at",
    "ts",
];

pub(super) fn is(record: &Object) -> bool {
    INPUT.iter().any(|name| record.contains_key(*name)) && OUTPUT.iter().any(|name| record.contains_key(*name))
}

pub(super) fn read(record: &Object) -> Result<Row, Unread> {
    let mut call = Exchange { id: text(record, &["id", "request_id", "requestId"]), ..Exchange::default() };
    call.model = text(record, &["model", "Model", "model_name"]).unwrap_or_default();
    call.named = text(record, &["task", "app", "application", "function", "service"]);
    call.group = text(record, &["user", "user_id", "session_id", "conversation_id"]);
    // Azure writes UTC without saying so.
    call.times(record, &BEGIN, &[], record.contains_key("TIMESTAMP"));
    let count = |names: &[&str]| field(record, names).and_then(number);
    call.counts(count(&INPUT), count(&OUTPUT), count(&["cached_tokens"]));
    call.cost(record, &["cost", "cost_usd"]);
    one(call)
}
