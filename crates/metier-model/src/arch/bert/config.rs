//! Which network do these settings describe? Each family writes the same few facts under its own names.

use serde::Deserialize;
use serde_json::Value;

use super::super::{WeightsError, config_error};

/// Layers, at most.
const MAX_LAYERS: usize = 512;
/// Elements of a hidden row or of a block's inner row, at most.
const MAX_WIDTH: usize = 1 << 16;
/// Longest window, in tokens.
pub const MAX_POSITIONS: usize = 8192;
/// Rows of a position table, at most: RoBERTa's begins with rows that no token has.
const MAX_POSITION_ROWS: usize = MAX_POSITIONS + 64;
/// DistilBERT's files do not say it.
const DISTILBERT_EPS: f32 = 1e-12;
/// RoBERTa's id of the padding where the file does not say.
const ROBERTA_PADDING: usize = 1;

/// What can be loaded, by `model_type`.
const SUPPORTED: &str = "`bert`, `roberta`, `xlm-roberta`, `camembert`, `distilbert`, `modernbert`";

/// Whose names and whose order of steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// BERT (Devlin et al. 2019).
    Bert,
    /// RoBERTa (Liu et al. 2019), XLM-R and CamemBERT: BERT whose positions are counted from behind the padding's id.
    Roberta,
    /// DistilBERT (Sanh et al. 2019): BERT without token types, under other names.
    DistilBert,
    /// ModernBERT (Warner et al. 2024): pre-norm, rotary positions, gated inner rows, most layers with a window.
    ModernBert,
}

/// How a network learns where a token stands.
#[derive(Clone, Debug, PartialEq)]
pub enum Positions {
    /// A row of a table is added to the word's.
    Learned {
        /// Rows of the table.
        rows: usize,
        /// RoBERTa's: a padding token has the row of this number, the others are counted from behind it.
        padding: Option<usize>,
        /// Rows of the table of token types, of which every token has the first; none where 0.
        types: usize,
    },
    /// Queries and keys are turned.
    Rotary {
        /// Base of the angles in layers that see everything.
        global_theta: f32,
        /// Base of the angles in layers with a window.
        local_theta: f32,
        /// Tokens to either side that a layer with a window sees.
        reach: usize,
        /// Of each layer: does it see everything?
        global: Vec<bool>,
    },
}

/// Which maps of a network have biases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Biases {
    /// Those around attention.
    pub attention: bool,
    /// Those of the inner rows.
    pub ffn: bool,
    /// Norms.
    pub norm: bool,
}

/// A network's shape, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct BertConfig {
    /// Names and order of steps.
    pub family: Family,
    /// Elements of a hidden row.
    pub width: usize,
    /// Layers.
    pub layers: usize,
    /// Heads; their size is a multiple of 16.
    pub heads: usize,
    /// Elements of a block's inner row.
    pub inner: usize,
    /// Rows of the word table.
    pub vocabulary: usize,
    /// Tokens of the longest window.
    pub max_tokens: usize,
    /// Added to the variance.
    pub eps: f32,
    /// How positions come in.
    pub positions: Positions,
    /// What has a bias.
    pub biases: Biases,
}

/// `config.json` of BERT and RoBERTa.
#[derive(Deserialize)]
struct BertJson {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    type_vocab_size: usize,
    layer_norm_eps: f32,
    hidden_act: String,
    pad_token_id: Option<usize>,
    position_embedding_type: Option<String>,
}

#[derive(Deserialize)]
struct DistilBertJson {
    dim: usize,
    n_layers: usize,
    n_heads: usize,
    hidden_dim: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    activation: String,
}

#[derive(Deserialize)]
struct ModernBertJson {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    norm_eps: f32,
    hidden_activation: String,
    #[serde(default)]
    norm_bias: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    local_attention: usize,
    /// Newer files name each layer's kind, older ones the distance of those that see everything.
    layer_types: Option<Vec<String>>,
    global_attn_every_n_layers: Option<usize>,
    /// Newer files have a table for each kind of layer, older ones two numbers.
    rope_parameters: Option<RopeJson>,
    global_rope_theta: Option<f32>,
    local_rope_theta: Option<f32>,
}

