//! What the rows allow to say, one sentence a question. "Cannot tell" is an answer, with what it would take.

use metier_model::proof::{Verdict, clopper_pearson};
use serde::{Deserialize, Serialize};

use crate::{build::BuildOutcome, craft::canary};

/// Chance of a difference in class mix below which it is called one.
const SURPRISING: f64 = 0.01;
/// With fewer groups a t test is a guess.
const FEW_GROUPS: u64 = 20;
/// With fewer canaries that none comes out says little.
const FEW_CANARIES: u64 = 20;

/// A question with its answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// The question.
    pub question: String,
    /// The answer.
    pub says: Says,
    /// Why, with figures.
    pub because: String,
}

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Says {
    /// Yes, shown by these rows.
    Yes,
    /// No, shown by these rows.
    No,
    /// Neither.
    CannotTell,
}

impl Says {
    /// For people.
    pub fn words(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::No => "no",
            Self::CannotTell => "cannot tell",
        }
    }
}

/// Everything that is asked of a build.
pub fn findings(outcome: &BuildOutcome) -> Vec<Finding> {
    [certificate(outcome), reference(outcome), slices(outcome), mix(outcome), rows(outcome), memorisation(outcome)]
        .into_iter()
        .flatten()
        .collect()
}

fn finding(question: &str, says: Says, because: String) -> Option<Finding> {
    Some(Finding { question: question.to_owned(), says, because })
}

/// Does it keep to itself what it has seen once?
fn memorisation(outcome: &BuildOutcome) -> Option<Finding> {
    let found = outcome.memorisation.as_ref()?;
    let (planted, extracted) = (found.planted, found.extracted);
    let [_, most] = clopper_pearson(extracted, planted, 0.95);
    let because = format!(
        "{extracted} of {planted} made-up secrets came out when it was asked (at most {:.0} % at 95 %); their mean exposure is {:.1} bits of {:.0}, \
         chance gives {:.1}; {} are among the likeliest eighth (p = {:.3})",
        100.0 * most,
        found.mean_exposure,
        ((canary::ALTERNATIVES + 1) as f64).log2(),
        found.chance_exposure,
        found.high,
        found.p_value
    );
    let says = if extracted > 0 || found.p_value < SURPRISING {
        Says::No
    } else if planted < FEW_CANARIES {
        Says::CannotTell
    } else {
        Says::Yes
    };
    finding("Does it keep training rows to itself?", says, because)
}

fn certificate(outcome: &BuildOutcome) -> Option<Finding> {
    let question = "Does the certificate hold on rows it has not seen?";
    let Some(loss) = &outcome.evaluation.test_loss else {
        let needed = match outcome.rows_needed {
            Some(rows) => format!("there is none: about {rows} calibration rows are needed"),
            None => "there is none, and more rows would not help: its surest answers err too often".to_owned(),
        };
        return finding(question, Says::CannotTell, needed);
    };
    let figures = format!(
        "{} of {} {} rows accepted and wrong, {}{:.2} % [{:.2}, {:.2}], against ε = {:.2} %",
        loss.losses,
        outcome.evaluation.n,
        outcome.measured_on,
        if outcome.evaluation.sets.is_some() { "mean 1 − Jaccard " } else { "" },
        100.0 * loss.loss,
        100.0 * loss.interval[0],
        100.0 * loss.interval[1],
        100.0 * loss.epsilon
    );
    match (loss.held, loss.shown) {
        (false, _) => finding(question, Says::No, figures),
        (true, true) => finding(question, Says::Yes, figures),
        (true, false) => {
            finding(question, Says::CannotTell, figures + ": these rows neither contradict it nor show it")
        }
    }
}

