//! An encoder tuned for a rung, whatever its rows are labelled with: does it end in time, which layers come out, and what do they make of all
//! rows?

use std::{sync::Arc, time::Duration};

use metier_model::{
    Digest, Encoder, Progress,
    specialist::{
        EncoderFile,
        manifest::{Stage, TuningRecord},
    },
};

use super::{Embeddings, Run, SkippedRung, decimal};
use crate::{
    craft::{
        checkpoint::Keeper,
        encoder::{self, Gold, Recipe, Rows, TuneError, Tuner},
        teaching::Lesson,
    },
    data::Part,
};

/// What a checkpoint of a tuned encoder is called.
pub const ENCODER_CHECKPOINT: &str = "encoder";

/// What is tuned on which rows.
pub(crate) struct Subject<'a> {
    pub(crate) encoder: &'a Encoder,
    pub(crate) recipe: &'a Recipe,
    /// By part.
    pub(crate) texts: &'a [Vec<&'a str>; 4],
    /// Of training and of validation rows.
    pub(crate) gold: [Gold<'a>; 2],
    pub(crate) n_classes: usize,
    pub(crate) lesson: Option<&'a Lesson>,
}

/// What came of it.
pub(crate) enum Outcome {
    Layers(Box<Layers>),
    /// There was no time for it.
    Skipped(SkippedRung),
}

/// A tuned encoder.
pub(crate) struct Layers {
    pub(crate) file: EncoderFile,
    /// Of all rows: by exactly what ships, numbers in 16 bits, in the form that this base is kept in, through the code that serves.
    pub(crate) embeddings: Embeddings,
    pub(crate) record: TuningRecord,
}

impl Subject<'_> {
    /// Tunes, if that is predicted to end in time; goes on where an earlier run of the same plan was killed.
    pub(crate) fn tune(&self, run: &Run<'_>, progress: &mut dyn FnMut(Progress<'_>)) -> Result<Outcome, TuneError> {
        let Self { encoder, recipe, texts, gold, .. } = self;
        let rows = |part: Part, gold| Rows { texts: &texts[part as usize], gold };
        let (train, validation) = (rows(Part::Train, gold[0]), rows(Part::Validation, gold[1]));
        let mut tuner = Tuner::new(encoder, train, validation, self.n_classes, recipe, run.seed)?;
        if let Some(lesson) = self.lesson {
            tuner.teach(lesson);
        }
        let tuning = encoder::Run { pool: run.pool, seed: run.seed, clock: run.clock, deadline: run.deadline };
        if let Some((store, task)) = run.keeps {
            tuner.keep(Keeper::new(store, task, ENCODER_CHECKPOINT, self.plan(run, [train, validation])));
        }
        // What was begun once goes on: whether it fits was decided then.
        if !tuner.has_begun() {
            let (needed, left) = (tuner.probe(&tuning), run.deadline.saturating_sub((run.clock)()));
            if needed > left {
                let (needed_seconds, left_seconds) = (needed.as_secs_f64(), left.as_secs_f64());
                return Ok(Outcome::Skipped(SkippedRung {
                    name: Stage::Tuned.name().to_owned(),
                    needed_seconds,
                    left_seconds,
                }));
            }
        }
        let tuned = tuner.learn(&tuning, progress, &mut |_| ())?;
        let file = EncoderFile(Arc::new(tuned.file));
        let served = encoder.tuned(&file.0)?;
        let mut embeddings = Embeddings::default();
        for part in Part::ALL {
            embeddings[part as usize] = served.embed_all(run.pool, &texts[part as usize], progress)?;
        }
        let record = TuningRecord {
            epochs: tuned.epochs.len() as u64,
            best_epoch: tuned.best as u64,
            batch_rows: recipe.batch_rows as u64,
            learning_rate: decimal(recipe.learning_rate),
            dropout: decimal(recipe.dropout),
            smoothing: decimal(recipe.smoothing),
            r_drop: decimal(recipe.r_drop),
            contrast: decimal(recipe.contrast),
        };
        Ok(Outcome::Layers(Box::new(Layers { file, embeddings, record })))
    }

    /// How long all epochs would take, by about a second of steps that are thrown away.
    pub(crate) fn foresee(&self, run: &Run<'_>) -> Result<Duration, TuneError> {
        let rows = |part: Part, gold| Rows { texts: &self.texts[part as usize], gold };
        let (train, validation) = (rows(Part::Train, self.gold[0]), rows(Part::Validation, self.gold[1]));
        let mut tuner = Tuner::new(self.encoder, train, validation, self.n_classes, self.recipe, run.seed)?;
        Ok(tuner.probe(&encoder::Run { pool: run.pool, seed: run.seed, clock: run.clock, deadline: run.deadline }))
    }

    /// Everything that a tuned encoder's numbers hang on.
    fn plan(&self, run: &Run<'_>, rows: [Rows<'_>; 2]) -> Digest {
        let (base, recipe) = (self.encoder.base().digest, self.recipe);
        let mut text = format!("encoder 1\n{base}\n{recipe:?}\n{}\n{}\n", run.seed, run.pool.tier());
        if let Some(Lesson { record, .. }) = self.lesson {
            text += &format!("{record:?}\n");
        }
        for rows in rows {
            for (at, text_of_row) in rows.texts.iter().enumerate() {
                let label = match rows.gold {
                    Gold::Classes(classes) => classes[at].to_string(),
                    Gold::Sets(sets) => format!("{:?}", sets[at]),
                };
                text += &format!("{} {label}\n", Digest::of(text_of_row.as_bytes()));
            }
        }
        Digest::of(text.as_bytes())
    }
}
