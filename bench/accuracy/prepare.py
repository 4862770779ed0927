#!/usr/bin/env python3
"""Rows for bench/accuracy/{cuad-clauses,contract-nli,snips-intents}.toml out of METIER_DATA: `bench/accuracy/prepare.py OUT` (needs the `zstd` command).

cuad: clauses with exactly one label, `clauses_train` and `clauses_dev` as they are parted by contract.
contract_nli: a row for each document and hypothesis. The premise is the document's spans that share most of the hypothesis' words,
weighted by how rare a word is among the spans of that document, in the order of the text, up to PREMISE characters: gold evidence is not looked at.
snips: which of seven intents; few training rows and many to measure on, drawn from the training file by the hash of their text, the same number an intent.
"""
import collections, hashlib, json, math, os, re, subprocess, sys

DATA = os.environ.get("METIER_DATA", "../shared/data")
PREMISE = 900


def rows(path):
    text = subprocess.run(["zstd", "-dc", os.path.join(DATA, path)], capture_output=True, check=True).stdout.decode()
    return [json.loads(line) for line in text.splitlines() if line]


def write(path, rows):
    with open(path, "w") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    print(path, len(rows))


def cuad(out):
    for part in ("train", "dev"):
        single = (row for row in rows(f"cuad/clauses_{part}.jsonl.zst") if len(row["labels"]) == 1)
        write(f"{out}/cuad_{part}.jsonl", [{"text": r["text"], "label": r["labels"][0], "contract": r["contract"]} for r in single])


def stems(text):
    return [word[:6] for word in re.findall(r"[a-z]+", text.lower()) if len(word) > 2]


def premise(document, hypothesis):
    spans = [" ".join(document["text"][a:b].split()) for a, b in document["spans"]]
    found = [set(stems(span)) for span in spans]
    n = collections.Counter(word for words in found for word in words)
    wanted = set(stems(hypothesis))

    def weight(words):
        shared = sum(math.log((1 + len(spans)) / (1 + n[word])) + 1 for word in words & wanted)
        return shared / math.sqrt(len(words) + 5)

    order = sorted(range(len(spans)), key=lambda i: -weight(found[i]))
    taken, length = [], 0
    for i in order:
        if length + len(spans[i]) > PREMISE and taken:
            continue
        taken.append(i)
        length += len(spans[i])
    return " ".join(spans[i] for i in sorted(taken))[: 2 * PREMISE]


def contract_nli(out):
    hypotheses = json.load(open(os.path.join(DATA, "contract_nli/hypotheses.json")))
    text = {key: value["hypothesis"] if isinstance(value, dict) else value for key, value in hypotheses.items()}
    for part in ("train50", "dev"):
        made = []
        for document in rows(f"contract_nli/{part}.jsonl.zst"):
            for key, annotation in document["annotations"].items():
                made.append(
                    {
                        "hypothesis": text[key],
                        "premise": premise(document, text[key]),
                        "label": annotation["choice"],
                        "document": f"{part}-{document['id']}",
                    }
                )
        write(f"{out}/contract_nli_{part}.jsonl", made)


def snips(out):
    by_intent, seen = collections.defaultdict(list), set()
    for row in sorted(rows("snips/train.jsonl.zst"), key=lambda row: hashlib.sha256(row["text"].encode()).hexdigest()):
        if row["text"].lower() not in seen:
            seen.add(row["text"].lower())
            by_intent[row["intent"]].append({"text": row["text"], "label": row["intent"]})
    at = 0
    for part, n in (("train", 100), ("validation", 150), ("calibration", 100), ("test", 150)):
        write(f"{out}/snips_{part}.jsonl", [row for rows in by_intent.values() for row in rows[at : at + n]])
        at += n


if __name__ == "__main__":
    os.makedirs(sys.argv[1], exist_ok=True)
    cuad(sys.argv[1])
    contract_nli(sys.argv[1])
    snips(sys.argv[1])
