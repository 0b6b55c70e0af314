"""Run post-training with LLaMA-Factory and TRL: `myllm posttrain RECIPE --model DIR --output-folder DIR ...`

    myllm posttrain sft_full --model runs/r/models/base --data runs/r/tasks --output-folder runs/r/models/sft
    myllm posttrain dpo --model runs/r/models/sft --data runs/r/tasks --output-folder runs/r/models/dpo-adapter
    myllm posttrain merge --model runs/r/models/sft --adapter runs/r/models/dpo-adapter \\
        --output-folder runs/r/models/dpo
    myllm posttrain ppo --model runs/r/models/sft --reward-model runs/r/models/reward --data runs/r/tasks \\
        --output-folder runs/r/models/ppo-adapter
    myllm posttrain grpo --model runs/r/models/sft --data runs/r/tasks --output-folder runs/r/models/grpo --dry-run

RECIPE is a file in `llamafactory_configs/` with LLaMA-Factory's own keys (`grpo`: TRL's). `--hardware` adds a file of
`llamafactory_configs/hardware/`, `--set key=value` replaces single keys. The command adds checks that the tools lack:
it checks the data row by row (the tools drop bad rows silently), checks keys before a model loads, deletes incomplete
checkpoints (the tools crash on one), and compares a merged model with its adapter. The output folder appears only when
it is complete and loads in transformers 4 and 5 and in vLLM.

The work folder `<output>.work/` holds the rendered YAML, the tool's own output with its checkpoints, TensorBoard files,
metrics.json and the log. The same command resumes from the newest complete checkpoint, or does nothing if the output is
finished; with other inputs or settings it starts over. `--prepare` fills the work folder and prints the upstream
command, to be run by hand.
"""

from __future__ import annotations

import argparse
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from artifacts.ahead import Ahead
from artifacts.command import main
from artifacts.errors import UserError, nearest
from artifacts.files import atomic_folder, only_maker, read_json, write_json
from artifacts.processes import free_port
from artifacts.stage import report_gate, report_metrics
from launch.instructions.lint import Findings
from launch.posttraining.ahead import check_job, check_packages
from launch.posttraining.chat_model import (
    VALUE_HEAD,
    cast_weights,
    check_adapter,
    check_model,
    check_reward_model,
    fill_adapter,
    fill_chat_model,
    fill_reward_model,
    weights_type,
)
from launch.posttraining.data import check_data
from launch.posttraining.job import OVERLAY, PROVENANCE, TRL, Job, fingerprint, is_done, provenance
from launch.posttraining.merge_gate import (
    adapter_logits,
    adapter_rewards,
    check_merge,
    check_rewards,
    merged_logits,
    merged_rewards,
)
from launch.posttraining.metrics import training_metrics
from launch.posttraining.recipe import TRACKERS, recipe_settings
from launch.posttraining.tool import run_tool, shown
from launch.posttraining.work_folder import prepare_work, render, wait_for_work


def train(job: Job, mark: str, ids: dict[str, int], data: dict[str, Findings], resumed_at: int) -> dict[str, Any]:
    """Run the tool and make the output folder from its result; returns the metrics."""
    finished = job.work / "trained.json"  # survives a kill between the end of training and the output folder
    if finished.exists():
        metrics = read_json(finished)
    else:
        if resumed_at:
            print(f"resuming from step {resumed_at}", flush=True)
        seconds = run_tool(job)
        metrics = {**training_metrics(job, data, resumed_at, seconds), "tool_seconds": round(seconds, 1)}
        write_json(finished, metrics)
    with atomic_folder(job.output) as aside:
        if job.gives_adapter:
            fill_adapter(job.raw, aside, value_head=job.stage == "rm")
        else:
            fill_chat_model(job.model, job.raw, aside, ids)
        write_json(aside / PROVENANCE, provenance(job, mark))
    for checkpoint in job.raw.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    shutil.rmtree(job.work / "cache", ignore_errors=True)
    return metrics