#[derive(Deserialize)]
struct RopeJson {
    full_attention: RopeKindJson,
    sliding_attention: RopeKindJson,
}

#[derive(Deserialize)]
struct RopeKindJson {
    rope_type: String,
    rope_theta: f32,
}

impl BertConfig {
    /// Reads `config.json`.
    ///
    /// # Errors
    ///
    /// Where it describes a network that is not supported, or none.
    pub fn from_json(config: Value) -> Result<Self, WeightsError> {
        let model_type = config.get("model_type").and_then(Value::as_str);
        let model_type =
            model_type.ok_or_else(|| config_error("model_type", format!("is missing: expected {SUPPORTED}")))?;
        let config = match model_type.to_owned().as_str() {
            "bert" => bert(read(config)?, Family::Bert),
            "roberta" | "xlm-roberta" | "camembert" => bert(read(config)?, Family::Roberta),
            "distilbert" => distilbert(read(config)?),
            "modernbert" => modernbert(read(config)?),
            other => Err(config_error("model_type", format!("`{other}` is not supported: expected {SUPPORTED}"))),
        }?;
        config.check()?;
        Ok(config)
    }

    /// Elements of a head.
    pub fn head_dim(&self) -> usize {
        self.width / self.heads
    }

    /// Do norms stand before the blocks, and a last one behind all?
    pub(crate) fn is_pre_norm(&self) -> bool {
        self.family == Family::ModernBert
    }

    /// Is the inner row the product of two, one of them activated?
    pub(super) fn is_gated(&self) -> bool {
        self.family == Family::ModernBert
    }

    fn check(&self) -> Result<(), WeightsError> {
        within("hidden_size", self.width, MAX_WIDTH)?;
        within("intermediate_size", self.inner, MAX_WIDTH)?;
        within("num_hidden_layers", self.layers, MAX_LAYERS)?;
        within("num_attention_heads", self.heads, self.width)?;
        within("vocab_size", self.vocabulary, crate::tokenizer::MAX_VOCABULARY)?;
        within("max_position_embeddings", self.max_tokens, MAX_POSITIONS)?;
        if !self.width.is_multiple_of(self.heads) || !self.head_dim().is_multiple_of(16) {
            let problem = format!("{} elements do not part into {} heads of a multiple of 16", self.width, self.heads);
            return Err(config_error("num_attention_heads", problem));
        }
        if !(self.eps >= 0.0 && self.eps < 1.0) {
            return Err(config_error("layer_norm_eps", format!("{} is not in 0..1", self.eps)));
        }
        if let Positions::Rotary { global_theta, local_theta, reach, global } = &self.positions {
            if let Some(theta) = [global_theta, local_theta].into_iter().find(|theta| !(1.0..f32::MAX).contains(*theta))
            {
                return Err(config_error("rope_theta", format!("{theta} is no finite number from 1 on")));
            }
            within("local_attention", *reach, MAX_POSITIONS)?;
            if global.len() != self.layers {
                let problem = format!("{} kinds for {} layers", global.len(), self.layers);
                return Err(config_error("layer_types", problem));
            }
        }
        Ok(())
    }
}

fn bert(json: BertJson, family: Family) -> Result<BertConfig, WeightsError> {
    only("hidden_act", &json.hidden_act, "gelu")?;
    only("position_embedding_type", json.position_embedding_type.as_deref().unwrap_or("absolute"), "absolute")?;
    within("max_position_embeddings", json.max_position_embeddings, MAX_POSITION_ROWS)?;
    within("type_vocab_size", json.type_vocab_size, MAX_WIDTH)?;
    let padding = match family {
        Family::Roberta => Some(json.pad_token_id.unwrap_or(ROBERTA_PADDING)),
        _ => None,
    };
    // The rows up to the padding's own belong to no position.
    let unused = padding.map_or(0, |padding| padding.saturating_add(1));
    let max_tokens = json.max_position_embeddings.checked_sub(unused).filter(|left| *left > 0).ok_or_else(|| {
        let problem = format!("no position is left behind id {unused} of {}", json.max_position_embeddings);
        config_error("pad_token_id", problem)
    })?;
    Ok(BertConfig {
        family,
        width: json.hidden_size,
        layers: json.num_hidden_layers,
        heads: json.num_attention_heads,
        inner: json.intermediate_size,
        vocabulary: json.vocab_size,
        max_tokens,
        eps: json.layer_norm_eps,
        positions: Positions::Learned { rows: json.max_position_embeddings, padding, types: json.type_vocab_size },
        biases: Biases { attention: true, ffn: true, norm: true },
    })
}

