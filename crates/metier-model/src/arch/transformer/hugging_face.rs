//! What does a `config.json` of Transformers say, in GGUF's words?
//!
//! Two generations are read: `rope_parameters` (since Transformers 5), and `rope_theta` with `rope_scaling`. What is missing has the
//! value that Transformers gives it. What would make another network than is computed here is refused by name; what only matters in
//! training (dropout, initialisation) is passed over.
//!
//! Rows of Q and K are in Transformers' order, where the halves of a head turn together, for every kind of network: only GGUF's
//! converter reorders some.

use std::{collections::BTreeMap, f64::consts::PI};

use serde_json::{Map, Value as Json};

use super::{
    blueprint::{Blueprint, Names},
    config::{Activation, Around, Family, RopePairs, TransformerConfig},
    settings::Settings,
};
use crate::{
    arch::{WeightsError, config_error},
    format::gguf::Value,
};

/// What the networks of one `model_type` have in common.
struct Kind {
    model_type: &'static str,
    family: &'static str,
    window: WindowRule,
    /// What counts where the file does not say.
    defaults: Defaults,
    /// Phi's ways: fused tensors, heads of which only a part is turned.
    fused: bool,
    /// Blocks have norms before and behind them, written down as their distance from 1.
    sandwiched: bool,
}

struct Defaults {
    tied: bool,
    rope_theta: f64,
    head_dim: Option<i64>,
}

/// When `sliding_window` counts.
enum WindowRule {
    Never,
    Always,
    /// Where `use_sliding_window` is true.
    IfUsed,
    /// In the layers that `layer_types` names, or all but every n-th.
    ByLayer,
}

const UNTIED: Defaults = Defaults { tied: false, rope_theta: 10_000.0, head_dim: None };
const LLAMA: Kind = Kind {
    model_type: "llama",
    family: "llama",
    window: WindowRule::Never,
    defaults: UNTIED,
    fused: false,
    sandwiched: false,
};
const KINDS: [Kind; 7] = [
    LLAMA,
    Kind { model_type: "mistral", window: WindowRule::Always, ..LLAMA },
    Kind {
        model_type: "smollm3",
        family: "smollm3",
        window: WindowRule::IfUsed,
        defaults: Defaults { tied: true, rope_theta: 2_000_000.0, ..UNTIED },
        ..LLAMA
    },
    Kind { model_type: "qwen2", family: "qwen2", window: WindowRule::IfUsed, ..LLAMA },
    Kind {
        model_type: "qwen3",
        family: "qwen3",
        window: WindowRule::IfUsed,
        defaults: Defaults { head_dim: Some(128), ..UNTIED },
        ..LLAMA
    },
    Kind { model_type: "phi3", family: "phi3", window: WindowRule::Always, fused: true, ..LLAMA },
    Kind {
        model_type: "gemma3_text",
        family: "gemma3",
        window: WindowRule::ByLayer,
        defaults: Defaults { tied: true, rope_theta: 1_000_000.0, head_dim: Some(256) },
        sandwiched: true,
        ..LLAMA
    },
];

/// GGUF's names of settings, and Transformers'.
const SPELLINGS: [(&str, &str); 17] = [
    ("block_count", "num_hidden_layers"),
    ("embedding_length", "hidden_size"),
    ("feed_forward_length", "intermediate_size"),
    ("attention.head_count", "num_attention_heads"),
    ("attention.head_count_kv", "num_key_value_heads"),
    ("attention.key_length", "head_dim"),
    ("context_length", "max_position_embeddings"),
    ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    ("attention.sliding_window", "sliding_window"),
    ("vocabulary", "vocab_size"),
    ("rope.freq_base", "rope_theta"),
    ("rope.freq_base_swa", "rope_theta of sliding_attention"),
    ("rope.dimension_count", "partial_rotary_factor"),
    ("rope.scaling.factor", "rope_parameters.factor"),
    ("rope.scaling.attn_factor", "rope_parameters.attention_factor"),
    ("rope.scaling.original_context_length", "original_max_position_embeddings"),
    ("attention.scale", "query_pre_attn_scalar"),
];
/// Those that are copied as they stand.
const COPIED: usize = 8;

