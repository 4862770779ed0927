//! Records of every log format → exchanges. The records are made from the tools' published schemas; where `METIER_DATA` holds real samples, those
//! are read too.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::print_stderr, reason = "tests; one finds real data")]

use std::path::PathBuf;

use metier_traffic::{
    exchange::{Exchange, Odd, Said, Speaker, Tokens, Verdict},
    logs::{self, Format, Row, Unread},
};
use proptest::prelude::*;
use serde_json::{Value, json};

/// What all formats below say, each in its own way.
fn expected() -> Exchange {
    Exchange {
        id: Some("r-1".into()),
        time_ms: Some(1_700_158_623_000),
        elapsed_ms: Some(1500),
        model: "gpt-4o-mini".into(),
        group: Some("ada".into()),
        messages: vec![
            Said { by: Speaker::System, text: "Which intent?".into() },
            Said { by: Speaker::User, text: "my card is lost".into() },
        ],
        answer: Some("lost_card".into()),
        tokens: Some(Tokens { input: 20, output: 3, cached: 8 }),
        ..Exchange::default()
    }
}

fn call(record: &Value) -> (Format, Exchange) {
    match logs::read(record).unwrap_or_else(|error| panic!("{error}: {record}")) {
        (format, Row::Calls(mut calls)) if calls.len() == 1 => (format, calls.remove(0)),
        other => panic!("{other:?}"),
    }
}

/// Reads the record, and compares with [`expected`] as far as the format can say it.
#[track_caller]
fn check(format: Format, record: &Value, change: impl FnOnce(&mut Exchange)) {
    let (found, call) = call(record);
    let mut wanted = expected();
    change(&mut wanted);
    assert_eq!((found, call), (format, wanted), "{record}");
}

fn messages() -> Value {
    json!([{"role": "system", "content": "Which intent?"}, {"role": "user", "content": "my card is lost"}])
}

fn usage() -> Value {
    json!({"prompt_tokens": 20, "completion_tokens": 3, "total_tokens": 23, "prompt_tokens_details": {"cached_tokens": 8}})
}

#[test]
fn openai_pairs() {
    let answer = json!({
        "id": "r-1", "object": "chat.completion", "created": 1_700_158_623, "model": "gpt-4o-mini", "usage": usage(),
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "lost_card"}}]
    });
    let body = json!({"model": "gpt-4o", "messages": messages(), "user": "ada"});
    check(Format::OpenAi, &json!({"request": body, "response": answer}), |call| call.elapsed_ms = None);
    check(
        Format::OpenAi,
        &json!({"request_body": body.to_string(), "response_body": answer.to_string(), "latency_ms": 1500}),
        |_| (),
    );
    check(Format::OpenAi, &json!({"custom_id": "c-1", "response": {"status_code": 200, "body": answer}}), |call| {
        (call.elapsed_ms, call.group) = (None, None);
        call.messages.clear();
    });
    let with_tools = json!({"model": "m", "messages": messages(), "user": "ada",
        "tools": [{"type": "function", "function": {"name": "b"}}, {"type": "function", "function": {"name": "a"}}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}});
    check(Format::OpenAi, &json!({"request": with_tools, "response": answer}), |call| {
        call.elapsed_ms = None;
        call.tools = vec!["a".into(), "b".into()];
        call.schema = Some(r#"{"type":"object"}"#.into());
    });
    // A training file: its last message is the answer.
    let mut said = messages().as_array().unwrap().clone();
    said.push(json!({"role": "assistant", "content": "lost_card"}));
    check(Format::OpenAi, &json!({"messages": said}), |call| {
        *call = Exchange { messages: expected().messages, answer: expected().answer, ..Exchange::default() };
    });
    let failed = call(&json!({"request": body, "response": {"error": {"message": "overloaded"}}})).1;
    assert!(failed.failed && failed.answer.is_none());
    assert_eq!(
        logs::read(&json!({"custom_id": "e", "url": "/v1/embeddings", "body": {"model": "m", "input": "x"}})),
        Err(Unread::OtherWork)
    );
}

#[test]
fn anthropic_bodies_count_the_cache_beside_the_input() {
    let record = json!({
        "request": {"model": "claude", "system": "Which intent?", "messages": [{"role": "user", "content": "my card is lost"}], "metadata": {"user_id": "ada"}},
        "response": {"id": "r-1", "type": "message", "role": "assistant", "model": "gpt-4o-mini", "content": [{"type": "text", "text": "lost_card"}],
            "usage": {"input_tokens": 12, "output_tokens": 3, "cache_read_input_tokens": 8, "cache_creation_input_tokens": 0}},
        "timestamp": "2023-11-16T18:17:03Z", "end_time": "2023-11-16T18:17:04.5Z"
    });
    check(Format::OpenAi, &record, |_| ());
}

