//! *What is this task like?* Its examples and counts in; figures for a prior, a guess at the kind, counts of personal data and a name out.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use metier_model::{features::fold, proof::interval::wilson, specialist::mix};
use metier_traffic::privacy::{self, PersonalKind};
use serde_json::Value;

use super::{
    repeats::Seen,
    task::{Agreement, Example, KindGuess, PersonalCount, Task, TaskKind, Traits},
    volume::Counts,
};

/// Different answers of a classification, at most.
const MAX_LABELS: usize = 500;
/// Words of a label, at most.
const MAX_LABEL_WORDS: usize = 12;
/// Share of answers that labels must cover which came at least twice.
const LABELS_COVER: f64 = 0.9;
/// Bytes of answers that are compressed.
const COMPRESSED_BYTES: usize = 1 << 20;
/// Bytes of a text that are searched for personal data.
const PERSONAL_BYTES: usize = 8 << 10;
/// Examples that are searched for personal data and near-repeats.
pub(super) const SEARCHED: usize = 2000;
/// Bytes of an input whose words are compared.
const NEAR_BYTES: usize = 4 << 10;
/// Words whose sets are alike from here on (Jaccard).
const NEAR: f64 = 0.85;
/// Terms that are kept of a task.
const TERMS: usize = 8;

/// Figures of a task.
pub fn of(examples: &[Example], counts: &Counts, repeats: &Seen, schema: Option<&str>) -> Traits {
    let answers: Vec<&str> = examples.iter().filter_map(|example| example.output.as_deref()).collect();
    let share = |n: usize| if answers.is_empty() { 0.0 } else { n as f64 / answers.len() as f64 };
    let folded: HashMap<String, u64> = answers.iter().fold(HashMap::new(), |mut counts, answer| {
        *counts.entry(fold(answer)).or_default() += 1;
        counts
    });
    let parsed: Vec<Option<Value>> = answers
        .iter()
        .map(|answer| {
            serde_json::from_str(unfenced(answer)).ok().filter(|json: &Value| json.is_object() || json.is_array())
        })
        .collect();
    let schema: Option<Value> = schema.and_then(|schema| serde_json::from_str(schema).ok());
    let valid = schema.as_ref().filter(|_| !answers.is_empty()).map(|schema| {
        share(parsed.iter().filter(|json| json.as_ref().is_some_and(|json| fits(json, schema, 0))).count())
    });
    let with_text = counts.with_text.max(1) as f64;
    let calls = counts.calls.max(1) as f64;
    Traits {
        input_tokens: counts.input.spread().unwrap_or_default(),
        output_tokens: counts.output.spread().unwrap_or_default(),
        elapsed_ms: counts.elapsed.spread(),
        distinct_outputs: share(folded.len()),
        labels: labels(&answers),
        copied: copied(examples),
        json: share(parsed.iter().flatten().count()),
        schema_valid: valid,
        compressed: compressed(&answers),
        numeric: if examples.is_empty() {
            0.0
        } else {
            examples.iter().filter(|example| asks_for_numbers(&example.variables())).count() as f64
                / examples.len() as f64
        },
        tool_depth: counts.tool_results as f64 / calls,
        turns: counts.turns as f64 / with_text.min(calls),
        shared_prompt: counts.constant_bytes as f64 / counts.prompt_bytes.max(1) as f64,
        repeats: repeats.repeats as f64 / repeats.looked.max(1) as f64,
        near_repeats: near_repeats(examples),
        self_agreement: (repeats.pairs > 0).then(|| Agreement {
            pairs: repeats.pairs,
            agree: repeats.agree,
            interval: wilson(repeats.agree, repeats.pairs, 0.95),
        }),
    }
}

/// The answers of a classification with their counts; empty where they are none.
fn labels(answers: &[&str]) -> BTreeMap<String, u64> {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    answers.iter().for_each(|answer| *counts.entry(answer.trim().to_owned()).or_default() += 1);
    let short = |label: &str| label.split_whitespace().count() <= MAX_LABEL_WORDS && label.len() <= 200;
    counts.retain(|label, n| *n >= 2 && short(label));
    let covered: u64 = counts.values().sum();
    if answers.len() < 4
        || counts.len() > MAX_LABELS
        || (covered as f64) < LABELS_COVER * answers.len() as f64
        || counts.len() * 2 > answers.len()
    {
        return BTreeMap::new();
    }
    counts
}

