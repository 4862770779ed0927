//! LoRA adapters over a base decoder.
//!
//! **Question:** which low-rank deltas are in these files, and do they fit this base? **In:** PEFT's two files:
//! `adapter_config.json` and `adapter_model.safetensors` (or `adapter.safetensors`), the second also in 8 bits (`int8`). **Out:** an [`Adapter`]: packed deltas, layer by
//! layer, that a forward pass adds to the rows of the sequences that ask for it. **Absent:** merging, training, embeddings, heads.
//!
//! Any subset of q, k, v, o, gate, up and down, or of Phi-3's fused `qkv_proj` and `gate_up_proj`, in any subset of the layers, of one
//! rank up to 256. What PEFT can save beside that (DoRA, biases, whole modules, …) would change answers if it were skipped, so it is
//! refused by name.
//!
//! PEFT's rows of q and k are in the order of Transformers, where the halves of a head turn together; a GGUF `llama` file has
//! rotary pairs as neighbours. B's rows are put into the base's order at load:
//! `row (head, 2i + j)` of the base is `row (head, j · head_dim / 2 + i)` of the adapter.

mod int8;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

pub(crate) use self::int8::read as values;
pub use self::int8::{to_halves, to_int8};
pub use metier_kernels::lora::{LoraFormat, MAX_RANK};
use metier_kernels::lora::{LoraPart, LoraStack};
use serde::Deserialize;

use crate::{
    Digest,
    arch::transformer::{RopePairs, TransformerConfig},
    format::{FormatError, Safetensors},
};

/// Bytes of an adapter's weights file, at most: rank 256 over a 3 B model in f32 has about 1.6 GB.
pub const MAX_ADAPTER_BYTES: u64 = 2 << 30;
/// Bytes of an adapter's configuration, at most.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// A weight beyond this does not fit into an f16.
const MAX_WEIGHT: f32 = 65_504.0;
/// Name of the configuration's file.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// Names of the weights file, the first that exists is read.
pub const WEIGHTS_FILES: [&str; 2] = ["adapter_model.safetensors", "adapter.safetensors"];

/// An adapter is not taken.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// A file cannot be read.
    #[error("cannot read `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is larger than any adapter.
    #[error("`{path}` has {bytes} bytes, an adapter's file may have {limit}")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its bytes.
        bytes: u64,
        /// The most that is read.
        limit: u64,
    },
    /// The configuration is no JSON of the expected kind.
    #[error("cannot parse `adapter_config.json`")]
    Config(#[source] serde_json::Error),
    /// A setting has no meaning here, and answers would be wrong without it.
    #[error("the adapter's `{setting}` is {value}, which is not supported")]
    Unsupported {
        /// The setting in `adapter_config.json`.
        setting: String,
        /// Its value.
        value: String,
    },
    /// The weights file is malformed.
    #[error("cannot parse the adapter's weights")]
    Format(#[from] FormatError),
    /// A tensor that is no delta of a known map.
    #[error("the adapter's tensor `{0}` has no place in this kind of base")]
    UnknownTensor(String),
    /// The adapter was made for a base with more layers.
    #[error(
        "the adapter's tensor `{tensor}` belongs to layer {layer}, the base has {layers}: it was made for another base"
    )]
    UnknownLayer {
        /// The tensor.
        tensor: String,
        /// Its layer.
        layer: usize,
        /// Layers of the base.
        layers: usize,
    },
    /// The adapter was made for a base of another shape.
    #[error(
        "the adapter's tensor `{tensor}` has shape {found:?}, the base needs {expected:?}: it was made for another base"
    )]
    Shape {
        /// The tensor.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
        /// What fits the base and the rank.
        expected: Vec<usize>,
    },
    /// One half of a pair is missing.
    #[error("the adapter's tensor `{0}` is missing")]
    Unpaired(String),
    /// A rank of 0 or above the limit, or another than the configuration's.
    #[error("the adapter's tensor `{tensor}` has rank {found}, the configuration says {expected} (1 to {MAX_RANK})")]
    Rank {
        /// The tensor.
        tensor: String,
        /// Its rank.
        found: usize,
        /// The configuration's `r`.
        expected: usize,
    },
    /// A NaN, an infinity, or more than 65,504.
    #[error("the adapter's tensor `{0}` holds a value that is no finite 16-bit float")]
    NotFinite(String),
    /// No tensor at all.
    #[error("the adapter has no tensors")]
    Empty,
}

