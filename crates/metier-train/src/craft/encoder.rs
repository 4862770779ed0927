//! The trade of tuned encoders: texts and their classes (or sets of labels) in, an encoder's layers out whose vectors tell these apart.
//!
//! **Question:** which layers over the base's tables? **In:** an encoder, training rows, validation rows, a recipe. **Out:** a file of
//! tensors in IEEE halves that [`Encoder::with_tensors`] reads, and how training went. **Absent:** the classifier that ships: the ladder
//! makes it on the tuned vectors as on any others. The linear head that training steers by is thrown away.
//!
//! ```text
//! a step:  rows spread over classes → packed ids → vectors u → logits z = s·W·u + b
//!          loss = cross entropy (labels smoothed) [+ R-Drop: each row twice] [+ supervised contrast on u]
//!          of sets of labels: cross entropy of each label for itself [+ R-Drop]
//!          → derivatives → clip → AdamW, warm-up and cosine
//! an epoch: validation rows → accuracy; the best epoch's numbers are kept, `patience` epochs without a better one end it
//! ```

use std::time::Duration;

use metier_kernels::{Isa, Pool, Target};
use metier_model::{
    Encoder, Progress, TokenId,
    arch::bert::{PlainTensor, halves},
    specialist::mix,
};

pub use super::epochs::{EpochLog, Run, StepLog, TuneError};
use super::{
    checkpoint::Keeper,
    epochs::{self, Learnt, Pace, Trainee, Watch, pace_of},
    linear::shuffle,
    sets::thresholds,
    teaching::Lesson,
};
use crate::{
    data::task::Metric,
    eval::{calibrate::predicted, metrics, sets as figures},
    grad::{
        Segments,
        bert::{BertNet, Dropout, Pass},
        linear::{self, Linear},
    },
    objective::{
        binary_cross_entropy, binary_divergence, cross_entropy,
        distil::{Soft, taught},
        supervised_contrast, symmetric_divergence,
    },
    optim::{AdamW, Settings},
};

/// Tokens of validation rows that go through the network together.
const EVALUATION_TOKENS: usize = 4096;

/// How an encoder is tuned.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// Passes over the training rows, at most.
    pub epochs: usize,
    /// Rows of a step.
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
    /// Share of a label that is spread over all classes.
    pub smoothing: f32,
    /// Weight of R-Drop; where it is above 0 each row is passed twice.
    pub r_drop: f32,
    /// Weight of supervised contrast.
    pub contrast: f32,
    /// Temperature of supervised contrast.
    pub temperature: f32,
    /// What unit vectors are multiplied with before the head.
    pub logit_scale: f32,
    /// What is kept is a running mean of the numbers, of about so many last steps; 0: the numbers themselves.
    pub average_steps: usize,
    /// Epochs without a better one after which training ends.
    pub patience: usize,
    /// Longer texts are cut, in training alone.
    pub max_tokens: usize,
    /// What epochs are compared by.
    pub metric: Metric,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            epochs: 6,
            batch_rows: 64,
            learning_rate: 2e-4,
            head_learning_rate: 5e-3,
            weight_decay: 0.01,
            warm_up: 0.1,
            dropout: 0.1,
            smoothing: 0.1,
            r_drop: 0.0,
            contrast: 0.0,
            temperature: 0.1,
            logit_scale: 16.0,
            average_steps: 0,
            patience: 3,
            max_tokens: 128,
            metric: Metric::Accuracy,
        }
    }
}

impl Recipe {
    fn pace(&self) -> Pace {
        pace_of!(self)
    }
}

/// Texts and what they are labelled with.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// Texts.
    pub texts: &'a [&'a str],
    /// Of each.
    pub gold: Gold<'a>,
}

