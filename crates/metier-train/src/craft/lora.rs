//! The trade of adapters: prompts with their answers in, PEFT's two files of deltas out.
//!
//! **Question:** which low-rank deltas over this decoder? **In:** a decoder of Llama's kind, rows of ids, a recipe. **Out:** files that
//! the engine's [`adapter`](metier_model::adapter) room, Transformers and vLLM read. **Absent:** texts and templates: whoever makes rows
//! knows how its prompts will be asked.
//!
//! A step takes whole rows, packed without padding, up to about `step_tokens`. The loss is the mean over answer tokens; a prompt's own
//! tokens are read and not learnt.

use std::{collections::BTreeMap, time::Duration};

use metier_kernels::Pool;
use metier_model::{Progress, TokenId, Unit, arch::transformer::PlainTransformer, specialist::mix};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    checkpoint::{CheckpointError, Keeper},
    decoder::{self, Criterion, INFLUENCE_TOKENS, Influence, LEFT_OUT_AT_ONCE},
    encoder::StepLog,
    linear::shuffle,
};
use crate::{
    grad::{
        Segments,
        llama::{LlamaNet, LoraConfig, MAPS, Pass, Targets},
    },
    objective::distil::Soft,
    optim::{AdamW, Group, Schedule, Settings},
};

/// Time that a prediction takes, about.
const PROBE: Duration = Duration::from_secs(1);
/// Steps of a prediction, at most: clocks may stand still.
const MAX_PROBE_STEPS: usize = 4;
/// Most validation rows whose loss is looked at after each epoch.
const MAX_VALIDATION_ROWS: usize = 256;

/// How deltas are trained.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// Rank and strength.
    pub lora: LoraConfig,
    /// Passes over the rows.
    pub epochs: usize,
    /// Tokens of a step, about; a row that is longer makes a step alone.
    pub step_tokens: usize,
    /// Greatest step length.
    pub learning_rate: f32,
    /// Pull towards 0.
    pub weight_decay: f32,
    /// Share of steps in which the step length rises.
    pub warm_up: f32,
    /// Epochs without a better one after which training ends.
    pub patience: usize,
    /// What a teacher's word weighs, where rows hold one.
    pub teaching: Option<Teaching>,
}

/// How a student listens.
#[derive(Clone, Debug, PartialEq)]
pub struct Teaching {
    /// Name and digest, so that a checkpoint of another lesson is none of this one's.
    pub teacher: String,
    /// Of the divergence; the gold answer's is what is left of 1.
    pub weight: f32,
    /// What logits are divided by.
    pub temperature: f32,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            lora: LoraConfig { r: 16, alpha: 32.0 },
            epochs: 3,
            step_tokens: 1024,
            learning_rate: 2e-4,
            weight_decay: 0.01,
            warm_up: 0.05,
            patience: 2,
            teaching: None,
        }
    }
}

/// A prompt and the answer that should follow; both at least one token.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    /// Read, not learnt.
    pub prompt: Vec<TokenId>,
    /// Learnt.
    pub answer: Vec<TokenId>,
    /// What a teacher says of each answer token; empty: none was asked.
    pub soft: Vec<Soft>,
}

/// Deltas cannot be trained.
#[derive(Debug, thiserror::Error)]
pub enum LoraError {
    /// A row does not fit.
    #[error(
        "row {idx} has {prompt} prompt and {answer} answer tokens: each needs one, and both together at most {limit}"
    )]
    Row {
        /// Its index.
        idx: usize,
        /// Tokens of its prompt.
        prompt: usize,
        /// Tokens of its answer.
        answer: usize,
        /// Tokens of the context.
        limit: usize,
    },
    /// There are no rows.
    #[error("there are no rows to learn from")]
    NoRows,
    /// The loss is no number any more.
    #[error("training diverged at step {step}: the loss is no finite number; lower the learning rate")]
    Diverged {
        /// The step.
        step: u64,
    },
    /// What was learnt cannot be kept.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

/// What training runs on.
pub struct Run<'a> {
    /// Threads.
    pub pool: &'a Pool,
    /// Of order and first numbers.
    pub seed: u64,
    /// Time since the build began.
    pub clock: &'a dyn Fn() -> Duration,
    /// When training shall have ended.
    pub deadline: Duration,
}