fn distilbert(json: DistilBertJson) -> Result<BertConfig, WeightsError> {
    only("activation", &json.activation, "gelu")?;
    let rows = json.max_position_embeddings;
    Ok(BertConfig {
        family: Family::DistilBert,
        width: json.dim,
        layers: json.n_layers,
        heads: json.n_heads,
        inner: json.hidden_dim,
        vocabulary: json.vocab_size,
        max_tokens: rows,
        eps: DISTILBERT_EPS,
        positions: Positions::Learned { rows, padding: None, types: 0 },
        biases: Biases { attention: true, ffn: true, norm: true },
    })
}

fn modernbert(json: ModernBertJson) -> Result<BertConfig, WeightsError> {
    only("hidden_activation", &json.hidden_activation, "gelu")?;
    within("num_hidden_layers", json.num_hidden_layers, MAX_LAYERS)?;
    let global = match (json.layer_types, json.global_attn_every_n_layers) {
        (Some(kinds), _) => kinds.iter().map(|kind| is_global(kind)).collect::<Result<_, _>>()?,
        (None, Some(distance)) => {
            within("global_attn_every_n_layers", distance, MAX_LAYERS)?;
            (0..json.num_hidden_layers).map(|layer| layer.is_multiple_of(distance)).collect()
        }
        (None, None) => return Err(config_error("global_attn_every_n_layers", "is missing")),
    };
    let (global_theta, local_theta) = match (json.rope_parameters, json.global_rope_theta) {
        (Some(rope), _) => {
            only("rope_parameters", &rope.full_attention.rope_type, "default")?;
            only("rope_parameters", &rope.sliding_attention.rope_type, "default")?;
            (rope.full_attention.rope_theta, rope.sliding_attention.rope_theta)
        }
        (None, Some(theta)) => (theta, json.local_rope_theta.unwrap_or(theta)),
        (None, None) => return Err(config_error("global_rope_theta", "is missing")),
    };
    Ok(BertConfig {
        family: Family::ModernBert,
        width: json.hidden_size,
        layers: json.num_hidden_layers,
        heads: json.num_attention_heads,
        inner: json.intermediate_size,
        vocabulary: json.vocab_size,
        max_tokens: json.max_position_embeddings,
        eps: json.norm_eps,
        positions: Positions::Rotary { global_theta, local_theta, reach: json.local_attention / 2, global },
        biases: Biases { attention: json.attention_bias, ffn: json.mlp_bias, norm: json.norm_bias },
    })
}

fn is_global(kind: &str) -> Result<bool, WeightsError> {
    match kind {
        "full_attention" => Ok(true),
        "sliding_attention" => Ok(false),
        other => Err(config_error("layer_types", format!("`{other}` is not supported"))),
    }
}

fn read<T: for<'de> Deserialize<'de>>(config: Value) -> Result<T, WeightsError> {
    serde_json::from_value(config).map_err(|error| config_error("config.json", error.to_string()))
}

fn only(key: &str, found: &str, supported: &str) -> Result<(), WeightsError> {
    let problem = format!("`{found}` is not supported, only `{supported}`");
    (found == supported).then_some(()).ok_or_else(|| config_error(key, problem))
}

fn within(key: &str, found: usize, limit: usize) -> Result<(), WeightsError> {
    let problem = format!("{found} is not between 1 and {limit}");
    (1..=limit).contains(&found).then_some(()).ok_or_else(|| config_error(key, problem))
}
