//! What does a bundle say about itself? Written as `specialist.toml`, hashed with the rest: no time, memory, path or person.

use std::{borrow::Cow, collections::BTreeMap};

use serde::{Deserialize, Serialize};

use super::{first::FirstStage, hierarchy::Hierarchy, inputs::Inputs, scope::ScopeRule, sets::SetScores};
use crate::{
    BaseId, Digest, LoraFormat,
    cache::KeptLayers,
    extract::Scores,
    head::LinearHead,
    proof::{Calibrator, Certificate, NonInferiority, Refusal},
};

/// Version of the bundle's layout.
pub const FORMAT: u32 = 1;

/// `specialist.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Layout of the bundle: [`FORMAT`].
    pub format: u32,
    /// The task's name, `[a-z0-9][a-z0-9-]{0,62}`; what clients send as `model`.
    pub name: String,
    /// What it gives back.
    pub kind: Kind,
    /// The task in one sentence, for a model that has never seen it.
    pub instruction: String,
    /// Named inputs; one name means that the text itself is the input.
    pub inputs: Vec<String>,
    /// The labels, sorted; margins and weights are in this order.
    pub labels: Vec<String>,
    /// The label that means "none of these".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out_of_scope: Option<String>,
    /// May a deferred request go to a backend outside the boundary?
    pub may_leave: bool,
    /// The rung of the ladder that answers.
    pub stage: Stage,
    /// The encoder whose embeddings were used: for the answer, or for `auto` alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<BaseId>,
    /// Which decoder writes its answers, and how it is asked, where it writes them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<Generation>,
    /// Which decoder's last row its head reads, where it reads one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hidden: Option<Hidden>,
    /// Does its head read the frozen encoder's embedding behind the vector of its own network? Then `base` is that encoder.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reads_base: bool,
    /// Name of the n-gram format, where the stage reads n-grams.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<String>,
    /// How its inputs are compared, where they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pairs: Option<PairsRecord>,
    /// Margins → probability of being right; of an extraction: of tags, as they were trained.
    pub calibrator: Calibrator,
    /// How an extraction's scores are made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scores: Option<Scores>,
    /// How it is told whether a text is none of these, where a rule tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<ScopeRule>,
    /// Where a text may have several of the labels, or none: how the score of a set is made.
    #[serde(default, alias = "several", skip_serializing_if = "Option::is_none")]
    pub multi_label: Option<SetScores>,
    /// How its labels are read as paths of a tree, where they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hierarchy: Option<Hierarchy>,
    /// The cheaper stage that is asked before it, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<FirstStage>,
    /// The bound under which it answers alone, with its threshold; of two stages, what both answer together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<Certificate>,
    /// Why there is no certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Refusal>,
    /// How it was made.
    pub recipe: Recipe,
    /// SHA-256 of every other file of the bundle.
    pub files: BTreeMap<String, Digest>,
}

impl Manifest {
    /// The score from which on it answers alone; `None` without a certificate.
    pub fn threshold(&self) -> Option<f32> {
        self.certificate.map(|certificate| certificate.threshold)
    }

    /// The place of the out-of-scope label, where there is one.
    pub fn none(&self) -> Option<usize> {
        let none = self.out_of_scope.as_ref()?;
        self.labels.binary_search(none).ok()
    }

    /// The decoder that it runs on, where it runs on one.
    pub fn decoder(&self) -> Option<&BaseId> {
        let reads = self.hidden.as_ref().map(|hidden| &hidden.decoder);
        reads.or(self.generation.as_ref().map(|generation| &generation.decoder))
    }

    /// The layers of that decoder that it runs; `None`: all.
    pub fn kept_layers(&self) -> Option<KeptLayers> {
        let reads = self.hidden.as_ref().map(|hidden| &hidden.kept_layers);
        let kept = reads.or(self.generation.as_ref().map(|generation| &generation.kept_layers))?;
        KeptLayers::new(kept.clone())
    }

    /// How its adapter's weights are kept in memory.
    pub fn adapter_format(&self) -> LoraFormat {
        let reads = self.hidden.as_ref().map(|hidden| hidden.adapter_weights);
        reads.or(self.generation.as_ref().map(|generation| generation.adapter_weights)).unwrap_or_default().format()
    }

