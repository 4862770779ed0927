//! How fast are the quantised products? One line a shape, format and number of rows; a pool of two pinned threads.
//!
//! `cargo run --release -p metier-kernels --example gemm_speed [-- TIER]`
//!
//! A GOP is half a multiply-add. Weights of consecutive calls differ (16 copies of a small matrix), so that decoding reads them
//! from where a model's layers lie, not from the nearest cache. Figures of neighbours on the same cores are part of every figure.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "an example prints, and stops at the first error")]

use std::time::Instant;

use metier_kernels::{
    Pool, Tier,
    quant::{BlockFormat, QuantMatrix, QuantRows, matmul},
};

const THREADS: usize = 2;
/// Outputs, inputs: the linear maps of SmolLM2-135M, then of a Llama of 1 B parameters.
const SHAPES: [(&str, usize, usize); 7] = [
    ("135M qkv", 960, 576),
    ("135M gate+up", 3072, 576),
    ("135M down", 576, 1536),
    ("135M head", 49_152, 576),
    ("1B qkv", 3072, 2048),
    ("1B gate+up", 16_384, 2048),
    ("1B down", 2048, 8192),
];
/// Bytes of weights that a case cycles through, so that the shared cache does not hold them.
const CYCLE_BYTES: usize = 96 << 20;
const RUNS: usize = 5;
const RUN_SECONDS: f64 = 0.08;

fn main() {
    let tier = std::env::args().nth(1).map_or_else(Tier::detect, |name| name.parse().unwrap());
    let pool = Pool::new(THREADS, tier);
    println!("{tier}, {THREADS} threads; GOP/s (GB/s of weights), median of {RUNS}");
    for format in [BlockFormat::Q4_0, BlockFormat::Q4_1, BlockFormat::Q8_0] {
        for (name, n, k) in SHAPES {
            let bytes = n * k / 32 * format.block_bytes();
            let row: Vec<u8> = (0..k / 32 * format.block_bytes()).map(|i| (i * 37 % 61) as u8).collect();
            let copies = (CYCLE_BYTES / bytes).clamp(1, 64);
            let matrices: Vec<QuantMatrix> = (0..copies).map(|_| QuantMatrix::pack(format, n, k, |_| &row)).collect();
            let mut line = format!("{format:?} {name:13}");
            for m in [1, 4, 8, 32, 128, 512] {
                let x: Vec<f32> = (0..m * k).map(|i| ((i * 31) % 257) as f32 / 128.0 - 1.0).collect();
                let mut out = vec![0.0; m * n];
                let mut rows = QuantRows::default();
                let gop = 2.0 * (m * n * k) as f64 / 1e9;
                let mut call = 0;
                let mut rates: Vec<f64> = (0..RUNS)
                    .map(|_| {
                        let begun = Instant::now();
                        let mut calls = 0;
                        pool.enter(|| {
                            while calls == 0 || begun.elapsed().as_secs_f64() < RUN_SECONDS {
                                rows.quantise(&pool, &x, k);
                                matmul(&pool, &rows, &matrices[call % copies], &mut out);
                                call += 1;
                                calls += 1;
                            }
                        });
                        f64::from(calls) * gop / begun.elapsed().as_secs_f64()
                    })
                    .collect();
                rates.sort_by(f64::total_cmp);
                let rate = rates[RUNS / 2];
                line += &match m {
                    1 => format!("  M=1 {rate:5.0} ({:4.1})", rate / gop * bytes as f64 / 1e9),
                    _ => format!("  M={m} {rate:5.0}"),
                };
            }
            println!("{line}");
        }
    }
}
