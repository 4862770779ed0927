//! The stages that may answer, in their order: the specialist, then what policy allows beyond it; or the model that was named.
//!
//! Each stage gets a permit before it is asked, and anything outside waits until `opened` is durable. What is settled here is
//! closed and shaped by `gateway.rs`.

use std::sync::Arc;

use metier_model::specialist::Written;
use metier_traffic::wire::{ChatRequest, ChatResponse, FinishReason, Usage};

use super::{Gateway, RETRY_AFTER_MS, RemoteSlot, RequestContext, describe, direct, heading, local_error};
use crate::{
    adapters::AdapterSlot,
    audit::{Entry, ReceiptId},
    backend::{Backend, BackendError, embedder::Embedded, local::LOCAL},
    decision::{Decision, Escalated, Outcome, basis_points},
    deferral,
    error::GatewayError,
    expert::{Expert, Judged, Pen},
    meter::sum,
    passage::{Passage, Price},
    policy::{Boundary, Denial, Facts, Permit, Purpose, Verdict},
    record::Bracket,
    reply::{Heading, Reply, Said},
    route::{self, Nearest, Step, Target, TaskCentroids},
};
/// Judges where it holds up nobody: a long text takes milliseconds, and a panic in it stays there.
async fn off_thread<T: Send + 'static>(
    judge: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, GatewayError> {
    match tokio::task::spawn_blocking(judge).await {
        Ok(judged) => judged.map_err(|reason| local_error(BackendError::Failed(reason))),
        Err(_) => Err(GatewayError::Internal("a specialist panicked".into())),
    }
}

/// What `handle` has before it closes.
pub(super) enum Answered {
    Settled(Settled),
    Generated(ChatResponse, Decision),
}

/// An answer before it has a shape.
pub(super) struct Settled {
    pub(super) said: Said,
    pub(super) model: String,
    pub(super) usage: Usage,
    pub(super) decision: Decision,
}

