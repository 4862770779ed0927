//! May this go there?
//!
//! Which question: *which backends may see this request?* In go facts; out comes a [`Permit`] that lists them, or a [`Denial`]
//! with the reasons. Pure: no clock, no I/O. Deliberately absent: who of the permitted ones answers (that is `route`), and a rule
//! language: Cedar takes the place of `Policy::allows` later, behind the same facts and the same verdict.
//!
//! The rules, closed by default:
//!
//! 1. What cannot be recorded goes nowhere.
//! 2. A backend inside the boundary may answer any request.
//! 3. A backend outside may answer what a task defers if the configuration says that it lies outside (nothing is outside by
//!    guess) and the task says `may_leave`.
//! 4. A backend outside that the caller names as the model may answer if the configuration says `direct = true` for it: the
//!    caller has chosen to let the text leave, and the operator has allowed callers to choose. No task is involved, so `may_leave`
//!    says nothing there.
//! 5. `auto` is no such choice: where no task fits, nothing leaves.
//! 6. Where `auto` guessed the task, its `may_leave` is not enough: the guess may be wrong, and the text one of a task that keeps
//!    its texts. What `auto` defers goes outside only if no task of this server keeps them.
//!
//! A permit cannot be made elsewhere, nor be used twice over by copying:
//!
//! ```compile_fail,E0451
//! use metier_gateway::policy::Permit;
//! let forged = Permit { backends: vec![], policy: metier_model::Digest([0; 32]) };
//! ```
//!
//! ```compile_fail,E0599
//! fn twice(permit: metier_gateway::policy::Permit) -> (metier_gateway::policy::Permit, metier_gateway::policy::Permit) {
//!     (permit.clone(), permit)
//! }
//! ```

use metier_model::Digest;
use serde::{Deserialize, Serialize};

/// On which side of the deployment's border a backend lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Boundary {
    /// This deployment.
    Inside,
    /// A third party.
    Outside,
}

impl Boundary {
    /// The word for entries and headers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inside => "inside",
            Self::Outside => "outside",
        }
    }
}

/// What the configuration says of a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BackendFacts {
    /// Its name.
    pub id: String,
    /// Its side.
    pub boundary: Boundary,
    /// Whether callers may name it as the model although it lies outside.
    pub direct: bool,
}

/// Why the request would go to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose<'a> {
    /// The caller named a specialist or a base of ours: only backends inside are asked.
    Answer,
    /// The caller named this backend's model.
    Direct,
    /// A task did not accept its own answer.
    Defer {
        /// The task.
        task: &'a str,
        /// Whether its requests may leave.
        may_leave: bool,
        /// Its calibrated score, in basis points.
        score_bp: u32,
    },
    /// `auto` guessed a task, which did not accept its own answer.
    Guess {
        /// The task that was guessed.
        task: &'a str,
        /// A task of this server whose requests must not leave, if there is one.
        keeper: Option<&'a str>,
        /// Its calibrated score, in basis points.
        score_bp: u32,
    },
    /// `auto`, and no task fits.
    NoTask,
}

/// All that a verdict depends on.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// Why.
    pub purpose: Purpose<'a>,
    /// Who could answer.
    pub candidates: &'a [BackendFacts],
    /// Whether the audit log takes entries.
    pub audit_ok: bool,
}

/// Leave to hand one request to the backends that it lists. Made only by [`Policy::check`]; not `Clone`.
#[derive(Debug, PartialEq, Eq)]
pub struct Permit {
    backends: Vec<String>,
    policy: Digest,
}

impl Permit {
    /// Whether a backend is listed. Every backend asks this of itself before it answers.
    pub fn lists(&self, backend: &str) -> bool {
        self.backends.iter().any(|id| id == backend)
    }

    /// Those listed, in the order of the candidates.
    pub fn backends(&self) -> &[String] {
        &self.backends
    }

    /// The policy that allowed it.
    pub fn policy(&self) -> Digest {
        self.policy
    }
}

/// Why no backend may answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// One a candidate, or one for all.
    pub reasons: Vec<String>,
    /// Whether there was a candidate at all.
    pub had_candidates: bool,
}

/// What a check says.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The backends that it lists may answer.
    Allow(Permit),
    /// None may.
    Deny(Denial),
}

/// The rules in force.
#[derive(Clone, Debug)]
pub struct Policy {
    digest: Digest,
}

/// Changes whenever a rule changes, so that an entry tells under which rules it was decided.
const RULES: &str = "metier/policy/v2: audited; inside any; outside deferred if may_leave; outside direct if direct; auto if all may_leave";

impl Policy {
    /// The built-in rules over a configuration's backends.
    pub fn new(backends: &[BackendFacts]) -> Self {
        let text = serde_json::to_string(&(RULES, backends)).expect("names and flags always serialise");
        Self { digest: Digest::of(text.as_bytes()) }
    }