def merge(job: Job, mark: str, ids: dict[str, int]) -> dict[str, Any]:
    """Merge an adapter and check the result; returns metrics. A reward model's adapter gives a sequence classifier.

    The model is merged and checked in float32; a chat model is then stored in the dtype of the original model.
    """
    assert job.adapter is not None
    judges = (job.adapter / VALUE_HEAD).exists()
    with ThreadPoolExecutor(1) as pool:
        expected = pool.submit(adapter_logits, job.model, job.adapter)  # while LLaMA-Factory loads
        seconds = run_tool(job)
        logits, moved = expected.result()
    with atomic_folder(job.output) as aside:
        fill_chat_model(job.model, job.raw, aside, ids)
        gate = check_merge(logits, merged_logits(job.model, aside), moved)
        write_json(job.work / "merge.json", gate)
        if judges:
            rewards = adapter_rewards(job.model, job.adapter)
            fill_reward_model(aside, job.adapter, aside)
            gate |= check_rewards(rewards, merged_rewards(aside))
            write_json(job.work / "merge.json", gate)
        for what, difference in (("logits", gate["max_abs_diff"]), ("rewards", gate.get("max_reward_diff", 0.0))):
            if not difference <= gate["tolerance"]:  # also true for NaN
                raise UserError(
                    f"merged {what} differ from the adapter's by {difference:.3g} (allowed {gate['tolerance']:g}): "
                    f"was {job.adapter} trained on {job.model}? See {job.work / 'merge.json'}"
                )
        kind = weights_type(job.model)
        if not judges and kind != weights_type(aside):
            cast_weights(aside, kind)
        write_json(aside / "merge.json", {**gate, "stored_in": weights_type(aside)})
        write_json(aside / PROVENANCE, provenance(job, mark))
    shutil.rmtree(job.raw)
    return {**gate, "tool_seconds": round(seconds, 1)}


