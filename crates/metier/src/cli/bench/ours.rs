//! Our side of the table: the engine and the encoder as a library, no server between.

use std::{
    collections::BTreeMap,
    hint::black_box,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use metier_kernels::Pool;
use metier_model::{
    Adapter, Decoder, Encoder, Engine, EngineLimits, LoraFormat, TokenId,
    chat::Prompt,
    decoder::DecoderOptions,
    engine::{AdapterId, CacheScope, Event, GenerationRequest, SequenceId},
    tiny,
};

use super::{super::Failure, SENTENCE, measure::at_quantile};

/// Room for 1,000 adapters of rank 8 and for 32 sequences of the 1 B shape.
const LIMITS: EngineLimits =
    EngineLimits { max_sequences: 32, max_queue: 256, kv_cache_bytes: 2 << 30, adapter_bytes: 8 << 30 };
/// Deltas of random adapters against the base's rows: large enough to be computed, too small to matter.
const STRENGTH: f32 = 0.01;

/// Opens a decoder.
pub(super) fn open(gguf: &Path, options: &DecoderOptions) -> Result<Arc<Decoder>, Failure> {
    let decoder = Decoder::open_with(gguf, options.clone());
    let decoder = decoder.with_context(|| format!("cannot open `{}`", gguf.display()));
    Ok(Arc::new(decoder.map_err(Failure::Environment)?))
}

/// So many tokens of text, the same at each call; another `turn` starts elsewhere.
pub(super) fn prompt(decoder: &Decoder, tokens: usize, turn: usize) -> Result<Vec<TokenId>, Failure> {
    let text = format!("{turn}. {}", format!("{SENTENCE} ").repeat(tokens.div_ceil(10)));
    let mut ids = decoder.tokenizer().encode(&text).map_err(Failure::environment)?;
    ids.truncate(tokens);
    Ok(ids)
}

/// Adapters of rank `rank` on all seven maps: PEFT's files, or random ones where there are none.
pub(super) fn adapters(
    decoder: &Decoder,
    folder: Option<&Path>,
    rank: usize,
    count: usize,
) -> Result<Vec<Arc<Adapter>>, Failure> {
    let base = decoder.network().config();
    let read = |i: usize| match folder {
        Some(folder) => Adapter::open(&folder.join(i.to_string()), base, LoraFormat::Int8),
        None => {
            let files = tiny::adapter(base, i as u64, rank, &[], STRENGTH);
            Adapter::from_bytes(files.config.as_bytes(), &files.weights, base, LoraFormat::Int8)
        }
    };
    (0..count).map(|i| read(i).map(Arc::new).map_err(Failure::environment)).collect()
}

/// Tokens a second at which a prompt is read, its last token's logits included.
pub(super) fn prefill(decoder: &Arc<Decoder>, pool: &Pool, prompt: &[TokenId]) -> Result<f64, Failure> {
    let mut engine = Engine::new(Arc::clone(decoder), LIMITS);
    submit(&mut engine, GenerationRequest { prompt: prompt.to_vec(), max_tokens: 1, ..Default::default() })?;
    let begun = Instant::now();
    black_box(engine.drain(pool));
    Ok(prompt.len() as f64 / begun.elapsed().as_secs_f64())
}

/// Tokens a second of all streams together, from when each has its first token until the first of them ends.
pub(super) fn decode(
    decoder: &Arc<Decoder>,
    pool: &Pool,
    streams: usize,
    prompt_tokens: usize,
    new_tokens: usize,
) -> Result<f64, Failure> {
    let mut engine = Engine::new(Arc::clone(decoder), LIMITS);
    for turn in 0..streams {
        let prompt = prompt(decoder, prompt_tokens, turn)?;
        submit(&mut engine, GenerationRequest { prompt, max_tokens: new_tokens, ..Default::default() })?;
    }
    let mut written: BTreeMap<SequenceId, usize> = BTreeMap::new();
    let (mut begun, mut counted) = (None, 0);
    let mut ended = false;
    while !ended && !engine.is_idle() {
        let events = engine.step(pool);
        for event in events {
            match event {
                Event::Token { id, .. } => {
                    *written.entry(id).or_default() += 1;
                    counted += usize::from(begun.is_some());
                }
                Event::Scored { .. } | Event::Hidden { .. } => {}
                Event::Done { .. } => ended = true,
            }
        }
        if begun.is_none() && written.len() == streams {
            begun = Some(Instant::now());
        }
    }
    let elapsed = begun.map(|begun| begun.elapsed());
    let elapsed = elapsed.filter(|_| counted >= streams * new_tokens / 4);
    let elapsed = elapsed.ok_or_else(|| anyhow!("an answer ended after few tokens: the decode rate would be wrong"));
    Ok(counted as f64 / elapsed.map_err(Failure::Environment)?.as_secs_f64())
}

/// What clients that ask at once see.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clients {
    pub(super) clients: usize,
    /// Requests of each client, one after the other.
    pub(super) rounds: usize,
    pub(super) prompt_tokens: usize,
    pub(super) new_tokens: usize,
}

