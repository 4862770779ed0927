//! The one function that calls the rooms in order.
//!
//! ```text
//! name ─▶ target ─▶ slot ─▶ opened (enqueued) ─▶ permit for inside ─▶ stage answers ─▶ accept ──────────────┐
//!                                                                        └▶ defer ─▶ permit for outside     │
//!                                                                             │ denied ─▶ refusal ──────────┤
//!                                                                             └▶ opened durable ─▶ LLM ─────┤
//!                                                              answer ◀─ closed durable ◀─ price ◀──────────┘
//! ```
//!
//! What has no model by name gets an error and no entry: nothing was asked of anyone. Everything else leaves two entries.

mod stages;

use std::{
    sync::{
        Arc, RwLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use metier_kernels::Pool;
use metier_model::{BaseId, Decoder, Digest, Encoder};
use metier_traffic::wire::{ChatRequest, EmbeddingRequest, EmbeddingResponse, ModelEntry, Usage};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

use crate::{
    adapters::{AdapterSlot, Adapters},
    audit::{AuditError, AuditLog, Entry, Receipt, ReceiptId},
    backend::{
        Backend, BackendError,
        embedder::{Embedded, Embedder},
        local::{LOCAL, LocalBase},
    },
    decision::{Decision, Escalated, Outcome},
    error::GatewayError,
    expert::Expert,
    meter::Meter,
    policy::{BackendFacts, Boundary, Facts, Permit, Policy, Purpose, Verdict},
    record::Bracket,
    reply::{self, EmbeddingReply, Heading, Reply},
    route::{self, Target},
};

use stages::{Answered, Chosen, Settled};

/// Names told to a caller whose model is unknown.
const MAX_KNOWN_NAMES: usize = 10;
/// When an overloaded gateway asks to be tried again, in milliseconds.
const RETRY_AFTER_MS: u64 = 1_000;

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Pseudonym of the key: goes into entries, so never the key itself nor a person's name.
    pub key: String,
}

impl Caller {
    /// Whoever reaches the loopback address of a server without keys.
    pub fn loopback() -> Self {
        Self { key: "loopback".into() }
    }
}

/// What the server knows of a request beside its body.
#[derive(Clone, Debug)]
pub struct RequestContext {
    /// The caller's or the server's name of it (`x-request-id`); need not be unique.
    pub request_id: String,
    /// Milliseconds since 1970.
    pub now_ms: u64,
    /// When it must be answered.
    pub deadline: Instant,
}

/// How much is done at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests that are worked on.
    pub max_concurrency: usize,
    /// Requests that wait for that.
    pub max_queue: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_concurrency: 64, max_queue: 256 }
    }
}

/// A backend with what the configuration says of it.
pub(crate) struct RemoteSlot {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) facts: BackendFacts,
    pub(crate) model: String,
    pub(crate) price: Option<String>,
}

/// The local base with its name.
pub(crate) struct BaseSlot {
    pub(crate) backend: Arc<dyn Backend>,
    /// The same, where adapters can be loaded over it.
    pub(crate) adaptable: Option<Arc<LocalBase>>,
    /// Its network, where specialists with adapters over it may come.
    pub(crate) decoder: Option<Arc<Decoder>>,
    pub(crate) name: String,
    pub(crate) digest: Digest,
}

/// The encoder with its name.
pub(crate) struct EncoderSlot {
    pub(crate) embedder: Embedder,
    pub(crate) base: BaseId,
    pub(crate) dim: usize,
    /// Whose tables and tokenizer tuned encoders share, and the threads that they run on.
    pub(crate) source: Option<(Arc<Encoder>, Arc<Pool>)>,
}

/// What a gateway is made of; `setup.rs` makes them from a configuration, tests from scripts.
pub(crate) struct Parts {
    pub(crate) audit: AuditLog,
    pub(crate) meter: Meter,
    pub(crate) limits: Limits,
    pub(crate) base: Option<BaseSlot>,
    pub(crate) encoder: Option<EncoderSlot>,
    pub(crate) remotes: Vec<RemoteSlot>,
    pub(crate) experts: Vec<Arc<dyn Expert>>,
}

