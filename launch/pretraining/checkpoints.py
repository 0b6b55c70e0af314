"""Checkpoints of a training run: find the newest complete one, check that they belong to this training."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from artifacts.errors import UserError
from artifacts.files import atomic_folder, read_json, sha256, write_json, write_text
from artifacts.layout import Run
from launch.pretraining.recipe import Recipe, get

LATEST = "latest_checkpointed_iteration.txt"
RECIPE = "recipe.json"
BRANCH = "branch.json"  # the checkpoint that a later phase began with
RELEASE = "release"  # Megatron's name for weights without training state
BROKEN = "broken_"  # prefix that the folder of a damaged checkpoint gets

# Keys that may differ when a training is resumed: where it runs, how often it saves, what it logs.
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
    "dataloader-fast-cache-load dataloader-defer-npy-index-mmap no-mmap-bin-files keep-last keep-every "
    "gpu-sniff-test-interval cuda-graph-impl cuda-graph-modules async-strategy use-persistent-ckpt-worker".split()
)
ELSEWHERE_PREFIXES = ("log-", "no-log-", "wandb-", "tensorboard-", "timing-", "profile", "save-", "eval-", "exit-")
# Keys of the schedule: they may change on resume if the recipe sets override-opt_param-scheduler.
SCHEDULE = frozenset(
    "train-iters lr min-lr lr-decay-style lr-decay-iters lr-warmup-iters lr-warmup-fraction lr-wsd-decay-style "
    "lr-wsd-decay-iters weight-decay".split()
)


def damage(iteration: Path) -> str:
    """Why a `torch_dist` checkpoint cannot be loaded, or "" if it is complete.

    `.metadata` is written last. It lists the byte ranges of every file, so each file must be at least that long.
    """
    import pickle

    from torch.distributed.checkpoint import FileSystemReader

    if not (iteration / ".metadata").exists() or not (iteration / "metadata.json").exists():
        return "its save was interrupted"
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
            return f"{name} has {file.stat().st_size:,} of {size:,} bytes"
    return ""


def reached(checkpoints: Path) -> int:
    """The iteration that Megatron would resume from; 0 if there is none or the tracker file is truncated."""
    tracker = checkpoints / LATEST
    text = tracker.read_text().strip() if tracker.exists() else ""
    return int(text) if text.isdigit() else 0


def use_newest_whole(checkpoints: Path) -> None:
    """Point Megatron at the newest complete checkpoint, and print which newer ones are skipped and why.

    An interrupted save is removed. A damaged checkpoint is renamed to `broken_iter_…`.

    Raises:
        UserError: the folder holds an imported model, which is not a checkpoint of this training.
    """
    if (checkpoints / RELEASE).exists():
        raise UserError(
            f"{checkpoints / RELEASE} is an imported model, not a checkpoint of this training: move it to another "
            "folder, then --set pretrained-checkpoint=THAT-FOLDER"
        )
    numbers = sorted((int(p.name[5:]) for p in checkpoints.glob("iter_*") if p.name[5:].isdigit()), reverse=True)
    newest = 0
    for number in numbers:
        folder = checkpoints / f"iter_{number:07d}"
        reason = damage(folder)
        if not reason:
            newest = number
            break
        print(f"{folder} is skipped: {reason}", flush=True)
        if (folder / ".metadata").exists() or any(folder.glob("mp_rank_*")):  # the latter: Megatron's older format
            aside = folder.with_name(BROKEN + folder.name)
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(folder, aside)
        else:
            shutil.rmtree(folder)
    tracker = checkpoints / LATEST
    if not newest:
        if numbers:
            print("no complete checkpoint is left: training starts at iteration 0", flush=True)
        tracker.unlink(missing_ok=True)
    else:
        if newest != numbers[0]:
            print(f"resuming from iteration {newest}, the newest complete checkpoint", flush=True)
        if reached(checkpoints) != newest:
            write_text(tracker, str(newest))


def branch(source: Path, checkpoints: Path, iterations: int) -> int:
    """Begin a phase with a checkpoint of the phase before it, if it has none of its own yet; returns its iteration.

    The checkpoint's files are linked, or copied to another file system, and never written to.

    Args:
        source: the checkpoints of the phase before, or one `iter_…` folder of them.
        iterations: the last iteration of the new phase.

    Raises:
        UserError: there is no complete checkpoint, or it is not before the phase's last iteration.
    """
    mark = checkpoints / BRANCH
    if mark.exists():
        return int(read_json(mark)["iteration"])
    folder = source if source.name.startswith("iter_") else source / f"iter_{reached(source):07d}"
    if reason := damage(folder) if folder.is_dir() else "it does not exist":
        raise UserError(f"{folder} cannot begin a phase: {reason}. Run the pretraining before it first")
    number = int(folder.name.removeprefix("iter_"))
    if number >= iterations:
        raise UserError(f"{folder} is at iteration {number}: a phase after it needs train-iters above {number}")

    def link(one: str, other: str) -> None:
        try:
            os.link(one, other)
        except OSError:
            shutil.copyfile(one, other)

    with atomic_folder(checkpoints / folder.name) as aside:
        shutil.copytree(folder, aside, copy_function=link, dirs_exist_ok=True)
    write_text(checkpoints / LATEST, str(number))
    write_json(mark, {"iteration": number, "checkpoint": str(folder)})
    print(f"this phase begins with {folder}", flush=True)
    return number


def thin(checkpoints: Path, last: int, every: int) -> None:
    """Remove all but the newest `last` checkpoints and those of every `every` iterations; 0 keeps them all, or none.

    The newest that Megatron would resume from is never removed, nor is one that is still being written.
    """
    newest = reached(checkpoints)
    if not last:
        return
    numbers = sorted(int(p.name[5:]) for p in checkpoints.glob("iter_*") if p.name[5:].isdigit())
    whole = [number for number in numbers if number <= newest]
    for number in whole[:-last]:
        if not every or number % every:
            folder = checkpoints / f"iter_{number:07d}"
            (folder / ".metadata").unlink(missing_ok=True)  # first: half of a checkpoint is never taken for a whole one
            shutil.rmtree(folder)


def keep_newest(checkpoints: Path) -> None:
    """Remove every checkpoint but the newest, when a run is finished."""
    newest = f"iter_{reached(checkpoints):07d}"
    for folder in checkpoints.glob("iter_*"):
        if folder.name != newest:
            shutil.rmtree(folder)


def identity(run: Run, recipe: Recipe) -> dict[str, Any]:
    """What a training depends on: the recipe without the keys that may differ on resume, tokenizer, blend, dataset."""
    blend = read_json(run.blend)
    parts = sorted(p for p in run.dataset.iterdir() if p.suffix == ".idx")
    if not (run.tokenizer / "tokenizer.json").exists():
        raise UserError(f"{run.tokenizer}/tokenizer.json does not exist: run the stage `tokenizer` first")
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
        # an index holds the length of every document; hashing terabytes of tokens would add little
        "dataset": {p.name: [sha256(p), p.with_suffix(".bin").stat().st_size] for p in parts},
    }


def _same(one: Any, other: Any) -> bool:
    """Whether two values of a key are equal; 6e-4, which YAML reads as text, equals 0.0006."""
    try:
        return float(one) == float(other)
    except (TypeError, ValueError):
        return str(one) == str(other)


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Names of what differs: keys of the recipe, and `tokenizer`, `blend`, `dataset`."""
    before, after = old.get("recipe", {}), new["recipe"]
    found = sorted(key for key in {*before, *after} if not _same(before.get(key), after.get(key)))
    return found + [part for part in ("tokenizer", "blend", "dataset") if old.get(part) != new[part]]


