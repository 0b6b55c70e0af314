"""The command line and the environment variables of each engine, for a CPU and for GPUs; nothing is started here.

What this module decides is what `myllm serve --dry-run` prints, and what `launch/serving/serve_vllm.sh` and
`launch/serving/serve_lmdeploy.sh` run without Python. The key is on no command line: it goes by the environment.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.errors import UserError
from artifacts.layout import REPOSITORY, environment

ENGINES = ("vllm", "lmdeploy")
DRAIN_SECONDS = 30  # what a server that is asked to end gives to the replies under way
KEY_VARIABLE = "VLLM_API_KEY"  # vLLM's own name; `launch.serving.key` reads it in both engines
MB = 1 << 20
# A sequence of full length must fit twice; below this a tiny model's cache would be smaller than vLLM's own buffers.
SMALLEST_CACHE_MB = 256
# What the launcher decides: a `--set` that repeated one could open the server or move it.
OURS = {
    "vllm": (
        "--api-key --host --port --served-model-name --middleware --disable-fastapi-docs "
        "--max-model-len --tensor-parallel-size --root-path --uds"
    ).split(),
    "lmdeploy": (
        "--api-keys --server-name --server-port --model-name --disable-fastapi-docs --session-len --tp "
        "--chat-template --allow-terminate-by-client"
    ).split(),
}
SHORT = {"--tp": "--tensor-parallel-size"}


@dataclass(frozen=True)
class Plan:
    """A server to start. `length` is the longest prompt and reply together, in tokens; `tp` is tensor parallel."""

    engine: str
    folder: Path
    name: str
    host: str
    port: int
    length: int
    tp: int = 1
    cpu: bool = True
    dtype: str | None = None  # by default float32 on a CPU, bfloat16 on a GPU
    cache_mb: int = SMALLEST_CACHE_MB
    extra: tuple[str, ...] = ()


def has_gpu() -> bool:
    return Path("/dev/nvidiactl").exists()


def cache_mb(config: dict[str, Any], length: int) -> int:
    """MB of key-value cache on a CPU, float32: two sequences of full length, at least `SMALLEST_CACHE_MB`."""
    heads = config.get("num_attention_heads") or 1
    width = config.get("head_dim") or config.get("hidden_size", 0) // heads
    token = 2 * 4 * config.get("num_hidden_layers", 1) * (config.get("num_key_value_heads") or heads) * width
    blocks = -(-length // 128) + 1  # vLLM's CPU blocks hold 128 tokens
    return max(SMALLEST_CACHE_MB, -(-2 * blocks * 128 * token // MB))


def engine_options(engine: str, options: list[str]) -> tuple[str, ...]:
    """`max-num-seqs=8` as the words `--max-num-seqs 8`; every name is for the engine's own parser to judge.

    Raises UserError for what the launcher itself decides.
    """
    words: list[str] = []
    for option in options:
        name, equals, value = option.lstrip("-").partition("=")
        flag = "--" + name.replace("_", "-")
        # argparse takes an abbreviation, as long as it is one option's alone
        taken = [ours for ours in OURS[engine] if ours.startswith(SHORT.get(flag, flag))]
        if taken or not name:
            raise UserError(f"--set {option}: `myllm serve` sets {taken[0] if taken else 'options'} itself, see --help")
        words += [flag, value] if equals else [flag]
    return tuple(words)


def command(plan: Plan) -> list[str]:
    """The engine's command line, to run in any folder with `variables(plan)` set."""
    return (vllm_command if plan.engine == "vllm" else lmdeploy_command)(plan)


def vllm_command(plan: Plan) -> list[str]:
    """`vllm serve`. Eager and with a small cache on a CPU: compiling takes 80 s more, and a tiny model wins nothing.

    `uni` keeps the worker of one rank inside the engine's process: one import of vLLM less, 10 s of work and 0.7 GB on
    two cores.
    """
    cpu = [
        "--enforce-eager",
        *("--kv-cache-memory-bytes", f"{plan.cache_mb}M"),
        *("--distributed-executor-backend", "uni" if plan.tp == 1 else "mp"),
    ]
    return [
        str(environment("serve") / "bin" / "vllm"),
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


def lmdeploy_command(plan: Plan) -> list[str]:
    """`lmdeploy serve api_server`, through `lmdeploy_closed`, which takes the same words and asks for the key.

    `--chat-template hf` always: without it LMDeploy guesses the template by a part of the whole path, and a ChatML
    model under a folder named llama2 gets `[INST]`. The type is named because `auto` turns float32 into float16.
    """
    return [
        str(environment("lmdeploy") / "bin" / "python"),
        *("-m", "launch.serving.lmdeploy_closed", "serve", "api_server"),
        str(plan.folder),
        *("--backend", "turbomind"),
        *("--model-name", plan.name),
        *("--server-name", plan.host),
        *("--server-port", str(plan.port)),
        *("--dtype", plan.dtype or "bfloat16"),
        *("--session-len", str(plan.length)),
        *("--tp", str(plan.tp)),
        *("--cache-max-entry-count", "0.8"),
        *("--chat-template", "hf"),
        "--disable-fastapi-docs",
        *plan.extra,
    ]


def variables(plan: Plan) -> dict[str, str]:
    """What the engine needs in its environment besides the key: offline, silent about its use, the middleware's place.

    A CPU rank gets one core of its own; vLLM's multiprocessing is off where one process is enough.
    """
    common = {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])),
    }
    if plan.engine == "lmdeploy":
        return common
    common |= {"VLLM_HOST_IP": "127.0.0.1", "VLLM_NO_USAGE_STATS": "1"}
    if plan.cpu and plan.tp > 1:
        return common | {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "|".join(cores_of_ranks(plan.tp))}
    if plan.cpu:
        return common | {"OMP_NUM_THREADS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    return common


def cores_of_ranks(tp: int) -> list[str]:
    """One of this process's cores for each rank; raises UserError when there are fewer."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < tp:
        raise UserError(f"--tp {tp}: this machine gives {len(cores)} cores, one for each rank is needed")
    return [str(core) for core in cores[:tp]]


def full_environment(plan: Plan, key: str) -> dict[str, str]:
    """The whole environment of the server's process."""
    inherited = dict(os.environ)
    # Without byte code every one of vLLM's processes compiles 5,000 files again: 60 s of a start instead of 25.
    inherited.pop("PYTHONDONTWRITEBYTECODE", None)
    return {**inherited, **variables(plan), KEY_VARIABLE: key}


def printed(plan: Plan) -> str:
    """The command as a shell takes it, variables and all; the key stands as a variable's name."""
    words = [f"{name}={shlex.quote(value)}" for name, value in variables(plan).items()]
    return f'{KEY_VARIABLE}="$MYLLM_API_KEY" {" ".join(words)} {shlex.join(command(plan))}'
