//! `roadmap.html`: one file, nothing fetched, no script; light, dark and on paper.

use std::fmt::Write as _;

use metier_traffic::price::date_of;

use super::{Entry, Roadmap};
use crate::{
    discover::{
        judge::{Trial, Verdict},
        saving::{Priced, Quantiles, Terms, options::Alternative},
        task::TaskKind,
    },
    eval::{
        Measured,
        html::{HEIGHT, LEFT, STYLE, WIDTH, curve_figure, escape, label, plot},
    },
};

/// Tasks that are drawn one by one; the others are drawn together.
const MAX_DRAWN: usize = 24;
/// Tasks with a section of their own.
const MAX_SECTIONS: usize = 60;
/// Colours of verdicts, and what only this page has.
const OWN_STYLE: &str = "
:root{--proven:#2f7d5b;--partial:#2d5d8c;--cheaper:#9a6b1f;--notyet:#8a8f98;--none:#b4472f}
@media(prefers-color-scheme:dark){:root{--proven:#5fae86;--partial:#6a9fd0;--cheaper:#d0a050;--notyet:#80868f;--none:#d9785f}}
main{max-width:1240px}td.n,th.n{white-space:nowrap;padding-left:10px}.roadmap td{font-size:13.5px}.roadmap td:nth-child(2){min-width:190px}.headline{font-size:22px;line-height:1.4;margin:18px 0 6px}.headline b{font-variant-numeric:tabular-nums}.warn{border-left:4px solid var(--bad);padding:4px 0 4px 14px;margin:14px 0}
.badge{display:inline-block;border-radius:9px;padding:1px 9px;font-size:13px;font-weight:650;color:#fff;white-space:nowrap}
.proven{background:var(--proven)}.partial{background:var(--partial)}.cheaper{background:var(--cheaper)}.notyet{background:var(--notyet)}.none{background:var(--none)}
rect.proven{fill:var(--proven)}rect.partial{fill:var(--partial)}rect.cheaper{fill:var(--cheaper)}rect.notyet{fill:var(--notyet)}rect.none{fill:var(--none)}rect.rest{fill:var(--line)}
svg text.on{fill:#fff;font-weight:600}svg text.fg{fill:var(--fg)}rect.up{fill:var(--good)}rect.down{fill:var(--bad)}rect.total{fill:var(--main)}rect.soft{fill:var(--soft)}
.wide{margin:0 0 18px}.line td{border-top:3px solid var(--bad);color:var(--bad);font-weight:650}.below td{color:var(--mute)}
pre{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px 14px;overflow-x:auto;font-size:13px;line-height:1.45;white-space:pre-wrap;word-break:break-word}
.task{border-top:1px solid var(--line);margin-top:44px;padding-top:4px}.task h3{font-size:19px;margin:18px 0 4px}.task h4{font-size:15px;margin:22px 0 6px;color:var(--mute)}
.io{font-size:13.5px}.io td{max-width:420px;word-break:break-word}details{margin:10px 0}summary{cursor:pointer;color:var(--main)}a{color:var(--main)}.quiet{color:var(--mute);font-size:13.5px}
@media print{:root{--proven:#14532d;--partial:#123c66;--cheaper:#6b4a10;--notyet:#555;--none:#8a1c0f}@page{size:A4 landscape;margin:12mm}main{max-width:none}.task{break-before:page;border:0;margin-top:0}pre{white-space:pre-wrap;overflow:visible}h3,h4{break-after:avoid}\
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
        page += &waterfall(roadmap);
    }
    page += &treemap(roadmap);
    page += &timeline(roadmap);
    page += &table(roadmap);
    if roadmap.is_priced() {
        page += &losses(roadmap);
    }
    page += "<h2 id=\"tasks\">Task by task</h2>";
    for (at, task) in roadmap.tasks.iter().take(MAX_SECTIONS).enumerate() {
        page += &section(at, task, roadmap);
    }
    if roadmap.tasks.len() > MAX_SECTIONS {
        let more = roadmap.tasks.len() - MAX_SECTIONS;
        let _ = write!(
            page,
            "<p>… and {more} tasks of less value: see <code>roadmap.json</code> and <code>roadmap.csv</code>.</p>"
        );
    }
    page += &formula(roadmap);
    page += &assumptions(roadmap);
    page += &reading(roadmap);
    page + "</main></body></html>\n"
}

/// Dollars for people: three digits that count, no cents above ten.
pub fn usd(value: f64) -> String {
    let sign = if value < 0.0 { "−" } else { "" };
    let value = value.abs();
    if value >= 100.0 {
        let step = 10f64.powf((value.log10().floor() - 2.0).max(0.0));
        return format!("{sign}${}", thousands((value / step).round() * step));
    }
    if value >= 1.0 || value == 0.0 { format!("{sign}${value:.2}") } else { format!("{sign}${}", significant(value)) }
}

/// Two digits that count of a number below 1.
fn significant(value: f64) -> String {
    let digits = (1.0 - value.log10().floor()).clamp(0.0, 12.0) as usize;
    format!("{value:.digits$}")
}

/// Whole numbers in groups of three.
fn thousands(value: f64) -> String {
    let text = format!("{:.0}", value.abs());
    let mut grouped = String::new();
    for (at, digit) in text.chars().enumerate() {
        if at > 0 && (text.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    if value < 0.0 { format!("−{grouped}") } else { grouped }
}

fn count(value: f64) -> String {
    if value >= 1e6 { format!("{:.1} M", value / 1e6) } else { thousands(value.round()) }
}

fn percent(share: f64) -> String {
    label(share)
}

fn range(q: &Quantiles) -> String {
    format!("{} to {}", usd(q.p10), usd(q.p90))
}

fn measured(m: &Measured) -> String {
    format!("{:.1} % [{:.1}, {:.1}]", 100.0 * m.value, 100.0 * m.interval[0], 100.0 * m.interval[1])
}

fn class(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Proven { .. } => "proven",
        Verdict::Partial { .. } => "partial",
        Verdict::NotYet { .. } => "notyet",
        Verdict::No { .. } => "none",
        Verdict::Cheaper { .. } => "cheaper",
    }
}

/// The verdict in the words of a badge.
pub fn verdict_words(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Proven { coverage } => format!("proven: {} alone", percent(*coverage)),
        Verdict::Partial { coverage } => format!("partial: {} alone", percent(*coverage)),
        Verdict::NotYet { more_rows: Some(rows), .. } => {
            format!("not yet: about {} rows more", thousands(*rows as f64))
        }
        Verdict::NotYet { .. } => "not yet tried".to_owned(),
        Verdict::No { .. } => "no".to_owned(),
        Verdict::Cheaper { .. } => "cheaper without training".to_owned(),
    }
}

fn badge(verdict: &Verdict) -> String {
    format!("<span class=\"badge {}\">{}</span>", class(verdict), escape(&verdict_words(verdict)))
}

fn lead(roadmap: &Roadmap) -> String {
    let reading = &roadmap.reading;
    let span = match (reading.first_ms, reading.last_ms) {
        (Some(first), Some(last)) => format!(", {} to {}", date_of(first), date_of(last)),
        _ => ", without times".to_owned(),
    };
    let synthetic =
        if roadmap.synthetic { " <b>This traffic is synthetic: it was generated for a demonstration.</b>" } else { "" };
    format!(
        "<p class=\"lead\">{} calls to LLMs in {} files{span}, in {} tasks.{synthetic}</p>",
        thousands(reading.calls as f64),
        reading.files,
        roadmap.tasks.len()
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
    let specialists = match above.len() {
        0 => "no specialist".to_owned(),
        1 => "one specialist".to_owned(),
        n => format!("{n} specialists"),
    };
    let _ = write!(
        html,
        "<p class=\"headline\">Over {weeks:.0} weeks this traffic would cost <b>{}</b>. With {specialists} and what needs no training, expect to save \
         <b>{}</b> of it; with a probability of 80 % between <b>{}</b> and <b>{}</b>. The chance that it ends in a loss is <b>{:.0} %</b>.</p>",
        usd(portfolio.spend.p50),
        usd(saving.p50),
        usd(saving.p10),
        usd(saving.p90),
        100.0 * saving.p_loss
    );
    let stated = |name: &str| roadmap.assumptions.iter().find(|stated| stated.name == name);
    if let Some(loss) = stated("loss_per_error_usd") {
        let whose = if loss.by_user {
            "as you stated".to_owned()
        } else {
            "<b>which nobody here stated: say yours with <code>--loss-per-error</code></b>".to_owned()
        };
        let _ = write!(
            html,
            "<p>An answer that is wrong where the LLM's was right is taken to cost {}, {whose}. <a href=\"#losses\">What other losses would mean</a>.</p>",
            usd(loss.value)
        );
    }
    let mut firsts = above.iter().take(3).map(|task| {
        format!(
            "<li><a href=\"#{}\">{}</a>: {} ({})</li>",
            task.id,
            escape(&task.name),
            task.priced.as_ref().map(|p| usd(p.saving.p50)).unwrap_or_default(),
            escape(&verdict_words(&task.verdict))
        )
    });
    if let Some(first) = firsts.next() {
        let rest: String = firsts.collect();
        let _ = write!(html, "<p>Begin with:</p><ol>{first}{rest}</ol>");
    }
    html
}

fn tiles(roadmap: &Roadmap) -> String {
    let portfolio = &roadmap.portfolio;
    let above = roadmap.above_line().count();
    let private: f64 = roadmap.above_line().filter_map(|task| task.priced.as_ref()).map(|p| p.private_requests).sum();
    let energy: [f64; 2] = roadmap
        .above_line()
        .filter_map(|task| task.priced.as_ref())
        .fold([0.0, 0.0], |sum, p| [sum[0] + p.energy_kwh[0], sum[1] + p.energy_kwh[1]]);
    let tiles = [
        (usd(portfolio.saving.p50), format!("saving, median<br>80 %: {}", range(&portfolio.saving))),
        (format!("{:.0} %", 100.0 * portfolio.saving.p_loss), "chance of a loss".to_owned()),
        (
            usd(portfolio.specialists.p50),
            format!("of it by {above} specialists<br>80 %: {}", range(&portfolio.specialists)),
        ),
        (
            usd(portfolio.without_training.p50),
            format!("of it without training<br>80 %: {}", range(&portfolio.without_training)),
        ),
        (format!("{:.1}", portfolio.days), "days of work on specialists, before any overrun".to_owned()),
        (count(private), "requests with personal data that would stay inside".to_owned()),
        (
            format!("{} kWh", thousands(energy[1])),
            format!(
                "of an LLM's energy not used; {} kWh used instead while the machine works",
                count(energy[0].max(0.0))
            ),
        ),
    ];
    let mut html = "<div class=\"tiles\">".to_owned();
    for (figure, words) in tiles {
        let _ = write!(html, "<div class=\"tile\"><b>{figure}</b><span>{words}</span></div>");
    }
    html + "</div>"
}

/// From today's spend to what is left of it, step by step, as expected.
fn waterfall(roadmap: &Roadmap) -> String {
    let portfolio = &roadmap.portfolio;
    let above: Vec<&Priced> = roadmap.above_line().filter_map(|task| task.priced.as_ref()).collect();
    let sum = |of: &dyn Fn(&Terms) -> f64| above.iter().map(|p| p.made * p.chance.mean() * of(&p.terms)).sum::<f64>();
    let mut steps: Vec<(String, f64)> = Vec::new();
    for (alternative, saved) in roadmap.by_alternative() {
        let name = match alternative {
            Alternative::Cache => "cache of answers",
            other => other.words(),
        };
        steps.push((name.to_owned(), -saved));
    }
    if !above.is_empty() {
        steps.push(("answered by specialists".to_owned(), -sum(&|t| t.replaced - t.fallback)));
        steps.push(("their errors".to_owned(), sum(&|t| t.errors)));
        steps.push((
            "machine, idle time too".to_owned(),
            sum(&|t| t.own + t.shadow + t.training + t.retraining) + portfolio.shared_usd[1],
        ));
        let spent: f64 = above.iter().map(|p| p.made * p.if_passed.mean * p.chance.mean() - p.saving.mean).sum();
        steps.push(("labels".to_owned(), sum(&|t| t.labels) - portfolio.shared_labels_usd));
        steps.push(("work".to_owned(), sum(&|t| t.labour + t.operations) + portfolio.shared_usd[0]));
        steps.push(("attempts that fail".to_owned(), spent.max(0.0)));
    }
    let spend = portfolio.spend.mean;
    let total: f64 = spend + steps.iter().map(|(_, step)| step).sum::<f64>();
    let (mut level, mut bars) = (spend, vec![("today".to_owned(), 0.0, spend, "total")]);
    for (name, step) in steps {
        bars.push((name, level, level + step, if step <= 0.0 { "up" } else { "down" }));
        level += step;
    }
    bars.push(("left".to_owned(), 0.0, total, "total"));
    let most = bars.iter().map(|bar| bar.1.max(bar.2)).fold(1e-9, f64::max);
    let least = bars.iter().map(|bar| bar.1.min(bar.2)).fold(0.0, f64::min);
    let (width, height, top) = (1000.0, 260.0, 24.0);
    let x = |at: usize| 10.0 + (width - 20.0) * at as f64 / bars.len() as f64;
    let y = |value: f64| top + height * (most - value) / (most - least);
    let each = (width - 20.0) / bars.len() as f64;
    let mut svg =
        format!("<line class=\"axis\" x1=\"10\" x2=\"{}\" y1=\"{:.1}\" y2=\"{:.1}\"/>", width - 10.0, y(0.0), y(0.0));
    for (at, (name, from, to, kind)) in bars.iter().enumerate() {
        let (high, low) = (from.max(*to), from.min(*to));
        let amount = if *kind == "total" {
            usd(*to)
        } else {
            format!("{}{}", if to <= from { "−" } else { "+" }, usd((to - from).abs()))
        };
        let middle = x(at) + each / 2.0;
        let _ = write!(
            svg,
            "<rect class=\"{kind}\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"2\"/>\
             <text class=\"fg\" x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{amount}</text>{}",
            x(at) + each * 0.14,
            y(high),
            each * 0.72,
            (y(low) - y(high)).max(1.0),
            y(high) - 6.0,
            lines(name, middle, top + height + 18.0, (each / 6.4) as usize),
        );
        if at + 1 < bars.len() {
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{2:.1}\" y2=\"{2:.1}\"/>",
                x(at) + each * 0.86,
                x(at + 1) + each * 0.14,
                y(*to)
            );
        }
    }
    format!(
        "<h2>From what it costs to what is left</h2><figure class=\"wide\"><svg viewBox=\"0 0 {width} {}\" role=\"img\" aria-label=\"waterfall of savings\">{svg}</svg>\
         <figcaption>Expected values over {:.0} weeks, with the chance that each attempt passes. Green is saved, red is spent. An option that needs no training is taken \
         where it is expected to pay for its own work, and its bar has that work taken off.</figcaption></figure>",
        top + height + 62.0,
        roadmap.horizon_weeks
    )
}

/// A name in up to three lines of SVG text.
fn lines(name: &str, x: f64, y: f64, characters: usize) -> String {
    let mut lines: Vec<String> = Vec::new();
    for word in name.split(' ') {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= characters.max(6) => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    let mut svg = String::new();
    for (at, line) in lines.iter().take(3).enumerate() {
        let _ = write!(
            svg,
            "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            y + 15.0 * at as f64,
            escape(line)
        );
    }
    svg
}

/// A rectangle: x, y, width, height.
type Rect = [f64; 4];

/// Areas as large as values, squarish: rows that stop growing when their worst shape would get worse (Bruls, Huizing and van Wijk 2000).
fn squarified(values: &[f64], [mut x, mut y, mut width, mut height]: Rect) -> Vec<Rect> {
    let total: f64 = values.iter().sum();
    let scale = width * height / total.max(f64::MIN_POSITIVE);
    let mut rects = Vec::with_capacity(values.len());
    let mut at = 0;
    while at < values.len() {
        let short = width.min(height).max(1e-9);
        let worst = |row: &[f64]| {
            let sum: f64 = row.iter().sum::<f64>() * scale;
            let side = sum / short;
            row.iter()
                .map(|value| {
                    let other = value * scale / side.max(1e-12);
                    (side / other.max(1e-12)).max(other / side.max(1e-12))
                })
                .fold(0.0, f64::max)
        };
        let mut end = at + 1;
        while end < values.len() && worst(&values[at..=end]) <= worst(&values[at..end]) {
            end += 1;
        }
        let side = values[at..end].iter().sum::<f64>() * scale / short;
        let mut along = 0.0;
        for value in &values[at..end] {
            let length = value * scale / side.max(1e-12);
            rects.push(if width >= height { [x, y + along, side, length] } else { [x + along, y, length, side] });
            along += length;
        }
        if width >= height {
            x += side;
            width -= side;
        } else {
            y += side;
            height -= side;
        }
        at = end;
    }
    rects
}

fn treemap(roadmap: &Roadmap) -> String {
    let mut tasks: Vec<(&Entry, f64)> = roadmap
        .tasks
        .iter()
        .filter_map(|task| Some((task, task.priced.as_ref()?.spend.mean)))
        .filter(|(_, spend)| *spend > 0.0)
        .collect();
    if tasks.is_empty() {
        return String::new();
    }
    tasks.sort_by(|a, b| b.1.total_cmp(&a.1));
    let total: f64 = tasks.iter().map(|(_, spend)| spend).sum();
    let rest: f64 = tasks.iter().skip(MAX_DRAWN).map(|(_, spend)| spend).sum();
    let mut values: Vec<f64> = tasks.iter().take(MAX_DRAWN).map(|(_, spend)| *spend).collect();
    if rest > 0.0 {
        values.push(rest);
    }
    let (width, height) = (1000.0, 360.0);
    let mut svg = String::new();
    for (at, [x, y, w, h]) in squarified(&values, [0.0, 0.0, width, height]).into_iter().enumerate() {
        let (name, kind, link) = match tasks.get(at).filter(|_| at < MAX_DRAWN) {
            Some((task, _)) => (task.name.clone(), class(&task.verdict), format!("#{}", task.id)),
            None => (format!("{} others", tasks.len() - MAX_DRAWN), "rest", "#tasks".to_owned()),
        };
        let share = values[at] / total;
        let _ = write!(
            svg,
            "<a href=\"{link}\"><rect class=\"{kind}\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"3\"><title>{}: {} ({})</title></rect>",
            x + 1.0,
            y + 1.0,
            (w - 2.0).max(0.5),
            (h - 2.0).max(0.5),
            escape(&name),
            usd(values[at]),
            percent(share)
        );
        let room = (w / 7.6) as usize;
        if h > 24.0 && room >= 4 {
            let mut cut: String = name.chars().take(room).collect();
            if cut.len() < name.len() {
                cut.pop();
                cut.push('…');
            }
            let _ =
                write!(svg, "<text class=\"on\" x=\"{:.1}\" y=\"{:.1}\">{}</text>", x + 8.0, y + 19.0, escape(&cut));
            if h > 42.0 && room >= 7 {
                let _ = write!(
                    svg,
                    "<text class=\"on\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                    x + 8.0,
                    y + 36.0,
                    usd(values[at])
                );
            }
        }
        svg += "</a>";
    }
    let legend: Vec<String> = [
        ("proven", "proven"),
        ("partial", "partial"),
        ("cheaper", "cheaper without training"),
        ("notyet", "not yet"),
        ("none", "no"),
    ]
    .iter()
    .map(|(class, words)| format!("<span class=\"badge {class}\">{words}</span>"))
    .collect();
    format!(
        "<h2>Where the money goes</h2><figure class=\"wide\"><svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"spend by task\">{svg}</svg>\
         <figcaption>Area: what each task would cost at the LLM over {:.0} weeks. Colour: {}</figcaption></figure>",
        roadmap.horizon_weeks,
        legend.join(" ")
    )
}

fn timeline(roadmap: &Roadmap) -> String {
    let above: Vec<&Entry> = roadmap.above_line().collect();
    if above.is_empty() {
        return String::new();
    }
    let end = above.iter().map(|task| task.place.weeks[1]).fold(1.0, f64::max);
    let (left, width, row) = (260.0, 1000.0, 26.0);
    let shown = above.iter().take(MAX_DRAWN);
    let rows = above.len().min(MAX_DRAWN) as f64;
    let x = |week: f64| left + (width - left - 90.0) * week / end;
    let mut svg = String::new();
    let step = [1.0, 2.0, 4.0, 8.0, 13.0, 26.0, 52.0].into_iter().find(|step| end / step <= 12.0).unwrap_or(104.0);
    let mut week = 0.0;
    while week <= end {
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"18\" y2=\"{1:.1}\"/><text x=\"{0:.1}\" y=\"12\" text-anchor=\"middle\">week {week:.0}</text>",
            x(week),
            24.0 + rows * row
        );
        week += step;
    }
    for (at, task) in shown.enumerate() {
        let y = 26.0 + row * at as f64;
        let [from, to] = task.place.weeks;
        let mut name: String = task.name.chars().take(34).collect();
        if name.len() < task.name.len() {
            name.push('…');
        }
        let saving = task.priced.as_ref().map(|priced| usd(priced.saving.p50)).unwrap_or_default();
        let _ = write!(
            svg,
            "<text class=\"fg\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text><rect class=\"{}\" x=\"{:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"16\" rx=\"4\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{saving}</text>",
            left - 10.0,
            y + 13.0,
            escape(&name),
            class(&task.verdict),
            x(from),
            (x(to) - x(from)).max(2.0),
            x(to) + 6.0,
            y + 13.0
        );
    }
    format!(
        "<h2>In which order</h2><figure class=\"wide\"><svg viewBox=\"0 0 {width} {:.0}\" role=\"img\" aria-label=\"timeline\">{svg}</svg><figcaption>Work on each task, one after the \
         other by expected saving a day, with the expected overrun; the first carries the connection, the first on a base that base. Beside each: the median of its own saving.</figcaption></figure>",
        34.0 + rows * row
    )
}

fn table(roadmap: &Roadmap) -> String {
    let mut html = "<h2>The roadmap</h2><div class=\"scroll\"><table class=\"roadmap\"><tr><th></th><th>task</th><th>verdict</th><th class=\"n\">calls</th><th class=\"n\">costs today</th>\
                    <th class=\"n\">saving, median</th><th class=\"n\">80 %</th><th class=\"n\">P(S&lt;0)</th><th class=\"n\">P(pass)</th><th class=\"n\">days</th><th class=\"n\">$ a day</th>\
                    <th class=\"n\">stays inside</th><th>personal data</th><th class=\"n\">kWh saved</th></tr>"
        .to_owned();
    let mut drawn = false;
    for (at, task) in roadmap.tasks.iter().enumerate() {
        if !task.place.above_line && !drawn {
            drawn = true;
            let limit = roadmap
                .assumptions
                .iter()
                .find(|stated| stated.name == "stop_loss_probability")
                .map_or(0.2, |stated| stated.value);
            let _ = write!(
                html,
                "<tr class=\"line\"><td colspan=\"14\">Stop here: below this line the chance of a loss is above {:.0} %, or a loss is expected</td></tr>",
                100.0 * limit
            );
        }
        let class = if task.place.above_line { "" } else { " class=\"below\"" };
        let _ = write!(
            html,
            "<tr{class}><td class=\"n\">{}</td><td><a href=\"#{}\">{}</a>{}</td><td>{}</td>",
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
        let personal: Vec<&str> = task.personal.iter().filter(|(_, n)| **n > 0).map(|(kind, _)| kind.words()).collect();
        match &task.priced {
            Some(p) => {
                let _ = write!(
                    html,
                    "<td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{:.0} %</td><td class=\"n\">{:.0} %</td><td class=\"n\">{:.1}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>",
                    count(p.requests.mean),
                    usd(p.spend.mean),
                    usd(p.saving.p50),
                    range(&p.saving),
                    100.0 * p.saving.p_loss,
                    100.0 * p.chance.mean(),
                    p.days + task.place.shared_days,
                    usd(task.place.value_per_day),
                    count(p.private_requests),
                );
            }
            None => {
                let _ = write!(
                    html,
                    "<td class=\"n\">{}</td><td class=\"n\" colspan=\"8\">unpriced</td>",
                    count(task.total.calls as f64)
                );
            }
        }
        let energy =
            task.priced.as_ref().map(|p| thousands((p.energy_kwh[1] - p.energy_kwh[0]).round())).unwrap_or_default();
        let _ = write!(html, "<td>{}</td><td class=\"n\">{energy}</td></tr>", escape(&personal.join(", ")));
    }
    html + "</table></div><p class=\"quiet\">Savings are those of a specialist over the next best option that needs no training, with the chance that it fails, without what specialists share. Calls, costs and energy are of the whole horizon.</p>"
}

fn losses(roadmap: &Roadmap) -> String {
    let mut html = "<h2 id=\"losses\">What if an error costs more?</h2><div class=\"scroll\"><table><tr><th class=\"n\">loss per error</th><th class=\"n\">saving, median</th><th class=\"n\">80 %</th></tr>".to_owned();
    for (loss, [p10, p50, p90]) in &roadmap.portfolio.by_loss {
        let stated =
            roadmap.assumptions.iter().any(|stated| stated.name == "loss_per_error_usd" && stated.value == *loss);
        let class = if stated { " class=\"chosen\"" } else { "" };
        let _ = write!(
            html,
            "<tr{class}><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{} to {}</td></tr>",
            usd(*loss),
            usd(*p50),
            usd(*p10),
            usd(*p90)
        );
    }
    html + "</table></div><p>The same specialists above the line, at other losses. An error is an answer that the specialist gives alone and that is wrong where the LLM's was right; each task's section says at which loss its own saving is nothing.</p>"
}

fn section(at: usize, task: &Entry, roadmap: &Roadmap) -> String {
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
fn why(task: &Entry) -> String {
    let judgement = &task.judgement;
    let mut said: Vec<String> = Vec::new();
    match &task.verdict {
        Verdict::NotYet { why, .. } | Verdict::No { why } => said.push(format!("{}.", escape(why))),
        Verdict::Cheaper { by } => said.push(format!("Something that needs no training is enough: {}.", escape(by))),
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
            said.push(format!("p-values, corrected for all tasks that were tried (Holm): {most:.2e} for most requests, {little:.2e} for a few."));
        }
    } else if let Some(why) = &judgement.not_tried {
        said.push(format!("Not tried: {}. The chance to pass is a guess from its traffic:", escape(why)));
        let reasons: Vec<String> = judgement
            .prior
            .reasons
            .iter()
            .take(5)
            .map(|(what, moved)| format!("{} ({moved:+.1})", escape(what)))
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

fn money(task: &Entry, priced: &Priced, roadmap: &Roadmap) -> String {
    let t = &priced.terms;
    let row = |name: &str, value: f64, note: String| {
        format!("<tr><td>{name}</td><td class=\"n\">{}</td><td class=\"quiet\">{note}</td></tr>", usd(value))
    };
    let judgement = &task.judgement;
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
                "80 %: {}; {:.2} days; works with a probability of {:.0} %",
                range(&other.saving),
                other.days,
                100.0 * other.works
            ),
        );
    }
    html += &row(
        "V·c_next",
        t.replaced,
        format!("what a specialist could answer, at the next best option's {} a call", usd(priced.next_best_usd)),
    );
    html += &row(
        "− V·c_own",
        -t.own,
        format!(
            "own machine at {} a call while it works; {:.1} hours; idle time is charged once for all",
            usd(priced.own_usd),
            priced.machine_hours
        ),
    );
    html += &row(
        "− V·f·c_next",
        -t.fallback,
        format!("deferred: {:.0} % (from {:.0} rows)", 100.0 * judgement.deferred.mean(), judgement.deferred.n),
    );
    html += &row(
        "− V·e·L",
        -t.errors,
        format!(
            "answered alone and otherwise: {:.2} % (from {:.0} rows)",
            100.0 * judgement.differs.mean(),
            judgement.differs.n
        ),
    );
    html += &row("− labels", -t.labels, String::new());
    html += &row("− training, shadow, retraining", -(t.training + t.shadow + t.retraining), String::new());
    html += &row("− operations", -t.operations, String::new());
    html += &row("− labour", -t.labour, format!("{:.2} days in all, before the overrun", priced.days));
    html += &row("= S if it passes", priced.if_passed.mean, format!("80 %: {}", range(&priced.if_passed)));
    html += &format!(
        "<tr class=\"chosen\"><td>S with the chance to fail</td><td class=\"n\">{}</td><td>median {}; 80 %: {}; P(pass) {:.0} %, P(S&lt;0) {:.0} %</td></tr>",
        usd(priced.saving.mean),
        usd(priced.saving.p50),
        range(&priced.saving),
        100.0 * priced.chance.mean(),
        100.0 * priced.saving.p_loss
    );
    html += "</table></div>";
    if priced.only_if_cheaper_fails {
        let _ = write!(
            html,
            "<p>A cheaper LLM is tried first. Where it does, a specialist would not pay and none is made; the terms above are of the other {:.0} % of the draws.</p>",
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

fn volume(task: &Entry) -> String {
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

fn risk_coverage(trial: &Trial, roadmap: &Roadmap) -> String {
    let epsilon =
        roadmap.assumptions.iter().find(|stated| stated.name == "epsilon").map_or(0.02, |stated| stated.value);
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

fn examples(task: &Entry) -> String {
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

fn formula(roadmap: &Roadmap) -> String {
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

fn assumptions(roadmap: &Roadmap) -> String {
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

fn reading(roadmap: &Roadmap) -> String {
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
fn checking(roadmap: &Roadmap) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dollars_for_people() {
        for (value, text) in [
            (0.0, "$0.00"),
            (0.0026, "$0.0026"),
            (0.000_000_3, "$0.00000030"),
            (7.5, "$7.50"),
            (1_234.0, "$1,230"),
            (-78_950.0, "−$79,000"),
            (1_234_567.0, "$1,230,000"),
            (999.9, "$1,000"),
        ] {
            assert_eq!(usd(value), text);
        }
    }

    #[test]
    fn areas_of_a_treemap_are_its_values_and_do_not_overlap() {
        let values = [50.0, 30.0, 10.0, 5.0, 3.0, 1.0, 1.0];
        let rects = squarified(&values, [0.0, 0.0, 100.0, 60.0]);
        for (value, [_, _, w, h]) in values.iter().zip(&rects) {
            assert!((w * h - value * 60.0).abs() < 1e-6, "{value} {w} {h}");
        }
        for (at, a) in rects.iter().enumerate() {
            assert!(
                a[0] >= -1e-9 && a[1] >= -1e-9 && a[0] + a[2] <= 100.0 + 1e-6 && a[1] + a[3] <= 60.0 + 1e-6,
                "{a:?}"
            );
            for b in &rects[at + 1..] {
                let apart = a[0] + a[2] <= b[0] + 1e-6
                    || b[0] + b[2] <= a[0] + 1e-6
                    || a[1] + a[3] <= b[1] + 1e-6
                    || b[1] + b[3] <= a[1] + 1e-6;
                assert!(apart, "{a:?} {b:?}");
            }
        }
    }
}
