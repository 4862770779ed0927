//! Everything that the price of a task stands on and that no log says: one struct, each number with its unit, its default and its source.
//!
//! A TOML file replaces any of them (`metier roadmap --assumptions FILE`); what it does not name keeps its default, and the report
//! lists all of them with who said so.

use std::{fs, io, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::data::nearest;

/// One number that no log says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Assumption {
    /// Its key in the file.
    pub name: &'static str,
    /// What it is.
    pub what: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// Its value where nobody says another.
    pub default: f64,
    /// The least and the most that is believed.
    pub range: [f64; 2],
    /// Where the default comes from.
    pub source: &'static str,
}

/// An assumption as it was used.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stated {
    /// Its key.
    pub name: String,
    /// What it is.
    pub what: String,
    /// The value used.
    pub value: f64,
    /// Its unit.
    pub unit: String,
    /// Where the value comes from.
    pub source: String,
    /// True where the user said it, false where it is the default.
    pub by_user: bool,
}

/// A file of assumptions cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AssumptionError {
    /// Cannot be read at all.
    #[error("cannot read the assumptions in `{path}`")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Not TOML.
    #[error("the assumptions are not well formed")]
    Toml(#[source] Box<toml::de::Error>),
    /// A key that does not exist.
    #[error("there is no assumption `{key}`{}; `metier roadmap --print-assumptions` lists them all", .nearest.as_ref().map(|near| format!("; did you mean `{near}`?")).unwrap_or_default())]
    Unknown {
        /// The key.
        key: String,
        /// What may have been meant.
        nearest: Option<String>,
    },
    /// A value that cannot be used.
    #[error("assumption `{name}` = {value}: it must be a number between {} and {} [{unit}]", .range[0], .range[1])]
    Value {
        /// Which.
        name: &'static str,
        /// What was found.
        value: String,
        /// What is believed.
        range: [f64; 2],
        /// Its unit.
        unit: &'static str,
    },
}

macro_rules! assumptions {
    ($($name:ident = $default:literal [$unit:literal] in $low:literal ..= $high:literal, $what:literal, $source:literal;)*) => {
        /// The numbers, by name; [`TABLE`] says what each one is.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        pub struct Assumptions {
            $(#[doc = concat!($what, " (in ", $unit, ")")] pub $name: f64,)*
            /// Names of those that the user said.
            pub by_user: Vec<String>,
        }

        /// Every assumption there is, in the order in which reports list them.
        pub const TABLE: &[Assumption] = &[$(Assumption {
            name: stringify!($name),
            what: $what,
            unit: $unit,
            default: $default,
            range: [$low, $high],
            source: $source,
        },)*];

        impl Default for Assumptions {
            fn default() -> Self {
                Self { $($name: $default,)* by_user: Vec::new() }
            }
        }

        impl Assumptions {
            fn slot(&mut self, name: &str) -> Option<&mut f64> {
                match name {
                    $(stringify!($name) => Some(&mut self.$name),)*
                    _ => None,
                }
            }

            /// The value of one of them.
            pub fn value(&self, name: &str) -> Option<f64> {
                match name {
                    $(stringify!($name) => Some(self.$name),)*
                    _ => None,
                }
            }
        }
    };
}

