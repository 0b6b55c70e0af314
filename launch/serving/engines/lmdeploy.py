"""LMDeploy's TurboMind, on GPUs."""

from __future__ import annotations

from artifacts.layout import environment
from launch.serving.plan import Plan

ENVIRONMENT = "lmdeploy"
ON_CPU = False
SET_BY_THE_LAUNCHER = (
    "--api-keys --server-name --server-port --model-name --disable-fastapi-docs --session-len --tp "
    "--chat-template --allow-terminate-by-client"
).split()
SHORT: dict[str, str] = {}
CPU_HEAD_SIZES = ()
ARCHITECTURES = ("lmdeploy/turbomind/supported_models.py", "SUPPORTED_ARCHS")


def command(plan: Plan) -> list[str]:
    """`lmdeploy serve api_server`, through `lmdeploy_closed`, which takes the same arguments and asks for the key.

    `--chat-template hf` always: without it LMDeploy guesses the template by a part of the whole path, and a ChatML
    model under a folder named llama2 gets `[INST]`. The type is named because `auto` turns float32 into float16.
    """
    return [
        str(environment(ENVIRONMENT) / "bin" / "python"),
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
    """LMDeploy needs none of its own."""
    return {}
