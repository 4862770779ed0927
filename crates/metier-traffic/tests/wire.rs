//! What the request parsers promise: what clients send is read, what cannot be honoured is refused by field path, and no
//! bytes make them panic.
#![allow(clippy::unwrap_used, reason = "tests")]

use metier_traffic::wire::*;
use proptest::prelude::*;
use serde_json::{Value, json};

fn chat(body: Value) -> Result<ChatRequest, WireError> {
    ChatRequest::parse(body.to_string().as_bytes())
}

/// A valid request with one field replaced.
fn with(field: &str, value: Value) -> Value {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    body[field] = value;
    body
}

#[test]
fn reads_what_the_official_client_sends() {
    let request = chat(json!({
        "model": "auto",
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "My card "}, {"type": "text", "text": "is lost"}]},
            {"role": "assistant", "content": null, "refusal": "deferred"},
            {"role": "user", "content": "And now?", "name": "kim"},
        ],
        "max_completion_tokens": 7, "max_tokens": 9, "temperature": 0, "top_p": 0.5, "n": 2, "stop": "\n", "seed": -3,
        "stream": true, "stream_options": {"include_usage": true}, "logprobs": true, "top_logprobs": 5,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}},
        "user": "u", "metadata": {}, "frequency_penalty": 0, "logit_bias": {}, "tools": [], "whatever": [1, 2],
    }))
    .unwrap();
    assert_eq!(request.messages[0], Message { role: Role::System, content: "Be brief.".into() });
    assert_eq!(request.messages[1].content, "My card is lost");
    assert_eq!(request.messages[2].content, "");
    assert_eq!(request.last_user_text(), Some("And now?"));
    assert_eq!((request.max_tokens, request.n, request.seed), (Some(7), 2, Some(-3)));
    assert_eq!((request.temperature, request.top_p), (Some(0.0), Some(0.5)));
    assert!(request.stream && request.include_usage && request.logprobs);
    assert_eq!(request.stop, ["\n"]);
    assert_eq!(request.top_logprobs, Some(5));
    assert!(matches!(request.response_format, ResponseFormat::JsonSchema(_)));
}

#[test]
fn what_is_sent_on_is_read_back_the_same() {
    let request = chat(json!({
        "model": "m", "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
        "max_tokens": 3, "temperature": 0.25, "n": 3, "stop": ["a", "b"], "stream": true, "min_p": 0.1,
        "frequency_penalty": 0.3, "presence_penalty": -2, "repetition_penalty": 1.1, "logit_bias": {"50256": -100, "9": 0.7},
        "prompt_lookup": true,
        "stream_options": {"include_usage": true}, "response_format": {"type": "json_object"}, "logprobs": true,
    }))
    .unwrap();
    assert_eq!(request.logit_bias, [(9, 0.7), (50256, -100.0)]);
    assert_eq!(chat(request.to_body()).unwrap(), request);
}

#[test]
fn one_form_of_an_answer_is_asked_for() {
    for (asked, expected) in [
        (json!({"regex": "[a-z]+"}), ResponseFormat::Regex("[a-z]+".into())),
        (json!({"choice": ["yes", "no"], "json": null}), ResponseFormat::Choice(vec!["yes".into(), "no".into()])),
        (
            json!({"json": {"type": "integer"}}),
            ResponseFormat::JsonSchema(json!({"name": "json", "schema": {"type": "integer"}})),
        ),
    ] {
        let request = chat(with("structured_outputs", asked)).unwrap();
        assert_eq!(request.response_format, expected);
        assert_eq!(chat(request.to_body()).unwrap(), request);
    }
    for (asked, param) in [
        (json!({}), "structured_outputs"),
        (json!([]), "structured_outputs"),
        (json!({"regex": "a", "choice": ["b"]}), "structured_outputs"),
        (json!({"regex": 1}), "structured_outputs.regex"),
        (json!({"choice": []}), "structured_outputs.choice"),
        (json!({"choice": ["a", 1]}), "structured_outputs.choice"),
        (json!({"choice": [""]}), "structured_outputs.choice"),
        (json!({"json": "a"}), "structured_outputs.json"),
        (json!({"grammar": "a"}), "structured_outputs.grammar"),
        (json!({"regex": "a".repeat(70_000)}), "structured_outputs.regex"),
    ] {
        let error = chat(with("structured_outputs", asked.clone())).unwrap_err();
        assert_eq!(error.param.as_deref(), Some(param), "{asked}");
    }
    let mut both = with("structured_outputs", json!({"regex": "a"}));
    both["response_format"] = json!({"type": "json_object"});
    assert_eq!(chat(both).unwrap_err().param.as_deref(), Some("structured_outputs"));
}

