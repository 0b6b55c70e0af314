"""Run several Megatron trainings in one process, one after another, so that torch and Megatron start only once.

The GPU proof uses it, and tests that train many small models. Users' trainings have one process each.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def pretrain(flags: list[str], datasets: Callable[..., Any], forward_step: Callable[..., Any]) -> None:
    """Run `megatron.training.pretrain()` with these flags, then destroy Megatron's global state.

    If Megatron exits early with status 0 (--exit-interval), the function returns normally. torch's process groups stay.
    """
    from megatron.core.enums import ModelType
    from megatron.core.tensor_parallel import random
    from megatron.training import training
    from megatron.training.argument_utils import gpt_config_from_args, pretrain_cfg_container_from_args
    from megatron.training.arguments import parse_and_validate_args

    kept, sys.argv = sys.argv, [sys.argv[0], *flags]
    try:
        arguments = parse_and_validate_args()
        config = pretrain_cfg_container_from_args(arguments, gpt_config_from_args(arguments))
        training.pretrain(config, datasets, ModelType.encoder_or_decoder, forward_step)
    except SystemExit as end:
        if end.code:
            raise
    finally:
        sys.argv = kept
        training.destroy_global_state()
        random._CUDA_RNG_STATE_TRACKER_INITIALIZED = False  # a job with CUDA graphs needs another kind of tracker


@contextmanager
def output_to(path: str) -> Iterator[None]:
    """Append this process's standard output and standard error to a file, including those of C++ code."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(target, 1)
    os.dup2(target, 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, old in zip((1, 2), kept):
            os.dup2(old, number)
            os.close(old)
        os.close(target)
