//! The rungs whose head reads a tuned decoder: one a depth, from all layers to few, as far as the time and the paired test let it.

use std::{sync::Arc, time::Duration};

use metier_model::{
    AdapterError, Decoder, Digest, LoraFormat, Progress, Unit,
    engine::KeptLayers,
    proof::Verdict,
    specialist::{
        AdapterFiles,
        manifest::{AdapterRecord, AdapterWeights, Rounded, Stage, encoder_text},
    },
};

use super::{
    Addends, DecoderLog, Depth, Embeddings, Own, OwnDecoder, Run, Rung, Shop, SkippedRung, Steps, VECTOR_GRID, calls,
    compare, decimal, kept_layers, on_base,
};
use crate::{
    craft::{
        checkpoint::{self, Keeper},
        decoder::{self, DecoderTuneError},
        reading::{self, ReadError, Reader},
    },
    data::Part,
    eval::metrics,
};

/// What the checkpoints of a tuned decoder begin with; which decoder's and its depth follow.
const DECODER_CHECKPOINT: &str = "decoder";
/// Texts on which the speed of each depth is measured, and how often.
const SPEED_TEXTS: usize = 64;
const SPEED_ROUNDS: usize = 5;

/// What came of it.
pub(super) enum Decoded {
    /// From few layers to all.
    Rungs(Vec<Rung>, DecoderLog),
    /// There was no time for it.
    Skipped(SkippedRung),
}

/// What a build would plan: epochs and depths that end in the time that is left, by about a second of steps that are thrown away; where not one
/// pass fits, the time that it would take.
pub(crate) fn foresee(
    decoder: &Decoder,
    recipe: &decoder::Recipe,
    texts: &[Vec<&str>; 4],
    classes: &[usize],
    n_classes: usize,
    run: &Run<'_>,
) -> Result<Result<decoder::Plan, Duration>, DecoderTuneError> {
    let train = reading::prompts(decoder, &texts[Part::Train as usize])?;
    if train.len() < 2 {
        return Err(DecoderTuneError::TooFew(train.len(), texts[Part::Validation as usize].len()));
    }
    let mut tuner = decoder::Tuner::new(decoder.network().plain()?, n_classes, recipe, run.seed);
    let tuning = decoder::Run { pool: run.pool, seed: run.seed, clock: run.clock };
    let left = run.deadline.saturating_sub((run.clock)());
    Ok(tuner.plan(&tuning, decoder::Rows { ids: &train, classes }, others(texts), recipe, left))
}

/// Tokens of all rows, about: they are read once more with what was tuned.
fn others(texts: &[Vec<&str>; 4]) -> usize {
    texts.iter().flatten().map(|text| text.len() / 4 + 1).sum()
}

