//! What is counted of every call of a task, in one pass and bounded memory.

use std::collections::BTreeMap;

use metier_traffic::{Exchange, PriceBook, price::Quote};

use super::task::{Spread, Volume, Week};

/// Bytes of text that are counted as one token where the log does not say.
const BYTES_A_TOKEN: u64 = 4;
/// Most models and weeks of one task that are told apart; further models count as `other`.
const MAX_MODELS: usize = 200;

/// Counts of one task.
#[derive(Debug, Default)]
pub struct Counts {
    /// By week and model.
    pub weeks: BTreeMap<Week, BTreeMap<String, Volume>>,
    /// Without a time, by model.
    pub undated: BTreeMap<String, Volume>,
    /// First and last call.
    pub span_ms: Option<(u64, u64)>,
    /// Tokens of requests.
    pub input: Histogram,
    /// Tokens of answers.
    pub output: Histogram,
    /// Milliseconds.
    pub elapsed: Histogram,
    /// Calls.
    pub calls: u64,
    /// Calls that hold texts.
    pub with_text: u64,
    /// Results of tools, over all calls.
    pub tool_results: u64,
    /// Messages of user and assistant, over all calls.
    pub turns: u64,
    /// Bytes of prompts.
    pub prompt_bytes: u64,
    /// Of these, the template's.
    pub constant_bytes: u64,
    models: u64,
}

impl Counts {
    /// Adds a call. Returns what it took, and the line of the book that priced it; none where its model has no price.
    pub fn add<'a>(&mut self, call: &Exchange, prices: &'a PriceBook, now_ms: u64) -> (Volume, Option<Quote<'a>>) {
        let estimated = call.tokens.is_none();
        let tokens = call.tokens.unwrap_or_else(|| {
            let answer = call.answer.as_ref().map_or(0, String::len) as u64;
            let prompt: u64 = call.messages.iter().map(|said| said.text.len() as u64).sum();
            metier_traffic::exchange::Tokens {
                input: prompt.div_ceil(BYTES_A_TOKEN),
                output: answer.div_ceil(BYTES_A_TOKEN),
                cached: 0,
            }
        });
        // What no log names is priced by the name under which the report tells it.
        let name = if call.model.is_empty() { "unknown" } else { call.model.as_str() };
        let quote = prices.logged_quote(name, call.time_ms.unwrap_or(now_ms));
        let cost = quote.map(|quote| quote.price.cached_cost_picousd(tokens.input, tokens.cached, tokens.output));
        let unpriced = u64::from(cost.is_none());
        let volume = Volume {
            calls: 1,
            failed: u64::from(call.failed),
            input_tokens: tokens.input,
            output_tokens: tokens.output,
            cached_tokens: tokens.cached,
            cost_picousd: cost.unwrap_or(0),
            unpriced,
            unpriced_input_tokens: unpriced * tokens.input,
            unpriced_output_tokens: unpriced * tokens.output,
            estimated: u64::from(estimated),
        };
        let models = match call.time_ms {
            Some(ms) => {
                let (first, last) = self.span_ms.unwrap_or((ms, ms));
                self.span_ms = Some((first.min(ms), last.max(ms)));
                self.weeks.entry(Week::of(ms)).or_default()
            }
            None => &mut self.undated,
        };
        match models.get_mut(name) {
            Some(sum) => *sum = sum.plus(&volume),
            None => {
                let name = if models.len() < MAX_MODELS { name } else { "other" };
                self.models += 1;
                let sum = models.entry(name.to_owned()).or_default();
                *sum = sum.plus(&volume);
            }
        }
        self.calls += 1;
        self.input.add(tokens.input);
        self.output.add(tokens.output);
        if let Some(ms) = call.elapsed_ms {
            self.elapsed.add(ms);
        }
        self.tool_results += call.tool_depth() as u64;
        self.turns += (call.messages.len() - call.tool_depth()) as u64;
        (volume, quote)
    }

    /// Adds the counts of another task.
    pub fn join(&mut self, other: Self) {
        for (week, models) in other.weeks {
            let mine = self.weeks.entry(week).or_default();
            for (model, volume) in models {
                let sum = mine.entry(model).or_default();
                *sum = sum.plus(&volume);
            }
        }
        for (model, volume) in other.undated {
            let sum = self.undated.entry(model).or_default();
            *sum = sum.plus(&volume);
        }
        self.span_ms = match (self.span_ms, other.span_ms) {
            (Some((a, b)), Some((c, d))) => Some((a.min(c), b.max(d))),
            (one, other) => one.or(other),
        };
        self.input.join(&other.input);
        self.output.join(&other.output);
        self.elapsed.join(&other.elapsed);
        self.calls += other.calls;
        self.with_text += other.with_text;
        self.tool_results += other.tool_results;
        self.turns += other.turns;
        self.prompt_bytes += other.prompt_bytes;
        self.constant_bytes += other.constant_bytes;
    }
}

