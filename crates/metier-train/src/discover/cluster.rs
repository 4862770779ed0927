//! *Which texts ask for the same thing, where no template says so?* Embeddings and shapes of calls in, a group for each out.
//!
//! What makes texts one task is what is wanted of them, and that shows in three ways: what they are about, what form question and answer
//! have, and which answers come again. So a call is its embedding beside a few numbers of form: lengths, lines, digits, how the answer looks. k-means
//! makes many small clusters; the nearest pairs of these are then joined (average linkage, weighted by size) until no two are nearer than [`APART`].
//! Topics of one task stay together because their form is the same, their words are near and their answers are the same labels; tasks of one topic part
//! because their form differs.
//!
//! ```text
//! between(a, b) = |centre a − centre b|² − v/n_a − v/n_b  −  shared(a, b)          v: variance of a row about its small cluster's centre
//! ```
//!
//! How far apart two clusters are must not depend on how many rows were looked at. The centre of n rows lies v/n away from where that of all such
//! rows would, so few rows look further apart than many, and a threshold that parts the tasks of a thousand rows joins those of ten thousand:
//! these parts are taken off. And beyond a limit of rows nothing is clustered anew; the others go where the nearest centre is.
//!
//! Deterministic: seeds are chosen by hash, sums run in one order.

use std::collections::BTreeMap;

use metier_model::{features::fold, specialist::mix};

/// Numbers of form beside an embedding.
pub const SHAPE: usize = 10;
/// Clusters before they are joined.
const MAX_SMALL: usize = 96;
/// Rows a small cluster has on average at least.
const ROWS_A_SMALL: usize = 12;
/// Rounds of k-means.
const ROUNDS: usize = 25;
/// How much the form counts against the embedding.
const SHAPE_WEIGHT: f32 = 1.1;
/// Rows that make the small clusters, the first ones; more of them change nothing but the time.
const MAX_CLUSTERED: usize = 6000;
/// Clusters whose mean squared distance is greater stay apart.
pub const APART: f32 = 0.7;
/// How much nearer clusters are that give the same answers, at most.
const SAME_ANSWERS: f32 = 1.0;
/// Bytes of an answer that are compared.
const ANSWER_BYTES: usize = 80;
/// Clusters with a smaller share of the rows belong to what is left over.
const MIN_SHARE: f64 = 0.004;
/// Or fewer rows than these.
const MIN_ROWS: usize = 8;

/// The form of a question and its answer, each number about 0 to 1.
pub fn shape(input: &str, output: Option<&str>) -> [f32; SHAPE] {
    let length = |text: &str| ((1 + text.len()) as f32).log2() / 16.0;
    let share = |text: &str, is: fn(char) -> bool| {
        let all = text.chars().take(2000).filter(|c| !c.is_whitespace()).count().max(1);
        text.chars().take(2000).filter(|&c| is(c)).count() as f32 / all as f32
    };
    let output = output.unwrap_or_default().trim();
    let words = output.split_whitespace().count();
    let lines = input.trim().lines().count();
    [
        1.6 * length(input),
        ((1 + lines) as f32).log2() / 8.0,
        2.0 * share(input, |c| c.is_ascii_digit()),
        2.0 * share(input, |c| c.is_ascii_punctuation()),
        f32::from(u8::from(input.trim_end().ends_with('?'))) * 0.15,
        1.6 * length(output),
        f32::from(u8::from(output.starts_with(['{', '[']))) * 0.6,
        f32::from(u8::from(words == 1)) * 0.3,
        f32::from(u8::from(words == 1 && output.contains('_'))) * 0.2,
        share(output, |c| c.is_ascii_digit()) * 0.6,
    ]
}

/// What was found: a group for each row, `None` for what is left over; groups are numbered from the largest.
#[derive(Clone, Debug, PartialEq)]
pub struct Clusters {
    /// Group of each row.
    pub of: Vec<Option<usize>>,
    /// Number of groups.
    pub n: usize,
}

