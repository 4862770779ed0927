//! How fast could this CPU multiply and read, were there nothing else to do? Loops that only multiply, or only read.
//!
//! **In:** a pool and how long to go on. **Out:** how much was done; whoever calls has the clock. **Absent:** the kernels' own
//! overheads: unpacking, scales, memory. A kernel's share of these figures is what those cost.
//!
//! What bounds an exact integer dot differs by tier, hence two figures:
//!
//! ```text
//!                  weights of 4 bits                              weights of 8 bits
//! AVX2             8 × (vpmaddubsw, vpaddw), vpmaddwd, vpaddd     vpmaddubsw, vpmaddwd, vpaddd
//!                  = 256 multiply-adds in 18 instructions         = 32 in 3 (pairs fill the 16 bits: no second may be added)
//! AVX-512 VNNI     vpdpbusd = 64 in one                           the same
//! ```

use std::{hint::black_box, time::Instant};

use crate::{
    lanes::{LANES, Lanes},
    pool::Pool,
    tier::{Isa, Tier},
};

/// What is multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    /// Signed 8-bit activations with unsigned 4-bit weights, summed exactly.
    Int4,
    /// Signed 8-bit activations with 8-bit weights, summed exactly.
    Int8,
    /// Fused multiply-adds of f32.
    F32,
}

/// Parts a thread gets: enough that a thread which wakes late is not missed.
const PARTS_PER_THREAD: usize = 16;

/// Multiplies registers on all threads of the pool, `rounds` times a part, and returns the operations done (two a
/// multiply-add). A round is about 30 ns with SIMD; 200,000 rounds take about a tenth of a second.
pub fn multiply(pool: &Pool, what: Arithmetic, rounds: u32) -> u64 {
    let parts = pool.threads() * PARTS_PER_THREAD;
    let isa = pool.isa();
    let rounds = rounds.div_ceil(PARTS_PER_THREAD as u32).max(1);
    pool.run(parts, &|_| round_trip(isa, what, rounds));
    2 * multiply_adds(isa.tier(), what) * u64::from(rounds) * parts as u64
}

/// Reads `buffer` once on all threads, each a contiguous part after the other, and returns the bytes read. A buffer well
/// beyond the last cache shows memory, a smaller one that cache.
pub fn read(pool: &Pool, buffer: &[u64]) -> u64 {
    let grain = buffer.len().div_ceil(pool.threads() * PARTS_PER_THREAD).next_multiple_of(READ_LANES);
    let isa = pool.isa();
    pool.run_ranges(buffer.len(), grain, &|range| {
        let mut folded = 0;
        fold_words(isa, &buffer[range], &mut folded);
        black_box(folded);
    });
    size_of_val(buffer) as u64
}

/// Rounds of a probe: about 0.1 ms with SIMD.
const PROBE_ROUNDS: u32 = 4_000;
/// Probes of a tier; the fastest counts, so that a thread which was interrupted says nothing.
const PROBES: usize = 5;
/// A lower tier must be so much faster to be taken: no interruption looks like that five times.
const LEAD: f64 = 1.25;

/// Multiply-adds a second of 8-bit integers that one thread reaches in each SIMD tier of this CPU, slowest tier first. Takes a millisecond.
pub fn probe() -> Vec<(Tier, f64)> {
    let tiers = Tier::available().into_iter().filter(|tier| *tier != Tier::Scalar);
    let rate = |tier: Tier| {
        let isa = tier.isa().expect("it is available");
        let one = |_| {
            let begun = Instant::now();
            round_trip(isa, Arithmetic::Int8, PROBE_ROUNDS);
            begun.elapsed().as_secs_f64().max(f64::MIN_POSITIVE)
        };
        let fastest = (0..PROBES).map(one).fold(f64::INFINITY, f64::min);
        f64::from(PROBE_ROUNDS) * multiply_adds(tier, Arithmetic::Int8) as f64 / fastest
    };
    tiers.map(|tier| (tier, rate(tier))).collect()
}

/// The tier to compute with, of what [`probe`] found: the highest, unless a lower one is clearly faster. There are CPUs and hypervisors
/// on which wide registers cost more than they bring.
pub fn fastest(probed: &[(Tier, f64)]) -> Tier {
    let mut best = (Tier::Scalar, 0.0);
    for &(tier, rate) in probed {
        if rate * LEAD >= best.1 {
            best = (tier, rate);
        }
    }
    best.0
}

