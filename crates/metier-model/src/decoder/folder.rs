//! What does a folder of Hugging Face's kind say?
//!
//! | file | what is read of it |
//! |---|---|
//! | `config.json` | the network |
//! | `model.safetensors`, or `model.safetensors.index.json` and what it names | weights: F32, F16 or BF16 |
//! | `tokenizer.json` | the vocabulary and its rules |
//! | `tokenizer_config.json`, if any | the tokens of beginning and end, the chat template |
//! | `chat_template.jinja`, if any | the chat template, before the one in `tokenizer_config.json` |
//! | `generation_config.json`, if any | the tokens that end a text |
//!
//! No file outside the folder is read, whatever a file in it says; links that lie in the folder are followed, because Hugging
//! Face's cache is made of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Read as _},
    path::{Component, Path},
};

use serde_json::Value as Json;

use super::{DecoderError, DecoderOptions, Parts, gguf::MAX_PARTS};
use crate::{
    BaseId, Digest,
    arch::transformer::Blueprint,
    base::Bytes,
    chat::ChatTemplate,
    files::TensorFiles,
    format::Safetensors,
    tokenizer::{ControlWords, TokenId, Tokenizer},
};

/// Bytes of `config.json`, of `generation_config.json` and of a chat template, at most.
const MAX_SMALL_BYTES: u64 = 1 << 20;
/// Bytes of `tokenizer.json`, at most (Gemma 3's has 33 MB).
const MAX_TOKENIZER_BYTES: u64 = 128 << 20;
/// Bytes of `tokenizer_config.json` and of the index of a model in parts, at most.
const MAX_INDEX_BYTES: u64 = 16 << 20;

const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// A folder, and the digests of what was read of it.
struct Folder<'a> {
    path: &'a Path,
    digests: Vec<(String, Digest)>,
}

/// Reads a folder.
pub(super) fn read(path: &Path, options: &DecoderOptions) -> Result<Parts, DecoderError> {
    let mut folder = Folder { path, digests: Vec::new() };
    let config = folder.json("config.json", MAX_SMALL_BYTES)?;
    let blueprint = Blueprint::from_config(&config, options.context);
    let blueprint = blueprint.map_err(|source| DecoderError::Weights { path: path.join("config.json"), source })?;
    let files = folder.weights()?;
    let words = match folder.maybe_text("tokenizer_config.json", MAX_INDEX_BYTES)? {
        Some(text) => folder.parse("tokenizer_config.json", &text)?,
        None => Json::Null,
    };
    let template = match folder.maybe_text("chat_template.jinja", MAX_SMALL_BYTES)? {
        Some(text) => Some(text),
        None => template_of(&words).map(str::to_owned),
    };
    let tokenizer_text = folder.text("tokenizer.json", MAX_TOKENIZER_BYTES)?;
    let [begin, end] = ["bos_token", "eos_token"].map(|key| token_text(words.get(key)));
    let control = ControlWords {
        begin,
        adds_begin: words.get("add_bos_token").and_then(Json::as_bool),
        named: [begin, end, token_text(words.get("pad_token"))].into_iter().flatten().collect(),
        template: template.as_deref().unwrap_or(""),
    };
    let tokenizer = Tokenizer::for_decoder(&tokenizer_text, &control)
        .map_err(|source| DecoderError::Tokenizer { path: path.join("tokenizer.json"), source })?;
    let generation = match folder.maybe_text("generation_config.json", MAX_SMALL_BYTES)? {
        Some(text) => folder.parse("generation_config.json", &text)?,
        None => Json::Null,
    };
    let mut ends = token_ids(&generation);
    if ends.is_empty() {
        ends = token_ids(&config);
    }
    ends.extend(end.and_then(|end| tokenizer.id_of(end)));
    let template = template.as_deref().map(ChatTemplate::new).transpose();
    let template = template.map_err(|source| DecoderError::Template { path: path.to_owned(), source })?;
    let template = template.map(|template| template.with_tokens(begin.unwrap_or(""), end.unwrap_or("")));
    let name = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = name.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let base = BaseId { name, digest: Digest::of_files(&folder.digests), weights: None };
    Ok(Parts { files, blueprint, tokenizer, template, ends, base })
}

