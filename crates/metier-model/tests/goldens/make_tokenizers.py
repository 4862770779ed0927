"""Makes the vocabularies and ids that `tests/tokenizers.rs` compares with: one small vocabulary for each kind of cutting.

    VENV/bin/pip install tokenizers==0.23.3 sentencepiece==0.2.3 gguf==0.19.0
    VENV/bin/python make_tokenizers.py

Byte-level vocabularies are trained and applied by Hugging Face's `tokenizers` with the pattern of the model named; SentencePiece's by itself.
"""

import json
from pathlib import Path

import gguf
import sentencepiece as spm
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

HERE = Path(__file__).parent
CORPUS = [
    "The quick brown fox jumps over the lazy dog. She'll say they've seen 12345 of 67 foxes, hasn't she?",
    "def compute(x):\n    return x ** 2 + 17  # squares\n\n\nfor i in range(100):\n\tprint(i)\n",
    "Sehr geehrte Damen und Herren, anbei die Rechnung über 1.234,56 €. Mit freundlichen Grüßen",
    "L'été dernier, nous avons vu 3 châteaux. CamelCaseWords and HTTPServer URLs like https://example.org/a/b?c=d",
    "Пример текста на русском языке. 日本語のテキスト。 한국어 텍스트", "   leading   and trailing spaces   ",
] * 4
TEXTS = CORPUS[:6] + [
    "", " ", "  ", "a", " a", "a ", "\n", "\n\n", " \n \n x", "I'M they'LL", "1234567890", "x1y22z333", "naïve café e\u0301", "🦊 emoji 🚀🚀", "a\tb\r\nc",
    "ＦＵＬＬ　ｗｉｄｔｈ", "<s> is text </s>", "▁ underscore", "tail/", "end...\n\n\n  ", "ÀÉÎ ÀÉÎÕÜ iPhone McDonald", "\u0000\u0001", "½ ² ٣٤ Ⅷ",
]
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
WORD = r"[^\r\n\p{L}\p{N}]?"
GPT4O = WORD + UPPER + "*" + LOWER + "+" + SHORT + "|" + WORD + UPPER + "+" + LOWER + "*" + SHORT + r"|\p{N}{1,3}" + REST
TEKKEN = WORD + UPPER + "*" + LOWER + "+|" + WORD + UPPER + "+" + LOWER + r"*|\p{N}" + REST
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def writer(name, model):
    w = gguf.GGUFWriter(HERE / f"vocabulary-{name}.gguf", "llama")
    w.add_tokenizer_model(model)
    return w


def close(w):
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def byte_level(name, pattern, normalizer, ignore_merges):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), BYTES])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=440, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    model = json.loads(tokenizer.to_str())["model"]
    words = sorted(model["vocab"], key=model["vocab"].get)
    w = writer(name, "gpt2")
    w.add_tokenizer_pre(name)
    w.add_token_list(words)
    w.add_token_types([1] * len(words))
    w.add_token_merges([" ".join(merge) for merge in model["merges"]])
    close(w)
    return [tokenizer.encode(text).ids for text in TEXTS]


def sentence_pieces(name, space_first):
    stem = HERE / "spm"
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in CORPUS for line in text.split("\n") if line), model_prefix=str(stem), vocab_size=420, model_type="bpe",
        byte_fallback=True, add_dummy_prefix=space_first, remove_extra_whitespaces=False, normalization_rule_name="identity",
        user_defined_symbols=["\n\n", "\n"], character_coverage=0.99, minloglevel=2)
    model = spm.SentencePieceProcessor(model_file=str(stem) + ".model")
    n = model.vocab_size()
    kinds = [3 if model.is_control(i) else 2 if model.is_unknown(i) else 6 if model.is_byte(i) else 4 if model.id_to_piece(i).startswith("\n") else 1 for i in range(n)]
    w = writer(name, "llama")
    w.add_token_list([model.id_to_piece(i) for i in range(n)])
    w.add_token_scores([model.get_score(i) for i in range(n)])
    w.add_token_types(kinds)
    w.add_unk_token_id(model.unk_id())
    w.add_add_space_prefix(space_first)
    close(w)
    for suffix in (".model", ".vocab"):
        stem.with_suffix(suffix).unlink()
    return [model.encode(text) for text in TEXTS]


out = {
    "texts": TEXTS,
    "ids": {
        "llama-bpe": byte_level("llama-bpe", LLAMA3, None, True),
        "qwen2": byte_level("qwen2", QWEN2, normalizers.NFC(), False),
        "gpt-4o": byte_level("gpt-4o", GPT4O, None, False),
        "tekken": byte_level("tekken", TEKKEN, None, True),
        "pieces": sentence_pieces("pieces", False),
    },
}
(HERE / "tokenizers.json").write_text(json.dumps(out, ensure_ascii=True))
