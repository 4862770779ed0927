//! The trade of span heads: texts and their tags in, an encoder's layers and a head out that tags words.
//!
//! **Question:** which layers and which head find a field's words? **In:** an encoder, training and validation texts with the spans of
//! their fields, a recipe. **Out:** a file of tensors for [`Encoder::with_tensors`], a head over hidden rows, and how training went.
//! **Absent:** values and schemas; calibration.
//!
//! ```text
//! a step:  windows of some texts → hidden row of each word's first token, shapes beside it → logits of tags z = W·h + b
//!          loss = ln Z − Σ z[gold tag], Z over all legal paths: a conditional random field with fixed transitions
//!          → derivatives (marginals − gold) → clip → AdamW, warm-up and cosine
//! an epoch: validation texts → likeliest legal tags → F1 of spans (field and words equal); the best epoch's numbers are kept
//! ```

use std::{ops::Range, time::Duration};

use metier_kernels::{Pool, Target};
use metier_model::{
    Encoder, Progress, TokenId,
    arch::bert::{PlainTensor, halves},
    extract::{
        Lattice, Span, Tokenised, tags,
        words::{SHAPE_ROW, shape_row},
    },
    head::LinearHead,
    specialist::mix,
};

use super::{
    checkpoint::Keeper,
    epochs::{self, EpochLog, Learnt, Pace, Run, StepLog, Trainee, TuneError, Watch, pace_of},
    linear::shuffle,
};
use crate::{
    grad::{
        Segments,
        bert::{BertNet, Dropout, Pass, drop_out},
        linear::{self, Linear},
    },
    objective::cross_entropy,
};

/// Tokens of validation texts that go through the network together.
const EVALUATION_TOKENS: usize = 4096;
/// The place of the head's dropout, behind those of any network's layers.
const HEAD_SITE: usize = 1 << 10;
/// How a span head is trained.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// Passes over the training texts, at most.
    pub epochs: usize,
    /// Texts of a step.
    pub batch_rows: usize,
    /// Greatest step length of the encoder's layers.
    pub learning_rate: f32,
    /// Greatest step length of the head.
    pub head_learning_rate: f32,
    /// Pull of matrices towards 0.
    pub weight_decay: f32,
    /// Share of steps in which the step length rises.
    pub warm_up: f32,
    /// Share of elements that are dropped.
    pub dropout: f32,
    /// Loss over legal paths; else over each word for itself.
    pub path_loss: bool,
    /// What is kept is a running mean of the numbers, of about so many last steps; 0: the numbers themselves.
    pub average_steps: usize,
    /// Epochs without a better one after which training ends.
    pub patience: usize,
}

/// Steps that a default recipe takes, about: small data are read more often.
const STEPS: usize = 4_000;

impl Recipe {
    /// The recipe for so many training texts.
    pub fn for_rows(n: usize) -> Self {
        let batch_rows = if n < 1_000 { 8 } else { 16 };
        let epochs = (STEPS * batch_rows / n.max(1)).clamp(6, 30);
        Self {
            epochs,
            batch_rows,
            learning_rate: 2e-4,
            head_learning_rate: 2e-3,
            weight_decay: 0.01,
            warm_up: 0.1,
            dropout: 0.1,
            path_loss: true,
            average_steps: 0,
            patience: epochs,
        }
    }

    fn pace(&self) -> Pace {
        pace_of!(self)
    }
}

/// How many epochs an earlier run of the same plan was to have, if it was killed in the midst of it.
pub fn begun(keeper: &Keeper) -> Option<usize> {
    epochs::begun(keeper)
}

/// A text with the spans that stand in it.
#[derive(Clone, Debug)]
pub struct TaggedText {
    windows: Vec<TaggedWindow>,
    /// By words, in order.
    pub spans: Vec<Span>,
    n_words: usize,
}

#[derive(Clone, Debug)]
struct TaggedWindow {
    ids: Vec<TokenId>,
    rows: Vec<usize>,
    shapes: Vec<f32>, // (words, SHAPE_ROW)
    tags: Vec<usize>,
    keep: Range<usize>,
}

