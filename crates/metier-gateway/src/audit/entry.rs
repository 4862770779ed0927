//! One line of the audit log, as deterministic CBOR (RFC 8949, 4.2): a map with ascending integer keys, shortest integers,
//! absent facts absent. What decodes but does not encode back to the same bytes is refused, so that an entry has one form.
//!
//! Deliberately absent: bodies. An entry holds salted commitments to them ([`commitment`]); the salts lie in a table beside the
//! log, and without its salt a commitment says nothing: that is how a person can be erased from a log that never changes.

use std::{fmt, str::FromStr};

use metier_model::Digest;
use minicbor::{Decoder, Encoder, data::Type};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

/// Largest entry, in bytes. C2SP's tiles would allow 65,535.
pub const MAX_ENTRY_BYTES: usize = 16 << 10;
/// Longest text in an entry, in bytes; longer ones are cut.
pub const MAX_TEXT_BYTES: usize = 512;
/// Most backends that an entry lists.
pub const MAX_BACKENDS: usize = 16;
const VERSION: u64 = 1;

/// Name of a request in the log: 48 bits of time, 80 random bits; 32 hexadecimal digits for people.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReceiptId(pub [u8; 16]);

impl ReceiptId {
    /// From a time in milliseconds and ten random bytes. Ids sort by time, which keeps the database's index compact.
    pub fn new(time_ms: u64, random: [u8; 10]) -> Self {
        let mut bytes = [0; 16];
        bytes[..6].copy_from_slice(&time_ms.to_be_bytes()[2..]);
        bytes[6..].copy_from_slice(&random);
        Self(bytes)
    }
}

impl fmt::Display for ReceiptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for ReceiptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReceiptId({self})")
    }
}

impl FromStr for ReceiptId {
    type Err = hex::FromHexError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 16];
        hex::decode_to_slice(text, &mut bytes)?;
        Ok(Self(bytes))
    }
}

impl Serialize for ReceiptId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What an entry says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum Kind {
    /// The log began, or a server took it up again.
    #[default]
    #[serde(rename = "log.started")]
    LogStarted,
    /// A request came in.
    #[serde(rename = "opened")]
    Opened,
    /// It was answered, refused, or failed.
    #[serde(rename = "closed")]
    Closed,
    /// The server ended before it was closed; found at the next start.
    #[serde(rename = "interrupted")]
    Interrupted,
}

/// One line of the log. Empty texts and `None` are absent from the bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// What it says.
    pub kind: Kind,
    /// Milliseconds since 1970, never before the entry above.
    pub time_ms: u64,
    /// Pseudonym of the key that asked; empty for entries of the log itself.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub key: String,
    /// Number of this entry among those of its key, from 1, without gaps.
    pub sequence: u64,
    /// The request it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub receipt: Option<ReceiptId>,
    /// The caller's own name of the request (`x-request-id`).
    #[serde(skip_serializing_if = "String::is_empty")]
    pub request: String,
    /// Leaf of the `opened` entry that this one closes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub opened_leaf: Option<u64>,
    /// The model that was asked.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub model: String,
    /// The task, or the adapter.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub task: String,
    /// Bundle of the specialist, or files of the adapter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub specialist: Option<Digest>,
    /// Weights of the base model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base: Option<Digest>,
    /// The policy in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<Digest>,
    /// `accepted`, `deferred`, `direct`, `refused`, `failed`, `cancelled`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub decision: String,
    /// The stage that decided.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub stage: String,
    /// Whether it went on: `no`, `llm`, `none-available`, `denied`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub escalated: String,
    /// Calibrated score, in basis points.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score_bp: Option<u32>,
    /// Threshold, in basis points.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threshold_bp: Option<u32>,
    /// Backends that the permit listed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub permitted: Vec<String>,
    /// The backend that answered.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub backend: String,
    /// `inside` or `outside`: the farthest place to which the request went.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub boundary: String,
    /// Tokens of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_tokens: Option<u64>,
    /// Tokens of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_tokens: Option<u64>,
    /// Cost in picodollars; absent when unpriced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost_picousd: Option<u64>,
    /// Time from `opened` to `closed`, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub elapsed_us: Option<u64>,
    /// Salted commitment to the request's body (in `opened`) or to the answer's (in `closed`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<Digest>,
    /// Why, for people: reasons of a denial, the error.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// `SHA-256("metier/pc/v1" ‖ salt ‖ plaintext)`: binding while the salt is kept, meaningless after it is deleted.
