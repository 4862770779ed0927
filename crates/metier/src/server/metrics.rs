//! Counters for `/metrics`, in the Prometheus text format 0.0.4. Labels come from small fixed sets, never from a client's words.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Upper bounds of the time histogram, in seconds. 15 ms is the promise for a classification.
const BUCKETS_S: [f64; 12] = [0.002, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0, 120.0];

/// Paths that are counted by name; everything else is `other`.
const ROUTES: [&str; 7] =
    ["/v1/chat/completions", "/v1/embeddings", "/v1/models", "/admin/v1/receipts", "/metrics", "/healthz", "/readyz"];

/// What the server has done since it started.
#[derive(Debug, Default)]
pub struct Metrics {
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    in_flight: i64,
    /// (route, status) → responses
    responses: BTreeMap<(&'static str, u16), u64>,
    /// route → histogram
    seconds: BTreeMap<&'static str, Histogram>,
    /// (decision, escalated) → answers
    decisions: BTreeMap<(String, String), u64>,
    prompt_tokens: u64,
    completion_tokens: u64,
    cost_picousd: u128,
}

#[derive(Debug, Default)]
struct Histogram {
    /// Not cumulative; the last bucket is everything above.
    buckets: [u64; BUCKETS_S.len() + 1],
    sum_s: f64,
}

/// One answered request, for the counters.
#[derive(Clone, Debug)]
pub struct Answered<'a> {
    /// Value of `x-metier-decision`.
    pub decision: &'a str,
    /// Value of `x-metier-escalated`.
    pub escalated: &'a str,
    /// Tokens read.
    pub prompt_tokens: u64,
    /// Tokens written.
    pub completion_tokens: u64,
    /// Cost, where a price is known.
    pub cost_picousd: Option<u64>,
}

/// Counts a request as running until it is dropped.
pub struct InFlight<'a>(&'a Metrics);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.counts().in_flight -= 1;
    }
}