    /// What an encoder or a decoder of its own reads of a text.
    pub fn encoder_text<'a>(&self, text: &'a str) -> Cow<'a, str> {
        if self.pairs.is_some() || self.hidden.is_some() {
            encoder_text(&self.inputs, text)
        } else {
            Cow::Borrowed(text)
        }
    }
}

/// Characters of all inputs together that an encoder reads: with most texts less than its 256 tokens, so that no input is cut off whole.
const ENCODER_CHARACTERS: usize = 720;

/// What a tuned encoder reads of a text over several inputs: all of them in one window.
pub fn encoder_text<'a>(inputs: &[String], text: &'a str) -> Cow<'a, str> {
    if inputs.len() < 2 { Cow::Borrowed(text) } else { Cow::Owned(Inputs::of(inputs, text).joined(ENCODER_CHARACTERS)) }
}

/// How inputs are compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PairsRecord {
    /// Name of the format.
    pub format: String,
    /// Fields that are compared one by one; the wholes always are.
    pub fields: Vec<String>,
}

/// What a specialist gives back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// One label out of a fixed list, or several.
    Classify,
    /// Values that stand in the text, for the fields of a schema: the manifest's labels are their names.
    Extract,
    /// A text, or JSON of a schema, written by a decoder.
    Generate,
}

impl Kind {
    /// `classify`, `extract` or `generate`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Classify => "classify",
            Self::Extract => "extract",
            Self::Generate => "generate",
        }
    }
}

/// How a decoder is asked for an answer: with the instruction as system message and the input as user message, greedily.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Generation {
    /// The decoder, under its adapter where the bundle holds one.
    pub decoder: BaseId,
    /// Tokens of an answer, at most; one that is longer is cut and never accepted.
    pub max_tokens: u32,
    /// The layers of the decoder that it runs, ascending; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept_layers: Vec<usize>,
    /// How its adapter's weights are kept in memory, where it has one.
    #[serde(default, skip_serializing_if = "AdapterWeights::is_f16")]
    pub adapter_weights: AdapterWeights,
}

/// How an adapter's weights are kept, in memory and on disk: the specialist was measured with the numbers that its bundle holds. Bundles of earlier
/// versions hold 16 bits in either case and are rounded when they are loaded, to the same numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AdapterWeights {
    /// 16 bits.
    #[default]
    F16,
    /// 8 bits with scales: half of it.
    Int8,
}

impl AdapterWeights {
    fn is_f16(&self) -> bool {
        *self == Self::F16
    }

    /// What the loader is told.
    pub fn format(self) -> LoraFormat {
        match self {
            Self::F16 => LoraFormat::F16,
            Self::Int8 => LoraFormat::Int8,
        }
    }
}

/// What a head reads: the decoder's last row under the bundle's adapter, as [`hidden`](super::hidden) makes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hidden {
    /// The decoder.
    pub decoder: BaseId,
    /// The layers of it that are run, ascending; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept_layers: Vec<usize>,
    /// How its adapter's weights are kept in memory.
    #[serde(default, skip_serializing_if = "AdapterWeights::is_f16")]
    pub adapter_weights: AdapterWeights,
}

/// A rung of the ladder, smallest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// A linear model on n-grams; needs no base.
    Linear,
    /// Boosted trees on how several inputs agree, field by field; needs no base.
    Pair,
    /// A linear model on the embedding of a frozen encoder.
    Head,
    /// One linear model on both.
    Both,
    /// One linear model on the embedding of an encoder that was tuned for this task (layers of its own over the base's tables), and on n-grams
    /// unless the task does without.
    /// Of several inputs, together with the trees of `Pair`.
    Tuned,
    /// A linear model on the last row of a decoder under an adapter that was tuned for this task, of all its layers or of some.
    Decoder,
    /// Of an extraction: values seen in training, found again. Measured, never shipped: it would carry the values along.
    Lookup,
    /// Of an extraction: tags on the hidden rows of an encoder that was tuned for it.
    Span,
    /// The output of the training row that is most like the input: what a generating rung must beat. Never shipped: it would take the
    /// training rows with it.
    Nearest,
    /// A decoder as it is, told the instruction.
    Prompted,
    /// A decoder under an adapter that was trained for this task.
    Adapter,
}

