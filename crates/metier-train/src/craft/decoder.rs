//! The trade of heads on a decoder: texts and their classes in; deltas out under which a text's last row tells its class, and which of
//! the decoder's layers that takes.
//!
//! **Question:** which deltas, over which layers? **In:** a decoder of Llama's kind, rows of ids with classes, a recipe. **Out:** PEFT's
//! two files; how training went; how much each layer does for this task. **Absent:** the classifier that ships (the ladder makes it on the
//! vectors that the engine gives), and when to stop leaving layers out (the ladder's test says so). The linear head that training steers
//! by is thrown away.
//!
//! ```text
//! a step:    whole rows, about `step_tokens` → last rows at unit length u → logits z = s·W·u + b → cross entropy (labels smoothed)
//!            → derivatives → clip → AdamW, warm-up and cosine
//! a phase:   epochs; the best on validation rows is kept. The first phase runs all layers; each one behind it leaves some out and heals
//! influence: the loss on training rows when a layer is skipped, or the angle by which it turns their last rows (Gromov et al. 2024)
//! ```
//!
//! Layers that are left out are not there: neither weights nor deltas, so a step of healing is as much cheaper as the specialist will be.

use std::time::Duration;

use metier_kernels::{Pool, Target};
use metier_model::{
    Progress, TokenId, Unit,
    arch::{WeightsError, transformer::PlainTransformer},
    specialist::{manifest::AdapterWeights, mix},
};
use serde::{Deserialize, Serialize};

use super::{
    checkpoint::{CheckpointError, Keeper},
    encoder::{self, StepLog},
    epochs::{Best, is_better},
    lora::{self, batches},
    reading::ReadError,
};
use crate::{
    data::task::Metric,
    eval::{calibrate::predicted, metrics},
    grad::{
        Segments,
        linear::{self, Linear},
        llama::{LlamaNet, LoraConfig, Pass},
    },
    objective::cross_entropy,
    optim::{AdamW, Group, Schedule, Settings},
};

/// Time that a prediction takes, about.
const PROBE: Duration = Duration::from_secs(1);
/// Steps of a prediction, at most: clocks may stand still.
const MAX_PROBE_STEPS: usize = 4;
/// Tokens of the training rows on which layers are weighed, about.
pub const INFLUENCE_TOKENS: usize = 512;
/// Layers that are left out before the others are weighed again: what a layer does hangs on the others.
pub(super) const LEFT_OUT_AT_ONCE: usize = 2;

/// How deltas are trained.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// Rank and strength.
    pub lora: LoraConfig,
    /// Passes over the training rows, at most.
    pub epochs: usize,
    /// Passes after some layers were left out.
    pub heal_epochs: usize,
    /// Shares of the layers that are tried, from many to few; empty: all layers alone.
    pub depths: Vec<f64>,
    /// What says which layers are left out.
    pub by: Criterion,
    /// Tokens of a step, about; a row that is longer makes a step alone.
    pub step_tokens: usize,
    /// Greatest step length of the deltas.
    pub learning_rate: f32,
    /// Greatest step length of the head.
    pub head_learning_rate: f32,
    /// Pull towards 0.
    pub weight_decay: f32,
    /// Share of steps in which the step length rises.
    pub warm_up: f32,
    /// Share of a label that is spread over all classes.
    pub smoothing: f32,
    /// What unit vectors are multiplied with before the head.
    pub logit_scale: f32,
    /// Epochs without a better one after which a phase ends.
    pub patience: usize,
    /// What epochs are compared by.
    pub metric: Metric,
    /// How deltas are kept in memory where they are served, and so where rows are read for the head that ships.
    pub weights: AdapterWeights,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            lora: LoraConfig { r: 16, alpha: 32.0 },
            epochs: 3,
            heal_epochs: 1,
            depths: vec![0.8, 0.7, 0.6],
            by: Criterion::Loss,
            step_tokens: 512,
            learning_rate: 1e-3,
            head_learning_rate: 5e-3,
            weight_decay: 0.01,
            warm_up: 0.1,
            smoothing: 0.1,
            logit_scale: 16.0,
            patience: 2,
            metric: Metric::Accuracy,
            weights: AdapterWeights::F16,
        }
    }
}

/// What says how little a layer does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Criterion {
    /// How little the loss rises when it is skipped.
    Loss,
    /// How little it turns the rows that the head reads.
    Angle,
}