/// What texts are labelled with.
#[derive(Clone, Copy, Debug)]
pub enum Gold<'a> {
    /// One class each.
    Classes(&'a [usize]),
    /// A set of labels each, ascending; it may be empty. There is neither contrast nor a teacher for these.
    Sets(&'a [Vec<usize>]),
}

impl Gold<'_> {
    /// A class a row by which an epoch is spread: its own, or the rarest label of its set.
    fn spread(self, n_classes: usize) -> Vec<usize> {
        match self {
            Self::Classes(classes) => classes.to_vec(),
            Self::Sets(sets) => {
                let counts = counts(sets, n_classes);
                let rarest = |set: &Vec<usize>| set.iter().copied().min_by_key(|label| counts[*label]);
                // Rows without a label are a class of their own.
                sets.iter().map(|set| rarest(set).unwrap_or(n_classes)).collect()
            }
        }
    }

    /// What a head says that has seen nothing yet: nothing of classes, of each label how frequent it is (Lin et al. 2017). Else the first steps
    /// teach no more than that most labels are absent.
    fn bias(self, n_classes: usize) -> Vec<f32> {
        match self {
            Self::Classes(_) => vec![0.0; n_classes],
            Self::Sets(sets) => {
                let odds = |n: usize| ((n as f32 + 0.5) / ((sets.len() - n) as f32 + 0.5)).ln();
                counts(sets, n_classes).into_iter().map(odds).collect()
            }
        }
    }
}

fn counts(sets: &[Vec<usize>], n_classes: usize) -> Vec<usize> {
    let mut counts = vec![0; n_classes];
    sets.iter().flatten().for_each(|label| counts[*label] += 1);
    counts
}

/// What came out.
pub struct TunedLayers {
    /// For [`Encoder::with_tensors`].
    pub file: Vec<u8>,
    /// Of each epoch that ran.
    pub epochs: Vec<EpochLog>,
    /// Which of them the file holds, from 1.
    pub best: usize,
    /// Tokens that were trained on, in all.
    pub tokens: u64,
}

