//! The rungs of a task whose answers are written, the choice between them, and the proof of what was chosen.

use std::{sync::Arc, time::Duration};

use metier_model::{
    Adapter, AdapterError, Decoder, Digest, LoraFormat, Progress, Specialist, Unit,
    adapter::CONFIG_FILE,
    cache::PAGE_POSITIONS,
    engine::{AdapterId, KeptLayers},
    features::{Features, SparseRow},
    proof::{Certificate, NonInferiority, Refusal, Verdict, graded, thresholds},
    specialist::{
        AdapterFiles, Contents, ProbeRow,
        manifest::{
            self, AdapterRecord, AdapterWeights, FORMAT, Kind, Manifest, Recipe as MadeFrom, Rounded, RungRecord, Stage,
        },
    },
};

use super::{
    super::{
        BuildError, Evidence, FailedRow, RungOutcome, Workbench,
        measured::{Mark, excerpt, failures, groups, measured_part, neighbours, probe},
    },
    CHECKPOINT, GenerateError, MAX_WRITTEN, Made, Shop, TrainingLog, WRITING_RESERVE, capped, recipe, texts,
};
use crate::{
    craft::{
        canary::{Canary, Memorisation},
        checkpoint::Keeper,
        decoder,
        ladder::{Depth, decimal},
        lora::{self, Row, Tuner},
        writing::{Answer, WriteError, Writer},
    },
    data::{DataError, Part, Prune, TextMetric, task::Metric},
    embed::Embed,
    eval::{
        EvalReport, ScoredRow, calibrate,
        certify::certify,
        cluster::Groups,
        evaluation::{self, RiskCoverage, TestLoss, Yardstick},
        metrics::CONFIDENCE,
        text,
    },
};

