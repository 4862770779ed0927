//! The base decoder: one thread that drives the engine, and the backend in front of it.
//!
//! ```text
//! answer / stream ──a place in the queue──▶ thread: submit, step, step, … ──events──▶ receiver
//!        └── dropped (client left, deadline) ──▶ thread sees a closed receiver ──▶ engine.cancel
//! with_adapter ──▶ thread: load between two steps ──▶ a backend on the same thread; dropped ──▶ thread: unload
//! ```
//!
//! The engine itself has no thread, clock or randomness: seeds are drawn here. If the thread panics, its sequences and all later
//! requests get [`BackendError::Stopped`].

use std::{
    collections::BTreeMap,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::stream;
use metier_model::{
    adapter::Adapter,
    engine::{AdapterId, CacheScope, KeptLayers, LoadAdapterError},
    grammar::Constraint,
    sample::Sampling,
    specialist::hidden,
};
use metier_traffic::wire::{
    ChatChoice, ChatChunk, ChatRequest, ChatResponse, ChoiceLogprobs, ChunkChoice, Delta, FinishReason, LabelLogprob,
    LabelScores, Message, ResponseFormat, ResponseMessage, TokenLogprob, Usage,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, mpsc},
    time::{Instant, timeout_at},
};

use super::{Backend, BackendError, Chunks, Later, embedder::Embedded};
use crate::{adapters::AdapterRefused, policy::Permit};

/// The backend of everything that runs in this process: base and specialists.
pub(crate) const LOCAL: &str = "local";
/// Most requests that wait for the engine's thread; the engine has a queue of its own behind it.
const MAX_QUEUE: usize = 64;
/// Tokens that are generated where the request names no limit.
const DEFAULT_MAX_TOKENS: usize = 512;

/// One sequence to generate.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sequence {
    pub(crate) prompt: Vec<u32>,
    pub(crate) max_tokens: usize,
    pub(crate) sampling: Sampling,
    /// By token id.
    pub(crate) logit_bias: Vec<(u32, f32)>,
    pub(crate) stop: Vec<String>,
    pub(crate) top_logprobs: Option<u8>,
    pub(crate) constraint: Option<Constraint>,
    /// Score these instead of writing anything.
    pub(crate) labels: Option<(Vec<String>, LabelScores)>,
    /// Look up in the prompt how the answer goes on.
    pub(crate) lookup: bool,
    pub(crate) adapter: Option<AdapterId>,
    /// The layers that are run; `None`: all.
    pub(crate) kept_layers: Option<KeptLayers>,
    /// Read it, and give its last row instead of writing anything.
    pub(crate) reads: bool,
    pub(crate) scope: CacheScope,
}

/// What one step says of a sequence.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Happened {
    /// A token; its text may be empty until its bytes are complete.
    Token { text: String, logprob: Option<TokenLogprob> },
    /// All labels are scored; the most probable one is first, and there is one.
    Labels(Vec<LabelLogprob>),
    /// It is read: its last row.
    Hidden(Vec<f32>),
    /// The end.
    Done { finish: FinishReason, completion_tokens: u64 },
}

/// What the thread drives: the engine, behind the few calls that are made of it.
pub(crate) trait Drive: Send + 'static {
    /// Takes a sequence and names it.
    fn submit(&mut self, sequence: Sequence) -> Result<u64, BackendError>;
    /// One step of all sequences.
    fn step(&mut self) -> Vec<(u64, Happened)>;
    /// Forgets a sequence.
    fn cancel(&mut self, id: u64);
    /// Whether there is nothing to step.
    fn is_idle(&self) -> bool;
    /// Makes an adapter known to sequences.
    fn load(&mut self, adapter: Arc<Adapter>) -> Result<AdapterId, LoadAdapterError>;
    /// Lets go of an adapter; sequences that were submitted keep it.
    fn unload(&mut self, id: AdapterId);
}

