//! A specialist on disk: one folder, named by what is in it.
//!
//! ```text
//! specialist.toml         the manifest, with the SHA-256 of every file below
//! features.safetensors    n-gram ids and weights                      (linear, both; tuned unless it does without)
//! head.safetensors        the classifier                              (all that classify)
//! first.safetensors       the classifier of a cheaper stage that is asked first     (if there is one)
//! pairs.safetensors       what is compared of several inputs, and trees      (pair, tuned)
//! encoder.safetensors     layers of its own encoder, in IEEE halves   (tuned)
//! adapter_config.json     as PEFT writes it                           (adapter, decoder)
//! adapter.safetensors     deltas over the decoder: IEEE halves, or 8 bits with scales     (adapter, decoder)
//! schema.json             the form of every answer                    (extract; generate if the task names one)
//! neighbours.safetensors  class centroids and match threshold         (if an encoder was at hand)
//! probe.jsonl             up to 64 validation texts with their answers
//! evidence.json           the evaluation that the report shows
//! ─────────────────────── hashed above, free below
//! run.json  report.html  CARD.md
//! ```
//!
//! id = SHA-256 over lines `<sha256> <name>\n` of the files above the line, manifest included, sorted by name.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};

use super::{
    manifest::{AdapterWeights, FORMAT, Kind, Manifest, Stage},
    tensors::{self, Tensor, TensorError},
};
use crate::{
    Digest, adapter,
    extract::{Schema, tags},
    features::Features,
    format::FormatError,
    head::LinearHead,
    pairs::PairModel,
};

const MANIFEST: &str = "specialist.toml";
const FEATURES: &str = "features.safetensors";
const HEAD: &str = "head.safetensors";
const FIRST: &str = "first.safetensors";
const ENCODER: &str = "encoder.safetensors";
const ADAPTER_CONFIG: &str = "adapter_config.json";
const ADAPTER: &str = "adapter.safetensors";
const SCHEMA: &str = "schema.json";
const PAIRS: &str = "pairs.safetensors";
const NEIGHBOURS: &str = "neighbours.safetensors";
const PROBE: &str = "probe.jsonl";
const EVIDENCE: &str = "evidence.json";
/// Files that may lie beside a bundle: what a run measured and what is rendered. They are neither hashed nor read.
pub const BESIDE: [&str; 3] = ["run.json", "report.html", "CARD.md"];
/// Most bytes of one file of a bundle; larger ones are refused unread.
const MAX_FILE_BYTES: u64 = 64 << 20;
/// The same of an encoder and of an adapter: BERT-large's layers are 600 MB in 16 bits.
const MAX_ENCODER_BYTES: u64 = 1 << 30;
/// Most probe rows.
pub const MAX_PROBE_ROWS: usize = 64;

