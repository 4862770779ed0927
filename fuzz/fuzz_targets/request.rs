//! Any bytes as a request body of each kind. A body that parses must survive being written and parsed again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use metier_traffic::wire::{ChatRequest, EmbeddingRequest};

fuzz_target!(|bytes: &[u8]| {
    let _ = EmbeddingRequest::parse(bytes);
    if let Ok(request) = ChatRequest::parse(bytes) {
        let body = serde_json::to_vec(&request.to_body()).expect("a parsed request has finite numbers");
        ChatRequest::parse(&body).expect("what was parsed is written in a form that parses");
    }
});
