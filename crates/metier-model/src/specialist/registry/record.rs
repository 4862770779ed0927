//! What is written down, and who signed it?
//!
//! A record is one event of one bundle. Its line is JSON whose last key is an Ed25519 signature over everything before it, with `}` put
//! back: what was signed is what lies on disk, byte by byte.

use std::{fmt, str::FromStr};

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Pen, RegistryError};
use crate::Digest;

pub(super) const PUBLIC_PREFIX: &str = "metier-registry-public:";
const SECRET_PREFIX: &str = "METIER-REGISTRY-PRIVATE:";
const SIGNATURE_KEY: &str = ",\"signature\":\"";
const SIGNATURE_END: &str = "\"}";
const SIGNATURE_DIGITS: usize = 128;

/// The public half of a registry's key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

impl PublicKey {
    /// The first eight digits, for people.
    pub fn short(&self) -> String {
        hex::encode(&self.0.as_bytes()[..4])
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PUBLIC_PREFIX}{}", hex::encode(self.0.as_bytes()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PublicKey {
    type Err = RegistryError;

    fn from_str(text: &str) -> Result<Self, RegistryError> {
        let wrong = || RegistryError::Key(text.trim().to_owned());
        let mut bytes = [0; 32];
        let digits = text.trim().strip_prefix(PUBLIC_PREFIX).ok_or_else(wrong)?;
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| wrong())?;
        VerifyingKey::from_bytes(&bytes).map(Self).map_err(|_| wrong())
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The private key that signs records. Never shown by `Debug`.
pub struct RegistryKey(SigningKey);

impl RegistryKey {
    /// A key from 32 random bytes.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    /// The form for the disk.
    pub fn to_secret_text(&self) -> String {
        format!("{SECRET_PREFIX}{}\n", hex::encode(self.0.to_bytes()))
    }

    /// Reads what [`RegistryKey::to_secret_text`] wrote; `None` where it is something else.
    pub fn parse_secret(text: &str) -> Option<Self> {
        let mut seed = [0; 32];
        hex::decode_to_slice(text.trim().strip_prefix(SECRET_PREFIX)?, &mut seed).ok()?;
        Some(Self::from_seed(&seed))
    }
}

impl fmt::Debug for RegistryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RegistryKey({})", self.public())
    }
}

/// Where a bundle stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Made, and answers nothing.
    Draft,
    /// To be given a copy of the traffic; answers nothing.
    Shadow,
    /// Answers under its name.
    Live,
    /// Was live.
    Retired,
    /// Taken out of the store.
    Removed,
}

impl State {
    /// Its name in lists.
    pub fn name(self) -> &'static str {
        match self {
            Self::Draft => "draft",
            Self::Shadow => "shadow",
            Self::Live => "live",
            Self::Retired => "retired",
            Self::Removed => "removed",
        }
    }
}

/// What happened to a bundle.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// It answered in a store that kept no records yet.
    Adopted,
    /// It was built here.
    Built,
    /// It came from another registry.
    Imported {
        /// The key that signed it there.
        from: PublicKey,
        /// Who built it there.
        built_by: Option<String>,
    },
    /// It is to be given a copy of the traffic.
    Shadowed,
    /// It answers from now on.
    Promoted {
        /// Who said that it may; `None` where it went live by being built.
        approver: Option<String>,
    },
    /// It answers again, in the place of the one after it.
    RolledBack,
    /// It was taken out of the store.
    Removed,
    /// A statement for another registry; stands in exported bundles alone.
    Exported {
        /// Who built it.
        built_by: Option<String>,
        /// Who approved it.
        approver: Option<String>,
    },
}

/// One signed line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// 1, 2, 3, …; 0 in an exported bundle.
    pub seq: u64,
    /// SHA-256 of the line before, without its line break.
    pub previous: Option<Digest>,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// The specialist.
    pub name: String,
    /// The bundle.
    pub bundle: Digest,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
    /// Who did it.
    pub by: String,
    /// A remark.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// The key that signed.
    pub key: PublicKey,
}

