//! The demo's words and its result line.

use std::{fmt, path::Path, time::Duration};

use metier_train::BuildOutcome;
use serde::Serialize;

use super::tally::{Asked, CertificateCheck, Counts, Promise, local_latency_ms};

/// Longest request that is offered to be tried, in characters.
const MAX_TRY_CHARS: usize = 110;

/// One task as the report knows it.
#[derive(Clone, Debug)]
pub(super) struct Built {
    pub(super) name: &'static str,
    /// ε and δ; `None` without a certificate.
    pub(super) bound: Option<(f64, f64)>,
    pub(super) rows_needed: Option<u64>,
    pub(super) may_leave: bool,
}

/// Texts far from every task.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct NoneFits {
    pub(super) asked: u64,
    pub(super) refused: u64,
}

/// Proofs fetched over HTTP and checked against the public key.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Receipts {
    pub(super) verified: u64,
    pub(super) failed: u64,
}

/// A task without a certificate: it answers nothing itself.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Uncertified {
    name: &'static str,
    /// Always `null`.
    certificate: Option<()>,
    rows_needed: Option<u64>,
}

/// One element of `certificates`.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Certified {
    Checked(CertificateCheck),
    Refused(Uncertified),
}

/// One task's counts.
#[derive(Clone, Debug, Serialize)]
pub(super) struct TaskFigures {
    name: &'static str,
    may_leave: bool,
    #[serde(flatten)]
    counts: Counts,
}

/// Requests sent as `auto`.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct AutoFigures {
    requests: u64,
    /// Answered, by whomever, under the task that the row belongs to.
    right_task: u64,
    /// Refused because no task fits.
    none_fits: u64,
}

/// The result line: fields of DESIGN.md, "CLI", and more.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Figures {
    specialists: usize,
    requests: u64,
    answered_locally: u64,
    /// Everything else: passed on, or refused.
    deferred: u64,
    answered_by_llm: u64,
    refused: u64,
    /// Requests of tasks whose texts must stay inside that went outside all the same.
    pub(super) leaked: u64,
    /// Of what was answered locally.
    accuracy: Option<f64>,
    accuracy_interval: Option<[f64; 2]>,
    /// Of what was answered by anyone.
    accuracy_answered: Option<f64>,
    accuracy_answered_interval: Option<[f64; 2]>,
    certificates: Vec<Certified>,
    p50_ms: Option<f64>,
    p95_ms: Option<f64>,
    cost_usd: f64,
    /// Answers without a price; their cost is not in `cost_usd`.
    unpriced: u64,
    /// The same requests, all sent to an LLM at list price.
    llm_cost_usd: f64,
    receipts_verified: u64,
    pub(super) receipts_failed: u64,
    /// Entries of the log, verified against its signed head; `null` when it does not verify.
    log_entries: Option<u64>,
    auto: AutoFigures,
    none_fits: NoneFits,
    tasks: Vec<TaskFigures>,
    seconds: f64,
}

