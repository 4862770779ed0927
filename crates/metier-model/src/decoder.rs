//! A base decoder, opened: weights, tokenizer, chat template. Immutable and shared; [`crate::engine`] runs sequences over it.
//!
//! `gguf` and `folder` read the two containers; what they say is put together here.

mod folder;
mod gguf;

use std::{
    io,
    path::{Path, PathBuf},
};

use metier_kernels::Pool;

use crate::{
    Adapter,
    arch::{
        WeightsError, config_error,
        transformer::{Blueprint, Span, Transformer, WeightFormat, Workspace},
    },
    base::BaseId,
    cache::{KvFormat, KvSequence},
    chat::{ChatError, ChatMessage, ChatTemplate, Prompt},
    files::TensorFiles,
    format::FormatError,
    packed::{PackedCache, PackedOutcome},
    tokenizer::{TokenId, Tokenizer, TokenizerError},
};

/// Control tokens that end an answer wherever they exist.
const TURN_ENDS: [&str; 4] = ["<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>"];

/// A decoder cannot be opened, or cannot read.
#[derive(Debug, thiserror::Error)]
pub enum DecoderError {
    /// The file cannot be read.
    #[error("cannot read `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is malformed.
    #[error("cannot parse `{path}`")]
    Format {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: FormatError,
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
    /// A file is larger than any of its kind.
    #[error("`{path}` has {bytes} bytes, the limit is {limit}")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its bytes.
        bytes: u64,
        /// The most that is read.
        limit: u64,
    },
    /// The files do not belong together, or one is missing.
    #[error("`{path}` {problem}")]
    Files {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Weights and configuration do not make a network.
    #[error("cannot load the decoder from `{path}`")]
    Weights {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: WeightsError,
    },
    /// The tokenizer cannot be made.
    #[error("cannot load the tokenizer of `{path}`")]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: TokenizerError,
    },
    /// The chat template cannot be compiled.
    #[error("cannot use the chat template of `{path}`")]
    Template {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: ChatError,
    },
    /// More tokens than the model reads.
    #[error("{tokens} tokens do not fit into the context of {context}")]
    TooLong {
        /// Tokens given.
        tokens: usize,
        /// Tokens of the context.
        context: usize,
    },
    /// The adapter has another shape.
    #[error("the adapter was made for another base")]
    OtherBase,
    /// An id outside the vocabulary.
    #[error("token {token} lies outside the vocabulary of {vocabulary}")]
    UnknownToken {
        /// The id.
        token: TokenId,
        /// Ids must be below.
        vocabulary: usize,
    },
}

/// A Llama-type decoder with its tokenizer and chat template. `Send + Sync`.
pub struct Decoder {
    network: Transformer,
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    ends: Vec<TokenId>,
    base: BaseId,
    packed: PackedOutcome,
}

/// How a decoder is opened.
#[derive(Clone, Debug)]
pub struct DecoderOptions {
    /// How weights are kept in memory.
    pub weights: WeightFormat,
    /// Tokens that a sequence shall be able to have, at most what the network reads. `None`: what it is made for.
    ///
    /// Phi-3 and Phi-4 have two lists of rotary factors, one for texts up to the length of their training, one for longer ones.
    /// The list is chosen here, once, by this number: `None` means the short one and its length, a number beyond it the long one,
    /// which costs quality on short texts. (Transformers chooses anew at each call, and a text that grows over the border is then
    /// read with both.)
    pub context: Option<usize>,
    /// How keys and values are kept: what a running or remembered sequence needs of memory, and reads for each token.
    pub kv: KvFormat,
    /// Where packed weights are looked for, and kept for the next time; `None`: they are packed at every opening.
    pub packed: Option<PackedCache>,
}

impl DecoderOptions {
    /// Weights kept so, the context that the network is made for, keys and values as they were computed, no cache.
    pub fn new(weights: WeightFormat) -> Self {
        Self { weights, context: None, kv: KvFormat::F32, packed: None }
    }
}

/// What a container says.
struct Parts {
    files: TensorFiles,
    blueprint: Blueprint,
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    /// Tokens that end a text.
    ends: Vec<TokenId>,
    base: BaseId,
}

impl Decoder {
    /// Opens a GGUF file, the first of several that one was split into (`NAME-00001-of-00003.gguf`), or a folder of Hugging Face's
    /// kind (`config.json`, `tokenizer.json`, `model.safetensors` or its parts).
    pub fn open(path: &Path, weights: WeightFormat) -> Result<Self, DecoderError> {
        Self::open_with(path, DecoderOptions::new(weights))
    }

    /// As [`open`](Self::open), with more to say.
    pub fn open_with(path: &Path, options: DecoderOptions) -> Result<Self, DecoderError> {
        if path.extension().is_some_and(|extension| extension == "safetensors") && path.is_file() {
            let problem = "holds weights alone: open the folder that has `config.json` and `tokenizer.json` too";
            return Err(DecoderError::Files { path: path.to_owned(), problem: problem.to_owned() });
        }
        let parts = if path.is_dir() { folder::read(path, &options)? } else { gguf::read(path, &options)? };
        Self::assemble(parts, path, &options)
    }

