"""A server to start: what every engine has to be told. Nothing is started here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.errors import UserError

MB = 1 << 20
# Two sequences of full length must fit. With less than this, a tiny model's cache would be smaller than vLLM's buffers.
SMALLEST_CACHE_MB = 256


@dataclass(frozen=True)
class Plan:
    """A server to start. `length` is the largest number of tokens in prompt and reply; `tp` is tensor parallel."""

    engine: str
    folder: Path
    name: str
    host: str
    port: int
    length: int
    tp: int = 1
    cpu: bool = True
    dtype: str | None = None  # None: float32 on a CPU, bfloat16 on a GPU
    cache_mb: int = SMALLEST_CACHE_MB
    extra: tuple[str, ...] = ()


def has_gpu() -> bool:
    return Path("/dev/nvidiactl").exists()


def cache_mb(config: dict[str, Any], length: int) -> int:
    """MB of key-value cache on a CPU, in float32: two sequences of full length, at least `SMALLEST_CACHE_MB`."""
    heads = config.get("num_attention_heads") or 1
    width = config.get("head_dim") or config.get("hidden_size", 0) // heads
    token = 2 * 4 * config.get("num_hidden_layers", 1) * (config.get("num_key_value_heads") or heads) * width
    blocks = -(-length // 128) + 1  # vLLM's CPU blocks hold 128 tokens
    return max(SMALLEST_CACHE_MB, -(-2 * blocks * 128 * token // MB))


def cores_of_ranks(tp: int) -> list[str]:
    """One of this process's cores for each rank. Raises UserError if there are fewer cores."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < tp:
        raise UserError(f"--tp {tp}: this process may use {len(cores)} cores, but each rank needs one: lower --tp")
    return [str(core) for core in cores[:tp]]