impl Figures {
    pub(super) fn of(
        built: &[Built],
        rows: &[Asked],
        none_fits: NoneFits,
        receipts: Receipts,
        log_entries: Option<u64>,
        llm_cost_usd: f64,
        elapsed: Duration,
    ) -> Self {
        let counts = Counts::of(rows.iter());
        let certificate = |(task_idx, task): (usize, &Built)| {
            let promise = Promise { name: task.name, bound: task.bound };
            match CertificateCheck::of(&promise, task_idx, rows) {
                Some(check) => Certified::Checked(check),
                None => {
                    let rows_needed = task.rows_needed;
                    Certified::Refused(Uncertified { name: task.name, certificate: None, rows_needed })
                }
            }
        };
        let latency = local_latency_ms(rows);
        let auto = || rows.iter().filter(|row| row.auto);
        Self {
            specialists: built.len(),
            requests: counts.requests,
            answered_locally: counts.answered_locally,
            deferred: counts.requests - counts.answered_locally,
            answered_by_llm: counts.answered_by_llm,
            refused: counts.refused,
            leaked: rows.iter().filter(|row| !built[row.task_idx].may_leave && row.is_llm()).count() as u64,
            accuracy: counts.local_accuracy().map(|(value, _)| value),
            accuracy_interval: counts.local_accuracy().map(|(_, interval)| interval),
            accuracy_answered: counts.accuracy().map(|(value, _)| value),
            accuracy_answered_interval: counts.accuracy().map(|(_, interval)| interval),
            certificates: built.iter().enumerate().map(certificate).collect(),
            p50_ms: latency.map(|(p50, _)| rounded(p50, 1e3)),
            p95_ms: latency.map(|(_, p95)| rounded(p95, 1e3)),
            cost_usd: rounded(rows.iter().filter_map(|row| row.reply.cost_usd).sum(), 1e9),
            unpriced: rows.iter().filter(|row| row.reply.cost_usd.is_none()).count() as u64,
            llm_cost_usd: rounded(llm_cost_usd, 1e9),
            receipts_verified: receipts.verified,
            receipts_failed: receipts.failed,
            log_entries,
            auto: AutoFigures {
                requests: auto().count() as u64,
                right_task: auto().filter(|row| row.reply.task.as_deref() == Some(built[row.task_idx].name)).count()
                    as u64,
                none_fits: auto().filter(|row| row.reply.stage == "match").count() as u64,
            },
            none_fits,
            tasks: built
                .iter()
                .enumerate()
                .map(|(task_idx, task)| TaskFigures {
                    name: task.name,
                    may_leave: task.may_leave,
                    counts: Counts::of(rows.iter().filter(|row| row.task_idx == task_idx)),
                })
                .collect(),
            seconds: rounded(elapsed.as_secs_f64(), 1e3),
        }
    }

    /// No certificate is broken.
    pub(super) fn all_held(&self) -> bool {
        self.certificates.iter().all(|certified| match certified {
            Certified::Checked(check) => check.held,
            Certified::Refused(_) => true,
        })
    }
}

/// Prints for people.
pub(super) struct Say {
    /// Standard output belongs to the result line.
    pub(super) to_stderr: bool,
}

impl Say {
    /// A line of its own.
    pub(super) fn line(&self, text: fmt::Arguments<'_>) {
        self.plain(format_args!("  {text}"));
    }

    fn plain(&self, text: fmt::Arguments<'_>) {
        if self.to_stderr { eprintln!("{text}") } else { println!("{text}") }
    }

    /// What comes next.
    pub(super) fn stage(&self, title: &str) {
        self.plain(format_args!("\n{title}"));
    }

    /// One specialist, built.
    pub(super) fn built(&self, outcome: &BuildOutcome, may_leave: bool) {
        let train = outcome.rows.get("train").copied().unwrap_or(0);
        self.line(format_args!(
            "{:20} {train} rows → {}: {} {} on {} held-out rows, {:.1} s",
            outcome.name,
            outcome.rung.name(),
            outcome.metric,
            with_interval(Some((outcome.value, outcome.interval))),
            outcome.n,
            outcome.seconds
        ));
        let leaves = if may_leave { "deferred texts may leave" } else { "deferred texts stay inside" };
        match (&outcome.certificate, outcome.rows_needed) {
            (Some(certificate), _) => self.line(format_args!(
                "{:20} certificate: accepts from score {:.3}, wrong alone in ≤ {} of requests with {} confidence; {leaves}",
                "",
                certificate.threshold,
                percent(certificate.epsilon),
                percent(1.0 - certificate.delta)
            )),
            (None, Some(rows)) => {
                self.line(format_args!("{:20} no certificate: needs about {rows} calibration rows, so it defers everything", ""));
            }
            (None, None) => self.line(format_args!("{:20} no certificate, and more rows would not help: it defers everything", "")),
        }
    }

