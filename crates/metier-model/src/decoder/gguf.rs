//! What does a GGUF file say? It holds everything: weights, settings, tokenizer, template. It may be split into parts.
//!
//! ```text
//! NAME-00001-of-00003.gguf   metadata and the first tensors; split.no = 0, split.count = 3, split.tensors.count = all
//! NAME-00002-of-00003.gguf   more tensors;                   split.no = 1, …
//! ```

use std::{
    io,
    path::{Path, PathBuf},
    thread,
};

use super::{DecoderError, DecoderOptions, Parts};
use crate::{
    BaseId, Digest,
    arch::transformer::Blueprint,
    base::Bytes,
    chat::ChatTemplate,
    files::TensorFiles,
    format::Gguf,
    tokenizer::{TokenId, Tokenizer},
};

/// Parts of a file, at most.
pub(super) const MAX_PARTS: usize = 1024;

/// Reads a file, and its other parts if it is the first of several.
pub(super) fn read(path: &Path, options: &DecoderOptions) -> Result<Parts, DecoderError> {
    let (bytes, gguf) = open(path)?;
    let mut name = path.file_stem().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let mut files = TensorFiles::default();
    let split = Split::of(&gguf).map_err(|problem| wrong(path, problem))?;
    let mut opened = vec![path.to_owned()];
    add(&mut files, bytes, &gguf, &opened)?;
    if let Some(split) = split {
        let stem = split.check_first(path)?;
        for no in 1..split.count {
            let part = path.with_file_name(split.name(&stem, no));
            let (bytes, index) = open(&part).map_err(|error| missing(error, no, split.count))?;
            split.check_part(&index, no).map_err(|problem| wrong(&part, problem))?;
            opened.push(part);
            add(&mut files, bytes, &index, &opened)?;
        }
        name = stem;
        let found = files.names().count();
        if split.tensors.is_some_and(|announced| announced != found) {
            let announced = split.tensors.unwrap_or(0);
            return Err(wrong(
                path,
                format!("and its other parts hold {found} tensors, {announced} are announced: parts of another file?"),
            ));
        }
    }
    // Hashing and the tokenizer take about as long as each other.
    let (digest, mut parts) = thread::scope(|scope| {
        let digest = scope.spawn(|| digest_of(&opened));
        let parts = parts(files, &gguf, BaseId { name, digest: Digest::of(&[]), weights: None }, path, options);
        (digest.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), parts)
    });
    if let Ok(parts) = parts.as_mut() {
        parts.base.digest = digest?;
    }
    parts
}

/// Reads a file that lies in memory.
pub(super) fn from_bytes(bytes: Vec<u8>, name: &str, options: &DecoderOptions) -> Result<Parts, DecoderError> {
    let path = Path::new(name);
    let base = BaseId { name: name.to_owned(), digest: Digest::of(&bytes), weights: None };
    let gguf = parse(&bytes, path)?;
    if Split::of(&gguf).map_err(|problem| wrong(path, problem))?.is_some() {
        return Err(wrong(path, "is one of several parts, which are read from files only".to_owned()));
    }
    let mut files = TensorFiles::default();
    add(&mut files, Bytes::Owned(bytes), &gguf, &[path.to_owned()])?;
    parts(files, &gguf, base, path, options)
}

fn parts(
    files: TensorFiles,
    gguf: &Gguf,
    base: BaseId,
    path: &Path,
    options: &DecoderOptions,
) -> Result<Parts, DecoderError> {
    let path = || path.to_owned();
    let blueprint = Blueprint::from_gguf(gguf, &files, options.context);
    let blueprint = blueprint.map_err(|source| DecoderError::Weights { path: path(), source })?;
    let tokenizer = Tokenizer::from_gguf(gguf).map_err(|source| DecoderError::Tokenizer { path: path(), source })?;
    let word = |key| gguf.texts("tokenizer.ggml.tokens")?.get(gguf.count(key)?).map(String::as_str);
    let [begin, end] =
        ["tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id"].map(|key| word(key).unwrap_or(""));
    let template = gguf.text("tokenizer.chat_template").map(ChatTemplate::new).transpose();
    let template = template.map(|template| template.map(|template| template.with_tokens(begin, end)));
    let template = template.map_err(|source| DecoderError::Template { path: path(), source })?;
    let named = |key| gguf.count(key).and_then(|id| u32::try_from(id).ok()).map(TokenId);
    let ends = ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"].into_iter().filter_map(named).collect();
    Ok(Parts { files, blueprint, tokenizer, template, ends, base })
}