/// The deltas of one specialist over one base. `Send + Sync`; shared by reference.
#[derive(Debug)]
pub struct Adapter {
    layers: Box<[LayerDeltas]>,
    shape: AdapterShape,
    bytes: usize,
    digest: Digest,
    base_name: Option<String>,
}

/// What of a base an adapter must fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct AdapterShape {
    layers: usize,
    width: usize,
    inner: usize,
    q_len: usize,
    kv_len: usize,
    /// Rows of q and k lie in another order than in PEFT.
    reordered: bool,
}

/// Maps that read the same input, as the forward pass has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Site {
    Qkv,
    Output,
    GateUp,
    Down,
}

#[derive(Default)]
struct LayerDeltas([Option<LoraStack>; 4]);

impl std::fmt::Debug for LayerDeltas {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} stacks", self.0.iter().flatten().count())
    }
}

/// Phi-3's fused maps: q, k and v; gate and up.
const QKV: &str = "self_attn.qkv_proj";
const GATE_UP: &str = "mlp.gate_up_proj";

/// A map that can be adapted: where its outputs start in its site's rows.
struct Target {
    name: &'static str,
    site: Site,
    k: usize,
    n: usize,
    first: usize,
    /// Heads whose rows are to be put into the base's rotary order.
    rotary_heads: usize,
    /// The fused map that this one is a part of.
    whole: Option<&'static str>,
}

/// `adapter_config.json`, as far as it matters. What else PEFT writes there is about training.
#[derive(Deserialize)]
struct Config {
    peft_type: Option<String>,
    base_model_name_or_path: Option<String>,
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    use_rslora: bool,
    bias: Option<String>,
    #[serde(default)]
    init_lora_weights: Setting,
    #[serde(flatten)]
    others: BTreeMap<String, Setting>,
}

/// Settings that were about training or tell what the file's tensors show as well. Whatever else is switched on is refused, also what
/// later versions of PEFT invent.
const HARMLESS: [&str; 12] = [
    "inference_mode",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "auto_mapping",
    "megatron_config",
    "loftq_config",
    "eva_config",
    "corda_config",
    "runtime_config",
    "ensure_weight_tying",
];

/// Any JSON value; absent is null.
type Setting = serde_json::Value;

impl Config {
    fn parse(json: &[u8]) -> Result<Self, AdapterError> {
        let config: Self = serde_json::from_slice(json).map_err(AdapterError::Config)?;
        let refuse =
            |setting: &str, value: String| Err(AdapterError::Unsupported { setting: setting.to_owned(), value });
        // Numbers and texts alone are parameters of something that is switched on elsewhere.
        let is_on = |value: &Setting| match value {
            Setting::Bool(on) => *on,
            Setting::Array(values) => !values.is_empty(),
            Setting::Object(values) => !values.is_empty(),
            Setting::Null | Setting::Number(_) | Setting::String(_) => false,
        };
        if let Some(kind) = config.peft_type.as_ref().filter(|kind| *kind != "LORA") {
            return refuse("peft_type", format!("`{kind}`"));
        }
        if let Some(bias) = config.bias.as_ref().filter(|bias| *bias != "none") {
            return refuse("bias", format!("`{bias}`"));
        }
        let on = |(setting, value): &(&String, &Setting)| !HARMLESS.contains(&setting.as_str()) && is_on(value);
        if let Some((setting, value)) = config.others.iter().find(on) {
            return refuse(setting, value.to_string());
        }
        // Other initialisations (PiSSA, LoftQ, …) change the base's own weights as well.
        let init = &config.init_lora_weights;
        if !matches!(init, Setting::Null | Setting::Bool(_)) && init != "gaussian" && init != "orthogonal" {
            return refuse("init_lora_weights", init.to_string());
        }
        // A rank of 0 is named with the first tensor.
        if config.r > 0 && !config.scale().is_finite() {
            return refuse("lora_alpha", config.lora_alpha.to_string());
        }
        Ok(config)
    }

