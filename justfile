# Shortcuts. `.ci/run` is the authority on what must pass; the README's two commands are what a newcomer types.

# show the recipes
default:
    @just --list

# the whole idea on real models
demo *ARGS:
    cargo run --release -- demo {{ARGS}}

# the README's test command, through nextest where it is installed
test *ARGS:
    cargo nextest run --workspace {{ARGS}}

# what CI checks before the tests
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

deny:
    cargo deny --locked check

# rewrite goldens and generated reference pages after looking at what changed
bless:
    METIER_BLESS=1 INSTA_UPDATE=always cargo test --workspace

# fuzzing: ten minutes on each target
fuzz SECONDS="600" *TARGETS:
    scripts/fuzz.sh {{SECONDS}} {{TARGETS}}

# the accuracy figures of docs/accuracy.md
accuracy:
    scripts/accuracy.sh
