//! What a discovered task is: the form in which reading and discovery hand traffic to judging, pricing and the report.
//!
//! Everything that is counted is counted over all calls, unless a field says *of the examples*. Texts stand in [`Example`] alone (and in
//! template and labels, which many calls share); personal data is counted by kind and never kept apart from them.

use std::{borrow::Cow, collections::BTreeMap, ops::Range};

use metier_model::extract::Schema;
use metier_traffic::privacy::PersonalKind;
use serde::{Deserialize, Serialize};

use super::form;

/// Everything that was found in some logs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Discovery {
    /// Tasks, the dearest first; calls whose cost is unknown count by their tokens.
    pub tasks: Vec<Task>,
    /// What was read, and what was not.
    pub reading: Reading,
}

/// What was read, and what was not.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Reading {
    /// Files that were read.
    pub files: u64,
    /// Rows of all files, the skipped ones too.
    pub rows: u64,
    /// Rows that became calls: `rows` less what was skipped, and less rows that are parts of another row's call.
    pub calls: u64,
    /// Calls by the format that they were read in.
    pub formats: BTreeMap<String, u64>,
    /// Rows that became nothing, by reason.
    pub skipped: BTreeMap<String, Skipped>,
    /// Files that were not read, or not to their end, by reason.
    #[serde(default)]
    pub files_skipped: BTreeMap<String, Skipped>,
    /// What is odd about rows that were counted all the same, by what it is: a clock, a zone, a price.
    pub odd: BTreeMap<String, Skipped>,
    /// The first call, in milliseconds since 1970.
    pub first_ms: Option<u64>,
    /// The last call.
    pub last_ms: Option<u64>,
    /// Models without a price at the time of a call, with their calls.
    pub unpriced: BTreeMap<String, u64>,
    /// What a reader should know: one sentence each.
    pub notes: Vec<String>,
}

impl Reading {
    /// Weeks from the first call to the last; none where calls have no times.
    pub fn weeks(&self) -> Option<f64> {
        const MS_PER_WEEK: f64 = 7.0 * 86_400_000.0;
        let (first, last) = self.first_ms.zip(self.last_ms)?;
        Some(last.saturating_sub(first) as f64 / MS_PER_WEEK)
    }

    /// Rows that became nothing.
    pub fn n_skipped(&self) -> u64 {
        self.skipped.values().map(|skipped| skipped.rows).sum()
    }
}

/// Rows that share a reason, and where one of them stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// How many.
    pub rows: u64,
    /// The first ones, as `file:line`.
    pub places: Vec<String>,
}

/// One task: calls that ask for the same thing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// The same from run to run as long as the task's template, tools and schema (or, without these, its texts) are: `t-` and 12 hexadecimal
    /// digits.
    pub id: String,
    /// For people, and as the stem of a file: small letters, digits and hyphens; no two tasks share one.
    pub name: String,
    /// What makes these calls one task.
    pub identity: Identity,
    /// What kind of specialist could take it, and why that is believed.
    pub kind: KindGuess,
    /// Exact volume by ISO week and model. Calls without a time are in `undated`.
    pub weeks: BTreeMap<Week, BTreeMap<String, Volume>>,
    /// Calls whose time the log does not say, by model.
    pub undated: BTreeMap<String, Volume>,
    /// The first call, in milliseconds since 1970.
    pub first_ms: Option<u64>,
    /// The last call.
    pub last_ms: Option<u64>,
    /// Some calls with their texts, by time; none where the log holds no texts.
    pub examples: Vec<Example>,
    /// How the examples stand for all calls.
    pub sampling: Sampling,
    /// What a prior is made from.
    pub traits: Traits,
    /// Personal data of the kinds that have a form of their own, in the examples' inputs and outputs.
    pub personal: BTreeMap<PersonalKind, PersonalCount>,
}

impl Task {
    /// The volume of all calls.
    pub fn total(&self) -> Volume {
        let dated = self.weeks.values().flat_map(BTreeMap::values);
        dated.chain(self.undated.values()).fold(Volume::default(), |sum, volume| sum.plus(volume))
    }

    /// The volume of each week, over all models. Weeks without a call between the first and the last are there with zeros, so that
    /// neighbours in the map are neighbours in time.
    pub fn by_week(&self) -> BTreeMap<Week, Volume> {
        let mut weeks = BTreeMap::new();
        let (Some((first, _)), Some((last, _))) = (self.weeks.first_key_value(), self.weeks.last_key_value()) else {
            return weeks;
        };
        let mut week = *first;
        loop {
            let volumes = self.weeks.get(&week).into_iter().flat_map(BTreeMap::values);
            weeks.insert(week, volumes.fold(Volume::default(), |sum, volume| sum.plus(volume)));
            if week >= *last || weeks.len() > MAX_WEEKS {
                return weeks;
            }
            week = week.next();
        }
    }

