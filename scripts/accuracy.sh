#!/usr/bin/env bash
# Prints the figures of docs/accuracy.md: one JSON line a task. Needs METIER_DATA, a folder that holds the data sets named below. Names of tasks as
# arguments: those alone.
set -euo pipefail
cd "$(git -C "$(dirname "$0")" rev-parse --show-toplevel)"
export METIER_DATA=${METIER_DATA:-../shared/data}
METIER_DATA=$(realpath "$METIER_DATA") || { echo "METIER_DATA names no folder: nothing to measure" >&2; exit 3; }
store=$(mktemp -d)
trap 'rm -rf "$store"' EXIT
cargo build --release --locked --quiet
export METIER_PREPARED=$store/prepared
bench/accuracy/prepare.py "$METIER_PREPARED" >&2
[ $# -gt 0 ] || set -- banking77 clinc150 snips attr_oa_mine cuad-clauses abt-buy amazon-google wdc-computers contract-nli
for task in "$@"; do
    # Exit code 1 says that the certificate does not hold on the test rows: a figure like the others, not an accident.
    # What compares two inputs needs no encoder.
    case $task in
    abt-buy | amazon-google | wdc-computers | contract-nli) without=(--no-encoder) ;;
    *) without=() ;;
    esac
    target/release/metier build "bench/accuracy/$task.toml" "${without[@]}" --store "$store" --json | tail -n 1 || [ "${PIPESTATUS[0]}" -eq 1 ]
done