/// A folder is no intact bundle.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// A file cannot be read or written.
    #[error("cannot access `{path}` of the bundle")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The manifest names a file that is not there.
    #[error("bundle `{dir}` lacks `{file}`")]
    Missing {
        /// The bundle.
        dir: PathBuf,
        /// The file.
        file: String,
    },
    /// A file that the manifest does not name.
    #[error("bundle `{dir}` holds `{file}`, which its manifest does not name")]
    Unknown {
        /// The bundle.
        dir: PathBuf,
        /// The file.
        file: String,
    },
    /// A file is not what was hashed.
    #[error("`{file}` of bundle `{dir}` was changed: its SHA-256 is {actual}, the manifest says {expected}")]
    Changed {
        /// The bundle.
        dir: PathBuf,
        /// The file.
        file: String,
        /// Hash in the manifest.
        expected: Digest,
        /// Hash of the bytes.
        actual: Digest,
    },
    /// The whole is not what the folder's name says.
    #[error("bundle `{dir}` was changed: manifest and files hash to {actual}, which is not the folder's name")]
    WrongId {
        /// The bundle.
        dir: PathBuf,
        /// Hash of what is there.
        actual: Digest,
    },
    /// A file is larger than any this version writes.
    #[error("`{file}` of bundle `{dir}` has {bytes} bytes; at most {limit} are read")]
    TooLarge {
        /// The bundle.
        dir: PathBuf,
        /// The file.
        file: String,
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The manifest is no manifest.
    #[error("cannot read the manifest of bundle `{dir}`")]
    Manifest {
        /// The bundle.
        dir: PathBuf,
        /// Why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A tensor file is not what this version writes.
    #[error("cannot read `{file}` of bundle `{dir}`")]
    Tensor {
        /// The bundle.
        dir: PathBuf,
        /// The file.
        file: String,
        /// Why.
        #[source]
        source: TensorError,
    },
    /// The parts contradict each other.
    #[error("bundle `{dir}` contradicts itself: {reason}")]
    Inconsistent {
        /// The bundle.
        dir: PathBuf,
        /// How.
        reason: String,
    },
}

/// A specialist in memory: what the writer takes and the reader gives.
#[derive(Clone, Debug, PartialEq)]
pub struct Contents {
    /// Its `files` are filled in by the writer.
    pub manifest: Manifest,
    /// N-grams, for stages that read them.
    pub features: Option<Features>,
    /// The classifier, where it classifies.
    pub head: Option<LinearHead>,
    /// The classifier of the stage that is asked first, where there is one.
    pub first: Option<LinearHead>,
    /// Layers of its own encoder, for stages that have one.
    pub encoder: Option<EncoderFile>,
    /// Deltas over the decoder, for stages that have them.
    pub adapter: Option<AdapterFiles>,
    /// JSON Schema of its answers, where they have one.
    pub schema: Option<String>,
    /// How several inputs are compared, for stages that read that.
    pub pairs: Option<Arc<PairModel>>,
    /// For `auto`.
    pub neighbours: Option<Neighbours>,
    /// At most [`MAX_PROBE_ROWS`].
    pub probe: Vec<ProbeRow>,
    /// The evaluation, as JSON text.
    pub evidence: String,
}

/// The bytes of `encoder.safetensors`: what [`Encoder::with_tensors`](crate::Encoder::with_tensors) reads. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct EncoderFile(pub Arc<Vec<u8>>);

impl std::fmt::Debug for EncoderFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EncoderFile({} bytes)", self.0.len())
    }
}

/// PEFT's two files, the second perhaps in 8 bits: what [`Adapter::from_bytes`](crate::Adapter::from_bytes) reads. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct AdapterFiles {
    /// `adapter_config.json`.
    pub config: String,
    /// `adapter.safetensors`.
    pub weights: Arc<Vec<u8>>,
}

impl AdapterFiles {
    /// The same deltas as a specialist keeps them.
    ///
    /// # Errors
    ///
    /// Where the file cannot be read.
    pub fn kept_as(&self, weights: AdapterWeights) -> Result<Self, FormatError> {
        match weights {
            AdapterWeights::F16 => Ok(self.clone()),
            AdapterWeights::Int8 => {
                Ok(Self { config: self.config.clone(), weights: Arc::new(adapter::to_int8(&self.weights)?) })
            }
        }
    }
}

impl std::fmt::Debug for AdapterFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AdapterFiles({} bytes)", self.weights.len())
    }
}

/// Where the task lies among all texts.
#[derive(Clone, Debug, PartialEq)]
pub struct Neighbours {
    /// One unit vector a class, without the out-of-scope class.
    pub centroids: Vec<Vec<f32>>,
    /// Cosine to the nearest centroid below which a text is not of this task.
    pub match_threshold: f32,
}

/// A validation text with the answer it had when the bundle was made: rerun where a kernel tier may differ.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProbeRow {
    /// The text, in the clear; the model card says so.
    pub text: String,
    /// The answer.
    pub label: String,
    /// Its score.
    pub score: f32,
}

