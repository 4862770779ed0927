//! Text → embedding.
//!
//! **Question:** where does this text lie among all texts? **In:** a folder with `config.json`, `model.safetensors`,
//! `tokenizer.json` (and `modules.json` with what it names, `sentence_bert_config.json`, `tokenizer_config.json`, if any); texts.
//! **Out:** one unit vector a text. **Absent:** caches, nearest-neighbour search; prompts such as E5's `query: `, which are the
//! caller's text.
//!
//! The vector is the mean of the last hidden rows over all tokens, `[CLS]` and `[SEP]` included, or the row of `[CLS]` where the
//! folder says so, through the linear maps that the folder names, scaled to length 1: what sentence-transformers computes, scaled
//! where it would not be. A text longer than a window (as the folder says, else 256 tokens; `[CLS]` and `[SEP]` included) is cut into
//! consecutive windows without overlap; what is pooled of them is averaged by token count.
//!
//! A text's vector does not depend on the texts that it is embedded with, nor on their order, to the last bit.

mod folder;
mod queue;
mod tuned;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use folder::{Dense, Steps};
use metier_kernels::Pool;
use serde::{Deserialize, Serialize};

pub use queue::{Embedded, EncoderQueue, QueueError, QueueLimits, RequestId, STEP_TOKENS};

use crate::{
    Digest, Progress, Unit,
    arch::{
        WeightsError,
        bert::{Bert, BertConfig},
        config_error,
        transformer::WeightFormat,
    },
    base::{BaseId, Bytes},
    format::{FormatError, Safetensors},
    tokenizer::{TokenId, Tokenizer, TokenizerError},
};

/// Tokens of a window where the folder does not say, `[CLS]` and `[SEP]` included.
const DEFAULT_WINDOW_TOKENS: usize = 256;
/// Tokens that go through the network together: enough rows to keep the multipliers busy, small enough for the caches.
const BATCH_TOKENS: usize = 2048;
/// Bytes of a JSON file beside the weights, at most.
const MAX_JSON_BYTES: u64 = 64 << 20;
/// Bytes of a text, at most: above what the gateway lets through.
pub const MAX_TEXT_BYTES: usize = 4 << 20;
/// Texts of one batch of [`Encoder::embed_all`] that are tokenised ahead.
const TEXTS_AHEAD: usize = 4096;

/// An encoder cannot be opened or cannot embed.
#[derive(Debug, thiserror::Error)]
pub enum EncoderError {
    /// A file cannot be read.
    #[error("cannot read `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A JSON file is not what it should be.
    #[error("cannot parse `{path}`")]
    Json {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The weights file is malformed.
    #[error("cannot parse `{path}`")]
    Format {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: FormatError,
    },
    /// Weights and configuration do not make a network.
    #[error("cannot load the encoder from `{path}`")]
    Weights {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: WeightsError,
    },
    /// The tokenizer cannot be made.
    #[error("cannot load the tokenizer `{path}`")]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: TokenizerError,
    },
    /// A text cannot be encoded.
    #[error("cannot tokenise text {idx}")]
    Text {
        /// Its index among the texts given.
        idx: usize,
        /// Why.
        #[source]
        source: TokenizerError,
    },
    /// A text is longer than [`MAX_TEXT_BYTES`].
    #[error("text {idx} has {bytes} bytes, the limit is {MAX_TEXT_BYTES}")]
    TextTooLong {
        /// Its index among the texts given.
        idx: usize,
        /// Its length.
        bytes: usize,
    },
    /// The folder asks for a pooling other than the mean or `[CLS]`.
    #[error("`{path}` asks for a pooling that is not supported: only the mean of all tokens or the first token")]
    Pooling {
        /// The file.
        path: PathBuf,
    },
    /// `modules.json` asks for steps that are not followed.
    #[error("cannot follow `{path}`: {problem}")]
    Steps {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A window given by ids is empty, too long, or has an id outside the vocabulary.
    #[error("a window of {tokens} tokens does not fit: 1 to {limit} tokens with ids below {vocabulary}")]
    Window {
        /// Its length.
        tokens: usize,
        /// The longest.
        limit: usize,
        /// Ids must be below.
        vocabulary: usize,
    },
}

/// How an encoder's matrices are kept in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EncoderWeights {
    /// As in the file.
    #[default]
    F32,
    /// Quantised at load to 8 bits with a scale for each 32 weights; activations are quantised on the way, everything between
    /// two products stays f32. Another base: its vectors are close to those of `F32`, not equal.
    Int8,
}

impl std::fmt::Display for EncoderWeights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Int8 => "int8",
        })
    }
}

