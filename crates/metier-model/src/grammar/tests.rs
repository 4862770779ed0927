#![allow(clippy::unwrap_used, reason = "tests")]

use metier_kernels::{Pool, Tier};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::{
    Engine, EngineLimits,
    engine::{Finish, Generation, GenerationRequest, Sampling, SubmitError, WeightFormat},
    tiny,
};

fn env() -> GrammarEnv {
    GrammarEnv::new(Arc::new(Decoder::from_bytes(tiny::gguf(7), "tiny", WeightFormat::AsFile).unwrap())).unwrap()
}

fn compile(form: &Form) -> Constraint {
    Constraint::compile(form, &env()).unwrap()
}

/// What a model that says nothing sensible writes in this form.
fn write(constraint: &Constraint, seed: u64, temperature: f32, logprobs: bool) -> Generation {
    let env = env();
    let pool = Pool::new(1, Tier::detect());
    let mut engine =
        Engine::new(Arc::clone(&env.decoder), EngineLimits { kv_cache_bytes: 16 << 20, ..Default::default() });
    let request = GenerationRequest {
        prompt: vec![TokenId(5), TokenId(80)],
        max_tokens: 200,
        sampling: Sampling { temperature, seed, ..Default::default() },
        constraint: Some(constraint.clone()),
        top_logprobs: logprobs.then_some(0),
        ..Default::default()
    };
    engine.submit(request).unwrap();
    engine.drain(&pool).pop().unwrap()
}

fn ticket() -> Form {
    Form::JsonSchema(json!({
        "type": "object",
        "properties": {
            "category": {"enum": ["billing", "shipping", "other"]},
            "urgent": {"type": "boolean"},
            "amount": {"type": "integer", "minimum": 0, "maximum": 999},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 5}, "maxItems": 2},
        },
        "required": ["category", "urgent", "amount", "tags"],
        "additionalProperties": false,
    }))
}

/// The ticket's schema, said once more by hand.
fn is_ticket(text: &str) -> bool {
    let Ok(Value::Object(map)) = serde_json::from_str(text) else { return false };
    let tags = map["tags"].as_array().unwrap();
    map.keys().eq(["category", "urgent", "amount", "tags"])
        && ["billing", "shipping", "other"].contains(&map["category"].as_str().unwrap())
        && map["urgent"].is_boolean()
        && map["amount"].as_u64().unwrap() <= 999
        && tags.len() <= 2
        && tags.iter().all(|tag| tag.as_str().unwrap().chars().count() <= 5)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_drawn_has_the_form(seed: u64, temperature in 0.0f32..3.0) {
        let answer = write(&compile(&ticket()), seed, temperature, false);
        prop_assert_eq!(answer.finish, Finish::Stop);
        prop_assert!(is_ticket(&answer.text), "{}", answer.text);
        let step_by_step = write(&compile(&ticket()), seed, temperature, true);
        prop_assert_eq!(&step_by_step.tokens, &answer.tokens, "tokens that are certain are those that would be drawn");

        let regex = r"[A-Z]{2}-\d{3,5}(é|ü)?";
        let answer = write(&compile(&Form::Regex(regex.into())), seed, temperature, false);
        prop_assert!(regex::Regex::new(&format!("^(?:{regex})$")).unwrap().is_match(&answer.text), "{}", answer.text);

        let choices = ["yes", "yes, gladly", "no"].map(String::from).to_vec();
        let answer = write(&compile(&Form::Choice(choices.clone())), seed, temperature, false);
        prop_assert!(choices.contains(&answer.text), "{}", answer.text);

        let answer = write(&compile(&Form::JsonObject), seed, temperature, false);
        if answer.finish == Finish::Stop {
            prop_assert!(serde_json::from_str::<serde::de::IgnoredAny>(&answer.text).is_ok(), "{}", answer.text);
        } else {
            prop_assert_eq!(answer.finish, Finish::Length);
        }
        prop_assert!(answer.text.starts_with('{'), "an object");
    }
}

#[test]
fn what_is_certain_is_not_drawn() {
    let form = ticket();
    let mut state = compile(&form).begin();
    let text = state.forced().to_vec();
    assert_eq!(env().decoder.tokenizer().decode(&text), "{\"category\": \"");
    for token in text {
        assert_eq!(state.mask().unwrap().count(), 1);
        assert!(state.mask().unwrap().contains(token));
        state.commit(token).unwrap();
    }
    assert!(!state.is_accepting() && !state.is_finished());
    assert!(state.commit(TokenId(0)).is_err(), "a token that is not allowed");
}

/// Asks the form of every token behind every beginning of many answers, both ways.
#[test]
fn a_token_is_allowed_where_its_mask_says_so() {
    let words = Form::Regex(r"[A-Z]\w+( \w+){1,5}\.".into());
    let choices = Form::Choice(["yes", "yes, gladly", "no"].map(String::from).to_vec());
    let date = Form::Regex(r"\d{4}-\d{2}-\d{2}(é|ü)?".into());
    let vocabulary = env().decoder.tokenizer().vocabulary() as u32;
    for form in [ticket(), Form::JsonObject, words, choices, date] {
        let constraint = compile(&form);
        for (seed, logprobs) in [(1, false), (2, true)] {
            let answer = write(&constraint, seed, 1.0, logprobs);
            // Over two automata: what one text finds out would answer for the other.
            let (mut asked, mut masked) = (compile(&form).begin(), constraint.begin());
            for token in answer.tokens.into_iter().map(Some).chain([None]) {
                if !asked.is_finished() {
                    let mask = masked.mask().unwrap();
                    for id in (0..vocabulary + 2).map(TokenId) {
                        let (one, other) = (asked.allows(id).unwrap(), mask.contains(id));
                        assert_eq!(one, other, "{form:?}: {id:?} behind {token:?}");
                    }
                }
                let Some(token) = token else { break };
                asked.commit(token).unwrap();
                masked.commit(token).unwrap();
            }
            assert_eq!(asked.take_stats().masks + masked.take_stats().checked_tokens, 0);
        }
    }
}

