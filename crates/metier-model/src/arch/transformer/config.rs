//! What network is this? Its shape, read from a file's settings and checked.
//!
//! What all networks of a family have in common stands in [`FAMILIES`], one line each; what differs between them stands in the file.

use super::settings::Settings;
use crate::{
    arch::{WeightsError, config_error},
    cache::{CacheShape, KvFormat},
    format::gguf::Value,
};

/// Layers, at most.
const MAX_LAYERS: usize = 512;
/// Elements of a hidden or inner row, at most.
const MAX_WIDTH: usize = 1 << 16;
/// Tokens of a context, at most.
const MAX_CONTEXT: usize = 1 << 20;
/// Layers of Gemma 3 27B, the only size whose scores are scaled by another width than the head's.
const GEMMA3_27B_LAYERS: usize = 62;

/// Which elements of a head are turned together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopePairs {
    /// `(2i, 2i + 1)`: GGUF files of the `llama` family, whose converter reorders the rows of Q and K.
    Adjacent,
    /// `(i, i + rope_dims / 2)`: everything else.
    Halves,
}

/// What the gate of a feed-forward block goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x · σ(x)`.
    Silu,
    /// GELU in its tanh form.
    GeluTanh,
}

/// Layers that see only the last positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Positions that a token sees, itself included.
    pub positions: usize,
    /// Every n-th layer sees everything; 0: none does.
    pub full_every: usize,
}

/// Shape of the network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TransformerConfig {
    /// Blocks.
    pub layers: usize,
    /// Elements of a hidden row.
    pub width: usize,
    /// Elements of a block's inner row.
    pub inner: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Elements of a head; a multiple of 16.
    pub head_dim: usize,
    /// Tokens that the model reads and writes at most.
    pub context: usize,
    /// Rows of the embedding table.
    pub vocabulary: usize,
    /// Added to the mean square.
    pub eps: f32,
    /// Which elements of a head are turned together.
    pub rope_pairs: RopePairs,
    /// The first so many elements of a head are turned; even.
    pub rope_dims: usize,
    /// Base of the rotary angles.
    pub rope_base: f32,
    /// Positions are divided by this (linear scaling).
    pub rope_divisor: f32,
    /// Turned elements are multiplied by this (LongRoPE's attention factor).
    pub rope_strength: f32,
    /// Base of the angles in layers with a window, which are not scaled; `None`: as everywhere.
    pub window_rope_base: Option<f32>,
    /// Every n-th layer does not turn; 0: all do.
    pub unturned_every: usize,
    /// `None`: all layers see everything.
    pub window: Option<Window>,
    /// What the gate goes through.
    pub activation: Activation,
    /// Embeddings are multiplied by this.
    pub embedding_scale: f32,
    /// Scores are multiplied by this.
    pub score_scale: f32,
    /// Heads of Q and K are normed before they are turned.
    pub head_norms: bool,
    /// What attention and feed-forward return is normed before it is added.
    pub post_norms: bool,
    /// Of LongRoPE's two lists of factors, the long one: `context` is longer than what the short one was made for.
    pub rope_long: bool,
    /// How keys and values are kept; no business of the file's.
    pub kv_format: KvFormat,
}

/// What stands beside a network's settings.
#[derive(Clone, Copy, Debug)]
pub(super) struct Around {
    /// Rows of the embedding table.
    pub(super) vocabulary: usize,
    /// The file has LongRoPE's short and long factors.
    pub(super) two_factors: bool,
    /// Tokens that a sequence shall be able to have. `None`: what the network is made for; with two lists of factors, what the
    /// short one holds for, because the long one costs quality on every short text.
    pub(super) wanted_context: Option<usize>,
}

/// What the networks of one `general.architecture` have in common.
pub(super) struct Family {
    pub(super) name: &'static str,
    rope_pairs: RopePairs,
    /// Biases of Q, K and V must be there. Elsewhere they are used if they are.
    pub(super) qkv_bias: bool,
    head_norms: bool,
    post_norms: bool,
    pub(super) activation: Activation,
    scaled_embedding: bool,
    unturned_every: usize,
    full_every: usize,
    window_rope_base: Option<f32>,
}

