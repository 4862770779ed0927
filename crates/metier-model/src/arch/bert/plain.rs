//! An encoder's weights as plain numbers, for whoever changes them, and the file that carries the changed ones.
//!
//! **Question:** which numbers make this network, under which names; and how does a network get other ones? **In:** a loaded
//! [`Bert`]; a file of changed tensors. **Out:** numbers in one fixed order; the file's bytes; another `Bert` that shares the tables of
//! words and positions with the first. **Absent:** training itself; families whose norms stand before the blocks.

use std::sync::{Arc, Mutex};

use super::{
    super::{WeightsError, config_error, linear::WeightFormat},
    Bert, BertConfig,
    weights::{Loader, Weights},
};
use crate::format::{Safetensors, write_f16};

/// One tensor outside the tables.
#[derive(Clone, Debug, PartialEq)]
pub struct PlainTensor {
    /// As the file calls it, without what stands before every name.
    pub name: String,
    /// One or two sizes.
    pub shape: Vec<usize>,
}

/// Weights of an encoder with norms behind its blocks.
pub struct PlainBert {
    /// The shape.
    pub config: BertConfig,
    /// (vocabulary, width)
    pub words: Vec<f32>,
    /// (positions, width), the row of the first token type added.
    pub positions: Vec<f32>,
    /// What `values` holds, in this order: norm of the embeddings (weight, bias); of each layer: weights of Q, K, V, their biases, output
    /// map (weight, bias), its norm, up, down, their norm.
    pub tensors: Vec<PlainTensor>,
    /// All tensors, one after the other.
    pub values: Vec<f32>,
}

impl Bert {
    /// The weights as numbers, read from the file again.
    ///
    /// # Errors
    ///
    /// Where norms stand before the blocks (ModernBERT), or where layers are not those of the file.
    pub(crate) fn plain(&self) -> Result<PlainBert, WeightsError> {
        if self.tuned {
            return Err(config_error("encoder", "its layers were tuned already: tune those of its base"));
        }
        let config = self.config.clone();
        let tensors = tensors_of(&config)?;
        let loader = Loader::of(&config, &self.bytes, &self.index, WeightFormat::F32);
        let mut values = Vec::new();
        for tensor in &tensors {
            values.extend(loader.values(&tensor.name, &tensor.shape)?);
        }
        let table = self.index.tensor(&self.bytes, &self.weights.word_table).expect("found at load");
        let words = table.to_f32()?;
        Ok(PlainBert { words, positions: self.weights.positions.clone(), config, tensors, values })
    }

    /// The same network with the tensors of this file in the place of its own; tables of words and positions are shared.
    pub(crate) fn with_tensors(&self, file: &[u8], format: WeightFormat) -> Result<Self, WeightsError> {
        tensors_of(&self.config)?;
        let index = Safetensors::parse(file)?;
        let mut loader = Loader::of(&self.config, file, &index, format);
        loader.prefix = "";
        let weights = Weights::with_layers(&self.weights, &self.config, &loader)?;
        Ok(Self {
            config: self.config.clone(),
            bytes: Arc::clone(&self.bytes),
            index: Arc::clone(&self.index),
            weights,
            turns: None,
            tuned: true,
            spare: Mutex::default(),
        })
    }
}

/// Names and shapes in the order of [`PlainBert::values`].
fn tensors_of(config: &BertConfig) -> Result<Vec<PlainTensor>, WeightsError> {
    if config.is_pre_norm() {
        let problem = "encoders with norms before their blocks (ModernBERT) cannot be tuned yet: take a BERT, RoBERTa or DistilBERT";
        return Err(config_error("model_type", problem));
    }
    let names = super::weights::names_of(config.family);
    let (d, inner) = (config.width, config.inner);
    let mut tensors = Vec::new();
    let mut add = |name: String, shape: &[usize]| tensors.push(PlainTensor { name, shape: shape.to_vec() });
    let norm = |add: &mut dyn FnMut(String, &[usize]), name: &str| {
        add(format!("{name}.weight"), &[d]);
        add(format!("{name}.bias"), &[d]);
    };
    norm(&mut add, names.embedding_norm);
    for i in 0..config.layers {
        let of = |part: &str| format!("{}.{i}.{part}", names.layer);
        for part in names.qkv {
            add(format!("{}.weight", of(part)), &[d, d]);
        }
        for part in names.qkv {
            add(format!("{}.bias", of(part)), &[d]);
        }
        let mut linear = |part: &str, n: usize, k: usize| {
            add(format!("{}.weight", of(part)), &[n, k]);
            add(format!("{}.bias", of(part)), &[n]);
        };
        linear(names.output, d, d);
        norm(&mut add, &of(names.attention_norm));
        let mut linear = |part: &str, n: usize, k: usize| {
            add(format!("{}.weight", of(part)), &[n, k]);
            add(format!("{}.bias", of(part)), &[n]);
        };
        linear(names.up, inner, d);
        linear(names.down, d, inner);
        norm(&mut add, &of(names.norm));
    }
    Ok(tensors)
}

/// The bytes of a safetensors file with these tensors in IEEE halves: what `Encoder::with_tensors` reads.
///
/// # Errors
///
/// Names a tensor that holds what no half can be.
///
/// # Panics
///
/// Where `values` is not as long as the tensors.
pub fn halves(tensors: &[PlainTensor], values: &[f32]) -> Result<Vec<u8>, WeightsError> {
    let mut from = 0;
    let mut all = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        let len: usize = tensor.shape.iter().product();
        let part = &values[from..from + len];
        if !part.iter().all(|x| half::f16::from_f32(*x).is_finite()) {
            return Err(WeightsError::NotFinite(tensor.name.clone()));
        }
        all.push((tensor.name.as_str(), tensor.shape.as_slice(), part));
        from += len;
    }
    assert_eq!(from, values.len(), "as many values as the tensors hold");
    Ok(write_f16(all.into_iter()))
}
