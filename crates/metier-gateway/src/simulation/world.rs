//! The scripted world that simulations run in: specialists, backends, encoders, and the gateway over them with a record in a folder of its own.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, stream};
use metier_model::{BaseId, Digest, extract::Schema};
use metier_traffic::{
    PriceBook,
    wire::{ChatChunk, ChatRequest, ChatResponse, ChunkChoice, Delta, FinishReason, Message, Role, Usage},
};
use tempfile::TempDir;
use tokio::{sync::Notify, time::Instant};

use crate::{
    audit::{self, AuditLog, Entry, Kind},
    backend::{
        Backend, BackendError, Chunks, Later,
        embedder::{Embed, Embedded, Embedder},
        local::LOCAL,
    },
    decision::Decision,
    error::GatewayError,
    expert::{Expert, Extracted, Judged},
    gateway::{BaseSlot, Caller, EncoderSlot, Gateway, Limits, Parts, RemoteSlot, RequestContext},
    meter::Meter,
    policy::{BackendFacts, Boundary, Permit},
    reply::{Heading, Reply, Said, whole},
};

pub(super) const NOW_MS: u64 = 1_795_305_600_000;
/// What a deferring specialist thinks: must never be seen.
pub(super) const GUESS: &str = "secret-guess";

/// Says `label` with `score`, or panics on `panic`.
#[derive(Clone)]
pub(super) struct Scripted {
    pub(super) name: &'static str,
    pub(super) label: &'static str,
    pub(super) score: f32,
    pub(super) threshold: Option<f32>,
    pub(super) may_leave: bool,
    pub(super) labels: Vec<String>,
    pub(super) centroids: Vec<Vec<f32>>,
    pub(super) needs_embedding: bool,
    pub(super) base: Option<BaseId>,
    pub(super) own: Option<Embedder>,
    /// Reads the server's vector behind that one's.
    pub(super) reads_base: bool,
    pub(super) schema: Option<Schema>,
    /// Score and threshold of a stage that is asked first.
    pub(super) first: Option<(f32, Option<f32>)>,
}

/// The encoder of every world.
pub(super) fn encoder() -> BaseId {
    BaseId { name: "minilm".into(), digest: Digest([2; 32]), weights: None }
}

pub(super) fn expert(score: f32) -> Scripted {
    Scripted {
        name: "tickets",
        label: "card_lost",
        score,
        threshold: Some(0.78),
        may_leave: false,
        labels: vec!["card_lost".into(), "refund".into()],
        centroids: vec![vec![1.0, 0.0]],
        needs_embedding: true,
        base: Some(encoder()),
        own: None,
        reads_base: false,
        schema: None,
        first: None,
    }
}

