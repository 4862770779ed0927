#![allow(clippy::unwrap_used, reason = "tests")]
use proptest::prelude::*;

use super::*;
use crate::tier::Tier;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }
    fn unit(&mut self) -> f32 {
        self.next() as f32 / (1u32 << 30) as f32 - 1.0
    }
}

fn blocks_of(format: BlockFormat, count: usize, random: &mut Random) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..count {
        bytes.extend(f16::from_f32(random.unit() * 0.1).to_bits().to_le_bytes());
        if format.has_min() {
            bytes.extend(f16::from_f32(random.unit()).to_bits().to_le_bytes());
        }
        let rest = format.block_bytes() - format.quants_at();
        bytes.extend((0..rest).map(|_| random.next() as u8));
    }
    bytes
}

/// The weights of one block, by the formula of the format.
fn dequantise(format: BlockFormat, block: &[u8]) -> Vec<f64> {
    let half = |at: usize| f64::from(f16::from_bits(u16::from_le_bytes([block[at], block[at + 1]])).to_f32());
    let nibble = |i: usize| {
        let byte = block[format.quants_at() + i % 16];
        f64::from(if i < 16 { byte & 15 } else { byte >> 4 })
    };
    (0..BLOCK)
        .map(|i| match format {
            BlockFormat::Q4_0 => half(0) * (nibble(i) - 8.0),
            BlockFormat::Q4_1 => half(0) * nibble(i) + half(2),
            BlockFormat::Q8_0 => half(0) * f64::from(block[2 + i].cast_signed()),
            BlockFormat::U8Min => half(0) * f64::from(block[4 + i]) + half(2),
        })
        .collect()
}

