//! A base model that knows what n-grams cannot: of each word the sum of its bytes, so that words that never come again have a topic too.
use std::error::Error;

use metier_kernels::Pool;
use metier_model::{BaseId, Digest, Progress};
use metier_train::Embed;

/// Topics that it tells apart.
pub(crate) const TOPICS: usize = 4;

/// Embeds texts by the topics of their words.
pub(crate) struct Sums;

impl Embed for Sums {
    fn dim(&self) -> usize {
        TOPICS
    }

    fn base(&self) -> BaseId {
        BaseId { name: "sums".to_owned(), digest: Digest::of(b"sums"), weights: None }
    }

    fn embed_all(
        &self,
        _: &Pool,
        texts: &[&str],
        _: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Vec<Vec<f32>>, Box<dyn Error + Send + Sync>> {
        Ok(texts.iter().map(|text| vector(text)).collect())
    }
}

/// The sum of a word's bytes, modulo the number of topics.
pub(crate) fn topic(word: &str) -> usize {
    word.bytes().map(usize::from).sum::<usize>() % TOPICS
}

/// Shares of topics at length 1: (topics).
pub(crate) fn vector(text: &str) -> Vec<f32> {
    let mut counts = [0.0f32; TOPICS];
    text.split_whitespace().for_each(|word| counts[topic(word)] += 1.0);
    let norm = counts.iter().map(|v| v * v).sum::<f32>().sqrt();
    counts.iter().map(|v| v / norm.max(1e-6)).collect()
}
