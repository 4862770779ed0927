//! Signed tree heads: C2SP `signed-note` with Ed25519, holding a C2SP `tlog-checkpoint`.
//!
//! ```text
//! metier-audit-1f0c9ab2            origin
//! 42                               leaves
//! gSKyXoYZUgZ6jduWYrkDOARinOMG…=   root, base64
//!
//! — metier-audit-1f0c9ab2 hI2DJw…  base64(key id ‖ signature) over the lines above the blank one
//! ```
//!
//! Key id: the first four bytes of `SHA-256(name ‖ "\n" ‖ 0x01 ‖ public key)`. Keys on disk have the text form of Go's
//! `sumdb/note`, so that other tools read them: `name+id+base64(0x01 ‖ key)`. Sources: <https://c2sp.org/signed-note>,
//! <https://c2sp.org/tlog-checkpoint>.

use std::fmt;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use sha2::{Digest as _, Sha256};

use super::tree::Hash;

/// Signature type of Ed25519 in C2SP's registry.
const ED25519: u8 = 1;
/// Largest note that is read, in bytes.
pub const MAX_NOTE_BYTES: usize = 16 << 10;
/// Most signature lines that are looked at: cosignatures of witnesses stand beside ours.
const MAX_SIGNATURES: usize = 64;

/// Why a note or a key is not accepted.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// The text is no signed note.
    #[error("the signed head is malformed: {0}")]
    Malformed(&'static str),
    /// The text is no key.
    #[error("the key is malformed: {0}")]
    Key(&'static str),
    /// Nobody who is trusted signed it.
    #[error("the signed head has no signature by `{0}`")]
    Unsigned(String),
    /// The signature does not fit the text.
    #[error("the signature by `{0}` does not fit the signed head")]
    Signature(String),
}

/// A public key with its name: all that a third party needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifierKey {
    name: String,
    id: [u8; 4],
    key: VerifyingKey,
}

impl VerifierKey {
    fn new(name: String, key: VerifyingKey) -> Self {
        let digest = Sha256::new()
            .chain_update(name.as_bytes())
            .chain_update([b'\n', ED25519])
            .chain_update(key.as_bytes())
            .finalize();
        let mut id = [0; 4];
        id.copy_from_slice(&digest[..4]);
        Self { name, id, key }
    }

    /// Name of the key, which is also the origin of its log.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Reads `name+id+base64(0x01 ‖ key)`.
    pub fn parse(text: &str) -> Result<Self, NoteError> {
        let mut parts = text.trim().splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(NoteError::Key("it must have the form name+id+key"));
        };
        let key = BASE64_STANDARD.decode(key).map_err(|_| NoteError::Key("the key is no base64"))?;
        let [ED25519, key @ ..] = key.as_slice() else { return Err(NoteError::Key("it is no Ed25519 key")) };
        let key: &[u8; 32] = key.try_into().map_err(|_| NoteError::Key("an Ed25519 key has 32 bytes"))?;
        let key = VerifyingKey::from_bytes(key).map_err(|_| NoteError::Key("it is no point of the curve"))?;
        if !is_name(name) {
            return Err(NoteError::Key("its name is empty or has spaces"));
        }
        let parsed = Self::new(name.to_owned(), key);
        if id != hex::encode(parsed.id) {
            return Err(NoteError::Key("its id does not fit name and key"));
        }
        Ok(parsed)
    }
}

impl fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = BASE64_STANDARD.encode([&[ED25519], self.key.as_bytes().as_slice()].concat());
        write!(f, "{}+{}+{key}", self.name, hex::encode(self.id))
    }
}

/// The private key of a log. Never shown by `Debug`.
pub struct LogKey {
    verifier: VerifierKey,
    key: SigningKey,
}

