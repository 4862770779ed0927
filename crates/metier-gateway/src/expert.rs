//! A specialist as the gateway sees it: the few things it asks of [`Specialist`], so that a simulation can script them.

use std::sync::Arc;

use metier_kernels::Pool;
use metier_model::{
    BaseId, Digest, Encoder,
    extract::Schema,
    specialist::{Answer, Specialist, render_request},
};
use serde_json::Value;

use metier_model::specialist::{Judgement, Written, manifest::Kind};

use crate::backend::{Backend, embedder::Embedder};

/// What a specialist says of a text.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Judged {
    /// The label, or the answer in JSON.
    pub(crate) label: String,
    /// Calibrated, 0 to 1.
    pub(crate) score: f32,
    pub(crate) threshold: Option<f32>,
    pub(crate) accepted: bool,
    /// `linear`, `pair`, `head`, `both`, `tuned`, `decoder`, `span`.
    pub(crate) stage: String,
    /// Of an extraction.
    pub(crate) extracted: Option<Extracted>,
}

/// What an extraction adds to its answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Extracted {
    /// Of each value: field, value, words, where they stand, score.
    pub(crate) fields: Value,
    /// Tokens that its encoder read.
    pub(crate) n_tokens: u64,
}

/// See above.
pub(crate) trait Expert: Send + Sync {
    fn name(&self) -> &str;
    fn id(&self) -> Digest;
    /// The encoder that it was made with.
    fn base(&self) -> Option<&BaseId>;
    fn instruction(&self) -> &str;
    fn labels(&self) -> &[String];
    fn may_leave(&self) -> bool;
    fn needs_embedding(&self) -> bool;
    /// The decoder that it runs on, where it runs on one.
    fn decoder(&self) -> Option<Digest> {
        self.pen().map(|pen| pen.decoder)
    }
    /// What was tuned for it, an encoder or a decoder, where it reads that one's vectors and not those of the server's encoder.
    fn own_encoder(&self) -> Option<&Embedder> {
        None
    }
    /// Does it read the server's encoder's vector behind that one's?
    fn reads_base(&self) -> bool {
        false
    }
    /// Does it run on something of its own that is worth keeping when specialists are looked at again?
    fn keeps_running(&self) -> bool {
        self.own_encoder().is_some() || self.pen().is_some()
    }
    /// Does it give a list of labels, and not one?
    fn gives_several(&self) -> bool {
        false
    }
    /// What it answers, where that is JSON.
    fn schema(&self) -> Option<&Schema> {
        None
    }
    /// Who writes its answers, where they are written and not chosen from labels.
    fn pen(&self) -> Option<&Pen> {
        None
    }
    /// How sure it is of an answer that its pen wrote.
    fn judge_written(&self, _written: Written<'_>) -> Option<Judgement> {
        None
    }
    /// What the encoder that was tuned for it reads of a text.
    fn own_text(&self, text: &str) -> String {
        text.to_owned()
    }
    fn centroids(&self) -> &[Vec<f32>];
    fn match_threshold(&self) -> Option<f32>;
    /// Is a cheaper stage asked before anything is embedded?
    fn has_first(&self) -> bool {
        false
    }
    /// What that stage says of a text.
    fn judge_first(&self, _text: &str) -> Option<Judged> {
        None
    }
    /// The text that it reads out of the last user message; else why not.
    fn read(&self, message: &str) -> Result<String, String>;
    /// What it says itself, whether or not a stage before it would.
    fn judge(&self, text: &str, embedding: Option<&[f32]>) -> Result<Judged, String>;
}

impl Expert for Specialist {
    fn name(&self) -> &str {
        &self.manifest().name
    }

    fn id(&self) -> Digest {
        self.id()
    }

    fn base(&self) -> Option<&BaseId> {
        self.manifest().base.as_ref()
    }

    fn instruction(&self) -> &str {
        &self.manifest().instruction
    }

    fn labels(&self) -> &[String] {
        &self.manifest().labels
    }

    fn may_leave(&self) -> bool {
        self.manifest().may_leave
    }

    fn needs_embedding(&self) -> bool {
        self.needs_embedding()
    }

    fn gives_several(&self) -> bool {
        self.manifest().multi_label.is_some()
    }

    fn schema(&self) -> Option<&Schema> {
        self.schema()
    }

    fn centroids(&self) -> &[Vec<f32>] {
        self.centroids()
    }

    fn match_threshold(&self) -> Option<f32> {
        self.match_threshold()
    }

    fn has_first(&self) -> bool {
        self.manifest().first.is_some()
    }

    fn judge_first(&self, text: &str) -> Option<Judged> {
        self.first_answer(text).map(judged_label)
    }

    fn read(&self, message: &str) -> Result<String, String> {
        render_request(&self.manifest().inputs, message).map_err(|error| error.to_string())
    }

    fn judge(&self, text: &str, embedding: Option<&[f32]>) -> Result<Judged, String> {
        if self.manifest().kind == Kind::Generate {
            return Err(format!(
                "specialist `{}` cannot answer: {}",
                self.manifest().name,
                "its decoder is not the one that this server has, or its adapter could not be loaded"
            ));
        }
        if self.manifest().hidden.is_some() {
            return Err(format!(
                "specialist `{}` cannot answer: {}",
                self.manifest().name,
                "its decoder is not the one that this server has, or its adapter could not be loaded"
            ));
        }
        // The server's embeddings are not those that it was made with: see `Equipped`.
        if self.encoder_file().is_some() {
            return Err(format!(
                "specialist `{}` has an encoder of its own, which could not be loaded",
                self.manifest().name
            ));
        }
        judged(self, text, embedding)
    }
}

