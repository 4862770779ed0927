//! At which score may it answer alone? Which of the three tests these calibration rows are for.

use metier_model::proof::{
    CascadeStage, Certificate, Refusal, StageShare, learn_then_test, learn_then_test_cascade, learn_then_test_graded,
    learn_then_test_grouped,
};

use super::cluster::Groups;

/// Learn-then-Test on calibration rows of `(score, loss if accepted)`, each loss 0..1; a row whose score is negative is never accepted.
///
/// Where rows come in groups, groups are counted; else losses that are all 0 or 1 have an exact test, and others a bound. `has_degrees`:
/// other losses are possible, whether or not these rows have any.
///
/// # Errors
///
/// What the rows cannot carry, with how many would do.
pub fn certify(
    rows: &[(f32, f64)],
    has_degrees: bool,
    groups: Option<&Groups>,
    (epsilon, delta): (f64, f64),
) -> Result<Certificate, Refusal> {
    if let Some(groups) = groups {
        return learn_then_test_grouped(rows, groups.of_row(), epsilon, delta);
    }
    if has_degrees {
        return learn_then_test_graded(rows, epsilon, delta);
    }
    let rows: Vec<(f32, bool)> = rows.iter().map(|(score, loss)| (*score, *loss > 0.0)).collect();
    learn_then_test(&rows, epsilon, delta)
}

/// The same for stages that are asked one after the other: of each its rows and the floor of its threshold. All must be of the same rows;
/// what each does is told in their order.
///
/// # Errors
///
/// What the rows cannot carry, with how many would do.
pub fn certify_cascade(
    stages: &[(Vec<(f32, f64)>, f32)],
    has_degrees: bool,
    groups: Option<&Groups>,
    bound: (f64, f64),
) -> Result<(Certificate, Vec<StageShare>), Refusal> {
    let stages: Vec<CascadeStage<'_>> =
        stages.iter().map(|(rows, floor)| CascadeStage { rows, floor: *floor }).collect();
    learn_then_test_cascade(&stages, groups.map(Groups::of_row), has_degrees, bound)
}