impl LogKey {
    /// A key from 32 random bytes; the name is derived from the public key.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        let key = SigningKey::from_bytes(seed);
        let public = key.verifying_key();
        let name = format!("metier-audit-{}", hex::encode(&Sha256::digest(public.as_bytes())[..4]));
        Self { verifier: VerifierKey::new(name, public), key }
    }

    /// The public half.
    pub fn verifier(&self) -> &VerifierKey {
        &self.verifier
    }

    /// The form for the disk: `PRIVATE+KEY+name+id+base64(0x01 ‖ seed)`.
    pub fn to_secret_text(&self) -> String {
        let seed = BASE64_STANDARD.encode([&[ED25519], self.key.as_bytes().as_slice()].concat());
        format!("PRIVATE+KEY+{}+{}+{seed}\n", self.verifier.name, hex::encode(self.verifier.id))
    }

    /// Reads what [`LogKey::to_secret_text`] wrote.
    pub fn parse_secret(text: &str) -> Result<Self, NoteError> {
        let rest =
            text.trim().strip_prefix("PRIVATE+KEY+").ok_or(NoteError::Key("it does not begin with PRIVATE+KEY"))?;
        let mut parts = rest.splitn(3, '+');
        let (Some(name), Some(id), Some(seed)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(NoteError::Key("it must have the form PRIVATE+KEY+name+id+seed"));
        };
        let seed = BASE64_STANDARD.decode(seed).map_err(|_| NoteError::Key("the seed is no base64"))?;
        let [ED25519, seed @ ..] = seed.as_slice() else { return Err(NoteError::Key("it is no Ed25519 key")) };
        let seed: &[u8; 32] = seed.try_into().map_err(|_| NoteError::Key("an Ed25519 seed has 32 bytes"))?;
        let key = SigningKey::from_bytes(seed);
        let verifier = VerifierKey::new(name.to_owned(), key.verifying_key());
        if id != hex::encode(verifier.id) || !is_name(name) {
            return Err(NoteError::Key("its id does not fit name and key"));
        }
        Ok(Self { verifier, key })
    }

    /// Signs the head of a tree.
    pub fn sign(&self, size: u64, root: Hash) -> SignedHead {
        let origin = self.verifier.name.clone();
        let body = format!("{origin}\n{size}\n{}\n", BASE64_STANDARD.encode(root));
        let signature = self.key.sign(body.as_bytes()).to_bytes();
        let signature = BASE64_STANDARD.encode([self.verifier.id.as_slice(), &signature].concat());
        SignedHead { text: format!("{body}\n— {origin} {signature}\n"), origin, size, root }
    }
}

impl fmt::Debug for LogKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LogKey({})", self.verifier)
    }
}

/// The head of a log at one size, signed. Holds only what was verified or signed here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedHead {
    text: String,
    origin: String,
    size: u64,
    root: Hash,
}

impl SignedHead {
    /// Reads a signed note and verifies it against a key.
    pub fn open(text: &str, key: &VerifierKey) -> Result<Self, NoteError> {
        if text.len() > MAX_NOTE_BYTES {
            return Err(NoteError::Malformed("it is too long"));
        }
        let (body, signatures) =
            text.rsplit_once("\n\n").ok_or(NoteError::Malformed("no blank line before the signatures"))?;
        let signed = &text[..body.len() + 1];
        verify_signatures(signed, signatures, key)?;

        let mut lines = signed.lines();
        let (Some(origin), Some(size_text), Some(root)) = (lines.next(), lines.next(), lines.next()) else {
            return Err(NoteError::Malformed("fewer than three lines"));
        };
        if origin != key.name {
            return Err(NoteError::Malformed("the origin is another log's"));
        }
        let size: u64 = size_text.parse().map_err(|_| NoteError::Malformed("the size is no number"))?;
        if size.to_string() != size_text {
            return Err(NoteError::Malformed("the size is not in canonical form"));
        }
        let root = BASE64_STANDARD.decode(root).ok().and_then(|root| root.try_into().ok());
        let root = root.ok_or(NoteError::Malformed("the root is not 32 bytes of base64"))?;
        Ok(Self { text: text.to_owned(), origin: origin.to_owned(), size, root })
    }

    /// The note as text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The log it belongs to.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Leaves.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Root over the leaves.
    pub fn root(&self) -> Hash {
        self.root
    }
}

