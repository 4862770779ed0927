//! What is drawn of all tasks together: from cost to what is left (waterfall), where the money goes (treemap), in which order (timeline).

use std::fmt::Write as _;

use super::words::{class, percent, usd};
use crate::{
    discover::{
        report::{Entry, Roadmap},
        saving::{Priced, Terms, options::Alternative},
    },
    eval::html::escape,
};

/// Tasks that are drawn one by one; the others are drawn together.
const MAX_DRAWN: usize = 24;

/// From today's spend to what is left of it, step by step, as expected.
pub(super) fn waterfall(roadmap: &Roadmap) -> String {
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
    // What rounds to nothing is no step.
    let spend = portfolio.spend.mean;
    steps.retain(|(_, step)| step.abs() >= (spend.abs() * 1e-6).max(0.005));
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
         <figcaption>Expected values over {:.0} weeks, with the chance that each attempt passes (the headline tells the median of what is saved, which may differ). Green is saved, red is spent. An option that needs no training is taken \
         where it is expected to pay for its own work, and its bar has that work taken off.</figcaption></figure>",
        top + height + 62.0,
        roadmap.horizon_weeks
    )
}

/// A name in up to three lines of SVG text.
pub(super) fn lines(name: &str, x: f64, y: f64, characters: usize) -> String {
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
pub(super) type Rect = [f64; 4];

/// Areas as large as values, squarish: rows that stop growing when their worst shape would get worse (Bruls, Huizing and van Wijk 2000).
pub(super) fn squarified(values: &[f64], [mut x, mut y, mut width, mut height]: Rect) -> Vec<Rect> {
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

pub(super) fn treemap(roadmap: &Roadmap) -> String {
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

pub(super) fn timeline(roadmap: &Roadmap) -> String {
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
        let saving = task.priced.as_ref().map(|priced| usd(priced.saving.mean)).unwrap_or_default();
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
         other by expected saving a day, with the expected overrun; the first carries the connection, the first on a base that base. Beside each: its own saving, expected.</figcaption></figure>",
        34.0 + rows * row
    )
}

#[cfg(test)]
mod tests {
    use super::*;

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
