//! One task: its verdict and what that stands on, its money term by term, its volume and curves, some of its calls.

use std::fmt::Write as _;

use super::words::{badge, count, measured, percent, probability, range, sentence, thousands, usd, verdict_words};
use crate::{
    discover::{
        judge::{Trial, Verdict},
        report::{Entry, Roadmap},
        saving::{Count, Priced, chance::Evidence},
        task::TaskKind,
    },
    eval::html::{HEIGHT, LEFT, WIDTH, curve_figure, escape, label, plot},
};

pub(super) fn section(at: usize, task: &Entry, roadmap: &Roadmap) -> String {
    let mut html = format!(
        "<section class=\"task\" id=\"{}\"><h3>{}. {} {}</h3><p class=\"quiet\"><code>{}</code> · to {} · {}</p>",
        task.id,
        at + 1,
        escape(&task.name),
        badge(&task.verdict),
        task.id,
        task.kind.name(),
        escape(&task.kind_because)
    );
    html += &why(task);
    if let Some(priced) = &task.priced {
        html += &money(task, priced, roadmap);
    } else if let Some(why) = &task.unpriced {
        let _ = write!(html, "<p class=\"warn\">{}</p>", escape(why));
    }
    html += "<div class=\"plots\">";
    html += &volume(task);
    if let Some(trial) = &task.judgement.trial {
        if let Some(curve) = &trial.curve {
            html += &curve_figure(curve, "agreement", "validation");
        }
        html += &risk_coverage(trial, roadmap);
    }
    html += "</div>";
    html += &examples(task);
    if let Some(file) = &task.task_file {
        let _ = write!(
            html,
            "<h4>Build it</h4><pre>metier roadmap LOGS --write-tasks tasks\nmetier build tasks/{0}/task.toml</pre><details><summary>tasks/{0}/task.toml</summary><pre>{1}</pre></details>",
            escape(&task.name),
            escape(file)
        );
    }
    html + "</section>"
}

/// Verdict and what it stands on, in sentences.
pub(super) fn why(task: &Entry) -> String {
    let judgement = &task.judgement;
    let mut said: Vec<String> = Vec::new();
    match &task.verdict {
        // Said below.
        Verdict::NotYet { why, .. } if judgement.not_tried.as_ref() == Some(why) => {}
        Verdict::NotYet { why, .. } | Verdict::No { why } => said.push(format!("{}.", escape(&sentence(why)))),
        Verdict::Cheaper { by } => said.push(match &judgement.verdict {
            Verdict::Cheaper { .. } => format!("Something that needs no training is enough: {}.", escape(by)),
            // The trial speaks for a specialist, the prices do not.
            could => format!(
                "The trial says {}, and it does not pay beside what needs no training: {}.{}",
                escape(&verdict_words(could)),
                escape(by),
                task.priced.as_ref().map_or("", unasked)
            ),
        }),
        Verdict::Proven { coverage } | Verdict::Partial { coverage } => said.push(format!(
            "A specialist answers {} of the requests alone; at most {} of all requests are answered otherwise than the LLM would.",
            percent(*coverage),
            percent(judgement.epsilon),
        )),
    }
    if let Some(trial) = &judgement.trial {
        let of = match (task.kind, trial.labels) {
            (TaskKind::Classify, n) => format!(", {n} labels"),
            (TaskKind::Extract, n) => format!(", {n} fields"),
            (TaskKind::Generate, _) => String::new(),
        };
        said.push(format!(
            "Tried: rung <code>{}</code>{of}, made of {} rows ({} more chose its settings), measured on {} later ones. It agrees with the LLM on {} of them, all answered{}.",
            trial.rung.name(),
            trial.rows[0],
            trial.rows[1],
            trial.rows[2],
            measured(&trial.agreement),
            trial.likeness.as_ref().map_or_else(String::new, |like| {
                format!("; {} {}", escape(&like.metric.replace('_', " ")), measured(&like.value))
            })
        ));
        if let Some(ceiling) = &trial.ceiling {
            said.push(format!(
                "Asked the same again, the LLM agrees with itself in {}: no specialist can be shown to do better.",
                measured(ceiling)
            ));
        }
        if let Some([own, llm]) = &trial.accuracy {
            said.push(format!(
                "On rows with a right answer in the log it is right in {}, the LLM in {}.",
                measured(own),
                measured(llm)
            ));
        }
        if let Some([most, little]) = judgement.adjusted {
            said.push(format!(
                "p-values, corrected for all tasks that were tried (Holm): {} for most requests, {} for a few.",
                p_value(most),
                p_value(little)
            ));
        }
    } else if let Some(why) = &judgement.not_tried {
        said.push(format!("Not tried: {}. The chance to pass is a guess from its traffic:", escape(why)));
        let reasons: Vec<String> = judgement
            .prior
            .reasons
            .iter()
            .take(5)
            .map(|(what, moved)| format!("{} ({})", escape(what), format!("{moved:+.1}").replace('-', "−")))
            .collect();
        said.push(format!("{}.", reasons.join("; ")));
    }
    if let Some(why) = &task.place.why_not {
        said.push(format!("<b>Below the line: {}.</b>", escape(why)));
    }
    let mut html = format!("<p>{}</p>", said.join(" "));
    let notes: Vec<String> = task
        .notes
        .iter()
        .chain(judgement.trial.iter().flat_map(|trial| &trial.notes))
        .map(|note| format!("<li>{}</li>", escape(note)))
        .collect();
    if !notes.is_empty() {
        let _ = write!(html, "<ul class=\"quiet\">{}</ul>", notes.join(""));
    }
    html
}