/// The bundle's id and its files, manifest included.
pub fn files(contents: &Contents) -> (Digest, BTreeMap<String, Vec<u8>>) {
    let mut files = BTreeMap::new();
    if let Some(head) = &contents.head {
        files.insert(HEAD.to_owned(), head.to_bytes());
    }
    if let Some(first) = &contents.first {
        files.insert(FIRST.to_owned(), first.to_bytes());
    }
    if let Some(features) = &contents.features {
        files.insert(FEATURES.to_owned(), features.to_bytes());
    }
    if let Some(encoder) = &contents.encoder {
        files.insert(ENCODER.to_owned(), encoder.0.to_vec());
    }
    if let Some(adapter) = &contents.adapter {
        files.insert(ADAPTER_CONFIG.to_owned(), adapter.config.clone().into_bytes());
        files.insert(ADAPTER.to_owned(), adapter.weights.to_vec());
    }
    if let Some(schema) = &contents.schema {
        files.insert(SCHEMA.to_owned(), schema.clone().into_bytes());
    }
    if let Some(pairs) = &contents.pairs {
        files.insert(PAIRS.to_owned(), pairs.to_bytes());
    }
    if let Some(neighbours) = &contents.neighbours {
        let dim = neighbours.centroids.first().map_or(0, Vec::len);
        let tensor = Tensor::f32(&[neighbours.centroids.len(), dim], &neighbours.centroids.concat());
        let threshold = Tensor::f32(&[1], &[neighbours.match_threshold]);
        let all = BTreeMap::from([("centroids", tensor), ("match_threshold", threshold)]);
        files.insert(NEIGHBOURS.to_owned(), tensors::write(&all));
    }
    if let Some(schema) = &contents.schema {
        files.insert(SCHEMA.to_owned(), schema.clone().into_bytes());
    }
    let probe: String = contents
        .probe
        .iter()
        .map(|row| serde_json::to_string(row).expect("texts and finite numbers are JSON") + "\n")
        .collect();
    files.insert(PROBE.to_owned(), probe.into_bytes());
    files.insert(EVIDENCE.to_owned(), contents.evidence.clone().into_bytes());
    let hashes = files.iter().map(|(name, bytes)| (name.clone(), Digest::of(bytes))).collect();
    let manifest = Manifest { files: hashes, ..contents.manifest.clone() };
    let manifest = toml::to_string_pretty(&manifest).expect("a manifest is a TOML table");
    files.insert(MANIFEST.to_owned(), manifest.into_bytes());
    (id(files.iter().map(|(name, bytes)| (name.as_str(), Digest::of(bytes)))), files)
}

/// Writes a bundle's files into an empty folder, each flushed to disk. The folder is to be added to a store, which names it.
pub fn write(contents: &Contents, dir: &Path) -> Result<Digest, BundleError> {
    let (id, files) = files(contents);
    for (name, bytes) in files {
        write_durably(&dir.join(name), &bytes)?;
    }
    Ok(id)
}

/// Writes one file and flushes it to disk.
pub fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), BundleError> {
    let written = fs::File::create(path).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.map_err(|source| BundleError::Io { path: path.to_owned(), source })
}

/// Reads a bundle whose folder is named by its id.
pub fn read(dir: &Path) -> Result<(Digest, Contents), BundleError> {
    let (id, contents) = read_unnamed(dir)?;
    let named = dir.file_name().and_then(|name| name.to_str()).is_some_and(|name| name == id.to_string());
    if named { Ok((id, contents)) } else { Err(BundleError::WrongId { dir: dir.to_owned(), actual: id }) }
}

