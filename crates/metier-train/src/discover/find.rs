//! *Which tasks are in these calls?* The files are read twice: first to learn templates and to gather texts that have none, then to count, exactly,
//! every call where it belongs.
//!
//! ```text
//! pass 1   calls ─► templates (exact identity: prompt, tools, schema, name in the log)
//!                └► a sample of what has none ─► embeddings ─► groups ─► words that tell them apart
//! pass 2   calls ─► template, else group (of the sample, else by words) ─► volumes, examples, traits
//! then     templates that say the same are joined; names, kinds, ids
//! ```

mod bins;
mod free;
mod keys;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    error::Error,
    ops::Range,
};

use metier_kernels::Pool;
use metier_model::{Digest, Progress, Unit, features::Features, head::LinearHead};
use metier_traffic::{
    Exchange, PriceBook,
    exchange::{Speaker, Verdict},
};

use self::{
    bins::{Bin, Counted, Found, Gathered, Kept, size, trim},
    free::{Free, FreeRow, Groups, Words, best},
    keys::{Key, Keys},
};
use super::{
    cluster::{self, SHAPE},
    read::{Fate, Logs, ReadError, RowPlace},
    repeats::Repeats,
    task::{Discovery, Example, Gold, Identity, IdentityBy, Sampling, Task, TaskKind},
    template::{Miner, Prompt, Template, Templates},
    trace::{self, Trace},
    traits,
};
use crate::{Embed, craft::linear};

/// Texts that are embedded in one run, at most.
pub const MAX_EMBEDDED: usize = 20_000;
/// Bytes of a text that are embedded: about 128 tokens of English.
const EMBEDDED_BYTES: usize = 512;
/// Examples of all tasks together, at most.
pub const MAX_EXAMPLES: usize = 20_000;
/// Bytes of an example's input, and of its output.
pub const MAX_EXAMPLE_BYTES: usize = 16 << 10;
/// Bytes of prompts that wait for their template.
const MAX_WAITING_BYTES: usize = 128 << 20;
/// Bytes of all examples together.
const MAX_EXAMPLES_BYTES: usize = 256 << 20;
/// Inputs by which templates are compared.
const COMPARED: usize = 32;
/// Templates of a run that are compared by embeddings.
const MAX_COMPARED: usize = 200;
/// Share of the sample on which assignment by words is measured.
const HELD_OUT: usize = 5;

/// Tasks cannot be found.
#[derive(Debug, thiserror::Error)]
pub enum DiscoverError {
    /// The logs cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The encoder failed.
    #[error("cannot embed the texts")]
    Embed(#[source] Box<dyn Error + Send + Sync>),
}

/// What discovery works with.
pub struct Finder<'a> {
    /// Prices, the user's own over the list's.
    pub prices: &'a PriceBook,
    /// Embeddings; without them, calls without a template are told apart by tools, schema and name alone.
    pub encoder: Option<&'a dyn Embed>,
    /// Threads.
    pub pool: &'a Pool,
    /// Texts that may be embedded, at most [`MAX_EMBEDDED`].
    pub max_embedded: usize,
    /// Now, in milliseconds since 1970: the price of calls without a time.
    pub now_ms: u64,
}