/// Once `include_usage` outlived the `stream` that it belongs to, and what was committed to was not what was sent on.
#[test]
fn usage_is_asked_for_only_with_a_stream() {
    let request = chat(with("stream_options", json!({"include_usage": true}))).unwrap();
    assert!(!request.include_usage);
    assert_eq!(chat(request.to_body()).unwrap(), request);
}

#[test]
fn refusals_name_the_field() {
    let check = |body: Value, code: &str, param: Option<&str>| {
        let error = chat(body.clone()).expect_err(&body.to_string());
        assert_eq!((error.code, error.param.as_deref()), (code, param), "{error}");
    };
    check(json!([]), "invalid_type", None);
    check(json!({"messages": []}), "missing_required_parameter", Some("model"));
    check(with("model", json!(3)), "invalid_type", Some("model"));
    check(with("model", json!("")), "invalid_value", Some("model"));
    check(json!({"model": "m"}), "missing_required_parameter", Some("messages"));
    check(with("messages", json!([])), "invalid_value", Some("messages"));
    check(with("messages", json!([3])), "invalid_type", Some("messages[0]"));
    check(with("messages", json!([{"content": "x"}])), "missing_required_parameter", Some("messages[0].role"));
    check(with("messages", json!([{"role": "king", "content": "x"}])), "invalid_value", Some("messages[0].role"));
    check(
        with("messages", json!([{"role": "tool", "content": "x"}])),
        "unsupported_parameter",
        Some("messages[0].role"),
    );
    check(with("messages", json!([{"role": "user"}])), "missing_required_parameter", Some("messages[0].content"));
    check(with("messages", json!([{"role": "user", "content": 1}])), "invalid_type", Some("messages[0].content"));
    check(
        with("messages", json!([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}])),
        "unsupported_parameter",
        Some("messages[0].content[0].type"),
    );
    check(
        with("messages", json!([{"role": "user", "content": [{"type": "text"}]}])),
        "missing_required_parameter",
        Some("messages[0].content[0].text"),
    );
    check(with("tools", json!([{"type": "function"}])), "unsupported_parameter", Some("tools"));
    check(with("frequency_penalty", json!(2.5)), "invalid_value", Some("frequency_penalty"));
    check(with("presence_penalty", json!("much")), "invalid_type", Some("presence_penalty"));
    check(with("repetition_penalty", json!(0)), "invalid_value", Some("repetition_penalty"));
    check(with("min_p", json!(1.5)), "invalid_value", Some("min_p"));
    check(with("logit_bias", json!([1])), "invalid_type", Some("logit_bias"));
    check(with("logit_bias", json!({"cat": 1})), "invalid_value", Some("logit_bias"));
    check(with("logit_bias", json!({"07": 1, "7": 2})), "invalid_value", Some("logit_bias"));
    check(with("logit_bias", json!({"7": -100.5})), "invalid_value", Some("logit_bias.7"));
    check(with("logit_bias", json!({"7": null})), "invalid_type", Some("logit_bias.7"));
    check(with("n", json!(0)), "invalid_value", Some("n"));
    check(with("n", json!(9)), "invalid_value", Some("n"));
    check(with("n", json!(1.5)), "invalid_type", Some("n"));
    check(with("temperature", json!(2.1)), "invalid_value", Some("temperature"));
    check(with("temperature", json!("hot")), "invalid_type", Some("temperature"));
    check(with("max_tokens", json!(0)), "invalid_value", Some("max_tokens"));
    check(with("stop", json!(["a", "b", "c", "d", "e"])), "invalid_value", Some("stop"));
    check(with("stop", json!(["a", 1])), "invalid_type", Some("stop[1]"));
    check(with("stop", json!("")), "invalid_value", Some("stop"));
    check(with("stream", json!("yes")), "invalid_type", Some("stream"));
    check(with("prompt_lookup", json!(1)), "invalid_type", Some("prompt_lookup"));
    let labels = |more: Value| {
        let mut body = json!({
            "model": "m", "messages": [{"role": "user", "content": "x"}], "label_scores": "sum",
            "structured_outputs": {"choice": ["a", "b"]},
        });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    assert_eq!(chat(labels(json!({}))).unwrap().label_scores, Some(LabelScores::Sum));
    for (more, code) in [
        (json!({"label_scores": "max"}), "invalid_value"),
        (json!({"label_scores": true}), "invalid_type"),
        (json!({"structured_outputs": null}), "invalid_value"),
        (json!({"structured_outputs": {"regex": "a|b"}}), "invalid_value"),
        (json!({"n": 2}), "invalid_value"),
        (json!({"logprobs": true}), "invalid_value"),
        (json!({"logit_bias": {"7": 1}}), "invalid_value"),
    ] {
        check(labels(more), code, Some("label_scores"));
    }
    check(with("stream_options", json!({"include_usage": 1})), "invalid_type", Some("stream_options.include_usage"));
    check(with("top_logprobs", json!(3)), "invalid_value", Some("top_logprobs"));
    check(with("response_format", json!({"type": "xml"})), "invalid_value", Some("response_format.type"));
    check(
        with("response_format", json!({"type": "json_schema"})),
        "missing_required_parameter",
        Some("response_format.json_schema"),
    );
}

