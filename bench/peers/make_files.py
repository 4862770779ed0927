"""Makes the files that metier and llama.cpp both read: a 1 B shape with random weights, and random adapters.

    python make_files.py DIR SMOLLM2.gguf

Speed only: what these models answer means nothing. The 1 B shape is that of Llama 3.2 1B (16 layers, width 2048, inner width 8192, 32 query
and 8 key heads, 128,256 rows in a tied embedding), with all matrices in one format. Its tokens are SmolLM2's, filled up with unused ones.
An adapter is written twice with the same values: PEFT's two files for metier, one GGUF file for llama.cpp. PEFT's rows of q and k are in the
order of Transformers; a GGUF file has rotary pairs as neighbours, so those rows are reordered.
"""

import json
import sys
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from safetensors.numpy import save_file

ONE_B = dict(layers=16, width=2048, inner=8192, heads=32, kv_heads=8, head=64, vocabulary=128_256)
SMOLLM2 = dict(layers=30, width=576, inner=1536, heads=9, kv_heads=3, head=64, vocabulary=49_152)
ADAPTERS = 8
RANK = 16
SMALL_RANK = 8
# Spread of the weights: activations stay finite through 16 layers.
SPREAD = 0.02
UNUSED = 5  # token type


def maps(s):
    """Linear maps of a layer: name in GGUF, name in PEFT, outputs, inputs, heads to reorder."""
    q, kv = s["heads"] * s["head"], s["kv_heads"] * s["head"]
    w, i = s["width"], s["inner"]
    return [
        ("attn_q", "self_attn.q_proj", q, w, s["heads"]),
        ("attn_k", "self_attn.k_proj", kv, w, s["kv_heads"]),
        ("attn_v", "self_attn.v_proj", kv, w, 0),
        ("attn_output", "self_attn.o_proj", w, q, 0),
        ("ffn_gate", "mlp.gate_proj", i, w, 0),
        ("ffn_up", "mlp.up_proj", i, w, 0),
        ("ffn_down", "mlp.down_proj", w, i, 0),
    ]


def blocks(random, n, k, kind):
    """Random rows of 32-wide blocks: an f16 scale, then 32 signed bytes (Q8_0) or 16 bytes of two nibbles (Q4_0)."""
    quants, steps = (32, 127) if kind == GGMLQuantizationType.Q8_0 else (16, 8)
    out = np.empty((n, k // 32, 2 + quants), np.uint8)
    out[:, :, :2] = np.frombuffer(np.float16(SPREAD / steps).tobytes(), np.uint8)
    out[:, :, 2:] = random.integers(0, 256, (n, k // 32, quants), np.uint8)
    return out.reshape(n, -1)


def one_b(path, donor, kind, file_type):
    s = ONE_B
    random = np.random.default_rng(1)
    writer = GGUFWriter(path, "llama")
    writer.add_name("random 1 B shape, speed only")
    writer.add_file_type(file_type)
    writer.add_vocab_size(s["vocabulary"])
    writer.add_context_length(8192)
    writer.add_embedding_length(s["width"])
    writer.add_block_count(s["layers"])
    writer.add_feed_forward_length(s["inner"])
    writer.add_rope_dimension_count(s["head"])
    writer.add_head_count(s["heads"])
    writer.add_head_count_kv(s["kv_heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500_000.0)
    words = donor.get_field("tokenizer.ggml.tokens").contents()
    kinds = donor.get_field("tokenizer.ggml.token_type").contents()
    fill = range(len(words), s["vocabulary"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(words + [f"<unused{i}>" for i in fill])
    writer.add_token_types(kinds + [UNUSED for _ in fill])
    writer.add_token_merges(donor.get_field("tokenizer.ggml.merges").contents())
    writer.add_bos_token_id(1)
    # The last unused token ends an answer: random weights hardly ever choose it.
    writer.add_eos_token_id(s["vocabulary"] - 1)
    writer.add_tensor("token_embd.weight", blocks(random, s["vocabulary"], s["width"], kind), raw_dtype=kind)
    writer.add_tensor("output_norm.weight", np.ones(s["width"], np.float32))
    for layer in range(s["layers"]):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", np.ones(s["width"], np.float32))
        for name, _, n, k, _ in maps(s):
            writer.add_tensor(f"blk.{layer}.{name}.weight", blocks(random, n, k, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def adapter(folder, s, rank, seed):
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(folder / "adapter.gguf", "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(rank))
    tensors = {}
    for layer in range(s["layers"]):
        for name, peft, n, k, heads in maps(s):
            a = (random.standard_normal((rank, k), np.float32) / np.sqrt(k)).astype(np.float32)
            b = (random.standard_normal((n, rank), np.float32) * 0.01).astype(np.float32)
            prefix = f"base_model.model.model.layers.{layer}.{peft}"
            tensors[f"{prefix}.lora_A.weight"], tensors[f"{prefix}.lora_B.weight"] = a, b
            if heads:
                b = np.ascontiguousarray(b.reshape(heads, 2, n // heads // 2, rank).swapaxes(1, 2).reshape(n, rank))
            writer.add_tensor(f"blk.{layer}.{name}.weight.lora_a", a)
            writer.add_tensor(f"blk.{layer}.{name}.weight.lora_b", b)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(tensors, folder / "adapter_model.safetensors")
    targets = [peft.split(".")[1] for _, peft, *_ in maps(s)]
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "bias": "none", "target_modules": targets}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def main():
    folder, donor = Path(sys.argv[1]), GGUFReader(sys.argv[2])
    (folder / "models").mkdir(parents=True, exist_ok=True)
    for name, kind, file_type in (("q8_0", GGMLQuantizationType.Q8_0, 7), ("q4_0", GGMLQuantizationType.Q4_0, 2)):
        path = folder / "models" / f"one-b-{name}.gguf"
        if not path.exists():
            part = path.with_suffix(".part")
            one_b(part, donor, kind, file_type)
            part.rename(path)
            print(path, flush=True)
    for name, shape in (("smollm2", SMOLLM2), ("one-b", ONE_B)):
        for i in range(ADAPTERS):
            adapter(folder / "adapters" / f"{name}-r{RANK}" / str(i), shape, RANK, 100 + i)
    adapter(folder / "adapters" / f"smollm2-r{SMALL_RANK}" / "0", SMOLLM2, SMALL_RANK, 200)
    print(folder / "adapters", flush=True)


main()
