//! What would a request cost without training anything? Options in a fixed order, each over what those before it leave: a cache of answers,
//! the provider's prompt cache, a cheaper LLM, batches. A specialist is compared with all that pay, and so earns only what they do not.

use serde::{Deserialize, Serialize};

use super::{Case, assumptions::Assumptions};

/// A way to pay less without training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Alternative {
    /// An answer is kept and given again.
    Cache,
    /// The provider keeps the beginning of the prompt.
    PromptCache,
    /// Another LLM.
    CheaperLlm,
    /// The answer may come within a day.
    Batch,
}

impl Alternative {
    /// In the order in which they are tried.
    pub const ALL: [Self; 4] = [Self::Cache, Self::PromptCache, Self::CheaperLlm, Self::Batch];

    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Cache => "cache of answers",
            Self::PromptCache => "prompt cache",
            Self::CheaperLlm => "cheaper LLM",
            Self::Batch => "batch API",
        }
    }

    /// Work for it, before any overrun.
    pub(super) fn days(self, assumptions: &Assumptions) -> f64 {
        match self {
            Self::Cache => assumptions.cache_days,
            Self::PromptCache => assumptions.prompt_cache_days,
            Self::CheaperLlm => assumptions.cheaper_llm_days,
            Self::Batch => assumptions.batch_days,
        }
    }

    /// What it leaves of the requests and of a request's cost, where it works.
    fn leaves(self, case: &Case, assumptions: &Assumptions) -> Leaves {
        let all = Leaves { requests: 1.0, unit: 1.0, works: 1.0 };
        match self {
            Self::Cache => Leaves { requests: 1.0 - case.repeats * assumptions.cache_valid_share, ..all },
            Self::PromptCache => {
                let is_long = case.mean_input_tokens() * case.shared_prompt >= assumptions.prompt_cache_min_tokens;
                let cached = if is_long { case.shared_prompt * assumptions.prompt_cache_hit_share } else { 0.0 };
                let saved = case.input_cost_share * cached * (1.0 - assumptions.prompt_cache_price_ratio);
                Leaves { unit: 1.0 - saved, ..all }
            }
            Self::CheaperLlm => {
                let ratio = case.cheaper_ratio.min(1.0);
                Leaves { unit: ratio, works: if ratio < 1.0 { assumptions.cheaper_llm_chance } else { 0.0 }, ..all }
            }
            Self::Batch => {
                Leaves { unit: 1.0 - assumptions.batch_share * (1.0 - assumptions.batch_price_ratio), ..all }
            }
        }
    }
}

/// Shares that an alternative leaves, and how likely it works.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Leaves {
    pub(super) requests: f64,
    pub(super) unit: f64,
    pub(super) works: f64,
}

/// An alternative that is expected to pay for its own work.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Step {
    pub(super) alternative: Alternative,
    pub(super) leaves: Leaves,
    pub(super) days: f64,
}

/// Those that are expected to pay, in order. `requests` in the horizon at `unit_usd` each.
pub(super) fn chain(case: &Case, requests: f64, unit_usd: f64, assumptions: &Assumptions, day_usd: f64) -> Vec<Step> {
    let (mut requests, mut unit) = (requests, unit_usd);
    let mut chain = Vec::new();
    for alternative in Alternative::ALL {
        let leaves = alternative.leaves(case, assumptions);
        let days = alternative.days(assumptions);
        let saved = leaves.works * requests * unit * (1.0 - leaves.requests * leaves.unit);
        if saved > days * day_usd {
            chain.push(Step { alternative, leaves, days });
            requests *= 1.0 - leaves.works * (1.0 - leaves.requests);
            unit *= 1.0 - leaves.works * (1.0 - leaves.unit);
        }
    }
    chain
}
