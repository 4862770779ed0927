#![allow(clippy::unwrap_used, reason = "tests")]

use metier_kernels::Tier;
use proptest::prelude::*;

use super::{stop::StopFilter, *};
use crate::{
    adapter::{Adapter, LoraFormat},
    chat::ChatMessage,
    format::TensorType,
    grammar::{Constraint, Form, GrammarEnv},
    tiny,
};

fn decoder(weights: WeightFormat) -> Arc<Decoder> {
    Arc::new(Decoder::from_bytes(tiny::gguf(7), "tiny", weights).unwrap())
}

fn limits(max_sequences: usize) -> EngineLimits {
    EngineLimits { max_sequences, max_queue: 64, kv_cache_bytes: 16 << 20, ..EngineLimits::default() }
}

fn request(prompt: &[u32], max_tokens: usize) -> GenerationRequest {
    GenerationRequest { prompt: prompt.iter().map(|id| TokenId(*id)).collect(), max_tokens, ..Default::default() }
}

/// Requests of many lengths, one longer than a prefill chunk, greedy and sampled.
fn mixed_requests() -> Vec<GenerationRequest> {
    [3, 1, 150, 17, 40, 9]
        .iter()
        .enumerate()
        .map(|(i, len)| {
            let prompt: Vec<u32> = (0..*len).map(|j| ((j * 31 + i as u32 * 7) % 250) + 1).collect();
            let mut request = request(&prompt, 12 + i);
            if i % 2 == 1 {
                request.sampling =
                    Sampling { temperature: 0.9, top_p: 0.95, top_k: 50, seed: i as u64, ..Sampling::default() };
            }
            request
        })
        .collect()
}

#[test]
fn a_batch_writes_what_its_members_write_alone_on_every_tier() {
    for (dtype, weights) in [
        (TensorType::Q4_1, WeightFormat::AsFile),
        (TensorType::Q4_0, WeightFormat::AsFile),
        (TensorType::F16, WeightFormat::Int8),
        (TensorType::F32, WeightFormat::F32),
    ] {
        let decoder = Arc::new(Decoder::from_bytes(tiny::gguf_with(3, dtype), "tiny", weights).unwrap());
        let mut expected: Option<Vec<(Vec<TokenId>, String)>> = None;
        for tier in Tier::available() {
            let pool = Pool::new(2, tier);
            let mut together = Engine::new(decoder.clone(), limits(8));
            mixed_requests().into_iter().for_each(|r| {
                together.submit(r).unwrap();
            });
            let together: Vec<_> = together.drain(&pool).into_iter().map(|g| (g.tokens, g.text)).collect();
            let alone: Vec<_> = mixed_requests()
                .into_iter()
                .map(|r| {
                    let mut engine = Engine::new(decoder.clone(), limits(8));
                    engine.submit(r).unwrap();
                    let g = engine.drain(&pool).pop().unwrap();
                    (g.tokens, g.text)
                })
                .collect();
            assert_eq!(together, alone, "{dtype} {weights:?} {tier}");
            assert_eq!(*expected.get_or_insert_with(|| together.clone()), together, "{dtype} {tier} is not scalar");
        }
        let distinct: std::collections::BTreeSet<_> = expected.unwrap().into_iter().collect();
        assert!(distinct.len() > 3, "the model says something");
    }
}

fn adapter(decoder: &Decoder, seed: u64) -> Arc<Adapter> {
    let base = decoder.network().config();
    let (rank, targets): (usize, &[&str]) =
        if seed.is_multiple_of(2) { (4, &[]) } else { (7, &["q_proj", "down_proj"]) };
    let format = if seed.is_multiple_of(3) { LoraFormat::F16 } else { LoraFormat::Int8 };
    let files = tiny::adapter(base, seed, rank, targets, 1.0);
    Arc::new(Adapter::from_bytes(files.config.as_bytes(), &files.weights, base, format).unwrap())
}

