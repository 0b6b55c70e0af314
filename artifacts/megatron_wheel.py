"""Let Megatron train from its wheel, on a GPU too.

`initialize_megatron` runs `make` in `megatron/core/datasets`, whose Makefile the wheel leaves out, and ends the process
when that fails. The wheel has the result, `helpers_cpp`, compiled: to import it is all that is needed. Written against
megatron-core 0.19.2.
"""

from __future__ import annotations

from artifacts.errors import UserError


def use_compiled_helpers() -> None:
    """Have Megatron import its dataset helpers instead of compiling them. Call before `pretrain()`."""
    from megatron.core.datasets import utils

    utils.compile_helpers = import_helpers


def import_helpers() -> None:
    """Raises UserError when the compiled helpers do not fit this Python."""
    try:
        from megatron.core.datasets import helpers_cpp  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"megatron-core's dataset helpers cannot be imported ({error}): its wheel was built for another Python; "
            "remove .wheels/ and .venv, then run `make env-train` (with GPUs: make env-gpu)"
        ) from None
