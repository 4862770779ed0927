//! Which question: *which token comes next?* Logits and the caller's wishes go in; a token with its log-probability comes out. The same logits, wishes and
//! seed give the same token everywhere: ties go to the smaller id, sums run in one order.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
};

use crate::tokenizer::TokenId;

mod cut;

use cut::{Candidate, Cut};

/// The tokens that may be drawn: a bit each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenMask {
    words: Vec<u32>,
}

impl TokenMask {
    /// `words`: bit `i % 32` of word `i / 32` is token `i`; bits from `vocabulary` on are ignored.
    pub fn new(words: &[u32], vocabulary: usize) -> Self {
        let mut words = words[..words.len().min(vocabulary.div_ceil(32))].to_vec();
        if let (Some(last), 1..) = (words.get_mut(vocabulary / 32), vocabulary % 32) {
            *last &= (1 << (vocabulary % 32)) - 1;
        }
        Self { words }
    }

    /// Whether the token may be drawn.
    pub fn contains(&self, token: TokenId) -> bool {
        self.words.get(token.0 as usize / 32).is_some_and(|word| word >> (token.0 % 32) & 1 == 1)
    }

    /// Tokens that may be drawn.
    pub fn count(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Sets all others to −∞.
    fn apply(&self, logits: &mut [f32]) {
        for (i, logits) in logits.chunks_mut(32).enumerate() {
            match self.words.get(i).copied().unwrap_or(0) {
                u32::MAX => {}
                0 => logits.fill(f32::NEG_INFINITY),
                word => {
                    for (_, logit) in logits.iter_mut().enumerate().filter(|(bit, _)| word >> bit & 1 == 0) {
                        *logit = f32::NEG_INFINITY;
                    }
                }
            }
        }
    }
}

/// What may be drawn, asked no further than a draw needs to know.
pub trait Filter {
    /// Why it cannot say.
    type Error;

    /// Whether this token may be drawn: the same answer as the mask's, without making one.
    ///
    /// # Errors
    ///
    /// Where it cannot say.
    fn allows(&mut self, token: TokenId) -> Result<bool, Self::Error>;

    /// All tokens that may be drawn: at least one.
    ///
    /// # Errors
    ///
    /// Where it cannot say, or none may.
    fn mask(&mut self) -> Result<&TokenMask, Self::Error>;
}

impl Filter for &TokenMask {
    type Error = std::convert::Infallible;

    fn allows(&mut self, token: TokenId) -> Result<bool, Self::Error> {
        Ok(self.contains(token))
    }

    fn mask(&mut self) -> Result<&TokenMask, Self::Error> {
        Ok(self)
    }
}

/// How tokens are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0: always the most probable token. Above: logits are divided by it.
    pub temperature: f32,
    /// Draw from the smallest set of tokens whose probabilities reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Draw from so many most probable tokens; 0 keeps all.
    pub top_k: usize,
    /// Leave out tokens whose probability is below this share of the most probable token's; 0 keeps all.
    pub min_p: f32,
    /// Taken from the logit of a token once for each time it was written: −2 to 2.
    pub frequency_penalty: f32,
    /// Taken from the logit of a token that was written: −2 to 2.
    pub presence_penalty: f32,
    /// Divides the positive and multiplies the negative logits of tokens that stand in the prompt or were written (Keskar et al.
    /// 2019): [`MIN_REPETITION_PENALTY`] to [`MAX_REPETITION_PENALTY`]; 1 leaves them.
    pub repetition_penalty: f32,
    /// Seed of the draws.
    pub seed: u64,
}

/// Bound of the penalties, both ways, as in the OpenAI API.
pub const MAX_PENALTY: f32 = 2.0;
/// Least repetition penalty: below 1, repetition is rewarded.
pub const MIN_REPETITION_PENALTY: f32 = 0.1;
/// Greatest repetition penalty.
pub const MAX_REPETITION_PENALTY: f32 = 10.0;
/// Tokens whose logits a request moves, at most.
pub const MAX_BIASED: usize = 1024;
/// Bound of what is added to a logit, both ways, as in the OpenAI API.
pub const MAX_BIAS: f32 = 100.0;
/// Most probable tokens that are asked about before a mask of those that may be drawn is made. A model that was made for its form is
/// right at the first; one that begins with `Sure` is right within a few, and each costs less than a tenth of a regular expression's
/// mask.
const UNMASKED_GREEDY: usize = 6;
/// The same for draws at a temperature: each goes over the whole softmax.
const UNMASKED_DRAWS: usize = 2;
/// The same where the distribution's tail is cut off.
const UNMASKED_CUT: usize = 12;

