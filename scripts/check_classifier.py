"""Does an exported classifier answer in Transformers as it does in metier?

    metier specialists export NAME --format transformers --output classifier
    python scripts/check_classifier.py --bundle STORE/NAME/ID classifier

Loads the folder with the real packages (torch, transformers; no code of ours), asks it the bundle's probe texts (up to 64) one by one, in one padded
batch, and in bfloat16, and compares the labels with those that stand in the bundle. Texts that Transformers cuts are counted apart. Ends with 1 if
fewer than 95 of 100 agree.
"""

import argparse
import json
import os
import pathlib
import sys
import tomllib

LEAST = 0.95


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("folder")
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    bundle = pathlib.Path(args.bundle)
    manifest = tomllib.loads((bundle / "specialist.toml").read_text())
    probe = [json.loads(line) for line in (bundle / "probe.jsonl").read_text().splitlines()][:64]
    tokenizer = AutoTokenizer.from_pretrained(args.folder)
    model, loading = AutoModelForSequenceClassification.from_pretrained(args.folder, output_loading_info=True)
    model.eval()
    wrong = {key: value for key, value in loading.items() if value}
    print(f"{type(model).__name__}: loaded, {wrong or 'every tensor has its place'}")
    several = "multi_label" in manifest or "several" in manifest

    def label_of(logits):
        if several:
            return json.dumps([model.config.id2label[i] for i in range(len(logits)) if logits[i] > 0], separators=(",", ":"), ensure_ascii=False)
        return model.config.id2label[int(logits.argmax())]

    @torch.no_grad()
    def logits(model, texts):
        return model(**tokenizer(texts, truncation=True, padding=True, return_tensors="pt")).logits.float()

    texts = [row["text"] for row in probe]
    expected = [row["label"] for row in probe]
    cut = sum(len(tokenizer(text)["input_ids"]) > tokenizer.model_max_length for text in texts)
    alone = torch.cat([logits(model, [text]) for text in texts])
    batch = logits(model, texts)
    half = logits(model.to(torch.bfloat16), texts)
    model.float()
    count = lambda rows: sum(label_of(row) == label for row, label in zip(rows, expected))
    found = count(alone)
    print(
        f"{found} of {len(probe)} labels are those in the bundle ({cut} texts are cut); in one padded batch {count(batch)}, max |Δlogit| "
        f"{(alone - batch).abs().max().item():.1e}; in bfloat16 {count(half)}"
    )
    piped = pipeline("text-classification", args.folder)(texts[:8], truncation=True)
    same = sum(row["label"] == model.config.id2label[int(logits.argmax())] for row, logits in zip(piped, alone))
    print(f"pipeline: {same} of {len(piped)} the same; {piped[0]}")
    sys.exit(1 if found < LEAST * len(probe) or wrong or same < len(piped) else 0)


if __name__ == "__main__":
    main()
