"""Makes the trace that `tests/lora.rs` compares with: PEFT training the deltas of a tiny network in f32.

    python -m venv VENV && VENV/bin/pip install torch==2.15.0 transformers==5.24.0 numpy==2.4.6 peft==0.21.2 safetensors==0.8.0
    VENV/bin/python make_lora_trace.py

The network is `llama` of metier-model's goldens, the deltas start as `adapters/llama-all` there. Each step sees all of `rows()`: a prompt that
is masked, and an answer; the loss is the mean over all answer tokens. `lora/trace.json` holds loss and gradient norm (before clipping at 1) of
every step, `lora/adapter_model.safetensors` the deltas after the last.
"""

import json
from pathlib import Path

import torch
from peft import PeftModel
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


def main():
    base = AutoModelForCausalLM.from_pretrained(MODEL / "folders" / "llama", dtype=torch.float32, attn_implementation="eager")
    model = PeftModel.from_pretrained(base, MODEL / "adapters" / "llama-all", is_trainable=True).float().train()
    weights = [weight for _, weight in model.named_parameters() if weight.requires_grad]
    assert len(weights) == 2 * 7 * 2
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
    (HERE / "lora").mkdir(exist_ok=True)
    trace = dict(losses=losses, gradient_norms=norms)
    (HERE / "lora" / "trace.json").write_text(json.dumps(trace, indent=2) + "\n")
    deltas = {name: weight.detach().contiguous() for name, weight in model.named_parameters() if weight.requires_grad}
    deltas = {name.replace(".default", ""): weight for name, weight in deltas.items()}
    save_file(deltas, HERE / "lora" / "adapter_model.safetensors")
    print(losses[0], losses[-1], norms[0], sorted(deltas)[0])


main()