#[test]
fn limits_hold_on_both_sides() {
    assert!(chat(with("stop", json!(["a", "b", "c", "d"]))).is_ok());
    assert!(chat(with("n", json!(MAX_CHOICES))).is_ok());
    let biased = |n: usize| json!((0..n).map(|id| (id.to_string(), json!(1))).collect::<serde_json::Map<_, _>>());
    assert!(chat(with("logit_bias", biased(MAX_BIASED))).is_ok());
    assert!(chat(with("logit_bias", biased(MAX_BIASED + 1))).is_err());
    for (field, low, high) in [("frequency_penalty", -2.0, 2.0), ("repetition_penalty", 0.1, 10.0), ("min_p", 0.0, 1.0)]
    {
        assert!(chat(with(field, json!(low))).is_ok() && chat(with(field, json!(high))).is_ok(), "{field}");
        assert!(chat(with(field, json!(low - 0.01))).is_err() && chat(with(field, json!(high + 0.01))).is_err());
    }
    let messages = |n: usize| json!(vec![json!({"role": "user", "content": "x"}); n]);
    assert!(chat(with("messages", messages(MAX_MESSAGES))).is_ok());
    assert!(chat(with("messages", messages(MAX_MESSAGES + 1))).is_err());
    let content = |n: usize| json!([{"role": "user", "content": "x".repeat(n)}]);
    assert!(chat(with("messages", content(MAX_CONTENT_BYTES))).is_ok());
    assert!(chat(with("messages", content(MAX_CONTENT_BYTES + 1))).is_err());
    let nested = |levels: usize| {
        let deep = "[".repeat(levels) + &"]".repeat(levels);
        let body = format!(r#"{{"model":"m","messages":[{{"role":"user","content":"x"}}],"x":{deep}}}"#);
        ChatRequest::parse(body.as_bytes())
    };
    assert!(nested(MAX_NESTING - 1).is_ok());
    assert_eq!(nested(MAX_NESTING).unwrap_err().code, "invalid_value");
    assert_eq!(nested(100_000).unwrap_err().code, "invalid_json");
    assert_eq!(ChatRequest::parse(&vec![b' '; MAX_BODY_BYTES + 1]).unwrap_err().code, "body_too_large");
}

#[test]
fn embeddings() {
    let parse = |body: Value| EmbeddingRequest::parse(body.to_string().as_bytes());
    let request = parse(json!({"model": "e", "input": ["a", "b"], "encoding_format": "base64"})).unwrap();
    assert_eq!((request.input.len(), request.encoding_format), (2, EncodingFormat::Base64));
    assert_eq!(parse(json!({"model": "e", "input": [1, 2]})).unwrap_err().param.as_deref(), Some("input[0]"));
    assert_eq!(parse(json!({"model": "e", "input": []})).unwrap_err().param.as_deref(), Some("input"));
    assert_eq!(parse(json!({"model": "e", "input": ["a", ""]})).unwrap_err().param.as_deref(), Some("input[1]"));
    assert_eq!(parse(json!({"model": "e", "input": "a", "encoding_format": 1})).unwrap_err().code, "invalid_value");

    let answer = |format| EmbeddingResponse::new("e".into(), vec![vec![1.0, -2.0]], format, 3);
    assert_eq!(
        serde_json::to_value(answer(EncodingFormat::Float)).unwrap()["data"][0]["embedding"],
        json!([1.0, -2.0])
    );
    // numpy.frombuffer(base64.b64decode("AACAPwAAAMA="), "<f4") is [1., -2.]
    assert_eq!(serde_json::to_value(answer(EncodingFormat::Base64)).unwrap()["data"][0]["embedding"], "AACAPwAAAMA=");
}

#[test]
fn errors_have_the_protocols_shape() {
    let error = chat(with("n", json!(9))).unwrap_err().to_body();
    assert_eq!(
        serde_json::to_value(error).unwrap(),
        json!({"error": {"message": "`n` must be between 1 and 8, not 9", "type": "invalid_request_error", "param": "n", "code": "invalid_value"}})
    );
    // Other servers send numbers as codes, or leave fields out.
    let foreign: ErrorBody = serde_json::from_str(r#"{"error":{"message":"slow down","code":429}}"#).unwrap();
    assert_eq!(foreign.error.code.as_deref(), Some("429"));
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(|x| json!(x)),
        ".{0,8}".prop_map(Value::from),
        prop::sample::select(vec!["user", "text", "m", "json_schema", "base64"]).prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 5, |inner| {
        let key = prop::sample::select(vec![
            "model",
            "messages",
            "role",
            "content",
            "type",
            "text",
            "n",
            "stop",
            "stream",
            "stream_options",
            "input",
            "include_usage",
            "response_format",
            "json_schema",
            "logprobs",
            "top_logprobs",
            "temperature",
            "tools",
            "seed",
            "logit_bias",
            "repetition_penalty",
            "structured_outputs",
            "choice",
            "label_scores",
            "7",
        ]);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((key, inner), 0..8)
                .prop_map(|pairs| Value::Object(pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())),
        ]
    })
}

