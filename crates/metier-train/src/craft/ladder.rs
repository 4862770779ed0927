//! Make every rung, then take the smallest that is good enough.
//!
//! Settings of a rung are chosen by the task's metric on validation rows from the small fixed grids below (ties: the first, which
//! regularises more). Between rungs the paired score test of `proof::paired` decides, again on validation rows: a smaller rung
//! is taken only if it is shown to be less than `target.margin` behind the best; "cannot tell" keeps the better one.

pub(crate) mod decoding;
pub(crate) mod tuning;

use std::{borrow::Cow, sync::Arc, time::Duration};

use metier_kernels::Pool;
use metier_model::{
    BaseId, Decoder, Digest, Encoder, Progress, Unit,
    features::{Features, SparseRow},
    head::{LinearHead, max_features},
    pairs::PairModel,
    proof::{NonInferiority, Paired, Verdict},
    specialist::{
        AdapterFiles, EncoderFile,
        manifest::{RungRecord, Stage, TeacherRecord, encoder_text},
    },
};
use serde::{Deserialize, Serialize};

use self::{
    decoding::Decoded,
    tuning::{Outcome, Subject},
};
pub use self::{decoding::remove_decoder_checkpoints, tuning::ENCODER_CHECKPOINT};
use super::{
    decoder::{self, Influence},
    encoder::{self, Gold, TuneError},
    fused::{self, Maker, Whole},
    linear,
    pair::{self, Blend, Pairs},
    teaching::Lesson,
};
use crate::{
    data::{Part, Splits, task::Metric, task::Target},
    eval::{calibrate::predicted, metrics},
};

/// Training rows that an n-gram must stand in to be kept.
pub(crate) const MIN_FEATURE_ROWS: u32 = 2;
pub(super) const LINEAR_GRID: [Path; 1] = [Path { embedding_scale: 0.0, c: &[0.3, 1.0, 3.0] }];
pub(super) const HEAD_GRID: [Path; 1] = [Path { embedding_scale: 1.0, c: &[0.1, 0.3, 1.0, 3.0] }];
pub(super) const BOTH_GRID: [Path; 2] =
    [Path { embedding_scale: 1.0, c: &[0.1, 0.3, 1.0] }, Path { embedding_scale: 2.0, c: &[0.1, 0.3, 1.0] }];

/// Vectors that were tuned lie far apart already: more weight and less regularisation do not help.
pub(super) const TUNED_GRID: [Path; 2] =
    [Path { embedding_scale: 1.0, c: &[0.03, 0.1, 0.3] }, Path { embedding_scale: 3.0, c: &[0.03, 0.1, 0.3] }];

/// Vectors of a network that was tuned, alone: the same.
const VECTOR_GRID: [Path; 1] = [Path { embedding_scale: 1.0, c: &[0.03, 0.1, 0.3, 1.0, 3.0] }];

/// One scale of the embedding with rising C: each starts where the one before ended.
pub(super) struct Path {
    pub(super) embedding_scale: f64,
    pub(super) c: &'static [f64],
}

/// A rung that was made.
pub struct Rung {
    /// Which.
    pub stage: Stage,
    /// The classifier as it would ship, int8 weights included.
    pub head: LinearHead,
    /// Its settings and validation figures.
    pub record: RungRecord,
    /// Margins of the validation rows.
    pub validation: Vec<Vec<f32>>,
    /// Time spent on all its settings; for a tuned encoder all of it, else embedding not included.
    pub seconds: f64,
    /// What it alone reads, where it does.
    pub own: Option<Own>,
}

impl Rung {
    /// What it reads beside n-grams: its own, else the frozen encoder's vectors.
    pub fn embeddings<'a>(&'a self, frozen: Option<&'a Embeddings>) -> Option<&'a Embeddings> {
        self.own.as_ref().map(|own| &own.embeddings).or(frozen)
    }
}

/// What one rung alone reads.
#[derive(Default)]
pub struct Own {
    /// The encoder that was tuned for it.
    pub file: Option<EncoderFile>,
    /// What compares its inputs.
    pub pairs: Option<Arc<PairModel>>,
    /// The decoder's deltas that were tuned for it, and the layers that it keeps.
    pub decoder: Option<OwnDecoder>,
    /// Whether it reads the frozen encoder's vectors behind its own.
    pub reads_base: bool,
    /// What the encoder makes of every row, and behind it what the comparison makes of it, or what the frozen encoder does; or what the decoder
    /// makes of it, and behind it the frozen encoder.
    pub embeddings: Embeddings,
}