def claim(run: Run, recipe: Recipe, start_over: bool = False) -> None:
    """Make sure that the run's checkpoints belong to this training.

    With override-opt_param-scheduler, a changed schedule (e.g. more iterations) is still the same training.

    Args:
        start_over: move the checkpoints of another training away, instead of raising an error.

    Raises:
        UserError: the checkpoints belong to another training (the message names what changed), or
            use-distributed-optimizer has changed, which Megatron cannot resume.
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
            f"Megatron cannot change that on resume: --set {distributed}={str(not get(recipe, distributed)).lower()}"
        )
    if get(recipe, "override-opt_param-scheduler"):
        changed = [key for key in changed if key not in SCHEDULE]
    if changed and not holds:
        shutil.rmtree(run.checkpoints)
    elif changed:
        what = ", ".join(changed)
        if not start_over:
            ways = ["--start-over to move it away", "another --run"]
            if set(changed) <= SCHEDULE:
                ways.insert(0, "--set override-opt_param-scheduler=true to resume with the new schedule")
            raise UserError(
                f"{run.checkpoints} holds iteration {done} of another training ({what} changed): give "
                f"{', or '.join(ways)}"
            )
        number = 1
        while (aside := run.folder / f"{run.checkpoints.name}.old-{number}").exists():
            number += 1
        print(f"{run.checkpoints} belongs to another training ({what} changed): moved to {aside.name}", flush=True)
        os.replace(run.checkpoints, aside)
        if run.tensorboard.exists():
            os.replace(run.tensorboard, aside / "tensorboard")
    write_json(known, new)
