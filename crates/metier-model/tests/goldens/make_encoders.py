"""Makes the folders that `tests/encoders.rs` compares with: one tiny encoder of random weights for each family, with its tokenizer.

    python -m venv VENV && VENV/bin/pip install torch==2.15.0 transformers==5.24.0 sentence-transformers==6.2.0 tokenizers==0.23.3
    VENV/bin/python make_encoders.py

Weights are rounded to f16, which is how the files hold them, before anything is computed in f32. Each folder of `encoders/` is what
sentence-transformers opens, plus what it made of `TEXTS`:

    golden.json      the texts, the ids of each, and how many elements an embedding has
    hidden.f32       Transformers' last hidden rows of each text alone, eager attention: (Σ lengths, width), little-endian
    embeddings.f32   sentence-transformers' embeddings of all texts in one batch: (texts, dimensions)
"""

import json
import math
import shutil
from pathlib import Path

import torch
import transformers as tf
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = Path(__file__).parent / "encoders"
SENTENCES = [
    "The debit card that was sent to me last week has not arrived yet.", "A supplier in Rotterdam asks for a refund of forty euros.",
    "My colleague from the claims department was promised a call back.", "The pump behind the second compressor makes a strange noise!",
    "Our tenant on the fourth floor could not be found in the warehouse?", "Reference 48-1173: the contract says otherwise.",
    "Ein Mieter im vierten Stock fragt nach der Rechnung über 1.234,56 €.", "L'été dernier, nous avons vu trois châteaux.",
]
# From one token to more than any window of attention holds, and what tokenizers cut in their own ways.
TEXTS = [
    "", "a", "The pump", "Where is the card?", SENTENCES[0], SENTENCES[6], "  two  spaces, a\ttab\nand a line ", "iPhone McDonald ÀÉÎ naïve",
    " ".join(SENTENCES[1:3]), " ".join(SENTENCES[2:5]), "日本 🦊 x", "<pad> [PAD] </s> [SEP]",
]
VOCABULARY = 320


def trained(model, trainer, specials, normalizer, pre_tokenizer):
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainer(vocab_size=VOCABULARY - 1, special_tokens=specials, show_progress=False, **(
        dict(initial_alphabet=pre_tokenizers.ByteLevel.alphabet()) if trainer is trainers.BpeTrainer else {}),
        **(dict(unk_token="<unk>") if trainer is trainers.UnigramTrainer else {}))
    tokenizer.train_from_iterator(SENTENCES * 4, trainer)
    return tokenizer


def word_pieces(lowercase):
    tokenizer = trained(
        models.WordPiece(unk_token="[UNK]"), trainers.WordPieceTrainer, ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
        normalizers.BertNormalizer(lowercase=lowercase), pre_tokenizers.BertPreTokenizer())
    tokenizer.decoder = decoders.WordPiece()
    return framed(tokenizer, "[CLS]", "[SEP]")


def framed(tokenizer, begin, end):
    specials = [(token, tokenizer.token_to_id(token)) for token in (begin, end)]
    tokenizer.post_processor = processors.TemplateProcessing(f"{begin} $A {end}", f"{begin} $A {end} $B:1 {end}:1", specials)
    return tokenizer


def roberta_bytes():
    tokenizer = trained(
        models.BPE(), trainers.BpeTrainer, ["<s>", "<pad>", "</s>", "<unk>"], None, pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.decoder = decoders.ByteLevel()
    ends = [(token, tokenizer.token_to_id(token)) for token in ("</s>", "<s>")]
    tokenizer.post_processor = processors.RobertaProcessing(*ends, trim_offsets=True, add_prefix_space=False)
    return tokenizer


def unigram():
    tokenizer = trained(
        models.Unigram(), trainers.UnigramTrainer, ["<s>", "<pad>", "</s>", "<unk>"],
        normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" {2,}", " ")]), pre_tokenizers.Metaspace(prepend_scheme="always"))
    tokenizer.decoder = decoders.Metaspace()
    return framed(tokenizer, "<s>", "</s>")


