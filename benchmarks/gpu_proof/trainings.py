"""Run several short trainings in one process, so that Python, torch, CUDA and Megatron start only once.

    python -m benchmarks.gpu_proof.trainings JOBS.json

JOBS.json is a list of `Job`s as objects. Each is trained by stock `megatron.training.pretrain()` on made-up tokens
(`benchmarks.bare_megatron`) and has its own log. After each job its result is printed as a line of JSON: `{"name",
"memory_gb", "left_gb", "profile", "seconds"}`, or `{"name", "error"}`. The next job runs even if one fails.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.one_process import output_to, pretrain

# Kinds of kernels by words in their names; the first match counts. Names are from cuBLAS, cuDNN, PyTorch and Inductor.
KINDS = (
    ("communication", ("nccl",)),
    ("attention", ("flash", "fmha", "sdpa", "attention")),
    ("matrix products", ("gemm", "nvjet", "cutlass", "wgmma", "xmma", "splitk", "aten::mm", "addmm", "bmm")),
    ("loss", ("softmax", "cross_entropy", "nll_loss", "logsumexp", "gather", "scatter")),
    ("optimizer", ("multi_tensor", "adam", "lerp", "addcdiv", "addcmul", "foreach")),
    ("norms", ("norm",)),
    ("copies", ("memcpy", "memset", "copy")),
    ("embedding", ("embedding", "index")),
    ("elementwise", ("elementwise", "triton", "vectorized", "reduce", "cat", "aten::", "silu", "mul", "add")),
)


@dataclass(frozen=True)
class Job:
    """One training."""

    name: str
    flags: list[str]  # Megatron's
    log: str  # file for its output
    profile_step: int = 0  # the step to profile; 0: none
    fused_adam: bool = False  # use torch's fused kernel
    compile_layers: bool = False  # compile each transformer layer with torch.compile


def kind_of(kernel: str) -> str:
    """The kind of a GPU kernel (or a CPU operator), from its name."""
    low = kernel.lower()
    return next((kind for kind, words in KINDS if any(word in low for word in words)), "other")


def summed(events: Any, wall_ms: float, on_gpu: bool) -> dict[str, Any]:
    """Milliseconds of a profiled step by kind, the slowest kernels, and the time in which no kernel ran.

    Args:
        events: `torch.profiler.profile.key_averages()`.
        wall_ms: duration of the whole step.
    """
    kinds: dict[str, float] = {}
    kernels: list[tuple[float, str]] = []
    for event in events:
        if on_gpu:
            if "cuda" not in str(event.device_type).lower() or event.key.startswith("ProfilerStep"):
                continue
            spent = event.self_device_time_total / 1000
        else:
            spent = event.self_cpu_time_total / 1000
        kinds[kind_of(event.key)] = kinds.get(kind_of(event.key), 0.0) + spent
        kernels.append((spent, event.key))
    return {
        "step_ms": round(wall_ms, 2),
        "kinds_ms": {kind: round(spent, 2) for kind, spent in sorted(kinds.items(), key=lambda item: -item[1])},
        "gap_ms": round(max(0.0, wall_ms - sum(kinds.values())), 2),
        "kernels": [[round(spent, 2), name[:100]] for spent, name in sorted(kernels, reverse=True)[:12]],
    }


def watched(train_step: Callable[..., Any], step: int, found: dict[str, Any], on_gpu: bool) -> Callable[..., Any]:
    """Wrap Megatron's `train_step`: call number `step` is profiled into `found`."""
    import torch

    calls = 0

    def call(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != step:
            return train_step(*arguments, **named)
        torch.cuda.synchronize()
        activities = [torch.profiler.ProfilerActivity.CPU]
        if on_gpu:
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=activities) as profile:
            started = time.perf_counter()
            result = train_step(*arguments, **named)
            torch.cuda.synchronize()
            wall = 1000 * (time.perf_counter() - started)
        found.update(summed(profile.key_averages(), wall, on_gpu))
        return result

    return call


def compiled(setup: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap Megatron's `setup_model_and_optimizer`: the transformer layers are compiled."""

    def call(*arguments: Any, **named: Any) -> Any:
        from megatron.core.transformer.transformer_layer import TransformerLayer

        result = setup(*arguments, **named)
        for chunk in result[0]:
            for module in chunk.modules():
                if isinstance(module, TransformerLayer):
                    module.compile()
        return result

    return call


def train(job: Job, on_gpu: bool) -> dict[str, Any]:
    """Train one job and return its memory, profile and seconds."""
    import torch
    from megatron.training import training

    from artifacts.megatron_adam import fused_adam
    from benchmarks import bare_megatron

    profile: dict[str, Any] = {}
    kept = training.train_step, training.setup_model_and_optimizer
    if job.profile_step:
        training.train_step = watched(training.train_step, job.profile_step, profile, on_gpu)
    if job.compile_layers:
        training.setup_model_and_optimizer = compiled(training.setup_model_and_optimizer)
    started = time.monotonic()
    torch.cuda.reset_peak_memory_stats()
    try:
        with fused_adam(job.fused_adam):
            pretrain(job.flags, bare_megatron.datasets, bare_megatron.forward_step)
    finally:
        training.train_step, training.setup_model_and_optimizer = kept
    memory = torch.cuda.max_memory_allocated() / 1e9
    return {"memory_gb": round(memory, 2), "profile": profile, "seconds": round(time.monotonic() - started, 1)}


def one_rank() -> None:
    """Set the environment variables that torchrun sets for a single process."""
    from artifacts.processes import free_port

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()), RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")


def main() -> None:
    import gc

    one_rank()
    import torch

    on_gpu = torch.cuda.is_available()
    from benchmarks import bare_megatron  # on a CPU it patches torch.cuda

    bare_megatron.prepare()
    for job in (Job(**fields) for fields in json.loads(Path(sys.argv[1]).read_text())):
        try:
            with output_to(job.log):
                try:
                    found = train(job, on_gpu)
                except BaseException:
                    traceback.print_exc()
                    raise
        except (Exception, SystemExit) as error:
            found = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
        gc.collect()
        torch.cuda.empty_cache()
        found["left_gb"] = round(torch.cuda.memory_allocated() / 1e9, 2)  # the next job's memory figure includes this
        print(json.dumps({"name": job.name, **found}), flush=True)
        if on_gpu and "error" in found and ("CUDA error" in found["error"] or "illegal" in found["error"]):
            break  # the CUDA context is lost: `speed.measured` starts a new process for the rest


def write_jobs(jobs: list[Job], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(job) for job in jobs], indent=1))


if __name__ == "__main__":
    main()
    os._exit(0)  # gloo's and NCCL's threads outlive their groups