impl Sampling {
    /// Every number lies in its range.
    pub fn is_valid(&self) -> bool {
        let Self { temperature, top_p, min_p, frequency_penalty, presence_penalty, repetition_penalty, .. } = *self;
        let penalties = [frequency_penalty, presence_penalty];
        [temperature, top_p].iter().all(|x| x.is_finite() && *x >= 0.0)
            && (0.0..=1.0).contains(&min_p)
            && penalties.iter().all(|penalty| penalty.abs() <= MAX_PENALTY)
            && (MIN_REPETITION_PENALTY..=MAX_REPETITION_PENALTY).contains(&repetition_penalty)
    }
}

impl Default for Sampling {
    /// Greedy.
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
        }
    }
}

/// Draws the tokens of one sequence.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    bias: Vec<(TokenId, f32)>,
    /// How often each token was written; kept only where a penalty wants to know.
    written: BTreeMap<TokenId, u32>,
    /// Tokens of prompt and answer; kept only where repetition is penalised.
    seen: BTreeSet<TokenId>,
    candidates: Vec<Candidate>,
    weights: Vec<f32>,
    moved: Vec<f32>,
}

impl Sampler {
    /// A sampler that has written nothing behind `prompt`. `bias` is added to logits.
    pub fn new(sampling: Sampling, bias: &[(TokenId, f32)], prompt: &[TokenId]) -> Self {
        let penalised = sampling.repetition_penalty != 1.0;
        let seen = if penalised { prompt.iter().copied().collect() } else { BTreeSet::new() };
        let (candidates, weights, moved) = (Vec::new(), Vec::new(), Vec::new());
        Self { sampling, bias: bias.to_vec(), written: BTreeMap::new(), seen, candidates, weights, moved }
    }

    /// Counts a token that the answer goes on with, drawn or not.
    pub fn wrote(&mut self, token: TokenId) {
        if self.sampling.frequency_penalty != 0.0 || self.sampling.presence_penalty != 0.0 {
            *self.written.entry(token).or_default() += 1;
        }
        if self.sampling.repetition_penalty != 1.0 {
            self.seen.insert(token);
        }
    }

    /// The token at a position of the answer: bias and penalties, then temperature, top-k, top-p and min-p. The draw depends on seed
    /// and position alone, so that tokens that were certain without a draw change none behind them. `logits`: (vocabulary,), finite.
    pub fn pick(&mut self, position: usize, logits: &[f32]) -> u32 {
        if self.leaves_logits() {
            return self.draw(position, 0, logits);
        }
        let moved = self.moved(logits);
        let token = self.draw(position, 0, &moved);
        self.moved = moved;
        token
    }