/// Conversation → tokens.
pub(crate) trait Prompting: Send + Sync + 'static {
    /// The rendered conversation, with the model's turn begun.
    fn prompt(&self, messages: &[Message]) -> Result<Vec<u32>, BackendError>;
    /// The tokens that a head's decoder reads of a text.
    fn reading(&self, text: &str) -> Result<Vec<u32>, BackendError>;
    /// Tokens that prompt and answer may have together.
    fn context_len(&self) -> usize;
    /// Token ids are below.
    fn vocabulary(&self) -> usize;
    /// The form that an answer in this format has; `None` where any text will do.
    fn constraint(&self, format: &ResponseFormat) -> Result<Option<Constraint>, BackendError>;
}

enum Job {
    Generate(Generation),
    /// Asked for by the operator, one at a time.
    Load {
        adapter: Arc<Adapter>,
        loaded: std::sync::mpsc::SyncSender<Result<AdapterId, LoadAdapterError>>,
    },
    /// One for each that was loaded.
    Unload(AdapterId),
}

struct Generation {
    sequences: Vec<Sequence>,
    /// Unbounded, but a sequence sends at most one event a token, and the context bounds those.
    events: mpsc::UnboundedSender<(u32, Result<Happened, BackendError>)>,
    /// Held until the thread takes it: there are [`MAX_QUEUE`].
    _place: OwnedSemaphorePermit,
}

/// The base decoder as a backend, by itself or with an adapter.
pub(crate) struct LocalBase {
    model: String,
    prompting: Arc<dyn Prompting>,
    scope: CacheScope,
    /// Unbounded, so that an adapter can always be let go of; callers need a place.
    jobs: mpsc::UnboundedSender<Job>,
    places: Arc<Semaphore>,
    adapter: Option<Resident>,
    /// The layers that are run; `None`: all.
    kept_layers: Option<KeptLayers>,
    /// Requests of several choices, counted over all adapters.
    groups: Arc<AtomicU64>,
}

/// An adapter that the engine has; dropping it makes the engine let go of it.
struct Resident {
    id: AdapterId,
    jobs: mpsc::UnboundedSender<Job>,
}

impl Drop for Resident {
    fn drop(&mut self) {
        // A thread that has ended holds nothing.
        let _ = self.jobs.send(Job::Unload(self.id));
    }
}

impl LocalBase {
    /// Starts the thread. `scope` says who may start from what a sequence has read.
    pub(crate) fn start(
        model: String,
        prompting: Arc<dyn Prompting>,
        scope: CacheScope,
        engine: impl Drive,
    ) -> std::io::Result<Self> {
        let (jobs, waiting) = mpsc::unbounded_channel();
        std::thread::Builder::new().name("decoder".into()).spawn(move || {
            // A panic drops the queue and every sequence's sender: everyone who waits is told by that.
            if std::panic::catch_unwind(AssertUnwindSafe(|| drive(engine, waiting))).is_err() {
                tracing::error!("the decoder's thread panicked and has ended");
            }
        })?;
        let (places, groups) = (Arc::new(Semaphore::new(MAX_QUEUE)), Arc::default());
        Ok(Self { model, prompting, scope, jobs, places, adapter: None, kept_layers: None, groups })
    }

    /// The base with an adapter, under another name, on the same thread and in the same batches. Waits for the thread.
    pub(crate) fn with_adapter(&self, model: &str, adapter: Arc<Adapter>) -> Result<Self, AdapterRefused> {
        let (loaded, loading) = std::sync::mpsc::sync_channel(1);
        self.jobs.send(Job::Load { adapter, loaded }).map_err(|_| AdapterRefused::Stopped)?;
        let id = loading.recv().map_err(|_| AdapterRefused::Stopped)??;
        Ok(Self {
            model: model.to_owned(),
            prompting: Arc::clone(&self.prompting),
            scope: self.scope,
            jobs: self.jobs.clone(),
            places: Arc::clone(&self.places),
            adapter: Some(Resident { id, jobs: self.jobs.clone() }),
            kept_layers: None,
            groups: Arc::clone(&self.groups),
        })
    }

    /// The same with some of the base's layers alone.
    pub(crate) fn with_layers(self, kept_layers: Option<KeptLayers>) -> Self {
        Self { kept_layers, ..self }
    }

