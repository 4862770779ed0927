//! Whose F1? The label that a task names, else the one that says yes, else the rarer of two.

use metier_model::specialist::manifest::Recipe;

use super::{
    nearest,
    split::Splits,
    table::DataError,
    task::{Metric, Target, TaskFile},
};
use crate::data::Part;

/// Labels that say yes, in lower case.
const YES: [&str; 6] = ["1", "true", "yes", "match", "valid", "positive"];

/// The target of a task whose labels are known now.
///
/// # Errors
/// Where the named label is none of the task's, or none is named and there are not two.
pub fn resolve(task: &TaskFile, splits: &Splits) -> Result<Target, DataError> {
    let Metric::F1 { .. } = task.target.metric else { return Ok(task.target) };
    let labels = &splits.labels;
    let positive = match &task.positive {
        Some(named) => labels.iter().position(|label| label == named).ok_or_else(|| {
            let near = nearest(named, labels.iter().map(String::as_str));
            let near = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
            DataError::Task(format!("`target.positive` is `{named}`, which is no label of the training rows{near}"))
        })?,
        None if labels.len() == 2 => yes(labels).unwrap_or_else(|| {
            let n = |class| splits.part(Part::Train).iter().filter(|example| example.class == class).count();
            usize::from(n(1) <= n(0))
        }),
        None => {
            let message =
                format!("metric `f1` is that of one label: name one of {} in `target.positive`", labels.len());
            return Err(DataError::Task(message));
        }
    };
    Ok(Target { metric: Metric::F1 { positive }, ..task.target })
}

/// The only label that says yes.
fn yes(labels: &[String]) -> Option<usize> {
    let says: Vec<usize> = (0..labels.len()).filter(|at| YES.contains(&labels[*at].to_lowercase().as_str())).collect();
    if let [one] = says.as_slice() { Some(*one) } else { None }
}

/// The metric that a bundle was made by.
pub fn recorded(recipe: &Recipe, labels: &[String]) -> Metric {
    let positive = recipe.positive.as_ref().and_then(|positive| labels.iter().position(|label| label == positive));
    match (recipe.metric.as_str(), positive) {
        ("f1", Some(positive)) => Metric::F1 { positive },
        ("macro_f1", _) => Metric::MacroF1,
        ("micro_f1", _) => Metric::MicroF1,
        _ => Metric::Accuracy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_yes() {
        let labels = |labels: &[&str]| labels.iter().map(|label| (*label).to_owned()).collect::<Vec<_>>();
        assert_eq!(yes(&labels(&["0", "1"])), Some(1));
        assert_eq!(yes(&labels(&["Match", "other"])), Some(0));
        assert_eq!(yes(&labels(&["a", "b"])), None);
        assert_eq!(yes(&labels(&["true", "yes"])), None, "which of them?");
    }
}