/// Transformers' name of a setting, from GGUF's.
pub(super) fn spelled(key: &str) -> &str {
    SPELLINGS.iter().find(|(gguf, _)| *gguf == key).map_or(key, |(_, own)| own)
}

/// In which blocks differ, as far as names go.
#[derive(Clone, Copy)]
pub(super) struct Style {
    /// Norms before and behind.
    sandwiched: bool,
    /// Q, K and V are one tensor, gate and up another.
    fused: bool,
}

/// Transformers' name of a tensor, from GGUF's.
pub(super) fn tensor_name(name: &str, style: Style) -> String {
    let (stem, kind) = name.rsplit_once('.').unwrap_or((name, ""));
    let own = match stem.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
        None => match stem {
            "token_embd" => "model.embed_tokens".to_owned(),
            "output_norm" => "model.norm".to_owned(),
            "output" => "lm_head".to_owned(),
            other => other.to_owned(),
        },
        Some((layer, part)) => {
            let part = match part {
                "attn_norm" => "input_layernorm",
                "attn_q" => "self_attn.q_proj",
                "attn_k" => "self_attn.k_proj",
                "attn_v" => "self_attn.v_proj",
                "attn_qkv" => "self_attn.qkv_proj",
                "attn_output" => "self_attn.o_proj",
                "attn_q_norm" => "self_attn.q_norm",
                "attn_k_norm" => "self_attn.k_norm",
                "post_attention_norm" => "post_attention_layernorm",
                "ffn_norm" if style.sandwiched => "pre_feedforward_layernorm",
                "ffn_norm" => "post_attention_layernorm",
                "ffn_gate" => "mlp.gate_proj",
                "ffn_up" if style.fused => "mlp.gate_up_proj",
                "ffn_up" => "mlp.up_proj",
                "ffn_down" => "mlp.down_proj",
                "post_ffw_norm" => "post_feedforward_layernorm",
                other => other,
            };
            format!("model.layers.{layer}.{part}")
        }
    };
    if kind.is_empty() { own } else { format!("{own}.{kind}") }
}

/// Settings of `config.json`; `null` is as good as nothing.
struct Config<'a>(&'a Map<String, Json>);

