//! Text → embedding.
//!
//! **Question:** where does this text lie among all texts? **In:** a folder with `config.json`, `model.safetensors`,
//! `tokenizer.json` (and `sentence_bert_config.json`, if any); texts. **Out:** one unit vector a text. **Absent:** caches,
//! nearest-neighbour search, queues.
//!
//! The vector is the mean of the last hidden rows over all tokens, `[CLS]` and `[SEP]` included, scaled to length 1: what
//! sentence-transformers computes for this family. A text longer than a window (256 tokens with `[CLS]` and `[SEP]`) is cut into
//! consecutive windows without overlap; their means are averaged by token count, then scaled.
//!
//! A text's vector does not depend on the texts that it is embedded with, nor on their order, to the last bit.

use std::{
    io,
    path::{Path, PathBuf},
};

use metier_kernels::Pool;
use serde::Deserialize;

use crate::{
    Digest, Progress, Unit,
    arch::{
        WeightsError,
        bert::{Bert, BertConfig},
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

/// A BERT-type encoder with its tokenizer. `Send + Sync`; calls share a [`Pool`] by turns.
pub struct Encoder {
    bert: Bert,
    tokenizer: Tokenizer,
    base: BaseId,
    window_tokens: usize,
    frame: (Vec<TokenId>, Vec<TokenId>),
}

#[derive(Deserialize)]
struct SentenceConfig {
    max_seq_length: usize,
}

impl Encoder {
    /// Opens a folder with `config.json`, `model.safetensors` and `tokenizer.json`.
    pub fn open(dir: &Path) -> Result<Self, EncoderError> {
        let config_path = dir.join("config.json");
        let config: BertConfig = parse_json(&config_path, &read_text(&config_path)?)?;
        let tokenizer_path = dir.join("tokenizer.json");
        let tokenizer_error = |source| EncoderError::Tokenizer { path: tokenizer_path.clone(), source };
        let tokenizer = Tokenizer::from_json(&read_text(&tokenizer_path)?).map_err(tokenizer_error)?;
        let frame = frame_of(&tokenizer).map_err(tokenizer_error)?;
        let weights_error = |source| EncoderError::Weights { path: dir.to_owned(), source };
        if tokenizer.vocabulary() > config.vocab_size {
            let problem = format!("{} rows for the tokenizer's {} tokens", config.vocab_size, tokenizer.vocabulary());
            return Err(weights_error(crate::arch::config_error("vocab_size", problem)));
        }
        let sentence_path = dir.join("sentence_bert_config.json");
        let wanted = if sentence_path.exists() {
            parse_json::<SentenceConfig>(&sentence_path, &read_text(&sentence_path)?)?.max_seq_length
        } else {
            DEFAULT_WINDOW_TOKENS
        };
        let window_tokens = wanted.min(config.max_position_embeddings);
        if window_tokens <= frame.0.len() + frame.1.len() {
            let problem = format!("a window of {window_tokens} tokens has no room for text");
            return Err(weights_error(crate::arch::config_error("max_seq_length", problem)));
        }
        let path = dir.join("model.safetensors");
        let read_error = |source| EncoderError::Read { path: path.clone(), source };
        let digest = Digest::of_file(&path).map_err(read_error)?;
        let bytes = Bytes::map(&path).map_err(read_error)?;
        let index = Safetensors::parse(&bytes).map_err(|source| EncoderError::Format { path: path.clone(), source })?;
        let bert = Bert::load(config, bytes, index).map_err(weights_error)?;
        let name = dir.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        Ok(Self { bert, tokenizer, base: BaseId { name, digest }, window_tokens, frame })
    }

    /// Gives the base another name than its folder's, e.g. the catalogue's.
    #[must_use]
    pub fn with_name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.base.name);
        self
    }

    /// Elements of an embedding.
    pub fn dim(&self) -> usize {
        self.bert.config().hidden_size
    }

    /// Name and digest of the weights.
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
                let ids = self.windows_of(text).map_err(|source| EncoderError::Text { idx, source })?;
                windows.extend(ids.into_iter().map(|window| (i, window)));
            }
            let mut order: Vec<usize> = (0..windows.len()).collect();
            order.sort_by_key(|&i| windows[i].1.len());
            let mut sums: Vec<Vec<f32>> = vec![Vec::new(); windows.len()];
            let mut done = 0;
            while done < order.len() {
                let batch = batch_of(&order[done..], &windows);
                let ids: Vec<&[TokenId]> = batch.iter().map(|&i| windows[i].1.as_slice()).collect();
                for (&i, sum) in batch.iter().zip(self.sum_rows(pool, &ids)) {
                    sums[i] = sum;
                }
                done += batch.len();
                let texts_done = out.len() + chunk.len() * done / order.len();
                progress(Progress { stage: "embedding", done: texts_done as u64, total, unit: Unit::Rows });
            }
            let mut totals: Vec<(Vec<f32>, usize)> = vec![(vec![0.0; self.dim()], 0); chunk.len()];
            for ((text, window), sum) in windows.iter().zip(&sums) {
                let (total, tokens) = &mut totals[*text];
                total.iter_mut().zip(sum).for_each(|(total, x)| *total += x);
                *tokens += window.len();
            }
            out.extend(totals.into_iter().map(|(sum, tokens)| unit_mean(sum, tokens)));
        }
        Ok(out)
    }

    /// The unit vector of one window of ids as the network is to read them, `[CLS]` and `[SEP]` included.
    pub fn embed_window(&self, pool: &Pool, ids: &[TokenId]) -> Result<Vec<f32>, EncoderError> {
        let (limit, vocabulary) = (self.window_tokens, self.bert.config().vocab_size);
        if ids.is_empty() || ids.len() > limit || ids.iter().any(|id| id.0 as usize >= vocabulary) {
            return Err(EncoderError::Window { tokens: ids.len(), limit, vocabulary });
        }
        let sum = self.sum_rows(pool, &[ids]).pop().expect("one window, one sum");
        Ok(unit_mean(sum, ids.len()))
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

    /// The sum of the last hidden rows of each window.
    fn sum_rows(&self, pool: &Pool, windows: &[&[TokenId]]) -> Vec<Vec<f32>> {
        let d = self.dim();
        let hidden = pool.enter(|| self.bert.forward(pool, windows));
        let mut rows = hidden.chunks_exact(d);
        windows
            .iter()
            .map(|window| {
                let mut sum = vec![0.0; d];
                for row in rows.by_ref().take(window.len()) {
                    sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
                }
                sum
            })
            .collect()
    }
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Encoder({}, {} dimensions)", self.base.name, self.dim())
    }
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

fn unit_mean(mut sum: Vec<f32>, tokens: usize) -> Vec<f32> {
    sum.iter_mut().for_each(|x| *x /= tokens as f32);
    let norm = sum.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt() as f32;
    if norm > 0.0 {
        sum.iter_mut().for_each(|x| *x /= norm);
    }
    sum
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