/// Answers that came at least twice, for comparing tasks.
pub fn answers<'a>(examples: impl Iterator<Item = &'a Example>) -> BTreeSet<String> {
    let answers: Vec<&str> = examples.filter_map(|example| example.output.as_deref()).collect();
    labels(&answers).into_keys().collect()
}

/// Keys that nine in ten of the answers have, where these are JSON objects; empty where fewer than two of them say what is asked for: anybody
/// has an answer and a confidence.
pub fn answer_keys<'a>(examples: impl Iterator<Item = &'a Example>) -> BTreeSet<String> {
    const ANYBODYS: &[&str] = &[
        "answer",
        "category",
        "class",
        "confidence",
        "explanation",
        "intent",
        "label",
        "output",
        "reason",
        "reasoning",
        "response",
        "result",
        "score",
        "status",
        "text",
        "type",
    ];
    let (mut counts, mut n) = (BTreeMap::<String, usize>::new(), 0);
    for output in examples.take(SEARCHED).filter_map(|example| example.output.as_deref()) {
        n += 1;
        let Ok(Value::Object(object)) = serde_json::from_str(unfenced(output)) else { continue };
        object.into_iter().for_each(|(key, _)| *counts.entry(key).or_default() += 1);
    }
    let keys: BTreeSet<String> =
        counts.into_iter().filter(|(_, count)| n > 0 && count * 10 >= n * 9).map(|(key, _)| key).collect();
    let telling = keys.iter().filter(|key| !ANYBODYS.contains(&key.to_lowercase().as_str())).count();
    if telling < 2 { BTreeSet::new() } else { keys }
}

/// JSON without the fence that models put around it.
pub(super) fn unfenced(answer: &str) -> &str {
    let answer = answer.trim();
    let inner =
        answer.strip_prefix("```json").or_else(|| answer.strip_prefix("```")).and_then(|rest| rest.strip_suffix("```"));
    inner.unwrap_or(answer).trim()
}

/// Whether a value has a schema's type, its required keys and its enumeration, properties and items likewise. No other keyword is looked at.
fn fits(value: &Value, schema: &Value, depth: usize) -> bool {
    if depth > 32 {
        return true;
    }
    let is = |kind: &str| match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|x| x.fract() == 0.0),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        _ => true,
    };
    let right_type = match schema.get("type") {
        Some(Value::String(kind)) => is(kind),
        Some(Value::Array(kinds)) => kinds.iter().filter_map(Value::as_str).any(is),
        _ => true,
    };
    let listed = schema.get("enum").and_then(Value::as_array).is_none_or(|values| values.contains(value));
    let required = schema
        .get("required")
        .and_then(Value::as_array)
        .is_none_or(|names| names.iter().filter_map(Value::as_str).all(|name| value.get(name).is_some()));
    let properties = schema.get("properties").and_then(Value::as_object).is_none_or(|properties| {
        properties.iter().all(|(name, inner)| value.get(name).is_none_or(|value| fits(value, inner, depth + 1)))
    });
    let items = schema
        .get("items")
        .is_none_or(|inner| value.as_array().is_none_or(|items| items.iter().all(|item| fits(item, inner, depth + 1))));
    right_type && listed && required && properties && items
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// Share of the answers' words (of JSON, of its values' words) that stand in their inputs.
fn copied(examples: &[Example]) -> f64 {
    let (mut found, mut all) = (0u64, 0u64);
    for example in examples.iter().take(SEARCHED) {
        let Some(output) = &example.output else { continue };
        // What the template always says is no copy; numbers in it are the call's own.
        let (own, whole) = (example.variables().to_lowercase(), example.input.to_lowercase());
        let numbers = words(&whole).filter(|word| word.contains(|c: char| c.is_ascii_digit()));
        let input: HashSet<&str> = words(&own).chain(numbers).collect();
        let output = match serde_json::from_str::<Value>(unfenced(output)) {
            Ok(json) if json.is_object() || json.is_array() => values(&json),
            _ => output.clone(),
        };
        for word in words(&output.to_lowercase()) {
            all += 1;
            found += u64::from(input.contains(word));
        }
    }
    if all == 0 { 0.0 } else { found as f64 / all as f64 }
}

