//! Whatever arrives, is cancelled, shares a prefix, looks its tokens up or waits for memory: everybody gets, to the last bit, what he would get alone.
//!
//! Each seed makes an engine with limits of its own and a crowd of requests from one catalogue. The answers of the catalogue were
//! written one at a time by engines without a cache. `METIER_SLOW_TESTS=1` runs 10,000 seeds instead of a few hundred.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use metier_kernels::{Pool, Tier};
use metier_model::{
    Adapter, Decoder, Engine, EngineLimits, LoraFormat, TokenId,
    engine::{
        AdapterId, CacheScope, EngineStats, Event, Finish, GenerationRequest, HiddenRequest, KeptLayers, Sampling,
        ScoreRequest, SequenceId, SubmitError, WeightFormat,
    },
    tiny,
};

/// A step that neither ends a sequence nor reads or writes a token is a stall; a crowd needs far fewer than this.
const MAX_STEPS: usize = 5_000;
const ADAPTERS: usize = 3;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) % n as u64) as usize
    }
}

/// A token and the bits of its log-probability; of a label, the bits of its share and of its log-probability; of a hidden row, its
/// elements' bits.
type Written = Vec<(TokenId, u32)>;

/// What a request of the catalogue wants; adapter and scope are added when it is submitted.
#[derive(Clone)]
enum Wish {
    Write(GenerationRequest),
    Score(ScoreRequest),
    Read(HiddenRequest),
}

impl Wish {
    fn submit(
        &self,
        engine: &mut Engine,
        adapter: Option<AdapterId>,
        scope: CacheScope,
        lookup: bool,
    ) -> Result<SequenceId, SubmitError> {
        match self.clone() {
            Self::Write(request) => engine.submit(GenerationRequest { adapter, scope, lookup, ..request }),
            Self::Score(request) => engine.submit_score(ScoreRequest { adapter, scope, ..request }),
            Self::Read(request) => engine.submit_hidden(HiddenRequest { adapter, scope, ..request }),
        }
    }
}

struct Entry {
    wish: Wish,
    adapter: Option<usize>,
    alone: (Written, Finish),
}

struct World {
    decoder: Arc<Decoder>,
    adapters: Vec<Arc<Adapter>>,
    pool: Pool,
    catalogue: Vec<Entry>,
}

impl World {
    fn new() -> Self {
        let decoder = Arc::new(Decoder::from_bytes(tiny::gguf(7), "tiny", WeightFormat::AsFile).unwrap());
        let base = decoder.network().config();
        let adapters = (0..ADAPTERS)
            .map(|i| {
                let files = tiny::adapter(base, i as u64, 2 + 3 * i, [&[][..], &["v_proj", "up_proj"]][i % 2], 1.0);
                let format = [LoraFormat::F16, LoraFormat::Int8][i % 2];
                Arc::new(Adapter::from_bytes(files.config.as_bytes(), &files.weights, base, format).unwrap())
            })
            .collect();
        let mut world = Self { decoder, adapters, pool: Pool::new(1, Tier::detect()), catalogue: Vec::new() };
        let mut random = Random(1);
        let texts: Vec<Vec<TokenId>> =
            (0..2).map(|_| (0..140).map(|_| TokenId(random.below(250) as u32)).collect()).collect();
        for i in 0..64 {
            // The beginning of one of two texts, then a tail of its own: prefixes of all lengths meet.
            let mut prompt = texts[random.below(2)][..random.below(141)].to_vec();
            prompt.extend((0..=random.below(6)).map(|_| TokenId(random.below(250) as u32)));
            let temperature = if random.below(2) == 0 { 0.0 } else { 0.9 };
            let repetition_penalty = [1.0, 1.0, 1.3][random.below(3)];
            let adapter = random.below(ADAPTERS + 1).checked_sub(1);
            let kept_layers = [None, None, KeptLayers::new(vec![1]), KeptLayers::new(vec![0])][random.below(4)].clone();
            let wish = if i % 8 == 5 {
                Wish::Read(HiddenRequest { prompt, kept_layers, ..Default::default() })
            } else if i % 4 == 3 {
                let labels: BTreeSet<String> =
                    (0..=random.below(30)).map(|_| random.below(3_000).to_string()).collect();
                let (labels, with_end) = (labels.into_iter().collect(), i % 8 == 3);
                Wish::Score(ScoreRequest { prompt, labels, with_end, kept_layers, ..Default::default() })
            } else {
                Wish::Write(GenerationRequest {
                    prompt,
                    max_tokens: random.below(14),
                    sampling: Sampling { temperature, repetition_penalty, seed: i, ..Sampling::default() },
                    top_logprobs: Some(0),
                    // Answers of few different tokens say things twice: there is something to look up, right and wrong.
                    logit_bias: (0..3).filter(|_| i % 2 == 0).map(|id| (TokenId(40 + id), 9.0)).collect(),
                    kept_layers,
                    ..Default::default()
                })
            };
            let limits = EngineLimits { max_sequences: 1, ..EngineLimits::default() };
            let mut engine = Engine::new(Arc::clone(&world.decoder), limits);
            let id = adapter.map(|at: usize| engine.load_adapter(Arc::clone(&world.adapters[at])).unwrap());
            wish.submit(&mut engine, id, CacheScope::Private, false).unwrap();
            let mut outcome = Outcome::default();
            while !engine.is_idle() {
                engine.step(&world.pool).into_iter().for_each(|event| outcome.take(event));
            }
            let (written, finish) = outcome.sequences.pop_first().unwrap().1;
            world.catalogue.push(Entry { wish, adapter, alone: (written, finish.unwrap()) });
        }
        world
    }

