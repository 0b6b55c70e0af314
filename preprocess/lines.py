"""Lines of `.jsonl` and `.jsonl.zst` files in large blocks, or of a byte range of one; nothing lost unnoticed.

Used by `preprocess.binning` and `preprocess.tokenizer_sample`. A zstd file that was cut off is told as such: Python's
`stream_reader` ends there as if the file were whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from artifacts.errors import UserError

READ = 8 << 20  # bytes of text at a time
COMPRESSED = 1 << 20  # bytes of a zstd file at a time


def decompressed(path: Path | str) -> Iterator[bytes]:
    """Pieces of the text of a zstd file of one or more frames; raises UserError when it is broken or cut off."""
    import zstandard

    with open(path, "rb") as stream:
        frame = None
        try:
            while piece := stream.read(COMPRESSED):
                while piece:
                    frame = frame or zstandard.ZstdDecompressor().decompressobj()
                    yield frame.decompress(piece)
                    piece = frame.unused_data if frame.eof else b""
                    frame = None if frame.eof else frame
        except zstandard.ZstdError as error:
            raise UserError(f"{path} is not a whole zstd file ({error}): delete it and make it again") from None
        if frame is not None:
            raise UserError(f"{path} is not a whole zstd file (it is cut off): delete it and make it again")


def blocks(path: Path | str, start: int = 0, end: int | None = None) -> Iterator[tuple[int, list[bytes]]]:
    """(offset in the text, lines without their ends) of about `READ` bytes, for the lines that start in [start, end).

    `end` None means to the end; a range is for uncompressed files only. A last empty line is left out.
    Raises UserError naming the file when it is missing or broken.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist: run the stage that makes it first")
    if path.suffix == ".zst":
        place, held, size = 0, [], 0
        for piece in decompressed(path):
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
            stream.readline()  # the line before, wherever it ends
        place = stream.tell()
        while end is None or place < end:
            block = stream.read(READ if end is None else min(READ, end - place))
            if not block:
                return
            if not block.endswith(b"\n"):
                block += stream.readline()
            yield place, block.removesuffix(b"\n").split(b"\n")
            place += len(block)
