"""Pretrain with stock Megatron-LM: three small YAML files become torchrun's command line.

    python -m launch.pretrain --model qwen2-tiny --training demo --hardware cpu --run runs/poetry-tiny
    python -m launch.pretrain --model qwen2-tiny --training demo --hardware cpu --run runs/poetry-tiny --dry-run

Reads `tokenizer/` and `dataset/blend.json` of the run, writes `checkpoints/` (torch_dist) and `tensorboard/`.
The same command resumes from the newest whole checkpoint. `--set train-iters=50` replaces one key.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from artifacts.errors import UserError, nearest, run_main
from artifacts.files import read_json, read_yaml, sha256, write_json, write_text
from artifacts.layout import REPOSITORY, Run
from artifacts.stage import report_metrics

CONFIGS = REPOSITORY / "megatron_configs"
LAUNCHER_KEYS = ("nproc-per-node", "nnodes")
LATEST = "latest_checkpointed_iteration.txt"
FIRST_LOSS_TOLERANCE = 0.05  # of ln(vocabulary)

ITERATION = re.compile(
    r"iteration +(\d+)/ *(\d+) \|.*?per iteration \(ms\): ([\d.]+) \|.*?lm loss: ([\d.E+-]+) \|.*?grad norm: ([\d.]+)"
)
VALIDATION = re.compile(r"validation loss at iteration (\d+)(?: on validation set)? \| lm loss value: ([\d.E+-]+)")
FAILURE = re.compile(r"(\[rank\d+\]: )?\w*(Error|Exception)\b")  # the first one; torchrun adds its own later
RATE = re.compile(r"learning rate: ([\d.E+-]+)")


def load_recipe(model: str, training: str, hardware: str, replaced: list[str]) -> dict[str, Any]:
    """Keys of the three files together, then the replaced ones; UserError on an unknown file or a key set twice."""
    recipe: dict[str, Any] = {}
    for kind, name in (("models", model), ("training", training), ("hardware", hardware)):
        path = CONFIGS / kind / f"{name}.yaml"
        if not path.exists():
            known = [p.stem for p in path.parent.glob("*.yaml")]
            raise UserError(
                f"{path.relative_to(REPOSITORY)} does not exist{nearest(name, known)}; there are {', '.join(known)}"
            )
        keys = read_yaml(path)
        twice = sorted(set(keys) & set(recipe))
        if twice:
            raise UserError(
                f"{path.relative_to(REPOSITORY)} sets {twice[0]}, which another file of the recipe sets already"
            )
        recipe.update(keys)
    for assignment in replaced:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise UserError(f"--set {assignment}: write it as key=value")
        recipe[key] = {"true": True, "false": False}.get(value, value)
    return recipe


def flags(recipe: dict[str, Any]) -> list[str]:
    """Megatron's flags: `true` gives the bare flag, `false` and null none, a list its values."""
    result: list[str] = []
    for key, value in recipe.items():
        if key in LAUNCHER_KEYS or value is False or value is None:
            continue
        result.append(f"--{key}")
        if value is not True:
            result.extend(map(str, value) if isinstance(value, list) else [str(value)])
    return result


def check_flags(arguments: list[str]) -> None:
    """Let Megatron's own parser read the flags, without starting it.

    Raises UserError for an unknown key, naming the nearest valid one, and for a value of the wrong type.
    """
    import torch

    if not torch.cuda.is_available():
        from artifacts import megatron_on_cpu

        megatron_on_cpu.patch_torch()
    from megatron.training.arguments import add_megatron_arguments

    parser = add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False))
    known = {option for action in parser._actions for option in action.option_strings}
    for argument in arguments:
        if argument.startswith("--") and argument not in known:
            raise UserError(f"Megatron has no flag {argument}{nearest(argument, known)}: mend the recipe's key")
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message):
            parser.parse_args(arguments)
    except SystemExit:
        raise UserError(f"Megatron refuses the recipe: {message.getvalue().strip().splitlines()[-1]}") from None