/// Reads a bundle in a folder of any name (a staged one) and says which id it has.
pub fn read_unnamed(dir: &Path) -> Result<(Digest, Contents), BundleError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        |source| BundleError::Io { path, source }
    };
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).map_err(io(dir))? {
        let entry = entry.map_err(io(dir))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if BESIDE.contains(&name.as_str()) {
            continue;
        }
        let metadata = fs::metadata(entry.path()).map_err(io(&entry.path()))?;
        if !metadata.is_file() {
            return Err(BundleError::Unknown { dir: dir.to_owned(), file: name });
        }
        let limit = if name == ENCODER || name == ADAPTER { MAX_ENCODER_BYTES } else { MAX_FILE_BYTES };
        if metadata.len() > limit {
            return Err(BundleError::TooLarge { dir: dir.to_owned(), file: name, bytes: metadata.len(), limit });
        }
        found.insert(name, entry.path());
    }
    let missing = |file: &str| BundleError::Missing { dir: dir.to_owned(), file: file.to_owned() };
    let manifest_path = found.remove(MANIFEST).ok_or_else(|| missing(MANIFEST))?;
    let manifest_bytes = fs::read(&manifest_path).map_err(io(&manifest_path))?;
    let manifest: Manifest = toml::from_slice(&manifest_bytes)
        .map_err(|source| BundleError::Manifest { dir: dir.to_owned(), source: Box::new(source) })?;

    let mut contents_of = BTreeMap::new();
    for (file, &expected) in &manifest.files {
        let path = found.remove(file).ok_or_else(|| missing(file))?;
        let bytes = fs::read(&path).map_err(io(&path))?;
        let actual = Digest::of(&bytes);
        if actual != expected {
            return Err(BundleError::Changed { dir: dir.to_owned(), file: file.clone(), expected, actual });
        }
        contents_of.insert(file.as_str(), bytes);
    }
    if let Some((file, _)) = found.pop_first() {
        return Err(BundleError::Unknown { dir: dir.to_owned(), file });
    }
    let manifest_hash = (MANIFEST, Digest::of(&manifest_bytes));
    let id = id(manifest.files.iter().map(|(name, hash)| (name.as_str(), *hash)).chain([manifest_hash]));
    let contents = parse(dir, &manifest, contents_of)?;
    Ok((id, contents))
}

fn parse(dir: &Path, manifest: &Manifest, mut files: BTreeMap<&str, Vec<u8>>) -> Result<Contents, BundleError> {
    let encoder = files.remove(ENCODER).map(|bytes| EncoderFile(Arc::new(bytes)));
    let weights = files.remove(ADAPTER).map(Arc::new);
    let tensor = |file: &str| {
        let file = file.to_owned();
        move |source| BundleError::Tensor { dir: dir.to_owned(), file, source }
    };
    let inconsistent = |reason: String| BundleError::Inconsistent { dir: dir.to_owned(), reason };
    let required =
        |file: &str| files.get(file).ok_or_else(|| BundleError::Missing { dir: dir.to_owned(), file: file.to_owned() });
    let text = |file: &str| {
        let read = |bytes: &Vec<u8>| {
            String::from_utf8(bytes.clone()).map_err(|_| inconsistent(format!("`{file}` is not UTF-8")))
        };
        files.get(file).map(read).transpose()
    };
    let head =
        |file: &str| files.get(file).map(|bytes| LinearHead::from_bytes(bytes).map_err(tensor(file))).transpose();
    let (head, first) = (head(HEAD)?, head(FIRST)?);
    let adapter = match (text(ADAPTER_CONFIG)?, weights) {
        (Some(config), Some(weights)) => Some(AdapterFiles { config, weights }),
        (None, None) => None,
        _ => return Err(inconsistent(format!("of `{ADAPTER_CONFIG}` and `{ADAPTER}` it has one"))),
    };
    let schema = text(SCHEMA)?;
    let features =
        files.get(FEATURES).map(|bytes| Features::from_bytes(bytes).map_err(tensor(FEATURES))).transpose()?;
    let fields = manifest.pairs.as_ref().map_or(&[][..], |pairs| &pairs.fields);
    let pairs =
        files.get(PAIRS).map(|bytes| PairModel::from_bytes(bytes, fields).map_err(tensor(PAIRS))).transpose()?;
    let neighbours =
        files.get(NEIGHBOURS).map(|bytes| read_neighbours(bytes).map_err(tensor(NEIGHBOURS))).transpose()?;
    let probe = read_probe(required(PROBE)?).ok_or_else(|| inconsistent(format!("`{PROBE}` holds no probe rows")))?;
    let evidence =
        text(EVIDENCE)?.ok_or_else(|| BundleError::Missing { dir: dir.to_owned(), file: EVIDENCE.to_owned() })?;
    let known = [HEAD, FIRST, FEATURES, ADAPTER_CONFIG, SCHEMA, PAIRS, NEIGHBOURS, PROBE, EVIDENCE];
    if let Some(file) = files.keys().find(|file| !known.contains(file)) {
        return Err(BundleError::Unknown { dir: dir.to_owned(), file: (*file).to_owned() });
    }
    if encoder.is_some() != manifest.stage.has_own_encoder() {
        return Err(inconsistent("it has an encoder of its own that its stage does not read, or lacks one".to_owned()));
    }
    let contents = Contents {
        manifest: manifest.clone(),
        features,
        head,
        first,
        encoder,
        adapter,
        schema,
        pairs: pairs.map(Arc::new),
        neighbours,
        probe,
        evidence,
    };
    check(&contents).map_err(inconsistent)?;
    Ok(contents)
}

