"""Makes the trace that `tests/lora.rs` compares with: PEFT training the deltas of a tiny network in f32.

    python -m venv VENV && VENV/bin/pip install torch==2.15.0 transformers==5.24.0 numpy==2.4.6 peft==0.21.2 safetensors==0.8.0
    VENV/bin/python make_lora_trace.py

The networks are metier-model's goldens. Over `llama` the deltas start as `adapters/llama-all` there; over `gemma3` (norms of heads and behind its
halves, windows, GELU) and `qwen3` (norms of heads) they start as this script draws them, in `lora-NETWORK/start.safetensors`. Each step sees all of `rows()`: a prompt that
is masked, and an answer; the loss is the mean over all answer tokens. `trace.json` holds loss and gradient norm (before clipping at 1) of
every step, `adapter_model.safetensors` the deltas after the last.
"""

import json
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
MODEL = HERE.parents[2] / "metier-model" / "tests" / "goldens"
VOCABULARY = 260
STEPS = 12
SETTINGS = dict(lr=3e-3, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.01)


def rows():
    """(prompt, answer): three of different lengths."""
    of = lambda n, salt: [(i * 73 + i * i * 11 + 5 + salt * 31) % VOCABULARY for i in range(n)]
    return [(of(9, 1), of(3, 2)), (of(1, 3), of(5, 4)), (of(14, 5), of(1, 6))]


MAPS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def deltas(model):
    found = {name: weight.detach().contiguous() for name, weight in model.named_parameters() if weight.requires_grad}
    return {name.replace(".default", ""): weight for name, weight in found.items()}


def train(network, out):
    out.mkdir(exist_ok=True)
    base = AutoModelForCausalLM.from_pretrained(MODEL / "folders" / network, dtype=torch.float32, attn_implementation="eager")
    if network == "llama":
        model = PeftModel.from_pretrained(base, MODEL / "adapters" / "llama-all", is_trainable=True)
    else:
        torch.manual_seed(7)
        model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=MAPS))
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.05)
        save_file(deltas(model.float()), out / "start.safetensors")
    model = model.float().train()
    weights = [weight for _, weight in model.named_parameters() if weight.requires_grad]
    assert len(weights) == base.config.num_hidden_layers * 7 * 2
    optimiser = torch.optim.AdamW(weights, **SETTINGS)
    losses, norms = [], []
    for _ in range(STEPS):
        total, count = 0.0, sum(len(answer) for _, answer in rows())
        for prompt, answer in rows():
            ids = torch.tensor([prompt + answer])
            logits = model(input_ids=ids).logits[0]
            total = total + torch.nn.functional.cross_entropy(
                logits[len(prompt) - 1 : -1], ids[0, len(prompt) :], reduction="sum"
            )
        loss = total / count
        optimiser.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(weights, 1.0).item())
        optimiser.step()
        losses.append(loss.item())
    trace = dict(losses=losses, gradient_norms=norms)
    (out / "trace.json").write_text(json.dumps(trace, indent=2) + "\n")
    save_file(deltas(model), out / "adapter_model.safetensors")
    print(network, losses[0], losses[-1], norms[0])


for network in ["llama", "gemma3", "qwen3"]:
    train(network, HERE / ("lora" if network == "llama" else f"lora-{network}"))