assumptions! {
    horizon_weeks = 52.0 ["weeks"] in 4.0..=260.0,
        "over which savings and costs are added up", "a budget year";
    engineers = 1.0 ["people"] in 0.1..=1000.0,
        "who work on the roadmap at once", "the least";
    engineer_day_usd = 800.0 ["$ a day"] in 0.0..=20000.0,
        "cost of a day of an engineer", "nobody's figure: about 176,000 $ a year over 220 days; state yours";
    loss_per_error_usd = 0.05 ["$ an error"] in 0.0..=1e7,
        "loss when a specialist answers wrong where the LLM was right", "nobody's figure: a request asked again; state yours with --loss-per-error";
    error_share = 0.5 ["share"] in 0.0..=1.0,
        "share of answers that differ from the LLM's in which the specialist is the one that is wrong (measured where gold labels are given)", "nobody's figure: of two that differ, either may be wrong";
    setup_days = 3.0 ["days"] in 0.0..=1000.0,
        "work before the first specialist of all: install, connect, agree on policy", "our own estimate";
    base_days = 0.5 ["days"] in 0.0..=1000.0,
        "work before the first specialist on a base model", "our own estimate";
    classify_days = 1.0 ["days"] in 0.0..=1000.0,
        "work for a classification: look at rows, build, review, promote", "our own estimate; the build itself is `metier build`";
    extract_days = 2.0 ["days"] in 0.0..=1000.0,
        "work for an extraction", "our own estimate";
    generate_days = 4.0 ["days"] in 0.0..=1000.0,
        "work for a task whose answers are written", "our own estimate";
    overrun_median = 1.25 ["factor"] in 0.5..=10.0,
        "by which work takes longer than estimated, median", "surveys of software projects find overruns of 30 to 40 % on average (Moløkken and Jørgensen 2003)";
    overrun_sd = 0.35 ["log"] in 0.0..=2.0,
        "spread of that factor, shared by all tasks", "our own estimate, so that the mean overrun is 33 %";
    gold_rows = 300.0 ["rows"] in 0.0..=1e6,
        "rows that people label to check a specialist that goes live", "200 to 400 are enough to see errors of a few per cent";
    label_usd = 0.10 ["$ a row"] in 0.0..=1000.0,
        "cost of one label by a person", "nobody's figure: ten seconds at 36 $ an hour; state yours";
    weeks_to_live = 2.0 ["weeks"] in 0.0..=260.0,
        "from the beginning of the work on a task to the first request that it answers", "our own estimate: one to build and review, one in shadow";
    shadow_weeks = 1.0 ["weeks"] in 0.0..=52.0,
        "in which a specialist answers beside the LLM and only the LLM's answer counts", "our own estimate";
    training_minutes = 10.0 ["minutes"] in 0.0..=1e6,
        "of one build where it was not tried", "the default budget of a task file";
    retrainings = 2.0 ["in the horizon"] in 0.0..=1000.0,
        "builds again because traffic moves", "our own estimate: twice a year";
    retraining_days = 0.25 ["days"] in 0.0..=100.0,
        "work for one of them", "our own estimate";
    operations_days = 0.5 ["days in the horizon"] in 0.0..=1000.0,
        "work to keep one specialist running", "our own estimate: twenty minutes a month";
    machine_usd_per_hour = 0.10 ["$ an hour"] in 0.0..=1000.0,
        "of the machine that answers, whether it works or idles", "list prices of rented machines with 2 virtual CPUs are about so";
    machine_watts = 30.0 ["W"] in 0.0..=100000.0,
        "what that machine draws", "our own estimate: two cores' share of a server";
    energy_usd_per_kwh = 0.15 ["$ a kWh"] in 0.0..=10.0,
        "price of its energy", "about what businesses in the United States pay; a rented machine's price already holds it: then 0";
    peak_to_mean = 4.0 ["factor"] in 1.0..=1000.0,
        "by which the busiest minute lies above the mean", "office hours are a quarter of the week";
    utilisation_limit = 0.6 ["share"] in 0.01..=1.0,
        "of a machine that may be busy in the busiest minute", "above it queues grow";
    request_overhead_seconds = 0.001 ["s"] in 0.0..=60.0,
        "of the machine for a request beside its model", "our own measurement: head rows end to end, less the encoder's time";
    encoder_tokens_per_second = 5300.0 ["tokens/s"] in 1.0..=1e9,
        "read by MiniLM on that machine", "docs/speed.md: 222 sentences/s of 24 tokens, 40 of 134";
    decoder_reads_per_second = 1700.0 ["tokens/s"] in 1.0..=1e9,
        "read by SmolLM2-135M on that machine", "docs/speed.md";
    decoder_writes_per_second = 1060.0 ["tokens/s"] in 0.1..=1e9,
        "written by SmolLM2-135M on that machine, eight streams together", "docs/speed.md";
    llm_wh_per_request = 0.3 ["Wh"] in 0.0..=10000.0,
        "energy of a request to an LLM", "published figures of a median chat prompt lie at 0.24 (Google, August 2025) to 0.34 (OpenAI, June 2025)";
    llm_price_decline = 0.1 ["share a year"] in 0.0..=1.0,
        "by which the LLM would get cheaper anyway", "nobody's figure: prices of a named model seldom fall, successors are cheaper";
    volume_drift_sd = 0.2 ["log a year"] in 0.0..=3.0,
        "spread of how all volumes grow or shrink together within a year", "nobody's figure: no log of some weeks shows it";
    volume_week_sd = 0.2 ["log"] in 0.0..=3.0,
        "spread of weeks that is expected where a log has few of them", "our own estimate; it is divided by the root of the number of weeks";
    log_share = 1.0 ["share"] in 1e-6..=1.0,
        "of the traffic that the log holds, drawn evenly", "the log is taken for all of it; state the sampling rate with --log-share";
    undated_weeks = 4.345 ["weeks"] in 0.01..=1040.0,
        "that a log without times is taken to span", "a month";
    cache_valid_share = 0.8 ["share"] in 0.0..=1.0,
        "of repeated requests that a cache may answer", "nobody's figure: some answers age, some depend on the caller";
    cache_days = 0.5 ["days"] in 0.0..=100.0,
        "work for a cache of answers", "our own estimate";
    prompt_cache_hit_share = 0.7 ["share"] in 0.0..=1.0,
        "of requests whose shared beginning the provider still has", "nobody's figure: it forgets within minutes";
    prompt_cache_price_ratio = 0.25 ["of the price"] in 0.0..=1.0,
        "of a request's token that the provider has cached", "providers charge 10 to 50 %";
    prompt_cache_min_tokens = 1024.0 ["tokens"] in 0.0..=1e7,
        "that a shared beginning must have", "OpenAI's and Anthropic's documented least";
    prompt_cache_days = 0.25 ["days"] in 0.0..=100.0,
        "work for it", "our own estimate";
    cheaper_llm_chance = 0.5 ["probability"] in 0.0..=1.0,
        "that a cheaper LLM does the task as well", "nobody's figure: measured only by asking it";
    cheaper_llm_input_usd = 0.15 ["$ a million tokens"] in 0.0..=100000.0,
        "price of a cheaper LLM's input", "the smaller of the two models in the price book that ships with metier";
    cheaper_llm_output_usd = 0.60 ["$ a million tokens"] in 0.0..=100000.0,
        "price of a cheaper LLM's output", "the same";
    output_price_ratio = 4.0 ["factor"] in 0.0..=1000.0,
        "by which an output token is dearer than an input token, to tell which part of a cost is the prompt's", "list prices: 4 to 5";
    cheaper_llm_days = 1.0 ["days"] in 0.0..=100.0,
        "work to try and change to it", "our own estimate";
    batch_share = 0.1 ["share"] in 0.0..=1.0,
        "of requests whose answer may come within a day", "nobody's figure: no log says it";
    batch_price_ratio = 0.5 ["of the price"] in 0.0..=1.0,
        "of a request in a batch", "list prices of OpenAI, Anthropic and Google";
    batch_days = 0.5 ["days"] in 0.0..=100.0,
        "work for it", "our own estimate";
    prior_fallback = 0.35 ["share"] in 0.001..=0.999,
        "of requests that a specialist that was not tried would defer", "our own builds defer 0 to 57 % (README.md, docs/accuracy.md)";
    prior_rows = 10.0 ["rows"] in 1.0..=1e6,
        "that such a guess is worth", "our own estimate: little";
    chance_strength = 8.0 ["attempts"] in 0.5..=1e6,
        "that the prior of P(pass) is worth against this installation's own attempts", "our own estimate";
    epsilon = 0.02 ["share"] in 0.0001..=0.5,
        "of requests that a specialist may answer alone and otherwise than the LLM", "the default of a task file";
    delta = 0.05 ["probability"] in 0.0001..=0.5,
        "that any verdict \"proven\" or \"partial\" is wrong, over all tasks together", "the default of a task file";
    proven_coverage = 0.8 ["share"] in 0.01..=1.0,
        "of requests that a specialist must answer alone to be called proven", "our own choice";
    partial_coverage = 0.2 ["share"] in 0.001..=1.0,
        "of requests that it must answer alone to be called partial", "our own choice";
    stop_loss_probability = 0.2 ["probability"] in 0.0..=1.0,
        "of a loss at which the roadmap stops", "our own choice";
}