/// What a hash cannot say: that the parts fit each other, so that answering cannot fail later.
fn check(contents: &Contents) -> Result<(), String> {
    let manifest = &contents.manifest;
    if manifest.format != FORMAT {
        return Err(format!("its format is {}, this version reads {FORMAT}", manifest.format));
    }
    if !super::store::is_name(&manifest.name) {
        return Err(format!("`{}` is no name of a specialist", manifest.name));
    }
    match (manifest.kind, &contents.head) {
        _ if manifest.kind != Kind::Extract && (manifest.scores.is_some() || manifest.stage == Stage::Span) => {
            return Err("it has the scores or the stage of an extraction, and is none".to_owned());
        }
        (Kind::Classify, Some(head)) => {
            check_head(contents, head)?;
            if manifest
                .scope
                .is_some_and(|rule| !rule.is_valid() || manifest.none().is_none() || manifest.multi_label.is_some())
            {
                return Err("it tells what is out of scope by no numbers, or has no label for it".to_owned());
            }
            if manifest.multi_label.is_some_and(|scores| !scores.is_valid() || manifest.out_of_scope.is_some()) {
                return Err(
                    "it gives several labels by scores that are not monotone, or has one for none of them".to_owned()
                );
            }
        }
        _ if manifest.scope.is_some() => return Err("it tells what is out of scope and does not classify".to_owned()),
        _ if manifest.multi_label.is_some() => return Err("it gives several labels and does not classify".to_owned()),
        (Kind::Extract, Some(head)) => {
            check_head(contents, head)?;
            check_extraction(contents)?;
        }
        (Kind::Generate, None) => {}
        _ => return Err("it classifies or extracts without a head, or writes with one".to_owned()),
    }
    check_first(contents)?;
    if let Some(tree) = &manifest.hierarchy {
        let is_plain = manifest.kind == Kind::Classify && manifest.multi_label.is_none();
        let problem = tree.problem(&manifest.labels, manifest.certificate.is_some());
        if let Some(problem) = problem.or((!is_plain).then_some("its answers are no paths")) {
            return Err(problem.to_owned());
        }
    }
    check_generation(contents)?;
    if manifest.inputs.is_empty() || !manifest.calibrator.is_valid() {
        return Err("it names no input, or its calibrator is not monotone".to_owned());
    }
    if manifest.threshold().is_some_and(|threshold| !(0.0..=1.0).contains(&threshold)) {
        return Err("its threshold is no probability".to_owned());
    }
    Ok(())
}

