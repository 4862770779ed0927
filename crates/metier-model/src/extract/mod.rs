//! *Which values does this text give for the fields of a schema, and where do they stand?*
//!
//! **In:** a text, an encoder whose layers were tuned for the task, a head that scores tags, a schema. **Out:** one JSON answer that meets
//! the schema, each value with the characters that it was read from and a calibrated score; one score for the whole. **Absent:**
//! writing: a value that does not stand in the text is not found.
//!
//! ```text
//! text → words → windows of tokens → hidden rows, and shapes of words → logits of tags a word → likeliest legal tags → spans
//!      → value of each span, normalised → the best, or all, of each field → answer
//! score of a field:  P(exactly this span), summed over all legal tags, through a calibrated line
//! score of a row:    P(exactly these tags), likewise
//! ```
//!
//! - [`schema`]: which fields there are. - [`words`]: words and windows. - [`tags`]: legal tags. - [`normalise`]: words → value.

pub mod normalise;
pub mod schema;
pub mod tags;
pub mod words;

use std::ops::Range;

use metier_kernels::Pool;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use normalise::Normaliser;
pub use schema::{Field, Schema, SchemaError};
pub use tags::{Lattice, Span};

use crate::{
    Encoder, EncoderError,
    encoder::MAX_TEXT_BYTES,
    head::LinearHead,
    proof::calibrator::sigmoid,
    tokenizer::{TokenId, TokenizerError},
};

/// Windows whose hidden rows are held at a time: 16 of 256 tokens of MiniLM are 6 MB.
const WINDOWS_AT_A_TIME: usize = 16;

/// `σ(slope · ln(p / (1 − p)) + offset)`: Platt's line over a probability's own log-odds. Slope 1 and offset 0 leave it as it is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScoreLine {
    /// At least 0.
    pub slope: f32,
    /// Any finite number.
    pub offset: f32,
}

impl ScoreLine {
    /// The score of a log-probability.
    pub fn score(&self, log_probability: f64) -> f32 {
        sigmoid(self.slope * log_odds(log_probability) as f32 + self.offset)
    }

    /// Can it be applied?
    pub fn is_valid(&self) -> bool {
        self.slope.is_finite() && self.slope >= 0.0 && self.offset.is_finite()
    }
}

/// `ln(p / (1 − p))` of a log-probability, within ±30: what f32 tells apart.
pub fn log_odds(log_probability: f64) -> f64 {
    let l = log_probability.min(-1e-13);
    (l - (-l.exp_m1()).ln()).clamp(-30.0, 30.0)
}

/// How an extraction's scores are made; stands in a bundle's manifest.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scores {
    /// Of a field's value.
    pub field: ScoreLine,
    /// Of the whole answer.
    pub row: ScoreLine,
}

/// One value that was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Index among the schema's fields.
    pub field: usize,
    /// What the words write.
    pub value: Value,
    /// The words as they stand in the text.
    pub raw: String,
    /// Their bytes in the text.
    pub bytes: Range<usize>,
    /// The same in Unicode code points.
    pub characters: Range<usize>,
    /// ln P(exactly this span).
    pub log_probability: f64,
}

/// What was found in a text.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// All spans of the likeliest tags with their bytes, in order: also those whose words write no allowed value.
    pub spans: Vec<(Span, Range<usize>)>,
    /// The values that the answer is made of, in the schema's order.
    pub found: Vec<Found>,
    /// The answer, or why there is none that meets the schema.
    pub answer: Result<Value, String>,
    /// ln P(exactly these tags).
    pub log_probability: f64,
    /// Tokens that the encoder read.
    pub n_tokens: usize,
}

/// A text cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It cannot be tokenised.
    #[error("cannot tokenise the text")]
    Tokens(#[from] TokenizerError),
    /// It is longer than an encoder reads.
    #[error("the text has {0} bytes, the limit is {MAX_TEXT_BYTES}")]
    TooLong(usize),
    /// The encoder.
    #[error("cannot read the text")]
    Encoder(#[from] EncoderError),
    /// The head was made for another encoder.
    #[error("the head reads rows of {head} elements, those of the encoder have {encoder}")]
    Head {
        /// What the head reads.
        head: usize,
        /// What there is.
        encoder: usize,
    },
}

/// A text's words with their tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tokenised {
    /// Bytes of each word that has tokens.
    pub words: Vec<Range<usize>>,
    /// Tokens of each.
    pub tokens: Vec<Vec<TokenId>>,
}

