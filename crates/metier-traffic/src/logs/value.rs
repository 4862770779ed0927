//! What formats have in common: fields under several names, JSON inside strings, times, tokens, messages and answers of every provider.

use std::borrow::Cow;

use serde_json::{Map, Value};

use crate::{
    exchange::{Exchange, Odd, Said, Speaker, Tokens},
    price::PICOUSD_PER_USD,
};

pub(super) type Object = Map<String, Value>;

const MS_PER_DAY: i64 = 86_400_000;
/// How often JSON inside a string may hold JSON inside a string.
const MAX_NESTED_STRINGS: usize = 3;

/// The first of these fields that is there and not null; a dot goes one object deeper.
pub(super) fn field<'a>(object: &'a Object, names: &[&str]) -> Option<&'a Value> {
    names.iter().find_map(|name| {
        let whole = object.get(*name);
        let deeper = || {
            let (first, rest) = name.split_once('.')?;
            field(object.get(first)?.as_object()?, &[rest])
        };
        whole.or_else(deeper).filter(|value| !value.is_null())
    })
}

/// A text that is not empty; a number as its digits.
pub(super) fn text(object: &Object, names: &[&str]) -> Option<String> {
    match field(object, names)? {
        Value::String(text) if !text.trim().is_empty() => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// A number, also one that stands in a string.
pub(super) fn number(value: &Value) -> Option<f64> {
    let number = match value {
        Value::Number(number) => number.as_f64()?,
        Value::String(text) => text.trim().parse().ok()?,
        _ => return None,
    };
    number.is_finite().then_some(number)
}

/// JSON inside a string, or the value itself.
pub(super) fn parsed(value: &Value) -> Cow<'_, Value> {
    let mut value = Cow::Borrowed(value);
    for _ in 0..MAX_NESTED_STRINGS {
        let inner = match value.as_ref() {
            Value::String(text) if text.trim_start().starts_with(['{', '[']) => serde_json::from_str(text).ok(),
            _ => None,
        };
        match inner {
            Some(inner) => value = Cow::Owned(inner),
            None => break,
        }
    }
    value
}

/// The object under one of these names, also where it stands in a string.
pub(super) fn object(of: &Object, names: &[&str]) -> Option<Object> {
    match parsed(field(of, names)?) {
        Cow::Borrowed(Value::Object(object)) => Some(object.clone()),
        Cow::Owned(Value::Object(object)) => Some(object),
        _ => None,
    }
}

/// A moment in milliseconds since 1970, and whether its zone is known.
pub(super) fn moment(value: &Value) -> Option<(u64, bool)> {
    if let Some(number) = number(value) {
        // Seconds until the year 5138, then milliseconds, microseconds, nanoseconds.
        let ms = match number {
            n if n < 0.0 => return None,
            n if n < 1e11 => n * 1e3,
            n if n < 1e14 => n,
            n if n < 1e17 => n / 1e3,
            n => n / 1e6,
        };
        return Some((ms.round() as u64, true));
    }
    let text = value.as_str()?.trim();
    let (ms, zoned) = parse_time(text)?;
    Some((u64::try_from(ms).ok()?, zoned))
}

/// RFC 3339, with a space for the `T` and without a zone too.
fn parse_time(text: &str) -> Option<(i64, bool)> {
    let digits = |range: std::ops::Range<usize>| -> Option<i64> {
        let part = text.get(range)?;
        part.bytes().all(|byte| byte.is_ascii_digit()).then(|| part.parse().ok())?
    };
    let sign = |at: usize, allowed: &[u8]| text.as_bytes().get(at).is_some_and(|byte| allowed.contains(byte));
    let (year, month, day) = (digits(0..4)?, digits(5..7)?, digits(8..10)?);
    if !(sign(4, b"-/") && sign(7, b"-/") && (1..=12).contains(&month) && (1..=31).contains(&day)) {
        return None;
    }
    let midnight = days_from_civil(year, month, day) * MS_PER_DAY;
    if text.len() == 10 {
        return Some((midnight, false));
    }
    let (hour, minute, second) = (digits(11..13)?, digits(14..16)?, digits(17..19).unwrap_or(0));
    if !(sign(10, b"T t") && sign(13, b":") && hour < 24 && minute < 60 && second <= 60) {
        return None;
    }
    let mut rest = text.get(if sign(16, b":") { 19 } else { 16 }..)?;
    let mut ms = 0;
    if let Some(fraction) = rest.strip_prefix(['.', ',']) {
        let end = fraction.bytes().position(|byte| !byte.is_ascii_digit()).unwrap_or(fraction.len());
        ms = fraction[..end].bytes().chain(*b"000").take(3).fold(0, |ms, byte| ms * 10 + i64::from(byte - b'0'));
        rest = &fraction[end..];
    }
    let local = midnight + ((hour * 60 + minute) * 60 + second) * 1000 + ms;
    match rest.trim() {
        "" => Some((local, false)),
        "Z" | "z" | "UTC" | "GMT" | "+00" => Some((local, true)),
        zone => {
            let (sign, zone) = match zone.split_at_checked(1)? {
                ("+", zone) => (1, zone),
                ("-", zone) => (-1, zone),
                _ => return None,
            };
            let zone = zone.replace(':', "");
            let (hours, minutes) = match zone.len() {
                2 => (zone.parse::<i64>().ok()?, 0),
                4 => (zone.get(..2)?.parse::<i64>().ok()?, zone.get(2..)?.parse::<i64>().ok()?),
                _ => return None,
            };
            Some((local - sign * (hours * 60 + minutes) * 60_000, true))
        }
    }
}

/// Days since 1970 of a civil date, by Howard Hinnant's `days_from_civil` (<https://howardhinnant.github.io/date_algorithms.html>).
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

impl Exchange {
    /// Takes begin and end from these fields; `utc`: the format says that times without a zone are UTC.
    pub(super) fn times(&mut self, object: &Object, begin: &[&str], end: &[&str], utc: bool) {
        if let Some(value) = field(object, begin).filter(|value| value.as_str() != Some("")) {
            match moment(value) {
                Some((ms, zoned)) => {
                    self.time_ms = Some(ms);
                    if !zoned && !utc {
                        self.odd.push(Odd::NoZone);
                    }
                }
                None => self.odd.push(Odd::UnreadableTime),
            }
        }
        let end = field(object, end).and_then(moment);
        if let (Some(begin), Some((end, _))) = (self.time_ms, end) {
            match end.checked_sub(begin) {
                Some(elapsed) => self.elapsed_ms = Some(elapsed),
                None => self.odd.push(Odd::EndsBeforeItBegins),
            }
        }
    }

    /// Takes the cost that the log says, in dollars.
    pub(super) fn cost(&mut self, object: &Object, names: &[&str]) {
        match field(object, names).and_then(number) {
            Some(usd) if usd < 0.0 => self.odd.push(Odd::NegativeCost),
            Some(usd) => self.logged_cost_picousd = Some((usd * PICOUSD_PER_USD as f64).round() as u64),
            None => {}
        }
    }

    /// Takes tokens from the fields of an object.
    pub(super) fn usage(&mut self, object: &Object) {
        let count = |names: &[&str]| field(object, names).and_then(number);
        let input = count(&[
            "prompt_tokens",
            "input_tokens",
            "promptTokens",
            "inputTokens",
            "prompt_token_count",
            "promptTokenCount",
            "ContextTokens",
            "context_tokens",
        ]);
        let output = count(&[
            "completion_tokens",
            "output_tokens",
            "completionTokens",
            "outputTokens",
            "candidates_token_count",
            "candidatesTokenCount",
            "GeneratedTokens",
            "generated_tokens",
        ]);
        let of_input = count(&[
            "prompt_tokens_details.cached_tokens",
            "input_tokens_details.cached_tokens",
            "cached_tokens",
            "prompt_cache_read_tokens",
        ]);
        // Anthropic counts what the cache held beside the input, not in it.
        let beside = count(&["cache_read_input_tokens"]).filter(|_| of_input.is_none());
        let written = count(&["cache_creation_input_tokens"]).filter(|_| of_input.is_none());
        let anthropic = object.contains_key("input_tokens") && (beside.is_some() || written.is_some());
        let besides = if anthropic { beside.unwrap_or(0.0) + written.unwrap_or(0.0) } else { 0.0 };
        self.counts(input.map(|input| input + besides), output, of_input.or(beside));
    }

    /// Takes these counts, if any of them is there.
    pub(super) fn counts(&mut self, input: Option<f64>, output: Option<f64>, cached: Option<f64>) {
        if input.is_none() && output.is_none() {
            return;
        }
        let all = [input, output, cached].map(|count| count.unwrap_or(0.0));
        if all.iter().any(|&count| count < 0.0) {
            self.odd.push(Odd::NegativeTokens);
            return;
        }
        let [input, output, cached] = all.map(|count| count.round() as u64);
        self.tokens = Some(Tokens { input, output, cached: cached.min(input) });
    }

    /// Takes tools and schema from a request's body.
    pub(super) fn contract(&mut self, body: &Object) {
        if let Some(tools) = field(body, &["tools", "functions"]).map(parsed)
            && let Value::Array(tools) = tools.as_ref()
        {
            let name = |tool: &Value| text(tool.as_object()?, &["function.name", "name", "type"]);
            self.tools = tools.iter().filter_map(name).collect();
            self.tools.sort();
            self.tools.dedup();
        }
        let schema = field(
            body,
            &["response_format.json_schema.schema", "response_format.schema", "text.format.schema", "output_schema"],
        );
        let json_object = || text(body, &["response_format.type"]).filter(|kind| kind == "json_object");
        self.schema = schema
            .map(|schema| parsed(schema).to_string())
            .or_else(|| json_object().map(|_| r#"{"type":"object"}"#.to_owned()));
    }

    /// Takes what was said before the answer.
    pub(super) fn said(&mut self, value: &Value) {
        messages(parsed(value).as_ref(), &mut self.messages);
    }

    /// Takes what was said from a request's body in the shape of OpenAI (chat, completions, responses), Anthropic or Gemini.
    pub(super) fn body(&mut self, body: &Object) {
        if let Some(system) = field(body, &["system", "instructions", "systemInstruction", "system_instruction"]) {
            let text = content(parsed(system).as_ref());
            if !text.is_empty() {
                self.messages.push(Said { by: Speaker::System, text });
            }
        }
        if let Some(value) = field(body, &["messages", "input", "prompt", "contents"]) {
            self.said(value);
        }
        self.contract(body);
    }
}

/// The messages in a value: a conversation, one message, a text, or anything else as the JSON that it is.
fn messages(value: &Value, out: &mut Vec<Said>) {
    match value {
        Value::Null => {}
        Value::Array(items) => {
            let conversation = items.iter().any(|item| item.get("role").is_some() || item.get("type").is_some());
            if conversation {
                items.iter().for_each(|item| message(item, out));
            } else {
                push(Speaker::User, content(value), out);
            }
        }
        Value::Object(object) if object.contains_key("messages") => {
            if let Some(system) = field(object, &["system"]) {
                push(Speaker::System, content(parsed(system).as_ref()), out);
            }
            if let Some(inner) = field(object, &["messages"]) {
                let inner = parsed(inner);
                match inner.as_ref() {
                    Value::Array(_) => messages(inner.as_ref(), out),
                    other => push(Speaker::User, content(other), out),
                }
            }
        }
        Value::Object(object) if object.contains_key("role") => message(value, out),
        other => push(Speaker::User, content(other), out),
    }
}

fn push(by: Speaker, text: String, out: &mut Vec<Said>) {
    if !text.is_empty() {
        out.push(Said { by, text });
    }
}

fn message(value: &Value, out: &mut Vec<Said>) {
    let Some(object) = value.as_object() else { return push(Speaker::User, content(value), out) };
    let by = match object.get("role").and_then(Value::as_str) {
        Some("system" | "developer") => Speaker::System,
        Some("assistant" | "model" | "ai") => Speaker::Assistant,
        Some("tool" | "function") => Speaker::Tool,
        Some(_) => Speaker::User,
        // Items of the Responses API, and blocks that stand for a message.
        None => match object.get("type").and_then(Value::as_str) {
            Some("function_call" | "reasoning") => Speaker::Assistant,
            Some("function_call_output") => Speaker::Tool,
            _ => Speaker::User,
        },
    };
    let inner = field(object, &["content", "parts", "output"]);
    // Anthropic's results of tools are blocks of a user's message.
    if by == Speaker::User
        && let Some(Value::Array(blocks)) = inner
        && blocks.iter().any(|block| block.get("type").and_then(Value::as_str) == Some("tool_result"))
    {
        for block in blocks {
            let tool = block.get("type").and_then(Value::as_str) == Some("tool_result");
            push(if tool { Speaker::Tool } else { Speaker::User }, content(block), out);
        }
        return;
    }
    let mut text = inner.map_or_else(|| if by == Speaker::Assistant { String::new() } else { content(value) }, content);
    if let Some(calls) = calls(object) {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&calls);
    }
    push(by, text, out);
}

/// The text of a message's content.
fn content(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            let parts: Vec<String> = parts.iter().map(content).filter(|part| !part.is_empty()).collect();
            parts.join("\n")
        }
        Value::Object(object) => {
            let inner = field(object, &["text", "content", "value", "parts", "arguments", "output", "input_text"]);
            match object.get("type").and_then(Value::as_str) {
                Some("image_url" | "image" | "input_image" | "input_audio" | "file" | "input_file") => {
                    "[file]".to_owned()
                }
                Some("thinking" | "thought" | "reasoning" | "redacted_thinking") => String::new(),
                Some("tool_use" | "tool_call" | "function_call") => call(object),
                Some(_) => inner.map(|inner| content(parsed(inner).as_ref())).unwrap_or_default(),
                // Gemini's parts have no type.
                None if object.len() == 1 && object.contains_key("text") => inner.map(content).unwrap_or_default(),
                None if object.contains_key("parts") => inner.map(content).unwrap_or_default(),
                None => value.to_string(),
            }
        }
        other => other.to_string(),
    }
}