    /// The last rows of some texts at unit length, in order: a function for heads, which answers nobody and needs no permit.
    pub(crate) async fn read(&self, texts: &[String]) -> Result<Embedded, BackendError> {
        let prompts = texts.iter().map(|text| self.prompting.reading(text)).collect::<Result<Vec<_>, _>>()?;
        let n_tokens = prompts.iter().map(|prompt| prompt.len() as u64).sum();
        let sequences: Vec<Sequence> = prompts.into_iter().map(|prompt| self.sequence(prompt)).collect();
        let mut vectors = vec![Vec::new(); sequences.len()];
        let mut left = sequences.len();
        let mut events = self.send(sequences)?;
        while left > 0 {
            let (index, happened) = events.recv().await.ok_or(BackendError::Stopped)?;
            match happened? {
                Happened::Hidden(row) => {
                    if let Some(vector) = vectors.get_mut(index as usize) {
                        *vector = hidden::unit(&row);
                    }
                }
                Happened::Done { .. } => left -= 1,
                Happened::Token { .. } | Happened::Labels(_) => {}
            }
        }
        Ok(Embedded { vectors, n_tokens })
    }

    /// A text to read.
    fn sequence(&self, prompt: Vec<u32>) -> Sequence {
        Sequence {
            prompt,
            max_tokens: 0,
            sampling: Sampling::default(),
            logit_bias: Vec::new(),
            stop: Vec::new(),
            top_logprobs: None,
            constraint: None,
            labels: None,
            lookup: false,
            adapter: self.adapter.as_ref().map(|adapter| adapter.id),
            kept_layers: self.kept_layers.clone(),
            reads: true,
            scope: CacheScope::Private,
        }
    }

    /// Hands sequences of one request to the thread.
    fn send(&self, sequences: Vec<Sequence>) -> Result<Events, BackendError> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|error| match error {
            TryAcquireError::NoPermits => BackendError::QueueFull,
            TryAcquireError::Closed => BackendError::Stopped,
        })?;
        let (events, receiver) = mpsc::unbounded_channel();
        let job = Job::Generate(Generation { sequences, events, _place: place });
        self.jobs.send(job).map_err(|_| BackendError::Stopped)?;
        Ok(receiver)
    }

    fn begin(&self, permit: &Permit, request: &ChatRequest) -> Result<Generating, BackendError> {
        if !permit.lists(LOCAL) {
            return Err(BackendError::NotPermitted);
        }
        let labels = match (&request.response_format, request.label_scores) {
            (ResponseFormat::Choice(labels), Some(scores)) => Some((labels.clone(), scores)),
            _ => None,
        };
        let constraint = if labels.is_some() { None } else { self.prompting.constraint(&request.response_format)? };
        let prompt = self.prompting.prompt(&request.messages)?;
        let (prompt_tokens, context_len) = (prompt.len(), self.prompting.context_len());
        if prompt_tokens >= context_len {
            return Err(BackendError::ContextLength { prompt_tokens, context_len });
        }
        let wanted = request.max_tokens.map_or(DEFAULT_MAX_TOKENS, |n| n as usize);
        let seed = match request.seed {
            Some(seed) => seed as u64,
            None => getrandom::u64().map_err(|error| BackendError::Failed(error.to_string()))?,
        };
        let vocabulary = self.prompting.vocabulary();
        if let Some((id, _)) = request.logit_bias.iter().find(|(id, _)| *id as usize >= vocabulary) {
            let message =
                format!("`logit_bias` names token {id}; the tokens of `{}` are 0 to {}", self.model, vocabulary - 1);
            return Err(BackendError::Invalid { message, param: "logit_bias", code: "invalid_value" });
        }
        let scope = match self.scope {
            // Choices of one request read its prompt together.
            CacheScope::Private if request.n > 1 => CacheScope::Group(self.groups.fetch_add(1, Ordering::Relaxed)),
            scope => scope,
        };
        let sampling = sampling(request);
        let sequences = (0..u64::from(request.n))
            .map(|idx| Sequence {
                max_tokens: wanted.min(context_len - prompt_tokens),
                sampling: Sampling { seed: seed.wrapping_add(idx), ..sampling },
                logit_bias: request.logit_bias.clone(),
                stop: request.stop.clone(),
                top_logprobs: request.logprobs.then(|| request.top_logprobs.unwrap_or(0)),
                constraint: constraint.clone(),
                labels: labels.clone(),
                lookup: request.prompt_lookup,
                scope,
                reads: false,
                ..self.sequence(prompt.clone())
            })
            .collect();
        Ok(Generating {
            model: self.model.clone(),
            events: self.send(sequences)?,
            prompt_tokens: prompt_tokens as u64,
            completion_tokens: 0,
            n_open: request.n,
        })
    }
}

