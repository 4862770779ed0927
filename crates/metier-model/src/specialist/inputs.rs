//! Several named inputs → the one text that a specialist reads. The same function renders training rows and requests.

use serde_json::Value;

/// A request does not hold the inputs that a specialist reads.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InputError {
    /// Not a JSON object at all.
    #[error("the message must be a JSON object with exactly the keys {}", list(.0))]
    NotAnObject(Vec<String>),
    /// An input is missing.
    #[error("the message lacks the input `{0}`")]
    Missing(String),
    /// A key is no input.
    #[error("the message holds `{key}`, which is no input; the inputs are {}", list(.inputs))]
    Unknown {
        /// The key.
        key: String,
        /// Those there are.
        inputs: Vec<String>,
    },
    /// A value is not a text or number.
    #[error("the input `{0}` must be a text, a number or a truth value")]
    NotAText(String),
}

/// One input: the value itself. Several: a line `name: value` each, in the order of `names`.
///
/// # Panics
/// Where there are not as many values as names.
pub fn render_inputs<S: AsRef<str>>(names: &[String], values: &[S]) -> String {
    assert_eq!(names.len(), values.len(), "one value a name");
    match values {
        [only] => only.as_ref().to_owned(),
        several => {
            let lines: Vec<String> =
                names.iter().zip(several).map(|(name, value)| format!("{name}: {}", value.as_ref())).collect();
            lines.join("\n")
        }
    }
}

/// The text of a request's last user message: as it stands for one input; else it must be a JSON object with exactly the
/// inputs as keys.
pub fn render_request(names: &[String], message: &str) -> Result<String, InputError> {
    if names.len() <= 1 {
        return Ok(message.to_owned());
    }
    let Ok(Value::Object(object)) = serde_json::from_str::<Value>(message) else {
        return Err(InputError::NotAnObject(names.to_vec()));
    };
    if let Some(key) = object.keys().find(|key| !names.contains(key)) {
        return Err(InputError::Unknown { key: key.clone(), inputs: names.to_vec() });
    }
    let values = names.iter().map(|name| match object.get(name) {
        None => Err(InputError::Missing(name.clone())),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(value @ (Value::Number(_) | Value::Bool(_))) => Ok(value.to_string()),
        Some(_) => Err(InputError::NotAText(name.clone())),
    });
    Ok(render_inputs(names, &values.collect::<Result<Vec<_>, _>>()?))
}

fn list(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(names: &[&str], message: &str, expected: Result<&str, &str>) {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let got = render_request(&names, message).map_err(|error| error.to_string());
        assert_eq!(got.as_deref().map_err(String::as_str), expected);
    }

    #[test]
    fn renders_or_says_what_is_wrong() {
        check(&["text"], "{\"text\": 1}", Ok("{\"text\": 1}"));
        check(&["left", "right"], r#"{"right": 2, "left": "a"}"#, Ok("left: a\nright: 2"));
        check(&["left", "right"], "a", Err("the message must be a JSON object with exactly the keys `left`, `right`"));
        check(&["left", "right"], r#"{"left": "a"}"#, Err("the message lacks the input `right`"));
        check(
            &["left", "right"],
            r#"{"left": "a", "right": "b", "up": 1}"#,
            Err("the message holds `up`, which is no input; the inputs are `left`, `right`"),
        );
        check(
            &["left", "right"],
            r#"{"left": [], "right": "b"}"#,
            Err("the input `left` must be a text, a number or a truth value"),
        );
    }
}
