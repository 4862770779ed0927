//! The trial of a task whose answers are written: what needs no training at all. An answer that was given before to the nearest text is given again, as it
//! stands or with what differs between the two texts put in its place.
//!
//! ```text
//! now        "ship 3 crates to Ulm"          nearest earlier text   "ship 5 crates to Bern"
//! differs    5 → 3, Bern → Ulm               its answer             "5 crates leave for Bern today"
//! put in                                     "3 crates leave for Ulm today"
//! ```
//!
//! If that agrees with the LLM nothing needs to be trained. If not, an adapter on a decoder is the next thing to try, and that takes longer than a trial
//! has: it is said so, with the command. What nearly repeats an earlier text stays in, for that is what such a cache lives on.

use metier_model::{Progress, Unit, features::Features};

use super::{
    Bench, Likeness, Role, Rung, Trial, TriedRow,
    measure::{self, Answers},
    rows::{self, Side},
};
use crate::{
    data::TextMetric,
    discover::{saving::assumptions::Assumptions, task::Task},
    eval::text,
};

/// Bytes of a text that are compared with others: about 128 tokens.
const COMPARED_BYTES: usize = 512;
/// Words of two texts that are laid beside each other, at most.
const MAX_WORDS: usize = 300;

pub(super) fn attempt(
    task: &Task,
    assumptions: &Assumptions,
    bench: &Bench<'_>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Trial, String> {
    let start = (bench.clock)();
    let elapsed = || (bench.clock)().saturating_sub(start);
    let rows::Parted { rows, sides, mut notes } = rows::parted(task, bench.seed)?;
    let of = |side: Side| -> Vec<usize> { (0..rows.len()).filter(|&at| sides[at] == side).collect() };
    let [train, chose, measured] = [Side::Train, Side::Validation, Side::Measured].map(of);
    rows::enough(train.len(), chose.len(), measured.len())?;
    let answer = |at: usize| task.examples[rows[at].example].output.as_deref().unwrap_or_default();
    let is_json = train.iter().all(|&at| answer(at).trim_start().starts_with(['{', '[']));

    let texts: Vec<&str> = rows.iter().map(|row| &row.text[..row.text.floor_char_boundary(COMPARED_BYTES)]).collect();
    let before = elapsed();
    let nearest = neighbours(&texts, &train, [&chose, &measured], bench, progress)?;
    let request_seconds = (elapsed() - before).as_secs_f64() / texts.len().max(1) as f64;
    progress(Progress { stage: "judging", done: 0, total: None, unit: Unit::Steps });
    let given = |rung: Rung, asked: &[usize], nearest: &[(usize, f32)]| -> Vec<String> {
        let each = asked.iter().zip(nearest).map(|(&now, &(then, _))| match rung {
            Rung::Adapted => put_in(&rows[then].text, &rows[now].text, answer(then)),
            _ => answer(then).to_owned(),
        });
        each.collect()
    };
    let values = |metric: TextMetric, asked: &[usize], given: &[String]| -> Vec<f64> {
        asked.iter().zip(given).map(|(&at, given)| text::value(metric, given, answer(at), is_json)).collect()
    };
    let exact = |asked: &[usize], given: &[String]| -> Vec<bool> {
        values(TextMetric::ExactMatch, asked, given).into_iter().map(|value| value == 1.0).collect()
    };
    // Which of the two is told by rows that are not measured; of equals the simpler.
    let right =
        |rung: Rung| exact(&chose, &given(rung, &chose, &nearest[0])).into_iter().filter(|right| *right).count();
    let rung = if right(Rung::Adapted) > right(Rung::Nearest) { Rung::Adapted } else { Rung::Nearest };
    let answers = given(rung, &measured, &nearest[1]);
    let agrees = exact(&measured, &answers);
    let scores: Vec<f32> = nearest[1].iter().map(|(_, similarity)| similarity.clamp(0.0, 1.0)).collect();
    let chose_scores: Vec<f64> =
        nearest[0].iter().map(|(_, similarity)| f64::from(similarity.clamp(0.0, 1.0))).collect();
    let groups = measure::groups(measured.iter().map(|&at| rows[at].group.as_deref()));
    let told = Answers { chose: &chose_scores, scores: &scores, agrees: &agrees, groups: groups.as_ref() };
    let likeness = Likeness {
        metric: TextMetric::TokenF1.name().to_owned(),
        value: text::measure(
            TextMetric::TokenF1,
            &values(TextMetric::TokenF1, &measured, &answers),
            bench.seed,
            groups.as_ref(),
        ),
    };
    let share = |agrees: &[bool]| agrees.iter().filter(|agrees| **agrees).count() as f64 / agrees.len().max(1) as f64;
    let rungs = [Rung::Nearest, Rung::Adapted]
        .map(|rung| (rung, share(&exact(&measured, &given(rung, &measured, &nearest[1])))));
    let positions: Vec<usize> = measured.iter().map(|&at| rows[at].example).collect();
    let role = |at: usize, role: Role| TriedRow { example: rows[at].example, role, score: None, agrees: None };
    let tried = train
        .iter()
        .map(|&at| role(at, Role::Trained))
        .chain(chose.iter().map(|&at| role(at, Role::Chose)))
        .chain(told.rows(&positions))
        .collect();
    notes.push(not_tried(&task.name));
    let trial = Trial::of(rung, told.told(assumptions), tried, notes);
    Ok(Trial {
        rows: [train.len() as u64, chose.len() as u64, measured.len() as u64],
        rungs: rungs.into(),
        likeness: Some(likeness),
        seconds: elapsed().as_secs_f64(),
        request_seconds,
        ..trial
    })
}