def run_job(job: Job, dry_run: bool = False, prepare: bool = False) -> None:
    """Check everything, then train or merge; see the module's docstring.

    Raises:
        UserError: an input is wrong, the tool failed, or a check of its result failed.
    """
    ids = check_model(job.model)
    data: dict[str, Findings] = {}
    if job.adapter:
        check_adapter(job.adapter)
    if job.reward_model:
        check_reward_model(job.reward_model, as_adapter=job.stage == "ppo" and not job.reward_port)
    if job.data:
        data = check_data(job)
    check_packages(job)
    if dry_run:
        print(f"# {job.yaml}\n{render(job)}\n{shown(job)}")
        return
    if job.stage == "ppo" and not (OVERLAY / "trl").exists():
        raise UserError(f"LLaMA-Factory's PPO needs trl 0.9.6 in {OVERLAY.name}, which is missing: run `make env-ppo`")
    mark = fingerprint(job)
    if is_done(job, mark):
        print(f"{job.output} is already finished with the same inputs and settings: nothing to do")
        known = job.work / "metrics.json"
        if known.exists():
            report_metrics(**read_json(known))
        return
    if job.node:
        wait_for_work(job, mark)
        run_tool(job)
        return
    with only_maker(job.output):
        resumed_at = prepare_work(job, mark)
        print(f"rendered {job.yaml}\n+ {shown(job)}", flush=True)
        if prepare:
            return
        metrics = merge(job, mark, ids) if job.exports else train(job, mark, ids, data, resumed_at)
        write_json(job.work / "metrics.json", metrics)
        if job.exports:
            what = f"merged logits of {job.output.name}"
            report_gate(what, f"differ from the adapter's by at most {metrics['max_abs_diff']:.1e}")
        else:
            read = ", ".join(f"{name} {found.examples:,}" for name, found in data.items())
            report_gate(f"data of {job.recipe}", f"no faulty row ({read}), every answer ends its turn")
        report_metrics(**metrics)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe",
        metavar="RECIPE",
        help="a file in llamafactory_configs/: sft_full, sft_lora, sft_qlora, reward, dpo, kto, ppo, grpo, merge",
    )
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder of the model to start from")
    parser.add_argument("--data", type=Path, help="folder with <dataset>.json files (training recipes)")
    parser.add_argument("--adapter", type=Path, help="folder of the LoRA adapter (recipe merge)")
    parser.add_argument(
        "--reward-model", type=Path, help="merged output of recipe `reward` (ppo: required, grpo: optional)"
    )
    parser.add_argument(
        "--output-folder", "--output", dest="output", type=Path, required=True,
        help="folder to write; the work folder is <output>.work beside it",
    )  # fmt: skip
    parser.add_argument("--hardware", default="cpu", help="a file in llamafactory_configs/hardware/ (default: cpu)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="replace a key of the recipe")
    parser.add_argument("--seed", type=int, help="seed of data order and initial weights (default: the recipe's)")
    parser.add_argument("--track", choices=TRACKERS, help="tracker for the curves (default: the recipe's, tensorboard)")
    parser.add_argument("--dry-run", action="store_true", help="print the YAML and the command, write nothing")
    parser.add_argument("--prepare", action="store_true", help="fill the work folder, print the command, run nothing")


def job_of(options: argparse.Namespace) -> Job:
    """The job for these options. Raises UserError if an option is missing or does not fit the recipe."""
    recipe = recipe_settings(options.recipe, options.hardware, options.set, options.seed, options.track)

    def absolute(path: Path | None) -> Path | None:
        return Path(os.path.abspath(path)) if path else None

    job = Job(
        recipe=Path(options.recipe).stem,
        model=Path(os.path.abspath(options.model)),
        output=Path(os.path.abspath(options.output)),
        data=None if recipe.exports else absolute(options.data),
        adapter=absolute(options.adapter) if recipe.exports else None,
        settings=recipe.settings,
        exports=recipe.exports,
        tool=recipe.tool,
        reward_model=absolute(options.reward_model),
        environment=recipe.environment,
        reward_port=free_port() if recipe.settings.get("reward_model_type") == "api" else 0,
    )
    if job.exports and not job.adapter:
        raise UserError(f"recipe {job.recipe} merges an adapter: give it with --adapter")
    if not job.exports and not job.data:
        raise UserError(f"recipe {job.recipe} needs data: give the folder of its data files with --data")
    if options.adapter and not job.exports:
        raise UserError(f"recipe {job.recipe} takes no --adapter: merge it first, then give the result with --model")
    if job.reward_model and job.stage not in ("ppo", "grpo"):
        raise UserError(f"recipe {job.recipe} takes no --reward-model: only ppo and grpo do")
    if job.stage == "ppo" and not job.reward_model:
        raise UserError(
            f"recipe {job.recipe} needs a reward model: give the merged output of recipe `reward` with --reward-model"
        )
    if job.tool == TRL:
        check_rewards_given(job)
    return job


def check_rewards_given(job: Job) -> None:
    """Raise UserError if there is no reward, a reward does not exist, or the number of weights is wrong."""
    from launch.posttraining.rewards import load, rewards_of_trl

    names = job.settings.get("reward_funcs") or []
    if not isinstance(names, list):
        raise UserError(f"reward_funcs is {names!r}: write a list, e.g. [launch.posttraining.rewards.exact_answer]")
    for name in names:
        if "." in name:
            load(name)
        elif name not in (known := rewards_of_trl()):  # a name without a dot is one of TRL's own
            raise UserError(
                f"reward_funcs: TRL has no {name!r}{nearest(name, known)}; write MODULE.FUNCTION for one of your own"
            )
    count = len(names) + (job.reward_model is not None)
    weights = job.settings.get("reward_weights")
    if not count:
        raise UserError(f"recipe {job.recipe} has no reward: set reward_funcs, or give --reward-model")
    if weights is not None and len(weights) != count:
        first = "the reward model's first, then " if job.reward_model else ""
        raise UserError(
            f"reward_weights has {len(weights)} numbers for {count} rewards: write {first}one for each of reward_funcs"
        )


def look_ahead(options: argparse.Namespace, ahead: Ahead) -> None:
    check_job(job_of(options), options.hardware, ahead)


def run(options: argparse.Namespace) -> None:
    run_job(job_of(options), options.dry_run, options.prepare)


if __name__ == "__main__":
    main(__name__)
