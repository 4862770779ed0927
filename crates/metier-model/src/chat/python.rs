//! What do chat templates expect of Jinja that is Python's? They are written for Jinja in Python, with the filters and functions that
//! Transformers adds.
//!
//! Methods of strings, lists and dicts are `minijinja-contrib`'s. Here: `tojson` as `json.dumps` writes, `strftime_now` on a time that
//! is given, `raise_exception`, and the `generation` block, which marks what was written by the model and changes nothing.

use minijinja::{
    Environment, Error, ErrorKind, UndefinedBehavior, Value,
    syntax::SyntaxConfig,
    value::{Kwargs, Rest},
};
use serde::Serialize as _;
use serde_json::ser::{Formatter, PrettyFormatter};

/// Spaces that `tojson` indents by, at most.
const MAX_INDENT: usize = 16;

/// An environment in which a chat template of Transformers runs; `fuel`: instructions of one rendering.
pub(super) fn environment(fuel: u64) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_fuel(Some(fuel));
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    // What Transformers sets for chat templates.
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_filter("tojson", to_json);
    Ok(environment)
}

/// `json.dumps(value, ensure_ascii, indent, separators, sort_keys)`, all but the first by name.
fn to_json(value: &Value, positional: Rest<Value>, options: Kwargs) -> Result<Value, Error> {
    let invalid = |problem: &str| Error::new(ErrorKind::InvalidOperation, problem.to_owned());
    if !positional.is_empty() {
        return Err(invalid("`tojson` takes its options by name"));
    }
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let [ascii, sorted] = ["ensure_ascii", "sort_keys"].map(|key| options.get::<Option<bool>>(key));
    let (ascii, sorted) = (ascii?.unwrap_or(false), sorted?.unwrap_or(false));
    options.assert_all_used()?;
    let mut document = serde_json::to_value(value).map_err(|error| invalid(&error.to_string()))?;
    if sorted {
        document.sort_all_objects();
    }
    let mut bytes = Vec::new();
    let written = match (indent, separators.as_deref()) {
        (Some(indent), None) if indent <= MAX_INDENT => {
            let spaces = " ".repeat(indent);
            write(&document, PrettyFormatter::with_indent(spaces.as_bytes()), &mut bytes)
        }
        (None, None) => write(&document, Separated { item: ", ", key: ": " }, &mut bytes),
        (None, Some([item, key])) => write(&document, Separated { item, key }, &mut bytes),
        _ => return Err(invalid("`tojson` takes an indent up to 16, or two separators")),
    };
    written.map_err(|error| invalid(&error.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|error| invalid(&error.to_string()))?;
    Ok(Value::from(if ascii { escaped(&text) } else { text }))
}

fn write(document: &serde_json::Value, formatter: impl Formatter, out: &mut Vec<u8>) -> Result<(), serde_json::Error> {
    document.serialize(&mut serde_json::Serializer::with_formatter(out, formatter))
}

/// Characters beyond ASCII, which stand in strings only, as `\uXXXX`.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii() {
            out.push(c);
        } else {
            c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}")));
        }
    }
    out
}

/// JSON on one line, as Python writes it.
struct Separated<'a> {
    item: &'a str,
    key: &'a str,
}

impl Formatter for Separated<'_> {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(self.item.as_bytes()) }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(self.item.as_bytes()) }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(self.key.as_bytes())
    }
}

/// The template with `{% generation %}` blocks as blocks that are always written.
pub(super) fn without_tracking(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let (tag, after) = tag.split_at(end);
        let word = tag.trim_start_matches("{%").trim_end_matches("%}").trim_matches(['-', '+']).trim();
        match word {
            "generation" => out.push_str(&tag.replace(word, "if true")),
            "endgeneration" => out.push_str(&tag.replace(word, "endif")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// `strftime_now` at a moment: seconds since 1970, in UTC.
pub(super) fn strftime_now(unix_s: u64) -> Value {
    Value::from_function(move |format: String| strftime(unix_s, &format))
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

/// C's `strftime` in its own locale, as far as templates use it.
fn strftime(unix_s: u64, format: &str) -> Result<String, Error> {
    let (days, second) = (unix_s / 86_400, unix_s % 86_400);
    let (year, month, day) = civil(days);
    let hour = second / 3600;
    let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[((days + 3) % 7) as usize]);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let text = match chars.next() {
            Some('Y') => year.to_string(),
            Some('y') => format!("{:02}", year % 100),
            Some('m') => format!("{month:02}"),
            Some('d') => format!("{day:02}"),
            Some('e') => format!("{day:2}"),
            Some('B') => month_name.to_owned(),
            Some('b' | 'h') => month_name[..3].to_owned(),
            Some('A') => day_name.to_owned(),
            Some('a') => day_name[..3].to_owned(),
            Some('H') => format!("{hour:02}"),
            Some('I') => format!("{:02}", (hour + 11) % 12 + 1),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            Some('M') => format!("{:02}", second / 60 % 60),
            Some('S') => format!("{:02}", second % 60),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{:02}:{:02}", second / 60 % 60, second % 60),
            Some('%') => "%".to_owned(),
            other => {
                let sign = other.map_or_else(String::new, String::from);
                let problem = format!("`strftime_now` does not know `%{sign}`");
                return Err(Error::new(ErrorKind::InvalidOperation, problem));
            }
        };
        out.push_str(&text);
    }
    Ok(out)
}

/// Days since 1970-01-01 → year, month, day of the Gregorian calendar.
fn civil(days: u64) -> (u64, u64, u64) {
    // Years begin in March here, so that the leap day is the last of its year. An era has 400 years or 146,097 days.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn moments_are_written_as_python_writes_them() {
        let check = |unix_s, format: &str, expected: &str| assert_eq!(strftime(unix_s, format).unwrap(), expected);
        check(0, "%d %b %Y, %A", "01 Jan 1970, Thursday");
        check(951_782_399, "%d %B %Y %H:%M:%S", "28 February 2000 23:59:59");
        check(951_782_400, "%F %a %j".trim_end_matches(" %j"), "2000-02-29 Tue");
        check(1_764_115_200, "%e %h %y %I %p %T %%", "26 Nov 25 12 AM 00:00:00 %");
        check(4_107_542_399, "%d/%m/%Y %I%p", "28/02/2100 11PM");
        check(4_107_542_400, "%d/%m/%Y", "01/03/2100");
        assert!(strftime(0, "%Q").unwrap_err().to_string().contains("`%Q`"));
        assert!(strftime(0, "%").is_err());
        assert!(strftime(u64::MAX / 2, "%Y").is_ok());
    }

    #[test]
    fn tracking_blocks_are_transparent() {
        let text = "{%- generation -%} {{ x }} {% endgeneration %}{% if generation %}{% endif %}{%";
        let expected = "{%- if true -%} {{ x }} {% endif %}{% if generation %}{% endif %}{%";
        assert_eq!(without_tracking(text), expected);
    }
}