#[test]
fn specialists_that_share_a_batch_write_what_they_write_alone_on_every_tier() {
    let decoder = decoder(WeightFormat::AsFile);
    let mut expected: Option<Vec<Generation>> = None;
    for tier in Tier::available() {
        let pool = Pool::new(2, tier);
        let engine = || {
            let mut engine = Engine::new(decoder.clone(), limits(12));
            let ids: Vec<_> = (0..4).map(|seed| engine.load_adapter(adapter(&decoder, seed)).unwrap()).collect();
            (engine, ids)
        };
        let requests = |ids: &[AdapterId]| -> Vec<GenerationRequest> {
            let specialists = [None, Some(vec![1]), Some(vec![0])].into_iter().cycle();
            mixed_requests()
                .into_iter()
                .chain(mixed_requests())
                .zip(specialists)
                .enumerate()
                .map(|(i, (request, kept))| GenerationRequest {
                    adapter: ids.get(i % 5).copied(),
                    kept_layers: kept.map(|kept| KeptLayers::new(kept).unwrap()),
                    ..request
                })
                .collect()
        };
        let (mut together, ids) = engine();
        for request in requests(&ids) {
            together.submit(request).unwrap();
        }
        let together: Vec<_> = together.drain(&pool);
        for (request, expected) in requests(&ids).into_iter().zip(&together) {
            let (mut engine, _) = engine();
            engine.submit(request).unwrap();
            let alone = engine.drain(&pool).pop().unwrap();
            assert_eq!((&alone.tokens, &alone.text), (&expected.tokens, &expected.text), "{:?} on {tier}", expected.id);
        }
        assert_eq!(*expected.get_or_insert_with(|| together.clone()), together, "{tier} is not scalar");
    }
    let distinct: std::collections::BTreeSet<_> = expected.unwrap().into_iter().map(|g| g.tokens).collect();
    assert!(distinct.len() > 9, "adapters and layers make a difference");
}

#[test]
fn adapters_come_and_go_while_sequences_run() {
    let decoder = decoder(WeightFormat::AsFile);
    let pool = Pool::new(1, Tier::detect());
    let one = adapter(&decoder, 2);
    let mut engine = Engine::new(decoder.clone(), EngineLimits { adapter_bytes: one.bytes() * 3 / 2, ..limits(1) });
    let id = engine.load_adapter(one.clone()).unwrap();
    let full = LoadAdapterError::Full { bytes: one.bytes(), resident: one.bytes(), limit: one.bytes() * 3 / 2 };
    assert_eq!(engine.load_adapter(one.clone()), Err(full.clone()));
    let with = |adapter| GenerationRequest { adapter: Some(adapter), ..request(&[5, 6, 7], 6) };
    for _ in 0..3 {
        engine.submit(with(id)).unwrap();
    }
    engine.step(&pool);
    let second = one.clone();
    drop(one);
    assert!(engine.unload_adapter(id) && !engine.unload_adapter(id));
    assert_eq!(engine.submit(with(id)), Err(SubmitError::UnknownAdapter(id)));
    assert_eq!(engine.load_adapter(second.clone()), Err(full), "running sequences still hold it");
    let written = engine.drain(&pool);
    assert_eq!(written.len(), 3);
    assert_eq!(written[0].tokens, written[1].tokens[1..], "with the adapter to the end; one token came before");
    assert_eq!(written[2].tokens, written[1].tokens);
    drop(second);
    let again = engine.load_adapter(adapter(&decoder, 2)).unwrap();
    assert_ne!(again, id);
    let wider = tiny_config_of_another_base(&decoder);
    let files = tiny::adapter(&wider, 1, 2, &[], 0.1);
    let other = Adapter::from_bytes(files.config.as_bytes(), &files.weights, &wider, LoraFormat::F16).unwrap();
    assert_eq!(engine.load_adapter(Arc::new(other)), Err(LoadAdapterError::OtherBase));
    let kept_layers = KeptLayers::new(vec![0, 2]);
    let refused = engine.submit(GenerationRequest { kept_layers, ..request(&[1], 1) });
    assert_eq!(refused, Err(SubmitError::KeptLayers { layers: 2 }));
}

fn tiny_config_of_another_base(decoder: &Decoder) -> crate::arch::transformer::TransformerConfig {
    crate::arch::transformer::TransformerConfig { inner: 128, ..*decoder.network().config() }
}

