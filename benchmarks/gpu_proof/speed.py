"""Parts `speed` and `levers`: measure the shipped recipes, then one change at a time, then the useful changes together.

The trainings are bare Megatron on made-up tokens. MFU is relative to the card's dense bf16 peak
(launch/pretraining/gpus.yaml), with the FLOPs of `myllm estimate` (without recomputed activations and padding).
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from artifacts.errors import UserError
from benchmarks.gpu_proof.proof import Proof, Row, lines
from benchmarks.gpu_proof.trainings import Job, write_jobs
from launch.pretraining import gpus, model_size
from launch.pretraining.recipe import Recipe, flags, get, layout_of, load_recipe, whole
from launch.pretraining.training_log import read_history


@dataclass(frozen=True)
class Scale:
    """What to train on a kind of machine."""

    models: tuple[str, ...]
    training: str
    hardware: str
    steps: int  # per row of `speed`
    lever_steps: int  # per row of `levers`
    fixed: tuple[str, ...]  # keys replaced in every row, so that a step is short enough for the time limit


GPU = Scale(("qwen2-0.5b", "llama2-1.1b"), "zh-10b", "gpu-1-80gb", 30, 14, ("global-batch-size=32",))
ONE_PROCESS = ("nproc-per-node=1", "pipeline-model-parallel-size=1", "decoder-first-pipeline-num-layers=null")
CPU = Scale(("qwen2-tiny", "llama2-tiny"), "demo", "cpu", 6, 4, ONE_PROCESS)
ALWAYS = ("log-interval=1", "save-interval=100000", "eval-iters=0", "lr-warmup-fraction=null", "lr-warmup-iters=2")
GAIN = 0.99  # a lever joins the combination if its step takes at most this share of the recipe's step


@dataclass(frozen=True)
class Lever:
    """One change to a recipe."""

    name: str
    keys: tuple[str, ...] = ()
    fused_adam: bool = False
    compile_layers: bool = False
    only_one_of: str = ""  # of levers with the same word, only the fastest joins the combination


def levers_for(scale: Scale) -> list[Lever]:
    """The levers of a scale, the least risky first."""
    recipe = load_recipe(scale.models[0], scale.training, scale.hardware)
    micro = whole(recipe, "micro-batch-size")
    fused_loss = get(recipe, "cross-entropy-loss-fusion") is not None
    other = "null" if fused_loss else "true"
    return [
        Lever(f"micro batch {micro * 2}", (f"micro-batch-size={micro * 2}",), only_one_of="micro batch"),
        Lever(f"micro batch {micro // 2}", (f"micro-batch-size={micro // 2}",), only_one_of="micro batch"),
        Lever("fused Adam", fused_adam=True),
        Lever(f"fused cross entropy {'off' if fused_loss else 'on'}", (f"cross-entropy-loss-fusion={other}",)),
        Lever("gradients summed in bf16", ("grad-reduce-in-bf16=true",)),
        Lever("torch.compile of each layer", compile_layers=True, only_one_of="graphs"),
        Lever("CUDA graphs of each layer", ("cuda-graph-impl=local",), only_one_of="graphs"),
    ]


def job_of(recipe: Recipe, model: str, lever: Lever, log: Path, profile_step: int = 0) -> Job:
    rows = whole(recipe, "published-vocab-size")
    made_up = ["--mock-data", "--tokenizer-type", "NullTokenizer", "--vocab-size", str(rows - 1)]
    return Job(
        name=f"{model} {lever.name}".strip(),
        flags=[*flags(recipe), *made_up],
        log=str(log),
        profile_step=profile_step,
        fused_adam=lever.fused_adam,
        compile_layers=lever.compile_layers,
    )


def measured(proof: Proof, part: str, jobs: list[Job], deadline: float) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Run the jobs in one process and yield the result of each. If a job kills the process, a new one runs the rest.

    Raises:
        TimeLimit: the part's time limit was reached; the results of finished jobs were yielded before.
    """
    left = list(jobs)
    while left:
        before = len(left)
        plan, log = proof.work / part / "jobs.json", proof.work / part / "process.log"
        write_jobs(left, plan)
        try:
            for line in lines(proof, "-m", "benchmarks.gpu_proof.trainings", str(plan), log=log, deadline=deadline):
                if line.startswith('{"name"'):
                    yield left.pop(0), json.loads(line)
            if len(left) < before:
                continue
            reason = "it ended without a message"
        except UserError as error:
            if type(error) is not UserError or not left:
                raise
            reason = str(error)
        failed = left.pop(0)
        yield failed, {"name": failed.name, "error": f"the process died: {reason}"}