impl Metrics {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        // Counters stay usable whatever happened to another thread.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request begins.
    pub fn enter(&self) -> InFlight<'_> {
        self.counts().in_flight += 1;
        InFlight(self)
    }

    /// The label of a path.
    pub fn route(&self, path: &str) -> &'static str {
        let is =
            |route: &&&str| path == **route || path.strip_prefix(**route).is_some_and(|rest| rest.starts_with('/'));
        ROUTES.iter().find(is).copied().unwrap_or("other")
    }

    /// A response's head is ready. For a stream this is the time to the first byte.
    pub fn answered(&self, route: &'static str, status: u16, elapsed: Duration) {
        let mut counts = self.counts();
        *counts.responses.entry((route, status)).or_default() += 1;
        let histogram = counts.seconds.entry(route).or_default();
        let seconds = elapsed.as_secs_f64();
        let bucket = BUCKETS_S.iter().position(|bound| seconds <= *bound).unwrap_or(BUCKETS_S.len());
        histogram.buckets[bucket] += 1;
        histogram.sum_s += seconds;
    }

    /// A decision is final.
    pub fn decided(&self, answered: &Answered<'_>) {
        let mut counts = self.counts();
        *counts.decisions.entry((answered.decision.to_owned(), answered.escalated.to_owned())).or_default() += 1;
        counts.prompt_tokens += answered.prompt_tokens;
        counts.completion_tokens += answered.completion_tokens;
        counts.cost_picousd += u128::from(answered.cost_picousd.unwrap_or(0));
    }

    /// The page. `specialists` and `adapters` are those served now, `resident_bytes` what the process holds in memory, where known.
    pub fn render(&self, specialists: usize, adapters: usize, resident_bytes: Option<u64>) -> String {
        let counts = self.counts();
        let mut page = String::new();
        let head = |page: &mut String, name: &str, kind: &str, help: &str| {
            let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}");
        };
        head(&mut page, "metier_requests_in_flight", "gauge", "Requests being worked on.");
        let _ = writeln!(page, "metier_requests_in_flight {}", counts.in_flight);
        head(&mut page, "metier_responses_total", "counter", "Responses by route and status.");
        for ((route, status), n) in &counts.responses {
            let _ = writeln!(page, "metier_responses_total{{route=\"{route}\",status=\"{status}\"}} {n}");
        }
        head(&mut page, "metier_response_seconds", "histogram", "Time to the response's head, by route.");
        for (route, histogram) in &counts.seconds {
            let mut below = 0;
            for (bound, n) in BUCKETS_S.iter().zip(&histogram.buckets) {
                below += n;
                let _ = writeln!(page, "metier_response_seconds_bucket{{route=\"{route}\",le=\"{bound}\"}} {below}");
            }
            let total: u64 = histogram.buckets.iter().sum();
            let _ = writeln!(page, "metier_response_seconds_bucket{{route=\"{route}\",le=\"+Inf\"}} {total}");
            let _ = writeln!(page, "metier_response_seconds_sum{{route=\"{route}\"}} {}", histogram.sum_s);
            let _ = writeln!(page, "metier_response_seconds_count{{route=\"{route}\"}} {total}");
        }
        head(&mut page, "metier_decisions_total", "counter", "Answered requests by decision and escalation.");
        for ((decision, escalated), n) in &counts.decisions {
            let _ = writeln!(page, "metier_decisions_total{{decision=\"{decision}\",escalated=\"{escalated}\"}} {n}");
        }
        head(&mut page, "metier_tokens_total", "counter", "Tokens read and written.");
        let _ = writeln!(page, "metier_tokens_total{{direction=\"prompt\"}} {}", counts.prompt_tokens);
        let _ = writeln!(page, "metier_tokens_total{{direction=\"completion\"}} {}", counts.completion_tokens);
        head(&mut page, "metier_cost_usd_total", "counter", "Cost of answered requests, where a price is known.");
        let _ = writeln!(page, "metier_cost_usd_total {}", counts.cost_picousd as f64 / 1e12);
        head(&mut page, "metier_specialists", "gauge", "Specialists being served.");
        let _ = writeln!(page, "metier_specialists {specialists}");
        head(&mut page, "metier_adapters", "gauge", "Adapters of the decoder being served.");
        let _ = writeln!(page, "metier_adapters {adapters}");
        if let Some(bytes) = resident_bytes {
            head(&mut page, "process_resident_memory_bytes", "gauge", "Resident memory.");
            let _ = writeln!(page, "process_resident_memory_bytes {bytes}");
        }
        page
    }
}

/// Resident memory of a process (`self` or its id) in bytes; `None` where there is no `/proc`.
pub fn resident_bytes(process: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().strip_suffix("kB")?.trim();
    Some(kib.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_adds_up() {
        let metrics = Metrics::default();
        let running = metrics.enter();
        for ms in [1, 12, 40, 999_999] {
            metrics.answered("/v1/models", 200, Duration::from_millis(ms));
        }
        metrics.decided(&Answered {
            decision: "specialist",
            escalated: "no",
            prompt_tokens: 7,
            completion_tokens: 1,
            cost_picousd: Some(300_000),
        });
        let page = metrics.render(4, 2, None);
        for line in [
            "metier_requests_in_flight 1",
            "metier_responses_total{route=\"/v1/models\",status=\"200\"} 4",
            "metier_response_seconds_bucket{route=\"/v1/models\",le=\"0.015\"} 2",
            "metier_response_seconds_bucket{route=\"/v1/models\",le=\"+Inf\"} 4",
            "metier_decisions_total{decision=\"specialist\",escalated=\"no\"} 1",
            "metier_cost_usd_total 0.0000003",
            "metier_specialists 4",
            "metier_adapters 2",
        ] {
            assert!(page.lines().any(|found| found == line), "`{line}` is missing in\n{page}");
        }
        drop(running);
        assert!(metrics.render(4, 2, None).contains("metier_requests_in_flight 0"));
    }

    #[test]
    fn labels_come_from_a_fixed_set() {
        let metrics = Metrics::default();
        assert_eq!(metrics.route("/v1/models/banking"), "/v1/models");
        assert_eq!(metrics.route("/v1/modelsx"), "other");
        assert_eq!(metrics.route("/evil\"}"), "other");
    }
}