proptest! {
    #[test]
    fn no_json_makes_the_parsers_panic(body in any_json()) {
        let bytes = body.to_string();
        let _ = ChatRequest::parse(bytes.as_bytes());
        let _ = EmbeddingRequest::parse(bytes.as_bytes());
    }

    #[test]
    fn no_mutation_of_a_valid_body_makes_the_parser_panic(at in 0usize..400, byte in any::<u8>(), cut in 0usize..400) {
        let mut bytes = json!({
            "model": "auto", "messages": [{"role": "user", "content": [{"type": "text", "text": "häßlich 🦀"}]}],
            "n": 2, "stop": ["x"], "stream": true, "stream_options": {"include_usage": true}, "seed": 1, "temperature": 0.3,
            "logit_bias": {"17": -1.5}, "min_p": 0.05, "presence_penalty": 0.1,
            "response_format": {"type": "json_schema", "json_schema": {"name": "s"}}, "logprobs": true, "top_logprobs": 2,
        }).to_string().into_bytes();
        let place = at % bytes.len();
        bytes[place] = byte;
        bytes.truncate(bytes.len().saturating_sub(cut % 3));
        if let Ok(request) = ChatRequest::parse(&bytes) {
            prop_assert!((1..=MAX_CHOICES).contains(&request.n) && request.stop.len() <= MAX_STOPS);
            prop_assert_eq!(ChatRequest::parse(request.to_body().to_string().as_bytes()).unwrap(), request);
        }
    }
}
