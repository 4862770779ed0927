//! Keys and values of what was read, in pages.
//!
//! **Question:** what does a sequence remember, what of it was read before, and is there room for one more? **In:** tokens to read
//! and positions to reserve. **Out:** pages that a forward pass reads and writes, the first of them already filled where the same
//! specialist read the same tokens before. **Absent:** running out midway: a sequence gets all its room before it starts.
//!
//! A page holds [`PAGE_POSITIONS`] positions of all layers that the sequence keeps, and of all heads, as [`KvFormat`] says:
//!
//! ```text
//! layer 0: head 0: keys (head_dim, 32), values (32, head_dim) · head 1: … | layer 1: …
//! ```
//!
//! Pages are counted references. A filled page is never written again, so sequences and the [`prefix`] tree share it; the page at
//! which a new text leaves a remembered one is copied. What a position holds depends on the tokens before it and on the
//! specialist alone, not on who computed it when: a hit gives the bits that reading would have given.

pub mod prefix;

use std::{ops::Range, sync::Arc};

pub use metier_kernels::attention::KvFormat;
use metier_kernels::attention::PageShape;

use self::prefix::{PrefixKey, PrefixTree};
use crate::tokenizer::TokenId;

/// Positions of a page.
pub const PAGE_POSITIONS: usize = 32;
/// Share of the limit that pages may occupy while neither a sequence nor the tree uses them: 1/4.
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
    /// How they are kept.
    pub format: KvFormat,
}

impl CacheShape {
    /// One head's part of a page.
    pub fn head(self) -> PageShape {
        PageShape { head_dim: self.head_dim, page_len: PAGE_POSITIONS, format: self.format }
    }

    fn layer_floats(self) -> usize {
        self.kv_heads * self.head().floats()
    }

    /// Bytes of a page of all layers.
    pub fn page_bytes(self) -> usize {
        self.layers * self.layer_floats() * size_of::<f32>()
    }

    /// Bytes that a sequence of so many positions reserves, where it keeps all layers.
    pub fn bytes_for(self, positions: usize) -> usize {
        positions.div_ceil(PAGE_POSITIONS).saturating_mul(self.page_bytes())
    }
}

/// The layers that a pruned specialist runs, of its base's: ascending, none twice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeptLayers(Arc<[usize]>);

impl KeptLayers {
    /// These layers, in any order; `None` where one stands twice or there is none.
    pub fn new(mut layers: Vec<usize>) -> Option<Self> {
        layers.sort_unstable();
        let distinct = layers.windows(2).all(|pair| pair[0] < pair[1]);
        (distinct && !layers.is_empty()).then(|| Self(layers.into()))
    }

    /// The layers.
    pub fn layers(&self) -> &[usize] {
        &self.0
    }

    /// Whether the base has them all.
    pub fn fit(&self, layers: usize) -> bool {
        self.0.iter().all(|layer| *layer < layers)
    }
}

/// Where each layer of the base lies in a page; `None` where the sequence skips it.
type Places = Arc<[Option<usize>]>;
/// Filled and shared, or of one sequence.
type Page = Arc<Box<[f32]>>;

fn bytes_of(page: &Page) -> usize {
    size_of_val(&***page)
}

/// What one sequence remembers.
#[derive(Debug)]
pub struct KvSequence {
    shape: CacheShape,
    places: Places,
    pages: Vec<Page>,
    len: usize,
}

impl KvSequence {
    /// Room for so many positions of all layers, counted by nobody.
    pub(crate) fn alone(shape: CacheShape, positions: usize) -> Self {
        let places: Places = (0..shape.layers).map(Some).collect();
        let floats = shape.layers * shape.layer_floats();
        let pages = (0..positions.div_ceil(PAGE_POSITIONS)).map(|_| fresh(floats)).collect();
        Self { shape, places, pages, len: 0 }
    }

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

    /// Whether the sequence runs this layer.
    pub(crate) fn keeps(&self, layer: usize) -> bool {
        self.places[layer].is_some()
    }

