//! Counts what came back, and says it in the fields of DESIGN.md, "CLI".

use std::time::Duration;

use metier_model::proof::{clopper_pearson, wilson};
use serde::Serialize;

use crate::cli::ask::{Reply, quantile};

/// Confidence of the intervals that are printed.
const CONFIDENCE: f64 = 0.95;

/// One held-out row and what was answered.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    /// Index of the task that the row belongs to.
    pub(super) task_idx: usize,
    /// Whether it was sent as `auto` rather than by the specialist's name.
    pub(super) auto: bool,
    /// What was sent.
    pub(super) text: String,
    /// The right answer.
    pub(super) label: String,
    /// What came back.
    pub(super) reply: Reply,
}

impl Asked {
    pub(super) fn is_right(&self) -> bool {
        self.reply.content.as_deref() == Some(&self.label)
    }

    pub(super) fn is_local(&self) -> bool {
        self.reply.escalated == "no" && self.reply.content.is_some()
    }

    pub(super) fn is_llm(&self) -> bool {
        self.reply.escalated == "llm" && self.reply.content.is_some()
    }
}

/// What the build promised of one task.
#[derive(Clone, Debug)]
pub(super) struct Promise {
    /// Name of the specialist.
    pub(super) name: &'static str,
    /// ε, δ: the bound and the probability that it fails. `None` where the data could not carry a certificate.
    pub(super) bound: Option<(f64, f64)>,
}

/// Counts of a set of rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Counts {
    pub(super) requests: u64,
    /// Answered by a specialist on this machine.
    pub(super) answered_locally: u64,
    pub(super) right_locally: u64,
    /// Passed on to the LLM and answered there.
    pub(super) answered_by_llm: u64,
    pub(super) right_by_llm: u64,
    /// Neither: the client got a refusal.
    pub(super) refused: u64,
}

impl Counts {
    /// Counts rows.
    pub(super) fn of<'a>(rows: impl Iterator<Item = &'a Asked>) -> Self {
        let mut counts = Self::default();
        for row in rows {
            counts.requests += 1;
            let right = u64::from(row.is_right());
            if row.is_local() {
                counts.answered_locally += 1;
                counts.right_locally += right;
            } else if row.is_llm() {
                counts.answered_by_llm += 1;
                counts.right_by_llm += right;
            } else {
                counts.refused += 1;
            }
        }
        counts
    }

    /// Share of the locally answered that is right, with its interval; `None` when nothing was answered.
    pub(super) fn local_accuracy(&self) -> Option<(f64, [f64; 2])> {
        share(self.right_locally, self.answered_locally)
    }

    /// The same over everything that was answered by anyone.
    pub(super) fn accuracy(&self) -> Option<(f64, [f64; 2])> {
        share(self.right_locally + self.right_by_llm, self.answered_locally + self.answered_by_llm)
    }
}

fn share(k: u64, n: u64) -> Option<(f64, [f64; 2])> {
    (n > 0).then(|| (k as f64 / n as f64, wilson(k, n, CONFIDENCE)))
}

/// One certificate against the held-out rows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct CertificateCheck {
    pub(super) name: &'static str,
    pub(super) epsilon: f64,
    pub(super) delta: f64,
    /// Held-out rows that were sent to the specialist by name.
    pub(super) n: u64,
    /// Share of them that it answered itself.
    pub(super) coverage: f64,
    /// Share of them that it answered itself and wrong: what ε bounds.
    pub(super) test_loss: f64,
    /// False only when the exact lower bound of the loss exceeds ε: then the promise is broken beyond chance.
    pub(super) held: bool,
}

impl CertificateCheck {
    /// Rows that `auto` routed are left out: which task answers is not what the certificate speaks of.
    pub(super) fn of(promise: &Promise, task_idx: usize, rows: &[Asked]) -> Option<Self> {
        let (epsilon, delta) = promise.bound?;
        let counts = Counts::of(rows.iter().filter(|row| row.task_idx == task_idx && !row.auto));
        let losses = counts.answered_locally - counts.right_locally;
        let n = counts.requests;
        let [low, _] = clopper_pearson(losses, n, CONFIDENCE);
        let of_n = |k: u64| if n == 0 { 0.0 } else { k as f64 / n as f64 };
        Some(Self {
            name: promise.name,
            epsilon,
            delta,
            n,
            coverage: of_n(counts.answered_locally),
            test_loss: of_n(losses),
            held: low <= epsilon,
        })
    }
}

/// Median and 95th percentile of what a specialist answered, in milliseconds, sent to last byte.
pub(super) fn local_latency_ms(rows: &[Asked]) -> Option<(f64, f64)> {
    let times: Vec<Duration> = rows.iter().filter(|row| row.is_local()).map(|row| row.reply.elapsed).collect();
    let ms = |q| quantile(&times, q).map(|time| time.as_secs_f64() * 1e3);
    Some((ms(0.5)?, ms(0.95)?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn asked(escalated: &str, content: Option<&str>, auto: bool) -> Asked {
        let reply = Reply {
            content: content.map(str::to_owned),
            refusal: None,
            model: String::new(),
            decision: String::new(),
            stage: String::new(),
            escalated: escalated.to_owned(),
            task: None,
            cost_usd: None,
            receipt: None,
            tokens: (0, 0),
            elapsed: Duration::from_millis(3),
        };
        Asked { task_idx: 0, auto, text: String::new(), label: "right".to_owned(), reply }
    }

    #[test]
    fn each_row_is_counted_once() {
        let rows = [
            asked("no", Some("right"), false),
            asked("no", Some("wrong"), false),
            asked("llm", Some("right"), false),
            asked("llm", None, false),
            asked("none-available", None, true),
            asked("denied", None, false),
        ];
        let counts = Counts::of(rows.iter());
        let expected = Counts {
            requests: 6,
            answered_locally: 2,
            right_locally: 1,
            answered_by_llm: 1,
            right_by_llm: 1,
            refused: 3,
        };
        assert_eq!(counts, expected);
        assert_eq!(counts.local_accuracy().unwrap().0, 0.5);
        assert_eq!(local_latency_ms(&rows), Some((3.0, 3.0)));
    }

    #[test]
    fn a_certificate_is_broken_only_beyond_chance() {
        let promise = Promise { name: "task", bound: Some((0.05, 0.05)) };
        let rows = |wrong: usize| -> Vec<Asked> {
            let right = vec![asked("no", Some("right"), false); 100 - wrong];
            right.into_iter().chain(vec![asked("no", Some("wrong"), false); wrong]).collect()
        };
        // 8 of 100 may be chance where 5 are allowed; 20 of 100 are not.
        let check = CertificateCheck::of(&promise, 0, &rows(8)).unwrap();
        assert!(check.held && check.test_loss == 0.08 && check.coverage == 1.0 && check.n == 100);
        assert!(!CertificateCheck::of(&promise, 0, &rows(20)).unwrap().held);
        assert!(CertificateCheck::of(&Promise { bound: None, ..promise }, 0, &rows(0)).is_none());
    }
}
