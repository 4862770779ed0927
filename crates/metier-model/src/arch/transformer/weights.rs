//! Which tensors make the network, and do they fit its configuration?

use std::{
    collections::BTreeSet,
    num::NonZero,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use metier_kernels::quant::QuantMatrix;

use super::{
    Transformer, TransformerConfig, WeightFormat,
    blueprint::{Blueprint, EMBEDDING, LONG_FACTORS, SHORT_FACTORS},
    rope::Rope,
};
use crate::{
    arch::{
        WeightsError, config_error, expect_shape, finite,
        linear::{Linear, Matrix},
    },
    files::TensorFiles,
    format::Tensor,
    packed::PackedFile,
};

/// The head, in GGUF's words.
const HEAD: &str = "output";

pub(super) struct Layer {
    pub(super) attention_norm: Vec<f32>,
    pub(super) qkv: Linear, // rows: Q, K, V under each other
    /// Weights of a query head's norm and of a key head's: (head_dim).
    pub(super) head_norms: Option<[Vec<f32>; 2]>,
    pub(super) output: Linear,
    pub(super) post_attention_norm: Option<Vec<f32>>,
    pub(super) ffn_norm: Vec<f32>,
    pub(super) gate_up: Linear, // rows: gate, up under each other
    pub(super) down: Linear,
    pub(super) post_ffn_norm: Option<Vec<f32>>,
}

/// Takes tensors out of files and remembers which: what is left over would be a network that is not computed here. Tensors are asked
/// for by GGUF's names; errors call them what the file calls them.
struct Loader<'a> {
    files: &'a TensorFiles,
    blueprint: &'a Blueprint,
    format: WeightFormat,
    packed: Option<&'a PackedFile>,
    /// Whether all matrices so far were found packed.
    all_found: AtomicBool,
    taken: Mutex<BTreeSet<String>>,
}

impl<'a> Loader<'a> {
    fn has(&self, name: &str) -> bool {
        self.files.has(&self.blueprint.names.of(name))
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor<'a>, WeightsError> {
        let name = self.blueprint.names.of(name).into_owned();
        let tensor = expect_shape(self.files.tensor(&name), &name, shape);
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).insert(name);
        tensor
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, WeightsError> {
        finite(self.tensor(name, &[len])?)
    }

    /// Weights of a norm.
    fn norm(&self, name: &str, len: usize) -> Result<Vec<f32>, WeightsError> {
        let mut weights = self.vector(name, len)?;
        weights.iter_mut().for_each(|weight| *weight += self.blueprint.norm_offset);
        Ok(weights)
    }

    /// The rows of several maps of one input under each other; `parts`: (name, outputs). `key`: what they are called together. Biases are
    /// taken if they are there.
    fn linear(&self, key: &str, parts: &[(String, usize)], k: usize) -> Result<Linear, WeightsError> {
        let tensors = parts
            .iter()
            .map(|(name, n)| self.tensor(&format!("{name}.weight"), &[*n, k]))
            .collect::<Result<Vec<_>, _>>()?;
        let mut linear = self.found(key, &tensors).map_or_else(|| Linear::pack(&tensors, self.format), Ok)?;
        if parts.iter().any(|(name, _)| self.has(&format!("{name}.bias"))) {
            let biases = parts.iter().map(|(name, n)| self.vector(&format!("{name}.bias"), *n));
            linear.bias = Some(biases.collect::<Result<Vec<_>, _>>()?.concat());
        }
        Ok(linear)
    }