/// What a trial leaves to a build, and how to have it.
fn not_tried(name: &str) -> String {
    format!(
        "an adapter on a decoder was not tried: training one takes longer than the minute that a trial has. With `--write-tasks tasks`, `metier build tasks/{name}/task.toml --dry-run` says how long it would take, and `metier build tasks/{name}/task.toml` does it"
    )
}

/// For each asked text the nearest of the known ones and how near it is.
fn neighbours(
    texts: &[&str],
    known: &[usize],
    asked: [&[usize]; 2],
    bench: &Bench<'_>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<[Vec<(usize, f32)>; 2], String> {
    let best = |like: &dyn Fn(usize) -> f32| {
        known
            .iter()
            .map(|&at| (at, like(at)))
            .fold((known[0], f32::NEG_INFINITY), |best, next| if next.1 > best.1 { next } else { best })
    };
    Ok(match bench.encoder {
        Some(encoder) => {
            let vectors = encoder.embed_all(bench.pool, texts, progress);
            let vectors = vectors.map_err(|error| format!("its texts cannot be embedded: {error}"))?;
            let dot = |a: usize, b: usize| vectors[a].iter().zip(&vectors[b]).map(|(x, y)| x * y).sum::<f32>();
            asked.map(|asked| asked.iter().map(|&now| best(&|then| dot(then, now))).collect())
        }
        None => {
            let features = Features::fit(known.iter().map(|&at| texts[at]), 1, 1 << 18);
            let sparse: Vec<_> = texts.iter().map(|text| features.apply(text)).collect();
            let like = |a: usize, b: usize| crate::build::generate::sparse_dot(&sparse[a], &sparse[b]);
            asked.map(|asked| asked.iter().map(|&now| best(&|then| like(then, now))).collect())
        }
    })
}

/// Bytes of the words of a text: runs of letters and digits.
fn words(text: &str) -> Vec<std::ops::Range<usize>> {
    let mut words = Vec::new();
    let mut begin = None;
    for (at, char) in text.char_indices() {
        match (char.is_alphanumeric(), begin) {
            (true, None) => begin = Some(at),
            (false, Some(from)) => {
                words.push(from..at);
                begin = None;
            }
            _ => {}
        }
    }
    words.extend(begin.map(|from| from..text.len()));
    words
}

