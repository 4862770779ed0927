"""Trains a LoRA adapter on a handful of conversations, over the weights that metier serves. A start for a script of your own.

    python train.py --model SmolLM2-135M-Instruct.Q4_1.gguf --rows rows.jsonl --out adapters/pirate

Rows are lines of JSON: {"messages": [{"role": "user", "content": …}, {"role": "assistant", "content": …}]}. Only the assistant's words are learnt.
"""

import argparse
import json
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer


def ids(tokenizer, messages, **settings):
    text = tokenizer.apply_chat_template(messages, tokenize=False, **settings)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def example(tokenizer, messages):
    """Ids of a conversation, and what is to be learnt of them: the last answer."""
    whole, asked = ids(tokenizer, messages), ids(tokenizer, messages[:-1], add_generation_prompt=True)
    return torch.tensor([whole]), torch.tensor([[-100] * len(asked) + whole[len(asked) :]])


def main():
    flags = argparse.ArgumentParser()
    flags.add_argument("--model", type=Path, required=True, help="a GGUF file, or a folder of Transformers")
    flags.add_argument("--rows", type=Path, default=Path(__file__).with_name("rows.jsonl"))
    flags.add_argument("--out", type=Path, required=True, help="the adapter's folder; its name is what clients ask for")
    flags.add_argument("--epochs", type=int, default=6)
    flags.add_argument("--rank", type=int, default=8)
    args = flags.parse_args()
    torch.manual_seed(1)
    where = dict(pretrained_model_name_or_path=args.model)
    if args.model.suffix == ".gguf":
        where = dict(pretrained_model_name_or_path=args.model.parent, gguf_file=args.model.name)
    tokenizer = AutoTokenizer.from_pretrained(**where)
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=args.rank, lora_alpha=2 * args.rank, target_modules="all-linear"))
    rows = [example(tokenizer, json.loads(line)["messages"]) for line in args.rows.read_text().splitlines()]
    optimiser = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=5e-4)
    for epoch in range(args.epochs):
        total = 0.0
        for at in torch.randperm(len(rows)).tolist():
            loss = model(input_ids=rows[at][0], labels=rows[at][1]).loss
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            total += loss.item()
        print(f"epoch {epoch + 1}: loss {total / len(rows):.3f}", flush=True)
    model.save_pretrained(args.out)
    print(f"{args.out}: serve it with `metier serve --adapters {args.out.parent}`")


main()
