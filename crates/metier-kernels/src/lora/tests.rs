use proptest::prelude::*;

use super::*;
use crate::tier::Tier;

struct Random(u64);

impl Random {
    fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n)
            .map(|_| {
                self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
            })
            .collect()
    }
}

struct Pair {
    a: Vec<f32>,
    b: Vec<f32>,
    rank: usize,
    first: usize,
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// The delta in f64, with A and B as given.
fn exact(x: &[f32], pairs: &[Pair], k: usize, n: usize, scale: f32) -> Vec<f64> {
    let mut out = vec![0.0; n];
    for Pair { a, b, rank, first } in pairs {
        let dot = |w: &[f32]| w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>();
        let h: Vec<f64> = a.chunks_exact(k).map(dot).collect();
        for (i, b) in b.chunks_exact(*rank).enumerate() {
            let sum: f64 = b.iter().zip(&h).map(|(b, h)| f64::from(*b) * h).sum();
            out[first + i] += sum * f64::from(scale);
        }
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn deltas_are_right_alike_on_tiers_and_alone(
        k in 1usize..300, ranks in prop::collection::vec(1usize..20, 1..4), outputs in 1usize..50,
        lens in prop::collection::vec(0usize..22, 1..4), seed: u32, int8: bool,
    ) {
        let format = if int8 { LoraFormat::Int8 } else { LoraFormat::F16 };
        let mut random = Random(u64::from(seed));
        let n = ranks.len() * outputs + 3;
        let stacks: Vec<(Vec<Pair>, LoraStack)> = lens.iter().map(|_| {
            let pairs: Vec<Pair> = ranks.iter().enumerate().map(|(i, &rank)| Pair {
                a: random.floats(rank * k), b: random.floats(outputs * rank), rank, first: i * outputs + 2,
            }).collect();
            let parts: Vec<LoraPart<'_>> = pairs.iter()
                .map(|p| LoraPart { a: &p.a, b: &p.b, rank: p.rank, first: p.first, scale: 0.5 }).collect();
            let stack = LoraStack::pack(format, k, n, &parts);
            (pairs, stack)
        }).collect();
        let rows = lens.iter().sum::<usize>() + 1;
        let (x, y) = (random.floats(rows * k), random.floats(rows * n));
        let mut segments = Vec::new();
        let mut end = 1;
        for (len, (_, stack)) in lens.iter().zip(&stacks) {
            segments.push(LoraSegment { rows: end..end + len, stack });
            end += len;
        }
        let run = |tier, x: &[f32], y: &[f32], segments: &[LoraSegment<'_>]| {
            let mut out = y.to_vec();
            add_deltas(&Pool::new(2, tier), x, &mut out, segments);
            out
        };
        let expected = run(Tier::Scalar, &x, &y, &segments);
        prop_assert_eq!(bits(&expected[..n]), bits(&y[..n]), "a row outside all segments stays");
        // Rounding of weights: 2⁻¹¹ of each in f16, 1/254 of the greatest of its scale group in 8 bits.
        let tolerance = if int8 { 2e-2 } else { 2e-3 };
        for (segment, (pairs, _)) in segments.iter().zip(&stacks) {
            for row in segment.rows.clone() {
                let truth = exact(&x[row * k..(row + 1) * k], pairs, k, n, 0.5);
                let size = (k as f64).sqrt() * 20.0;
                for (i, delta) in truth.iter().enumerate() {
                    let got = f64::from(expected[row * n + i]) - f64::from(y[row * n + i]);
                    prop_assert!((got - delta).abs() < tolerance * size, "{} is not {}", got, delta);
                }
            }
        }
        for tier in Tier::available() {
            prop_assert_eq!(bits(&run(tier, &x, &y, &segments)), bits(&expected), "{}", tier);
            for segment in segments.iter().filter(|s| !s.rows.is_empty()) {
                let row = segment.rows.end - 1;
                let alone = [LoraSegment { rows: 0..1, stack: segment.stack }];
                let got = run(tier, &x[row * k..(row + 1) * k], &y[row * n..(row + 1) * n], &alone);
                prop_assert_eq!(bits(&got), bits(&expected[row * n..(row + 1) * n]), "{} alone", tier);
            }
        }
    }
}

#[test]
fn eight_bits_are_close_where_it_matters() {
    let (k, n, rank) = (576, 64, 16);
    let mut random = Random(9);
    let pairs = [Pair { a: random.floats(rank * k), b: random.floats(n * rank), rank, first: 0 }];
    let x = random.floats(k);
    let truth = exact(&x, &pairs, k, n, 1.0);
    let part = LoraPart { a: &pairs[0].a, b: &pairs[0].b, rank, first: 0, scale: 1.0 };
    for (format, tolerance) in [(LoraFormat::F16, 1e-3), (LoraFormat::Int8, 1.5e-2)] {
        let stack = LoraStack::pack(format, k, n, &[part]);
        let mut y = vec![0.0; n];
        add_deltas(&Pool::new(1, Tier::detect()), &x, &mut y, &[LoraSegment { rows: 0..1, stack: &stack }]);
        let error: f64 = y.iter().zip(&truth).map(|(y, t)| (f64::from(*y) - t).powi(2)).sum::<f64>().sqrt();
        let size: f64 = truth.iter().map(|t| t * t).sum::<f64>().sqrt();
        assert!(error / size < tolerance, "{format:?}: relative error {}", error / size);
    }
}

#[test]
fn nothing_is_padded_at_usual_shapes() {
    let (k, n, rank) = (576, 960, 8);
    let (a, b) = (vec![0.1; rank * k], vec![0.1; n * rank]);
    let part = LoraPart { a: &a, b: &b, rank, first: 0, scale: 1.0 };
    let weights = a.len() + b.len();
    assert!(LoraStack::pack(LoraFormat::F16, k, n, &[part]).bytes() < 2 * weights + 256);
    assert!(LoraStack::pack(LoraFormat::Int8, k, n, &[part]).bytes() < weights * 12 / 10 + 256);
}