/// Policy, routes, backends, meter and record of one server.
pub struct Gateway {
    audit: Arc<AuditLog>,
    policy: Policy,
    meter: Meter,
    pub(crate) base: Option<BaseSlot>,
    adapters: Adapters,
    pub(crate) encoder: Option<EncoderSlot>,
    remotes: Vec<RemoteSlot>,
    remote_facts: Vec<BackendFacts>,
    local_facts: [BackendFacts; 1],
    experts: RwLock<Arc<Vec<Arc<dyn Expert>>>>,
    slots: Arc<Semaphore>,
    limits: Limits,
    waiting: AtomicUsize,
    closing: AtomicBool,
}

impl Gateway {
    pub(crate) fn assemble(parts: Parts) -> Self {
        let local_facts = [BackendFacts { id: LOCAL.into(), boundary: Boundary::Inside, direct: true }];
        let remote_facts: Vec<BackendFacts> = parts.remotes.iter().map(|remote| remote.facts.clone()).collect();
        let all: Vec<BackendFacts> = local_facts.iter().chain(&remote_facts).cloned().collect();
        Self {
            audit: Arc::new(parts.audit),
            policy: Policy::new(&all),
            meter: parts.meter,
            base: parts.base,
            adapters: Adapters::default(),
            encoder: parts.encoder,
            remotes: parts.remotes,
            remote_facts,
            local_facts,
            experts: RwLock::new(Arc::new(parts.experts)),
            slots: Arc::new(Semaphore::new(parts.limits.max_concurrency)),
            limits: parts.limits,
            waiting: AtomicUsize::new(0),
            closing: AtomicBool::new(false),
        }
    }

    /// Answers a chat request.
    ///
    /// Dropping the future, or the stream that it yields, cancels the work and closes the request on record as cancelled.
    pub async fn handle(
        &self,
        caller: &Caller,
        request: ChatRequest,
        context: RequestContext,
    ) -> Result<Reply, GatewayError> {
        let (experts, adapters) = (self.experts(), self.adapters.all());
        let target = self.target(&request.model, &experts, &adapters)?;
        let slot = self.slot(context.deadline).await?;
        let mut entry = self.entry(caller, &request.model, &context)?;
        match target {
            Target::Specialist(idx) => describe(&mut entry, &*experts[idx]),
            Target::Base => entry.base = self.base.as_ref().map(|base| base.digest),
            Target::Adapter(idx) => {
                entry.task = adapters[idx].name.clone();
                entry.specialist = Some(adapters[idx].digest);
                entry.base = self.base.as_ref().map(|base| base.digest);
            }
            Target::Backend(_) | Target::Auto => {}
        }
        let body = request.to_body().to_string().into_bytes();
        let mut bracket = Bracket::open(&self.audit, entry, body, slot)?;

        let answered = match target {
            Target::Base | Target::Adapter(_) | Target::Backend(_) if request.stream => {
                // The bracket moves into the stream, so this path closes it itself.
                return self.stream(target, &adapters, request, context, bracket).await;
            }
            Target::Base | Target::Adapter(_) | Target::Backend(_) => {
                let generated = self.generate(target, &adapters, &request, &context, &mut bracket);
                self.bounded(&context, generated).await
            }
            Target::Specialist(idx) => {
                let asked = self.specialist(&experts[idx], Chosen::Named, &request, &context, &mut bracket);
                self.bounded(&context, asked).await.map(Answered::Settled)
            }
            Target::Auto => {
                let asked = self.auto(&experts, &request, &context, &mut bracket);
                self.bounded(&context, asked).await.map(Answered::Settled)
            }
        };
        match answered {
            Ok(answered) => self.close(answered, &request, &context, &mut bracket).await,
            Err(error) => {
                bracket.fail(&error);
                Err(error)
            }
        }
    }