/// What a layer does for the rows that it was weighed on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Influence {
    /// Of the base.
    pub layer: usize,
    /// Mean loss when it is skipped, less the loss with it.
    pub loss: f64,
    /// Mean angle between a text's last row before and behind it, as a share of a half turn.
    pub angle: f64,
}

/// Texts as ids, and their classes.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// Each at least one token.
    pub ids: &'a [Vec<TokenId>],
    /// Class of each.
    pub classes: &'a [usize],
}

impl Rows<'_> {
    fn tokens(&self) -> usize {
        self.ids.iter().map(Vec::len).sum()
    }
}

/// One pass over the rows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochLog {
    /// From 1.
    pub epoch: usize,
    /// Mean loss of its steps.
    pub loss: f64,
    /// The metric of what the steering head calls validation rows.
    pub validation: f64,
    /// Its mean cross entropy on them.
    pub validation_loss: f64,
}

/// How a phase went.
#[derive(Clone, Debug, PartialEq)]
pub struct Trained {
    /// Of each epoch that ran.
    pub epochs: Vec<EpochLog>,
    /// Which of them the deltas are of, from 1.
    pub best: usize,
    /// Every step.
    pub steps: Vec<StepLog>,
    /// The step at which an earlier run was taken up.
    pub resumed_at: Option<u64>,
}

/// How much is to be done, decided once.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Passes with all layers.
    pub epochs: usize,
    /// Numbers of layers that are tried, from many to few.
    pub depths: Vec<usize>,
    /// Seconds that all of it was predicted to take.
    pub predicted_seconds: f64,
}

/// A head's decoder cannot be tuned.
#[derive(Debug, thiserror::Error)]
pub enum DecoderTuneError {
    /// Its file has several maps as one tensor, or cannot be read.
    #[error("cannot tune this decoder")]
    Plain(#[from] WeightsError),
    /// A text cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The loss is no number any more.
    #[error("training diverged at step {step}: the loss is no finite number; lower the learning rate")]
    Diverged {
        /// The step.
        step: u64,
    },
    /// What was learnt cannot be kept.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// There is nothing to learn from.
    #[error("{0} training rows and {1} validation rows are too few to tune a decoder")]
    TooFew(usize, usize),
}

/// What training runs on.
pub struct Run<'a> {
    /// Threads.
    pub pool: &'a Pool,
    /// Of order and first numbers.
    pub seed: u64,
    /// Time since the build began.
    pub clock: &'a dyn Fn() -> Duration,
}

/// Where a phase is: what a checkpoint holds beside numbers.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct State {
    plan: Plan,
    step: u64,
    /// Steps of the epoch that is under way.
    batch: usize,
    optimiser_steps: i32,
    /// Bits of sums and figures: a text of them could be another number.
    loss_sum: u64,
    epochs: Vec<EpochLog>,
    best: Best,
    steps: Vec<StepLog>,
    is_done: bool,
}

/// A decoder with its deltas and the head that steers them.
pub struct Tuner {
    net: LlamaNet,
    lora: LoraConfig,
    n_classes: usize,
    scale: f32,
    pass: Pass,
    grads: Vec<f32>,
}

impl Tuner {
    /// Deltas that change nothing yet, over all layers.
    pub fn new(plain: PlainTransformer, n_classes: usize, recipe: &Recipe, seed: u64) -> Self {
        let mut net = LlamaNet::new(plain, recipe.lora, seed);
        let d = net.width();
        let mut state = mix(seed ^ 0x4ead);
        let weights: Vec<f32> = (0..n_classes * d)
            .map(|_| {
                state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                ((mix(state) >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * 0.02
            })
            .collect();
        net.params.push(HEAD[0], &[n_classes, d], &weights);
        net.params.push(HEAD[1], &[n_classes], &vec![0.0; n_classes]);
        Self { net, lora: recipe.lora, n_classes, scale: recipe.logit_scale, pass: Pass::default(), grads: Vec::new() }
    }

    /// The network with its deltas.
    pub fn net(&self) -> &LlamaNet {
        &self.net
    }

    fn groups(&self, recipe: &Recipe) -> Vec<Group> {
        let groups = self.net.params.tensors().iter().map(|tensor| Group {
            range: tensor.range.clone(),
            learning_rate: if HEAD.contains(&tensor.name.as_str()) {
                recipe.head_learning_rate
            } else {
                recipe.learning_rate
            },
            decay: if tensor.decays() { recipe.weight_decay } else { 0.0 },
        });
        groups.collect()
    }

    /// The steering head over some numbers.
    fn head<'a>(&self, values: &'a [f32]) -> Linear<'a> {
        let [weight, bias] = self.head_ranges();
        Linear { weight: &values[weight], bias: Some(&values[bias]), n: self.n_classes, k: self.net.width() }
    }

