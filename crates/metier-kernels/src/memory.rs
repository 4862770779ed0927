//! Cache-line aligned buffers, and the pointer that lets threads write disjoint parts of one slice.

use std::{ops::Range, sync::Arc};

use crate::mapped::Mapped;

/// One cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Bytes that start on a cache line; their length is rounded up to whole lines, the rest is zero.
pub(crate) struct AlignedBytes {
    lines: Vec<Line>,
    len: usize,
}

impl AlignedBytes {
    pub(crate) fn zeroed(len: usize) -> Self {
        Self { lines: vec![Line([0; 64]); len.div_ceil(64)], len }
    }
}

impl std::ops::Deref for AlignedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the lines are one allocation of at least `len` initialised bytes.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl std::ops::DerefMut for AlignedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` makes the access unique.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

/// f32 that start on a cache line.
pub(crate) struct AlignedFloats(AlignedBytes);

impl AlignedFloats {
    pub(crate) fn zeroed(len: usize) -> Self {
        Self(AlignedBytes::zeroed(len * 4))
    }
}

impl std::ops::Deref for AlignedFloats {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: 64-byte aligned, `len` bytes are whole f32, and every bit pattern is an f32.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len / 4) }
    }
}

impl std::ops::DerefMut for AlignedFloats {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as in `deref`; `&mut self` makes the access unique.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len / 4) }
    }
}

/// f16, as their bits, that start on a cache line.
pub(crate) struct AlignedHalves(AlignedBytes);

impl AlignedHalves {
    pub(crate) fn zeroed(len: usize) -> Self {
        Self(AlignedBytes::zeroed(len * 2))
    }
}

impl std::ops::Deref for AlignedHalves {
    type Target = [u16];

    fn deref(&self) -> &[u16] {
        // SAFETY: 64-byte aligned, `len` bytes are whole u16, and every bit pattern is a u16.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len / 2) }
    }
}

impl std::ops::DerefMut for AlignedHalves {
    fn deref_mut(&mut self) -> &mut [u16] {
        // SAFETY: as in `deref`; `&mut self` makes the access unique.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len / 2) }
    }
}

/// Bytes that were made here, or that lie in a file.
pub(crate) enum Bytes {
    Made(AlignedBytes),
    Mapped(Extent),
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Made(bytes) => bytes,
            Self::Mapped(extent) => extent.bytes(),
        }
    }
}

/// f16, as their bits, that were made here, or that lie in a file.
pub(crate) enum Halves {
    Made(Vec<u16>),
    Mapped(Extent),
}

impl std::ops::Deref for Halves {
    type Target = [u16];

    fn deref(&self) -> &[u16] {
        match self {
            Self::Made(halves) => halves,
            Self::Mapped(extent) => {
                let bytes = extent.bytes();
                // SAFETY: an extent starts at an even address, every bit pattern is a u16, and the length is rounded down.
                unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / 2) }
            }
        }
    }
}

/// The bytes of halves, in this machine's order.
pub(crate) fn bytes_of(halves: &[u16]) -> &[u8] {
    // SAFETY: a u16 has two initialised bytes, and a byte no alignment.
    unsafe { std::slice::from_raw_parts(halves.as_ptr().cast(), size_of_val(halves)) }
}

/// A part of a mapped file that starts on half a cache line.
pub(crate) struct Extent {
    file: Arc<Mapped>,
    range: Range<usize>,
}

impl Extent {
    /// `None` where the file ends before, or the part starts elsewhere.
    pub(crate) fn new(file: &Arc<Mapped>, at: usize, len: usize) -> Option<Self> {
        let range = at..at.checked_add(len)?;
        let bytes = file.get(range.clone())?;
        bytes.as_ptr().addr().is_multiple_of(32).then(|| Self { file: Arc::clone(file), range })
    }

    fn bytes(&self) -> &[u8] {
        &self.file[self.range.clone()]
    }
}

/// A slice that several threads write, each its own part.
#[derive(Clone, Copy)]
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    _slice: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: the pointer is only used through `part` and `write_lanes`, whose callers promise disjointness.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), _slice: std::marker::PhantomData }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements `from..from + len`.
    ///
    /// # Safety
    ///
    /// No two live parts may overlap.
    #[allow(clippy::mut_from_ref, reason = "that is the point; the caller promises disjoint parts")]
    pub(crate) unsafe fn part(&self, from: usize, len: usize) -> &'a mut [T] {
        assert!(from <= self.len && len <= self.len - from, "part lies inside the slice");
        // SAFETY: inside the slice by the assertion; the caller promises that parts do not overlap.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(from), len) }
    }
}