/// A decoder as one rung runs it.
pub struct OwnDecoder {
    /// Its deltas.
    pub files: AdapterFiles,
    /// Which decoder.
    pub base: BaseId,
    /// A point of the curve of depths.
    pub depth: Depth,
}

impl OwnDecoder {
    /// The kept layers as manifests have them: empty where all are kept.
    pub fn kept_layers(&self) -> Vec<usize> {
        kept_layers(&self.depth.layers, self.depth.of)
    }
}

fn kept_layers(layers: &[usize], of: usize) -> Vec<usize> {
    if layers.len() == of { Vec::new() } else { layers.to_vec() }
}

/// A point of the curve of depths: what some of a decoder's layers cost, and what is lost without the others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Depth {
    /// Name of the decoder, where more than one was tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// The layers that run, ascending.
    pub layers: Vec<usize>,
    /// Layers of the decoder.
    pub of: usize,
    /// Texts read a second by the decoder, eight at a time, on this machine and beside whatever else ran.
    pub rows_a_second: f64,
    /// The same as a multiple of all layers' speed.
    pub speed: f64,
    /// Bytes of keys and values a token.
    pub kv_bytes_a_token: u64,
    /// Bytes of the deltas as they are served.
    pub adapter_bytes: u64,
    /// Paired comparison with all layers on validation rows, of heads on the decoder's row alone; absent for all layers themselves.
    pub against_all: Option<NonInferiority>,
    /// Epochs that were trained at this depth.
    pub epochs: Vec<decoder::EpochLog>,
    /// What each layer does for training rows at this depth; weighed for all layers alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub influence: Vec<Influence>,
    /// This is the rung that was taken.
    pub is_chosen: bool,
}

impl Depth {
    /// What its rung is called: with the decoder's name where more than one was tried, and with the number of layers where some are left out.
    pub fn rung_name(&self, stage: Stage) -> String {
        let name = on_base(stage, self.base.as_deref());
        if self.layers.len() < self.of { format!("{name}, {} layers", self.layers.len()) } else { name }
    }
}

/// What a rung is called over one of several bases.
fn on_base(stage: Stage, base: Option<&str>) -> String {
    base.map_or_else(|| stage.name().to_owned(), |base| format!("{} on {base}", stage.name()))
}

/// How a decoder's deltas were trained with all its layers.
pub struct DecoderLog {
    /// Which decoder's.
    pub base: Digest,
    /// What was planned.
    pub plan: decoder::Plan,
    /// Steps and epochs.
    pub trained: decoder::Trained,
    /// Seconds of it.
    pub seconds: f64,
}

/// A rung that was not made for lack of time.
#[derive(Clone, Debug, PartialEq)]
pub struct SkippedRung {
    /// Which.
    pub name: String,
    /// Time that it was predicted to take.
    pub needed_seconds: f64,
    /// What was left of the budget.
    pub left_seconds: f64,
}

/// All rungs, smallest first, and which was taken.
pub struct Ladder {
    /// The n-grams that the rungs share.
    pub features: Features,
    /// At least one.
    pub rungs: Vec<Rung>,
    /// Index of the rung taken.
    pub chosen: usize,
    /// True if the time budget ended a grid early.
    pub out_of_time: bool,
    /// Rungs that were predicted not to end in time.
    pub skipped: Vec<SkippedRung>,
    /// Rungs that this base or these rows do not allow, and why.
    pub not_made: Vec<(String, String)>,
    /// How decoders were tuned, where some were.
    pub decoders: Vec<DecoderLog>,
    /// Who taught the training rows, where somebody did.
    pub teacher: Option<TeacherRecord>,
}

/// An error with its causes.
pub(super) fn whole_text(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// One embedding a row, by part.
pub type Embeddings = [Vec<Vec<f32>>; 4];

/// What the ladder needs to know about the run.
pub struct Run<'a> {
    /// Threads.
    pub pool: &'a Pool,
    /// Seed of permutations and resamples.
    pub seed: u64,
    /// Time since the build began.
    pub clock: &'a dyn Fn() -> Duration,
    /// When to stop trying settings.
    pub deadline: Duration,
    /// Where a tuned encoder's checkpoint lies: the store, and the name of the task.
    pub keeps: Option<(&'a std::path::Path, &'a str)>,
}