pub fn commitment(salt: &[u8; 32], plaintext: &[u8]) -> Digest {
    Digest(Sha256::new().chain_update("metier/pc/v1").chain_update(salt).chain_update(plaintext).finalize().into())
}

/// Why bytes are no entry.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// The bytes are not the CBOR of an entry.
    #[error("the entry is malformed: {0}")]
    Malformed(String),
    /// The bytes are an entry in a form that we do not write.
    #[error("the entry is not in canonical form")]
    NotCanonical,
    /// Too long.
    #[error("the entry has {0} bytes, at most {MAX_ENTRY_BYTES} are allowed")]
    TooLong(usize),
}

impl From<minicbor::decode::Error> for EntryError {
    fn from(error: minicbor::decode::Error) -> Self {
        Self::Malformed(error.to_string())
    }
}

/// One value of the map.
enum Field<'a> {
    Number(u64),
    Text(&'a str),
    Bytes(&'a [u8]),
    Texts(&'a [String]),
}

impl Entry {
    /// Cuts texts to [`MAX_TEXT_BYTES`] and lists to [`MAX_BACKENDS`], so that the entry fits [`MAX_ENTRY_BYTES`]. A text that
    /// was cut ends with `…`.
    pub fn within_limits(mut self) -> Self {
        let texts = [
            &mut self.key,
            &mut self.request,
            &mut self.model,
            &mut self.task,
            &mut self.decision,
            &mut self.stage,
            &mut self.escalated,
            &mut self.backend,
            &mut self.boundary,
            &mut self.reason,
        ];
        self.permitted.truncate(MAX_BACKENDS);
        for text in texts.into_iter().chain(&mut self.permitted) {
            if text.len() > MAX_TEXT_BYTES {
                let end = (0..=MAX_TEXT_BYTES - '…'.len_utf8()).rev().find(|end| text.is_char_boundary(*end));
                text.truncate(end.expect("0 is a boundary"));
                text.push('…');
            }
        }
        self
    }

    /// The facts that are present, by key, ascending. The keys are the format: never reuse one.
    fn fields(&self) -> Vec<(u64, Field<'_>)> {
        use Field::{Bytes, Number, Text, Texts};
        fn text(text: &str) -> Option<&str> {
            (!text.is_empty()).then_some(text)
        }
        fn digest(digest: &Option<Digest>) -> Option<&[u8]> {
            digest.as_ref().map(|digest| digest.0.as_slice())
        }
        [
            (0, Some(Number(VERSION))),
            (1, Some(Number(self.kind as u64))),
            (2, Some(Number(self.time_ms))),
            (3, text(&self.key).map(Text)),
            (4, Some(Number(self.sequence))),
            (5, self.receipt.as_ref().map(|receipt| Bytes(&receipt.0))),
            (6, text(&self.request).map(Text)),
            (7, self.opened_leaf.map(Number)),
            (8, text(&self.model).map(Text)),
            (9, text(&self.task).map(Text)),
            (10, digest(&self.specialist).map(Bytes)),
            (11, digest(&self.base).map(Bytes)),
            (12, digest(&self.policy).map(Bytes)),
            (13, text(&self.decision).map(Text)),
            (14, text(&self.stage).map(Text)),
            (15, text(&self.escalated).map(Text)),
            (16, self.score_bp.map(|bp| Number(bp.into()))),
            (17, self.threshold_bp.map(|bp| Number(bp.into()))),
            (18, (!self.permitted.is_empty()).then_some(Texts(&self.permitted))),
            (19, text(&self.backend).map(Text)),
            (20, text(&self.boundary).map(Text)),
            (21, self.prompt_tokens.map(Number)),
            (22, self.completion_tokens.map(Number)),
            (23, self.cost_picousd.map(Number)),
            (24, self.elapsed_us.map(Number)),
            (25, digest(&self.body).map(Bytes)),
            (26, text(&self.reason).map(Text)),
        ]
        .into_iter()
        .filter_map(|(key, field)| Some((key, field?)))
        .collect()
    }

    /// The entry's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let fields = self.fields();
        let mut encoder = Encoder::new(Vec::with_capacity(512));
        let ok = "a vector takes all that is written";
        encoder.map(fields.len() as u64).expect(ok);
        for (key, field) in fields {
            encoder.u64(key).expect(ok);
            match field {
                Field::Number(number) => encoder.u64(number).expect(ok),
                Field::Text(text) => encoder.str(text).expect(ok),
                Field::Bytes(bytes) => encoder.bytes(bytes).expect(ok),
                Field::Texts(texts) => {
                    encoder.array(texts.len() as u64).expect(ok);
                    for text in texts {
                        encoder.str(text).expect(ok);
                    }
                    &mut encoder
                }
            };
        }
        encoder.into_writer()
    }

    /// Reads an entry; accepts only what [`Entry::encode`] writes.
    pub fn decode(bytes: &[u8]) -> Result<Self, EntryError> {
        if bytes.len() > MAX_ENTRY_BYTES {
            return Err(EntryError::TooLong(bytes.len()));
        }
        let mut decoder = Decoder::new(bytes);
        let n_fields = decoder.map()?.ok_or(EntryError::NotCanonical)?;
        let mut entry = Self::default();
        for _ in 0..n_fields {
            let key = decoder.u64()?;
            entry.read_field(key, &mut decoder)?;
        }
        // One comparison refuses unknown order, long integers, repeated keys, empty texts and trailing bytes alike.
        if entry.encode() != bytes {
            return Err(EntryError::NotCanonical);
        }
        Ok(entry)
    }

    fn read_field(&mut self, key: u64, decoder: &mut Decoder<'_>) -> Result<(), EntryError> {
        let text = |decoder: &mut Decoder<'_>| decoder.str().map(str::to_owned);
        let digest = |decoder: &mut Decoder<'_>| -> Result<Option<Digest>, EntryError> {
            let bytes =
                decoder.bytes()?.try_into().map_err(|_| EntryError::Malformed("a digest has 32 bytes".into()))?;
            Ok(Some(Digest(bytes)))
        };
        match key {
            0 => match decoder.u64()? {
                VERSION => {}
                other => return Err(EntryError::Malformed(format!("version {other} is not known"))),
            },
            1 => {
                self.kind = match decoder.u64()? {
                    0 => Kind::LogStarted,
                    1 => Kind::Opened,
                    2 => Kind::Closed,
                    3 => Kind::Interrupted,
                    other => return Err(EntryError::Malformed(format!("kind {other} is not known"))),
                }
            }
            2 => self.time_ms = decoder.u64()?,
            3 => self.key = text(decoder)?,
            4 => self.sequence = decoder.u64()?,
            5 => {
                let bytes = decoder.bytes()?.try_into();
                self.receipt =
                    Some(ReceiptId(bytes.map_err(|_| EntryError::Malformed("a receipt id has 16 bytes".into()))?));
            }
            6 => self.request = text(decoder)?,
            7 => self.opened_leaf = Some(decoder.u64()?),
            8 => self.model = text(decoder)?,
            9 => self.task = text(decoder)?,
            10 => self.specialist = digest(decoder)?,
            11 => self.base = digest(decoder)?,
            12 => self.policy = digest(decoder)?,
            13 => self.decision = text(decoder)?,
            14 => self.stage = text(decoder)?,
            15 => self.escalated = text(decoder)?,
            16 => self.score_bp = Some(decoder.u32()?),
            17 => self.threshold_bp = Some(decoder.u32()?),
            18 => {
                let n_texts = decoder.array()?.ok_or(EntryError::NotCanonical)?;
                if n_texts > MAX_BACKENDS as u64 {
                    return Err(EntryError::Malformed(format!("{n_texts} backends are too many")));
                }
                self.permitted = (0..n_texts).map(|_| text(decoder)).collect::<Result<_, _>>()?;
            }
            19 => self.backend = text(decoder)?,
            20 => self.boundary = text(decoder)?,
            21 => self.prompt_tokens = Some(decoder.u64()?),
            22 => self.completion_tokens = Some(decoder.u64()?),
            23 => self.cost_picousd = Some(decoder.u64()?),
            24 => self.elapsed_us = Some(decoder.u64()?),
            25 => self.body = digest(decoder)?,
            26 => self.reason = text(decoder)?,
            other => {
                let found = decoder.datatype().unwrap_or(Type::Null);
                return Err(EntryError::Malformed(format!("key {other} ({found}) is not known")));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;

    fn full() -> Entry {
        Entry {
            kind: Kind::Closed,
            time_ms: 1_795_305_600_123,
            key: "loopback".into(),
            sequence: 24,
            receipt: Some(ReceiptId::new(1_795_305_600_000, [5; 10])),
            request: "req-1".into(),
            opened_leaf: Some(7),
            model: "auto".into(),
            task: "banking-intents".into(),
            specialist: Some(Digest([1; 32])),
            base: Some(Digest([2; 32])),
            policy: Some(Digest([3; 32])),
            decision: "accepted".into(),
            stage: "both".into(),
            escalated: "no".into(),
            score_bp: Some(9_312),
            threshold_bp: Some(7_800),
            permitted: vec!["local".into()],
            backend: "local".into(),
            boundary: "inside".into(),
            prompt_tokens: Some(12),
            completion_tokens: Some(0),
            cost_picousd: Some(300_000),
            elapsed_us: Some(9_000),
            body: Some(Digest([4; 32])),
            reason: "häßlich".into(),
        }
    }

    #[test]
    fn the_bytes_of_version_1_never_change() {
        let small = Entry { time_ms: 1000, sequence: 1, ..Entry::default() };
        assert_eq!(hex::encode(small.encode()), "a400010100021903e80401");
        let digest = Digest::of(&full().encode());
        assert_eq!(digest.to_string(), "a5394d213f073c79257ebabd80ceed5ef2c7e2e300dbc05476b9627a8d3aed69");
        assert_eq!(Entry::decode(&full().encode()).unwrap(), full());
    }

    #[test]
    fn other_forms_of_the_same_entry_are_refused() {
        let check = |bytes: &str| assert!(Entry::decode(&hex::decode(bytes).unwrap()).is_err(), "{bytes}");
        check("a400010100021903e8040100"); // a trailing byte
        check("a400010100021903e8041801"); // a long integer
        check("a401000001021903e80401"); // keys out of order
        check("a500010100021903e803600401"); // an empty text
        check("bf00010100021903e80401ff"); // an indefinite map
        check("a400020100021903e80401"); // version 2
        check("a400010109021903e80401"); // an unknown kind
        check("a500010100021903e80401186300"); // an unknown key
        check("");
    }

    #[test]
    fn the_longest_entry_fits() {
        let mut entry = full();
        let long = "é".repeat(10_000);
        for text in [&mut entry.key, &mut entry.request, &mut entry.model, &mut entry.task, &mut entry.reason] {
            text.clone_from(&long);
        }
        entry.permitted = vec![long; 100];
        let entry = entry.within_limits();
        assert!(entry.encode().len() <= MAX_ENTRY_BYTES);
        assert!(entry.reason.ends_with('…') && entry.reason.len() <= MAX_TEXT_BYTES);
        assert_eq!(Entry::decode(&entry.encode()).unwrap(), entry);
    }

    #[test]
    fn a_commitment_binds_salt_and_text() {
        assert_ne!(commitment(&[0; 32], b"a"), commitment(&[1; 32], b"a"));
        assert_ne!(commitment(&[0; 32], b"a"), commitment(&[0; 32], b"b"));
        let by_hand = [b"metier/pc/v1".as_slice(), &[0; 32], b"a"].concat();
        assert_eq!(commitment(&[0; 32], b"a"), Digest::of(&by_hand));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Entry::decode(&bytes);
        }

        #[test]
        fn a_changed_entry_is_another_entry_or_none(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut bytes = full().encode();
            let place = at.index(bytes.len());
            bytes[place] = byte;
            if let Ok(entry) = Entry::decode(&bytes) {
                prop_assert_eq!(entry.encode(), bytes);
            }
        }
    }
}