/// Generated tokens a second (reading included), then p50, p95 and the slowest of the first tokens in ms.
pub(super) fn served(tokens: usize, whole: Duration, firsts: &[f64]) -> Vec<f64> {
    let rate = tokens as f64 / whole.as_secs_f64();
    vec![rate, at_quantile(firsts, 0.5), at_quantile(firsts, 0.95), at_quantile(firsts, 1.0)]
}

/// Each client asks again as soon as it is answered; client `i` with adapter `i` modulo their number, or none.
pub(super) fn clients(
    decoder: &Arc<Decoder>,
    pool: &Pool,
    plan: Clients,
    adapters: &[Arc<Adapter>],
) -> Result<Vec<f64>, Failure> {
    let mut engine = Engine::new(Arc::clone(decoder), LIMITS);
    let ids = load(&mut engine, adapters)?;
    let mut prompts = Vec::new();
    for turn in 0..plan.clients * plan.rounds {
        prompts.push(prompt(decoder, plan.prompt_tokens, turn)?);
    }
    let begun = Instant::now();
    // Sequence → client, when it asked, whether its first token came.
    let mut open: BTreeMap<SequenceId, (usize, Instant, bool)> = BTreeMap::new();
    let mut asked = vec![0; plan.clients];
    let (mut tokens, mut firsts) = (0, Vec::new());
    let mut free: Vec<usize> = (0..plan.clients).collect();
    while !free.is_empty() || !open.is_empty() {
        for client in free.drain(..) {
            if asked[client] < plan.rounds {
                let request = GenerationRequest {
                    prompt: prompts[asked[client] * plan.clients + client].clone(),
                    max_tokens: plan.new_tokens,
                    adapter: (!ids.is_empty()).then(|| ids[client % ids.len()]),
                    ..Default::default()
                };
                asked[client] += 1;
                open.insert(submit(&mut engine, request)?, (client, Instant::now(), false));
            }
        }
        for event in engine.step(pool) {
            match event {
                Event::Token { id, .. } => {
                    if let Some((_, since, seen @ false)) = open.get_mut(&id) {
                        *seen = true;
                        firsts.push(since.elapsed().as_secs_f64() * 1e3);
                    }
                }
                Event::Scored { .. } | Event::Hidden { .. } => {}
                Event::Done { id, completion_tokens, .. } => {
                    tokens += completion_tokens;
                    free.extend(open.remove(&id).map(|(client, ..)| client));
                }
            }
        }
    }
    Ok(served(tokens, begun.elapsed(), &firsts))
}

/// A base with specialists that have read a shared prefix.
pub(super) struct Warm {
    engine: Engine,
    ids: Vec<AdapterId>,
    prefix: Vec<TokenId>,
    turn: usize,
}

impl Warm {
    pub(super) fn new(
        decoder: &Arc<Decoder>,
        adapters: &[Arc<Adapter>],
        prefix_tokens: usize,
    ) -> Result<Self, Failure> {
        let mut engine = Engine::new(Arc::clone(decoder), LIMITS);
        let ids = load(&mut engine, adapters)?;
        Ok(Self { engine, ids, prefix: prompt(decoder, prefix_tokens, 0)?, turn: 0 })
    }

    /// Milliseconds to the first token of the prefix and `new` tokens that were never asked before.
    pub(super) fn first_token(&mut self, pool: &Pool, adapter: usize, new: usize) -> Result<f64, Failure> {
        self.turn += 1;
        let mut prompt = self.prefix.clone();
        prompt.extend(self::prompt(self.engine.decoder(), new, 1000 + self.turn)?);
        let request = GenerationRequest {
            prompt,
            max_tokens: 1,
            adapter: Some(self.ids[adapter]),
            scope: CacheScope::Tenant(0),
            ..Default::default()
        };
        let begun = Instant::now();
        submit(&mut self.engine, request)?;
        black_box(self.engine.drain(pool));
        Ok(begun.elapsed().as_secs_f64() * 1e3)
    }
}

/// Many adapters in one engine.
pub(super) struct Many {
    engine: Engine,
    ids: Vec<AdapterId>,
    turn: usize,
}

impl Many {
    pub(super) fn new(decoder: &Arc<Decoder>) -> Self {
        Self { engine: Engine::new(Arc::clone(decoder), LIMITS), ids: Vec::new(), turn: 0 }
    }

