//! The table of `metier bench engine`: which cases there are, on which files, and what the machine allows at most.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, anyhow};

use metier_kernels::{Pool, ceilings::Arithmetic};
use metier_model::{Adapter, Decoder, EncoderWeights, arch::transformer::WeightFormat, decoder::DecoderOptions};

use super::{
    super::{Failure, Outcome, bases},
    EngineArgs, Row, SENTENCE,
    machine::{bandwidth, peak},
    measure::{Output, Plan, compare, median},
    ours::{self, Clients, Many, Warm},
    peers::Peers,
};
use crate::{
    config::{Environment, Settings},
    server::resident_bytes,
};

/// Tokens of the prompt whose reading is timed.
const PREFILL_TOKENS: usize = 512;
/// Streams that write at once.
const STREAMS: [usize; 2] = [8, 32];
/// Clients, and adapters.
const CLIENTS: usize = 8;
/// Rank of the adapters of the clients.
const RANK: usize = 16;
/// Rank of the adapters that are many.
const SMALL_RANK: usize = 8;
/// Tokens that specialists share, and tokens of a request of its own.
const PREFIX_TOKENS: usize = 600;
const NEW_TOKENS: usize = 16;
/// First tokens that are timed for one value; their median is it.
const FIRST_TOKENS: usize = 6;
/// How many adapters are resident.
const MANY: [usize; 4] = [1, 10, 100, 1000];
/// Answers that are timed for each of them.
const ANSWERS: usize = 40;
/// Stretches of text that perplexity is taken over, each a context of its own.
const CHUNKS: usize = 20;
/// About 135 tokens of MiniLM: so many support messages one after the other.
const LONG: usize = 6;

/// Formats of SmolLM2 whose perplexity is taken, as `setup.sh` names the files.
const PERPLEXITY: [&str; 12] =
    ["f16", "q8_0", "q6_k", "q5_k_m", "q5_1", "q5_0", "q4_k_m", "q4_1", "q4_0", "iq4_nl", "q3_k_m", "q2_k"];

const LLAMA_CPP: &str = "llama.cpp";
const ONNXRUNTIME: &str = "onnxruntime";

/// A file that both sides read.
struct Model {
    /// As rows name it.
    name: &'static str,
    path: PathBuf,
    /// Which of the peers' folders holds adapters for it.
    adapters: &'static str,
    /// Reading is slow: fewer repeats and tokens.
    large: bool,
    /// Rows of many streams, clients and prefixes as well.
    whole: bool,
}

/// What every case needs.
struct Bench<'a> {
    pool: Arc<Pool>,
    peers: Option<Peers>,
    plan: Plan,
    quick: bool,
    options: DecoderOptions,
    only: &'a [String],
    tell: &'a mut dyn FnMut(Row),
}

/// Runs the table.
pub(super) fn run(
    args: &EngineArgs,
    settings: &Settings,
    environment: &Environment,
    tell: &mut dyn FnMut(Row),
) -> Outcome {
    let pool = bases::pool(settings, environment)?;
    let peers = args.peers.as_deref().map(|dir| Peers::open(dir, pool.threads())).transpose()?;
    let plan = Plan { threads: pool.threads(), repeats: if args.quick { 2 } else { 5 } };
    let options = DecoderOptions { kv: args.kv.into(), ..DecoderOptions::new(args.weights.into()) };
    let mut bench = Bench { pool, peers, plan, quick: args.quick, options, only: &args.only, tell };
    bench.machine();
    bench.encoder(settings, environment)?;
    for model in models(&bench, settings, environment)? {
        bench.decoder(&model)?;
    }
    args.text.as_deref().map_or(Ok(()), |text| bench.perplexity(text))
}

/// Without peers the decoder of the settings; with them the files that they read too.
fn models(bench: &Bench<'_>, settings: &Settings, environment: &Environment) -> Result<Vec<Model>, Failure> {
    let Some(peers) = &bench.peers else {
        let Some(local) = bases::decoder_files(settings, environment)? else { return Ok(Vec::new()) };
        let path = local.files[0].clone();
        return Ok(vec![Model { name: "decoder", path, adapters: "", large: false, whole: true }]);
    };
    let known = [
        ("SmolLM2 Q4_0", "smollm2-q4_0.gguf", "smollm2", false, true),
        ("SmolLM2 Q8_0", "smollm2-q8_0.gguf", "smollm2", false, false),
        ("SmolLM2 Q4_1", "smollm2-q4_1.gguf", "smollm2", false, false),
        ("SmolLM2 F16", "smollm2-f16.gguf", "smollm2", false, false),
        ("1 B Q4_0", "one-b-q4_0.gguf", "one-b", true, true),
        ("1 B Q8_0", "one-b-q8_0.gguf", "one-b", true, false),
        ("1 B Q4_K_M", "one-b-q4_k_m.gguf", "one-b", true, false),
    ];
    let found = known.into_iter().filter_map(|(name, file, adapters, large, whole)| {
        let path = peers.file(&format!("models/{file}"))?;
        Some(Model { name, path, adapters, large, whole })
    });
    Ok(found.collect())
}