impl Record {
    /// The event of a bundle, as whoever holds the pen writes it down.
    pub(super) fn of(
        event: Event,
        name: &str,
        bundle: Digest,
        pen: &Pen<'_>,
        seq: u64,
        previous: Option<Digest>,
    ) -> Self {
        Self {
            seq,
            previous,
            at_ms: pen.at_ms,
            name: name.to_owned(),
            bundle,
            event,
            by: pen.by.to_owned(),
            note: pen.note.map(str::to_owned),
            key: pen.key.public(),
        }
    }

    /// The line as it is written, without line break.
    pub(super) fn sign(&self, key: &RegistryKey) -> String {
        let payload = serde_json::to_string(self).expect("a record is JSON");
        let signature = key.0.sign(payload.as_bytes());
        let open = payload.strip_suffix('}').expect("an object ends so");
        format!("{open}{SIGNATURE_KEY}{}{SIGNATURE_END}", hex::encode(signature.to_bytes()))
    }

    /// Reads a line and checks that the key it names has signed it. Whether that key is to be trusted is another question.
    pub fn open(line: &str) -> Result<Self, String> {
        let end = line.strip_suffix(SIGNATURE_END).ok_or("it does not end with a signature")?;
        let (rest, digits) = end
            .len()
            .checked_sub(SIGNATURE_DIGITS)
            .and_then(|at| end.split_at_checked(at))
            .ok_or("it does not end with a signature")?;
        let open = rest.strip_suffix(SIGNATURE_KEY).ok_or("it does not end with a signature")?;
        let mut bytes = [0; SIGNATURE_DIGITS / 2];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| "its signature is not hexadecimal")?;
        let payload = format!("{open}}}");
        let record: Self = serde_json::from_str(&payload).map_err(|error| format!("it is no record ({error})"))?;
        (record.key.0)
            .verify_strict(payload.as_bytes(), &Signature::from_bytes(&bytes))
            .map_err(|_| format!("it was changed: the signature of key {} does not fit it", record.key.short()))?;
        Ok(record)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn key(seed: u8) -> RegistryKey {
        RegistryKey::from_seed(&[seed; 32])
    }

    fn record(event: Event) -> Record {
        Record {
            seq: 1,
            previous: None,
            at_ms: 5,
            name: "desk".into(),
            bundle: Digest::of(b"x"),
            event,
            by: "ada \"x\"".into(),
            note: Some("a, b}".into()),
            key: key(1).public(),
        }
    }

    #[test]
    fn what_was_signed_opens_and_no_flipped_bit_does() {
        for event in [
            Event::Built,
            Event::Promoted { approver: Some("grace".into()) },
            Event::Imported { from: key(2).public(), built_by: None },
        ] {
            let record = record(event);
            let line = record.sign(&key(1));
            assert_eq!(Record::open(&line), Ok(record));
            for at in 0..line.len() {
                let mut bytes = line.clone().into_bytes();
                bytes[at] ^= 1;
                if let Ok(changed) = String::from_utf8(bytes) {
                    assert!(Record::open(&changed).is_err(), "byte {at}: {changed}");
                }
            }
        }
        // Signed by one key, said to be another's.
        assert!(Record::open(&record(Event::Built).sign(&key(2))).unwrap_err().contains("was changed"));
        for no_line in ["", "{}", "\"}", "{\"signature\":\"00\"}"] {
            assert!(Record::open(no_line).is_err(), "{no_line}");
        }
    }

    #[test]
    fn keys_survive_the_disk_and_bad_ones_are_refused() {
        let again = RegistryKey::parse_secret(&key(3).to_secret_text()).unwrap();
        assert_eq!(again.public(), key(3).public());
        let text = key(3).public().to_string();
        assert_eq!(text.parse::<PublicKey>().unwrap(), key(3).public());
        for bad in ["", "metier-registry-public:00", &text[1..], &text.replace("public", "private")] {
            assert!(bad.parse::<PublicKey>().is_err(), "{bad}");
        }
        assert!(!format!("{:?}", key(3)).contains("PRIVATE"));
    }
}
