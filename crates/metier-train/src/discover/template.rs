//! *Which prompts were made from the same template?* Prompts in, one after the other; a template for each, or none, out.
//!
//! Log parsers of the Drain family keep a tree by word count and leading words, and mask where the words of a leaf differ. Prompts need another
//! way: what fills a template may be a word or a whole contract, so that neither length nor position tells two templates apart. Here every prompt is the set
//! of its *shingles* (five tokens in a row; a token with a digit counts as any number). What a template always says stands in all
//! its prompts:
//!
//! 1. of prompts that no known template fits, [`LEARN_ROWS`] different ones are gathered;
//! 2. the shingle that most of them share picks its prompts; what at least nine in ten of these share is the template's constant part
//!    (its *closure*), if that is at least [`MIN_SHINGLES`] long; then the rest is searched likewise;
//! 3. among a template's own prompts the same is done again: where a few longer closures explain four fifths of them, it was only a preamble that several
//!    templates share, and these take its place.
//!
//! A prompt belongs to the template with the most shingles of which it has at least 85 %. All of it is deterministic: ties are broken by hash.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ops::Range,
};

use metier_model::specialist::mix;

use super::traits::is_plain;

/// Tokens of a shingle.
pub const SHINGLE_TOKENS: usize = 5;
/// Shingles that a template has at least: nine tokens.
pub const MIN_SHINGLES: usize = 5;
/// And a finer one beside the preamble that it shares: a value of three tokens already makes seven new shingles.
const MIN_FINER_SHINGLES: usize = 8;
/// Different prompts from which templates are learned at a time.
pub const LEARN_ROWS: usize = 512;
/// Tokens of a prompt that are looked at: so many at its beginning,
const HEAD_TOKENS: usize = 1500;
/// and so many at its end, where instructions stand too.
const TAIL_TOKENS: usize = 500;
/// Most templates of a run: what is beyond is told apart by its texts alone.
pub const MAX_TEMPLATES: usize = 2000;
/// Share of a template's shingles that a prompt must have.
const FIT: f64 = 0.85;
/// Share of the prompts that must have a shingle of the constant part.
const CONSTANT: f64 = 0.9;
/// Share of a template's prompts that finer ones must explain to take its place.
const EXPLAINED: f64 = 0.8;
/// Most finer templates in the place of one: more are values, not templates.
const MAX_FINER: usize = 24;
/// Fewest prompts of a template.
const MIN_ROWS: usize = 4;
/// And their least share of those that are learned from.
const MIN_SHARE: f64 = 0.01;
/// Words that a template must have beside those that every prompt has.
const MIN_TELLING: usize = 3;
/// Shingles by which a template is looked up.
const ANCHORS: usize = 6;
/// Closures that are tried at most where none is long enough.
const MAX_TRIES: usize = 200;

/// One token of a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Token {
    hash: u64,
    start: usize,
    end: usize,
}

/// A prompt as the miner sees it.
#[derive(Clone, Debug)]
pub struct Prompt {
    text: String,
    tokens: Vec<Token>,
    /// `shingles[i]` begins at `tokens[i]`.
    shingles: Vec<u64>,
    /// The same, sorted, each once.
    set: Vec<u64>,
}

impl Prompt {
    /// Cuts the texts of a prompt (instructions first) into tokens.
    pub fn new(parts: &[&str]) -> Self {
        let text = parts.join("\n");
        let mut tokens = tokens(&text);
        if tokens.len() > HEAD_TOKENS + TAIL_TOKENS {
            tokens.drain(HEAD_TOKENS..tokens.len() - TAIL_TOKENS);
        }
        let shingles: Vec<u64> = tokens.windows(SHINGLE_TOKENS).map(shingle).collect();
        let mut set = shingles.clone();
        set.sort_unstable();
        set.dedup();
        Self { text, tokens, shingles, set }
    }

    /// Equal prompts, but for numbers, have equal hashes.
    pub fn hash(&self) -> u64 {
        self.tokens.iter().fold(self.tokens.len() as u64, |hash, token| mix(hash ^ token.hash))
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        self.text.len()
            + self.tokens.len() * size_of::<Token>()
            + (self.shingles.len() + self.set.len()) * size_of::<u64>()
    }

    /// Its shingles, sorted, each once: what [`Templates::find`] looks at.
    pub fn into_set(self) -> Vec<u64> {
        self.set
    }

    /// The same, lent.
    pub fn set(&self) -> &[u64] {
        &self.set
    }