impl Shop<'_> {
    fn error(&self, source: GenerateError) -> BuildError {
        BuildError::Generate { name: self.task.name.clone(), source }
    }

    /// How the adapter is trained, and how it listens to a teacher.
    fn recipe(&self) -> lora::Recipe {
        let teaching = self.teacher.as_ref().zip(self.task.distil.as_ref()).map(|(teacher, distil)| lora::Teaching {
            teacher: format!("{} {}", teacher.name, teacher.digest),
            weight: distil.weight,
            temperature: distil.temperature,
        });
        lora::Recipe { teaching, ..recipe(self.generate) }
    }

    /// Test rows, or validation rows where there are none.
    pub(super) fn measured_part(&self) -> Part {
        measured_part(self.splits)
    }

    fn groups(&self, part: Part) -> Option<Groups> {
        let examples = self.splits.part(part);
        groups(&examples[..capped(examples.len(), part)])
    }

    /// The metric, row by row.
    fn values(&self, part: Part, answers: &[Answer]) -> Vec<f64> {
        let (metric, is_json) = (self.generate.metric, self.schema.is_some());
        let pairs = answers.iter().zip(&self.expected[part as usize]);
        pairs.map(|(answer, expected)| text::value(metric, &answer.text, expected, is_json)).collect()
    }

    fn is_exact(&self, part: Part, answers: &[Answer]) -> Vec<bool> {
        let pairs = answers.iter().zip(&self.expected[part as usize]);
        pairs.map(|(answer, expected)| text::is_exact(&answer.text, expected, self.schema.is_some())).collect()
    }

    fn record(&self, stage: Stage, validation: &[Answer]) -> RungRecord {
        let values = self.values(Part::Validation, validation);
        let groups = self.groups(Part::Validation);
        let measured = text::measure(self.generate.metric, &values, self.bench.seed, groups.as_ref());
        RungRecord::new(stage, measured.value, measured.interval)
    }

    /// The output of the most similar training row, by the encoder's vectors or by n-grams. It costs nothing and is often hard to beat.
    pub(super) fn nearest(&self) -> Made {
        let start = (self.elapsed)();
        let train = self.splits.part(Part::Train);
        let outputs = &self.expected[Part::Train as usize];
        let answers = |part: Part| -> Vec<Answer> {
            let examples = self.splits.part(part);
            let examples = &examples[..capped(examples.len(), part)];
            let best: Vec<usize> = match self.embeddings {
                Some(all) => {
                    let (known, asked) = (&all[Part::Train as usize], &all[part as usize]);
                    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
                    asked[..examples.len()].iter().map(|row| most(known.len(), |i| dot(&known[i], row))).collect()
                }
                None => {
                    let features = Features::fit(train.iter().map(|e| e.row.text.as_str()), 1, 1 << 18);
                    let known: Vec<SparseRow> = train.iter().map(|e| features.apply(&e.row.text)).collect();
                    let rows = examples.iter().map(|example| features.apply(&example.row.text));
                    rows.map(|row| most(known.len(), |i| sparse_dot(&known[i], &row))).collect()
                }
            };
            let copied =
                best.into_iter().map(|at| Answer { text: outputs[at].clone(), logprobs: Vec::new(), is_whole: true });
            copied.collect()
        };
        let validation = answers(Part::Validation);
        let measured = answers(self.measured_part());
        let record = self.record(Stage::Nearest, &validation);
        let seconds = ((self.elapsed)() - start).as_secs_f64();
        Made { stage: Stage::Nearest, validation, measured, record, seconds, adapter: None, depth: None }
    }

    /// A rung whose answers are written.
    pub(super) fn write(
        &self,
        stage: Stage,
        writer: &mut Writer,
        adapter: Option<AdapterId>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Made, BuildError> {
        let start = (self.elapsed)();
        let name = format!("writing: {}", stage.name());
        let mut write = |part: Part| {
            let texts = texts(self.splits, part);
            let written = writer.write_all(self.bench.pool, &texts, adapter, &name, progress);
            written.map_err(|error| self.write_error(part, error))
        };
        let validation = write(Part::Validation)?;
        let part = self.measured_part();
        let measured = if part == Part::Validation { validation.clone() } else { write(part)? };
        let record = self.record(stage, &validation);
        let seconds = ((self.elapsed)() - start).as_secs_f64();
        Ok(Made { stage, validation, measured, record, seconds, adapter: None, depth: None })
    }

    /// A text that is not taken is told with its place.
    fn write_error(&self, part: Part, error: WriteError) -> BuildError {
        match error {
            WriteError::Prompt { idx, source } => {
                BuildError::Data(DataError::row(&self.splits.part(part)[idx].row.place, source.to_string()))
            }
            error => self.error(error.into()),
        }
    }

    /// The rungs under an adapter, from few layers to all, or why there are none.
    pub(super) fn adapter(
        &self,
        writer: &mut Writer,
        (train, validation): (&[Row], &[Row]),
        writing_seconds: f64,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Result<(Vec<Made>, TrainingLog), String>, BuildError> {
        let start = (self.elapsed)();
        let (decoder, bench) = (Arc::clone(writer.decoder()), self.bench);
        let recipe = self.recipe();
        progress(Progress { stage: "reading the decoder's weights", done: 0, total: None, unit: Unit::Steps });
        let plain = match decoder.network().plain() {
            Ok(plain) => plain,
            // The rungs below it stand.
            Err(error) => return Ok(Err(format!("rung `adapter` was not made: {error}"))),
        };
        let mut tuner = Tuner::new(plain, &recipe, bench.seed);
        // Its answers, and those to calibration rows, must be written too.
        let n_written = texts(self.splits, Part::Validation).len() + self.measured_rows();
        let calibration = texts(self.splits, Part::Calibration).len();
        let reserve = WRITING_RESERVE * writing_seconds * (1.0 + calibration as f64 / n_written.max(1) as f64);
        let budget = Duration::from_secs_f64(self.task.budget_minutes * 60.0);
        let deadline = budget.saturating_sub(Duration::try_from_secs_f64(reserve).unwrap_or(Duration::MAX));
        let run = lora::Run { pool: bench.pool, seed: bench.seed, clock: self.elapsed, deadline };
        let keeper = |what: &str, layers: &[usize]| {
            let plan = plan_digest(&decoder, &recipe, &self.task.prune, bench, layers, [train, validation]);
            Keeper::new(bench.store.root(), &self.task.name, what, plan)
        };
        let all: Vec<usize> = tuner.net().layers().to_vec();
        let failed = |error: lora::LoraError| self.error(error.into());
        let depths = self
            .planned_depths(&mut tuner, &run, (train, validation), writing_seconds, &mut keeper("adapter-depths", &all))
            .map_err(failed)?;
        let trained = tuner
            .train(&run, train, validation, &recipe, Some(&mut keeper(CHECKPOINT, &all)), progress)
            .map_err(failed)?;
        let trained = match trained {
            lora::Outcome::Trained(trained) => trained,
            lora::Outcome::Skipped { needed, left } => {
                return Ok(Err(format!(
                    "rung `adapter` was not tried: one epoch needs about {:.1} minutes, and {:.1} of the budget of {} are left",
                    needed.as_secs_f64() / 60.0,
                    left.as_secs_f64() / 60.0,
                    self.task.budget_minutes
                )));
            }
        };
        let spent = ((self.elapsed)() - start).as_secs_f64();
        let influence = if depths.is_empty() { Vec::new() } else { tuner.influence(bench.pool, train, bench.seed) };
        let log = training_log(&trained, spent);
        let mut made = vec![self.under(&tuner, writer, &trained, !depths.is_empty(), start, progress)?];
        if let Some(depth) = &mut made[0].depth {
            depth.influence = influence;
        }
        for depth in depths {
            tuner.leave_out(bench.pool, train, depth, &recipe, bench.seed, progress);
            let healing = lora::Recipe { epochs: self.task.prune.heal_epochs, ..recipe.clone() };
            // It was planned to fit when all of this began.
            let run = lora::Run { deadline: Duration::MAX, ..run };
            let mut keeper = keeper(&format!("{CHECKPOINT}-{depth}"), tuner.net().layers());
            let healed = tuner.train(&run, train, validation, &healing, Some(&mut keeper), progress).map_err(failed)?;
            let lora::Outcome::Trained(healed) = healed else { break };
            let mut rung = self.under(&tuner, writer, &healed, true, start, progress)?;
            let (is_good, against_all) = self.against(&rung, &made[0]);
            if let (Some(depth), Some(whole)) = (&mut rung.depth, &made[0].depth) {
                depth.against_all = against_all;
                depth.speed = depth.rows_a_second / whole.rows_a_second.max(1e-9);
            }
            // Of degrees there is no test of "worse": twice the margin stands for it.
            let lost = made[0].record.validation - rung.record.validation;
            let is_worse = match against_all {
                Some(test) => test.verdict == Verdict::Inferior,
                None => !is_good && lost > 2.0 * self.task.target.margin,
            };
            made.push(rung);
            if is_worse {
                break;
            }
        }
        writer.keep(None);
        made.reverse();
        Ok(Ok((made, log)))
    }

    /// How many layers are tried: what fits the budget beside all epochs with all layers, decided once.
    fn planned_depths(
        &self,
        tuner: &mut Tuner,
        run: &lora::Run<'_>,
        (train, validation): (&[Row], &[Row]),
        writing_seconds: f64,
        keeper: &mut Keeper,
    ) -> Result<Vec<usize>, lora::LoraError> {
        let n = tuner.net().layers().len();
        let mut depths = decoder::depths(n, &self.task.prune.keep);
        if depths.is_empty() {
            return Ok(depths);
        }
        if let Some((planned, _)) = keeper.load::<Vec<usize>>() {
            return Ok(planned);
        }
        let recipe = self.recipe();
        let epoch = tuner.epoch_time(run, train, validation, &recipe)?.as_secs_f64();
        let left = run.deadline.saturating_sub((run.clock)()).as_secs_f64();
        let depth = |layers: &usize| {
            let healing = epoch * self.task.prune.heal_epochs as f64 + WRITING_RESERVE * writing_seconds;
            *layers as f64 / n as f64 * healing
        };
        while recipe.epochs as f64 * epoch + depths.iter().map(depth).sum::<f64>() > left && depths.pop().is_some() {}
        keeper.save(run.clock, &depths, &[])?;
        Ok(depths)
    }

    /// What is written under the adapter as it is now, with the layers that are there.
    fn under(
        &self,
        tuner: &Tuner,
        writer: &mut Writer,
        trained: &lora::Trained,
        has_depth: bool,
        start: Duration,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Made, BuildError> {
        let decoder = Arc::clone(writer.decoder());
        let (config, weights) = tuner.files_in_halves(&decoder.base().name);
        let halves = AdapterFiles { config, weights: Arc::new(weights) };
        let kept =
            halves.kept_as(self.generate.tune.weights).map_err(|error| self.error(AdapterError::from(error).into()))?;
        let read = Adapter::from_bytes(
            kept.config.as_bytes(),
            &kept.weights,
            decoder.network().config(),
            self.generate.tune.weights.format(),
        );
        let read = Arc::new(read.map_err(|error| self.error(error.into()))?);
        let adapter_bytes = read.bytes() as u64;
        let id = writer.load(read).map_err(|error| self.error(error.into()))?;
        let cache = decoder.network().config().cache();
        let layers = tuner.net().layers().to_vec();
        writer.keep(KeptLayers::new(layers.clone()).filter(|_| layers.len() < cache.layers));
        let before = (self.elapsed)();
        let mut made = self.write(Stage::Adapter, writer, Some(id), progress)?;
        let writing = ((self.elapsed)() - before).as_secs_f64();
        let (tune, recipe) = (&self.generate.tune, self.recipe());
        let rounded = match tune.weights {
            AdapterWeights::F16 => None,
            AdapterWeights::Int8 => Some(self.rounded(&halves, adapter_bytes, &made, writer, progress)?),
        };
        made.record.adapter = Some(AdapterRecord {
            rank: tune.rank as u64,
            alpha: decimal(tune.alpha),
            learning_rate: decimal(tune.learning_rate),
            step_tokens: recipe.step_tokens as u64,
            planned_epochs: trained.planned as u64,
            epochs: trained.epochs.len() as u64,
            best_epoch: trained.best as u64,
            kept_layers: if layers.len() < cache.layers { layers.clone() } else { Vec::new() },
            canaries: tune.canaries as u64,
            rounded,
        });
        made.adapter = Some((kept, id));
        made.seconds = ((self.elapsed)() - start).as_secs_f64();
        let kv = cache.page_bytes() / PAGE_POSITIONS / cache.layers;
        let written = texts(self.splits, Part::Validation).len() + self.measured_rows();
        made.depth = has_depth.then(|| Depth {
            base: None,
            kv_bytes_a_token: (kv * layers.len()) as u64,
            layers,
            of: cache.layers,
            rows_a_second: written as f64 / writing.max(1e-9),
            speed: 1.0,
            adapter_bytes,
            against_all: None,
            epochs: Vec::new(),
            influence: Vec::new(),
            is_chosen: false,
        });
        Ok(made)
    }

    /// What is written to validation rows under the adapter in 16 bits, beside what was written under it in 8.
    fn rounded(
        &self,
        halves: &AdapterFiles,
        bytes_after: u64,
        made: &Made,
        writer: &mut Writer,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Rounded, BuildError> {
        let base = Arc::clone(writer.decoder());
        let config = base.network().config();
        let whole = Adapter::from_bytes(halves.config.as_bytes(), &halves.weights, config, LoraFormat::F16);
        let whole = Arc::new(whole.map_err(|error| self.error(error.into()))?);
        let bytes_before = whole.bytes() as u64;
        let id = writer.load(whole).map_err(|error| self.error(error.into()))?;
        let texts = texts(self.splits, Part::Validation);
        let answers = writer.write_all(self.bench.pool, &texts, Some(id), "writing: the adapter in 16 bits", progress);
        let answers = answers.map_err(|error| self.write_error(Part::Validation, error))?;
        let mut max_difference = 0.0f64;
        for (before, after) in answers.iter().zip(&made.validation).filter(|(a, b)| a.text == b.text) {
            let pairs = before.logprobs.iter().zip(&after.logprobs);
            max_difference = pairs.map(|(a, b)| f64::from((a - b).abs())).fold(max_difference, f64::max);
        }
        let before = self.record(Stage::Adapter, &answers).validation;
        Ok(Rounded { before, after: made.record.validation, max_difference, bytes_before, bytes_after })
    }

    /// Is one rung's metric on validation rows not worse than another's by the margin?
    fn against(&self, rung: &Made, reference: &Made) -> (bool, Option<NonInferiority>) {
        let values = |rung: &Made| self.values(Part::Validation, &rung.validation);
        text::non_inferior(
            self.generate.metric,
            &values(rung),
            &values(reference),
            self.task.target.margin,
            self.bench.seed,
            self.groups(Part::Validation).as_ref(),
        )
    }

    fn measured_rows(&self) -> usize {
        let part = self.measured_part();
        if part == Part::Validation { 0 } else { texts(self.splits, part).len() }
    }

    /// The smallest rung that may ship and is not shown to be worse than the best of them by the margin.
    pub(super) fn choose(&self, rungs: &mut [Made]) -> usize {
        let groups = self.groups(Part::Validation);
        let values: Vec<Vec<f64>> = rungs.iter().map(|rung| self.values(Part::Validation, &rung.validation)).collect();
        let shipping: Vec<usize> = (0..rungs.len()).filter(|&at| rungs[at].stage.generates()).collect();
        // The first of equals is the smallest.
        let best = |of: &[usize]| {
            of.iter().copied().fold(of[0], |best, at| {
                if rungs[at].record.validation > rungs[best].record.validation { at } else { best }
            })
        };
        let best = best(&shipping);
        let mut chosen = best;
        let compare = |at: usize| {
            text::non_inferior(
                self.generate.metric,
                &values[at],
                &values[best],
                self.task.target.margin,
                self.bench.seed,
                groups.as_ref(),
            )
        };
        let tests: Vec<(bool, Option<NonInferiority>)> = (0..rungs.len()).map(compare).collect();
        for (at, (is_good_enough, test)) in tests.into_iter().enumerate().rev().filter(|(at, _)| *at != best) {
            rungs[at].record.against_best = test;
            if is_good_enough && at < best && rungs[at].stage.generates() {
                chosen = at;
            }
        }
        for (at, rung) in rungs.iter_mut().enumerate() {
            if let Some(depth) = &mut rung.depth {
                depth.is_chosen = at == chosen;
            }
        }
        chosen
    }

    pub(super) fn outcome(&self, rung: &Made, part: Part) -> RungOutcome {
        let values = self.values(part, &rung.measured);
        let measured = text::measure(self.generate.metric, &values, self.bench.seed, self.groups(part).as_ref());
        RungOutcome::of(&rung.record, measured, rung.seconds, rung.depth.clone())
    }

    /// Asks a rung for the secrets that were put among its training rows.
    pub(super) fn memorisation(
        &self,
        rung: &Made,
        canaries: &[Canary],
        writer: &mut Writer,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Memorisation, BuildError> {
        let adapter = rung.adapter.as_ref().map(|(_, id)| *id);
        writer.keep(rung.kept());
        let (stage, total) = ("asking for canaries", Some(canaries.len() as u64));
        let mut likelihoods = Vec::new();
        for (done, canary) in (0..).zip(canaries) {
            progress(Progress { stage, done, total, unit: Unit::Rows });
            let scored = writer.score(self.bench.pool, &canary.text, &canary.secrets, adapter);
            likelihoods.push(scored.map_err(|error| self.error(error.into()))?);
        }
        let texts: Vec<&str> = canaries.iter().map(|canary| canary.text.as_str()).collect();
        let answers = writer.write_all(self.bench.pool, &texts, adapter, stage, progress);
        let answers = answers.map_err(|error| self.error(error.into()))?;
        let answers: Vec<&str> = answers.iter().map(|answer| answer.text.as_str()).collect();
        Ok(Memorisation::of(canaries, &likelihoods, &answers))
    }

    /// Calibrates and certifies the chosen rung, and measures it.
    pub(super) fn prove(
        &self,
        rungs: &[Made],
        chosen: usize,
        writer: &mut Writer,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(Specialist, Evidence, Vec<FailedRow>), BuildError> {
        let (task, bench, splits) = (self.task, self.bench, self.splits);
        let rung = &rungs[chosen];
        let margins: Vec<Vec<f32>> = rung.validation.iter().map(Answer::margins).collect();
        let classes: Vec<usize> =
            self.is_exact(Part::Validation, &rung.validation).into_iter().map(|exact| usize::from(!exact)).collect();
        let mut manifest = Manifest {
            format: FORMAT,
            name: task.name.clone(),
            kind: Kind::Generate,
            instruction: task.instruction.clone(),
            inputs: task.data.text.clone(),
            labels: Vec::new(),
            out_of_scope: None,
            may_leave: task.may_leave,
            stage: rung.stage,
            scores: None,
            scope: None,
            multi_label: None,
            hierarchy: None,
            first: None,
            pairs: None,
            base: bench.encoder.map(Embed::base),
            generation: Some(manifest::Generation {
                decoder: writer.decoder().base().clone(),
                max_tokens: u32::try_from(writer.max_tokens()).unwrap_or(u32::MAX),
                kept_layers: rung.kept().map_or_else(Vec::new, |kept| kept.layers().to_vec()),
                adapter_weights: if rung.adapter.is_some() { self.generate.tune.weights } else { AdapterWeights::F16 },
            }),
            hidden: None,
            reads_base: false,
            features: None,
            calibrator: calibrate::fit(&margins, &classes),
            certificate: None,
            refusal: None,
            recipe: MadeFrom {
                seed: bench.seed,
                metric: self.generate.metric.name().to_owned(),
                positive: None,
                margin: task.target.margin,
                epsilon: task.target.epsilon,
                delta: task.target.delta,
                rows: splits.counts(),
                data: splits.files.clone(),
                rungs: rungs.iter().map(|rung| rung.record.clone()).collect(),
                teacher: rung.adapter.as_ref().and(self.teacher.clone()),
            },
            files: Default::default(),
        };
        let contents = Contents {
            pairs: None,
            manifest: manifest.clone(),
            features: None,
            head: None,
            first: None,
            encoder: None,
            adapter: rung.adapter.as_ref().map(|(files, _)| files.clone()),
            schema: self.schema.as_ref().map(|schema| serde_json::to_string_pretty(schema).expect("a value is JSON")),
            neighbours: self.embeddings.and_then(|all| neighbours(splits, all, None)),
            probe: Vec::new(),
            evidence: String::new(),
        };
        let mut specialist = Specialist::from_contents(contents);
        let calibration_texts = texts(splits, Part::Calibration);
        writer.keep(rung.kept());
        let adapter = rung.adapter.as_ref().map(|(_, id)| *id);
        let calibration = writer
            .write_all(bench.pool, &calibration_texts, adapter, "writing: calibration rows", progress)
            .map_err(|error| self.write_error(Part::Calibration, error))?;
        match self.certify(&specialist, &calibration) {
            Ok(certificate) => manifest.certificate = Some(certificate),
            Err(refusal) => manifest.refusal = Some(refusal),
        }
        let mut contents = specialist.into_contents();
        contents.manifest = manifest;
        specialist = Specialist::from_contents(contents);

        let part = self.measured_part();
        let scored = self.scored(&specialist, part, &rung.measured);
        let evaluation = self.evaluation(&specialist, part, &rung.measured, &scored);
        let evidence = Evidence { rows: part.name().to_owned(), evaluation, class_mix: None };
        let failures = self.failures(part, &rung.measured, &scored);
        let probe = self.probe(&specialist, &rung.validation);
        let mut contents = specialist.into_contents();
        contents.probe = probe;
        contents.evidence = serde_json::to_string_pretty(&evidence).expect("evidence is JSON");
        Ok((Specialist::from_contents(contents), evidence, failures))
    }

    /// Learn-then-Test on the calibration rows; what was cut is never accepted.
    fn certify(&self, specialist: &Specialist, answers: &[Answer]) -> Result<Certificate, Refusal> {
        let (epsilon, delta) = (self.task.target.epsilon, self.task.target.delta);
        let scores =
            answers.iter().map(|answer| if answer.is_whole { specialist.judge(answer.written()).score } else { -1.0 });
        let losses = self.losses(Part::Calibration, answers);
        let rows: Vec<(f32, f64)> = scores.zip(losses).collect();
        let has_degrees = match self.generate.metric {
            TextMetric::ExactMatch => false,
            TextMetric::TokenF1 | TextMetric::RougeL => true,
        };
        certify(&rows, has_degrees, self.groups(Part::Calibration).as_ref(), (epsilon, delta))
    }

    /// Loss of each row if it is accepted: 1 − metric; 0 where the reference is wrong itself.
    fn losses(&self, part: Part, answers: &[Answer]) -> Vec<f64> {
        let values = self.values(part, answers);
        let rows = values.into_iter().enumerate();
        rows.map(|(at, value)| if self.is_reference_right(part, at) { 1.0 - value } else { 0.0 }).collect()
    }

    fn is_reference_right(&self, part: Part, at: usize) -> bool {
        let reference = self.splits.part(part)[at].row.reference.as_deref();
        reference.is_none_or(|text| text::is_exact(text, &self.expected[part as usize][at], self.schema.is_some()))
    }

    /// The rows as right (class 0) or wrong (class 1).
    fn scored(&self, specialist: &Specialist, part: Part, answers: &[Answer]) -> Vec<ScoredRow> {
        let exact = self.is_exact(part, answers);
        let rows = self.splits.part(part).iter().zip(answers).zip(exact).enumerate();
        rows.map(|(at, ((example, answer), is_exact))| {
            let judged = specialist.judge(answer.written());
            ScoredRow {
                predicted: usize::from(!is_exact),
                gold: 0,
                right: is_exact,
                score: judged.score,
                accepted: judged.is_accepted,
                reference_right: self.is_reference_right(part, at),
                group: example.row.group.clone(),
                extra: example.row.extra.clone(),
            }
        })
        .collect()
    }

    fn evaluation(&self, specialist: &Specialist, part: Part, answers: &[Answer], scored: &[ScoredRow]) -> EvalReport {
        let (values, losses, groups) = (self.values(part, answers), self.losses(part, answers), self.groups(part));
        let figures = Figures {
            metric: self.generate.metric,
            values: &values,
            losses: &losses,
            has_reference: self.task.reference.is_some(),
            slices: &self.task.data.slice,
            groups: groups.as_ref(),
            seed: self.bench.seed,
        };
        report(specialist, scored, &figures)
    }

    /// Rows that are not exact.
    fn failures(&self, part: Part, answers: &[Answer], scored: &[ScoredRow]) -> Vec<FailedRow> {
        let mark = |row: &ScoredRow| Mark { right: row.predicted == row.gold, ..row.into() };
        let rows = self.splits.part(part).iter().zip(scored.iter().map(mark));
        failures(rows, |at| (excerpt(&self.expected[part as usize][at]), excerpt(&answers[at].text)))
    }

    fn probe(&self, specialist: &Specialist, answers: &[Answer]) -> Vec<ProbeRow> {
        let rows = self.splits.part(Part::Validation).iter().take(answers.len());
        probe(rows, |at| (answers[at].text.clone(), specialist.judge(answers[at].written()).score))
    }

    pub(super) fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let leak = &self.splits.leak;
        if leak.removed > 0 {
            notes.push(format!(
                "{} training rows were left out: {} equal and {} nearly equal to calibration or test rows, {} of their groups",
                leak.removed, leak.exact, leak.near, leak.same_group
            ));
        }
        if leak.contradictions > 0 {
            notes.push(format!("{} rows repeat a text with another output", leak.contradictions));
        }
        for (part, most) in MAX_WRITTEN {
            let n = self.splits.part(part).len();
            if n > most {
                notes.push(format!("of {n} {} rows the first {most} were written for", part.name()));
            }
        }
        if self.measured_part() == Part::Validation {
            let note = "there are no test rows: figures are those of validation rows, which also chose the rung";
            notes.push(note.to_owned());
        }
        if self.embeddings.is_none() {
            notes.push("no encoder was at hand: `auto` cannot find this specialist".to_owned());
        }
        notes
    }
}

/// What a report of written answers is made of beside their scores.
pub(crate) struct Figures<'a> {
    pub(crate) metric: TextMetric,
    /// The metric, row by row.
    pub(crate) values: &'a [f64],
    /// Loss of each row if it is accepted.
    pub(crate) losses: &'a [f64],
    pub(crate) has_reference: bool,
    pub(crate) slices: &'a [String],
    pub(crate) groups: Option<&'a Groups>,
    pub(crate) seed: u64,
}

pub(crate) fn report(specialist: &Specialist, scored: &[ScoredRow], figures: &Figures<'_>) -> EvalReport {
    let Figures { metric, values, losses, has_reference, slices, groups, seed } = *figures;
    let labels = ["exact".to_owned(), "not exact".to_owned()];
    let manifest = specialist.manifest();
    let yardstick = Yardstick {
        reject_below: None,
        labels: &labels,
        metric: Metric::Accuracy,
        out_of_scope: None,
        certificate: manifest.certificate,
        has_reference,
        margin: manifest.recipe.margin,
        slices,
        seed,
    };
    let measured = text::measure(metric, values, seed, groups);
    let mut report = evaluation::evaluate(scored, &yardstick);
    // There are no classes to tell apart.
    (report.per_class, report.confusions) = (Vec::new(), Vec::new());
    report.macro_f1 = report.accuracy;
    metric.name().clone_into(&mut report.metric);
    (report.value, report.interval) = (measured.value, measured.interval);
    if metric != TextMetric::ExactMatch {
        report.slices.iter_mut().for_each(|slice| slice.risk = None);
        report.risk_coverage = risk_coverage(scored, losses);
        if let Some(certificate) = manifest.certificate {
            let accepted: Vec<f64> =
                scored.iter().zip(losses).map(|(row, loss)| if row.accepted { *loss } else { 0.0 }).collect();
            report.test_loss = Some(test_loss(metric, &accepted, certificate.epsilon, seed, groups));
        }
    }
    report
}

/// The index whose value is greatest; the first of equals.
fn most(n: usize, value: impl Fn(usize) -> f32) -> usize {
    (0..n)
        .fold((0, f32::NEG_INFINITY), |best, at| {
            let value = value(at);
            if value > best.1 { (at, value) } else { best }
        })
        .0
}

pub(crate) fn sparse_dot(a: &SparseRow, b: &SparseRow) -> f32 {
    let (mut sum, mut at) = (0.0, 0);
    for (column, value) in a.iter() {
        while at < b.columns.len() && (b.columns[at] as usize) < column {
            at += 1;
        }
        if at < b.columns.len() && b.columns[at] as usize == column {
            sum += value * b.values[at];
        }
    }
    sum
}

fn training_log(trained: &lora::Trained, seconds: f64) -> TrainingLog {
    let tokens: usize = trained.steps.iter().map(|step| step.tokens).sum();
    TrainingLog {
        planned_epochs: trained.planned as u64,
        best_epoch: trained.best as u64,
        epochs: trained.epochs.clone(),
        predicted_seconds: trained.predicted_seconds,
        tokens_a_second: trained.resumed_at.is_none().then(|| tokens as f64 / seconds.max(1e-6)),
        steps: trained.steps.clone(),
        resumed_at: trained.resumed_at,
    }
}

/// Everything that an adapter's numbers hang on.
fn plan_digest(
    decoder: &Decoder,
    recipe: &lora::Recipe,
    prune: &Prune,
    bench: &Workbench<'_>,
    layers: &[usize],
    rows: [&[Row]; 2],
) -> Digest {
    let (base, tier) = (decoder.base().digest, bench.pool.tier());
    let mut bytes =
        format!("{CONFIG_FILE} 2\n{base}\n{recipe:?}\n{prune:?}\n{layers:?}\n{}\n{tier}\n", bench.seed).into_bytes();
    for row in rows.into_iter().flatten() {
        for ids in [&row.prompt, &row.answer] {
            bytes.extend((ids.len() as u64).to_le_bytes());
            bytes.extend(ids.iter().flat_map(|id| id.0.to_le_bytes()));
        }
    }
    Digest::of(&bytes)
}

/// Mean loss and coverage by threshold, strict to loose.
fn risk_coverage(rows: &[ScoredRow], losses: &[f64]) -> Vec<RiskCoverage> {
    const POINTS: usize = 100;
    let n = rows.len().max(1) as f64;
    let grid: Vec<f32> = thresholds().collect();
    let step = (grid.len() / POINTS).max(1);
    let points = grid.into_iter().step_by(step).map(|threshold| {
        let accepted = rows.iter().zip(losses).filter(|(row, _)| row.score >= threshold);
        let (accepted, risk) = accepted.fold((0u64, 0.0), |(n, sum), (_, loss)| (n + 1, sum + loss));
        RiskCoverage { threshold, coverage: accepted as f64 / n, risk: risk / n }
    });
    points.collect()
}

/// The mean loss of what was accepted, tried on rows that the certificate has not seen.
fn test_loss(metric: TextMetric, losses: &[f64], epsilon: f64, seed: u64, groups: Option<&Groups>) -> TestLoss {
    let measured = text::measure(metric, losses, seed, groups);
    let p = graded::p_value(measured.value, losses.len() as u64, epsilon);
    TestLoss {
        loss: measured.value,
        losses: losses.iter().filter(|loss| **loss > 0.0).count() as u64,
        interval: measured.interval,
        epsilon,
        held: measured.interval[0] <= epsilon,
        shown: groups.is_none() && p <= (1.0 - CONFIDENCE) / 2.0,
    }
}
