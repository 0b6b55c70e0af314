"""Tell the user, before `myllm run` starts, when the machine's GPU will stay unused.

A pipeline has the value `hardware`. With `cpu` on a machine with an NVIDIA GPU, one line says how to use the GPU.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from artifacts.layout import lock_of
from launch.pipeline.definition import TRAINERS, Pipeline, Stage, is_myllm
from launch.pretraining.recipe import names

LARGE_MB = 70_000  # the driver reports 81,559 MB on an 80 GB H100, 24,564 on an RTX 4090


@dataclass(frozen=True)
class VisibleGpu:
    name: str
    memory_mb: int


def visible_gpu() -> VisibleGpu | None:
    """The first NVIDIA GPU that a program started here would see; None if there is none or all are hidden."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return None
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True).stdout
        name, _, memory = answer.splitlines()[0].rpartition(",")
        return VisibleGpu(name.strip(), int(memory))
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):  # nvidia-smi is missing in many containers
        return VisibleGpu("an NVIDIA GPU", 0) if Path("/dev/nvidiactl").exists() else None


def notice(
    pipeline: Pipeline,
    stages: list[Stage],
    probe: Callable[[], VisibleGpu | None] = visible_gpu,
    environment: Callable[[], str] = lambda: lock_of("train"),
) -> str | None:
    """The line to print before these stages run; None if there is nothing to say."""
    hardware = pipeline.values.get("hardware")
    trains = any(is_myllm(command, *TRAINERS) for stage in stages for command in stage.commands)
    gpu = probe() if hardware == "cpu" and trains else None
    if gpu is None:
        return None
    files = [name for name in names("hardware") if name.startswith("gpu-")]
    fitting = "gpu-1-80gb" if gpu.memory_mb >= LARGE_MB else "gpu-1-24gb"
    before = "make env-gpu && " if environment() == "train" else ""
    return (
        f"This machine has a GPU ({gpu.name}); this run trains on the CPU. To use the GPU (not tried yet): "
        f"{before}myllm run {pipeline.name} --set hardware={fitting} (hardware files: {', '.join(files)})"
    )