/// One that extracts.
pub(super) fn extractor(score: f32) -> Scripted {
    let text = r#"{"type": "object", "required": ["card"], "properties": {"card": {"type": "string"}}}"#;
    let schema = Some(Schema::parse(text).unwrap());
    Scripted { label: r#"{"card":"gold"}"#, may_leave: true, needs_embedding: false, schema, ..expert(score) }
}

/// One that defers at 0.41.
pub(super) fn unsure() -> Scripted {
    Scripted { label: GUESS, ..expert(0.41) }
}

impl Expert for Scripted {
    fn name(&self) -> &str {
        self.name
    }
    fn id(&self) -> Digest {
        Digest([1; 32])
    }
    fn base(&self) -> Option<&BaseId> {
        self.base.as_ref().filter(|_| self.needs_embedding)
    }
    fn instruction(&self) -> &str {
        "Which kind of ticket is this?"
    }
    fn labels(&self) -> &[String] {
        &self.labels
    }
    fn may_leave(&self) -> bool {
        self.may_leave
    }
    fn needs_embedding(&self) -> bool {
        self.needs_embedding
    }
    fn own_encoder(&self) -> Option<&Embedder> {
        self.own.as_ref()
    }
    fn reads_base(&self) -> bool {
        self.reads_base
    }
    fn schema(&self) -> Option<&Schema> {
        self.schema.as_ref()
    }
    fn centroids(&self) -> &[Vec<f32>] {
        &self.centroids
    }
    fn match_threshold(&self) -> Option<f32> {
        Some(0.5)
    }
    fn has_first(&self) -> bool {
        self.first.is_some()
    }
    fn judge_first(&self, _: &str) -> Option<Judged> {
        let (score, threshold) = self.first?;
        Some(Judged {
            label: "refund".into(),
            score,
            threshold,
            accepted: threshold.is_some_and(|threshold| score >= threshold),
            stage: "linear".into(),
            extracted: None,
        })
    }
    fn read(&self, message: &str) -> Result<String, String> {
        if message == "unreadable" { Err("the message lacks the input `left`".into()) } else { Ok(message.to_owned()) }
    }
    fn judge(&self, text: &str, embedding: Option<&[f32]>) -> Result<Judged, String> {
        assert_ne!(text, "panic", "as asked");
        assert_eq!(embedding.is_some(), self.needs_embedding);
        if self.reads_base {
            // Texts about cards lie to the right.
            assert_eq!(embedding.map(|vector| vector.split_at(2)), Some((&ELSEWHERE[..], &[1.0, 0.0][..])));
        } else {
            let is_own = embedding == Some(&ELSEWHERE[..]);
            assert_eq!(is_own, self.own.is_some(), "vectors of its own encoder and of no other");
        }
        Ok(Judged {
            label: self.label.into(),
            score: self.score,
            threshold: self.threshold,
            accepted: self.threshold.is_some_and(|threshold| self.score >= threshold),
            stage: "both".into(),
            extracted: self.schema.as_ref().map(|_| Extracted {
                fields: serde_json::json!([{"field": "card", "start": 3, "end": 7}]),
                n_tokens: 5,
            }),
        })
    }
}

/// Where all texts lie for [`Elsewhere`].
pub(super) const ELSEWHERE: [f32; 2] = [0.0, 7.0];

/// An encoder that was tuned: another than the server's.
pub(super) struct Elsewhere(pub(super) Vec<u64>);

impl Embed for Elsewhere {
    fn submit(&mut self, texts: &[&str]) -> Result<u64, BackendError> {
        assert_eq!(texts.len(), 1);
        let id = self.0.len() as u64;
        self.0.push(id);
        Ok(id)
    }
    fn step(&mut self) -> Vec<(u64, Embedded)> {
        let done = std::mem::take(&mut self.0).into_iter();
        done.map(|id| (id, Embedded { vectors: vec![ELSEWHERE.to_vec()], n_tokens: 5 })).collect()
    }
    fn cancel(&mut self, _: u64) {}
}

/// Texts about cards lie to the right, all others upwards.
#[derive(Default)]
pub(super) struct Compass {
    pub(super) open: Vec<(u64, Embedded)>,
    pub(super) next: u64,
}

impl Embed for Compass {
    fn submit(&mut self, texts: &[&str]) -> Result<u64, BackendError> {
        let vector = |text: &&str| if text.contains("card") { vec![1.0, 0.0] } else { vec![0.0, 1.0] };
        let n_tokens = texts.iter().map(|text| text.split_whitespace().count() as u64).sum();
        self.next += 1;
        self.open.push((self.next, Embedded { vectors: texts.iter().map(vector).collect(), n_tokens }));
        Ok(self.next)
    }
    fn step(&mut self) -> Vec<(u64, Embedded)> {
        std::mem::take(&mut self.open)
    }
    fn cancel(&mut self, id: u64) {
        self.open.retain(|(open, _)| *open != id);
    }
}

/// What a backend does when it is asked next.
pub(super) enum Act {
    Say(&'static str),
    Fail,
    /// Never answers.
    Hang,
    /// These pieces, then the end, or an error.
    Stream(&'static [&'static str], End),
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum End {
    Finish,
    Cut,
    Error,
    Hang,
}

#[derive(Default)]
pub(super) struct Script {
    pub(super) acts: Mutex<VecDeque<Act>>,
    pub(super) asked: Mutex<Vec<ChatRequest>>,
    /// Told when it is asked.
    pub(super) called: Notify,
    /// Where to look whether `opened` is on record when the first byte would leave.
    pub(super) database: Mutex<Option<std::path::PathBuf>>,
    pub(super) was_opened: Mutex<Vec<bool>>,
}

pub(super) struct ScriptedBackend(pub(super) &'static str, pub(super) Arc<Script>);

impl ScriptedBackend {
    pub(super) fn next(&self, permit: &Permit, request: &ChatRequest) -> Result<Act, BackendError> {
        if !permit.lists(self.0) {
            return Err(BackendError::NotPermitted);
        }
        self.1.asked.lock().unwrap().push(request.clone());
        if let Some(database) = &*self.1.database.lock().unwrap() {
            let opened = audit::show(database, "req").is_ok_and(|entries| entries.len() == 1);
            self.1.was_opened.lock().unwrap().push(opened);
        }
        self.1.called.notify_one();
        Ok(self.1.acts.lock().unwrap().pop_front().expect("an act for each call"))
    }
}

pub(super) fn heading() -> Heading {
    Heading { id: "theirs".into(), created: 1, model: "llm-7".into() }
}

impl Backend for ScriptedBackend {
    fn answer<'a>(
        &'a self,
        permit: &'a Permit,
        request: &'a ChatRequest,
        _: Instant,
    ) -> Later<'a, Result<ChatResponse, BackendError>> {
        Box::pin(async move {
            match self.next(permit, request)? {
                Act::Say(text) => {
                    let said = Said::Content(text.into());
                    Ok(ChatResponse { metier: None, ..whole(heading(), 1, &said, Usage::of(1_000, 100), ().into()) })
                }
                Act::Fail => Err(BackendError::Cut),
                Act::Hang => std::future::pending().await,
                Act::Stream(..) => panic!("asked for a whole answer"),
            }
        })
    }
    fn stream<'a>(
        &'a self,
        permit: &'a Permit,
        request: &'a ChatRequest,
        _: Instant,
    ) -> Later<'a, Result<Chunks, BackendError>> {
        Box::pin(async move {
            let Act::Stream(pieces, end) = self.next(permit, request)? else { return Err(BackendError::Cut) };
            let choice = |delta, finish_reason| ChunkChoice { index: 0, delta, logprobs: None, finish_reason };
            let mut chunks: Vec<Result<ChatChunk, BackendError>> = vec![Ok(heading().roles(1))];
            for piece in pieces {
                let delta = Delta { content: Some((*piece).into()), ..Delta::default() };
                chunks.push(Ok(heading().chunk(vec![choice(delta, None)])));
            }
            match end {
                End::Finish => {
                    chunks.push(Ok(heading().chunk(vec![choice(Delta::default(), Some(FinishReason::Stop))])));
                    let usage = Some(Usage::of(1_000, 100));
                    chunks.push(Ok(ChatChunk { usage, ..heading().chunk(Vec::new()) }));
                }
                End::Error => chunks.push(Err(BackendError::Upstream("overheated".into()))),
                End::Cut | End::Hang => {}
            }
            let chunks = stream::iter(chunks);
            Ok(if end == End::Hang { Box::pin(chunks.chain(stream::pending())) as Chunks } else { Box::pin(chunks) })
        })
    }
}