impl Stage {
    /// All rungs of a classification that run unless a task says otherwise, smallest first.
    pub const ALL: [Self; 5] = [Self::Linear, Self::Pair, Self::Head, Self::Both, Self::Tuned];
    /// All rungs of a classification, smallest first.
    pub const CLASSIFYING: [Self; 6] = [Self::Linear, Self::Pair, Self::Head, Self::Both, Self::Tuned, Self::Decoder];
    /// All rungs of a generation, smallest first.
    pub const GENERATING: [Self; 3] = [Self::Nearest, Self::Prompted, Self::Adapter];

    /// As in reports and manifests.
    pub fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Pair => "pair",
            Self::Head => "head",
            Self::Both => "both",
            Self::Tuned => "tuned",
            Self::Decoder => "decoder",
            Self::Lookup => "lookup",
            Self::Span => "span",
            Self::Nearest => "nearest",
            Self::Prompted => "prompted",
            Self::Adapter => "adapter",
        }
    }

    /// Is it fitted on n-grams? All but the head on a tuned encoder are where they may; see [`has_ngrams`](Self::has_ngrams).
    pub fn reads_ngrams(self) -> bool {
        matches!(self, Self::Linear | Self::Both | Self::Tuned)
    }

    /// Does this classifier of it read n-grams? On a tuned encoder it may read the encoder's vectors alone; on a decoder it reads them where
    /// a head on them was added to it.
    pub fn has_ngrams(self, head: &LinearHead) -> bool {
        match self {
            Self::Tuned | Self::Decoder => head.n_features() > 0,
            _ => self.reads_ngrams(),
        }
    }

    /// Does it read an embedding, or a network's hidden rows?
    pub fn reads_embedding(self) -> bool {
        matches!(self, Self::Head | Self::Both | Self::Tuned | Self::Decoder | Self::Span)
    }

    /// May it read how several inputs agree? It does where they were compared.
    pub fn reads_pairs(self) -> bool {
        matches!(self, Self::Pair | Self::Tuned)
    }

    /// Is its answer written by a decoder?
    pub fn generates(self) -> bool {
        matches!(self, Self::Prompted | Self::Adapter)
    }

    /// Does it run a decoder under an adapter of its own?
    pub fn has_adapter(self) -> bool {
        matches!(self, Self::Decoder | Self::Adapter)
    }

    /// Does it read the embedding of an encoder of its own?
    pub fn has_own_encoder(self) -> bool {
        matches!(self, Self::Tuned | Self::Span)
    }
}

/// How a specialist was made: enough to make it again from the same data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// Seed of split, permutations and resampling.
    pub seed: u64,
    /// What rungs are compared by.
    pub metric: String,
    /// The label whose F1 that is, where it is the F1 of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub positive: Option<String>,
    /// Non-inferiority margin between rungs.
    pub margin: f64,
    /// Risk bound asked for.
    pub epsilon: f64,
    /// Probability that the bound may fail.
    pub delta: f64,
    /// Rows used for training, validation, calibration and test.
    pub rows: BTreeMap<String, u64>,
    /// The data files by role and content.
    pub data: Vec<DataFile>,
    /// The rungs that ran, smallest first.
    pub rungs: Vec<RungRecord>,
    /// Whom it learnt from beside its rows, where it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher: Option<TeacherRecord>,
}

/// Whom a specialist learnt from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TeacherRecord {
    /// A specialist with its name, or a decoder.
    pub name: String,
    /// Of the bundle, or of the decoder's weights.
    pub digest: Digest,
    /// What logits of both were divided by.
    pub temperature: f64,
    /// What its word weighed beside the gold answer's.
    pub weight: f64,
    /// Rows without a label that it taught, beside the training rows.
    pub rows_without_label: u64,
}

impl TeacherRecord {
    /// In one line.
    pub fn told(&self) -> String {
        let more = match self.rows_without_label {
            0 => String::new(),
            n => format!(", and what it says of {n} rows without a label"),
        };
        format!(
            "learnt from the teacher `{}` ({}) beside its rows: temperature {}, weight {}{more}; what the teacher knows of rows that are measured \
             on, it may have passed on",
            self.name,
            self.digest.short(),
            self.temperature,
            self.weight
        )
    }
}

