//! What the machine itself allows, and whether it was ours alone while something was measured.

use std::{fs, hint::black_box, time::Instant};

use metier_kernels::Pool;

/// Elements that a thread reads before it asks for more.
const GRAIN: usize = 1 << 16;
/// Passes over the buffer; the fastest counts, for a limit is what can be reached.
const PASSES: usize = 5;
/// Bytes read at least a pass, so that a pass is long against the clock's and the pool's cost.
const PASS_BYTES: usize = 256 << 20;
/// Ticks a second of `/proc/stat` on every Linux that Rust runs on.
const TICKS: f64 = 100.0;

/// Bytes a second that all threads of the pool together read from a buffer of so many bytes, again and again, as decoding reads weights.
pub(in crate::cli) fn bandwidth(pool: &Pool, bytes: usize) -> f64 {
    let buffer: Vec<u64> = (0..bytes.div_ceil(8) as u64).collect();
    let rounds = PASS_BYTES.div_ceil(bytes.max(1)).max(1);
    let read = || {
        let begun = Instant::now();
        for _ in 0..rounds {
            pool.run_ranges(buffer.len(), GRAIN, &|range| {
                // Eight sums, so that additions do not wait for each other.
                let mut sums = [0u64; 8];
                for eight in buffer[range].chunks_exact(8) {
                    for (sum, x) in sums.iter_mut().zip(eight) {
                        *sum = sum.wrapping_add(*x);
                    }
                }
                black_box(sums);
            });
        }
        (buffer.len() * 8 * rounds) as f64 / begun.elapsed().as_secs_f64()
    };
    pool.enter(|| (0..PASSES).map(|_| read()).fold(0.0, f64::max))
}

/// Time that the machine's CPUs have spent since it started, in seconds; zero where there is no `/proc`.
#[derive(Clone, Copy, Debug, Default)]
struct Spent {
    busy: f64,
    stolen: f64,
}

impl Spent {
    fn now() -> Self {
        fs::read_to_string("/proc/stat").ok().and_then(|text| Self::parse(&text)).unwrap_or_default()
    }

    /// The first line: `cpu  user nice system idle iowait irq softirq steal …`.
    fn parse(stat: &str) -> Option<Self> {
        let ticks: Vec<f64> = stat.lines().next()?.split_whitespace().skip(1).map_while(|n| n.parse().ok()).collect();
        let [user, nice, system, _, _, irq, softirq, stolen, ..] = ticks[..] else { return None };
        Some(Self { busy: (user + nice + system + irq + softirq) / TICKS, stolen: stolen / TICKS })
    }
}

/// Watches the CPUs while something runs.
#[derive(Debug)]
pub(super) struct Watch {
    spent: Spent,
    begun: Instant,
}

impl Watch {
    pub(super) fn start() -> Self {
        Self { spent: Spent::now(), begun: Instant::now() }
    }

    /// CPUs that were busy, and CPUs' worth of time that the hypervisor gave to others, on average; `None` where it was too short to tell.
    pub(super) fn stop(self) -> Option<(f64, f64)> {
        let (now, wall) = (Spent::now(), self.begun.elapsed().as_secs_f64());
        // Ten ticks a CPU: below, rounding is more than a tenth.
        if now.busy == 0.0 || wall < 10.0 / TICKS {
            return None;
        }
        Some(((now.busy - self.spent.busy) / wall, (now.stolen - self.spent.stolen) / wall))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn busy_is_neither_idle_nor_stolen() {
        let spent = Spent::parse("cpu  100 20 30 4000 50 6 7 80 0 0\ncpu0 1 2 3\n").unwrap();
        assert!((spent.busy - 1.63).abs() < 1e-9 && (spent.stolen - 0.8).abs() < 1e-9, "{spent:?}");
        assert!(Spent::parse("cpu 1 2").is_none());
    }
}
