//! Several named inputs → the one text that a specialist reads. The same function renders training rows and requests.
//!
//! ```text
//! one input, a text      the text as it stands
//! one input, an object   name: usb cable            a line a field, ordered by path
//!                        size.cm: 100
//! several inputs         left.name: usb cable       the same under the input's name
//!                        right: 1 m usb cable       an input that is no object is one line
//! ```
//!
//! A field holds a text, a number, a truth value or a list; objects inside objects lengthen the path (`offer.size.cm`), and so do objects
//! inside lists, which are counted from 1 (`items.1.name`). A list of plain values is one line, `a, b`. Fields that are `null` or empty are
//! left out: a missing price and an empty one are the same. Line breaks inside a field become spaces, so that a line is a field and
//! [`Inputs::of`] can read the text back. Because keys are ordered, two objects that differ in the order of their keys are one text.

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
    /// Every input is empty.
    #[error("every input is empty: {}", list(.0))]
    Empty(Vec<String>),
}

/// The text of some inputs, each a text or the JSON of an object or list; see the module.
///
/// # Panics
/// Where there are not as many values as names.
pub fn render_inputs<S: AsRef<str>>(names: &[String], values: &[S]) -> String {
    assert_eq!(names.len(), values.len(), "one value a name");
    let mut lines = Vec::new();
    for (name, value) in names.iter().zip(values) {
        let (name, value) = (key(name), value.as_ref());
        match (structure(value), names.len()) {
            (None, 1) => return value.to_owned(),
            // One for one: places in the text stay places in the input.
            (None, _) => lines.push(format!("{name}: {}", value.replace(['\n', '\r'], " "))),
            (Some(value), n) => {
                let before = lines.len();
                fields(if n == 1 { String::new() } else { name.clone() }, &value, &mut lines);
                if lines.len() == before {
                    lines.push(format!("{name}: "));
                }
            }
        }
    }
    lines.join("\n")
}

/// The text of a request's last user message: as it stands, or field by field where it is a JSON object, for one input; else it must be a
/// JSON object with exactly the inputs as keys.
pub fn render_request(names: &[String], message: &str) -> Result<String, InputError> {
    if names.len() <= 1 {
        let input = names.first().map_or_else(String::new, String::clone);
        return Ok(render_inputs(&[input], &[message]));
    }
    let Ok(Value::Object(object)) = serde_json::from_str::<Value>(message) else {
        return Err(InputError::NotAnObject(names.to_vec()));
    };
    if let Some(key) = object.keys().find(|key| !names.contains(key)) {
        return Err(InputError::Unknown { key: key.clone(), inputs: names.to_vec() });
    }
    let values = names.iter().map(|name| object.get(name).map(cell).ok_or_else(|| InputError::Missing(name.clone())));
    let values = values.collect::<Result<Vec<_>, _>>()?;
    if values.iter().all(|value| value.trim().is_empty()) {
        return Err(InputError::Empty(names.to_vec()));
    }
    Ok(render_inputs(names, &values))
}

