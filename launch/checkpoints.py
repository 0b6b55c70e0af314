"""The checkpoints of a training run: which are whole, which run they belong to, where they go when that changes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from artifacts.errors import UserError
from artifacts.files import read_json, sha256, write_json, write_text
from artifacts.layout import Run
from launch.recipe import Recipe, get

LATEST = "latest_checkpointed_iteration.txt"
RECIPE = "recipe.json"
BROKEN = "broken_"  # prefix of a damaged checkpoint's folder, set aside

# Keys that may differ between two starts of one training: where it runs, how often it saves, what it prints.
ELSEWHERE = frozenset(
    "nnodes nproc-per-node gpu tensor-model-parallel-size pipeline-model-parallel-size sequence-parallel "
    "num-layers-per-virtual-pipeline-stage decoder-first-pipeline-num-layers decoder-last-pipeline-num-layers "
    "distributed-backend micro-batch-size overlap-grad-reduce overlap-param-gather num-workers transformer-impl spec "
    "attention-backend no-create-attention-mask-in-dataloader recompute-granularity recompute-method "
    "recompute-num-layers cross-entropy-loss-fusion no-gradient-accumulation-fusion no-persist-layer-norm "
    "no-rope-fusion no-masked-softmax-fusion no-bias-swiglu-fusion no-bias-dropout-fusion save-interval eval-interval "
    "eval-iters log-interval log-throughput log-timers-to-tensorboard stop-at-spike exit-duration-in-mins "
    "exit-interval wandb-project wandb-exp-name wandb-entity wandb-save-dir swanlab-project published-vocab-size "
    "override-opt_param-scheduler iterations-to-skip async-save".split()
)
# Keys of the schedule: they may change in mid-run where the recipe says so with override-opt_param-scheduler.
SCHEDULE = frozenset(
    "train-iters lr min-lr lr-decay-style lr-decay-iters lr-warmup-iters lr-warmup-fraction weight-decay".split()
)


def damage(iteration: Path) -> str:
    """Why a `torch_dist` checkpoint cannot be loaded, or "" where it is whole.

    `.metadata` is written last and tells which bytes of which file hold what: every file must reach that far.
    """
    import pickle

    from torch.distributed.checkpoint import FileSystemReader

    if not (iteration / ".metadata").exists() or not (iteration / "metadata.json").exists():
        return "its save was cut short"
    try:
        metadata = FileSystemReader(str(iteration)).read_metadata()
    except (pickle.UnpicklingError, EOFError, OSError, AttributeError, ImportError, ValueError) as error:
        return f".metadata cannot be read ({error})"
    reach: dict[str, int] = {}
    for entry in (metadata.storage_data or {}).values():
        reach[entry.relative_path] = max(reach.get(entry.relative_path, 0), entry.offset + entry.length)
    for name, size in sorted(reach.items()):
        file = iteration / name
        if not file.exists():
            return f"{name} is missing"
        if file.stat().st_size < size:
            return f"{name} has {file.stat().st_size:,} bytes of {size:,}"
    return ""


def reached(checkpoints: Path) -> int:
    """The newest iteration that Megatron would resume from; 0 where there is none."""
    tracker = checkpoints / LATEST
    return int(tracker.read_text()) if tracker.exists() else 0


def use_newest_whole(checkpoints: Path) -> None:
    """Point Megatron at the newest whole checkpoint, and say which newer ones are passed over and why.

    A save that was cut short holds nothing that could be mended and is removed; a damaged one is set aside.
    """
    numbers = sorted((int(p.name[5:]) for p in checkpoints.glob("iter_*") if p.name[5:].isdigit()), reverse=True)
    newest = 0
    for number in numbers:
        folder = checkpoints / f"iter_{number:07d}"
        reason = damage(folder)
        if not reason:
            newest = number
            break
        print(f"{folder} is passed over: {reason}", flush=True)
        if (folder / ".metadata").exists():
            aside = folder.with_name(BROKEN + folder.name)
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(folder, aside)
        else:
            shutil.rmtree(folder)
    tracker = checkpoints / LATEST
    if not newest:
        if numbers:
            print("no whole checkpoint is left: training starts at iteration 0", flush=True)
        tracker.unlink(missing_ok=True)
    else:
        if newest != numbers[0]:
            print(f"going on from iteration {newest}, the last whole checkpoint", flush=True)
        if reached(checkpoints) != newest:
            write_text(tracker, str(newest))


def keep_newest(checkpoints: Path) -> None:
    """Remove every checkpoint but the newest: what a finished run hands on."""
    newest = f"iter_{reached(checkpoints):07d}"
    for folder in checkpoints.glob("iter_*"):
        if folder.name != newest:
            shutil.rmtree(folder)


def identity(run: Run, recipe: Recipe) -> dict[str, Any]:
    """What a training depends on: its recipe without what may differ between two starts, tokenizer, dataset."""
    parts = sorted(p for p in run.dataset.iterdir() if p.suffix == ".idx")
    return {
        "recipe": {name: key.value for name, key in recipe.items() if name not in ELSEWHERE and key.value is not None},
        "tokenizer": sha256(run.tokenizer / "tokenizer.json"),
        "blend": read_json(run.dataset / "blend.json"),
        # an index holds every document's length: hashing terabytes of tokens as well would tell little more
        "dataset": {p.name: [sha256(p), p.with_suffix(".bin").stat().st_size] for p in parts},
    }


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Names of what differs: keys of the recipe, and tokenizer, blend, dataset."""
    keys = {*old.get("recipe", {}), *new["recipe"]}
    found = sorted(key for key in keys if str(old.get("recipe", {}).get(key)) != str(new["recipe"].get(key)))
    return found + [part for part in ("tokenizer", "blend", "dataset") if old.get(part) != new[part]]


def claim(run: Run, recipe: Recipe) -> None:
    """Make sure that the run's checkpoints are this training's; another training's are moved aside, never deleted.

    With override-opt_param-scheduler a changed schedule (say, more iterations) is the same training.

    Raises:
        UserError: the optimizer was saved in the other form, which Megatron cannot read.
    """
    new, known = identity(run, recipe), run.checkpoints / RECIPE
    old = read_json(known) if known.exists() else None
    if old is None and reached(run.checkpoints):
        changed = ["no record of its recipe"]
    else:
        changed = differences(old, new) if old else []
    distributed = "use-distributed-optimizer"
    if distributed in changed and changed == [distributed] and reached(run.checkpoints):
        raise UserError(
            f"{run.checkpoints} was saved {'without' if get(recipe, distributed) else 'with'} {distributed}, and "
            f"Megatron cannot go on in the other form: --set {distributed}={str(not get(recipe, distributed)).lower()}"
        )
    if get(recipe, "override-opt_param-scheduler"):
        changed = [key for key in changed if key not in SCHEDULE]
    if changed:
        number = 1
        while (aside := run.folder / f"checkpoints.old-{number}").exists():
            number += 1
        print(
            f"{run.checkpoints} is another training ({', '.join(changed)} changed): moved to {aside.name}", flush=True
        )
        os.replace(run.checkpoints, aside)
        if (run.folder / "tensorboard").exists():
            os.replace(run.folder / "tensorboard", aside / "tensorboard")
        if set(changed) <= SCHEDULE:
            print("  to go on from it with the new schedule: --set override-opt_param-scheduler=true", flush=True)
    write_json(known, new)