def modern_bytes():
    tokenizer = trained(
        models.BPE(), trainers.BpeTrainer, ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"], normalizers.NFC(),
        pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.decoder = decoders.ByteLevel()
    return framed(tokenizer, "[CLS]", "[SEP]")


SHAPE = dict(vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96)
MODERN = dict(
    SHAPE, hidden_size=48, num_hidden_layers=4, num_attention_heads=3, intermediate_size=64, max_position_embeddings=160, local_attention=16,
    cls_token_id=1, bos_token_id=1, sep_token_id=2, eos_token_id=2, pad_token_id=3)
DISTIL = dict(vocab_size=VOCABULARY, dim=64, n_layers=2, n_heads=2, hidden_dim=96, max_position_embeddings=160)
FLAGS = ["cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens"]


def modules(*kinds):
    """As older versions write it; the last part of each type is what counts."""
    return [
        dict(idx=i, name=str(i), path=f"{i}_{kind}" if i else "", type=f"sentence_transformers.models.{kind}") for i, kind in enumerate(kinds)
    ]


def pooling(width, kind):
    return dict(word_embedding_dimension=width, **{f"pooling_mode_{flag}": flag == kind for flag in FLAGS})


def dense(n, k, bias, activation):
    return dict(in_features=k, out_features=n, bias=bias, activation_function=activation)


# config; tokenizer; the files beside them; what `config.json` says instead of what Transformers writes.
CASES = {
    "bert": (
        tf.BertConfig(**SHAPE, max_position_embeddings=160), word_pieces(True), {
            "modules.json": modules("Transformer", "Pooling", "Normalize"),
            "1_Pooling/config.json": pooling(64, "mean_tokens"),
            "sentence_bert_config.json": dict(max_seq_length=24, do_lower_case=False),
        }, {}),
    "roberta": (
        tf.RobertaConfig(**SHAPE, max_position_embeddings=162, type_vocab_size=1), roberta_bytes(), {
            "modules.json": modules("Transformer", "Pooling", "Normalize"),
            "1_Pooling/config.json": pooling(64, "cls_token"),
            "sentence_bert_config.json": dict(max_seq_length=160, do_lower_case=False),
        }, {}),
    "xlm-roberta": (
        tf.XLMRobertaConfig(**SHAPE, max_position_embeddings=162, type_vocab_size=1), unigram(), {
            "modules.json": modules("Transformer", "Pooling", "Dense"),
            "1_Pooling/config.json": pooling(64, "mean_tokens"),
            "2_Dense/config.json": dense(24, 64, True, "torch.nn.modules.activation.Tanh"),
            "sentence_xlm-roberta_config.json": dict(max_seq_length=160),
        }, {}),
    "distilbert": (
        tf.DistilBertConfig(**DISTIL), word_pieces(False), {
            "modules.json": modules("Transformer", "Pooling", "Dense", "Dense", "Normalize"),
            "1_Pooling/config.json": pooling(64, "mean_tokens"),
            "2_Dense/config.json": dense(96, 64, False, "torch.nn.modules.linear.Identity"),
            "3_Dense/config.json": dense(32, 96, True, "torch.nn.modules.activation.Tanh"),
            "sentence_distilbert_config.json": dict(max_seq_length=160, do_lower_case=True),
        }, {}),
    "modernbert": (
        tf.ModernBertConfig(**MODERN), modern_bytes(), {
            "modules.json": [
                dict(idx=0, name="0", path="", type="sentence_transformers.base.modules.transformer.Transformer"),
                dict(idx=1, name="1", path="1_Pooling", type="sentence_transformers.sentence_transformer.modules.pooling.Pooling"),
            ],
            "1_Pooling/config.json": dict(embedding_dimension=48, pooling_mode="cls", include_prompt=True),
            "tokenizer_config.json": dict(model_max_length=160, tokenizer_class="PreTrainedTokenizerFast", pad_token="[PAD]"),
        }, {}),
    "modernbert-biases": (
        tf.ModernBertConfig(
            **MODERN, attention_bias=True, mlp_bias=True, norm_bias=True,
            rope_parameters=dict(full_attention=dict(rope_type="default", rope_theta=9e3), sliding_attention=dict(rope_type="default", rope_theta=300.0)),
            layer_types=["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"],
        ), modern_bytes(), {
            "modules.json": modules("Transformer", "Pooling"),
            "1_Pooling/config.json": pooling(48, "mean_tokens"),
            "sentence_bert_config.json": dict(max_seq_length=160),
        }, {}),
}
# As files of 2024 and 2025 have it, ModernBERT's own among them.
CASES["modernbert"][3].update(
    layer_types=None, rope_parameters=None, global_attn_every_n_layers=3, global_rope_theta=160000.0, local_rope_theta=10000.0)


def fill(module, seed):
    """Weights large enough that attention looks somewhere and activations bend, rounded to f16."""
    random = torch.Generator().manual_seed(seed)
    for name, weight in module.named_parameters():
        noise = torch.randn(weight.shape, generator=random)
        if weight.ndim == 1:
            value = (0.0 if name.endswith("bias") else 1.0) + 0.3 * noise
        elif "embeddings" in name:
            value = 0.5 * noise
        else:
            value = 1.2 / math.sqrt(weight.shape[1]) * noise
        weight.data = value.half().float()


def save(module, path, prefix=""):
    save_file({prefix + name: weight.half().contiguous() for name, weight in module.named_parameters()}, path)


def write_json(path, value):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=True) + "\n")


