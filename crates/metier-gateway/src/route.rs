//! Who answers?
//!
//! Which question: *which task is this request, and which stage of it may answer?* In go names, an embedding as an argument, scores
//! and thresholds; out come a target and a step. Pure. Deliberately absent: permission (that is `policy`; a route picks only
//! from what a permit lists) and any call.

/// Asks for the nearest task instead of naming one.
pub const AUTO: &str = "auto";

/// What a model name stands for. Indices are into the lists that the [`Names`] were made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The local base decoder.
    Base,
    /// A specialist.
    Specialist(usize),
    /// The local base decoder with an adapter.
    Adapter(usize),
    /// A backend's model.
    Backend(usize),
    /// The nearest task.
    Auto,
}

/// What may be named. A name that stands for several things stands for the first in this order: `auto`, base, specialist, adapter,
/// backend.
#[derive(Clone, Copy, Debug)]
pub struct Names<'a> {
    /// The base decoder, where there is one.
    pub base: Option<&'a str>,
    /// Specialists.
    pub specialists: &'a [&'a str],
    /// Adapters of the base.
    pub adapters: &'a [&'a str],
    /// Models of backends, and their ids.
    pub backends: &'a [(&'a str, &'a str)],
}

/// A model's name → what it stands for.
pub fn by_name(model: &str, names: Names<'_>) -> Option<Target> {
    if model == AUTO {
        return Some(Target::Auto);
    }
    if names.base == Some(model) {
        return Some(Target::Base);
    }
    if let Some(idx) = names.specialists.iter().position(|name| *name == model) {
        return Some(Target::Specialist(idx));
    }
    if let Some(idx) = names.adapters.iter().position(|name| *name == model) {
        return Some(Target::Adapter(idx));
    }
    names.backends.iter().position(|(name, id)| *name == model || *id == model).map(Target::Backend)
}

/// A task that `auto` may choose.
#[derive(Clone, Copy, Debug)]
pub struct TaskCentroids<'a> {
    /// Mean embedding of each class's training rows, L2-normalised: (n_classes, dim)
    pub centroids: &'a [Vec<f32>],
    /// Cosine below which a text is none of this task's; a task without one is never chosen.
    pub threshold: Option<f32>,
}

/// What `auto` found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Nearest {
    /// A task fits.
    Task {
        /// Index among the candidates.
        idx: usize,
        /// Cosine with its nearest centroid.
        score: f32,
    },
    /// None fits; the best of them is told, if there is any with the embedding's length.
    NoneFits {
        /// Index, cosine and threshold of the task that came closest.
        best: Option<(usize, f32, f32)>,
    },
}

/// The task whose nearest class centroid has the highest cosine with the embedding, among those above their own threshold.
/// Ties go to the first. A non-finite cosine never wins.
pub fn nearest(embedding: &[f32], tasks: &[TaskCentroids<'_>]) -> Nearest {
    let mut fitting: Option<(usize, f32)> = None;
    let mut best: Option<(usize, f32, f32)> = None;
    for (idx, task) in tasks.iter().enumerate() {
        let Some(threshold) = task.threshold else { continue };
        let cosines = task.centroids.iter().filter_map(|centroid| cosine(embedding, centroid));
        let Some(score) = cosines.max_by(f32::total_cmp) else { continue };
        if score >= threshold && fitting.is_none_or(|(_, so_far)| score > so_far) {
            fitting = Some((idx, score));
        }
        if best.is_none_or(|(_, so_far, _)| score > so_far) {
            best = Some((idx, score, threshold));
        }
    }
    match fitting {
        Some((idx, score)) => Nearest::Task { idx, score },
        None => Nearest::NoneFits { best },
    }
}

/// Cosine of two vectors; `None` when lengths differ or it is not finite.
fn cosine(a: &[f32], b: &[f32]) -> Option<f32> {
    if a.len() != b.len() {
        return None;
    }
    let (mut dot, mut aa, mut bb) = (0.0_f32, 0.0_f32, 0.0_f32);
    for (x, y) in a.iter().zip(b) {
        dot += x * y;
        aa += x * x;
        bb += y * y;
    }
    let cosine = dot / (aa.sqrt() * bb.sqrt());
    cosine.is_finite().then_some(cosine)
}

/// What the cascade does after a stage has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The answer stands.
    Accept,
    /// The next stage is asked: a backend, if one may be.
    Defer,
}

/// Score against threshold: without a certified threshold nothing is accepted.
pub fn cascade(score: f32, threshold: Option<f32>, accepted: bool) -> Step {
    match threshold {
        Some(threshold) if accepted && score >= threshold => Step::Accept,
        _ => Step::Defer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let (specialists, adapters) = (&["tickets", "llm"], &["tickets", "poems"]);
        let names = Names { base: Some("smol"), specialists, adapters, backends: &[("gpt", "llm"), ("poems", "far")] };
        assert_eq!(by_name("auto", names), Some(Target::Auto));
        assert_eq!(by_name("smol", names), Some(Target::Base));
        assert_eq!(by_name("tickets", names), Some(Target::Specialist(0)));
        assert_eq!(
            by_name("llm", names),
            Some(Target::Specialist(1)),
            "a specialist comes before a backend of its name"
        );
        assert_eq!(by_name("poems", names), Some(Target::Adapter(1)), "an adapter comes before a backend of its name");
        assert_eq!(by_name("gpt", names), Some(Target::Backend(0)));
        assert_eq!(by_name("nobody", names), None);
    }

    #[test]
    fn nearest_task() {
        let (a, b) = (vec![vec![1.0, 0.0], vec![0.6, 0.8]], vec![vec![0.0, 2.0]]);
        let tasks =
            |ta, tb| [TaskCentroids { centroids: &a, threshold: ta }, TaskCentroids { centroids: &b, threshold: tb }];
        assert_eq!(nearest(&[1.0, 0.0], &tasks(Some(0.9), Some(0.9))), Nearest::Task { idx: 0, score: 1.0 });
        assert_eq!(nearest(&[0.0, 1.0], &tasks(Some(0.9), Some(0.9))), Nearest::Task { idx: 1, score: 1.0 });
        // The nearest is too far for its own threshold, a farther one is near enough for its own.
        assert!(matches!(nearest(&[0.0, 1.0], &tasks(Some(0.5), Some(1.5))), Nearest::Task { idx: 0, .. }));
        let none = nearest(&[-1.0, 0.0], &tasks(Some(0.5), Some(0.25)));
        assert_eq!(none, Nearest::NoneFits { best: Some((1, 0.0, 0.25)) });
        assert_eq!(nearest(&[1.0, 0.0], &tasks(None, None)), Nearest::NoneFits { best: None });
        assert_eq!(nearest(&[1.0], &tasks(Some(0.1), Some(0.1))), Nearest::NoneFits { best: None });
        assert_eq!(nearest(&[f32::NAN, 0.0], &tasks(Some(0.1), Some(0.1))), Nearest::NoneFits { best: None });
    }

    #[test]
    fn without_a_threshold_nothing_is_accepted() {
        assert_eq!(cascade(0.9, Some(0.8), true), Step::Accept);
        assert_eq!(cascade(0.8, Some(0.8), true), Step::Accept);
        assert_eq!(cascade(0.79, Some(0.8), true), Step::Defer);
        assert_eq!(cascade(0.9, Some(0.8), false), Step::Defer);
        assert_eq!(cascade(1.0, None, true), Step::Defer);
        assert_eq!(cascade(f32::NAN, Some(0.0), true), Step::Defer);
    }
}
