//! The encoder's thread: texts in, vectors out. A local function that answers nobody, so it needs no permit.
//!
//! Requests share the encoder's steps and take turns in them: a short text does not wait for a long document before it, and each
//! text gets the vector that it would get alone. A caller who left is cancelled. If the thread panics, the requests at hand and
//! all later ones get [`BackendError::Stopped`]: an error, never a hang.

use std::{collections::BTreeMap, panic::AssertUnwindSafe, sync::Arc};

use metier_kernels::Pool;
use metier_model::encoder::{EncoderQueue, QueueError, RequestId};
use tokio::sync::{mpsc, oneshot};

use super::{BackendError, local::LocalBase};

/// Most requests that wait to be taken by the thread.
pub(crate) const MAX_QUEUE: usize = 512;

/// What turns texts into vectors, many requests at a time.
pub(crate) trait Embed: Send + 'static {
    /// Takes a request, or says why not.
    fn submit(&mut self, texts: &[&str]) -> Result<u64, BackendError>;
    /// Does some of the work; the requests that are complete now.
    fn step(&mut self) -> Vec<(u64, Embedded)>;
    /// Forgets a request.
    fn cancel(&mut self, id: u64);
}

/// An encoder's queue with the threads it runs on.
pub(crate) struct PooledEncoder {
    pub(crate) queue: EncoderQueue,
    pub(crate) pool: Arc<Pool>,
}

impl Embed for PooledEncoder {
    fn submit(&mut self, texts: &[&str]) -> Result<u64, BackendError> {
        let invalid = |error: QueueError| BackendError::Invalid {
            message: error.to_string(),
            param: "input",
            code: "invalid_value",
        };
        self.queue.submit(texts).map(|id| id.0).map_err(|error| match error {
            QueueError::Full { .. } => BackendError::QueueFull,
            QueueError::TooManyTokens { waiting, .. } if waiting > 0 => BackendError::QueueFull,
            error => invalid(error),
        })
    }

    fn step(&mut self) -> Vec<(u64, Embedded)> {
        let done = self.queue.step(&self.pool).into_iter();
        done.map(|done| (done.id.0, Embedded { vectors: done.vectors, n_tokens: done.n_tokens as u64 })).collect()
    }

    fn cancel(&mut self, id: u64) {
        self.queue.cancel(RequestId(id));
    }
}

/// Vectors of one request, with the tokens read.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Embedded {
    pub(crate) vectors: Vec<Vec<f32>>,
    pub(crate) n_tokens: u64,
}

struct Job {
    texts: Vec<String>,
    done: oneshot::Sender<Result<Embedded, BackendError>>,
}

/// A handle on what reads: a thread, which ends when the last handle is dropped, or the decoder's.
#[derive(Clone)]
pub(crate) struct Embedder(Reader);

#[derive(Clone)]
enum Reader {
    Thread(mpsc::Sender<Job>),
    /// The base under a specialist's adapter: texts share its thread and its batches.
    Decoder(Arc<LocalBase>),
}

impl Embedder {
    /// Starts the thread.
    pub(crate) fn start(model: impl Embed) -> std::io::Result<Self> {
        let (jobs, waiting) = mpsc::channel::<Job>(MAX_QUEUE);
        std::thread::Builder::new().name("encoder".into()).spawn(move || {
            // A panic drops the requests and the queue: everyone who waits is told by that.
            if std::panic::catch_unwind(AssertUnwindSafe(|| drive(model, waiting))).is_err() {
                tracing::error!("the encoder's thread panicked and has ended");
            }
        })?;
        Ok(Self(Reader::Thread(jobs)))
    }

    /// The last rows of a decoder in the place of an encoder's vectors.
    pub(crate) fn over(decoder: Arc<LocalBase>) -> Self {
        Self(Reader::Decoder(decoder))
    }

    /// Vectors of some texts.
    pub(crate) async fn embed(&self, texts: Vec<String>) -> Result<Embedded, BackendError> {
        let jobs = match &self.0 {
            Reader::Thread(jobs) => jobs,
            Reader::Decoder(decoder) => return decoder.read(&texts).await,
        };
        let (done, answer) = oneshot::channel();
        jobs.try_send(Job { texts, done }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => BackendError::QueueFull,
            mpsc::error::TrySendError::Closed(_) => BackendError::Stopped,
        })?;
        answer.await.unwrap_or(Err(BackendError::Stopped))
    }
}

