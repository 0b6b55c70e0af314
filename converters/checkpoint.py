"""Read and write Megatron `torch_dist` checkpoints: any tensor / pipeline / data-parallel layout, on one machine.

The format is PyTorch's distributed checkpoint: `.metadata` records which file holds which piece of each tensor.
Pieces are read and written one at a time, so memory does not grow with the model. Neither Megatron nor a process group
is needed. The run's arguments are a pickle of Megatron's classes; stand-in classes replace them when it is loaded.
"""

from __future__ import annotations

import io
import mmap
import pickle
import struct
import types
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

from artifacts.errors import UserError
from artifacts.files import write_json

LATEST = "latest_checkpointed_iteration.txt"
RELEASE = "release"  # Megatron's name for weights without training state, in the tracker and as a folder
NOT_WEIGHTS = ("optimizer", "rng_state", "rerun_state", "chained_")


def latest_iteration(folder: Path) -> Path:
    """Return the newest `iter_NNNNNNN` of a checkpoint folder, or the folder itself if it already is one.

    Raises UserError if there is none, or if the newest one has no metadata (an interrupted save).
    """
    if (folder / ".metadata").exists():
        return folder
    tracker = folder / LATEST
    release = folder / RELEASE
    if not tracker.exists():
        raise UserError(f"{folder} has no finished checkpoint ({LATEST} is missing): run the stage `pretrain` first")
    newest = tracker.read_text().strip()
    if newest != RELEASE and not newest.isdigit():
        raise UserError(f"{tracker} holds {newest!r}, not a number: write the number of an iter_NNNNNNN into it")
    iteration = release if newest == RELEASE else folder / f"iter_{int(newest):07d}"
    if not (iteration / ".metadata").exists():
        raise UserError(
            f"{iteration} is an incomplete torch_dist checkpoint (.metadata is missing): "
            "give an earlier iter_NNNNNNN folder with --checkpoint"
        )
    return iteration


class _StandIn:
    """Replaces any Megatron class while unpickling: keeps the state, has no behaviour."""

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


COMMON = "common_state/shard_0_1"  # key of the non-tensor state in megatron-core 0.19.2; earlier versions use a file
LEGACY_COMMON = "common.pt"


