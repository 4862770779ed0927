//! A pool of threads with CPUs of their own, shared by reference; concurrent callers take turns.
//!
//! The guest kernel of a virtual machine may stack two busy threads on one CPU for seconds, so each has CPUs of its own. The
//! calling thread is not ours to pin: it hands its closure to the pool's first thread, the *leader*, and sleeps
//! ([`Pool::enter`]). Inside, [`Pool::run`] costs no system call: the *followers* spin while a section is open.
//!
//! ```text
//! caller    enter ──sleeps──────────────────────────────────────────▶ returns
//! leader          ├ run: opens gate, claims parts … closes gate, waits for joined = 0 ┤ ├ run … ┤
//! follower          sees gate open, joins (+1), claims parts, leaves (−1)   spins …
//! ```
//!
//! A follower that sleeps or was preempted never joins and holds nobody up: the leader then does all parts itself.
//!
//! Each thread starts with its own share of the parts, the same from job to job, and then takes from the others' what is left:
//! rows that it wrote in one job lie in its cache when it reads them in the next.

use std::{
    any::Any,
    cell::Cell,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
};

use crate::{
    memory::Shared,
    tier::{Isa, Tier},
};

/// Checks of the gate before a follower starts to yield its CPU.
const SPINS: u32 = 4_000;
/// Yields before a follower sleeps while no section is open.
const YIELDS_IDLE: u32 = 50;
/// Yields before a follower sleeps although a section is open (its serial part is long).
const YIELDS_IN_SECTION: u32 = 5_000;

/// The gate: joined followers in the low half, an open bit, and the number of the job above.
const OPEN: u64 = 1 << 31;
const JOINED: u64 = OPEN - 1;
const JOB: u64 = 1 << 32;

type Panic = Box<dyn Any + Send>;
type Part = *const (dyn Fn(usize) + Sync);

thread_local! {
    /// Which pool this thread leads or follows: the address of its shared state.
    static MEMBER_OF: Cell<usize> = const { Cell::new(0) };
    /// This thread's place in its pool.
    static THREAD_IDX: Cell<usize> = const { Cell::new(0) };
    /// Whether this thread is inside a part. The gate cannot tell: it closes while followers still work on their last parts.
    static IN_PART: Cell<bool> = const { Cell::new(false) };
}

/// Threads for arithmetic, and the instruction tier that they use.
pub struct Pool {
    shared: Arc<SharedState>,
    threads: Vec<JoinHandle<()>>,
    isa: Isa,
    turn: Mutex<()>,
}

struct SharedState {
    gate: AtomicU64,
    shares: Box<[Share]>,
    job: Mutex<(Option<JobPtr>, usize)>,
    panic: Mutex<Option<Panic>>,
    in_section: AtomicBool,
    stop: AtomicBool,
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
    section: Mutex<Section>,
    section_changed: Condvar,
}

/// The next part of one thread's share. On a line of its own: neighbours would take it away from each other.
#[derive(Default)]
#[repr(align(128))]
struct Share(AtomicUsize);

/// Parts of thread `idx`.
fn share_of(idx: usize, threads: usize, parts: usize) -> Range<usize> {
    idx * parts / threads..(idx + 1) * parts / threads
}

#[derive(Clone, Copy)]
struct JobPtr(Part);
// SAFETY: the pointee is `Sync`, and the leader keeps it alive until every joined follower has left.
unsafe impl Send for JobPtr {}

#[derive(Clone, Copy)]
struct SectionPtr(*mut (dyn FnMut() + Send));
// SAFETY: the pointee is `Send`, and the caller keeps it alive until the leader says it is done.
unsafe impl Send for SectionPtr {}

#[derive(Default)]
struct Section {
    todo: Option<SectionPtr>,
    done: bool,
    panic: Option<Panic>,
}