/// A window as the network reads it.
#[derive(Clone, Debug, PartialEq)]
pub struct WindowTokens {
    /// Framed.
    pub ids: Vec<TokenId>,
    /// Row of the first token of each of its words.
    pub rows: Vec<usize>,
    /// Which words.
    pub window: words::Window,
}

impl Tokenised {
    /// Cuts a text into words and these into tokens, each for itself: a word's tokens do not depend on its neighbours.
    pub fn of(encoder: &Encoder, text: &str) -> Result<Self, ReadError> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(ReadError::TooLong(text.len()));
        }
        let mut this = Self::default();
        for word in words::words(text) {
            // Vocabularies that tell words behind a space from others (RoBERTa) see the space.
            let from = if text[..word.start].ends_with(' ') { word.start - 1 } else { word.start };
            let tokens = encoder.tokenizer().encode(&text[from..word.end])?;
            if !tokens.is_empty() {
                this.words.push(word);
                this.tokens.push(tokens);
            }
        }
        Ok(this)
    }

    /// Its windows; a word longer than a whole window is cut.
    pub fn windows(&self, encoder: &Encoder) -> Vec<WindowTokens> {
        let (before, after) = encoder.frame();
        let room = encoder.window_tokens() - before.len() - after.len();
        let lens: Vec<usize> = self.tokens.iter().map(Vec::len).collect();
        let windows = words::windows(&lens, room).into_iter().map(|window| {
            let (mut ids, mut rows) = (before.to_vec(), Vec::new());
            for tokens in &self.tokens[window.words.clone()] {
                rows.push(ids.len());
                ids.extend(tokens.iter().take(room));
            }
            ids.extend_from_slice(after);
            WindowTokens { ids, rows, window }
        });
        windows.collect()
    }
}

/// Reads texts.
#[derive(Clone, Copy)]
pub struct Extractor<'a> {
    /// What is looked for.
    pub schema: &'a Schema,
    /// Hidden row → logit of each tag.
    pub head: &'a LinearHead,
    /// Whose hidden rows.
    pub encoder: &'a Encoder,
}

