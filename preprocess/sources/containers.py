"""Open files of raw text and stream their lines, list items or table rows, without loading a whole file into memory.

This module handles file formats only. `preprocess.sources.read` selects the records and counts the broken ones.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, cast

import fsspec

from artifacts.errors import UserError
from artifacts.files import PACKINGS, packing, zstd_pieces
from artifacts.json_rows import MENDS, UTF16, fault, is_utf16, parse

CHUNK = 4 << 20  # bytes read at once
HEAD, LONGEST_LINE = 1 << 16, 16 << 20  # bytes of text from which the layout of a file is told; if it is in doubt
TABLES = (".parquet", ".arrow")
# How records stand in a text file: one a line; as items of one list; as items of a list that is the first value of an
# object, {"data": [...]}; or one after the other, each over several lines
LINES, LIST, WRAPPED, VALUES = "lines", "list", "wrapped", "values"
OPENINGS = {
    LIST: re.compile(r"\s*\["),
    WRAPPED: re.compile(r'\s*\{\s*"[^"\\]*"\s*:\s*\[(?=\s*\{)'),
    VALUES: re.compile(r"\s*"),
}
AFTER = "text after the end of the list"
OTHERS = {
    b"PAR1": "Parquet: name it .parquet",
    b"PK\3\4": "a zip archive: unpack it",
    b"ARROW1": "Feather: save it as Parquet",
}
_ESCAPED = re.compile("[\ud800-\udfff]")
_NEXT_OBJECT = re.compile(r"\}\s*,?\s*(?=\{\s*\")")
_OPENED = re.compile(rb'\{\s*("[^"\\]*"\s*:\s*(\[\s*\{?)?)?')  # a first line of a pretty-printed object
_TAIL = re.compile(r"[^{}\[\]]*\}\s*")  # what may follow the list of an object: other values, its end


def container(path: str) -> tuple[str, str | None]:
    """Split a file name into container extension and compression: `a.jsonl.gz` -> (`.jsonl`, `gzip`)."""
    name = path.rsplit("/", 1)[-1].lower()
    compression = None
    for known, (ending, _) in PACKINGS.items():
        if name.endswith(ending):
            name, compression = name[: -len(ending)], known
    dot = name.rfind(".")
    return (name[dot:] if dot >= 0 else ""), compression


def packing_at(path: str) -> str | None:
    """The compression of a file, told by its first bytes: names lie."""
    with fsspec.open(path, "rb") as stream:
        return packing(path, stream.read(8))


@contextmanager
def opened(path: str) -> Iterator[IO[bytes]]:
    """A file, decompressed. Reading raises EOFError or OSError if a compressed file is truncated or damaged."""
    compression = packing_at(path)
    if compression != "zstd":
        with fsspec.open(path, "rb", compression=compression) as stream:
            yield stream
    else:
        with fsspec.open(path, "rb") as raw:
            yield cast(IO[bytes], ZstdStream(raw))


class ZstdStream:
    """Read a zstd file of any number of frames. Unlike zstandard's own reader, it detects a truncated frame."""

    def __init__(self, raw: IO[bytes]) -> None:
        self.pieces = zstd_pieces(raw)
        self.ready = b""

    def read(self, size: int) -> bytes:
        held = [self.ready]
        length = len(self.ready)
        while length < size and (piece := next(self.pieces, None)) is not None:
            held.append(piece)
            length += len(piece)
        whole = b"".join(held)
        self.ready = whole[size:]
        return whole[:size]


def layout(path: str) -> str | None:
    """LINES, LIST, WRAPPED or VALUES; None if the file has no text.

    Raises UserError if the file is no UTF-8 text, but UTF-16, an archive or a table under another name.
    """
    with opened(path) as stream:
        head = stream.read(HEAD)
        long = b"\n" not in head and OPENINGS[WRAPPED].match(_characters(head))
        while long and b"\n" not in head and len(head) < LONGEST_LINE and (more := stream.read(CHUNK)):
            head += more  # a record that begins with a list, or a list in an object
        ended = not stream.read(1)
    if is_utf16(head):
        raise UserError(f"{path} is {UTF16}: {MENDS[UTF16]}")
    other = next((name for magic, name in OTHERS.items() if head.startswith(magic)), None)
    if other:
        raise UserError(f"{path} is {other}")
    text = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if not text:
        return None if ended else LINES
    if text[:1] == b"[":
        return LIST
    first, feed, rest = text.partition(b"\n")
    if not feed and not ended:
        return WRAPPED if long else LINES
    characters = _characters(head)
    try:
        value = parse(first)[0]
    except ValueError:
        if _OPENED.fullmatch(first.strip()) and OPENINGS[WRAPPED].match(characters):
            return WRAPPED
        try:
            return VALUES if "\n" in characters[: json.JSONDecoder().raw_decode(characters)[1]] else LINES
        except (ValueError, RecursionError):
            return LINES
    inside = list(value.values()) if isinstance(value, dict) else []
    alone = len(inside) == 1 and isinstance(inside[0], list) and inside[0] and isinstance(inside[0][0], dict)
    return WRAPPED if alone and ended and not rest.strip() else LINES