    /// Opens a GGUF file that lies in memory, such as one of [`crate::tiny`].
    pub fn from_bytes(bytes: Vec<u8>, name: &str, weights: WeightFormat) -> Result<Self, DecoderError> {
        let options = DecoderOptions::new(weights);
        Self::assemble(gguf::from_bytes(bytes, name, &options)?, Path::new(name), &options)
    }

    fn assemble(parts: Parts, path: &Path, options: &DecoderOptions) -> Result<Self, DecoderError> {
        let Parts { files, blueprint, tokenizer, template, mut ends, base } = parts;
        let weights_error = |source| DecoderError::Weights { path: path.to_owned(), source };
        let rows = blueprint.config().vocabulary;
        if tokenizer.vocabulary() > rows {
            let problem = format!("{rows} rows for the tokenizer's {} tokens", tokenizer.vocabulary());
            return Err(weights_error(config_error(&blueprint.embedding_name(), problem)));
        }
        let template = template.map(|template| template.with_controls(tokenizer.specials())).transpose();
        let template = template.map_err(|source| DecoderError::Template { path: path.to_owned(), source })?;
        let weights = options.weights;
        let cache = options.packed.as_ref().filter(|cache| cache.is_for(weights, files.bytes()));
        let found = cache.and_then(|cache| cache.open(&base.digest, weights));
        let (network, all_found) =
            Transformer::load(files, blueprint, weights, found.as_ref()).map_err(weights_error)?;
        let packed = match cache {
            None => PackedOutcome::Off,
            Some(_) if all_found => PackedOutcome::Read,
            Some(cache) => match cache.write(&base.digest, weights, &network.quantised()) {
                Ok(bytes) => PackedOutcome::Written { bytes },
                Err(error) => PackedOutcome::NotWritten { problem: error.to_string() },
            },
        };
        let network = network.with_kv(options.kv);
        // Files of Gemma 3, Llama 3 and Phi name the end of a text, not always the end of a turn.
        let turns = TURN_ENDS.iter().filter_map(|text| tokenizer.id_of(text)).filter(|id| tokenizer.is_special(*id));
        ends.extend(turns);
        ends.sort();
        ends.dedup();
        Ok(Self { network, tokenizer, template, ends, base, packed })
    }

    /// Gives the base another name than its file's, e.g. the catalogue's.
    #[must_use]
    pub fn with_name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.base.name);
        self
    }

    /// Name and digest of the weights.
    pub fn base(&self) -> &BaseId {
        &self.base
    }

    /// Whether its weights were found packed.
    pub fn packed(&self) -> &PackedOutcome {
        &self.packed
    }

    /// Tokens that the model reads and writes in one sequence, at most.
    pub fn context_len(&self) -> usize {
        self.network.config().context
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The network.
    pub fn network(&self) -> &Transformer {
        &self.network
    }

    /// Tokens that end an answer.
    pub fn ends(&self) -> &[TokenId] {
        &self.ends
    }

    /// Writes a conversation as the model wants to see it; `tokenizer().encode_prompt` makes ids of it. `unix_s`: see
    /// [`ChatTemplate::render`].
    pub fn render_chat(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
        unix_s: Option<u64>,
    ) -> Result<Prompt, ChatError> {
        let template = self.template.as_ref();
        let template = template.ok_or_else(|| ChatError::Template("the file has none".to_owned()))?;
        template.render(messages, add_generation_prompt, unix_s)
    }

    /// The logits after each token of one text: for tests, perplexity and comparison with references.
    pub fn logits(&self, pool: &Pool, tokens: &[TokenId]) -> Result<Vec<Vec<f32>>, DecoderError> {
        self.logits_with(pool, tokens, None)
    }

    /// The same with an adapter, which must have been made for this base.
    pub fn logits_with(
        &self,
        pool: &Pool,
        tokens: &[TokenId],
        adapter: Option<&Adapter>,
    ) -> Result<Vec<Vec<f32>>, DecoderError> {
        let (context, vocabulary) = (self.context_len(), self.network.config().vocabulary);
        if tokens.len() > context {
            return Err(DecoderError::TooLong { tokens: tokens.len(), context });
        }
        if let Some(token) = tokens.iter().find(|id| id.0 as usize >= vocabulary) {
            return Err(DecoderError::UnknownToken { token: *token, vocabulary });
        }
        if !adapter.is_none_or(|adapter| adapter.fits(self.network.config())) {
            return Err(DecoderError::OtherBase);
        }
        if tokens.is_empty() {
            return Ok(Vec::new());
        }
        let mut cache = KvSequence::alone(self.network.config().cache(), tokens.len());
        let span = Span { tokens, cache: &mut cache, wanted: tokens.len(), adapter, hidden: false };
        let mut workspace = Workspace::default();
        let logits = pool.enter(|| self.network.forward(pool, &mut [span], &mut workspace).logits);
        Ok(logits.chunks_exact(vocabulary).map(<[f32]>::to_vec).collect())
    }
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Decoder({}, {:?})", self.base.name, self.network.config())
    }
}