impl Bench<'_> {
    fn wants(&self, case: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| case.contains(part.as_str()))
    }

    /// Fewer repeats for what takes long.
    fn plan(&self, large: bool) -> Plan {
        Plan { repeats: if large { self.plan.repeats.min(3) } else { self.plan.repeats }, ..self.plan }
    }

    /// What a model's products are bound by.
    fn arithmetic(&self, model: &Model) -> Arithmetic {
        match self.options.weights {
            WeightFormat::F16 | WeightFormat::F32 => Arithmetic::F32,
            WeightFormat::AsFile if model.name.contains("Q4") => Arithmetic::Int4,
            WeightFormat::AsFile | WeightFormat::Int8 => Arithmetic::Int8,
        }
    }

    /// Bytes of weights that one token reads.
    fn weight_bytes(&self, model: &Model, decoder: &Decoder) -> Result<usize, Failure> {
        let (layers, head) = weights(decoder);
        match self.options.weights {
            WeightFormat::AsFile if !model.name.contains("F16") => file_bytes(&model.path),
            WeightFormat::AsFile | WeightFormat::Int8 => Ok((layers + head) / 32 * 34),
            WeightFormat::F16 => Ok((layers + head) * 2),
            WeightFormat::F32 => Ok((layers + head) * 4),
        }
    }

    fn machine(&mut self) {
        for (what, arithmetic) in
            [("8-bit weights", Arithmetic::Int8), ("4-bit weights", Arithmetic::Int4), ("f32", Arithmetic::F32)]
        {
            let case = format!("multiplies, {what}, {} threads, tier {}", self.pool.threads(), self.pool.tier());
            if self.wants(&case) {
                (self.tell)(Row::new("machine", case, peak(&self.pool, arithmetic) / 1e9, "GOP/s"));
            }
        }
        for mib in [90, 700] {
            let case = format!("reads {mib} MiB, {} threads, tier {}", self.pool.threads(), self.pool.tier());
            if self.wants(&case) {
                let value = bandwidth(&self.pool, mib << 20) / 1e9;
                (self.tell)(Row::new("machine", case, value, "GB/s"));
            }
        }
    }

    fn encoder(&mut self, settings: &Settings, environment: &Environment) -> Outcome {
        let long = format!("{SENTENCE} ").repeat(LONG);
        if !["MiniLM"].iter().any(|name| self.only.is_empty() || self.only.iter().any(|part| part.contains(name))) {
            return Ok(());
        }
        let mut onnx = self.peers.as_ref().map(Peers::minilm).transpose()?;
        let pool = Arc::clone(&self.pool);
        for (dtype, weights) in [("f32", EncoderWeights::F32), ("int8", EncoderWeights::Int8)] {
            let mut settings = settings.clone();
            settings.models.encoder_weights = weights;
            let encoder = bases::encoder(&settings, environment)?;
            for (text, batch) in [(SENTENCE, 1), (SENTENCE, 32), (long.as_str(), 1), (long.as_str(), 32)] {
                let tokens = encoder.count_tokens(text);
                let texts = vec![text; batch];
                let repeats = (if self.quick { 500 } else { 2_000 } / (batch * tokens)).max(3);
                let case = format!("MiniLM {dtype}, {tokens} tokens, batch {batch}");
                if !self.only.is_empty() && !self.only.iter().any(|part| case.contains(part.as_str())) {
                    continue;
                }
                let mut ours = || Ok(vec![ours::embed(&encoder, &pool, &texts, repeats)?]);
                let outputs = vec![Output::rate(case, "sentences/s")];
                match onnx.as_mut() {
                    None => compare(self.plan, outputs, &mut ours, None, self.tell)?,
                    Some(onnx) => {
                        onnx.embed(dtype, &texts, 2)?;
                        let mut theirs = || Ok(vec![onnx.embed(dtype, &texts, repeats)?.0]);
                        compare(self.plan, outputs, &mut ours, Some((ONNXRUNTIME, &mut theirs)), self.tell)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Perplexity of every file of SmolLM2 that `setup.sh` made, ours and llama.cpp's from the same tokens. Nothing is timed.
    fn perplexity(&mut self, text: &Path) -> Outcome {
        let words = std::fs::read_to_string(text).with_context(|| format!("cannot read `{}`", text.display()));
        let words = words.map_err(Failure::Environment)?;
        let Some(peers) = &self.peers else {
            return Err(Failure::usage(anyhow!("`--text` needs `--peers`: the files of each format lie there")));
        };
        for kind in PERPLEXITY {
            let case = format!("SmolLM2 {}, perplexity, {CHUNKS} × 512 tokens", kind.to_uppercase());
            let Some(path) = peers.file(&format!("models/smollm2-{kind}.gguf")).filter(|_| self.wants(&case)) else {
                continue;
            };
            let decoder = ours::open(&path, &self.options)?;
            let ours = ours::perplexity(&decoder, &self.pool, &words, CHUNKS)?;
            let theirs = peers.perplexity(&path, text, CHUNKS)?;
            let mut row = Row::new("engine", case, ours.value, "perplexity");
            row.range = Some(ours.interval());
            row.peer = Some(LLAMA_CPP.to_owned());
            (row.peer_value, row.peer_range) = (Some(theirs.value), Some(theirs.interval()));
            row.ratio = Some(theirs.value / ours.value);
            row.note = Some(format!("{} tokens; intervals of 95 %, of the same tokens", ours.tokens));
            (self.tell)(row);
        }
        Ok(())
    }

    fn decoder(&mut self, model: &Model) -> Outcome {
        let cases = ["reads 512", "writes, 1 ", "writes, 8 ", "writes, 32 ", "8 clients", "first token", "adapters"];
        if !cases.iter().any(|case| self.asks_for(model, case)) {
            return Ok(());
        }
        let decoder = ours::open(&model.path, &self.options)?;
        self.prefill(model, &decoder)?;
        self.decode(model, &decoder)?;
        if model.whole {
            self.streams(model, &decoder)?;
            self.clients(model, &decoder)?;
            self.prefix(model, &decoder)?;
        }
        if model.whole && !model.large {
            self.many(model, &decoder)?;
        }
        Ok(())
    }

    fn asks_for(&self, model: &Model, case: &str) -> bool {
        let whole = format!("{}, {case}", model.name);
        self.only.is_empty() || self.only.iter().any(|part| whole.contains(part.as_str()) || part.contains(case))
    }

    fn prefill(&mut self, model: &Model, decoder: &Arc<Decoder>) -> Outcome {
        let case = format!("{}, reads {PREFILL_TOKENS} tokens", model.name);
        if !self.wants(&case) {
            return Ok(());
        }
        let prompt = ours::prompt(decoder, PREFILL_TOKENS, 0)?;
        let mut ours = || Ok(vec![ours::prefill(decoder, &self.pool, &prompt)?]);
        let limit = peak(&self.pool, self.arithmetic(model)) / (2.0 * weights(decoder).0 as f64);
        let outputs = vec![Output::rate(case, "tokens/s").within(Some(limit))];
        let plan = self.plan(model.large);
        match &self.peers {
            None => compare(plan, outputs, &mut ours, None, self.tell),
            Some(peers) => {
                let mut theirs = || Ok(vec![peers.bench(&model.path, PREFILL_TOKENS, 0)?]);
                compare(plan, outputs, &mut ours, Some((LLAMA_CPP, &mut theirs)), self.tell)
            }
        }
    }

    fn decode(&mut self, model: &Model, decoder: &Arc<Decoder>) -> Outcome {
        let case = format!("{}, writes, 1 stream", model.name);
        if !self.wants(&case) {
            return Ok(());
        }
        let new_tokens = if model.large { 24 } else { 64 };
        let bytes = self.weight_bytes(model, decoder)?;
        let limit = bandwidth(&self.pool, bytes) / bytes as f64;
        let mut ours = || Ok(vec![ours::decode(decoder, &self.pool, 1, 8, new_tokens)?]);
        let outputs = vec![Output::rate(case, "tokens/s").within(Some(limit))];
        let plan = self.plan(model.large);
        match &self.peers {
            None => compare(plan, outputs, &mut ours, None, self.tell),
            Some(peers) => {
                let mut theirs = || Ok(vec![peers.bench(&model.path, 0, new_tokens)?]);
                compare(plan, outputs, &mut ours, Some((LLAMA_CPP, &mut theirs)), self.tell)
            }
        }
    }

    /// 64 tokens read by each stream, then written: a context of about 128.
    fn streams(&mut self, model: &Model, decoder: &Arc<Decoder>) -> Outcome {
        let bytes = self.weight_bytes(model, decoder)?;
        let (layers, head) = weights(decoder);
        for streams in STREAMS {
            let case = format!("{}, writes, {streams} streams, together", model.name);
            if !self.wants(&case) {
                continue;
            }
            let new_tokens = if model.large || self.quick { 32 } else { 64 };
            let mut ours = || Ok(vec![ours::decode(decoder, &self.pool, streams, 64, new_tokens)?]);
            let read = streams as f64 * bandwidth(&self.pool, bytes) / bytes as f64;
            let multiplied = peak(&self.pool, self.arithmetic(model)) / (2.0 * (layers + head) as f64);
            let outputs = vec![Output::rate(case, "tokens/s").within(Some(read.min(multiplied)))];
            let plan = self.plan(true);
            match &self.peers {
                None => compare(plan, outputs, &mut ours, None, self.tell)?,
                Some(peers) => {
                    let mut theirs = || Ok(vec![peers.batched(&model.path, streams, 64, new_tokens)?]);
                    compare(plan, outputs, &mut ours, Some((LLAMA_CPP, &mut theirs)), self.tell)?;
                }
            }
        }
        Ok(())
    }

    fn adapters(
        &self,
        model: &Model,
        decoder: &Decoder,
        rank: usize,
        count: usize,
    ) -> Result<Vec<Arc<Adapter>>, Failure> {
        let folder = self.peers.as_ref().and_then(|peers| peers.file(&format!("adapters/{}-r{rank}", model.adapters)));
        ours::adapters(decoder, folder.as_deref(), rank, count)
    }

    fn clients(&mut self, model: &Model, decoder: &Arc<Decoder>) -> Outcome {
        let mixed = format!("{}, 8 clients, 8 adapters", model.name);
        let plain = format!("{}, 8 clients, no adapter", model.name);
        if !self.wants(&mixed) && !self.wants(&plain) {
            return Ok(());
        }
        let asked = Clients {
            clients: CLIENTS,
            rounds: if self.quick || model.large { 1 } else { 2 },
            prompt_tokens: 64,
            new_tokens: if model.large { 32 } else { 64 },
        };
        let mut prompts = Vec::new();
        for turn in 0..asked.clients * asked.rounds {
            prompts.push(ours::prompt(decoder, asked.prompt_tokens, turn)?);
        }
        let files = |peers: &Peers| -> Vec<PathBuf> {
            let file = |i| peers.file(&format!("adapters/{}-r{RANK}/{i}/adapter.gguf", model.adapters));
            (0..CLIENTS).filter_map(file).collect()
        };
        for (case, adapters) in [(plain, Vec::new()), (mixed, self.adapters(model, decoder, RANK, CLIENTS)?)] {
            if !self.wants(&case) {
                continue;
            }
            let outputs = vec![
                Output::rate(format!("{case}, written in all"), "tokens/s"),
                Output::time(format!("{case}, first token, p50")),
                Output::time(format!("{case}, first token, p95")),
                Output::time(format!("{case}, first token, slowest")),
            ];
            let mut ours = || ours::clients(decoder, &self.pool, asked, &adapters);
            let plan = self.plan(true);
            match &self.peers {
                None => compare(plan, outputs, &mut ours, None, self.tell)?,
                Some(peers) => {
                    let server = peers.serve(&model.path, &files(peers), CLIENTS)?;
                    // The first requests touch the memory of the slots.
                    server.clients(Clients { rounds: 1, new_tokens: 2, ..asked }, !adapters.is_empty(), &prompts)?;
                    let mut theirs = || server.clients(asked, !adapters.is_empty(), &prompts);
                    compare(plan, outputs, &mut ours, Some((LLAMA_CPP, &mut theirs)), self.tell)?;
                }
            }
        }
        Ok(())
    }

    /// The server gets one slot: there its cache serves one specialist after the other. With a slot for each specialist, its best case, the
    /// cost of changing goes away, and the number of specialists is the number of slots.
    fn prefix(&mut self, model: &Model, decoder: &Arc<Decoder>) -> Outcome {
        let adapters = self.adapters(model, decoder, RANK, 2)?;
        for (what, alternate, slots) in
            [("same adapter", 1, 1), ("adapters alternate", 2, 1), ("adapters alternate, a slot for each", 2, 2)]
        {
            let case = format!("{}, first token, {PREFIX_TOKENS} warm + {NEW_TOKENS} new, {what}", model.name);
            if !self.wants(&case) || (model.large && self.quick) {
                continue;
            }
            let tries = if model.large { 2 } else { FIRST_TOKENS };
            let mut warm = Warm::new(decoder, &adapters, PREFIX_TOKENS)?;
            let mut ours = || {
                let times: Result<Vec<f64>, Failure> =
                    (0..tries).map(|i| warm.first_token(&self.pool, i % alternate, NEW_TOKENS)).collect();
                Ok(vec![median(times?).0])
            };
            let outputs = vec![Output::time(case)];
            let plan = self.plan(true);
            let Some(peers) = &self.peers else {
                if slots == 1 {
                    compare(plan, outputs, &mut ours, None, self.tell)?;
                }
                continue;
            };
            let file = |i| peers.file(&format!("adapters/{}-r{RANK}/{i}/adapter.gguf", model.adapters));
            let server = peers.serve(&model.path, &(0..2).filter_map(file).collect::<Vec<_>>(), slots)?;
            let prefix = ours::prompt(decoder, PREFIX_TOKENS, 0)?;
            let mut turn = 0;
            let mut ask = |adapter: usize| {
                turn += 1;
                let mut prompt = prefix.clone();
                prompt.extend(ours::prompt(decoder, NEW_TOKENS, 1000 + turn)?);
                server.first_token(&prompt, adapter, adapter % slots)
            };
            for adapter in 0..alternate {
                ask(adapter)?;
            }
            let mut theirs = || {
                let times: Result<Vec<f64>, Failure> = (0..tries).map(|i| ask(i % alternate)).collect();
                Ok(vec![median(times?).0])
            };
            compare(plan, outputs, &mut ours, Some((LLAMA_CPP, &mut theirs)), self.tell)?;
        }
        Ok(())
    }

    /// Memory and time of an answer with more and more adapters resident. It is one adapter under many names, each with memory of its own: bytes
    /// and time are those of different ones.
    fn many(&mut self, model: &Model, decoder: &Arc<Decoder>) -> Outcome {
        let case = format!("{}, adapters of rank {SMALL_RANK}", model.name);
        if !self.wants(&case) {
            return Ok(());
        }
        let before = resident_bytes("self");
        let mut many = Many::new(decoder);
        for count in MANY.into_iter().filter(|count| !self.quick || *count <= 100) {
            for adapter in self.fresh(model, decoder, many.len()..count)? {
                many.load(adapter)?;
            }
            many.answer(&self.pool)?;
            let mut times = Vec::new();
            for _ in 0..ANSWERS {
                times.push(many.answer(&self.pool)?);
            }
            let (value, range) = median(times);
            let case = format!("{case}, {count} resident");
            let row = Row::new("engine", format!("{case}, answer of 16 to 16, p50"), value, "ms");
            (self.tell)(Row { range: Some(range), spread: Some(range[1] - range[0]), ..row });
            // Memory that earlier cases gave back stays with the allocator and would be counted as none: other cases must not have run.
            let alone = !self.only.is_empty() && self.only.iter().all(|part| part.contains("adapters of rank"));
            if let (true, Some(before), Some(now)) = (alone, before, resident_bytes("self")) {
                let resident = now.saturating_sub(before) as f64 / 1e6;
                let mut row = Row::new("engine", format!("{case}, memory beside the base"), resident, "MB");
                row.limit = Some(many.adapter_bytes() as f64 / 1e6);
                row.share_of_limit = row.limit.map(|bytes| resident / bytes);
                row.note = Some("limit: bytes of the adapters; memory includes the engine's caches".to_owned());
                (self.tell)(row);
            }
        }
        Ok(())
    }

    fn fresh(
        &self,
        model: &Model,
        decoder: &Decoder,
        numbers: std::ops::Range<usize>,
    ) -> Result<Vec<Arc<Adapter>>, Failure> {
        numbers.map(|_| Ok(self.adapters(model, decoder, SMALL_RANK, 1)?.remove(0))).collect()
    }
}

/// Weights of all layers' linear maps, and of the head.
fn weights(decoder: &Decoder) -> (usize, usize) {
    let config = decoder.network().config();
    let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let layer = config.width * (2 * q + 2 * kv + 3 * config.inner);
    (config.layers * layer, config.width * config.vocabulary)
}

/// Bytes that one token reads: all tensors of the file; a tied embedding is read as the head. One row of an embedding of its own is nothing
/// beside it, but none of these files has one.
fn file_bytes(gguf: &std::path::Path) -> Result<usize, Failure> {
    let bytes = std::fs::metadata(gguf).map_err(Failure::environment)?.len();
    // Metadata (the vocabulary) is 2 to 5 MB of 90 to 1,300.
    usize::try_from(bytes).map_err(Failure::environment)
}
