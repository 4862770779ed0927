//! The gateway's core with scripted specialists, backends and encoder, and a real audit log: who answers, what leaves, what is
//! on record, whatever goes wrong.
#![allow(clippy::unwrap_used, reason = "tests")]

mod cascade;
mod world;

use std::{sync::Arc, time::Duration};

use futures_util::{FutureExt, StreamExt};
use metier_model::{BaseId, Digest, EncoderWeights};
use metier_traffic::wire::{
    ChatChunk, ChatRequest, EmbeddingRequest, EncodingFormat, FinishReason, Message, ResponseFormat, Role, Usage,
};
use tokio::time::Instant;

use crate::{
    adapters::AdapterSlot,
    audit::{self, Kind, Receipt},
    backend::{embedder::Embedder, local::LOCAL},
    decision::{Escalated, Outcome},
    error::{Fault, GatewayError},
    gateway::{Caller, Limits, RequestContext},
    policy::Boundary,
    reply::Reply,
};

use world::*;

#[tokio::test]
async fn a_sure_specialist_answers() {
    let world = one(expert(0.93), outside(Vec::new()));
    let (response, decision) = world.whole(ask("tickets", "my card is gone")).await.unwrap();
    assert_eq!((content(&response), response.model.as_str()), (Some("card_lost"), "tickets"));
    assert_eq!(response.usage, Some(Usage::of(4, 0)));
    let headers = decision.headers();
    for (name, value) in [
        ("x-metier-decision", "accepted"),
        ("x-metier-stage", "both"),
        ("x-metier-confidence", "0.9300"),
        ("x-metier-escalated", "no"),
        ("x-metier-cost-usd", "0.0000003"),
    ] {
        assert!(headers.contains(&(name, value.into())), "{name} in {headers:?}");
    }
    // The receipt verifies offline and says what was done.
    let receipt = world.gateway.receipt(&decision.receipt.to_string()).unwrap().to_string();
    let proved = Receipt::verify(receipt.as_bytes(), world.gateway.audit().key()).unwrap().entry;
    let closed = world.closed();
    assert_eq!(proved, closed);
    assert_eq!(
        (closed.decision.as_str(), closed.task.as_str(), closed.boundary.as_str()),
        ("accepted", "tickets", "inside")
    );
    assert_eq!((closed.score_bp, closed.threshold_bp, closed.cost_picousd), (Some(9_300), Some(7_800), Some(300_000)));
    assert_eq!(
        (closed.specialist, closed.base, closed.permitted),
        (Some(Digest([1; 32])), Some(Digest([2; 32])), vec![LOCAL.into()])
    );
    let leaf = audit::show(world.gateway.audit().database(), "req").unwrap()[1].0;
    assert_eq!(audit::commits_to(world.gateway.audit().database(), "req", leaf, b"card_lost").unwrap(), Some(true));
    assert_eq!(world.n_asked(), 0);
}