impl Finder<'_> {
    /// Reads logs and finds their tasks.
    ///
    /// # Errors
    /// The logs hold no call, or the encoder fails.
    pub fn discover(&self, logs: &Logs, progress: &mut dyn FnMut(Progress<'_>)) -> Result<Discovery, DiscoverError> {
        self.discover_traced(logs, None, progress)
    }

    /// As [`discover`](Self::discover), and `trace` gets a line of every row.
    ///
    /// # Errors
    /// As [`discover`](Self::discover); what is wrong with the trace is told when it is written.
    pub fn discover_traced(
        &self,
        logs: &Logs,
        mut trace: Option<&mut Trace>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Discovery, DiscoverError> {
        let mut keys = Keys::default();
        let (templates, free) = self.learn(logs, &mut keys, progress)?;
        let groups = self.group(&free, progress)?;
        drop(free);
        let counted = self.count(logs, &mut keys, &templates, &groups, trace.as_deref_mut(), progress)?;
        self.finish(counted, &keys, &templates, &groups, trace, progress)
    }

    /// Pass 1: templates, and a sample of the texts that have none.
    fn learn(
        &self,
        logs: &Logs,
        keys: &mut Keys,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(Templates, Free), ReadError> {
        let mut free = Free { max: self.max_embedded.min(MAX_EMBEDDED), ..Free::default() };
        let mut miner = Miner::new(MAX_WAITING_BYTES);
        let pass = &mut |call: Exchange, place: &RowPlace| {
            let Some(prompt) = prompt(&call) else { return };
            let key = keys.of(&call);
            let kept = FreeRow { key, hash: hash_of(place), input: last_user(&call), answer: call.answer };
            miner.observe(key, prompt, kept, &mut |prompt, kept| free.offer(prompt, kept));
        };
        logs.read("reading: templates", pass, progress)?;
        let templates = miner.finish(&mut |prompt, kept| free.offer(prompt, kept));
        // What a template that was learned later takes after all.
        free.rows.retain(|row| templates.find(row.row.key, &row.set).is_none());
        Ok((templates, free))
    }

    /// Groups the sample of texts without a template, one kind of calls at a time.
    fn group(&self, free: &Free, progress: &mut dyn FnMut(Progress<'_>)) -> Result<Groups, DiscoverError> {
        let mut groups = Groups::default();
        let Some(encoder) = self.encoder else { return Ok(groups) };
        let mut by_key: BTreeMap<u32, Vec<&FreeRow>> = BTreeMap::new();
        free.rows.iter().for_each(|row| by_key.entry(row.row.key).or_default().push(&row.row));
        for (key, mut rows) in by_key {
            rows.sort_by_key(|row| row.hash);
            // Equal texts are embedded once.
            let mut texts: Vec<&str> = rows.iter().map(|row| beginning(&row.input, EMBEDDED_BYTES)).collect();
            texts.sort_unstable();
            texts.dedup();
            let mut told =
                |shown: Progress<'_>| progress(Progress { stage: "embedding texts without a template", ..shown });
            let vectors = encoder.embed_all(self.pool, &texts, &mut told).map_err(DiscoverError::Embed)?;
            let embeddings: Vec<Vec<f32>> = rows
                .iter()
                .map(|row| {
                    let at = texts.binary_search(&beginning(&row.input, EMBEDDED_BYTES)).expect("it is among them");
                    vectors[at].clone()
                })
                .collect();
            let shapes: Vec<[f32; SHAPE]> =
                rows.iter().map(|row| cluster::shape(&row.input, row.answer.as_deref())).collect();
            let answers: Vec<Option<&str>> = rows.iter().map(|row| row.answer.as_deref()).collect();
            let found = cluster::cluster(&embeddings, &shapes, &answers, cluster::APART);
            let first = groups.n;
            groups.n += found.n;
            groups.keys.resize(groups.n, key);
            for (row, of) in rows.iter().zip(&found.of) {
                groups.known.insert(row.hash, of.map(|of| first + of));
            }
            let n_free = free.seen.get(&key).copied().unwrap_or(0);
            if found.n > 0 && n_free > rows.len() as u64 {
                groups.by_words.insert(key, self.words(&rows, &found, first));
            }
        }
        Ok(groups)
    }

    /// What assigns the calls outside the sample, and how well it does so.
    fn words(&self, rows: &[&FreeRow], found: &cluster::Clusters, first: usize) -> Words {
        let text = |row: &FreeRow| {
            format!(
                "{} \u{1} {}",
                beginning(&row.input, EMBEDDED_BYTES),
                beginning(row.answer.as_deref().unwrap_or_default(), 64)
            )
        };
        let texts: Vec<String> = rows.iter().map(|row| text(row)).collect();
        // The last class is what is left over.
        let n_classes = found.n + 1;
        let classes: Vec<usize> = found.of.iter().map(|of| of.unwrap_or(found.n)).collect();
        let train = |at: &[usize]| {
            let features = Features::fit(at.iter().map(|&at| texts[at].as_str()), 2, 60_000);
            let sparse: Vec<_> = at.iter().map(|&at| features.apply(&texts[at])).collect();
            let classes: Vec<usize> = at.iter().map(|&at| classes[at]).collect();
            let trained = linear::Rows {
                sparse: Some(&sparse),
                n_features: features.len(),
                dense: None,
                dense_scale: 0.0,
                targets: linear::Targets::One(&classes),
                n_classes,
            };
            let weights = linear::Solver::new(trained, 0).solve(1.0, self.pool);
            (features, LinearHead::quantise(weights.bias, &weights.sparse, weights.dense))
        };
        let (held, kept): (Vec<usize>, Vec<usize>) = (0..rows.len()).partition(|at| at % HELD_OUT == 0);
        let (features, head) = train(&kept);
        let mut confusion = vec![vec![0u64; n_classes]; n_classes];
        for &at in &held {
            confusion[classes[at]][best(&head.margins(Some(&features.apply(&texts[at])), None))] += 1;
        }
        let (features, head) = train(&(0..rows.len()).collect::<Vec<_>>());
        Words { features, head, first, n: found.n, confusion }
    }

    /// Pass 2: every call where it belongs.
    fn count(
        &self,
        logs: &Logs,
        keys: &mut Keys,
        templates: &Templates,
        groups: &Groups,
        mut trace: Option<&mut Trace>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Counted, ReadError> {
        let mut bins: BTreeMap<Bin, Gathered> = BTreeMap::new();
        let mut repeats = Repeats::default();
        let mut unpriced: BTreeMap<String, u64> = BTreeMap::new();
        let (mut kept, mut kept_bytes, mut limit) = (0, 0, MAX_EXAMPLES);
        let pass = &mut |fate: Fate<'_>, place: &RowPlace, begins: bool| {
            let call = match fate {
                Fate::Call(call) => *call,
                Fate::Passed(why) => {
                    trace.iter_mut().for_each(|trace| trace.passed(why, place, begins));
                    return;
                }
            };
            let key = keys.of(&call);
            let prompt = prompt(&call);
            let hash = hash_of(place);
            let mut assigned = false;
            let bin = match &prompt {
                None => Bin::Caller(keys.caller(&call, key)),
                Some(prompt) => match templates.find(key, prompt.set()) {
                    Some(at) => Bin::Template(at),
                    None => {
                        let (group, by_words) = groups.find(key, hash, &call);
                        assigned = by_words;
                        group.map_or(Bin::Rest(key), Bin::Group)
                    }
                },
            };
            let gathered = bins.entry(bin).or_default();
            let (volume, quote) = gathered.counts.add(&call, self.prices, self.now_ms);
            if quote.is_none() {
                *unpriced
                    .entry(if call.model.is_empty() { "unknown".to_owned() } else { call.model.clone() })
                    .or_default() += 1;
            }
            gathered.assigned += u64::from(assigned);
            let look = prompt.is_some().then(|| repeats.look(&call));
            if let Some(trace) = trace.as_mut() {
                let by = bin.told_by(assigned);
                let counted = trace::Counted { call: &call, volume: &volume, quote, bin: bin.code(), by, look };
                trace.counted(&counted, place, begins);
            }
            let (Some(prompt), Some(look)) = (prompt, look) else { return };
            gathered.counts.with_text += 1;
            gathered.repeats.add(look);
            let template = match bin {
                Bin::Template(at) => Some(&templates.all()[at]),
                _ => None,
            };
            let constant = template.map_or(0, |template| prompt.constant_bytes(template));
            gathered.counts.prompt_bytes += call.messages.iter().map(|said| said.text.len() as u64).sum::<u64>();
            gathered.counts.constant_bytes += constant as u64;
            if gathered.examples.len() >= gathered.level.unwrap_or(usize::MAX)
                && gathered.examples.peek().is_some_and(|worst| worst.hash <= hash)
            {
                return;
            }
            let input = last_user(&call);
            let varies = template.map_or_else(Vec::new, |template| Prompt::new(&[&input]).varies(template));
            gathered.schema = gathered.schema.take().or_else(|| call.schema.clone());
            let example = example(call, place, &input, varies);
            kept += 1;
            kept_bytes += size(&example);
            gathered.examples.push(Kept { hash, example });
            if let Some(level) = gathered.level {
                while gathered.examples.len() > level {
                    kept_bytes -= gathered.examples.pop().map_or(0, |kept| size(&kept.example));
                    kept -= 1;
                }
            }
            if kept_bytes > MAX_EXAMPLES_BYTES {
                limit = kept / 2;
            }
            if kept >= 2 * MAX_EXAMPLES || kept_bytes > MAX_EXAMPLES_BYTES {
                (kept, kept_bytes) = trim(&mut bins, limit);
            }
        };
        let pass = logs.read_all("reading: volumes", pass, progress)?;
        trim(&mut bins, limit);
        let mut reading = pass.reading;
        reading.unpriced = unpriced;
        Ok(Counted { bins, reading, verdicts: pass.verdicts })
    }

    fn finish(
        &self,
        counted: Counted,
        keys: &Keys,
        templates: &Templates,
        groups: &Groups,
        mut trace: Option<&mut Trace>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Discovery, DiscoverError> {
        let Counted { bins, mut reading, verdicts } = counted;
        let mut found: Vec<Found> = bins
            .into_iter()
            .map(|(bin, gathered)| Found {
                key: match bin {
                    Bin::Template(at) => templates.all()[at].key,
                    Bin::Group(at) => groups.keys[at],
                    Bin::Rest(key) => key,
                    Bin::Caller(at) => keys.callers[at as usize].0,
                },
                bin,
                joined: Vec::new(),
                gathered,
            })
            .collect();
        self.join_alike(&mut found, templates, progress)?;
        if self.encoder.is_none() && found.iter().any(|found| matches!(found.bin, Bin::Rest(_))) {
            reading
                .notes
                .push("without an encoder, calls without a template are one task for each kind of call".to_owned());
        }
        if found.iter().any(|found| matches!(found.bin, Bin::Caller(_))) {
            reading.notes.push(
                "calls without texts count by volume, length and cost; what they are for is not known".to_owned(),
            );
        }
        let mut tasks: Vec<Task> = Vec::new();
        // Two templates may share their smallest hash, or two groups their words: the larger one keeps the id.
        found.sort_by_key(|found| (std::cmp::Reverse(found.gathered.counts.calls), found.bin));
        let mut ids: BTreeSet<String> = BTreeSet::new();
        for found in found {
            let bins: Vec<u64> = found.joined.iter().chain([&found.bin]).map(|bin| bin.code()).collect();
            let whole = match found.bin {
                Bin::Template(at) => format!("{:?}", templates.all()[at].sketch()),
                bin => format!("{bin:?}"),
            };
            let mut task = task(found, keys, templates, groups, &verdicts);
            let mut again = 0;
            while !ids.insert(task.id.clone()) {
                task.id = id_of(&format!("{} {whole} {again}", task.id));
                again += 1;
            }
            trace.iter_mut().for_each(|trace| trace.placed(bins.iter().copied(), &task.id));
            tasks.push(task);
        }
        let weight = |task: &Task| {
            let total = task.total();
            (total.cost_picousd, total.input_tokens.saturating_add(total.output_tokens.saturating_mul(4)))
        };
        tasks.sort_by(|a, b| weight(b).cmp(&weight(a)).then_with(|| a.id.cmp(&b.id)));
        traits::name(&mut tasks);
        progress(Progress {
            stage: "naming tasks",
            done: tasks.len() as u64,
            total: Some(tasks.len() as u64),
            unit: Unit::Steps,
        });
        Ok(Discovery { tasks, reading })
    }

    /// Joins templates of one kind of call that say nearly the same, or whose texts and answers are alike.
    fn join_alike(
        &self,
        found: &mut Vec<Found>,
        templates: &Templates,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), DiscoverError> {
        let mut at: Vec<usize> = (0..found.len()).filter(|&at| matches!(found[at].bin, Bin::Template(_))).collect();
        at.sort_by_key(|&at| std::cmp::Reverse(found[at].gathered.counts.calls));
        at.truncate(MAX_COMPARED);
        let mut centres: HashMap<usize, Vec<f32>> = HashMap::new();
        // Only where there is something to compare with.
        let alone = |at: &usize| {
            found.iter().filter(|other| other.key == found[*at].key && matches!(other.bin, Bin::Template(_))).count()
                < 2
        };
        if let Some(encoder) = self.encoder {
            for &at in at.iter().filter(|at| !alone(at)) {
                let kept = found[at].gathered.examples.iter().take(COMPARED);
                let texts: Vec<_> = kept.map(|kept| kept.example.variables()).collect();
                let texts: Vec<&str> = texts.iter().map(|text| beginning(text, EMBEDDED_BYTES)).collect();
                let mut told = |_: Progress<'_>| {
                    progress(Progress { stage: "comparing templates", done: 0, total: None, unit: Unit::Steps })
                };
                let vectors = encoder.embed_all(self.pool, &texts, &mut told).map_err(DiscoverError::Embed)?;
                centres.insert(at, traits::centre(&vectors));
            }
        }
        let labels: HashMap<usize, BTreeSet<String>> = at
            .iter()
            .map(|&at| (at, traits::answers(found[at].gathered.examples.iter().map(|kept| &kept.example))))
            .collect();
        let keys: HashMap<usize, BTreeSet<String>> = at
            .iter()
            .map(|&at| (at, traits::answer_keys(found[at].gathered.examples.iter().map(|kept| &kept.example))))
            .collect();
        let mut into: Vec<usize> = (0..found.len()).collect();
        for (i, &a) in at.iter().enumerate() {
            for &b in &at[..i] {
                if found[a].key != found[b].key || into[a] != a {
                    continue;
                }
                let (Bin::Template(ta), Bin::Template(tb)) = (found[a].bin, found[b].bin) else { continue };
                let overlap = templates.all()[ta].overlap(&templates.all()[tb]);
                let cosine = match (centres.get(&a), centres.get(&b)) {
                    (Some(one), Some(other)) => traits::dot(one, other),
                    _ => 0.0,
                };
                let (one, other) = (&labels[&a], &labels[&b]);
                let both = one.intersection(other).count();
                let same_answers =
                    !one.is_empty() && both * 2 >= one.len().min(other.len()) && both * 4 >= one.len().max(other.len());
                // Documents of several forms under one instruction: what is asked for is the same.
                let same_keys = !keys[&a].is_empty() && keys[&a] == keys[&b];
                let alike = overlap >= 0.9
                    || (overlap >= 0.3 && same_answers)
                    || (overlap >= 0.1 && same_keys)
                    || (cosine >= 0.8 && same_answers)
                    || (overlap >= 0.6 && cosine >= 0.9);
                if alike {
                    into[a] = into[b];
                }
            }
        }
        for at in (0..found.len()).rev() {
            if into[at] == at {
                continue;
            }
            let gathered = std::mem::take(&mut found[at].gathered);
            let joined = [std::mem::take(&mut found[at].joined), vec![found[at].bin]].concat();
            let to = &mut found[into[at]];
            to.joined.extend(joined);
            let to = &mut to.gathered;
            to.counts.join(gathered.counts);
            to.repeats.join(&gathered.repeats);
            to.assigned += gathered.assigned;
            to.examples.extend(gathered.examples);
        }
        let mut keep = into.iter().enumerate().map(|(at, to)| at == *to);
        found.retain(|_| keep.next().unwrap_or(true));
        Ok(())
    }
}

/// The text's beginning, of at most so many bytes.
fn beginning(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

/// What the miner looks at: instructions, and the last message of the user.
fn prompt(call: &Exchange) -> Option<Prompt> {
    if call.messages.is_empty() {
        return None;
    }
    let system = call.messages.iter().filter(|said| said.by == Speaker::System).map(|said| said.text.as_str());
    let user = call.messages.iter().rev().find(|said| said.by == Speaker::User);
    let last = user.or_else(|| call.messages.last().filter(|said| said.by != Speaker::System));
    let parts: Vec<&str> = system.chain(last.map(|said| said.text.as_str())).collect();
    Some(Prompt::new(&parts))
}

/// What a specialist would read: the last message of the user.
fn last_user(call: &Exchange) -> String {
    let user = call.messages.iter().rev().find(|said| said.by == Speaker::User);
    user.or(call.messages.last()).map_or_else(String::new, |said| said.text.clone())
}

fn hash_of(place: &RowPlace) -> u64 {
    let digest = Digest::of(place.to_string().as_bytes());
    u64::from_be_bytes(digest.0[..8].try_into().expect("eight bytes"))
}

fn example(call: Exchange, place: &RowPlace, input: &str, mut varies: Vec<Range<usize>>) -> Example {
    let input = beginning(input, MAX_EXAMPLE_BYTES);
    varies.retain(|range| range.end <= input.len());
    Example {
        place: place.to_string(),
        id: call.id.unwrap_or_else(|| place.to_string()),
        time_ms: call.time_ms,
        group: call.group,
        model: call.model,
        input: input.to_owned(),
        varies,
        output: call.answer.filter(|_| !call.failed).map(|answer| beginning(&answer, MAX_EXAMPLE_BYTES).to_owned()),
        gold: call.gold.map(gold),
        weight: 1.0,
    }
}

fn gold(verdict: Verdict) -> Gold {
    match verdict {
        Verdict::Label(label) => Gold::Label(label),
        Verdict::Score { name, value } => Gold::Score { name, value },
    }
}

fn task(
    found: Found,
    keys: &Keys,
    templates: &Templates,
    groups: &Groups,
    verdicts: &HashMap<String, Verdict>,
) -> Task {
    let Found { bin, key, gathered, .. } = found;
    let Gathered { counts, repeats, assigned, schema, examples, .. } = gathered;
    let mut examples: Vec<Example> = examples.into_iter().map(|kept| kept.example).collect();
    examples.sort_by(|a, b| (a.time_ms, &a.place).cmp(&(b.time_ms, &b.place)));
    let with_text = counts.with_text;
    for example in &mut examples {
        if example.gold.is_none() {
            let said = verdicts.get(&example.id).or_else(|| verdicts.get(example.group.as_ref()?));
            example.gold = said.cloned().map(gold);
        }
    }
    let n = examples.len() as f64;
    examples.iter_mut().for_each(|example| example.weight = with_text as f64 / n);
    let template: Option<&Template> = match bin {
        Bin::Template(at) => Some(&templates.all()[at]),
        _ => None,
    };
    let Key { tools, schema: of_key, named } = keys.all[key as usize].clone();
    let by = match bin {
        Bin::Template(_) => IdentityBy::Template,
        Bin::Group(_) => IdentityBy::Texts,
        Bin::Rest(_) => IdentityBy::Rest,
        Bin::Caller(_) => IdentityBy::Caller,
    };
    let caller = match bin {
        Bin::Caller(at) => Some(keys.callers[at as usize].1.clone()),
        _ => None,
    };
    let identity = Identity {
        template: template.map(|template| template.text.clone()),
        tools,
        schema: of_key.or(schema),
        named: named.or(caller),
        by,
        terms: Vec::new(),
    };
    let volume_interval = match bin {
        Bin::Group(at) => groups.volume_interval(at, assigned, counts.calls),
        _ => [1.0, 1.0],
    };
    let sampling = Sampling {
        with_text,
        examples: examples.len() as u64,
        fraction: if with_text == 0 { 0.0 } else { examples.len() as f64 / with_text as f64 },
        assigned,
        volume_interval,
    };
    let traits = traits::of(&examples, &counts, &repeats, identity.schema.as_deref());
    let kind = traits::kind(&examples, &traits, identity.schema.is_some());
    let personal = traits::personal(&examples);
    let id = id(&identity, template, &examples);
    let (first_ms, last_ms) = counts.span_ms.map_or((None, None), |(first, last)| (Some(first), Some(last)));
    let mut task = Task {
        id,
        name: String::new(),
        identity,
        kind,
        weeks: counts.weeks,
        undated: counts.undated,
        first_ms,
        last_ms,
        examples,
        sampling,
        traits,
        personal,
    };
    // What no span of a text can be has to be written.
    if task.kind.kind == TaskKind::Extract
        && let Err(why) = task.answer_schema()
    {
        task.kind.evidence.push_str(&format!("; but {why}"));
        task.kind.kind = TaskKind::Generate;
    }
    task
}

/// The same from run to run: made from the smallest hash of what the template always says (equal for two templates with the probability of
/// their overlap), tools, schema and name; of a group of texts, from its most telling answers and words.
fn id(identity: &Identity, template: Option<&Template>, examples: &[Example]) -> String {
    let Identity { tools, schema, named, by, .. } = identity;
    let own = match template {
        Some(template) => format!("{:?}", template.sketch().first()),
        None => format!("{:?}", traits::frequent(examples)),
    };
    id_of(&format!("{tools:?} {schema:?} {named:?} {by:?} {own}"))
}

/// An id made from everything that it stands for.
fn id_of(whole: &str) -> String {
    format!("t-{}", &Digest::of(whole.as_bytes()).to_string()[..12])
}
