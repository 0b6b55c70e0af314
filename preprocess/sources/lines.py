"""Read the lines of JSON lines files, compressed or not, or of a byte range of one that is not, in large blocks.

Used by `preprocess.dataset.binning` and `preprocess.tokenizer.sample`. A missing or damaged file raises UserError.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path

from artifacts.errors import UserError
from artifacts.files import PACKINGS, packing_of, unpacked

READ = 8 << 20  # bytes of text per block


def files_of(given: Path) -> list[Path]:
    """The file itself, or a folder's files of JSON lines, compressed or not, sorted by name.

    Raises UserError if there are none.
    """
    if given.is_dir():
        endings = (".jsonl", *(f".jsonl{ending}" for ending, _ in PACKINGS.values()))
        found = sorted(path for path in given.iterdir() if path.name.endswith(endings) and path.name[0] != ".")
        if not found:
            raise UserError(f"{given} has no {' or '.join(endings)} file: run the stage that makes them first")
        return found
    if not given.is_file():
        raise UserError(f"{given} does not exist: run the stage that makes it first")
    return [given]


def source_folders(folder: Path) -> list[Path]:
    """The folders of shards in a folder, one for each source, sorted. Raises UserError if there are none."""
    found = sorted(path for path in folder.glob("*") if path.is_dir())
    if not found:
        raise UserError(f"{folder} has no folder of shards: run `myllm corpora` with several sources first")
    return found


def blocks(path: Path | str, start: int = 0, end: int | None = None) -> Iterator[tuple[int, list[bytes]]]:
    """Yield (offset in the text, lines without line feeds) of about `READ` bytes: the lines that start in [start, end).

    `end` None means the end of the file. A range requires an uncompressed file. A last empty line and a byte order mark
    are left out. Raises UserError, with the file's name, if the file is missing or damaged.
    """
    for place, lines in _blocks(Path(path), start, end):
        if place == 0:
            lines[0] = lines[0].removeprefix(codecs.BOM_UTF8)
        yield place, lines


def _blocks(path: Path, start: int, end: int | None) -> Iterator[tuple[int, list[bytes]]]:
    if packing_of(path):
        place, held, size = 0, [], 0
        with unpacked(path) as pieces:
            for piece in pieces:
                held.append(piece)
                size += len(piece)
                if size >= READ and b"\n" in piece:
                    whole, _, rest = b"".join(held).rpartition(b"\n")
                    yield place, whole.split(b"\n")
                    place, held, size = place + len(whole) + 1, [rest], len(rest)
        if rest := b"".join(held):
            yield place, rest.removesuffix(b"\n").split(b"\n")
        return
    with path.open("rb") as stream:
        if start:
            stream.seek(start - 1)
            stream.readline()  # skip the rest of the line before
        place = stream.tell()
        while end is None or place < end:
            block = stream.read(READ if end is None else min(READ, end - place))
            if not block:
                return
            if not block.endswith(b"\n"):
                block += stream.readline()
            yield place, block.removesuffix(b"\n").split(b"\n")
            place += len(block)