    /// Which tokens the template's constant part covers.
    fn covered(&self, template: &Template) -> Vec<bool> {
        let mut covered = vec![false; self.tokens.len()];
        for (at, shingle) in self.shingles.iter().enumerate() {
            if template.shingles.binary_search(shingle).is_ok() {
                covered[at..at + SHINGLE_TOKENS].iter_mut().for_each(|covered| *covered = true);
            }
        }
        covered
    }

    /// Where the text says what the template does not: parts that differ from prompt to prompt and hold a letter or a digit.
    pub fn varies(&self, template: &Template) -> Vec<Range<usize>> {
        let covered = self.covered(template);
        let runs = covered.chunk_by(|a, b| a == b).scan(0, |at, run| {
            let start = *at;
            *at += run.len();
            Some((run[0], self.tokens[start].start..self.tokens[*at - 1].end))
        });
        let says = |range: &Range<usize>| self.text[range.clone()].chars().any(char::is_alphanumeric);
        runs.filter(|(covered, range)| !covered && says(range)).map(|(_, range)| range).collect()
    }

    /// Bytes of what the template says.
    pub fn constant_bytes(&self, template: &Template) -> usize {
        let covered = self.covered(template);
        let runs = covered.chunk_by(|a, b| a == b).scan(0, |at, run| {
            let start = *at;
            *at += run.len();
            Some(if run[0] { self.tokens[*at - 1].end - self.tokens[start].start } else { 0 })
        });
        runs.sum()
    }

    /// The text with `{}` for the parts that differ.
    fn masked(&self, template: &Template) -> String {
        let covered = self.covered(template);
        let (mut masked, mut at) = (String::new(), 0);
        while at < covered.len() {
            let run = covered[at..].iter().take_while(|&&other| other == covered[at]).count();
            if at > 0 {
                masked.push_str(&self.text[self.tokens[at - 1].end..self.tokens[at].start]);
            }
            if covered[at] {
                masked.push_str(&numberless(&self.text[self.tokens[at].start..self.tokens[at + run - 1].end]));
            } else {
                masked.push_str("{}");
            }
            at += run;
        }
        masked
    }
}

/// Numbers inside a constant part may differ too.
fn numberless(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for token in text.split_inclusive(|c: char| !is_word(c)) {
        let word = token.trim_end_matches(|c: char| !is_word(c));
        if word.chars().any(|c| c.is_ascii_digit()) {
            out.push_str("{}");
            out.push_str(&token[word.len()..]);
        } else {
            out.push_str(token);
        }
    }
    out
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Words, and other characters one by one; white space is not looked at.
fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut chars = text.char_indices().peekable();
    while let Some((start, first)) = chars.next() {
        if first.is_whitespace() {
            continue;
        }
        let mut end = start + first.len_utf8();
        let mut digit = first.is_ascii_digit();
        if is_word(first) {
            while let Some(&(at, char)) = chars.peek().filter(|(_, char)| is_word(*char)) {
                digit |= char.is_ascii_digit();
                end = at + char.len_utf8();
                chars.next();
            }
        }
        let hash = if digit { 1 } else { hash(&text[start..end]) };
        tokens.push(Token { hash, start, end });
    }
    tokens
}

/// FNV-1a 64.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

fn shingle(tokens: &[Token]) -> u64 {
    tokens.iter().fold(0, |hash, token| mix(hash ^ token.hash.rotate_left(7)).wrapping_add(1))
}

/// What prompts have in common.
#[derive(Clone, Debug)]
pub struct Template {
    /// Which kind of calls it belongs to: prompts of different keys never share one.
    pub key: u32,
    /// The constant part, sorted.
    shingles: Vec<u64>,
    /// The first prompt that it was learned from, with `{}` for what differs.
    pub text: String,
}

impl Template {
    /// Constant words, for names and for telling whether it says anything of its own.
    pub fn words(&self) -> impl Iterator<Item = &str> {
        self.text.split(|c: char| !is_word(c)).filter(|word| !word.is_empty())
    }

    /// Whether it asks for anything: "You are a helpful assistant." does not, and what has only that is told apart by its texts.
    fn says_something(&self) -> bool {
        let lower = self.text.to_lowercase();
        let telling: HashSet<&str> =
            lower.split(|c: char| !is_word(c)).filter(|word| word.len() > 1 && !is_plain(word)).collect();
        telling.len() >= MIN_TELLING
    }

    /// Share of the shingles of the two that both have (Jaccard).
    pub fn overlap(&self, other: &Self) -> f64 {
        let both = self.shingles.iter().filter(|shingle| other.shingles.binary_search(shingle).is_ok()).count();
        both as f64 / (self.shingles.len() + other.shingles.len() - both) as f64
    }

