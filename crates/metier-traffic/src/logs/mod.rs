//! One record of anybody's log → exchanges.
//!
//! **Question:** which calls does this record tell of? **In:** one JSON object (a line of JSONL, an element of an array, a row of CSV as an object
//! of strings). **Out:** exchanges, a score for one, or a piece of a streamed one; else the reason why there is none. **Absent:** files,
//! compression, prices, and any judgement of what the calls are for.
//!
//! The format is told from the record's own fields, so that files of one folder and even lines of one file may differ. Built from: OpenAI's and
//! Anthropic's published API shapes; LiteLLM's `LiteLLM_SpendLogs` table and `StandardLoggingPayload`; Langfuse's blob storage field
//! reference and its export from the console; Helicone's request type; OpenTelemetry's semantic conventions for GenAI with their older
//! names, OpenLLMetry's and OpenInference's; TensorZero's datapoints; OpenPipe's request log. Of these, samples of real records were at hand for OpenAI (training
//! files, stream chunks) and TensorZero alone.

mod counts;
mod datapoint;
mod helicone;
mod langfuse;
mod litellm;
mod openai;
mod otel;
mod own;
mod seen;
mod value;
mod write;

use serde_json::Value;

pub use seen::{EXPECTED, fields};
pub use write::write;

use crate::exchange::{Exchange, Verdict};

/// Most spans of one record.
pub const MAX_SPANS: usize = 65_536;

/// Whose log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Format {
    /// Bodies of requests and answers, pairs of them, training files, batches, stream chunks.
    OpenAi,
    /// `LiteLLM_SpendLogs` and `StandardLoggingPayload`.
    LiteLlm,
    /// Observations and scores.
    Langfuse,
    /// Exported requests.
    Helicone,
    /// Spans by the GenAI conventions.
    OpenTelemetry,
    /// `{input, output, tags}`: TensorZero, OpenPipe, and what is like them.
    Datapoints,
    /// metier's own exchanges.
    Metier,
    /// Times and token counts without texts.
    Counts,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::OpenAi,
        Self::LiteLlm,
        Self::Langfuse,
        Self::Helicone,
        Self::OpenTelemetry,
        Self::Datapoints,
        Self::Metier,
        Self::Counts,
    ];

    /// Its name, for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::OpenAi => "OpenAI",
            Self::LiteLlm => "LiteLLM",
            Self::Langfuse => "Langfuse",
            Self::Helicone => "Helicone",
            Self::OpenTelemetry => "OpenTelemetry",
            Self::Datapoints => "input/output",
            Self::Metier => "metier",
            Self::Counts => "token counts",
        }
    }
}

/// What a record is.
#[derive(Clone, Debug, PartialEq)]
pub enum Row {
    /// Calls, at least one.
    Calls(Vec<Exchange>),
    /// What somebody says of a call that stands elsewhere.
    Score(Score),
    /// A piece of an answer that came as a stream.
    Piece(Box<Piece>),
}

/// What somebody says of a call that stands elsewhere.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// The call's id, or its trace's.
    pub of: String,
    /// What is said.
    pub verdict: Verdict,
}

/// A piece of an answer that came as a stream: pieces of one id make one call.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// The answer's id.
    pub id: String,
    /// What this piece knows: its `answer` is appended, the rest fills what is not known yet.
    pub part: Exchange,
}

/// Why a record becomes nothing. Few different texts, so that they can be counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum Unread {
    /// A number, a text or a list.
    #[error("not a JSON object")]
    NotAnObject,
    /// No format has such fields.
    #[error("fields of no known log format")]
    UnknownFields,
    /// A span, event or trace beside the calls.
    #[error("no call of a model: a trace, a span of other work or an event")]
    NoCall,
    /// A call of another kind.
    #[error("a call that writes no text: an embedding, an image, speech or a moderation")]
    OtherWork,
    /// Neither texts nor tokens.
    #[error("neither texts nor token counts")]
    Empty,
    /// More than [`MAX_SPANS`].
    #[error("more than {MAX_SPANS} spans in one record")]
    TooManySpans,
}

/// Reads one record.
///
/// # Errors
/// It tells of no call.
pub fn read(record: &Value) -> Result<(Format, Row), Unread> {
    let object = record.as_object().ok_or(Unread::NotAnObject)?;
    let (format, _, read) = READERS.into_iter().find(|(_, is, _)| is(object)).ok_or(Unread::UnknownFields)?;
    let row = read(object)?;
    if let Row::Calls(calls) = &row {
        let nothing = |call: &Exchange| call.messages.is_empty() && call.answer.is_none() && call.tokens.is_none();
        if calls.is_empty() {
            return Err(Unread::NoCall);
        }
        if calls.iter().all(|call| nothing(call) && !call.failed) {
            return Err(Unread::Empty);
        }
    }
    Ok((format, row))
}

/// In this order: what is told by few fields comes last.
const READERS: [(Format, Recogniser, Reader); 9] = [
    (Format::Metier, own::is, own::read),
    (Format::OpenTelemetry, otel::is, otel::read),
    (Format::LiteLlm, litellm::is, litellm::read),
    (Format::Helicone, helicone::is, helicone::read),
    (Format::Langfuse, langfuse::is, langfuse::read),
    (Format::Datapoints, datapoint::is_named, datapoint::read),
    (Format::OpenAi, openai::is, openai::read),
    (Format::Datapoints, datapoint::is, datapoint::read),
    (Format::Counts, counts::is, counts::read),
];

/// Whose fields these are.
fn format(object: &value::Object) -> Option<Format> {
    READERS.into_iter().find(|(_, is, _)| is(object)).map(|(format, ..)| format)
}

type Recogniser = fn(&value::Object) -> bool;
type Reader = fn(&value::Object) -> Result<Row, Unread>;

fn one(call: Exchange) -> Result<Row, Unread> {
    Ok(Row::Calls(vec![call]))
}