    /// Embeds texts with the encoder.
    pub async fn embed(
        &self,
        caller: &Caller,
        request: EmbeddingRequest,
        context: RequestContext,
    ) -> Result<EmbeddingReply, GatewayError> {
        let encoder = self.encoder.as_ref().filter(|encoder| encoder.base.name == request.model);
        let encoder = encoder.ok_or_else(|| self.unknown(&request.model, &self.experts(), &self.adapters.all()))?;
        if request.dimensions.is_some_and(|dimensions| dimensions as usize != encoder.dim) {
            return Err(GatewayError::Invalid {
                message: format!("`dimensions` must be {} for `{}`", encoder.dim, encoder.base.name),
                param: "dimensions".into(),
                code: "invalid_value",
            });
        }
        let slot = self.slot(context.deadline).await?;
        let mut entry = self.entry(caller, &request.model, &context)?;
        entry.base = Some(encoder.base.digest);
        let body = request.to_body().to_string().into_bytes();
        let mut bracket = Bracket::open(&self.audit, entry, body, slot)?;
        let embedded = self.bounded(&context, async {
            self.permit_inside(Purpose::Direct, &mut bracket)?;
            encoder.embedder.embed(request.input).await.map_err(local_error)
        });
        let Embedded { vectors, n_tokens } = match embedded.await {
            Ok(embedded) => embedded,
            Err(error) => {
                bracket.fail(&error);
                return Err(error);
            }
        };
        let decision = Decision {
            stage: "encoder".into(),
            backend: Some(LOCAL.into()),
            cost_picousd: Some(self.meter.specialist_picousd),
            ..direct(bracket.receipt())
        };
        let digest = vectors.iter().flatten().flat_map(|value| value.to_le_bytes()).collect();
        bracket.close(&decision, Some(Usage::of(n_tokens, 0)), Some(digest)).await?;
        let response = EmbeddingResponse::new(encoder.base.name.clone(), vectors, request.encoding_format, n_tokens);
        Ok(EmbeddingReply { response, decision })
    }

    /// All that may be named in a request.
    pub fn models(&self) -> Vec<ModelEntry> {
        let mut models = vec![ModelEntry::new(route::AUTO, "metier-router")];
        models.extend(self.base.iter().map(|base| ModelEntry::new(&base.name, "metier-base")));
        let base = self.base.as_ref().map(|base| base.name.as_str());
        models.extend(self.adapters.all().iter().map(|adapter| adapter.entry(base)));
        models.extend(self.experts().iter().map(|expert| ModelEntry::new(expert.name(), "metier-specialist")));
        models.extend(self.encoder.iter().map(|encoder| ModelEntry::new(&encoder.base.name, "metier-encoder")));
        models.extend(self.remotes.iter().map(|remote| ModelEntry::new(&remote.model, &remote.facts.id)));
        models
    }

    /// Puts other specialists in the place of all there are. Requests under way end with those they began with.
    pub(crate) fn replace_experts(&self, experts: Vec<Arc<dyn Expert>>) {
        if let Some(encoder) = &self.encoder {
            for expert in &experts {
                if let Some(why) = expert.base().and_then(|base| base.mismatch(&encoder.base)) {
                    let reads = expert.reads_base() || (expert.needs_embedding() && expert.own_encoder().is_none());
                    let loss = if reads { "cannot answer" } else { "cannot be found by `auto`" };
                    tracing::warn!("specialist `{}` {loss}: {why}", expert.name());
                }
            }
        }
        *self.experts.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = Arc::new(experts);
    }

    /// The record.
    pub fn audit(&self) -> &AuditLog {
        &self.audit
    }

    /// A receipt for a receipt id or request id. Reads the disk: call it from a blocking thread.
    pub fn receipt(&self, id: &str) -> Result<Receipt, AuditError> {
        self.audit.prove(id)
    }

    /// Whether requests can be answered: the record takes entries and nobody is shutting down.
    pub fn is_ready(&self) -> bool {
        !self.closing.load(Ordering::Relaxed) && self.audit.is_open()
    }

