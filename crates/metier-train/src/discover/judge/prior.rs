//! How likely can a small model do this, from its traffic alone? Seconds for a thousand tasks, and a guess.
//!
//! Log-odds that start from the kind of task and move by what published studies found to go with success: LoRA Land (Zhao et al. 2024,
//! arXiv 2405.00732) correlates the best tuned score of 31 tasks with the length of outputs (−0.49 for its 95th percentile), their spread
//! (−0.52), how alike outputs are, and how compressible (+0.26). A correlation is no weight: the signs and the order of size are theirs, the
//! numbers are ours, and this installation's own attempts correct them ([`chance`](crate::discover::saving::chance)).
//!
//! To pass is to get a certificate, and for that rows are needed whatever the score: where a classification starts, and what a doubling of its rows
//! is worth, was fitted to the builds of 212 tasks (`--example roadmap_verdicts`, banking77 and bitext); how many labels it has made no difference
//! there.

use serde::{Deserialize, Serialize};

use crate::discover::task::{TaskKind, Traits};

/// Weights are for one standard deviation, or for the whole of a share.
const OF_LENGTH: f64 = -0.6;
const OF_SPREAD: f64 = -0.4;
const OF_COMPRESSION: f64 = 0.5;
const OF_COPYING: f64 = 0.9;
const OF_SCHEMA: f64 = 0.5;
const OF_ARITHMETIC: f64 = -1.6;
const OF_DEPTH: f64 = -0.5;
/// A doubling of the rows, at most two either way from the usual.
const OF_ROWS: f64 = 1.2;
const USUAL_ROWS: f64 = 1000.0;
const MOST_DOUBLINGS: f64 = 2.0;
const OF_DISAGREEMENT: f64 = -6.0;

/// A guess, and what moved it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prior {
    /// Probability that a specialist passes.
    pub chance: f64,
    /// By what, and by how much in log-odds, largest first.
    pub reasons: Vec<(String, f64)>,
}

/// The guess for a task with so many different texts that have an answer.
pub fn prior(kind: TaskKind, traits: &Traits, rows: u64) -> Prior {
    let start = match kind {
        // With short answers that are much alike, as labels are (+1.8), −0.4 at a thousand rows.
        TaskKind::Classify => -2.2,
        TaskKind::Extract => 0.5,
        TaskKind::Generate => -0.9,
    };
    let output = &traits.output_tokens;
    // Doublings beyond what is usual for a short answer, at most six.
    let doublings = |tokens: f64, usual: f64| (tokens.max(1.0) / usual).log2().clamp(-2.0, 6.0);
    let mut reasons = vec![
        (
            format!("answers have up to {:.0} tokens (95 of 100)", output.p95),
            OF_LENGTH * doublings(output.p95, 32.0) / 2.0,
        ),
        (
            format!("their lengths spread by {:.0} tokens", output.sigma),
            OF_SPREAD * doublings(output.sigma, 16.0) / 2.0,
        ),
        (
            format!("answers compress to {:.0} %", 100.0 * traits.compressed),
            OF_COMPRESSION * (0.4 - traits.compressed).clamp(-0.4, 0.4) / 0.2,
        ),
    ];
    if kind != TaskKind::Classify {
        reasons.push((
            format!("{:.0} % of the answers' words stand in the input", 100.0 * traits.copied),
            OF_COPYING * (traits.copied - 0.5) * 2.0,
        ));
    }
    if let Some(valid) = traits.schema_valid {
        reasons
            .push((format!("{:.0} % of the answers fit the schema", 100.0 * valid), OF_SCHEMA * (2.0 * valid - 1.0)));
    }
    if traits.numeric > 0.0 {
        reasons.push((
            format!("{:.0} % of the inputs ask for arithmetic", 100.0 * traits.numeric),
            OF_ARITHMETIC * traits.numeric,
        ));
    }
    if traits.tool_depth > 0.0 {
        reasons
            .push((format!("{:.1} tool results before the answer", traits.tool_depth), OF_DEPTH * traits.tool_depth));
    }
    let more = (rows.max(1) as f64 / USUAL_ROWS).log2().clamp(-MOST_DOUBLINGS, MOST_DOUBLINGS);
    reasons.push((format!("{rows} different texts with an answer to learn from"), OF_ROWS * more));
    if let Some(agreement) = traits.self_agreement.filter(|agreement| agreement.pairs > 0) {
        // Few pairs say little.
        let (agree, pairs) = (agreement.agree as f64, agreement.pairs as f64);
        let rate = (agree + 19.0) / (pairs + 20.0);
        reasons.push((
            format!("the LLM agrees with itself in {agree} of {pairs} repeats"),
            OF_DISAGREEMENT * (0.95 - rate).clamp(0.0, 0.5),
        ));
    }
    reasons.retain(|(_, moved)| moved.is_finite() && moved.abs() >= 0.005);
    reasons.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()).then_with(|| a.0.cmp(&b.0)));
    let odds = start + reasons.iter().map(|(_, moved)| moved).sum::<f64>();
    Prior { chance: 1.0 / (1.0 + (-odds).exp()), reasons }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discover::task::{Agreement, Spread};

    #[test]
    fn what_speaks_against_it_lowers_it() {
        let spread = |p95: f64, sigma: f64| Spread { p50: p95 / 2.0, p95, mean: p95 / 2.0, sigma };
        let short = Traits { output_tokens: spread(4.0, 1.0), compressed: 0.1, ..Traits::default() };
        let of = |traits: &Traits| prior(TaskKind::Classify, traits, 4000).chance;
        let base = of(&short);
        assert!(base > 0.8, "{base}");
        let long = Traits { output_tokens: spread(600.0, 200.0), compressed: 0.6, ..short.clone() };
        let doubtful = Agreement { pairs: 200, agree: 140, interval: [0.63, 0.76] };
        for worse in [
            long.clone(),
            Traits { numeric: 0.9, ..short.clone() },
            Traits { tool_depth: 3.0, ..short.clone() },
            Traits { self_agreement: Some(doubtful), ..short.clone() },
        ] {
            assert!(of(&worse) < base - 0.03, "{worse:?}");
        }
        let rows = [300, 1000, 4000].map(|rows| prior(TaskKind::Classify, &short, rows).chance);
        assert!(
            rows[0] < 0.15 && (0.3..0.5).contains(&rows[1]) && rows[2] == base,
            "as builds of 212 tasks passed: {rows:?}"
        );
        assert!(prior(TaskKind::Generate, &long, 1000).chance < 0.15);
        let nothing = prior(TaskKind::Extract, &Traits::default(), 0);
        assert!(
            nothing.chance > 0.0 && nothing.chance < 1.0 && nothing.reasons.iter().all(|(_, moved)| moved.is_finite())
        );
    }
}