/// By which factors a group's volume may be too large or too small where a share of its calls was assigned by a rule, 95 %. Of held-out rows `told` were
/// given to the group, `really` belong to it, `right` both.
///
/// What was wrongly given and what was wrongly taken are two independent counts, so their difference has the variance of their sum.
pub fn assigned_interval([told, really, right]: [u64; 3], share: f64) -> [f64; 2] {
    const NORMAL_95: f64 = 1.96;
    if told == 0 {
        return [1.0 - share, 1.0 + share];
    }
    let ratio = really as f64 / told as f64;
    let error = NORMAL_95 * (((told - right) + (really - right)).max(1) as f64).sqrt() / told as f64;
    [(1.0 - share + share * (ratio - error)).max(0.0), 1.0 - share + share * (ratio + error)]
}

/// Buckets a factor of two: quantiles are right to 1.1 %.
const BUCKETS_A_DOUBLING: f64 = 32.0;

/// How a count spreads, in buckets whose bounds grow by 2 % each; mean and deviation are exact.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    buckets: BTreeMap<u16, u64>,
    n: u64,
    sum: f64,
    squares: f64,
}

impl Histogram {
    /// Adds a value.
    pub fn add(&mut self, value: u64) {
        let bucket = ((value as f64 + 1.0).log2() * BUCKETS_A_DOUBLING).round() as u16;
        *self.buckets.entry(bucket).or_default() += 1;
        self.n += 1;
        self.sum += value as f64;
        self.squares += (value as f64) * (value as f64);
    }

    /// Adds another one's values.
    pub fn join(&mut self, other: &Self) {
        other.buckets.iter().for_each(|(bucket, n)| *self.buckets.entry(*bucket).or_default() += n);
        self.n += other.n;
        self.sum += other.sum;
        self.squares += other.squares;
    }

    /// Its quantiles, mean and deviation; none without a value.
    pub fn spread(&self) -> Option<Spread> {
        if self.n == 0 {
            return None;
        }
        let quantile = |share: f64| {
            let mut left = (share * self.n as f64).ceil() as u64;
            let reached = self.buckets.iter().find(|(_, n)| {
                left = left.saturating_sub(**n);
                left == 0
            });
            reached.map_or(0.0, |(bucket, _)| ((f64::from(*bucket) / BUCKETS_A_DOUBLING).exp2() - 1.0).round())
        };
        let mean = self.sum / self.n as f64;
        let sigma = (self.squares / self.n as f64 - mean * mean).max(0.0).sqrt();
        Some(Spread { p50: quantile(0.5), p95: quantile(0.95), mean, sigma })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_near_and_moments_exact() {
        let mut one = Histogram::default();
        let mut other = Histogram::default();
        assert_eq!(one.spread(), None);
        (0..=1000).for_each(|value| if value % 2 == 0 { one.add(value) } else { other.add(value) });
        one.join(&other);
        let spread = one.spread().unwrap_or_default();
        assert!((spread.p50 - 500.0).abs() <= 8.0 && (spread.p95 - 950.0).abs() <= 12.0, "{spread:?}");
        assert!((spread.mean - 500.0).abs() < 1e-9 && (spread.sigma - 288.963_666_9).abs() < 1e-4, "{spread:?}");
    }
}