fn open(path: &Path) -> Result<(Bytes, Gguf), DecoderError> {
    let bytes = Bytes::map(path).map_err(|source| DecoderError::Read { path: path.to_owned(), source })?;
    let gguf = parse(&bytes, path)?;
    Ok((bytes, gguf))
}

fn parse(bytes: &[u8], path: &Path) -> Result<Gguf, DecoderError> {
    Gguf::parse(bytes).map_err(|source| DecoderError::Format { path: path.to_owned(), source })
}

/// `opened`: all files so far, this one last.
fn add(files: &mut TensorFiles, bytes: Bytes, gguf: &Gguf, opened: &[PathBuf]) -> Result<(), DecoderError> {
    files.add(bytes, gguf.tensors().clone()).map_err(|twice| {
        let last = opened.last().cloned().unwrap_or_default();
        wrong(&last, format!("holds `{}`, which stands in `{}` too", twice.tensor, opened[twice.first_idx].display()))
    })
}

/// The digest of a file, or of several with their names.
fn digest_of(paths: &[PathBuf]) -> Result<Digest, DecoderError> {
    let one = |path: &PathBuf| {
        let digest = Digest::of_file(path).map_err(|source| DecoderError::Read { path: path.clone(), source });
        digest.map(|digest| (file_name(path), digest))
    };
    let digests = paths.iter().map(one).collect::<Result<Vec<_>, _>>()?;
    Ok(if let [(_, digest)] = digests.as_slice() { *digest } else { Digest::of_files(&digests) })
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

fn wrong(path: &Path, problem: String) -> DecoderError {
    DecoderError::Files { path: path.to_owned(), problem }
}

fn missing(error: DecoderError, no: usize, count: usize) -> DecoderError {
    match error {
        DecoderError::Read { path, source } if source.kind() == io::ErrorKind::NotFound => {
            wrong(&path, format!("is missing: it is part {} of {count}", no + 1))
        }
        other => other,
    }
}

/// What a part says about the whole.
struct Split {
    no: usize,
    count: usize,
    tensors: Option<usize>,
}

impl Split {
    /// `None` for a file that is whole.
    fn of(gguf: &Gguf) -> Result<Option<Self>, String> {
        let Some(count) = gguf.count("split.count").filter(|count| *count != 1) else { return Ok(None) };
        if !(1..=MAX_PARTS).contains(&count) {
            return Err(format!("is one of {count} parts, the limit is {MAX_PARTS}"));
        }
        let no = gguf.count("split.no").filter(|no| *no < count);
        let no = no.ok_or_else(|| format!("is one of {count} parts, but `split.no` does not say which"))?;
        Ok(Some(Self { no, count, tensors: gguf.count("split.tensors.count") }))
    }

    fn ending(&self, no: usize) -> String {
        format!("-{:05}-of-{:05}.gguf", no + 1, self.count)
    }

    fn name(&self, stem: &str, no: usize) -> String {
        format!("{stem}{}", self.ending(no))
    }

    /// The name that all parts begin with, if this is the first of them and called so.
    fn check_first(&self, path: &Path) -> Result<String, DecoderError> {
        let name = file_name(path);
        let stem = name.strip_suffix(&self.ending(self.no));
        let stem = stem.ok_or_else(|| {
            let ending = self.ending(self.no);
            wrong(path, format!("is part {} of {}: its name must end with `{ending}`", self.no + 1, self.count))
        })?;
        if self.no != 0 {
            let first = self.name(stem, 0);
            return Err(wrong(path, format!("is part {} of {}: open the first, `{first}`", self.no + 1, self.count)));
        }
        Ok(stem.to_owned())
    }

    /// Whether the file that is called part `no` is that part of this whole.
    fn check_part(&self, gguf: &Gguf, no: usize) -> Result<(), String> {
        match Self::of(gguf)? {
            Some(other) if other.no != no => {
                Err(format!("is part {} of {} by its content, not {}", other.no + 1, other.count, no + 1))
            }
            Some(other) if other.count == self.count && other.tensors == self.tensors => Ok(()),
            _ => Err(format!("is no part of the same file as the first of {}", self.count)),
        }
    }
}
