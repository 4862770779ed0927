//! The Merkle tree of RFC 6962: roots, inclusion and consistency proofs, and their verification. Pure.
//!
//! Leaf `SHA-256(0x00 ‖ entry)`, node `SHA-256(0x01 ‖ left ‖ right)`. A tree of n leaves splits at the largest power of two
//! below n, so that every complete subtree is written once and never changes:
//!
//! ```text
//! level 2            h03
//! level 1      h01         h23         h45
//! level 0   h0    h1    h2    h3    h4    h5    h6        root(7) = H(h03, H(h45, h6))
//! ```
//!
//! Whoever holds the complete nodes answers any proof with at most 2·log₂ n of them ([`Nodes`]).

use sha2::{Digest as _, Sha256};

/// A SHA-256 hash.
pub type Hash = [u8; 32];

/// Hash of one entry.
pub fn leaf_hash(entry: &[u8]) -> Hash {
    Sha256::new().chain_update([0]).chain_update(entry).finalize().into()
}

/// Hash of two subtrees.
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    Sha256::new().chain_update([1]).chain_update(left).chain_update(right).finalize().into()
}

/// Root of the tree without leaves.
pub fn empty_root() -> Hash {
    Sha256::digest(b"").into()
}

/// A complete subtree: 2^level leaves from leaf `idx · 2^level` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Node {
    /// 0 for leaves.
    pub level: u8,
    /// From the left, on its level.
    pub idx: u64,
    /// Its hash.
    pub hash: Hash,
}

/// The right edge of a growing tree: all that is needed to append and to know the root. 64 hashes at most.
#[derive(Clone, Debug, Default)]
pub struct Frontier {
    size: u64,
    /// Complete subtrees that no larger one contains, largest first: one for each bit of `size`.
    peaks: Vec<Hash>,
}

impl Frontier {
    /// Leaves so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Appends a leaf and tells every subtree that it completes, the leaf first.
    pub fn push(&mut self, leaf: Hash, mut completed: impl FnMut(Node)) {
        let (mut hash, mut idx, mut level) = (leaf, self.size, 0);
        completed(Node { level, idx, hash });
        while idx & 1 == 1 {
            let left = self.peaks.pop().expect("each one bit of the size has a peak");
            hash = node_hash(&left, &hash);
            idx >>= 1;
            level += 1;
            completed(Node { level, idx, hash });
        }
        self.peaks.push(hash);
        self.size += 1;
    }

    /// Root of the tree as it stands.
    pub fn root(&self) -> Hash {
        let mut peaks = self.peaks.iter().rev();
        let Some(last) = peaks.next() else { return empty_root() };
        peaks.fold(*last, |right, left| node_hash(left, &right))
    }
}

/// Whoever can look up complete subtrees.
pub trait Nodes {
    /// What goes wrong in a look-up.
    type Error;
    /// Hash of the complete subtree `idx` of a level.
    fn node(&self, level: u8, idx: u64) -> Result<Hash, Self::Error>;
}

/// Hash of the leaves `low..high`, `low < high`.
fn range_hash<N: Nodes>(nodes: &N, low: u64, high: u64) -> Result<Hash, N::Error> {
    let n_leaves = high - low;
    if n_leaves.is_power_of_two() && low.is_multiple_of(n_leaves) {
        let level = n_leaves.trailing_zeros() as u8;
        return nodes.node(level, low >> level);
    }
    let split = low + split_of(n_leaves);
    Ok(node_hash(&range_hash(nodes, low, split)?, &range_hash(nodes, split, high)?))
}

/// Largest power of two below `n`, `n > 1`.
fn split_of(n: u64) -> u64 {
    1 << (63 - (n - 1).leading_zeros())
}

/// Root of the first `size` leaves.
pub fn root_of<N: Nodes>(nodes: &N, size: u64) -> Result<Hash, N::Error> {
    if size == 0 { Ok(empty_root()) } else { range_hash(nodes, 0, size) }
}

