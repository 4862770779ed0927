//! The trade of tuned encoders: texts and their classes in, an encoder's layers out whose vectors tell these classes apart.
//!
//! **Question:** which layers over the base's tables? **In:** an encoder, training rows, validation rows, a recipe. **Out:** a file of
//! tensors in IEEE halves that [`Encoder::with_tensors`] reads, and how training went. **Absent:** the classifier that ships: the ladder
//! makes it on the tuned vectors as on any others. The linear head that training steers by is thrown away.
//!
//! ```text
//! a step:  rows spread over classes → packed ids → vectors u → logits z = s·W·u + b
//!          loss = cross entropy (labels smoothed) [+ R-Drop: each row twice] [+ supervised contrast on u]
//!          → derivatives → clip → AdamW, warm-up and cosine
//! an epoch: validation rows → accuracy; the best epoch's numbers are kept, `patience` epochs without a better one end it
//! ```

use std::time::Duration;

use metier_kernels::{Pool, Target};
use metier_model::{
    Encoder, Progress, TokenId,
    arch::bert::{PlainTensor, halves},
    specialist::mix,
};

pub use super::epochs::{EpochLog, Run, StepLog, TuneError};
use super::{
    checkpoint::Keeper,
    epochs::{self, Learnt, Pace, Trainee, Watch},
    linear::shuffle,
    teaching::Lesson,
};
use crate::{
    data::task::Metric,
    eval::metrics,
    grad::{
        Segments,
        bert::{BertNet, Dropout, Pass},
        linear::{self, Linear},
    },
    objective::{
        cross_entropy,
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
        Pace {
            epochs: self.epochs,
            batch_rows: self.batch_rows,
            learning_rate: self.learning_rate,
            head_learning_rate: self.head_learning_rate,
            weight_decay: self.weight_decay,
            warm_up: self.warm_up,
            dropout: self.dropout,
            average_steps: self.average_steps,
            patience: self.patience,
        }
    }
}

