//! What does a local teacher say of an answer's tokens? Rows with their gold answers in; the same rows with the teacher's shares out.
//!
//! **Question:** which tokens would the teacher have written where the gold answer stands? **In:** a decoder, with an adapter or not; prompts and
//! answers in the student's ids. **Out:** of each answer token the teacher's [`TOP`] likeliest at the lesson's temperature. **Absent:** the loss
//! ([`objective::distil`](crate::objective::distil)), teachers behind an API (they give no logits: `metier dataset label`).
//!
//! The teacher reads the student's ids as they are. So its vocabulary must be the student's, id by id; another is refused.

use std::sync::Arc;

use metier_kernels::Pool;
use metier_model::{
    Adapter, Decoder, DecoderError, Digest, Progress, Specialist, TokenId, Tokenizer, Unit,
    specialist::manifest::TeacherRecord,
};

use super::lora::Row;
use crate::objective::distil::Soft;

/// A teacher at hand.
#[derive(Clone)]
pub enum Teacher {
    /// A specialist that tells labels, or that writes with the decoder that is taught.
    Specialist(Arc<Specialist>),
    /// A decoder.
    Decoder(Arc<Decoder>),
}

/// What a teacher says of the training rows of a classification, in their order.
pub struct Lesson {
    /// Of each row, all labels at the lesson's temperature.
    pub soft: Vec<Soft>,
    /// What that weighs, 0..=1: the gold label's is what is left.
    pub weights: Vec<f32>,
    /// What logits are divided by.
    pub temperature: f32,
    /// Who it was.
    pub record: TeacherRecord,
}

/// Tokens that a teacher names: with SmolLM2 at temperature 1 they hold nearly all of the probability, and a row of the vocabulary would be 200 KB.
pub const TOP: usize = 64;

/// A teacher cannot teach.
#[derive(Debug, thiserror::Error)]
pub enum TeachError {
    /// Ids do not mean the same.
    #[error(
        "`{teacher}` cannot teach `{student}` by its logits: their tokenizers differ ({teacher_digest} against {student_digest}), first at token {id}; \
         take a decoder of the same family, or its answers (`metier dataset label`)"
    )]
    Tokenizer {
        /// The teacher.
        teacher: String,
        /// The student.
        student: String,
        /// Digest of the teacher's vocabulary.
        teacher_digest: String,
        /// Digest of the student's vocabulary.
        student_digest: String,
        /// The first token that is not the same, or that one of them lacks.
        id: TokenId,
    },
    /// The teacher does not take a row.
    #[error("the teacher does not take training row {idx}")]
    Row {
        /// Its index.
        idx: usize,
        /// Why.
        #[source]
        source: DecoderError,
    },
    /// It cannot teach this.
    #[error("`{teacher}` cannot teach this task: {why}")]
    Unfit {
        /// The teacher.
        teacher: String,
        /// What is missing.
        why: String,
    },
}

/// Do two vocabularies have the same tokens under the same ids?
///
/// # Errors
///
/// Names the first that differs.
pub fn check(teacher: &Decoder, student: &Decoder) -> Result<Digest, TeachError> {
    let (theirs, ours) = (teacher.tokenizer(), student.tokenizer());
    let (theirs_digest, ours_digest) = (theirs.digest(), ours.digest());
    if theirs_digest == ours_digest {
        return Ok(ours_digest);
    }
    let is_other = |id: &u32| {
        let of = |tokenizer: &Tokenizer| {
            let id = TokenId(*id);
            ((id.0 as usize) < tokenizer.vocabulary())
                .then(|| (tokenizer.bytes_of(id).to_vec(), tokenizer.is_special(id)))
        };
        of(theirs) != of(ours)
    };
    let most = theirs.vocabulary().max(ours.vocabulary()) as u32;
    Err(TeachError::Tokenizer {
        teacher: teacher.base().name.clone(),
        student: student.base().name.clone(),
        teacher_digest: theirs_digest.short().to_string(),
        student_digest: ours_digest.short().to_string(),
        id: TokenId((0..most).find(is_other).unwrap_or(most)),
    })
}

/// Asks the teacher about every answer token of every row.
///
/// # Errors
///
/// Where it does not take a row.
pub fn teach(
    pool: &Pool,
    teacher: &Decoder,
    adapter: Option<&Adapter>,
    rows: &mut [Row],
    temperature: f32,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(), TeachError> {
    let (vocabulary, total) = (teacher.tokenizer().vocabulary(), Some(rows.len() as u64));
    for (idx, row) in rows.iter_mut().enumerate() {
        progress(Progress { stage: "asking the teacher", done: idx as u64, total, unit: Unit::Rows });
        let ids: Vec<TokenId> = row.prompt.iter().chain(&row.answer).copied().collect();
        let logits = teacher.logits_with(pool, &ids, adapter).map_err(|source| TeachError::Row { idx, source })?;
        // The row before an answer token says it. Rows of a table may be filled up with ids that no text has.
        let said = logits.iter().skip(row.prompt.len().saturating_sub(1)).take(row.answer.len());
        row.soft = said.map(|z| Soft::of(pool.isa(), &z[..vocabulary.min(z.len())], temperature, TOP)).collect();
    }
    Ok(())
}
