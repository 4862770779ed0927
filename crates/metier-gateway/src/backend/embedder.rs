//! The encoder's thread: texts in, vectors out. A local function that answers nobody, so it needs no permit.
//!
//! Requests that wait are embedded in one batch; a batch gives each text the vector that it would get alone. A caller who left is
//! skipped. If the thread panics, the request at hand and all later ones get [`BackendError::Stopped`]: an error, never a hang.

use std::{panic::AssertUnwindSafe, sync::Arc};

use tokio::sync::{mpsc, oneshot};

use super::BackendError;

/// Most requests that wait.
pub(crate) const MAX_QUEUE: usize = 512;
/// Most texts in one batch across requests. A request of more is a batch of its own.
const MAX_BATCH: usize = 64;

/// What turns texts into vectors.
pub(crate) trait Embed: Send + Sync + 'static {
    /// One vector a text, of one length, L2-normalised.
    fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, String>;
    /// Tokens of a text.
    fn count_tokens(&self, text: &str) -> usize;
}

/// Vectors of one request, with the tokens read.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Embedded {
    pub(crate) vectors: Vec<Vec<f32>>,
    pub(crate) n_tokens: u64,
}

struct Job {
    texts: Vec<String>,
    done: oneshot::Sender<Result<Embedded, BackendError>>,
}

/// A handle on the thread. The thread ends when the last handle is dropped.
#[derive(Clone)]
pub(crate) struct Embedder {
    jobs: mpsc::Sender<Job>,
}

impl Embedder {
    /// Starts the thread.
    pub(crate) fn start(model: Arc<dyn Embed>) -> std::io::Result<Self> {
        let (jobs, mut waiting) = mpsc::channel::<Job>(MAX_QUEUE);
        std::thread::Builder::new().name("encoder".into()).spawn(move || {
            while let Some(first) = waiting.blocking_recv() {
                let mut n_texts = first.texts.len();
                let mut batch = vec![first];
                while n_texts < MAX_BATCH
                    && let Ok(job) = waiting.try_recv()
                {
                    n_texts += job.texts.len();
                    batch.push(job);
                }
                batch.retain(|job| !job.done.is_closed());
                // A panic drops the batch and the queue: everyone who waits is told by that.
                if std::panic::catch_unwind(AssertUnwindSafe(|| run(&*model, batch))).is_err() {
                    tracing::error!("the encoder's thread panicked and has ended");
                    return;
                }
            }
        })?;
        Ok(Self { jobs })
    }

    /// Vectors of some texts.
    pub(crate) async fn embed(&self, texts: Vec<String>) -> Result<Embedded, BackendError> {
        let (done, answer) = oneshot::channel();
        self.jobs.try_send(Job { texts, done }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => BackendError::QueueFull,
            mpsc::error::TrySendError::Closed(_) => BackendError::Stopped,
        })?;
        answer.await.unwrap_or(Err(BackendError::Stopped))
    }
}

fn run(model: &dyn Embed, batch: Vec<Job>) {
    let texts: Vec<&str> = batch.iter().flat_map(|job| job.texts.iter().map(String::as_str)).collect();
    if texts.is_empty() {
        return;
    }
    let vectors = match model.embed(&texts) {
        Ok(vectors) if vectors.len() == texts.len() => vectors,
        Ok(vectors) => {
            let reason = format!("{} vectors for {} texts", vectors.len(), texts.len());
            return batch.into_iter().for_each(|job| drop(job.done.send(Err(BackendError::Failed(reason.clone())))));
        }
        Err(reason) => {
            return batch.into_iter().for_each(|job| drop(job.done.send(Err(BackendError::Failed(reason.clone())))));
        }
    };
    let mut vectors = vectors.into_iter();
    for job in batch {
        let n_tokens = job.texts.iter().map(|text| model.count_tokens(text) as u64).sum();
        let vectors = vectors.by_ref().take(job.texts.len()).collect();
        // A caller who left needs no answer.
        let _ = job.done.send(Ok(Embedded { vectors, n_tokens }));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    struct Lengths;

    impl Embed for Lengths {
        fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, String> {
            assert!(!texts.contains(&"panic"), "as asked");
            if texts.contains(&"fail") {
                return Err("as asked".into());
            }
            Ok(texts.iter().map(|text| vec![text.len() as f32]).collect())
        }
        fn count_tokens(&self, text: &str) -> usize {
            text.len()
        }
    }

    #[tokio::test]
    async fn answers_each_its_own_and_survives_errors_but_not_panics() {
        let embedder = Embedder::start(Arc::new(Lengths)).unwrap();
        let texts = |texts: &[&str]| embedder.embed(texts.iter().map(|text| (*text).to_owned()).collect());
        let (a, b) = tokio::join!(texts(&["a", "bb"]), texts(&["ccc"]));
        assert_eq!(a.unwrap(), Embedded { vectors: vec![vec![1.0], vec![2.0]], n_tokens: 3 });
        assert_eq!(b.unwrap().vectors, [[3.0]]);
        assert!(matches!(texts(&["fail"]).await, Err(BackendError::Failed(_))));
        assert!(texts(&["d"]).await.is_ok());
        assert!(matches!(texts(&["panic"]).await, Err(BackendError::Stopped)));
        assert!(matches!(texts(&["e"]).await, Err(BackendError::Stopped)));
    }
}
