//! A base decoder, opened: weights, tokenizer, chat template. Immutable and shared; [`crate::engine`] runs sequences over it.

use std::{
    io,
    path::{Path, PathBuf},
};

use metier_kernels::Pool;

use crate::{
    Adapter, Digest,
    arch::{
        WeightsError, config_error,
        transformer::{Span, Transformer, Wanted, WeightFormat},
    },
    base::{BaseId, Bytes},
    cache::KvSequence,
    chat::{ChatError, ChatMessage, ChatTemplate, Prompt},
    format::{FormatError, Gguf},
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
}

impl Decoder {
    /// Opens a GGUF file.
    pub fn open(gguf: &Path, weights: WeightFormat) -> Result<Self, DecoderError> {
        let read_error = |source| DecoderError::Read { path: gguf.to_owned(), source };
        let digest = Digest::of_file(gguf).map_err(read_error)?;
        let bytes = Bytes::map(gguf).map_err(read_error)?;
        let name = gguf.file_stem().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        Self::load(bytes, BaseId { name, digest }, gguf, weights)
    }

    /// Opens a GGUF file that lies in memory, such as one of [`crate::tiny`].
    pub fn from_bytes(bytes: Vec<u8>, name: &str, weights: WeightFormat) -> Result<Self, DecoderError> {
        let base = BaseId { name: name.to_owned(), digest: Digest::of(&bytes) };
        Self::load(Bytes::Owned(bytes), base, Path::new(name), weights)
    }

    fn load(bytes: Bytes, base: BaseId, path: &Path, weights: WeightFormat) -> Result<Self, DecoderError> {
        let path = || path.to_owned();
        let gguf = Gguf::parse(&bytes).map_err(|source| DecoderError::Format { path: path(), source })?;
        let network = Transformer::load(bytes, &gguf, weights)
            .map_err(|source| DecoderError::Weights { path: path(), source })?;
        let tokenizer =
            Tokenizer::from_gguf(&gguf).map_err(|source| DecoderError::Tokenizer { path: path(), source })?;
        if tokenizer.vocabulary() > network.config().vocabulary {
            let problem =
                format!("{} rows for the tokenizer's {} tokens", network.config().vocabulary, tokenizer.vocabulary());
            let source = config_error("token_embd.weight", problem);
            return Err(DecoderError::Weights { path: path(), source });
        }
        let word = |key| gguf.texts("tokenizer.ggml.tokens")?.get(gguf.count(key)?).map(String::as_str);
        let [begin, end] =
            ["tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id"].map(|key| word(key).unwrap_or(""));
        let template = gguf.text("tokenizer.chat_template").map(ChatTemplate::new).transpose();
        let template = template.map(|template| template.map(|template| template.with_tokens(begin, end)));
        let template = template.map_err(|source| DecoderError::Template { path: path(), source })?;
        let named = |key| gguf.count(key).and_then(|id| u32::try_from(id).ok()).map(TokenId);
        let mut ends: Vec<TokenId> =
            ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"].into_iter().filter_map(named).collect();
        // Files of Gemma 3, Llama 3 and Phi name the end of a text there, not always the end of a turn.
        let turns = TURN_ENDS.iter().filter_map(|text| tokenizer.id_of(text)).filter(|id| tokenizer.is_special(*id));
        ends.extend(turns);
        ends.sort();
        ends.dedup();
        Ok(Self { network, tokenizer, template, ends, base })
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

    /// Writes a conversation as the model wants to see it; `tokenizer().encode_prompt` makes ids of it.
    pub fn render_chat(&self, messages: &[ChatMessage], add_generation_prompt: bool) -> Result<Prompt, ChatError> {
        let template = self.template.as_ref();
        let template = template.ok_or_else(|| ChatError::Template("the file has none".to_owned()))?;
        template.render(messages, add_generation_prompt)
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
        let span = Span { tokens, cache: &mut cache, wanted: Wanted::All, adapter };
        let logits = pool.enter(|| self.network.forward(pool, &mut [span]));
        Ok(logits.chunks_exact(vocabulary).map(<[f32]>::to_vec).collect())
    }
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Decoder({}, {:?})", self.base.name, self.network.config())
    }
}