/// Groups rows of unit embeddings, their shapes and answers. Rows should come in an order that says nothing: the first ones make the clusters.
pub fn cluster(embeddings: &[Vec<f32>], shapes: &[[f32; SHAPE]], answers: &[Option<&str>], apart: f32) -> Clusters {
    let rows: Vec<Vec<f32>> = embeddings
        .iter()
        .zip(shapes)
        .map(|(embedding, shape)| embedding.iter().copied().chain(shape.iter().map(|x| x * SHAPE_WEIGHT)).collect())
        .collect();
    if rows.len() < MIN_ROWS {
        return Clusters { of: vec![None; rows.len()], n: 0 };
    }
    let clustered = &rows[..rows.len().min(MAX_CLUSTERED)];
    let n_small = (clustered.len() / ROWS_A_SMALL).clamp(1, MAX_SMALL);
    let (mut small, centres) = k_means(clustered, n_small);
    small.extend(rows[clustered.len()..].iter().map(|row| nearest(row, &centres)));
    let mut sizes = vec![0usize; n_small];
    small.iter().for_each(|&at| sizes[at] += 1);
    let within: f32 = small.iter().zip(&rows).map(|(&at, row)| distance(row, &centres[at])).sum();
    let variance = within / rows.len().saturating_sub(n_small).max(1) as f32;
    let mut given = vec![Given::new(); n_small];
    for (&at, answer) in small.iter().zip(answers) {
        let Some(answer) = answer else { continue };
        *given[at].entry(fold(&answer[..answer.floor_char_boundary(ANSWER_BYTES)])).or_default() += 1.0;
    }
    let joined = join(&centres, &sizes, variance, given, apart);
    let mut members = vec![0usize; n_small];
    small.iter().for_each(|&at| members[joined[at]] += 1);
    let fewest = MIN_ROWS.max((rows.len() as f64 * MIN_SHARE) as usize);
    let mut order: Vec<usize> = (0..n_small).filter(|&at| members[at] >= fewest).collect();
    order.sort_by_key(|&at| (std::cmp::Reverse(members[at]), at));
    let mut number = vec![None; n_small];
    order.iter().enumerate().for_each(|(number_of, &at)| number[at] = Some(number_of));
    Clusters { of: small.iter().map(|&at| number[joined[at]]).collect(), n: order.len() }
}

/// Answers of a cluster with their counts.
type Given = BTreeMap<String, f32>;

/// How alike the answers of two clusters are, 0 to 1: what their distributions have in common, worth less where it is few different answers. That both
/// say "yes" and "no" is weak evidence of one task, that both give the same thirty labels is strong.
fn shared(a: &Given, b: &Given) -> f32 {
    let (few, many) = if a.len() <= b.len() { (a, b) } else { (b, a) };
    let (n_few, n_many): (f32, f32) = (few.values().sum(), many.values().sum());
    let common: Vec<f32> =
        few.iter().filter_map(|(answer, n)| Some((n / n_few).min(many.get(answer)? / n_many))).collect();
    let sum: f32 = common.iter().sum();
    if sum <= 0.0 {
        return 0.0;
    }
    // As many equally frequent answers would have this entropy.
    let different = common.iter().map(|x| -(x / sum) * (x / sum).ln()).sum::<f32>().exp();
    sum * (1.0 - 0.5 / different)
}

fn nearest(row: &[f32], centres: &[Vec<f32>]) -> usize {
    let each = centres.iter().enumerate().map(|(at, centre)| (distance(row, centre), at));
    each.min_by(|a, b| a.0.total_cmp(&b.0)).map_or(0, |best| best.1)
}

/// Squared, in eight sums side by side.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 8;
    let mut sums = [0.0f32; LANES];
    let (a_parts, b_parts) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest = a_parts.remainder().iter().zip(b_parts.remainder()).map(|(a, b)| (a - b) * (a - b)).sum::<f32>();
    for (a, b) in a_parts.zip(b_parts) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += (a - b) * (a - b);
        }
    }
    sums.iter().sum::<f32>() + rest
}

/// Lloyd's algorithm from seeds that lie far apart (k-means++ with a hash for the dice).
fn k_means(rows: &[Vec<f32>], k: usize) -> (Vec<usize>, Vec<Vec<f32>>) {
    let mut centres = vec![rows[0].clone()];
    let mut far: Vec<f32> = rows.iter().map(|row| distance(row, &centres[0])).collect();
    while centres.len() < k {
        let total: f64 = far.iter().map(|&d| f64::from(d)).sum();
        let mut dice = (mix(centres.len() as u64) >> 11) as f64 / (1u64 << 53) as f64 * total;
        let at = far.iter().position(|&d| {
            dice -= f64::from(d);
            dice < 0.0
        });
        let centre = rows[at.unwrap_or(rows.len() - 1)].clone();
        for (far, row) in far.iter_mut().zip(rows) {
            *far = far.min(distance(row, &centre));
        }
        centres.push(centre);
    }
    let mut of = vec![usize::MAX; rows.len()];
    for _ in 0..ROUNDS {
        let mut moved = false;
        for (of, row) in of.iter_mut().zip(rows) {
            let best = nearest(row, &centres);
            moved |= *of != best;
            *of = best;
        }
        if !moved {
            break;
        }
        let mut sums = vec![(vec![0.0f32; rows[0].len()], 0usize); k];
        for (&at, row) in of.iter().zip(rows) {
            sums[at].0.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
            sums[at].1 += 1;
        }
        for (centre, (sum, n)) in centres.iter_mut().zip(sums) {
            if n > 0 {
                *centre = sum.into_iter().map(|x| x / n as f32).collect();
            }
        }
    }
    (of, centres)
}

/// Joins clusters that lie near; for each, the one that stands for its group. `variance`: of a row about its centre.
fn join(centres: &[Vec<f32>], sizes: &[usize], variance: f32, mut given: Vec<Given>, apart: f32) -> Vec<usize> {
    let n = centres.len();
    let mut group: Vec<usize> = (0..n).collect();
    let mut weight: Vec<f32> = sizes.iter().map(|&size| size as f32).collect();
    let off = |at: usize| variance / sizes[at].max(1) as f32;
    let mut between: Vec<Vec<f32>> =
        (0..n).map(|a| (0..n).map(|b| distance(&centres[a], &centres[b]) - off(a) - off(b)).collect()).collect();
    let mut alike: Vec<Vec<f32>> =
        (0..n).map(|a| (0..n).map(|b| SAME_ANSWERS * shared(&given[a], &given[b])).collect()).collect();
    let mut alive: Vec<usize> = (0..n).filter(|&at| sizes[at] > 0).collect();
    loop {
        let pairs = alive.iter().enumerate().flat_map(|(i, &a)| alive[i + 1..].iter().map(move |&b| (a, b)));
        let apart_are = |(a, b): (usize, usize)| between[a][b] - alike[a][b];
        let nearest = pairs.min_by(|&one, &other| apart_are(one).total_cmp(&apart_are(other)));
        let Some((a, b)) = nearest.filter(|&pair| apart_are(pair) < apart) else { return group };
        for &other in &alive {
            let both = (weight[a] * between[a][other] + weight[b] * between[b][other]) / (weight[a] + weight[b]);
            between[a][other] = both;
            between[other][a] = both;
        }
        weight[a] += weight[b];
        alive.retain(|&at| at != b);
        group.iter_mut().filter(|group| **group == b).for_each(|group| *group = a);
        for (answer, n) in std::mem::take(&mut given[b]) {
            *given[a].entry(answer).or_default() += n;
        }
        for &other in &alive {
            let both = SAME_ANSWERS * shared(&given[a], &given[other]);
            alike[a][other] = both;
            alike[other][a] = both;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_part_and_topics_stay() {
        // Two topics of one form, and one of another: unit vectors in three dimensions.
        let mut embeddings = Vec::new();
        let mut shapes = Vec::new();
        for at in 0..90 {
            let noise = (mix(at) % 100) as f32 / 10_000.0;
            let (x, y, output): (f32, f32, &str) = match at % 3 {
                0 => (0.9, 0.3, "lost_card"),
                1 => (0.85, 0.42, "new_card"),
                _ => (
                    0.87,
                    0.36,
                    "The customer has lost a card and asks in some detail what is to be done about it, and when.",
                ),
            };
            let z = (1.0 - (x + noise) * (x + noise) - y * y).max(0.0).sqrt();
            embeddings.push(vec![x + noise, y, z]);
            shapes.push(shape("my card is lost", Some(output)));
        }
        let found = cluster(&embeddings, &shapes, &[], 0.1);
        assert_eq!(found.n, 2, "{found:?}");
        assert!((0..90).all(|at| found.of[at] == found.of[at % 3]));
        assert_eq!((found.of[0], found.of[1], found.of[2]), (Some(0), Some(0), Some(1)));
        assert_eq!(cluster(&embeddings[..3], &shapes[..3], &[], 0.1).n, 0);
        assert_eq!(cluster(&[], &[], &[], 0.25).n, 0);
    }

    /// A standard normal of a hash: Box and Muller.
    fn normal(at: u64) -> f32 {
        let uniform = |at: u64| ((mix(at) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        ((-2.0 * uniform(2 * at).ln()).sqrt() * (std::f64::consts::TAU * uniform(2 * at + 1)).cos()) as f32
    }

    /// `n` rows of two tasks, each of several topics that are labels: (embeddings, answers, task).
    fn two_tasks(n: usize, topics: usize, seed: u64) -> (Vec<Vec<f32>>, Vec<String>, Vec<usize>) {
        const DIM: usize = 128;
        let centre = |topic: u64| -> Vec<f32> { (0..DIM as u64).map(|d| normal(topic * 4096 + d)).collect() };
        let (mut embeddings, mut answers, mut tasks) = (Vec::new(), Vec::new(), Vec::new());
        for at in 0..n as u64 {
            let draw = mix(seed << 32 | at);
            let (task, topic) = (draw % 2, draw / 2 % topics as u64);
            let (own, of_task) = (centre(100 + task * 50 + topic), centre(task));
            let noise = |d: usize| normal(1_000_000 + (seed << 24) + at * 97 + d as u64);
            let row: Vec<f32> = (0..DIM).map(|d| 0.9 * of_task[d] + 0.85 * own[d] + 0.6 * noise(d)).collect();
            let length = row.iter().map(|x| x * x).sum::<f32>().sqrt();
            embeddings.push(row.into_iter().map(|x| x / length).collect());
            // What lies between two topics has the label of either.
            answers.push(format!("label {task} {}", (topic + draw / 64 % 2) % topics as u64));
            tasks.push(task as usize);
        }
        (embeddings, answers, tasks)
    }

    /// The fix's story: four rows of one task have a mean far from that of four others, four hundred do not, so what was one group among many rows was several
    /// among few.
    #[test]
    fn the_scatter_of_few_rows_parts_nothing() {
        const DIM: usize = 64;
        const ROWS: u64 = 4;
        let noise = |cluster: u64, row: u64, d: u64| normal(((cluster * ROWS + row) * DIM as u64) + d) / 8.0;
        let mean = |cluster: u64| -> Vec<f32> {
            (0..DIM as u64).map(|d| (0..ROWS).map(|row| noise(cluster, row, d)).sum::<f32>() / ROWS as f32).collect()
        };
        let centres: Vec<Vec<f32>> = (0..30).map(mean).collect();
        // 64 numbers of variance 1/64 each.
        let groups = |variance: f32| -> usize {
            let joined = join(&centres, &[ROWS as usize; 30], variance, vec![Given::new(); 30], 0.3);
            joined.into_iter().collect::<std::collections::BTreeSet<_>>().len()
        };
        assert_eq!(groups(1.0), 1);
        assert!(groups(0.0) > 10, "{}", groups(0.0));
    }

    #[test]
    fn what_is_found_does_not_depend_on_how_many_rows_were_looked_at() {
        /// Topics of one task lie at 0.76, tasks at 1.62.
        const APART: f32 = 0.72;
        for n in [480, MAX_CLUSTERED + 100] {
            let (embeddings, answers, tasks) = two_tasks(n, 4, 1);
            let shapes = vec![[0.0; SHAPE]; n];
            let answers: Vec<Option<&str>> = answers.iter().map(|answer| Some(answer.as_str())).collect();
            let found = cluster(&embeddings, &shapes, &answers, APART);
            assert_eq!(found.n, 2, "{n} rows");
            // Groups are numbered by size, tasks are not.
            let same = found.of.iter().zip(&tasks).filter(|(of, task)| **of == Some(**task)).count();
            assert!(same.max(n - same) * 50 >= n * 49, "{n} rows: {same} of them with the task of their number");
            // Without answers topics of one task are several.
            assert!(cluster(&embeddings, &shapes, &[], APART).n > 2, "{n} rows");
        }
    }

    #[test]
    fn few_shared_answers_say_less_than_many() {
        let given = |answers: &[&str]| -> Given { answers.iter().map(|answer| ((*answer).to_owned(), 1.0)).collect() };
        let check = |a: &[&str], b: &[&str], expected: f32| {
            assert!(
                (shared(&given(a), &given(b)) - expected).abs() < 1e-6,
                "{a:?} {b:?}: {}",
                shared(&given(a), &given(b))
            );
            assert_eq!(shared(&given(a), &given(b)), shared(&given(b), &given(a)));
        };
        check(&["a", "b", "c", "d"], &["a", "b", "c", "d"], 1.0 - 0.125);
        check(&["yes", "no"], &["no", "yes"], 0.75);
        check(&["x"], &["x"], 0.5);
        check(&["a", "b"], &["b", "c"], 0.5 * 0.5);
        check(&["a"], &["b"], 0.0);
        check(&[], &["b"], 0.0);
        check(&[], &[], 0.0);
    }
}