/// An earlier answer with the words that differ between the two texts exchanged; as it stands where nothing can be told.
fn put_in(then: &str, now: &str, answer: &str) -> String {
    let (then_words, now_words) = (words(then), words(now));
    let mut changes = changes(then, &then_words, now, &now_words);
    // Long ones first: `Bad Ems` before `Bad`.
    changes.sort_by_key(|(from, _)| std::cmp::Reverse(from.len()));
    if changes.is_empty() {
        return answer.to_owned();
    }
    let answer_words = words(answer);
    let mut out = String::new();
    let (mut at, mut copied) = (0, 0);
    while at < answer_words.len() {
        let fits = |from: &[&str]| {
            answer_words
                .get(at..at + from.len())
                .is_some_and(|run| run.iter().zip(from).all(|(a, b)| &answer[a.clone()] == *b))
        };
        match changes.iter().find(|(from, _)| fits(from)) {
            Some((from, to)) => {
                out += &answer[copied..answer_words[at].start];
                out += to;
                at += from.len();
                copied = answer_words[at - 1].end;
            }
            None => at += 1,
        }
    }
    out + &answer[copied..]
}

/// Runs of words of one text that stand in the place of runs of the other: by the longest common subsequence.
fn changes<'a>(
    then: &'a str,
    then_words: &[std::ops::Range<usize>],
    now: &'a str,
    now_words: &[std::ops::Range<usize>],
) -> Vec<(Vec<&'a str>, &'a str)> {
    let (n, m) = (then_words.len(), now_words.len());
    if n == 0 || m == 0 || n > MAX_WORDS || m > MAX_WORDS {
        return Vec::new();
    }
    let old = |at: usize| &then[then_words[at].clone()];
    let new = |at: usize| &now[now_words[at].clone()];
    // Length of the longest common subsequence of what is left from (i, j) on.
    let mut longest = vec![0u16; (n + 1) * (m + 1)];
    for i in (0..n).rev() {
        for j in (0..m).rev() {
            longest[i * (m + 1) + j] = if old(i) == new(j) {
                longest[(i + 1) * (m + 1) + j + 1] + 1
            } else {
                longest[(i + 1) * (m + 1) + j].max(longest[i * (m + 1) + j + 1])
            };
        }
    }
    let (mut i, mut j, mut changes) = (0, 0, Vec::new());
    let (mut from_i, mut from_j) = (0, 0);
    let mut close = |i: usize, j: usize, from_i: usize, from_j: usize| {
        if i > from_i && j > from_j {
            let from: Vec<&str> = (from_i..i).map(old).collect();
            changes.push((from, &now[now_words[from_j].start..now_words[j - 1].end]));
        }
    };
    while i < n && j < m {
        if old(i) == new(j) {
            close(i, j, from_i, from_j);
            (i, j) = (i + 1, j + 1);
            (from_i, from_j) = (i, j);
        } else if longest[(i + 1) * (m + 1) + j] >= longest[i * (m + 1) + j + 1] {
            i += 1;
        } else {
            j += 1;
        }
    }
    close(n, m, from_i, from_j);
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(then: &str, now: &str, answer: &str, expected: &str) {
        assert_eq!(put_in(then, now, answer), expected);
    }

    #[test]
    fn what_differs_is_put_in_its_place() {
        check(
            "ship 5 crates to Bern",
            "ship 3 crates to Ulm",
            "5 crates leave for Bern today",
            "3 crates leave for Ulm today",
        );
        check("to Bad Ems, Bad", "to Bad Nauheim, Bad", "Bad Ems is bad", "Bad Nauheim is bad");
        check("a b", "a b", "as it was", "as it was");
        check("", "x", "y", "y");
        check("order PO-7 of Ada", "order PO-9 of Bob Lee", "Ada: PO-7.", "Bob Lee: PO-9.");
        check("é à", "é ü", "à, à", "ü, ü");
    }

    #[test]
    fn words_are_runs_of_letters_and_digits() {
        let text = "Ä1, b-2!";
        assert_eq!(words(text).into_iter().map(|word| &text[word]).collect::<Vec<_>>(), ["Ä1", "b", "2"]);
        assert!(words(" ,").is_empty());
    }
}
