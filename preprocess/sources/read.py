"""Stream records from raw files: JSON lines, JSON lists of any size, Parquet, Arrow; plain or compressed.

    for position, record in records(Piece("c4-zh.00001.jsonl.gz"), problems, max_record=16 << 20):
        …

Unreadable records are skipped and counted in `Problems` with file and line: broken JSON, invalid UTF-8, a line longer
than `max_record` bytes. A truncated file (.bz2, .gz, .zst) is an error, because the amount of lost data is unknown.
Paths are fsspec paths. `plan` divides files among tasks: plain JSON lines by bytes, everything else by turns.
"""

from __future__ import annotations

import lzma
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any

import fsspec

from artifacts.errors import UserError
from preprocess.sources.containers import CHUNK, TABLES, container, first_byte, lines, list_items, opened, table_rows

Row = dict[str, Any]
Batches = Iterator[list[Row]]

BATCH_DOCUMENTS, BATCH_CHARACTERS = 4096, 500_000  # limits of a batch of rows
TURN = 512  # consecutive records that a task takes from a file shared with other tasks
LINES = (".jsonl", ".json", ".ndjson", ".txt")
EXAMPLES = 20  # problems kept with their position, per task


@dataclass(frozen=True)
class Piece:
    """A task's part of one file: bytes [start, end), or every `shares`-th turn (TURN records)."""

    path: str
    start: int = 0
    end: int | None = None
    turn: int = 0
    shares: int = 1


@dataclass
class Problems:
    """Counts of unreadable records, and the first examples with their position."""

    records: int = 0  # all records read, the bad ones included
    counts: Counter[str] = field(default_factory=Counter)
    examples: list[dict[str, Any]] = field(default_factory=list)

    def add(self, reason: str, path: str, line: int | None = None, byte: int | None = None) -> None:
        self.counts[reason] += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append({"reason": reason, "file": path, "line": line, "byte": byte})

    def check(self, share: float, final: bool) -> None:
        """Raise UserError if more than `share` of the records are bad. Unless `final`, 100 records must be read."""
        bad = self.counts.total()
        if bad and bad > share * self.records and (final or self.records >= 100):
            self.locate()
            first = self.examples[0]
            place = f"line {first['line']}" if first["line"] else f"byte {first['byte']}"
            raise UserError(
                f"{first['file']} {place}: {first['reason']}; {bad:,} of {self.records:,} records are bad, more than "
                f"--max-bad-share {share:g} allows: check --source, download a damaged file again, or allow more"
            )

    def locate(self) -> None:
        """Fill in line numbers of examples that have only a byte offset, in one pass over each file's beginning."""
        for path in {example["file"] for example in self.examples if example["line"] is None}:
            wanted = [e for e in self.examples if e["file"] == path and e["line"] is None and e["byte"] is not None]
            line, at = 1, 0
            with fsspec.open(path, "rb") as stream:
                for example in sorted(wanted, key=lambda e: e["byte"]):
                    while at < example["byte"]:
                        chunk = stream.read(min(CHUNK, example["byte"] - at))
                        if not chunk:
                            break
                        at += len(chunk)
                        line += chunk.count(b"\n")
                    example["line"] = line


def find_files(inputs: Iterable[str]) -> list[tuple[str, int]]:
    """The files of paths, folders and globs with their sizes in bytes, sorted. Raises UserError if there are none."""
    found: dict[str, int] = {}
    for given in inputs:
        system, path = fsspec.core.url_to_fs(str(given))
        if system.isdir(path):
            names = [name for name in system.find(path) if container(name)[0] in TABLES + LINES[:3]]
            names = [name for name in names if not name.rsplit("/", 1)[-1].startswith((".", "dataset_info", "state."))]
        else:
            names = system.glob(path) if any(c in path for c in "*?[") else [path] if system.exists(path) else []
        if not names:
            raise UserError(f"{given}: found no .jsonl, .json, .parquet or .arrow file: check the path")
        for name in names:
            found[system.unstrip_protocol(name) if "://" in str(given) else name] = system.size(name)
    return sorted(found.items())


