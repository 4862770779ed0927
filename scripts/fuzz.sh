#!/usr/bin/env bash
# Fuzzes each target for SECONDS, with AddressSanitizer, from the seeds in `fuzz/seeds` and from the models of the golden tests.
#   scripts/fuzz.sh SECONDS [TARGET…]        needs `cargo install cargo-fuzz`
set -euo pipefail
cd "$(git -C "$(dirname "$0")" rev-parse --show-toplevel)"
seconds=${1:?how many seconds a target}
shift
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(gguf safetensors request adapter decoder folder tokenizer template grammar packed log_record)
goldens=crates/metier-model/tests/goldens
corpus=fuzz/corpus

# Documents of a folder, each after a line of `====`, as the target `folder` reads them.
documents() {
    local between=
    for name in config.json tokenizer.json tokenizer_config.json generation_config.json model.safetensors.index.json modules.json 1_Pooling/config.json; do
        printf '%s' "$between"
        cat "$1/$name" 2>/dev/null || true
        between=$'\n====\n'
    done
}

mkdir -p $corpus/{gguf,safetensors,request,adapter,decoder,folder,tokenizer,template,grammar,packed,log_record}
cp $goldens/*.gguf $corpus/decoder/
cargo run --quiet -p metier-model --example tiny_model -- $corpus/decoder/tiny.gguf
cp $goldens/vocabulary-*.gguf $corpus/gguf/
for folder in $goldens/folders/* $goldens/encoders/*; do
    documents "$folder" > "$corpus/folder/${folder##*/}"
    cp "$folder/tokenizer.json" "$corpus/tokenizer/${folder##*/}.json"
done
for folder in $goldens/adapters/*/; do
    [ -f "$folder/adapter_model.safetensors" ] || continue
    { cat "$folder/adapter_config.json"; printf '\n====\n'; cat "$folder/adapter_model.safetensors"; } > "$corpus/adapter/$(basename "$folder")"
done

for target in "${targets[@]}"; do
    mkdir -p "fuzz/seeds/$target"
    # Without the leak check at the end: pools of threads and tables of a library live as long as the process.
    (cd fuzz && RUSTC_BOOTSTRAP=1 cargo fuzz run "$target" "corpus/$target" "seeds/$target" -- \
        -max_total_time="$seconds" -rss_limit_mb=2048 -timeout=60 -detect_leaks=0 -print_final_stats=1)
done
