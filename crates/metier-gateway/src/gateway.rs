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

use std::{
    sync::{
        Arc, RwLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use metier_model::Digest;
use metier_traffic::wire::{ChatRequest, ChatResponse, EmbeddingRequest, EmbeddingResponse, ModelEntry, Usage};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

use crate::{
    audit::{AuditError, AuditLog, Entry, Receipt, ReceiptId},
    backend::{
        Backend, BackendError,
        embedder::{Embedded, Embedder},
        local::LOCAL,
    },
    decision::{Decision, Escalated, Outcome},
    deferral,
    error::GatewayError,
    expert::{Expert, Judged},
    meter::{Meter, sum},
    passage::{Passage, Price},
    policy::{BackendFacts, Boundary, Denial, Facts, Permit, Policy, Purpose, Verdict},
    record::Bracket,
    reply::{self, EmbeddingReply, Heading, Reply, Said},
    route::{self, Nearest, Step, Target, TaskCentroids},
};

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
    pub(crate) name: String,
    pub(crate) digest: Digest,
}

/// The encoder with its name.
pub(crate) struct EncoderSlot {
    pub(crate) embedder: Embedder,
    pub(crate) name: String,
    pub(crate) digest: Digest,
    pub(crate) dim: usize,
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
    base: Option<BaseSlot>,
    encoder: Option<EncoderSlot>,
    remotes: Vec<RemoteSlot>,
    remote_facts: Vec<BackendFacts>,
    local_facts: [BackendFacts; 1],
    experts: RwLock<Arc<Vec<Arc<dyn Expert>>>>,
    slots: Arc<Semaphore>,
    limits: Limits,
    waiting: AtomicUsize,
    closing: AtomicBool,
}

/// An answer before it has a shape.
struct Settled {
    said: Said,
    model: String,
    usage: Usage,
    decision: Decision,
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
        let experts = self.experts();
        let target = self.target(&request.model, &experts)?;
        let slot = self.slot(context.deadline).await?;
        let mut entry = self.entry(caller, &request.model, &context)?;
        match target {
            Target::Specialist(idx) => describe(&mut entry, &*experts[idx]),
            Target::Base => entry.base = self.base.as_ref().map(|base| base.digest),
            Target::Backend(_) | Target::Auto => {}
        }
        let body = request.to_body().to_string().into_bytes();
        let mut bracket = Bracket::open(&self.audit, entry, body, slot)?;

        let answered = match target {
            Target::Base | Target::Backend(_) if request.stream => {
                // The bracket moves into the stream, so this path closes it itself.
                return self.stream(target, request, context, bracket).await;
            }
            Target::Base | Target::Backend(_) => {
                self.bounded(&context, self.generate(target, &request, &context, &mut bracket)).await
            }
            Target::Specialist(idx) => {
                let asked = self.specialist(&experts[idx], None, &request, &context, &mut bracket);
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
        let encoder = self.encoder.as_ref().filter(|encoder| encoder.name == request.model);
        let encoder = encoder.ok_or_else(|| self.unknown(&request.model, &self.experts()))?;
        if request.dimensions.is_some_and(|dimensions| dimensions as usize != encoder.dim) {
            return Err(GatewayError::Invalid {
                message: format!("`dimensions` must be {} for `{}`", encoder.dim, encoder.name),
                param: "dimensions".into(),
                code: "invalid_value",
            });
        }
        let slot = self.slot(context.deadline).await?;
        let mut entry = self.entry(caller, &request.model, &context)?;
        entry.base = Some(encoder.digest);
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
        let response = EmbeddingResponse::new(encoder.name.clone(), vectors, request.encoding_format, n_tokens);
        Ok(EmbeddingReply { response, decision })
    }

    /// All that may be named in a request.
    pub fn models(&self) -> Vec<ModelEntry> {
        let mut models = vec![ModelEntry::new(route::AUTO, "metier-router")];
        models.extend(self.base.iter().map(|base| ModelEntry::new(&base.name, "metier-base")));
        models.extend(self.experts().iter().map(|expert| ModelEntry::new(expert.name(), "metier-specialist")));
        models.extend(self.encoder.iter().map(|encoder| ModelEntry::new(&encoder.name, "metier-encoder")));
        models.extend(self.remotes.iter().map(|remote| ModelEntry::new(&remote.model, &remote.facts.id)));
        models
    }

    /// Puts other specialists in the place of all there are. Requests under way end with those they began with.
    pub(crate) fn replace_experts(&self, experts: Vec<Arc<dyn Expert>>) {
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

    fn experts(&self) -> Arc<Vec<Arc<dyn Expert>>> {
        Arc::clone(&self.experts.read().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }

    fn target(&self, model: &str, experts: &[Arc<dyn Expert>]) -> Result<Target, GatewayError> {
        let specialists: Vec<&str> = experts.iter().map(|expert| expert.name()).collect();
        let backends: Vec<(&str, &str)> =
            self.remotes.iter().map(|remote| (remote.model.as_str(), remote.facts.id.as_str())).collect();
        let base = self.base.as_ref().map(|base| base.name.as_str());
        let names = route::Names { base, specialists: &specialists, backends: &backends };
        route::by_name(model, names).ok_or_else(|| self.unknown(model, experts))
    }

    fn unknown(&self, model: &str, experts: &[Arc<dyn Expert>]) -> GatewayError {
        let names = experts.iter().map(|expert| expert.name().to_owned());
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

    /// `auto`: the nearest task answers; where none fits, a backend inside may, else there is a refusal.
    async fn auto(
        &self,
        experts: &[Arc<dyn Expert>],
        request: &ChatRequest,
        context: &RequestContext,
        bracket: &mut Bracket,
    ) -> Result<Settled, GatewayError> {
        let encoder = self.encoder.as_ref().ok_or_else(|| GatewayError::Invalid {
            message: "`auto` needs an encoder, and this server has none".into(),
            param: "model".into(),
            code: "model_not_found",
        })?;
        let message = last_user_text(request)?;
        self.permit_inside(Purpose::Answer, bracket)?;
        let text = message.to_owned();
        let embedded = encoder.embedder.embed(vec![text]).await.map_err(local_error)?;
        let embedding = embedded.vectors.first().map_or(&[][..], Vec::as_slice);
        // Tasks of several inputs fit only a message that holds them; those of another encoder speak of other vectors.
        let fits = |expert: &Arc<dyn Expert>| {
            expert.read(message).is_ok() && expert.base().is_none_or(|base| base == encoder.digest)
        };
        let readable: Vec<usize> = (0..experts.len()).filter(|idx| fits(&experts[*idx])).collect();
        let tasks: Vec<TaskCentroids<'_>> = readable
            .iter()
            .map(|idx| TaskCentroids {
                centroids: experts[*idx].centroids(),
                threshold: experts[*idx].match_threshold(),
            })
            .collect();
        let best = match route::nearest(embedding, &tasks) {
            Nearest::Task { idx, .. } => {
                let expert = &experts[readable[idx]];
                describe(&mut bracket.entry, &**expert);
                // The same text has the same embedding.
                let known = expert.read(message).is_ok_and(|read| read == message).then_some(embedded);
                return self.specialist(expert, known, request, context, bracket).await;
            }
            Nearest::NoneFits { best } => best.map(|(idx, score, threshold)| (readable[idx], score, threshold)),
        };
        let why = match best {
            Some((idx, score, threshold)) => {
                format!("no task fits: the nearest, `{}`, is at {score:.2} < {threshold:.2}", experts[idx].name())
            }
            None => "no task fits".to_owned(),
        };
        let decision = Decision {
            stage: "match".into(),
            confidence: best.map(|(_, score, _)| score),
            threshold: best.map(|(.., threshold)| threshold),
            cost_picousd: Some(self.meter.specialist_picousd),
            ..direct(bracket.receipt())
        };
        let usage = Usage::of(embedded.n_tokens, 0);
        self.escalate(Purpose::NoTask, None, request, context, bracket, Unanswered { why, decision, usage }).await
    }

    /// A specialist answers, or defers.
    async fn specialist(
        &self,
        expert: &Arc<dyn Expert>,
        embedded: Option<Embedded>,
        request: &ChatRequest,
        context: &RequestContext,
        bracket: &mut Bracket,
    ) -> Result<Settled, GatewayError> {
        let message = last_user_text(request)?;
        let text = expert.read(message).map_err(|message| GatewayError::Invalid {
            message,
            param: "messages".into(),
            code: "invalid_value",
        })?;
        let permit = self.permit_inside(Purpose::Answer, bracket)?;
        let (judged, n_tokens) = self.judge(&permit, expert, &text, embedded).await?;
        let usage = Usage::of(n_tokens, 0);
        let mut decision = Decision {
            outcome: Outcome::Accepted,
            stage: judged.stage,
            confidence: Some(judged.score),
            threshold: judged.threshold,
            escalated: Escalated::No,
            cost_picousd: Some(self.meter.specialist_picousd),
            receipt: bracket.receipt(),
            task: Some(expert.name().to_owned()),
            backend: Some(LOCAL.into()),
            reason: None,
        };
        if route::cascade(judged.score, judged.threshold, judged.accepted) == Step::Accept {
            let content = deferral::in_format(&judged.label, Some(judged.score), &request.response_format);
            return Ok(Settled { said: Said::Content(content), model: expert.name().to_owned(), usage, decision });
        }
        decision.backend = None;
        let why = match judged.threshold {
            Some(threshold) => format!("score {:.2} < {threshold:.2}", floor(judged.score)),
            None => format!("score {:.2} without a certified threshold", floor(judged.score)),
        };
        let score_bp = crate::decision::basis_points(judged.score);
        let purpose = Purpose::Defer { task: expert.name(), may_leave: expert.may_leave(), score_bp };
        let unanswered = Unanswered { why, decision, usage };
        self.escalate(purpose, Some((&**expert, text)), request, context, bracket, unanswered).await
    }

    /// A specialist's judgement of a text, with the tokens that the encoder read for it.
    async fn judge(
        &self,
        permit: &Permit,
        expert: &Arc<dyn Expert>,
        text: &str,
        embedded: Option<Embedded>,
    ) -> Result<(Judged, u64), GatewayError> {
        if !permit.lists(LOCAL) {
            return Err(local_error(BackendError::NotPermitted));
        }
        let embedded = match (embedded, &self.encoder) {
            (Some(embedded), _) => embedded,
            (None, Some(encoder)) if expert.needs_embedding() => {
                if expert.base().is_some_and(|base| base != encoder.digest) {
                    let reason =
                        format!("specialist `{}` was made with another encoder than `{}`", expert.name(), encoder.name);
                    return Err(local_error(BackendError::Failed(reason)));
                }
                encoder.embedder.embed(vec![text.to_owned()]).await.map_err(local_error)?
            }
            (None, None) if expert.needs_embedding() => {
                let reason = format!("specialist `{}` needs an encoder, and this server has none", expert.name());
                return Err(local_error(BackendError::Failed(reason)));
            }
            (None, _) => Embedded { vectors: Vec::new(), n_tokens: 0 },
        };
        let (expert, text, n_tokens) = (Arc::clone(expert), text.to_owned(), embedded.n_tokens);
        // A long text takes milliseconds, and a panic in it stays there.
        let judging = tokio::task::spawn_blocking(move || {
            let embedding = embedded.vectors.first().filter(|_| expert.needs_embedding());
            expert.judge(&text, embedding.map(Vec::as_slice))
        });
        match judging.await {
            Ok(Ok(judged)) => Ok((judged, n_tokens)),
            Ok(Err(reason)) => Err(local_error(BackendError::Failed(reason))),
            Err(_) => Err(GatewayError::Internal("a specialist panicked".into())),
        }
    }

    /// Nobody inside has answered: a backend that policy allows does, in the order of the configuration; else there is a refusal.
    async fn escalate(
        &self,
        purpose: Purpose<'_>,
        task: Option<(&dyn Expert, String)>,
        request: &ChatRequest,
        context: &RequestContext,
        bracket: &mut Bracket,
        unanswered: Unanswered,
    ) -> Result<Settled, GatewayError> {
        let Unanswered { why, mut decision, usage } = unanswered;
        let facts = Facts { purpose, candidates: &self.remote_facts, audit_ok: self.audit.is_open() };
        let permit = match self.policy.check(&facts) {
            Verdict::Allow(permit) => permit,
            Verdict::Deny(denial) => return Ok(refusal(why, denial, decision, usage, &bracket.entry)),
        };
        bracket.entry.permitted.extend_from_slice(permit.backends());
        // Durable before the first byte leaves.
        bracket.durable().await?;
        let mut last_error = None;
        for remote in self.remotes.iter().filter(|remote| permit.lists(&remote.facts.id)) {
            if remote.facts.boundary == Boundary::Outside {
                bracket.entry.boundary = Boundary::Outside.as_str().into();
            }
            let asked = match &task {
                Some((expert, text)) => deferral::request_for(*expert, text.clone(), &remote.model),
                None => ChatRequest { model: remote.model.clone(), n: 1, ..request.clone() },
            };
            match remote.backend.answer(&permit, &asked, context.deadline).await {
                Ok(answer) => {
                    let spent = answer.usage.unwrap_or_default();
                    let text = first_text(&answer);
                    let content = match &task {
                        Some((expert, _)) => match deferral::label_of(&text, expert.labels()) {
                            Some(label) => deferral::in_format(label, None, &request.response_format),
                            None => deferral::without_label(&text, &request.response_format),
                        },
                        None => text,
                    };
                    decision.outcome = Outcome::Deferred;
                    decision.escalated = Escalated::Llm;
                    decision.backend = Some(remote.facts.id.clone());
                    let cost = self.remote_cost(remote, answer.usage, context.now_ms);
                    decision.cost_picousd = sum(&[decision.cost_picousd, cost]);
                    let prompt_tokens = usage.prompt_tokens.saturating_add(spent.prompt_tokens);
                    let usage = Usage::of(prompt_tokens, spent.completion_tokens);
                    let model = answered_by(&answer, &remote.model);
                    return Ok(Settled { said: Said::Content(content), model, usage, decision });
                }
                Err(source) => {
                    tracing::warn!(
                        backend = remote.facts.id,
                        error = &source as &dyn std::error::Error,
                        "a backend failed"
                    );
                    last_error = Some(GatewayError::Backend { backend: remote.facts.id.clone(), source });
                }
            }
        }
        Err(last_error.unwrap_or_else(|| GatewayError::Internal("a permit lists no backend that there is".into())))
    }

    fn remote_cost(&self, remote: &RemoteSlot, usage: Option<Usage>, now_ms: u64) -> Option<u64> {
        // An answer that does not tell its tokens cannot be priced.
        let usage = usage?;
        self.meter.backend(remote.price.as_deref(), now_ms, usage.prompt_tokens, usage.completion_tokens)
    }

    /// Base and named backends: who it is, with a permit to ask it.
    fn named(&self, target: Target, now_ms: u64, bracket: &mut Bracket) -> Result<(Named, Permit), GatewayError> {
        match (target, &self.base) {
            (Target::Base, Some(base)) => {
                let permit = self.permit_inside(Purpose::Direct, bracket)?;
                let price: Price = {
                    let meter = self.meter.clone();
                    Arc::new(move |usage| Some(meter.base(usage.prompt_tokens, usage.completion_tokens)))
                };
                let backend = Arc::clone(&base.backend);
                let named = Named {
                    backend,
                    id: LOCAL.into(),
                    model: base.name.clone(),
                    stage: "base".into(),
                    outside: false,
                    price,
                };
                Ok((named, permit))
            }
            (Target::Backend(idx), _) => {
                let remote = &self.remotes[idx];
                let candidates = std::slice::from_ref(&remote.facts);
                let facts = Facts { purpose: Purpose::Direct, candidates, audit_ok: self.audit.is_open() };
                let permit = match self.policy.check(&facts) {
                    Verdict::Allow(permit) => permit,
                    Verdict::Deny(denial) => {
                        return Err(GatewayError::Denied { model: remote.model.clone(), reasons: denial.reasons });
                    }
                };
                bracket.entry.permitted = permit.backends().to_vec();
                bracket.entry.boundary = remote.facts.boundary.as_str().into();
                let price: Price = {
                    let (meter, line) = (self.meter.clone(), remote.price.clone());
                    Arc::new(move |usage| {
                        meter.backend(line.as_deref(), now_ms, usage.prompt_tokens, usage.completion_tokens)
                    })
                };
                let named = Named {
                    backend: Arc::clone(&remote.backend),
                    id: remote.facts.id.clone(),
                    model: remote.model.clone(),
                    stage: remote.facts.id.clone(),
                    outside: remote.facts.boundary == Boundary::Outside,
                    price,
                };
                Ok((named, permit))
            }
            _ => Err(GatewayError::Internal("a target that is not there was matched".into())),
        }
    }

    /// A whole answer of the base or of a named backend.
    async fn generate(
        &self,
        target: Target,
        request: &ChatRequest,
        context: &RequestContext,
        bracket: &mut Bracket,
    ) -> Result<Answered, GatewayError> {
        let (named, permit) = self.named(target, context.now_ms, bracket)?;
        let failed = |source| named.error(source);
        let answering = named.backend.answer(&permit, request, context.deadline);
        let mut response = if named.outside {
            bracket.durable().await?;
            answering.await.map_err(failed)?
        } else {
            let (durable, answer) = tokio::join!(bracket.durable(), answering);
            durable?;
            answer.map_err(failed)?
        };
        let Heading { id, created, model } = heading(bracket.receipt(), context, answered_by(&response, &named.model));
        (response.id, response.created, response.model) = (id, created, model);
        response.object = "chat.completion".into();
        let cost_picousd = response.usage.and_then(|usage| (named.price)(usage));
        let decision = Decision { cost_picousd, ..named.decision(bracket.receipt()) };
        Ok(Answered::Generated(response, decision))
    }

    /// A streamed answer of the base or of a named backend.
    async fn stream(
        &self,
        target: Target,
        request: ChatRequest,
        context: RequestContext,
        mut bracket: Bracket,
    ) -> Result<Reply, GatewayError> {
        let begun = self.bounded(&context, async {
            let (named, permit) = self.named(target, context.now_ms, &mut bracket)?;
            // Durable before a byte leaves us, in either direction.
            bracket.durable().await?;
            let source = named.backend.stream(&permit, &request, context.deadline).await;
            let source = source.map_err(|source| named.error(source))?;
            Ok((named, source))
        });
        let (named, source) = match begun.await {
            Ok(begun) => begun,
            Err(error) => {
                bracket.fail(&error);
                return Err(error);
            }
        };
        let decision = named.decision(bracket.receipt());
        let passage = Passage {
            heading: heading(bracket.receipt(), &context, named.model),
            source,
            n: request.n,
            include_usage: request.include_usage,
            decision: decision.clone(),
            price: named.price,
            backend: named.id,
            deadline: context.deadline,
            bracket,
        };
        Ok(Reply::Stream { decision, chunks: passage.into_stream() })
    }
}

/// What `handle` has before it closes.
enum Answered {
    Settled(Settled),
    Generated(ChatResponse, Decision),
}

/// A request that nobody inside has answered.
struct Unanswered {
    /// For the refusal, without the guess.
    why: String,
    decision: Decision,
    usage: Usage,
}

/// Base or named backend.
struct Named {
    backend: Arc<dyn Backend>,
    id: String,
    model: String,
    stage: String,
    outside: bool,
    price: Price,
}

impl Named {
    fn decision(&self, receipt: ReceiptId) -> Decision {
        Decision { stage: self.stage.clone(), backend: Some(self.id.clone()), ..direct(receipt) }
    }

    /// What is wrong with the request is the caller's to mend, in the words for callers.
    fn error(&self, source: BackendError) -> GatewayError {
        match source {
            BackendError::Invalid { message, param, code } => {
                GatewayError::Invalid { message, param: param.into(), code }
            }
            BackendError::ContextLength { prompt_tokens, context_len } => {
                GatewayError::ContextLength { model: self.model.clone(), prompt_tokens, context_len }
            }
            source => GatewayError::Backend { backend: self.id.clone(), source },
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
    }
}

/// No backend may answer: the refusal tells the score, never the guess.
fn refusal(why: String, denial: Denial, decision: Decision, usage: Usage, entry: &Entry) -> Settled {
    let escalated = if denial.had_candidates { Escalated::Denied } else { Escalated::NoneAvailable };
    let reason = (!denial.reasons.is_empty()).then(|| denial.reasons.join("; "));
    let model = decision.task.clone().unwrap_or_else(|| entry.model.clone());
    let decision = Decision { outcome: Outcome::Refused, escalated, reason, backend: None, ..decision };
    Settled { said: Said::Refusal(format!("deferred: {why}, no backend allowed")), model, usage, decision }
}

fn describe(entry: &mut Entry, expert: &dyn Expert) {
    entry.task = expert.name().to_owned();
    entry.specialist = Some(expert.id());
    entry.base = expert.base();
}

fn last_user_text(request: &ChatRequest) -> Result<&str, GatewayError> {
    request.last_user_text().filter(|text| !text.trim().is_empty()).ok_or_else(|| GatewayError::Invalid {
        message: "`messages` must hold a `user` message with text: a specialist reads the last one".into(),
        param: "messages".into(),
        code: "invalid_value",
    })
}

fn heading(receipt: ReceiptId, context: &RequestContext, model: String) -> Heading {
    Heading { id: format!("chatcmpl-{receipt}"), created: context.now_ms / 1_000, model }
}

fn first_text(answer: &ChatResponse) -> String {
    answer.choices.first().and_then(|choice| choice.message.content.clone()).unwrap_or_default()
}

fn answered_by(answer: &ChatResponse, configured: &str) -> String {
    if answer.model.is_empty() { configured.to_owned() } else { answer.model.clone() }
}

/// Two digits, rounded down: a score that failed its threshold rarely reads as if it had passed. The margin is what f32 loses.
fn floor(score: f32) -> f32 {
    (score * 100.0 + 1e-4).floor() / 100.0
}

/// Counts down when dropped.
struct Countdown<'a>(&'a AtomicUsize);

impl Drop for Countdown<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
