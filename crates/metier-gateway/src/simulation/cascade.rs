//! Two stages in one specialist: who is asked, what it costs, and what the record says of it.

use super::*;

fn two_stages(first: f32, last: f32) -> World {
    one(Scripted { first: Some((first, Some(0.9))), ..expert(last) }, outside(Vec::new()))
}

#[tokio::test]
async fn the_first_stage_answers_where_it_is_sure_and_nothing_is_embedded() {
    let world = two_stages(0.95, 0.99);
    let (response, decision) = world.whole(ask("tickets", "my card is gone")).await.unwrap();
    assert_eq!((content(&response), response.usage), (Some("refund"), Some(Usage::of(0, 0))));
    assert_eq!((decision.stage.as_str(), decision.confidence, decision.threshold), ("linear", Some(0.95), Some(0.9)));
    let closed = world.closed();
    assert_eq!((closed.decision.as_str(), closed.stage.as_str()), ("accepted", "linear"));
    assert_eq!((closed.score_bp, closed.threshold_bp), (Some(9_500), Some(9_000)));
}

#[tokio::test]
async fn what_it_is_not_sure_of_goes_on_to_the_second() {
    // One hundredth below the threshold of the first, though above that of the second.
    let world = two_stages(0.89, 0.99);
    let (response, decision) = world.whole(ask("tickets", "my card is gone")).await.unwrap();
    assert_eq!((content(&response), response.usage), (Some("card_lost"), Some(Usage::of(4, 0))));
    assert_eq!((decision.stage.as_str(), decision.threshold), ("both", Some(0.78)));
    // And from there to nobody, where policy lets nothing leave.
    let world = two_stages(0.89, 0.41);
    let (response, decision) = world.whole(ask("tickets", "my card is gone")).await.unwrap();
    assert_eq!((content(&response), decision.outcome), (None, Outcome::Refused));
    assert_eq!(decision.reason.as_deref().map(|reason| reason.contains("score 0.41 < 0.78")), Some(true));
}

#[tokio::test]
async fn without_a_certificate_neither_answers() {
    let uncertified = Scripted { first: Some((1.0, None)), threshold: None, ..expert(1.0) };
    let world = one(uncertified, Vec::new());
    let (response, decision) = world.whole(ask("tickets", "my card is gone")).await.unwrap();
    assert_eq!((content(&response), decision.stage.as_str()), (None, "both"));
}

#[tokio::test]
async fn auto_asks_the_stages_in_the_order_that_was_certified() {
    let world = two_stages(0.95, 0.99);
    let (response, decision) = world.whole(ask("auto", "my card is gone")).await.unwrap();
    assert_eq!((content(&response), decision.stage.as_str()), (Some("refund"), "linear"));
    assert_eq!(response.usage, Some(Usage::of(4, 0)), "the task was found by an embedding");
}