/// Multiply-adds of one round.
const fn multiply_adds(tier: Tier, what: Arithmetic) -> u64 {
    match (tier, what) {
        (Tier::Scalar, _) => SCALAR_LANES as u64,
        (Tier::Avx2, Arithmetic::Int4) => 2 * 8 * 32,
        (Tier::Avx2, Arithmetic::Int8) => 12 * 32,
        (Tier::Avx2, Arithmetic::F32) => 12 * 8,
        (Tier::Avx512Vnni, Arithmetic::Int4 | Arithmetic::Int8) => 12 * 64,
        (Tier::Avx512Vnni, Arithmetic::F32) => 12 * 16,
    }
}

fn round_trip(isa: Isa, what: Arithmetic, rounds: u32) {
    match (isa.tier(), what) {
        // SAFETY: an `Isa` of this tier exists only if the CPU was seen to have AVX2 and FMA.
        #[cfg(target_arch = "x86_64")]
        (Tier::Avx2, _) => unsafe {
            match what {
                Arithmetic::Int4 => x86::avx2_int4(rounds),
                Arithmetic::Int8 => x86::avx2_int8(rounds),
                Arithmetic::F32 => x86::avx2_f32(rounds),
            }
        },
        // SAFETY: an `Isa` of this tier exists only if the CPU was seen to have AVX-512F and VNNI.
        #[cfg(target_arch = "x86_64")]
        (Tier::Avx512Vnni, _) => unsafe {
            match what {
                Arithmetic::Int4 | Arithmetic::Int8 => x86::avx512_int8(rounds),
                Arithmetic::F32 => x86::avx512_f32(rounds),
            }
        },
        (_, Arithmetic::F32) => plain(rounds, 1.0f32, |sum, w, a| w.mul_add(a, sum)),
        _ => plain(rounds, 1i32, |sum, w, a| sum.wrapping_add(w.wrapping_mul(a))),
    }
}

const SCALAR_LANES: usize = 16;

fn plain<T: Copy>(rounds: u32, one: T, multiply_add: impl Fn(T, T, T) -> T) {
    let mut sums = [one; SCALAR_LANES];
    for _ in 0..rounds {
        let (w, a) = (black_box(one), black_box(one));
        for sum in &mut sums {
            *sum = multiply_add(*sum, w, a);
        }
    }
    black_box(sums);
}

/// Words that are folded side by side: eight vectors of 16 f32.
const READ_LANES: usize = FOLDS * LANES / 2;
/// Vectors that wait for nobody.
const FOLDS: usize = 8;

per_tier! {
    fn fold_words(words: &[u64], folded: &mut u64) = fold_words_body
}

/// Folds the words as if they were pairs of f32, by the maximum: one instruction a vector, whatever the bits are. As integers in an
/// array they were left in memory by the compiler, at a fifth of the speed.
#[inline(always)]
unsafe fn fold_words_body<L: Lanes>(words: &[u64], folded: &mut u64) {
    let chunks = words.chunks_exact(READ_LANES);
    let rest = chunks.remainder().iter().fold(0, |a, b| a ^ b);
    // SAFETY: a chunk holds FOLDS vectors of 16 f32, and every bit pattern is an f32; features as the trait demands.
    unsafe {
        let mut greatest = [L::splat(0.0); FOLDS];
        for chunk in chunks {
            for (i, greatest) in greatest.iter_mut().enumerate() {
                *greatest = L::max(L::load(chunk.as_ptr().cast::<f32>().add(i * LANES)), *greatest);
            }
        }
        let all = greatest.into_iter().fold(0.0f32, |sum, vector| sum + L::max_lane(vector));
        *folded = rest ^ u64::from(all.to_bits());
    }
}

