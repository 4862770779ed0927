//! Texts → embeddings, for rungs that read them. A trait, so that tests need no model.

use std::error::Error;

use metier_kernels::Pool;
use metier_model::{BaseId, Encoder, Progress};

/// An encoder: frozen, or the start of a tuned one.
pub trait Embed {
    /// Length of an embedding.
    fn dim(&self) -> usize;
    /// Which model it is.
    fn base(&self) -> BaseId;
    /// One unit vector a text, in order; a text's vector does not depend on the others.
    fn embed_all(
        &self,
        pool: &Pool,
        texts: &[&str],
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Vec<Vec<f32>>, Box<dyn Error + Send + Sync>>;
    /// The encoder itself, where there is one whose layers can be tuned.
    fn as_encoder(&self) -> Option<&Encoder> {
        None
    }
}

impl Embed for Encoder {
    fn dim(&self) -> usize {
        Self::dim(self)
    }

    fn base(&self) -> BaseId {
        Self::base(self).clone()
    }

    fn embed_all(
        &self,
        pool: &Pool,
        texts: &[&str],
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Vec<Vec<f32>>, Box<dyn Error + Send + Sync>> {
        Ok(Self::embed_all(self, pool, texts, progress)?)
    }

    fn as_encoder(&self) -> Option<&Encoder> {
        Some(self)
    }
}
