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

/// The labels that an answer names, as places among `labels`, ascending: a JSON list, or a JSON object whose `labels` is one. Letter case
/// aside each must be one of the labels; a list that names another thing is no answer.
pub fn labels_in(said: &str, labels: &[String]) -> Option<Vec<usize>> {
    let list = said.find('[').zip(said.rfind(']')).and_then(|(from, to)| said.get(from..=to));
    let list = list.and_then(|list| serde_json::from_str(list).ok());
    let list: Vec<String> = match list {
        Some(list) => list,
        None => serde_json::from_value(object_in(said).ok()?.get("labels")?.clone()).ok()?,
    };
    let place = |name: &String| {
        let exact = labels.iter().position(|label| label == name.trim());
        exact.or_else(|| labels.iter().position(|label| label.to_lowercase() == name.trim().to_lowercase()))
    };
    let mut places: Vec<usize> = list.iter().map(place).collect::<Option<_>>()?;
    places.sort_unstable();
    places.dedup();
    Some(places)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_in_a_list() {
        let labels = ["billing", "Delivery", "other [rare]"].map(str::to_owned);
        let check = |said: &str, expected: Option<&[usize]>| {
            assert_eq!(labels_in(said, &labels).as_deref(), expected, "{said}");
        };
        check("[]", Some(&[]));
        check("Here: [\"delivery\", \"billing\", \"billing\"].", Some(&[0, 1]));
        check("```json\n{\"labels\": [\"Delivery\"]}\n```", Some(&[1]));
        check("{\"labels\": [], \"why\": \"none\"}", Some(&[]));
        check("[\"other [rare]\"]", Some(&[2]));
        check("[\"refund\"]", None);
        check("billing", None);
        check("[1]", None);
        check("] [", None);
    }

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
