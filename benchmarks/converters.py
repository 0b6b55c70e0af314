"""Compare conversion with `cp` of the same bytes on the same disk; measure its peak memory: `make bench-converters`.

    python -m benchmarks.converters --model qwen2-1.5b

A random model of the published shape is written as a Megatron checkpoint with the vocabulary rows in two pieces, as two
tensor-parallel ranks save them. Then four steps run in turn: `cp` of it, export to Hugging Face, `cp` of that, import
back. Each step is a separate process and ends with fsync. The times do not include the forward passes of the parity
check.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import time
from math import prod
from pathlib import Path
from typing import Any

from artifacts.errors import UserError, run_main
from artifacts.layout import REPOSITORY
from artifacts.vocabulary import padded_size
from converters import architectures, checkpoint, export, families, import_hf, plan
from converters.rules import Shape

SHAPES = {
    "qwen2-0.5b": Shape(24, 896, 4864, 14, 2, 64, 151936, 32768, 1e6, 1e-6, True, True),
    "qwen2-1.5b": Shape(28, 1536, 8960, 12, 2, 128, 151936, 32768, 1e6, 1e-6, True, True),
    "llama2-1.1b": Shape(22, 2048, 5632, 32, 4, 64, 32000, 2048, 1e4, 1e-5, False, False),
}
RANKS = 2  # pieces of the vocabulary rows
STEPS = (
    ("cp of the checkpoint", "cp", "checkpoint", "copy"),
    ("export to Hugging Face", "export", "checkpoint", "exported"),
    ("cp of the folder", "cp", "exported", "copy"),
    ("import to Megatron", "import", "exported", "imported"),
)


def make_checkpoint(shape: Shape, adapter: Any, folder: Path, dtype: str) -> None:
    """Write a random checkpoint. One piece is in memory at a time."""
    import torch

    padded = padded_size(shape.vocab, import_hf.DIVISIBLE_BY, RANKS)
    sizes = plan.megatron_shapes(adapter, shape, padded)
    torch.manual_seed(0)
    with checkpoint.Writer(folder / "iter_0000001", sizes, dtype) as writer:
        for name, size in sizes.items():
            stacked = name.startswith(plan.LAYER_PREFIX)
            rest = size[1:] if stacked else size
            parts = RANKS if not stacked and len(rest) == 2 else 1
            for layer in range(size[0]) if stacked else (None,):
                for part in range(parts):
                    rows = rest[0] // parts
                    piece = torch.empty(rows, *rest[1:], dtype=getattr(torch, dtype)).normal_(0, 0.02)
                    writer.write(name, piece, layer, row=part * rows)
        described = families.megatron_arguments(shape, padded, import_hf.DIVISIBLE_BY, RANKS)
        writer.write_object(checkpoint.COMMON, {"args": argparse.Namespace(**described), "iteration": 1})
    (folder / checkpoint.LATEST).write_text("1")


def sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


def copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    sync(target)


def export_weights(source: Path, target: Path) -> None:
    """`converters.export` without tokenizer and forward passes."""
    iteration = checkpoint.latest_iteration(source)
    arguments = checkpoint.arguments(iteration)
    adapter = architectures.adapter_of_arguments(arguments)
    shape = families.shape_of_arguments(arguments, arguments.vocab_size, adapter.FLAGS)
    opened = checkpoint.Checkpoint(iteration)
    target.mkdir()
    export.write_weights(opened, adapter, shape, target)
    export.write_description(target, adapter, shape, {"begin": None, "end": 0}, opened.dtype)
    sync(target)


def import_weights(source: Path, target: Path) -> None:
    """`converters.import_hf` without forward passes."""

    class NoGate:
        prompt_ids = megatron_logits = hugging_face_logits = staticmethod(lambda *_: [])
        compare = staticmethod(lambda *_: {"passed": True})

    import_hf.parity = NoGate  # type: ignore[assignment, misc]
    import_hf.import_folder(source, target, import_hf.DIVISIBLE_BY, RANKS)


def act(action: str, source: Path, target: Path) -> None:
    """Run one step and print its seconds and the process's peak resident memory in MB."""
    import torch  # noqa: F401  # do not time the import

    began = time.perf_counter()
    {"export": export_weights, "import": import_weights, "cp": copy}[action](source, target)
    seconds = time.perf_counter() - began
    peak = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
    print(seconds, int(peak) * 1024 / 1e6)


