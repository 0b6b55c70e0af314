"""Stream records from raw files: JSON lines, JSON lists of any size, Parquet, Arrow; plain or compressed.

    for position, record in records(Piece("c4-zh.00001.jsonl.gz"), problems, max_record=16 << 20):
        …

Unreadable records are skipped and counted in `Problems` with file and line: broken JSON, invalid UTF-8, a line longer
than `max_record` bytes. JSON as Python writes it (NaN, integers of any size, lone surrogates) is read. A truncated file
(.bz2, .gz, .zst) is an error, because the amount of lost data is unknown. A file without a record is counted, no more.
Paths are fsspec paths. `plan` divides files among tasks: plain JSON lines by bytes, everything else by turns.
"""

from __future__ import annotations

import codecs
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any

import fsspec

from artifacts.errors import UserError
from artifacts.files import DAMAGED
from artifacts.json_rows import MENDS, fault, parse, plain
from preprocess.sources.containers import (
    AFTER,
    CHUNK,
    LINES,
    TABLES,
    container,
    layout,
    lines,
    list_items,
    opened,
    packing_at,
    table_rows,
)

Row = dict[str, Any]
Batches = Iterator[list[Row]]

BATCH_DOCUMENTS, BATCH_CHARACTERS = 4096, 500_000  # limits of a batch of rows
TURN = 512  # consecutive records that a task takes from a file shared with other tasks
TEXTS = (".jsonl", ".json", ".ndjson")
EMPTY = "files without a record"
SURROGATES = "records with a lone surrogate, replaced by U+FFFD"
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
    mended: Counter[str] = field(default_factory=Counter)  # what is not quite as it should be, and was read

    def add(self, reason: str, path: str, line: int | None = None, byte: int | None = None, row: int = 0) -> None:
        """Count a bad record: its line, or the byte offset of its line, or its number in a list or table, from 1."""
        self.counts[reason] += 1
        if len(self.examples) < EXAMPLES:
            place: dict[str, Any] = {"row": row} if row else {"line": line, "byte": byte}
            self.examples.append({"reason": reason, "file": path, **place})

    def check(self, share: float, final: bool) -> None:
        """Raise UserError if more than `share` of the records are bad. Unless `final`, 100 records must be read."""
        bad = self.counts.total()
        if bad and bad > share * self.records and (final or self.records >= 100):
            self.locate()
            first = self.examples[0]
            mend = MENDS.get(first["reason"], "check --source, download a damaged file again")
            raise UserError(
                f"{where(first)}: {first['reason']}; {bad:,} of {self.records:,} records are bad, more than "
                f"--max-bad-share {share:g} allows: {mend}, or allow more"
            )

    def locate(self) -> None:
        """Fill in line numbers of examples that have only a byte offset, in one pass over each file's beginning."""
        unknown = [e for e in self.examples if e.get("byte") is not None and e["line"] is None]
        for path in {example["file"] for example in unknown}:
            wanted = [example for example in unknown if example["file"] == path]
            line, at = 1, 0
            with opened(path) as stream:
                for example in sorted(wanted, key=lambda e: e["byte"]):
                    while at < example["byte"]:
                        chunk = stream.read(min(CHUNK, example["byte"] - at))
                        if not chunk:
                            break
                        at += len(chunk)
                        line += chunk.count(b"\n")
                    example["line"] = line


def where(example: dict[str, Any]) -> str:
    """File and line, or row, of a bad record."""
    return f"{example['file']} " + (f"row {example['row']}" if "row" in example else f"line {example['line']}")


def is_lined(path: str) -> bool:
    """Whether a file has a record a line, so that a record's position is the byte offset of its line."""
    with _named(path):
        return container(path)[0] not in TABLES and layout(path) in (LINES, None)


def find_files(inputs: Iterable[str]) -> list[tuple[str, int]]:
    """The files of paths, folders and globs with their sizes in bytes, sorted. Raises UserError if there are none."""
    found: dict[str, int] = {}
    for given in inputs:
        system, path = fsspec.core.url_to_fs(str(given))
        if system.isdir(path):
            names = [name for name in system.find(path) if container(name)[0] in TABLES + TEXTS]
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
        if size == 0:
            parts[0].append(Piece(path))
            continue
        divisible = packing_at(path) is None and is_lined(path)
        for task in range(tasks):
            if divisible:
                parts[task].append(Piece(path, size * task // tasks, size * (task + 1) // tasks))
            else:
                parts[task].append(Piece(path, turn=task, shares=tasks))
    return parts


def records(piece: Piece, problems: Problems, max_record: int) -> Iterator[tuple[int, Any]]:
    """Yield (position, record) of a piece: the byte offset of a JSON line, else the record's number: in a list from 1,
    in a table from 0.

    Broken records go to `problems`. Raises UserError, with the file's name, if it is missing, truncated or damaged.
    """
    with _named(piece.path):
        yield from _turns(_all_records(piece, problems, max_record), piece)


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Turn what goes wrong while a file is read into a UserError that names it."""
    import pyarrow

    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: check the path") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder: give one of its files") from None
    except (*DAMAGED, pyarrow.ArrowInvalid) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(f"{path} is truncated or damaged ({error}): download it again") from None


def _all_records(piece: Piece, problems: Problems, max_record: int) -> Iterator[tuple[int, Any]]:
    ending = container(piece.path)[0]
    if ending in TABLES:
        yield from enumerate(table_rows(piece.path))
        return
    form = layout(piece.path)
    if form is None:
        if piece.start == 0 and piece.turn == 0:
            problems.mended[EMPTY] += 1
        return
    with opened(piece.path) as stream:
        if form == LINES:
            yield from _json_lines(stream, piece, problems, max_record)
        else:
            yield from _list_records(stream, piece, problems, max_record, form)


def _turns(numbered: Iterator[tuple[int, Any]], piece: Piece) -> Iterator[tuple[int, Any]]:
    if piece.shares == 1:
        yield from numbered
        return
    for count, item in enumerate(numbered):
        if count // TURN % piece.shares == piece.turn:
            yield item


def _json_lines(stream: IO[bytes], piece: Piece, problems: Problems, max_record: int) -> Iterator[tuple[int, Any]]:
    mine = piece.turn == 0  # if several tasks read the same lines by turns, only the first one reports the broken ones
    number: int | None = None if piece.start else 0
    for at, line in lines(stream, piece.start, piece.end, max_record):
        if number is not None:
            number += 1
        if line is not None and at == 0:
            line = line.removeprefix(codecs.BOM_UTF8)
        if line is not None and not line.strip():
            continue
        problems.records += mine
        reason = None
        if line is None:
            reason = f"a line longer than {max_record:,} bytes"
        else:
            try:
                record, replaced = parse(line)
            except ValueError:
                reason = fault(line)
        if reason is None:
            if replaced and mine:
                problems.mended[SURROGATES] += 1
            yield at, record
        elif mine:
            problems.add(reason, piece.path, number, None if number else at)


def _list_records(
    stream: IO[bytes], piece: Piece, problems: Problems, max_record: int, form: str
) -> Iterator[tuple[int, Any]]:
    mine = piece.turn == 0
    for number, (line, item, reason) in enumerate(list_items(stream, max_record, form), start=1):
        if reason == AFTER:
            raise UserError(
                f"{piece.path} line {line}: {AFTER}; it would be lost: write one row a line, or one list in a file"
            )
        problems.records += mine
        if reason is None:
            record, replaced = plain(item)
            if replaced and mine:
                problems.mended[SURROGATES] += 1
            yield number, record
        elif mine:
            problems.add(reason, piece.path, line)


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
