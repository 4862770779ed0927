//! What a token costs: a dated price book in, picodollars out.
//!
//! A picodollar is 10⁻¹² US dollars, so that $1 per million tokens is exactly 10⁶ picodollars a token and the cost of a head
//! (0.3 µ$ a request) is still a whole number. Rounding happens once, when a price is read; sums are exact. A model without a
//! price is unpriced (`None`), never free.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

/// Picodollars in a US dollar.
pub const PICOUSD_PER_USD: u64 = 1_000_000_000_000;
/// Largest price that is believed, in US dollars per million tokens: above it a book is taken for a typing mistake.
pub const MAX_USD_PER_MILLION: f64 = 100_000.0;
/// The book that ships with metier: list prices, stated for illustration.
pub const EXAMPLE_BOOK: &str = include_str!("../price_book.toml");
/// List prices of well-known models, for logs of theirs: dated, and no substitute for a contract.
pub const LIST_BOOK: &str = include_str!("../list_prices.toml");

const PICOUSD_PER_TOKEN_AT_ONE_USD_PER_MILLION: f64 = 1e6;
const MS_PER_DAY: u64 = 86_400_000;

/// Why a price book cannot be read: always the operator's fault.
#[derive(Debug, thiserror::Error)]
pub enum PriceError {
    /// The text is not a price book.
    #[error("cannot read the price book")]
    Toml(#[from] toml::de::Error),
    /// A price is negative, not a number, or absurd.
    #[error(
        "the price `{field}` of `{model}` must be between 0 and {MAX_USD_PER_MILLION} dollars per million tokens, not {value}"
    )]
    Price {
        /// The model.
        model: String,
        /// `input` or `output`.
        field: &'static str,
        /// What was found.
        value: f64,
    },
    /// A date is not of the form YYYY-MM-DD.
    #[error("the date `{from}` of `{model}` is not of the form YYYY-MM-DD")]
    Date {
        /// The model.
        model: String,
        /// What was found.
        from: String,
    },
    /// Two lines say different things of one model and day.
    #[error("`{model}` has two prices from {from}")]
    Twice {
        /// The model.
        model: String,
        /// The day.
        from: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Book {
    #[serde(default)]
    price: Vec<Line>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    model: String,
    from: String,
    input: f64,
    output: f64,
    cached: Option<f64>,
}

/// Picodollars a token, read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Price {
    /// For a token of the request.
    pub input_picousd: u64,
    /// For a token of the answer.
    pub output_picousd: u64,
    /// For a token of the request that the provider had in its cache; where the book does not say, as any other.
    pub cached_picousd: u64,
}

impl Price {
    /// Cost of so many tokens; saturates where no budget reaches.
    pub fn cost_picousd(&self, prompt_tokens: u64, completion_tokens: u64) -> u64 {
        let input = self.input_picousd.saturating_mul(prompt_tokens);
        input.saturating_add(self.output_picousd.saturating_mul(completion_tokens))
    }

    /// As [`cost_picousd`](Self::cost_picousd), where so many of the prompt's tokens were in the provider's cache.
    pub fn cached_cost_picousd(&self, prompt_tokens: u64, cached_tokens: u64, completion_tokens: u64) -> u64 {
        let cached = self.cached_picousd.saturating_mul(cached_tokens.min(prompt_tokens));
        cached.saturating_add(self.cost_picousd(prompt_tokens.saturating_sub(cached_tokens), completion_tokens))
    }
}

/// Prices by model, each from a day on.
#[derive(Clone, Debug, Default)]
pub struct PriceBook {
    /// model → first day (`YYYY-MM-DD`, which sorts as dates do) → price
    prices: BTreeMap<String, BTreeMap<String, Price>>,
    /// Models whose prices came with [`overlaid`](Self::overlaid).
    own: BTreeSet<String>,
}

/// A price with the line of the book that it stands in: what a cost can be checked against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quote<'a> {
    /// The price.
    pub price: Price,
    /// The model as the book calls it.
    pub model: &'a str,
    /// The first day on which it holds, `YYYY-MM-DD`.
    pub from: &'a str,
    /// Whether it came from the book laid over the list.
    pub own: bool,
}

