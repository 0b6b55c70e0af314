"""What a pretraining will need and make, known before the stages that it builds on have run (`myllm check`)."""

from __future__ import annotations

import argparse
import subprocess
import sys
from typing import Any

from artifacts.layout import REPOSITORY, lock_of
from launch.pretraining.estimate import estimate
from launch.pretraining.gpus import gpu
from launch.pretraining.measured_mfu import MFU, mfu_for
from launch.pretraining.model_size import model_of, padded_vocabulary, parameters
from launch.pretraining.recipe import Layout, Recipe, get, whole

FAILED = "error: "


def facts_of(recipe: Recipe, layout: Layout, vocab: int | None) -> dict[str, Any]:
    """What later stages ask of the checkpoint: positions, iterations, parameters, whether weights are in bfloat16."""
    rows = padded_vocabulary(recipe, vocab or whole(recipe, "published-vocab-size"), layout.tensor)
    return {
        "positions": whole(recipe, "max-position-embeddings"),
        "iterations": whole(recipe, "train-iters"),
        "parameters": parameters(model_of(recipe, rows)),
        "bf16": bool(get(recipe, "bf16")),
        "gpu": get(recipe, "gpu"),
    }


def checkpoint_bytes(recipe: Recipe, size: int) -> float:
    """Bytes of one checkpoint of a model with `size` parameters: weights, their fp32 copy, Adam's two moments."""
    return size * (14.0 if get(recipe, "bf16") or get(recipe, "fp16") else 12.0)


def checkpoints_kept(recipe: Recipe) -> int:
    """The most checkpoints that lie on the disk at once: those that are kept, and the one being written."""
    iterations, interval = whole(recipe, "train-iters"), get(recipe, "save-interval")
    if not interval:
        return 1
    saves = -(-iterations // int(interval))
    last, every = get(recipe, "keep-last"), get(recipe, "keep-every")
    if last is None:
        return saves
    return min(saves, int(last) + 1 + (iterations // int(every) if every else 0))


def needs_of(
    recipe: Recipe, layout: Layout, vocab: int | None, begun: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Tokens, memory, hours and disk of the phase that begins at iteration `begun`, as for `Ahead.needs`."""
    facts = facts_of(recipe, layout, vocab)
    steps = whole(recipe, "train-iters") - begun
    tokens = float(steps * whole(recipe, "global-batch-size") * whole(recipe, "seq-length"))
    card = get(recipe, "gpu")
    mfu, source = MFU, "assumed"
    if card:
        mfu, source = mfu_for(gpu(card).name, arguments.model, arguments.hardware, facts["parameters"])
    found = estimate(recipe, tokens, vocab, mfu, mfu_source=source)
    kept = checkpoints_kept(recipe)
    needs: dict[str, Any] = {
        "tokens": tokens,
        "memory": 1e9 * found["memory_gb_per_gpu"],
        "disk": kept * checkpoint_bytes(recipe, facts["parameters"]),
        "note": f"{facts['parameters'] / 1e6:,.0f}M parameters, {steps:,} steps, {kept} checkpoints on the disk",
    }
    if found["hours"] is not None:
        needs |= {"hours": found["hours"], "gpu_hours": found["gpu_hours"], "gpus": float(layout.per_node)}
        needs["note"] += f", at {100 * mfu:.0f} % MFU ({source})"
    else:
        needs["note"] += ", hours not known without a GPU in the hardware file"
    if layout.nodes > 1:
        needs["nodes"] = float(layout.nodes)
    return needs


def wrong_environment(recipe: Recipe, hardware: str) -> str:
    """Why `.venv` cannot train with this hardware file, or "". A GPU itself may be on another machine."""
    lock = lock_of("train")
    if get(recipe, "distributed-backend") == "gloo" or not lock:
        return ""
    engine = get(recipe, "transformer-impl", "transformer_engine") == "transformer_engine"
    wanted = "gpu-te" if engine else "gpu"
    if lock == "train" or (engine and lock != "gpu-te"):
        return f"hardware {hardware} needs {wanted}.lock, but .venv is {lock}.lock's: run `make env-{wanted}`"
    return ""


def refused_by_megatron(arguments: argparse.Namespace) -> str:
    """The error of `myllm pretrain --dry-run`, whose parser is Megatron's own, or ""."""
    command = [sys.executable, "-m", "launch.pretraining.pretrain", "--dry-run", "--run", str(arguments.run)]
    for name in ("model", "training", "hardware", "phase"):
        command += [f"--{name}", getattr(arguments, name)]
    command += [word for pair in arguments.set for word in ("--set", pair)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    lines = [line.removeprefix(FAILED) for line in done.stderr.splitlines() if line.startswith(FAILED)]
    return (lines or ["Megatron's own check of the recipe failed"])[0] if done.returncode else ""