/// How a request wants tokens to be drawn. What it does not name is the protocol's default.
fn sampling(request: &ChatRequest) -> Sampling {
    Sampling {
        temperature: request.temperature.unwrap_or(1.0),
        top_p: request.top_p.unwrap_or(1.0),
        min_p: request.min_p.unwrap_or(0.0),
        frequency_penalty: request.frequency_penalty.unwrap_or(0.0),
        presence_penalty: request.presence_penalty.unwrap_or(0.0),
        repetition_penalty: request.repetition_penalty.unwrap_or(1.0),
        ..Sampling::default()
    }
}

type Events = mpsc::UnboundedReceiver<(u32, Result<Happened, BackendError>)>;

/// Sequences of one request that are being generated. Dropping it cancels them.
struct Generating {
    model: String,
    events: Events,
    prompt_tokens: u64,
    completion_tokens: u64,
    n_open: u32,
}

impl Generating {
    /// The next event of any sequence; `None` once all are done.
    async fn next(&mut self, deadline: Instant) -> Result<Option<(u32, Happened)>, BackendError> {
        if self.n_open == 0 {
            return Ok(None);
        }
        let event = timeout_at(deadline, self.events.recv()).await.map_err(|_| BackendError::Deadline)?;
        let (index, happened) = event.ok_or(BackendError::Stopped)?;
        let happened = happened?;
        if let Happened::Done { completion_tokens, .. } = &happened {
            self.n_open -= 1;
            self.completion_tokens += completion_tokens;
        }
        Ok(Some((index, happened)))
    }

    fn usage(&self) -> Usage {
        Usage::of(self.prompt_tokens, self.completion_tokens)
    }

    fn chunk(&self, choices: Vec<ChunkChoice>, usage: Option<Usage>) -> ChatChunk {
        ChatChunk {
            id: String::new(),
            object: "chat.completion.chunk".into(),
            created: 0,
            model: self.model.clone(),
            choices,
            usage,
            metier: None,
        }
    }
}

impl Backend for LocalBase {
    fn answer<'a>(
        &'a self,
        permit: &'a Permit,
        request: &'a ChatRequest,
        deadline: Instant,
    ) -> Later<'a, Result<ChatResponse, BackendError>> {
        Box::pin(async move {
            let mut generating = self.begin(permit, request)?;
            let mut choices: Vec<ChatChoice> =
                (0..request.n).map(|index| empty_choice(index, request.logprobs)).collect();
            while let Some((index, happened)) = generating.next(deadline).await? {
                let choice = choices.get_mut(index as usize).expect("the thread numbers them as they were sent");
                match happened {
                    Happened::Token { text, logprob } => {
                        choice.message.content.get_or_insert_default().push_str(&text);
                        if let Some(logprobs) = &mut choice.logprobs {
                            logprobs.content.get_or_insert_default().extend(logprob);
                        }
                    }
                    Happened::Labels(labels) => {
                        choice.message.content = Some(labels[0].label.clone());
                        choice.logprobs = Some(ChoiceLogprobs { content: None, labels });
                    }
                    Happened::Hidden(_) => {}
                    Happened::Done { finish, .. } => choice.finish_reason = Some(finish),
                }
            }
            Ok(ChatResponse {
                id: String::new(),
                object: "chat.completion".into(),
                created: 0,
                model: self.model.clone(),
                choices,
                usage: Some(generating.usage()),
                metier: None,
            })
        })
    }

    fn stream<'a>(
        &'a self,
        permit: &'a Permit,
        request: &'a ChatRequest,
        deadline: Instant,
    ) -> Later<'a, Result<Chunks, BackendError>> {
        Box::pin(async move {
            let generating = self.begin(permit, request)?;
            let chunks: Chunks = Box::pin(stream::unfold(Some(generating), move |generating| async move {
                let mut generating = generating?;
                match generating.next(deadline).await {
                    Ok(Some((index, happened))) => {
                        let chunk = generating.chunk(vec![chunk_choice(index, happened)], None);
                        Some((Ok(chunk), Some(generating)))
                    }
                    Ok(None) => {
                        let usage = generating.chunk(Vec::new(), Some(generating.usage()));
                        Some((Ok(usage), None))
                    }
                    Err(error) => Some((Err(error), None)),
                }
            }));
            Ok(chunks)
        })
    }
}

