"""Compare the launcher with bare Megatron, and PyTorch's attention with Megatron's unfused one: `make bench-pretrain`.

    python -m benchmarks.pretrain                       # both tables, into benchmarks/pretrain.md
    python -m benchmarks.pretrain --rounds 7 --only launcher

Launcher: the demo's recipe runs with `launch.pretraining.pretrain` and with `benchmarks/bare_megatron.py` with the same
flags, in turn, so that a slow minute of the machine affects both. Each round compares the two medians; the table has
the median of the rounds. Attention: one process, one sequence per step, both kinds in turn. Peak memory is the rank's
`ru_maxrss`, minus that of a run at the shortest length.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from artifacts.errors import UserError, run_main
from artifacts.files import write_text
from artifacts.layout import REPOSITORY, Run
from benchmarks.machine import describe
from benchmarks.made_up_data import make_run
from launch.pretraining import pretrain
from launch.pretraining.recipe import flags, layout_of, load_recipe
from launch.pretraining.training_log import read_history

RESULTS = REPOSITORY / "benchmarks" / "pretrain.md"
WARM_UP = 10  # steps that are not counted
STEPS = 60
LENGTHS = (512, 1024, 2048, 4096)
UNFUSED_LENGTHS = (512, 1024, 2048)  # the unfused attention is not measured at 4096
ATTENTION_STEPS = 14
ATTENTION_WARM_UP = 4
ONE = ("nproc-per-node=1", "pipeline-model-parallel-size=1", "decoder-first-pipeline-num-layers=null")
UNFUSED = ("spec=null", "no-create-attention-mask-in-dataloader=null")
SETTINGS = ("log-interval=1", "save-interval=100000", "eval-interval=100000", "eval-iters=1")


@dataclass(frozen=True)
class Measured:
    milliseconds: float  # median step
    loss: float  # of the last step
    peak_mb: float  # of the largest process


def measure(command: list[str], log: Path, warm_up: int) -> Measured:
    """Run a training and read its steps from the log. Raises UserError if it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_DEVICE_MAX_CONNECTIONS": "1", "PYTHONWARNINGS": "ignore"}
    with log.open("wb") as stream:
        process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=stream, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise UserError(f"{' '.join(command[:4])} … failed: see {log}")
    history = read_history(log)
    times = [y for x, y in history["milliseconds"] if x > warm_up]
    return Measured(statistics.median(times), history["loss"][-1][1], usage.ru_maxrss / 1024)


def launcher(rounds: int, work: Path) -> list[str]:
    """Measure the launcher's overhead. Returns the lines of its section."""
    ours, bare, ratios = [], [], []
    keys = (*SETTINGS, f"train-iters={STEPS}")
    for number in range(rounds):
        for kind in ("ours", "bare") if number % 2 == 0 else ("bare", "ours"):
            run = make_run(work / f"{kind}-{number}")
            recipe = load_recipe("qwen2-tiny", "demo", "cpu", keys)
            if kind == "ours":
                sets = [part for key in keys for part in ("--set", key)]
                command = [
                    sys.executable,
                    "-m",
                    "launch.pretraining.pretrain",
                    "--model",
                    "qwen2-tiny",
                    "--training",
                    "demo",
                ]
                ours.append(measure([*command, "--run", str(run), *sets], work / "ours.log", WARM_UP))
            else:
                torchrun = pretrain.torchrun(layout_of(recipe), 0, None)
                command = [*torchrun[:-1], "benchmarks/bare_megatron.py", *flags(recipe), *pretrain.run_flags(Run(run))]
                bare.append(measure(command, work / "bare.log", WARM_UP))
        ratios.append(ours[-1].milliseconds / bare[-1].milliseconds)
        print(f"round {number + 1}/{rounds}: launcher / bare {ratios[-1]:.4f}", flush=True)
    if len({measured.loss for measured in (*ours, *bare)}) != 1:
        raise UserError("the launcher and bare Megatron end with different losses, so their flags or data differ")
    mine = statistics.median(m.milliseconds for m in ours)
    theirs = statistics.median(m.milliseconds for m in bare)
    return [
        f"## The launcher's cost\n\nThe demo's recipe, {STEPS} steps of which the first {WARM_UP} do not count, "
        f"{rounds} rounds in turn; the losses of all runs are equal in every printed digit ({ours[0].loss}).\n",
        "| | median step, ms |\n|---|---|",
        f"| bare `megatron.training.pretrain()` | {theirs:.1f} |",
        f"| `myllm pretrain` | {mine:.1f} |\n",
        f"Ratio of a round: median **{statistics.median(ratios):.4f}**, from {min(ratios):.4f} to {max(ratios):.4f} "
        "(bar: 1.01).\n",
    ]


