//! Keys and values of what was read, in pages.
//!
//! **Question:** what does a sequence remember, and is there room for one more? **In:** positions to reserve. **Out:** pages that
//! a forward pass reads and writes. **Absent:** shared prefixes (a later issue), eviction: a sequence gets all its room before it
//! starts, so it can never run out of it midway.
//!
//! A page holds [`PAGE_POSITIONS`] positions of all layers and heads in f32:
//!
//! ```text
//! layer 0: head 0: keys (head_dim, 32), values (32, head_dim) · head 1: … | layer 1: …
//! ```

use metier_kernels::attention::PageShape;

/// Positions of a page.
pub const PAGE_POSITIONS: usize = 32;
/// Share of the limit that finished sequences' pages may occupy while nobody uses them: 1/4.
const IDLE_SHARE: usize = 4;

/// Shape of a model's keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheShape {
    /// Layers.
    pub layers: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
}

impl CacheShape {
    /// One head's part of a page.
    pub fn head(self) -> PageShape {
        PageShape { head_dim: self.head_dim, page_len: PAGE_POSITIONS }
    }

    fn page_floats(self) -> usize {
        self.layers * self.kv_heads * self.head().floats()
    }

    /// Bytes of a page.
    pub fn page_bytes(self) -> usize {
        self.page_floats() * size_of::<f32>()
    }

    /// Bytes that a sequence of so many positions reserves.
    pub fn bytes_for(self, positions: usize) -> usize {
        positions.div_ceil(PAGE_POSITIONS).saturating_mul(self.page_bytes())
    }
}

type Page = Box<[f32]>;

/// All pages of one engine, up to a limit in bytes.
#[derive(Debug)]
pub struct PageStore {
    shape: CacheShape,
    limit_pages: usize,
    used: usize,
    idle: Vec<Page>,
}

impl PageStore {
    /// No pages yet, and never more bytes than the limit.
    pub fn new(shape: CacheShape, limit_bytes: usize) -> Self {
        Self { shape, limit_pages: limit_bytes / shape.page_bytes(), used: 0, idle: Vec::new() }
    }

    /// Room for so many positions, or `None` until others have given theirs back.
    pub fn reserve(&mut self, positions: usize) -> Option<KvSequence> {
        let n = positions.div_ceil(PAGE_POSITIONS);
        if n > self.limit_pages - self.used {
            return None;
        }
        self.used += n;
        // Used pages come back as they are: nothing behind a sequence's length is ever read into a result.
        let pages = (0..n)
            .map(|_| self.idle.pop().unwrap_or_else(|| vec![0.0; self.shape.page_floats()].into_boxed_slice()))
            .collect();
        Some(KvSequence { shape: self.shape, pages, len: 0 })
    }

    /// Takes a sequence's pages back.
    pub fn give_back(&mut self, sequence: KvSequence) {
        self.used -= sequence.pages.len();
        let room = (self.limit_pages / IDLE_SHARE).saturating_sub(self.idle.len());
        self.idle.extend(sequence.pages.into_iter().take(room));
    }
}

/// What one sequence remembers.
#[derive(Debug)]
pub struct KvSequence {
    shape: CacheShape,
    pages: Vec<Page>,
    len: usize,
}

impl KvSequence {
    /// Positions read so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Nothing read yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Positions that it has room for.
    pub fn capacity(&self) -> usize {
        self.pages.len() * PAGE_POSITIONS
    }

    fn offset(&self, layer: usize, head: usize) -> usize {
        (layer * self.shape.kv_heads + head) * self.shape.head().floats()
    }

    /// Writes key and value of one position of one head.
    pub(crate) fn write(&mut self, layer: usize, head: usize, position: usize, key: &[f32], value: &[f32]) {
        let (offset, shape) = (self.offset(layer, head), self.shape.head());
        let page = &mut self.pages[position / PAGE_POSITIONS][offset..offset + shape.floats()];
        shape.write(page, position % PAGE_POSITIONS, key, value);
    }

    /// The pages of one head that hold the first `visible` positions.
    pub(crate) fn head_pages(&self, layer: usize, head: usize, visible: usize) -> Vec<&[f32]> {
        let (offset, floats) = (self.offset(layer, head), self.shape.head().floats());
        self.pages[..visible.div_ceil(PAGE_POSITIONS)].iter().map(|page| &page[offset..offset + floats]).collect()
    }

    /// Counts positions that were written in all layers.
    pub(crate) fn advance(&mut self, positions: usize) {
        self.len += positions;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_limit_holds_on_both_sides() {
        let shape = CacheShape { layers: 2, kv_heads: 1, head_dim: 16 };
        let mut store = PageStore::new(shape, 3 * shape.page_bytes() + 1);
        let two = store.reserve(PAGE_POSITIONS + 1).unwrap();
        assert_eq!(two.capacity(), 2 * PAGE_POSITIONS);
        assert!(store.reserve(PAGE_POSITIONS + 1).is_none());
        let one = store.reserve(PAGE_POSITIONS).unwrap();
        assert!(store.reserve(1).is_none());
        store.give_back(one);
        store.give_back(two);
        assert!(store.reserve(3 * PAGE_POSITIONS).is_some());
    }
}
