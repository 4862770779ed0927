//! Does the 80 % interval of a roadmap's saving hold 80 % of the time? Worlds whose truth is drawn; in each a forecast is made of its first
//! weeks alone, and then the year happens: `cargo run --release -p metier-train --example roadmap_worlds -- [WORLDS] [SEED]`.
//!
//! The year is added up here by the formula's own words and not by the forecast's code. Worlds differ from what the forecast assumes where it
//! assumes for simplicity: weeks hang together from one to the next (AR(1), not blocks), tasks have trends of their own, prices of LLMs fall by
//! an amount that nobody knew.
#![allow(clippy::print_stdout, reason = "an example has no other way to answer")]
#![allow(clippy::disallowed_methods, reason = "an example stands where the roof stands")]

use metier_model::proof::clopper_pearson;
use metier_train::discover::{
    TaskKind,
    saving::{
        Case, Count, Forecast, WeekUse,
        assumptions::Assumptions,
        chance::{Chance, Evidence},
        draw::Draw,
        order,
    },
};

const WEEKS: usize = 13;
const HORIZON: usize = 52;

/// What is true of a task.
struct Truth {
    future: Vec<WeekUse>,
    deferred: f64,
    wrong: f64,
    passes: bool,
    cheaper_works: bool,
    own_overrun: f64,
}

/// How hard a world is.
#[derive(Clone, Copy)]
struct Weather {
    /// Shared drift of volumes, log a year.
    drift: f64,
    /// Drift of each task, log a year.
    own_drift: f64,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: u64| arguments.get(at).and_then(|text| text.parse().ok()).unwrap_or(default);
    let (worlds, seed) = (number(0, 1000), number(1, 1));
    for (name, weather) in [
        ("as assumed: shared drift 0.2 a year", Weather { drift: 0.2, own_drift: 0.0 }),
        ("calm: no drift", Weather { drift: 0.0, own_drift: 0.0 }),
        ("tasks drift on their own too, 0.3 a year", Weather { drift: 0.2, own_drift: 0.3 }),
        ("wild: shared drift 0.5 a year", Weather { drift: 0.5, own_drift: 0.3 }),
    ] {
        let (mut covered, mut below, mut above, mut losses, mut p_loss, mut brier) = (0u64, 0u64, 0u64, 0u64, 0.0, 0.0);
        let (mut promised, mut came) = (0.0, 0.0);
        for world in 0..worlds {
            let (forecast, realised) = live(seed.wrapping_mul(1_000_003).wrapping_add(world), weather);
            covered += u64::from((forecast.p10..=forecast.p90).contains(&realised));
            below += u64::from(realised < forecast.p10);
            above += u64::from(realised > forecast.p90);
            losses += u64::from(realised < 0.0);
            p_loss += forecast.p_loss;
            brier += (forecast.p_loss - f64::from(u8::from(realised < 0.0))).powi(2);
            promised += forecast.mean;
            came += realised;
        }
        let [low, high] = clopper_pearson(covered, worlds, 0.95);
        println!(
            "{name}: the 80 % interval held in {covered} of {worlds} worlds, {:.1} % [{:.1}, {:.1}]; {below} below, {above} above; loss promised {:.1} %, came {:.1} %, Brier {:.3}; saving promised {:.0}, came {:.0} a world",
            100.0 * covered as f64 / worlds as f64,
            100.0 * low,
            100.0 * high,
            100.0 * p_loss / worlds as f64,
            100.0 * losses as f64 / worlds as f64,
            brier / worlds as f64,
            promised / worlds as f64,
            came / worlds as f64
        );
    }
}

