//! Which answers may an extraction give? A JSON Schema in; the fields that spans can fill out, or what about it cannot be met.
//!
//! **Read:** an object of strings, numbers, integers and enumerations of strings, arrays of these, and objects of these one level deep;
//! `type`, `properties`, `required`, `additionalProperties: false`, `items`, `enum`, `format: date`, the bounds of lengths, items and
//! numbers, `uniqueItems`, titles and descriptions; and two keys of ours: `x-metier-normalise` (a name of
//! [`Normaliser::NAMED`]) and `x-metier-synonyms` (value → writings that mean it). **Absent:** everything else of JSON Schema: it is
//! refused by its path, not ignored.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::normalise::{Normaliser, fold_case};

/// Fields, at most.
pub const MAX_FIELDS: usize = 512;
/// Bytes of a schema, at most.
pub const MAX_SCHEMA_BYTES: usize = 1 << 20;

/// A schema cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("schema at `{path}`: {problem}")]
pub struct SchemaError {
    /// JSON pointer into the schema; `/` is the whole.
    pub path: String,
    /// What is wrong and what to do.
    pub problem: String,
}

/// One field that spans fill.
#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    /// Keys joined by `.`: `total.amount`.
    pub name: String,
    /// Keys from the top of the answer: one or two.
    pub keys: Vec<String>,
    /// A list of values?
    pub many: bool,
    /// Must it be there?
    pub required: bool,
    /// May it be `null`?
    pub nullable: bool,
    /// What its words become.
    pub normaliser: Normaliser,
    /// The only values there are.
    pub choices: Option<Vec<String>>,
    /// Other writings of values, folded.
    synonyms: BTreeMap<String, String>,
    limits: Limits,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Limits {
    integer: bool,
    number: (Option<f64>, Option<f64>),
    length: (Option<u64>, Option<u64>),
    items: (Option<u64>, Option<u64>),
    unique: bool,
}

/// A schema that spans can meet.
#[derive(Clone, Debug, PartialEq)]
pub struct Schema {
    source: String,
    fields: Vec<Field>,
    closed: bool,
    /// Keys of objects within, with whether they are required and whether they are closed.
    groups: BTreeMap<String, (bool, bool)>,
}

type Result<T, E = SchemaError> = std::result::Result<T, E>;

fn wrong<T>(path: &str, problem: impl Into<String>) -> Result<T> {
    Err(SchemaError { path: if path.is_empty() { "/".to_owned() } else { path.to_owned() }, problem: problem.into() })
}

/// Keys that say nothing about answers.
const REMARKS: [&str; 8] = ["$schema", "$id", "title", "description", "examples", "default", "$comment", "deprecated"];