fn check(format: BlockFormat, m: usize, n: usize, blocks: usize, seed: u64) {
    let mut random = Random(seed);
    let k = blocks * BLOCK;
    let row_bytes = blocks * format.block_bytes();
    let bytes = blocks_of(format, n * blocks, &mut random);
    let packed = QuantMatrix::pack(format, n, k, |i| &bytes[i * row_bytes..(i + 1) * row_bytes]);
    let x: Vec<f32> = (0..m * k).map(|_| random.unit()).collect();
    let mut expected: Option<Vec<u32>> = None;
    for tier in Tier::available() {
        let pool = Pool::new(2, tier);
        let mut rows = QuantRows::default();
        rows.quantise(&pool, &x, k);
        let mut out = vec![f32::NAN; m * n];
        matmul(&pool, &rows, &packed, &mut out);
        for i in 0..m {
            for j in 0..n {
                let w: Vec<f64> = bytes[j * row_bytes..(j + 1) * row_bytes]
                    .chunks(format.block_bytes())
                    .flat_map(|block| dequantise(format, block))
                    .collect();
                let (mut exact, mut magnitude) = (0.0, 0.0);
                for (l, w) in w.iter().enumerate() {
                    let at = i * blocks + l / BLOCK;
                    let rows = &rows.all;
                    let a = f64::from(rows.values[at * BLOCK + l % BLOCK]) * f64::from(rows.scales[at]);
                    assert!((a - f64::from(x[i * k + l])).abs() <= f64::from(rows.scales[at]) * 0.501);
                    exact += a * w;
                    magnitude += (a * w).abs();
                }
                // f32 sums of scaled blocks against f64; nibbles of 15 with a negative min cancel, hence the factor.
                let tolerance = 1e-5 * (magnitude + 1.0);
                assert!((f64::from(out[i * n + j]) - exact).abs() <= tolerance, "{tier} {format:?} [{i}][{j}]");
            }
        }
        let bits: Vec<u32> = out.iter().map(|x| x.to_bits()).collect();
        assert_eq!(*expected.get_or_insert_with(|| bits.clone()), bits, "{tier} is not scalar");

        // The same among other columns, added to what is there.
        let stride = n + 5;
        let mut among: Vec<f32> = (0..m * stride).map(|i| i as f32).collect();
        matmul_into(&pool, &rows, &packed, &mut among, Output { stride, first: 3, add: true });
        for (i, found) in among.iter().enumerate() {
            let (row, column) = (i / stride, i % stride);
            let product = (3..3 + n).contains(&column).then(|| out[row * n + column - 3]);
            assert_eq!(*found, i as f32 + product.unwrap_or(0.0), "{tier}: ({row}, {column})");
        }

        rows.quantise(&pool, &x[(m - 1) * k..], k);
        let mut alone = vec![f32::NAN; n];
        matmul(&pool, &rows, &packed, &mut alone);
        let alone: Vec<u32> = alone.iter().map(|x| x.to_bits()).collect();
        assert_eq!(alone, bits[(m - 1) * n..], "{tier}: a row alone is not the row in its batch");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn tiers_agree_with_each_other_and_the_formula(
        format in prop::sample::select(vec![
            BlockFormat::Q4_0, BlockFormat::Q4_1, BlockFormat::Q8_0, BlockFormat::U8Min,
        ]),
        m in prop_oneof![1usize..28, 45usize..60], n in 1usize..90, blocks in 1usize..5, seed: u64,
    ) {
        check(format, m, n, blocks, seed);
    }
}

#[test]
fn what_lies_in_a_file_multiplies_as_what_was_packed() {
    let mut random = Random(11);
    let (n, k) = (37, 3 * BLOCK);
    let folder = tempfile::tempdir().unwrap();
    for format in [BlockFormat::Q4_0, BlockFormat::Q4_1, BlockFormat::Q8_0, BlockFormat::U8Min] {
        let bytes = blocks_of(format, n * 3, &mut random);
        let row_bytes = 3 * format.block_bytes();
        let made = QuantMatrix::pack(format, n, k, |i| &bytes[i * row_bytes..(i + 1) * row_bytes]);
        let packed = made.packed().concat();
        assert_eq!(Some(packed.len()), QuantMatrix::packed_len(format, n, k));
        let path = folder.path().join(format!("{format:?}"));
        std::fs::write(&path, [&[7; 64], packed.as_slice()].concat()).unwrap();
        let file = Arc::new(Mapped::open(&path).unwrap());
        let mapped = QuantMatrix::mapped(format, n, k, &file, 64).unwrap();
        let x: Vec<f32> = (0..5 * k).map(|_| random.unit()).collect();
        for tier in Tier::available() {
            let pool = Pool::new(2, tier);
            let mut rows = QuantRows::default();
            rows.quantise(&pool, &x, k);
            let products = [&made, &mapped].map(|weights| {
                let mut out = vec![f32::NAN; 5 * n];
                matmul(&pool, &rows, weights, &mut out);
                out
            });
            assert_eq!(products[0], products[1], "{tier} {format:?}");
        }
        for (n, at) in [(n + 16, 64), (n, 128), (n, 32), (n, usize::MAX - 63), (usize::MAX / 8, 64)] {
            assert!(QuantMatrix::mapped(format, n, k, &file, at).is_none(), "{n} rows at {at}");
        }
    }
}

#[test]
fn rows_in_parts_are_the_rows_together() {
    let mut random = Random(3);
    let (k, ns) = (3 * BLOCK, [37, 20]);
    let formats = [BlockFormat::Q4_1, BlockFormat::Q8_0];
    let matrices: Vec<QuantMatrix> = formats
        .into_iter()
        .zip(ns)
        .map(|(format, n)| {
            let bytes = blocks_of(format, n * 3, &mut random);
            let row_bytes = 3 * format.block_bytes();
            QuantMatrix::pack(format, n, k, |i| &bytes[i * row_bytes..(i + 1) * row_bytes])
        })
        .collect();
    let stride = ns[0] + ns[1];
    for m in [1, 7, 23, 24, 31, 33, 59, 131, 400] {
        let x: Vec<f32> = (0..m * k).map(|_| random.unit()).collect();
        for (tier, threads) in Tier::available().into_iter().flat_map(|tier| [1, 2, 5].map(|n| (tier, n))) {
            let pool = Pool::new(threads, tier);
            let mut rows = QuantRows::default();
            let mut expected = vec![1.0; m * stride];
            rows.quantise(&pool, &x, k);
            matmul_into(&pool, &rows, &matrices[0], &mut expected, Output { stride, first: 0, add: true });
            matmul_into(&pool, &rows, &matrices[1], &mut expected, Output { stride, first: ns[0], add: true });
            for keep in [true, false, true] {
                let (mut filled, mut out) = (vec![f32::NAN; m * k], vec![1.0; m * stride]);
                let fill = |first: usize, rows: &mut [f32]| {
                    rows.copy_from_slice(&x[first * k..first * k + rows.len()]);
                };
                let input = Input { x: &mut filled, k, fill: &fill, keep };
                multiply(&pool, input, &mut rows, &matrices, &mut out, true);
                assert!(!keep || filled == x, "{tier} {m}");
                assert_eq!(out, expected, "{tier}, {m} rows, {threads} threads");
            }
        }
    }
}

/// Weights and activations at their ends: where a narrow sum would saturate, it does so here.
#[test]
fn the_widest_values_do_not_overflow() {
    let one = f16::from_f32(1.0).to_bits().to_le_bytes();
    let half = f16::from_f32(0.5).to_bits().to_le_bytes();
    for (format, byte, weight) in [
        (BlockFormat::Q8_0, 0x80, -128.0),
        (BlockFormat::Q8_0, 0x7f, 127.0),
        (BlockFormat::U8Min, 0xff, 255.5),
        (BlockFormat::U8Min, 0x80, 128.5),
        (BlockFormat::U8Min, 0, 0.5),
        (BlockFormat::Q4_0, 0xff, 7.0),
        (BlockFormat::Q4_0, 0, -8.0),
        (BlockFormat::Q4_1, 0xff, 15.5),
    ] {
        let mut block = one.to_vec();
        if format.has_min() {
            block.extend(half);
        }
        block.resize(format.block_bytes(), byte);
        for tier in Tier::available() {
            let pool = Pool::new(1, tier);
            for m in [1, 2, 4, 13] {
                for n in [1, 16, 32, 64] {
                    let packed = QuantMatrix::pack(format, n, 32, |_| &block);
                    for x in [127.0, -127.0] {
                        let mut rows = QuantRows::default();
                        rows.quantise(&pool, &vec![x; m * 32], 32);
                        let mut out = vec![f32::NAN; m * n];
                        matmul(&pool, &rows, &packed, &mut out);
                        assert_eq!(out, vec![32.0 * x * weight; m * n], "{tier} {format:?} {byte}: ({m}, {n})");
                    }
                }
            }
        }
    }
}

#[test]
fn eight_bit_weights_stay_close() {
    let mut random = Random(7);
    let (n, k) = (20, 40);
    let w: Vec<f32> = (0..n * k).map(|_| random.unit()).collect();
    let packed = QuantMatrix::quantise(n, k, |i, row| row.copy_from_slice(&w[i * k..(i + 1) * k]));
    let x: Vec<f32> = (0..k).map(|_| random.unit()).collect();
    let pool = Pool::new(1, Tier::detect());
    let mut rows = QuantRows::default();
    rows.quantise(&pool, &x, k);
    let mut out = vec![0.0; n];
    matmul(&pool, &rows, &packed, &mut out);
    for j in 0..n {
        let exact: f32 = (0..k).map(|l| x[l] * w[j * k + l]).sum();
        assert!((out[j] - exact).abs() < 0.1, "{} is not {exact}", out[j]);
    }
}