impl Extractor<'_> {
    /// Reads one text.
    pub fn read(&self, pool: &Pool, text: &str) -> Result<Reading, ReadError> {
        Ok(self.read_all(pool, &[text])?.pop().expect("one text, one reading"))
    }

    /// Reads several texts together; each is read as it would be alone.
    pub fn read_all(&self, pool: &Pool, texts: &[&str]) -> Result<Vec<Reading>, ReadError> {
        let (n_tags, width) = (self.head.n_classes(), self.encoder.width());
        let head_width = self.head.embedding_dim().unwrap_or_default();
        if head_width != width + words::SHAPE_ROW {
            return Err(ReadError::Head { head: head_width, encoder: width + words::SHAPE_ROW });
        }
        let tokenised = texts.iter().map(|text| Tokenised::of(self.encoder, text)).collect::<Result<Vec<_>, _>>()?;
        let windows: Vec<(usize, WindowTokens)> = tokenised
            .iter()
            .enumerate()
            .flat_map(|(text, tokenised)| tokenised.windows(self.encoder).into_iter().map(move |window| (text, window)))
            .collect();
        let mut logits: Vec<Vec<f32>> =
            tokenised.iter().map(|text| Vec::with_capacity(text.words.len() * n_tags)).collect();
        let mut n_tokens = vec![0; texts.len()];
        // Of a text with several windows they follow each other, so its logits are put in order of its words.
        for batch in windows.chunks(WINDOWS_AT_A_TIME) {
            let ids: Vec<&[TokenId]> = batch.iter().map(|(_, window)| window.ids.as_slice()).collect();
            let hidden = self.encoder.token_rows(pool, &ids)?;
            let mut from = 0;
            for (text, window) in batch {
                let hidden = &hidden[from..from + window.ids.len() * width];
                from += window.ids.len() * width;
                n_tokens[*text] += window.ids.len();
                for word in window.window.keep.clone() {
                    let row = window.rows[word - window.window.words.start];
                    let shapes = words::shape_row(texts[*text], &tokenised[*text].words, word);
                    let row = [&hidden[row * width..][..width], &shapes].concat();
                    logits[*text].extend(self.head.margins(None, Some(&row)));
                }
            }
        }
        let readings = texts.iter().zip(&tokenised).zip(logits.iter().zip(n_tokens));
        Ok(readings
            .map(|((text, tokenised), (logits, n_tokens))| self.decode(text, &tokenised.words, logits, n_tokens))
            .collect())
    }

    /// From logits to an answer.
    fn decode(&self, text: &str, words: &[Range<usize>], logits: &[f32], n_tokens: usize) -> Reading {
        let lattice = Lattice::new(logits, self.head.n_classes());
        let (path, score) = lattice.best();
        let sums = lattice.sums();
        let places = Characters::of(text);
        let fields = self.schema.fields();
        let (mut spans, mut by_field) = (Vec::new(), vec![Vec::<Found>::new(); fields.len()]);
        for span in tags::spans_of(&path) {
            let bytes = words[span.words.start].start..words[span.words.end - 1].end;
            spans.push((span.clone(), bytes.clone()));
            let raw = &text[bytes.clone()];
            if let Some(value) = fields[span.field].value(raw) {
                by_field[span.field].push(Found {
                    field: span.field,
                    value,
                    raw: raw.to_owned(),
                    characters: places.range(&bytes),
                    bytes,
                    log_probability: lattice.span_log_probability(&sums, &span),
                });
            }
        }
        for (field, found) in fields.iter().zip(&mut by_field) {
            // Of a value that stands in the text twice, and of more values than there may be, the surest; of equals the first.
            let mut order: Vec<usize> = (0..found.len()).collect();
            order.sort_by(|&a, &b| found[b].log_probability.total_cmp(&found[a].log_probability).then(a.cmp(&b)));
            let mut kept: Vec<usize> = Vec::new();
            for at in order {
                if kept.len() < field.most() && kept.iter().all(|other| found[*other].value != found[at].value) {
                    kept.push(at);
                }
            }
            let mut at = 0..;
            found.retain(|_| at.next().is_some_and(|at| kept.contains(&at)));
        }
        let values: Vec<Vec<Value>> =
            by_field.iter().map(|found| found.iter().map(|one| one.value.clone()).collect()).collect();
        Reading {
            spans,
            answer: self.schema.assemble(&values),
            found: by_field.into_iter().flatten().collect(),
            log_probability: (score - sums.total).min(0.0),
            n_tokens,
        }
    }
}

/// Byte places of a text → numbers of characters.
struct Characters(Vec<usize>);

impl Characters {
    fn of(text: &str) -> Self {
        Self(text.char_indices().map(|(at, _)| at).collect())
    }

    fn range(&self, bytes: &Range<usize>) -> Range<usize> {
        self.0.partition_point(|at| *at < bytes.start)..self.0.partition_point(|at| *at < bytes.end)
    }
}

impl Reading {
    /// Each value with where it was read and how sure that is: the `fields` of a decision. Characters are counted in the text, or, of
    /// several named inputs, in the input that is named beside them.
    pub fn evidence(&self, schema: &Schema, scores: &Scores, inputs: &[String], text: &str) -> Value {
        let starts = input_starts(inputs, text);
        let fields = self.found.iter().map(|found| {
            let mut all = json!({
                "field": schema.fields()[found.field].name,
                "value": found.value,
                "text": found.raw,
                "start": found.characters.start,
                "end": found.characters.end,
                "score": rounded(scores.field.score(found.log_probability)),
            });
            if let Some((input, start)) = starts.iter().rev().find(|(_, start)| *start <= found.characters.start) {
                all["input"] = json!(input);
                all["start"] = json!(found.characters.start - start);
                all["end"] = json!(found.characters.end - start);
            }
            all
        });
        Value::Array(fields.collect())
    }

    /// The calibrated probability that the whole answer is right; 0 where none meets the schema.
    pub fn score(&self, scores: &Scores) -> f32 {
        if self.answer.is_ok() { scores.row.score(self.log_probability) } else { 0.0 }
    }
}