/// Audit path of leaf `idx` in the tree of the first `size` leaves, from the leaf up (RFC 6962, 2.1.1). Needs `idx < size`.
pub fn inclusion_path<N: Nodes>(nodes: &N, idx: u64, size: u64) -> Result<Vec<Hash>, N::Error> {
    let (mut low, mut high, mut path) = (0, size, Vec::new());
    while high - low > 1 {
        let split = low + split_of(high - low);
        if idx < split {
            path.push(range_hash(nodes, split, high)?);
            high = split;
        } else {
            path.push(range_hash(nodes, low, split)?);
            low = split;
        }
    }
    path.reverse();
    Ok(path)
}

/// Proof that the tree of `new_size` leaves extends the one of `old_size` (RFC 6962, 2.1.2). Needs `old_size ≤ new_size`.
pub fn consistency_path<N: Nodes>(nodes: &N, old_size: u64, new_size: u64) -> Result<Vec<Hash>, N::Error> {
    if old_size == 0 || old_size == new_size {
        return Ok(Vec::new());
    }
    let (mut low, mut high, mut path) = (0, new_size, Vec::new());
    while high != old_size {
        let split = low + split_of(high - low);
        if old_size <= split {
            path.push(range_hash(nodes, split, high)?);
            high = split;
        } else {
            path.push(range_hash(nodes, low, split)?);
            low = split;
        }
    }
    if low > 0 {
        path.push(range_hash(nodes, low, high)?);
    }
    path.reverse();
    Ok(path)
}

/// Whether a path leads from a leaf to a root (RFC 9162, 2.1.3.2).
pub fn verify_inclusion(leaf: &Hash, idx: u64, size: u64, path: &[Hash], root: &Hash) -> bool {
    if idx >= size {
        return false;
    }
    let (mut place, mut last, mut hash) = (idx, size - 1, *leaf);
    for step in path {
        if last == 0 {
            return false;
        }
        if place & 1 == 1 || place == last {
            hash = node_hash(step, &hash);
            while place & 1 == 0 && place != 0 {
                place >>= 1;
                last >>= 1;
            }
        } else {
            hash = node_hash(&hash, step);
        }
        place >>= 1;
        last >>= 1;
    }
    last == 0 && hash == *root
}