def _characters(head: bytes) -> str:
    return head.removeprefix(codecs.BOM_UTF8).lstrip().decode(errors="replace")


def lines(stream: IO[bytes], start: int, end: int | None, longest: int) -> Iterator[tuple[int, bytes | None]]:
    """Yield (byte offset, line) for the lines that begin in [`start`, `end`).

    The line is None if it is longer than `longest` bytes; such a line is never held in memory.
    """
    at, rest = start, b""
    inside = start > 0  # in a line to skip: it begins before `start`, or is too long
    began: int | None = None  # where the line that is too long began
    if start:
        at = start - 1  # the byte before: if it is a line feed, a line begins at `start`
        stream.seek(at)
    while chunk := stream.read(CHUNK):
        whole = (rest + chunk).split(b"\n")
        rest = whole.pop()
        for line in whole:
            if inside:
                if began is not None:
                    yield began, None
                inside, began = False, None
            elif end is not None and at >= end:
                return
            else:
                yield at, line if len(line) <= longest else None
            at += len(line) + 1
        if not inside and end is not None and at >= end:
            return
        if not inside and len(rest) > longest:
            inside, began = True, at
        if inside:
            at, rest = at + len(rest), b""
    if began is not None:
        yield began, None
    elif rest and not inside:
        yield at, rest


def _value_at(decoder: json.JSONDecoder, buffer: str, at: int) -> tuple[Any, int]:
    """The JSON value that begins at `at`, and where it ends. Raises json.JSONDecodeError."""
    if at >= len(buffer):
        raise json.JSONDecodeError("Unterminated", buffer, at)
    try:
        return decoder.raw_decode(buffer, at)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits, thousands of brackets
        raise json.JSONDecodeError(str(error), buffer, at) from None


def list_items(stream: IO[bytes], longest: int, form: str = LIST) -> Iterator[tuple[int, Any, str | None]]:
    """Stream the items of a JSON list: yield (line, item, None), or (line, None, error) for a broken item.

    `form` is LIST, WRAPPED or VALUES. After a broken item, reading resumes at the next one; after AFTER, it ends.
    """
    decoder, decode = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
    line, ended = 1, False
    buffer = decode(stream.read(CHUNK)).removeprefix("\ufeff")
    opening = OPENINGS[form].match(buffer)
    at = opening.end() if opening else 0
    while True:
        while at < len(buffer) and buffer[at] in " \t\r\n,":
            at += 1
        record, reason = None, None
        if at < len(buffer) and buffer[at] == "]" and form != VALUES:
            line += buffer.count("\n", 0, at)
            buffer = buffer[at + 1 :] + decode(stream.read(CHUNK))
            after = buffer.lstrip()
            if form == LIST and after.startswith("["):  # one list after the other
                at = buffer.index("[") + 1
                continue
            if after and not (form == WRAPPED and _TAIL.fullmatch(after)):
                yield line, None, AFTER
            return
        try:
            record, stop = _value_at(decoder, buffer, at)
        except json.JSONDecodeError as error:
            unfinished = "Unterminated" in error.msg or error.pos >= len(buffer) - 16
            if unfinished and not ended and len(buffer) - at <= longest:
                line += buffer.count("\n", 0, at)
                more = stream.read(max(CHUNK, len(buffer) - at))  # at least double the buffer: linear time
                ended = not more
                buffer, at = buffer[at:] + decode(more, final=ended), 0
                continue
            if ended and at >= len(buffer):
                if form != VALUES:
                    yield line, None, "the list does not end: the file is truncated"
                return
            reason = "not JSON" if not unfinished or ended else f"a record longer than {longest:,} bytes"
            found = _NEXT_OBJECT.search(buffer, max(at + 1, error.pos - 1))
            while found is None and (more := stream.read(CHUNK)):
                line += buffer.count("\n", 0, len(buffer) - 64)
                buffer = buffer[-64:] + decode(more)
                found, at = _NEXT_OBJECT.search(buffer), 0
            ended = ended or found is None
            stop = found.end() if found else len(buffer)
        if reason is None and _ESCAPED.search(buffer, at, stop):
            reason = fault(buffer[at:stop].encode("utf-8", "surrogateescape"))
        if reason is None:
            yield line, record, None
        else:
            yield line + buffer.count("\n", 0, at), None, reason
        at = stop
        if at > CHUNK:
            line += buffer.count("\n", 0, at)
            buffer, at = buffer[at:], 0


def table_rows(path: str) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    with fsspec.open(path, "rb") as stream:
        if container(path)[0] == ".parquet":
            batches = pyarrow.parquet.ParquetFile(stream).iter_batches(batch_size=1024)
        else:  # Hugging Face datasets writes the stream format
            batches = pyarrow.ipc.open_stream(stream)
        for batch in batches:
            yield from batch.to_pylist()