fn reference(outcome: &BuildOutcome) -> Option<Finding> {
    let test = outcome.evaluation.against_reference?;
    let says = match test.verdict {
        Verdict::NonInferior => Says::Yes,
        Verdict::Inferior => Says::No,
        Verdict::CannotTell => Says::CannotTell,
    };
    let mut because = format!(
        "{:+.2} points [{:+.2}, {:+.2}] to it on the same rows, all answered",
        100.0 * test.difference,
        100.0 * test.interval[0],
        100.0 * test.interval[1]
    );
    if let (Verdict::CannotTell, Some(rows)) = (test.verdict, test.rows_needed) {
        because += &format!("; if they are equals, about {rows} test rows would show it");
    }
    finding("Is it as good as the reference, up to the margin?", says, because)
}

fn slices(outcome: &BuildOutcome) -> Option<Finding> {
    let risks = outcome.evaluation.slices.iter().filter_map(|slice| Some((slice, slice.risk?)));
    let risks: Vec<_> = risks.collect();
    if risks.is_empty() {
        return None;
    }
    let name = |of: &[&(&super::evaluation::Slice, super::evaluation::TestLoss)]| {
        let names = of.iter().take(5).map(|(slice, _)| format!("{} = {}", slice.column, slice.value));
        let more = of.len().saturating_sub(5);
        names.collect::<Vec<_>>().join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
    };
    let broken: Vec<_> = risks.iter().filter(|(_, risk)| !risk.held).collect();
    let open: Vec<_> = risks.iter().filter(|(_, risk)| risk.held && !risk.shown).collect();
    let question = "Is ε kept in every slice?";
    if !broken.is_empty() {
        let because =
            format!("above it in {}: the certificate speaks of all traffic together, not of each part", name(&broken));
        return finding(question, Says::No, because);
    }
    if !open.is_empty() {
        return finding(
            question,
            Says::CannotTell,
            format!("too few rows in {} of {}: {}", open.len(), risks.len(), name(&open)),
        );
    }
    finding(question, Says::Yes, format!("in each of {}", risks.len()))
}

fn mix(outcome: &BuildOutcome) -> Option<Finding> {
    let mix = outcome.class_mix.as_ref()?;
    let question = "Are the measured rows like the calibration rows?";
    let because = format!(
        "largest difference in `{}`: {:.1} % against {:.1} % (p = {:.3} over all labels)",
        mix.label,
        100.0 * mix.calibration,
        100.0 * mix.test,
        mix.p_value
    );
    if mix.p_value < SURPRISING {
        return finding(question, Says::No, because);
    }
    // That no difference was found shows none.
    finding(question, Says::CannotTell, because + ": nothing speaks against it")
}

fn rows(outcome: &BuildOutcome) -> Option<Finding> {
    let curve = outcome.learning_curve.as_ref()?;
    let question = format!("Would more rows make it {}?", curve.aim.what);
    match (&curve.aim.rows, &curve.aim.rows_interval, &curve.aim.cannot_tell) {
        (Some(rows), Some((low, high)), _) => {
            let (says, high) = match high {
                Some(high) => (Says::Yes, high.to_string()),
                None => (Says::CannotTell, "more than four times what there is".to_owned()),
            };
            let because =
                format!("about {rows} training rows in all [{low}, {high}], if errors go on falling as they did");
            finding(&question, says, because)
        }
        (_, _, why) => finding(&question, Says::CannotTell, why.clone().unwrap_or_default()),
    }
}

/// A remark on groups, where there are some.
pub fn groups_note(outcome: &BuildOutcome) -> Option<String> {
    let groups = outcome.evaluation.groups?;
    let certificate = outcome.certificate.and_then(|certificate| certificate.groups);
    let certificate = certificate.map_or_else(String::new, |n| {
        format!(". The certificate counts each of the {n} groups of its calibration rows once: it speaks of rows of new groups")
    });
    let few = if groups.n < FEW_GROUPS { "; so few groups say little" } else { "" };
    Some(format!(
        "the {} {} rows come in {} groups (largest {}); intervals take that into account (design effect {:.1}){few}{certificate}",
        outcome.evaluation.n, outcome.measured_on, groups.n, groups.largest, groups.design_effect
    ))
}
