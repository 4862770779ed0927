//! What the machine itself allows, and whether it was ours alone while something was measured.

use std::{fs, time::Instant};

use metier_kernels::{
    Pool, Tier,
    ceilings::{self, Arithmetic},
};

/// Passes; the fastest counts, for a limit is what can be reached.
const PASSES: usize = 5;
/// Bytes read at least a pass, so that a pass is long against the clock's and the pool's cost.
const PASS_BYTES: usize = 256 << 20;
/// Ticks a second of `/proc/stat` on every Linux that Rust runs on.
const TICKS: f64 = 100.0;

/// Rounds of a pass that multiplies: some hundredths of a second with SIMD.
const ROUNDS: u32 = 50_000;
/// With scalar code a round is slower and nobody needs the figure.
const SCALAR_ROUNDS: u32 = 2_000;

/// Bytes a second that all threads of the pool together read from a buffer of so many bytes, again and again, as decoding reads weights.
pub(in crate::cli) fn bandwidth(pool: &Pool, bytes: usize) -> f64 {
    let buffer: Vec<u64> = (0..bytes.div_ceil(8) as u64).collect();
    let rounds = PASS_BYTES.div_ceil(bytes.max(1)).max(1);
    fastest(pool, || (0..rounds).map(|_| ceilings::read(pool, &buffer)).sum())
}

/// Operations a second, two a multiply-add, of all threads together on registers alone.
pub(in crate::cli) fn peak(pool: &Pool, what: Arithmetic) -> f64 {
    let rounds = if pool.tier() == Tier::Scalar { SCALAR_ROUNDS } else { ROUNDS };
    fastest(pool, || ceilings::multiply(pool, what, rounds))
}

/// What the fastest pass did a second.
fn fastest(pool: &Pool, pass: impl Fn() -> u64 + Sync) -> f64 {
    let timed = || {
        let begun = Instant::now();
        pass() as f64 / begun.elapsed().as_secs_f64()
    };
    pool.enter(|| (0..PASSES).map(|_| timed()).fold(0.0, f64::max))
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