fn verify_signatures(signed: &str, signatures: &str, key: &VerifierKey) -> Result<(), NoteError> {
    let signatures = signatures.strip_suffix('\n').ok_or(NoteError::Malformed("it does not end with a line break"))?;
    let mut found = false;
    for (n, line) in signatures.split('\n').enumerate() {
        if n == MAX_SIGNATURES {
            return Err(NoteError::Malformed("too many signatures"));
        }
        let line =
            line.strip_prefix("— ").ok_or(NoteError::Malformed("a signature line does not begin with a dash"))?;
        let (name, signature) =
            line.split_once(' ').ok_or(NoteError::Malformed("a signature line has no signature"))?;
        let bytes = BASE64_STANDARD.decode(signature).map_err(|_| NoteError::Malformed("a signature is no base64"))?;
        let (id, signature) = bytes.split_at_checked(4).ok_or(NoteError::Malformed("a signature is too short"))?;
        // Lines of keys that we do not know are other people's business.
        if name != key.name || id != key.id {
            continue;
        }
        let signature: &[u8; 64] =
            signature.try_into().map_err(|_| NoteError::Malformed("an Ed25519 signature has 64 bytes"))?;
        key.key
            .verify_strict(signed.as_bytes(), &Signature::from_bytes(signature))
            .map_err(|_| NoteError::Signature(name.to_owned()))?;
        found = true;
    }
    if found { Ok(()) } else { Err(NoteError::Unsigned(key.name.clone())) }
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || c == '+')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn key() -> LogKey {
        LogKey::from_seed(&[7; 32])
    }

    #[test]
    fn go_reads_our_keys_and_we_read_gos() {
        // From the tests of golang.org/x/mod/sumdb/note.
        let text = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
        let note = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n\n\
            — PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";
        let key = VerifierKey::parse(text).unwrap();
        assert_eq!(key.to_string(), text);
        // The signature is good; what it signs is no checkpoint of a log of that name.
        assert_eq!(SignedHead::open(note, &key), Err(NoteError::Malformed("fewer than three lines")));
    }

    #[test]
    fn a_head_opens_with_its_own_key_alone() {
        let head = key().sign(42, [9; 32]);
        let opened = SignedHead::open(head.text(), key().verifier()).unwrap();
        assert_eq!(opened, head);
        assert_eq!((opened.size(), opened.root()), (42, [9; 32]));
        let other = LogKey::from_seed(&[8; 32]);
        assert!(matches!(SignedHead::open(head.text(), other.verifier()), Err(NoteError::Unsigned(_))));
    }

    #[test]
    fn a_cosignature_beside_ours_does_no_harm() {
        let head = key().sign(1, [1; 32]);
        let cosigned = format!("{}— witness.example AAAAAAAA\n", head.text());
        assert_eq!(SignedHead::open(&cosigned, key().verifier()).unwrap().size(), 1);
    }

    #[test]
    fn no_flipped_bit_opens() {
        let head = key().sign(1_234, [3; 32]);
        for at in 0..head.text().len() {
            for bit in 0..8 {
                let mut bytes = head.text().as_bytes().to_vec();
                bytes[at] ^= 1 << bit;
                if let Ok(text) = std::str::from_utf8(&bytes) {
                    assert!(SignedHead::open(text, key().verifier()).is_err(), "bit {bit} of byte {at}: {text}");
                }
            }
        }
    }

    #[test]
    fn keys_survive_the_disk_and_bad_ones_are_refused() {
        let again = LogKey::parse_secret(&key().to_secret_text()).unwrap();
        assert_eq!(again.verifier(), key().verifier());
        let public = key().verifier().to_string();
        assert_eq!(&VerifierKey::parse(&public).unwrap(), key().verifier());
        for bad in ["", "a+b", "a b+00000000+AQ==", &public.replace("metier", "meteor"), &public[..public.len() - 4]] {
            assert!(VerifierKey::parse(bad).is_err(), "{bad}");
        }
        assert!(!format!("{:?}", key()).contains("PRIVATE"));
    }
}