    /// Factor of every delta: α / r (Hu et al. 2021), or α / √r (Kalajdzievski 2023).
    fn scale(&self) -> f32 {
        let rank = self.r as f64;
        (self.lora_alpha / if self.use_rslora { rank.sqrt() } else { rank }) as f32
    }
}

impl Adapter {
    /// Reads PEFT's files from a folder.
    pub fn open(folder: &Path, base: &TransformerConfig, format: LoraFormat) -> Result<Self, AdapterError> {
        let read = |path: PathBuf, limit: u64| {
            let read_error = |source| AdapterError::Read { path: path.clone(), source };
            let metadata = fs::metadata(&path).map_err(read_error)?;
            if !metadata.is_file() {
                return Err(read_error(io::Error::other("it is no file")));
            }
            let bytes = metadata.len();
            if bytes > limit {
                return Err(AdapterError::TooLarge { path, bytes, limit });
            }
            fs::read(&path).map_err(read_error)
        };
        let config = read(folder.join(CONFIG_FILE), MAX_CONFIG_BYTES)?;
        let weights = WEIGHTS_FILES.iter().map(|name| folder.join(name)).find(|path| path.exists());
        let weights = read(weights.unwrap_or_else(|| folder.join(WEIGHTS_FILES[0])), MAX_ADAPTER_BYTES)?;
        Self::from_bytes(&config, &weights, base, format)
    }

