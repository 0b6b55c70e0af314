"""Read and write Hugging Face's safetensors folders, sharded or not, one tensor at a time in constant memory.

The library's `save_file` needs a whole shard in memory, and its reader maps whole files. The format is: 8 bytes
with the header's length (little endian), a JSON header {name: {dtype, shape, data_offsets}}, then the values.
Source: github.com/huggingface/safetensors, "Format".
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from artifacts.errors import UserError
from artifacts.files import read_json, write_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9  # transformers' default
ALIGNMENT = 8  # of the header's end, like the library's

NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}  # torch's and safetensors' names of a dtype
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

Entry = tuple[str, tuple[int, ...]]


def _shards(entries: list[Entry], itemsize: int, limit: int) -> list[list[Entry]]:
    """Split the entries, in order, into shards of at most `limit` bytes; every shard has at least one entry."""
    shards: list[list[Entry]] = [[]]
    size = 0
    for name, shape in entries:
        grown = prod(shape) * itemsize
        if shards[-1] and size + grown > limit:
            shards.append([])
            size = 0
        shards[-1].append((name, shape))
        size += grown
    return shards


class Writer:
    """Write tensors of one dtype in the order of `entries`; a context manager.

    Args:
        folder: where `model.safetensors`, or the shards and their index, are written.
        entries: (name, shape) of every tensor, in the order of the calls of `write`.
        dtype: torch's name, e.g. "float32"; tensors are cast to it.
    """

    def __init__(self, folder: Path, entries: list[Entry], dtype: str, shard_bytes: int = SHARD_BYTES) -> None:
        self.folder, self.dtype = folder, dtype
        self.shards = _shards(entries, BYTES[dtype], shard_bytes)
        self.queue = [(number, *entry) for number, shard in enumerate(self.shards) for entry in shard]
        self.open: tuple[int, BinaryIO] | None = None

    def _path(self, number: int) -> Path:
        count = len(self.shards)
        return self.folder / (SINGLE if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors")

    def _start(self, number: int) -> BinaryIO:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name, shape in self.shards[number]:
            end = offset + prod(shape) * BYTES[self.dtype]
            header[name] = {"dtype": NAMES[self.dtype], "shape": list(shape), "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % ALIGNMENT)
        file = self._path(number).open("wb")
        file.write(struct.pack("<Q", len(text)) + text)
        return file

    def write(self, name: str, tensor: Any) -> None:
        """Append a tensor. Raises ValueError if it is not the next one of `entries`."""
        import torch

        number, due, shape = self.queue.pop(0)
        if (name, tuple(tensor.shape)) != (due, shape):
            raise ValueError(f"expected {due} {shape}, got {name} {tuple(tensor.shape)}")
        if self.open is None or self.open[0] != number:
            if self.open is not None:
                self.open[1].close()
            self.open = (number, self._start(number))
        flat = tensor.detach().to(getattr(torch, self.dtype)).contiguous().view(-1).view(torch.uint8)
        self.open[1].write(flat.numpy().data)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self.open is not None:
            self.open[1].close()
        if kind is not None:
            return
        if self.queue:
            raise ValueError(f"{len(self.queue)} tensors of `entries` were not written, the first {self.queue[0][1]}")
        if len(self.shards) > 1:
            total = sum(prod(shape) for shard in self.shards for _, shape in shard) * BYTES[self.dtype]
            names = {name: self._path(number).name for number, shard in enumerate(self.shards) for name, _ in shard}
            write_json(self.folder / INDEX, {"metadata": {"total_size": total}, "weight_map": names})


@dataclass(frozen=True)
class Stored:
    """Where a tensor is stored: bytes `begin` to `end` of a file."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def _header(path: Path) -> dict[str, Stored]:
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            size = path.stat().st_size
            if length > size:
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: download or export the model again") from None
    except (ValueError, struct.error) as error:
        raise UserError(f"{path} is not a safetensors file ({error}): download or export it again") from None
    header.pop("__metadata__", None)
    torch_names = {short: name for name, short in NAMES.items()}
    found = {}
    for name, entry in header.items():
        if entry["dtype"] not in torch_names:
            raise UserError(
                f"{path}: {name} has dtype {entry['dtype']}, and only {', '.join(sorted(torch_names))} are supported: "
                "save the model in one of them"
            )
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        if end > size:
            raise UserError(f"{path} is truncated: it ends within {name}. Download or export it again")
        found[name] = Stored(path, torch_names[entry["dtype"]], tuple(entry["shape"]), begin, end)
    return found


def contents(folder: Path) -> dict[str, Stored]:
    """All tensors of a folder by name. Raises UserError if there are none, or if a shard is missing or truncated."""
    if (folder / INDEX).exists():
        names = read_json(folder / INDEX)["weight_map"]
        found = {
            name: stored for file in sorted(set(names.values())) for name, stored in _header(folder / file).items()
        }
        missing = sorted(set(names) - set(found))
        if missing:
            raise UserError(
                f"{folder / names[missing[0]]} has no {missing[0]}, but {INDEX} lists it: download or export it again"
            )
        return found
    if not (folder / SINGLE).exists():
        other = ". It has a .bin pickle, which is not supported: save the model as safetensors" * bool(
            list(folder.glob("*.bin"))
        )
        raise UserError(f"{folder} has neither {SINGLE} nor {INDEX}{other}")
    return _header(folder / SINGLE)


def read(stored: Stored) -> Any:
    """Read one tensor into new memory. Raises UserError if the file is truncated."""
    import torch

    buffer = torch.empty(stored.end - stored.begin, dtype=torch.uint8)
    with stored.path.open("rb", buffering=0) as file:
        file.seek(stored.begin)
        view = memoryview(buffer.numpy())
        while view:
            count = file.readinto(view)
            if not count:
                raise UserError(f"{stored.path} is truncated: download or export it again")
            view = view[count:]
    return buffer.view(getattr(torch, stored.dtype)).view(stored.shape)