    fn head_ranges(&self) -> [std::ops::Range<usize>; 2] {
        let tensors = self.net.params.tensors();
        [2, 1].map(|from_end| tensors[tensors.len() - from_end].range.clone())
    }

    /// The way forth over packed rows; which rows are their texts' last ones.
    fn forward(&mut self, pool: &Pool, ids: &[&[TokenId]]) -> Vec<usize> {
        let all: Vec<TokenId> = ids.iter().flat_map(|ids| ids.iter().copied()).collect();
        let segments = Segments::of(ids.iter().map(|ids| ids.len()));
        self.net.forward(pool, &self.net.params.values, &all, &segments, &mut self.pass);
        segments.ranges().map(|range| range.end - 1).collect()
    }

    /// Logits of the steering head from last rows at unit length.
    fn logits(&self, pool: &Pool, units: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let scaled: Vec<f32> = units.iter().map(|x| x * self.scale).collect();
        let mut logits = vec![0.0; units.len() / self.net.width() * self.n_classes];
        self.head(&self.net.params.values).forward(pool, &scaled, &mut logits);
        (logits, scaled)
    }

    /// Mean loss of some rows; its derivative is added to `grads`.
    fn gradient(&mut self, pool: &Pool, ids: &[&[TokenId]], classes: &[usize], smoothing: f32) -> f64 {
        self.grads.resize(self.net.params.values.len(), 0.0);
        let last = self.forward(pool, ids);
        let units = self.net.units(pool, &self.pass.hidden, last);
        let (logits, scaled) = self.logits(pool, &units.units);
        let targets: Vec<Option<usize>> = classes.iter().map(|class| Some(*class)).collect();
        let mut dlogits = vec![0.0; logits.len()];
        let loss = cross_entropy(pool.isa(), &logits, &targets, smoothing, 1.0, &mut dlogits);
        if !loss.is_finite() {
            return loss;
        }
        let mut dunits = vec![0.0; scaled.len()];
        self.head(&self.net.params.values).backward_input(pool, &dlogits, &mut dunits, Target::Overwrite);
        dunits.iter_mut().for_each(|d| *d *= self.scale);
        let ranges = self.head_ranges();
        let width = self.net.width();
        let [dweight, dbias] = self.grads.get_disjoint_mut(ranges).expect("weight and bias lie apart");
        linear::backward_weight(pool, &dlogits, &scaled, width, dweight, Some(dbias));
        let n = self.pass.hidden.len() / width;
        let dhidden = self.net.units_backward(pool, &units, &dunits, n);
        self.net.backward(pool, &self.net.params.values, &mut self.pass, dhidden, &mut self.grads);
        loss
    }

    /// What can be done in the time that is left, by about a second of steps that change nothing. `others`: tokens of the rows that will be
    /// read but not learnt. Where not one pass fits: the time that it would take.
    pub fn plan(
        &mut self,
        run: &Run<'_>,
        rows: Rows<'_>,
        others: usize,
        recipe: &Recipe,
        left: Duration,
    ) -> Result<Plan, Duration> {
        let order: Vec<usize> = (0..rows.ids.len()).collect();
        let start = (run.clock)();
        let (mut tokens, mut spent) = (0usize, Duration::ZERO);
        for batch in batches(&order, |i| rows.ids[i].len(), recipe.step_tokens).iter().take(MAX_PROBE_STEPS) {
            let (ids, classes) = taken(rows, batch);
            run.pool.enter(|| self.gradient(run.pool, &ids, &classes, recipe.smoothing));
            tokens += ids.iter().map(|ids| ids.len()).sum::<usize>();
            spent = (run.clock)().saturating_sub(start);
            if spent >= PROBE {
                break;
            }
        }
        self.grads.fill(0.0);
        let token = spent.as_secs_f64() / tokens.max(1) as f64;
        let (learnt, all) = (rows.tokens() as f64, (rows.tokens() + others) as f64);
        let n = self.net.layers().len();
        // The way forth is a third of a step. Layers are weighed one by one, each on half of the way on average.
        let phase = |epochs: usize, depth: f64| depth * token * (epochs as f64 * learnt + all / 3.0);
        let weighing = |depth: f64| depth * n as f64 / 2.0 * INFLUENCE_TOKENS as f64 * token / 3.0;
        let needed = |epochs: usize, depths: &[usize]| {
            let mut seconds = phase(epochs, 1.0);
            let mut present = n;
            for &depth in depths {
                let rounds = (present - depth).div_ceil(LEFT_OUT_AT_ONCE) as f64;
                seconds += rounds * weighing(present as f64 / n as f64);
                seconds += phase(recipe.heal_epochs, depth as f64 / n as f64);
                present = depth;
            }
            seconds
        };
        let mut depths = depths(n, &recipe.depths);
        let left = left.as_secs_f64();
        while !depths.is_empty() && needed(recipe.epochs, &depths) > left {
            depths.pop();
        }
        let mut epochs = recipe.epochs;
        while epochs > 1 && needed(epochs, &depths) > left {
            epochs -= 1;
        }
        let predicted_seconds = needed(epochs, &depths);
        if predicted_seconds > left {
            return Err(Duration::try_from_secs_f64(predicted_seconds).unwrap_or(Duration::MAX));
        }
        Ok(Plan { epochs, depths, predicted_seconds })
    }

