"""The command line and the environment variables of each engine; nothing is started here.

`myllm serve --dry-run` prints what this module decides. The key is on no command line: it goes by the environment.
An engine is one file of this folder. To add one, add a file with these names; nothing else has to change:

    ENVIRONMENT           its environment (`artifacts.layout.ENVIRONMENTS`)
    ON_CPU                whether it runs on a machine without a GPU
    SET_BY_THE_LAUNCHER   options that `--set` may not repeat: a second --host could open the server to the network
    SHORT                 other names of such options
    CPU_HEAD_SIZES        sizes of attention heads that it has CPU kernels for; empty: any, or no CPU
    ARCHITECTURES         a source file of its package, and the table in it that lists the architectures it serves
    command(plan)         its command line
    variables(plan)       environment variables of its own
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import shlex
from typing import Any

from artifacts.errors import UserError
from artifacts.layout import REPOSITORY
from launch.serving.plan import Plan

DRAIN_SECONDS = 30  # what a server that is asked to end gives to the replies under way
KEY_VARIABLE = "VLLM_API_KEY"  # vLLM's own name; `launch.serving.key` reads it in every engine


def names() -> list[str]:
    """The engines: the modules of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def engine(name: str) -> Any:
    """The module of an engine."""
    return importlib.import_module(f"{__name__}.{name}")


def engine_options(name: str, options: list[str]) -> tuple[str, ...]:
    """`max-num-seqs=8` as the words `--max-num-seqs 8`; the engine's own parser judges every other name.

    Raises:
        UserError: an option that the launcher itself sets.
    """
    words: list[str] = []
    for option in options:
        key, equals, value = option.lstrip("-").partition("=")
        flag = "--" + key.replace("_", "-")
        # argparse takes an abbreviation, as long as it is one option's alone
        whole = engine(name).SHORT.get(flag, flag)
        taken = [own for own in engine(name).SET_BY_THE_LAUNCHER if own.startswith(whole)]
        if taken or not key:
            raise UserError(f"--set {option}: `myllm serve` sets {taken[0] if taken else 'options'} itself, see --help")
        words += [flag, value] if equals else [flag]
    return tuple(words)


def command(plan: Plan) -> list[str]:
    """The engine's command line, to run in any folder with `variables(plan)` set."""
    words: list[str] = engine(plan.engine).command(plan)
    return words


def variables(plan: Plan) -> dict[str, str]:
    """What the engine needs in its environment besides the key: offline, the middleware's place, and its own."""
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    common = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONPATH": path}
    return common | engine(plan.engine).variables(plan)


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