def check_layout(recipe: dict[str, Any], processes: int) -> None:
    """Raise UserError when heads, layers or batch cannot be divided over the ranks."""
    tensor = int(recipe.get("tensor-model-parallel-size", 1))
    pipeline = int(recipe.get("pipeline-model-parallel-size", 1))
    if processes % (tensor * pipeline):
        raise UserError(
            f"{processes} processes cannot be TP {tensor} x PP {pipeline}: mend nproc-per-node in the hardware file"
        )
    data = processes // (tensor * pipeline)
    for key in ("num-attention-heads", "num-query-groups"):
        if int(recipe.get(key, tensor)) % tensor:
            raise UserError(f"{key} {recipe[key]} cannot be divided by tensor parallel {tensor}")
    if int(recipe["num-layers"]) % pipeline and "decoder-first-pipeline-num-layers" not in recipe:
        raise UserError(f"num-layers {recipe['num-layers']} cannot be divided by pipeline parallel {pipeline}")
    step = int(recipe["micro-batch-size"]) * data
    if int(recipe["global-batch-size"]) % step:
        raise UserError(
            f"global-batch-size {recipe['global-batch-size']} is no multiple of "
            f"micro-batch-size x data parallel = {step}"
        )


def run_flags(run: Run) -> list[str]:
    """The flags that say where the run's files lie, relative to the repository where it holds the run."""
    folder = run.folder.resolve()
    if folder.is_relative_to(REPOSITORY):
        folder = folder.relative_to(REPOSITORY)
    return [
        *("--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", f"{folder}/tokenizer"),
        *("--per-split-data-args-path", f"{folder}/dataset/blend.json", "--data-cache-path", f"{folder}/dataset/cache"),
        *("--save", f"{folder}/checkpoints", "--load", f"{folder}/checkpoints", "--ckpt-format", "torch_dist"),
        *("--tensorboard-dir", f"{folder}/tensorboard", "--exit-signal-handler"),
    ]


def drop_half_written(checkpoints: Path) -> None:
    """Point Megatron at the newest whole checkpoint, and say so when a newer, half-written one is left aside."""
    whole = [
        int(p.parent.name[5:]) for p in checkpoints.glob("iter_*/.metadata") if (p.parent / "metadata.json").exists()
    ]
    for folder in checkpoints.glob("iter_*"):
        if int(folder.name[5:]) not in whole:
            print(f"{folder} is half-written and is dropped", flush=True)
            shutil.rmtree(folder)
    tracker = checkpoints / LATEST
    if not whole:
        tracker.unlink(missing_ok=True)
    elif not tracker.exists() or tracker.read_text().strip() != str(max(whole)):
        write_text(tracker, str(max(whole)))


def keep_newest(checkpoints: Path) -> None:
    newest = f"iter_{int((checkpoints / LATEST).read_text()):07d}"
    for folder in checkpoints.glob("iter_*"):
        if folder.name != newest:
            shutil.rmtree(folder)


def start_over_if_changed(run: Run, arguments: list[str]) -> None:
    """Checkpoints of another recipe, tokenizer or dataset are not resumed from: they are removed."""
    blend = read_json(run.dataset / "blend.json")
    parts = sorted(p for p in run.dataset.iterdir() if p.suffix in (".bin", ".idx"))
    state = {
        "flags": arguments,
        "tokenizer": sha256(run.tokenizer / "tokenizer.json"),
        "blend": blend,
        "dataset": {p.name: sha256(p) for p in parts},
    }
    known = run.checkpoints / "recipe.json"
    if run.checkpoints.exists() and (not known.exists() or read_json(known) != state):
        print(f"{run.checkpoints} belongs to another recipe or dataset and is started over", flush=True)
        shutil.rmtree(run.checkpoints)
        shutil.rmtree(run.folder / "tensorboard", ignore_errors=True)
    write_json(known, state)


def vocabulary(run: Run) -> int:
    return len(read_json(run.tokenizer / "vocab.json")) + len(
        read_json(run.tokenizer / "tokenizer_config.json")["added_tokens_decoder"]
    )


def read_history(log: Path) -> dict[str, list[list[float]]]:
    """Curves `[iteration, value]` from Megatron's own log: loss, validation, gradient norm, tokens' time, rate.

    A resumed run logs some iterations twice; the later line counts.
    """
    text = log.read_text(encoding="utf-8", errors="replace")
    curves: dict[str, dict[int, float]] = {
        name: {} for name in ("loss", "milliseconds", "grad_norm", "learning_rate", "valid")
    }
    for line in text.splitlines():
        if match := ITERATION.search(line):
            iteration = int(match[1])
            curves["milliseconds"][iteration] = float(match[3])
            curves["loss"][iteration] = float(match[4])
            curves["grad_norm"][iteration] = float(match[5])
            if rate := RATE.search(line):
                curves["learning_rate"][iteration] = float(rate[1])
        elif match := VALIDATION.search(line):
            curves["valid"][int(match[1])] = float(match[2])
    return {name: [[x, y] for x, y in sorted(points.items())] for name, points in curves.items()}


