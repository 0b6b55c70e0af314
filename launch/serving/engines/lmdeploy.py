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
    """The command `lmdeploy serve api_server`, run by `lmdeploy_closed`, which takes the same words and adds the key.

    `--chat-template hf` is always set: without it LMDeploy guesses the template from the path, and a ChatML model in a
    folder named llama2 gets `[INST]`. `--dtype` is set because `auto` turns float32 into float16.
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
    """LMDeploy needs no variables of its own."""
    return {}