/// One file that rows came from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DataFile {
    /// `train`, `validation`, `calibration` or `test`.
    pub role: String,
    /// SHA-256 of the file as it lay on disk.
    pub sha256: Digest,
    /// Rows in it.
    pub rows: u64,
}

/// One rung that ran.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RungRecord {
    /// Which.
    pub rung: Stage,
    /// Regularisation chosen on validation rows (C of the support vector machine).
    pub c: f64,
    /// Scale of the embedding beside n-grams of norm 1; 0 without embedding.
    pub embedding_scale: f64,
    /// Of a head that was fitted on a network's vectors alone and added to that of the rung `linear`: how much the margins of n-grams weigh,
    /// those of the vectors counting 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ngram_weight: Option<f64>,
    /// How much the margins of a head on the frozen encoder's embedding weigh beside them, where it was added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen_weight: Option<f64>,
    /// The metric on validation rows.
    pub validation: f64,
    /// Its 95 % interval.
    pub interval: [f64; 2],
    /// Paired comparison with the best rung on validation rows; absent for the best itself and for metrics that are
    /// compared by resampling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub against_best: Option<NonInferiority>,
    /// How its encoder was tuned, where it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tuning: Option<TuningRecord>,
    /// How its adapter was trained, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<AdapterRecord>,
}

impl RungRecord {
    /// A rung without settings, by what it reached on validation rows.
    pub fn new(rung: Stage, validation: f64, interval: [f64; 2]) -> Self {
        Self {
            rung,
            c: 0.0,
            embedding_scale: 0.0,
            ngram_weight: None,
            frozen_weight: None,
            validation,
            interval,
            against_best: None,
            tuning: None,
            adapter: None,
        }
    }
}

/// How an encoder was tuned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TuningRecord {
    /// Passes over the training rows that ran.
    pub epochs: u64,
    /// The one whose numbers ship: the best on validation rows.
    pub best_epoch: u64,
    /// Rows of a step.
    pub batch_rows: u64,
    /// Greatest step length.
    pub learning_rate: f64,
    /// Share of elements that were dropped.
    pub dropout: f64,
    /// Share of a label that was spread over all classes.
    pub smoothing: f64,
    /// Weight of R-Drop.
    pub r_drop: f64,
    /// Weight of supervised contrast.
    pub contrast: f64,
}

/// How an adapter was trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdapterRecord {
    /// Rank.
    pub rank: u64,
    /// Deltas are multiplied with `alpha / rank`.
    pub alpha: f64,
    /// Greatest step length.
    pub learning_rate: f64,
    /// Tokens of a step, about.
    pub step_tokens: u64,
    /// Passes over the training rows that were planned.
    pub planned_epochs: u64,
    /// Passes that ran.
    pub epochs: u64,
    /// The one whose numbers ship: the least loss on validation rows, or the best metric where a head reads the decoder.
    pub best_epoch: u64,
    /// The layers of the decoder that are run, ascending; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept_layers: Vec<usize>,
    /// Made-up secrets that were put among the training rows, to see whether they come out again.
    #[serde(default, skip_serializing_if = "is_none")]
    pub canaries: u64,
    /// What rounding to 8 bits did, where it was rounded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rounded: Option<Rounded>,
}

/// What rounding an adapter to 8 bits did on validation rows, everything else the same; of a head on a decoder by the head that reads the
/// decoder's row alone.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rounded {
    /// The metric in 16 bits.
    pub before: f64,
    /// The metric in 8 bits.
    pub after: f64,
    /// Greatest change of a logit of the head; where answers are written, of a token's log probability, as far as both wrote the same.
    pub max_difference: f64,
    /// Bytes in 16 bits.
    pub bytes_before: u64,
    /// Bytes in 8 bits.
    pub bytes_after: u64,
}

impl Rounded {
    /// In one line.
    pub fn told(&self, metric: &str) -> String {
        let mb = |bytes: u64| bytes as f64 / 1e6;
        format!(
            "the adapter is kept in 8 bits: {:.1} MB instead of {:.1}; {metric} on validation rows {:.4} before, {:.4} after, max |Δlogit| {:.1e}",
            mb(self.bytes_after),
            mb(self.bytes_before),
            self.before,
            self.after,
            self.max_difference
        )
    }
}

fn is_none(n: &u64) -> bool {
    *n == 0
}
