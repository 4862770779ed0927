//! Encoders of the BERT kind: every token sees every other, or those near it.
//!
//! **Question:** which hidden rows does this encoder make of these windows of ids? **In:** `config.json` and tensors of one of four
//! families; ids. **Out:** rows for each window, reduced by whoever asks. **Absent:** text, pooling, queues; heads such as those that
//! guess masked words; relative positions (MPNet, DeBERTa).
//!
//! ```text
//! BERT, RoBERTa, DistilBERT     x = LN(word[id] + position[i] + type[0])
//!                  each layer:  x = LN(x + O·attention(Q·x, K·x, V·x));  x = LN(x + D·gelu(U·x))
//!
//! ModernBERT                    x = LN(word[id])
//!                  each layer:  h = LN(x) (the first layer: h = x);  x = x + O·attention(turn(Q·h), turn(K·h), V·h)
//!                               h = LN(x);                           x = x + D·(gelu(G·h) ∘ U·h)
//!                  at the end:  LN(x)
//! ```
//!
//! Windows of a batch lie one after the other without padding; attention keeps them apart. Where there are windows for all
//! threads, each thread takes whole windows through the whole network: nobody waits for anybody between two products, and rows
//! stay in the thread's own cache. A few windows are computed together, every product cut by its outputs. Both give the same bits.

mod config;
mod forward;
mod plain;
mod weights;

use std::{
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use metier_kernels::Pool;

pub use config::{BertConfig, Biases, Family, MAX_POSITIONS, Positions};
use forward::{Buffers, Turns};
pub use plain::{PlainBert, PlainTensor, halves};
pub(crate) use weights::Names;
use weights::Weights;

use super::{WeightsError, linear::WeightFormat};
use crate::{base::Bytes, format::Safetensors, tokenizer::TokenId};

/// Windows for each thread, from which on threads take whole windows.
const MIN_WINDOWS_PER_THREAD: usize = 4;
/// Tokens of a thread's task, about: rows enough to use each weight often, and with their inner rows still in a cache of 1 MB.
const TASK_TOKENS: usize = 128;

/// Passes whose buffers are kept: more than there are threads is never needed.
const MAX_SPARE: usize = 256;
/// Rows of a pass whose buffers are kept, at most: several tasks' worth.
const MAX_SPARE_ROWS: usize = 512;

/// The network. The word table stays in the mapped file; everything else is packed.
pub struct Bert {
    config: BertConfig,
    /// Shared with networks that have other layers over the same tables.
    bytes: Arc<Bytes>,
    index: Arc<Safetensors>,
    weights: Weights,
    turns: Option<Turns>,
    /// Layers are not those of the file whose tables these are.
    tuned: bool,
    /// Of passes that are done.
    spare: Mutex<Vec<Buffers>>,
}

impl Bert {
    /// Checks the weights against the config and packs them.
    pub(crate) fn load(
        config: BertConfig,
        bytes: Bytes,
        index: Safetensors,
        format: WeightFormat,
    ) -> Result<Self, WeightsError> {
        let weights = Weights::load(&config, &bytes, &index, format)?;
        bytes.release();
        let turns = Turns::of(&config);
        Ok(Self {
            config,
            bytes: Arc::new(bytes),
            index: Arc::new(index),
            weights,
            turns,
            tuned: false,
            spare: Mutex::default(),
        })
    }

    /// The configuration.
    pub fn config(&self) -> &BertConfig {
        &self.config
    }

    /// The file that its tables lie in, and its index.
    pub(crate) fn file(&self) -> (&[u8], &Safetensors) {
        (&self.bytes, &self.index)
    }

    /// What its family calls its tensors.
    pub(crate) fn names(&self) -> Names {
        weights::names_of(self.config.family)
    }

    /// One row a window: what `reduce(hidden rows of the window, out)` makes of its last hidden rows `(len, width)`.
    /// `out`: (windows, width), zeros.
    ///
    /// # Panics
    ///
    /// Where a window is empty or longer than the longest, or an id lies outside the vocabulary: the encoder makes windows that
    /// do not.
    pub(crate) fn reduce(
        &self,
        pool: &Pool,
        windows: &[&[TokenId]],
        out: &mut [f32],
        reduce: &(dyn Fn(&[f32], &mut [f32]) + Sync),
    ) {
        let d = self.config.width;
        let tasks = tasks(windows, pool.threads());
        let lens: Vec<usize> = tasks.iter().map(|task| task.len() * d).collect();
        let out = &mut *out;
        pool.enter(|| {
            pool.run_pieces(out, &lens, &|i, out| {
                let windows = &windows[tasks[i].clone()];
                let mut buffers = self.spare().pop().unwrap_or_default();
                self.forward(pool, windows, &mut buffers);
                let hidden = &buffers.x;
                let mut from = 0;
                for (window, out) in windows.iter().zip(out.chunks_exact_mut(d)) {
                    let to = from + window.len() * d;
                    reduce(&hidden[from..to], out);
                    from = to;
                }
                self.keep(buffers);
            });
        });
    }

    /// The last hidden rows of one window: (ids, width).
    ///
    /// # Panics
    ///
    /// As [`reduce`](Self::reduce).
    pub(crate) fn hidden_rows(&self, pool: &Pool, ids: &[TokenId]) -> Vec<f32> {
        self.rows_of(pool, &[ids])
    }

    /// The last hidden rows of some windows under each other: (Σ lengths, width).
    ///
    /// # Panics
    ///
    /// As [`reduce`](Self::reduce).
    pub(crate) fn rows_of(&self, pool: &Pool, windows: &[&[TokenId]]) -> Vec<f32> {
        pool.enter(|| {
            let mut buffers = Buffers::default();
            self.forward(pool, windows, &mut buffers);
            buffers.x
        })
    }

    fn spare(&self) -> MutexGuard<'_, Vec<Buffers>> {
        // Whoever panicked left whole buffers: what is in them does not matter.
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the buffers of ordinary passes; those of a very long window go back to the system.
    fn keep(&self, buffers: Buffers) {
        let mut spare = self.spare();
        if buffers.x.len() <= MAX_SPARE_ROWS * self.config.width && spare.len() < MAX_SPARE {
            spare.push(buffers);
        }
    }
}

/// Ranges of windows that one thread takes through the network alone; one range of all where that would leave threads idle.
fn tasks(windows: &[&[TokenId]], threads: usize) -> Vec<Range<usize>> {
    if windows.len() < MIN_WINDOWS_PER_THREAD * threads || threads == 1 {
        return vec![0..windows.len(); usize::from(!windows.is_empty())];
    }
    let tokens: usize = windows.iter().map(|window| window.len()).sum();
    let n_tasks = tokens.div_ceil(TASK_TOKENS).next_multiple_of(threads);
    let (mut tasks, mut from, mut seen) = (Vec::with_capacity(n_tasks), 0, 0);
    for (i, window) in windows.iter().enumerate() {
        seen += window.len();
        // A task ends with the window that brings it to its share of all tokens.
        if seen * n_tasks >= (tasks.len() + 1) * tokens || i + 1 == windows.len() {
            tasks.push(from..i + 1);
            from = i + 1;
        }
    }
    tasks
}
