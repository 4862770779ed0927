//! How fast are the f32 products and attention, and what could this CPU do? One line a case; pools of one and two threads.
//!
//! `cargo run --release -p metier-kernels --example float_speed [-- TIER]`
//!
//! Figures of neighbours on the same cores are part of every figure.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "an example prints, and stops at the first error")]

use std::time::Instant;

use metier_kernels::{
    Pool, Tier,
    attention::{PageShape, QUERIES, attend},
    ceilings::{Arithmetic, multiply, read},
    dense::{DenseMatrix, matmul},
};

const RUNS: usize = 5;
const RUN_SECONDS: f64 = 0.06;

/// Median of units (in billions) a second; `work` returns how many units it did.
fn rate(pool: &Pool, mut work: impl FnMut() -> u64 + Send) -> f64 {
    let mut rates: Vec<f64> = (0..RUNS)
        .map(|_| {
            pool.enter(|| {
                let begun = Instant::now();
                let mut units = 0;
                while units == 0 || begun.elapsed().as_secs_f64() < RUN_SECONDS {
                    units += work();
                }
                units as f64 / 1e9 / begun.elapsed().as_secs_f64()
            })
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    rates[RUNS / 2]
}

fn main() {
    let tier = std::env::args().nth(1).map_or_else(Tier::detect, |name| name.parse().unwrap());
    let buffer = vec![1u64; 512 << 17];
    for threads in [1, 2] {
        let pool = Pool::new(threads, tier);
        println!("{tier}, {threads} threads; median of {RUNS}");
        for what in [Arithmetic::Int4, Arithmetic::Int8, Arithmetic::F32] {
            println!("  ceiling {what:?}: {:.1} GOP/s", rate(&pool, || multiply(&pool, what, 200_000)));
        }
        for mib in [16, 512] {
            println!("  read {mib} MiB: {:.1} GB/s", rate(&pool, || read(&pool, &buffer[..mib << 17])));
        }
        for (n, k) in [(1152, 384), (1536, 384), (384, 1536), (3072, 576), (576, 1536)] {
            let weights = DenseMatrix::pack(n, k, |i, row| row.fill(i as f32 * 1e-3));
            let mut line = format!("  dense {n} × {k}:");
            for m in [1, 8, 21, 32, 128, 672] {
                let (x, mut out) = (vec![0.5; m * k], vec![0.0; m * n]);
                let gflops = rate(&pool, || {
                    matmul(&pool, &x, &weights, None, &mut out);
                    2 * (m * n * k) as u64
                });
                line += &format!("  M={m} {gflops:.1}");
            }
            println!("{line} GFLOP/s");
        }
        let shape = PageShape::f32(64, 64);
        for (positions, queries) in [(512, 8), (2048, 8), (512, 3), (512, 1)] {
            let page: Vec<f32> = (0..shape.floats()).map(|i| (i * 31 % 257) as f32 / 256.0 - 0.5).collect();
            let pages = vec![page; positions / 64];
            let pages: Vec<&[f32]> = pages.iter().map(Vec::as_slice).collect();
            let q = vec![0.3f32; queries * 64];
            let visible: Vec<_> = (0..queries).map(|_| 0..positions).collect();
            assert!(queries <= QUERIES);
            let gflops = rate(&pool, || {
                pool.run(32, &|_| {
                    let mut out = [0.0; QUERIES * 64];
                    let out = &mut out[..queries * 64];
                    attend(pool.isa(), shape, &q, &visible, &pages, 0.125, &mut Vec::new(), out);
                });
                (32 * 4 * queries * positions * 64) as u64
            });
            println!("  attend {queries} queries, {positions} positions: {gflops:.1} GFLOP/s");
        }
    }
}