/// What the ladder stands on.
#[derive(Clone, Copy)]
pub struct Ground<'a> {
    /// Rows by part.
    pub splits: &'a Splits,
    /// Names of the inputs; of two or more it is looked at how they agree.
    pub inputs: &'a [String],
    /// Vectors of the frozen encoder; without them only `linear` runs.
    pub embeddings: Option<&'a Embeddings>,
    /// The encoder, where its layers can be tuned.
    pub encoder: Option<&'a Encoder>,
    /// Decoders that can be tuned, smallest first.
    pub decoders: &'a [Arc<Decoder>],
    /// The lowest rung that is made.
    pub from: Stage,
    /// The highest rung that may run.
    pub up_to: Stage,
    /// How an encoder is tuned.
    pub tuning: &'a encoder::Recipe,
    /// How a decoder is tuned.
    pub decoding: &'a decoder::Recipe,
    /// What a teacher says of the training rows.
    pub lesson: Option<&'a Lesson>,
    /// May a rung read n-grams? Without them the rungs `linear` and `both` are not made.
    pub ngrams: bool,
}

/// Makes the rungs and chooses.
///
/// # Errors
///
/// Where an encoder was to be tuned and could not be, other than for lack of time.
pub fn climb(
    ground: Ground<'_>,
    target: &Target,
    run: &Run<'_>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Ladder, TuneError> {
    let Ground { splits, inputs, embeddings, encoder, decoders, from, up_to, tuning, decoding, lesson, ngrams } =
        ground;
    let n_classes = splits.labels.len();
    let train = splits.part(Part::Train);
    let texts = || train.iter().map(|example| example.row.text.as_str());
    let features = Features::fit(texts(), MIN_FEATURE_ROWS, max_features(n_classes));
    let sparse: Vec<SparseRow> = texts().map(|text| features.apply(text)).collect();
    let classes: Vec<usize> = train.iter().map(|example| example.class).collect();
    let shop = Shop {
        splits,
        inputs,
        features: &features,
        sparse: &sparse,
        classes: &classes,
        target,
        run,
        lesson,
        ngrams,
        frozen: embeddings,
    };

    let plans: Vec<(Stage, &[Path])> =
        [(Stage::Linear, &LINEAR_GRID[..]), (Stage::Head, &HEAD_GRID), (Stage::Both, &BOTH_GRID)]
            .into_iter()
            .filter(|(stage, _)| (!stage.reads_embedding() || embeddings.is_some()) && (from..=up_to).contains(stage))
            .filter(|(stage, _)| ngrams || !stage.reads_ngrams())
            .collect();
    let mut steps = Steps { done: 0, total: plans.iter().flat_map(|(_, paths)| *paths).map(|path| path.c.len()).sum() };
    let (mut rungs, mut out_of_time, mut skipped) = (Vec::new(), false, Vec::new());
    let (mut not_made, mut logs) = (Vec::new(), Vec::new());
    let compares = inputs.len() > 1 && n_classes <= pair::MAX_CLASSES;
    let mut pairs = None;
    for (stage, paths) in plans {
        let (rung, cut) = shop.make(stage, paths, embeddings, &mut steps, progress);
        out_of_time |= cut;
        rungs.push(rung);
        if stage == Stage::Linear && compares && up_to >= Stage::Pair {
            let start = (run.clock)();
            let made = pair::make(inputs, splits, run, progress);
            rungs.push(shop.pair(&made, ((run.clock)() - start).as_secs_f64()));
            pairs = Some(made);
        }
    }
    let tunes = (from..=up_to).contains(&Stage::Tuned) && embeddings.is_some();
    if let Some(encoder) = encoder.filter(|_| tunes) {
        match shop.tune(encoder, tuning, shop.addends(&rungs).as_ref(), pairs.as_ref(), progress) {
            Ok(Tuned::Rung(rung)) => rungs.push(*rung),
            Ok(Tuned::Skipped(rung)) => skipped.push(rung),
            // The rungs below it stand.
            Err(error) => not_made.push((Stage::Tuned.name().to_owned(), whole_text(&error))),
        }
    }
    for decoder in decoders.iter().filter(|_| up_to >= Stage::Decoder) {
        let named = (decoders.len() > 1).then(|| decoder.base().name.as_str());
        match shop.decode(decoder, named, decoding, shop.addends(&rungs).as_ref(), progress) {
            Ok(Decoded::Rungs(more, trained)) => {
                rungs.extend(more);
                logs.push(trained);
            }
            Ok(Decoded::Skipped(rung)) => skipped.push(rung),
            // The rungs below it stand.
            Err(error) => not_made.push((on_base(Stage::Decoder, named), whole_text(&error))),
        }
    }
    if rungs.is_empty() {
        // There is always something to answer with, and to compare with.
        let mut steps = Steps { done: 0, total: LINEAR_GRID.iter().map(|path| path.c.len()).sum() };
        let shop = Shop { ngrams: true, ..shop };
        rungs.push(shop.make(Stage::Linear, &LINEAR_GRID, None, &mut steps, progress).0);
    }
    let gold: Vec<usize> = splits.part(Part::Validation).iter().map(|example| example.class).collect();
    let chosen = choose(&mut rungs, &gold, n_classes, target, run.seed);
    for (at, rung) in rungs.iter_mut().enumerate() {
        if let Some(own) = rung.own.as_mut().and_then(|own| own.decoder.as_mut()) {
            own.depth.is_chosen = at == chosen;
        }
    }
    Ok(Ladder {
        features,
        rungs,
        chosen,
        out_of_time,
        skipped,
        not_made,
        decoders: logs,
        teacher: lesson.map(|lesson| lesson.record.clone()),
    })
}