impl<'a> Config<'a> {
    fn get(&self, key: &str) -> Option<&'a Json> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn object(&self, key: &str) -> Result<Option<Config<'a>>, WeightsError> {
        let object = |value: &'a Json| value.as_object().ok_or_else(|| config_error(key, "is no object"));
        Ok(self.get(key).map(object).transpose()?.map(Config))
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, WeightsError> {
        let flag = |value: &Json| value.as_bool().ok_or_else(|| config_error(key, "is neither true nor false"));
        self.get(key).map(flag).transpose()
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>, WeightsError> {
        let text = |value: &'a Json| value.as_str().ok_or_else(|| config_error(key, "is no text"));
        self.get(key).map(text).transpose()
    }

    /// A finite number above 0.
    fn positive(&self, key: &str) -> Result<Option<f64>, WeightsError> {
        let number = |value: &Json| {
            let x = value.as_f64().filter(|x| x.is_finite() && *x > 0.0);
            x.ok_or_else(|| config_error(key, format!("{value} is no finite number above 0")))
        };
        self.get(key).map(number).transpose()
    }

    /// As a setting in GGUF's sense.
    fn value(&self, key: &str) -> Option<Value> {
        Some(match self.get(key)? {
            Json::Number(n) => n.as_i64().map_or_else(|| Value::Float(n.as_f64().unwrap_or(f64::NAN)), Value::Int),
            other => Value::Text(other.to_string()),
        })
    }

    /// One value a layer.
    fn by_layer<T>(
        &self,
        key: &str,
        layers: usize,
        read: impl Fn(&Json) -> Option<T>,
    ) -> Result<Option<Vec<T>>, WeightsError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let values = value.as_array().filter(|values| values.len() == layers);
        let values = values.ok_or_else(|| config_error(key, format!("is no list of {layers} values, one a layer")))?;
        let read =
            |value| read(value).ok_or_else(|| config_error(key, format!("holds {value}, which is not supported")));
        values.iter().map(read).collect::<Result<_, _>>().map(Some)
    }
}

/// What the rotary angles are made of.
struct Angles {
    theta: f64,
    /// Share of a head that is turned.
    share: Option<f64>,
    /// Positions are divided by this.
    linear: Option<f64>,
    /// `(short, long)` of LongRoPE.
    two_factors: Option<[Vec<f32>; 2]>,
    original_context: Option<Value>,
    strength: Option<f64>,
    llama3: Option<Llama3>,
}

/// How Llama 3 stretches: frequencies of long waves are divided by a factor, those of short ones are not, between them it is blended.
struct Llama3 {
    factor: f64,
    low: f64,
    high: f64,
    original_context: f64,
}

impl Llama3 {
    /// What each pair's frequency is divided by.
    fn divisors(&self, theta: f64, rope_dims: usize) -> Vec<f32> {
        let Self { factor, low, high, original_context } = *self;
        let divisor = |pair: usize| {
            let wavelength = 2.0 * PI * theta.powf(2.0 * pair as f64 / rope_dims as f64);
            let turns = original_context / wavelength;
            if turns > high {
                1.0
            } else if turns < low {
                factor
            } else {
                let smooth = (turns - low) / (high - low);
                1.0 / ((1.0 - smooth) / factor + smooth)
            }
        };
        (0..rope_dims / 2).map(|pair| divisor(pair) as f32).collect()
    }
}

/// `own`: the parameters of this kind of layer, if any; `config`: the whole file.
fn angles(own: Option<&Config<'_>>, config: &Config<'_>, theta: f64, phi: bool) -> Result<Angles, WeightsError> {
    let none = Map::new();
    let own = Config(own.map_or(&none, |own| own.0));
    let mut angles = Angles {
        theta: own.positive("rope_theta")?.unwrap_or(theta),
        share: own.positive("partial_rotary_factor")?.or(config.positive("partial_rotary_factor")?),
        linear: None,
        two_factors: None,
        original_context: None,
        strength: None,
        llama3: None,
    };
    let needed = |key: &str| own.positive(key)?.ok_or_else(|| config_error(key, "is missing"));
    // Phi's files have the length of the training outside.
    let original = "original_max_position_embeddings";
    let holder = if config.get(original).is_some() { config } else { &own };
    match own.text("rope_type")?.or(own.text("type")?).unwrap_or("default") {
        "default" => {}
        "linear" => angles.linear = Some(needed("factor")?),
        "llama3" => {
            let original_context = holder.positive(original)?.ok_or_else(|| config_error(original, "is missing"))?;
            let (factor, low, high) = (needed("factor")?, needed("low_freq_factor")?, needed("high_freq_factor")?);
            if low >= high {
                return Err(config_error("low_freq_factor", format!("{low} is not below the high one, {high}")));
            }
            angles.llama3 = Some(Llama3 { factor, low, high, original_context });
        }
        kind if kind == "longrope" || (phi && kind == "su") => {
            for unsupported in ["short_mscale", "long_mscale"] {
                if own.get(unsupported).is_some() {
                    return Err(config_error(unsupported, "is not supported"));
                }
            }
            angles.two_factors = Some([factors(&own, "short_factor")?, factors(&own, "long_factor")?]);
            angles.original_context = holder.value(original);
            angles.strength = match own.positive("attention_factor")? {
                Some(strength) => Some(strength),
                None => {
                    let old = holder.positive(original)?.ok_or_else(|| config_error(original, "is missing"))?;
                    let longest = config.positive("max_position_embeddings")?.unwrap_or(old);
                    let factor = own.positive("factor")?.unwrap_or(longest / old);
                    let stretched = factor > 1.0 && old > 1.0;
                    Some(if stretched { (1.0 + factor.ln() / old.ln()).sqrt() } else { 1.0 })
                }
            };
        }
        other => {
            let problem = format!("`{other}` is not supported, only `default`, `linear`, `llama3` and `longrope`");
            return Err(config_error("rope_type", problem));
        }
    }
    Ok(angles)
}

fn factors(own: &Config<'_>, key: &str) -> Result<Vec<f32>, WeightsError> {
    let wrong = || config_error(key, "is no list of finite numbers above 0");
    let list = own.get(key).and_then(Json::as_array).ok_or_else(wrong)?;
    let factor = |x: &Json| x.as_f64().map(|x| x as f32).filter(|x| x.is_finite() && *x > 0.0);
    list.iter().map(|x| factor(x).ok_or_else(wrong)).collect()
}

/// The `n` of which every n-th layer, and no other, is marked; 0 where none is.
fn period(marked: &[bool]) -> Option<usize> {
    let n = marked.iter().position(|marked| *marked).map_or(0, |first| first + 1);
    let regular = marked.iter().enumerate().all(|(i, marked)| *marked == (n > 0 && (i + 1).is_multiple_of(n)));
    regular.then_some(n)
}

impl Blueprint {
    /// What a `config.json` says. `wanted_context`: see [`DecoderOptions::context`](crate::decoder::DecoderOptions::context).
    pub(crate) fn from_config(config: &Json, wanted_context: Option<usize>) -> Result<Self, WeightsError> {
        let config = Config(config.as_object().ok_or_else(|| config_error("config.json", "is no object"))?);
        let model_type = config.text("model_type")?.unwrap_or("");
        let kind = KINDS.iter().find(|kind| kind.model_type == model_type).ok_or_else(|| {
            let names: Vec<_> = KINDS.iter().map(|kind| format!("`{}`", kind.model_type)).collect();
            config_error("model_type", format!("`{model_type}` is not supported, only {}", names.join(", ")))
        })?;
        let family = Family::named(kind.family)?;
        refuse_other_networks(&config, family)?;
        let mut settings: BTreeMap<String, Value> =
            SPELLINGS[..COPIED].iter().filter_map(|(key, own)| Some(((*key).to_owned(), config.value(own)?))).collect();
        let mut set = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                settings.entry(key.to_owned()).or_insert(value);
            }
        };
        if config.get("rms_norm_eps").is_none() {
            return Err(config_error("rms_norm_eps", "is missing"));
        }
        set("attention.key_length", kind.defaults.head_dim.map(Value::Int));
        if let Some(scalar) = config.positive("query_pre_attn_scalar")?.filter(|_| kind.sandwiched) {
            set("attention.scale", Some(Value::Float(1.0 / scalar.sqrt())));
        }
        let windowed = match kind.window {
            WindowRule::Never => false,
            WindowRule::Always | WindowRule::ByLayer => true,
            WindowRule::IfUsed => config.flag("use_sliding_window")?.unwrap_or(false),
        };
        set("attention.sliding_window", config.value("sliding_window").filter(|_| windowed));
        let (everywhere, in_windows) = all_angles(&config, kind)?;
        set("rope.freq_base", Some(Value::Float(everywhere.theta)));
        set("rope.freq_base_swa", in_windows.map(|angles| Value::Float(angles.theta)));
        if let Some(factor) = everywhere.linear {
            set("rope.scaling.type", Some(Value::Text("linear".to_owned())));
            set("rope.scaling.factor", Some(Value::Float(factor)));
        }
        set("rope.scaling.attn_factor", everywhere.strength.map(Value::Float));
        set("rope.scaling.original_context_length", everywhere.original_context.clone());
        if let Some(share) = everywhere.share.filter(|share| *share != 1.0) {
            let head_dim = head_dim(&config);
            if !kind.fused || share > 1.0 || head_dim.is_none() {
                return Err(config_error("partial_rotary_factor", format!("{share} is not supported")));
            }
            set("rope.dimension_count", head_dim.map(|dim| Value::Int((dim as f64 * share) as i64)));
        }
        let vocabulary = config.get("vocab_size").and_then(Json::as_u64).and_then(|n| usize::try_from(n).ok());
        let vocabulary = vocabulary.ok_or_else(|| config_error("vocab_size", "is missing or no count"))?;
        let around = Around { vocabulary, two_factors: everywhere.two_factors.is_some(), wanted_context };
        let mut network = TransformerConfig::read(&Settings::from_hugging_face(settings), family, around)?;
        network.rope_pairs = RopePairs::Halves;
        read_layers(&config, kind, &mut network)?;
        let rope_divisors = match (&everywhere.two_factors, &everywhere.llama3) {
            (Some([short, long]), _) => {
                let pairs = network.rope_dims / 2;
                for (key, list) in [("short_factor", short), ("long_factor", long)] {
                    if list.len() != pairs {
                        return Err(config_error(key, format!("holds {} factors for {pairs} pairs", list.len())));
                    }
                }
                Some(if network.rope_long { long.clone() } else { short.clone() })
            }
            (None, Some(llama3)) => {
                let divisors = llama3.divisors(everywhere.theta, network.rope_dims);
                if !divisors.iter().all(|divisor| divisor.is_finite() && *divisor > 0.0) {
                    return Err(config_error("factor", "stretches a frequency to nothing"));
                }
                Some(divisors)
            }
            (None, None) => Some(vec![1.0; network.rope_dims / 2]),
        };
        Ok(Self {
            config: network,
            family,
            names: Names::HuggingFace(Style { sandwiched: kind.sandwiched, fused: kind.fused }),
            norm_offset: if kind.sandwiched { 1.0 } else { 0.0 },
            tied: Some(config.flag("tie_word_embeddings")?.unwrap_or(kind.defaults.tied)),
            rope_divisors,
        })
    }
}

