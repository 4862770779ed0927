//! Which steps does this folder ask for, between a text and its vector?
//!
//! **In:** a folder as sentence-transformers writes it: `modules.json` names its steps, each with a folder of settings. Without one it is
//! a network whose rows are averaged, or pooled as `1_Pooling` says. **Out:** what [`Encoder`](super::Encoder) does, nothing of it left
//! out silently: a step that is not known is an error. **Absent:** weights of the network itself.

use std::path::{Component, Path, PathBuf};

use metier_kernels::{Pool, dense::DenseMatrix, dense::matmul};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Encoder, EncoderError, Pooling, parse_json, read_text};
use crate::{
    Digest,
    arch::{WeightsError, bert::Bert, config_error, expect_shape, finite, pack_dense},
    base::Bytes,
    format::Safetensors,
};

/// Steps of a folder, at most.
const MAX_STEPS: usize = 16;
/// Elements of a vector, at most.
const MAX_DIMENSIONS: usize = 1 << 16;
/// Steps that are followed, by the last part of their type.
const SUPPORTED: &str = "Transformer, Pooling, Dense, Dropout, Normalize";
/// Files that may say how long a window is: each family had its own.
const WINDOW_FILES: [&str; 5] = [
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_camembert_config.json",
    "sentence_distilbert_config.json",
];

/// What a folder asks for.
pub(super) struct Steps {
    /// Where `config.json`, the weights and the tokenizer lie.
    pub(super) network: PathBuf,
    pub(super) pooling: Pooling,
    pub(super) dense: Vec<Dense>,
    /// Tokens of a window, where a file says so.
    pub(super) window_tokens: Option<usize>,
    /// Texts are read in lower case.
    pub(super) lower_case: bool,
}

#[derive(Deserialize)]
struct ModuleJson {
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct WindowJson {
    max_seq_length: Option<usize>,
    do_lower_case: Option<bool>,
}

#[derive(Deserialize)]
struct TokenizerJson {
    /// A float, because "no limit" is written as 10³⁰.
    model_max_length: Option<f64>,
}

/// `1_Pooling/config.json`: older files have a flag for each kind, newer ones name it.
#[derive(Default, Deserialize)]
#[serde(default)]
struct PoolingJson {
    pooling_mode: Option<String>,
    pooling_mode_cls_token: bool,
    pooling_mode_mean_tokens: bool,
    pooling_mode_max_tokens: bool,
    pooling_mode_mean_sqrt_len_tokens: bool,
    pooling_mode_weightedmean_tokens: bool,
    pooling_mode_lasttoken: bool,
}

impl PoolingJson {
    fn pooling(&self) -> Option<Pooling> {
        let others = self.pooling_mode_max_tokens
            || self.pooling_mode_mean_sqrt_len_tokens
            || self.pooling_mode_weightedmean_tokens
            || self.pooling_mode_lasttoken;
        match (self.pooling_mode.as_deref(), self.pooling_mode_mean_tokens, self.pooling_mode_cls_token) {
            (Some("mean"), false, false) | (None, true, false) if !others => Some(Pooling::Mean),
            (Some("cls"), false, false) | (None, false, true) if !others => Some(Pooling::FirstToken),
            _ => None,
        }
    }
}

impl Steps {
    /// Reads what the folder asks for.
    pub(super) fn read(dir: &Path) -> Result<Self, EncoderError> {
        let path = dir.join("modules.json");
        if !path.exists() {
            let pooling = dir.join("1_Pooling");
            let pooling = if pooling.join("config.json").exists() { read_pooling(&pooling)? } else { Pooling::Mean };
            return Self::of(dir.to_owned(), pooling, Vec::new());
        }
        let modules: Vec<ModuleJson> = parse_json(&path, &read_text(&path)?)?;
        let wrong = |problem: String| EncoderError::Steps { path: path.clone(), problem };
        if modules.len() > MAX_STEPS {
            return Err(wrong(format!("{} steps are more than {MAX_STEPS}", modules.len())));
        }
        let (mut network, mut pooling, mut dense, mut ended) = (None, None, Vec::new(), false);
        for module in &modules {
            let is_inside = Path::new(&module.path).components().all(|part| matches!(part, Component::Normal(_)));
            if !is_inside {
                return Err(wrong(format!("`{}` is no folder in this one", module.path)));
            }
            let folder = dir.join(&module.path);
            let kind = module.kind.rsplit('.').next().unwrap_or_default();
            let is_in_order = match kind {
                "Transformer" => network.is_none() && pooling.is_none(),
                "Pooling" => network.is_some() && pooling.is_none(),
                "Dense" => pooling.is_some() && !ended,
                "Normalize" => pooling.is_some(),
                _ => true,
            };
            if !is_in_order {
                return Err(wrong(format!(
                    "`{}` stands where it is not supported: expected Transformer, Pooling, any Dense, Normalize",
                    module.kind
                )));
            }
            match kind {
                "Transformer" => network = Some(folder),
                "Pooling" => pooling = Some(read_pooling(&folder)?),
                "Dense" => dense.push(Dense::read(&folder)?),
                // Vectors get length 1 in any case.
                "Normalize" => ended = true,
                // Does nothing outside training.
                "Dropout" => {}
                _ => return Err(wrong(format!("step `{}` is not supported: expected {SUPPORTED}", module.kind))),
            }
        }
        let network = network.ok_or_else(|| wrong("there is no Transformer".to_owned()))?;
        let pooling = pooling.ok_or_else(|| wrong("there is no Pooling".to_owned()))?;
        Self::of(network, pooling, dense)
    }

