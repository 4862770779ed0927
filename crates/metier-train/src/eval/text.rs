//! How like the expected text is an answer? Two texts in; 0..1 out; and means of such numbers with their intervals.
//!
//! Words are runs of letters and digits, in lower case. Answers in JSON are put in one form first, so that white space and the order of
//! keys say nothing.

use std::{cmp::Ordering, collections::BTreeMap};

use metier_model::proof::{NonInferiority, Paired};
use serde_json::Value;

use super::{
    cluster::{self, Groups},
    metrics::{self, Measured},
};
use crate::data::TextMetric;

/// Draws of an interval or a comparison.
const RESAMPLES: usize = 2_000;
/// One-sided level of a comparison.
const LEVEL: f64 = 0.05;

/// The metric of one row.
pub fn value(metric: TextMetric, answer: &str, expected: &str, is_json: bool) -> f64 {
    match metric {
        TextMetric::ExactMatch => f64::from(u8::from(is_exact(answer, expected, is_json))),
        TextMetric::TokenF1 => token_f1(&words(answer), &words(expected)),
        TextMetric::RougeL => rouge_l(&words(answer), &words(expected)),
    }
}

/// The same text, runs of white space counted as one blank; of JSON, the same value.
pub fn is_exact(answer: &str, expected: &str, is_json: bool) -> bool {
    if is_json {
        let parse = |text: &str| serde_json::from_str::<Value>(text).ok();
        return parse(answer).is_some_and(|answer| Some(answer) == parse(expected));
    }
    answer.split_whitespace().eq(expected.split_whitespace())
}

fn words(text: &str) -> Vec<String> {
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_lowercase).collect()
}

fn f1(shared: usize, answer: usize, expected: usize) -> f64 {
    match (answer, expected) {
        (0, 0) => 1.0,
        _ => 2.0 * shared as f64 / (answer + expected) as f64,
    }
}

fn token_f1(answer: &[String], expected: &[String]) -> f64 {
    let mut left: BTreeMap<&str, usize> = BTreeMap::new();
    expected.iter().for_each(|word| *left.entry(word).or_default() += 1);
    let shared = answer.iter().filter(|word| match left.get_mut(word.as_str()) {
        Some(n) if *n > 0 => {
            *n -= 1;
            true
        }
        _ => false,
    });
    f1(shared.count(), answer.len(), expected.len())
}

fn rouge_l(answer: &[String], expected: &[String]) -> f64 {
    // Length of the longest common subsequence with each beginning of `expected`.
    let mut row = vec![0usize; expected.len() + 1];
    for word in answer {
        let mut diagonal = 0;
        for (j, other) in expected.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if word == other { diagonal + 1 } else { above.max(row[j]) };
            diagonal = above;
        }
    }
    f1(row[expected.len()], answer.len(), expected.len())
}

/// The mean over rows with its 95 % interval: of exact matches as any share, of degrees by resampling rows or whole groups.
pub fn measure(metric: TextMetric, values: &[f64], seed: u64, groups: Option<&Groups>) -> Measured {
    if metric == TextMetric::ExactMatch {
        return cluster::share(groups, &|_| true, &|row| values[row] == 1.0, values.len());
    }
    let mean = |rows: &[usize]| rows.iter().map(|&row| values[row]).sum::<f64>() / rows.len().max(1) as f64;
    let all: Vec<usize> = (0..values.len()).collect();
    let mut draws = draws(values.len(), seed, groups, mean);
    draws.sort_by(f64::total_cmp);
    let interval = if draws.is_empty() {
        [0.0, 1.0]
    } else {
        [(1.0 - metrics::CONFIDENCE) / 2.0, (1.0 + metrics::CONFIDENCE) / 2.0]
            .map(|share| metrics::quantile(&draws, share))
    };
    Measured { value: mean(&all), interval }
}

/// A statistic of as many rows, or groups of rows, drawn with replacement.
fn draws(n: usize, seed: u64, groups: Option<&Groups>, statistic: impl Fn(&[usize]) -> f64) -> Vec<f64> {
    if n == 0 {
        return Vec::new();
    }
    match groups {
        None => metrics::resample_with(n, seed, RESAMPLES, statistic),
        Some(groups) => {
            let of_group = groups.rows();
            metrics::resample_with(of_group.len(), seed, RESAMPLES, |drawn| {
                let rows: Vec<usize> = drawn.iter().flat_map(|&group| of_group[group].iter().copied()).collect();
                statistic(&rows)
            })
        }
    }
}