/// What writes has a decoder and a limit, an adapter where its stage says so, and a schema that is JSON.
fn check_generation(contents: &Contents) -> Result<(), String> {
    let Contents { manifest, adapter, schema, .. } = contents;
    let writes = manifest.kind == Kind::Generate;
    if writes != manifest.stage.generates() || writes != manifest.generation.is_some() {
        return Err("its kind, its stage and how it is asked do not fit each other".to_owned());
    }
    if manifest.hidden.is_some() != (manifest.stage == Stage::Decoder) {
        return Err("its head reads a decoder that it does not name, or it names one without reading it".to_owned());
    }
    let kept = [
        manifest.hidden.as_ref().map(|hidden| &hidden.kept_layers),
        manifest.generation.as_ref().map(|generation| &generation.kept_layers),
    ];
    if kept.into_iter().flatten().any(|layers| !layers.is_sorted_by(|a, b| a < b)) {
        return Err("its kept layers are not in ascending order".to_owned());
    }
    if adapter.is_some() != manifest.stage.has_adapter() || (schema.is_some() && manifest.kind == Kind::Classify) {
        return Err("it has an adapter or a schema that its stage does not read, or lacks one".to_owned());
    }
    if manifest.generation.as_ref().is_some_and(|generation| generation.max_tokens == 0) {
        return Err("its answers may have no token".to_owned());
    }
    if schema.as_ref().is_some_and(|schema| serde_json::from_str::<serde_json::Value>(schema).is_err()) {
        return Err(format!("`{SCHEMA}` is no JSON"));
    }
    Ok(())
}

fn check_head(contents: &Contents, head: &LinearHead) -> Result<(), String> {
    let Contents { manifest, .. } = contents;
    let (features, pairs) = (contents.features.as_ref(), contents.pairs.as_deref());
    let stage: Stage = manifest.stage;
    let n_classes = match manifest.kind {
        Kind::Extract => tags::n_tags(manifest.labels.len()),
        Kind::Classify | Kind::Generate => manifest.labels.len(),
    };
    if n_classes != head.n_classes() {
        return Err(format!("{} labels, {} classes in the head", manifest.labels.len(), head.n_classes()));
    }
    let first = manifest.first.as_ref().map(|first| first.stage);
    let reads = |read: fn(Stage) -> bool| read(stage) || first.is_some_and(read);
    let own = features.filter(|_| stage.has_ngrams(head));
    let are_read = stage.has_ngrams(head) || first.is_some_and(Stage::reads_ngrams);
    if features.is_some() != are_read || own.map_or(0, Features::len) != head.n_features() {
        return Err("the head does not read the features that are there".to_owned());
    }
    let format = manifest.pairs.as_ref().map(|pairs| pairs.format.as_str());
    if format != pairs.map(|_| crate::pairs::FORMAT) || (reads(|stage| stage == Stage::Pair) && pairs.is_none()) {
        return Err("how its inputs are compared is missing, or of another version".to_owned());
    }
    if pairs.is_some_and(|pairs| !pairs.fits(manifest.inputs.len())) {
        return Err("its trees read more than its inputs have".to_owned());
    }
    let outputs = pairs.filter(|_| stage.reads_pairs()).map_or(0, |pairs| pairs.n_outputs());
    let Some(embedding_dim) = head.embedding_dim().unwrap_or(0).checked_sub(outputs) else {
        return Err("the head does not read what is made of its inputs".to_owned());
    };
    let known = manifest.base.is_some() || manifest.hidden.is_some();
    if (embedding_dim > 0) != stage.reads_embedding() || (stage.reads_embedding() && !known) {
        return Err("the head reads an embedding of no known base, or none although its stage does".to_owned());
    }
    if manifest.reads_base && (manifest.base.is_none() || !matches!(stage, Stage::Tuned | Stage::Decoder)) {
        return Err("the head reads a frozen encoder beside its own network, and there are not both".to_owned());
    }
    if manifest.features.as_deref() != features.map(|_| crate::features::FORMAT) {
        return Err("its n-gram format is not the one of this version".to_owned());
    }
    Ok(())
}

