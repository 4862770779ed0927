//! What a pretrained model is called, and the bytes behind its name.

use std::{io, path::Path};

use metier_kernels::Mapped;
use serde::{Deserialize, Serialize};

use crate::{Digest, EncoderWeights};

/// A base model's identity: what manifests and decisions record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BaseId {
    /// For people: the name of the file (decoder) or folder (encoder).
    pub name: String,
    /// SHA-256 of the weights file; of a decoder that comes in several files, of the list of all that were read
    /// ([`Digest::of_files`]); of an encoder, what it derives of it ([`Encoder::base`](crate::Encoder::base)).
    pub digest: Digest,
    /// How the weights of an encoder are kept, where that is not as in the file. For people and messages: `digest` tells it too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<EncoderWeights>,
}

impl BaseId {
    /// Why vectors of the encoder `at_hand` are not those that something was made with on this one, and what to do; `None` where
    /// they are.
    pub fn mismatch(&self, at_hand: &Self) -> Option<String> {
        if self.digest == at_hand.digest {
            return None;
        }
        let (name, other) = (&self.name, &at_hand.name);
        let (made, kept) = (self.weights.unwrap_or_default(), at_hand.weights.unwrap_or_default());
        Some(if name != other {
            format!("made with the encoder `{name}`, and `{other}` is at hand: set `encoder`, or build it again")
        } else if made != kept {
            format!(
                "made with the encoder `{name}` in {made}, which is kept in {kept} here: set `encoder_weights = \"{made}\"`, or build it again"
            )
        } else {
            format!("made with other files of the encoder `{name}` than those at hand: build it again")
        })
    }
}

/// A model file's bytes: mapped from disk, or made in memory.
pub(crate) enum Bytes {
    Mapped(Mapped),
    Owned(Vec<u8>),
}

impl Bytes {
    pub(crate) fn map(path: &Path) -> io::Result<Self> {
        Mapped::open(path).map(Self::Mapped)
    }

    /// Lets go of pages that were read once, while repacking.
    pub(crate) fn release(&self) {
        if let Self::Mapped(map) = self {
            map.release();
        }
    }
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(name: &str, content: &str, weights: Option<EncoderWeights>) -> BaseId {
        BaseId { name: name.to_owned(), digest: Digest::of(content.as_bytes()), weights }
    }

    #[test]
    fn other_vectors_are_told_apart_with_what_to_do() {
        let (f32, int8) = (base("a", "f32", None), base("a", "int8", Some(EncoderWeights::Int8)));
        let check = |made: &BaseId, at_hand: &BaseId, words: &str| {
            let told = made.mismatch(at_hand).unwrap_or_default();
            assert!(told.contains(words), "`{told}` does not say `{words}`");
        };
        check(&f32, &int8, "`a` in f32, which is kept in int8 here: set `encoder_weights = \"f32\"`");
        check(&int8, &f32, "`a` in int8, which is kept in f32 here: set `encoder_weights = \"int8\"`");
        check(&f32, &base("b", "other", None), "with the encoder `a`, and `b` is at hand");
        check(&f32, &base("a", "other", None), "other files of the encoder `a`");
        // A folder's name is no part of what vectors depend on.
        assert_eq!(f32.mismatch(&base("b", "f32", None)), None);
    }
}
