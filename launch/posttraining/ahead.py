"""What a post-training will need and make, known before its model and its data are made (`myllm check`)."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from artifacts.ahead import Ahead
from artifacts.errors import UserError
from artifacts.files import read_json
from artifacts.layout import REPOSITORY, lock_of, relative
from launch.posttraining.data import longest_allowed
from launch.posttraining.job import OVERLAY, Job
from launch.pretraining.gpus import gpu

MFU = 0.25  # of fine-tuning: batches are padded, and full layers are recomputed

# Packages that a setting needs; `environments/gpu.lock` has them.
NEEDED = {"deepspeed": "deepspeed", "quantization_bit": "bitsandbytes"}


def missing_package(job: Job) -> str:
    """Which package a setting needs that is not installed, with the mend; or ""."""
    for key, package in NEEDED.items():
        value = job.settings.get(key)
        if value is not None and find_spec(package) is None:
            return (
                f"{key} is {value}, which needs the package {package}: it is in environments/gpu.lock, run `make "
                f"env-train GPU=yes`, or choose another --hardware or recipe"
            )
    return ""


def wrong_file(job: Job) -> str:
    """Which file a setting names that does not exist, with the mend; or ""."""
    config = job.settings.get("deepspeed")
    if isinstance(config, str) and not (REPOSITORY / config).exists():
        return f"deepspeed is {config}, which does not exist: give the path of a DeepSpeed configuration"
    return ""


def check_packages(job: Job) -> None:
    """Raise UserError if a setting needs a package or a file that is not there."""
    if text := missing_package(job) or wrong_file(job):
        raise UserError(text)


def gpus_of(job: Job) -> int:
    """GPUs of one machine that the job uses; 0 on a CPU."""
    if job.settings.get("use_cpu") or job.exports:
        return 0
    return int(job.environment.get("NPROC_PER_NODE", 1))


def positions_of(job: Job, ahead: Ahead) -> int | None:
    """The longest sequence of the model, which may not have been made yet; None if it is not known."""
    if (job.model / "config.json").exists():
        return read_json(job.model / "config.json").get("max_position_embeddings")
    return ahead.facts(job.model).get("positions")


def hours_of_tokens(job: Job, facts: dict[str, Any], gpus: int) -> str:
    """How long a training takes for its tokens, which are not known before its data is there; "" without a GPU."""
    if job.exports or not gpus or not facts.get("gpu"):
        return ""
    rate = gpus * gpu(facts["gpu"]).peak_tflops * 1e12 * MFU / (6 * facts["parameters"])
    return f"about {1e8 / rate / 3600:.2f} h for each 100M tokens of data, at an MFU of {100 * MFU:.0f} % (assumed)"


def check_job(job: Job, hardware: str, ahead: Ahead) -> None:
    """Note what the job needs, and every problem that can be known now."""
    ahead.wants(job.model, "an earlier stage must make this model; check the path")
    for path in filter(None, (job.adapter, job.reward_model)):
        ahead.wants(path, "an earlier stage must make it; check the path")
    facts: dict[str, Any] = ahead.facts(job.model)
    if job.data:
        for name in job.datasets():
            ahead.wants(job.data / f"{name}.json", "correct the dataset's name, or the stage that makes it")
        keys, limit = longest_allowed(job)
        positions = positions_of(job, ahead)
        if positions and limit > positions:
            ahead.problem(
                f"{keys} is {limit}, but {relative(job.model)} will have max_position_embeddings {positions}: lower it"
            )
    if text := missing_package(job):
        ahead.machine(text)
    if text := wrong_file(job):
        ahead.problem(text)
    if job.stage == "ppo" and not (OVERLAY / "trl").exists():
        ahead.machine(f"PPO needs trl 0.9.6 in {OVERLAY.name}, which is missing: run `make env-ppo`")
    gpus = gpus_of(job)
    if gpus and lock_of("train") == "train":
        ahead.machine(f"hardware {hardware} needs a GPU, but .venv is the CPU's: run `make env-gpu`, or --hardware cpu")
    size = float(facts.get("parameters", 0))
    # the result, and its checkpoints with Adam's state: of all weights, or of a small adapter
    whole = not job.gives_adapter and not job.exports
    saves = int(job.settings.get("save_total_limit") or 1) if whole else 0
    ahead.needs(hours_of_tokens(job, facts, gpus), disk=4 * size + saves * 14 * size, gpus=float(gpus))
    ahead.makes(job.output, **facts)
