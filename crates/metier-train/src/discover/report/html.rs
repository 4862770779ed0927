//! `roadmap.html`: one file, nothing fetched, no script; light, dark and on paper.

mod behind;
mod figures;
mod task;
mod words;

use std::fmt::Write as _;

use metier_traffic::price::date_of;

use self::words::{about, badge, count, of, range};
pub use self::words::{probability, usd, verdict_words};
use super::{Entry, Roadmap};
use crate::{
    discover::saving::{Priced, chance::Evidence},
    eval::html::{STYLE, escape},
};

/// A log of fewer weeks is no history: the first screen says so.
const FEW_WEEKS: f64 = 4.0;
/// Tasks with a section of their own.
const MAX_SECTIONS: usize = 60;
/// Colours of verdicts, and what only this page has.
const OWN_STYLE: &str = "
:root{--proven:#2f7d5b;--partial:#2d5d8c;--cheaper:#9a6b1f;--notyet:#8a8f98;--none:#b4472f}
@media(prefers-color-scheme:dark){:root{--proven:#5fae86;--partial:#6a9fd0;--cheaper:#d0a050;--notyet:#80868f;--none:#d9785f}}
main{max-width:1240px}td.n,th.n{white-space:nowrap;padding-left:10px}.roadmap td{font-size:13.5px}.roadmap td,.roadmap th{padding-right:6px}.roadmap td.n,.roadmap th.n{padding-left:6px}.roadmap td:nth-child(2){min-width:170px}.roadmap td.inside{white-space:normal;min-width:96px}.roadmap .quiet{font-size:12.5px}
.plots{grid-template-columns:repeat(auto-fill,minmax(min(340px,100%),1fr))}.headline{font-size:22px;line-height:1.4;margin:18px 0 6px}.headline b{font-variant-numeric:tabular-nums}.warn{border-left:4px solid var(--bad);padding:4px 0 4px 14px;margin:14px 0}
.badge{display:inline-block;border-radius:9px;padding:1px 9px;font-size:13px;font-weight:650;color:#fff;white-space:nowrap}
.proven{background:var(--proven)}.partial{background:var(--partial)}.cheaper{background:var(--cheaper)}.notyet{background:var(--notyet)}.none{background:var(--none)}
rect.proven{fill:var(--proven)}rect.partial{fill:var(--partial)}rect.cheaper{fill:var(--cheaper)}rect.notyet{fill:var(--notyet)}rect.none{fill:var(--none)}rect.rest{fill:var(--line)}
svg text.on{fill:#fff;font-weight:600}svg text.fg{fill:var(--fg)}rect.up{fill:var(--good)}rect.down{fill:var(--bad)}rect.total{fill:var(--main)}rect.soft{fill:var(--soft)}
.wide{margin:0 0 18px}.line td{border-top:3px solid var(--bad);color:var(--bad);font-weight:650}.below td{color:var(--mute)}
pre{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px 14px;overflow-x:auto;font-size:13px;line-height:1.45;white-space:pre-wrap;word-break:break-word}
.task{border-top:1px solid var(--line);margin-top:44px;padding-top:4px}.task h3{font-size:19px;margin:18px 0 4px}.task h4{font-size:15px;margin:22px 0 6px;color:var(--mute)}
.io{font-size:13.5px}.io td{max-width:420px;word-break:break-word}details{margin:10px 0}summary{cursor:pointer;color:var(--main)}a{color:var(--main)}.quiet{color:var(--mute);font-size:13.5px}
@media screen and (max-width:700px){main{padding:24px 16px 60px}figure.wide{overflow-x:auto}figure.wide svg{width:760px}.losses td.n{white-space:normal}.losses td span{white-space:nowrap}.headline{font-size:19px}\
.roadmap tr{display:block;border-bottom:1px solid var(--line);padding:10px 0}.roadmap tr.head{display:none}.roadmap td,.roadmap td.n{display:flex;justify-content:space-between;gap:14px;border:0;padding:2px 0;text-align:right}.roadmap tr.line td{display:block;text-align:left;padding-top:8px}\
.roadmap td::before{content:attr(data-of);color:var(--mute);text-align:left}.roadmap td:first-child{display:none}.roadmap td:nth-child(2){display:block;text-align:left;font-size:15px}.roadmap tr.line td:first-child{display:block}}
@media print{:root{--proven:#14532d;--partial:#123c66;--cheaper:#6b4a10;--notyet:#555;--none:#8a1c0f}@page{size:A4 landscape;margin:12mm}main{max-width:none}.tiles{grid-template-columns:repeat(auto-fit,minmax(130px,1fr))}.roadmap{break-inside:avoid}#tasks{break-before:page}.task{break-before:page;border:0;margin-top:0}#tasks+.task{break-before:auto}pre{white-space:pre-wrap;overflow:visible}h3,h4{break-after:avoid}\
table{font-size:12px}.roadmap td,.roadmap th,.roadmap .quiet,.roadmap .badge,.io,.io td,.io .quiet{font-size:10.5px}.roadmap th{white-space:normal}.roadmap td:nth-child(2){min-width:120px}td.n,th.n{padding-left:6px}td,th{padding-right:6px}a{color:inherit;text-decoration:none}details::details-content{content-visibility:visible;display:block;height:auto}summary{list-style:none}}";

/// Renders the page.
pub fn render(roadmap: &Roadmap) -> String {
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>Roadmap: which tasks can small models take over?</title><style>{STYLE}{OWN_STYLE}</style></head><body><main>\
         <h1>Which tasks can small models take over?</h1>"
    );
    page += &lead(roadmap);
    page += &headline(roadmap);
    if roadmap.is_priced() {
        page += &tiles(roadmap);
        page += &figures::waterfall(roadmap);
    }
    page += &figures::treemap(roadmap);
    page += &figures::timeline(roadmap);
    page += &table(roadmap);
    if roadmap.is_priced() {
        page += &losses(roadmap);
    }
    page += "<h2 id=\"tasks\">Task by task</h2>";
    for (at, task) in roadmap.tasks.iter().take(MAX_SECTIONS).enumerate() {
        page += &task::section(at, task, roadmap);
    }
    if roadmap.tasks.len() > MAX_SECTIONS {
        let more = roadmap.tasks.len() - MAX_SECTIONS;
        let _ = write!(
            page,
            "<p>… and {more} tasks of less value: see <code>roadmap.json</code> and <code>roadmap.csv</code>.</p>"
        );
    }
    page += &behind::formula(roadmap);
    page += &behind::assumptions(roadmap);
    page += &behind::reading(roadmap);
    page + "</main></body></html>\n"
}

fn lead(roadmap: &Roadmap) -> String {
    let reading = &roadmap.reading;
    let span = match (reading.first_ms, reading.last_ms) {
        (Some(first), Some(last)) => format!(", {} to {}", date_of(first), date_of(last)),
        _ => ", without times".to_owned(),
    };
    let share = roadmap.assumed("log_share").unwrap_or(1.0);
    let sampled = if share < 1.0 {
        format!("; each stands for {} of the traffic, as you stated", of((1.0 / share).round() as u64, "call", "calls"))
    } else {
        String::new()
    };
    let synthetic =
        if roadmap.synthetic { " <b>This traffic is synthetic: it was generated for a demonstration.</b>" } else { "" };
    format!(
        "<p class=\"lead\">{} in {}{span}, in {}{sampled}.{synthetic}</p>",
        of(reading.calls, "call to LLMs", "calls to LLMs"),
        of(reading.files, "file", "files"),
        of(roadmap.tasks.len() as u64, "task", "tasks")
    )
}

fn headline(roadmap: &Roadmap) -> String {
    let portfolio = &roadmap.portfolio;
    let saving = &portfolio.saving;
    let above: Vec<&Entry> = roadmap.above_line().collect();
    let weeks = roadmap.horizon_weeks;
    let mut html = String::new();
    if let Some(little) = &roadmap.little {
        let _ = write!(html, "<p class=\"warn\"><b>{}</b></p>", escape(little));
    }
    if !roadmap.is_priced() {
        return html
            + "<p>What is asked, how often and how long stands below. Saving, order and stop line are missing until there are prices.</p>";
    }
    let with = match above.len() {
        0 => "What needs no training is expected to save".to_owned(),
        1 => "With one specialist and what needs no training, expect to save".to_owned(),
        n => format!("With {n} specialists and what needs no training, expect to save"),
    };
    let _ = write!(
        html,
        "<p class=\"headline\">Over {weeks:.0} weeks this traffic is expected to cost <b>{}</b>. {with} \
         <b>{}</b> of it; with a probability of 80 % between <b>{}</b> and <b>{}</b>. The chance that it ends in a loss is <b>{}</b>.</p>",
        usd(portfolio.spend.mean),
        usd(saving.p50),
        usd(saving.p10),
        usd(saving.p90),
        probability(saving.p_loss)
    );
    if let Some(covered) = roadmap.reading.weeks().filter(|covered| *covered < FEW_WEEKS) {
        let _ = write!(
            html,
            "<p class=\"warn\">The log covers {covered:.1} weeks, and these figures are {weeks:.0} weeks of the same: what a year brings is little more than a guess. Give it a log of a quarter.</p>"
        );
    }
    if let Some(loss) = roadmap.assumptions.iter().find(|stated| stated.name == "loss_per_error_usd") {
        let whose = if loss.by_user {
            "as you stated".to_owned()
        } else {
            "<b>which nobody here stated: say yours with <code>--loss-per-error</code></b>".to_owned()
        };
        if above.is_empty() {
            let _ = write!(
                html,
                "<p>No specialist pays at a loss of {} an error, {whose}; <a href=\"#tasks\">task by task</a> stands at which it would.</p>",
                usd(loss.value)
            );
            return html;
        }
        let _ = write!(
            html,
            "<p>An answer that is wrong where the LLM's was right is taken to cost {}, {whose}. <a href=\"#losses\">What other losses would mean</a>.</p>",
            usd(loss.value)
        );
    }
    let mut firsts = above.iter().take(3).map(|task| {
        format!(
            "<li><a href=\"#{}\">{}</a>: {}</li>",
            task.id,
            escape(&task.name),
            task.priced.as_ref().map(|priced| first(task, priced)).unwrap_or_default()
        )
    });
    if let Some(first) = firsts.next() {
        let rest: String = firsts.collect();
        let _ = write!(html, "<p>Begin with:</p><ol>{first}{rest}</ol>");
    }
    html
}

/// A specialist to begin with: what it is expected to save, and on what that hangs.
fn first(task: &Entry, priced: &Priced) -> String {
    let mut said = format!(
        "{} expected, 80 %: {} ({})",
        usd(priced.saving.mean),
        range(&priced.saving),
        escape(&verdict_words(&task.verdict))
    );
    if priced.only_if_cheaper_fails {
        said += "; a cheaper LLM is tried first, and this is made only where that fails";
    }
    if task.judgement.evidence == Evidence::Traits {
        said += "; no trial shows it: its chance to pass is a guess";
    }
    said
}

fn tiles(roadmap: &Roadmap) -> String {
    let portfolio = &roadmap.portfolio;
    let above = roadmap.above_line().count();
    if above == 0 {
        // All there is to tell stands in the headline.
        return String::new();
    }
    let private: f64 = roadmap.above_line().filter_map(|task| task.priced.as_ref()).map(|p| p.private_requests).sum();
    let energy: [f64; 2] = roadmap
        .above_line()
        .filter_map(|task| task.priced.as_ref())
        .fold([0.0, 0.0], |sum, p| [sum[0] + p.energy_kwh[0], sum[1] + p.energy_kwh[1]]);
    let tiles = [
        (
            usd(portfolio.saving.p50),
            format!(
                "saving, median<br>80 %: {}<br>chance of a loss {}",
                range(&portfolio.saving),
                probability(portfolio.saving.p_loss)
            ),
        ),
        (
            usd(portfolio.specialists.p50),
            format!(
                "of it by {}<br>80 %: {}",
                of(above as u64, "specialist", "specialists"),
                range(&portfolio.specialists)
            ),
        ),
        (
            usd(portfolio.without_training.p50),
            format!("of it without training<br>80 %: {}", range(&portfolio.without_training)),
        ),
        (format!("{:.1}", portfolio.days), "days of work on specialists, before any overrun".to_owned()),
        (count(private), "requests with what has the form of personal data that would stay inside".to_owned()),
        (
            format!("{} kWh", about(energy[1])),
            format!(
                "of an LLM's energy not used, by assumed figures; {} kWh used instead while the machine works",
                about(energy[0].max(0.0))
            ),
        ),
    ];
    let mut html = "<div class=\"tiles\">".to_owned();
    for (figure, words) in tiles {
        let _ = write!(html, "<div class=\"tile\"><b>{figure}</b><span>{words}</span></div>");
    }
    html + "</div>"
}

fn table(roadmap: &Roadmap) -> String {
    let mut html = "<h2>The roadmap</h2><div class=\"scroll\"><table class=\"roadmap\"><tr class=\"head\"><th></th><th>task</th><th>verdict</th><th class=\"n\">calls</th><th class=\"n\">costs<br>today</th>\
                    <th class=\"n\">expected<br>saving, 80 %</th><th class=\"n\">P(S&lt;0)</th><th class=\"n\">P(pass)</th><th class=\"n\">days</th><th class=\"n\">$ a day</th>\
                    <th class=\"n\">form of<br>personal data,<br>stays inside</th><th class=\"n\">kWh<br>saved</th></tr>"
        .to_owned();
    let mut drawn = false;
    for (at, task) in roadmap.tasks.iter().enumerate() {
        if !task.place.above_line && !drawn {
            drawn = true;
            let limit = roadmap.assumed("stop_loss_probability").unwrap_or(0.2);
            let _ = write!(
                html,
                "<tr class=\"line\"><td colspan=\"12\">Stop here: below this line a loss is expected, or its chance is above {:.0} %, or something else speaks against it, as named</td></tr>",
                100.0 * limit
            );
        }
        let class = if task.place.above_line { "" } else { " class=\"below\"" };
        let _ = write!(
            html,
            "<tr{class}><td class=\"n\">{}</td><td><a href=\"#{}\">{}</a>{}</td><td data-of=\"verdict\">{}</td>",
            at + 1,
            task.id,
            escape(&task.name),
            task.place
                .why_not
                .as_ref()
                .map(|why| format!("<br><span class=\"quiet\">{}</span>", escape(why)))
                .unwrap_or_default(),
            badge(&task.verdict)
        );
        // A value, and what is told of it in a second line.
        let mut cell = |name: &str, value: String, quiet: String| {
            let class = if name.starts_with("personal") { "n inside" } else { "n" };
            let quiet = if quiet.is_empty() { quiet } else { format!("<br><span class=\"quiet\">{quiet}</span>") };
            let _ = write!(html, "<td class=\"{class}\" data-of=\"{name}\"><span>{value}{quiet}</span></td>");
        };
        let kinds: Vec<&str> = task.personal.iter().filter(|(_, n)| **n > 0).map(|(kind, _)| kind.words()).collect();
        let kinds = escape(&kinds.join(", "));
        match &task.priced {
            Some(p) => {
                let guess = if task.judgement.evidence == Evidence::Traits { "a guess" } else { "" };
                cell("calls", count(p.requests.mean), String::new());
                cell("costs today", usd(p.spend.mean), String::new());
                cell("saving, expected", usd(p.saving.mean), range(&p.saving));
                cell("P(S&lt;0)", probability(p.saving.p_loss), String::new());
                cell("P(pass)", probability(p.chance.mean()), guess.to_owned());
                cell("days", format!("{:.1}", p.days + task.place.shared_days), String::new());
                cell("$ a day", usd(task.place.value_per_day), String::new());
                cell("personal data stays inside", count(p.private_requests), kinds);
                cell("kWh saved", about(p.energy_kwh[1] - p.energy_kwh[0]), String::new());
            }
            None => {
                cell("calls", count(task.total.calls as f64), String::new());
                for name in ["costs today", "saving, expected", "P(S&lt;0)", "P(pass)", "days", "$ a day"] {
                    cell(name, if name == "costs today" { "unpriced" } else { "" }.to_owned(), String::new());
                }
                cell("personal data stays inside", String::new(), kinds);
                cell("kWh saved", String::new(), String::new());
            }
        }
        html += "</tr>";
    }
    html + "</table></div><p class=\"quiet\">Savings are those of a specialist over the next best option that needs no training, with the chance that it fails, without what specialists share. Calls, costs and energy are of the whole horizon.</p>"
}

fn losses(roadmap: &Roadmap) -> String {
    if roadmap.above_line().next().is_none() {
        return String::new();
    }
    let mut html = "<h2 id=\"losses\">What if an error costs more?</h2><div class=\"scroll\"><table class=\"losses\"><tr><th class=\"n\">loss per error</th><th class=\"n\">saving, median</th><th class=\"n\">80 %</th></tr>".to_owned();
    for (loss, [p10, p50, p90]) in &roadmap.portfolio.by_loss {
        let stated =
            roadmap.assumptions.iter().any(|stated| stated.name == "loss_per_error_usd" && stated.value == *loss);
        let class = if stated { " class=\"chosen\"" } else { "" };
        let _ = write!(
            html,
            "<tr{class}><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\"><span>{}</span> <span>to {}</span></td></tr>",
            usd(*loss),
            usd(*p50),
            usd(*p10),
            usd(*p90)
        );
    }
    html + "</table></div><p>The same specialists above the line, at other losses. An error is an answer that the specialist gives alone and that is wrong where the LLM's was right; each task's section says at which loss its own saving is nothing.</p>"
}
