"""Make the command line and the environment variables of each engine, for CPUs and GPUs. Starts nothing.

`myllm serve --dry-run` prints what this module makes; `launch/serving/serve_vllm.sh` and
`launch/serving/serve_lmdeploy.sh` run the same without Python. The key is passed in the environment, never on a
command line.
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
DRAIN_SECONDS = 30  # time that running replies have to finish when the server is stopped
KEY_VARIABLE = "VLLM_API_KEY"  # vLLM's own name; `launch.serving.key` reads it in both engines
MB = 1 << 20
# Two sequences of full length must fit. With less than this, a tiny model's cache would be smaller than vLLM's buffers.
SMALLEST_CACHE_MB = 256
# Options that the launcher sets: a `--set` of one of them could expose or move the server.
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


def engine_options(engine: str, options: list[str]) -> tuple[str, ...]:
    """Convert `max-num-seqs=8` to the words `--max-num-seqs 8`. The engine's own parser checks the names.

    Raises:
        UserError: the launcher sets this option itself.
    """
    words: list[str] = []
    for option in options:
        name, equals, value = option.lstrip("-").partition("=")
        flag = "--" + name.replace("_", "-")
        # argparse also accepts an unambiguous abbreviation
        taken = [ours for ours in OURS[engine] if ours.startswith(SHORT.get(flag, flag))]
        if taken or not name:
            raise UserError(f"--set {option}: `myllm serve` sets {taken[0] if taken else 'options'} itself: see --help")
        words += [flag, value] if equals else [flag]
    return tuple(words)


def command(plan: Plan) -> list[str]:
    """The engine's command line; it runs in any folder, with `variables(plan)` in the environment."""
    return (vllm_command if plan.engine == "vllm" else lmdeploy_command)(plan)


def vllm_command(plan: Plan) -> list[str]:
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
    """The command `lmdeploy serve api_server`, run by `lmdeploy_closed`, which takes the same words and adds the key.

    `--chat-template hf` is always set: without it LMDeploy guesses the template from the path, and a ChatML model in a
    folder named llama2 gets `[INST]`. `--dtype` is set because `auto` turns float32 into float16.
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
    """The engine's environment variables besides the key: offline, no usage statistics, the path of the middleware.

    Each CPU rank gets a core of its own. vLLM's multiprocessing is off if one process is enough.
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
    """One of this process's cores for each rank. Raises UserError if there are fewer cores."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < tp:
        raise UserError(f"--tp {tp}: this process may use {len(cores)} cores, but each rank needs one: lower --tp")
    return [str(core) for core in cores[:tp]]


def full_environment(plan: Plan, key: str) -> dict[str, str]:
    """The complete environment of the server's process."""
    inherited = dict(os.environ)
    # Without byte code, each of vLLM's processes compiles 5,000 files again: a start takes 60 s instead of 25 s.
    inherited.pop("PYTHONDONTWRITEBYTECODE", None)
    return {**inherited, **variables(plan), KEY_VARIABLE: key}


def printed(plan: Plan) -> str:
    """The command as a shell line, with its variables; in place of the key it has the name of a variable."""
    words = [f"{name}={shlex.quote(value)}" for name, value in variables(plan).items()]
    return f'{KEY_VARIABLE}="$MYLLM_API_KEY" {" ".join(words)} {shlex.join(command(plan))}'
