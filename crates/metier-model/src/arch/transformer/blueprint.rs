//! What does a container say about its network, beside the numbers? Which tensors are called how, and how they are written down.

use std::borrow::Cow;

use super::{
    config::{Around, Family, TransformerConfig},
    hugging_face::{self, Style},
    settings::Settings,
};
use crate::{arch::WeightsError, files::TensorFiles, format::Gguf};

/// The embedding table, in GGUF's words.
pub(super) const EMBEDDING: &str = "token_embd.weight";
/// LongRoPE's factors as tensors of a GGUF file.
pub(super) const SHORT_FACTORS: &str = "rope_factors_short.weight";
/// See [`SHORT_FACTORS`].
pub(super) const LONG_FACTORS: &str = "rope_factors_long.weight";

/// A network before its weights are read.
pub(crate) struct Blueprint {
    pub(super) config: TransformerConfig,
    pub(super) family: &'static Family,
    pub(super) names: Names,
    /// What is added to the weights of norms: Gemma's are written down as their distance from 1 outside GGUF.
    pub(super) norm_offset: f32,
    /// Whether the embedding table is the head as well; `None`: it is where the file has no head.
    pub(super) tied: Option<bool>,
    /// What rotary frequencies are divided by, one a pair; `None`: what tensors of the file say, if any.
    pub(super) rope_divisors: Option<Vec<f32>>,
}

/// How a container calls tensors.
#[derive(Clone, Copy)]
pub(super) enum Names {
    Gguf,
    HuggingFace(Style),
}

impl Names {
    /// A tensor's name in the file, from GGUF's name of it.
    pub(super) fn of(self, name: &str) -> Cow<'_, str> {
        match self {
            Self::Gguf => Cow::Borrowed(name),
            Self::HuggingFace(style) => Cow::Owned(hugging_face::tensor_name(name, style)),
        }
    }

    /// The setting that says which network it is.
    pub(super) fn architecture_key(self) -> &'static str {
        match self {
            Self::Gguf => "general.architecture",
            Self::HuggingFace(_) => "model_type",
        }
    }

    /// Whether a tensor that no network takes may be passed over.
    pub(super) fn may_be_left(self, name: &str) -> bool {
        match self {
            Self::Gguf => false,
            // Frequencies that old files hold although the configuration says them.
            Self::HuggingFace(_) => name.ends_with(".rotary_emb.inv_freq"),
        }
    }
}

impl Blueprint {
    /// Shape of the network.
    pub(crate) fn config(&self) -> &TransformerConfig {
        &self.config
    }

    /// What the file calls the embedding table.
    pub(crate) fn embedding_name(&self) -> Cow<'static, str> {
        self.names.of(EMBEDDING)
    }

    /// What a GGUF file says; `files` holds its tensors, and those of its other parts. `wanted_context`: see
    /// [`DecoderOptions::context`](crate::decoder::DecoderOptions::context).
    pub(crate) fn from_gguf(
        gguf: &Gguf,
        files: &TensorFiles,
        wanted_context: Option<usize>,
    ) -> Result<Self, WeightsError> {
        let architecture = gguf.text("general.architecture").unwrap_or("");
        let family = Family::named(architecture)?;
        let vocabulary = files.tensor(EMBEDDING).map_or(0, |table| table.shape.first().copied().unwrap_or(0));
        let around = Around { vocabulary, two_factors: files.has(SHORT_FACTORS), wanted_context };
        let config = TransformerConfig::read(&Settings::from_gguf(gguf, architecture), family, around)?;
        Ok(Self { config, family, names: Names::Gguf, norm_offset: 0.0, tied: None, rope_divisors: None })
    }
}
