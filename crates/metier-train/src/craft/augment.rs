//! The trade of changed copies: a row's ids in, what the row might have been as well out.
//!
//! **Question:** what else would have had this label? **In:** the ids of one window, `[CLS] … [SEP]` or `[CLS] … [SEP] … [SEP]`, and a seed.
//! **Out:** the ids with a stretch left out, or with its two sides in the other order. **Absent:** validation rows, which are never changed.
//!
//! Both are two of the changes that Li et al. (2020, "Deep Entity Matching with Pre-Trained Language Models") make to pairs of offers:
//! what tells two of them apart must not hang on one word, nor on which came first.

use metier_model::{TokenId, specialist::mix};
use serde::{Deserialize, Serialize};

/// How rows are changed, anew in every step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Changes {
    /// Half of the rows lose a stretch of at most this share of their tokens, at least one; 0: none does.
    pub drop: f32,
    /// Half of the rows of two sides have them in the other order.
    pub swap: bool,
}

impl Changes {
    /// Whether rows stay as they are.
    pub fn are_none(&self) -> bool {
        self.drop <= 0.0 && !self.swap
    }

    /// The row as it is learnt once. What opens and closes it, and what parts its sides, stays.
    pub fn of(&self, ids: &[TokenId], seed: u64) -> Vec<TokenId> {
        let mut ids = ids.to_vec();
        let draw = |what: u64| mix(seed ^ mix(what));
        if self.swap && draw(1) & 1 == 0 {
            swap(&mut ids);
        }
        if self.drop > 0.0 && draw(2) & 1 == 0 {
            let most = ((ids.len() as f32 * self.drop) as u64).max(1);
            let len = (1 + draw(3) % most) as usize;
            leave_out(&mut ids, len, draw(4));
        }
        ids
    }
}

/// The two sides in the other order, where there are two.
fn swap(ids: &mut Vec<TokenId>) {
    let Some(&end) = ids.last() else { return };
    let ends: Vec<usize> = (0..ids.len()).filter(|&at| ids[at] == end).collect();
    let &[middle, last] = ends.as_slice() else { return };
    if middle == 0 || middle + 1 == last {
        return;
    }
    *ids = [&ids[..1], &ids[middle + 1..last], &[end], &ids[1..middle], &[end]].concat();
}

/// Leaves `len` tokens out, or as many as stand together between two that part; a side keeps one token at least.
fn leave_out(ids: &mut Vec<TokenId>, len: usize, draw: u64) {
    let Some(&end) = ids.last() else { return };
    if ids.len() < 3 {
        return;
    }
    let first = 1 + (draw % (ids.len() as u64 - 2)) as usize;
    let side = |at: usize| ids[at] != end && at > 0;
    if !side(first) {
        return;
    }
    let begins = (1..=first).rev().take_while(|&at| side(at)).last().unwrap_or(first);
    let ends = (first..ids.len()).take_while(|&at| side(at)).last().map_or(first, |at| at + 1);
    let len = len.min(ends - first).min(ends - begins - 1);
    ids.drain(first..first + len);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(ids: &[u32]) -> Vec<TokenId> {
        ids.iter().map(|&id| TokenId(id)).collect()
    }

    /// `[CLS]` is 1 and `[SEP]` 2: what comes out holds no other tokens than the row, in their order, and both sides.
    #[test]
    fn a_stretch_goes_and_sides_stay() {
        let row = ids(&[1, 10, 11, 12, 13, 2, 20, 21, 22, 2]);
        let changes = Changes { drop: 0.3, swap: true };
        let (mut swapped, mut shorter) = (0, 0);
        for seed in 0..400 {
            let changed = changes.of(&row, seed);
            assert_eq!(changed, changes.of(&row, seed));
            assert_eq!((changed[0], *changed.last().expect("a row has an end")), (TokenId(1), TokenId(2)));
            let sides: Vec<&[TokenId]> = changed[1..changed.len() - 1].split(|id| *id == TokenId(2)).collect();
            assert!(sides.len() == 2 && sides.iter().all(|side| !side.is_empty() && side.is_sorted()), "{changed:?}");
            assert!(sides[0][0].0 / 10 != sides[1][0].0 / 10, "no side is mixed: {changed:?}");
            assert!(row.len() - changed.len() <= 3);
            swapped += usize::from(sides[0][0].0 >= 20);
            shorter += usize::from(changed.len() < row.len());
        }
        assert!((150..250).contains(&swapped) && (120..220).contains(&shorter), "{swapped} {shorter}");
    }

    #[test]
    fn short_and_single_rows_are_left_in_peace() {
        let changes = Changes { drop: 0.5, swap: true };
        for row in [&[][..], &[1], &[1, 2], &[1, 7, 2], &[1, 2, 2], &[1, 7, 2, 2]] {
            for seed in 0..50 {
                assert_eq!(changes.of(&ids(row), seed), ids(row));
            }
        }
        assert!(Changes::default().are_none() && Changes::default().of(&ids(&[1, 5, 6, 2]), 3) == ids(&[1, 5, 6, 2]));
    }
}