    /// The constant part's smallest shingles after mixing: whoever shares most of the constant part shares most of these.
    pub fn sketch(&self) -> Vec<u64> {
        let mut mixed: Vec<u64> = self.shingles.iter().map(|&shingle| mix(shingle)).collect();
        mixed.sort_unstable();
        mixed
    }

    /// Shingles by which it is looked up: those of its sketch, as they stand in prompts.
    fn anchors(&self) -> Vec<u64> {
        let mut shingles = self.shingles.clone();
        shingles.sort_unstable_by_key(|&shingle| mix(shingle));
        shingles.truncate(ANCHORS);
        shingles
    }

    fn fit(&self, set: &[u64]) -> f64 {
        let has = self.shingles.iter().filter(|shingle| set.binary_search(shingle).is_ok()).count();
        has as f64 / self.shingles.len() as f64
    }
}

/// Templates by their anchors.
#[derive(Debug, Default)]
pub struct Templates {
    all: Vec<Template>,
    by_anchor: HashMap<u64, Vec<u32>>,
}

impl Templates {
    /// All of them; an index is its name in this run.
    pub fn all(&self) -> &[Template] {
        &self.all
    }

    /// The template that fits the shingles of a prompt, the longest of several.
    pub fn find(&self, key: u32, set: &[u64]) -> Option<usize> {
        let mut candidates: Vec<u32> = Vec::new();
        for shingle in set {
            if let Some(found) = self.by_anchor.get(shingle) {
                candidates.extend(found);
            }
        }
        candidates.sort_unstable();
        candidates.dedup();
        let fits = candidates.into_iter().map(|at| at as usize).filter(|&at| {
            let template = &self.all[at];
            template.key == key && template.fit(set) >= FIT
        });
        fits.max_by_key(|&at| (self.all[at].shingles.len(), std::cmp::Reverse(at)))
    }

    fn add(&mut self, template: Template) {
        let at = u32::try_from(self.all.len()).expect("at most MAX_TEMPLATES");
        // The smallest after mixing, as in a sketch: anchors lie anywhere in the text. A fit lacks 15 % at most, so that one of six is missed
        // in 1 of 80,000.
        for shingle in template.anchors() {
            self.by_anchor.entry(shingle).or_default().push(at);
        }
        self.all.push(template);
    }
}

/// Learns templates from prompts as they come. `T`: what waits with a prompt until it is known where it belongs.
pub struct Miner<T> {
    templates: Templates,
    /// By key: prompts that fit nothing yet.
    waiting: BTreeMap<u32, Waiting<T>>,
    waiting_bytes: usize,
    max_waiting_bytes: usize,
}

struct Waiting<T> {
    rows: Vec<(Prompt, T)>,
    different: HashSet<u64>,
    learn_at: usize,
}

impl<T> Miner<T> {
    /// A miner that keeps at most so many bytes of prompts waiting.
    pub fn new(max_waiting_bytes: usize) -> Self {
        Self { templates: Templates::default(), waiting: BTreeMap::new(), waiting_bytes: 0, max_waiting_bytes }
    }

    /// Takes a prompt. `settle` is called with every prompt that fits no template, now or later.
    pub fn observe(&mut self, key: u32, prompt: Prompt, with: T, settle: &mut dyn FnMut(Prompt, T)) {
        if self.templates.find(key, &prompt.set).is_some() {
            return;
        }
        self.waiting_bytes += prompt.bytes();
        let waiting = self.waiting.entry(key).or_insert_with(|| Waiting {
            rows: Vec::new(),
            different: HashSet::new(),
            learn_at: LEARN_ROWS,
        });
        waiting.different.insert(prompt.hash());
        waiting.rows.push((prompt, with));
        // Repeats of a few prompts would wait for ever.
        if waiting.different.len() >= waiting.learn_at || waiting.rows.len() >= 8 * waiting.learn_at {
            self.learn(key, settle);
        } else if self.waiting_bytes > self.max_waiting_bytes {
            let fullest = self
                .waiting
                .iter()
                .max_by_key(|(_, waiting)| waiting.rows.iter().map(|(prompt, _)| prompt.bytes()).sum::<usize>());
            let key = *fullest.expect("the one above").0;
            self.learn(key, settle);
        }
    }

    /// Learns from what still waits; the templates of all prompts.
    pub fn finish(mut self, settle: &mut dyn FnMut(Prompt, T)) -> Templates {
        let keys: Vec<u32> = self.waiting.keys().copied().collect();
        keys.into_iter().for_each(|key| self.learn(key, settle));
        self.templates
    }

