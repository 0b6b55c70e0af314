"""The launcher of post-training and its tools for `tests.warm`: imported once, forked for each run.

The words are what stands after `python`: `-m launch.posttraining.posttrain …`, `-m launch.posttraining.grpo …`, or
`llamafactory-cli …`. PPO has an older TRL laid over the environment: it is run so only by a server of its own, started
with that PYTHONPATH, whose socket is called `ppo` and lies beside the other's.
"""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from tests import warm


def preload() -> None:
    """Whatever a run on these architectures imports; nothing here computes, because threads do not survive a fork."""
    import llamafactory.cli  # noqa: F401
    import llamafactory.train.tuner  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401
    from transformers import (  # noqa: F401
        AutoModelForCausalLM,
        LlamaForCausalLM,
        LlamaForSequenceClassification,
        LlamaTokenizerFast,
        Qwen2ForCausalLM,
        Qwen2ForSequenceClassification,
        Qwen2TokenizerFast,
    )

    from launch.instructions import lint  # noqa: F401
    from launch.posttraining import posttrain  # noqa: F401

    if Path(sys.argv[1]).name != "ppo":
        import trl.scripts.grpo  # noqa: F401
        from trl import GRPOTrainer  # noqa: F401


def run(words: list[str]) -> None:
    from artifacts.command import run_command
    from artifacts.errors import run_main
    from launch.posttraining import grpo, posttrain, tool

    tool.subprocess = Forking(Path(sys.argv[1]).parent)  # type: ignore[attr-defined]
    if words[0].endswith("llamafactory-cli"):
        from llamafactory.cli import main

        sys.argv = words
        sys.exit(main())
    assert words[0] == "-m"
    sys.argv = words[1:]
    commands = {"launch.posttraining.posttrain": partial(run_command, posttrain), "launch.posttraining.grpo": grpo.main}
    run_main(commands[words[1]])


class Forking:
    """`subprocess` to `launch.posttraining.tool`: the tool that it starts is run by a server too."""

    PIPE, STDOUT = subprocess.PIPE, subprocess.STDOUT

    def __init__(self, sockets: Path) -> None:
        self.sockets = sockets

    def Popen(self, words: list[str], env: dict[str, str], **options: Any) -> subprocess.Popen[bytes]:  # noqa: N802
        server = self.sockets / ("ppo" if env.get("PYTHONPATH", "").endswith(".venv-ppo") else "main")
        if server.exists():
            words = warm.command(server, *words[words[0] == sys.executable :])
        return subprocess.Popen(words, env=env, **options)