const LLAMA: Family = Family {
    name: "llama",
    rope_pairs: RopePairs::Adjacent,
    qkv_bias: false,
    head_norms: false,
    post_norms: false,
    activation: Activation::Silu,
    scaled_embedding: false,
    unturned_every: 0,
    full_every: 0,
    window_rope_base: None,
};

/// Llama 2 and 3, SmolLM2 and Mistral are all `llama`; Phi-4-mini is `phi3`; Qwen 2.5 is `qwen2`.
const FAMILIES: [Family; 6] = [
    LLAMA,
    Family { name: "smollm3", unturned_every: 4, ..LLAMA },
    Family { name: "qwen2", rope_pairs: RopePairs::Halves, qkv_bias: true, ..LLAMA },
    Family { name: "qwen3", rope_pairs: RopePairs::Halves, head_norms: true, ..LLAMA },
    Family { name: "phi3", rope_pairs: RopePairs::Halves, ..LLAMA },
    Family {
        name: "gemma3",
        rope_pairs: RopePairs::Halves,
        head_norms: true,
        post_norms: true,
        activation: Activation::GeluTanh,
        scaled_embedding: true,
        full_every: 6,
        window_rope_base: Some(10_000.0),
        ..LLAMA
    },
];

impl Family {
    /// The family that GGUF calls so.
    pub(super) fn named(architecture: &str) -> Result<&'static Self, WeightsError> {
        FAMILIES.iter().find(|family| family.name == architecture).ok_or_else(|| {
            let names: Vec<_> = FAMILIES.iter().map(|family| format!("`{}`", family.name)).collect();
            let problem = format!("`{architecture}` is not supported, only {}", names.join(", "));
            config_error("general.architecture", problem)
        })
    }
}