/// Where the value of each of several named inputs begins in the text that [`render_inputs`](crate::specialist::render_inputs) made of
/// them, in characters: behind the first `name: ` at the start of a line that stands behind the input before it.
fn input_starts<'a>(inputs: &'a [String], text: &str) -> Vec<(&'a str, usize)> {
    let mut starts = Vec::new();
    if inputs.len() < 2 {
        return starts;
    }
    let mut from = 0;
    for (idx, name) in inputs.iter().enumerate() {
        let header = if idx == 0 { format!("{name}: ") } else { format!("\n{name}: ") };
        let Some(at) = text[from..].find(&header) else { return Vec::new() };
        from += at + header.len();
        starts.push((name.as_str(), text[..from].chars().count()));
    }
    starts
}

/// Four digits: what a calibrated score can carry.
fn rounded(score: f32) -> f64 {
    (f64::from(score) * 1e4).round() / 1e4
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use metier_kernels::Tier;

    use super::*;
    use crate::tiny;

    const WORDS: [&str; 8] = ["ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen"];

    /// A head that looks for whatever random weights make it look for.
    fn head(width: usize, fields: usize) -> LinearHead {
        let n = tags::n_tags(fields);
        let weight = |i: usize| (crate::specialist::mix(i as u64 + 1) % 2000) as f32 / 1000.0 - 1.0;
        LinearHead::quantise(vec![0.0; n], &[], (0..width * n).map(weight).collect())
    }

    #[test]
    fn reads_alone_as_in_company_and_long_texts_whole() {
        let dir = tempfile::tempdir().unwrap();
        tiny::bert_folder(dir.path(), &WORDS, 2, 7).unwrap();
        let encoder = Encoder::open(dir.path()).unwrap();
        let pool = Pool::new(2, Tier::detect());
        let properties = r#"{"a": {"type": "string"}, "b": {"type": "array", "items": {"type": "string"}}}"#;
        let schema = Schema::parse(&format!(r#"{{"type": "object", "properties": {properties}}}"#)).unwrap();
        let head = head(encoder.width() + words::SHAPE_ROW, 2);
        let extractor = Extractor { schema: &schema, head: &head, encoder: &encoder };
        let long: String = (0..400).map(|i| WORDS[(i * i + i / 7) % 8].to_owned() + " ").collect();
        let texts = ["", "ant", "é bee  cat. ant", &long];
        let together = extractor.read_all(&pool, &texts).unwrap();
        let mut n_found = 0;
        for (text, reading) in texts.iter().zip(&together) {
            assert_eq!(reading, &extractor.read(&pool, text).unwrap());
            assert!(reading.log_probability <= 0.0);
            assert!(schema.values(reading.answer.as_ref().unwrap()).is_ok());
            for found in &reading.found {
                n_found += 1;
                let characters: String =
                    text.chars().skip(found.characters.start).take(found.characters.len()).collect();
                assert_eq!((characters.as_str(), &text[found.bytes.clone()]), (found.raw.as_str(), found.raw.as_str()));
                assert!(found.log_probability <= 0.0 && found.log_probability >= reading.log_probability - 1e-9);
            }
        }
        let other = self::head(encoder.width(), 2);
        let wrong = Extractor { head: &other, ..extractor }.read(&pool, "ant").unwrap_err();
        assert!(matches!(wrong, ReadError::Head { head: 32, .. }), "{wrong}");
        assert!(n_found > 4, "random weights find something");
        assert!(together[3].n_tokens > 400, "the whole long text was read, in several windows");
        assert!(together[3].spans.iter().any(|(span, _)| span.words.start > 300));
    }

    #[test]
    fn places_are_those_of_the_input() {
        let inputs = ["subject", "body"].map(str::to_owned);
        let text = crate::specialist::render_inputs(&inputs, &["é order", "body: no\n7"]);
        assert_eq!(input_starts(&inputs, &text), [("subject", 9), ("body", 23)]);
        assert_eq!(text.chars().skip(23).collect::<String>(), "body: no 7", "a line break is one space");
        assert!(input_starts(&inputs[..1], "subject: a").is_empty());
    }

    #[test]
    fn log_odds_are_finite_and_rise() {
        let all: Vec<f64> = [-1e9, -50.0, -1.0, -0.1, -1e-9, 0.0].map(log_odds).to_vec();
        assert!(all.windows(2).all(|pair| pair[0] <= pair[1]) && all.iter().all(|x| x.is_finite()), "{all:?}");
        assert!((log_odds(0.5f64.ln())).abs() < 1e-12);
        let line = ScoreLine { slope: 1.0, offset: 0.0 };
        assert!((line.score(0.8f64.ln()) - 0.8).abs() < 1e-6);
    }
}