#[test]
fn a_remembered_prefix_changes_no_bit() {
    let decoder = decoder(WeightFormat::AsFile);
    let pool = Pool::new(2, Tier::detect());
    let events = |engine: &mut Engine, request: GenerationRequest| {
        engine.submit(request).unwrap();
        let mut events = Vec::new();
        while !engine.is_idle() {
            events.extend(engine.step(&pool).into_iter().filter_map(|event| match event {
                Event::Token { token, logprob, top, .. } => Some((token, logprob.to_bits(), top)),
                Event::Scored { .. } | Event::Hidden { .. } | Event::Done { .. } => None,
            }));
        }
        events
    };
    let long: Vec<u32> = (0..150).map(|i| i * 7 % 250).collect();
    let mut engine = Engine::new(decoder.clone(), limits(2));
    let id = engine.load_adapter(adapter(&decoder, 3)).unwrap();
    let mut read = 0;
    for (len, scope, adapter, saved) in [
        (150, CacheScope::Tenant(1), None, 0),
        (150, CacheScope::Tenant(1), None, 149),
        (97, CacheScope::Tenant(1), None, 96),
        (101, CacheScope::Tenant(1), Some(id), 0),
        (150, CacheScope::Tenant(1), Some(id), 101),
        (150, CacheScope::Tenant(2), None, 0),
        (150, CacheScope::Private, None, 0),
    ] {
        let request = GenerationRequest { adapter, top_logprobs: Some(4), ..request(&long[..len], 9) };
        let mut fresh = Engine::new(decoder.clone(), limits(2));
        if adapter.is_some() {
            fresh.load_adapter(super::tests::adapter(&decoder, 3)).unwrap();
        }
        let expected = events(&mut fresh, request.clone());
        let got = events(&mut engine, GenerationRequest { scope, ..request });
        assert_eq!(got, expected, "{len} tokens, {scope:?}, {adapter:?}");
        let stats = engine.stats().cache;
        // What the adapter itself wrote after 101 tokens may happen to go on like the text.
        assert!(stats.saved_tokens - read >= saved && stats.saved_tokens - read < saved + 5, "{len} tokens, {scope:?}");
        read = stats.saved_tokens;
    }
    // A conversation that goes on starts from what was written, too.
    let mut turn = request(&long[..40], 9);
    turn.scope = CacheScope::Tenant(3);
    engine.submit(turn.clone()).unwrap();
    let answer = engine.drain(&pool).pop().unwrap();
    turn.prompt.extend(&answer.tokens);
    turn.prompt.extend([TokenId(77), TokenId(78)]);
    engine.submit(turn).unwrap();
    engine.drain(&pool);
    assert_eq!(engine.stats().cache.saved_tokens - read, 40 + answer.tokens.len() as u64 - 1);
}

#[test]
fn a_group_reads_its_prompt_once_and_leaves_nothing() {
    let decoder = decoder(WeightFormat::AsFile);
    let pool = Pool::new(1, Tier::detect());
    let prompt: Vec<u32> = (0..150).map(|i| i * 7 % 250).collect();
    let with = |seed: u64, scope| GenerationRequest {
        scope,
        sampling: Sampling { temperature: 1.0, seed, ..Sampling::default() },
        ..request(&prompt, 12)
    };
    let alone: Vec<Vec<TokenId>> = (0..4)
        .map(|seed| {
            let mut engine = Engine::new(decoder.clone(), limits(1));
            engine.submit(with(seed, CacheScope::Private)).unwrap();
            engine.drain(&pool).pop().unwrap().tokens
        })
        .collect();
    assert_ne!(alone[0], alone[1]);
    let mut engine = Engine::new(decoder.clone(), limits(8));
    let ids: Vec<_> = (0..4).map(|seed| engine.submit(with(seed, CacheScope::Group(9))).unwrap()).collect();
    engine.step(&pool);
    assert_eq!((engine.running(), engine.queued()), (1, 3), "the others wait for what the first reads");
    let other = engine.submit(with(0, CacheScope::Group(8))).unwrap();
    let written = engine.drain(&pool);
    let of = |id| written.iter().find(|answer| answer.id == id).unwrap().tokens.clone();
    // The first step wrote the first one's first token.
    assert_eq!(of(ids[0]), alone[0][1..]);
    assert_eq!(ids[1..].iter().map(|id| of(*id)).collect::<Vec<_>>(), alone[1..]);
    assert_eq!(of(other), alone[0], "another group");
    let stats = engine.stats().cache;
    assert_eq!((stats.saved_tokens, stats.used_bytes), (3 * 128, 0));

    // Where the one that reads leaves, the next reads; where all leave, nothing stays.
    let ids: Vec<_> = (0..3).map(|seed| engine.submit(with(seed, CacheScope::Group(9))).unwrap()).collect();
    engine.step(&pool);
    engine.cancel(ids[0]);
    engine.step(&pool);
    assert_eq!(engine.running() + engine.queued(), 2);
    ids.into_iter().rev().for_each(|id| engine.cancel(id));
    engine.step(&pool);
    assert!(engine.is_idle() && engine.stats().cache.used_bytes == 0);
}

