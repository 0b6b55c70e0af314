"""The work folder `<output>.work/`: rendered YAML, data description, the tool's own output with its checkpoints, log.

The files of an interrupted run are kept if inputs and settings are the same, else deleted. Incomplete checkpoints are
found and deleted, because the tools crash on one.
"""

from __future__ import annotations

import json
import shutil
import time
import zipfile
from pathlib import Path
from typing import Any

from artifacts.errors import UserError
from artifacts.files import write_text
from artifacts.layout import REPOSITORY
from launch.posttraining.chat_model import VALUE_HEAD, float32_view, weights_type
from launch.posttraining.data import write_data
from launch.posttraining.job import TRL, Job
from launch.posttraining.reward_server import address

WAIT = 1800.0  # seconds that another machine waits for the first one to prepare the work folder


def render(job: Job, checkpoint: Path | None = None, model: Path | None = None) -> str:
    """The YAML for the tool: the settings and the paths of this run.

    Args:
        checkpoint: checkpoint to resume a reward model from; LLaMA-Factory loads its adapter only from that key.
        model: folder that the tool loads in place of the job's model.
    """
    import yaml

    paths: dict[str, Any] = {"model_name_or_path": str(model or job.model)}
    if job.tool == TRL:
        paths |= {"dataset_name": str(job.work / "data"), "output_dir": str(job.raw)}
        if job.reward_model:
            paths["reward_model_name_or_path"] = str(job.reward_model)
    elif job.exports:
        paths |= {"adapter_name_or_path": str(job.adapter), "export_dir": str(job.raw)}
    else:
        if job.adapter or checkpoint:
            paths["adapter_name_or_path"] = str(checkpoint or job.adapter)
        if job.reward_model:
            paths["reward_model"] = address(job.reward_port) if job.judge else str(job.reward_model)
        paths |= {"dataset_dir": str(job.work), "output_dir": str(job.raw), "cache_dir": str(job.work / "cache")}
    if not job.exports:
        paths["logging_dir"] = str(job.work / "tracking")
        paths["logging_nan_inf_filter"] = False  # else a NaN loss would be logged as the previous loss
    settings = dict(job.settings)
    if isinstance(settings.get("deepspeed"), str):  # its path is relative to the repository
        settings["deepspeed"] = str(REPOSITORY / settings["deepspeed"])
    return yaml.safe_dump({**paths, **settings}, allow_unicode=True, sort_keys=False)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _whole_zip(path: Path) -> bool:
    """Whether a file of `torch.save` is intact: it is a zip archive with a checksum for each tensor."""
    with zipfile.ZipFile(path) as archive:
        return archive.testzip() is None


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint is complete: weights, optimizer and trainer state are all readable.

    DeepSpeed's optimizer is in the folder that the file `latest` names, one part for each process.
    """
    from safetensors import SafetensorError, safe_open

    weights = [p for p in checkpoint.glob("*.safetensors")]
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        if not weights or state["global_step"] != step_of(checkpoint):
            return False
        for file in weights:
            with safe_open(file, framework="numpy") as tensors:  # raises if the file is shorter than its header says
                tensors.keys()
        parts = [checkpoint / "optimizer.pt"]
        if (checkpoint / "latest").exists():
            parts = sorted((checkpoint / (checkpoint / "latest").read_text().strip()).glob("*.pt"))
        return bool(parts) and all(map(_whole_zip, [*parts, checkpoint / "scheduler.pt"]))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, zipfile.BadZipFile):
        return False


def clean_checkpoints(raw: Path, last: str = "trainer_state.json") -> Path | None:
    """Delete incomplete checkpoints; returns the newest complete one, or None.

    Args:
        last: name of the file that is written after all others.
    """
    whole = []
    for checkpoint in raw.glob("checkpoint-*"):
        if is_whole(checkpoint) and (checkpoint / last).exists():
            whole.append(checkpoint)
        else:
            print(f"{checkpoint.name} is incomplete: deleted")
            shutil.rmtree(checkpoint)
    return max(whole, key=step_of, default=None)


def prepare_work(job: Job, mark: str) -> int:
    """Fill the work folder, keep the files of an interrupted run of the same job; returns the step to resume from."""
    marker = job.work / "fingerprint"
    if job.work.exists() and not (marker.is_file() and marker.read_text(encoding="utf-8").strip() == mark):
        print(f"{job.work.name} was made with other inputs or settings: starting over")
        shutil.rmtree(job.work)
    job.work.mkdir(parents=True, exist_ok=True)
    newest, judges, model = None, job.stage == "rm" and job.gives_adapter, None
    if job.exports:
        shutil.rmtree(job.raw, ignore_errors=True)
        if weights_type(job.model) != "float32":
            model = float32_view(job.model, job.work / "model-in-float32")
    elif job.stage == "ppo" and job.raw.exists():
        if not (job.work / "trained.json").exists():
            print("LLaMA-Factory cannot resume PPO: starting from step 0")
            shutil.rmtree(job.raw)
    elif job.raw.exists():
        newest = clean_checkpoints(job.raw, last=VALUE_HEAD) if judges else clean_checkpoints(job.raw)
        if newest and judges:
            # The trainer restores the file of this name; without it LLaMA-Factory 0.9.4 cannot resume.
            shutil.copyfile(newest / VALUE_HEAD, newest / "model.safetensors")
    if job.data:
        write_data(job)
    write_text(job.yaml, render(job, newest if judges else None, model))
    write_text(marker, mark + "\n")  # written last: it tells the other machines that the folder is ready
    return step_of(newest) if newest else 0


def wait_for_work(job: Job, mark: str) -> None:
    """On every machine but the first: wait until the first has prepared the shared work folder for this job."""
    deadline = time.monotonic() + WAIT
    marker = job.work / "fingerprint"
    while not (marker.is_file() and marker.read_text(encoding="utf-8").strip() == mark and job.yaml.is_file()):
        if time.monotonic() > deadline:
            raise UserError(
                f"the first machine has not prepared {job.work} in {WAIT:.0f} s: is that folder shared by all machines?"
            )
        time.sleep(1)