def measure(action: str, source: Path, target: Path) -> tuple[float, float]:
    shutil.rmtree(target, ignore_errors=True)
    command = [sys.executable, "-m", "benchmarks.converters", "--action", action, str(source), str(target)]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    if result.returncode != 0:
        raise UserError(f"{action} failed: {result.stderr.strip().splitlines()[-1]}")
    seconds, peak = result.stdout.strip().splitlines()[-1].split()
    return float(seconds), float(peak)


def table(found: dict[str, list[tuple[float, float]]], sizes: dict[str, int], largest: int) -> str:
    """Markdown table. A conversion's rate is compared with that of the `cp` before it, by medians of all rounds."""
    lines = ["| step | GB | seconds | of cp's rate | peak memory, MB | bar, MB |", "|---|---|---|---|---|---|"]
    reference = 0.0
    for name, runs in found.items():
        seconds = sorted(seconds for seconds, _ in runs)[len(runs) // 2]
        begins = f"| {name} | {sizes[name] / 1e9:.2f} | {seconds:.1f} |"
        if name.startswith("cp"):
            reference = seconds
            lines.append(f"{begins} 1 | | |")
        else:
            peak, bar = max(peak for _, peak in runs), 1.3 * largest / 1e6 + 1000
            lines.append(f"{begins} {reference / seconds:.2f} | {peak:.0f} | {bar:.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, default="qwen2-1.5b")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/bench-converters"), help="folder on the disk to measure"
    )
    parser.add_argument("--rounds", type=int, default=3, help="repetitions; the table has the medians")
    parser.add_argument("--action", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.action:
        act(asked.action[0], Path(asked.action[1]), Path(asked.action[2]))
        return
    import torch

    shape = SHAPES[asked.model]
    adapter = architectures.adapter("qwen2" if shape.qkv_bias else "llama2")
    work: Path = asked.work.resolve()
    shutil.rmtree(work, ignore_errors=True)
    (work / "checkpoint").mkdir(parents=True)
    try:
        print(f"writing a random {asked.model} in {asked.dtype}", flush=True)
        make_checkpoint(shape, adapter, work / "checkpoint", asked.dtype)
        sync(work / "checkpoint")
        found: dict[str, list[tuple[float, float]]] = {name: [] for name, *_ in STEPS}
        for count in range(1, asked.rounds + 1):
            for name, action, source, target in STEPS:
                seconds, peak = measure(action, work / source, work / target)
                if target not in (later for *_, later, _ in STEPS):
                    shutil.rmtree(work / target)  # unused files would fill the page cache
                found[name].append((seconds, peak))
                print(f"round {count}/{asked.rounds}: {name}: {seconds:.1f} s, {peak:.0f} MB", flush=True)
        sizes = {
            name: sum(path.stat().st_size for path in (work / source).rglob("*") if path.is_file())
            for name, _, source, _ in STEPS
        }
        itemsize = getattr(torch, asked.dtype).itemsize
        largest = max(map(prod, dict(plan.hugging_face_entries(adapter, shape)).values())) * itemsize
        parameters = sum(prod(size) for _, size in plan.hugging_face_entries(adapter, shape))
        print(f"\n{asked.model}, {parameters:,} parameters, {asked.dtype}, largest tensor {largest / 1e6:.0f} MB;")
        print(f"{os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}.\n")
        print(table(found, sizes, largest))
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    run_main(main)