#[test]
fn an_answer_that_is_cut_is_said_to_be_cut() {
    let env = env();
    let pool = Pool::new(1, Tier::detect());
    let mut engine = Engine::new(Arc::clone(&env.decoder), EngineLimits::default());
    for max_tokens in [1, 5, 9] {
        let constraint = Some(Constraint::compile(&ticket(), &env).unwrap());
        engine
            .submit(GenerationRequest { prompt: vec![TokenId(1)], max_tokens, constraint, ..Default::default() })
            .unwrap();
    }
    for (answer, max_tokens) in engine.drain(&pool).iter().zip([1, 5, 9]) {
        assert_eq!((answer.finish, answer.completion_tokens), (Finish::Length, max_tokens));
    }
}

#[test]
fn forms_that_cannot_be_are_refused() {
    let env = env();
    let refused = |form: Form| Constraint::compile(&form, &env).unwrap_err();
    let schema = |schema: Value| refused(Form::JsonSchema(schema));
    assert!(matches!(refused(Form::Choice(vec![])), GrammarError::Choices));
    assert!(matches!(refused(Form::Choice(vec![String::new()])), GrammarError::Choices));
    assert!(matches!(refused(Form::Choice(vec!["a".into(); MAX_CHOICES + 1])), GrammarError::Choices));
    assert!(Constraint::compile(&Form::Choice(vec!["a".into(); MAX_CHOICES]), &env).is_ok());
    assert!(matches!(refused(Form::Regex("a".repeat(MAX_FORM_BYTES + 1))), GrammarError::TooLong { .. }));
    assert!(matches!(refused(Form::Regex("(a".into())), GrammarError::Regex(_)));
    let error = refused(Form::Regex("[a&&b]".into()));
    assert!(matches!(error, GrammarError::Unsatisfiable(_)), "{error:?}");
    let error = schema(json!({"type": "integer", "minimum": 5, "maximum": 4}));
    assert!(matches!(error, GrammarError::Unsatisfiable(_)), "{error:?}");
    assert!(matches!(schema(json!({"type": "object", "not": {}})), GrammarError::Schema(_)));
    assert!(matches!(schema(json!("text")), GrammarError::Schema(_)));
    assert!(matches!(schema(json!({"$ref": "http://example.com/a.json"})), GrammarError::Schema(_)));
}

#[test]
fn a_form_of_another_base_is_refused() {
    let other = Arc::new(Decoder::from_bytes(tiny::gguf(8), "tiny", WeightFormat::AsFile).unwrap());
    let constraint = Some(compile(&Form::JsonObject));
    let request = GenerationRequest { prompt: vec![TokenId(1)], max_tokens: 4, constraint, ..Default::default() };
    assert_eq!(Engine::new(other, EngineLimits::default()).submit(request), Err(SubmitError::Constraint));
}

/// What a text of this form may go on with behind each of its tokens.
fn masks(mut state: ConstraintState, tokens: &[TokenId]) -> (Vec<TokenMask>, ConstraintStats) {
    let mut masks = vec![state.mask().unwrap().clone()];
    for &token in tokens {
        state.commit(token).unwrap();
        if !state.is_finished() {
            masks.push(state.mask().unwrap().clone());
        }
    }
    (masks, state.take_stats())
}

#[test]
fn masks_are_made_once_for_all_texts_of_an_expression() {
    let words = Form::Regex(r"[A-Z]\w+( \w+){1,5}\.".into());
    for (form, shares) in [(words, true), (ticket(), false)] {
        let constraint = compile(&form);
        let tokens = write(&constraint, 3, 1.0, false).tokens;
        let (first, _) = masks(constraint.begin(), &tokens);
        let (again, stats) = masks(constraint.begin(), &tokens);
        assert_eq!(first, again);
        let (alone, _) = masks(compile(&form).begin(), &tokens);
        assert_eq!(first, alone, "what others know changes nothing");
        if shares {
            assert!(stats.masks < stats.known_masks, "only what is certain is asked again: {stats:?}");
        } else {
            assert_eq!(stats.known_masks, 0);
        }
    }
}

#[test]
fn a_text_outlives_the_automaton_that_it_shared() {
    for form in [Form::Regex(r"[A-Z]\w+( \w+){1,5}\.".into()), ticket()] {
        let constraint = compile(&form);
        let tokens = write(&constraint, 5, 1.0, false).tokens;
        let (expected, _) = masks(compile(&form).begin(), &tokens);
        let (mut lost, mut other) = (constraint.begin(), constraint.begin());
        for &token in &tokens[..tokens.len() / 2] {
            other.commit(token).unwrap();
        }
        // The library breaks inside the lexer that both hold.
        assert!(catch(|| lost.parser.parser.test_trigger_lexer_error()).is_err());
        assert_eq!(lost.mask().unwrap(), &expected[0]);
        for (at, &token) in tokens.iter().enumerate().skip(tokens.len() / 2) {
            assert_eq!(other.mask().unwrap(), &expected[at], "behind {at} tokens");
            other.commit(token).unwrap();
        }
        assert_eq!(masks(constraint.begin(), &tokens).0, expected, "the next text begins with another");
    }
}
