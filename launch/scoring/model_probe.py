"""What an exported model says of itself in this environment's transformers: ends, rope, template, logits.

    .venv/bin/python -m launch.scoring.model_probe --model runs/r/models/dpo --across   # transformers 4 against 5
    .venv-serve/bin/python -m launch.scoring.model_probe --model runs/r/models/dpo             # one of them, as JSON

transformers 5 keeps `rope_theta` under another name than 4, writes tokenizer classes that 4 refuses, and each reads
what it does not find as a default, without a word. With `--across` the same folder is read by `.venv` (transformers
4.57) and `.venv-serve` (5.x), and the command fails where they differ. `launch.serving.gate` then asks vLLM itself.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from artifacts.errors import UserError, run_main
from artifacts.layout import REPOSITORY, environment
from artifacts.stage import report_metrics

TOLERANCE = 1e-4  # of a float32 logit, summed in another order
CHAT = [{"role": "user", "content": "请介绍一下你自己。"}, {"role": "assistant", "content": "你好"}]
TEXT = "春天来了，"


def probe(folder: Path) -> dict[str, Any]:
    """What this transformers reads from the folder; `logits` are those of the last token of TEXT, a few of them."""
    import torch
    import transformers

    torch.set_num_threads(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    config = model.config
    rope = getattr(config, "rope_parameters", None) or {}
    ids = tokenizer(TEXT)["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
    ends = model.generation_config.eos_token_id
    return {
        "transformers": transformers.__version__,
        "eos_token_id": ends if isinstance(ends, list) else [ends],
        "eos_token": tokenizer.eos_token,
        "pad_token_id": model.generation_config.pad_token_id,
        "rope_theta": float(rope["rope_theta"] if "rope_theta" in rope else config.rope_theta),
        "tied": model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr(),
        "vocabulary": len(tokenizer),
        "template": tokenizer.apply_chat_template(CHAT, tokenize=False) if tokenizer.chat_template else None,
        "ids": ids,
        "logits": logits[:: max(1, len(logits) // 64)].tolist(),
    }


def probe_in(name: str, folder: Path) -> dict[str, Any]:
    """`probe` in an environment of this repository; raises UserError with its last line when it fails."""
    command = [str(environment(name) / "bin" / "python"), "-m", "launch.scoring.model_probe", "--model", str(folder)]
    variables = {**os.environ, "HF_HUB_OFFLINE": "1"}
    variables.pop("MYLLM_METRICS", None)
    result = subprocess.run(command, cwd=REPOSITORY, env=variables, capture_output=True, text=True)
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{folder} cannot be read in {environment(name).name}: {last}")
    return json.loads(result.stdout.splitlines()[-1])


def compare(folder: Path) -> dict[str, Any]:
    """The folder as transformers 4 and 5 read it, and how far their logits differ.

    Raises UserError when anything differs, or when a chat model does not end its turns.
    """
    old, new = probe_in("train", folder), probe_in("serve", folder)
    differing = [key for key in old if key not in ("transformers", "logits") and old[key] != new[key]]
    if differing:
        told = "; ".join(f"{key}: {old[key]!r} and {new[key]!r}" for key in differing)
        raise UserError(
            f"{folder} is not the same in transformers {old['transformers']} and {new['transformers']}: {told}"
        )
    written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if old["rope_theta"] != float(written["rope_theta"]):
        raise UserError(f"{folder}: rope_theta is read as {old['rope_theta']}, written as {written['rope_theta']}")
    difference = max(abs(a - b) for a, b in zip(old["logits"], new["logits"], strict=True))
    if not difference <= TOLERANCE:
        raise UserError(f"{folder}: logits of transformers 4 and 5 differ by {difference:.2g} (allowed {TOLERANCE:g})")
    same = {key: value for key, value in old.items() if key not in ("logits", "ids", "transformers")}
    return {**same, "transformers": [old["transformers"], new["transformers"]], "max_abs_diff": difference}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a Hugging Face folder")
    parser.add_argument("--across", action="store_true", help="read it in .venv and .venv-serve, and compare")
    arguments = parser.parse_args()
    if not (arguments.model / "config.json").exists():
        raise UserError(f"{arguments.model} holds no config.json: pass the folder of an exported model")
    if arguments.across:
        report_metrics(**compare(arguments.model))
    else:
        print(json.dumps(probe(arguments.model), ensure_ascii=False))


if __name__ == "__main__":
    run_main(main)
