//! The trade of adapters: prompts with their answers in, PEFT's two files of deltas out.
//!
//! **Question:** which low-rank deltas over this decoder? **In:** a decoder of Llama's blocks, rows of ids, a recipe. **Out:** files that
//! the engine's [`adapter`](metier_model::adapter) room, Transformers and vLLM read. **Absent:** texts and templates: whoever makes rows
//! knows how its prompts will be asked.
//!
//! A step takes whole rows, packed without padding, up to about `step_tokens`. The loss is the mean over answer tokens; a prompt's own
//! tokens are read and not learnt.

use std::collections::BTreeMap;

use metier_kernels::Pool;
use metier_model::{Progress, TokenId, Unit, arch::transformer::PlainTransformer, specialist::mix};
use serde_json::json;

use super::{encoder::StepLog, linear::shuffle};
use crate::{
    grad::{
        Segments,
        llama::{LlamaNet, LoraConfig, MAPS, Pass},
    },
    optim::{AdamW, Group, Schedule, Settings},
};

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
        }
    }
}

/// A prompt and the answer that should follow; both at least one token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Read, not learnt.
    pub prompt: Vec<TokenId>,
    /// Learnt.
    pub answer: Vec<TokenId>,
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
}

/// A trainer with its state: deltas, means of derivatives.
pub struct Tuner {
    net: LlamaNet,
    lora: LoraConfig,
    optimiser: AdamW,
    grads: Vec<f32>,
    pass: Pass,
    context: usize,
}

impl Tuner {
    /// Deltas that change nothing yet.
    pub fn new(plain: PlainTransformer, recipe: &Recipe, seed: u64) -> Self {
        let context = plain.config.context;
        let net = LlamaNet::new(plain, recipe.lora, seed);
        let len = net.params.values.len();
        let groups = vec![Group { range: 0..len, learning_rate: recipe.learning_rate, decay: recipe.weight_decay }];
        let optimiser = AdamW::new(Settings::default(), groups, len);
        Self { net, lora: recipe.lora, optimiser, grads: vec![0.0; len], pass: Pass::default(), context }
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

    /// One step over these rows, of `share` of the greatest length: mean loss of the answer tokens, and the derivative's length.
    pub fn step(&mut self, pool: &Pool, rows: &[&Row], share: f32) -> (f64, f64) {
        pool.enter(|| {
            let Self { net, optimiser, grads, pass, .. } = self;
            let ids: Vec<TokenId> = rows.iter().flat_map(|row| row.prompt.iter().chain(&row.answer).copied()).collect();
            let segments = Segments::of(rows.iter().map(|row| row.prompt.len() + row.answer.len()));
            let targets: Vec<(usize, TokenId)> = rows
                .iter()
                .zip(segments.ranges())
                .flat_map(|(row, range)| {
                    // The row before an answer token says it.
                    let first = range.start + row.prompt.len() - 1;
                    row.answer.iter().enumerate().map(move |(i, id)| (first + i, *id))
                })
                .collect();
            net.forward(pool, &net.params.values, &ids, &segments, pass);
            let (loss, dhidden) = net.loss(pool, pass, &targets);
            if !loss.is_finite() {
                return (loss, f64::NAN);
            }
            net.backward(pool, &net.params.values, pass, dhidden, grads);
            (loss, optimiser.step(pool, share, &mut net.params.values, grads))
        })
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
        if rows.is_empty() {
            return Err(LoraError::NoRows);
        }
        let len = |row: &Row| row.prompt.len() + row.answer.len();
        let misfit = |row: &Row| row.prompt.is_empty() || row.answer.is_empty() || len(row) > self.context;
        if let Some(idx) = rows.iter().position(misfit) {
            let (prompt, answer) = (rows[idx].prompt.len(), rows[idx].answer.len());
            return Err(LoraError::Row { idx, prompt, answer, limit: self.context });
        }
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
        let config = json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": self.lora.r,
            "lora_alpha": self.lora.alpha,
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
        let params = &self.net.params;
        let tensors = params
            .tensors()
            .iter()
            .map(|tensor| (tensor.name.as_str(), tensor.shape.as_slice(), &params.values[tensor.range.clone()]));
        let config = serde_json::to_string_pretty(&config).expect("a JSON value is JSON");
        (config, metier_model::format::write_f32(tensors))
    }
}

/// Cuts an order into batches of whole rows of at most `limit` tokens, at least one row each.
fn batches(order: &[usize], len: impl Fn(usize) -> usize, limit: usize) -> Vec<Vec<usize>> {
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
