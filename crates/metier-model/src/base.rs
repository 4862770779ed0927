//! What a pretrained model is called, and the bytes behind its name.

use std::{io, path::Path};

use metier_kernels::Mapped;
use serde::{Deserialize, Serialize};

use crate::Digest;

/// A base model's identity: what manifests and decisions record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BaseId {
    /// For people: the name of the file (decoder) or folder (encoder).
    pub name: String,
    /// SHA-256 of the weights file; of a decoder that comes in several files, of the list of all that were read
    /// ([`Digest::of_files`]).
    pub digest: Digest,
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
