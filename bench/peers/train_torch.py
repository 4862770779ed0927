"""Steps of training in PyTorch, for `metier bench train`: the same whole step as ours (forward, backward, clip, AdamW; embedding and head included).

    python train_torch.py lora --model FILE.gguf --threads 2 --steps 4
    python train_torch.py encoder --model FOLDER --threads 2 --steps 20

Prints one line of JSON: {"tokens": a step's, "seconds": [each step's], "losses": […], "peak_rss_mb": …, "versions": {…}}.
Needs torch, transformers and peft (for `lora` also gguf).
"""

import argparse
import json
import os
import resource
import time

# What ours does, so that both sides do the same.
LORA_ROWS, LORA_TOKENS = 16, 64
ENCODER_ROWS, ENCODER_TOKENS, CLASSES = 32, 32, 77
WARM_UP = 1


def ids(n, salt, vocabulary):
    """As `ids` in cli/bench/train.rs."""
    return [(i * 73 + i * i * 11 + 5 + salt * 31) % vocabulary for i in range(n)]


def timed(step, steps, tokens):
    seconds, losses = [], []
    for i in range(WARM_UP + steps):
        begun = time.perf_counter()
        loss = step()
        if i >= WARM_UP:
            seconds.append(time.perf_counter() - begun)
        losses.append(loss)
    return {"tokens": tokens, "seconds": seconds, "losses": losses}


def lora(torch, model, steps):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder, file = os.path.split(os.path.abspath(model))
    base = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    net = get_peft_model(base, LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM"))
    net.train()
    trained = [p for p in net.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=2e-4, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    rows = torch.tensor([ids(LORA_TOKENS, row, 40_000) for row in range(LORA_ROWS)])
    labels = rows.clone()
    labels[:, 0] = -100

    def step():
        optimiser.zero_grad(set_to_none=True)
        loss = net(input_ids=rows, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        return loss.item()

    return timed(step, steps, LORA_ROWS * LORA_TOKENS)


def encoder(torch, model, steps):
    from transformers import AutoModel

    net = AutoModel.from_pretrained(model, dtype=torch.float32)
    net.train()
    # The tables of words and positions stay the base's, as with us.
    for p in net.embeddings.parameters():
        p.requires_grad_(False)
    for p in net.embeddings.LayerNorm.parameters():
        p.requires_grad_(True)
    if getattr(net, "pooler", None) is not None:
        net.pooler = None
    head = torch.nn.Linear(net.config.hidden_size, CLASSES)
    trained = [p for p in net.parameters() if p.requires_grad] + list(head.parameters())
    optimiser = torch.optim.AdamW(trained, lr=2e-4, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    rows = torch.tensor([[101, *ids(ENCODER_TOKENS - 2, row, 20_000), 102] for row in range(ENCODER_ROWS)])
    mask = torch.ones_like(rows)
    classes = torch.arange(ENCODER_ROWS) % CLASSES

    def step():
        optimiser.zero_grad(set_to_none=True)
        hidden = net(input_ids=rows, attention_mask=mask).last_hidden_state
        units = torch.nn.functional.normalize(hidden.mean(dim=1), dim=-1)
        loss = torch.nn.functional.cross_entropy(head(16.0 * units), classes, label_smoothing=0.1)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        return loss.item()

    return timed(step, steps, ENCODER_ROWS * ENCODER_TOKENS)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=["lora", "encoder"])
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    import transformers

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    found = {"lora": lora, "encoder": encoder}[args.case](torch, args.model, args.steps)
    found["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found["versions"] = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