    /// The tables.
    pub(super) fn figures(&self, figures: &Figures) {
        self.line(format_args!(
            "{:20} {:>8} {:>11} {:>9} {:>8}   {}",
            "", "requests", "specialist", "to LLM", "refused", "accuracy where the specialist answered"
        ));
        for task in &figures.tasks {
            self.counts(task.name, &task.counts);
        }
        let all = Counts {
            requests: figures.requests,
            answered_locally: figures.answered_locally,
            right_locally: figures.tasks.iter().map(|task| task.counts.right_locally).sum(),
            answered_by_llm: figures.answered_by_llm,
            right_by_llm: figures.tasks.iter().map(|task| task.counts.right_by_llm).sum(),
            refused: figures.refused,
        };
        self.counts("in all", &all);
        self.line(format_args!(
            "the stand-in named the right label {} times in {}: a large model goes in its place",
            all.right_by_llm, all.answered_by_llm
        ));
        self.line(format_args!(
            "auto: {} of {} requests met their own task, {} fitted none; of {} texts far from every task {} were refused",
            figures.auto.right_task,
            figures.auto.requests,
            figures.auto.none_fits,
            figures.none_fits.asked,
            figures.none_fits.refused
        ));

        let kept: Vec<&TaskFigures> = figures.tasks.iter().filter(|task| !task.may_leave).collect();
        let kept_requests: u64 = kept.iter().map(|task| task.counts.requests).sum();
        self.line(format_args!(
            "privacy: {} of {kept_requests} texts of tasks that keep them inside went outside; `auto` lets nothing out where any task keeps its texts",
            figures.leaked
        ));

        self.stage("Certificates against the held-out rows (rows asked by name)");
        for certified in &figures.certificates {
            match certified {
                Certified::Checked(check) => self.line(format_args!(
                    "{:20} {}: wrong alone {} of {} rows, bound ε = {} (δ = {}); answered {} alone",
                    check.name,
                    if check.held { "held" } else { "BROKEN" },
                    percent(check.test_loss),
                    check.n,
                    percent(check.epsilon),
                    percent(check.delta),
                    percent(check.coverage)
                )),
                Certified::Refused(refused) => {
                    self.line(format_args!("{:20} none: everything was deferred", refused.name))
                }
            }
        }

        self.stage("Speed, cost, record");
        if let (Some(p50), Some(p95)) = (figures.p50_ms, figures.p95_ms) {
            self.line(format_args!(
                "answers of specialists: p50 {p50:.1} ms, p95 {p95:.1} ms end to end, both log entries on disk"
            ));
        }
        self.line(format_args!(
            "${:.4} for all requests, against ${:.4} for asking an LLM every time ($2.50 in, $10 out per million tokens: a list price, for illustration)",
            figures.cost_usd, figures.llm_cost_usd
        ));
        let failed = match figures.receipts_failed {
            0 => String::new(),
            n => format!(", {n} DO NOT VERIFY"),
        };
        self.line(format_args!(
            "{} of {} receipts verified against the public key alone{failed}",
            figures.receipts_verified, figures.requests
        ));
        if let Some(entries) = figures.log_entries {
            self.line(format_args!("the log of {entries} entries verifies against its last signed head"));
        }
        self.line(format_args!("{:.0} s in all", figures.seconds));
    }

    fn counts(&self, name: &str, counts: &Counts) {
        self.line(format_args!(
            "{name:20} {:>8} {:>11} {:>9} {:>8}   {}",
            counts.requests,
            format!(
                "{} ({})",
                counts.answered_locally,
                percent(counts.answered_locally as f64 / counts.requests.max(1) as f64)
            ),
            counts.answered_by_llm,
            counts.refused,
            with_interval(counts.local_accuracy())
        ));
    }