impl TaggedText {
    /// Cuts a text and its words into windows.
    pub fn new(encoder: &Encoder, text: &str, words: &Tokenised, spans: Vec<Span>) -> Self {
        let all = tags::tags_of(words.words.len(), &spans);
        let cut = words;
        let windows = cut.windows(encoder).into_iter().map(|window| {
            let (words, keep) = (window.window.words, window.window.keep);
            TaggedWindow {
                ids: window.ids,
                rows: window.rows,
                shapes: words.clone().flat_map(|word| shape_row(text, &cut.words, word)).collect(),
                tags: opened(&all[words.clone()]),
                keep: keep.start - words.start..keep.end - words.start,
            }
        });
        Self { windows: windows.collect(), spans, n_words: cut.words.len() }
    }

    fn tokens(&self) -> usize {
        self.windows.iter().map(|window| window.ids.len()).sum()
    }
}

/// Tags of a window that may begin within a span: there the span begins.
fn opened(tags: &[usize]) -> Vec<usize> {
    let mut tags = tags.to_vec();
    if let Some(field) = tags.first().copied().and_then(tags::field_of) {
        tags[0] = tags::begin(field);
    }
    tags
}

/// What came out.
pub struct TunedSpans {
    /// For [`Encoder::with_tensors`].
    pub file: Vec<u8>,
    /// Hidden row → logits of tags.
    pub head: LinearHead,
    /// Of each epoch that ran: its validation figure is the F1 of spans, its validation loss their misses and false finds.
    pub epochs: Vec<EpochLog>,
    /// Which of them was kept, from 1.
    pub best: usize,
    /// Tokens that were trained on, in all.
    pub tokens: u64,
}

/// A span head in training.
pub struct Tagger<'a> {
    net: BertNet,
    tensors: Vec<PlainTensor>,
    head: (Range<usize>, Range<usize>),
    n_tags: usize,
    pass: Pass,
    train: &'a [TaggedText],
    validation: &'a [TaggedText],
    recipe: &'a Recipe,
    keeper: Option<Keeper>,
}

/// Spans right, found and there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpanCounts {
    /// Found and there, field and words equal.
    pub right: u64,
    /// Found.
    pub found: u64,
    /// There.
    pub gold: u64,
}

impl SpanCounts {
    /// Adds a text's.
    pub fn add(&mut self, found: &[Span], gold: &[Span]) {
        self.right += found.iter().filter(|span| gold.contains(span)).count() as u64;
        self.found += found.len() as u64;
        self.gold += gold.len() as u64;
    }

    /// `2 · right / (found + gold)`; 1 where there is neither.
    pub fn f1(&self) -> f64 {
        if self.found + self.gold == 0 { 1.0 } else { 2.0 * self.right as f64 / (self.found + self.gold) as f64 }
    }
}

impl<'a> Tagger<'a> {
    /// Takes over an encoder's numbers.
    ///
    /// # Errors
    ///
    /// Where the encoder cannot be tuned, or texts are missing.
    pub fn new(
        encoder: &Encoder,
        train: &'a [TaggedText],
        validation: &'a [TaggedText],
        n_fields: usize,
        recipe: &'a Recipe,
        seed: u64,
    ) -> Result<Self, TuneError> {
        if train.len() < 2 || validation.is_empty() {
            return Err(TuneError::TooFew(train.len(), validation.len()));
        }
        let plain = encoder.plain()?;
        let tensors = plain.tensors.clone();
        let mut net = BertNet::new(plain, encoder.pooling());
        let (d, n_tags) = (net.width() + SHAPE_ROW, tags::n_tags(n_fields));
        let head = epochs::push_head(&mut net, n_tags, d, seed ^ 0x7a65);
        let pass = Pass::default();
        Ok(Self { net, tensors, head, n_tags, pass, train, validation, recipe, keeper: None })
    }

    /// Keeps checkpoints, and goes on from the last one where there is one.
    pub fn keep(&mut self, keeper: Keeper) {
        self.keeper = Some(keeper);
    }