/// An encoder that is about to be tuned: rows are tokenised, numbers lie ready.
pub struct Tuner<'a> {
    net: BertNet,
    tensors: Vec<PlainTensor>,
    head: (std::ops::Range<usize>, std::ops::Range<usize>),
    n_classes: usize,
    pass: Pass,
    train: (Vec<Vec<TokenId>>, Gold<'a>),
    validation: (Vec<Vec<TokenId>>, Gold<'a>),
    spread: Vec<usize>,
    recipe: &'a Recipe,
    keeper: Option<Keeper>,
    /// What a teacher says of the training rows.
    lesson: Option<&'a Lesson>,
}

impl<'a> Tuner<'a> {
    /// Takes over an encoder's numbers and tokenises the rows.
    ///
    /// # Errors
    ///
    /// Where the encoder cannot be tuned, or rows are missing or cannot be read.
    pub fn new(
        encoder: &Encoder,
        train: Rows<'a>,
        validation: Rows<'a>,
        n_classes: usize,
        recipe: &'a Recipe,
        seed: u64,
    ) -> Result<Self, TuneError> {
        if train.texts.len() < 2 || validation.texts.is_empty() {
            return Err(TuneError::TooFew(train.texts.len(), validation.texts.len()));
        }
        let plain = encoder.plain()?;
        let tensors = plain.tensors.clone();
        let mut net = BertNet::new(plain, encoder.pooling());
        let width = net.width();
        let head = epochs::push_head(&mut net, n_classes, width, seed ^ 0x4ead);
        net.params.values[head.1.clone()].copy_from_slice(&train.gold.bias(n_classes));
        let train = (tokens(encoder, train.texts, recipe.max_tokens)?, train.gold);
        let validation = (tokens(encoder, validation.texts, encoder.window_tokens())?, validation.gold);
        let spread = train.1.spread(n_classes);
        Ok(Self {
            net,
            tensors,
            head,
            n_classes,
            pass: Pass::default(),
            train,
            validation,
            spread,
            recipe,
            keeper: None,
            lesson: None,
        })
    }

    /// Listens to a teacher that has seen the training rows, in their order.
    pub fn teach(&mut self, lesson: &'a Lesson) {
        assert_eq!(lesson.soft.len(), self.train.0.len(), "the teacher has seen every row");
        self.lesson = Some(lesson);
    }

    /// Keeps checkpoints, and goes on from the last one where there is one.
    pub fn keep(&mut self, keeper: Keeper) {
        self.keeper = Some(keeper);
    }

    /// Whether an earlier run of the same plan was killed in the midst of it.
    pub fn has_begun(&self) -> bool {
        self.keeper.as_ref().is_some_and(|keeper| epochs::begun(keeper).is_some())
    }

    /// How long [`learn`](Self::learn) would take for all epochs, by about a second of steps that are thrown away.
    pub fn probe(&mut self, run: &Run<'_>) -> Duration {
        let values = std::mem::take(&mut self.net.params.values);
        let epoch = epochs::probe(self, &values, &self.recipe.pace(), run);
        self.net.params.values = values;
        epoch.mul_f64(self.recipe.epochs as f64)
    }

    /// Whole steps over the first rows, each with its time and loss: what a bench measures. The numbers move.
    pub fn timed_steps(&mut self, run: &Run<'_>, steps: usize) -> Vec<(Duration, f64)> {
        let pace = self.recipe.pace();
        let mut values = std::mem::take(&mut self.net.params.values);
        let mut optimiser = AdamW::new(Settings::default(), epochs::groups(&self.net, &pace), values.len());
        let mut grads = vec![0.0; values.len()];
        let rows: Vec<usize> = (0..self.train.0.len().min(pace.batch_rows)).collect();
        let timed = (0..steps as u64).map(|step| {
            let start = (run.clock)();
            let dropout = Dropout { rate: pace.dropout, seed: mix(run.seed ^ mix(step)) };
            let loss = run.pool.enter(|| self.step(run.pool, &values, &rows, Some(dropout), &mut grads));
            run.pool.enter(|| optimiser.step(run.pool, 1.0, &mut values, &mut grads));
            ((run.clock)().saturating_sub(start), loss)
        });
        let timed = timed.collect();
        self.net.params.values = values;
        timed
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
    ) -> Result<TunedLayers, TuneError> {
        let values = std::mem::take(&mut self.net.params.values);
        let (pace, keeper) = (self.recipe.pace(), self.keeper.take());
        let watch = Watch { progress, step: log, epoch: &mut |_| () };
        let Learnt { values, epochs, best, tokens } = epochs::learn(&mut self, values, &pace, run, keeper, watch)?;
        Ok(TunedLayers { file: halves(&self.tensors, &values[..self.head.0.start])?, epochs, best, tokens })
    }

    /// The weight of supervised contrast: rows of several labels have no one class to be near to.
    fn contrast(&self) -> f32 {
        if matches!(self.train.1, Gold::Classes(_)) { self.recipe.contrast } else { 0.0 }
    }

    /// Loss of logits (rows, classes) of training rows, which may stand there twice; its derivative is added to `dlogits`.
    fn loss(&self, isa: Isa, logits: &[f32], rows: &[usize], dlogits: &mut [f32]) -> f64 {
        let (smoothing, r_drop) = (self.recipe.smoothing, self.recipe.r_drop);
        match self.train.1 {
            Gold::Classes(of_text) => {
                let classes: Vec<usize> = rows.iter().map(|row| of_text[*row]).collect();
                let targets: Vec<Option<usize>> = classes.iter().map(|class| Some(*class)).collect();
                let loss = match self.lesson {
                    None => cross_entropy(isa, logits, &targets, smoothing, 1.0, dlogits),
                    Some(lesson) => {
                        let soft: Vec<&Soft> = rows.iter().map(|row| &lesson.soft[*row]).collect();
                        let weights: Vec<f32> = rows.iter().map(|row| lesson.weights[*row]).collect();
                        taught(isa, logits, &classes, &soft, &weights, lesson.temperature, smoothing, dlogits)
                    }
                };
                if r_drop > 0.0 {
                    return loss + symmetric_divergence(isa, logits, self.n_classes, r_drop, dlogits);
                }
                loss
            }
            Gold::Sets(of_text) => {
                let sets: Vec<&[usize]> = rows.iter().map(|row| of_text[*row].as_slice()).collect();
                let loss = binary_cross_entropy(logits, &sets, smoothing, 1.0, dlogits);
                if r_drop > 0.0 {
                    return loss + binary_divergence(logits, self.n_classes, r_drop, dlogits);
                }
                loss
            }
        }
    }

    fn head<'b>(&self, values: &'b [f32]) -> Linear<'b> {
        let (weight, bias) = (&values[self.head.0.clone()], &values[self.head.1.clone()]);
        Linear { weight, bias: Some(bias), n: self.n_classes, k: self.net.width() }
    }
}