/// A gateway in a folder of its own.
pub(super) struct World {
    pub(super) gateway: Gateway,
    /// The first backend's script.
    pub(super) llm: Arc<Script>,
    pub(super) _dir: TempDir,
}

pub(super) struct Setup {
    pub(super) experts: Vec<Scripted>,
    /// Boundary, `direct`, acts.
    pub(super) backends: Vec<(Boundary, bool, Vec<Act>)>,
    pub(super) limits: Limits,
}

impl Default for Setup {
    fn default() -> Self {
        Self { experts: vec![expert(0.93)], backends: Vec::new(), limits: Limits { max_concurrency: 4, max_queue: 4 } }
    }
}

impl Setup {
    pub(super) fn start(self) -> World {
        let dir = TempDir::new().unwrap();
        let now = AtomicU64::new(NOW_MS);
        let audit = AuditLog::open(dir.path(), Box::new(move || now.fetch_add(1, Ordering::Relaxed))).unwrap();
        let scripts: Vec<Arc<Script>> = self
            .backends
            .iter()
            .map(|_| Arc::new(Script { database: Mutex::new(Some(audit.database().into())), ..Script::default() }))
            .collect();
        let mut remotes = Vec::new();
        for (n, (boundary, direct, acts)) in self.backends.into_iter().enumerate() {
            let (id, model) = [("llm", "llm-7"), ("spare", "spare-1")][n];
            *scripts[n].acts.lock().unwrap() = acts.into();
            remotes.push(RemoteSlot {
                backend: Arc::new(ScriptedBackend(id, Arc::clone(&scripts[n]))),
                facts: BackendFacts { id: id.into(), boundary, direct },
                model: model.into(),
                price: Some("reference-llm".into()),
            });
        }
        let base = Arc::new(Script::default());
        *base.acts.lock().unwrap() = [Act::Say("Hello"), Act::Say("again")].into();
        let gateway = Gateway::assemble(Parts {
            audit,
            meter: Meter { prices: PriceBook::example(), ..Meter::default() },
            limits: self.limits,
            base: Some(BaseSlot {
                backend: Arc::new(ScriptedBackend(LOCAL, base)),
                adaptable: None,
                decoder: None,
                name: "smol".into(),
                digest: Digest([3; 32]),
            }),
            encoder: Some(EncoderSlot {
                embedder: Embedder::start(Compass::default()).unwrap(),
                base: encoder(),
                dim: 2,
                source: None,
            }),
            remotes,
            experts: self.experts.into_iter().map(|expert| Arc::new(expert) as Arc<dyn Expert>).collect(),
        });
        let llm = scripts.into_iter().next().unwrap_or_default();
        World { gateway, llm, _dir: dir }
    }
}