/// Calls of tools in an assistant's message, one line of JSON each.
fn calls(object: &Object) -> Option<String> {
    let single = object.get("function_call").and_then(Value::as_object).map(call);
    let many = || {
        let calls = object.get("tool_calls")?.as_array()?;
        let calls: Vec<String> = calls.iter().filter_map(Value::as_object).map(call).collect();
        (!calls.is_empty()).then(|| calls.join("\n"))
    };
    single.or_else(many)
}

fn call(object: &Object) -> String {
    let name = text(object, &["function.name", "name"]).unwrap_or_default();
    let arguments = field(object, &["function.arguments", "arguments", "input"]).map(parsed);
    let mut call = Object::new();
    call.insert("tool".to_owned(), Value::String(name));
    call.insert("arguments".to_owned(), arguments.map_or(Value::Null, Cow::into_owned));
    Value::Object(call).to_string()
}

/// What was answered, in the shape of any provider; none where nothing was.
pub(super) fn answer(value: &Value) -> Option<String> {
    let value = parsed(value);
    let text = match value.as_ref() {
        Value::Null => return None,
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            // Blocks of one answer, or a conversation that ends with it.
            let last = items.iter().rev().find(|item| item.get("role").is_some());
            match last {
                Some(last) => answer(last)?,
                None => content(value.as_ref()),
            }
        }
        Value::Object(object) => {
            if let Some(choice) = field(object, &["choices", "candidates"]).and_then(|choices| choices.get(0)) {
                let choice = choice.as_object()?;
                return match field(choice, &["message", "content", "text", "delta"])? {
                    Value::String(text) => non_empty(text.clone()),
                    other => answer(other),
                };
            }
            if let Some(text) = text(object, &["output_text", "raw"]) {
                return non_empty(text);
            }
            if let Some(Value::Array(items)) = object.get("output") {
                let said = items.iter().filter(|item| item.get("type").and_then(Value::as_str) != Some("reasoning"));
                let said: Vec<String> = said.map(content).filter(|text| !text.is_empty()).collect();
                return non_empty(said.join("\n"));
            }
            let is_message =
                object.contains_key("role") || object.get("type").and_then(Value::as_str) == Some("message");
            if is_message || object.contains_key("tool_calls") || object.contains_key("parts") {
                let mut said = field(object, &["content", "parts", "refusal"]).map(content).unwrap_or_default();
                if let Some(calls) = calls(object) {
                    if !said.is_empty() {
                        said.push('\n');
                    }
                    said.push_str(&calls);
                }
                said
            } else if object.is_empty() || object.contains_key("error") {
                return None;
            } else {
                value.to_string()
            }
        }
        other => other.to_string(),
    };
    non_empty(text)
}