def arguments(iteration: Path) -> Any:
    """Read the run's Megatron arguments, an `argparse.Namespace`. Raises UserError if they are missing or damaged."""
    import torch
    from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader, load
    from torch.distributed.checkpoint.api import CheckpointException

    found: dict[str, io.BytesIO] = {}

    class Raw(DefaultLoadPlanner):
        """Returns the raw bytes: the default planner would unpickle them, which imports Megatron."""

        def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
            value.seek(0)
            found[read_item.dest_index.fqn] = value

    module: Any = types.ModuleType("unpickler")
    module.Unpickler, module.load, module.__name__ = _Unpickler, pickle.load, "unpickler"
    try:
        source: Any = iteration / LEGACY_COMMON
        if not source.exists():
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # intended here
                reader = FileSystemReader(str(iteration))
                load({COMMON: io.BytesIO()}, storage_reader=reader, planner=Raw(), no_dist=True)
            source = found[COMMON]
        common = torch.load(source, map_location="cpu", weights_only=False, pickle_module=module)
        return (common[0] if isinstance(common, list) else common)["args"]
    except (CheckpointException, pickle.UnpicklingError, RuntimeError, EOFError, KeyError, OSError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(
            f"{iteration} is damaged: cannot read the run's arguments ({reason}). Use an earlier checkpoint"
        ) from None


LOCAL_HEADER = 30  # bytes of a zip entry's header before its name


def _mapped(file: BinaryIO, offset: int, length: int, meta: Any) -> Any:
    """Memory-map a piece without copying it; None if the file does not store its values as one contiguous block.

    Args:
        offset: where the piece begins in the file. A piece is what `torch.save` writes: an uncompressed zip file.
        length: size of the piece in bytes.
        meta: the piece's tensor on the meta device (shape and dtype only).
    """
    import torch

    aligned = offset - offset % mmap.ALLOCATIONGRANULARITY
    pages = mmap.mmap(file.fileno(), offset - aligned + length, offset=aligned, access=mmap.ACCESS_COPY)
    entries = [entry for entry in zipfile.ZipFile(pages).infolist() if "/data/" in entry.filename]  # type: ignore
    plain = meta.is_contiguous() and meta.storage_offset() == 0 and meta.numel() > 0
    if not plain or len(entries) != 1 or entries[0].compress_type or entries[0].file_size != meta.nbytes:
        return None
    pages.seek(entries[0].header_offset)  # zipfile counts from the beginning of the pages
    name, extra = struct.unpack("<HH", pages.read(LOCAL_HEADER)[26:])
    begin = entries[0].header_offset + LOCAL_HEADER + name + extra
    return torch.frombuffer(pages, dtype=meta.dtype, count=meta.numel(), offset=begin).view(meta.shape)


class Checkpoint:
    """The model's weights in a `torch_dist` checkpoint, read one tensor at a time.

    Weights of layers are stored stacked, `[layers, ...]`, in one piece per layer and rank, for any parallel layout.
    Only the pieces that a request needs are read.

    Attributes:
        shapes: sizes by Megatron's name, without optimizer and random states.
        dtype: torch's name of the weights' dtype, e.g. "float32".
    """

    def __init__(self, iteration: Path) -> None:
        from torch.distributed.checkpoint import FileSystemReader
        from torch.distributed.checkpoint.metadata import TensorStorageMetadata

        self.iteration = iteration
        try:
            self.metadata = FileSystemReader(str(iteration)).read_metadata()
        except (pickle.UnpicklingError, EOFError, OSError, AttributeError, ImportError) as error:
            raise UserError(f"{iteration}/.metadata cannot be read ({error}): use an earlier checkpoint") from None
        self.tensors = {
            name: value
            for name, value in self.metadata.state_dict_metadata.items()
            if isinstance(value, TensorStorageMetadata) and not name.startswith(NOT_WEIGHTS)
        }
        self.shapes = {name: tuple(value.size) for name, value in self.tensors.items()}
        dtypes = {str(value.properties.dtype).removeprefix("torch.") for value in self.tensors.values()}
        if len(dtypes) > 1:
            raise UserError(
                f"{iteration} mixes {', '.join(sorted(dtypes))} weights, and export needs one dtype: "
                "use a checkpoint saved in one dtype"
            )
        self.dtype = dtypes.pop() if dtypes else "float32"

    def _piece(self, name: str, chunk: Any) -> Any:
        import torch
        from torch.distributed.checkpoint.metadata import MetadataIndex
        from torch.distributed.checkpoint.utils import _create_file_view

        where = self.metadata.storage_data[MetadataIndex(name, chunk.offsets)]
        path = self.iteration / where.relative_path
        try:
            with path.open("rb") as file:
                view: Any = _create_file_view(file, where.offset, where.length)
                piece = torch.load(view, map_location="meta", weights_only=True)  # shape and dtype only
                data = _mapped(file, where.offset, where.length, piece)
                if data is None:
                    view.seek(0)
                    data = torch.load(view, map_location="cpu", weights_only=True)
                piece = data
        except FileNotFoundError:
            raise UserError(f"{path} is missing: copy the checkpoint again, or use an earlier one") from None
        except (RuntimeError, EOFError, OSError, ValueError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"{path} is truncated or damaged at {name} ({reason}): use an earlier checkpoint") from None
        if tuple(piece.shape) != tuple(chunk.sizes):
            raise UserError(
                f"{path}: {name} has shape {tuple(piece.shape)}, .metadata says {tuple(chunk.sizes)}: "
                "use an earlier checkpoint"
            )
        return piece

    def read(self, name: str, layer: int | None = None) -> Any:
        """Read a whole tensor, or one `layer` of a stacked one (without the first dimension)."""
        import torch

        size = list(self.shapes[name])
        begin = [0] * len(size)
        if layer is not None:
            begin[0], size[0] = layer, 1
        result = None
        for chunk in self.tensors[name].chunks:
            low = [max(a, b) for a, b in zip(begin, chunk.offsets, strict=True)]
            ends = zip(begin, size, chunk.offsets, chunk.sizes, strict=True)
            high = [min(a + n, b + m) for a, n, b, m in ends]
            if any(a >= b for a, b in zip(low, high, strict=True)):
                continue
            piece = self._piece(name, chunk)
            inner = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, chunk.offsets, strict=True))
            if [b - a for a, b in zip(low, high, strict=True)] == size:
                result = piece[inner]  # one piece holds everything: no copy
                break
            if result is None:
                result = torch.empty(size, dtype=piece.dtype)
            outer = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, begin, strict=True))
            result[outer] = piece[inner]
        if result is None:
            raise UserError(f"{self.iteration} has no data of {name} at {begin}: use an earlier checkpoint")
        return result if layer is None else result[0]


