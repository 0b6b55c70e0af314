"""Several trainings of Megatron in one process, one after another: torch and Megatron are started once.

Used by the GPU proof and by tests that train many small models; users' trainings have a process each.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def pretrain(flags: list[str], datasets: Callable[..., Any], forward_step: Callable[..., Any]) -> None:
    """`megatron.training.pretrain()` with these flags; whatever Megatron keeps between trainings is destroyed after it.

    A training that Megatron ends early (--exit-interval) is an ordinary end. torch's process groups stay.
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
        random._CUDA_RNG_STATE_TRACKER_INITIALIZED = False  # CUDA graphs need another kind than the job before


@contextmanager
def output_to(path: str) -> Iterator[None]:
    """Append this process's standard output and errors to a file, C++'s too."""
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
