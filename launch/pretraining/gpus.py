"""Peak and memory of the GPUs that a recipe's key `gpu` may name, from launch/pretraining/gpus.yaml."""

from __future__ import annotations

from dataclasses import dataclass

from artifacts.errors import UserError, nearest
from artifacts.files import read_yaml
from artifacts.layout import REPOSITORY

GPUS = "launch/pretraining/gpus.yaml"


@dataclass(frozen=True)
class Gpu:
    name: str
    peak_tflops: float  # dense bf16
    memory_gb: float


def gpu(name: str) -> Gpu:
    """A GPU of launch/pretraining/gpus.yaml. Raises UserError, which names the nearest, if it is unknown."""
    known = read_yaml(REPOSITORY / GPUS)
    if name not in known:
        raise UserError(
            f"{GPUS} has no {name!r}{nearest(name, known)}; it has {', '.join(known)}; add other GPUs there"
        )
    return Gpu(name, known[name]["peak_tflops"], known[name]["memory_gb"])
