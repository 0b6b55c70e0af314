"""Check a recipe's flags with Megatron's own parser and cross-checks (`validate_args`), without starting a training."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
from typing import Any

from artifacts.errors import UserError, nearest
from launch.pretraining.recipe import LAUNCHER_KEYS, Layout


def _parser() -> argparse.ArgumentParser:
    import torch

    if not torch.cuda.is_available():
        from artifacts import megatron_on_cpu

        megatron_on_cpu.patch_torch()
    from megatron.training.arguments import add_megatron_arguments

    return add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False))


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the flags with Megatron's parser.

    Raises:
        UserError: an unknown key (the message names the nearest valid one), or an invalid value.
    """
    parser = _parser()
    known = {option for action in parser._actions for option in action.option_strings}
    for argument in arguments:
        if argument.startswith("--") and argument not in known:
            close = nearest(argument, [*known, *(f"--{key}" for key in LAUNCHER_KEYS)])
            raise UserError(f"Megatron has no flag {argument}{close}: correct the key in the recipe")
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message):
            return parser.parse_args(arguments)
    except SystemExit:
        reason = message.getvalue().strip().splitlines()[-1].partition(": error: ")[2]
        chosen = re.search(r"invalid choice: '?([^' ]+)'? \(choose from (.*)\)", reason)
        close = nearest(chosen[1], re.findall(r"[\w-]+", chosen[2])) if chosen else ""
        raise UserError(f"Megatron refuses the recipe: {reason}{close}") from None


def validate(arguments: list[str], layout: Layout) -> Any:
    """Parse the flags and run Megatron's cross-checks, as every rank of the layout would.

    Raises:
        UserError: Megatron rejects the combination of flags; the message is Megatron's.
    """
    import os

    found = parse(arguments)
    from megatron.training.arguments import validate_args

    found.rank, found.world_size = 0, layout.world
    silent = io.StringIO()
    # Megatron asserts it for TP on older GPUs; the launcher sets it for every run
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    try:
        with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
            return validate_args(found)
    except (AssertionError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or "an assertion without a message"
        raise UserError(f"Megatron refuses the recipe: {reason}") from None