/// Whether a proof shows that one tree extends another (RFC 9162, 2.1.4.2).
pub fn verify_consistency(old_size: u64, new_size: u64, path: &[Hash], old_root: &Hash, new_root: &Hash) -> bool {
    if old_size > new_size {
        return false;
    }
    if old_size == new_size {
        return path.is_empty() && old_root == new_root;
    }
    if old_size == 0 {
        return path.is_empty() && *old_root == empty_root();
    }
    // A complete old tree is itself the first step.
    let (first, rest) = match (old_size.is_power_of_two(), path) {
        (true, rest) => (*old_root, rest),
        (false, [first, rest @ ..]) => (*first, rest),
        (false, []) => return false,
    };
    let (mut place, mut last) = (old_size - 1, new_size - 1);
    while place & 1 == 1 {
        place >>= 1;
        last >>= 1;
    }
    let (mut old, mut new) = (first, first);
    for step in rest {
        if last == 0 {
            return false;
        }
        if place & 1 == 1 || place == last {
            old = node_hash(step, &old);
            new = node_hash(step, &new);
            while place & 1 == 0 && place != 0 {
                place >>= 1;
                last >>= 1;
            }
        } else {
            new = node_hash(&new, step);
        }
        place >>= 1;
        last >>= 1;
    }
    last == 0 && old == *old_root && new == *new_root
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::{collections::BTreeMap, convert::Infallible};

    use ct_merkle::{InclusionProof, mem_backed_tree::MemoryBackedTree};
    use proptest::prelude::*;

    use super::*;

    #[derive(Default)]
    struct Tree {
        frontier: Frontier,
        nodes: BTreeMap<(u8, u64), Hash>,
    }

    impl Nodes for Tree {
        type Error = Infallible;
        fn node(&self, level: u8, idx: u64) -> Result<Hash, Infallible> {
            Ok(self.nodes[&(level, idx)])
        }
    }

    fn tree(entries: &[Vec<u8>]) -> Tree {
        let mut tree = Tree::default();
        for entry in entries {
            let nodes = &mut tree.nodes;
            tree.frontier.push(leaf_hash(entry), |node| {
                nodes.insert((node.level, node.idx), node.hash);
            });
        }
        tree
    }

    /// Inputs and roots of the Certificate Transparency reference tests (google/certificate-transparency, merkle_tree_test).
    const VECTORS: [(&str, &str); 8] = [
        ("", "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"),
        ("00", "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"),
        ("10", "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77"),
        ("2021", "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7"),
        ("3031", "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4"),
        ("40414243", "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef"),
        ("5051525354555657", "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c"),
        ("606162636465666768696a6b6c6d6e6f", "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"),
    ];

    #[test]
    fn roots_are_those_of_certificate_transparency() {
        assert_eq!(hex::encode(empty_root()), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        let entries: Vec<Vec<u8>> = VECTORS.iter().map(|(input, _)| hex::decode(input).unwrap()).collect();
        for (n, (_, root)) in VECTORS.iter().enumerate() {
            let tree = tree(&entries[..=n]);
            assert_eq!(hex::encode(tree.frontier.root()), *root);
            assert_eq!(root_of(&tree, n as u64 + 1).unwrap(), tree.frontier.root());
        }
    }

    proptest! {
        #[test]
        fn agrees_with_ct_merkle(n in 1usize..80, at in any::<prop::sample::Index>(), old in any::<prop::sample::Index>()) {
            let entries: Vec<Vec<u8>> = (0..n).map(|i| vec![i as u8; i % 5]).collect();
            let (ours, idx, old) = (tree(&entries), at.index(n), 1 + old.index(n));
            let mut oracle = MemoryBackedTree::<Sha256, Vec<u8>>::new();
            entries.iter().for_each(|entry| oracle.push(entry.clone()));
            let root = ours.frontier.root();
            let theirs = oracle.root();
            prop_assert_eq!(theirs.as_bytes().as_slice(), &root);

            let path = inclusion_path(&ours, idx as u64, n as u64).unwrap();
            let theirs = oracle.prove_inclusion(idx);
            prop_assert_eq!(theirs.as_bytes(), path.concat());
            prop_assert!(verify_inclusion(&leaf_hash(&entries[idx]), idx as u64, n as u64, &path, &root));
            let back = InclusionProof::<Sha256>::from_bytes(path.concat());
            prop_assert!(oracle.root().verify_inclusion(&entries[idx], idx as u64, &back).is_ok());

            let path = consistency_path(&ours, old as u64, n as u64).unwrap();
            let old_root = root_of(&ours, old as u64).unwrap();
            prop_assert!(verify_consistency(old as u64, n as u64, &path, &old_root, &root));
            if old < n {
                let theirs = oracle.prove_consistency(n - old);
                prop_assert_eq!(theirs.as_bytes(), path.concat());
            }
        }

        #[test]
        fn no_changed_proof_verifies(n in 2usize..60, at in any::<prop::sample::Index>(), byte in any::<prop::sample::Index>(), bit in 0u8..8) {
            let entries: Vec<Vec<u8>> = (0..n).map(|i| vec![i as u8]).collect();
            let (ours, idx) = (tree(&entries), at.index(n));
            let (root, leaf, size) = (ours.frontier.root(), leaf_hash(&entries[idx]), n as u64);
            let mut path = inclusion_path(&ours, idx as u64, size).unwrap();
            prop_assert!(!verify_inclusion(&leaf, idx as u64, size, &path[1..], &root));
            prop_assert!(!verify_inclusion(&leaf, (idx as u64 + 1) % size, size, &path, &root));
            prop_assert!(!verify_inclusion(&leaf, size, size, &path, &root));
            let place = byte.index(path.len() * 32);
            path[place / 32][place % 32] ^= 1 << bit;
            prop_assert!(!verify_inclusion(&leaf, idx as u64, size, &path, &root));

            let old = 1 + at.index(n - 1) as u64;
            let old_root = root_of(&ours, old).unwrap();
            let mut path = consistency_path(&ours, old, size).unwrap();
            prop_assert!(!verify_consistency(old, size, &path, &root, &old_root));
            let place = byte.index(path.len() * 32);
            path[place / 32][place % 32] ^= 1 << bit;
            prop_assert!(!verify_consistency(old, size, &path, &old_root, &root));
        }
    }
}
