//! A receipt: one entry, its path to a signed head, and that head, as text. It verifies offline, against the public key alone.
//!
//! The format is C2SP `tlog-proof@v1` (<https://c2sp.org/tlog-proof>), with the entry's bytes as its extra data:
//!
//! ```text
//! c2sp.org/tlog-proof@v1
//! extra <entry, base64>
//! index 7
//! <hash, base64>            the path from the leaf up
//!                           a blank line
//! <signed head>
//! ```

use std::fmt;

use base64::{Engine as _, prelude::BASE64_STANDARD};

use super::{
    AuditError,
    entry::{Entry, MAX_ENTRY_BYTES},
    note::{MAX_NOTE_BYTES, SignedHead, VerifierKey},
    tree::{Hash, leaf_hash, verify_inclusion},
};

const HEADER: &str = "c2sp.org/tlog-proof@v1";
/// Longest path: a tree of 2⁶⁴ leaves.
const MAX_PATH: usize = 64;
/// Largest receipt that is read, in bytes.
pub const MAX_RECEIPT_BYTES: usize = MAX_ENTRY_BYTES * 2 + MAX_NOTE_BYTES + MAX_PATH * 45 + 256;

/// One entry with its proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    pub(super) leaf: u64,
    pub(super) entry: Vec<u8>,
    pub(super) path: Vec<Hash>,
    pub(super) head: String,
}

/// What a receipt proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedReceipt {
    /// Place of the entry.
    pub leaf: u64,
    /// What it says.
    pub entry: Entry,
    /// The head that it was proved against.
    pub head: SignedHead,
}

impl Receipt {
    /// Verifies a receipt's text against a public key.
    pub fn verify(bytes: &[u8], key: &VerifierKey) -> Result<VerifiedReceipt, AuditError> {
        let receipt = Self::parse(bytes)?;
        let failed = |reason: String| AuditError::Receipt(reason);
        let head = SignedHead::open(&receipt.head, key).map_err(|error| failed(error.to_string()))?;
        let entry = Entry::decode(&receipt.entry).map_err(|error| failed(error.to_string()))?;
        let leaf = leaf_hash(&receipt.entry);
        if !verify_inclusion(&leaf, receipt.leaf, head.size(), &receipt.path, &head.root()) {
            return Err(failed("the path does not lead from the entry to the signed head".into()));
        }
        Ok(VerifiedReceipt { leaf: receipt.leaf, entry, head })
    }

    /// Place of the entry.
    pub fn leaf(&self) -> u64 {
        self.leaf
    }

    fn parse(bytes: &[u8]) -> Result<Self, AuditError> {
        let malformed = |what: &str| AuditError::Receipt(format!("it is malformed: {what}"));
        if bytes.len() > MAX_RECEIPT_BYTES {
            return Err(malformed("it is too long"));
        }
        let text = std::str::from_utf8(bytes).map_err(|_| malformed("it is no text"))?;
        let (proof, head) = text.split_once("\n\n").ok_or_else(|| malformed("no blank line before the signed head"))?;
        let mut lines = proof.split('\n');
        if lines.next() != Some(HEADER) {
            return Err(malformed("it does not begin with c2sp.org/tlog-proof@v1"));
        }
        let entry = lines.next().and_then(|line| line.strip_prefix("extra "));
        let entry = entry.and_then(|text| BASE64_STANDARD.decode(text).ok()).ok_or_else(|| malformed("no entry"))?;
        let leaf_text =
            lines.next().and_then(|line| line.strip_prefix("index ")).ok_or_else(|| malformed("no index"))?;
        let leaf: u64 = leaf_text.parse().map_err(|_| malformed("the index is no number"))?;
        if leaf.to_string() != leaf_text {
            return Err(malformed("the index is not in canonical form"));
        }
        let path: Option<Vec<Hash>> =
            lines.map(|line| BASE64_STANDARD.decode(line).ok().and_then(|hash| hash.try_into().ok())).collect();
        let path = path.ok_or_else(|| malformed("a hash is not 32 bytes of base64"))?;
        if path.len() > MAX_PATH {
            return Err(malformed("the path is too long"));
        }
        Ok(Self { leaf, entry, path, head: head.to_owned() })
    }
}

impl fmt::Display for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{HEADER}\nextra {}\nindex {}", BASE64_STANDARD.encode(&self.entry), self.leaf)?;
        for hash in &self.path {
            writeln!(f, "{}", BASE64_STANDARD.encode(hash))?;
        }
        write!(f, "\n{}", self.head)
    }
}