/// One pass over the rows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochLog {
    /// From 1.
    pub epoch: usize,
    /// Mean loss of its steps.
    pub loss: f64,
    /// Mean loss of an answer token of the validation rows.
    pub validation_loss: f64,
}

/// How training went.
#[derive(Clone, Debug, PartialEq)]
pub struct Trained {
    /// Of each epoch that ran.
    pub epochs: Vec<EpochLog>,
    /// Which of them the deltas are of, from 1: the least loss on validation rows.
    pub best: usize,
    /// Epochs that the budget and the recipe allowed.
    pub planned: usize,
    /// Every step.
    pub steps: Vec<StepLog>,
    /// The step at which an earlier run was taken up.
    pub resumed_at: Option<u64>,
    /// Seconds that all planned epochs were predicted to take.
    pub predicted_seconds: f64,
}

/// What came of a training.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The deltas are those of the best epoch.
    Trained(Trained),
    /// Not one epoch is predicted to end in time.
    Skipped {
        /// Time of one epoch.
        needed: Duration,
        /// Time there was.
        left: Duration,
    },
}

/// Where training is: what a checkpoint holds beside numbers.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct State {
    planned: usize,
    predicted_seconds: f64,
    /// Steps that were made.
    step: u64,
    optimiser_steps: i32,
    /// Of the epoch that is under way.
    loss_sum: f64,
    epochs: Vec<EpochLog>,
    best: usize,
    /// Bits of the least validation loss: a text of it could be another number.
    best_loss: u64,
    steps: Vec<StepLog>,
}

/// A trainer with its state: deltas, means of derivatives.
pub struct Tuner {
    net: LlamaNet,
    lora: LoraConfig,
    /// Weight and temperature of a teacher.
    teaching: (f32, f32),
    optimiser: AdamW,
    grads: Vec<f32>,
    pass: Pass,
    context: usize,
    /// Layers of the base.
    n_layers: usize,
}

impl Tuner {
    /// Deltas that change nothing yet.
    pub fn new(plain: PlainTransformer, recipe: &Recipe, seed: u64) -> Self {
        let (context, n_layers) = (plain.config.context, plain.config.layers);
        let net = LlamaNet::new(plain, recipe.lora, seed);
        let len = net.params.values.len();
        let groups = vec![Group { range: 0..len, learning_rate: recipe.learning_rate, decay: recipe.weight_decay }];
        let optimiser = AdamW::new(Settings::default(), groups, len);
        let teaching = recipe.teaching.as_ref().map_or((0.0, 1.0), |of| (of.weight, of.temperature));
        Self {
            net,
            lora: recipe.lora,
            teaching,
            optimiser,
            grads: vec![0.0; len],
            pass: Pass::default(),
            context,
            n_layers,
        }
    }

    /// The network with its deltas.
    pub fn net(&self) -> &LlamaNet {
        &self.net
    }

    /// Puts other deltas in the place of those there are: the numbers of every tensor by PEFT's name.
    ///
    /// # Panics
    ///
    /// Where one is missing or has another length.
    pub fn start_from(&mut self, tensors: &BTreeMap<String, Vec<f32>>) {
        for tensor in self.net.params.tensors().to_vec() {
            self.net.params.values[tensor.range].copy_from_slice(&tensors[&tensor.name]);
        }
    }

    /// What each layer that is there does for some rows: the first of them in a seeded order, about [`INFLUENCE_TOKENS`] of tokens.
    pub fn influence(&mut self, pool: &Pool, rows: &[Row], seed: u64) -> Vec<Influence> {
        let mut order: Vec<usize> = (0..rows.len()).collect();
        shuffle(&mut order, seed);
        let Some(batch) = batches(&order, |i| len(&rows[i]), INFLUENCE_TOKENS).into_iter().next() else {
            return Vec::new();
        };
        let batch: Vec<&Row> = batch.iter().map(|&i| &rows[i]).collect();
        let Self { net, pass, .. } = self;
        pool.enter(|| {
            let targets = forward(net, pool, &batch, pass);
            let whole = net.loss_alone(pool, pass, &targets);
            let (width, values) = (net.width(), &net.params.values);
            let mut weighed = Vec::new();
            for (at, &layer) in net.layers().iter().enumerate() {
                let (before, behind) = (net.rows_at(pass, at), net.rows_at(pass, at + 1));
                let row = |rows: &[f32], row: usize| rows[row * width..][..width].to_vec();
                let angles = targets.iter().map(|(at, _)| decoder::angle(&row(before, *at), &row(behind, *at)));
                let angle = angles.sum::<f64>() / targets.len() as f64;
                let without = net.without(pool, values, pass, at);
                weighed.push(Influence { layer, loss: net.loss_of(pool, &without, &targets) - whole, angle });
            }
            weighed
        })
    }