    /// Takes no new requests, waits at most `grace` for those under way, and closes the record. Returns whether all had ended;
    /// those that had not are closed as interrupted at the next start.
    pub async fn shutdown(&self, grace: Duration) -> bool {
        self.closing.store(true, Ordering::Relaxed);
        let all = u32::try_from(self.limits.max_concurrency).unwrap_or(u32::MAX);
        let ended = tokio::time::timeout(grace, self.slots.acquire_many(all)).await.is_ok();
        let audit = Arc::clone(&self.audit);
        // Joining the writer's thread may take a commit.
        let _ = tokio::task::spawn_blocking(move || audit.close()).await;
        ended
    }

    pub(crate) fn experts(&self) -> Arc<Vec<Arc<dyn Expert>>> {
        Arc::clone(&self.experts.read().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }

    pub(crate) fn adapters(&self) -> &Adapters {
        &self.adapters
    }

    /// The base, where adapters can be loaded over it.
    pub(crate) fn adaptable(&self) -> Option<&Arc<LocalBase>> {
        self.base.as_ref()?.adaptable.as_ref()
    }

    /// Names that no specialist or adapter has brought.
    pub(crate) fn configured_names(&self) -> impl Iterator<Item = &str> {
        let backends = self.remotes.iter().flat_map(|remote| [remote.model.as_str(), remote.facts.id.as_str()]);
        let encoder = self.encoder.iter().map(|encoder| encoder.base.name.as_str());
        self.base.iter().map(|base| base.name.as_str()).chain(encoder).chain(backends)
    }

    fn target(
        &self,
        model: &str,
        experts: &[Arc<dyn Expert>],
        adapters: &[Arc<AdapterSlot>],
    ) -> Result<Target, GatewayError> {
        let specialists: Vec<&str> = experts.iter().map(|expert| expert.name()).collect();
        let backends: Vec<(&str, &str)> =
            self.remotes.iter().map(|remote| (remote.model.as_str(), remote.facts.id.as_str())).collect();
        let base = self.base.as_ref().map(|base| base.name.as_str());
        let tuned: Vec<&str> = adapters.iter().map(|adapter| adapter.name.as_str()).collect();
        let names = route::Names { base, specialists: &specialists, adapters: &tuned, backends: &backends };
        route::by_name(model, names).ok_or_else(|| self.unknown(model, experts, adapters))
    }

    fn unknown(&self, model: &str, experts: &[Arc<dyn Expert>], adapters: &[Arc<AdapterSlot>]) -> GatewayError {
        let names = experts.iter().map(|expert| expert.name().to_owned());
        let names = names.chain(adapters.iter().map(|adapter| adapter.name.clone()));
        let known = names.chain(self.base.iter().map(|base| base.name.clone())).chain([route::AUTO.to_owned()]);
        GatewayError::UnknownModel { model: model.to_owned(), known: known.take(MAX_KNOWN_NAMES).collect() }
    }

    /// Leave to work, at once or after waiting in a queue of bounded length.
    async fn slot(&self, deadline: Instant) -> Result<OwnedSemaphorePermit, GatewayError> {
        if self.closing.load(Ordering::Relaxed) {
            return Err(GatewayError::ShuttingDown);
        }
        if let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() {
            return Ok(slot);
        }
        let full = GatewayError::Overloaded { what: "the queue of requests", retry_after_ms: RETRY_AFTER_MS };
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= self.limits.max_queue {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(full);
        }
        // Counted down however this future ends.
        let _waiting = Countdown(&self.waiting);
        match timeout_at(deadline, Arc::clone(&self.slots).acquire_owned()).await {
            Ok(Ok(slot)) => Ok(slot),
            Ok(Err(_)) => Err(GatewayError::ShuttingDown),
            Err(_) => Err(GatewayError::Deadline),
        }
    }

    fn entry(&self, caller: &Caller, model: &str, context: &RequestContext) -> Result<Entry, GatewayError> {
        let mut random = [0; 10];
        getrandom::fill(&mut random).map_err(|error| GatewayError::Internal(error.to_string()))?;
        Ok(Entry {
            key: caller.key.clone(),
            receipt: Some(ReceiptId::new(context.now_ms, random)),
            request: context.request_id.clone(),
            model: model.to_owned(),
            policy: Some(self.policy.digest()),
            ..Entry::default()
        })
    }

    async fn bounded<T>(
        &self,
        context: &RequestContext,
        work: impl Future<Output = Result<T, GatewayError>>,
    ) -> Result<T, GatewayError> {
        timeout_at(context.deadline, work).await.unwrap_or(Err(GatewayError::Deadline))
    }

    /// Closes an answer on record, then gives it the shape that was asked for.
    async fn close(
        &self,
        answered: Answered,
        request: &ChatRequest,
        context: &RequestContext,
        bracket: &mut Bracket,
    ) -> Result<Reply, GatewayError> {
        match answered {
            Answered::Generated(mut response, decision) => {
                let texts = response.choices.iter().filter_map(|choice| choice.message.content.as_deref());
                let body = texts.collect::<String>().into_bytes();
                bracket.close(&decision, response.usage, Some(body)).await?;
                response.metier = Some(decision.to_json());
                Ok(Reply::Whole { response, decision })
            }
            Answered::Settled(Settled { said, model, usage, decision }) => {
                bracket.close(&decision, Some(usage), Some(said.body())).await?;
                let heading = heading(bracket.receipt(), context, model);
                let metier = decision.to_json();
                if request.stream {
                    let asked = request.include_usage.then_some(usage);
                    let chunks = reply::chunks(&heading, request.n, &said, asked, metier);
                    let chunks = Box::pin(futures_util::stream::iter(chunks.into_iter().map(Ok)));
                    return Ok(Reply::Stream { decision, chunks });
                }
                let response = reply::whole(heading, request.n, &said, usage, metier);
                Ok(Reply::Whole { response, decision })
            }
        }
    }

    /// A permit for what runs in this process.
    fn permit_inside(&self, purpose: Purpose<'_>, bracket: &mut Bracket) -> Result<Permit, GatewayError> {
        let facts = Facts { purpose, candidates: &self.local_facts, audit_ok: self.audit.is_open() };
        match self.policy.check(&facts) {
            Verdict::Allow(permit) => {
                bracket.entry.permitted = permit.backends().to_vec();
                bracket.entry.boundary = Boundary::Inside.as_str().into();
                Ok(permit)
            }
            Verdict::Deny(denial) => {
                Err(GatewayError::Denied { model: bracket.entry.model.clone(), reasons: denial.reasons })
            }
        }
    }
}

fn local_error(source: BackendError) -> GatewayError {
    match source {
        BackendError::QueueFull => {
            GatewayError::Overloaded { what: "the encoder's queue", retry_after_ms: RETRY_AFTER_MS }
        }
        source => GatewayError::Backend { backend: LOCAL.into(), source },
    }
}

fn direct(receipt: ReceiptId) -> Decision {
    Decision {
        outcome: Outcome::Direct,
        stage: String::new(),
        confidence: None,
        threshold: None,
        escalated: Escalated::No,
        cost_picousd: None,
        receipt,
        task: None,
        backend: None,
        reason: None,
        fields: None,
    }
}

fn describe(entry: &mut Entry, expert: &dyn Expert) {
    entry.task = expert.name().to_owned();
    entry.specialist = Some(expert.id());
    entry.base = expert.decoder().or(expert.base().map(|base| base.digest));
}

fn heading(receipt: ReceiptId, context: &RequestContext, model: String) -> Heading {
    Heading { id: format!("chatcmpl-{receipt}"), created: context.now_ms / 1_000, model }
}

/// Counts down when dropped.
struct Countdown<'a>(&'a AtomicUsize);

impl Drop for Countdown<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
