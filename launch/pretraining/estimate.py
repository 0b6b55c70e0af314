"""Estimate what a pretraining run needs: parameters, memory, FLOPs, hours, cost. It runs neither torch nor Megatron.

    myllm estimate qwen2-0.5b --hardware node-8 --tokens 10B
    myllm estimate llama2-1.1b --training zh-100b --hardware cluster-4x8 --mfu 0.45 --price 2.5 --json

Speed is the GPU's peak times MFU. MFU is --mfu, else the measured value for this GPU
(`launch.pretraining.measured_mfu`), else 0.40. Memory and FLOPs follow megatron-core 0.19.2
(`training/theoretical_memory_usage.py`, `training/training.py: num_floating_point_operations`); tests compare them
with those functions.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launch.pretraining.gpus import gpu
from launch.pretraining.measured_mfu import GPU_RESULTS, MFU, mfu_for
from launch.pretraining.model_size import flops_per_token, memory, model_of, parameters
from launch.pretraining.recipe import Recipe, get, layout_of, load_recipe, names, whole

GB = 1e9


def estimate(
    recipe: Recipe,
    tokens: float | None = None,
    vocab: int | None = None,
    mfu: float = MFU,
    price: float | None = None,
    card: str | None = None,
    mfu_source: str = "assumed",
) -> dict[str, Any]:
    """The values that `myllm estimate` prints.

    Args:
        tokens: tokens to train on; default: iterations x batch x sequence length of the recipe.
        vocab: rows of the embedding; default: those of the published model.
        mfu: model FLOPs utilisation, 0-1.
        price: price of a GPU-hour in any currency; if None, `cost` is None.
        card: a GPU in launch/pretraining/gpus.yaml; default: the hardware file's. On a CPU, time and cost are None.
        mfu_source: where `mfu` comes from, as text.
    """
    layout, model = layout_of(recipe), model_of(recipe, vocab)
    found = get(recipe, "gpu") if card is None else card
    known = gpu(found) if found else None
    sequence, batch = whole(recipe, "seq-length"), whole(recipe, "global-batch-size")
    total = tokens if tokens is not None else whole(recipe, "train-iters") * sequence * batch
    per_token = flops_per_token(model, sequence)
    parts = memory(recipe, model, layout)
    rate = mfu * known.peak_tflops * 1e12 * layout.world / per_token if known else None
    hours = total / rate / 3600 if rate else None
    gpu_hours = hours * layout.world if hours is not None else None
    width = 2 if get(recipe, "bf16") or get(recipe, "fp16") else 4
    return {
        "parameters": parameters(model),
        "vocab_size": model.vocab,
        "tokens": int(total),
        "tokens_per_parameter": total / parameters(model),
        "iterations": -(-int(total) // (sequence * batch)),
        "layout": {
            "tensor": layout.tensor,
            "data": layout.data,
            "pipeline": layout.pipeline,
            "processes": layout.world,
        },
        "gpu": asdict(known) if known else None,
        "recompute": get(recipe, "recompute-granularity"),
        "memory_gb_per_gpu": parts.total / GB,
        "memory_gb_by_part": {name: value / GB for name, value in asdict(parts).items()},
        # the loss also holds the logits in fp32 for a moment: this peak is what runs out of memory first
        "loss_peak_gb": parts.logits / width * 4 / GB,
        "flops_per_token": per_token,
        "flops": per_token * total,
        "mfu_assumed": mfu if known else None,
        "mfu_source": mfu_source if known else None,
        "tokens_per_second": rate,
        "hours": hours,
        "gpu_hours": gpu_hours,
        "cost": gpu_hours * price if gpu_hours is not None and price is not None else None,
    }


def table(found: dict[str, Any]) -> str:
    """The estimate as a table of text."""
    layout, card = found["layout"], found["gpu"]
    rows = [
        ("parameters", f"{found['parameters']:,}  (vocabulary {found['vocab_size']:,})"),
        (
            "tokens",
            f"{found['tokens']:,}  ({found['tokens_per_parameter']:.1f} per parameter, {found['iterations']:,} steps)",
        ),
        (
            "layout",
            f"TP {layout['tensor']} x DP {layout['data']} x PP {layout['pipeline']} = {layout['processes']} processes",
        ),
        ("memory per GPU", f"{found['memory_gb_per_gpu']:.2f} GB" + (f" of {card['memory_gb']} GB" if card else "")),
        *((f"  {part}", f"{value:.2f} GB") for part, value in found["memory_gb_by_part"].items()),
        ("  + while the loss is computed", f"{found['loss_peak_gb']:.2f} GB, the logits in fp32"),
        ("FLOPs", f"{found['flops']:.3e}  ({found['flops_per_token']:.3e} per token)"),
    ]
    if card:
        speed = f"at an MFU of {100 * found['mfu_assumed']:.1f} %, {found['mfu_source']}"
        rows += [
            ("peak", f"{card['peak_tflops']} TFLOP/s per GPU, dense bf16 ({card['name']})"),
            ("tokens/s", f"{found['tokens_per_second']:,.0f}  {speed}"),
            ("hours", f"{found['hours']:,.1f}"),
            ("GPU-hours", f"{found['gpu_hours']:,.1f}"),
        ]
        if found["cost"] is not None:
            rows.append(("cost", f"{found['cost']:,.2f}"))
    else:
        rows.append(("time", "not estimated: the hardware file names no gpu; give one with --gpu"))
    lines = [f"{name:<32}{value}" for name, value in rows]
    if card and found["memory_gb_per_gpu"] + found["loss_peak_gb"] > card["memory_gb"]:
        ways = ["halve micro-batch-size", "use a smaller vocabulary"]
        if not found["recompute"]:
            ways.insert(
                1,
                "--set recompute-granularity=full --set recompute-method=uniform --set recompute-num-layers=1",
            )
        lines.append(f"It does not fit into {card['memory_gb']} GB: {', or '.join(ways)}.")
    return "\n".join(lines)


def count(text: str) -> float:
    """Parse a number of tokens: 10B, 300M, 1.5e10."""
    factor = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}.get(text[-1:].upper())
    try:
        value = float(text[:-1]) * factor if factor else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of tokens; write 10B, 300M or 1e10") from None
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} must be above zero")
    return value


def share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1; write 0.4 for 40 %")
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe", metavar="MODEL", help=f"a file in megatron_configs/models/: {', '.join(names('models'))}"
    )
    parser.add_argument("--training", default="zh-10b", help="a file in megatron_configs/training/ (default zh-10b)")
    parser.add_argument(
        "--hardware", required=True, help=f"a file in megatron_configs/hardware/: {', '.join(names('hardware'))}"
    )
    parser.add_argument("--tokens", type=count, help="tokens to train on, e.g. 10B (default: the training file's)")
    parser.add_argument("--vocab-size", type=int, help="rows of the embedding (default: the published model's)")
    parser.add_argument(
        "--mfu",
        type=share,
        help=f"model FLOPs utilisation, 0-1 (default: measured in benchmarks/gpu.json, else {MFU})",
    )
    parser.add_argument("--gpu", help="a GPU in launch/pretraining/gpus.yaml (default: the hardware file's)")
    parser.add_argument("--price", type=float, help="price of a GPU-hour; prints the cost")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="replace a key of the recipe")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(given: argparse.Namespace, results: Path | None = None) -> None:
    """Print the estimate; tests pass `results` in place of benchmarks/gpu.json."""
    recipe = load_recipe(given.recipe, given.training, given.hardware, given.set)
    card = given.gpu or get(recipe, "gpu")
    mfu, source = given.mfu or MFU, "given with --mfu"
    if given.mfu is None and card:
        size = parameters(model_of(recipe, given.vocab_size))
        mfu, source = mfu_for(gpu(card).name, given.recipe, given.hardware, size, results or GPU_RESULTS)
    found = estimate(recipe, given.tokens, given.vocab_size, mfu, given.price, given.gpu, source)
    print(json.dumps(found, indent=2) if given.json else table(found))