/// The values of JSON as text, without its keys.
fn values(json: &Value) -> String {
    match json {
        Value::Object(object) => object.values().map(values).collect::<Vec<_>>().join(" "),
        Value::Array(items) => items.iter().map(values).collect::<Vec<_>>().join(" "),
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn compressed(answers: &[&str]) -> f64 {
    let mut all = String::new();
    for answer in answers {
        if all.len() + answer.len() > COMPRESSED_BYTES {
            break;
        }
        all.push_str(answer);
        all.push('\n');
    }
    if all.is_empty() {
        return 0.0;
    }
    let small = zstd::bulk::compress(all.as_bytes(), 3).map_or(all.len(), |small| small.len());
    small as f64 / all.len() as f64
}

/// At least two numbers and a question of quantity.
fn asks_for_numbers(input: &str) -> bool {
    let lower = input.to_lowercase();
    let numbers = words(&lower).filter(|word| word.chars().all(|c| c.is_ascii_digit())).count();
    numbers >= 2
        && [
            "how many",
            "how much",
            "how long",
            "how far",
            "how old",
            "total",
            "average",
            "percent",
            "calculate",
            "what is the sum",
        ]
        .iter()
        .any(|asks| lower.contains(asks))
}

/// Share of examples whose words are nearly those of an earlier one, by MinHash (12 hashes in 4 bands) and then exactly.
fn near_repeats(examples: &[Example]) -> f64 {
    let mut bands: HashMap<(usize, u64), Vec<usize>> = HashMap::new();
    let mut sets: Vec<BTreeSet<u64>> = Vec::new();
    let mut near = 0;
    for example in examples.iter().take(SEARCHED) {
        let variables = example.variables();
        let folded = fold(&variables[..variables.floor_char_boundary(NEAR_BYTES)]);
        let set: BTreeSet<u64> = folded.split(' ').map(|word| xxhash_rust::xxh3::xxh3_64(word.as_bytes())).collect();
        let sketch: Vec<u64> =
            (0..12u64).map(|seed| set.iter().map(|word| mix(word ^ mix(seed + 1))).min().unwrap_or(0)).collect();
        let keys: Vec<(usize, u64)> = sketch
            .chunks(3)
            .enumerate()
            .map(|(band, part)| (band, part.iter().fold(0, |hash, x| mix(hash ^ x))))
            .collect();
        let alike = |other: &usize| {
            let both = set.intersection(&sets[*other]).count();
            both as f64 >= NEAR * (set.len() + sets[*other].len() - both) as f64
        };
        near += usize::from(keys.iter().any(|key| bands.get(key).is_some_and(|others| others.iter().any(alike))));
        for key in keys {
            let band = bands.entry(key).or_default();
            // A band that everything falls into says nothing.
            if band.len() < 16 {
                band.push(sets.len());
            }
        }
        sets.push(set);
    }
    if sets.is_empty() { 0.0 } else { f64::from(near as u32) / sets.len() as f64 }
}

/// A guess at the kind of specialist that could take the task.
pub fn kind(examples: &[Example], traits: &Traits, has_schema: bool) -> KindGuess {
    let answered = examples.iter().filter(|example| example.output.is_some()).count();
    let percent = |share: f64| format!("{:.0} %", 100.0 * share);
    if answered == 0 {
        let short = traits.output_tokens.p95 <= 16.0 && traits.output_tokens.p95 > 0.0;
        let kind = if short { TaskKind::Classify } else { TaskKind::Generate };
        return KindGuess {
            kind,
            evidence: format!("no answers in the log; 95 of 100 have at most {} tokens", traits.output_tokens.p95),
        };
    }
    if !traits.labels.is_empty() {
        let evidence = format!("{} different short answers in {answered} examples", traits.labels.len());
        return KindGuess { kind: TaskKind::Classify, evidence };
    }
    let json = has_schema || traits.json >= 0.8;
    // Many labels and few examples: each too seldom to be counted as one.
    let mut lengths: Vec<usize> = examples
        .iter()
        .filter_map(|example| example.output.as_deref())
        .map(|answer| answer.split_whitespace().count())
        .collect();
    lengths.sort_unstable();
    if !json
        && traits.distinct_outputs <= 0.75
        && traits.copied < 0.5
        && answered >= 20
        && lengths[answered * 95 / 100] <= 3
    {
        let evidence = format!(
            "{} of the answers differ, and 95 of 100 have at most three words",
            percent(traits.distinct_outputs)
        );
        return KindGuess { kind: TaskKind::Classify, evidence };
    }
    if json && traits.copied >= 0.5 {
        let evidence = format!(
            "{} of the answers are JSON, {} of their words stand in the input",
            percent(traits.json),
            percent(traits.copied)
        );
        return KindGuess { kind: TaskKind::Extract, evidence };
    }
    let words = examples
        .iter()
        .filter_map(|example| example.output.as_deref())
        .map(|answer| answer.split_whitespace().count())
        .sum::<usize>();
    if traits.copied >= 0.9 && words <= 12 * answered {
        let evidence = format!("short answers, {} of their words stand in the input", percent(traits.copied));
        return KindGuess { kind: TaskKind::Extract, evidence };
    }
    let evidence = format!(
        "{} of the answers differ, with {} words on average",
        percent(traits.distinct_outputs),
        words / answered
    );
    KindGuess { kind: TaskKind::Generate, evidence }
}

/// Personal data of the examples, by kind.
pub fn personal(examples: &[Example]) -> BTreeMap<PersonalKind, PersonalCount> {
    let mut kinds: BTreeMap<PersonalKind, PersonalCount> = BTreeMap::new();
    for example in examples.iter().take(SEARCHED) {
        for (kind, n) in personal_in(example) {
            let count = kinds.entry(kind).or_default();
            count.examples += 1;
            count.found += n;
        }
    }
    kinds
}

/// The same of one example: how often each kind stands in it.
pub(super) fn personal_in(example: &Example) -> BTreeMap<PersonalKind, u64> {
    let mut kinds = BTreeMap::new();
    for text in std::iter::once(&example.input).chain(&example.output) {
        for found in privacy::detect(&text[..text.floor_char_boundary(PERSONAL_BYTES)]) {
            *kinds.entry(found.kind).or_default() += 1;
        }
    }
    kinds
}

/// The most frequent answers, or words: what a group of texts is recognised by from run to run.
pub fn frequent(examples: &[Example]) -> Vec<String> {
    let mut counts: HashMap<String, u64> = HashMap::new();
    for example in examples {
        let of_input = fold(&example.variables());
        let set: BTreeSet<&str> = of_input.split(' ').filter(|word| word.len() > 3 && !is_plain(word)).collect();
        set.into_iter().for_each(|word| *counts.entry(word.to_owned()).or_default() += 1);
    }
    let mut all: Vec<(u64, String)> = counts.into_iter().map(|(word, n)| (n, word)).collect();
    all.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    let mut most: Vec<String> = all.into_iter().take(2).map(|(_, word)| word).collect();
    most.sort();
    most
}

/// The mean of unit vectors, scaled to length 1.
pub fn centre(vectors: &[Vec<f32>]) -> Vec<f32> {
    let Some(first) = vectors.first() else { return Vec::new() };
    let mut sum = vec![0.0f32; first.len()];
    vectors.iter().for_each(|vector| sum.iter_mut().zip(vector).for_each(|(sum, x)| *sum += x));
    let length = dot(&sum, &sum).sqrt().max(f32::MIN_POSITIVE);
    sum.iter_mut().for_each(|x| *x /= length);
    sum
}

/// Scalar product.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Gives every task its terms and a name that no other has: what the log calls it, else its most telling words.
///
/// A word is telling of a task in the measure of its frequency there and its rarity in other tasks (tf·idf over tasks). Words with
/// digits and what looks personal are left out.
pub fn name(tasks: &mut [Task]) {
    let bags: Vec<HashMap<String, f64>> = tasks.iter().map(bag).collect();
    let mut spread: HashMap<&str, f64> = HashMap::new();
    bags.iter().flat_map(HashMap::keys).for_each(|word| *spread.entry(word).or_default() += 1.0);
    let n = bags.len() as f64;
    let terms: Vec<Vec<String>> = bags
        .iter()
        .map(|bag| {
            let mut telling: Vec<(f64, &String)> =
                bag.iter().map(|(word, share)| (share * (1.0 + n / spread[word.as_str()]).ln(), word)).collect();
            telling.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(b.1)));
            telling.into_iter().take(TERMS).map(|(_, word)| word.clone()).collect()
        })
        .collect();
    let mut taken: HashSet<String> = HashSet::new();
    let mut ids: HashSet<String> = HashSet::new();
    for (task, terms) in tasks.iter_mut().zip(terms) {
        let named = task.identity.named.as_deref().map(slug).filter(|name| name.len() >= 3);
        let from_terms = slug(&terms.iter().take(3).map(String::as_str).collect::<Vec<_>>().join("-"));
        let stem = named.unwrap_or(from_terms);
        let stem = if stem.is_empty() { format!("task-{}", &task.id[2..]) } else { stem };
        let second = format!("{stem}-{}", terms.first().map_or("2", String::as_str));
        let free = [stem.clone(), slug(&second)]
            .into_iter()
            .chain((2..).map(|n| format!("{stem}-{n}")))
            .find(|name| !taken.contains(name));
        task.name = free.expect("numbers do not end");
        taken.insert(task.name.clone());
        task.identity.terms = terms;
        // Two templates with one smallest hash: the name, which is unique, goes in.
        if !ids.insert(task.id.clone()) {
            task.id = format!(
                "t-{}",
                &metier_model::Digest::of(format!("{} {}", task.id, task.name).as_bytes()).to_string()[..12]
            );
            ids.insert(task.id.clone());
        }
    }
}