impl Shop<'_> {
    /// The rungs whose head reads a tuned decoder, from few layers to all, if they are predicted to end in time.
    /// `named`: what the decoder is called where it is one of several. `addends`: what is added to each depth where that is better.
    pub(super) fn decode(
        &self,
        decoder: &Arc<Decoder>,
        named: Option<&str>,
        recipe: &decoder::Recipe,
        addends: Option<&Addends<'_>>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Decoded, DecoderTuneError> {
        let (run, start) = (self.run, (self.run.clock)());
        let recipe = &decoder::Recipe { metric: self.target.metric, ..recipe.clone() };
        let texts = Part::ALL.map(|part| {
            let rows = self.splits.part(part).iter();
            rows.map(|example| encoder_text(self.inputs, &example.row.text)).collect::<Vec<_>>()
        });
        let texts = texts.each_ref().map(|part| part.iter().map(AsRef::as_ref).collect::<Vec<&str>>());
        let read = |part: Part| -> Result<_, DecoderTuneError> {
            let classes: Vec<usize> = self.splits.part(part).iter().map(|example| example.class).collect();
            Ok((reading::prompts(decoder, &texts[part as usize])?, classes))
        };
        let (train, validation) = (read(Part::Train)?, read(Part::Validation)?);
        if train.0.len() < 2 || validation.0.is_empty() {
            return Err(DecoderTuneError::TooFew(train.0.len(), validation.0.len()));
        }
        let train = decoder::Rows { ids: &train.0, classes: &train.1 };
        let validation = decoder::Rows { ids: &validation.0, classes: &validation.1 };
        progress(Progress { stage: "reading the decoder's weights", done: 0, total: None, unit: Unit::Steps });
        let n_classes = self.splits.labels.len();
        let mut tuner = decoder::Tuner::new(decoder.network().plain()?, n_classes, recipe, run.seed);
        let tuning = decoder::Run { pool: run.pool, seed: run.seed, clock: run.clock };
        let keeper = |layers: &[usize]| {
            run.keeps.map(|(store, task)| {
                let plan = decoder_plan(decoder, recipe, run, layers, [train, validation]);
                Keeper::new(store, task, &decoder_checkpoint(layers.len(), decoder), plan)
            })
        };
        let of = tuner.net().layers().len();
        let mut first = keeper(tuner.net().layers());
        // What was begun once goes on: what fits was decided then.
        let plan = match first.as_ref().and_then(decoder::Tuner::begun) {
            Some(plan) => plan,
            None => {
                let left = run.deadline.saturating_sub((run.clock)());
                match tuner.plan(&tuning, train, others(&texts), recipe, left) {
                    Ok(plan) => plan,
                    Err(needed) => {
                        let (needed_seconds, left_seconds) = (needed.as_secs_f64(), left.as_secs_f64());
                        return Ok(Decoded::Skipped(SkippedRung {
                            name: on_base(Stage::Decoder, named),
                            needed_seconds,
                            left_seconds,
                        }));
                    }
                }
            }
        };
        let trained =
            tuner.train(&tuning, train, validation, recipe, (&plan, plan.epochs), first.as_mut(), progress)?;
        let seconds = ((run.clock)() - start).as_secs_f64();
        let influence = if plan.depths.is_empty() {
            Vec::new()
        } else {
            progress(Progress { stage: "weighing layers", done: 0, total: None, unit: Unit::Steps });
            tuner.influence(run.pool, train, run.seed)
        };
        let gold = validation.classes;
        let mut rungs: Vec<Rung> = Vec::new();
        let mut all_layers: Option<Vec<usize>> = None;
        let mut readers = Vec::new();
        let mut phase = (trained.clone(), plan.epochs, influence);
        let mut left = plan.depths.iter();
        loop {
            let (trained, planned, influence) = phase;
            let (mut rung, reader, rounded) = self.decoded(decoder, &tuner, &texts, recipe.weights, progress)?;
            // What other heads add would hide what layers do: depths are compared without them.
            let own_calls = calls(&rung.validation);
            if let Some(addends) = addends {
                let (head, margins) = (rung.head.clone(), rung.validation.clone());
                (rung, _) = self.fused(rung, (&head, &margins), addends);
            }
            let layers = tuner.net().layers().to_vec();
            rung.record.adapter = Some(AdapterRecord {
                rank: recipe.lora.r as u64,
                alpha: decimal(recipe.lora.alpha),
                learning_rate: decimal(recipe.learning_rate),
                step_tokens: recipe.step_tokens as u64,
                planned_epochs: planned as u64,
                epochs: trained.epochs.len() as u64,
                best_epoch: trained.best as u64,
                kept_layers: kept_layers(&layers, of),
                canaries: 0,
                rounded,
            });
            rung.seconds = ((run.clock)() - start).as_secs_f64();
            let against_all = all_layers.as_ref().map(|all| compare(&own_calls, all, gold, self.target.margin));
            all_layers.get_or_insert(own_calls);
            if let Some(own) = rung.own.as_mut().and_then(|own| own.decoder.as_mut()) {
                let base = named.map(str::to_owned);
                own.depth =
                    Depth { base, layers, of, against_all, epochs: trained.epochs, influence, ..own.depth.clone() };
            }
            rungs.push(rung);
            readers.push(reader);
            let is_worse = against_all.is_some_and(|test| test.verdict == Verdict::Inferior);
            let Some(&depth) = left.next().filter(|_| !is_worse) else { break };
            tuner.leave_out(run.pool, train, depth, recipe, run.seed, progress);
            let mut keeper = keeper(tuner.net().layers());
            let healed = tuner.train(
                &tuning,
                train,
                validation,
                recipe,
                (&plan, recipe.heal_epochs),
                keeper.as_mut(),
                progress,
            )?;
            phase = (healed, recipe.heal_epochs, Vec::new());
        }
        drop(tuner);
        let texts = &texts[Part::Validation as usize];
        let speeds = speeds(&mut readers, run, &texts[..texts.len().min(SPEED_TEXTS)])?;
        for (rung, speed) in rungs.iter_mut().zip(&speeds) {
            if let Some(own) = rung.own.as_mut().and_then(|own| own.decoder.as_mut()) {
                (own.depth.rows_a_second, own.depth.speed) = (*speed, speed / speeds[0].max(1e-9));
            }
        }
        rungs.reverse();
        let base = decoder.base().digest;
        Ok(Decoded::Rungs(rungs, DecoderLog { base, plan, trained, seconds }))
    }

    /// A linear model on what the decoder, as it is now, makes of all rows; read by the engine that serves, as it will be served.
    fn decoded(
        &self,
        decoder: &Arc<Decoder>,
        tuner: &decoder::Tuner,
        texts: &[Vec<&str>; 4],
        weights: AdapterWeights,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(Rung, Reader, Option<Rounded>), DecoderTuneError> {
        let base = decoder.base().clone();
        let (config, deltas) = tuner.files(&base.name);
        let halves = AdapterFiles { config, weights: Arc::new(deltas) };
        let files = halves.kept_as(weights).map_err(|error| ReadError::from(AdapterError::from(error)))?;
        let kept = KeptLayers::new(tuner.net().layers().to_vec());
        let mut reader = Reader::new(Arc::clone(decoder), &files, kept.clone(), weights.format())?;
        let mut embeddings = Embeddings::default();
        for part in Part::ALL {
            embeddings[part as usize] =
                reader.read_all(self.run.pool, &texts[part as usize], "reading rows with the decoder", progress)?;
        }
        let mut steps = Steps { done: 0, total: VECTOR_GRID.iter().map(|path| path.c.len()).sum() };
        let (mut rung, _) = self.make(Stage::Decoder, &VECTOR_GRID, Some(&embeddings), &mut steps, progress);
        let rounded = match weights {
            AdapterWeights::F16 => None,
            AdapterWeights::Int8 => {
                let mut whole = Reader::new(Arc::clone(decoder), &halves, kept, LoraFormat::F16)?;
                let validation = &texts[Part::Validation as usize];
                let vectors =
                    whole.read_all(self.run.pool, validation, "reading rows with the adapter in 16 bits", progress)?;
                let before: Vec<Vec<f32>> =
                    vectors.iter().map(|vector| rung.head.margins(None, Some(vector.as_slice()))).collect();
                let gold: Vec<usize> = self.splits.part(Part::Validation).iter().map(|example| example.class).collect();
                let n_classes = self.splits.labels.len();
                let measured = metrics::measure(self.target.metric, &calls(&before), &gold, n_classes, self.run.seed);
                let pairs = before.iter().flatten().zip(rung.validation.iter().flatten());
                Some(Rounded {
                    before: measured.value,
                    after: rung.record.validation,
                    max_difference: f64::from(pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)),
                    bytes_before: whole.adapter_bytes as u64,
                    bytes_after: reader.adapter_bytes as u64,
                })
            }
        };
        let cache = decoder.network().config().cache();
        let kv = cache.page_bytes() / metier_model::cache::PAGE_POSITIONS / cache.layers;
        let depth = Depth {
            base: None,
            layers: Vec::new(),
            of: cache.layers,
            rows_a_second: 0.0,
            speed: 1.0,
            kv_bytes_a_token: (kv * tuner.net().layers().len()) as u64,
            adapter_bytes: reader.adapter_bytes as u64,
            against_all: None,
            epochs: Vec::new(),
            influence: Vec::new(),
            is_chosen: false,
        };
        let decoder = Some(OwnDecoder { files, base, depth });
        rung.own = Some(Own { decoder, embeddings, ..Own::default() });
        Ok((rung, reader, rounded))
    }
}