/// Who writes a specialist's answers: the base, under an adapter where it has one.
pub(crate) struct Pen {
    pub(crate) backend: Arc<dyn Backend>,
    /// The decoder, for the record.
    pub(crate) decoder: Digest,
    /// `adapter`, or `prompted` without one.
    pub(crate) stage: &'static str,
    pub(crate) max_tokens: u32,
    /// JSON Schema of what is written.
    pub(crate) schema: Option<Value>,
}

/// A specialist with what it needs to answer and the server's base models are not.
pub(crate) struct Equipped {
    pub(crate) specialist: Arc<Specialist>,
    pub(crate) with: Equipment,
}

/// What that is.
pub(crate) enum Equipment {
    /// An encoder that was tuned for it, on a thread of its own; or the base under an adapter of its own, on the base's thread.
    Encoder(Embedder),
    /// The same for an extraction, which reads on whatever thread asks; calls take turns on the pool.
    Reader(Box<Encoder>, Arc<Pool>),
    /// Who writes its answers.
    Pen(Pen),
}

impl Expert for Equipped {
    fn name(&self) -> &str {
        Expert::name(&*self.specialist)
    }

    fn id(&self) -> Digest {
        self.specialist.id()
    }

    fn base(&self) -> Option<&BaseId> {
        Expert::base(&*self.specialist)
    }

    fn instruction(&self) -> &str {
        Expert::instruction(&*self.specialist)
    }

    fn labels(&self) -> &[String] {
        Expert::labels(&*self.specialist)
    }

    fn may_leave(&self) -> bool {
        Expert::may_leave(&*self.specialist)
    }

    fn needs_embedding(&self) -> bool {
        matches!(self.with, Equipment::Encoder(_)) && self.specialist.needs_embedding()
    }

    fn own_encoder(&self) -> Option<&Embedder> {
        if let Equipment::Encoder(embedder) = &self.with { Some(embedder) } else { None }
    }

    fn reads_base(&self) -> bool {
        self.specialist.reads_base()
    }

    fn keeps_running(&self) -> bool {
        true
    }

    fn gives_several(&self) -> bool {
        Expert::gives_several(&*self.specialist)
    }

    fn schema(&self) -> Option<&Schema> {
        self.specialist.schema()
    }

    fn pen(&self) -> Option<&Pen> {
        if let Equipment::Pen(pen) = &self.with { Some(pen) } else { None }
    }

    fn judge_written(&self, written: Written<'_>) -> Option<Judgement> {
        self.pen().map(|_| self.specialist.judge(written))
    }

    fn decoder(&self) -> Option<Digest> {
        self.specialist.manifest().decoder().map(|decoder| decoder.digest)
    }

    fn own_text(&self, text: &str) -> String {
        self.specialist.encoder_text(text).into_owned()
    }

    fn centroids(&self) -> &[Vec<f32>] {
        self.specialist.centroids()
    }

    fn match_threshold(&self) -> Option<f32> {
        self.specialist.match_threshold()
    }

    fn has_first(&self) -> bool {
        Expert::has_first(&*self.specialist)
    }

    fn judge_first(&self, text: &str) -> Option<Judged> {
        Expert::judge_first(&*self.specialist, text)
    }

    fn read(&self, message: &str) -> Result<String, String> {
        Expert::read(&*self.specialist, message)
    }

    fn judge(&self, text: &str, embedding: Option<&[f32]>) -> Result<Judged, String> {
        match &self.with {
            Equipment::Reader(encoder, pool) => extracted(&self.specialist, encoder, pool, text),
            Equipment::Encoder(_) | Equipment::Pen(_) => judged(&self.specialist, text, embedding),
        }
    }
}

fn judged(specialist: &Specialist, text: &str, embedding: Option<&[f32]>) -> Result<Judged, String> {
    // The stage before it, where there is one, was asked by whoever asks this.
    let margins = specialist.margins(text, embedding).map_err(|error| error.to_string())?;
    Ok(judged_label(specialist.answer_from(&margins)))
}

fn judged_label(answer: Answer) -> Judged {
    Judged {
        label: answer.label,
        score: answer.score,
        threshold: answer.threshold,
        accepted: answer.accepted,
        stage: answer.stage,
        extracted: None,
    }
}

fn extracted(specialist: &Specialist, encoder: &Encoder, pool: &Pool, text: &str) -> Result<Judged, String> {
    let manifest = specialist.manifest();
    let (Some(schema), Some(scores)) = (specialist.schema(), &manifest.scores) else {
        return Err(format!("specialist `{}` has no schema", manifest.name));
    };
    let readings = specialist.read(encoder, pool, &[text]).unwrap_or_else(|| Ok(Vec::new()));
    let reading = readings.map_err(|error| error.to_string())?.pop();
    let reading = reading.ok_or_else(|| format!("specialist `{}` read nothing", manifest.name))?;
    let answer = specialist.answer_of(&reading);
    Ok(Judged {
        label: answer.label,
        score: answer.score,
        threshold: answer.threshold,
        accepted: answer.accepted,
        stage: answer.stage,
        extracted: Some(Extracted {
            fields: reading.evidence(schema, scores, &manifest.inputs, text),
            n_tokens: reading.n_tokens as u64,
        }),
    })
}
