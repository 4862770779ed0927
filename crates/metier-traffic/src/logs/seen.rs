//! *What are these fields?* For whoever gave a file that is no log: the names that a record has, whose they look like, and what would have been read.

use serde_json::Value;

use super::format;

/// Names that are told, of the record and of each object in it.
const NAMED: usize = 8;
/// Characters of a name.
const MAX_NAME: usize = 40;

/// What is read, by the fields that each format is known by.
pub const EXPECTED: &str = "a call a record: `messages`, or `request` and `response` (OpenAI); `call_type` and `startTime` (LiteLLM); `type` and \
                            `provided_model_name` (Langfuse); `request_body` and `response_body` (Helicone); spans with `gen_ai.…` (OpenTelemetry); \
                            `input` and `output`; or times and token counts";

/// The fields of a record that no format has, in a sentence or two without names of values.
pub fn fields(record: &Value) -> String {
    let Some(object) = record.as_object() else { return "not an object".to_owned() };
    if object.is_empty() {
        return "none".to_owned();
    }
    let name = |name: &str| {
        let mut cut: String = name.chars().take(MAX_NAME).map(|c| if c.is_control() { ' ' } else { c }).collect();
        if cut.len() < name.len() {
            cut.push('…');
        }
        format!("`{cut}`")
    };
    let list = |names: &[String]| {
        let more = if names.len() > NAMED { format!(" and {} more", names.len() - NAMED) } else { String::new() };
        format!("{}{more}", names[..names.len().min(NAMED)].join(", "))
    };
    let told: Vec<String> = object
        .iter()
        .map(|(key, value)| match value.as_object().filter(|inner| !inner.is_empty()) {
            Some(inner) => {
                format!("{} (with {})", name(key), list(&inner.keys().map(|key| name(key)).collect::<Vec<_>>()))
            }
            None => name(key),
        })
        .collect();
    let mut said = list(&told);
    let inside = object.iter().find_map(|(key, value)| Some((key, format(value.as_object()?)?)));
    if let Some((key, format)) = inside {
        said += &format!(
            "; what stands in {} looks like a record of {}: give each of those as a line of its own",
            name(key),
            format.name()
        );
    }
    said
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_are_named_and_values_are_not() {
        let payload = json!({"source": "somewhere", "StandardLoggingPayload": {"id": "str", "call_type": "str", "startTime": "float", "model_group": "str"}});
        let said = fields(&payload);
        assert!(said.contains("`source`") && said.contains("`StandardLoggingPayload` (with `"), "{said}");
        assert!(said.contains("looks like a record of LiteLLM"), "{said}");
        assert!(!said.contains("somewhere"), "{said}");
        let many: serde_json::Map<String, Value> = (0..100).map(|at| (format!("column {at:03}"), json!(at))).collect();
        let said = fields(&Value::Object(many));
        assert!(said.ends_with("`column 007` and 92 more"), "{said}");
        assert_eq!(fields(&json!({})), "none");
        assert_eq!(fields(&json!([1])), "not an object");
        assert!(fields(&json!({ "x".repeat(10_000): 1 })).len() < 200);
    }
}
