//! What was read before: a radix tree over tokens whose edges are pages.
//!
//! ```text
//! key (sharers, adapter, kept layers) ─▶ 32 tokens ─▶ 32 tokens ─▶ 7 tokens     a page that is not full has no children
//!                                                 └▶ 32 tokens ─▶ …
//! ```
//!
//! Siblings lie in the order of their tokens, so that the one with the longest common beginning is a neighbour of the text that is
//! looked up. Only leaves are forgotten, the one that was used least recently first; looking for it walks all nodes, which are a few
//! hundred (a page of SmolLM2-135M has 1.5 MB).

use std::{collections::BTreeMap, ops::Bound, sync::Arc};

use super::{KeptLayers, PAGE_POSITIONS, Page, bytes_of};
use crate::tokenizer::TokenId;

/// Whose texts may share pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Sharers {
    /// A tenant, or several that may see each other's traffic.
    Tenant(u64),
    /// Sequences that belong together; their pages are forgotten with the last of them.
    Group(u64),
}

/// Who may share: the same specialist (adapter and kept layers) of the same sharers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PrefixKey {
    /// A tenant or a group.
    pub sharers: Sharers,
    /// The adapter: an id that is never used twice; `None` is the base itself.
    pub adapter: Option<u64>,
    /// The layers; `None` is all.
    pub kept: Option<KeptLayers>,
}

type Children = BTreeMap<Box<[TokenId]>, usize>;

#[derive(Debug)]
struct Node {
    page: Page,
    children: Children,
    /// The tree's clock when it was last found or put in.
    used: u64,
    /// Where it hangs: the key's root, or another node.
    parent: Option<usize>,
    key: PrefixKey,
    tokens: Box<[TokenId]>,
}

/// Remembered pages.
#[derive(Debug, Default)]
pub(super) struct PrefixTree {
    roots: BTreeMap<PrefixKey, Children>,
    nodes: Vec<Option<Node>>,
    free: Vec<usize>,
    clock: u64,
    bytes: usize,
}

/// The remembered beginning of a text.
#[derive(Default)]
pub(super) struct Found {
    /// Whole pages.
    pub(super) pages: Vec<Page>,
    /// A page that goes on like the text for so many positions.
    pub(super) partial: Option<(Page, usize)>,
}

