"""A post-training job: recipe, inputs, output, and the fingerprint that shows whether it is already done.

The modules of `myllm posttrain` pass this `Job` on: `recipe` (keys) -> Job -> `data` (rows) -> `work_folder` -> `tool`
(the upstream command) -> `metrics`, `chat_model`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from artifacts.files import sha256
from artifacts.layout import REPOSITORY

PROVENANCE = "posttrain.json"
OVERLAY = REPOSITORY / ".venv-ppo"  # trl 0.9.6, put before `.venv` on the path, for PPO only
PACKAGES = ("llamafactory", "transformers", "trl", "peft", "datasets", "torch")
LLAMAFACTORY, TRL = "llamafactory", "trl"


@dataclass(frozen=True)
class Job:
    """One resolved command line: recipe, inputs and output."""

    recipe: str
    model: Path
    output: Path
    data: Path | None
    adapter: Path | None
    settings: dict[str, Any]  # recipe, hardware file, --set and --seed; no paths of this machine
    exports: bool = False  # `llamafactory-cli export` instead of `train`
    tool: str = LLAMAFACTORY
    reward_model: Path | None = None
    reward_port: int = 0  # port of launch/posttraining/reward_server.py for PPO; 0: the tool loads the reward model
    environment: dict[str, str] = field(default_factory=dict)  # of the hardware file: number and place of processes

    @property
    def work(self) -> Path:
        return self.output.with_name(self.output.name + ".work")

    @property
    def raw(self) -> Path:
        """The output folder of the tool itself."""
        return self.work / "output"

    @property
    def yaml(self) -> Path:
        return self.work / f"{self.recipe}.yaml"

    @property
    def stage(self) -> str:
        """LLaMA-Factory's name of the training stage (`sft`, `rm`, `ppo`, ...), `grpo`, or `merge`."""
        if self.tool == TRL:
            return "grpo"
        return "merge" if self.exports else str(self.settings["stage"])

    @property
    def gives_adapter(self) -> bool:
        if self.tool == TRL:
            return bool(self.settings.get("use_peft"))
        return not self.exports and self.settings.get("finetuning_type") == "lora"

    @property
    def node(self) -> int:
        """Rank of this machine. Only machine 0 writes files that the tool does not write itself."""
        return int(self.environment.get("NODE_RANK", 0))

    @property
    def judge(self) -> Path | None:
        """The reward model that PPO calls over HTTP; None if there is none or the tool loads it itself."""
        return self.reward_model if self.reward_port else None

    @property
    def processes(self) -> int:
        if not self.environment.get("FORCE_TORCHRUN"):
            return 1
        return int(self.environment.get("NPROC_PER_NODE", 1)) * int(self.environment.get("NNODES", 1))

    def datasets(self) -> list[str]:
        """Names of the data files, training files first."""
        keys = ("dataset_train_split", "dataset_test_split") if self.tool == TRL else ("dataset", "eval_dataset")
        names = [self.settings.get(key) for key in keys]
        return [part.strip() for name in names if name for part in str(name).split(",")]

    def held_out(self) -> list[str]:
        name = self.settings.get("dataset_test_split" if self.tool == TRL else "eval_dataset") or ""
        return [part.strip() for part in str(name).split(",") if part.strip()]


def versions(job: Job) -> dict[str, str]:
    """Versions of the packages that affect the result; for PPO, trl is the overlay's."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    if job.stage == "ppo":
        found |= {d.metadata["Name"]: d.version for d in distributions(path=[str(OVERLAY)])}
    return found


def fingerprint(job: Job) -> str:
    """Hash of everything that affects the result: settings, content of models and data, versions, processes."""
    parts: dict[str, Any] = {"recipe": job.recipe, "settings": job.settings, "versions": versions(job)}
    for name in ("model", "adapter", "reward_model"):
        if folder := getattr(job, name):
            parts[name] = sha256(folder)
    if job.data:
        parts["data"] = {name: sha256(job.data / f"{name}.json") for name in job.datasets()}
    for name in job.settings.get("reward_funcs") or []:
        spec = find_spec(name.rpartition(".")[0]) if "." in name else None
        if spec and spec.origin:
            parts[f"reward {name}"] = sha256(Path(spec.origin))
    if job.processes > 1:
        parts["processes"] = job.processes
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def is_done(job: Job, mark: str) -> bool:
    try:
        return json.loads((job.output / PROVENANCE).read_text(encoding="utf-8"))["fingerprint"] == mark
    except (OSError, ValueError, KeyError, TypeError):
        return False


def provenance(job: Job, mark: str) -> dict[str, Any]:
    """How the output was made; without times and paths, so that the same inputs give the same bytes."""
    return {
        "fingerprint": mark,
        "recipe": job.recipe,
        "stage": job.stage,
        "settings": job.settings,
        "versions": versions(job),
    }