class Writer:
    """Write a `torch_dist` checkpoint that `pretrain` can load, one piece at a time; a context manager.

    Args:
        iteration: folder to create; Megatron's name for a checkpoint without training state is `release`.
        shapes: sizes of all tensors by Megatron's name; stacked tensors have the layers first.
        dtype: torch's name of the weights' dtype.
    """

    FILE = "__0_0.distcp"

    def __init__(self, iteration: Path, shapes: dict[str, tuple[int, ...]], dtype: str) -> None:
        from torch.distributed.checkpoint.metadata import TensorProperties, TensorStorageMetadata

        self.iteration = iteration
        iteration.mkdir(parents=True)
        self.file = (iteration / self.FILE).open("wb")
        self.checksums = _torch().serialization.get_crc32_options()
        _torch().serialization.set_crc32_options(False)  # torch never reads checksums, and they take most of the time
        properties = TensorProperties(dtype=getattr(_torch(), dtype))
        self.metadata: dict[str, Any] = {
            name: TensorStorageMetadata(properties=properties, size=_torch().Size(size), chunks=[])
            for name, size in shapes.items()
        }
        self.storage: dict[Any, Any] = {}

    def _append(self, index: Any, value: Any) -> None:
        from torch.distributed.checkpoint.filesystem import _StorageInfo

        begin = self.file.tell()
        _torch().save(value, self.file)
        self.storage[index] = _StorageInfo(self.FILE, begin, self.file.tell() - begin)

    def write(self, name: str, tensor: Any, layer: int | None = None, row: int = 0) -> None:
        """Add a whole tensor, one `layer` of a stacked one, or some rows of one, starting at `row`."""
        from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex

        if layer is not None:
            tensor = tensor[None]
        if tensor.untyped_storage().nbytes() != tensor.nbytes:
            tensor = tensor.clone()  # torch.save would write a view's whole storage
        offsets = _torch().Size([layer if layer is not None else row] + [0] * (tensor.dim() - 1))
        chunks = self.metadata[name].chunks
        chunks.append(ChunkStorageMetadata(offsets=offsets, sizes=tensor.shape))
        self._append(MetadataIndex(name, offsets, len(chunks) - 1), tensor.contiguous())

    def write_object(self, name: str, value: Any) -> None:
        """Add an object that is not a tensor, e.g. `common_state/shard_0_1`."""
        from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex

        self.metadata[name] = BytesStorageMetadata()
        self._append(MetadataIndex(name), [value])

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

        self.file.close()
        _torch().serialization.set_crc32_options(self.checksums)
        if kind is None:
            whole = Metadata(self.metadata, storage_data=self.storage, storage_meta=StorageMeta())
            (self.iteration / ".metadata").write_bytes(pickle.dumps(whole))
            write_json(
                self.iteration / "metadata.json", {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
            )


def _torch() -> Any:
    import torch

    return torch
