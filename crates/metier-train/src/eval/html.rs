//! `report.html`: the evaluation for people, in one file without scripts or anything fetched; light and dark.
//!
//! Drawn in inline SVG by hand: three plots are less than a plotting library.

use std::fmt::Write as _;

use metier_model::Specialist;

use super::{card::percent, finding::Says, learning::LearningCurve, metrics::Measured};
use crate::build::BuildOutcome;

/// Inside size of a plot, in SVG units.
pub(crate) const WIDTH: f64 = 420.0;
pub(crate) const HEIGHT: f64 = 300.0;
/// Room for axes.
pub(crate) const LEFT: f64 = 46.0;
const BOTTOM: f64 = 40.0;
/// Classes drawn as bars: the weakest.
const MAX_BARS: usize = 40;

/// Colours, tables, tiles and plots of every report.
pub(crate) const STYLE: &str = "
:root{--bg:#fbfaf7;--fg:#23262b;--mute:#6c727c;--line:#dcd9d0;--card:#fff;--main:#2d5d8c;--good:#2f7d5b;--bad:#b4472f;--soft:#2d5d8c22}
@media(prefers-color-scheme:dark){:root{--bg:#15171a;--fg:#e6e4df;--mute:#979da7;--line:#33373d;--card:#1c1f23;--main:#7fb0de;--good:#74c49c;--bad:#e58a72;--soft:#7fb0de2e}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--fg);font:16px/1.55 system-ui,-apple-system,'Segoe UI',sans-serif}
main{max-width:1040px;margin:0 auto;padding:40px 24px 80px}h1{font-size:30px;margin:0;letter-spacing:-.01em}h2{font-size:19px;margin:44px 0 12px}
p.lead{font-size:18px;color:var(--mute);margin:.3em 0 1.6em}.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(180px,1fr));gap:14px}
.tile{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px 16px}.tile b{display:block;font-size:25px;line-height:1.2;font-variant-numeric:tabular-nums}
.tile span{color:var(--mute);font-size:13.5px}.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(340px,1fr));gap:18px}
figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px}figcaption{color:var(--mute);font-size:13.5px;margin-top:6px}
svg{width:100%;height:auto;display:block}svg text{fill:var(--mute);font-size:12px}.axis{stroke:var(--line)}.grid{stroke:var(--line);stroke-dasharray:2 4}
.curve{fill:none;stroke:var(--main);stroke-width:2}.dot{fill:var(--main)}.whisker{stroke:var(--main);stroke-width:1.4}.ideal{stroke:var(--mute);stroke-dasharray:5 5}
.bound{stroke:var(--bad);stroke-width:1.5;stroke-dasharray:6 4}.at{stroke:var(--good);stroke-width:1.5}.pick{fill:var(--good)}text.bad{fill:var(--bad)}text.good{fill:var(--good)}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:14.5px}th{text-align:left;font-weight:600;color:var(--mute);font-size:13px}
td,th{padding:5px 12px 5px 0;border-bottom:1px solid var(--line);vertical-align:top}td.n,th.n{text-align:right}tr.chosen td{font-weight:650}
.bar{height:10px;border-radius:5px;background:var(--soft);min-width:120px}.bar i{display:block;height:100%;border-radius:5px;background:var(--main)}
.says{white-space:nowrap;font-weight:650}.yes{color:var(--good)}.no{color:var(--bad)}.cannot{color:var(--mute)}.ahead{stroke-dasharray:5 5}
code{font-size:13px;word-break:break-all}.scroll{overflow-x:auto}ul{padding-left:1.2em}.verdict{border-left:4px solid var(--good);padding:2px 0 2px 14px}.verdict.no{border-color:var(--bad)}
@media print{:root{--bg:#fff;--fg:#000;--mute:#444;--line:#bbb;--card:#fff;--main:#123c66;--good:#14532d;--bad:#8a1c0f;--soft:#ddd}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}main{max-width:none;padding:0}h2{break-after:avoid}figure,tr,.tile{break-inside:avoid}.scroll{overflow:visible}}";

/// Renders the report.
pub fn render(specialist: &Specialist, outcome: &BuildOutcome) -> String {
    let manifest = specialist.manifest();
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>{name}: evidence</title><style>{STYLE}</style></head><body><main><h1>{name}</h1><p class=\"lead\">{instruction}</p>",
        name = escape(&manifest.name),
        instruction = escape(&manifest.instruction),
    );
    page += &verdict(outcome);
    page += &tiles(outcome);
    page += &findings(outcome);
    page += "<h2>Rungs of the ladder</h2>";
    page += &rungs(outcome);
    page += &depths(outcome);
    page += &operating(outcome);
    page += "<h2>When does it answer alone?</h2>";
    page += &stages(outcome);
    page += "<div class=\"plots\">";
    page += &risk_coverage(outcome);
    page += &reliability(outcome);
    page += "</div>";
    page += &learning_curve(outcome);
    let what = if outcome.evaluation.extract.is_some() { "Fields" } else { "Labels" };
    if !manifest.labels.is_empty() {
        let _ = write!(page, "<h2>{what}, weakest first</h2>");
        page += &classes(outcome);
    }
    page += &depths_of_labels(outcome);
    page += &confusions(outcome);
    page += &slices(outcome);
    page += &failures(outcome);
    page += &lineage(specialist);
    page += "<h2>What to know</h2><ul>";
    for note in &outcome.notes {
        let _ = write!(page, "<li>{}</li>", escape(note));
    }
    for leak in &outcome.leak.listed {
        let (train, why) = (escape(&leak.train), escape(&leak.why()));
        let _ = write!(page, "<li>left out of training: {train}, {why}</li>");
    }
    for pair in &outcome.leak.contradicting {
        let side = |(place, label): &(String, String)| format!("{} (<code>{}</code>)", escape(place), escape(label));
        let _ = write!(page, "<li>one text, two labels: {} and {}</li>", side(&pair.first), side(&pair.second));
    }
    let rows: Vec<String> = outcome.rows.iter().map(|(part, n)| format!("{n} {part}")).collect();
    let _ = writeln!(
        page,
        "<li>rows: {}; {:.0} s in all, {:.0} s of them embeddings</li></ul><p>Bundle <code>{}</code></p></main></body></html>",
        rows.join(", "),
        outcome.seconds,
        outcome.embed_seconds,
        outcome.bundle
    );
    page
}

fn verdict(outcome: &BuildOutcome) -> String {
    match (&outcome.certificate, &outcome.evaluation.test_loss) {
        (Some(c), loss) => {
            let tried = loss.map_or_else(String::new, |loss| {
                format!(
                    " On {} {} rows it was {:.2} % [{:.2}, {:.2}]: the bound {}.",
                    outcome.n,
                    outcome.measured_on,
                    100.0 * loss.loss,
                    100.0 * loss.interval[0],
                    100.0 * loss.interval[1],
                    if loss.held { "held" } else { "did not hold" }
                )
            });
            let class = if loss.is_none_or(|loss| loss.held) { "verdict" } else { "verdict no" };
            format!(
                "<p class=\"{class}\">From a score of {:.3} on it answers alone: with probability ≥ {} over the {} calibration \
                 rows, {}.{tried}</p>",
                c.threshold,
                1.0 - c.delta,
                c.n,
                match outcome.evaluation.sets {
                    None =>
                        format!("at most {:.1} % of requests are answered wrong without deferring", 100.0 * c.epsilon),
                    Some(_) => format!(
                        "the mean loss of a request is at most {:.1} % (1 − Jaccard: of the labels that the answer or the truth names, the share that \
                         only one of them names; 0 where it defers)",
                        100.0 * c.epsilon
                    ),
                }
            )
        }
        (None, _) => {
            let needed = outcome.rows_needed.map_or_else(
                || "more rows would not help: its surest answers err too often".to_owned(),
                |rows| format!("about {rows} calibration rows are needed"),
            );
            format!("<p class=\"verdict no\">No certificate: {needed}. It defers everything.</p>")
        }
    }
}

fn tiles(outcome: &BuildOutcome) -> String {
    let e = &outcome.evaluation;
    let mut tiles = vec![
        (e.metric.clone(), Measured { value: e.value, interval: e.interval }),
        ("answered alone".to_owned(), e.coverage),
        ("right when it answers alone".to_owned(), e.accepted_accuracy),
        ("calibration error".to_owned(), e.ece),
    ];
    // Where there are classes.
    if e.metric != "macro_f1" && !e.per_class.is_empty() {
        tiles.insert(1, ("macro F1".to_owned(), e.macro_f1));
    }
    if let Some(sets) = &e.sets {
        for (name, of) in
            [("micro_f1", sets.micro_f1), ("exact_match", sets.exact_match), ("mean Jaccard of a row", sets.jaccard)]
        {
            if e.metric != name {
                tiles.insert(1, (name.to_owned(), of));
            }
        }
    }
    if let Some(none) = &e.out_of_scope {
        tiles.push(("of out-of-scope rows labelled so".to_owned(), none.recall_as_label));
        tiles.push(("of them labelled so or deferred".to_owned(), none.recall_at_threshold));
    }
    if let Some(reference) = &e.reference_accuracy {
        tiles.push(("accuracy of the reference".to_owned(), *reference));
    }
    let mut html = "<div class=\"tiles\">".to_owned();
    for (name, m) in tiles {
        let _ = write!(
            html,
            "<div class=\"tile\"><b>{:.1} %</b><span>{}<br>95 %: {:.1} – {:.1}</span></div>",
            100.0 * m.value,
            escape(&name),
            100.0 * m.interval[0],
            100.0 * m.interval[1]
        );
    }
    html + "</div>"
}

fn rungs(outcome: &BuildOutcome) -> String {
    let low = outcome.rungs.iter().map(|rung| rung.interval[0]).fold(1.0, f64::min);
    let high = outcome.rungs.iter().map(|rung| rung.interval[1]).fold(0.0, f64::max);
    let (low, span) = (low - 0.01, (high - low + 0.02).max(0.02));
    let x = |value: f64| 10.0 + 300.0 * (value - low) / span;
    let mut html = format!(
        "<div class=\"scroll\"><table><tr><th>rung</th><th class=\"n\">{}</th><th></th><th class=\"n\">validation</th>\
         <th>against the best, on validation rows</th><th class=\"n\">training s</th></tr>",
        escape(&outcome.metric)
    );
    for rung in &outcome.rungs {
        let chosen = if rung.is_taken(outcome.rung) { " class=\"chosen\"" } else { "" };
        let against = rung.against_best.map_or_else(String::new, |test| {
            let verdict = match test.verdict {
                metier_model::proof::Verdict::NonInferior => "good enough".to_owned(),
                metier_model::proof::Verdict::Inferior => "worse by more than the margin".to_owned(),
                metier_model::proof::Verdict::CannotTell => match test.rows_needed {
                    Some(rows) => format!("cannot tell (about {rows} rows needed)"),
                    None => "cannot tell".to_owned(),
                },
            };
            let [from, to] = test.interval.map(|bound| 100.0 * bound);
            format!("{:+.1} points [{from:+.1}, {to:+.1}]: {verdict}", 100.0 * test.difference)
        });
        let _ = write!(
            html,
            "<tr{chosen}><td>{}</td><td class=\"n\">{:.2} %</td><td><svg viewBox=\"0 0 320 18\" style=\"width:220px\">\
             <line class=\"whisker\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"9\" y2=\"9\"/><circle class=\"dot\" cx=\"{:.1}\" cy=\"9\" r=\"4\"/></svg></td>\
             <td class=\"n\">{:.2} %</td><td>{against}</td><td class=\"n\">{:.1}</td></tr>",
            escape(&rung.name()),
            100.0 * rung.value,
            x(rung.interval[0]),
            x(rung.interval[1]),
            x(rung.value),
            100.0 * rung.validation,
            rung.seconds
        );
    }
    html + "</table></div>"
}

/// Who answers what, where there are two stages.
fn stages(outcome: &BuildOutcome) -> String {
    if outcome.evaluation.stages.is_empty() {
        return String::new();
    }
    let mut html = "<p>Stages are asked in this order; the certificate bounds what all of them answer together.</p><div class=\"scroll\"><table>\
        <tr><th>stage</th><th class=\"n\">from score</th><th class=\"n\">answers</th><th class=\"n\">right on those</th>\
        <th class=\"n\">wrong</th></tr>"
        .to_owned();
    for stage in &outcome.evaluation.stages {
        let _ = write!(
            html,
            "<tr><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
            escape(&stage.name()),
            stage.threshold.map_or_else(|| "never".to_owned(), |from| format!("{from:.3}")),
            percent(&stage.answered),
            percent(&stage.right),
            stage.losses
        );
    }
    html + "</table></div>"
}

/// How good it is at each depth of a tree of labels.
fn depths_of_labels(outcome: &BuildOutcome) -> String {
    let Some(tree) = &outcome.evaluation.hierarchy else { return String::new() };
    let mut html = format!(
        "<h2>Labels as a tree</h2><p>hierarchical F1 {}, precision {}, recall {}: a path counts with all nodes above it.</p><div class=\"scroll\">\
         <table><tr><th class=\"n\">depth</th><th class=\"n\">nodes</th><th class=\"n\">accuracy</th><th class=\"n\">macro F1</th></tr>",
        percent(&tree.f1),
        percent(&tree.precision),
        percent(&tree.recall)
    );
    for level in &tree.levels {
        let _ = write!(
            html,
            "<tr><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
            level.depth,
            level.nodes,
            percent(&level.accuracy),
            percent(&level.macro_f1)
        );
    }
    html + "</table></div>"
}

/// The curve of depths: what some of a decoder's layers cost, and what is lost without the others.
fn depths(outcome: &BuildOutcome) -> String {
    let points: Vec<_> = outcome.rungs.iter().filter_map(|rung| Some((rung, rung.decoder.as_ref()?))).collect();
    if points.len() < 2 {
        return String::new();
    }
    let low = points.iter().map(|(rung, _)| rung.interval[0]).fold(1.0, f64::min);
    let high = points.iter().map(|(rung, _)| rung.interval[1]).fold(0.0, f64::max);
    let (low, span) = (low - 0.01, (high - low + 0.02).max(0.02));
    let x = |value: f64| 10.0 + 300.0 * (value - low) / span;
    let mut html = format!(
        "<h3>Layers of the decoder</h3><div class=\"scroll\"><table><tr><th class=\"n\">layers</th><th class=\"n\">{}</th><th></th>\
         <th>against all layers, on validation rows</th><th class=\"n\">texts a second, eight at a time</th>\
         <th class=\"n\">keys and values a token</th><th class=\"n\">adapter</th><th>which</th></tr>",
        escape(&outcome.metric)
    );
    for (rung, depth) in points {
        let chosen = if depth.is_chosen { " class=\"chosen\"" } else { "" };
        let base = depth.base.as_ref().map_or_else(String::new, |base| format!(", {}", escape(base)));
        let against = depth.against_all.map_or_else(String::new, |test| {
            let [from, to] = test.interval.map(|bound| 100.0 * bound);
            format!("{:+.1} points [{from:+.1}, {to:+.1}]", 100.0 * test.difference)
        });
        let _ = write!(
            html,
            "<tr{chosen}><td class=\"n\">{} of {}{base}</td><td class=\"n\">{:.2} %</td>\
             <td><svg viewBox=\"0 0 320 18\" style=\"width:220px\"><line class=\"whisker\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"9\" y2=\"9\"/>\
             <circle class=\"dot\" cx=\"{:.1}\" cy=\"9\" r=\"4\"/></svg></td><td>{against}</td><td class=\"n\">{:.0} (× {:.2})</td>\
             <td class=\"n\">{:.1} KB</td><td class=\"n\">{:.1} MB</td><td>{}</td></tr>",
            depth.layers.len(),
            depth.of,
            100.0 * rung.value,
            x(rung.interval[0]),
            x(rung.interval[1]),
            x(rung.value),
            depth.rows_a_second,
            depth.speed,
            depth.kv_bytes_a_token as f64 / 1024.0,
            depth.adapter_bytes as f64 / 1024.0 / 1024.0,
            ranges(&depth.layers),
        );
    }
    html + "</table></div>"
}

/// `0–4, 7, 9–11`.
fn ranges(layers: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &layer in layers {
        match runs.last_mut() {
            Some((_, to)) if *to + 1 == layer => *to = layer,
            _ => runs.push((layer, layer)),
        }
    }
    let told = runs.iter().map(|(from, to)| if from == to { from.to_string() } else { format!("{from}–{to}") });
    told.collect::<Vec<_>>().join(", ")
}

/// What a rule for texts out of scope could turn away.
fn operating(outcome: &BuildOutcome) -> String {
    let points = outcome.evaluation.out_of_scope.as_ref().map_or(&[][..], |scope| &scope.operating);
    if points.is_empty() {
        return String::new();
    }
    let (mut heads, mut cells) = (String::new(), String::new());
    for point in points {
        let _ = write!(heads, "<th class=\"n\">{:.0} %</th>", 100.0 * point.in_scope_right);
        let _ = write!(cells, "<td class=\"n\">{:.1} %</td>", 100.0 * point.recall);
    }
    format!(
        "<h2>What is out of scope</h2><div class=\"scroll\"><table><tr><th>in scope and right, at least</th>{heads}</tr>\
         <tr><td>out of scope and told so</td>{cells}</tr></table></div><p>The operating curve of the rule on the {} rows: the best offset for \
         each column, chosen on these rows; the one that ships was chosen on validation rows.</p>",
        outcome.measured_on
    )
}

/// Axes from 0 to `x_max` and `y_max`, and what is drawn over them.
pub(crate) fn plot(x_max: f64, y_max: f64, x_name: &str, y_name: &str, inside: &str, caption: &str) -> String {
    let mut axes = String::new();
    for step in 0..=4 {
        let share = f64::from(step) / 4.0;
        let (x, y) = (LEFT + WIDTH * share, HEIGHT * (1.0 - share) + 10.0);
        let _ = write!(
            axes,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text><text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            LEFT + WIDTH,
            LEFT - 6.0,
            y + 4.0,
            label(y_max * share),
            HEIGHT + 26.0,
            label(x_max * share),
        );
    }
    format!(
        "<figure><svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{y_name} by {x_name}\">{axes}\
         <line class=\"axis\" x1=\"{LEFT}\" x2=\"{LEFT}\" y1=\"10\" y2=\"{}\"/>{inside}\
         <text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{x_name}</text><text x=\"{LEFT}\" y=\"8\">{y_name}</text></svg>\
         <figcaption>{caption}</figcaption></figure>",
        LEFT + WIDTH + 14.0,
        HEIGHT + BOTTOM + 8.0,
        HEIGHT + 10.0,
        LEFT + WIDTH / 2.0,
        HEIGHT + BOTTOM + 4.0,
    )
}

pub(crate) fn label(share: f64) -> String {
    let percent = 100.0 * share;
    if percent >= 10.0 || percent == 0.0 { format!("{percent:.0} %") } else { format!("{percent:.1} %") }
}

fn risk_coverage(outcome: &BuildOutcome) -> String {
    let points = &outcome.evaluation.risk_coverage;
    let epsilon = outcome.epsilon;
    let most = points.iter().map(|point| point.risk).fold(2.0 * epsilon, f64::max);
    let y_max = (most * 1.05).min(1.0);
    let (x, y) = (|v: f64| LEFT + WIDTH * v, |v: f64| 10.0 + HEIGHT * (1.0 - v / y_max));
    let line: Vec<String> = points.iter().map(|p| format!("{:.1},{:.1}", x(p.coverage), y(p.risk))).collect();
    let mut inside = format!(
        "<line class=\"bound\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{1:.1}\" y2=\"{1:.1}\"/><text class=\"bad\" x=\"{2}\" y=\"{3:.1}\">ε = {4}</text>\
         <polyline class=\"curve\" points=\"{5}\"/>",
        LEFT + WIDTH,
        y(epsilon),
        LEFT + 6.0,
        y(epsilon) - 5.0,
        label(epsilon),
        line.join(" ")
    );
    if let (Some(c), Some(loss)) = (&outcome.certificate, &outcome.evaluation.test_loss) {
        let at = x(outcome.evaluation.coverage.value);
        let anchor = if outcome.evaluation.coverage.value > 0.7 { "end" } else { "start" };
        let _ = write!(
            inside,
            "<line class=\"at\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"10\" y2=\"{}\"/><circle class=\"pick\" cx=\"{at:.1}\" cy=\"{:.1}\" r=\"5\"/>\
             <text class=\"good\" x=\"{:.1}\" y=\"24\" text-anchor=\"{anchor}\">score ≥ {:.3}</text>",
            HEIGHT + 10.0,
            y(loss.loss),
            if anchor == "end" { at - 7.0 } else { at + 7.0 },
            c.threshold
        );
    }
    let caption = format!(
        "Share of {} rows answered wrong without deferring, by the share answered alone. The threshold was chosen on the \
         calibration rows alone; the dashed line is the bound.",
        outcome.measured_on
    );
    plot(1.0, y_max, "answered alone", "answered wrong", &inside, &caption)
}

fn reliability(outcome: &BuildOutcome) -> String {
    let (x, y) = (|v: f64| LEFT + WIDTH * v, |v: f64| 10.0 + HEIGHT * (1.0 - v));
    let mut inside =
        format!("<line class=\"ideal\" x1=\"{LEFT}\" y1=\"{}\" x2=\"{}\" y2=\"10\"/>", HEIGHT + 10.0, LEFT + WIDTH);
    let most = outcome.evaluation.reliability.iter().map(|bin| bin.n).max().unwrap_or(1) as f64;
    for bin in &outcome.evaluation.reliability {
        let at = x(bin.score);
        let _ = write!(
            inside,
            "<line class=\"whisker\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/>\
             <circle class=\"dot\" cx=\"{at:.1}\" cy=\"{:.1}\" r=\"{:.1}\"><title>{} rows</title></circle>",
            y(bin.interval[0]),
            y(bin.interval[1]),
            y(bin.right),
            3.0 + 5.0 * (bin.n as f64 / most).sqrt(),
            bin.n
        );
    }
    let caption = "Does a score mean what it says? Dots on the dashed line do; larger dots hold more rows, whiskers are 95 % intervals.";
    plot(1.0, 1.0, "score", "share right", &inside, caption)
}

fn classes(outcome: &BuildOutcome) -> String {
    let mut classes = outcome.evaluation.per_class.clone();
    classes.retain(|class| class.n + class.predicted > 0);
    classes.sort_by(|a, b| a.f1.total_cmp(&b.f1).then_with(|| a.label.cmp(&b.label)));
    let more = classes.len().saturating_sub(MAX_BARS);
    classes.truncate(MAX_BARS);
    let mut html =
        "<div class=\"scroll\"><table><tr><th>label</th><th class=\"n\">rows</th><th class=\"n\">precision</th>\
                    <th class=\"n\">recall</th><th class=\"n\">F1</th><th></th></tr>"
            .to_owned();
    for class in &classes {
        let _ = write!(
            html,
            "<tr><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{:.1} %</td><td class=\"n\">{:.1} %</td><td class=\"n\">{:.1} %</td>\
             <td><div class=\"bar\"><i style=\"width:{:.1}%\"></i></div></td></tr>",
            escape(&class.label),
            class.n,
            100.0 * class.precision,
            100.0 * class.recall,
            100.0 * class.f1,
            100.0 * class.f1
        );
    }
    html += "</table></div>";
    if more > 0 {
        let _ = write!(html, "<p>… and {more} labels with better F1.</p>");
    }
    html
}

fn confusions(outcome: &BuildOutcome) -> String {
    if outcome.evaluation.confusions.is_empty() {
        return String::new();
    }
    let mut html = "<h2>Most frequent confusions</h2><div class=\"scroll\"><table><tr><th>is</th><th>was called</th>\
                    <th class=\"n\">rows</th></tr>"
        .to_owned();
    for pair in &outcome.evaluation.confusions {
        let (gold, predicted) = (escape(&pair.gold), escape(&pair.predicted));
        let _ = write!(html, "<tr><td>{gold}</td><td>{predicted}</td><td class=\"n\">{}</td></tr>", pair.n);
    }
    html + "</table></div>"
}

fn slices(outcome: &BuildOutcome) -> String {
    if outcome.evaluation.slices.is_empty() {
        return String::new();
    }
    let mut html = "<h2>By other columns</h2><div class=\"scroll\"><table><tr><th>column</th><th>value</th><th class=\"n\">rows</th>\
                    <th class=\"n\">accuracy</th><th class=\"n\">answered alone</th><th class=\"n\">answered wrong alone</th><th>within ε?</th></tr>"
        .to_owned();
    for slice in &outcome.evaluation.slices {
        let (risk, says) = slice.risk.as_ref().map_or_else(Default::default, |risk| {
            let measured = Measured { value: risk.loss, interval: risk.interval };
            let says = match (risk.held, risk.shown) {
                (false, _) => Says::No,
                (true, true) => Says::Yes,
                (true, false) => Says::CannotTell,
            };
            (percent(&measured), badge(says))
        });
        let _ = write!(
            html,
            "<tr><td>{}</td><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{risk}</td><td>{says}</td></tr>",
            escape(&slice.column),
            escape(&slice.value),
            slice.n,
            percent(&slice.accuracy),
            percent(&slice.coverage)
        );
    }
    html + "</table></div><p>Intervals of the last figure are wide enough for all slices together.</p>"
}

fn badge(says: Says) -> String {
    let class = match says {
        Says::Yes => "yes",
        Says::No => "no",
        Says::CannotTell => "cannot",
    };
    format!("<span class=\"says {class}\">{}</span>", says.words())
}

fn findings(outcome: &BuildOutcome) -> String {
    let mut html = "<h2>What these rows allow to say</h2><div class=\"scroll\"><table>".to_owned();
    for finding in &outcome.findings {
        let _ = write!(
            html,
            "<tr><td>{}</td><td>{}</td><td>{}</td></tr>",
            escape(&finding.question),
            badge(finding.says),
            escape(&finding.because)
        );
    }
    html + "</table></div>"
}

/// Error by training rows, both on logarithmic axes: a power law is a straight line.
fn learning_curve(outcome: &BuildOutcome) -> String {
    let Some(curve) = &outcome.learning_curve else { return String::new() };
    format!(
        "<h2>Would more rows help?</h2><div class=\"plots\">{}</div>",
        curve_figure(curve, &outcome.metric, "validation")
    )
}

/// The same as a figure; `metric` on rows of a part.
pub(crate) fn curve_figure(curve: &LearningCurve, metric: &str, part: &str) -> String {
    let error = |value: f64| (1.0 - value).max(1e-4);
    let all = || curve.points.iter().chain(&curve.forecasts);
    let n = |n: u64| (n.max(1) as f64).ln();
    let (first, last) = (n(curve.points[0].n), all().map(|point| n(point.n)).fold(0.0, f64::max));
    let low = all().map(|point| error(point.interval[1])).fold(1.0, f64::min).ln();
    let high = all().map(|point| error(point.interval[0])).fold(0.0, f64::max).ln();
    let x = |rows: u64| LEFT + WIDTH * (0.04 + 0.92 * (n(rows) - first) / (last - first).max(1e-9));
    let y = |value: f64| 10.0 + HEIGHT * (0.04 + 0.92 * (high - error(value).ln()) / (high - low).max(1e-9));
    let mut inside = format!(
        "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{LEFT}\" y1=\"10\" y2=\"{0}\"/><line class=\"axis\" x1=\"{LEFT}\" x2=\"{1}\" y1=\"{0}\" y2=\"{0}\"/>",
        HEIGHT + 10.0,
        LEFT + WIDTH
    );
    for (points, class) in [(&curve.points, "curve"), (&curve.forecasts, "curve ahead")] {
        let from = if class == "curve" { None } else { curve.points.last() };
        let line = from.into_iter().chain(points).map(|p| format!("{:.1},{:.1}", x(p.n), y(p.value)));
        let _ = write!(inside, "<polyline class=\"{class}\" points=\"{}\"/>", line.collect::<Vec<_>>().join(" "));
        for point in points {
            let at = x(point.n);
            let _ = write!(
                inside,
                "<line class=\"whisker\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/><circle class=\"dot\" cx=\"{at:.1}\" cy=\"{:.1}\" r=\"3.5\"/>\
                 <text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text><text x=\"{:.1}\" y=\"{:.1}\">{:.1} %</text>",
                y(point.interval[0]),
                y(point.interval[1]),
                y(point.value),
                HEIGHT + 26.0,
                point.n,
                at + 6.0,
                y(point.value) - 6.0,
                100.0 * (1.0 - point.value)
            );
        }
    }
    let told = match (&curve.aim.rows, &curve.aim.cannot_tell) {
        (Some(rows), _) => format!("About {rows} training rows in all would make it {}.", curve.aim.what),
        (None, why) => format!(
            "How many rows would make it {}: cannot tell, {}.",
            curve.aim.what,
            why.as_deref().unwrap_or_default()
        ),
    };
    format!(
        "<figure><svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"error by training rows\">{inside}\
         <text x=\"{}\" y=\"{}\" text-anchor=\"middle\">training rows</text><text x=\"{LEFT}\" y=\"8\">1 − {} on {part} rows</text></svg>\
         <figcaption>The rung <code>{}</code>, made again from parts of the training rows; whiskers are 95 % intervals, dashed is what a power law \
         expects, at most four times the rows there are. {}</figcaption></figure>",
        LEFT + WIDTH + 24.0,
        HEIGHT + BOTTOM + 8.0,
        LEFT + WIDTH / 2.0,
        HEIGHT + BOTTOM + 4.0,
        escape(metric),
        curve.rung.name(),
        escape(&told)
    )
}

fn failures(outcome: &BuildOutcome) -> String {
    if outcome.failures.is_empty() {
        return String::new();
    }
    let mut html = format!(
        "<h2>Known failures</h2><p>The worst of the {} rows that it gets wrong: those that it would have answered alone come first, the surest at the top.</p>\
         <div class=\"scroll\"><table><tr><th>row</th><th>text</th><th>is</th><th>was called</th><th class=\"n\">score</th><th></th></tr>",
        outcome.measured_on
    );
    for row in &outcome.failures {
        let _ = write!(
            html,
            "<tr><td><code>{}</code></td><td>{}</td><td>{}</td><td>{}</td><td class=\"n\">{:.3}</td><td>{}</td></tr>",
            escape(&row.place),
            escape(&row.text),
            escape(&row.gold),
            escape(&row.called),
            row.score,
            if row.accepted { "answered alone" } else { "deferred" }
        );
    }
    html + "</table></div>"
}

fn lineage(specialist: &Specialist) -> String {
    let manifest = specialist.manifest();
    let mut html = "<h2>What it was made from</h2><div class=\"scroll\"><table><tr><th>role</th><th class=\"n\">rows</th><th>SHA-256 of the file</th></tr>".to_owned();
    for file in &manifest.recipe.data {
        let _ = write!(
            html,
            "<tr><td>{}</td><td class=\"n\">{}</td><td><code>{}</code></td></tr>",
            escape(&file.role),
            file.rows,
            file.sha256
        );
    }
    if let Some(base) = &manifest.base {
        let _ = write!(
            html,
            "<tr><td>base model {}</td><td></td><td><code>{}</code></td></tr>",
            escape(&base.name),
            base.digest
        );
    }
    if let Some(decoder) = manifest.generation.as_ref().map(|generation| &generation.decoder) {
        let (name, digest) = (escape(&decoder.name), decoder.digest);
        let _ = write!(html, "<tr><td>decoder {name}</td><td></td><td><code>{digest}</code></td></tr>");
    }
    html + "</table></div>"
}

/// Text as it stands in HTML, inside and outside of attributes.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