fn head_dim(config: &Config<'_>) -> Option<u64> {
    let count = |key: &str| config.get(key)?.as_u64();
    count("head_dim").or_else(|| count("hidden_size")?.checked_div(count("num_attention_heads")?))
}

/// The angles of layers that see everything, and, where they differ, of layers with a window.
fn all_angles(config: &Config<'_>, kind: &Kind) -> Result<(Angles, Option<Angles>), WeightsError> {
    let parameters = match config.object("rope_scaling")? {
        Some(scaling) => Some(scaling),
        None => config.object("rope_parameters")?,
    };
    let theta = config.positive("rope_theta")?.unwrap_or(kind.defaults.rope_theta);
    let phi = kind.fused;
    let nested = parameters.as_ref().is_some_and(|p| p.get("full_attention").is_some());
    if !kind.sandwiched {
        if nested {
            return Err(config_error("rope_parameters", "differ by layer, which is not supported for this network"));
        }
        return Ok((angles(parameters.as_ref(), config, theta, phi)?, None));
    }
    let [full, sliding] = match &parameters {
        Some(parameters) if nested => [parameters.object("full_attention")?, parameters.object("sliding_attention")?],
        _ => [parameters, None],
    };
    let local = config.positive("rope_local_base_freq")?.unwrap_or(10_000.0);
    let sliding = angles(sliding.as_ref(), config, local, false)?;
    if sliding.linear.is_some() || sliding.llama3.is_some() || sliding.two_factors.is_some() {
        return Err(config_error("rope_parameters", "stretch the layers with a window, which is not supported"));
    }
    Ok((angles(full.as_ref(), config, theta, false)?, Some(sliding)))
}

