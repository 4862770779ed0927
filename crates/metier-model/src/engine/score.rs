//! How probable is each label of a closed set, behind one prompt?
//!
//! **Question:** which of these texts does the model hold likely here, and by how much? **In:** a prompt and labels. **Out:** the sum
//! of each label's token log-probabilities, and its share among the labels. **Absent:** drawing; bias, penalties and forms.
//!
//! The labels' tokens make a tree below the prompt. Its stem, which all labels begin with, is read with the prompt; below it the
//! sequence *branches*: a branch shares the prompt's filled pages and has own ones behind them, so that several labels are read in
//! one forward pass. A label's last token is scored, not read.
//!
//! ```text
//! prompt ─ " card" ─┬─ " lost" ─ " abroad"      stem: " card"; branch 0 reads " lost", branch 1 reads " stolen"
//!                   └─ " stolen" ─┬─ " today"
//!                                 └─ " twice"
//! ```
//!
//! Branches take the tree's paths in the order of their tokens, each a share of neighbours, and read of a path what the one before
//! did not hold. How many branches there are depends on the room in the cache; no score does.

use std::ops::Range;

use metier_kernels::{Pool, elementwise};

use super::{AdapterId, CacheScope, GenerationRequest, SubmitError};
use crate::{
    adapter::Adapter,
    arch::transformer::Span,
    cache::{BranchRoom, KeptLayers, KvSequence},
    decoder::Decoder,
    tokenizer::TokenId,
};

/// Labels of a request, at most.
pub const MAX_LABELS: usize = 4096;
/// Bytes of all labels of a request together, at most.
pub const MAX_LABEL_BYTES: usize = 128 << 10;
/// Paths that are read side by side, at most. Each costs the cache a page or two (1.5 MB, SmolLM2-135M); beyond this many rows a
/// pass is bound by arithmetic, and more of them side by side gain nothing.
pub const MAX_BRANCHES: usize = 16;
/// Rows of a step whose logits are kept for scores: 13 MB (vocabulary of 49,152).
pub const MAX_SCORED_ROWS: usize = 64;

/// Which labels are to be scored, and behind what. Fields will be added: write the ones you mean and `..Default::default()`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ScoreRequest {
    /// At least one token.
    pub prompt: Vec<TokenId>,
    /// The closed set: 1 to [`MAX_LABELS`] different texts, encoded each by itself. Most models want a space in front where the
    /// prompt ends without one.
    pub labels: Vec<String>,
    /// Score the end of the answer behind each label, too. Without it a label that another one begins with is never less probable
    /// than that one.
    pub with_end: bool,
    /// How sums over different numbers of tokens are compared.
    pub normalisation: Normalisation,
    /// Deltas over the base: an adapter that the engine has loaded.
    pub adapter: Option<AdapterId>,
    /// The layers that the specialist runs; `None` is all.
    pub kept_layers: Option<KeptLayers>,
    /// Who may start from what this request has read of its prompt.
    pub scope: CacheScope,
}

/// What the shares are a softmax of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Normalisation {
    /// The labels' log-probabilities: the shares are what the model itself believes, given that one of the labels follows.
    #[default]
    Sum,
    /// Log-probabilities divided by the number of scored tokens: a long label is not at a loss for its length.
    Mean,
}

/// One label's score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LabelScore {
    /// Sum of the natural logarithms of its tokens' probabilities at temperature 1, behind the prompt.
    pub logprob: f32,
    /// Tokens that the sum is over; the end is one of them where it was asked for.
    pub tokens: usize,
    /// Its share among the labels: all shares add up to 1.
    pub share: f32,
}

/// A label's tokens and, one after the other, their log-probabilities.
#[derive(Debug)]
struct Label {
    /// Where the caller named it.
    at: usize,
    tokens: Vec<TokenId>,
    /// One a token, and one for the end where it is scored; 0 until known.
    logprobs: Vec<f32>,
}