impl Schema {
    /// Reads a schema.
    pub fn parse(text: &str) -> Result<Self> {
        if text.len() > MAX_SCHEMA_BYTES {
            return wrong("", format!("{} bytes are more than {MAX_SCHEMA_BYTES}", text.len()));
        }
        let source: Value = serde_json::from_str(text).or_else(|error| wrong("", format!("it is no JSON: {error}")))?;
        let object = Node::at("", &source)?;
        object.only(&["type", "properties", "required", "additionalProperties"])?;
        if object.types()? != (vec!["object"], false) {
            return wrong("/type", "an extraction answers with an object: `\"type\": \"object\"`");
        }
        let mut schema =
            Self { source: source.to_string(), fields: Vec::new(), closed: object.closed()?, groups: BTreeMap::new() };
        let required = object.required()?;
        for (key, node) in object.properties()? {
            let is_required = required.contains(&key.as_str());
            if node.types()?.0 == ["object"] {
                schema.group(&key, &node, is_required)?;
            } else {
                schema.fields.push(field(vec![key.clone()], &node, is_required)?);
            }
        }
        if schema.fields.is_empty() {
            return wrong("/properties", "it names no field: there is nothing to extract");
        }
        if schema.fields.len() > MAX_FIELDS {
            return wrong("/properties", format!("{} fields are more than {MAX_FIELDS}", schema.fields.len()));
        }
        let mut names: Vec<&str> = schema.fields.iter().map(|field| field.name.as_str()).collect();
        names.sort_unstable();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return wrong("/properties", format!("two fields are called `{}`: rename one", pair[0]));
        }
        Ok(schema)
    }

    fn group(&mut self, key: &str, node: &Node<'_>, is_required: bool) -> Result<()> {
        node.only(&["type", "properties", "required", "additionalProperties"])?;
        if node.types()?.1 {
            return wrong(
                &node.path,
                "an object that may be null is not supported: leave it out of `required` instead",
            );
        }
        let required = node.required()?;
        self.groups.insert(key.to_owned(), (is_required, node.closed()?));
        for (inner, node) in node.properties()? {
            if node.types()?.0 == ["object"] {
                return wrong(&node.path, "objects are read one level deep: move these properties up");
            }
            let is_required = required.contains(&inner.as_str());
            self.fields.push(field(vec![key.to_owned(), inner.clone()], &node, is_required)?);
        }
        Ok(())
    }

    /// The schema as JSON text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The fields, in the schema's order: the order of tags.
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// The answer of these values a field; `None` in the place of an error: they do not meet the schema.
    ///
    /// # Errors
    ///
    /// Which requirement is not met.
    pub fn assemble(&self, values: &[Vec<Value>]) -> std::result::Result<Value, String> {
        let mut answer = Map::new();
        let is_there = |group: &str| {
            let is_filled = |(field, values): (&Field, &Vec<Value>)| {
                field.keys.len() == 2 && field.keys[0] == group && !values.is_empty()
            };
            self.groups.get(group).is_some_and(|(required, _)| *required)
                || self.fields.iter().zip(values).any(is_filled)
        };
        for (field, values) in self.fields.iter().zip(values) {
            let target = match &field.keys[..] {
                // An object that is left out has no required fields.
                [group, _] if !is_there(group) => continue,
                [group, _] => answer.entry(group.clone()).or_insert_with(|| Value::Object(Map::new())).as_object_mut(),
                _ => Some(&mut answer),
            };
            let Some(target) = target else { continue };
            let value = match (field.many, values.as_slice()) {
                (true, []) if !field.required => continue,
                (true, values) => Value::Array(values.to_vec()),
                (false, [first, ..]) => first.clone(),
                (false, []) if field.nullable && field.required => Value::Null,
                (false, []) if !field.required => continue,
                (false, []) => return Err(format!("`{}` is required and was not found", field.name)),
            };
            field.check(&value)?;
            target.insert(field.keys[field.keys.len() - 1].clone(), value);
        }
        for (group, (required, _)) in &self.groups {
            if *required && !answer.contains_key(group) {
                answer.insert(group.clone(), Value::Object(Map::new()));
            }
        }
        Ok(Value::Object(answer))
    }

    /// Does an answer meet the schema? Its values a field, if so.
    ///
    /// # Errors
    ///
    /// Where it does not, and why.
    pub fn values(&self, answer: &Value) -> std::result::Result<Vec<Vec<Value>>, String> {
        let top = answer.as_object().ok_or("the answer is no JSON object")?;
        let known = |keys: &[&str]| {
            self.fields
                .iter()
                .any(|field| field.keys.iter().zip(keys).all(|(a, b)| a == b) && field.keys.len() >= keys.len())
        };
        for (key, value) in top {
            if !known(&[key]) && self.closed {
                return Err(format!("the schema has no property `{key}`"));
            }
            let Some((_, closed)) = self.groups.get(key) else { continue };
            let inner = value.as_object().ok_or_else(|| format!("`{key}` is no object"))?;
            if let Some(unknown) = inner.keys().find(|inner| *closed && !known(&[key, inner])) {
                return Err(format!("the schema has no property `{key}.{unknown}`"));
            }
        }
        if let Some((group, _)) =
            self.groups.iter().find(|(group, (required, _))| *required && !top.contains_key(*group))
        {
            return Err(format!("`{group}` is required and is not there"));
        }
        self.fields
            .iter()
            .map(|field| {
                let holder = match &field.keys[..] {
                    [group, _] => top.get(group).and_then(Value::as_object),
                    _ => Some(top),
                };
                let Some(holder) = holder else { return Ok(Vec::new()) };
                match holder.get(&field.keys[field.keys.len() - 1]) {
                    None if field.required => Err(format!("`{}` is required and is not there", field.name)),
                    None => Ok(Vec::new()),
                    Some(value) => {
                        field.check(value)?;
                        Ok(match value {
                            Value::Null => Vec::new(),
                            Value::Array(values) => values.clone(),
                            value => vec![value.clone()],
                        })
                    }
                }
            })
            .collect()
    }
}

