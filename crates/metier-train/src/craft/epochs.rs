//! The loop by which an encoder's layers are tuned, whatever they are tuned for: epochs of steps, validation rows after each, the best
//! epoch's numbers out.
//!
//! **Question:** when is the next step, how long is it, and which numbers are kept? **In:** a [`Trainee`], its numbers, a [`Pace`].
//! **Out:** the numbers of the best epoch, and how training went. **Absent:** losses, networks, what an example is.
//!
//! ```text
//! step: progress → loss and derivatives → clip, AdamW → mean of numbers → log → checkpoint, if one is due
//! epoch: steps → figure on validation rows → better? keep → checkpoint → patience or deadline end it
//! ```

use std::{ops::Range, time::Duration};

use metier_kernels::Pool;
use metier_model::{EncoderError, Progress, Unit, arch::WeightsError, specialist::mix};
use serde::{Deserialize, Serialize};

use super::checkpoint::{CheckpointError, Keeper};
use crate::{
    grad::bert::{BertNet, Dropout},
    optim::{AdamW, Group, Schedule, Settings},
};

/// Time that a prediction takes, about.
const PROBE: Duration = Duration::from_secs(1);
/// Steps of a prediction, at most: clocks may stand still.
const MAX_PROBE_STEPS: usize = 20;

/// How fast and how long is trained.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Pace {
    pub(super) epochs: usize,
    pub(super) batch_rows: usize,
    pub(super) learning_rate: f32,
    pub(super) head_learning_rate: f32,
    pub(super) weight_decay: f32,
    pub(super) warm_up: f32,
    pub(super) dropout: f32,
    pub(super) average_steps: usize,
    pub(super) patience: usize,
}

/// The pace of a recipe that has these fields of its own.
macro_rules! pace_of {
    ($recipe:expr) => {
        Pace {
            epochs: $recipe.epochs,
            batch_rows: $recipe.batch_rows,
            learning_rate: $recipe.learning_rate,
            head_learning_rate: $recipe.head_learning_rate,
            weight_decay: $recipe.weight_decay,
            warm_up: $recipe.warm_up,
            dropout: $recipe.dropout,
            average_steps: $recipe.average_steps,
            patience: $recipe.patience,
        }
    };
}
pub(super) use pace_of;

/// The best epoch so far, if any: its figure and loss on validation rows as bits (a text of them could be another number), and which it was.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Best(Option<(u64, u64, usize)>);

impl Best {
    /// Takes an epoch (from 1) that is better than the best before it, by `is_better(later, best)`; whether it was taken.
    pub(super) fn offer(
        &mut self,
        epoch: usize,
        later: (f64, f64),
        is_better: impl Fn((f64, f64), (f64, f64)) -> bool,
    ) -> bool {
        let taken = self.0.is_none_or(|(best, loss, _)| is_better(later, (f64::from_bits(best), f64::from_bits(loss))));
        if taken {
            self.0 = Some((later.0.to_bits(), later.1.to_bits(), epoch));
        }
        taken
    }

    /// Which it was, from 1.
    pub(super) fn epoch(self) -> Option<usize> {
        self.0.map(|(_, _, epoch)| epoch)
    }
}

/// A greater figure, or the same at a smaller loss.
pub(super) fn is_better(later: (f64, f64), best: (f64, f64)) -> bool {
    later.0 > best.0 || (later.0 == best.0 && later.1 < best.1)
}

/// What is trained: an encoder under a head that steers it.
pub(super) trait Trainee: Send {
    /// Training examples.
    fn n_examples(&self) -> usize;
    /// Their order in an epoch, counted from 1.
    fn order(&self, seed: u64, epoch: usize) -> Vec<usize>;
    /// Tokens of a training example.
    fn n_tokens(&self, example: usize) -> usize;
    /// Tokens of all validation examples.
    fn n_validation_tokens(&self) -> usize;
    /// Loss of one step; derivatives are added to `grads`.
    fn step(
        &mut self,
        pool: &Pool,
        values: &[f32],
        batch: &[usize],
        dropout: Option<Dropout>,
        grads: &mut [f32],
    ) -> f64;
    /// The figure of validation examples, and their loss.
    fn evaluate(&mut self, pool: &Pool, values: &[f32]) -> (f64, f64);
    /// Is an epoch's figure and loss better than that of the best before it?
    fn is_better(later: (f64, f64), best: (f64, f64)) -> bool;
    /// The network, for the names of its numbers.
    fn net(&self) -> &BertNet;
}

/// One step, for logs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepLog {
    /// From 0.
    pub step: u64,
    /// Mean over the step's rows.
    pub loss: f64,
    /// Length of the derivative before clipping.
    pub gradient_norm: f64,
    /// Step length of the encoder's layers.
    pub learning_rate: f32,
    /// Tokens that went through the network.
    pub tokens: usize,
}

/// One epoch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochLog {
    /// From 1.
    pub epoch: usize,
    /// Mean loss of its steps.
    pub loss: f64,
    /// The metric of what the steering head calls validation rows.
    pub validation: f64,
    /// Its loss on them: mean cross entropy, or misses and false finds of spans.
    pub validation_loss: f64,
}

