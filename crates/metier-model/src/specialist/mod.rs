//! What answers one task? A bundle folder in; labels with a calibrated score and accept-or-defer out.
//!
//! - [`manifest`]: what a bundle says about itself.
//! - [`bundle`]: the folder on disk: written, hashed, and verified at every opening.
//! - [`store`]: many bundles in one folder, added by rename.
//! - [`registry`]: which of them answers, who made it and who approved it, in signed records.
//! - [`generation`]: how sure is it of an answer that a decoder wrote for it?
//! - [`scope`]: is a text none of these?
//! - [`first`]: a cheaper stage that is asked before it, and answers where it is sure.
//! - [`hierarchy`]: labels that are paths: which node, and how sure is that?
//! - [`sets`]: several labels a text: which, and how sure is that?
//! - [`hidden`]: what does a head read of a decoder?
//! - [`inputs`]: several named inputs → the one text a specialist reads, in training and in serving alike.
//!
//! Deliberately absent: the encoder. A specialist that reads embeddings is handed them, so that hundreds share one base.

use std::{borrow::Cow, path::Path};

use metier_kernels::Pool;

use crate::{
    Digest, Encoder,
    extract::{Extractor, ReadError, Reading, Schema},
    features::Features,
    head::LinearHead,
    proof::Calibrator,
};

use manifest::Stage;
use scope::ScopeRule;
use sets::SetScores;

pub mod bundle;
pub mod first;
pub mod generation;
pub mod hidden;
pub mod hierarchy;
pub mod inputs;
pub mod manifest;
pub mod registry;
pub mod scope;
pub mod sets;
pub mod store;
pub(crate) mod tensors;

pub use bundle::{AdapterFiles, BundleError, Contents, EncoderFile, Neighbours, ProbeRow};
pub use first::FirstStage;
pub use generation::{Judgement, Written};
pub use hierarchy::Hierarchy;
pub use inputs::{InputError, Inputs, render_inputs, render_request};
pub use manifest::Manifest;
pub use registry::{Registry, RegistryError, RegistryKey};
pub use store::{SpecialistStore, StoreError, is_name};
pub use tensors::TensorError;

/// Runners-up listed in an [`Answer`], the first included.
const MAX_TOP: usize = 5;

/// A verified bundle, ready to answer.
#[derive(Debug)]
pub struct Specialist {
    id: Digest,
    contents: Contents,
    /// Of an extraction.
    schema: Option<Schema>,
}

/// What a specialist says about one text.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The likeliest label; of a specialist that gives several, a JSON list of those that it gives.
    pub label: String,
    /// Its place in [`Manifest::labels`].
    pub label_idx: usize,
    /// Calibrated probability that it is right, 0..1.
    pub score: f32,
    /// The score from which on the specialist answers alone; `None` without a certificate.
    pub threshold: Option<f32>,
    /// `score ≥ threshold`; always false without a certificate: such a specialist defers everything.
    pub accepted: bool,
    /// The stage that answered.
    pub stage: String,
    /// Where the label is a node that stands for all labels under it: what separates the parts of a path.
    pub parent: Option<String>,
    /// The likeliest labels with their share of the softmax, at most five, best first; of a specialist that gives several, with the
    /// probability of each.
    pub top: Vec<(String, f32)>,
}

impl Answer {
    /// Whether what is given fits this label: it is the label, or a node that the label lies under.
    pub fn fits(&self, label: &str) -> bool {
        match &self.parent {
            None => self.label == label,
            Some(separator) => hierarchy::is_under(label, &self.label, separator),
        }
    }

    /// Parts of the path that is given, where it is a node above the labels.
    pub fn level(&self) -> Option<usize> {
        self.parent.as_ref().map(|separator| hierarchy::depth(&self.label, separator))
    }
}