/// A world: the forecast of its saving, and what came.
fn live(seed: u64, weather: Weather) -> (metier_train::discover::saving::Quantiles, f64) {
    let mut draw = Draw::new(seed, "a world");
    let assumptions = Assumptions::default();
    let n_tasks = 5 + draw.below(8);
    let shared = walk(&mut draw, weather.drift);
    let overrun = assumptions.overrun_median * (assumptions.overrun_sd * draw.normal()).exp();
    // Around the mean that is assumed.
    let decline = 2.0 * assumptions.llm_price_decline * draw.uniform();
    let (cases, truths): (Vec<Case>, Vec<Truth>) =
        (0..n_tasks).map(|at| task(at, &mut draw, &shared, weather, &assumptions)).unzip();
    let forecast = Forecast::new(WEEKS, &assumptions, seed);
    let (priced, drawn): (Vec<_>, Vec<_>) = cases.iter().map(|case| forecast.price(case)).unzip();
    let portfolio = order::order(&forecast, &cases, &priced, &drawn, &vec![None; n_tasks]);

    let a = &assumptions;
    let hour = a.machine_usd_per_hour + a.machine_watts / 1000.0 * a.energy_usd_per_kwh;
    let (mut saved, mut hours, mut setup, mut encoder, mut decoder) = (0.0, 0.0, 0.0, 0.0f64, 0.0f64);
    for ((case, truth), priced) in cases.iter().zip(&truths).zip(&priced) {
        let sum = |of: &dyn Fn(&WeekUse) -> f64| truth.future.iter().map(of).sum::<f64>();
        let mut requests = sum(&|week| week.requests);
        let mut unit = sum(&|week| week.cost_usd) / requests * (1.0 - decline * 0.5);
        for other in &priced.alternatives {
            let before = requests * unit;
            use metier_train::discover::saving::options::Alternative;
            match other.alternative {
                Alternative::Cache => requests *= 1.0 - case.repeats * a.cache_valid_share,
                Alternative::PromptCache => {
                    let part = case.input_cost_share * case.shared_prompt * a.prompt_cache_hit_share;
                    unit *= 1.0 - part * (1.0 - a.prompt_cache_price_ratio);
                }
                Alternative::CheaperLlm if truth.cheaper_works => unit *= case.cheaper_ratio,
                Alternative::CheaperLlm => {}
                Alternative::Batch => unit *= 1.0 - a.batch_share * (1.0 - a.batch_price_ratio),
            }
            saved += before - requests * unit - other.days * truth.own_overrun * overrun * a.engineer_day_usd;
        }
        let is_made = !(priced.only_if_cheaper_fails && truth.cheaper_works);
        if !is_made || !portfolio.order.iter().any(|place| place.above_line && place.id == case.id) {
            continue;
        }
        (setup, *if case.kind == TaskKind::Generate { &mut decoder } else { &mut encoder }) =
            (a.setup_days, a.base_days);
        let days = match case.kind {
            TaskKind::Classify => a.classify_days,
            TaskKind::Extract => a.extract_days,
            TaskKind::Generate => a.generate_days,
        };
        let day = a.engineer_day_usd * overrun;
        let training = 10.0 / 60.0 * a.machine_usd_per_hour;
        let labels = a.gold_rows * a.label_usd;
        if !truth.passes {
            saved -= days * day + labels + training;
            continue;
        }
        let live = requests * (a.horizon_weeks - a.weeks_to_live) / a.horizon_weeks;
        let shadow = requests * a.shadow_weeks / a.horizon_weeks;
        let seconds = a.request_overhead_seconds + case.request_seconds.unwrap_or_default();
        hours += (live + shadow) * seconds / 3600.0;
        saved += live * unit * (1.0 - truth.deferred) - live * truth.wrong * a.loss_per_error_usd;
        saved -= labels + training * (1.0 + a.retrainings);
        saved -= (days + a.operations_days + a.retrainings * a.retraining_days) * day;
    }
    if setup > 0.0 {
        let all = a.horizon_weeks * 168.0;
        let machines = (hours / all * a.peak_to_mean / a.utilisation_limit).ceil().max(1.0);
        saved -= (setup + encoder + decoder) * a.engineer_day_usd * overrun + machines * all * hour;
    }
    (portfolio.saving, saved)
}

/// Factors by week of a walk at random, from the log's first week on.
fn walk(draw: &mut Draw, sd_a_year: f64) -> Vec<f64> {
    let step = sd_a_year / 52f64.sqrt();
    let mut level = 0.0;
    let all = (0..WEEKS + HORIZON).map(|_| {
        level += step * draw.normal();
        level
    });
    all.map(f64::exp).collect()
}

fn task(at: usize, draw: &mut Draw, shared: &[f64], weather: Weather, a: &Assumptions) -> (Case, Truth) {
    let kind = [TaskKind::Classify, TaskKind::Classify, TaskKind::Extract, TaskKind::Generate][draw.below(4)];
    let volume = (1.2 * draw.normal() + 11.0).exp(); // about 60,000 requests a week, from 6,000 to 600,000
    let unit = 0.0026 * (0.6 * draw.normal()).exp();
    let own = walk(draw, weather.own_drift);
    let (phi, spread) = (0.3 + 0.4 * draw.uniform(), 0.1 + 0.3 * draw.uniform());
    let mut level = spread * draw.normal();
    let weeks: Vec<WeekUse> = (0..WEEKS + HORIZON)
        .map(|week| {
            level = phi * level + spread * (1.0 - phi * phi).sqrt() * draw.normal();
            let requests = volume * shared[week] * own[week] * level.exp();
            let price = (0.05 * draw.normal()).exp();
            WeekUse {
                requests,
                cost_usd: requests * unit * price,
                input_tokens: 800.0 * requests,
                output_tokens: 60.0 * requests,
            }
        })
        .collect();
    // What the trial counted of a truth that nobody sees.
    let rows = 200 + draw.below(600);
    let (deferred, differs) = (0.05 + 0.4 * draw.uniform(), 0.02 * draw.uniform());
    let count = |draw: &mut Draw, share: f64| Count {
        k: (0..rows).filter(|_| draw.chance(share)).count() as f64,
        n: rows as f64,
    };
    let error_share = 0.5;
    let p = draw.beta(4.0, 1.0);
    let case = Case {
        id: format!("t-{at}"),
        kind,
        weeks: weeks[..WEEKS].to_vec(),
        volume_interval: [1.0, 1.0],
        input_cost_share: 0.77,
        repeats: if draw.chance(0.3) { 0.3 * draw.uniform() } else { 0.0 },
        shared_prompt: if draw.chance(0.3) { 0.8 } else { 0.1 },
        cheaper_ratio: 0.06,
        chance: Chance::of(p, a.chance_strength),
        evidence: Evidence::Tried,
        deferred: count(draw, deferred),
        differs: count(draw, differs),
        error_share,
        training_minutes: Some(10.0),
        request_seconds: Some(0.004 + 0.02 * draw.uniform()),
        shares_labels: None,
        personal: 0.0,
    };
    let truth = Truth {
        future: weeks[WEEKS..].to_vec(),
        deferred,
        wrong: differs * error_share,
        passes: draw.chance(p),
        cheaper_works: draw.chance(a.cheaper_llm_chance),
        own_overrun: 1.0,
    };
    (case, truth)
}