    fn of(network: PathBuf, pooling: Pooling, dense: Vec<Dense>) -> Result<Self, EncoderError> {
        let (mut window_tokens, mut lower_case) = (None, false);
        if let Some(path) = WINDOW_FILES.iter().map(|file| network.join(file)).find(|path| path.exists()) {
            let window: WindowJson = parse_json(&path, &read_text(&path)?)?;
            window_tokens = window.max_seq_length;
            lower_case = window.do_lower_case.unwrap_or(false);
        }
        let path = network.join("tokenizer_config.json");
        if window_tokens.is_none() && path.exists() {
            let tokenizer: TokenizerJson = parse_json(&path, &read_text(&path)?)?;
            window_tokens = tokenizer.model_max_length.map(|length| length as usize);
        }
        Ok(Self { network, pooling, dense, window_tokens, lower_case })
    }
}

impl Encoder {
    /// The network.
    pub(crate) fn bert(&self) -> &Bert {
        &self.bert
    }

    /// Do linear maps stand behind its pooling?
    pub(crate) fn has_maps(&self) -> bool {
        !self.dense.is_empty()
    }

    /// `config.json` of the folder that it was opened from.
    pub(crate) fn config_json(&self, dir: &Path) -> Result<Value, EncoderError> {
        let path = Steps::read(dir)?.network.join("config.json");
        parse_json(&path, &read_text(&path)?)
    }

    /// `tokenizer.json` of that folder as it is read: in lower case where the folder says so; it neither cuts nor fills.
    pub(crate) fn tokenizer_json(&self, dir: &Path) -> Result<Value, EncoderError> {
        let steps = Steps::read(dir)?;
        let path = steps.network.join("tokenizer.json");
        let mut rules: Value = parse_json(&path, &read_text(&path)?)?;
        if steps.lower_case {
            rules = lower_cased(rules);
        }
        for key in ["truncation", "padding"] {
            rules[key] = Value::Null;
        }
        Ok(rules)
    }
}

/// A `tokenizer.json` that reads texts in lower case before anything else; its special tokens stay as they are written.
pub(super) fn lower_cased(mut tokenizer: Value) -> Value {
    let Some(rules) = tokenizer.as_object_mut() else { return tokenizer };
    let mut steps = vec![json!({"type": "Lowercase"})];
    match rules.remove("normalizer") {
        None | Some(Value::Null) => {}
        // A sequence of its own may hold no other sequence.
        Some(Value::Object(mut sequence)) if sequence.get("type").is_some_and(|kind| kind == "Sequence") => {
            let all = sequence.get_mut("normalizers").and_then(Value::as_array_mut);
            steps.extend(all.into_iter().flat_map(std::mem::take));
        }
        Some(single) => steps.push(single),
    }
    rules.insert("normalizer".to_owned(), json!({"type": "Sequence", "normalizers": steps}));
    tokenizer
}

fn read_pooling(folder: &Path) -> Result<Pooling, EncoderError> {
    let path = folder.join("config.json");
    let config: PoolingJson = parse_json(&path, &read_text(&path)?)?;
    config.pooling().ok_or(EncoderError::Pooling { path })
}

/// What is done to each product.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Activation {
    Identity,
    Tanh,
}

