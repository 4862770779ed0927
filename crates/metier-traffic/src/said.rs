//! What a model said, and what in it is the answer: models wrap JSON into fences and sentences.

use serde_json::Value;

/// The JSON object in what was said, from its first brace to its last.
///
/// # Errors
/// Why there is none, in words for a log.
pub fn object_in(said: &str) -> Result<Value, String> {
    let (from, to) = (said.find('{'), said.rfind('}'));
    let object = from.zip(to).and_then(|(from, to)| said.get(from..=to)).ok_or("it holds no JSON object")?;
    serde_json::from_str(object).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_among_words() {
        let check = |said: &str, expected: Option<Value>| assert_eq!(object_in(said).ok(), expected, "{said}");
        check("Sure:\n```json\n{\"a\": {\"b\": 3}}\n```", Some(serde_json::json!({"a": {"b": 3}})));
        check("{}", Some(serde_json::json!({})));
        check("none", None);
        check("} {", None);
        check("{\"a\": ", None);
        check("{a} and {b}", None);
    }
}