#[test]
fn pieces_of_a_stream() {
    let chunk = |text: &str| json!({"id": "r-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [{"delta": {"content": text}}]});
    for text in ["Santa", " Claus"] {
        let (Format::OpenAi, Row::Piece(piece)) = logs::read(&chunk(text)).unwrap() else { panic!() };
        assert_eq!((piece.id.as_str(), piece.part.answer.as_deref()), ("r-1", Some(text)));
    }
}

#[test]
fn litellm_spend_logs() {
    let record = json!({
        "request_id": "r-1", "call_type": "acompletion", "api_key": "k", "spend": 0.001, "total_tokens": 23, "prompt_tokens": 20,
        "completion_tokens": 3, "startTime": "2023-11-16T18:17:03.000Z", "endTime": "2023-11-16T18:17:04.500Z", "model": "gpt-4o-mini",
        "user": "u", "end_user": "ada", "cache_hit": "False", "metadata": {"usage_object": usage()}, "request_tags": ["support"],
        "messages": messages(), "response": {"choices": [{"message": {"role": "assistant", "content": "lost_card"}}]}
    });
    check(Format::LiteLlm, &record, |call| {
        call.named = Some("support".into());
        call.logged_cost_picousd = Some(1_000_000_000);
    });
    // As PostgreSQL exports it to CSV: all cells are text, and prompts are not stored.
    let bare = json!({
        "request_id": "r-1", "call_type": "acompletion", "spend": "-0.001", "prompt_tokens": "20", "completion_tokens": "3",
        "startTime": "2023-11-16 18:17:03", "endTime": "2023-11-16 18:17:01", "model": "gpt-4o-mini", "end_user": "ada",
        "metadata": "{}", "request_tags": "[]", "messages": "{}", "response": "{}"
    });
    check(Format::LiteLlm, &bare, |call| {
        call.messages.clear();
        call.answer = None;
        call.elapsed_ms = None;
        call.tokens = Some(Tokens { input: 20, output: 3, cached: 0 });
        call.odd = vec![Odd::NegativeCost, Odd::EndsBeforeItBegins];
    });
    assert_eq!(
        logs::read(&json!({"request_id": "e", "call_type": "aembedding", "spend": 0, "startTime": 1})),
        Err(Unread::OtherWork)
    );
    let payload = json!({"id": "r-1", "call_type": "acompletion", "startTime": 1_700_158_623.0, "endTime": 1_700_158_624.5, "model": "gpt-4o-mini",
        "response_cost": 0.001, "prompt_tokens": 20, "completion_tokens": 3, "end_user": "ada", "status": "success",
        "messages": messages(), "response": {"choices": [{"message": {"content": "lost_card", "role": "assistant"}}]}, "model_parameters": {}, "metadata": {}});
    check(Format::LiteLlm, &payload, |call| {
        call.tokens = Some(Tokens { input: 20, output: 3, cached: 0 });
        call.logged_cost_picousd = Some(1_000_000_000);
    });
}

#[test]
fn langfuse_observations_and_scores() {
    let observation = json!({
        "id": "r-1", "trace_id": "t-1", "type": "GENERATION", "start_time": "2023-11-16 18:17:03.000000", "end_time": "2023-11-16 18:17:04.500000",
        "provided_model_name": "gpt-4o-mini", "user_id": "ada", "level": "DEFAULT", "name": "intent",
        "usage_details": {"input": 12, "input_cached_tokens": 8, "output": 3, "total": 23},
        "input": messages(), "output": {"role": "assistant", "content": "lost_card"}
    });
    check(Format::Langfuse, &observation, |call| call.named = Some("intent".into()));
    // The console's export: camel case, JSON in strings.
    let exported = json!({
        "id": "r-1", "traceId": "t-1", "type": "GENERATION", "startTime": "2023-11-16T18:17:03.000Z", "endTime": "2023-11-16T18:17:04.500Z",
        "model": "gpt-4o-mini", "sessionId": "ada", "promptTokens": 20, "completionTokens": 3,
        "input": messages().to_string(), "output": "lost_card"
    });
    check(Format::Langfuse, &exported, |call| call.tokens = Some(Tokens { input: 20, output: 3, cached: 0 }));
    assert_eq!(logs::read(&json!({"id": "s", "trace_id": "t", "type": "SPAN", "name": "x"})), Err(Unread::NoCall));
    assert_eq!(
        logs::read(
            &json!({"id": "t", "timestamp": "2023-11-16 18:17:03", "name": "x", "user_id": "a", "project_id": "p"})
        ),
        Err(Unread::NoCall)
    );
    let score = json!({"id": "s", "trace_id": "t-1", "observation_id": "r-1", "name": "helpful", "value": 1, "data_type": "NUMERIC", "source": "ANNOTATION"});
    let (Format::Langfuse, Row::Score(score)) = logs::read(&score).unwrap() else { panic!() };
    assert_eq!((score.of.as_str(), score.verdict), ("r-1", Verdict::Score { name: "helpful".into(), value: 1.0 }));
    let label = json!({"trace_id": "t-1", "name": "gold_label", "value": 0, "string_value": "stolen_card", "data_type": "CATEGORICAL", "source": "API"});
    let (_, Row::Score(label)) = logs::read(&label).unwrap() else { panic!() };
    assert_eq!((label.of.as_str(), label.verdict), ("t-1", Verdict::Label("stolen_card".into())));
}

#[test]
fn helicone_requests() {
    let record = json!({
        "request_id": "r-1", "request_created_at": "2023-11-16T18:17:03.000Z", "response_created_at": "2023-11-16T18:17:05Z", "delay_ms": 1500,
        "response_status": 200, "request_model": "gpt-4o-mini", "request_user_id": "ada", "request_properties": {"task": "intent"},
        "request_body": {"model": "gpt-4o-mini", "messages": messages()}, "feedback_rating": true, "costUSD": 0.001,
        "response_body": {"choices": [{"message": {"role": "assistant", "content": "lost_card"}}], "usage": usage()}
    });
    check(Format::Helicone, &record, |call| {
        call.named = Some("intent".into());
        call.gold = Some(Verdict::Score { name: "feedback".into(), value: 1.0 });
        call.logged_cost_picousd = Some(1_000_000_000);
    });
    let bare = json!({"request_id": "r-1", "request_created_at": "2023-11-16 18:17:03", "delay_ms": "1500", "response_status": "500",
        "request_model": "gpt-4o-mini", "request_user_id": "ada", "prompt_tokens": "20", "completion_tokens": "3"});
    check(Format::Helicone, &bare, |call| {
        call.messages.clear();
        call.answer = None;
        call.failed = true;
        call.tokens = Some(Tokens { input: 20, output: 3, cached: 0 });
    });
}

#[test]
fn opentelemetry_spans() {
    let input = json!([{"role": "system", "parts": [{"type": "text", "content": "Which intent?"}]}, {"role": "user", "parts": [{"type": "text", "content": "my card is lost"}]}]);
    let output =
        json!([{"role": "assistant", "parts": [{"type": "text", "content": "lost_card"}], "finish_reason": "stop"}]);
    let flat = json!({
        "span_id": "r-1", "trace_id": "t", "start_time": "2023-11-16T18:17:03Z", "end_time": "2023-11-16T18:17:04.5Z",
        "attributes": {"gen_ai.operation.name": "chat", "gen_ai.request.model": "gpt-4o", "gen_ai.response.model": "gpt-4o-mini",
            "gen_ai.conversation.id": "ada", "gen_ai.usage.input_tokens": 20, "gen_ai.usage.output_tokens": 3,
            "gen_ai.usage.cache_read.input_tokens": 8, "gen_ai.input.messages": input.to_string(), "gen_ai.output.messages": output.to_string()}
    });
    check(Format::OpenTelemetry, &flat, |_| ());
    // OTLP, with the names of two years ago and a span of other work beside it.
    let text = |key: &str, value: &str| json!({"key": key, "value": {"stringValue": value}});
    let int = |key: &str, value: i64| json!({"key": key, "value": {"intValue": value.to_string()}});
    let attributes = json!([
        text("gen_ai.system", "openai"),
        text("gen_ai.request.model", "gpt-4o-mini"),
        text("session.id", "ada"),
        int("gen_ai.usage.prompt_tokens", 20),
        int("gen_ai.usage.completion_tokens", 3),
        int("gen_ai.usage.cache_read_input_tokens", 8),
        text("gen_ai.prompt.0.role", "system"),
        text("gen_ai.prompt.0.content", "Which intent?"),
        text("gen_ai.prompt.1.role", "user"),
        text("gen_ai.prompt.1.content", "my card is lost"),
        text("gen_ai.completion.0.role", "assistant"),
        text("gen_ai.completion.0.content", "lost_card")
    ]);
    let otlp = json!({"resourceSpans": [{"scopeSpans": [{"spans": [
        {"spanId": "r-1", "traceId": "t", "startTimeUnixNano": "1700158623000000000", "endTimeUnixNano": "1700158624500000000", "attributes": attributes},
        {"spanId": "x", "traceId": "t", "attributes": [text("http.method", "GET")]}
    ]}]}]});
    check(Format::OpenTelemetry, &otlp, |_| ());
    let inference = json!({
        "context": {"span_id": "r-1", "trace_id": "t"}, "start_time": "2023-11-16T18:17:03Z", "end_time": "2023-11-16T18:17:04.5Z",
        "attributes": {"openinference.span.kind": "LLM", "llm.model_name": "gpt-4o-mini", "session.id": "ada",
            "llm.token_count.prompt": 20, "llm.token_count.completion": 3, "llm.token_count.prompt_details.cache_read": 8,
            "llm.input_messages.0.message.role": "system", "llm.input_messages.0.message.content": "Which intent?",
            "llm.input_messages.1.message.role": "user", "llm.input_messages.1.message.content": "my card is lost",
            "llm.output_messages.0.message.role": "assistant", "llm.output_messages.0.message.content": "lost_card"}
    });
    check(Format::OpenTelemetry, &inference, |_| ());
    let tool = json!({"span_id": "x", "trace_id": "t", "attributes": {"gen_ai.operation.name": "execute_tool"}});
    assert_eq!(logs::read(&tool), Err(Unread::NoCall));
}

#[test]
fn datapoints() {
    let tensorzero = json!({
        "function_name": "intent", "id": "r-1", "episode_id": "ada", "variant_name": "gpt-4o-mini", "timestamp": "2023-11-16T18:17:03Z",
        "input": json!({"system": "Which intent?", "messages": [{"role": "user", "content": [{"type": "text", "text": "my card is lost"}]}]}).to_string(),
        "output": "[{\"type\":\"text\",\"text\":\"lost_card\"}]", "tags": {}, "input_tokens": 20, "output_tokens": 3, "processing_time_ms": 1500
    });
    check(Format::Datapoints, &tensorzero, |call| {
        call.named = Some("intent".into());
        call.tokens = Some(Tokens { input: 20, output: 3, cached: 0 });
    });
    let openpipe = json!({
        "id": "r-1", "requestedAt": "2023-11-16T18:17:03Z", "receivedAt": "2023-11-16T18:17:04.5Z", "tags": {"prompt_id": "intent", "user_id": "ada"},
        "reqPayload": {"model": "gpt-4o-mini", "messages": messages()},
        "respPayload": {"choices": [{"message": {"role": "assistant", "content": "lost_card"}}], "usage": usage()}, "statusCode": 200
    });
    check(Format::Datapoints, &openpipe, |call| call.named = Some("intent".into()));
    check(
        Format::Datapoints,
        &json!({"input": "my card is lost", "output": "lost_card", "system_prompt": "Which intent?"}),
        |call| {
            *call = Exchange { messages: expected().messages, answer: expected().answer, ..Exchange::default() };
        },
    );
}

#[test]
fn our_own_form_comes_back() {
    let written = serde_json::to_value(expected()).unwrap();
    check(Format::Metier, &written, |_| ());
}

/// What is written is read again, as far as each format goes.
#[test]
fn every_format_comes_back() {
    let plan = metier_traffic::synthetic::Plan { calls: 120, weeks: 4, start_ms: 1_780_272_000_000, seed: 3 };
    for format in Format::ALL {
        for (_, mut wanted) in metier_traffic::synthetic::traffic(plan) {
            let (found, call) = call(&logs::write(format, &wanted));
            if wanted.failed {
                // Formats differ in what a failed call's empty answer is; its failure is what counts.
                assert!(call.failed || format == Format::Counts);
                continue;
            }
            if format == Format::LiteLlm {
                // The column is never empty there.
                wanted.logged_cost_picousd = Some(0);
            }
            if format == Format::Counts {
                (wanted.messages, wanted.answer, wanted.tools, wanted.schema) = (Vec::new(), None, Vec::new(), None);
                wanted.elapsed_ms = None;
            }
            assert_eq!((found, call), (format, wanted));
        }
    }
}

#[test]
fn token_counts_without_texts() {
    let (format, call) =
        call(&json!({"TIMESTAMP": "2023-11-16 18:17:03.9799600", "ContextTokens": "4808", "GeneratedTokens": "10"}));
    assert_eq!(format, Format::Counts);
    assert_eq!(
        (call.time_ms, call.tokens, call.odd.is_empty()),
        (Some(1_700_158_623_979), Some(Tokens { input: 4808, output: 10, cached: 0 }), true)
    );
}

#[test]
fn what_is_no_call_says_why() {
    let check = |record: Value, why: Unread| assert_eq!(logs::read(&record), Err(why), "{record}");
    check(json!(5), Unread::NotAnObject);
    check(json!([]), Unread::NotAnObject);
    check(json!({}), Unread::UnknownFields);
    check(json!({"level": "info", "msg": "started"}), Unread::UnknownFields);
    check(json!({"messages": []}), Unread::Empty);
    check(json!({"request_id": "x", "spend": 0}), Unread::Empty);
    let (_, odd) =
        call(&json!({"input": "a", "output": "b", "prompt_tokens": -3, "completion_tokens": 1, "timestamp": "soon"}));
    assert_eq!((odd.tokens, odd.odd), (None, vec![Odd::NegativeTokens, Odd::UnreadableTime]));
    let (_, zoneless) = call(&json!({"input": "a", "output": "b", "timestamp": "2023-11-16 18:17:03"}));
    assert_eq!(zoneless.odd, [Odd::NoZone]);
}

/// Real records of OpenAI and TensorZero: every one is read.
#[test]
fn real_samples() {
    let data = std::env::var_os("METIER_DATA").map_or_else(|| PathBuf::from("../../../shared/data"), PathBuf::from);
    let folder = data.join("log_formats");
    if !folder.is_dir() {
        eprintln!("skipped: no `log_formats` under METIER_DATA");
        return;
    }
    for (file, format, rows) in [
        ("openai_chat_finetuning_sample.jsonl", Format::OpenAi, 4),
        ("openai_streaming_chunks.jsonl", Format::OpenAi, 10),
        ("tensorzero_chat_datapoints.jsonl", Format::Datapoints, 41),
        ("tensorzero_json_datapoints.jsonl", Format::Datapoints, 28),
    ] {
        let text = std::fs::read_to_string(folder.join(file)).unwrap();
        let mut n = 0;
        for line in text.lines() {
            let record: Value = serde_json::from_str(line).unwrap();
            let (found, row) = logs::read(&record).unwrap_or_else(|error| panic!("{file}: {error}: {line}"));
            assert_eq!(found, format);
            if let Row::Calls(calls) = row {
                assert!(!calls[0].messages.is_empty(), "{line}");
                assert_eq!(calls[0].schema.is_some(), file.contains("json_datapoints"), "{line}");
            }
            n += 1;
        }
        assert_eq!(n, rows, "{file}");
    }
}

fn json_value() -> impl Strategy<Value = Value> {
    let words = prop::sample::select(vec![
        "messages",
        "role",
        "content",
        "user",
        "choices",
        "request",
        "response",
        "body",
        "input",
        "output",
        "type",
        "GENERATION",
        "trace_id",
        "call_type",
        "startTime",
        "request_id",
        "spend",
        "attributes",
        "span_id",
        "gen_ai.input.messages",
        "resourceSpans",
        "scopeSpans",
        "spans",
        "key",
        "value",
        "stringValue",
        "parts",
        "text",
        "tool_calls",
        "usage",
        "prompt_tokens",
        "ContextTokens",
        "GeneratedTokens",
        "[{\"role\":1}]",
        "é",
        "2023-11-16T18:17:03+99:99",
        "request_created_at",
        "function_name",
        "by",
        "time_ms",
        "tokens",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-1e300f64..1e300).prop_map(Value::from),
        words.clone().prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((words.clone(), inner.clone()), 0..6).prop_map(|fields| Value::Object(
                fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
            )),
            inner.prop_map(|value| Value::String(value.to_string())),
        ]
    })
}

proptest! {
    #[test]
    fn no_record_makes_it_panic(record in json_value()) {
        let _ = logs::read(&record);
    }
}