impl Field {
    /// The value that these words write, if it is one that the schema allows.
    pub fn value(&self, raw: &str) -> Option<Value> {
        if let Some(value) = self.synonyms.get(&fold_case(raw)) {
            return Some(Value::String(value.clone()));
        }
        let value = self.normaliser.apply(raw)?;
        let value = match (&self.choices, value) {
            (Some(choices), Value::String(text)) => {
                let folded = fold_case(&text);
                Value::String(choices.iter().find(|choice| fold_case(choice) == folded)?.clone())
            }
            (_, value) => value,
        };
        self.check_one(&value).ok().map(|()| value)
    }

    /// Are values of this field compared as they stand in the text?
    pub fn is_verbatim(&self) -> bool {
        self.normaliser == Normaliser::Text && self.choices.is_none() && self.synonyms.is_empty()
    }

    /// Values that an answer has for it, at most.
    pub fn most(&self) -> usize {
        match (self.many, self.limits.items.1) {
            (false, _) => 1,
            (true, most) => most.map_or(usize::MAX, |most| usize::try_from(most).unwrap_or(usize::MAX)),
        }
    }

    fn check(&self, value: &Value) -> std::result::Result<(), String> {
        match value {
            Value::Null if self.nullable => Ok(()),
            Value::Array(values) if self.many => {
                let (low, high) = self.limits.items;
                let n = values.len() as u64;
                if low.is_some_and(|low| n < low) || high.is_some_and(|high| n > high) {
                    return Err(format!("`{}` has {n} values", self.name));
                }
                if self.limits.unique && (1..values.len()).any(|at| values[..at].contains(&values[at])) {
                    return Err(format!("`{}` has a value twice", self.name));
                }
                values.iter().try_for_each(|value| self.check_one(value))
            }
            _ if self.many => Err(format!("`{}` must be a list", self.name)),
            value => self.check_one(value),
        }
    }

    fn check_one(&self, value: &Value) -> std::result::Result<(), String> {
        let fits = match (value, self.normaliser) {
            (Value::Number(number), Normaliser::Number) => {
                let x = number.as_f64().unwrap_or(f64::NAN);
                let (low, high) = self.limits.number;
                (!self.limits.integer || x.fract() == 0.0)
                    && low.is_none_or(|low| x >= low)
                    && high.is_none_or(|high| x <= high)
            }
            (_, Normaliser::Number) => false,
            (Value::String(text), _) => {
                let (low, high) = self.limits.length;
                let n = text.chars().count() as u64;
                let is_normal = || self.normaliser.apply(text).as_ref() == Some(value);
                let is_synonym = || self.synonyms.values().any(|synonym| synonym == text);
                (self.normaliser == Normaliser::Text || is_normal() || is_synonym())
                    && self.choices.as_ref().is_none_or(|choices| choices.contains(text))
                    && low.is_none_or(|low| n >= low)
                    && high.is_none_or(|high| n <= high)
            }
            _ => false,
        };
        if fits {
            return Ok(());
        }
        let hint = match self.normaliser {
            Normaliser::Date | Normaliser::DateMonthFirst => ": dates are written `YYYY-MM-DD`",
            Normaliser::Money => ": money is written `1234.50 EUR`",
            Normaliser::Quantity => ": quantities are written `10.6 kg`",
            Normaliser::Currency => ": currencies are ISO 4217 codes",
            Normaliser::Country => ": countries are ISO 3166 alpha-2 codes",
            Normaliser::Text | Normaliser::Number => "",
        };
        Err(format!("`{}` cannot be {value}{hint}", self.name))
    }
}