/// Tunes all layers of `encoder` on the training rows.
///
/// # Errors
///
/// Where the encoder cannot be tuned, rows are missing or cannot be read, or training diverges.
#[allow(clippy::too_many_arguments, reason = "the whole of a training run")]
pub fn tune(
    encoder: &Encoder,
    train: Rows<'_>,
    validation: Rows<'_>,
    n_classes: usize,
    recipe: &Recipe,
    run: &Run<'_>,
    progress: &mut dyn FnMut(Progress<'_>),
    log: &mut dyn FnMut(&StepLog),
) -> Result<TunedLayers, TuneError> {
    Tuner::new(encoder, train, validation, n_classes, recipe, run.seed)?.learn(run, progress, log)
}

impl Trainee for Tuner<'_> {
    fn n_examples(&self) -> usize {
        self.train.0.len()
    }

    fn order(&self, seed: u64, epoch: usize) -> Vec<usize> {
        order(&self.spread, seed ^ mix(epoch as u64), self.contrast() > 0.0)
    }

    fn n_tokens(&self, example: usize) -> usize {
        self.train.0[example].len()
    }

    fn n_validation_tokens(&self) -> usize {
        self.validation.0.iter().map(Vec::len).sum()
    }

    fn is_better(later: (f64, f64), best: (f64, f64)) -> bool {
        epochs::is_better(later, best)
    }

    fn net(&self) -> &BertNet {
        &self.net
    }

    fn step(
        &mut self,
        pool: &Pool,
        values: &[f32],
        batch: &[usize],
        dropout: Option<Dropout>,
        grads: &mut [f32],
    ) -> f64 {
        let recipe = self.recipe;
        let passes = if recipe.r_drop > 0.0 { 2 } else { 1 };
        let rows: Vec<usize> = (0..passes).flat_map(|_| batch.iter().copied()).collect();
        let texts = &self.train.0;
        let ids: Vec<TokenId> = rows.iter().flat_map(|row| texts[*row].iter().copied()).collect();
        let segments = Segments::of(rows.iter().map(|row| texts[*row].len()));
        self.net.forward(pool, values, &ids, &segments, dropout, &mut self.pass);
        let scaled: Vec<f32> = self.pass.units.iter().map(|x| x * recipe.logit_scale).collect();
        let mut logits = vec![0.0; rows.len() * self.n_classes];
        self.head(values).forward(pool, &scaled, &mut logits);
        let mut dlogits = vec![0.0; logits.len()];
        let mut loss = self.loss(pool.isa(), &logits, &rows, &mut dlogits);
        let [dweight, dbias] =
            grads.get_disjoint_mut([self.head.0.clone(), self.head.1.clone()]).expect("weight and bias lie apart");
        linear::backward_weight(pool, &dlogits, &scaled, self.net.width(), dweight, Some(dbias));
        let mut dunits = vec![0.0; scaled.len()];
        self.head(values).backward_input(pool, &dlogits, &mut dunits, Target::Overwrite);
        dunits.iter_mut().for_each(|d| *d *= recipe.logit_scale);
        let contrast = self.contrast();
        if contrast > 0.0 {
            let classes: Vec<usize> = rows.iter().map(|row| self.spread[*row]).collect();
            loss += supervised_contrast(pool, &self.pass.units, &classes, recipe.temperature, contrast, &mut dunits);
        }
        self.net.backward(pool, values, &mut self.pass, &dunits, grads);
        loss
    }

    /// The metric, and mean cross entropy. Sets are called by the thresholds that are best on these rows, as those of the rung that ships are.
    fn evaluate(&mut self, pool: &Pool, values: &[f32]) -> (f64, f64) {
        let (texts, gold) = (&self.validation.0, self.validation.1);
        let (n, n_classes, metric) = (texts.len(), self.n_classes, self.recipe.metric);
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by_key(|&i| texts[i].len());
        let (mut margins, mut done) = (vec![Vec::new(); n], 0);
        while done < n {
            let mut tokens = 0;
            let fits = order[done..].iter().take_while(|&&i| {
                tokens += texts[i].len();
                tokens <= EVALUATION_TOKENS
            });
            let batch = &order[done..done + fits.count().max(1)];
            let ids: Vec<TokenId> = batch.iter().flat_map(|&i| texts[i].iter().copied()).collect();
            let segments = Segments::of(batch.iter().map(|&i| texts[i].len()));
            self.net.forward(pool, values, &ids, &segments, None, &mut self.pass);
            let scaled: Vec<f32> = self.pass.units.iter().map(|x| x * self.recipe.logit_scale).collect();
            let mut logits = vec![0.0; batch.len() * n_classes];
            self.head(values).forward(pool, &scaled, &mut logits);
            logits.chunks_exact(n_classes).zip(batch).for_each(|(row, i)| margins[*i] = row.to_vec());
            done += batch.len();
        }
        order.sort_unstable();
        let (logits, mut nowhere) = (margins.concat(), vec![0.0; n * n_classes]);
        match gold {
            Gold::Classes(classes) => {
                let targets: Vec<Option<usize>> = classes.iter().map(|class| Some(*class)).collect();
                let calls: Vec<usize> = margins.iter().map(|row| predicted(row)).collect();
                let loss = cross_entropy(pool.isa(), &logits, &targets, 0.0, 1.0, &mut nowhere);
                (metrics::value(metric, &calls, classes, &order, n_classes), loss)
            }
            Gold::Sets(sets) => {
                let each: Vec<&[usize]> = sets.iter().map(Vec::as_slice).collect();
                let loss = binary_cross_entropy(&logits, &each, 0.0, 1.0, &mut nowhere);
                let cuts = thresholds(&margins, sets, n_classes, metric);
                let over = |row: &Vec<f32>| (0..n_classes).filter(|&label| row[label] > cuts[label]).collect();
                let calls: Vec<Vec<usize>> = margins.iter().map(over).collect();
                (figures::value(metric, &calls, sets, &order, n_classes), loss)
            }
        }
    }
}

