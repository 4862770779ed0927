//! Is a text none of these? A rule over margins, for tasks whose rows out of scope have a label of their own.
//!
//! A class of its own sees few of the texts that are none of these and is called too seldom; a threshold on the best margin does not hear what
//! that class has to say. The rule weighs both:
//!
//! ```text
//! r = a·top + b·gap − c·none + d        top, gap: best margin in scope, and its lead over the second; none: margin of the out-of-scope class
//! margin of none ← top − r              so the out-of-scope label wins where r < 0, and by how much is a margin like any other
//! ```
//!
//! Absent: fitting (`metier-train/eval/rejection`).

use serde::{Deserialize, Serialize};

/// See above; (a, b, c) has length 1, so that r has the scale of margins.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScopeRule {
    /// Weight of the best margin in scope.
    pub top: f32,
    /// Weight of its lead.
    pub gap: f32,
    /// Weight of the out-of-scope margin, which speaks against scope.
    pub none: f32,
    /// Greater: less is turned away.
    pub offset: f32,
}

impl ScopeRule {
    /// r: below 0 the text is taken for none of these. `none`: place of the out-of-scope label.
    pub fn score(&self, margins: &[f32], none: usize) -> f32 {
        let [top, gap, of_none] = features(margins, none);
        self.top * top + self.gap * gap - self.none * of_none + self.offset
    }

    /// The margins with that of the out-of-scope label as the rule has it.
    pub fn apply(&self, margins: &[f32], none: usize) -> Vec<f32> {
        let mut adjusted = margins.to_vec();
        adjusted[none] = features(margins, none)[0] - self.score(margins, none);
        adjusted
    }

    /// Finite numbers.
    pub fn is_valid(&self) -> bool {
        [self.top, self.gap, self.none, self.offset].iter().all(|x| x.is_finite())
    }
}

/// Best margin in scope, its lead over the second (0 where there is no second), and the margin of none.
pub fn features(margins: &[f32], none: usize) -> [f32; 3] {
    let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
    for (class, &margin) in margins.iter().enumerate().filter(|(class, _)| *class != none) {
        let _ = class;
        if margin > first {
            (first, second) = (margin, first);
        } else if margin > second {
            second = margin;
        }
    }
    [first, if second.is_finite() { first - second } else { 0.0 }, margins[none]]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_label_wins_where_the_rule_says_so() {
        let rule = ScopeRule { top: 0.6, gap: 0.0, none: 0.8, offset: 0.1 };
        assert_eq!(features(&[0.5, -0.2, 0.1], 1), [0.5, 0.4, -0.2]);
        // r = 0.3 + 0.16 + 0.1
        let sure = rule.apply(&[0.5, -0.2, 0.1], 1);
        assert!((sure[1] - (0.5 - 0.56)).abs() < 1e-6 && (sure[0], sure[2]) == (0.5, 0.1));
        let unsure = rule.apply(&[-0.6, -0.4, -0.9], 1);
        assert!(rule.score(&[-0.6, -0.4, -0.9], 1) > 0.0 && unsure[1] < unsure[0], "-0.36 + 0.32 + 0.1");
        let none = rule.apply(&[-0.6, 0.4, -0.9], 1);
        assert!(none[1] > none[0], "-0.36 - 0.32 + 0.1");
        assert_eq!(features(&[0.5, 0.2], 0), [0.2, 0.0, 0.5]);
    }
}