fn field(keys: Vec<String>, node: &Node<'_>, required: bool) -> Result<Field> {
    let (types, nullable) = node.types()?;
    let many = types == ["array"];
    let items = if many {
        node.only(&["type", "items", "minItems", "maxItems", "uniqueItems"])?;
        let Some(items) = node.object.get("items") else {
            return wrong(&node.path, "a list needs `items` that say what it holds");
        };
        Some(Node::at(&format!("{}/items", node.path), items)?)
    } else {
        None
    };
    let value = items.as_ref().unwrap_or(node);
    value.only(&[
        "type",
        "enum",
        "format",
        "minimum",
        "maximum",
        "minLength",
        "maxLength",
        "x-metier-normalise",
        "x-metier-synonyms",
    ])?;
    let (types, items_nullable) = if many { value.types()? } else { (types, false) };
    let is_number = match types[..] {
        ["string"] => false,
        ["number" | "integer"] => true,
        ["array"] => return wrong(&value.path, "lists of lists are not supported"),
        ["object"] => {
            return wrong(
                &value.path,
                "lists of objects are not supported: spans do not say which of them belong together",
            );
        }
        ["boolean"] => return wrong(&value.path, "a span is no truth value: use an enumeration of strings"),
        _ => return wrong(&value.path, "one type: `string`, `number` or `integer`, perhaps with `null`"),
    };
    if items_nullable {
        return wrong(&value.path, "a value that was not found is not in the list: it cannot be null");
    }
    let choices = value.choices(is_number)?;
    let normaliser = value.normaliser(is_number)?;
    let limits = Limits {
        integer: types == ["integer"],
        number: value.bounds("minimum", "maximum", Value::as_f64)?,
        length: value.bounds("minLength", "maxLength", Value::as_u64)?,
        items: node.bounds("minItems", "maxItems", Value::as_u64)?,
        unique: node.flag("uniqueItems")?,
    };
    let synonyms = value.synonyms(choices.as_deref())?;
    let field = Field { name: keys.join("."), keys, many, required, nullable, normaliser, choices, synonyms, limits };
    if field.limits.integer && matches!(field.limits.number, (Some(low), Some(high)) if low.ceil() > high.floor()) {
        return wrong(&value.path, "no integer lies between `minimum` and `maximum`: no answer can meet this");
    }
    if let Some(choices) = &field.choices
        && let Some(choice) = choices.iter().find(|choice| field.check_one(&Value::String((*choice).clone())).is_err())
    {
        return wrong(&value.path, format!("`{choice}` of `enum` does not meet the bounds beside it"));
    }
    if let (Some(choices), (Some(low), _), true) = (&field.choices, field.limits.items, field.limits.unique)
        && low > choices.len() as u64
    {
        return wrong(
            &node.path,
            format!("{low} different values of {} cannot be: no answer can meet this", choices.len()),
        );
    }
    Ok(field)
}

/// A part of the schema with its path.
struct Node<'a> {
    path: String,
    object: &'a Map<String, Value>,
}

impl<'a> Node<'a> {
    fn at(path: &str, value: &'a Value) -> Result<Self> {
        match value {
            Value::Object(object) => Ok(Self { path: path.to_owned(), object }),
            Value::Bool(false) => wrong(path, "`false` allows nothing: no answer can meet this"),
            _ => wrong(path, "it must be an object that says what is wanted"),
        }
    }

    /// Refuses every key but these and remarks.
    fn only(&self, known: &[&str]) -> Result<()> {
        let unknown = self.object.keys().find(|key| !known.contains(&key.as_str()) && !REMARKS.contains(&key.as_str()));
        match unknown.map(String::as_str) {
            None => Ok(()),
            Some(
                key @ ("anyOf" | "oneOf" | "allOf" | "not" | "if" | "then" | "else" | "$ref" | "$defs" | "definitions"),
            ) => wrong(
                &format!("{}/{key}", self.path),
                "alternatives and references are not supported: write each field out",
            ),
            Some("pattern") => wrong(
                &format!("{}/pattern", self.path),
                "patterns are not supported: what stands in the text is what is found; check it afterwards",
            ),
            Some(key) => wrong(
                &format!("{}/{key}", self.path),
                format!("this key is not supported here; known are `{}`", known.join("`, `")),
            ),
        }
    }

    /// Its types without `null`, and whether `null` is one.
    fn types(&self) -> Result<(Vec<&'a str>, bool)> {
        let path = format!("{}/type", self.path);
        let all: Vec<&str> = match self.object.get("type") {
            Some(Value::String(one)) => vec![one],
            Some(Value::Array(many)) if many.is_empty() => {
                return wrong(&path, "no type is allowed: no answer can meet this");
            }
            Some(Value::Array(many)) => match many.iter().map(Value::as_str).collect::<Option<Vec<_>>>() {
                Some(many) => many,
                None => return wrong(&path, "types are names"),
            },
            Some(_) => return wrong(&path, "a type is a name, or a list of names"),
            None if self.object.contains_key("enum") => vec!["string"],
            None if self.object.contains_key("properties") => vec!["object"],
            None => return wrong(&self.path, "it needs a `type`"),
        };
        let known = ["object", "array", "string", "number", "integer", "boolean", "null"];
        if let Some(unknown) = all.iter().find(|name| !known.contains(name)) {
            return wrong(&path, format!("there is no type `{unknown}`"));
        }
        let nullable = all.contains(&"null");
        Ok((all.into_iter().filter(|name| *name != "null").collect(), nullable))
    }