    /// As [`pick`](Self::pick), among the tokens that the filter allows; top-k, top-p and min-p see no others.
    ///
    /// A mask is made only where it must be. Where nothing is cut off the distribution, a token drawn from all of it is taken if it is
    /// allowed, else left out and the draw repeated: whatever was refused on the way, an allowed token is as probable as behind a
    /// mask, and the most probable one is the same. Where its tail is cut off, the most probable tokens are asked about until it is
    /// certain what the cuts leave.
    ///
    /// # Errors
    ///
    /// The filter's.
    pub fn pick_allowed<F: Filter>(&mut self, position: usize, logits: &[f32], mut filter: F) -> Result<u32, F::Error> {
        let mut moved = (!self.leaves_logits()).then(|| self.moved(logits));
        if self.cuts() {
            let token = self.draw_cut(position, moved.as_deref().unwrap_or(logits), &mut filter)?;
            if let Some(token) = token {
                self.moved = moved.unwrap_or_else(|| std::mem::take(&mut self.moved));
                return Ok(token);
            }
        }
        let unmasked_draws = match self.cuts() {
            true => 0,
            false if self.is_greedy() => UNMASKED_GREEDY,
            false => UNMASKED_DRAWS,
        };
        let mut maxima = Vec::new();
        for draw in 0..unmasked_draws {
            let left = moved.as_deref().unwrap_or(logits);
            let token = if draw > 0 && self.is_greedy() {
                next_best(left, &mut maxima)
            } else {
                self.draw(position, draw, left)
            };
            if filter.allows(TokenId(token))? {
                self.moved = moved.unwrap_or_else(|| std::mem::take(&mut self.moved));
                return Ok(token);
            }
            moved.get_or_insert_with(|| self.moved(logits))[token as usize] = f32::NEG_INFINITY;
            if let Some(max) = maxima.get_mut(token as usize / BLOCK) {
                let left = moved.as_deref().unwrap_or(logits);
                *max = left.chunks(BLOCK).nth(token as usize / BLOCK).map_or(f32::NEG_INFINITY, largest);
            }
        }
        let mut moved = moved.unwrap_or_else(|| self.moved(logits));
        filter.mask()?.apply(&mut moved);
        let token = self.draw(position, unmasked_draws, &moved);
        self.moved = moved;
        Ok(token)
    }

    /// Neither bias nor penalty says anything yet.
    fn leaves_logits(&self) -> bool {
        self.bias.is_empty() && self.written.is_empty() && self.seen.is_empty()
    }

    /// The distribution loses its tail, so that it matters what was taken from it before.
    fn cuts(&self) -> bool {
        let Sampling { top_p, top_k, min_p, .. } = self.sampling;
        !self.is_greedy() && (top_p < 1.0 || top_k > 0 || min_p > 0.0)
    }

    /// Below this temperature, exp leaves one token anyway.
    fn is_greedy(&self) -> bool {
        self.sampling.temperature.is_nan() || self.sampling.temperature < 1e-5
    }

    /// Logits with bias and penalties, in the sampler's buffer.
    fn moved(&mut self, logits: &[f32]) -> Vec<f32> {
        let mut moved = std::mem::take(&mut self.moved);
        moved.clear();
        moved.extend_from_slice(logits);
        for (token, bias) in &self.bias {
            moved[token.0 as usize] += bias;
        }
        let Sampling { frequency_penalty, presence_penalty, repetition_penalty, .. } = self.sampling;
        for token in &self.seen {
            let logit = &mut moved[token.0 as usize];
            *logit = if *logit > 0.0 { *logit / repetition_penalty } else { *logit * repetition_penalty };
        }
        for (token, count) in &self.written {
            moved[token.0 as usize] -= frequency_penalty * *count as f32 + presence_penalty;
        }
        moved
    }

    /// Draws, for the `nth` time at this position; −∞ stands for what may not be drawn.
    fn draw(&mut self, position: usize, nth: usize, logits: &[f32]) -> u32 {
        let Sampling { temperature, top_p, top_k, min_p, seed, .. } = self.sampling;
        if self.is_greedy() {
            return argmax(logits);
        }
        let max = logits[argmax(logits) as usize];
        let uniform = uniform(seed, position, nth);
        if !self.cuts() {
            return draw_from_all(&mut self.weights, uniform, logits, max, temperature);
        }
        self.weigh(logits, max);
        let everything = top_k == 0 || top_k >= self.candidates.len();
        if !everything {
            self.candidates.select_nth_unstable_by(top_k - 1, descending);
            self.candidates.truncate(top_k);
        }
        if top_p < 1.0 {
            self.keep_top_p(top_p.max(0.0));
        } else if !everything {
            // Selection leaves an order of its own: draw in a fixed one.
            self.candidates.sort_unstable_by(descending);
        }
        if min_p > 0.0 {
            self.candidates.retain(|(_, weight)| *weight >= min_p);
        }

        draw_from(&self.candidates, uniform)
    }