impl Assumptions {
    /// Reads a file over the defaults.
    pub fn read(path: &std::path::Path) -> Result<Self, AssumptionError> {
        let text = fs::read_to_string(path).map_err(|source| AssumptionError::Io { path: path.to_owned(), source })?;
        Self::parse(&text)
    }

    /// The same from text.
    pub fn parse(text: &str) -> Result<Self, AssumptionError> {
        let table: toml::Table = toml::from_str(text).map_err(|source| AssumptionError::Toml(Box::new(source)))?;
        let mut assumptions = Self::default();
        for (key, value) in &table {
            let number = match value {
                toml::Value::Float(number) => Some(*number),
                toml::Value::Integer(number) => Some(*number as f64),
                _ => None,
            };
            assumptions.set(key, number, &value.to_string())?;
        }
        Ok(assumptions)
    }

    /// States one of them, as a flag does.
    pub fn state(&mut self, name: &str, value: f64) -> Result<(), AssumptionError> {
        self.set(name, Some(value), &value.to_string())
    }

    fn set(&mut self, name: &str, number: Option<f64>, text: &str) -> Result<(), AssumptionError> {
        let Some(known) = TABLE.iter().find(|known| known.name == name) else {
            let near = nearest(name, TABLE.iter().map(|known| known.name)).map(str::to_owned);
            return Err(AssumptionError::Unknown { key: name.to_owned(), nearest: near });
        };
        let wrong = || AssumptionError::Value {
            name: known.name,
            value: text.to_owned(),
            range: known.range,
            unit: known.unit,
        };
        let number = number.filter(|number| (known.range[0]..=known.range[1]).contains(number)).ok_or_else(wrong)?;
        *self.slot(name).expect("the table lists the fields") = number;
        if !self.by_user.iter().any(|said| said == name) {
            self.by_user.push(name.to_owned());
        }
        Ok(())
    }