/// A way down the tree: the first `len` tokens of a label. What follows its first `known` tokens is scored on an earlier path.
#[derive(Clone, Copy, Debug)]
struct Path {
    label: usize,
    len: usize,
    known: Option<usize>,
}

/// Labels to score: in the order of their tokens, with the paths that have to be read.
#[derive(Debug)]
pub(super) struct Labels {
    sorted: Vec<Label>,
    /// Tokens that all paths begin with.
    stem: usize,
    paths: Vec<Path>,
    normalisation: Normalisation,
}

impl ScoreRequest {
    /// The request as a sequence that writes nothing, and its labels.
    pub(super) fn into_labels(self, decoder: &Decoder) -> Result<(GenerationRequest, Labels), SubmitError> {
        let Self { prompt, labels, with_end, normalisation, adapter, kept_layers, scope } = self;
        let bytes = labels.iter().map(String::len).fold(0, usize::saturating_add);
        if labels.is_empty() || labels.len() > MAX_LABELS || bytes > MAX_LABEL_BYTES {
            return Err(SubmitError::Labels);
        }
        if with_end && decoder.ends().is_empty() {
            return Err(SubmitError::NoEnd);
        }
        let tokens = |(at, label): (usize, &String)| match decoder.tokenizer().encode(label) {
            Ok(tokens) if !tokens.is_empty() => Ok((at, tokens)),
            _ => Err(SubmitError::Label { at }),
        };
        let labels = labels.iter().enumerate().map(tokens).collect::<Result<Vec<_>, _>>()?;
        let labels = Labels::new(labels, with_end, normalisation)?;
        let longest = labels.paths.iter().map(|path| path.len).fold(labels.stem, usize::max);
        let request =
            GenerationRequest { prompt, max_tokens: longest, adapter, kept_layers, scope, ..Default::default() };
        Ok((request, labels))
    }
}