/// A text cannot be answered by this specialist.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AnswerError {
    /// The caller must embed the text first.
    #[error("specialist `{0}` reads an embedding and was given none")]
    NeedsEmbedding(String),
    /// The embedding comes from another base.
    #[error("specialist `{name}` reads embeddings of length {expected} and was given one of {given}")]
    EmbeddingLength {
        /// The specialist.
        name: String,
        /// Length that it was trained on.
        expected: usize,
        /// Length that came.
        given: usize,
    },
    /// It finds values, it does not tell labels.
    #[error("specialist `{0}` extracts values: it reads texts with its own encoder and has no labels")]
    NoLabels(String),
    /// It writes its answers.
    #[error("specialist `{0}` gives no label: a decoder writes its answers")]
    NoHead(String),
    /// The embedding holds NaN or infinity.
    #[error("specialist `{0}` was given an embedding that is not finite")]
    NotFinite(String),
}

impl Specialist {
    /// Opens a bundle folder whose name is its id: every file is hashed against the manifest and the whole against the
    /// name. Cost: one read of at most a few MB.
    pub fn open(dir: &Path) -> Result<Self, BundleError> {
        let (id, contents) = bundle::read(dir)?;
        Ok(Self { id, schema: schema_of(&contents), contents })
    }

    /// A specialist that was never on disk; its id is what its bundle would have.
    pub fn from_contents(contents: Contents) -> Self {
        Self { id: bundle::files(&contents).0, schema: schema_of(&contents), contents }
    }

    /// What a writer writes.
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// The same, to be changed and made a specialist again.
    pub fn into_contents(self) -> Contents {
        self.contents
    }

    /// SHA-256 over the sorted names and hashes of the bundle's files.
    pub fn id(&self) -> Digest {
        self.id
    }

    /// What the bundle says about itself.
    pub fn manifest(&self) -> &Manifest {
        &self.contents.manifest
    }

    /// Must [`Specialist::answer`] be handed an embedding?
    pub fn needs_embedding(&self) -> bool {
        self.embedding_dim().is_some()
    }

    /// Must the embedding of its own network be followed by the frozen encoder's of the same text? [`encoder_text`](Self::encoder_text) is for
    /// the first alone.
    pub fn reads_base(&self) -> bool {
        self.contents.manifest.reads_base
    }

    /// Length of the embedding that it must be handed.
    fn embedding_dim(&self) -> Option<usize> {
        let reads_pairs = self.contents.manifest.stage.reads_pairs();
        let outputs = self.contents.pairs.as_ref().filter(|_| reads_pairs).map_or(0, |pairs| pairs.n_outputs());
        let head = self.contents.head.as_ref()?;
        head.embedding_dim().map(|dim| dim.saturating_sub(outputs)).filter(|dim| *dim > 0)
    }