pub(super) fn one(expert: Scripted, backends: Vec<(Boundary, bool, Vec<Act>)>) -> World {
    Setup { experts: vec![expert], backends, ..Setup::default() }.start()
}

pub(super) fn outside(acts: Vec<Act>) -> Vec<(Boundary, bool, Vec<Act>)> {
    vec![(Boundary::Outside, false, acts)]
}

pub(super) fn ask(model: &str, text: &str) -> ChatRequest {
    ChatRequest::new(model, vec![Message { role: Role::User, content: text.into() }])
}

pub(super) fn context() -> RequestContext {
    RequestContext { request_id: "req".into(), now_ms: NOW_MS, deadline: Instant::now() + Duration::from_secs(30) }
}

impl World {
    pub(super) async fn whole(&self, request: ChatRequest) -> Result<(ChatResponse, Decision), GatewayError> {
        match self.gateway.handle(&Caller::loopback(), request, context()).await? {
            Reply::Whole { response, decision } => Ok((response, decision)),
            Reply::Stream { .. } => panic!("a stream that nobody asked for"),
        }
    }

    /// The entries of the one request, after everything queued was written.
    pub(super) fn entries(&self) -> Vec<Entry> {
        self.gateway.audit().close();
        let entries = audit::show(self.gateway.audit().database(), "req").unwrap();
        audit::verify(self.gateway.audit().database(), None, self.gateway.audit().key()).unwrap();
        entries.into_iter().map(|(_, entry)| entry).collect()
    }

    /// The `closed` entry, which must be there with its `opened`.
    pub(super) fn closed(&self) -> Entry {
        let mut entries = self.entries();
        assert_eq!(entries.iter().map(|entry| entry.kind).collect::<Vec<_>>(), [Kind::Opened, Kind::Closed]);
        entries.pop().unwrap()
    }

    pub(super) fn n_asked(&self) -> usize {
        self.llm.asked.lock().unwrap().len()
    }
}

pub(super) fn content(response: &ChatResponse) -> Option<&str> {
    response.choices[0].message.content.as_deref()
}