    fn offset(&self, layer: usize, head: usize) -> usize {
        let place = self.places[layer].expect("a layer that the sequence skips is never asked for");
        (place * self.shape.kv_heads + head) * self.shape.head().floats()
    }

    /// The pages that hold `positions`, cut to one layer: which of the positions each holds, and all heads of the layer.
    pub(crate) fn parts_to_write(
        &mut self,
        layer: usize,
        positions: Range<usize>,
    ) -> impl Iterator<Item = (Range<usize>, &mut [f32])> {
        let (offset, floats) = (self.offset(layer, 0), self.shape.layer_floats());
        let first = positions.start / PAGE_POSITIONS;
        let pages = &mut self.pages[first..positions.end.div_ceil(PAGE_POSITIONS)];
        pages.iter_mut().enumerate().map(move |(i, page)| {
            let from = (first + i) * PAGE_POSITIONS;
            let page =
                Arc::get_mut(page).expect("only filled pages are shared, and nothing is written behind their backs");
            let held = positions.start.max(from)..positions.end.min(from + PAGE_POSITIONS);
            (held, &mut page[offset..offset + floats])
        })
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

    /// Forgets all behind the first `len` positions; they can be written anew. Never called for pages that are shared.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// A sequence that has read the same, and goes on for itself in room that was reserved for it.
    pub(crate) fn branch(&self, room: BranchRoom) -> Self {
        let shared = self.len / PAGE_POSITIONS;
        let mut pages = self.pages[..shared].to_vec();
        pages.extend(room.0);
        if !self.len.is_multiple_of(PAGE_POSITIONS) {
            let own = Arc::get_mut(&mut pages[shared]).expect("it was taken for this branch alone");
            own.copy_from_slice(&self.pages[shared]);
        }
        Self { shape: self.shape, places: Arc::clone(&self.places), pages, len: self.len }
    }
}

/// Pages for what a branch of a sequence reads by itself.
#[derive(Debug)]
pub(crate) struct BranchRoom(Vec<Page>);

fn fresh(floats: usize) -> Page {
    Arc::new(vec![0.0; floats].into_boxed_slice())
}

/// What a cache holds and what it has saved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Bytes of pages in use, by sequences or by the tree.
    pub used_bytes: usize,
    /// Of them, bytes that the tree holds (some for running sequences too).
    pub remembered_bytes: usize,
    /// Sequences that asked for a remembered prefix.
    pub lookups: u64,
    /// Sequences that found one.
    pub hits: u64,
    /// Tokens that were not read again.
    pub saved_tokens: u64,
    /// Pages that made room for others.
    pub evicted_pages: u64,
}

/// All pages of one engine, up to a limit in bytes.
#[derive(Debug)]
pub struct KvCache {
    shape: CacheShape,
    limit_bytes: usize,
    used_bytes: usize,
    idle: Vec<Page>,
    tree: PrefixTree,
    stats: CacheStats,
}

impl KvCache {
    /// No pages yet, and never more bytes than the limit.
    pub fn new(shape: CacheShape, limit_bytes: usize) -> Self {
        let (tree, stats) = (PrefixTree::default(), CacheStats::default());
        Self { shape, limit_bytes, used_bytes: 0, idle: Vec::new(), tree, stats }
    }

    /// Bytes that a sequence reserves.
    pub fn bytes_for(&self, positions: usize, kept: Option<&KeptLayers>) -> usize {
        let layers = kept.map_or(self.shape.layers, |kept| kept.layers().len());
        CacheShape { layers, ..self.shape }.bytes_for(positions)
    }

    /// Counters.
    pub fn stats(&self) -> CacheStats {
        CacheStats { used_bytes: self.used_bytes, remembered_bytes: self.tree.bytes(), ..self.stats }
    }

    /// Tokens of a text's beginning that are remembered.
    pub fn remembered(&mut self, key: &PrefixKey, tokens: &[TokenId]) -> usize {
        let found = self.tree.find(key, tokens);
        found.pages.len() * PAGE_POSITIONS + found.partial.map_or(0, |(_, common)| common)
    }