    /// Reads PEFT's files, given as bytes.
    pub fn from_bytes(
        config: &[u8],
        weights: &[u8],
        base: &TransformerConfig,
        format: LoraFormat,
    ) -> Result<Self, AdapterError> {
        let named = |name: &str, bytes: &[u8]| (name.to_owned(), Digest::of(bytes));
        let digest = Digest::of_files(&[named(CONFIG_FILE, config), named(WEIGHTS_FILES[0], weights)]);
        let config = Config::parse(config)?;
        let file = Safetensors::parse(weights)?;
        let shape = AdapterShape::of(base);
        let targets = shape.targets(base);
        if file.tensors().is_empty() {
            return Err(AdapterError::Empty);
        }
        // (layer, target) → names of A and B.
        let mut pairs: BTreeMap<(usize, usize), [Option<&str>; 2]> = BTreeMap::new();
        for name in file.tensors().keys().filter(|name| !int8::is_scales(&file, name)) {
            let unknown = || AdapterError::UnknownTensor(name.clone());
            let place = Place::parse(name).ok_or_else(unknown)?;
            let target = targets.iter().position(|target| target.name == place.map).ok_or_else(unknown)?;
            if place.layer >= shape.layers {
                let (tensor, layer) = (name.clone(), place.layer);
                return Err(AdapterError::UnknownLayer { tensor, layer, layers: shape.layers });
            }
            let half = &mut pairs.entry((place.layer, target)).or_default()[usize::from(place.is_b)];
            if half.replace(name).is_some() {
                return Err(unknown());
            }
        }
        // A map that is adapted as a whole and in part belongs to no network.
        for (layer, target) in pairs.keys() {
            let whole = targets[*target].whole.and_then(|name| targets.iter().position(|target| target.name == name));
            if let Some([half, other]) = whole.and_then(|whole| pairs.get(&(*layer, whole))) {
                return Err(AdapterError::UnknownTensor(half.or(*other).unwrap_or_default().to_owned()));
            }
        }
        let mut layers: Vec<LayerDeltas> = (0..shape.layers).map(|_| LayerDeltas::default()).collect();
        for layer in 0..shape.layers {
            for site in [Site::Qkv, Site::Output, Site::GateUp, Site::Down] {
                let mut read = Vec::new();
                for (at, target) in targets.iter().enumerate().filter(|(_, target)| target.site == site) {
                    let Some(names) = pairs.get(&(layer, at)) else { continue };
                    read.push((target, Pair::read(*names, target, &config, &file, weights)?));
                }
                let parts: Vec<LoraPart<'_>> = read
                    .iter()
                    .map(|(target, pair)| LoraPart {
                        a: &pair.a,
                        b: &pair.b,
                        rank: config.r,
                        first: target.first,
                        scale: config.scale(),
                    })
                    .collect();
                if let Some((target, _)) = read.first() {
                    let stack = LoraStack::pack(format, target.k, shape.outputs(site), &parts);
                    layers[layer].0[site as usize] = Some(stack);
                }
            }
        }
        let stacks = layers.iter().flat_map(|layer| layer.0.iter().flatten());
        let bytes = stacks.map(LoraStack::bytes).sum::<usize>() + layers.len() * size_of::<LayerDeltas>();
        Ok(Self { layers: layers.into(), shape, bytes, digest, base_name: config.base_model_name_or_path })
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// SHA-256 over lines `<sha256> <name>\n` of its files, named `adapter_config.json` and `adapter_model.safetensors`.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// What its files call the base (`base_model_name_or_path`): a model of a hub, a folder of the machine that trained it, or nothing.
    pub fn base_name(&self) -> Option<&str> {
        self.base_name.as_deref()
    }

    /// Whether it was opened for a base of this shape, with rows in this order.
    pub fn fits(&self, base: &TransformerConfig) -> bool {
        self.shape == AdapterShape::of(base)
    }

    /// The deltas of one site, if it has any there.
    pub(crate) fn stack(&self, layer: usize, site: Site) -> Option<&LoraStack> {
        self.layers[layer].0[site as usize].as_ref()
    }
}

impl AdapterShape {
    fn of(base: &TransformerConfig) -> Self {
        let (q_len, kv_len) = (base.heads * base.head_dim, base.kv_heads * base.head_dim);
        let reordered = base.rope_pairs == RopePairs::Adjacent;
        Self { layers: base.layers, width: base.width, inner: base.inner, q_len, kv_len, reordered }
    }

    fn outputs(self, site: Site) -> usize {
        match site {
            Site::Qkv => self.q_len + 2 * self.kv_len,
            Site::Output | Site::Down => self.width,
            Site::GateUp => 2 * self.inner,
        }
    }

    fn targets(self, base: &TransformerConfig) -> Vec<Target> {
        let Self { width, inner, q_len, kv_len, reordered, .. } = self;
        let plain = |name, site, k, n, first| Target { name, site, k, n, first, rotary_heads: 0, whole: None };
        let part = |whole, target: Target| Target { whole: Some(whole), ..target };
        let turned = |name, n, first, heads| {
            let rotary_heads = if reordered { heads } else { 0 };
            part(QKV, Target { rotary_heads, ..plain(name, Site::Qkv, width, n, first) })
        };
        let mut targets = vec![
            turned("self_attn.q_proj", q_len, 0, base.heads),
            turned("self_attn.k_proj", kv_len, q_len, base.kv_heads),
            part(QKV, plain("self_attn.v_proj", Site::Qkv, width, kv_len, q_len + kv_len)),
            plain("self_attn.o_proj", Site::Output, q_len, width, 0),
            part(GATE_UP, plain("mlp.gate_proj", Site::GateUp, width, inner, 0)),
            part(GATE_UP, plain("mlp.up_proj", Site::GateUp, width, inner, inner)),
            plain("mlp.down_proj", Site::Down, inner, width, 0),
        ];
        // No network whose rows are reordered has fused maps.
        if !reordered {
            targets.push(plain(QKV, Site::Qkv, width, q_len + 2 * kv_len, 0));
            targets.push(plain(GATE_UP, Site::GateUp, width, 2 * inner, 0));
        }
        targets
    }
}

/// What a tensor's name says: `….layers.3.self_attn.q_proj.lora_A.weight` (older files: `lora_A.default.weight`).
struct Place<'a> {
    layer: usize,
    map: &'a str,
    is_b: bool,
}

