"""Makes the adapters and logits that `tests/adapters.rs` compares with: PEFT over the tiny networks of `make_goldens.py`.

    python -m venv VENV && VENV/bin/pip install torch==2.15.0 transformers==5.24.0 gguf==0.19.0 numpy==2.4.6 peft==0.21.2
    VENV/bin/python make_adapters.py

Each folder of `adapters/` is what `save_pretrained` writes, with random deltas whose weights are 16-bit floats: f16 in most files, f32 in one.
`logits.f32` beside it holds PEFT's logits (f32) after the last `KEPT` ids of each of `prompts()`: (prompts, KEPT, 260), little-endian.
`refused/NAME.json` are configurations of kinds that change more than low-rank deltas can say.
"""

import json
import math
import shutil

import numpy as np
import torch
from peft import LoraConfig, get_peft_model

from make_goldens import HERE, IDS, build, logits_of

KEPT = 4
ADAPTERS = HERE / "adapters"

# Name: base, settings, whether the file holds f32.
ADAPTED = {
    "llama-all": ("llama", dict(r=4, lora_alpha=8, target_modules="all-linear"), False),
    "llama-rslora": ("llama", dict(r=16, lora_alpha=4, target_modules=["q_proj", "v_proj"], layers_to_transform=[1], use_rslora=True), True),
    "smollm3-attention": ("smollm3", dict(r=4, lora_alpha=1, target_modules=["k_proj", "o_proj", "q_proj"]), False),
    "qwen2-all": ("qwen2", dict(r=4, lora_alpha=8, target_modules="all-linear"), False),
    "gemma3-mlp": ("gemma3", dict(r=4, lora_alpha=8, target_modules=["gate_proj", "up_proj", "down_proj", "k_proj"]), False),
    "phi3-fused": ("phi3", dict(r=4, lora_alpha=8, target_modules=["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]), False),
}
REFUSED = {
    "modules_to_save": dict(modules_to_save=["lm_head"]),
    "use_dora": dict(use_dora=True),
    "bias": dict(bias="lora_only"),
    "lora_bias": dict(lora_bias=True),
    "rank_pattern": dict(rank_pattern={"q_proj": 8}),
    "alpha_pattern": dict(alpha_pattern={"q_proj": 8}),
    "init_lora_weights": dict(init_lora_weights="pissa"),
    "trainable_token_indices": dict(trainable_token_indices=[3]),
    "alora_invocation_tokens": dict(alora_invocation_tokens=[1, 2]),
    "use_qalora": dict(use_qalora=True),
}


def prompts():
    return [IDS, IDS[::-1][:11], IDS[20:23] * 5]


def randomise(model, seed):
    """Deltas about half as large as what the maps give without them."""
    random = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            size = 1 / math.sqrt(weight.shape[1]) if "lora_A" in name else 0.5 / math.sqrt(weight.shape[1])
            weight.data = (size * torch.randn(weight.shape, generator=random)).half().float()


def save(model, folder, full):
    if not full:
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.data = weight.data.half()
    model.save_pretrained(folder)
    (folder / "README.md").unlink()


def main():
    shutil.rmtree(ADAPTERS, ignore_errors=True)
    for seed, (name, (base, settings, full)) in enumerate(ADAPTED.items()):
        plain = build(base)
        found, written = logits_of(plain, IDS).numpy(), np.fromfile(HERE / f"{base}.f32", "<f4")
        assert np.abs(found.ravel() - written).max() < 1e-4, f"{base}: other weights than in the file"
        before = [logits_of(plain, ids)[-KEPT:] for ids in prompts()]
        model = get_peft_model(plain, LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
        randomise(model, 100 + seed)
        after = [logits_of(model, ids)[-KEPT:] for ids in prompts()]
        moved = torch.stack(after).sub(torch.stack(before)).std() / torch.stack(before).std()
        save(model, ADAPTERS / name, full)
        torch.stack(after).numpy().astype("<f4").tofile(ADAPTERS / name / "logits.f32")
        size = sum(file.stat().st_size for file in (ADAPTERS / name).iterdir())
        print(f"{name}: {size} bytes, moves the logits by {moved:.2f} of their deviation")
    (ADAPTERS / "refused").mkdir()
    for setting, more in REFUSED.items():
        config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["q_proj"], **more).to_dict()
        listed = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
        text = json.dumps(listed, indent=2, sort_keys=True, default=str)
        (ADAPTERS / "refused" / f"{setting}.json").write_text(text + "\n")


main()
