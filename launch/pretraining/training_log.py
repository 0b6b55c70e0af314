"""Read Megatron's log: the curves of a run, and the check of its losses."""

from __future__ import annotations

import math
import re
from pathlib import Path

from artifacts.errors import UserError

FIRST_LOSS_TOLERANCE = 0.05  # share of ln(vocabulary)
CURVES = ("loss", "milliseconds", "grad_norm", "learning_rate", "tflops", "valid")

ITERATION = re.compile(
    r"iteration +(\d+)/ *(\d+) \|.*?per iteration \(ms\): ([\d.]+) \|.*?lm loss: ([\d.E+-]+|nan|inf) \|"
    r".*?grad norm: ([\d.]+|nan|inf)"
)
VALIDATION = re.compile(r"validation loss at iteration (\d+)(?: on validation set)? \| lm loss value: ([\d.E+-]+)")
RATE = re.compile(r"learning rate: ([\d.E+-]+)")
THROUGHPUT = re.compile(r"throughput per GPU \(TFLOP/s/GPU\): ([\d.]+)")

History = dict[str, list[list[float]]]


def log_of(checkpoints: Path, node: int = 0) -> Path:
    """The log file of a machine. Megatron prints iterations on the last rank, so on the last machine."""
    return checkpoints / "megatron.log" if node == 0 else checkpoints.parent / f"megatron.node-{node}.log"


def logs_of(checkpoints: Path) -> list[Path]:
    """The logs of all machines that took part in a run."""
    return [
        log for log in (log_of(checkpoints), *sorted(checkpoints.parent.glob("megatron.node-*.log"))) if log.exists()
    ]


def read_history(*logs: Path) -> History:
    """Curves `[iteration, value]`: loss, validation loss, gradient norm, ms per step, learning rate, TFLOP/s per GPU.

    A resumed run logs some iterations twice; the later line counts.
    """
    curves: dict[str, dict[int, float]] = {name: {} for name in CURVES}
    for log in logs:
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            if match := ITERATION.search(line):
                iteration = int(match[1])
                curves["milliseconds"][iteration] = float(match[3])
                curves["loss"][iteration] = float(match[4])
                curves["grad_norm"][iteration] = float(match[5])
                for name, pattern in (("learning_rate", RATE), ("tflops", THROUGHPUT)):
                    if found := pattern.search(line):
                        curves[name][iteration] = float(found[1])
            elif match := VALIDATION.search(line):
                curves["valid"][int(match[1])] = float(match[2])
    return {name: [[x, y] for x, y in sorted(points.items())] for name, points in curves.items()}


def first_loss_fault(loss: float, vocabulary: int) -> str:
    """Why a first loss (nats) is not that of an untrained model, or "" if it is."""
    uniform = math.log(vocabulary)
    if abs(loss - uniform) <= FIRST_LOSS_TOLERANCE * uniform:
        return ""
    return (
        f"the first loss is {loss:.3f}, not near ln(vocabulary) = {uniform:.3f}: "
        "tokenizer and dataset do not belong together, or the initialisation is wrong"
    )


def check_learning(history: History, vocabulary: int, from_scratch: bool = True) -> None:
    """Check that every loss is finite and, for a run from scratch, that the first loss is near ln(vocabulary).

    Raises:
        UserError: one of the two checks fails.
    """
    losses = history["loss"]
    if not losses:
        raise UserError("Megatron logged no iteration: read checkpoints/megatron.log in the run's folder")
    first_iteration, first = losses[0]
    if first_iteration == 1 and from_scratch and (fault := first_loss_fault(first, vocabulary)):
        raise UserError(fault)
    bad = next((iteration for iteration, loss in losses if not math.isfinite(loss)), None)
    if bad is not None:
        raise UserError(f"the loss is not a number at iteration {bad:.0f}: lower lr, or lengthen lr-warmup-iters")