    /// What the encoder must read of a text, where that is its own, or the decoder.
    pub fn encoder_text<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let own = self.encoder_file().is_some() || self.manifest().hidden.is_some();
        if own { self.manifest().encoder_text(text) } else { Cow::Borrowed(text) }
    }

    /// Layers of its own encoder: then the embedding must be that of
    /// [`Encoder::with_tensors`](crate::Encoder::with_tensors) of this file over the base that the manifest names.
    pub fn encoder_file(&self) -> Option<&EncoderFile> {
        self.contents.encoder.as_ref()
    }

    /// The n-gram features it reads, if any.
    pub fn features(&self) -> Option<&Features> {
        self.contents.features.as_ref()
    }

    /// The classifier, where it classifies.
    pub fn head(&self) -> Option<&LinearHead> {
        self.contents.head.as_ref()
    }

    /// Deltas over the decoder that its manifest names, where it has some.
    pub fn adapter_files(&self) -> Option<&AdapterFiles> {
        self.contents.adapter.as_ref()
    }

    /// JSON Schema of the answers that it writes, where they have one; `None` for other kinds.
    pub fn answer_schema(&self) -> Option<serde_json::Value> {
        let schema = self.contents.schema.as_ref().filter(|_| self.contents.manifest.kind == manifest::Kind::Generate);
        schema.and_then(|schema| serde_json::from_str(schema).ok())
    }

    /// One unit vector a class (embedding length), the mean of its training embeddings; without the out-of-scope class.
    /// Empty where the bundle was built without an encoder.
    pub fn centroids(&self) -> &[Vec<f32>] {
        self.contents.neighbours.as_ref().map_or(&[], |neighbours| &neighbours.centroids)
    }

    /// For `auto`: the cosine to the nearest centroid below which a text is not of this task.
    pub fn match_threshold(&self) -> Option<f32> {
        self.contents.neighbours.as_ref().map(|neighbours| neighbours.match_threshold)
    }

    /// Up to 64 validation texts with the label and score that they had when the bundle was made.
    pub fn probe(&self) -> &[ProbeRow] {
        &self.contents.probe
    }

    /// What an extraction answers; `None` for other kinds.
    pub fn schema(&self) -> Option<&Schema> {
        self.schema.as_ref()
    }

    /// Reads texts for the fields of the schema; `None` for other kinds. The encoder must be the specialist's own:
    /// [`Encoder::tuned`](crate::Encoder::tuned) of [`encoder_file`](Self::encoder_file) over the base that the manifest names.
    pub fn read(&self, encoder: &Encoder, pool: &Pool, texts: &[&str]) -> Option<Result<Vec<Reading>, ReadError>> {
        let (schema, head) = (self.schema()?, self.head()?);
        Some(Extractor { schema, head, encoder }.read_all(pool, texts))
    }

    /// A reading's answer as JSON text (why there is none, where none meets the schema), and whether the specialist stands by it.
    pub fn answer_of(&self, reading: &Reading) -> Answer {
        let manifest = &self.contents.manifest;
        let score = manifest.scores.as_ref().map_or(0.0, |scores| reading.score(scores));
        let threshold = manifest.threshold();
        Answer {
            label: match &reading.answer {
                Ok(answer) => answer.to_string(),
                Err(why) => why.clone(),
            },
            label_idx: 0,
            score,
            threshold,
            accepted: reading.answer.is_ok() && threshold.is_some_and(|threshold| score >= threshold),
            stage: manifest.stage.name().to_owned(),
            parent: None,
            top: Vec::new(),
        }
    }

    /// Margins of every class for one text, in the order of the labels.
    pub fn margins(&self, text: &str, embedding: Option<&[f32]>) -> Result<Vec<f32>, AnswerError> {
        let name = || self.contents.manifest.name.clone();
        if self.schema.is_some() {
            return Err(AnswerError::NoLabels(name()));
        }
        let head = self.contents.head.as_ref().ok_or_else(|| AnswerError::NoHead(name()))?;
        let embedding = match (self.embedding_dim(), embedding) {
            (None, _) => None,
            (Some(_), None) => return Err(AnswerError::NeedsEmbedding(name())),
            (Some(expected), Some(e)) if e.len() != expected => {
                return Err(AnswerError::EmbeddingLength { name: name(), expected, given: e.len() });
            }
            (Some(_), Some(e)) if e.iter().any(|value| !value.is_finite()) => {
                return Err(AnswerError::NotFinite(name()));
            }
            (Some(_), given) => given,
        };
        let row = self.contents.features.as_ref().map(|features| features.apply(text));
        let pairs = self.contents.pairs.as_ref().filter(|_| self.contents.manifest.stage.reads_pairs());
        let Some(pairs) = pairs else { return Ok(head.margins(row.as_ref(), embedding)) };
        let mut dense = embedding.unwrap_or_default().to_vec();
        dense.extend(pairs.outputs(&self.contents.manifest.inputs, text));
        Ok(head.margins(row.as_ref(), Some(&dense)))
    }

    /// The label, its score, and whether the specialist stands by it; of two stages, what the first says where it is sure, else the second.
    pub fn answer(&self, text: &str, embedding: Option<&[f32]>) -> Result<Answer, AnswerError> {
        match self.first_answer(text) {
            Some(answer) if answer.accepted => Ok(answer),
            _ => Ok(self.answer_from(&self.margins(text, embedding)?)),
        }
    }

    /// What the stage that is asked first says, where there is one. It needs no embedding; what it does not accept is for [`answer`](Self::answer).
    pub fn first_answer(&self, text: &str) -> Option<Answer> {
        self.first_answer_from(&self.first_margins(text)?)
    }

    /// Margins of the stage that is asked first, where there is one, in the order of the labels.
    pub fn first_margins(&self, text: &str) -> Option<Vec<f32>> {
        let head = self.contents.first.as_ref()?;
        let stage = self.contents.manifest.first.as_ref()?.stage;
        let row = self.contents.features.as_ref().filter(|_| stage.reads_ngrams()).map(|features| features.apply(text));
        let pairs = self.contents.pairs.as_ref().filter(|_| stage.reads_pairs());
        let dense = pairs.map(|pairs| pairs.outputs(&self.contents.manifest.inputs, text));
        Some(head.margins(row.as_ref(), dense.as_deref()))
    }

    /// The same from margins of its own that are already there.
    pub fn first_answer_from(&self, margins: &[f32]) -> Option<Answer> {
        let first = self.contents.manifest.first.as_ref()?;
        let threshold = first.share.map(|share| share.threshold);
        Some(self.told(first.stage, &first.calibrator, first.scope, first.multi_label.as_ref(), threshold, margins))
    }

    /// What the stage that the specialist is named after says to margins that are already there: a label, or the deepest node that it is sure
    /// of where it may fall back.
    pub fn answer_from(&self, margins: &[f32]) -> Answer {
        let answer = self.whole_answer_from(margins);
        if answer.accepted {
            return answer;
        }
        self.parent_answers_from(margins).into_iter().find(|parent| parent.accepted).unwrap_or(answer)
    }

    /// The same without falling back.
    pub fn whole_answer_from(&self, margins: &[f32]) -> Answer {
        let manifest = &self.contents.manifest;
        let (scope, several) = (manifest.scope, manifest.multi_label.as_ref());
        self.told(manifest.stage, &manifest.calibrator, scope, several, manifest.threshold(), margins)
    }

    /// What it would say at each depth that it may fall back to, deepest first.
    pub fn parent_answers_from(&self, margins: &[f32]) -> Vec<Answer> {
        let manifest = &self.contents.manifest;
        let Some(tree) = manifest.hierarchy.as_ref().filter(|tree| !tree.levels.is_empty()) else { return Vec::new() };
        let whole = self.whole_answer_from(margins);
        let adjusted = manifest.scope.zip(manifest.none()).map(|(rule, none)| rule.apply(margins, none));
        let shares = manifest.calibrator.probabilities(adjusted.as_deref().unwrap_or(margins));
        let parents = tree.levels.iter().map(|level| {
            let (node, p) = tree.likeliest(&manifest.labels, &shares, level.depth);
            let (score, threshold) = (level.line.score(p.ln()), level.share.map(|share| share.threshold));
            Answer {
                label: node.to_owned(),
                score,
                threshold,
                accepted: threshold.is_some_and(|threshold| score >= threshold),
                parent: Some(tree.separator.clone()),
                ..whole.clone()
            }
        });
        parents.collect()
    }

    fn told(
        &self,
        stage: Stage,
        calibrator: &Calibrator,
        scope: Option<ScopeRule>,
        several: Option<&SetScores>,
        threshold: Option<f32>,
        margins: &[f32],
    ) -> Answer {
        let manifest = &self.contents.manifest;
        let stage = stage.name().to_owned();
        if let Some(scores) = several {
            return sets::answer(&manifest.labels, scores, margins, threshold, stage, MAX_TOP);
        }
        let adjusted = scope.zip(manifest.none()).map(|(rule, none)| rule.apply(margins, none));
        let margins = adjusted.as_deref().unwrap_or(margins);
        let shares = calibrator.probabilities(margins);
        let mut order: Vec<usize> = (0..margins.len()).collect();
        order.sort_by(|&a, &b| margins[b].total_cmp(&margins[a]).then(a.cmp(&b)));
        let score = calibrator.score(margins);
        Answer {
            label: manifest.labels[order[0]].clone(),
            label_idx: order[0],
            score,
            threshold,
            accepted: threshold.is_some_and(|threshold| score >= threshold),
            stage,
            parent: None,
            top: order.iter().take(MAX_TOP).map(|&k| (manifest.labels[k].clone(), shares[k])).collect(),
        }
    }
}

/// The fields of an extraction. What a reader or a build hands over was parsed before.
fn schema_of(contents: &Contents) -> Option<Schema> {
    let text = contents.schema.as_ref().filter(|_| contents.manifest.kind == manifest::Kind::Extract)?;
    Schema::parse(text).ok()
}

/// MurmurHash3's 64-bit finaliser: spreads every input bit over the whole word.
pub fn mix(mut h: u64) -> u64 {
    h = (h ^ (h >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    h = (h ^ (h >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ (h >> 33)
}