impl Gateway {
    /// `auto`: the nearest task answers; where none fits, a backend inside may, else there is a refusal.
    pub(super) async fn auto(
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
            expert.read(message).is_ok() && expert.base().is_none_or(|base| base.digest == encoder.base.digest)
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
                // The guess may be wrong: what any task here keeps inside, `auto` keeps inside.
                let keeper = experts.iter().find(|expert| !expert.may_leave()).map(|expert| expert.name());
                return self.specialist(expert, Chosen::Guessed { keeper, known }, request, context, bracket).await;
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
    pub(super) async fn specialist(
        &self,
        expert: &Arc<dyn Expert>,
        chosen: Chosen<'_>,
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
        let (guess, embedded) = match chosen {
            Chosen::Named => (None, None),
            Chosen::Guessed { keeper, known } => (Some(keeper), known),
        };
        let (judged, usage) = match expert.pen() {
            Some(pen) => self.write(&permit, expert, pen, &text, request.max_tokens, context).await?,
            None => {
                let (judged, n_tokens) = self.judge(&permit, expert, &text, embedded).await?;
                (judged, Usage::of(n_tokens, 0))
            }
        };
        let cost = match expert.pen() {
            Some(_) => self.meter.base(usage.prompt_tokens, usage.completion_tokens),
            None => self.meter.specialist_picousd,
        };
        let mut decision = Decision {
            outcome: Outcome::Accepted,
            stage: judged.stage,
            confidence: Some(judged.score),
            threshold: judged.threshold,
            escalated: Escalated::No,
            cost_picousd: Some(cost),
            receipt: bracket.receipt(),
            task: Some(expert.name().to_owned()),
            backend: Some(LOCAL.into()),
            reason: None,
            fields: None,
        };
        if route::cascade(judged.score, judged.threshold, judged.accepted) == Step::Accept {
            let content = match (judged.extracted, expert.pen()) {
                // JSON of its own schema, whatever format was asked for.
                (Some(extracted), _) => {
                    decision.fields = Some(extracted.fields);
                    judged.label
                }
                // Its own form, or none, is what it was proven in.
                (None, Some(_)) => judged.label,
                (None, None) if expert.gives_several() => {
                    deferral::list_in_format(&judged.label, Some(judged.score), &request.response_format)
                }
                (None, None) => deferral::in_format(&judged.label, Some(judged.score), &request.response_format),
            };
            return Ok(Settled { said: Said::Content(content), model: expert.name().to_owned(), usage, decision });
        }
        decision.backend = None;
        let why = match judged.threshold {
            Some(threshold) => format!("score {:.2} < {threshold:.2}", floor(judged.score)),
            None => format!("score {:.2} without a certified threshold", floor(judged.score)),
        };
        let score_bp = basis_points(judged.score);
        let purpose = match guess {
            None => Purpose::Defer { task: expert.name(), may_leave: expert.may_leave(), score_bp },
            Some(keeper) => Purpose::Guess { task: expert.name(), keeper, score_bp },
        };
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
        if expert.has_first() {
            // What it is sure of costs no run of a base model; its certificate is for this order.
            let (expert, text) = (Arc::clone(expert), text.to_owned());
            let n_tokens = embedded.as_ref().map_or(0, |embedded| embedded.n_tokens);
            let judged = off_thread(move || Ok(expert.judge_first(&text))).await?;
            let sure =
                |judged: &Judged| route::cascade(judged.score, judged.threshold, judged.accepted) == Step::Accept;
            if let Some(judged) = judged.filter(sure) {
                return Ok((judged, n_tokens));
            }
        }
        let embedded = match expert.own_encoder() {
            None if !expert.needs_embedding() => embedded.unwrap_or_default(),
            None => self.embedded_by_server(&**expert, text, embedded).await?,
            Some(own) => {
                // First what may be missing.
                let base = match expert.reads_base() {
                    true => Some(self.embedded_by_server(&**expert, text, embedded).await?),
                    false => None,
                };
                let mut read = own.embed(vec![expert.own_text(text)]).await.map_err(local_error)?;
                if let Some(base) = base {
                    read.vectors.iter_mut().zip(base.vectors).for_each(|(own, base)| own.extend(base));
                    read.n_tokens += base.n_tokens;
                }
                read
            }
        };
        let (expert, text, n_tokens) = (Arc::clone(expert), text.to_owned(), embedded.n_tokens);
        let judged = off_thread(move || {
            let embedding = embedded.vectors.first().filter(|_| expert.needs_embedding());
            expert.judge(&text, embedding.map(Vec::as_slice))
        });
        let judged = judged.await?;
        let read = judged.extracted.as_ref().map_or(0, |extracted| extracted.n_tokens);
        Ok((judged, n_tokens + read))
    }

    /// The server's encoder's vector of a text, which may be there already; else why it is none that this specialist reads.
    async fn embedded_by_server(
        &self,
        expert: &dyn Expert,
        text: &str,
        embedded: Option<Embedded>,
    ) -> Result<Embedded, GatewayError> {
        let failed =
            |why: String| Err(local_error(BackendError::Failed(format!("specialist `{}` {why}", expert.name()))));
        let Some(encoder) = &self.encoder else {
            return failed("needs an encoder, and this server has none".to_owned());
        };
        if let Some(embedded) = embedded {
            return Ok(embedded);
        }
        if let Some(why) = expert.base().and_then(|base| base.mismatch(&encoder.base)) {
            return failed(format!("cannot answer: {why}"));
        }
        encoder.embedder.embed(vec![text.to_owned()]).await.map_err(local_error)
    }

    /// What a specialist's pen writes for a text, and how sure the specialist is of it. `limit`: the caller's, which may be tighter than its own.
    async fn write(
        &self,
        permit: &Permit,
        expert: &Arc<dyn Expert>,
        pen: &Pen,
        text: &str,
        limit: Option<u32>,
        context: &RequestContext,
    ) -> Result<(Judged, Usage), GatewayError> {
        let asked = deferral::request_for_pen(&**expert, pen, text.to_owned(), limit);
        let answer = pen.backend.answer(permit, &asked, context.deadline).await;
        let answer = answer.map_err(|source| match source {
            // Whose prompt is too long is told as of any model.
            BackendError::ContextLength { prompt_tokens, context_len } => {
                GatewayError::ContextLength { model: expert.name().to_owned(), prompt_tokens, context_len }
            }
            BackendError::QueueFull => {
                GatewayError::Overloaded { what: "the decoder's queue", retry_after_ms: RETRY_AFTER_MS }
            }
            source => GatewayError::Backend { backend: LOCAL.into(), source },
        })?;
        let usage = answer.usage.unwrap_or_default();
        let choice = answer.choices.into_iter().next();
        let choice = choice.ok_or_else(|| GatewayError::Internal("the decoder gave no answer".into()))?;
        let logprobs: Vec<f32> =
            choice.logprobs.and_then(|all| all.content).unwrap_or_default().iter().map(|token| token.logprob).collect();
        let is_whole = choice.finish_reason == Some(FinishReason::Stop);
        let judgement = expert.judge_written(Written { logprobs: &logprobs, is_whole });
        let judgement = judgement.ok_or_else(|| GatewayError::Internal("a pen without a judge".into()))?;
        let judged = Judged {
            label: choice.message.content.unwrap_or_default(),
            score: judgement.score,
            threshold: judgement.threshold,
            accepted: judgement.is_accepted,
            stage: pen.stage.into(),
            extracted: None,
        };
        Ok((judged, usage))
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
                Some((expert, text)) => deferral::request_for(*expert, text.clone(), &remote.model, request.max_tokens),
                None => ChatRequest { model: remote.model.clone(), n: 1, ..request.clone() },
            };
            match remote.backend.answer(&permit, &asked, context.deadline).await {
                Ok(answer) => {
                    let spent = answer.usage.unwrap_or_default();
                    let text = first_text(&answer);
                    let cost = self.remote_cost(remote, answer.usage, context.now_ms);
                    decision.cost_picousd = sum(&[decision.cost_picousd, cost]);
                    let content = match &task {
                        Some((expert, _)) if expert.schema().is_some() => {
                            match deferral::answer_of(&text, expert.schema()) {
                                Ok(content) => content,
                                Err(why) => {
                                    let source =
                                        BackendError::Failed(format!("its answer does not meet the schema: {why}"));
                                    tracing::warn!(
                                        backend = remote.facts.id,
                                        why,
                                        "a backend's answer does not meet the schema"
                                    );
                                    last_error =
                                        Some(GatewayError::Backend { backend: remote.facts.id.clone(), source });
                                    continue;
                                }
                            }
                        }
                        Some((expert, _)) if expert.pen().is_some() => text,
                        Some((expert, _)) => deferral::answered(*expert, &text, &request.response_format),
                        None => text,
                    };
                    decision.outcome = Outcome::Deferred;
                    decision.escalated = Escalated::Llm;
                    decision.backend = Some(remote.facts.id.clone());
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

    /// Base, its adapters and named backends: who it is, with a permit to ask it.
    fn named(
        &self,
        target: Target,
        adapters: &[Arc<AdapterSlot>],
        now_ms: u64,
        bracket: &mut Bracket,
    ) -> Result<(Named, Permit), GatewayError> {
        match (target, &self.base) {
            (Target::Base | Target::Adapter(_), Some(base)) => {
                let adapter = if let Target::Adapter(idx) = target { Some(&adapters[idx]) } else { None };
                let permit = self.permit_inside(Purpose::Direct, bracket)?;
                let price: Price = {
                    let meter = self.meter.clone();
                    Arc::new(move |usage| Some(meter.base(usage.prompt_tokens, usage.completion_tokens)))
                };
                let named = Named {
                    backend: Arc::clone(adapter.map_or(&base.backend, |adapter| &adapter.backend)),
                    id: LOCAL.into(),
                    model: adapter.map_or(&base.name, |adapter| &adapter.name).clone(),
                    stage: if adapter.is_some() { "adapter".into() } else { "base".into() },
                    task: adapter.map(|adapter| adapter.name.clone()),
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
                    task: None,
                    outside: remote.facts.boundary == Boundary::Outside,
                    price,
                };
                Ok((named, permit))
            }
            _ => Err(GatewayError::Internal("a target that is not there was matched".into())),
        }
    }

    /// A whole answer of the base, of one of its adapters or of a named backend.
    pub(super) async fn generate(
        &self,
        target: Target,
        adapters: &[Arc<AdapterSlot>],
        request: &ChatRequest,
        context: &RequestContext,
        bracket: &mut Bracket,
    ) -> Result<Answered, GatewayError> {
        let (named, permit) = self.named(target, adapters, context.now_ms, bracket)?;
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

    /// A streamed answer of the base, of one of its adapters or of a named backend.
    pub(super) async fn stream(
        &self,
        target: Target,
        adapters: &[Arc<AdapterSlot>],
        request: ChatRequest,
        context: RequestContext,
        mut bracket: Bracket,
    ) -> Result<Reply, GatewayError> {
        let begun = self.bounded(&context, async {
            let (named, permit) = self.named(target, adapters, context.now_ms, &mut bracket)?;
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

/// How a specialist came to be asked.
pub(super) enum Chosen<'a> {
    /// By its name.
    Named,
    /// By `auto`, as the nearest task.
    Guessed {
        /// A task of this server whose texts must not leave.
        keeper: Option<&'a str>,
        /// The embedding that the task was found by, where the specialist reads the same text.
        known: Option<Embedded>,
    },
}

/// A request that nobody inside has answered.
struct Unanswered {
    /// For the refusal, without the guess.
    why: String,
    decision: Decision,
    usage: Usage,
}

/// Base, adapter or named backend.
struct Named {
    backend: Arc<dyn Backend>,
    id: String,
    model: String,
    stage: String,
    task: Option<String>,
    outside: bool,
    price: Price,
}

impl Named {
    fn decision(&self, receipt: ReceiptId) -> Decision {
        let (stage, task) = (self.stage.clone(), self.task.clone());
        Decision { stage, task, backend: Some(self.id.clone()), ..direct(receipt) }
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

/// No backend may answer: the refusal tells the score, never the guess.
fn refusal(why: String, denial: Denial, decision: Decision, usage: Usage, entry: &Entry) -> Settled {
    let escalated = if denial.had_candidates { Escalated::Denied } else { Escalated::NoneAvailable };
    let reason = (!denial.reasons.is_empty()).then(|| denial.reasons.join("; "));
    let model = decision.task.clone().unwrap_or_else(|| entry.model.clone());
    let decision = Decision { outcome: Outcome::Refused, escalated, reason, backend: None, ..decision };
    Settled { said: Said::Refusal(format!("deferred: {why}, no backend allowed")), model, usage, decision }
}

fn last_user_text(request: &ChatRequest) -> Result<&str, GatewayError> {
    if !request.logit_bias.is_empty() {
        return Err(GatewayError::Invalid {
            message: "`logit_bias` names tokens of one model: ask for the base itself, a specialist has none".into(),
            param: "logit_bias".into(),
            code: "invalid_value",
        });
    }
    if request.label_scores.is_some() {
        return Err(GatewayError::Invalid {
            message: "`label_scores` asks for the labels of one request: ask for a base, a specialist has its own"
                .into(),
            param: "label_scores".into(),
            code: "invalid_value",
        });
    }
    request.last_user_text().filter(|text| !text.trim().is_empty()).ok_or_else(|| GatewayError::Invalid {
        message: "`messages` must hold a `user` message with text: a specialist reads the last one".into(),
        param: "messages".into(),
        code: "invalid_value",
    })
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