    /// Draws from what the cuts leave of the allowed tokens, if that is certain after a few questions: as behind a mask.
    fn draw_cut<F: Filter>(
        &mut self,
        position: usize,
        logits: &[f32],
        filter: &mut F,
    ) -> Result<Option<u32>, F::Error> {
        let Sampling { top_p, top_k, min_p, seed, .. } = self.sampling;
        self.weigh(logits, logits[argmax(logits) as usize]);
        let known = UNMASKED_CUT.min(self.candidates.len());
        if known < self.candidates.len() {
            self.candidates.select_nth_unstable_by(known, descending);
        }
        let (best, others) = self.candidates.split_at_mut(known);
        best.sort_unstable_by(descending);
        let others: f64 = others.iter().map(|(_, weight)| f64::from(*weight)).sum();
        let cut = Cut { top_k, top_p: f64::from(top_p.max(0.0)), min_p };
        let left = cut.keep(best, others, |token| filter.allows(TokenId(token)))?;
        Ok(left.map(|left| draw_from(&left, uniform(seed, position, 0))))
    }

    /// Makes candidates of all tokens that may be drawn, by token.
    fn weigh(&mut self, logits: &[f32], max: f32) {
        let temperature = self.sampling.temperature;
        self.candidates.clear();
        let weights = logits.iter().enumerate().filter(|(_, logit)| **logit > f32::NEG_INFINITY);
        self.candidates.extend(weights.map(|(id, &logit)| (id as u32, exp((logit - max) / temperature))));
    }

    /// Leaves the smallest set of most probable candidates that reaches the share, sorted. Sorts no more of them than it must: a
    /// vocabulary is long, and the set is short.
    fn keep_top_p(&mut self, share: f32) {
        const FIRST_GUESS: usize = 64;
        let total: f32 = self.candidates.iter().map(|(_, weight)| weight).sum();
        let (n, mut sorted, mut sum) = (self.candidates.len(), 0, 0.0);
        while sorted < n {
            let end = (sorted * 8).max(FIRST_GUESS).min(n);
            let rest = &mut self.candidates[sorted..];
            if end < n {
                rest.select_nth_unstable_by(end - sorted - 1, descending);
            }
            rest[..end - sorted].sort_unstable_by(descending);
            for at in sorted..end {
                sum += self.candidates[at].1;
                if sum >= share * total {
                    self.candidates.truncate(at + 1);
                    return;
                }
            }
            sorted = end;
        }
    }
}

/// Draws one of the candidates, by weight, in their order.
fn draw_from(candidates: &[Candidate], uniform: f64) -> u32 {
    let total: f64 = candidates.iter().map(|(_, weight)| f64::from(*weight)).sum();
    let mut left = uniform * total;
    for &(id, weight) in candidates {
        left -= f64::from(weight);
        if left < 0.0 {
            return id;
        }
    }
    // Rounding can leave a crumb: it belongs to the last candidate.
    candidates.last().map_or(0, |&(id, _)| id)
}

/// Draws from the whole softmax. A vocabulary is long: weights are made in a form that compilers make vectors of, and added in blocks;
/// the draw looks for its block first. Every sum has one order, so that all machines draw alike.
fn draw_from_all(weights: &mut Vec<f32>, uniform: f64, logits: &[f32], max: f32, temperature: f32) -> u32 {
    const LANES: usize = 8;
    weights.clear();
    weights.extend(logits.iter().map(|logit| exp((logit - max) / temperature)));
    let sum = |block: &[f32]| {
        let mut lanes = [0.0f32; LANES];
        let chunks = block.chunks_exact(LANES);
        let rest: f32 = chunks.remainder().iter().sum();
        for chunk in chunks {
            for (lane, weight) in lanes.iter_mut().zip(chunk) {
                *lane += weight;
            }
        }
        f64::from(lanes.iter().sum::<f32>() + rest)
    };
    let total: f64 = weights.chunks(BLOCK).map(sum).sum();
    let (mut left, mut last) = (uniform * total, 0);
    for (nth, block) in weights.chunks(BLOCK).enumerate() {
        let share = sum(block);
        if left >= share {
            left -= share;
            continue;
        }
        for (at, weight) in block.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
            left -= f64::from(*weight);
            last = nth * BLOCK + at;
            if left < 0.0 {
                return last as u32;
            }
        }
    }
    // Rounding can leave a crumb: it belongs to the last token seen that may be drawn, or else to the most probable one.
    if weights.get(last).is_some_and(|weight| *weight > 0.0) { last as u32 } else { argmax(logits) }
}