/// An encoder cannot be tuned.
#[derive(Debug, thiserror::Error)]
pub enum TuneError {
    /// The encoder.
    #[error(transparent)]
    Encoder(#[from] EncoderError),
    /// A text cannot be read.
    #[error("cannot tokenise training text {idx}")]
    Text {
        /// Its index.
        idx: usize,
        /// Why.
        #[source]
        source: metier_model::tokenizer::TokenizerError,
    },
    /// The loss is no number any more.
    #[error("training diverged at step {step}: the loss is no finite number; lower the learning rate")]
    Diverged {
        /// The step.
        step: u64,
    },
    /// The tuned numbers cannot be written.
    #[error("the tuned encoder cannot be kept in 16 bits")]
    Weights(#[from] WeightsError),
    /// What was learnt cannot be kept.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// There is nothing to learn from.
    #[error("{0} training rows and {1} validation rows are too few to tune an encoder")]
    TooFew(usize, usize),
}

/// What training runs on.
pub struct Run<'a> {
    /// Threads.
    pub pool: &'a Pool,
    /// Of order, dropped elements and the head's first numbers.
    pub seed: u64,
    /// Time since the build began.
    pub clock: &'a dyn Fn() -> Duration,
    /// No epoch is begun that would end after this, judged by the one before.
    pub deadline: Duration,
}

/// Who is told what.
pub(super) struct Watch<'a> {
    pub(super) progress: &'a mut dyn FnMut(Progress<'_>),
    pub(super) step: &'a mut dyn FnMut(&StepLog),
    pub(super) epoch: &'a mut dyn FnMut(&EpochLog),
}

/// What came out.
pub(super) struct Learnt {
    /// Of the best epoch.
    pub(super) values: Vec<f32>,
    pub(super) epochs: Vec<EpochLog>,
    /// Which, from 1.
    pub(super) best: usize,
    /// Tokens that were trained on, in all.
    pub(super) tokens: u64,
}

/// Where training is: what a checkpoint holds beside numbers.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct State {
    /// Epochs that were to run: step lengths hang on it.
    planned: usize,
    /// Steps that were made, and of them those of the epoch that is under way.
    step: u64,
    batch: usize,
    optimiser_steps: i32,
    tokens: u64,
    /// Bits of sums and figures: a text of them could be another number.
    loss_sum: u64,
    epochs: Vec<EpochLog>,
    best: Best,
    /// Training ended early.
    is_done: bool,
}

/// How many epochs an earlier run of the same plan was to have, if it was killed in the midst of it.
pub(super) fn begun(keeper: &Keeper) -> Option<usize> {
    keeper.load::<State>().map(|(state, _)| state.planned)
}

/// Step lengths and decay of a network's numbers: the head's have their own.
pub(super) fn groups(net: &BertNet, pace: &Pace) -> Vec<Group> {
    let groups = net.params.tensors().iter().map(|tensor| Group {
        range: tensor.range.clone(),
        learning_rate: if tensor.name.starts_with("head.") { pace.head_learning_rate } else { pace.learning_rate },
        decay: if tensor.decays() { pace.weight_decay } else { 0.0 },
    });
    groups.collect()
}

