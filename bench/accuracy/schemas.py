"""Writes the schemas of snips and attr_oa_mine beside this file: one list of strings for each slot that a training row names, of at most one string for
each attribute (no row has two).

METIER_DATA=… python3 bench/accuracy/schemas.py     (snips is read through the command `zstd`)
"""

import json
import os
import pathlib
import subprocess

data = pathlib.Path(os.environ.get("METIER_DATA", "../shared/data"))
here = pathlib.Path(__file__).parent


def write(name, fields, limits):
    strings = {"type": "array", "items": {"type": "string"}} | limits
    schema = {"type": "object", "additionalProperties": False, "properties": {field: strings for field in sorted(fields)}}
    (here / f"{name}.schema.json").write_text(json.dumps(schema, indent=1, ensure_ascii=False) + "\n")


rows = subprocess.run(["zstd", "-dc", data / "snips/train.jsonl.zst"], check=True, capture_output=True).stdout.decode()
write("snips", {slot["slot"] for row in rows.splitlines() for slot in json.loads(row)["slots"]}, {})
rows = (data / "attr_oa_mine/train.jsonl").read_text().splitlines()
write("attr_oa_mine", {name for row in rows for name in json.loads(row)["attributes"]}, {"maxItems": 1})