/// What becomes of a window's hidden rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// The first one.
    FirstToken,
}

/// A BERT-type encoder with its tokenizer. `Send + Sync`; calls share a [`Pool`] by turns.
pub struct Encoder {
    bert: Bert,
    tokenizer: Arc<Tokenizer>,
    base: BaseId,
    pooling: Pooling,
    dense: Vec<Dense>,
    window_tokens: usize,
    frame: (Vec<TokenId>, Vec<TokenId>),
}

impl Encoder {
    /// Opens a folder with `config.json`, `model.safetensors` and `tokenizer.json`, with f32 weights.
    pub fn open(dir: &Path) -> Result<Self, EncoderError> {
        Self::open_with(dir, EncoderWeights::F32)
    }

    /// As [`open`](Self::open), with weights in this form.
    pub fn open_with(dir: &Path, weights: EncoderWeights) -> Result<Self, EncoderError> {
        let steps = Steps::read(dir)?;
        let network = steps.network.as_path();
        let weights_error = |source| EncoderError::Weights { path: network.to_owned(), source };
        let path = network.join("config.json");
        let config = BertConfig::from_json(parse_json(&path, &read_text(&path)?)?).map_err(weights_error)?;
        let path = network.join("tokenizer.json");
        let tokenizer_error = |source| EncoderError::Tokenizer { path: path.clone(), source };
        let mut rules = read_text(&path)?;
        if steps.lower_case {
            rules = folder::lower_cased(parse_json(&path, &rules)?).to_string();
        }
        let tokenizer = Tokenizer::from_json(&rules).map_err(tokenizer_error)?;
        let frame = frame_of(&tokenizer).map_err(tokenizer_error)?;
        if tokenizer.vocabulary() > config.vocabulary {
            let problem = format!("{} rows for the tokenizer's {} tokens", config.vocabulary, tokenizer.vocabulary());
            return Err(weights_error(config_error("vocab_size", problem)));
        }
        let window_tokens = steps.window_tokens.unwrap_or(DEFAULT_WINDOW_TOKENS).min(config.max_tokens);
        if window_tokens <= frame.0.len() + frame.1.len() {
            let problem = format!("a window of {window_tokens} tokens has no room for text");
            return Err(weights_error(config_error("max_seq_length", problem)));
        }
        let mut width = config.width;
        for dense in &steps.dense {
            if dense.inputs() != width {
                let problem = format!("{} elements go in, but there are {width}", dense.inputs());
                return Err(weights_error(config_error("in_features", problem)));
            }
            width = dense.outputs();
        }
        let path = network.join("model.safetensors");
        let read_error = |source| EncoderError::Read { path: path.clone(), source };
        let digest = identity(Digest::of_file(&path).map_err(read_error)?, weights, &steps);
        let bytes = Bytes::map(&path).map_err(read_error)?;
        let index = Safetensors::parse(&bytes).map_err(|source| EncoderError::Format { path: path.clone(), source })?;
        let format = match weights {
            EncoderWeights::F32 => WeightFormat::F32,
            EncoderWeights::Int8 => WeightFormat::Int8,
        };
        let bert = Bert::load(config, bytes, index, format).map_err(weights_error)?;
        let name = dir.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let Steps { pooling, dense, .. } = steps;
        let base = BaseId { name, digest, weights: (weights != EncoderWeights::F32).then_some(weights) };
        Ok(Self { bert, tokenizer: Arc::new(tokenizer), base, pooling, dense, window_tokens, frame })
    }