/// A lock whose holder panicked still guards consistent state here: every update is one assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// Starts `threads` threads (at least one), each with CPUs of its own of those that this process may use, where there are enough of them
    /// (Linux; elsewhere they float): as many threads as CPUs are pinned, one thread alone goes wherever there is room.
    ///
    /// # Panics
    ///
    /// Where this CPU lacks `tier` ([`Tier::available`] tells), or a thread cannot be started.
    pub fn new(threads: usize, tier: Tier) -> Self {
        let isa = tier.isa().unwrap_or_else(|| panic!("this CPU has no {tier}: ask Tier::available first"));
        let threads = threads.max(1);
        let shared = Arc::new(SharedState {
            gate: AtomicU64::new(0),
            shares: (0..threads).map(|_| Share::default()).collect(),
            job: Mutex::new((None, 0)),
            panic: Mutex::new(None),
            in_section: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
            section: Mutex::new(Section::default()),
            section_changed: Condvar::new(),
        });
        let cpus = allowed_cpus();
        let handles = (0..threads)
            .map(|idx| {
                let shared = Arc::clone(&shared);
                let own = own_cpus(&cpus, threads, idx);
                thread::Builder::new()
                    .name(format!("metier-{idx}"))
                    .spawn(move || {
                        keep_to(&own);
                        MEMBER_OF.set(Arc::as_ptr(&shared) as usize);
                        THREAD_IDX.set(idx);
                        if idx == 0 { lead(&shared) } else { follow(&shared, idx) }
                    })
                    .expect("the system starts a handful of threads")
            })
            .collect();
        Self { shared, threads: handles, isa, turn: Mutex::new(()) }
    }

    /// Threads of the pool.
    pub fn threads(&self) -> usize {
        self.threads.len()
    }

    /// Which of the pool's threads this is, below [`threads`](Self::threads); 0 for every other thread.
    pub(crate) fn thread_idx(&self) -> usize {
        if MEMBER_OF.get() == Arc::as_ptr(&self.shared) as usize { THREAD_IDX.get() } else { 0 }
    }

    /// The instruction tier.
    pub fn tier(&self) -> Tier {
        self.isa.tier()
    }

    /// The tier, proved.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Runs `section` on the pool's first thread while the caller sleeps; other callers wait for their turn. Worth it around
    /// many calls of [`run`](Self::run): they then hand work over without a system call.
    ///
    /// A panic inside comes out of this call; the pool stays usable.
    pub fn enter<R: Send>(&self, section: impl FnOnce() -> R + Send) -> R {
        if MEMBER_OF.get() == Arc::as_ptr(&self.shared) as usize {
            return section();
        }
        let _turn = lock(&self.turn);
        let mut section = Some(section);
        let mut result = None;
        let mut call = || {
            let section = section.take().expect("the leader calls a section once");
            result = Some(section());
        };
        let call: &mut (dyn FnMut() + Send) = &mut call;
        // SAFETY: only the lifetime changes. This function does not return (nor unwind) before the leader has set `done`,
        // after which it never touches the closure again.
        let call: *mut (dyn FnMut() + Send + 'static) = unsafe { std::mem::transmute(call) };
        let mut state = lock(&self.shared.section);
        state.todo = Some(SectionPtr(call));
        state.done = false;
        self.shared.section_changed.notify_all();
        while !state.done {
            state = self.shared.section_changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let panic = state.panic.take();
        drop(state);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
        result.expect("a section that did not panic has a result")
    }

    /// Calls `part(i)` for every `i < parts`, in any order, on any of the threads, and returns when all are done.
    ///
    /// A part that calls the pool again runs those parts alone, on its own thread, without a word to the others. A panicking
    /// part lets the others finish and comes out of this call.
    pub fn run(&self, parts: usize, part: &(dyn Fn(usize) + Sync)) {
        if parts == 0 {
            return;
        }
        if MEMBER_OF.get() != Arc::as_ptr(&self.shared) as usize {
            return self.enter(|| self.run(parts, part));
        }
        let shared = &*self.shared;
        if parts == 1 || self.threads.len() == 1 || IN_PART.get() {
            return (0..parts).for_each(part);
        }
        // SAFETY: only the lifetime changes. The gate is closed and `joined` is zero before this function returns, so no
        // follower holds the pointer any more.
        let erased: Part =
            unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(part) };
        *lock(&shared.job) = (Some(JobPtr(erased)), parts);
        for (idx, share) in shared.shares.iter().enumerate() {
            share.0.store(share_of(idx, shared.shares.len(), parts).start, Ordering::Relaxed);
        }
        let number = (shared.gate.load(Ordering::Relaxed) & !(JOB - 1)).wrapping_add(JOB);
        shared.gate.store(number | OPEN, Ordering::SeqCst);
        if shared.sleepers.load(Ordering::SeqCst) > 0 {
            drop(lock(&shared.sleep));
            shared.wake.notify_all();
        }
        claim_parts(shared, 0, part, parts);
        shared.gate.fetch_and(!OPEN, Ordering::AcqRel);
        let mut checks = 0u32;
        while shared.gate.load(Ordering::Acquire) & JOINED != 0 {
            checks += 1;
            if checks < SPINS { std::hint::spin_loop() } else { thread::yield_now() }
        }
        if let Some(panic) = lock(&shared.panic).take() {
            resume_unwind(panic);
        }
    }

    /// Splits `0..rows` into ranges of at most `grain` and runs them as parts.
    pub fn run_ranges(&self, rows: usize, grain: usize, part: &(dyn Fn(Range<usize>) + Sync)) {
        let grain = grain.max(1);
        self.run(rows.div_ceil(grain), &|i| part(i * grain..rows.min((i + 1) * grain)));
    }

    /// Runs `part(i, piece)` for pieces of `lens[i]` elements, cut from `data` one after the other.
    ///
    /// # Panics
    ///
    /// Where the lengths do not add up to `data`'s.
    pub fn run_pieces<T: Send>(&self, data: &mut [T], lens: &[usize], part: &(dyn Fn(usize, &mut [T]) + Sync)) {
        let mut starts = Vec::with_capacity(lens.len());
        let mut end = 0usize;
        for len in lens {
            starts.push(end);
            end = end.checked_add(*len).expect("pieces of a slice");
        }
        assert_eq!(end, data.len(), "pieces cover the slice");
        let data = Shared::new(data);
        // SAFETY: pieces follow each other without overlap, and each part index runs once.
        self.run(lens.len(), &|i| part(i, unsafe { data.part(starts[i], lens[i]) }));
    }

    /// Runs `part(first_row, rows)` for pieces of at most `grain` rows of `width` elements.
    ///
    /// # Panics
    ///
    /// Where `data` is no whole number of rows.
    pub fn run_rows<T: Send>(
        &self,
        data: &mut [T],
        width: usize,
        grain: usize,
        part: &(dyn Fn(usize, &mut [T]) + Sync),
    ) {
        assert!(width > 0 && data.len().is_multiple_of(width), "whole rows");
        let rows = data.len() / width;
        let data = Shared::new(data);
        self.run_ranges(rows, grain, &|range| {
            // SAFETY: ranges of rows do not overlap.
            part(range.start, unsafe { data.part(range.start * width, range.len() * width) });
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        drop(lock(&self.shared.section));
        self.shared.section_changed.notify_all();
        drop(lock(&self.shared.sleep));
        self.shared.wake.notify_all();
        for handle in self.threads.drain(..) {
            if handle.thread().id() != thread::current().id() {
                let _ = handle.join();
            }
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({} threads, {})", self.threads.len(), self.tier())
    }
}

/// Takes parts until none is left, those of share `own` first. A panic is kept for the leader, and the remaining parts still run.
fn claim_parts(shared: &SharedState, own: usize, part: &(dyn Fn(usize) + Sync), parts: usize) {
    IN_PART.set(true);
    let threads = shared.shares.len();
    for idx in (own..threads).chain(0..own) {
        let end = share_of(idx, threads, parts).end;
        loop {
            let i = shared.shares[idx].0.fetch_add(1, Ordering::Relaxed);
            if i >= end {
                break;
            }
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| part(i))) {
                lock(&shared.panic).get_or_insert(panic);
            }
        }
    }
    IN_PART.set(false);
}

/// The leader: runs sections, one at a time.
fn lead(shared: &SharedState) {
    let mut state = lock(&shared.section);
    loop {
        if let Some(SectionPtr(call)) = state.todo.take() {
            drop(state);
            shared.in_section.store(true, Ordering::Relaxed);
            // SAFETY: the caller of `enter` keeps the closure alive, and nobody else touches it, until `done` is set below.
            let outcome = catch_unwind(AssertUnwindSafe(|| unsafe { (*call)() }));
            shared.in_section.store(false, Ordering::Relaxed);
            state = lock(&shared.section);
            state.panic = outcome.err();
            state.done = true;
            shared.section_changed.notify_all();
        } else if shared.stop.load(Ordering::SeqCst) {
            return;
        } else {
            state = shared.section_changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// A follower: joins jobs whose gate it finds open; spins, yields, then sleeps where there are none.
fn follow(shared: &SharedState, idx: usize) {
    let mut last_job = 0;
    let mut idle = 0u32;
    loop {
        let gate = shared.gate.load(Ordering::Acquire);
        let job = gate & !(JOB - 1);
        if gate & OPEN != 0 && job != last_job {
            if shared.gate.compare_exchange(gate, gate + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                last_job = job;
                idle = 0;
                let (task, parts) = *lock(&shared.job);
                if let Some(JobPtr(part)) = task {
                    // SAFETY: this thread has joined, so the leader keeps the closure alive until it leaves.
                    claim_parts(shared, idx, unsafe { &*part }, parts);
                }
                shared.gate.fetch_sub(1, Ordering::Release);
            }
            continue;
        }
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        idle += 1;
        let yields = if shared.in_section.load(Ordering::Relaxed) { YIELDS_IN_SECTION } else { YIELDS_IDLE };
        if idle < SPINS {
            std::hint::spin_loop();
        } else if idle < SPINS + yields {
            thread::yield_now();
        } else {
            let guard = lock(&shared.sleep);
            shared.sleepers.fetch_add(1, Ordering::SeqCst);
            let now = shared.gate.load(Ordering::SeqCst);
            let missed = now & OPEN != 0 && now & !(JOB - 1) != last_job;
            if !missed && !shared.stop.load(Ordering::SeqCst) {
                drop(shared.wake.wait(guard).unwrap_or_else(PoisonError::into_inner));
            }
            shared.sleepers.fetch_sub(1, Ordering::SeqCst);
            idle = 0;
        }
    }
}

#[cfg(target_os = "linux")]
fn allowed_cpus() -> Vec<usize> {
    // SAFETY: a zeroed `cpu_set_t` is a valid empty set, and its size is what is passed.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) != 0 {
            return Vec::new();
        }
        (0..libc::CPU_SETSIZE as usize).filter(|&cpu| libc::CPU_ISSET(cpu, &set)).collect()
    }
}

/// The CPUs of one thread of a pool: disjoint from those of the others, and all of them are somebody's. A pool that is smaller than the machine
/// must leave its threads a choice: two processes of one thread each would else meet on the first CPU. Empty: no choice is better than the system's.
fn own_cpus(allowed: &[usize], threads: usize, idx: usize) -> Vec<usize> {
    if threads > allowed.len() { Vec::new() } else { allowed.iter().copied().skip(idx).step_by(threads).collect() }
}

#[cfg(target_os = "linux")]
fn keep_to(cpus: &[usize]) {
    if cpus.is_empty() {
        return;
    }
    // SAFETY: as in `allowed_cpus`; `cpus` came from there. Failure leaves the thread where the system puts it, which is only slower.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        for &cpu in cpus {
            libc::CPU_SET(cpu, &mut set);
        }
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set);
    }
}