fn common(a: &[TokenId], b: &[TokenId]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl PrefixTree {
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of pages that no sequence holds.
    pub(super) fn unused_bytes(&self) -> usize {
        self.nodes
            .iter()
            .flatten()
            .filter(|node| Arc::strong_count(&node.page) == 1)
            .map(|node| bytes_of(&node.page))
            .sum()
    }

    fn node(&mut self, at: usize) -> &mut Node {
        self.nodes[at].as_mut().expect("children and parents name nodes that are there")
    }

    fn children(&mut self, key: &PrefixKey, parent: Option<usize>) -> Option<&mut Children> {
        match parent {
            None => self.roots.get_mut(key),
            Some(at) => Some(&mut self.node(at).children),
        }
    }

    /// The longest remembered beginning of a text.
    pub(super) fn find(&mut self, key: &PrefixKey, tokens: &[TokenId]) -> Found {
        self.clock += 1;
        let mut found = Found::default();
        let mut parent = None;
        let mut rest = tokens;
        while !rest.is_empty() {
            let Some(children) = self.children(key, parent) else { break };
            let before = children.range::<[TokenId], _>((Bound::Unbounded, Bound::Included(rest))).next_back();
            let after = children.range::<[TokenId], _>((Bound::Excluded(rest), Bound::Unbounded)).next();
            let candidates = [before, after].into_iter().flatten().map(|(tokens, at)| (common(tokens, rest), *at));
            let Some((len, at)) = candidates.max_by_key(|(len, _)| *len).filter(|(len, _)| *len > 0) else { break };
            let clock = self.clock;
            let node = self.node(at);
            node.used = clock;
            let page = Arc::clone(&node.page);
            if len < PAGE_POSITIONS {
                found.partial = Some((page, len));
                break;
            }
            found.pages.push(page);
            rest = &rest[PAGE_POSITIONS..];
            parent = Some(at);
        }
        found
    }

    /// Puts in a text with its pages; where a page is there already, `pages` gets it in exchange. Returns pages that are no longer
    /// needed.
    pub(super) fn insert(&mut self, key: &PrefixKey, tokens: &[TokenId], pages: &mut [Page]) -> Vec<Page> {
        self.clock += 1;
        let mut spare = Vec::new();
        if tokens.is_empty() {
            return spare;
        }
        let mut parent = None;
        for (chunk, page) in tokens.chunks(PAGE_POSITIONS).zip(pages) {
            let nobody = &mut Children::new();
            let children = self.children(key, parent).unwrap_or(nobody);
            // A page that goes on where this one ends holds all of it. (Of full pages only the very same one does.)
            let longer = children.range::<[TokenId], _>((Bound::Included(chunk), Bound::Unbounded)).next();
            let longer = longer.filter(|(tokens, _)| tokens.starts_with(chunk)).map(|(tokens, at)| (tokens.len(), *at));
            if let Some((len, at)) = longer {
                let clock = self.clock;
                let node = self.node(at);
                node.used = clock;
                if chunk.len() == len && !Arc::ptr_eq(&node.page, page) {
                    spare.push(std::mem::replace(page, Arc::clone(&node.page)));
                }
                parent = Some(at);
                continue;
            }
            // Pages that end inside this one are no longer needed.
            let shorter: Vec<usize> = (1..chunk.len()).filter_map(|len| children.get(&chunk[..len]).copied()).collect();
            spare.extend(shorter.into_iter().filter_map(|at| self.take_out(at)));
            parent = Some(self.put(key, parent, chunk, Arc::clone(page)));
        }
        spare
    }

    fn put(&mut self, key: &PrefixKey, parent: Option<usize>, tokens: &[TokenId], page: Page) -> usize {
        self.bytes += bytes_of(&page);
        let tokens: Box<[TokenId]> = tokens.into();
        let node = Node {
            page,
            children: Children::new(),
            used: self.clock,
            parent,
            key: key.clone(),
            tokens: tokens.clone(),
        };
        let at = self.free.pop().unwrap_or_else(|| {
            self.nodes.push(None);
            self.nodes.len() - 1
        });
        self.nodes[at] = Some(node);
        match parent {
            None => self.roots.entry(key.clone()).or_default(),
            Some(parent) => &mut self.node(parent).children,
        }
        .insert(tokens, at);
        at
    }

    /// Removes a leaf; `None` where it has children.
    fn take_out(&mut self, at: usize) -> Option<Page> {
        if !self.node(at).children.is_empty() {
            return None;
        }
        let node = self.nodes[at].take().expect("it was there a line ago");
        self.free.push(at);
        self.bytes -= bytes_of(&node.page);
        if let Some(siblings) = self.children(&node.key, node.parent) {
            siblings.remove(&node.tokens);
            if siblings.is_empty() && node.parent.is_none() {
                self.roots.remove(&node.key);
            }
        }
        Some(node.page)
    }

    /// Removes the leaf that was used least recently, of those whose page no sequence holds.
    pub(super) fn evict(&mut self) -> Option<Page> {
        let leaves = self.nodes.iter().enumerate().filter_map(|(at, node)| Some((at, node.as_ref()?)));
        let unused = leaves.filter(|(_, node)| node.children.is_empty() && Arc::strong_count(&node.page) == 1);
        let (at, _) = unused.min_by_key(|(_, node)| node.used)?;
        self.take_out(at)
    }

    /// Removes all of some keys.
    pub(super) fn remove(&mut self, which: impl Fn(&PrefixKey) -> bool) -> Vec<Page> {
        let mut pages = Vec::new();
        for at in 0..self.nodes.len() {
            if let Some(node) = self.nodes[at].take_if(|node| which(&node.key)) {
                self.free.push(at);
                self.bytes -= bytes_of(&node.page);
                pages.push(node.page);
            }
        }
        self.roots.retain(|key, _| !which(key));
        pages
    }
}