    /// What cache and look-up did.
    fn run(&self, seed: u64) -> EngineStats {
        let mut random = Random(seed);
        let page = self.decoder.network().config().cache().page_bytes();
        let spare_pages = [3, 40][random.below(2)];
        let limits = EngineLimits {
            max_sequences: 1 + random.below(8),
            max_queue: 64,
            // The longest request needs 6 pages: from barely enough to plenty.
            kv_cache_bytes: (6 + random.below(spare_pages)) * page,
            ..EngineLimits::default()
        };
        let mut engine = Engine::new(Arc::clone(&self.decoder), limits);
        let mut ids: Vec<AdapterId> =
            self.adapters.iter().map(|adapter| engine.load_adapter(Arc::clone(adapter)).unwrap()).collect();
        let mut open: BTreeMap<SequenceId, usize> = BTreeMap::new();
        let mut cancelled = Vec::new();
        let mut outcome = Outcome::default();
        let mut to_come = 4 + random.below(16);
        let mut steps = 0;
        while to_come > 0 || !engine.is_idle() {
            steps += 1;
            assert!(steps < MAX_STEPS, "seed {seed}: a stall with {engine:?}");
            while to_come > 0 && random.below(3) > 0 {
                to_come -= 1;
                let at = random.below(self.catalogue.len());
                let Entry { wish, adapter, .. } = &self.catalogue[at];
                let group = CacheScope::Group(random.below(2) as u64);
                let tenants = [CacheScope::Tenant(0), CacheScope::Tenant(0), CacheScope::Tenant(1)];
                let scope = [CacheScope::Private, tenants[random.below(3)], tenants[0], group][random.below(4)];
                let adapter = adapter.map(|at| ids[at]);
                let id = wish.submit(&mut engine, adapter, scope, random.below(2) == 0).unwrap();
                open.insert(id, at);
            }
            if random.below(8) == 0 {
                let running: Vec<SequenceId> = open.keys().copied().collect();
                if !running.is_empty() {
                    let id = running[random.below(running.len())];
                    cancelled.push(id);
                    engine.cancel(id);
                    engine.cancel(id);
                }
            }
            if random.below(16) == 0 {
                // An adapter is replaced by the same under another id, while sequences run with it.
                let at = random.below(ADAPTERS);
                assert!(engine.unload_adapter(ids[at]));
                ids[at] = engine.load_adapter(Arc::clone(&self.adapters[at])).unwrap();
            }
            engine.step(&self.pool).into_iter().for_each(|event| outcome.take(event));
            let stats = engine.stats();
            assert!(stats.cache.used_bytes <= limits.kv_cache_bytes && stats.running <= limits.max_sequences);
        }
        assert_eq!(outcome.sequences.len(), open.len(), "seed {seed}: everybody ends");
        for (id, (written, finish)) in &outcome.sequences {
            let (alone, alone_finish) = &self.catalogue[open[id]].alone;
            if *finish == Some(Finish::Cancelled) {
                assert!(cancelled.contains(id) && alone.starts_with(written), "seed {seed}, {id:?}: cancelled");
            } else {
                assert_eq!(written, alone, "seed {seed}, {id:?}");
                assert_eq!(finish.as_ref(), Some(alone_finish), "seed {seed}, {id:?}");
            }
        }
        let stats = engine.stats();
        assert_eq!(stats.cache.used_bytes, stats.cache.remembered_bytes, "seed {seed}: only the tree holds pages now");
        stats
    }
}

#[derive(Default)]
struct Outcome {
    sequences: BTreeMap<SequenceId, (Written, Option<Finish>)>,
}

impl Outcome {
    fn take(&mut self, event: Event) {
        match event {
            Event::Token { id, token, logprob, .. } => {
                self.sequences.entry(id).or_default().0.push((token, logprob.to_bits()));
            }
            Event::Scored { id, scores } => {
                let scores = scores.iter().map(|score| (TokenId(score.share.to_bits()), score.logprob.to_bits()));
                self.sequences.entry(id).or_default().0.extend(scores);
            }
            Event::Hidden { id, hidden } => {
                let bits = hidden.iter().map(|x| (TokenId(0), x.to_bits()));
                self.sequences.entry(id).or_default().0.extend(bits);
            }
            Event::Done { id, finish, .. } => {
                let outcome = self.sequences.entry(id).or_default();
                assert!(outcome.1.replace(finish).is_none(), "{id:?} ends once");
            }
        }
    }
}

#[test]
fn a_crowd_gets_what_each_would_get_alone() {
    #[allow(clippy::disallowed_methods, reason = "tests below the roof have no configuration")]
    let slow = std::env::var("METIER_SLOW_TESTS").is_ok_and(|value| value == "1");
    let world = World::new();
    let distinct: BTreeSet<_> = world.catalogue.iter().map(|entry| &entry.alone.0).collect();
    assert!(distinct.len() > 40, "the catalogue says something: {}", distinct.len());
    let (mut saved_tokens, mut evicted_pages, mut right_tokens, mut wrong_tokens) = (0, 0, 0, 0);
    for seed in 0..if slow { 10_000 } else { 300 } {
        let EngineStats { cache, lookup, .. } = world.run(seed);
        saved_tokens += cache.saved_tokens;
        evicted_pages += cache.evicted_pages;
        right_tokens += lookup.right_tokens;
        wrong_tokens += lookup.proposed_tokens - lookup.right_tokens;
    }
    assert!(
        right_tokens > 100 && wrong_tokens > 100,
        "{right_tokens} of what was looked up was right, {wrong_tokens} not"
    );
    assert!(saved_tokens > 1_000 && evicted_pages > 100, "{saved_tokens} tokens saved, {evicted_pages} pages evicted");
}
