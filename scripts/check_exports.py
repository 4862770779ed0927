"""Do the exports of a written specialist answer in Transformers and PEFT as they do in metier?

    metier specialists export NAME --format peft --output peft
    metier specialists export NAME --format merged --output merged
    metier specialists export NAME --format gguf --output merged.gguf
    python scripts/check_exports.py --base FOLDER/SmolLM2-135M-Instruct.Q4_1.gguf --bundle STORE/NAME/ID \
        --peft peft --merged merged --gguf merged.gguf

`--base` is the file that `metier models show smollm2-135m-instruct` prints. Loads each export with the real packages (torch, transformers, peft, gguf),
asks it the bundle's probe texts (up to 64), and compares the most probable next token with that of the base, dequantised by Transformers, under
the adapter; and the first whole answer of each with the one that stands in the bundle. Ends with 1 if fewer than 95 of 100 agree.
"""

import argparse
import json
import os
import pathlib
import sys
import tomllib

LEAST = 0.95
ANSWERS = 8


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--peft")
    parser.add_argument("--merged")
    parser.add_argument("--gguf")
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    bundle = pathlib.Path(args.bundle)
    manifest = tomllib.loads((bundle / "specialist.toml").read_text())
    probe = [json.loads(line) for line in (bundle / "probe.jsonl").read_text().splitlines()][:64]

    def from_gguf(path):
        folder, file = os.path.split(os.path.abspath(path))
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
        return AutoTokenizer.from_pretrained(folder, gguf_file=file), model.eval()

    def prompts(tokenizer):
        def one(row):
            messages = [{"role": "system", "content": manifest["instruction"]}, {"role": "user", "content": row["text"]}]
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            return tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]

        return [one(row) for row in probe]

    @torch.no_grad()
    def first(model, ids):
        return [model(input_ids=row).logits[0, -1].argmax().item() for row in ids]

    @torch.no_grad()
    def answers(tokenizer, model, ids):
        limit = manifest["generation"]["max_tokens"]
        end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        found = []
        for row in ids[:ANSWERS]:
            out = model.generate(input_ids=row, attention_mask=torch.ones_like(row), max_new_tokens=limit, do_sample=False, eos_token_id=end, pad_token_id=end)
            found.append(tokenizer.decode(out[0, row.shape[1] :], skip_special_tokens=True).strip())
        return found

    # The reference: PEFT's own loading of the bundle's adapter over the dequantised base.
    tokenizer, base = from_gguf(args.base)
    ids = prompts(tokenizer)
    plain = first(base, ids)
    failed = False
    expected = None
    exports = [("peft", args.peft), ("merged", args.merged), ("gguf", args.gguf)]
    for form, path in exports:
        if path is None:
            continue
        if form == "peft":
            own, model = tokenizer, PeftModel.from_pretrained(base, path).eval()
        elif form == "merged":
            own, model = AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        else:
            own, model = from_gguf(path)
        own_ids = prompts(own)
        same_ids = sum(torch.equal(a, b) for a, b in zip(ids, own_ids))
        found = first(model, own_ids)
        said = answers(own, model, own_ids)
        in_bundle = sum(a == row["label"].strip() for a, row in zip(said, probe))
        if expected is None:
            expected = found
        equal = sum(a == b for a, b in zip(found, expected))
        moved = sum(a != b for a, b in zip(found, plain))
        print(
            f"{form}: {same_ids} of {len(probe)} prompts have the same ids; {equal} of {len(probe)} go on with the same token as the first export "
            f"({moved} with another than the bare base); {in_bundle} of {len(said)} whole answers are those in the bundle"
        )
        failed |= equal < LEAST * len(probe) or same_ids < len(probe)
        if form == "peft":
            base = model.unload()
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
