"""vLLM, on a CPU and on GPUs."""

from __future__ import annotations

from artifacts.layout import environment
from launch.serving.plan import Plan, cores_of_ranks

ENVIRONMENT = "serve"
ON_CPU = True
SET_BY_THE_LAUNCHER = (
    "--api-key --host --port --served-model-name --middleware --disable-fastapi-docs "
    "--max-model-len --tensor-parallel-size --root-path --uds"
).split()
SHORT = {"--tp": "--tensor-parallel-size"}
# vllm/v1/attention/backends/cpu_attn.py, CPUAttentionBackend.get_supported_head_sizes (0.32.0). With another size, the
# server starts, reports that it is healthy, and crashes at the first token.
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
ARCHITECTURES = ("vllm/model_executor/models/registry.py", "_TEXT_GENERATION_MODELS")


def command(plan: Plan) -> list[str]:
    """The command `vllm serve`. On a CPU it is eager and has a small cache: compiling takes 80 s, without gain for a
    tiny model.

    `uni` keeps the worker of a single rank inside the engine's process. This saves one import of vLLM: 10 s of work on
    two cores, and 0.7 GB.
    """
    cpu = [
        "--enforce-eager",
        *("--kv-cache-memory-bytes", f"{plan.cache_mb}M"),
        *("--distributed-executor-backend", "uni" if plan.tp == 1 else "mp"),
    ]
    return [
        str(environment(ENVIRONMENT) / "bin" / "vllm"),
        "serve",
        str(plan.folder),
        *("--served-model-name", plan.name),
        *("--host", plan.host),
        *("--port", str(plan.port)),
        *("--dtype", plan.dtype or ("float32" if plan.cpu else "bfloat16")),
        *("--max-model-len", str(plan.length)),
        *(("--tensor-parallel-size", str(plan.tp)) if plan.tp > 1 else ()),
        *(cpu if plan.cpu else []),
        *("--middleware", "launch.serving.key.RequireKey"),
        "--disable-fastapi-docs",
        *plan.extra,
    ]


def variables(plan: Plan) -> dict[str, str]:
    """No usage statistics. Each CPU rank gets a core of its own; a single rank runs in the engine's process."""
    found = {"VLLM_HOST_IP": "127.0.0.1", "VLLM_NO_USAGE_STATS": "1"}
    if plan.cpu and plan.tp > 1:
        return found | {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "|".join(cores_of_ranks(plan.tp))}
    if plan.cpu:
        return found | {"OMP_NUM_THREADS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    return found
