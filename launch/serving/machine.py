"""Whether this machine can take the server: a free port, enough memory, a core or GPU for every rank."""

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

# Memory of vLLM 0.32 on a CPU besides weights and cache, in MB: server and engine; each rank's own process with --tp.
# `benchmarks.serve.memory_mb` found 1,189 with one rank and 2,276 with two, a tiny model; a quarter more for the start.
ENGINE_MB = 1500
RANK_MB = 700


def port_is_free(host: str, port: int) -> bool:
    """Whether a server may bind there; raises UserError for a port that this user may not take at all."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OverflowError:
            raise UserError(f"--port {port}: ports go from 1 to 65535") from None
        except OSError as error:
            if error.errno == errno.EACCES:
                raise UserError(f"--port {port}: only root may listen below 1024, pass --port 8000") from None
            return False
    return True


def check_port(host: str, port: int) -> None:
    if port < 1 or not port_is_free(host, port):
        if port < 1:
            raise UserError(f"--port {port}: ports go from 1 to 65535")
        raise UserError(f"port {port} on {host} is in use: end what listens there, or pass --port {free_port(host)}")


def available_mb() -> int:
    """Memory that a new process can have, in MB: the kernel's estimate, or less where a control group allows less."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024 // MB
    group = Path("/sys/fs/cgroup") / Path("/proc/self/cgroup").read_text().strip().rpartition("::/")[2]
    try:
        limit, used = (group / "memory.max").read_text().strip(), int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return free
    return free if limit == "max" else min(free, (int(limit) - used) // MB)


def check_memory(plan: Plan, weights: Weights, available: int) -> None:
    """Weights as they are loaded, cache, and the engine itself fit into `available` MB; all ranks run here."""
    size = 4 if plan.cpu else max((WEIGHT_TYPES.get(kind, 2) for kind in weights.types), default=2)
    loaded = weights.numbers * size // MB
    need = loaded + plan.cache_mb * plan.tp + ENGINE_MB + (RANK_MB * plan.tp if plan.tp > 1 else 0)
    if need > available:
        mends = f"end other programs, or pass a --max-model-len below {plan.length}"
        raise UserError(
            f"{plan.folder} needs about {need:,} MB (weights {loaded:,}, cache {plan.cache_mb * plan.tp:,}, the engine "
            f"itself the rest) and {available:,} MB are free: {mends}"
        )


def gpu_free_mb() -> list[int]:
    """Free memory of every visible GPU, in MB, as nvidia-smi tells it."""
    query = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"nvidia-smi does not answer ({error}): mend the driver") from None
    everything = [int(line) for line in answer.split() if line.isdigit()]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None or not all(part.strip().isdigit() for part in visible.split(",")):
        return everything
    return [everything[int(part)] for part in visible.split(",") if int(part) < len(everything)]


def check_gpus(plan: Plan, weights: Weights, free: list[int]) -> None:
    """A GPU for every rank, each with room for its part of the weights."""
    if len(free) < plan.tp:
        raise UserError(f"--tp {plan.tp}: this machine shows {len(free)} GPUs, one for each rank is needed")
    part = weights.numbers * 2 // MB // plan.tp
    if part > min(free[: plan.tp]):
        raise UserError(
            f"{plan.folder} needs {part:,} MB of weights on each GPU and {min(free[: plan.tp]):,} MB are free: "
            "end what runs there (nvidia-smi), or pass a larger --tp"
        )


def check_parallel(folder: Path, config: dict[str, Any], tp: int) -> None:
    """Every dimension that tensor parallel cuts can be cut; both engines refuse the rest after seconds, in a worker."""
    if tp < 1:
        raise UserError(f"--tp {tp}: at least 1")
    for key in ("num_attention_heads", "intermediate_size"):
        if config.get(key, tp) % tp:
            raise UserError(f"--tp {tp} does not divide the {config[key]} of {key} in {folder / 'config.json'}")
    groups = config.get("num_key_value_heads") or tp
    if groups % tp and tp % groups:
        raise UserError(f"--tp {tp}: {folder / 'config.json'} has {groups} key-value heads: pass a divisor or multiple")