/// A small number in the way that people read it.
fn p_value(p: f64) -> String {
    if p >= 0.001 { format!("{p:.3}") } else { format!("{p:.1e}") }
}

/// What was taken for granted of an option that nobody has tried.
fn unasked(priced: &Priced) -> &'static str {
    if priced.alternatives.iter().any(|other| other.works < 1.0) {
        " Nobody has asked a cheaper LLM yet: what it may do as well is assumed."
    } else {
        ""
    }
}

fn money(task: &Entry, priced: &Priced, roadmap: &Roadmap) -> String {
    let t = &priced.terms;
    let row = |name: &str, value: f64, note: String| {
        format!("<tr><td>{name}</td><td class=\"n\">{}</td><td class=\"quiet\">{note}</td></tr>", usd(value))
    };
    let judgement = &task.judgement;
    let stands_on = |count: &Count| match (&judgement.verdict, judgement.evidence) {
        (Verdict::Proven { .. } | Verdict::Partial { .. }, _) => format!("from {:.0} rows", count.n),
        (_, Evidence::Tried) => format!("of builds that were rehearsed, worth {:.0} rows", count.n),
        (_, Evidence::Traits) => format!("assumed, worth {:.0} rows", count.n),
    };
    let mut html =
        format!("<h4>What it would save over {:.0} weeks</h4><div class=\"scroll\"><table>", roadmap.horizon_weeks);
    html += &row(
        "cost at the LLM",
        priced.spend.mean,
        format!("{} calls at {}", count(priced.requests.mean), usd(priced.llm_usd)),
    );
    for other in &priced.alternatives {
        html += &row(
            &format!("− {}", other.alternative.words()),
            -other.saving.mean,
            format!(
                "80 %: {}; {:.2} days; works with a probability of {}",
                range(&other.saving),
                other.days,
                if other.works >= 1.0 { "1".to_owned() } else { probability(other.works) }
            ),
        );
    }
    html += &row(
        "LLM for what a specialist could answer, V·c_next",
        t.replaced,
        format!("at the next best option's {} a call", usd(priced.next_best_usd)),
    );
    html += &row(
        "− own machine, V·c_own",
        -t.own,
        format!(
            "{} a call while it works; {} hours; idle time is charged once for all",
            usd(priced.own_usd),
            thousands(priced.machine_hours.ceil())
        ),
    );
    html += &row(
        "− deferred to the LLM after all, V·f·c_next",
        -t.fallback,
        format!("{:.0} % of the calls ({})", 100.0 * judgement.deferred.mean(), stands_on(&judgement.deferred)),
    );
    html += &row(
        "− errors, V·e·L",
        -t.errors,
        format!(
            "answered alone and otherwise: {:.2} % of the calls ({})",
            100.0 * judgement.differs.mean(),
            stands_on(&judgement.differs)
        ),
    );
    html += &row("− labels", -t.labels, String::new());
    html += &row("− training, shadow, retraining", -(t.training + t.shadow + t.retraining), String::new());
    html += &row("− operations", -t.operations, String::new());
    html += &row("− labour", -t.labour, format!("{:.2} days in all, before the overrun", priced.days));
    html += &row("= S if it passes", priced.if_passed.mean, format!("80 %: {}", range(&priced.if_passed)));
    html += &format!(
        "<tr class=\"chosen\"><td>S with the chance to fail</td><td class=\"n\">{}</td><td>median {}; 80 %: {}; P(pass) {}, P(S&lt;0) {}</td></tr>",
        usd(priced.saving.mean),
        usd(priced.saving.p50),
        range(&priced.saving),
        probability(priced.chance.mean()),
        probability(priced.saving.p_loss)
    );
    html += "</table></div>";
    if priced.only_if_cheaper_fails {
        let _ = write!(
            html,
            "<p>A cheaper LLM is tried first. Where it does as well, a specialist would not pay and none is made; the terms above are of the other {:.0} % of the draws.</p>",
            100.0 * priced.made
        );
    }
    match priced.break_even_loss {
        Some(loss) => {
            let _ = write!(html, "<p>Nothing is left of it at a loss of {} an error.</p>", usd(loss));
        }
        None => html += "<p>It saves nothing at any loss per error.</p>",
    }
    html
}

