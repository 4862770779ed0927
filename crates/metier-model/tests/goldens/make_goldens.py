"""Makes the networks and logits that `tests/architectures.rs` compares with: one tiny network of random weights for each architecture.

    python -m venv VENV && VENV/bin/pip install torch==2.15.0 transformers==5.24.0 gguf==0.19.0 numpy==2.4.6
    VENV/bin/python make_goldens.py

Weights are rounded to f16 before Transformers (f32, eager attention) sees them, so the file holds exactly what was computed with.
Tensor names come from the `gguf` package's table. Rows of Q and K are reordered, one is added to Gemma's norms and Llama 3's factors become
a tensor, as llama.cpp's `convert_hf_to_gguf.py` does it. Each `NAME.f32` holds the logits of the ids in `IDS`: (len, 260), little-endian.

The same networks stand in `folders/NAME/` as Transformers saves them (matrices as f16, vectors as f32; `qwen3` in several files),
and are read back from there: the logits must be the same bits. `phi4-long.f32` holds the logits of `LONG_IDS`, which are more than
phi4's short factors are made for.
"""

import json
import math
import shutil
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

HERE = Path(__file__).parent
VOCABULARY = 260
IDS = [(i * 73 + i * i * 11 + 5) % VOCABULARY for i in range(40)]
LONG_IDS = [(i * 73 + i * i * 11 + 5) % VOCABULARY for i in range(100)]
SHAPE = dict(
    vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=128, attn_implementation="eager", bos_token_id=258, eos_token_id=259, pad_token_id=257,
)


def rope(theta, kind="default", **more):
    return dict(rope_parameters=dict(rope_type=kind, rope_theta=theta, **more))


def config(cls, *settings):
    merged = dict(SHAPE)
    for part in settings:
        merged.update(part)
    return cls(**merged)


LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
LONGROPE = dict(
    short_factor=[1.0 + 0.05 * i for i in range(12)], long_factor=[1.0 + 0.7 * i for i in range(12)],
    original_max_position_embeddings=64, partial_rotary_factor=0.75,
)
GEMMA = dict(
    num_hidden_layers=6, intermediate_size=32, num_attention_heads=2, num_key_value_heads=1, head_dim=32, sliding_window=8,
    query_pre_attn_scalar=32, hidden_activation="gelu_pytorch_tanh", tie_word_embeddings=True,
    layer_types=["sliding_attention"] * 5 + ["full_attention"],
    rope_parameters=dict(
        full_attention=dict(rope_type="linear", rope_theta=1e6, factor=4.0),
        sliding_attention=dict(rope_type="default", rope_theta=1e4),
    ),
)
MODELS = {
    "llama": ("llama", config(tf.LlamaConfig, rope(1e4), dict(tie_word_embeddings=True))),
    "llama3": ("llama", config(tf.LlamaConfig, rope(5e5, "llama3", **LLAMA3), dict(tie_word_embeddings=False))),
    "mistral": ("llama", config(tf.MistralConfig, rope(1e4), dict(head_dim=32, sliding_window=8, tie_word_embeddings=False))),
    "smollm3": ("smollm3", config(tf.SmolLM3Config, rope(5e4), dict(num_hidden_layers=4, intermediate_size=64, tie_word_embeddings=True))),
    "qwen2": ("qwen2", config(tf.Qwen2Config, rope(1e6), dict(tie_word_embeddings=True))),
    "qwen3": ("qwen3", config(tf.Qwen3Config, rope(1e6), dict(head_dim=32, tie_word_embeddings=False))),
    "gemma3": ("gemma3", config(tf.Gemma3TextConfig, GEMMA)),
    "phi3": ("phi3", config(tf.Phi3Config, rope(1e4), dict(tie_word_embeddings=False, sliding_window=12))),
    "phi4": ("phi3", config(
        tf.Phi3Config, rope(1e4, "longrope", **LONGROPE), dict(num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True),
        dict(partial_rotary_factor=0.75, original_max_position_embeddings=64))),
}
ADJACENT = {"llama", "smollm3"}


def fill(model, seed):
    """Weights large enough that attention looks somewhere and activations bend."""
    random = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=random)
        if weight.ndim == 1:
            centre = 0.0 if name.endswith("bias") or "Gemma" in type(model).__name__ else 1.0
            weight.data = centre + 0.3 * noise
        elif "embed_tokens" in name:
            weight.data = (0.06 if "Gemma" in type(model).__name__ else 0.5) * noise  # Gemma multiplies by the root of the width
        else:
            weight.data = (1.2 / math.sqrt(weight.shape[1]) * noise).half().float()
        weight.data = weight.data.half().float() if weight.ndim > 1 else weight.data