#[tokio::test]
async fn formats_choices_and_streams_of_a_specialist() {
    let world = one(expert(0.93), Vec::new());
    let json = ChatRequest { response_format: ResponseFormat::JsonObject, n: 3, ..ask("tickets", "card") };
    let (response, _) = world.whole(json).await.unwrap();
    assert_eq!(response.choices.len(), 3);
    assert_eq!(response.choices[2].message.content.as_deref(), Some(r#"{"label":"card_lost","confidence":0.93}"#));

    let streamed = ChatRequest { stream: true, include_usage: true, ..ask("tickets", "card") };
    let reply = world.gateway.handle(&Caller::loopback(), streamed, context()).await.unwrap();
    let Reply::Stream { chunks, .. } = reply else { panic!("a stream was asked for") };
    let chunks: Vec<ChatChunk> = chunks.map(|chunk| chunk.unwrap()).collect().await;
    assert_eq!(chunks[0].choices[0].delta.role.as_deref(), Some("assistant"));
    assert_eq!(chunks[1].choices[0].delta.content.as_deref(), Some("card_lost"));
    assert_eq!(chunks[2].choices[0].finish_reason, Some(FinishReason::Stop));
    let last = &chunks[3];
    assert_eq!((last.choices.len(), last.usage), (0, Some(Usage::of(1, 0))));
    assert_eq!(last.metier.as_ref().unwrap()["cost_usd"], "0.0000003");
    assert!(chunks[..3].iter().all(|chunk| chunk.metier.is_none()));
}

/// Named or found by `auto`, whose nearest task is told by the server's vectors: what is judged is the vector of its own encoder.
#[tokio::test]
async fn a_specialist_with_an_encoder_of_its_own_reads_that_one() {
    let own = Some(Embedder::start(Elsewhere(Vec::new())).unwrap());
    let world = one(Scripted { own, ..expert(0.93) }, Vec::new());
    for name in ["tickets", "auto"] {
        let (response, decision) = world.whole(ask(name, "my card is gone")).await.unwrap();
        assert_eq!(content(&response), Some("card_lost"), "{name}");
        assert_eq!((decision.outcome, response.usage), (Outcome::Accepted, Some(Usage::of(5, 0))));
    }
}

/// What both networks make of the text, one behind the other, and the tokens that both read.
#[tokio::test]
async fn a_specialist_may_read_the_servers_encoder_beside_its_own() {
    let own = Some(Embedder::start(Elsewhere(Vec::new())).unwrap());
    let world = one(Scripted { own, reads_base: true, ..expert(0.93) }, Vec::new());
    for name in ["tickets", "auto"] {
        let (response, decision) = world.whole(ask(name, "my card is gone")).await.unwrap();
        assert_eq!(content(&response), Some("card_lost"), "{name}");
        assert_eq!((decision.outcome, response.usage), (Outcome::Accepted, Some(Usage::of(9, 0))));
    }
}

/// An unsure specialist, who may answer in its place, and what becomes of it.
async fn check_refusal(
    expert: Scripted,
    backends: Vec<(Boundary, bool, Vec<Act>)>,
    refusal: &str,
    escalated: Escalated,
) {
    let world = one(expert, backends);
    let (response, decision) = world.whole(ask("tickets", "card")).await.unwrap();
    assert_eq!(content(&response), None);
    assert_eq!(response.choices[0].message.refusal.as_deref(), Some(refusal));
    assert_eq!((decision.outcome, decision.escalated), (Outcome::Refused, escalated));
    assert_eq!(world.n_asked(), 0, "nothing left");
    let seen = serde_json::to_string(&response).unwrap() + &format!("{:?}", decision.headers());
    assert!(!seen.contains(GUESS), "{seen}");
    let closed = world.closed();
    assert_eq!((closed.decision.as_str(), closed.escalated.as_str()), ("refused", escalated.as_str()));
    assert_eq!(closed.boundary, "inside");
    let mut export = Vec::new();
    audit::export(world.gateway.audit().database(), world.gateway.audit().key(), &mut export).unwrap();
    assert!(!String::from_utf8(export).unwrap().contains(GUESS));
}

#[tokio::test]
async fn when_nothing_may_answer_there_is_a_refusal_without_the_guess() {
    let refusal = "deferred: score 0.41 < 0.78, no backend allowed";
    check_refusal(unsure(), Vec::new(), refusal, Escalated::NoneAvailable).await;
    check_refusal(unsure(), outside(Vec::new()), refusal, Escalated::Denied).await;
    // `direct` is for callers who name the backend, not for tasks.
    check_refusal(unsure(), vec![(Boundary::Outside, true, Vec::new())], refusal, Escalated::Denied).await;
    // Without a certificate nothing is accepted, however sure.
    let uncertified = Scripted { threshold: None, score: 0.99, ..unsure() };
    let refusal = "deferred: score 0.99 without a certified threshold, no backend allowed";
    check_refusal(uncertified, Vec::new(), refusal, Escalated::NoneAvailable).await;
}

#[tokio::test]
async fn a_task_that_may_leave_is_deferred_outside_once_it_is_on_record() {
    let leaving = Scripted { may_leave: true, ..unsure() };
    let world = one(leaving, outside(vec![Act::Say("It is \"Refund\".")]));
    let request = ChatRequest { response_format: ResponseFormat::JsonObject, ..ask("tickets", "my card, please") };
    let (response, decision) = world.whole(request).await.unwrap();
    assert_eq!(content(&response), Some(r#"{"label":"refund","confidence":null}"#));
    assert_eq!(response.model, "llm-7", "the response names who answered");
    assert_eq!((decision.outcome, decision.escalated), (Outcome::Deferred, Escalated::Llm));
    // 0.3 µ$ + 1,000 tokens at $2.50 and 100 at $10 a million.
    assert_eq!(decision.cost_picousd, Some(300_000 + 2_500_000_000 + 1_000_000_000));
    assert_eq!(*world.llm.was_opened.lock().unwrap(), [true], "`opened` was durable before the first byte left");
    let asked = world.llm.asked.lock().unwrap()[0].clone();
    assert!(
        asked.messages[0].content.contains("Which kind of ticket")
            && asked.messages[0].content.contains("- card_lost\n")
    );
    assert_eq!(asked.messages[1].content, "my card, please");
    let closed = world.closed();
    assert_eq!((closed.boundary.as_str(), closed.backend.as_str()), ("outside", "llm"));
    assert_eq!(closed.permitted, [LOCAL, "llm"]);
}

#[tokio::test]
async fn a_backend_inside_needs_no_leave_and_free_words_are_passed_as_they_are() {
    let world = one(unsure(), vec![(Boundary::Inside, false, vec![Act::Say("neither, I think")])]);
    let (response, decision) = world.whole(ask("tickets", "card")).await.unwrap();
    assert_eq!(content(&response), Some("neither, I think"));
    assert_eq!(decision.outcome, Outcome::Deferred);
    assert_eq!(world.closed().boundary, "inside");
}

#[tokio::test]
async fn the_next_backend_answers_for_one_that_fails() {
    let both = |spare| vec![(Boundary::Inside, false, vec![Act::Fail]), (Boundary::Inside, false, vec![spare])];
    let world = one(unsure(), both(Act::Say("refund")));
    let (response, decision) = world.whole(ask("tickets", "card")).await.unwrap();
    assert_eq!((content(&response), decision.backend.as_deref()), (Some("refund"), Some("spare")));

    let world = one(unsure(), both(Act::Fail));
    let error = world.whole(ask("tickets", "card")).await.unwrap_err();
    assert_eq!((error.status(), error.fault(), error.code()), (502, Fault::Operator, "backend_failed"));
    let closed = world.closed();
    assert_eq!((closed.decision.as_str(), closed.reason.as_str()), ("failed", "backend_failed spare 502"));
}

#[tokio::test]
async fn auto_finds_the_nearest_task_or_says_that_none_fits() {
    let world = one(expert(0.93), Vec::new());
    let (response, decision) = world.whole(ask("auto", "my card is gone")).await.unwrap();
    assert_eq!((content(&response), decision.task.as_deref()), (Some("card_lost"), Some("tickets")));
    assert_eq!(world.closed().task, "tickets");

    let world = one(expert(0.93), outside(Vec::new()));
    let (response, decision) = world.whole(ask("auto", "sing me a song")).await.unwrap();
    let refusal = response.choices[0].message.refusal.clone().unwrap();
    assert_eq!(refusal, "deferred: no task fits: the nearest, `tickets`, is at 0.00 < 0.50, no backend allowed");
    assert_eq!((decision.stage.as_str(), decision.confidence), ("match", Some(0.0)));
    assert_eq!((decision.escalated, world.n_asked()), (Escalated::Denied, 0));

    // A backend inside may answer what fits no task: the caller's own words, unchanged.
    let world = one(expert(0.93), vec![(Boundary::Inside, false, vec![Act::Say("la la")])]);
    let (response, _) = world.whole(ask("auto", "sing me a song")).await.unwrap();
    assert_eq!(content(&response), Some("la la"));
    assert_eq!(world.llm.asked.lock().unwrap()[0].messages, ask("x", "sing me a song").messages);
}

/// Two tasks lie in the same direction, so `auto` may take one for the other. Whichever it guesses, the text leaves only if both let it.
#[tokio::test]
async fn what_any_task_keeps_auto_keeps() {
    for (first, second) in [(true, false), (false, true), (false, false), (true, true)] {
        let experts = vec![
            Scripted { may_leave: first, ..unsure() },
            Scripted { name: "claims", may_leave: second, centroids: vec![vec![0.9, 0.1]], ..unsure() },
        ];
        let start = || {
            Setup { experts: experts.clone(), backends: outside(vec![Act::Say("refund")]), ..Setup::default() }.start()
        };
        let world = start();
        let (response, decision) = world.whole(ask("auto", "my card, please")).await.unwrap();
        assert_eq!(decision.task.as_deref(), Some("tickets"), "the guess");
        let leaves = first && second;
        assert_eq!((world.n_asked() > 0, content(&response).is_some()), (leaves, leaves), "{first} {second}");
        if !leaves {
            let reason = decision.reason.unwrap();
            assert_eq!(decision.escalated, Escalated::Denied);
            assert!(reason.contains("only guessed the task `tickets`") && reason.contains("by name"), "{reason}");
        }
        assert_eq!(world.closed().boundary, if leaves { "outside" } else { "inside" });
        // By name the task's own word counts.
        let (response, _) = start().whole(ask("tickets", "my card, please")).await.unwrap();
        assert_eq!(content(&response).is_some(), first);
    }
}

#[tokio::test]
async fn a_named_model_outside_needs_the_operators_direct() {
    let world = one(expert(0.93), outside(Vec::new()));
    let error = world.whole(ask("llm-7", "hi")).await.unwrap_err();
    assert_eq!(
        (error.status(), error.fault(), error.code(), error.param()),
        (403, Fault::Caller, "policy_denied", Some("model"))
    );
    assert_eq!((world.n_asked(), world.closed().decision.as_str()), (0, "failed"));

    let world = one(expert(0.93), vec![(Boundary::Outside, true, vec![Act::Say("hello")])]);
    let (response, decision) = world.whole(ask("llm-7", "hi")).await.unwrap();
    assert_eq!(
        (content(&response), decision.outcome, decision.stage.as_str()),
        (Some("hello"), Outcome::Direct, "llm")
    );
    assert_eq!(decision.cost_picousd, Some(3_500_000_000));
    assert_eq!(*world.llm.was_opened.lock().unwrap(), [true]);
    assert_eq!(world.closed().boundary, "outside");
}

#[tokio::test]
async fn the_base_answers_by_name() {
    let world = one(expert(0.93), Vec::new());
    let (response, decision) = world.whole(ask("smol", "hi")).await.unwrap();
    assert_eq!((content(&response), decision.stage.as_str()), (Some("Hello"), "base"));
    assert_eq!(response.id, format!("chatcmpl-{}", decision.receipt));
    assert_eq!(world.closed().base, Some(Digest([3; 32])));
}

/// Vectors of weights in another form are near those that a specialist was calibrated on, and not those.
#[tokio::test]
async fn a_specialist_is_never_fed_vectors_of_another_form() {
    let int8 = BaseId { digest: Digest([9; 32]), weights: Some(EncoderWeights::Int8), ..encoder() };
    let world = one(Scripted { base: Some(int8), ..expert(0.93) }, Vec::new());
    let error = world.whole(ask("tickets", "my card")).await.unwrap_err();
    let why = "made with the encoder `minilm` in int8, which is kept in f32 here: set `encoder_weights = \"int8\"`";
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains(why), "{source}");
    // `auto` cannot compare the text with its centroids.
    let (response, decision) = world.whole(ask("auto", "my card")).await.unwrap();
    assert_eq!((content(&response), decision.outcome), (None, Outcome::Refused));
}

/// An adapter whose backend says `acts`.
fn adapter(name: &str, digest: u8, acts: Vec<Act>) -> AdapterSlot {
    let script = Arc::new(Script::default());
    *script.acts.lock().unwrap() = acts.into();
    AdapterSlot {
        name: name.into(),
        description: Some("Our tone".into()),
        digest: Digest([digest; 32]),
        backend: Arc::new(ScriptedBackend(LOCAL, script)),
    }
}

#[tokio::test]
async fn an_adapter_answers_by_its_name_and_is_on_record_with_its_digest() {
    let world = one(expert(0.93), Vec::new());
    world.gateway.adapters().put(adapter("polite", 7, vec![Act::Say("Good day")]));
    let listed = world.gateway.models().into_iter().find(|model| model.id == "polite").unwrap();
    assert_eq!((listed.owned_by.as_str(), listed.parent.as_deref()), ("metier-adapter", Some("smol")));
    assert_eq!(listed.description.as_deref(), Some("Our tone"));
    let (response, decision) = world.whole(ask("polite", "hi")).await.unwrap();
    assert_eq!((content(&response), decision.stage.as_str()), (Some("Good day"), "adapter"));
    assert_eq!((decision.task.as_deref(), decision.cost_picousd), (Some("polite"), Some(1_100 * 300_000)));
    let closed = world.closed();
    assert_eq!((closed.model.as_str(), closed.task.as_str(), closed.boundary.as_str()), ("polite", "polite", "inside"));
    assert_eq!((closed.specialist, closed.base), (Some(Digest([7; 32])), Some(Digest([3; 32]))));
    assert_eq!(closed.permitted, [LOCAL]);
}

#[tokio::test]
async fn an_adapter_is_replaced_and_taken_away_under_running_requests() {
    let world = one(expert(0.93), Vec::new());
    let adapters = world.gateway.adapters();
    let streams = |text: &'static [&'static str]| vec![Act::Stream(text, End::Finish)];
    adapters.put(adapter("polite", 7, streams(&["old"])));
    let caller = Caller::loopback();
    let request = ChatRequest { stream: true, ..ask("polite", "hi") };
    let reply = world.gateway.handle(&caller, request.clone(), context()).await.unwrap();
    adapters.put(adapter("polite", 8, streams(&["new"])));
    let replaced = world.gateway.handle(&caller, request.clone(), context()).await.unwrap();
    assert!(world.gateway.unload_adapter("polite") && !world.gateway.unload_adapter("polite"));
    for (reply, expected) in [(reply, "old"), (replaced, "new")] {
        let Reply::Stream { chunks, .. } = reply else { panic!("a stream was asked for") };
        let texts = chunks.map(|chunk| {
            let choices = chunk.unwrap().choices.into_iter();
            choices.filter_map(|choice| choice.delta.content).collect::<String>()
        });
        assert_eq!(texts.collect::<String>().await, expected);
    }
    let error = world.gateway.handle(&caller, request, context()).await.err().unwrap();
    assert_eq!((error.status(), error.code()), (404, "model_not_found"));
    let found: Vec<_> = world.entries().into_iter().filter(|entry| entry.kind == Kind::Closed).collect();
    let digests: Vec<_> = found.iter().map(|entry| entry.specialist).collect();
    assert_eq!(digests, [Some(Digest([7; 32])), Some(Digest([8; 32]))]);
}

#[test]
fn an_adapter_needs_a_decoder_and_a_name_of_its_own() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let world = runtime.block_on(async { one(expert(0.93), outside(Vec::new())) });
    let base = *metier_model::Decoder::from_bytes(
        metier_model::tiny::gguf(1),
        "tiny",
        metier_model::engine::WeightFormat::AsFile,
    )
    .unwrap()
    .network()
    .config();
    let files = metier_model::tiny::adapter(&base, 1, 2, &["q_proj"], 0.1);
    let format = metier_model::adapter::LoraFormat::F16;
    let opened = metier_model::adapter::Adapter::from_bytes(files.config.as_bytes(), &files.weights, &base, format);
    let adapter = Arc::new(opened.unwrap());
    let check = |name: &str, says: &str| {
        let error = world.gateway.load_adapter(name, None, Arc::clone(&adapter)).unwrap_err().to_string();
        assert!(error.contains(says), "{name}: {error}");
    };
    check("Polite Tone", "is no name of an adapter");
    for taken in ["auto", "smol", "minilm", "llm", "llm-7"] {
        check(taken, "stands for something else");
    }
    check("polite", "no decoder to adapt");
}

#[tokio::test]
async fn embeddings_are_on_record_too() {
    let world = one(expert(0.93), Vec::new());
    let request = |model: &str, dimensions| EmbeddingRequest {
        model: model.into(),
        input: vec!["a card".into(), "b".into()],
        encoding_format: EncodingFormat::Float,
        dimensions,
    };
    let caller = Caller::loopback();
    let embed = |request| world.gateway.embed(&caller, request, context());
    assert_eq!(embed(request("tickets", None)).await.err().unwrap().status(), 404);
    assert_eq!(embed(request("minilm", Some(3))).await.err().unwrap().param(), Some("dimensions"));
    let reply = embed(request("minilm", Some(2))).await.unwrap();
    assert_eq!((reply.response.data.len(), reply.response.usage.prompt_tokens), (2, 3));
    assert_eq!(world.closed().stage, "encoder");
}

#[tokio::test]
async fn what_cannot_be_asked_is_told() {
    let world = one(expert(0.93), Vec::new());
    let error = world.whole(ask("nobody", "hi")).await.unwrap_err();
    assert_eq!((error.status(), error.code()), (404, "model_not_found"));
    assert!(error.to_string().contains("`tickets`, `smol`, `auto`"), "{error}");
    let error = world.whole(ask("tickets", "unreadable")).await.unwrap_err();
    assert_eq!((error.status(), error.fault()), (400, Fault::Caller));
    assert!(error.to_string().contains("lacks the input `left`"), "{error}");
    let nothing = ChatRequest::new("tickets", vec![Message { role: Role::System, content: "x".into() }]);
    assert_eq!(world.whole(nothing).await.unwrap_err().param(), Some("messages"));
}

#[tokio::test]
async fn a_panic_of_a_specialist_is_one_requests_error() {
    let world = one(expert(0.93), Vec::new());
    let error = world.whole(ask("tickets", "panic")).await.unwrap_err();
    assert_eq!((error.status(), error.fault()), (500, Fault::Bug));
    assert!(world.whole(ask("tickets", "card")).await.is_ok());
}

#[tokio::test]
async fn what_cannot_be_recorded_is_not_answered() {
    let leaving = Scripted { may_leave: true, ..unsure() };
    let world = one(leaving, outside(vec![Act::Say("refund")]));
    world.gateway.audit().close();
    for model in ["tickets", "auto", "smol"] {
        let error = world.whole(ask(model, "card")).await.unwrap_err();
        assert_eq!((error.status(), error.code()), (503, "not_recorded"));
    }
    assert_eq!(world.n_asked(), 0, "nothing left");
    assert!(!world.gateway.is_ready());
}

#[tokio::test]
async fn a_caller_who_leaves_is_on_record() {
    let leaving = Scripted { may_leave: true, ..unsure() };
    let world = one(leaving, outside(vec![Act::Hang]));
    let caller = Caller::loopback();
    let asking = world.gateway.handle(&caller, ask("tickets", "card"), context());
    tokio::select! {
        _ = asking => panic!("the backend never answers"),
        () = world.llm.called.notified() => {}
    }
    let closed = world.closed();
    assert_eq!((closed.decision.as_str(), closed.boundary.as_str()), ("cancelled", "outside"));
}

#[tokio::test]
async fn a_deadline_is_an_error_and_on_record() {
    let world = one(unsure(), vec![(Boundary::Inside, false, vec![Act::Hang])]);
    let soon = RequestContext { deadline: Instant::now() + Duration::from_millis(50), ..context() };
    let error = world.gateway.handle(&Caller::loopback(), ask("tickets", "card"), soon).await.err().unwrap();
    assert_eq!((error.status(), error.code()), (504, "deadline_exceeded"));
    assert_eq!((world.closed().decision.as_str(), world.closed().reason.as_str()), ("failed", "deadline_exceeded"));
}

#[tokio::test]
async fn an_extraction_answers_in_json_and_whoever_answers_for_it_meets_its_schema() {
    let world = one(extractor(0.9), Vec::new());
    // Its own schema, whatever format was asked for.
    let request = ChatRequest { response_format: ResponseFormat::JsonObject, ..ask("tickets", "my gold card") };
    let (response, decision) = world.whole(request).await.unwrap();
    assert_eq!((content(&response), decision.outcome), (Some(r#"{"card":"gold"}"#), Outcome::Accepted));
    assert_eq!(response.metier.unwrap()["fields"][0]["start"], 3);
    assert_eq!(response.usage.unwrap().prompt_tokens, 5);

    let inside = |acts| (Boundary::Inside, false, vec![acts]);
    let unmet = || inside(Act::Say("gold, I think"));
    let world = one(extractor(0.41), vec![unmet(), inside(Act::Say("```json\n{\"card\": \"silver\"}\n```"))]);
    let (response, decision) = world.whole(ask("tickets", "my gold card")).await.unwrap();
    assert_eq!((content(&response), decision.outcome), (Some(r#"{"card":"silver"}"#), Outcome::Deferred));
    assert!(response.metier.unwrap().get("fields").is_none(), "what was guessed is not told");
    // Both were paid: 0.3 µ$, and twice 1,000 tokens at $2.50 and 100 at $10 a million.
    assert_eq!(decision.cost_picousd, Some(300_000 + 2 * (2_500_000_000 + 1_000_000_000)));
    assert!(world.llm.asked.lock().unwrap()[0].messages[0].content.contains(r#""required":["card"]"#));

    let world = one(extractor(0.41), vec![unmet()]);
    let error = world.whole(ask("tickets", "my gold card")).await.unwrap_err();
    assert_eq!(error.status(), 500, "{error}");
}

/// A direct stream: the text of the chunks, the error that ended them, and what is on record.
async fn check_stream(end: End, error: Option<&str>, decision: &str) {
    let world = one(expert(0.93), vec![(Boundary::Outside, true, vec![Act::Stream(&["ca", "rd"], end)])]);
    let request = ChatRequest { stream: true, ..ask("llm-7", "hi") };
    let reply = world.gateway.handle(&Caller::loopback(), request, context()).await.unwrap();
    let Reply::Stream { mut chunks, decision: early } = reply else { panic!("a stream was asked for") };
    assert_eq!(early.cost_picousd, None, "not known yet");
    assert_eq!(*world.llm.was_opened.lock().unwrap(), [true]);
    let (mut text, mut found, mut last) = (String::new(), None, None);
    // A hanging backend's caller leaves.
    while let Some(chunk) = if end == End::Hang { chunks.next().now_or_never().flatten() } else { chunks.next().await }
    {
        match chunk {
            Ok(chunk) => {
                text.extend(chunk.choices.iter().filter_map(|choice| choice.delta.content.clone()));
                last = Some(chunk);
            }
            Err(error) => found = Some(error),
        }
    }
    drop(chunks);
    assert_eq!(text, "card");
    assert_eq!(found.as_ref().map(GatewayError::code), error);
    if decision == "direct" {
        let last = last.unwrap();
        assert_eq!(last.choices[0].finish_reason, Some(FinishReason::Stop));
        assert_eq!(
            (last.usage, &last.metier.unwrap()["cost_usd"]),
            (None, &"0.0035".into()),
            "usage was not asked for"
        );
    }
    let closed = world.closed();
    assert_eq!(closed.decision, decision);
    assert_eq!(closed.cost_picousd, (decision == "direct").then_some(3_500_000_000));
}

#[tokio::test]
async fn streams_end_on_record_however_they_end() {
    check_stream(End::Finish, None, "direct").await;
    check_stream(End::Error, Some("backend_failed"), "failed").await;
    check_stream(End::Cut, Some("backend_failed"), "failed").await;
    check_stream(End::Hang, None, "cancelled").await;
}

#[tokio::test]
async fn beyond_the_queue_requests_are_refused_and_a_shutdown_waits() {
    let limits = Limits { max_concurrency: 1, max_queue: 0 };
    let backends = vec![(Boundary::Inside, false, vec![Act::Hang])];
    let world = Setup { experts: vec![unsure()], backends, limits }.start();
    let caller = Caller::loopback();
    let mut first = Box::pin(world.gateway.handle(&caller, ask("tickets", "card"), context()));
    tokio::select! {
        _ = &mut first => panic!("the backend never answers"),
        () = world.llm.called.notified() => {}
    }
    let error = world.whole(ask("tickets", "card")).await.unwrap_err();
    assert_eq!((error.status(), error.retry_after_ms()), (503, Some(1_000)));
    drop(first);
    assert!(world.gateway.shutdown(Duration::from_secs(5)).await, "nobody is under way any more");
    assert!(matches!(world.whole(ask("tickets", "card")).await, Err(GatewayError::ShuttingDown)));
    assert_eq!(world.closed().decision, "cancelled");
}

#[tokio::test]
async fn models_are_listed_and_specialists_replaced_in_flight() {
    let world = one(expert(0.93), outside(Vec::new()));
    let names = || world.gateway.models().into_iter().map(|model| model.id).collect::<Vec<_>>();
    assert_eq!(names(), ["auto", "smol", "tickets", "minilm", "llm-7"]);
    world.gateway.replace_experts(vec![Arc::new(Scripted { name: "claims", ..expert(0.9) })]);
    assert_eq!(names(), ["auto", "smol", "claims", "minilm", "llm-7"]);
    assert!(world.whole(ask("claims", "card")).await.is_ok());
}