/// A stage that is asked first fits the manifest, the classifier beside it, and what that reads.
fn check_first(contents: &Contents) -> Result<(), String> {
    let Contents { manifest, features, pairs, .. } = contents;
    let (stage, head) = match (&manifest.first, &contents.first) {
        (None, None) => return Ok(()),
        (Some(stage), Some(head)) if manifest.kind == Kind::Classify => (stage, head),
        _ => return Err(format!("of a first stage it has what it says and no `{FIRST}`, or the reverse")),
    };
    if let Some(problem) = stage.problem(manifest.stage, manifest.certificate.is_some()) {
        return Err(problem.to_owned());
    }
    if stage.multi_label.is_some() != manifest.multi_label.is_some()
        || (stage.scope.is_some() && manifest.none().is_none())
    {
        return Err("its first stage gives other answers than the one behind it".to_owned());
    }
    let n_features = features.as_ref().filter(|_| stage.stage.reads_ngrams()).map_or(0, Features::len);
    let outputs = pairs.as_ref().filter(|_| stage.stage.reads_pairs()).map_or(0, |pairs| pairs.n_outputs());
    if head.n_classes() != manifest.labels.len()
        || head.n_features() != n_features
        || head.embedding_dim().unwrap_or(0) != outputs
    {
        return Err(format!("`{FIRST}` does not read what is there"));
    }
    Ok(())
}

/// An extraction has a schema, scores and the stage `span`; its labels are the fields of its schema.
fn check_extraction(contents: &Contents) -> Result<(), String> {
    let Contents { manifest, schema, .. } = contents;
    let (Some(schema), Some(scores), Stage::Span) = (schema, &manifest.scores, manifest.stage) else {
        return Err("an extraction needs a schema, scores and the stage `span`".to_owned());
    };
    let schema = Schema::parse(schema).map_err(|error| error.to_string())?;
    if !schema.fields().iter().map(|field| &field.name).eq(&manifest.labels) {
        return Err("its labels are not the fields of its schema".to_owned());
    }
    if scores.field.is_valid() && scores.row.is_valid() {
        Ok(())
    } else {
        Err("its scores are not monotone".to_owned())
    }
}

fn read_neighbours(bytes: &[u8]) -> Result<Neighbours, TensorError> {
    let file = SafeTensors::deserialize(bytes)?;
    let (centroids, shape) = tensors::f32s(&file, "centroids", 2)?;
    let (threshold, _) = tensors::f32s(&file, "match_threshold", 1)?;
    let &[match_threshold] = threshold.as_slice() else {
        return Err(TensorError::Shape { name: "match_threshold".to_owned() });
    };
    if shape[1] == 0 || !match_threshold.is_finite() || centroids.iter().any(|value| !value.is_finite()) {
        return Err(TensorError::Inconsistent("centroids must be finite and not empty"));
    }
    Ok(Neighbours { centroids: centroids.chunks_exact(shape[1]).map(<[f32]>::to_vec).collect(), match_threshold })
}

fn read_probe(bytes: &[u8]) -> Option<Vec<ProbeRow>> {
    let rows: Vec<ProbeRow> =
        std::str::from_utf8(bytes).ok()?.lines().map(serde_json::from_str).collect::<Result<_, _>>().ok()?;
    (rows.len() <= MAX_PROBE_ROWS).then_some(rows)
}

fn id<'a>(files: impl Iterator<Item = (&'a str, Digest)>) -> Digest {
    let sorted: BTreeMap<&str, Digest> = files.collect();
    let lines: String = sorted.iter().map(|(name, hash)| format!("{hash} {name}\n")).collect();
    Digest::of(lines.as_bytes())
}
