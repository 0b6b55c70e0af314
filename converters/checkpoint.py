"""Read a Megatron `torch_dist` checkpoint: any tensor / pipeline / data-parallel layout, merged, on one machine.

PyTorch's distributed checkpoint reader does the merging (`no_dist=True`); neither Megatron nor a process group is
needed for the weights. The run's arguments are a pickle whose classes are Megatron's: it is read with stand-ins, so
that no Megatron import is needed either.
"""

from __future__ import annotations

import io
import pickle
import types
from pathlib import Path
from typing import Any

from artifacts.errors import UserError

LATEST = "latest_checkpointed_iteration.txt"
NOT_WEIGHTS = ("optimizer", "rng_state", "rerun_state", "chained_")


def latest_iteration(folder: Path) -> Path:
    """`iter_NNNNNNN` of a checkpoint folder, or the folder itself when it is one already.

    Raises UserError when there is none, or when the newest one has no metadata (a save that was cut short).
    """
    if (folder / ".metadata").exists():
        return folder
    tracker = folder / LATEST
    if not tracker.exists():
        raise UserError(f"{folder} holds no finished checkpoint ({LATEST} is missing): run the stage `pretrain` first")
    iteration = folder / f"iter_{int(tracker.read_text()):07d}"
    if not (iteration / ".metadata").exists():
        raise UserError(f"{iteration} is not a whole torch_dist checkpoint (.metadata is missing): delete it")
    return iteration


class _StandIn:
    """Takes the place of any class of Megatron's while unpickling; keeps its state, does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] in ("megatron", "transformer_engine"):
            return _StandIn
        return super().find_class(module, name)


COMMON = "common_state/shard_0_1"  # where 0.19.2 keeps what is not a tensor; before, it was a file
LEGACY_COMMON = "common.pt"


def arguments(iteration: Path) -> Any:
    """The run's Megatron arguments, an `argparse.Namespace`; raises UserError when they are missing or damaged."""
    import torch
    from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader, load
    from torch.distributed.checkpoint.api import CheckpointException

    found: dict[str, io.BytesIO] = {}

    class Raw(DefaultLoadPlanner):
        """Hands over the bytes as they are: the default planner would unpickle them, and so import Megatron."""

        def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
            value.seek(0)
            found[read_item.dest_index.fqn] = value

    module: Any = types.ModuleType("unpickler")
    module.Unpickler, module.load, module.__name__ = _Unpickler, pickle.load, "unpickler"
    try:
        source: Any = iteration / LEGACY_COMMON
        if not source.exists():
            load({COMMON: io.BytesIO()}, storage_reader=FileSystemReader(str(iteration)), planner=Raw(), no_dist=True)
            source = found[COMMON]
        common = torch.load(source, map_location="cpu", weights_only=False, pickle_module=module)
        return (common[0] if isinstance(common, list) else common)["args"]
    except (CheckpointException, pickle.UnpicklingError, RuntimeError, EOFError, KeyError, OSError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(
            f"{iteration}: the run's arguments cannot be read ({reason}): the checkpoint is damaged, use an earlier one"
        ) from None


def weights(iteration: Path) -> dict[str, Any]:
    """Every weight of the model by Megatron's name, layers stacked `[layers, ...]`; raises UserError when one is cut.

    Whole checkpoints only: optimizer and random states are skipped.
    """
    import torch
    from torch.distributed.checkpoint import FileSystemReader, load
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    reader = FileSystemReader(str(iteration))
    state = {
        key: torch.empty(value.size, dtype=value.properties.dtype)
        for key, value in reader.read_metadata().state_dict_metadata.items()
        if isinstance(value, TensorStorageMetadata) and not key.startswith(NOT_WEIGHTS)
    }
    try:
        load(state, storage_reader=reader, no_dist=True)
    except (CheckpointException, RuntimeError, OSError, EOFError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(
            f"{iteration} cannot be read ({reason}): a shard is missing or cut, use an earlier one"
        ) from None
    return state