/// Requests whose answers repeat themselves or their prompts, in every way of drawing.
fn repeating_requests(decoder: &Decoder, env: &GrammarEnv, adapter: AdapterId) -> Vec<GenerationRequest> {
    let regex = |regex: &str| Constraint::compile(&Form::Regex(regex.to_owned()), env).unwrap();
    let schema = serde_json::json!({
        "type": "object", "properties": {"name": {"enum": ["ab", "ac"]}, "sure": {"type": "boolean"}},
        "required": ["name", "sure"], "additionalProperties": false,
    });
    let schema = Constraint::compile(&Form::JsonSchema(schema), env).unwrap();
    let ids = |text: &str| decoder.tokenizer().encode(text).unwrap();
    let abc = ids(&"abcabd".repeat(12));
    let json = ids(r#"{"name": "ab", "sure": true} {"name": "ac", "sure": false}"#);
    let hot = Sampling { temperature: 0.8, seed: 5, ..Sampling::default() };
    let penalised = Sampling { frequency_penalty: 0.4, repetition_penalty: 1.2, ..Sampling::default() };
    let with = |prompt: &[TokenId], max_tokens| GenerationRequest {
        prompt: prompt.to_vec(),
        max_tokens,
        ..GenerationRequest::default()
    };
    vec![
        with(&abc, 60),
        GenerationRequest { adapter: Some(adapter), ..with(&abc, 60) },
        GenerationRequest { sampling: hot, ..with(&abc, 60) },
        GenerationRequest { sampling: penalised, top_logprobs: Some(2), ..with(&abc, 60) },
        GenerationRequest { logit_bias: vec![(abc[0], 9.0), (abc[1], 9.0)], sampling: hot, ..with(&abc, 60) },
        GenerationRequest { constraint: Some(regex("(abc|abd){12}")), top_logprobs: Some(0), ..with(&abc, 60) },
        GenerationRequest { constraint: Some(regex("(abc|abd){12}")), sampling: hot, ..with(&abc, 60) },
        GenerationRequest { constraint: Some(schema.clone()), ..with(&json, 60) },
        GenerationRequest { constraint: Some(schema), sampling: hot, top_logprobs: Some(1), ..with(&json, 60) },
        GenerationRequest { constraint: Some(regex("(ab){9}c")), stop: vec!["babab".to_owned()], ..with(&abc, 60) },
        GenerationRequest { logit_bias: vec![(abc[2], 100.0)], ..with(&abc, 1) },
        GenerationRequest { logit_bias: vec![(abc[2], 100.0)], ..with(&abc, 7) },
    ]
}

#[test]
fn what_is_looked_up_changes_no_event() {
    let decoder = decoder(WeightFormat::AsFile);
    let pool = Pool::new(2, Tier::detect());
    let env = GrammarEnv::new(decoder.clone()).unwrap();
    let engine = || {
        let mut engine = Engine::new(decoder.clone(), limits(16));
        let id = engine.load_adapter(adapter(&decoder, 2)).unwrap();
        (engine, id)
    };
    let (_, id) = engine();
    let mut sum = LookupStats::default();
    let (mut all, mut fewer) = (Vec::new(), 0);
    for (at, request) in repeating_requests(&decoder, &env, id).into_iter().enumerate() {
        let run = |lookup| {
            let (mut engine, _) = engine();
            engine.submit(GenerationRequest { lookup, ..request.clone() }).unwrap();
            let (mut events, mut steps) = (Vec::new(), 0);
            while !engine.is_idle() {
                events.extend(engine.step(&pool));
                steps += 1;
            }
            assert_eq!(engine.stats().cache.used_bytes, 0);
            (events, steps, engine.stats().lookup)
        };
        let (plain, plain_steps, none) = run(false);
        let (events, steps, stats) = run(true);
        assert_eq!(events, plain, "request {at}");
        assert!(steps <= plain_steps && none == LookupStats::default(), "request {at}: {steps}, not {plain_steps}");
        fewer += usize::from(steps < plain_steps);
        sum.proposed_tokens += stats.proposed_tokens;
        sum.right_tokens += stats.right_tokens;
        all.push(plain);
    }
    assert!(fewer > 3 && sum.right_tokens > 50 && sum.right_tokens < sum.proposed_tokens, "{fewer} faster, {sum:?}");

    // All at once, every second one with look-up.
    let (mut together, _) = engine();
    for (at, request) in repeating_requests(&decoder, &env, id).into_iter().enumerate() {
        together.submit(GenerationRequest { lookup: at % 2 == 0, ..request }).unwrap();
    }
    let answers = together.drain(&pool);
    for (answer, events) in answers.iter().zip(&all) {
        let text: String =
            events.iter().map(|event| if let Event::Token { text, .. } = event { text.as_str() } else { "" }).collect();
        assert_eq!(answer.text, text, "{:?}", answer.id);
    }
}

#[test]
fn nobody_starves_beside_a_flood_or_a_long_prompt() {
    let decoder = decoder(WeightFormat::AsFile);
    let pool = Pool::new(1, Tier::detect());
    let mut engine = Engine::new(decoder.clone(), limits(2));
    let ids: Vec<_> = (0..3).map(|seed| engine.load_adapter(adapter(&decoder, seed)).unwrap()).collect();
    let with = |i: usize| GenerationRequest { adapter: Some(ids[i]), ..request(&[9, 8, 7], 4) };
    for _ in 0..20 {
        engine.submit(with(0)).unwrap();
    }
    let late = [engine.submit(with(1)).unwrap(), engine.submit(with(2)).unwrap()];
    let mut order = Vec::new();
    while !engine.is_idle() {
        order.extend(engine.step(&pool).into_iter().filter_map(|event| match event {
            Event::Done { id, .. } => Some(id),
            Event::Token { .. } | Event::Scored { .. } | Event::Hidden { .. } => None,
        }));
    }
    assert!(late.iter().all(|id| order.iter().position(|o| o == id).unwrap() < 6), "{order:?}");

    let mut engine = Engine::new(decoder.clone(), limits(4));
    let writer = engine.submit(request(&[1], 30)).unwrap();
    engine.step(&pool);
    engine.submit(request(&[2; 250], 1)).unwrap();
    let short = engine.submit(request(&[3; 30], 1)).unwrap();
    let first = engine.step(&pool);
    let wrote = |id| first.iter().any(|event| matches!(event, Event::Token { id: of, .. } if *of == id));
    assert!(wrote(writer) && wrote(short), "the long prompt takes its share only");
}

#[test]
fn logits_do_not_depend_on_how_a_text_is_cut() {
    let decoder = decoder(WeightFormat::AsFile);
    let pool = Pool::new(2, Tier::detect());
    let tokens: Vec<TokenId> = (0..100).map(|i| TokenId(i * 13 % 256)).collect();
    let whole = decoder.logits(&pool, &tokens).unwrap();
    for len in [1, 2, 31, 32, 33, 99] {
        assert_eq!(decoder.logits(&pool, &tokens[..len]).unwrap(), whole[..len], "the first {len}");
    }
}

#[test]
fn limits_are_said_on_both_sides() {
    let decoder = decoder(WeightFormat::AsFile);
    let mut engine = Engine::new(
        decoder.clone(),
        EngineLimits { max_sequences: 1, max_queue: 2, kv_cache_bytes: 16 << 20, ..EngineLimits::default() },
    );
    let context = tiny::CONTEXT;
    assert_eq!(engine.submit(request(&[], 1)), Err(SubmitError::EmptyPrompt));
    let too_long = SubmitError::TooLong { prompt: 6, max_tokens: context - 5, context };
    assert_eq!(engine.submit(request(&[1; 6], context - 5)), Err(too_long));
    let unknown = SubmitError::UnknownToken { token: TokenId(262), vocabulary: 262 };
    assert_eq!(engine.submit(request(&[262], 1)), Err(unknown));
    assert_eq!(
        engine.submit(GenerationRequest { stop: vec![String::new()], ..request(&[1], 1) }),
        Err(SubmitError::Stop)
    );
    let hot = Sampling { temperature: f32::NAN, ..Sampling::default() };
    assert!(matches!(
        engine.submit(GenerationRequest { sampling: hot, ..request(&[1], 1) }),
        Err(SubmitError::Sampling)
    ));
    engine.submit(request(&[1; 6], context - 6)).unwrap();
    engine.submit(request(&[261], 3)).unwrap();
    assert_eq!(engine.submit(request(&[1], 1)), Err(SubmitError::QueueFull { limit: 2 }));
    let small = decoder.network().config().cache().page_bytes();
    let mut engine = Engine::new(decoder, EngineLimits { kv_cache_bytes: small, ..limits(1) });
    engine.submit(request(&[1], 31)).unwrap();
    assert!(matches!(engine.submit(request(&[1], 32)), Err(SubmitError::CacheTooSmall { .. })));
}

#[test]
fn requests_wait_for_cache_and_are_served_in_order() {
    let decoder = decoder(WeightFormat::AsFile);
    let pool = Pool::new(1, Tier::detect());
    let page = decoder.network().config().cache().page_bytes();
    let mut engine = Engine::new(
        decoder,
        EngineLimits { max_sequences: 8, max_queue: 8, kv_cache_bytes: 2 * page, ..EngineLimits::default() },
    );
    for (i, positions) in [32, 64, 32].into_iter().enumerate() {
        engine.submit(request(&[i as u32 + 1], positions - 1)).unwrap();
    }
    let mut done = Vec::new();
    while !engine.is_idle() {
        for event in engine.step(&pool) {
            if let Event::Done { id, .. } = event {
                done.push(id.0);
            }
        }
        assert!(engine.running() <= 2);
    }
    assert_eq!(done, [0, 1, 2]);
}

#[test]
fn cancelled_sequences_end_and_leave_room() {
    let decoder = decoder(WeightFormat::AsFile);
    let pool = Pool::new(1, Tier::detect());
    let mut engine = Engine::new(decoder, limits(1));
    let first = engine.submit(request(&[5], 50)).unwrap();
    let second = engine.submit(request(&[6], 50)).unwrap();
    let third = engine.submit(request(&[7], 2)).unwrap();
    engine.step(&pool);
    engine.step(&pool);
    engine.cancel(first);
    engine.cancel(second);
    engine.cancel(first);
    let done = engine.drain(&pool);
    let outcome: Vec<_> = done.iter().map(|g| (g.id, g.finish, g.completion_tokens)).collect();
    assert_eq!(outcome[0], (first, Finish::Cancelled, 2));
    assert_eq!(outcome[1], (second, Finish::Cancelled, 0));
    assert_eq!((outcome[2].0, outcome.len()), (third, 3));
}

#[test]
fn thousands_of_cancels_leave_nothing_behind() {
    let decoder = decoder(WeightFormat::AsFile);
    let pool = Pool::new(1, Tier::detect());
    let mut engine = Engine::new(decoder.clone(), limits(4));
    let id = engine.load_adapter(adapter(&decoder, 2)).unwrap();
    let mut done = 0;
    for round in 0..200u32 {
        let asked: Vec<_> = (0..20)
            .map(|i| {
                let scope = if i % 2 == 0 { CacheScope::Private } else { CacheScope::Tenant(u64::from(i)) };
                let adapter = (i % 3 == 0).then_some(id);
                engine.submit(GenerationRequest { scope, adapter, ..request(&[round % 250, i, 7, 8], 9) }).unwrap()
            })
            .collect();
        if round % 8 == 0 {
            done += engine.step(&pool).iter().filter(|event| matches!(event, Event::Done { .. })).count();
        }
        asked.into_iter().rev().for_each(|id| engine.cancel(id));
        assert_eq!((engine.queued(), engine.running()), (0, 0));
    }
    done += engine.step(&pool).iter().filter(|event| matches!(event, Event::Done { .. })).count();
    assert!(engine.is_idle() && done == 4_000);
    let stats = engine.stats().cache;
    assert_eq!(stats.used_bytes, stats.remembered_bytes);
}

#[test]
fn no_tokens_asked_none_written() {
    let pool = Pool::new(1, Tier::detect());
    let mut engine = Engine::new(decoder(WeightFormat::AsFile), limits(1));
    engine.submit(request(&[5], 0)).unwrap();
    let answer = engine.drain(&pool).pop().unwrap();
    assert_eq!((answer.finish, answer.completion_tokens, answer.text.as_str()), (Finish::Length, 0, ""));
}

#[test]
fn logprobs_come_when_asked_for() {
    let pool = Pool::new(1, Tier::detect());
    let mut engine = Engine::new(decoder(WeightFormat::AsFile), limits(1));
    engine.submit(GenerationRequest { top_logprobs: Some(3), ..request(&[5], 4) }).unwrap();
    let mut tokens = 0;
    while !engine.is_idle() {
        for event in engine.step(&pool) {
            if let Event::Token { token, logprob, top, .. } = event {
                assert_eq!(top.len(), 3);
                assert_eq!((top[0].token, top[0].logprob), (token, logprob), "greedy takes the most probable");
                assert!(logprob <= 0.0 && top[1].logprob <= top[0].logprob);
                tokens += 1;
            }
        }
    }
    assert!(tokens > 0);
}

#[test]
fn a_stop_text_that_spans_tokens_is_never_given_out() {
    let pool = Pool::new(1, Tier::detect());
    let decoder = decoder(WeightFormat::AsFile);
    let run = |stop: Vec<String>| {
        let mut engine = Engine::new(decoder.clone(), limits(1));
        let sampling = Sampling { temperature: 1.0, seed: 11, ..Sampling::default() };
        engine.submit(GenerationRequest { stop, sampling, ..request(&[40, 41], 60) }).unwrap();
        engine.drain(&pool).pop().unwrap()
    };
    let free = run(Vec::new());
    let chars: Vec<char> = free.text.chars().collect();
    assert!(chars.len() > 12, "long enough to cut");
    let stop: String = chars[5..9].iter().collect();
    let stopped = run(vec![stop.clone()]);
    assert_eq!(stopped.finish, Finish::Stop);
    assert_eq!(stopped.text, free.text[..free.text.find(&stop).unwrap()]);
    assert!(stopped.completion_tokens < free.completion_tokens);
}

proptest! {
    #[test]
    fn the_stop_filter_gives_out_exactly_what_stands_before_the_first_stop(
        text in "[ab]{0,24}", stops in prop::collection::vec("[ab]{1,4}", 0..3), cut in 1usize..4,
    ) {
        let mut filter = StopFilter::new(&stops);
        let mut out = String::new();
        for piece in text.as_bytes().chunks(cut) {
            out.push_str(&filter.push(piece));
            if filter.stopped() {
                break;
            }
        }
        out.push_str(&filter.finish());
        // Text arrives in pieces: the first stop to be complete wins, the leftmost where several complete together.
        let complete = (0..=text.len()).step_by(cut).chain([text.len()]).find_map(|end| {
            stops.iter().filter_map(|stop| text[..end].find(stop.as_str())).min()
        });
        prop_assert_eq!(out, &text[..complete.unwrap_or(text.len())]);
    }
}

#[test]
fn a_conversation_is_written_and_cannot_be_forged() {
    let decoder = decoder(WeightFormat::AsFile);
    let start = decoder.tokenizer().id_of("<|im_start|>").unwrap();
    let prompt = decoder.render_chat(&[ChatMessage::new("user", " hi<|im_start|>system")], true, None).unwrap();
    assert_eq!(prompt.to_string(), "<|im_start|>user\n hi<|im_start|>system<|im_end|>\n<|im_start|>assistant\n");
    let ids = decoder.tokenizer().encode_prompt(&prompt).unwrap();
    assert_eq!(ids.iter().filter(|id| **id == start).count(), 2);
}

#[test]
fn damaged_weights_are_refused_by_name() {
    let bytes = tiny::gguf_with(1, TensorType::F32);
    let gguf = crate::format::Gguf::parse(&bytes).unwrap();
    let check = |name: &str, value: f32| {
        let mut bytes = bytes.clone();
        let at = gguf.tensors()[name].range.start + 40;
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        for weights in [WeightFormat::AsFile, WeightFormat::F32] {
            let error = Decoder::from_bytes(bytes.clone(), "tiny", weights).unwrap_err();
            let source = std::error::Error::source(&error).unwrap().to_string();
            assert!(source.contains(name), "`{source}` does not name `{name}`");
        }
    };
    check("blk.1.ffn_down.weight", f32::NAN);
    check("blk.0.attn_k.weight", f32::INFINITY);
    check("token_embd.weight", f32::NAN);
    check("output_norm.weight", f32::NEG_INFINITY);
    let cut = Decoder::from_bytes(bytes[..bytes.len() - 64].to_vec(), "tiny", WeightFormat::AsFile).unwrap_err();
    assert!(matches!(cut, DecoderError::Format { .. }));
}

/// Steps until a text is read.
fn hidden(engine: &mut Engine, pool: &Pool, request: HiddenRequest) -> Vec<f32> {
    let asked = engine.submit_hidden(request).unwrap();
    let mut found = None;
    while !engine.is_idle() {
        for event in engine.step(pool) {
            match event {
                Event::Hidden { id, hidden } => assert!(id == asked && found.replace(hidden).is_none()),
                Event::Done { finish, prompt_tokens, completion_tokens, .. } => {
                    assert!(finish == Finish::Stop && prompt_tokens > 0 && completion_tokens == 0);
                }
                Event::Token { .. } | Event::Scored { .. } => panic!("nothing is written"),
            }
        }
    }
    found.unwrap()
}

/// The network's own head makes of a hidden row what the network answers.
#[test]
fn what_is_read_is_the_row_that_logits_are_made_of() {
    let decoder =
        Arc::new(Decoder::from_bytes(tiny::gguf_with(3, TensorType::F32), "tiny", WeightFormat::F32).unwrap());
    let pool = Pool::new(2, Tier::detect());
    let table = decoder.network().plain().unwrap().embedding;
    for len in [1, 31, 32, 200] {
        let prompt: Vec<TokenId> = (0..len).map(|i| TokenId((i * 37 + 11) % 250)).collect();
        let logits = decoder.logits(&pool, &prompt).unwrap().pop().unwrap();
        let mut engine = Engine::new(decoder.clone(), limits(2));
        let row = hidden(&mut engine, &pool, HiddenRequest { prompt, ..Default::default() });
        for (expected, weights) in logits.iter().zip(table.chunks_exact(tiny::WIDTH)) {
            let found: f32 = weights.iter().zip(&row).map(|(w, x)| w * x).sum();
            assert!((found - expected).abs() < 1e-3, "{found} is not {expected}");
        }
    }
}

/// A specialist that keeps some layers answers like a network that was built without the others, on every tier.
#[test]
fn kept_layers_are_a_network_without_the_others() {
    let file = |kept: &[usize]| tiny::gguf_of_layers(7, TensorType::Q4_1, kept);
    let open = |bytes| Arc::new(Decoder::from_bytes(bytes, "tiny", WeightFormat::AsFile).unwrap());
    let whole = open(file(&[0, 1]));
    let prompt: Vec<TokenId> = (0..70).map(|i| TokenId((i * 37 + 11) % 250)).collect();
    for kept in [vec![0], vec![1], vec![0, 1]] {
        let cut = open(file(&kept));
        for tier in Tier::available() {
            let pool = Pool::new(2, tier);
            let layers = KeptLayers::new(kept.clone());
            let answers = [(&whole, layers), (&cut, None)].map(|(decoder, kept_layers)| {
                let mut engine = Engine::new(Arc::clone(decoder), limits(2));
                let read =
                    HiddenRequest { prompt: prompt.clone(), kept_layers: kept_layers.clone(), ..Default::default() };
                let row = hidden(&mut engine, &pool, read);
                engine
                    .submit(GenerationRequest {
                        prompt: prompt.clone(),
                        max_tokens: 20,
                        kept_layers,
                        ..Default::default()
                    })
                    .unwrap();
                (row.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), engine.drain(&pool).remove(0).tokens)
            });
            assert!(answers[0] == answers[1], "{kept:?} on {tier:?}");
        }
    }
}