/// e^x for x ≤ 0, to 2 units in the last place; 0 below −87. No branches and no library, so that it is the same number everywhere. Split as x = n·ln 2 + r, then
/// a polynomial in r (Taylor's to the seventh power; |r| ≤ ln 2 / 2).
fn exp(x: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0; // 1.5 · 2^23: adding it rounds to a whole number
    const LN2_HIGH: f32 = 355.0 / 512.0;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = if x > -87.0 { x } else { -87.0 };
    let shifted = clamped * std::f32::consts::LOG2_E + SHIFT;
    let n = shifted - SHIFT;
    let r = clamped - n * LN2_HIGH - n * LN2_LOW;
    let mut p = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p * r + c;
    }
    let scale = f32::from_bits(shifted.to_bits().wrapping_sub(SHIFT.to_bits()).wrapping_add(127) << 23);
    if x > -87.0 { p * scale } else { 0.0 }
}

/// Uniform in [0, 1), a number for each position and repetition: SplitMix64 (Steele, Lea, Flood 2014), 53 bits.
fn uniform(seed: u64, position: usize, nth: usize) -> f64 {
    let mut z = seed.wrapping_add((position as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = z.wrapping_add((nth as u64).wrapping_mul(0xD1B5_4A32_D192_ED03));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

/// Logits looked through together.
const BLOCK: usize = 256;

/// Index of the largest logit; the smallest index among equals.
pub fn argmax(logits: &[f32]) -> u32 {
    let (mut best, mut max) = (0, f32::NEG_INFINITY);
    for (nth, block) in logits.chunks(BLOCK).enumerate() {
        let largest = largest(block);
        if largest > max {
            (best, max) = (nth, largest);
        }
    }
    place(logits, best, max)
}

/// The largest of a block, in lanes, which compilers make vectors of.
fn largest(block: &[f32]) -> f32 {
    const LANES: usize = 16;
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = block.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, logit) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, *logit);
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |max, &logit| larger(max, logit))
}

/// As [`argmax`], with the largest of each block remembered: once none is known all are found, and a caller that changes a logit says so.
fn next_best(logits: &[f32], maxima: &mut Vec<f32>) -> u32 {
    if maxima.is_empty() {
        maxima.extend(logits.chunks(BLOCK).map(largest));
    }
    let max = largest(maxima);
    let block = maxima.iter().position(|&of_block| of_block == max).unwrap_or(0);
    place(logits, block, max)
}

/// Where in this block the value stands first.
fn place(logits: &[f32], block: usize, value: f32) -> u32 {
    let start = block * BLOCK;
    let within = logits[start..].iter().take(BLOCK).position(|&logit| logit == value);
    (start + within.unwrap_or(0)) as u32
}