def attention(rounds: int, work: Path) -> list[str]:
    """Compare SDPA with the unfused attention. Returns the lines of its section."""
    found: dict[tuple[str, int], list[Measured]] = {}
    for number in range(rounds):
        for length in LENGTHS:
            for kind in ("sdpa", "unfused"):
                if kind == "unfused" and length not in UNFUSED_LENGTHS:
                    continue
                run = make_run(work / f"{kind}-{length}-{number}")
                keys = (*SETTINGS, *ONE, *(UNFUSED if kind == "unfused" else ()))
                keys += (f"train-iters={ATTENTION_STEPS}", f"seq-length={length}", "global-batch-size=1")
                keys += (f"max-position-embeddings={length}", "micro-batch-size=1", "lr=1e-4", "min-lr=1e-5")
                recipe = load_recipe("qwen2-tiny", "demo", "cpu", keys)
                torchrun = pretrain.torchrun(layout_of(recipe), 0, None)
                command = [*torchrun[:-1], "benchmarks/bare_megatron.py", *flags(recipe), *pretrain.run_flags(Run(run))]
                measured = measure(command, work / f"{kind}.log", ATTENTION_WARM_UP)
                found.setdefault((kind, length), []).append(measured)
                print(f"{kind} {length}: {measured.milliseconds:.0f} ms, {measured.peak_mb:.0f} MB", flush=True)
    step = {key: statistics.median(m.milliseconds for m in values) for key, values in found.items()}
    peak = {key: statistics.median(m.peak_mb for m in values) for key, values in found.items()}
    base = {kind: peak[kind, LENGTHS[0]] for kind in ("sdpa", "unfused")}
    worst = max(
        abs(a.loss - b.loss) / b.loss
        for length in UNFUSED_LENGTHS
        for a, b in zip(found["sdpa", length], found["unfused", length], strict=True)
    )
    rows = [
        "## Attention\n\nqwen2-tiny (4 layers, 4 heads of 32), one process, one sequence a step. Memory: what a "
        f"process holds at its peak more than at {LENGTHS[0]} tokens. The last losses of both kinds differ by at most "
        f"{worst:.1e} of themselves.\n",
        "| tokens | SDPA, ms | unfused, ms | times as fast | SDPA, MB more | unfused, MB more |",
        "|---|---|---|---|---|---|",
    ]
    for length in LENGTHS:
        mine, memory = step["sdpa", length], peak["sdpa", length] - base["sdpa"]
        if length in UNFUSED_LENGTHS:
            theirs, other = step["unfused", length], peak["unfused", length] - base["unfused"]
            rows.append(f"| {length} | {mine:.0f} | {theirs:.0f} | {theirs / mine:.2f} | {memory:.0f} | {other:.0f} |")
        else:
            rows.append(f"| {length} | {mine:.0f} | | | {memory:.0f} | |")
    grown = [(peak["sdpa", b] - peak["sdpa", a]) / (b - a) * 1024 for a, b in zip(LENGTHS[:-1], LENGTHS[1:])]
    rows.append(
        f"\nSDPA's memory for each 1,024 tokens more: {', '.join(f'{g:.0f}' for g in grown)} MB: linear where these "
        "agree (bars: linear; at 2,048 tokens 1.5 times as fast).\n"
    )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the launcher's comparison (default 5)")
    parser.add_argument(
        "--attention-rounds", type=int, default=1, help="rounds of the attention's comparison (default 1)"
    )
    parser.add_argument(
        "--only", choices=("launcher", "attention"), help="make only this table; print it, do not write it"
    )
    given = parser.parse_args()
    rows = [
        "# Pretraining: measured on a CPU\n\nMade by `make bench-pretrain`. On a GPU: `make proof-gpu` "
        "(benchmarks/gpu.md, where it has been run).\n",
        describe("torch", "megatron-core") + "\n",
    ]
    with tempfile.TemporaryDirectory() as folder:
        if given.only != "attention":
            rows += launcher(given.rounds, Path(folder))
        if given.only != "launcher":
            rows += attention(given.attention_rounds, Path(folder))
    print("\n".join(rows))
    if not given.only:
        write_text(RESULTS, "\n".join(rows))


if __name__ == "__main__":
    run_main(main)
