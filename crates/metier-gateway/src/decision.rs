//! How one request was answered and why: the values of the decision headers, of the last chunk's `metier` object, and of the
//! `closed` entry.

use metier_traffic::price::usd;
use serde_json::{Value, json};

use crate::audit::ReceiptId;

/// What became of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A specialist answered and its score passed the certified threshold.
    Accepted,
    /// A specialist deferred, and a backend answered.
    Deferred,
    /// The model that the caller named answered: no specialist was asked.
    Direct,
    /// Nobody may answer: there is a refusal and no content.
    Refused,
    /// An error came in place of an answer.
    Failed,
    /// The caller left.
    Cancelled,
}

impl Outcome {
    /// The word for entries and headers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Deferred => "deferred",
            Self::Direct => "direct",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Whether the request went beyond the stage that it was meant for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Escalated {
    /// It did not.
    No,
    /// A language model answered.
    Llm,
    /// There is no backend to answer.
    NoneAvailable,
    /// There is one, and policy denies it.
    Denied,
}

impl Escalated {
    /// The word for entries and headers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Llm => "llm",
            Self::NoneAvailable => "none-available",
            Self::Denied => "denied",
        }
    }
}

/// How one request was answered. The guess of a specialist that deferred is not in it: it stands nowhere but in its maker's
/// memory, so that no client takes it for an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// What became of it.
    pub outcome: Outcome,
    /// The stage that decided: `linear`, `head`, `both`, `base`, a backend's id, or `match` when no task fits.
    pub stage: String,
    /// Calibrated score of the specialist, or the cosine of `auto` when no task fits; 0 to 1.
    pub confidence: Option<f32>,
    /// What the score is compared with.
    pub threshold: Option<f32>,
    /// Whether it went on.
    pub escalated: Escalated,
    /// Cost; `None` when unpriced or not known yet.
    pub cost_picousd: Option<u64>,
    /// Name of the request in the audit log.
    pub receipt: ReceiptId,
    /// The task, where one was found.
    pub task: Option<String>,
    /// The backend that answered.
    pub backend: Option<String>,
    /// Reasons of a denial, or the error.
    pub reason: Option<String>,
    /// Of an extraction that was accepted: each value with the characters that it was read from and its score.
    pub fields: Option<Value>,
}

impl Decision {
    /// Names and values of the decision headers. In a stream the cost is known only at its end and is left out here.
    pub fn headers(&self) -> Vec<(&'static str, String)> {
        let mut headers = vec![
            ("x-metier-decision", self.outcome.as_str().to_owned()),
            ("x-metier-stage", self.stage.clone()),
            ("x-metier-escalated", self.escalated.as_str().to_owned()),
            ("x-metier-receipt", self.receipt.to_string()),
        ];
        if let Some(confidence) = self.confidence {
            headers.push(("x-metier-confidence", format!("{confidence:.4}")));
        }
        if let Some(cost_picousd) = self.cost_picousd {
            headers.push(("x-metier-cost-usd", usd(cost_picousd)));
        }
        headers
    }

    /// The `metier` object of the last chunk of a stream, and of a whole answer.
    pub fn to_json(&self) -> Value {
        let mut all = json!({
            "decision": self.outcome.as_str(),
            "stage": self.stage,
            "confidence": self.confidence.map(rounded),
            "threshold": self.threshold.map(rounded),
            "escalated": self.escalated.as_str(),
            "cost_usd": self.cost_picousd.map(usd),
            "receipt": self.receipt.to_string(),
            "task": self.task,
        });
        if let (Some(fields), Some(all)) = (&self.fields, all.as_object_mut()) {
            all.insert("fields".to_owned(), fields.clone());
        }
        all
    }
}

/// Four digits: what a calibrated score can carry.
fn rounded(score: f32) -> f64 {
    (f64::from(score) * 1e4).round() / 1e4
}

/// A score or threshold in basis points, as entries hold it. Rounded down, so that a score that failed its threshold does not
/// read as if it had passed; the margin is what f32 loses, so that 0.78 is 7,800.
pub fn basis_points(score: f32) -> u32 {
    // Out-of-range and NaN become 0 or 10,000 by the saturating cast and the clamp.
    (f64::from(score) * 1e4 + 1e-3).clamp(0.0, 1e4) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_and_points() {
        let decision = Decision {
            outcome: Outcome::Accepted,
            stage: "both".into(),
            confidence: Some(0.931_26),
            threshold: Some(0.78),
            escalated: Escalated::No,
            cost_picousd: Some(300_000),
            receipt: ReceiptId([0xab; 16]),
            task: Some("tickets".into()),
            backend: None,
            reason: None,
            fields: None,
        };
        let headers = decision.headers();
        assert!(headers.contains(&("x-metier-confidence", "0.9313".into())), "{headers:?}");
        assert!(headers.contains(&("x-metier-cost-usd", "0.0000003".into())), "{headers:?}");
        assert!(headers.contains(&("x-metier-receipt", "ab".repeat(16))));
        assert_eq!(decision.to_json()["confidence"], 0.9313);
        assert_eq!((basis_points(0.779_99), basis_points(f32::NAN), basis_points(2.0)), (7_799, 0, 10_000));
    }
}