    /// The volume of each model, over all weeks.
    pub fn by_model(&self) -> BTreeMap<&str, Volume> {
        let mut models: BTreeMap<&str, Volume> = BTreeMap::new();
        for (model, volume) in self.weeks.values().flatten().chain(&self.undated) {
            let sum = models.entry(model).or_default();
            *sum = sum.plus(volume);
        }
        models
    }
}

/// Most weeks between the first and the last call of a task: twenty years; what lies further apart is a clock that is wrong.
pub const MAX_WEEKS: usize = 1040;

/// What makes calls one task.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// The prompt that they share, with `{}` where they differ; none where they share none.
    pub template: Option<String>,
    /// Names of the tools that they offer, sorted.
    pub tools: Vec<String>,
    /// The JSON schema that answers must have, as it stands in the calls.
    pub schema: Option<String>,
    /// Name that the log itself gives the calls, e.g. a function, a trace or a tag.
    pub named: Option<String>,
    /// What the calls have in common.
    pub by: IdentityBy,
    /// The most telling words of their texts, most telling first.
    pub terms: Vec<String>,
}

/// How calls came to be one task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IdentityBy {
    /// Template, tools and schema are the same: exact.
    #[default]
    Template,
    /// Their texts lie near each other: a judgement.
    Texts,
    /// The log holds no texts: model and caller are the same.
    Caller,
    /// Fits none of the other tasks.
    Rest,
}

/// The kinds of specialists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskKind {
    /// One of few answers.
    Classify,
    /// Values that stand in the text.
    Extract,
    /// A text of its own.
    Generate,
}

impl TaskKind {
    /// The word of task files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Classify => "classify",
            Self::Extract => "extract",
            Self::Generate => "generate",
        }
    }
}

/// A guess at the kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KindGuess {
    /// The kind.
    pub kind: TaskKind,
    /// What speaks for it, in words with figures.
    pub evidence: String,
}

/// Calls and what they took. Sums are exact; they saturate at 2⁶⁴ − 1, which is 18 million dollars of cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Calls, the failed ones too.
    pub calls: u64,
    /// Calls that the log calls failed.
    pub failed: u64,
    /// Tokens of the requests, cached ones included.
    pub input_tokens: u64,
    /// Tokens of the answers.
    pub output_tokens: u64,
    /// Tokens of the requests that the provider had in its cache.
    pub cached_tokens: u64,
    /// Cost of the priced calls at the price book's prices, in picodollars; cached tokens count as others do unless the book prices them.
    pub cost_picousd: u64,
    /// Calls whose model has no price: their cost is unknown, not zero.
    pub unpriced: u64,
    /// Tokens of the requests of unpriced calls.
    pub unpriced_input_tokens: u64,
    /// Tokens of the answers of unpriced calls.
    pub unpriced_output_tokens: u64,
    /// Calls whose tokens the log does not say, and that were counted as one for four bytes of text.
    pub estimated: u64,
}

impl Volume {
    /// The sum of two.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            calls: self.calls.saturating_add(other.calls),
            failed: self.failed.saturating_add(other.failed),
            input_tokens: self.input_tokens.saturating_add(other.input_tokens),
            output_tokens: self.output_tokens.saturating_add(other.output_tokens),
            cached_tokens: self.cached_tokens.saturating_add(other.cached_tokens),
            cost_picousd: self.cost_picousd.saturating_add(other.cost_picousd),
            unpriced: self.unpriced.saturating_add(other.unpriced),
            unpriced_input_tokens: self.unpriced_input_tokens.saturating_add(other.unpriced_input_tokens),
            unpriced_output_tokens: self.unpriced_output_tokens.saturating_add(other.unpriced_output_tokens),
            estimated: self.estimated.saturating_add(other.estimated),
        }
    }
}

/// One call with its texts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Example {
    /// The source's own name of the row; where it has none, as `place`.
    pub id: String,
    /// `file:line`.
    pub place: String,
    /// When it was, in milliseconds since 1970.
    pub time_ms: Option<u64>,
    /// User, session or customer, where the log says so: examples of one group never part.
    pub group: Option<String>,
    /// The model that answered.
    pub model: String,
    /// What a specialist would read, as it arrives: the last message of the user.
    pub input: String,
    /// Where that differs from call to call, in bytes; empty: everywhere.
    pub varies: Vec<Range<usize>>,
    /// What was answered; none where the call failed or the log does not say.
    pub output: Option<String>,
    /// What a person or another source says of the answer.
    pub gold: Option<Gold>,
    /// Calls that this one stands for: at least 1.
    pub weight: f64,
}

