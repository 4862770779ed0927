//! What is none of these, when a score says so: how many such rows a threshold turns away, and what it costs in scope.
//!
//! The threshold is the strictest at which a stated share of the *validation* rows in scope is still answered and right. It is looked for on
//! validation rows and then applied to others, so that nothing is chosen on the rows that are reported. It needs no row out of scope.

use serde::{Deserialize, Serialize};

use super::metrics::Measured;

/// Share of rows in scope that are to be answered and right.
pub const IN_SCOPE_RIGHT: f64 = 0.95;

/// Rejection by score.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rejection {
    /// Scores below it are turned away.
    pub threshold: f32,
    /// Share of rows in scope that are answered and right there.
    pub in_scope_right: Measured,
    /// Share of rows out of scope that are turned away, or called out of scope.
    pub recall: Measured,
}

/// The strictest threshold at which [`IN_SCOPE_RIGHT`] of the rows in scope are answered and right; `None` where no threshold is loose
/// enough. `rows`: of each row in scope its score and whether it is right.
pub fn threshold(rows: impl Iterator<Item = (f32, bool)>) -> Option<f32> {
    let (mut right, mut n): (Vec<f32>, usize) = (Vec::new(), 0);
    for (score, is_right) in rows {
        n += 1;
        if is_right {
            right.push(score);
        }
    }
    right.sort_by(|a, b| b.total_cmp(a));
    let needed = (n as f64 * IN_SCOPE_RIGHT).ceil() as usize;
    if n == 0 { None } else { right.get(needed.max(1) - 1).copied() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_strictest_threshold_that_leaves_enough() {
        let rows = |wrong: usize| (0..100).map(move |i| (i as f32 / 100.0, i >= wrong));
        assert_eq!(threshold(rows(0)), Some(0.05), "95 of 100 lie at or above it");
        assert_eq!(threshold(rows(5)), Some(0.05));
        assert_eq!(threshold(rows(6)), None, "only 94 are right at all");
        assert_eq!(threshold(std::iter::empty()), None);
    }
}
