#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use metier_kernels::Tier;
use proptest::prelude::*;

use super::{super::*, *};
use crate::{
    adapter::LoraFormat,
    grammar::{Constraint, Form, GrammarEnv},
    sample, tiny,
};

/// Two ways of adding up 262 exponentials, over a few tokens.
const TOLERANCE: f32 = 1e-4;

fn decoder() -> Arc<Decoder> {
    Arc::new(Decoder::from_bytes(tiny::gguf(7), "tiny", WeightFormat::AsFile).unwrap())
}

fn adapter(decoder: &Decoder) -> Arc<Adapter> {
    let base = decoder.network().config();
    let files = tiny::adapter(base, 3, 4, &[], 1.0);
    Arc::new(Adapter::from_bytes(files.config.as_bytes(), &files.weights, base, LoraFormat::Int8).unwrap())
}

fn prompt(len: u32) -> Vec<TokenId> {
    (0..len).map(|i| TokenId((i * 37 + 11) % 250)).collect()
}

fn request(prompt: Vec<TokenId>, labels: &[&str]) -> ScoreRequest {
    ScoreRequest { prompt, labels: labels.iter().map(ToString::to_string).collect(), ..Default::default() }
}

/// Steps until the request is scored.
fn scored(engine: &mut Engine, pool: &Pool, request: ScoreRequest) -> Vec<LabelScore> {
    let asked = engine.submit_score(request).unwrap();
    let mut found = None;
    while !engine.is_idle() {
        for event in engine.step(pool) {
            match event {
                Event::Scored { id, scores } => assert!(id == asked && found.replace(scores).is_none()),
                Event::Done { finish, completion_tokens, .. } => {
                    assert_eq!((finish, completion_tokens), (Finish::Stop, 0));
                }
                Event::Token { .. } | Event::Hidden { .. } => panic!("nothing is written"),
            }
        }
    }
    let stats = engine.stats().cache;
    assert_eq!(stats.used_bytes, stats.remembered_bytes, "all branches are given back");
    found.unwrap()
}

/// A label alone, read in one go: the sum of its tokens' log-probabilities, and how many they are.
fn alone(decoder: &Decoder, adapter: Option<&Adapter>, request: &ScoreRequest, label: &str) -> (f32, usize) {
    let tokens = decoder.tokenizer().encode(label).unwrap();
    let text: Vec<TokenId> = request.prompt.iter().chain(&tokens).copied().collect();
    let logits = decoder.logits_with(&Pool::new(1, Tier::detect()), &text, adapter).unwrap();
    let behind = |i: usize| &logits[request.prompt.len() - 1 + i];
    let mut logprobs: Vec<f32> =
        tokens.iter().enumerate().map(|(i, token)| sample::logprobs(behind(i), token.0, 0).0).collect();
    if request.with_end {
        let ends = decoder.ends().iter().map(|end| sample::logprobs(behind(tokens.len()), end.0, 0).0.exp());
        logprobs.push(ends.sum::<f32>().ln());
    }
    (logprobs.iter().sum(), logprobs.len())
}

fn bits(scores: &[LabelScore]) -> Vec<(u32, u32)> {
    scores.iter().map(|score| (score.logprob.to_bits(), score.share.to_bits())).collect()
}

/// Texts over few letters: stems, forks and labels that go on from others come by themselves.
fn labels() -> impl Strategy<Value = Vec<String>> {
    prop::collection::btree_set("[ab]{1,5}", 1..40).prop_map(|labels| labels.into_iter().collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..Default::default() })]

    #[test]
    fn labels_together_score_what_each_scores_alone(
        mut labels in labels(), stem in "c{0,3}", len in prop::sample::select(vec![1u32, 31, 32, 33, 100]),
        with_end in any::<bool>(), adapted in any::<bool>(), turn in 0usize..40,
    ) {
        labels.iter_mut().for_each(|label| label.insert_str(0, &stem));
        let at = turn % labels.len();
        labels.rotate_left(at);
        let (decoder, pool) = (decoder(), Pool::new(2, Tier::detect()));
        let adapter = adapted.then(|| adapter(&decoder));
        let page = decoder.network().config().cache().page_bytes();
        let mut first: Option<Vec<(u32, u32)>> = None;
        // Room for one branch, for some, for all; at last with the prompt remembered.
        let private = CacheScope::Private;
        for (pages, scope, again) in [(4, private, false), (7, private, false), (99, CacheScope::Tenant(1), true)] {
            let limits = EngineLimits { kv_cache_bytes: pages * page, ..EngineLimits::default() };
            let mut engine = Engine::new(decoder.clone(), limits);
            let id = adapter.clone().map(|adapter| engine.load_adapter(adapter).unwrap());
            let request = ScoreRequest {
                prompt: prompt(len), labels: labels.clone(), with_end, adapter: id, scope, ..Default::default()
            };
            if again {
                scored(&mut engine, &pool, request.clone());
            }
            let scores = scored(&mut engine, &pool, request.clone());
            prop_assert_eq!(first.get_or_insert_with(|| bits(&scores)), &bits(&scores), "{} pages", pages);
            if pages == 4 {
                for (label, score) in labels.iter().zip(&scores) {
                    let (logprob, tokens) = alone(&decoder, adapter.as_deref(), &request, label);
                    prop_assert!((score.logprob - logprob).abs() < TOLERANCE, "`{}`: {} and {}", label, score.logprob, logprob);
                    prop_assert_eq!(score.tokens, tokens);
                }
                prop_assert!((scores.iter().map(|score| score.share).sum::<f32>() - 1.0).abs() < 1e-5);
            }
        }
    }
}

