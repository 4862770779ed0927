//! LoRA adapters of the decoder: from a folder of PEFT's into service, at the start and while the server runs.
//!
//! ```text
//! <root>/<name>/adapter_config.json  adapter_model.safetensors      as `save_pretrained` writes them
//! ```
//!
//! The root is looked at once a second. Files that are still being written are left alone until they have stayed the same from one look to
//! the next. What cannot be served is reported once, until its files change; it leaves the version before it in service and disturbs no
//! other. A folder that is gone is no longer served.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use metier_gateway::{AdapterRefused, Gateway};
use metier_model::{
    Decoder,
    adapter::{Adapter, AdapterError, CONFIG_FILE, LoraFormat, WEIGHTS_FILES},
};

/// A folder's adapter is not served.
#[derive(Debug, thiserror::Error)]
pub enum ServeAdapterError {
    /// Its files are no adapter of this base.
    #[error(transparent)]
    Files(#[from] AdapterError),
    /// The gateway does not take it.
    #[error(transparent)]
    Refused(#[from] AdapterRefused),
}

/// What adapters are opened for: the decoder that is served, and how their weights lie in memory.
#[derive(Clone, Debug)]
pub struct AdapterOpener {
    /// The base.
    pub decoder: Arc<Decoder>,
    /// In memory.
    pub format: LoraFormat,
}

impl AdapterOpener {
    /// Opens a folder and serves it under a name. Reads and hashes files: not for a thread that speaks HTTP.
    ///
    /// # Errors
    /// The files are no adapter of this base, or the name or the memory is taken.
    pub fn serve(
        &self,
        gateway: &Gateway,
        name: &str,
        description: Option<String>,
        dir: &Path,
    ) -> Result<(), ServeAdapterError> {
        let adapter = Adapter::open(dir, self.decoder.network().config(), self.format)?;
        let (digest, bytes, base) = (adapter.digest(), adapter.bytes(), &self.decoder.base().name);
        let trained = adapter.base_name().map(str::to_owned);
        gateway.load_adapter(name, description, Arc::new(adapter))?;
        tracing::info!(name, adapter = %digest.short(), bytes, "adapter taken into service");
        // The shape fits; only the operator can know whether the weights do.
        if let Some(trained) = trained.filter(|trained| !is_called(trained, base)) {
            tracing::warn!(
                name,
                trained_over = trained,
                served_over = base,
                "the adapter's files call its base otherwise"
            );
        }
        Ok(())
    }
}

/// Whether a model of a hub, or a folder of a path, has this name of the catalogue.
fn is_called(trained: &str, base: &str) -> bool {
    trained.split(['/', '\\']).any(|word| word.eq_ignore_ascii_case(base))
}

/// Size and time of the last change of each file that matters.
type Stamp = [Option<(u64, SystemTime)>; 3];

/// The adapters of a folder, as last seen.
#[derive(Debug)]
pub struct AdapterShelf {
    root: PathBuf,
    opener: AdapterOpener,
    /// Names that the settings have given to other folders.
    configured: BTreeSet<String>,
    /// What there was at the last look; `None` before the first.
    seen: Option<BTreeMap<String, Stamp>>,
    /// What was opened last under each name, good or not.
    tried: BTreeMap<String, Stamp>,
    served: BTreeSet<String>,
}

impl AdapterShelf {
    /// Nothing seen yet. The folder need not be there.
    pub fn new(root: PathBuf, opener: AdapterOpener, configured: BTreeSet<String>) -> Self {
        Self { root, opener, configured, seen: None, tried: BTreeMap::new(), served: BTreeSet::new() }
    }

    /// Serves what is new and has settled, and stops serving what is gone. Reads and hashes files: not for a thread that speaks HTTP.
    pub fn look(&mut self, gateway: &Gateway) {
        let found = match find(&self.root) {
            Ok(found) => found,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(root = %self.root.display(), error, "cannot look at the folder of adapters");
                return;
            }
        };
        for (name, stamp) in &found {
            // At the start there is no look before this one, and nobody to wait for.
            let settled = self.seen.as_ref().is_none_or(|seen| seen.get(name) == Some(stamp));
            if !settled || self.tried.get(name) == Some(stamp) {
                continue;
            }
            self.tried.insert(name.clone(), *stamp);
            let dir = self.root.join(name);
            if self.configured.contains(name) {
                tracing::warn!(name, dir = %dir.display(), "adapter cannot be served: the settings give its name to another folder");
                continue;
            }
            match self.opener.serve(gateway, name, None, &dir) {
                Ok(()) => {
                    self.served.insert(name.clone());
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(name, dir = %dir.display(), error, "adapter cannot be served; what was served before stays");
                }
            }
        }
        let gone: Vec<String> = self.served.iter().filter(|name| !found.contains_key(*name)).cloned().collect();
        for name in &gone {
            tracing::info!(name, "adapter taken out of service");
            gateway.unload_adapter(name);
            self.served.remove(name);
        }
        if !gone.is_empty() {
            // There is room now: what was refused for want of it gets another try.
            self.tried.retain(|name, _| self.served.contains(name));
        }
        self.tried.retain(|name, _| found.contains_key(name));
        self.seen = Some(found);
    }
}

/// Folders with a configuration in them, by name; none where there is no root.
fn find(root: &Path) -> io::Result<BTreeMap<String, Stamp>> {
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(error),
    };
    let mut found = BTreeMap::new();
    for entry in entries {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let stamp = [CONFIG_FILE, WEIGHTS_FILES[0], WEIGHTS_FILES[1]].map(|file| stamp(&entry.path().join(file)));
        if !name.starts_with('.') && stamp[0].is_some() {
            found.insert(name, stamp);
        }
    }
    Ok(found)
}

fn stamp(path: &Path) -> Option<(u64, SystemTime)> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.len(), metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_word_of_the_models_name_is_the_catalogues() {
        for trained in
            ["HuggingFaceTB/SmolLM2-135M-Instruct", "/models/smollm2-135m-instruct/23cd", "smollm2-135m-instruct"]
        {
            assert!(is_called(trained, "smollm2-135m-instruct"), "{trained}");
        }
        assert!(!is_called("HuggingFaceTB/SmolLM2-135M", "smollm2-135m-instruct"));
        assert!(!is_called("", "smollm2-135m-instruct"));
    }

    #[test]
    fn only_folders_with_a_configuration_are_found() {
        let root = tempfile::tempdir().unwrap();
        assert!(find(&root.path().join("nowhere")).unwrap().is_empty());
        for name in ["polite", "empty", ".staging"] {
            fs::create_dir(root.path().join(name)).unwrap();
        }
        for name in ["polite", ".staging"] {
            fs::write(root.path().join(name).join(CONFIG_FILE), "{}").unwrap();
        }
        fs::write(root.path().join("file"), "").unwrap();
        let found = find(root.path()).unwrap();
        assert_eq!(found.keys().collect::<Vec<_>>(), ["polite"]);
        assert_eq!(found["polite"][0].unwrap().0, 2);
        fs::write(root.path().join("polite").join(WEIGHTS_FILES[0]), "x").unwrap();
        assert_ne!(find(root.path()).unwrap(), found, "another file is another stamp");
    }
}
