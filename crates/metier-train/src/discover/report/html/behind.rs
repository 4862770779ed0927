//! What stands behind the page: formula, assumptions, what was read, and how anybody adds it up again.

use std::fmt::Write as _;

use super::words::thousands;
use crate::{discover::report::Roadmap, eval::html::escape};

pub(super) fn formula(roadmap: &Roadmap) -> String {
    let brier = match &roadmap.brier {
        Some(brier) => format!(
            "Of {} forecasts that were put to the test here the Brier score is {:.3} [{:.3}, {:.3}]; forecasting the share that passed every time would have {:.3}.",
            brier.n, brier.score, brier.interval[0], brier.interval[1], brier.of_base_rate
        ),
        None => {
            format!("{} forecasts were put to the test here; how good they are is told from 30 on.", roadmap.attempts)
        }
    };
    format!(
        "<h2 id=\"formula\">How it is computed</h2><p><code>S = V·[c_next − c_own − f·c_next − e·L] − (labels + training + shadow·V_s·c_own + retraining·k + operations + labour)</code></p>\
         <p>V: requests while the specialist is live. c_next: cost of a request after everything that pays without training (cache of answers, prompt cache, cheaper LLM, batch API, in this order). \
         c_own: seconds of the machine. f: share deferred. e: share answered alone and wrong where the LLM was right. L: loss of one such error. S is earned with probability P(pass); else what was spent to find out is lost.</p>\
         <p>2,000 draws, seed {}: of the weeks in blocks (a history that might have been, then a future of it), of shares from the rows that were counted, of the overrun, of passing. All tasks share the weeks, the overrun and the growth, so totals are no sums of quantiles. {brier}</p>",
        roadmap.seed
    )
}

pub(super) fn assumptions(roadmap: &Roadmap) -> String {
    let mut html = "<h2 id=\"assumptions\">What is assumed</h2><p>Everything that no log says. <code>metier roadmap --assumptions FILE</code> replaces any of it; lines in bold are yours.</p>\
                    <div class=\"scroll\"><table><tr><th>name</th><th class=\"n\">value</th><th>unit</th><th>what</th><th>where it comes from</th></tr>"
        .to_owned();
    for stated in &roadmap.assumptions {
        let class = if stated.by_user { " class=\"chosen\"" } else { "" };
        let _ = write!(
            html,
            "<tr{class}><td><code>{}</code></td><td class=\"n\">{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            stated.name,
            stated.value,
            escape(&stated.unit),
            escape(&stated.what),
            escape(&stated.source)
        );
    }
    html + "</table></div>"
}

pub(super) fn reading(roadmap: &Roadmap) -> String {
    let reading = &roadmap.reading;
    let mut html = format!(
        "<h2 id=\"reading\">What was read</h2><p>{} rows of {} files; {} became calls.</p><div class=\"scroll\"><table><tr><th>rows</th><th>what</th><th>where</th></tr>",
        thousands(reading.rows as f64),
        reading.files,
        thousands(reading.calls as f64)
    );
    let row = |n: u64, what: &str, places: &[String]| {
        format!(
            "<tr><td class=\"n\">{}</td><td>{}</td><td>{}</td></tr>",
            thousands(n as f64),
            escape(what),
            escape(&places.join(", "))
        )
    };
    for (format, n) in &reading.formats {
        html += &row(*n, &format!("read as {format}"), &[]);
    }
    for (why, skipped) in &reading.skipped {
        html += &row(skipped.rows, &format!("skipped: {why}"), &skipped.places);
    }
    for (why, files) in &reading.files_skipped {
        html += &row(files.rows, &format!("files not read: {why}"), &files.places);
    }
    for (what, odd) in &reading.odd {
        html += &row(odd.rows, &format!("odd, and counted: {what}"), &odd.places);
    }
    for (model, n) in &reading.unpriced {
        html += &row(*n, &format!("unpriced: `{model}` has no price at the time of the call"), &[]);
    }
    html += "</table></div><ul>";
    for note in &reading.notes {
        let _ = write!(html, "<li>{}</li>", escape(note));
    }
    html + "</ul>" + &checking(roadmap)
}

/// How anybody finds the rows behind a number.
pub(super) fn checking(roadmap: &Roadmap) -> String {
    let Some(rows) = &roadmap.rows_file else {
        return "<h2 id=\"checking\">Which rows a number comes from</h2><p>No file of rows was written (<code>--no-trace</code>).</p>".to_owned();
    };
    format!(
        "<h2 id=\"checking\">Which rows a number comes from</h2><p><code>{0}</code> has a line for every row of the logs, with the log's own id of it, its file and line, the task that it was counted in and by what, \
         its tokens, the price that was taken and its cost, or why it does not count. Calls, tokens, costs and weeks above are sums over these lines; \
         <code>examples.csv</code> has the rows that examples and trials stand on.</p>\
         <pre>python3 -c 'import csv, gzip\nrows = [row for row in csv.DictReader(gzip.open(\"{0}\", \"rt\")) if row[\"task_id\"] == \"{1}\"]\nprint(len(rows), sum(int(row[\"cost_picousd\"] or 0) for row in rows) / 1e12)'</pre>",
        escape(rows),
        roadmap.tasks.first().map_or("t-…", |task| task.id.as_str())
    )
}