def neighbours(weight, heads):
    """Rows whose halves turn together -> rows whose neighbours do."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def llama3_factors(config):
    r, dim = config.rope_parameters, config.hidden_size // config.num_attention_heads
    old = r["original_max_position_embeddings"]
    low, high = old / r["low_freq_factor"], old / r["high_freq_factor"]
    factors = []
    for i in range(0, dim, 2):
        wavelength = 2 * math.pi * r["rope_theta"] ** (i / dim)
        if wavelength < high:
            factors.append(1.0)
        elif wavelength > low:
            factors.append(r["factor"])
        else:
            smooth = (old / wavelength - r["low_freq_factor"]) / (r["high_freq_factor"] - r["low_freq_factor"])
            factors.append(1.0 / ((1 - smooth) / r["factor"] + smooth))
    return np.array(factors, np.float32)


def byte_words():
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(0x100 + i) for i in range(len(others))]


def write(name, arch, config, model):
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    w = gguf.GGUFWriter(HERE / f"{name}.gguf", arch)
    w.add_block_count(config.num_hidden_layers)
    w.add_context_length(config.max_position_embeddings)
    w.add_embedding_length(config.hidden_size)
    w.add_feed_forward_length(config.intermediate_size)
    w.add_head_count(config.num_attention_heads)
    w.add_head_count_kv(config.num_key_value_heads)
    w.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    if name == "gemma3":
        w.add_rope_freq_base(rope["full_attention"]["rope_theta"])
        w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        w.add_rope_scaling_factor(rope["full_attention"]["factor"])
    else:
        w.add_rope_freq_base(rope["rope_theta"])
    if name in {"mistral", "qwen3", "gemma3"}:
        w.add_key_length(head_dim)
        w.add_value_length(head_dim)
    if name in {"mistral", "gemma3", "phi3"}:
        w.add_sliding_window(config.sliding_window)
    turned = int(head_dim * rope.get("partial_rotary_factor", 1.0))
    if arch != "gemma3":
        w.add_rope_dimension_count(turned)
    if name == "llama3":
        w.add_tensor("rope_freqs.weight", llama3_factors(config))
    if name == "phi4":
        old = config.rope_parameters["original_max_position_embeddings"]
        w.add_rope_scaling_orig_ctx_len(old)
        w.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(config.max_position_embeddings / old) / math.log(old)))
        w.add_tensor("rope_factors_long.weight", np.array(rope["long_factor"], np.float32))
        w.add_tensor("rope_factors_short.weight", np.array(rope["short_factor"], np.float32))
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("smollm")
    w.add_token_list(byte_words() + ["he", "<pad>", "<s>", "</s>"])
    w.add_token_types([1] * 257 + [3] * 3)
    w.add_token_merges(["h e"])
    w.add_bos_token_id(258)
    w.add_eos_token_id(259)
    names = gguf.get_tensor_name_map({v: k for k, v in gguf.MODEL_ARCH_NAMES.items()}[arch], config.num_hidden_layers)
    for hf_name, weight in model.state_dict().items():
        if hf_name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        value = weight.numpy()
        if arch in ADJACENT and ".q_proj." in hf_name:
            value = neighbours(value, config.num_attention_heads)
        if arch in ADJACENT and ".k_proj." in hf_name:
            value = neighbours(value, config.num_key_value_heads)
        if arch == "gemma3" and hf_name.endswith("norm.weight"):
            value = value + 1
        w.add_tensor(names.get_name(hf_name, (".weight", ".bias")), value.astype(np.float16 if value.ndim > 1 else np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def write_folder(name, config, model):
    folder = HERE / "folders" / name
    shutil.rmtree(folder, ignore_errors=True)
    tied = config.tie_word_embeddings
    state = {
        key: weight.half() if weight.ndim > 1 else weight
        for key, weight in model.state_dict().items() if not (tied and key == "lm_head.weight")
    }
    model.save_pretrained(folder, state_dict=state, max_shard_size="100KB" if name == "qwen3" else "1GB")
    words = {word: i for i, word in enumerate(byte_words() + ["he"])}
    tokenizer = Tokenizer(models.BPE(words, [("h", "e")]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>", "<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    settings = dict(bos_token="<s>", eos_token="</s>", chat_template="{{ bos_token }}{% for m in messages %}{{ m.content }}</s>{% endfor %}")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return tf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def build(name):
    """The network of a golden, with its weights."""
    model = tf.AutoModelForCausalLM.from_config(MODELS[name][1], dtype=torch.float32).eval()
    fill(model, list(MODELS).index(name))
    return model


def logits_of(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float()


if __name__ == "__main__":
    for name, (arch, config) in MODELS.items():
        model = build(name)
        logits = logits_of(model, IDS)
        logits.numpy().astype("<f4").tofile(HERE / f"{name}.f32")
        write(name, arch, config, model)
        saved = write_folder(name, config, model)
        assert torch.equal(logits_of(saved, IDS), logits), name
        if name == "phi4":
            logits_of(saved, LONG_IDS).numpy().astype("<f4").tofile(HERE / "phi4-long.f32")
        top = logits.softmax(-1).max(-1).values
        print(f"{name}: {(HERE / f'{name}.gguf').stat().st_size} bytes, logits of {logits.std():.2f}, top probability {top.mean():.3f}")
