"""Make a pretraining recipe small: the same flags, with fewer and narrower layers, fewer steps, shorter sequences.

What a flag decides stays: grouped attention stays grouped, tied embeddings tied, a head width apart from the hidden
size apart, and the longest sequence that the model supports as it is (it has no weights), so that a length that does
not fit is still found.
"""

from __future__ import annotations

from typing import Any

from launch.pretraining.recipe import Recipe, get, load_recipe, whole

STEPS = 24  # of the longest training of the pipeline; its other trainings shrink by the same factor
FEW_STEPS = 3  # with the model's own shape
SEQUENCE = 128
SMALL = {"num-layers": 4, "hidden-size": 128, "ffn-hidden-size": 384, "num-attention-heads": 4}
GROUPS, HEAD = 2, 64
SCHEDULE = ("train-iters", "lr-warmup-iters", "lr-decay-iters", "lr-wsd-decay-iters")


def smaller_model(recipe: Recipe) -> dict[str, Any]:
    """Keys that make the model small; none if it is small already, or comes from a checkpoint."""
    if "pretrained-checkpoint" in recipe:
        return {}
    found: dict[str, Any] = {key: value for key, value in SMALL.items() if whole(recipe, key) > value}
    if not found:
        return {}
    found = dict(SMALL)
    if get(recipe, "group-query-attention"):
        found["num-query-groups"] = GROUPS
    if get(recipe, "kv-channels") is not None:
        found["kv-channels"] = HEAD
    for key in ("decoder-first-pipeline-num-layers", "decoder-last-pipeline-num-layers"):
        if get(recipe, key) is not None:
            found[key] = SMALL["num-layers"] - 1 if key.startswith("decoder-first") else 1
    return found


def fewer_steps(recipe: Recipe, longest: int, steps: int) -> dict[str, Any]:
    """Keys that shorten a training by the factor `steps / longest`; `longest` is the pipeline's last iteration."""
    factor = min(1.0, steps / longest)
    found: dict[str, Any] = {}
    for key in SCHEDULE:
        if get(recipe, key) is not None:
            found[key] = max(1, round(whole(recipe, key) * factor))
    if found.get("lr-warmup-iters", 0) >= found["train-iters"]:
        found["lr-warmup-iters"] = max(1, found["train-iters"] // 4)
    found |= {"save-interval": max(1, found["train-iters"] // 2), "log-interval": 1}
    found |= {"eval-interval": found["train-iters"], "eval-iters": 2}
    if get(recipe, "keep-every"):
        found["keep-every"] = found["train-iters"]
    return found


def shorter(recipe: Recipe) -> dict[str, Any]:
    """Keys for short sequences and a small batch that fits the layout of the recipe."""
    layout = whole(recipe, "nnodes", 1) * whole(recipe, "nproc-per-node")
    parallel = whole(recipe, "tensor-model-parallel-size", 1) * whole(recipe, "pipeline-model-parallel-size", 1)
    data = max(1, layout // parallel)
    micro = min(4, whole(recipe, "micro-batch-size"))
    return {
        "seq-length": min(SEQUENCE, whole(recipe, "seq-length")),
        "micro-batch-size": micro,
        "global-batch-size": min(whole(recipe, "global-batch-size"), 4 * micro * data),
    }


def rehearsal_keys(
    model: str, training: str, hardware: str, sets: list[str], longest: int, full_size: bool, vocab: int | None
) -> list[str]:
    """The `--set KEY=VALUE` pairs that make this training small.

    Args:
        longest: the last iteration of the pipeline's longest training.
        full_size: keep the model's shape, with `vocab` rows, for a few steps.
    """
    recipe = load_recipe(model, training, hardware, sets)
    keys = fewer_steps(recipe, longest, FEW_STEPS if full_size else STEPS) | shorter(recipe)
    if full_size:
        keys |= {"make-vocab-size-divisible-by": vocab or whole(recipe, "published-vocab-size")}
        if get(recipe, "decoder-first-pipeline-num-layers") is not None:  # the hardware file's, for four layers
            keys["decoder-first-pipeline-num-layers"] = whole(recipe, "num-layers") // 2 + 1
    else:
        keys |= smaller_model(recipe)
    return [f"{key}={value}" for key, value in keys.items()]