    fn properties(&self) -> Result<Vec<(String, Node<'a>)>> {
        let path = format!("{}/properties", self.path);
        let Some(properties) = self.object.get("properties") else { return Ok(Vec::new()) };
        let Value::Object(properties) = properties else { return wrong(&path, "it must be an object of fields") };
        let escape = |key: &str| key.replace('~', "~0").replace('/', "~1");
        properties
            .iter()
            .map(|(key, value)| Ok((key.clone(), Node::at(&format!("{path}/{}", escape(key)), value)?)))
            .collect()
    }

    fn required(&self) -> Result<Vec<&'a str>> {
        let path = format!("{}/required", self.path);
        let names = match self.object.get("required") {
            None => return Ok(Vec::new()),
            Some(Value::Array(names)) => names.iter().map(Value::as_str).collect::<Option<Vec<_>>>(),
            Some(_) => None,
        };
        let Some(names) = names else { return wrong(&path, "it must be a list of names") };
        let known = self.object.get("properties").and_then(Value::as_object);
        if let Some(name) = names.iter().find(|name| known.is_none_or(|known| !known.contains_key(**name))) {
            return wrong(&path, format!("`{name}` is required but is no property: no answer can meet this"));
        }
        Ok(names)
    }

    fn closed(&self) -> Result<bool> {
        match self.object.get("additionalProperties") {
            None | Some(Value::Bool(true)) => Ok(false),
            Some(Value::Bool(false)) => Ok(true),
            Some(_) => wrong(
                &format!("{}/additionalProperties", self.path),
                "only `true` and `false` are supported: name each field",
            ),
        }
    }

    fn choices(&self, is_number: bool) -> Result<Option<Vec<String>>> {
        let path = format!("{}/enum", self.path);
        let Some(values) = self.object.get("enum") else { return Ok(None) };
        let Value::Array(values) = values else { return wrong(&path, "it must be a list of values") };
        if values.is_empty() {
            return wrong(&path, "it is empty: no answer can meet this");
        }
        if is_number {
            return wrong(&path, "enumerations of numbers are not supported: use `minimum` and `maximum`, or strings");
        }
        match values.iter().map(|value| value.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>() {
            Some(values) => Ok(Some(values)),
            None => wrong(&path, "only strings are supported"),
        }
    }

    fn normaliser(&self, is_number: bool) -> Result<Normaliser> {
        let path = format!("{}/x-metier-normalise", self.path);
        let names = || Normaliser::NAMED.map(|(name, _)| name).join("`, `");
        let asked = match self.object.get("x-metier-normalise") {
            None => None,
            Some(name) => match name.as_str().and_then(Normaliser::named) {
                Some(normaliser) => Some(normaliser),
                None => return wrong(&path, format!("there is no {name}; known are `{}`", names())),
            },
        };
        let format = match self.object.get("format").map(Value::as_str) {
            None => None,
            Some(Some("date")) => Some(Normaliser::Date),
            Some(other) => {
                let other = other.unwrap_or("?");
                return wrong(
                    &format!("{}/format", self.path),
                    format!(
                        "format `{other}` is not supported, only `date`: leave it out, or use `x-metier-normalise`"
                    ),
                );
            }
        };
        match (asked.or(format), is_number) {
            (None, true) | (Some(Normaliser::Number), true) => Ok(Normaliser::Number),
            (Some(Normaliser::Number), false) => {
                wrong(&path, "`number` gives numbers: the type must be `number` or `integer`")
            }
            (Some(_), true) => wrong(&path, "this gives strings, and the type is a number"),
            (None, false) => Ok(Normaliser::Text),
            (Some(normaliser), false) => Ok(normaliser),
        }
    }

    fn synonyms(&self, choices: Option<&[String]>) -> Result<BTreeMap<String, String>> {
        let path = format!("{}/x-metier-synonyms", self.path);
        let Some(all) = self.object.get("x-metier-synonyms") else { return Ok(BTreeMap::new()) };
        let Value::Object(all) = all else { return wrong(&path, "it must be an object: value → list of writings") };
        let mut found = BTreeMap::new();
        for (value, writings) in all {
            if choices.is_some_and(|choices| !choices.contains(value)) {
                return wrong(&path, format!("`{value}` is not in `enum`"));
            }
            let Some(writings) = writings.as_array() else {
                return wrong(&path, format!("`{value}` needs a list of writings"));
            };
            for writing in writings {
                let Some(writing) = writing.as_str() else { return wrong(&path, "writings are strings") };
                if found.insert(fold_case(writing), value.clone()).is_some_and(|other| other != *value) {
                    return wrong(&path, format!("`{writing}` stands for two values"));
                }
            }
        }
        Ok(found)
    }

    fn bounds<T: PartialOrd + Copy>(
        &self,
        low: &str,
        high: &str,
        read: fn(&Value) -> Option<T>,
    ) -> Result<(Option<T>, Option<T>)> {
        let one = |key: &str| match self.object.get(key) {
            None => Ok(None),
            Some(value) => match read(value) {
                Some(value) => Ok(Some(value)),
                None => wrong(&format!("{}/{key}", self.path), "it must be a number that is not negative for lengths"),
            },
        };
        match (one(low)?, one(high)?) {
            (Some(a), Some(b)) if a > b => {
                wrong(&self.path, format!("`{low}` is above `{high}`: no answer can meet this"))
            }
            bounds => Ok(bounds),
        }
    }

    fn flag(&self, key: &str) -> Result<bool> {
        match self.object.get(key) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => wrong(&format!("{}/{key}", self.path), "it must be true or false"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn of(properties: Value) -> String {
        json!({"type": "object", "properties": properties, "required": []}).to_string()
    }

    #[track_caller]
    fn check(schema: &str, message: &str) {
        let error = Schema::parse(schema).expect_err("must be refused").to_string();
        assert!(error.contains(message), "`{error}` does not contain `{message}`");
    }

    #[test]
    fn refuses_by_path() {
        check("[", "schema at `/`: it is no JSON");
        check("{\"type\": \"array\"}", "schema at `/type`: an extraction answers with an object");
        check("false", "no answer can meet this");
        check("{\"type\": \"object\"}", "`/properties`: it names no field");
        check(
            "{\"type\": \"object\", \"required\": [\"a\"]}",
            "`/required`: `a` is required but is no property: no answer can meet this",
        );
        check(&of(json!({"a": false})), "`/properties/a`: `false` allows nothing");
        check(&of(json!({"a": {}})), "`/properties/a`: it needs a `type`");
        check(&of(json!({"a/b": {"type": "boolean"}})), "`/properties/a~1b`: a span is no truth value");
        check(&of(json!({"a": {"type": []}})), "`/properties/a/type`: no type is allowed");
        check(&of(json!({"a": {"enum": []}})), "`/properties/a/enum`: it is empty: no answer can meet this");
        check(&of(json!({"a": {"anyOf": []}})), "`/properties/a`: it needs a `type`");
        check(&of(json!({"a": {"type": "string", "anyOf": []}})), "`/properties/a/anyOf`: alternatives");
        check(
            &of(json!({"a": {"type": "string", "pattern": "x"}})),
            "`/properties/a/pattern`: patterns are not supported",
        );
        check(&of(json!({"a": {"type": "number", "minimum": 3, "maximum": 2}})), "`minimum` is above `maximum`");
        check(&of(json!({"a": {"type": "integer", "minimum": 0.2, "maximum": 0.8}})), "no integer lies between");
        check(&of(json!({"a": {"type": "string", "minLength": -1}})), "`/properties/a/minLength`");
        check(&of(json!({"a": {"type": "string", "format": "email"}})), "format `email` is not supported, only `date`");
        check(&of(json!({"a": {"type": "string", "x-metier-normalise": "datum"}})), "known are `text`, `number`");
        check(&of(json!({"a": {"type": "array"}})), "a list needs `items`");
        check(&of(json!({"a": {"type": "array", "items": {"type": "object"}}})), "lists of objects");
        check(
            &of(json!({"a": {"type": "object", "properties": {"b": {"type": "object"}}}})),
            "`/properties/a/properties/b`: objects are read one level deep",
        );
        check(
            &of(json!({"a.b": {"type": "string"}, "a": {"type": "object", "properties": {"b": {"type": "string"}}}})),
            "two fields are called `a.b`",
        );
        check(&of(json!({"a": {"enum": ["x"], "x-metier-synonyms": {"y": ["z"]}}})), "`y` is not in `enum`");
        check(
            &of(json!({"a": {"type": "array", "minItems": 3, "uniqueItems": true, "items": {"enum": ["x"]}}})),
            "no answer can meet this",
        );
        check(&of(json!({"a": {"enum": ["abc"], "maxLength": 2}})), "`abc` of `enum` does not meet");
    }

    fn order() -> Schema {
        let schema = json!({
            "type": "object", "additionalProperties": false, "required": ["number", "tags"],
            "properties": {
                "number": {"type": "string"},
                "due": {"type": ["string", "null"], "format": "date"},
                "total": {"type": "object", "required": ["amount"], "properties": {
                    "amount": {"type": "number", "minimum": 0},
                    "currency": {"enum": ["EUR", "USD"], "x-metier-synonyms": {"EUR": ["€"]}},
                }},
                "tags": {"type": "array", "items": {"type": "string"}},
            },
        });
        Schema::parse(&schema.to_string()).unwrap()
    }

    #[test]
    fn assembles_what_meets_it() {
        let schema = order();
        let names: Vec<&str> = schema.fields().iter().map(|field| field.name.as_str()).collect();
        let at = |name: &str| names.iter().position(|n| *n == name).unwrap();
        let mut values = vec![Vec::new(); names.len()];
        assert_eq!(schema.assemble(&values), Err("`number` is required and was not found".to_owned()));
        values[at("number")] = vec![json!("A1")];
        let answer = schema.assemble(&values).unwrap();
        assert_eq!(answer, json!({"number": "A1", "tags": []}));
        values[at("total.currency")] = vec![schema.fields()[at("total.currency")].value("€").unwrap()];
        assert_eq!(schema.assemble(&values), Err("`total.amount` is required and was not found".to_owned()));
        values[at("total.amount")] = vec![schema.fields()[at("total.amount")].value("1,200.50").unwrap()];
        let answer = schema.assemble(&values).unwrap();
        assert_eq!(
            answer.to_string(),
            r#"{"number":"A1","total":{"amount":1200.5,"currency":"EUR"},"tags":[]}"#,
            "in the schema's order"
        );
        assert_eq!(schema.values(&answer).unwrap(), values);
        assert_eq!(schema.fields()[at("total.amount")].value("-3"), None, "below the minimum");
        assert_eq!(schema.fields()[at("total.currency")].value("CHF"), None, "not in the enumeration");
    }

    #[test]
    fn tells_answers_that_do_not_meet_it() {
        let schema = order();
        let check = |answer: Value, message: &str| assert_eq!(schema.values(&answer), Err(message.to_owned()));
        check(json!([]), "the answer is no JSON object");
        check(json!({"tags": []}), "`number` is required and is not there");
        check(json!({"number": "a", "tags": [], "colour": 1}), "the schema has no property `colour`");
        check(json!({"number": 1, "tags": []}), "`number` cannot be 1");
        check(
            json!({"number": "a", "tags": [], "due": "3 May"}),
            "`due` cannot be \"3 May\": dates are written `YYYY-MM-DD`",
        );
        check(json!({"number": "a", "tags": "b"}), "`tags` must be a list");
        check(
            json!({"number": "a", "tags": [], "total": {"amount": 1, "currency": "GBP"}}),
            "`total.currency` cannot be \"GBP\"",
        );
        check(json!({"number": "a", "tags": [], "total": 3}), "`total` is no object");
        assert!(schema.values(&json!({"number": "a", "tags": [], "due": null})).is_ok());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,80}|[\\[\\]{}\":,a-z0-9]{0,80}") {
            let _ = Schema::parse(&text);
        }

        #[test]
        fn what_it_assembles_meets_it(raw in prop::collection::vec("[0-9 a-z€.,-]{0,12}", 5), takes in prop::collection::vec(any::<bool>(), 5)) {
            let schema = order();
            let values: Vec<Vec<Value>> = schema.fields().iter().zip(raw.iter().zip(takes))
                .map(|(field, (raw, take))| field.value(raw).into_iter().filter(|_| take).collect()).collect();
            if let Ok(answer) = schema.assemble(&values) {
                prop_assert!(schema.values(&answer).is_ok(), "{answer}");
            }
        }
    }
}