impl PriceBook {
    /// Reads a book.
    pub fn parse(text: &str) -> Result<Self, PriceError> {
        let mut prices: BTreeMap<String, BTreeMap<String, Price>> = BTreeMap::new();
        for Line { model, from, input, output, cached } in toml::from_str::<Book>(text)?.price {
            if !is_date(&from) {
                return Err(PriceError::Date { model, from });
            }
            let price = Price {
                input_picousd: picousd_per_token(&model, "input", input)?,
                output_picousd: picousd_per_token(&model, "output", output)?,
                cached_picousd: picousd_per_token(&model, "cached", cached.unwrap_or(input))?,
            };
            if prices.entry(model.clone()).or_default().insert(from.clone(), price).is_some() {
                return Err(PriceError::Twice { model, from });
            }
        }
        Ok(Self { prices, own: BTreeSet::new() })
    }

    /// The book that ships with metier.
    pub fn example() -> Self {
        Self::parse(EXAMPLE_BOOK).expect("the shipped book is read by a test")
    }

    /// List prices of well-known models, and the example's.
    pub fn list() -> Self {
        let mut list = Self::example();
        list.prices.extend(Self::parse(LIST_BOOK).expect("the shipped list is read by a test").prices);
        list
    }

    /// The price of a model at a moment, in milliseconds since 1970; `None` when it is unpriced then.
    pub fn price(&self, model: &str, time_ms: u64) -> Option<Price> {
        self.quote(model, time_ms).map(|quote| quote.price)
    }

    fn quote(&self, model: &str, time_ms: u64) -> Option<Quote<'_>> {
        let (model, days) = self.prices.get_key_value(model)?;
        let (from, price) = days.range(..=date_of(time_ms)).next_back()?;
        Some(Quote { price: *price, model, from, own: self.own.contains(model) })
    }

    /// Cost of a request in picodollars; `None` when the model is unpriced.
    pub fn cost_picousd(&self, model: &str, time_ms: u64, prompt_tokens: u64, completion_tokens: u64) -> Option<u64> {
        Some(self.price(model, time_ms)?.cost_picousd(prompt_tokens, completion_tokens))
    }

    /// The price of a model under the name that a log gives it: as it stands; else without what a gateway puts before it
    /// (`azure/gpt-4o`), without region or version behind a colon or an `@`, or without a date at its end (`gpt-4o-2024-08-06`).
    pub fn logged_price(&self, model: &str, time_ms: u64) -> Option<Price> {
        self.logged_quote(model, time_ms).map(|quote| quote.price)
    }

    /// The line of the book that [`logged_price`](Self::logged_price) takes.
    pub fn logged_quote(&self, model: &str, time_ms: u64) -> Option<Quote<'_>> {
        if self.knows(model) {
            return self.quote(model, time_ms);
        }
        let lower = model.to_ascii_lowercase();
        let bare = lower.rsplit('/').next().unwrap_or_default();
        let bare = bare.rsplit_once("anthropic.").map_or(bare, |(_, bare)| bare);
        let bare = bare.split(['@', ':']).next().unwrap_or_default();
        let dated = |name: &str| {
            let name = name.strip_suffix("-v1").or_else(|| name.strip_suffix("-v2")).unwrap_or(name);
            // `-20241022` or `-2024-10-22`; a version such as `-4-5` before it stays.
            let is_date = |text: &str| text.starts_with("20") && text.bytes().all(|byte| byte.is_ascii_digit());
            let short = name.rsplit_once('-').filter(|(_, date)| date.len() == 8 && is_date(date));
            let long = name.len().checked_sub(11).and_then(|at| name.split_at_checked(at));
            let long = long.filter(|(_, date)| {
                date.starts_with('-') && is_date(&date.replace('-', "")) && date.matches('-').count() == 3
            });
            short.or(long).map_or(name, |(name, _)| name).to_owned()
        };
        [bare.to_owned(), dated(bare)].iter().find(|name| self.knows(name)).and_then(|name| self.quote(name, time_ms))
    }

    /// This book with another one's prices in the place of its own where both know a model.
    #[must_use]
    pub fn overlaid(mut self, own: Self) -> Self {
        self.own.extend(own.prices.keys().cloned());
        self.prices.extend(own.prices);
        self
    }

    /// Whether a model has any price.
    pub fn knows(&self, model: &str) -> bool {
        self.prices.contains_key(model)
    }
}