/// Written as assembly: the operands never change, and a compiler would multiply once.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;

    /// Runs the lines `rounds` times on registers that hold zeros.
    macro_rules! rounds {
        ($rounds:expr, $($line:literal),+ $(,)?) => {
            // SAFETY: the block touches nothing but vector registers, the counter and the flags, all of which it names as
            // clobbered; it needs the features that the function enables.
            unsafe {
                asm!(
                    "vzeroall",
                    "2:",
                    $($line,)+
                    "dec {rounds:e}",
                    "jnz 2b",
                    "vzeroupper",
                    rounds = inout(reg) $rounds => _,
                    out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _, out("xmm6") _,
                    out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _, out("xmm12") _,
                    out("xmm13") _, out("xmm14") _, out("xmm15") _,
                    options(nomem, nostack),
                );
            }
        };
    }

    /// Two groups of eight products summed in 16 bits, then widened.
    #[target_feature(enable = "avx2")]
    pub(super) fn avx2_int4(rounds: u32) {
        rounds!(
            rounds,
            "vpmaddubsw ymm2, ymm0, ymm1",
            "vpmaddubsw ymm3, ymm0, ymm1",
            "vpmaddubsw ymm4, ymm0, ymm1",
            "vpmaddubsw ymm5, ymm0, ymm1",
            "vpmaddubsw ymm6, ymm0, ymm1",
            "vpmaddubsw ymm7, ymm0, ymm1",
            "vpmaddubsw ymm8, ymm0, ymm1",
            "vpmaddubsw ymm9, ymm0, ymm1",
            "vpaddw ymm10, ymm10, ymm2",
            "vpaddw ymm11, ymm11, ymm3",
            "vpaddw ymm10, ymm10, ymm4",
            "vpaddw ymm11, ymm11, ymm5",
            "vpaddw ymm10, ymm10, ymm6",
            "vpaddw ymm11, ymm11, ymm7",
            "vpaddw ymm10, ymm10, ymm8",
            "vpaddw ymm11, ymm11, ymm9",
            "vpmaddubsw ymm2, ymm0, ymm1",
            "vpmaddubsw ymm3, ymm0, ymm1",
            "vpmaddubsw ymm4, ymm0, ymm1",
            "vpmaddubsw ymm5, ymm0, ymm1",
            "vpmaddubsw ymm6, ymm0, ymm1",
            "vpmaddubsw ymm7, ymm0, ymm1",
            "vpmaddubsw ymm8, ymm0, ymm1",
            "vpmaddubsw ymm9, ymm0, ymm1",
            "vpaddw ymm10, ymm10, ymm2",
            "vpaddw ymm11, ymm11, ymm3",
            "vpaddw ymm10, ymm10, ymm4",
            "vpaddw ymm11, ymm11, ymm5",
            "vpaddw ymm10, ymm10, ymm6",
            "vpaddw ymm11, ymm11, ymm7",
            "vpaddw ymm10, ymm10, ymm8",
            "vpaddw ymm11, ymm11, ymm9",
            "vpmaddwd ymm12, ymm10, ymm0",
            "vpmaddwd ymm13, ymm11, ymm0",
            "vpaddd ymm14, ymm14, ymm12",
            "vpaddd ymm15, ymm15, ymm13",
        );
    }

    /// Twelve products, each widened at once.
    #[target_feature(enable = "avx2")]
    pub(super) fn avx2_int8(rounds: u32) {
        rounds!(
            rounds,
            "vpmaddubsw ymm2, ymm0, ymm1",
            "vpmaddubsw ymm3, ymm0, ymm1",
            "vpmaddubsw ymm4, ymm0, ymm1",
            "vpmaddubsw ymm5, ymm0, ymm1",
            "vpmaddubsw ymm6, ymm0, ymm1",
            "vpmaddubsw ymm7, ymm0, ymm1",
            "vpmaddwd ymm2, ymm2, ymm0",
            "vpmaddwd ymm3, ymm3, ymm0",
            "vpmaddwd ymm4, ymm4, ymm0",
            "vpmaddwd ymm5, ymm5, ymm0",
            "vpmaddwd ymm6, ymm6, ymm0",
            "vpmaddwd ymm7, ymm7, ymm0",
            "vpaddd ymm10, ymm10, ymm2",
            "vpaddd ymm11, ymm11, ymm3",
            "vpaddd ymm12, ymm12, ymm4",
            "vpaddd ymm13, ymm13, ymm5",
            "vpaddd ymm14, ymm14, ymm6",
            "vpaddd ymm15, ymm15, ymm7",
            "vpmaddubsw ymm2, ymm0, ymm1",
            "vpmaddubsw ymm3, ymm0, ymm1",
            "vpmaddubsw ymm4, ymm0, ymm1",
            "vpmaddubsw ymm5, ymm0, ymm1",
            "vpmaddubsw ymm6, ymm0, ymm1",
            "vpmaddubsw ymm7, ymm0, ymm1",
            "vpmaddwd ymm2, ymm2, ymm0",
            "vpmaddwd ymm3, ymm3, ymm0",
            "vpmaddwd ymm4, ymm4, ymm0",
            "vpmaddwd ymm5, ymm5, ymm0",
            "vpmaddwd ymm6, ymm6, ymm0",
            "vpmaddwd ymm7, ymm7, ymm0",
            "vpaddd ymm10, ymm10, ymm2",
            "vpaddd ymm11, ymm11, ymm3",
            "vpaddd ymm12, ymm12, ymm4",
            "vpaddd ymm13, ymm13, ymm5",
            "vpaddd ymm14, ymm14, ymm6",
            "vpaddd ymm15, ymm15, ymm7",
        );
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn avx2_f32(rounds: u32) {
        rounds!(
            rounds,
            "vfmadd231ps ymm2, ymm0, ymm1",
            "vfmadd231ps ymm3, ymm0, ymm1",
            "vfmadd231ps ymm4, ymm0, ymm1",
            "vfmadd231ps ymm5, ymm0, ymm1",
            "vfmadd231ps ymm6, ymm0, ymm1",
            "vfmadd231ps ymm7, ymm0, ymm1",
            "vfmadd231ps ymm8, ymm0, ymm1",
            "vfmadd231ps ymm9, ymm0, ymm1",
            "vfmadd231ps ymm10, ymm0, ymm1",
            "vfmadd231ps ymm11, ymm0, ymm1",
            "vfmadd231ps ymm12, ymm0, ymm1",
            "vfmadd231ps ymm13, ymm0, ymm1",
        );
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) fn avx512_int8(rounds: u32) {
        rounds!(
            rounds,
            "vpdpbusd zmm2, zmm0, zmm1",
            "vpdpbusd zmm3, zmm0, zmm1",
            "vpdpbusd zmm4, zmm0, zmm1",
            "vpdpbusd zmm5, zmm0, zmm1",
            "vpdpbusd zmm6, zmm0, zmm1",
            "vpdpbusd zmm7, zmm0, zmm1",
            "vpdpbusd zmm8, zmm0, zmm1",
            "vpdpbusd zmm9, zmm0, zmm1",
            "vpdpbusd zmm10, zmm0, zmm1",
            "vpdpbusd zmm11, zmm0, zmm1",
            "vpdpbusd zmm12, zmm0, zmm1",
            "vpdpbusd zmm13, zmm0, zmm1",
        );
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn avx512_f32(rounds: u32) {
        rounds!(
            rounds,
            "vfmadd231ps zmm2, zmm0, zmm1",
            "vfmadd231ps zmm3, zmm0, zmm1",
            "vfmadd231ps zmm4, zmm0, zmm1",
            "vfmadd231ps zmm5, zmm0, zmm1",
            "vfmadd231ps zmm6, zmm0, zmm1",
            "vfmadd231ps zmm7, zmm0, zmm1",
            "vfmadd231ps zmm8, zmm0, zmm1",
            "vfmadd231ps zmm9, zmm0, zmm1",
            "vfmadd231ps zmm10, zmm0, zmm1",
            "vfmadd231ps zmm11, zmm0, zmm1",
            "vfmadd231ps zmm12, zmm0, zmm1",
            "vfmadd231ps zmm13, zmm0, zmm1",
        );
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn every_tier_counts_what_it_does() {
        for tier in Tier::available() {
            let pool = Pool::new(2, tier);
            for what in [Arithmetic::Int4, Arithmetic::Int8, Arithmetic::F32] {
                let one = multiply(&pool, what, 16);
                assert_eq!(one, 2 * multiply_adds(tier, what) * 32, "{tier} {what:?}: one round in each of 32 parts");
                assert_eq!(multiply(&pool, what, 160), 10 * one, "{tier} {what:?}");
            }
        }
    }

    #[test]
    fn a_lower_tier_is_taken_only_where_it_is_clearly_faster() {
        let check = |probed: &[(Tier, f64)], tier| assert_eq!(fastest(probed), tier, "{probed:?}");
        check(&[], Tier::Scalar);
        check(&[(Tier::Avx2, 1.0)], Tier::Avx2);
        check(&[(Tier::Avx2, 1.0), (Tier::Avx512Vnni, 2.0)], Tier::Avx512Vnni);
        check(&[(Tier::Avx2, 1.2), (Tier::Avx512Vnni, 1.0)], Tier::Avx512Vnni);
        check(&[(Tier::Avx2, 1.3), (Tier::Avx512Vnni, 1.0)], Tier::Avx2);
        let probed = probe();
        assert_eq!(probed.len() + 1, Tier::available().len(), "every tier but scalar");
        assert!(probed.iter().all(|(_, rate)| rate.is_finite() && *rate > 1e6), "{probed:?}");
    }

    #[test]
    fn reading_sees_every_half_of_every_word() {
        let pair = |low: f32, high: f32| u64::from(low.to_bits()) | u64::from(high.to_bits()) << 32;
        for tier in Tier::available() {
            let isa = tier.isa().unwrap();
            for len in [0, 1, READ_LANES - 1, READ_LANES, READ_LANES + 1, 3 * READ_LANES + 7] {
                let mut words = vec![pair(1.0, 1.0); len];
                let fold = |words: &[u64]| {
                    let mut folded = 0;
                    fold_words(isa, words, &mut folded);
                    folded
                };
                let before = fold(&words);
                for at in 0..len {
                    for greater in [pair(2.0, 1.0), pair(1.0, 2.0)] {
                        words[at] = greater;
                        assert_ne!(fold(&words), before, "{tier}: word {at} of {len}");
                    }
                    words[at] = pair(1.0, 1.0);
                }
                assert_eq!(read(&Pool::new(2, tier), &words), 8 * len as u64);
            }
        }
    }
}
