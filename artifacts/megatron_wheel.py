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


def start_writers_without_signals() -> None:
    """Let a SIGTERM that arrives during the first save end the training after it, not the process that collects it.

    Megatron starts that process (`multiprocessing.Manager`) at its first save. Slurm signals every process of a job: a
    SIGTERM while it starts killed it, and the save failed with EOFError. It inherits the signals that are blocked here.
    """
    import signal
    from multiprocessing import resource_tracker

    from megatron.core.dist_checkpointing.strategies import filesystem_async

    start = filesystem_async.get_write_results_queue

    def guarded(*arguments: object, **options: object) -> object:
        resource_tracker.ensure_running()  # its start ends with SIGTERM and SIGINT not blocked
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        try:
            return start(*arguments, **options)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    filesystem_async.get_write_results_queue = guarded