    /// Room for so many positions of a sequence that starts with `prompt`, or `None` until others have given theirs back. What is
    /// remembered of the prompt under `key`, except its last token, counts as read already.
    pub fn reserve(
        &mut self,
        key: Option<&PrefixKey>,
        kept: Option<&KeptLayers>,
        prompt: &[TokenId],
        positions: usize,
    ) -> Option<KvSequence> {
        let layers = kept.map_or(self.shape.layers, |kept| kept.layers().len());
        let floats = layers * self.shape.layer_floats();
        let page_bytes = floats * size_of::<f32>();
        let n_pages = positions.div_ceil(PAGE_POSITIONS);
        let usable = &prompt[..prompt.len().saturating_sub(1)];
        let mut found = key.map(|key| self.tree.find(key, usable)).unwrap_or_default();
        let needed = (n_pages - found.pages.len()) * page_bytes;
        if !self.make_room(needed) {
            // The page that would be copied from is held as well: without it there may be room.
            found.partial = None;
            if !self.make_room(needed) {
                return None;
            }
        }
        let shared = found.pages.len();
        let mut pages = found.pages;
        for _ in shared..n_pages {
            pages.push(self.take(floats));
        }
        let mut len = shared * PAGE_POSITIONS;
        if let Some((page, common)) = found.partial {
            let own = Arc::get_mut(&mut pages[shared]).expect("it was taken for this sequence alone");
            own.copy_from_slice(&page);
            len += common;
        }
        if key.is_some() {
            self.stats.lookups += 1;
            self.stats.hits += u64::from(len > 0);
            self.stats.saved_tokens += len as u64;
        }
        let places: Places = match kept {
            None => (0..self.shape.layers).map(Some).collect(),
            Some(kept) => (0..self.shape.layers).map(|layer| kept.layers().binary_search(&layer).ok()).collect(),
        };
        Some(KvSequence { shape: self.shape, places, pages, len })
    }

    /// Room for branches of one sequence, which leave it behind `stem` positions and have up to `positions` each: as many as there
    /// is room for, up to `n`.
    pub(crate) fn reserve_branches(
        &mut self,
        kept: Option<&KeptLayers>,
        stem: usize,
        positions: usize,
        n: usize,
    ) -> Vec<BranchRoom> {
        let layers = kept.map_or(self.shape.layers, |kept| kept.layers().len());
        let floats = layers * self.shape.layer_floats();
        let pages = positions.div_ceil(PAGE_POSITIONS) - stem / PAGE_POSITIONS;
        let mut room = Vec::new();
        while room.len() < n && self.make_room(pages * floats * size_of::<f32>()) {
            room.push(BranchRoom((0..pages).map(|_| self.take(floats)).collect()));
        }
        room
    }

    /// Takes room back that no branch came to use.
    pub(crate) fn give_back_room(&mut self, room: BranchRoom) {
        self.release(room.0);
    }

    /// Remembers the filled pages of a sequence that goes on, `tokens` being what it has read. Where somebody else was faster, the
    /// sequence shares that one's pages and gives up its own.
    pub fn remember(&mut self, key: &PrefixKey, tokens: &[TokenId], sequence: &mut KvSequence) {
        let filled = sequence.len.min(tokens.len()) / PAGE_POSITIONS;
        let doubles = self.tree.insert(key, &tokens[..filled * PAGE_POSITIONS], &mut sequence.pages[..filled]);
        self.release(doubles);
    }

    /// Takes a sequence's pages back, and remembers those that hold `tokens` where there is a key.
    pub fn give_back(&mut self, key: Option<&PrefixKey>, tokens: &[TokenId], mut sequence: KvSequence) {
        if let Some(key) = key {
            let len = sequence.len.min(tokens.len());
            let doubles = self.tree.insert(key, &tokens[..len], &mut sequence.pages[..len.div_ceil(PAGE_POSITIONS)]);
            self.release(doubles);
        }
        self.release(sequence.pages);
    }