    fn learn(&mut self, key: u32, settle: &mut dyn FnMut(Prompt, T)) {
        let Some(waiting) = self.waiting.get_mut(&key) else { return };
        let rows = std::mem::take(&mut waiting.rows);
        waiting.different.clear();
        self.waiting_bytes -= rows.iter().map(|(prompt, _)| prompt.bytes()).sum::<usize>();
        // Each prompt counts once: a question that is asked all day is no template.
        let mut first: BTreeMap<u64, usize> = BTreeMap::new();
        rows.iter().enumerate().for_each(|(at, (prompt, _))| {
            first.entry(prompt.hash()).or_insert(at);
        });
        let mut order: Vec<usize> = first.into_values().collect();
        order.sort_unstable();
        let sets: Vec<&[u64]> = order.iter().map(|&at| rows[at].0.set.as_slice()).collect();
        let min_rows = MIN_ROWS.max((sets.len() as f64 * MIN_SHARE).ceil() as usize);
        let found = closures(&sets, (0..sets.len()).collect(), &[], min_rows, 0);
        for Closure { mut shingles, rows: its } in found {
            if self.templates.all.len() == MAX_TEMPLATES {
                break;
            }
            shingles.sort_unstable();
            let mut template = Template { key, shingles, text: String::new() };
            let repeated =
                self.templates.all.iter().any(|known| known.key == key && known.shingles == template.shingles);
            if repeated {
                continue;
            }
            template.text = rows[order[its[0]]].0.masked(&template);
            if template.says_something() {
                self.templates.add(template);
            }
        }
        let n_rows = rows.len();
        let mut unsettled = 0;
        for (prompt, with) in rows {
            if self.templates.find(key, &prompt.set).is_none() {
                unsettled += 1;
                settle(prompt, with);
            }
        }
        // Where nothing is to be found, it is looked for less often.
        if unsettled * 10 > n_rows * 9
            && let Some(waiting) = self.waiting.get_mut(&key)
        {
            waiting.learn_at = (waiting.learn_at * 2).min(LEARN_ROWS * 8);
        }
    }
}

struct Closure {
    shingles: Vec<u64>,
    rows: Vec<usize>,
}

