"""Makes `json-tokenizers.json`: small tokenizers over pieces, as `tokenizer.json` writes them, and what the reference makes of texts.

    python -m venv VENV && VENV/bin/pip install tokenizers==0.23.3
    VENV/bin/python make_json_tokenizers.py

`legacy`: a space is put before each text between control tokens (Llama 2). `first`: before the first only (its newer form, Mistral).
`plain`: nowhere, and some tokens that users added are no control tokens (Gemma). `marks`: the end token takes the white space behind it
(Phi-3).
"""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = ["the cat sat on the mat while the other cats slept in the sun", "hello there, hello world", "low lower lowest new newer newest"] * 20
TEXTS = [
    "the cat", " the cat", "hello world", "  two  spaces", "", " ", "naïve 日本 🙂", "a\nb", "newest lowest", "<table> x </table>", "the\n\ncat",
    "<s>the cat</s>", "<s> the cat</s> the mat", "the<s>cat", "</s>\n  hello", "<s></s>world", "x <s> y",
]
# What no text from outside may become.
CONTROLS = ["<unk>", "<s>", "</s>"]


def pieces():
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=120, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    vocab = {word: i for i, word in enumerate(CONTROLS + [f"<0x{b:02X}>" for b in range(256)])}
    for word in model["vocab"]:
        vocab.setdefault(word, len(vocab))
    return models.BPE(vocab, [tuple(m) for m in model["merges"]], unk_token="<unk>", fuse_unk=True, byte_fallback=True)


def space(content):
    return decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()] + content)


def tokenizer(kind):
    t = Tokenizer(pieces())
    t.decoder = space([] if kind == "plain" else [decoders.Strip(" ", 1, 0)])
    if kind in {"legacy", "marks"}:
        t.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    elif kind == "first":
        t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        t.normalizer = normalizers.Replace(" ", "\u2581")
        t.add_tokens([AddedToken(text, normalized=False) for text in ["\n\n", "<table>"]])
    t.add_special_tokens([AddedToken(text, normalized=False, rstrip=kind == "marks" and text == "</s>") for text in CONTROLS])
    t.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return t


out = {"texts": TEXTS, "tokenizers": {}}
for kind in ["legacy", "first", "plain", "marks"]:
    t = tokenizer(kind)
    ids = [t.encode(text, add_special_tokens=False).ids for text in TEXTS]
    out["tokenizers"][kind] = {"ids": ids, "decoded": [t.decode(i) for i in ids], "json": json.loads(t.to_str())}
Path(__file__).with_name("json-tokenizers.json").write_text(json.dumps(out, ensure_ascii=True))
