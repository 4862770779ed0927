//! What does a decoder make of texts, read as they will be read in service? Texts in; last rows at unit length out.
//!
//! The engine that serves, with the adapter in the form in which it is served and the layers that are kept: a head is fitted on exactly the
//! vectors that it will be given.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use metier_kernels::Pool;
use metier_model::{
    Adapter, Decoder, Engine, EngineLimits, LoraFormat, Progress, TokenId, Unit,
    engine::{Event, HiddenRequest, KeptLayers, LoadAdapterError, SubmitError},
    specialist::{AdapterFiles, hidden},
    tokenizer::TokenizerError,
};

/// Texts that are read at the same time.
const SEQUENCES: usize = 32;
/// Texts that are read together where speed is measured.
pub const SPEED_BATCH: usize = 8;
/// Keys and values of all of them together, in bytes: as much as a server has.
const KV_CACHE_BYTES: usize = 192 << 20;

/// A text cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It cannot be tokenised.
    #[error("cannot tokenise text {idx}")]
    Text {
        /// Its index.
        idx: usize,
        /// Why.
        #[source]
        source: TokenizerError,
    },
    /// The engine does not take it.
    #[error("the engine does not take text {idx}")]
    Submit {
        /// Its index.
        idx: usize,
        /// Why.
        #[source]
        source: SubmitError,
    },
    /// What was trained is no adapter of this decoder.
    #[error("cannot read the adapter")]
    Adapter(#[from] metier_model::AdapterError),
    /// The engine does not take the adapter.
    #[error("the engine does not take the adapter")]
    Load(#[from] LoadAdapterError),
}

/// The ids that are read of each text.
///
/// # Errors
///
/// Where one cannot be tokenised.
pub fn prompts(decoder: &Decoder, texts: &[&str]) -> Result<Vec<Vec<TokenId>>, ReadError> {
    let prompt =
        |(idx, text): (usize, &&str)| hidden::prompt(decoder, text).map_err(|source| ReadError::Text { idx, source });
    texts.iter().enumerate().map(prompt).collect()
}

/// A decoder under a specialist's adapter.
pub struct Reader {
    engine: Engine,
    adapter: metier_model::engine::AdapterId,
    kept: Option<KeptLayers>,
    /// Bytes of the adapter as it is served.
    pub adapter_bytes: usize,
}

impl Reader {
    /// Loads the adapter as a server does.
    ///
    /// # Errors
    ///
    /// Where the files are no adapter of this decoder.
    pub fn new(
        decoder: Arc<Decoder>,
        files: &AdapterFiles,
        kept: Option<KeptLayers>,
        format: LoraFormat,
    ) -> Result<Self, ReadError> {
        let config = decoder.network().config();
        let adapter = Adapter::from_bytes(files.config.as_bytes(), &files.weights, config, format)?;
        let adapter_bytes = adapter.bytes();
        let limits =
            EngineLimits { max_sequences: SEQUENCES, kv_cache_bytes: KV_CACHE_BYTES, ..EngineLimits::default() };
        let mut engine = Engine::new(decoder, limits);
        let adapter = engine.load_adapter(Arc::new(adapter))?;
        Ok(Self { engine, adapter, kept, adapter_bytes })
    }

    /// Time to read these texts, [`SPEED_BATCH`] of them at a time: all of a batch are there before the next begins.
    ///
    /// # Errors
    ///
    /// Where a text cannot be read.
    pub fn time(&mut self, pool: &Pool, texts: &[&str], clock: &dyn Fn() -> Duration) -> Result<Duration, ReadError> {
        let mut spent = Duration::ZERO;
        for batch in texts.chunks(SPEED_BATCH) {
            let start = clock();
            self.read_all(pool, batch, "measuring", &mut metier_model::progress::silent)?;
            spent += clock().saturating_sub(start);
        }
        Ok(spent)
    }

    /// One unit vector a text, in order; a text's vector does not depend on the others.
    ///
    /// # Errors
    ///
    /// Where a text cannot be read.
    pub fn read_all(
        &mut self,
        pool: &Pool,
        texts: &[&str],
        stage: &str,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Vec<Vec<f32>>, ReadError> {
        let prompts = prompts(self.engine.decoder(), texts)?;
        let mut vectors = vec![Vec::new(); texts.len()];
        let (mut next, mut done, mut open) = (0, 0u64, BTreeMap::new());
        while next < prompts.len() || !open.is_empty() {
            while next < prompts.len() && open.len() < 2 * SEQUENCES {
                let request = HiddenRequest {
                    prompt: prompts[next].clone(),
                    adapter: Some(self.adapter),
                    kept_layers: self.kept.clone(),
                    ..HiddenRequest::default()
                };
                match self.engine.submit_hidden(request) {
                    Ok(id) => drop(open.insert(id, next)),
                    Err(source) => {
                        // The next question finds nobody else's answers.
                        open.keys().for_each(|id| self.engine.cancel(*id));
                        return Err(ReadError::Submit { idx: next, source });
                    }
                }
                next += 1;
            }
            for event in self.engine.step(pool) {
                match event {
                    Event::Hidden { id, hidden } => {
                        if let Some(&at) = open.get(&id) {
                            vectors[at] = hidden::unit(&hidden);
                        }
                    }
                    Event::Done { id, .. } => {
                        if open.remove(&id).is_some() {
                            done += 1;
                            progress(Progress { stage, done, total: Some(texts.len() as u64), unit: Unit::Rows });
                        }
                    }
                    Event::Token { .. } | Event::Scored { .. } => {}
                }
            }
        }
        Ok(vectors)
    }
}