    /// Digest over the rules and the backends they were given.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Which of the candidates may answer.
    pub fn check(&self, facts: &Facts<'_>) -> Verdict {
        if !facts.audit_ok {
            let reasons = vec!["the audit log takes no entries".to_owned()];
            return Verdict::Deny(Denial { reasons, had_candidates: !facts.candidates.is_empty() });
        }
        let (mut backends, mut reasons) = (Vec::new(), Vec::new());
        for candidate in facts.candidates {
            match Self::allows(facts.purpose, candidate) {
                Ok(()) => backends.push(candidate.id.clone()),
                Err(reason) => reasons.push(reason),
            }
        }
        if backends.is_empty() {
            return Verdict::Deny(Denial { reasons, had_candidates: !facts.candidates.is_empty() });
        }
        Verdict::Allow(Permit { backends, policy: self.digest })
    }

    /// The rules, one candidate at a time.
    fn allows(purpose: Purpose<'_>, candidate: &BackendFacts) -> Result<(), String> {
        let id = &candidate.id;
        match (candidate.boundary, purpose) {
            (Boundary::Inside, _) => Ok(()),
            (Boundary::Outside, Purpose::Direct) if candidate.direct => Ok(()),
            (Boundary::Outside, Purpose::Direct) => {
                Err(format!("backend `{id}` lies outside and its configuration does not say `direct = true`"))
            }
            (Boundary::Outside, Purpose::Defer { may_leave: true, .. }) => Ok(()),
            (Boundary::Outside, Purpose::Defer { task, .. }) => {
                Err(format!("backend `{id}` lies outside and task `{task}` does not say `may_leave = true`"))
            }
            (Boundary::Outside, Purpose::Guess { keeper: None, .. }) => Ok(()),
            (Boundary::Outside, Purpose::Guess { task, keeper: Some(keeper), .. }) => Err(format!(
                "backend `{id}` lies outside, `auto` only guessed the task `{task}`, and the text may be one of task `{keeper}`, \
                 which does not say `may_leave = true`: ask for `{task}` by name if it is one of its texts"
            )),
            (Boundary::Outside, Purpose::NoTask) => {
                Err(format!("backend `{id}` lies outside and no task says that the request may leave"))
            }
            (Boundary::Outside, Purpose::Answer) => Err(format!("backend `{id}` lies outside")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(id: &str, boundary: Boundary, direct: bool) -> BackendFacts {
        BackendFacts { id: id.into(), boundary, direct }
    }

    fn deferred(may_leave: bool) -> Purpose<'static> {
        Purpose::Defer { task: "t", may_leave, score_bp: 4_100 }
    }

    /// Which of: inside, outside, outside with `direct`.
    #[track_caller]
    fn check(purpose: Purpose<'_>, expected: &[&str]) {
        let candidates = [
            backend("in", Boundary::Inside, false),
            backend("out", Boundary::Outside, false),
            backend("direct", Boundary::Outside, true),
        ];
        let policy = Policy::new(&candidates);
        match policy.check(&Facts { purpose, candidates: &candidates, audit_ok: true }) {
            Verdict::Allow(permit) => {
                assert_eq!(permit.backends(), expected);
                assert!(expected.iter().all(|id| permit.lists(id)) && !permit.lists("another"));
                assert_eq!(permit.policy(), policy.digest());
            }
            Verdict::Deny(denial) => panic!("{denial:?}"),
        }
        let unrecorded = policy.check(&Facts { purpose, candidates: &candidates, audit_ok: false });
        assert!(matches!(unrecorded, Verdict::Deny(_)), "what cannot be recorded goes nowhere");
    }

    #[test]
    fn the_rules() {
        check(Purpose::Answer, &["in"]);
        check(Purpose::Direct, &["in", "direct"]);
        check(deferred(false), &["in"]);
        check(deferred(true), &["in", "out", "direct"]);
        check(Purpose::NoTask, &["in"]);
        let guess = |keeper| Purpose::Guess { task: "t", keeper, score_bp: 4_100 };
        check(guess(Some("claims")), &["in"]);
        check(guess(None), &["in", "out", "direct"]);
    }

    #[test]
    fn a_denial_says_why() {
        let outside = [backend("llm", Boundary::Outside, false)];
        let policy = Policy::new(&outside);
        let deny =
            |purpose, candidates: &[BackendFacts]| match policy.check(&Facts { purpose, candidates, audit_ok: true }) {
                Verdict::Deny(denial) => denial,
                Verdict::Allow(permit) => panic!("{permit:?}"),
            };
        let denial = deny(deferred(false), &outside);
        assert_eq!(denial.reasons, ["backend `llm` lies outside and task `t` does not say `may_leave = true`"]);
        assert!(denial.had_candidates);
        assert!(!deny(deferred(true), &[]).had_candidates);
        assert_eq!(deny(Purpose::Direct, &outside).reasons.len(), 1);
    }

    #[test]
    fn another_configuration_is_another_policy() {
        let digest = |direct| Policy::new(&[backend("llm", Boundary::Outside, direct)]).digest();
        assert_ne!(digest(true), digest(false));
        assert_eq!(digest(true), digest(true));
    }
}
