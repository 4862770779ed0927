//! Configuration and models → a [`Gateway`]. Plain data in; the only files touched are those of the state directory.

use std::{path::PathBuf, sync::Arc};

use metier_kernels::Pool;
use metier_model::{
    adapter::Adapter,
    decoder::Decoder,
    encoder::{Encoder, EncoderQueue, QueueLimits},
    engine::{CacheScope, Engine, EngineLimits},
    specialist::Specialist,
};

use crate::{
    audit::{AuditError, AuditLog, Clock},
    backend::{
        Backend,
        base::{ChatPrompting, PooledEngine},
        embedder::{Embedder, PooledEncoder},
        local::{LOCAL, LocalBase},
        remote::{BackendConfig, RETRY_BACKOFF, Remote, SetupError},
    },
    expert::{Equipment, Equipped, Expert, Pen},
    gateway::{BaseSlot, EncoderSlot, Gateway, Limits, Parts, RemoteSlot},
    meter::Meter,
};

/// Keys and values of all sequences of the base together, in bytes: about 4,000 tokens of SmolLM2-135M.
pub const KV_CACHE_BYTES: usize = 192 << 20;
/// Sequences of the base that are written at the same time.
pub const MAX_SEQUENCES: usize = 16;
/// Sequences of the base that wait for a place.
pub const MAX_WAITING_SEQUENCES: usize = 128;

/// The one tenant of a server whose callers may share prefixes.
const EVERYBODY: u64 = 0;

/// What the operator decides.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// Where the record is kept.
    pub state_dir: PathBuf,
    /// Remote backends, in the order in which a deferred request tries them.
    pub backends: Vec<BackendConfig>,
    /// Prices.
    pub meter: Meter,
    /// How much is done at once.
    pub limits: Limits,
    /// Whether the base may start from what it has read for another caller's request. What a caller sends can then be guessed by others
    /// from how fast they are answered, so without it nothing is remembered from one request to the next.
    pub share_prefixes: bool,
    /// Jitters the retries.
    pub retry_seed: u64,
}

/// The models of this process, given by the roof. Each runs on a thread of its own and takes turns on the pool.
pub struct LocalModels {
    /// For specialists that read an embedding, for `auto`, and for `/v1/embeddings`.
    pub encoder: Option<Arc<Encoder>>,
    /// For plain generation.
    pub decoder: Option<Arc<Decoder>>,
    /// The compute threads.
    pub pool: Arc<Pool>,
}

