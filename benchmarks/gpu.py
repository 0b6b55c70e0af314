"""Pretraining speed on GPUs: tokens/s, TFLOP/s, MFU with the peak it assumes, memory: `make bench-gpu`.

    python -m benchmarks.gpu                                          # qwen2-0.5b and llama2-1.1b, 50 steps each
    python -m benchmarks.gpu --run runs/mine                          # and on that run's real tokens
    python -m benchmarks.gpu --model qwen2-0.5b --hardware gpu-1-80gb-te
    python -m benchmarks.gpu --model qwen2-tiny --training demo --hardware cpu --steps 8   # tries the script itself

Made-up tokens run through bare Megatron (`benchmarks/bare_megatron.py --mock-data`), real ones through
`launch.pretrain`. A hardware file with Transformer Engine's layers is left out, and said so, where it is not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from artifacts.errors import UserError, run_main
from artifacts.files import write_text
from artifacts.layout import REPOSITORY, Run
from benchmarks.machine import describe
from launch import estimate, pretrain
from launch.recipe import flags, get, layout_of, load_recipe, whole
from launch.training_log import read_history

MEMORY = re.compile(r"max allocated: ([\d.]+)")
MODELS = ("qwen2-0.5b", "llama2-1.1b")
MACHINES = ("gpu-1-80gb", "gpu-1-80gb-te")
RESULTS = REPOSITORY / "benchmarks" / "gpu.md"


def train(command: list[str], log: Path) -> None:
    """Run a training, its output into `log`; UserError with the log's end when it fails."""
    environment = {**os.environ, "CUDA_DEVICE_MAX_CONNECTIONS": "1", "PYTHONWARNINGS": "ignore"}
    with log.open("wb") as stream:
        code = subprocess.run(
            command, cwd=REPOSITORY, env=environment, stdout=stream, stderr=subprocess.STDOUT
        ).returncode
    if code:
        tail = " | ".join(log.read_text(errors="replace").strip().splitlines()[-3:])
        raise UserError(f"{' '.join(command[:3])} … failed ({tail}): see {log}")


def measure(model: str, training: str, hardware: str, steps: int, run: Path | None, sets: list[str], work: Path) -> Any:
    """One row: median step of the second half, and what follows from it."""
    fixed: tuple[str, ...] = (f"train-iters={steps}", "log-interval=1", "save-interval=100000", "eval-iters=0")
    if get(load_recipe(model, training, hardware), "lr-warmup-iters"):
        fixed = (*fixed, f"lr-warmup-iters={max(1, steps // 10)}")
    recipe = load_recipe(model, training, hardware, (*fixed, *sets))
    layout = layout_of(recipe)
    folder, log = work / f"{model}-{hardware}-{'real' if run else 'mock'}", work / "train.log"
    if run:
        folder.mkdir(parents=True)
        for part in ("tokenizer", "dataset"):  # a dataset may be very large
            (folder / part).symlink_to(run.resolve() / part)
        rows = pretrain.vocabulary(Run(folder))
        options = [part for key in (*fixed, *sets) for part in ("--set", key)]
        command = [sys.executable, "-m", "launch.pretrain", "--model", model, "--training", training]
        command += ["--hardware", hardware, "--run", str(folder), *options]
    else:
        folder.mkdir(parents=True)
        rows = whole(recipe, "published-vocab-size")
        torchrun = pretrain.torchrun(layout, 0, None)
        made_up = ["--mock-data", "--tokenizer-type", "NullTokenizer", "--vocab-size", str(rows - 1)]
        command = [*torchrun[:-1], "benchmarks/bare_megatron.py", *flags(recipe), *made_up]
    train(command, log)
    history = read_history(log)
    times = [y for x, y in history["milliseconds"] if x > steps // 2]
    milliseconds = statistics.median(times)
    tokens = whole(recipe, "global-batch-size") * whole(recipe, "seq-length")
    padded = estimate.padded_vocabulary(recipe, rows, layout.tensor)
    work_done = tokens * estimate.flops_per_token(estimate.model_of(recipe, padded), whole(recipe, "seq-length"))
    teraflops = work_done / (milliseconds / 1000) / layout.world / 1e12
    card = get(recipe, "gpu")
    peak = estimate.gpu(card).peak_tflops if card else None
    memory = max((float(m) for m in MEMORY.findall(log.read_text(errors="replace"))), default=0.0)
    return {
        "model": model,
        "hardware": hardware,
        "tokens": "real" if run else "made up",
        "milliseconds": milliseconds,
        "tokens_per_second": tokens / milliseconds * 1000,
        "tflops_per_gpu": teraflops,
        "peak_assumed": peak,
        "mfu_percent": 100 * teraflops / peak if peak else None,
        "memory_gb": memory / 1024,
        "first_loss": history["loss"][0][1],
        "last_loss": history["loss"][-1][1],
    }


def table(rows: list[dict[str, Any]], left_out: list[str], steps: int) -> str:
    lines = [
        f"# Pretraining on a GPU: measured\n\nMade by `make bench-gpu`; {steps} steps, median of the second half.\n",
        describe("torch", "megatron-core") + "\n",
        "| model | hardware file | tokens | ms a step | tokens/s | TFLOP/s a GPU | peak assumed | MFU | GB | loss |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        mfu = "" if row["mfu_percent"] is None else f"{row['mfu_percent']:.1f} %"
        lines.append(
            f"| {row['model']} | {row['hardware']} | {row['tokens']} | {row['milliseconds']:.0f} | "
            f"{row['tokens_per_second']:,.0f} | {row['tflops_per_gpu']:.4g} | {row['peak_assumed'] or ''} | {mfu} | "
            f"{row['memory_gb']:.1f} | {row['first_loss']:.2f} → {row['last_loss']:.2f} |"
        )
    return "\n".join([*lines, "", *(f"Left out: {reason}." for reason in left_out)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help=f"may be repeated (default {' and '.join(MODELS)})")
    parser.add_argument("--training", default="zh-10b", help="a file of megatron_configs/training/ (default zh-10b)")
    parser.add_argument("--hardware", action="append", help=f"may be repeated (default {' and '.join(MACHINES)})")
    parser.add_argument("--steps", type=int, default=50, help="default 50")
    parser.add_argument("--run", type=Path, help="a run with tokenizer/ and dataset/, to train on real tokens as well")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="replace a key of the recipe")
    parser.add_argument("--json", type=Path, help="write the rows there too")
    given = parser.parse_args()
    rows, left_out = [], []
    with tempfile.TemporaryDirectory() as work:
        for hardware in given.hardware or MACHINES:
            recipe = load_recipe((given.model or MODELS)[0], given.training, hardware, given.set)
            if get(recipe, "transformer-impl") == "transformer_engine" and not importlib.util.find_spec(
                "transformer_engine"
            ):
                left_out.append(f"{hardware}: Transformer Engine is not installed")
                continue
            for model in given.model or MODELS:
                for run in (None, given.run) if given.run else (None,):
                    rows.append(measure(model, given.training, hardware, given.steps, run, given.set, Path(work)))
                    print(json.dumps(rows[-1]), flush=True)
    text = table(rows, left_out, given.steps)
    print(text)
    if given.json:
        write_text(given.json, json.dumps(rows, indent=2))
    if rows and rows[0]["peak_assumed"]:
        write_text(RESULTS, text)


if __name__ == "__main__":
    run_main(main)