fn non_empty(text: String) -> Option<String> {
    (!text.trim().is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn moments_in_every_spelling() {
        let check = |value: Value, expected: Option<(u64, bool)>| assert_eq!(moment(&value), expected, "{value}");
        check(json!(1_700_158_623), Some((1_700_158_623_000, true)));
        check(json!(1_700_158_623.5), Some((1_700_158_623_500, true)));
        check(json!("1700158623000"), Some((1_700_158_623_000, true)));
        check(json!("1700158623000000000"), Some((1_700_158_623_000, true)));
        check(json!("2023-11-16T18:17:03Z"), Some((1_700_158_623_000, true)));
        check(json!("2023-11-16 18:17:03.9799600"), Some((1_700_158_623_979, false)));
        check(json!("2023-11-16T20:17:03.5+02:00"), Some((1_700_158_623_500, true)));
        check(json!("2023-11-16T13:17:03-0500"), Some((1_700_158_623_000, true)));
        check(json!("2023-11-16"), Some((1_700_092_800_000, false)));
        for wrong in
            ["", "yesterday", "2023-13-01", "2023-11-16T25:00:00Z", "2023-11-16T18:17:03 mars", "16/11/2023", "é"]
        {
            check(json!(wrong), None);
        }
        check(json!(-5), None);
        check(json!("1960-01-01T00:00:00Z"), None);
    }

    #[test]
    fn answers_of_every_provider() {
        let check = |value: Value, expected: Option<&str>| assert_eq!(answer(&value).as_deref(), expected, "{value}");
        check(json!("yes"), Some("yes"));
        check(json!(null), None);
        check(json!(""), None);
        check(json!({"choices": [{"message": {"role": "assistant", "content": "yes"}}]}), Some("yes"));
        check(json!({"choices": [{"text": "yes"}]}), Some("yes"));
        check(
            json!({"type": "message", "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "yes"}]}),
            Some("yes"),
        );
        check(
            json!({"output": [{"type": "reasoning"}, {"type": "message", "content": [{"type": "output_text", "text": "yes"}]}]}),
            Some("yes"),
        );
        check(json!({"candidates": [{"content": {"parts": [{"text": "yes"}]}}]}), Some("yes"));
        check(json!([{"type": "text", "text": "yes"}]), Some("yes"));
        check(json!("[{\"type\":\"text\",\"text\":\"yes\"}]"), Some("yes"));
        check(json!({"raw": "{\"a\":1}", "parsed": {"a": 1}}), Some("{\"a\":1}"));
        check(json!({"a": 1}), Some("{\"a\":1}"));
        check(json!({"error": "overloaded"}), None);
        check(
            json!({"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "find", "arguments": "{\"q\":1}"}}]}),
            Some("{\"tool\":\"find\",\"arguments\":{\"q\":1}}"),
        );
    }

    #[test]
    fn conversations_of_every_provider() {
        let said = |value: Value| {
            let mut exchange = Exchange::default();
            exchange.body(value.as_object().expect("an object"));
            exchange.messages.into_iter().map(|said| (said.by, said.text)).collect::<Vec<_>>()
        };
        use Speaker::*;
        let two = vec![(System, "be brief".to_owned()), (User, "hello".to_owned())];
        assert_eq!(
            said(
                json!({"messages": [{"role": "developer", "content": "be brief"}, {"role": "user", "content": [{"type": "text", "text": "hello"}]}]})
            ),
            two
        );
        assert_eq!(said(json!({"system": "be brief", "messages": [{"role": "user", "content": "hello"}]})), two);
        assert_eq!(said(json!({"instructions": "be brief", "input": "hello"})), two);
        assert_eq!(
            said(
                json!({"systemInstruction": {"parts": [{"text": "be brief"}]}, "contents": [{"role": "user", "parts": [{"text": "hello"}]}]})
            ),
            two
        );
        assert_eq!(
            said(
                json!({"messages": "[{\"role\":\"system\",\"content\":\"be brief\"},{\"role\":\"user\",\"content\":\"hello\"}]"})
            ),
            two
        );
        let loops = said(json!({"messages": [
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "content": "42"},
            {"role": "user", "content": [{"type": "tool_result", "content": "43"}, {"type": "text", "text": "go on"}]}
        ]}));
        let by: Vec<Speaker> = loops.iter().map(|(by, _)| *by).collect();
        assert_eq!(by, [User, Assistant, Tool, Tool, User]);
    }
}
