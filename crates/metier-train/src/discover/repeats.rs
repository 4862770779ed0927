//! *Which prompts came before, and were they answered alike?* In bounded memory: where there are too many, only prompts whose hash falls into a part of
//! all hashes are remembered, which leaves the shares unbiased.

use metier_model::features::fold;
use metier_traffic::Exchange;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use std::collections::HashMap;

/// Prompts that are remembered: at 17 bytes in a table of 2²² places, 71 MB.
const MAX_REMEMBERED: usize = 2_000_000;

/// Prompts of a run.
#[derive(Debug, Default)]
pub struct Repeats {
    before: HashMap<u64, Before>,
    /// Hashes whose lowest bits are not zero are passed over.
    bits: u32,
}

/// Half a hash each: two that differ are taken for equal once in 4 thousand million comparisons.
#[derive(Clone, Copy, Debug)]
struct Before {
    model: u32,
    /// 0: there was none.
    answer: u32,
}

fn half(text: &str) -> u32 {
    (xxh3_64(text.as_bytes()) >> 32) as u32
}

/// What is known of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// It was passed over.
    Passed,
    /// It is new.
    New,
    /// Its prompt came before; `same`: and the same model gave the same answer, where both answered.
    Repeat {
        /// Whether answers agree.
        same: Option<bool>,
    },
}

impl Repeats {
    /// Looks at a call and remembers it.
    pub fn look(&mut self, call: &Exchange) -> Look {
        let mut hasher = Xxh3::new();
        for said in &call.messages {
            hasher.update(said.text.as_bytes());
            hasher.update(&[said.by as u8, 0]);
        }
        let hash = hasher.digest();
        if hash & ((1 << self.bits) - 1) != 0 {
            return Look::Passed;
        }
        let answer = call.answer.as_ref().filter(|_| !call.failed).map_or(0, |answer| half(&fold(answer)).max(1));
        let now = Before { model: half(&call.model), answer };
        match self.before.insert(hash, now) {
            Some(before) => {
                let both = before.answer != 0 && now.answer != 0 && before.model == now.model;
                Look::Repeat { same: both.then_some(before.answer == now.answer) }
            }
            None => {
                if self.before.len() > MAX_REMEMBERED {
                    self.bits += 1;
                    let bits = self.bits;
                    self.before.retain(|hash, _| hash & ((1 << bits) - 1) == 0);
                }
                Look::New
            }
        }
    }
}

/// Counts of one task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Calls that were looked at.
    pub looked: u64,
    /// Of these, prompts that came before.
    pub repeats: u64,
    /// Repeats with two answers of one model.
    pub pairs: u64,
    /// Of these, equal ones.
    pub agree: u64,
}

impl Seen {
    /// Adds one call.
    pub fn add(&mut self, look: Look) {
        self.looked += u64::from(look != Look::Passed);
        if let Look::Repeat { same } = look {
            self.repeats += 1;
            self.pairs += u64::from(same.is_some());
            self.agree += u64::from(same == Some(true));
        }
    }

    /// Adds the counts of another task.
    pub fn join(&mut self, other: &Self) {
        self.looked += other.looked;
        self.repeats += other.repeats;
        self.pairs += other.pairs;
        self.agree += other.agree;
    }
}

#[cfg(test)]
mod tests {
    use metier_traffic::exchange::{Said, Speaker};

    use super::*;

    fn call(text: &str, answer: Option<&str>) -> Exchange {
        let messages = vec![Said { by: Speaker::User, text: text.to_owned() }];
        Exchange { model: "m".to_owned(), messages, answer: answer.map(str::to_owned), ..Exchange::default() }
    }

    #[test]
    fn repeats_and_their_answers() {
        let mut repeats = Repeats::default();
        let mut seen = Seen::default();
        for (text, answer) in [
            ("a", Some("Yes")),
            ("b", Some("no")),
            ("a", Some(" yes ")),
            ("a", Some("no")),
            ("a", None),
            ("b", Some("no")),
        ] {
            seen.add(repeats.look(&call(text, answer)));
        }
        assert_eq!(seen, Seen { looked: 6, repeats: 4, pairs: 3, agree: 2 });
        repeats.bits = 63;
        assert_eq!(repeats.look(&call("c", None)), Look::Passed);
    }
}