/// Words of a task with the share of its texts that hold them; the template's count most.
fn bag(task: &Task) -> HashMap<String, f64> {
    let mut bag: HashMap<String, f64> = HashMap::new();
    let telling =
        |word: &str| word.len() > 2 && word.len() <= 24 && !is_plain(word) && word.chars().all(char::is_alphabetic);
    if let Some(template) = &task.identity.template {
        let lower = template.to_lowercase();
        for (at, word) in words(&lower).filter(|word| telling(word)).enumerate() {
            // What comes first says what is wanted; a list of labels comes later.
            *bag.entry(word.to_owned()).or_default() += 3.0 / (1.0 + at as f64 / 8.0);
        }
    }
    for tool in &task.identity.tools {
        words(&tool.to_lowercase())
            .filter(|word| telling(word))
            .for_each(|word| *bag.entry(word.to_owned()).or_default() += 1.0);
    }
    let n = task.examples.len().clamp(1, SEARCHED) as f64;
    for example in task.examples.iter().take(SEARCHED) {
        let variables = example.variables();
        let lower = privacy::masked(&variables[..variables.floor_char_boundary(2000)]).to_lowercase();
        let set: HashSet<&str> = words(&lower).filter(|word| telling(word)).collect();
        set.into_iter().for_each(|word| *bag.entry(word.to_owned()).or_default() += 1.0 / n);
    }
    // A word of one example in a hundred could be a person's.
    bag.retain(|_, share| *share >= 0.01);
    bag
}