/// Picodollars as US dollars, exactly, without trailing zeros: `0.0000003`.
pub fn usd(picousd: u64) -> String {
    let text = format!("{}.{:012}", picousd / PICOUSD_PER_USD, picousd % PICOUSD_PER_USD);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn picousd_per_token(model: &str, field: &'static str, usd_per_million: f64) -> Result<u64, PriceError> {
    if !(0.0..=MAX_USD_PER_MILLION).contains(&usd_per_million) {
        return Err(PriceError::Price { model: model.to_owned(), field, value: usd_per_million });
    }
    Ok((usd_per_million * PICOUSD_PER_TOKEN_AT_ONE_USD_PER_MILLION).round() as u64)
}

fn is_date(text: &str) -> bool {
    let bytes = text.as_bytes();
    let two = |at: usize, low: u8, high: u8| {
        bytes[at].is_ascii_digit() && bytes[at + 1].is_ascii_digit() && {
            let value = (bytes[at] - b'0') * 10 + bytes[at + 1] - b'0';
            (low..=high).contains(&value)
        }
    };
    bytes.len() == 10
        && bytes[..4].iter().all(u8::is_ascii_digit)
        && bytes[4] == b'-'
        && bytes[7] == b'-'
        && two(5, 1, 12)
        && two(8, 1, 31)
}

/// The UTC day of a moment, by Howard Hinnant's `civil_from_days` (<https://howardhinnant.github.io/date_algorithms.html>).
pub fn date_of(time_ms: u64) -> String {
    let days = time_ms / MS_PER_DAY + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const NOVEMBER_2026_MS: u64 = 1_795_305_600_000;

    #[test]
    fn the_shipped_book_prices_the_reference() {
        // 800 in + 60 out at $2.50 and $10 a million tokens is $0.0026 a call.
        let cost = PriceBook::example().cost_picousd("reference-llm", NOVEMBER_2026_MS, 800, 60);
        assert_eq!(cost, Some(2_600_000_000));
        assert_eq!(usd(cost.unwrap()), "0.0026");
    }

    #[test]
    fn the_shipped_list_prices_what_logs_name() {
        let list = PriceBook::list();
        for model in
            ["gpt-4o-mini-2024-07-18", "claude-sonnet-4-5-20250929", "gemini/gemini-2.5-flash", "reference-llm"]
        {
            assert!(list.logged_price(model, NOVEMBER_2026_MS).is_some(), "{model}");
        }
    }

    /// The list against itself: what a slip of the pen would break, and whether a log's names find it.
    #[test]
    fn the_shipped_list_is_consistent() {
        let lines = toml::from_str::<Book>(LIST_BOOK).unwrap().price;
        assert!(lines.len() >= 30, "{}", lines.len());
        let list = PriceBook::list();
        let mut sorted: Vec<(&str, &str)> =
            lines.iter().map(|line| (line.model.as_str(), line.from.as_str())).collect();
        sorted.sort_unstable();
        assert!(sorted.windows(2).all(|pair| pair[0] != pair[1]), "a model has two prices from one day");
        for Line { model, from, input, output, cached } in &lines {
            // Dates in this century whose models exist; the list was collected in November 2026.
            assert!(is_date(from) && ("2022-01-01".."2026-12-01").contains(&from.as_str()), "{model} from {from}");
            let cached = cached.unwrap_or(*input);
            assert!(0.0 < cached && cached <= *input && input <= output, "{model}: {cached} {input} {output}");
            // Dollars a million tokens: a price a thousand tokens, or one in cents, lies outside.
            assert!((0.01..=100.0).contains(input) && (0.01..=600.0).contains(output), "{model}: {input} {output}");
            assert!(*output <= 12.0 * input, "{model}: an answer costs {} times a request", output / input);
            // The matcher looks names up in small letters, without gateway, region or date: a line with any of these would never be found.
            let bare = model.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b));
            assert!(bare, "{model} is not a bare name");
            let newest = Some(list.price(model, NOVEMBER_2026_MS).unwrap());
            for logged in [
                model.clone(),
                format!("azure/{}", model.to_ascii_uppercase()),
                format!("openrouter/vendor/{model}"),
                format!("{model}-20260131"),
                format!("{model}-2026-01-31"),
                format!("{model}@20260131"),
                format!("us.anthropic.{model}-20260131-v1:0"),
            ] {
                assert_eq!(list.logged_price(&logged, NOVEMBER_2026_MS), newest, "{logged}");
            }
            // The latest line holds now, and before the first there is no price.
            let latest = lines.iter().filter(|line| line.model == *model).map(|line| line.from.as_str()).max();
            assert_eq!(list.logged_quote(model, NOVEMBER_2026_MS).map(|quote| quote.from), latest);
            assert_eq!(list.price(model, 1_640_995_200_000), None, "{model} had a price in January 2022");
        }
        // A smaller sister is not dearer.
        for line in &lines {
            for small in ["-mini", "-nano", "-lite"] {
                let sister = lines.iter().find(|other| other.model == format!("{}{small}", line.model));
                assert!(
                    sister.is_none_or(|sister| sister.input <= line.input && sister.output <= line.output),
                    "{}{small}",
                    line.model
                );
            }
        }
    }

    #[test]
    fn a_model_without_a_price_is_unpriced() {
        let book = PriceBook::example();
        assert_eq!(book.cost_picousd("nobody", NOVEMBER_2026_MS, 1, 1), None);
        assert_eq!(book.cost_picousd("reference-llm", 0, 1, 1), None, "the price begins in 2026");
    }

    #[test]
    fn the_latest_price_that_has_begun_holds() {
        let book = PriceBook::parse(
            "[[price]]\nmodel='m'\nfrom='2026-01-01'\ninput=1\noutput=1\n[[price]]\nmodel='m'\nfrom='2026-11-22'\ninput=2\noutput=2",
        )
        .unwrap();
        assert_eq!(book.cost_picousd("m", NOVEMBER_2026_MS - 1, 1, 0), Some(1_000_000));
        assert_eq!(book.cost_picousd("m", NOVEMBER_2026_MS, 1, 0), Some(2_000_000));
    }

    #[test]
    fn bad_books_name_the_model() {
        let check = |text: &str, message: &str| {
            let error = PriceBook::parse(text).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        };
        let line = |from: &str, input: &str| format!("[[price]]\nmodel='m'\nfrom='{from}'\ninput={input}\noutput=1\n");
        check(&line("2026-01-01", "-1.0"), "`input` of `m`");
        check(&line("2026-01-01", "nan"), "`input` of `m`");
        check(&line("2026-13-01", "1"), "`2026-13-01` of `m`");
        check(&line("January", "1"), "`January` of `m`");
        check(&(line("2026-01-01", "1") + &line("2026-01-01", "2")), "two prices");
        check("[[price]]\nmodel='m'\nprice=1", "cannot read");
    }

    #[test]
    fn models_are_known_by_the_names_that_logs_give_them() {
        let line = |model: &str, input: f64| {
            format!("[[price]]\nmodel='{model}'\nfrom='2024-01-01'\ninput={input}\noutput=1\n")
        };
        let list =
            PriceBook::parse(&(line("gpt-4o", 2.0) + &line("claude-3-5-haiku", 3.0) + &line("o1", 4.0))).unwrap();
        let check = |model: &str, input: Option<u64>| {
            assert_eq!(
                list.logged_price(model, NOVEMBER_2026_MS).map(|price| price.input_picousd / 1_000_000),
                input,
                "{model}"
            );
        };
        check("gpt-4o", Some(2));
        check("azure/GPT-4o", Some(2));
        check("gpt-4o-2024-08-06", Some(2));
        check("us.anthropic.claude-3-5-haiku-20241022-v1:0", Some(3));
        check("claude-3-5-haiku@20241022", Some(3));
        check("gpt-4o-mini", None);
        check("o1", Some(4));
        check("o3", None);
        check("", None);
        let own = PriceBook::parse(&line("gpt-4o", 9.0)).unwrap();
        assert_eq!(
            list.overlaid(own).logged_price("openai/gpt-4o", NOVEMBER_2026_MS).map(|price| price.input_picousd),
            Some(9_000_000)
        );
    }

    #[test]
    fn cached_tokens_have_a_price_of_their_own() {
        let book =
            PriceBook::parse("[[price]]\nmodel='m'\nfrom='2026-01-01'\ninput=2\noutput=8\ncached=0.5\n").unwrap();
        let price = book.price("m", NOVEMBER_2026_MS).unwrap();
        assert_eq!(price.cached_cost_picousd(100, 40, 10), 60 * 2_000_000 + 40 * 500_000 + 10 * 8_000_000);
        assert_eq!(price.cached_cost_picousd(100, 400, 0), 100 * 500_000);
        let plain = PriceBook::example().price("reference-llm", NOVEMBER_2026_MS).unwrap();
        assert_eq!(plain.cached_cost_picousd(100, 40, 10), plain.cost_picousd(100, 10));
    }

    #[test]
    fn dates_and_dollars() {
        assert_eq!(date_of(0), "1970-01-01");
        assert_eq!(date_of(951_782_400_000), "2000-02-29");
        assert_eq!(date_of(NOVEMBER_2026_MS), "2026-11-22");
        assert_eq!(usd(0), "0");
        assert_eq!(usd(300_000), "0.0000003");
        assert_eq!(usd(2_000_000_000_000), "2");
    }
}