def make(seed, name, config, tokenizer, files, instead):
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model = tf.AutoModel.from_config(config, attn_implementation="eager").eval()
    fill(model, seed)
    # XLM-R's file is one of a network with a head: every name has a prefix.
    save(model, folder / "model.safetensors", "roberta." if name == "xlm-roberta" else "")
    settings = {key: value for key, value in {**config.to_dict(), **instead}.items() if value is not None}
    settings["architectures"] = [type(model).__name__]
    write_json(folder / "config.json", settings)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    for path, value in files.items():
        write_json(folder / path, value)
        if "Dense" in path:
            layer = torch.nn.Linear(value["in_features"], value["out_features"], bias=value["bias"])
            fill(layer, 100 + seed)
            save(layer, folder / Path(path).parent / "model.safetensors", "linear.")
    pad = "<pad>" if "roberta" in name else "[PAD]"
    if "tokenizer_config.json" not in files:
        write_json(folder / "tokenizer_config.json", dict(tokenizer_class="PreTrainedTokenizerFast", pad_token=pad))
    pipeline = SentenceTransformer(str(folder), device="cpu", model_kwargs=dict(dtype=torch.float32, attn_implementation="eager"))
    embeddings = pipeline.encode(TEXTS, batch_size=len(TEXTS), convert_to_numpy=True)
    embeddings.astype("<f4").tofile(folder / "embeddings.f32")
    ids = [pipeline.tokenizer(text, truncation=False)["input_ids"] for text in TEXTS]
    with torch.no_grad():
        hidden = torch.cat([model(torch.tensor([each])).last_hidden_state[0] for each in ids])
    hidden.numpy().astype("<f4").tofile(folder / "hidden.f32")
    write_json(folder / "golden.json", dict(texts=TEXTS, ids=ids, dimensions=embeddings.shape[1]))
    print(f"{name}: {[len(each) for each in ids]} tokens, hidden {hidden.std():.2f}, {(folder / 'model.safetensors').stat().st_size} bytes")


for seed, (name, case) in enumerate(CASES.items()):
    make(seed, name, *case)
