#!/usr/bin/env bash
# Prints the figures of docs/accuracy.md: one JSON line a task. Needs METIER_DATA, a folder that holds `banking77`, `clinc150`,
# `snips` and `attr_oa_mine`. Names of tasks as arguments: those alone.
set -euo pipefail
cd "$(git -C "$(dirname "$0")" rev-parse --show-toplevel)"
export METIER_DATA=${METIER_DATA:-../shared/data}
METIER_DATA=$(realpath "$METIER_DATA") || { echo "METIER_DATA names no folder: nothing to measure" >&2; exit 3; }
store=$(mktemp -d)
trap 'rm -rf "$store"' EXIT
cargo build --release --locked --quiet
[ $# -gt 0 ] || set -- banking77 clinc150 snips attr_oa_mine
for task in "$@"; do
    # Exit code 1 says that the certificate does not hold on the test rows: a figure like the others, not an accident.
    target/release/metier build "bench/accuracy/$task.toml" --store "$store" --json | tail -n 1 || [ "${PIPESTATUS[0]}" -eq 1 ]
done