    /// Forgets what was remembered under some keys.
    pub fn forget(&mut self, which: impl Fn(&PrefixKey) -> bool) {
        let pages = self.tree.remove(which);
        self.release(pages);
    }

    /// Whether so many bytes are free, after forgetting what was used least recently. Forgets nothing where it would not help.
    fn make_room(&mut self, needed: usize) -> bool {
        if self.used_bytes + needed <= self.limit_bytes {
            return true;
        }
        if self.used_bytes + needed - self.tree.unused_bytes() > self.limit_bytes {
            return false;
        }
        while self.used_bytes + needed > self.limit_bytes {
            let Some(page) = self.tree.evict() else { return false };
            self.stats.evicted_pages += 1;
            self.release(vec![page]);
        }
        true
    }

    /// A page for one sequence. Used pages come back as they are: nothing behind a sequence's length is ever read into a result.
    fn take(&mut self, floats: usize) -> Page {
        self.used_bytes += floats * size_of::<f32>();
        match self.idle.pop() {
            Some(page) if page.len() == floats => page,
            // Pages of another size would keep memory that the limit has given to this one.
            _ => fresh(floats),
        }
    }

    /// Drops references; pages that nobody else holds are free.
    fn release(&mut self, pages: Vec<Page>) {
        for page in pages {
            if Arc::strong_count(&page) == 1 {
                let bytes = bytes_of(&page);
                self.used_bytes -= bytes;
                let idle: usize = self.idle.iter().map(bytes_of).sum();
                if idle + bytes <= self.limit_bytes / IDLE_SHARE {
                    self.idle.push(page);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::{prefix::Sharers, *};

    const SHAPE: CacheShape = CacheShape { layers: 2, kv_heads: 1, head_dim: 16, format: KvFormat::F32 };

    fn ids(from: u32, n: u32) -> Vec<TokenId> {
        (from..from + n).map(TokenId).collect()
    }

    fn key(tenant: u64) -> PrefixKey {
        PrefixKey { sharers: Sharers::Tenant(tenant), adapter: None, kept: None }
    }

    /// Reads what is missing, as a forward pass would: position p holds p.
    fn read(sequence: &mut KvSequence, to: usize) {
        for position in sequence.len()..to {
            for layer in (0..SHAPE.layers).filter(|layer| sequence.places[*layer].is_some()).collect::<Vec<_>>() {
                let (_, heads) = sequence.parts_to_write(layer, position..position + 1).next().unwrap();
                SHAPE.head().write(heads, position % PAGE_POSITIONS, &[position as f32; 16], &[position as f32; 16]);
            }
        }
        sequence.advance(to - sequence.len());
    }

    #[test]
    fn the_limit_holds_on_both_sides() {
        let mut cache = KvCache::new(SHAPE, 3 * SHAPE.page_bytes() + 1);
        let two = cache.reserve(None, None, &[], PAGE_POSITIONS + 1).unwrap();
        assert_eq!(two.capacity(), 2 * PAGE_POSITIONS);
        assert!(cache.reserve(None, None, &[], PAGE_POSITIONS + 1).is_none());
        let one = cache.reserve(None, None, &[], PAGE_POSITIONS).unwrap();
        assert!(cache.reserve(None, None, &[], 1).is_none());
        let half = KeptLayers::new(vec![1]).unwrap();
        assert_eq!(2 * cache.bytes_for(40, Some(&half)), cache.bytes_for(40, None));
        cache.give_back(None, &[], one);
        let halves = cache.reserve(None, Some(&half), &[], 2 * PAGE_POSITIONS).unwrap();
        assert!(!halves.keeps(0) && halves.keeps(1));
        cache.give_back(None, &[], halves);
        cache.give_back(None, &[], two);
        assert_eq!(cache.stats().used_bytes, 0);
        assert!(cache.reserve(None, None, &[], 3 * PAGE_POSITIONS).is_some());
    }

    #[test]
    fn a_prefix_is_read_once_within_its_scope() {
        let mut cache = KvCache::new(SHAPE, 20 * SHAPE.page_bytes());
        let prompt = ids(1, 75);
        let mut first = cache.reserve(Some(&key(1)), None, &prompt, 80).unwrap();
        read(&mut first, 75);
        cache.give_back(Some(&key(1)), &prompt, first);
        // The same text: everything but the last token. A page of it is copied, two are shared.
        let mut same = cache.reserve(Some(&key(1)), None, &prompt, 80).unwrap();
        assert_eq!(same.len(), 74);
        assert_eq!(same.pages.iter().map(Arc::strong_count).collect::<Vec<_>>(), [2, 2, 1]);
        for position in 0..74 {
            let page = same.head_pages(1, 0, 75)[position / 32];
            assert!((page[position % 32] - position as f32).abs() < 1e-6, "position {position}");
        }
        read(&mut same, 80);
        // Another text that leaves it inside the second page.
        let mut other = prompt[..40].to_vec();
        other.extend(ids(500, 20));
        assert_eq!(cache.reserve(Some(&key(1)), None, &other, 64).unwrap().len(), 40);
        assert_eq!(cache.reserve(Some(&key(2)), None, &prompt, 80).unwrap().len(), 0, "another tenant");
        let kept = PrefixKey { kept: KeptLayers::new(vec![0, 1]), ..key(1) };
        assert_eq!(cache.reserve(Some(&kept), None, &prompt, 80).unwrap().len(), 0, "another specialist");
        assert_eq!(cache.stats().hits, 2);
        cache.forget(|key| key.sharers == Sharers::Tenant(1));
        assert_eq!(cache.reserve(Some(&key(1)), None, &prompt, 80).unwrap().len(), 0);
        assert_eq!(cache.stats().remembered_bytes, 0);
    }

    #[test]
    fn what_was_used_least_recently_makes_room() {
        let mut cache = KvCache::new(SHAPE, 4 * SHAPE.page_bytes());
        for from in [1000, 2000] {
            let mut sequence = cache.reserve(Some(&key(1)), None, &ids(from, 64), 64).unwrap();
            read(&mut sequence, 64);
            cache.give_back(Some(&key(1)), &ids(from, 64), sequence);
        }
        // Touch the older one, then ask for a page.
        let touched = cache.reserve(Some(&key(1)), None, &ids(1000, 33), 33);
        assert!(touched.as_ref().is_some_and(|t| t.len() == 32));
        cache.give_back(Some(&key(1)), &ids(1000, 32), touched.unwrap());
        let held = cache.reserve(None, None, &[], 32).unwrap();
        assert!(cache.stats().evicted_pages >= 1);
        assert!(cache.reserve(Some(&key(1)), None, &ids(1000, 33), 33).is_some_and(|s| s.len() == 32), "used lately");
        drop(held);
    }

    #[test]
    fn two_who_read_the_same_share_in_the_end() {
        let mut cache = KvCache::new(SHAPE, 20 * SHAPE.page_bytes());
        let prompt = ids(1, 64);
        let [mut a, mut b] = [0, 1].map(|_| cache.reserve(Some(&key(1)), None, &prompt, 96).unwrap());
        read(&mut a, 64);
        read(&mut b, 64);
        cache.remember(&key(1), &prompt, &mut a);
        cache.remember(&key(1), &prompt, &mut b);
        assert_eq!(cache.stats().used_bytes, 4 * SHAPE.page_bytes(), "two shared pages and one each");
        read(&mut b, 70);
        cache.give_back(Some(&key(1)), &prompt, a);
        let mut tokens = prompt.clone();
        tokens.extend(ids(900, 6));
        cache.give_back(Some(&key(1)), &tokens, b);
        assert_eq!(cache.stats().used_bytes, 3 * SHAPE.page_bytes());
        assert_eq!(cache.stats().remembered_bytes, 3 * SHAPE.page_bytes());
    }
}