    pub(super) fn load(&mut self, adapter: Arc<Adapter>) -> Result<(), Failure> {
        self.ids.extend(load(&mut self.engine, &[adapter])?);
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    pub(super) fn adapter_bytes(&self) -> usize {
        self.engine.stats().adapter_bytes
    }

    /// Milliseconds for an answer of 16 tokens to 16, of the next adapter in turn. The stride visits all of them.
    pub(super) fn answer(&mut self, pool: &Pool) -> Result<f64, Failure> {
        const STRIDE: usize = 37;
        self.turn += 1;
        let prompt = prompt(self.engine.decoder(), 16, 0)?;
        let adapter = Some(self.ids[self.turn * STRIDE % self.ids.len()]);
        let begun = Instant::now();
        submit(&mut self.engine, GenerationRequest { prompt, max_tokens: 16, adapter, ..Default::default() })?;
        black_box(self.engine.drain(pool));
        Ok(begun.elapsed().as_secs_f64() * 1e3)
    }
}

/// Sentences a second, tokenizing included.
pub(super) fn embed(encoder: &Encoder, pool: &Pool, texts: &[&str], repeats: usize) -> Result<f64, Failure> {
    let mut rates = Vec::with_capacity(repeats);
    for _ in 0..repeats {
        let begun = Instant::now();
        black_box(encoder.embed(pool, texts).map_err(Failure::environment)?);
        rates.push(texts.len() as f64 / begun.elapsed().as_secs_f64());
    }
    Ok(at_quantile(&rates, 0.5))
}

/// How well a text was foreseen: exp of the mean of −ln p over its tokens.
pub(in crate::cli) struct Perplexity {
    /// Of a token.
    pub(in crate::cli) value: f64,
    /// Standard error of the perplexity.
    pub(in crate::cli) error: f64,
    /// Tokens that counted.
    pub(in crate::cli) tokens: usize,
}

impl Perplexity {
    /// 95 %.
    pub(in crate::cli) fn interval(&self) -> [f64; 2] {
        [self.value - 1.96 * self.error, self.value + 1.96 * self.error]
    }
}

/// As `llama-perplexity` takes it: the text is cut into chunks of 512 tokens, each read alone (behind the token of beginning, where the
/// model has one), and the tokens of the second half count.
pub(in crate::cli) fn perplexity(
    decoder: &Decoder,
    pool: &Pool,
    text: &str,
    chunks: usize,
) -> Result<Perplexity, Failure> {
    let chunk_tokens = 512.min(decoder.network().config().context);
    let tokenizer = decoder.tokenizer();
    let begin = tokenizer.encode_prompt(&Prompt::default()).map_err(Failure::environment)?;
    let mut ids = begin.clone();
    // Enough text for the chunks: a token has at most some ten bytes on average.
    let end = text.char_indices().map(|(at, _)| at).find(|at| *at >= 16 * chunk_tokens * chunks).unwrap_or(text.len());
    ids.extend(tokenizer.encode(&text[..end]).map_err(Failure::environment)?);
    if ids.len() < chunk_tokens * chunks {
        let found = ids.len();
        let problem = anyhow!("the text has {found} tokens, {} are needed for {chunks} chunks", chunk_tokens * chunks);
        return Err(Failure::Environment(problem));
    }
    let (mut sum, mut squares, mut tokens) = (0.0, 0.0, 0);
    for chunk in ids.chunks_exact(chunk_tokens).take(chunks) {
        let mut chunk = chunk.to_vec();
        chunk[..begin.len()].copy_from_slice(&begin);
        let logits = decoder.logits(pool, &chunk).map_err(Failure::environment)?;
        for (row, next) in logits[chunk_tokens / 2..].iter().zip(&chunk[chunk_tokens / 2 + 1..]) {
            let max = f64::from(row.iter().copied().fold(f32::MIN, f32::max));
            let total: f64 = row.iter().map(|x| (f64::from(*x) - max).exp()).sum();
            let loss = total.ln() + max - f64::from(row[next.0 as usize]);
            (sum, squares, tokens) = (sum + loss, squares + loss * loss, tokens + 1);
        }
    }
    let n = tokens as f64;
    let (mean, variance) = (sum / n, squares / n - (sum / n).powi(2));
    let value = mean.exp();
    Ok(Perplexity { value, error: value * (variance / (n - 1.0)).sqrt(), tokens })
}

fn load(engine: &mut Engine, adapters: &[Arc<Adapter>]) -> Result<Vec<AdapterId>, Failure> {
    adapters.iter().map(|adapter| engine.load_adapter(Arc::clone(adapter)).map_err(Failure::environment)).collect()
}

fn submit(engine: &mut Engine, request: GenerationRequest) -> Result<SequenceId, Failure> {
    engine.submit(request).map_err(Failure::environment)
}