/// What a cell of a table holds for a JSON value: the text itself, nothing for `null`, else its JSON.
pub fn cell(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// An object, or a list, that a text is; plain texts and numbers are none.
fn structure(text: &str) -> Option<Value> {
    text.trim_start().starts_with(['{', '[']).then(|| serde_json::from_str(text).ok()).flatten()
}

/// The lines of a value at `path`, which is empty at the top of a lone input.
fn fields(path: String, value: &Value, lines: &mut Vec<String>) {
    let below = |step: &str| if path.is_empty() { step.to_owned() } else { format!("{path}.{step}") };
    let text = match value {
        Value::Object(object) => {
            let mut object: Vec<_> = object.iter().map(|(name, value)| (key(name), value)).collect();
            object.sort_by(|a, b| a.0.cmp(&b.0));
            object.into_iter().for_each(|(name, value)| fields(below(&name), value, lines));
            return;
        }
        Value::Array(items) if items.iter().any(|item| item.is_object() || item.is_array()) => {
            items.iter().enumerate().for_each(|(at, item)| fields(below(&(at + 1).to_string()), item, lines));
            return;
        }
        Value::Array(items) => {
            let items = items.iter().map(cell).filter(|item| !item.trim().is_empty());
            items.collect::<Vec<_>>().join(", ")
        }
        plain => cell(plain),
    };
    let text = one_line(&text);
    match (text.is_empty(), path.is_empty()) {
        (true, _) => {}
        (false, true) => lines.push(text),
        (false, false) => lines.push(format!("{path}: {text}")),
    }
}

/// A name as it stands in a path: without what parts a path from its value.
fn key(name: &str) -> String {
    let name: String = name.chars().map(|c| if c == ':' || c.is_whitespace() { '_' } else { c }).collect();
    if name.is_empty() { "_".to_owned() } else { name }
}

/// White space of any kind and length becomes one space.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A rendered text, read back: the fields of every input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inputs<'a>(Vec<Vec<Field<'a>>>);

/// One field of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    /// Its path below the input's name; empty where the input is no object.
    pub path: &'a str,
    /// Its value, one line.
    pub value: &'a str,
}

impl<'a> Inputs<'a> {
    /// Reads what [`render_inputs`] rendered of several inputs. Of a text that it did not render no line is lost: what belongs to no
    /// input belongs to the first.
    pub fn of(names: &[String], text: &'a str) -> Self {
        let names: Vec<String> = names.iter().map(|name| key(name)).collect();
        let mut inputs = vec![Vec::new(); names.len().max(1)];
        for line in text.lines() {
            let (path, value) =
                line.split_once(": ").or_else(|| line.strip_suffix(':').map(|path| (path, ""))).unwrap_or(("", line));
            // The longest name that fits: one name may begin another.
            let fits = |name: &String| {
                path.strip_prefix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            };
            let owner = (0..names.len()).filter(|at| fits(&names[*at])).max_by_key(|at| names[*at].len());
            match owner {
                Some(at) => {
                    let path = path[names[at].len()..].trim_start_matches('.');
                    inputs[at].push(Field { path, value });
                }
                None => inputs[0].push(Field { path: "", value: line }),
            }
        }
        Self(inputs)
    }

    /// The fields of input `at`, in the order of the text.
    pub fn fields(&self, at: usize) -> &[Field<'a>] {
        &self.0[at]
    }

