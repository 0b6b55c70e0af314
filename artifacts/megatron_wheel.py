"""Let Megatron train from its wheel, on a CPU or a GPU.

`initialize_megatron` runs `make` in `megatron/core/datasets` and exits if that fails. The wheel has no Makefile there,
but has the compiled result, `helpers_cpp`, so importing it is enough. Written against megatron-core 0.19.2.
"""

from __future__ import annotations

from artifacts.errors import UserError


def use_compiled_helpers() -> None:
    """Make Megatron import its dataset helpers instead of compiling them. Call before `pretrain()`."""
    from megatron.core.datasets import utils

    utils.compile_helpers = import_helpers


def import_helpers() -> None:
    """Import the compiled helpers. Raises UserError if they do not fit this Python."""
    try:
        from megatron.core.datasets import helpers_cpp  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"megatron-core's dataset helpers cannot be imported ({error}): its wheel was built for another Python; "
            "remove .wheels/ and .venv, then run `make env-train` (with GPUs: make env-gpu)"
        ) from None