def plan(files: list[tuple[str, int]], tasks: int) -> list[list[Piece]]:
    """The pieces that each task reads. The plan depends only on the files and the number of tasks.

    With four files per task or more, each file goes whole to the task with the fewest bytes so far, largest file first.
    Otherwise each file is divided among all tasks: plain JSON lines by bytes, other containers by turns of records.
    """
    parts: list[list[Piece]] = [[] for _ in range(tasks)]
    if len(files) >= 4 * tasks:
        loads = [0] * tasks
        for path, size in sorted(files, key=lambda item: (-item[1], item[0])):
            least = loads.index(min(loads))
            loads[least] += size + 1
            parts[least].append(Piece(path))
        return [sorted(part, key=lambda piece: piece.path) for part in parts]
    for path, size in files:
        ending, compression = container(path)
        divisible = ending not in TABLES and compression is None and first_byte(path) != b"["
        for task in range(tasks):
            if divisible:
                parts[task].append(Piece(path, size * task // tasks, size * (task + 1) // tasks))
            else:
                parts[task].append(Piece(path, turn=task, shares=tasks))
    return parts


def records(piece: Piece, problems: Problems, max_record: int) -> Iterator[tuple[int, Any]]:
    """Yield (position, record) of a piece: the byte offset of a JSON line, else the record's number.

    Broken records go to `problems`. Raises UserError, with the file's name, if it is missing, truncated or damaged.
    """
    import pyarrow

    try:
        yield from _turns(_all_records(piece, problems, max_record), piece)
    except FileNotFoundError:
        raise UserError(f"{piece.path} does not exist: check the path") from None
    except (EOFError, OSError, zlib.error, lzma.LZMAError, pyarrow.ArrowInvalid) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(f"{piece.path} is truncated or damaged ({error}): download it again") from None


def _all_records(piece: Piece, problems: Problems, max_record: int) -> Iterator[tuple[int, Any]]:
    ending = container(piece.path)[0]
    if ending in TABLES:
        yield from enumerate(table_rows(piece.path))
        return
    first = first_byte(piece.path)
    if not first:
        if piece.start == 0 and piece.turn == 0:
            problems.add("empty file", piece.path, line=1)
            problems.records += 1
        return
    with opened(piece.path) as stream:
        if first == b"[":
            yield from _list_records(stream, piece, problems, max_record)
        else:
            yield from _json_lines(stream, piece, problems, max_record)


def _turns(numbered: Iterator[tuple[int, Any]], piece: Piece) -> Iterator[tuple[int, Any]]:
    if piece.shares == 1:
        yield from numbered
        return
    for count, item in enumerate(numbered):
        if count // TURN % piece.shares == piece.turn:
            yield item


def _json_lines(stream: IO[bytes], piece: Piece, problems: Problems, max_record: int) -> Iterator[tuple[int, Any]]:
    import orjson

    seekable = container(piece.path)[1] is None
    mine = piece.turn == 0  # if several tasks read the same lines by turns, only the first one reports the broken ones
    number: int | None = None if piece.start else 0
    for at, line in lines(stream, piece.start, piece.end, max_record):
        if number is not None:
            number += 1
        if line is not None and not line.strip():
            continue
        problems.records += mine
        reason = None
        if line is None:
            reason = f"a line longer than {max_record:,} bytes"
        else:
            try:
                record = orjson.loads(line)
            except orjson.JSONDecodeError:
                reason = "invalid UTF-8" if not _is_utf8(line) else "NUL bytes" if b"\0" in line else "not JSON"
        if reason is None:
            yield at, record
        elif mine:
            problems.add(reason, piece.path, number, at if seekable else None)


def _list_records(stream: IO[bytes], piece: Piece, problems: Problems, max_record: int) -> Iterator[tuple[int, Any]]:
    mine = piece.turn == 0
    for number, (line, record, reason) in enumerate(list_items(stream, max_record), start=1):
        problems.records += mine
        if reason is None:
            yield number, record
        elif mine:
            problems.add(reason, piece.path, line)


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def in_batches(rows: Iterator[Row]) -> Batches:
    """Group rows with "text" into lists of at most BATCH_DOCUMENTS rows and about BATCH_CHARACTERS characters."""
    batch: list[Row] = []
    held = 0
    for row in rows:
        batch.append(row)
        held += len(row["text"])
        if held >= BATCH_CHARACTERS or len(batch) >= BATCH_DOCUMENTS:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch
