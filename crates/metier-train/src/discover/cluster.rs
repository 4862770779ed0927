//! *Which texts ask for the same thing, where no template says so?* Embeddings and shapes of calls in, a group for each out.
//!
//! What makes texts one task is what is wanted of them, and that shows in two ways: what they are about, and what form question and answer
//! have. So a call is its embedding beside a few numbers of form: lengths, lines, digits, how the answer looks. Spherical k-means makes many small
//! clusters; the nearest pairs of these are then joined (average linkage, weighted by size) until no two are nearer than [`APART`]. Topics of one
//! task stay together because their form is the same and their words are near; tasks of one topic part because their form differs.
//!
//! Deterministic: seeds are chosen by hash, sums run in one order.

use metier_model::specialist::mix;

/// Numbers of form beside an embedding.
pub const SHAPE: usize = 10;
/// Clusters before they are joined.
const MAX_SMALL: usize = 96;
/// Rows a small cluster has on average at least.
const ROWS_A_SMALL: usize = 12;
/// Rounds of k-means.
const ROUNDS: usize = 25;
/// How much the form counts against the embedding.
const SHAPE_WEIGHT: f32 = 0.9;
/// Clusters whose mean squared distance is greater stay apart.
pub const APART: f32 = 0.9;
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

/// Groups rows of unit embeddings and their shapes.
pub fn cluster(embeddings: &[Vec<f32>], shapes: &[[f32; SHAPE]], apart: f32) -> Clusters {
    let rows: Vec<Vec<f32>> = embeddings
        .iter()
        .zip(shapes)
        .map(|(embedding, shape)| embedding.iter().copied().chain(shape.iter().map(|x| x * SHAPE_WEIGHT)).collect())
        .collect();
    if rows.len() < MIN_ROWS {
        return Clusters { of: vec![None; rows.len()], n: 0 };
    }
    let n_small = (rows.len() / ROWS_A_SMALL).clamp(1, MAX_SMALL);
    let (small, centres) = k_means(&rows, n_small);
    let mut sizes = vec![0usize; n_small];
    small.iter().for_each(|&at| sizes[at] += 1);
    let joined = join(&centres, &sizes, apart);
    let mut members = vec![0usize; n_small];
    small.iter().for_each(|&at| members[joined[at]] += 1);
    let fewest = MIN_ROWS.max((rows.len() as f64 * MIN_SHARE) as usize);
    let mut order: Vec<usize> = (0..n_small).filter(|&at| members[at] >= fewest).collect();
    order.sort_by_key(|&at| (std::cmp::Reverse(members[at]), at));
    let mut number = vec![None; n_small];
    order.iter().enumerate().for_each(|(number_of, &at)| number[at] = Some(number_of));
    Clusters { of: small.iter().map(|&at| number[joined[at]]).collect(), n: order.len() }
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
}

/// Lloyd's algorithm from seeds that lie far apart (k-means++ with a hash for the dice).
fn k_means(rows: &[Vec<f32>], k: usize) -> (Vec<usize>, Vec<Vec<f32>>) {
    let mut centres = vec![rows[0].clone()];
    let mut nearest: Vec<f32> = rows.iter().map(|row| distance(row, &centres[0])).collect();
    while centres.len() < k {
        let total: f64 = nearest.iter().map(|&d| f64::from(d)).sum();
        let mut dice = (mix(centres.len() as u64) >> 11) as f64 / (1u64 << 53) as f64 * total;
        let at = nearest.iter().position(|&d| {
            dice -= f64::from(d);
            dice < 0.0
        });
        let centre = rows[at.unwrap_or(rows.len() - 1)].clone();
        for (nearest, row) in nearest.iter_mut().zip(rows) {
            *nearest = nearest.min(distance(row, &centre));
        }
        centres.push(centre);
    }
    let mut of = vec![usize::MAX; rows.len()];
    for _ in 0..ROUNDS {
        let mut moved = false;
        for (of, row) in of.iter_mut().zip(rows) {
            let best = (0..k)
                .map(|at| (distance(row, &centres[at]), at))
                .min_by(|a, b| a.0.total_cmp(&b.0))
                .map_or(0, |best| best.1);
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

/// Joins centres that lie near; for each, the one that stands for its group.
fn join(centres: &[Vec<f32>], sizes: &[usize], apart: f32) -> Vec<usize> {
    let n = centres.len();
    let mut group: Vec<usize> = (0..n).collect();
    let mut weight: Vec<f32> = sizes.iter().map(|&size| size as f32).collect();
    let mut between: Vec<Vec<f32>> = centres.iter().map(|a| centres.iter().map(|b| distance(a, b)).collect()).collect();
    let mut alive: Vec<usize> = (0..n).filter(|&at| sizes[at] > 0).collect();
    loop {
        let pairs = alive.iter().enumerate().flat_map(|(i, &a)| alive[i + 1..].iter().map(move |&b| (a, b)));
        let nearest = pairs.min_by(|&(a, b), &(c, d)| between[a][b].total_cmp(&between[c][d]));
        let Some((a, b)) = nearest.filter(|&(a, b)| between[a][b] < apart) else { return group };
        for &other in &alive {
            let both = (weight[a] * between[a][other] + weight[b] * between[b][other]) / (weight[a] + weight[b]);
            between[a][other] = both;
            between[other][a] = both;
        }
        weight[a] += weight[b];
        alive.retain(|&at| at != b);
        group.iter_mut().filter(|group| **group == b).for_each(|group| *group = a);
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
        let found = cluster(&embeddings, &shapes, 0.1);
        assert_eq!(found.n, 2, "{found:?}");
        assert!((0..90).all(|at| found.of[at] == found.of[at % 3]));
        assert_eq!((found.of[0], found.of[1], found.of[2]), (Some(0), Some(0), Some(1)));
        assert_eq!(cluster(&embeddings[..3], &shapes[..3], 0.1).n, 0);
        assert_eq!(cluster(&[], &[], 0.25).n, 0);
    }
}