struct Steps {
    done: usize,
    total: usize,
}

enum Tuned {
    Rung(Box<Rung>),
    Skipped(SkippedRung),
}

/// Everything that rungs share.
struct Shop<'a> {
    splits: &'a Splits,
    inputs: &'a [String],
    features: &'a Features,
    sparse: &'a [SparseRow],
    classes: &'a [usize],
    target: &'a Target,
    run: &'a Run<'a>,
    lesson: Option<&'a Lesson>,
    ngrams: bool,
    /// Vectors of the frozen encoder.
    frozen: Option<&'a Embeddings>,
}

/// What may be added to a head on a network's vectors: a head on n-grams, and one on the frozen encoder's vectors with these.
struct Addends<'r> {
    ngrams: &'r Rung,
    frozen: Option<(&'r Rung, &'r Embeddings)>,
}

impl Shop<'_> {
    /// A linear model on what `stage` reads, with the best of its settings; and whether time ended before all were tried.
    fn make(
        &self,
        stage: Stage,
        paths: &[Path],
        embeddings: Option<&Embeddings>,
        steps: &mut Steps,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> (Rung, bool) {
        let (run, n_classes) = (self.run, self.splits.labels.len());
        let start = (run.clock)();
        let dense: Option<Vec<&[f32]>> =
            embeddings.map(|all| all[Part::Train as usize].iter().map(Vec::as_slice).collect());
        let validation = Held::of(self.splits, Part::Validation, self.features, embeddings);
        let mut best: Option<Rung> = None;
        let mut out_of_time = false;
        for path in paths {
            let reads_ngrams = stage.reads_ngrams() && self.ngrams;
            let rows = linear::Rows {
                sparse: reads_ngrams.then_some(self.sparse),
                n_features: if reads_ngrams { self.features.len() } else { 0 },
                dense: dense.as_deref().filter(|_| stage.reads_embedding()),
                dense_scale: path.embedding_scale as f32,
                targets: linear::Targets::One(self.classes),
                n_classes,
            };
            let mut solver = linear::Solver::new(rows, run.seed);
            for &c in path.c {
                if best.is_some() && (run.clock)() > run.deadline {
                    out_of_time = true;
                    break;
                }
                let (done, total) = (steps.done as u64, Some(steps.total as u64));
                progress(Progress { stage: "training rungs", done, total, unit: Unit::Steps });
                steps.done += 1;
                let weights = solver.solve(c as f32, run.pool);
                let head = LinearHead::quantise(weights.bias, &weights.sparse, weights.dense);
                let margins = validation.margins(&head);
                let gold = &validation.classes;
                let (head, margins) = self.settled(head, margins, gold);
                let measured = metrics::measure(self.target.metric, &calls(&margins), gold, n_classes, run.seed);
                if best.as_ref().is_none_or(|best| measured.value > best.record.validation) {
                    let record = RungRecord {
                        c,
                        embedding_scale: path.embedding_scale,
                        ..RungRecord::new(stage, measured.value, measured.interval)
                    };
                    best = Some(Rung { stage, head, record, validation: margins, seconds: 0.0, own: None });
                }
            }
        }
        let mut rung = best.expect("a grid is not empty");
        rung.seconds = ((run.clock)() - start).as_secs_f64();
        (rung, out_of_time)
    }

    /// A head that calls a label where that is best for its F1, where that is the metric.
    fn settled(&self, head: LinearHead, margins: Vec<Vec<f32>>, gold: &[usize]) -> (LinearHead, Vec<Vec<f32>>) {
        let metric = self.target.metric;
        if !matches!(metric, Metric::F1 { .. }) {
            return (head, margins);
        }
        let makers = [margins.as_slice()];
        let blend = Blend::fit(&makers, gold, self.splits.labels.len(), metric);
        let settled = (0..gold.len()).map(|row| blend.margins(&makers, row)).collect();
        (blend.head(&head, &[]), settled)
    }

    /// The rung of the trees alone.
    fn pair(&self, pairs: &Pairs, seconds: f64) -> Rung {
        let (n_classes, metric) = (self.splits.labels.len(), self.target.metric);
        let gold: Vec<usize> = self.splits.part(Part::Validation).iter().map(|example| example.class).collect();
        let margins = pairs.by_maker(Part::Validation, n_classes);
        let makers = [margins[0].as_slice(), margins[1].as_slice()];
        let blend = Blend::fit(&makers, &gold, n_classes, metric);
        let tail = pair::tail(&pairs.outputs_each(), &blend.weights, n_classes);
        let validation: Vec<Vec<f32>> = (0..gold.len()).map(|row| blend.margins(&makers, row)).collect();
        let measured = metrics::measure(metric, &calls(&validation), &gold, n_classes, self.run.seed);
        Rung {
            stage: Stage::Pair,
            head: LinearHead::quantise(blend.bias, &[], tail),
            record: RungRecord::new(Stage::Pair, measured.value, measured.interval),
            validation,
            seconds,
            own: Some(Own {
                pairs: Some(Arc::clone(&pairs.model)),
                embeddings: pairs.outputs.clone(),
                ..Own::default()
            }),
        }
    }

    /// A tuned rung that also reads how its inputs agree.
    fn with_pairs(&self, rung: &mut Rung, pairs: &Pairs) {
        let (n_classes, metric) = (self.splits.labels.len(), self.target.metric);
        let gold: Vec<usize> = self.splits.part(Part::Validation).iter().map(|example| example.class).collect();
        let margins = pairs.by_maker(Part::Validation, n_classes);
        let makers = [rung.validation.as_slice(), margins[0].as_slice(), margins[1].as_slice()];
        let blend = Blend::fit(&makers, &gold, n_classes, metric);
        rung.head = blend.head(&rung.head, &pairs.outputs_each());
        rung.validation = (0..gold.len()).map(|row| blend.margins(&makers, row)).collect();
        let measured = metrics::measure(metric, &calls(&rung.validation), &gold, n_classes, self.run.seed);
        (rung.record.validation, rung.record.interval) = (measured.value, measured.interval);
        let own = rung.own.as_mut().expect("a tuned rung has an encoder of its own");
        own.pairs = Some(Arc::clone(&pairs.model));
        for (part, outputs) in own.embeddings.iter_mut().zip(&pairs.outputs) {
            part.iter_mut().zip(outputs).for_each(|(row, outputs)| row.extend(outputs));
        }
    }

    /// What may be added to a head on a network's vectors. Nothing where it shall read these alone; the F1 of one label has a bias of its own,
    /// which a sum would have to be given anew.
    fn addends<'r>(&'r self, rungs: &'r [Rung]) -> Option<Addends<'r>> {
        let settles = matches!(self.target.metric, Metric::F1 { .. });
        let rung = |stage: Stage| rungs.iter().find(|rung| rung.stage == stage);
        let ngrams = rung(Stage::Linear).filter(|_| self.ngrams && !settles)?;
        Some(Addends { ngrams, frozen: rung(Stage::Head).zip(self.frozen) })
    }

    /// The rung as a sum of `vectors`, which reads its network's vectors alone, and of what may be added, where validation rows say that
    /// this is better; and whether they do.
    fn fused(&self, mut rung: Rung, vectors: (&LinearHead, &[Vec<f32>]), addends: &Addends<'_>) -> (Rung, bool) {
        fn lend(rung: &Rung) -> Maker<'_> {
            Maker { head: &rung.head, validation: &rung.validation }
        }
        let reads_ngrams = rung.stage.has_ngrams(&rung.head);
        let Some(own) = rung.own.as_mut() else { return (rung, false) };
        let gold: Vec<usize> = self.splits.part(Part::Validation).iter().map(|example| example.class).collect();
        let vectors = Maker { head: vectors.0, validation: vectors.1 };
        let whole = Whole { validation: &rung.validation, reads_ngrams };
        let frozen = addends.frozen.map(|(head, _)| lend(head));
        let Some(sum) = fused::fuse(whole, vectors, lend(addends.ngrams), frozen, &gold) else {
            return (rung, false);
        };
        let frozen = addends.frozen.filter(|_| sum.frozen.is_some()).map(|(_, frozen)| frozen);
        let followed = frozen.map(|frozen| {
            Part::ALL.map(|part| {
                let rows = own.embeddings[part as usize].iter().zip(&frozen[part as usize]);
                rows.map(|(row, behind)| [row.as_slice(), behind].concat()).collect::<Vec<_>>()
            })
        });
        let read = followed.as_ref().unwrap_or(&own.embeddings);
        let validation = Held::of(self.splits, Part::Validation, self.features, Some(read)).margins(&sum.head);
        let (n_classes, metric) = (self.splits.labels.len(), self.target.metric);
        let measured = metrics::measure(metric, &calls(&validation), &gold, n_classes, self.run.seed);
        // Log-loss is of the frequent labels; where rare ones count as much, it does not decide alone.
        if metric == Metric::MacroF1 && measured.value < rung.record.validation {
            return (rung, false);
        }
        if let Some(followed) = followed {
            (own.reads_base, own.embeddings) = (true, followed);
        }
        let record = RungRecord {
            validation: measured.value,
            interval: measured.interval,
            ngram_weight: sum.ngrams,
            frozen_weight: sum.frozen,
            ..rung.record
        };
        (Rung { head: sum.head, record, validation, ..rung }, true)
    }

    /// The rung whose encoder is tuned, if it is predicted to end in time.
    fn tune(
        &self,
        encoder: &Encoder,
        recipe: &encoder::Recipe,
        addends: Option<&Addends<'_>>,
        pairs: Option<&Pairs>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Tuned, TuneError> {
        let start = (self.run.clock)();
        let texts = Part::ALL.map(|part| {
            let rows = self.splits.part(part).iter();
            rows.map(|example| match pairs {
                Some(_) => encoder_text(self.inputs, &example.row.text),
                None => Cow::Borrowed(example.row.text.as_str()),
            })
            .collect::<Vec<_>>()
        });
        let texts = texts.each_ref().map(|part| part.iter().map(AsRef::as_ref).collect::<Vec<&str>>());
        let validation: Vec<usize> = self.splits.part(Part::Validation).iter().map(|example| example.class).collect();
        let recipe = encoder::Recipe {
            metric: self.target.metric,
            // Of a pair the second half is as needed as the first.
            max_tokens: if pairs.is_some() { encoder.window_tokens() } else { recipe.max_tokens },
            ..recipe.clone()
        };
        let subject = Subject {
            encoder,
            recipe: &recipe,
            texts: &texts,
            gold: [Gold::Classes(self.classes), Gold::Classes(&validation)],
            n_classes: self.splits.labels.len(),
            lesson: self.lesson,
        };
        let layers = match subject.tune(self.run, progress)? {
            Outcome::Layers(layers) => *layers,
            Outcome::Skipped(rung) => return Ok(Tuned::Skipped(rung)),
        };
        let mut steps = Steps { done: 0, total: TUNED_GRID.iter().map(|path| path.c.len()).sum() };
        let (mut rung, _) = self.make(Stage::Tuned, &TUNED_GRID, Some(&layers.embeddings), &mut steps, progress);
        let vectors = addends.filter(|_| pairs.is_none()).map(|addends| {
            let mut steps = Steps { done: 0, total: VECTOR_GRID.iter().map(|path| path.c.len()).sum() };
            let embeddings = Some(&layers.embeddings);
            (addends, self.make(Stage::Head, &VECTOR_GRID, embeddings, &mut steps, progress).0)
        });
        rung.own = Some(Own { file: Some(layers.file), embeddings: layers.embeddings, ..Own::default() });
        if let Some((addends, vectors)) = vectors {
            let taken;
            (rung, taken) = self.fused(rung, (&vectors.head, &vectors.validation), addends);
            if taken {
                (rung.record.c, rung.record.embedding_scale) = (vectors.record.c, vectors.record.embedding_scale);
            }
        }
        rung.seconds = ((self.run.clock)() - start).as_secs_f64();
        rung.record.tuning = Some(layers.record);
        // Pairs have trees beside the vectors.
        if let Some(pairs) = pairs {
            self.with_pairs(&mut rung, pairs);
        }
        Ok(Tuned::Rung(Box::new(rung)))
    }
}

