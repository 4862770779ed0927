//! What a model file says about itself: the part of `metier models show` that comes from the files, not from the catalogue.

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use metier_kernels::Mapped;
use metier_model::format::{TensorInfo, gguf::Gguf, safetensors::Safetensors};
use serde::Serialize;

use crate::fetch::CatalogueEntry;

/// Architecture facts of a model, read from its files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Inside {
    /// Architecture, as the file names it.
    pub architecture: Option<String>,
    /// Elements of all tensors.
    pub parameters: u64,
    /// Transformer blocks.
    pub layers: Option<u64>,
    /// Width of the hidden state.
    pub hidden: Option<u64>,
    /// Tokens that the architecture can attend to.
    pub context_tokens: Option<u64>,
    /// Tensor type → number of tensors.
    pub tensors: BTreeMap<String, u64>,
}

impl Inside {
    /// Reads the index of the weights, and `config.json` where the weights carry no metadata of their own. Weights are mapped, not read.
    pub fn read(entry: &CatalogueEntry, dir: &Path) -> anyhow::Result<Self> {
        let files = |ending: &str| -> Vec<PathBuf> {
            let files = entry.files.iter().filter(|file| file.name.ends_with(ending));
            files.map(|file| dir.join(&file.name)).collect()
        };
        let (gguf, safetensors) = (files(".gguf"), files(".safetensors"));
        if !gguf.is_empty() {
            Self::of_gguf(&gguf)
        } else if !safetensors.is_empty() {
            Self::of_safetensors(&safetensors, &dir.join("config.json"))
        } else {
            anyhow::bail!("the catalogue names neither a `.gguf` nor a `.safetensors` file")
        }
    }

    /// `paths`: one file, or all parts of one; the first says what the others do not.
    fn of_gguf(paths: &[PathBuf]) -> anyhow::Result<Self> {
        let mut inside: Option<Self> = None;
        for path in paths {
            let bytes = open(path)?;
            let gguf = Gguf::parse(&bytes).with_context(|| format!("cannot read `{}`", path.display()))?;
            let architecture = gguf.text("general.architecture").map(str::to_owned);
            let fact = |key: &str| {
                let architecture = architecture.as_deref()?;
                gguf.count(&format!("{architecture}.{key}")).map(|count| count as u64)
            };
            let first = inside.get_or_insert_with(|| Self {
                layers: fact("block_count"),
                hidden: fact("embedding_length"),
                context_tokens: fact("context_length"),
                architecture: architecture.clone(),
                ..Self::default()
            });
            first.add(gguf.tensors());
        }
        inside.context("no file")
    }

    fn of_safetensors(paths: &[PathBuf], config: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(config).with_context(|| format!("cannot open `{}`", config.display()))?;
        let config: serde_json::Value =
            serde_json::from_str(&text).with_context(|| format!("cannot read `{}`", config.display()))?;
        let mut inside = Self {
            architecture: config["model_type"].as_str().map(str::to_owned),
            layers: config["num_hidden_layers"].as_u64(),
            hidden: config["hidden_size"].as_u64(),
            context_tokens: config["max_position_embeddings"].as_u64(),
            ..Self::default()
        };
        for path in paths {
            let bytes = open(path)?;
            let index = Safetensors::parse(&bytes).with_context(|| format!("cannot read `{}`", path.display()))?;
            inside.add(index.tensors());
        }
        Ok(inside)
    }

    fn add(&mut self, tensors: &BTreeMap<String, TensorInfo>) {
        for tensor in tensors.values() {
            // Shapes were checked against the file's length, so that no product overflows.
            self.parameters += tensor.shape.iter().product::<usize>() as u64;
            *self.tensors.entry(tensor.dtype.to_string()).or_default() += 1;
        }
    }
}

fn open(path: &Path) -> anyhow::Result<Mapped> {
    Mapped::open(path).with_context(|| format!("cannot open `{}`", path.display()))
}

impl fmt::Display for Inside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |value: Option<u64>| value.map_or_else(|| "not told".to_owned(), |value| value.to_string());
        let tensors: Vec<String> = self.tensors.iter().map(|(name, count)| format!("{count} × {name}")).collect();
        let architecture = self.architecture.as_deref().unwrap_or("not told");
        writeln!(f, "  inside   architecture {architecture}, {:.1} M parameters", self.parameters as f64 / 1e6)?;
        writeln!(
            f,
            "           {} layers, {} wide, {} tokens of context",
            number(self.layers),
            number(self.hidden),
            number(self.context_tokens)
        )?;
        writeln!(f, "           tensors: {}", tensors.join(", "))
    }
}