impl Task {
    /// What an extraction would give: the schema that its calls declare, else the one that its answers have; as text, and read.
    ///
    /// # Errors
    /// None is declared and the answers have none, or it asks for what no span of a text can be.
    pub fn answer_schema(&self) -> Result<(Cow<'_, str>, Schema), String> {
        let text = match &self.identity.schema {
            Some(schema) => Cow::Borrowed(schema.as_str()),
            None => form::schema_of(self.examples.iter().filter_map(|example| example.output.as_deref()))
                .map(|schema| Cow::Owned(serde_json::to_string_pretty(&schema).expect("a schema is JSON")))
                .map_err(|why| format!("an extraction needs a JSON schema, its calls declare none, and {why}"))?,
        };
        let schema = Schema::parse(&text);
        let schema = schema.map_err(|error| format!("its schema cannot be used for an extraction: {error}"))?;
        let pairs =
            self.examples.iter().filter_map(|example| Some((example.input.as_str(), example.output.as_deref()?)));
        if let Some((field, share)) = form::not_in_texts(pairs) {
            let share = 100.0 * share;
            return Err(format!(
                "its field `{field}` is no span: {share:.0} % of its values stand in their texts, the others are chosen or written"
            ));
        }
        Ok((text, schema))
    }
}

impl Example {
    /// The parts of the input that differ from call to call, one a line.
    pub fn variables(&self) -> Cow<'_, str> {
        if self.varies.is_empty() {
            return Cow::Borrowed(&self.input);
        }
        let parts: Vec<&str> = self.varies.iter().filter_map(|range| self.input.get(range.clone())).collect();
        Cow::Owned(parts.join("\n"))
    }
}

/// What a person or another source says of an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gold {
    /// The right answer.
    Label(String),
    /// How good the answer was; its scale is the log's, and `name` what it calls it.
    Score {
        /// The log's word for it.
        name: String,
        /// The value.
        value: f64,
    },
}

/// How the examples stand for all calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// Calls that hold texts.
    pub with_text: u64,
    /// Examples kept of them.
    pub examples: u64,
    /// `examples / with_text`; 0 where no call holds texts.
    pub fraction: f64,
    /// Calls whose place in this task is a judgement by their words: they were outside the embedded sample.
    pub assigned: u64,
    /// By which factors the volume may be too large or too small for that reason, 95 %: `[1, 1]` where the task is exact.
    pub volume_interval: [f64; 2],
}

/// How a number spreads over calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The median.
    pub p50: f64,
    /// Above this lie 5 of 100.
    pub p95: f64,
    /// The mean.
    pub mean: f64,
    /// The standard deviation.
    pub sigma: f64,
}

/// What a prior is made from. Of the examples, unless the field says otherwise.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Traits {
    /// Tokens of requests, of all calls.
    pub input_tokens: Spread,
    /// Tokens of answers, of all calls.
    pub output_tokens: Spread,
    /// Milliseconds to the whole answer, of all calls where the log says so.
    pub elapsed_ms: Option<Spread>,
    /// Different answers divided by answers, after folding case and white space.
    pub distinct_outputs: f64,
    /// Short answers with their examples where the task looks like a classification, the most frequent first in the sense of count; empty
    /// otherwise.
    pub labels: BTreeMap<String, u64>,
    /// Share of the words of answers that stand in their inputs.
    pub copied: f64,
    /// Share of answers that are JSON objects or arrays.
    pub json: f64,
    /// Share of answers that have the schema's required keys and types, where there is a schema.
    pub schema_valid: Option<f64>,
    /// Bytes of the answers after compression (zstd, all together) divided by before: small is repetitive.
    pub compressed: f64,
    /// Share of inputs that ask for arithmetic: several numbers and a question of quantity.
    pub numeric: f64,
    /// Tool results in the prompt, mean over all calls: how deep in a loop a call stands.
    pub tool_depth: f64,
    /// Messages of user and assistant before the answer, mean over all calls.
    pub turns: f64,
    /// Share of the prompt's bytes that is the template: what a prompt cache would save at most.
    pub shared_prompt: f64,
    /// Share of calls with texts whose whole prompt came before: what a cache of answers would save, of all calls with texts.
    pub repeats: f64,
    /// Share of examples whose words are nearly those of an earlier example (Jaccard at least 0.85), exact repeats included.
    pub near_repeats: f64,
    /// Does the LLM agree with itself where a prompt came again?
    pub self_agreement: Option<Agreement>,
}