/// Puts a head (n, d) behind a network's numbers: small seeded weights, no bias. Where weight and bias lie.
pub(super) fn push_head(net: &mut BertNet, n: usize, d: usize, seed: u64) -> (Range<usize>, Range<usize>) {
    let mut state = mix(seed);
    let weights: Vec<f32> = (0..n * d)
        .map(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            ((mix(state) >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * 0.02
        })
        .collect();
    let weight = net.params.push("head.weight", &[n, d], &weights);
    let bias = net.params.push("head.bias", &[n], &vec![0.0; n]);
    (weight, bias)
}

/// How long an epoch would take, by about a second of steps that are thrown away.
pub(super) fn probe<T: Trainee>(trainee: &mut T, values: &[f32], pace: &Pace, run: &Run<'_>) -> Duration {
    let mut grads = vec![0.0; values.len()];
    let start = (run.clock)();
    let (mut tokens, mut spent) = (0usize, Duration::ZERO);
    for batch in trainee.order(run.seed, 0).chunks(pace.batch_rows.max(1)).take(MAX_PROBE_STEPS) {
        run.pool.enter(|| trainee.step(run.pool, values, batch, None, &mut grads));
        tokens += batch.iter().map(|example| trainee.n_tokens(*example)).sum::<usize>();
        spent = (run.clock)().saturating_sub(start);
        if spent >= PROBE {
            break;
        }
    }
    let train: usize = (0..trainee.n_examples()).map(|example| trainee.n_tokens(example)).sum();
    // The way forth is a third of a step.
    let epoch = train as f64 + trainee.n_validation_tokens() as f64 / 3.0;
    spent.mul_f64(epoch / tokens.max(1) as f64)
}

/// Trains, from the last checkpoint of the same plan where there is one.
pub(super) fn learn<T: Trainee>(
    trainee: &mut T,
    mut values: Vec<f32>,
    pace: &Pace,
    run: &Run<'_>,
    mut keeper: Option<Keeper>,
    watch: Watch<'_>,
) -> Result<Learnt, TuneError> {
    let (pool, batch_rows) = (run.pool, pace.batch_rows.max(1));
    let mut optimiser = AdamW::new(Settings::default(), groups(trainee.net(), pace), values.len());
    let mut grads = vec![0.0; values.len()];
    let mut average = (pace.average_steps > 0).then(|| values.clone());
    let batches = trainee.n_examples().div_ceil(batch_rows);
    let total = (batches * pace.epochs) as u64;
    let schedule = Schedule { steps: total, warm_up: ((total as f32 * pace.warm_up) as u64).max(1), floor: 0.0 };
    let mut best = Vec::new();
    let mut state = State { planned: pace.epochs, ..State::default() };
    if let Some((kept, arrays)) = keeper.as_ref().and_then(|keeper| keeper.load::<State>())
        && kept.planned == pace.epochs
        && let Some([numbers, m, v, mean, kept_best]) = fitting(&kept, arrays, values.len(), average.is_some())
    {
        optimiser.restore(&m, &v, kept.optimiser_steps);
        (values, average) = (numbers, average.map(|_| mean));
        (best, state) = (kept_best, kept);
    }
    let save = |keeper: &mut Option<Keeper>, state: &State, optimiser: &AdamW, arrays: [&[f32]; 3]| {
        let Some(keeper) = keeper else { return Ok(()) };
        let (m, v, optimiser_steps) = optimiser.state();
        let [values, average, best] = arrays;
        keeper.save(run.clock, &State { optimiser_steps, ..state.clone() }, &[values, m, v, average, best])
    };
    while !state.is_done && state.epochs.len() < pace.epochs {
        let (epoch, start) = (state.epochs.len() + 1, (run.clock)());
        for batch in trainee.order(run.seed, epoch).chunks(batch_rows).skip(state.batch) {
            let step = state.step;
            (watch.progress)(Progress {
                stage: "tuning the encoder",
                done: step,
                total: Some(total),
                unit: Unit::Steps,
            });
            let dropout = Dropout { rate: pace.dropout, seed: mix(run.seed ^ mix(step ^ 0xd20f)) };
            let loss = pool.enter(|| trainee.step(pool, &values, batch, Some(dropout), &mut grads));
            if !loss.is_finite() {
                return Err(TuneError::Diverged { step });
            }
            let share = schedule.at(step);
            let gradient_norm = pool.enter(|| optimiser.step(pool, share, &mut values, &mut grads));
            if let Some(average) = &mut average {
                // Early on the mean is of fewer steps.
                let weight = 1.0 / (pace.average_steps.min(step as usize / 2 + 1)) as f32;
                average.iter_mut().zip(&values).for_each(|(mean, value)| *mean += weight * (value - *mean));
            }
            let tokens = batch.iter().map(|example| trainee.n_tokens(*example)).sum();
            state.tokens += tokens as u64;
            state.loss_sum = (f64::from_bits(state.loss_sum) + loss).to_bits();
            (watch.step)(&StepLog { step, loss, gradient_norm, learning_rate: pace.learning_rate * share, tokens });
            state.step += 1;
            state.batch += 1;
            if keeper.as_ref().is_some_and(|keeper| keeper.is_due((run.clock)())) {
                save(&mut keeper, &state, &optimiser, [&values, average.as_deref().unwrap_or_default(), &best])?;
            }
        }
        let kept = average.as_ref().unwrap_or(&values);
        let (validation, validation_loss) = pool.enter(|| trainee.evaluate(pool, kept));
        let loss = f64::from_bits(state.loss_sum) / batches as f64;
        state.epochs.push(EpochLog { epoch, loss, validation, validation_loss });
        (watch.epoch)(&state.epochs[epoch - 1]);
        (state.loss_sum, state.batch) = (0, 0);
        if state.best.offer(epoch, (validation, validation_loss), T::is_better) {
            best.clone_from(kept);
        }
        let best_epoch = state.best.epoch().unwrap_or(epoch);
        let now = (run.clock)();
        state.is_done = epoch - best_epoch >= pace.patience || now + now.saturating_sub(start) > run.deadline;
        save(&mut keeper, &state, &optimiser, [&values, average.as_deref().unwrap_or_default(), &best])?;
    }
    let best_epoch = state.best.epoch().expect("at least one epoch");
    Ok(Learnt { values: best, epochs: state.epochs, best: best_epoch, tokens: state.tokens })
}

/// A checkpoint's numbers, where they are of this network and recipe.
fn fitting(state: &State, arrays: Vec<Vec<f32>>, n: usize, has_average: bool) -> Option<[Vec<f32>; 5]> {
    let arrays = <[Vec<f32>; 5]>::try_from(arrays).ok()?;
    let expected = [n, n, n, if has_average { n } else { 0 }, if state.best.epoch().is_some() { n } else { 0 }];
    (arrays.each_ref().map(Vec::len) == expected).then_some(arrays)
}