fn empty_choice(index: u32, logprobs: bool) -> ChatChoice {
    let message = ResponseMessage { role: "assistant".into(), content: Some(String::new()), refusal: None };
    let logprobs = logprobs.then(|| ChoiceLogprobs { content: Some(Vec::new()), labels: Vec::new() });
    ChatChoice { index, message, logprobs, finish_reason: None }
}

fn chunk_choice(index: u32, happened: Happened) -> ChunkChoice {
    match happened {
        Happened::Token { text, logprob } => ChunkChoice {
            index,
            delta: Delta { content: Some(text), ..Delta::default() },
            logprobs: logprob.map(|logprob| ChoiceLogprobs { content: Some(vec![logprob]), labels: Vec::new() }),
            finish_reason: None,
        },
        Happened::Labels(labels) => ChunkChoice {
            index,
            delta: Delta { content: Some(labels[0].label.clone()), ..Delta::default() },
            logprobs: Some(ChoiceLogprobs { content: None, labels }),
            finish_reason: None,
        },
        Happened::Hidden(_) => ChunkChoice { index, delta: Delta::default(), logprobs: None, finish_reason: None },
        Happened::Done { finish, .. } => {
            ChunkChoice { index, delta: Delta::default(), logprobs: None, finish_reason: Some(finish) }
        }
    }
}

type Sink = (u32, mpsc::UnboundedSender<(u32, Result<Happened, BackendError>)>);

/// The thread: until the last handle is dropped and the last sequence is done.
fn drive(mut engine: impl Drive, mut waiting: mpsc::UnboundedReceiver<Job>) {
    let mut sinks: BTreeMap<u64, Sink> = BTreeMap::new();
    loop {
        if engine.is_idle() {
            match waiting.blocking_recv() {
                Some(job) => take(&mut engine, &mut sinks, job),
                None => return,
            }
        }
        while let Ok(job) = waiting.try_recv() {
            take(&mut engine, &mut sinks, job);
        }
        let gone: Vec<u64> = sinks.iter().filter(|(_, (_, sink))| sink.is_closed()).map(|(id, _)| *id).collect();
        for id in gone {
            sinks.remove(&id);
            engine.cancel(id);
        }
        for (id, happened) in engine.step() {
            let done = matches!(happened, Happened::Done { .. });
            if let Some((index, sink)) = sinks.get(&id) {
                // A receiver that is gone is noticed above, before the next step.
                let _ = sink.send((*index, Ok(happened)));
            }
            if done {
                sinks.remove(&id);
            }
        }
    }
}

fn take(engine: &mut impl Drive, sinks: &mut BTreeMap<u64, Sink>, job: Job) {
    match job {
        Job::Generate(generation) => admit(engine, sinks, generation),
        Job::Load { adapter, loaded } => {
            let result = engine.load(adapter);
            if let Err(std::sync::mpsc::SendError(Ok(id))) = loaded.send(result) {
                engine.unload(id);
            }
        }
        Job::Unload(id) => engine.unload(id),
    }
}