/// What differs from layer to layer.
fn read_layers(config: &Config<'_>, kind: &Kind, network: &mut TransformerConfig) -> Result<(), WeightsError> {
    let regular = |key: &str, marked: &[bool]| {
        period(marked).ok_or_else(|| config_error(key, "differs from layer to layer in no regular way"))
    };
    let layers = network.layers;
    let types = config.by_layer("layer_types", layers, |value| match value.as_str()? {
        "full_attention" => Some(true),
        "sliding_attention" => Some(false),
        _ => None,
    })?;
    match kind.window {
        WindowRule::Never | WindowRule::Always => {}
        WindowRule::IfUsed if network.window.is_none() => {}
        WindowRule::IfUsed if types.is_none() => {
            return Err(config_error("use_sliding_window", "is not supported without `layer_types`"));
        }
        WindowRule::IfUsed | WindowRule::ByLayer => {
            let full_every = match &types {
                Some(types) => regular("layer_types", types)?,
                None => network.window.map_or(0, |window| window.full_every),
            };
            if let Some(window) = &mut network.window {
                window.full_every = full_every;
            }
        }
    }
    if kind.family == "smollm3" {
        let turned = config.by_layer("no_rope_layers", layers, |value| match value.as_u64()? {
            0 => Some(true),
            1 => Some(false),
            _ => None,
        })?;
        network.unturned_every = match turned {
            Some(unturned) => regular("no_rope_layers", &unturned)?,
            None => match config.get("no_rope_layer_interval").map(Json::as_u64) {
                None => network.unturned_every,
                Some(n) => n
                    .and_then(|n| usize::try_from(n).ok())
                    .filter(|n| *n > 0)
                    .ok_or_else(|| config_error("no_rope_layer_interval", "is no count"))?,
            },
        };
    }
    Ok(())
}

