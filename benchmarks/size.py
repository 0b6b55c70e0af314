"""Take published shapes through every kind of stage on a CPU, and measure seconds, memory and gates of each.

    make proof-size                                       # both, about 45 minutes on two cores: benchmarks/size.md
    python -m benchmarks.size --model qwen2-0.5b --output /tmp/size.md

Each model is run by the pipeline benchmarks/size.yaml, with a few steps a stage, into runs/size-MODEL; finished stages
are kept, so a run that was stopped goes on. Peak memory is that of all processes of a stage together.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.command import main
from artifacts.errors import UserError
from artifacts.files import read_json, write_text
from artifacts.layout import REPOSITORY, Run
from launch.pipeline.runner import read_manifest
from launch.pretraining.model_size import model_of, parameters
from launch.pretraining.recipe import load_recipe

PIPELINE = "benchmarks/size.yaml"
SHOWN = ("pretrain", "convert", "sft_lora", "merge", "dpo", "serve", "score")


@dataclass(frozen=True)
class Shape:
    """A model file, and how it is run: rows of the embedding, style of the tokenizer, layers of the first stage."""

    model: str
    rows: int
    style: str
    first: int


SHAPES = (Shape("qwen2-0.5b", 151936, "qwen2", 13), Shape("llama2-1.1b", 32000, "llama2", 12))


def run_shape(shape: Shape) -> Run:
    """Run the pipeline for a shape. Raises UserError if a stage fails, after it has printed why."""
    run = Run(REPOSITORY / "runs" / f"size-{shape.model}")
    values = {"model": shape.model, "rows": shape.rows, "style": shape.style, "first": shape.first}
    command = [sys.executable, "-m", "launch.cli", "run", PIPELINE, "--run-folder", str(run.folder)]
    command += [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
    if subprocess.run(command, cwd=REPOSITORY).returncode:
        raise UserError(f"{shape.model}: a stage failed (above); after it is mended, the same command goes on there")
    return run


def shown(metrics: dict[str, Any]) -> str:
    """The gates of a stage, and what else says how it went."""
    parts = [f"{name}: {result}" for name, result in metrics.get("gates", {}).items()]
    if "curves" in metrics:
        steps = [value / 1000 for _, value in metrics["curves"]["milliseconds"][1:]]
        parts.append(f"{sum(steps) / len(steps):.1f} s a step of {metrics['tokens_per_step']:,} tokens")
    return "; ".join(parts) or "runs"


def table(shape: Shape, run: Run) -> str:
    """A section of the page: the model, and a row for each stage."""
    counted = parameters(model_of(load_recipe(shape.model, "zh-10b", "cpu"), shape.rows))
    lines = [f"## {shape.model}: {counted:,} parameters, vocabulary {shape.rows:,}", ""]
    lines += ["| stage | seconds | peak memory, GB | gates |", "|---|---|---|---|"]
    total = peak = 0.0
    for name in read_json(run.folder / "pipeline.json")["stages"]:
        manifest = read_manifest(run, name)
        if manifest is None:
            continue
        total, peak = total + manifest.seconds, max(peak, manifest.peak_memory_mb)
        if name in SHOWN:
            memory = manifest.peak_memory_mb / 1024
            lines.append(f"| {name} | {manifest.seconds:,.0f} | {memory:.1f} | {shown(manifest.metrics)} |")
    lines.append(f"| **all stages** | {total:,.0f} ({total / 60:.1f} min) | {peak / 1024:.1f} | |")
    return "\n".join(lines)


def machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores, {memory:.0f} GiB of memory, no GPU, Python {platform.python_version()}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    names = [shape.model for shape in SHAPES]
    parser.add_argument("--model", choices=names, action="append", help="only this model; repeatable (default: all)")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "benchmarks" / "size.md")


def run(arguments: argparse.Namespace) -> None:
    chosen = [shape for shape in SHAPES if shape.model in (arguments.model or [shape.model])]
    page = [
        "# Published shapes on a CPU",
        "",
        f"Made by `make proof-size` (`python -m benchmarks.size`; its stages: {PIPELINE}): {machine()}. "
        "float32, made-up text, a tokenizer of 1,024 entries, an embedding with the published rows, a few steps each. "
        "It shows that every stage works at this size and what it needs, not that a model learns.",
    ]
    for shape in chosen:
        page += ["", table(shape, run_shape(shape))]
        write_text(arguments.output, "\n".join(page) + "\n")
        print(page[-1], flush=True)


if __name__ == "__main__":
    main(__name__)