fn common(a: &[TokenId], b: &[TokenId]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl Labels {
    fn new(
        mut labels: Vec<(usize, Vec<TokenId>)>,
        with_end: bool,
        normalisation: Normalisation,
    ) -> Result<Self, SubmitError> {
        labels.sort_by(|(_, a), (_, b)| a.cmp(b));
        if let Some(pair) = labels.windows(2).find(|pair| pair[0].1 == pair[1].1) {
            return Err(SubmitError::SameLabel { at: pair[0].0.max(pair[1].0), as_at: pair[0].0.min(pair[1].0) });
        }
        let end = usize::from(with_end);
        let sorted: Vec<Label> = labels
            .into_iter()
            .map(|(at, tokens)| Label { at, logprobs: vec![0.0; tokens.len() + end], tokens })
            .collect();
        // In this order a path that others go on from stands right before or right behind one of them.
        let reads: Vec<&[TokenId]> = sorted.iter().map(|label| &label.tokens[..label.logprobs.len() - 1]).collect();
        let stem = reads.iter().map(|read| common(read, reads[0])).min().unwrap_or(0);
        let mut paths: Vec<Path> = Vec::new();
        for (at, read) in reads.iter().enumerate() {
            let known = paths.last().map(|last| common(reads[last.label], read));
            let goes_on = reads.get(at + 1).is_some_and(|next| next.starts_with(read));
            if read.len() > stem && known != Some(read.len()) && !goes_on {
                paths.push(Path { label: at, len: read.len(), known });
            }
        }
        Ok(Self { sorted, stem, paths, normalisation })
    }

    /// Tokens behind the prompt that all labels begin with.
    pub(super) fn stem(&self) -> &[TokenId] {
        &self.sorted[0].tokens[..self.stem]
    }

    /// Branches that can be used, the sequence itself among them.
    pub(super) fn useful_branches(&self) -> usize {
        self.paths.len().min(MAX_BRANCHES)
    }

    /// Takes the logits behind the first `len` tokens of a label; `sum` is the logarithm of their exponentials' sum.
    fn take(&mut self, label: usize, len: usize, logits: &[f32], sum: f32, ends: &[TokenId]) {
        let prefix = self.sorted[label].tokens[..len].to_vec();
        let first = self.sorted.partition_point(|label| label.tokens < prefix);
        for label in self.sorted[first..].iter_mut().take_while(|label| label.tokens.starts_with(&prefix)) {
            let logprob = match label.tokens.get(len) {
                Some(token) => logits[token.0 as usize] - sum,
                None => ends.iter().map(|end| (logits[end.0 as usize] - sum).exp()).sum::<f32>().ln(),
            };
            // A label without an end has no place for what follows it.
            if let Some(place) = label.logprobs.get_mut(len) {
                *place = logprob;
            }
        }
    }

    /// The scores, in the caller's order.
    fn scores(&self) -> Vec<LabelScore> {
        let mut scores = vec![LabelScore { logprob: 0.0, tokens: 0, share: 0.0 }; self.sorted.len()];
        for label in &self.sorted {
            let logprob = label.logprobs.iter().sum();
            scores[label.at] = LabelScore { logprob, tokens: label.logprobs.len(), share: 0.0 };
        }
        let compared = |score: &LabelScore| match self.normalisation {
            Normalisation::Sum => score.logprob,
            Normalisation::Mean => score.logprob / score.tokens as f32,
        };
        let best = scores.iter().map(compared).fold(f32::NEG_INFINITY, f32::max);
        let weight = |score: &LabelScore| f64::from(compared(score) - best).exp();
        let total: f64 = scores.iter().map(weight).sum();
        for score in &mut scores {
            score.share = (weight(score) / total) as f32;
        }
        scores
    }
}

/// One of the sequence's branches: neighbouring paths, read one after the other.
struct Branch {
    paths: Range<usize>,
    /// Tokens of the first of them that the branch's cache holds.
    read: usize,
    /// Tokens that this step reads.
    step: usize,
}

/// Labels of one sequence that are being scored.
pub(super) struct Scoring {
    labels: Labels,
    /// Room for all branches but the first, which goes on in the sequence's own cache.
    room: Vec<BranchRoom>,
    /// Empty while prompt and stem are being read.
    branches: Vec<Branch>,
    /// Caches of all branches but the first.
    forks: Vec<KvSequence>,
}

impl Scoring {
    pub(super) fn new(labels: Labels, room: Vec<BranchRoom>) -> Self {
        Self { labels, room, branches: Vec::new(), forks: Vec::new() }
    }

    pub(super) fn stem(&self) -> &[TokenId] {
        self.labels.stem()
    }

    /// Prompt and stem are read.
    pub(super) fn has_branched(&self) -> bool {
        !self.branches.is_empty()
    }

    /// Tokens that the branches could read at once.
    pub(super) fn unread(&self) -> usize {
        self.branches.iter().map(|branch| self.left(branch)).sum()
    }

    fn left(&self, branch: &Branch) -> usize {
        branch.paths.clone().next().map_or(0, |path| self.labels.paths[path].len - branch.read)
    }

    /// Chooses at most so many tokens for the next step; says how many.
    pub(super) fn plan(&mut self, tokens: usize) -> usize {
        let mut left = tokens;
        for at in 0..self.branches.len() {
            let step = self.left(&self.branches[at]).min(left);
            self.branches[at].step = step;
            left -= step;
        }
        tokens - left
    }

    /// The rows of the planned step, a span a branch; how many of them get logits.
    pub(super) fn spans<'a>(
        &'a mut self,
        own: &'a mut KvSequence,
        adapter: Option<&'a Adapter>,
        spans: &mut Vec<Span<'a>>,
    ) -> usize {
        let Self { labels, branches, forks, .. } = self;
        let mut rows = 0;
        for (branch, cache) in branches.iter().zip(std::iter::once(own).chain(forks)) {
            if branch.step > 0 {
                let Path { label, known, .. } = labels.paths[branch.paths.start];
                let tokens = &labels.sorted[label].tokens[branch.read..branch.read + branch.step];
                let wanted = branch.new_rows(known).len();
                rows += wanted;
                spans.push(Span { tokens, cache, wanted, adapter, hidden: false });
            }
        }
        rows
    }

    /// Takes the logits behind the prompt and the stem's tokens: those behind the stem's first `from` … `to` − 1 tokens.
    pub(super) fn take_stem(&mut self, decoder: &Decoder, pool: &Pool, rows: Range<usize>, logits: &[f32]) {
        self.take(decoder, pool, rows.map(|len| (0, len)).collect(), logits);
    }

    /// Takes the logits of the step that was planned. `positions`: of the prompt.
    pub(super) fn take_branches(
        &mut self,
        decoder: &Decoder,
        pool: &Pool,
        positions: usize,
        own: &mut KvSequence,
        logits: &[f32],
    ) {
        let mut rows = Vec::new();
        for branch in self.branches.iter().filter(|branch| branch.step > 0) {
            let Path { label, known, .. } = self.labels.paths[branch.paths.start];
            rows.extend(branch.new_rows(known).map(|len| (label, len)));
        }
        self.take(decoder, pool, rows, logits);
        for (branch, cache) in self.branches.iter_mut().zip(std::iter::once(own).chain(&mut self.forks)) {
            branch.read += std::mem::take(&mut branch.step);
            branch.go_on(&self.labels, positions, cache);
        }
    }

    /// `rows`: (label, tokens of it in front) of each row of logits.
    fn take(&mut self, decoder: &Decoder, pool: &Pool, rows: Vec<(usize, usize)>, logits: &[f32]) {
        let vocabulary = decoder.network().config().vocabulary;
        let mut sums = vec![0.0; rows.len()];
        pool.run_rows(&mut sums, 1, 1, &|first, sums| {
            for (i, sum) in sums.iter_mut().enumerate() {
                elementwise::log_sum_exp(pool.isa(), &logits[(first + i) * vocabulary..][..vocabulary], sum);
            }
        });
        for (((label, len), logits), sum) in rows.into_iter().zip(logits.chunks_exact(vocabulary)).zip(sums) {
            self.labels.take(label, len, logits, sum, decoder.ends());
        }
    }

    /// The stem is read: the paths are dealt to the branches. `own` holds prompt and stem.
    pub(super) fn branch_out(&mut self, own: &KvSequence) {
        let (paths, n) = (self.labels.paths.len(), self.room.len() + 1);
        self.forks.extend(self.room.drain(..).map(|room| own.branch(room)));
        let share = |at: usize| at * paths / n..(at + 1) * paths / n;
        self.branches.extend((0..n).map(|at| Branch { paths: share(at), read: self.labels.stem, step: 0 }));
    }

    /// All scores once nothing is left to read.
    pub(super) fn scores(&self) -> Option<Vec<LabelScore>> {
        (self.has_branched() && self.unread() == 0).then(|| self.labels.scores())
    }

    /// The caches that go back when it ends.
    pub(super) fn into_forks(self) -> (Vec<KvSequence>, Vec<BranchRoom>) {
        (self.forks, self.room)
    }
}

impl Branch {
    /// How many of the path's tokens stand in front of each row of the step whose logits are new.
    fn new_rows(&self, known: Option<usize>) -> Range<usize> {
        let (from, to) = (self.read + 1, self.read + self.step + 1);
        from.max(known.map_or(0, |known| known + 1)).min(to)..to
    }

    /// Goes to the next path where this one is read: what both begin with stays in the cache.
    fn go_on(&mut self, labels: &Labels, positions: usize, cache: &mut KvSequence) {
        let Some(path) = self.paths.clone().next().map(|at| labels.paths[at]) else { return };
        if self.read < path.len {
            return;
        }
        self.paths.start += 1;
        if let Some(next) = self.paths.clone().next() {
            self.read = labels.paths[next].known.unwrap_or(0);
            cache.truncate(positions + self.read);
        }
    }
}

#[cfg(test)]
mod tests;