pub(super) fn volume(task: &Entry) -> String {
    if task.weeks.len() < 2 {
        return String::new();
    }
    let most = task.weeks.iter().map(|week| week.1).max().unwrap_or(1).max(1) as f64;
    let n = task.weeks.len() as f64;
    let mut svg = String::new();
    for (at, (week, calls, cost)) in task.weeks.iter().enumerate() {
        let height = HEIGHT * *calls as f64 / most;
        let _ = write!(
            svg,
            "<rect class=\"total\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{height:.1}\"><title>{week}: {calls} calls, {}</title></rect>",
            LEFT + WIDTH * at as f64 / n + 1.0,
            10.0 + HEIGHT - height,
            (WIDTH / n - 2.0).max(0.5),
            usd(*cost)
        );
    }
    let (first, last) = (&task.weeks[0].0, &task.weeks[task.weeks.len() - 1].0);
    format!(
        "<figure><svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"calls by week\"><line class=\"axis\" x1=\"{LEFT}\" x2=\"{3}\" y1=\"{2}\" y2=\"{2}\"/>{svg}\
         <text x=\"{LEFT}\" y=\"{4}\">{first}</text><text x=\"{3}\" y=\"{4}\" text-anchor=\"end\">{last}</text><text x=\"{5}\" y=\"20\" text-anchor=\"end\">{6}</text></svg>\
         <figcaption>Calls by week, exact; {7} in all.</figcaption></figure>",
        LEFT + WIDTH + 14.0,
        HEIGHT + 48.0,
        HEIGHT + 10.0,
        LEFT + WIDTH,
        HEIGHT + 28.0,
        LEFT - 6.0,
        count(most),
        thousands(task.total.calls as f64)
    )
}

pub(super) fn risk_coverage(trial: &Trial, roadmap: &Roadmap) -> String {
    let epsilon = roadmap.assumed("epsilon").unwrap_or(0.02);
    let y_max = (trial.risk_coverage.iter().map(|point| point[1]).fold(2.0 * epsilon, f64::max) * 1.05).min(1.0);
    let (x, y) = (|v: f64| LEFT + WIDTH * v, |v: f64| 10.0 + HEIGHT * (1.0 - v / y_max));
    let line: Vec<String> = trial.risk_coverage.iter().map(|[c, r]| format!("{:.1},{:.1}", x(*c), y(*r))).collect();
    let inside = format!(
        "<line class=\"bound\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{1:.1}\" y2=\"{1:.1}\"/><text class=\"bad\" x=\"{2}\" y=\"{3:.1}\">ε = {4}</text><polyline class=\"curve\" points=\"{5}\"/>",
        LEFT + WIDTH,
        y(epsilon),
        LEFT + 6.0,
        y(epsilon) - 5.0,
        label(epsilon),
        line.join(" ")
    );
    plot(
        1.0,
        y_max,
        "answered alone",
        "answered otherwise than the LLM",
        &inside,
        &format!(
            "Share of {} measured rows answered alone and otherwise than the LLM, by the share answered alone, surest first. The dashed line is the bound.",
            trial.rows[2]
        ),
    )
}

pub(super) fn examples(task: &Entry) -> String {
    let mut html = String::new();
    if let Some(template) = &task.template {
        let _ = write!(html, "<h4>The prompt that its calls share</h4><pre>{}</pre>", escape(template));
    }
    if task.examples.is_empty() {
        return html + "<p class=\"quiet\">The log holds no texts of this task.</p>";
    }
    let _ = write!(
        html,
        "<h4>Some of its calls, what has the form of personal data masked</h4><div class=\"scroll\"><table class=\"io\"><tr><th>row</th><th>asked</th><th>answered</th></tr>"
    );
    for example in &task.examples {
        let _ = write!(
            html,
            "<tr><td><code>{}</code><br><span class=\"quiet\">{}</span></td><td>{}</td><td>{}</td></tr>",
            escape(&example.id),
            escape(&example.place),
            escape(&example.input),
            escape(&example.output)
        );
    }
    let _ = write!(
        html,
        "</table></div><p class=\"quiet\">{} examples of {} calls with texts; all of them by id in <code>examples.csv</code>; <a href=\"#checking\">all rows of its calls</a> under <code>{}</code>. Names, streets and dates of birth have no form and are not masked.</p>",
        thousands(task.sampling.examples as f64),
        thousands(task.sampling.with_text as f64),
        task.id
    );
    html
}
