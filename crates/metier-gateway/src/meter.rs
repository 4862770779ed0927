//! What a request cost: tokens, time, picodollars.
//!
//! Which question: *what did this answer cost us?* In go who answered and how many tokens; out comes a cost, or `None` where no
//! price is known. Deliberately absent: budgets (a later issue reserves before and settles after).

use metier_traffic::PriceBook;

/// What a specialist's answer is taken to cost, in picodollars: 0.3 µ$, about 10 ms of two cores at $0.10 an hour. A stated
/// constant, not a measurement; the operator replaces it in the configuration.
pub const SPECIALIST_PICOUSD: u64 = 300_000;
/// What a token of the local base is taken to cost, in picodollars, read or written alike: 10 ms of the same two cores.
pub const BASE_TOKEN_PICOUSD: u64 = 300_000;

/// Prices of everyone who may answer.
#[derive(Clone, Debug)]
pub struct Meter {
    /// Prices of backends' models.
    pub prices: PriceBook,
    /// A specialist's answer, in picodollars.
    pub specialist_picousd: u64,
    /// A token of the local base, in picodollars.
    pub base_token_picousd: u64,
}

impl Default for Meter {
    fn default() -> Self {
        Self {
            prices: PriceBook::example(),
            specialist_picousd: SPECIALIST_PICOUSD,
            base_token_picousd: BASE_TOKEN_PICOUSD,
        }
    }
}

impl Meter {
    /// Cost of the local base's answer.
    pub fn base(&self, prompt_tokens: u64, completion_tokens: u64) -> u64 {
        self.base_token_picousd.saturating_mul(prompt_tokens.saturating_add(completion_tokens))
    }

    /// Cost of a backend's answer by its line in the price book; `None` when it has none.
    pub fn backend(
        &self,
        price: Option<&str>,
        time_ms: u64,
        prompt_tokens: u64,
        completion_tokens: u64,
    ) -> Option<u64> {
        self.prices.cost_picousd(price?, time_ms, prompt_tokens, completion_tokens)
    }
}

/// A running sum in which one unpriced part makes the whole unpriced: never a cost that is too low.
pub fn sum(parts: &[Option<u64>]) -> Option<u64> {
    parts.iter().try_fold(0_u64, |sum, part| Some(sum.saturating_add((*part)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unpriced_part_makes_the_sum_unpriced() {
        assert_eq!(sum(&[Some(1), Some(2)]), Some(3));
        assert_eq!(sum(&[Some(1), None]), None);
        let meter = Meter::default();
        assert_eq!(meter.backend(Some("reference-llm"), 1_795_305_600_000, 1_000_000, 0), Some(2_500_000_000_000));
        assert_eq!(meter.backend(Some("nobody"), 1_795_305_600_000, 1, 1), None);
        assert_eq!(meter.backend(None, 1_795_305_600_000, 1, 1), None);
    }
}