impl TransformerConfig {
    /// Checks what a file says.
    pub(super) fn read(settings: &Settings, family: &'static Family, around: Around) -> Result<Self, WeightsError> {
        for unsupported in ["rope.scale_linear", "expert_count", "attn_logit_softcapping", "final_logit_softcapping"] {
            let harmless = matches!(settings.value(unsupported), None | Some(Value::Int(0)));
            if !harmless {
                return Err(settings.wrong(unsupported, "is not supported"));
            }
        }
        let layers = settings.count("block_count", MAX_LAYERS)?;
        let width = settings.count("embedding_length", MAX_WIDTH)?;
        let heads = settings.count("attention.head_count", width)?;
        let kv_heads = settings.maybe_count("attention.head_count_kv", heads)?.unwrap_or(heads);
        let head_dim = settings.maybe_count("attention.key_length", MAX_WIDTH)?;
        if head_dim.is_none() && !width.is_multiple_of(heads) {
            return Err(
                settings.wrong("attention.head_count", format!("{width} elements do not part into {heads} heads"))
            );
        }
        let head_dim = head_dim.unwrap_or(width / heads);
        if !heads.is_multiple_of(kv_heads) || !head_dim.is_multiple_of(16) || heads * head_dim > MAX_WIDTH {
            let problem = format!(
                "{heads} heads of {head_dim} elements and {kv_heads} key heads: sizes must be multiples of 16, all heads together at most {MAX_WIDTH} elements, and each key head serves as many heads"
            );
            return Err(settings.wrong("attention.head_count", problem));
        }
        if let Some(n) = settings.maybe_count("attention.value_length", MAX_WIDTH)?.filter(|n| *n != head_dim) {
            return Err(settings.wrong("attention.value_length", format!("{n} is not the keys' {head_dim}")));
        }
        let rope_dims = settings.maybe_count("rope.dimension_count", head_dim)?.unwrap_or(head_dim);
        if !rope_dims.is_multiple_of(2) {
            return Err(settings.wrong("rope.dimension_count", format!("{rope_dims} is odd")));
        }
        let scaling = match settings.value("rope.scaling.type") {
            None => "none",
            Some(Value::Text(text)) => text,
            Some(_) => return Err(settings.wrong("rope.scaling.type", "is no text")),
        };
        let rope_divisor = match scaling {
            // LongRoPE's factors are tensors.
            "none" | "longrope" => 1.0,
            "linear" => settings.positive("rope.scaling.factor")?.unwrap_or(1.0),
            other => return Err(settings.wrong("rope.scaling.type", format!("`{other}` is not supported"))),
        };
        let longest = settings.count("context_length", MAX_CONTEXT)?;
        let short = match around.two_factors {
            true => settings.count("rope.scaling.original_context_length", longest)?,
            false => longest,
        };
        let context = around.wanted_context.unwrap_or(short);
        if !(1..=longest).contains(&context) {
            let problem = format!("{context} tokens of context are wanted, the network reads 1 to {longest}");
            return Err(settings.wrong("context_length", problem));
        }
        let eps = settings.positive("attention.layer_norm_rms_epsilon")?.unwrap_or(1e-5);
        if eps >= 1.0 {
            return Err(settings.wrong("attention.layer_norm_rms_epsilon", format!("{eps} is not below 1")));
        }
        let window = settings.maybe_count("attention.sliding_window", MAX_CONTEXT)?;
        let full_every = match settings.maybe_count("attention.sliding_window_pattern", MAX_LAYERS) {
            Ok(n) => n.unwrap_or(family.full_every),
            Err(_) => return Err(settings.wrong("attention.sliding_window_pattern", "only a period is supported")),
        };
        let whole_window = window.is_some_and(|positions| positions >= context);
        let window = window.map(|positions| Window { positions, full_every });
        let score_width = if family.name == "gemma3" && layers == GEMMA3_27B_LAYERS { width / heads } else { head_dim };
        let score_scale = settings.positive("attention.scale")?.unwrap_or(1.0 / (score_width as f32).sqrt());
        let rope_base = |key| match settings.positive(key)? {
            Some(base) if base < 1.0 => Err(settings.wrong(key, format!("{base} is below 1"))),
            base => Ok(base),
        };
        let vocabulary = around.vocabulary;
        if !(1..=crate::tokenizer::MAX_VOCABULARY).contains(&vocabulary) {
            return Err(settings.wrong("vocabulary", format!("{vocabulary} rows are no vocabulary")));
        }
        Ok(Self {
            layers,
            width,
            inner: settings.count("feed_forward_length", MAX_WIDTH)?,
            heads,
            kv_heads,
            head_dim,
            context,
            vocabulary,
            eps,
            rope_pairs: family.rope_pairs,
            rope_dims,
            rope_base: rope_base("rope.freq_base")?.unwrap_or(10_000.0),
            rope_divisor,
            rope_strength: settings.positive("rope.scaling.attn_factor")?.unwrap_or(1.0),
            window_rope_base: match family.window_rope_base {
                Some(usual) if window.is_some() => Some(rope_base("rope.freq_base_swa")?.unwrap_or(usual)),
                _ => None,
            },
            unturned_every: family.unturned_every,
            window: window.filter(|_| !whole_window || family.window_rope_base.is_some()),
            activation: family.activation,
            embedding_scale: if family.scaled_embedding { (width as f32).sqrt() } else { 1.0 },
            score_scale,
            head_norms: family.head_norms,
            post_norms: family.post_norms,
            rope_long: context > short,
            kv_format: KvFormat::F32,
        })
    }

    /// Shape of its cache.
    pub fn cache(&self) -> CacheShape {
        let Self { layers, kv_heads, head_dim, kv_format, .. } = *self;
        CacheShape { layers, kv_heads, head_dim, format: kv_format }
    }

    /// Elements of all query heads of a row.
    pub(super) fn q_len(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Elements of all key heads of a row, and of all value heads.
    pub(super) fn kv_len(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// How many positions a token of this layer sees, itself included; `None`: all.
    pub(super) fn window_of(&self, layer_idx: usize) -> Option<usize> {
        let Window { positions, full_every } = self.window?;
        (!every(full_every, layer_idx)).then_some(positions)
    }

    /// Whether this layer turns queries and keys.
    pub(super) fn turns(&self, layer_idx: usize) -> bool {
        !every(self.unturned_every, layer_idx)
    }
}

fn every(n: usize, layer_idx: usize) -> bool {
    n > 0 && (layer_idx + 1).is_multiple_of(n)
}