    /// How long an epoch would take, by about a second of steps that are thrown away.
    pub fn probe(&mut self, run: &Run<'_>) -> Duration {
        let values = std::mem::take(&mut self.net.params.values);
        let epoch = epochs::probe(self, &values, &self.recipe.pace(), run);
        self.net.params.values = values;
        epoch
    }

    /// Trains.
    ///
    /// # Errors
    ///
    /// Where training diverges.
    pub fn learn(
        mut self,
        run: &Run<'_>,
        progress: &mut dyn FnMut(Progress<'_>),
        log: &mut dyn FnMut(&StepLog),
        told: &mut dyn FnMut(&EpochLog),
    ) -> Result<TunedSpans, TuneError> {
        let values = std::mem::take(&mut self.net.params.values);
        let (pace, keeper) = (self.recipe.pace(), self.keeper.take());
        let watch = Watch { progress, step: log, epoch: told };
        let Learnt { values, epochs, best, tokens } = epochs::learn(&mut self, values, &pace, run, keeper, watch)?;
        let file = halves(&self.tensors, &values[..self.head.0.start])?;
        Ok(TunedSpans { file, head: self.linear_head(&values), epochs, best, tokens })
    }

    fn head<'b>(&self, values: &'b [f32]) -> Linear<'b> {
        let (weight, bias) = (&values[self.head.0.clone()], &values[self.head.1.clone()]);
        Linear { weight, bias: Some(bias), n: self.n_tags, k: self.head_width() }
    }

    /// A hidden row and the shapes beside it.
    fn head_width(&self) -> usize {
        self.net.width() + SHAPE_ROW
    }

    /// The head as it ships: (head width, tags).
    fn linear_head(&self, values: &[f32]) -> LinearHead {
        let (d, n) = (self.head_width(), self.n_tags);
        let weight = &values[self.head.0.clone()];
        let dense = (0..d * n).map(|at| weight[(at % n) * d + at / n]).collect();
        LinearHead::quantise(values[self.head.1.clone()].to_vec(), &[], dense)
    }

    /// Sum over words, times `weight`; its derivative is written over `dlogits`.
    fn loss(&self, pool: &Pool, windows: &[&TaggedWindow], logits: &[f32], weight: f32, dlogits: &mut [f32]) -> f64 {
        let n_tags = self.n_tags;
        if !self.recipe.path_loss {
            let targets: Vec<Option<usize>> = windows.iter().flat_map(|w| w.tags.iter().copied().map(Some)).collect();
            let weight = weight * targets.len() as f32;
            return cross_entropy(pool.isa(), logits, &targets, 0.0, weight, dlogits);
        }
        let (mut from, mut loss) = (0, 0.0);
        for window in windows {
            let range = from..from + window.tags.len() * n_tags;
            from = range.end;
            let lattice = Lattice::new(&logits[range.clone()], n_tags);
            let sums = lattice.sums();
            loss += sums.total - lattice.score(&window.tags);
            let d = &mut dlogits[range];
            lattice.marginals(&sums, d);
            for (row, tag) in d.chunks_exact_mut(n_tags).zip(&window.tags) {
                row[*tag] -= 1.0;
                row.iter_mut().for_each(|d| *d *= weight);
            }
        }
        loss * f64::from(weight)
    }

    /// Leaves hidden rows in the pass; rows of the words, in order.
    fn forward(
        &mut self,
        pool: &Pool,
        values: &[f32],
        windows: &[&TaggedWindow],
        dropout: Option<Dropout>,
    ) -> Vec<usize> {
        let ids: Vec<TokenId> = windows.iter().flat_map(|window| window.ids.iter().copied()).collect();
        let segments = Segments::of(windows.iter().map(|window| window.ids.len()));
        self.net.forward(pool, values, &ids, &segments, dropout, &mut self.pass);
        windows
            .iter()
            .zip(segments.ranges())
            .flat_map(|(w, range)| w.rows.iter().map(move |row| range.start + row))
            .collect()
    }

    /// Hidden rows of the words with their shapes: (words, head width).
    fn gather(&self, rows: &[usize], windows: &[&TaggedWindow]) -> Vec<f32> {
        let d = self.net.width();
        let shapes = windows.iter().flat_map(|window| window.shapes.chunks_exact(SHAPE_ROW));
        let mut words = Vec::with_capacity(rows.len() * self.head_width());
        for (row, shape) in rows.iter().zip(shapes) {
            words.extend_from_slice(&self.pass.hidden[row * d..(row + 1) * d]);
            words.extend_from_slice(shape);
        }
        words
    }

    /// Spans of the validation texts.
    fn spans(&mut self, pool: &Pool, values: &[f32]) -> SpanCounts {
        let (validation, n_tags) = (self.validation, self.n_tags);
        let mut order: Vec<usize> = (0..validation.len()).collect();
        order.sort_by_key(|text| validation[*text].tokens());
        let (mut counts, mut done) = (SpanCounts::default(), 0);
        while done < order.len() {
            let mut tokens = 0;
            let fits = order[done..].iter().take_while(|text| {
                tokens += validation[**text].tokens();
                tokens <= EVALUATION_TOKENS
            });
            let batch = &order[done..done + fits.count().max(1)];
            done += batch.len();
            let windows: Vec<&TaggedWindow> = batch.iter().flat_map(|text| &validation[*text].windows).collect();
            let mut logits = Vec::new();
            if !windows.is_empty() {
                let rows = self.forward(pool, values, &windows, None);
                logits.resize(rows.len() * n_tags, 0.0);
                self.head(values).forward(pool, &self.gather(&rows, &windows), &mut logits);
            }
            let mut from = 0;
            for text in batch {
                let mut kept = Vec::new();
                for window in &validation[*text].windows {
                    let keep = from + window.keep.start * n_tags..from + window.keep.end * n_tags;
                    kept.extend_from_slice(&logits[keep]);
                    from += window.rows.len() * n_tags;
                }
                let (path, _) = Lattice::new(&kept, n_tags).best();
                counts.add(&tags::spans_of(&path), &validation[*text].spans);
            }
        }
        counts
    }
}

