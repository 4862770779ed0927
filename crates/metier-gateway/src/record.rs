//! The bracket around a request: opened before anything is answered, closed whatever happens.
//!
//! A bracket that is dropped unclosed (the caller left, the future was cancelled) closes itself as `cancelled`. Entries hold no
//! words of callers or backends: what went wrong is told by a code, because entries cannot be erased.

use std::sync::Arc;

use metier_traffic::wire::Usage;
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

use crate::{
    audit::{AuditLog, Entry, Pending, ReceiptId},
    decision::{Decision, Outcome, basis_points},
    error::GatewayError,
};

/// One request on record.
pub(crate) struct Bracket {
    log: Arc<AuditLog>,
    /// What the `closed` entry will say, as far as it is known.
    pub(crate) entry: Entry,
    opened: Option<Pending>,
    started: Instant,
    closed: bool,
    /// Held until the request has ended.
    _slot: OwnedSemaphorePermit,
}

impl Bracket {
    /// Enqueues the `opened` entry. What cannot be enqueued is not answered.
    pub(crate) fn open(
        log: &Arc<AuditLog>,
        entry: Entry,
        body: Vec<u8>,
        slot: OwnedSemaphorePermit,
    ) -> Result<Self, GatewayError> {
        let opened = log.opened(entry.clone(), body).map_err(GatewayError::Unrecorded)?;
        Ok(Self {
            log: Arc::clone(log),
            entry,
            opened: Some(opened),
            started: Instant::now(),
            closed: false,
            _slot: slot,
        })
    }

    /// Name of the request.
    pub(crate) fn receipt(&self) -> ReceiptId {
        self.entry.receipt.expect("the gateway names every request that it opens")
    }

    /// Resolves once the `opened` entry is durable.
    pub(crate) async fn durable(&mut self) -> Result<(), GatewayError> {
        let Some(opened) = &mut self.opened else { return Ok(()) };
        let recorded = opened.await;
        self.opened = None;
        if let Err(error) = recorded {
            // There is nothing to close.
            self.closed = true;
            return Err(GatewayError::Unrecorded(error));
        }
        Ok(())
    }

    /// Closes with a decision and a commitment to the answer; resolves once that is durable.
    pub(crate) async fn close(
        &mut self,
        decision: &Decision,
        usage: Option<Usage>,
        body: Option<Vec<u8>>,
    ) -> Result<(), GatewayError> {
        self.durable().await?;
        let entry = Entry {
            decision: decision.outcome.as_str().into(),
            stage: decision.stage.clone(),
            escalated: decision.escalated.as_str().into(),
            score_bp: decision.confidence.map(basis_points),
            threshold_bp: decision.threshold.map(basis_points),
            backend: decision.backend.clone().unwrap_or_default(),
            task: decision.task.clone().unwrap_or_else(|| self.entry.task.clone()),
            prompt_tokens: usage.map(|usage| usage.prompt_tokens),
            completion_tokens: usage.map(|usage| usage.completion_tokens),
            cost_picousd: decision.cost_picousd,
            reason: decision.reason.clone().unwrap_or_default(),
            ..self.closing()
        };
        self.closed = true;
        let pending = self.log.closed(entry, body).map_err(GatewayError::Unrecorded)?;
        pending.await.map_err(GatewayError::Unrecorded)?;
        Ok(())
    }

    /// Closes with an error; what is on record of it is its code. Does not wait: the caller gets the error either way.
    pub(crate) fn fail(&mut self, error: &GatewayError) {
        if !std::mem::replace(&mut self.closed, true) {
            let reason = match error {
                GatewayError::Backend { backend, source } => format!("{} {backend} {}", error.code(), source.status()),
                _ => error.code().to_owned(),
            };
            let entry = Entry { decision: Outcome::Failed.as_str().into(), reason, ..self.closing() };
            self.enqueue(entry);
        }
    }

    fn closing(&self) -> Entry {
        Entry { elapsed_us: Some(self.started.elapsed().as_micros() as u64), ..self.entry.clone() }
    }

    fn enqueue(&self, entry: Entry) {
        if let Err(error) = self.log.closed(entry, None) {
            // The next start closes it as interrupted.
            tracing::error!(error = &error as &dyn std::error::Error, "a request could not be closed on record");
        }
    }
}

impl Drop for Bracket {
    fn drop(&mut self) {
        if !self.closed {
            let decision = Outcome::Cancelled.as_str().into();
            self.enqueue(Entry { decision, reason: "the caller left".into(), ..self.closing() });
        }
    }
}