    /// Gives the base another name than its folder's, e.g. the catalogue's.
    #[must_use]
    pub fn with_name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.base.name);
        self
    }

    /// Elements of an embedding.
    pub fn dim(&self) -> usize {
        self.dense.last().map_or_else(|| self.width(), Dense::outputs)
    }

    /// Elements of a hidden row, which is what is pooled.
    pub fn width(&self) -> usize {
        self.bert.config().width
    }

    /// Name and digest of the weights; one digest for each form of the weights and each way from them to a vector, so that a
    /// bundle that was calibrated on the vectors of one is never fed with those of another.
    pub fn base(&self) -> &BaseId {
        &self.base
    }

    /// Tokens of the longest window, `[CLS]` and `[SEP]` included.
    pub fn window_tokens(&self) -> usize {
        self.window_tokens
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Tokens that [`embed`](Self::embed) reads for this text, `[CLS]` and `[SEP]` of every window included.
    pub fn count_tokens(&self, text: &str) -> usize {
        self.windows_of(text).map_or(0, |windows| windows.iter().map(Vec::len).sum())
    }

    /// One unit vector a text.
    pub fn embed(&self, pool: &Pool, texts: &[&str]) -> Result<Vec<Vec<f32>>, EncoderError> {
        self.embed_all(pool, texts, &mut crate::progress::silent)
    }

    /// As [`embed`](Self::embed), for many texts: sorted by length, batched by tokens, telling how far it is.
    pub fn embed_all(
        &self,
        pool: &Pool,
        texts: &[&str],
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Vec<Vec<f32>>, EncoderError> {
        let mut out = Vec::with_capacity(texts.len());
        let total = Some(texts.len() as u64);
        for (chunk_idx, chunk) in texts.chunks(TEXTS_AHEAD).enumerate() {
            let mut windows: Vec<(usize, Vec<TokenId>)> = Vec::with_capacity(chunk.len());
            for (i, text) in chunk.iter().enumerate() {
                let idx = chunk_idx * TEXTS_AHEAD + i;
                let ids = self.checked_windows(idx, text)?;
                windows.extend(ids.into_iter().map(|window| (i, window)));
            }
            let mut order: Vec<usize> = (0..windows.len()).collect();
            order.sort_by_key(|&i| windows[i].1.len());
            let mut sums: Vec<Vec<f32>> = vec![Vec::new(); windows.len()];
            let mut done = 0;
            while done < order.len() {
                let batch = batch_of(&order[done..], &windows);
                let ids: Vec<&[TokenId]> = batch.iter().map(|&i| windows[i].1.as_slice()).collect();
                for (&i, sum) in batch.iter().zip(self.sums(pool, &ids)) {
                    sums[i] = sum;
                }
                done += batch.len();
                let texts_done = out.len() + chunk.len() * done / order.len();
                progress(Progress { stage: "embedding", done: texts_done as u64, total, unit: Unit::Rows });
            }
            let mut totals: Vec<(Vec<f32>, usize)> = vec![(vec![0.0; self.width()], 0); chunk.len()];
            for ((text, window), sum) in windows.iter().zip(&sums) {
                let (total, tokens) = &mut totals[*text];
                total.iter_mut().zip(sum).for_each(|(total, x)| *total += x);
                *tokens += window.len();
            }
            out.extend(totals.into_iter().map(|(sum, tokens)| self.finish(pool, sum, tokens)));
        }
        Ok(out)
    }

    /// The unit vector of one window of ids as the network is to read them, `[CLS]` and `[SEP]` included.
    pub fn embed_window(&self, pool: &Pool, ids: &[TokenId]) -> Result<Vec<f32>, EncoderError> {
        Ok(self.embed_windows(pool, &[ids])?.pop().expect("one window, one vector"))
    }

    /// The unit vector of each window.
    pub fn embed_windows(&self, pool: &Pool, windows: &[&[TokenId]]) -> Result<Vec<Vec<f32>>, EncoderError> {
        self.check_windows(windows, self.window_tokens)?;
        let sums = self.sums(pool, windows);
        Ok(sums.into_iter().zip(windows).map(|(sum, window)| self.finish(pool, sum, window.len())).collect())
    }

    /// The network's last hidden rows `(ids, width)`, before any pooling: for comparison with references. As many ids as the network
    /// has positions.
    pub fn hidden_rows(&self, pool: &Pool, ids: &[TokenId]) -> Result<Vec<f32>, EncoderError> {
        self.check_windows(&[ids], self.bert.config().max_tokens)?;
        Ok(self.bert.hidden_rows(pool, ids))
    }

    /// The last hidden rows of some windows under each other, `(Σ lengths, width)`, before any pooling; each window's are those that it has
    /// alone.
    pub fn token_rows(&self, pool: &Pool, windows: &[&[TokenId]]) -> Result<Vec<f32>, EncoderError> {
        self.check_windows(windows, self.window_tokens)?;
        Ok(self.bert.rows_of(pool, windows))
    }

    /// What stands before and behind the text's own tokens in every window.
    pub fn frame(&self) -> (&[TokenId], &[TokenId]) {
        (&self.frame.0, &self.frame.1)
    }

    fn check_windows(&self, windows: &[&[TokenId]], limit: usize) -> Result<(), EncoderError> {
        let vocabulary = self.bert.config().vocabulary;
        let fits =
            |ids: &&[TokenId]| (1..=limit).contains(&ids.len()) && ids.iter().all(|id| (id.0 as usize) < vocabulary);
        match windows.iter().find(|ids| !fits(ids)) {
            Some(ids) => Err(EncoderError::Window { tokens: ids.len(), limit, vocabulary }),
            None => Ok(()),
        }
    }

    /// The windows of text `idx` of some, if it is not too long.
    fn checked_windows(&self, idx: usize, text: &str) -> Result<Vec<Vec<TokenId>>, EncoderError> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(EncoderError::TextTooLong { idx, bytes: text.len() });
        }
        self.windows_of(text).map_err(|source| EncoderError::Text { idx, source })
    }

    /// A text's windows, framed; at least one.
    pub fn windows_of(&self, text: &str) -> Result<Vec<Vec<TokenId>>, TokenizerError> {
        let ids = self.tokenizer.encode(text)?;
        let (before, after) = &self.frame;
        let room = self.window_tokens - before.len() - after.len();
        let framed = |ids: &[TokenId]| [before, ids, after].concat();
        if ids.is_empty() {
            return Ok(vec![framed(&[])]);
        }
        Ok(ids.chunks(room).map(framed).collect())
    }

    /// Each window's vector times its tokens.
    fn sums(&self, pool: &Pool, windows: &[&[TokenId]]) -> Vec<Vec<f32>> {
        let d = self.width();
        let mut out = vec![0.0; windows.len() * d];
        self.bert.reduce(pool, windows, &mut out, &|hidden, out| match self.pooling {
            Pooling::Mean => {
                for row in hidden.chunks_exact(d) {
                    out.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
                }
            }
            Pooling::FirstToken => {
                let tokens = (hidden.len() / d) as f32;
                out.iter_mut().zip(hidden).for_each(|(sum, x)| *sum = x * tokens);
            }
        });
        out.chunks_exact(d).map(<[f32]>::to_vec).collect()
    }

    /// What was summed over `tokens` tokens → a text's unit vector.
    fn finish(&self, pool: &Pool, mut sum: Vec<f32>, tokens: usize) -> Vec<f32> {
        sum.iter_mut().for_each(|x| *x /= tokens as f32);
        let mut vector = self.dense.iter().fold(sum, |x, dense| dense.apply(pool, &x));
        let norm = vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt() as f32;
        if norm > 0.0 {
            vector.iter_mut().for_each(|x| *x /= norm);
        }
        vector
    }
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Encoder({}, {} dimensions)", self.base.name, self.dim())
    }
}