    /// What an encoder reads of all inputs at once, in about `characters`: fields one after the other, `[SEP]` between inputs. Where it is too
    /// much the longest fields are cut, all to one length.
    pub fn joined(&self, characters: usize) -> String {
        let of = |field: &Field<'_>| field.path.chars().count() + field.value.chars().count() + 3;
        let mut lengths: Vec<usize> = self.0.iter().flatten().map(of).collect();
        lengths.sort_unstable();
        // Room is shared out from the shortest field on: who needs less than a share leaves the rest to the longer ones.
        let (mut room, mut share) = (characters, usize::MAX);
        for (at, length) in lengths.iter().enumerate() {
            let equal = room / (lengths.len() - at);
            if *length > equal {
                share = equal;
                break;
            }
            room -= length;
        }
        let field = |field: &Field<'_>| {
            let whole =
                if field.path.is_empty() { field.value.to_owned() } else { format!("{}: {}", field.path, field.value) };
            whole.chars().take(share).collect::<String>()
        };
        let inputs = self.0.iter().map(|fields| fields.iter().map(field).collect::<Vec<_>>().join(" "));
        inputs.collect::<Vec<_>>().join(" [SEP] ")
    }

    /// How many inputs there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True where there is no input, which never is.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn list(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[track_caller]
    fn check(inputs: &[&str], message: &str, expected: Result<&str, &str>) {
        let got = render_request(&names(inputs), message).map_err(|error| error.to_string());
        assert_eq!(got.as_deref().map_err(String::as_str), expected);
    }

    #[test]
    fn renders_or_says_what_is_wrong() {
        check(&["text"], "as it\nstands", Ok("as it\nstands"));
        check(&["text"], "{not json", Ok("{not json"));
        check(&["offer"], r#"{"price": 2.50, "name": "a\nb"}"#, Ok("name: a b\nprice: 2.5"));
        check(&["left", "right"], r#"{"right": 2, "left": "a"}"#, Ok("left: a\nright: 2"));
        check(
            &["left", "right"],
            r#"{"left": {"n": null, "e": "", "b": {"y": true, "x": -1}, "l": ["p", 2, null], "i": [{"k": 1}, {"k": 2}]}, "right": null}"#,
            Ok("left.b.x: -1\nleft.b.y: true\nleft.i.1.k: 1\nleft.i.2.k: 2\nleft.l: p, 2\nright: "),
        );
        check(&["left", "right"], r#"{"left": [], "right": {"a: b": "c"}}"#, Ok("left: \nright.a__b: c"));
        check(&["left", "right"], "a", Err("the message must be a JSON object with exactly the keys `left`, `right`"));
        check(&["left", "right"], r#"{"left": "a"}"#, Err("the message lacks the input `right`"));
        check(
            &["left", "right"],
            r#"{"left": "a", "right": "b", "up": 1}"#,
            Err("the message holds `up`, which is no input; the inputs are `left`, `right`"),
        );
        check(&["left", "right"], r#"{"left": null, "right": " "}"#, Err("every input is empty: `left`, `right`"));
    }

    #[test]
    fn reads_back_what_it_rendered() {
        let names = names(&["left", "left.b", "right"]);
        let text = render_inputs(&names, &[r#"{"a": "x: y", "c": 1}"#, "z", ""]);
        let inputs = Inputs::of(&names, &text);
        let field = |path, value| Field { path, value };
        assert_eq!(inputs.fields(0), [field("a", "x: y"), field("c", "1")]);
        assert_eq!(inputs.fields(1), [field("", "z")]);
        assert_eq!(inputs.fields(2), [field("", "")]);
        assert_eq!(Inputs::of(&names, "who\nknows").fields(0), [field("", "who"), field("", "knows")]);
    }

    #[test]
    fn an_encoder_reads_the_short_fields_whole() {
        let names = names(&["left", "right"]);
        let text =
            render_inputs(&names, &[r#"{"about": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "name": "mug"}"#, "cup"]);
        assert_eq!(Inputs::of(&names, &text).joined(1000), format!("about: {} name: mug [SEP] cup", "a".repeat(40)));
        assert_eq!(Inputs::of(&names, &text).joined(40), format!("about: {} name: mug [SEP] cup", "a".repeat(17)));
        assert_eq!(Inputs::of(&names, "").joined(10), " [SEP] ");
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            "[a-z:.\\n ]{0,6}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 12, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::btree_map("[a-c:. ]{0,3}", inner, 0..3).prop_map(|map| json!(map)),
            ]
        })
    }

    proptest! {
        /// A table's row and a request that hold the same values, in whatever order of keys, are one text; every line has an owner.
        #[test]
        fn training_and_serving_agree(left in value(), right in value()) {
            let names = names(&["left", "right"]);
            let row = render_inputs(&names, &[cell(&left), cell(&right)]);
            let message = format!("{{\"right\": {right}, \"left\": {left}}}");
            match render_request(&names, &message) {
                Ok(text) => prop_assert_eq!(&text, &row),
                Err(error) => prop_assert!(matches!(error, InputError::Empty(_))),
            }
            let inputs = Inputs::of(&names, &row);
            prop_assert_eq!(inputs.fields(0).len() + inputs.fields(1).len(), row.lines().count());
            prop_assert!(!inputs.fields(0).is_empty() && !inputs.fields(1).is_empty());
        }
    }
}