/// Larger weight first, then smaller id.
fn descending(a: &Candidate, b: &Candidate) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// Log-probability (natural logarithm, at temperature 1) of `token`, and of the `top` most probable tokens, best first.
pub fn logprobs(logits: &[f32], token: u32, top: usize) -> (f32, Vec<(u32, f32)>) {
    let max = logits[argmax(logits) as usize];
    let log_sum = (logits.iter().map(|&logit| f64::from(logit - max).exp()).sum::<f64>()).ln() as f32 + max;
    let mut best: Vec<(u32, f32)> = Vec::new();
    if top > 0 {
        best.extend(logits.iter().enumerate().map(|(id, &logit)| (id as u32, logit - log_sum)));
        if top < best.len() {
            best.select_nth_unstable_by(top - 1, descending);
            best.truncate(top);
        }
        best.sort_unstable_by(descending);
    }
    (logits[token as usize] - log_sum, best)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const LOGITS: [f32; 5] = [0.0, 3.0, 1.0, 3.0, -2.0];

    fn share(sampling: Sampling, token: u32) -> f64 {
        const DRAWS: u32 = 20_000;
        let mut sampler = Sampler::new(sampling, &[], &[]);
        let mut pick = |i| sampler.pick(i as usize, &LOGITS);
        f64::from((0..DRAWS).map(|i| u32::from(pick(i) == token)).sum::<u32>()) / f64::from(DRAWS)
    }

    #[test]
    fn greedy_takes_the_first_of_equals() {
        assert_eq!(Sampler::new(Sampling::default(), &[], &[]).pick(0, &LOGITS), 1);
    }

    #[test]
    fn draws_follow_the_softmax() {
        let sampling = Sampling { temperature: 1.0, seed: 7, ..Sampling::default() };
        let total: f64 = LOGITS.iter().map(|&logit| f64::from(logit).exp()).sum();
        for (token, &logit) in LOGITS.iter().enumerate() {
            let expected = f64::from(logit).exp() / total;
            // Four standard errors of 20,000 draws.
            let tolerance = 4.0 * (expected * (1.0 - expected) / 20_000.0).sqrt();
            assert!((share(sampling, token as u32) - expected).abs() < tolerance, "token {token}");
        }
    }

    #[test]
    fn top_k_and_top_p_cut_the_tail() {
        let hot = Sampling { temperature: 5.0, seed: 3, ..Sampling::default() };
        assert!((share(Sampling { top_k: 1, ..hot }, 1) - 1.0).abs() < 1e-12);
        assert!((share(Sampling { top_k: 2, ..hot }, 2)).abs() < 1e-12);
        assert!(share(hot, 4) > 0.05);
        assert!(share(Sampling { top_p: 0.85, ..hot }, 4).abs() < 1e-12);
        assert!((share(Sampling { top_p: 0.0, ..hot }, 1) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn a_seed_is_a_sequence() {
        let draws = |seed| {
            let mut sampler = Sampler::new(Sampling { temperature: 1.0, seed, ..Sampling::default() }, &[], &[]);
            (0..50).map(|i| sampler.pick(i, &LOGITS)).collect::<Vec<_>>()
        };
        assert_eq!(draws(1), draws(1));
        assert_ne!(draws(1), draws(2));
    }

    #[test]
    fn logprobs_are_normalised_and_sorted() {
        let (own, top) = logprobs(&LOGITS, 2, 3);
        assert_eq!(top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 3, 2]);
        assert!((own - top[2].1).abs() < 1e-6);
        let (_, all) = logprobs(&LOGITS, 0, 99);
        assert!((all.iter().map(|(_, logprob)| logprob.exp()).sum::<f32>() - 1.0).abs() < 1e-5);
    }

    #[test]
    fn a_mask_leaves_what_it_allows() {
        let mask = TokenMask::new(&[0b10100, u32::MAX], 5);
        assert_eq!((mask.count(), mask.contains(TokenId(2)), mask.contains(TokenId(5))), (2, true, false));
        for temperature in [0.0, 1.0, 9.0] {
            let sampling = Sampling { temperature, ..Sampling::default() };
            let mut drawn: Vec<u32> =
                (0..200).map(|i| Sampler::new(sampling, &[], &[]).pick_allowed(i, &LOGITS, &mask).unwrap()).collect();
            drawn.sort_unstable();
            drawn.dedup();
            assert_eq!(drawn, if temperature == 0.0 { vec![2] } else { vec![2, 4] }, "at {temperature}");
        }
    }

    #[test]
    fn a_draw_from_all_that_is_refused_ends_as_behind_a_mask() {
        // Tokens 1 and 3 hold most of it and are refused; 2, 0 and 4 are left, whatever is drawn first.
        let mask = TokenMask::new(&[0b10101], 5);
        let total: f64 = [0, 2, 4].iter().map(|&token: &usize| f64::from(LOGITS[token]).exp()).sum();
        let mut sampler = Sampler::new(Sampling { temperature: 1.0, seed: 11, ..Sampling::default() }, &[], &[]);
        let mut counts = [0u32; 5];
        for position in 0..20_000 {
            counts[sampler.pick_allowed(position, &LOGITS, &mask).unwrap() as usize] += 1;
        }
        for (token, count) in counts.into_iter().enumerate() {
            let expected = if token % 2 == 0 { f64::from(LOGITS[token]).exp() / total } else { 0.0 };
            let tolerance = 4.0 * (expected * (1.0 - expected) / 20_000.0).sqrt();
            assert!((f64::from(count) / 20_000.0 - expected).abs() <= tolerance, "token {token}: {count}");
        }
    }

    #[test]
    fn a_mask_is_made_only_where_tokens_are_refused_or_cut() {
        struct Counted(TokenMask, usize);
        impl Filter for &mut Counted {
            type Error = std::convert::Infallible;
            fn allows(&mut self, token: TokenId) -> Result<bool, Self::Error> {
                Ok(self.0.contains(token))
            }
            fn mask(&mut self) -> Result<&TokenMask, Self::Error> {
                self.1 += 1;
                Ok(&self.0)
            }
        }
        let masks = |allowed: u32, sampling: Sampling| {
            let mut filter = Counted(TokenMask::new(&[allowed], 5), 0);
            Sampler::new(sampling, &[], &[]).pick_allowed(0, &LOGITS, &mut filter).unwrap();
            filter.1
        };
        let greedy = Sampling::default();
        let hot = Sampling { temperature: 1.0, ..greedy };
        assert_eq!([masks(0b00010, greedy), masks(0b10000, greedy)], [0, 0]);
        assert_eq!([masks(0b11111, hot), masks(0b10000, hot)], [0, 1], "token 4 has 1 of 320");
        assert_eq!(masks(0b00010, Sampling { top_p: 0.5, ..greedy }), 0, "greedy cuts nothing");
        assert_eq!(masks(0b11111, Sampling { top_p: 0.5, ..hot }), 0, "the nucleus is certain");
    }

    /// Both ways of drawing from a distribution whose tail is cut: by questions and behind a mask.
    #[test]
    fn a_cut_draw_is_that_behind_a_mask() {
        struct OnlyMask(TokenMask);
        impl Filter for &mut OnlyMask {
            type Error = std::convert::Infallible;
            fn allows(&mut self, token: TokenId) -> Result<bool, Self::Error> {
                Ok(self.0.contains(token))
            }
            fn mask(&mut self) -> Result<&TokenMask, Self::Error> {
                panic!("{UNMASKED_CUT} questions suffice here")
            }
        }
        let logits: Vec<f32> = (0..1000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 20) as f32 / 400.0).collect();
        let mut words = [u32::MAX; 32];
        words[argmax(&logits) as usize / 32] = 0;
        let mask = TokenMask::new(&words, 1000);
        let mut masked = logits.clone();
        mask.apply(&mut masked);
        let plain = Sampling { temperature: 0.01, seed: 9, ..Sampling::default() };
        for (top_p, top_k, min_p) in [(0.5, 0, 0.0), (1.0, 3, 0.0), (0.7, 4, 0.0), (1.0, 0, 0.5), (0.5, 9, 0.1)] {
            let sampling = Sampling { top_p, top_k, min_p, ..plain };
            let (mut one, mut other) = (Sampler::new(sampling, &[], &[]), Sampler::new(sampling, &[], &[]));
            for position in 0..500 {
                let drawn = one.pick_allowed(position, &logits, &mut OnlyMask(mask.clone())).unwrap();
                assert_eq!(drawn, other.pick(position, &masked), "{sampling:?} at {position}");
            }
        }
    }

    #[test]
    fn exp_is_that_of_the_library() {
        let worst =
            (0..200_000).map(|i| -(i as f32) * 4e-4).map(|x| (exp(x) / x.exp() - 1.0).abs()).fold(0.0, f32::max);
        assert!(worst < 3e-7, "{worst}");
        assert_eq!([exp(0.0), exp(-87.5), exp(f32::NEG_INFINITY)], [1.0, 0.0, 0.0]);
    }

    #[test]
    fn draws_from_a_long_vocabulary_follow_the_softmax() {
        let logits: Vec<f32> =
            (0..3000).map(|i| if i % 700 == 3 { (i / 700) as f32 } else { f32::NEG_INFINITY }).collect();
        let total: f64 = (0..5).map(|i| f64::from(i).exp()).sum();
        let mut sampler = Sampler::new(Sampling { temperature: 1.0, seed: 5, ..Sampling::default() }, &[], &[]);
        let drawn: Vec<u32> = (0..20_000).map(|position| sampler.pick(position, &logits)).collect();
        for i in 0..5u32 {
            let count = drawn.iter().filter(|token| **token == i * 700 + 3).count();
            let expected = f64::from(i).exp() / total;
            let tolerance = 4.0 * (expected * (1.0 - expected) / 20_000.0).sqrt();
            assert!((count as f64 / 20_000.0 - expected).abs() < tolerance, "{i}: {count}");
        }
    }

    #[test]
    fn the_best_that_is_allowed_is_that_behind_a_mask() {
        let logits: Vec<f32> = (0..1000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 20) as f32).collect();
        let mut order: Vec<u32> = (0..1000).collect();
        order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
        for refused in 0..2 * UNMASKED_GREEDY {
            let mut words = [u32::MAX; 32];
            order[..refused].iter().for_each(|token| words[*token as usize / 32] &= !(1 << (token % 32)));
            let mask = TokenMask::new(&words, 1000);
            let mut sampler = Sampler::new(Sampling::default(), &[], &[]);
            assert_eq!(sampler.pick_allowed(0, &logits, &mask), Ok(order[refused]), "{refused} refused");
        }
    }

    #[test]
    fn bias_and_penalties_move_the_choice() {
        let mut biased = Sampler::new(Sampling::default(), &[(TokenId(4), 6.0)], &[]);
        assert_eq!(biased.pick(0, &LOGITS), 4);
        let sampling = Sampling { frequency_penalty: 1.0, presence_penalty: 0.5, ..Sampling::default() };
        let mut sampler = Sampler::new(sampling, &[], &[]);
        let drawn: Vec<u32> = (0..5)
            .map(|i| {
                let token = sampler.pick(i, &LOGITS);
                sampler.wrote(TokenId(token));
                token
            })
            .collect();
        // 3, 3 → 1.5, 1.5 → 0.5, 0.5, and token 2 has 1.
        assert_eq!(drawn, [1, 3, 1, 3, 2]);
        let sampling = Sampling { repetition_penalty: 2.0, ..Sampling::default() };
        let mut sampler = Sampler::new(sampling, &[], &[TokenId(1), TokenId(4)]);
        let mut pick = |logits: &[f32]| {
            let token = sampler.pick(0, logits);
            sampler.wrote(TokenId(token));
            token
        };
        // Token 1 stands in the prompt: 3 → 1.5; then token 3 is written, too, and token 4's −2 → −4.
        assert_eq!([pick(&LOGITS), pick(&LOGITS), pick(&[-5.0, 0.5, -3.0, -1.5, -2.0])], [3, 1, 1]);
        assert_eq!(pick(&[-5.0, -1.5, -2.9, -1.5, -1.5]), 2, "below 0 it multiplies");
        let hot = Sampling { temperature: 5.0, min_p: 0.9, seed: 2, ..Sampling::default() };
        assert!((share(hot, 1) + share(hot, 3) - 1.0).abs() < 1e-12, "only the two best have 0.9 of the best");
    }

    #[test]
    fn top_p_of_a_long_vocabulary_is_that_of_sorting_it_whole() {
        let logits: Vec<f32> = (0..3000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / 4e6).collect();
        let mut order: Vec<(u32, f32)> = logits.iter().enumerate().map(|(i, l)| (i as u32, *l)).collect();
        order.sort_by(descending);
        let weight = |logit: f32| f64::from(logit - order[0].1).exp();
        let total: f64 = order.iter().map(|(_, logit)| weight(*logit)).sum();
        for top_p in [0.01f32, 0.5, 0.9, 0.999] {
            let mut sum = 0.0;
            let kept = 1 + order
                .iter()
                .position(|(_, l)| {
                    sum += weight(*l);
                    sum >= f64::from(top_p) * total
                })
                .unwrap();
            let mut sampler = Sampler::new(Sampling { temperature: 1.0, top_p, ..Sampling::default() }, &[], &[]);
            sampler.pick(0, &logits);
            assert!(sampler.candidates.len().abs_diff(kept) <= 1, "{top_p}: {} and {kept}", sampler.candidates.len());
            assert!(sampler.candidates.iter().zip(&order).all(|(own, expected)| own.0 == expected.0));
        }
    }
}
