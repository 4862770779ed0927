//! *How does an encoder get other weights?* Its numbers go out to be tuned; a file of tuned tensors comes back as another encoder
//! that shares tokenizer and tables with this one: a specialist's own encoder is a delta, too.

use std::sync::Arc;

use super::{Encoder, EncoderError, EncoderWeights, Pooling};
use crate::{
    BaseId, Digest,
    arch::{
        bert::{Bert, PlainBert},
        config_error,
        transformer::WeightFormat,
    },
};

impl Encoder {
    /// What becomes of a window's hidden rows.
    pub fn pooling(&self) -> Pooling {
        self.pooling
    }

    /// The network's weights as numbers.
    ///
    /// # Errors
    ///
    /// Where this network cannot be tuned: norms before the blocks (ModernBERT), or linear maps behind the pooling.
    pub fn plain(&self) -> Result<PlainBert, EncoderError> {
        self.bert
            .plain()
            .and_then(|plain| self.check_plain().map(|()| plain))
            .map_err(|source| self.weights_error(source))
    }

    /// This encoder with the tensors of a file that [`halves`](crate::arch::bert::halves) wrote, its weights kept as f32 or in 8 bits.
    /// Texts longer than a window are still cut and averaged.
    ///
    /// # Errors
    ///
    /// Where the file does not hold this network's tensors.
    pub fn with_tensors(&self, file: &[u8], weights: EncoderWeights) -> Result<Self, EncoderError> {
        let format = match weights {
            EncoderWeights::F32 => WeightFormat::F32,
            EncoderWeights::Int8 => WeightFormat::Int8,
        };
        let load = || -> Result<Bert, _> {
            self.check_plain()?;
            self.bert.with_tensors(file, format)
        };
        let bert = load().map_err(|source| self.weights_error(source))?;
        let digest =
            Digest::of(format!("encoder {} tuned {} {weights}", self.base.digest, Digest::of(file)).as_bytes());
        let base = BaseId {
            name: format!("{}, tuned", self.base.name),
            digest,
            weights: (weights != EncoderWeights::F32).then_some(weights),
        };
        Ok(Self {
            bert,
            tokenizer: Arc::clone(&self.tokenizer),
            base,
            pooling: self.pooling,
            dense: Vec::new(),
            window_tokens: self.window_tokens,
            frame: self.frame.clone(),
        })
    }

    /// [`with_tensors`](Self::with_tensors) in the form that this encoder's own weights are kept in.
    pub fn tuned(&self, file: &[u8]) -> Result<Self, EncoderError> {
        self.with_tensors(file, self.base.weights.unwrap_or_default())
    }

    fn check_plain(&self) -> Result<(), crate::arch::WeightsError> {
        if self.dense.is_empty() {
            return Ok(());
        }
        Err(config_error("modules.json", "an encoder with linear maps behind its pooling cannot be tuned yet"))
    }

    fn weights_error(&self, source: crate::arch::WeightsError) -> EncoderError {
        EncoderError::Weights { path: self.base.name.clone().into(), source }
    }
}