/// Whether `candidate` is shown, on the same rows, to be less than `margin` worse than `reference`; with the paired test where rows are right
/// or wrong.
pub fn non_inferior(
    metric: TextMetric,
    candidate: &[f64],
    reference: &[f64],
    margin: f64,
    seed: u64,
    groups: Option<&Groups>,
) -> (bool, Option<NonInferiority>) {
    assert_eq!(candidate.len(), reference.len(), "the same rows");
    if metric == TextMetric::ExactMatch {
        let right = |values: &[f64]| values.iter().map(|value| *value == 1.0).collect::<Vec<bool>>();
        let (candidate, reference) = (right(candidate), right(reference));
        let test = match groups {
            None => Paired::count(&candidate, &reference).non_inferiority(margin),
            Some(_) => cluster::non_inferiority(groups, &candidate, &reference, margin),
        };
        return (test.verdict == metier_model::proof::Verdict::NonInferior, Some(test));
    }
    let difference = |rows: &[usize]| {
        rows.iter().map(|&row| candidate[row] - reference[row]).sum::<f64>() / rows.len().max(1) as f64
    };
    let mut draws = draws(candidate.len(), seed, groups, difference);
    draws.sort_by(f64::total_cmp);
    let is_shown =
        !draws.is_empty() && metrics::quantile(&draws, LEVEL).partial_cmp(&-margin) == Some(Ordering::Greater);
    (is_shown, None)
}

/// JSON on one line with `, ` and `: `, keys in the order of the schema's properties, as constrained decoding writes it; keys that the schema
/// does not name come last, in their own order.
pub fn in_form(value: &Value, schema: &Value) -> String {
    match value {
        Value::Object(object) => {
            let empty = serde_json::Map::new();
            let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&empty);
            let place = |key: &str| properties.keys().position(|known| known == key).unwrap_or(usize::MAX);
            let mut entries: Vec<(&String, &Value)> = object.iter().collect();
            entries.sort_by_key(|(key, _)| place(key));
            let parts = entries.into_iter().map(|(key, value)| {
                let schema = properties.get(key).unwrap_or(&Value::Null);
                format!("{}: {}", Value::String(key.clone()), in_form(value, schema))
            });
            format!("{{{}}}", parts.collect::<Vec<_>>().join(", "))
        }
        Value::Array(items) => {
            let schema = schema.get("items").unwrap_or(&Value::Null);
            let parts = items.iter().map(|item| in_form(item, schema));
            format!("[{}]", parts.collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use serde_json::json;

    use super::*;

    fn check(metric: TextMetric, answer: &str, expected: &str, value_is: f64) {
        let found = value(metric, answer, expected, false);
        assert!((found - value_is).abs() < 1e-12, "{metric:?} of `{answer}` against `{expected}`: {found}");
    }

    #[test]
    fn by_hand() {
        check(TextMetric::ExactMatch, " a  b\n", "a b", 1.0);
        check(TextMetric::ExactMatch, "A b", "a b", 0.0);
        // Shared: the, cat, sat; 3 of 4 and 3 of 3.
        check(TextMetric::TokenF1, "The cat, the sat!", "cat sat the", 6.0 / 7.0);
        // Longest common subsequence: cat sat.
        check(TextMetric::RougeL, "The cat, the sat!", "cat sat the", 4.0 / 7.0);
        for metric in TextMetric::ALL {
            check(metric, "", "", 1.0);
            check(metric, "a", "", 0.0);
            check(metric, "", "a", 0.0);
        }
    }

    /// The pairs of Lin (2004), section 3.1: the same words, in order and out of it.
    #[test]
    fn rouge_l_sees_the_order_of_words() {
        check(TextMetric::RougeL, "police killed the gunman", "police kill the gunman", 0.75);
        check(TextMetric::RougeL, "the gunman kill police", "police kill the gunman", 0.5);
    }

    #[test]
    fn json_is_its_value() {
        let (a, b) = ("{\"a\": 1, \"b\": [true]}", "{\"b\":[true],\"a\":1}");
        assert_eq!(value(TextMetric::ExactMatch, a, b, true), 1.0);
        assert_eq!(value(TextMetric::ExactMatch, a, b, false), 0.0);
        assert_eq!(value(TextMetric::ExactMatch, "no json", "no json", true), 0.0);
        let schema = json!({"properties": {"z": {}, "a": {"properties": {"y": {}, "b": {}}}}});
        let value: Value = serde_json::from_str("{\"a\": {\"b\": \"ü\\\"\", \"y\": 1.5}, \"z\": [1, {}]}").unwrap();
        let expected = "{\"z\": [1, {}], \"a\": {\"y\": 1.5, \"b\": \"ü\\\"\"}}";
        assert_eq!(in_form(&value, &schema), expected);
    }

    #[test]
    fn means_and_comparisons() {
        let values: Vec<f64> = (0..200).map(|i| (i % 5) as f64 / 4.0).collect();
        let measured = measure(TextMetric::TokenF1, &values, 1, None);
        assert!((measured.value - 0.5).abs() < 1e-12);
        // Standard error 0.354 / √200 = 0.025.
        assert!((measured.interval[0] - 0.45).abs() < 0.015 && (measured.interval[1] - 0.55).abs() < 0.015);
        let worse: Vec<f64> = values.iter().map(|value| value - 0.02).collect();
        let shown = |margin| non_inferior(TextMetric::TokenF1, &worse, &values, margin, 1, None).0;
        assert!(shown(0.03) && !shown(0.01));
        let exact = non_inferior(TextMetric::ExactMatch, &[1.0; 300], &[1.0; 300], 0.02, 1, None);
        assert!(exact.0 && exact.1.unwrap().difference == 0.0);
    }
}