def check_learning(history: dict[str, list[list[float]]], size: int) -> None:
    """The gate: the first loss near ln(vocabulary), and every loss a number. Raises UserError."""
    losses = history["loss"]
    if not losses:
        raise UserError("Megatron logged no iteration: see the log")
    uniform = math.log(size)
    first_iteration, first = losses[0]
    if first_iteration == 1 and abs(first - uniform) > FIRST_LOSS_TOLERANCE * uniform:
        raise UserError(
            f"the first loss is {first:.3f}, not near ln(vocabulary) = {uniform:.3f}: "
            "tokenizer and dataset do not belong together, or the initialisation is wrong"
        )
    bad = next((iteration for iteration, loss in losses if not math.isfinite(loss)), None)
    if bad is not None:
        raise UserError(f"the loss is not a number at iteration {bad:.0f}: lower lr, or lengthen lr-warmup-iters")


def train(command: list[str], log: Path, environment: dict[str, str]) -> None:
    """Run torchrun, its output to the terminal and appended to `log`; raises UserError with the telling line."""
    with log.open("a", encoding="utf-8") as copy:
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, lambda number, frame: process.send_signal(signal.SIGTERM))
        assert process.stdout is not None
        telling = previous = ""
        for line in process.stdout:
            copy.write(line)
            copy.flush()
            sys.stdout.write(line)
            if not telling and FAILURE.match(line):
                telling = f"{line.strip()} ({previous.strip()})"
            previous = line
        if process.wait() != 0:
            raise UserError(
                f"Megatron stopped with exit code {process.returncode}: {telling or 'no message'} (log: {log})"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a file of megatron_configs/models/")
    parser.add_argument("--training", required=True, help="a file of megatron_configs/training/")
    parser.add_argument("--hardware", default="cpu", help="a file of megatron_configs/hardware/ (default cpu)")
    parser.add_argument("--run", type=Path, required=True, help="folder of the run")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="replace a key of the recipe")
    parser.add_argument("--dry-run", action="store_true", help="check the recipe, print the command, run nothing")
    arguments = parser.parse_args()
    run = Run(arguments.run)
    recipe = load_recipe(arguments.model, arguments.training, arguments.hardware, arguments.set)
    processes = int(recipe["nproc-per-node"])
    megatron = flags(recipe) + run_flags(run)
    check_layout(recipe, processes)
    check_flags(megatron)
    torchrun = [str(Path(sys.executable).with_name("torchrun")), "--standalone", f"--nproc-per-node={processes}"]
    command = [*torchrun, "launch/pretrain_worker.py", *megatron]
    print("$ " + " ".join(command), flush=True)
    if arguments.dry_run:
        return
    start_over_if_changed(run, megatron)
    drop_half_written(run.checkpoints)
    log = run.checkpoints / "megatron.log"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_DEVICE_MAX_CONNECTIONS": "1", "PYTHONWARNINGS": "ignore"}
    iterations = int(recipe["train-iters"])
    tracker = run.checkpoints / LATEST
    if tracker.exists() and int(tracker.read_text()) >= iterations:
        print(f"{tracker.parent} is trained to iteration {iterations} already", flush=True)
    else:
        train(command, log, environment)
        if int(tracker.read_text()) < iterations:
            raise UserError(
                f"stopped at iteration {tracker.read_text().strip()} of {iterations}, saved: run the same command again"
            )
    history = read_history(log)
    size = vocabulary(run)
    check_learning(history, size)
    keep_newest(run.checkpoints)
    tokens = int(recipe["global-batch-size"]) * int(recipe["seq-length"])
    times = sorted(y for _, y in history["milliseconds"])
    report_metrics(
        iterations=iterations,
        tokens=iterations * tokens,
        first_loss=history["loss"][0][1],
        uniform_loss=round(math.log(size), 4),
        final_loss=history["loss"][-1][1],
        valid_loss=history["valid"][-1][1] if history["valid"] else None,
        tokens_per_second=round(tokens / times[len(times) // 2] * 1000, 1),
        curves=history,
    )


if __name__ == "__main__":
    run_main(main)