/// All sequences of a job, or none.
fn admit(engine: &mut impl Drive, sinks: &mut BTreeMap<u64, Sink>, job: Generation) {
    let mut ids = Vec::with_capacity(job.sequences.len());
    for (index, sequence) in (0..).zip(job.sequences) {
        match engine.submit(sequence) {
            Ok(id) => ids.push((id, index)),
            Err(error) => {
                ids.into_iter().for_each(|(id, _)| engine.cancel(id));
                let _ = job.events.send((index, Err(error)));
                return;
            }
        }
    }
    sinks.extend(ids.into_iter().map(|(id, index)| (id, (index, job.events.clone()))));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::{sync::Mutex, time::Duration};

    use futures_util::StreamExt;
    use metier_traffic::wire::Role;

    use super::*;
    use crate::backend::permit_for;

    /// Counts down from a sequence's `max_tokens`, one token a step; a prompt of 13 tokens makes it panic.
    #[derive(Default)]
    struct Countdown {
        open: BTreeMap<u64, (usize, u64)>,
        next_id: u64,
        seeds: Arc<Mutex<Vec<u64>>>,
        /// Told of cancellations; while it is there, sequences never end by themselves.
        cancelled: Option<mpsc::UnboundedSender<u64>>,
    }

    impl Drive for Countdown {
        fn submit(&mut self, sequence: Sequence) -> Result<u64, BackendError> {
            assert_ne!(sequence.prompt.len(), 13, "as asked");
            if self.open.len() == 4 {
                return Err(BackendError::QueueFull);
            }
            self.next_id += 1;
            self.seeds.lock().unwrap().push(sequence.sampling.seed);
            self.open.insert(self.next_id, (sequence.max_tokens, 0));
            Ok(self.next_id)
        }
        fn step(&mut self) -> Vec<(u64, Happened)> {
            let mut events = Vec::new();
            self.open.retain(|id, (left, done)| {
                if *left == 0 {
                    events.push((*id, Happened::Done { finish: FinishReason::Length, completion_tokens: *done }));
                    return false;
                }
                events.push((*id, Happened::Token { text: format!("{left} "), logprob: None }));
                *left -= usize::from(self.cancelled.is_none());
                *done += 1;
                true
            });
            events
        }
        fn cancel(&mut self, id: u64) {
            self.open.remove(&id);
            self.cancelled.as_ref().map(|sink| sink.send(id));
        }
        fn is_idle(&self) -> bool {
            self.open.is_empty()
        }
        fn load(&mut self, _: Arc<Adapter>) -> Result<AdapterId, LoadAdapterError> {
            Err(LoadAdapterError::OtherBase)
        }
        fn unload(&mut self, _: AdapterId) {}
    }

    /// A token a byte.
    struct Bytes;

    impl Prompting for Bytes {
        fn prompt(&self, messages: &[Message]) -> Result<Vec<u32>, BackendError> {
            Ok(messages.iter().flat_map(|message| message.content.bytes().map(u32::from)).collect())
        }
        fn reading(&self, text: &str) -> Result<Vec<u32>, BackendError> {
            Ok(text.bytes().map(u32::from).collect())
        }
        fn context_len(&self) -> usize {
            1_000
        }
        fn vocabulary(&self) -> usize {
            256
        }
        fn constraint(&self, format: &ResponseFormat) -> Result<Option<Constraint>, BackendError> {
            let (message, param, code) = ("text alone".into(), "response_format", "invalid_value");
            if *format == ResponseFormat::Text { Ok(None) } else { Err(BackendError::Invalid { message, param, code }) }
        }
    }

    fn base(engine: Countdown) -> LocalBase {
        LocalBase::start("base".into(), Arc::new(Bytes), CacheScope::Private, engine).unwrap()
    }

    fn request(text: &str, max_tokens: u32) -> ChatRequest {
        let messages = vec![Message { role: Role::User, content: text.into() }];
        ChatRequest { max_tokens: Some(max_tokens), ..ChatRequest::new("base", messages) }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[tokio::test]
    async fn answers_whole_and_in_chunks() {
        let (engine, permit) = (Countdown::default(), permit_for(LOCAL));
        let seeds = Arc::clone(&engine.seeds);
        let base = base(engine);
        let asked = ChatRequest { n: 2, seed: Some(40), ..request("hello", 3) };
        let answer = base.answer(&permit, &asked, soon()).await.unwrap();
        let texts: Vec<_> = answer.choices.iter().map(|choice| choice.message.content.clone().unwrap()).collect();
        assert_eq!(texts, ["3 2 1 ", "3 2 1 "]);
        assert_eq!(answer.usage, Some(Usage::of(5, 6)));
        assert_eq!(*seeds.lock().unwrap(), [40, 41], "each choice is drawn for itself");

        let chunks: Vec<_> =
            base.stream(&permit, &asked, soon()).await.unwrap().map(|chunk| chunk.unwrap()).collect().await;
        let of = |index: u32| -> String {
            let choices = chunks.iter().flat_map(|chunk| &chunk.choices).filter(|choice| choice.index == index);
            choices.filter_map(|choice| choice.delta.content.clone()).collect()
        };
        assert_eq!((of(0), of(1)), ("3 2 1 ".to_owned(), "3 2 1 ".to_owned()));
        assert_eq!(chunks.last().unwrap().usage, Some(Usage::of(5, 6)));
    }

    #[tokio::test]
    async fn limits_are_told_and_the_answer_is_kept_within_the_context() {
        let (base, permit) = (base(Countdown::default()), permit_for(LOCAL));
        let error = base.answer(&permit, &request(&"x".repeat(1_000), 1), soon()).await.unwrap_err();
        assert!(matches!(error, BackendError::ContextLength { prompt_tokens: 1_000, context_len: 1_000 }));
        let answer = base.answer(&permit, &request(&"x".repeat(998), 50), soon()).await.unwrap();
        assert_eq!(answer.usage, Some(Usage::of(998, 2)));
        let many = ChatRequest { n: 5, ..request("x", 9) };
        assert!(matches!(base.answer(&permit, &many, soon()).await, Err(BackendError::QueueFull)));
        let json = ChatRequest { response_format: ResponseFormat::JsonObject, ..request("x", 1) };
        assert!(matches!(base.answer(&permit, &json, soon()).await, Err(BackendError::Invalid { .. })));
        let biased = |id| ChatRequest { logit_bias: vec![(id, -100.0)], ..request("x", 1) };
        assert!(base.answer(&permit, &biased(255), soon()).await.is_ok());
        let refused = base.answer(&permit, &biased(256), soon()).await;
        assert!(matches!(refused, Err(BackendError::Invalid { param: "logit_bias", .. })));
        let refused = base.stream(&permit, &biased(256), soon()).await.map(drop);
        assert!(matches!(refused, Err(BackendError::Invalid { param: "logit_bias", .. })), "before the stream begins");
        // A job that was refused leaves nothing behind.
        assert!(base.answer(&permit, &request("x", 1), soon()).await.is_ok());
    }

    #[tokio::test]
    async fn a_caller_who_leaves_cancels_the_sequence() {
        let (sink, mut cancelled) = mpsc::unbounded_channel();
        let base = base(Countdown { cancelled: Some(sink), ..Countdown::default() });
        let permit = permit_for(LOCAL);
        let mut chunks = base.stream(&permit, &request("x", 900), soon()).await.unwrap();
        assert!(chunks.next().await.unwrap().is_ok());
        drop(chunks);
        assert_eq!(cancelled.recv().await, Some(1));
    }

    #[tokio::test]
    async fn a_panic_is_told_to_everyone_and_hangs_nobody() {
        let (base, permit) = (base(Countdown::default()), permit_for(LOCAL));
        let error = base.answer(&permit, &request(&"x".repeat(13), 1), soon()).await.unwrap_err();
        assert!(matches!(error, BackendError::Stopped), "{error}");
        assert!(matches!(base.answer(&permit, &request("x", 1), soon()).await, Err(BackendError::Stopped)));
    }
}
