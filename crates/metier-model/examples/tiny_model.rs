//! Writes a decoder of random weights, small enough to be a seed for fuzzing: `cargo run -p metier-model --example tiny_model -- OUT.gguf`.
#![allow(clippy::expect_used, reason = "an example stops at the first error")]

fn main() {
    let out = std::env::args().nth(1).expect("a path to write to");
    std::fs::write(out, metier_model::tiny::gguf(1)).expect("the file can be written");
}