    /// Requests to try by hand, one of a kind.
    pub(super) fn invite(&self, url: &str, names: &[&str], rows: &[Asked], state: &Path) {
        self.stage("The server stays up until Ctrl-C. Try:");
        let simple = |row: &&Asked| row.text.chars().count() <= MAX_TRY_CHARS && !row.text.contains(['\'', '\n']);
        let pick = |wanted: &dyn Fn(&Asked) -> bool| rows.iter().filter(simple).find(|row| wanted(row));
        let ask = |what: &str, model: &str, row: Option<&Asked>| {
            if let Some(row) = row {
                let text = serde_json::to_string(&row.text).expect("a text is JSON");
                self.line(format_args!("# {what}"));
                self.plain(format_args!(
                    "curl -si {url}/v1/chat/completions -H 'content-type: application/json' -d '{{\"model\":\"{model}\",\"messages\":[{{\"role\":\"user\",\"content\":{text}}}]}}'"
                ));
            }
        };
        let named = |row: Option<&Asked>| row.map_or("", |row| names[row.task_idx]);
        let answered = pick(&|row| !row.auto && row.is_local() && row.is_right());
        ask("a specialist answers; the decision is in the x-metier-* headers", named(answered), answered);
        ask(
            "nobody named: the nearest task answers",
            "auto",
            pick(&|row| row.auto && row.is_local() && row.is_right()),
        );
        let deferred = pick(&|row| !row.auto && row.reply.escalated == "llm");
        ask("unsure, and the task's texts may leave: the LLM is asked", named(deferred), deferred);
        let denied = pick(&|row| !row.auto && row.reply.escalated == "denied");
        ask("unsure, and the task's texts stay inside: refused, with no guess", named(denied), denied);
        if let Some(receipt) = answered.and_then(|row| row.reply.receipt.as_deref()) {
            self.line(format_args!(
                "# the receipt of an answer: verify it anywhere, against {}",
                state.join(metier_gateway::audit::PUBLIC_KEY_FILE).display()
            ));
            self.plain(format_args!("curl -s {url}/admin/v1/receipts/{receipt}"));
        }
        self.line(format_args!("# from Python: openai.OpenAI(base_url=\"{url}/v1\", api_key=\"none\")"));
    }
}

/// Without digits that only binary fractions bring.
fn rounded(value: f64, steps: f64) -> f64 {
    (value * steps).round() / steps
}

fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if (percent - percent.round()).abs() < 1e-9 { format!("{percent:.0} %") } else { format!("{percent:.1} %") }
}

/// `92.4 % [90.1, 94.2]`, at 95 %.
fn with_interval(share: Option<(f64, [f64; 2])>) -> String {
    match share {
        Some((value, [low, high])) => format!("{:.1} % [{:.1}, {:.1}]", value * 100.0, low * 100.0, high * 100.0),
        None => "–".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_line_has_the_fields_that_scripts_read() {
        let built = |name, bound| Built { name, bound, rows_needed: bound.is_none().then_some(200), may_leave: true };
        let built = [built("certified", Some((0.05, 0.05))), built("refused", None)];
        let figures = Figures::of(
            &built,
            &[],
            NoneFits { asked: 1, refused: 1 },
            Receipts::default(),
            Some(3),
            0.1,
            Duration::from_secs(1),
        );
        let line = serde_json::to_value(&figures).expect("figures are plain data");
        let fields = [
            "specialists",
            "requests",
            "answered_locally",
            "deferred",
            "accuracy",
            "accuracy_interval",
            "certificates",
            "p50_ms",
            "p95_ms",
            "cost_usd",
            "llm_cost_usd",
            "receipts_verified",
        ];
        for field in fields {
            assert!(line.get(field).is_some(), "DESIGN.md names `{field}`");
        }
        for field in ["name", "epsilon", "delta", "n", "coverage", "test_loss", "held"] {
            assert!(line["certificates"][0].get(field).is_some(), "DESIGN.md names `{field}` of a certificate");
        }
        assert!(line["certificates"][1]["certificate"].is_null() && line["certificates"][1]["rows_needed"] == 200);
        assert!(figures.all_held(), "without rows nothing is broken");
    }

    #[test]
    fn shares_are_written_for_people() {
        assert_eq!(percent(0.05), "5 %");
        assert_eq!(percent(0.123), "12.3 %");
        assert_eq!(with_interval(Some((0.924, [0.901, 0.942]))), "92.4 % [90.1, 94.2]");
        assert_eq!(with_interval(None), "–");
    }
}