/// The weights file's digest for f32 and the mean (as bundles have recorded it from the start); else one derived from it.
fn identity(file: Digest, weights: EncoderWeights, steps: &Steps) -> Digest {
    let mut others = String::new();
    if weights == EncoderWeights::Int8 {
        others += " int8/32";
    }
    if steps.pooling == Pooling::FirstToken {
        others += " first-token";
    }
    for dense in &steps.dense {
        others += &format!(" dense {}", dense.digest);
    }
    if steps.lower_case {
        others += " lower-case";
    }
    if others.is_empty() { file } else { Digest::of(format!("encoder {file}{others}").as_bytes()) }
}

/// The first windows of `order` that fill a batch: at least one.
fn batch_of<'a>(order: &'a [usize], windows: &[(usize, Vec<TokenId>)]) -> &'a [usize] {
    let mut tokens = 0;
    let fits = order.iter().take_while(|&&i| {
        tokens += windows[i].1.len();
        tokens <= BATCH_TOKENS
    });
    &order[..fits.count().max(1)]
}

/// What the tokenizer puts before and after a text.
fn frame_of(tokenizer: &Tokenizer) -> Result<(Vec<TokenId>, Vec<TokenId>), TokenizerError> {
    let (plain, framed) = (tokenizer.encode("a")?, tokenizer.encode_framed("a")?);
    let at = framed.windows(plain.len().max(1)).position(|window| window == plain);
    let at = at.ok_or_else(|| TokenizerError::Json("the post-processor changes the text's own tokens".to_owned()))?;
    Ok((framed[..at].to_vec(), framed[at + plain.len()..].to_vec()))
}

fn read_text(path: &Path) -> Result<String, EncoderError> {
    let read = || {
        let len = std::fs::metadata(path)?.len();
        if len > MAX_JSON_BYTES {
            let problem = format!("{len} bytes are more than {MAX_JSON_BYTES}");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, problem));
        }
        std::fs::read_to_string(path)
    };
    read().map_err(|source| EncoderError::Read { path: path.to_owned(), source })
}

fn parse_json<T: for<'de> Deserialize<'de>>(path: &Path, text: &str) -> Result<T, EncoderError> {
    serde_json::from_str(text).map_err(|source| EncoderError::Json { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests;
