"""Make the command line and the environment variables of each engine. Starts nothing.

`myllm serve --dry-run` prints what this module makes. The key is passed in the environment, never on a command line.
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

DRAIN_SECONDS = 30  # time that running replies have to finish when the server is stopped
KEY_VARIABLE = "VLLM_API_KEY"  # vLLM's own name; `launch.serving.key` reads it in every engine


def names() -> list[str]:
    """The engines: the modules of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def engine(name: str) -> Any:
    """The module of an engine."""
    return importlib.import_module(f"{__name__}.{name}")


def engine_options(name: str, options: list[str]) -> tuple[str, ...]:
    """Convert `max-num-seqs=8` to the words `--max-num-seqs 8`. The engine's own parser checks the names.

    Raises:
        UserError: an option that the launcher itself sets.
    """
    words: list[str] = []
    for option in options:
        key, equals, value = option.lstrip("-").partition("=")
        flag = "--" + key.replace("_", "-")
        # argparse also accepts an unambiguous abbreviation
        whole = engine(name).SHORT.get(flag, flag)
        taken = [own for own in engine(name).SET_BY_THE_LAUNCHER if own.startswith(whole)]
        if taken or not key:
            raise UserError(f"--set {option}: `myllm serve` sets {taken[0] if taken else 'options'} itself: see --help")
        words += [flag, value] if equals else [flag]
    return tuple(words)


def command(plan: Plan) -> list[str]:
    """The engine's command line; it runs in any folder, with `variables(plan)` in the environment."""
    words: list[str] = engine(plan.engine).command(plan)
    return words


def variables(plan: Plan) -> dict[str, str]:
    """The engine's environment variables besides the key: offline, the path of the middleware, and its own."""
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    common = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONPATH": path}
    return common | engine(plan.engine).variables(plan)


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
