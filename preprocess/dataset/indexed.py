"""Merge the parts of shards into Megatron's indexed dataset, `PREFIX.bin` and `PREFIX.idx`.

Used by `preprocess.dataset.binning`; not a command. Format: `megatron/core/datasets/indexed_dataset.py`.
"""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from artifacts.errors import UserError
from artifacts.files import atomic_file

MAGIC = b"MMIDIDX\x00\x00"
DTYPE_CODES = {"uint16": 8, "int32": 4}  # megatron.core.datasets.indexed_dataset.DType


def part(folder: Path, number: int, suffix: str) -> Path:
    return folder / f"{number:06d}.{suffix}"


def merge(folder: Path, count: int, dtype: str, prefix: Path) -> tuple[int, int]:
    """Merge the parts of shards 0..count-1 into `prefix`.bin and .idx; returns (documents, tokens).

    Memory use is that of one shard's lengths. After its header, the `.idx` has the lengths of sequences (int32), their
    byte offsets (int64), and for each document the number of sequences up to its end (int64, starting with 0).
    """
    import numpy as np

    def every_lengths() -> Iterator[Any]:
        for number in range(count):
            yield np.load(part(folder, number, "npy"))

    sequences = documents = tokens = 0
    for lengths in every_lengths():
        sequences += int(np.count_nonzero(lengths))
        documents += len(lengths)
        tokens += int(lengths.sum(dtype=np.int64))
    if not tokens:
        raise UserError(f"no document to bin for {prefix}: the input has no text, check --input, --key and --split")
    size = np.dtype(dtype).itemsize
    index_file = prefix.with_name(prefix.name + ".idx")
    index_file.unlink(missing_ok=True)  # an old index must never be beside a new .bin
    prefix.with_name(prefix.name + ".binning.json").unlink(missing_ok=True)
    with atomic_file(prefix.with_name(prefix.name + ".bin")) as binary:
        join_files([part(folder, number, "bin") for number in range(count)], binary)
    with atomic_file(index_file) as index, index.open("wb") as stream:
        stream.write(MAGIC + struct.pack("<QBQQ", 1, DTYPE_CODES[dtype], sequences, documents + 1))
        for lengths in every_lengths():
            stream.write(lengths[lengths > 0].data)
        begin = 0
        for lengths in every_lengths():
            filled = lengths[lengths > 0].astype(np.int64) * size
            ends = begin + np.cumsum(filled)
            stream.write((ends - filled).data)
            begin = int(ends[-1]) if len(ends) else begin
        stream.write(np.zeros(1, np.int64).data)
        seen = 0
        for lengths in every_lengths():
            ends = seen + np.cumsum(lengths > 0, dtype=np.int64)
            stream.write(ends.data)
            seen = int(ends[-1]) if len(ends) else seen
    return documents, tokens


def join_files(parts: list[Path], target: Path) -> None:
    """Concatenate the parts; a single part is hard-linked if the file system allows."""
    target.unlink(missing_ok=True)
    if len(parts) == 1:
        with suppress(OSError):
            os.link(parts[0], target)
            return
    with target.open("wb") as stream:
        for path in parts:
            with path.open("rb") as source:
                shutil.copyfileobj(source, stream, 1 << 20)