    /// The map of these tensors, if it was packed before.
    fn found(&self, key: &str, tensors: &[Tensor<'_>]) -> Option<Linear> {
        let n = tensors.iter().map(Tensor::rows).sum();
        let found = self.packed.and_then(|packed| packed.matrix(key, n, tensors[0].cols()));
        if found.is_none() {
            self.all_found.store(false, Ordering::Relaxed);
        }
        found.map(|parts| Linear { matrix: Matrix::Quant(parts), bias: None })
    }

    fn layer(&self, config: &TransformerConfig, i: usize) -> Result<Layer, WeightsError> {
        let TransformerConfig { width, inner, head_dim, .. } = *config;
        let (q_len, kv_len) = (config.q_len(), config.kv_len());
        let name = |part: &str| format!("blk.{i}.{part}");
        let norm = |part: &str, len: usize| self.norm(&name(&format!("{part}.weight")), len);
        let post = |part: &str| config.post_norms.then(|| norm(part, width)).transpose();
        // Phi-3's files hold Q, K and V in one tensor, gate and up in another.
        let qkv = if self.has(&name("attn_qkv.weight")) {
            vec![(name("attn_qkv"), q_len + 2 * kv_len)]
        } else {
            vec![(name("attn_q"), q_len), (name("attn_k"), kv_len), (name("attn_v"), kv_len)]
        };
        let gate_up = if self.has(&name("ffn_gate.weight")) || !self.has(&name("attn_qkv.weight")) {
            vec![(name("ffn_gate"), inner), (name("ffn_up"), inner)]
        } else {
            vec![(name("ffn_up"), 2 * inner)]
        };
        let head_norms = if config.head_norms {
            Some([norm("attn_q_norm", head_dim)?, norm("attn_k_norm", head_dim)?])
        } else {
            None
        };
        Ok(Layer {
            attention_norm: norm("attn_norm", width)?,
            qkv: self.linear(&key(i, "qkv"), &qkv, width)?,
            head_norms,
            output: self.linear(&key(i, "output"), &[(name("attn_output"), width)], q_len)?,
            post_attention_norm: post("post_attention_norm")?,
            ffn_norm: norm("ffn_norm", width)?,
            gate_up: self.linear(&key(i, "gate_up"), &gate_up, width)?,
            down: self.linear(&key(i, "down"), &[(name("ffn_down"), width)], inner)?,
            post_ffn_norm: post("post_ffw_norm")?,
        })
    }

    /// The map from hidden rows to logits. `table`: the embedding table.
    fn head(&self, table: Tensor<'a>) -> Result<Linear, WeightsError> {
        let (rows, weight) = (table.rows(), format!("{HEAD}.weight"));
        if self.blueprint.tied == Some(true) {
            if self.has(&weight) {
                let head = self.tensor(&weight, table.shape)?;
                if head.dtype != table.dtype || head.bytes != table.bytes {
                    let problem = format!("it is true, but `{}` is another tensor than `{}`", head.name, table.name);
                    return Err(config_error("tie_word_embeddings", problem));
                }
            }
        } else if self.blueprint.tied == Some(false) || self.has(&weight) {
            check_table(table)?;
            return self.linear(HEAD, &[(HEAD.to_owned(), rows)], table.cols());
        }
        if let Some(found) = self.found(HEAD, &[table]) {
            return Ok(found); // of a table that was looked at when it was packed
        }
        check_table(table)?;
        Linear::pack(&[table], self.format)
    }

    /// What rotary frequencies are divided by, one a pair.
    fn rope_divisors(&self, config: &TransformerConfig) -> Result<Option<Vec<f32>>, WeightsError> {
        if let Some(divisors) = &self.blueprint.rope_divisors {
            return Ok(Some(divisors.clone()));
        }
        let two = if config.rope_long { [SHORT_FACTORS, LONG_FACTORS] } else { [LONG_FACTORS, SHORT_FACTORS] };
        let mut divisors = None;
        // The last one counts; all are checked.
        for name in ["rope_freqs.weight", two[0], two[1]].into_iter().filter(|name| self.has(name)) {
            let factors = self.vector(name, config.rope_dims / 2)?;
            if factors.iter().any(|factor| *factor <= 0.0) {
                return Err(config_error(name, "holds a factor that is not above 0"));
            }
            divisors = Some(factors);
        }
        if config.rope_long && !self.has(LONG_FACTORS) {
            return Err(WeightsError::Missing(LONG_FACTORS.to_owned()));
        }
        Ok(divisors)
    }

    fn nothing_is_left(&self) -> Result<(), WeightsError> {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let names = self.blueprint.names;
        match self.files.names().find(|name| !taken.contains(*name) && !names.may_be_left(name)) {
            None => Ok(()),
            Some(name) => {
                let family = self.blueprint.family.name;
                let problem =
                    format!("the file holds `{name}`, which is no part of a `{family}` network as it is known here");
                Err(config_error(names.architecture_key(), problem))
            }
        }
    }
}

/// What a layer's map is called.
fn key(layer: usize, map: &str) -> String {
    format!("{layer}.{map}")
}

/// A table that every row can be read from.
fn check_table(table: Tensor<'_>) -> Result<(), WeightsError> {
    let mut row = vec![0.0; table.cols()];
    for i in 0..table.rows() {
        if !table.read_row(i, &mut row) {
            return Err(table.unsupported().into());
        }
        if !row.iter().all(|x| x.is_finite()) {
            return Err(WeightsError::NotFinite(table.name.to_owned()));
        }
    }
    Ok(())
}

/// What is packed on its own.
enum Part {
    Head(Linear),
    Layer(Box<Layer>),
}

/// Weights that are packed in some milliseconds: less than it takes to start threads.
const SMALL_BYTES: usize = 16 << 20;

/// `make(0)` to `make(count - 1)`, in order; made in any order on as many threads as there are CPUs, where `bytes` of weights are many.
fn on_all_cpus<T: Send>(bytes: usize, count: usize, make: &(dyn Fn(usize) -> T + Sync)) -> Vec<T> {
    if bytes < SMALL_BYTES {
        return (0..count).map(make).collect();
    }
    let threads = thread::available_parallelism().map_or(1, NonZero::get).min(count);
    let next = AtomicUsize::new(0);
    let work = || {
        let mut made = Vec::new();
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= count {
                return made;
            }
            made.push((i, make(i)));
        }
    };
    let mut all: Vec<(usize, T)> = thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut all = work();
        for other in others {
            all.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        all
    });
    all.sort_unstable_by_key(|(i, _)| *i);
    all.into_iter().map(|(_, made)| made).collect()
}