impl Folder<'_> {
    /// The whole text of a file; `None` where there is none.
    fn maybe_text(&mut self, name: &str, limit: u64) -> Result<Option<String>, DecoderError> {
        let path = self.path.join(name);
        let read_error = |source| DecoderError::Read { path: path.clone(), source };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(read_error(error)),
        };
        let bytes = file.metadata().map_err(read_error)?.len();
        if bytes > limit {
            return Err(DecoderError::TooLarge { path, bytes, limit });
        }
        let mut text = String::new();
        file.take(limit).read_to_string(&mut text).map_err(read_error)?;
        self.digests.push((name.to_owned(), Digest::of(text.as_bytes())));
        Ok(Some(text))
    }

    fn text(&mut self, name: &str, limit: u64) -> Result<String, DecoderError> {
        let missing = self.wrong(format!("holds no `{name}`"));
        self.maybe_text(name, limit)?.ok_or(missing)
    }

    fn parse(&self, name: &str, text: &str) -> Result<Json, DecoderError> {
        serde_json::from_str(text).map_err(|source| DecoderError::Json { path: self.path.join(name), source })
    }

    fn json(&mut self, name: &str, limit: u64) -> Result<Json, DecoderError> {
        let text = self.text(name, limit)?;
        self.parse(name, &text)
    }

    fn wrong(&self, problem: String) -> DecoderError {
        DecoderError::Files { path: self.path.to_owned(), problem }
    }

    fn file_error(&self, name: &str, problem: String) -> DecoderError {
        DecoderError::Files { path: self.path.join(name), problem }
    }

    fn weights(&mut self) -> Result<TensorFiles, DecoderError> {
        let mut files = TensorFiles::default();
        if self.path.join(WEIGHTS).exists() {
            self.add(&mut files, WEIGHTS, &[WEIGHTS.to_owned()])?;
            return Ok(files);
        }
        let Some(index) = self.maybe_text(INDEX, MAX_INDEX_BYTES)? else {
            return Err(self.wrong(format!("holds neither `{WEIGHTS}` nor `{INDEX}`")));
        };
        let index_path = self.path.join(INDEX);
        let index_error = |problem| DecoderError::Files { path: index_path.clone(), problem };
        let index = self.parse(INDEX, &index)?;
        let map = index.get("weight_map").and_then(Json::as_object);
        let map = map.ok_or_else(|| index_error("has no object `weight_map`".to_owned()))?;
        let mut places = BTreeMap::new();
        for (tensor, file) in map {
            let file = file.as_str().filter(|file| is_plain(file));
            let file = file.ok_or_else(|| {
                index_error(format!("says that `{tensor}` is in {}, which is no file of the folder", map[tensor]))
            })?;
            places.insert(tensor.as_str(), file);
        }
        let names: BTreeSet<&str> = places.values().copied().collect();
        let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
        if names.is_empty() || names.len() > MAX_PARTS {
            return Err(index_error(format!("names {} files, 1 to {MAX_PARTS} are read", names.len())));
        }
        for (i, name) in names.iter().enumerate() {
            self.add(&mut files, name, &names[..=i])?;
        }
        let file_of = |tensor: &str| files.place(tensor).map(|place| names[place.file_idx()].as_str());
        if let Some((tensor, file)) = places.iter().find(|(tensor, file)| file_of(tensor) != Some(*file)) {
            return Err(self.file_error(file, format!("does not hold `{tensor}`, which `{INDEX}` says is there")));
        }
        if let Some(tensor) = files.names().find(|tensor| !places.contains_key(tensor)) {
            let file = file_of(tensor).unwrap_or_default();
            return Err(self.file_error(file, format!("holds `{tensor}`, which `{INDEX}` does not name")));
        }
        Ok(files)
    }

    /// `opened`: names of all files so far, this one last.
    fn add(&mut self, files: &mut TensorFiles, name: &str, opened: &[String]) -> Result<(), DecoderError> {
        let path = self.path.join(name);
        let read_error = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => self.wrong(format!("holds no `{name}`, which `{INDEX}` names")),
            _ => DecoderError::Read { path: path.clone(), source },
        };
        let bytes = Bytes::map(&path).map_err(read_error)?;
        let digest = Digest::of_file(&path).map_err(read_error)?;
        let index = Safetensors::parse(&bytes).map_err(|source| DecoderError::Format { path: path.clone(), source })?;
        self.digests.push((name.to_owned(), digest));
        files.add(bytes, index.tensors().clone()).map_err(|twice| DecoderError::Files {
            path,
            problem: format!("holds `{}`, which stands in `{}` too", twice.tensor, opened[twice.first_idx]),
        })
    }
}

/// Whether this is the name of a safetensors file, and of nothing outside its folder.
fn is_plain(name: &str) -> bool {
    let mut components = Path::new(name).components();
    let one = matches!((components.next(), components.next()), (Some(Component::Normal(part)), None) if part == name);
    one && name.ends_with(".safetensors") && !name.contains(['/', '\\', ':'])
}

/// A token's text: written alone, or with how it is matched.
fn token_text(token: Option<&Json>) -> Option<&str> {
    let token = token?;
    token.as_str().or_else(|| token.get("content")?.as_str())
}

/// The chat template of `tokenizer_config.json`: one, or several by name, of which `default` counts.
fn template_of(words: &Json) -> Option<&str> {
    let template = words.get("chat_template")?;
    template.as_str().or_else(|| {
        let by_name = template.as_array()?.iter();
        let default = by_name.into_iter().find(|one| one.get("name").and_then(Json::as_str) == Some("default"))?;
        default.get("template")?.as_str()
    })
}

/// `eos_token_id`: one id or several.
fn token_ids(config: &Json) -> Vec<TokenId> {
    let id = |id: &Json| id.as_u64().and_then(|id| u32::try_from(id).ok()).map(TokenId);
    match config.get("eos_token_id") {
        Some(Json::Array(ids)) => ids.iter().filter_map(id).collect(),
        Some(one) => id(one).into_iter().collect(),
        None => Vec::new(),
    }
}