/// Texts and their classes.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// Texts.
    pub texts: &'a [&'a str],
    /// Class of each.
    pub classes: &'a [usize],
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
    train: (Vec<Vec<TokenId>>, &'a [usize]),
    validation: (Vec<Vec<TokenId>>, &'a [usize]),
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
        let train = (tokens(encoder, train.texts, recipe.max_tokens)?, train.classes);
        let validation = (tokens(encoder, validation.texts, encoder.window_tokens())?, validation.classes);
        Ok(Self {
            net,
            tensors,
            head,
            n_classes,
            pass: Pass::default(),
            train,
            validation,
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
        order(self.train.1, seed ^ mix(epoch as u64), self.recipe.contrast > 0.0)
    }

    fn n_tokens(&self, example: usize) -> usize {
        self.train.0[example].len()
    }

    fn n_validation_tokens(&self) -> usize {
        self.validation.0.iter().map(Vec::len).sum()
    }

    fn is_better(later: (f64, f64), best: (f64, f64)) -> bool {
        later.0 > best.0 || (later.0 == best.0 && later.1 < best.1)
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
        let (isa, recipe) = (pool.isa(), self.recipe);
        let passes = if recipe.r_drop > 0.0 { 2 } else { 1 };
        let (texts, of_text) = (&self.train.0, self.train.1);
        let all = || (0..passes).flat_map(|_| batch.iter().copied());
        let ids: Vec<TokenId> = all().flat_map(|row| texts[row].iter().copied()).collect();
        let segments = Segments::of(all().map(|row| texts[row].len()));
        let classes: Vec<usize> = all().map(|row| of_text[row]).collect();
        self.net.forward(pool, values, &ids, &segments, dropout, &mut self.pass);
        let scaled: Vec<f32> = self.pass.units.iter().map(|x| x * recipe.logit_scale).collect();
        let mut logits = vec![0.0; classes.len() * self.n_classes];
        self.head(values).forward(pool, &scaled, &mut logits);
        let mut dlogits = vec![0.0; logits.len()];
        let targets: Vec<Option<usize>> = classes.iter().map(|class| Some(*class)).collect();
        let mut loss = match self.lesson {
            None => cross_entropy(isa, &logits, &targets, recipe.smoothing, 1.0, &mut dlogits),
            Some(lesson) => {
                let soft: Vec<&Soft> = all().map(|row| &lesson.soft[row]).collect();
                let weights: Vec<f32> = all().map(|row| lesson.weights[row]).collect();
                let (temperature, smoothing) = (lesson.temperature, recipe.smoothing);
                taught(isa, &logits, &classes, &soft, &weights, temperature, smoothing, &mut dlogits)
            }
        };
        if recipe.r_drop > 0.0 {
            loss += symmetric_divergence(isa, &logits, self.n_classes, recipe.r_drop, &mut dlogits);
        }
        let [dweight, dbias] =
            grads.get_disjoint_mut([self.head.0.clone(), self.head.1.clone()]).expect("weight and bias lie apart");
        linear::backward_weight(pool, &dlogits, &scaled, self.net.width(), dweight, Some(dbias));
        let mut dunits = vec![0.0; scaled.len()];
        self.head(values).backward_input(pool, &dlogits, &mut dunits, Target::Overwrite);
        dunits.iter_mut().for_each(|d| *d *= recipe.logit_scale);
        if recipe.contrast > 0.0 {
            loss +=
                supervised_contrast(pool, &self.pass.units, &classes, recipe.temperature, recipe.contrast, &mut dunits);
        }
        self.net.backward(pool, values, &mut self.pass, &dunits, grads);
        loss
    }

    /// The metric, and mean cross entropy.
    fn evaluate(&mut self, pool: &Pool, values: &[f32]) -> (f64, f64) {
        let (rows, recipe) = ((&self.validation.0, self.validation.1), self.recipe);
        let mut order: Vec<usize> = (0..rows.0.len()).collect();
        order.sort_by_key(|&i| rows.0[i].len());
        let (mut calls, mut loss, mut done) = (vec![0; order.len()], 0.0, 0);
        while done < order.len() {
            let mut tokens = 0;
            let fits = order[done..].iter().take_while(|&&i| {
                tokens += rows.0[i].len();
                tokens <= EVALUATION_TOKENS
            });
            let batch = &order[done..done + fits.count().max(1)];
            let ids: Vec<TokenId> = batch.iter().flat_map(|&i| rows.0[i].iter().copied()).collect();
            let segments = Segments::of(batch.iter().map(|&i| rows.0[i].len()));
            self.net.forward(pool, values, &ids, &segments, None, &mut self.pass);
            let scaled: Vec<f32> = self.pass.units.iter().map(|x| x * recipe.logit_scale).collect();
            let mut logits = vec![0.0; batch.len() * self.n_classes];
            self.head(values).forward(pool, &scaled, &mut logits);
            let targets: Vec<Option<usize>> = batch.iter().map(|&i| Some(rows.1[i])).collect();
            let mut nowhere = vec![0.0; logits.len()];
            loss += cross_entropy(pool.isa(), &logits, &targets, 0.0, 1.0, &mut nowhere) * batch.len() as f64;
            let called = logits.chunks_exact(self.n_classes).map(crate::eval::calibrate::predicted);
            called.zip(batch).for_each(|(call, i)| calls[*i] = call);
            done += batch.len();
        }
        order.sort_unstable();
        (metrics::value(recipe.metric, &calls, rows.1, &order, self.n_classes), loss / rows.0.len() as f64)
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
mod tests {
    #![allow(clippy::unwrap_used, clippy::needless_range_loop, reason = "tests; they index several arrays at once")]
    use metier_kernels::Tier;
    use metier_model::{EncoderWeights, format::Safetensors, progress::silent, tiny};

    use super::*;

    const WORDS: [&str; 12] = ["ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen", "the", "a", "of", "in"];

    /// 32 rows of 4 classes: which of four pairs of words a row holds, among others that say nothing.
    fn rows() -> (Vec<String>, Vec<usize>) {
        (0..32)
            .map(|i| {
                let h = mix(i as u64 + 5);
                let class = i % 4;
                let filler = |shift: u32| WORDS[8 + (h >> shift) as usize % 4];
                let word = WORDS[2 * class + (h >> 40) as usize % 2];
                let text = format!("{} {word} {} {}", filler(0), filler(8), filler(16));
                (text, class)
            })
            .unzip()
    }

    fn encoder() -> (tempfile::TempDir, Encoder) {
        let dir = tempfile::tempdir().unwrap();
        tiny::bert_folder(dir.path(), &WORDS, 2, 7).unwrap();
        let encoder = Encoder::open(dir.path()).unwrap();
        (dir, encoder)
    }

    fn run<'a>(pool: &'a Pool) -> Run<'a> {
        Run { pool, seed: 3, clock: &|| Duration::ZERO, deadline: Duration::MAX }
    }

    fn recipe() -> Recipe {
        Recipe {
            epochs: 30,
            batch_rows: 8,
            learning_rate: 3e-3,
            head_learning_rate: 1e-2,
            patience: 30,
            ..Recipe::default()
        }
    }

    /// What is trained is learnt by heart, with each of the losses; what ships gives the vectors that were trained.
    #[test]
    fn learns_32_rows_by_heart() {
        let pool = Pool::new(2, Tier::detect());
        let (_dir, encoder) = encoder();
        let (texts, classes) = rows();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let all = Rows { texts: &texts, classes: &classes };
        for recipe in [recipe(), Recipe { r_drop: 0.5, smoothing: 0.05, contrast: 0.2, ..recipe() }] {
            let mut norms = Vec::new();
            let mut log = |step: &StepLog| norms.push(step.gradient_norm);
            let tuned = tune(&encoder, all, all, 4, &recipe, &run(&pool), &mut silent, &mut log).unwrap();
            let last = tuned.epochs.iter().find(|epoch| epoch.epoch == tuned.best).unwrap();
            assert_eq!(last.validation, 1.0, "{:?}", tuned.epochs);
            assert!(norms.iter().all(|norm| norm.is_finite() && *norm > 0.0));
            // Frozen vectors do not tell the classes apart so well: nearest rows are of another class now and then.
            let served = encoder.with_tensors(&tuned.file, EncoderWeights::F32).unwrap();
            let apart = |encoder: &Encoder| {
                let vectors = encoder.embed(&pool, &texts).unwrap();
                let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
                let (mut same, mut other) = ((0.0, 0), (0.0, 0));
                for i in 0..32 {
                    for j in 0..i {
                        let sum = if classes[i] == classes[j] { &mut same } else { &mut other };
                        *sum = (sum.0 + dot(&vectors[i], &vectors[j]), sum.1 + 1);
                    }
                }
                same.0 / same.1 as f32 - other.0 / other.1 as f32
            };
            assert!(apart(&served) > apart(&encoder) + 0.3, "{} {}", apart(&served), apart(&encoder));
            assert_ne!(served.base().digest, encoder.base().digest);
        }
    }

    /// Gold labels that are all wrong, and a teacher who knows better: what weighs more is learnt.
    #[test]
    fn a_student_listens_to_its_teacher() {
        let pool = Pool::new(2, Tier::detect());
        let (_dir, encoder) = encoder();
        let (texts, classes) = rows();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let wrong: Vec<usize> = classes.iter().map(|class| (class + 1) % 4).collect();
        let shares = |class: usize| (0..4).map(|k| if k == class { 0.91 } else { 0.03 }).collect::<Vec<f32>>();
        let said: Vec<Vec<f32>> = classes.iter().map(|class| shares(*class)).collect();
        for (weight, right) in [(1.0, true), (0.0, false)] {
            let lesson = Lesson {
                soft: said.iter().map(|shares| Soft::tempered(shares, 2.0)).collect(),
                weights: vec![weight; 32],
                temperature: 2.0,
                record: metier_model::specialist::manifest::TeacherRecord {
                    name: "teacher".to_owned(),
                    digest: encoder.base().digest,
                    temperature: 2.0,
                    weight: f64::from(weight),
                    rows_without_label: 0,
                },
            };
            let (rows, held) = (Rows { texts: &texts, classes: &wrong }, Rows { texts: &texts, classes: &classes });
            let recipe = Recipe { epochs: 15, ..recipe() };
            let mut tuner = Tuner::new(&encoder, rows, held, 4, &recipe, 3).unwrap();
            tuner.teach(&lesson);
            let tuned = tuner.learn(&run(&pool), &mut silent, &mut |_| ()).unwrap();
            let last = tuned.epochs.last().unwrap().validation;
            assert!(if right { last > 0.9 } else { last < 0.2 }, "{weight}: {:?}", tuned.epochs);
        }
    }

    /// Training that silently does nothing is this trade's classic fault.
    #[test]
    fn every_trained_tensor_moves_and_every_table_stays() {
        let pool = Pool::new(2, Tier::detect());
        let (_dir, encoder) = encoder();
        let (texts, classes) = rows();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let all = Rows { texts: &texts, classes: &classes };
        let recipe = Recipe { epochs: 1, ..recipe() };
        let tuned = tune(&encoder, all, all, 4, &recipe, &run(&pool), &mut silent, &mut |_| ()).unwrap();
        let (before, index) = (encoder.plain().unwrap(), Safetensors::parse(&tuned.file).unwrap());
        // Tables are not even in the file, and what is not trained cannot be tuned again.
        assert_eq!(index.tensors().len(), before.tensors.len());
        let served = encoder.with_tensors(&tuned.file, EncoderWeights::F32).unwrap();
        assert!(served.plain().is_err());
        let mut from = 0;
        for tensor in &before.tensors {
            let len: usize = tensor.shape.iter().product();
            let after = index.tensor(&tuned.file, &tensor.name).unwrap().to_f32().unwrap();
            let moved = before.values[from..from + len].iter().zip(&after);
            // Rounding to halves moves a number by at most 2⁻¹¹ of it; keys' biases cancel in softmax and move by rounding alone.
            let far = moved.map(|(a, b)| (a - b).abs() / a.abs().max(0.1)).fold(0.0, f32::max);
            assert!(far > 1e-3 || tensor.name.ends_with("key.bias"), "`{}` moved by {far}", tensor.name);
            from += len;
        }
    }

    /// max |Δ| of an element of a unit vector between the network that is trained and the one that serves, both f32.
    const PARITY: f32 = 2e-6;

    #[test]
    fn training_and_serving_see_the_same_vectors() {
        let pool = Pool::new(2, Tier::detect());
        let (_dir, encoder) = encoder();
        let (texts, _) = rows();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let net = BertNet::new(encoder.plain().unwrap(), encoder.pooling());
        let ids = tokens(&encoder, &texts, 32).unwrap();
        let mut pass = Pass::default();
        let segments = Segments::of(ids.iter().map(Vec::len));
        net.forward(&pool, &net.params.values, &ids.concat(), &segments, None, &mut pass);
        let served = encoder.embed(&pool, &texts).unwrap().concat();
        let far = pass.units.iter().zip(&served).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(far <= PARITY, "{far}");
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes() {
        let (_dir, encoder) = encoder();
        let (texts, classes) = rows();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let all = Rows { texts: &texts, classes: &classes };
        let recipe = Recipe { epochs: 2, ..recipe() };
        let tune = || {
            let pool = Pool::new(2, Tier::detect());
            tune(&encoder, all, all, 4, &recipe, &run(&pool), &mut silent, &mut |_| ()).unwrap().file
        };
        assert_eq!(tune(), tune());
    }

    /// Killed at a step, whichever, it goes on from its last checkpoint and comes to the same bytes.
    #[test]
    fn killed_and_taken_up_it_is_the_same() {
        let pool = Pool::new(2, Tier::detect());
        let (_dir, encoder) = encoder();
        let (texts, classes) = rows();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let all = Rows { texts: &texts, classes: &classes };
        for recipe in [
            Recipe { epochs: 5, patience: 2, ..recipe() },
            Recipe { epochs: 3, average_steps: 6, dropout: 0.3, ..recipe() },
        ] {
            let whole = tune(&encoder, all, all, 4, &recipe, &run(&pool), &mut silent, &mut |_| ()).unwrap();
            let dir = tempfile::tempdir().unwrap();
            // Every look at this clock is a second later, so that every second step is kept.
            let ticks = std::cell::Cell::new(0);
            let clock = || {
                ticks.set(ticks.get() + 1);
                Duration::from_secs(ticks.get())
            };
            let keeper = || Keeper::new(dir.path(), "t", "encoder", metier_model::Digest::of(b"plan"));
            let begin = || {
                let mut tuner = Tuner::new(&encoder, all, all, 4, &recipe, 3).unwrap();
                tuner.keep(keeper());
                tuner
            };
            assert!(!begin().has_begun());
            let run = Run { pool: &pool, seed: 3, clock: &clock, deadline: Duration::MAX };
            let mut steps = Vec::new();
            for kill_at in [1, 4, 5, 9, 11] {
                let learn = std::panic::AssertUnwindSafe(|| {
                    let mut progress = |progress: Progress<'_>| {
                        steps.push(progress.done);
                        assert!(progress.done < kill_at, "killed");
                    };
                    begin().learn(&run, &mut progress, &mut |_| ()).map(|tuned| tuned.file)
                });
                assert!(std::panic::catch_unwind(learn).is_err(), "killed at step {kill_at}");
                assert!(kill_at < 2 || begin().has_begun());
            }
            assert!(steps.iter().filter(|step| **step == 0).count() <= 2, "it began anew: {steps:?}");
            let taken_up = begin().learn(&run, &mut silent, &mut |_| ()).unwrap();
            assert_eq!((taken_up.best, taken_up.tokens), (whole.best, whole.tokens));
            assert!(taken_up.file == whole.file, "other bytes");
            // What has ended is not trained again.
            let mut again = 0;
            let tuned = begin().learn(&run, &mut |_| again += 1, &mut |_| ()).unwrap();
            assert!(again == 0 && tuned.file == whole.file);
        }
    }

    #[test]
    fn an_order_spreads_classes_and_keeps_pairs() {
        let classes: Vec<usize> = (0..300).map(|i| if i < 30 { 0 } else { 1 + i % 2 }).collect();
        for pairs in [false, true] {
            let found = order(&classes, 9, pairs);
            let mut sorted = found.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..300).collect::<Vec<_>>());
            for batch in found.chunks(100) {
                let rare = batch.iter().filter(|i| classes[**i] == 0).count();
                assert!((7..=13).contains(&rare), "{rare}");
            }
            assert_ne!(found, order(&classes, 10, pairs));
        }
        let classes: Vec<usize> = (0..310).map(|i| if i < 30 { 0 } else { 1 + i % 2 }).collect();
        let found = order(&classes, 9, true);
        assert!((0..155).all(|i| classes[found[2 * i]] == classes[found[2 * i + 1]]));
    }

    #[test]
    fn too_few_rows_are_refused() {
        let pool = Pool::new(1, Tier::Scalar);
        let (_dir, encoder) = encoder();
        let none = Rows { texts: &[], classes: &[] };
        let error = tune(&encoder, none, none, 4, &recipe(), &run(&pool), &mut silent, &mut |_| ()).err().unwrap();
        assert!(error.to_string().contains("too few"));
    }
}