impl Transformer {
    /// Checks the plan and the weights against each other and packs them, but for what is packed already. Returned with it: whether that
    /// is all.
    pub(crate) fn load(
        files: TensorFiles,
        blueprint: Blueprint,
        format: WeightFormat,
        packed: Option<&PackedFile>,
    ) -> Result<(Self, bool), WeightsError> {
        let config = blueprint.config;
        let width = config.width;
        let (taken, all_found) = (Mutex::default(), AtomicBool::new(true));
        let loader = Loader { files: &files, blueprint: &blueprint, format, packed, all_found, taken };
        let table = loader.tensor(EMBEDDING, &[config.vocabulary, width])?;
        // The head is the largest part: it comes first, and layers are packed beside it.
        let mut parts = on_all_cpus(files.bytes(), 1 + config.layers, &|i| match i {
            0 => loader.head(table).map(Part::Head),
            layer => loader.layer(&config, layer - 1).map(|layer| Part::Layer(Box::new(layer))),
        })
        .into_iter();
        let Some(Part::Head(head)) = parts.next().transpose()? else { unreachable!("part 0 is the head") };
        let layers = parts
            .map(|part| match part? {
                Part::Layer(layer) => Ok(*layer),
                Part::Head(_) => unreachable!("part 0 alone is the head"),
            })
            .collect::<Result<Vec<_>, WeightsError>>()?;
        let is_tied = match blueprint.tied {
            Some(tied) => tied,
            None => !loader.has(&format!("{HEAD}.weight")),
        };
        let biased = blueprint.family.qkv_bias;
        if let Some(i) = layers.iter().position(|layer| biased && layer.qkv.bias.is_none()) {
            return Err(WeightsError::Missing(blueprint.names.of(&format!("blk.{i}.attn_q.bias")).into_owned()));
        }
        let output_norm = loader.norm("output_norm.weight", width)?;
        let divisors = loader.rope_divisors(&config)?;
        loader.nothing_is_left()?;
        let rope = Rope::new(&config, divisors.as_deref());
        let embedding = files.place(table.name).expect("it was just read").clone();
        let all_found = loader.all_found.load(Ordering::Relaxed);
        files.release();
        let names = blueprint.names;
        let network = Self { config, files, embedding, layers, output_norm, head, is_tied, rope, names };
        Ok((network, all_found))
    }

    /// All quantised matrices, under the names by which [`load`](Self::load) looks for them.
    pub(crate) fn quantised(&self) -> Vec<(String, &[QuantMatrix])> {
        let layers = self.layers.iter().enumerate().flat_map(|(i, layer)| {
            let maps =
                [("qkv", &layer.qkv), ("output", &layer.output), ("gate_up", &layer.gate_up), ("down", &layer.down)];
            maps.map(|(map, linear)| (key(i, map), linear))
        });
        let all = layers.chain([(HEAD.to_owned(), &self.head)]);
        all.filter_map(|(key, linear)| match &linear.matrix {
            Matrix::Quant(parts) => Some((key, parts.as_slice())),
            Matrix::Dense(_) => None,
        })
        .collect()
    }
}
