"""Check that this machine can run the server: a free port, enough memory, a core or GPU for every rank."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

from artifacts.errors import UserError
from artifacts.processes import free_port
from launch.serving.plan import MB, Plan
from launch.serving.preflight import WEIGHT_TYPES, Weights

# Memory of vLLM 0.32 on a CPU besides weights and cache, in MB: server and engine; with --tp also a process per rank.
# For a tiny model `benchmarks.serve.memory_mb` found 1,189 with one rank, 2,276 with two; a start needs a quarter more.
ENGINE_MB = 1500
RANK_MB = 700


def port_is_free(host: str, port: int) -> bool:
    """Whether a server can bind to the port. Raises UserError if the port is invalid or needs root."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OverflowError:
            raise UserError(f"--port {port}: ports go from 1 to 65535") from None
        except OSError as error:
            if error.errno == errno.EACCES:
                raise UserError(f"--port {port}: only root may use ports below 1024: give --port 8000") from None
            return False
    return True


def check_port(host: str, port: int) -> None:
    if port < 1 or not port_is_free(host, port):
        if port < 1:
            raise UserError(f"--port {port}: ports go from 1 to 65535")
        raise UserError(f"port {port} on {host} is in use: stop that program, or give --port {free_port(host)}")


def available_mb() -> int:
    """Memory available to a new process, in MB: the kernel's estimate, or the limit of the control group if lower."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024 // MB
    group = Path("/sys/fs/cgroup") / Path("/proc/self/cgroup").read_text().strip().rpartition("::/")[2]
    try:
        limit, used = (group / "memory.max").read_text().strip(), int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return free
    return free if limit == "max" else min(free, (int(limit) - used) // MB)


def check_memory(plan: Plan, weights: Weights, available: int) -> None:
    """Raise UserError if loaded weights, cache and engine of all ranks do not fit into `available` MB."""
    size = 4 if plan.cpu else max((WEIGHT_TYPES.get(kind, 2) for kind in weights.types), default=2)
    loaded = weights.numbers * size // MB
    need = loaded + plan.cache_mb * plan.tp + ENGINE_MB + (RANK_MB * plan.tp if plan.tp > 1 else 0)
    if need > available:
        mends = f"stop other programs, or give a --max-model-len below {plan.length}"
        raise UserError(
            f"{plan.folder} needs about {need:,} MB (weights {loaded:,}, cache {plan.cache_mb * plan.tp:,}, engine the "
            f"rest), but only {available:,} MB are free: {mends}"
        )


def gpu_free_mb() -> list[int]:
    """Free memory of every visible GPU, in MB, from nvidia-smi."""
    query = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"nvidia-smi does not answer ({error}): check the NVIDIA driver") from None
    everything = [int(line) for line in answer.split() if line.isdigit()]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None or not all(part.strip().isdigit() for part in visible.split(",")):
        return everything
    return [everything[int(part)] for part in visible.split(",") if int(part) < len(everything)]


def check_gpus(plan: Plan, weights: Weights, free: list[int]) -> None:
    """Raise UserError if there is not a GPU for every rank with enough free memory for its part of the weights."""
    if len(free) < plan.tp:
        raise UserError(f"--tp {plan.tp}: this machine shows {len(free)} GPUs, but each rank needs one: lower --tp")
    part = weights.numbers * (4 if plan.dtype in ("float32", "float") else 2) // MB // plan.tp
    if part > min(free[: plan.tp]):
        raise UserError(
            f"{plan.folder} needs {part:,} MB of weights on each GPU, but only {min(free[: plan.tp]):,} MB are free: "
            "stop other programs there (nvidia-smi lists them), or give a larger --tp"
        )


def check_parallel(folder: Path, config: dict[str, Any], tp: int) -> None:
    """Raise UserError if --tp does not divide a dimension of the model; the engines report it late, from a worker."""
    if tp < 1:
        raise UserError(f"--tp {tp}: it must be at least 1")
    for key in ("num_attention_heads", "intermediate_size"):
        if config.get(key, tp) % tp:
            raise UserError(
                f"--tp {tp} does not divide {key} {config[key]} in {folder / 'config.json'}: give a divisor"
            )
    groups = config.get("num_key_value_heads") or tp
    if groups % tp and tp % groups:
        raise UserError(f"--tp {tp}: {folder / 'config.json'} has {groups} key-value heads: give a divisor or multiple")