#[cfg(not(target_os = "linux"))]
fn allowed_cpus() -> Vec<usize> {
    Vec::new()
}

#[cfg(not(target_os = "linux"))]
fn keep_to(_cpus: &[usize]) {}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn every_part_runs_once_whoever_calls() {
        for threads in [1, 2, 3] {
            let pool = Pool::new(threads, Tier::Scalar);
            let counts: Vec<AtomicUsize> = (0..500).map(|_| AtomicUsize::new(0)).collect();
            thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        for parts in [0, 1, 2, 7, 500] {
                            pool.run(parts, &|i| {
                                counts[i].fetch_add(1, Ordering::Relaxed);
                            });
                        }
                    });
                }
            });
            assert_eq!(counts[0].load(Ordering::Relaxed), 4 * 4);
            assert_eq!(counts[6].load(Ordering::Relaxed), 4 * 2);
            assert_eq!(counts[499].load(Ordering::Relaxed), 4);
        }
    }

    /// Two builds of one thread each ran on the first CPU of two, at half of their speed.
    #[test]
    fn threads_have_cpus_of_their_own_and_a_small_pool_has_a_choice() {
        let allowed = [2, 3, 5, 8];
        assert_eq!(own_cpus(&allowed, 1, 0), allowed);
        assert_eq!((own_cpus(&allowed, 2, 0), own_cpus(&allowed, 2, 1)), (vec![2, 5], vec![3, 8]));
        assert_eq!((own_cpus(&allowed, 3, 0), own_cpus(&allowed, 3, 2)), (vec![2, 8], vec![5]));
        assert_eq!((0..4).map(|idx| own_cpus(&allowed, 4, idx)).collect::<Vec<_>>(), [[2], [3], [5], [8]]);
        assert!(own_cpus(&allowed, 5, 0).is_empty() && own_cpus(&[], 1, 0).is_empty());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn one_thread_may_run_wherever_the_process_may() {
        let (all, inside) = (allowed_cpus(), Pool::new(1, Tier::Scalar).enter(allowed_cpus));
        assert_eq!(inside, all);
        if all.len() > 1 {
            let first = Pool::new(all.len(), Tier::Scalar).enter(allowed_cpus);
            assert_eq!(first, all[..1]);
        }
    }

    #[test]
    fn a_section_returns_a_value_and_nests() {
        let pool = Pool::new(2, Tier::Scalar);
        let text = String::from("borrowed");
        let len = pool.enter(|| {
            let sum = AtomicUsize::new(0);
            for _ in 0..1000 {
                pool.run(3, &|i| {
                    sum.fetch_add(i, Ordering::Relaxed);
                });
            }
            pool.enter(|| text.len() + sum.load(Ordering::Relaxed))
        });
        assert_eq!(len, 8 + 3000);
    }

    /// A follower's part that called the pool after the gate had closed became a second leader: the first returned while the
    /// follower still worked.
    #[test]
    fn parts_that_call_the_pool_run_alone() {
        let pool = Pool::new(2, Tier::Scalar);
        for round in 0..200usize {
            let counts: Vec<AtomicUsize> = (0..3 * 40).map(|_| AtomicUsize::new(0)).collect();
            pool.run(3, &|outer| {
                // Parts of different length, so that the gate is closed while the longest still runs.
                for _ in 0..(outer + round) % 3 * 50 {
                    std::hint::spin_loop();
                }
                let thread = thread::current().id();
                pool.run(40, &|inner| {
                    assert_eq!(thread::current().id(), thread);
                    counts[outer * 40 + inner].fetch_add(1, Ordering::Relaxed);
                });
            });
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn a_panicking_part_comes_out_and_the_pool_lives_on() {
        let pool = Pool::new(2, Tier::Scalar);
        let done = AtomicUsize::new(0);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            pool.run(10, &|i| {
                assert!(i != 3, "part three");
                done.fetch_add(1, Ordering::Relaxed);
            });
        }));
        assert!(outcome.is_err());
        assert_eq!(done.load(Ordering::Relaxed), 9);
        pool.run(10, &|_| {
            done.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(done.load(Ordering::Relaxed), 19);
    }

    #[test]
    fn pieces_and_rows_are_disjoint_and_complete() {
        let pool = Pool::new(2, Tier::Scalar);
        let mut data = vec![0usize; 60];
        pool.run_pieces(&mut data, &[10, 0, 30, 20], &|i, piece| piece.fill(i + 1));
        assert!(data[..10].iter().all(|&x| x == 1) && data[10..40].iter().all(|&x| x == 3));
        pool.run_rows(&mut data, 6, 3, &|first, rows| {
            for (i, row) in rows.chunks_mut(6).enumerate() {
                row.fill(first + i);
            }
        });
        assert!(data.iter().enumerate().all(|(i, &x)| x == i / 6));
    }

    #[test]
    fn ranges_cover_all_rows() {
        let pool = Pool::new(2, Tier::Scalar);
        let sum = AtomicUsize::new(0);
        pool.run_ranges(101, 10, &|rows| {
            sum.fetch_add(rows.sum::<usize>(), Ordering::Relaxed);
        });
        assert_eq!(sum.load(Ordering::Relaxed), 5050);
    }
}