/// Takes what came, cancels for those who left, steps; sleeps only where nothing is open. Ends with the last handle.
fn drive(mut model: impl Embed, mut waiting: mpsc::Receiver<Job>) {
    let mut open: BTreeMap<u64, oneshot::Sender<Result<Embedded, BackendError>>> = BTreeMap::new();
    loop {
        let mut next = if open.is_empty() {
            let Some(job) = waiting.blocking_recv() else { return };
            Some(job)
        } else {
            waiting.try_recv().ok()
        };
        while let Some(Job { texts, done }) = next {
            // A caller who left needs no answer.
            if !done.is_closed() {
                match model.submit(&texts.iter().map(String::as_str).collect::<Vec<_>>()) {
                    Ok(id) => drop(open.insert(id, done)),
                    Err(error) => drop(done.send(Err(error))),
                }
            }
            next = waiting.try_recv().ok();
        }
        open.retain(|id, done| {
            if done.is_closed() {
                model.cancel(*id);
            }
            !done.is_closed()
        });
        if open.is_empty() {
            continue;
        }
        for (id, embedded) in model.step() {
            if let Some(done) = open.remove(&id) {
                let _ = done.send(Ok(embedded));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Answers the oldest request of a step.
    #[derive(Default)]
    struct Lengths {
        open: Vec<(u64, Embedded)>,
        next: u64,
        most_open: Arc<AtomicUsize>,
    }

    impl Embed for Lengths {
        fn submit(&mut self, texts: &[&str]) -> Result<u64, BackendError> {
            assert!(!texts.contains(&"panic"), "as asked");
            if texts.contains(&"fail") {
                return Err(BackendError::Failed("as asked".into()));
            }
            let vectors = texts.iter().map(|text| vec![text.len() as f32]).collect();
            let n_tokens = texts.iter().map(|text| text.len() as u64).sum();
            self.next += 1;
            self.open.push((self.next, Embedded { vectors, n_tokens }));
            self.most_open.fetch_max(self.open.len(), Ordering::SeqCst);
            Ok(self.next)
        }
        fn step(&mut self) -> Vec<(u64, Embedded)> {
            self.open.drain(..1.min(self.open.len())).collect()
        }
        fn cancel(&mut self, id: u64) {
            self.open.retain(|(open, _)| *open != id);
        }
    }

    #[tokio::test]
    async fn answers_each_its_own_and_survives_errors_but_not_panics() {
        let embedder = Embedder::start(Lengths::default()).unwrap();
        let texts = |texts: &[&str]| embedder.embed(texts.iter().map(|text| (*text).to_owned()).collect());
        let (a, b) = tokio::join!(texts(&["a", "bb"]), texts(&["ccc"]));
        assert_eq!(a.unwrap(), Embedded { vectors: vec![vec![1.0], vec![2.0]], n_tokens: 3 });
        assert_eq!(b.unwrap().vectors, [[3.0]]);
        assert!(matches!(texts(&["fail"]).await, Err(BackendError::Failed(_))));
        assert!(texts(&["d"]).await.is_ok());
        assert!(matches!(texts(&["panic"]).await, Err(BackendError::Stopped)));
        assert!(matches!(texts(&["e"]).await, Err(BackendError::Stopped)));
    }

    #[test]
    fn requests_are_taken_together_and_those_who_left_are_cancelled() {
        let (jobs, waiting) = mpsc::channel(8);
        let mut answers = Vec::new();
        for text in ["a", "bb", "ccc", "dddd"] {
            let (done, answer) = oneshot::channel();
            jobs.try_send(Job { texts: vec![text.to_owned()], done }).unwrap();
            answers.push(answer);
        }
        drop(jobs);
        answers.remove(1).close();
        let model = Lengths::default();
        let most_open = Arc::clone(&model.most_open);
        drive(model, waiting);
        assert_eq!(most_open.load(Ordering::SeqCst), 3, "three are open before the first step");
        let lens: Vec<f32> = answers.into_iter().map(|mut a| a.try_recv().unwrap().unwrap().vectors[0][0]).collect();
        assert_eq!(lens, [1.0, 3.0, 4.0]);
    }
}