#[test]
fn a_label_scores_what_writing_it_by_force_tells() {
    let (decoder, pool) = (decoder(), Pool::new(1, Tier::detect()));
    let env = GrammarEnv::new(decoder.clone()).unwrap();
    let labels = ["abc", "abd", "q", "abcq"];
    let mut engine = Engine::new(decoder.clone(), EngineLimits::default());
    let scores = scored(&mut engine, &pool, request(prompt(40), &labels));
    for (label, score) in labels.iter().zip(scores) {
        let form = Form::Choice(vec![(*label).to_owned()]);
        let constraint = Some(Constraint::compile(&form, &env).unwrap());
        let forced = GenerationRequest {
            prompt: prompt(40),
            max_tokens: 9,
            constraint,
            top_logprobs: Some(0),
            ..Default::default()
        };
        engine.submit(forced).unwrap();
        let (mut text, mut sum) = (String::new(), 0.0);
        while !engine.is_idle() {
            for event in engine.step(&pool) {
                if let Event::Token { text: more, logprob, .. } = event {
                    text.push_str(&more);
                    sum += logprob;
                }
            }
        }
        assert_eq!(text, *label);
        assert!((sum - score.logprob).abs() < TOLERANCE, "`{label}`: {sum} and {}", score.logprob);
    }
}

#[test]
fn sets_are_refused_or_scored_at_their_edges() {
    let (decoder, pool) = (decoder(), Pool::new(1, Tier::detect()));
    let mut engine = Engine::new(decoder.clone(), EngineLimits::default());
    let mut refused = |labels: &[&str]| engine.submit_score(request(prompt(3), labels)).unwrap_err();
    assert_eq!(refused(&[]), SubmitError::Labels);
    assert_eq!(refused(&["a", "b", "a"]), SubmitError::SameLabel { at: 2, as_at: 0 });
    assert_eq!(refused(&["a", ""]), SubmitError::Label { at: 1 });
    let over = "a".repeat(tiny::CONTEXT - 3 + 2);
    let too_long = SubmitError::TooLong { prompt: 3, max_tokens: tiny::CONTEXT - 2, context: tiny::CONTEXT };
    assert_eq!(refused(&["b", &over]), too_long);
    let many: Vec<String> = (0..=MAX_LABELS).map(|i| i.to_string()).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(refused(&many), SubmitError::Labels);
    assert_eq!(refused(&["x".repeat(MAX_LABEL_BYTES + 1).as_str()]), SubmitError::Labels);
    let mut no_prompt = request(Vec::new(), &["a"]);
    assert_eq!(engine.submit_score(no_prompt.clone()), Err(SubmitError::EmptyPrompt));
    no_prompt.adapter = Some(AdapterId(4));
    no_prompt.prompt = prompt(1);
    assert_eq!(engine.submit_score(no_prompt), Err(SubmitError::UnknownAdapter(AdapterId(4))));

    // On the other side of the limits: the whole context (a label's last token is not read), and all labels there may be.
    let full = "a".repeat(tiny::CONTEXT - 3 + 1);
    assert_eq!(scored(&mut engine, &pool, request(prompt(3), &["b", &full])).len(), 2);
    let scores = scored(&mut engine, &pool, request(prompt(3), &many[1..]));
    assert!((scores.iter().map(|score| score.share).sum::<f32>() - 1.0).abs() < 1e-4);
    let [one] = scored(&mut engine, &pool, request(prompt(3), &["only"]))[..] else { panic!("one label") };
    assert!((one.share - 1.0).abs() < 1e-6 && one.logprob < 0.0 && one.tokens == 4);
}

#[test]
fn what_begins_another_label_needs_the_end_to_be_told_from_it() {
    let (decoder, pool) = (decoder(), Pool::new(1, Tier::detect()));
    let mut engine = Engine::new(decoder, EngineLimits::default());
    let open = request(prompt(9), &["abc", "ab", "abd"]);
    let scores = scored(&mut engine, &pool, open.clone());
    assert!(scores[1].logprob > scores[0].logprob && scores[1].logprob > scores[2].logprob, "{scores:?}");
    let closed = scored(&mut engine, &pool, ScoreRequest { with_end: true, ..open.clone() });
    assert_eq!(closed.iter().map(|score| score.tokens).collect::<Vec<_>>(), [4, 3, 4]);
    // "ab" at its end, and "ab" gone on with: not more than "ab" in all.
    let goes_on: f32 = closed.iter().map(|score| score.logprob.exp()).sum();
    assert!(goes_on <= scores[1].logprob.exp() * (1.0 + 1e-4), "{closed:?}");
    let mean = scored(&mut engine, &pool, ScoreRequest { normalisation: Normalisation::Mean, ..open });
    let weights: Vec<f32> = scores.iter().map(|score| (score.logprob / score.tokens as f32).exp()).collect();
    for ((mean, sum), weight) in mean.iter().zip(&scores).zip(&weights) {
        assert_eq!(mean.logprob.to_bits(), sum.logprob.to_bits());
        assert!((mean.share - weight / weights.iter().sum::<f32>()).abs() < 1e-5, "{mean:?}");
    }
}
