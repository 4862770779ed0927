//! What is personal in this text?
//!
//! **Question:** which stretches of a text point at a person, and of which kind are they? **In:** text. **Out:** kinds and byte ranges, in
//! order, none overlapping another. **Absent:** names of people, streets and dates of birth, which no pattern finds (a model for them comes
//! later); and any judgement whether the text may go somewhere.
//!
//! What has a check digit must pass its check: card numbers by Luhn, IBANs by ISO 7064 (MOD 97-10), so that order numbers are rarely taken
//! for them. Every expression is linear in the text's length.

use std::{net::IpAddr, ops::Range, sync::LazyLock};

use regex::Regex;
use serde::{Deserialize, Serialize};

/// A kind of personal data that has a form of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PersonalKind {
    /// An address of e-mail.
    Email,
    /// A number of a payment card, 12 to 19 digits.
    CreditCard,
    /// A number of a bank account, ISO 13616.
    Iban,
    /// A social security number of the United States.
    UsSsn,
    /// IPv4 or IPv6.
    IpAddress,
    /// A number of a telephone, 7 to 15 digits.
    Phone,
}

impl PersonalKind {
    /// What stands in its place where a text is shown.
    fn mask(self) -> &'static str {
        match self {
            Self::Email => "[e-mail]",
            Self::CreditCard => "[card]",
            Self::Iban => "[iban]",
            Self::UsSsn => "[ssn]",
            Self::IpAddress => "[ip]",
            Self::Phone => "[phone]",
        }
    }

    /// In words, for people.
    pub fn words(self) -> &'static str {
        match self {
            Self::Email => "e-mail addresses",
            Self::CreditCard => "card numbers",
            Self::Iban => "bank accounts (IBAN)",
            Self::UsSsn => "social security numbers (US)",
            Self::IpAddress => "IP addresses",
            Self::Phone => "telephone numbers",
        }
    }
}

/// Where something personal stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Personal {
    /// What it is.
    pub kind: PersonalKind,
    /// Its bytes in the text.
    pub range: Range<usize>,
}

fn expression(pattern: &str) -> Regex {
    Regex::new(pattern).expect("the patterns of this file are regular expressions")
}

static EMAIL: LazyLock<Regex> = LazyLock::new(|| {
    expression(r"(?i)[a-z0-9._%+\-]{1,64}@(?:[a-z0-9](?:[a-z0-9\-]{0,61}[a-z0-9])?\.){1,8}[a-z]{2,24}")
});
static IBAN: LazyLock<Regex> = LazyLock::new(|| expression(r"(?i)[a-z]{2}[0-9]{2}(?: ?[a-z0-9]){11,30}"));
static DIGITS: LazyLock<Regex> = LazyLock::new(|| expression(r"[0-9](?:[ \-]?[0-9]){11,18}"));
static SSN: LazyLock<Regex> = LazyLock::new(|| expression(r"[0-9]{3}-[0-9]{2}-[0-9]{4}"));
static IP: LazyLock<Regex> =
    LazyLock::new(|| expression(r"(?i)(?:[0-9]{1,3}\.){3}[0-9]{1,3}|(?:[0-9a-f]{0,4}:){2,7}[0-9a-f]{0,4}"));
static PHONE: LazyLock<Regex> =
    LazyLock::new(|| expression(r"(?:\+|00)?\(?[0-9](?:[ .\-]{0,2}\(?[0-9]\)?){5,14}[0-9]|\+[0-9]{7,15}"));
static DATE: LazyLock<Regex> = LazyLock::new(|| {
    expression(
        r"^(?:[12][0-9]{3}[ .\-](?:0?[1-9]|1[0-2])[ .\-][0-3]?[0-9]\b|[0-3]?[0-9][ .\-](?:0?[1-9]|1[0-2])[ .\-][12][0-9]{3}\b)",
    )
});

/// Whether what an expression matched is what it looks like.
type Check = fn(&str) -> bool;

/// Everything personal in a text that has a form of its own.
pub fn detect(text: &str) -> Vec<Personal> {
    let mut found: Vec<Personal> = Vec::new();
    let kinds: [(PersonalKind, &Regex, Check); 6] = [
        (PersonalKind::Email, &EMAIL, |_| true),
        (PersonalKind::Iban, &IBAN, is_iban),
        (PersonalKind::CreditCard, &DIGITS, is_card),
        (PersonalKind::UsSsn, &SSN, is_ssn),
        (PersonalKind::IpAddress, &IP, |found| found.parse::<IpAddr>().is_ok()),
        (PersonalKind::Phone, &PHONE, is_phone),
    ];
    for (kind, pattern, check) in kinds {
        let mut from = 0;
        while let Some(candidate) = pattern.find_at(text, from) {
            let range = longest(text, candidate.range(), kind, check);
            from = range.as_ref().map_or(candidate.end(), |range| range.end);
            if let Some(range) = range.filter(|range| found.iter().all(|other| !overlap(&other.range, range))) {
                found.push(Personal { kind, range });
            }
        }
    }
    found.sort_by_key(|personal| personal.range.start);
    found
}

/// The text as it may be shown: what was detected is replaced by its kind.
pub fn masked(text: &str) -> String {
    let (mut shown, mut from) = (String::with_capacity(text.len()), 0);
    for Personal { kind, range } in detect(text) {
        shown.push_str(&text[from..range.start]);
        shown.push_str(kind.mask());
        from = range.end;
    }
    shown + &text[from..]
}

