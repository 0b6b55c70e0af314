"""Part `machine`: the GPU and the versions, its peak rates, and which attention kernel runs for the recipes' shapes.

python -m benchmarks.gpu_proof.machine     # prints one line of JSON per row
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from importlib.util import find_spec
from typing import Any

from benchmarks.gpu_proof.proof import Proof, Row, lines

PACKAGES = ("torch", "megatron-core", "transformers", "triton")
SHAPES = {
    "qwen2-0.5b": (8, 14, 2, 64, 2048),
    "llama2-1.1b": (8, 32, 4, 64, 2048),
}  # batch, heads, groups, width, length
TINY = {"qwen2-tiny": (4, 4, 2, 32, 128)}
BACKENDS = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION", "MATH")
SQUARE = 8192
CARDS = (  # pattern of the driver's name -> name in launch/pretraining/gpus.yaml; more specific ones first
    (r"H100.*PCIe", "h100-pcie"), (r"H100", "h100-80gb"), (r"H200", "h200-141gb"), (r"H800", "h800-80gb"),
    (r"H20\b", "h20-96gb"), (r"A100.*40GB", "a100-40gb"), (r"A100", "a100-80gb"), (r"A800", "a800-80gb"),
    (r"L40S", "l40s-48gb"), (r"A10\b", "a10-24gb"), (r"4090", "rtx4090-24gb"), (r"3090", "rtx3090-24gb"),
)  # fmt: skip


def card_of(name: str) -> str | None:
    """The name in gpus.yaml of a GPU, from its driver's name, e.g. "NVIDIA H100 80GB HBM3"; None if unknown."""
    return next((card for words, card in CARDS if re.search(words, name)), None)


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def driver() -> str:
    if not shutil.which("nvidia-smi"):
        return "no nvidia-smi"
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(asked, capture_output=True, text=True).stdout.strip() or "unknown"


def milliseconds(function: Callable[[], Any], on_gpu: bool, repeats: int) -> float:
    """Mean of `repeats` calls, after one warm-up call."""
    import torch

    function()
    if on_gpu:
        torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(repeats):
        function()
    if on_gpu:
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - started) / repeats


def ceilings(on_gpu: bool) -> Row:
    """The rates of one large bf16 matrix product and of a copy: upper limits for a training."""
    import torch

    device, size = ("cuda", SQUARE) if on_gpu else ("cpu", 512)
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = milliseconds(lambda: a @ b, on_gpu, 10)
    source = torch.empty((1 << 32) if on_gpu else (1 << 22), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = milliseconds(lambda: target.copy_(source), on_gpu, 5)
    return {
        "what": "ceilings",
        "matrix_tflops": round(2 * size**3 / product / 1e9, 2),
        "matrix_size": size,
        "copy_gb_per_second": round(2 * source.numel() / copy / 1e6, 1),
    }


def attention(name: str, shape: tuple[int, ...], on_gpu: bool) -> Row:
    """Forward and backward as in `launch.pretraining.attention`: the kernel that PyTorch chose, and each one's time."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    batch, heads, groups, width, length = shape
    device = "cuda" if on_gpu else "cpu"

    def tensor(count: int) -> Any:
        made = torch.randn(length, batch, count, width, device=device, dtype=torch.bfloat16)
        return made.permute(1, 2, 0, 3).requires_grad_()  # Megatron's memory layout, as in launch.pretraining.attention

    query, key, value = tensor(heads), tensor(groups), tensor(groups)

    def step() -> None:
        output = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        output.sum().backward()

    kind = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[kind.CPU, kind.CUDA] if on_gpu else [kind.CPU]) as profile:
        step()
    words = ("flash", "fmha", "sdpa", "cudnn", "attention")
    events = [
        event for event in profile.key_averages()
        if any(word in event.key.lower() for word in words) and ("cuda" in str(event.device_type).lower()) == on_gpu
    ]  # fmt: skip
    events.sort(key=lambda event: -(event.self_device_time_total if on_gpu else event.self_cpu_time_total))
    times: dict[str, float | str] = {}
    for backend in BACKENDS:
        try:
            with sdpa_kernel(getattr(SDPBackend, backend)):
                times[backend.lower()] = round(milliseconds(step, on_gpu, 5), 3)
        except RuntimeError as error:
            times[backend.lower()] = f"refused: {str(error).splitlines()[0][:80]}"
        finally:
            query.grad = key.grad = value.grad = None
    return {
        "what": "attention",
        "model": name,
        "shape": {"batch": batch, "heads": heads, "groups": groups, "width": width, "length": length},
        "kernels": [event.key[:120] for event in events[:2]],
        "chosen_ms": round(milliseconds(step, on_gpu, 5), 3),
        "ms": times,
    }


def machine(proof: Proof, deadline: float) -> Iterator[Row]:
    """Yield the GPU and versions, the two peak rates, and a row for each attention shape."""
    log = proof.work / "machine.log"
    for line in lines(proof, "-m", "benchmarks.gpu_proof.machine", log=log, deadline=deadline):
        if line.startswith('{"what"'):
            yield {"ok": True, **json.loads(line)}


def main() -> None:
    import os
    import platform

    import torch

    on_gpu = torch.cuda.is_available()
    properties = torch.cuda.get_device_properties(0) if on_gpu else None
    found = {
        "what": "machine",
        "gpu": properties.name if properties else "no GPU",
        "memory_gb": round(properties.total_memory / 1e9, 1) if properties else None,
        "driver": driver(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        **versions(),
        "transformer_engine": find_spec("transformer_engine") is not None,
    }
    print(json.dumps(found), flush=True)
    print(json.dumps(ceilings(on_gpu)), flush=True)
    for name, shape in (SHAPES if on_gpu else TINY).items():
        print(json.dumps(attention(name, shape, on_gpu)), flush=True)


if __name__ == "__main__":
    main()