/// The number as it was written: 0.1 and not 0.10000000149.
pub(crate) fn decimal(x: f32) -> f64 {
    x.to_string().parse().expect("a number's own text is a number")
}

/// The smallest rung that is non-inferior to the best; notes each comparison in the rung's record.
fn choose(rungs: &mut [Rung], gold: &[usize], n_classes: usize, target: &Target, seed: u64) -> usize {
    let values = rungs.iter().map(|rung| rung.record.validation);
    // The first of equals is the smallest.
    let best =
        values.enumerate().fold((0, f64::MIN), |best, (at, value)| if value > best.1 { (at, value) } else { best }).0;
    let best_calls = calls(&rungs[best].validation);
    let mut chosen = best;
    for at in (0..rungs.len()).rev().filter(|at| *at != best) {
        let these = calls(&rungs[at].validation);
        let (good_enough, test) = non_inferior(target, &these, &best_calls, gold, n_classes, seed);
        rungs[at].record.against_best = test;
        if good_enough && at < best {
            chosen = at;
        }
    }
    chosen
}

/// Whether `candidate` is shown, on the same rows, to be less than the target's margin worse than `reference`; with the paired test where the
/// metric has one.
pub(crate) fn non_inferior(
    target: &Target,
    candidate: &[usize],
    reference: &[usize],
    gold: &[usize],
    n_classes: usize,
    seed: u64,
) -> (bool, Option<NonInferiority>) {
    let (metric, margin) = (target.metric, target.margin);
    match metric {
        Metric::Accuracy | Metric::MicroF1 => {
            let test = compare(candidate, reference, gold, margin);
            (test.verdict == Verdict::NonInferior, Some(test))
        }
        Metric::MacroF1 | Metric::F1 { .. } => {
            (metrics::non_inferior_by_bootstrap(metric, candidate, reference, gold, n_classes, margin, seed), None)
        }
    }
}