/// The first window of each text, cut to `limit` tokens; the last token stays what closes a window.
fn tokens(encoder: &Encoder, texts: &[&str], limit: usize) -> Result<Vec<Vec<TokenId>>, TuneError> {
    let first = |(idx, text): (usize, &&str)| {
        let windows = encoder.windows_of(text).map_err(|source| TuneError::Text { idx, source })?;
        let mut ids = windows.into_iter().next().unwrap_or_default();
        if let (true, Some(last)) = (ids.len() > limit.max(2), ids.last().copied()) {
            ids.truncate(limit.max(2) - 1);
            ids.push(last);
        }
        Ok(ids)
    };
    texts.iter().enumerate().map(first).collect()
}

/// A seeded order in which every class is spread evenly over the epoch, so that each step sees about the mix of all rows; where `pairs`,
/// two rows of a class stand beside each other, so that contrast finds them in one step.
pub(super) fn order(classes: &[usize], seed: u64, pairs: bool) -> Vec<usize> {
    let n_classes = classes.iter().max().map_or(0, |max| max + 1);
    let mut of_class: Vec<Vec<usize>> = vec![Vec::new(); n_classes];
    classes.iter().enumerate().for_each(|(i, class)| of_class[*class].push(i));
    let size = if pairs { 2 } else { 1 };
    let mut placed: Vec<(f64, &[usize])> = Vec::new();
    for (class, rows) in of_class.iter_mut().enumerate() {
        shuffle(rows, seed ^ mix(class as u64 + 1));
        let n = rows.len().div_ceil(size) as f64;
        for (i, group) in rows.chunks(size).enumerate() {
            let jitter = mix(seed ^ mix(group[0] as u64 + 0x51ed)) as f64 / u64::MAX as f64;
            placed.push(((i as f64 + jitter) / n, group));
        }
    }
    placed.sort_by(|a, b| a.0.total_cmp(&b.0));
    placed.into_iter().flat_map(|(_, group)| group.iter().copied()).collect()
}

#[cfg(test)]
mod tests;
