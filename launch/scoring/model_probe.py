"""Compare how transformers 4 and 5 read an exported model: end tokens, rope, chat template, logits.

    .venv/bin/python -m launch.scoring.model_probe --model runs/r/models/dpo --across   # transformers 4 against 5
    .venv-serve/bin/python -m launch.scoring.model_probe --model runs/r/models/dpo             # one of them, as JSON

transformers 5 stores `rope_theta` under another name than 4 and writes tokenizer classes that 4 refuses. Both silently
use a default for a value that they do not find. With `--across`, `.venv` (transformers 4.57) and `.venv-serve` (5.x)
read the same folder, and the command fails if they differ. `launch.serving.gate` checks vLLM itself.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from artifacts.errors import UserError, run_main
from artifacts.layout import REPOSITORY, environment
from artifacts.stage import report_metrics

TOLERANCE = 1e-4  # largest difference of a float32 logit, whose order of summation may differ
CHAT = [{"role": "user", "content": "请介绍一下你自己。"}, {"role": "assistant", "content": "你好"}]
TEXT = "春天来了，"


def probe(folder: Path) -> dict[str, Any]:
    """What this version of transformers reads from the folder; `logits` are some of those at the last token of TEXT."""
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


def probe_in(name: str, folders: list[Path]) -> list[dict[str, Any]]:
    """Run `probe` on each folder, in one process in an environment of this repository.

    Raises:
        UserError: a folder cannot be read; the message has the process's last line.
    """
    command = [str(environment(name) / "bin" / "python"), "-m", "launch.scoring.model_probe"]
    command += [word for folder in folders for word in ("--model", str(folder))]
    variables = {**os.environ, "HF_HUB_OFFLINE": "1"}
    variables.pop("MYLLM_METRICS", None)
    result = subprocess.run(command, cwd=REPOSITORY, env=variables, capture_output=True, text=True)
    found = [json.loads(line) for line in result.stdout.splitlines() if line.startswith('{"transformers"')]
    if result.returncode or len(found) != len(folders):
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{folders[len(found)]} cannot be read in {environment(name).name}: {last}")
    return found


def compare(*folders: Path) -> list[dict[str, Any]]:
    """For each folder, what transformers 4 and 5 both read from it, and the largest difference of their logits.

    Raises:
        UserError: the two versions differ, or rope_theta is not the one in config.json.
    """
    with ThreadPoolExecutor(2) as pool:
        olds, news = pool.map(probe_in, ("train", "serve"), (list(folders), list(folders)))
    return [compare_probes(*three) for three in zip(folders, olds, news, strict=True)]


def compare_probes(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Compare the probes of one folder; see `compare`."""
    differing = [key for key in old if key not in ("transformers", "logits") and old[key] != new[key]]
    if differing:
        values = "; ".join(f"{key}: {old[key]!r} and {new[key]!r}" for key in differing)
        raise UserError(
            f"transformers {old['transformers']} and {new['transformers']} read {folder} differently: {values}"
        )
    written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if old["rope_theta"] != float(written["rope_theta"]):
        raise UserError(
            f"{folder}: config.json has rope_theta {written['rope_theta']}, but transformers reads {old['rope_theta']}"
        )
    difference = max(abs(a - b) for a, b in zip(old["logits"], new["logits"], strict=True))
    if not difference <= TOLERANCE:
        raise UserError(f"{folder}: logits of transformers 4 and 5 differ by {difference:.2g} (allowed {TOLERANCE:g})")
    same = {key: value for key, value in old.items() if key not in ("logits", "ids", "transformers")}
    return {**same, "transformers": [old["transformers"], new["transformers"]], "max_abs_diff": difference}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=Path, action="append", required=True, help="Hugging Face model folder; repeatable"
    )
    parser.add_argument("--across", action="store_true", help="read it in .venv and in .venv-serve, and compare")
    arguments = parser.parse_args()
    for folder in arguments.model:
        if not (folder / "config.json").exists():
            raise UserError(f"{folder} has no config.json: give the folder of an exported model with --model")
    if arguments.across:
        for folder, found in zip(arguments.model, compare(*arguments.model), strict=True):
            print(f"{folder}: transformers {' and '.join(found['transformers'])} read the same")
            report_metrics(**found)
    else:
        for folder in arguments.model:
            print(json.dumps(probe(folder), ensure_ascii=False), flush=True)


if __name__ == "__main__":
    run_main(main)