def step_facts(recipe: Recipe, job: Job, found: dict[str, Any], steps: int, card: str | None) -> Row:
    """Median step of the second half of the training, and rates from it. `ok` is False if the training failed."""
    if "error" in found:
        return {"ok": False, "error": found["error"]}
    history = read_history(Path(job.log))
    times = [y for x, y in history["milliseconds"] if x > steps // 2 and x != job.profile_step]
    if not times:
        return {"ok": False, "error": f"no step was logged: see {job.log}"}
    milliseconds = statistics.median(times)
    layout, sequence = layout_of(recipe), whole(recipe, "seq-length")
    tokens = whole(recipe, "global-batch-size") * sequence
    padded = model_size.padded_vocabulary(recipe, whole(recipe, "published-vocab-size"), layout.tensor)
    work_done = tokens * model_size.flops_per_token(model_size.model_of(recipe, padded), sequence)
    teraflops = work_done / (milliseconds / 1000) / layout.world / 1e12
    peak = gpus.gpu(card).peak_tflops if card else None
    return {
        "ok": True,
        "milliseconds": round(milliseconds, 2),
        "tokens_per_second": round(tokens / milliseconds * 1000),
        "tflops_per_gpu": float(f"{teraflops:.4g}"),
        "peak_tflops": peak,
        "mfu_percent": round(100 * teraflops / peak, 1) if peak else None,
        "memory_gb": found["memory_gb"],
        "first_loss": history["loss"][0][1],
        "last_loss": history["loss"][-1][1],
        "seconds": found["seconds"],
    }


def speed(proof: Proof, deadline: float) -> Iterator[Row]:
    """Yield a row for each model: tokens/s, TFLOP/s, MFU, memory, and the profile of one step."""
    scale = GPU if proof.on_gpu else CPU
    keys = (*scale.fixed, *ALWAYS, f"train-iters={scale.steps}")
    jobs, recipes = [], {}
    for model in scale.models:
        recipe = load_recipe(model, scale.training, scale.hardware, keys)
        job = job_of(recipe, model, Lever(""), proof.work / "speed" / f"{model}.log", scale.steps - 1)
        recipes[job.name] = recipe
        jobs.append(job)
    for job, found in measured(proof, "speed", jobs, deadline):
        facts = step_facts(recipes[job.name], job, found, scale.steps, proof.card)
        yield {
            **{"model": job.name, "training": scale.training, "hardware": scale.hardware, "card": proof.card},
            **{"set": list(scale.fixed), "steps": scale.steps, **facts, "profile": found.get("profile")},
        }


def levers(proof: Proof, deadline: float) -> Iterator[Row]:
    """Train the smaller model with one change at a time; ratios refer to the unchanged recipe in the same process."""
    scale = GPU if proof.on_gpu else CPU
    model, keys = scale.models[0], (*scale.fixed, *ALWAYS, f"train-iters={scale.lever_steps}")

    def prepared(lever: Lever, place: str) -> tuple[Recipe, Job]:
        recipe = load_recipe(model, scale.training, scale.hardware, (*keys, *lever.keys))
        return recipe, job_of(recipe, model, lever, proof.work / "levers" / f"{place}.log")

    tried = [Lever("recipe as it is"), *levers_for(scale)]
    planned = {job.name: (lever, recipe, job) for number, lever in enumerate(tried)
               for recipe, job in [prepared(lever, str(number))]}  # fmt: skip
    base, gains = 0.0, []
    for job, found in measured(proof, "levers", [job for _, _, job in planned.values()], deadline):
        lever, recipe, _ = planned[job.name]
        facts = step_facts(recipe, job, found, scale.lever_steps, proof.card)
        base = base or facts.get("milliseconds", 0.0)
        ratio = facts["milliseconds"] / base if facts["ok"] and base else None
        if ratio is not None and ratio <= GAIN:
            gains.append((ratio, lever))
        yield {"model": model, "lever": lever.name, "ratio": ratio and round(ratio, 4), **facts}
    together = combined([lever for _, lever in sorted(gains, key=lambda gain: gain[0])])
    if len(together.keys) + together.fused_adam + together.compile_layers > 1:
        recipe, job = prepared(together, "together")
        for _, found in measured(proof, "levers", [job], deadline):
            facts = step_facts(recipe, job, found, scale.lever_steps, proof.card)
            ratio = round(facts["milliseconds"] / base, 4) if facts["ok"] else None
            yield {"model": model, "lever": together.name, "ratio": ratio, **facts}


def combined(gains: list[Lever]) -> Lever:
    """Combine the levers; of those that exclude each other, use only the first."""
    kept: list[Lever] = []
    for lever in gains:
        if not lever.only_one_of or lever.only_one_of not in [other.only_one_of for other in kept]:
            kept.append(lever)
    together = Lever("together: " + ", ".join(lever.name for lever in kept))
    for lever in kept:
        together = replace(
            together,
            keys=(*together.keys, *lever.keys),
            fused_adam=together.fused_adam or lever.fused_adam,
            compile_layers=together.compile_layers or lever.compile_layers,
        )
    return together
