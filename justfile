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

# ten minutes of fuzzing on each target (about 30 minutes in all)
fuzz SECONDS="600":
    for target in gguf safetensors request; do (cd fuzz && mkdir -p corpus/$target && RUSTC_BOOTSTRAP=1 cargo fuzz run $target corpus/$target seeds/$target -- -max_total_time={{SECONDS}} -rss_limit_mb=2048) || exit 1; done

# the accuracy figures of docs/accuracy.md
accuracy:
    scripts/accuracy.sh