/// The candidate as it is, or the longest beginning of an IBAN that passes: words behind it look like more of it.
fn longest(text: &str, range: Range<usize>, kind: PersonalKind, check: Check) -> Option<Range<usize>> {
    let ends: Vec<usize> = match kind {
        // All that is matched is ASCII.
        PersonalKind::Iban => (range.start + 15..=range.end).rev().collect(),
        _ => vec![range.end],
    };
    ends.into_iter().map(|end| range.start..end).find(|range| stands_alone(text, range) && check(&text[range.clone()]))
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

/// Neither a letter nor a digit on either side: else it is a part of something longer.
fn stands_alone(text: &str, range: &Range<usize>) -> bool {
    let before = text[..range.start].chars().next_back();
    let after = text[range.end..].chars().next();
    let goes_on = |char: Option<char>| char.is_some_and(|char| char.is_alphanumeric() || char == '_');
    !goes_on(before) && !goes_on(after)
}

fn digits(text: &str) -> impl DoubleEndedIterator<Item = u32> + '_ {
    text.chars().filter_map(|char| char.to_digit(10))
}

/// Luhn's check: every second digit from the right is doubled, and the sum of all digits ends with 0.
fn is_card(text: &str) -> bool {
    let sum: u32 = digits(text)
        .rev()
        .enumerate()
        .map(|(at, digit)| if at % 2 == 0 { digit } else { digit * 2 / 10 + digit * 2 % 10 })
        .sum();
    sum > 0 && sum.is_multiple_of(10)
}

/// ISO 7064 MOD 97-10 over the number with its first four characters at the end.
fn is_iban(text: &str) -> bool {
    let bare: Vec<char> = text.chars().filter(|char| *char != ' ').collect();
    if !(15..=34).contains(&bare.len()) || text.ends_with(' ') {
        return false;
    }
    let rest = bare.iter().cycle().skip(4).take(bare.len()).filter_map(|char| char.to_digit(36));
    rest.fold(0, |rest, value| if value < 10 { (rest * 10 + value) % 97 } else { (rest * 100 + value) % 97 }) == 1
}

/// The parts that were never given out: 000, 666 and 900 and above; 00; 0000.
fn is_ssn(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    !matches!(parts[0], "000" | "666") && !parts[0].starts_with('9') && parts[1] != "00" && parts[2] != "0000"
}

/// Grouped or with a country's code, and no date.
fn is_phone(text: &str) -> bool {
    let n = digits(text).count();
    let groups: Vec<&str> = text.split([' ', '-', '.', '(', ')']).filter(|group| !group.is_empty()).collect();
    let grouped = groups.len() > 1 && groups.iter().all(|group| group.len() > 1 || text.contains(['+', '(']));
    let dotted = text.contains('.') && !text.contains([' ', '-', '(', '+']) && groups.len() < 3;
    (7..=15).contains(&n) && (grouped || text.starts_with(['+', '('])) && !dotted && !DATE.is_match(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &[(PersonalKind, &str)]) {
        let found: Vec<_> = detect(text).into_iter().map(|found| (found.kind, &text[found.range])).collect();
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn forms_are_found_and_checks_hold() {
        use PersonalKind::*;
        check("write to Ada.Byron+x@mail.example.org.", &[(Email, "Ada.Byron+x@mail.example.org")]);
        check("pay GB82 WEST 1234 5698 7654 32 by Friday", &[(Iban, "GB82 WEST 1234 5698 7654 32")]);
        check("gb82west12345698765432", &[(Iban, "gb82west12345698765432")]);
        check("not GB82WEST12345698765433 at all", &[]);
        check("card 4111 1111 1111 1111, order 4111 1111 1111 1112", &[(CreditCard, "4111 1111 1111 1111")]);
        check("ssn 460-89-9847", &[(UsSsn, "460-89-9847")]);
        assert!(
            ["000-12-3456", "666-12-3456", "901-12-3456", "460-00-3456", "460-89-0000"]
                .iter()
                .all(|text| !is_ssn(text))
        );
        check("from 10.0.0.12 and 2001:db8::17 at 12:30:45", &[(IpAddress, "10.0.0.12"), (IpAddress, "2001:db8::17")]);
        check("call +46 (0)8 928 571 38 or 905-674-3793", &[(Phone, "+46 (0)8 928 571 38"), (Phone, "905-674-3793")]);
        check("on 2026-11-26 10:30, 26.11.2026, 3 400 000, version 1.12.304, order 20261126, 12345678", &[]);
        check("", &[]);
        assert_eq!(masked("ask ada@example.org or +49 30 1234567."), "ask [e-mail] or [phone].");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic_and_ranges_are_texts(text in "[ -~äß€\n]{0,80}|(?:[0-9+(). \\-:@a-f]{0,60})") {
            let found = detect(&text);
            for pair in found.windows(2) {
                prop_assert!(pair[0].range.end <= pair[1].range.start);
            }
            for one in found {
                prop_assert!(text.is_char_boundary(one.range.start) && text.is_char_boundary(one.range.end));
            }
        }

        #[test]
        fn a_card_with_one_other_digit_is_none(at in 0usize..16, add in 1u32..10) {
            let mut card: Vec<u32> = "4539578763621486".chars().filter_map(|char| char.to_digit(10)).collect();
            let text = |card: &[u32]| card.iter().map(u32::to_string).collect::<String>();
            prop_assert!(is_card(&text(&card)));
            card[at] = (card[at] + add) % 10;
            prop_assert!(!is_card(&text(&card)));
        }
    }
}
