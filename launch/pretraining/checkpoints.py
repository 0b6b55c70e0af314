"""The checkpoints of a training run: which are whole, which run they belong to, where they go when that changes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from artifacts.errors import UserError
from artifacts.files import read_json, sha256, write_json, write_text
from artifacts.layout import Run
from launch.pretraining.recipe import Recipe, get

LATEST = "latest_checkpointed_iteration.txt"
RECIPE = "recipe.json"
RELEASE = "release"  # Megatron's name for weights without training state
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
    "override-opt_param-scheduler iterations-to-skip async-save dist-ckpt-optim-fully-reshardable "
    "distributed-timeout-minutes fused-adam manual-gc manual-gc-interval ddp-average-in-collective ddp-bucket-size "
    "dataloader-fast-cache-load dataloader-defer-npy-index-mmap no-mmap-bin-files "
    "gpu-sniff-test-interval cuda-graph-impl cuda-graph-modules async-strategy use-persistent-ckpt-worker".split()
)
ELSEWHERE_PREFIXES = ("log-", "no-log-", "wandb-", "tensorboard-", "timing-", "profile", "save-", "eval-", "exit-")
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
    """The newest iteration that Megatron would resume from; 0 where there is none, or the tracker was cut short."""
    tracker = checkpoints / LATEST
    text = tracker.read_text().strip() if tracker.exists() else ""
    return int(text) if text.isdigit() else 0


def use_newest_whole(checkpoints: Path) -> None:
    """Point Megatron at the newest whole checkpoint, and say which newer ones are passed over and why.

    A save that was cut short holds nothing that could be mended and is removed; a damaged one is set aside.

    Raises:
        UserError: the folder holds an imported model, which is a start and no checkpoint of this training.
    """
    if (checkpoints / RELEASE).exists():
        raise UserError(
            f"{checkpoints / RELEASE} is an imported model: move it away, --set pretrained-checkpoint=ITS-FOLDER"
        )
    numbers = sorted((int(p.name[5:]) for p in checkpoints.glob("iter_*") if p.name[5:].isdigit()), reverse=True)
    newest = 0
    for number in numbers:
        folder = checkpoints / f"iter_{number:07d}"
        reason = damage(folder)
        if not reason:
            newest = number
            break
        print(f"{folder} is passed over: {reason}", flush=True)
        if (folder / ".metadata").exists() or any(folder.glob("mp_rank_*")):  # the latter: Megatron's older format
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
    blend = read_json(run.dataset / "blend.json")
    parts = sorted(p for p in run.dataset.iterdir() if p.suffix == ".idx")
    if not (run.tokenizer / "tokenizer.json").exists():
        raise UserError(f"{run.tokenizer}/tokenizer.json does not exist: run the stage that makes it first")
    return {
        "recipe": {
            name: key.value
            for name, key in recipe.items()
            if key.value is not None
            and key.value is not False
            and name not in ELSEWHERE
            and not name.startswith(ELSEWHERE_PREFIXES)
        },
        "tokenizer": sha256(run.tokenizer / "tokenizer.json"),
        "blend": blend,
        # an index holds every document's length: hashing terabytes of tokens as well would tell little more
        "dataset": {p.name: [sha256(p), p.with_suffix(".bin").stat().st_size] for p in parts},
    }


def _same(one: Any, other: Any) -> bool:
    """Whether two values of a key mean the same: 6e-4, which YAML reads as text, and 0.0006 do."""
    try:
        return float(one) == float(other)
    except (TypeError, ValueError):
        return str(one) == str(other)


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Names of what differs: keys of the recipe, and tokenizer, blend, dataset."""
    before, after = old.get("recipe", {}), new["recipe"]
    found = sorted(key for key in {*before, *after} if not _same(before.get(key), after.get(key)))
    return found + [part for part in ("tokenizer", "blend", "dataset") if old.get(part) != new[part]]


def claim(run: Run, recipe: Recipe, start_over: bool = False) -> None:
    """Make sure that the run's checkpoints are this training's.

    With override-opt_param-scheduler a changed schedule (say, more iterations) is the same training.

    Args:
        start_over: move another training's checkpoints aside, instead of refusing.

    Raises:
        UserError: the checkpoints are another training's, naming what changed; or the optimizer was saved in the other
            form, which Megatron cannot read.
    """
    new, known = identity(run, recipe), run.checkpoints / RECIPE
    old = read_json(known) if known.exists() else None
    done = reached(run.checkpoints)
    holds = done > 0 or any(run.checkpoints.glob("iter_*"))
    if old is None:
        changed = ["no record of its recipe"] if holds else []
    else:
        changed = differences(old, new)
    distributed = "use-distributed-optimizer"
    if changed == [distributed] and holds:
        raise UserError(
            f"{run.checkpoints} was saved {'without' if get(recipe, distributed) else 'with'} {distributed}, and "
            f"Megatron cannot go on in the other form: --set {distributed}={str(not get(recipe, distributed)).lower()}"
        )
    if get(recipe, "override-opt_param-scheduler"):
        changed = [key for key in changed if key not in SCHEDULE]
    if changed and not holds:
        shutil.rmtree(run.checkpoints)
    elif changed:
        what = ", ".join(changed)
        if not start_over:
            ways = ["--start-over to move it aside", "another --run"]
            if set(changed) <= SCHEDULE:
                ways.insert(0, "--set override-opt_param-scheduler=true to go on with the new schedule")
            raise UserError(
                f"{run.checkpoints} holds iteration {done} of another training ({what} changed): {', or '.join(ways)}"
            )
        number = 1
        while (aside := run.folder / f"checkpoints.old-{number}").exists():
            number += 1
        print(f"{run.checkpoints} is another training ({what} changed): moved to {aside.name}", flush=True)
        os.replace(run.checkpoints, aside)
        if (run.folder / "tensorboard").exists():
            os.replace(run.folder / "tensorboard", aside / "tensorboard")
    write_json(known, new)