/// Small letters, digits and single hyphens, at most 40.
fn slug(text: &str) -> String {
    let mut slug = String::new();
    for char in text.to_lowercase().chars() {
        if char.is_ascii_alphanumeric() {
            slug.push(char);
        } else if !slug.ends_with('-') && !slug.is_empty() {
            slug.push('-');
        }
        if slug.len() == 40 {
            break;
        }
    }
    slug.trim_end_matches('-').to_owned()
}

/// Words that say nothing of a task.
pub fn is_plain(word: &str) -> bool {
    const PLAIN: &[&str] = &[
        "a",
        "about",
        "after",
        "all",
        "also",
        "always",
        "am",
        "an",
        "and",
        "any",
        "are",
        "as",
        "ask",
        "asked",
        "assistant",
        "at",
        "be",
        "because",
        "been",
        "below",
        "between",
        "both",
        "but",
        "by",
        "can",
        "chatbot",
        "could",
        "did",
        "do",
        "does",
        "don",
        "each",
        "else",
        "every",
        "few",
        "following",
        "for",
        "friendly",
        "from",
        "get",
        "give",
        "given",
        "good",
        "had",
        "has",
        "have",
        "help",
        "helpful",
        "her",
        "here",
        "his",
        "how",
        "if",
        "in",
        "input",
        "into",
        "is",
        "it",
        "its",
        "just",
        "like",
        "make",
        "many",
        "may",
        "me",
        "more",
        "most",
        "much",
        "must",
        "my",
        "need",
        "never",
        "no",
        "not",
        "nothing",
        "of",
        "on",
        "one",
        "only",
        "or",
        "other",
        "our",
        "out",
        "output",
        "over",
        "please",
        "question",
        "reply",
        "respond",
        "response",
        "answer",
        "answers",
        "shall",
        "she",
        "should",
        "so",
        "some",
        "such",
        "text",
        "than",
        "that",
        "the",
        "their",
        "them",
        "then",
        "there",
        "these",
        "they",
        "this",
        "those",
        "to",
        "two",
        "under",
        "up",
        "use",
        "user",
        "users",
        "very",
        "was",
        "want",
        "we",
        "were",
        "what",
        "when",
        "where",
        "whether",
        "which",
        "who",
        "why",
        "will",
        "with",
        "word",
        "words",
        "would",
        "you",
        "your",
        "yours",
        "ai",
        "model",
        "language",
        "large",
        "concise",
        "polite",
        "honest",
        "harmless",
        "agent",
        "system",
        "brief",
        "briefly",
        "exactly",
        "name",
        "write",
    ];
    PLAIN.contains(&word)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn example(input: &str, output: &str) -> Example {
        Example {
            id: String::new(),
            place: String::new(),
            time_ms: None,
            group: None,
            model: String::new(),
            input: input.to_owned(),
            varies: Vec::new(),
            output: Some(output.to_owned()),
            gold: None,
            weight: 1.0,
        }
    }

    fn guess(examples: &[Example]) -> (TaskKind, Traits) {
        let traits = of(examples, &Counts::default(), &Seen::default(), None);
        (kind(examples, &traits, false).kind, traits)
    }

    #[test]
    fn kinds_are_told_from_answers() {
        let classify: Vec<Example> = (0..20).map(|at| example(&format!("text {at}"), ["yes", "no"][at % 2])).collect();
        let (kind, traits) = guess(&classify);
        assert_eq!((kind, traits.labels.len(), traits.distinct_outputs), (TaskKind::Classify, 2, 0.1));
        let extract: Vec<Example> = (0..20)
            .map(|at| {
                example(
                    &format!("invoice {at}7 of Miller for bolts"),
                    &json!({"number": format!("{at}7"), "who": "Miller"}).to_string(),
                )
            })
            .collect();
        let (kind, traits) = guess(&extract);
        assert_eq!((kind, traits.json, traits.copied), (TaskKind::Extract, 1.0, 1.0));
        let generate: Vec<Example> = (0..20)
            .map(|at| example("the door is open", &format!("In sentence {at}, we regret to learn of an entrance.")))
            .collect();
        assert_eq!(guess(&generate).0, TaskKind::Generate);
        assert_eq!(guess(&generate).1.near_repeats, 0.95);
        assert_eq!(guess(&[]).1, Traits::default());
    }

    #[test]
    fn answers_are_held_against_their_schema() {
        let schema = json!({"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}}});
        let check = |value: Value, fit: bool| assert_eq!(fits(&value, &schema, 0), fit, "{value}");
        check(json!({"a": 1}), true);
        check(json!({"a": 1, "b": "x"}), true);
        check(json!({"a": 1, "b": "z"}), false);
        check(json!({"a": "1"}), false);
        check(json!({"b": "x"}), false);
        check(json!([]), false);
        assert_eq!(unfenced("```json\n{\"a\": 1}\n```"), "{\"a\": 1}");
    }

    #[test]
    fn quantities_and_names() {
        assert!(asks_for_numbers("Ann has 3 apples and buys 4 more. How many has she?"));
        assert!(!asks_for_numbers("Ann has 3 apples."));
        assert_eq!(slug("  Support: Tickets / v2 "), "support-tickets-v2");
        assert_eq!(slug("é"), "");
    }

    #[test]
    fn personal_data_is_counted_by_kind() {
        let found = personal(&[example("write to ada@example.org or bob@example.org", "done"), example("no", "yes")]);
        assert_eq!(found, BTreeMap::from([(PersonalKind::Email, PersonalCount { examples: 1, found: 2 })]));
    }
}
