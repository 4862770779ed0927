//! Which tokens do top-k, top-p and min-p leave of those that may be drawn, if each has to be asked about?
//!
//! All three leave the most probable tokens down to some place. So they are asked about in that order, and asking ends as soon as the
//! place is certain: the k-th allowed token is found; the next token is too improbable; or what has not been asked about could not
//! move the nucleus's end, whether it is allowed or not.

/// The wishes that cut a distribution's tail.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    /// 0 keeps all.
    pub(super) top_k: usize,
    /// From 1 on keeps all.
    pub(super) top_p: f64,
    /// 0 keeps all.
    pub(super) min_p: f32,
}

/// A token and its weight: its probability but for a factor.
pub(super) type Candidate = (u32, f32);

impl Cut {
    /// The candidates that are left, most probable first; none where `best` does not suffice to tell. `best`: the most probable
    /// candidates, sorted; `others`: the weight of all others together.
    ///
    /// # Errors
    ///
    /// Those of `allows`.
    pub(super) fn keep<E>(
        self,
        best: &[Candidate],
        others: f64,
        mut allows: impl FnMut(u32) -> Result<bool, E>,
    ) -> Result<Option<Vec<Candidate>>, E> {
        let mut allowed: Vec<Candidate> = Vec::new();
        // How many of them min-p leaves, once that is known.
        let mut probable = None;
        let mut unasked = others + best.iter().map(|(_, weight)| f64::from(*weight)).sum::<f64>();
        for &(token, weight) in best {
            if probable.is_none() && allowed.first().is_some_and(|(_, most)| weight < self.min_p * most) {
                probable = Some(allowed.len());
                if let Some(kept) = self.kept(&allowed, probable, self.more(&allowed, weight, unasked)) {
                    return Ok(Some(kept));
                }
            }
            unasked = (unasked - f64::from(weight)).max(0.0);
            if allows(token)? {
                allowed.push((token, weight));
            }
            if allowed.len() == self.top_k && self.top_k > 0 {
                return Ok(self.kept(&allowed, probable.or(Some(self.top_k)), 0.0));
            }
            if let Some(kept) = self.kept(&allowed, probable, self.more(&allowed, weight, unasked)) {
                return Ok(Some(kept));
            }
        }
        if others > 0.0 || allowed.is_empty() {
            return Ok(None);
        }
        Ok(self.kept(&allowed, probable.or(Some(allowed.len())), 0.0))
    }

    /// What unasked candidates, none heavier than `weight`, may add to the allowed ones, at most.
    fn more(self, allowed: &[Candidate], weight: f32, unasked: f64) -> f64 {
        match self.top_k {
            0 => unasked,
            k => unasked.min((k - allowed.len()) as f64 * f64::from(weight)),
        }
    }

    /// What is left of the allowed candidates, where candidates of weight `more` in all might follow: none where those matter.
    /// `limit`: how many the other cuts leave, if that is known.
    fn kept(self, allowed: &[Candidate], limit: Option<usize>, more: f64) -> Option<Vec<Candidate>> {
        let weight: f64 = allowed.iter().map(|(_, weight)| f64::from(*weight)).sum();
        let nucleus = |total: f64| {
            let mut sum = 0.0;
            let reaches = |&(_, weight): &Candidate| {
                sum += f64::from(weight);
                sum >= self.top_p * total
            };
            if self.top_p < 1.0 { allowed.iter().position(reaches).map(|at| at + 1) } else { None }
        };
        let end = |total: f64| match (nucleus(total), limit) {
            (Some(end), Some(limit)) => Some(end.min(limit)),
            (end, limit) => end.or(limit),
        };
        let end_if_all = end(weight + more)?;
        (end(weight) == Some(end_if_all)).then(|| allowed[..end_if_all].to_vec())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    /// What the cuts leave where everything is known.
    fn cut_whole(cut: Cut, allowed: &[Candidate]) -> Vec<Candidate> {
        let mut kept = allowed.to_vec();
        if cut.top_k > 0 {
            kept.truncate(cut.top_k);
        }
        let total: f64 = kept.iter().map(|(_, weight)| f64::from(*weight)).sum();
        let (mut sum, mut nucleus) = (0.0, Vec::new());
        for candidate in kept {
            nucleus.push(candidate);
            sum += f64::from(candidate.1);
            if sum >= cut.top_p * total {
                break;
            }
        }
        nucleus.retain(|(_, weight)| *weight >= cut.min_p * allowed[0].1);
        nucleus
    }

    proptest! {
        #[test]
        fn what_is_left_is_what_is_left_of_the_whole(
            weights in prop::collection::vec(1u32..100_000, 1..60),
            refused: u64,
            known in 1usize..60,
            top_k in 0usize..8,
            top_p in prop::sample::select(vec![0.0, 0.3, 0.8, 0.95, 1.0]),
            min_p in prop::sample::select(vec![0.0f32, 0.05, 0.5]),
        ) {
            let cut = Cut { top_k, top_p, min_p };
            // Whole numbers, so that sums are exact in any order.
            let mut all: Vec<Candidate> = (0..).zip(weights.iter().map(|weight| *weight as f32)).collect();
            all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            let allows = |token: u32| refused >> (token % 64) & 1 == 0;
            let allowed: Vec<Candidate> = all.iter().copied().filter(|(token, _)| allows(*token)).collect();
            let known = known.min(all.len());
            let others = all[known..].iter().map(|(_, weight)| f64::from(*weight)).sum();
            let mut asked = 0;
            let left = cut.keep(&all[..known], others, |token| {
                asked += 1;
                Ok::<_, Infallible>(allows(token))
            }).unwrap();
            prop_assert!(asked <= known);
            match left {
                Some(left) => prop_assert_eq!(left, cut_whole(cut, &allowed)),
                None => prop_assert!(known < all.len() || allowed.is_empty()),
            }
        }
    }

    #[test]
    fn asking_ends_where_the_rest_cannot_matter() {
        let asked = |cut: Cut| {
            let mut asked = 0;
            let best = [(7, 60.0), (3, 30.0), (4, 5.0), (5, 1.0)];
            let left = cut.keep(&best, 4.0, |token| {
                asked += 1;
                Ok::<_, Infallible>(token != 3)
            });
            (asked, left.unwrap().map(|left| left.iter().map(|(token, _)| *token).collect::<Vec<_>>()))
        };
        let all = Cut { top_k: 0, top_p: 1.0, min_p: 0.0 };
        assert_eq!(asked(Cut { top_k: 1, ..all }), (1, Some(vec![7])));
        assert_eq!(asked(Cut { top_k: 2, ..all }), (3, Some(vec![7, 4])));
        assert_eq!(asked(Cut { min_p: 0.1, ..all }), (2, Some(vec![7])));
        assert_eq!(asked(Cut { min_p: 0.02, ..all }), (3, Some(vec![7, 4])));
        // Of 100, 40 are unknown: 60 are at least 0.6 of what may be drawn. Of 70, behind the refusal, 0.857.
        assert_eq!(asked(Cut { top_p: 0.6, ..all }), (1, Some(vec![7])));
        assert_eq!(asked(Cut { top_p: 0.8, ..all }), (2, Some(vec![7])));
        // Between 66 and 70 of the four are left: 0.91 of either end is reached with 5.
        assert_eq!(asked(Cut { top_p: 0.91, ..all }), (4, Some(vec![7, 4])));
        // 0.95 of 66 is reached there, 0.95 of 70 is not.
        assert_eq!(asked(Cut { top_p: 0.95, ..all }), (4, None));
        assert_eq!(asked(all), (4, None));
    }
}