/// Texts read a second at each depth: medians of rounds in which all depths take turns.
fn speeds(readers: &mut [Reader], run: &Run<'_>, texts: &[&str]) -> Result<Vec<f64>, DecoderTuneError> {
    let mut times = vec![Vec::new(); readers.len()];
    for _ in 0..SPEED_ROUNDS {
        for (reader, times) in readers.iter_mut().zip(&mut times) {
            times.push(reader.time(run.pool, texts, run.clock)?);
        }
    }
    let speed = |mut times: Vec<Duration>| {
        times.sort_unstable();
        texts.len() as f64 / times[times.len() / 2].as_secs_f64().max(1e-9)
    };
    Ok(times.into_iter().map(speed).collect())
}

/// What the checkpoint of a depth is called: several decoders keep theirs beside each other.
fn decoder_checkpoint(layers: usize, decoder: &Decoder) -> String {
    format!("{DECODER_CHECKPOINT}-{}-{layers}", decoder.base().digest.short())
}

/// Removes the checkpoints of decoders that were tuned.
pub fn remove_decoder_checkpoints(store: &std::path::Path, task: &str) {
    checkpoint::remove_all(store, task, &format!("{DECODER_CHECKPOINT}-"));
}

/// Everything that a tuned decoder's numbers hang on.
fn decoder_plan(
    decoder: &Decoder,
    recipe: &decoder::Recipe,
    run: &Run<'_>,
    layers: &[usize],
    rows: [decoder::Rows<'_>; 2],
) -> Digest {
    let (base, tier) = (decoder.base().digest, run.pool.tier());
    let mut bytes = format!("decoder 1\n{base}\n{recipe:?}\n{layers:?}\n{}\n{tier}\n", run.seed).into_bytes();
    for (ids, class) in rows.iter().flat_map(|rows| rows.ids.iter().zip(rows.classes)) {
        bytes.extend((ids.len() as u64).to_le_bytes());
        bytes.extend(ids.iter().flat_map(|id| id.0.to_le_bytes()));
        bytes.extend((*class as u64).to_le_bytes());
    }
    Digest::of(&bytes)
}