impl Trainee for Tagger<'_> {
    fn n_examples(&self) -> usize {
        self.train.len()
    }

    fn order(&self, seed: u64, epoch: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.train.len()).filter(|text| self.train[*text].n_words > 0).collect();
        shuffle(&mut order, mix(seed ^ mix(epoch as u64 + 0x5ba5)));
        order
    }

    fn n_tokens(&self, example: usize) -> usize {
        self.train[example].tokens()
    }

    fn n_validation_tokens(&self) -> usize {
        self.validation.iter().map(TaggedText::tokens).sum()
    }

    /// Of equals the later: it was trained longer.
    fn is_better(later: (f64, f64), best: (f64, f64)) -> bool {
        later.0 >= best.0
    }

    fn net(&self) -> &BertNet {
        &self.net
    }

    /// F1 of spans, and how many of them are missed or false.
    fn evaluate(&mut self, pool: &Pool, values: &[f32]) -> (f64, f64) {
        let counts = self.spans(pool, values);
        (counts.f1(), (counts.found + counts.gold - 2 * counts.right) as f64)
    }

    /// Loss of one step, a text; derivatives are added to `grads`.
    fn step(
        &mut self,
        pool: &Pool,
        values: &[f32],
        batch: &[usize],
        dropout: Option<Dropout>,
        grads: &mut [f32],
    ) -> f64 {
        let (train, d, n_tags) = (self.train, self.net.width(), self.n_tags);
        let width = self.head_width();
        let windows: Vec<&TaggedWindow> = batch.iter().flat_map(|text| &train[*text].windows).collect();
        if windows.is_empty() {
            return 0.0;
        }
        let rows = self.forward(pool, values, &windows, dropout);
        let mut words = self.gather(&rows, &windows);
        drop_out(pool, dropout, HEAD_SITE, width, &mut words);
        let mut logits = vec![0.0; rows.len() * n_tags];
        self.head(values).forward(pool, &words, &mut logits);
        let mut dlogits = vec![0.0; logits.len()];
        let loss = self.loss(pool, &windows, &logits, 1.0 / batch.len() as f32, &mut dlogits);
        let [dweight, dbias] =
            grads.get_disjoint_mut([self.head.0.clone(), self.head.1.clone()]).expect("weight and bias lie apart");
        linear::backward_weight(pool, &dlogits, &words, width, dweight, Some(dbias));
        let dwords = &mut words; // what it held is used up
        self.head(values).backward_input(pool, &dlogits, dwords, Target::Overwrite);
        drop_out(pool, dropout, HEAD_SITE, width, dwords);
        let mut dx = vec![0.0; self.pass.hidden.len()];
        for (row, dword) in rows.iter().zip(dwords.chunks_exact(width)) {
            dx[row * d..(row + 1) * d].copy_from_slice(&dword[..d]);
        }
        self.net.backward_rows(pool, values, &mut self.pass, dx, grads);
        loss
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use metier_kernels::Tier;
    use metier_model::{
        EncoderWeights,
        extract::{Extractor, Schema},
        progress::silent,
        tiny,
    };

    use super::*;

    const WORDS: [&str; 12] = ["ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen", "buy", "sell", "of", "in"];

    /// Field 0 is what stands behind `buy`, one or two animals; field 1 behind `sell`.
    fn texts() -> Vec<(String, Vec<Span>)> {
        (0..32u64)
            .map(|i| {
                let h = mix(i + 5);
                let animal = |shift: u32| WORDS[(h >> shift) as usize % 8];
                let (first, field) = if h.is_multiple_of(2) { ("buy", 0) } else { ("sell", 1) };
                let two = (h >> 9) % 2 == 1;
                let span = if two { format!("{} {}", animal(16), animal(24)) } else { animal(16).to_owned() };
                (
                    format!("in {} {first} {span} of {}", animal(32), animal(40)),
                    vec![Span { words: 3..4 + usize::from(two), field }],
                )
            })
            .collect()
    }

    fn recipe(path_loss: bool) -> Recipe {
        Recipe {
            epochs: 30,
            batch_rows: 8,
            learning_rate: 3e-3,
            head_learning_rate: 1e-2,
            path_loss,
            ..Recipe::for_rows(32)
        }
    }

    fn encoder() -> (tempfile::TempDir, Encoder) {
        let dir = tempfile::tempdir().unwrap();
        tiny::bert_folder(dir.path(), &WORDS, 2, 7).unwrap();
        let encoder = Encoder::open(dir.path()).unwrap();
        (dir, encoder)
    }

    fn tagged(encoder: &Encoder) -> Vec<TaggedText> {
        let tag = |(text, spans): (String, Vec<Span>)| {
            TaggedText::new(encoder, &text, &Tokenised::of(encoder, &text).unwrap(), spans)
        };
        texts().into_iter().map(tag).collect()
    }

    fn learn(encoder: &Encoder, all: &[TaggedText], recipe: &Recipe) -> TunedSpans {
        let pool = Pool::new(2, Tier::detect());
        let run = Run { pool: &pool, seed: 3, clock: &|| Duration::ZERO, deadline: Duration::MAX };
        let tagger = Tagger::new(encoder, all, all, 2, recipe, 3).unwrap();
        tagger.learn(&run, &mut silent, &mut |_| (), &mut |_| ()).unwrap()
    }

    /// What is trained is learnt by heart, with both losses, and what serves finds the same spans.
    #[test]
    fn learns_32_texts_by_heart() {
        let (_dir, encoder) = encoder();
        let all = tagged(&encoder);
        let pool = Pool::new(2, Tier::detect());
        let properties = r#"{"bought": {"type": "string"}, "sold": {"type": "string"}}"#;
        let schema = Schema::parse(&format!(r#"{{"type": "object", "properties": {properties}}}"#)).unwrap();
        for path_loss in [true, false] {
            let tuned = learn(&encoder, &all, &recipe(path_loss));
            assert_eq!(tuned.epochs[tuned.best - 1].validation, 1.0, "{:?}", tuned.epochs);
            let own = encoder.with_tensors(&tuned.file, EncoderWeights::F32).unwrap();
            let extractor = Extractor { schema: &schema, head: &tuned.head, encoder: &own };
            for (text, spans) in texts() {
                let reading = extractor.read(&pool, &text).unwrap();
                assert_eq!(reading.spans.into_iter().map(|(span, _)| span).collect::<Vec<_>>(), spans);
            }
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes() {
        let (_dir, encoder) = encoder();
        let all = tagged(&encoder);
        let recipe = Recipe { epochs: 2, average_steps: 3, ..recipe(true) };
        let (a, b) = (learn(&encoder, &all, &recipe), learn(&encoder, &all, &recipe));
        assert!(a.file == b.file && a.head == b.head);
    }

    /// Killed at a step, whichever, it goes on from its last checkpoint and comes to the same bytes.
    #[test]
    fn killed_and_taken_up_it_is_the_same() {
        let (_dir, encoder) = encoder();
        let all = tagged(&encoder);
        let recipe = Recipe { epochs: 3, average_steps: 3, ..recipe(true) };
        let whole = learn(&encoder, &all, &recipe);
        let dir = tempfile::tempdir().unwrap();
        let pool = Pool::new(2, Tier::detect());
        let ticks = std::cell::Cell::new(0);
        let clock = || {
            ticks.set(ticks.get() + 1);
            Duration::from_secs(ticks.get())
        };
        let run = Run { pool: &pool, seed: 3, clock: &clock, deadline: Duration::MAX };
        let keeper = || Keeper::new(dir.path(), "t", "encoder", metier_model::Digest::of(b"plan"));
        let taken_up = |kill_at: u64| {
            let learn = std::panic::AssertUnwindSafe(|| {
                let mut tagger = Tagger::new(&encoder, &all, &all, 2, &recipe, 3).unwrap();
                tagger.keep(keeper());
                let mut progress = |progress: Progress<'_>| assert!(progress.done < kill_at, "killed");
                tagger.learn(&run, &mut progress, &mut |_| (), &mut |_| ()).unwrap()
            });
            std::panic::catch_unwind(learn)
        };
        assert_eq!(begun(&keeper()), None);
        assert!(taken_up(5).is_err() && begun(&keeper()) == Some(3) && taken_up(9).is_err());
        let last = taken_up(u64::MAX).unwrap();
        assert!(last.file == whole.file && last.head == whole.head && last.best == whole.best);
    }

    /// The derivative of the loss by every kind of number, against finite differences, without dropout.
    #[test]
    fn finite_differences_find_the_derivative() {
        let (_dir, encoder) = encoder();
        let all = tagged(&encoder);
        let recipe = recipe(true);
        let pool = Pool::new(1, Tier::Scalar);
        let mut tagger = Tagger::new(&encoder, &all, &all, 2, &recipe, 3).unwrap();
        let mut values = tagger.net.params.values.clone();
        let mut grads = vec![0.0; values.len()];
        let batch = [0, 5, 9];
        tagger.step(&pool, &values, &batch, None, &mut grads);
        let tensors = tagger.net.params.tensors().to_vec();
        for tensor in tensors {
            // The steepest number of each tensor: small ones drown in f32.
            let at = tensor.range.clone().max_by(|a, b| grads[*a].abs().total_cmp(&grads[*b].abs())).unwrap();
            let (kept, step) = (values[at], 1e-2);
            let mut nowhere = vec![0.0; values.len()];
            let mut loss = |x: f32, values: &mut Vec<f32>| {
                values[at] = x;
                tagger.step(&pool, values, &batch, None, &mut nowhere)
            };
            let slope = (loss(kept + step, &mut values) - loss(kept - step, &mut values)) / f64::from(2.0 * step);
            values[at] = kept;
            let far = (slope - f64::from(grads[at])).abs();
            assert!(far < 0.03 * slope.abs() + 2e-3, "`{}`: {slope} against {}", tensor.name, grads[at]);
        }
    }

    #[test]
    fn a_window_that_begins_within_a_span_begins_it() {
        assert_eq!(opened(&[2, 2, 0]), [1, 2, 0]);
        assert_eq!(opened(&[0, 1]), [0, 1]);
        assert!(opened(&[]).is_empty());
    }
}