/// Constant parts of groups among `rows` (indices into `sets`), each with what `base` has already.
fn closures(sets: &[&[u64]], mut rows: Vec<usize>, base: &[u64], min_rows: usize, depth: usize) -> Vec<Closure> {
    let mut found = Vec::new();
    let mut ignored: HashSet<u64> = base.iter().copied().collect();
    for _ in 0..MAX_TRIES {
        if rows.len() < min_rows {
            break;
        }
        let mut counts: HashMap<u64, u32> = HashMap::new();
        for &row in &rows {
            for shingle in sets[row].iter().filter(|shingle| !ignored.contains(shingle)) {
                *counts.entry(*shingle).or_default() += 1;
            }
        }
        let most = counts.iter().map(|(&shingle, &n)| (n, std::cmp::Reverse(shingle))).max();
        let Some((n, std::cmp::Reverse(pick))) = most else { break };
        if (n as usize) < min_rows {
            break;
        }
        let (with, without): (Vec<usize>, Vec<usize>) =
            rows.iter().partition(|&&row| sets[row].binary_search(&pick).is_ok());
        let mut counts: HashMap<u64, u32> = HashMap::new();
        for &row in &with {
            for shingle in sets[row].iter().filter(|shingle| !ignored.contains(shingle)) {
                *counts.entry(*shingle).or_default() += 1;
            }
        }
        let at_least = (with.len() as f64 * CONSTANT).ceil() as u32;
        let closure: Vec<u64> =
            counts.into_iter().filter(|(_, n)| *n >= at_least).map(|(shingle, _)| shingle).collect();
        if closure.len() < if depth == 0 { MIN_SHINGLES } else { MIN_FINER_SHINGLES } {
            ignored.extend(closure);
            continue;
        }
        let shingles: Vec<u64> = base.iter().copied().chain(closure).collect();
        rows = without;
        if depth < 2 {
            let finer_rows = MIN_ROWS.max(with.len() / 50);
            let finer = closures(sets, with.clone(), &shingles, finer_rows, depth + 1);
            let explained: usize = finer.iter().map(|closure| closure.rows.len()).sum();
            if (2..=MAX_FINER).contains(&finer.len()) && explained as f64 >= EXPLAINED * with.len() as f64 {
                found.extend(finer);
                // What none of them explains still has the preamble.
                found.push(Closure { shingles, rows: with });
                continue;
            }
        }
        found.push(Closure { shingles, rows: with });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const CITIES: [&str; 8] =
        ["Paris", "New York", "Lima", "Oslo", "Rio de Janeiro", "Ulm", "San Salvador de Jujuy", "Bern"];

    /// Templates of prompts, and for each prompt which it is.
    fn mine(prompts: &[Prompt]) -> (Templates, Vec<Option<usize>>) {
        let mut miner = Miner::new(1 << 20);
        let mut free = 0;
        prompts.iter().for_each(|prompt| miner.observe(0, prompt.clone(), (), &mut |_, ()| free += 1));
        let templates = miner.finish(&mut |_, ()| free += 1);
        let places: Vec<_> = prompts.iter().map(|prompt| templates.find(0, &prompt.set)).collect();
        assert_eq!(free, places.iter().filter(|place| place.is_none()).count(), "each free prompt is settled once");
        (templates, places)
    }

    fn weather(city: &str, day: usize) -> Prompt {
        Prompt::new(&[
            "You are a weather clerk. Answer with one of sunny, rain or snow.",
            &format!("What will the weather in {city} be like on day {day} of the month? One word."),
        ])
    }

    fn summary(text: &str) -> Prompt {
        Prompt::new(&[&format!(
            "Summarise the following note in one sentence for a busy manager.\n\n{text}\n\nSummary:"
        )])
    }

    #[test]
    fn variables_of_any_length_are_masked() {
        let mut prompts: Vec<Prompt> = CITIES.iter().enumerate().map(|(at, city)| weather(city, at)).collect();
        prompts.extend(
            CITIES
                .iter()
                .map(|city| summary(&format!("We met in {city} and spoke of nothing else than {city}, as usual"))),
        );
        prompts.push(Prompt::new(&["hello there"]));
        let (templates, places) = mine(&prompts);
        assert_eq!(templates.all().len(), 2);
        assert!(places[..8].iter().all(|place| *place == places[0] && place.is_some()), "{places:?}");
        assert!(places[8..16].iter().all(|place| *place == places[8] && *place != places[0]), "{places:?}");
        assert_eq!(places[16], None);
        let template = &templates.all()[places[0].unwrap_or(9)];
        assert_eq!(
            template.text,
            "You are a weather clerk. Answer with one of sunny, rain or snow.\nWhat will the weather in {} be like on day {} of the month? One word."
        );
        let prompt = weather("San Marino", 3);
        assert_eq!(
            prompt.varies(template).iter().map(|part| &prompt.text[part.clone()]).collect::<Vec<_>>(),
            ["San Marino"]
        );
        assert_eq!(prompt.constant_bytes(template), prompt.text.len() - " San Marino ".len());
        assert!(templates.find(0, weather("Addis Ababa", 40).set()) == places[0], "a new value is the same template");
        assert!(templates.find(1, weather("Addis Ababa", 40).set()).is_none(), "another key is another template");
    }

    #[test]
    fn a_shared_preamble_is_no_template() {
        let preamble = "You work for Acme Corporation. Follow the company's policy at all times, be polite, and never promise refunds.";
        let tasks = [
            "Sort the ticket below into billing, delivery or other.",
            "Translate the sentence below into simple English words.",
        ];
        let prompts: Vec<Prompt> = (0..40)
            .map(|at| {
                Prompt::new(&[
                    preamble,
                    tasks[at % 2],
                    &format!("{} number {at} says something {}", CITIES[at % 8], CITIES[at % 7]),
                ])
            })
            .collect();
        let (templates, places) = mine(&prompts);
        assert_ne!(places[0], places[1]);
        assert!((0..40).all(|at| places[at] == places[at % 2]), "{places:?}");
        assert!(templates.all()[places[0].unwrap_or(9)].text.contains("Sort the ticket"));
    }

    #[test]
    fn the_order_of_prompts_does_not_matter_to_what_is_constant() {
        let mut prompts: Vec<Prompt> = (0..40).map(|at| weather(CITIES[at % 8], at)).collect();
        let (one, _) = mine(&prompts);
        prompts.reverse();
        let (other, _) = mine(&prompts);
        assert_eq!(one.all()[0].sketch(), other.all()[0].sketch());
    }

    #[test]
    fn free_text_has_no_template() {
        let prompts: Vec<Prompt> = (0..60)
            .map(|at| Prompt::new(&[&format!("please tell {} that {} is far", CITIES[at % 8], CITIES[at / 8])]))
            .collect();
        let (templates, _) = mine(&prompts);
        assert!(templates.all().is_empty(), "{:?}", templates.all());
        assert_eq!(mine(&[]).1, []);
        assert_eq!(mine(&[Prompt::new(&[]), Prompt::new(&["é"])]).1, [None, None]);
    }
}