fn compare(candidate: &[usize], reference: &[usize], gold: &[usize], margin: f64) -> NonInferiority {
    let right = |calls: &[usize]| calls.iter().zip(gold).map(|(a, b)| a == b).collect::<Vec<bool>>();
    Paired::count(&right(candidate), &right(reference)).non_inferiority(margin)
}

/// The class each row is called.
pub fn calls(margins: &[Vec<f32>]) -> Vec<usize> {
    margins.iter().map(|row| predicted(row)).collect()
}

/// Rows that are held out of training, with their features.
pub struct Held<'a> {
    sparse: Vec<SparseRow>,
    embeddings: Option<&'a [Vec<f32>]>,
    /// Gold classes.
    pub classes: Vec<usize>,
}

impl<'a> Held<'a> {
    /// The rows of one part.
    pub fn of(splits: &Splits, part: Part, features: &Features, embeddings: Option<&'a Embeddings>) -> Self {
        let rows = splits.part(part);
        Self {
            sparse: rows.iter().map(|example| features.apply(&example.row.text)).collect(),
            embeddings: embeddings.map(|all| all[part as usize].as_slice()),
            classes: rows.iter().map(|example| example.class).collect(),
        }
    }

    /// Margins of every row under a head that reads the same features.
    pub fn margins(&self, head: &LinearHead) -> Vec<Vec<f32>> {
        (0..self.sparse.len())
            .map(|at| head.margins(Some(&self.sparse[at]), self.embeddings.map(|all| all[at].as_slice())))
            .collect()
    }
}