    /// Leaves layers out until `depth` are there, those first that do least; weighs the others again now and then.
    pub fn leave_out(
        &mut self,
        pool: &Pool,
        rows: &[Row],
        depth: usize,
        recipe: &Recipe,
        seed: u64,
        progress: &mut dyn FnMut(Progress<'_>),
    ) {
        while self.net.layers().len() > depth.max(1) {
            let present = self.net.layers().len();
            progress(Progress { stage: "weighing layers", done: present as u64, total: None, unit: Unit::Steps });
            let layers = self.influence(pool, rows, seed);
            let kept = decoder::without_least(layers, Criterion::Loss, LEFT_OUT_AT_ONCE.min(present - depth));
            self.keep(&kept, recipe);
        }
    }

    /// Leaves out all layers but these of the base's, for good.
    pub fn keep(&mut self, layers: &[usize], recipe: &Recipe) {
        self.net.keep(layers);
        let len = self.net.params.values.len();
        let groups = vec![Group { range: 0..len, learning_rate: recipe.learning_rate, decay: recipe.weight_decay }];
        self.optimiser = AdamW::new(Settings::default(), groups, len);
        self.grads = vec![0.0; len];
    }

    /// One step over these rows, of `share` of the greatest length: mean loss of the answer tokens, and the derivative's length.
    pub fn step(&mut self, pool: &Pool, rows: &[&Row], share: f32) -> (f64, f64) {
        pool.enter(|| {
            let loss = self.gradient(pool, rows);
            if !loss.is_finite() {
                return (loss, f64::NAN);
            }
            let Self { net, optimiser, grads, .. } = self;
            (loss, optimiser.step(pool, share, &mut net.params.values, grads))
        })
    }

    /// Mean loss of the answer tokens; its derivative is added to `grads`.
    fn gradient(&mut self, pool: &Pool, rows: &[&Row]) -> f64 {
        let Self { net, grads, pass, teaching, .. } = self;
        let targets = forward(net, pool, rows, pass);
        let softs: Vec<Option<&Soft>> =
            rows.iter().flat_map(|row| (0..row.answer.len()).map(|i| row.soft.get(i))).collect();
        let (loss, dhidden) = net.taught_loss(pool, pass, &targets, &softs, *teaching);
        if loss.is_finite() {
            net.backward(pool, &net.params.values, pass, dhidden, grads);
        }
        loss
    }

    /// Mean loss of the answer tokens of these rows.
    fn loss_of(&mut self, pool: &Pool, rows: &[Row], step_tokens: usize) -> f64 {
        let order: Vec<usize> = (0..rows.len()).collect();
        let (mut sum, mut tokens) = (0.0, 0usize);
        for batch in batches(&order, |i| len(&rows[i]), step_tokens) {
            let batch: Vec<&Row> = batch.iter().map(|&i| &rows[i]).collect();
            let Self { net, pass, .. } = self;
            let loss = pool.enter(|| {
                let targets = forward(net, pool, &batch, pass);
                net.loss_alone(pool, pass, &targets) * targets.len() as f64
            });
            sum += loss;
            tokens += batch.iter().map(|row| row.answer.len()).sum::<usize>();
        }
        sum / tokens.max(1) as f64
    }

    fn check(&self, rows: &[Row]) -> Result<(), LoraError> {
        let misfit = |row: &Row| row.prompt.is_empty() || row.answer.is_empty() || len(row) > self.context;
        if let Some(idx) = rows.iter().position(misfit) {
            let (prompt, answer) = (rows[idx].prompt.len(), rows[idx].answer.len());
            return Err(LoraError::Row { idx, prompt, answer, limit: self.context });
        }
        if rows.is_empty() { Err(LoraError::NoRows) } else { Ok(()) }
    }

    /// Predicted time of one epoch with its look at the validation rows.
    ///
    /// # Errors
    ///
    /// Where a row does not fit.
    pub fn epoch_time(
        &mut self,
        run: &Run<'_>,
        rows: &[Row],
        validation: &[Row],
        recipe: &Recipe,
    ) -> Result<Duration, LoraError> {
        self.check(rows)?;
        self.check(validation)?;
        let order: Vec<usize> = (0..rows.len()).collect();
        let validation = &validation[..validation.len().min(MAX_VALIDATION_ROWS)];
        Ok(self.probe(run, rows, validation, &batches(&order, |i| len(&rows[i]), recipe.step_tokens)))
    }

    /// Time of one epoch with its look at the validation rows, by about a second of steps that change nothing.
    fn probe(&mut self, run: &Run<'_>, rows: &[Row], validation: &[Row], batches: &[Vec<usize>]) -> Duration {
        let start = (run.clock)();
        let (mut tokens, mut spent) = (0usize, Duration::ZERO);
        for batch in batches.iter().take(MAX_PROBE_STEPS) {
            let batch: Vec<&Row> = batch.iter().map(|&i| &rows[i]).collect();
            run.pool.enter(|| self.gradient(run.pool, &batch));
            tokens += batch.iter().map(|row| len(row)).sum::<usize>();
            spent = (run.clock)().saturating_sub(start);
            if spent >= PROBE {
                break;
            }
        }
        self.grads.fill(0.0);
        let count = |rows: &[Row]| rows.iter().map(len).sum::<usize>() as f64;
        // The way forth is a third of a step.
        spent.mul_f64((count(rows) + count(validation) / 3.0) / tokens.max(1) as f64)
    }

    /// Trains on all rows until the epochs that fit into the time are over, or validation rows are no better for a while; ends with the
    /// deltas of the best epoch. With a keeper, goes on where an earlier run of the same plan was killed, and comes to the same numbers.
    ///
    /// # Errors
    ///
    /// Where a row does not fit, training diverges or the disk refuses a checkpoint.
    #[allow(clippy::too_many_arguments, reason = "the whole of a training run")]
    pub fn train(
        &mut self,
        run: &Run<'_>,
        rows: &[Row],
        validation: &[Row],
        recipe: &Recipe,
        mut keeper: Option<&mut Keeper>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Outcome, LoraError> {
        self.check(rows)?;
        self.check(validation)?;
        let validation = &validation[..validation.len().min(MAX_VALIDATION_ROWS)];
        let order = |epoch: usize| {
            let mut order: Vec<usize> = (0..rows.len()).collect();
            shuffle(&mut order, run.seed ^ mix(epoch as u64 + 1));
            batches(&order, |i| len(&rows[i]), recipe.step_tokens)
        };
        let mut best_values = Vec::new();
        let kept = keeper.as_ref().and_then(|keeper| keeper.load::<State>());
        let (mut state, resumed_at) = match kept
            .and_then(|(state, arrays)| self.take_up(state, arrays, &mut best_values))
        {
            Some(state) => {
                let at = state.step;
                (state, Some(at))
            }
            None => {
                let needed = self.probe(run, rows, validation, &order(0));
                let left = run.deadline.saturating_sub((run.clock)());
                let fit =
                    if needed.is_zero() { usize::MAX } else { (left.as_secs_f64() / needed.as_secs_f64()) as usize };
                if fit == 0 {
                    return Ok(Outcome::Skipped { needed, left });
                }
                let planned = recipe.epochs.min(fit);
                let predicted_seconds = needed.as_secs_f64() * planned as f64;
                (State { planned, predicted_seconds, ..State::default() }, None)
            }
        };
        let epochs: Vec<Vec<Vec<usize>>> = (0..state.planned).map(order).collect();
        let total: u64 = epochs.iter().map(|batches| batches.len() as u64).sum();
        let schedule = Schedule { steps: total, warm_up: ((total as f32 * recipe.warm_up) as u64).max(1), floor: 0.0 };
        if let Some(keeper) = &mut keeper {
            self.keep_state(keeper, run, &state, &best_values)?;
        }
        let mut first = 0u64; // step of the epoch's first batch
        for (epoch, batches) in epochs.iter().enumerate() {
            let from = first;
            first += batches.len() as u64;
            if epoch < state.epochs.len() {
                continue;
            }
            if epoch >= state.best + recipe.patience && epoch > 0 {
                break;
            }
            for batch in &batches[(state.step - from) as usize..] {
                let step = state.step;
                progress(Progress { stage: "training the adapter", done: step, total: Some(total), unit: Unit::Steps });
                let batch: Vec<&Row> = batch.iter().map(|&i| &rows[i]).collect();
                let share = schedule.at(step);
                let (loss, gradient_norm) = self.step(run.pool, &batch, share);
                if !loss.is_finite() || !gradient_norm.is_finite() {
                    return Err(LoraError::Diverged { step });
                }
                let tokens = batch.iter().map(|row| len(row)).sum();
                let learning_rate = recipe.learning_rate * share;
                state.steps.push(StepLog { step, loss, gradient_norm, learning_rate, tokens });
                state.loss_sum += loss;
                state.step += 1;
                if let Some(keeper) = keeper.as_mut().filter(|keeper| keeper.is_due((run.clock)())) {
                    self.keep_state(keeper, run, &state, &best_values)?;
                }
            }
            let validation_loss = self.loss_of(run.pool, validation, recipe.step_tokens);
            state.epochs.push(EpochLog {
                epoch: epoch + 1,
                loss: state.loss_sum / batches.len() as f64,
                validation_loss,
            });
            state.loss_sum = 0.0;
            if state.best == 0 || validation_loss < f64::from_bits(state.best_loss) {
                (state.best, state.best_loss) = (epoch + 1, validation_loss.to_bits());
                best_values.clone_from(&self.net.params.values);
            }
            if let Some(keeper) = &mut keeper {
                self.keep_state(keeper, run, &state, &best_values)?;
            }
        }
        self.net.params.values.clone_from(&best_values);
        let State { planned, epochs, best, steps, predicted_seconds, .. } = state;
        Ok(Outcome::Trained(Trained { epochs, best, planned, steps, resumed_at, predicted_seconds }))
    }

    fn keep_state(&self, keeper: &mut Keeper, run: &Run<'_>, state: &State, best: &[f32]) -> Result<(), LoraError> {
        let (m, v, optimiser_steps) = self.optimiser.state();
        let state = State { optimiser_steps, ..state.clone() };
        Ok(keeper.save(run.clock, &state, &[&self.net.params.values, m, v, best])?)
    }

    /// Goes on from a checkpoint; `None` where it is none of this network's.
    fn take_up(&mut self, state: State, arrays: Vec<Vec<f32>>, best: &mut Vec<f32>) -> Option<State> {
        let [values, m, v, best_values] = <[Vec<f32>; 4]>::try_from(arrays).ok()?;
        let n = self.net.params.values.len();
        let fits = [&values, &m, &v].iter().all(|array| array.len() == n);
        if !fits || (best_values.len() != n && !best_values.is_empty()) || best_values.is_empty() != (state.best == 0) {
            return None;
        }
        self.net.params.values = values;
        self.optimiser.restore(&m, &v, state.optimiser_steps);
        *best = best_values;
        Some(state)
    }

    /// Trains on all rows, in another seeded order every epoch.
    ///
    /// # Errors
    ///
    /// Where a row does not fit or training diverges.
    pub fn learn(
        &mut self,
        pool: &Pool,
        rows: &[Row],
        recipe: &Recipe,
        seed: u64,
        progress: &mut dyn FnMut(Progress<'_>),
        log: &mut dyn FnMut(&StepLog),
    ) -> Result<(), LoraError> {
        self.check(rows)?;
        let epochs: Vec<Vec<Vec<usize>>> = (0..recipe.epochs)
            .map(|epoch| {
                let mut order: Vec<usize> = (0..rows.len()).collect();
                shuffle(&mut order, seed ^ mix(epoch as u64 + 1));
                batches(&order, |i| len(&rows[i]), recipe.step_tokens)
            })
            .collect();
        let total: u64 = epochs.iter().map(|batches| batches.len() as u64).sum();
        let schedule = Schedule { steps: total, warm_up: ((total as f32 * recipe.warm_up) as u64).max(1), floor: 0.0 };
        for (step, batch) in epochs.iter().flatten().enumerate() {
            let step = step as u64;
            progress(Progress { stage: "training the adapter", done: step, total: Some(total), unit: Unit::Steps });
            let batch: Vec<&Row> = batch.iter().map(|&i| &rows[i]).collect();
            let share = schedule.at(step);
            let (loss, gradient_norm) = self.step(pool, &batch, share);
            if !loss.is_finite() || !gradient_norm.is_finite() {
                return Err(LoraError::Diverged { step });
            }
            let tokens = batch.iter().map(|row| len(row)).sum();
            log(&StepLog { step, loss, gradient_norm, learning_rate: recipe.learning_rate * share, tokens });
        }
        Ok(())
    }

    /// PEFT's files: `adapter_config.json`, and the weights in f32 for `adapter_model.safetensors`. `base`: what the configuration calls the
    /// base model.
    pub fn files(&self, base: &str) -> (String, Vec<u8>) {
        (config(self.lora, base, None), metier_model::format::write_f32(self.tensors()))
    }

    /// The same with weights in IEEE halves, as they are served.
    pub fn files_in_halves(&self, base: &str) -> (String, Vec<u8>) {
        (config(self.lora, base, self.layers()), metier_model::format::write_f16(self.tensors()))
    }

    /// The layers that are there, where some are not.
    fn layers(&self) -> Option<&[usize]> {
        Some(self.net.layers()).filter(|layers| layers.len() < self.n_layers)
    }

    fn tensors(&self) -> impl Iterator<Item = (&str, &[usize], &[f32])> {
        let params = &self.net.params;
        let tensors = params.tensors().iter();
        tensors.map(|tensor| (tensor.name.as_str(), tensor.shape.as_slice(), &params.values[tensor.range.clone()]))
    }
}

/// `adapter_config.json` as PEFT writes it. `layers`: those of the base that have deltas; `None`: all.
pub(super) fn config(lora: LoraConfig, base: &str, layers: Option<&[usize]>) -> String {
    let mut config = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.r,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": MAPS.map(|map| map.rsplit('.').next().unwrap_or(map)),
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "use_dora": false,
        "use_rslora": false,
        "modules_to_save": null,
    });
    if let Some(layers) = layers {
        config["layers_to_transform"] = json!(layers);
    }
    serde_json::to_string_pretty(&config).expect("a JSON value is JSON")
}

fn len(row: &Row) -> usize {
    row.prompt.len() + row.answer.len()
}

/// The way forth over packed rows; where answers stand.
fn forward(net: &LlamaNet, pool: &Pool, rows: &[&Row], pass: &mut Pass) -> Targets {
    let ids: Vec<TokenId> = rows.iter().flat_map(|row| row.prompt.iter().chain(&row.answer).copied()).collect();
    let segments = Segments::of(rows.iter().map(|row| len(row)));
    net.forward(pool, &net.params.values, &ids, &segments, pass);
    let targets = rows.iter().zip(segments.ranges()).flat_map(|(row, range)| {
        // The row before an answer token says it.
        let first = range.start + row.prompt.len() - 1;
        row.answer.iter().enumerate().map(move |(i, id)| (first + i, *id))
    });
    targets.collect()
}

/// Cuts an order into batches of whole rows of at most `limit` tokens, at least one row each.
pub(super) fn batches(order: &[usize], len: impl Fn(usize) -> usize, limit: usize) -> Vec<Vec<usize>> {
    let (mut all, mut tokens) = (Vec::<Vec<usize>>::new(), 0);
    for &i in order {
        tokens += len(i);
        match all.last_mut() {
            Some(batch) if tokens <= limit => batch.push(i),
            _ => {
                tokens = len(i);
                all.push(vec![i]);
            }
        }
    }
    all
}
