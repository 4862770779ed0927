//! metier's own exchanges.

use serde_json::Value;

use super::{
    Row, Unread, one,
    value::{Object, field},
};
use crate::exchange::Exchange;

pub(super) fn is(object: &Object) -> bool {
    let said =
        field(object, &["messages"]).and_then(|messages| messages.get(0)).is_some_and(|said| said.get("by").is_some());
    said || (object.contains_key("time_ms") && field(object, &["tokens"]).is_some_and(Value::is_object))
}

pub(super) fn read(object: &Object) -> Result<Row, Unread> {
    let mut exchange: Exchange =
        serde_json::from_value(Value::Object(object.clone())).map_err(|_| Unread::UnknownFields)?;
    if let Some(tokens) = &mut exchange.tokens {
        tokens.cached = tokens.cached.min(tokens.input);
    }
    one(exchange)
}
