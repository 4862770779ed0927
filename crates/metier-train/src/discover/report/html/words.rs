//! Numbers and verdicts in words: dollars with the digits that count, shares, ranges, badges.

use crate::{
    discover::{judge::Verdict, saving::Quantiles},
    eval::{
        Measured,
        html::{escape, label},
    },
};

/// Dollars for people: three digits that count, no cents above ten.
pub fn usd(value: f64) -> String {
    let sign = if value < 0.0 { "−" } else { "" };
    let value = value.abs();
    if value >= 100.0 {
        let step = 10f64.powf((value.log10().floor() - 2.0).max(0.0));
        return format!("{sign}${}", thousands((value / step).round() * step));
    }
    if value >= 1.0 || value == 0.0 { format!("{sign}${value:.2}") } else { format!("{sign}${}", significant(value)) }
}

/// Two digits that count of a number below 1.
pub(super) fn significant(value: f64) -> String {
    let digits = (1.0 - value.log10().floor()).clamp(0.0, 12.0) as usize;
    format!("{value:.digits$}")
}

/// Whole numbers in groups of three.
pub(super) fn thousands(value: f64) -> String {
    let text = format!("{:.0}", value.abs());
    let mut grouped = String::new();
    for (at, digit) in text.chars().enumerate() {
        if at > 0 && (text.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    if value < 0.0 { format!("−{grouped}") } else { grouped }
}

pub(super) fn count(value: f64) -> String {
    if value >= 1e6 { format!("{:.1} M", value / 1e6) } else { thousands(value.round()) }
}

/// Three digits that count: what rests on an assumption is no more exact than that.
pub(super) fn about(value: f64) -> String {
    let step = 10f64.powf((value.abs().max(1.0).log10().floor() - 2.0).max(0.0));
    thousands((value / step).round() * step)
}

/// A probability that was counted in draws: none of them is not never.
pub fn probability(p: f64) -> String {
    match p {
        p if p <= 0.005 => "below 1 %".to_owned(),
        p if p >= 0.995 => "above 99 %".to_owned(),
        p => format!("{:.0} %", 100.0 * p),
    }
}

/// How many of something there are.
pub(super) fn of(n: u64, one: &str, many: &str) -> String {
    format!("{} {}", thousands(n as f64), if n == 1 { one } else { many })
}

/// With a capital first letter.
pub(super) fn sentence(text: &str) -> String {
    let mut rest = text.chars();
    rest.next().map_or_else(String::new, |first| first.to_uppercase().chain(rest).collect())
}

pub(super) fn percent(share: f64) -> String {
    label(share)
}

pub(super) fn range(q: &Quantiles) -> String {
    format!("{} to {}", usd(q.p10), usd(q.p90))
}

pub(super) fn measured(m: &Measured) -> String {
    format!("{:.1} % [{:.1}, {:.1}]", 100.0 * m.value, 100.0 * m.interval[0], 100.0 * m.interval[1])
}

pub(super) fn class(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Proven { .. } => "proven",
        Verdict::Partial { .. } => "partial",
        Verdict::NotYet { .. } => "notyet",
        Verdict::No { .. } => "none",
        Verdict::Cheaper { .. } => "cheaper",
    }
}

/// The verdict in the words of a badge.
pub fn verdict_words(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Proven { coverage } => format!("proven: {} alone", percent(*coverage)),
        Verdict::Partial { coverage } => format!("partial: {} alone", percent(*coverage)),
        Verdict::NotYet { more_rows: Some(rows), .. } => {
            format!("not yet: about {} rows more", thousands(*rows as f64))
        }
        Verdict::NotYet { .. } => "not yet shown".to_owned(),
        Verdict::No { .. } => "no".to_owned(),
        Verdict::Cheaper { .. } => "cheaper without training".to_owned(),
    }
}

pub(super) fn badge(verdict: &Verdict) -> String {
    format!("<span class=\"badge {}\">{}</span>", class(verdict), escape(&verdict_words(verdict)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rests_on_draws_and_assumptions_is_no_more_exact_than_they_are() {
        for (p, text) in [
            (0.0, "below 1 %"),
            (0.03, "3 %"),
            (0.005, "below 1 %"),
            (0.994, "99 %"),
            (0.995, "above 99 %"),
            (1.0, "above 99 %"),
        ] {
            assert_eq!(probability(p), text);
        }
        for (value, text) in [(0.0, "0"), (229.4, "229"), (59_364.0, "59,400"), (-59_364.0, "−59,400")] {
            assert_eq!(about(value), text);
        }
        assert_eq!(of(1, "file", "files"), "1 file");
        assert_eq!(of(2_000, "file", "files"), "2,000 files");
        assert_eq!(sentence("état"), "État");
    }

    #[test]
    fn dollars_for_people() {
        for (value, text) in [
            (0.0, "$0.00"),
            (0.0026, "$0.0026"),
            (0.000_000_3, "$0.00000030"),
            (7.5, "$7.50"),
            (1_234.0, "$1,230"),
            (-78_950.0, "−$79,000"),
            (1_234_567.0, "$1,230,000"),
            (999.9, "$1,000"),
        ] {
            assert_eq!(usd(value), text);
        }
    }
}