/// Why a gateway cannot be set up: always the operator's fault.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The record cannot be kept.
    #[error("cannot open the audit log in `{dir}`")]
    Audit {
        /// The state directory.
        dir: PathBuf,
        /// The cause.
        #[source]
        source: AuditError,
    },
    /// A backend cannot be set up.
    #[error(transparent)]
    Backend(#[from] SetupError),
    /// Two backends have one name, or one the name of ours.
    #[error("there are two backends named `{0}`")]
    BackendTwice(String),
    /// A thread cannot be started.
    #[error("cannot start the {0}'s thread")]
    Thread(&'static str, #[source] std::io::Error),
}

impl Gateway {
    /// Opens the record and sets up the backends; nothing is sent. `clock` tells milliseconds since 1970.
    /// Specialists and adapters come afterwards, by `Gateway::reload_specialists` and `Gateway::load_adapter`.
    pub fn open(config: GatewayConfig, models: LocalModels, clock: Clock) -> Result<Self, OpenError> {
        let pool = models.pool;
        let mut remotes = Vec::with_capacity(config.backends.len());
        let mut names = vec![LOCAL.to_owned()];
        for (backend, seed) in config.backends.into_iter().zip(config.retry_seed..) {
            if names.contains(&backend.id) {
                return Err(OpenError::BackendTwice(backend.id));
            }
            names.push(backend.id.clone());
            let (facts, model, price) = (backend.facts(), backend.model.clone(), backend.price.clone());
            let backend: Arc<dyn Backend> = Arc::new(Remote::new(backend, seed, RETRY_BACKOFF)?);
            remotes.push(RemoteSlot { backend, facts, model, price });
        }
        let encoder = models.encoder.map(|encoder| start_encoder(encoder, Arc::clone(&pool))).transpose()?;
        let scope = if config.share_prefixes { CacheScope::Tenant(EVERYBODY) } else { CacheScope::Private };
        let clock: Arc<dyn Fn() -> u64 + Send + Sync> = Arc::from(clock);
        let start = |decoder| start_base(decoder, scope, Arc::clone(&pool), Arc::clone(&clock));
        let base = models.decoder.map(start).transpose()?;
        let audit = AuditLog::open(&config.state_dir, Box::new(move || clock()))
            .map_err(|source| OpenError::Audit { dir: config.state_dir.clone(), source })?;
        Ok(Self::assemble(Parts {
            audit,
            meter: config.meter,
            limits: config.limits,
            base,
            encoder,
            remotes,
            experts: Vec::new(),
        }))
    }

    /// Puts these specialists in the place of all there are. Requests under way end with those they began with.
    /// One that has an encoder of its own gets a thread for it; threads of those that stay go on. Where its encoder cannot be loaded it
    /// stays known, and says so when it is asked.
    pub fn reload_specialists(&self, specialists: Vec<Arc<Specialist>>) {
        let running = self.experts();
        let known = |specialist: &Specialist| running.iter().find(|expert| expert.id() == specialist.id()).cloned();
        let experts = specialists.into_iter().map(|specialist| match known(&specialist) {
            Some(expert) if expert.keeps_running() => expert,
            _ if specialist.manifest().generation.is_some() => self.with_pen(specialist),
            _ if specialist.manifest().hidden.is_some() => self.with_decoder(specialist),
            _ => self.with_own_encoder(specialist),
        });
        self.replace_experts(experts.collect());
    }

    /// A specialist whose answers are written gets the base, under its adapter. Without the decoder that it was made with it stays known, and
    /// says so when it is asked.
    fn with_pen(&self, specialist: Arc<Specialist>) -> Arc<dyn Expert> {
        match self.pen(&specialist) {
            Ok(pen) => Arc::new(Equipped { specialist, with: Equipment::Pen(pen) }),
            Err(why) => {
                tracing::warn!("specialist `{}` cannot answer: {why}", specialist.manifest().name);
                specialist
            }
        }
    }

    fn pen(&self, specialist: &Specialist) -> Result<Pen, String> {
        let manifest = specialist.manifest();
        let generation = manifest.generation.as_ref().ok_or("it names no decoder")?;
        let base = self.base_of(specialist)?;
        let backend: Arc<dyn Backend> = match self.adapted(specialist, base)? {
            None => Arc::clone(&base.backend),
            Some(adapted) => Arc::new(adapted),
        };
        let (decoder, max_tokens) = (generation.decoder.digest, generation.max_tokens);
        Ok(Pen { backend, decoder, stage: manifest.stage.name(), max_tokens, schema: specialist.answer_schema() })
    }

    /// A specialist whose head reads the base under its adapter; without the decoder that it was made with it says so when it is asked.
    fn with_decoder(&self, specialist: Arc<Specialist>) -> Arc<dyn Expert> {
        if specialist.reads_base() && self.encoder.is_none() {
            let name = &specialist.manifest().name;
            tracing::warn!(
                "specialist `{name}` cannot answer: its head reads an encoder too, and this server has none"
            );
        }
        let reader = self.base_of(&specialist).and_then(|base| self.adapted(&specialist, base));
        match reader.and_then(|reader| reader.ok_or_else(|| "it has no adapter".to_owned())) {
            Ok(reader) => {
                let with = Equipment::Encoder(Embedder::over(Arc::new(reader)));
                Arc::new(Equipped { specialist, with })
            }
            Err(why) => {
                tracing::warn!("specialist `{}` cannot answer: {why}", specialist.manifest().name);
                specialist
            }
        }
    }

    /// The base, where it is the decoder that a specialist was made with and has the layers that it keeps.
    fn base_of(&self, specialist: &Specialist) -> Result<&BaseSlot, String> {
        let manifest = specialist.manifest();
        let made_with = manifest.decoder().ok_or("it names no decoder")?;
        let base = self.base.as_ref().ok_or_else(|| {
            format!("made with the decoder `{}`, and this server has none: set `decoder`", made_with.name)
        })?;
        if base.digest != made_with.digest {
            return Err(format!(
                "made with the decoder `{}` ({}), and `{}` ({}) is at hand: set `decoder`, or build it again",
                made_with.name,
                made_with.digest.short(),
                base.name,
                base.digest.short()
            ));
        }
        let layers = base.decoder.as_ref().map_or(usize::MAX, |decoder| decoder.network().config().layers);
        if manifest.kept_layers().is_some_and(|kept| !kept.fit(layers)) {
            return Err(format!("it keeps layers that `{}` does not have", base.name));
        }
        Ok(base)
    }

    /// The base under a specialist's adapter, with the layers that it keeps; `None` where it runs the base as it is.
    fn adapted(&self, specialist: &Specialist, base: &BaseSlot) -> Result<Option<LocalBase>, String> {
        let manifest = specialist.manifest();
        let Some(files) = specialist.adapter_files() else { return Ok(None) };
        let (Some(local), Some(decoder)) = (&base.adaptable, &base.decoder) else {
            return Err("this server has no decoder to adapt".to_owned());
        };
        let config = decoder.network().config();
        let adapter = Adapter::from_bytes(files.config.as_bytes(), &files.weights, config, manifest.adapter_format());
        let adapter = Arc::new(adapter.map_err(|error| error.to_string())?);
        let adapted = local.with_adapter(&manifest.name, adapter).map_err(|error| error.to_string())?;
        Ok(Some(adapted.with_layers(manifest.kept_layers())))
    }

    fn with_own_encoder(&self, specialist: Arc<Specialist>) -> Arc<dyn Expert> {
        let slot = self.encoder.as_ref();
        let (Some(file), Some((base, pool))) =
            (specialist.encoder_file(), slot.and_then(|encoder| encoder.source.as_ref()))
        else {
            return specialist;
        };
        // Layers over other tables would answer nonsense; `replace_experts` warns of it.
        if specialist.manifest().base.as_ref().is_none_or(|made_with| made_with.mismatch(base.base()).is_some()) {
            return specialist;
        }
        let tuned = base.tuned(&file.0).map_err(|error| error.to_string());
        if specialist.schema().is_some() {
            return match tuned {
                Ok(encoder) => {
                    Arc::new(Equipped { specialist, with: Equipment::Reader(Box::new(encoder), Arc::clone(pool)) })
                }
                Err(error) => {
                    tracing::warn!("specialist `{}` cannot answer: {error}", specialist.manifest().name);
                    specialist
                }
            };
        }
        let started = tuned.and_then(|encoder| {
            let queue = EncoderQueue::new(Arc::new(encoder), QueueLimits::default());
            Embedder::start(PooledEncoder { queue, pool: Arc::clone(pool) }).map_err(|error| error.to_string())
        });
        match started {
            Ok(embedder) => Arc::new(Equipped { specialist, with: Equipment::Encoder(embedder) }),
            Err(error) => {
                tracing::warn!("specialist `{}` cannot answer: {error}", specialist.manifest().name);
                specialist
            }
        }
    }
}

fn start_encoder(encoder: Arc<Encoder>, pool: Arc<Pool>) -> Result<EncoderSlot, OpenError> {
    let (base, dim) = (encoder.base().clone(), encoder.dim());
    let source = Some((Arc::clone(&encoder), Arc::clone(&pool)));
    let queue = EncoderQueue::new(encoder, QueueLimits::default());
    let embedder =
        Embedder::start(PooledEncoder { queue, pool }).map_err(|error| OpenError::Thread("encoder", error))?;
    Ok(EncoderSlot { embedder, base, dim, source })
}

fn start_base(
    decoder: Arc<Decoder>,
    scope: CacheScope,
    pool: Arc<Pool>,
    clock: Arc<dyn Fn() -> u64 + Send + Sync>,
) -> Result<BaseSlot, OpenError> {
    let (name, digest) = (decoder.base().name.clone(), decoder.base().digest);
    let limits = EngineLimits {
        max_sequences: MAX_SEQUENCES,
        max_queue: MAX_WAITING_SEQUENCES,
        kv_cache_bytes: KV_CACHE_BYTES,
        ..EngineLimits::default()
    };
    let engine = PooledEngine::new(Engine::new(Arc::clone(&decoder), limits), pool);
    let prompting = Arc::new(ChatPrompting::new(Arc::clone(&decoder)).with_clock(clock));
    let local = LocalBase::start(name.clone(), prompting, scope, engine)
        .map_err(|error| OpenError::Thread("decoder", error))?;
    let local = Arc::new(local);
    let backend: Arc<dyn Backend> = Arc::<LocalBase>::clone(&local);
    Ok(BaseSlot { backend, adaptable: Some(local), decoder: Some(decoder), name, digest })
}