/// How often pairs agree.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Agreement {
    /// Prompts that came again, with an answer each time.
    pub pairs: u64,
    /// Of these, with the same answer after folding case and white space.
    pub agree: u64,
    /// 95 % (Wilson).
    pub interval: [f64; 2],
}

/// How much personal data of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PersonalCount {
    /// Examples that hold some.
    pub examples: u64,
    /// How often it stands in them.
    pub found: u64,
}

/// A week of ISO 8601: it begins on Monday, and belongs to the year in which its Thursday lies. UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Week {
    /// Mondays since Thursday 1970-01-01's week began, which is Monday 1969-12-29: week 0.
    number: u32,
}

const MS_PER_DAY: u64 = 86_400_000;
/// Days from Monday 1969-12-29 to Thursday 1970-01-01.
const THURSDAY: u64 = 3;

impl Week {
    /// The week of a moment, in milliseconds since 1970.
    pub fn of(time_ms: u64) -> Self {
        let number = (time_ms / MS_PER_DAY + THURSDAY) / 7;
        Self { number: u32::try_from(number).unwrap_or(u32::MAX) }
    }

    /// The week after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self { number: self.number.saturating_add(1) }
    }

    /// When it begins, in milliseconds since 1970; the first one begins before 1970, and is said to begin with it.
    pub fn start_ms(self) -> u64 {
        (u64::from(self.number) * 7).saturating_sub(THURSDAY) * MS_PER_DAY
    }

    /// Weeks from another one to this one.
    pub fn since(self, earlier: Self) -> u32 {
        self.number.saturating_sub(earlier.number)
    }

    /// Year and week of that year, 1 to 53.
    pub fn year_and_week(self) -> (u64, u64) {
        // The Thursday of week n is day 7 n of 1970.
        let (year, day) = year_and_day(u64::from(self.number) * 7);
        (year, day / 7 + 1)
    }
}

/// Year, and days since its first of January, of a day since 1970.
fn year_and_day(day: u64) -> (u64, u64) {
    let days_before = |year: u64| (year - 1970) * 365 + leap_days(year) - leap_days(1970);
    let mut year = 1970 + day / 366;
    while days_before(year + 1) <= day {
        year += 1;
    }
    (year, day - days_before(year))
}

/// Days of 29 February before the first of January of a year.
fn leap_days(year: u64) -> u64 {
    let before = year - 1;
    before / 4 - before / 100 + before / 400
}

impl std::fmt::Display for Week {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (year, week) = self.year_and_week();
        write!(f, "{year:04}-W{week:02}")
    }
}

impl From<Week> for String {
    fn from(week: Week) -> Self {
        week.to_string()
    }
}

impl TryFrom<String> for Week {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no week of the form 2026-W48");
        let (year, week) = text.split_once("-W").ok_or_else(wrong)?;
        let (year, week): (u64, u64) = (year.parse().map_err(|_| wrong())?, week.parse().map_err(|_| wrong())?);
        if !(1970..=9999).contains(&year) || !(1..=53).contains(&week) {
            return Err(wrong());
        }
        let first_day = (year - 1970) * 365 + leap_days(year) - leap_days(1970);
        let at = u32::try_from(first_day.div_ceil(7) + week - 1).map_err(|_| wrong())?;
        let found = Self { number: at };
        if found.year_and_week() == (year, week) { Ok(found) } else { Err(wrong()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(time_ms: u64, name: &str) {
        let week = Week::of(time_ms);
        assert_eq!(week.to_string(), name);
        assert_eq!(Week::try_from(name.to_owned()), Ok(week));
        assert!(week.start_ms() <= time_ms && time_ms < week.next().start_ms());
    }

    #[test]
    fn weeks_are_those_of_iso_8601() {
        // From Python's `date.isocalendar`.
        check(0, "1970-W01");
        check(1_104_537_600_000, "2004-W53"); // 2005-01-01
        check(1_199_059_200_000, "2008-W01"); // 2007-12-31
        check(1_795_305_600_000, "2026-W47"); // Sunday 2026-11-22
        check(1_795_392_000_000, "2026-W48"); // Monday
        check(1_798_761_600_000, "2026-W53"); // 2027-01-01
        check(4_102_444_800_000, "2099-W53"); // 2100-01-01
        for wrong in ["2026", "2026-W54", "2025-W53", "1-W1", "x-Wy"] {
            assert!(Week::try_from(wrong.to_owned()).is_err(), "{wrong}");
        }
    }
}
