//! Reads typed fields out of JSON, with errors that name the path.

use serde_json::{Map, Value};

use super::{MAX_BODY_BYTES, MAX_NESTING, WireError};

/// The body as a JSON object.
pub(super) fn object(bytes: &[u8]) -> Result<Map<String, Value>, WireError> {
    if bytes.len() > MAX_BODY_BYTES {
        let message = format!("the body has {} bytes, at most {MAX_BODY_BYTES} are read", bytes.len());
        return Err(WireError::body("body_too_large", message));
    }
    let value: Value = serde_json::from_slice(bytes)
        .map_err(|error| WireError::body("invalid_json", format!("the body is not valid JSON: {error}")))?;
    if deeper_than(&value, MAX_NESTING) {
        let message = format!("the body is nested deeper than {MAX_NESTING} levels");
        return Err(WireError::body("invalid_value", message));
    }
    match value {
        Value::Object(map) => Ok(map),
        other => Err(WireError::body("invalid_type", format!("the body must be an object, not {}", kind(&other)))),
    }
}

/// The recursion is bounded by the JSON parser's own limit of 127 levels.
fn deeper_than(value: &Value, levels: usize) -> bool {
    match value {
        Value::Array(items) => levels == 0 || items.iter().any(|item| deeper_than(item, levels - 1)),
        Value::Object(map) => levels == 0 || map.values().any(|item| deeper_than(item, levels - 1)),
        _ => false,
    }
}

/// What a value is, as the protocol's users would say it.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

pub(super) fn wrong_type(path: &str, wanted: &str, found: &Value) -> WireError {
    WireError::new("invalid_type", path, format!("`{path}` must be {wanted}, not {}", kind(found)))
}

pub(super) fn invalid(path: &str, message: impl std::fmt::Display) -> WireError {
    WireError::new("invalid_value", path, format!("`{path}` {message}"))
}

pub(super) fn missing(path: &str) -> WireError {
    WireError::new("missing_required_parameter", path, format!("`{path}` is missing"))
}

pub(super) fn unsupported(path: &str, message: impl std::fmt::Display) -> WireError {
    WireError::new("unsupported_parameter", path, format!("`{path}` {message}"))
}

/// A field that is there and not null.
pub(super) fn present<'a>(map: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    map.get(name).filter(|value| !value.is_null())
}

pub(super) fn boolean(map: &Map<String, Value>, name: &str) -> Result<Option<bool>, WireError> {
    present(map, name).map(|value| value.as_bool().ok_or_else(|| wrong_type(name, "a boolean", value))).transpose()
}

/// A whole number in `low..=high`.
pub(super) fn integer(map: &Map<String, Value>, name: &str, low: i64, high: i64) -> Result<Option<i64>, WireError> {
    let Some(value) = present(map, name) else { return Ok(None) };
    let Some(number) = value.as_i64() else {
        let found = if value.is_number() { format!("{value}") } else { kind(value).to_owned() };
        return Err(WireError::new("invalid_type", name, format!("`{name}` must be an integer, not {found}")));
    };
    if !(low..=high).contains(&number) {
        return Err(invalid(name, format!("must be between {low} and {high}, not {number}")));
    }
    Ok(Some(number))
}

/// A number in `low..=high`.
pub(super) fn number(map: &Map<String, Value>, name: &str, low: f64, high: f64) -> Result<Option<f64>, WireError> {
    let Some(value) = present(map, name) else { return Ok(None) };
    let number = value.as_f64().ok_or_else(|| wrong_type(name, "a number", value))?;
    if !(low..=high).contains(&number) {
        return Err(invalid(name, format!("must be between {low} and {high}, not {number}")));
    }
    Ok(Some(number))
}

/// The name of a model: required, not empty, short.
pub(super) fn model(map: &Map<String, Value>) -> Result<String, WireError> {
    let value = present(map, "model").ok_or_else(|| missing("model"))?;
    let name = value.as_str().ok_or_else(|| wrong_type("model", "a string", value))?;
    if name.is_empty() || name.len() > super::MAX_MODEL_BYTES {
        return Err(invalid("model", format!("must have 1 to {} bytes, not {}", super::MAX_MODEL_BYTES, name.len())));
    }
    Ok(name.to_owned())
}