    /// All of them as they are used.
    pub fn stated(&self) -> Vec<Stated> {
        let stated = TABLE.iter().map(|known| {
            let by_user = self.by_user.iter().any(|said| said == known.name);
            Stated {
                name: known.name.to_owned(),
                what: known.what.to_owned(),
                value: self.value(known.name).expect("the table lists the fields"),
                unit: known.unit.to_owned(),
                source: if by_user { "stated by you".to_owned() } else { known.source.to_owned() },
                by_user,
            }
        });
        stated.collect()
    }

    /// The file that says what is assumed anyway, with comments: where to start from.
    pub fn template() -> String {
        let mut text = String::from(
            "# What the roadmap assumes and no log says. Delete what you do not know better; `metier roadmap --assumptions THIS-FILE`.\n",
        );
        for known in TABLE {
            text += &format!(
                "\n# {} [{}]\n# source: {}\n{} = {:?}\n",
                known.what, known.unit, known.source, known.name, known.default
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn what_it_writes_it_reads() {
        let read = Assumptions::parse(&Assumptions::template()).unwrap();
        assert_eq!(Assumptions { by_user: Vec::new(), ..read.clone() }, Assumptions::default());
        assert_eq!(read.by_user.len(), TABLE.len());
        for known in TABLE {
            assert!((known.range[0]..=known.range[1]).contains(&known.default), "{}", known.name);
            assert_eq!(Assumptions::default().value(known.name), Some(known.default));
        }
    }

    #[test]
    fn bad_files_say_what_to_do() {
        let check = |text: &str, message: &str| {
            let error = Assumptions::parse(text).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        };
        check("engineer_day_us = 5", "did you mean `engineer_day_usd`?");
        check("engineer_day_usd = -1", "between 0 and 20000 [$ a day]");
        check("engineer_day_usd = nan", "between 0 and 20000");
        check("engineer_day_usd = \"800\"", "\"800\": it must be a number");
        check("[engineer_day_usd]\nx = 1", "must be a number");
        check("=", "not well formed");
    }

    #[test]
    fn what_the_user_says_is_told_apart() {
        let mut assumptions = Assumptions::parse("label_usd = 1").unwrap();
        assumptions.state("loss_per_error_usd", 2.5).unwrap();
        let stated = assumptions.stated();
        let of = |name: &str| stated.iter().find(|stated| stated.name == name).unwrap();
        assert!(of("label_usd").by_user && of("label_usd").value == 1.0);
        assert_eq!((of("loss_per_error_usd").value, of("loss_per_error_usd").source.as_str()), (2.5, "stated by you"));
        assert!(!of("engineers").by_user);
    }
}