    /// The plan of an earlier run that was killed in the midst of it.
    pub fn begun(keeper: &Keeper) -> Option<Plan> {
        keeper.load::<State>().map(|(state, _)| state.plan)
    }

    /// Trains for so many epochs, or until validation rows are no better for a while; ends with the numbers of the best epoch. With a
    /// keeper, goes on where an earlier run of the same plan was killed, and comes to the same numbers.
    ///
    /// # Errors
    ///
    /// Where training diverges or the disk refuses a checkpoint.
    #[allow(clippy::too_many_arguments, reason = "the whole of a training run")]
    pub fn train(
        &mut self,
        run: &Run<'_>,
        rows: Rows<'_>,
        validation: Rows<'_>,
        recipe: &Recipe,
        (plan, epochs): (&Plan, usize),
        mut keeper: Option<&mut Keeper>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Trained, DecoderTuneError> {
        if rows.ids.len() < 2 || validation.ids.is_empty() {
            return Err(DecoderTuneError::TooFew(rows.ids.len(), validation.ids.len()));
        }
        let pool = run.pool;
        let n = self.net.params.values.len();
        let mut optimiser = AdamW::new(Settings::default(), self.groups(recipe), n);
        let order = |epoch: usize| {
            let order = encoder::order(rows.classes, run.seed ^ mix(epoch as u64 + 1), false);
            batches(&order, |i| rows.ids[i].len(), recipe.step_tokens)
        };
        let total: u64 = (0..epochs).map(|epoch| order(epoch).len() as u64).sum();
        let schedule = Schedule { steps: total, warm_up: ((total as f32 * recipe.warm_up) as u64).max(1), floor: 0.0 };
        let mut best = Vec::new();
        let mut state = State { plan: plan.clone(), ..State::default() };
        let mut resumed_at = None;
        if let Some((kept, arrays)) = keeper.as_ref().and_then(|keeper| keeper.load::<State>())
            && let Some([values, m, v, kept_best]) = fitting(&kept, arrays, n)
        {
            if !kept.is_done {
                optimiser.restore(&m, &v, kept.optimiser_steps);
                self.net.params.values = values;
            }
            (best, resumed_at, state) = (kept_best, Some(kept.step), kept);
        } else if let Some(keeper) = &mut keeper {
            self.keep_state(keeper, run, &state, &optimiser, &best)?;
        }
        while !state.is_done && state.epochs.len() < epochs {
            let epoch = state.epochs.len();
            let batches = order(epoch);
            for batch in &batches[state.batch.min(batches.len())..] {
                let step = state.step;
                progress(Progress { stage: "tuning the decoder", done: step, total: Some(total), unit: Unit::Steps });
                let (ids, classes) = taken(rows, batch);
                let share = schedule.at(step);
                let (loss, gradient_norm) = pool.enter(|| {
                    let loss = self.gradient(pool, &ids, &classes, recipe.smoothing);
                    if !loss.is_finite() {
                        return (loss, f64::NAN);
                    }
                    (loss, optimiser.step(pool, share, &mut self.net.params.values, &mut self.grads))
                });
                if !loss.is_finite() || !gradient_norm.is_finite() {
                    return Err(DecoderTuneError::Diverged { step });
                }
                let tokens = ids.iter().map(|ids| ids.len()).sum();
                let learning_rate = recipe.learning_rate * share;
                state.steps.push(StepLog { step, loss, gradient_norm, learning_rate, tokens });
                state.loss_sum = (f64::from_bits(state.loss_sum) + loss).to_bits();
                state.step += 1;
                state.batch += 1;
                if let Some(keeper) = keeper.as_mut().filter(|keeper| keeper.is_due((run.clock)())) {
                    self.keep_state(keeper, run, &state, &optimiser, &best)?;
                }
            }
            let (value, validation_loss) = self.evaluate(pool, validation, recipe);
            let loss = f64::from_bits(state.loss_sum) / batches.len() as f64;
            state.epochs.push(EpochLog { epoch: epoch + 1, loss, validation: value, validation_loss });
            (state.loss_sum, state.batch) = (0, 0);
            if state.best.offer(epoch + 1, (value, validation_loss), is_better) {
                best.clone_from(&self.net.params.values);
            }
            let best_epoch = state.best.epoch().unwrap_or(0);
            state.is_done = epoch + 1 >= epochs || epoch + 1 - best_epoch >= recipe.patience;
            if let Some(keeper) = &mut keeper {
                self.keep_state(keeper, run, &state, &optimiser, &best)?;
            }
        }
        self.net.params.values.clone_from(&best);
        let State { epochs, best, steps, .. } = state;
        Ok(Trained { epochs, best: best.epoch().unwrap_or(0), steps, resumed_at })
    }

    /// What is done needs its best numbers alone.
    fn keep_state(
        &self,
        keeper: &mut Keeper,
        run: &Run<'_>,
        state: &State,
        optimiser: &AdamW,
        best: &[f32],
    ) -> Result<(), CheckpointError> {
        let (m, v, optimiser_steps) = optimiser.state();
        let state = State { optimiser_steps, ..state.clone() };
        if state.is_done {
            return keeper.save(run.clock, &state, &[&[], &[], &[], best]);
        }
        keeper.save(run.clock, &state, &[&self.net.params.values, m, v, best])
    }

    /// The metric of what the steering head calls these rows, and its mean cross entropy.
    pub fn evaluate(&mut self, pool: &Pool, rows: Rows<'_>, recipe: &Recipe) -> (f64, f64) {
        let order: Vec<usize> = (0..rows.ids.len()).collect();
        let (mut calls, mut loss) = (vec![0; order.len()], 0.0);
        for batch in batches(&order, |i| rows.ids[i].len(), recipe.step_tokens) {
            let (ids, classes) = taken(rows, &batch);
            pool.enter(|| {
                let last = self.forward(pool, &ids);
                let units = self.net.units(pool, &self.pass.hidden, last);
                let (logits, _) = self.logits(pool, &units.units);
                loss += mean_loss(pool, &logits, &classes) * batch.len() as f64;
                let called = logits.chunks_exact(self.n_classes).map(predicted);
                called.zip(&batch).for_each(|(call, i)| calls[*i] = call);
            });
        }
        let value = metrics::value(recipe.metric, &calls, rows.classes, &order, self.n_classes);
        (value, loss / rows.ids.len().max(1) as f64)
    }

    /// What each layer that is there does for some rows: the first of them in a seeded order, about [`INFLUENCE_TOKENS`] of tokens.
    pub fn influence(&mut self, pool: &Pool, rows: Rows<'_>, seed: u64) -> Vec<Influence> {
        let order = encoder::order(rows.classes, seed, false);
        let Some(batch) = batches(&order, |i| rows.ids[i].len(), INFLUENCE_TOKENS).into_iter().next() else {
            return Vec::new();
        };
        let (ids, classes) = taken(rows, &batch);
        pool.enter(|| {
            let last = self.forward(pool, &ids);
            let loss = |hidden: &[f32]| {
                let units = self.net.units(pool, hidden, last.clone());
                mean_loss(pool, &self.logits(pool, &units.units).0, &classes)
            };
            let whole = loss(&self.pass.hidden);
            let width = self.net.width();
            let layers = self.net.layers().iter().enumerate().map(|(at, &layer)| {
                let (before, behind) = (self.net.rows_at(&self.pass, at), self.net.rows_at(&self.pass, at + 1));
                let angles =
                    last.iter().map(|row| angle(&before[row * width..][..width], &behind[row * width..][..width]));
                let angle = angles.sum::<f64>() / last.len() as f64;
                let without = self.net.without(pool, &self.net.params.values, &self.pass, at);
                Influence { layer, loss: loss(&without) - whole, angle }
            });
            layers.collect()
        })
    }

    /// Leaves layers out until `depth` are there, those first that do least; weighs the others again now and then.
    pub fn leave_out(
        &mut self,
        pool: &Pool,
        rows: Rows<'_>,
        depth: usize,
        recipe: &Recipe,
        seed: u64,
        progress: &mut dyn FnMut(Progress<'_>),
    ) {
        while self.net.layers().len() > depth.max(1) {
            let (present, total) = (self.net.layers().len(), None);
            progress(Progress { stage: "weighing layers", done: present as u64, total, unit: Unit::Steps });
            let layers = self.influence(pool, rows, seed);
            self.keep(&without_least(layers, recipe.by, LEFT_OUT_AT_ONCE.min(present - depth)));
        }
    }

    /// Leaves out all layers but these of the base's, for good.
    pub fn keep(&mut self, layers: &[usize]) {
        self.net.keep(layers);
        self.grads.clear();
    }

    /// PEFT's files with weights in IEEE halves, as they are served. `base`: what the configuration calls the base model.
    pub fn files(&self, base: &str) -> (String, Vec<u8>) {
        let params = &self.net.params;
        let tensors = params.tensors().iter().filter(|tensor| !HEAD.contains(&tensor.name.as_str()));
        let named =
            tensors.map(|tensor| (tensor.name.as_str(), tensor.shape.as_slice(), &params.values[tensor.range.clone()]));
        (lora::config(self.lora, base, Some(self.net.layers())), metier_model::format::write_f16(named))
    }
}

/// The steering head's tensors, behind the deltas.
const HEAD: [&str; 2] = ["head.weight", "head.bias"];

/// The layers that are left, ascending, when so many that do least are gone.
pub(super) fn without_least(mut layers: Vec<Influence>, by: Criterion, n: usize) -> Vec<usize> {
    let weight = |layer: &Influence| match by {
        Criterion::Loss => layer.loss,
        Criterion::Angle => layer.angle,
    };
    layers.sort_by(|a, b| weight(a).total_cmp(&weight(b)).then(a.layer.cmp(&b.layer)));
    let mut left: Vec<usize> = layers[n..].iter().map(|layer| layer.layer).collect();
    left.sort_unstable();
    left
}

/// Numbers of layers for shares of `n`: each fewer than the one before, at least one.
pub fn depths(n: usize, shares: &[f64]) -> Vec<usize> {
    let mut depths = Vec::new();
    for share in shares {
        // Not a layer more than the share says.
        let depth = ((n as f64 * share + 1e-9).floor() as usize).max(1);
        if depth < *depths.last().unwrap_or(&n) {
            depths.push(depth);
        }
    }
    depths
}

fn taken<'a>(rows: Rows<'a>, batch: &[usize]) -> (Vec<&'a [TokenId]>, Vec<usize>) {
    batch.iter().map(|&i| (rows.ids[i].as_slice(), rows.classes[i])).unzip()
}

fn mean_loss(pool: &Pool, logits: &[f32], classes: &[usize]) -> f64 {
    let targets: Vec<Option<usize>> = classes.iter().map(|class| Some(*class)).collect();
    cross_entropy(pool.isa(), logits, &targets, 0.0, 1.0, &mut vec![0.0; logits.len()])
}

/// Between two rows, as a share of a half turn.
pub(super) fn angle(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    if lengths > 0.0 { (dot(a, b) / lengths).clamp(-1.0, 1.0).acos() / std::f64::consts::PI } else { 0.0 }
}

/// A checkpoint's numbers, where they are of this network; of a phase that is done, the best alone.
fn fitting(state: &State, arrays: Vec<Vec<f32>>, n: usize) -> Option<[Vec<f32>; 4]> {
    let arrays = <[Vec<f32>; 4]>::try_from(arrays).ok()?;
    let running = if state.is_done { 0 } else { n };
    let expected = [running, running, running, if state.best.epoch().is_some() { n } else { 0 }];
    (arrays.each_ref().map(Vec::len) == expected && (!state.is_done || state.best.epoch().is_some())).then_some(arrays)
}