/// Settings that make another network than is computed here.
fn refuse_other_networks(config: &Config<'_>, family: &Family) -> Result<(), WeightsError> {
    for key in ["attn_logit_softcapping", "final_logit_softcapping", "quantization_config"] {
        if config.get(key).is_some() {
            return Err(config_error(key, "is not supported"));
        }
    }
    if config.flag("use_bidirectional_attention")? == Some(true) {
        return Err(config_error("use_bidirectional_attention", "is not supported"));
    }
    let supported = match family.activation {
        Activation::Silu => "silu",
        Activation::GeluTanh => "gelu_pytorch_tanh",
    };
    for key in ["hidden_act", "hidden_activation"] {
        // Gemma's files may name another function in the key that its code does not read.
        let read = key == "hidden_activation" || family.activation == Activation::Silu;
        if let Some(found) = config.text(key)?.filter(|found| read && *found != supported) {
            return Err(config_error(key, format!("`{found}` is not supported, only `{supported}`")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const CONFIGS: [&str; 4] = [
        include_str!("../../../tests/goldens/folders/phi4/config.json"),
        include_str!("../../../tests/goldens/folders/gemma3/config.json"),
        include_str!("../../../tests/goldens/folders/smollm3/config.json"),
        include_str!("../../../tests/goldens/folders/llama3/config.json"),
    ];

    /// What a setting may be by mistake or malice.
    fn strange() -> impl Strategy<Value = Json> {
        prop_oneof![
            Just(Json::Null),
            any::<i64>().prop_map(|n| json!(n)),
            any::<u64>().prop_map(|n| json!(n)),
            (0i64..70).prop_map(|n| json!(n)),
            any::<f64>().prop_map(|x| json!(x)),
            any::<bool>().prop_map(|x| json!(x)),
            Just(json!("x")),
            Just(json!([])),
            Just(json!([0, 1, "full_attention", -1.0])),
            Just(json!({"rope_type": "llama3", "factor": 1e300, "full_attention": {"rope_type": 7}})),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        #[test]
        fn no_setting_panics(
            which in 0..CONFIGS.len(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>(), strange()), 1..4),
            context in prop::option::of(0usize..300),
        ) {
            let mut config: Json = serde_json::from_str(CONFIGS[which]).unwrap();
            for (at, inside, value) in changes {
                let mut object = config.as_object_mut().unwrap();
                if inside && object.get("rope_parameters").is_some_and(Json::is_object) {
                    object = object.get_mut("rope_parameters").and_then(Json::as_object_mut).unwrap();
                }
                let keys: Vec<String> = object.keys().cloned().collect();
                if !keys.is_empty() {
                    object.insert(keys[at.index(keys.len())].clone(), value);
                }
            }
            if let Ok(blueprint) = Blueprint::from_config(&config, context) {
                let pairs = blueprint.config().rope_dims / 2;
                prop_assert!(blueprint.rope_divisors.is_none_or(|list| list.len() == pairs && list.iter().all(|x| x.is_finite())));
            }
        }
    }

    #[test]
    fn every_nth_layer_has_a_period() {
        assert_eq!(period(&[false, false, true, false, false, true, false]), Some(3));
        assert_eq!(period(&[false, false]), Some(0));
        assert_eq!(period(&[true, true]), Some(1));
        assert_eq!(period(&[true, false]), None);
        assert_eq!(period(&[false, true, false, false]), None);
        assert_eq!(period(&[]), Some(0));
    }
}