/// A linear map of pooled vectors: `act(W·x + b)`.
pub(super) struct Dense {
    weight: DenseMatrix,
    bias: Option<Vec<f32>>,
    activation: Activation,
    /// Of the weights file and the activation.
    pub(super) digest: Digest,
}

#[derive(Deserialize)]
struct DenseJson {
    in_features: usize,
    out_features: usize,
    bias: bool,
    activation_function: String,
    module_input_name: Option<String>,
    module_output_name: Option<String>,
}

impl Dense {
    fn read(folder: &Path) -> Result<Self, EncoderError> {
        let path = folder.join("config.json");
        let config: DenseJson = parse_json(&path, &read_text(&path)?)?;
        let error = |source| EncoderError::Weights { path: folder.to_owned(), source };
        let activation = config.check().map_err(error)?;
        let path = folder.join("model.safetensors");
        let read_error = |source| EncoderError::Read { path: path.clone(), source };
        let bytes = Bytes::map(&path).map_err(read_error)?;
        let index = Safetensors::parse(&bytes).map_err(|source| EncoderError::Format { path: path.clone(), source })?;
        let (n, k) = (config.out_features, config.in_features);
        let tensor = |name: &str, shape: &[usize]| expect_shape(index.tensor(&bytes, name), name, shape);
        let weight = tensor("linear.weight", &[n, k]).and_then(|weight| pack_dense(&[weight])).map_err(error)?;
        let bias = config.bias.then(|| tensor("linear.bias", &[n]).and_then(finite)).transpose().map_err(error)?;
        let digest = Digest::of(format!("{} {}", Digest::of(&bytes), config.activation_function).as_bytes());
        Ok(Self { weight, bias, activation, digest })
    }

    /// Elements of what goes in.
    pub(super) fn inputs(&self) -> usize {
        self.weight.k()
    }

    /// Elements of what comes out.
    pub(super) fn outputs(&self) -> usize {
        self.weight.n()
    }

    pub(super) fn apply(&self, pool: &Pool, x: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; self.outputs()];
        matmul(pool, x, &self.weight, self.bias.as_deref(), &mut out);
        if self.activation == Activation::Tanh {
            out.iter_mut().for_each(|x| *x = x.tanh());
        }
        out
    }
}

impl DenseJson {
    fn check(&self) -> Result<Activation, WeightsError> {
        for (key, features) in [("in_features", self.in_features), ("out_features", self.out_features)] {
            if !(1..=MAX_DIMENSIONS).contains(&features) {
                return Err(config_error(key, format!("{features} is not between 1 and {MAX_DIMENSIONS}")));
            }
        }
        let names = [("module_input_name", &self.module_input_name), ("module_output_name", &self.module_output_name)];
        for (key, name) in names {
            if let Some(name) = name.as_deref().filter(|name| *name != "sentence_embedding") {
                return Err(config_error(key, format!("`{name}` is not supported, only `sentence_embedding`")));
            }
        }
        match self.activation_function.rsplit('.').next() {
            Some("Identity") => Ok(Activation::Identity),
            Some("Tanh") => Ok(Activation::Tanh),
            _ => {
                let problem = format!("`{}` is not supported, only Identity and Tanh", self.activation_function);
                Err(config_error("activation_function", problem))
            }
        }
    }
}