impl<'a> Place<'a> {
    fn parse(name: &'a str) -> Option<Self> {
        let (before, rest) = name.split_once("layers.")?;
        // Towers that read pictures or sound have layers too.
        let of_language = |word| matches!(word, "" | "base_model" | "model" | "language_model");
        if !(before.is_empty() || before.ends_with('.')) || !before.split('.').all(of_language) {
            return None;
        }
        let (layer, rest) = rest.split_once('.')?;
        let (map, half) = rest.split_once(".lora_")?;
        let is_b = match half {
            "A.weight" | "A.default.weight" => false,
            "B.weight" | "B.default.weight" => true,
            _ => return None,
        };
        Some(Self { layer: layer.parse().ok()?, map, is_b })
    }
}

struct Pair {
    a: Vec<f32>,
    b: Vec<f32>,
}

impl Pair {
    fn read(
        names: [Option<&str>; 2],
        target: &Target,
        config: &Config,
        file: &Safetensors,
        weights: &[u8],
    ) -> Result<Self, AdapterError> {
        let (a_name, b_name) = match names {
            [Some(a), Some(b)] => (a, b),
            [Some(a), None] => return Err(AdapterError::Unpaired(a.replace(".lora_A.", ".lora_B."))),
            [None, b] => return Err(AdapterError::Unpaired(b.unwrap_or("").replace(".lora_B.", ".lora_A."))),
        };
        let read = |name: &str, rank_at: usize, expected: [usize; 2]| {
            let tensor = file.tensor(weights, name).ok_or_else(|| AdapterError::Unpaired(name.to_owned()))?;
            let rank_differs = tensor.shape.len() == 2 && tensor.shape[1 - rank_at] == expected[1 - rank_at];
            if tensor.shape != expected && rank_differs || !(1..=MAX_RANK).contains(&config.r) {
                let found = tensor.shape.get(rank_at).copied().unwrap_or(0);
                return Err(AdapterError::Rank { tensor: name.to_owned(), found, expected: config.r });
            }
            if tensor.shape != expected {
                let (found, expected) = (tensor.shape.to_vec(), expected.to_vec());
                return Err(AdapterError::Shape { tensor: name.to_owned(), found, expected });
            }
            let values = int8::read(file, weights, name).expect("it was found above")?;
            let fits = values.iter().all(|x| x.abs() <= MAX_WEIGHT);
            if fits { Ok(values) } else { Err(AdapterError::NotFinite(name.to_owned())) }
        };
        let a = read(a_name, 0, [config.r, target.k])?;
        let b = read(b_name, 1, [target.n, config.r])?;
        let b = if target.rotary_heads > 0 { neighbours(&b, target.rotary_heads, config.r) } else { b };
        Ok(Self { a, b })
    }
}

/// Rows of heads whose halves turn together → rows whose neighbours do. `b`: (heads · head_dim, rank).
fn neighbours(b: &[f32], heads: usize, rank: usize) -> Vec<f32> {
    let head_dim = b.len() / rank / heads;
    let mut out = Vec::with_capacity(b.len());
    for head in b.chunks_exact(head_dim * rank) {
        for i in 0..head_dim {
            let from = (i % 2) * head_dim / 2 + i / 2;
            out.extend_from_slice(&head[from * rank..(from + 1) * rank]);
        }
    }
    out
}

#[cfg(test)]
mod tests;
